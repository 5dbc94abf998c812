//! The state machine that is shipped, walked with the steps themselves against the cloud in memory: it comes to what
//! `respond` comes to, whatever fails on the way.

mod counts;
mod drill;
mod rooms;

use std::{cell::RefCell, collections::BTreeSet, fs, time::Duration};

use cleanroom_cloud_fake::{FakeCloud, World};
use cleanroom_contract::{CaseId, InstanceId};
use cleanroom_controller::{
    brake::{AtDeadline, BrakePolicy},
    case::{Policy, Run},
    execution::{Ask, Failed},
    flow::{approval, approval::Decision, contain_only, single, status},
    journal::{self, Ledger, verify},
};
use cleanroom_harness::{
    asl::{self, Answer, Call, Ended, Walk},
    tools::workspace_root,
};
use serde_json::{Value, json};
use tokio::runtime::Runtime;

use crate::support::{
    assert_contained, changes_since, everything, respond, respond_to, run, suspect,
};

/// What becomes of a function's invocation.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Fate {
    /// It never runs.
    Crash,
    /// It does its work, and its answer is lost.
    Lost,
    /// It never runs, the first time.
    Throttled,
}

/// The functions, in this account.
struct Functions {
    runtime: Runtime,
    cloud: FakeCloud,
    policy: Policy,
    /// What happens to the invocations of one state.
    fate: Option<(String, Fate)>,
    /// What the execution is given besides.
    given: Value,
    /// What a person answers when asked; none where nobody does.
    word: Option<Decision>,
    /// After so many invocations nothing answers any more: the execution was stopped.
    stops: Option<usize>,
    /// The states whose functions were invoked, each with its facts.
    invoked: RefCell<Vec<(String, Value)>>,
}

impl Functions {
    /// In a new account.
    fn new(world: &World, policy: Policy) -> Self {
        let runtime = runtime();
        let cloud = runtime.block_on(async { FakeCloud::new(world.clone()) });
        Self {
            runtime,
            cloud,
            policy,
            fate: None,
            given: json!({ "reason": "a test" }),
            word: None,
            stops: None,
            invoked: RefCell::default(),
        }
    }

    fn walk(&mut self) -> Walk {
        self.walk_for(&suspect())
    }

    fn walk_for(&mut self, instance: &InstanceId) -> Walk {
        let mut input = json!({ "instance": instance, "case": format!("{instance}-1") });
        let given = self.given.as_object().expect("fields").clone();
        input.as_object_mut().expect("fields").extend(given);
        asl::walk(&machine(), &input, self)
    }

    fn invoke(&self, payload: &Value) -> Answer {
        let ask: Ask = serde_json::from_value(payload.clone()).expect("what the machine asks");
        let done = self.runtime.block_on(async {
            // Time passes between two states.
            tokio::time::sleep(Duration::from_secs(60)).await;
            let mut run = run(&self.cloud, self.policy.clone(), None).await;
            run.started = tokio::time::Instant::now();
            let done = match payload["step"].as_str() {
                Some("contain") => contain_only::contain(&run, &ask).await,
                _ => single::perform(&run, &ask).await,
            };
            run.shared.finish_units().await;
            if payload["step"] == "ask" && done.is_ok() {
                return self.asked(&ask, &run).await;
            }
            if payload["step"] == "clean_room" && done.is_ok() {
                // The room's agent ends the task.
                tokio::time::sleep(Duration::from_secs(3600)).await;
            }
            done
        });
        match done {
            // Nobody ended the task.
            Ok(facts) if facts == json!("nobody") => Answer::Nothing,
            Ok(facts) => {
                let step = payload["step"].as_str().unwrap_or_default();
                let most = match step {
                    "open" => 64 << 10,
                    "preserve" => 8 << 10,
                    _ => 2 << 10,
                };
                assert!(facts.to_string().len() <= most, "{step} says too much: {facts}");
                Answer::Result(facts)
            }
            Err(failed) if failed.retryable => Answer::Error("Cleanroom.Retryable".to_owned()),
            Err(_) => Answer::Error("Cleanroom.Failed".to_owned()),
        }
    }
}

