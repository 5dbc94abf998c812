//! Rooms that are used again, made again and taken down.

use std::time::Duration;

use cleanroom_cloud_fake::{At, FakeCloud, Fault};
use cleanroom_contract::Severity;

use super::{
    assert_custody, case, ledger, newest_order, orders, rescan, small, stacks, tear_down, told,
    world,
};
use crate::support::{assert_contained, changes_since, respond};

#[tokio::test(start_paused = true)]
async fn teardown_removes_the_room_and_nothing_else_and_twice_is_as_once() {
    let before = world();
    let cloud = FakeCloud::new(before.clone());
    respond(&cloud, None).await;
    let (snapshots, objects) = cloud.with(|w| (w.snapshots.clone(), w.bucket.keys("")));
    let copies = cloud.with(|w| w.built.values().next().expect("a stack").volumes.clone());
    assert_eq!(copies.len(), 3);
    let torn = tear_down(&cloud).await;
    assert!(torn.whole, "{torn:#?}");
    let left: Vec<_> = torn.left.iter().map(|l| l.what.as_str()).collect();
    assert!(left[0].contains("snapshots") && left[1].contains("objects"), "{left:?}");
    assert_eq!(
        left[2],
        format!("log groups below /cleanroom/{}/, of sessions in its rooms", case())
    );
    assert!(torn.left[0].dollars_a_month > Some(30.0), "608 GiB and copies: {:?}", torn.left);
    assert_eq!((torn.left[2].gib, torn.left[2].dollars_a_month), (None, None));
    cloud.with(|w| {
        assert!(w.built.is_empty());
        assert_eq!(w.snapshots, snapshots);
        for (original, copy) in &copies {
            let there = (w.volumes.contains_key(original), w.volumes.contains_key(copy));
            assert_eq!(there, (true, false), "{original} and its copy {copy}");
        }
        for key in objects {
            assert!(w.bucket.newest(&key).is_some(), "{key}");
        }
    });
    let calls = cloud.calls().len() as u64;
    let again = tear_down(&cloud).await;
    assert!(again.whole && again.left.len() == 3, "the log groups outlive the stack: {again:#?}");
    assert_eq!(changes_since(&cloud, calls), Vec::<String>::new());
    assert_contained(&cloud, &before, "without its room").await;
    assert_custody(&cloud, "without its room").await;
    // What was reported stays reported, and needs no room.
    let report = respond(&cloud.restarted(), None).await;
    assert!(report.is_whole() && report.reported.is_some(), "{report:#?}");
    assert_eq!(stacks(&cloud), 1);
}

#[tokio::test(start_paused = true)]
async fn a_failed_stack_is_torn_down_too() {
    let cloud = FakeCloud::new(small());
    cloud.with(|w| w.room.fails = Some(("Role".to_owned(), "no rights".to_owned())));
    respond(&cloud, None).await;
    let torn = tear_down(&cloud).await;
    assert!(torn.whole && cloud.with(|w| w.built.is_empty()), "{torn:#?}");
}

#[tokio::test(start_paused = true)]
async fn a_rescan_in_a_standing_room_has_what_new_rules_find_and_makes_no_other_room() {
    let cloud = FakeCloud::new(small());
    respond(&cloud, None).await;
    let first = ledger(&cloud).await.reports;
    let rescanned = rescan(&cloud, &["webshells.yar", "miners.yar"]).await;
    assert!(rescanned.is_whole(), "{rescanned:#?}");
    let reported = rescanned.reported.expect("a report");
    assert_eq!(reported.summary.findings.get(Severity::High), 2);
    assert_eq!((stacks(&cloud), orders(&cloud)), (1, 2));
    let all = ledger(&cloud).await.reports;
    assert_eq!(all.len(), 2);
    for (scan, examined) in &first {
        assert_eq!(&all[scan], examined, "what was examined before stays");
    }
    let told = told(&cloud);
    assert_eq!(told.iter().filter(|t| t.ends_with(" reported")).count(), 2, "{told:?}");
    assert_custody(&cloud, "two scans").await;
    // The rules are under their digests, and are not stored twice.
    let kept = cloud.with(|w| w.bucket.keys("rules/"));
    assert_eq!(kept.len(), 2, "{kept:?}");
    rescan(&cloud, &["webshells.yar"]).await;
    assert_eq!(cloud.with(|w| w.bucket.keys("rules/")), kept);
}

