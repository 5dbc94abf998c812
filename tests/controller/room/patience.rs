//! How long what is waited for: a room that is busy, a store that fails, and clocks that differ.

use std::{sync::Arc, time::Duration};

use cleanroom_cloud_fake::{FakeCloud, RoomEnds};
use cleanroom_contract::{Timestamp, bundle_prefix};
use cleanroom_controller::{
    case::{Clock, Policy},
    flow::rescan as rescans,
};

use super::{
    assert_custody, case, newest_order, orders, rescan, rules, short_of_the_room, small, stacks,
    tear_down,
};
use crate::support::{respond, run};

const MINUTE: Duration = Duration::from_secs(60);

/// When the first call of this text was made, in a world where nothing goes wrong.
async fn when(text: &str) -> Duration {
    let cloud = FakeCloud::new(small());
    respond(&cloud, None).await;
    let call = cloud.calls().into_iter().find(|call| call.text().contains(text));
    call.unwrap_or_else(|| panic!("no call {text}")).started
}

#[tokio::test(start_paused = true)]
async fn a_rescan_behind_a_scan_that_runs_is_not_silent() {
    let cloud = FakeCloud::new(small());
    // The first scan takes an hour, and tells something every twelve minutes.
    cloud.with(|w| w.room.pace = MINUTE * 12);
    let later = async {
        tokio::time::sleep(MINUTE * 10).await;
        rescan(&cloud, &["a.yar"]).await
    };
    let (report, rescanned) = tokio::join!(respond(&cloud, None), later);
    assert!(report.is_whole(), "{report:#?}");
    assert!(rescanned.is_whole(), "{rescanned:#?}");
    assert_eq!((stacks(&cloud), orders(&cloud)), (1, 2));
}

#[tokio::test(start_paused = true)]
async fn a_rescan_in_a_room_that_tells_nothing_at_all_is_silent() {
    let cloud = FakeCloud::new(small());
    respond(&cloud, None).await;
    cloud.with(|w| w.room.ends = RoomEnds::FallsSilent(0));
    let began = cloud.elapsed();
    let rescanned = rescan(&cloud, &["a.yar"]).await;
    let what = &rescanned.shortfalls[0].what;
    assert!(what.contains("it has told nothing within 20 minutes"), "{what}");
    assert!(cloud.elapsed() - began < MINUTE * 25);
}

#[tokio::test(start_paused = true)]
async fn a_store_that_fails_for_minutes_costs_no_report() {
    let events = format!("s3:GetObject cases/{}/bundles/", case());
    for from in [when(&events).await, when("SHA256SUMS").await] {
        let cloud = FakeCloud::new(small());
        cloud.outage_between(&events, from, from + MINUTE * 15);
        let report = respond(&cloud, None).await;
        assert!(report.is_whole() && report.reported.is_some(), "from {from:?}: {report:#?}");
        assert_eq!((stacks(&cloud), orders(&cloud)), (1, 1));
    }
}

#[tokio::test(start_paused = true)]
async fn a_store_that_fails_for_good_is_told_of_and_not_the_room() {
    let events = format!("s3:GetObject cases/{}/bundles/", case());
    let from = when(&events).await;
    let cloud = FakeCloud::new(small());
    cloud.outage_between(&events, from, from + MINUTE * 120);
    let report = respond(&cloud, None).await;
    let short = short_of_the_room(&report);
    assert!(short.len() == 1 && short[0].contains("can not be read: for 20 minutes"), "{short:?}");
    tokio::time::sleep(MINUTE * 120).await;
    let again = respond(&cloud.restarted(), None).await;
    assert!(again.is_whole() && again.reported.is_some(), "{again:#?}");
    assert_eq!(orders(&cloud), 1, "published meanwhile, it is read back although its room is gone");
}

/// A clock that is behind that of who wrote the first order.
struct Behind(FakeCloud);

impl Clock for Behind {
    fn now(&self) -> Timestamp {
        let now = self.0.now();
        Timestamp { seconds: now.seconds - 86_400, ..now }
    }
}

#[tokio::test(start_paused = true)]
async fn an_order_from_a_clock_that_is_behind_is_named_after_the_newest_and_taken_up() {
    let cloud = FakeCloud::new(small());
    let first = respond(&cloud, None).await.reported.expect("a report").scan;
    let policy = Policy { room: rules(&["a.yar"]), ..Policy::default() };
    let mut late = run(&cloud, policy, None).await;
    late.clock = Arc::new(Behind(cloud.clone()));
    let rescanned = rescans::rescan(&late, &case()).await.expect("the case is there");
    assert!(rescanned.is_whole(), "{rescanned:#?}");
    assert!(rescanned.scan.expect("a scan") > first);
    assert_eq!((stacks(&cloud), orders(&cloud)), (1, 2));
}

#[tokio::test(start_paused = true)]
async fn a_scan_whose_room_ended_while_it_published_is_ordered_anew() {
    let cloud = FakeCloud::new(small());
    // Sealed, and no more.
    cloud.with(|w| w.room.ends = RoomEnds::FallsSilent(4));
    let report = respond(&cloud, None).await;
    assert!(report.reported.is_none(), "{report:#?}");
    let half = newest_order(&cloud).scan;
    let key = format!("{}findings.jsonl", bundle_prefix(&case(), &half));
    cloud.with(|w| {
        w.bucket.overwrite(&key, b"of a scan at another time".to_vec());
        w.room.ends = RoomEnds::Publishes;
    });
    tear_down(&cloud).await;
    let report = respond(&cloud.restarted(), None).await;
    assert!(report.is_whole() && report.reported.is_some(), "{report:#?}");
    assert_ne!(newest_order(&cloud).scan, half);
    assert_eq!((stacks(&cloud), orders(&cloud)), (2, 2));
    assert_custody(&cloud, "half a bundle").await;
}
