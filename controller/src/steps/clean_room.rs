//! A clean room on the case's snapshots: launched once, awaited, its bundle read back, and taken down on a person's word.
//!
//! The room is scaffolding: its stack may be deleted, and one that failed is. What it is made from and what it publishes
//! is evidence: nothing here deletes any of that. What a room tells is the word of a machine that handled hostile data.

pub mod artifacts;
pub mod bundle;
pub mod deal;
pub mod order;
pub mod retry;
pub mod size;
pub mod watch;

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
    time::Duration,
};

use async_trait::async_trait;
use cleanroom_cloud::{
    Change, ErrorKind, ImageId, InstanceState, Inventory, Result, STACK_MINUTES, SnapshotState,
    Stack, StackEvent, StackState, first_failure,
};
use cleanroom_contract::{
    CaseId, InstanceId, OrderedFile, Sha256, SnapshotId, WorkOrder, printable,
};

use self::{retry::Lessons, size::decide_room};
use super::snapshot;
use crate::{
    case::{Assessment, Goal, History, Scene, Shortfall, Step},
    journal::digest,
};

/// How many volumes a room takes: what is left of 28 attachments beside its root and interface, less some to spare.
pub const MOST_VOLUMES: usize = 24;

/// How long a stack may take to be made or deleted: CloudFormation itself gives up making it half an hour earlier, and then takes
/// back what is there.
const MADE_WITHIN: Duration = Duration::from_secs((STACK_MINUTES as u64 + 30) * 60);

/// The name of the stack of one of a case's rooms, from 1. CloudFormation takes letters, digits and hyphens only: where a case's
/// name has others, or ends as those of further rooms do, part of its digest keeps two cases apart.
#[must_use]
pub fn stack_name(case: &CaseId, room: u32) -> String {
    let plain: String =
        case.as_str().chars().map(|c| if c.is_ascii_alphanumeric() { c } else { '-' }).collect();
    let ends_as_room = plain
        .rsplit_once("-room-")
        .is_some_and(|(_, n)| !n.is_empty() && n.bytes().all(|b| b.is_ascii_digit()));
    let first = if plain == case.as_str() && !ends_as_room {
        format!("cleanroom-{plain}")
    } else {
        let whole = digest(case.as_str().as_bytes()).to_string();
        format!("cleanroom-{plain}-{}", &whole[..8])
    };
    if room > 1 { format!("{first}-room-{room}") } else { first }
}

/// Which room it is, as the end of a phrase: nothing of the first, which most cases have alone.
pub(crate) fn in_room(room: u32) -> String {
    if room > 1 { format!(" in room {room}") } else { String::new() }
}

/// Everything that a stack is made with beside the snapshots.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Fittings {
    /// The work order.
    pub order: WorkOrder,
    /// Its key.
    pub order_key: String,
    /// Of its bytes.
    pub order_sha256: Sha256,
    /// The agent.
    pub agent: OrderedFile,
    /// Tools for people.
    pub tools: Option<OrderedFile>,
    /// The AMI.
    pub image: ImageId,
    /// The template.
    pub template: OrderedFile,
    /// The ARN of the key of the room's disks, where the case has one.
    pub key: Option<String>,
    /// The ARN of the bucket's key, where that is a customer's.
    pub bucket_key: Option<String>,
    /// The prefix list of S3's addresses, which the room's own network lets it reach. None in a shared one.
    pub s3_addresses: Option<String>,
}

/// The stack is made. Without a work order there is nothing to reach: the flow orders first.
#[derive(Debug)]
pub struct Launch {
    /// What it is made with.
    pub fittings: Option<Box<Fittings>>,
}

/// As the goal stands before anything is ordered.
pub static UNORDERED: Launch = Launch { fittings: None };

#[async_trait]
impl Goal for Launch {
    fn step(&self) -> Step {
        Step::CleanRoom
    }

