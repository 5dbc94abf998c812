//! The clean room against the cloud in memory: launched once, awaited, read back, scanned again and taken down; and what is
//! told where any of that goes wrong.

mod again;
mod broken;
mod coverage;
mod patience;
mod retry;
pub(crate) mod several;
mod standing;
mod vouched;

use cleanroom_cloud_fake::{FakeCloud, RoomEnds, World};
use cleanroom_contract::{CaseId, Severity, WorkOrder};
use cleanroom_controller::{
    case::{Policy, Step},
    flow::{
        Report,
        fetch::{self, FetchError},
        rescan::{self, Rescanned},
        status, teardown,
    },
    journal::{self, Ledger, verify},
    room::{Given, RoomPolicy},
};

use crate::support::{assert_contained, changes_since, respond, respond_to, run, suspect};

fn case() -> CaseId {
    format!("{}-1", suspect()).parse().expect("a case id")
}

/// A world with everything, and an agent in its bucket.
fn world() -> World {
    let mut world = World::full();
    world.add_agent();
    world
}

fn small() -> World {
    let mut world = World::plain();
    world.add_agent();
    world
}

async fn ledger(cloud: &FakeCloud) -> Ledger {
    let events = journal::read(&*cloud.cloud().store, &case()).await.expect("the log");
    Ledger::of(events.iter().map(|(event, _)| event))
}

async fn assert_custody(cloud: &FakeCloud, what: &str) {
    let verdict = verify::verify(&*cloud.cloud().store, &case()).await.expect("the store");
    assert!(verdict.faults.is_empty(), "{what}: {:#?}", verdict.faults);
}

/// How many stacks were made.
fn stacks(cloud: &FakeCloud) -> usize {
    cloud.with(|w| w.built.len() + w.buried.len())
}

fn orders(cloud: &FakeCloud) -> usize {
    cloud.with(|w| w.bucket.keys(&format!("cases/{}/orders/", case())).len())
}

/// The newest order.
fn newest_order(cloud: &FakeCloud) -> WorkOrder {
    cloud.with(|w| {
        let keys = w.bucket.keys(&format!("cases/{}/orders/", case()));
        let bytes = keys.last().and_then(|key| w.bucket.newest(key)).expect("an order");
        serde_json::from_slice(bytes).expect("it is one")
    })
}

fn short_of_the_room(report: &Report) -> Vec<&str> {
    let short = report.shortfalls.iter().filter(|s| s.step == Step::CleanRoom);
    short.map(|s| s.what.as_str()).collect()
}

/// Subjects of what the team was told.
fn told(cloud: &FakeCloud) -> Vec<String> {
    cloud.with(|w| w.notices.iter().map(|n| n.subject.clone()).collect())
}

fn rules(names: &[&str]) -> RoomPolicy {
    let given = |name: &&str| Given {
        name: (*name).to_owned(),
        bytes: format!("rule {} {{ condition: true }}", name.replace('.', "_")).into_bytes().into(),
    };
    RoomPolicy { rules: names.iter().map(given).collect(), ..RoomPolicy::default() }
}

async fn rescan(cloud: &FakeCloud, names: &[&str]) -> Rescanned {
    let policy = Policy { room: rules(names), ..Policy::default() };
    let run = run(cloud, policy, None).await;
    rescan::rescan(&run, &case()).await.expect("the case is there")
}

async fn tear_down(cloud: &FakeCloud) -> teardown::TornDown {
    let run = run(cloud, Policy::default(), None).await;
    let proposal = teardown::propose(&run, &case()).await.expect("the case is there");
    teardown::carry_out(proposal).await.expect("it can be looked at")
}

