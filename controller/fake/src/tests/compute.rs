//! Guards, snapshots, images, tags.

use std::collections::{BTreeMap, BTreeSet};

use cleanroom_cloud::{Inventory as _, Snapshot, SnapshotState, Tags};
use cleanroom_contract::SnapshotId;

use super::*;
use crate::CASE_KEY;

fn tags() -> Tags {
    Tags::from([("cleanroom:case".to_owned(), "c1".to_owned())])
}

fn snapshot_all() -> Change {
    Change::CreateSnapshots { instance: suspect(), description: String::new(), tags: tags() }
}

async fn snapshots(fake: &FakeCloud) -> Vec<Snapshot> {
    fake.snapshots(&"c1".parse().expect("a case")).await.expect("listed")
}

#[tokio::test(start_paused = true)]
async fn one_call_makes_a_set_of_snapshots_and_two_make_two() {
    let mut world = World::full();
    world.failing_volumes.insert("vol-0123456789abcdef0".parse().expect("a volume"));
    let fake = FakeCloud::new(world);
    let Made::Snapshots(made) = done(&fake, snapshot_all()).await else { panic!("snapshots") };
    assert_eq!(made.len(), 3);
    assert_eq!(snapshots(&fake).await, made);
    assert!(made.iter().all(|s| s.state == SnapshotState::Pending && s.started == fake.now()));
    assert_eq!(made.iter().filter(|s| s.encrypted).count(), 1);
    tokio::time::sleep(SECOND * 29).await;
    assert_eq!(snapshots(&fake).await, made);
    tokio::time::sleep(SECOND).await;
    let states: Vec<_> = snapshots(&fake).await.iter().map(|s| (s.state, s.progress)).collect();
    let whole = (SnapshotState::Completed, 100);
    assert_eq!(states, [(SnapshotState::Error, 0), whole, whole]);
    done(&fake, snapshot_all()).await;
    assert_eq!(snapshots(&fake).await.len(), 6);
}

#[tokio::test(start_paused = true)]
async fn an_instance_that_ends_keeps_only_what_was_to_survive() {
    let fake = FakeCloud::new(World::full());
    let kept = fake.attached_volumes(&suspect()).await.expect("listed").pop().expect("the last");
    fake.with(|w| w.shut_down(&suspect()));
    let ending = refused(&fake, snapshot_all()).await;
    assert_eq!(ending, (ErrorKind::Refused, "IncorrectInstanceState".to_owned()));
    let kept_alone = Change::CreateSnapshot {
        volume: kept.id.clone(),
        description: String::new(),
        tags: tags(),
    };
    done(&fake, kept_alone.clone()).await;
    tokio::time::sleep(SECOND * 30).await;
    let instance = fake.get_instance(&suspect()).await.expect("still described");
    assert_eq!(instance.state, cleanroom_cloud::InstanceState::Terminated);
    assert!(fake.interfaces(&suspect()).await.expect("listed").is_empty());
    let all: Vec<_> = fake.with(|w| w.volumes.keys().cloned().collect());
    assert_eq!(all.len(), 2, "that one and the sibling's: {all:?}");
    assert!(fake.attached_volumes(&suspect()).await.expect("listed").is_empty());
    done(&fake, kept_alone).await;
}

#[tokio::test(start_paused = true)]
async fn snapshots_are_locked_and_copied_and_made_images_of() {
    let fake = FakeCloud::new(World::plain());
    let Made::Snapshots(made) = done(&fake, snapshot_all()).await else { panic!("snapshots") };
    let root: SnapshotId = made[0].id.clone();
    done(&fake, Change::LockSnapshot { snapshot: root.clone(), days: 7 }).await;
    assert!(snapshots(&fake).await[0].locked);
    let copy =
        Change::CopySnapshot { snapshot: root.clone(), key: CASE_KEY.to_owned(), tags: tags() };
    let register = Change::RegisterImage {
        name: "case-c1".to_owned(),
        architecture: "x86_64".to_owned(),
        root_device: "/dev/xvda".to_owned(),
        devices: BTreeMap::from([("/dev/xvda".to_owned(), root.clone())]),
        tags: tags(),
    };
    assert_eq!(refused(&fake, copy.clone()).await.1, "IncorrectState");
    assert_eq!(refused(&fake, register.clone()).await.0, ErrorKind::Refused);
    tokio::time::sleep(SECOND * 30).await;
    let Made::Copy(copied) = done(&fake, copy).await else { panic!("a copy") };
    let found = fake.with(|w| w.snapshot(&copied).cloned()).expect("there");
    assert!(copied != root && found.key.as_deref() == Some(CASE_KEY) && !found.locked);
    done(&fake, register.clone()).await;
    assert_eq!(refused(&fake, register).await.0, ErrorKind::Conflict);
    let images = fake.images(&"c1".parse().expect("a case")).await.expect("listed");
    assert_eq!((images.len(), images[0].state.as_str()), (1, "available"));
}

