//! Isolates and tells, whatever else is broken; and keeps contained what is.
//!
//! The last resort of the state machine, and the answer to whoever undoes a containment. Cuts interfaces and takes public
//! addresses, and nothing else. Never works on an instance that settings exempt, that is another account's, or whose case a
//! person has released or closed.

use std::{collections::BTreeSet, time::Duration};

use cleanroom_cloud::ErrorKind;
use cleanroom_contract::{CaseId, InstanceId, Timestamp};
use futures_util::{StreamExt as _, stream};
use serde::Serialize;
use serde_json::{Value, json};
use tokio::time::{Instant, timeout_at};

use super::{
    FlowError, approval, find,
    single::{CUTTING, end, input, isolated, load, never, told},
    status::{self, State, Status},
};
use crate::{
    case::Run,
    execution::{Ask, Failed},
    journal::{digest, error_chain, seconds},
    steps::verify,
};

/// Cases that are looked at at a time.
const AT_ONCE: usize = 8;

/// How long a look at a case may take, with all that it makes necessary: a call that never answers keeps no other case from
/// being looked at.
const LOOK: Duration = Duration::from_secs(120);

/// Seconds between the beginnings of two rounds, as the response stack has it.
const HOUR: i64 = 3_600;

/// 2^64 divided by the golden ratio.
const GOLDEN: u64 = 0x9E37_79B9_7F4A_7C15;

/// Words of an event that are compared with what cases have.
const MOST_WORDS: usize = 1_000;

/// How a case was found, and what was done about it.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Watched {
    /// The case.
    pub case: CaseId,
    /// Its instance.
    pub instance: InstanceId,
    /// Hours since it was opened.
    pub age_hours: f64,
    /// Interfaces that an ended run had left open, closed now or not.
    pub open: usize,
    /// What was not as the response left it.
    pub drift: Vec<String>,
    /// Whether its room has told nothing for longer than rooms do.
    pub silent: bool,
    /// Whether it is contained, read back; none where it was not to be yet.
    pub contained: Option<bool>,
    /// What could not be looked at.
    pub unknown: Vec<String>,
}

/// What a round of looking at all open cases came to.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Round {
    /// The cases that were looked at.
    pub watched: Vec<Watched>,
    /// How many there was no time for. A later round begins with them.
    pub left: usize,
}

/// Cuts every interface of an instance, and tells people.
///
/// # Errors
/// When it is not to be contained, or nothing at all could be done.
pub async fn contain(run: &Run, ask: &Ask) -> Result<Value, Failed> {
    let described = run.cloud.inventory.get_instance(&ask.instance).await;
    match &described {
        Ok(instance) => {
            let reason = input(ask).words();
            verify::decide(instance, &run.caller, &run.policy, reason.as_deref())
                .map_err(|refusal| never(refusal.to_string()))?;
        }
        Err(error) if error.kind == ErrorKind::NotFound => {
            return Err(never(format!("{} is not there: {error}", ask.instance)));
        }
        // What can not be looked at may still be cut.
        Err(_) => {}
    }
    let (mut case, _) = load(run, ask).await?;
    // An address that never leaves must not keep the answer from coming: its function is given five minutes.
    case.bounds.wait = Some(CUTTING);
    let facts = Box::pin(isolated(&case, run)).await;
    told(&case).await;
    Ok(end(&case, ask, facts).await)
}

/// Looks at the open cases of this account and Region until `ends`, and contains again what is not as it was left. Where there
/// is no time for all of them, each hour's round begins with others, and none is left out for good: each has its `place`.
///
/// # Errors
/// When the cases can not be listed.
pub async fn watch(run: &Run, ends: Instant) -> Result<Round, Failed> {
    let (known, _) = find::cases(&*run.cloud.store, &run.caller).await.map_err(unlisted)?;
    let mut open: Vec<_> = known.into_iter().filter(|known| !known.released).collect();
    let turn = run.clock.now().seconds.div_euclid(HOUR);
    open.sort_by_cached_key(|known| place(&known.claim.case, turn));
    let looks = open.iter().enumerate().map(|(n, known)| async move {
        let now = Instant::now();
        // The first are looked at however little time there is, else no round would come any further.
        let in_time = n < AT_ONCE || now + LOOK <= ends;
        if !in_time {
            return None;
        }
        let kept = timeout_at(ends.min(now + LOOK), keep(run, known)).await;
        let late =
            |_| Some(unknown(run, known, format!("it took longer than {:?}", now.elapsed())));
        Some(kept.unwrap_or_else(late))
    });
    let looks: Vec<_> = looks.collect();
    let looked: Vec<_> = stream::iter(looks).buffer_unordered(AT_ONCE).collect().await;
    let left = looked.iter().filter(|looked| looked.is_none()).count();
    Ok(Round { watched: looked.into_iter().flatten().flatten().collect(), left })
}

