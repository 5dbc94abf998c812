//! Instance profiles, roles, users and their policies, over IAM.
//!
//! Purpose: whose credentials an instance carries, what they may do, and the inline policies that deny them. Touches IAM
//! only. Never creates a role, a user or a key, and never lists an account's principals.

use aws_sdk_iam::types::StatusType;
use cleanroom_cloud::{Change, ErrorKind, Made, Profile, Result, RoleName, RolePolicy, UserAccess};
use percent_encoding::percent_decode_str;

use crate::{
    clients::Clients,
    error::{bad_answer, fail, own},
    pages,
};

/// A profile by its ARN, `arn:aws:iam::123456789012:instance-profile/path/name`.
pub(crate) async fn profile(clients: &Clients, arn: &str) -> Result<Profile> {
    const OPERATION: &str = "iam:GetInstanceProfile";
    let name = profile_name(arn).ok_or_else(|| {
        own(OPERATION, arn, ErrorKind::Refused, "NotAnArn", "it is not an instance profile's ARN")
    })?;
    let answer = clients
        .iam
        .get_instance_profile()
        .instance_profile_name(name)
        .send()
        .await
        .map_err(|e| fail(OPERATION, arn, e))?;
    let profile =
        answer.instance_profile.ok_or_else(|| bad_answer(OPERATION, arn, "the profile"))?;
    Ok(Profile {
        arn: profile.arn,
        name: profile.instance_profile_name,
        // A profile holds one role at most.
        role: profile.roles.into_iter().next().map(|r| (RoleName::from(r.role_name), r.arn)),
    })
}

/// The name in an instance profile's ARN: what follows the last part of its path.
fn profile_name(arn: &str) -> Option<&str> {
    let (prefix, resource) = arn.split_once(":instance-profile/")?;
    let name = resource.rsplit('/').next()?;
    (prefix.starts_with("arn:") && !name.is_empty()).then_some(name)
}

/// A role's inline policies.
pub(crate) async fn role_policies(clients: &Clients, role: &RoleName) -> Result<Vec<RolePolicy>> {
    const LIST: &str = "iam:ListRolePolicies";
    const GET: &str = "iam:GetRolePolicy";
    let stream = clients.iam.list_role_policies().role_name(role.as_str()).into_paginator().send();
    let mut policies = Vec::new();
    for name in pages::all(LIST, role, stream).await?.into_iter().flat_map(|p| p.policy_names) {
        let subject = format!("{role} {name}");
        let answer = clients
            .iam
            .get_role_policy()
            .role_name(role.as_str())
            .policy_name(&name)
            .send()
            .await
            .map_err(|e| fail(GET, &subject, e));
        match answer {
            Ok(answer) => policies.push(RolePolicy {
                document: decode(&answer.policy_document)
                    .ok_or_else(|| bad_answer(GET, &subject, "a document in UTF-8"))?,
                name,
            }),
            // Deleted between the two calls.
            Err(error) if error.kind == ErrorKind::NotFound => {}
            Err(error) => return Err(error),
        }
    }
    Ok(policies)
}

/// A user's access keys and inline policies.
pub(crate) async fn user_access(clients: &Clients, user: &str) -> Result<UserAccess> {
    const KEYS: &str = "iam:ListAccessKeys";
    let stream = clients.iam.list_access_keys().user_name(user).into_paginator().send();
    let (keys, policies) =
        tokio::try_join!(pages::all(KEYS, user, stream), user_policies(clients, user))?;
    let keys = keys.into_iter().flat_map(|page| page.access_key_metadata);
    Ok(UserAccess {
        keys: keys
            .filter_map(|key| Some((key.access_key_id?, key.status == Some(StatusType::Active))))
            .collect(),
        policies,
    })
}

