//! The one way into the fake cloud.
//!
//! Purpose: every call of every port passes [`FakeCloud::call`], which writes it down, takes its time and lets
//! it fail. Touches tokio's clock and nothing else of the outside; a paused clock makes it all deterministic.
//! The lock on the world is never held over an await.
//!
//! A call takes effect half a latency before its answer, so that dropping its future, as a time-out does,
//! leaves it done or not done, as in life. tokio's timer counts whole milliseconds.

use std::{
    collections::VecDeque,
    future::pending,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use cleanroom_cloud::{Change, Cloud, CloudError, ErrorKind, Result};
use cleanroom_contract::Timestamp;
use tokio::{
    sync::watch,
    time::{Instant, sleep},
};

use crate::{
    faults::{At, Fault, Faults, Storm},
    forensic::FORENSIC_CALLER,
    problem::{Answered, Problem},
    world::{OpenSpan, World, time_of_day},
};

/// The caller of [`FakeCloud::new`].
pub const CALLER: &str = "arn:aws:sts::123456789012:assumed-role/cleanroom-controller/ops";

/// How a call ended.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// Not yet, or its future was dropped.
    Open,
    /// Well.
    Done,
    /// With an error.
    Failed {
        /// Its kind.
        kind: ErrorKind,
        /// Its code.
        code: String,
    },
    /// The process died while it was out.
    Died,
    /// Never.
    Hung,
}

/// One call.
#[derive(Clone, Debug, PartialEq)]
pub struct CallRecord {
    /// Its place, from 1.
    pub n: u64,
    /// The operation, `ec2:CreateSnapshots`. Where the real adapter makes several, the first of them that
    /// gives the answer.
    pub operation: String,
    /// What it was about.
    pub resource: String,
    /// The change, where it came through [`Hands`](cleanroom_cloud::Hands).
    pub change: Option<Change>,
    /// Whether it changes something if it succeeds.
    pub mutates: bool,
    /// Whether it was to go ahead of others.
    pub first: bool,
    /// How many requests it takes one after another.
    pub links: u32,
    /// When it began, since the world did.
    pub started: Duration,
    /// When it took effect or was read; none where it was not.
    pub took_effect: Option<Duration>,
    /// When its caller had the answer.
    pub ended: Option<Duration>,
    /// Who called.
    pub caller: String,
    /// How it ended.
    pub outcome: Outcome,
}

impl CallRecord {
    /// What faults are matched against: the operation, the resource, and the change's name as its JSON has it.
    #[must_use]
    pub fn text(&self) -> String {
        let change = self.change.as_ref().and_then(|c| serde_json::to_value(c).ok());
        let name = change.as_ref().and_then(|c| c["change"].as_str()).unwrap_or_default();
        format!("{} {} {name}", self.operation, self.resource)
    }
}

/// A call to make.
#[derive(Debug)]
pub(crate) struct Call {
    operation: String,
    resource: String,
    mutates: bool,
    links: u32,
    change: Option<Change>,
    first: bool,
}

impl Call {
    pub(crate) fn read(operation: &str, resource: impl ToString) -> Self {
        Self {
            operation: operation.to_owned(),
            resource: resource.to_string(),
            mutates: false,
            links: 1,
            change: None,
            first: false,
        }
    }

    pub(crate) fn write(operation: &str, resource: impl ToString) -> Self {
        Self { mutates: true, ..Self::read(operation, resource) }
    }

    pub(crate) fn change(change: &Change, first: bool) -> Self {
        let call = Self::write(change.operation(), change.resource());
        Self { change: Some(change.clone()), first, ..call }
    }

    /// Takes this many requests, each waiting for the one before.
    pub(crate) fn links(self, links: u32) -> Self {
        Self { links, ..self }
    }
}

#[derive(Debug)]
struct State {
    world: World,
    calls: Vec<CallRecord>,
    faults: Faults,
    latency: Duration,
    slow: Vec<(String, Duration)>,
    stale: Duration,
    past: VecDeque<(Duration, World)>,
}

