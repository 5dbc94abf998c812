//! What a case's events come to: pure.

use std::collections::{BTreeMap, BTreeSet};

use cleanroom_cloud::{AccountId, Change};
use cleanroom_contract::{ScanId, Summary, Timestamp, VolumeId};
use serde::Serialize;

use super::event::{Body, CustodyEvent, Exhibit, Outcome};
use crate::{
    brake::AtDeadline,
    case::{Shortfall, Step},
    flow::approval::Decision,
    original::Original,
    steps::{clean_room::MOST_VOLUMES, revoke::not_cut::Survivor},
};

/// A scan whose bundle was read back.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Examined {
    /// When it was read back.
    pub at: Timestamp,
    /// Which of the case's rooms it is from.
    pub room: u32,
    /// The bundle's files.
    pub exhibits: Vec<Exhibit>,
    /// What came of it.
    pub summary: Summary,
    /// Volumes that it was to examine and did not, and those of its room that no scan had examined by then.
    pub missing: Vec<VolumeId>,
}

/// That people are asked whether to contain.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Asked {
    /// Since when.
    pub at: Timestamp,
    /// Why.
    pub why: Vec<String>,
    /// Until when they may answer.
    pub deadline: Timestamp,
    /// What is done then.
    pub otherwise: AtDeadline,
}

/// A person's answer.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Answered {
    /// When.
    pub at: Timestamp,
    /// What is to be done.
    pub decision: Decision,
    /// Who says so: an STS caller ARN.
    pub by: String,
    /// Why.
    pub reason: Option<String>,
}

/// The state that the events tell of.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Ledger {
    /// The instance before the response: the first that was recorded is the one that holds.
    pub original: Option<Original>,
    /// What spoke for a compromise.
    pub grounds: Vec<String>,
    /// A person's reason.
    pub reason: Option<String>,
    /// The steps that something was announced or reached for.
    pub steps: BTreeSet<Step>,
    /// Changes that were announced, in order.
    pub intended: Vec<Change>,
    /// The calls by which snapshots were to be taken, as their tag names them.
    pub sets: BTreeSet<String>,
    /// Interfaces whose tracked flows were dropped.
    pub flushed: BTreeSet<String>,
    /// Goals that were read back as reached, `step:goal`, and when first.
    pub reached: BTreeMap<String, Timestamp>,
    /// What the changes came to, in order.
    pub outcomes: Vec<Outcome>,
    /// What the record holds, by key.
    pub exhibits: BTreeMap<String, Exhibit>,
    /// Questions that have been answered, by the name of their answer's file.
    pub recorded_at: Option<Timestamp>,
    /// Questions that were not answered, and why.
    pub missing: BTreeMap<String, String>,
    /// What the instance's role session made that lives on.
    pub survivors: BTreeSet<Survivor>,
    /// Milestones that people were told of.
    pub notified: BTreeSet<String>,
    /// Since when people are asked, why and until when: the first time counts.
    pub asked: Option<Asked>,
    /// What a person answered last.
    pub answered: Option<Answered>,
    /// When it was opened, contained, preserved, released, closed.
    pub opened_at: Option<Timestamp>,
    /// When every interface was read back as isolated.
    pub contained_at: Option<Timestamp>,
    /// When all snapshots were whole.
    pub preserved_at: Option<Timestamp>,
    /// The snapshots that are the evidence.
    pub snapshots: Vec<String>,
    /// Scans that were ordered, and in which of the case's rooms.
    pub orders: BTreeMap<ScanId, u32>,
    /// The forensic account that the evidence was handed to last, and the role that was acted in there.
    pub entrusted: Option<(AccountId, String)>,
    /// Copies in the forensic account, by the snapshot that each was made from.
    pub received: BTreeMap<String, String>,
    /// Scans whose bundles were read back.
    pub reports: BTreeMap<ScanId, Examined>,
    /// Scans whose bundles are not relied on, and why.
    pub refused: BTreeMap<ScanId, String>,
    /// When it was released.
    pub released_at: Option<Timestamp>,
    /// When it ended.
    pub closed_at: Option<Timestamp>,
    /// What was short at the end of the last run, and of its parts that have ended since.
    pub shortfalls: Vec<Shortfall>,
    /// The same of each part that has not been summed up yet.
    pub short_parts: BTreeMap<String, Vec<Shortfall>>,
}

