//! Drills: what one makes it takes away again, wherever it was interrupted, and nothing that is not its own.

use cleanroom_cloud::{Change, DRILL, ErrorKind, InstanceState};
use cleanroom_cloud_fake::{At, FakeCloud, Fault, World};
use cleanroom_contract::{CaseId, InstanceId};
use cleanroom_controller::{
    case::{Policy, Run},
    flow::{
        self, Request,
        drill::{self, Proposal, Wanted, clean},
    },
    journal,
};

use crate::support::{run, suspect};

/// An account with an instance that is nobody's drill.
fn world() -> World {
    World::plain()
}

async fn proposed(run: &Run) -> Proposal {
    let name = drill::name(run.clock.now(), &run.nonce);
    let wanted =
        Wanted { subnet: None, instance_type: "t3.micro".to_owned(), image: None, machine: false };
    drill::propose(run, name, wanted).await.expect("there is an image")
}

/// Launches and responds; the instance.
async fn rehearsed(run: &Run, proposal: &Proposal) -> InstanceId {
    let instance = drill::launch(run, proposal).await.expect("it runs");
    let id = instance.id.clone();
    let request = Request {
        instance,
        case: Some(proposal.drill.clone()),
        reason: Some(drill::reason(&proposal.drill)),
    };
    let report = flow::respond(run, &request).await.expect("not refused");
    run.shared.finish_units().await;
    assert!(report.is_whole(), "{report:#?}");
    assert_eq!(report.case, proposal.drill);
    id
}

async fn cleaned(cloud: &FakeCloud, drill: &CaseId) -> clean::Cleaned {
    let run = run(cloud, Policy::default(), None).await;
    let remains = clean::look(&run, drill).await.expect("it is a drill");
    clean::clean(&run, remains).await.expect("the account answers")
}

/// Everything of the world but its bucket, notices, clock and what was the drill's, which must be gone.
fn assert_gone(cloud: &FakeCloud, before: &World, what: &str) {
    let world = cloud.world();
    for (id, machine) in &world.machines {
        let known = before.machines.get(id);
        let gone = machine.instance.state == InstanceState::Terminated;
        assert!(known == Some(machine) || gone, "{what}: {id} is {machine:#?}");
    }
    assert_eq!(world.volumes, before.volumes, "{what}: volumes");
    assert_eq!(world.snapshots, before.snapshots, "{what}: snapshots");
    assert!(world.built.is_empty(), "{what}: a room stands");
    let open = world.groups.values().filter(|g| g.name.starts_with("cleanroom-flush"));
    assert_eq!(open.count(), 0, "{what}: the group that allows everything is left");
}

#[tokio::test(start_paused = true)]
async fn a_drill_is_contained_timed_and_taken_away_and_its_log_stays() {
    let before = world();
    let cloud = FakeCloud::new(before.clone());
    let run = run(&cloud, Policy::default(), None).await;
    let proposal = proposed(&run).await;
    assert_eq!(cloud.changes().len(), 0, "a proposal changes nothing");
    let id = rehearsed(&run, &proposal).await;
    assert!(cloud.world().is_cut(&id));
    let marked = |s: &cleanroom_cloud::Snapshot| {
        s.tags.get(DRILL).map(String::as_str) == Some(proposal.drill.as_str())
    };
    assert!(cloud.with(|w| w.snapshots.len() == 1 && w.snapshots.iter().all(marked)));

    for time in ["first", "second"] {
        let cleaned = cleaned(&cloud, &proposal.drill).await;
        assert!(cleaned.whole && cleaned.kept.is_empty(), "{time}: {cleaned:#?}");
        let [left] = cleaned.left.as_slice() else { panic!("{time}: {cleaned:#?}") };
        assert!(left.what.contains("objects below"), "{time}: {left:?}");
        assert_gone(&cloud, &before, time);
    }
    let ended = |c: &&cleanroom_cloud_fake::CallRecord| {
        matches!(c.change, Some(Change::TerminateDrill { .. }))
    };
    assert_eq!(
        cloud.changes().iter().filter(ended).count(),
        1,
        "the second time has nothing to do"
    );
    let store = cloud.cloud().store;
    let verdict = journal::verify::verify(&*store, &proposal.drill).await.expect("readable");
    assert!(verdict.faults.is_empty(), "{:#?}", verdict.faults);
    let text = flow::close::close(&run, &proposal.drill, None).await.expect("it can be closed");
    assert!(text.contains(proposal.drill.as_str()), "{text}");
}

