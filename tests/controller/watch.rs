//! Watching over more cases than there is time for: none is forgotten, and none is waited for too long.

use std::{collections::BTreeSet, time::Duration};

use cleanroom_cloud_fake::{FakeCloud, World};
use cleanroom_contract::InstanceId;
use cleanroom_controller::{case::Policy, flow::contain_only};
use futures_util::future::join_all;
use tokio::time::{Instant, sleep};

use crate::support::{respond_to, run};

/// How many cases there are.
const CASES: u16 = 60;

/// How long a round may take, a little more than a look may.
const WITHIN: Duration = Duration::from_secs(125);

/// Puts an instance's interfaces back to what they were before its case.
fn undo(cloud: &FakeCloud, before: &World, id: &InstanceId) {
    cloud.with(|world| {
        for card in &before.machine(id).expect("it was there").cards {
            let now = world.card_mut(&card.interface.id).expect("its card");
            now.interface.groups = card.interface.groups.clone();
        }
    });
}

#[tokio::test(start_paused = true)]
async fn every_open_case_is_looked_at_though_no_round_has_time_for_all() {
    let before = World::fleet(CASES);
    let cloud = FakeCloud::new(before.clone());
    let at_work = run(&cloud, Policy::default(), None).await;
    let all: BTreeSet<_> = before.machines.keys().take(CASES.into()).cloned().collect();
    let responses = join_all(all.iter().map(|id| respond_to(&at_work, id))).await;
    assert!(responses.into_iter().all(|report| report.expect("not refused").contained));

    // From here on every call takes its time.
    cloud.set_latency(Duration::from_secs(2));
    let mut seen = BTreeSet::new();
    let mut rounds = 0;
    while seen.len() < all.len() {
        rounds += 1;
        assert!(rounds <= usize::from(CASES), "{} of {CASES} in {rounds} rounds", seen.len());
        let began = Instant::now();
        let round = contain_only::watch(&at_work, began + WITHIN).await.expect("the cases");
        assert!(began.elapsed() <= WITHIN, "{:?}", began.elapsed());
        assert_eq!(round.watched.len() + round.left, usize::from(CASES));
        assert!(round.watched.iter().all(|seen| seen.unknown.is_empty()), "{round:#?}");
        let now: BTreeSet<_> = round.watched.into_iter().map(|seen| seen.instance).collect();
        if rounds == 1 {
            assert!(
                round.left > usize::from(CASES) / 2,
                "there was time for nearly all: {}",
                now.len()
            );
            // Somebody undoes what was not looked at.
            for id in all.difference(&now) {
                undo(&cloud, &before, id);
            }
        }
        seen.extend(now);
        sleep(Duration::from_secs(3_600)).await;
    }
    for id in &all {
        assert!(cloud.world().is_cut(id), "{id} is not contained");
    }
}

#[tokio::test(start_paused = true)]
async fn a_case_that_never_answers_is_told_and_keeps_none_from_being_looked_at() {
    let before = World::fleet(3);
    let cloud = FakeCloud::new(before.clone());
    let at_work = run(&cloud, Policy::default(), None).await;
    for id in before.machines.keys().take(3) {
        respond_to(&at_work, id).await.expect("not refused");
    }
    // No look ends in time.
    cloud.set_latency(Duration::from_secs(50));
    let began = Instant::now();
    let round = contain_only::watch(&at_work, began + 10 * WITHIN).await.expect("the cases");
    assert_eq!((round.watched.len(), round.left), (3, 0));
    for seen in &round.watched {
        assert!(seen.unknown[0].contains("longer than 120"), "{seen:?}");
        assert!(seen.contained.is_none(), "{seen:?}");
    }
}
