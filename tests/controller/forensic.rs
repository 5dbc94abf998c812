//! Evidence in another account, against the cloud in memory: shared, copied there once, examined there, and what is told where
//! any of that can not be.

use std::time::Duration;

use cleanroom_cloud::{Change, ErrorKind, Made, SnapshotState};
use cleanroom_cloud_fake::{
    AWS_MANAGED_KEY, CASE_KEY, FORENSIC_ACCOUNT, FORENSIC_CALLER, FORENSIC_KEY, FORENSIC_ROLE,
    FakeCloud, World,
};
use cleanroom_contract::{CaseId, WorkOrder};
use cleanroom_controller::{
    case::{Policy, Step},
    flow::{
        FlowError, Report, plan,
        preflight::{self, Check, Level},
        release, rescan, status, teardown,
    },
    forensic::{Forensic, ForensicAccount},
    journal::{self, Ledger, verify},
};

use crate::support::{
    assert_contained, changes_since, everything, respond, respond_to, run, suspect, ways_to_break,
    whole_in_spite_of,
};

fn case() -> CaseId {
    format!("{}-1", suspect()).parse().expect("a case id")
}

/// A world with everything, an agent in its bucket, and a forensic account.
fn world() -> World {
    let mut world = World::full().with_forensic();
    world.add_agent();
    world
}

/// One volume, under a key of the account's own.
fn small() -> World {
    let mut world = World::plain().with_forensic();
    world.add_agent();
    for volume in world.volumes.values_mut() {
        volume.encrypted = true;
        volume.key = Some(CASE_KEY.to_owned());
    }
    world
}

/// Reads or sets the forensic account.
fn there<R>(cloud: &FakeCloud, f: impl FnOnce(&mut World) -> R) -> R {
    cloud.with(|w| f(w.forensic.as_mut().expect("there is one")))
}

async fn ledger(cloud: &FakeCloud) -> Ledger {
    let events = journal::read(&*cloud.cloud().store, &case()).await.expect("the log");
    Ledger::of(events.iter().map(|(event, _)| event))
}

fn short_of_the_room(report: &Report) -> Vec<&str> {
    let short = report.shortfalls.iter().filter(|s| s.step == Step::CleanRoom);
    short.map(|s| s.what.as_str()).collect()
}

/// The orders in the bucket, oldest first.
fn orders(cloud: &FakeCloud) -> Vec<WorkOrder> {
    cloud.with(|w| {
        let keys = w.bucket.keys(&format!("cases/{}/orders/", case()));
        let read = |key: &String| serde_json::from_slice(w.bucket.newest(key)?).ok();
        keys.iter().filter_map(read).collect()
    })
}

