//! Commands on cases: how they stand, whether their logs are whole, and what is left to do.

use cleanroom_contract::CaseId;
use cleanroom_controller::{
    case::Clock as _,
    claim,
    flow::{
        FlowError, at_work, close, find, recover,
        status::{self, State, Status},
    },
    journal::verify::{self, Verdict},
};
use futures_util::{StreamExt as _, stream};
use serde::Serialize;

use super::{FAILED, PARTIAL, Shape, SystemClock, complain, print, say, session::Opening};
use crate::output;

/// How many cases are looked at at a time.
const AT_ONCE: usize = 8;

/// Looks at how cases stand.
pub(super) async fn status(
    opening: &Opening,
    case: Option<&CaseId>,
    shape: Shape,
) -> anyhow::Result<u8> {
    let session = opening.open(None, session_name(case)).await?;
    let run = session.quiet()?;
    let (known, odd) = match case {
        Some(case) => (vec![find::case(&*run.cloud.store, &run.caller, case).await?], Vec::new()),
        None => find::cases(&*run.cloud.store, &run.caller).await?,
    };
    let (released, open): (Vec<_>, Vec<_>) =
        known.into_iter().partition(|known| known.released && case.is_none());
    let looks: Vec<_> = open.iter().map(|known| status::of(&run, known)).collect();
    let looked: Vec<Result<Status, FlowError>> =
        stream::iter(looks).buffered(AT_ONCE).collect().await;
    let mut failed = false;
    let mut all = Vec::new();
    for (known, looked) in open.iter().zip(looked) {
        match looked {
            Ok(status) => all.push(status),
            Err(error) => {
                failed = true;
                let error = anyhow::Error::new(error);
                complain(&error.context(format!("look at case {}", known.claim.case)));
            }
        }
    }
    all.retain(|status| case.is_some() || status.state != State::Closed);
    if shape.is_human() {
        print(&output::statuses(&all, shape.palette, shape.width))?;
        if !released.is_empty() {
            say(&format!(
                "{} released cases are not shown: `cleanroom cases` lists them",
                released.len()
            ));
        }
    } else {
        print(&lines("status", &all))?;
    }
    warn(&odd);
    let short = |status: &Status| {
        !status.found_open.is_empty()
            || !status.still_open.is_empty()
            || matches!(status.state, State::Open | State::Partial | State::Drifted)
    };
    Ok(match (failed, all.iter().any(short) || !odd.is_empty()) {
        (true, _) => FAILED,
        (false, true) => PARTIAL,
        (false, false) => 0,
    })
}

/// Lists the cases.
pub(super) async fn list(opening: &Opening, shape: Shape) -> anyhow::Result<u8> {
    let session = opening.open(None, "cleanroom").await?;
    let (known, odd) = find::cases(&*session.cloud.store, &session.caller).await?;
    if shape.is_human() {
        print(&output::cases(&known, shape.palette, shape.width))?;
    } else {
        #[derive(Serialize)]
        struct Line<'a> {
            #[serde(flatten)]
            claim: &'a claim::Claim,
            n: u32,
            released: bool,
        }
        let lines = known.iter().map(|known| {
            let line = Line { claim: &known.claim, n: known.n, released: known.released };
            output::record("case", &line)
        });
        print(&lines.collect::<String>())?;
    }
    warn(&odd);
    Ok(if odd.is_empty() { 0 } else { PARTIAL })
}

/// Lists the cases that are open, and what is done last in each.
pub(super) async fn open(opening: &Opening, shape: Shape) -> anyhow::Result<u8> {
    let session = opening.open(None, "cleanroom").await?;
    let store = &*session.cloud.store;
    let (open, odd) = at_work::at_work(store, &session.caller, SystemClock.now()).await?;
    if shape.is_human() {
        print(&output::at_work(&open, shape.palette, shape.width))?;
    } else {
        print(&lines("open_case", &open))?;
    }
    warn(&odd);
    Ok(if odd.is_empty() { 0 } else { PARTIAL })
}

/// Checks a case's custody log.
pub(super) async fn verify(opening: &Opening, case: &CaseId, shape: Shape) -> anyhow::Result<u8> {
    let session = opening.open(None, case.as_str()).await?;
    let verdict = verify::verify(&*session.cloud.store, case).await?;
    if shape.is_human() {
        print(&output::verdict(case.as_str(), &verdict, shape.palette))?;
    } else {
        #[derive(Serialize)]
        struct Line<'a> {
            case: &'a CaseId,
            whole: bool,
            #[serde(flatten)]
            verdict: &'a Verdict,
        }
        let whole = verdict.faults.is_empty();
        print(&output::record("verdict", &Line { case, whole, verdict: &verdict }))?;
    }
    Ok(if verdict.faults.is_empty() { 0 } else { PARTIAL })
}

/// Shows what eradication and recovery need.
pub(super) async fn recover(opening: &Opening, case: &CaseId, shape: Shape) -> anyhow::Result<u8> {
    let session = opening.open(None, case.as_str()).await?;
    let tasks = recover::recover(&session.quiet()?, case).await?;
    if shape.is_human() {
        print(&output::recovery(&tasks, shape.palette, shape.width))?;
    } else {
        print(&lines("task", &tasks))?;
    }
    Ok(0)
}

/// Ends a case.
pub(super) async fn close(
    opening: &Opening,
    case: &CaseId,
    reason: Option<&str>,
    shape: Shape,
) -> anyhow::Result<u8> {
    let session = opening.open(None, case.as_str()).await?;
    let record = close::close(&session.quiet()?, case, reason).await?;
    if shape.is_human() {
        print(&record)?;
    } else {
        let closed = serde_json::json!({ "case": case, "record": record });
        print(&output::record("closed", &closed))?;
    }
    Ok(0)
}

fn session_name(case: Option<&CaseId>) -> &str {
    case.map_or("cleanroom", |case| case.as_str())
}

/// Values as lines of JSON.
fn lines(kind: &str, values: &[impl Serialize]) -> String {
    values.iter().map(|value| output::record(kind, value)).collect()
}

fn warn(odd: &[String]) {
    for odd in odd {
        say(&format!("warning: {}", cleanroom_contract::printable(odd)));
    }
}
