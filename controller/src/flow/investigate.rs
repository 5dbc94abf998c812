//! From whole snapshots to a report that was read back: order, launch, await, verify, log, tell.
//!
//! Goes on where an earlier run was: the same stack, the same scan unless it failed. What goes wrong here makes the case
//! partial and nothing else: what is contained stays contained.

use std::collections::BTreeMap;

use cleanroom_cloud::{Snapshot, SnapshotState};
use cleanroom_contract::{
    OrderedFile, Report, ScanId, Severity, Summary, VolumeId, bundle_prefix, printable,
};
use serde::Serialize;

use crate::{
    case::{Case, OWN_VPC, Shortfall, Step, lock},
    engine::{Direction, again, ensure},
    journal::{Examined, event::Body},
    progress::Event,
    steps::{
        clean_room::{
            Fittings, Launch, MOST_VOLUMES, artifacts, bundle,
            order::{self, Ordered},
            stack_name,
            watch::{self, Heard, Told},
        },
        notify::{self, Milestone},
        snapshot,
    },
};

/// A report that was read back.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Reported {
    /// The scan.
    pub scan: ScanId,
    /// Where its bundle is.
    pub bundle: String,
    /// What came of it.
    pub summary: Summary,
}

/// What a person does about most of what goes wrong.
const AGAIN: &str = "the instance stays as it is; run respond again: it goes on where it was";

fn short(case: &Case, what: String, advice: &str) {
    let shortfall = Shortfall { step: Step::CleanRoom, what, advice: advice.to_owned() };
    case.short(shortfall);
}

/// Has the case's snapshots examined, and reads back what came of it.
pub(super) async fn investigate(case: &Case) -> Option<Reported> {
    let instance = &case.scene.instance;
    case.progress.began(instance, Step::CleanRoom, "report");
    let reported = work(case).await;
    case.progress.ended(instance, Step::CleanRoom, "report");
    reported
}

async fn work(case: &Case) -> Option<Reported> {
    let newest = match order::newest(&*case.store, &case.scene.case).await {
        Ok(newest) => newest,
        Err(why) => {
            short(case, format!("the work orders could not be read: {why}"), AGAIN);
            return None;
        }
    };
    if let Some(ordered) = newest {
        let scan = &ordered.order.scan;
        if let Some(examined) = case.journal.ledger().await.reports.get(scan) {
            return Some(known(case, scan, examined));
        }
        let mut heard = Heard::default();
        let listening = watch::listen(&*case.store, (&case.scene.case, scan), &mut heard).await;
        match (listening, &heard.failed) {
            // A scan that failed is not waited for again: another is ordered.
            (Ok(_), Some(why)) => {
                case.note(format!("scan {scan} failed ({why}): another is ordered"));
            }
            // It may be published although its room is gone.
            (Ok(_), None) if heard.published.is_some() => {
                order::log(case, &ordered).await;
                return read_back(case, &ordered, &heard).await;
            }
            _ if fits(case, &ordered).await => {
                order::log(case, &ordered).await;
                return examine(case, ordered).await;
            }
            _ => case.note(format!("scan {scan} asks for other snapshots: another is ordered")),
        }
    }
    // Whether there can be a room at all comes before an order that nobody would carry out.
    fittings_there(case).await?;
    let ordered = place(case).await?;
    examine(case, ordered).await
}

/// Whether a room stands for an order, or can be made: a snapshot may have been copied to another key since.
async fn fits(case: &Case, ordered: &Ordered) -> bool {
    let name = stack_name(&case.scene.case);
    let stack = again(case.bounds.original, || case.scene.inventory.find_stack(&name)).await;
    if !matches!(stack, Ok(None)) {
        return true;
    }
    match again(case.bounds.goal, || snapshot::for_a_room(&case.scene)).await {
        Ok((snapshots, _)) => ordered
            .order
            .volumes
            .iter()
            .all(|volume| snapshots.values().any(|s| s.id == volume.snapshot)),
        Err(_) => true,
    }
}

/// What the log tells of a scan. Volumes that it lacked are short in every run, until another scan has them.
fn known(case: &Case, scan: &ScanId, examined: &Examined) -> Reported {
    lacking(case, scan, &examined.missing, &examined.summary);
    Reported { scan: scan.clone(), bundle: at(case, scan), summary: examined.summary.clone() }
}

