//! What a case has to examine, what of it scans have examined, and what a new order asks for.
//!
//! A volume counts as examined where a scan that came to its end saw it. Everything is worked out anew from the snapshots, the
//! orders and the log in every run: volumes come, and snapshots become whole, after an order was written. Reads only.

use std::collections::{BTreeMap, BTreeSet};

use cleanroom_cloud::{Snapshot, SnapshotState, Stack};
use cleanroom_contract::{OrderedVolume, ScanId, VolumeId};

use super::{AGAIN, join, short};
use crate::{
    case::{Case, Step},
    engine::again,
    journal::Examined,
    steps::{
        clean_room::{
            self, MOST_VOLUMES,
            order::{self, Ordered},
        },
        snapshot,
    },
};

/// What an order asks for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Which {
    /// All evidence, whether a scan has examined it or not.
    All,
    /// What no scan has examined.
    Rest,
}

/// What there is to examine in the room that is worked at, and what of it was.
pub(super) struct Coverage {
    /// A good snapshot of each volume.
    snapshots: BTreeMap<VolumeId, Snapshot>,
    /// Volumes that have none.
    lacking: Vec<VolumeId>,
    /// The case's orders, for any of its rooms.
    orders: Vec<Ordered>,
    examined: BTreeSet<VolumeId>,
}

/// The volumes that have good snapshots, by the room of the case that examines them.
///
/// # Errors
/// What could not be read.
pub(crate) async fn groups(case: &Case) -> Result<BTreeMap<u32, Vec<VolumeId>>, String> {
    let snapshots = again(case.bounds.goal, || snapshot::for_a_room(&case.scene)).await;
    let (snapshots, lacking) = snapshots.map_err(|why| format!("the snapshots: {why}"))?;
    let several = snapshots.len() + lacking.len() > MOST_VOLUMES;
    let orders =
        if several { order::all(&*case.store, &case.scene.case).await } else { Ok(vec![]) };
    let orders = orders.map_err(|why| format!("the work orders: {why}"))?;
    let rooms = order::rooms(&case.scene, snapshots.keys().chain(&lacking), &orders);
    let mut groups: BTreeMap<u32, Vec<VolumeId>> = BTreeMap::new();
    for (volume, room) in rooms.into_iter().filter(|(volume, _)| snapshots.contains_key(volume)) {
        groups.entry(room).or_default().push(volume);
    }
    Ok(groups)
}

impl Coverage {
    /// Works it out.
    ///
    /// # Errors
    /// What could not be read.
    pub(super) async fn read(case: &Case) -> Result<Self, String> {
        let snapshots = again(case.bounds.goal, || snapshot::for_a_room(&case.scene)).await;
        let (mut snapshots, mut lacking) =
            snapshots.map_err(|why| format!("the snapshots: {why}"))?;
        let orders = order::all(&*case.store, &case.scene.case).await;
        let orders = orders.map_err(|why| format!("the work orders: {why}"))?;
        let rooms = order::rooms(&case.scene, snapshots.keys().chain(&lacking), &orders);
        let is_here = |volume: &VolumeId| rooms.get(volume) == Some(&case.scene.room);
        snapshots.retain(|volume, _| is_here(volume));
        lacking.retain(is_here);
        let ledger = case.journal.ledger().await;
        let mut examined = BTreeSet::new();
        for order in orders.iter().map(|ordered| &ordered.order) {
            let report = ledger.reports.get(&order.scan).filter(|r| r.summary.complete);
            let Some(report) = report else { continue };
            let sources = order.volumes.iter().map(|volume| &volume.source);
            examined.extend(sources.filter(|s| !report.missing.contains(s)).cloned());
        }
        Ok(Self { snapshots, lacking, orders, examined })
    }

    fn is_due(&self, volume: &VolumeId) -> bool {
        !self.examined.contains(volume)
    }

    /// Volumes that no scan has examined and that have a good snapshot.
    pub(super) fn rest(&self) -> impl Iterator<Item = &VolumeId> {
        self.snapshots.keys().filter(|volume| self.is_due(volume))
    }

