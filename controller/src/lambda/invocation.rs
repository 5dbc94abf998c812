//! One invocation, from what was sent to what is answered.
//!
//! Purpose: nothing that an invocation begins outlives it, and none leaves an interface open. Each works in a runtime of its
//! own, which ends with it: a task that went on when the process thaws again, an hour later perhaps, would act on what it saw
//! before. Connections end with it too: one that died while the process was frozen would swallow a call that is never repeated.
//!
//! It stops before Lambda's deadline, with time to close what is open; what is not done by then is worth another try.

use std::{panic::AssertUnwindSafe, pin::pin, sync::Arc, time::Duration};

use cleanroom_contract::{Timestamp, printable};
use cleanroom_controller::{
    case::{Clock as _, Shared},
    execution::Failed,
    machine::SystemClock,
    progress::{Event, Progress},
};
use futures_util::FutureExt as _;
use serde_json::{Value, json};
use tokio::{
    sync::mpsc,
    time::{Instant, sleep_until},
};

use super::{
    account::{Account, Own},
    doors,
    log::{Level, Log},
};

/// Events that may wait to be written.
const DEPTH: usize = 16_384;

/// What is kept back of the time until Lambda's deadline, at most: an interface that is open needs some of it, the answer the rest.
const RESERVE: Duration = Duration::from_secs(15);

/// How long before its own end an invocation begins nothing that could be put off.
const CLOSING: Duration = Duration::from_secs(5);

/// How long an invocation may take where Lambda's deadline makes no sense.
const UNTOLD: Duration = Duration::from_secs(60);

/// The longest that Lambda lets a function work.
const LONGEST: Duration = Duration::from_secs(900);

/// The longest that an execution of the state machine goes on, in seconds: no start is earlier.
const OLDEST: f64 = 30.0 * 86_400.0;

/// An invocation.
#[derive(Debug)]
pub(crate) struct Invocation {
    pub account: Arc<Account>,
    pub log: Log,
    /// What was sent.
    pub event: Value,
    /// The function's ARN.
    pub function: String,
    /// Lambda's deadline, in milliseconds since 1970.
    pub deadline: u64,
}

impl Invocation {
    /// Does it, in this thread.
    ///
    /// # Errors
    /// Why it was not done.
    pub(crate) fn work(self) -> Result<Value, Failed> {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
        let runtime = runtime.map_err(|error| Failed {
            retryable: true,
            why: format!("start an invocation: {error}"),
        })?;
        let answer = runtime.block_on(self.within());
        runtime.shutdown_background();
        answer
    }

    async fn within(self) -> Result<Value, Failed> {
        let now = SystemClock.now();
        let ends = Instant::now() + decide_bound(self.deadline, now);
        let shared = Arc::new(Shared::new());
        let (progress, events) = Progress::channel(DEPTH);
        let own = Own {
            shared: shared.clone(),
            progress: progress.clone(),
            started: began(self.event["started"].as_str(), now),
            function: self.function,
        };
        let (account, log, event) = (self.account, self.log.clone(), self.event);
        let work = async move {
            let run = account.run(own).await?;
            let environment = &account.environment;
            let told = (&log, environment.case_hours, ends - CLOSING);
            doors::answer(run, &environment.entrance, event, told).await
        };
        let answer = guarded(work, &shared, events, (&self.log, ends)).await;
        if progress.dropped() > 0 {
            let more = json!({ "dropped": progress.dropped() });
            self.log.line(Level::Warn, "events were too many to be written", more);
        }
        answer
    }
}

/// Waits for work, and writes what it tells. Whether it ends, panics or takes too long: then whatever is open is closed.
async fn guarded(
    work: impl Future<Output = Result<Value, Failed>>,
    shared: &Shared,
    mut events: mpsc::Receiver<Event>,
    (log, ends): (&Log, Instant),
) -> Result<Value, Failed> {
    let answer = {
        // What a panic leaves half done is dropped with its run, and nothing else sees it.
        let mut work = Box::pin(AssertUnwindSafe(work).catch_unwind());
        loop {
            tokio::select! {
                biased;
                Some(event) = events.recv() => log.event(&event),
                ended = &mut work => break ended.unwrap_or_else(|panic| {
                    Err(Failed { retryable: false, why: panicked(panic.as_ref()) })
                }),
                () = sleep_until(ends) => {
                    let why = "it was not done when Lambda's deadline came near".to_owned();
                    break Err(Failed { retryable: true, why });
                }
            }
        }
    };
    // Who still waits for a turn to open an interface gets none; who has one closes it first.
    shared.open.close();
    let mut closing = pin!(shared.finish_units());
    loop {
        tokio::select! {
            biased;
            Some(event) = events.recv() => log.event(&event),
            () = &mut closing => break,
        }
    }
    while let Ok(event) = events.try_recv() {
        log.event(&event);
    }
    answer
}

/// What a panic says.
pub(crate) fn panicked(panic: &(dyn std::any::Any + Send)) -> String {
    let text = panic.downcast_ref::<&str>().copied();
    let text = text.or_else(|| panic.downcast_ref::<String>().map(String::as_str));
    format!("the function panicked: {}", printable(text.unwrap_or("no text")))
}