#[tokio::test(start_paused = true)]
async fn the_evidence_is_copied_and_examined_in_the_other_account() {
    let before = world();
    let cloud = FakeCloud::new(before.clone());
    let report = respond(&cloud, None).await;
    assert!(report.is_whole() && report.reported.is_some(), "{report:#?}");
    assert_contained(&cloud, &before, "with a forensic account").await;
    let verdict = verify::verify(&*cloud.cloud().store, &case()).await.expect("the store");
    assert!(verdict.faults.is_empty(), "{:#?}", verdict.faults);

    assert!(cloud.with(|w| w.built.is_empty()), "no room in the instance's own account");
    let (stack, copies) = there(&cloud, |w| {
        (w.built.values().next().expect("a stack").stack.clone(), w.snapshots.clone())
    });
    assert!(stack.id.contains(FORENSIC_ACCOUNT), "{}", stack.id);
    assert_eq!(stack.parameters["KmsKey"], FORENSIC_KEY);
    assert_eq!(stack.parameters["BucketKey"], CASE_KEY, "the bucket's is the other account's");
    assert_eq!(copies.len(), 3);
    let order = orders(&cloud).remove(0);
    for volume in &order.volumes {
        let copy = copies.iter().find(|s| s.id == volume.snapshot).expect("a copy is ordered");
        assert_eq!((copy.owner.as_str(), copy.state), (FORENSIC_ACCOUNT, SnapshotState::Completed));
        assert_eq!(copy.key.as_deref(), Some(FORENSIC_KEY));
        assert_eq!(copy.tags["cleanroom:case"], case().as_str());
        assert!(before.volumes.contains_key(&volume.source), "the original volume: {volume:?}");
    }
    // One is under aws/ebs, and its copy under the case's key is what was shared.
    cloud.with(|w| {
        assert_eq!(w.shares.len(), 3);
        for id in w.shares.keys() {
            let key = w.snapshot(id).expect("it").key.clone();
            assert_ne!(key.as_deref(), Some(AWS_MANAGED_KEY), "{id}");
        }
        let grants: Vec<_> = w.grants.iter().map(|g| (&*g.key, &*g.grantee)).collect();
        assert_eq!(grants, [(CASE_KEY, FORENSIC_ROLE)]);
    });
    let ledger = ledger(&cloud).await;
    assert_eq!(ledger.entrusted, Some((FORENSIC_ACCOUNT.into(), FORENSIC_ROLE.to_owned())));
    assert_eq!(ledger.received.len(), 3);
    let abroad = cloud.calls().into_iter().filter(|c| c.caller == FORENSIC_CALLER);
    for call in abroad {
        let service = call.operation.split(':').next().unwrap_or_default();
        assert!(["sts", "ec2", "kms", "cloudformation"].contains(&service), "{}", call.operation);
    }

    let calls = cloud.calls().len() as u64;
    let again = respond(&cloud.restarted(), None).await;
    assert!(again.is_whole() && again.reported.is_some(), "{again:#?}");
    assert_eq!(changes_since(&cloud, calls), Vec::<String>::new());
}

#[tokio::test(start_paused = true)]
async fn a_copy_needs_the_snapshot_shared_and_its_key_granted() {
    let mut world = small();
    world.times.snapshot = Duration::from_secs(1);
    let cloud = FakeCloud::new(world);
    there(&cloud, |w| w.times.snapshot = Duration::from_secs(1));
    let (home, abroad) = (cloud.cloud(), cloud.forensic());
    let volume = cloud.with(|w| w.volumes.keys().next().expect("a volume").clone());
    let take = Change::CreateSnapshot { volume, description: String::new(), tags: [].into() };
    let Ok(Made::Snapshots(taken)) = home.hands.apply(&take).await else { panic!("taken") };
    let snapshot = taken[0].id.clone();
    tokio::time::sleep(Duration::from_secs(2)).await;
    let copy = Change::CopyFromAccount {
        snapshot: snapshot.clone(),
        owner: "123456789012".into(),
        into: FORENSIC_ACCOUNT.into(),
        key: None,
        tags: [].into(),
    };
    let refused = abroad.hands.apply(&copy).await.expect_err("it is not shared");
    assert_eq!(refused.kind, ErrorKind::NotFound);
    let share =
        Change::ShareSnapshot { snapshot: snapshot.clone(), account: FORENSIC_ACCOUNT.into() };
    home.hands.apply(&share).await.expect("shared");
    let with = home.inventory.shared_with(&snapshot).await.expect("read");
    assert_eq!(with, [FORENSIC_ACCOUNT.into()]);
    abroad.inventory.key(CASE_KEY).await.expect_err("it may not look at the key");
    let grant = Change::GrantKey {
        key: CASE_KEY.to_owned(),
        grantee: FORENSIC_ROLE.to_owned(),
        name: "one".to_owned(),
    };
    let mut ends = Vec::new();
    for _ in 0..2 {
        let Ok(Made::Copy(id)) = abroad.hands.apply(&copy).await else { panic!("accepted") };
        tokio::time::sleep(Duration::from_secs(2)).await;
        ends.push(there(&cloud, |w| w.snapshot(&id).expect("it").state));
        let (one, other) = (home.hands.apply(&grant).await, home.hands.apply(&grant).await);
        assert_eq!(one, other, "one of the same name is the same");
    }
    assert_eq!(ends, [SnapshotState::Error, SnapshotState::Completed]);
}

