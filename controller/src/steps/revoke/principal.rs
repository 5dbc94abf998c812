//! Cuts a principal that a person names: a role's sessions that were begun before now, or a user's keys.

use cleanroom_cloud::{Change, Inventory, Result, RoleName};
use cleanroom_contract::Timestamp;
use serde_json::json;

/// A principal that can be cut.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Principal {
    /// A role, by name.
    Role(RoleName),
    /// A user, by name.
    User(String),
}

/// Why an ARN names no principal that can be cut.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error(
    "{0:?} names neither a role nor a user: arn:aws:iam::123456789012:role/NAME, …:user/NAME, or an assumed role's ARN"
)]
pub struct NoPrincipal(String);

impl std::str::FromStr for Principal {
    type Err = NoPrincipal;

    /// Of an IAM ARN, whose last part is the name whatever the path, or the ARN of an assumed role.
    fn from_str(text: &str) -> std::result::Result<Self, NoPrincipal> {
        let refused = || NoPrincipal(text.chars().take(200).collect());
        let mut parts = text.splitn(6, ':');
        let (Some("arn"), Some(_), Some(service)) = (parts.next(), parts.next(), parts.next())
        else {
            return Err(refused());
        };
        let resource = parts.nth(2).ok_or_else(refused)?;
        let (kind, rest) = resource.split_once('/').ok_or_else(refused)?;
        let name = match (service, kind) {
            ("iam", "role" | "user") => rest.rsplit('/').next(),
            ("sts", "assumed-role") => rest.split('/').next(),
            _ => None,
        };
        let valid = |c: char| c.is_ascii_alphanumeric() || "+=,.@_-".contains(c);
        let name = name.filter(|n| !n.is_empty() && n.chars().all(valid)).ok_or_else(refused)?;
        Ok(if kind == "user" { Self::User(name.to_owned()) } else { Self::Role(name.into()) })
    }
}

/// What cuts it: for a role, a denial of every session that was begun before `now`; for a user, the same and its active
/// keys off. Nothing is deleted.
///
/// # Errors
/// What the cloud said.
pub async fn plan(
    inventory: &dyn Inventory,
    principal: &Principal,
    now: Timestamp,
) -> Result<Vec<Change>> {
    let name = "cleanroom-revoked".to_owned();
    // IAM takes whole seconds; the next second, so that a session of this one is in.
    let cutoff = Timestamp { seconds: now.seconds.saturating_add(1), nanos: 0 };
    let cutoff = cutoff.to_string().replace(".000000000", "");
    match principal {
        Principal::Role(role) => {
            let document = json!({
                "Version": "2012-10-17",
                "Statement": {
                    "Effect": "Deny",
                    "Action": "*",
                    "Resource": "*",
                    "Condition": { "DateLessThan": { "aws:TokenIssueTime": cutoff } },
                },
            });
            // The role must exist: a clear error now rather than a refused write.
            inventory.role_policies(role).await?;
            Ok(vec![Change::PutRolePolicy {
                role: role.clone(),
                name,
                document: document.to_string(),
            }])
        }
        Principal::User(user) => {
            let access = inventory.user_access(user).await?;
            let active = access.keys.into_iter().filter(|(_, active)| *active);
            let mut changes: Vec<_> = active
                .map(|(key, _)| Change::SetAccessKey { user: user.clone(), key, active: false })
                .collect();
            let document = json!({
                "Version": "2012-10-17",
                "Statement": { "Effect": "Deny", "Action": "*", "Resource": "*" },
            });
            changes.push(Change::PutUserPolicy {
                user: user.clone(),
                name,
                document: document.to_string(),
            });
            Ok(changes)
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_taken_from_every_form_of_arn() {
        let role = |name: &str| Some(Principal::Role(name.into()));
        for (arn, expected) in [
            ("arn:aws:iam::123456789012:role/web", role("web")),
            ("arn:aws:iam::123456789012:role/path/to/web", role("web")),
            ("arn:aws-us-gov:sts::123456789012:assumed-role/web/i-0123456789abcdef0", role("web")),
            ("arn:aws:iam::123456789012:user/team/eve", Some(Principal::User("eve".to_owned()))),
            ("arn:aws:iam::123456789012:instance-profile/web", None),
            ("arn:aws:iam::123456789012:role/", None),
            ("web", None),
            ("arn:aws:iam::123456789012:role/a b", None),
        ] {
            assert_eq!(arn.parse::<Principal>().ok(), expected, "{arn}");
        }
    }
}
