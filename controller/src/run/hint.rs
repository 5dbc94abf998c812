//! What a person can do about an error: pure.

use cleanroom_cloud::{CloudError, ErrorKind};
use cleanroom_cloud_aws::{ConnectError, permissions};

/// What a person can do about an error, attached to it as context where only the command knows.
#[derive(Debug, thiserror::Error)]
#[error("{0}")]
pub(super) struct Hint(pub String);

/// A hint, where we know one.
pub(super) fn of(error: &anyhow::Error) -> Option<String> {
    if let Some(Hint(hint)) = error.downcast_ref::<Hint>() {
        return Some(hint.clone());
    }
    if let Some(ConnectError::NoRegion) = error.downcast_ref::<ConnectError>() {
        return Some("for example --region eu-west-1".to_owned());
    }
    of_error(error.as_ref())
}

/// The same of an error that has not become one of ours.
pub(super) fn of_error(error: &(dyn std::error::Error + 'static)) -> Option<String> {
    let mut chain = std::iter::successors(Some(error), |error| error.source());
    chain.find_map(|cause| cause.downcast_ref::<CloudError>()).and_then(of_cloud)
}

fn of_cloud(error: &CloudError) -> Option<String> {
    match error.kind {
        ErrorKind::Credentials if error.code == "NoCredentials" => Some(
            "no credentials were found: sign in (`aws sso login`), name a profile with --profile, or export AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY"
                .to_owned(),
        ),
        ErrorKind::Credentials if error.code.contains("Skewed") => {
            Some("this machine's clock is wrong: set it".to_owned())
        }
        ErrorKind::Credentials => Some(
            "the credentials are expired or not valid: sign in again (`aws sso login`), or export fresh ones"
                .to_owned(),
        ),
        ErrorKind::Denied => {
            let operation = permissions::operation(&error.operation);
            let actions = operation.map_or(vec![error.operation.as_str()], |o| o.actions.to_vec());
            Some(format!(
                "the caller lacks {}; `cleanroom preflight` shows all that it needs",
                actions.join(", ")
            ))
        }
        ErrorKind::Unreachable => {
            Some("the service can not be reached: look at the network, proxies and --region".to_owned())
        }
        ErrorKind::Throttled => Some("AWS throttles this account: try again in a minute".to_owned()),
        _ if error.code == "NoSuchBucket" || error.code == "NoBucket" => {
            Some("name the evidence bucket with --bucket, CLEANROOM_BUCKET or in cleanroom.toml".to_owned())
        }
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use anyhow::Context as _;

    use super::*;

    fn hint(kind: ErrorKind, code: &str) -> Option<String> {
        let error = CloudError {
            operation: "s3:ListObjectsV2".to_owned(),
            resource: String::new(),
            kind,
            code: code.to_owned(),
            message: String::new(),
            request: None,
        };
        let error: anyhow::Result<()> = Err(error).context("more");
        of(&error.expect_err("it is one"))
    }

    #[test]
    fn a_denial_names_the_action_and_not_the_operation() {
        let hint = hint(ErrorKind::Denied, "AccessDenied").expect("there is one");
        assert!(hint.starts_with("the caller lacks s3:ListBucket;"), "{hint}");
    }

    #[test]
    fn credentials_that_are_missing_wrong_or_early_differ() {
        let all = ["NoCredentials", "ExpiredToken", "RequestTimeTooSkewed"]
            .map(|code| hint(ErrorKind::Credentials, code).expect("there is one"));
        assert!(all[0].starts_with("no credentials"), "{}", all[0]);
        assert!(all[1].starts_with("the credentials are expired"), "{}", all[1]);
        assert!(all[2].starts_with("this machine's clock"), "{}", all[2]);
        assert_eq!(hint(ErrorKind::Refused, "IncorrectState"), None);
    }
}
