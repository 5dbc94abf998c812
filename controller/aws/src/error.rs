//! From what the SDK says went wrong to what a step may decide by.
//!
//! Purpose: the one place that knows services' error codes. Everything above sees a [`CloudError`]: operation, resource,
//! kind, code, the service's sentence, request id. Touches nothing.
//!
//! The distinction that matters most is between *nothing was done* and *it may have been done*: only a connection
//! that never came to be, or a request that was never signed, is the first. With retries on, the kind is that of the
//! last attempt.

use std::{error::Error, fmt::Display};

use aws_credential_types::provider::error::CredentialsError;
use aws_smithy_runtime_api::client::{orchestrator::HttpResponse, result::SdkError};
use aws_smithy_types::error::metadata::ProvideErrorMetadata;
use aws_types::request_id::RequestId;
use cleanroom_cloud::{CloudError, ErrorKind};

use crate::calls::Undeclared;

/// Enough of a sentence for a person; a service's message may quote a whole policy.
const MESSAGE_CHARS: usize = 1000;

/// A failed call in our own words.
pub(crate) fn fail<E>(
    operation: &'static str,
    resource: impl Display,
    error: SdkError<E, HttpResponse>,
) -> CloudError
where
    E: ProvideErrorMetadata + Error + 'static,
{
    let request = error
        .request_id()
        .or_else(|| error.meta().request_id())
        .or_else(|| error.meta().extra("request_id"))
        .map(str::to_owned);
    let (kind, code, message) = match &error {
        SdkError::ServiceError(service) => {
            let status = service.raw().status().as_u16();
            let code = error.code().unwrap_or_default();
            let shown = if code.is_empty() { format!("Http{status}") } else { code.to_owned() };
            let message = error.message().unwrap_or("the answer says nothing more").to_owned();
            (kind_of(code, status), shown, message)
        }
        SdkError::ResponseError(response) => {
            let status = response.raw().status().as_u16();
            let kind = if (400..500).contains(&status) {
                kind_of("", status)
            } else {
                ErrorKind::Ambiguous
            };
            (kind, "BadResponse".to_owned(), chain(&error))
        }
        SdkError::TimeoutError(_) => (ErrorKind::Ambiguous, "TimedOut".to_owned(), chain(&error)),
        other => {
            let sent = !matches!(other, SdkError::ConstructionFailure(_));
            let (kind, code) = without_answer(&error, sent);
            (kind, code.to_owned(), chain(&error))
        }
    };
    CloudError {
        operation: operation.to_owned(),
        resource: resource.to_string(),
        kind,
        code,
        message: message.chars().take(MESSAGE_CHARS).collect(),
        request,
    }
}

/// An error of our own about a call: an answer that lacks something, an argument that can not be sent.
pub(crate) fn own(
    operation: &'static str,
    resource: impl Display,
    kind: ErrorKind,
    code: &'static str,
    message: impl Into<String>,
) -> CloudError {
    CloudError {
        operation: operation.to_owned(),
        resource: resource.to_string(),
        kind,
        code: code.to_owned(),
        message: message.into(),
        request: None,
    }
}

/// The thing that was asked for is not in the answer.
pub(crate) fn missing(operation: &'static str, resource: impl Display) -> CloudError {
    own(operation, resource, ErrorKind::NotFound, "NotFound", "no such thing in the answer")
}

/// The answer lacks a field that the service documents, or holds what can not be read.
pub(crate) fn bad_answer(
    operation: &'static str,
    resource: impl Display,
    what: impl Display,
) -> CloudError {
    own(operation, resource, ErrorKind::Other, "BadAnswer", format!("the answer lacks {what}"))
}

