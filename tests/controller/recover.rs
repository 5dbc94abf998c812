//! `recover` tells what is left to do for a case, and changes nothing.

use cleanroom_cloud_fake::{FakeCloud, INSTANCE, SIBLING, World};
use cleanroom_contract::CaseId;
use cleanroom_controller::{
    flow::recover::{State, Task, recover},
    steps::isolate,
};

use crate::support::{changes_since, everything, respond, run, suspect};

fn case() -> CaseId {
    format!("{}-1", suspect()).parse().expect("a case id")
}

async fn tasks(cloud: &FakeCloud) -> Vec<Task> {
    let run = run(cloud, everything(), None).await;
    let before = cloud.calls().len() as u64;
    let tasks = recover(&run, &case()).await.expect("the case is there");
    assert_eq!(changes_since(cloud, before), Vec::<String>::new());
    for task in &tasks {
        let done = task.state == State::Done;
        assert!(done || !task.advice.is_empty(), "nothing is advised: {task:?}");
    }
    tasks
}

/// The one task of this name.
fn task<'t>(tasks: &'t [Task], what: &str) -> &'t Task {
    let mut of = tasks.iter().filter(|t| t.what == what);
    let task = of.next().unwrap_or_else(|| panic!("no task {what:?}: {tasks:#?}"));
    assert!(of.next().is_none(), "two tasks {what:?}");
    task
}

#[tokio::test(start_paused = true)]
async fn what_is_made_of_the_suspects_image_and_template_is_no_replacement_yet() {
    let cloud = FakeCloud::new(World::full());
    respond(&cloud, None).await;
    let tasks = tasks(&cloud).await;
    let replacement = task(&tasks, "replacement");
    assert_eq!(replacement.state, State::Open);
    assert!(replacement.found.contains("2 of 2 in service"), "{replacement:?}");
    assert!(replacement.found.contains("ami-0123456789abcdef0"), "{replacement:?}");
    assert!(replacement.advice.contains("start-instance-refresh"), "{replacement:?}");
    assert_eq!(task(&tasks, "launch template").state, State::Open);
    assert_eq!(task(&tasks, "image").state, State::Look);
    assert!(task(&tasks, "role").advice.contains("arn:aws:iam::123456789012:role/app/web-role"));
    let others = task(&tasks, "other instances");
    assert!(others.found.contains(SIBLING) && !others.found.contains(INSTANCE), "{others:?}");
    assert_eq!(task(&tasks, "made by its role").state, State::Open);
    assert_eq!(tasks.iter().filter(|t| t.what == "not surely cut").count(), isolate::NOT_CUT.len());
    let evidence: Vec<_> = tasks.iter().filter(|t| t.what == "evidence to keep").collect();
    for snapshot in cloud.world().snapshots {
        assert!(evidence.iter().any(|t| t.found.contains(snapshot.id.as_str())), "{evidence:?}");
    }
}

#[tokio::test(start_paused = true)]
async fn a_group_of_new_image_and_template_is_done() {
    let cloud = FakeCloud::new(World::full());
    respond(&cloud, None).await;
    cloud.with(|world| {
        let web = world.scaling.get_mut("web").expect("the group");
        web.group.launch_template = Some(("lt-0123456789abcdef0".to_owned(), "2".to_owned()));
        for machine in world.machines.values_mut().filter(|m| m.instance.id != suspect()) {
            machine.instance.image = "ami-0fedcba9876543210".into();
            machine.instance.profile = None;
        }
    });
    let found = tasks(&cloud).await;
    assert_eq!(task(&found, "replacement").state, State::Done);
    assert_eq!(task(&found, "launch template").state, State::Done);
    assert_eq!(task(&found, "other instances").state, State::Done);
    // One that is not healthy does not count.
    cloud.with(|world| {
        let web = world.scaling.get_mut("web").expect("the group");
        web.group.instances[0].2 = "Unhealthy".to_owned();
    });
    let found = tasks(&cloud).await;
    let replacement = task(&found, "replacement");
    assert_eq!(replacement.state, State::Open);
    assert!(replacement.found.contains("1 of 2"), "{replacement:?}");
}

#[tokio::test(start_paused = true)]
async fn an_instance_of_no_group_has_no_replacement() {
    let cloud = FakeCloud::new(World::plain());
    respond(&cloud, None).await;
    let tasks = tasks(&cloud).await;
    let replacement = task(&tasks, "replacement");
    assert_eq!(replacement.state, State::Open);
    assert!(replacement.advice.contains("run-instances"), "{replacement:?}");
    assert_eq!(task(&tasks, "role").state, State::Done);
    assert!(!tasks.iter().any(|t| t.what == "launch template"));
}

#[tokio::test(start_paused = true)]
async fn evidence_that_is_gone_is_told_first() {
    let cloud = FakeCloud::new(World::plain());
    respond(&cloud, None).await;
    let gone = cloud.with(|world| {
        let evidence = world.snapshots.iter().position(|s| s.tags.contains_key("cleanroom:set"));
        world.snapshots.remove(evidence.expect("a snapshot")).id
    });
    let tasks = tasks(&cloud).await;
    let evidence = tasks.iter().find(|t| t.what == "evidence to keep").expect("a task");
    assert_eq!(evidence.state, State::Open);
    assert!(evidence.found.contains(gone.as_str()), "{evidence:?}");
}

#[tokio::test(start_paused = true)]
async fn a_case_that_is_not_there_is_an_error() {
    let cloud = FakeCloud::new(World::plain());
    let run = run(&cloud, everything(), None).await;
    let error = recover(&run, &case()).await.expect_err("there is no case");
    assert!(error.to_string().contains(case().as_str()), "{error}");
}
