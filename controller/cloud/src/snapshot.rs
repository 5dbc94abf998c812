//! Volumes and what is kept of them.

use std::collections::BTreeMap;

use cleanroom_contract::{InstanceId, SnapshotId, Timestamp, VolumeId};
use serde::{Deserialize, Serialize};

use crate::names::{AccountId, ImageId};

/// A volume (EC2 `DescribeVolumes`).
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Volume {
    /// Its id.
    pub id: VolumeId,
    /// Its size in GiB.
    pub size: u32,
    /// Whether it is encrypted.
    pub encrypted: bool,
    /// The ARN of the key it is encrypted with.
    pub key: Option<String>,
    /// Marketplace product codes, which may keep it from attaching to a running instance.
    pub product_codes: Vec<String>,
    /// The instances it is attached to, with the device name.
    pub attached: Vec<(InstanceId, String)>,
    /// Its tags.
    pub tags: BTreeMap<String, String>,
}

/// A snapshot's state.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum SnapshotState {
    /// Being copied to S3; its content is fixed already.
    Pending,
    /// Whole.
    Completed,
    /// Failed, for good.
    Error,
    /// In the recycle bin, or coming back from it.
    Recoverable,
}

/// A snapshot (EC2 `DescribeSnapshots`).
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Snapshot {
    /// Its id.
    pub id: SnapshotId,
    /// The volume it was taken from.
    pub volume: VolumeId,
    /// The account that owns it.
    pub owner: AccountId,
    /// Its state.
    pub state: SnapshotState,
    /// 0 to 100.
    pub progress: u8,
    /// The volume's size in GiB.
    pub size: u32,
    /// When it was taken.
    pub started: Timestamp,
    /// Whether it is encrypted.
    pub encrypted: bool,
    /// The ARN of the key it is encrypted with.
    pub key: Option<String>,
    /// Whether it is locked against deletion.
    pub locked: bool,
    /// Its tags.
    pub tags: BTreeMap<String, String>,
}

/// An AMI of the caller's own.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Image {
    /// Its id.
    pub id: ImageId,
    /// Its name.
    pub name: String,
    /// `pending`, `available`, `failed`, as EC2 names it.
    pub state: String,
    /// The snapshots it is made of.
    pub snapshots: Vec<SnapshotId>,
    /// Its tags.
    pub tags: BTreeMap<String, String>,
}

/// An AMI that its owner offers to everybody.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct PublicImage {
    /// Its id.
    pub id: ImageId,
    /// Its name.
    pub name: String,
    /// When it was made, as EC2 writes it (ISO 8601, so that later is greater).
    pub created: String,
}
