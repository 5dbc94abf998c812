//! Runs a response against the cloud in memory, whole or until its process dies, and judges how the world is left.

use std::{path::Path, sync::Arc, time::Duration};

use cleanroom_cloud::{Change, ErrorKind};
use cleanroom_cloud_fake::{At, FORENSIC_KEY, FORENSIC_ROLE, FakeCloud, Fault, INSTANCE, World};
use cleanroom_contract::{InstanceId, Timestamp};
use cleanroom_controller::{
    case::{Bounds, Clock, Policy, Run, Shared},
    claim::Claim,
    flow::{self, FlowError, Report, Request},
    forensic::ForensicAccount,
    journal,
    progress::Progress,
};

/// The suspect.
pub(crate) fn suspect() -> InstanceId {
    INSTANCE.parse().expect("the fixture's id is valid")
}

struct FakeClock(FakeCloud);

impl Clock for FakeClock {
    fn now(&self) -> Timestamp {
        self.0.now()
    }
}

/// A run of the program against this cloud. Its nonce counts up with the world's clock, so that no two are the same.
pub(crate) async fn run(cloud: &FakeCloud, policy: Policy, spool: Option<&Path>) -> Run {
    static RUNS: std::sync::atomic::AtomicU64 = std::sync::atomic::AtomicU64::new(0);
    let number = RUNS.fetch_add(1, std::sync::atomic::Ordering::Relaxed);
    let started = tokio::time::Instant::now();
    let ports = cloud.cloud();
    let mut caller = ports.inventory.caller().await;
    while caller.as_ref().is_err_and(cleanroom_cloud::CloudError::is_transient) {
        tokio::time::sleep(Duration::from_millis(100)).await;
        caller = ports.inventory.caller().await;
    }
    Run {
        cloud: ports,
        policy,
        bounds: Bounds::default(),
        clock: Arc::new(FakeClock(cloud.clone())),
        caller: caller.expect("somebody calls"),
        nonce: format!("{number:032x}"),
        shared: Arc::new(Shared::new()),
        started,
        progress: Progress::silent(),
        spool: spool.map(Path::to_owned),
        forensic: forensic(cloud),
    }
}

/// The forensic account, where the world has one.
fn forensic(cloud: &FakeCloud) -> Option<ForensicAccount> {
    cloud.with(|world| world.forensic.is_some()).then_some(())?;
    ForensicAccount::of(FORENSIC_ROLE, Some(FORENSIC_KEY.to_owned()), &cloud.forensic())
}

/// Responds for one instance: the whole of it.
pub(crate) async fn respond_to(run: &Run, instance: &InstanceId) -> Result<Report, FlowError> {
    let mut found = run.cloud.inventory.get_instance(instance).await;
    while found.as_ref().is_err_and(cleanroom_cloud::CloudError::is_transient) {
        tokio::time::sleep(Duration::from_millis(100)).await;
        found = run.cloud.inventory.get_instance(instance).await;
    }
    let instance =
        found.map_err(|source| FlowError::Cloud { what: instance.to_string(), source })?;
    let request = Request { instance, case: None, reason: Some("a test".to_owned()) };
    let report = flow::respond(run, &request).await;
    run.shared.finish_units().await;
    report
}

/// Responds for the suspect with everything switched on that a person can ask for.
pub(crate) async fn respond(cloud: &FakeCloud, spool: Option<&Path>) -> Report {
    let run = run(cloud, everything(), spool).await;
    respond_to(&run, &suspect()).await.expect("the suspect is not refused")
}

/// Every step, with image, lock, key and network ACL.
pub(crate) fn everything() -> Policy {
    Policy {
        image: true,
        lock_days: Some(7),
        key: Some(cleanroom_cloud_fake::CASE_KEY.to_owned()),
        acl: true,
        ..Policy::default()
    }
}

/// Responds until done or dead. `None` where the process died.
pub(crate) async fn respond_or_die(cloud: &FakeCloud, spool: Option<&Path>) -> Option<Report> {
    tokio::select! {
        report = respond(cloud, spool) => Some(report),
        () = cloud.died() => None,
    }
}

/// Every way to break these calls, each of which changes something or only looks: what only looks is the same whether the
/// process dies before or after.
pub(crate) fn ways_to_break(calls: impl IntoIterator<Item = (u64, bool)>) -> Vec<(Fault, u64)> {
    let ways = |(n, mutates): (u64, bool)| {
        let always = [Fault::DieBefore, Fault::Refuse(ErrorKind::Throttled)];
        let of_a_change = [Fault::DieAfter, Fault::LoseAnswer].into_iter().filter(move |_| mutates);
        always.into_iter().chain(of_a_change).map(move |fault| (fault, n))
    };
    calls.into_iter().flat_map(ways).collect()
}

