//! Examines a case's snapshots once more, with other rules: on a person's word, in any state of the case.
//!
//! A standing room takes the new order up; where none stands, one is made. What was examined before stays as it is.

use cleanroom_contract::{CaseId, ScanId};
use serde::Serialize;

use super::{
    FlowError, Reported, find,
    investigate::{self, Pending, Which},
};
use crate::{
    case::{Case, Run, Shortfall, Step, lock},
    journal::event::Body,
    steps::{
        clean_room::{
            artifacts,
            order::{self, Ordered},
        },
        forensic,
    },
};

/// What a rescan came to.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Rescanned {
    /// The case.
    pub case: CaseId,
    /// The scan that was ordered; none where it could not be.
    pub scan: Option<ScanId>,
    /// What came of it; none where that is not known yet, or nothing did.
    pub reported: Option<Reported>,
    /// The same of the case's other rooms, where one does not take all of its volumes.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub others: Vec<Other>,
    /// What is not done.
    pub shortfalls: Vec<Shortfall>,
    /// What a person should know.
    pub notes: Vec<String>,
}

/// What a rescan came to in another room than the first.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Other {
    /// Which room.
    pub room: u32,
    /// The scan that was ordered; none where it could not be.
    pub scan: Option<ScanId>,
    /// What came of it; none where that is not known yet, or nothing did.
    pub reported: Option<Reported>,
}

impl Rescanned {
    /// Whether all that was ordered was examined.
    #[must_use]
    pub fn is_whole(&self) -> bool {
        self.reported.is_some()
            && self.others.iter().all(|other| other.reported.is_some())
            && self.shortfalls.is_empty()
    }
}

/// Orders a scan with the run's rules and indicators, and waits for its bundle. Run again, it goes on with the same order as
/// long as that asks for the same files and has not ended.
///
/// # Errors
/// When there is no such case, or its log can not be read.
pub async fn rescan(run: &Run, id: &CaseId) -> Result<Rescanned, FlowError> {
    let (case, _, _) = find::open(run, id).await?;
    let work = |room: Case| async move { (room.scene.room, order_and_examine(&room).await) };
    let mut rooms = match forensic::ready(&case, true).await {
        Some(room) => investigate::in_each(&room, work).await,
        None => Vec::new(),
    }
    .into_iter();
    let (scan, reported) = rooms.next().map(|(_, first)| first).unwrap_or_default();
    let others = rooms.map(|(room, (scan, reported))| Other { room, scan, reported }).collect();
    note_short(&case).await;
    case.journal.catch_up().await;
    let shortfalls = lock(&case.shortfalls).clone();
    let notes = lock(&case.notes).clone();
    Ok(Rescanned { case: id.clone(), scan, reported, others, shortfalls, notes })
}

/// Logs what is short of the clean room now, where that has changed. What the response lacks besides is not for this to say.
async fn note_short(case: &Case) {
    let before = case.journal.ledger().await.shortfalls;
    let of_others = before.iter().filter(|short| short.step != Step::CleanRoom).cloned();
    let shortfalls: Vec<_> = of_others.chain(lock(&case.shortfalls).clone()).collect();
    if shortfalls != before {
        case.journal.append(None, Body::Short { shortfalls, part: None }).await;
    }
}

async fn order_and_examine(case: &Case) -> (Option<ScanId>, Option<Reported>) {
    match under_way(case).await {
        Some((ordered, how)) => {
            let scan = ordered.order.scan.clone();
            case.note(format!("scan {scan} is under way with the same files: it is joined"));
            (Some(scan), investigate::carry_on(case, ordered, how).await)
        }
        None => match investigate::place(case, Which::All).await {
            Some(ordered) => {
                let scan = ordered.order.scan.clone();
                (Some(scan), investigate::examine(case, ordered).await)
            }
            None => (None, None),
        },
    }
}

/// The room's newest order, where it asks for the same files and something may still come of it.
async fn under_way(case: &Case) -> Option<(Ordered, Pending)> {
    let ordered =
        order::newest(&*case.store, &case.scene.case, case.scene.room).await.ok().flatten()?;
    let (room, order) = (&case.scene.policy.room, &ordered.order);
    // What can not be read now is said by whoever writes the order.
    let sought = artifacts::sought(&*case.store, room).await.ok()?;
    let same = order.rules == sought.rules && order.indicators == sought.indicators;
    if !same || case.journal.ledger().await.reports.contains_key(&order.scan) {
        return None;
    }
    match investigate::pending(case, &ordered).await {
        Pending::Over(why) => {
            case.note(format!("scan {} is over ({why}): another is ordered", order.scan));
            None
        }
        how => Some((ordered, how)),
    }
}
