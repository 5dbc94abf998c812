//! One step of a response at a time, for a state machine that has the order and the waiting.
//!
//! Does what [`respond`](super::respond) does, from the same goals, and answers with facts. Nothing is kept between two
//! steps: the case is read from its custody log each time, or, where the bucket does not answer, from the facts of `open` that the machine
//! passes on. What takes its time is looked at and not waited for. Never releases, and never works on a case that was released or closed.

mod preserve;
mod report;

use std::{sync::Arc, time::Duration};

use cleanroom_cloud::ErrorKind;
use cleanroom_contract::CaseId;
use futures_util::future::join_all;
use serde_json::{Map, Value, json};

use super::{
    FlowError, Request, approval, contain_only, cut, drop_tracked, find, hear, open, prepare,
    revoke, spawn,
};
use crate::{
    case::{Case, Goal, Run, lock},
    claim::ClaimError,
    engine::{Direction, again, ensure},
    execution::{Ask, Failed, Input},
    journal::{Journal, Ledger, Spool, Writer, digest, error_chain, event::Body},
    original::Original,
    progress::Event,
    steps::{
        clean_room::in_room, detach, isolate, notify, notify::Milestone, protect, record, snapshot,
        tag, verify,
    },
};

/// The most of an original state that `open` answers with, in bytes of JSON.
const MOST_ORIGINAL: usize = 56 << 10;

/// How long what takes its time is waited for within a step that cuts: addresses that leave, interfaces that show.
pub(super) const CUTTING: Duration = Duration::from_secs(60);

/// The same where the machine waits itself.
const LOOKING: Duration = Duration::from_secs(5);

/// Does the step that is asked for, and tells what it came to.
///
/// # Errors
/// When it could not be done at all. What is done in part is told by the facts, and by the case's shortfalls.
pub async fn perform(run: &Run, ask: &Ask) -> Result<Value, Failed> {
    match ask.step.as_str() {
        "verify" => verify(run, ask).await,
        "contain" => contain_only::contain(run, ask).await,
        "report" if is_refused(ask) => report::refused(run, ask).await,
        step => {
            let (mut case, how) = load(run, ask).await?;
            case.scene.room = room(ask);
            let cuts = matches!(step, "isolate" | "flush" | "revoke" | "detach" | "protect");
            case.bounds.wait = Some(if cuts { CUTTING } else { LOOKING });
            if ask.open["weak"].is_string() && !cuts {
                open::claim_late(run, &case).await;
            }
            let facts = Box::pin(work(&mut case, run, ask)).await?;
            let facts = match how {
                Some(how) if step == "open" => opened(&case, ask, how, facts),
                _ => facts,
            };
            Ok(end(&case, ask, facts).await)
        }
    }
}

fn is_refused(ask: &Ask) -> bool {
    ask.machine.pointer("/verify/facts/verdict").is_some_and(|verdict| verdict == "refuse")
}

pub(super) fn never(why: impl Into<String>) -> Failed {
    Failed { retryable: false, why: why.into() }
}

/// The execution's input, as far as it can be read: whoever started it may have written anything.
pub(super) fn input(ask: &Ask) -> Input {
    serde_json::from_value(ask.input.clone()).unwrap_or_else(|_| Input {
        instance: ask.instance.clone(),
        case: ask.case.clone(),
        source: None,
        part: None,
        reason: ask.input["reason"].as_str().map(str::to_owned),
        approval: None,
        otherwise: None,
    })
}

fn reaches(failed: &FlowError) -> Failed {
    let retryable = match failed {
        FlowError::Cloud { source, .. } | FlowError::Claim(ClaimError::Store { source, .. }) => {
            source.is_transient()
        }
        _ => false,
    };
    Failed { retryable, why: error_chain(failed) }
}

/// Real, ours, not exempt? Changes nothing.
async fn verify(run: &Run, ask: &Ask) -> Result<Value, Failed> {
    let inventory = &run.cloud.inventory;
    let instance = match inventory.get_instance(&ask.instance).await {
        Ok(instance) => instance,
        Err(error) if error.kind == ErrorKind::NotFound => {
            let why = format!(
                "{} is not in account {}, Region {}",
                ask.instance, run.caller.account, run.caller.region
            );
            return Ok(json!({ "verdict": "refuse", "why": why }));
        }
        Err(error) => {
            return Err(Failed { retryable: error.is_transient(), why: error.to_string() });
        }
    };
    let reason = input(ask).words();
    Ok(match verify::decide(&instance, &run.caller, &run.policy, reason.as_deref()) {
        Ok(verify::Grounds(grounds)) => json!({ "verdict": "contain", "grounds": grounds }),
        Err(refusal) => json!({ "verdict": "refuse", "why": refusal.to_string() }),
    })
}

