//! That the table is what the sources call, and the policies what the table says.

use std::{fs, path::Path};

use cleanroom_cloud::Change;
use regex::Regex;
use serde_json::{Value, json};

use super::*;

/// The services' prefixes by the clients' names in `Clients`.
const CLIENTS: &[(&str, &str)] = &[
    ("autoscaling", "autoscaling"),
    ("autoscaling_once", "autoscaling"),
    ("cloudformation", "cloudformation"),
    ("cloudtrail", "cloudtrail"),
    ("ec2", "ec2"),
    ("ec2_first", "ec2"),
    ("ec2_once", "ec2"),
    ("elb", "elasticloadbalancing"),
    ("elbv2", "elasticloadbalancing"),
    ("guardduty", "guardduty"),
    ("iam", "iam"),
    ("kms", "kms"),
    ("quotas", "servicequotas"),
    ("s3", "s3"),
    ("sfn", "states"),
    ("sns", "sns"),
    ("sqs", "sqs"),
    ("sts", "sts"),
];

/// Adds the text of every source file below `folder`, up to where `tests` matches.
fn read_sources(folder: &Path, tests: &Regex, into: &mut Vec<String>) {
    for entry in fs::read_dir(folder).expect("the crate's own folder") {
        let path = entry.expect("an entry of it").path();
        if path.is_dir() {
            read_sources(&path, tests, into);
        } else {
            let text = fs::read_to_string(&path).expect("a source file");
            let end = tests.find(&text).map_or(text.len(), |found| found.start());
            into.push(text[..end].to_owned());
        }
    }
}

/// The operations that the sources call, in lower case: method names do not say what else is capital.
fn called() -> BTreeSet<String> {
    let mut sources = Vec::new();
    // A module of tests is the last thing of its file; one with a file of its own calls nothing.
    let tests = Regex::new(r"#\[cfg\(test\)\]\n[\w() ]*mod \w+ \{").expect("a pattern");
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("src");
    read_sources(&folder, &tests, &mut sources);
    let alias = Regex::new(r"let (\w+) = &(?:self\.)?clients\.(\w+);").expect("a pattern");
    let call = Regex::new(r"\b(\w+)\s*\.\s*([a-z0-9_]+)\(\)").expect("a pattern");
    let mut found = BTreeSet::new();
    for source in &sources {
        let mut prefixes: BTreeMap<&str, &str> = CLIENTS.iter().copied().collect();
        for (_, [name, client]) in alias.captures_iter(source).map(|c| c.extract()) {
            if let Some(prefix) = prefixes.get(client).copied() {
                prefixes.insert(name, prefix);
            }
        }
        for (_, [client, method]) in call.captures_iter(source).map(|c| c.extract()) {
            if let Some(prefix) = prefixes.get(client) {
                found.insert(format!("{prefix}:{}", method.replace('_', "")));
            }
        }
    }
    found
}

#[test]
fn the_table_names_exactly_what_the_sources_call() {
    let declared: BTreeSet<String> =
        TABLE.iter().chain(DEPLOY).map(|row| row.name.to_ascii_lowercase()).collect();
    let called = called();
    let undeclared: Vec<_> = called.difference(&declared).collect();
    let uncalled: Vec<_> = declared.difference(&called).collect();
    assert!(undeclared.is_empty(), "called, and not in the table: {undeclared:?}");
    assert!(uncalled.is_empty(), "in the table, and not called: {uncalled:?}");
}

#[test]
fn every_operation_is_named_once_and_every_action_in_full() {
    let all = || TABLE.iter().chain(DEPLOY);
    let names: BTreeSet<_> = all().map(|operation| operation.name).collect();
    assert_eq!(names.len(), all().count());
    for action in actions() {
        let (service, name) = action.split_once(':').expect("a service and a name");
        assert!(!service.is_empty() && name.starts_with(|c: char| c.is_ascii_uppercase()));
        assert!(!action.contains('*'), "{action} is a pattern, which can not be simulated");
    }
    for implied in TABLE.iter().flat_map(|operation| operation.implied) {
        assert!(implied.page.starts_with("https://docs.aws.amazon.com/"), "{}", implied.page);
        assert!(!implied.reason.is_empty(), "{}", implied.action);
    }
}

