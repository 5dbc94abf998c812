//! The whole response against the cloud in memory: well, twice, and broken at every call.

use std::time::Duration;

use cleanroom_cloud::ErrorKind;
use cleanroom_cloud_fake::{At, FakeCloud, Fault, World};

use crate::support::{assert_contained, changes_since, respond, respond_or_die, suspect};

#[tokio::test(start_paused = true)]
async fn the_full_instance_is_contained_and_preserved() {
    let before = World::full();
    let cloud = FakeCloud::new(before.clone());
    let report = respond(&cloud, None).await;
    assert!(report.is_whole(), "{report:#?}");
    assert_contained(&cloud, &before, "a run without faults").await;
}

#[tokio::test(start_paused = true)]
async fn the_plain_instance_is_contained_and_preserved() {
    let before = World::plain();
    let cloud = FakeCloud::new(before.clone());
    let report = respond(&cloud, None).await;
    assert!(report.is_whole(), "{report:#?}");
    assert_contained(&cloud, &before, "the plain instance").await;
}

#[tokio::test(start_paused = true)]
async fn a_second_run_changes_nothing() {
    for before in [World::plain(), World::full()] {
        let cloud = FakeCloud::new(before.clone());
        respond(&cloud, None).await;
        let first = cloud.calls().len() as u64;
        let again = respond(&cloud.restarted(), None).await;
        assert!(again.is_whole() && again.joined, "{again:#?}");
        // Writing to the log that nothing was done would be a change, too.
        assert_eq!(changes_since(&cloud, first), Vec::<String>::new());
    }
}

#[tokio::test(start_paused = true)]
async fn an_instance_whose_interfaces_do_not_show_is_not_called_contained() {
    let cards = |world: &World| world.machine(&suspect()).expect("the suspect").cards.clone();
    let all: Vec<_> = cards(&World::full()).iter().map(|card| card.interface.id.clone()).collect();
    // All of them, the primary alone, and the second alone.
    for hidden in [&all[..], &all[..1], &all[1..]] {
        let mut world = World::full();
        world.unlisted.extend(hidden.iter().cloned());
        let cloud = FakeCloud::new(world);
        let report = respond(&cloud, None).await;
        assert!(!report.contained && !report.is_whole(), "{hidden:?}: {report:#?}");
        assert!(report.preserved, "what does not need the network is done: {report:#?}");
        for card in cards(&cloud.world()) {
            let shows = !hidden.contains(&card.interface.id);
            assert!(!shows || card.interface.groups.len() == 1, "what shows is cut: {card:?}");
        }
        cloud.with(|w| w.unlisted.clear());
        let report = respond(&cloud.restarted(), None).await;
        assert!(report.contained, "{hidden:?}: {report:#?}");
        assert!(cloud.world().is_cut(&suspect()));
    }
}

#[tokio::test(start_paused = true)]
async fn what_shows_is_cut_though_nobody_tells_of_what_does_not() {
    let mut world = World::full();
    let cards = world.machine(&suspect()).expect("the suspect").cards.clone();
    let [shown, hidden] = [0, 1].map(|n: usize| cards[n].interface.id.clone());
    world.unlisted.insert(hidden);
    let cloud = FakeCloud::new(world);
    // The first one finds the instance.
    let described = At::Matching("ec2:DescribeInstances".to_owned(), 2);
    cloud.faults(Fault::Refuse(ErrorKind::Denied), described, 100);
    let report = respond(&cloud, None).await;
    assert!(!report.contained, "{report:#?}");
    let world = cloud.world();
    let groups = &world.card(&shown).expect("the primary").interface.groups;
    assert_ne!(*groups, cards[0].interface.groups);
    assert_eq!(groups.len(), 1);
}

#[tokio::test(start_paused = true)]
async fn an_interface_that_was_detached_since_is_not_waited_for() {
    let cloud = FakeCloud::new(World::full());
    let report = respond(&cloud, None).await;
    assert!(report.contained, "{report:#?}");
    cloud.with(|w| w.machines.get_mut(&suspect()).expect("the instance").cards.truncate(1));
    let began = tokio::time::Instant::now();
    let report = respond(&cloud.restarted(), None).await;
    assert!(report.contained, "{report:#?}");
    assert!(began.elapsed() < Duration::from_secs(20), "it waited for nothing");
}

/// Breaks a run at one call in one way, runs again until a run ends, and judges.
async fn broken(before: &World, fault: Fault, n: u64) {
    let cloud = FakeCloud::new(before.clone());
    let spool = tempfile::tempdir().expect("a folder for the spool");
    cloud.fault(fault, At::Call(n));
    let mut process = cloud.clone();
    let mut whole = false;
    for _ in 0..3 {
        if let Some(report) = respond_or_die(&process, Some(spool.path())).await {
            whole = report.is_whole();
            if whole {
                break;
            }
        }
        process = process.restarted();
    }
    let call = cloud.calls().into_iter().find(|call| call.n == n);
    let what = format!("{fault:?} at call {n}, {}", call.map(|c| c.text()).unwrap_or_default());
    assert!(whole, "{what}: three runs did not end it");
    assert_contained(&process, before, &what).await;
}

/// How many calls a run without faults makes.
async fn calls(before: &World) -> u64 {
    let cloud = FakeCloud::new(before.clone());
    respond(&cloud, None).await;
    cloud.calls().len() as u64
}

#[tokio::test(start_paused = true)]
async fn death_before_any_call_loses_nothing() {
    let before = World::full();
    for n in 1..=calls(&before).await {
        broken(&before, Fault::DieBefore, n).await;
    }
}

#[tokio::test(start_paused = true)]
async fn death_after_any_call_loses_nothing() {
    let before = World::full();
    for n in 1..=calls(&before).await {
        broken(&before, Fault::DieAfter, n).await;
    }
}

#[tokio::test(start_paused = true)]
async fn a_lost_answer_at_any_call_loses_nothing() {
    let before = World::full();
    for n in 1..=calls(&before).await {
        broken(&before, Fault::LoseAnswer, n).await;
    }
}

#[tokio::test(start_paused = true)]
async fn throttling_at_any_call_loses_nothing() {
    let before = World::full();
    for n in 1..=calls(&before).await {
        broken(&before, Fault::Refuse(ErrorKind::Throttled), n).await;
    }
}

#[tokio::test(start_paused = true)]
async fn a_call_that_never_ends_holds_up_nothing_for_good() {
    let before = World::full();
    for n in 1..=calls(&before).await {
        let cloud = FakeCloud::new(before.clone());
        cloud.fault(Fault::Hang, At::Call(n));
        // The adapter's own time-out ends such a call; here nothing does, so the person ends the run.
        let ended = tokio::time::timeout(Duration::from_secs(3600), respond(&cloud, None)).await;
        if ended.is_err() {
            cloud.kill();
        }
        let call = cloud.calls().into_iter().find(|call| call.n == n);
        let what = format!("call {n} hangs, {}", call.map(|c| c.text()).unwrap_or_default());
        let process = cloud.restarted();
        let report = respond(&process, None).await;
        assert!(report.is_whole(), "{what}: {report:#?}");
        assert_contained(&process, &before, &what).await;
    }
}
