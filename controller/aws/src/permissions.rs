//! Every operation that this crate calls, and what each needs.
//!
//! Purpose: one committed table from which the IAM policy, `preflight` and the README's table of calls are made. The
//! interceptor refuses whatever is not in it, and a test holds it against this crate's own sources, so it can be neither
//! too short nor too long. Touches nothing.
//!
//! `--assume-role` and `--forensic-account` need `sts:AssumeRole` on that one role besides, for the caller and not for the
//! role: a policy for anything would be too much, so it is not here. [`FORENSIC`] names what is called in the forensic
//! account; no other call goes out there.

mod drill;

use std::collections::{BTreeMap, BTreeSet};

use serde::Serialize;

pub use self::drill::drill_policy;

/// An operation of an AWS service.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Operation {
    /// Its name, with the prefix that IAM has for its service: `ec2:CreateSnapshots`.
    pub name: &'static str,
    /// The IAM actions that are named for it. S3's differ from the operation's name.
    pub actions: &'static [&'static str],
    /// IAM actions that it needs besides, in some uses of it.
    pub implied: &'static [Implied],
    /// The step that first needs it, or the command.
    pub step: &'static str,
    /// Whether it changes anything.
    pub mutates: bool,
}

/// An action that an operation needs although its name does not say so.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Implied {
    /// The action, `ec2:CreateTags`.
    pub action: &'static str,
    /// When and why.
    pub reason: &'static str,
    /// The page of AWS's documentation that says so.
    pub page: &'static str,
}

const TAGS: Implied = Implied {
    action: "ec2:CreateTags",
    reason: "what is made carries the case's tags from its first moment",
    page: "https://docs.aws.amazon.com/AWSEC2/latest/UserGuide/supported-iam-actions-tagging.html",
};

const DRILL_TAGS: Implied = Implied {
    action: "ec2:CreateTags",
    reason: "the instance of a drill is marked from its first moment",
    page: "https://docs.aws.amazon.com/AWSEC2/latest/UserGuide/supported-iam-actions-tagging.html",
};

/// The page on what a user of encrypted snapshots must be allowed.
const EBS_ENCRYPTION: &str =
    "https://docs.aws.amazon.com/ebs/latest/userguide/ebs-encryption-requirements.html";

/// An action on the keys of a snapshot that is copied from one to the other.
const fn re_encrypt(action: &'static str) -> Implied {
    Implied {
        action,
        reason: "the copy of a snapshot is encrypted with the case's key",
        page: EBS_ENCRYPTION,
    }
}

/// An action on the key of a bucket that encrypts with KMS.
const fn bucket_key(action: &'static str) -> Implied {
    Implied {
        action,
        reason: "the evidence bucket encrypts with a KMS key",
        page: "https://docs.aws.amazon.com/AmazonS3/latest/userguide/UsingKMSEncryption.html",
    }
}

/// An action on the key of a topic that encrypts with KMS.
const fn topic_key(action: &'static str) -> Implied {
    Implied {
        action,
        reason: "the topic encrypts with a KMS key",
        page: "https://docs.aws.amazon.com/sns/latest/dg/sns-key-management.html",
    }
}

const PASS_ROLE: Implied = Implied {
    action: "iam:PassRole",
    reason: "release puts the instance's own profile back on",
    page: "https://docs.aws.amazon.com/AWSEC2/latest/UserGuide/permission-to-pass-iam-roles.html",
};

const PASS_ROOM_ROLE: Implied = Implied {
    action: "iam:PassRole",
    reason: "the stack is made in the role that --room-role names; without one, the caller's own rights are used",
    page: "https://docs.aws.amazon.com/AWSCloudFormation/latest/UserGuide/using-iam-servicerole.html",
};

const TAG_STACK: Implied = Implied {
    action: "cloudformation:TagResource",
    reason: "the stack and all that it makes carry the case's tags",
    page: "https://docs.aws.amazon.com/service-authorization/latest/reference/list_awscloudformation.html",
};

