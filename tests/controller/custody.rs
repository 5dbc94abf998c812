//! The custody log: whole whoever writes, and telling whoever tampers.

mod checkpoints;
mod claims;

use std::{collections::BTreeMap, path::Path, sync::Arc, time::Duration};

use cleanroom_cloud::{ErrorKind, Instance, Put};
use cleanroom_cloud_fake::{At, CALLER, FakeCloud, Fault, World};
use cleanroom_contract::{CaseId, Timestamp};
use cleanroom_controller::{
    case::Clock,
    journal::{
        self, Journal, Ledger, Spool, Writer, digest,
        event::{self, Body, CustodyEvent, Exhibit},
        verify,
    },
    original::Original,
};
use proptest::prelude::*;

use crate::support::suspect;

fn case() -> CaseId {
    "case-1".parse().expect("a case id")
}

struct WorldClock(FakeCloud);

impl Clock for WorldClock {
    fn now(&self) -> Timestamp {
        self.0.now()
    }
}

fn writer(cloud: &FakeCloud, nonce: &str) -> Writer {
    Writer {
        actor: CALLER.to_owned(),
        nonce: nonce.to_owned(),
        clock: Arc::new(WorldClock(cloud.clone())),
        bound: Duration::from_secs(4),
    }
}

/// A log as a process begins it that did not claim the case.
async fn open(cloud: &FakeCloud, nonce: &str, spool: Option<&Path>) -> Journal {
    let spool = Spool::at(spool.map(Path::to_owned));
    Journal::open(cloud.cloud().store, case(), writer(cloud, nonce), spool).await
}

/// An event that says `what`.
fn says(what: &str) -> Body {
    Body::Acted { what: what.to_owned(), outcomes: Vec::new() }
}

/// The log's events and their bytes.
async fn read(cloud: &FakeCloud) -> Vec<(CustodyEvent, Vec<u8>)> {
    journal::read(&*cloud.cloud().store, &case()).await.expect("the store answers")
}

/// What the events say, in order.
async fn said(cloud: &FakeCloud) -> Vec<String> {
    let what = |event: CustodyEvent| match event.body {
        Body::Acted { what, .. } => what,
        other => format!("{other:?}"),
    };
    read(cloud).await.into_iter().map(|(event, _)| what(event)).collect()
}

async fn verdict(cloud: &FakeCloud) -> verify::Verdict {
    verify::verify(&*cloud.cloud().store, &case()).await.expect("the store answers")
}

async fn assert_whole(cloud: &FakeCloud) {
    assert_eq!(verdict(cloud).await.faults, Vec::<String>::new());
}

fn plain() -> FakeCloud {
    FakeCloud::new(World::plain())
}

/// Files below a folder.
fn files(folder: &Path) -> usize {
    let entries = std::fs::read_dir(folder).expect("a folder").map(|e| e.expect("an entry").path());
    entries.map(|path| if path.is_dir() { files(&path) } else { 1 }).sum()
}

#[tokio::test(start_paused = true)]
async fn events_are_numbered_and_each_holds_the_digest_of_the_one_before() {
    let cloud = plain();
    let log = open(&cloud, "a", None).await;
    for what in ["one", "two", "three"] {
        log.append(None, says(what)).await;
    }
    let events = read(&cloud).await;
    let mut previous = None;
    for (number, (event, bytes)) in (1..).zip(&events) {
        assert_eq!((event.seq, event.previous), (number, previous));
        assert!(!event.late);
        previous = Some(digest(bytes));
    }
    let keys = cloud.world().bucket.keys("cases/");
    assert_eq!(keys, ["1", "2", "3"].map(|n| format!("cases/case-1/custody/00000{n}.json")));
    assert_whole(&cloud).await;
}

