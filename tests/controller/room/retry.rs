//! One volume that can not be had costs the others nothing: the room is made without it, and says so.

use cleanroom_cloud_fake::FakeCloud;
use cleanroom_contract::VolumeId;

use super::{
    assert_custody, ledger, orders, rescan, short_of_the_room, small, stacks, tear_down, world,
};
use crate::support::{respond, suspect};

const CODES: &str = "'vol-0' with Marketplace codes may not be attached as a secondary device.";

/// Has EC2 refuse to attach copies of these.
fn refuse(cloud: &FakeCloud, n: usize) -> Vec<VolumeId> {
    cloud.with(|w| {
        let machine = w.machine(&suspect()).expect("the suspect");
        let volumes = machine.instance.volumes.iter().map(|v| v.volume.clone());
        let volumes: Vec<_> = volumes.take(n).collect();
        w.room.refuses = volumes.iter().map(|v| (v.clone(), CODES.to_owned())).collect();
        volumes
    })
}

#[tokio::test(start_paused = true)]
async fn a_volume_that_can_not_be_attached_is_left_out_by_name_and_the_others_are_examined() {
    let cloud = FakeCloud::new(world());
    let refused = refuse(&cloud, 1).remove(0);
    let report = respond(&cloud, None).await;
    assert!(report.reported.is_some() && !report.is_whole(), "{report:#?}");
    let short = short_of_the_room(&report);
    let why = format!("the room is made without {refused}: Attachment");
    assert!(short.iter().any(|s| s.starts_with(&why) && s.contains(CODES)), "{short:?}");
    assert!(short.iter().all(|s| s.contains(refused.as_str())), "{short:?}");
    assert_eq!((stacks(&cloud), orders(&cloud)), (2, 1));
    let missing = ledger(&cloud).await.reports.into_values().next().expect("a report").missing;
    assert_eq!(missing, std::slice::from_ref(&refused));
    // It stays short in every run, and the room that stands is left as it is.
    let again = respond(&cloud.restarted(), None).await;
    assert!(short_of_the_room(&again)[0].contains(refused.as_str()), "{again:#?}");
    let rescanned = rescan(&cloud, &["a.yar"]).await;
    assert!(!rescanned.is_whole() && rescanned.reported.is_some(), "{rescanned:#?}");
    assert_eq!(stacks(&cloud), 2);
    // Mended, and made anew.
    cloud.with(|w| w.room.refuses.clear());
    tear_down(&cloud).await;
    let rescanned = rescan(&cloud, &["a.yar"]).await;
    assert!(rescanned.is_whole(), "{rescanned:#?}");
    assert!(respond(&cloud.restarted(), None).await.is_whole());
    assert_custody(&cloud, "a volume left out").await;
}

#[tokio::test(start_paused = true)]
async fn where_no_volume_is_left_the_stack_is_not_made_again() {
    for world in [small(), world()] {
        let cloud = FakeCloud::new(world);
        let refused = refuse(&cloud, 3);
        let report = respond(&cloud, None).await;
        assert!(report.contained && report.reported.is_none(), "{report:#?}");
        let short = short_of_the_room(&report);
        assert!(short.len() == 1 && short[0].contains(CODES), "{short:?}");
        assert_eq!(stacks(&cloud), 1, "{refused:?}");
    }
}

#[tokio::test(start_paused = true)]
async fn a_quota_of_rates_that_is_full_costs_the_rate_and_no_volume() {
    let cloud = FakeCloud::new(world());
    cloud.with(|w| w.room.rates = 500);
    let report = respond(&cloud, None).await;
    assert!(report.is_whole() && report.reported.is_some(), "{report:#?}");
    assert!(report.notes.iter().any(|n| n.contains("fill as it comes")), "{report:#?}");
    let rates: Vec<_> = cloud.with(|w| {
        let stacks = w.built.values().map(|built| &built.stack);
        stacks.map(|stack| stack.parameters["InitializationRate"].clone()).collect()
    });
    assert_eq!((rates, stacks(&cloud)), (vec!["0".to_owned()], 2));
}
