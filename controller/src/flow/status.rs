//! How things stand: read from the log, and again from the world.
//!
//! Changes one thing only: an interface that an ended run left open is closed, since that waits for nobody.

use cleanroom_contract::{CaseId, InstanceId, ScanId, Timestamp, is_first_room};
use serde::Serialize;

use super::{
    FlowError, find, investigate,
    standing::{self, Standing},
};
use crate::{
    case::{Case, Goal, History, Run, Shortfall},
    journal::{Answered, Asked, Ledger},
    steps::{
        clean_room::watch, detach, forensic, isolate, protect, revoke, revoke::not_cut::Survivor,
    },
};

/// How a case stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum State {
    /// Not isolated yet.
    Open,
    /// Isolated, all of what was to be done is done, and the world is as it was left.
    Contained,
    /// Isolated, and something is not done.
    Partial,
    /// Something that the response did is undone.
    Drifted,
    /// A person had it released.
    Released,
    /// It ended.
    Closed,
}

/// One case.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Status {
    /// The case.
    pub case: CaseId,
    /// Its instance.
    pub instance: InstanceId,
    /// How it stands.
    pub state: State,
    /// Interfaces that were found open, and are closed now: the first thing to tell.
    pub found_open: Vec<String>,
    /// Interfaces that are open and could not be closed: before everything else.
    pub still_open: Vec<String>,
    /// What is not as it was left, and would be done again.
    pub drift: Vec<String>,
    /// What is not done.
    pub shortfalls: Vec<Shortfall>,
    /// What could not be looked at.
    pub unknown: Vec<String>,
    /// What the instance's role session made that lives on.
    pub survivors: Vec<Survivor>,
    /// That it waits for a person's word, and until when, as long as it is not contained.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub asked: Option<Asked>,
    /// What a person has answered.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub answered: Option<Answered>,
    /// When it was opened.
    pub opened_at: Option<Timestamp>,
    /// When it was contained.
    pub contained_at: Option<Timestamp>,
    /// When it was preserved.
    pub preserved_at: Option<Timestamp>,
    /// The snapshots that are the evidence.
    pub snapshots: Vec<String>,
    /// What another account may see or has of them.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub elsewhere: Vec<String>,
    /// The newest scan of them in each of the case's rooms.
    pub scans: Vec<Scan>,
    /// The clean rooms, as long as there is any of them.
    pub rooms: Vec<Standing>,
}

/// How a scan stands.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Scan {
    /// The room of the case that is to carry it out.
    #[serde(skip_serializing_if = "is_first_room")]
    pub room: u32,
    /// Its id.
    pub scan: ScanId,
    /// Whether its bundle was read back and is in the log.
    pub reported: bool,
    /// Why its bundle is not relied on; none where nobody has said so.
    pub refused: Option<String>,
    /// What its room told last, and when by the room's clock; none where it has told nothing.
    pub told: Option<(Timestamp, String)>,
    /// Whether there is no report, and its room has told nothing since for longer than rooms do.
    pub silent: bool,
    /// Why its room could not tell people of the report.
    pub untold: Option<String>,
}

/// How a scan stands: by the log where it was reported, else by what its room told last.
async fn scan(case: &Case, ledger: &Ledger, (room, scan): (u32, &ScanId)) -> Result<Scan, String> {
    let scan = scan.clone();
    if let Some(examined) = ledger.reports.get(&scan) {
        let told = Some((examined.at, investigate::counted(&examined.summary)));
        let untold = watch::untold(&*case.store, (&case.scene.case, &scan)).await;
        let untold = untold.map_err(|error| error.to_string())?;
        return Ok(Scan { room, scan, reported: true, refused: None, told, silent: false, untold });
    }
    let refused = ledger.refused.get(&scan).cloned();
    let newest = watch::newest(&*case.store, (&case.scene.case, &scan)).await;
    let newest = newest.map_err(|error| error.to_string())?;
    let told = newest.map(|event| (event.at, watch::words(&event.news)));
    let quiet = told.as_ref().map(|(at, _)| case.journal.now().seconds.saturating_sub(at.seconds));
    let silent = quiet.is_some_and(|s| s >= case.bounds.silence.as_secs().cast_signed());
    let silent = refused.is_none() && silent;
    Ok(Scan { room, scan, reported: false, refused, told, silent, untold: None })
}