/// Runs a drill whose process dies at this call, and cleans up after it. Whether it lived to its end.
async fn lives_through(n: u64) -> bool {
    let before = world();
    let cloud = FakeCloud::new(before.clone());
    let run = run(&cloud, Policy::default(), None).await;
    let proposal = proposed(&run).await;
    cloud.fault(Fault::DieAfter, At::Call(n));
    let work = async {
        rehearsed(&run, &proposal).await;
        let remains = clean::look(&run, &proposal.drill).await.expect("a drill");
        clean::clean(&run, remains).await.expect("the account answers")
    };
    let lived = tokio::select! {
        cleaned = work => Some(cleaned),
        () = cloud.died() => None,
    };
    let what = format!("dead at call {n}");
    // A call that it did not come to kills nobody later.
    let cloud = cloud.restarted();
    cloud.calm();
    let cleaned = cleaned(&cloud, &proposal.drill).await;
    assert!(cleaned.whole, "{what}: {cleaned:#?}");
    assert_gone(&cloud, &before, &what);
    lived.is_some()
}

#[test]
fn a_drill_that_dies_anywhere_is_taken_away_by_the_next_run() {
    // Dies at a later call each time, until it lives to its end.
    for n in (1..).step_by(5) {
        // What a dead process had begun ends with its runtime.
        let mut builder = tokio::runtime::Builder::new_current_thread();
        let runtime = builder.enable_all().start_paused(true).build().expect("a runtime");
        if runtime.block_on(lives_through(n)) {
            assert!(n > 100, "it lived through {n} calls only: it died in few places");
            return;
        }
    }
}

#[tokio::test(start_paused = true)]
async fn an_instance_whose_mark_is_gone_is_never_terminated() {
    let cloud = FakeCloud::new(world());
    let run = run(&cloud, Policy::default(), None).await;
    let proposal = proposed(&run).await;
    let id = rehearsed(&run, &proposal).await;
    for mark in [None, Some("drill-other")] {
        cloud.with(|w| {
            let tags = &mut w.machines.get_mut(&id).expect("there").instance.tags;
            match mark {
                None => tags.remove(DRILL),
                Some(other) => tags.insert(DRILL.to_owned(), other.to_owned()),
            }
        });
        let before = cloud.changes().len();
        let refused = clean::look(&run, &proposal.drill).await.expect_err("not marked");
        assert!(refused.to_string().contains("carries no tag"), "{refused}");
        assert_eq!(cloud.changes().len(), before, "nothing was tried");
    }
    // Taken away between the look and the act, the last look before the act refuses.
    let marked = |value: &str| {
        cloud.with(|w| {
            let tags = &mut w.machines.get_mut(&id).expect("there").instance.tags;
            tags.insert(DRILL.to_owned(), value.to_owned());
        });
    };
    marked(proposal.drill.as_str());
    let remains = clean::look(&run, &proposal.drill).await.expect("marked again");
    marked("drill-other");
    let cleaned = clean::clean(&run, remains).await.expect("the account answers");
    assert!(!cleaned.whole, "{cleaned:#?}");
    assert!(cleaned.shortfalls[0].contains("not marked"), "{cleaned:#?}");
    let machine = cloud.world().machine(&id).expect("there").clone();
    assert_eq!(machine.instance.state, InstanceState::Running);
    assert!(machine.guards.termination, "its guards are on still");
}

#[tokio::test(start_paused = true)]
async fn snapshots_of_others_and_locked_ones_are_never_deleted() {
    let cloud = FakeCloud::new(world());
    let policy = Policy { lock_days: Some(7), ..Policy::default() };
    let run = run(&cloud, policy, None).await;
    // Real evidence, of a real case.
    crate::support::respond_to(&run, &suspect()).await.expect("not refused");
    let evidence = cloud.with(|w| w.snapshots[0].id.clone());
    let proposal = proposed(&run).await;
    let id = rehearsed(&run, &proposal).await;
    // Somebody gives the evidence every tag that a drill's snapshot has, and the lock is off.
    cloud.with(|w| {
        let drilled = w.snapshots.iter().find(|s| s.id != evidence).expect("two").tags.clone();
        let forged = w.snapshots.iter_mut().find(|s| s.id == evidence).expect("there");
        forged.tags = drilled;
        forged.locked = false;
    });
    let cleaned = cleaned(&cloud, &proposal.drill).await;
    assert!(cleaned.whole, "{cleaned:#?}");
    let kept = cleaned.kept.join("\n");
    assert!(kept.contains(&format!("{evidence}: the log did not make it")), "{kept}");
    assert!(kept.contains("it is locked"), "{kept}");
    let world = cloud.world();
    assert_eq!(world.snapshots.len(), 2, "{kept}");
    let state = world.machine(&id).map(|m| m.instance.state);
    assert_eq!(state, Some(InstanceState::Terminated));
    let tried = cloud.changes().iter().any(|c| c.operation == "ec2:DeleteSnapshot");
    assert!(!tried, "nothing was deleted, nor tried");
}