impl Ledger {
    /// Takes one more event into account.
    pub fn take(&mut self, event: &CustodyEvent) {
        for (at, step, body) in event.entries() {
            if matches!(body, Body::Intent { .. } | Body::Reached { .. } | Body::Contained { .. }) {
                self.steps.extend(step);
            }
            self.take_entry(at, event.late, body);
        }
    }

    /// What was done, or may have been: all that was announced but for what was refused. Who undoes it looks at the world
    /// before each, so one too many does no harm.
    #[must_use]
    pub fn changes(&self) -> Vec<Change> {
        let was = |change: &&Change, error: bool| {
            self.outcomes.iter().any(|o| o.change == **change && o.error.is_some() == error)
        };
        let done = |change: &&Change| was(change, false) || !was(change, true);
        self.intended.iter().filter(done).cloned().collect()
    }

    /// Whether nothing more comes of a scan: its bundle was read back, and relied on or not.
    #[must_use]
    pub fn is_over(&self, scan: &ScanId) -> bool {
        self.reports.contains_key(scan) || self.refused.contains_key(scan)
    }

    /// How many rooms the case has, or is to have: as many as its volumes need, and as any was ordered for.
    #[must_use]
    pub fn rooms(&self) -> u32 {
        let volumes = self.original.as_ref().map_or(0, |o| o.instance.volumes.len());
        let needed = volumes.max(self.snapshots.len()).div_ceil(MOST_VOLUMES);
        let ordered = self.orders.values().max().copied().unwrap_or(1);
        u32::try_from(needed).unwrap_or(u32::MAX).max(ordered)
    }

    /// The newest scan of each room that was read back, by the room.
    #[must_use]
    pub fn newest_reports(&self) -> BTreeMap<u32, (&ScanId, &Examined)> {
        self.reports.iter().map(|(scan, report)| (report.room, (scan, report))).collect()
    }

    /// The newest scan that was ordered in each room, by the room.
    #[must_use]
    pub fn newest_orders(&self) -> BTreeMap<u32, &ScanId> {
        self.orders.iter().map(|(scan, room)| (*room, scan)).collect()
    }

    /// What a whole run says holds until the next; what a part says, until that part or a whole run says otherwise.
    fn take_short(&mut self, shortfalls: &[Shortfall], part: Option<&str>) {
        let Some(part) = part else {
            self.short_parts.clear();
            self.shortfalls = shortfalls.to_vec();
            return;
        };
        let before = self.short_parts.insert(part.to_owned(), shortfalls.to_vec());
        let others: Vec<_> = self.short_parts.iter().filter(|(name, _)| *name != part).collect();
        let gone = before.unwrap_or_default();
        self.shortfalls
            .retain(|s| !gone.contains(s) || others.iter().any(|(_, of)| of.contains(s)));
        let new: Vec<_> =
            shortfalls.iter().filter(|s| !self.shortfalls.contains(s)).cloned().collect();
        self.shortfalls.extend(new);
    }

