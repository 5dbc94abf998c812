//! One execution a case.
//!
//! Purpose: names each instance's case, and starts what is not at work yet: a few executions one by one, many through the
//! state machine for incidents, in as few executions as its input takes. Reads the claims; starts executions; changes
//! nothing else.

use std::sync::atomic::{AtomicBool, Ordering};

use cleanroom_cloud::{Begun, ExecutionState, execution_arn};
use cleanroom_contract::{CaseId, InstanceId};
use futures_util::{StreamExt as _, stream};
use serde_json::{Value, json};

use super::{Found, Miss, Patience, Way};
use crate::{
    alert::Source,
    case::Run,
    claim::{self, ClaimError},
    execution::{self, Input, StartError},
    journal::{digest, error_chain},
};

/// More new cases than these are an incident, and start at its pace.
const FEW: usize = 10;

/// Calls at a time.
const AT_ONCE: usize = 16;

/// What an execution's input may hold, in bytes, with room for what is around it: 256 KiB (Step Functions quotas).
const MOST_BYTES: usize = 250_000;

/// How often an incident of the same instances may have failed before it is not begun again.
const MOST_INCIDENTS: u32 = 9;

/// What came of starting.
#[derive(Debug, Default)]
pub(super) struct Started {
    pub(super) started: Vec<(InstanceId, CaseId)>,
    pub(super) joined: Vec<(InstanceId, CaseId)>,
    pub(super) later: Vec<String>,
    pub(super) failed: Vec<String>,
}

/// A case to be worked at.
struct Named {
    input: Input,
    /// Whether there is no case of this name yet, for certain.
    new: bool,
}

pub(super) async fn begin(run: &Run, way: &Way, patience: &Patience, found: Vec<Found>) -> Started {
    let down = AtomicBool::new(false);
    let names: Vec<_> = found.into_iter().map(|one| name(run, patience, one, &down)).collect();
    let named: Vec<_> = stream::iter(names).buffered(AT_ONCE).collect().await;
    let (new, mut single): (Vec<_>, Vec<_>) = named.into_iter().partition(|named| named.new);
    let mut begun = Started::default();
    if new.len() > FEW {
        single.extend(incident(run, way, patience, new, &mut begun).await);
    } else {
        single.extend(new);
    }
    let starts: Vec<_> = single.iter().map(|named| start(run, way, patience, named)).collect();
    let answers: Vec<_> = stream::iter(starts).buffered(AT_ONCE).collect().await;
    for (named, answer) in single.into_iter().zip(answers) {
        let case = (named.input.instance, named.input.case);
        match answer {
            Ok(true) => begun.joined.push(case),
            Ok(false) => begun.started.push(case),
            Err(Miss::Later(why)) => begun.later.push(why),
            Err(Miss::Never(why)) => begun.failed.push(format!("{}: {why}", case.0)),
        }
    }
    begun
}

impl From<ClaimError> for Miss {
    fn from(error: ClaimError) -> Self {
        match &error {
            ClaimError::Store { source, .. } if source.is_transient() => {
                Self::Later(error_chain(&error))
            }
            _ => Self::Never(error_chain(&error)),
        }
    }
}

impl From<StartError> for Miss {
    fn from(error: StartError) -> Self {
        match &error {
            StartError::Cloud { source, .. } if source.is_transient() => {
                Self::Later(error_chain(&error))
            }
            _ => Self::Never(error_chain(&error)),
        }
    }
}

/// The case of an instance: its open one, else its next. `down` tells that the claims could not be read a moment ago: then
/// nobody waits for them again.
async fn name(run: &Run, patience: &Patience, found: Found, down: &AtomicBool) -> Named {
    let Found { alert, approval } = found;
    let instance = alert.named.instance;
    let newest = if down.load(Ordering::Relaxed) {
        Err(Miss::Later("the claims could not be read".to_owned()))
    } else {
        let store = &*run.cloud.store;
        let bound = patience.at_most(run.bounds.custody);
        bound.have(|| claim::newest(store, &instance, &run.caller)).await
    };
    let (case, new) = match newest {
        Ok(newest) => {
            let new = newest.as_ref().is_none_or(|(_, released)| *released);
            (claim::open_or_next(&instance, newest.as_ref()), new)
        }
        Err(_) => {
            down.store(true, Ordering::Relaxed);
            (claim::default_case(&instance, 1), false)
        }
    };
    let input = Input {
        instance,
        case,
        source: Some(alert.source),
        part: Some(alert.part),
        reason: Some(alert.reason),
        approval,
        otherwise: Some(run.policy.brake.at_deadline),
    };
    Named { input, new }
}