fn at(case: &Case, scan: &ScanId) -> String {
    format!("s3://{}/{}", case.store.bucket(), bundle_prefix(&case.scene.case, scan))
}

fn lacking(case: &Case, scan: &ScanId, missing: &[VolumeId], summary: &Summary) {
    let advice = format!(
        "look at the room's stack for what kept them away, and run rescan {}: it examines all again",
        case.scene.case
    );
    if !missing.is_empty() {
        let what = format!("scan {scan} never saw {}", join(missing));
        short(case, what, &advice);
    }
    if !summary.complete {
        let what = format!("scan {scan} stopped before its end: its report says where");
        short(case, what, &advice);
    }
}

/// The agent and the tools. Where there is no agent, that is a note, or a shortfall where people asked for the step by name.
async fn fittings_there(case: &Case) -> Option<(OrderedFile, Option<OrderedFile>)> {
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

/// The snapshots to examine.
async fn evidence(case: &Case) -> Option<BTreeMap<VolumeId, Snapshot>> {
    let reading = again(case.bounds.goal, || snapshot::for_a_room(&case.scene)).await;
    let (snapshots, lacking) = match reading {
        Ok(found) => found,
        Err(why) => {
            short(case, format!("no clean room: the snapshots could not be read: {why}"), AGAIN);
            return None;
        }
    };
    if snapshots.is_empty() && lacking.is_empty() {
        case.note("no clean room: there is no volume to examine".to_owned());
        return None;
    }
    if snapshots.is_empty() && !case.does(Step::Snapshot) && !case.scene.policy.room.asked {
        case.note("no clean room: there are no snapshots, and none were asked for".to_owned());
        return None;
    }
    if snapshots.is_empty() {
        let what = format!("no clean room: {} have no good snapshot", join(&lacking));
        short(case, what, "run respond again: it takes another set of snapshots first");
        return None;
    }
    let pending = snapshots.values().filter(|s| s.state != SnapshotState::Completed);
    let pending: Vec<_> = pending.map(|s| s.id.clone()).collect();
    if !pending.is_empty() {
        let what = format!("no clean room yet: {} are not whole", join(&pending));
        short(case, what, "run respond again once they are: it goes on from there");
        return None;
    }
    if snapshots.len() > MOST_VOLUMES {
        let what = format!(
            "{} of {} volumes are examined: a room takes no more",
            MOST_VOLUMES,
            snapshots.len()
        );
        short(
            case,
            what,
            "examine the others from their snapshots by hand, with cleanroom-agent scan",
        );
    }
    Some(snapshots)
}

fn join<T: std::fmt::Display>(things: &[T]) -> String {
    things.iter().map(ToString::to_string).collect::<Vec<_>>().join(", ")
}

/// Writes a new order.
pub(super) async fn place(case: &Case) -> Option<Ordered> {
    let snapshots = evidence(case).await?;
    match order::write(case, &snapshots).await {
        Ok(ordered) => Some(ordered),
        Err(why) => {
            short(case, format!("the work order could not be written: {why}"), AGAIN);
            None
        }
    }
}

/// Carries an order through: a room, its scan, the bundle.
pub(super) async fn examine(case: &Case, ordered: Ordered) -> Option<Reported> {
    let room = &case.scene.policy.room;
    let own = if room.vpc.is_some() { 1 } else { OWN_VPC };
    let _place = case.scene.shared.rooms.acquire_many(own).await;
    let ordered = launch(case, ordered).await?;
    let scan = &ordered.order.scan;
    let gib = ordered.order.volumes.iter().map(|v| u64::from(v.gib)).sum();
    let mut heard = Heard::default();
    match watch::until_told(case, scan, gib, &mut heard).await {
        Told::Published => read_back(case, &ordered, &heard).await,
        Told::Failed(why) => {
            let what = format!("scan {scan} failed: {why}");
            let advice = "look into the room with Session Manager; run respond again: it orders another scan";
            not_reported(case, scan, what, advice).await
        }
        Told::Silent(why) => {
            let over = still_there(case).await;
            let what = format!("the room of scan {scan} is silent: {why}{over}");
            not_reported(case, scan, what, AGAIN).await
        }
    }
}

/// What became of the room that says nothing, as the end of a sentence.
async fn still_there(case: &Case) -> String {
    let scene = &case.scene;
    match scene.inventory.find_stack(&stack_name(&scene.case)).await {
        Ok(None) => "; its stack is gone".to_owned(),
        Ok(Some(stack)) => match crate::steps::clean_room::over(scene, &stack).await {
            Ok(Some(over)) => format!("; {over}"),
            _ => String::new(),
        },
        Err(_) => String::new(),
    }
}

async fn not_reported(case: &Case, scan: &ScanId, what: String, advice: &str) -> Option<Reported> {
    short(case, what.clone(), advice);
    let name = format!("{} {scan}", Milestone::Unreported.as_str());
    notify::publish_as(case, Milestone::Unreported, &name, &[what]).await;
    None
}

/// Has a room stand in which the order is carried out.
async fn launch(case: &Case, ordered: Ordered) -> Option<Ordered> {
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
    let key = match &case.scene.policy.key {
        None => None,
        Some(key) => match again(case.bounds.original, || case.scene.inventory.key(key)).await {
            Ok(known) => Some(known.arn),
            Err(why) => {
                let advice =
                    "look at the case's key and the right to use it, and run respond again";
                short(
                    case,
                    format!("no clean room: its key {key} could not be read: {why}"),
                    advice,
                );
                return None;
            }
        },
    };
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
    if !ensure(case, &goal, Direction::Respond).await.whole {
        return None;
    }
    joined(case, ordered).await
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
    let key = match again(case.bounds.original, || case.posture.bucket()).await {
        Ok(bucket) => bucket.key.filter(|key| !super::preflight::is_default_key(key))?,
        Err(why) => {
            case.note(format!("which key the bucket encrypts with could not be read: {why}"));
            return None;
        }
    };
    match again(case.bounds.original, || case.scene.inventory.key(&key)).await {
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
async fn joined(case: &Case, ours: Ordered) -> Option<Ordered> {
    let name = stack_name(&case.scene.case);
    let found = again(case.bounds.original, || case.scene.inventory.find_stack(&name)).await;
    let first = found.ok().flatten().and_then(|s| s.parameters.get("OrderKey").cloned());
    let scan = first
        .as_deref()
        .and_then(|key| key.rsplit('/').next()?.strip_suffix(".json")?.parse::<ScanId>().ok());
    let Some(scan) = scan.filter(|scan| *scan > ours.order.scan) else { return Some(ours) };
    match order::read(&*case.store, &case.scene.case, &scan).await {
        Ok(theirs) => Some(theirs),
        Err(_) => Some(ours),
    }
}

/// Reads the bundle back, logs it, and tells people.
async fn read_back(case: &Case, ordered: &Ordered, heard: &Heard) -> Option<Reported> {
    let scan = &ordered.order.scan;
    for odd in &heard.odd {
        case.note(format!("scan {scan}: {odd}"));
    }
    let verified = verified(case, scan, heard).await;
    let verified = match verified {
        Ok(verified) => verified,
        Err(error) => {
            let what = format!("not relied on: {}", crate::journal::error_chain(&error));
            let advice = "nothing of it is in the custody log; find out who wrote to the bundle's prefix (CloudTrail), and run rescan";
            return not_reported(case, scan, what, advice).await;
        }
    };
    for name in &verified.unnamed {
        case.note(format!(
            "beside the bundle of scan {scan} is {name}, which its sums do not name"
        ));
    }
    if !heard.unexpected.is_empty() {
        case.note(format!(
            "the room of scan {scan} has disks that nobody ordered: {}",
            join(&heard.unexpected)
        ));
    }
    let report = &verified.report;
    let missing = never_seen(case, ordered, heard, report).await;
    let summary = report.summary.clone();
    let body = Body::Reported {
        scan: scan.clone(),
        exhibits: verified.exhibits,
        summary: Box::new(summary.clone()),
        missing: missing.clone(),
    };
    case.journal.append(Some(Step::CleanRoom), body).await;
    lacking(case, scan, &missing, &summary);
    let reported = Reported { scan: scan.clone(), bundle: at(case, scan), summary };
    let name = format!("{} {scan}", Milestone::Reported.as_str());
    let lines = lines(&reported, report, &lock(&case.shortfalls).clone());
    notify::publish_as(case, Milestone::Reported, &name, &lines).await;
    // Only now: it tells people when it has published, and so after what was waited for.
    if let Ok(Some(why)) = watch::untold(&*case.store, (&case.scene.case, scan)).await {
        case.note(format!("the room of scan {scan} could not tell people: {why}"));
    }
    Some(reported)
}

/// Reads it back, again where that may help.
async fn verified(
    case: &Case,
    scan: &ScanId,
    heard: &Heard,
) -> Result<bundle::Verified, bundle::BundleError> {
    case.progress.tell(Event::Waiting {
        instance: case.scene.instance.clone(),
        step: Step::CleanRoom,
        what: format!("the bundle of scan {scan} to be read back"),
    });
    let mut pause = std::time::Duration::from_millis(500);
    for _ in 0..4 {
        match bundle::verify(&*case.store, (&case.scene.case, scan), heard).await {
            Err(bundle::BundleError::Store { source, .. }) if source.is_transient() => {
                tokio::time::sleep(pause).await;
            }
            ended => return ended,
        }
        pause *= 2;
    }
    bundle::verify(&*case.store, (&case.scene.case, scan), heard).await
}

/// The instance's volumes that the room never saw: by the order and the report, and by what the room said was missing.
async fn never_seen(
    case: &Case,
    ordered: &Ordered,
    heard: &Heard,
    report: &Report,
) -> Vec<VolumeId> {
    // The room names its copies; the stack's outputs say in which place each is, and the order what was put there.
    let name = stack_name(&case.scene.case);
    let stack = case.scene.inventory.find_stack(&name).await.ok().flatten();
    let place = |copy: &VolumeId| {
        let outputs = &stack.as_ref()?.outputs;
        let (place, _) = outputs.iter().find(|(_, value)| value.as_str() == copy.as_str())?;
        let n: usize = place.strip_prefix("Volume")?.parse().ok()?;
        Some(ordered.order.volumes.get(n.checked_sub(1)?)?.source.clone())
    };
    let said: Vec<_> =
        heard.missing.iter().map(|copy| place(copy).unwrap_or_else(|| copy.clone())).collect();
    let ordered = ordered.order.volumes.iter().map(|v| &v.source);
    let examined = |source: &&VolumeId| {
        report.evidence.iter().any(|e| e.name == source.as_str() && e.kind != "unknown")
    };
    let mut missing: Vec<_> = ordered.filter(|s| !examined(s)).cloned().chain(said).collect();
    missing.sort();
    missing.dedup();
    missing
}

/// Findings in a few words, the worst first.
#[must_use]
pub fn counted(summary: &Summary) -> String {
    let counts = Severity::ALL.iter().rev().filter_map(|severity| {
        let count = summary.findings.get(*severity);
        (count > 0).then(|| format!("{count} {}", severity.as_str()))
    });
    let counts: Vec<_> = counts.collect();
    let findings = if counts.is_empty() { "no findings".to_owned() } else { counts.join(", ") };
    format!("{findings}; {} files, {} gaps", summary.files, summary.gaps)
}

/// What people are told of a report: within what SNS takes, whatever the evidence holds.
fn lines(reported: &Reported, report: &Report, shortfalls: &[Shortfall]) -> Vec<String> {
    let cut = |text: &str| text.chars().take(300).collect::<String>();
    let mut lines =
        vec![format!("report: {}report.html", reported.bundle), counted(&reported.summary)];
    lines.extend(report.worst.iter().take(10).map(|finding| {
        let path = finding.path.as_ref().map(|path| path.path.as_str()).unwrap_or_default();
        cut(&format!("{}: {} {}{path}", finding.severity.as_str(), finding.title, finding.volume))
    }));
    lines.extend(shortfalls.iter().take(20).map(|s| cut(&format!("NOT DONE: {}", s.what))));
    lines
}

/// Whether a room said that a scan ended without a bundle, and nothing since.
pub(super) async fn has_failed(case: &Case, scan: &ScanId) -> bool {
    let mut heard = Heard::default();
    let listened = watch::listen(&*case.store, (&case.scene.case, scan), &mut heard).await;
    listened.is_ok() && heard.failed.is_some() && heard.published.is_none()
}
