//! The supervisor: privilege, processes and the spool.
//!
//! Purpose: start the roles, mount what the probe found, hand views to the walker, replace inspectors
//! that die, write every record down, and see to it that all of this ends. Touches processes, mounts
//! and the spool. Never parses a byte of evidence: the probe and the inspectors do, and may die of it.

pub(crate) mod role;
pub(crate) mod zygote;

use std::{
    fs::File,
    io,
    os::{
        fd::{AsFd, BorrowedFd, OwnedFd},
        unix::net::UnixStream,
    },
    time::Duration,
};

use cleanroom_contract::{Gap, GapKind, RuleFile, Severity, SeverityCounts, VersionOne};
use rustix::fs::MemfdFlags;

use crate::{
    bundle::spool::Spool,
    evidence::{probe::Layout, scratch::Scratch, view::View},
    protocol::{
        Counters, FromWalker, FromZygote, Limits, Line, LineKind, Measures, ProbeAnswer,
        ProtocolError, ToWalker, ToZygote, WalkOrder,
    },
};
use role::{Peer, Role};
pub(crate) use zygote::error_chain;

/// A walker that says nothing for this long is given up: it tells its progress ten times a second.
const WALKER_SILENCE: Duration = Duration::from_secs(300);
/// The time a probe gets: it reads 64 MiB at the most.
const PROBE_TIME: Duration = Duration::from_secs(60);
/// The time that the zygote gets to load the rules, and the walker to load the lists.
const RULES_TIME: Duration = Duration::from_secs(120);
/// Zygotes that may die in one run.
const ZYGOTES: u32 = 5;

