//! What a response tells while it goes: one stream of events, for the terminal, for programs, for tests.
//!
//! Touches nothing but the channel. Never waits for whoever listens: what the listener is too slow for is
//! counted and dropped, since no one's terminal may hold up a containment.

use std::sync::{
    Arc,
    atomic::{AtomicU64, Ordering},
};

use cleanroom_contract::{CaseId, InstanceId, Timestamp};
use serde::Serialize;
use tokio::sync::mpsc;

use crate::{
    brake::AtDeadline,
    case::{Shortfall, Step},
    flow::approval::Decision,
};

/// Something that happened.
#[derive(Clone, Debug, Serialize)]
#[serde(tag = "type", rename_all = "snake_case")]
#[expect(missing_docs, reason = "fields are named for what they hold")]
pub enum Event {
    /// A case was opened, or joined.
    Case { instance: InstanceId, case: CaseId, joined: bool, weak: bool },
    /// A goal is being worked at.
    Started { instance: InstanceId, step: Step, goal: &'static str },
    /// A change was carried out, or not.
    Change {
        instance: InstanceId,
        step: Step,
        change: String,
        operation: &'static str,
        resource: String,
        error: Option<String>,
    },
    /// Something takes its time.
    Waiting { instance: InstanceId, step: Step, what: String },
    /// A person is asked before the instance is contained: why, until when, and what is done where nobody answers.
    Asked {
        instance: InstanceId,
        case: CaseId,
        until: Timestamp,
        otherwise: AtDeadline,
        why: Vec<String>,
    },
    /// A person has answered.
    Answered { instance: InstanceId, decision: Decision, by: String },
    /// A goal was reached, or given up.
    Ended { instance: InstanceId, step: Step, goal: &'static str, reached: bool },
    /// Something worth knowing.
    Note { instance: InstanceId, note: String },
    /// Something is short.
    Shortfall { instance: InstanceId, shortfall: Shortfall },
    /// An interface is open and could not be closed yet: the loudest thing there is.
    Open { instance: InstanceId, interface: String },
    /// An event that the custody log did not take, and that nothing keeps: whoever hears it is the record.
    Unlogged { instance: InstanceId, sha256: String, event: String },
    /// A moment that people wait for: `contained`, `preserved`.
    Milestone { instance: InstanceId, name: &'static str, seconds: f64 },
}

/// Where events go. Cheap to clone.
#[derive(Clone, Debug)]
pub struct Progress {
    sender: Option<mpsc::Sender<Event>>,
    dropped: Arc<AtomicU64>,
}

impl Progress {
    /// To a listener, who may lag by `depth` events.
    #[must_use]
    pub fn channel(depth: usize) -> (Self, mpsc::Receiver<Event>) {
        let (sender, receiver) = mpsc::channel(depth);
        (Self { sender: Some(sender), dropped: Arc::default() }, receiver)
    }

    /// To nobody.
    #[must_use]
    pub fn silent() -> Self {
        Self { sender: None, dropped: Arc::default() }
    }

    /// Tells an event.
    pub fn tell(&self, event: Event) {
        if let Some(sender) = &self.sender
            && sender.try_send(event).is_err()
        {
            self.dropped.fetch_add(1, Ordering::Relaxed);
        }
    }

    /// How many events found the listener too slow.
    #[must_use]
    pub fn dropped(&self) -> u64 {
        self.dropped.load(Ordering::Relaxed)
    }

    /// Tells that work has begun which is no goal.
    pub(crate) fn began(&self, instance: &InstanceId, step: Step, goal: &'static str) {
        self.tell(Event::Started { instance: instance.clone(), step, goal });
    }

    /// Tells that it has ended; what it lacks is told as a shortfall.
    pub(crate) fn ended(&self, instance: &InstanceId, step: Step, goal: &'static str) {
        self.tell(Event::Ended { instance: instance.clone(), step, goal, reached: true });
    }

    /// Tells a shortfall.
    pub(crate) fn shortfall(&self, instance: &InstanceId, shortfall: &Shortfall) {
        self.tell(Event::Shortfall { instance: instance.clone(), shortfall: shortfall.clone() });
    }
}
