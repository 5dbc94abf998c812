//! The first door for alerts: what arrives is read, verified, and answered with one execution a case.
//!
//! Purpose: [`take`] turns one delivery (an SNS message, an event of EventBridge, a batch of a log subscription) into
//! executions of the state machine. An alert is believed as little as it can be: the instance must be there, be of this
//! account and Region, and not be exempt. What is refused is answered on the team's topic with the reason; what can not be
//! read goes to the dead-letter queue with the reason and its text.
//!
//! Touches the inventory and the claims, to read; the state machines, to start; topic and queue. Never claims, never
//! contains, and writes nothing to the evidence bucket: whether a person is asked first is the brake's to say, in the
//! execution.
//!
//! The same delivery may come any number of times, at once or later: an execution is named by its case, an incident's by
//! what it holds, and one that is there is success. Where something may help only later, all else is begun, nobody is told
//! yet, and the delivery fails as retryable: told is the delivery that ends it. One that never ends is a dead letter whole.
//!
//! Where the claims can not be read, the instance's first case is assumed: the execution claims, and knows better. Where the
//! instance can not be looked at for good, the execution is begun all the same, and looks again.

mod answer;
mod begin;
mod look;
mod trail;

use std::{collections::BTreeSet, future::Future, time::Duration};

use cleanroom_cloud::CloudError;
use cleanroom_contract::{CaseId, InstanceId};
use serde::Serialize;
use serde_json::Value;
use tokio::time::{Instant, sleep, timeout};

use crate::{
    alert::{self, Alert},
    case::Run,
    execution::{Approval, Failed},
};

/// Where a delivery leads.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Way {
    /// The ARN of the state machine of one case.
    pub machine: String,
    /// The ARN of that of an incident of many instances.
    pub many: String,
    /// The URL of the dead-letter queue.
    pub queue: String,
    /// Of an incident, how many start within so many seconds.
    pub at_once: u32,
    /// How many seconds, 1 to 120.
    pub pace: u32,
}

/// What became of a delivery.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Taken {
    /// Cases whose execution was begun.
    pub started: Vec<(InstanceId, CaseId)>,
    /// Cases that an execution works at already, or did after this very alert.
    pub joined: Vec<(InstanceId, CaseId)>,
    /// What was refused, and why.
    pub refused: Vec<String>,
    /// What was left alone, and why.
    pub ignored: Vec<String>,
    /// What could not be read, and why.
    pub unreadable: Vec<String>,
    /// What could not be begun for good, and why.
    pub failed: Vec<String>,
}

/// An alert that is taken for true, as far as one can tell from here.
#[derive(Clone, Debug)]
struct Found {
    alert: Alert,
    /// Whether a person is to be asked, since something could not be told.
    approval: Option<Approval>,
}

/// How long one delivery may take in all before what is left is put off: less than its function's time-out.
const PATIENCE: Duration = Duration::from_secs(75);

/// Takes one delivery.
///
/// # Errors
/// When the same delivery is worth another try, after everything else of it was begun; or nobody could be told what could
/// not be taken, and the queue took no letter.
pub async fn take(run: &Run, way: &Way, event: &Value) -> Result<Taken, Failed> {
    let patience = Patience { ends: Instant::now() + PATIENCE, call: run.bounds.call };
    let delivery = alert::read(event);
    let looked = look::look(run, &patience, delivery.alerts).await;
    let mut seen = BTreeSet::new();
    let mut found = looked.found;
    // Several records may name one instance: the first speaks for all.
    found.retain(|found| seen.insert(found.alert.named.instance.clone()));
    let count = found.len();
    let begun = begin::begin(run, way, &patience, found).await;
    let mut later = looked.later;
    later.extend(begun.later);
    if let Some(why) = later.first() {
        return Err(Failed {
            retryable: true,
            why: format!(
                "take {count} alerts: {} are put off until the delivery comes again: {why}",
                later.len()
            ),
        });
    }
    let mut ignored = delivery.ignored;
    ignored.extend(looked.ignored);
    let taken = Taken {
        started: begun.started,
        joined: begun.joined,
        refused: looked.refused,
        ignored,
        unreadable: delivery.unreadable,
        failed: begun.failed,
    };
    answer::answer(run, way, &patience, (event, &taken)).await?;
    Ok(taken)
}

/// Why something was not had.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Miss {
    /// Asking again later may help.
    Later(String),
    /// Nothing helps.
    Never(String),
}

impl From<CloudError> for Miss {
    fn from(error: CloudError) -> Self {
        let text = error.to_string();
        if error.is_transient() { Self::Later(text) } else { Self::Never(text) }
    }
}

/// How long a delivery's calls are tried.
struct Patience {
    ends: Instant,
    call: Duration,
}

impl Patience {
    /// The same with an end that comes sooner.
    fn at_most(&self, bound: Duration) -> Self {
        Self { ends: self.ends.min(Instant::now() + bound), call: self.call }
    }

    /// Asks until there is an answer, nothing helps, or time is over.
    async fn have<T, E, F>(&self, ask: impl Fn() -> F) -> Result<T, Miss>
    where
        Miss: From<E>,
        F: Future<Output = Result<T, E>>,
    {
        let mut pause = Duration::from_millis(100);
        let mut last = "there was no time left to ask".to_owned();
        while Instant::now() < self.ends {
            match timeout(self.call, ask()).await.map(|answer| answer.map_err(Miss::from)) {
                Ok(Ok(value)) => return Ok(value),
                Ok(Err(Miss::Never(why))) => return Err(Miss::Never(why)),
                Ok(Err(Miss::Later(why))) => last = why,
                Err(_) => "no answer in time".clone_into(&mut last),
            }
            sleep(pause).await;
            pause = (pause * 2).min(Duration::from_secs(2));
        }
        Err(Miss::Later(last))
    }
}