#[tokio::test(start_paused = true)]
async fn a_response_goes_all_the_way_to_the_report() {
    let before = world();
    let cloud = FakeCloud::new(before.clone());
    let report = respond(&cloud, None).await;
    assert!(report.is_whole(), "{report:#?}");
    let reported = report.reported.expect("a report");
    assert_eq!(reported.summary.findings.get(Severity::Critical), 1);
    assert!(reported.bundle.ends_with(&format!("/bundles/{}/", reported.scan)), "{reported:?}");
    assert_contained(&cloud, &before, "with a room").await;
    assert_custody(&cloud, "with a room").await;
    let ledger = ledger(&cloud).await;
    let exhibits = &ledger.reports[&reported.scan].exhibits;
    let names: Vec<_> = exhibits.iter().filter_map(|e| e.key.rsplit('/').next()).collect();
    assert_eq!(names, ["SHA256SUMS", "findings.jsonl", "report.json"]);
    assert!(ledger.orders.contains_key(&reported.scan));
    let told = told(&cloud);
    assert!(told.iter().any(|t| t.ends_with("reported")), "{told:?}");

    let stack = cloud.with(|w| w.built.values().next().expect("a stack").stack.clone());
    assert_eq!(stack.name, format!("cleanroom-{}", case()));
    let parameter = |name: &str| stack.parameters.get(name).map(String::as_str);
    assert_eq!(parameter("Zone"), Some("us-east-1a"));
    assert_eq!(parameter("ImageId"), Some("ami-0fedcba9876543210"));
    assert_eq!(parameter("KmsKey"), Some(cleanroom_cloud_fake::CASE_KEY));
    assert_eq!(
        parameter("BucketKey"),
        Some(cleanroom_cloud_fake::CASE_KEY),
        "the room reads with it"
    );
    assert_eq!(parameter("RootGib"), Some("83"));
    assert_eq!(parameter("InstanceType"), Some("m6i.4xlarge"), "608 GiB in all");
    let snapshots = stack.parameters.keys().filter(|name| name.starts_with("Snapshot"));
    assert_eq!(snapshots.count(), 3);
    assert_eq!(stack.tags["cleanroom:case"], case().as_str());

    let calls = cloud.calls().len() as u64;
    let again = respond(&cloud.restarted(), None).await;
    assert!(again.is_whole() && again.reported.is_some(), "{again:#?}");
    assert_eq!(changes_since(&cloud, calls), Vec::<String>::new());
}

#[tokio::test(start_paused = true)]
async fn copies_under_the_case_s_key_are_what_is_examined() {
    let cloud = FakeCloud::new(world());
    respond(&cloud, None).await;
    let used: Vec<String> = cloud.with(|w| {
        let stack = &w.built.values().next().expect("a stack").stack;
        let named = stack.parameters.iter().filter(|(name, _)| name.starts_with("Snapshot"));
        named.map(|(_, id)| id.clone()).collect()
    });
    for id in used {
        let key = cloud
            .with(|w| w.snapshots.iter().find(|s| s.id.as_str() == id).expect("it").key.clone());
        assert_ne!(key.as_deref(), Some(cleanroom_cloud_fake::AWS_MANAGED_KEY), "{id}");
    }
}

#[tokio::test(start_paused = true)]
async fn without_an_agent_the_response_is_whole_and_says_how_to_get_one() {
    let cloud = FakeCloud::new(World::plain());
    let report = respond(&cloud, None).await;
    assert!(report.is_whole() && report.reported.is_none(), "{report:#?}");
    let note = report.notes.iter().find(|n| n.contains("no agent")).expect("a note");
    assert!(note.contains("deploy --artifacts"), "{note}");
    assert_eq!((stacks(&cloud), orders(&cloud)), (0, 0));
    // Who asks for the room by name is told that it is short.
    let room = RoomPolicy { asked: true, ..RoomPolicy::default() };
    let asked = run(&cloud, Policy { room, ..Policy::default() }, None).await;
    let report = respond_to(&asked, &suspect()).await.expect("not refused");
    assert!(!report.is_whole());
    assert_eq!(short_of_the_room(&report), ["no clean room: the bucket has no agent"]);
}

#[tokio::test(start_paused = true)]
async fn a_pointer_to_another_key_is_not_followed() {
    let cloud = FakeCloud::new(small());
    cloud.with(|w| {
        let text = w.bucket.newest("artifacts/latest.json").expect("it").to_vec();
        let text = String::from_utf8(text).expect("JSON").replace("agent/", "cases/");
        w.bucket.overwrite("artifacts/latest.json", text.into_bytes());
    });
    let report = respond(&cloud, None).await;
    let short = short_of_the_room(&report);
    assert!(short.len() == 1 && short[0].contains("another key"), "{short:?}");
    assert_eq!(stacks(&cloud), 0);
}

