//! State machines over Step Functions.
//!
//! Purpose: start executions, follow them, and answer tasks that wait for a word. Touches Step Functions. Never decides what
//! is started, and takes nothing of an execution for true: its input and its errors are text.

use std::sync::Arc;

use async_trait::async_trait;
use aws_sdk_sfn::types::{ExecutionStatus, HistoryEvent};
use cleanroom_cloud::{
    Begun, CloudError, Execution, ExecutionState, Passed, Result, Workflows, execution_arn,
};

use crate::{
    clients::Clients,
    ec2::timestamp,
    error::{bad_answer, fail},
    pages::{MAX_PAGES, too_many},
};

/// The most events that are handed over at a time, which is also the most of one page (API reference, `GetExecutionHistory`).
const MOST_EVENTS: u16 = 1000;

/// The size of a page read from the newest backwards: who follows an execution lacks a few.
const NEWEST: u16 = 100;

/// The most of an error's name, and of its cause, in characters (API reference, `SendTaskFailure`).
const MOST_OF_ERROR: (usize, usize) = (256, 32_768);

/// What Step Functions says of a token for which nothing waits, or never did.
const NOTHING_WAITS: [&str; 3] = ["TaskTimedOut", "TaskDoesNotExist", "InvalidToken"];

/// State machines, over Step Functions.
#[derive(Debug)]
pub(crate) struct SfnWorkflows {
    clients: Arc<Clients>,
}

impl SfnWorkflows {
    /// Sends nothing.
    pub(crate) fn new(clients: Arc<Clients>) -> Self {
        Self { clients }
    }

    /// What happened after the event `after`, read from the newest backwards until there, oldest first.
    async fn since(&self, arn: &str, after: u64) -> Result<Vec<Passed>> {
        const OPERATION: &str = "states:GetExecutionHistory";
        let sfn = &self.clients.sfn;
        let (mut found, mut token) = (Vec::new(), None);
        for _ in 0..MAX_PAGES {
            let ask = sfn.get_execution_history().execution_arn(arn).reverse_order(true);
            let ask = ask.max_results(i32::from(NEWEST)).include_execution_data(false);
            let page = ask.set_next_token(token).send().await;
            let page = page.map_err(|e| fail(OPERATION, arn, e))?;
            let events = page.events.into_iter().map(passed);
            let before = found.len();
            found.extend(events.take_while(|event| event.id > after));
            token = page.next_token;
            // The rest is known already, or there is no more.
            if token.is_none() || found.len() - before < usize::from(NEWEST) {
                found.reverse();
                found.truncate(usize::from(MOST_EVENTS));
                return Ok(found);
            }
        }
        Err(too_many(OPERATION, arn))
    }
}

/// An event in our words.
fn passed(event: HistoryEvent) -> Passed {
    let entered = event.state_entered_event_details.map(|details| details.name);
    let left = || event.state_exited_event_details.map(|details| details.name);
    Passed {
        id: u64::try_from(event.id).unwrap_or_default(),
        at: timestamp(event.timestamp),
        kind: event.r#type.as_str().to_owned(),
        state: entered.or_else(left),
    }
}

/// How far an execution is; none for a word that Step Functions did not have when this was written.
fn state(status: &ExecutionStatus) -> Option<ExecutionState> {
    Some(match status {
        ExecutionStatus::Running | ExecutionStatus::PendingRedrive => ExecutionState::Running,
        ExecutionStatus::Succeeded => ExecutionState::Succeeded,
        ExecutionStatus::Failed => ExecutionState::Failed,
        ExecutionStatus::TimedOut => ExecutionState::TimedOut,
        ExecutionStatus::Aborted => ExecutionState::Aborted,
        _ => return None,
    })
}

/// Whether a word reached somebody who waited for it.
fn heard(answer: std::result::Result<(), CloudError>) -> Result<bool> {
    match answer {
        Ok(()) => Ok(true),
        Err(error) if NOTHING_WAITS.contains(&error.code.as_str()) => Ok(false),
        Err(error) => Err(error),
    }
}

/// The first characters of a text.
fn first(text: &str, characters: usize) -> String {
    text.chars().take(characters).collect()
}

#[async_trait]
impl Workflows for SfnWorkflows {
    async fn start(&self, machine: &str, name: &str, input: &str) -> Result<Begun> {
        const OPERATION: &str = "states:StartExecution";
        let resource = execution_arn(machine, name).unwrap_or_else(|| machine.to_owned());
        let ask = self.clients.sfn.start_execution().state_machine_arn(machine);
        let answer = ask.name(name).input(input).send().await;
        match answer.map_err(|e| fail(OPERATION, resource, e)) {
            Ok(answer) => Ok(Begun::Runs(answer.execution_arn)),
            Err(error) if error.code == "ExecutionAlreadyExists" => Ok(Begun::Taken),
            Err(error) => Err(error),
        }
    }

