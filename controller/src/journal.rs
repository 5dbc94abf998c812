//! The custody log: what happened to the evidence, and the journal by which a response goes on.
//!
//! Purpose: appends events as numbered objects, each with the digest of the one before, in the evidence bucket; reads
//! them back. What the bucket does not take goes to a spool on this machine and is appended later, marked `late`:
//! containment never waits for the log beyond a bound. Now and then all events so far are stored once more in one
//! object, a checkpoint, so that whoever begins anew need not read them one by one. Touches the store through its port and
//! the spool folder. Never overwrites or deletes an event.

mod checkpoint;
pub mod event;
mod ledger;
mod load;
mod spool;
pub mod verify;

use std::{
    collections::{BTreeSet, VecDeque},
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use cleanroom_cloud::{CloudError, Put, Store};
use cleanroom_contract::{CaseId, Sha256, Timestamp};
use futures_util::future::join_all;
use sha2::Digest as _;
use tokio::sync::Mutex;

pub(crate) use self::load::decode;
use self::{
    checkpoint::Chain,
    event::{Body, CustodyEvent, Entry},
    load::{Loaded, Stored, load},
};
pub use self::{
    ledger::{Answered, Asked, Examined, Ledger},
    load::read,
    spool::Spool,
};
use crate::case::{Clock, Step, lock};

/// A log that could not be read.
#[derive(Debug, thiserror::Error)]
pub enum JournalError {
    /// The store did not answer.
    #[error("read the custody log of {case}")]
    Store {
        /// The case.
        case: CaseId,
        /// What it said.
        source: CloudError,
    },
    /// An object is not an event of this log.
    #[error("custody event {key} can not be read: {why}")]
    Malformed {
        /// The object.
        key: String,
        /// What is wrong.
        why: String,
    },
}

/// The digest of bytes.
#[must_use]
pub fn digest(bytes: &[u8]) -> Sha256 {
    Sha256(sha2::Sha256::digest(bytes).into())
}

/// Who writes, and by which clock.
#[derive(Clone)]
pub struct Writer {
    /// The STS caller ARN.
    pub actor: String,
    /// Random, one a run.
    pub nonce: String,
    /// The time of day.
    pub clock: Arc<dyn Clock>,
    /// How long to wait for one object.
    pub bound: Duration,
}

impl std::fmt::Debug for Writer {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Writer").field("actor", &self.actor).finish_non_exhaustive()
    }
}

/// Where the chain ends, and what its events come to.
#[derive(Debug, Default)]
struct Head {
    seq: u64,
    digest: Option<Sha256>,
    ledger: Ledger,
    /// Events that the store has not taken.
    late: VecDeque<CustodyEvent>,
    /// Nonces of the events in the ledger: a spooled event is met again when it is appended.
    taken: BTreeSet<String>,
    /// Nonces of the events that were met in the store: an event whose answer was lost may be there although it was
    /// spooled, and is not appended again.
    stored: BTreeSet<String>,
    /// The objects in the store, for the next checkpoint.
    chain: Chain,
}

/// Counts the events of this process: two logs of one run never give the same nonce.
static EVENTS: AtomicU64 = AtomicU64::new(1);

impl Head {
    fn take(&mut self, event: &CustodyEvent) {
        if self.taken.insert(event.nonce.clone()) {
            self.ledger.take(event);
        }
    }
}

/// A case's custody log, as one run writes it.
pub struct Journal {
    store: Arc<dyn Store>,
    case: CaseId,
    writer: Writer,
    spool: Spool,
    head: Mutex<Head>,
    /// Why the store refused an event of this run, where it did: then no later one waits for it.
    down: std::sync::Mutex<Option<String>>,
    /// Entries that wait for the next object: who writes takes all of them.
    queue: std::sync::Mutex<Vec<Entry>>,
}

/// How many entries one object holds at most.
const MOST_ENTRIES: usize = 32;

impl std::fmt::Debug for Journal {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Journal").field("case", &self.case).finish_non_exhaustive()
    }
}

/// Entries off the queue. They are others' too: where whoever writes them stops waiting, they go back.
struct Taken<'q> {
    queue: &'q std::sync::Mutex<Vec<Entry>>,
    entries: Vec<Entry>,
}

