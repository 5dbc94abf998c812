//! An instance as the cloud describes it.

use std::collections::{BTreeMap, BTreeSet};

use cleanroom_contract::{InstanceId, Timestamp, VolumeId};
use serde::{Deserialize, Serialize};

use crate::{
    names::{AccountId, AssociationId, ImageId, InterfaceId, RoleName, VpcId},
    network::Interface,
};

/// An instance's state, as EC2 names it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
#[expect(missing_docs, reason = "EC2's own names of the states")]
pub enum InstanceState {
    Pending,
    Running,
    ShuttingDown,
    Terminated,
    Stopping,
    Stopped,
}

impl InstanceState {
    /// Whether it is going or gone: only what survives it can be preserved.
    #[must_use]
    pub fn is_ending(self) -> bool {
        matches!(self, Self::ShuttingDown | Self::Terminated)
    }
}

/// A volume in an instance's block device mapping.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct AttachedVolume {
    /// The device name of the mapping, `/dev/xvda`.
    pub device: String,
    /// The volume.
    pub volume: VolumeId,
    /// Whether it dies with the instance.
    pub delete_on_termination: bool,
}

/// The metadata service of an instance.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Metadata {
    /// Whether `169.254.169.254` answers.
    pub endpoint: bool,
    /// Whether it answers only with a session token (IMDSv2).
    pub tokens_required: bool,
}

/// An instance (EC2 `DescribeInstances`).
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Instance {
    /// Its id.
    pub id: InstanceId,
    /// The account that owns it.
    pub account: AccountId,
    /// Its state.
    pub state: InstanceState,
    /// The AMI it was launched from.
    pub image: ImageId,
    /// Its type, `m7g.large`.
    pub instance_type: String,
    /// Its processor architecture, `x86_64` or `arm64`, as EC2 names it.
    pub architecture: String,
    /// Its VPC; none for what is terminated.
    pub vpc: Option<VpcId>,
    /// Its subnet, `subnet-…`.
    pub subnet: Option<String>,
    /// Its Availability Zone.
    pub zone: String,
    /// When it was launched last.
    pub launched: Timestamp,
    /// Whether it is a Spot instance.
    pub spot: bool,
    /// Whether it runs Windows.
    pub windows: bool,
    /// Its AWS Marketplace product codes.
    pub product_codes: Vec<String>,
    /// The device name of its root volume.
    pub root_device: Option<String>,
    /// Its EBS volumes.
    pub volumes: Vec<AttachedVolume>,
    /// The interfaces attached to it. A description of one that an older log holds does not say.
    #[serde(default)]
    pub interfaces: BTreeSet<InterfaceId>,
    /// The ARN of its instance profile.
    pub profile: Option<String>,
    /// Its metadata service.
    pub metadata: Metadata,
    /// Its key pair's name.
    pub key_pair: Option<String>,
    /// Its tags: hints, since the attacker's role may write them.
    pub tags: BTreeMap<String, String>,
}

impl Instance {
    /// The value of its `Name` tag.
    #[must_use]
    pub fn name(&self) -> Option<&str> {
        self.tags.get("Name").map(String::as_str)
    }

    /// The interfaces that the instance names and a listing of its interfaces lacks. EC2 is eventually consistent, and either may
    /// be behind.
    #[must_use]
    pub fn unlisted(&self, listed: &[Interface]) -> Vec<InterfaceId> {
        let shows = |id: &InterfaceId| listed.iter().any(|interface| interface.id == *id);
        self.interfaces.iter().filter(|id| !shows(id)).cloned().collect()
    }
}

/// What keeps an instance from going (EC2 `DescribeInstanceAttribute`).
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Guards {
    /// `DisableApiTermination`.
    pub termination: bool,
    /// `DisableApiStop`.
    pub stop: bool,
    /// Whether a shutdown from within terminates it, instead of stopping it.
    pub shutdown_terminates: bool,
}

/// An instance profile's association with an instance.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Association {
    /// The association.
    pub id: AssociationId,
    /// The profile's ARN.
    pub profile: String,
    /// Whether it is in effect or coming to be: `associating` or `associated`.
    pub active: bool,
}

/// An instance profile (IAM `GetInstanceProfile`): its name is not its role's name, and both ARNs carry paths.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Profile {
    /// The profile's ARN.
    pub arn: String,
    /// The profile's name.
    pub name: String,
    /// Its role's name and ARN; a profile may have none.
    pub role: Option<(RoleName, String)>,
}

/// An inline policy of a role.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct RolePolicy {
    /// Its name.
    pub name: String,
    /// Its JSON document, decoded.
    pub document: String,
}
