//! Auto Scaling groups, target groups, classic load balancers. Touches those of the world, and launches
//! replacements.

use cleanroom_cloud::{Change, InstanceState, Made, Target, TargetGroupArn};
use cleanroom_contract::InstanceId;

use super::compute::not_mine;
use crate::{
    inventory::{no_instance, no_target_group},
    later::Later,
    problem::{Answered, Problem},
    world::{Machine, Scaling, World},
};

fn invalid(message: impl Into<String>) -> Problem {
    Problem::refused("ValidationError", message)
}

impl Scaling {
    fn member(&mut self, id: &InstanceId) -> Answered<&mut (InstanceId, String, String)> {
        let name = self.group.name.clone();
        let member = self.group.instances.iter_mut().find(|(i, _, _)| i == id);
        member.ok_or_else(|| invalid(format!("The instance {id} is not part of group {name}")))
    }
}

impl World {
    pub(super) fn change_scaling(&mut self, change: &Change) -> Answered<Made> {
        use Change as C;
        match change {
            C::DetachFromGroup { instance, group } => self.detach(instance, group)?,
            C::AttachToGroup { instance, group } => self.attach(instance, group)?,
            C::SetScaleInProtection { instance, group, on } => {
                let scaling = self.group_mut(group)?;
                scaling.member(instance)?;
                if *on {
                    scaling.protected.insert(instance.clone());
                } else {
                    scaling.protected.remove(instance);
                }
            }
            C::SuspendProcesses { group, processes } => {
                self.group_mut(group)?.group.suspended.extend(processes.iter().cloned());
            }
            C::ResumeProcesses { group, processes } => {
                self.group_mut(group)?.group.suspended.retain(|p| !processes.contains(p));
            }
            C::Heartbeat { instance, group, hook } => self.heartbeat(instance, group, hook)?,
            C::DeregisterTarget { target_group, target } => {
                self.deregister(target_group, target);
            }
            C::RegisterTarget { target_group, target } => self.register(target_group, target)?,
            C::DeregisterClassic { balancer, instance } => {
                if let Ok(instances) = self.classic(balancer) {
                    instances.retain(|id| id != instance);
                }
            }
            C::RegisterClassic { balancer, instance } => {
                let known = self.machines.contains_key(instance);
                let instances = self.classic(balancer)?;
                if !known {
                    return Err(Problem::refused("InvalidInstance", instance.to_string()));
                }
                if !instances.contains(instance) {
                    instances.push(instance.clone());
                }
            }
            _ => return Err(not_mine(change)),
        }
        Ok(Made::Nothing)
    }

    fn group_mut(&mut self, name: &str) -> Answered<&mut Scaling> {
        let missing = || Problem::not_found("ValidationError", "AutoScalingGroup name not found");
        self.scaling.get_mut(name).ok_or_else(missing)
    }

    fn classic(&mut self, name: &str) -> Answered<&mut Vec<InstanceId>> {
        self.classics.get_mut(name).map(|c| &mut c.instances).ok_or_else(|| {
            let message = format!("There is no ACTIVE Load Balancer named '{name}'");
            Problem::not_found("LoadBalancerNotFound", message)
        })
    }

    /// The desired capacity stays, so a replacement is launched at once. What is no member any more is no
    /// error.
    fn detach(&mut self, id: &InstanceId, name: &str) -> Answered<()> {
        let scaling = self.group_mut(name)?;
        let Ok((_, state, _)) = scaling.member(id) else { return Ok(()) };
        if !matches!(state.as_str(), "InService" | "Standby") {
            return Err(invalid(format!("The instance {id} is not in InService or Standby")));
        }
        if let Some(kind) = scaling.refuse_detach {
            return Err(Problem::new(kind, "ValidationError", format!("{id} can not be detached")));
        }
        scaling.group.instances.retain(|(i, _, _)| i != id);
        scaling.protected.remove(id);
        let scaling = scaling.clone();
        self.leave_balancers(id, &scaling);
        let launches = !scaling.group.suspended.contains("Launch");
        let wanted = usize::try_from(scaling.group.size.1).unwrap_or(0);
        if launches && scaling.group.instances.len() < wanted {
            self.replace(id, &scaling)?;
        }
        Ok(())
    }

    fn leave_balancers(&mut self, id: &InstanceId, scaling: &Scaling) {
        for arn in &scaling.target_groups {
            self.deregister(arn, &target(id, None));
        }
        for name in &scaling.classics {
            if let Ok(instances) = self.classic(name) {
                instances.retain(|i| i != id);
            }
        }
    }

    fn join_balancers(&mut self, id: &InstanceId, scaling: &Scaling) -> Answered<()> {
        for arn in &scaling.target_groups {
            let port = self.target_groups.get(arn).map(|t| t.port);
            self.register(arn, &target(id, port))?;
        }
        for name in &scaling.classics {
            let instances = self.classic(name)?;
            if !instances.contains(id) {
                instances.push(id.clone());
            }
        }
        Ok(())
    }