    fn name(&self) -> &'static str {
        "launch"
    }

    async fn look(&self, scene: &Scene, history: &History) -> Result<Assessment> {
        let Some(fittings) = &self.fittings else { return Ok(Assessment::default()) };
        let name = stack_name(&scene.case, scene.room);
        match scene.inventory.find_stack(&name).await? {
            None => create(scene, fittings, history).await,
            Some(stack) if !is_ours(scene, &stack) => Ok(short(
                format!("the stack {name} is there, and is not this case's"),
                "look whose it is; delete or rename it, and run respond again".to_owned(),
            )),
            Some(stack) => there(scene, fittings, &stack, history).await,
        }
    }
}

fn short(what: String, advice: String) -> Assessment {
    let shortfall = Shortfall { step: Step::CleanRoom, what, advice };
    Assessment { short: vec![shortfall], ..Assessment::default() }
}

pub(crate) fn is_ours(scene: &Scene, stack: &Stack) -> bool {
    stack.tags.get("cleanroom:case").map(String::as_str) == Some(scene.case.as_str())
}

/// The stacks that have the names of a case's rooms, as many as it has: whosever they are.
///
/// # Errors
/// When they can not be looked at.
pub(crate) async fn stacks(
    inventory: &Arc<dyn Inventory>,
    case: &CaseId,
    rooms: u32,
) -> Result<Vec<(u32, Stack)>> {
    let mut stacks = Vec::new();
    for room in 1..=rooms {
        stacks.extend(inventory.find_stack(&stack_name(case, room)).await?.map(|s| (room, s)));
    }
    Ok(stacks)
}

/// The case's room that is worked at, where one stands or is being made. What failed, is being deleted or has turned itself off is none.
///
/// # Errors
/// When it can not be looked at.
pub(crate) async fn standing(scene: &Scene) -> Result<Option<Stack>> {
    let found = scene.inventory.find_stack(&stack_name(&scene.case, scene.room)).await?;
    let Some(stack) = found.filter(|stack| is_ours(scene, stack)) else { return Ok(None) };
    let stands = match stack.state {
        StackState::Creating => true,
        StackState::Created => over(scene, &stack).await?.is_none(),
        _ => false,
    };
    Ok(stands.then_some(stack))
}

/// The snapshots that a stack's volumes are made from.
pub(crate) fn copied(stack: &Stack) -> BTreeSet<SnapshotId> {
    let given = stack.parameters.iter().filter(|(name, _)| name.starts_with("Snapshot"));
    given.filter_map(|(_, id)| id.parse().ok()).collect()
}

/// How many stacks this run has made.
fn created(history: &History) -> usize {
    history.applied.iter().filter(|c| matches!(c, Change::CreateStack { .. })).count()
}

fn created_before(history: &History) -> bool {
    created(history) > 0
}

/// How long a stack may take to be made, after those that this run has made before it.
fn made_within(history: &History) -> Duration {
    MADE_WITHIN * u32::try_from(created(history)).unwrap_or(1).max(1)
}

/// There is no stack: it is created, and once more where a try has taught something.
async fn create(scene: &Scene, fittings: &Fittings, history: &History) -> Result<Assessment> {
    let stacks = |c: &&Change| matches!(c, Change::CreateStack { .. } | Change::DeleteStack { .. });
    if let Some(Change::CreateStack { .. }) = history.applied.iter().rfind(stacks) {
        return Ok(short(
            format!(
                "the clean room {} was deleted while it was awaited",
                stack_name(&scene.case, scene.room)
            ),
            "find out by whom (CloudTrail), and run respond again: it makes another".to_owned(),
        ));
    }
    let lessons = Lessons::of(scene, &history.applied).await?;
    let (snapshots, _) = snapshot::for_a_room(scene).await?;
    let pending: Vec<_> = fittings
        .order
        .volumes
        .iter()
        .filter(|volume| {
            let whole = |s: &cleanroom_cloud::Snapshot| s.state == SnapshotState::Completed;
            !snapshots.values().any(|s| s.id == volume.snapshot && whole(s))
        })
        .map(|volume| volume.snapshot.to_string())
        .collect();
    if !pending.is_empty() {
        return Ok(short(
            format!("no volume can be made from {}: not whole, or gone", pending.join(", ")),
            "run respond again once the snapshots are whole".to_owned(),
        ));
    }
    let mut seen = Assessment::default();
    seen.now.push(creation(scene, fittings, &lessons, created(history) + 1));
    Ok(seen)
}