impl Functions {
    /// A person has been asked, and answers, or does not.
    async fn asked(&self, ask: &Ask, run: &Run) -> Result<Value, Failed> {
        let Some(word) = self.word else {
            let seconds = ask.asked["seconds"].as_u64().expect("until the next question");
            tokio::time::sleep(Duration::from_secs(seconds)).await;
            return Ok(json!("nobody"));
        };
        let (case, question) = approval::question(run, &case()).await.expect("it is asked");
        assert!(question.asked.is_some());
        let given = approval::answer(run, &case, (word, Some("a test"))).await;
        assert_eq!(given.unlogged, None);
        Ok(json!({ "decision": word, "by": run.caller.arn }))
    }
}

impl asl::World for Functions {
    fn answer(&mut self, call: &Call<'_>) -> Answer {
        let payload = &call.parameters["Payload"];
        if payload.is_null() {
            return Answer::Result(json!({"MessageId": "1"}));
        }
        let number = self.invoked.borrow().len();
        self.invoked.borrow_mut().push((call.state.to_owned(), Value::Null));
        if self.stops.is_some_and(|stops| number >= stops) {
            return Answer::Nothing;
        }
        let fate =
            self.fate.as_ref().filter(|(state, _)| state == call.state).map(|(_, fate)| *fate);
        let answer = match fate {
            Some(Fate::Crash) => Answer::Error("Runtime.ExitError".to_owned()),
            Some(Fate::Lost) => {
                self.invoke(payload);
                Answer::Nothing
            }
            Some(Fate::Throttled) => {
                self.fate = None;
                Answer::Error("Lambda.TooManyRequestsException".to_owned())
            }
            None => self.invoke(payload),
        };
        if let Answer::Result(facts) = &answer {
            self.invoked.borrow_mut()[number].1 = facts.clone();
        }
        answer
    }

    fn breaks(&mut self, _state: &str) -> Option<String> {
        None
    }

    fn talks(&self) -> bool {
        false
    }
}

fn runtime() -> Runtime {
    let mut builder = tokio::runtime::Builder::new_current_thread();
    builder.enable_all().start_paused(true).build().expect("a runtime")
}

fn machine() -> Value {
    let path = workspace_root().join("cloudformation/response.asl.json");
    serde_json::from_str(&fs::read_to_string(path).expect("the machine")).expect("JSON")
}

fn tasks() -> Vec<String> {
    let all = asl::all_states(&machine());
    all.into_iter().filter(|(_, state)| state["Type"] == "Task").map(|(name, _)| name).collect()
}

fn case() -> CaseId {
    format!("{}-1", suspect()).parse().expect("a case id")
}

async fn ledger(cloud: &FakeCloud) -> Ledger {
    let events = journal::read(&*cloud.cloud().store, &case()).await.expect("the log");
    Ledger::of(events.iter().map(|(event, _)| event))
}

fn done() -> Ended {
    Ended::Succeeded("Done".to_owned())
}

/// The changes that were made, whoever made them in which order. Ids that the cloud gives are left out.
fn changes(cloud: &FakeCloud) -> BTreeSet<String> {
    let masked = |word: &str| match word.split_once("-0a000000") {
        Some((kind, _)) => kind.to_owned(),
        None => word.to_owned(),
    };
    let of = |change: String| change.split(' ').take(4).map(masked).collect::<Vec<_>>().join(" ");
    let changes = changes_since(cloud, 0).into_iter();
    // The log of several writers has other numbers.
    changes.filter(|change| !change.contains("/custody/")).map(of).collect()
}

#[test]
fn the_machine_comes_to_what_respond_comes_to() {
    let world = World::full();
    let mut functions = Functions::new(&world, everything());
    let cloud = functions.cloud.clone();
    let walk = functions.walk();
    assert_eq!(walk.ended, done(), "{:#?}", functions.invoked);
    let by_hand = functions.runtime.block_on(async {
        assert_contained(&cloud, &world, "machine").await;
        let by_hand = FakeCloud::new(world.clone());
        let report = respond(&by_hand, None).await;
        let ledger = ledger(&cloud).await;
        assert_eq!(ledger.shortfalls, report.shortfalls);
        assert!(ledger.notified.contains("contained") && ledger.notified.contains("preserved"));
        by_hand
    });
    let (ours, theirs) = (changes(&cloud), changes(&by_hand));
    let differ: Vec<_> = ours.symmetric_difference(&theirs).collect();
    assert!(differ.is_empty(), "{differ:#?}");
}

