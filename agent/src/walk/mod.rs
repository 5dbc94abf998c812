//! The walker: a view in, records out.
//!
//! Purpose: walk a view, hand files to inspectors, judge what they found, and tell the supervisor.
//! Touches the view by the descriptors it is given, its sockets, and nothing else. Never parses the
//! content of a file (the volume's passwd excepted), never writes.

mod crew;
mod entry;
mod links;
mod tree;
mod verdict;

use std::{
    fs::File,
    os::fd::{AsFd as _, OwnedFd},
    os::unix::net::UnixStream,
    time::{Duration, Instant},
};

use cleanroom_contract::{EntryKind, GapKind};
use globset::{GlobBuilder, GlobSet, GlobSetBuilder};
use nix::poll::{PollFd, PollFlags, PollTimeout};

use crate::{
    indicators::{Indicators, Loaded},
    protocol::{
        Channel, Counters, Facts, Filled, FromWalker, Job, Limits, Line, ProtocolError, ToWalker,
        WalkOrder,
    },
    supervise::error_chain,
    walk::{
        crew::{Casualty, Crew, Outcome, Pending},
        entry::Owners,
        links::{Choice, Links, Twin},
        tree::{Entry, NotEntered, Opened, Step, Tree},
        verdict::Judge,
    },
};
pub(crate) use verdict::{finding_line, gap, gap_line};

/// Files that wait for an inspector, largest first. More would hold more descriptors and gain nothing.
const LOOK_AHEAD: usize = 512;
/// Steps of the walk between two looks at the sockets.
const STEPS: usize = 64;
/// Records are sent when their text is longer than this.
const SEND: usize = 128 << 10;
/// How often times are looked at and progress is told.
const TICK: Duration = Duration::from_millis(100);
/// How long files in flight may go on after a stop.
const GRACE: Duration = Duration::from_secs(2);