#[tokio::test(start_paused = true)]
async fn two_writers_keep_one_chain_with_all_events() {
    let cloud = plain();
    cloud.set_latency(Duration::from_millis(50));
    let (a, b) = (open(&cloud, "a", None).await, open(&cloud, "b", None).await);
    let write = |log: Journal, name: &'static str, pause: u64| async move {
        for n in 0..40 {
            log.append(None, says(&format!("{name}{n:02}"))).await;
            tokio::time::sleep(Duration::from_millis(pause)).await;
        }
        assert_eq!(log.down(), None, "{name}");
    };
    tokio::join!(write(a, "a", 70), write(b, "b", 110));
    let all = said(&cloud).await;
    assert_eq!(all.len(), 80, "{all:?}");
    for name in ["a", "b"] {
        let own: Vec<_> = all.iter().filter(|what| what.starts_with(name)).cloned().collect();
        let expected: Vec<_> = (0..40).map(|n| format!("{name}{n:02}")).collect();
        assert_eq!(own, expected, "each writer's order is kept");
    }
    assert_ne!(
        all,
        {
            let mut sorted = all.clone();
            sorted.sort();
            sorted
        },
        "they interleave"
    );
    assert_whole(&cloud).await;
}

#[tokio::test(start_paused = true)]
async fn who_is_far_behind_catches_up_in_time() {
    let cloud = plain();
    let (a, b) = (open(&cloud, "a", None).await, open(&cloud, "b", None).await);
    for n in 0..60 {
        a.append(None, says(&format!("{n}"))).await;
    }
    cloud.set_latency(Duration::from_millis(100));
    b.append(None, says("last")).await;
    assert_eq!(b.down(), None, "60 events took longer than the bound of one");
    assert_eq!(said(&cloud).await.len(), 61);
    assert_whole(&cloud).await;
}

#[tokio::test(start_paused = true)]
async fn a_lost_answer_is_no_second_event() {
    let cloud = plain();
    let log = open(&cloud, "a", None).await;
    cloud.fault(Fault::LoseAnswer, At::Matching("s3:PutObject".to_owned(), 1));
    log.append(None, says("one")).await;
    log.append(None, says("two")).await;
    assert_eq!(log.down(), None);
    assert_eq!(said(&cloud).await, ["one", "two"]);
    assert_whole(&cloud).await;
}

#[tokio::test(start_paused = true)]
async fn a_lost_race_is_chained_again() {
    let cloud = plain();
    let (a, b) = (open(&cloud, "a", None).await, open(&cloud, "b", None).await);
    a.append(None, says("a")).await;
    b.append(None, says("b")).await;
    a.append(None, says("a again")).await;
    assert_eq!(said(&cloud).await, ["a", "b", "a again"]);
    assert_whole(&cloud).await;
}

#[tokio::test(start_paused = true)]
async fn two_logs_of_one_run_lose_nothing() {
    let cloud = plain();
    let (a, b) = (open(&cloud, "same", None).await, open(&cloud, "same", None).await);
    a.append(None, says("a")).await;
    b.append(None, says("b")).await;
    let later = open(&cloud, "same", None).await;
    later.append(None, says("c")).await;
    assert_eq!(said(&cloud).await, ["a", "b", "c"]);
    assert_whole(&cloud).await;
}

#[tokio::test(start_paused = true)]
async fn what_the_store_does_not_take_is_spooled_and_appended_late() {
    let cloud = plain();
    let spool = tempfile::tempdir().expect("a folder");
    let log = open(&cloud, "a", Some(spool.path())).await;
    log.append(None, says("in time")).await;
    cloud.outage("s3:");
    let before = cloud.now();
    log.append(None, says("one")).await;
    tokio::time::sleep(Duration::from_secs(1)).await;
    log.append(None, says("two")).await;
    assert!(log.down().is_some());
    assert_eq!(files(spool.path()), 2);
    assert_eq!(log.catch_up().await, 2, "the store is down still");
    drop(log);
    cloud.end_outage("s3:");
    let process = cloud.restarted();
    let next = open(&process, "b", Some(spool.path())).await;
    assert_eq!(next.catch_up().await, 0);
    next.append(None, says("after")).await;
    assert_eq!(said(&cloud).await, ["in time", "one", "two", "after"]);
    let events = read(&cloud).await;
    let late: Vec<_> = events.iter().map(|(event, _)| event.late).collect();
    assert_eq!(late, [false, true, true, false]);
    assert!(events[1].0.at.seconds - before.seconds < 1, "it keeps the time at which it happened");
    assert_eq!(files(spool.path()), 0, "nothing is left in the spool");
    assert_eq!(verdict(&cloud).await.late, 2);
    assert_whole(&cloud).await;
}

