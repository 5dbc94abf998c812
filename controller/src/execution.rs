//! What an execution of the state machine is given, and what it asks of its functions.
//!
//! Purpose: the words between intake, the command line, the state machine and its functions, in one place. The contract is
//! told in full beside the machine's proofs. Touches state machines, in [`start`] alone, looks at them in [`running`], and trusts nothing: whoever may
//! start an execution writes its input.

use cleanroom_cloud::{Begun, CloudError, ExecutionState, Workflows, execution_arn};
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

/// How many executions a case may have. Beyond them somebody starts what ends at once, and no further start helps.
const MOST: u32 = 99;

/// The name of a case's `n`-th execution: the case's own, then the case and `-r2`, `-r3`.
#[must_use]
pub fn name(case: &CaseId, n: u32) -> String {
    if n <= 1 { case.to_string() } else { format!("{case}-r{n}") }
}

/// An execution that runs.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Started {
    /// Its ARN.
    pub arn: String,
    /// Its name.
    pub name: String,
    /// Whether it is known to have run before, started by somebody else.
    pub joined: bool,
}

/// Why no execution was started.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    /// Step Functions failed.
    #[error("start or find an execution for {case}")]
    Cloud {
        /// The case.
        case: CaseId,
        /// What it said.
        source: CloudError,
    },
    /// There were too many already.
    #[error(
        "{case} has had {MOST} executions, and no other was started: see why they end, in the console"
    )]
    Many {
        /// The case.
        case: CaseId,
    },
    /// Whoever started it gave it an input that no function can read.
    #[error("execution {name} runs, and its input names no instance: stop it in the console")]
    Unreadable {
        /// The execution.
        name: String,
    },
    /// What was to be the state machine's ARN is none.
    #[error(
        "{machine:?} is not the ARN of a state machine: see the output ResponseMachine of the response stack"
    )]
    Machine {
        /// What was given instead.
        machine: String,
    },
}

/// Starts a case's execution, or finds the one that runs for it. An earlier one that has ended keeps its name: then the next
/// name is taken, since whoever asks again wants it to go on.
///
/// # Errors
/// When Step Functions fails, the machine has no ARN, or the case has had too many executions.
pub async fn start(
    workflows: &dyn Workflows,
    machine: &str,
    input: &Input,
) -> Result<Started, StartError> {
    let case = &input.case;
    let cloud = |source| StartError::Cloud { case: case.clone(), source };
    // Texts, and enums of plain words: they always have a JSON form.
    let text = serde_json::to_string(input).unwrap_or_default();
    for n in 1..=MOST {
        let name = name(case, n);
        let Some(arn) = execution_arn(machine, &name) else {
            return Err(StartError::Machine { machine: machine.to_owned() });
        };
        match workflows.start(machine, &name, &text).await.map_err(cloud)? {
            Begun::Runs(arn) => return Ok(Started { arn, name, joined: false }),
            Begun::Taken => {
                let there = workflows.execution(&arn).await.map_err(cloud)?;
                let theirs = there.filter(|there| there.state == ExecutionState::Running);
                // A case may be named as another's second execution is.
                let ours = theirs.filter(|theirs| {
                    serde_json::from_str::<Input>(&theirs.input)
                        .is_ok_and(|theirs| theirs.instance == input.instance)
                });
                if ours.is_some() {
                    return Ok(Started { arn, name, joined: true });
                }
            }
        }
    }
    Err(StartError::Many { case: case.clone() })
}

/// The execution of a case that still runs, whoever started it, and its instance; none where none does.
///
/// # Errors
/// When Step Functions fails, the machine has no ARN, or the execution's input names no instance.
pub async fn running(
    workflows: &dyn Workflows,
    machine: &str,
    case: &CaseId,
) -> Result<Option<(InstanceId, Started)>, StartError> {
    for n in 1..=MOST {
        let name = name(case, n);
        let Some(arn) = execution_arn(machine, &name) else {
            return Err(StartError::Machine { machine: machine.to_owned() });
        };
        let there = workflows.execution(&arn).await;
        let there = there.map_err(|source| StartError::Cloud { case: case.clone(), source })?;
        // Who takes the next name has found this one taken.
        let Some(there) = there else { return Ok(None) };
        if there.state == ExecutionState::Running {
            return match serde_json::from_str::<Input>(&there.input) {
                Ok(input) => Ok(Some((input.instance, Started { arn, name, joined: true }))),
                Err(_) => Err(StartError::Unreadable { name }),
            };
        }
    }
    Ok(None)
}
