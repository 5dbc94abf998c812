//! Whether a bucket policy admits the clean rooms of another account: pure.
//!
//! A room's own role is not enough there: the bucket's account has to allow it too. What can not be told is said to be so.

use serde_json::{Value, json};

use super::policy::{bucket_names, fits, texts};

/// What rooms ask of the bucket: the action, and a key or prefix that stands for all of its kind.
const ASKED: [(&str, &str); 8] = [
    ("s3:GetObject", "cases/c/orders/o"),
    ("s3:GetObject", "cases/c/bundles/b"),
    ("s3:GetObject", "rules/r"),
    ("s3:GetObject", "agent/a"),
    ("s3:GetObject", "tools/t"),
    ("s3:ListBucket", "cases/c/orders/o"),
    ("s3:PutObject", "cases/c/bundles/b"),
    ("s3:ListMultipartUploadParts", "cases/c/bundles/b"),
];

/// Whether something is allowed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Admitted {
    /// By no statement.
    No,
    /// Under conditions that are not understood here.
    Perhaps,
    /// Yes.
    Yes,
}

/// What rooms of this account ask for, with whether each is allowed.
///
/// # Errors
/// The policy can not be read.
pub(super) fn admits(
    policy: &str,
    bucket: &str,
    account: &str,
) -> Result<Vec<(&'static str, &'static str, Admitted)>, String> {
    let policy: Value = serde_json::from_str(policy).map_err(|error| error.to_string())?;
    let statements = match policy.get("Statement") {
        Some(Value::Array(statements)) => statements.iter().collect(),
        Some(one @ Value::Object(_)) => vec![one],
        _ => return Err("it has no statements".to_owned()),
    };
    let allows: Vec<_> =
        statements.into_iter().filter(|s| s.get("Effect") == Some(&"Allow".into())).collect();
    let judged = ASKED.map(|(action, key)| {
        let best = allows.iter().map(|s| statement(s, (bucket, account), (action, key))).max();
        (action, key, best.unwrap_or(Admitted::No))
    });
    Ok(judged.into())
}

/// The ARN of a room's role: its path is the template's, its name CloudFormation's.
fn role(account: &str) -> String {
    format!("arn:aws:iam::{account}:role/cleanroom/cleanroom-c-Role-0")
}

fn statement(
    statement: &Value,
    (bucket, account): (&str, &str),
    (action, key): (&str, &str),
) -> Admitted {
    let acts = texts(statement.get("Action"));
    let wanted = action.to_ascii_lowercase();
    if !acts.iter().any(|pattern| fits(&pattern.to_ascii_lowercase(), &wanted)) {
        return Admitted::No;
    }
    let list = action == "s3:ListBucket";
    let names = bucket_names(bucket);
    let names = names.iter().map(|arn| if list { arn.clone() } else { format!("{arn}/{key}") });
    let names: Vec<_> = names.collect();
    let covers = |pattern: &String| names.iter().any(|name| fits(pattern, name));
    if !texts(statement.get("Resource")).iter().any(covers) {
        return Admitted::No;
    }
    principal(statement.get("Principal"), account).min(condition(
        statement.get("Condition"),
        account,
        key,
    ))
}

/// Everybody, the account, or roles of it, which may be other ones.
fn principal(principal: Option<&Value>, account: &str) -> Admitted {
    let named = match principal {
        Some(Value::Object(kinds)) => texts(kinds.get("AWS")),
        other => texts(other),
    };
    let judged = named.iter().map(|name| {
        let parts: Vec<_> = name.splitn(6, ':').collect();
        match parts.as_slice() {
            ["*"] => Admitted::Yes,
            [id] if *id == account => Admitted::Yes,
            [_, _, "iam", _, id, "root"] if *id == account => Admitted::Yes,
            [_, _, "iam", _, id, _] if *id == account => Admitted::Perhaps,
            _ => Admitted::No,
        }
    });
    judged.max().unwrap_or(Admitted::No)
}

/// Every key of a condition must hold; one that is not known may.
fn condition(condition: Option<&Value>, account: &str, key: &str) -> Admitted {
    let Some(operators) = condition.and_then(Value::as_object) else { return Admitted::Yes };
    let keys = operators
        .iter()
        .filter_map(|(operator, keys)| Some((operator, keys.as_object()?)))
        .flat_map(|(operator, keys)| keys.iter().map(move |(name, value)| (operator, name, value)));
    let judged = keys.map(|(operator, name, value)| {
        let is = match name.to_ascii_lowercase().as_str() {
            "aws:principalarn" => role(account),
            "aws:principalaccount" => account.to_owned(),
            "s3:prefix" => key.to_owned(),
            _ => return Admitted::Perhaps,
        };
        let like = matches!(operator.as_str(), "ArnLike" | "ArnEquals" | "StringLike");
        if !like && operator != "StringEquals" {
            return Admitted::Perhaps;
        }
        let holds = |value: &String| if like { fits(value, &is) } else { *value == is };
        if texts(Some(value)).iter().any(holds) { Admitted::Yes } else { Admitted::No }
    });
    judged.min().unwrap_or(Admitted::Yes)
}

