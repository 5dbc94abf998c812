//! Judges a request by a policy, as IAM does: an explicit denial, else a permission, else no.
//!
//! Knows what this project's policies say, and panics on all else: an operator that it passed over would make a proof of
//! nothing.

use std::collections::BTreeMap;

use serde_json::Value;

/// What a policy says of a request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Verdict {
    Allowed,
    Denied,
    /// No statement speaks of it: denied as well.
    Silent,
}

/// A request, with the condition keys that AWS would know of it.
#[derive(Clone, Debug, Default)]
pub(crate) struct Request {
    pub(crate) action: String,
    pub(crate) resource: String,
    pub(crate) keys: BTreeMap<String, String>,
}

impl Request {
    pub(crate) fn new(action: &str, resource: impl Into<String>) -> Self {
        Self { action: action.into(), resource: resource.into(), keys: BTreeMap::new() }
    }

    pub(crate) fn with(mut self, key: &str, value: impl Into<String>) -> Self {
        self.keys.insert(key.to_owned(), value.into());
        self
    }
}

pub(crate) fn judge(policy: &Value, request: &Request) -> Verdict {
    let mut verdict = Verdict::Silent;
    for statement in policy["Statement"].as_array().expect("statements") {
        if !applies(statement, request) {
            continue;
        }
        match statement["Effect"].as_str() {
            Some("Deny") => return Verdict::Denied,
            Some("Allow") => verdict = Verdict::Allowed,
            other => panic!("effect {other:?}"),
        }
    }
    verdict
}

fn applies(statement: &Value, request: &Request) -> bool {
    for name in statement.as_object().expect("a statement").keys() {
        let known =
            ["Sid", "Effect", "Principal", "Action", "Resource", "NotResource", "Condition"];
        assert!(known.contains(&name.as_str()), "{name} is not understood");
    }
    if !statement.get("Principal").is_none_or(|named| is_named(named, request)) {
        return false;
    }
    // Actions are compared without regard to case, resources with.
    let action = list(&statement["Action"]);
    let action = action.iter().any(|one| fits(&one.to_lowercase(), &request.action.to_lowercase()));
    let among = |patterns: &Value| {
        let with_values = |pattern: &String| filled(pattern, request);
        list(patterns).iter().filter_map(with_values).any(|one| fits(&one, &request.resource))
    };
    let resource = match (statement.get("Resource"), statement.get("NotResource")) {
        (Some(patterns), None) => among(patterns),
        (None, Some(patterns)) => !among(patterns),
        _ => panic!("{statement} names no resource"),
    };
    action && resource && conditions_hold(statement, request)
}

/// Whether a resource's policy speaks of who asks: the request's key `principal`, an ARN or a service. An account stands for
/// all of its principals.
fn is_named(named: &Value, request: &Request) -> bool {
    let Value::Object(kinds) = named else {
        assert_eq!(named, "*", "a principal that is not understood");
        return true;
    };
    let Some(who) = request.keys.get("principal") else { return false };
    kinds.iter().any(|(kind, names)| {
        assert!(["AWS", "Service"].contains(&kind.as_str()), "{kind} is not understood");
        list(names).iter().any(|name| match name.strip_suffix("root") {
            Some(account) => who.starts_with(account),
            None => name == who,
        })
    })
}

fn conditions_hold(statement: &Value, request: &Request) -> bool {
    let conditions = statement["Condition"].as_object().into_iter().flatten();
    for (operator, keys) in conditions {
        for (key, values) in keys.as_object().expect("condition keys") {
            let actual = request.keys.get(key);
            let wanted: Vec<_> =
                list(values).iter().filter_map(|value| filled(value, request)).collect();
            let equal = actual.is_some_and(|actual| wanted.contains(actual));
            let like =
                actual.is_some_and(|actual| wanted.iter().any(|pattern| fits(pattern, actual)));
            let holds = match operator.as_str() {
                "StringEquals" | "Bool" => equal,
                // A key that is not there differs from every value.
                "StringNotEquals" => !equal,
                "StringLike" | "ArnEquals" | "ArnLike" => like,
                "BoolIfExists" => {
                    let truth = |text: &String| text.parse::<bool>().expect("a truth value");
                    actual.is_none_or(|actual| wanted.iter().any(|w| truth(w) == truth(actual)))
                }
                "Null" => wanted == [actual.is_none().to_string()],
                other => panic!("the operator {other} is not understood"),
            };
            if !holds {
                return false;
            }
        }
    }
    true
}

/// A pattern with the request's keys in place of its variables; nothing where one has no value.
fn filled(pattern: &str, request: &Request) -> Option<String> {
    let mut pattern = pattern.to_owned();
    while let Some(start) = pattern.find("${") {
        let end = start + pattern.get(start..)?.find('}')?;
        let value = request.keys.get(pattern.get(start + 2..end)?)?;
        pattern.replace_range(start..=end, value);
    }
    Some(pattern)
}

