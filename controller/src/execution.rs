//! What an execution of the state machine is given, and what it asks of its functions.
//!
//! Purpose: the words between intake, the command line, the state machine and its functions, in one place. The contract is
//! told in full beside the machine's proofs. Touches nothing, and trusts nothing: whoever may start an execution writes
//! its input.

use cleanroom_contract::{CaseId, InstanceId};
use serde::{Deserialize, Serialize};
use serde_json::Value;

use crate::{
    alert::{Part, Source},
    brake::AtDeadline,
};

/// Whether a person is to be asked before anything is contained.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Approval {
    /// By whoever started it: nobody needs to be asked.
    None,
    /// A person is asked.
    Needed,
}

/// What an execution is given. Only instance and case must be there.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Input {
    /// The instance.
    pub instance: InstanceId,
    /// The case: the execution's name begins with it.
    pub case: CaseId,
    /// Who says that the instance is compromised; none where a person at a terminal does.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub source: Option<Source>,
    /// What the instance has to do with what was seen.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub part: Option<Part>,
    /// Why, in a person's or the source's words.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub reason: Option<String>,
    /// Whether a person is to be asked, whatever the brake says.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub approval: Option<Approval>,
    /// What is done where nobody answers.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub otherwise: Option<AtDeadline>,
}

impl Input {
    /// Who says what, in one line; none where nobody gave a reason.
    #[must_use]
    pub fn words(&self) -> Option<String> {
        match (&self.source, &self.reason) {
            (None, reason) => reason.clone(),
            (Some(source), None) => Some(source.to_string()),
            (Some(source), Some(reason)) => Some(format!("{source}: {reason}")),
        }
    }
}

/// What a function is asked to do.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Ask {
    /// The step, by the machine's name for it.
    pub step: String,
    /// The instance.
    pub instance: InstanceId,
    /// The case that was asked for. The claim may name another: then `open` says so.
    pub case: CaseId,
    /// The execution's name.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub run: Option<String>,
    /// When it was started, RFC 3339.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub started: Option<String>,
    /// The execution's input.
    #[serde(default)]
    pub input: Value,
    /// The facts of `open`.
    #[serde(default)]
    pub open: Value,
    /// Ends the task.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub token: Option<String>,
    /// How many times a person was asked, and the seconds until the next time.
    #[serde(default)]
    pub asked: Value,
    /// How many times it was looked: `{"round": n}`.
    #[serde(default)]
    pub looked: Value,
    /// The volumes that it is about: `{"n": 1, "volumes": […]}`.
    #[serde(default)]
    pub group: Value,
    /// The facts of `order`.
    #[serde(default)]
    pub order: Value,
    /// All that the machine holds.
    #[serde(default)]
    pub machine: Value,
}

/// Why a function did not do what it was asked.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{why}")]
pub struct Failed {
    /// Whether another try may help.
    pub retryable: bool,
    /// What was attempted, on what, and why it failed.
    pub why: String,
}