    /// Their GiB.
    pub(super) fn rest_gib(&self) -> u64 {
        let rest = self.snapshots.iter().filter(|(volume, _)| self.is_due(volume));
        rest.map(|(_, snapshot)| u64::from(snapshot.size)).sum()
    }

    /// Whether there is one among them that no order has named.
    pub(super) fn has_new(&self) -> bool {
        self.rest().any(|volume| !self.was_ordered(volume))
    }

    fn was_ordered(&self, volume: &VolumeId) -> bool {
        let mut volumes = self.orders.iter().flat_map(|ordered| &ordered.order.volumes);
        volumes.any(|ordered| ordered.source == *volume)
    }

    /// Volumes that no scan has examined, beside those that a scan was ordered to.
    pub(super) fn beside(&self, ordered: &BTreeSet<VolumeId>) -> Vec<VolumeId> {
        let all = self.snapshots.keys().chain(&self.lacking);
        all.filter(|v| self.is_due(v) && !ordered.contains(*v)).cloned().collect()
    }

    fn ordered(&self, scan: &ScanId) -> BTreeSet<VolumeId> {
        let order = self.orders.iter().find(|ordered| ordered.order.scan == *scan);
        let volumes = order.into_iter().flat_map(|ordered| &ordered.order.volumes);
        volumes.map(|volume| volume.source.clone()).collect()
    }

    /// The snapshots that an order asks for.
    fn chosen(&self, which: Which) -> BTreeMap<VolumeId, Snapshot> {
        let is_chosen = |volume: &VolumeId| which == Which::All || self.is_due(volume);
        let chosen = self.snapshots.iter().filter(|(volume, _)| is_chosen(volume));
        chosen.map(|(volume, snapshot)| (volume.clone(), snapshot.clone())).collect()
    }
}

/// The newest scan that was reported, as the log tells of it.
pub(super) struct Scanned<'a> {
    pub(super) scan: &'a ScanId,
    pub(super) missing: &'a [VolumeId],
    pub(super) complete: bool,
}

impl<'a> Scanned<'a> {
    pub(super) fn of(scan: &'a ScanId, examined: &'a Examined) -> Self {
        let complete = examined.summary.complete;
        Self { scan, missing: &examined.missing, complete }
    }

    /// Makes what was not examined short: in every run, until a scan has examined it.
    pub(super) fn tell(&self, case: &Case, coverage: Option<&Coverage>) {
        let (id, scan) = (&case.scene.case, self.scan);
        let again = format!(
            "look at the room's stack for what kept them away, and run rescan {id}: it examines all again (where the room has no copy, after teardown)"
        );
        let beside = coverage.map(|c| c.beside(&c.ordered(scan))).unwrap_or_default();
        let unseen: Vec<_> = self.missing.iter().filter(|v| !beside.contains(v)).collect();
        if !unseen.is_empty() {
            short(case, format!("scan {scan} never saw {}", join(unseen)), &again);
        }
        if !self.complete {
            let what = format!("scan {scan} stopped before its end: its report says where");
            short(case, what, &again);
        }
        let Some(coverage) = coverage else { return };
        let (lacking, others): (Vec<_>, Vec<_>) =
            beside.iter().partition(|volume| coverage.lacking.contains(volume));
        if !lacking.is_empty() {
            let what = format!("no scan has examined {}: no good snapshot", join(lacking));
            short(case, what, "run respond again: it takes another set of snapshots first");
        }
        let (kept_away, new): (Vec<_>, Vec<_>) =
            others.into_iter().partition(|volume| coverage.was_ordered(volume));
        if !kept_away.is_empty() {
            let what = format!("no scan has examined {}, although one was to", join(kept_away));
            short(case, what, &again);
        }
        if !new.is_empty() {
            let advice =
                format!("run teardown {id}, and respond again: it examines them in another room");
            let what = format!("no scan has examined {}: the room has no copy of them", join(new));
            short(case, what, &advice);
        }
    }
}

