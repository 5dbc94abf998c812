//! Takes a case's clean rooms down: the stacks and the volumes that they made, and nothing else, ever.
//!
//! Snapshots, records, bundles and the custody log stay. What stays is listed, with what it costs a month.

use std::{collections::BTreeMap, fmt};

use cleanroom_cloud::{Change, Stack, StackState};
use cleanroom_contract::CaseId;
use futures_util::future::join_all;
use serde::Serialize;

use super::{FlowError, find, standing::copies};
use crate::{
    case::{Case, Run, Shortfall, Step, lock},
    engine::{Direction, ensure},
    journal::{Ledger, event::Body},
    steps::{
        clean_room::{self, Remove, order, stack_name},
        forensic,
    },
};

/// List prices of us-east-1 in US dollars a GiB and month (aws.amazon.com/ebs/pricing, aws.amazon.com/s3/pricing): snapshots in
/// the standard tier, objects in S3 Standard.
const SNAPSHOT_PRICE: f64 = 0.05;
/// The same for objects.
const OBJECT_PRICE: f64 = 0.023;
/// The same for what CloudWatch Logs keeps (aws.amazon.com/cloudwatch/pricing).
const LOG_PRICE: f64 = 0.03;

/// Something that stays.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Left {
    /// What it is.
    pub what: String,
    /// How much of it, in GiB, at most; none where that is not read.
    pub gib: Option<f64>,
    /// What a GiB of it costs a month, in US dollars by the list prices of us-east-1.
    pub dollars_a_gib: f64,
    /// What all of it costs a month at most.
    pub dollars_a_month: Option<f64>,
}

impl Left {
    fn new(what: String, gib: Option<f64>, dollars_a_gib: f64) -> Self {
        Self { what, gib, dollars_a_gib, dollars_a_month: gib.map(|gib| gib * dollars_a_gib) }
    }
}

impl fmt::Display for Left {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { what, gib, dollars_a_gib, dollars_a_month } = self;
        match (gib, dollars_a_month) {
            (Some(gib), Some(dollars)) => {
                write!(f, "{what}: at most {gib:.1} GiB, {dollars:.2} USD a month")
            }
            _ => write!(f, "{what}: {dollars_a_gib:.2} USD a GiB and month"),
        }
    }
}

/// What a teardown would do.
#[derive(Debug)]
pub struct Proposal {
    case: Case,
    /// How many rooms the case may have, and the stacks that there are of them, by the room.
    rooms: u32,
    stacks: BTreeMap<u32, Stack>,
    /// What will be deleted, one line each; nothing where all rooms are gone already.
    pub removes: Vec<String>,
    /// What stays.
    pub left: Vec<Left>,
    /// What a person should know before.
    pub notes: Vec<String>,
}

/// What a teardown came to.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct TornDown {
    /// The case.
    pub case: CaseId,
    /// Whether nothing of the rooms is left.
    pub whole: bool,
    /// What stays.
    pub left: Vec<Left>,
    /// What is not done.
    pub shortfalls: Vec<Shortfall>,
    /// What a person should know.
    pub notes: Vec<String>,
}

/// Looks at what a teardown would do.
///
/// # Errors
/// When there is no such case, or what there is can not be read.
pub async fn propose(run: &Run, id: &CaseId) -> Result<Proposal, FlowError> {
    let (case, ledger, _) = find::open(run, id).await?;
    let case = where_the_room_is(case, &ledger)?;
    let name = stack_name(id, 1);
    let failed = |source| FlowError::Cloud { what: format!("the stack {name}"), source };
    let rooms = ledger.rooms();
    let stacks = clean_room::stacks(&case.scene.inventory, id, rooms).await.map_err(failed)?;
    let stacks: BTreeMap<_, _> = stacks.into_iter().collect();
    let (mut removes, mut notes) = (Vec::new(), Vec::new());
    for (room, stack) in &stacks {
        removes.push(format!("the stack {}, {}", stack.name, stack.status));
        let instance = stack.outputs.get("Instance");
        removes.extend(instance.map(|id| format!("the room's instance {id}")));
        removes.extend(copies(stack).into_iter().map(|id| format!("{id}, a copy of evidence")));
        if let Ok(Some(ordered)) = order::newest(&*case.store, id, *room).await
            && !ledger.reports.contains_key(&ordered.order.scan)
        {
            notes.push(format!(
                "scan {} has no report yet: without its room it gets none (respond makes another)",
                ordered.order.scan
            ));
        }
    }
    notes.extend(forensic::stays(&ledger));
    let left = left(&case, &ledger).await?;
    Ok(Proposal { case, rooms, stacks, removes, left, notes })
}

