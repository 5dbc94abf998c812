//! From whole snapshots to a report that was read back: order, launch, await, verify, log, tell.
//!
//! Goes on where an earlier run was: the same stack, the same scan unless it is over. What goes wrong here makes the case
//! partial and nothing else: what is contained stays contained. A case is whole only where a scan has examined every volume.

mod evidence;
mod launch;
mod read_back;

use cleanroom_contract::{ScanId, Severity, Summary, bundle_prefix, is_first_room};
use futures_util::{StreamExt as _, stream};
use serde::Serialize;

use self::evidence::{Coverage, Scanned};
pub(super) use self::evidence::{Which, groups};
use crate::{
    case::{Case, OWN_VPC, Shortfall, Step, lock},
    engine::again,
    journal::Ledger,
    steps::{
        clean_room::{
            self,
            bundle::SUMS,
            order::{self, Ordered},
            stack_name,
            watch::{self, Heard, Told},
        },
        forensic,
        notify::{self, Milestone},
        snapshot,
    },
};

/// A report that was read back.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Reported {
    /// The room of the case that it is from.
    #[serde(skip_serializing_if = "is_first_room")]
    pub room: u32,
    /// The scan.
    pub scan: ScanId,
    /// Where its bundle is.
    pub bundle: String,
    /// What came of it.
    pub summary: Summary,
}

impl Reported {
    fn of(case: &Case, scan: &ScanId, summary: &Summary) -> Self {
        let (scan, bundle) = (scan.clone(), at(case, scan));
        Self { room: case.scene.room, scan, bundle, summary: summary.clone() }
    }
}

/// What a person does about most of what goes wrong.
const AGAIN: &str = "the instance stays as it is; run respond again: it goes on where it was";

fn short(case: &Case, what: String, advice: &str) {
    let shortfall = Shortfall { step: Step::CleanRoom, what, advice: advice.to_owned() };
    case.short(shortfall);
}

fn join<'t, T: std::fmt::Display + 't>(things: impl IntoIterator<Item = &'t T>) -> String {
    things.into_iter().map(ToString::to_string).collect::<Vec<_>>().join(", ")
}

fn at(case: &Case, scan: &ScanId) -> String {
    format!("s3://{}/{}", case.store.bucket(), bundle_prefix(&case.scene.case, scan))
}

/// How many rooms of one case are worked at side by side, as in the state machine: a network of one's own is scarce.
const ROOMS_AT_ONCE: usize = 2;

/// Has the case's snapshots examined, in as many rooms as they need, and reads back what came of it.
pub(super) async fn investigate(case: &Case) -> Vec<Reported> {
    let instance = &case.scene.instance;
    case.progress.began(instance, Step::CleanRoom, "report");
    let reported = match forensic::ready(case, false).await {
        Some(room) => in_each(&room, |room| async move { work(&room).await }).await,
        None => Vec::new(),
    };
    case.progress.ended(instance, Step::CleanRoom, "report");
    reported.into_iter().flatten().collect()
}

/// Works in each of the case's rooms, at a few of them at a time.
pub(super) async fn in_each<F: Future>(case: &Case, work: impl Fn(Case) -> F) -> Vec<F::Output> {
    let rooms = case.journal.ledger().await.rooms();
    let all: Vec<_> = (1..=rooms).map(|n| Box::pin(work(case.in_room(n)))).collect();
    stream::iter(all).buffered(ROOMS_AT_ONCE).collect().await
}

/// Has what is examined in one room examined there, and reads back what came of it.
pub(super) async fn investigate_here(case: &Case) -> Option<Reported> {
    let room = forensic::ready(case, false).await?;
    Box::pin(work(&room)).await
}

async fn work(case: &Case) -> Option<Reported> {
    let newest = match order::newest(&*case.store, &case.scene.case, case.scene.room).await {
        Ok(newest) => newest,
        Err(why) => {
            short(case, format!("the work orders could not be read: {why}"), AGAIN);
            return None;
        }
    };
    let ledger = case.journal.ledger().await;
    if let Some(ordered) = newest.filter(|o| !ledger.reports.contains_key(&o.order.scan)) {
        return match pending(case, &ordered).await {
            Pending::Over(why) => {
                let scan = &ordered.order.scan;
                case.note(format!(
                    "scan {scan} is over ({why}): what it was to examine is ordered anew"
                ));
                go_on(case, &ledger, true).await
            }
            pending => carry_on(case, ordered, pending).await,
        };
    }
    go_on(case, &ledger, false).await
}