/// How long an invocation may work.
fn decide_bound(deadline: u64, now: Timestamp) -> Duration {
    let now = now.seconds.saturating_mul(1_000) + i64::from(now.nanos / 1_000_000);
    let left = u64::try_from(now).ok().and_then(|now| deadline.checked_sub(now));
    match left.map(Duration::from_millis) {
        Some(left) if !left.is_zero() && left <= LONGEST => left - RESERVE.min(left / 4),
        _ => UNTOLD,
    }
}

/// The moment at which the execution was started, by its RFC 3339 time; now, where that is none or makes no sense.
fn began(started: Option<&str>, now: Timestamp) -> Instant {
    let seconds = |at: Timestamp| {
        #[expect(clippy::cast_precision_loss, reason = "a time of day has 52 bits for centuries")]
        let whole = at.seconds as f64;
        whole + f64::from(at.nanos) / 1e9
    };
    let ago = started.and_then(timestamp).map(|at| seconds(now) - seconds(at));
    let ago = ago.filter(|ago| (0.0..=OLDEST).contains(ago)).map(Duration::from_secs_f64);
    let here = Instant::now();
    ago.and_then(|ago| here.checked_sub(ago)).unwrap_or(here)
}

/// Reads a UTC time of any number of decimals, as Step Functions writes it.
fn timestamp(text: &str) -> Option<Timestamp> {
    let text = text.strip_suffix('Z').or_else(|| text.strip_suffix("+00:00"))?;
    let (whole, decimals) = text.split_once('.').unwrap_or((text, ""));
    let full = format!("{whole}.{decimals:0<9.9}Z");
    serde_json::from_value(Value::String(full)).ok()
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicBool, Ordering};

    use super::*;

    fn log() -> Log {
        Log::new("step", "cleanroom")
    }

    /// An open interface that takes a while to be closed.
    fn unit(shared: &Arc<Shared>, closed: &Arc<AtomicBool>) {
        let closed = closed.clone();
        shared.units.lock().expect("a lock").spawn(async move {
            tokio::time::sleep(Duration::from_secs(3)).await;
            closed.store(true, Ordering::SeqCst);
        });
    }

    #[tokio::test(start_paused = true)]
    async fn whatever_ends_the_work_what_is_open_is_closed_first() {
        for (what, expected) in [
            ("answers", Ok(json!({"contained": true}))),
            (
                "panics",
                Err(Failed {
                    retryable: false,
                    why: "the function panicked: on purpose".to_owned(),
                }),
            ),
            (
                "hangs",
                Err(Failed {
                    retryable: true,
                    why: "it was not done when Lambda's deadline came near".to_owned(),
                }),
            ),
        ] {
            let (shared, closed) = (Arc::new(Shared::new()), Arc::new(AtomicBool::new(false)));
            let (_progress, events) = Progress::channel(8);
            let (inner, flag) = (shared.clone(), closed.clone());
            let work = async move {
                unit(&inner, &flag);
                match what {
                    "answers" => Ok(json!({"contained": true})),
                    "panics" => panic!("on purpose"),
                    _ => std::future::pending().await,
                }
            };
            let ends = Instant::now() + Duration::from_secs(1);
            let answer = guarded(work, &shared, events, (&log(), ends)).await;
            assert_eq!(answer, expected, "{what}");
            assert!(closed.load(Ordering::SeqCst), "{what}: an interface is left open");
            assert!(shared.open.is_closed(), "{what}: another one may be opened");
        }
    }

    #[test]
    fn an_invocation_keeps_time_to_close_what_is_open() {
        let now = Timestamp { seconds: 1_700_000_000, nanos: 500_000_000 };
        let at = |left: i64| u64::try_from(1_700_000_000_500 + left).expect("after 1970");
        for (deadline, expected) in [
            (at(900_000), 885_000),
            (at(120_000), 105_000),
            (at(8_000), 6_000),
            (at(0), 60_000),
            (at(-5_000), 60_000),
            (at(900_001), 60_000),
            (0, 60_000),
        ] {
            assert_eq!(decide_bound(deadline, now), Duration::from_millis(expected), "{deadline}");
        }
    }

    #[test]
    fn seconds_count_from_the_execution_s_start() {
        let now = timestamp("2026-01-02T03:05:04Z").expect("a time");
        for (started, expected) in [
            (Some("2026-01-02T03:04:05.678Z"), 58),
            (Some("2026-01-02T03:04:05Z"), 59),
            (Some("2026-01-02T03:04:05.678901+00:00"), 58),
            // More than the machine may live, later than now, and no time at all.
            (Some("2025-01-02T03:04:05Z"), 0),
            (Some("2026-01-02T03:05:05Z"), 0),
            (Some("2026-01-02T03:04:05+02:00"), 0),
            (Some("yesterday"), 0),
            (None, 0),
        ] {
            let since = began(started, now).elapsed().as_secs();
            assert_eq!(since, expected, "{started:?}");
        }
    }
}
