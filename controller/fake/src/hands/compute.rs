//! Guards, metadata, snapshots, images. Touches instances, snapshots and images of the world.

use std::collections::BTreeMap;

use cleanroom_cloud::{
    Change, ErrorKind, Image, ImageId, Made, Snapshot, SnapshotState, Tags, Volume,
};
use cleanroom_contract::{InstanceId, SnapshotId, VolumeId};

use crate::{
    inventory::no_instance,
    later::Later,
    problem::{Answered, Problem},
    world::{Machine, World},
};

/// How long an image takes beyond its snapshots: nothing that anybody waits for.
const IMAGE_TIME: std::time::Duration = std::time::Duration::from_secs(1);
/// What `LockSnapshot` takes at most, in days.
const LOCK_LIMIT: u32 = 36_500;

impl World {
    pub(super) fn change_compute(&mut self, change: &Change) -> Answered<Made> {
        use Change as C;
        match change {
            C::SetTerminationProtection { instance, on } => {
                self.guarded(instance)?.guards.termination = *on;
            }
            C::SetStopProtection { instance, on } => self.guarded(instance)?.guards.stop = *on,
            C::SetShutdownBehavior { instance, terminate } => {
                self.living(instance)?.guards.shutdown_terminates = *terminate;
            }
            C::SetDeleteOnTermination { instance, device, volume, on } => {
                let mut mappings = self.living(instance)?.instance.volumes.iter_mut();
                let Some(mapping) = mappings.find(|m| m.device == *device && m.volume == *volume)
                else {
                    let message = format!("No device is currently mapped at {device}");
                    return Err(Problem::refused("InvalidInstanceAttributeValue", message));
                };
                mapping.delete_on_termination = *on;
            }
            C::SetMetadataEndpoint { instance, on } => {
                self.living(instance)?.instance.metadata.endpoint = *on;
            }
            C::CreateSnapshots { instance, tags, .. } => {
                return self.create_snapshots(instance, tags).map(Made::Snapshots);
            }
            C::CreateSnapshot { volume, tags, .. } => {
                self.check_tags(&Tags::new(), tags)?;
                let Some(volume) = self.volumes.get(volume).cloned() else {
                    return Err(no_volume(volume));
                };
                return Ok(Made::Snapshots(vec![self.snapshot_of(&volume, tags)]));
            }
            C::LockSnapshot { snapshot, days } => return self.lock_snapshot(snapshot, *days),
            C::CopySnapshot { snapshot, key, tags } => {
                return self.copy_snapshot(snapshot, key, tags);
            }
            C::RegisterImage { .. } => return self.register_image(change),
            C::CreateImage { instance, name, tags } => {
                return self.create_image(instance, name, tags);
            }
            _ => return Err(not_mine(change)),
        }
        Ok(Made::Nothing)
    }

    /// An instance whose attributes can be changed.
    pub(super) fn living(&mut self, id: &InstanceId) -> Answered<&mut Machine> {
        let machine = self.machines.get_mut(id).ok_or_else(|| no_instance(id))?;
        if machine.instance.state.is_ending() {
            let message = format!("The instance '{id}' is not in a state for this");
            return Err(Problem::refused("IncorrectInstanceState", message));
        }
        Ok(machine)
    }

    /// The same, not Spot: Spot instances can not be protected.
    fn guarded(&mut self, id: &InstanceId) -> Answered<&mut Machine> {
        let machine = self.living(id)?;
        if machine.instance.spot {
            let message = "The request is not supported for Spot Instances";
            let kind = ErrorKind::Unsupported;
            return Err(Problem::new(kind, "UnsupportedOperation", message));
        }
        Ok(machine)
    }

    /// All attached volumes at once, each time it is called.
    fn create_snapshots(&mut self, id: &InstanceId, tags: &Tags) -> Answered<Vec<Snapshot>> {
        self.check_tags(&Tags::new(), tags)?;
        let mappings = self.living(id)?.instance.volumes.clone();
        let volumes: Vec<Volume> =
            mappings.iter().filter_map(|m| self.volumes.get(&m.volume)).cloned().collect();
        if volumes.is_empty() {
            let message = format!("The instance '{id}' has no volumes attached");
            return Err(Problem::refused("InvalidParameterValue", message));
        }
        Ok(volumes.iter().map(|volume| self.snapshot_of(volume, tags)).collect())
    }

    fn snapshot_of(&mut self, volume: &Volume, tags: &Tags) -> Snapshot {
        let snapshot = Snapshot {
            id: self.snapshot_id(),
            volume: volume.id.clone(),
            owner: self.account.clone(),
            state: SnapshotState::Pending,
            progress: 0,
            size: volume.size,
            started: self.now(),
            encrypted: volume.encrypted,
            key: volume.key.clone(),
            locked: false,
            tags: tags.clone(),
        };
        self.keep(snapshot, self.failing_volumes.contains(&volume.id))
    }

