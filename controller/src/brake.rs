//! The brake: who may be contained without a person's word.
//!
//! Purpose: whoever may publish an alert could isolate a fleet. So automatic containments have a budget an hour, for all, for
//! each Auto Scaling group and for each VPC; and what an alert says decides whether it may contain by itself at all.
//! Beyond either, guards, snapshots and record are taken, and a person is asked. [`judge`] is pure. Touches, in
//! [`counted`], the evidence bucket below `brake/`, where every automatic containment leaves a mark. Never contains, never
//! refuses an alert, and never deletes a mark.

use std::{
    collections::{BTreeMap, BTreeSet},
    time::Duration,
};

use cleanroom_cloud::{Caller, Instance, Store};
use cleanroom_contract::{CaseId, Timestamp};
use serde::{Deserialize, Serialize};

use crate::{
    alert::{Part, Source},
    journal::digest,
};

/// The seconds over which containments are counted.
const HOUR: i64 = 3600;

/// What a case does at the end of its time where nobody answered.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum AtDeadline {
    /// It contains: an alert that nobody refused is taken for true.
    #[default]
    Contain,
    /// It leaves the instance as it is, preserved and watched.
    Leave,
}

impl AtDeadline {
    /// What becomes of the instance, for people.
    #[must_use]
    pub fn words(self) -> &'static str {
        match self {
            Self::Contain => "contained",
            Self::Leave => "left as it is",
        }
    }
}

/// What people have set.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct BrakePolicy {
    /// Automatic containments an hour, in this account and Region.
    pub per_hour: usize,
    /// Of those, in one Auto Scaling group.
    pub per_group: usize,
    /// Of those, in one VPC.
    pub per_vpc: usize,
    /// Kinds of sources after which a person is always asked, by [`Source::word`].
    pub ask_after: BTreeSet<String>,
    /// GuardDuty severity from which a finding contains by itself, times ten.
    pub severity_tenths: u32,
    /// How long a person is waited for.
    pub deadline: Duration,
    /// What happens then.
    pub at_deadline: AtDeadline,
}

impl Default for BrakePolicy {
    fn default() -> Self {
        Self {
            per_hour: 20,
            per_group: 5,
            per_vpc: 10,
            ask_after: BTreeSet::new(),
            severity_tenths: 70,
            deadline: Duration::from_secs(3600),
            at_deadline: AtDeadline::Contain,
        }
    }
}

/// Whether a case may contain.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "verdict", rename_all = "snake_case")]
pub enum Verdict {
    /// At once.
    Contain,
    /// After a person's word, or at the deadline.
    Ask {
        /// Why, each a sentence.
        why: Vec<String>,
    },
}

/// How many cases were let contain by themselves within the hour and before this one, by what is counted.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Counts {
    /// In this account and Region.
    pub all: usize,
    /// In the instance's Auto Scaling group.
    pub group: usize,
    /// In its VPC.
    pub vpc: usize,
}

/// Decides.
#[must_use]
pub fn judge(source: &Source, part: Part, counts: Counts, policy: &BrakePolicy) -> Verdict {
    let mut why = Vec::new();
    if policy.ask_after.contains(source.word()) {
        why.push(format!("the settings ask a person after every alert of {}", source.word()));
    }
    if part == Part::Target {
        why.push(
            "the instance is the target of what was seen, and may not be compromised".to_owned(),
        );
    }
    if let Source::GuardDuty { severity_tenths, .. } = source
        && *severity_tenths < policy.severity_tenths
    {
        let tenths = |n: u32| format!("{}.{}", n / 10, n % 10);
        why.push(format!(
            "the finding's severity is {}, and {} contains by itself",
            tenths(*severity_tenths),
            tenths(policy.severity_tenths)
        ));
    }
    for (count, budget, of) in [
        (counts.all, policy.per_hour, "in this account and Region"),
        (counts.group, policy.per_group, "in its Auto Scaling group"),
        (counts.vpc, policy.per_vpc, "in its VPC"),
    ] {
        if count >= budget {
            why.push(format!("{count} instances {of} were to be contained automatically within the hour before it, and the budget is {budget}"));
        }
    }
    if why.is_empty() { Verdict::Contain } else { Verdict::Ask { why } }
}

/// What is counted for an instance, as folders below `brake/<account>/<region>/`.
fn scopes(instance: &Instance, group: Option<&str>) -> [Option<String>; 3] {
    // A group's name may hold anything; part of its digest does as well.
    let group = group.map(|name| format!("group-{}", &digest(name.as_bytes()).to_string()[..16]));
    let vpc = instance.vpc.as_ref().map(|vpc| format!("vpc-of-{vpc}"));
    [Some("all".to_owned()), group, vpc]
}

