//! What a bucket policy denies, as far as three questions need: pure.
//!
//! Judges by the policy's grammar (IAM user guide, "Grammar of the IAM JSON policy language"), and in doubt says that
//! something is not denied.

use serde_json::Value;

/// Whether everybody is denied something.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Denied {
    /// Everybody, always.
    Always,
    /// Only where conditions hold, or not everybody.
    UnderConditions,
    /// Not at all.
    No,
}

/// Whether everybody is denied to write over objects.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Overwriting {
    /// Everybody, always.
    Denied,
    /// The parts of an upload are denied with it, which take no condition.
    PartsToo,
    /// Not everybody, or not at all.
    Allowed,
}

/// The denials of a bucket policy.
#[derive(Debug)]
pub(super) struct Policy {
    denials: Vec<Denial>,
}

/// One statement that denies.
#[derive(Debug)]
struct Denial {
    everybody: bool,
    actions: Vec<String>,
    resources: Vec<String>,
    condition: Option<Value>,
}

impl Policy {
    /// Reads a policy's JSON.
    pub(super) fn parse(text: &str) -> Result<Self, String> {
        let policy: Value = serde_json::from_str(text).map_err(|error| error.to_string())?;
        let statements = match policy.get("Statement") {
            Some(Value::Array(statements)) => statements.iter().collect(),
            Some(one @ Value::Object(_)) => vec![one],
            _ => return Err("it has no statements".to_owned()),
        };
        let denies = statements.into_iter().filter(|s| s.get("Effect") == Some(&"Deny".into()));
        Ok(Self { denials: denies.map(Denial::of).collect() })
    }

    /// Whether every request without TLS is denied, on the bucket and on all its objects.
    pub(super) fn denies_plain_http(&self, bucket: &str) -> bool {
        let plain: Vec<_> = self
            .denials
            .iter()
            .filter(|d| {
                d.everybody && d.acts_on("s3:*") && d.condition.as_ref().is_some_and(is_plain_http)
            })
            .collect();
        let whole = bucket_names(bucket);
        plain.iter().any(|d| d.covers_one(&whole)) && plain.iter().any(|d| d.covers_objects(bucket))
    }

    /// Whether an action on the bucket's objects is denied to everybody.
    pub(super) fn denies(&self, action: &str, bucket: &str) -> Denied {
        let mut denied = Denied::No;
        for denial in self.denials.iter().filter(|d| d.acts_on(action) && d.covers_objects(bucket))
        {
            if denial.everybody && denial.condition.is_none() {
                return Denied::Always;
            }
            // What is denied without TLS only is not denied at all to whoever deletes.
            if !denial.condition.as_ref().is_some_and(is_plain_http) {
                denied = Denied::UnderConditions;
            }
        }
        denied
    }

    /// Whether everybody is denied to create objects below a prefix without the condition that there is none (S3 user guide,
    /// "Enforce conditional writes on Amazon S3 buckets").
    pub(super) fn overwriting(&self, bucket: &str, prefix: &str) -> Overwriting {
        let unconditional = (&["Null"][..], "s3:if-none-match", "true");
        let creates = (&["Bool", "BoolIfExists"][..], "s3:ObjectCreationOperation", "true");
        let denied = |wanted: &[Asked<'_>]| {
            self.denials.iter().any(|d| {
                d.everybody
                    && d.acts_on("s3:PutObject")
                    && d.covers_below(bucket, prefix)
                    && d.condition.as_ref().is_some_and(|condition| asks(condition, wanted))
            })
        };
        match (denied(&[unconditional]), denied(&[unconditional, creates])) {
            (true, _) => Overwriting::PartsToo,
            (false, true) => Overwriting::Denied,
            (false, false) => Overwriting::Allowed,
        }
    }
}

impl Denial {
    fn of(statement: &Value) -> Self {
        // Without an `Action` or a `Resource` the statement has their negation, which is not judged.
        Self {
            everybody: statement.get("Principal").is_some_and(is_everybody),
            actions: texts(statement.get("Action")),
            resources: texts(statement.get("Resource")),
            condition: statement.get("Condition").filter(|c| !is_empty(c)).cloned(),
        }
    }

