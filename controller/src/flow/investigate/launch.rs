//! Has a room stand in which an order is carried out: what it is made with, and what it was made without.
//!
//! Reads the account, keeps the template in the bucket; the stack itself is the goal's.

use cleanroom_cloud::{Change, Stack};
use cleanroom_contract::{OrderedFile, ScanId, WorkOrder, printable};

use super::{AGAIN, short};
use crate::{
    case::Case,
    engine::{Direction, Ended, again, ensure},
    steps::clean_room::{
        Fittings, Launch, artifacts, copied,
        order::{self, Ordered},
        retry::Lessons,
        stack_name,
    },
};

/// The agent and the tools. Where there is no agent, that is a note, or a shortfall where people asked for the step by name.
pub(super) async fn fittings_there(case: &Case) -> Option<(OrderedFile, Option<OrderedFile>)> {
    match artifacts::chosen(&*case.store, &case.scene.policy.room).await {
        Ok(Some(found)) => Some(found),
        Ok(None) => {
            let what = "no clean room: the bucket has no agent";
            let advice = "put one there with `cleanroom deploy --artifacts DIR`, and run respond again: it goes on from the snapshots";
            if case.scene.policy.room.asked {
                short(case, what.to_owned(), advice);
            } else {
                case.note(format!("{what}; {advice}"));
            }
            None
        }
        Err(why) => {
            short(case, format!("no clean room: which agent to use is not known: {why}"), AGAIN);
            None
        }
    }
}

/// Has a room stand in which the order is carried out.
pub(super) async fn launch(case: &Case, ordered: Ordered) -> Option<Ordered> {
    let (agent, tools) = fittings_there(case).await?;
    let room = &case.scene.policy.room;
    let image = artifacts::image(&*case.scene.inventory, room).await;
    let (image, name) = match image {
        Ok(image) => image,
        Err(why) => {
            let advice = "name an AMI with --image-id, or image in [room] of cleanroom.toml";
            short(case, format!("no clean room: no machine image: {why}"), advice);
            return None;
        }
    };
    if let Some(name) = name {
        case.note(format!("the room's machine image is {image}, {}", printable(&name)));
    }
    let keep =
        || artifacts::keep(&*case.store, "templates", "clean-room.yaml", room.template.as_bytes());
    let template = match artifacts::patiently(keep).await {
        Ok(template) => template,
        Err(why) => {
            short(case, format!("no clean room: its template could not be stored: {why}"), AGAIN);
            return None;
        }
    };
    let key = case_key(case).await?;
    let bucket_key = bucket_key(case).await;
    let s3_addresses = s3_addresses(case).await?;
    let (order_key, order_sha256) = (ordered.exhibit.key.clone(), ordered.exhibit.sha256);
    let order = ordered.order.clone();
    let fittings = Fittings {
        order,
        order_key,
        order_sha256,
        agent,
        tools,
        image,
        template,
        key,
        bucket_key,
        s3_addresses,
    };
    let goal = Launch { fittings: Some(Box::new(fittings)) };
    let ended = ensure(case, &goal, Direction::Respond).await;
    if !ended.whole {
        return None;
    }
    let name = stack_name(&case.scene.case, case.scene.room);
    let found = again(case.bounds.original, || case.scene.inventory.find_stack(&name)).await;
    let stack = found.ok().flatten();
    let ordered = joined(case, stack.as_ref(), ordered).await;
    if let Some(stack) = &stack {
        left_out(case, stack, &ordered.order, &ended).await;
    }
    Some(ordered)
}

/// The ARN of the case's key, where it has one. None, with a shortfall, where it can not be read.
async fn case_key(case: &Case) -> Option<Option<String>> {
    let Some(key) = &case.scene.policy.key else { return Some(None) };
    match again(case.bounds.original, || case.scene.inventory.key(key)).await {
        Ok(known) => Some(Some(known.arn)),
        Err(why) => {
            let what = format!("no clean room: its key {key} could not be read: {why}");
            let advice = "look at the case's key and the right to use it, and run respond again";
            short(case, what, advice);
            None
        }
    }
}

/// The prefix list of S3's addresses in this Region, where the room has a network of its own. None, with a shortfall, where it
/// can not be read: without it the room could not reach its order.
async fn s3_addresses(case: &Case) -> Option<Option<String>> {
    if case.scene.policy.room.vpc.is_some() {
        return Some(None);
    }
    let name = format!("com.amazonaws.{}.s3", case.scene.caller.region);
    let inventory = &case.scene.inventory;
    let why = match again(case.bounds.original, || inventory.prefix_list(&name)).await {
        Ok(Some(id)) => return Some(Some(id)),
        Ok(None) => "EC2 knows none of this name".to_owned(),
        Err(why) => why,
    };
    short(case, format!("no clean room: S3's prefix list {name} could not be found: {why}"), AGAIN);
    None
}

/// The key of the bucket, which the room must be let use: where it is a customer's. One that can not be read is noted: a room
/// that can not read its order is silent.
async fn bucket_key(case: &Case) -> Option<String> {
    let home = case.scene.at_home();
    let key = match again(case.bounds.original, || case.posture.bucket()).await {
        Ok(bucket) => bucket.key.filter(|key| !super::super::preflight::is_default_key(key))?,
        Err(why) => {
            case.note(format!("which key the bucket encrypts with could not be read: {why}"));
            return None;
        }
    };
    match again(case.bounds.original, || home.inventory.key(&key)).await {
        Ok(known) if known.aws_managed => None,
        Ok(known) => Some(known.arn),
        Err(why) => {
            case.note(format!("the bucket's key {key} could not be read: {why}"));
            key.starts_with("arn:").then_some(key)
        }
    }
}

/// Two runs that begin at the same time write an order each, and one room stands. It begins with the order that it was made
/// with, so that is the one to wait for, where ours is the older one: a room takes up newer orders only.
async fn joined(case: &Case, stack: Option<&Stack>, ours: Ordered) -> Ordered {
    let first = stack.and_then(|stack| stack.parameters.get("OrderKey"));
    let scan =
        first.and_then(|key| key.rsplit('/').next()?.strip_suffix(".json")?.parse::<ScanId>().ok());
    let Some(scan) = scan.filter(|scan| *scan > ours.order.scan) else { return ours };
    order::read(&*case.store, &case.scene.case, (case.scene.room, &scan)).await.unwrap_or(ours)
}

/// Names the volumes that the room was made without, and why, where this run has seen it.
async fn left_out(case: &Case, stack: &Stack, order: &WorkOrder, ended: &Ended) {
    let has = copied(stack);
    let done = ended.outcomes.iter().filter(|outcome| outcome.error.is_none());
    let applied: Vec<Change> = done.map(|outcome| outcome.change.clone()).collect();
    // Unread, the volumes are named all the same, without the reason.
    let lessons = Lessons::of(&case.scene, &applied).await.unwrap_or_default();
    for volume in order.volumes.iter().filter(|volume| !has.contains(&volume.snapshot)) {
        let why = match lessons.left_out.get(&volume.snapshot) {
            Some(why) => format!(": {why}"),
            None => String::new(),
        };
        let what = format!("the room is made without {}{why}", volume.source);
        let advice = format!(
            "mend what is named, then run teardown and rescan {}; or examine {} by hand, with cleanroom-agent scan",
            case.scene.case, volume.snapshot
        );
        short(case, what, &advice);
    }
    if lessons.as_it_comes {
        case.note(
            "the room's volumes fill as it comes: the Region's quota of set rates is full"
                .to_owned(),
        );
    }
}
