//! The changes that the controller can make to the world, as values.
//!
//! A plan is a list of these; `respond` carries out the same list. Each names the one call it stands for, so a
//! log of changes is a log of calls.

use std::{
    collections::{BTreeMap, BTreeSet},
    fmt,
};

use async_trait::async_trait;
use cleanroom_contract::{CaseId, InstanceId, Sha256, SnapshotId, VolumeId};
use serde::{Deserialize, Serialize};

use crate::{
    error::Result,
    names::{
        AccountId, AclId, AllocationId, AssociationId, GroupId, ImageId, InterfaceId, RoleName,
        TargetGroupArn, VpcId,
    },
    network::Target,
    snapshot::Snapshot,
};

/// Tags, name to value.
pub type Tags = BTreeMap<String, String>;

/// An entry of a network ACL. All of ours deny all protocols.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct AclEntry {
    /// Its number, 1 to 32766: the lowest that matches decides.
    pub number: i32,
    /// Whether it is for traffic out of the subnet.
    pub egress: bool,
    /// Whether it allows.
    pub allow: bool,
    /// The IPv4 or IPv6 block it is for.
    pub cidr: String,
    /// `-1` for all, else the protocol's number.
    pub protocol: String,
}

/// One change, which is one call.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "change", rename_all = "snake_case")]
#[expect(
    missing_docs,
    reason = "fields are named for what they hold; the sentence of each says the rest"
)]
pub enum Change {
    SetTerminationProtection {
        instance: InstanceId,
        on: bool,
    },
    SetStopProtection {
        instance: InstanceId,
        on: bool,
    },
    SetShutdownBehavior {
        instance: InstanceId,
        terminate: bool,
    },
    SetDeleteOnTermination {
        instance: InstanceId,
        device: String,
        volume: VolumeId,
        on: bool,
    },

    /// Keeps the group's desired capacity, so the group launches a replacement.
    DetachFromGroup {
        instance: InstanceId,
        group: String,
    },
    /// Raises the group's desired capacity by one.
    AttachToGroup {
        instance: InstanceId,
        group: String,
    },
    SetScaleInProtection {
        instance: InstanceId,
        group: String,
        on: bool,
    },
    SuspendProcesses {
        group: String,
        processes: BTreeSet<String>,
    },
    ResumeProcesses {
        group: String,
        processes: BTreeSet<String>,
    },
    /// Puts off the end of a `Terminating:Wait`.
    Heartbeat {
        instance: InstanceId,
        group: String,
        hook: String,
    },

    DeregisterTarget {
        target_group: TargetGroupArn,
        target: Target,
    },
    RegisterTarget {
        target_group: TargetGroupArn,
        target: Target,
    },
    DeregisterClassic {
        balancer: String,
        instance: InstanceId,
    },
    RegisterClassic {
        balancer: String,
        instance: InstanceId,
    },

    /// All volumes at one point in time. Has no idempotency token.
    CreateSnapshots {
        instance: InstanceId,
        description: String,
        tags: Tags,
    },
    /// One volume, where its instance is gone. Has no idempotency token.
    CreateSnapshot {
        volume: VolumeId,
        description: String,
        tags: Tags,
    },
    LockSnapshot {
        snapshot: SnapshotId,
        days: u32,
    },
    /// To a key of our own, in the same Region. Has no idempotency token.
    CopySnapshot {
        snapshot: SnapshotId,
        key: String,
        tags: Tags,
    },
    /// Lets another account make volumes and copies of it.
    ShareSnapshot {
        snapshot: SnapshotId,
        account: AccountId,
    },
    /// Lets a role of another account read what is encrypted with the key, and no more: what copying a snapshot takes.
    /// The name keeps a second one from being made.
    GrantKey {
        key: String,
        grantee: String,
        name: String,
    },
    /// A copy of what another account shares, made in the account of who acts. Without a key, under the one that is that
    /// account's default for volumes. Has no idempotency token.
    CopyFromAccount {
        snapshot: SnapshotId,
        owner: AccountId,
        into: AccountId,
        key: Option<String>,
        tags: Tags,
    },
    /// From the root's snapshot, the others attached as they were. `devices` maps device names to
    /// snapshots.
    RegisterImage {
        name: String,
        architecture: String,
        root_device: String,
        devices: BTreeMap<String, SnapshotId>,
        tags: Tags,
    },
    /// By EC2 itself, without a reboot: where an image can not be registered from a snapshot.
    CreateImage {
        instance: InstanceId,
        name: String,
        tags: Tags,
    },

