//! What happens by itself, some time after a call.
//!
//! Purpose: to let a world catch up with the clock: snapshots complete, addresses come and go, health checks
//! end what they can not reach. Touches the world it is given. Never waits: time passes only between calls.

use std::time::Duration;

use cleanroom_cloud::{
    AssociationId, ElasticAddress, ImageId, InstanceState, InterfaceId, SnapshotState, Target,
    TargetGroupArn,
};
use cleanroom_contract::{InstanceId, ScanId, SnapshotId};

use crate::world::World;

/// One thing to come.
#[derive(Clone, Debug, PartialEq)]
pub(crate) enum Later {
    /// A snapshot reaches its final state: completed, or with `fails` error.
    Snapshot { id: SnapshotId, fails: bool },
    /// An image becomes available.
    Image(ImageId),
    /// EC2 gives a public address, if it still should.
    GiveAddress(InterfaceId),
    /// EC2 takes an address back that it gave, if it still should.
    TakeAddress(InterfaceId),
    /// A drained target is gone.
    Drained(TargetGroupArn, Target),
    /// A load balancer's health check decides about a member.
    Health(InstanceId),
    /// A wait of a termination hook may end.
    HookEnds(InstanceId),
    /// An instance that was launched runs.
    Launched(InstanceId),
    /// An instance that was shutting down is terminated.
    Terminated(InstanceId),
    /// An ended association is no longer listed.
    AssociationGone(AssociationId),
    /// A stack takes its next step.
    Stack(String),
    /// A clean room tells its next news of a scan.
    Room { stack: String, scan: ScanId, seq: u64 },
    /// A clean room looks for another work order.
    RoomLooks(String),
}

impl World {
    /// Notes something to come.
    pub(crate) fn after(&mut self, wait: Duration, what: Later) {
        self.named += 1;
        self.later.insert((self.clock + wait, self.named), what);
    }

    /// Moves the clock to `now`, and lets everything happen that is due until then, each at its time.
    pub fn settle(&mut self, now: Duration) {
        while let Some(entry) = self.later.first_entry() {
            let due = entry.key().0;
            if due > now {
                break;
            }
            let what = entry.remove();
            self.clock = self.clock.max(due);
            self.happen(what);
        }
        self.clock = self.clock.max(now);
        if self.forensic.is_some() {
            let _always = self.in_forensic(|other| {
                other.settle(now);
                Ok(())
            });
        }
    }

    fn happen(&mut self, what: Later) {
        match what {
            Later::Snapshot { id, fails } => {
                if let Some(snapshot) = self.snapshots.iter_mut().find(|s| s.id == id) {
                    snapshot.state =
                        if fails { SnapshotState::Error } else { SnapshotState::Completed };
                    snapshot.progress = if fails { snapshot.progress } else { 100 };
                }
            }
            Later::Image(id) => self.finish_image(&id),
            Later::GiveAddress(id) => self.give_address(&id),
            Later::TakeAddress(id) => {
                if let Some(card) = self.card_mut(&id).filter(|c| !c.auto_public) {
                    card.interface.public.retain(|address| address.allocation.is_some());
                }
            }
            Later::Drained(arn, target) => {
                if let Some(group) = self.target_groups.get_mut(&arn) {
                    group.targets.retain(|t| *t != target);
                }
            }
            Later::Health(id) => self.check_health(&id),
            Later::HookEnds(id) => self.end_hook(&id),
            Later::Launched(id) => {
                let machine = self.machines.get_mut(&id);
                if let Some(pending) =
                    machine.filter(|m| m.instance.state == InstanceState::Pending)
                {
                    pending.instance.state = InstanceState::Running;
                }
            }
            Later::Terminated(id) => self.terminate(&id),
            Later::Stack(id) => self.step_stack(&id),
            Later::Room { stack, scan, seq } => self.tell_of_scan(&stack, &scan, seq),
            Later::RoomLooks(stack) => self.look_for_orders(&stack),
            Later::AssociationGone(id) => {
                self.associations.retain(|(_, a)| a.id != id || a.active);
            }
        }
    }

    fn finish_image(&mut self, id: &ImageId) {
        let Self { images, snapshots, .. } = self;
        if let Some(image) = images.iter_mut().find(|i| i.id == *id) {
            let whole = image.snapshots.iter().all(|id| {
                snapshots.iter().any(|s| s.id == *id && s.state == SnapshotState::Completed)
            });
            image.state = if whole { "available" } else { "failed" }.to_owned();
        }
    }