/// What can end a run.
#[derive(Debug, thiserror::Error)]
pub(crate) enum SuperviseError {
    #[error("start the {role}")]
    Start { role: &'static str, source: io::Error },
    #[error(transparent)]
    Protocol(#[from] ProtocolError),
    #[error("load the compiled rules: {reason}")]
    Rules { reason: String },
    #[error("{reason}")]
    Indicators { reason: String },
    #[error("write the records down")]
    Spool(#[source] io::Error),
    #[error("the {role} ended {times} times")]
    KeepsEnding { role: &'static str, times: u32 },
    #[error("the {role} did not answer in {seconds} s")]
    Silent { role: &'static str, seconds: u64 },
}

/// What a run needs to know.
#[derive(Debug)]
pub(crate) struct Setup {
    pub limits: Limits,
    pub measures: Measures,
    pub excludes: Vec<String>,
    pub inspectors: u32,
    /// No rule asks for a file's name.
    pub reuse_links: bool,
    /// The compiled pack.
    pub rules: Option<File>,
    /// Indicator lists with their names.
    pub indicators: Vec<(String, File)>,
    /// A broken list costs itself only, and not the run.
    pub spares_lists: bool,
    /// Where dirty journals are replayed into; absent where what is stored is to be seen.
    pub replay: Option<Scratch>,
}

/// How the walk of a volume ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Walked {
    Complete,
    Incomplete,
}

/// Running totals over all volumes.
#[derive(Clone, Debug, Default)]
pub(crate) struct Totals {
    /// Of the volumes that are done.
    pub done: Counters,
    /// Of the volume in hand.
    pub current: Counters,
    pub findings: SeverityCounts,
    pub gaps: std::collections::BTreeMap<GapKind, u64>,
}

impl Totals {
    /// Everything together.
    pub(crate) fn sum(&self) -> Counters {
        let (a, b) = (self.done, self.current);
        Counters {
            entries: a.entries + b.entries,
            files: a.files + b.files,
            files_examined: a.files_examined + b.files_examined,
            bytes: a.bytes + b.bytes,
        }
    }
}

/// What a run shows to whoever watches it.
#[derive(Debug)]
pub(crate) enum Sight<'s> {
    /// The totals, a few times a second.
    Totals(&'s Totals),
    /// A finding, as a JSON line, when it is made.
    Finding(Severity, &'s [u8]),
}

/// Watches a run, and never holds it up.
pub(crate) type Watch<'w> = dyn FnMut(Sight<'_>) + 'w;

/// Signals that ask the run to end.
#[derive(Debug)]
pub(crate) struct Signals {
    interrupt: tokio::signal::unix::Signal,
    terminate: tokio::signal::unix::Signal,
    hangup: tokio::signal::unix::Signal,
    /// How many have come.
    pub received: u32,
}

impl Signals {
    /// Takes the signals from now on. Must be called within the runtime.
    pub(crate) fn take() -> io::Result<Self> {
        use tokio::signal::unix::{SignalKind, signal};
        Ok(Self {
            interrupt: signal(SignalKind::interrupt())?,
            terminate: signal(SignalKind::terminate())?,
            hangup: signal(SignalKind::hangup())?,
            received: 0,
        })
    }

    /// Waits for the next one.
    pub(crate) async fn next(&mut self) {
        tokio::select! {
            _ = self.interrupt.recv() => {}
            _ = self.terminate.recv() => {}
            _ = self.hangup.recv() => {}
        }
        self.received += 1;
    }
}

/// What runs in an inspector's place.
#[derive(Debug, Default)]
struct Slot {
    generation: u32,
    pid: Option<i32>,
    /// How the last one ended, until its successor is told.
    ended: Option<String>,
    /// The walker waits for a successor.
    wanted: bool,
}

/// Something that happened.
enum Event {
    Walker(Result<Option<FromWalker>, ProtocolError>),
    Zygote(Result<Option<FromZygote>, ProtocolError>),
    Signal,
    Silence,
}

/// A run.
pub(crate) struct Supervisor<'w> {
    setup: Setup,
    zygote: Peer,
    walker: Peer,
    slots: Vec<Slot>,
    zygotes_lost: u32,
    spool: Spool,
    /// The volume whose records arrive.
    volume: u32,
    pub(crate) totals: Totals,
    pub(crate) signals: &'w mut Signals,
    watch: Box<Watch<'w>>,
    /// The lists as the walker loaded them.
    pub(crate) indicators: Vec<RuleFile>,
    /// What is wrong with those that it did not.
    pub(crate) list_faults: Vec<String>,
}

impl std::fmt::Debug for Supervisor<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Supervisor").field("setup", &self.setup).finish_non_exhaustive()
    }
}

impl<'w> Supervisor<'w> {
    /// Starts the roles.
    pub(crate) async fn start(
        mut setup: Setup,
        spool: Spool,
        signals: &'w mut Signals,
        watch: Box<Watch<'w>>,
    ) -> Result<Self, SuperviseError> {
        let (walker, indicators, list_faults) = start_walker(&mut setup).await?;
        let zygote = start_zygote(&setup).await?;
        let slots = (0..setup.inspectors).map(|_| Slot::default()).collect();
        let mut supervisor = Self {
            setup,
            zygote,
            walker,
            slots,
            zygotes_lost: 0,
            spool,
            volume: 0,
            totals: Totals::default(),
            signals,
            watch,
            indicators,
            list_faults,
        };
        supervisor.staff()?;
        Ok(supervisor)
    }

    /// Forks an inspector for every slot.
    fn staff(&mut self) -> Result<(), SuperviseError> {
        for slot in 0..self.setup.inspectors {
            self.hire(slot, None)?;
        }
        Ok(())
    }

    /// Forks an inspector for a slot and tells the walker.
    fn hire(&mut self, slot: u32, ended: Option<String>) -> Result<(), SuperviseError> {
        let start = |source| SuperviseError::Start { role: "inspector", source };
        let (walkers, inspectors) = UnixStream::pair().map_err(start)?;
        let marker = rustix::fs::memfd_create("marker", MemfdFlags::CLOEXEC)
            .map_err(|errno| start(errno.into()))?;
        let channel = self.zygote.channel();
        told(channel.send(&ToZygote::Fork { slot }, &[inspectors.as_fd(), marker.as_fd()]))?;
        let generation = self.slots.get_mut(slot as usize).map_or(0, |state| {
            state.generation += 1;
            state.ended = None;
            state.wanted = false;
            state.generation
        });
        let message = ToWalker::Inspector { slot, generation, ended };
        Ok(told(self.walker.channel().send(&message, &[walkers.as_fd(), marker.as_fd()]))?)
    }

