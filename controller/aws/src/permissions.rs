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
mod table;
#[cfg(test)]
mod tests;

use std::collections::{BTreeMap, BTreeSet};

use serde::Serialize;

pub use self::{
    drill::drill_policy,
    table::{DEPLOY, FORENSIC, TABLE},
};

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
        "SFN" => "states",
        "SNS" => "sns",
        "SQS" => "sqs",
        "STS" => "sts",
        "Service Quotas" => "servicequotas",
        _ => return None,
    })
}

/// The row of an operation, `ec2:CreateSnapshots`.
#[must_use]
pub fn operation(name: &str) -> Option<&'static Operation> {
    TABLE.iter().chain(DEPLOY).find(|operation| operation.name == name)
}

/// Every IAM action of some rows, each once.
fn union(rows: impl Iterator<Item = &'static Operation>) -> BTreeSet<&'static str> {
    rows.flat_map(|row| row.actions.iter().copied().chain(row.implied.iter().map(|i| i.action)))
        .collect()
}

/// The rows that the command line needs: all but intake's own, which is a function of the response stack and has a role
/// there, and those of drills, which have a policy of their own.
fn of_the_command_line() -> impl Iterator<Item = &'static Operation> + Clone {
    TABLE.iter().filter(|row| !matches!(row.step, "intake" | "drill"))
}

/// Every IAM action that the command line needs, sorted, each once.
#[must_use]
pub fn actions() -> Vec<&'static str> {
    union(of_the_command_line()).into_iter().collect()
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

/// The IAM policy that allows exactly what the table names for the command line: a statement that looks, one that acts, and one for each
/// condition. An action that looking and acting share is with the acting ones.
///
/// # Panics
/// Never: its text is made of the tables of this module.
#[must_use]
pub fn policy() -> String {
    document(of_the_command_line())
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
