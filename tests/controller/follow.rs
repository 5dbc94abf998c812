//! A response in the state machine, followed from outside. The machine's history is the test's; its functions are a response
//! of their own on the same cloud, so that the custody log is a real one.

use std::time::Duration;

use cleanroom_cloud::{ErrorKind, ExecutionState};
use cleanroom_cloud_fake::{At, FakeCloud, Fault, World};
use cleanroom_contract::InstanceId;
use cleanroom_controller::{
    case::{Policy, Run, Step},
    execution::{self, Input},
    flow::{
        Report, at_work,
        follow::{self, FollowError, Following, pace},
    },
    progress::{Event, Progress},
};
use tokio::sync::mpsc;

use crate::support::{respond_to, run, suspect};

const MACHINE: &str = "arn:aws:states:us-east-1:123456789012:stateMachine:cleanroom-response";
const FUNCTION: &str = "arn:aws:sts::123456789012:assumed-role/cleanroom-step/cleanroom-step";
const SECOND: Duration = Duration::from_secs(1);

/// A person at a terminal, and what they are shown.
async fn person(cloud: &FakeCloud) -> (Run, mpsc::Receiver<Event>) {
    let (progress, events) = Progress::channel(1000);
    (Run { progress, ..run(cloud, Policy::default(), None).await }, events)
}

async fn begin(run: &Run) -> Following {
    follow::begin(run, MACHINE, &suspect(), (None, Some("a test"))).await.expect("started")
}

/// Passes through some states, and ends so.
fn pass(cloud: &FakeCloud, following: &Following, states: &[&str], ends: ExecutionState) {
    let arn = &following.started.arn;
    cloud.with(|world| {
        for state in states {
            world.enter(arn, state);
            world.leave(arn, state);
        }
        world.stop(arn, ends, None);
    });
}

/// What the machine's functions do, all of it, and what the machine tells of it.
async fn machine(cloud: &FakeCloud, following: &Following) -> Report {
    let functions = cloud.as_caller(FUNCTION);
    tokio::time::sleep(3 * SECOND).await;
    cloud.with(|world| {
        world.enter(&following.started.arn, "Verify");
        world.leave(&following.started.arn, "Verify");
        world.enter(&following.started.arn, "Isolate");
    });
    let work = run(&functions, Policy::default(), None).await;
    let report = respond_to(&work, &suspect()).await.expect("not refused");
    cloud.with(|world| world.leave(&following.started.arn, "Isolate"));
    pass(cloud, following, &["Preserve"], ExecutionState::Succeeded);
    report
}

fn drained(mut events: mpsc::Receiver<Event>) -> Vec<Event> {
    std::iter::from_fn(|| events.try_recv().ok()).collect()
}

#[tokio::test(start_paused = true)]
async fn a_response_in_the_state_machine_is_told_like_one_s_own() {
    let cloud = FakeCloud::new(World::plain());
    cloud.set_latency(Duration::from_millis(20));
    let (run, events) = person(&cloud).await;
    let following = begin(&run).await;
    assert_eq!(following.started.name, "i-0123456789abcdef0-1");
    let (report, own) =
        tokio::join!(follow::follow(&run, &following, pace(1)), machine(&cloud, &following));
    let report = report.expect("followed");
    assert_eq!((&report.case, report.joined), (&own.case, false));
    assert!(report.contained && report.preserved && own.preserved, "{report:#?}");
    assert_eq!(
        report.is_whole(),
        own.is_whole(),
        "{:#?}\n{:#?}",
        report.shortfalls,
        own.shortfalls
    );
    assert_eq!((&report.snapshots, &report.flushed), (&own.snapshots, &own.flushed));
    // Counted from the execution's start, three seconds before its functions began.
    let contained = report.contained_seconds.expect("contained");
    assert!((3.0..10.0).contains(&contained), "{contained}");

    let events = drained(events);
    let said = |is: fn(&Event) -> bool| events.iter().filter(|event| is(event)).count();
    assert_eq!(said(|e| matches!(e, Event::Case { joined: false, .. })), 1, "{events:#?}");
    for name in ["contained", "preserved"] {
        let of_name = |e: &&Event| matches!(e, Event::Milestone { name: n, .. } if *n == name);
        assert_eq!(events.iter().filter(of_name).count(), 1, "{name}: {events:#?}");
    }
    assert!(said(|e| matches!(e, Event::Change { step: Step::Isolate, .. })) > 0, "{events:#?}");
    assert_eq!(said(|e| matches!(e, Event::Ended { step: Step::Isolate, .. })), 1, "{events:#?}");
    // Whoever follows changes nothing but by starting.
    let changed: Vec<_> = cloud
        .changes()
        .into_iter()
        .filter(|call| call.caller != FUNCTION)
        .map(|call| call.operation)
        .collect();
    assert_eq!(changed, ["states:StartExecution"]);
}