/// The statements that admit rooms of this account: their roles lie under `/cleanroom/`, and each may do with its case what the
/// template's own policy says.
pub(super) fn statements(bucket: &str, account: &str) -> String {
    let arn = |key: &str| format!("arn:aws:s3:::{bucket}/{key}");
    let rooms =
        || json!({ "aws:PrincipalArn": format!("arn:aws:iam::{account}:role/cleanroom/*") });
    let allow = |sid: &str, action: Value, resource: Value, condition: Value| {
        json!({
            "Sid": sid,
            "Effect": "Allow",
            "Principal": { "AWS": format!("arn:aws:iam::{account}:root") },
            "Action": action,
            "Resource": resource,
            "Condition": condition,
        })
    };
    let read = ["cases/*/orders/*", "cases/*/bundles/*", "rules/*", "agent/*", "tools/*"].map(arn);
    let prefixes = ["cases/*/orders/*", "cases/*/bundles/*"];
    json!([
        allow("RoomsRead", json!("s3:GetObject"), json!(read), json!({ "ArnLike": rooms() })),
        allow(
            "RoomsList",
            json!("s3:ListBucket"),
            json!(format!("arn:aws:s3:::{bucket}")),
            json!({ "ArnLike": rooms(), "StringLike": { "s3:prefix": prefixes } })
        ),
        allow(
            "RoomsPublish",
            json!(["s3:PutObject", "s3:ListMultipartUploadParts"]),
            json!(arn("cases/*/bundles/*")),
            json!({ "ArnLike": rooms() })
        ),
    ])
    .to_string()
}

#[cfg(test)]
mod tests {
    use super::*;

    const ACCOUNT: &str = "111122223333";

    fn judged(statements: &Value) -> Vec<Admitted> {
        let policy = json!({ "Statement": statements }).to_string();
        admits(&policy, "b", ACCOUNT).expect("a policy").into_iter().map(|(.., a)| a).collect()
    }

    #[test]
    fn the_statements_that_are_printed_admit_rooms_and_nobody_else() {
        let printed: Value = serde_json::from_str(&statements("b", ACCOUNT)).expect("JSON");
        assert!(judged(&printed).iter().all(|a| *a == Admitted::Yes));
        let policy = json!({ "Statement": printed }).to_string();
        let others = admits(&policy, "b", "444455556666").expect("a policy");
        assert!(others.iter().all(|(.., a)| *a == Admitted::No), "{others:?}");
        let others = admits(&policy, "other", ACCOUNT).expect("a policy");
        assert!(others.iter().all(|(.., a)| *a == Admitted::No), "{others:?}");
        for lacking in 0..3 {
            let mut some = printed.as_array().expect("statements").clone();
            some.remove(lacking);
            assert!(judged(&json!(some)).contains(&Admitted::No), "without {lacking}");
        }
    }

    #[test]
    fn a_statement_admits_by_principal_action_resource_and_condition() {
        let with = |changes: Value| {
            let mut statement = json!({
                "Effect": "Allow", "Principal": { "AWS": format!("arn:aws:iam::{ACCOUNT}:root") },
                "Action": "s3:*", "Resource": ["arn:aws:s3:::b", "arn:aws:s3:::b/*"],
            });
            for (key, value) in changes.as_object().expect("an object") {
                statement[key] = value.clone();
            }
            *judged(&json!(statement)).iter().min().expect("eight")
        };
        use Admitted::{No, Perhaps, Yes};
        for (changes, expected) in [
            (json!({}), Yes),
            (json!({ "Principal": "*" }), Yes),
            (json!({ "Principal": { "AWS": [ACCOUNT] } }), Yes),
            (json!({ "Principal": { "AWS": format!("arn:aws:iam::{ACCOUNT}:role/x") } }), Perhaps),
            (json!({ "Principal": { "AWS": "arn:aws:iam::444455556666:root" } }), No),
            (json!({ "Effect": "Deny" }), No),
            (json!({ "Action": "s3:GetObject" }), No),
            (json!({ "Resource": "arn:aws:s3:::b/*" }), No),
            (json!({ "Condition": { "StringEquals": { "aws:PrincipalOrgID": "o-1" } } }), Perhaps),
            (
                json!({ "Condition": { "ArnLike": { "aws:PrincipalArn": "arn:aws:iam::*:role/cleanroom/*" } } }),
                Yes,
            ),
            (
                json!({ "Condition": { "ArnLike": { "aws:PrincipalArn": "arn:aws:iam::*:role/other/*" } } }),
                No,
            ),
            (json!({ "Condition": { "StringEquals": { "aws:PrincipalAccount": ACCOUNT } } }), Yes),
            (
                json!({ "Condition": { "StringNotEquals": { "aws:PrincipalAccount": ACCOUNT } } }),
                Perhaps,
            ),
        ] {
            assert_eq!(with(changes.clone()), expected, "{changes}");
        }
        assert!(admits("{", "b", ACCOUNT).is_err());
    }
}
