//! A room that stands, as `status` and `close` tell of it, and what it costs.

use std::time::Duration;

use cleanroom_cloud::ErrorKind;
use cleanroom_cloud_fake::{At, FakeCloud, Fault, RoomEnds};
use cleanroom_contract::{RoomEvent, RoomNews, Timestamp, VersionOne, event_key, events_prefix};
use cleanroom_controller::{
    case::Policy,
    flow::{close, standing::Standing, status},
};

use super::{assert_custody, case, small, tear_down, world};
use crate::support::{changes_since, respond, run};

/// The room, as `status` tells of it.
async fn standing(cloud: &FakeCloud) -> Option<Standing> {
    let run = run(cloud, Policy::default(), None).await;
    status::status(&run, &case()).await.expect("the case is there").rooms.pop()
}

#[tokio::test(start_paused = true)]
async fn a_standing_room_is_told_with_its_cost_until_it_is_torn_down() {
    let cloud = FakeCloud::new(world());
    respond(&cloud, None).await;
    let room = standing(&cloud).await.expect("a room");
    let built = cloud.with(|w| w.built.values().next().expect("a stack").clone());
    assert_eq!((&room.stack, &room.instance), (&built.stack.name, &built.instance));
    assert_eq!((room.state.as_deref(), room.since), (Some("running"), built.stack.created));
    // m6i.4xlarge, four endpoints, 608 + 83 GiB of gp3, and 73 MiB/s for each of three volumes.
    let expected = 0.768 + 0.04 + (691.0 * 0.08 + 3.0 * 73.0 * 0.04) / 730.0;
    assert!((room.dollars_an_hour - expected).abs() < 0.0005, "{room}, not {expected}");
    // It has ended itself, and costs less.
    tokio::time::sleep(Duration::from_secs(5400)).await;
    let off = standing(&cloud).await.expect("a room that is off");
    assert_eq!(off.state.as_deref(), Some("stopped"));
    assert!((off.dollars_an_hour - expected + 0.768).abs() < 0.0005, "{off}");
    tear_down(&cloud).await;
    assert_eq!(standing(&cloud).await, None);
}

#[tokio::test(start_paused = true)]
async fn a_stack_of_which_nothing_stands_costs_nothing() {
    let cloud = FakeCloud::new(small());
    cloud.with(|w| w.room.fails = Some(("Role".to_owned(), "no rights".to_owned())));
    respond(&cloud, None).await;
    let room = standing(&cloud).await.expect("a stack");
    assert_eq!((room.stands, room.dollars_an_hour), (false, 0.0));
    assert!(room.to_string().ends_with("ROLLBACK_COMPLETE: nothing of it stands"), "{room}");
}

#[tokio::test(start_paused = true)]
async fn a_case_is_not_closed_while_its_room_stands() {
    let cloud = FakeCloud::new(small());
    respond(&cloud, None).await;
    let close = async |cloud: &FakeCloud| {
        let run = run(cloud, Policy::default(), None).await;
        close::close(&run, &case(), Some("done")).await
    };
    let before = cloud.calls().len() as u64;
    let error = close(&cloud).await.expect_err("its room stands").to_string();
    let advice = format!("cleanroom teardown {}", case());
    assert!(error.contains("USD an hour") && error.contains(&advice), "{error}");
    assert_eq!(changes_since(&cloud, before), Vec::<String>::new());
    tear_down(&cloud).await;
    close(&cloud).await.expect("it closes");
    assert_custody(&cloud, "closed").await;
}

#[tokio::test(start_paused = true)]
async fn a_case_is_closed_though_nobody_can_say_whether_its_room_stands() {
    let cloud = FakeCloud::new(small());
    respond(&cloud, None).await;
    cloud.fault(
        Fault::Refuse(ErrorKind::Denied),
        At::Matching("cloudformation:DescribeStacks".to_owned(), 1),
    );
    let run = run(&cloud, Policy::default(), None).await;
    let text = close::close(&run, &case(), Some("done")).await.expect("it closes");
    assert!(text.contains("Whether a clean room stands could not be read"), "{text}");
}

#[tokio::test(start_paused = true)]
async fn status_says_what_a_room_could_not_tell_people_and_since_when_it_tells_nothing() {
    let cloud = FakeCloud::new(small());
    let scan = respond(&cloud, None).await.reported.expect("a report").scan;
    let stand = async |cloud: &FakeCloud| {
        let run = run(cloud, Policy::default(), None).await;
        let mut status = status::status(&run, &case()).await.expect("the case is there");
        status.scans.pop().expect("a scan")
    };
    let seen = stand(&cloud).await;
    assert_eq!((seen.reported, seen.silent, seen.untold), (true, false, None));
    // What a room that can not reach its topic tells, and that it has ended itself.
    cloud.with(|w| {
        let seq = 1 + w.bucket.keys(&events_prefix(&case(), &scan)).len() as u64;
        for (seq, news) in [
            (seq, RoomNews::Untold { reason: "sns:Publish: refused\u{1b}[2J".to_owned() }),
            (seq + 1, RoomNews::Idle),
        ] {
            let at = Timestamp::default();
            let (case, scan) = (case(), scan.clone());
            let key = event_key(&case, &scan, seq);
            let event = RoomEvent { v: VersionOne, case, scan, seq, at, news };
            w.bucket.overwrite(&key, serde_json::to_vec(&event).expect("JSON"));
        }
    });
    let seen = stand(&cloud).await;
    assert_eq!(seen.untold.as_deref(), Some("sns:Publish: refused\\u{1b}[2J"));

    let cloud = FakeCloud::new(small());
    cloud.with(|w| w.room.ends = RoomEnds::FallsSilent(2));
    respond(&cloud, None).await;
    let seen = stand(&cloud).await;
    assert_eq!((seen.reported, seen.silent, seen.told.is_some()), (false, true, true), "{seen:?}");
}