/// The one call that makes a room; the `nth` of this run.
#[must_use]
pub fn creation(scene: &Scene, fittings: &Fittings, lessons: &Lessons, nth: usize) -> Change {
    Change::CreateStack {
        name: stack_name(&scene.case, scene.room),
        template: fittings.template.key.clone(),
        template_sha256: fittings.template.sha256,
        parameters: parameters(scene, fittings, lessons),
        tags: scene.tags(),
        role: scene.policy.room.role.clone(),
        token: token(&format!("create-{nth}"), scene),
    }
}

/// Marks all of a call's events, so that CloudFormation takes a repeated request for the same one (1 to 128 letters, digits and
/// hyphens). The cases of one run share a nonce.
fn token(what: &str, scene: &Scene) -> String {
    let nonce: String = scene.nonce.chars().filter(char::is_ascii_alphanumeric).take(32).collect();
    let name = stack_name(&scene.case, scene.room);
    // The longest names are cut: the room comes before.
    let token = format!("{what}-{}-{nonce}-{name}", scene.room);
    token.chars().take(128).collect()
}

/// The stack's parameters: `cloudformation/clean-room.yaml` says what each is.
#[must_use]
pub fn parameters(
    scene: &Scene,
    fittings: &Fittings,
    lessons: &Lessons,
) -> BTreeMap<String, String> {
    let (room, order) = (&scene.policy.room, &fittings.order);
    let sizes: Vec<_> = order.volumes.iter().map(|volume| volume.gib).collect();
    let size = decide_room(&sizes);
    let rate = if lessons.as_it_comes { 0 } else { size.initialization_rate };
    let or_none = |value: &Option<String>| value.clone().unwrap_or_default();
    let tools = fittings.tools.as_ref();
    let mut parameters = BTreeMap::from(
        [
            ("Case", scene.case.to_string()),
            ("Bucket", order.publish.bucket.clone()),
            ("OrderKey", fittings.order_key.clone()),
            ("OrderSha256", fittings.order_sha256.to_string()),
            ("AgentKey", fittings.agent.key.clone()),
            ("AgentSha256", fittings.agent.sha256.to_string()),
            ("ToolsKey", tools.map(|t| t.key.clone()).unwrap_or_default()),
            ("ToolsSha256", tools.map(|t| t.sha256.to_string()).unwrap_or_default()),
            ("Topic", or_none(&order.publish.topic)),
            ("ImageId", fittings.image.to_string()),
            ("InstanceType", size.instance_type.to_owned()),
            ("VolumeType", size.volume_type.to_owned()),
            ("Iops", size.iops.to_string()),
            ("Throughput", size.throughput.to_string()),
            ("InitializationRate", rate.to_string()),
            ("RootGib", size.root_gib.to_string()),
            ("KmsKey", or_none(&fittings.key)),
            ("BucketKey", or_none(&fittings.bucket_key)),
            ("IdleSeconds", room.idle_seconds.to_string()),
            ("Zone", room.zone.clone().unwrap_or_else(|| scene.original.instance.zone.clone())),
            ("Vpc", or_none(&room.vpc)),
            ("Subnet", or_none(&room.subnet)),
            ("SecurityGroup", or_none(&room.group)),
            ("S3PrefixList", or_none(&fittings.s3_addresses)),
            ("PermissionsBoundary", or_none(&room.boundary)),
            ("UsesStates", order.task_token.is_some().to_string()),
        ]
        .map(|(name, value)| (name.to_owned(), value)),
    );
    for (n, volume) in lessons.kept(&order.volumes).take(MOST_VOLUMES).enumerate() {
        parameters.insert(format!("Snapshot{:02}", n + 1), volume.snapshot.to_string());
    }
    parameters
}