#[tokio::test(start_paused = true)]
async fn what_a_room_tells_is_told_while_its_report_is_awaited() {
    let mut world = World::plain();
    world.add_agent();
    let cloud = FakeCloud::new(world);
    cloud.set_latency(Duration::from_millis(20));
    let (run, events) = person(&cloud).await;
    let following = begin(&run).await;
    let (report, own) =
        tokio::join!(follow::follow(&run, &following, pace(1)), machine(&cloud, &following));
    let reported = report.expect("followed").reported.expect("a report");
    assert_eq!(Some(&reported), own.reported.as_ref());
    let scan = format!("scan {}: ", reported.scan);
    let told: Vec<_> = drained(events)
        .into_iter()
        .filter_map(|event| match event {
            Event::Waiting { what, .. } => what.strip_prefix(&scan).map(str::to_owned),
            _ => None,
        })
        .collect();
    assert!(!told.is_empty(), "what the room told is shown");
    assert!(told.windows(2).all(|two| two[0] != two[1]), "and nothing twice: {told:?}");
}

#[tokio::test(start_paused = true)]
async fn a_case_that_was_there_is_joined_and_its_past_is_not_told_again() {
    let cloud = FakeCloud::new(World::plain());
    let work = run(&cloud.as_caller(FUNCTION), Policy::default(), None).await;
    let own = respond_to(&work, &suspect()).await.expect("not refused");
    tokio::time::sleep(600 * SECOND).await;
    let (run, events) = person(&cloud).await;
    let following = begin(&run).await;
    assert_eq!(following.case, own.case);
    tokio::time::sleep(SECOND).await;
    pass(&cloud, &following, &["Isolate", "Preserve"], ExecutionState::Succeeded);
    let report = follow::follow(&run, &following, pace(1)).await.expect("followed");
    assert!(report.joined && report.contained && report.preserved, "{report:#?}");
    // What was so before is counted from when this execution saw it.
    let seconds = report.contained_seconds.expect("contained");
    assert!((0.0..10.0).contains(&seconds), "{seconds}");
    let events = drained(events);
    assert!(!events.iter().any(|e| matches!(e, Event::Milestone { .. } | Event::Change { .. })));
    assert!(events.iter().any(|e| matches!(e, Event::Case { joined: true, .. })), "{events:#?}");
}

#[tokio::test(start_paused = true)]
async fn an_execution_is_joined_while_it_runs_and_has_a_successor_when_it_has_ended() {
    let cloud = FakeCloud::new(World::plain());
    let (run, _events) = person(&cloud).await;
    let first = begin(&run).await;
    let again = begin(&run).await;
    assert_eq!((&again.started.arn, again.started.joined), (&first.started.arn, false));
    let other = follow::begin(&run, MACHINE, &suspect(), (None, Some("another reason"))).await;
    let other = other.expect("joined").started;
    assert_eq!((&other.arn, other.joined), (&first.started.arn, true));
    for expected in ["i-0123456789abcdef0-1-r2", "i-0123456789abcdef0-1-r3"] {
        let last = cloud.world().executions.keys().next_back().cloned().expect("an execution");
        cloud.with(|world| world.stop(&last, ExecutionState::Aborted, None));
        assert_eq!(begin(&run).await.started.name, expected);
    }
    // The third runs, under a name that a case of another instance may have.
    let foreign: InstanceId = "i-1234abcd".parse().expect("an id");
    let case = "i-0123456789abcdef0-1-r3".parse().expect("a case id");
    let started = follow::begin(&run, MACHINE, &foreign, (Some(&case), None)).await;
    assert_eq!(started.expect("started").started.name, "i-0123456789abcdef0-1-r3-r2");
}

#[tokio::test(start_paused = true)]
async fn no_case_has_executions_without_end() {
    let cloud = FakeCloud::new(World::plain());
    let (run, _events) = person(&cloud).await;
    let input: Input = serde_json::from_value(
        serde_json::json!({"instance": suspect(), "case": "i-0123456789abcdef0-1"}),
    )
    .expect("an input");
    for _ in 0..99 {
        let started = execution::start(&*run.cloud.workflows, MACHINE, &input).await;
        let arn = started.expect("started").arn;
        cloud.with(|world| world.stop(&arn, ExecutionState::Failed, None));
    }
    let error = execution::start(&*run.cloud.workflows, MACHINE, &input).await;
    assert!(error.expect_err("too many").to_string().contains("99 executions"));
    let error = execution::start(&*run.cloud.workflows, "cleanroom-response", &input).await;
    assert!(error.expect_err("no ARN").to_string().contains("ResponseMachine"));
}