/// `2026-11-22T08`, the hour that a mark lies in.
fn hour(at: Timestamp) -> String {
    at.to_string()[..13].to_owned()
}

/// Counts what was let contain by itself before this case and within the hour, and marks this case as one of it. The earlier
/// mark goes first, so that asking again gives the same answer. Of cases that are marked in one second a few too many may
/// be let.
///
/// # Errors
/// When the bucket does not answer. The caller decides what then holds.
pub async fn counted(
    store: &dyn Store,
    caller: &Caller,
    (instance, group): (&Instance, Option<&str>),
    case: &CaseId,
    now: Timestamp,
) -> cleanroom_cloud::Result<Counts> {
    let mut counts = [0, 0, 0];
    for (scope, count) in scopes(instance, group).into_iter().zip(&mut counts) {
        let Some(scope) = scope else { continue };
        let folder = format!("brake/{}/{}/{scope}/", caller.account, caller.region);
        if !marked(store, &folder, now).await?.contains_key(case.as_str()) {
            let mark = format!("{folder}{}/{}~{case}", hour(now), now.seconds);
            store.create(&mark, b"{}\n".to_vec()).await?;
        }
        // Read after writing: of two that mark at once, each sees the other.
        let marks = marked(store, &folder, now).await?;
        let own = (marks.get(case.as_str()).copied().unwrap_or(now.seconds), case.as_str());
        *count = marks.iter().filter(|(other, at)| (**at, other.as_str()) < own).count();
    }
    let [all, group, vpc] = counts;
    Ok(Counts { all, group, vpc })
}

/// The cases that were marked within the hour, each with its first mark's time in seconds.
async fn marked(
    store: &dyn Store,
    folder: &str,
    now: Timestamp,
) -> cleanroom_cloud::Result<BTreeMap<String, i64>> {
    let since = Timestamp { seconds: now.seconds - HOUR, ..now };
    let mut cases = BTreeMap::new();
    let hours = BTreeSet::from([hour(since), hour(now)]);
    for hour in hours {
        for key in store.list(&format!("{folder}{hour}/"), false).await? {
            let mark = key.rsplit('/').next().and_then(|name| name.split_once('~'));
            let Some((at, case)) = mark else { continue };
            let Some(at) = at.parse::<i64>().ok().filter(|at| *at >= since.seconds) else {
                continue;
            };
            let first = cases.entry(case.to_owned()).or_insert(at);
            *first = at.min(*first);
        }
    }
    Ok(cases)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn finding(severity_tenths: u32) -> Source {
        Source::GuardDuty { finding: "1".to_owned(), kind: "x".to_owned(), severity_tenths }
    }

    fn asks(source: &Source, part: Part, counts: Counts, policy: &BrakePolicy) -> usize {
        match judge(source, part, counts, policy) {
            Verdict::Contain => 0,
            Verdict::Ask { why } => why.len(),
        }
    }

    #[test]
    fn an_actor_of_a_severe_finding_is_contained_and_a_target_is_asked_about() {
        let (none, policy) = (Counts::default(), BrakePolicy::default());
        for (source, part, expected) in [
            (finding(80), Part::Actor, 0),
            (finding(80), Part::Credentials, 0),
            (finding(80), Part::Target, 1),
            (finding(69), Part::Actor, 1),
            (finding(40), Part::Target, 2),
            (Source::Message { named: None }, Part::Unsaid, 0),
        ] {
            assert_eq!(asks(&source, part, none, &policy), expected, "{source:?} {part:?}");
        }
    }

    #[test]
    fn each_budget_asks_by_itself() {
        let policy =
            BrakePolicy { per_hour: 3, per_group: 2, per_vpc: 1, ..BrakePolicy::default() };
        for (all, group, vpc, expected) in
            [(0, 0, 0, 0), (2, 1, 0, 0), (3, 0, 0, 1), (0, 2, 0, 1), (0, 0, 1, 1), (3, 2, 1, 3)]
        {
            let counts = Counts { all, group, vpc };
            assert_eq!(asks(&finding(90), Part::Actor, counts, &policy), expected, "{counts:?}");
        }
    }

    #[test]
    fn settings_may_ask_after_a_kind_of_source() {
        let ask_after = BTreeSet::from(["alarm".to_owned()]);
        let policy = BrakePolicy { ask_after, ..BrakePolicy::default() };
        let alarm = Source::Alarm { name: "x".to_owned() };
        assert_eq!(asks(&alarm, Part::Unsaid, Counts::default(), &policy), 1);
        assert_eq!(asks(&finding(90), Part::Actor, Counts::default(), &policy), 0);
    }
}