/// There is a stack: it is joined, waited for, or deleted where it failed before this run or its room has ended.
async fn there(
    scene: &Scene,
    fittings: &Fittings,
    stack: &Stack,
    history: &History,
) -> Result<Assessment> {
    let within = made_within(history);
    let mut seen = Assessment::default();
    match stack.state {
        StackState::Creating | StackState::RollingBack => {
            let events = scene.inventory.stack_events(&stack.id).await?;
            let failing = stack.state == StackState::RollingBack;
            let doing = if failing { "to be rolled back" } else { "to be made" };
            let newest = events.last().map(told).unwrap_or_default();
            seen.waiting = Some((format!("stack {} {doing}: {newest}", stack.name), within));
        }
        StackState::Deleting => {
            seen.waiting = Some((format!("stack {} to be deleted", stack.name), within));
        }
        StackState::Created => {
            if let Some(over) = over(scene, stack).await? {
                if created_before(history) {
                    return Ok(short(
                        format!("the clean room ended before it reported: {over}"),
                        "run respond again: it makes another".to_owned(),
                    ));
                }
                seen.notes.push(format!("{over}: it is deleted, and another is made"));
                seen.now.push(deletion(scene, stack));
            }
        }
        StackState::Failed if !created_before(history) => {
            // An earlier run has told why, and a person may have mended it.
            seen.now.push(deletion(scene, stack));
        }
        StackState::Failed => {
            let events = scene.inventory.stack_events(&stack.id).await?;
            let mut lessons = Lessons::of(scene, &history.applied).await?;
            let other = lessons.learn(&stack.name, &stack.parameters, &events);
            let some = lessons.kept(&fittings.order.volumes).next().is_some();
            if !(other && some && created(history) < retry::MOST_TRIES) {
                return Ok(failed(stack, &events));
            }
            if let Some(event) = first_failure(&stack.name, &events) {
                seen.notes.push(format!("{}: another room is made without that", told(event)));
            }
            seen.now.push(deletion(scene, stack));
        }
        StackState::DeleteFailed => {
            let events = scene.inventory.stack_events(&stack.id).await?;
            return Ok(failed(stack, &events));
        }
    }
    Ok(seen)
}

/// Why a stack failed, by the first resource that did.
fn failed(stack: &Stack, events: &[StackEvent]) -> Assessment {
    let why = match first_failure(&stack.name, events) {
        Some(event) => told(event),
        None => stack.reason.as_deref().map(printable).unwrap_or_else(|| stack.status.clone()),
    };
    let doing = if stack.state == StackState::DeleteFailed { "deleted" } else { "made" };
    short(
        format!("the clean room {} could not be {doing}: {why}", stack.name),
        format!(
            "mend what is named (a quota, a right, a zone: see [room] in cleanroom.toml); {}",
            if stack.state == StackState::DeleteFailed {
                "then run teardown again"
            } else {
                "then run respond again: the failed stack is deleted, and another is made"
            }
        ),
    )
}

/// An event in a few words.
fn told(event: &StackEvent) -> String {
    let reason = event.reason.as_deref().map(|why| format!(": {}", printable(why)));
    format!("{} ({}) {}{}", event.resource, event.kind, event.status, reason.unwrap_or_default())
}

