//! `close` ends a case with its post-incident record.

use std::path::Path;

use cleanroom_cloud::ErrorKind;
use cleanroom_cloud_fake::{At, FakeCloud, Fault, World};
use cleanroom_contract::CaseId;
use cleanroom_controller::{
    flow::{self, FlowError, Request, close::close, release},
    journal::{self, Ledger, verify},
};

use crate::support::{everything, respond, run, suspect};

fn case() -> CaseId {
    format!("{}-1", suspect()).parse().expect("a case id")
}

async fn closed(
    cloud: &FakeCloud,
    reason: Option<&str>,
    spool: Option<&Path>,
) -> Result<String, FlowError> {
    let run = run(cloud, everything(), spool).await;
    close(&run, &case(), reason).await
}

async fn ledger(cloud: &FakeCloud) -> Ledger {
    let events = journal::read(&*cloud.cloud().store, &case()).await.expect("the log");
    Ledger::of(events.iter().map(|(event, _)| event))
}

async fn faults(cloud: &FakeCloud) -> Vec<String> {
    verify::verify(&*cloud.cloud().store, &case()).await.expect("the store").faults
}

async fn released(cloud: &FakeCloud) {
    let run = run(cloud, everything(), None).await;
    let proposal = release::propose(&run, &case()).await.expect("a proposal");
    let released = release::carry_out(&run, proposal, Some("all clear")).await.expect("released");
    assert!(released.whole, "{released:?}");
}

/// The record's objects.
fn records(cloud: &FakeCloud) -> Vec<String> {
    cloud.world().bucket.keys(&format!("cases/{}/post-incident", case()))
}

#[tokio::test(start_paused = true)]
async fn a_released_case_ends_with_its_record() {
    let cloud = FakeCloud::new(World::full());
    respond(&cloud, None).await;
    released(&cloud).await;
    cloud.with(|world| {
        world.bucket.objects.values_mut().flatten().for_each(|version| version.hold = true);
    });
    let text = closed(&cloud, Some("the host was rebuilt"), None).await.expect("it closes");
    assert_eq!(records(&cloud), [format!("cases/{}/post-incident.md", case())]);
    let world = cloud.world();
    let stored = world.bucket.newest(&records(&cloud)[0]).expect("the record").to_vec();
    assert!(text.as_bytes().starts_with(&stored), "what is returned begins with what is stored");
    for part in [
        "## What spoke for a compromise",
        "BitcoinTool",
        "a test",
        "the host was rebuilt",
        "all clear",
        "## Timeline",
        "| contained | 2026-01-01T",
        "| preserved | 2026-01-01T",
        "| released | 2026-01-01T",
        "released the instance",
        "## What was not cut",
        "CreateAccessKey",
        "memory was not taken",
        "The chain is whole",
        "Legal holds are lifted",
    ] {
        assert!(text.contains(part), "{part:?} is not in\n{text}");
    }
    assert!(!text.contains("was not released"), "{text}");
    let after = ledger(&cloud).await;
    assert!(after.closed_at.is_some());
    for (key, exhibit) in &after.exhibits {
        let row = format!("| {} | {} |", exhibit.size, exhibit.sha256);
        assert!(text.contains(&row), "{key} is not in the record");
    }
    for snapshot in &after.snapshots {
        assert!(text.contains(snapshot), "{snapshot} is not in the record");
    }
    for (key, versions) in &world.bucket.objects {
        let held = versions.iter().any(|version| version.hold);
        assert_eq!(held, !key.starts_with("cases/"), "the hold of {key}");
    }
    assert_eq!(faults(&cloud).await, Vec::<String>::new());
}

#[tokio::test(start_paused = true)]
async fn a_case_that_was_not_released_says_so() {
    let cloud = FakeCloud::new(World::plain());
    respond(&cloud, None).await;
    let text = closed(&cloud, None, None).await.expect("it closes");
    assert!(text.contains("**The instance was not released.**"), "{text}");
    assert!(cloud.world().is_cut(&suspect()), "closing releases nothing");
}