/// Where a case stands in a round's order.
///
/// Its name's digest is its place on a ring, for good, and each round begins at another point of the ring: at the next multiple
/// of the golden ratio. Any number of these divide the ring nearly evenly (three-distance theorem), so that sooner or later
/// a round begins right before every case, whichever others come and go: of `n` cases with time for `k`, most after `n / k`
/// rounds, and those whose places lie in a clump after about `5n / k`. Nothing is to be kept between two rounds for that.
fn place(case: &CaseId, turn: i64) -> u64 {
    let digest = digest(case.as_str().as_bytes()).to_string();
    let place = digest.get(..16).and_then(|digits| u64::from_str_radix(digits, 16).ok());
    place.unwrap_or_default().wrapping_sub(turn.cast_unsigned().wrapping_mul(GOLDEN))
}

/// A case that could not be looked at.
fn unknown(run: &Run, known: &find::Known, why: String) -> Watched {
    Watched {
        case: known.claim.case.clone(),
        instance: known.claim.instance.clone(),
        age_hours: hours(run, known.claim.at),
        open: 0,
        drift: Vec::new(),
        silent: false,
        contained: None,
        unknown: vec![why],
    }
}

/// Hours since then.
fn hours(run: &Run, at: Timestamp) -> f64 {
    (seconds(run.clock.now()) - seconds(at)).max(0.0) / 3_600.0
}

fn unlisted(error: FlowError) -> Failed {
    Failed { retryable: true, why: error_chain(&error) }
}

/// One case, looked at and contained again where it drifted. None where it is closed.
async fn keep(run: &Run, known: &find::Known) -> Option<Watched> {
    let status = match status::of(run, known).await {
        Ok(status) if matches!(status.state, State::Closed | State::Released) => return None,
        Ok(status) => status,
        Err(error) => return Some(unknown(run, known, error_chain(&error))),
    };
    let contained = match (status.state, status.contained_at) {
        // A response that has not come so far is at work, or another one starts it again.
        (_, None) => None,
        (State::Drifted, _) => Some(again(run, &status).await),
        _ => Some(true),
    };
    Some(Watched {
        age_hours: hours(run, status.opened_at.unwrap_or(known.claim.at)),
        case: status.case,
        instance: status.instance,
        open: status.found_open.len() + status.still_open.len(),
        drift: status.drift,
        silent: status.scans.iter().any(|scan| scan.silent),
        contained,
        unknown: status.unknown,
    })
}

/// Contains a case that drifted. What drifted beside its interfaces is told, and a response's to mend.
async fn again(run: &Run, status: &Status) -> bool {
    let ask = of(&status.instance, &status.case);
    let facts = contain(run, &ask).await;
    facts.is_ok_and(|facts| facts["contained"] == true)
}

fn of(instance: &InstanceId, case: &CaseId) -> Ask {
    Ask {
        step: "contain".to_owned(),
        instance: instance.clone(),
        case: case.clone(),
        run: None,
        started: None,
        input: Value::Null,
        open: json!({ "case": case }),
        token: None,
        asked: Value::Null,
        looked: Value::Null,
        group: Value::Null,
        order: Value::Null,
        machine: Value::Null,
    }
}

/// Answers an event of EventBridge: an execution that ended before its time, or a call that may have undone a containment.
/// Whether it concerns a case is looked up, not believed.
///
/// # Errors
/// When that can not be looked up, or an instance can not be contained now.
pub async fn concerning(run: &Run, event: &Value) -> Result<Vec<Value>, Failed> {
    if let Some(text) = event.pointer("/detail/input").and_then(Value::as_str) {
        return ended(run, text).await;
    }
    let words = words(event);
    let (known, _) = find::cases(&*run.cloud.store, &run.caller).await.map_err(unlisted)?;
    let open = known.iter().filter(|known| !known.released);
    let looks: Vec<_> = open
        .map(|known| async {
            if concerns(run, known, &words).await { keep(run, known).await } else { None }
        })
        .collect();
    let looks = stream::iter(looks).buffer_unordered(AT_ONCE);
    Ok(looks.filter_map(async |watched| watched.map(|watched| json!(watched))).collect().await)
}