#[derive(Debug)]
struct Shared {
    start: Instant,
    bucket: String,
    state: Mutex<State>,
}

/// One process of the controller: it can die, and another take its place.
#[derive(Debug)]
struct Process {
    caller: String,
    dead: watch::Sender<bool>,
}

/// What the gate knows of a call that it has let in.
struct Begun {
    n: u64,
    latency: Duration,
    fault: Option<Fault>,
}

/// A cloud in memory behind all ports. Clones are handles of the same process on the same world.
#[derive(Clone, Debug)]
pub struct FakeCloud {
    shared: Arc<Shared>,
    process: Arc<Process>,
    /// Whether it calls in the forensic account.
    forensic: bool,
}

impl FakeCloud {
    /// A cloud that holds this world, called by [`CALLER`], with no latency and no faults.
    #[must_use]
    pub fn new(mut world: World) -> Self {
        world.refresh();
        let shared = Shared {
            start: Instant::now(),
            bucket: world.bucket.name.clone(),
            state: Mutex::new(State {
                world,
                calls: Vec::new(),
                faults: Faults::default(),
                latency: Duration::ZERO,
                slow: Vec::new(),
                stale: Duration::ZERO,
                past: VecDeque::new(),
            }),
        };
        Self { shared: Arc::new(shared), process: Process::of(CALLER), forensic: false }
    }

    /// The ports.
    #[must_use]
    pub fn cloud(&self) -> Cloud {
        Cloud {
            inventory: Arc::new(self.clone()),
            hands: Arc::new(self.clone()),
            facts: Arc::new(self.clone()),
            posture: Arc::new(self.clone()),
            store: Arc::new(self.clone()),
            notices: Arc::new(self.clone()),
            workflows: Arc::new(self.clone()),
            letters: Arc::new(self.clone()),
        }
    }

    /// Another process on the same world, called by this ARN.
    #[must_use]
    pub fn as_caller(&self, arn: &str) -> Self {
        Self { shared: Arc::clone(&self.shared), process: Process::of(arn), forensic: false }
    }

    /// A new process of the same caller: what comes after a death.
    #[must_use]
    pub fn restarted(&self) -> Self {
        self.as_caller(&self.process.caller)
    }

    /// Reads or sets anything, as it is now.
    pub fn with<R>(&self, f: impl FnOnce(&mut World) -> R) -> R {
        let mut state = self.state();
        state.world.settle(self.elapsed());
        let answer = f(&mut state.world);
        state.world.refresh();
        answer
    }

    /// A copy of the world as it is now.
    #[must_use]
    pub fn world(&self) -> World {
        self.with(|world| world.clone())
    }

    /// The time since the world began.
    #[must_use]
    pub fn elapsed(&self) -> Duration {
        self.shared.start.elapsed()
    }

    /// The time of day: 2026-01-01T00:00:00Z when the world began.
    #[must_use]
    pub fn now(&self) -> Timestamp {
        time_of_day(self.elapsed())
    }

    /// Every interface's times of being open, the longest first; one that is open still counts until now.
    #[must_use]
    pub fn longest_open(&self) -> Vec<OpenSpan> {
        let now = self.elapsed();
        let mut spans = self.with(|world| world.open_spans.clone());
        spans.sort_by_key(|s| std::cmp::Reverse(s.closed.unwrap_or(now).saturating_sub(s.opened)));
        spans
    }

    /// Every call so far.
    #[must_use]
    pub fn calls(&self) -> Vec<CallRecord> {
        self.state().calls.clone()
    }

    /// The calls that change something, whether or not they did.
    #[must_use]
    pub fn changes(&self) -> Vec<CallRecord> {
        self.state().calls.iter().filter(|c| c.mutates).cloned().collect()
    }

    /// The calls that led to call `n`, by time: before each, the call that ended last before it began. Under a
    /// paused clock with nothing else that waits, that is the chain of calls each of which waited for the one
    /// before.
    #[must_use]
    pub fn chain_to(&self, n: u64) -> Vec<CallRecord> {
        let calls = self.calls();
        let mut chain = Vec::new();
        let mut link = calls.iter().find(|c| c.n == n);
        while let Some(call) = link {
            chain.push(call.clone());
            link = calls
                .iter()
                .filter(|c| c.n < call.n && c.ended.is_some_and(|ended| ended <= call.started))
                .max_by_key(|c| (c.ended, c.n));
        }
        chain.reverse();
        chain
    }