impl<'q> Taken<'q> {
    fn from(queue: &'q std::sync::Mutex<Vec<Entry>>) -> Self {
        let mut waiting = lock(queue);
        let count = waiting.len().min(MOST_ENTRIES);
        let entries = waiting.drain(..count).collect();
        Self { queue, entries }
    }

    fn written(mut self) {
        self.entries.clear();
    }
}

impl Drop for Taken<'_> {
    fn drop(&mut self) {
        lock(self.queue).splice(..0, self.entries.drain(..));
    }
}

/// How many objects are read at once where another writer was first: at first, and at most.
const AHEAD: (u64, u64) = (2, 16);

/// How an attempt to append ended.
enum Appended {
    Written,
    /// Another writer was first: its event has been taken into account.
    Behind,
}

impl Journal {
    /// A log that is known to be empty: the case was claimed by this run.
    #[must_use]
    pub fn new(store: Arc<dyn Store>, case: CaseId, writer: Writer, spool: Spool) -> Self {
        let head = Mutex::new(Head::default());
        Self {
            store,
            case,
            writer,
            spool,
            head,
            down: std::sync::Mutex::default(),
            queue: std::sync::Mutex::default(),
        }
    }

    /// A log that others may have written to: reads all of it. Where the store does not answer, the log begins as down:
    /// events go to the spool.
    pub async fn open(store: Arc<dyn Store>, case: CaseId, writer: Writer, spool: Spool) -> Self {
        let journal = Self::new(store, case, writer, spool);
        let loading = load(&*journal.store, &journal.case);
        let loaded = tokio::time::timeout(journal.writer.bound * 4, loading).await;
        let mut head = journal.head.lock().await;
        match loaded {
            Ok(Ok(loaded)) => take(&mut head, &journal.case, &loaded),
            Ok(Err(error)) => *lock(&journal.down) = Some(error_chain(&error)),
            Err(_) => {
                *lock(&journal.down) = Some("the store did not answer in time".to_owned());
            }
        }
        journal.load_spool(&mut head);
        drop(head);
        journal
    }

    /// The same, where a log that can not be read is an error and none that is begun anew.
    ///
    /// # Errors
    /// When the store does not answer.
    pub async fn found(
        store: Arc<dyn Store>,
        case: CaseId,
        writer: Writer,
        spool: Spool,
    ) -> Result<Self, JournalError> {
        let journal = Self::new(store, case, writer, spool);
        let loaded = load(&*journal.store, &journal.case).await?;
        let mut head = journal.head.lock().await;
        take(&mut head, &journal.case, &loaded);
        journal.load_spool(&mut head);
        drop(head);
        Ok(journal)
    }

    /// Takes what an earlier run could not write into account.
    fn load_spool(&self, head: &mut Head) {
        for event in self.spool.load(&self.case) {
            if head.stored.contains(&event.nonce) {
                self.spool.discard(&event);
            } else {
                head.take(&event);
                head.late.push_back(event);
            }
        }
    }

    /// Now, by the writer's clock.
    #[must_use]
    pub fn now(&self) -> Timestamp {
        self.writer.clock.now()
    }

    /// A log that can not be written: events go to the spool.
    pub async fn down_from_start(self, why: String) -> Self {
        let mut head = self.head.lock().await;
        *lock(&self.down) = Some(why);
        self.load_spool(&mut head);
        drop(head);
        self
    }

    /// Where what the store does not take is kept.
    #[must_use]
    pub fn spool(&self) -> &Spool {
        &self.spool
    }

    /// The case.
    #[must_use]
    pub fn case(&self) -> &CaseId {
        &self.case
    }

    /// What the events come to so far.
    pub async fn ledger(&self) -> Ledger {
        self.drain().await;
        self.head.lock().await.ledger.clone()
    }

    /// Why the log could not be written, where it could not.
    pub fn down(&self) -> Option<String> {
        lock(&self.down).clone()
    }

