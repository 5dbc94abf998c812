//! The inspectors, seen from the walker: who has what in hand, for how long, and what to do when one
//! of them dies.
//!
//! Purpose: hand out files, take back facts, and lay every loss to one file. Touches the job sockets
//! and markers. Never waits for an inspector, and never believes one about what it was given: answers
//! are matched against what is pending.

use std::{
    collections::{BTreeMap, BinaryHeap, VecDeque},
    os::fd::{AsFd as _, BorrowedFd, OwnedFd},
    time::{Duration, Instant},
};

use cleanroom_contract::{FileRecord, GapKind};

use super::links::Inode;

use crate::{
    inspect::current_size,
    protocol::{
        Channel, Facts, Filled, FromInspector, Job, Limits, ProtocolError, ToInspector, read_marker,
    },
};

/// A batch closes at this many files…
const BATCH_FILES: usize = 64;
/// …or bytes.
const BATCH_BYTES: u64 = 1 << 20;
/// Text of jobs that an inspector may have pending: well below what its socket takes without waiting
/// (unix(7): 208 KiB), since the walker never waits for an inspector.
const PENDING_TEXT: usize = 96 << 10;
/// What a job takes in a message besides its path.
const JOB_TEXT: usize = 512;

/// A file on its way through an inspector.
#[derive(Debug)]
pub(crate) struct Pending {
    pub job: Job,
    pub file: OwnedFd,
    pub record: Box<FileRecord>,
    /// Other names of this inode may wait for its answer.
    pub inode: Option<Inode>,
    /// An inspector has died that had it: the next death is laid to it.
    pub tried: bool,
}

/// Largest first.
#[derive(Debug)]
struct BySize(Pending);

impl PartialEq for BySize {
    fn eq(&self, other: &Self) -> bool {
        self.cmp(other).is_eq()
    }
}
impl Eq for BySize {}
impl PartialOrd for BySize {
    fn partial_cmp(&self, other: &Self) -> Option<std::cmp::Ordering> {
        Some(self.cmp(other))
    }
}
impl Ord for BySize {
    fn cmp(&self, other: &Self) -> std::cmp::Ordering {
        (self.0.job.size, other.0.job.seq).cmp(&(other.0.job.size, self.0.job.seq))
    }
}

/// What came of a file.
#[derive(Debug)]
pub(crate) enum Outcome {
    /// It was inspected.
    Answered(Pending, Box<Facts>),
    /// Its inspector died on it, or took too long.
    Lost { pending: Pending, kind: GapKind, reason: String },
}

/// An inspector that must be replaced.
#[derive(Debug)]
pub(crate) struct Casualty {
    pub slot: u32,
    pub generation: u32,
    pub reason: String,
}

#[derive(Debug)]
struct Slot {
    generation: u32,
    channel: Option<Channel>,
    marker: Option<OwnedFd>,
    pending: BTreeMap<u64, Pending>,
    bytes: u64,
    /// Bytes of the pending jobs' messages.
    text: usize,
    /// Serves one file alone that was in flight beside a culprit.
    alone: bool,
    /// What the marker said when it last changed, and when that was seen.
    seen: (Option<u64>, Instant),
    /// When anything was last dispatched to an idle inspector or answered by it.
    active: Instant,
    /// The file that the inspector before died on; told when it is known how it died.
    culprit: Option<(Pending, GapKind, String)>,
}

/// All inspectors of a walker.
#[derive(Debug)]
pub(crate) struct Crew {
    slots: Vec<Slot>,
    queue: BinaryHeap<BySize>,
    again: VecDeque<Pending>,
    limits: Limits,
    /// The image under the current volume.
    backing: Option<(OwnedFd, u64)>,
}

