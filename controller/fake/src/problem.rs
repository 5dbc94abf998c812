//! What the fake cloud says no with, before the gate makes it a full error.

use cleanroom_cloud::ErrorKind;

/// What an operation on the world ends with.
pub(crate) type Answered<T> = std::result::Result<T, Problem>;

/// An error without the call that it belongs to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Problem {
    pub(crate) kind: ErrorKind,
    pub(crate) code: String,
    pub(crate) message: String,
}

impl Problem {
    pub(crate) fn new(kind: ErrorKind, code: &str, message: impl Into<String>) -> Self {
        Self { kind, code: code.to_owned(), message: message.into() }
    }

    pub(crate) fn not_found(code: &str, message: impl Into<String>) -> Self {
        Self::new(ErrorKind::NotFound, code, message)
    }

    pub(crate) fn refused(code: &str, message: impl Into<String>) -> Self {
        Self::new(ErrorKind::Refused, code, message)
    }

    pub(crate) fn conflict(code: &str, message: impl Into<String>) -> Self {
        Self::new(ErrorKind::Conflict, code, message)
    }

    /// An error of this kind that nothing in the world gave reason for.
    pub(crate) fn injected(kind: ErrorKind) -> Self {
        let (code, message) = match kind {
            ErrorKind::NotFound => ("NotFound", "no such thing"),
            ErrorKind::Denied => ("UnauthorizedOperation", "not authorized"),
            ErrorKind::Credentials => ("ExpiredToken", "the security token has expired"),
            ErrorKind::Throttled => ("RequestLimitExceeded", "Request limit exceeded."),
            ErrorKind::Conflict => ("Conflict", "exists already"),
            ErrorKind::Refused => ("IncorrectState", "not in this state"),
            ErrorKind::Unsupported => ("UnsupportedOperation", "not offered here"),
            ErrorKind::Ambiguous => ("Timeout", "no answer in time"),
            ErrorKind::Unreachable => ("Unreachable", "no connection"),
            ErrorKind::Other => ("InternalFailure", "something else"),
        };
        Self::new(kind, code, message)
    }
}
