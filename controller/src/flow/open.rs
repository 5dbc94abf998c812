//! Opens a case: the instance verified and claimed, its log begun or joined, and how it was before the response on record.
//!
//! Where the store is down the case is weak, and the response goes on. Touches the claim, the custody log and the spool; never
//! the instance.

use std::{collections::BTreeSet, sync::Arc};

use cleanroom_cloud::{GroupId, Instance};
use tokio::time::timeout;

use super::{FlowError, Request};
use crate::{
    case::{Case, Run, Scene, Shortfall, Step},
    claim::{self, ClaimError, Claimer},
    engine::again,
    journal::{Journal, Ledger, Spool, Writer, error_chain, event::Body},
    original::{self, Known, Original},
    progress::Event,
    steps::{isolate, verify},
};

/// How far a clock may be off before times in the log are not to be relied on.
const SKEW_SECONDS: u64 = 30;

/// What is short where the store was down.
const UNCLAIMED: &str = "the case could not be claimed in the evidence bucket: a tag marks it";

/// A clock that is wrong makes the case partial, and stops nothing: the log's times are this machine's.
pub(super) fn skewed(case: &Case) {
    let Some(ahead) = case.scene.caller.clock_ahead else { return };
    if ahead.unsigned_abs() > SKEW_SECONDS {
        let way = if ahead > 0 { "ahead of" } else { "behind" };
        case.short(Shortfall {
            step: Step::Verify,
            what: format!(
                "this machine's clock is {} s {way} AWS's: the times in the custody log are off by as much",
                ahead.unsigned_abs()
            ),
            advice: "set the clock, and run respond again; CloudTrail has the true times".to_owned(),
        });
    }
}

/// How a case was opened.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Opening {
    /// Whether the case was there already.
    pub(super) joined: bool,
    /// Whether nobody could claim it, since the store was down.
    pub(super) weak: bool,
}

impl Opening {
    pub(super) fn told(self, case: &Case) {
        case.progress.tell(Event::Case {
            instance: case.scene.instance.clone(),
            case: case.scene.case.clone(),
            joined: self.joined,
            weak: self.weak,
        });
        if self.weak {
            case.short(Shortfall {
                step: Step::Verify,
                what: UNCLAIMED.to_owned(),
                advice: "run respond again once the bucket answers: it claims the case and appends what was spooled".to_owned(),
            });
        }
    }
}

/// Verifies, claims, and records the instance as it is.
pub(super) async fn open(
    run: &Run,
    request: &Request,
) -> Result<(Case, Ledger, Opening), FlowError> {
    let instance = &request.instance;
    let inventory = &*run.cloud.inventory;
    let reason = request.reason.as_deref();
    let grounds = verify::decide(instance, &run.caller, &run.policy, reason)?;
    let reading = original::read(inventory, instance.clone(), &run.shared, run.bounds.original);
    let (mut fresh, ours, claimed) =
        tokio::join!(reading, own_groups(run, instance), claim(run, request));
    match ours {
        Ok(ours) => fresh.exclude(&ours),
        // Never guessed: what might be ours is not recorded as the instance's own.
        Err(why) => fresh.interfaces = Known::Unknown(why),
    }
    let (journal, how) = claimed?;
    let body = Body::Opened {
        instance: instance.id.clone(),
        reason: request.reason.clone(),
        grounds: grounds.0,
        original: Box::new(fresh.clone()),
    };
    let before = journal.ledger().await;
    let ledger = journal.open_case(body).await;
    if run.policy.require_custody
        && let Some(why) = journal.down()
    {
        return Err(FlowError::Custody { case: journal.case().clone(), why });
    }
    let original = ledger.original.clone().unwrap_or(fresh);
    // Two instances that were given one name at the same moment would both act on the first.
    if original.instance.id != instance.id {
        return Err(FlowError::Case(format!(
            "the log of {} is that of {}, not of {}: give each instance a case of its own",
            journal.case(),
            original.instance.id,
            instance.id
        )));
    }
    Ok((case(run, Arc::new(journal), original, &ledger), before, how))
}

/// Groups of ours in the instance's VPC: an interface that has one is not in its original state.
async fn own_groups(run: &Run, instance: &Instance) -> Result<BTreeSet<GroupId>, String> {
    let Some(vpc) = &instance.vpc else { return Ok(BTreeSet::new()) };
    let inventory = &run.cloud.inventory;
    // A run that died may have left the group that allows everything: its name tells the case, which may be any of this
    // instance's.
    let tagged = instance.tags.get("cleanroom:case").map(|case| isolate::flush_name_of(case));
    let names: Vec<_> =
        [Some(isolate::FORENSIC.to_owned()), tagged].into_iter().flatten().collect();
    let found = again(run.bounds.original, || {
        futures_util::future::try_join_all(names.iter().map(|name| inventory.find_group(vpc, name)))
    });
    Ok(found.await?.into_iter().flatten().map(|group| group.id).collect())
}

