//! Out of its Auto Scaling group and its load balancers, before failing health checks terminate the evidence.
//!
//! The group keeps its capacity, so it launches a replacement. Nothing here waits for connections to drain.

use std::collections::BTreeSet;

use async_trait::async_trait;
use cleanroom_cloud::{Change, Result, Target, TargetGroupArn};
use futures_util::{StreamExt as _, stream};

use crate::{
    case::{Assessment, Goal, History, Scene, Shortfall, Step},
    original,
};

/// The processes by which a group ends its instances.
const ENDING: [&str; 2] = ["ReplaceUnhealthy", "Terminate"];

/// The instance is in no Auto Scaling group; where the group does not let it go, the group does not end it.
#[derive(Debug)]
pub struct Scaling;

#[async_trait]
impl Goal for Scaling {
    fn step(&self) -> Step {
        Step::Detach
    }

    fn name(&self) -> &'static str {
        "scaling"
    }

    async fn look(&self, scene: &Scene, history: &History) -> Result<Assessment> {
        let mut seen = Assessment::default();
        let Some(membership) = scene.inventory.membership(&scene.instance).await? else {
            return Ok(seen);
        };
        // Leaving: what remains is draining, which nobody waits for.
        if membership.state.starts_with("Detach") {
            return Ok(seen);
        }
        let refusal = history.refusal(|c| matches!(c, Change::DetachFromGroup { .. }));
        let ending = membership.state.starts_with("Terminating");
        if refusal.is_none() && !ending {
            seen.now.push(Change::DetachFromGroup {
                instance: scene.instance.clone(),
                group: membership.group,
            });
            return Ok(seen);
        }
        let group = scene.inventory.scaling_group(&membership.group).await?;
        let processes: BTreeSet<_> = ENDING
            .into_iter()
            .map(str::to_owned)
            .filter(|p| !group.suspended.contains(p))
            .collect();
        if !processes.is_empty() {
            seen.now.push(Change::SuspendProcesses { group: membership.group.clone(), processes });
        }
        if membership.state == "Terminating:Wait" {
            let beats = group.termination_hooks.iter().map(|hook| Change::Heartbeat {
                instance: scene.instance.clone(),
                group: membership.group.clone(),
                hook: hook.clone(),
            });
            // A heartbeat shows nowhere: once a run.
            seen.now.extend(beats.filter(|beat| !history.applied.contains(beat)));
        }
        let why = refusal.unwrap_or("the group is ending it already");
        seen.short.push(Shortfall {
            step: Step::Detach,
            what: format!(
                "{} is still in Auto Scaling group {} ({}): {why}",
                scene.instance, membership.group, membership.state
            ),
            advice: "the group's ReplaceUnhealthy and Terminate are suspended until release; detach it by hand".to_owned(),
        });
        Ok(seen)
    }

    async fn look_back(&self, scene: &Scene, history: &History) -> Result<Assessment> {
        let mut seen = Assessment::default();
        let suspended: BTreeSet<(String, String)> = scene
            .done
            .iter()
            .filter_map(|change| match change {
                Change::SuspendProcesses { group, processes } => Some((group, processes)),
                _ => None,
            })
            .flat_map(|(group, processes)| processes.iter().map(|p| (group.clone(), p.clone())))
            .collect();
        for group in suspended.iter().map(|(group, _)| group).collect::<BTreeSet<_>>() {
            let now = scene.inventory.scaling_group(group).await?.suspended;
            let ours = suspended.iter().filter(|(g, _)| g == group).map(|(_, p)| p.clone());
            let processes: BTreeSet<_> = ours.filter(|p| now.contains(p)).collect();
            if !processes.is_empty() {
                seen.now.push(Change::ResumeProcesses { group: group.clone(), processes });
            }
        }
        let Some(Some(was)) = scene.original.scaling.get() else { return Ok(seen) };
        let group = was.membership.group.clone();
        let instance = scene.instance.clone();
        match scene.inventory.membership(&scene.instance).await? {
            None if was.membership.state.starts_with("Terminating") => {}
            None => {
                seen.now.push(Change::AttachToGroup {
                    instance: instance.clone(),
                    group: group.clone(),
                });
                if was.membership.protected {
                    seen.then.push(Change::SetScaleInProtection { instance, group, on: true });
                }
                seen.notes.push("attaching raises the group's desired capacity by one".to_owned());
            }
            Some(now) if now.protected != was.membership.protected => {
                let on = was.membership.protected;
                let change = Change::SetScaleInProtection { instance, group, on };
                // It shows only once the instance is in service.
                if !history.applied.contains(&change) {
                    seen.now.push(change);
                }
            }
            Some(_) => {}
        }
        Ok(seen)
    }
}