#[tokio::test(start_paused = true)]
async fn a_run_without_a_spool_holds_its_events_itself() {
    let cloud = plain();
    let log = open(&cloud, "a", None).await;
    cloud.outage("s3:");
    log.append(None, says("one")).await;
    cloud.end_outage("s3:");
    assert_eq!(log.catch_up().await, 0);
    assert_eq!(log.down(), None);
    assert_eq!(said(&cloud).await, ["one"]);
}

/// A log with one event that is in the store and in the spool: its answer was lost, and then the store was gone.
async fn landed_and_spooled(cloud: &FakeCloud, spool: &Path) -> Journal {
    let log = open(cloud, "a", Some(spool)).await;
    cloud.fault(Fault::LoseAnswer, At::Matching("s3:".to_owned(), 1));
    let refused = Fault::Refuse(ErrorKind::Unreachable);
    cloud.faults(refused, At::Matching("s3:".to_owned(), 2), u64::MAX);
    log.append(None, says("landed")).await;
    assert!(log.down().is_some());
    cloud.calm();
    assert_eq!((said(cloud).await.len(), files(spool)), (1, 1));
    log
}

#[tokio::test(start_paused = true)]
async fn an_event_that_was_spooled_although_it_landed_is_not_written_twice() {
    // By the process itself.
    let (cloud, spool) = (plain(), tempfile::tempdir().expect("a folder"));
    let log = landed_and_spooled(&cloud, spool.path()).await;
    assert_eq!(log.catch_up().await, 0);
    assert_eq!((said(&cloud).await.len(), files(spool.path())), (1, 0));
    assert_whole(&cloud).await;
    // By the next one, which reads it in both places.
    let (cloud, spool) = (plain(), tempfile::tempdir().expect("a folder"));
    drop(landed_and_spooled(&cloud, spool.path()).await);
    let next = open(&cloud.restarted(), "b", Some(spool.path())).await;
    assert_eq!(next.catch_up().await, 0);
    assert_eq!((said(&cloud).await.len(), files(spool.path())), (1, 0));
    assert_whole(&cloud).await;
    // By one that could not read the log when it began, and met the event behind another of its own.
    let (cloud, spool) = (plain(), tempfile::tempdir().expect("a folder"));
    open(&cloud, "z", None).await.append(None, says("before")).await;
    drop(landed_two(&cloud, spool.path()).await);
    cloud.outage("s3:");
    let next = open(&cloud.restarted(), "b", Some(spool.path())).await;
    cloud.end_outage("s3:");
    assert_eq!(next.catch_up().await, 0);
    assert_eq!(said(&cloud).await, ["before", "landed", "waits"]);
    assert_whole(&cloud).await;
}

/// As [`landed_and_spooled`], with a second event that did not land.
async fn landed_two(cloud: &FakeCloud, spool: &Path) -> Journal {
    let log = open(cloud, "a", Some(spool)).await;
    cloud.fault(Fault::LoseAnswer, At::Matching("s3:".to_owned(), 1));
    let refused = Fault::Refuse(ErrorKind::Unreachable);
    cloud.faults(refused, At::Matching("s3:".to_owned(), 2), u64::MAX);
    log.append(None, says("landed")).await;
    log.append(None, says("waits")).await;
    cloud.calm();
    log
}