    /// A new instance like the one that left, with names, a volume, an interface and groups of its own.
    fn replace(&mut self, id: &InstanceId, scaling: &Scaling) -> Answered<()> {
        let Machine { mut instance, mut guards, mut cards, user_data } =
            self.machines.get(id).cloned().ok_or_else(|| no_instance(id))?;
        instance.id = self.name("i-").parse().expect("made in the form that is asked for");
        instance.launched = self.now();
        instance.metadata.endpoint = true;
        instance.tags.retain(|key, _| !key.starts_with("cleanroom"));
        (guards.termination, guards.stop) = (false, false);
        cards.truncate(1);
        for card in &mut cards {
            card.interface.id = self.name("eni-").into();
            card.interface.private = vec![format!("10.0.200.{}", self.named % 250 + 4)];
            card.interface.ipv6.clear();
            card.interface.public.clear();
            card.interface.tags.clear();
            card.interface.groups.clone_from(&scaling.launch_groups);
            (card.tracked, card.open) = (true, false);
        }
        instance.volumes.truncate(1);
        for mapping in &mut instance.volumes {
            let like = self.volumes.get(&mapping.volume).cloned();
            mapping.volume = self.name("vol-").parse().expect("made in the form that is asked for");
            mapping.delete_on_termination = true;
            if let Some(mut volume) = like {
                volume.id = mapping.volume.clone();
                volume.attached = vec![(instance.id.clone(), mapping.device.clone())];
                self.volumes.insert(volume.id.clone(), volume);
            }
        }
        let id = instance.id.clone();
        if let Some(arn) = instance.profile.clone() {
            self.add_association(&id, &arn);
        }
        self.machines.insert(id.clone(), Machine { instance, guards, cards, user_data });
        self.refresh();
        let group = &mut self.group_mut(&scaling.group.name)?.group;
        group.instances.push((id.clone(), "InService".to_owned(), "Healthy".to_owned()));
        self.join_balancers(&id, scaling)
    }

    fn attach(&mut self, id: &InstanceId, name: &str) -> Answered<()> {
        if self.get_machine(id)?.instance.state != InstanceState::Running {
            return Err(invalid(format!("The instance {id} is not in running state")));
        }
        let member_of = self.scaling_of(id).map(|s| s.group.name.clone());
        let group = &mut self.group_mut(name)?.group;
        match member_of {
            Some(other) if other == name => return Ok(()),
            Some(other) => {
                return Err(invalid(format!("The instance {id} is already part of {other}")));
            }
            None => {}
        }
        let (_, desired, most) = &mut group.size;
        if *desired >= *most {
            return Err(invalid("the new desired capacity would be above the maximum size"));
        }
        *desired += 1;
        group.instances.push((id.clone(), "InService".to_owned(), "Healthy".to_owned()));
        let scaling = self.group_mut(name)?.clone();
        self.join_balancers(id, &scaling)
    }

    fn heartbeat(&mut self, id: &InstanceId, name: &str, hook: &str) -> Answered<()> {
        let (clock, wait) = (self.clock, self.times.hook);
        let scaling = self.group_mut(name)?;
        let hooked = scaling.group.termination_hooks.iter().any(|h| h == hook);
        if !hooked || scaling.member(id)?.1 != "Terminating:Wait" {
            return Err(invalid(format!("No active Lifecycle Action found with instance ID {id}")));
        }
        scaling.waits.insert(id.clone(), clock + wait);
        Ok(())
    }

    /// What is registered drains, and is gone in its time. What is not registered, or with what is no more, is
    /// no error.
    fn deregister(&mut self, arn: &TargetGroupArn, target: &Target) {
        let drain = self.times.drain;
        let Some(group) = self.target_groups.get_mut(arn) else { return };
        let mut draining = Vec::new();
        for t in group.targets.iter_mut().filter(|t| !t.draining && is_meant(target, t)) {
            t.draining = true;
            draining.push(t.clone());
        }
        for target in draining {
            self.after(drain, Later::Drained(arn.clone(), target));
        }
    }

    fn register(&mut self, arn: &TargetGroupArn, target: &Target) -> Answered<()> {
        let group = self.target_groups.get(arn).ok_or_else(|| no_target_group(arn))?;
        let running = self.machines.values().any(|m| {
            m.instance.id.as_str() == target.id && m.instance.state == InstanceState::Running
        });
        if group.group.kind == "instance" && !running {
            let message =
                format!("The following targets are not in a running state: {}", target.id);
            return Err(Problem::refused("InvalidTarget", message));
        }
        let port = target.port.or(Some(group.port));
        let new = Target { port, draining: false, ..target.clone() };
        if let Some(group) = self.target_groups.get_mut(arn) {
            group.targets.retain(|t| t.id != new.id || t.port != new.port);
            group.targets.push(new);
        }
        Ok(())
    }
}

/// A target without a port stands for all ports.
fn is_meant(wanted: &Target, target: &Target) -> bool {
    wanted.id == target.id && (wanted.port.is_none() || wanted.port == target.port)
}

fn target(id: &InstanceId, port: Option<i32>) -> Target {
    Target { id: id.to_string(), port, zone: None, draining: false }
}
