//! What a role's session made for itself, which outlives the denial of the session: from CloudTrail, pure.

use cleanroom_cloud::Event;
use serde::{Deserialize, Serialize};

/// Something that lives on.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct Survivor {
    /// What was called, `AssumeRole`.
    pub call: String,
    /// What it made: a role session, a user, a key.
    pub what: String,
    /// The ARN that `cleanroom revoke --principal` takes, where the event tells one.
    pub principal: Option<String>,
    /// The CloudTrail event.
    pub event: String,
}

/// The calls by which a session gets or makes credentials that are not its own.
const MAKING: [&str; 8] = [
    "AssumeRole",
    "GetFederationToken",
    "GetSessionToken",
    "CreateAccessKey",
    "CreateUser",
    "CreateLoginProfile",
    "CreateRole",
    "UpdateAssumeRolePolicy",
];

/// The survivors among a session's events. An event that can not be read as JSON is listed too, by its name.
#[must_use]
pub fn survivors(events: &[Event]) -> Vec<Survivor> {
    let mut found: Vec<_> = events
        .iter()
        .filter(|event| MAKING.contains(&event.name.as_str()))
        .filter_map(|event| {
            let raw: serde_json::Value = serde_json::from_str(&event.raw).unwrap_or_default();
            // A refused call made nothing.
            if raw.get("errorCode").is_some() {
                return None;
            }
            let text = |pointer: &str| raw.pointer(pointer)?.as_str().map(str::to_owned);
            let principal = text("/requestParameters/roleArn")
                .or_else(|| text("/responseElements/user/arn"))
                .or_else(|| text("/responseElements/role/arn"));
            let what = text("/responseElements/assumedRoleUser/arn")
                .or_else(|| text("/responseElements/accessKey/accessKeyId"))
                .or_else(|| text("/responseElements/user/arn"))
                .or_else(|| text("/requestParameters/userName"))
                .or_else(|| text("/requestParameters/roleName"))
                .or_else(|| principal.clone())
                .unwrap_or_else(|| "not told by the event".to_owned());
            Some(Survivor { call: event.name.clone(), what, principal, event: event.id.clone() })
        })
        .collect();
    found.sort();
    found.dedup();
    found
}

#[cfg(test)]
mod tests {
    use super::*;

    fn event(name: &str, raw: &str) -> Event {
        Event {
            id: format!("event-{name}"),
            name: name.to_owned(),
            source: "sts.amazonaws.com".to_owned(),
            time: cleanroom_contract::Timestamp::default(),
            username: None,
            raw: raw.to_owned(),
        }
    }

    #[test]
    fn chained_sessions_and_new_keys_are_listed_and_reads_and_refusals_are_not() {
        let events = [
            event(
                "AssumeRole",
                r#"{"requestParameters":{"roleArn":"arn:aws:iam::111122223333:role/deploy"},"responseElements":{"assumedRoleUser":{"arn":"arn:aws:sts::111122223333:assumed-role/deploy/x"}}}"#,
            ),
            event("CreateAccessKey", r#"{"errorCode":"AccessDenied"}"#),
            event("DescribeInstances", "{}"),
            event("CreateUser", "not json"),
        ];
        let found = survivors(&events);
        assert_eq!(found.len(), 2, "{found:?}");
        assert_eq!(found[0].principal.as_deref(), Some("arn:aws:iam::111122223333:role/deploy"));
        assert_eq!(found[0].what, "arn:aws:sts::111122223333:assumed-role/deploy/x");
        assert_eq!(found[1].what, "not told by the event");
    }
}
