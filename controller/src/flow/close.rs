//! Ends a case with its post-incident record.
//!
//! Appends what waits for the store, verifies the custody log, writes the record, logs the end, and lifts the legal holds. Touches
//! the evidence bucket and the spool; never the instance: what is not released stays as the response left it, and the
//! record says so.

mod markdown;
mod record;

use std::time::Duration;

use cleanroom_cloud::{CloudError, Put, Store};
use cleanroom_contract::{CaseId, printable};
use futures_util::{StreamExt as _, stream};

use super::{FlowError, find, standing};
use crate::{
    case::{Case, Run},
    claim,
    journal::{
        self, Ledger, Spool, digest,
        event::{Body, CustodyEvent, Exhibit},
        verify,
    },
    steps,
};

/// How many faults or failures a message names.
const NAMED: usize = 10;

/// Writes the post-incident record and closes the case. Returns the record, Markdown, and after it what became of the legal
/// holds.
///
/// # Errors
/// When there is no such case, it was closed already, its clean room stands, its log can not be read, events wait that the
/// store does not take, its log has faults and no reason was given, or the record can not be stored.
pub async fn close(run: &Run, case: &CaseId, reason: Option<&str>) -> Result<String, FlowError> {
    let reason = reason.map(str::trim).filter(|reason| !reason.is_empty());
    let (case, ledger, known) = find::open(run, case).await?;
    let (id, store) = (&case.scene.case, &*case.store);
    if let Some(record) = closing(&events(store, id).await?) {
        let text = format!("case {id} was closed already: its record is {}", record.key);
        return Err(FlowError::Case(text));
    }
    let unknown = no_room(&case, ledger.rooms()).await?;
    caught_up(&case).await?;
    let events = events(store, id).await?;
    if let Some(record) = closing(&events) {
        // An earlier run wrote the record, and its last event has waited until now.
        let text = get(store, &record.key).await?.unwrap_or_default();
        let text = String::from_utf8_lossy(&text).into_owned();
        return Ok(text + &unknown + &lift_holds(store, id).await);
    }
    let verdict = verify::verify(store, id).await?;
    if !verdict.faults.is_empty() && reason.is_none() {
        return Err(FlowError::Case(format!(
            "the custody log of {id} is not what was written ({}): give a reason to close the case all the same, and the faults go into the record",
            first(&verdict.faults)
        )));
    }
    let text = record::render(&record::Closing {
        known: &known,
        caller: &run.caller,
        original: &case.scene.original,
        ledger: &Ledger::of(&events),
        events: &events,
        verdict: &verdict,
        reason,
        now: run.clock.now(),
        apart: &apart(run, &case),
    });
    let record = keep(&case, &text).await?;
    case.journal.append(None, Body::Closed { record: record.clone() }).await;
    if case.journal.catch_up().await > 0 {
        return Err(FlowError::Case(format!(
            "the record of {id} is {}, and the custody log did not take the end of the case, which waits on this machine: run close again once the bucket answers",
            record.key
        )));
    }
    Ok(text + &unknown + &lift_holds(store, id).await)
}

/// Refuses a case of which a room stands: it would cost on, with copies of evidence that no case holds any more, and nobody would
/// look. Where that can not be read, that is no reason to keep a case open: what to look for is returned.
async fn no_room(case: &Case, rooms: u32) -> Result<String, FlowError> {
    let id = &case.scene.case;
    match again(|| standing::look(case, rooms)).await {
        Ok(rooms) => match rooms.iter().find(|room| room.stands) {
            Some(room) => Err(FlowError::Case(format!(
                "the clean room of {id} stands ({room}): take it down first, with cleanroom teardown {id}"
            ))),
            None => Ok(String::new()),
        },
        Err(error) => Ok(format!(
            "\nWhether a clean room stands could not be read ({}): see what cleanroom teardown {id} would delete.\n",
            markdown::text(&error.to_string())
        )),
    }
}

/// The case's events, as the store has them.
async fn events(store: &dyn Store, case: &CaseId) -> Result<Vec<CustodyEvent>, FlowError> {
    Ok(journal::read(store, case).await?.into_iter().map(|(event, _)| event).collect())
}

/// The record that the case ended with, where it has ended.
fn closing(events: &[CustodyEvent]) -> Option<Exhibit> {
    events.iter().find_map(|event| match &event.body {
        Body::Closed { record } => Some(record.clone()),
        _ => None,
    })
}

