//! From what the SDK says went wrong to what the agent may decide by.
//!
//! Purpose: the one place of the agent that knows services' error codes. Everything above sees a [`CloudError`]:
//! operation, resource, kind, code, the service's sentence, request id. Touches nothing.

use std::{error::Error, fmt};

use aws_credential_types::provider::error::CredentialsError;
use aws_smithy_runtime_api::client::{orchestrator::HttpResponse, result::SdkError};
use aws_smithy_types::error::metadata::ProvideErrorMetadata;
use aws_types::request_id::RequestId;

/// Enough of a sentence for a person; a service's message may quote a whole policy.
const MESSAGE_CHARS: usize = 1000;

/// The result of a call.
pub type Result<T> = std::result::Result<T, CloudError>;

/// What kind of failure it is: as much as the agent may decide by.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum ErrorKind {
    /// No such thing.
    NotFound,
    /// The room may not.
    Denied,
    /// No credentials, or expired ones.
    Credentials,
    /// Too many calls.
    Throttled,
    /// The condition of a conditional write did not hold.
    Conflict,
    /// The service's reasoned no.
    Refused,
    /// No answer in time, a reset connection, an error of the service itself: it may have been done.
    Ambiguous,
    /// The service could not be reached at all: nothing was done.
    Unreachable,
    /// Anything else.
    Other,
}

/// A call that failed: what was called, on what, why, and the id by which AWS support finds it.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub struct CloudError {
    /// The operation, `s3:PutObject`.
    pub operation: &'static str,
    /// What it was asked for or about.
    pub resource: String,
    /// What the agent may decide by.
    pub kind: ErrorKind,
    /// The service's code, `NoSuchKey`, or a word of ours where none came.
    pub code: String,
    /// The service's own sentence; untrusted text.
    pub message: String,
    /// The request's id.
    pub request: Option<String>,
}

impl CloudError {
    /// Whether asking again may succeed with nothing else changed.
    #[must_use]
    pub fn is_transient(&self) -> bool {
        matches!(
            self.kind,
            ErrorKind::Throttled
                | ErrorKind::Ambiguous
                | ErrorKind::Unreachable
                // A role's credentials are renewed on their way, and a new room's come some seconds late.
                | ErrorKind::Credentials
        )
    }
}

impl fmt::Display for CloudError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} {}: {}", self.operation, self.resource, self.code)?;
        if !self.message.is_empty() {
            write!(f, ": {}", cleanroom_contract::printable(&self.message))?;
        }
        if let Some(request) = &self.request {
            write!(f, " (request {request})")?;
        }
        Ok(())
    }
}

/// A failed call in our own words.
pub(crate) fn fail<E>(
    operation: &'static str,
    resource: &str,
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
            // An answer that is not understood has no message, but a cause.
            let message = error.message().map_or_else(|| chain(&error), str::to_owned);
            (kind_of(code, status), shown, message)
        }
        SdkError::ResponseError(response) => {
            let status = response.raw().status().as_u16();
            let refused = (400..500).contains(&status);
            let kind = if refused { kind_of("", status) } else { ErrorKind::Ambiguous };
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
        operation,
        resource: resource.to_owned(),
        kind,
        code,
        message: message.chars().take(MESSAGE_CHARS).collect(),
        request,
    }
}

/// An error of our own about a call.
pub(crate) fn own(
    operation: &'static str,
    resource: &str,
    kind: ErrorKind,
    code: &'static str,
    message: impl Into<String>,
) -> CloudError {
    CloudError {
        operation,
        resource: resource.to_owned(),
        kind,
        code: code.to_owned(),
        message: message.into(),
        request: None,
    }
}

