//! Volumes, snapshots and images.

use std::{collections::BTreeSet, time::Duration};

use aws_sdk_ec2::types::{
    CreateVolumePermission, Filter, Image as DescribedImage, LockState, ProductCodeValues,
    Snapshot as DescribedSnapshot, SnapshotAttributeName, SnapshotInfo,
    SnapshotState as DescribedState, Volume as DescribedVolume, VolumeAttributeName,
};
use cleanroom_cloud::{
    AccountId, Image, ImageId, PublicImage, Result, Snapshot, SnapshotState, Volume,
};
use cleanroom_contract::{CaseId, InstanceId, SnapshotId, VolumeId};
use tokio::task::JoinSet;

use super::{FILTER_VALUES, id, need, tags, timestamp};
use crate::{
    clients::Clients,
    error::{bad_answer, fail},
    facts::filter,
    pages,
};

const VOLUMES: &str = "ec2:DescribeVolumes";
const SNAPSHOTS: &str = "ec2:DescribeSnapshots";
const IMAGES: &str = "ec2:DescribeImages";

/// The tag by which a case's things are found again.
const CASE_TAG: &str = "tag:cleanroom:case";

/// How long is waited for what is good to know and decides nothing.
const EXTRA: Duration = Duration::from_secs(5);

/// These volumes, those that exist. A filter leaves out what is gone; asked for by id, it would fail the call.
pub(crate) async fn volumes(clients: &Clients, ids: &[VolumeId]) -> Result<Vec<Volume>> {
    let mut found = Vec::new();
    for ids in ids.chunks(FILTER_VALUES) {
        let filter = filter("volume-id", ids.iter().map(VolumeId::as_str));
        found.extend(volumes_by(clients, "", filter).await?);
    }
    Ok(found)
}

/// Volumes that are attached to the instance.
pub(crate) async fn attached(clients: &Clients, instance: &InstanceId) -> Result<Vec<Volume>> {
    let filter = filter("attachment.instance-id", [instance.as_str()]);
    volumes_by(clients, instance.as_str(), filter).await
}

/// Volumes that fit, with their product codes.
async fn volumes_by(clients: &Clients, resource: &str, filter: Filter) -> Result<Vec<Volume>> {
    let stream = clients.ec2.describe_volumes().filters(filter).into_paginator().send();
    let pages = pages::all(VOLUMES, resource, stream).await?;
    let mut volumes = pages
        .into_iter()
        .flat_map(|page| page.volumes.unwrap_or_default())
        .map(volume)
        .collect::<Result<Vec<_>>>()?;
    add_product_codes(clients, &mut volumes).await;
    Ok(volumes)
}

/// A volume in our words, without its product codes.
fn volume(v: DescribedVolume) -> Result<Volume> {
    let volume: VolumeId = id(VOLUMES, "volumeId", v.volume_id())?;
    let mut attached = Vec::new();
    for attachment in v.attachments() {
        // Attached to what another service runs, it is named by that service's resource instead.
        if let Some(instance) = attachment.instance_id() {
            let device = attachment.device().unwrap_or_default().to_owned();
            attached.push((id(VOLUMES, "instanceId", Some(instance))?, device));
        }
    }
    Ok(Volume {
        size: gib(VOLUMES, volume.as_str(), v.size())?,
        encrypted: v.encrypted().unwrap_or(false),
        key: v.kms_key_id().map(str::to_owned),
        product_codes: Vec::new(),
        attached,
        tags: tags(v.tags),
        id: volume,
    })
}

/// A size in GiB.
fn gib(operation: &'static str, resource: &str, size: Option<i32>) -> Result<u32> {
    let size = need(operation, resource, "a size", size)?;
    u32::try_from(size).map_err(|_| bad_answer(operation, resource, "a size that is positive"))
}

/// Asks for each volume's Marketplace codes, which no list of volumes has. They say what a copy can be attached to
/// later and decide nothing now, so a call that fails, or takes long, leaves them out.
async fn add_product_codes(clients: &Clients, volumes: &mut [Volume]) {
    let mut asked = JoinSet::new();
    for (index, volume) in volumes.iter().enumerate() {
        let call = clients
            .ec2_once
            .describe_volume_attribute()
            .volume_id(volume.id.as_str())
            .attribute(VolumeAttributeName::ProductCodes);
        asked.spawn(async move { (index, call.send().await.ok()) });
    }
    let all = async {
        while let Some(answer) = asked.join_next().await {
            let Ok((index, Some(answer))) = answer else { continue };
            let codes = answer.product_codes.unwrap_or_default().into_iter();
            volumes[index].product_codes = codes
                .filter(|code| code.product_code_type() == Some(&ProductCodeValues::Marketplace))
                .filter_map(|code| code.product_code_id)
                .collect();
        }
    };
    let _some_may_be_missing = tokio::time::timeout(EXTRA, all).await;
}