#[test]
fn the_policy_is_exactly_the_union_of_the_table() {
    let policy: Value = serde_json::from_str(&policy()).expect("a JSON document");
    let mut allowed = Vec::new();
    for statement in policy["Statement"].as_array().expect("statements") {
        assert_eq!(statement["Effect"], "Allow");
        let actions = statement["Action"].as_array().expect("actions");
        let actions: Vec<_> = actions.iter().map(|a| a.as_str().expect("a name")).collect();
        assert!(actions.is_sorted(), "{actions:?}");
        allowed.extend(actions.into_iter().map(str::to_owned));
    }
    allowed.sort();
    // What is allowed under one of several conditions is named under each.
    allowed.dedup();
    assert_eq!(allowed, actions());
}

#[test]
fn what_looks_allows_nothing_that_acts() {
    let policy: Value = serde_json::from_str(&policy()).expect("a JSON document");
    let looks = policy["Statement"][0]["Action"].as_array().expect("actions");
    assert!(!looks.is_empty());
    for action in looks {
        let name = action.as_str().expect("a name").split(':').next_back().expect("a name");
        let harmless = ["Describe", "Get", "List", "Lookup", "Simulate"];
        assert!(harmless.iter().any(|verb| name.starts_with(verb)), "{name}");
    }
}

#[test]
fn passing_a_role_and_granting_a_key_are_under_conditions() {
    let policy: Value = serde_json::from_str(&policy()).expect("a JSON document");
    let of = |action: &str| -> Vec<Value> {
        let statements = policy["Statement"].as_array().expect("statements").iter();
        let named = |s: &&Value| s["Action"].as_array().is_some_and(|a| a.contains(&action.into()));
        statements.filter(named).cloned().collect()
    };
    let pass = of("iam:PassRole");
    assert_eq!(pass.len(), 1);
    let expected = json!({"StringEquals": {"iam:PassedToService": ["cloudformation.amazonaws.com", "ec2.amazonaws.com", "ec2.amazonaws.com.cn"]}});
    assert_eq!(pass[0]["Condition"], expected);
    let grant = of("kms:CreateGrant");
    assert_eq!(grant.len(), 2);
    assert_eq!(grant[0]["Condition"], json!({"Bool": {"kms:GrantIsForAWSResource": ["true"]}}));
    let read: Vec<_> = crate::keys::READ.iter().map(|o| o.as_str()).collect();
    let expected = json!({"ForAllValues:StringEquals": {"kms:GrantOperations": read}});
    assert_eq!(grant[1]["Condition"], expected, "no grant of more than reading");
}

#[test]
fn the_forensic_role_s_policy_is_part_of_the_table_s_and_makes_no_grant_of_its_own() {
    for name in FORENSIC {
        assert!(operation(name).is_some(), "{name} is not in the table");
    }
    let policy: Value = serde_json::from_str(&forensic_policy()).expect("a JSON document");
    let mut allowed = BTreeSet::new();
    for statement in policy["Statement"].as_array().expect("statements") {
        for action in statement["Action"].as_array().expect("actions") {
            allowed.insert(action.as_str().expect("a name").to_owned());
        }
    }
    let all: BTreeSet<_> = actions().into_iter().map(str::to_owned).collect();
    assert!(allowed.is_subset(&all), "{allowed:?}");
    for never in ["ec2:ModifySnapshotAttribute", "ec2:CreateSnapshots", "s3:PutObject"] {
        assert!(!allowed.contains(never), "{never}");
    }
    assert!(!forensic_policy().contains("kms:GrantOperations"));
}

#[test]
fn a_change_s_operation_is_in_the_table_as_one_that_mutates() {
    let instance = || "i-0123456789abcdef0".parse().expect("an id");
    let changes = [
        Change::SetStopProtection { instance: instance(), on: true },
        Change::EmptyGroup { group: "sg-0123456789abcdef0".into() },
        Change::OpenGroup { group: "sg-0123456789abcdef0".into() },
        Change::DetachFromGroup { instance: instance(), group: "web".into() },
        Change::SetMetadataEndpoint { instance: instance(), on: false },
    ];
    for change in changes {
        let row = operation(change.operation()).expect("a row");
        assert!(row.mutates, "{}", row.name);
    }
}

#[test]
fn services_that_share_a_prefix_share_their_rows() {
    assert_eq!(prefix("Elastic Load Balancing"), prefix("Elastic Load Balancing v2"));
    assert_eq!(prefix("Glacier"), None);
}