/// Starts a case's execution. True where one is at work already, or was after this very alert.
async fn start(run: &Run, way: &Way, patience: &Patience, named: &Named) -> Result<bool, Miss> {
    let workflows = &*run.cloud.workflows;
    let input = &named.input;
    if !named.new && patience.have(|| done(run, &way.machine, input)).await? {
        return Ok(true);
    }
    let started = patience.have(|| execution::start(workflows, &way.machine, input)).await?;
    Ok(started.joined)
}

/// Whether an execution of this case succeeded after the very same alert: sources say again what they saw.
async fn done(run: &Run, machine: &str, input: &Input) -> cleanroom_cloud::Result<bool> {
    for n in 1..=100 {
        let Some(arn) = execution_arn(machine, &execution::name(&input.case, n)) else { break };
        let Some(there) = run.cloud.workflows.execution(&arn).await? else { break };
        let theirs = serde_json::from_str::<Input>(&there.input).ok();
        let theirs = theirs.filter(|theirs| theirs.instance == input.instance);
        if there.state == ExecutionState::Succeeded
            && theirs.is_some_and(|theirs| decide_again(&theirs, input))
        {
            return Ok(true);
        }
    }
    Ok(false)
}

/// Whether two alerts are one. A person's word never is: who sends an id again, or chooses a finding again, wants the response
/// to go on.
fn decide_again(one: &Input, other: &Input) -> bool {
    match (&one.source, &other.source) {
        (
            Some(Source::GuardDuty { finding: one, .. }),
            Some(Source::GuardDuty { finding: other, .. }),
        ) => one == other,
        (Some(Source::Alarm { name: one }), Some(Source::Alarm { name: other })) => one == other,
        (Some(Source::Trail { address: one, .. }), Some(Source::Trail { address: other, .. })) => {
            one == other
        }
        (
            Some(Source::Message { named: Some(by) }),
            Some(Source::Message { named: Some(other_by) }),
        ) => by == other_by && one.reason == other.reason,
        _ => false,
    }
}

/// Starts an incident. Returns what it could not start for good: that is started one by one.
async fn incident(
    run: &Run,
    way: &Way,
    patience: &Patience,
    new: Vec<Named>,
    begun: &mut Started,
) -> Vec<Named> {
    let mut left = Vec::new();
    let parts = pack(new, MOST_BYTES);
    let at_once = decide_at_once(way.at_once, parts.len());
    for part in parts {
        let instances: Vec<Value> = part.iter().map(|named| json!(named.input)).collect();
        let pace = way.pace.clamp(1, 120);
        let input = json!({"instances": instances, "max_concurrency": at_once, "pace": pace});
        match patience.have(|| start_many(run, &way.many, input.to_string())).await {
            Ok(joined) => {
                let cases = part.into_iter().map(|named| (named.input.instance, named.input.case));
                if joined { &mut begun.joined } else { &mut begun.started }.extend(cases);
            }
            Err(Miss::Later(why)) => {
                begun.later.extend(part.iter().map(|_| format!("start an incident: {why}")));
            }
            Err(Miss::Never(_)) => left.extend(part),
        }
    }
    left
}

/// Each of several incidents starts its part of what may start at once.
fn decide_at_once(at_once: u32, parts: usize) -> u32 {
    let parts = u32::try_from(parts).unwrap_or(u32::MAX).max(1);
    (at_once / parts).clamp(1, 10_000)
}

/// Cases in as few parts as fit, in their order.
fn pack(all: Vec<Named>, most: usize) -> Vec<Vec<Named>> {
    let mut parts: Vec<Vec<Named>> = Vec::new();
    let mut size = 0;
    for named in all {
        // With the comma behind it.
        let bytes = json!(named.input).to_string().len() + 1;
        size += bytes;
        match parts.last_mut() {
            Some(part) if size <= most => part.push(named),
            _ => {
                size = bytes;
                parts.push(vec![named]);
            }
        }
    }
    parts
}

