//! Executions of state machines, tasks that wait for a word, and messages that nobody could read.

use async_trait::async_trait;
use cleanroom_contract::Timestamp;
use serde::{Deserialize, Serialize};

use crate::error::Result;

/// How far an execution is (Step Functions `ExecutionStatus`).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
#[expect(missing_docs, reason = "the service's own words")]
pub enum ExecutionState {
    Running,
    Succeeded,
    Failed,
    TimedOut,
    Aborted,
}

/// An execution (Step Functions `DescribeExecution`).
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Execution {
    /// Its ARN.
    pub arn: String,
    /// Its name.
    pub name: String,
    /// How far it is.
    pub state: ExecutionState,
    /// When it was started.
    pub started: Timestamp,
    /// When it ended.
    pub stopped: Option<Timestamp>,
    /// What it was given, JSON.
    pub input: String,
    /// What it gave, JSON, where it succeeded.
    pub output: Option<String>,
    /// Why it failed: the error's name, and its cause; untrusted text.
    pub error: Option<(String, String)>,
}

/// Something that happened in an execution (Step Functions `GetExecutionHistory`).
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Passed {
    /// Its number, from 1.
    pub id: u64,
    /// When.
    pub at: Timestamp,
    /// The service's word for it: `TaskStateEntered`, `ExecutionSucceeded`.
    pub kind: String,
    /// The state that was entered or left, where it is about one.
    pub state: Option<String>,
}

/// How a start ended.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Begun {
    /// It runs now, under this ARN; or it runs already, with this very input.
    Runs(String),
    /// The name is taken: by an execution that has ended, or that was given something else.
    Taken,
}

/// State machines: starting executions, following them, and answering tasks that wait for a word.
#[async_trait]
pub trait Workflows: Send + Sync {
    /// Starts an execution. `machine` is the state machine's ARN, `name` has 1 to 80 characters, `input` is JSON of at most
    /// 256 KiB.
    async fn start(&self, machine: &str, name: &str, input: &str) -> Result<Begun>;
    /// An execution by its ARN; `None` where there is none.
    async fn execution(&self, arn: &str) -> Result<Option<Execution>>;
    /// What happened in an execution after the event of this number, oldest first; at most a thousand at a time.
    async fn history(&self, arn: &str, after: u64) -> Result<Vec<Passed>>;
    /// Ends a task that waits for its token. False where nothing waits for it any more.
    async fn succeed(&self, token: &str, output: &str) -> Result<bool>;
    /// Ends it with an error. False where nothing waits for it any more.
    async fn fail(&self, token: &str, error: &str, cause: &str) -> Result<bool>;
}

/// A queue of messages that could not be read.
#[async_trait]
pub trait DeadLetters: Send + Sync {
    /// Keeps a message, with the reason as its attribute `reason`. `queue` is the queue's URL. What is longer than SQS
    /// takes is cut.
    async fn put(&self, queue: &str, body: &str, reason: &str) -> Result<()>;
}

/// The ARN of an execution, by those of its machine and its name; `None` where the first is no machine's.
#[must_use]
pub fn execution_arn(machine: &str, name: &str) -> Option<String> {
    let (before, machine) = machine.split_once(":stateMachine:")?;
    Some(format!("{before}:execution:{machine}:{name}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_execution_is_found_by_its_name() {
        let machine = "arn:aws:states:us-east-1:123456789012:stateMachine:cleanroom-response";
        assert_eq!(
            execution_arn(machine, "i-0123456789abcdef0-1").as_deref(),
            Some(
                "arn:aws:states:us-east-1:123456789012:execution:cleanroom-response:i-0123456789abcdef0-1"
            )
        );
        assert_eq!(execution_arn("cleanroom-response", "x"), None);
    }
}