    pub(crate) fn keep(&mut self, snapshot: Snapshot, fails: bool) -> Snapshot {
        self.after(self.times.snapshot, Later::Snapshot { id: snapshot.id.clone(), fails });
        self.snapshots.push(snapshot.clone());
        snapshot
    }

    pub(crate) fn snapshot_id(&mut self) -> SnapshotId {
        self.name("snap-").parse().expect("made in the form that is asked for")
    }

    pub(crate) fn get_snapshot(&self, id: &SnapshotId) -> Answered<&Snapshot> {
        self.snapshot(id).ok_or_else(|| {
            let message = format!("The snapshot '{id}' does not exist.");
            Problem::not_found("InvalidSnapshot.NotFound", message)
        })
    }

    fn lock_snapshot(&mut self, id: &SnapshotId, days: u32) -> Answered<Made> {
        self.get_snapshot(id)?;
        if !(1..=LOCK_LIMIT).contains(&days) {
            let message = "LockDuration must be between 1 and 36500";
            return Err(Problem::refused("InvalidParameterValue", message));
        }
        for snapshot in self.snapshots.iter_mut().filter(|s| s.id == *id) {
            snapshot.locked = true;
        }
        self.locks.insert(id.clone(), days);
        Ok(Made::Nothing)
    }

    /// A copy under a key that can not be used is accepted and fails later, as EC2 has it.
    fn copy_snapshot(&mut self, id: &SnapshotId, key: &str, tags: &Tags) -> Answered<Made> {
        self.check_tags(&Tags::new(), tags)?;
        let source = self.get_snapshot(id)?.clone();
        if source.state != SnapshotState::Completed {
            let message = format!("The snapshot '{id}' is not completed");
            return Err(Problem::refused("IncorrectState", message));
        }
        let usable = self.find_key(key).filter(|k| k.enabled).map(|k| k.arn.clone());
        let copy = Snapshot {
            id: self.snapshot_id(),
            // EC2 names no volume that exists.
            volume: "vol-ffffffff".parse::<VolumeId>().expect("EC2's own placeholder"),
            state: SnapshotState::Pending,
            progress: 0,
            started: self.now(),
            encrypted: true,
            key: Some(usable.clone().unwrap_or_else(|| key.to_owned())),
            locked: false,
            tags: tags.clone(),
            ..source
        };
        Ok(Made::Copy(self.keep(copy, usable.is_none()).id))
    }

    fn free_name(&self, name: &str) -> Answered<()> {
        if self.images.iter().any(|i| i.name == name) {
            let message = format!("AMI name {name} is already in use");
            return Err(Problem::conflict("InvalidAMIName.Duplicate", message));
        }
        if !(3..=128).contains(&name.len()) {
            let message = "AMI names must be between 3 and 128 characters long";
            return Err(Problem::refused("InvalidAMIName.Malformed", message));
        }
        Ok(())
    }

    fn register_image(&mut self, change: &Change) -> Answered<Made> {
        let Change::RegisterImage { name, root_device, devices, tags, .. } = change else {
            return Err(not_mine(change));
        };
        self.check_tags(&Tags::new(), tags)?;
        self.free_name(name)?;
        if !devices.contains_key(root_device) {
            let message = format!("no snapshot for the root device {root_device}");
            return Err(Problem::refused("InvalidParameterCombination", message));
        }
        for id in devices.values() {
            if self.get_snapshot(id)?.state != SnapshotState::Completed {
                let message = format!("Snapshot is in invalid state: {id}");
                return Err(Problem::refused("InvalidParameterValue", message));
            }
        }
        let snapshots = devices.values().cloned().collect();
        Ok(Made::Image(self.keep_image(name, "available", snapshots, tags)))
    }

    /// EC2 makes snapshots of its own for this, and tags the image only.
    fn create_image(&mut self, id: &InstanceId, name: &str, tags: &Tags) -> Answered<Made> {
        self.check_tags(&Tags::new(), tags)?;
        self.free_name(name)?;
        let snapshots = self.create_snapshots(id, &BTreeMap::new())?;
        let snapshots = snapshots.into_iter().map(|s| s.id).collect();
        let image = self.keep_image(name, "pending", snapshots, tags);
        self.after(self.times.snapshot + IMAGE_TIME, Later::Image(image.clone()));
        Ok(Made::Image(image))
    }

    fn keep_image(
        &mut self,
        name: &str,
        state: &str,
        snapshots: Vec<SnapshotId>,
        tags: &Tags,
    ) -> ImageId {
        let id = ImageId::from(self.name("ami-"));
        self.images.push(Image {
            id: id.clone(),
            name: name.to_owned(),
            state: state.to_owned(),
            snapshots,
            tags: tags.clone(),
        });
        id
    }
}

fn no_volume(id: &VolumeId) -> Problem {
    Problem::not_found("InvalidVolume.NotFound", format!("The volume '{id}' does not exist."))
}

/// A change that was sent to the wrong one of these files: a mistake of the dispatch, never of the caller.
pub(crate) fn not_mine(change: &Change) -> Problem {
    Problem::new(ErrorKind::Other, "Misdirected", change.operation())
}
