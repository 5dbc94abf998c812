//! A case with more volumes than one room takes: several rooms, each volume examined by one, and all of them seen, read back and
//! taken down.

use std::{collections::BTreeMap, sync::Arc, time::Duration};

use cleanroom_cloud_fake::{At, FakeCloud, World};
use cleanroom_contract::{VolumeId, WorkOrder};
use cleanroom_controller::{
    case::{OWN_VPC, Policy},
    flow::{close, fetch, plan, status, teardown},
};

use super::{
    assert_custody, case, coverage::attach, ledger, orders, rescan, short_of_the_room, stacks,
    tear_down,
};
use crate::support::{
    assert_contained, respond, respond_to, run, suspect, ways_to_break, whole_in_spite_of,
};

/// A world whose suspect has so many volumes.
pub(crate) fn with_volumes(count: usize) -> World {
    let mut world = super::small();
    for n in 1..count {
        attach(&mut world, n);
    }
    world
}

/// Every order of the case.
pub(crate) fn all_orders(cloud: &FakeCloud) -> Vec<WorkOrder> {
    cloud.with(|w| {
        let keys = w.bucket.keys(&format!("cases/{}/orders/", case()));
        let read = |key: &String| serde_json::from_slice(w.bucket.newest(key).expect("it")).ok();
        keys.iter().filter_map(read).collect()
    })
}

/// Every volume is examined by a scan that was reported, and by how many; no order asks for more than a room takes, and none for
/// what its room has no copy of.
pub(crate) async fn assert_examined(cloud: &FakeCloud, rooms: usize, what: &str) {
    let ledger = ledger(cloud).await;
    let mut examined: BTreeMap<VolumeId, usize> = BTreeMap::new();
    for order in all_orders(cloud) {
        assert!(order.volumes.len() <= 24, "{what}: {}", order.volumes.len());
        if let Some(report) = ledger.reports.get(&order.scan) {
            assert_eq!((report.room, report.missing.len()), (order.room, 0), "{what}");
            for volume in order.volumes {
                *examined.entry(volume.source).or_default() += 1;
            }
        }
    }
    let volumes = ledger.original.as_ref().expect("it is recorded").volumes();
    let left: Vec<_> = volumes.iter().filter(|v| !examined.contains_key(*v)).collect();
    assert!(left.is_empty(), "{what}: nobody has examined {left:?}");
    assert_eq!(ledger.newest_reports().len(), rooms, "{what}");
    assert_eq!(ledger.shortfalls, Vec::new(), "{what}");
}

async fn standing(cloud: &FakeCloud) -> status::Status {
    let run = run(cloud, Policy::default(), None).await;
    status::status(&run, &case()).await.expect("the case is there")
}

#[tokio::test(start_paused = true)]
async fn every_volume_is_examined_in_as_many_rooms_as_it_takes() {
    for (volumes, rooms) in [(24, 1), (25, 2), (60, 3)] {
        let what = format!("{volumes} volumes");
        let cloud = FakeCloud::new(with_volumes(volumes));
        let report = respond(&cloud, None).await;
        assert!(report.is_whole() && report.reported.is_some(), "{what}: {report:#?}");
        assert_eq!(
            (report.others.len() + 1, stacks(&cloud), orders(&cloud)),
            (rooms, rooms, rooms)
        );
        assert_examined(&cloud, rooms, &what).await;
        let mut seats: Vec<_> = all_orders(&cloud).iter().map(|o| o.volumes.len()).collect();
        seats.sort_unstable();
        assert_eq!(seats.iter().sum::<usize>(), volumes, "{what}: each once");
        let names: Vec<_> = cloud.with(|w| w.built.keys().cloned().collect());
        assert!(names.contains(&format!("cleanroom-{}", case())), "{names:?}");
        for n in 2..=rooms {
            assert!(names.contains(&format!("cleanroom-{}-room-{n}", case())), "{names:?}");
        }
        // Once more: nothing is ordered or made again.
        let again = respond(&cloud.restarted(), None).await;
        assert!(again.is_whole() && again.others.len() + 1 == rooms, "{what}: {again:#?}");
        assert_eq!((stacks(&cloud), orders(&cloud)), (rooms, rooms), "{what}");
        assert_custody(&cloud, &what).await;
    }
}

