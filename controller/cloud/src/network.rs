//! What connects an instance: interfaces, security groups, addresses, Auto Scaling, load balancers.

use std::collections::{BTreeMap, BTreeSet};

use cleanroom_contract::InstanceId;
use serde::{Deserialize, Serialize};

use crate::{
    change::AclEntry,
    names::{
        AccountId, AclId, AllocationId, AssociationId, GroupId, InterfaceId, TargetGroupArn, VpcId,
    },
};

/// A public IPv4 address on an interface.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ElasticAddress {
    /// The public address.
    pub public: String,
    /// The private address that it stands for.
    pub private: String,
    /// The Elastic IP; none for an address that EC2 assigned by itself, which can not be restored.
    pub allocation: Option<AllocationId>,
    /// The Elastic IP's association.
    pub association: Option<AssociationId>,
}

/// A network interface of an instance (EC2 `DescribeNetworkInterfaces`).
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Interface {
    /// Its id.
    pub id: InterfaceId,
    /// The account that owns it.
    pub owner: AccountId,
    /// Whether it belongs to a service that manages it, which may refuse changes.
    pub managed: bool,
    /// Its VPC.
    pub vpc: VpcId,
    /// Its subnet, `subnet-…`.
    pub subnet: String,
    /// 0 for the primary interface.
    pub index: i32,
    /// Its security groups.
    pub groups: BTreeSet<GroupId>,
    /// Its private IPv4 addresses, the primary first.
    pub private: Vec<String>,
    /// Its IPv6 addresses.
    pub ipv6: Vec<String>,
    /// Its public IPv4 addresses.
    pub public: Vec<ElasticAddress>,
    /// Its tags.
    pub tags: BTreeMap<String, String>,
}

/// One rule of a security group.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Rule {
    /// Whether it allows traffic out; else in.
    pub egress: bool,
    /// Whether it allows every protocol and port.
    pub all_traffic: bool,
    /// What it allows traffic with: a CIDR block, a group, a prefix list.
    pub peer: String,
    /// Protocol and ports, for people.
    pub what: String,
}

/// A security group and all its rules.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct SecurityGroup {
    /// Its id.
    pub id: GroupId,
    /// Its name, unique in its VPC.
    pub name: String,
    /// Its VPC.
    pub vpc: VpcId,
    /// Its tags.
    pub tags: BTreeMap<String, String>,
    /// Its rules.
    pub rules: Vec<Rule>,
}

/// A network ACL and its numbered entries.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct NetworkAcl {
    /// Its id.
    pub id: AclId,
    /// Its entries.
    pub entries: Vec<AclEntry>,
}

/// An instance's place in an Auto Scaling group (`DescribeAutoScalingInstances`).
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Membership {
    /// The group's name.
    pub group: String,
    /// The lifecycle state, `InService`, `Standby`, `Terminating:Wait`, as Auto Scaling names it.
    pub state: String,
    /// Whether it is protected from scale-in.
    pub protected: bool,
}

/// An Auto Scaling group.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ScalingGroup {
    /// Its name.
    pub name: String,
    /// Processes that are suspended, `Terminate`.
    pub suspended: BTreeSet<String>,
    /// Names of its hooks on termination.
    pub termination_hooks: Vec<String>,
    /// Its least, desired and most instances.
    pub size: (i32, i32, i32),
    /// Its instances, with lifecycle and health state.
    pub instances: Vec<(InstanceId, String, String)>,
    /// The launch template it uses: id or name, and version.
    pub launch_template: Option<(String, String)>,
}

/// A target group of an application, network or gateway load balancer.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct TargetGroup {
    /// Its ARN.
    pub arn: TargetGroupArn,
    /// Its VPC; none for Lambda targets.
    pub vpc: Option<VpcId>,
    /// `instance`, `ip`, `lambda` or `alb`.
    pub kind: String,
    /// The protocol it speaks, `HTTP`, `TCP`, `GENEVE`.
    pub protocol: Option<String>,
}

/// A registered target.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct Target {
    /// An instance id or an address.
    pub id: String,
    /// Its port.
    pub port: Option<i32>,
    /// Its Availability Zone, or `all`; given for addresses outside the VPC only.
    pub zone: Option<String>,
    /// Whether it is leaving: deregistered, with connections still draining.
    pub draining: bool,
}

/// A classic load balancer.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Classic {
    /// Its name.
    pub name: String,
    /// Its instances.
    pub instances: Vec<InstanceId>,
}