    /// Only a primary interface without any public address, whose flag is on, is given one.
    fn give_address(&mut self, id: &InterfaceId) {
        self.named += 1;
        let public = format!("198.51.100.{}", self.named % 254 + 1);
        let Some(machine) =
            self.machines.values_mut().find(|m| m.cards.iter().any(|c| c.interface.id == *id))
        else {
            return;
        };
        let running = machine.instance.state == InstanceState::Running;
        if let Some(card) = machine.cards.iter_mut().find(|c| c.interface.id == *id)
            && running
            && card.auto_public
            && card.interface.index == 0
            && card.interface.public.is_empty()
            && let Some(private) = card.interface.private.first().cloned()
        {
            let (allocation, association) = (None, None);
            card.interface.public.push(ElasticAddress { public, private, allocation, association });
        }
    }

    /// A member in service that its load balancers can not reach is ended, unless one of the processes that do
    /// it is suspended. Termination protection does not keep Auto Scaling from it.
    fn check_health(&mut self, id: &InstanceId) {
        if !self.is_unreachable(id) {
            return;
        }
        let (clock, hook) = (self.clock, self.times.hook);
        let Some(scaling) =
            self.scaling.values_mut().find(|s| s.group.instances.iter().any(|(i, _, _)| i == id))
        else {
            return;
        };
        let suspended = |process: &str| scaling.group.suspended.contains(process);
        if !scaling.balancer_health || suspended("ReplaceUnhealthy") || suspended("Terminate") {
            return;
        }
        let hooks = !scaling.group.termination_hooks.is_empty();
        for (_, state, health) in scaling.group.instances.iter_mut().filter(|(i, _, _)| i == id) {
            if state != "InService" {
                return;
            }
            "Unhealthy".clone_into(health);
            if hooks {
                "Terminating:Wait".clone_into(state);
            }
        }
        if hooks {
            scaling.waits.insert(id.clone(), clock + hook);
            self.after(hook, Later::HookEnds(id.clone()));
        } else {
            self.shut_down(id);
        }
    }

    /// A heartbeat may have put the end off: then it comes later.
    fn end_hook(&mut self, id: &InstanceId) {
        let clock = self.clock;
        let Some(scaling) = self.scaling.values_mut().find(|s| s.waits.contains_key(id)) else {
            return;
        };
        let waits = scaling.waits.get(id).copied().filter(|until| *until > clock);
        if let Some(until) = waits {
            self.after(until - clock, Later::HookEnds(id.clone()));
        } else {
            scaling.waits.remove(id);
            self.shut_down(id);
        }
    }

    /// Begins an instance's end: out of its Auto Scaling group, shutting down, terminated later.
    pub fn shut_down(&mut self, id: &InstanceId) {
        for scaling in self.scaling.values_mut() {
            scaling.group.instances.retain(|(i, _, _)| i != id);
        }
        if let Some(machine) = self.machines.get_mut(id) {
            machine.instance.state = InstanceState::ShuttingDown;
            self.after(self.times.termination, Later::Terminated(id.clone()));
        }
    }

    /// Ends an instance: its interfaces go, and so do the volumes that are to be deleted with it; the others
    /// are left unattached.
    pub fn terminate(&mut self, id: &InstanceId) {
        let clock = self.clock;
        let Some(machine) = self.machines.get_mut(id) else { return };
        machine.instance.state = InstanceState::Terminated;
        machine.instance.vpc = None;
        machine.instance.subnet = None;
        machine.instance.profile = None;
        let gone = std::mem::take(&mut machine.cards);
        for mapping in std::mem::take(&mut machine.instance.volumes) {
            if mapping.delete_on_termination {
                self.volumes.remove(&mapping.volume);
            } else if let Some(volume) = self.volumes.get_mut(&mapping.volume) {
                volume.attached.retain(|(instance, _)| instance != id);
            }
        }
        self.associations.retain(|(instance, _)| instance != id);
        for span in self.open_spans.iter_mut().filter(|s| s.closed.is_none()) {
            if gone.iter().any(|card| card.interface.id == span.interface) {
                span.closed = Some(clock);
            }
        }
    }
}