/// The instance takes no traffic from load balancers.
#[derive(Debug)]
pub struct Balancers;

/// Registrations that are in force, among those that were recorded or found.
async fn registered(scene: &Scene) -> Result<Vec<(TargetGroupArn, Target)>> {
    let inventory = &*scene.inventory;
    let known: Vec<(TargetGroupArn, Target)> = match scene.original.targets.get() {
        Some(targets) => targets.clone(),
        None => {
            let (interfaces, index) = tokio::join!(
                inventory.interfaces(&scene.instance),
                original::target_index(inventory, &scene.shared),
            );
            let interfaces = interfaces?;
            let addresses =
                interfaces.iter().flat_map(|i| i.private.iter().chain(&i.ipv6).cloned()).collect();
            original::registrations(index?, &scene.instance, &addresses)
        }
    };
    let groups: BTreeSet<_> = known.iter().map(|(group, _)| group.clone()).collect();
    let reads: Vec<_> = groups
        .into_iter()
        .map(|group| async move { (inventory.targets(&group).await, group) })
        .collect();
    let mut now = Vec::new();
    for (targets, group) in stream::iter(reads).buffered(16).collect::<Vec<_>>().await {
        let here = known.iter().filter(|(g, _)| *g == group).map(|(_, t)| (&t.id, t.port));
        let here: BTreeSet<_> = here.collect();
        let targets = targets?;
        now.extend(
            targets
                .into_iter()
                .filter(|t| !t.draining && here.contains(&(&t.id, t.port)))
                .map(|target| (group.clone(), target)),
        );
    }
    Ok(now)
}

#[async_trait]
impl Goal for Balancers {
    fn step(&self) -> Step {
        Step::Detach
    }

    fn name(&self) -> &'static str {
        "balancers"
    }

    async fn look(&self, scene: &Scene, _history: &History) -> Result<Assessment> {
        let (targets, classic) =
            tokio::join!(registered(scene), scene.inventory.classic_balancers());
        let mut seen = Assessment::default();
        seen.now.extend(
            targets?
                .into_iter()
                .map(|(target_group, target)| Change::DeregisterTarget { target_group, target }),
        );
        let mine = classic?.into_iter().filter(|c| c.instances.contains(&scene.instance));
        seen.now.extend(mine.map(|classic| Change::DeregisterClassic {
            balancer: classic.name,
            instance: scene.instance.clone(),
        }));
        Ok(seen)
    }

    async fn look_back(&self, scene: &Scene, _history: &History) -> Result<Assessment> {
        let mut seen = Assessment::default();
        if let Some(was) = scene.original.targets.get() {
            let now = registered(scene).await?;
            let there = |group: &TargetGroupArn, target: &Target| {
                now.iter().any(|(g, t)| g == group && t.id == target.id && t.port == target.port)
            };
            let lost = was.iter().filter(|(group, target)| !there(group, target));
            seen.now.extend(lost.map(|(group, target)| Change::RegisterTarget {
                target_group: group.clone(),
                target: target.clone(),
            }));
        }
        if let Some(was) = scene.original.classic.get().filter(|was| !was.is_empty()) {
            let now = scene.inventory.classic_balancers().await?;
            let lacks = |name: &&String| {
                now.iter().any(|c| c.name == **name && !c.instances.contains(&scene.instance))
            };
            seen.now.extend(was.iter().filter(lacks).map(|name| Change::RegisterClassic {
                balancer: name.clone(),
                instance: scene.instance.clone(),
            }));
        }
        Ok(seen)
    }
}