    /// How long each request takes.
    pub fn set_latency(&self, latency: Duration) {
        self.state().latency = latency;
    }

    /// Lets requests whose [text](CallRecord::text) contains `matching` take this much longer.
    pub fn slow(&self, matching: &str, by: Duration) {
        self.state().slow.push((matching.to_owned(), by));
    }

    /// Lets reads of EC2 show the world as it was this long ago, where changes through the ports made it
    /// different since.
    pub fn stale(&self, age: Duration) {
        let mut state = self.state();
        state.stale = age;
        state.past.clear();
    }

    /// Sets one fault.
    pub fn fault(&self, fault: Fault, at: At) {
        self.state().faults.plan(fault, at, 1);
    }

    /// Sets a fault for this many calls in a row of those that `at` counts; `u64::MAX` for all from there on.
    pub fn faults(&self, fault: Fault, at: At, times: u64) {
        self.state().faults.plan(fault, at, times);
    }

    /// Lets calls fail at random.
    pub fn storm(&self, storm: Storm) {
        self.state().faults.storm(storm);
    }

    /// Makes a service unreachable until [`FakeCloud::end_outage`]: operations that start with `s3:`, `sns:`,
    /// `ec2:`.
    pub fn outage(&self, service: &str) {
        self.state().faults.outage(service, Duration::ZERO, None);
    }

    /// Makes a service unreachable between two times since the world began.
    pub fn outage_between(&self, service: &str, from: Duration, until: Duration) {
        self.state().faults.outage(service, from, Some(until));
    }

    /// Ends a service's outages.
    pub fn end_outage(&self, service: &str) {
        self.state().faults.end_outages(service);
    }

    /// Takes back every fault, storm and outage.
    pub fn calm(&self) {
        self.state().faults = Faults::default();
    }

    /// Whether this process died.
    #[must_use]
    pub fn is_dead(&self) -> bool {
        *self.process.dead.borrow()
    }

    /// Waits until this process dies: what a test runs beside the code that is to be killed, dropping it then.
    /// A process that died gets no answer any more, whatever task asks.
    pub async fn died(&self) {
        // The sender lives as long as this handle, so that waiting ends with the death only.
        let _ = self.process.dead.subscribe().wait_for(|dead| *dead).await;
    }

    /// Kills this process now.
    pub fn kill(&self) {
        self.process.dead.send_replace(true);
    }

    pub(crate) fn caller_arn(&self) -> &str {
        if self.forensic { FORENSIC_CALLER } else { &self.process.caller }
    }

    /// The same process, calling in the forensic account.
    pub(crate) fn elsewhere(&self) -> Self {
        Self { forensic: true, ..self.clone() }
    }

    pub(crate) fn bucket_name(&self) -> &str {
        &self.shared.bucket
    }

