//! The work order: what the controller asks a clean room to examine, with what, and where to publish.

use serde::{Deserialize, Serialize};

use crate::{CaseId, InstanceId, ScanId, Sha256, SnapshotId, VersionOne, VolumeId};

/// What a volume was to the instance it comes from.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum VolumeRole {
    /// It was booted from.
    Root,
    /// Any other.
    Data,
}

/// A volume to examine.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct OrderedVolume {
    /// The volume of the instance, which the evidence is named after.
    pub source: VolumeId,
    /// The snapshot of it that the room's copy is made from.
    pub snapshot: SnapshotId,
    /// The room's copy, by whose serial number it is found. Absent where it is yet to be made: then the room's own
    /// document ([`crate::Room`]) tells it by the snapshot.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub volume: Option<VolumeId>,
    /// Its size in GiB.
    pub gib: u32,
    /// What it was.
    pub role: VolumeRole,
    /// The device name it had, as EC2 tells it: `/dev/xvda`.
    pub device: String,
}

/// A file that a work order names: rules, indicators, a program.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct OrderedFile {
    /// Its name for people and in the report, without slashes: `webshells.yar`.
    pub name: String,
    /// Its key in the evidence bucket.
    pub key: String,
    /// Of its bytes: anything else is refused.
    pub sha256: Sha256,
}

/// What a scan may take.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ScanLimits {
    /// Inspectors at work; one a CPU where absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub threads: Option<u32>,
    /// Bytes of memory for file contents.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub memory: Option<u64>,
    /// Larger files are left unread, in bytes.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub max_file_size: Option<u64>,
    /// Seconds that a file may take.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub file_seconds: Option<u32>,
    /// Seconds to wait for volumes to attach, before those that did not come are gaps.
    pub attach_seconds: u32,
    /// Whether dirty journals are replayed into a copy-on-write view.
    pub replay: bool,
}

impl Default for ScanLimits {
    fn default() -> Self {
        Self {
            threads: None,
            memory: None,
            max_file_size: None,
            file_seconds: None,
            attach_seconds: 600,
            replay: true,
        }
    }
}

/// Where to publish.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Destination {
    /// The evidence bucket.
    pub bucket: String,
    /// The topic's ARN that people are told on.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub topic: Option<String>,
}

/// What is absent where a case has one room only.
#[must_use]
pub const fn first_room() -> u32 {
    1
}

/// Whether a number is that of a case's first room, or its only one.
#[must_use]
pub fn is_first_room(room: &u32) -> bool {
    *room == first_room()
}

/// `cases/<case>/orders/<scan>.json`; of rooms but the first `cases/<case>/orders/room-<n>/<scan>.json`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct WorkOrder {
    /// Schema version.
    pub v: VersionOne,
    /// The case.
    pub case: CaseId,
    /// The instance that the evidence comes from.
    pub instance: InstanceId,
    /// The room of the case that is to carry it out, from 1: a case of many volumes has several.
    #[serde(default = "first_room", skip_serializing_if = "is_first_room")]
    pub room: u32,
    /// The scan, which the bundle is named after.
    pub scan: ScanId,
    /// The volumes to expect, 1 to 24.
    pub volumes: Vec<OrderedVolume>,
    /// YARA rules: sources, or packs that are compiled.
    pub rules: Vec<OrderedFile>,
    /// Indicator lists.
    pub indicators: Vec<OrderedFile>,
    /// What it may take.
    pub limits: ScanLimits,
    /// Where to publish.
    pub publish: Destination,
    /// The Step Functions task that waits for it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub task_token: Option<String>,
}