#[test]
fn whatever_function_fails_the_instance_is_contained() {
    let mut left = Vec::new();
    for fate in [Fate::Crash, Fate::Lost, Fate::Throttled] {
        for state in tasks() {
            let world = World::full();
            let mut functions = Functions::new(&world, Policy::default());
            let cloud = functions.cloud.clone();
            functions.fate = Some((state.clone(), fate));
            let walk = functions.walk();
            if !cloud.world().is_cut(&suspect()) {
                left.push(format!("{state} {fate:?}: {:?}", walk.ended));
            }
            functions.runtime.block_on(async {
                let verdict =
                    verify::verify(&*cloud.cloud().store, &case()).await.expect("the store");
                assert!(verdict.faults.is_empty(), "{state} {fate:?}: {:#?}", verdict.faults);
            });
            let sets = cloud.with(|w| {
                let sets = w.snapshots.iter().filter_map(|s| s.tags.get("cleanroom:set"));
                sets.cloned().collect::<BTreeSet<_>>().len()
            });
            assert!(sets <= 1, "{state} {fate:?}: {sets} sets of snapshots");
        }
    }
    assert!(left.is_empty(), "{left:#?}");
}

#[test]
fn an_execution_that_was_stopped_is_started_anew_and_goes_on() {
    let all = {
        let mut functions = Functions::new(&World::full(), everything());
        functions.walk();
        functions.invoked.borrow().len()
    };
    for stops in 0..all {
        let world = World::full();
        let mut functions = Functions::new(&world, everything());
        let cloud = functions.cloud.clone();
        functions.stops = Some(stops);
        functions.walk();
        functions.stops = None;
        functions.invoked.borrow_mut().clear();
        assert_eq!(functions.walk().ended, done(), "stopped after {stops}");
        functions.runtime.block_on(async {
            assert_contained(&cloud, &world, &format!("stopped after {stops}")).await;
            assert_eq!(ledger(&cloud).await.shortfalls, Vec::new(), "stopped after {stops}");
        });
    }
}

#[test]
fn who_is_exempt_is_refused_and_people_are_told() {
    let policy = Policy { exempt: vec![suspect().to_string()], ..Policy::default() };
    let mut functions = Functions::new(&World::plain(), policy);
    let cloud = functions.cloud.clone();
    assert_eq!(functions.walk().ended, Ended::Succeeded("Refused".to_owned()));
    let changes = changes(&cloud);
    assert!(changes.iter().all(|change| change.starts_with("sns:Publish")), "{changes:?}");
    cloud.with(|w| {
        assert_eq!(w.bucket.keys("instances/"), Vec::<String>::new());
        let told = format!("{:?}", w.notices);
        assert!(told.contains("refused") && told.contains("exempt"), "{told}");
    });
}

#[test]
fn without_a_bucket_it_is_contained_and_what_was_not_logged_is_told() {
    let mut functions = Functions::new(&World::full(), Policy::default());
    let cloud = functions.cloud.clone();
    cloud.outage("s3");
    functions.walk();
    assert!(cloud.world().is_cut(&suspect()), "{:#?}", functions.invoked);
    let invoked = functions.invoked.borrow();
    let open = &invoked.iter().find(|(state, _)| state == "Open").expect("it is opened").1;
    assert!(open["original"].is_object() && open["weak"].is_string(), "{open}");
    assert!(invoked.iter().any(|(_, facts)| facts["late"].as_u64() > Some(0)), "{invoked:#?}");
}

