//! The order of the steps, and nothing else.
//!
//! Isolation waits for the claim, what release needs, the guards, the Auto Scaling detach, and `CreateSnapshots` having
//! returned, each within its bound. Everything else runs beside it or after. Nothing here undoes anything.

pub mod approval;
pub mod at_work;
pub mod close;
pub mod contain_only;
pub mod deploy;
pub mod drill;
pub mod fetch;
pub mod find;
pub mod follow;
pub mod investigate;
mod open;
pub mod plan;
pub mod preflight;
pub mod recover;
pub mod release;
mod report;
pub mod rescan;
pub mod single;
pub mod standing;
pub mod status;
pub mod teardown;

use std::{future::Future, sync::Arc, time::Duration};

use cleanroom_cloud::{CloudError, Instance};
use cleanroom_contract::CaseId;
use futures_util::future::join_all;
use tokio::{task::JoinHandle, time::timeout};

pub use self::{investigate::Reported, report::Report};
use crate::{
    case::{Case, Goal, Run, Shortfall, Step, lock},
    claim::ClaimError,
    engine::{Direction, Ended, again, ensure},
    journal::event::Body,
    progress::Event,
    steps::{
        detach, isolate, notify, notify::Milestone, protect, record, revoke, snapshot, tag, verify,
    },
};

