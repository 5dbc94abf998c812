//! No volume is forgotten: not one that is gone, that came late, or that had no good snapshot.

use std::collections::BTreeSet;

use cleanroom_cloud::{AttachedVolume, Volume};
use cleanroom_cloud_fake::{At, FakeCloud, Fault, Outcome, World};
use cleanroom_contract::{InstanceId, VolumeId};
use cleanroom_controller::flow::Report;

use super::{ledger, newest_order, rescan, short_of_the_room, stacks, tear_down, world};
use crate::support::{respond, respond_or_die, suspect};

/// Attaches a volume to the suspect.
pub(super) fn attach(world: &mut World, n: usize) -> VolumeId {
    let id: VolumeId = format!("vol-{n:017x}").parse().expect("a volume id");
    let like = world.volumes.values().next().expect("a volume").clone();
    let device = format!("/dev/sd{n}");
    let attached: Vec<(InstanceId, String)> = vec![(suspect(), device.clone())];
    world.volumes.insert(id.clone(), Volume { id: id.clone(), size: 1, attached, ..like });
    let machine = world.machines.get_mut(&suspect()).expect("the suspect");
    let mapping = AttachedVolume { device, volume: id.clone(), delete_on_termination: false };
    machine.instance.volumes.push(mapping);
    id
}

fn examined(cloud: &FakeCloud) -> Vec<VolumeId> {
    newest_order(cloud).volumes.into_iter().map(|volume| volume.source).collect()
}

async fn again(cloud: &FakeCloud) -> Report {
    respond(&cloud.restarted(), None).await
}

#[tokio::test(start_paused = true)]
async fn volumes_that_are_gone_are_examined_from_their_snapshots() {
    let cloud = FakeCloud::new(world());
    respond(&cloud, None).await;
    let volumes = ledger(&cloud).await.original.expect("it").volumes();
    tear_down(&cloud).await;
    cloud.with(|w| {
        w.terminate(&suspect());
        w.volumes.clear();
    });
    let rescanned = rescan(&cloud, &["a.yar"]).await;
    assert!(rescanned.is_whole(), "{rescanned:#?}");
    assert_eq!(BTreeSet::from_iter(examined(&cloud)), volumes);
}

#[tokio::test(start_paused = true)]
async fn a_volume_that_is_gone_before_its_snapshot_is_told_and_the_others_are_preserved() {
    let cloud = FakeCloud::new(world());
    // An earlier run recorded the instance, and died before it took anything.
    cloud.fault(Fault::DieBefore, At::Matching("ec2:CreateSnapshots".to_owned(), 1));
    assert!(respond_or_die(&cloud, None).await.is_none(), "it dies");
    let gone = cloud.with(|w| {
        let machine = w.machines.get_mut(&suspect()).expect("the suspect");
        let gone = machine.instance.volumes.pop().expect("a volume").volume;
        w.volumes.remove(&gone);
        gone
    });
    let report = again(&cloud).await;
    assert!(report.preserved && report.reported.is_some() && !report.is_whole(), "{report:#?}");
    let what = format!("gone without a good snapshot: {gone}");
    assert!(report.shortfalls.iter().any(|s| s.what == what), "{report:#?}");
    let short = short_of_the_room(&report).join("; ");
    assert!(short.contains(&format!("no scan has examined {gone}")), "{short}");
    let done = cloud.changes().into_iter().filter(|call| call.outcome == Outcome::Done);
    let taken = done.map(|call| call.operation).filter(|o| o.starts_with("ec2:CreateSnapshot"));
    assert_eq!(taken.collect::<Vec<_>>(), ["ec2:CreateSnapshots"], "at one point in time");
    assert_eq!(report.snapshots.len(), 2);
}

#[tokio::test(start_paused = true)]
async fn a_volume_that_came_after_the_order_is_short_and_then_examined() {
    let cloud = FakeCloud::new(world());
    let first = respond(&cloud, None).await.reported.expect("a report");
    let late = cloud.with(|w| attach(w, 1));
    let report = again(&cloud).await;
    let short = short_of_the_room(&report);
    assert!(short.len() == 1 && short[0].contains(late.as_str()), "{short:?}");
    assert_eq!(report.reported.as_ref(), Some(&first));

    // Its snapshots are others than the standing room's: that one examines what it has, and says what it has not.
    let rescanned = rescan(&cloud, &["a.yar"]).await;
    assert!(rescanned.reported.is_some() && !rescanned.is_whole(), "{rescanned:#?}");
    assert_eq!((stacks(&cloud), examined(&cloud).len()), (1, 3));
    let whats: Vec<_> = rescanned.shortfalls.iter().map(|s| s.what.as_str()).collect();
    assert!(whats.iter().all(|what| what.contains(late.as_str())), "{whats:?}");
    assert!(rescanned.shortfalls[0].advice.contains("teardown"), "{rescanned:#?}");
    let missing = ledger(&cloud).await.reports.into_values().next_back().expect("it").missing;
    assert_eq!(missing, std::slice::from_ref(&late));

    tear_down(&cloud).await;
    let report = again(&cloud).await;
    assert!(report.is_whole(), "{report:#?}");
    assert_eq!(examined(&cloud), [late]);
    // A rescan in this room has that one volume only, and says so.
    let rescanned = rescan(&cloud, &["b.yar"]).await;
    assert!(!rescanned.is_whole() && rescanned.shortfalls[0].what.contains("has no copy of"));
    tear_down(&cloud).await;
    let rescanned = rescan(&cloud, &["c.yar"]).await;
    assert!(rescanned.is_whole(), "{rescanned:#?}");
    assert_eq!(examined(&cloud).len(), 4);
}

#[tokio::test(start_paused = true)]
async fn a_volume_without_a_good_snapshot_does_not_keep_the_others_from_their_report() {
    let cloud = FakeCloud::new(world());
    let failing = cloud.with(|w| {
        let machine = w.machine(&suspect()).expect("the suspect");
        let volume = machine.instance.volumes[0].volume.clone();
        w.failing_volumes.insert(volume.clone());
        volume
    });
    let report = respond(&cloud, None).await;
    assert!(report.reported.is_some() && !report.preserved && !report.is_whole(), "{report:#?}");
    let short = short_of_the_room(&report);
    assert!(short.len() == 1 && short[0].contains("no good snapshot"), "{short:?}");
    assert!(short[0].contains(failing.as_str()), "{short:?}");
    assert_eq!(examined(&cloud).len(), 2);
    // The next set has it: it is examined as soon as there is a room for it.
    cloud.with(|w| w.failing_volumes.clear());
    let report = again(&cloud).await;
    assert!(report.preserved && !report.is_whole(), "{report:#?}");
    tear_down(&cloud).await;
    let report = again(&cloud).await;
    assert!(report.is_whole(), "{report:#?}");
    assert_eq!(examined(&cloud), [failing]);
}