/// Goes on with the newest order, and writes no other: where nothing comes of it any more, that is short.
pub(super) async fn go_on_with_newest(case: &Case) -> Option<Reported> {
    let ordered = match order::newest(&*case.store, &case.scene.case, case.scene.room).await {
        Ok(Some(ordered)) => ordered,
        Ok(None) => return None,
        Err(why) => {
            short(case, format!("the work orders could not be read: {why}"), AGAIN);
            return None;
        }
    };
    let scan = &ordered.order.scan;
    if let Some(examined) = case.journal.ledger().await.reports.get(scan) {
        return Some(Reported::of(case, scan, &examined.summary));
    }
    match pending(case, &ordered).await {
        Pending::Over(why) => {
            let advice =
                "look into the room with Session Manager; run respond: it orders another scan";
            not_reported(case, scan, format!("scan {scan} came to nothing: {why}"), advice).await
        }
        pending => carry_on(case, ordered, pending).await,
    }
}

/// How an order stands of which nothing is reported.
#[derive(Debug)]
pub(super) enum Pending {
    /// Its scan is awaited, in a room that stands or is made.
    Awaited,
    /// Its bundle is published, although its room may be gone.
    Published(Box<Heard>),
    /// Nothing comes of it any more, for this reason.
    Over(String),
}

/// Looks how an order stands.
pub(super) async fn pending(case: &Case, ordered: &Ordered) -> Pending {
    let scan = &ordered.order.scan;
    let over = |why: &str| Pending::Over(why.to_owned());
    if let Some(why) = case.journal.ledger().await.refused.get(scan) {
        return over(&format!("its bundle is not relied on: {why}"));
    }
    // What can not be read now is read again by who awaits it.
    let heard = watch::so_far(case, scan).await.unwrap_or_default();
    if heard.published.is_some() {
        return Pending::Published(Box::new(heard));
    }
    // A scan that failed is not waited for again.
    if let Some(why) = heard.ended() {
        return over(why);
    }
    let standing = again(case.bounds.original, || clean_room::standing(&case.scene)).await;
    let Ok(standing) = standing else { return Pending::Awaited };
    if let Some(stack) = standing {
        let copied = clean_room::copied(&stack);
        let own = stack.parameters.get("OrderKey") == Some(&ordered.exhibit.key);
        return match own || ordered.order.volumes.iter().all(|v| copied.contains(&v.snapshot)) {
            true => Pending::Awaited,
            false => over("it asks for other snapshots than the standing room has"),
        };
    }
    let prefix = bundle_prefix(&case.scene.case, scan);
    let objects = again(case.bounds.original, || case.store.list(&prefix, false)).await;
    // Unread it counts as empty: objects of another room then refuse this scan's, which ends it, and the next run orders anew.
    match objects.unwrap_or_default() {
        objects if objects.contains(&format!("{prefix}{SUMS}")) => {
            Pending::Published(Box::new(heard))
        }
        // Another room could not write its own over these.
        objects if !objects.is_empty() => over("its room ended while it published"),
        _ if are_evidence(case, ordered).await => Pending::Awaited,
        _ => over("it asks for other snapshots than are the evidence now"),
    }
}

/// Whether a room can be made for an order: a snapshot may have been copied to another key since.
async fn are_evidence(case: &Case, ordered: &Ordered) -> bool {
    match again(case.bounds.goal, || snapshot::for_a_room(&case.scene)).await {
        Ok((snapshots, _)) => ordered
            .order
            .volumes
            .iter()
            .all(|volume| snapshots.values().any(|s| s.id == volume.snapshot)),
        Err(_) => true,
    }
}

/// Goes on with an order that is not over.
pub(super) async fn carry_on(case: &Case, ordered: Ordered, how: Pending) -> Option<Reported> {
    order::log(case, &ordered).await;
    let token = &case.scene.policy.room.task_token;
    if token.is_some() && *token != ordered.order.task_token {
        let scan = &ordered.order.scan;
        case.note(format!("scan {scan} was ordered before this task: it does not tell it its end"));
    }
    match how {
        Pending::Published(heard) => read_back::read_back(case, &ordered, &heard).await,
        Pending::Awaited | Pending::Over(_) => examine(case, ordered).await,
    }
}