#[tokio::test(start_paused = true)]
async fn a_closed_case_is_not_closed_again() {
    let cloud = FakeCloud::new(World::plain());
    respond(&cloud, None).await;
    closed(&cloud, None, None).await.expect("it closes");
    let before = cloud.changes().len();
    let error = closed(&cloud, None, None).await.expect_err("closed already");
    assert!(error.to_string().contains("closed already"), "{error}");
    assert_eq!(cloud.changes().len(), before, "nothing is written");
}

/// How often a character stands there unescaped.
fn plain(line: &str, c: char) -> usize {
    line.match_indices(c)
        .filter(|(at, _)| line[..*at].chars().rev().take_while(|c| *c == '\\').count() % 2 == 0)
        .count()
}

/// Bars that are not escaped.
fn bars(line: &str) -> usize {
    plain(line, '|')
}

#[tokio::test(start_paused = true)]
async fn hostile_names_break_nothing() {
    const HOSTILE: &str =
        "a | b\n| c |\n# <script>alert(1)</script> [x](javascript:y) `z` \u{202e}\\";
    let mut world = World::full();
    let machine = world.machines.get_mut(&suspect()).expect("the suspect");
    machine.instance.tags.insert("Name".to_owned(), HOSTILE.to_owned());
    let findings = world.findings.get_mut(&suspect()).expect("a finding");
    findings[0].title = HOSTILE.to_owned();
    for event in &mut world.events {
        event.event.raw = serde_json::json!({
            "requestParameters": { "userName": HOSTILE, "roleArn": HOSTILE },
        })
        .to_string();
    }
    let cloud = FakeCloud::new(world);
    let run = run(&cloud, everything(), None).await;
    let instance = run.cloud.inventory.get_instance(&suspect()).await.expect("the suspect");
    let request = Request { instance, case: None, reason: Some(HOSTILE.to_owned()) };
    flow::respond(&run, &request).await.expect("a response");
    run.shared.finish_units().await;
    let text = closed(&cloud, Some(HOSTILE), None).await.expect("it closes");
    for markup in ['<', '[', '`'] {
        assert_eq!(plain(&text, markup), 0, "{markup} in {text}");
    }
    assert!(!text.contains('\u{202e}'), "{text}");
    assert!(text.matches("script").count() >= 4, "the names are shown: {text}");
    let mut columns = None;
    for line in text.lines() {
        if !line.starts_with('|') {
            assert_eq!(bars(line), 0, "a bar outside a table: {line}");
            columns = None;
            continue;
        }
        assert_eq!(bars(line), *columns.get_or_insert(bars(line)), "a broken row: {line}");
        assert!(line.ends_with('|'), "a broken row: {line}");
    }
    let headings = text.lines().filter(|line| line.starts_with('#')).count();
    assert_eq!(headings, 9, "{text}");
}

#[tokio::test(start_paused = true)]
async fn a_case_with_events_that_wait_is_not_closed() {
    let spool = tempfile::tempdir().expect("a folder");
    let cloud = FakeCloud::new(World::plain());
    let custody = format!("s3:PutObject cases/{}/custody", case());
    let refused = Fault::Refuse(ErrorKind::Unreachable);
    cloud.faults(refused, At::Matching(custody.clone(), 3), u64::MAX);
    let report = respond(&cloud, Some(spool.path())).await;
    assert!(report.waiting > 0, "{report:?}");
    let error = closed(&cloud, Some("done"), Some(spool.path())).await.expect_err("they wait");
    assert!(error.to_string().contains("wait on this machine"), "{error}");
    assert_eq!(records(&cloud), Vec::<String>::new());
    cloud.calm();
    let text = closed(&cloud, None, Some(spool.path())).await.expect("it closes");
    assert!(text.contains("custody events were appended after the fact"), "{text}");
    assert!(text.contains("(late)"), "{text}");
    assert_eq!(faults(&cloud).await, Vec::<String>::new());
}

