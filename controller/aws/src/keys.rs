//! Keys over KMS.
//!
//! Purpose: what a key is, who may use it by a grant, and letting a role of another account read with it. Touches KMS.
//! Never uses a key, and never takes a grant back.

use aws_sdk_kms::types::{GrantOperation, KeyManagerType, KeyState};
use cleanroom_cloud::{AccountId, Change, EncryptionKey, Grant, Made, Result};

use crate::{
    clients::Clients,
    error::{bad_answer, fail, missing},
    iam, pages,
};

/// What copying a snapshot out of an account takes of the key that it is under (EBS user guide, "Share the KMS key used to
/// encrypt a shared Amazon EBS snapshot"). `CreateGrant` lets EBS go on when the call has returned, with no more than this.
pub(crate) const READ: [GrantOperation; 4] = [
    GrantOperation::CreateGrant,
    GrantOperation::Decrypt,
    GrantOperation::DescribeKey,
    GrantOperation::ReEncryptFrom,
];

/// A key, by id, alias or ARN.
pub(crate) async fn describe(clients: &Clients, key: &str) -> Result<EncryptionKey> {
    const OPERATION: &str = "kms:DescribeKey";
    let answer = clients.kms.describe_key().key_id(key).send().await;
    let answer = answer.map_err(|error| fail(OPERATION, key, error))?;
    let found = answer.key_metadata.ok_or_else(|| missing(OPERATION, key))?;
    let usable = found.enabled && found.key_state().is_none_or(|s| *s == KeyState::Enabled);
    Ok(EncryptionKey {
        arn: found.arn().ok_or_else(|| bad_answer(OPERATION, key, "Arn"))?.to_owned(),
        account: AccountId::from(found.aws_account_id().unwrap_or_default()),
        aws_managed: found.key_manager() == Some(&KeyManagerType::Aws),
        enabled: usable,
    })
}

/// The grants on a key to a principal.
pub(crate) async fn grants(clients: &Clients, key: &str, grantee: &str) -> Result<Vec<Grant>> {
    let stream =
        clients.kms.list_grants().key_id(key).grantee_principal(grantee).into_paginator().send();
    let pages = pages::all("kms:ListGrants", key, stream).await?;
    let grants = pages.into_iter().flat_map(|page| page.grants.unwrap_or_default());
    let to = grants.filter(|grant| grant.grantee_principal.as_deref() == Some(grantee));
    let named = to.filter_map(|grant| {
        Some(Grant { id: grant.grant_id?, name: grant.name.unwrap_or_default() })
    });
    Ok(named.collect())
}

/// Makes a grant. KMS takes a second one of the same name and content for the first.
pub(crate) async fn apply(clients: &Clients, change: &Change) -> Result<Made> {
    const OPERATION: &str = "kms:CreateGrant";
    let Change::GrantKey { key, grantee, name } = change else {
        return Err(iam::foreign(change));
    };
    let call = clients.kms.create_grant().key_id(key).grantee_principal(grantee).name(name);
    let answer = call.set_operations(Some(READ.to_vec())).send().await;
    let answer = answer.map_err(|error| fail(OPERATION, key, error))?;
    Ok(Made::Grant(answer.grant_id.ok_or_else(|| bad_answer(OPERATION, key, "GrantId"))?))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::canned::canned;

    const KEY: &str = "arn:aws:kms:eu-west-1:123456789012:key/1234abcd";
    const ROLE: &str = "arn:aws:iam::111122223333:role/forensic";

    #[tokio::test]
    async fn a_grant_lets_a_role_read_and_no_more() {
        let canned = canned(None, |_, _| (200, r#"{"GrantId":"g-1","GrantToken":"t"}"#.to_owned()));
        let change = Change::GrantKey {
            key: KEY.to_owned(),
            grantee: ROLE.to_owned(),
            name: "cleanroom-c-1".to_owned(),
        };
        let made = apply(&canned.clients, &change).await;
        assert_eq!(made, Ok(Made::Grant("g-1".to_owned())));
        let sent = canned.sent();
        assert_eq!(sent.len(), 1, "{sent:?}");
        let (head, body) = sent[0].split_once('{').expect("a body");
        assert!(head.contains("TrentService.CreateGrant"), "{head}");
        let body: serde_json::Value =
            serde_json::from_str(&format!("{{{body}")).expect("a body of JSON");
        assert_eq!(body["GranteePrincipal"], ROLE);
        assert_eq!(body["Name"], "cleanroom-c-1");
        let operations =
            serde_json::json!(["CreateGrant", "Decrypt", "DescribeKey", "ReEncryptFrom"]);
        assert_eq!(body["Operations"], operations, "nothing that encrypts or retires");
    }

    #[tokio::test]
    async fn only_grants_to_who_was_asked_for_are_listed_from_all_pages() {
        let canned = canned(None, |_, before| {
            let grant = |id: &str, to: &str| {
                format!(r#"{{"GrantId":"{id}","GranteePrincipal":"{to}","Name":"n-{id}"}}"#)
            };
            let page = match before {
                0 => format!(
                    r#"{{"Grants":[{},{}],"Truncated":true,"NextMarker":"m"}}"#,
                    grant("1", ROLE),
                    grant("2", "arn:aws:iam::111122223333:role/other")
                ),
                _ => format!(r#"{{"Grants":[{}],"Truncated":false}}"#, grant("3", ROLE)),
            };
            (200, page)
        });
        let grants = grants(&canned.clients, KEY, ROLE).await.expect("grants");
        let ids: Vec<_> = grants.iter().map(|g| (g.id.as_str(), g.name.as_str())).collect();
        assert_eq!(ids, [("1", "n-1"), ("3", "n-3")]);
    }
}
