//! What a response came to: what people are told of it, what the log has as short, and the report.

use cleanroom_contract::{CaseId, InstanceId};
use serde::Serialize;

use super::{Reported, open::Opening};
use crate::{
    case::{Case, Shortfall, Step, lock},
    journal::event::Body,
    original::Known,
};

/// The end of one response.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Report {
    /// The instance.
    pub instance: InstanceId,
    /// The case.
    pub case: CaseId,
    /// Whether the case was there already.
    pub joined: bool,
    /// Whether nobody could claim it.
    pub weak: bool,
    /// Whether every interface was read back as isolated.
    pub contained: bool,
    /// Seconds from the run's start until then.
    pub contained_seconds: Option<f64>,
    /// Whether every volume has a whole snapshot.
    pub preserved: bool,
    /// Seconds from the run's start until then.
    pub preserved_seconds: Option<f64>,
    /// The report on its disks, where there is one.
    pub reported: Option<Reported>,
    /// Those of the case's other rooms, where one does not take all of its volumes.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub others: Vec<Reported>,
    /// Interfaces whose tracked flows were dropped.
    pub flushed: Vec<String>,
    /// The snapshots that are the evidence.
    pub snapshots: Vec<String>,
    /// What is not done, why, and what to do.
    pub shortfalls: Vec<Shortfall>,
    /// What a person should know.
    pub notes: Vec<String>,
    /// Events and objects that wait for the store.
    pub waiting: usize,
    /// The steps that were asked for.
    pub steps: Vec<Step>,
}

/// How far a response came: the seconds until it was contained, and preserved, and the reports.
pub(super) struct Came {
    pub(super) contained: Option<f64>,
    pub(super) preserved: Option<f64>,
    pub(super) reported: Vec<Reported>,
}

impl Report {
    pub(super) async fn of(case: &Case, how: &Opening, came: Came, waiting: usize) -> Self {
        let Came { contained, preserved, reported } = came;
        let mut reported = reported.into_iter();
        let ledger = case.journal.ledger().await;
        let mut shortfalls = lock(&case.shortfalls).clone();
        shortfalls.sort_by_key(|s| s.step);
        Self {
            instance: case.scene.instance.clone(),
            case: case.scene.case.clone(),
            joined: how.joined,
            weak: how.weak,
            contained: contained.is_some(),
            contained_seconds: contained,
            preserved: preserved.is_some(),
            preserved_seconds: preserved,
            reported: reported.next(),
            others: reported.collect(),
            flushed: ledger.flushed.into_iter().collect(),
            snapshots: ledger.snapshots,
            shortfalls,
            notes: lock(&case.notes).clone(),
            waiting,
            steps: case.scene.policy.steps.iter().copied().collect(),
        }
    }

    /// Whether all that was asked for is done, and the custody log whole.
    #[must_use]
    pub fn is_whole(&self) -> bool {
        let asked = |step| self.steps.contains(&step);
        self.shortfalls.is_empty()
            && self.waiting == 0
            && (self.contained || !asked(Step::Isolate))
            && (self.preserved || !asked(Step::Snapshot))
    }
}

/// What people are told beside a milestone.
pub(super) fn lines(case: &Case) -> Vec<String> {
    let mut lines: Vec<_> =
        lock(&case.shortfalls).iter().map(|s| format!("NOT DONE: {}", s.what)).collect();
    lines.extend(lock(&case.notes).iter().cloned());
    lines
}

/// What is to be said of every case in the end, whatever became of it.
pub(super) async fn remarks(case: &Case) {
    for (part, why) in case.scene.original.unknown() {
        case.note(format!(
            "the {part} could not be read before the response, so release can not restore it: {why}"
        ));
    }
    if let Known::Is(true) = instance_store(case).await {
        case.note("its instance store volumes die with it and can not be snapshotted".to_owned());
    }
    case.note("memory was not taken".to_owned());
    if let Some(why) = case.journal.down() {
        case.short(Shortfall {
            step: Step::Record,
            what: format!("the custody log could not be written when things happened: {why}"),
            advice: "events are kept on this machine; run respond again once the bucket answers"
                .to_owned(),
        });
    }
}

/// Notes what is short in the end, where that has changed.
pub(super) async fn end(case: &Case) {
    remarks(case).await;
    // With a room still to come, its shortfalls of the last run hold until it has ended again.
    if !case.does(Step::CleanRoom) {
        note_short(case).await;
        return;
    }
    let ledger = case.journal.ledger().await;
    let of_the_room: Vec<_> =
        ledger.shortfalls.iter().filter(|s| s.step == Step::CleanRoom).cloned().collect();
    let mut shortfalls = lock(&case.shortfalls).clone();
    shortfalls.extend(of_the_room);
    if ledger.shortfalls != shortfalls {
        case.journal.append(None, Body::Short { shortfalls, part: None }).await;
    }
}

/// Logs what is short, where that has changed.
pub(super) async fn note_short(case: &Case) {
    let shortfalls = lock(&case.shortfalls).clone();
    if case.journal.ledger().await.shortfalls != shortfalls {
        case.journal.append(None, Body::Short { shortfalls, part: None }).await;
    }
}

async fn instance_store(case: &Case) -> Known<bool> {
    let kind = &case.scene.original.instance.instance_type;
    match case.scene.inventory.has_instance_store(kind).await {
        Ok(has) => Known::Is(has),
        Err(error) => Known::Unknown(error.to_string()),
    }
}