    fn take_entry(&mut self, at: Timestamp, late: bool, body: &Body) {
        match body {
            Body::Opened { original, grounds, reason, .. } => {
                // A second one comes from a writer that had not seen the first.
                // One that comes late tells of an earlier moment.
                let earlier = late && self.opened_at.is_some_and(|opened| at < opened);
                if self.original.is_none() || earlier {
                    self.original = Some((**original).clone());
                    self.opened_at = Some(at);
                    self.grounds.clone_from(grounds);
                    self.reason.clone_from(reason);
                }
            }
            Body::Grounds { grounds } => {
                let new = grounds.iter().filter(|g| !self.grounds.contains(g)).cloned();
                let new: Vec<_> = new.collect();
                self.grounds.extend(new);
            }
            // Entries are never nested.
            Body::Several { .. } => {}
            Body::Intent { changes, .. } => self.intend(changes),
            Body::Done { outcomes, .. } | Body::Acted { outcomes, .. } => {
                // New groups let new flows be tracked.
                for outcome in outcomes {
                    if let Change::SetGroups { interface, .. } = &outcome.change {
                        self.flushed.remove(interface.as_str());
                    }
                }
                self.outcomes.extend(outcomes.iter().cloned());
            }
            Body::Reached { goal } => {
                self.reached.entry(goal.clone()).or_insert(at);
            }
            Body::Flushed { interfaces } => self.flushed.extend(interfaces.iter().cloned()),
            Body::Recorded { exhibits, missing, survivors } => {
                self.survivors.extend(survivors.iter().cloned());
                for exhibit in exhibits {
                    self.exhibits.insert(exhibit.key.clone(), exhibit.clone());
                }
                self.recorded_at.get_or_insert(at);
                self.missing.extend(missing.clone());
                self.missing
                    .retain(|question, _| !exhibits.iter().any(|e| answers(&e.key, question)));
            }
            Body::Preserved { snapshots, .. } => {
                self.preserved_at.get_or_insert(at);
                self.snapshots.clone_from(snapshots);
            }
            Body::Contained { .. } => {
                self.contained_at.get_or_insert(at);
            }
            Body::Notified { milestone, .. } => {
                self.notified.insert(milestone.clone());
            }
            Body::Ordered { scan, room, .. } => {
                self.orders.insert(scan.clone(), *room);
            }
            Body::Reported { scan, room, exhibits, summary, missing } => {
                let (exhibits, missing) = (exhibits.clone(), missing.clone());
                let summary = (**summary).clone();
                self.reports.entry(scan.clone()).or_insert(Examined {
                    at,
                    room: *room,
                    exhibits,
                    summary,
                    missing,
                });
            }
            Body::Refused { scan, why } => {
                self.refused.entry(scan.clone()).or_insert_with(|| why.clone());
            }
            Body::Entrusted { account, role, .. } => {
                self.entrusted = Some((account.clone(), role.clone()));
            }
            Body::Received { copies, .. } => self.received.extend(copies.clone()),
            Body::TornDown { .. } => {}
            Body::Short { shortfalls, part } => self.take_short(shortfalls, part.as_deref()),
            Body::Asked { why, deadline, otherwise } => {
                let (deadline, otherwise) = (*deadline, *otherwise);
                self.asked.get_or_insert(Asked { at, why: why.clone(), deadline, otherwise });
            }
            Body::Answered { decision, by, reason } => {
                let (by, reason) = (by.clone(), reason.clone());
                self.answered = Some(Answered { at, decision: *decision, by, reason });
            }
            Body::Released { .. } => self.released_at = Some(at),
            Body::Closed { .. } => self.closed_at = Some(at),
        }
    }

    fn intend(&mut self, changes: &[Change]) {
        for change in changes {
            if let Change::CreateSnapshots { tags, .. } | Change::CreateSnapshot { tags, .. } =
                change
                && let Some(set) = tags.get(crate::steps::snapshot::SET)
            {
                self.sets.insert(set.clone());
            }
            if !self.intended.contains(change) {
                self.intended.push(change.clone());
            }
        }
    }

    /// What the events come to.
    pub fn of<'e>(events: impl IntoIterator<Item = &'e CustodyEvent>) -> Self {
        let mut ledger = Self::default();
        for event in events {
            ledger.take(event);
        }
        ledger
    }
}

/// Whether an object of the record answers a question. Its name is the question's and a number, and part of its digest where
/// another object had that name; a question's name may be the beginning of another's.
fn answers(key: &str, question: &str) -> bool {
    let file = key.rsplit('/').next().unwrap_or(key);
    let stem = file.rsplit_once('.').map_or(file, |(stem, _)| stem);
    let Some(rest) = stem.strip_prefix(question).and_then(|rest| rest.strip_prefix('-')) else {
        return false;
    };
    let (number, digest) = rest.split_once('-').unwrap_or((rest, ""));
    !number.is_empty()
        && number.bytes().all(|b| b.is_ascii_digit())
        && digest.bytes().all(|b| b.is_ascii_hexdigit())
}

#[cfg(test)]
mod tests {
    use super::answers;

    #[test]
    fn an_object_answers_the_question_of_its_name_and_no_other() {
        for (file, question, expected) in [
            ("instance-1.json", "instance", true),
            ("instance-12-0123456789ab.json", "instance", true),
            ("instance-status-1.json", "instance", false),
            ("role-web-attached-policies-1.json", "role-web", false),
            ("role-web-1.json", "role-web", true),
            ("role-web.json", "role-web", false),
            ("instance-type-m7i.large-1.json", "instance-type-m7i.large", true),
            ("cloudtrail-pass-1-session-2.jsonl", "cloudtrail-pass-1-session", true),
        ] {
            let key = format!("cases/c-1/record/{file}");
            assert_eq!(answers(&key, question), expected, "{file} for {question}");
        }
    }
}