#[tokio::test(start_paused = true)]
async fn catching_up_may_be_broken_off_at_any_moment() {
    let cloud = plain();
    let log = open(&cloud, "a", None).await;
    cloud.outage("s3:");
    log.append(None, says("one")).await;
    log.append(None, says("two")).await;
    cloud.end_outage("s3:");
    cloud.fault(Fault::Hang, At::Matching("s3:PutObject".to_owned(), 2));
    let broken_off = tokio::time::timeout(Duration::from_secs(1), log.catch_up()).await;
    assert!(broken_off.is_err(), "it hangs at the second event");
    assert_eq!(log.catch_up().await, 0);
    assert_eq!(said(&cloud).await, ["one", "two"]);
    assert_whole(&cloud).await;
}

#[tokio::test(start_paused = true)]
async fn files_that_are_no_events_stay_out_of_the_log() {
    let (cloud, spool) = (plain(), tempfile::tempdir().expect("a folder"));
    let log = open(&cloud, "a", Some(spool.path())).await;
    cloud.outage("s3:");
    log.append(None, says("one")).await;
    cloud.end_outage("s3:");
    let folder = spool.path().join(case().as_str());
    let kept = std::fs::read_dir(&folder).expect("a folder").next().expect("a file");
    let kept = kept.expect("an entry").path();
    // What a run that died had not renamed yet, and what never was an event.
    std::fs::copy(&kept, folder.join(".tmpA1b2C3")).expect("a copy");
    std::fs::write(folder.join("notes.json"), "{}").expect("a file");
    let next = open(&cloud.restarted(), "b", Some(spool.path())).await;
    assert_eq!(next.catch_up().await, 0);
    assert_eq!(said(&cloud).await, ["one"]);
    assert_whole(&cloud).await;
}

#[tokio::test(start_paused = true)]
async fn nobody_silences_the_log_by_an_object_in_its_place() {
    let cloud = plain();
    let log = open(&cloud, "a", None).await;
    log.append(None, says("one")).await;
    let other: CustodyEvent = {
        let mut event = read(&cloud).await.remove(0).0;
        event.case = "case-2".parse().expect("a case id");
        event.seq = 4;
        event.nonce = "z-1".to_owned();
        event.body = Body::Released { reason: None, forced: false };
        event
    };
    cloud.with(|world| {
        let bucket = &mut world.bucket;
        bucket.overwrite("cases/case-1/custody/notes.txt", b"hello".to_vec());
        bucket.overwrite("cases/case-1/custody/000002.json", b"{".to_vec());
        bucket.overwrite("cases/case-1/custody/+3.json", b"{}".to_vec());
        let other = serde_json::to_vec(&other).expect("an event");
        bucket.overwrite("cases/case-1/custody/000004.json", other);
    });
    // The one that knows of nothing, and one that reads it all.
    log.append(None, says("two")).await;
    let next = open(&cloud.restarted(), "b", None).await;
    assert_eq!(next.down(), None);
    assert_eq!(next.ledger().await.released_at, None, "another case's event is not this one's");
    next.append(None, says("three")).await;
    assert_eq!(said(&cloud).await, ["one", "two", "three"]);
    let faults = verdict(&cloud).await.faults.join("\n");
    for part in [
        "notes.txt does not belong",
        "000002.json can not be read",
        "+3.json does not belong",
        "of case-2",
    ] {
        assert!(faults.contains(part), "{part:?} is not in {faults}");
    }
}

/// A log of four events and one exhibit.
async fn log_with_exhibit() -> FakeCloud {
    let cloud = plain();
    let log = open(&cloud, "a", None).await;
    let key = "cases/case-1/record/instance-1.json".to_owned();
    let bytes = b"{\"an\":\"answer\"}".to_vec();
    let store = cloud.cloud().store;
    assert_eq!(store.create(&key, bytes.clone()).await, Ok(Put::Created));
    let exhibit = Exhibit {
        key,
        sha256: digest(&bytes),
        size: bytes.len() as u64,
        operation: "ec2:DescribeInstances".to_owned(),
        request: None,
    };
    log.append(None, says("one")).await;
    let recorded =
        Body::Recorded { exhibits: vec![exhibit], missing: BTreeMap::new(), survivors: Vec::new() };
    log.append(None, recorded).await;
    log.append(None, says("three")).await;
    log.append(None, says("four")).await;
    assert_whole(&cloud).await;
    assert_eq!(verdict(&cloud).await.exhibits, 1);
    cloud
}

