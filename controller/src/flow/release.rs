//! Back to what was recorded, on a person's word only.
//!
//! Shows what it will restore; refuses where what it finds is not what the response left, unless told otherwise; restores,
//! reads back, logs. Snapshots, the record and the log stay.

use cleanroom_cloud::Put;
use cleanroom_contract::CaseId;
use serde::Serialize;

use super::{FlowError, find, status};
use crate::{
    case::{Case, Goal, History, Run, Shortfall, Step, lock},
    engine::{Direction, ensure},
    journal::event::Body,
    steps::{detach, forensic, isolate, notify, notify::Milestone, protect, revoke, tag},
};

/// What a release would do.
#[derive(Debug)]
pub struct Proposal {
    case: Case,
    known: find::Known,
    /// What it will restore, one line each.
    pub changes: Vec<String>,
    /// What is not as the response left it: a reason to refuse.
    pub drift: Vec<String>,
    /// What can not be restored, or not be looked at.
    pub short: Vec<String>,
    /// What a person should know.
    pub notes: Vec<String>,
}

/// What a release came to.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Released {
    /// The case.
    pub case: CaseId,
    /// Whether all of it was restored and read back.
    pub whole: bool,
    /// What is not restored.
    pub shortfalls: Vec<Shortfall>,
    /// What a person should know.
    pub notes: Vec<String>,
}

/// Goals in the order in which they are undone: credentials only work again, and traffic only flows again, once
/// nothing of the response's scaffolding is left; guards go last.
fn goals() -> [&'static dyn Goal; 11] {
    [
        &isolate::Tidy,
        &isolate::Acl,
        &revoke::Deny,
        &revoke::Endpoint,
        &revoke::Profile,
        &isolate::Cut,
        &isolate::Addresses,
        &detach::Scaling,
        &detach::Balancers,
        &protect::Guards,
        &tag::Labels,
    ]
}

/// Looks at what a release would do.
///
/// # Errors
/// When there is no such case, it was released already, or its log can not be read.
pub async fn propose(run: &Run, id: &CaseId) -> Result<Proposal, FlowError> {
    let (case, ledger, known) = find::open(run, id).await?;
    if known.released {
        return Err(FlowError::Case(format!("case {id} was released already")));
    }
    super::close_left_open(&case).await;
    let (drift, unknown) = status::drift(&case, &ledger).await;
    let mut notes = std::mem::take(&mut *lock(&case.notes));
    notes.extend(forensic::stays(&ledger));
    let mut proposal = Proposal { changes: Vec::new(), drift, short: unknown, notes, case, known };
    let unread = proposal.case.scene.original.unknown();
    proposal
        .short
        .extend(unread.iter().map(|(part, why)| format!("the {part} can not be restored: {why}")));
    for goal in goals() {
        match goal.look_back(&proposal.case.scene, &History::default()).await {
            Err(error) => proposal.short.push(format!("{}:{}: {error}", goal.step(), goal.name())),
            Ok(seen) => {
                let all = seen.now.into_iter().chain(seen.then);
                proposal.changes.extend(all.map(|c| format!("{}: {c}", c.resource())));
                proposal.short.extend(seen.short.into_iter().map(|s| s.what));
                proposal.notes.extend(seen.notes);
            }
        }
    }
    proposal.notes.sort();
    proposal.notes.dedup();
    Ok(proposal)
}

/// Restores. Where something can not be restored, the case stays open, and a later release goes on.
///
/// # Errors
/// When the store does not take the mark that frees the instance for another case.
pub async fn carry_out(
    run: &Run,
    proposal: Proposal,
    reason: Option<&str>,
) -> Result<Released, FlowError> {
    let case = &proposal.case;
    let mut whole = true;
    for goal in goals() {
        whole &= ensure(case, goal, Direction::Release).await.whole;
    }
    // EC2 may take a moment to show an association; what was restored is read back by each goal itself.
    let forced = !proposal.drift.is_empty();
    if whole {
        let body = Body::Released { reason: reason.map(str::to_owned), forced };
        case.journal.append(None, body).await;
        let key = find::released_key(&run.caller, &proposal.known);
        let mark = serde_json::json!({ "v": 1, "case": case.scene.case, "by": run.caller.arn, "at": run.clock.now() });
        let put = case.store.create(&key, mark.to_string().into_bytes()).await;
        let (Put::Created | Put::Exists) =
            put.map_err(|source| FlowError::Cloud { what: format!("the mark {key}"), source })?;
        notify::publish(case, Milestone::Released, &proposal.changes).await;
    } else {
        case.short(Shortfall {
            step: Step::Isolate,
            what: format!("case {} is restored in part and stays open", case.scene.case),
            advice: "mend what is named, and run release again: it goes on where it was".to_owned(),
        });
    }
    case.journal.catch_up().await;
    let shortfalls = lock(&case.shortfalls).clone();
    let mut notes = lock(&case.notes).clone();
    notes.extend(proposal.notes);
    notes.sort();
    notes.dedup();
    Ok(Released { case: case.scene.case.clone(), whole, shortfalls, notes })
}