    /// Asks a probe what lies in the evidence.
    pub(crate) async fn probe(&mut self, evidence: BorrowedFd<'_>) -> Result<Layout, String> {
        let mut probe = Peer::start(Role::Probe).map_err(|error| format!("start: {error}"))?;
        let answer = async {
            probe.channel().send(&(), &[evidence]).map_err(|error| error_chain(&error))?;
            match probe.receive::<ProbeAnswer>().await {
                Ok(Some(answer)) => answer,
                Ok(None) => Err("it died on this evidence".to_owned()),
                Err(error) => Err(error_chain(&error)),
            }
        };
        let answer = tokio::select! {
            answer = tokio::time::timeout(PROBE_TIME, answer) => {
                answer.unwrap_or_else(|_| Err(format!("no answer in {} s", PROBE_TIME.as_secs())))
            }
            () = self.signals.next() => Err("interrupted".to_owned()),
        };
        probe.end().await;
        answer
    }

    /// Walks a view to its end, or as far as it goes.
    pub(crate) async fn walk(
        &mut self,
        order: WalkOrder,
        view: &View,
        backing: Option<&OwnedFd>,
    ) -> Result<Walked, SuperviseError> {
        self.volume = order.ordinal;
        let name = order.volume.clone();
        let mut descriptors = vec![view.root.as_fd()];
        descriptors.extend(backing.map(AsFd::as_fd));
        told(self.walker.channel().send(&ToWalker::Walk(order), &descriptors))?;
        if self.signals.received > 0 {
            told(self.walker.channel().send(&ToWalker::Stop, &[]))?;
        }
        let walked = self.until_walked(&name).await;
        let counters = std::mem::take(&mut self.totals.current);
        self.totals.current = Counters::default();
        self.totals.done = Totals { current: counters, ..self.totals.clone() }.sum();
        self.spool.flush().map_err(SuperviseError::Spool)?;
        walked
    }

    async fn until_walked(&mut self, volume: &str) -> Result<Walked, SuperviseError> {
        loop {
            let event = tokio::select! {
                message = self.walker.receive() => Event::Walker(message),
                message = self.zygote.receive() => Event::Zygote(message),
                () = self.signals.next() => Event::Signal,
                () = tokio::time::sleep(WALKER_SILENCE) => Event::Silence,
            };
            match event {
                Event::Walker(Ok(Some(FromWalker::Walked { complete, counters }))) => {
                    self.totals.current = counters;
                    return Ok(if complete { Walked::Complete } else { Walked::Incomplete });
                }
                Event::Walker(Ok(Some(message))) => self.heed_walker(message)?,
                Event::Walker(Ok(None)) => return self.walker_lost(volume, "it died").await,
                Event::Walker(Err(error)) => {
                    return self.walker_lost(volume, &error_chain(&error)).await;
                }
                Event::Silence => return self.walker_lost(volume, "it fell silent").await,
                Event::Zygote(Ok(Some(message))) => self.heed_zygote(message)?,
                Event::Zygote(Ok(None) | Err(_)) => self.zygote_lost().await?,
                Event::Signal if self.signals.received == 1 => {
                    told(self.walker.channel().send(&ToWalker::Stop, &[]))?;
                }
                Event::Signal => return self.walker_lost(volume, "interrupted twice").await,
            }
        }
    }

    fn heed_walker(&mut self, message: FromWalker) -> Result<(), SuperviseError> {
        match message {
            FromWalker::Lines(lines) => lines.iter().try_for_each(|line| self.write(line)),
            FromWalker::Counters(counters) => {
                self.totals.current = counters;
                (self.watch)(Sight::Totals(&self.totals));
                // A run that is killed has on disk what was known a moment ago.
                self.spool.flush().map_err(SuperviseError::Spool)
            }
            FromWalker::Replace { slot, generation, .. } => {
                let Some(state) = self.slots.get_mut(slot as usize) else { return Ok(()) };
                if state.generation != generation {
                    return Ok(());
                }
                match state.ended.take() {
                    Some(ended) => self.hire(slot, Some(ended)),
                    None => {
                        state.wanted = true;
                        Ok(told(self.zygote.channel().send(&ToZygote::Kill { slot }, &[]))?)
                    }
                }
            }
            FromWalker::Indicators { .. } | FromWalker::Walked { .. } => Ok(()),
        }
    }

