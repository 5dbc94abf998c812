//! The end of an execution: what no step could say itself, in the log and to people.

use std::collections::BTreeMap;

use cleanroom_cloud::Notice;
use serde_json::{Value, json};

use super::told;
use crate::{
    case::{Case, Run, Shortfall, Step, lock},
    execution::{Ask, Failed},
    flow::investigate,
    journal::event::Body,
    steps::record,
};

/// Where each step's facts are in what the machine holds, and the step that it belongs to.
const STEPS: [(&str, &str, Step); 10] = [
    ("/before/protect", "protect", Step::Protect),
    ("/before/detach", "detach", Step::Detach),
    ("/before/snapshot", "snapshot", Step::Snapshot),
    ("/after/cut/flush", "flush", Step::Isolate),
    ("/after/cut/revoke", "revoke", Step::Revoke),
    ("/after/tag", "tag", Step::Tag),
    ("/after/record", "record", Step::Record),
    ("/after/notify", "notify", Step::Notify),
    ("/after/balancers", "balancers", Step::Detach),
    ("/preserve", "preserve", Step::Snapshot),
];

/// Steps that the machine asked for and that gave no answer.
fn silent(machine: &Value) -> Vec<Shortfall> {
    let asked = |path: &str| {
        let first = path.split('/').nth(1).unwrap_or_default();
        !machine[first].is_null()
    };
    let lacks = STEPS.iter().filter(|(path, ..)| {
        asked(path) && machine.pointer(path).is_none_or(|held| held["facts"].is_null())
    });
    let short = |(path, name, step): &(&str, &str, Step)| {
        let error = machine.pointer(path).and_then(|held| held["error"].as_str());
        Shortfall {
            step: *step,
            what: format!(
                "the step {name} gave no answer: {}",
                error.unwrap_or("no reason is known")
            ),
            advice: "look at the step function's log; run respond: it goes on where it was"
                .to_owned(),
        }
    };
    lacks.map(short).collect()
}

/// Sums the case up: what is late is appended, what is short is logged, people are told.
pub(super) async fn report(case: &Case, run: &Run, ask: &Ask) -> Value {
    // CloudTrail has caught up by now, where this took its time.
    record::run(case).await;
    for shortfall in silent(&ask.machine) {
        case.short(shortfall);
    }
    let before = case.journal.ledger().await;
    for shortfall in before.short_parts.into_values().flatten() {
        case.short(shortfall);
    }
    investigate::unread(case).await;
    super::super::report::remarks(case).await;
    let shortfalls = lock(&case.shortfalls).clone();
    case.journal.append(None, Body::Short { shortfalls: shortfalls.clone(), part: None }).await;
    let left = ask.machine.get("left").is_some_and(|left| !left.is_null());
    if !left {
        told(case).await;
    }
    let ledger = case.journal.ledger().await;
    let reported = ledger.newest_reports();
    json!({
        "case": case.scene.case,
        "contained": ledger.contained_at.is_some(),
        "preserved": ledger.preserved_at.is_some(),
        "reported": (1..=ledger.rooms()).all(|room| reported.contains_key(&room)),
        "shortfalls": shortfalls.len(),
        "took": run.started.elapsed().as_secs(),
    })
}

/// People are told of an alert that came to nothing, and why. There is no case.
pub(super) async fn refused(run: &Run, ask: &Ask) -> Result<Value, Failed> {
    let why = ask.machine.pointer("/verify/facts/why").and_then(Value::as_str);
    let why = why.unwrap_or("no reason is known");
    let notice = Notice {
        subject: format!("[cleanroom] {} refused", ask.instance),
        text: format!("{} is not contained: {}\n", ask.instance, cleanroom_contract::printable(why)),
        json: json!({ "v": 1, "instance": ask.instance, "step": "refused", "severity": "info", "why": why }).to_string(),
        attributes: BTreeMap::from([
            ("severity".to_owned(), "info".to_owned()),
            ("step".to_owned(), "refused".to_owned()),
        ]),
    };
    match run.cloud.notices.publish(&notice).await {
        Ok(_) => Ok(json!({ "refused": why })),
        Err(error) => Err(Failed { retryable: error.is_transient(), why: error.to_string() }),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_step_without_facts_gave_no_answer_and_one_that_was_not_asked_is_none() {
        let machine = json!({
            "before": {"protect": {"facts": {}}, "detach": {"error": "States.Timeout"}, "snapshot": {"facts": {"reached": true}}},
            "isolate": {"facts": {"contained": true}},
        });
        let found = silent(&machine);
        assert_eq!(found.len(), 1, "{found:?}");
        assert!(found[0].what.contains("detach") && found[0].what.contains("States.Timeout"));
        assert!(silent(&json!({})).is_empty());
    }
}