#[tokio::test(start_paused = true)]
async fn a_grant_that_is_denied_names_the_statement_and_the_key_s_policy_will_do() {
    let before = small();
    let cloud = FakeCloud::new(before.clone());
    assert!(cloud.with(|w| w.ungranted.insert(CASE_KEY.to_owned())));
    let report = respond(&cloud, None).await;
    assert!(report.contained && report.preserved && !report.is_whole(), "{report:#?}");
    let short: Vec<_> = report.shortfalls.iter().filter(|s| s.step == Step::CleanRoom).collect();
    assert_eq!(short.len(), 1, "{short:#?}");
    assert!(short[0].what.contains(CASE_KEY), "{short:?}");
    for part in ["kms:CreateGrant", "kms:ReEncryptFrom", FORENSIC_ROLE] {
        assert!(short[0].advice.contains(part), "{part}: {short:?}");
    }
    assert_contained(&cloud, &before, "without a grant").await;
    assert!(there(&cloud, |w| w.snapshots.is_empty()), "a copy that must fail is not made");

    let admitted = (CASE_KEY.to_owned(), FORENSIC_ACCOUNT.into());
    assert!(cloud.with(|w| w.key_policies.insert(admitted)));
    let report = respond(&cloud.restarted(), None).await;
    assert!(report.is_whole() && report.reported.is_some(), "{report:#?}");
    assert!(report.notes.iter().any(|n| n.contains("is relied on")), "{:#?}", report.notes);
    let again = respond(&cloud.restarted(), None).await;
    assert!(again.is_whole(), "what is there needs no grant: {again:#?}");
}

#[tokio::test(start_paused = true)]
async fn what_is_under_aws_ebs_waits_for_the_case_s_own_key() {
    let mut before = small();
    for volume in before.volumes.values_mut() {
        volume.key = Some(AWS_MANAGED_KEY.to_owned());
    }
    let cloud = FakeCloud::new(before);
    let without = run(&cloud, Policy::default(), None).await;
    let report = respond_to(&without, &suspect()).await.expect("not refused");
    let short = report.shortfalls.iter().find(|s| s.step == Step::CleanRoom).expect("short");
    assert!(short.what.contains("can not be shared") && short.advice.contains("--kms-key"));
    assert!(cloud.with(|w| w.shares.is_empty() && w.grants.is_empty()));
    let report = respond(&cloud.restarted(), None).await;
    assert!(report.is_whole() && report.reported.is_some(), "{report:#?}");
}

#[tokio::test(start_paused = true)]
async fn a_role_that_can_not_be_acted_in_keeps_nobody_from_being_contained() {
    let before = small();
    let cloud = FakeCloud::new(before.clone());
    let with = run(&cloud, everything(), None).await;
    let account = cloud.with(|w| w.forensic.take());
    let report = respond_to(&with, &suspect()).await.expect("not refused");
    assert!(report.contained && report.preserved && report.reported.is_none(), "{report:#?}");
    let short = short_of_the_room(&report);
    assert!(short.len() == 1 && short[0].contains("can not be acted in"), "{short:?}");
    assert!(cloud.with(|w| w.shares.is_empty()), "nothing is shared with who can not copy it");
    assert_contained(&cloud, &before, "without the other account").await;
    cloud.with(|w| w.forensic = account);
    let report = respond(&cloud.restarted(), None).await;
    assert!(report.is_whole() && report.reported.is_some(), "{report:#?}");
}

#[tokio::test(start_paused = true)]
async fn a_copy_that_fails_is_made_again_by_a_few_runs_and_then_left_to_people() {
    let cloud = FakeCloud::new(small());
    there(&cloud, |w| w.keys[0].enabled = false);
    for run in 1..=4 {
        let report = respond(&cloud.restarted(), None).await;
        let short = short_of_the_room(&report);
        assert!(short.len() == 1 && short[0].contains("has no copy"), "{run}: {short:?}");
        assert_eq!(there(&cloud, |w| w.snapshots.len()), run.min(3), "run {run}");
        assert!(orders(&cloud).is_empty());
    }
    there(&cloud, |w| {
        w.keys[0].enabled = true;
        w.snapshots.clear();
    });
    let report = respond(&cloud.restarted(), None).await;
    assert!(report.is_whole() && report.reported.is_some(), "{report:#?}");
}