    fn heed_zygote(&mut self, message: FromZygote) -> Result<(), SuperviseError> {
        match message {
            FromZygote::Forked { slot, pid } => {
                if let Some(state) = self.slots.get_mut(slot as usize) {
                    state.pid = Some(pid);
                    // What ended before it began was another.
                    state.ended = None;
                }
            }
            FromZygote::Exited { slot, pid, how } => {
                let Some(state) = self.slots.get_mut(slot as usize) else { return Ok(()) };
                // The end of one that has a successor already concerns nobody.
                if state.pid == Some(pid) {
                    state.pid = None;
                    if std::mem::take(&mut state.wanted) {
                        return self.hire(slot, Some(how));
                    }
                    state.ended = Some(how);
                }
            }
            FromZygote::Ready | FromZygote::Unable { .. } => {}
        }
        Ok(())
    }

    /// Writes a record down and counts it.
    fn write(&mut self, line: &Line) -> Result<(), SuperviseError> {
        match line.kind {
            LineKind::File => {}
            LineKind::Finding(severity) => {
                self.totals.findings.add(severity);
                (self.watch)(Sight::Finding(severity, &line.json));
            }
            LineKind::Gap(kind) => *self.totals.gaps.entry(kind).or_default() += 1,
        }
        self.spool.append(self.volume, line).map_err(SuperviseError::Spool)
    }

    /// Writes a record of our own, about the volume as a whole.
    pub(crate) fn write_own(&mut self, volume: u32, line: &Line) -> Result<(), SuperviseError> {
        self.volume = volume;
        self.write(line)
    }

    /// Starts the zygote again after it has died, with new inspectors for all.
    async fn zygote_lost(&mut self) -> Result<(), SuperviseError> {
        self.zygotes_lost += 1;
        if self.zygotes_lost > ZYGOTES {
            return Err(SuperviseError::KeepsEnding { role: "zygote", times: ZYGOTES });
        }
        let new = match start_zygote(&self.setup).await {
            Err(SuperviseError::Rules { reason }) => {
                self.go_on_without_rules(&reason)?;
                start_zygote(&self.setup).await?
            }
            started => started?,
        };
        std::mem::replace(&mut self.zygote, new).end().await;
        for slot in &mut self.slots {
            *slot = Slot { generation: slot.generation, ..Slot::default() };
        }
        self.staff()
    }

    /// Rules that loaded once and do not any more cost what they would have judged from here on.
    fn go_on_without_rules(&mut self, reason: &str) -> Result<(), SuperviseError> {
        self.setup.rules = None;
        let gap = Gap {
            v: VersionOne,
            kind: GapKind::Rules,
            volume: None,
            path: None,
            reason: format!(
                "the rules could not be loaded again: {reason}: files behind this were not judged by them"
            ),
            advice: Some("scan again".to_owned()),
            count: 1,
        };
        self.write(&crate::walk::gap_line(&gap, u64::MAX, u32::MAX))
    }

    /// Records that a volume was not walked to its end, and starts a new walker.
    async fn walker_lost(&mut self, volume: &str, how: &str) -> Result<Walked, SuperviseError> {
        let mut gap = crate::walk::gap(
            GapKind::Walker,
            volume,
            None,
            format!("the walker of this volume was lost: {how}"),
        );
        gap.advice = Some("scan this volume again by itself".to_owned());
        self.write(&crate::walk::gap_line(&gap, u64::MAX, u32::MAX))?;
        let (new, ..) = start_walker(&mut self.setup).await?;
        std::mem::replace(&mut self.walker, new).end().await;
        // Theirs served the lost walker, and may still be busy with its files.
        for slot in 0..self.setup.inspectors {
            told(self.zygote.channel().send(&ToZygote::Kill { slot }, &[]))?;
        }
        self.staff()?;
        Ok(Walked::Incomplete)
    }