    /// Makes one call: written down, delayed, and failed where that is its fate; `act` is what it does to the
    /// world.
    pub(crate) async fn call<T: Send>(
        &self,
        call: Call,
        act: impl FnOnce(&mut World) -> Answered<T> + Send,
    ) -> Result<T> {
        if self.is_dead() {
            return pending().await;
        }
        let Begun { n, latency, fault } = self.begin(&call);
        match fault {
            Some(Fault::DieBefore) => return self.die(n).await,
            Some(Fault::Hang) => {
                self.end(n, Outcome::Hung);
                return pending().await;
            }
            _ => {}
        }
        // Even without latency others get their turn, so that callers at once are at once.
        tokio::task::yield_now().await;
        pause(latency * call.links - latency / 2).await;
        if self.is_dead() {
            return self.die(n).await;
        }
        let mut answer = match fault {
            Some(Fault::Refuse(kind)) => Err(Problem::injected(kind)),
            _ if self.forensic => self.perform(n, &call, |world| world.in_forensic(act)),
            _ => self.perform(n, &call, act),
        };
        if fault == Some(Fault::DieAfter) {
            return self.die(n).await;
        }
        pause(latency / 2).await;
        if self.is_dead() {
            return self.die(n).await;
        }
        if fault == Some(Fault::LoseAnswer) {
            answer = Err(Problem::injected(ErrorKind::Ambiguous));
        }
        self.end(
            n,
            match &answer {
                Ok(_) => Outcome::Done,
                Err(p) => Outcome::Failed { kind: p.kind, code: p.code.clone() },
            },
        );
        answer.map_err(|problem| full_error(call, n, problem))
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.shared.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn begin(&self, call: &Call) -> Begun {
        let now = self.elapsed();
        let mut state = self.state();
        let n = state.calls.len() as u64 + 1;
        let record = CallRecord {
            n,
            operation: call.operation.clone(),
            resource: call.resource.clone(),
            change: call.change.clone(),
            mutates: call.mutates,
            first: call.first,
            links: call.links,
            started: now,
            took_effect: None,
            ended: None,
            caller: self.caller_arn().to_owned(),
            outcome: Outcome::Open,
        };
        let text = record.text();
        state.calls.push(record);
        let slower: Duration =
            state.slow.iter().filter(|(part, _)| text.contains(part.as_str())).map(|s| s.1).sum();
        let latency = state.latency + slower;
        let fault = state.faults.decide(&text, call.mutates, now);
        Begun { n, latency, fault }
    }

    fn perform<T>(
        &self,
        n: u64,
        call: &Call,
        act: impl FnOnce(&mut World) -> Answered<T>,
    ) -> Answered<T> {
        let now = self.elapsed();
        let mut guard = self.state();
        let state = &mut *guard;
        state.world.settle(now);
        let stale = state.stale;
        while state.past.front().is_some_and(|(changed, _)| *changed + stale <= now) {
            state.past.pop_front();
        }
        let answer = if call.mutates {
            let before = (!stale.is_zero()).then(|| state.world.clone());
            let answer = act(&mut state.world);
            // The first thing due may be due at once, with no time between.
            state.world.settle(now);
            state.past.extend(before.map(|world| (now, world)));
            answer
        } else if let Some((_, past)) =
            state.past.front().filter(|_| call.operation.starts_with("ec2:"))
        {
            act(&mut past.clone())
        } else {
            act(&mut state.world)
        };
        if let (Ok(_), Some(record)) = (&answer, record(&mut state.calls, n)) {
            record.took_effect = Some(now);
        }
        answer
    }

    fn end(&self, n: u64, outcome: Outcome) {
        let now = self.elapsed();
        if let Some(record) = record(&mut self.state().calls, n) {
            record.ended = matches!(outcome, Outcome::Done | Outcome::Failed { .. }).then_some(now);
            record.outcome = outcome;
        }
    }

    async fn die<T>(&self, n: u64) -> T {
        self.end(n, Outcome::Died);
        self.kill();
        pending().await
    }
}

impl Process {
    fn of(caller: &str) -> Arc<Self> {
        Arc::new(Self { caller: caller.to_owned(), dead: watch::Sender::new(false) })
    }
}

fn record(calls: &mut [CallRecord], n: u64) -> Option<&mut CallRecord> {
    calls.get_mut(usize::try_from(n).ok()?.checked_sub(1)?)
}

/// A sleep of nothing would still wait for the next tick of the timer.
async fn pause(duration: Duration) {
    if !duration.is_zero() {
        sleep(duration).await;
    }
}

fn full_error(call: Call, n: u64, problem: Problem) -> CloudError {
    let answered = !matches!(problem.kind, ErrorKind::Ambiguous | ErrorKind::Unreachable);
    CloudError {
        operation: call.operation,
        resource: call.resource,
        kind: problem.kind,
        code: problem.code,
        message: problem.message,
        request: answered.then(|| format!("00000000-0000-4000-8000-{n:012x}")),
    }
}