    PutTags {
        resource: String,
        tags: Tags,
    },
    RemoveTags {
        resource: String,
        keys: BTreeSet<String>,
    },

    CreateGroup {
        vpc: VpcId,
        name: String,
        description: String,
        tags: Tags,
    },
    /// Reads the group's rules and revokes every one of them, in both directions.
    EmptyGroup {
        group: GroupId,
    },
    /// Everything, in and out, IPv4 and IPv6.
    OpenGroup {
        group: GroupId,
    },
    DeleteGroup {
        group: GroupId,
    },
    /// Replaces all groups of the interface.
    SetGroups {
        interface: InterfaceId,
        groups: BTreeSet<GroupId>,
    },
    DisassociateAddress {
        association: AssociationId,
        public: String,
        interface: InterfaceId,
    },
    AssociateAddress {
        allocation: AllocationId,
        interface: InterfaceId,
        private: String,
    },
    SetAutoPublicAddress {
        interface: InterfaceId,
        on: bool,
    },
    CreateAclEntry {
        acl: AclId,
        entry: AclEntry,
    },
    DeleteAclEntry {
        acl: AclId,
        number: i32,
        egress: bool,
    },

    DisassociateProfile {
        instance: InstanceId,
        association: AssociationId,
        profile: String,
    },
    AssociateProfile {
        instance: InstanceId,
        profile: String,
    },
    PutRolePolicy {
        role: RoleName,
        name: String,
        document: String,
    },
    DeleteRolePolicy {
        role: RoleName,
        name: String,
    },
    SetMetadataEndpoint {
        instance: InstanceId,
        on: bool,
    },
    SetAccessKey {
        user: String,
        key: String,
        active: bool,
    },
    PutUserPolicy {
        user: String,
        name: String,
        document: String,
    },

    /// From a template in the evidence bucket, which is read and whose digest is checked first. The name is taken by the
    /// first: a second one is a conflict. `token` marks all events of this call.
    CreateStack {
        name: String,
        template: String,
        template_sha256: Sha256,
        parameters: BTreeMap<String, String>,
        tags: Tags,
        role: Option<String>,
        token: String,
    },
    /// By its id, so that a later stack of the same name is never meant.
    DeleteStack {
        name: String,
        id: String,
        token: String,
    },

    /// A harmless instance: no profile, no key pair, user data that does nothing. The drill's name is its tag
    /// [`DRILL`](crate::DRILL) from its first moment, and the call's token: a repeated request makes no second one.
    RunDrill {
        drill: CaseId,
        image: ImageId,
        instance_type: String,
        subnet: Option<String>,
    },
    /// Refused unless the instance, looked at first, [is marked](crate::marks_drill) as this drill's.
    TerminateDrill {
        drill: CaseId,
        instance: InstanceId,
    },
    /// Refused unless the snapshot, looked at first, [is marked](crate::marks_drill_snapshot) as of this drill, its case and
    /// its instance.
    DeleteDrillSnapshot {
        drill: CaseId,
        instance: InstanceId,
        snapshot: SnapshotId,
    },
}