    /// Records the instance's original state, unless somebody else has: then theirs holds and is what comes
    /// back.
    pub async fn open_case(&self, body: Body) -> Ledger {
        let mut head = self.head.lock().await;
        if head.ledger.original.is_none() {
            let about = (self.writer.clock.now(), Some(Step::Verify));
            self.append_locked(&mut head, about, body, |ledger| ledger.original.is_some()).await;
        }
        head.ledger.clone()
    }

    /// Appends an entry and waits until it is in the log. What the store does not take in time is spooled.
    pub async fn append(&self, step: Option<Step>, body: Body) {
        self.put_in_queue(step, body);
        self.drain().await;
    }

    /// Appends an entry without waiting: it is written with the next one, or by a task of its own.
    pub fn note(self: &Arc<Self>, step: Option<Step>, body: Body) {
        self.put_in_queue(step, body);
        let journal = self.clone();
        tokio::spawn(async move { journal.drain().await });
    }

    fn put_in_queue(&self, step: Option<Step>, body: Body) {
        lock(&self.queue).push(Entry { at: self.writer.clock.now(), step, body });
    }

    /// Writes what waits. Goals that are worked at side by side append at the same time: their entries share an object, so
    /// that none waits for more than the object on its way and its own.
    async fn drain(&self) {
        let mut head = self.head.lock().await;
        loop {
            let taken = Taken::from(&self.queue);
            let (at, step, body) = match taken.entries.as_slice() {
                [] => return,
                [entry] => (entry.at, entry.step, entry.body.clone()),
                several => (several[0].at, None, Body::Several { entries: several.to_vec() }),
            };
            self.append_locked(&mut head, (at, step), body, |_| false).await;
            taken.written();
        }
    }

    async fn append_locked(
        &self,
        head: &mut Head,
        (at, step): (Timestamp, Option<Step>),
        body: Body,
        moot: impl Fn(&Ledger) -> bool,
    ) {
        let number = EVENTS.fetch_add(1, Ordering::Relaxed);
        let mut event = CustodyEvent {
            v: 1,
            seq: 0,
            previous: None,
            nonce: format!("{}-{number}", self.writer.nonce),
            case: self.case.clone(),
            at,
            actor: self.writer.actor.clone(),
            step,
            late: false,
            body,
        };
        if lock(&self.down).is_none() {
            let write = self.write(head, &mut event, &moot);
            match tokio::time::timeout(self.writer.bound, write).await {
                Ok(Ok(())) => return,
                Ok(Err(error)) => *lock(&self.down) = Some(error_chain(&error)),
                Err(_) => {
                    *lock(&self.down) = Some("the store did not answer in time".to_owned());
                }
            }
        }
        event.late = true;
        head.take(&event);
        self.spool.keep(&event);
        head.late.push_back(event);
    }

    /// Writes an event after whatever is there, however many others write too.
    async fn write(
        &self,
        head: &mut Head,
        event: &mut CustodyEvent,
        moot: impl Fn(&Ledger) -> bool,
    ) -> Result<(), JournalError> {
        if head.stored.contains(&event.nonce) {
            return Ok(());
        }
        let mut pause = Duration::from_millis(50);
        let mut ahead = AHEAD.0;
        loop {
            match self.try_write(head, event, ahead).await {
                Ok(Appended::Written) => return Ok(()),
                Ok(Appended::Behind) if moot(&head.ledger) => return Ok(()),
                Ok(Appended::Behind) => ahead = (ahead * 2).min(AHEAD.1),
                // The caller's bound ends this.
                Err(JournalError::Store { source, .. }) if source.is_transient() => {
                    tokio::time::sleep(pause).await;
                    pause = (pause * 2).min(Duration::from_secs(1));
                }
                Err(error) => return Err(error),
            }
        }
    }

