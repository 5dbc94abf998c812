//! Takes away what a drill made.
//!
//! Purpose: the room by its own flow, then the snapshots, then the instance, each only on proof and read back. The proof of
//! the drill is its log, written before anything was changed, and the mark on the living instance; the proof of a snapshot
//! is the log that it was taken by, and its own marks. Where one of them says otherwise nothing is touched. Custody log,
//! record and bundles stay, as those of any case.

use std::{collections::BTreeSet, fmt::Display, time::Duration};

use cleanroom_cloud::{
    Change, ErrorKind, Image, Instance, InstanceQuery, InstanceState, Made, Snapshot, is_drill,
    marks_drill, marks_drill_snapshot,
};
use cleanroom_contract::{CaseId, InstanceId, VolumeId};
use serde::Serialize;
use tokio::time::Instant;

use super::applied;
use crate::{
    case::{Case, Run},
    claim,
    engine::{Direction, ensure},
    flow::{
        FlowError, close_left_open, find,
        teardown::{self, Left},
    },
    journal::{
        self, Ledger,
        event::{Body, Outcome},
    },
    steps::isolate,
};

/// How long an instance may take to be terminated.
const TERMINATED_WITHIN: Duration = Duration::from_secs(900);

/// What is left of a drill.
#[derive(Debug)]
pub struct Remains {
    drill: CaseId,
    case: Option<(Case, Ledger)>,
    instance: Option<Instance>,
    subject: Option<InstanceId>,
    snapshots: Vec<Snapshot>,
    room: Option<teardown::Proposal>,
    /// What a clean-up takes away, a line each.
    pub removes: Vec<String>,
    /// What it does not, and why, a line each.
    pub keeps: Vec<String>,
}

/// What a clean-up came to.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Cleaned {
    /// The drill.
    pub drill: CaseId,
    /// Whether all that was to go is gone, by a look.
    pub whole: bool,
    /// What was taken away.
    pub removed: Vec<String>,
    /// What was kept on purpose, and why.
    pub kept: Vec<String>,
    /// What stays of the case, with what it costs.
    pub left: Vec<Left>,
    /// What should be gone and is not, and why.
    pub shortfalls: Vec<String>,
}

fn cloud(what: impl Display) -> impl FnOnce(cleanroom_cloud::CloudError) -> FlowError {
    let what = what.to_string();
    move |source| FlowError::Cloud { what, source }
}

/// Looks at what is left of a drill. Changes nothing.
///
/// # Errors
/// When this is no drill's name, the case or the living instance is not marked as this drill's, the instance has another open
/// case, or it can not be looked at.
pub async fn look(run: &Run, drill: &CaseId) -> Result<Remains, FlowError> {
    if !is_drill(drill) {
        let why =
            format!("{drill} is no drill, whose names begin with drill-: nothing was changed");
        return Err(FlowError::Case(why));
    }
    let (claimed, case) = of_log(run, drill).await?;
    let instance = living(run, drill, claimed.as_ref()).await?;
    let subject = claimed.or_else(|| instance.as_ref().map(|i| i.id.clone()));
    if let Some(subject) = &subject {
        of_no_other(run, drill, subject).await?;
    }
    let room = match &case {
        Some(_) => Some(teardown::propose(run, drill).await?).filter(|r| !r.removes.is_empty()),
        None => None,
    };
    let mut remains = Remains {
        drill: drill.clone(),
        instance,
        subject,
        snapshots: Vec::new(),
        removes: room.iter().flat_map(|room| room.removes.clone()).collect(),
        keeps: room.iter().flat_map(|room| room.notes.clone()).collect(),
        room,
        case,
    };
    sort(run, &mut remains).await?;
    if let Some(instance) = &remains.instance {
        let state = format!("{:?}", instance.state).to_lowercase();
        remains.removes.push(format!("the instance {}, {state}", instance.id));
        let volumes = instance.volumes.iter().map(|v| format!("its volume {}", v.volume));
        remains.removes.extend(volumes);
    }
    Ok(remains)
}