/// The case as it is worked at where its room is. A case that was never handed to the forensic account has it in the
/// instance's own.
fn where_the_room_is(case: Case, ledger: &Ledger) -> Result<Case, FlowError> {
    if ledger.entrusted.is_none() {
        return Ok(case);
    }
    let room = forensic::room_of(&case, ledger);
    let room = room.map_err(|why| FlowError::Case(format!("{}: {}", why.what, why.advice)))?;
    Ok(room.unwrap_or(case))
}

/// What stays of a case.
pub(super) async fn left(case: &Case, ledger: &Ledger) -> Result<Vec<Left>, FlowError> {
    let id = &case.scene.case;
    let failed = |source| FlowError::Cloud { what: format!("what is left of {id}"), source };
    let snapshots = case.scene.at_home().inventory.snapshots(id).await.map_err(failed)?;
    let copies = match (&case.scene.home, &case.scene.forensic) {
        (Some(_), Some(forensic)) => {
            let copies = case.scene.inventory.snapshots(id).await.map_err(failed)?;
            vec![(format!("snapshots in account {}", forensic.account), copies)]
        }
        _ => Vec::new(),
    };
    let prefix = format!("cases/{id}/");
    let objects = case.store.versions(&prefix).await.map_err(failed)?;
    let mut left = Vec::new();
    for (what, some) in std::iter::once(("snapshots".to_owned(), snapshots)).chain(copies) {
        if some.is_empty() {
            continue;
        }
        let gib = some.iter().map(|s| f64::from(s.size)).sum();
        left.push(Left::new(format!("{} {what}", some.len()), Some(gib), SNAPSHOT_PRICE));
    }
    #[expect(clippy::cast_precision_loss, reason = "to a tenth of a GiB")]
    let gib = objects.iter().map(|o| o.size).sum::<u64>() as f64 / f64::from(1 << 30);
    let what = format!("{} objects below s3://{}/{prefix}", objects.len(), case.store.bucket());
    left.push(Left::new(what, Some(gib), OBJECT_PRICE));
    // The template retains them: they are the record of what people did in each room.
    if ledger.intended.iter().any(|change| matches!(change, Change::CreateStack { .. })) {
        let what = format!("log groups below /cleanroom/{id}/, of sessions in its rooms");
        left.push(Left::new(what, None, LOG_PRICE));
    }
    Ok(left)
}

/// Takes the rooms down and reads back that they are gone. Twice is as good as once.
///
/// # Errors
/// When what is left can not be read.
pub async fn carry_out(proposal: Proposal) -> Result<TornDown, FlowError> {
    let Proposal { case, rooms, mut stacks, left, notes, .. } = proposal;
    let removing = (1..=rooms).map(|n| remove(case.in_room(n), stacks.remove(&n), &left));
    let removing: Vec<_> = removing.collect();
    let whole = join_all(removing).await.into_iter().all(|whole| whole);
    case.journal.catch_up().await;
    let shortfalls = lock(&case.shortfalls).clone();
    let mut notes = notes;
    notes.extend(lock(&case.notes).iter().cloned());
    Ok(TornDown { case: case.scene.case.clone(), whole, left, shortfalls, notes })
}

/// Takes one room down. Whether nothing of it is left.
async fn remove(case: Case, stack: Option<Stack>, left: &[Left]) -> bool {
    let mut whole = ensure(&case, &Remove, Direction::Respond).await.whole;
    if let Some(stack) = stack.filter(|stack| whole && stack.state != StackState::Deleting) {
        let copies = copies(&stack);
        match crate::engine::again(case.bounds.goal, || case.scene.inventory.volumes(&copies)).await
        {
            Ok(there) if there.is_empty() => {}
            Ok(there) => {
                whole = false;
                let ids: Vec<_> = there.iter().map(|v| v.id.to_string()).collect();
                case.short(Shortfall {
                    step: Step::CleanRoom,
                    what: format!(
                        "copies of evidence are left although their stack is gone: {}",
                        ids.join(", ")
                    ),
                    advice: "delete these volumes by hand; the snapshots they were made from stay"
                        .to_owned(),
                });
            }
            Err(why) => case.note(format!("whether its volumes are gone could not be read: {why}")),
        }
        let left = left.iter().map(ToString::to_string).collect();
        let body = Body::TornDown { stack: stack.id, left };
        case.journal.append(Some(Step::CleanRoom), body).await;
    }
    whole
}
