//! What comes in at the intake.

use serde::Serialize;
use serde_json::Value;

use crate::{case::Run, execution::Failed};

/// Where the intake leads.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Way {
    /// The state machine of one case, by its ARN.
    pub machine: String,
    /// The state machine of an incident of many instances, by its ARN.
    pub many: String,
    /// The dead-letter queue, by its URL.
    pub queue: String,
    /// How many executions it starts at a time.
    pub at_once: u32,
    /// Seconds between two starts of each.
    pub pace: u32,
}

/// What was begun.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Taken {}

/// Takes what was delivered.
///
/// # Errors
/// It is not there yet.
pub async fn take(_run: &Run, _way: &Way, _event: &Value) -> Result<Taken, Failed> {
    Err(Failed { retryable: false, why: "the intake is not there yet".to_owned() })
}