#[tokio::test(start_paused = true)]
async fn a_real_case_is_no_drill_whatever_it_is_called() {
    let cloud = FakeCloud::new(world());
    let run = run(&cloud, Policy::default(), None).await;
    let real: CaseId = format!("{}-1", suspect()).parse().expect("a case");
    let named: CaseId = "drill-20260101-000000-0".parse().expect("a case");
    // A person names a real case like a drill, and somebody tags its instance so once it is open.
    let instance = run.cloud.inventory.get_instance(&suspect()).await.expect("there");
    let reason = Some("an incident".to_owned());
    let request = Request { instance, case: Some(named.clone()), reason };
    flow::respond(&run, &request).await.expect("not refused");
    run.shared.finish_units().await;
    cloud.with(|w| {
        let tags = &mut w.machines.get_mut(&suspect()).expect("there").instance.tags;
        tags.insert(DRILL.to_owned(), named.to_string());
    });
    let before = cloud.changes().len();
    for (case, why) in [(&real, "is no drill"), (&named, "is not that of a drill")] {
        let refused = clean::look(&run, case).await.expect_err("no drill");
        assert!(refused.to_string().contains(why), "{refused}");
    }
    assert_eq!(cloud.changes().len(), before);
}

#[tokio::test(start_paused = true)]
async fn a_launch_whose_answer_is_lost_makes_one_instance() {
    for fault in [Fault::Refuse(ErrorKind::Throttled), Fault::LoseAnswer] {
        let before = world();
        let cloud = FakeCloud::new(before.clone());
        let run = run(&cloud, Policy::default(), None).await;
        let proposal = proposed(&run).await;
        cloud.fault(fault, At::Matching("ec2:RunInstances".to_owned(), 1));
        drill::launch(&run, &proposal).await.expect("launched all the same");
        assert_eq!(cloud.world().machines.len(), before.machines.len() + 1, "{fault:?}");
        assert!(cleaned(&cloud, &proposal.drill).await.whole, "{fault:?}");
        assert_gone(&cloud, &before, "after a lost answer");
    }
}

#[tokio::test(start_paused = true)]
async fn a_log_that_speaks_of_another_drill_proves_nothing() {
    let cloud = FakeCloud::new(world());
    let run = run(&cloud, Policy::default(), None).await;
    let proposal = proposed(&run).await;
    let instance = drill::launch(&run, &proposal).await.expect("it runs");
    // Whoever may start an execution writes its reason.
    let other: CaseId = "drill-20260101-000000-0".parse().expect("a case");
    let reason = Some(drill::reason(&other));
    let request = Request { instance, case: Some(proposal.drill.clone()), reason };
    flow::respond(&run, &request).await.expect("not refused");
    run.shared.finish_units().await;
    let refused = clean::look(&run, &proposal.drill).await.expect_err("not this drill's");
    assert!(refused.to_string().contains("is not that of a drill"), "{refused}");
}

#[tokio::test(start_paused = true)]
async fn an_instance_that_an_alert_holds_is_no_drill_s_to_end() {
    let cloud = FakeCloud::new(world());
    let run = run(&cloud, Policy::default(), None).await;
    let proposal = proposed(&run).await;
    let instance = drill::launch(&run, &proposal).await.expect("it runs");
    let report = crate::support::respond_to(&run, &instance.id).await.expect("not refused");
    assert_ne!(report.case, proposal.drill);
    let before = cloud.changes().len();
    let refused = clean::look(&run, &proposal.drill).await.expect_err("another case's");
    assert!(refused.to_string().contains(report.case.as_str()), "{refused}");
    assert_eq!(cloud.changes().len(), before, "nothing was tried");
    // Once that case has ended it goes, and what it preserved stays.
    flow::close::close(&run, &report.case, None).await.expect("closed");
    let cleaned = cleaned(&cloud, &proposal.drill).await;
    assert!(cleaned.whole, "{cleaned:#?}");
    assert_eq!(cloud.world().snapshots.len(), 1);
    let state = cloud.world().machine(&instance.id).map(|m| m.instance.state);
    assert_eq!(state, Some(InstanceState::Terminated));
}
