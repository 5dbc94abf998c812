//! What eradication and recovery need.
//!
//! Reads the case's log and the world, at once, and judges in functions that touch nothing. Changes nothing: each task names the
//! command that does it. What others wrote, in CloudTrail or in names, never gets into a command unless it is plain.

use std::collections::{BTreeMap, BTreeSet};

use cleanroom_cloud::{
    Change, CloudError, ErrorKind, Image, Instance, Inventory, ScalingGroup, Snapshot,
    SnapshotState,
};
use cleanroom_contract::{CaseId, InstanceId, printable};
use futures_util::{StreamExt as _, stream};
use serde::Serialize;

use super::{FlowError, find};
use crate::{
    case::{Case, Run},
    journal::Ledger,
    original::{Known, Original, Scaling},
    steps::{
        isolate,
        revoke::{not_cut::Survivor, principal::Principal},
    },
};

/// How far a task is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum State {
    /// Nothing is left to do.
    Done,
    /// A person is to do it.
    Open,
    /// A person is to look at it.
    Look,
}

/// One thing that recovery needs.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Task {
    /// What it is.
    pub what: String,
    /// How far it is.
    pub state: State,
    /// What was found.
    pub found: String,
    /// What to do; empty where nothing is.
    pub advice: String,
}

impl Task {
    fn new(what: &str, state: State, found: &str, advice: &str) -> Self {
        Self { what: printable(what), state, found: printable(found), advice: printable(advice) }
    }
}

/// How many things one task names.
const NAMED: usize = 20;
/// How many members of a group are looked at.
const MEMBERS: usize = 200;

/// Looks at what is left to do for a case.
///
/// # Errors
/// When there is no such case, or its log can not be read.
pub async fn recover(run: &Run, case: &CaseId) -> Result<Vec<Task>, FlowError> {
    let (case, ledger, _) = find::open(run, case).await?;
    let original = &case.scene.original;
    let inventory = &*run.cloud.inventory;
    let (image, profile) = (original.instance.image.as_str(), original.instance.profile.as_deref());
    let (group, alike, snapshots, images) = tokio::join!(
        group(inventory, original),
        inventory.instances_like(Some(image), profile),
        inventory.snapshots(&case.scene.case),
        inventory.images(&case.scene.case),
    );
    let mut tasks = vec![replacement(original, group.as_ref())];
    tasks.extend(template(original, group.as_ref()));
    tasks.push(machine_image(original));
    tasks.extend(credentials(original));
    tasks.extend(ledger.survivors.iter().map(|s| survivor(s, &ledger)));
    tasks.push(others(&case, alike));
    tasks.extend(evidence(&case.scene.case, &ledger, &snapshots, &images));
    tasks.extend(isolate::NOT_CUT.iter().map(|what| not_cut(what)));
    Ok(tasks)
}

/// The Auto Scaling group that the instance was in, as it is now.
struct Group {
    now: ScalingGroup,
    /// What the group's members are, but for the suspect; none where one could not be read.
    members: BTreeMap<InstanceId, Option<Instance>>,
}

async fn group(
    inventory: &dyn Inventory,
    original: &Original,
) -> Option<Result<Group, CloudError>> {
    let Known::Is(Some(Scaling { membership, .. })) = &original.scaling else { return None };
    let now = match inventory.scaling_group(&membership.group).await {
        Ok(now) => now,
        Err(error) => return Some(Err(error)),
    };
    let ids = now.instances.iter().map(|(id, ..)| id.clone());
    let ids = ids.filter(|id| *id != original.instance.id).take(MEMBERS);
    let reads: Vec<_> = ids
        .map(|id| async move {
            let instance = inventory.get_instance(&id).await.ok();
            (id, instance)
        })
        .collect();
    let members = stream::iter(reads).buffered(16).collect().await;
    Some(Ok(Group { now, members }))
}

