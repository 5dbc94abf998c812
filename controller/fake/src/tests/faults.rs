//! Faults, storms, outages, deaths.

use cleanroom_cloud::{Inventory as _, Put, Store as _};
use tokio::time::{Instant, timeout};

use super::*;
use crate::{At, Fault, Outcome, Storm};

#[tokio::test(start_paused = true)]
async fn a_fault_hits_the_call_that_it_is_set_for() {
    let fake = FakeCloud::new(World::plain());
    fake.caller().await.expect("not counted before");
    fake.fault(Fault::Refuse(ErrorKind::Throttled), At::Call(2));
    fake.caller().await.expect("the first");
    assert_eq!(kind(fake.caller().await), ErrorKind::Throttled);
    fake.caller().await.expect("the third");

    fake.faults(Fault::Refuse(ErrorKind::Denied), At::Change(2), 2);
    for (key, well) in [("1", true), ("2", false), ("3", false), ("4", true)] {
        fake.caller().await.expect("reads do not count");
        assert_eq!(fake.create(key, vec![]).await.is_ok(), well, "{key}");
    }
    assert_eq!(fake.with(|w| w.bucket.keys("")), ["1", "4"], "a refused call does nothing");

    fake.faults(Fault::Refuse(ErrorKind::Other), At::Matching("set_groups".into(), 1), u64::MAX);
    let group = new_group(&fake, "case").await;
    assert_eq!(refused(&fake, set_groups(PRIMARY, &group)).await.0, ErrorKind::Other);
    assert_eq!(refused(&fake, set_groups(PRIMARY, &group)).await.0, ErrorKind::Other);
    fake.calm();
    done(&fake, set_groups(PRIMARY, &group)).await;
}

#[tokio::test(start_paused = true)]
async fn a_lost_answer_is_ambiguous_and_done() {
    let fake = FakeCloud::new(World::plain());
    fake.fault(Fault::LoseAnswer, At::Matching("s3:PutObject".into(), 1));
    let error = fake.create("k", vec![1]).await.expect_err("lost");
    assert!(error.is_ambiguous() && error.request.is_none());
    assert_eq!(fake.create("k", vec![1]).await, Ok(Put::Exists));
    fake.fault(Fault::Refuse(ErrorKind::Ambiguous), At::Call(1));
    assert_eq!(kind(fake.create("l", vec![1]).await), ErrorKind::Ambiguous);
    assert_eq!(fake.create("l", vec![1]).await, Ok(Put::Created));
}

#[tokio::test(start_paused = true)]
async fn a_process_dies_before_or_after_and_another_goes_on() {
    for (fault, left) in [(Fault::DieBefore, Put::Created), (Fault::DieAfter, Put::Exists)] {
        let fake = FakeCloud::new(World::plain());
        fake.set_latency(SECOND);
        fake.fault(fault, At::Change(1));
        let cloud = fake.cloud();
        // A task that nobody drops gets no answer either.
        let other = tokio::spawn({
            let fake = fake.clone();
            async move { fake.create("other", vec![]).await }
        });
        tokio::select! {
            biased;
            () = fake.died() => {}
            answer = cloud.store.create("k", vec![1]) => panic!("answered {answer:?}"),
        }
        assert!(fake.is_dead());
        assert!(timeout(SECOND * 60, fake.caller()).await.is_err());
        assert!(!other.is_finished());
        let next = fake.restarted();
        assert_eq!(next.create("k", vec![1]).await, Ok(left));
        assert_eq!(next.create("other", vec![1]).await, Ok(Put::Created));
        assert_eq!(fake.calls()[0].outcome, Outcome::Died);
    }
}

#[tokio::test(start_paused = true)]
async fn a_call_may_hang_and_was_not_done() {
    let fake = FakeCloud::new(World::plain());
    fake.fault(Fault::Hang, At::Call(1));
    assert!(timeout(SECOND * 3600, fake.create("k", vec![])).await.is_err());
    assert_eq!(fake.calls()[0].outcome, Outcome::Hung);
    assert_eq!(fake.create("k", vec![]).await, Ok(Put::Created));
}

#[tokio::test(start_paused = true)]
async fn a_storm_is_the_same_for_the_same_seed() {
    let run = async |seed| {
        let fake = FakeCloud::new(World::plain());
        let faults = vec![Fault::Refuse(ErrorKind::Throttled), Fault::LoseAnswer];
        fake.storm(Storm { seed, percent: 30, faults, matching: "s3:".to_owned() });
        let mut hits = Vec::new();
        for n in 0..200 {
            fake.caller().await.expect("not of this storm");
            hits.push(fake.create(&n.to_string(), vec![]).await.map_err(|e| e.kind).err());
        }
        hits
    };
    let hits = run(7).await;
    assert_eq!(hits, run(7).await);
    assert_ne!(hits, run(8).await);
    let failed = hits.iter().flatten().count();
    assert!((30..=90).contains(&failed), "{failed} of 200");
    assert!(
        hits.contains(&Some(ErrorKind::Throttled)) && hits.contains(&Some(ErrorKind::Ambiguous))
    );
}

#[tokio::test(start_paused = true)]
async fn an_outage_is_of_one_service_and_of_a_time() {
    let fake = FakeCloud::new(World::plain());
    fake.outage("s3:");
    assert_eq!(kind(fake.create("k", vec![]).await), ErrorKind::Unreachable);
    fake.caller().await.expect("another service");
    fake.end_outage("s3:");
    fake.create("k", vec![]).await.expect("over");
    fake.outage_between("sts:", SECOND, SECOND * 2);
    let began = Instant::now();
    let mut failed = Vec::new();
    while began.elapsed() < SECOND * 3 {
        if fake.caller().await.is_err() {
            failed.push(began.elapsed());
        }
        tokio::time::sleep(SECOND / 2).await;
    }
    assert_eq!(failed, [SECOND, SECOND * 3 / 2]);
}