#[tokio::test(start_paused = true)]
async fn where_nobody_names_rules_a_scan_takes_those_that_were_deployed() {
    let cloud = FakeCloud::new(small());
    let deployed = cloud.with(|w| w.add_rules(&["team.yar"]));
    assert!(respond(&cloud, None).await.is_whole());
    assert_eq!(newest_order(&cloud).rules, deployed);
    assert_eq!(newest_order(&cloud).indicators, []);
    // What a person names is what is taken.
    assert!(rescan(&cloud, &["own.yar"]).await.is_whole());
    let names: Vec<_> = newest_order(&cloud).rules.into_iter().map(|file| file.name).collect();
    assert_eq!(names, ["own.yar"]);
    // Others were deployed meanwhile: what was ordered with the old ones is not taken for theirs.
    let newer = cloud.with(|w| w.add_rules(&["newer.yar", "team.yar"]));
    assert!(rescan(&cloud, &[]).await.is_whole());
    assert_eq!(newest_order(&cloud).rules, newer);
    assert_eq!(orders(&cloud), 3);
    // A pointer to a file of another key is an error, and no scan without rules.
    cloud.with(|w| {
        let latest = w.bucket.newest("artifacts/latest.json").expect("it is there");
        let text = String::from_utf8_lossy(latest).replace("rules/", "cases/");
        w.bucket.overwrite("artifacts/latest.json", text.into_bytes());
    });
    let odd = rescan(&cloud, &[]).await;
    assert!(odd.shortfalls.iter().any(|s| s.what.contains("of another key")), "{odd:#?}");
}

#[tokio::test(start_paused = true)]
async fn a_rescan_without_a_room_makes_one_and_one_of_an_idle_room_makes_another() {
    let cloud = FakeCloud::new(small());
    respond(&cloud, None).await;
    tear_down(&cloud).await;
    assert!(rescan(&cloud, &["a.yar"]).await.is_whole());
    assert_eq!(stacks(&cloud), 2);
    // An hour and a half without an order: the room has ended itself, and is never started again.
    tokio::time::sleep(Duration::from_secs(5400)).await;
    let old = cloud.with(|w| w.built.values().next().expect("a stack").stack.id.clone());
    assert!(rescan(&cloud, &["b.yar"]).await.is_whole());
    let new = cloud.with(|w| w.built.values().next().expect("a stack").stack.id.clone());
    assert_ne!(old, new);
    assert_eq!((stacks(&cloud), orders(&cloud)), (3, 3));
}

#[tokio::test(start_paused = true)]
async fn a_rescan_that_was_cut_short_goes_on_with_its_own_order() {
    let cloud = FakeCloud::new(small());
    respond(&cloud, None).await;
    cloud.fault(
        Fault::DieAfter,
        At::Matching("s3:PutObject cases/i-0123456789abcdef0-1/orders".to_owned(), 1),
    );
    tokio::select! {
        ended = rescan(&cloud, &["a.yar"]) => panic!("it lives: {ended:?}"),
        () = cloud.died() => {}
    }
    let cloud = cloud.restarted();
    assert!(rescan(&cloud, &["a.yar"]).await.is_whole());
    assert_eq!(orders(&cloud), 2, "one for the response, one for the rescan");
    assert_custody(&cloud, "cut short").await;
}

#[tokio::test(start_paused = true)]
async fn what_a_rescan_lacks_is_in_the_log_until_a_scan_makes_up_for_it() {
    let cloud = FakeCloud::new(small());
    respond(&cloud, None).await;
    tear_down(&cloud).await;
    cloud.with(|w| w.room.fails = Some(("Role".to_owned(), "no rights".to_owned())));
    let rescanned = rescan(&cloud, &["a.yar"]).await;
    assert!(rescanned.shortfalls.iter().any(|s| s.what.contains("no rights")), "{rescanned:#?}");
    assert_eq!(ledger(&cloud).await.shortfalls, rescanned.shortfalls);
    cloud.with(|w| w.room.fails = None);
    assert!(rescan(&cloud, &["a.yar"]).await.is_whole());
    assert_eq!(ledger(&cloud).await.shortfalls, []);
    assert_custody(&cloud, "a rescan that failed").await;
}