/// Refuses where another case holds the instance: an alert came before the drill's response, or after it. What that one
/// contains is not a drill's to end.
async fn of_no_other(run: &Run, drill: &CaseId, subject: &InstanceId) -> Result<(), FlowError> {
    let store = &*run.cloud.store;
    let Some((open, false)) = claim::newest(store, subject, &run.caller).await? else {
        return Ok(());
    };
    let other = open.claim.case;
    if other == *drill {
        return Ok(());
    }
    let events = journal::read(store, &other).await?;
    if Ledger::of(events.iter().map(|(event, _)| event)).closed_at.is_some() {
        return Ok(());
    }
    let why = format!(
        "{subject} of {drill} has the open case {other}, which is no drill's: nothing was changed; look at it, and release or close it first"
    );
    Err(FlowError::Case(why))
}

/// The instance that the claim names, and the case where its log was begun.
async fn of_log(
    run: &Run,
    drill: &CaseId,
) -> Result<(Option<InstanceId>, Option<(Case, Ledger)>), FlowError> {
    let known = match find::case(&*run.cloud.store, &run.caller, drill).await {
        Ok(known) => known,
        // Interrupted before the response began.
        Err(FlowError::Case(_)) => return Ok((None, None)),
        Err(error) => return Err(error),
    };
    let claimed = known.claim.instance.clone();
    let (case, ledger) = match find::open_known(run, &known).await {
        Ok(opened) => opened,
        // Claimed, and nothing written yet.
        Err(FlowError::Case(_)) => return Ok((Some(claimed), None)),
        Err(error) => return Err(error),
    };
    // By the drill's own name: whoever may start an execution writes a reason.
    let ours = super::reason(drill);
    let said = ledger.reason.as_deref().is_some_and(|reason| reason == ours);
    let marked = marks_drill(&case.scene.original.instance.tags, drill);
    if !said || !marked || case.scene.instance != claimed {
        let why = format!(
            "the log of {drill} is not that of a drill on {claimed}, whose reason and first tags say so: nothing was changed"
        );
        return Err(FlowError::Case(why));
    }
    Ok((Some(claimed), Some((case, ledger))))
}

/// The drill's instance, where it is not terminated: by the claim, else by its name and mark.
async fn living(
    run: &Run,
    drill: &CaseId,
    claimed: Option<&InstanceId>,
) -> Result<Option<Instance>, FlowError> {
    let query = match claimed {
        Some(id) => InstanceQuery::Id(id.clone()),
        None => InstanceQuery::Name(drill.to_string()),
    };
    let found = run.cloud.inventory.find_instances(&query).await;
    let mut found = found.map_err(cloud(format!("the instance of {drill}")))?;
    found.retain(|instance| instance.state != InstanceState::Terminated);
    if claimed.is_none() {
        // Anybody may call an instance so.
        found.retain(|instance| marks_drill(&instance.tags, drill));
    }
    if let Some(other) = found.iter().find(|instance| !marks_drill(&instance.tags, drill)) {
        let why = format!(
            "{} carries no tag cleanroom:drill={drill} (any more): nothing is terminated or deleted; find out who took it away (CloudTrail, DeleteTags)",
            other.id
        );
        return Err(FlowError::Case(why));
    }
    if found.len() > 1 {
        let ids: Vec<_> = found.iter().map(|instance| instance.id.as_str()).collect();
        let why =
            format!("{drill} names several instances, {}: nothing was changed", ids.join(", "));
        return Err(FlowError::Case(why));
    }
    Ok(found.pop())
}

/// Sorts the case's snapshots into those that may go and those that stay.
async fn sort(run: &Run, remains: &mut Remains) -> Result<(), FlowError> {
    let drill = &remains.drill;
    let failed = |what: &str| cloud(format!("the {what} of {drill}"));
    let snapshots = run.cloud.inventory.snapshots(drill).await.map_err(failed("snapshots"))?;
    let images = run.cloud.inventory.images(drill).await.map_err(failed("images"))?;
    for image in &images {
        let why = "an image of the evidence: deregister it by hand, and clean again";
        remains.keeps.push(format!("{}, {why}", image.id));
    }
    for snapshot in snapshots {
        match decide_keep(&snapshot, remains, &images) {
            Some(why) => remains.keeps.push(format!("{}: {why}", snapshot.id)),
            None => {
                remains.removes.push(format!("{}, {} GiB", snapshot.id, snapshot.size));
                remains.snapshots.push(snapshot);
            }
        }
    }
    Ok(())
}