#[test]
fn a_case_that_was_opened_without_a_bucket_is_claimed_and_logged_once_it_answers() {
    runtime().block_on(async {
        let cloud = FakeCloud::new(World::full());
        let at_work = run(&cloud, Policy::default(), None).await;
        let perform = async |step: &str, open: &Value| {
            let asked = json!({
                "step": step, "instance": suspect(), "case": case(), "open": open,
                "input": { "reason": "a test" },
            });
            let ask: Ask = serde_json::from_value(asked).expect("an ask");
            single::perform(&at_work, &ask).await.expect(step)
        };
        cloud.outage("s3");
        let open = perform("open", &json!({})).await;
        assert!(open["weak"].is_string(), "{open}");
        perform("isolate", &open).await;
        cloud.end_outage("s3");
        // What was passed on of another instance begins no log.
        let mut other = open.clone();
        other["original"]["instance"]["id"] = json!("i-0aaaaaaaaaaaaaaa0");
        let asked = json!({ "step": "tag", "instance": suspect(), "case": case(), "open": other });
        let ask: Ask = serde_json::from_value(asked).expect("an ask");
        single::perform(&at_work, &ask).await.expect_err("it is another's");
        assert_eq!(cloud.world().bucket.keys("cases/"), Vec::<String>::new());
        let claims = || cloud.world().bucket.keys("instances/");
        for _ in 0..2 {
            perform("tag", &open).await;
            assert_eq!(claims().len(), 1, "{:?}", claims());
        }
        let claim = cloud.world().bucket.newest(&claims()[0]).expect("a claim").to_vec();
        let claim: Value = serde_json::from_slice(&claim).expect("JSON");
        assert_eq!(claim["case"], json!(case()));
        let ledger = ledger(&cloud).await;
        let original = ledger.original.expect("the log says how it was");
        assert_eq!(original.instance.id, suspect());
        // The alert that comes next is this case's.
        let again = perform("open", &json!({})).await;
        assert_eq!((&again["case"], &again["joined"]), (&json!(case()), &json!(true)));
    });
}

#[test]
fn nothing_is_done_to_a_case_that_a_person_released() {
    runtime().block_on(async {
        let cloud = FakeCloud::new(World::full());
        let at_work = run(&cloud, Policy::default(), None).await;
        respond_to(&at_work, &suspect()).await.expect("contained");
        let proposal = cleanroom_controller::flow::release::propose(&at_work, &case()).await;
        let proposal = proposal.expect("it can be released");
        cleanroom_controller::flow::release::carry_out(&at_work, proposal, None).await.expect("it is released");
        let before = cloud.calls().len();
        for step in ["isolate", "revoke", "snapshot", "contain"] {
            let asked = json!({ "step": step, "instance": suspect(), "case": case(), "open": {"case": case()} });
            let ask: Ask = serde_json::from_value(asked).expect("an ask");
            let failed = single::perform(&at_work, &ask).await.expect_err("it was released");
            assert!(!failed.retryable && failed.why.contains("released"), "{step}: {failed}");
        }
        assert_eq!(changes_since(&cloud, before as u64), Vec::<String>::new());
    });
}

/// When a function that was invoked now must have answered.
fn soon() -> tokio::time::Instant {
    tokio::time::Instant::now() + Duration::from_secs(280)
}

/// Contained, and looked after.
async fn contained(cloud: &FakeCloud) -> Run {
    let at_work = run(cloud, Policy::default(), None).await;
    respond_to(&at_work, &suspect()).await.expect("contained");
    run(cloud, Policy::default(), None).await
}

#[test]
fn what_is_undone_behind_our_back_is_done_again() {
    let world = World::full();
    runtime().block_on(async {
        let cloud = FakeCloud::new(world.clone());
        let at_work = contained(&cloud).await;
        let watched = contain_only::watch(&at_work, soon()).await.expect("the cases").watched;
        assert_eq!(watched.len(), 1);
        assert_eq!((watched[0].contained, watched[0].drift.len()), (Some(true), 0), "{watched:?}");
        let undo = || {
            cloud.with(|w| {
                let before = world.machine(&suspect()).expect("the suspect").cards.clone();
                for card in before {
                    let now = w.card_mut(&card.interface.id).expect("its card");
                    now.interface.groups = card.interface.groups.clone();
                }
            });
        };
        undo();
        let watched = contain_only::watch(&at_work, soon()).await.expect("the cases").watched;
        assert!(!watched[0].drift.is_empty() && watched[0].contained == Some(true), "{watched:?}");
        assert!(cloud.world().is_cut(&suspect()));
        undo();
        let interface =
            world.machine(&suspect()).expect("the suspect").cards[0].interface.id.clone();
        let event =
            |name: &str| json!({"detail": {"requestParameters": {"networkInterfaceId": name}}});
        let nobodys = contain_only::concerning(&at_work, &event("eni-0fedcba9876543210")).await;
        assert_eq!(nobodys.expect("it is looked up"), Vec::<Value>::new());
        assert!(!cloud.world().is_cut(&suspect()));
        let ours = contain_only::concerning(&at_work, &event(interface.as_str())).await;
        assert_eq!(ours.expect("it is looked up").len(), 1);
        assert!(cloud.world().is_cut(&suspect()));
        let status = status::status(&at_work, &case()).await.expect("its status");
        assert!(status.drift.is_empty(), "{status:#?}");
    });
}

