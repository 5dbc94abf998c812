//! The policy that drills need besides the ordinary one.
//!
//! Purpose: the document alone; its operations are rows of the table. Everything that it lets launch must be marked as a
//! drill's, and everything that it lets delete must be marked so already. Touches nothing.

use std::collections::BTreeMap;

use serde::Serialize;

/// A statement, its fields in the order that IAM's documentation has them in.
#[derive(Serialize)]
#[serde(rename_all = "PascalCase")]
struct Statement {
    sid: &'static str,
    effect: &'static str,
    action: &'static [&'static str],
    resource: &'static [&'static str],
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    condition: BTreeMap<&'static str, BTreeMap<&'static str, &'static str>>,
}

/// A policy document.
#[derive(Serialize)]
#[serde(rename_all = "PascalCase")]
struct Document {
    version: &'static str,
    statement: [Statement; 4],
}

/// The condition that a key has a value.
fn when(
    kind: &'static str,
    key: &'static str,
    value: &'static str,
) -> BTreeMap<&'static str, BTreeMap<&'static str, &'static str>> {
    BTreeMap::from([(kind, BTreeMap::from([(key, value)]))])
}

/// The IAM policy of drills, beside [`policy`](super::policy): for people only, never for a role of the response stack.
///
/// # Panics
/// Never: its text is made of constants.
#[must_use]
pub fn drill_policy() -> String {
    const LAUNCHED: &[&str] = &["arn:*:ec2:*:*:instance/*", "arn:*:ec2:*:*:volume/*"];
    let allow = |sid, action, resource, condition| Statement {
        sid,
        effect: "Allow",
        action,
        resource,
        condition,
    };
    let statement = [
        allow(
            "LaunchMarked",
            &["ec2:RunInstances"],
            LAUNCHED,
            when("StringLike", "aws:RequestTag/cleanroom:drill", "drill-*"),
        ),
        // Images have no account in their ARNs, and no tags of ours; neither have the others.
        allow(
            "LaunchWith",
            &["ec2:RunInstances"],
            &[
                "arn:*:ec2:*::image/*",
                "arn:*:ec2:*:*:network-interface/*",
                "arn:*:ec2:*:*:security-group/*",
                "arn:*:ec2:*:*:subnet/*",
            ],
            BTreeMap::new(),
        ),
        allow(
            "MarkAtLaunch",
            &["ec2:CreateTags"],
            LAUNCHED,
            when("StringEquals", "ec2:CreateAction", "RunInstances"),
        ),
        allow(
            "EndMarked",
            &["ec2:DeleteSnapshot", "ec2:TerminateInstances"],
            &["arn:*:ec2:*:*:instance/*", "arn:*:ec2:*::snapshot/*"],
            when("StringLike", "ec2:ResourceTag/cleanroom:drill", "drill-*"),
        ),
    ];
    let document = Document { version: "2012-10-17", statement };
    format!("{}\n", serde_json::to_string_pretty(&document).expect("texts and lists of texts"))
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use serde_json::Value;

    use super::*;
    use crate::permissions::TABLE;

    fn statements() -> Vec<Value> {
        let policy: Value = serde_json::from_str(&drill_policy()).expect("a JSON document");
        policy["Statement"].as_array().expect("statements").clone()
    }

    #[test]
    fn it_is_exactly_the_rows_of_drills() {
        let rows = TABLE.iter().filter(|row| row.step == "drill");
        let declared: BTreeSet<_> = rows
            .flat_map(|row| row.actions.iter().copied().chain(row.implied.iter().map(|i| i.action)))
            .map(str::to_owned)
            .collect();
        let allowed: BTreeSet<_> = statements()
            .iter()
            .flat_map(|s| s["Action"].as_array().expect("actions").clone())
            .map(|action| action.as_str().expect("a name").to_owned())
            .collect();
        assert_eq!(allowed, declared);
    }

    #[test]
    fn nothing_is_launched_or_deleted_unmarked() {
        for statement in statements() {
            let text = statement.to_string();
            let deletes = text.contains("Terminate") || text.contains("Delete");
            let action = statement["Action"].to_string();
            let launches = action.contains("RunInstances") && text.contains(":instance/*");
            if deletes || launches {
                let condition = statement["Condition"]["StringLike"].as_object();
                let values: Vec<_> = condition.expect("a condition").values().collect();
                assert_eq!(values, ["drill-*"], "{text}");
            }
            assert!(!text.contains("\"Resource\":\"*\""), "{text}");
        }
    }

    #[test]
    fn the_ordinary_policy_has_none_of_it() {
        for never in ["RunInstances", "TerminateInstances", "ec2:DeleteSnapshot"] {
            assert!(!crate::permissions::policy().contains(never), "{never}");
            assert!(!crate::permissions::forensic_policy().contains(never), "{never}");
        }
    }
}