impl Crew {
    /// Expects an inspector for each of `slots` slots.
    pub(crate) fn new(slots: u32, limits: Limits, now: Instant) -> Self {
        let slot = |_| Slot {
            generation: 0,
            channel: None,
            marker: None,
            pending: BTreeMap::new(),
            bytes: 0,
            text: 0,
            alone: false,
            seen: (None, now),
            active: now,
            culprit: None,
        };
        Self {
            slots: (0..slots).map(slot).collect(),
            queue: BinaryHeap::new(),
            again: VecDeque::new(),
            limits,
            backing: None,
        }
    }

    /// The files that wait for an inspector.
    pub(crate) fn waiting(&self) -> usize {
        self.queue.len() + self.again.len()
    }

    /// True where nothing waits, is in flight, or is yet to be told.
    pub(crate) fn is_idle(&self) -> bool {
        self.waiting() == 0
            && self.slots.iter().all(|slot| slot.pending.is_empty() && slot.culprit.is_none())
    }

    /// Queues a file.
    pub(crate) fn submit(&mut self, pending: Pending) {
        self.queue.push(BySize(pending));
    }

    /// Gives up everything that waits. What is in flight is still answered.
    pub(crate) fn abandon(&mut self) -> Vec<Pending> {
        let mut left: Vec<_> = self.queue.drain().map(|by_size| by_size.0).collect();
        left.extend(self.again.drain(..));
        left
    }

    /// Gives up what is in flight too. The inspectors may still answer; nobody listens.
    pub(crate) fn abandon_in_flight(&mut self) -> Vec<Pending> {
        let mut left = Vec::new();
        for slot in &mut self.slots {
            left.extend(std::mem::take(&mut slot.pending).into_values());
            left.extend(slot.culprit.take().map(|culprit| culprit.0));
            slot.bytes = 0;
            slot.text = 0;
        }
        left
    }

    /// Tells every inspector that another volume begins.
    pub(crate) fn begin_volume(&mut self, backing: Option<(OwnedFd, u64)>) {
        self.backing = backing;
        for slot in &mut self.slots {
            if let Some(channel) = &mut slot.channel {
                // One that cannot be told has died: its next dispatch finds out.
                drop(announce(channel, self.backing.as_ref()));
            }
        }
    }

    /// True where the image under the current volume is smaller than it was.
    pub(crate) fn backing_shrank(&self) -> bool {
        self.backing
            .as_ref()
            .is_some_and(|(image, expected)| current_size(image).is_ok_and(|size| size < *expected))
    }

    /// Puts a new inspector into a slot; `ended` says how the one before it ended. Returns what that
    /// one died on.
    pub(crate) fn install(
        &mut self,
        (number, generation): (u32, u32),
        (mut channel, marker): (Channel, OwnedFd),
        ended: Option<String>,
    ) -> Option<Outcome> {
        let number = usize::try_from(number).ok().filter(|number| *number < self.slots.len())?;
        if self.slots[number].channel.is_some() {
            // The supervisor knew of its end before its socket told us.
            self.bury(number, GapKind::Crashed, "the inspector ended".to_owned());
        }
        let backing = self.backing.as_ref();
        let slot = &mut self.slots[number];
        // One that cannot be told has died: its next dispatch finds out.
        drop(announce(&mut channel, backing));
        slot.generation = generation;
        slot.channel = Some(channel);
        slot.marker = Some(marker);
        slot.alone = false;
        let (pending, kind, reason) = slot.culprit.take()?;
        if kind == GapKind::Crashed && ended.is_none() && !pending.tried {
            // Nobody knows that it ended by itself: the process that had forked it is gone.
            self.again.push_back(Pending { tried: true, ..pending });
            return None;
        }
        Some({
            let how = ended.filter(|_| kind == GapKind::Crashed);
            let reason = how.map_or(reason, |how| format!("the inspector {how} on this file"));
            Outcome::Lost { pending, kind, reason }
        })
    }