const LIST_TO_MISS: Implied = Implied {
    action: "s3:ListBucket",
    reason: "without it, an object that is not there is reported as denied",
    page: "https://docs.aws.amazon.com/AmazonS3/latest/API/API_GetObject.html",
};

/// Writes the table: the step, whether it looks or acts, the operation, its actions where they are named otherwise, and
/// what it implies.
macro_rules! table {
    (@way look) => { false };
    (@way act) => { true };
    (@actions $name:literal) => { &[$name] };
    (@actions $name:literal $($action:literal),+) => { &[$($action),+] };
    (@implied) => { &[] };
    (@implied $($implied:expr),+) => { &[$($implied),+] };
    ($($step:literal $way:ident $name:literal
        $(= $($action:literal),+)? $(, with $($implied:expr),+)?;)*) => {
        &[$(Operation {
            name: $name,
            actions: table!(@actions $name $($($action),+)?),
            implied: table!(@implied $($($implied),+)?),
            step: $step,
            mutates: table!(@way $way),
        }),*]
    };
}

/// The table.
pub const TABLE: &[Operation] = table! {
    "verify" look "sts:GetCallerIdentity";
    "verify" look "ec2:DescribeInstances";
    "verify" look "ec2:DescribeAddresses";
    "verify" look "ec2:DescribeNetworkInterfaces";
    "verify" look "ec2:DescribeRegions";
    "verify" look "guardduty:ListDetectors";
    "verify" look "guardduty:ListFindings";
    "verify" look "guardduty:GetFindings";
    "verify" look "cloudformation:DescribeStacks";

    "custody" look "s3:GetObject", with LIST_TO_MISS, bucket_key("kms:Decrypt");
    "custody" look "s3:ListObjectsV2" = "s3:ListBucket";
    "custody" look "s3:ListObjectVersions" = "s3:ListBucketVersions";
    "custody" act "s3:PutObject",
        with bucket_key("kms:GenerateDataKey"), bucket_key("kms:Decrypt");
    "custody" act "s3:PutObjectLegalHold";

    "protect" look "ec2:DescribeInstanceAttribute";
    "protect" act "ec2:ModifyInstanceAttribute";

    "detach" look "autoscaling:DescribeAutoScalingInstances";
    "detach" look "autoscaling:DescribeAutoScalingGroups";
    "detach" look "autoscaling:DescribeLifecycleHooks";
    "detach" look "elasticloadbalancing:DescribeTargetGroups";
    "detach" look "elasticloadbalancing:DescribeTargetHealth";
    "detach" look "elasticloadbalancing:DescribeLoadBalancers";
    "detach" act "autoscaling:DetachInstances";
    "detach" act "autoscaling:SetInstanceProtection";
    "detach" act "autoscaling:SuspendProcesses";
    "detach" act "autoscaling:RecordLifecycleActionHeartbeat";
    "detach" act "elasticloadbalancing:DeregisterTargets";
    "detach" act "elasticloadbalancing:DeregisterInstancesFromLoadBalancer";

    "snapshot" look "ec2:DescribeVolumes";
    "snapshot" look "ec2:DescribeVolumeAttribute";
    "snapshot" look "ec2:DescribeSnapshots";
    "snapshot" look "ec2:DescribeLockedSnapshots";
    "snapshot" look "ec2:DescribeImages";
    "snapshot" look "ec2:DescribeInstanceTypes";
    "snapshot" look "kms:DescribeKey";
    "snapshot" act "ec2:CreateSnapshots", with TAGS;
    "snapshot" act "ec2:CreateSnapshot", with TAGS;
    "snapshot" act "ec2:CopySnapshot", with TAGS,
        re_encrypt("kms:CreateGrant"), re_encrypt("kms:Decrypt"), re_encrypt("kms:DescribeKey"),
        re_encrypt("kms:GenerateDataKeyWithoutPlaintext"),
        re_encrypt("kms:ReEncryptFrom"), re_encrypt("kms:ReEncryptTo");
    "snapshot" act "ec2:LockSnapshot";
    "snapshot" act "ec2:RegisterImage", with TAGS;
    "snapshot" act "ec2:CreateImage", with TAGS;

    "record" look "ec2:DescribeInstanceStatus";
    "record" look "ec2:GetConsoleOutput";
    "record" look "ec2:GetConsoleScreenshot";
    "record" look "ec2:DescribeTags";
    "record" look "ec2:DescribeSubnets";
    "record" look "ec2:DescribeVpcs";
    "record" look "ec2:DescribeRouteTables";
    "record" look "ec2:DescribeFlowLogs";
    "record" look "ec2:DescribeLaunchTemplateVersions";
    "record" look "autoscaling:DescribeScalingActivities";
    "record" look "iam:GetRole";
    "record" look "iam:ListAttachedRolePolicies";
    "record" look "iam:GetPolicy";
    "record" look "iam:GetPolicyVersion";
    "record" look "cloudtrail:LookupEvents";

    "tag" act "ec2:CreateTags";

    "notify" act "sns:Publish", with topic_key("kms:GenerateDataKey"), topic_key("kms:Decrypt");

    "isolate" look "ec2:DescribeSecurityGroups";
    "isolate" look "ec2:DescribeSecurityGroupRules";
    "isolate" look "ec2:DescribeNetworkInterfaceAttribute";
    "isolate" look "ec2:DescribeNetworkAcls";
    "isolate" act "ec2:CreateSecurityGroup", with TAGS;
    "isolate" act "ec2:RevokeSecurityGroupIngress";
    "isolate" act "ec2:RevokeSecurityGroupEgress";
    "isolate" act "ec2:AuthorizeSecurityGroupIngress";
    "isolate" act "ec2:AuthorizeSecurityGroupEgress";
    "isolate" act "ec2:ModifyNetworkInterfaceAttribute";
    "isolate" act "ec2:DisassociateAddress";
    "isolate" act "ec2:CreateNetworkAclEntry";

    "revoke" look "ec2:DescribeIamInstanceProfileAssociations";
    "revoke" look "iam:GetInstanceProfile";
    "revoke" look "iam:ListRolePolicies";
    "revoke" look "iam:GetRolePolicy";
    "revoke" look "iam:ListAccessKeys";
    "revoke" look "iam:ListUserPolicies";
    "revoke" look "iam:GetUserPolicy";
    "revoke" act "ec2:DisassociateIamInstanceProfile";
    "revoke" act "ec2:ModifyInstanceMetadataOptions";
    "revoke" act "iam:PutRolePolicy";
    "revoke" act "iam:UpdateAccessKey";
    "revoke" act "iam:PutUserPolicy";

    "clean_room" look "cloudformation:DescribeStackEvents";
    "clean_room" look "ec2:DescribeManagedPrefixLists";
    "clean_room" look "ec2:DescribeSnapshotAttribute";
    "clean_room" look "kms:ListGrants";
    "clean_room" act "ec2:ModifySnapshotAttribute";
    "clean_room" act "kms:CreateGrant";
    "clean_room" act "cloudformation:CreateStack", with PASS_ROOM_ROLE, TAG_STACK;
    "clean_room" act "cloudformation:DeleteStack";

    "release" act "ec2:AssociateIamInstanceProfile", with PASS_ROLE;
    "release" act "iam:DeleteRolePolicy";
    "release" act "ec2:AssociateAddress";
    "release" act "ec2:DeleteNetworkAclEntry";
    "release" act "ec2:DeleteSecurityGroup";
    "release" act "ec2:DeleteTags";
    "release" act "autoscaling:AttachInstances";
    "release" act "autoscaling:ResumeProcesses";
    "release" act "elasticloadbalancing:RegisterTargets";
    "release" act "elasticloadbalancing:RegisterInstancesWithLoadBalancer";

    "preflight" look "s3:GetBucketVersioning";
    "preflight" look "s3:GetObjectLockConfiguration" = "s3:GetBucketObjectLockConfiguration";
    "preflight" look "s3:GetPublicAccessBlock" = "s3:GetBucketPublicAccessBlock";
    "preflight" look "s3:GetBucketEncryption" = "s3:GetEncryptionConfiguration";
    "preflight" look "s3:GetBucketPolicy";
    "preflight" look "sns:GetTopicAttributes";
    "preflight" look "iam:SimulatePrincipalPolicy";
    "preflight" look "cloudtrail:DescribeTrails";
    "preflight" look "cloudtrail:GetTrailStatus";
    "preflight" look "guardduty:GetDetector";
    "preflight" look "servicequotas:GetServiceQuota";
    "preflight" look "servicequotas:GetAWSDefaultServiceQuota";

    "drill" act "ec2:RunInstances", with DRILL_TAGS;
    "drill" act "ec2:TerminateInstances";
    "drill" act "ec2:DeleteSnapshot";
};

