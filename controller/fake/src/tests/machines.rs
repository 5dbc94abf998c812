//! Names of executions, tokens, and dead letters.

use cleanroom_cloud::{Begun, DeadLetters as _, ErrorKind, ExecutionState, Workflows as _};

use crate::{At, FakeCloud, Fault, World};

const MACHINE: &str = "arn:aws:states:us-east-1:123456789012:stateMachine:cleanroom-response";

#[tokio::test(start_paused = true)]
async fn a_name_is_the_same_execution_while_it_is_open_and_has_the_same_input() {
    let fake = FakeCloud::new(World::plain());
    let Begun::Runs(arn) = fake.start(MACHINE, "a", "{}").await.expect("started") else {
        panic!("a free name is taken");
    };
    assert_eq!(fake.start(MACHINE, "a", "{}").await, Ok(Begun::Runs(arn.clone())));
    assert_eq!(fake.start(MACHINE, "a", "[]").await, Ok(Begun::Taken));
    fake.with(|world| {
        world.enter(&arn, "Verify");
        world.leave(&arn, "Verify");
        world.stop(&arn, ExecutionState::Failed, Some(("E", "why")));
    });
    assert_eq!(fake.start(MACHINE, "a", "{}").await, Ok(Begun::Taken));
    assert_eq!(fake.world().executions.len(), 1);
    let kinds = |after: u64| {
        let (fake, arn) = (fake.clone(), arn.clone());
        async move {
            let events = fake.history(&arn, after).await.expect("events");
            events.into_iter().map(|event| event.kind).collect::<Vec<_>>()
        }
    };
    let all = ["ExecutionStarted", "TaskStateEntered", "TaskStateExited", "ExecutionFailed"];
    assert_eq!(kinds(0).await, all);
    assert_eq!(kinds(2).await, all[2..]);
    let ended = fake.execution(&arn).await.expect("an answer").expect("an execution");
    assert_eq!(ended.error, Some(("E".to_owned(), "why".to_owned())));
    assert_eq!(fake.execution("arn:none").await, Ok(None));
}

#[tokio::test(start_paused = true)]
async fn what_step_functions_refuses_is_refused() {
    let fake = FakeCloud::new(World::plain());
    for (machine, name, input, code) in [
        ("cleanroom-response", "a", "{}", "InvalidArn"),
        (MACHINE, "a b", "{}", "InvalidName"),
        (MACHINE, &*"a".repeat(81), "{}", "InvalidName"),
        (MACHINE, "a", "?", "InvalidExecutionInput"),
    ] {
        let error = fake.start(machine, name, input).await.expect_err("refused");
        assert_eq!((error.kind, error.code.as_str()), (ErrorKind::Refused, code));
    }
    assert!(fake.world().executions.is_empty());
}

#[tokio::test(start_paused = true)]
async fn a_task_has_one_answer() {
    let fake = FakeCloud::new(World::plain());
    fake.with(|world| world.wait_for("t"));
    assert_eq!(fake.succeed("u", "{}").await, Ok(false), "nothing waits for it");
    assert_eq!(fake.succeed("t", "{\"a\":1}").await, Ok(true));
    assert_eq!(fake.fail("t", "E", "late").await, Ok(false));
    assert_eq!(fake.world().tokens["t"].answer, Some(Ok("{\"a\":1}".to_owned())));
}

#[tokio::test(start_paused = true)]
async fn letters_are_kept_and_lost_as_anything_else() {
    let fake = FakeCloud::new(World::plain());
    fake.fault(Fault::Refuse(ErrorKind::Throttled), At::Matching("sqs:".to_owned(), 1));
    assert!(fake.put("queue", "???", "no JSON").await.is_err());
    assert!(fake.world().letters.is_empty());
    fake.put("queue", "???", "no JSON").await.expect("kept");
    let letters = fake.world().letters;
    assert_eq!((letters[0].body.as_str(), letters[0].reason.as_str()), ("???", "no JSON"));
}