    async fn try_write(
        &self,
        head: &mut Head,
        event: &mut CustodyEvent,
        ahead: u64,
    ) -> Result<Appended, JournalError> {
        let store_error = |source| JournalError::Store { case: self.case.clone(), source };
        event.seq = head.seq.saturating_add(1);
        event.previous = head.digest;
        let key = event::key(&self.case, event.seq);
        let bytes = encode(event);
        let put = self.store.create(&key, bytes.clone()).await.map_err(store_error)?;
        if put == Put::Created {
            let object = Stored { number: event.seq, event: Some(event.clone()), bytes };
            absorb(head, &self.case, &object);
            return Ok(Appended::Written);
        }
        // Either a lost answer to a write of this event, or another writer, who may be further ahead: step by step nobody
        // would catch up with one who writes without a pause.
        let numbers = event.seq..event.seq.saturating_add(ahead);
        let keys: Vec<_> = numbers.clone().map(|number| event::key(&self.case, number)).collect();
        let found = join_all(keys.iter().map(|key| self.store.get(key))).await;
        for ((number, key), found) in numbers.zip(&keys).zip(found) {
            match found {
                Ok(Some(bytes)) => {
                    let event = decode(key, &bytes).ok();
                    absorb(head, &self.case, &Stored { number, event, bytes });
                }
                // Here the chain ends, as far as can be told.
                _ if number > event.seq => break,
                Err(error) => return Err(store_error(error)),
                Ok(None) => {
                    let why = "it exists and can not be read: it may have been deleted".to_owned();
                    return Err(JournalError::Malformed { key: key.clone(), why });
                }
            }
        }
        let own = head.stored.contains(&event.nonce);
        Ok(if own { Appended::Written } else { Appended::Behind })
    }

    /// Events that the store has not taken, in their order.
    pub(crate) async fn late(&self) -> Vec<CustodyEvent> {
        self.head.lock().await.late.iter().cloned().collect()
    }

    /// Appends what could not be written before, in its order. Returns how many events still wait.
    pub async fn catch_up(&self) -> usize {
        self.drain().await;
        let mut head = self.head.lock().await;
        // An event leaves the queue once it is in the store: whoever calls may stop waiting at any moment.
        while let Some(mut event) = head.late.front().cloned() {
            event.late = true;
            let write = self.write(&mut head, &mut event, |_| false);
            if !matches!(tokio::time::timeout(self.writer.bound * 4, write).await, Ok(Ok(()))) {
                return head.late.len();
            }
            head.late.pop_front();
            self.spool.discard(&event);
        }
        *lock(&self.down) = None;
        0
    }

    /// Stores a checkpoint, where enough was written since the last one. One that the store does not take is not missed:
    /// its events are.
    pub async fn checkpoint(&self) {
        self.drain().await;
        let mut head = self.head.lock().await;
        if self.down().is_some() {
            return;
        }
        let Some((last, bytes)) = head.chain.due(&self.case) else { return };
        let key = checkpoint::key(&self.case, last);
        let put = self.store.create(&key, bytes);
        if let Ok(Ok(_)) = tokio::time::timeout(self.writer.bound, put).await {
            head.chain.is_stored(last);
        }
    }
}

/// Takes an object that is in the store for the end of the chain. What is no event of this place is passed over: it is named by
/// [`verify`], and whoever put it there does not silence the log.
fn absorb(head: &mut Head, case: &CaseId, object: &Stored) {
    head.seq = object.number;
    head.digest = Some(digest(&object.bytes));
    head.chain.take(case, object);
    if let Some(event) = object.event.as_ref().filter(|e| e.is_at(case, object.number)) {
        head.stored.insert(event.nonce.clone());
        head.take(event);
    }
}

/// Takes a log that was read into account.
fn take(head: &mut Head, case: &CaseId, log: &Loaded) {
    for object in &log.objects {
        absorb(head, case, object);
    }
    head.chain.is_stored(log.checkpoint);
}

/// An event's bytes: compact JSON, its keys in the order of their declaration.
fn encode(event: &CustodyEvent) -> Vec<u8> {
    serde_json::to_vec(event).unwrap_or_default()
}

/// An error and its causes, on one line.
pub(crate) fn error_chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(cause) = source {
        text.push_str(": ");
        text.push_str(&cause.to_string());
        source = cause.source();
    }
    text
}

/// When an event happened, in seconds, for differences.
#[must_use]
pub fn seconds(at: Timestamp) -> f64 {
    #[expect(clippy::cast_precision_loss, reason = "seconds of this era are exact")]
    let whole = at.seconds as f64;
    whole + f64::from(at.nanos) / 1e9
}