/// Whether something that can be trusted does the instance's work.
fn replacement(original: &Original, group: Option<&Result<Group, CloudError>>) -> Task {
    const WHAT: &str = "replacement";
    let launch = "launch one from an image and a template that were looked at: aws ec2 run-instances --launch-template LaunchTemplateId=<TEMPLATE>,Version=<VERSION> --image-id <IMAGE>";
    let group = match (&original.scaling, group) {
        (Known::Unknown(why), _) => {
            let found = format!("whether it was in an Auto Scaling group is not known: {why}");
            return Task::new(WHAT, State::Look, &found, launch);
        }
        (Known::Is(Some(_)), Some(Ok(group))) => group,
        (Known::Is(Some(was)), Some(Err(error))) if error.kind == ErrorKind::NotFound => {
            let found = format!("Auto Scaling group {} is gone", was.membership.group);
            return Task::new(WHAT, State::Open, &found, launch);
        }
        (Known::Is(Some(was)), Some(Err(error))) => {
            let name = &was.membership.group;
            let found = format!("Auto Scaling group {name} could not be read: {error}");
            return Task::new(WHAT, State::Look, &found, "run recover again");
        }
        _ => {
            let found = "it was in no Auto Scaling group: nothing replaces it by itself";
            return Task::new(WHAT, State::Open, found, launch);
        }
    };
    judge_group(original, group)
}

/// Whether the group has what it wants, in service, healthy, and not made of what the suspect was made of.
fn judge_group(original: &Original, Group { now, members }: &Group) -> Task {
    const WHAT: &str = "replacement";
    let name = &now.name;
    let suspect = &original.instance.id;
    let others = || now.instances.iter().filter(|(id, ..)| id != suspect);
    let serves = others().filter(|(_, state, health)| state == "InService" && health == "Healthy");
    let (serves, desired) = (serves.count(), usize::try_from(now.size.1).unwrap_or(0));
    let mut found = vec![format!("{serves} of {desired} in service and healthy in {name}")];
    let mut advice = Vec::new();
    let group = argument(name);
    if now.instances.iter().any(|(id, ..)| id == suspect) {
        found.push("the suspect is still among its members".to_owned());
        advice.push(format!("aws autoscaling detach-instances --auto-scaling-group-name {group} --instance-ids {suspect} --no-should-decrement-desired-capacity"));
    }
    if serves < desired {
        advice.push(format!(
            "aws autoscaling describe-scaling-activities --auto-scaling-group-name {group}"
        ));
    }
    let image = &original.instance.image;
    let same: Vec<_> = members
        .iter()
        .filter(|(_, m)| m.as_ref().is_some_and(|m| m.image == *image))
        .map(|(id, _)| id)
        .collect();
    if !same.is_empty() {
        found.push(format!("from the suspect's image {image}: {}", some(&same)));
    }
    let same_template = launched_by(original).is_some_and(|was| now.launch_template == Some(was));
    if same_template {
        found.push("the group still launches by the suspect's template and version".to_owned());
    }
    if !same.is_empty() || same_template {
        advice.push(format!("once image and template were looked at or replaced: aws autoscaling update-auto-scaling-group --auto-scaling-group-name {group} --launch-template LaunchTemplateId=<TEMPLATE>,Version=<VERSION>, then aws autoscaling start-instance-refresh --auto-scaling-group-name {group}"));
    }
    let unread: Vec<_> = members.iter().filter(|(_, m)| m.is_none()).map(|(id, _)| id).collect();
    let unseen = others().count().saturating_sub(members.len());
    if !unread.is_empty() || unseen > 0 {
        found.push(format!("{} members could not be looked at", unread.len() + unseen));
        advice.push("run recover again".to_owned());
    }
    let open = serves < desired || !same.is_empty() || same_template || desired == 0;
    let state = match (open, advice.is_empty()) {
        (true, _) => State::Open,
        (false, true) => State::Done,
        (false, false) => State::Look,
    };
    if desired == 0 {
        advice.push(format!("the group wants no instance: aws autoscaling set-desired-capacity --auto-scaling-group-name {group} --desired-capacity <COUNT>"));
    }
    Task::new(WHAT, state, &found.join("; "), &advice.join("; "))
}

/// The launch template and version by which the group launched when the response began.
fn launched_by(original: &Original) -> Option<(String, String)> {
    original.scaling.get()?.as_ref()?.group.as_ref()?.launch_template.clone()
}