/// Claims the instance and opens its log. Where the store fails, the case is weak.
async fn claim(run: &Run, request: &Request) -> Result<(Journal, Opening), FlowError> {
    let id = &request.instance.id;
    let now = run.clock.now();
    let spool = Spool::at(run.spool.clone());
    let spooled = spool.cases().into_iter().find(|case| claim::is_weak(case, id));
    let weak = spooled.or_else(|| claim::weak_tag(&request.instance));
    let claimer = Claimer {
        caller: &run.caller,
        nonce: &run.nonce,
        now,
        case: request.case.as_ref(),
        tagged: request.instance.tags.contains_key("cleanroom:case"),
        weak: weak.as_ref(),
    };
    let writer = Writer {
        actor: run.caller.arn.clone(),
        nonce: run.nonce.clone(),
        clock: run.clock.clone(),
        bound: run.bounds.custody,
    };
    let store = run.cloud.store.clone();
    let claimed = timeout(run.bounds.custody, claim::claim(&*store, id, &claimer)).await;
    let why = match claimed {
        Ok(Ok(claimed)) if claimed.new && weak.is_none() => {
            let journal = Journal::new(store, claimed.claim.case, writer, spool);
            return Ok((journal, Opening { joined: false, weak: false }));
        }
        Ok(Ok(claimed)) => {
            let joined = !claimed.new;
            let journal = Journal::open(store, claimed.claim.case, writer, spool).await;
            return Ok((journal, Opening { joined, weak: false }));
        }
        Ok(Err(error @ (ClaimError::Other { .. } | ClaimError::Taken { .. }))) => {
            return Err(error.into());
        }
        Ok(Err(error)) if run.policy.require_custody => return Err(error.into()),
        Ok(Err(error)) => error_chain(&error),
        Err(_) => "the store did not answer in time".to_owned(),
    };
    let case = request.case.clone().or(weak).unwrap_or_else(|| claim::weak(id, now));
    if run.policy.require_custody {
        return Err(FlowError::Custody { case, why });
    }
    let journal = Journal::new(store, case, writer, spool).down_from_start(why).await;
    Ok((journal, Opening { joined: false, weak: true }))
}

/// Claims the instance for a case that was begun while the store was down, now that its log answers. What is in the way is told,
/// and stops nothing.
pub(super) async fn claim_late(run: &Run, case: &Case) {
    let claimer = Claimer {
        caller: &run.caller,
        nonce: &run.nonce,
        now: run.clock.now(),
        case: Some(&case.scene.case),
        tagged: true,
        weak: None,
    };
    let claiming = claim::claim(&*case.store, &case.scene.instance, &claimer);
    let why = match timeout(run.bounds.custody, claiming).await {
        Ok(Ok(_)) => {
            let open = case.journal.ledger().await.short_parts.remove("open").unwrap_or_default();
            let (unclaimed, others): (Vec<_>, _) =
                open.into_iter().partition(|short| short.what == UNCLAIMED);
            if !unclaimed.is_empty() {
                let body = Body::Short { shortfalls: others, part: Some("open".to_owned()) };
                case.journal.append(Some(Step::Verify), body).await;
            }
            return;
        }
        Ok(Err(error)) => error_chain(&error),
        Err(_) => "the store did not answer in time".to_owned(),
    };
    case.note(format!("{} has no claim yet: {why}", case.scene.case));
}

/// A case at work.
pub(super) fn case(run: &Run, journal: Arc<Journal>, original: Original, ledger: &Ledger) -> Case {
    Case {
        scene: Scene {
            room: 1,
            inventory: run.cloud.inventory.clone(),
            home: None,
            forensic: run.forensic.as_ref().map(|account| account.view.clone()),
            case: journal.case().clone(),
            instance: original.instance.id.clone(),
            original: Arc::new(original),
            done: Arc::new(ledger.changes()),
            sets: Arc::new(ledger.sets.clone()),
            flushed: Arc::new(ledger.flushed.clone()),
            policy: Arc::new(run.policy.clone()),
            caller: run.caller.clone(),
            nonce: run.nonce.clone(),
            shared: run.shared.clone(),
        },
        hands: run.cloud.hands.clone(),
        forensic: run.forensic.clone(),
        notices: run.cloud.notices.clone(),
        facts: run.cloud.facts.clone(),
        posture: run.cloud.posture.clone(),
        store: run.cloud.store.clone(),
        journal,
        bounds: run.bounds.clone(),
        progress: run.progress.clone(),
        tasks: Arc::default(),
        shortfalls: Arc::default(),
        notes: Arc::default(),
        under_way: Arc::default(),
    }
}
