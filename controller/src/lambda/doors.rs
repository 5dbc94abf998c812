//! The three entrances: what was sent becomes a call of the flow, and facts an answer.
//!
//! Purpose: reads what the function was invoked with, calls the one thing it asks for, and gives the facts to the metrics. Touches
//! what the flow touches. Never decides what is done in which order: that is the state machine's.

use cleanroom_contract::printable;
use cleanroom_controller::{
    case::Run,
    execution::{Ask, Failed},
    flow::{contain_only, single},
    intake,
};
use serde_json::{Value, json};
use tokio::time::Instant;

use super::{
    environment::Entrance,
    log::{Level, Log},
    metrics,
};

/// How much of a fault in a request is told, in characters.
const LONGEST: usize = 500;

/// Answers an event, by `ends` at the latest where it can put something off.
///
/// # Errors
/// What the flow could not do; or that the event is nothing that this function does.
pub(crate) async fn answer(
    run: Run,
    entrance: &Entrance,
    event: Value,
    (log, case_hours, ends): (&Log, f64, Instant),
) -> Result<Value, Failed> {
    match entrance {
        Entrance::Intake(way) => valued(&intake::take(&run, way, &event).await?),
        Entrance::Step => {
            let facts = single::perform(&run, &asked(event)?).await?;
            log.metrics(&metrics::metrics(&facts));
            Ok(facts)
        }
        Entrance::ContainOnly => match event["step"].as_str() {
            Some("contain") => {
                let facts = contain_only::contain(&run, &asked(event)?).await?;
                log.metrics(&metrics::metrics(&facts));
                Ok(facts)
            }
            Some("watch") => {
                let round = contain_only::watch(&run, ends).await?;
                let cases: Vec<_> = round.watched.iter().map(valued).collect::<Result<_, _>>()?;
                log.metrics(&metrics::watched(&cases));
                old(&cases, log, case_hours);
                if round.left > 0 {
                    let more = json!({ "looked_at": cases.len(), "left": round.left });
                    log.line(Level::Warn, "no time for every open case", more);
                }
                Ok(json!({ "watched": cases, "left": round.left }))
            }
            None if event["detail-type"].is_string() => {
                let done = contain_only::concerning(&run, &event).await?;
                let (cases, facts): (Vec<_>, Vec<_>) =
                    done.iter().cloned().partition(|one| one["age_hours"].is_number());
                facts.iter().for_each(|facts| log.metrics(&metrics::metrics(facts)));
                if !cases.is_empty() {
                    log.metrics(&metrics::watched(&cases));
                }
                Ok(json!({ "contained": done }))
            }
            _ => Err(wrong("contain-only does contain, watch, and events of EventBridge")),
        },
    }
}

fn wrong(why: &str) -> Failed {
    let why: String = why.chars().take(LONGEST).collect();
    Failed { retryable: false, why: format!("read the request: {}", printable(&why)) }
}

fn asked(event: Value) -> Result<Ask, Failed> {
    serde_json::from_value(event).map_err(|error| wrong(&error.to_string()))
}

fn valued(answer: &impl serde::Serialize) -> Result<Value, Failed> {
    serde_json::to_value(answer)
        .map_err(|error| Failed { retryable: false, why: format!("write the answer: {error}") })
}

/// Names the cases that are open for longer than their bound.
fn old(cases: &[Value], log: &Log, bound: f64) {
    for case in cases.iter().filter(|case| case["age_hours"].as_f64().is_some_and(|h| h > bound)) {
        let more = json!({ "case": case["case"], "instance": case["instance"], "hours": case["age_hours"] });
        log.line(Level::Warn, "open for longer than its bound", more);
    }
}