fn template(original: &Original, group: Option<&Result<Group, CloudError>>) -> Option<Task> {
    const WHAT: &str = "launch template";
    let Known::Is(Some(was)) = &original.scaling else { return None };
    let Some((template, version)) = launched_by(original) else {
        let found = format!(
            "{} named none: a launch configuration, a mix, or it could not be read",
            was.membership.group
        );
        let advice = "aws autoscaling describe-auto-scaling-groups, and look at what it launches";
        return Some(Task::new(WHAT, State::Look, &found, advice));
    };
    let (id, number) = (argument(&template), argument(&version));
    let by =
        if template.starts_with("lt-") { "--launch-template-id" } else { "--launch-template-name" };
    let found = format!("{template} version {version} launched the suspect");
    let advice = format!(
        "look for what does not belong in it, its user data first (aws ec2 describe-launch-template-versions {by} {id} --versions {number}); make a version with a trusted image (aws ec2 create-launch-template-version {by} {id} --source-version {number} --launch-template-data <DATA>)"
    );
    let now = group.and_then(|g| g.as_ref().ok()).and_then(|g| g.now.launch_template.as_ref());
    Some(match now {
        // A version by name may be another one by now.
        Some((t, v)) if *t == template && *v == version && !version.starts_with('$') => Task::new(
            WHAT,
            State::Open,
            &format!("{found}, and still launches the others"),
            &advice,
        ),
        Some((t, v)) if *t != template || *v != version => {
            let found = format!("{found}; the group launches by {t} version {v} now");
            Task::new(WHAT, State::Done, &found, "")
        }
        _ => Task::new(WHAT, State::Look, &found, &advice),
    })
}

fn machine_image(original: &Original) -> Task {
    let image = &original.instance.image;
    let id = argument(image.as_str());
    let found = format!("the suspect was launched from {image}");
    let advice = format!(
        "look at who made it and when (aws ec2 describe-images --image-ids {id}); until then nobody should launch from it: where it is your own, aws ec2 disable-image --image-id {id}. Do not deregister it: it is evidence"
    );
    Task::new("image", State::Look, &found, &advice)
}

/// What the instance could act with.
fn credentials(original: &Original) -> Vec<Task> {
    const WHAT: &str = "role";
    let role = match &original.profile {
        Known::Unknown(why) => {
            let found = format!("which role it had is not known: {why}");
            Task::new(WHAT, State::Look, &found, "look at the instance profile in the record")
        }
        Known::Is(None) => Task::new(WHAT, State::Done, "it had no instance profile", ""),
        Known::Is(Some(profile)) => match &profile.role {
            None => {
                let found = format!("its profile {} has no role", profile.name);
                Task::new(WHAT, State::Done, &found, "")
            }
            Some((name, arn)) => {
                let found = format!("it acted as {name} ({arn})");
                let (name, arn) = (argument(name.as_str()), argument(arn));
                let advice = format!(
                    "rotate every secret that this role may read; look at what it may do (aws iam list-attached-role-policies --role-name {name}) and who may assume it (aws iam get-role --role-name {name}); cleanroom revoke --principal {arn} ends all its sessions, those of other instances too, which then get new ones"
                );
                Task::new(WHAT, State::Open, &found, &advice)
            }
        },
    };
    let found = match &original.instance.key_pair {
        Some(pair) => {
            format!("what lay on its disks, in its user data and in its memory; key pair {pair}")
        }
        None => "what lay on its disks, in its user data and in its memory".to_owned(),
    };
    let advice = "take every password, token and private key that it held for known to the attacker, and replace it where it is valid";
    vec![role, Task::new("secrets", State::Open, &found, advice)]
}

/// A key, user or session that the instance's role made.
fn survivor(survivor: &Survivor, ledger: &Ledger) -> Task {
    const WHAT: &str = "made by its role";
    let found =
        format!("{} made {} (CloudTrail event {})", survivor.call, survivor.what, survivor.event);
    if is_cut(survivor, ledger) {
        return Task::new(WHAT, State::Done, &format!("{found}; it was cut since"), "");
    }
    let advice = match &survivor.principal {
        Some(arn) if is_plain(arn) => format!("cleanroom revoke --principal {arn}"),
        _ if survivor.what.starts_with("AKIA") && is_plain(&survivor.what) => format!(
            "find its user (aws iam get-access-key-last-used --access-key-id {0}), then aws iam update-access-key --access-key-id {0} --status Inactive --user-name <USER>",
            survivor.what
        ),
        _ => "find its owner in the CloudTrail event, then cleanroom revoke --principal <ARN>"
            .to_owned(),
    };
    Task::new(WHAT, State::Open, &found, &advice)
}