/// What can end the walker.
#[derive(Debug, thiserror::Error)]
pub(crate) enum WalkError {
    #[error(transparent)]
    Protocol(#[from] ProtocolError),
    #[error("wait for the inspectors")]
    Poll(#[from] nix::Error),
    #[error("unexpected message before the configuration")]
    Order,
    #[error("exclusion pattern {pattern:?}")]
    Glob { pattern: String, source: globset::Error },
}

/// Serves the supervisor until it closes the channel.
pub(crate) fn run(mut channel: Channel) -> Result<(), WalkError> {
    let Some(ToWalker::Configure { limits, excludes, slots, reuse_links }) = channel.receive()?
    else {
        return Err(WalkError::Order);
    };
    let Some(indicators) = load_indicators(&mut channel)? else { return Ok(()) };
    let mut walker = Walker {
        crew: Crew::new(slots, limits.clone(), now()),
        judge: Judge::new(indicators),
        excludes: globs(&excludes)?,
        exclude_texts: excludes,
        reuse_links,
        limits,
        channel,
        lines: Vec::new(),
        lines_bytes: 0,
        stopping: None,
    };
    loop {
        let Some(message) = walker.channel.receive()? else { return Ok(()) };
        if let Some(order) = walker.take(message)? {
            let root = walker.channel.descriptor()?;
            let backing = match order.backing {
                Some(size) => Some((walker.channel.descriptor()?, size)),
                None => None,
            };
            walker.walk(&order, root, backing)?;
        }
    }
}

/// The clock that limits are measured with.
fn now() -> Instant {
    Instant::now()
}

/// Reads the lists and answers; `None` where the supervisor has gone.
fn load_indicators(channel: &mut Channel) -> Result<Option<Indicators>, WalkError> {
    let mut lists = Vec::new();
    loop {
        match channel.receive()? {
            None => return Ok(None),
            Some(ToWalker::Indicators { name }) => {
                lists.push((name, File::from(channel.descriptor()?)));
            }
            Some(ToWalker::IndicatorsEnd) => break,
            Some(_) => return Err(WalkError::Order),
        }
    }
    let (answer, indicators) = match Indicators::load(lists) {
        Ok(Loaded { indicators, files, faults }) => {
            let (md5, sha1) = (indicators.needs_md5(), indicators.needs_sha1());
            let faults = faults.iter().map(|fault| error_chain(fault)).collect();
            (FromWalker::Indicators { loaded: Ok(files), faults, md5, sha1 }, Some(indicators))
        }
        Err(error) => {
            let loaded = Err(error_chain(&error));
            (FromWalker::Indicators { loaded, faults: Vec::new(), md5: false, sha1: false }, None)
        }
    };
    channel.send(&answer, &[])?;
    Ok(indicators)
}

/// Compiles exclusion patterns; `*` crosses slashes, so `*.iso` means every one of them.
pub(crate) fn globs(patterns: &[String]) -> Result<GlobSet, WalkError> {
    let mut set = GlobSetBuilder::new();
    for pattern in patterns {
        let glob = GlobBuilder::new(pattern)
            .literal_separator(false)
            .build()
            .map_err(|source| WalkError::Glob { pattern: pattern.clone(), source })?;
        set.add(glob);
    }
    set.build().map_err(|source| WalkError::Glob { pattern: patterns.join(" "), source })
}

struct Walker {
    channel: Channel,
    crew: Crew,
    judge: Judge,
    limits: Limits,
    excludes: GlobSet,
    exclude_texts: Vec<String>,
    /// No rule asks for a file's name: one reading serves all names of an inode.
    reuse_links: bool,
    lines: Vec<Line>,
    lines_bytes: usize,
    /// Since when a stop is asked for.
    stopping: Option<Instant>,
}

/// The state of one volume's walk.
struct Volume<'o> {
    order: &'o WalkOrder,
    tree: Tree,
    owners: Owners,
    links: Links,
    counters: Counters,
    next_seq: u64,
    /// Entries that each exclusion pattern kept out.
    excluded: Vec<u64>,
    /// The walk has come to its end, or was ended.
    walked: bool,
    /// A stop has kept something from being examined.
    stopped: bool,
    /// Files that were found, and not read because of it.
    unread: u64,
    complete: bool,
    next_tick: Instant,
}

impl Walker {
    /// Acts on a message; gives back an order to walk.
    fn take(&mut self, message: ToWalker) -> Result<Option<WalkOrder>, WalkError> {
        match message {
            ToWalker::Walk(order) => return Ok(Some(order)),
            ToWalker::Stop => {
                self.stopping.get_or_insert_with(now);
            }
            ToWalker::Inspector { slot, generation, ended } => {
                let socket = UnixStream::from(self.channel.descriptor()?);
                let marker = self.channel.descriptor()?;
                let inspector = (Channel::new(socket, "inspector").impatient(), marker);
                if let Some(outcome) = self.crew.install((slot, generation), inspector, ended) {
                    self.judge.late.push(outcome);
                }
            }
            ToWalker::Configure { .. } | ToWalker::Indicators { .. } | ToWalker::IndicatorsEnd => {
                return Err(WalkError::Order);
            }
        }
        Ok(None)
    }

    /// Walks one volume to its end.
    fn walk(
        &mut self,
        order: &WalkOrder,
        root: OwnedFd,
        backing: Option<(OwnedFd, u64)>,
    ) -> Result<(), WalkError> {
        let protect = order.protect_access_times;
        let owners = Owners::read(root.as_fd(), protect);
        self.crew.begin_volume(backing);
        let mut volume = Volume {
            order,
            tree: Tree::new(root, self.limits.depth, protect),
            owners,
            links: Links::default(),
            counters: Counters::default(),
            next_seq: 0,
            excluded: vec![0; self.exclude_texts.len()],
            walked: self.stopping.is_some(),
            stopped: self.stopping.is_some(),
            unread: 0,
            complete: self.stopping.is_none(),
            next_tick: now(),
        };
        while !(volume.walked && self.crew.is_idle() && self.judge.late.is_empty()) {
            let mut steps = 0;
            while !volume.walked && steps < STEPS && self.crew.waiting() < LOOK_AHEAD {
                self.step(&mut volume)?;
                steps += 1;
            }
            if self.stopping.is_none() {
                let casualties = self.crew.dispatch(now());
                self.replace(casualties)?;
            }
            self.listen(&mut volume, steps > 0)?;
            self.tick(&mut volume)?;
        }
        // What was only listed has had no inspector to notice.
        if volume.complete && self.crew.backing_shrank() {
            self.backing_shrank(&mut volume);
        }
        self.close(&mut volume);
        self.send_lines(true)?;
        let (complete, counters) = (volume.complete, volume.counters);
        // The view must be free before the supervisor goes on: a file system with the same UUID may be
        // the next to be mounted.
        drop(volume);
        Ok(self.channel.send(&FromWalker::Walked { complete, counters }, &[])?)
    }