/// Why nothing more comes from a room that was made, where that is so: a room is never started again with evidence attached.
pub(crate) async fn over(scene: &Scene, stack: &Stack) -> Result<Option<String>> {
    let Some(id) = stack.outputs.get("Instance").and_then(|id| id.parse::<InstanceId>().ok())
    else {
        return Ok(None);
    };
    match scene.inventory.get_instance(&id).await {
        Ok(instance) => Ok(match instance.state {
            InstanceState::Pending | InstanceState::Running => None,
            state => Some(format!("the room's instance {id} is {state:?}").to_lowercase()),
        }),
        Err(error) if error.kind == ErrorKind::NotFound => {
            Ok(Some(format!("the room's instance {id} is gone")))
        }
        Err(error) => Err(error),
    }
}

fn deletion(scene: &Scene, stack: &Stack) -> Change {
    // Each stack of the name has its own token: one run may delete several.
    let own = digest(stack.id.as_bytes()).to_string();
    Change::DeleteStack {
        name: stack.name.clone(),
        id: stack.id.clone(),
        token: token(&format!("delete-{}", &own[..8]), scene),
    }
}

/// The stack is gone, and all that it made.
#[derive(Debug)]
pub struct Remove;

#[async_trait]
impl Goal for Remove {
    fn step(&self) -> Step {
        Step::CleanRoom
    }

    fn name(&self) -> &'static str {
        "remove"
    }

    async fn look(&self, scene: &Scene, history: &History) -> Result<Assessment> {
        let mut seen = Assessment::default();
        let name = stack_name(&scene.case, scene.room);
        let Some(stack) = scene.inventory.find_stack(&name).await? else { return Ok(seen) };
        if !is_ours(scene, &stack) {
            return Ok(short(
                format!("the stack {name} is not this case's: it is left alone"),
                "look whose it is".to_owned(),
            ));
        }
        let begun = history
            .applied
            .iter()
            .any(|change| matches!(change, Change::DeleteStack { id, .. } if *id == stack.id));
        match stack.state {
            StackState::Deleting => {
                let what = format!("stack {name} to be deleted");
                seen.waiting = Some((what, MADE_WITHIN));
            }
            StackState::DeleteFailed if begun => {
                let events = scene.inventory.stack_events(&stack.id).await?;
                return Ok(failed(&stack, &events));
            }
            _ => seen.now.push(deletion(scene, &stack)),
        }
        Ok(seen)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_stack_has_time_for_all_that_its_template_waits_for() {
        let waits = crate::room::TEMPLATE.split("Timeout: PT").skip(1);
        let minutes = waits.map(|rest| rest.split('M').next().unwrap_or_default().parse::<u16>());
        let minutes: Vec<u16> = minutes.collect::<std::result::Result<_, _>>().expect("minutes");
        assert_eq!(minutes.len(), 2, "the room and the evidence");
        // What is left is for the network before the one, and for attaching before the other.
        assert!(minutes.iter().sum::<u16>() + 20 <= STACK_MINUTES, "{minutes:?}");
        assert!(MADE_WITHIN > Duration::from_secs(u64::from(STACK_MINUTES) * 60));
    }

    #[test]
    fn stacks_have_names_that_cloudformation_takes_and_cases_keep_apart() {
        let name = |case: &str| stack_name(&case.parse().expect("a case id"), 1);
        assert_eq!(name("i-0123456789abcdef0-1"), "cleanroom-i-0123456789abcdef0-1");
        let (dot, line) = (name("case.7"), name("case_7"));
        assert!(dot.starts_with("cleanroom-case-7-") && line.starts_with("cleanroom-case-7-"));
        assert_ne!(dot, line);
        assert_ne!(name("case-7"), dot);
        let second = |case: &str| stack_name(&case.parse().expect("a case id"), 2);
        assert_eq!(second("c-1"), "cleanroom-c-1-room-2");
        assert_ne!(name("c-1-room-2"), second("c-1"));
        let longest = second(&"_".repeat(64).replacen('_', "a", 1));
        assert!(longest.len() <= 128, "{longest}");
        assert!(longest.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'-'), "{longest}");
    }
}