/// The rows of the ordinary policy: what only drills need has a policy of its own.
fn ordinary() -> impl Iterator<Item = &'static Operation> + Clone {
    TABLE.iter().filter(|row| row.step != "drill")
}

/// What is called in the forensic account, as the role that `--forensic-account` names. All of it is in the table.
pub const FORENSIC: &[&str] = &[
    "sts:GetCallerIdentity",
    "ec2:DescribeImages",
    "ec2:DescribeInstances",
    "ec2:DescribeLockedSnapshots",
    "ec2:DescribeManagedPrefixLists",
    "ec2:DescribeSnapshots",
    "ec2:DescribeVolumeAttribute",
    "ec2:DescribeVolumes",
    "kms:DescribeKey",
    "cloudformation:DescribeStackEvents",
    "cloudformation:DescribeStacks",
    "ec2:CopySnapshot",
    "cloudformation:CreateStack",
    "cloudformation:DeleteStack",
];

/// A condition under which alone an action is allowed.
pub(crate) struct Condition {
    /// The statement's name.
    sid: &'static str,
    /// The action.
    pub(crate) action: &'static str,
    /// The condition's operator.
    pub(crate) kind: &'static str,
    /// Its key.
    pub(crate) key: &'static str,
    /// Its values.
    pub(crate) values: &'static [&'static str],
}