#[tokio::test(start_paused = true)]
async fn a_copy_under_a_key_that_can_not_be_used_fails_later() {
    let fake = FakeCloud::new(World::plain());
    done(&fake, snapshot_all()).await;
    tokio::time::sleep(SECOND * 30).await;
    fake.with(|w| w.keys[0].enabled = false);
    let snapshot = snapshots(&fake).await[0].id.clone();
    let copy = Change::CopySnapshot { snapshot, key: CASE_KEY.to_owned(), tags: tags() };
    let Made::Copy(copied) = done(&fake, copy).await else { panic!("a copy") };
    tokio::time::sleep(SECOND * 30).await;
    let state = fake.with(|w| w.snapshot(&copied).map(|s| s.state));
    assert_eq!(state, Some(SnapshotState::Error));
}

#[tokio::test(start_paused = true)]
async fn an_image_of_the_instance_makes_snapshots_of_its_own() {
    let fake = FakeCloud::new(World::full());
    let image = Change::CreateImage { instance: suspect(), name: "case-c1".into(), tags: tags() };
    done(&fake, image).await;
    assert_eq!(fake.with(|w| w.snapshots.len()), 3);
    assert!(snapshots(&fake).await.is_empty(), "which are not the case's");
    let state = || fake.with(|w| w.images[0].state.clone());
    assert_eq!(state(), "pending");
    tokio::time::sleep(SECOND * 31).await;
    assert_eq!(state(), "available");
}

#[tokio::test(start_paused = true)]
async fn spot_instances_can_not_be_protected_but_guarded_otherwise() {
    let mut world = World::plain();
    world.machines.get_mut(&suspect()).expect("there").instance.spot = true;
    let fake = FakeCloud::new(world);
    let (instance, on) = (suspect(), true);
    for change in [
        Change::SetTerminationProtection { instance: instance.clone(), on },
        Change::SetStopProtection { instance: instance.clone(), on },
    ] {
        assert_eq!(refused(&fake, change).await.0, ErrorKind::Unsupported);
    }
    done(&fake, Change::SetShutdownBehavior { instance: suspect(), terminate: true }).await;
    assert!(fake.guards(&suspect()).await.expect("there").shutdown_terminates);
    let volume = "vol-0123456789abcdef0".parse().expect("a volume");
    let device = "/dev/xvda".to_owned();
    done(&fake, Change::SetDeleteOnTermination { instance, device, volume, on: false }).await;
    let instance = fake.get_instance(&suspect()).await.expect("there");
    assert!(!instance.volumes[0].delete_on_termination);
}

#[tokio::test(start_paused = true)]
async fn tags_go_on_anything_that_exists_within_limits() {
    let fake = FakeCloud::new(World::full());
    let put = |resource: &str, key: &str, value: &str| Change::PutTags {
        resource: resource.to_owned(),
        tags: Tags::from([(key.to_owned(), value.to_owned())]),
    };
    for resource in [INSTANCE, PRIMARY, WEB, "vol-0123456789abcdef0", "eipalloc-0123456789abcdef0"]
    {
        done(&fake, put(resource, "k", "v")).await;
    }
    let instance = fake.get_instance(&suspect()).await.expect("there");
    assert_eq!(instance.tags["k"], "v");
    assert_eq!(refused(&fake, put("vol-0aaaaaaaa", "k", "v")).await.0, ErrorKind::NotFound);
    let (long_key, long_value) = ("k".repeat(129), "v".repeat(257));
    for (key, value) in [(long_key.as_str(), "v"), ("k", long_value.as_str()), ("aws:k", "v")] {
        assert_eq!(refused(&fake, put(INSTANCE, key, value)).await.0, ErrorKind::Refused);
    }
    for n in instance.tags.len()..50 {
        done(&fake, put(INSTANCE, &format!("n{n}"), "")).await;
    }
    assert_eq!(refused(&fake, put(INSTANCE, "one more", "")).await.1, "TagLimitExceeded");
    let keys = BTreeSet::from(["k".to_owned()]);
    done(&fake, Change::RemoveTags { resource: INSTANCE.to_owned(), keys }).await;
    done(&fake, put(INSTANCE, "one more", "")).await;
}