#[tokio::test(start_paused = true)]
async fn a_plan_names_every_room() {
    let cloud = FakeCloud::new(with_volumes(60));
    let run = run(&cloud, Policy::default(), None).await;
    let instance = run.cloud.inventory.get_instance(&suspect()).await.expect("it is there");
    let plan = plan::plan(&run, &instance, Some("a test")).await.expect("a plan");
    let stacks = plan.entries.iter().filter(|e| e.operation == "cloudformation:CreateStack");
    let named: Vec<_> = stacks.map(|entry| entry.resource.clone()).collect();
    let first = format!("cleanroom-{}", case());
    assert_eq!(named, [first.clone(), format!("{first}-room-2"), format!("{first}-room-3")]);
    assert!(plan.entries.iter().any(|e| e.what.contains("12 of the 60 snapshots")));
}

#[tokio::test(start_paused = true)]
async fn all_rooms_of_a_case_are_seen_scanned_again_fetched_and_taken_down() {
    let cloud = FakeCloud::new(with_volumes(60));
    respond(&cloud, None).await;
    let seen = standing(&cloud).await;
    assert_eq!((seen.rooms.len(), seen.scans.len()), (3, 3), "{seen:#?}");
    assert!(seen.rooms.iter().all(|room| room.stands), "{seen:#?}");
    assert!(seen.scans.iter().all(|scan| scan.reported && !scan.silent), "{seen:#?}");

    let rescanned = rescan(&cloud, &["a.yar"]).await;
    assert!(rescanned.is_whole() && rescanned.others.len() == 2, "{rescanned:#?}");
    assert_eq!((stacks(&cloud), orders(&cloud)), (3, 6), "in the rooms that stand");
    let at_work = run(&cloud, Policy::default(), None).await;
    let newest = fetch::newest(&at_work, &case()).await.expect("reports");
    let scans: Vec<_> = [&rescanned.scan]
        .into_iter()
        .chain(rescanned.others.iter().map(|other| &other.scan))
        .map(|scan| scan.clone().expect("a scan"))
        .collect();
    assert_eq!(newest.into_values().collect::<Vec<_>>(), scans, "one of each room");

    let closed = close::close(&at_work, &case(), Some("done")).await;
    let error = closed.expect_err("its rooms stand").to_string();
    assert!(error.contains("cleanroom teardown"), "{error}");
    let torn = tear_down(&cloud).await;
    assert!(torn.whole, "{torn:#?}");
    assert!(cloud.with(|w| w.built.is_empty() && w.volumes.len() == 60), "copies are gone");
    assert_eq!(standing(&cloud).await.rooms, Vec::new());
    let run = run(&cloud, Policy::default(), None).await;
    close::close(&run, &case(), Some("done")).await.expect("it closes");
    assert_custody(&cloud, "closed").await;
}

#[tokio::test(start_paused = true)]
async fn a_case_is_not_closed_while_its_last_room_stands_alone() {
    let cloud = FakeCloud::new(with_volumes(25));
    respond(&cloud, None).await;
    cloud.with(|w| w.built.remove(&format!("cleanroom-{}", case())));
    let at_work = run(&cloud, Policy::default(), None).await;
    let closed = close::close(&at_work, &case(), Some("done")).await;
    assert!(closed.expect_err("one stands").to_string().contains("-room-2"));
    assert_eq!(standing(&cloud).await.rooms.len(), 1);
}

#[tokio::test(start_paused = true)]
async fn a_room_that_can_not_be_made_is_short_and_the_others_report() {
    let cloud = FakeCloud::new(with_volumes(25));
    // The last by the names of their devices is /dev/sd9.
    let refused: VolumeId = format!("vol-{:017x}", 9).parse().expect("a volume id");
    cloud.with(|w| w.room.refuses = [(refused.clone(), "a code".to_owned())].into());
    let report = respond(&cloud, None).await;
    // The last room has that volume alone: there is nothing that it could be made with.
    let short = short_of_the_room(&report).join("; ");
    assert!(report.reported.is_some() && !report.is_whole(), "{report:#?}");
    assert!(short.contains("-room-2") || short.contains(refused.as_str()), "{short}");
    cloud.with(|w| w.room.refuses.clear());
    let report = respond(&cloud.restarted(), None).await;
    assert!(report.is_whole(), "{report:#?}");
    assert_examined(&cloud, 2, "mended").await;
}

