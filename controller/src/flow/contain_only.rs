//! Isolates and tells, whatever else is broken; and keeps contained what is.
//!
//! The last resort of the state machine, and the answer to whoever undoes a containment. Cuts interfaces and takes public
//! addresses, and nothing else. Never works on an instance that settings exempt, that is another account's, or whose case a
//! person has released or closed.

use std::collections::BTreeSet;

use cleanroom_cloud::ErrorKind;
use cleanroom_contract::{CaseId, InstanceId};
use futures_util::{StreamExt as _, stream};
use serde::Serialize;
use serde_json::{Value, json};

use super::{
    FlowError, approval, find,
    single::{CUTTING, end, input, isolated, load, never, told},
    status::{self, State, Status},
};
use crate::{
    case::Run,
    execution::{Ask, Failed},
    journal::{error_chain, seconds},
    steps::verify,
};

/// Cases that are looked at at a time.
const AT_ONCE: usize = 8;

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

/// Looks at every open case of this account and Region, and contains again what is not as it was left.
///
/// # Errors
/// When the cases can not be listed.
pub async fn watch(run: &Run) -> Result<Vec<Watched>, Failed> {
    let (known, _) = find::cases(&*run.cloud.store, &run.caller).await.map_err(unlisted)?;
    let open = known.into_iter().filter(|known| !known.released);
    let looks: Vec<_> = open.map(|known| async move { keep(run, &known).await }).collect();
    Ok(stream::iter(looks).buffer_unordered(AT_ONCE).filter_map(async |seen| seen).collect().await)
}

fn unlisted(error: FlowError) -> Failed {
    Failed { retryable: true, why: error_chain(&error) }
}

/// One case, looked at and contained again where it drifted. None where it is closed.
async fn keep(run: &Run, known: &find::Known) -> Option<Watched> {
    let (case, instance) = (known.claim.case.clone(), known.claim.instance.clone());
    let status = match status::of(run, known).await {
        Ok(status) if matches!(status.state, State::Closed | State::Released) => return None,
        Ok(status) => status,
        Err(error) => {
            let unknown = vec![error_chain(&error)];
            return Some(Watched {
                case,
                instance,
                age_hours: 0.0,
                open: 0,
                drift: Vec::new(),
                silent: false,
                contained: None,
                unknown,
            });
        }
    };
    let contained = match (status.state, status.contained_at) {
        // A response that has not come so far is at work, or another one starts it again.
        (_, None) => None,
        (State::Drifted, _) => Some(again(run, &status).await),
        _ => Some(true),
    };
    let now = run.clock.now();
    let opened = status.opened_at.unwrap_or(known.claim.at);
    Some(Watched {
        case,
        instance,
        age_hours: (seconds(now) - seconds(opened)).max(0.0) / 3_600.0,
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
    let mut done = Vec::new();
    for known in known.iter().filter(|known| !known.released) {
        if concerns(run, known, &words).await {
            done.extend(keep(run, known).await.map(|watched| json!(watched)));
        }
    }
    Ok(done)
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
