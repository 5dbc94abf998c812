//! What is there: everything that the steps look at before and after they act.

use std::collections::{BTreeMap, BTreeSet};

use async_trait::async_trait;
use cleanroom_contract::{CaseId, InstanceId, SnapshotId, Timestamp, VolumeId};
use serde::{Deserialize, Serialize};

use crate::{
    error::Result,
    instance::{Association, Guards, Instance, Profile, RolePolicy},
    names::{AccountId, GroupId, InterfaceId, RoleName, TargetGroupArn, VpcId},
    network::{
        Classic, Interface, Membership, NetworkAcl, ScalingGroup, SecurityGroup, Target,
        TargetGroup,
    },
    snapshot::{Image, PublicImage, Snapshot, Volume},
    stack::{Stack, StackEvent},
};

/// Who calls (STS `GetCallerIdentity`), and where.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Caller {
    /// The account.
    pub account: AccountId,
    /// The caller's ARN: the actor in the custody log.
    pub arn: String,
    /// The Region that is called.
    pub region: String,
    /// How far this machine's clock is ahead of the service's, in seconds; none where no answer said.
    pub clock_ahead: Option<i64>,
}

/// How people name an instance.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum InstanceQuery {
    /// By id.
    Id(InstanceId),
    /// By a private or public IPv4 address.
    Address(String),
    /// By its `Name` tag.
    Name(String),
}

/// A GuardDuty finding about an instance.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct AlertFinding {
    /// Its id.
    pub id: String,
    /// Its type, `CryptoCurrency:EC2/BitcoinTool.B!DNS`.
    pub kind: String,
    /// 1.0 to 10.0, times ten.
    pub severity_tenths: u32,
    /// What it says.
    pub title: String,
    /// Whether the instance is the one that acts; else it is the target.
    pub actor: bool,
}

/// What CloudTrail events are asked for (`LookupEvents` takes one attribute).
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum EventQuery {
    /// Events that name this resource.
    Resource(String),
    /// Events by this user or role session name; an instance's role session is named by the instance id.
    Username(String),
    /// Events made with this access key.
    AccessKey(String),
}

/// One CloudTrail event.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Event {
    /// Its id.
    pub id: String,
    /// Its name, `AssumeRole`.
    pub name: String,
    /// Its service, `sts.amazonaws.com`.
    pub source: String,
    /// When it happened.
    pub time: Timestamp,
    /// Who did it.
    pub username: Option<String>,
    /// The event itself, JSON, as CloudTrail gives it.
    pub raw: String,
}

/// Some events, newest first, and where the next ones are.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct EventPage {
    /// The events.
    pub events: Vec<Event>,
    /// Passed back for the next page.
    pub next: Option<String>,
}

/// A key of KMS.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct EncryptionKey {
    /// Its ARN.
    pub arn: String,
    /// The account that owns it.
    pub account: AccountId,
    /// Whether AWS manages it (`aws/ebs`), so that nothing under it can be shared.
    pub aws_managed: bool,
    /// Whether it can be used.
    pub enabled: bool,
}

/// A grant on a key: what it lets somebody do is told by its name, which is ours (KMS `ListGrants`).
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Grant {
    /// Its id.
    pub id: String,
    /// Its name; empty where it has none.
    pub name: String,
}

/// An IAM user's access keys and groups, as far as cutting them needs.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct UserAccess {
    /// Access key ids, and whether each is active.
    pub keys: BTreeMap<String, bool>,
    /// Its inline policies.
    pub policies: Vec<RolePolicy>,
}

/// Reads, and nothing else. Every method reads all pages. A thing that is not there is
/// [`NotFound`](crate::ErrorKind::NotFound) where the method says `get` or gives one thing, and an empty list or
/// `None` elsewhere.
#[async_trait]
pub trait Inventory: Send + Sync {
    /// Who calls.
    async fn caller(&self) -> Result<Caller>;
    /// Other Regions of the account in which the instance is: for a better error. May take a second.
    async fn regions_with(&self, instance: &InstanceId) -> Result<Vec<String>>;
    /// The instances that fit, terminated ones too where asked by id.
    async fn find_instances(&self, query: &InstanceQuery) -> Result<Vec<Instance>>;
    /// Those of these instances that are there, at most 200, in no order; terminated ones too, as long as EC2 tells of them.
    async fn instances(&self, ids: &[InstanceId]) -> Result<Vec<Instance>>;
    /// One instance.
    async fn get_instance(&self, instance: &InstanceId) -> Result<Instance>;
    /// Its guards.
    async fn guards(&self, instance: &InstanceId) -> Result<Guards>;
    /// Whether its type has disks that die with it (instance store).
    async fn has_instance_store(&self, instance_type: &str) -> Result<bool>;
    /// Instances that were launched from this image or carry this profile.
    async fn instances_like(
        &self,
        image: Option<&str>,
        profile: Option<&str>,
    ) -> Result<Vec<InstanceId>>;