#[tokio::test(start_paused = true)]
async fn teardown_is_there_leaves_every_snapshot_and_needs_the_account() {
    let cloud = FakeCloud::new(world());
    respond(&cloud, None).await;
    let own = cloud.with(|w| w.snapshots.len());
    let copies = there(&cloud, |w| w.snapshots.len());
    let mut without = run(&cloud, Policy::default(), None).await;
    without.forensic = None;
    let error = teardown::propose(&without, &case()).await.expect_err("it is elsewhere");
    let text = error.to_string();
    assert!(matches!(error, FlowError::Case(_)) && text.contains(FORENSIC_ROLE), "{text}");
    let rescanned = rescan::rescan(&without, &case()).await.expect("the case is there");
    assert!(rescanned.scan.is_none(), "{rescanned:#?}");
    assert!(rescanned.shortfalls[0].advice.contains("--forensic-account"), "{rescanned:#?}");

    let with = run(&cloud, Policy::default(), None).await;
    let proposal = teardown::propose(&with, &case()).await.expect("it is there");
    assert!(proposal.removes.len() >= 5, "{:?}", proposal.removes);
    assert!(proposal.notes.iter().any(|n| n.contains("shared with account 111122223333")));
    let torn = teardown::carry_out(proposal).await.expect("it can be looked at");
    assert!(torn.whole, "{torn:#?}");
    let left: Vec<_> = torn.left.iter().map(|l| l.what.as_str()).collect();
    assert!(left[1].contains("snapshots in account 111122223333"), "{left:?}");
    assert!(there(&cloud, |w| w.built.is_empty() && w.volumes.is_empty()));
    assert_eq!(cloud.with(|w| w.snapshots.len()), own);
    assert_eq!(there(&cloud, |w| w.snapshots.len()), copies);
    // The same evidence once more, from the same copies.
    let again = rescan::rescan(&with, &case()).await.expect("the case is there");
    assert!(again.is_whole(), "{again:#?}");
    assert_eq!(there(&cloud, |w| (w.snapshots.len(), w.built.len())), (copies, 1));
}

#[tokio::test(start_paused = true)]
async fn a_room_at_home_is_torn_down_before_the_evidence_is_handed_over() {
    let cloud = FakeCloud::new(small());
    let mut at_home = run(&cloud, everything(), None).await;
    at_home.forensic = None;
    let report = respond_to(&at_home, &suspect()).await.expect("not refused");
    assert!(report.is_whole() && report.reported.is_some(), "{report:#?}");
    let with = run(&cloud, everything(), None).await;
    let rescanned = rescan::rescan(&with, &case()).await.expect("the case is there");
    assert!(rescanned.shortfalls[0].what.contains("in the instance's own"), "{rescanned:#?}");
    let proposal = teardown::propose(&with, &case()).await.expect("it is at home");
    assert!(!proposal.removes.is_empty(), "the room at home");
    assert!(teardown::carry_out(proposal).await.expect("looked at").whole);
    let rescanned = rescan::rescan(&with, &case()).await.expect("the case is there");
    assert!(rescanned.is_whole(), "{rescanned:#?}");
    assert_eq!(there(&cloud, |w| (w.snapshots.len(), w.built.len())), (1, 1));
}

#[tokio::test(start_paused = true)]
async fn release_and_status_list_what_stays_shared_and_take_nothing_back() {
    let cloud = FakeCloud::new(small());
    respond(&cloud, None).await;
    let with = run(&cloud, Policy::default(), None).await;
    let status = status::status(&with, &case()).await.expect("the case is there");
    assert_eq!(status.elsewhere.len(), 3, "{:?}", status.elsewhere);
    let proposal = release::propose(&with, &case()).await.expect("it can be released");
    for part in ["shared with account", "lets arn:aws:iam::111122223333:role/", "has copies of"] {
        assert!(proposal.notes.iter().any(|n| n.contains(part)), "{part}: {:?}", proposal.notes);
    }
    let (shares, grants) = cloud.with(|w| (w.shares.clone(), w.grants.clone()));
    let released = release::carry_out(&with, proposal, None).await.expect("released");
    assert!(released.whole, "{released:#?}");
    assert_eq!(cloud.with(|w| (w.shares.clone(), w.grants.clone())), (shares, grants));
}