    /// Ends every role and gives back the spool.
    pub(crate) async fn end(self) -> (Spool, Totals, Vec<RuleFile>) {
        self.walker.end().await;
        self.zygote.end().await;
        (self.spool, self.totals, self.indicators)
    }
}

/// A role that cannot be told has died. Receiving from it says so, and there the loss is dealt with.
fn told(sent: Result<(), ProtocolError>) -> Result<(), ProtocolError> {
    use io::ErrorKind::{BrokenPipe, ConnectionReset};
    match sent {
        Err(ProtocolError::Socket { source, .. })
            if matches!(source.kind(), BrokenPipe | ConnectionReset) =>
        {
            Ok(())
        }
        sent => sent,
    }
}

/// Starts a walker and gives it the lists: those that it loaded, and what is wrong with the others.
async fn start_walker(
    setup: &mut Setup,
) -> Result<(Peer, Vec<RuleFile>, Vec<String>), SuperviseError> {
    let start = |source| SuperviseError::Start { role: "walker", source };
    let mut walker = Peer::start(Role::Walker).map_err(start)?;
    let configure = ToWalker::Configure {
        limits: setup.limits.clone(),
        excludes: setup.excludes.clone(),
        slots: setup.inspectors,
        reuse_links: setup.reuse_links,
    };
    let channel = walker.channel();
    // Where it dies meanwhile, receiving from it says so.
    told(channel.send(&configure, &[]))?;
    for (name, file) in &setup.indicators {
        rustix::fs::seek(file, rustix::fs::SeekFrom::Start(0)).map_err(|e| start(e.into()))?;
        told(channel.send(&ToWalker::Indicators { name: name.clone() }, &[file.as_fd()]))?;
    }
    told(channel.send(&ToWalker::IndicatorsEnd, &[]))?;
    match tokio::time::timeout(RULES_TIME, walker.receive()).await {
        Ok(Ok(Some(FromWalker::Indicators { loaded: Ok(files), faults, md5, sha1 }))) => {
            if let Some(first) = faults.first().filter(|_| !setup.spares_lists) {
                return Err(SuperviseError::Indicators { reason: first.clone() });
            }
            setup.measures.md5 |= md5;
            setup.measures.sha1 |= sha1;
            Ok((walker, files, faults))
        }
        Ok(Ok(Some(FromWalker::Indicators { loaded: Err(reason), .. }))) => {
            Err(SuperviseError::Indicators { reason })
        }
        answer => {
            let error = no_answer("walker", answer.map(Result::err));
            // With lists to load they are what it died of, as far as can be told.
            Err(if setup.indicators.is_empty() {
                error
            } else {
                SuperviseError::Indicators { reason: format!("load the lists: {error}") }
            })
        }
    }
}

/// Why a role did not come to work.
fn no_answer(
    role: &'static str,
    answer: Result<Option<ProtocolError>, tokio::time::error::Elapsed>,
) -> SuperviseError {
    match answer {
        Ok(Some(error)) => error.into(),
        Ok(None) => ProtocolError::Ended { peer: role }.into(),
        Err(_) => SuperviseError::Silent { role, seconds: RULES_TIME.as_secs() },
    }
}

/// Starts a zygote and waits until it has loaded the rules.
async fn start_zygote(setup: &Setup) -> Result<Peer, SuperviseError> {
    let start = |source| SuperviseError::Start { role: "zygote", source };
    let mut zygote = Peer::start(Role::Zygote).map_err(start)?;
    let configure = ToZygote::Configure {
        limits: setup.limits.clone(),
        measures: setup.measures.clone(),
        rules: setup.rules.is_some(),
    };
    let mut descriptors = Vec::new();
    if let Some(rules) = &setup.rules {
        rustix::fs::seek(rules, rustix::fs::SeekFrom::Start(0)).map_err(|e| start(e.into()))?;
        descriptors.push(rules.as_fd());
    }
    told(zygote.channel().send(&configure, &descriptors))?;
    match tokio::time::timeout(RULES_TIME, zygote.receive()).await {
        Ok(Ok(Some(FromZygote::Ready))) => Ok(zygote),
        Ok(Ok(Some(FromZygote::Unable { reason }))) => Err(SuperviseError::Rules { reason }),
        answer => {
            let error = no_answer("zygote", answer.map(Result::err));
            // With rules to load they are what it died of, as far as can be told.
            Err(match &setup.rules {
                Some(_) => SuperviseError::Rules { reason: error_chain(&error) },
                None => error,
            })
        }
    }
}

/// The probe: reads the evidence it is sent, answers, ends.
pub(crate) fn probe_role(mut channel: crate::protocol::Channel) -> Result<(), ProtocolError> {
    if channel.receive::<()>()?.is_none() {
        return Ok(());
    }
    let evidence = File::from(channel.descriptor()?);
    let answer: ProbeAnswer = crate::evidence::probe::EvidenceFile::new(evidence)
        .and_then(|evidence| crate::evidence::probe::probe(&evidence))
        .map_err(|error| error.to_string());
    channel.send(&answer, &[])
}