    /// All its interfaces, the primary first.
    async fn interfaces(&self, instance: &InstanceId) -> Result<Vec<Interface>>;
    /// One interface.
    async fn get_interface(&self, interface: &InterfaceId) -> Result<Interface>;
    /// Whether the interface is given a public address on its own.
    async fn auto_public_address(&self, interface: &InterfaceId) -> Result<bool>;
    /// The groups of this name in the VPC: none or one.
    async fn find_group(&self, vpc: &VpcId, name: &str) -> Result<Option<SecurityGroup>>;
    /// One group.
    async fn get_group(&self, group: &GroupId) -> Result<SecurityGroup>;
    /// The public addresses of the Region's NAT gateways, by the gateway's VPC.
    async fn egress_addresses(&self) -> Result<BTreeMap<VpcId, BTreeSet<String>>>;
    /// All network ACLs of a VPC.
    async fn acls(&self, vpc: &VpcId) -> Result<Vec<NetworkAcl>>;

    /// Its Auto Scaling group.
    async fn membership(&self, instance: &InstanceId) -> Result<Option<Membership>>;
    /// One Auto Scaling group.
    async fn scaling_group(&self, name: &str) -> Result<ScalingGroup>;
    /// All target groups of the Region.
    async fn target_groups(&self) -> Result<Vec<TargetGroup>>;
    /// What is registered with one of them.
    async fn targets(&self, target_group: &TargetGroupArn) -> Result<Vec<Target>>;
    /// All classic load balancers of the Region.
    async fn classic_balancers(&self) -> Result<Vec<Classic>>;

    /// These volumes, those that exist.
    async fn volumes(&self, volumes: &[VolumeId]) -> Result<Vec<Volume>>;
    /// Volumes that are attached to the instance.
    async fn attached_volumes(&self, instance: &InstanceId) -> Result<Vec<Volume>>;
    /// The case's snapshots, by their tag `cleanroom:case`, oldest first.
    async fn snapshots(&self, case: &CaseId) -> Result<Vec<Snapshot>>;
    /// The case's images, by the same tag.
    async fn images(&self, case: &CaseId) -> Result<Vec<Image>>;
    /// The accounts that a snapshot of the caller's own is shared with; `all` where it is public.
    async fn shared_with(&self, snapshot: &SnapshotId) -> Result<Vec<AccountId>>;
    /// A key.
    async fn key(&self, key: &str) -> Result<EncryptionKey>;
    /// The grants on a key to this principal, an ARN.
    async fn grants(&self, key: &str, grantee: &str) -> Result<Vec<Grant>>;

    /// Its instance profile's associations.
    async fn profile_associations(&self, instance: &InstanceId) -> Result<Vec<Association>>;
    /// The profile of this ARN.
    async fn profile(&self, arn: &str) -> Result<Profile>;
    /// The role's inline policies.
    async fn role_policies(&self, role: &RoleName) -> Result<Vec<RolePolicy>>;
    /// A user's keys and inline policies.
    async fn user_access(&self, user: &str) -> Result<UserAccess>;

    /// GuardDuty's findings about the instance that are not archived; empty where GuardDuty is off.
    async fn findings(&self, instance: &InstanceId) -> Result<Vec<AlertFinding>>;
    /// One page of at most 50 events, newest first.
    async fn events(&self, query: &EventQuery, next: Option<&str>) -> Result<EventPage>;
    /// A CloudFormation stack's outputs; empty where there is no such stack.
    async fn stack_outputs(&self, stack: &str) -> Result<BTreeMap<String, String>>;
    /// The stack of this name; one that is deleted is not there.
    async fn find_stack(&self, name: &str) -> Result<Option<Stack>>;
    /// What happened to a stack, by name or id, newest last. Deleted ones only by id.
    async fn stack_events(&self, stack: &str) -> Result<Vec<StackEvent>>;
    /// The newest AMI of an owner (`amazon`) whose name fits a pattern with `*`, for an architecture.
    async fn public_image(
        &self,
        owner: &str,
        name: &str,
        architecture: &str,
    ) -> Result<Option<PublicImage>>;
    /// The id of the prefix list of this name: the addresses of a service, for a rule of a security group.
    async fn prefix_list(&self, name: &str) -> Result<Option<String>>;
}