/// The volumes of a new order: those of the room that stands, whose copies are what it can examine, else of one to be made.
pub(super) async fn volumes(case: &Case, which: Which) -> Option<Vec<OrderedVolume>> {
    let coverage = match Coverage::read(case).await {
        Ok(coverage) => coverage,
        Err(why) => {
            short(case, format!("no clean room: what to examine could not be read: {why}"), AGAIN);
            return None;
        }
    };
    match again(case.bounds.original, || clean_room::standing(&case.scene)).await {
        Ok(Some(stack)) => in_the_room(case, &stack, (&coverage, which)).await,
        Ok(None) => to_be_made(case, &coverage, which),
        Err(why) => {
            short(case, format!("whether a clean room stands could not be read: {why}"), AGAIN);
            None
        }
    }
}

/// What a standing room has of the evidence. The rest waits for another room: this one may be in use.
async fn in_the_room(
    case: &Case,
    stack: &Stack,
    (coverage, which): (&Coverage, Which),
) -> Option<Vec<OrderedVolume>> {
    let advice = format!(
        "run teardown {} first: then another room is made, from the snapshots that are the evidence now",
        case.scene.case
    );
    let first = stack.parameters.get("OrderKey");
    let first = first.and_then(|key| coverage.orders.iter().find(|o| o.exhibit.key == *key));
    let copied = clean_room::copied(stack);
    let has = first.into_iter().flat_map(|ordered| &ordered.order.volumes);
    let has: Vec<_> = has.filter(|volume| copied.contains(&volume.snapshot)).cloned().collect();
    let chosen = coverage.chosen(which);
    let absent = chosen.keys().filter(|volume| !has.iter().any(|v| v.source == **volume));
    let absent: Vec<_> = absent.collect();
    let is_asked = |v: &OrderedVolume| which == Which::All || coverage.is_due(&v.source);
    let asked: Vec<_> = has.into_iter().filter(is_asked).collect();
    // What a scan of the rest leaves out is told with its report.
    if asked.is_empty() || which == Which::All && !absent.is_empty() {
        let what = format!("the standing room {} has no copy of {}", stack.name, join(absent));
        short(case, what, &advice);
    }
    let is_other = |v: &&OrderedVolume| {
        coverage.snapshots.get(&v.source).is_some_and(|snapshot| snapshot.id != v.snapshot)
    };
    let other: Vec<_> = asked.iter().filter(is_other).map(|v| &v.snapshot).collect();
    if !other.is_empty() {
        case.note(format!(
            "the standing room's copies are examined, made from {}, which are not the evidence now; {advice}",
            join(other)
        ));
    }
    (!asked.is_empty()).then_some(asked)
}

/// What a room is made for.
fn to_be_made(case: &Case, coverage: &Coverage, which: Which) -> Option<Vec<OrderedVolume>> {
    let (snapshots, lacking) = (coverage.chosen(which), &coverage.lacking);
    if snapshots.is_empty() && lacking.is_empty() {
        case.note("no clean room: there is no volume to examine".to_owned());
        return None;
    }
    if snapshots.is_empty() && !case.does(Step::Snapshot) && !case.scene.policy.room.asked {
        case.note("no clean room: there are no snapshots, and none were asked for".to_owned());
        return None;
    }
    if snapshots.is_empty() {
        let what = format!("no clean room: {} have no good snapshot", join(lacking));
        short(case, what, "run respond again: it takes another set of snapshots first");
        return None;
    }
    let pending = snapshots.values().filter(|s| s.state != SnapshotState::Completed);
    let pending: Vec<_> = pending.map(|s| &s.id).collect();
    if !pending.is_empty() {
        let what = format!("no clean room yet: {} are not whole", join(pending));
        short(case, what, "run respond again once they are: it goes on from there");
        return None;
    }
    Some(order::volumes(&case.scene, &snapshots))
}
