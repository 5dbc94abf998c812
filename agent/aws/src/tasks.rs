//! Those who wait for the room: its stack, and the task of a state machine.
//!
//! Purpose: CloudFormation's SignalResource, and Step Functions' heartbeats and results. Touches the one stack and the
//! one task that are named. Never decides when.

use aws_sdk_cloudformation::types::ResourceSignalStatus;

use crate::{
    Aws,
    error::{Result, fail},
};

/// A result has at most 256 KiB, a cause 32 KiB, an error 256 characters (Step Functions API reference).
const MAX_CAUSE: usize = 32_000;

impl Aws {
    /// Tells a stack that a resource of it is ready, or never will be. `id` is the same each time it is told.
    ///
    /// # Errors
    /// The stack does not wait for it, or can not be told.
    pub async fn signal(&self, stack: &str, resource: &str, id: &str, ready: bool) -> Result<()> {
        const OPERATION: &str = "cloudformation:SignalResource";
        let status =
            if ready { ResourceSignalStatus::Success } else { ResourceSignalStatus::Failure };
        let answer = self
            .cloudformation
            .signal_resource()
            .stack_name(stack)
            .logical_resource_id(resource)
            .unique_id(id)
            .status(status)
            .send()
            .await;
        answer.map(drop).map_err(|e| fail(OPERATION, &format!("{stack}/{resource}"), e))
    }

    /// Tells a task that the work goes on.
    ///
    /// # Errors
    /// [`ErrorKind::NotFound`](crate::ErrorKind::NotFound) where nobody waits any more.
    pub async fn heartbeat(&self, token: &str) -> Result<()> {
        let answer = self.sfn.send_task_heartbeat().task_token(token).send().await;
        answer.map(drop).map_err(|e| fail("states:SendTaskHeartbeat", "the task", e))
    }

    /// Ends a task with its result, a JSON document.
    ///
    /// # Errors
    /// As [`heartbeat`](Self::heartbeat).
    pub async fn succeed(&self, token: &str, output: &str) -> Result<()> {
        let answer = self.sfn.send_task_success().task_token(token).output(output).send().await;
        answer.map(drop).map_err(|e| fail("states:SendTaskSuccess", "the task", e))
    }

    /// Ends a task without a result.
    ///
    /// # Errors
    /// As [`heartbeat`](Self::heartbeat).
    pub async fn give_up(&self, token: &str, error: &str, cause: &str) -> Result<()> {
        let cause = &cause[..cause.floor_char_boundary(MAX_CAUSE)];
        let call = self.sfn.send_task_failure().task_token(token).error(error).cause(cause);
        call.send().await.map(drop).map_err(|e| fail("states:SendTaskFailure", "the task", e))
    }
}