#[test]
fn an_execution_that_ended_before_its_time_leaves_an_instance_contained() {
    runtime().block_on(async {
        let cloud = FakeCloud::new(World::full());
        let at_work = run(&cloud, Policy::default(), None).await;
        let input = json!({ "instance": suspect(), "case": case() }).to_string();
        let event = json!({ "detail": { "status": "FAILED", "input": input } });
        let done = contain_only::concerning(&at_work, &event).await.expect("it is contained");
        assert_eq!(done[0]["contained"], true, "{done:?}");
        at_work.shared.finish_units().await;
        assert!(cloud.world().is_cut(&suspect()));
        assert!(
            contain_only::concerning(&at_work, &json!({"detail": {"input": "?"}})).await.is_err()
        );
    });
}

/// Alerts by message are asked about, and this is done where nobody answers.
fn asking(at_deadline: AtDeadline) -> Policy {
    let ask_after = BTreeSet::from(["message".to_owned()]);
    let brake = BrakePolicy { ask_after, at_deadline, ..BrakePolicy::default() };
    Policy { brake, ..Policy::default() }
}

#[test]
fn a_person_is_asked_and_their_word_or_the_deadline_decides() {
    for (word, at_deadline, ended) in [
        (Some(Decision::Contain), AtDeadline::Leave, "Done"),
        (Some(Decision::Leave), AtDeadline::Contain, "Left"),
        (None, AtDeadline::Contain, "Done"),
        (None, AtDeadline::Leave, "Left"),
    ] {
        let mut functions = Functions::new(&World::full(), asking(at_deadline));
        functions.given = json!({ "source": { "by": "message" }, "reason": "a beacon" });
        functions.word = word;
        let walk = functions.walk();
        let what = format!("{word:?} {at_deadline:?}");
        assert_eq!(walk.ended, Ended::Succeeded(ended.to_owned()), "{what}");
        let cloud = functions.cloud.clone();
        assert_eq!(cloud.world().is_cut(&suspect()), ended == "Done", "{what}");
        // What does no harm was done before anybody answered.
        assert!(cloud.with(|w| !w.snapshots.is_empty()), "{what}");
        let invoked = functions.invoked.borrow();
        let asks = invoked.iter().filter(|(state, _)| state == "Ask").count();
        assert!(if word.is_some() { asks == 1 } else { asks > 1 }, "{what}: asked {asks} times");
    }
}

#[test]
fn that_an_execution_was_stopped_is_no_approval() {
    runtime().block_on(async {
        let cloud = FakeCloud::new(World::full());
        let at_work = run(&cloud, asking(AtDeadline::Contain), None).await;
        let source = json!({ "by": "message" });
        let input = json!({ "instance": suspect(), "case": case(), "source": source }).to_string();
        let event = json!({ "detail": { "status": "ABORTED", "input": input } });
        let done = contain_only::concerning(&at_work, &event).await.expect("it is looked up");
        assert_eq!(done, [json!({ "contained": false, "asks": true })]);
        assert!(!cloud.world().is_cut(&suspect()));
        let (case, _) = approval::question(&at_work, &case()).await.expect("a case");
        approval::answer(&at_work, &case, (Decision::Contain, None)).await;
        let done = contain_only::concerning(&at_work, &event).await.expect("it is contained");
        assert_eq!(done[0]["contained"], true, "{done:?}");
        assert!(cloud.world().is_cut(&suspect()));
        at_work.shared.finish_units().await;
    });
}
