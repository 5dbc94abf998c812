//! What `respond` would do, from the same goals, with nothing to do it with.

use cleanroom_cloud::{Change, Instance};
use cleanroom_contract::{CaseId, InstanceId};
use serde::Serialize;

use super::{FlowError, find, isolate};
use crate::{
    case::{Goal, History, Run, Scene, Step},
    claim,
    journal::{self, Ledger},
    original::{self, Original},
    steps::{
        clean_room::{self, artifacts},
        goals, record, snapshot, verify,
    },
};

/// One thing that `respond` would do.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Entry {
    /// The step.
    pub step: Step,
    /// The call.
    pub operation: &'static str,
    /// What it is done to.
    pub resource: String,
    /// What it does, for people.
    pub what: String,
    /// The change; none for what is written to the bucket and the topic.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub change: Option<Change>,
}

/// What `respond` would do for one instance.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Plan {
    /// The instance.
    pub instance: InstanceId,
    /// The case it would open or join.
    pub case: CaseId,
    /// Whether the case is there already.
    pub joins: bool,
    /// What speaks for containing it.
    pub grounds: Vec<String>,
    /// What would be done, in order.
    pub entries: Vec<Entry>,
    /// What could not be looked at, or would not be reached.
    pub short: Vec<String>,
    /// What a person should know.
    pub notes: Vec<String>,
}

/// Plans.
///
/// # Errors
/// When the instance is not to be contained.
pub async fn plan(run: &Run, instance: &Instance, reason: Option<&str>) -> Result<Plan, FlowError> {
    let inventory = &*run.cloud.inventory;
    let findings = inventory.findings(&instance.id).await.unwrap_or_default();
    let mut grounds = verify::decide(instance, &run.caller, &run.policy, reason)?;
    grounds.0.extend(verify::speaking(&findings, &run.policy));
    let (case, ledger, notes) = known(run, instance).await;
    let joins = ledger.original.is_some();
    let original = match ledger.original.clone() {
        Some(original) => original,
        None => original::read(inventory, instance.clone(), &run.shared, run.bounds.original).await,
    };
    let scene = scene(run, case.clone(), original, &ledger);
    let mut plan = Plan {
        instance: instance.id.clone(),
        case,
        joins,
        grounds: grounds.0,
        entries: Vec::new(),
        short: Vec::new(),
        notes,
    };
    claims(&mut plan, run);
    for goal in goals() {
        if run.policy.steps.contains(&goal.step()) {
            look(&mut plan, &scene, goal).await;
        }
        if goal.name() == "cut" && run.policy.steps.contains(&Step::Isolate) {
            flush(&mut plan, &scene, &ledger);
        }
    }
    outside(&mut plan, run, &scene, &ledger);
    if run.policy.steps.contains(&Step::CleanRoom) {
        entrusting(&mut plan, &scene).await;
    }
    if run.policy.steps.contains(&Step::CleanRoom) && ledger.reports.is_empty() {
        room(&mut plan, run, &scene).await;
    }
    plan.entries.sort_by_key(|entry| entry.step);
    Ok(plan)
}

/// The instance's open case, or the one that would be opened.
async fn known(run: &Run, instance: &Instance) -> (CaseId, Ledger, Vec<String>) {
    let store = &*run.cloud.store;
    let new = |n: u32| claim::default_case(&instance.id, n);
    match claim::newest(store, &instance.id, &run.caller).await {
        Ok(Some((open, false))) => match journal::read(store, &open.claim.case).await {
            Ok(events) => {
                let ledger = Ledger::of(events.iter().map(|(event, _)| event));
                (open.claim.case, ledger, Vec::new())
            }
            Err(error) => (open.claim.case, Ledger::default(), vec![journal::error_chain(&error)]),
        },
        Ok(Some((released, true))) => (new(released.n + 1), Ledger::default(), Vec::new()),
        Ok(None) => (new(1), Ledger::default(), Vec::new()),
        Err(error) => {
            let note = format!("{}: the case would be weak", journal::error_chain(&error));
            (new(1), Ledger::default(), vec![note])
        }
    }
}

fn scene(run: &Run, case: CaseId, original: Original, ledger: &Ledger) -> Scene {
    Scene {
        inventory: run.cloud.inventory.clone(),
        home: None,
        forensic: run.forensic.as_ref().map(|account| account.view.clone()),
        case,
        room: 1,
        instance: original.instance.id.clone(),
        original: std::sync::Arc::new(original),
        done: std::sync::Arc::new(ledger.changes()),
        sets: std::sync::Arc::new(ledger.sets.clone()),
        flushed: std::sync::Arc::new(ledger.flushed.clone()),
        policy: std::sync::Arc::new(run.policy.clone()),
        caller: run.caller.clone(),
        nonce: "<run>".to_owned(),
        shared: run.shared.clone(),
    }
}