/// An execution ended before its time: its instances are contained all the same.
async fn ended(run: &Run, text: &str) -> Result<Vec<Value>, Failed> {
    let input: Value = serde_json::from_str(text)
        .map_err(|error| never(format!("the input of the execution can not be read: {error}")))?;
    let several = input["instances"].as_array().cloned().unwrap_or_else(|| vec![input]);
    let mut done = Vec::new();
    let mut failed = None;
    for one in several {
        let named = (one["instance"].as_str(), one["case"].as_str());
        let (Some(Ok(instance)), Some(Ok(case))) =
            (named.0.map(str::parse::<InstanceId>), named.1.map(str::parse::<CaseId>))
        else {
            continue;
        };
        let ask = Ask { input: one, open: Value::Null, ..of(&instance, &case) };
        let contained = match is_decided(run, &ask).await {
            Ok(true) => contain(run, &ask).await,
            Ok(false) => Ok(json!({ "contained": false, "asks": true })),
            Err(error) => Err(error),
        };
        match contained {
            Ok(facts) => done.push(facts),
            Err(error) => failed = Some(error),
        }
    }
    failed.map_or(Ok(done), Err)
}

/// Whether nobody is to be asked, or the answer was to contain: that an execution was stopped decides nothing.
async fn is_decided(run: &Run, ask: &Ask) -> Result<bool, Failed> {
    let (case, _) = load(run, ask).await?;
    let input = input(ask);
    let ledger = case.journal.ledger().await;
    if ledger.answered.is_none()
        && ledger.asked.is_none()
        && approval::needed(&case, &input).await.is_empty()
    {
        return Ok(true);
    }
    let due = approval::due(&case, &input, 1).await;
    Ok(due == approval::Due::Decided(approval::Decision::Contain))
}

/// The names that an event gives, wherever it does: ids and ARNs.
fn words(event: &Value) -> BTreeSet<String> {
    let mut words = BTreeSet::new();
    let mut left: Vec<&Value> = ["/detail/requestParameters", "/detail/responseElements"]
        .iter()
        .filter_map(|path| event.pointer(path))
        .collect();
    while let Some(value) = left.pop() {
        match value {
            Value::String(text) if words.len() < MOST_WORDS => drop(words.insert(text.clone())),
            Value::Array(all) => left.extend(all),
            Value::Object(all) => left.extend(all.values()),
            _ => {}
        }
    }
    words
}

/// Whether a case is of an instance that is named, or has an interface or a group that is.
async fn concerns(run: &Run, known: &find::Known, words: &BTreeSet<String>) -> bool {
    if words.contains(known.claim.instance.as_str()) {
        return true;
    }
    if !words
        .iter()
        .any(|word| ["eni-", "sg-", "eipassoc-"].iter().any(|kind| word.starts_with(kind)))
    {
        return false;
    }
    // What can not be looked up is looked at.
    let Ok(interfaces) = run.cloud.inventory.interfaces(&known.claim.instance).await else {
        return true;
    };
    interfaces.iter().any(|interface| {
        words.contains(interface.id.as_str())
            || interface.groups.iter().any(|group| words.contains(group.as_str()))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sooner_or_later_a_round_begins_with_every_case_whichever_come_and_go() {
        let case = |n: usize| format!("i-{n:017x}-1").parse::<CaseId>().expect("a case id");
        let all: Vec<_> = (0..1_000).map(case).collect();
        let mut first = BTreeSet::new();
        let mut rounds = 0;
        // From any hour on; of the thousand, another tenth is not there in each round.
        for turn in 491_000.. {
            let there = (0_i64..).zip(&all).filter(|(n, _)| (n + turn) % 10 != 0);
            let mut there: Vec<_> = there.map(|(_, case)| case).collect();
            there.sort_by_cached_key(|case| place(case, turn));
            first.extend(there.into_iter().take(AT_ONCE));
            rounds += 1;
            if first.len() == all.len() {
                break;
            }
            assert!(rounds < 5_000 / AT_ONCE, "{} of a thousand in {rounds} rounds", first.len());
        }
        assert!(rounds >= 1_000 / AT_ONCE, "not more than {AT_ONCE} are first in a round");
    }

    #[test]
    fn an_event_s_names_are_found_wherever_they_are() {
        let event = json!({"detail": {
            "userIdentity": {"arn": "not this"},
            "requestParameters": {"networkInterfaceId": "eni-1", "groupSet": {"items": [{"groupId": "sg-1"}]}},
            "responseElements": {"_return": true},
        }});
        let expected = ["eni-1", "sg-1"].map(str::to_owned);
        assert_eq!(words(&event), BTreeSet::from(expected));
        assert!(words(&json!({})).is_empty());
    }
}
