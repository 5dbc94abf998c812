//! The budget of automatic containments, counted in the evidence bucket.

use cleanroom_cloud_fake::{FakeCloud, World};
use cleanroom_contract::{CaseId, Timestamp};
use cleanroom_controller::brake::{Counts, counted};
use futures_util::future::join_all;

use crate::support::{run, suspect};
use cleanroom_controller::case::Policy;

fn case(n: usize) -> CaseId {
    format!("case-{n}").parse().expect("a case id")
}

fn at(seconds: i64) -> Timestamp {
    // 2026-11-22T08:00:00Z, and so many seconds.
    Timestamp { seconds: 1_795_334_400 + seconds, nanos: 0 }
}

async fn count(cloud: &FakeCloud, n: usize, group: Option<&str>, seconds: i64) -> Counts {
    let run = run(cloud, Policy::default(), None).await;
    let instance = run.cloud.inventory.get_instance(&suspect()).await.expect("it is there");
    let store = &*run.cloud.store;
    counted(store, &run.caller, (&instance, group), &case(n), at(seconds)).await.expect("counted")
}

#[tokio::test(start_paused = true)]
async fn each_case_counts_those_before_it_and_itself_never() {
    let cloud = FakeCloud::new(World::plain());
    for n in 0..3 {
        let group = (n == 1).then_some("web / blue");
        let counts = count(&cloud, n, group, i64::try_from(n).expect("small")).await;
        assert_eq!(counts, Counts { all: n, group: 0, vpc: n });
    }
    // Asked again it is told the same, whatever came since.
    assert_eq!(count(&cloud, 1, Some("web / blue"), 10).await, Counts { all: 1, group: 0, vpc: 1 });
    assert_eq!(count(&cloud, 3, Some("web / blue"), 11).await.group, 1);
}

#[tokio::test(start_paused = true)]
async fn what_was_an_hour_ago_does_not_count() {
    let cloud = FakeCloud::new(World::plain());
    // Across the hour's end, where the marks lie in two folders.
    assert_eq!(count(&cloud, 0, None, 0).await.all, 0);
    assert_eq!(count(&cloud, 1, None, 1800).await.all, 1);
    assert_eq!(count(&cloud, 2, None, 3600).await.all, 2);
    assert_eq!(count(&cloud, 3, None, 3601).await.all, 2);
    assert_eq!(count(&cloud, 4, None, 9000).await.all, 0);
}

#[tokio::test(start_paused = true)]
async fn of_cases_that_race_each_has_a_place_of_its_own() {
    let cloud = FakeCloud::new(World::plain());
    let counts = join_all((0..8).map(|n| count(&cloud, n, None, 0))).await;
    let again = join_all((0..8).map(|n| count(&cloud, n, None, 5))).await;
    let mut places: Vec<_> = again.iter().map(|counts| counts.all).collect();
    places.sort_unstable();
    assert_eq!(places, [0, 1, 2, 3, 4, 5, 6, 7]);
    // Whoever read before another had written may have counted one too few of those that are behind it, never of those
    // that were there.
    for (first, later) in counts.iter().zip(&again) {
        assert!(first.all <= later.all, "{first:?} {later:?}");
    }
}