/// Actions that are allowed under a condition only. Under it they do all that this program needs, and not under it they
/// could make the caller more than it is. One of several that an action has is enough.
pub(crate) const CONDITIONS: &[Condition] = &[
    Condition {
        sid: "PassRole",
        action: "iam:PassRole",
        kind: "StringEquals",
        key: "iam:PassedToService",
        values: &["cloudformation.amazonaws.com", "ec2.amazonaws.com", "ec2.amazonaws.com.cn"],
    },
    Condition {
        sid: "CreateGrant",
        action: "kms:CreateGrant",
        kind: "Bool",
        key: "kms:GrantIsForAWSResource",
        values: &["true"],
    },
    Condition {
        sid: "LetForensicAccountRead",
        action: "kms:CreateGrant",
        kind: "ForAllValues:StringEquals",
        key: "kms:GrantOperations",
        values: &["CreateGrant", "Decrypt", "DescribeKey", "ReEncryptFrom"],
    },
];

/// The prefix that IAM has for a service, by the SDK's name of the service. Both kinds of load balancer share one.
pub(crate) fn prefix(service: &str) -> Option<&'static str> {
    Some(match service {
        "Auto Scaling" => "autoscaling",
        "CloudFormation" => "cloudformation",
        "CloudTrail" => "cloudtrail",
        "EC2" => "ec2",
        "Elastic Load Balancing" | "Elastic Load Balancing v2" => "elasticloadbalancing",
        "GuardDuty" => "guardduty",
        "IAM" => "iam",
        "KMS" => "kms",
        "S3" => "s3",
        "SNS" => "sns",
        "STS" => "sts",
        "Service Quotas" => "servicequotas",
        _ => return None,
    })
}

/// The row of an operation, `ec2:CreateSnapshots`.
#[must_use]
pub fn operation(name: &str) -> Option<&'static Operation> {
    TABLE.iter().find(|operation| operation.name == name)
}