    /// One step of the tree.
    fn step(&mut self, volume: &mut Volume<'_>) -> Result<(), WalkError> {
        match volume.tree.next() {
            Ok(Some(Step::Entry(entry))) => self.enter(volume, *entry),
            Ok(Some(Step::NotEntered { path, why })) => self.not_entered(volume, &path, &why),
            Ok(None) => volume.walked = true,
            Err(errno) => {
                volume.walked = true;
                volume.complete = false;
                let reason = format!("open the root of the view: {}", std::io::Error::from(errno));
                let gap = verdict::gap(GapKind::Unreadable, &volume.order.volume, None, reason);
                self.emit(vec![verdict::gap_line(&gap, volume.next_seq, 0)]);
            }
        }
        self.send_lines(false)
    }

    /// Records an entry, or hands it to the inspectors.
    fn enter(&mut self, volume: &mut Volume<'_>, entry: Entry) {
        let seq = volume.next_seq;
        volume.next_seq += 1;
        volume.counters.entries += 1;
        let record = Box::new(entry::record(&entry, seq, &volume.order.volume));
        let excluded = self.excluded_by(volume, &entry.path);
        if record.kind == EntryKind::File {
            volume.counters.files += 1;
        }
        if excluded {
            if record.kind == EntryKind::Dir {
                volume.tree.do_not_enter(&entry.path);
            }
            let lines = self.judge.unread(record, Vec::new());
            return self.emit(lines);
        }
        let too_large = self.limits.max_file_size.filter(|limit| record.size > *limit);
        let lines = match (record.kind, entry.opened, too_large) {
            (EntryKind::File, Opened::Open(file), None) => {
                let device =
                    u64::from(entry.stat.stx_dev_major) << 32 | u64::from(entry.stat.stx_dev_minor);
                let twin = Twin { record, path: entry.path };
                let choice = if self.reuse_links {
                    volume.links.choose((device, entry.stat.stx_ino), twin)
                } else {
                    Choice::Read(twin, None)
                };
                let (Twin { record, path }, inode) = match choice {
                    Choice::Read(twin, inode) => (twin, inode),
                    Choice::Waits => return,
                    Choice::Known(twin, facts) => return self.answer(volume, twin, *facts),
                };
                let job = Job {
                    seq,
                    size: record.size,
                    allocated: record.allocated,
                    mtime: record.mtime,
                    ctime: record.ctime,
                    owner: volume.owners.name(record.uid),
                    path,
                };
                let pending = Pending { job, file, record, inode, tried: false };
                return self.crew.submit(pending);
            }
            (EntryKind::File, Opened::Open(_), Some(limit)) => self.judge.too_large(record, limit),
            (_, Opened::Failed(errno), _) => self.judge.unreadable(record, &errno.into()),
            (_, Opened::MountPoint, _) => self.judge.mount_point(record),
            _ => self.judge.unread(record, Vec::new()),
        };
        self.emit(lines);
    }

    fn excluded_by(&self, volume: &mut Volume<'_>, path: &[u8]) -> bool {
        if self.exclude_texts.is_empty() {
            return false;
        }
        use std::os::unix::ffi::OsStrExt as _;
        let hit = self.excludes.matches(std::ffi::OsStr::from_bytes(path)).first().copied();
        if let Some(count) = hit.and_then(|index| volume.excluded.get_mut(index)) {
            *count += 1;
        }
        hit.is_some()
    }

    fn not_entered(&mut self, volume: &mut Volume<'_>, path: &[u8], why: &NotEntered) {
        let seq = volume.next_seq;
        volume.next_seq += 1;
        let lines = self.judge.not_entered(&volume.order.volume, path, why, seq);
        self.emit(lines);
    }