/// What became of a request without an answer, by the causes that are named in the chain. `sent` says whether it
/// may have gone out.
fn without_answer(error: &(dyn Error + 'static), sent: bool) -> (ErrorKind, &'static str) {
    let mut timed_out = false;
    let mut next = Some(error);
    while let Some(cause) = next {
        if cause.is::<Undeclared>() {
            return (ErrorKind::Other, "Undeclared");
        }
        if let Some(credentials) = cause.downcast_ref::<CredentialsError>() {
            return match credentials {
                CredentialsError::ProviderTimedOut(_) => {
                    (ErrorKind::Unreachable, "CredentialsTimedOut")
                }
                _ => (ErrorKind::Credentials, "NoCredentials"),
            };
        }
        // The HTTP client's error types are private to the SDK. Their texts are what is left by which
        // to tell a connection that never came to be; a test against a closed port holds them.
        let text = cause.to_string();
        if text.contains("client error (Connect)") || text.starts_with("HTTP connect timeout") {
            return (ErrorKind::Unreachable, "NotConnected");
        }
        if text.contains("no identity") || text.contains("no credentials") {
            return (ErrorKind::Credentials, "NoCredentials");
        }
        timed_out |= text.contains("timeout") || text.contains("timed out");
        next = cause.source();
    }
    match (sent, timed_out) {
        (false, _) => (ErrorKind::Other, "NotSent"),
        (true, true) => (ErrorKind::Ambiguous, "TimedOut"),
        (true, false) => (ErrorKind::Ambiguous, "NoAnswer"),
    }
}

/// The sentences of an error and of what caused it.
fn chain(error: &(dyn Error + 'static)) -> String {
    let mut text = error.to_string();
    let mut next = error.source();
    while let Some(cause) = next {
        let sentence = cause.to_string();
        if !text.ends_with(&sentence) {
            text.push_str(": ");
            text.push_str(&sentence);
        }
        next = cause.source();
    }
    text
}

/// The kind of a service's error, by its code and, where that says nothing, by the HTTP status. The lists are from
/// the services' "Common errors" and "Error codes" pages (EC2 API reference, S3 API reference, IAM API reference).
fn kind_of(code: &str, status: u16) -> ErrorKind {
    let starts = |list: &[&str]| list.iter().any(|prefix| code.starts_with(prefix));
    let has = |list: &[&str]| list.iter().any(|part| code.contains(part));

    if status == 429
        || starts(&["Throttl", "TooManyRequests", "SlowDown", "RequestThrottled", "EC2Throttled"])
        || has(&["RequestLimitExceeded", "RateExceeded", "BandwidthLimitExceeded"])
        // Another snapshot of the volume is on its way: that passes.
        || code == "ConcurrentSnapshotLimitExceeded"
    {
        return ErrorKind::Throttled;
    }
    if status == 501
        || starts(&["Unsupported", "NotImplemented", "OptInRequired", "InvalidAction"])
        || code == "UnknownOperationException"
    {
        return ErrorKind::Unsupported;
    }
    if status >= 500 {
        return ErrorKind::Ambiguous;
    }
    if starts(CREDENTIAL_CODES) {
        return ErrorKind::Credentials;
    }
    if starts(&["AccessDenied", "UnauthorizedOperation", "Unauthorized", "AuthorizationError"])
        || starts(&["AllAccessDisabled", "Forbidden", "Blocked", "NotAuthorized"])
    {
        return ErrorKind::Denied;
    }
    if has(&["Duplicate", "AlreadyExists", "AlreadyAssociated", "AlreadyOwnedByYou"])
        || starts(&["PreconditionFailed", "ConditionalRequestConflict", "OperationAborted"])
        || (code.is_empty() && matches!(status, 409 | 412))
    {
        return ErrorKind::Conflict;
    }
    if has(&[".NotFound", "NotFoundException", "NotFoundFault"])
        || starts(&["NoSuch", "NotFound"])
        || code.ends_with("NotFound")
        || (code.is_empty() && status == 404)
    {
        return ErrorKind::NotFound;
    }
    match (code, status) {
        ("", 401 | 403) => ErrorKind::Denied,
        // Every other answer of the 400s is the service's reasoned no: a state, a parameter, a quota.
        (_, 400..=499) => ErrorKind::Refused,
        _ => ErrorKind::Other,
    }
}

/// Codes of requests that were signed with nothing, with what has expired, or by a clock that is wrong.
const CREDENTIAL_CODES: &[&str] = &[
    "ExpiredToken",
    "RequestExpired",
    "RequestTimeTooSkewed",
    "InvalidClientTokenId",
    "InvalidAccessKeyId",
    "InvalidToken",
    "TokenRefreshRequired",
    "AuthFailure",
    "SignatureDoesNotMatch",
    "InvalidSignature",
    "IncompleteSignature",
    "MissingAuthenticationToken",
    "UnrecognizedClient",
];

#[cfg(test)]
mod tests {
    use std::{net::TcpListener, time::Duration};

    use aws_smithy_runtime_api::client::result::ConnectorError;
    use aws_smithy_types::{body::SdkBody, error::ErrorMetadata};

    use super::*;
    use crate::clients::tests::clients;

    /// An operation's error type, which all have metadata.
    #[derive(Debug, thiserror::Error)]
    #[error("service error")]
    struct Plain(ErrorMetadata);

    impl ProvideErrorMetadata for Plain {
        fn meta(&self) -> &ErrorMetadata {
            &self.0
        }
    }

    /// An answer without a body.
    fn raw(status: u16) -> HttpResponse {
        HttpResponse::new(status.try_into().expect("a status"), SdkBody::empty())
    }

    /// An error of a service.
    fn service_error(code: Option<&str>, status: u16) -> SdkError<Plain, HttpResponse> {
        let mut meta = ErrorMetadata::builder().message("why it said no");
        if let Some(code) = code {
            meta = meta.code(code);
        }
        let mut raw = raw(status);
        raw.headers_mut().insert("x-amzn-requestid", "req-1");
        SdkError::service_error(Plain(meta.build()), raw)
    }

    #[test]
    fn codes_and_statuses_have_a_kind() {
        use ErrorKind as K;
        let table = [
            ("InvalidInstanceID.NotFound", 400, K::NotFound),
            ("InvalidSecurityGroupRuleId.NotFound", 400, K::NotFound),
            ("NoSuchEntity", 404, K::NotFound),
            ("NoSuchBucket", 404, K::NotFound),
            ("NotFoundException", 400, K::NotFound),
            ("TargetGroupNotFound", 400, K::NotFound),
            ("NotFound", 404, K::NotFound),
            ("", 404, K::NotFound),
            ("UnauthorizedOperation", 403, K::Denied),
            ("AccessDenied", 403, K::Denied),
            ("AccessDeniedException", 400, K::Denied),
            ("AuthorizationError", 403, K::Denied),
            ("", 403, K::Denied),
            ("ExpiredToken", 403, K::Credentials),
            ("ExpiredTokenException", 400, K::Credentials),
            ("RequestExpired", 400, K::Credentials),
            ("AuthFailure", 401, K::Credentials),
            ("InvalidClientTokenId", 403, K::Credentials),
            ("UnrecognizedClientException", 400, K::Credentials),
            ("SignatureDoesNotMatch", 403, K::Credentials),
            ("RequestLimitExceeded", 503, K::Throttled),
            ("Throttling", 400, K::Throttled),
            ("ThrottlingException", 400, K::Throttled),
            ("SlowDown", 503, K::Throttled),
            ("TooManyRequestsException", 429, K::Throttled),
            ("SnapshotCreationPerVolumeRateExceeded", 400, K::Throttled),
            ("", 429, K::Throttled),
            ("InvalidGroup.Duplicate", 400, K::Conflict),
            ("InvalidPermission.Duplicate", 400, K::Conflict),
            ("InvalidAMIName.Duplicate", 400, K::Conflict),
            ("EntityAlreadyExists", 409, K::Conflict),
            ("NetworkAclEntryAlreadyExists", 400, K::Conflict),
            ("Resource.AlreadyAssociated", 400, K::Conflict),
            ("PreconditionFailed", 412, K::Conflict),
            ("ConditionalRequestConflict", 409, K::Conflict),
            ("UnsupportedOperation", 400, K::Unsupported),
            ("OptInRequired", 403, K::Unsupported),
            ("NotImplemented", 501, K::Unsupported),
            ("InvalidAction", 400, K::Unsupported),
            ("IncorrectInstanceState", 400, K::Refused),
            ("IncorrectState", 400, K::Refused),
            ("OperationNotPermitted", 400, K::Refused),
            ("InvalidParameterValue", 400, K::Refused),
            ("ValidationError", 400, K::Refused),
            ("DependencyViolation", 400, K::Refused),
            ("VpcLimitExceeded", 400, K::Refused),
            ("LimitExceeded", 409, K::Refused),
            ("MalformedPolicyDocument", 400, K::Refused),
            ("InternalError", 500, K::Ambiguous),
            ("Unavailable", 503, K::Ambiguous),
            ("", 502, K::Ambiguous),
            ("Moved", 301, K::Other),
        ];
        for (code, status, expected) in table {
            assert_eq!(kind_of(code, status), expected, "{code} {status}");
        }
    }

    #[test]
    fn a_service_s_error_keeps_its_code_its_sentence_and_its_request() {
        let error = fail("ec2:DeleteSecurityGroup", "sg-1", service_error(Some("InUse"), 400));
        assert_eq!(
            error.to_string(),
            "ec2:DeleteSecurityGroup sg-1: InUse: why it said no (request req-1)"
        );
        assert_eq!(error.kind, ErrorKind::Refused);
        let error = fail("s3:GetObject", "key", service_error(None, 503));
        assert_eq!((error.kind, error.code.as_str()), (ErrorKind::Ambiguous, "Http503"));
    }

    #[test]
    fn a_long_sentence_is_cut_between_characters() {
        let meta = ErrorMetadata::builder().code("Long").message("ü".repeat(5000)).build();
        let error = fail("ec2:CreateTags", "i-1", SdkError::service_error(Plain(meta), raw(400)));
        assert_eq!(error.message.chars().count(), MESSAGE_CHARS);
    }

    /// The kind and code of a request that got no answer.
    fn without(error: SdkError<Plain, HttpResponse>) -> (ErrorKind, String) {
        let error = fail("ec2:CreateSnapshots", "i-1", error);
        (error.kind, error.code)
    }

    #[test]
    fn what_may_have_been_sent_may_have_been_done() {
        let reset = ConnectorError::io("connection reset by peer".into());
        let reset = SdkError::dispatch_failure(reset);
        assert_eq!(without(reset), (ErrorKind::Ambiguous, "NoAnswer".into()));
        let slow = ConnectorError::timeout("HTTP read timeout occurred after 10s".into());
        let slow = SdkError::dispatch_failure(slow);
        assert_eq!(without(slow), (ErrorKind::Ambiguous, "TimedOut".into()));
        let slow = SdkError::timeout_error("operation timeout");
        assert_eq!(without(slow), (ErrorKind::Ambiguous, "TimedOut".into()));
        let garbled = SdkError::response_error("unexpected end", raw(200));
        assert_eq!(without(garbled), (ErrorKind::Ambiguous, "BadResponse".into()));
    }

    #[test]
    fn what_was_not_sent_was_not_done() {
        let incomplete = SdkError::construction_failure("a field is missing");
        assert_eq!(without(incomplete), (ErrorKind::Other, "NotSent".into()));
        let late = ConnectorError::timeout("HTTP connect timeout occurred after 3s".into());
        let late = SdkError::dispatch_failure(late);
        assert_eq!(without(late), (ErrorKind::Unreachable, "NotConnected".into()));
        let none = CredentialsError::not_loaded_no_source();
        let none = SdkError::dispatch_failure(ConnectorError::other(none.into(), None));
        assert_eq!(without(none), (ErrorKind::Credentials, "NoCredentials".into()));
        let slow = CredentialsError::provider_timed_out(Duration::from_secs(5));
        let slow = SdkError::dispatch_failure(ConnectorError::other(slow.into(), None));
        assert_eq!(without(slow), (ErrorKind::Unreachable, "CredentialsTimedOut".into()));
    }

    /// Holds the texts by which a connection that never came to be is known.
    #[tokio::test]
    async fn a_closed_port_is_unreachable() {
        let port = {
            let listener = TcpListener::bind("127.0.0.1:0").expect("a free port");
            listener.local_addr().expect("its address").port()
        };
        let clients = clients(&format!("http://127.0.0.1:{port}"), None);
        let answer = clients.ec2_once.describe_regions().send().await;
        let error = fail("ec2:DescribeRegions", "", answer.expect_err("nobody listens"));
        assert_eq!((error.kind, error.code.as_str()), (ErrorKind::Unreachable, "NotConnected"));
    }
}
