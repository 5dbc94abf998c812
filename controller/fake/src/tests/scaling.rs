//! Auto Scaling and load balancers.

use cleanroom_cloud::{Inventory as _, Target};

use super::*;

fn detach() -> Change {
    Change::DetachFromGroup { instance: suspect(), group: "web".to_owned() }
}

#[tokio::test(start_paused = true)]
async fn a_detached_instance_is_replaced_and_leaves_the_groups_load_balancers() {
    let fake = FakeCloud::new(World::full());
    done(&fake, detach()).await;
    done(&fake, detach()).await;
    assert_eq!(fake.membership(&suspect()).await.expect("asked"), None);
    let group = fake.scaling_group("web").await.expect("there");
    assert_eq!((group.size, group.instances.len()), ((1, 2, 4), 2));
    let new = group.instances[1].0.clone();
    assert_eq!(fake.with(|w| w.machines.len()), 3);
    let groups = fake.target_groups().await.expect("listed");
    let arn = &groups.iter().find(|g| g.kind == "instance").expect("there").arn;
    let targets = fake.targets(arn).await.expect("listed");
    let state = |id: &InstanceId| targets.iter().find(|t| t.id == id.as_str()).map(|t| t.draining);
    assert_eq!((state(&suspect()), state(&new)), (Some(true), Some(false)));
    let classic = &fake.classic_balancers().await.expect("listed")[0].instances;
    assert!(!classic.contains(&suspect()) && classic.contains(&new));
    tokio::time::sleep(SECOND * 300).await;
    assert_eq!(fake.targets(arn).await.expect("listed").len(), 2);
}

#[tokio::test(start_paused = true)]
async fn detaching_is_refused_by_state_or_by_wish() {
    let fake = FakeCloud::new(World::full());
    fake.with(|w| w.scaling.get_mut("web").expect("there").refuse_detach = Some(ErrorKind::Denied));
    assert_eq!(refused(&fake, detach()).await.0, ErrorKind::Denied);
    fake.with(|w| {
        let scaling = w.scaling.get_mut("web").expect("there");
        scaling.refuse_detach = None;
        scaling.group.instances[0].1 = "Terminating:Wait".to_owned();
    });
    assert_eq!(refused(&fake, detach()).await.0, ErrorKind::Refused);
    assert_eq!(fake.with(|w| w.machines.len()), 2, "nothing was launched");
}

#[tokio::test(start_paused = true)]
async fn attaching_raises_the_desired_capacity_up_to_the_most() {
    let fake = FakeCloud::new(World::full());
    done(&fake, detach()).await;
    let attach = Change::AttachToGroup { instance: suspect(), group: "web".to_owned() };
    done(&fake, attach.clone()).await;
    done(&fake, attach.clone()).await;
    assert_eq!(fake.scaling_group("web").await.expect("there").size, (1, 3, 4));
    done(&fake, detach()).await;
    done(&fake, attach.clone()).await;
    done(&fake, detach()).await;
    assert_eq!(refused(&fake, attach).await.0, ErrorKind::Refused);
}

async fn cut(fake: &FakeCloud) {
    let (empty, _) = two_groups(fake).await;
    done(fake, set_groups(PRIMARY, &empty)).await;
}

#[tokio::test(start_paused = true)]
async fn health_checks_end_a_member_that_is_cut_off() {
    let mut world = World::full();
    world.scaling.get_mut("web").expect("there").group.termination_hooks.clear();
    let fake = FakeCloud::new(world);
    cut(&fake).await;
    tokio::time::sleep(SECOND * 59).await;
    assert!(!fake.get_instance(&suspect()).await.expect("there").state.is_ending());
    tokio::time::sleep(SECOND).await;
    assert!(fake.get_instance(&suspect()).await.expect("there").state.is_ending());
}

#[tokio::test(start_paused = true)]
async fn a_hook_holds_the_end_back_and_a_heartbeat_holds_it_longer() {
    let fake = FakeCloud::new(World::full());
    let beat = |hook: &str| Change::Heartbeat {
        instance: suspect(),
        group: "web".to_owned(),
        hook: hook.to_owned(),
    };
    assert_eq!(refused(&fake, beat("drain-logs")).await.0, ErrorKind::Refused);
    cut(&fake).await;
    tokio::time::sleep(SECOND * 60).await;
    let place = fake.membership(&suspect()).await.expect("asked").expect("a member");
    assert_eq!(place.state, "Terminating:Wait");
    assert_eq!(refused(&fake, beat("no-hook")).await.0, ErrorKind::Refused);
    tokio::time::sleep(SECOND * 3000).await;
    done(&fake, beat("drain-logs")).await;
    tokio::time::sleep(SECOND * 3000).await;
    assert!(!fake.get_instance(&suspect()).await.expect("there").state.is_ending());
    tokio::time::sleep(SECOND * 600).await;
    assert!(fake.get_instance(&suspect()).await.expect("there").state.is_ending());
}

#[tokio::test(start_paused = true)]
async fn suspended_processes_and_a_detached_place_keep_an_instance() {
    let suspended = FakeCloud::new(World::full());
    let processes = BTreeSet::from(["Terminate".to_owned(), "ReplaceUnhealthy".to_owned()]);
    let group = "web".to_owned();
    done(
        &suspended,
        Change::SuspendProcesses { group: group.clone(), processes: processes.clone() },
    )
    .await;
    let detached = FakeCloud::new(World::full());
    done(&detached, detach()).await;
    for fake in [&suspended, &detached] {
        cut(fake).await;
        tokio::time::sleep(SECOND * 5000).await;
        assert!(!fake.get_instance(&suspect()).await.expect("there").state.is_ending());
    }
    done(&suspended, Change::ResumeProcesses { group, processes }).await;
    assert!(suspended.scaling_group("web").await.expect("there").suspended.is_empty());
}

#[tokio::test(start_paused = true)]
async fn targets_come_and_go_by_address_too() {
    let fake = FakeCloud::new(World::full());
    let groups = fake.target_groups().await.expect("listed");
    let arn = groups.iter().find(|g| g.kind == "ip").expect("there").arn.clone();
    let target = Target { id: "10.0.0.10".into(), port: Some(80), zone: None, draining: false };
    let draining = async || {
        let targets = fake.targets(&arn).await.expect("listed");
        targets.iter().find(|t| t.id == target.id).map(|t| t.draining)
    };
    let (target_group, back) = (arn.clone(), target.clone());
    let off =
        Change::DeregisterTarget { target_group: target_group.clone(), target: target.clone() };
    done(&fake, off.clone()).await;
    assert_eq!(draining().await, Some(true));
    done(&fake, Change::RegisterTarget { target_group, target: back }).await;
    tokio::time::sleep(SECOND * 300).await;
    assert_eq!(draining().await, Some(false), "registered again, it does not drain away");
    done(&fake, off.clone()).await;
    tokio::time::sleep(SECOND * 300).await;
    assert_eq!(draining().await, None);
    done(&fake, off).await;
}
