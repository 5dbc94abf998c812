//! A response with a room, a rescan and a teardown, broken at every call; and two at once.

use std::time::Duration;

use cleanroom_cloud_fake::{At, FakeCloud, Fault};
use cleanroom_contract::ScanId;
use cleanroom_controller::{
    case::Policy,
    flow::{rescan, teardown},
};

use super::{assert_custody, case, ledger, rules, small, stacks};
use crate::support::{assert_contained, respond, run, ways_to_break, whole_in_spite_of};

/// The calls of a run without faults from the first look at the orders on, and whether each changes something.
async fn calls_of_the_room() -> Vec<(u64, bool)> {
    let cloud = FakeCloud::new(small());
    respond(&cloud, None).await;
    let calls = cloud.calls().into_iter().skip_while(|c| !c.resource.contains("/orders/"));
    calls.map(|call| (call.n, call.mutates)).collect()
}

#[tokio::test(start_paused = true)]
async fn a_room_broken_at_any_call_reports_once_all_the_same() {
    let calls = calls_of_the_room().await;
    assert!(calls.len() > 20, "{calls:?}");
    for way in ways_to_break(calls) {
        let before = small();
        let (process, what) = whole_in_spite_of(before.clone(), way).await;
        assert_eq!(stacks(&process), 1, "{what}: one room");
        let reports = ledger(&process).await.reports;
        assert_eq!(reports.len(), 1, "{what}: {reports:#?}");
        assert_contained(&process, &before, &what).await;
        assert_custody(&process, &what).await;
    }
}

#[tokio::test(start_paused = true)]
async fn two_runs_at_once_share_one_room() {
    let cloud = FakeCloud::new(small());
    cloud.set_latency(Duration::from_millis(50));
    let other =
        cloud.as_caller("arn:aws:sts::123456789012:assumed-role/cleanroom-controller/other");
    let (one, two) = tokio::join!(respond(&cloud, None), respond(&other, None));
    assert!(one.reported.is_some() && two.reported.is_some(), "{one:#?} {two:#?}");
    assert_eq!(stacks(&cloud), 1);
    let scans: Vec<ScanId> = ledger(&cloud).await.reports.into_keys().collect();
    assert!((1..=2).contains(&scans.len()), "{scans:?}");
    assert_custody(&cloud, "two at once").await;
}

/// Every way to break each call that a piece of work makes.
async fn every_break(work: impl AsyncFn(&FakeCloud) -> bool) -> Vec<(Fault, u64)> {
    let cloud = reported().await;
    let before = cloud.calls().len();
    assert!(work(&cloud).await, "without a fault");
    let calls = cloud.calls().split_off(before);
    assert!(calls.len() > 5, "{calls:?}");
    ways_to_break((1..).zip(calls.into_iter().map(|call| call.mutates)))
}

/// A case with a report, and its room.
async fn reported() -> FakeCloud {
    let cloud = FakeCloud::new(small());
    respond(&cloud, None).await;
    cloud
}

/// Works until whole, refused or dead, and again from a new process until all is whole.
async fn until_whole(
    cloud: &FakeCloud,
    work: impl AsyncFn(&FakeCloud) -> bool,
) -> (FakeCloud, bool) {
    let mut process = cloud.clone();
    for _ in 0..3 {
        let whole = tokio::select! {
            whole = work(&process) => whole,
            () = process.died() => false,
        };
        if whole {
            return (process, true);
        }
        process = process.restarted();
    }
    (process, false)
}

/// A rescan; whether it was whole. One that does not begin is told to its caller.
async fn rescans(cloud: &FakeCloud) -> bool {
    let policy = Policy { room: rules(&["a.yar"]), ..Policy::default() };
    let run = run(cloud, policy, None).await;
    rescan::rescan(&run, &case()).await.is_ok_and(|rescanned| rescanned.is_whole())
}

/// A teardown, in the same way.
async fn tears_down(cloud: &FakeCloud) -> bool {
    let run = run(cloud, Policy::default(), None).await;
    match teardown::propose(&run, &case()).await {
        Ok(proposal) => teardown::carry_out(proposal).await.is_ok_and(|torn| torn.whole),
        Err(_) => false,
    }
}

#[tokio::test(start_paused = true)]
async fn a_rescan_broken_at_any_call_reports_all_the_same() {
    for (fault, n) in every_break(rescans).await {
        let cloud = reported().await;
        let what = format!("{fault:?} at call {n} of a rescan");
        cloud.fault(fault, At::Call(n));
        let (process, whole) = until_whole(&cloud, rescans).await;
        assert!(whole, "{what}");
        assert_eq!(stacks(&process), 1, "{what}");
        // One that died with its report in the log is whole: the next is another.
        assert!((2..=3).contains(&ledger(&process).await.reports.len()), "{what}");
        assert_custody(&process, &what).await;
    }
}

#[tokio::test(start_paused = true)]
async fn a_teardown_broken_at_any_call_leaves_nothing_of_the_room() {
    for (fault, n) in every_break(tears_down).await {
        let cloud = reported().await;
        let what = format!("{fault:?} at call {n} of a teardown");
        cloud.fault(fault, At::Call(n));
        let (process, whole) = until_whole(&cloud, tears_down).await;
        assert!(whole, "{what}");
        assert!(process.with(|w| w.built.is_empty()), "{what}");
        assert_custody(&process, &what).await;
    }
}