/// Goes on from what the log has. What no scan has examined is ordered: all of it where the newest order came to nothing, else
/// what no order has named yet, unless a room stands that lacks it and that people may be using.
async fn go_on(case: &Case, ledger: &Ledger, came_to_nothing: bool) -> Option<Reported> {
    let newest = ledger.newest_reports().remove(&case.scene.room);
    let Some((scan, examined)) = newest else {
        // Whether there can be a room at all comes before an order that nobody would carry out.
        launch::fittings_there(case).await?;
        let ordered = place(case, Which::Rest).await?;
        return examine(case, ordered).await;
    };
    let known = Reported::of(case, scan, &examined.summary);
    let coverage = match Coverage::read(case).await {
        Ok(coverage) => coverage,
        Err(why) => {
            unknown(case, &why);
            Scanned::of(scan, examined).tell(case, None);
            return Some(known);
        }
    };
    let due = coverage.rest().next().is_some()
        && (came_to_nothing || coverage.has_new() && no_room(case).await);
    if due && let Some(ordered) = place(case, Which::Rest).await {
        let volumes: Vec<_> = ordered.order.volumes.iter().map(|v| &v.source).collect();
        case.note(format!("no scan had examined {}: another was ordered", join(volumes)));
        return Box::pin(examine(case, ordered)).await.or(Some(known));
    }
    Scanned::of(scan, examined).tell(case, Some(&coverage));
    Some(known)
}

/// The GiB that a room is to examine now; none where nothing is left to be examined, or there is nothing to examine it with.
/// Makes nothing.
pub(super) async fn outstanding(case: &Case) -> Option<u64> {
    launch::fittings_there(case).await?;
    match Coverage::read(case).await {
        Ok(coverage) => {
            let gib: u64 = coverage.rest_gib();
            (gib > 0).then_some(gib)
        }
        Err(why) => {
            unknown(case, &why);
            None
        }
    }
}

/// Makes short what rooms were to report and did not, where nobody has said so yet: a step that would have may never have come to
/// its end.
pub(super) async fn unread(case: &Case) {
    let said = lock(&case.shortfalls).iter().any(|short| short.step == Step::CleanRoom);
    let ledger = case.journal.ledger().await;
    let reported = ledger.newest_reports();
    let missing: Vec<_> = (1..=ledger.rooms()).filter(|n| !reported.contains_key(n)).collect();
    let expected = case.does(Step::CleanRoom) && ledger.preserved_at.is_some();
    if said || missing.is_empty() || !expected || launch::fittings_there(case).await.is_none() {
        return;
    }
    short(case, format!("no report of room {} was read back", join(&missing)), AGAIN);
}

/// That nobody knows whether all was examined is short: a case is never whole by default.
fn unknown(case: &Case, why: &str) {
    short(case, format!("which volumes no scan has examined could not be read: {why}"), AGAIN);
}

async fn no_room(case: &Case) -> bool {
    let standing = again(case.bounds.original, || clean_room::standing(&case.scene)).await;
    matches!(standing, Ok(None))
}

/// Writes a new order.
pub(super) async fn place(case: &Case, which: Which) -> Option<Ordered> {
    let volumes = evidence::volumes(case, which).await?;
    match order::write(case, volumes).await {
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
    let ordered = launch::launch(case, ordered).await?;
    let scan = &ordered.order.scan;
    let gib = ordered.order.volumes.iter().map(|v| u64::from(v.gib)).sum();
    let mut heard = Heard::default();
    match watch::until_told(case, scan, gib, &mut heard).await {
        Told::Published => read_back::read_back(case, &ordered, &heard).await,
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
        Told::Unread(why) => {
            let what = format!("what the room of scan {scan} tells can not be read: {why}");
            not_reported(case, scan, what, AGAIN).await
        }
        Told::UnderWay => {
            case.leave_under_way(format!("scan {scan}"));
            None
        }
    }
}

/// What became of the room that says nothing, as the end of a sentence.
async fn still_there(case: &Case) -> String {
    let scene = &case.scene;
    match scene.inventory.find_stack(&stack_name(&scene.case, scene.room)).await {
        Ok(None) => "; its stack is gone".to_owned(),
        Ok(Some(stack)) => match clean_room::over(scene, &stack).await {
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