#[tokio::test(start_paused = true)]
async fn a_stack_that_fails_names_the_first_resource_and_the_next_run_makes_another() {
    let before = world();
    let cloud = FakeCloud::new(before.clone());
    let quota = "The maximum number of VPCs has been reached. (Service: Ec2, Status Code: 400)";
    cloud.with(|w| w.room.fails = Some(("RoomVpc".to_owned(), quota.to_owned())));
    let report = respond(&cloud, None).await;
    assert!(!report.is_whole() && report.reported.is_none());
    let short = short_of_the_room(&report);
    assert_eq!(short.len(), 1, "{short:?}");
    assert!(short[0].contains("RoomVpc") && short[0].contains(quota), "{short:?}");
    assert!(!short[0].to_lowercase().contains("rollback"), "{short:?}");
    assert_contained(&cloud, &before, "a room that failed").await;
    assert_eq!((stacks(&cloud), orders(&cloud)), (1, 1));

    cloud.with(|w| w.room.fails = None);
    let report = respond(&cloud.restarted(), None).await;
    assert!(report.is_whole() && report.reported.is_some(), "{report:#?}");
    assert_eq!((stacks(&cloud), orders(&cloud)), (2, 1), "the same order, another stack");
    assert_custody(&cloud, "a second room").await;
}

#[tokio::test(start_paused = true)]
async fn somebody_else_s_stack_of_the_name_is_left_alone() {
    let cloud = FakeCloud::new(small());
    respond(&cloud, None).await;
    tear_down(&cloud).await;
    let name = format!("cleanroom-{}", case());
    rescan(&cloud, &["a.yar"]).await;
    cloud.with(|w| {
        let stack = &mut w.built.get_mut(&name).expect("a stack").stack;
        stack.tags.insert("cleanroom:case".to_owned(), "another".to_owned());
    });
    let torn = tear_down(&cloud).await;
    assert!(!torn.whole && torn.shortfalls[0].what.contains("not this case's"), "{torn:?}");
    let again = rescan(&cloud, &["b.yar"]).await;
    assert!(again.shortfalls.iter().any(|s| s.what.contains("not this case's")), "{again:?}");
    assert!(cloud.with(|w| w.built.contains_key(&name)));
}

#[tokio::test(start_paused = true)]
async fn a_snapshot_that_ends_in_error_makes_no_room() {
    let cloud = FakeCloud::new(small());
    cloud.with(|w| {
        let volume = w.volumes.keys().next().expect("a volume").clone();
        w.failing_volumes.insert(volume);
    });
    let report = respond(&cloud, None).await;
    assert!(report.contained && !report.is_whole(), "{report:#?}");
    let short = short_of_the_room(&report);
    assert!(short.len() == 1 && short[0].contains("no good snapshot"), "{short:?}");
    assert_eq!((stacks(&cloud), orders(&cloud)), (0, 0));
}

#[tokio::test(start_paused = true)]
async fn a_volume_that_never_attaches_makes_the_case_partial_until_a_rescan_sees_it() {
    let cloud = FakeCloud::new(world());
    cloud.with(|w| w.room.missing = 1);
    let report = respond(&cloud, None).await;
    assert!(report.reported.is_some() && !report.is_whole(), "{report:#?}");
    let short = short_of_the_room(&report);
    assert!(short.len() == 1 && short[0].contains("never saw vol-"), "{short:?}");
    let seen = ledger(&cloud).await;
    let missing = &seen.reports.values().next().expect("a report").missing;
    let original = seen.original.as_ref().expect("it").volumes();
    assert!(missing.len() == 1 && original.contains(&missing[0]), "{missing:?}");
    let again = respond(&cloud.restarted(), None).await;
    assert_eq!(short_of_the_room(&again), short, "it stays so");
    cloud.with(|w| w.room.missing = 0);
    let rescanned = rescan(&cloud, &[]).await;
    assert!(rescanned.is_whole(), "{rescanned:#?}");
    let report = respond(&cloud.restarted(), None).await;
    assert!(report.is_whole(), "{report:#?}");
}