/// What became of a request without an answer, by the causes that are named in the chain. `sent` says whether it
/// may have gone out.
fn without_answer(error: &(dyn Error + 'static), sent: bool) -> (ErrorKind, &'static str) {
    let mut timed_out = false;
    let mut next = Some(error);
    while let Some(cause) = next {
        if let Some(credentials) = cause.downcast_ref::<CredentialsError>() {
            return match credentials {
                CredentialsError::ProviderTimedOut(_) => {
                    (ErrorKind::Unreachable, "CredentialsTimedOut")
                }
                _ => (ErrorKind::Credentials, "NoCredentials"),
            };
        }
        // The HTTP client's error types are private to the SDK: their texts are what is left by which to tell a
        // connection that never came to be. A test against a closed port holds them.
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
pub(crate) fn chain(error: &(dyn Error + 'static)) -> String {
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
/// the services' "Common errors" and "Error codes" pages (S3, SNS, CloudFormation and Step Functions API references).
fn kind_of(code: &str, status: u16) -> ErrorKind {
    let starts = |list: &[&str]| list.iter().any(|prefix| code.starts_with(prefix));
    if status == 429 || starts(&["Throttl", "TooManyRequests", "SlowDown", "RequestLimitExceeded"])
    {
        return ErrorKind::Throttled;
    }
    if status >= 500 || starts(&["RequestTimeout", "InternalError", "OperationAborted"]) {
        return ErrorKind::Ambiguous;
    }
    if starts(&[
        "ExpiredToken",
        "RequestExpired",
        "RequestTimeTooSkewed",
        "InvalidClientTokenId",
        "InvalidAccessKeyId",
        "TokenRefreshRequired",
        "SignatureDoesNotMatch",
        "IncompleteSignature",
        "MissingAuthenticationToken",
        "UnrecognizedClient",
    ]) {
        return ErrorKind::Credentials;
    }
    if starts(&["AccessDenied", "Unauthorized", "AuthorizationError", "AllAccessDisabled"])
        || starts(&["Forbidden", "KMSAccessDenied", "KMS.AccessDenied"])
        || (code.is_empty() && matches!(status, 401 | 403))
    {
        return ErrorKind::Denied;
    }
    if starts(&["PreconditionFailed", "ConditionalRequestConflict"])
        || (code.is_empty() && matches!(status, 409 | 412))
    {
        return ErrorKind::Conflict;
    }
    // A task that has ended, by itself or by its heartbeat, takes no more news.
    if starts(&["NoSuch", "NotFound", "TaskDoesNotExist", "TaskTimedOut"])
        || (code.is_empty() && status == 404)
    {
        return ErrorKind::NotFound;
    }
    match status {
        400..=499 => ErrorKind::Refused,
        _ => ErrorKind::Other,
    }
}

#[cfg(test)]
mod tests {
    use aws_smithy_runtime_api::client::result::ConnectorError;
    use aws_smithy_types::{body::SdkBody, error::ErrorMetadata};

    use super::*;

    /// An operation's error type, which all have metadata.
    #[derive(Debug, thiserror::Error)]
    #[error("service error")]
    struct Plain(ErrorMetadata);

    impl ProvideErrorMetadata for Plain {
        fn meta(&self) -> &ErrorMetadata {
            &self.0
        }
    }

    fn raw(status: u16) -> HttpResponse {
        HttpResponse::new(status.try_into().expect("a status"), SdkBody::empty())
    }

    #[test]
    fn codes_and_statuses_have_a_kind() {
        use ErrorKind as K;
        let table = [
            ("NoSuchKey", 404, K::NotFound),
            ("NoSuchUpload", 404, K::NotFound),
            ("NotFoundException", 404, K::NotFound),
            ("TaskTimedOut", 400, K::NotFound),
            ("TaskDoesNotExist", 400, K::NotFound),
            ("", 404, K::NotFound),
            ("AccessDenied", 403, K::Denied),
            ("AuthorizationErrorException", 403, K::Denied),
            ("", 403, K::Denied),
            ("ExpiredToken", 400, K::Credentials),
            ("RequestTimeTooSkewed", 403, K::Credentials),
            ("SlowDown", 503, K::Throttled),
            ("ThrottlingException", 400, K::Throttled),
            ("", 429, K::Throttled),
            ("PreconditionFailed", 412, K::Conflict),
            ("ConditionalRequestConflict", 409, K::Conflict),
            ("RequestTimeout", 400, K::Ambiguous),
            ("InternalError", 500, K::Ambiguous),
            ("", 502, K::Ambiguous),
            ("InvalidToken", 400, K::Refused),
            ("ValidationError", 400, K::Refused),
            ("NoSuchBucket", 404, K::NotFound),
            ("Moved", 301, K::Other),
        ];
        for (code, status, expected) in table {
            assert_eq!(kind_of(code, status), expected, "{code} {status}");
        }
    }

    #[test]
    fn a_service_s_error_keeps_its_code_its_sentence_and_its_request() {
        let meta = ErrorMetadata::builder().code("SlowDown").message("why\nnot").build();
        let mut raw = raw(503);
        raw.headers_mut().insert("x-amzn-requestid", "req-1");
        let error = fail("s3:PutObject", "key", SdkError::service_error(Plain(meta), raw));
        assert_eq!(error.to_string(), r"s3:PutObject key: SlowDown: why\u{a}not (request req-1)");
        assert!(error.is_transient());
    }

    #[test]
    fn what_was_not_sent_was_not_done() {
        let without = |error: SdkError<Plain, HttpResponse>| {
            let error = fail("s3:PutObject", "key", error);
            (error.kind, error.code)
        };
        let reset =
            SdkError::dispatch_failure(ConnectorError::io("connection reset by peer".into()));
        assert_eq!(without(reset), (ErrorKind::Ambiguous, "NoAnswer".into()));
        assert_eq!(
            without(SdkError::timeout_error("operation timeout")),
            (ErrorKind::Ambiguous, "TimedOut".into())
        );
        assert_eq!(
            without(SdkError::construction_failure("a field is missing")),
            (ErrorKind::Other, "NotSent".into())
        );
        let none = CredentialsError::not_loaded_no_source();
        let none = SdkError::dispatch_failure(ConnectorError::other(none.into(), None));
        assert_eq!(without(none), (ErrorKind::Credentials, "NoCredentials".into()));
    }
}