#[tokio::test(start_paused = true)]
async fn a_volume_that_comes_when_a_room_is_full_is_examined_in_another() {
    let cloud = FakeCloud::new(with_volumes(24));
    assert!(respond(&cloud, None).await.is_whole());
    assert_eq!(stacks(&cloud), 1);
    let late = cloud.with(|w| attach(w, 99));
    let report = respond(&cloud.restarted(), None).await;
    assert!(report.is_whole(), "{report:#?}");
    assert_eq!((stacks(&cloud), orders(&cloud)), (2, 2));
    let last = all_orders(&cloud).into_iter().find(|order| order.room == 2).expect("an order");
    assert_eq!(last.volumes.iter().map(|v| &v.source).collect::<Vec<_>>(), [&late]);
    assert!(tear_down(&cloud).await.whole);
    assert!(cloud.with(|w| w.built.is_empty()));
}

#[tokio::test(start_paused = true)]
async fn rooms_stand_no_more_at_a_time_than_there_is_place_for() {
    for (places, at_once) in [(1, 1), (4, 2)] {
        let cloud = FakeCloud::new(with_volumes(60));
        let mut run = run(&cloud, Policy::default(), None).await;
        let shared = cleanroom_controller::case::Shared::new();
        shared.rooms.forget_permits((4 - places) * OWN_VPC as usize);
        run.shared = Arc::new(shared);
        let report = respond_to(&run, &suspect()).await.expect("it is not refused");
        assert!(report.is_whole(), "{places}: {report:#?}");
        let mut begun: Vec<_> =
            cloud.with(|w| w.built.values().map(|b| b.stack.created.seconds).collect());
        begun.sort_unstable();
        // A room is made in two minutes, and reports after that.
        let soon = begun.windows(2).filter(|two| two[1] - two[0] < 120).count();
        assert_eq!(soon, at_once - 1, "{places}: {begun:?}");
    }
}

#[tokio::test(start_paused = true)]
async fn two_runs_at_once_share_the_rooms() {
    let cloud = FakeCloud::new(with_volumes(25));
    cloud.set_latency(Duration::from_millis(50));
    let other =
        cloud.as_caller("arn:aws:sts::123456789012:assumed-role/cleanroom-controller/other");
    let (one, two) = tokio::join!(respond(&cloud, None), respond(&other, None));
    assert!(one.reported.is_some() && two.reported.is_some(), "{one:#?} {two:#?}");
    assert_eq!(stacks(&cloud), 2);
    assert_custody(&cloud, "two at once").await;
}

#[tokio::test(start_paused = true)]
async fn rooms_broken_at_any_call_report_all_the_same() {
    let cloud = FakeCloud::new(with_volumes(25));
    respond(&cloud, None).await;
    // Looks are broken where there is one room: what two rooms do beside each other is to write and to make.
    let calls = cloud.calls().into_iter().skip_while(|c| !c.resource.contains("/orders/"));
    let calls: Vec<_> = calls.filter(|c| c.mutates).map(|call| (call.n, true)).collect();
    assert!(calls.len() > 10, "{calls:?}");
    for way in ways_to_break(calls) {
        let before = with_volumes(25);
        let (process, what) = whole_in_spite_of(before.clone(), way).await;
        assert_eq!(stacks(&process), 2, "{what}: two rooms");
        assert_examined(&process, 2, &what).await;
        assert_contained(&process, &before, &what).await;
        assert_custody(&process, &what).await;
    }
}

#[tokio::test(start_paused = true)]
async fn a_teardown_broken_at_any_call_leaves_nothing_of_any_room() {
    let tears_down = async |cloud: &FakeCloud| {
        let run = run(cloud, Policy::default(), None).await;
        match teardown::propose(&run, &case()).await {
            Ok(proposal) => teardown::carry_out(proposal).await.is_ok_and(|torn| torn.whole),
            Err(_) => false,
        }
    };
    let cloud = FakeCloud::new(with_volumes(25));
    respond(&cloud, None).await;
    let before = cloud.calls().len();
    assert!(tears_down(&cloud).await);
    let calls = cloud.calls().split_off(before);
    let calls =
        (1..).zip(calls.into_iter().map(|call| call.mutates)).filter(|(_, mutates)| *mutates);
    for (fault, n) in ways_to_break(calls) {
        let cloud = FakeCloud::new(with_volumes(25));
        respond(&cloud, None).await;
        let what = format!("{fault:?} at call {n} of a teardown");
        cloud.fault(fault, At::Call(n));
        let mut process = cloud.clone();
        let mut whole = false;
        for _ in 0..3 {
            whole = tokio::select! {
                whole = tears_down(&process) => whole,
                () = process.died() => false,
            };
            if whole {
                break;
            }
            process = process.restarted();
        }
        assert!(whole && process.with(|w| w.built.is_empty()), "{what}");
        assert_custody(&process, &what).await;
    }
}