/// Breaks a response at one call in one way, and responds again until one is whole and has its report: the process that came
/// so far, and what was broken, in words.
pub(crate) async fn whole_in_spite_of(
    before: World,
    (fault, n): (Fault, u64),
) -> (FakeCloud, String) {
    let cloud = FakeCloud::new(before);
    let spool = tempfile::tempdir().expect("a folder for the spool");
    cloud.fault(fault, At::Call(n));
    let mut process = cloud.clone();
    let mut ended = None;
    for _ in 0..3 {
        ended = respond_or_die(&process, Some(spool.path())).await;
        if ended.as_ref().is_some_and(Report::is_whole) {
            break;
        }
        process = process.restarted();
    }
    let call = cloud.calls().into_iter().find(|call| call.n == n);
    let what = format!("{fault:?} at call {n}, {}", call.map(|c| c.text()).unwrap_or_default());
    let report = ended.unwrap_or_else(|| panic!("{what}: three runs did not end it"));
    assert!(report.is_whole() && report.reported.is_some(), "{what}: {report:#?}");
    (process, what)
}

/// Everything that must hold in the end, whatever went wrong on the way. `before` is the world as it was at first.
pub(crate) async fn assert_contained(cloud: &FakeCloud, before: &World, what: &str) {
    let id = suspect();
    let world = cloud.world();
    let machine = world.machine(&id).expect("the suspect is there");
    assert!(world.is_cut(&id), "{what}: not isolated: {:#?}", machine.cards);
    for card in &machine.cards {
        assert!(!card.tracked, "{what}: tracked flows go on at {}", card.interface.id);
        assert!(card.interface.public.is_empty(), "{what}: a public address is left");
        assert!(!card.auto_public, "{what}: a public address may come");
    }
    assert!(machine.guards.termination && machine.guards.stop, "{what}: {:?}", machine.guards);
    assert!(!machine.guards.shutdown_terminates, "{what}: a shutdown terminates it");
    assert!(machine.instance.volumes.iter().all(|v| !v.delete_on_termination), "{what}");
    assert!(world.scaling_of(&id).is_none(), "{what}: still in its Auto Scaling group");
    assert!(!machine.instance.metadata.endpoint, "{what}: the metadata endpoint answers");
    let on = world.associations.iter().any(|(i, a)| *i == id && a.active);
    assert!(!on, "{what}: the profile is on");
    for (arn, targets) in &world.target_groups {
        let left = targets.targets.iter().filter(|t| !t.draining);
        for target in left {
            let address = machine.cards.iter().any(|c| c.interface.private.contains(&target.id));
            assert!(target.id != id.as_str() && !address, "{what}: registered with {arn}");
        }
    }
    assert!(world.classics.values().all(|c| !c.instances.contains(&id)), "{what}: classic");
    assert_evidence(cloud, before, what).await;
}

/// The snapshots are whole, the originals are recorded right, and the custody log is.
async fn assert_evidence(cloud: &FakeCloud, before: &World, what: &str) {
    let id = suspect();
    let world = cloud.world();
    let cases: Vec<_> =
        world.bucket.keys("instances/").into_iter().filter(|key| key.ends_with(".json")).collect();
    assert_eq!(cases.len(), 1, "{what}: one case, not {cases:?}");
    let claim = world.bucket.newest(&cases[0]).expect("the claim is there");
    let claim: Claim = serde_json::from_slice(claim).expect("the claim is readable");
    let case = claim.case;
    let ports = cloud.cloud();
    let verdict = journal::verify::verify(&*ports.store, &case).await.expect("the store answers");
    assert!(verdict.faults.is_empty(), "{what}: {:#?}", verdict.faults);
    let events = journal::read(&*ports.store, &case).await.expect("the log is readable");
    let ledger = journal::Ledger::of(events.iter().map(|(e, _)| e));
    let original = ledger.original.expect("the original state is recorded");
    for card in &before.machine(&id).expect("it was there").cards {
        let recorded = original.groups();
        let groups = recorded.get(&card.interface.id);
        assert_eq!(groups, Some(&card.interface.groups), "{what}: original groups");
    }
    assert!(ledger.contained_at.is_some(), "{what}: contained");
    assert!(ledger.preserved_at.is_some(), "{what}: preserved");
    let volumes = before.machine(&id).expect("it was there").instance.volumes.len();
    assert_eq!(ledger.snapshots.len(), volumes, "{what}: one snapshot a volume is the evidence");
    let sets = world.snapshots.iter().filter(|s| s.tags.contains_key("cleanroom:set")).count();
    assert!(sets <= 2 * volumes, "{what}: {sets} snapshots of {volumes} volumes");
    // Scaffolding is gone.
    let flush = world.groups.values().filter(|g| g.name.starts_with("cleanroom-flush"));
    assert_eq!(flush.count(), 0, "{what}: the group that allows everything is left");
}

/// Changes that were tried since the n-th call, as people read them.
pub(crate) fn changes_since(cloud: &FakeCloud, n: u64) -> Vec<String> {
    let changes = cloud.changes().into_iter().filter(|call| call.n > n);
    changes
        .map(|call| {
            format!("{} {} {}", call.operation, call.resource, described(call.change.as_ref()))
        })
        .collect()
}

fn described(change: Option<&Change>) -> String {
    change.map(ToString::to_string).unwrap_or_default()
}
