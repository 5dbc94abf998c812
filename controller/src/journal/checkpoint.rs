//! Checkpoints: the log's objects so far, in one.
//!
//! Purpose: a step of a state machine reads the whole log each time; with a checkpoint it reads that, and the few objects after
//! it. A checkpoint adds nothing to the log and is not trusted: it counts only where its objects are a chain from the first,
//! and where the next object of the log, which nobody can write over, has the digest that it ends with. Touches nothing;
//! what is in the store is left to the log.

use cleanroom_contract::{CaseId, Sha256};
use serde::{Deserialize, Serialize};

use super::{
    digest, event,
    load::{Stored, decode},
};

/// How many objects are read one by one, about, before there is a checkpoint of them.
const EVERY: u64 = 4;

/// The most that a checkpoint holds, in bytes: what is longer is read one by one.
const MOST: usize = 8 << 20;

/// A checkpoint, as it is stored.
#[derive(Serialize, Deserialize)]
struct Checkpoint {
    /// The form of this object: 1.
    v: u8,
    case: CaseId,
    /// The log's objects from the first on, byte for byte.
    objects: Vec<String>,
}

/// The key of the checkpoint that ends with an event.
pub(super) fn key(case: &CaseId, last: u64) -> String {
    format!("{}upto-{last:06}.json", event::prefix(case))
}

/// The number of the last event of the checkpoint that a key is for; none for a key of anything else.
pub(super) fn number(case: &CaseId, key: &str) -> Option<u64> {
    let digits = key.strip_prefix(&event::prefix(case))?.strip_prefix("upto-")?;
    let number = digits.strip_suffix(".json")?.parse().ok()?;
    (number > 0 && self::key(case, number) == key).then_some(number)
}

/// The objects of a log from the first on, as long as they are a chain.
#[derive(Debug, Default)]
pub(super) struct Chain {
    objects: Vec<String>,
    bytes: usize,
    /// The newest object's digest.
    digest: Option<Sha256>,
    /// Where the newest checkpoint ends that is known.
    stored: u64,
    broken: bool,
}

impl Chain {
    /// Takes the next object of the log.
    pub(super) fn take(&mut self, case: &CaseId, object: &Stored) {
        let event = object.event.as_ref().filter(|event| event.is_at(case, object.number));
        let follows = event.is_some_and(|event| event.previous == self.digest)
            && object.number == self.len() + 1;
        match String::from_utf8(object.bytes.clone()) {
            Ok(text) if follows && !self.broken => {
                self.bytes += text.len();
                self.digest = Some(digest(&object.bytes));
                self.objects.push(text);
            }
            _ => self.broken = true,
        }
    }

    /// That there is a checkpoint which ends with this event.
    pub(super) fn is_stored(&mut self, last: u64) {
        self.stored = self.stored.max(last);
    }

    /// The checkpoint to write now: where it ends, and its bytes.
    pub(super) fn due(&self, case: &CaseId) -> Option<(u64, Vec<u8>)> {
        if self.broken || self.bytes > MOST || self.len() < self.stored + EVERY {
            return None;
        }
        let whole = Checkpoint { v: 1, case: case.clone(), objects: self.objects.clone() };
        Some((self.len(), serde_json::to_vec(&whole).ok()?))
    }

    fn len(&self) -> u64 {
        self.objects.len() as u64
    }
}

/// The objects of a checkpoint that ends with this number, where they are a chain from the first on.
pub(super) fn decide_chain(
    case: &CaseId,
    last: u64,
    bytes: &[u8],
) -> Option<(Vec<Stored>, Sha256)> {
    let found: Checkpoint = serde_json::from_slice(bytes).ok()?;
    if found.v != 1 || found.case != *case || found.objects.len() as u64 != last {
        return None;
    }
    let mut chain = Chain::default();
    let mut objects = Vec::with_capacity(found.objects.len());
    for (number, text) in (1..).zip(found.objects) {
        let bytes = text.into_bytes();
        let event = decode(&event::key(case, number), &bytes).ok();
        let object = Stored { number, event, bytes };
        chain.take(case, &object);
        objects.push(object);
    }
    let digest = chain.digest.filter(|_| !chain.broken)?;
    Some((objects, digest))
}