/// The case as its log tells it; else as `open` answered; else opened now, which comes to the same whoever does it.
pub(super) async fn load(run: &Run, ask: &Ask) -> Result<(Case, Option<open::Opening>), Failed> {
    let named = ask.open["case"].as_str().and_then(|case| case.parse::<CaseId>().ok());
    if ask.step == "open" || named.is_none() && ask.open["original"].is_null() {
        return begin(run, ask).await;
    }
    let id = named.unwrap_or_else(|| ask.case.clone());
    let why = match find::log(run, &id).await {
        Ok((journal, ledger)) => {
            let ledger = match passed_on(ask) {
                // It was opened while the bucket did not answer: what was to be said first is said now.
                Some(body) if ledger.original.is_none() => journal.open_case(body).await,
                _ => ledger,
            };
            if let Some(original) = ledger.original.clone() {
                checked(ask, &ledger, &original)?;
                return Ok((open::case(run, Arc::new(journal), original, &ledger), None));
            }
            "its log does not say how the instance was".to_owned()
        }
        Err(error) => error_chain(&error),
    };
    let Ok(original) = serde_json::from_value::<Original>(ask.open["original"].clone()) else {
        return begin(run, ask).await;
    };
    checked(ask, &Ledger::default(), &original)?;
    let writer = Writer {
        actor: run.caller.arn.clone(),
        nonce: run.nonce.clone(),
        clock: run.clock.clone(),
        bound: run.bounds.custody,
    };
    let journal = Journal::new(run.cloud.store.clone(), id, writer, Spool::at(run.spool.clone()));
    let journal = journal.down_from_start(why).await;
    Ok((open::case(run, Arc::new(journal), original, &Ledger::default()), None))
}

/// The first entry of this instance's log, as `open` answered with it.
fn passed_on(ask: &Ask) -> Option<Body> {
    let original: Original = serde_json::from_value(ask.open["original"].clone()).ok()?;
    if original.instance.id != ask.instance {
        return None;
    }
    let (instance, reason) = (original.instance.id.clone(), input(ask).words());
    Some(Body::Opened { instance, reason, grounds: Vec::new(), original: Box::new(original) })
}

/// That the case is this instance's, and still a person's wish.
fn checked(ask: &Ask, ledger: &Ledger, original: &Original) -> Result<(), Failed> {
    if original.instance.id != ask.instance {
        return Err(never(format!(
            "the log of {} is that of {}, not of {}",
            ask.case, original.instance.id, ask.instance
        )));
    }
    if ledger.released_at.is_some() || ledger.closed_at.is_some() {
        return Err(never(format!(
            "{} was released or closed by a person: nothing is done to {} any more",
            ask.case, ask.instance
        )));
    }
    Ok(())
}

/// Claims the instance and records how it was, or joins its open case.
async fn begin(run: &Run, ask: &Ask) -> Result<(Case, Option<open::Opening>), Failed> {
    let bound = run.bounds.original;
    let instance = again(bound, || run.cloud.inventory.get_instance(&ask.instance)).await;
    let instance = instance.map_err(|why| Failed { retryable: true, why })?;
    let mut request =
        Request { instance, case: Some(ask.case.clone()), reason: input(ask).words() };
    let opened = match open::open(run, &request).await {
        // The claim is what counts, whatever the execution is named.
        Err(FlowError::Claim(ClaimError::Other { .. } | ClaimError::Taken { .. })) => {
            request.case = None;
            open::open(run, &request).await
        }
        ended => ended,
    };
    let (case, before, how) = opened.map_err(|error| reaches(&error))?;
    how.told(&case);
    open::skewed(&case);
    if before.original.is_some() {
        super::close_left_open(&case).await;
    }
    Ok((case, Some(how)))
}

/// What `open` answers beside what its work came to.
fn opened(case: &Case, ask: &Ask, how: open::Opening, facts: Value) -> Value {
    let mut facts = facts;
    facts["case"] = json!(case.scene.case);
    facts["joined"] = json!(how.joined);
    if facts["approval"].is_null() {
        facts["approval"] = json!("none");
    }
    // Where the log can not be read later, this is all that the other steps have.
    if let Some(why) = case.journal.down() {
        facts["weak"] = json!(why);
        let original = json!(*case.scene.original);
        if original.to_string().len() <= MOST_ORIGINAL {
            facts["original"] = original;
        } else {
            case.note(format!(
                "the original state of {} is too long to be passed on",
                ask.instance
            ));
        }
    }
    facts
}

async fn reach(case: &Case, goal: &dyn Goal) -> Value {
    let ended = ensure(case, goal, Direction::Respond).await;
    json!({ "reached": ended.reached, "whole": ended.whole })
}

