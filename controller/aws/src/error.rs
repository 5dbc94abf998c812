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
            let message = error.message().map_or_else(|| chain(service.err()), str::to_owned);
            let shown = if code.is_empty() { format!("Http{status}") } else { code.to_owned() };
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