/// Every IAM action of some rows, each once.
fn union(rows: impl Iterator<Item = &'static Operation>) -> BTreeSet<&'static str> {
    rows.flat_map(|row| row.actions.iter().copied().chain(row.implied.iter().map(|i| i.action)))
        .collect()
}

/// Every IAM action that the table names but for drills, sorted, each once.
#[must_use]
pub fn actions() -> Vec<&'static str> {
    union(ordinary()).into_iter().collect()
}

/// A statement of a policy, its fields in the order that IAM's documentation has them in. Not a [`serde_json::Value`],
/// whose order of keys another crate of the same build decides.
#[derive(Serialize)]
#[serde(rename_all = "PascalCase")]
struct Statement {
    sid: &'static str,
    effect: &'static str,
    action: Vec<&'static str>,
    resource: &'static str,
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    condition: BTreeMap<&'static str, BTreeMap<&'static str, &'static [&'static str]>>,
}

/// A policy document.
#[derive(Serialize)]
#[serde(rename_all = "PascalCase")]
struct Document {
    version: &'static str,
    statement: Vec<Statement>,
}

/// The IAM policy that allows exactly what the table names, but for drills: a statement that looks, one that acts, and one for each
/// condition. An action that looking and acting share is with the acting ones.
///
/// # Panics
/// Never: its text is made of the tables of this module.
#[must_use]
pub fn policy() -> String {
    document(ordinary())
}

/// The same for the role of the forensic account.
///
/// # Panics
/// Never: its text is made of the tables of this module.
#[must_use]
pub fn forensic_policy() -> String {
    document(FORENSIC.iter().filter_map(|name| operation(name)))
}

fn document(rows: impl Iterator<Item = &'static Operation> + Clone) -> String {
    let conditional = |action: &str| CONDITIONS.iter().any(|c| c.action == action);
    let all = union(rows.clone());
    let mut acts = union(rows.clone().filter(|row| row.mutates));
    let mut looks = union(rows.clone().filter(|row| !row.mutates));
    looks.retain(|action| !acts.contains(action) && !conditional(action));
    acts.retain(|action| !conditional(action));

    let allow = |sid, action| Statement {
        sid,
        effect: "Allow",
        action,
        resource: "*",
        condition: BTreeMap::new(),
    };
    let mut statement =
        vec![allow("Look", looks.into_iter().collect()), allow("Act", acts.into_iter().collect())];
    // A grant that is not for a service of AWS is what its own operation is called for.
    let grants = rows.clone().any(|row| row.name == "kms:CreateGrant");
    let needed = CONDITIONS
        .iter()
        .filter(|c| all.contains(c.action) && (grants || c.key != "kms:GrantOperations"));
    statement.extend(needed.map(|c| Statement {
        condition: BTreeMap::from([(c.kind, BTreeMap::from([(c.key, c.values)]))]),
        ..allow(c.sid, vec![c.action])
    }));
    let document = Document { version: "2012-10-17", statement };
    format!("{}\n", serde_json::to_string_pretty(&document).expect("texts and lists of texts"))
}

#[cfg(test)]
mod tests {
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
        ("sns", "sns"),
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
            TABLE.iter().map(|operation| operation.name.to_ascii_lowercase()).collect();
        let called = called();
        let undeclared: Vec<_> = called.difference(&declared).collect();
        let uncalled: Vec<_> = declared.difference(&called).collect();
        assert!(undeclared.is_empty(), "called, and not in the table: {undeclared:?}");
        assert!(uncalled.is_empty(), "in the table, and not called: {uncalled:?}");
    }

    #[test]
    fn every_operation_is_named_once_and_every_action_in_full() {
        let names: BTreeSet<_> = TABLE.iter().map(|operation| operation.name).collect();
        assert_eq!(names.len(), TABLE.len());
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
            let named =
                |s: &&Value| s["Action"].as_array().is_some_and(|a| a.contains(&action.into()));
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
}