/// Whether a person had it cut in this case.
fn is_cut(survivor: &Survivor, ledger: &Ledger) -> bool {
    let principal = survivor.principal.as_deref().and_then(|arn| arn.parse::<Principal>().ok());
    let done = ledger.outcomes.iter().filter(|o| o.error.is_none());
    done.map(|outcome| &outcome.change).any(|change| match (change, &principal) {
        (Change::SetAccessKey { key, active: false, .. }, _) if *key == survivor.what => true,
        (Change::PutRolePolicy { role, name, .. }, Some(Principal::Role(of))) => {
            role == of && name == "cleanroom-revoked"
        }
        (Change::PutUserPolicy { user, .. }, Some(Principal::User(of))) => user == of,
        _ => false,
    })
}

/// Other instances that may be what the suspect is.
fn others(case: &Case, alike: cleanroom_cloud::Result<Vec<InstanceId>>) -> Task {
    const WHAT: &str = "other instances";
    let suspect = &case.scene.instance;
    let alike: BTreeSet<_> = match alike {
        Ok(alike) => alike.into_iter().filter(|id| id != suspect).collect(),
        Err(error) => {
            let found = format!("could not be looked for: {error}");
            return Task::new(WHAT, State::Look, &found, "run recover again");
        }
    };
    if alike.is_empty() {
        return Task::new(WHAT, State::Done, "no other instance has its image or profile", "");
    }
    let found = format!("{} have its image or profile: {}", alike.len(), some(&alike));
    let first = alike.first().map(ToString::to_string).unwrap_or_default();
    let advice = format!(
        "look at each for what was found on the suspect (aws guardduty list-findings, flow logs); where one shows it: cleanroom respond {first} --reason <REASON>"
    );
    Task::new(WHAT, State::Look, &found, &advice)
}

/// What must be kept until the case is decided.
fn evidence(
    case: &CaseId,
    ledger: &Ledger,
    snapshots: &cleanroom_cloud::Result<Vec<Snapshot>>,
    images: &cleanroom_cloud::Result<Vec<Image>>,
) -> Vec<Task> {
    const WHAT: &str = "evidence to keep";
    let list = format!(
        "aws ec2 describe-snapshots --owner-ids self --filters Name=tag:cleanroom:case,Values={case}"
    );
    let keep = format!(
        "keep them until the case is decided: no lifecycle policy, no clearing up ({list})"
    );
    let mut tasks = Vec::new();
    match snapshots {
        Err(error) => {
            let found = format!(
                "the snapshots could not be read: {error}; the log names {}",
                some(&ledger.snapshots)
            );
            tasks.push(Task::new(WHAT, State::Look, &found, &list));
        }
        Ok(there) => {
            let ids: BTreeSet<_> = there.iter().map(|s| s.id.as_str()).collect();
            let gone = ledger.snapshots.iter().filter(|id| !ids.contains(id.as_str()));
            let gone: Vec<_> = gone.collect();
            if !gone.is_empty() {
                let found = format!("snapshots that the log names are not there: {}", some(gone));
                let advice = "look in the recycle bin (aws ec2 list-snapshots-in-recycle-bin) and in CloudTrail for DeleteSnapshot";
                tasks.push(Task::new(WHAT, State::Open, &found, advice));
            }
            let failed = there.iter().filter(|s| s.state == SnapshotState::Error).count();
            let unlocked =
                there.iter().filter(|s| !s.locked && s.state != SnapshotState::Error).count();
            if there.is_empty() && ledger.snapshots.is_empty() {
                let found = "there is no snapshot of its volumes";
                let advice = format!(
                    "cleanroom respond {} takes them, while the volumes are there",
                    ledger_instance(ledger)
                );
                tasks.push(Task::new(WHAT, State::Open, found, &advice));
            } else if !there.is_empty() {
                let found =
                    format!("snapshots {}; {unlocked} not locked, {failed} failed", some(ids));
                tasks.push(Task::new(WHAT, State::Look, &found, &keep));
            }
        }
    }
    match images {
        Err(error) => {
            let found = format!("the images could not be read: {error}");
            tasks.push(Task::new(WHAT, State::Look, &found, "run recover again"));
        }
        Ok(images) if !images.is_empty() => {
            let found = format!("images {}", some(images.iter().map(|i| &i.id)));
            tasks.push(Task::new(WHAT, State::Look, &found, "keep them with their snapshots"));
        }
        Ok(_) => {}
    }
    tasks
}

fn ledger_instance(ledger: &Ledger) -> String {
    ledger.original.as_ref().map(|o| o.instance.id.to_string()).unwrap_or_default()
}

