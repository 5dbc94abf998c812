//! What the cloud says, kept as it said it.

use async_trait::async_trait;
use cleanroom_contract::InstanceId;
use serde::{Deserialize, Serialize};

use crate::error::Result;

/// Something to ask the cloud for the record.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(tag = "question", rename_all = "snake_case")]
#[expect(missing_docs, reason = "fields are ids of what the question names")]
pub enum Question {
    /// EC2 `DescribeInstances`.
    Instance { instance: InstanceId },
    /// EC2 `DescribeInstanceAttribute`, one attribute by EC2's name of it; `userData` is one of them.
    InstanceAttribute { instance: InstanceId, attribute: String },
    /// EC2 `DescribeInstanceStatus`.
    InstanceStatus { instance: InstanceId },
    /// EC2 `GetConsoleOutput`, the latest where the type offers it.
    ConsoleOutput { instance: InstanceId },
    /// EC2 `GetConsoleScreenshot`.
    ConsoleScreenshot { instance: InstanceId },
    /// EC2 `DescribeNetworkInterfaces`.
    Interfaces { instance: InstanceId },
    /// EC2 `DescribeSecurityGroups`.
    SecurityGroups { groups: Vec<String> },
    /// EC2 `DescribeSecurityGroupRules`.
    SecurityGroupRules { groups: Vec<String> },
    /// EC2 `DescribeVolumes` by attachment.
    Volumes { instance: InstanceId },
    /// EC2 `DescribeTags` of these resources.
    Tags { resources: Vec<String> },
    /// EC2 `DescribeImages`.
    Image { image: String },
    /// EC2 `DescribeAddresses` by instance.
    Addresses { instance: InstanceId },
    /// EC2 `DescribeSubnets`.
    Subnet { subnet: String },
    /// EC2 `DescribeVpcs`.
    Vpc { vpc: String },
    /// EC2 `DescribeRouteTables` of the VPC.
    RouteTables { vpc: String },
    /// EC2 `DescribeNetworkAcls` of the subnet.
    NetworkAcls { subnet: String },
    /// EC2 `DescribeFlowLogs` for these resources.
    FlowLogs { resources: Vec<String> },
    /// EC2 `DescribeIamInstanceProfileAssociations`.
    ProfileAssociations { instance: InstanceId },
    /// IAM `GetInstanceProfile`.
    Profile { name: String },
    /// IAM `GetRole`.
    Role { role: String },
    /// IAM `ListAttachedRolePolicies`, then each policy as by `ManagedPolicy`.
    AttachedPolicies { role: String },
    /// IAM `GetPolicy`, then `GetPolicyVersion` of the version in force.
    ManagedPolicy { arn: String },
    /// IAM `ListRolePolicies`, then `GetRolePolicy` for each.
    InlinePolicies { role: String },
    /// IAM `GetRolePolicy`.
    InlinePolicy { role: String, name: String },
    /// Auto Scaling `DescribeAutoScalingInstances`.
    ScalingInstance { instance: InstanceId },
    /// Auto Scaling `DescribeAutoScalingGroups`.
    ScalingGroup { group: String },
    /// Auto Scaling `DescribeScalingActivities`, the newest hundred.
    ScalingActivities { group: String },
    /// Elastic Load Balancing `DescribeTargetHealth`.
    TargetHealth { target_group: String },
    /// Elastic Load Balancing (classic) `DescribeLoadBalancers`.
    ClassicBalancer { name: String },
    /// GuardDuty `ListFindings`, then `GetFindings`.
    Findings { instance: InstanceId },
    /// SSM-free: EC2 `DescribeInstanceTypes`.
    InstanceType { name: String },
    /// EC2 `DescribeLaunchTemplateVersions`.
    LaunchTemplate { template: String, version: String },
}

impl Question {
    /// The name of the file that holds the answer, without extension: unique within a case.
    #[must_use]
    pub fn file_name(&self) -> String {
        use Question as Q;
        let plain = |text: &str| -> String {
            text.chars()
                .map(|c| if c.is_ascii_alphanumeric() || c == '.' { c } else { '-' })
                .collect()
        };
        match self {
            Q::Instance { .. } => "instance".into(),
            Q::InstanceAttribute { attribute, .. } => format!("attribute-{}", plain(attribute)),
            Q::InstanceStatus { .. } => "instance-status".into(),
            Q::ConsoleOutput { .. } => "console-output".into(),
            Q::ConsoleScreenshot { .. } => "console-screenshot".into(),
            Q::Interfaces { .. } => "interfaces".into(),
            Q::SecurityGroups { .. } => "security-groups".into(),
            Q::SecurityGroupRules { .. } => "security-group-rules".into(),
            Q::Volumes { .. } => "volumes".into(),
            Q::Tags { .. } => "tags".into(),
            Q::Image { image } => format!("image-{}", plain(image)),
            Q::Addresses { .. } => "addresses".into(),
            Q::Subnet { subnet } => format!("subnet-{}", plain(subnet)),
            Q::Vpc { vpc } => format!("vpc-{}", plain(vpc)),
            Q::RouteTables { .. } => "route-tables".into(),
            Q::NetworkAcls { subnet } => format!("network-acls-{}", plain(subnet)),
            Q::FlowLogs { .. } => "flow-logs".into(),
            Q::ProfileAssociations { .. } => "profile-associations".into(),
            Q::Profile { name } => format!("profile-{}", plain(name)),
            Q::Role { role } => format!("role-{}", plain(role)),
            Q::AttachedPolicies { role } => format!("role-{}-attached-policies", plain(role)),
            Q::ManagedPolicy { arn } => format!("policy-{}", plain(arn)),
            Q::InlinePolicies { role } => format!("role-{}-inline-policies", plain(role)),
            Q::InlinePolicy { role, name } => {
                format!("role-{}-policy-{}", plain(role), plain(name))
            }
            Q::ScalingInstance { .. } => "scaling-instance".into(),
            Q::ScalingGroup { group } => format!("scaling-group-{}", plain(group)),
            Q::ScalingActivities { group } => format!("scaling-activities-{}", plain(group)),
            Q::TargetHealth { target_group } => format!("target-health-{}", plain(target_group)),
            Q::ClassicBalancer { name } => format!("classic-balancer-{}", plain(name)),
            Q::Findings { .. } => "guardduty-findings".into(),
            Q::InstanceType { name } => format!("instance-type-{}", plain(name)),
            Q::LaunchTemplate { template, version } => {
                format!("launch-template-{}-{}", plain(template), plain(version))
            }
        }
    }
}

/// One answer, byte for byte as the service sent it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Answer {
    /// The operation that gave it, `ec2:DescribeInstances`.
    pub operation: String,
    /// The request's id.
    pub request: Option<String>,
    /// `xml`, `json`, or what the bytes are after decoding (`txt`, `jpg`).
    pub extension: &'static str,
    /// The bytes.
    pub bytes: Vec<u8>,
}

/// Reads for the record.
#[async_trait]
pub trait Facts: Send + Sync {
    /// The answers to a question, one for each page or call it takes. Console output and screenshots
    /// come twice: as sent, and decoded.
    ///
    /// # Errors
    /// What the cloud said; the record then names the question as not answered.
    async fn ask(&self, question: &Question) -> Result<Vec<Answer>>;
}
