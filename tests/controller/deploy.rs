//! `deploy` sets the response stack up, goes on where it was interrupted, and never loses evidence.

use std::{collections::BTreeMap, time::Duration};

use cleanroom_cloud::{Proposed, Stack, StackEvent};
use cleanroom_cloud_fake::{At, FakeCloud, Fault, World};
use cleanroom_controller::{
    flow::deploy::{self, DeployError, Ready, Site, Standing},
    steps::clean_room::artifacts,
};

/// A site whose artifacts bucket is the world's one bucket.
fn site(cloud: &FakeCloud, nonce: &str) -> Site {
    let ports = cloud.cloud();
    Site {
        inventory: ports.inventory,
        hands: ports.hands,
        deployment: std::sync::Arc::new(cloud.clone()),
        artifacts: ports.store,
        account: "123456789012".into(),
        stack: "cleanroom".to_owned(),
        nonce: nonce.to_owned(),
        poll: Duration::from_secs(2),
    }
}

fn parameters(days: &str) -> BTreeMap<String, String> {
    let all = [("Bucket", "evidence-example"), ("RetentionDays", days)];
    all.map(|(name, value)| (name.to_owned(), value.to_owned())).into()
}

/// What a run proposes.
async fn proposed(site: &Site, days: &str) -> Option<Ready> {
    let stack = deploy::settle(site, &mut |_: &StackEvent| {}).await.expect("at rest");
    deploy::ensure_artifacts(site, true).await.expect("a bucket");
    let template = artifacts::keep(&*site.artifacts, "template", "response.yaml", b"template");
    let template = template.await.expect("kept").key;
    let ready = deploy::propose(site, stack.as_ref(), &template, parameters(days)).await;
    ready.expect("CloudFormation compares")
}

async fn applied(site: &Site, ready: &Ready) -> (Result<Stack, DeployError>, Vec<StackEvent>) {
    let mut told = Vec::new();
    let applied = deploy::apply(site, ready, &mut |e: &StackEvent| told.push(e.clone())).await;
    (applied, told)
}

#[tokio::test(start_paused = true)]
async fn a_stack_is_made_once_changed_where_something_changes_and_else_left() {
    let cloud = FakeCloud::new(World::plain());
    cloud.with(|world| world.bucket.exists = false);
    let first = site(&cloud, "1");
    let ready = proposed(&first, "365").await.expect("a new stack");
    assert_eq!(ready.changes[0].action, "Add");
    let (stack, told) = applied(&first, &ready).await;
    let stack = stack.expect("made");
    assert_eq!(stack.status, "CREATE_COMPLETE");
    assert_eq!(stack.outputs["EvidenceBucket"], "evidence-example");
    assert_eq!(told.last().map(|e| e.status.as_str()), Some("CREATE_COMPLETE"));

    let before = cloud.world().bucket.objects;
    assert_eq!(proposed(&site(&cloud, "2"), "365").await, None, "nothing has changed");
    assert_eq!(cloud.world().change_sets.len(), 1, "the empty change set is gone");
    assert_eq!(cloud.world().bucket.objects, before, "nothing is uploaded again");

    let third = site(&cloud, "3");
    let ready = proposed(&third, "730").await.expect("another retention");
    assert_eq!(ready.changes[0].action, "Modify");
    assert_eq!(applied(&third, &ready).await.0.expect("changed").status, "UPDATE_COMPLETE");
    let made = cloud.calls().iter().filter(|c| c.operation == "s3:CreateBucket").count();
    assert_eq!(made, 1, "the bucket is made once");
}

