//! Whether a custody log is what its writers wrote.
//!
//! Purpose: judges numbering, chain, nonces, versions and delete markers, and the digests of what the log speaks of. Reads
//! the store; changes nothing.

use std::collections::{BTreeMap, BTreeSet};

use cleanroom_cloud::{ObjectVersion, Store};
use cleanroom_contract::CaseId;

use super::{
    JournalError, decode, digest,
    event::{self, Body, CustodyEvent, Exhibit},
};

/// What a verification found.
#[derive(Clone, Debug, Default, PartialEq, Eq, serde::Serialize)]
pub struct Verdict {
    /// Events that were read.
    pub events: usize,
    /// Objects of evidence whose digest was compared.
    pub exhibits: usize,
    /// Events that were appended after the fact.
    pub late: usize,
    /// What is not as it was written; empty where the log is whole.
    pub faults: Vec<String>,
}

/// Reads a case's log and everything it speaks of, and judges.
///
/// # Errors
/// When the store does not answer.
pub async fn verify(store: &dyn Store, case: &CaseId) -> Result<Verdict, JournalError> {
    let store_error = |source| JournalError::Store { case: case.clone(), source };
    let prefix = format!("cases/{case}/");
    let versions = store.versions(&prefix).await.map_err(store_error)?;
    let mut objects = BTreeMap::new();
    let custody = event::prefix(case);
    let keys: BTreeSet<_> = versions.iter().map(|v| v.key.clone()).collect();
    for key in keys.iter().filter(|k| k.starts_with(&custody)) {
        if let Some(bytes) = store.get(key).await.map_err(store_error)? {
            objects.insert(key.clone(), bytes);
        }
    }
    let (events, mut verdict) = judge(case, &versions, &objects);
    for exhibit in events.iter().flat_map(exhibits) {
        verdict.exhibits += 1;
        match store.get(&exhibit.key).await.map_err(store_error)? {
            None => verdict.faults.push(format!("{} is missing", exhibit.key)),
            Some(bytes) if digest(&bytes) != exhibit.sha256 => {
                verdict.faults.push(format!("{} is not what was recorded", exhibit.key));
            }
            Some(_) => {}
        }
    }
    Ok(verdict)
}

/// The objects that an event speaks of.
fn exhibits(event: &CustodyEvent) -> Vec<Exhibit> {
    match &event.body {
        Body::Recorded { exhibits, .. } => exhibits.clone(),
        Body::Closed { record } => vec![record.clone()],
        _ => Vec::new(),
    }
}

/// Judges versions, numbering, nonces and the chain.
fn judge(
    case: &CaseId,
    versions: &[ObjectVersion],
    objects: &BTreeMap<String, Vec<u8>>,
) -> (Vec<CustodyEvent>, Verdict) {
    let mut verdict = Verdict::default();
    let mut seen = BTreeMap::<&str, usize>::new();
    for version in versions {
        if version.deleted {
            verdict
                .faults
                .push(format!("{} was deleted (marker {})", version.key, version.version));
        } else {
            *seen.entry(version.key.as_str()).or_default() += 1;
        }
    }
    for (key, count) in seen.iter().filter(|(_, count)| **count > 1) {
        verdict.faults.push(format!("{key} has {count} versions: it was overwritten"));
    }
    let mut events: Vec<CustodyEvent> = Vec::new();
    let mut previous = None;
    let mut nonces = BTreeSet::new();
    for (number, (key, bytes)) in (1..).zip(objects) {
        let expected = event::key(case, number);
        if *key != expected {
            verdict.faults.push(format!("{expected} is missing, or {key} does not belong here"));
        }
        let event = match decode(key, bytes) {
            Ok(event) => event,
            Err(error) => {
                verdict.faults.push(error.to_string());
                previous = Some(digest(bytes));
                continue;
            }
        };
        if event.seq != number || event.case != *case || event.v != 1 {
            verdict
                .faults
                .push(format!("{key} says that it is event {} of {}", event.seq, event.case));
        }
        if event.previous != previous {
            verdict.faults.push(format!("{key} does not follow the event before it"));
        }
        if !nonces.insert(event.nonce.clone()) {
            verdict.faults.push(format!("{key} repeats the nonce of an earlier event"));
        }
        previous = Some(digest(bytes));
        verdict.late += usize::from(event.late);
        events.push(event);
    }
    verdict.events = events.len();
    if events.is_empty() {
        verdict.faults.push(format!("there are no custody events of {case}"));
    }
    (events, verdict)
}