/// The case's snapshots, oldest first.
pub(crate) async fn snapshots(clients: &Clients, case: &CaseId) -> Result<Vec<Snapshot>> {
    let stream = clients
        .ec2
        .describe_snapshots()
        .owner_ids("self")
        .filters(filter(CASE_TAG, [case.as_str()]))
        .into_paginator()
        .send();
    let pages = pages::all(SNAPSHOTS, case, stream).await?;
    let mut snapshots = pages
        .into_iter()
        .flat_map(|page| page.snapshots.unwrap_or_default())
        .map(snapshot)
        .collect::<Result<Vec<_>>>()?;
    snapshots.sort_by(|a, b| (a.started, &a.id).cmp(&(b.started, &b.id)));
    let locked = locked(clients, &snapshots).await;
    for snapshot in &mut snapshots {
        snapshot.locked = locked.contains(snapshot.id.as_str());
    }
    Ok(snapshots)
}

/// Those of the snapshots that are locked. The list of snapshots does not say it, and the call that does is denied or
/// unknown in places: a lock that can not be seen is not claimed.
async fn locked(clients: &Clients, snapshots: &[Snapshot]) -> BTreeSet<String> {
    let mut found = BTreeSet::new();
    for some in snapshots.chunks(FILTER_VALUES) {
        let ids = some.iter().map(|snapshot| snapshot.id.to_string()).collect();
        let call = clients.ec2_once.describe_locked_snapshots().set_snapshot_ids(Some(ids)).send();
        let Ok(Ok(answer)) = tokio::time::timeout(EXTRA, call).await else { break };
        let held = answer.snapshots.unwrap_or_default().into_iter();
        let held =
            held.filter(|lock| !matches!(lock.lock_state(), None | Some(LockState::Expired)));
        found.extend(held.filter_map(|lock| lock.snapshot_id));
    }
    found
}

/// The accounts that a snapshot is shared with, and `all` where it is public.
pub(crate) async fn shared_with(
    clients: &Clients,
    snapshot: &SnapshotId,
) -> Result<Vec<AccountId>> {
    let call = clients
        .ec2
        .describe_snapshot_attribute()
        .snapshot_id(snapshot.as_str())
        .attribute(SnapshotAttributeName::CreateVolumePermission);
    let answer = call.send().await;
    let answer = answer.map_err(|e| fail("ec2:DescribeSnapshotAttribute", snapshot, e))?;
    let permissions = answer.create_volume_permissions.unwrap_or_default().into_iter();
    let who = |p: CreateVolumePermission| {
        p.user_id.or_else(|| p.group.map(|group| group.as_str().to_owned()))
    };
    Ok(permissions.filter_map(who).map(AccountId::from).collect())
}

/// A snapshot in our words, as far as a list of snapshots says.
fn snapshot(s: DescribedSnapshot) -> Result<Snapshot> {
    let snapshot: SnapshotId = id(SNAPSHOTS, "snapshotId", s.snapshot_id())?;
    let name = snapshot.as_str();
    Ok(Snapshot {
        volume: id(SNAPSHOTS, "volumeId", s.volume_id())?,
        owner: s.owner_id().unwrap_or_default().into(),
        state: state_of(name, s.state())?,
        progress: progress(s.progress()),
        size: gib(SNAPSHOTS, name, s.volume_size())?,
        started: timestamp(*need(SNAPSHOTS, name, "startTime", s.start_time())?),
        encrypted: s.encrypted().unwrap_or(false),
        key: s.kms_key_id().map(str::to_owned),
        locked: false,
        tags: tags(s.tags),
        id: snapshot,
    })
}

/// A snapshot that was just taken alone. It exists, so what the answer leaves out is no reason to call it failed: one
/// without a state has only begun.
pub(crate) fn taken(
    s: aws_sdk_ec2::operation::create_snapshot::CreateSnapshotOutput,
) -> Result<Snapshot> {
    snapshot(
        DescribedSnapshot::builder()
            .set_snapshot_id(s.snapshot_id)
            .set_volume_id(s.volume_id)
            .set_owner_id(s.owner_id)
            .set_state(s.state.or(Some(DescribedState::Pending)))
            .set_progress(s.progress)
            .set_volume_size(s.volume_size)
            .set_start_time(s.start_time)
            .set_encrypted(s.encrypted)
            .set_kms_key_id(s.kms_key_id)
            .set_tags(s.tags)
            .build(),
    )
}