#[tokio::test(start_paused = true)]
async fn a_creation_that_fails_names_the_first_resource_and_the_next_run_begins_anew() {
    let cloud = FakeCloud::new(World::plain());
    let why = "You have reached the maximum number of topics.";
    cloud.with(|world| world.room.fails = Some(("IntakeTopic".to_owned(), why.to_owned())));
    let first = site(&cloud, "1");
    let ready = proposed(&first, "365").await.expect("a new stack");
    let error = applied(&first, &ready).await.0.expect_err("it fails").to_string();
    assert!(error.contains("ROLLBACK_COMPLETE: IntakeTopic") && error.contains(why), "{error}");

    cloud.with(|world| world.room.fails = None);
    let second = site(&cloud, "2");
    let mut quiet = |_: &StackEvent| {};
    let failed = deploy::settle(&second, &mut quiet).await.expect("at rest").expect("a stack");
    assert_eq!(deploy::standing(Some(&failed)), Standing::Failed);
    let told = deploy::why_failed(&second, &failed).await.expect("its events");
    assert!(told.starts_with("IntakeTopic ("), "{told}");
    deploy::delete(&second, &failed, &mut quiet).await.expect("deleted");
    let ready = proposed(&second, "365").await.expect("a new stack");
    applied(&second, &ready).await.0.expect("made");
}

#[tokio::test(start_paused = true)]
async fn what_an_interrupted_run_began_is_waited_for_and_heard() {
    let cloud = FakeCloud::new(World::plain());
    let first = site(&cloud, "1");
    let ready = proposed(&first, "365").await.expect("a new stack");
    // The answer is lost with the process; CloudFormation goes on.
    first.deployment.execute(&ready.id, "token").await.expect("begun");
    let second = site(&cloud.restarted(), "2");
    let mut told = Vec::new();
    let mut hear = |event: &StackEvent| told.push(event.status.clone());
    let stack = deploy::settle(&second, &mut hear).await.expect("at rest").expect("a stack");
    assert_eq!(stack.status, "CREATE_COMPLETE");
    assert_eq!(told.last().map(String::as_str), Some("CREATE_COMPLETE"));
    assert_eq!(proposed(&second, "365").await, None);
}

#[tokio::test(start_paused = true)]
async fn a_run_that_dies_at_any_call_leaves_what_the_next_one_finishes() {
    for call in [
        "s3:CreateBucket",
        "s3:PutObject",
        "cloudformation:CreateChangeSet",
        "cloudformation:DescribeChangeSet",
        "cloudformation:ExecuteChangeSet",
        "cloudformation:DescribeStackEvents",
    ] {
        for fault in [Fault::DieBefore, Fault::DieAfter] {
            let cloud = FakeCloud::new(World::plain());
            cloud.with(|world| world.bucket.exists = false);
            cloud.fault(fault, At::Matching(call.to_owned(), 1));
            let first = site(&cloud, "1");
            let run = async {
                let ready = proposed(&first, "365").await.expect("a new stack");
                applied(&first, &ready).await.0.expect("made")
            };
            let ended = tokio::time::timeout(Duration::from_secs(7200), run).await;
            assert!(ended.is_err(), "{call}: the process died");
            let cloud = cloud.restarted();
            let second = site(&cloud, "2");
            if let Some(ready) = proposed(&second, "365").await {
                applied(&second, &ready).await.0.expect("made");
            }
            assert_eq!(proposed(&site(&cloud, "3"), "365").await, None, "{call}");
        }
    }
}

#[tokio::test(start_paused = true)]
async fn deleting_the_stack_touches_no_object() {
    let cloud = FakeCloud::new(World::plain());
    let site = site(&cloud, "1");
    let ready = proposed(&site, "365").await.expect("a new stack");
    let stack = applied(&site, &ready).await.0.expect("made");
    let objects = cloud.world().bucket.objects;
    let mut told = Vec::new();
    let mut hear = |event: &StackEvent| told.push(event.status.clone());
    deploy::delete(&site, &stack, &mut hear).await.expect("deleted");
    assert_eq!(deploy::find(&site).await.expect("an answer"), None);
    assert!(told.contains(&"DELETE_IN_PROGRESS".to_owned()), "{told:?}");
    assert_eq!(cloud.world().bucket.objects, objects);
    // What was never there is compared as new.
    let proposed = Proposed {
        stack: "cleanroom".to_owned(),
        name: "n".to_owned(),
        create: false,
        bucket: site.artifacts.bucket().to_owned(),
        template: "template/none".to_owned(),
        parameters: BTreeMap::new(),
    };
    let error = site.deployment.propose(&proposed).await.expect_err("there is no such template");
    assert_eq!(error.code, "ValidationError");
}
