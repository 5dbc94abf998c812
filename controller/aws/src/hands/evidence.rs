//! Snapshots and images: what is kept of an instance.

use std::collections::BTreeMap;

use aws_sdk_ec2::{
    Client,
    types::{
        ArchitectureValues, BlockDeviceMapping, EbsBlockDevice, InstanceSpecification, LockMode,
        OperationType, ResourceType, SnapshotAttributeName,
    },
};
use cleanroom_cloud::{Change, ImageId, Made, Result, Tags};
use cleanroom_contract::{InstanceId, SnapshotId};

use super::{done, tagged};
use crate::{
    clients::Clients,
    ec2::volumes,
    error::{bad_answer, fail},
    iam,
};

/// Snapshots and images.
pub(super) async fn apply(clients: &Clients, ec2: &Client, change: &Change) -> Result<Made> {
    use Change as C;
    match change {
        C::CreateSnapshots { instance, description, tags } => {
            snapshots(ec2, instance, description, tags).await
        }
        C::CreateSnapshot { volume, description, tags } => {
            let call = ec2
                .create_snapshot()
                .volume_id(volume.as_str())
                .description(description)
                .set_tag_specifications(tagged(ResourceType::Snapshot, tags));
            let answer = call.send().await;
            let answer = answer.map_err(|error| fail("ec2:CreateSnapshot", volume, error))?;
            Ok(Made::Snapshots(vec![volumes::taken(answer)?]))
        }
        C::LockSnapshot { snapshot, days } => {
            let days = i32::try_from(*days).unwrap_or(i32::MAX);
            let call = ec2.lock_snapshot().snapshot_id(snapshot.as_str());
            let answer = call.lock_mode(LockMode::Governance).lock_duration(days).send().await;
            done(answer.map_err(|error| fail("ec2:LockSnapshot", snapshot, error)))
        }
        C::CopySnapshot { snapshot, key, tags } => {
            let description = format!("copy of {snapshot} to a key of its own");
            copy_snapshot(clients, ec2, (snapshot, &description), Some(key), tags).await
        }
        C::CopyFromAccount { snapshot, owner, key, tags, .. } => {
            let description = format!("copy of {snapshot} of account {owner}");
            copy_snapshot(clients, ec2, (snapshot, &description), key.as_deref(), tags).await
        }
        C::ShareSnapshot { snapshot, account } => {
            let call = ec2
                .modify_snapshot_attribute()
                .snapshot_id(snapshot.as_str())
                .attribute(SnapshotAttributeName::CreateVolumePermission)
                .operation_type(OperationType::Add)
                .user_ids(account.as_str());
            let answer = call.send().await;
            done(answer.map_err(|error| fail("ec2:ModifySnapshotAttribute", snapshot, error)))
        }
        C::RegisterImage { .. } => register_image(ec2, change).await,
        C::CreateImage { instance, name, tags } => {
            // Its snapshots are the image's: with the case's tags they would pass for another set of evidence.
            let call = ec2
                .create_image()
                .instance_id(instance.as_str())
                .name(name)
                .no_reboot(true)
                .set_tag_specifications(tagged(ResourceType::Image, tags));
            let answer = call.send().await;
            let answer = answer.map_err(|error| fail("ec2:CreateImage", instance, error))?;
            made_image("ec2:CreateImage", name, answer.image_id)
        }
        _ => Err(iam::foreign(change)),
    }
}

/// All volumes of an instance at one point in time.
async fn snapshots(
    ec2: &Client,
    instance: &InstanceId,
    description: &str,
    tags: &Tags,
) -> Result<Made> {
    const OPERATION: &str = "ec2:CreateSnapshots";
    let all = InstanceSpecification::builder().instance_id(instance.as_str());
    let call = ec2
        .create_snapshots()
        .instance_specification(all.exclude_boot_volume(false).build())
        .description(description)
        // The volumes' own tags are in the record. Copied, they could pass for ours: whoever owns the instance may own them.
        .set_tag_specifications(tagged(ResourceType::Snapshot, tags));
    let answer = call.send().await.map_err(|error| fail(OPERATION, instance, error))?;
    let taken = answer.snapshots.unwrap_or_default();
    let taken: Result<Vec<_>> = taken.into_iter().map(volumes::taken_together).collect();
    Ok(Made::Snapshots(taken?))
}

/// A copy of a snapshot under another key; without one, under the account's default.
async fn copy_snapshot(
    clients: &Clients,
    ec2: &Client,
    (snapshot, description): (&SnapshotId, &str),
    key: Option<&str>,
    tags: &Tags,
) -> Result<Made> {
    const OPERATION: &str = "ec2:CopySnapshot";
    let call = ec2
        .copy_snapshot()
        .source_region(&clients.region)
        .source_snapshot_id(snapshot.as_str())
        .description(description)
        .encrypted(true)
        .set_kms_key_id(key.map(str::to_owned))
        .set_tag_specifications(tagged(ResourceType::Snapshot, tags));
    let answer = call.send().await.map_err(|error| fail(OPERATION, snapshot, error))?;
    let id = answer.snapshot_id.and_then(|id| id.parse().ok());
    Ok(Made::Copy(id.ok_or_else(|| bad_answer(OPERATION, snapshot, "snapshotId"))?))
}

/// An image from snapshots.
async fn register_image(ec2: &Client, change: &Change) -> Result<Made> {
    const OPERATION: &str = "ec2:RegisterImage";
    let Change::RegisterImage { name, architecture, root_device, devices, tags } = change else {
        return Err(iam::foreign(change));
    };
    let call = ec2
        .register_image()
        .name(name)
        .architecture(ArchitectureValues::from(architecture.as_str()))
        .root_device_name(root_device)
        .virtualization_type("hvm")
        .ena_support(true)
        .set_block_device_mappings(Some(mappings(devices)))
        .set_tag_specifications(tagged(ResourceType::Image, tags));
    let answer = call.send().await.map_err(|error| fail(OPERATION, name, error))?;
    made_image(OPERATION, name, answer.image_id)
}

/// Devices and what is on them.
fn mappings(devices: &BTreeMap<String, SnapshotId>) -> Vec<BlockDeviceMapping> {
    devices
        .iter()
        .map(|(device, snapshot)| {
            let ebs = EbsBlockDevice::builder().snapshot_id(snapshot.as_str()).build();
            BlockDeviceMapping::builder().device_name(device).ebs(ebs).build()
        })
        .collect()
}

/// The image that an answer names.
fn made_image(operation: &'static str, name: &str, image: Option<String>) -> Result<Made> {
    let image = image.ok_or_else(|| bad_answer(operation, name, "imageId"))?;
    Ok(Made::Image(ImageId::from(image)))
}