    /// The sockets to wait on, with their slots.
    pub(crate) fn sockets(&self) -> impl Iterator<Item = (usize, BorrowedFd<'_>)> {
        let open = |(number, slot): (usize, &'_ Slot)| slot.channel.is_some().then_some(number);
        self.slots
            .iter()
            .enumerate()
            .filter_map(open)
            .filter_map(|n| self.slots[n].channel.as_ref().map(|channel| (n, channel.as_fd())))
    }

    /// Hands out what waits to those who have little to do. Returns those found dead.
    pub(crate) fn dispatch(&mut self, now: Instant) -> Vec<Casualty> {
        let mut casualties = Vec::new();
        for number in 0..self.slots.len() {
            while self.waiting() > 0 && self.has_room(number) {
                let batch = self.take_batch(number);
                if batch.is_empty() {
                    break;
                }
                if let Err(error) = self.send(number, batch, now) {
                    casualties.push(self.bury(number, GapKind::Crashed, error.to_string()));
                    break;
                }
            }
        }
        casualties
    }

    fn has_room(&self, number: usize) -> bool {
        let slot = &self.slots[number];
        slot.channel.is_some()
            && (slot.pending.is_empty()
                || !slot.alone
                    && slot.bytes < BATCH_BYTES
                    && slot.pending.len() < BATCH_FILES
                    && slot.text < PENDING_TEXT / 2)
    }

    fn take_batch(&mut self, number: usize) -> Vec<Pending> {
        let slot = &mut self.slots[number];
        if slot.pending.is_empty()
            && let Some(pending) = self.again.pop_front()
        {
            slot.alone = true;
            return vec![pending];
        }
        if slot.pending.is_empty() {
            slot.alone = false;
        }
        let mut batch = Vec::new();
        let mut bytes = 0_u64;
        let mut text = slot.text;
        while batch.len() < BATCH_FILES && bytes < BATCH_BYTES {
            let next_text = self.queue.peek().map_or(0, |next| job_text(&next.0.job));
            if text > 0 && text + next_text > PENDING_TEXT {
                break;
            }
            let Some(BySize(next)) = self.queue.pop() else { break };
            bytes = bytes.saturating_add(next.job.size);
            text += next_text;
            batch.push(next);
        }
        batch
    }

    fn send(
        &mut self,
        number: usize,
        batch: Vec<Pending>,
        now: Instant,
    ) -> Result<(), ProtocolError> {
        let slot = &mut self.slots[number];
        let jobs: Vec<Job> = batch.iter().map(|pending| pending.job.clone()).collect();
        if slot.pending.is_empty() {
            slot.active = now;
            slot.seen.1 = now;
        }
        let sent = match &mut slot.channel {
            Some(channel) => {
                let descriptors: Vec<_> =
                    batch.iter().map(|pending| pending.file.as_fd()).collect();
                channel.send(&ToInspector::Jobs(jobs), &descriptors)
            }
            None => Err(ProtocolError::Ended { peer: "inspector" }),
        };
        for pending in batch {
            slot.bytes = slot.bytes.saturating_add(pending.job.size);
            slot.text += job_text(&pending.job);
            slot.pending.insert(pending.job.seq, pending);
        }
        sent
    }

    /// Takes in what an inspector has sent; returns the casualty where it has died.
    pub(crate) fn collect(
        &mut self,
        number: usize,
        now: Instant,
        outcomes: &mut Vec<Outcome>,
    ) -> Option<Casualty> {
        let slot = &mut self.slots[number];
        let channel = slot.channel.as_mut()?;
        let filled = channel.fill(false);
        loop {
            match channel.next() {
                Ok(Some(FromInspector::Facts(answers))) => {
                    for mut facts in answers {
                        // An answer to what was not asked says nothing about the evidence, and wins
                        // no time.
                        if let Some(pending) = slot.pending.remove(&facts.seq) {
                            slot.active = now;
                            slot.bytes = slot.bytes.saturating_sub(pending.job.size);
                            slot.text = slot.text.saturating_sub(job_text(&pending.job));
                            facts.bound();
                            outcomes.push(Outcome::Answered(pending, Box::new(facts)));
                        }
                    }
                }
                Ok(None) => break,
                Err(error) => return Some(self.bury(number, GapKind::Crashed, error.to_string())),
            }
        }
        match filled {
            Ok(Filled::Closed) => {
                Some(self.bury(number, GapKind::Crashed, "the inspector ended".to_owned()))
            }
            Err(error) => Some(self.bury(number, GapKind::Crashed, error.to_string())),
            Ok(_) => None,
        }
    }

    /// Finds those who are over their time.
    pub(crate) fn overdue(&mut self, now: Instant) -> Vec<Casualty> {
        let mut casualties = Vec::new();
        for number in 0..self.slots.len() {
            if let Some(limit) = self.over_limit(number, now) {
                let reason = format!("not done after {:.1} s", limit.as_secs_f64());
                casualties.push(self.bury(number, GapKind::Timeout, reason));
            }
        }
        casualties
    }

    /// The limit that an inspector is over: that of the file in hand, by the marker; or, should the
    /// marker lie, that of everything it was given.
    fn over_limit(&mut self, number: usize, now: Instant) -> Option<Duration> {
        let slot = &mut self.slots[number];
        let (Some(marker), Some(_)) = (&slot.marker, &slot.channel) else { return None };
        if slot.pending.is_empty() {
            return None;
        }
        let current = read_marker(marker.as_fd());
        if current != slot.seen.0 {
            slot.seen = (current, now);
        }
        let in_hand = current.and_then(|seq| slot.pending.get(&seq));
        let limit = in_hand.map_or_else(
            || self.limits.time_for(0, 0),
            |pending| time_for(&self.limits, &pending.job),
        );
        let since = slot.seen.1.max(slot.active.min(now));
        if in_hand.is_some() && now.duration_since(slot.seen.1) > limit {
            return Some(limit);
        }
        if in_hand.is_none() && now.duration_since(since) > limit {
            return Some(limit);
        }
        let all = slot.pending.values().map(|pending| time_for(&self.limits, &pending.job));
        let all = all.fold(Duration::ZERO, Duration::saturating_add);
        (now.duration_since(slot.active) > all).then_some(all)
    }

    /// Takes a dead or condemned inspector's files from it: one is the culprit, the others are tried
    /// again alone.
    fn bury(&mut self, number: usize, kind: GapKind, reason: String) -> Casualty {
        let slot = &mut self.slots[number];
        let in_hand = slot.marker.as_ref().and_then(|marker| read_marker(marker.as_fd()));
        let mut pending = std::mem::take(&mut slot.pending);
        let culprit = in_hand.and_then(|seq| pending.remove(&seq)).or_else(|| {
            // Without a marker it may have died of anything: a file is blamed at the second death.
            let only = pending.len() == 1 && pending.values().all(|pending| pending.tried);
            only.then(|| pending.pop_first().map(|(_, pending)| pending)).flatten()
        });
        slot.culprit = culprit.map(|culprit| (culprit, kind, reason.clone()));
        slot.channel = None;
        slot.marker = None;
        slot.bytes = 0;
        slot.text = 0;
        self.again.extend(pending.into_values().map(|pending| Pending { tried: true, ..pending }));
        let generation = slot.generation;
        Casualty { slot: u32::try_from(number).unwrap_or(u32::MAX), generation, reason }
    }
}

fn job_text(job: &Job) -> usize {
    JOB_TEXT + job.path.len() + job.owner.len()
}

fn time_for(limits: &Limits, job: &Job) -> Duration {
    limits.time_for(job.size, job.allocated)
}

fn announce(channel: &mut Channel, backing: Option<&(OwnedFd, u64)>) -> Result<(), ProtocolError> {
    match backing {
        Some((image, size)) => {
            channel.send(&ToInspector::Volume { backing: Some(*size) }, &[image.as_fd()])
        }
        None => channel.send(&ToInspector::Volume { backing: None }, &[]),
    }
}
