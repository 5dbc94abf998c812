//! A person is asked, reminded, answers, or does not.

use std::{collections::BTreeSet, time::Duration};

use cleanroom_cloud::ErrorKind;
use cleanroom_cloud_fake::{At, CALLER, FakeCloud, Fault, World};
use cleanroom_contract::CaseId;
use cleanroom_controller::{
    alert::{Part, Source},
    brake::{AtDeadline, BrakePolicy, counted},
    case::{Case, Policy, Run, Step},
    execution::{Approval, Input},
    flow::{
        approval::{Decision, Due, answer, ask, due, needed, question},
        find, status,
    },
    journal,
};
use serde_json::{Value, json};

use crate::support::{respond, respond_to, run, suspect};

fn policy(brake: BrakePolicy) -> Policy {
    Policy { brake, ..Policy::default() }
}

/// No automatic containment at all.
fn none() -> BrakePolicy {
    BrakePolicy { per_hour: 0, ..BrakePolicy::default() }
}

/// The suspect's case, opened and guarded and no more, at work again with this brake.
async fn opened(cloud: &FakeCloud, brake: BrakePolicy) -> (Run, Case) {
    let steps = BTreeSet::from([Step::Verify, Step::Protect]);
    let guards = run(cloud, Policy { steps, ..Policy::default() }, None).await;
    let report = respond_to(&guards, &suspect()).await.expect("the suspect is not refused");
    again(cloud, &report.case, brake).await
}

/// The same case in another process.
async fn again(cloud: &FakeCloud, case: &CaseId, brake: BrakePolicy) -> (Run, Case) {
    let run = run(cloud, policy(brake), None).await;
    let (case, _, _) = find::open(&run, case).await.expect("it is there");
    (run, case)
}

fn message(case: &Case) -> Input {
    Input {
        instance: case.scene.instance.clone(),
        case: case.scene.case.clone(),
        source: Some(Source::Message { named: Some("edr".to_owned()) }),
        part: Some(Part::Unsaid),
        reason: Some("a beacon".to_owned()),
        approval: None,
        otherwise: None,
    }
}

async fn whole(cloud: &FakeCloud, case: &CaseId) {
    let store = cloud.cloud().store;
    let verdict = journal::verify::verify(&*store, case).await.expect("the store answers");
    assert!(verdict.faults.is_empty(), "{:#?}", verdict.faults);
}

#[tokio::test(start_paused = true)]
async fn a_person_is_asked_beyond_the_budget_and_never_about_what_a_person_began() {
    let cloud = FakeCloud::new(World::full());
    let (_, within) = opened(&cloud, BrakePolicy::default()).await;
    let id = within.scene.case.clone();
    let alert = message(&within);
    assert_eq!(needed(&within, &alert).await, Vec::<String>::new());
    let (_, beyond) = again(&cloud, &id, none()).await;
    let why = needed(&beyond, &alert).await;
    assert!(why.iter().any(|why| why.contains("the budget is 0")), "{why:?}");
    assert_eq!(needed(&beyond, &alert).await, why, "asked again it is the same");
    let by_hand = Input { source: None, ..alert.clone() };
    assert_eq!(needed(&beyond, &by_hand).await, Vec::<String>::new());
    let wanted = Input { approval: Some(Approval::Needed), ..by_hand };
    assert_eq!(needed(&beyond, &wanted).await.len(), 1);
}

#[tokio::test(start_paused = true)]
async fn a_broken_bucket_holds_no_containment_up_but_a_target_is_asked_about() {
    let cloud = FakeCloud::new(World::full());
    let brake = BrakePolicy { per_hour: 1, ..BrakePolicy::default() };
    let (run, case) = opened(&cloud, brake).await;
    let alert = message(&case);
    let earlier: CaseId = "c-earlier".parse().expect("a case id");
    let whose = (&case.scene.original.instance, None);
    let now = run.clock.now();
    counted(&*case.store, &run.caller, whose, &earlier, now).await.expect("it is counted");
    tokio::time::sleep(Duration::from_secs(2)).await;
    assert_eq!(needed(&case, &alert).await.len(), 1);
    cloud.outage("s3:");
    assert_eq!(needed(&case, &alert).await, Vec::<String>::new());
    let notes = case.notes.lock().expect("nobody panicked").clone();
    assert!(notes.iter().any(|note| note.contains("could not be counted")), "{notes:?}");
    let target = Input { part: Some(Part::Target), ..alert };
    assert_eq!(needed(&case, &target).await.len(), 1);
}

