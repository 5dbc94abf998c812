//! Release puts back exactly what was recorded, and refuses where the world is not what the response left.

use cleanroom_cloud::ErrorKind;
use cleanroom_cloud_fake::{At, FakeCloud, Fault, World};
use cleanroom_contract::CaseId;
use cleanroom_controller::flow::{self, release, status};

use crate::support::{everything, respond, run, suspect};

fn case() -> CaseId {
    format!("{}-1", suspect()).parse().expect("a case id")
}

/// What release must bring back, of the suspect and of what it belongs to.
fn restored(world: &World) -> serde_json::Value {
    let id = suspect();
    let machine = world.machine(&id).expect("there");
    let mut targets: Vec<_> = world
        .target_groups
        .iter()
        .flat_map(|(arn, t)| {
            t.targets.iter().filter(|t| !t.draining).map(move |t| (arn, &t.id, t.port))
        })
        .filter(|(_, target, _)| {
            *target == id.as_str()
                || machine.cards.iter().any(|c| c.interface.private.contains(target))
        })
        .collect();
    targets.sort();
    let associations: Vec<_> = machine
        .cards
        .iter()
        .flat_map(|c| c.interface.public.iter().filter_map(|p| p.allocation.as_ref()))
        .collect();
    serde_json::json!({
        "guards": machine.guards,
        "volumes": machine.instance.volumes,
        "metadata": machine.instance.metadata,
        "groups": machine.cards.iter().map(|c| (&c.interface.id, &c.interface.groups)).collect::<Vec<_>>(),
        "elastic": associations,
        "targets": targets,
        "classic": world.classics.values().filter(|c| c.instances.contains(&id)).map(|c| &c.name).collect::<Vec<_>>(),
        "scaling": world.scaling_of(&id).map(|s| (&s.group.name, s.protected.contains(&id), &s.group.suspended)),
        "profile": world.associations.iter().filter(|(i, a)| *i == id && a.active).map(|(_, a)| &a.profile).collect::<Vec<_>>(),
        "policies": world.roles.values().map(|r| &r.policies).collect::<Vec<_>>(),
        "acls": world.acls,
        "tags": machine.instance.tags,
    })
}

async fn release(cloud: &FakeCloud) -> release::Released {
    let run = run(cloud, everything(), None).await;
    let proposal = release::propose(&run, &case()).await.expect("a proposal");
    assert!(proposal.drift.is_empty(), "{:?}", proposal.drift);
    release::carry_out(&run, proposal, Some("all clear")).await.expect("the store answers")
}

#[tokio::test(start_paused = true)]
async fn release_restores_exactly_what_was_recorded() {
    for before in [World::plain(), World::full()] {
        let cloud = FakeCloud::new(before.clone());
        respond(&cloud, None).await;
        let released = release(&cloud.restarted()).await;
        assert!(released.whole, "{released:#?}");
        similar_asserts(&restored(&cloud.world()), &restored(&before));
        let snapshots = cloud.world().snapshots.len();
        assert!(snapshots > 0, "evidence stays");
        let verdict =
            cleanroom_controller::journal::verify::verify(&*cloud.cloud().store, &case()).await;
        assert_eq!(verdict.expect("readable").faults, Vec::<String>::new());
    }
}

fn similar_asserts(left: &serde_json::Value, right: &serde_json::Value) {
    for (key, wanted) in right.as_object().expect("an object") {
        assert_eq!(&left[key], wanted, "{key}");
    }
}

#[tokio::test(start_paused = true)]
async fn a_case_is_released_once_and_the_next_response_opens_another() {
    let cloud = FakeCloud::new(World::plain());
    respond(&cloud, None).await;
    release(&cloud.restarted()).await;
    let again = run(&cloud.restarted(), everything(), None).await;
    assert!(release::propose(&again, &case()).await.is_err());
    let report = respond(&cloud.restarted(), None).await;
    assert_eq!(report.case.as_str(), format!("{}-2", suspect()));
    assert!(report.contained && !report.joined);
}

#[tokio::test(start_paused = true)]
async fn what_somebody_changed_since_is_told_before_release() {
    let before = World::full();
    let cloud = FakeCloud::new(before.clone());
    respond(&cloud, None).await;
    cloud.with(|world| {
        let machine = world.machines.get_mut(&suspect()).expect("there");
        let own = before.machine(&suspect()).expect("there").cards[0].interface.groups.clone();
        machine.cards[0].interface.groups = own;
        machine.guards.termination = false;
    });
    let run = run(&cloud.restarted(), everything(), None).await;
    let seen = status::status(&run, &case()).await.expect("status");
    assert_eq!(seen.state, status::State::Drifted);
    let proposal = release::propose(&run, &case()).await.expect("a proposal");
    assert_eq!(proposal.drift.len(), 2, "{:?}", proposal.drift);
}

#[tokio::test(start_paused = true)]
async fn a_release_that_is_broken_at_any_change_goes_on() {
    let before = World::full();
    let clean = FakeCloud::new(before.clone());
    respond(&clean, None).await;
    let begun = clean.calls().len();
    release(&clean.restarted()).await;
    let calls = clean.calls().len() - begun;
    let faults =
        [Fault::DieBefore, Fault::DieAfter, Fault::LoseAnswer, Fault::Refuse(ErrorKind::Throttled)];
    // Each call meets one of the four, in turn: each of all calls with each fault takes minutes.
    for n in 1..=calls as u64 {
        {
            let fault = faults[usize::try_from(n).expect("small") % faults.len()];
            let cloud = FakeCloud::new(before.clone());
            respond(&cloud, None).await;
            let process = cloud.restarted();
            process.fault(fault, At::Call(n));
            let first = async {
                let run = run(&process, everything(), None).await;
                let Ok(proposal) = release::propose(&run, &case()).await else { return };
                let _ = release::carry_out(&run, proposal, None).await;
            };
            tokio::select! { () = first => {}, () = process.died() => {} }
            let next = process.restarted();
            let run = run(&next, everything(), None).await;
            if let Ok(proposal) = release::propose(&run, &case()).await {
                let released = release::carry_out(&run, proposal, None).await.expect("stored");
                assert!(released.whole, "{fault:?} at {n}: {released:#?}");
            }
            let known =
                flow::find::case(&*run.cloud.store, &run.caller, &case()).await.expect("a case");
            assert!(known.released, "{fault:?} at {n}");
            let call =
                process.calls().into_iter().find(|c| c.n == begun as u64 + n).map(|c| c.text());
            let (now, then) = (restored(&cloud.world()), restored(&before));
            for (key, wanted) in then.as_object().expect("an object") {
                assert_eq!(&now[key], wanted, "{key}: {fault:?} at {n}, {call:?}");
            }
        }
    }
}
