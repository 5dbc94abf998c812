//! Whether a custody log is what its writers wrote.
//!
//! Purpose: judges numbering, chain, nonces, versions and delete markers, and the digests of what the log speaks of. Reads
//! the store; changes nothing.

use std::collections::{BTreeMap, BTreeSet};

use cleanroom_cloud::{Fetched, ObjectVersion, Store};
use cleanroom_contract::{CaseId, Sha256};
use futures_util::{StreamExt as _, stream};

use super::{
    JournalError, checkpoint, decode, digest,
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
    let numbers: BTreeSet<_> =
        versions.iter().filter_map(|v| event::number(case, &v.key)).collect();
    let mut objects = BTreeMap::new();
    let keys = numbers.iter().map(|number| event::key(case, *number)).collect();
    for (number, bytes) in numbers.iter().zip(get_all(store, keys).await) {
        if let Some(bytes) = bytes.map_err(store_error)? {
            objects.insert(*number, bytes);
        }
    }
    let (events, mut verdict) = judge(case, &versions, &objects);
    let checkpoints: BTreeSet<_> =
        versions.iter().filter_map(|v| checkpoint::number(case, &v.key)).collect();
    let keys = checkpoints.iter().map(|last| checkpoint::key(case, *last)).collect();
    for (last, bytes) in checkpoints.iter().zip(get_all(store, keys).await) {
        // One that was deleted is named by its mark.
        if let Some(bytes) = bytes.map_err(store_error)? {
            verdict.faults.extend(differs(case, *last, &bytes, &objects));
        }
    }
    let exhibits: Vec<_> = events.iter().flat_map(exhibits).collect();
    verdict.exhibits = exhibits.len();
    for (exhibit, found) in exhibits.iter().zip(digests(store, &exhibits).await) {
        let key = &exhibit.key;
        match found.map_err(store_error)? {
            None => verdict.faults.push(format!("{key} is missing")),
            Some(found) if found.sha256 != exhibit.sha256 => {
                verdict.faults.push(format!("{key} is not what was recorded"));
            }
            Some(_) => {}
        }
    }
    Ok(verdict)
}

/// Reads objects, a few at a time.
async fn get_all(
    store: &dyn Store,
    keys: Vec<String>,
) -> Vec<cleanroom_cloud::Result<Option<Vec<u8>>>> {
    let gets: Vec<_> = keys.into_iter().map(|key| async move { store.get(&key).await }).collect();
    stream::iter(gets).buffered(8).collect().await
}

/// Digests objects of any size, a few at a time.
async fn digests(
    store: &dyn Store,
    exhibits: &[Exhibit],
) -> Vec<cleanroom_cloud::Result<Option<Fetched>>> {
    // What is larger than it was is another: no need to read all of it.
    let reads: Vec<_> = exhibits
        .iter()
        .map(|e| async move {
            match store.download(&e.key, None, e.size).await {
                Err(error) if error.code == "TooLarge" => {
                    Ok(Some(Fetched { size: e.size.saturating_add(1), sha256: Sha256([0; 32]) }))
                }
                found => found,
            }
        })
        .collect();
    stream::iter(reads).buffered(8).collect().await
}

/// The objects that an event speaks of.
fn exhibits(event: &CustodyEvent) -> Vec<Exhibit> {
    let of = |body: &Body| match body {
        Body::Recorded { exhibits, .. } => exhibits.clone(),
        Body::Reported { exhibits, .. } => exhibits.clone(),
        Body::Closed { record: one } | Body::Ordered { order: one, .. } => vec![one.clone()],
        _ => Vec::new(),
    };
    event.entries().flat_map(|(_, _, body)| of(body)).collect()
}

/// Judges versions, numbering, nonces and the chain.
fn judge(
    case: &CaseId,
    versions: &[ObjectVersion],
    objects: &BTreeMap<u64, Vec<u8>>,
) -> (Vec<CustodyEvent>, Verdict) {
    let mut verdict = Verdict { faults: tampered(case, versions), ..Verdict::default() };
    let mut events: Vec<CustodyEvent> = Vec::new();
    let mut nonces = BTreeSet::new();
    // The number and the digest of the object before.
    let mut before = (0, None);
    for (&number, bytes) in objects {
        let key = event::key(case, number);
        let (last, previous) = std::mem::replace(&mut before, (number, Some(digest(bytes))));
        let follows = number == last + 1;
        if !follows {
            verdict.faults.push(missing(case, last + 1, number - 1));
        }
        let event = match decode(&key, bytes) {
            Ok(event) => event,
            Err(error) => {
                verdict.faults.push(error.to_string());
                continue;
            }
        };
        if !event.is_at(case, number) || event.v != 1 {
            verdict.faults.push(format!(
                "{key} says that it is event {} of {}, form {}",
                event.seq, event.case, event.v
            ));
        }
        // What follows a gap can not be held against what is missing.
        if follows && event.previous != previous {
            verdict.faults.push(format!("{key} does not follow the event before it"));
        }
        if !nonces.insert(event.nonce.clone()) {
            verdict.faults.push(format!("{key} repeats the nonce of an earlier event"));
        }
        verdict.late += usize::from(event.late);
        events.push(event);
    }
    verdict.events = events.len();
    if events.is_empty() {
        verdict.faults.push(format!("there are no custody events of {case}"));
    }
    (events, verdict)
}

/// What a checkpoint says that the log does not say.
fn differs(
    case: &CaseId,
    last: u64,
    bytes: &[u8],
    objects: &BTreeMap<u64, Vec<u8>>,
) -> Option<String> {
    let key = checkpoint::key(case, last);
    let Some((found, _)) = checkpoint::decide_chain(case, last, bytes) else {
        return Some(format!("{key} is no checkpoint of this log"));
    };
    // What is missing in the log is named for itself.
    let other = found.iter().find(|o| objects.get(&o.number).is_some_and(|b| *b != o.bytes))?;
    Some(format!("{key} has another event {} than the log", other.number))
}

/// Events that are not there, although later ones are.
fn missing(case: &CaseId, first: u64, last: u64) -> String {
    let first_key = event::key(case, first);
    if first == last {
        format!("{first_key} is missing")
    } else {
        format!("{first_key} to {} are missing", event::key(case, last))
    }
}

/// What versions alone tell: deletions, second versions, and objects that do not belong into the log.
fn tampered(case: &CaseId, versions: &[ObjectVersion]) -> Vec<String> {
    let mut faults = Vec::new();
    let mut seen = BTreeMap::<&str, usize>::new();
    for version in versions {
        if version.deleted {
            faults.push(format!("{} was deleted (marker {})", version.key, version.version));
        } else {
            *seen.entry(version.key.as_str()).or_default() += 1;
        }
    }
    for (key, count) in seen {
        if count > 1 {
            faults.push(format!("{key} has {count} versions: it was overwritten"));
        }
        let known = event::number(case, key).or_else(|| checkpoint::number(case, key));
        if key.starts_with(&event::prefix(case)) && known.is_none() {
            faults.push(format!("{key} does not belong into the custody log"));
        }
    }
    faults
}