const EXHIBIT: &str = "cases/case-1/record/instance-1.json";

/// Puts other bytes in an object's only version: what no service lets anybody do, and what a chain is for.
fn replace(world: &mut World, key: &str, change: impl FnOnce(&mut CustodyEvent)) {
    let versions = world.bucket.objects.get_mut(key).expect("an object");
    let version = versions.last_mut().expect("a version");
    let bytes = version.bytes.as_deref().expect("bytes");
    let mut event: CustodyEvent = serde_json::from_slice(bytes).expect("an event");
    change(&mut event);
    version.bytes = Some(serde_json::to_vec(&event).expect("bytes"));
}

#[tokio::test(start_paused = true)]
async fn verifying_finds_what_was_tampered_with() {
    type Tamper = fn(&mut World);
    let key = |n| event::key(&case(), n);
    let cases: [(&str, Tamper, Vec<String>); 10] = [
        (
            "a second version",
            |w| {
                let key = event::key(&case(), 4);
                let same = w.bucket.newest(&key).expect("bytes").to_vec();
                w.bucket.overwrite(&key, same);
            },
            vec![format!("{} has 2 versions: it was overwritten", key(4))],
        ),
        (
            "a delete marker",
            |w| w.bucket.delete(&event::key(&case(), 2)),
            vec![
                format!("{} was deleted (marker v000006)", key(2)),
                format!("{} is missing", key(2)),
            ],
        ),
        (
            "a missing number",
            |w| drop(w.bucket.objects.remove(&event::key(&case(), 3))),
            vec![format!("{} is missing", key(3))],
        ),
        (
            "missing numbers at the start",
            |w| {
                drop(w.bucket.objects.remove(&event::key(&case(), 1)));
                drop(w.bucket.objects.remove(&event::key(&case(), 2)));
            },
            vec![format!("{} to {} are missing", key(1), key(2))],
        ),
        (
            "a foreign object",
            |w| w.bucket.overwrite("cases/case-1/custody/000002.json.bak", Vec::new()),
            vec![
                "cases/case-1/custody/000002.json.bak does not belong into the custody log"
                    .to_owned(),
            ],
        ),
        (
            "a changed event",
            |w| replace(w, &event::key(&case(), 3), |e| e.actor = "somebody".to_owned()),
            vec![format!("{} does not follow the event before it", key(4))],
        ),
        (
            "a broken chain",
            |w| replace(w, &event::key(&case(), 4), |e| e.previous = Some(digest(b"else"))),
            vec![format!("{} does not follow the event before it", key(4))],
        ),
        (
            "a repeated nonce",
            |w| {
                let first = w.bucket.newest(&event::key(&case(), 1)).expect("bytes").to_vec();
                let first: CustodyEvent = serde_json::from_slice(&first).expect("an event");
                replace(w, &event::key(&case(), 4), |e| e.nonce = first.nonce);
            },
            vec![format!("{} repeats the nonce of an earlier event", key(4))],
        ),
        (
            "a changed exhibit",
            |w| {
                let versions = w.bucket.objects.get_mut(EXHIBIT).expect("the exhibit");
                versions[0].bytes = Some(b"{}".to_vec());
            },
            vec![format!("{EXHIBIT} is not what was recorded")],
        ),
        (
            "a missing exhibit",
            |w| drop(w.bucket.objects.remove(EXHIBIT)),
            vec![format!("{EXHIBIT} is missing")],
        ),
    ];
    for (what, tamper, expected) in cases {
        let cloud = log_with_exhibit().await;
        cloud.with(tamper);
        let verdict = verdict(&cloud).await;
        assert_eq!(verdict.faults, expected, "{what}");
    }
}

#[tokio::test(start_paused = true)]
async fn a_log_without_events_is_no_whole_log() {
    let faults = verdict(&plain()).await.faults;
    assert_eq!(faults, ["there are no custody events of case-1"]);
}