async fn look(plan: &mut Plan, scene: &Scene, goal: &dyn Goal) {
    match goal.look(scene, &History::default()).await {
        Err(error) => plan.short.push(format!("{}:{}: {error}", goal.step(), goal.name())),
        Ok(seen) => {
            for change in seen.now.into_iter().chain(seen.then) {
                push(plan, goal.step(), change);
            }
            plan.notes.extend(seen.notes);
            // That there are no snapshots yet is what the plan is about.
            if goal.step() != Step::Snapshot {
                plan.short.extend(seen.short.into_iter().map(|s| s.what));
            }
        }
    }
}

fn push(plan: &mut Plan, step: Step, change: Change) {
    // Goals that share a piece of the way plan it once.
    if plan.entries.iter().any(|e| e.change.as_ref() == Some(&change)) {
        return;
    }
    plan.entries.push(Entry {
        step,
        operation: change.operation(),
        resource: change.resource(),
        what: change.to_string(),
        change: Some(change),
    });
}

/// The opening and closing of each interface.
fn flush(plan: &mut Plan, scene: &Scene, ledger: &Ledger) {
    let due: Vec<_> = scene
        .original
        .groups()
        .into_keys()
        .filter(|i| !ledger.flushed.contains(i.as_str()))
        .collect();
    if due.is_empty() {
        return;
    }
    let open = format!("<{}>", isolate::flush_name(scene));
    let forensic = format!("<{}>", isolate::FORENSIC);
    if let Some(vpc) = &scene.original.instance.vpc {
        push(
            plan,
            Step::Isolate,
            Change::CreateGroup {
                vpc: vpc.clone(),
                name: isolate::flush_name(scene),
                description: "allows everything, on an interface for moments only".to_owned(),
                tags: scene.tags(),
            },
        );
        push(plan, Step::Isolate, Change::OpenGroup { group: open.as_str().into() });
    }
    for interface in due {
        for group in [&open, &forensic] {
            let groups = std::collections::BTreeSet::from([group.as_str().into()]);
            let change = Change::SetGroups { interface: interface.clone(), groups };
            push(plan, Step::Isolate, change);
        }
    }
    push(plan, Step::Isolate, Change::DeleteGroup { group: open.as_str().into() });
}

/// What is written to the bucket before anything is changed.
fn claims(plan: &mut Plan, run: &Run) {
    if plan.joins {
        return;
    }
    let bucket = run.cloud.store.bucket();
    let mut put = |resource: String, what: &str| {
        plan.entries.push(Entry {
            step: Step::Verify,
            operation: "s3:PutObject",
            resource,
            what: what.to_owned(),
            change: None,
        });
    };
    let instances = claim::prefix(&run.caller, &plan.instance);
    put(format!("{bucket}/{instances}"), "claim the instance for the case");
    put(format!("{bucket}/cases/{}/custody/", plan.case), "log every act before and after it");
}

/// What is written to the bucket and the topic beside the changes.
fn outside(plan: &mut Plan, run: &Run, scene: &Scene, ledger: &Ledger) {
    let mut push = |step, operation, resource, what| {
        if run.policy.steps.contains(&step) {
            plan.entries.push(Entry { step, operation, resource, what, change: None });
        }
    };
    let asked = record::questions(&scene.original).len();
    if ledger.exhibits.is_empty() {
        push(
            Step::Record,
            "s3:PutObject",
            format!("{}/cases/{}/record/", run.cloud.store.bucket(), scene.case),
            format!("store the answers to {asked} questions and CloudTrail's events"),
        );
    }
    for milestone in ["contained", "preserved"] {
        if !ledger.notified.contains(milestone) {
            push(
                Step::Notify,
                "sns:Publish",
                scene.instance.to_string(),
                format!("tell the team: {milestone}"),
            );
        }
    }
    if run.policy.steps.contains(&Step::Snapshot) {
        if let Some(days) = run.policy.lock_days {
            plan.notes.push(format!("each snapshot is locked for {days} days once it is taken"));
        }
        if run.policy.image && ledger.preserved_at.is_none() {
            plan.notes.push("an image is registered once the snapshots are whole".to_owned());
        }
    }
}

