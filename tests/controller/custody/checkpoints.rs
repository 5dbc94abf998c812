//! Checkpoints of the custody log: believed only where the log confirms them.

use cleanroom_cloud_fake::FakeCloud;
use cleanroom_controller::journal::event;

use super::{assert_whole, case, open, plain, said, says, verdict};

/// A log of so many events, with a checkpoint after every fifth, and how many objects are read to begin with it.
async fn with_checkpoints(count: usize) -> (FakeCloud, impl AsyncFn() -> usize) {
    let cloud = plain();
    let log = open(&cloud, "a", None).await;
    for n in 1..=count {
        log.append(None, says(&n.to_string())).await;
        if n % 5 == 0 {
            log.checkpoint().await;
        }
    }
    let reader = cloud.clone();
    let reads = async move || {
        let before = reader.calls().len();
        let expected: Vec<_> = (1..=count).map(|n| n.to_string()).collect();
        assert_eq!(said(&reader).await, expected);
        reader.calls()[before..].iter().filter(|c| c.operation == "s3:GetObject").count()
    };
    (cloud, reads)
}

/// The key of a log's checkpoint.
fn upto(last: u64) -> String {
    format!("cases/case-1/custody/upto-{last:06}.json")
}

#[tokio::test(start_paused = true)]
async fn a_log_is_read_from_its_newest_checkpoint_on() {
    let (cloud, reads) = with_checkpoints(42).await;
    assert_eq!(reads().await, 3, "the checkpoint of forty, and two events");
    assert_whole(&cloud).await;
    // The next writer goes on from there, and stores the next one.
    let next = open(&cloud, "b", None).await;
    next.append(None, says("43")).await;
    next.append(None, says("44")).await;
    next.append(None, says("45")).await;
    next.checkpoint().await;
    assert_whole(&cloud).await;
    let keys = cloud.world().bucket.keys("cases/case-1/custody/upto-");
    assert_eq!(keys, (1..=9).map(|n| upto(n * 5)).collect::<Vec<_>>());
}

#[tokio::test(start_paused = true)]
async fn a_checkpoint_at_the_very_end_waits_for_the_event_that_confirms_it() {
    let (cloud, reads) = with_checkpoints(10).await;
    assert_eq!(reads().await, 6, "the checkpoint of five, and five events");
    assert_whole(&cloud).await;
}

#[tokio::test(start_paused = true)]
async fn a_checkpoint_that_the_log_does_not_confirm_is_not_believed_and_is_named() {
    type Change = fn(Vec<u8>) -> Vec<u8>;
    let changes: [(&str, Change, &str); 4] = [
        ("garbage", |_| b"{".to_vec(), "is no checkpoint of this log"),
        ("nothing", |_| Vec::new(), "is no checkpoint of this log"),
        (
            "an event less",
            |bytes| {
                let mut whole: serde_json::Value = serde_json::from_slice(&bytes).expect("JSON");
                whole["objects"].as_array_mut().expect("a list").pop();
                whole.to_string().into_bytes()
            },
            "is no checkpoint of this log",
        ),
        (
            "another event at the end",
            |bytes| {
                let mut whole: serde_json::Value = serde_json::from_slice(&bytes).expect("JSON");
                let last = &mut whole["objects"][9];
                let event = last.as_str().expect("text").replace("\"10\"", "\"released\"");
                *last = event.into();
                whole.to_string().into_bytes()
            },
            "has another event 10 than the log",
        ),
    ];
    for (what, change, fault) in changes {
        let (cloud, reads) = with_checkpoints(12).await;
        let bytes = cloud.world().bucket.newest(&upto(10)).expect("a checkpoint").to_vec();
        cloud.with(|world| {
            world.bucket.objects.remove(&upto(10));
            world.bucket.overwrite(&upto(10), change(bytes));
        });
        assert_eq!(reads().await, 13, "{what}: the checkpoint, and every event");
        let faults = verdict(&cloud).await.faults;
        assert_eq!(faults, [format!("{} {fault}", upto(10))], "{what}");
    }
}

#[tokio::test(start_paused = true)]
async fn what_was_deleted_behind_a_checkpoint_is_known_and_named() {
    let (cloud, reads) = with_checkpoints(12).await;
    cloud.with(|world| world.bucket.delete(&event::key(&case(), 3)));
    assert_eq!(reads().await, 3);
    let faults = verdict(&cloud).await.faults.join("\n");
    assert!(faults.contains("000003.json is missing"), "{faults}");
    let (cloud, reads) = with_checkpoints(12).await;
    cloud.with(|world| world.bucket.delete(&upto(10)));
    assert_eq!(reads().await, 8, "the checkpoint before, and seven events");
    let faults = verdict(&cloud).await.faults;
    assert_eq!(faults.len(), 1, "{faults:?}");
    assert!(faults[0].starts_with(&format!("{} was deleted", upto(10))), "{faults:?}");
}

#[tokio::test(start_paused = true)]
async fn a_checkpoint_of_any_number_is_no_reason_to_stop() {
    let (cloud, reads) = with_checkpoints(12).await;
    for last in [13, 10_000_000, u64::MAX] {
        cloud.with(|world| world.bucket.overwrite(&upto(last), b"{}".to_vec()));
    }
    assert_eq!(reads().await, 3, "the checkpoint of ten, and two events");
    assert_eq!(verdict(&cloud).await.faults.len(), 3);
}
