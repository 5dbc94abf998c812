//! The state machines as they are, on an implementation of Step Functions that is not ours, with a stand-in for the program.

use std::{sync::OnceLock, time::Duration};

use serde_json::json;

use super::*;
use crate::emulators::{Kind, Moto};

const PATIENCE: Duration = Duration::from_secs(90);

/// One stack for all: to deploy it is what takes the time. It ends with the process.
fn stack() -> &'static ResponseStack {
    static STACK: OnceLock<(Moto, ResponseStack)> = OnceLock::new();
    let (_, stack) = STACK.get_or_init(|| {
        let moto = Moto::start().expect("moto");
        let world = World::build(&moto, Kind::Plain).expect("a world");
        let standin = workspace_root().join("tests/harness/emulators/standin.py");
        let program = Program { faults: true, ..Program::of(standin, String::new()) };
        (moto, ResponseStack::start(&program, &world).expect("a stack"))
    });
    stack
}

/// An instance of this test alone.
fn instance(number: u32) -> String {
    format!("i-{number:017x}")
}

/// Starts a response, and waits for its end.
fn responded(number: u32, more: &Value) -> (Execution, Vec<String>) {
    let (stack, instance) = (stack(), instance(number));
    let case = format!("{instance}-1");
    let mut input = json!({ "instance": instance, "case": case });
    for (name, value) in more.as_object().into_iter().flatten() {
        input[name] = value.clone();
    }
    stack.begin("ResponseMachine", &case, &input).expect("it starts");
    let ended = stack.ended(&case, PATIENCE).expect("it ends");
    (ended, stack.entered(&case).expect("its history"))
}

/// How often a step was asked of an instance.
fn asked(number: u32, step: &str) -> usize {
    let instance = instance(number);
    let lines = stack().logs().expect("logs");
    let lines = lines.iter().filter_map(|line| serde_json::from_str::<Value>(line).ok());
    lines.filter(|line| line["step"] == step && line["event"]["instance"] == instance).count()
}

#[test]
fn a_response_passes_from_alert_to_report() {
    let (ended, entered) = responded(1, &json!({}));
    assert_eq!(ended.status, "SUCCEEDED", "{ended:?}");
    assert_eq!(entered.last().map(String::as_str), Some("Done"), "{entered:?}");
    let result = ended.result();
    // Each of the three rooms was read back twice, since the first time was not enough.
    let rooms = result["rooms"].as_array().expect("rooms");
    assert!(rooms.len() == 3 && rooms.iter().all(|r| r["read"]["going"] == false), "{rooms:?}");
    for (step, times) in [
        ("protect", 1),
        ("detach", 1),
        ("snapshot", 1),
        ("prepare", 1),
        ("isolate", 2),
        ("flush", 1),
        ("revoke", 1),
        ("tag", 1),
        ("record", 1),
        ("notify", 1),
        ("balancers", 1),
        ("preserve", 2),
        ("order", 3),
        ("clean_room", 3),
        ("read_back", 6),
        ("report", 1),
    ] {
        assert_eq!(asked(1, step), times, "{step}");
    }
}

#[test]
fn a_person_is_asked_and_answers() {
    let (ended, entered) = responded(2, &json!({"approval": "needed"}));
    assert_eq!(ended.status, "SUCCEEDED", "{ended:?}");
    assert_eq!(ended.result()["answer"]["by"], "a person");
    let at = |state: &str| entered.iter().position(|s| s == state).expect(state);
    assert!(at("Beforehand") < at("Ask") && at("Ask") < at("Before"), "{entered:?}");
}

#[test]
fn a_step_that_crashes_does_not_keep_the_response_from_its_end() {
    let stack = stack();
    for step in ["verify", "open", "protect", "isolate", "record", "clean_room", "report"] {
        stack.fault(&instance(3), step, StepFault::Crash, 1).expect("a fault");
    }
    let (ended, entered) = responded(3, &json!({}));
    assert!(!stack.faults_left(&instance(3)), "every fault happened");
    // The step that isolates has crashed, so the function that does nothing else was asked; and the room's end was not
    // waited for where nobody would tell it.
    assert!(entered.iter().any(|state| state == "Contain only"), "{entered:?}");
    assert_eq!(ended.status, "SUCCEEDED", "{ended:?}");
    assert!(entered.iter().any(|state| state == "Report anyway"), "{entered:?}");
    let said = |notice: &Value| {
        let text = notice["body"].as_str().unwrap_or_default();
        text.contains("could not report") && text.contains(&instance(3))
    };
    let look = || Ok(stack.notices()?.iter().any(said).then_some(()));
    stack.wait("a notice by the machine itself", PATIENCE, look).expect("people are told");
}

#[test]
fn an_incident_of_many_starts_each_once() {
    let stack = stack();
    let item = |n: u32| json!({ "instance": instance(n), "case": format!("{}-1", instance(n)) });
    let items: Vec<_> = [10, 11, 12, 11].into_iter().map(item).collect();
    let input = json!({ "instances": items, "max_concurrency": 2, "pace": 1 });
    stack.begin("ManyMachine", "incident", &input).expect("it starts");
    for number in 10..=12 {
        let ended = stack.ended(&format!("{}-1", instance(number)), PATIENCE).expect("it ends");
        assert_eq!(ended.status, "SUCCEEDED", "{ended:?}");
        assert_eq!(asked(number, "report"), 1);
    }
}

#[test]
fn an_execution_that_is_stopped_is_told_to_contain_only() {
    let stack = stack();
    let case = format!("{}-1", instance(20));
    stack.fault(&instance(20), "snapshot", StepFault::Hang, 1).expect("a fault");
    let input = json!({ "instance": instance(20), "case": case });
    stack.begin("ResponseMachine", &case, &input).expect("it starts");
    let hangs = || Ok((!stack.faults_left(&instance(20))).then_some(()));
    stack.wait("its snapshots", PATIENCE, hangs).expect("it hangs");
    stack.stop(&case).expect("it is stopped");
    let told = |line: &String| line.contains("ABORTED") && line.contains(&instance(20));
    let look = || Ok(stack.logs()?.iter().any(told).then_some(()));
    stack.wait("contain-only to be told", PATIENCE, look).expect("the rule fits");
}
