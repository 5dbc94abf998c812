//! How the account is set up, read from the world. Never changes it.

use async_trait::async_trait;
use cleanroom_cloud::{BucketPosture, Permission, Posture, Quota, Result, TrailPosture};

use crate::{
    gate::{Call, FakeCloud},
    problem::Problem,
};

#[async_trait]
impl Posture for FakeCloud {
    /// All of the bucket's settings at once.
    async fn bucket(&self) -> Result<BucketPosture> {
        self.call(Call::read("s3:GetBucketVersioning", self.bucket_name()), |world| {
            if !world.bucket.exists {
                return Err(Problem::not_found("NoSuchBucket", "The bucket does not exist"));
            }
            Ok(world.setup.bucket.clone())
        })
        .await
    }

    /// One request; none where no topic is set.
    async fn topic(&self) -> Result<Option<String>> {
        let Some(topic) = self.with(|world| world.topic.clone()) else { return Ok(None) };
        self.call(Call::read("sns:GetTopicAttributes", &topic), |world| Ok(world.topic.clone()))
            .await
    }

    /// Two requests: the role behind the session, then the simulation.
    async fn permissions(&self, actions: &[String]) -> Result<Vec<Permission>> {
        let caller = self.caller_arn().to_owned();
        self.call(Call::read("iam:SimulatePrincipalPolicy", caller).links(2), |world| {
            let simulate = |action: &String| Permission {
                action: action.clone(),
                allowed: !world.setup.denied.contains(action),
            };
            Ok(actions.iter().map(simulate).collect())
        })
        .await
    }

    /// Two requests: the trails, then the status of all at once.
    async fn trails(&self) -> Result<Vec<TrailPosture>> {
        self.call(Call::read("cloudtrail:DescribeTrails", "").links(2), |world| {
            Ok(world.setup.trails.clone())
        })
        .await
    }

    /// Two requests: the detectors, then the detector.
    async fn guardduty(&self) -> Result<bool> {
        self.call(Call::read("guardduty:ListDetectors", "").links(2), |world| {
            Ok(world.setup.guardduty)
        })
        .await
    }

    /// VPCs and flow logs at once.
    async fn flow_logs(&self) -> Result<Vec<(String, bool)>> {
        self.call(Call::read("ec2:DescribeFlowLogs", ""), |world| {
            let logged = &world.setup.flow_logs;
            Ok(world.vpcs.iter().map(|vpc| (vpc.to_string(), logged.contains(vpc))).collect())
        })
        .await
    }

    /// Limits and counts at once.
    async fn quotas(&self) -> Result<Vec<Quota>> {
        self.call(Call::read("servicequotas:GetServiceQuota", ""), |world| {
            Ok(world.setup.quotas.clone())
        })
        .await
    }
}