impl Change {
    /// The operation that carries it out, `ec2:CreateSnapshots`.
    #[must_use]
    pub fn operation(&self) -> &'static str {
        use Change as C;
        match self {
            C::SetTerminationProtection { .. }
            | C::SetStopProtection { .. }
            | C::SetShutdownBehavior { .. }
            | C::SetDeleteOnTermination { .. } => "ec2:ModifyInstanceAttribute",
            C::DetachFromGroup { .. } => "autoscaling:DetachInstances",
            C::AttachToGroup { .. } => "autoscaling:AttachInstances",
            C::SetScaleInProtection { .. } => "autoscaling:SetInstanceProtection",
            C::SuspendProcesses { .. } => "autoscaling:SuspendProcesses",
            C::ResumeProcesses { .. } => "autoscaling:ResumeProcesses",
            C::Heartbeat { .. } => "autoscaling:RecordLifecycleActionHeartbeat",
            C::DeregisterTarget { .. } => "elasticloadbalancing:DeregisterTargets",
            C::RegisterTarget { .. } => "elasticloadbalancing:RegisterTargets",
            C::DeregisterClassic { .. } => {
                "elasticloadbalancing:DeregisterInstancesFromLoadBalancer"
            }
            C::RegisterClassic { .. } => "elasticloadbalancing:RegisterInstancesWithLoadBalancer",
            C::CreateSnapshots { .. } => "ec2:CreateSnapshots",
            C::CreateSnapshot { .. } => "ec2:CreateSnapshot",
            C::LockSnapshot { .. } => "ec2:LockSnapshot",
            C::CopySnapshot { .. } | C::CopyFromAccount { .. } => "ec2:CopySnapshot",
            C::ShareSnapshot { .. } => "ec2:ModifySnapshotAttribute",
            C::GrantKey { .. } => "kms:CreateGrant",
            C::RegisterImage { .. } => "ec2:RegisterImage",
            C::CreateImage { .. } => "ec2:CreateImage",
            C::PutTags { .. } => "ec2:CreateTags",
            C::RemoveTags { .. } => "ec2:DeleteTags",
            C::CreateGroup { .. } => "ec2:CreateSecurityGroup",
            C::EmptyGroup { .. } => "ec2:RevokeSecurityGroupEgress",
            C::OpenGroup { .. } => "ec2:AuthorizeSecurityGroupIngress",
            C::DeleteGroup { .. } => "ec2:DeleteSecurityGroup",
            C::SetGroups { .. } | C::SetAutoPublicAddress { .. } => {
                "ec2:ModifyNetworkInterfaceAttribute"
            }
            C::DisassociateAddress { .. } => "ec2:DisassociateAddress",
            C::AssociateAddress { .. } => "ec2:AssociateAddress",
            C::CreateAclEntry { .. } => "ec2:CreateNetworkAclEntry",
            C::DeleteAclEntry { .. } => "ec2:DeleteNetworkAclEntry",
            C::DisassociateProfile { .. } => "ec2:DisassociateIamInstanceProfile",
            C::AssociateProfile { .. } => "ec2:AssociateIamInstanceProfile",
            C::PutRolePolicy { .. } => "iam:PutRolePolicy",
            C::DeleteRolePolicy { .. } => "iam:DeleteRolePolicy",
            C::SetMetadataEndpoint { .. } => "ec2:ModifyInstanceMetadataOptions",
            C::SetAccessKey { .. } => "iam:UpdateAccessKey",
            C::PutUserPolicy { .. } => "iam:PutUserPolicy",
            C::CreateStack { .. } => "cloudformation:CreateStack",
            C::DeleteStack { .. } => "cloudformation:DeleteStack",
            C::RunDrill { .. } => "ec2:RunInstances",
            C::TerminateDrill { .. } => "ec2:TerminateInstances",
            C::DeleteDrillSnapshot { .. } => "ec2:DeleteSnapshot",
        }
    }

    /// Whether carrying it out a second time would make a second thing: then nobody but the caller, who can look
    /// it up, may repeat it.
    #[must_use]
    pub fn creates(&self) -> bool {
        matches!(
            self,
            Self::CreateSnapshots { .. }
                | Self::CreateSnapshot { .. }
                | Self::CopySnapshot { .. }
                | Self::CopyFromAccount { .. }
                | Self::AttachToGroup { .. }
        )
    }

    /// What it is done to.
    #[must_use]
    pub fn resource(&self) -> String {
        use Change as C;
        match self {
            C::SetTerminationProtection { instance, .. }
            | C::SetStopProtection { instance, .. }
            | C::SetShutdownBehavior { instance, .. }
            | C::SetMetadataEndpoint { instance, .. }
            | C::CreateImage { instance, .. }
            | C::DisassociateProfile { instance, .. }
            | C::AssociateProfile { instance, .. }
            | C::DetachFromGroup { instance, .. }
            | C::AttachToGroup { instance, .. }
            | C::SetScaleInProtection { instance, .. }
            | C::Heartbeat { instance, .. }
            | C::DeregisterClassic { instance, .. }
            | C::RegisterClassic { instance, .. }
            | C::TerminateDrill { instance, .. }
            | C::CreateSnapshots { instance, .. } => instance.to_string(),
            C::RunDrill { drill, .. } => drill.to_string(),
            C::SetDeleteOnTermination { volume, .. } | C::CreateSnapshot { volume, .. } => {
                volume.to_string()
            }
            C::SuspendProcesses { group, .. } | C::ResumeProcesses { group, .. } => group.clone(),
            C::DeregisterTarget { target, .. } | C::RegisterTarget { target, .. } => {
                target.id.clone()
            }
            C::LockSnapshot { snapshot, .. }
            | C::CopySnapshot { snapshot, .. }
            | C::ShareSnapshot { snapshot, .. }
            | C::DeleteDrillSnapshot { snapshot, .. }
            | C::CopyFromAccount { snapshot, .. } => snapshot.to_string(),
            C::GrantKey { key, .. } => key.clone(),
            C::RegisterImage { name, .. } => name.clone(),
            C::PutTags { resource, .. } | C::RemoveTags { resource, .. } => resource.clone(),
            C::CreateGroup { vpc, .. } => vpc.to_string(),
            C::EmptyGroup { group } | C::OpenGroup { group } | C::DeleteGroup { group } => {
                group.to_string()
            }
            C::SetGroups { interface, .. }
            | C::DisassociateAddress { interface, .. }
            | C::AssociateAddress { interface, .. }
            | C::SetAutoPublicAddress { interface, .. } => interface.to_string(),
            C::CreateAclEntry { acl, .. } | C::DeleteAclEntry { acl, .. } => acl.to_string(),
            C::PutRolePolicy { role, .. } | C::DeleteRolePolicy { role, .. } => role.to_string(),
            C::SetAccessKey { user, .. } | C::PutUserPolicy { user, .. } => user.clone(),
            C::CreateStack { name, .. } | C::DeleteStack { name, .. } => name.clone(),
        }
    }
}