    async fn execution(&self, arn: &str) -> Result<Option<Execution>> {
        const OPERATION: &str = "states:DescribeExecution";
        let answer = self.clients.sfn.describe_execution().execution_arn(arn).send().await;
        let answer = match answer.map_err(|e| fail(OPERATION, arn, e)) {
            Ok(answer) => answer,
            Err(error) if error.code == "ExecutionDoesNotExist" => return Ok(None),
            Err(error) => return Err(error),
        };
        let state = state(&answer.status);
        let cause = answer.cause.unwrap_or_default();
        Ok(Some(Execution {
            state: state.ok_or_else(|| bad_answer(OPERATION, arn, "a status that is known"))?,
            name: answer.name.ok_or_else(|| bad_answer(OPERATION, arn, "name"))?,
            arn: answer.execution_arn,
            started: timestamp(answer.start_date),
            stopped: answer.stop_date.map(timestamp),
            input: answer.input.unwrap_or_default(),
            output: answer.output,
            error: answer.error.map(|error| (error, cause)),
        }))
    }

    async fn history(&self, arn: &str, after: u64) -> Result<Vec<Passed>> {
        const OPERATION: &str = "states:GetExecutionHistory";
        if after > 0 {
            return self.since(arn, after).await;
        }
        let ask = self.clients.sfn.get_execution_history().execution_arn(arn);
        let ask = ask.max_results(i32::from(MOST_EVENTS)).include_execution_data(false);
        let page = ask.send().await.map_err(|e| fail(OPERATION, arn, e))?;
        Ok(page.events.into_iter().map(passed).collect())
    }

    async fn succeed(&self, token: &str, output: &str) -> Result<bool> {
        const OPERATION: &str = "states:SendTaskSuccess";
        let answer = self.clients.sfn.send_task_success().task_token(token).output(output);
        // The token is a word that opens: it is in no error.
        heard(answer.send().await.map(|_| ()).map_err(|e| fail(OPERATION, "a waiting task", e)))
    }

    async fn fail(&self, token: &str, error: &str, cause: &str) -> Result<bool> {
        const OPERATION: &str = "states:SendTaskFailure";
        let (most, most_of_cause) = MOST_OF_ERROR;
        let answer = self.clients.sfn.send_task_failure().task_token(token);
        let answer = answer.error(first(error, most)).cause(first(cause, most_of_cause));
        heard(answer.send().await.map(|_| ()).map_err(|e| fail(OPERATION, "a waiting task", e)))
    }
}

#[cfg(test)]
mod tests {
    use cleanroom_cloud::ErrorKind;
    use serde_json::{Value, json};

    use super::*;
    use crate::canned::{Canned, canned};

    const MACHINE: &str = "arn:aws:states:us-east-1:123456789012:stateMachine:cleanroom-response";
    const ARN: &str =
        "arn:aws:states:us-east-1:123456789012:execution:cleanroom-response:i-0123456789abcdef0-1";

    fn workflows(canned: &Canned) -> SfnWorkflows {
        SfnWorkflows::new(Arc::clone(&canned.clients))
    }

    /// An error as Step Functions writes it.
    fn error(code: &str) -> (u16, String) {
        (400, json!({"__type": code, "message": "why it said no"}).to_string())
    }

    /// The operation and the body of a request.
    fn read(sent: &str) -> (&str, Value) {
        let (head, body) = sent.split_once('{').expect("a body");
        let operation = head.split("AWSStepFunctions.").nth(1).expect("an operation").trim();
        (operation, serde_json::from_str(&format!("{{{body}")).expect("JSON"))
    }

    #[tokio::test]
    async fn a_name_that_is_taken_is_an_answer_and_nothing_else_is() {
        let canned = canned(None, |_, before| match before {
            0 => (200, json!({"executionArn": ARN, "startDate": 1.0}).to_string()),
            1 => error("ExecutionAlreadyExists"),
            _ => error("StateMachineDoesNotExist"),
        });
        let port = workflows(&canned);
        let start = || port.start(MACHINE, "i-0123456789abcdef0-1", "{\"a\":1}");
        assert_eq!(start().await, Ok(Begun::Runs(ARN.to_owned())));
        assert_eq!(start().await, Ok(Begun::Taken));
        let error = start().await.expect_err("there is no such machine");
        assert_eq!(error.operation, "states:StartExecution");
        assert_eq!((error.resource.as_str(), error.kind), (ARN, ErrorKind::Refused));
        let (operation, body) = (canned.sent()[0].clone(), &canned.sent()[0]);
        assert!(operation.contains("StartExecution"), "{operation}");
        let expected = json!({"stateMachineArn": MACHINE, "name": "i-0123456789abcdef0-1", "input": "{\"a\":1}"});
        assert_eq!(read(body).1, expected);
    }

    #[tokio::test]
    async fn a_start_that_was_throttled_is_repeated() {
        let canned = canned(None, |_, before| match before {
            0 => error("ThrottlingException"),
            _ => (200, json!({"executionArn": ARN, "startDate": 1.0}).to_string()),
        });
        assert_eq!(
            workflows(&canned).start(MACHINE, "x", "{}").await,
            Ok(Begun::Runs(ARN.to_owned()))
        );
        assert_eq!(canned.sent().len(), 2);
    }

