//! Drills: an instance launched, terminated, and its snapshots deleted. Touches only what its tags say is the drill's.

use cleanroom_cloud::{Change, InstanceState, Made, drill_tags, marks_drill, marks_drill_snapshot};
use cleanroom_contract::{CaseId, InstanceId, SnapshotId};

use super::not_mine;
use crate::{
    inventory::no_instance,
    later::Later,
    problem::{Answered, Problem},
    world::World,
};

impl World {
    pub(super) fn change_drill(&mut self, change: &Change) -> Answered<Made> {
        match change {
            Change::RunDrill { drill, image, instance_type, subnet } => {
                if let Some(subnet) = subnet.as_ref().filter(|s| !self.subnets.contains_key(*s)) {
                    let message = format!("The subnet ID '{subnet}' does not exist");
                    return Err(Problem::not_found("InvalidSubnetID.NotFound", message));
                }
                Ok(Made::Instance(self.run_drill(drill, image.as_str(), instance_type)))
            }
            Change::TerminateDrill { drill, instance } => self.terminate_drill(drill, instance),
            Change::DeleteDrillSnapshot { drill, instance, snapshot } => {
                self.delete_drill_snapshot((drill, instance), snapshot)
            }
            _ => Err(not_mine(change)),
        }
    }

    /// The token of a call is the drill's name: asked again, it gives the instance that it gave before.
    fn run_drill(&mut self, drill: &CaseId, image: &str, instance_type: &str) -> InstanceId {
        let launched = self.machines.values().find(|m| marks_drill(&m.instance.tags, drill));
        if let Some(machine) = launched {
            return machine.instance.id.clone();
        }
        let name = self.name("i-");
        let id: InstanceId = name.parse().expect("made in the form that is asked for");
        self.add_machine(&id, name.trim_start_matches("i-"), "10.0.0.77");
        let machine = self.machines.get_mut(&id).expect("just added");
        machine.instance.state = InstanceState::Pending;
        machine.instance.image = image.into();
        instance_type.clone_into(&mut machine.instance.instance_type);
        machine.instance.tags = drill_tags(drill);
        for mapping in &machine.instance.volumes {
            if let Some(volume) = self.volumes.get_mut(&mapping.volume) {
                volume.tags = drill_tags(drill);
            }
        }
        self.after(self.times.launch, Later::Launched(id.clone()));
        id
    }

    fn terminate_drill(&mut self, drill: &CaseId, id: &InstanceId) -> Answered<Made> {
        let machine = self.machines.get(id).ok_or_else(|| no_instance(id))?;
        if !marks_drill(&machine.instance.tags, drill) {
            return Err(not_this_drill(id.as_str()));
        }
        if machine.guards.termination || machine.guards.stop {
            let message = format!("The instance '{id}' may not be terminated.");
            return Err(Problem::refused("OperationNotPermitted", message));
        }
        if !machine.instance.state.is_ending() {
            self.shut_down(id);
        }
        Ok(Made::Nothing)
    }

    fn delete_drill_snapshot(
        &mut self,
        (drill, instance): (&CaseId, &InstanceId),
        id: &SnapshotId,
    ) -> Answered<Made> {
        let snapshot = self.get_snapshot(id)?;
        if !marks_drill_snapshot(&snapshot.tags, drill, instance) {
            return Err(not_this_drill(id.as_str()));
        }
        if snapshot.locked {
            let message = format!("The snapshot '{id}' is locked");
            return Err(Problem::refused("SnapshotLocked", message));
        }
        if let Some(image) = self.images.iter().find(|i| i.snapshots.contains(id)) {
            let message = format!("The snapshot {id} is currently in use by {}", image.id);
            return Err(Problem::refused("InvalidSnapshot.InUse", message));
        }
        self.snapshots.retain(|s| s.id != *id);
        Ok(Made::Nothing)
    }
}

fn not_this_drill(id: &str) -> Problem {
    Problem::refused("NotThisDrill", format!("{id} is not marked as of this drill"))
}
