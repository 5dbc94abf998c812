//! How many calls a response in the state machine takes, whoever else is responded to.

use std::collections::{BTreeMap, BTreeSet};

use cleanroom_cloud_fake::World;
use cleanroom_controller::{brake::BrakePolicy, case::Policy};
use cleanroom_harness::asl::Answer;
use serde_json::json;

use super::{Functions, case, done};
use crate::support::suspect;

/// Calls by operation that the last of so many instances takes, one after another.
fn calls_of_the_last(count: u16) -> BTreeMap<String, usize> {
    let brake = BrakePolicy { per_hour: 999, per_group: 999, per_vpc: 999, ..Default::default() };
    let world = World::fleet(count);
    let mut functions = Functions::new(&world, Policy { brake, ..Policy::default() });
    functions.given = json!({ "source": { "by": "message" }, "reason": "a beacon" });
    let mut before = 0;
    for instance in world.machines.keys() {
        before = functions.cloud.calls().len();
        assert_eq!(functions.walk_for(instance).ended, done(), "{instance}");
    }
    let mut calls = BTreeMap::new();
    for call in &functions.cloud.calls()[before..] {
        *calls.entry(call.operation.clone()).or_insert(0) += 1;
    }
    calls
}

#[test]
fn the_last_of_many_takes_as_many_calls_as_the_last_of_few() {
    // The first ten are in the Auto Scaling group.
    let (few, many) = (calls_of_the_last(11), calls_of_the_last(60));
    assert_eq!(few, many);
    assert!(few["s3:GetObject"] > 0, "{few:?}");
}

#[test]
fn a_step_reads_the_log_once_and_from_a_checkpoint_on() {
    let mut functions = Functions::new(&World::plain(), Policy::default());
    assert_eq!(functions.walk().ended, done());
    let before = functions.cloud.calls().len();
    let ask = json!({
        "step": "tag", "instance": suspect(), "case": case(), "open": { "case": case() }
    });
    assert!(matches!(functions.invoke(&ask), Answer::Result(_)));
    let calls = functions.cloud.calls().split_off(before);
    let read = calls.iter().filter(|call| call.operation == "s3:GetObject");
    let read: Vec<_> =
        read.map(|call| &call.resource).filter(|r| r.contains("/custody/")).collect();
    let each: BTreeSet<_> = read.iter().collect();
    assert!(each.len() > 1 && each.len() == read.len(), "{read:#?}");
    let keys = functions.cloud.world().bucket.keys(&format!("cases/{}/custody/", case()));
    assert!(read.len() < keys.len() / 3, "from a checkpoint on: {read:#?} of {keys:#?}");
}
