//! A response in the state machine: started, and followed from outside.
//!
//! Purpose: what `respond` shows of its own work, shown of an execution's: its history becomes steps that begin and end, the
//! custody log becomes milestones, changes and shortfalls, and both together become the same report; what rooms tell meanwhile is
//! told as it comes. Touches Step Functions,
//! and the evidence bucket to read. Never stops an execution, and never does a step of it: who stops following leaves the
//! response as it is.

mod view;

use std::{collections::BTreeMap, time::Duration};

use cleanroom_cloud::{CloudError, Execution, ExecutionState};
use cleanroom_contract::{CaseId, InstanceId, ScanId};
use futures_util::future::join_all;
use tokio::time::{Instant, sleep};

use self::view::View;
use super::Report;
use crate::{
    case::{Run, Step},
    claim,
    execution::{self, Approval, Input, StartError, Started},
    journal::{self, event},
    progress::Event,
    steps::clean_room::watch::{self, Heard},
};

/// How long Step Functions may fail without a break before its execution is given up as lost.
const PATIENCE: Duration = Duration::from_secs(300);

/// How long the log is tried to be read in the end.
const LAST_LOOK: Duration = Duration::from_secs(30);

/// How many events of the log are asked for at once where there are several.
const AHEAD: u64 = 8;

/// How many events of a history come at a time.
const PAGE: usize = 1000;