/// `on` as the word that people expect for what is switched.
fn switch(on: bool) -> &'static str {
    if on { "on" } else { "off" }
}

/// Things, separated by commas.
fn list<T: fmt::Display>(things: impl IntoIterator<Item = T>) -> String {
    things.into_iter().map(|t| t.to_string()).collect::<Vec<_>>().join(", ")
}

impl fmt::Display for Change {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        use Change as C;
        match self {
            C::SetTerminationProtection { on, .. } => {
                write!(f, "switch termination protection {}", switch(*on))
            }
            C::SetStopProtection { on, .. } => write!(f, "switch stop protection {}", switch(*on)),
            C::SetShutdownBehavior { terminate, .. } => {
                let then = if *terminate { "terminate" } else { "stop" };
                write!(f, "let a shutdown from within {then} it")
            }
            C::SetDeleteOnTermination { device, on, .. } => {
                let fate = if *on { "delete" } else { "keep" };
                write!(f, "{fate} the volume at {device} on termination")
            }
            C::DetachFromGroup { group, .. } => {
                write!(f, "detach from Auto Scaling group {group}, which replaces it")
            }
            C::AttachToGroup { group, .. } => write!(f, "attach to Auto Scaling group {group}"),
            C::SetScaleInProtection { group, on, .. } => {
                write!(f, "switch scale-in protection {} in {group}", switch(*on))
            }
            C::SuspendProcesses { processes, .. } => write!(f, "suspend {}", list(processes)),
            C::ResumeProcesses { processes, .. } => write!(f, "resume {}", list(processes)),
            C::Heartbeat { group, hook, .. } => write!(f, "put off hook {hook} of {group}"),
            C::DeregisterTarget { target_group, .. } => write!(f, "deregister from {target_group}"),
            C::RegisterTarget { target_group, .. } => write!(f, "register with {target_group}"),
            C::DeregisterClassic { balancer, .. } => {
                write!(f, "deregister from classic load balancer {balancer}")
            }
            C::RegisterClassic { balancer, .. } => {
                write!(f, "register with classic load balancer {balancer}")
            }
            C::CreateSnapshots { .. } => f.write_str("snapshot all volumes at one point in time"),
            C::CreateSnapshot { .. } => f.write_str("snapshot the volume"),
            C::LockSnapshot { days, .. } => write!(f, "lock the snapshot for {days} days"),
            C::CopySnapshot { key, .. } => write!(f, "copy the snapshot to key {key}"),
            C::ShareSnapshot { account, .. } => {
                write!(f, "share the snapshot with account {account}")
            }
            C::GrantKey { grantee, .. } => write!(f, "let {grantee} read with the key"),
            C::CopyFromAccount { owner, into, key, .. } => {
                let key = key.as_deref().unwrap_or("the default key for volumes");
                write!(f, "copy the snapshot from account {owner} into account {into}, under {key}")
            }
            C::RegisterImage { devices, .. } => {
                write!(f, "register an image from {}", list(devices.values()))
            }
            C::CreateImage { .. } => f.write_str("create an image without a reboot"),
            C::PutTags { tags, .. } => {
                write!(f, "tag {}", list(tags.iter().map(|(k, v)| format!("{k}={v}"))))
            }
            C::RemoveTags { keys, .. } => write!(f, "remove tags {}", list(keys)),
            C::CreateGroup { name, .. } => write!(f, "create security group {name}"),
            C::EmptyGroup { .. } => f.write_str("revoke every rule"),
            C::OpenGroup { .. } => f.write_str("allow all traffic, to drop tracked flows"),
            C::DeleteGroup { .. } => f.write_str("delete the security group"),
            C::SetGroups { groups, .. } => write!(f, "set security groups {}", list(groups)),
            C::DisassociateAddress { public, .. } => write!(f, "disassociate {public}"),
            C::AssociateAddress { allocation, private, .. } => {
                write!(f, "associate {allocation} with {private}")
            }
            C::SetAutoPublicAddress { on, .. } => {
                write!(f, "switch the automatic public address {}", switch(*on))
            }
            C::CreateAclEntry { entry, .. } => {
                let way = if entry.egress { "to" } else { "from" };
                write!(f, "deny traffic {way} {} (entry {})", entry.cidr, entry.number)
            }
            C::DeleteAclEntry { number, egress, .. } => {
                write!(f, "delete {} entry {number}", if *egress { "egress" } else { "ingress" })
            }
            C::DisassociateProfile { profile, .. } => write!(f, "take {profile} off"),
            C::AssociateProfile { profile, .. } => write!(f, "put {profile} on"),
            C::PutRolePolicy { name, .. } | C::PutUserPolicy { name, .. } => {
                write!(f, "put inline policy {name}")
            }
            C::DeleteRolePolicy { name, .. } => write!(f, "delete inline policy {name}"),
            C::SetMetadataEndpoint { on, .. } => {
                write!(f, "switch the metadata endpoint {}", switch(*on))
            }
            C::SetAccessKey { key, active, .. } => {
                write!(f, "{} access key {key}", if *active { "activate" } else { "deactivate" })
            }
            C::CreateStack { template, parameters, .. } => {
                let snapshots = parameters.keys().filter(|name| name.starts_with("Snapshot"));
                write!(f, "create the stack from {template}, for {} snapshots", snapshots.count())
            }
            C::DeleteStack { .. } => f.write_str("delete the stack and all that it made"),
            C::RunDrill { image, instance_type, subnet, .. } => {
                let subnet = subnet.as_deref().unwrap_or("the default VPC");
                write!(f, "launch a {instance_type} from {image} in {subnet}, for a drill")
            }
            C::TerminateDrill { drill, .. } => write!(f, "terminate the instance of {drill}"),
            C::DeleteDrillSnapshot { drill, .. } => write!(f, "delete the snapshot of {drill}"),
        }
    }
}

