//! Cases that are open, and what is done last in each: by their logs alone.
//!
//! Touches the evidence bucket, to read. Never looks at an instance: that is `status`.

use cleanroom_cloud::{Caller, Store};
use cleanroom_contract::{CaseId, InstanceId, Timestamp};
use futures_util::{StreamExt as _, stream};
use serde::Serialize;

use super::{
    FlowError,
    find::{self, Known},
};
use crate::{
    case::Step,
    journal::{
        self, Asked, JournalError, Ledger,
        event::{Body, CustodyEvent},
    },
    steps::clean_room::in_room,
};

/// How many logs are read at a time.
const AT_ONCE: usize = 8;

/// An open case.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct AtWork {
    /// The case.
    pub case: CaseId,
    /// Its instance.
    pub instance: InstanceId,
    /// When it was opened.
    pub opened_at: Timestamp,
    /// How long ago that was.
    pub age_seconds: i64,
    /// The newest thing that was begun or reached; none where the log says nothing yet.
    pub last: Option<Last>,
    /// That a person is asked; none where nobody is, where it was answered, and once the deadline is over.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub asked: Option<Asked>,
}

/// Something that was begun or reached.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Last {
    /// What.
    pub what: String,
    /// The step that it belongs to, where it is one's.
    pub step: Option<Step>,
    /// When.
    pub at: Timestamp,
}

/// The cases that are neither released nor closed, the oldest first, and in the second part what could not be read.
///
/// # Errors
/// When the store does not list the claims.
pub async fn at_work(
    store: &dyn Store,
    caller: &Caller,
    now: Timestamp,
) -> Result<(Vec<AtWork>, Vec<String>), FlowError> {
    let (known, mut odd) = find::cases(store, caller).await?;
    let open = known.into_iter().filter(|known| !known.released);
    let reads: Vec<_> = open
        .map(|known| async move {
            let log = journal::read(store, &known.claim.case).await;
            (known, log)
        })
        .collect();
    let mut all = Vec::new();
    let mut logs = stream::iter(reads).buffered(AT_ONCE);
    while let Some((known, log)) = logs.next().await {
        let events = log.unwrap_or_else(|error| {
            odd.push(unread(&known, &error));
            Vec::new()
        });
        let events: Vec<_> = events.into_iter().map(|(event, _)| event).collect();
        all.extend(standing(&known, &events, now));
    }
    all.sort_by(|a, b| (a.opened_at, &a.case).cmp(&(b.opened_at, &b.case)));
    Ok((all, odd))
}

fn unread(known: &Known, error: &JournalError) -> String {
    let why = journal::error_chain(error);
    format!("how far {} is can not be told: {why}", known.claim.case)
}

/// How far a case is by its events; none where it has ended.
fn standing(known: &Known, events: &[CustodyEvent], now: Timestamp) -> Option<AtWork> {
    let ledger = Ledger::of(events);
    if ledger.closed_at.is_some() || ledger.released_at.is_some() {
        return None;
    }
    let opened_at = ledger.opened_at.unwrap_or(known.claim.at);
    Some(AtWork {
        case: known.claim.case.clone(),
        instance: known.claim.instance.clone(),
        opened_at,
        age_seconds: now.seconds.saturating_sub(opened_at.seconds).max(0),
        last: newest(events),
        asked: waits(ledger, now),
    })
}

/// What is asked of people, as long as their answer decides anything.
fn waits(ledger: Ledger, now: Timestamp) -> Option<Asked> {
    let decided = ledger.answered.is_some() || ledger.contained_at.is_some();
    ledger.asked.filter(|asked| !decided && now < asked.deadline)
}

/// The newest thing that was begun or reached. Of two at the same moment, the one that was logged later.
fn newest(events: &[CustodyEvent]) -> Option<Last> {
    let told = events
        .iter()
        .flat_map(CustodyEvent::entries)
        .filter_map(|(at, step, body)| Some(Last { what: words(body)?, step, at }));
    told.max_by_key(|last| last.at)
}

/// What an entry says was begun or reached; none where it is about neither.
fn words(body: &Body) -> Option<String> {
    Some(match body {
        Body::Opened { .. } => "opened".to_owned(),
        Body::Intent { goal, .. } => format!("begun {goal}"),
        Body::Reached { goal } => format!("reached {goal}"),
        Body::Flushed { .. } => "tracked flows dropped".to_owned(),
        Body::Recorded { .. } => "recorded".to_owned(),
        Body::Contained { .. } => "contained".to_owned(),
        Body::Preserved { .. } => "preserved".to_owned(),
        Body::Entrusted { account, .. } => format!("handed to account {account}"),
        Body::Received { account, .. } => format!("received in account {account}"),
        Body::Ordered { scan, room, .. } => format!("scan {scan} ordered{}", in_room(*room)),
        Body::Reported { scan, room, .. } => format!("scan {scan} reported{}", in_room(*room)),
        Body::Refused { scan, .. } => format!("scan {scan} not relied on"),
        Body::TornDown { .. } => "clean room taken down".to_owned(),
        Body::Asked { .. } => "a person is asked".to_owned(),
        Body::Answered { decision, by, .. } => {
            format!("answered: to be {}, says {by}", decision.words())
        }
        _ => return None,
    })
}