fn list(value: &Value) -> Vec<String> {
    let text = |value: &Value| value.as_str().expect("a text").to_owned();
    value.as_array().map_or_else(|| vec![text(value)], |values| values.iter().map(text).collect())
}

/// Whether a pattern fits: `*` stands for any run of characters, `?` for one.
fn fits(pattern: &str, text: &str) -> bool {
    let (pattern, text) = (pattern.as_bytes(), text.as_bytes());
    // Where the last asterisk was, and how much it has swallowed.
    let (mut at, mut seen, mut retry) = (0, 0, None);
    while seen < text.len() {
        match pattern.get(at) {
            Some(b'*') => {
                retry = Some((at, seen));
                at += 1;
            }
            Some(one) if *one == b'?' || *one == text[seen] => {
                at += 1;
                seen += 1;
            }
            _ => {
                let Some((asterisk, swallowed)) = retry else { return false };
                retry = Some((asterisk, swallowed + 1));
                at = asterisk + 1;
                seen = swallowed + 1;
            }
        }
    }
    pattern[at..].iter().all(|byte| *byte == b'*')
}

#[test]
fn the_judge_knows_who_asks() {
    let policy = serde_json::json!({"Statement": [
        {"Effect": "Allow", "Action": "sns:Publish", "Resource": "*",
         "Principal": {"AWS": ["arn:aws:iam::1:root", "arn:aws:iam::2:role/x"], "Service": "events.amazonaws.com"}},
        {"Effect": "Deny", "Action": "sns:*", "Resource": "*", "Principal": "*",
         "Condition": {"Bool": {"aws:SecureTransport": "false"}}},
    ]});
    let by = |who: &str| Request::new("sns:Publish", "t").with("principal", who);
    for who in ["arn:aws:iam::1:role/y", "arn:aws:iam::2:role/x", "events.amazonaws.com"] {
        assert_eq!(judge(&policy, &by(who)), Verdict::Allowed, "{who}");
        let plain = by(who).with("aws:SecureTransport", "false");
        assert_eq!(judge(&policy, &plain), Verdict::Denied, "{who}");
    }
    assert_eq!(judge(&policy, &by("arn:aws:iam::2:role/y")), Verdict::Silent);
    assert_eq!(judge(&policy, &Request::new("sns:Publish", "t")), Verdict::Silent);
}

#[test]
fn the_judge_judges() {
    let policy = serde_json::json!({"Statement": [
        {"Effect": "Allow", "Action": ["s3:Get*"], "Resource": "arn:b/${aws:PrincipalTag/case}/*"},
        {"Effect": "Deny", "Action": "*", "NotResource": "arn:b/*"},
        {"Effect": "Deny", "Action": "s3:*", "Resource": "*",
         "Condition": {"StringNotEquals": {"aws:SourceVpc": "vpc-1"}}},
        {"Effect": "Deny", "Action": "s3:PutObject", "Resource": "*",
         "Condition": {"Null": {"s3:if-none-match": "true"}, "BoolIfExists": {"x": "true"}}},
        {"Effect": "Allow", "Action": "s3:PutObject", "Resource": "arn:b/*"},
    ]});
    let inside = Request::new("s3:getobject", "arn:b/one/x").with("aws:SourceVpc", "vpc-1");
    let tagged = inside.clone().with("aws:PrincipalTag/case", "one");
    assert_eq!(judge(&policy, &tagged), Verdict::Allowed);
    assert_eq!(judge(&policy, &inside), Verdict::Silent);
    assert_eq!(judge(&policy, &tagged.clone().with("aws:SourceVpc", "vpc-2")), Verdict::Denied);
    assert_eq!(judge(&policy, &Request::new("s3:GetObject", "arn:b/one/x")), Verdict::Denied);
    let put = Request { action: "s3:PutObject".into(), ..inside };
    for (request, expected) in [
        (put.clone(), Verdict::Denied),
        (put.clone().with("x", "true"), Verdict::Denied),
        (put.clone().with("x", "false"), Verdict::Allowed),
        (put.with("x", "true").with("s3:if-none-match", "*"), Verdict::Allowed),
    ] {
        assert_eq!(judge(&policy, &request), expected, "{request:?}");
    }
    let elsewhere = Request { resource: "arn:c/one/x".into(), ..tagged };
    assert_eq!(judge(&policy, &elsewhere), Verdict::Denied);
    for (pattern, text, expected) in [
        ("a*c", "abbc", true),
        ("a*c", "abcb", false),
        ("a?c", "abc", true),
        ("*b*d*", "abcde", true),
        ("ab", "abc", false),
        ("", "", true),
    ] {
        assert_eq!(fits(pattern, text), expected, "{pattern} {text}");
    }
}