#[tokio::test(start_paused = true)]
async fn the_plan_shows_what_is_shared_granted_and_copied() {
    let cloud = FakeCloud::new(small());
    let with = run(&cloud, everything(), None).await;
    let instance = with.cloud.inventory.get_instance(&suspect()).await.expect("it is there");
    let plan = plan::plan(&with, &instance, Some("a test")).await.expect("not refused");
    let room: Vec<_> = plan.entries.iter().filter(|e| e.step == Step::CleanRoom).collect();
    let operations: Vec<_> = room.iter().map(|e| e.operation).collect();
    for operation in ["ec2:ModifySnapshotAttribute", "kms:CreateGrant", "ec2:CopySnapshot"] {
        assert!(operations.contains(&operation), "{operation}: {operations:?}");
    }
    let stack = room.iter().find(|e| e.operation == "cloudformation:CreateStack").expect("a stack");
    assert!(stack.what.contains("in account 111122223333"), "{}", stack.what);
    assert!(cloud.changes().is_empty(), "{:?}", cloud.changes());
    respond(&cloud, None).await;
    let plan = plan::plan(&with, &instance, Some("a test")).await.expect("not refused");
    assert!(!plan.entries.iter().any(|e| e.operation == "ec2:CopySnapshot"), "{plan:#?}");
}

/// The forensic account as goals see it.
fn view(cloud: &FakeCloud) -> std::sync::Arc<Forensic> {
    let key = Some(FORENSIC_KEY.to_owned());
    ForensicAccount::of(FORENSIC_ROLE, key, &cloud.forensic()).expect("an account").view
}

#[tokio::test(start_paused = true)]
async fn preflight_prints_what_the_bucket_s_policy_lacks() {
    let cloud = FakeCloud::new(small());
    let look = async || preflight::forensic(&cloud.cloud(), &view(&cloud)).await;
    let of = |checks: &[Check], name: &str| {
        checks.iter().find(|c| c.name == name).expect("a line").clone()
    };
    let checks = look().await;
    assert!(checks.iter().all(|c| c.area == "forensic"), "{checks:#?}");
    assert_eq!(of(&checks, "role").level, Level::Good);
    assert_eq!(of(&checks, "key of copies").level, Level::Good);
    let bucket = of(&checks, "bucket admits its rooms");
    assert_eq!(bucket.level, Level::Missing);
    let statements = bucket.fix.split_once(": ").expect("the statements").1;
    let policy = format!(r#"{{"Version":"2012-10-17","Statement":{statements}}}"#);
    cloud.with(|w| w.setup.bucket.policy = Some(policy));
    assert_eq!(of(&look().await, "bucket admits its rooms").level, Level::Good);
    cloud.with(|w| w.forensic = None);
    assert_eq!(of(&look().await, "role").level, Level::Missing);
    assert!(cloud.changes().is_empty());
}

/// The calls of a run without faults from the first one in the other account until there is a room, and whether each changes
/// something.
async fn calls_there() -> Vec<(u64, bool)> {
    let cloud = FakeCloud::new(small());
    respond(&cloud, None).await;
    let all = cloud.calls();
    let last = all.iter().find(|c| c.operation == "cloudformation:CreateStack").expect("a room").n;
    let calls = all.into_iter().skip_while(|c| c.caller != FORENSIC_CALLER);
    calls.filter(|call| call.n <= last).map(|call| (call.n, call.mutates)).collect()
}

#[tokio::test(start_paused = true)]
async fn a_handing_over_broken_at_any_call_makes_one_copy_all_the_same() {
    let calls = calls_there().await;
    assert!(calls.len() > 20 && calls.iter().filter(|c| c.1).count() > 5, "{calls:?}");
    for way in ways_to_break(calls) {
        let before = small();
        let (process, what) = whole_in_spite_of(before.clone(), way).await;
        let made = there(&process, |w| (w.snapshots.len(), w.built.len() + w.buried.len()));
        assert_eq!(made, (1, 1), "{what}: one copy, one room");
        assert_eq!(process.with(|w| (w.shares.len(), w.grants.len())), (1, 1), "{what}");
        assert_eq!(ledger(&process).await.received.len(), 1, "{what}");
        assert_contained(&process, &before, &what).await;
    }
}
