//! Latency, the call log, callers, what is stale.

use cleanroom_cloud::{Inventory as _, Put, Store as _};
use tokio::time::{Instant, timeout};

use super::*;
use crate::{CALLER, Outcome};

const LATENCY: Duration = Duration::from_millis(50);

#[tokio::test(start_paused = true)]
async fn a_call_costs_its_longest_chain_of_requests() {
    let fake = FakeCloud::new(World::full());
    let group = new_group(&fake, "case").await;
    fake.set_latency(LATENCY);
    let began = Instant::now();
    let spent = || began.elapsed();
    fake.guards(&suspect()).await.expect("read");
    assert_eq!(spent(), LATENCY);
    fake.role_policies(&"web-role".into()).await.expect("read");
    assert_eq!(spent(), LATENCY * 3);
    done(&fake, Change::EmptyGroup { group }).await;
    assert_eq!(spent(), LATENCY * 5);
    tokio::join!(async { fake.caller().await.expect("read") }, async {
        fake.get_instance(&suspect()).await.expect("read")
    },);
    assert_eq!(spent(), LATENCY * 6, "calls at once are at once");
    fake.slow("s3:", SECOND);
    fake.create("k", vec![]).await.expect("created");
    assert_eq!(spent(), LATENCY * 7 + SECOND);
}

#[tokio::test(start_paused = true)]
async fn a_call_takes_effect_half_a_latency_before_its_answer() {
    let fake = FakeCloud::new(World::plain());
    fake.set_latency(SECOND);
    let within = |millis| Duration::from_millis(millis);
    assert!(timeout(within(400), fake.create("early", vec![])).await.is_err());
    assert!(timeout(within(600), fake.create("late", vec![])).await.is_err());
    assert_eq!(fake.with(|w| w.bucket.keys("")), ["late"]);
    let calls = fake.calls();
    assert_eq!((&calls[0].outcome, calls[0].took_effect), (&Outcome::Open, None));
    assert_eq!(calls[1].took_effect, Some(within(900)));
}

#[tokio::test(start_paused = true)]
async fn the_log_tells_every_call() {
    let fake = FakeCloud::new(World::plain());
    fake.set_latency(LATENCY);
    let other = fake.as_caller("arn:aws:iam::123456789012:user/second");
    other.caller().await.expect("read");
    let change = set_groups(PRIMARY, &"sg-0aaaaaaaaaaaaaaaa".into());
    fake.apply_first(&change).await.expect_err("no such group");
    let calls = fake.calls();
    let [read, write] = calls.as_slice() else { panic!("two calls") };
    assert_eq!(
        (read.n, read.operation.as_str(), read.mutates),
        (1, "sts:GetCallerIdentity", false)
    );
    assert_eq!((read.started, read.ended), (Duration::ZERO, Some(LATENCY)));
    assert_eq!(
        (read.caller.as_str(), &read.outcome),
        ("arn:aws:iam::123456789012:user/second", &Outcome::Done)
    );
    assert_eq!((write.caller.as_str(), write.first), (CALLER, true));
    assert_eq!(write.change.as_ref(), Some(&change));
    assert_eq!(write.text(), format!("ec2:ModifyNetworkInterfaceAttribute {PRIMARY} set_groups"));
    let failed =
        Outcome::Failed { kind: ErrorKind::NotFound, code: "InvalidGroup.NotFound".into() };
    assert_eq!((&write.outcome, write.took_effect), (&failed, None));
    assert_eq!(fake.changes(), std::slice::from_ref(write));
}

#[tokio::test(start_paused = true)]
async fn a_chain_is_the_calls_that_waited_for_each_other() {
    let fake = FakeCloud::new(World::full());
    fake.set_latency(LATENCY);
    fake.caller().await.expect("read");
    let instance = suspect();
    tokio::join!(
        async {
            fake.role_policies(&"web-role".into()).await.expect("read");
        },
        async {
            fake.get_instance(&instance).await.expect("read");
        },
    );
    fake.create("k", vec![]).await.expect("created");
    let chain: Vec<_> = fake.chain_to(4).into_iter().map(|c| c.operation).collect();
    assert_eq!(chain, ["sts:GetCallerIdentity", "iam:ListRolePolicies", "s3:PutObject"]);
}

#[tokio::test(start_paused = true)]
async fn two_callers_share_one_world_and_one_wins() {
    let fake = FakeCloud::new(World::plain());
    let other = fake.as_caller("arn:aws:iam::123456789012:user/second");
    let (one, two) = tokio::join!(fake.create("claim", vec![1]), other.create("claim", vec![2]));
    let won = [one, two].map(|put| put.expect("answered") == Put::Created);
    assert!(won[0] != won[1], "{won:?}");
    assert_ne!(fake.caller().await, other.caller().await);
    fake.kill();
    assert!(timeout(SECOND, fake.caller()).await.is_err());
    other.caller().await.expect("lives on");
}

#[tokio::test(start_paused = true)]
async fn stale_reads_show_what_was() {
    let fake = FakeCloud::new(World::plain());
    fake.stale(SECOND);
    let before = fake.interfaces(&suspect()).await.expect("read");
    let (empty, _) = two_groups(&fake).await;
    done(&fake, set_groups(PRIMARY, &empty)).await;
    assert_eq!(fake.interfaces(&suspect()).await.expect("read"), before);
    fake.create("k", vec![1]).await.expect("created");
    assert_eq!(fake.get("k").await, Ok(Some(vec![1])), "S3 is never stale");
    tokio::time::sleep(SECOND).await;
    let after = fake.interfaces(&suspect()).await.expect("read");
    assert!(after[0].groups.contains(&empty));
}

#[tokio::test(start_paused = true)]
async fn the_clock_begins_with_the_year() {
    let fake = FakeCloud::new(World::plain());
    assert_eq!(fake.now().to_string(), "2026-01-01T00:00:00.000000000Z");
    tokio::time::sleep(SECOND * 90).await;
    assert_eq!(fake.now().to_string(), "2026-01-01T00:01:30.000000000Z");
    assert_eq!(fake.with(|w| w.now()), fake.now());
}