#[tokio::test(start_paused = true)]
async fn what_is_contained_already_is_asked_about_no_more() {
    let cloud = FakeCloud::new(World::full());
    let report = respond(&cloud, None).await;
    let (run, case) = again(&cloud, &report.case, none()).await;
    assert_eq!(needed(&case, &message(&case)).await, Vec::<String>::new());
    let error = question(&run, &report.case).await.expect_err("nothing waits");
    assert!(error.to_string().contains("is contained since"), "{error}");
}

#[tokio::test(start_paused = true)]
async fn a_question_is_logged_once_and_told_with_the_command_each_time() {
    let cloud = FakeCloud::new(World::full());
    let (_, case) = opened(&cloud, none()).await;
    let alert = message(&case);
    let before = cloud.world().notices.len();
    for (round, token) in [(1, "token-1"), (1, "token-1"), (2, "token-2")] {
        ask(&case, &alert, (round, token)).await.expect("people are asked");
    }
    let notices = cloud.world().notices.split_off(before);
    assert_eq!(notices.len(), 2, "a question, a reminder, and nothing for what was tried again");
    for notice in &notices {
        let command = format!(
            "to contain it: cleanroom approve {} --region us-east-1 --bucket {}\n",
            case.scene.case,
            case.store.bucket()
        );
        assert!(notice.text.contains(&command), "{}", notice.text);
        assert!(notice.text.contains("an alert (message) says: a beacon"), "{}", notice.text);
        assert!(notice.text.contains("it is contained"), "{}", notice.text);
        assert!(notice.subject.is_ascii() && notice.subject.len() < 100, "{}", notice.subject);
    }
    let store = cloud.cloud().store;
    let events = journal::read(&*store, &case.scene.case).await.expect("it is read");
    let asked = events.iter().filter(|(event, _)| {
        event.entries().any(|(_, _, body)| matches!(body, journal::event::Body::Asked { .. }))
    });
    assert_eq!(asked.count(), 1);
    let kept = cloud.world().bucket.keys(&format!("cases/{}/approval/", case.scene.case));
    assert_eq!(kept.len(), 2, "{kept:?}");
    whole(&cloud, &case.scene.case).await;
}

#[tokio::test(start_paused = true)]
async fn a_person_s_answer_ends_the_task_that_waits_and_is_in_the_log() {
    for decision in [Decision::Contain, Decision::Leave] {
        let cloud = FakeCloud::new(World::full());
        let (_, case) = opened(&cloud, none()).await;
        let (id, alert) = (case.scene.case.clone(), message(&case));
        assert_eq!(due(&case, &alert, 1).await, Due::Wait { seconds: 900 });
        for (round, token) in [(1, "token-1"), (2, "token-2")] {
            ask(&case, &alert, (round, token)).await.expect("people are asked");
        }
        // The first task has timed out since.
        cloud.with(|world| world.wait_for("token-2"));

        let (run, case) = again(&cloud, &id, none()).await;
        let (_, asked) = question(&run, &id).await.expect("it waits");
        let asked = asked.asked.expect("people were asked");
        assert!(asked.why[0].contains("the budget is 0"), "{:?}", asked.why);
        let given = answer(&run, &case, (decision, Some("seen it"))).await;
        assert_eq!((given.went_on, given.unlogged, given.untold.len()), (1, None, 0));

        let ended = cloud.world().tokens["token-2"].answer.clone().expect("it ended");
        let output: Value = serde_json::from_str(&ended.expect("well")).expect("JSON");
        assert_eq!(output, json!({"decision": decision, "by": CALLER}));
        let (_, later) = again(&cloud, &id, none()).await;
        assert_eq!(due(&later, &alert, 3).await, Due::Decided(decision));
        let answered = later.journal.ledger().await.answered.expect("it is in the log");
        assert_eq!((answered.by.as_str(), answered.reason.as_deref()), (CALLER, Some("seen it")));
        whole(&cloud, &id).await;
    }
}