/// What keeps an instance contained: looked at again.
pub(super) fn containment() -> [&'static dyn Goal; 7] {
    [
        &isolate::Cut,
        &isolate::Addresses,
        &detach::Scaling,
        &protect::Guards,
        &revoke::Profile,
        &revoke::Deny,
        &revoke::Endpoint,
    ]
}

/// What is not as the response left it, and what could not be looked at.
///
/// Only of steps that the response was asked for: what was never done is not undone.
pub(super) async fn drift(case: &Case, ledger: &Ledger) -> (Vec<String>, Vec<String>) {
    let asked = containment().into_iter().filter(|goal| ledger.steps.contains(&goal.step()));
    let looks =
        asked.map(|goal| async move { (goal, goal.look(&case.scene, &History::default()).await) });
    let mut drift = Vec::new();
    let mut unknown = Vec::new();
    for (goal, seen) in futures_util::future::join_all(looks).await {
        match seen {
            Ok(seen) => drift.extend(
                seen.now.into_iter().map(|c| format!("{} {}: {c}", goal.step(), c.resource())),
            ),
            Err(error) => unknown.push(format!("{}:{}: {error}", goal.step(), goal.name())),
        }
    }
    (drift, unknown)
}

/// Looks at one case.
///
/// # Errors
/// When there is no such case, or its log can not be read.
pub async fn status(run: &Run, case: &CaseId) -> Result<Status, FlowError> {
    of(run, &find::case(&*run.cloud.store, &run.caller, case).await?).await
}

/// Looks at a case whose claim has been read already.
///
/// # Errors
/// When its log can not be read.
pub async fn of(run: &Run, known: &find::Known) -> Result<Status, FlowError> {
    let (case, ledger) = find::open_known(run, known).await?;
    let mut status = Status {
        case: case.scene.case.clone(),
        instance: case.scene.instance.clone(),
        state: State::Open,
        found_open: Vec::new(),
        still_open: Vec::new(),
        drift: Vec::new(),
        shortfalls: ledger.shortfalls.clone(),
        unknown: Vec::new(),
        survivors: ledger.survivors.iter().cloned().collect(),
        asked: ledger.asked.clone().filter(|_| ledger.contained_at.is_none()),
        answered: ledger.answered.clone(),
        opened_at: ledger.opened_at,
        contained_at: ledger.contained_at,
        preserved_at: ledger.preserved_at,
        snapshots: ledger.snapshots.clone(),
        elsewhere: forensic::stays(&ledger),
        scans: Vec::new(),
        rooms: Vec::new(),
    };
    for (room, newest) in ledger.newest_orders() {
        match scan(&case, &ledger, (room, newest)).await {
            Ok(scan) => status.scans.push(scan),
            Err(why) => status.unknown.push(format!("how scan {newest} stands: {why}")),
        }
    }
    // Who ordered nothing has no room. One outlives its case: it is told of whatever became of that.
    if !ledger.orders.is_empty() {
        match standing::look(&case, ledger.rooms()).await {
            Ok(rooms) => status.rooms = rooms,
            Err(error) => status.unknown.push(format!("whether a clean room stands: {error}")),
        }
    }
    if ledger.closed_at.is_some() || known.released {
        status.state = if ledger.closed_at.is_some() { State::Closed } else { State::Released };
        return Ok(status);
    }
    match isolate::flush::close_open(&case).await {
        Ok(found) => {
            status.found_open = found.closed.iter().map(ToString::to_string).collect();
            status.still_open = found.open.iter().map(ToString::to_string).collect();
        }
        Err(error) => status.unknown.push(format!("whether an interface is open: {error}")),
    }
    if ledger.contained_at.is_some() {
        let (drift, unknown) = drift(&case, &ledger).await;
        status.drift = drift;
        status.unknown.extend(unknown);
    }
    status.state = judge(&ledger, &status);
    Ok(status)
}

fn judge(ledger: &Ledger, status: &Status) -> State {
    if ledger.contained_at.is_none() {
        State::Open
    } else if !status.drift.is_empty() {
        State::Drifted
    } else if !ledger.shortfalls.is_empty() || !status.unknown.is_empty() {
        State::Partial
    } else {
        State::Contained
    }
}
