//! Measures a response against the cloud in memory at a given latency, on a clock that is paused: the same figures on every
//! machine.

use std::time::Duration;

use cleanroom_cloud::{Change, GroupId};
use cleanroom_cloud_fake::{CallRecord, FakeCloud, INSTANCE, World};
use cleanroom_contract::InstanceId;
use cleanroom_controller::{
    case::{Policy, Shared},
    steps::isolate::FORENSIC,
};
use futures_util::{StreamExt as _, stream};

use crate::support::{respond_to, run};

/// What one response took.
#[derive(Debug)]
pub(crate) struct Times {
    /// Until the last interface's new groups were read back.
    pub(crate) contained: Duration,
    /// Until the last interface was closed again after its tracked flows were dropped.
    pub(crate) flushed: Duration,
    /// The calls that led to the read-back, each of which waited for the one before.
    pub(crate) chain: Vec<CallRecord>,
    /// How many calls the response made.
    pub(crate) calls: usize,
}

/// Responds for the suspect of a world, with this latency a call.
pub(crate) async fn one(world: World, latency: Duration) -> Times {
    let suspect: InstanceId = INSTANCE.parse().expect("the fixture's id is valid");
    let cloud = FakeCloud::new(world);
    cloud.set_latency(latency);
    let run = run(&cloud, Policy::default(), None).await;
    let report = respond_to(&run, &suspect).await.expect("not refused");
    assert!(report.is_whole(), "{report:#?}");
    let contained = Duration::from_secs_f64(report.contained_seconds.expect("contained"));
    let calls = cloud.calls();
    let read_back = calls
        .iter()
        .filter(|c| c.operation == "ec2:DescribeNetworkInterfaces")
        .find(|c| c.ended.is_some_and(|ended| ended.abs_diff(contained) < Duration::from_millis(2)))
        .expect("the read-back is a call");
    let groups: std::collections::BTreeSet<GroupId> = cloud
        .with(|w| w.groups.values().filter(|g| g.name == FORENSIC).map(|g| g.id.clone()).collect());
    let cut = |c: &&CallRecord| matches!(&c.change, Some(Change::SetGroups { groups: to, .. }) if *to == groups);
    let last = calls.iter().filter(cut).filter_map(|c| c.ended).max().expect("it was cut");
    Times {
        contained,
        // The read-back of the closing is one more call.
        flushed: last + latency,
        chain: cloud.chain_to(read_back.n),
        calls: calls.len(),
    }
}

/// Responds for a fleet, so many at a time. Returns how long the whole took.
pub(crate) async fn fleet(count: u16, concurrency: usize, latency: Duration) -> (Duration, usize) {
    let mut world = World::fleet(count);
    world.times.snapshot = Duration::from_secs(1);
    let ids: Vec<InstanceId> = world.machines.keys().cloned().collect();
    let cloud = FakeCloud::new(world);
    cloud.set_latency(latency);
    let began = tokio::time::Instant::now();
    let mut run = run(&cloud, Policy::default(), None).await;
    // CloudTrail's limit of two questions a second is for the account: 200 instances take it 200 seconds.
    run.policy.event_pages = 0;
    run.shared = std::sync::Arc::new(Shared::with_slots(concurrency));
    let responses = ids.iter().map(|id| respond_to(&run, id));
    let reports: Vec<_> =
        stream::iter(responses).buffer_unordered(usize::from(count)).collect().await;
    for report in reports {
        let report = report.expect("not refused");
        assert!(report.is_whole(), "{report:#?}");
    }
    (began.elapsed(), cloud.calls().len())
}