#[tokio::test(start_paused = true)]
async fn a_log_with_faults_is_closed_with_a_reason_only() {
    let cloud = FakeCloud::new(World::plain());
    respond(&cloud, None).await;
    let key = ledger(&cloud).await.exhibits.into_keys().next().expect("an exhibit");
    cloud.with(|world| world.bucket.overwrite(&key, b"something else".to_vec()));
    for reason in [None, Some("  ")] {
        let error = closed(&cloud, reason, None).await.expect_err("the log has faults");
        assert!(error.to_string().contains(&key), "{error}");
        assert!(ledger(&cloud).await.closed_at.is_none());
        assert_eq!(records(&cloud), Vec::<String>::new());
    }
    let text = closed(&cloud, Some("the copy is elsewhere"), None).await.expect("it closes");
    assert!(text.contains("It is not what was written: 2 faults"), "{text}");
    assert!(text.contains("is not what was recorded"), "{text}");
    assert!(text.contains("the copy is elsewhere"), "{text}");
}

#[tokio::test(start_paused = true)]
async fn a_garbled_event_does_not_keep_a_case_open() {
    let cloud = FakeCloud::new(World::plain());
    respond(&cloud, None).await;
    let garbled = format!("cases/{}/custody/000004.json", case());
    cloud.with(|world| {
        let versions = world.bucket.objects.get_mut(&garbled).expect("an event");
        versions.last_mut().expect("a version").bytes = Some(b"{".to_vec());
    });
    let error = closed(&cloud, None, None).await.expect_err("the log has a fault");
    assert!(error.to_string().contains(&garbled), "{error}");
    closed(&cloud, Some("seen"), None).await.expect("it closes");
}

#[tokio::test(start_paused = true)]
async fn a_record_that_a_dead_run_left_is_not_taken_for_the_record() {
    let cloud = FakeCloud::new(World::plain());
    respond(&cloud, None).await;
    cloud.fault(Fault::DieAfter, At::Matching("post-incident".to_owned(), 1));
    tokio::select! {
        ended = closed(&cloud, None, None) => panic!("it lives: {ended:?}"),
        () = cloud.died() => {}
    }
    assert_eq!(records(&cloud).len(), 1);
    let cloud = cloud.restarted();
    tokio::time::sleep(std::time::Duration::from_secs(60)).await;
    closed(&cloud, None, None).await.expect("it closes");
    assert_eq!(records(&cloud).len(), 2, "{:?}", records(&cloud));
    assert_eq!(faults(&cloud).await, Vec::<String>::new());
}

#[tokio::test(start_paused = true)]
async fn an_end_that_the_log_did_not_take_is_made_good_by_the_next_run() {
    let spool = tempfile::tempdir().expect("a folder");
    let cloud = FakeCloud::new(World::plain());
    respond(&cloud, Some(spool.path())).await;
    let custody = format!("s3:PutObject cases/{}/custody", case());
    let refused = Fault::Refuse(ErrorKind::Unreachable);
    cloud.faults(refused, At::Matching(custody, 1), u64::MAX);
    let error = closed(&cloud, None, Some(spool.path())).await.expect_err("not ended");
    assert!(error.to_string().contains("did not take the end"), "{error}");
    assert!(ledger(&cloud).await.closed_at.is_none());
    cloud.calm();
    let text = closed(&cloud, None, Some(spool.path())).await.expect("it ends now");
    assert!(text.starts_with("# Post-incident record"), "{text}");
    assert!(text.contains("Legal holds are lifted"), "{text}");
    assert!(ledger(&cloud).await.closed_at.is_some());
    assert_eq!(records(&cloud).len(), 1, "one record");
    assert_eq!(faults(&cloud).await, Vec::<String>::new());
}

#[tokio::test(start_paused = true)]
async fn holds_that_stay_are_listed_and_stop_nothing() {
    let cloud = FakeCloud::new(World::plain());
    respond(&cloud, None).await;
    let refused = Fault::Refuse(ErrorKind::Denied);
    cloud.faults(refused, At::Matching("s3:PutObjectLegalHold".to_owned(), 1), u64::MAX);
    let text = closed(&cloud, None, None).await.expect("it closes");
    let (_, holds) = text.split_once("could not be lifted (").expect("they are listed");
    assert!(holds.contains("s3:PutObjectLegalHold") && holds.contains("more"), "{holds}");
    assert!(ledger(&cloud).await.closed_at.is_some());
}