/// As [`taken`], of several at once. The key is not said here; the list of snapshots says it.
pub(crate) fn taken_together(s: SnapshotInfo) -> Result<Snapshot> {
    snapshot(
        DescribedSnapshot::builder()
            .set_snapshot_id(s.snapshot_id)
            .set_volume_id(s.volume_id)
            .set_owner_id(s.owner_id)
            .set_state(s.state.or(Some(DescribedState::Pending)))
            .set_progress(s.progress)
            .set_volume_size(s.volume_size)
            .set_start_time(s.start_time)
            .set_encrypted(s.encrypted)
            .set_tags(s.tags)
            .build(),
    )
}

/// A state in our words.
fn state_of(snapshot: &str, state: Option<&DescribedState>) -> Result<SnapshotState> {
    Ok(match state {
        Some(DescribedState::Pending) => SnapshotState::Pending,
        Some(DescribedState::Completed) => SnapshotState::Completed,
        Some(DescribedState::Error) => SnapshotState::Error,
        Some(DescribedState::Recoverable | DescribedState::Recovering) => {
            SnapshotState::Recoverable
        }
        _ => return Err(bad_answer(SNAPSHOTS, snapshot, "a known state")),
    })
}

/// A progress like `42%`; nothing, or a text that is no number, is no progress.
fn progress(text: Option<&str>) -> u8 {
    let number = text.unwrap_or_default().trim_end_matches('%');
    number.parse::<u8>().unwrap_or(0).min(100)
}

/// The case's images.
pub(crate) async fn images(clients: &Clients, case: &CaseId) -> Result<Vec<Image>> {
    let stream = clients
        .ec2
        .describe_images()
        .owners("self")
        .filters(filter(CASE_TAG, [case.as_str()]))
        .into_paginator()
        .send();
    let pages = pages::all(IMAGES, case, stream).await?;
    pages.into_iter().flat_map(|page| page.images.unwrap_or_default()).map(image).collect()
}

/// The newest image that an owner offers under a name with `*`. Deprecated ones are left out, as EC2 does for who is not their
/// owner.
pub(crate) async fn public_image(
    clients: &Clients,
    owner: &str,
    name: &str,
    architecture: &str,
) -> Result<Option<PublicImage>> {
    let stream = clients
        .ec2
        .describe_images()
        .owners(owner)
        .filters(filter("name", [name]))
        .filters(filter("architecture", [architecture]))
        .filters(filter("state", ["available"]))
        .filters(filter("root-device-type", ["ebs"]))
        .into_paginator()
        .send();
    let pages = pages::all(IMAGES, name, stream).await?;
    let images = pages.into_iter().flat_map(|page| page.images.unwrap_or_default());
    let named = images.filter_map(|i| {
        let (id, created) = (i.image_id?, i.creation_date?);
        Some(PublicImage { id: ImageId::from(id), name: i.name.unwrap_or_default(), created })
    });
    // Two of one moment: the one of the greater id, so that every run takes the same.
    Ok(named.max_by(|a, b| (&a.created, &a.id).cmp(&(&b.created, &b.id))))
}

/// An image in our words.
fn image(i: DescribedImage) -> Result<Image> {
    let image = ImageId::from(need(IMAGES, "", "imageId", i.image_id())?);
    let mut snapshots = Vec::new();
    for mapping in i.block_device_mappings() {
        // An image that is still being made has mappings whose snapshots are not there yet.
        if let Some(snapshot) = mapping.ebs().and_then(|ebs| ebs.snapshot_id()) {
            snapshots.push(id(IMAGES, "snapshotId", Some(snapshot))?);
        }
    }
    Ok(Image {
        name: i.name().unwrap_or_default().to_owned(),
        state: i.state().map(|state| state.as_str()).unwrap_or_default().to_owned(),
        snapshots,
        tags: tags(i.tags),
        id: image,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_progress_that_is_no_number_is_no_progress() {
        let table = [(Some("42%"), 42), (Some("100%"), 100), (Some(""), 0), (None, 0)];
        for (text, expected) in table {
            assert_eq!(progress(text), expected, "{text:?}");
        }
        assert_eq!(progress(Some("250%")), 100);
        assert_eq!(progress(Some("soon")), 0);
    }
}