async fn work(case: &mut Case, run: &Run, ask: &Ask) -> Result<Value, Failed> {
    Ok(match ask.step.as_str() {
        "open" => match approval::needed(case, &input(ask)).await {
            why if why.is_empty() => json!({ "approval": "none" }),
            why => json!({ "approval": "needed", "why": why }),
        },
        "protect" => reach(case, &protect::Guards).await,
        "detach" => reach(case, &detach::Scaling).await,
        "balancers" => reach(case, &detach::Balancers).await,
        "snapshot" => reach(case, &snapshot::Take).await,
        "tag" => reach(case, &tag::Labels).await,
        "prepare" => {
            prepare(case).await;
            if case.journal.down().is_some() {
                // What release needs must be somewhere else before it is lost.
                let goals: [&dyn Goal; 2] = [&tag::Groups, &tag::Labels];
                join_all(goals.map(|goal| ensure(case, goal, Direction::Respond))).await;
            }
            json!({})
        }
        "due" => {
            let round = ask.asked["round"].as_u64().unwrap_or(1);
            match approval::due(case, &input(ask), round).await {
                approval::Due::Decided(decision) => json!({ "decision": decision }),
                approval::Due::Wait { seconds } => {
                    json!({ "decision": "wait", "seconds": seconds })
                }
            }
        }
        "ask" => {
            let token = token(ask)?;
            let round = ask.asked["round"].as_u64().unwrap_or(1);
            approval::ask(case, &input(ask), (round, token)).await?;
            json!({})
        }
        "isolate" => isolated(case, run).await,
        "flush" => {
            drop_tracked(case, spawn(case, &isolate::flush::Open)).await;
            reach(case, &isolate::Acl).await
        }
        "revoke" => {
            revoke(case).await;
            json!({})
        }
        "record" => {
            record::run(case).await;
            json!({})
        }
        "notify" => {
            hear(case).await;
            told(case).await;
            json!({})
        }
        "preserve" => preserve::preserve(case, run, ask).await,
        "order" => preserve::order(case).await,
        "clean_room" => {
            let token = token(ask)?.to_owned();
            preserve::clean_room(case, token).await?
        }
        "read_back" => preserve::read_back(case, run, ask).await,
        "report" => report::report(case, run, ask).await,
        other => return Err(never(format!("there is no step {other:?}"))),
    })
}

/// Which of the case's rooms a step is about.
fn room(ask: &Ask) -> u32 {
    let n = ask.group["n"].as_u64().and_then(|n| u32::try_from(n).ok());
    n.unwrap_or(1).max(1)
}

fn token(ask: &Ask) -> Result<&str, Failed> {
    ask.token.as_deref().ok_or_else(|| never(format!("the step {} needs a task's token", ask.step)))
}

/// Cuts every interface, and takes every public address. Tells whether all was read back as cut; the first time, after how
/// many seconds.
pub(super) async fn isolated(case: &Case, run: &Run) -> Value {
    let again = case.journal.ledger().await.contained_at.is_some();
    prepare(case).await;
    match cut(case, run).await {
        Some(_) if again => json!({ "contained": true }),
        Some(seconds) => json!({ "contained": true, "seconds": seconds }),
        None => json!({ "contained": false }),
    }
}

/// Tells people whether the instance is contained, once for each.
pub(super) async fn told(case: &Case) {
    let contained = case.journal.ledger().await.contained_at.is_some();
    let milestone = if contained { Milestone::Contained } else { Milestone::Failed };
    notify::publish(case, milestone, &super::report::lines(case)).await;
}

/// What a step leaves: its tasks ended, its shortfalls in the log, and what the log did not take told.
pub(super) async fn end(case: &Case, ask: &Ask, facts: Value) -> Value {
    let tasks = std::mem::take(&mut *lock(&case.tasks));
    join_all(tasks).await;
    let mut facts = match facts {
        Value::Object(facts) => facts,
        _ => Map::new(),
    };
    if ask.step != "report" {
        let shortfalls = lock(&case.shortfalls).clone();
        facts.insert("short".to_owned(), json!(shortfalls.len()));
        // What one room lacks is not for another to say.
        let part = format!("{}{}", ask.step, in_room(case.scene.room));
        let known = case.journal.ledger().await.short_parts.remove(&part).unwrap_or_default();
        if known != shortfalls {
            let body = Body::Short { shortfalls, part: Some(part) };
            case.journal.append(None, body).await;
        }
    }
    if case.journal.catch_up().await > 0 {
        // The function's own log is the only place that is left.
        let late = case.journal.late().await;
        for event in &late {
            let text = serde_json::to_string(event).unwrap_or_default();
            case.progress.tell(Event::Unlogged {
                instance: case.scene.instance.clone(),
                sha256: digest(text.as_bytes()).to_string(),
                event: text,
            });
        }
        facts.insert("late".to_owned(), json!(late.len()));
    }
    // The next step begins with this log.
    case.journal.checkpoint().await;
    Value::Object(facts)
}