    /// Takes in what the inspectors and the supervisor have sent; waits for it where there is nothing
    /// else to do.
    fn listen(&mut self, volume: &mut Volume<'_>, busy: bool) -> Result<(), WalkError> {
        let could_walk = !volume.walked && self.crew.waiting() < LOOK_AHEAD;
        let done = volume.walked && self.crew.is_idle() && self.judge.late.is_empty();
        let wait = if busy && could_walk || done { Duration::ZERO } else { TICK };
        let wait = PollTimeout::try_from(wait).unwrap_or(PollTimeout::ZERO);
        if wait != PollTimeout::ZERO {
            self.send_lines(true)?;
        }
        let mut numbers = Vec::new();
        let mut sockets = vec![PollFd::new(self.channel.as_fd(), PollFlags::POLLIN)];
        for (number, socket) in self.crew.sockets() {
            numbers.push(number);
            sockets.push(PollFd::new(socket, PollFlags::POLLIN));
        }
        match nix::poll::poll(&mut sockets, wait) {
            Ok(_) | Err(nix::Error::EINTR) => {}
            Err(error) => return Err(error.into()),
        }
        let ready: Vec<bool> = sockets.iter().map(|fd| fd.any().unwrap_or(false)).collect();
        let mut outcomes = Vec::new();
        for (number, _) in numbers.into_iter().zip(&ready[1..]).filter(|(_, ready)| **ready) {
            let casualty = self.crew.collect(number, now(), &mut outcomes);
            self.replace(casualty)?;
        }
        if ready[0] {
            if self.channel.fill(false)? == Filled::Closed {
                return Err(ProtocolError::Ended { peer: "supervisor" }.into());
            }
            while let Some(message) = self.channel.next()? {
                if self.take(message)?.is_some() {
                    return Err(WalkError::Order);
                }
            }
        }
        outcomes.append(&mut self.judge.late);
        for outcome in outcomes {
            self.conclude(volume, outcome);
        }
        self.send_lines(false)
    }

    /// Turns what came of a file into records.
    fn conclude(&mut self, volume: &mut Volume<'_>, outcome: Outcome) {
        match outcome {
            Outcome::Answered(pending, facts) => {
                if facts.backing_shrank {
                    self.backing_shrank(volume);
                }
                let twins = pending.inode.map(|inode| volume.links.learn(inode, &facts));
                for twin in twins.into_iter().flatten() {
                    let facts = Facts { seq: twin.record.seq, read: 0, ..(*facts).clone() };
                    self.answer(volume, twin, facts);
                }
                let twin = Twin { record: pending.record, path: pending.job.path };
                self.answer(volume, twin, *facts);
            }
            Outcome::Lost { pending, kind, reason } => {
                let twins = pending.inode.map(|inode| volume.links.forget(inode));
                let twin = Twin { record: pending.record, path: pending.job.path };
                for twin in std::iter::once(twin).chain(twins.into_iter().flatten()) {
                    let lines = self.judge.lost(twin, kind, &reason);
                    self.emit(lines);
                }
            }
        }
    }

    /// Records a file about which everything is known.
    fn answer(&mut self, volume: &mut Volume<'_>, twin: Twin, facts: Facts) {
        volume.counters.bytes += facts.read;
        volume.counters.files_examined += u64::from(facts.troubles.is_empty());
        let lines = self.judge.answered(twin, facts);
        self.emit(lines);
    }

    /// What is due now and then: time limits, progress, and the end after a stop.
    fn tick(&mut self, volume: &mut Volume<'_>) -> Result<(), WalkError> {
        let now = now();
        if let Some(since) = self.stopping
            && !(volume.walked && self.crew.is_idle())
        {
            volume.walked = true;
            volume.stopped = true;
            volume.complete = false;
            let mut left = self.crew.abandon();
            if now.duration_since(since) > GRACE {
                left.extend(self.crew.abandon_in_flight());
            }
            volume.unread += self.drop_unread(volume, left);
        }
        if now < volume.next_tick {
            return Ok(());
        }
        volume.next_tick = now + TICK;
        let casualties = self.crew.overdue(now);
        self.replace(casualties)?;
        Ok(self.channel.send(&FromWalker::Counters(volume.counters), &[])?)
    }