/// Why a response in the state machine has no report.
#[derive(Debug, thiserror::Error)]
pub enum FollowError {
    /// It was not started.
    #[error(transparent)]
    Start(#[from] StartError),
    /// Nobody can tell how it stands.
    #[error("follow execution {name}; it goes on all the same: see `cleanroom status {case}`")]
    Lost {
        /// The execution.
        name: String,
        /// The case.
        case: CaseId,
        /// What Step Functions said.
        source: CloudError,
    },
    /// There is no such execution any more.
    #[error("execution {name} is not there any more: see `cleanroom status {case}`")]
    Gone {
        /// The execution.
        name: String,
        /// The case.
        case: CaseId,
    },
    /// The instance is not to be contained.
    #[error("the state machine refused {instance}: {why}")]
    Refused {
        /// The instance.
        instance: InstanceId,
        /// What its function said, untrusted.
        why: String,
    },
}

/// A response that goes on in the state machine.
#[derive(Clone, Debug)]
pub struct Following {
    /// The instance.
    pub instance: InstanceId,
    /// The case that was asked for.
    pub case: CaseId,
    /// The execution.
    pub started: Started,
}

/// How long to wait between two looks at each of so many executions: Step Functions answers 20 questions a second about
/// histories, which others ask as well (developer guide, "quotas").
#[must_use]
pub fn pace(executions: usize) -> Duration {
    let tenths = u64::try_from(executions).unwrap_or(u64::MAX).clamp(20, 36_000);
    Duration::from_millis(tenths * 100)
}

/// Starts the response for an instance, or joins the one that runs for it. The case is named as a claim would name it, unless
/// people name one.
///
/// # Errors
/// When Step Functions does not take it.
pub async fn begin(
    run: &Run,
    machine: &str,
    instance: &InstanceId,
    (case, reason): (Option<&CaseId>, Option<&str>),
) -> Result<Following, FollowError> {
    let case = match case {
        Some(case) => case.clone(),
        None => {
            let newest = claim::newest(&*run.cloud.store, instance, &run.caller).await;
            // A store that is down keeps nobody from being contained; the function's claim is the one that counts.
            claim::open_or_next(instance, newest.ok().flatten().as_ref())
        }
    };
    let input = Input {
        instance: instance.clone(),
        case: case.clone(),
        source: None,
        part: None,
        reason: reason.map(str::to_owned),
        // A person at a terminal has said it already.
        approval: Some(Approval::None),
        otherwise: None,
    };
    let started = execution::start(&*run.cloud.workflows, machine, &input).await?;
    Ok(Following { instance: instance.clone(), case, started })
}

/// Follows an execution until it ends, and tells what happens in it. The bound is the machine's own: it ends after its time-out
/// at the latest.
///
/// # Errors
/// When the instance was refused, or nobody can tell how the execution stands.
pub async fn follow(
    run: &Run,
    following: &Following,
    pace: Duration,
) -> Result<Report, FollowError> {
    let mut view = View::of(&following.instance, &following.case);
    let mut heard = BTreeMap::new();
    let mut failing = None;
    while !view.over {
        match history(run, following, &mut view).await {
            Ok(()) => failing = None,
            Err(error) => {
                let since = *failing.get_or_insert_with(Instant::now);
                // One that was just started may not be known everywhere yet.
                let passes = error.is_transient() || error.code == "ExecutionDoesNotExist";
                if !passes || since.elapsed() > PATIENCE {
                    return Err(lost(following, error));
                }
            }
        }
        // What it logged before its end is in the log by now: the last look comes after the end was seen.
        let _later = log(run, &mut view).await;
        listen(run, &view, &mut heard).await;
        if !view.over {
            sleep(pace).await;
        }
    }
    let ended = ended(run, following).await?;
    if view.is_refused() {
        let why = refusal(&ended);
        return Err(FollowError::Refused { instance: following.instance.clone(), why });
    }
    last_look(run, &mut view).await;
    Ok(view.report(&ended, run.cloud.store.bucket()))
}

fn lost(following: &Following, source: CloudError) -> FollowError {
    let (name, case) = (following.started.name.clone(), following.case.clone());
    FollowError::Lost { name, case, source }
}

/// Tells what is new in the history.
async fn history(run: &Run, following: &Following, view: &mut View) -> Result<(), CloudError> {
    loop {
        let new = run.cloud.workflows.history(&following.started.arn, view.after).await?;
        for passed in &new {
            for event in view.passed(passed) {
                run.progress.tell(event);
            }
        }
        if new.len() < PAGE {
            return Ok(());
        }
    }
}

/// Tells what is new in the log.
async fn log(run: &Run, view: &mut View) -> Result<(), CloudError> {
    let store = &*run.cloud.store;
    if view.logged == 0 {
        // Somebody may have opened a case of another name meanwhile: then that is the one that counts.
        let newest = claim::newest(store, &view.instance, &run.caller).await;
        if let Ok(Some((open, false))) = newest {
            view.case = open.claim.case;
        }
    }
    let mut width = 1;
    loop {
        let numbers = view.logged + 1..=view.logged + width;
        let keys: Vec<_> = numbers.clone().map(|number| event::key(&view.case, number)).collect();
        let found = join_all(keys.iter().map(|key| store.get(key))).await;
        for ((number, key), bytes) in numbers.zip(&keys).zip(found) {
            let Some(bytes) = bytes? else { return Ok(()) };
            view.logged = number;
            // What is no event of this log is left to `custody verify`.
            let event = journal::decode(key, &bytes).ok().filter(|e| e.is_at(&view.case, number));
            for told in event.iter().flat_map(|event| view.logged(event)).collect::<Vec<_>>() {
                run.progress.tell(told);
            }
        }
        width = AHEAD;
    }
}

/// Tells what is new in the news of rooms whose reports are awaited. What can not be read now is read at the next look, or told
/// by the report.
async fn listen(run: &Run, view: &View, heard: &mut BTreeMap<ScanId, Heard>) {
    for scan in view.awaited() {
        let of = heard.entry(scan.clone()).or_default();
        if let Ok(true) = watch::listen(&*run.cloud.store, (&view.case, scan), of).await {
            run.progress.tell(Event::Waiting {
                instance: view.instance.clone(),
                step: Step::CleanRoom,
                what: format!("scan {scan}: {}", of.newest),
            });
        }
    }
}

/// How the execution ended.
async fn ended(run: &Run, following: &Following) -> Result<Execution, FollowError> {
    let began = Instant::now();
    loop {
        match run.cloud.workflows.execution(&following.started.arn).await {
            // Its end may be known in its history first.
            Ok(Some(execution))
                if execution.state == ExecutionState::Running && began.elapsed() < LAST_LOOK =>
            {
                sleep(Duration::from_secs(2)).await;
            }
            Ok(Some(execution)) => return Ok(execution),
            Ok(None) => {
                let (name, case) = (following.started.name.clone(), following.case.clone());
                return Err(FollowError::Gone { name, case });
            }
            Err(error) if error.is_transient() && began.elapsed() < PATIENCE => {
                sleep(Duration::from_secs(2)).await;
            }
            Err(error) => return Err(lost(following, error)),
        }
    }
}

/// Reads the log to its end. That it can not be read is worth a note: the report then lacks what only it tells.
async fn last_look(run: &Run, view: &mut View) {
    let began = Instant::now();
    while let Err(error) = log(run, view).await {
        if !error.is_transient() || began.elapsed() > LAST_LOOK {
            view.note(format!(
                "the custody log could not be read, and says more than this: {error}"
            ));
            return;
        }
        sleep(Duration::from_secs(2)).await;
    }
}

/// Why an instance was refused, by what the execution gave.
fn refusal(ended: &Execution) -> String {
    let output = ended.output.as_deref().and_then(|text| serde_json::from_str(text).ok());
    let output: serde_json::Value = output.unwrap_or_default();
    let mut facts = output.pointer("/verify/facts").cloned().unwrap_or_default();
    if let Some(facts) = facts.as_object_mut() {
        facts.remove("verdict");
    }
    let texts: Vec<_> =
        facts.as_object().into_iter().flatten().filter_map(|(_, v)| v.as_str()).collect();
    let why = if texts.is_empty() { "it gave no reason".to_owned() } else { texts.join("; ") };
    why.chars().take(1000).collect()
}