    /// Whether it is about this action; IAM compares actions without regard to case.
    fn acts_on(&self, action: &str) -> bool {
        let action = action.to_ascii_lowercase();
        self.actions.iter().any(|pattern| fits(&pattern.to_ascii_lowercase(), &action))
    }

    /// Whether it covers one of these, which are names of the same thing.
    fn covers_one(&self, names: &[String]) -> bool {
        self.resources.iter().any(|pattern| names.iter().any(|name| fits(pattern, name)))
    }

    /// Whether it covers every object.
    fn covers_objects(&self, bucket: &str) -> bool {
        self.covers_below(bucket, "")
    }

    /// Whether it covers every object below a prefix: two that have nothing in common stand for all.
    fn covers_below(&self, bucket: &str, prefix: &str) -> bool {
        let object = |key: &str| -> Vec<String> {
            bucket_names(bucket).into_iter().map(|arn| format!("{arn}/{prefix}{key}")).collect()
        };
        self.resources.iter().any(|pattern| {
            ["\u{1}", "\u{2}/\u{3}.\u{4}"]
                .iter()
                .all(|key| object(key).iter().any(|name| fits(pattern, name)))
        })
    }
}

/// A bucket's ARN in each partition.
pub(super) fn bucket_names(bucket: &str) -> Vec<String> {
    ["aws", "aws-cn", "aws-us-gov"].map(|partition| format!("arn:{partition}:s3:::{bucket}")).into()
}

fn is_empty(condition: &Value) -> bool {
    condition.as_object().is_some_and(serde_json::Map::is_empty)
}

/// `"*"` or `{"AWS": "*"}`.
fn is_everybody(principal: &Value) -> bool {
    match principal {
        Value::Object(kinds) => texts(kinds.get("AWS")).iter().any(|p| p == "*"),
        principal => principal.as_str() == Some("*"),
    }
}

/// A condition that holds for every request without TLS, and needs nothing else to hold.
fn is_plain_http(condition: &Value) -> bool {
    asks(condition, &[(&["Bool", "BoolIfExists"], "aws:SecureTransport", "false")])
}

