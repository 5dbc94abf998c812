//! Reads a log, from its newest checkpoint on.
//!
//! Purpose: what is in the store in the order of its numbers. Touches the store; changes nothing. Never believes a checkpoint
//! that the log itself does not confirm, and passes over nothing that bears a number of the log.

use cleanroom_cloud::Store;
use cleanroom_contract::{CaseId, Sha256};
use futures_util::{StreamExt as _, stream};

use super::{
    JournalError, checkpoint,
    event::{self, CustodyEvent},
};

/// How far apart two events' numbers may be and still be of one log.
const FARTHEST: u64 = 10_000;

/// An object of the log, as it is in the store.
pub(super) struct Stored {
    pub(super) number: u64,
    /// None where it is no event.
    pub(super) event: Option<CustodyEvent>,
    pub(super) bytes: Vec<u8>,
}

/// An event of these bytes.
pub(crate) fn decode(key: &str, bytes: &[u8]) -> Result<CustodyEvent, JournalError> {
    serde_json::from_slice(bytes)
        .map_err(|error| JournalError::Malformed { key: key.to_owned(), why: error.to_string() })
}

/// All events of a case with their bytes, in order. What else lies between them is left to [`verify`](super::verify).
///
/// # Errors
/// When the store does not answer.
pub async fn read(
    store: &dyn Store,
    case: &CaseId,
) -> Result<Vec<(CustodyEvent, Vec<u8>)>, JournalError> {
    let loaded = load(store, case).await?;
    Ok(loaded
        .objects
        .into_iter()
        .filter_map(|o| Some((o.event.filter(|e| e.is_at(case, o.number))?, o.bytes)))
        .collect())
}

/// A log, as it is in the store.
pub(super) struct Loaded {
    /// In the order of their numbers.
    pub(super) objects: Vec<Stored>,
    /// Where the newest checkpoint ends; 0 where there is none.
    pub(super) checkpoint: u64,
}

/// Reads a log: its newest checkpoint and what follows it, or where that does not fit, all of it one by one.
pub(super) async fn load(store: &dyn Store, case: &CaseId) -> Result<Loaded, JournalError> {
    let store_error = |source| JournalError::Store { case: case.clone(), source };
    let keys = store.list(&event::prefix(case), false).await.map_err(store_error)?;
    let mut numbers: Vec<_> = keys.iter().filter_map(|key| event::number(case, key)).collect();
    numbers.sort_unstable();
    // A number far beyond the others is no event of ours: taken for the end of the chain, it would leave no room behind it.
    let mut last = 0;
    numbers.retain(|&number| {
        let near = number - last <= FARTHEST;
        if near {
            last = number;
        }
        near
    });
    let checkpoints = keys.iter().filter_map(|key| checkpoint::number(case, key));
    // The event after it is what a checkpoint is held against.
    let confirmed = |last: &u64| last.checked_add(1).is_some_and(|next| numbers.contains(&next));
    let checkpoint = checkpoints.filter(confirmed).max().unwrap_or(0);
    let after = numbers.partition_point(|number| *number <= checkpoint);
    let (known, tail) =
        tokio::join!(whole(store, case, checkpoint), one_by_one(store, case, &numbers[after..]));
    let tail = tail.map_err(store_error)?;
    let (mut objects, digest) = known.unwrap_or_default();
    let follows = tail.first().and_then(|object| object.event.as_ref()).is_some_and(|event| {
        digest.is_some() && event.seq == checkpoint + 1 && event.previous == digest
    });
    if !follows {
        objects = one_by_one(store, case, &numbers[..after]).await.map_err(store_error)?;
    }
    objects.extend(tail);
    Ok(Loaded { objects, checkpoint })
}

/// What a checkpoint holds, and the digest of its last object.
async fn whole(
    store: &dyn Store,
    case: &CaseId,
    last: u64,
) -> Option<(Vec<Stored>, Option<Sha256>)> {
    if last == 0 {
        return None;
    }
    // One that can not be read is as good as none.
    let bytes = store.get(&checkpoint::key(case, last)).await.ok()??;
    let (objects, digest) = checkpoint::decide_chain(case, last, &bytes)?;
    Some((objects, Some(digest)))
}

/// Reads objects of a log by their numbers, a few at a time.
async fn one_by_one(
    store: &dyn Store,
    case: &CaseId,
    numbers: &[u64],
) -> cleanroom_cloud::Result<Vec<Stored>> {
    let gets: Vec<_> = numbers
        .iter()
        .map(|&number| async move {
            let key = event::key(case, number);
            let bytes = store.get(&key).await;
            (number, key, bytes)
        })
        .collect();
    let answers: Vec<_> = stream::iter(gets).buffered(16).collect().await;
    let mut objects = Vec::with_capacity(answers.len());
    for (number, key, bytes) in answers {
        // One that was hidden since it was listed is as good as never listed.
        if let Some(bytes) = bytes? {
            objects.push(Stored { number, event: decode(&key, &bytes).ok(), bytes });
        }
    }
    Ok(objects)
}