    #[tokio::test]
    async fn an_execution_is_told_with_why_it_failed() {
        let canned = canned(None, |_, before| {
            match before {
            0 => (
                200,
                json!({"executionArn": ARN, "stateMachineArn": MACHINE, "name": "n", "status": "FAILED",
                    "startDate": 1_767_225_600.5, "stopDate": 1_767_225_700.0, "input": "{}",
                    "error": "Cleanroom.NotContained", "cause": "eni-0123456789abcdef0"})
                .to_string(),
            ),
            _ => error("ExecutionDoesNotExist"),
        }
        });
        let port = workflows(&canned);
        let found = port.execution(ARN).await.expect("an answer").expect("an execution");
        assert_eq!(found.state, ExecutionState::Failed);
        assert_eq!((found.started.seconds, found.started.nanos), (1_767_225_600, 500_000_000));
        assert_eq!(found.stopped.map(|at| at.seconds), Some(1_767_225_700));
        let why = ("Cleanroom.NotContained".to_owned(), "eni-0123456789abcdef0".to_owned());
        assert_eq!(found.error, Some(why));
        assert_eq!(port.execution(ARN).await, Ok(None));
    }

    /// A page of events with these numbers.
    fn page(ids: impl Iterator<Item = u64>, next: Option<&str>) -> (u16, String) {
        let events: Vec<_> = ids
            .map(|id| {
                json!({"id": id, "timestamp": 1.0, "type": "TaskStateEntered",
                    "stateEnteredEventDetails": {"name": format!("State {id}")}})
            })
            .collect();
        (200, json!({"events": events, "nextToken": next}).to_string())
    }

    #[tokio::test]
    async fn history_is_read_back_to_what_is_known_and_no_further() {
        let canned = canned(None, |_, before| match before {
            0 => page((151..=250).rev(), Some("second")),
            1 => page((51..=150).rev(), Some("third")),
            _ => panic!("nobody needs a third page"),
        });
        let events = workflows(&canned).history(ARN, 120).await.expect("events");
        let ids: Vec<_> = events.iter().map(|event| event.id).collect();
        assert_eq!(ids, (121..=250).collect::<Vec<_>>());
        assert_eq!(events[0].state.as_deref(), Some("State 121"));
        assert_eq!(events[0].kind, "TaskStateEntered");
        let (operation, body) = (&canned.sent()[1], read(&canned.sent()[1]).1);
        assert!(operation.contains("GetExecutionHistory"), "{operation}");
        assert_eq!(body["nextToken"], "second");
        assert_eq!(body["includeExecutionData"], false);
    }

    #[tokio::test]
    async fn a_thousand_events_are_handed_over_at_a_time_and_none_is_left_out() {
        let canned = canned(None, |text, before| {
            if text.contains("reverseOrder") {
                let newest = 2_500 - 100 * (before as u64 - 1);
                page((newest - 99..=newest).rev(), Some("more"))
            } else {
                page(1..=1000, Some("more"))
            }
        });
        let port = workflows(&canned);
        let first = port.history(ARN, 0).await.expect("events");
        assert_eq!(first.last().map(|event| event.id), Some(1000));
        let second = port.history(ARN, 1000).await.expect("events");
        assert_eq!((second.len(), second[0].id), (1000, 1001));
    }

    #[tokio::test]
    async fn a_task_that_nobody_waits_for_is_no_error() {
        for code in NOTHING_WAITS {
            let canned = canned(None, move |_, _| error(code));
            let port = workflows(&canned);
            assert_eq!(port.succeed("token", "{}").await, Ok(false), "{code}");
            assert_eq!(port.fail("token", "Cleanroom.Left", "a person").await, Ok(false), "{code}");
        }
        let canned = canned(None, |_, before| match before {
            0 => (200, "{}".to_owned()),
            _ => error("InvalidOutput"),
        });
        let port = workflows(&canned);
        assert_eq!(port.succeed("secret-token", "{}").await, Ok(true));
        let error = port.succeed("secret-token", "?").await.expect_err("no JSON");
        assert!(!error.to_string().contains("secret-token"), "{error}");
    }

    #[tokio::test]
    async fn a_long_cause_is_cut_to_what_can_be_sent() {
        let canned = canned(None, |_, _| (200, "{}".to_owned()));
        let port = workflows(&canned);
        assert_eq!(port.fail("t", &"e".repeat(300), &"ü".repeat(40_000)).await, Ok(true));
        let (operation, body) = (canned.sent()[0].clone(), read(&canned.sent()[0]).1);
        assert!(operation.contains("SendTaskFailure"), "{operation}");
        assert_eq!(body["error"].as_str().map(str::len), Some(256));
        assert_eq!(body["cause"].as_str().map(|cause| cause.chars().count()), Some(32_768));
    }
}