#[tokio::test(start_paused = true)]
async fn a_bundle_with_a_wrong_digest_is_refused_told_and_ordered_anew() {
    let cloud = FakeCloud::new(small());
    cloud.with(|w| w.room.spoilt = Some("findings.jsonl".to_owned()));
    let with_rules = async |cloud: &FakeCloud| {
        let policy = Policy { room: rules(&["a.yar"]), ..Policy::default() };
        let run = run(cloud, policy, None).await;
        respond_to(&run, &suspect()).await.expect("not refused")
    };
    let report = with_rules(&cloud).await;
    assert!(report.reported.is_none() && !report.is_whole(), "{report:#?}");
    let short = short_of_the_room(&report);
    assert!(short.len() == 1 && short[0].contains("findings.jsonl has SHA-256"), "{short:?}");
    let seen = ledger(&cloud).await;
    assert!(seen.reports.is_empty(), "nothing of it is evidence");
    let refused: Vec<_> = seen.refused.into_iter().collect();
    assert!(refused.len() == 1 && refused[0].1.contains("findings.jsonl"), "{refused:?}");
    let told = told(&cloud);
    assert!(told.iter().any(|t| t.ends_with("unreported")), "{told:?}");
    assert!(!told.iter().any(|t| t.ends_with(" reported")), "{told:?}");
    let look = run(&cloud, Policy::default(), None).await;
    let scan =
        status::status(&look, &case()).await.expect("it is there").scans.pop().expect("a scan");
    assert_eq!(scan.refused.as_ref(), Some(&refused[0].1));
    // What the room tells of a bundle that was refused is not waited for again, nor joined.
    cloud.with(|w| w.room.spoilt = None);
    let report = with_rules(&cloud.restarted()).await;
    assert!(report.is_whole() && report.reported.is_some(), "{report:#?}");
    assert_eq!((stacks(&cloud), orders(&cloud)), (1, 2), "the same room, another order");
    assert_custody(&cloud, "a bundle that was refused").await;
}

#[tokio::test(start_paused = true)]
async fn a_rescan_whose_bundle_is_refused_is_ordered_anew_by_the_next() {
    let cloud = FakeCloud::new(small());
    let first = respond(&cloud, None).await.reported.expect("a report").scan;
    cloud.with(|w| w.room.spoilt = Some("findings.jsonl".to_owned()));
    let refused = rescan(&cloud, &["a.yar"]).await;
    assert!(refused.reported.is_none() && !refused.is_whole(), "{refused:#?}");
    cloud.with(|w| w.room.spoilt = None);
    // What the response reported stands, and a response knows nothing of the rescan's rules.
    let report = respond(&cloud.restarted(), None).await;
    assert_eq!(report.reported.as_ref().map(|r| &r.scan), Some(&first), "{report:#?}");
    assert!(report.notes.iter().any(|n| n.contains("not relied on")), "{report:#?}");
    let again = rescan(&cloud, &["a.yar"]).await;
    assert!(again.is_whole() && again.scan != refused.scan, "{again:#?}");
    assert_eq!((stacks(&cloud), orders(&cloud)), (1, 3));
}

#[tokio::test(start_paused = true)]
async fn the_token_of_the_task_that_waits_is_in_the_order() {
    let cloud = FakeCloud::new(small());
    let room = RoomPolicy { task_token: Some("AAAAKgAAAAIA".to_owned()), ..rules(&["a.yar"]) };
    let run = run(&cloud, Policy { room, ..Policy::default() }, None).await;
    let report = respond_to(&run, &suspect()).await.expect("not refused");
    assert!(report.is_whole(), "{report:#?}");
    assert_eq!(newest_order(&cloud).task_token.as_deref(), Some("AAAAKgAAAAIA"));
    let stack = cloud.with(|w| w.built.values().next().expect("a stack").stack.clone());
    assert_eq!(stack.parameters["UsesStates"], "true", "the room reaches Step Functions");
    // Nobody waits for what a person orders.
    rescan(&cloud, &["b.yar"]).await;
    assert_eq!(newest_order(&cloud).task_token, None);
}

#[tokio::test(start_paused = true)]
async fn a_room_that_falls_silent_is_told_and_joined_again() {
    for events in [0, 2] {
        let cloud = FakeCloud::new(small());
        cloud.with(|w| w.room.ends = RoomEnds::FallsSilent(events));
        let report = respond(&cloud, None).await;
        assert!(!report.is_whole());
        let short = short_of_the_room(&report);
        assert!(short.len() == 1 && short[0].contains("is silent"), "{short:?}");
        assert_eq!(short[0].contains("volumes are attached"), events == 2, "{short:?}");
        let told = told(&cloud);
        assert_eq!(told.iter().filter(|t| t.ends_with("unreported")).count(), 1, "{told:?}");
        // It comes to itself: the next run waits for the same scan in the same room.
        cloud.with(|w| {
            w.room.ends = RoomEnds::Publishes;
            w.wake_rooms();
        });
        let again = respond(&cloud.restarted(), None).await;
        assert!(again.is_whole() && again.reported.is_some(), "{again:#?}");
        assert_eq!((stacks(&cloud), orders(&cloud)), (1, 1));
    }
}

