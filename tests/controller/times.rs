//! The times that containment is designed for, at 50 ms a call, on a paused clock: they are counts of dependent calls.

use std::time::Duration;

use cleanroom_cloud_fake::World;

use crate::measure;

const LATENCY: Duration = Duration::from_millis(50);

#[tokio::test(start_paused = true)]
async fn one_interface_is_cut_and_read_back_within_24_dependent_calls() {
    let times = measure::one(World::plain(), LATENCY).await;
    assert!(times.contained <= Duration::from_millis(1200), "{times:#?}");
    assert!(times.flushed - times.contained <= Duration::from_secs(1), "{times:#?}");
    // The time is that of the chain: nothing waits without a call.
    assert_eq!(LATENCY * u32::try_from(times.chain.len()).expect("few"), times.contained);
    assert!(times.calls < 400, "{} calls for one instance", times.calls);
}

#[tokio::test(start_paused = true)]
async fn four_interfaces_with_groups_and_balancers_are_cut_within_32_dependent_calls() {
    let times = measure::one(World::interfaces(4), LATENCY).await;
    assert!(times.contained <= Duration::from_millis(1600), "{times:#?}");
}

#[tokio::test(start_paused = true)]
async fn two_hundred_instances_are_done_within_300_dependent_calls() {
    let (took, _) = measure::fleet(200, 50, LATENCY).await;
    assert!(took <= Duration::from_secs(15), "{took:?}");
}
