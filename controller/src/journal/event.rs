//! One event of the custody log, as it is stored.

use std::collections::BTreeMap;

use cleanroom_cloud::{AccountId, Change, Made};
use cleanroom_contract::{
    CaseId, InstanceId, ScanId, Sha256, Summary, Timestamp, VolumeId, first_room, is_first_room,
};
use serde::{Deserialize, Serialize};

use crate::{
    brake::AtDeadline,
    case::{Shortfall, Step},
    flow::approval::Decision,
    original::Original,
    steps::revoke::not_cut::Survivor,
};

/// How a change ended.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Outcome {
    /// The change.
    pub change: Change,
    /// What it made; none where it was not done.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub made: Option<Made>,
    /// Why it was not done, or why nobody knows whether it was.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub error: Option<String>,
}

/// An object of evidence: where it is, and what makes it recognisable.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Exhibit {
    /// Its key in the evidence bucket.
    pub key: String,
    /// Its digest.
    pub sha256: Sha256,
    /// Its size in bytes.
    pub size: u64,
    /// The operation whose answer it holds.
    pub operation: String,
    /// The request's id.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub request: Option<String>,
}

/// What happened.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "event", rename_all = "snake_case")]
#[expect(missing_docs, reason = "fields are named for what they hold")]
pub enum Body {
    /// The case begins; the instance as it was.
    Opened {
        instance: InstanceId,
        reason: Option<String>,
        grounds: Vec<String>,
        original: Box<Original>,
    },
    /// What else speaks for a compromise, told by services that isolation did not wait for.
    Grounds { grounds: Vec<String> },
    /// What is about to be done.
    Intent { goal: String, changes: Vec<Change> },
    /// What became of it.
    Done { goal: String, outcomes: Vec<Outcome> },
    /// A goal was read back as reached.
    Reached { goal: String },
    /// An interface was opened and closed again, so that its tracked flows are forgotten.
    Flushed { interfaces: Vec<String> },
    /// Answers of the cloud were stored.
    Recorded { exhibits: Vec<Exhibit>, missing: BTreeMap<String, String>, survivors: Vec<Survivor> },
    /// The snapshots that are the evidence, those that are surplus, and what each depends on.
    Preserved { snapshots: Vec<String>, surplus: Vec<String>, notes: Vec<String> },
    /// Every interface was read back as isolated.
    Contained { interfaces: Vec<String>, seconds: String },
    /// People were told.
    Notified { milestone: String, message: Option<String> },
    /// Something is short: of a whole run, or of the part that is named, where the parts of one run are done by several writers.
    Short {
        shortfalls: Vec<Shortfall>,
        #[serde(default, skip_serializing_if = "Option::is_none")]
        part: Option<String>,
    },
    /// A person had it released.
    Released { reason: Option<String>, forced: bool },
    /// The case ends.
    Closed { record: Exhibit },
    /// Entries that were appended at the same time, by goals that are worked at side by side. Never nested.
    Several { entries: Vec<Entry> },
    /// A work order for a clean room was written: for which of the case's.
    Ordered {
        scan: ScanId,
        #[serde(default = "first_room", skip_serializing_if = "is_first_room")]
        room: u32,
        order: Exhibit,
    },
    /// A clean room's bundle was read back: it is what the room said, whole.
    Reported {
        scan: ScanId,
        #[serde(default = "first_room", skip_serializing_if = "is_first_room")]
        room: u32,
        exhibits: Vec<Exhibit>,
        summary: Box<Summary>,
        /// Volumes that this scan was to examine and did not, and those of its room that no scan has examined.
        missing: Vec<VolumeId>,
    },
    /// A clean room's bundle was read back, and is not what it says of itself: nothing of it is relied on. The scan is over.
    Refused { scan: ScanId, why: String },
    /// The evidence is about to be handed to the forensic account: the role that is acted in there, and who that is.
    Entrusted { account: AccountId, role: String, session: String },
    /// Copies in the forensic account are whole: each by the snapshot that it was made from.
    Received { account: AccountId, copies: BTreeMap<String, String> },
    /// A clean room was taken down; what it leaves.
    TornDown { stack: String, left: Vec<String> },
    /// People are asked whether to contain: why, until when, and what is done where nobody answers.
    Asked { why: Vec<String>, deadline: Timestamp, otherwise: AtDeadline },
    /// A person has answered: the last answer holds.
    Answered { decision: Decision, by: String, reason: Option<String> },
    /// A person's word about something outside the steps: `revoke --principal`, `recover`.
    Acted { what: String, outcomes: Vec<Outcome> },
}

/// One of several entries in one object.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Entry {
    /// When it happened, by the writer's clock.
    pub at: Timestamp,
    /// The step.
    pub step: Option<Step>,
    /// What happened.
    #[serde(flatten)]
    pub body: Body,
}

/// One object of the custody log.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct CustodyEvent {
    /// The form of this object: 1.
    pub v: u8,
    /// Its number, from 1, without gaps; also its key's.
    pub seq: u64,
    /// The digest of the object before it, byte for byte; none for the first.
    pub previous: Option<Sha256>,
    /// Marks the writer and the event, so that a writer whose answer was lost knows its own.
    pub nonce: String,
    /// The case.
    pub case: CaseId,
    /// When it happened, by the writer's clock.
    pub at: Timestamp,
    /// Who did it: the STS caller ARN.
    pub actor: String,
    /// The step.
    pub step: Option<Step>,
    /// Whether it was appended after the fact, because the log could not be written at the time.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub late: bool,
    /// What happened.
    #[serde(flatten)]
    pub body: Body,
}

impl CustodyEvent {
    /// What happened, one by one: several entries may share an object.
    pub fn entries(&self) -> impl Iterator<Item = (Timestamp, Option<Step>, &Body)> {
        let (one, several) = match &self.body {
            Body::Several { entries } => (None, entries.as_slice()),
            body => (Some((self.at, self.step, body)), [].as_slice()),
        };
        one.into_iter().chain(several.iter().map(|entry| (entry.at, entry.step, &entry.body)))
    }
}

/// The key of a case's event.
#[must_use]
pub fn key(case: &CaseId, seq: u64) -> String {
    format!("{}{seq:06}.json", prefix(case))
}

impl CustodyEvent {
    /// Whether it says itself that it is this event of this case.
    #[must_use]
    pub fn is_at(&self, case: &CaseId, number: u64) -> bool {
        self.seq == number && self.case == *case
    }
}

/// The number of the event that a key is for; none for a key of anything else.
#[must_use]
pub fn number(case: &CaseId, key: &str) -> Option<u64> {
    let digits = key.strip_prefix(&prefix(case))?.strip_suffix(".json")?;
    let number = digits.parse().ok()?;
    // One number, one key: neither a sign nor more zeros.
    (number > 0 && self::key(case, number) == key).then_some(number)
}

/// The prefix of a case's events.
#[must_use]
pub fn prefix(case: &CaseId) -> String {
    format!("cases/{case}/custody/")
}
