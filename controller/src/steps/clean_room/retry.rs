//! What a stack that failed teaches the next one: which volumes it is made without, and whether they fill as they come.
//!
//! One volume must not cost the others their report: a Marketplace code, a key of somebody else's or a quota keeps it from being
//! made or attached, and CloudFormation then takes the whole room back. Reads what happened to stacks; changes nothing.

use std::collections::BTreeMap;

use cleanroom_cloud::{Change, Result, StackEvent, own_failures};
use cleanroom_contract::{OrderedVolume, SnapshotId};

use super::told;
use crate::case::Scene;

/// How many stacks one run makes at most.
pub(super) const MOST_TRIES: usize = 3;

/// What the next stack does otherwise.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Lessons {
    /// Snapshots that no volume is made from, and why.
    pub left_out: BTreeMap<SnapshotId, String>,
    /// Whether volumes are filled as it comes: the Region's quota of set rates is full.
    pub as_it_comes: bool,
}

impl Lessons {
    /// What the stacks that this run made and deleted again have taught.
    ///
    /// # Errors
    /// When their events can not be read.
    pub async fn of(scene: &Scene, applied: &[Change]) -> Result<Self> {
        let mut lessons = Self::default();
        let mut made = None;
        for change in applied {
            match change {
                Change::CreateStack { parameters, .. } => made = Some(parameters),
                Change::DeleteStack { name, id, .. } => {
                    if let Some(parameters) = made.take() {
                        let events = scene.inventory.stack_events(id).await?;
                        lessons.learn(name, parameters, &events);
                    }
                }
                _ => {}
            }
        }
        Ok(lessons)
    }

    /// Learns from what happened to a stack. Returns whether another try would be another.
    pub(super) fn learn(
        &mut self,
        stack: &str,
        parameters: &BTreeMap<String, String>,
        events: &[StackEvent],
    ) -> bool {
        let before = self.clone();
        let snapshot = |event: &StackEvent| {
            let n = place(&event.resource)?;
            parameters.get(&format!("Snapshot{n}"))?.parse::<SnapshotId>().ok()
        };
        let mut failures = own_failures(stack, events).peekable();
        // Where the room itself failed first, fewer volumes would not help it.
        if failures.peek().is_none_or(|first| snapshot(first).is_none()) {
            return false;
        }
        for event in failures {
            let Some(snapshot) = snapshot(event) else { continue };
            if is_of_rates(event) {
                self.as_it_comes = true;
            } else {
                self.left_out.entry(snapshot).or_insert_with(|| told(event));
            }
        }
        *self != before
    }

    /// The volumes that a stack is made with.
    pub(super) fn kept<'v>(
        &self,
        volumes: &'v [OrderedVolume],
    ) -> impl Iterator<Item = &'v OrderedVolume> {
        volumes.iter().filter(|volume| !self.left_out.contains_key(&volume.snapshot))
    }
}

/// The number of the volume that a resource of the template is about.
fn place(resource: &str) -> Option<&str> {
    let n = resource.strip_prefix("Volume").or_else(|| resource.strip_prefix("Attachment"))?;
    (n.len() == 2 && n.bytes().all(|b| b.is_ascii_digit())).then_some(n)
}

/// Whether a volume was refused for the rate that it was to be filled at. EC2 documents the quota (EBS user guide, "Provisioned
/// Rate for Volume Initialization") and not what it says where that is full: its name is what any form of it has.
fn is_of_rates(event: &StackEvent) -> bool {
    let why = event.reason.as_deref().unwrap_or_default();
    let letters = why.chars().filter(char::is_ascii_alphabetic).collect::<String>();
    letters.to_ascii_lowercase().contains("initializationrate")
}

#[cfg(test)]
mod tests {
    use cleanroom_contract::Timestamp;

    use super::*;

    fn failed(resource: &str, reason: &str) -> StackEvent {
        StackEvent {
            at: Timestamp::default(),
            resource: resource.to_owned(),
            kind: "AWS::EC2::Volume".to_owned(),
            status: "CREATE_FAILED".to_owned(),
            reason: Some(reason.to_owned()),
        }
    }

    fn parameters() -> BTreeMap<String, String> {
        let snapshot = |n: usize| (format!("Snapshot{n:02}"), format!("snap-0123456789abcdef{n}"));
        (1..=3).map(snapshot).chain([("Snapshot04".to_owned(), String::new())]).collect()
    }

    fn learnt(events: &[StackEvent]) -> (bool, Vec<String>, bool) {
        let mut lessons = Lessons::default();
        let new = lessons.learn("s", &parameters(), events);
        let left_out = lessons.left_out.keys().map(ToString::to_string).collect();
        (new, left_out, lessons.as_it_comes)
    }

    #[test]
    fn volumes_that_failed_by_themselves_are_left_out_and_no_others() {
        let codes = "'vol-0' with Marketplace codes may not be attached as a secondary device.";
        let cancelled = "Resource creation cancelled";
        for (events, expected) in [
            (vec![failed("Attachment02", codes)], (true, vec!["snap-0123456789abcdef2"], false)),
            (
                vec![
                    failed("Volume01", cancelled),
                    failed("Volume03", "the key is another's"),
                    failed("Attachment02", codes),
                    failed("Evidence", "later"),
                ],
                (true, vec!["snap-0123456789abcdef2", "snap-0123456789abcdef3"], false),
            ),
            (
                vec![failed("Volume01", "VolumeInitializationRateLimitExceeded: 5000 MiB/s")],
                (true, vec![], true),
            ),
            (
                vec![failed("Volume01", "You have exceeded your volume initialization rate quota")],
                (true, vec![], true),
            ),
            (vec![failed("Room", "no capacity"), failed("Volume01", "x")], (false, vec![], false)),
            (vec![failed("Volume04", "none of ours")], (false, vec![], false)),
            (vec![failed("VolumeXX", "x")], (false, vec![], false)),
            (vec![failed("Volume01", cancelled)], (false, vec![], false)),
            (vec![], (false, vec![], false)),
        ] {
            let (new, left_out, rate) = learnt(&events);
            let left_out: Vec<_> = left_out.iter().map(String::as_str).collect();
            assert_eq!((new, left_out, rate), expected, "{events:?}");
        }
    }

    #[test]
    fn what_is_known_already_is_no_reason_to_try_again() {
        let mut lessons = Lessons::default();
        let events = [failed("Volume01", "x")];
        assert!(lessons.learn("s", &parameters(), &events));
        assert!(!lessons.learn("s", &parameters(), &events));
    }
}