/// What is handed to the forensic account once the snapshots are whole. Of those that are there already the goals tell.
async fn entrusting(plan: &mut Plan, scene: &Scene) {
    let Some(forensic) = &scene.forensic else { return };
    let there = snapshot::for_a_room(scene).await.map(|(own, _)| own).unwrap_or_default();
    let volumes = scene.original.volumes();
    let ids: Vec<_> = volumes.iter().filter(|id| !there.contains_key(*id)).cloned().collect();
    let volumes = match scene.inventory.volumes(&ids).await {
        Ok(volumes) => volumes,
        Err(error) => return plan.short.push(format!("clean_room: the volumes: {error}")),
    };
    let account = &forensic.account;
    let mut push = |operation, resource, what| {
        plan.entries.push(Entry { step: Step::CleanRoom, operation, resource, what, change: None });
    };
    let under = forensic.key.as_deref().unwrap_or("its default key for volumes");
    for volume in &volumes {
        let snapshot = format!("<snapshot of {}>", volume.id);
        let what = format!("share the snapshot with account {account}");
        push("ec2:ModifySnapshotAttribute", snapshot.clone(), what);
        let what = format!("copy the snapshot into account {account}, under {under}");
        push("ec2:CopySnapshot", snapshot, what);
    }
    // Which of the two keys a snapshot is under in the end is known once it is whole.
    let encrypted = volumes.iter().filter(|v| v.encrypted);
    let keys = encrypted.filter_map(|v| scene.policy.key.clone().or_else(|| v.key.clone()));
    for key in keys.collect::<std::collections::BTreeSet<_>>() {
        push("kms:CreateGrant", key, format!("let {} read with the key", forensic.role));
    }
}

/// The clean room: ordered and launched once the snapshots are whole.
async fn room(plan: &mut Plan, run: &Run, scene: &Scene) {
    let room = &run.policy.room;
    let store = &*run.cloud.store;
    let agent = match artifacts::chosen(store, room).await {
        Ok(Some((agent, _))) => agent,
        Ok(None) => {
            let note = "no clean room: the bucket has no agent (cleanroom deploy --artifacts DIR)";
            return plan.notes.push(note.to_owned());
        }
        Err(why) => return plan.short.push(format!("clean_room: the agent: {why}")),
    };
    if scene.original.instance.volumes.is_empty() {
        return;
    }
    let sought = match artifacts::sought(store, room).await {
        Ok(sought) => sought,
        Err(why) => return plan.short.push(format!("clean_room: what to look for: {why}")),
    };
    let files = format!(
        "{} files of rules and {} lists of indicators",
        sought.rules.len(),
        sought.indicators.len()
    );
    let template = crate::journal::digest(room.template.as_bytes());
    let key = artifacts::key("templates", &template, "clean-room.yaml");
    let bucket = store.bucket();
    let place = match &scene.forensic {
        Some(forensic) => format!(" in account {}", forensic.account),
        None => String::new(),
    };
    let volumes = scene.original.instance.volumes.len();
    let mut push = |operation, resource, what| {
        plan.entries.push(Entry { step: Step::CleanRoom, operation, resource, what, change: None });
    };
    for (n, first) in (1..).zip((0..volumes).step_by(clean_room::MOST_VOLUMES)) {
        let of = match volumes.min(first + clean_room::MOST_VOLUMES) {
            to if to - first == volumes => "the snapshots".to_owned(),
            to => format!("{} of the {volumes} snapshots", to - first),
        };
        let orders = cleanroom_contract::orders_prefix(&scene.case, n);
        push(
            "s3:PutObject",
            format!("{bucket}/{orders}"),
            format!("order a scan of {of} with {files}"),
        );
        let what = format!(
            "create the stack{place} from {key}, with agent {} and a volume for each snapshot",
            agent.key
        );
        push("cloudformation:CreateStack", clean_room::stack_name(&scene.case, n), what);
    }
}

/// The plans of several instances.
pub async fn plans(
    run: &Run,
    words: &[String],
    reason: Option<&str>,
) -> Vec<(String, Result<Plan, PlanError>)> {
    let mut all = Vec::new();
    for word in words {
        let plan = async {
            let instance = find::instance(&run.cloud, &run.caller, word).await?;
            Ok(plan(run, &instance, reason).await?)
        };
        all.push((word.clone(), plan.await));
    }
    all
}

/// Why there is no plan.
#[derive(Debug, thiserror::Error)]
pub enum PlanError {
    /// Nobody knows what was meant.
    #[error(transparent)]
    Find(#[from] find::FindError),
    /// It is not to be contained.
    #[error(transparent)]
    Flow(#[from] FlowError),
}