/// Why a snapshot stays; none where it may go. A tag is not enough: the log must have made it, or, where there is no log, it
/// must be of a volume of the drill's instance.
fn decide_keep(snapshot: &Snapshot, remains: &Remains, images: &[Image]) -> Option<String> {
    let marked = remains.subject.as_ref();
    let marked = marked.is_some_and(|id| marks_drill_snapshot(&snapshot.tags, &remains.drill, id));
    if !marked {
        return Some("it is not marked as of this drill and its instance".to_owned());
    }
    let made = remains.case.iter().flat_map(|(_, ledger)| &ledger.outcomes);
    let by_log = made.flat_map(|outcome| &outcome.made).any(|made| match made {
        Made::Snapshots(all) => all.iter().any(|one| one.id == snapshot.id),
        Made::Copy(id) => *id == snapshot.id,
        _ => false,
    });
    let mut volumes: BTreeSet<&VolumeId> = BTreeSet::new();
    let original = remains.case.iter().map(|(case, _)| &case.scene.original.instance);
    for instance in original.chain(&remains.instance) {
        volumes.extend(instance.volumes.iter().map(|attached| &attached.volume));
    }
    if !by_log && !volumes.contains(&snapshot.volume) {
        return Some("the log did not make it, and it is of no volume of the drill's".to_owned());
    }
    if snapshot.locked {
        return Some("it is locked: it can be deleted once its lock has ended".to_owned());
    }
    let image = images.iter().find(|image| image.snapshots.contains(&snapshot.id));
    image.map(|image| format!("{} is made of it", image.id))
}

/// Takes away what a look found to go, and looks again. Twice is as good as once.
///
/// # Errors
/// When what is left can not be read.
pub async fn clean(run: &Run, remains: Remains) -> Result<Cleaned, FlowError> {
    let Remains { drill, case, instance, subject, snapshots, room, removes, keeps } = remains;
    let mut work = Work { run, drill: &drill, case: case.as_ref(), shortfalls: Vec::new() };
    if let Some(room) = room {
        let torn = teardown::carry_out(room).await?;
        work.shortfalls.extend(torn.shortfalls.into_iter().map(|short| short.what));
    }
    if let Some((case, _)) = &case {
        close_left_open(case).await;
        ensure(case, &isolate::Tidy, Direction::Respond).await;
    }
    if let Some(subject) = &subject {
        work.delete(subject, &snapshots).await;
    }
    // Last, since it is what shows whose the rest is.
    if let Some(instance) = &instance {
        work.terminate(instance).await;
    }
    let shortfalls = work.shortfalls;
    let left = match &case {
        Some((case, ledger)) => {
            case.journal.catch_up().await;
            teardown::left(case, ledger).await?
        }
        None => Vec::new(),
    };
    let whole = shortfalls.is_empty();
    let removed = if whole { removes } else { Vec::new() };
    Ok(Cleaned { drill, whole, removed, kept: keeps, left, shortfalls })
}

/// A clean-up at work.
struct Work<'a> {
    run: &'a Run,
    drill: &'a CaseId,
    case: Option<&'a (Case, Ledger)>,
    shortfalls: Vec<String>,
}

