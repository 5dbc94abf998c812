//! State machines in memory, tasks that wait, and the queue of what could not be read.
//!
//! Purpose: Step Functions' rules for names and tokens, without the machines themselves: what an execution does is the test's
//! to say, by [`World::enter`], [`World::leave`] and [`World::stop`]. Touches only the world.

use async_trait::async_trait;
use cleanroom_cloud::{
    Begun, DeadLetters, Execution, ExecutionState, Passed, Result, Workflows, execution_arn,
};

use crate::{
    gate::{Call, FakeCloud},
    problem::Problem,
    world::World,
};

/// An execution, and what happened in it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Ran {
    /// As it is described.
    pub execution: Execution,
    /// What happened, oldest first.
    pub events: Vec<Passed>,
}

/// A task that waits for its token, or did.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Waits {
    /// What ended it: an output, or an error's name and its cause.
    pub answer: Option<std::result::Result<String, (String, String)>>,
}

/// A message that nobody could read.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Letter {
    /// The queue's URL.
    pub queue: String,
    /// The message.
    pub body: String,
    /// Why it could not be read.
    pub reason: String,
}

impl World {
    /// An execution enters a state.
    pub fn enter(&mut self, arn: &str, state: &str) {
        self.passes(arn, "TaskStateEntered", Some(state));
    }

    /// It leaves one.
    pub fn leave(&mut self, arn: &str, state: &str) {
        self.passes(arn, "TaskStateExited", Some(state));
    }

    /// It ends so.
    pub fn stop(&mut self, arn: &str, state: ExecutionState, error: Option<(&str, &str)>) {
        let now = self.now();
        if let Some(ran) = self.executions.get_mut(arn) {
            ran.execution.state = state;
            ran.execution.stopped = Some(now);
            ran.execution.error = error.map(|(name, cause)| (name.to_owned(), cause.to_owned()));
        }
        let kind = match state {
            ExecutionState::Running => return,
            ExecutionState::Succeeded => "ExecutionSucceeded",
            ExecutionState::Failed => "ExecutionFailed",
            ExecutionState::TimedOut => "ExecutionTimedOut",
            ExecutionState::Aborted => "ExecutionAborted",
        };
        self.passes(arn, kind, None);
    }

    /// A task waits for this token from now on.
    pub fn wait_for(&mut self, token: &str) {
        self.tokens.insert(token.to_owned(), Waits::default());
    }

    fn passes(&mut self, arn: &str, kind: &str, state: Option<&str>) {
        let at = self.now();
        if let Some(ran) = self.executions.get_mut(arn) {
            let id = ran.events.len() as u64 + 1;
            let (kind, state) = (kind.to_owned(), state.map(str::to_owned));
            ran.events.push(Passed { id, at, kind, state });
        }
    }

    /// Whether something waited for this token, which now has its answer.
    fn answer(
        &mut self,
        token: &str,
        answer: std::result::Result<String, (String, String)>,
    ) -> bool {
        match self.tokens.get_mut(token) {
            Some(waits) if waits.answer.is_none() => {
                waits.answer = Some(answer);
                true
            }
            _ => false,
        }
    }
}

/// Whether a text is JSON.
fn is_json(text: &str) -> bool {
    serde_json::from_str::<serde_json::Value>(text).is_ok()
}

#[async_trait]
impl Workflows for FakeCloud {
    async fn start(&self, machine: &str, name: &str, input: &str) -> Result<Begun> {
        let arn = execution_arn(machine, name);
        let call = Call::write("states:StartExecution", arn.as_deref().unwrap_or(machine));
        self.call(call, |world| {
            let arn = arn.ok_or_else(|| Problem::refused("InvalidArn", "Invalid ARN"))?;
            let plain = |c: char| {
                !c.is_whitespace() && !c.is_control() && !"<>{}[]?*\"#%\\^|~`$&,;:/".contains(c)
            };
            if !(1..=80).contains(&name.chars().count()) || !name.chars().all(plain) {
                return Err(Problem::refused("InvalidName", "Invalid name"));
            }
            if input.len() > 262_144 || !is_json(input) {
                return Err(Problem::refused("InvalidExecutionInput", "Invalid input"));
            }
            if let Some(there) = world.executions.get(&arn) {
                let open = there.execution.state == ExecutionState::Running;
                let same = open && there.execution.input == input;
                return Ok(if same { Begun::Runs(arn) } else { Begun::Taken });
            }
            let execution = Execution {
                arn: arn.clone(),
                name: name.to_owned(),
                state: ExecutionState::Running,
                started: world.now(),
                stopped: None,
                input: input.to_owned(),
                output: None,
                error: None,
            };
            world.executions.insert(arn.clone(), Ran { execution, events: Vec::new() });
            world.passes(&arn, "ExecutionStarted", None);
            Ok(Begun::Runs(arn))
        })
        .await
    }

    async fn execution(&self, arn: &str) -> Result<Option<Execution>> {
        self.call(Call::read("states:DescribeExecution", arn), |world| {
            Ok(world.executions.get(arn).map(|ran| ran.execution.clone()))
        })
        .await
    }

    async fn history(&self, arn: &str, after: u64) -> Result<Vec<Passed>> {
        self.call(Call::read("states:GetExecutionHistory", arn), |world| {
            let ran = world.executions.get(arn).ok_or_else(|| {
                Problem::refused("ExecutionDoesNotExist", "Execution Does Not Exist")
            })?;
            let later = ran.events.iter().filter(|event| event.id > after);
            Ok(later.take(1000).cloned().collect())
        })
        .await
    }

    async fn succeed(&self, token: &str, output: &str) -> Result<bool> {
        self.call(Call::write("states:SendTaskSuccess", "a waiting task"), |world| {
            if !is_json(output) {
                return Err(Problem::refused("InvalidOutput", "Invalid output"));
            }
            Ok(world.answer(token, Ok(output.to_owned())))
        })
        .await
    }

    async fn fail(&self, token: &str, error: &str, cause: &str) -> Result<bool> {
        self.call(Call::write("states:SendTaskFailure", "a waiting task"), |world| {
            Ok(world.answer(token, Err((error.to_owned(), cause.to_owned()))))
        })
        .await
    }
}

#[async_trait]
impl DeadLetters for FakeCloud {
    async fn put(&self, queue: &str, body: &str, reason: &str) -> Result<()> {
        self.call(Call::write("sqs:SendMessage", queue), |world| {
            world.letters.push(Letter {
                queue: queue.to_owned(),
                body: body.to_owned(),
                reason: reason.to_owned(),
            });
            Ok(())
        })
        .await
    }
}