/// Appends what an earlier run could not.
async fn caught_up(case: &Case) -> Result<(), FlowError> {
    let waiting = steps::record::catch_up(case).await + case.journal.catch_up().await;
    if waiting == 0 {
        return Ok(());
    }
    Err(FlowError::Case(format!(
        "{waiting} events or objects of case {} wait on this machine for the bucket: run close again once it takes them",
        case.scene.case
    )))
}

/// Cases of the same instance that were begun while the store was down, and of which something still waits on this machine.
fn apart(run: &Run, case: &Case) -> Vec<CaseId> {
    let weak =
        |other: &CaseId| *other != case.scene.case && claim::is_weak(other, &case.scene.instance);
    Spool::at(run.spool.clone()).cases().into_iter().filter(weak).collect()
}

/// Stores the record. Where an ended run has stored another without logging it, the digest becomes part of the name.
async fn keep(case: &Case, text: &str) -> Result<Exhibit, FlowError> {
    let bytes = text.as_bytes();
    let sha256 = digest(bytes);
    let short: String = sha256.to_string().chars().take(12).collect();
    let prefix = format!("cases/{}/", case.scene.case);
    for name in ["post-incident.md".to_owned(), format!("post-incident-{short}.md")] {
        let key = format!("{prefix}{name}");
        let failed = |source| FlowError::Cloud { what: key.clone(), source };
        let put = again(|| case.store.create(&key, bytes.to_vec())).await.map_err(failed)?;
        if put == Put::Created || get(&*case.store, &key).await?.as_deref() == Some(bytes) {
            let (size, operation) = (bytes.len() as u64, "cleanroom close".to_owned());
            return Ok(Exhibit { key, sha256, size, operation, request: None });
        }
    }
    Err(FlowError::Case(format!(
        "{prefix}post-incident-{short}.md is there already, and is not the record"
    )))
}

async fn get(store: &dyn Store, key: &str) -> Result<Option<Vec<u8>>, FlowError> {
    let failed = |source| FlowError::Cloud { what: key.to_owned(), source };
    again(|| store.get(key)).await.map_err(failed)
}

/// A call that can be repeated harmlessly, a few times while that may help.
async fn again<T, F: Future<Output = cleanroom_cloud::Result<T>>>(
    call: impl Fn() -> F,
) -> cleanroom_cloud::Result<T> {
    let mut pause = Duration::from_millis(200);
    for _ in 0..4 {
        match call().await {
            Err(error) if error.is_transient() => tokio::time::sleep(pause).await,
            ended => return ended,
        }
        pause *= 2;
    }
    call().await
}

/// Lifts the legal holds of all objects of the case, and says what became of it: retention goes on by the bucket's own rule.
async fn lift_holds(store: &dyn Store, case: &CaseId) -> String {
    let prefix = format!("cases/{case}/");
    let keys = match again(|| store.list(&prefix, false)).await {
        Ok(keys) => keys,
        Err(error) => return told(&[format!("the case's objects could not be listed: {error}")]),
    };
    let lifts: Vec<_> = keys
        .into_iter()
        .map(|key| async move { again(|| store.hold(&key, false)).await.err() })
        .collect();
    let errors: Vec<Option<CloudError>> = stream::iter(lifts).buffered(8).collect().await;
    let total = errors.len();
    let failed: Vec<_> = errors.into_iter().flatten().map(|e| e.to_string()).collect();
    if failed.is_empty() {
        return format!("\nLegal holds are lifted on {total} objects.\n");
    }
    told(&failed)
}

/// What failed about the holds, as the end of the text.
fn told(failed: &[String]) -> String {
    let mut text = format!("\nLegal holds that could not be lifted ({}):\n", failed.len());
    for why in failed.iter().take(NAMED) {
        text.push_str(&format!("- {}\n", markdown::text(why)));
    }
    if failed.len() > NAMED {
        text.push_str(&format!("- and {} more\n", failed.len() - NAMED));
    }
    text
}

/// The first faults, and how many more there are.
fn first(faults: &[String]) -> String {
    let named: Vec<_> = faults.iter().take(NAMED).map(|fault| printable(fault)).collect();
    let more = faults.len().saturating_sub(NAMED);
    let named = named.join("; ");
    if more == 0 { named } else { format!("{named}; and {more} more") }
}