#[tokio::test(start_paused = true)]
async fn what_ends_otherwise_is_told_as_what_it_is() {
    let of = |state: &'static str, ends: ExecutionState| async move {
        let cloud = FakeCloud::new(World::plain());
        let (run, _events) = person(&cloud).await;
        let following = begin(&run).await;
        pass(&cloud, &following, &[state], ends);
        follow::follow(&run, &following, pace(1)).await
    };
    let refused = of("Refused", ExecutionState::Succeeded).await;
    assert!(matches!(refused, Err(FollowError::Refused { .. })), "{refused:?}");
    let left = of("Left", ExecutionState::Succeeded).await.expect("a report");
    assert!(!left.contained && !left.is_whole(), "{left:?}");
    assert!(left.notes.iter().any(|note| note.contains("left as it is")), "{left:?}");
    for ends in [ExecutionState::Failed, ExecutionState::TimedOut, ExecutionState::Aborted] {
        let report = of("Isolate", ends).await.expect("a report");
        assert!(!report.contained && report.shortfalls.len() == 1, "{report:?}");
    }
}

#[tokio::test(start_paused = true)]
async fn an_outage_ends_no_following_and_a_denial_does() {
    let cloud = FakeCloud::new(World::plain());
    let (run, _events) = person(&cloud).await;
    let following = begin(&run).await;
    cloud.outage_between("states:", SECOND, 120 * SECOND);
    cloud.outage("s3:");
    let ends = async {
        tokio::time::sleep(60 * SECOND).await;
        pass(&cloud, &following, &["Isolate"], ExecutionState::Succeeded);
    };
    let (report, ()) = tokio::join!(follow::follow(&run, &following, pace(1)), ends);
    let report = report.expect("followed");
    assert!(report.contained && !report.preserved, "{report:?}");
    assert!(report.notes.iter().any(|note| note.contains("custody log")), "{report:?}");

    let denied = Fault::Refuse(ErrorKind::Denied);
    cloud.fault(denied, At::Matching("states:GetExecutionHistory".to_owned(), 1));
    let error = follow::follow(&run, &following, pace(1)).await.expect_err("nobody may look");
    assert!(matches!(&error, FollowError::Lost { .. }), "{error:?}");
    assert!(error.to_string().contains("cleanroom status i-0123456789abcdef0-1"), "{error}");
}

#[tokio::test(start_paused = true)]
async fn a_bucket_that_is_down_keeps_no_execution_from_starting() {
    let cloud = FakeCloud::new(World::plain());
    let (run, _events) = person(&cloud).await;
    cloud.outage("s3:");
    assert_eq!(begin(&run).await.started.name, "i-0123456789abcdef0-1");
}

#[test]
fn many_are_looked_at_seldom_enough_for_step_functions() {
    for (executions, seconds) in [(0, 2), (20, 2), (100, 10), (1000, 100), (1_000_000, 3600)] {
        assert_eq!(pace(executions), SECOND * seconds, "{executions}");
    }
}

#[tokio::test(start_paused = true)]
async fn open_cases_are_listed_by_age_with_what_is_done_last() {
    let cloud = FakeCloud::new(World::fleet(2));
    let work = run(&cloud, Policy::default(), None).await;
    let ids: Vec<_> = cloud.world().machines.keys().take(2).cloned().collect();
    for id in &ids {
        respond_to(&work, id).await.expect("not refused");
        tokio::time::sleep(3600 * SECOND).await;
    }
    let list = || async {
        let found = at_work::at_work(&*work.cloud.store, &work.caller, cloud.now()).await;
        found.expect("a list")
    };
    let (open, odd) = list().await;
    assert!(odd.is_empty(), "{odd:?}");
    let listed: Vec<_> = open.iter().map(|it| it.instance.clone()).collect();
    assert_eq!(listed, ids);
    assert!(open[0].age_seconds >= 7200 && (3600..7200).contains(&open[1].age_seconds), "{open:?}");
    let last = open[0].last.as_ref().expect("something was done");
    assert!(last.at.seconds < open[1].opened_at.seconds, "{last:?}");

    cloud.with(|world| {
        let key = format!("cases/{}/custody/000001.json", open[0].case);
        assert!(world.bucket.newest(&key).is_some(), "the log's first event");
    });
    cloud.fault(
        Fault::Refuse(ErrorKind::Denied),
        At::Matching(format!("cases/{}/custody/", open[1].case), 1),
    );
    let (open, odd) = list().await;
    assert_eq!((open.len(), odd.len()), (2, 1), "{odd:?}");
    assert_eq!(open[1].last, None);
}