/// What isolation leaves to people.
fn not_cut(what: &str) -> Task {
    let advice = if what.contains("branch interfaces") {
        "list them (aws ec2 describe-network-interfaces --filters Name=interface-type,Values=branch), and have the cluster end or move those pods and tasks"
    } else if what.contains("resolver") {
        "a firewall rule for the whole VPC: aws route53resolver associate-firewall-rule-group --vpc-id <VPC> --firewall-rule-group-id <GROUP> --priority <NUMBER> --name <NAME>; look at its query logs for names that carry data"
    } else if what.contains("NAT") {
        "look at the flow logs of gateways, load balancers and appliances for its addresses after containment; a flow that goes on ends with the instance's stop or the appliance's own rule"
    } else if what.contains("AssumeRole") {
        "see the tasks above for each, and CloudTrail again after a quarter of an hour: cleanroom respond asks it once more"
    } else {
        "look at the flow logs of its subnet for its addresses after containment"
    };
    Task::new("not surely cut", State::Look, what, advice)
}

/// The first of these things, and how many more there are.
fn some<T: std::fmt::Display>(things: impl IntoIterator<Item = T>) -> String {
    let all: Vec<_> = things.into_iter().map(|t| t.to_string()).collect();
    let more = all.len().saturating_sub(NAMED);
    let first = all.iter().take(NAMED).cloned().collect::<Vec<_>>().join(", ");
    if more == 0 { first } else { format!("{first} and {more} more") }
}

/// Whether a shell takes it for one plain word.
fn is_plain(text: &str) -> bool {
    let plain = |c: char| c.is_ascii_alphanumeric() || "+=,.@_:/-".contains(c);
    !text.is_empty() && !text.starts_with('-') && text.chars().all(plain)
}

/// A name as an argument of a command that people copy: what is not plain is quoted, and what hides characters or reads as an option is left out.
fn argument(name: &str) -> String {
    if is_plain(name) {
        name.to_owned()
    } else if printable(name) == name && !name.contains('\'') && !name.starts_with('-') {
        format!("'{name}'")
    } else {
        "<NAME>".to_owned()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::journal::event::Outcome;

    #[test]
    fn what_others_wrote_does_not_get_into_a_command() {
        for (name, expected) in [
            ("web", "web"),
            ("a b", "'a b'"),
            ("$(reboot)", "'$(reboot)'"),
            ("a'; reboot; '", "<NAME>"),
            ("a\nb", "<NAME>"),
            ("\u{202e}x", "<NAME>"),
            ("", "''"),
            ("--help", "<NAME>"),
        ] {
            assert_eq!(argument(name), expected, "{name:?}");
        }
        let made = |what: &str, principal: Option<&str>| Survivor {
            call: "CreateAccessKey".to_owned(),
            what: what.to_owned(),
            principal: principal.map(str::to_owned),
            event: "e".to_owned(),
        };
        let advice = |s: Survivor| survivor(&s, &Ledger::default()).advice;
        assert!(
            advice(made("x", Some("arn:aws:iam::123456789012:user/$(reboot)"))).contains("<ARN>")
        );
        assert!(advice(made("AKIA`reboot`", None)).contains("<ARN>"));
        assert!(advice(made("AKIAIOSFODNN7EXAMPLE", None)).contains("AKIAIOSFODNN7EXAMPLE"));
    }

    #[test]
    fn what_was_cut_since_is_done() {
        let arn = "arn:aws:iam::123456789012:role/deploy";
        let session = Survivor {
            call: "AssumeRole".to_owned(),
            what: "arn:aws:sts::123456789012:assumed-role/deploy/x".to_owned(),
            principal: Some(arn.to_owned()),
            event: "e".to_owned(),
        };
        let outcome = |name: &str, error: Option<&str>| Outcome {
            change: Change::PutRolePolicy {
                role: "deploy".into(),
                name: name.to_owned(),
                document: "{}".to_owned(),
            },
            made: None,
            error: error.map(str::to_owned),
        };
        for (outcome, expected) in [
            (outcome("cleanroom-revoked", None), State::Done),
            (outcome("cleanroom-revoked", Some("denied")), State::Open),
            (outcome("cleanroom-another", None), State::Open),
        ] {
            let ledger = Ledger { outcomes: vec![outcome.clone()], ..Ledger::default() };
            let task = survivor(&session, &ledger);
            assert_eq!(task.state, expected, "{outcome:?}");
        }
    }

    #[test]
    fn everything_that_is_not_cut_has_advice() {
        for what in isolate::NOT_CUT {
            assert!(!not_cut(what).advice.is_empty(), "{what}");
        }
    }
}