impl Work<'_> {
    /// Carries changes out, announced in the log before and told after. Whether all were done.
    async fn act(&mut self, goal: &str, changes: Vec<Change>) -> bool {
        if changes.is_empty() {
            return true;
        }
        let journal = self.case.map(|(case, _)| &case.journal);
        if let Some(journal) = journal {
            let body = Body::Intent { goal: format!("drill:{goal}"), changes: changes.clone() };
            journal.append(None, body).await;
        }
        let mut outcomes = Vec::with_capacity(changes.len());
        let mut done = true;
        for change in changes {
            let (made, error) = match applied(self.run, &change).await {
                Ok(made) => (Some(made), None),
                Err(error) => (None, Some(error.to_string())),
            };
            if let Some(error) = &error {
                done = false;
                self.shortfalls.push(format!("{}: {change}: {error}", change.resource()));
            }
            outcomes.push(Outcome { change, made, error });
        }
        if let Some(journal) = journal {
            let what = format!("clean-up of {}: {goal}", self.drill);
            journal.append(None, Body::Acted { what, outcomes }).await;
        }
        done
    }

    /// Deletes snapshots, and looks whether they are gone.
    async fn delete(&mut self, subject: &InstanceId, snapshots: &[Snapshot]) {
        let changes = snapshots.iter().map(|snapshot| Change::DeleteDrillSnapshot {
            drill: self.drill.clone(),
            instance: subject.clone(),
            snapshot: snapshot.id.clone(),
        });
        let before = self.shortfalls.len();
        self.act("snapshots", changes.collect()).await;
        let inventory = &self.run.cloud.inventory;
        let there = crate::engine::again(self.run.bounds.goal, || inventory.snapshots(self.drill));
        match there.await {
            Ok(there) => {
                // What is gone is no shortfall, whatever the answer was.
                let is_left = |s: &&Snapshot| there.iter().any(|left| left.id == s.id);
                let left: Vec<_> = snapshots.iter().filter(is_left).map(|s| &s.id).collect();
                if left.is_empty() {
                    self.shortfalls.truncate(before);
                } else if self.shortfalls.len() == before {
                    let left = left.iter().map(|id| format!("{id} is there still"));
                    self.shortfalls.extend(left);
                }
            }
            Err(why) => {
                self.shortfalls.push(format!("whether the snapshots are gone is not known: {why}"));
            }
        }
    }

    /// Terminates the instance, looked at again just before: the guards that the response put on go first.
    async fn terminate(&mut self, known: &Instance) {
        let id = &known.id;
        let there = match self.run.cloud.inventory.get_instance(id).await {
            Err(error) if error.kind == ErrorKind::NotFound => return,
            Err(error) => return self.shortfalls.push(format!("{id} is not known: {error}")),
            Ok(there) => there,
        };
        if !marks_drill(&there.tags, self.drill) {
            let why = format!("{id} is not marked as the drill's any more: it is left alone");
            return self.shortfalls.push(why);
        }
        if !there.state.is_ending() {
            let instance = id.clone();
            // Protection from stopping protects from termination as well (EC2 user guide, "Enable stop protection").
            let mut guards = vec![
                Change::SetTerminationProtection { instance: instance.clone(), on: false },
                Change::SetStopProtection { instance: instance.clone(), on: false },
            ];
            guards.extend(there.volumes.iter().map(|v| Change::SetDeleteOnTermination {
                instance: instance.clone(),
                device: v.device.clone(),
                volume: v.volume.clone(),
                on: true,
            }));
            // Without its volumes' deletion the instance would leave them behind.
            if !self.act("guards", guards).await {
                return;
            }
            let end = Change::TerminateDrill { drill: self.drill.clone(), instance };
            if !self.act("instance", vec![end]).await {
                return;
            }
        }
        self.gone(&there).await;
    }

    /// Waits until the instance is terminated, and looks whether its volumes are gone.
    async fn gone(&mut self, instance: &Instance) {
        let (id, inventory) = (&instance.id, &self.run.cloud.inventory);
        let ends = Instant::now() + TERMINATED_WITHIN;
        loop {
            match inventory.get_instance(id).await {
                Ok(there) if there.state == InstanceState::Terminated => break,
                Err(error) if error.kind == ErrorKind::NotFound => break,
                _ if Instant::now() >= ends => {
                    let why = format!("{id} was told to end, and is not terminated yet");
                    return self.shortfalls.push(why);
                }
                _ => tokio::time::sleep(self.run.bounds.poll).await,
            }
        }
        let volumes: Vec<_> = instance.volumes.iter().map(|v| v.volume.clone()).collect();
        match crate::engine::again(self.run.bounds.goal, || inventory.volumes(&volumes)).await {
            Ok(there) => {
                let left = there.iter().map(|v| format!("{} outlived its instance", v.id));
                self.shortfalls.extend(left);
            }
            Err(why) => self.shortfalls.push(format!("whether its volumes are gone: {why}")),
        }
    }
}