    /// Records files that a stop has kept from being read; how many.
    fn drop_unread(&mut self, volume: &mut Volume<'_>, left: Vec<Pending>) -> u64 {
        let mut count = 0;
        for pending in left {
            let twins = pending.inode.map(|inode| volume.links.forget(inode));
            let twins = twins.into_iter().flatten().map(|twin| twin.record);
            for record in std::iter::once(pending.record).chain(twins) {
                count += 1;
                let lines = self.judge.unread(record, Vec::new());
                self.emit(lines);
            }
        }
        count
    }

    /// Ends the walk of an image that has lost bytes: what is read from now on may be anything.
    fn backing_shrank(&mut self, volume: &mut Volume<'_>) {
        volume.walked = true;
        let left = self.crew.abandon();
        // Every file in flight tells it once more.
        if std::mem::take(&mut volume.complete) {
            let waiting = left.len();
            let reason = format!(
                "the image lost bytes during the scan: {waiting} files that were found were not read, \
                 and an unknown number of entries was not reached"
            );
            let mut gap = verdict::gap(GapKind::Evidence, &volume.order.volume, None, reason);
            gap.advice = Some("find out what changes the image, and scan a whole copy".to_owned());
            self.emit(vec![verdict::gap_line(&gap, u64::MAX, 500)]);
        }
        self.drop_unread(volume, left);
    }

    /// Asks for new inspectors.
    fn replace(&mut self, dead: impl IntoIterator<Item = Casualty>) -> Result<(), WalkError> {
        for Casualty { slot, generation, reason } in dead {
            self.channel.send(&FromWalker::Replace { slot, generation, reason }, &[])?;
        }
        Ok(())
    }

    /// The gaps that concern the volume as a whole.
    fn close(&mut self, volume: &mut Volume<'_>) {
        let name = &volume.order.volume;
        let mut gaps = Vec::new();
        if volume.stopped {
            let reason = format!(
                "the scan was interrupted: {} files that were found were not read, and an unknown \
                 number of entries was not reached",
                volume.unread
            );
            gaps.push(verdict::counted(GapKind::Interrupted, name, reason, volume.unread.max(1)));
        }
        for (pattern, count) in self.exclude_texts.iter().zip(&volume.excluded) {
            if *count > 0 {
                let reason = format!("--exclude {pattern} kept {count} entries from being read");
                gaps.push(verdict::counted(GapKind::Excluded, name, reason, *count));
            }
        }
        let risk = volume.tree.access_times_at_risk;
        if risk > 0 {
            let reason = format!(
                "{risk} entries belong to others: reading them may have moved their access times"
            );
            let mut gap = verdict::counted(GapKind::AccessTimes, name, reason, risk);
            gap.advice = Some("scan as root, or scan a disk image".to_owned());
            gaps.push(gap);
        }
        let moved = volume.tree.link_times_moved;
        if moved > 0 {
            let reason =
                format!("the access times of {moved} links moved as their targets were read");
            let mut gap = verdict::counted(GapKind::AccessTimes, name, reason, moved);
            gap.advice = Some("scan as root, or scan a disk image".to_owned());
            gaps.push(gap);
        }
        for (sub, gap) in (1..).zip(&gaps) {
            self.emit(vec![verdict::gap_line(gap, u64::MAX, sub)]);
        }
    }

    fn emit(&mut self, lines: Vec<Line>) {
        self.lines_bytes += lines.iter().map(|line| line.json.len()).sum::<usize>();
        self.lines.extend(lines);
    }

    /// Sends the gathered records, where there are enough or `all` are asked for.
    fn send_lines(&mut self, all: bool) -> Result<(), WalkError> {
        if self.lines.is_empty() || !all && self.lines_bytes < SEND {
            return Ok(());
        }
        let mut batch = Vec::new();
        let mut bytes = 0;
        for line in std::mem::take(&mut self.lines) {
            bytes += line.json.len();
            batch.push(line);
            // A frame holds at least one record of the largest size beside these.
            if bytes > SEND {
                self.channel.send(&FromWalker::Lines(std::mem::take(&mut batch)), &[])?;
                bytes = 0;
            }
        }
        self.lines_bytes = 0;
        if !batch.is_empty() {
            self.channel.send(&FromWalker::Lines(batch), &[])?;
        }
        Ok(())
    }
}
