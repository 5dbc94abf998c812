//! How an account is prepared for an incident. Reads only.

use async_trait::async_trait;
use serde::{Deserialize, Serialize};

use crate::error::Result;

/// A bucket's default retention (S3 Object Lock).
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Retention {
    /// `GOVERNANCE` or `COMPLIANCE`.
    pub mode: String,
    /// How long, in days.
    pub days: u32,
}

/// How the evidence bucket is set up.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct BucketPosture {
    /// Whether versioning is enabled.
    pub versioning: bool,
    /// Whether Object Lock is on.
    pub object_lock: bool,
    /// Its default retention.
    pub retention: Option<Retention>,
    /// Whether all four kinds of public access are blocked.
    pub public_access_blocked: bool,
    /// The key that objects are encrypted with by default, where it is a KMS key.
    pub key: Option<String>,
    /// The bucket policy's JSON.
    pub policy: Option<String>,
}

/// Whether the caller may do something (IAM `SimulatePrincipalPolicy`).
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Permission {
    /// The action, `ec2:CreateSnapshots`.
    pub action: String,
    /// Whether it would be allowed.
    pub allowed: bool,
}

/// A trail of CloudTrail.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct TrailPosture {
    /// Its name.
    pub name: String,
    /// Whether it covers every Region.
    pub multi_region: bool,
    /// Whether its files are signed.
    pub log_validation: bool,
    /// Whether it is logging now.
    pub logging: bool,
}

/// A service quota and how much of it is used.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Quota {
    /// What is limited.
    pub name: String,
    /// How much there may be.
    pub limit: u64,
    /// How much there is; none where it could not be counted.
    pub used: Option<u64>,
}

/// Looks at how the account is set up.
#[async_trait]
pub trait Posture: Send + Sync {
    /// The evidence bucket.
    async fn bucket(&self) -> Result<BucketPosture>;
    /// Whether the topic exists; `None` where none is configured.
    async fn topic(&self) -> Result<Option<String>>;
    /// Which of the actions the caller may do, by simulation.
    async fn permissions(&self, actions: &[String]) -> Result<Vec<Permission>>;
    /// Every trail that covers this Region.
    async fn trails(&self) -> Result<Vec<TrailPosture>>;
    /// Whether GuardDuty is on in this Region.
    async fn guardduty(&self) -> Result<bool>;
    /// VPCs of this Region, and whether each has a flow log.
    async fn flow_logs(&self) -> Result<Vec<(String, bool)>>;
    /// VPCs, security groups, groups an interface, volumes' storage and snapshots: those that a case uses up.
    async fn quotas(&self) -> Result<Vec<Quota>>;
}