/// What a change made, where it made something with a name of its own.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Made {
    /// Nothing with a name.
    Nothing,
    /// A security group.
    Group(GroupId),
    /// Snapshots.
    Snapshots(Vec<Snapshot>),
    /// A copy of a snapshot.
    Copy(SnapshotId),
    /// A grant on a key, by its id.
    Grant(String),
    /// An image.
    Image(ImageId),
    /// An Elastic IP's or a profile's association.
    Association(AssociationId),
    /// A stack, by its id.
    Stack(String),
    /// An instance.
    Instance(InstanceId),
}

/// The only port that changes anything about an instance or what belongs to it.
#[async_trait]
pub trait Hands: Send + Sync {
    /// Carries out one change, once. Changes that can be repeated harmlessly are retried inside on throttling
    /// and lost answers, within the call's time-out; those that [create](Change::creates) are not. A change whose end
    /// is reached already (a detached target, an existing rule) is no error; a name that is taken is
    /// [`Conflict`](crate::ErrorKind::Conflict).
    ///
    /// # Errors
    /// What the cloud said.
    async fn apply(&self, change: &Change) -> Result<Made>;

    /// As [`Hands::apply`], ahead of any other call and never slowed by a client's rate limit: for closing
    /// what is open.
    ///
    /// # Errors
    /// What the cloud said.
    async fn apply_first(&self, change: &Change) -> Result<Made>;
}