/// Why a response does not begin, or a command on a case can not be carried out.
#[derive(Debug, thiserror::Error)]
pub enum FlowError {
    /// The instance is not to be contained.
    #[error("verify")]
    Refused(#[from] verify::Refusal),
    /// The claim is somebody else's, or the store failed and custody is required.
    #[error("claim the instance")]
    Claim(#[from] ClaimError),
    /// The custody log can not be read.
    #[error("custody log")]
    Journal(#[from] crate::journal::JournalError),
    /// The cloud does not answer.
    #[error("look at {what}")]
    Cloud {
        /// At what.
        what: String,
        /// What it said.
        source: CloudError,
    },
    /// The custody log can not be written, and people required it.
    #[error("the custody log of {case} can not be written, and --require-custody was given: {why}")]
    Custody {
        /// The case.
        case: CaseId,
        /// Why.
        why: String,
    },
    /// The state machine does not do it.
    #[error(transparent)]
    Follow(#[from] follow::FollowError),
    /// There is no such case, or it is not in a state for this.
    #[error("{0}")]
    Case(String),
}

/// What is asked of a response.
#[derive(Clone, Debug)]
pub struct Request {
    /// The instance, as just described.
    pub instance: Instance,
    /// The case that people named.
    pub case: Option<CaseId>,
    /// A person's reason.
    pub reason: Option<String>,
}

/// Contains one instance and preserves its evidence, going on where an earlier run was.
///
/// # Errors
/// When the instance is not to be contained. What fails after that is a shortfall of the report.
pub async fn respond(run: &Run, request: &Request) -> Result<Report, FlowError> {
    // Only containing takes a slot: whoever waits for snapshots keeps nobody else on the network.
    let slot = run.shared.slots.acquire().await;
    let (case, ledger, how) = open::open(run, request).await?;
    how.told(&case);
    open::skewed(&case);
    if ledger.original.is_some() {
        close_left_open(&case).await;
    }
    let opening = spawn(&case, &isolate::flush::Open);
    // Each on the heap: together they are more than a thread's stack takes in a build that is not optimised.
    let (contained, take) = Box::pin(contain(&case, run)).await;
    drop(slot);
    let (contained, preserved) = Box::pin(finish(&case, run, contained, (opening, take))).await;
    let reported =
        when(&case, Step::CleanRoom, Box::pin(investigated(&case, run))).await.unwrap_or_default();
    let waiting = record::catch_up(&case).await + case.journal.catch_up().await;
    let ended = report::Came { contained, preserved, reported };
    Ok(report::Report::of(&case, &how, ended, waiting).await)
}

/// Closes what an ended process left open, before anything else.
pub(crate) async fn close_left_open(case: &Case) {
    match isolate::flush::close_open(case).await {
        Ok(found) => {
            for interface in found.open {
                case.short(Shortfall {
                    step: Step::Isolate,
                    what: format!("{interface} is OPEN to all traffic, left so by a run that ended, and could not be closed"),
                    advice: format!("give {interface} a security group without rules now, by hand"),
                });
            }
            for interface in found.closed {
                case.note(format!(
                    "{interface} was found open, left so by a run that ended; it is closed now"
                ));
            }
        }
        Err(error) => {
            case.note(format!("whether an interface was left open could not be read: {error}"))
        }
    }
}

/// A goal that is worked at beside its case.
type Task = JoinHandle<Option<Ended>>;

/// A goal worked at in a task of its own: who waits for it may stop waiting, and it goes on.
fn spawn(case: &Case, goal: &'static dyn Goal) -> JoinHandle<Option<Ended>> {
    let case = case.clone();
    tokio::spawn(async move {
        if !case.does(goal.step()) {
            return None;
        }
        Some(ensure(&case, goal, Direction::Respond).await)
    })
}

/// Waits for tasks within a bound. A bound that passes is noted, and what was waited for goes on.
async fn wait(
    case: &Case,
    what: &str,
    bound: Duration,
    tasks: &mut [&mut JoinHandle<Option<Ended>>],
) {
    if timeout(bound, join_all(tasks.iter_mut().map(|t| &mut **t))).await.is_err() {
        case.note(format!("isolation did not wait any longer for {what} after {bound:?}"));
    }
}

/// Isolates. Returns the seconds from the run's start until every interface was read back as isolated.
async fn contain(case: &Case, run: &Run) -> (Option<f64>, Task) {
    let bounds = &case.bounds;
    let mut guards = spawn(case, &protect::Guards);
    let mut scaling = spawn(case, &detach::Scaling);
    let mut take = spawn(case, &snapshot::Take);
    let isolates = case.does(Step::Isolate);
    let preparing = async {
        if isolates {
            prepare(case).await;
        }
    };
    // Where the log can not be written, what release needs must be somewhere else before it is lost.
    let tags = async {
        if isolates && case.journal.down().is_some() {
            let goals: [&dyn Goal; 2] = [&tag::Groups, &tag::Labels];
            join_all(goals.map(|goal| ensure(case, goal, Direction::Respond))).await;
        }
    };
    let waiting = async {
        let guards = async {
            wait(
                case,
                "guards and the Auto Scaling group",
                bounds.guard,
                &mut [&mut guards, &mut scaling],
            )
            .await
        };
        let taken =
            async { wait(case, "CreateSnapshots", bounds.snapshot, &mut [&mut take]).await };
        tokio::join!(guards, taken);
    };
    tokio::join!(
        async { timeout(bounds.guard, preparing).await.ok() },
        async { timeout(bounds.guard, tags).await.ok() },
        waiting,
    );
    let seconds = if isolates { cut(case, run).await } else { None };
    // What isolation no longer waited for is still under way.
    for task in [guards, scaling] {
        keep(case, task);
    }
    (seconds, take)
}

/// Has a task that is still at work counted among those the case waits for in the end.
fn keep(case: &Case, task: JoinHandle<Option<Ended>>) {
    if !task.is_finished() {
        lock(&case.tasks).push(task);
    }
}

/// The forensic group of a VPC is made once a run, whoever comes first.
async fn prepare(case: &Case) {
    let Some(vpc) = &case.scene.original.instance.vpc else { return };
    let mut prepared = case.scene.shared.prepared.lock().await;
    if !prepared.contains(vpc.as_str())
        && ensure(case, &isolate::Prepare, Direction::Respond).await.reached
    {
        prepared.insert(vpc.to_string());
    }
}

async fn cut(case: &Case, run: &Run) -> Option<f64> {
    let addresses = spawn(case, &isolate::Addresses);
    let cut = ensure(case, &isolate::Cut, Direction::Respond).await;
    let seconds = cut.seen.duration_since(run.started).as_secs_f64();
    keep(case, addresses);
    if !cut.whole {
        return None;
    }
    case.progress.tell(Event::Milestone {
        instance: case.scene.instance.clone(),
        name: Milestone::Contained.as_str(),
        seconds,
    });
    if case.journal.ledger().await.contained_at.is_none() {
        let interfaces = case.scene.original.groups().into_keys().map(|i| i.to_string()).collect();
        let body = Body::Contained { interfaces, seconds: format!("{seconds:.3}") };
        case.journal.append(Some(Step::Isolate), body).await;
    }
    Some(seconds)
}

/// Everything that isolation does not wait for. Returns the seconds until it was contained, looked at once more, and until
/// all snapshots were whole.
async fn finish(
    case: &Case,
    run: &Run,
    contained: Option<f64>,
    (opening, take): (Task, Task),
) -> (Option<f64>, Option<f64>) {
    let telling = async {
        let milestone = if contained.is_some() { Milestone::Contained } else { Milestone::Failed };
        if contained.is_some() || case.does(Step::Isolate) {
            notify::publish(case, milestone, &report::lines(case)).await;
        }
    };
    // A person's word was enough to begin: what services say is added to it.
    let hearing = when(case, Step::Verify, hear(case));
    let flushing = when(case, Step::Isolate, async {
        drop_tracked(case, opening).await;
        ensure(case, &isolate::Acl, Direction::Respond).await;
    });
    let balancers = when(case, Step::Detach, ensure(case, &detach::Balancers, Direction::Respond));
    let revoking = when(case, Step::Revoke, revoke(case));
    let labels = when(case, Step::Tag, ensure(case, &tag::Labels, Direction::Respond));
    let recording = when(case, Step::Record, async {
        let _slot = case.scene.shared.records.acquire().await;
        record::run(case).await;
    });
    // Credentials that were not denied yet may have attached another interface meanwhile.
    let cutting = async {
        tokio::join!(flushing, revoking);
        if case.does(Step::Isolate) { look_again(case, contained).await } else { contained }
    };
    let (_, (), _, _, _, contained, preserved) = tokio::join!(
        hearing,
        telling,
        balancers,
        labels,
        recording,
        cutting,
        preserve(case, run, take)
    );
    let tasks = std::mem::take(&mut *lock(&case.tasks));
    join_all(tasks).await;
    if preserved.is_some() {
        notify::publish(case, Milestone::Preserved, &report::lines(case)).await;
    }
    report::end(case).await;
    (contained, preserved)
}

/// Looks at every interface once more, and cuts what came since. What was contained stays so only where this is.
async fn look_again(case: &Case, contained: Option<f64>) -> Option<f64> {
    let cut = ensure(case, &isolate::Cut, Direction::Respond).await;
    if !cut.outcomes.is_empty() {
        case.note(
            "an interface was not as it was left a moment before: it was cut again".to_owned(),
        );
        drop_tracked_now(case).await;
    }
    contained.filter(|_| cut.whole)
}

/// Logs what GuardDuty says against the instance, where it says something that is not in the log yet.
async fn hear(case: &Case) {
    let findings =
        again(case.bounds.original, || case.scene.inventory.findings(&case.scene.instance));
    match findings.await {
        Err(why) => case.note(format!("GuardDuty's findings could not be read: {why}")),
        Ok(findings) => {
            let known = case.journal.ledger().await.grounds;
            let speaking = verify::speaking(&findings, &case.scene.policy);
            let grounds: Vec<_> = speaking.into_iter().filter(|g| !known.contains(g)).collect();
            if !grounds.is_empty() {
                case.journal.append(Some(Step::Verify), Body::Grounds { grounds }).await;
            }
        }
    }
}

/// Does something where its step is to be done.
async fn when<T>(case: &Case, step: Step, work: impl Future<Output = T>) -> Option<T> {
    if case.does(step) { Some(work.await) } else { None }
}

/// Drops tracked flows, once no public address leads here.
async fn drop_tracked(case: &Case, opening: Task) {
    let _ = opening.await;
    match isolate::flush::settle_addresses(case).await {
        Ok(()) => drop_tracked_now(case).await,
        Err(why) => case.short(Shortfall {
            step: Step::Isolate,
            what: format!(
                "flows of {} that were tracked before the cut are not dropped: {why}",
                case.scene.instance
            ),
            advice: "new flows are cut; run respond again once the address stays away".to_owned(),
        }),
    }
}

async fn drop_tracked_now(case: &Case) {
    // The group was made beside the first look; a cut since then may have made it necessary.
    let mut fresh = case.clone();
    fresh.scene.flushed = Arc::new(case.journal.ledger().await.flushed);
    ensure(&fresh, &isolate::flush::Open, Direction::Respond).await;
    isolate::flush::run(case).await;
    close_left_open(case).await;
    ensure(case, &isolate::Tidy, Direction::Respond).await;
}

async fn revoke(case: &Case) {
    let deny = async {
        let role = match case.scene.original.profile.get() {
            Some(Some(profile)) => profile.role.as_ref().map(|(name, _)| name.to_string()),
            _ => None,
        };
        // IAM's policies have no compare-and-swap: one writer a role at a time.
        let turn = case.scene.shared.role(role.as_deref().unwrap_or_default()).await;
        let _turn = turn.lock().await;
        ensure(case, &revoke::Deny, Direction::Respond).await;
    };
    tokio::join!(
        ensure(case, &revoke::Profile, Direction::Respond),
        ensure(case, &revoke::Endpoint, Direction::Respond),
        deny,
    );
}

async fn preserve(case: &Case, run: &Run, take: Task) -> Option<f64> {
    // A set that isolation did not wait for may still be in the making.
    // Who waited for it to its end has it already.
    if !take.is_finished() {
        let _ = take.await;
    }
    if !case.does(Step::Snapshot) {
        return None;
    }
    let settled = ensure(case, &snapshot::Settle, Direction::Respond).await;
    let goals: [&dyn Goal; 3] = [&snapshot::Rekey, &snapshot::Lock, &snapshot::Register];
    join_all(goals.map(|goal| ensure(case, goal, Direction::Respond))).await;
    if !settled.whole || !snapshot::log_preserved(case).await {
        return None;
    }
    let seconds = run.started.elapsed().as_secs_f64();
    case.progress.tell(Event::Milestone {
        instance: case.scene.instance.clone(),
        name: Milestone::Preserved.as_str(),
        seconds,
    });
    Some(seconds)
}

/// Has the snapshots examined, once everything else is done: a scan takes hours, and how the case stands is in the log before.
async fn investigated(case: &Case, run: &Run) -> Vec<Reported> {
    let reported = investigate::investigate(case).await;
    if !reported.is_empty() {
        case.progress.tell(Event::Milestone {
            instance: case.scene.instance.clone(),
            name: Milestone::Reported.as_str(),
            seconds: run.started.elapsed().as_secs_f64(),
        });
    }
    report::note_short(case).await;
    reported
}