#[tokio::test(start_paused = true)]
async fn a_scan_that_fails_is_ordered_anew_by_the_next_run() {
    let cloud = FakeCloud::new(small());
    cloud.with(|w| w.room.ends = RoomEnds::Fails("no space is left".to_owned()));
    let report = respond(&cloud, None).await;
    let short = short_of_the_room(&report);
    assert!(short.len() == 1 && short[0].contains("no space is left"), "{short:?}");
    cloud.with(|w| w.room.ends = RoomEnds::Publishes);
    let again = respond(&cloud.restarted(), None).await;
    assert!(again.is_whole() && again.reported.is_some(), "{again:#?}");
    assert_eq!((stacks(&cloud), orders(&cloud)), (1, 2), "the same room, another order");
}

#[tokio::test(start_paused = true)]
async fn a_fetched_bundle_is_whole_goes_on_and_overwrites_nothing() {
    let cloud = FakeCloud::new(small());
    let report = respond(&cloud, None).await;
    let scan = report.reported.expect("a report").scan;
    let run = run(&cloud, Policy::default(), None).await;
    let folder = tempfile::tempdir().expect("a folder");
    let out = folder.path().join("bundle");
    let fetched = fetch::fetch(&run, &case(), None, Some(&out)).await.expect("it comes");
    assert_eq!((&fetched.scan, fetched.came, fetched.kept), (&scan, 3, 0));
    assert!(fetched.logged);
    let list = std::fs::read_to_string(out.join("SHA256SUMS")).expect("the list");
    assert_eq!(list.lines().count(), 2, "{list}");
    // As an ended run leaves it: one file is missing, another half there.
    std::fs::remove_file(out.join("report.json")).expect("removed");
    std::fs::write(out.join("report.json.part"), b"half").expect("written");
    let again = fetch::fetch(&run, &case(), Some(&scan), Some(&out)).await.expect("it goes on");
    assert_eq!((again.came, again.kept), (1, 2));
    assert!(!out.join("report.json.part").exists());
    std::fs::write(out.join("report.json"), b"mine").expect("written");
    let error = fetch::fetch(&run, &case(), None, Some(&out)).await.expect_err("it is another");
    assert!(matches!(error, FetchError::Taken { .. }), "{error}");
    assert_eq!(std::fs::read(out.join("report.json")).expect("read"), b"mine");
}

#[tokio::test(start_paused = true)]
async fn a_bundle_that_was_tampered_with_does_not_arrive() {
    let cloud = FakeCloud::new(small());
    let report = respond(&cloud, None).await;
    let scan = report.reported.expect("a report").scan;
    let key = format!("{}report.json", cleanroom_contract::bundle_prefix(&case(), &scan));
    cloud.with(|w| w.bucket.overwrite(&key, b"{}".to_vec()));
    let run = run(&cloud, Policy::default(), None).await;
    let folder = tempfile::tempdir().expect("a folder");
    let error =
        fetch::fetch(&run, &case(), None, Some(folder.path())).await.expect_err("it differs");
    assert!(matches!(error, FetchError::Altered { .. }), "{error}");
    let files: Vec<_> = std::fs::read_dir(folder.path()).expect("the folder").collect();
    assert_eq!(files.len(), 1, "what came before stays, and nothing of the other: {files:?}");
    let error = fetch::report(&run, &case(), None).await.expect_err("it differs");
    assert!(error.to_string().contains("another digest"), "{error}");
    let none: CaseId = "c-9".parse().expect("a case id");
    assert!(fetch::fetch(&run, &none, None, Some(folder.path())).await.is_err());
}

#[tokio::test(start_paused = true)]
async fn steps_that_stop_before_the_room_make_none() {
    for steps in [
        Step::ALL.into_iter().filter(|s| *s != Step::CleanRoom).collect(),
        Step::ALL.into_iter().filter(|s| *s != Step::Snapshot).collect(),
    ] {
        let cloud = FakeCloud::new(small());
        let policy = Policy { steps, ..Policy::default() };
        let run = run(&cloud, policy, None).await;
        let report = respond_to(&run, &suspect()).await.expect("not refused");
        assert!(report.is_whole() && report.reported.is_none(), "{report:#?}");
        assert_eq!((stacks(&cloud), orders(&cloud)), (0, 0));
    }
}