#[tokio::test(start_paused = true)]
async fn where_no_task_waits_the_log_alone_tells_and_the_last_answer_holds() {
    let cloud = FakeCloud::new(World::full());
    let (run, case) = opened(&cloud, none()).await;
    let alert = message(&case);
    ask(&case, &alert, (1, "token-1")).await.expect("people are asked");
    for decision in [Decision::Leave, Decision::Contain] {
        let given = answer(&run, &case, (decision, None)).await;
        assert_eq!((given.went_on, given.untold.len()), (0, 0));
        assert_eq!(due(&case, &alert, 2).await, Due::Decided(decision));
    }
}

#[tokio::test(start_paused = true)]
async fn silence_ends_at_the_deadline_as_was_set() {
    for (at_deadline, otherwise, expected) in [
        (AtDeadline::Contain, None, Decision::Contain),
        (AtDeadline::Leave, None, Decision::Leave),
        (AtDeadline::Contain, Some(AtDeadline::Leave), Decision::Leave),
    ] {
        let cloud = FakeCloud::new(World::full());
        let brake = BrakePolicy { at_deadline, ..none() };
        let (_, case) = opened(&cloud, brake.clone()).await;
        let alert = Input { otherwise, ..message(&case) };
        let id = case.scene.case.clone();
        let mut waited = 0;
        let mut round = 1;
        // As the state machine does: look, ask, wait, and look again in a new process.
        let decided = loop {
            let (_, case) = again(&cloud, &id, brake.clone()).await;
            match due(&case, &alert, round).await {
                Due::Decided(decided) => break decided,
                Due::Wait { seconds } => {
                    assert!((60..=86_400).contains(&seconds), "{seconds}");
                    let token = format!("token-{round}");
                    ask(&case, &alert, (round, &token)).await.expect("people are asked");
                    tokio::time::sleep(Duration::from_secs(seconds)).await;
                    waited += seconds;
                    round += 1;
                }
            }
        };
        assert_eq!(decided, expected);
        assert_eq!((waited, round), (3600, 5), "four times, and not past the deadline");
        whole(&cloud, &id).await;
    }
}

#[tokio::test(start_paused = true)]
async fn status_shows_that_a_case_waits_and_what_was_answered() {
    let cloud = FakeCloud::new(World::full());
    let (run, case) = opened(&cloud, none()).await;
    ask(&case, &message(&case), (1, "token-1")).await.expect("people are asked");
    let id = &case.scene.case;
    let waits = status::status(&run, id).await.expect("it is there");
    let asked = waits.asked.expect("it waits");
    assert_eq!(asked.deadline.seconds - asked.at.seconds, 3600);
    assert_eq!(waits.answered, None);
    answer(&run, &case, (Decision::Leave, None)).await;
    let left = status::status(&run, id).await.expect("it is there");
    assert_eq!(left.answered.map(|answered| answered.decision), Some(Decision::Leave));
}

#[tokio::test(start_paused = true)]
async fn only_where_nothing_could_be_done_asking_fails() {
    let cloud = FakeCloud::new(World::full());
    let (_, case) = opened(&cloud, none()).await;
    let alert = message(&case);
    cloud.outage("s3:");
    ask(&case, &alert, (1, "token-1")).await.expect("people are told");
    cloud.outage("sns:");
    let failed = ask(&case, &alert, (2, "token-2")).await.expect_err("nobody is asked");
    assert!(failed.retryable && failed.why.contains("nobody was told"), "{failed}");
    cloud.end_outage("s3:");
    let (run, case) = again(&cloud, &case.scene.case, none()).await;
    ask(&case, &alert, (3, "token-3")).await.expect("the token is kept");
    cloud.with(|world| world.wait_for("token-3"));
    let denied = At::Matching("states:".to_owned(), 1);
    cloud.faults(Fault::Refuse(ErrorKind::Denied), denied, u64::MAX);
    let given = answer(&run, &case, (Decision::Contain, None)).await;
    assert_eq!((given.went_on, given.untold.len()), (0, 1));
}