/// Starts an incident, named for what it holds: the same again is found. True where it is there already.
async fn start_many(run: &Run, machine: &str, input: String) -> Result<bool, Miss> {
    let workflows = &run.cloud.workflows;
    let digest = digest(input.as_bytes()).to_string();
    for n in 1..=MOST_INCIDENTS {
        let name = format!("incident-{}-{n}", &digest[..32]);
        let arn = execution_arn(machine, &name)
            .ok_or_else(|| Miss::Never(format!("{machine:?} is not the ARN of a state machine")))?;
        match workflows.start(machine, &name, &input).await? {
            Begun::Runs(_) => return Ok(false),
            Begun::Taken => {
                let there = workflows.execution(&arn).await?;
                let state = there.map(|there| there.state);
                if matches!(state, Some(ExecutionState::Running | ExecutionState::Succeeded)) {
                    return Ok(true);
                }
            }
        }
    }
    Err(Miss::Never(format!("this incident was begun {MOST_INCIDENTS} times and failed")))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::alert::Part;

    fn input(n: usize, source: Source, reason: &str) -> Input {
        let instance: InstanceId = format!("i-{n:017x}").parse().expect("an id");
        Input {
            case: claim::default_case(&instance, 1),
            instance,
            source: Some(source),
            part: Some(Part::Unsaid),
            reason: Some(reason.to_owned()),
            approval: None,
            otherwise: None,
        }
    }

    fn message(named: Option<&str>) -> Source {
        Source::Message { named: named.map(str::to_owned) }
    }

    #[test]
    fn parts_are_full_and_none_is_too_large() {
        let named = |n| Named { input: input(n, message(None), "x"), new: true };
        let one = json!(named(0).input).to_string().len() + 1;
        for (count, most, expected) in [
            (0, 1000, vec![]),
            (1, 1, vec![1]),
            (3, one * 3, vec![3]),
            (4, one * 3, vec![3, 1]),
            (7, one * 3 + 1, vec![3, 3, 1]),
        ] {
            let parts = pack((0..count).map(named).collect(), most);
            let sizes: Vec<_> = parts.iter().map(Vec::len).collect();
            assert_eq!(sizes, expected, "{count} in {most}");
        }
    }

    #[test]
    fn several_incidents_share_what_may_start_at_once() {
        for (at_once, parts, expected) in
            [(40, 1, 40), (40, 3, 13), (2, 5, 1), (0, 0, 1), (u32::MAX, 1, 10_000)]
        {
            assert_eq!(decide_at_once(at_once, parts), expected, "{at_once} {parts}");
        }
    }

    #[test]
    fn a_source_that_says_the_same_again_is_one_alert_and_a_person_never() {
        let finding = |id: &str, severity_tenths| Source::GuardDuty {
            finding: id.to_owned(),
            kind: "x".to_owned(),
            severity_tenths,
        };
        let call = |address: &str| Source::Trail {
            call: address.to_owned(),
            address: address.parse().expect("an address"),
        };
        let alarm = || Source::Alarm { name: "cpu".to_owned() };
        let hub = || Source::SecurityHub { action: "Cleanroom".to_owned() };
        for (one, other, same) in [
            (finding("a", 50), finding("a", 80), true),
            (finding("a", 50), finding("b", 50), false),
            (call("203.0.113.7"), call("203.0.113.7"), true),
            (call("203.0.113.7"), call("203.0.113.8"), false),
            (alarm(), alarm(), true),
            (alarm(), finding("cpu", 50), false),
            (message(Some("edr")), message(Some("edr")), true),
            (message(Some("edr")), message(Some("siem")), false),
            (message(None), message(None), false),
            (hub(), hub(), false),
        ] {
            let (one, other) = (input(1, one, "why"), input(1, other, "why"));
            assert_eq!(decide_again(&one, &other), same, "{one:?} {other:?}");
        }
        let (one, other) =
            (input(1, message(Some("edr")), "a"), input(1, message(Some("edr")), "b"));
        assert!(!decide_again(&one, &other));
    }
}