/// Operators of which one is to be there, its key, and its value.
type Asked<'a> = (&'a [&'a str], &'a str, &'a str);

/// Whether a condition asks for these things and no other.
fn asks(condition: &Value, wanted: &[Asked<'_>]) -> bool {
    let Some(operators) = condition.as_object().filter(|o| o.len() == wanted.len()) else {
        return false;
    };
    wanted.iter().all(|(names, wanted_key, wanted_value)| {
        let keys = names.iter().find_map(|name| operators.get(*name));
        let keys = keys.and_then(Value::as_object).filter(|k| k.len() == 1);
        keys.is_some_and(|keys| {
            keys.iter().all(|(key, value)| {
                let values = texts(Some(value));
                key.eq_ignore_ascii_case(wanted_key)
                    && values.iter().any(|v| v.eq_ignore_ascii_case(wanted_value))
            })
        })
    })
}

/// A text, or a list of them; a truth value counts as its text.
pub(super) fn texts(value: Option<&Value>) -> Vec<String> {
    match value {
        Some(Value::String(text)) => vec![text.clone()],
        Some(Value::Bool(truth)) => vec![truth.to_string()],
        Some(Value::Array(all)) => all.iter().flat_map(|one| texts(Some(one))).collect(),
        _ => Vec::new(),
    }
}

/// Whether a pattern with `*` and `?` covers a text. In time that grows with the product of their lengths at most.
pub(super) fn fits(pattern: &str, text: &str) -> bool {
    let (pattern, text): (Vec<char>, Vec<char>) =
        (pattern.chars().collect(), text.chars().collect());
    let (mut p, mut t) = (0, 0);
    // Where the last `*` was, and how far it has been stretched.
    let mut star: Option<(usize, usize)> = None;
    while t < text.len() {
        match pattern.get(p) {
            Some('*') => {
                star = Some((p, t));
                p += 1;
            }
            Some(c) if *c == '?' || *c == text[t] => (p, t) = (p + 1, t + 1),
            _ => match &mut star {
                Some((at, stretched)) => {
                    *stretched += 1;
                    (p, t) = (*at + 1, *stretched);
                }
                None => return false,
            },
        }
    }
    pattern[p..].iter().all(|c| *c == '*')
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn policy(statements: &Value) -> Policy {
        Policy::parse(&json!({ "Statement": statements }).to_string()).expect("a policy")
    }

    /// A denial of plain HTTP, with some of it replaced.
    fn tls(changes: &Value) -> Value {
        let mut statement = json!({
            "Effect": "Deny",
            "Principal": "*",
            "Action": "s3:*",
            "Resource": ["arn:aws:s3:::b", "arn:aws:s3:::b/*"],
            "Condition": { "Bool": { "aws:SecureTransport": "false" } },
        });
        for (key, value) in changes.as_object().expect("an object") {
            statement[key] = value.clone();
        }
        statement
    }

    #[test]
    fn plain_http_is_denied_only_to_everybody_and_everywhere() {
        for (changes, expected) in [
            (json!({}), true),
            (json!({ "Principal": { "AWS": "*" } }), true),
            (json!({ "Principal": { "AWS": ["*"] } }), true),
            (json!({ "Action": ["S3:*"] }), true),
            (json!({ "Action": "*", "Resource": "*" }), true),
            (json!({ "Resource": "arn:aws:s3:::b*" }), true),
            (json!({ "Resource": ["arn:aws-cn:s3:::b", "arn:aws-cn:s3:::b/*"] }), true),
            (json!({ "Condition": { "Bool": { "AWS:securetransport": [false] } } }), true),
            (json!({ "Effect": "Allow" }), false),
            (json!({ "Principal": { "AWS": "arn:aws:iam::123456789012:root" } }), false),
            (json!({ "Action": "s3:GetObject" }), false),
            (json!({ "Resource": "arn:aws:s3:::b/*" }), false),
            (json!({ "Resource": "arn:aws:s3:::b" }), false),
            (json!({ "Resource": ["arn:aws:s3:::b", "arn:aws:s3:::b/cases/*"] }), false),
            (json!({ "Resource": ["arn:aws:s3:::b", "arn:aws:s3:::b/?"] }), false),
            (json!({ "Resource": ["arn:aws:s3:::bb", "arn:aws:s3:::bb/*"] }), false),
            (json!({ "Condition": { "Bool": { "aws:SecureTransport": "true" } } }), false),
            (
                json!({ "Condition": {
                    "Bool": { "aws:SecureTransport": "false" },
                    "StringEquals": { "aws:PrincipalTag/x": "y" },
                } }),
                false,
            ),
            (json!({ "Condition": {} }), false),
        ] {
            assert_eq!(policy(&tls(&changes)).denies_plain_http("b"), expected, "{changes}");
        }
    }

    #[test]
    fn two_statements_may_cover_bucket_and_objects_between_them() {
        let halves = json!([
            tls(&json!({ "Resource": "arn:aws:s3:::b" })),
            tls(&json!({ "Resource": "arn:aws:s3:::b/*" })),
        ]);
        assert!(policy(&halves).denies_plain_http("b"));
    }

    #[test]
    fn a_denial_counts_whole_only_without_conditions_and_for_everybody() {
        let statement = |changes: Value| {
            let mut statement = json!({
                "Effect": "Deny", "Principal": "*", "Action": "s3:DeleteObject*", "Resource": "arn:aws:s3:::b/*",
            });
            for (key, value) in changes.as_object().expect("an object") {
                statement[key] = value.clone();
            }
            statement
        };
        for (changes, expected) in [
            (json!({}), Denied::Always),
            (json!({ "Condition": {} }), Denied::Always),
            (json!({ "Action": "s3:DeleteObject" }), Denied::No),
            (json!({ "Condition": { "Bool": { "aws:SecureTransport": "false" } } }), Denied::No),
            (json!({ "Resource": "arn:aws:s3:::b" }), Denied::No),
            (json!({ "Resource": "arn:aws:s3:::b/cases/*" }), Denied::No),
            (
                json!({ "Condition": { "ArnNotLike": { "aws:PrincipalArn": "arn:aws:iam::123456789012:role/admin" } } }),
                Denied::UnderConditions,
            ),
            (
                json!({ "Principal": { "AWS": "arn:aws:iam::123456789012:root" } }),
                Denied::UnderConditions,
            ),
        ] {
            let found = policy(&statement(changes.clone())).denies("s3:DeleteObjectVersion", "b");
            assert_eq!(found, expected, "{changes}");
        }
    }

    #[test]
    fn writing_over_is_denied_by_the_condition_that_spares_parts() {
        let statement = |changes: Value| {
            let mut statement = json!({
                "Effect": "Deny", "Principal": "*", "Action": "s3:PutObject",
                "Resource": ["arn:aws:s3:::b/cases/*", "arn:aws:s3:::b/instances/*"],
                "Condition": {
                    "Null": { "s3:if-none-match": "true" },
                    "Bool": { "s3:ObjectCreationOperation": "true" },
                },
            });
            for (key, value) in changes.as_object().expect("an object") {
                statement[key] = value.clone();
            }
            statement
        };
        for (changes, expected) in [
            (json!({}), Overwriting::Denied),
            (json!({ "Action": "s3:Put*", "Resource": "*" }), Overwriting::Denied),
            (
                json!({ "Condition": { "Null": { "S3:If-None-Match": true }, "BoolIfExists": { "s3:objectcreationoperation": true } } }),
                Overwriting::Denied,
            ),
            (
                json!({ "Condition": { "Null": { "s3:if-none-match": "true" } } }),
                Overwriting::PartsToo,
            ),
            (json!({ "Resource": "arn:aws:s3:::b/instances/*" }), Overwriting::Allowed),
            (json!({ "Resource": "arn:aws:s3:::b/cases/?" }), Overwriting::Allowed),
            (json!({ "Principal": { "AWS": "x" } }), Overwriting::Allowed),
            (json!({ "Effect": "Allow" }), Overwriting::Allowed),
            (json!({ "Action": "s3:GetObject" }), Overwriting::Allowed),
            (
                json!({ "Condition": { "Null": { "s3:if-none-match": "false" } } }),
                Overwriting::Allowed,
            ),
            (
                json!({ "Condition": {
                    "Null": { "s3:if-none-match": "true" },
                    "Bool": { "s3:ObjectCreationOperation": "true" },
                    "StringEquals": { "aws:PrincipalTag/x": "y" },
                } }),
                Overwriting::Allowed,
            ),
            (json!({ "Condition": {} }), Overwriting::Allowed),
        ] {
            let found = policy(&statement(changes.clone())).overwriting("b", "cases/");
            assert_eq!(found, expected, "{changes}");
        }
    }

    #[test]
    fn what_is_no_policy_is_an_error() {
        for text in ["", "[]", "{}", r#"{"Statement": "Deny"}"#] {
            assert!(Policy::parse(text).is_err(), "{text:?}");
        }
    }

    #[test]
    fn patterns_cover_what_iam_says() {
        for (pattern, text, expected) in [
            ("*", "", true),
            ("", "", true),
            ("", "a", false),
            ("a*b*c", "axxbyyc", true),
            ("a*b*c", "axxbyy", false),
            ("a?c", "abc", true),
            ("a?c", "ac", false),
            ("**a", "bca", true),
            ("a*", "ba", false),
        ] {
            assert_eq!(fits(pattern, text), expected, "{pattern:?} {text:?}");
        }
        // Takes no longer than the product of the lengths.
        assert!(!fits(&"*a".repeat(200), &"a".repeat(199)));
    }
}
