//! What a call to the cloud ends with when it does not end well.

use std::fmt;

use serde::{Deserialize, Serialize};

/// The result of a call to the cloud.
pub type Result<T> = std::result::Result<T, CloudError>;

/// What kind of failure it is: as much as a step may decide by.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum ErrorKind {
    /// No such thing, in this account and Region.
    NotFound,
    /// The caller may not.
    Denied,
    /// No credentials, or expired ones.
    Credentials,
    /// Too many calls.
    Throttled,
    /// It exists already, or the condition of a conditional write did not hold.
    Conflict,
    /// The thing is in a state in which this can not be done, or the request is not valid for it.
    Refused,
    /// The service does not offer this here.
    Unsupported,
    /// No answer in time, a reset connection, an error of the service itself: it may have been done.
    Ambiguous,
    /// The service could not be reached at all: nothing was done.
    Unreachable,
    /// Anything else.
    Other,
}

/// A call that failed: what was called, on what, why, and the id by which AWS support finds it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, thiserror::Error)]
pub struct CloudError {
    /// The operation, `ec2:CreateSnapshots`.
    pub operation: String,
    /// What it was asked for or about; empty where the operation has no subject.
    pub resource: String,
    /// What a step may decide by.
    pub kind: ErrorKind,
    /// The service's code, `InvalidGroup.Duplicate`, or a word of ours where none came.
    pub code: String,
    /// The service's own sentence; untrusted text.
    pub message: String,
    /// The request's id.
    pub request: Option<String>,
}

impl CloudError {
    /// Whether what was asked may have been done although no answer said so.
    #[must_use]
    pub fn is_ambiguous(&self) -> bool {
        self.kind == ErrorKind::Ambiguous
    }

    /// Whether asking again may succeed with nothing else changed.
    #[must_use]
    pub fn is_transient(&self) -> bool {
        matches!(self.kind, ErrorKind::Throttled | ErrorKind::Ambiguous | ErrorKind::Unreachable)
    }
}

impl fmt::Display for CloudError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.operation)?;
        if !self.resource.is_empty() {
            write!(f, " {}", self.resource)?;
        }
        write!(f, ": {}", self.code)?;
        if !self.message.is_empty() {
            write!(f, ": {}", cleanroom_contract::printable(&self.message))?;
        }
        if let Some(request) = &self.request {
            write!(f, " (request {request})")?;
        }
        Ok(())
    }
}