/// A user's inline policies.
async fn user_policies(clients: &Clients, user: &str) -> Result<Vec<RolePolicy>> {
    const LIST: &str = "iam:ListUserPolicies";
    const GET: &str = "iam:GetUserPolicy";
    let stream = clients.iam.list_user_policies().user_name(user).into_paginator().send();
    let mut policies = Vec::new();
    for name in pages::all(LIST, user, stream).await?.into_iter().flat_map(|p| p.policy_names) {
        let subject = format!("{user} {name}");
        let answer = clients
            .iam
            .get_user_policy()
            .user_name(user)
            .policy_name(&name)
            .send()
            .await
            .map_err(|e| fail(GET, &subject, e));
        match answer {
            Ok(answer) => policies.push(RolePolicy {
                document: decode(&answer.policy_document)
                    .ok_or_else(|| bad_answer(GET, &subject, "a document in UTF-8"))?,
                name,
            }),
            Err(error) if error.kind == ErrorKind::NotFound => {}
            Err(error) => return Err(error),
        }
    }
    Ok(policies)
}

/// A policy's JSON: IAM gives documents percent-encoded (RFC 3986). None where the result is not UTF-8.
fn decode(document: &str) -> Option<String> {
    // A document that opens with a brace has not been encoded, and a `%` in it stands for itself.
    if document.trim_start().starts_with('{') {
        return Some(document.to_owned());
    }
    Some(percent_decode_str(document).decode_utf8().ok()?.into_owned())
}

/// Carries out a change of a role's or a user's access.
pub(crate) async fn apply(clients: &Clients, change: &Change) -> Result<Made> {
    let operation = change.operation();
    let iam = &clients.iam;
    match change {
        Change::PutRolePolicy { role, name, document } => {
            iam.put_role_policy()
                .role_name(role.as_str())
                .policy_name(name)
                .policy_document(document)
                .send()
                .await
                .map_err(|e| fail(operation, role, e))?;
        }
        Change::DeleteRolePolicy { role, name } => {
            let answer =
                iam.delete_role_policy().role_name(role.as_str()).policy_name(name).send().await;
            match answer.map_err(|e| fail(operation, role, e)) {
                Err(error) if error.kind != ErrorKind::NotFound => return Err(error),
                _ => {}
            }
        }
        Change::SetAccessKey { user, key, active } => {
            let status = if *active { StatusType::Active } else { StatusType::Inactive };
            iam.update_access_key()
                .user_name(user)
                .access_key_id(key)
                .status(status)
                .send()
                .await
                .map_err(|e| fail(operation, format!("{user} {key}"), e))?;
        }
        Change::PutUserPolicy { user, name, document } => {
            iam.put_user_policy()
                .user_name(user)
                .policy_name(name)
                .policy_document(document)
                .send()
                .await
                .map_err(|e| fail(operation, user, e))?;
        }
        other => return Err(foreign(other)),
    }
    Ok(Made::Nothing)
}

/// The error of a change that was handed to the wrong adapter: a defect of this crate.
pub(crate) fn foreign(change: &Change) -> cleanroom_cloud::CloudError {
    let message = "this change belongs to another adapter";
    own(change.operation(), change.resource(), ErrorKind::Unsupported, "Misdirected", message)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_name_of_a_profile_follows_its_path() {
        for (arn, name) in [
            ("arn:aws:iam::123456789012:instance-profile/web", Some("web")),
            ("arn:aws:iam::123456789012:instance-profile/app/eu/web", Some("web")),
            ("arn:aws-us-gov:iam::123456789012:instance-profile/app/web", Some("web")),
            ("arn:aws:iam::123456789012:role/web", None),
            ("arn:aws:iam::123456789012:instance-profile/", None),
            ("arn:aws:iam::123456789012:instance-profile/app/", None),
            ("web", None),
            ("", None),
        ] {
            assert_eq!(profile_name(arn), name, "{arn}");
        }
    }

    #[test]
    fn documents_are_decoded_once() {
        for (given, expected) in [
            ("%7B%22Version%22%3A%222012-10-17%22%7D", r#"{"Version":"2012-10-17"}"#),
            ("%7B%22Sid%22%3A%22caf%C3%A9%20100%2525%22%7D", r#"{"Sid":"café 100%25"}"#),
            ("%7B%22Sid%22%3A%22a+b%22%7D", r#"{"Sid":"a+b"}"#),
            (" {\"Resource\":\"a%20b\"}", " {\"Resource\":\"a%20b\"}"),
        ] {
            assert_eq!(decode(given).as_deref(), Some(expected), "{given}");
        }
        assert_eq!(decode("%7B%FF%7D"), None);
    }
}