fn opened(instance: &Instance, reason: &str) -> Body {
    Body::Opened {
        instance: instance.id.clone(),
        reason: Some(reason.to_owned()),
        grounds: Vec::new(),
        original: Box::new(Original::of(instance.clone())),
    }
}

#[tokio::test(start_paused = true)]
async fn the_first_original_state_is_the_one_that_holds() {
    let cloud = plain();
    cloud.set_latency(Duration::from_millis(50));
    let instance = cloud.world().machines[&suspect()].instance.clone();
    let (a, b) = (open(&cloud, "a", None).await, open(&cloud, "b", None).await);
    let (first, second) =
        tokio::join!(a.open_case(opened(&instance, "a")), b.open_case(opened(&instance, "b")));
    assert_eq!(first.reason, second.reason);
    assert_eq!(read(&cloud).await.len(), 1, "the second is not even written");
    assert_whole(&cloud).await;
}

/// Bodies whose order does not matter to what they come to.
fn bodies() -> impl Strategy<Value = Vec<(bool, Body)>> {
    let body = prop_oneof![
        "[a-c]".prop_map(|goal| Body::Reached { goal }),
        "eni-[0-9]".prop_map(|interface| Body::Flushed { interfaces: vec![interface] }),
        "[a-c]".prop_map(|milestone| Body::Notified { milestone, message: None }),
        ("[a-c]", 0..3_u8).prop_map(|(name, n)| Body::Recorded {
            exhibits: vec![Exhibit {
                key: format!("cases/case-1/record/{name}-{n}.json"),
                sha256: digest(name.as_bytes()),
                size: 1,
                operation: "ec2:DescribeInstances".to_owned(),
                request: None,
            }],
            missing: BTreeMap::new(),
            survivors: Vec::new(),
        }),
    ];
    proptest::collection::vec((any::<bool>(), body), 0..24)
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    /// Whoever of two writers appends what, at once or one after the other, with the store gone for a while or not.
    #[test]
    fn a_ledger_is_the_same_whoever_wrote_its_events(bodies in bodies(), out in 0..30_u64) {
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_time()
            .start_paused(true)
            .build()
            .expect("a runtime");
        runtime.block_on(async {
            let cloud = plain();
            cloud.set_latency(Duration::from_millis(50));
            let from = Duration::from_millis(50 * out);
            cloud.outage_between("s3:", from, from + Duration::from_secs(10));
            let (a, b) = (open(&cloud, "a", None).await, open(&cloud, "b", None).await);
            let of = |own: bool| bodies.iter().filter(move |(a, _)| *a == own).map(|(_, b)| b);
            tokio::join!(
                async { for body in of(true) { a.append(None, body.clone()).await; } },
                async { for body in of(false) { b.append(None, body.clone()).await; } },
            );
            tokio::time::sleep(Duration::from_secs(60)).await;
            assert_eq!((a.catch_up().await, b.catch_up().await), (0, 0));
            let events = read(&cloud).await;
            assert_eq!(events.len(), bodies.len());
            let found = Ledger::of(events.iter().map(|(event, _)| event));
            let mut alone = Ledger::default();
            for (event, (_, body)) in events.iter().zip(&bodies) {
                alone.take(&CustodyEvent { body: body.clone(), ..event.0.clone() });
            }
            assert_eq!(found.reached.keys().collect::<Vec<_>>(), alone.reached.keys().collect::<Vec<_>>());
            assert_eq!(found.flushed, alone.flushed);
            assert_eq!(found.notified, alone.notified);
            assert_eq!(found.exhibits, alone.exhibits);
            if !events.is_empty() {
                assert_eq!(verdict_but_exhibits(&cloud).await, Vec::<String>::new());
            }
        });
    }
}

/// Faults of the log itself: the exhibits of a made-up log are nowhere.
async fn verdict_but_exhibits(cloud: &FakeCloud) -> Vec<String> {
    let faults = verdict(cloud).await.faults;
    faults.into_iter().filter(|fault| !fault.contains("/record/")).collect()
}
