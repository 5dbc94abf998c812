//! How an account is prepared, and what its response stack is called.
//!
//! Purpose: what `preflight` shows: bucket, topic, permissions, trails, detectors, flow logs, quotas. Touches S3, SNS,
//! IAM, STS, CloudTrail, GuardDuty, EC2, Service Quotas and CloudFormation, reading only. Never changes anything.

use std::collections::{BTreeMap, BTreeSet};

use aws_sdk_guardduty::types::DetectorStatus;
use aws_sdk_iam::types::{ContextEntry, ContextKeyTypeEnum, PolicyEvaluationDecisionType};
use aws_sdk_s3::types::{
    BucketVersioningStatus, DefaultRetention, ObjectLockEnabled, PublicAccessBlockConfiguration,
    ServerSideEncryptionConfiguration,
};
use cleanroom_cloud::{
    BucketPosture, CloudError, ErrorKind, Permission, Result, Retention, TrailPosture,
};

use crate::{
    clients::Clients,
    error::{bad_answer, fail, own},
    pages,
    permissions::{CONDITIONS, Condition},
    store, trail,
};

pub(crate) use crate::quotas::quotas;

/// Actions a simulation: few enough for one answer of IAM's, and for its patience.
const ACTIONS_A_CALL: usize = 50;

/// The evidence bucket.
pub(crate) async fn bucket(clients: &Clients) -> Result<BucketPosture> {
    let bucket = clients.bucket.as_deref();
    let bucket = bucket.ok_or_else(|| store::no_bucket("s3:GetBucketVersioning"))?;
    let (versioning, lock, blocked, encryption, policy) = tokio::try_join!(
        versioning(clients, bucket),
        object_lock(clients, bucket),
        public_access_block(clients, bucket),
        encryption(clients, bucket),
        policy(clients, bucket),
    )?;
    let (object_lock, retention) = lock;
    Ok(BucketPosture {
        versioning,
        object_lock,
        retention: retention.and_then(translate_retention),
        public_access_blocked: blocked.is_some_and(|b| blocks_all(&b)),
        key: encryption.and_then(kms_key),
        policy,
    })
}

/// Whether versioning is enabled.
async fn versioning(clients: &Clients, bucket: &str) -> Result<bool> {
    let answer = clients.s3.get_bucket_versioning().bucket(bucket).send().await;
    let answer = answer.map_err(|e| fail("s3:GetBucketVersioning", bucket, e))?;
    Ok(answer.status == Some(BucketVersioningStatus::Enabled))
}

/// Whether Object Lock is on, and the default retention.
async fn object_lock(clients: &Clients, bucket: &str) -> Result<(bool, Option<DefaultRetention>)> {
    let answer = clients.s3.get_object_lock_configuration().bucket(bucket).send().await;
    let answer = answer.map_err(|e| fail("s3:GetObjectLockConfiguration", bucket, e));
    let lock = match answer {
        Ok(answer) => answer.object_lock_configuration,
        Err(error) if error.code == "ObjectLockConfigurationNotFoundError" => None,
        Err(error) => return Err(error),
    };
    Ok(lock.map_or((false, None), |lock| {
        let on = lock.object_lock_enabled == Some(ObjectLockEnabled::Enabled);
        (on, lock.rule.and_then(|rule| rule.default_retention))
    }))
}

/// The bucket's own block of public access.
async fn public_access_block(
    clients: &Clients,
    bucket: &str,
) -> Result<Option<PublicAccessBlockConfiguration>> {
    let answer = clients.s3.get_public_access_block().bucket(bucket).send().await;
    match answer.map_err(|e| fail("s3:GetPublicAccessBlock", bucket, e)) {
        Ok(answer) => Ok(answer.public_access_block_configuration),
        Err(error) if error.code == "NoSuchPublicAccessBlockConfiguration" => Ok(None),
        Err(error) => Err(error),
    }
}

/// The bucket's default encryption.
async fn encryption(
    clients: &Clients,
    bucket: &str,
) -> Result<Option<ServerSideEncryptionConfiguration>> {
    let answer = clients.s3.get_bucket_encryption().bucket(bucket).send().await;
    match answer.map_err(|e| fail("s3:GetBucketEncryption", bucket, e)) {
        Ok(answer) => Ok(answer.server_side_encryption_configuration),
        Err(error) if error.code == "ServerSideEncryptionConfigurationNotFoundError" => Ok(None),
        Err(error) => Err(error),
    }
}

/// The bucket policy's JSON.
async fn policy(clients: &Clients, bucket: &str) -> Result<Option<String>> {
    let answer = clients.s3.get_bucket_policy().bucket(bucket).send().await;
    match answer.map_err(|e| fail("s3:GetBucketPolicy", bucket, e)) {
        Ok(answer) => Ok(answer.policy),
        Err(error) if error.code == "NoSuchBucketPolicy" => Ok(None),
        Err(error) => Err(error),
    }
}

/// A default retention in days; none where it has no period.
fn translate_retention(retention: DefaultRetention) -> Option<Retention> {
    let days = retention.days.or_else(|| retention.years?.checked_mul(365))?;
    let mode = retention.mode?.as_str().to_owned();
    Some(Retention { mode, days: u32::try_from(days).ok()? })
}

/// Whether all four kinds of public access are blocked.
fn blocks_all(block: &PublicAccessBlockConfiguration) -> bool {
    [
        block.block_public_acls,
        block.ignore_public_acls,
        block.block_public_policy,
        block.restrict_public_buckets,
    ]
    .iter()
    .all(|blocked| *blocked == Some(true))
}

/// The KMS key of a default encryption; `aws/s3` where KMS is named without a key.
fn kms_key(encryption: ServerSideEncryptionConfiguration) -> Option<String> {
    let default = encryption
        .rules
        .into_iter()
        .find_map(|rule| rule.apply_server_side_encryption_by_default)?;
    let kms = default.sse_algorithm.as_str().starts_with("aws:kms");
    kms.then(|| default.kms_master_key_id.unwrap_or_else(|| "aws/s3".to_owned()))
}

/// The topic's ARN, where it exists.
pub(crate) async fn topic(clients: &Clients) -> Result<Option<String>> {
    let Some(topic) = clients.topic.as_deref() else { return Ok(None) };
    clients
        .sns
        .get_topic_attributes()
        .topic_arn(topic)
        .send()
        .await
        .map_err(|e| fail("sns:GetTopicAttributes", topic, e))?;
    Ok(Some(topic.to_owned()))
}

/// What holds when this program acts: actions that the policy allows under a condition only are asked for under it.
fn context() -> Vec<ContextEntry> {
    let entry = |condition: &Condition| {
        let several = condition.kind.starts_with("ForAllValues:");
        let kind = match condition.kind {
            "Bool" => ContextKeyTypeEnum::Boolean,
            _ if several => ContextKeyTypeEnum::StringList,
            _ => ContextKeyTypeEnum::String,
        };
        let values = condition.values.iter().take(if several { usize::MAX } else { 1 });
        ContextEntry::builder()
            .context_key_name(condition.key)
            .context_key_type(kind)
            .set_context_key_values(Some(values.map(|value| (*value).to_owned()).collect()))
            .build()
    };
    CONDITIONS.iter().map(entry).collect()
}

/// Which of the actions the caller's role or user may do on anything, in the order they were given.
pub(crate) async fn permissions(clients: &Clients, actions: &[String]) -> Result<Vec<Permission>> {
    const OPERATION: &str = "iam:SimulatePrincipalPolicy";
    let principal = caller_principal(clients).await?;
    let mut decided = BTreeMap::new();
    for some in actions.chunks(ACTIONS_A_CALL) {
        let stream = clients
            .iam
            .simulate_principal_policy()
            .policy_source_arn(&principal)
            .set_action_names(Some(some.to_vec()))
            .set_context_entries(Some(context()))
            .into_paginator()
            .send();
        for page in pages::all(OPERATION, &principal, stream).await? {
            for result in page.evaluation_results.unwrap_or_default() {
                let allowed = result.eval_decision == PolicyEvaluationDecisionType::Allowed;
                // IAM compares actions without regard to case.
                decided.insert(result.eval_action_name.to_ascii_lowercase(), allowed);
            }
        }
    }
    let mut permissions = Vec::new();
    for action in actions {
        let allowed = decided.get(&action.to_ascii_lowercase());
        let allowed = *allowed.ok_or_else(|| bad_answer(OPERATION, &principal, action))?;
        permissions.push(Permission { action: action.clone(), allowed });
    }
    Ok(permissions)
}

/// What an STS ARN stands for in IAM.
#[derive(Debug, PartialEq, Eq)]
enum Principal<'a> {
    /// A user: the ARN is IAM's own.
    User(&'a str),
    /// A role's name, and its ARN if it had no path.
    Role { name: &'a str, plain: String },
    /// Root, a federated user: nobody whose policies can be simulated.
    Other,
}

/// Reads a caller's ARN (IAM user guide, "IAM identifiers").
fn principal(arn: &str) -> Principal<'_> {
    let parts: Vec<_> = arn.splitn(6, ':').collect();
    let &["arn", partition, service, _, account, resource] = parts.as_slice() else {
        return Principal::Other;
    };
    match (service, resource.split_once('/')) {
        ("iam", Some(("user", name))) if !name.is_empty() => Principal::User(arn),
        ("sts", Some(("assumed-role", rest))) => match rest.split_once('/') {
            Some((name, _)) if !name.is_empty() => Principal::Role {
                name,
                plain: format!("arn:{partition}:iam::{account}:role/{name}"),
            },
            _ => Principal::Other,
        },
        _ => Principal::Other,
    }
}

/// The ARN of the caller's user or role, as a simulation takes it.
async fn caller_principal(clients: &Clients) -> Result<String> {
    const OPERATION: &str = "sts:GetCallerIdentity";
    let identity =
        clients.sts.get_caller_identity().send().await.map_err(|e| fail(OPERATION, "", e))?;
    let arn = identity.arn.ok_or_else(|| bad_answer(OPERATION, "", "the caller's ARN"))?;
    let (name, plain) = match principal(&arn) {
        Principal::User(user) => return Ok(user.to_owned()),
        Principal::Role { name, plain } => (name, plain),
        Principal::Other => return Err(no_policies(&arn)),
    };
    let answer = clients.iam.get_role().role_name(name).send().await;
    match answer.map_err(|e| fail("iam:GetRole", name, e)) {
        Ok(answer) => Ok(answer.role.map_or(plain, |role| role.arn)),
        // The session's ARN lacks the role's path, which only IAM knows. Most roles have none.
        Err(error) if error.kind == ErrorKind::Denied => Ok(plain),
        Err(error) => Err(error),
    }
}

/// The error of a caller that a simulation does not take.
fn no_policies(arn: &str) -> CloudError {
    own(
        "iam:SimulatePrincipalPolicy",
        arn,
        ErrorKind::Unsupported,
        "NotAPrincipal",
        "only a user's or a role's permissions can be simulated",
    )
}

/// Every trail that covers this Region, those of other Regions and of the organisation too.
pub(crate) async fn trails(clients: &Clients) -> Result<Vec<TrailPosture>> {
    const LIST: &str = "cloudtrail:DescribeTrails";
    const STATUS: &str = "cloudtrail:GetTrailStatus";
    let answer = clients
        .cloudtrail
        .describe_trails()
        .include_shadow_trails(true)
        .send()
        .await
        .map_err(|e| fail(LIST, "", e))?;
    let mut trails = Vec::new();
    for trail in answer.trail_list.unwrap_or_default() {
        // A trail of another Region is known here by its ARN only.
        let Some(arn) = trail.trail_arn.or_else(|| trail.name.clone()) else { continue };
        let status = clients.cloudtrail.get_trail_status().name(&arn).send().await;
        let status = match status.map_err(|e| fail(STATUS, &arn, e)) {
            Ok(status) => status,
            // Deleted between the two calls.
            Err(error) if error.kind == ErrorKind::NotFound => continue,
            Err(error) => return Err(error),
        };
        trails.push(TrailPosture {
            name: trail.name.unwrap_or(arn),
            multi_region: trail.is_multi_region_trail.unwrap_or(false),
            log_validation: trail.log_file_validation_enabled.unwrap_or(false),
            logging: status.is_logging.unwrap_or(false),
        });
    }
    Ok(trails)
}

/// Whether a detector of this Region is enabled.
pub(crate) async fn guardduty(clients: &Clients) -> Result<bool> {
    for id in trail::detectors(clients).await? {
        let answer = clients.guardduty.get_detector().detector_id(&id).send().await;
        let detector = answer.map_err(|e| fail("guardduty:GetDetector", &id, e))?;
        if detector.status == Some(DetectorStatus::Enabled) {
            return Ok(true);
        }
    }
    Ok(false)
}

/// VPCs of this Region, and whether each has an active flow log of its own.
pub(crate) async fn flow_logs(clients: &Clients) -> Result<Vec<(String, bool)>> {
    let logs = clients.ec2.describe_flow_logs().max_results(1000).into_paginator().send();
    let (vpcs, logs) =
        tokio::try_join!(vpcs(clients), pages::all("ec2:DescribeFlowLogs", "", logs))?;
    let logged: BTreeSet<_> = logs
        .into_iter()
        .flat_map(|page| page.flow_logs.unwrap_or_default())
        .filter(|log| log.flow_log_status.as_deref() == Some("ACTIVE"))
        .filter_map(|log| log.resource_id)
        .collect();
    Ok(vpcs.into_iter().map(|vpc| (vpc.clone(), logged.contains(&vpc))).collect())
}

/// The ids of this Region's VPCs.
pub(crate) async fn vpcs(clients: &Clients) -> Result<Vec<String>> {
    let stream = clients.ec2.describe_vpcs().max_results(1000).into_paginator().send();
    let pages = pages::all("ec2:DescribeVpcs", "", stream).await?;
    let vpcs = pages.into_iter().flat_map(|page| page.vpcs.unwrap_or_default());
    Ok(vpcs.filter_map(|vpc| vpc.vpc_id).collect())
}

#[cfg(test)]
mod tests {
    use aws_sdk_s3::types::{
        ObjectLockRetentionMode, ServerSideEncryption, ServerSideEncryptionByDefault,
        ServerSideEncryptionRule,
    };

    use super::*;
    use crate::canned::canned;

    #[test]
    fn a_session_stands_for_its_role() {
        let role = |name, plain: &str| Principal::Role { name, plain: plain.to_owned() };
        for (arn, expected) in [
            (
                "arn:aws:sts::123456789012:assumed-role/responder/c-1",
                role("responder", "arn:aws:iam::123456789012:role/responder"),
            ),
            (
                "arn:aws-cn:sts::123456789012:assumed-role/responder/a:b/c",
                role("responder", "arn:aws-cn:iam::123456789012:role/responder"),
            ),
            (
                "arn:aws:iam::123456789012:user/ops/anna",
                Principal::User("arn:aws:iam::123456789012:user/ops/anna"),
            ),
            ("arn:aws:iam::123456789012:root", Principal::Other),
            ("arn:aws:sts::123456789012:federated-user/anna", Principal::Other),
            ("arn:aws:sts::123456789012:assumed-role/responder", Principal::Other),
            ("arn:aws:iam::123456789012:user/", Principal::Other),
            ("responder", Principal::Other),
        ] {
            assert_eq!(principal(arn), expected, "{arn}");
        }
    }

    #[test]
    fn a_retention_is_told_in_days() {
        let of = |days: Option<i32>, years: Option<i32>| {
            translate_retention(
                DefaultRetention::builder()
                    .mode(ObjectLockRetentionMode::Governance)
                    .set_days(days)
                    .set_years(years)
                    .build(),
            )
        };
        let days = |days| Some(Retention { mode: "GOVERNANCE".into(), days });
        assert_eq!(of(Some(30), None), days(30));
        assert_eq!(of(None, Some(2)), days(730));
        assert_eq!(of(None, None), None);
        assert_eq!(of(None, Some(i32::MAX)), None);
    }

    #[test]
    fn public_access_is_blocked_only_by_all_four() {
        let all = PublicAccessBlockConfiguration::builder()
            .block_public_acls(true)
            .ignore_public_acls(true)
            .block_public_policy(true);
        assert!(!blocks_all(&all.clone().build()));
        assert!(!blocks_all(&all.clone().restrict_public_buckets(false).build()));
        assert!(blocks_all(&all.restrict_public_buckets(true).build()));
    }

    #[test]
    fn only_kms_encryption_has_a_key() {
        let of = |algorithm, key: Option<&str>| {
            let default = ServerSideEncryptionByDefault::builder()
                .sse_algorithm(algorithm)
                .set_kms_master_key_id(key.map(str::to_owned))
                .build()
                .expect("an algorithm");
            let rule = ServerSideEncryptionRule::builder()
                .apply_server_side_encryption_by_default(default)
                .build();
            kms_key(
                ServerSideEncryptionConfiguration::builder().rules(rule).build().expect("a rule"),
            )
        };
        let key = "arn:aws:kms:eu-west-1:123456789012:key/1234abcd";
        assert_eq!(of(ServerSideEncryption::AwsKms, Some(key)).as_deref(), Some(key));
        assert_eq!(of(ServerSideEncryption::AwsKms, None).as_deref(), Some("aws/s3"));
        assert_eq!(of(ServerSideEncryption::Aes256, None), None);
    }

    const SESSION: &str = "<GetCallerIdentityResponse><GetCallerIdentityResult>\
        <Arn>arn:aws:sts::123456789012:assumed-role/responder/c-1</Arn>\
        </GetCallerIdentityResult></GetCallerIdentityResponse>";

    #[tokio::test]
    async fn a_simulation_is_about_the_role_with_its_path() {
        let canned = canned(None, |request, _| {
            let body = if request.contains("Action=GetCallerIdentity") {
                SESSION.to_owned()
            } else if request.contains("Action=GetRole") {
                "<GetRoleResponse><GetRoleResult><Role><Path>/ops/</Path><RoleName>responder</RoleName>\
                 <RoleId>AROAEXAMPLE</RoleId><Arn>arn:aws:iam::123456789012:role/ops/responder</Arn>\
                 <CreateDate>2026-01-01T00:00:00Z</CreateDate></Role></GetRoleResult></GetRoleResponse>"
                    .to_owned()
            } else {
                let results: String =
                    [("S3:putobject", "allowed"), ("iam:GetRole", "implicitDeny")]
                        .map(|(action, decision)| {
                            format!(
                                "<member><EvalActionName>{action}</EvalActionName>\
                             <EvalDecision>{decision}</EvalDecision></member>"
                            )
                        })
                        .concat();
                format!(
                    "<SimulatePrincipalPolicyResponse><SimulatePrincipalPolicyResult>\
                     <IsTruncated>false</IsTruncated><EvaluationResults>{results}</EvaluationResults>\
                     </SimulatePrincipalPolicyResult></SimulatePrincipalPolicyResponse>"
                )
            };
            (200, body)
        });
        let actions = ["iam:GetRole".to_owned(), "s3:PutObject".to_owned()];
        let permissions = permissions(&canned.clients, &actions).await.expect("decided");
        let told: Vec<_> = permissions.iter().map(|p| (p.action.as_str(), p.allowed)).collect();
        assert_eq!(told, [("iam:GetRole", false), ("s3:PutObject", true)]);
        let sent = canned.sent().pop().expect("a request");
        assert!(sent.contains(
            "PolicySourceArn=arn%3Aaws%3Aiam%3A%3A123456789012%3Arole%2Fops%2Fresponder"
        ));
    }

    #[tokio::test]
    async fn a_role_that_may_not_look_at_itself_is_taken_to_have_no_path() {
        let canned = canned(None, |request, _| {
            if request.contains("Action=GetCallerIdentity") {
                (200, SESSION.to_owned())
            } else {
                (
                    403,
                    "<ErrorResponse><Error><Code>AccessDenied</Code></Error></ErrorResponse>"
                        .into(),
                )
            }
        });
        let principal = caller_principal(&canned.clients).await;
        assert_eq!(principal.as_deref(), Ok("arn:aws:iam::123456789012:role/responder"));
    }

    /// The configuration that a request asks a bucket for: the name in its query.
    fn asked(request: &str) -> &str {
        let query = request.split_once('?').map_or("", |(_, query)| query);
        query.split(['=', '&', ' ']).next().unwrap_or_default()
    }

    #[tokio::test]
    async fn a_bucket_without_anything_configured_is_weak_and_no_error() {
        let canned = canned(Some("weak"), |request, _| {
            let code = match asked(request) {
                "versioning" => return (200, "<VersioningConfiguration/>".into()),
                "object-lock" => "ObjectLockConfigurationNotFoundError",
                "publicAccessBlock" => "NoSuchPublicAccessBlockConfiguration",
                "encryption" => "ServerSideEncryptionConfigurationNotFoundError",
                "policy" => "NoSuchBucketPolicy",
                other => panic!("{other:?} is not asked for"),
            };
            (404, format!("<Error><Code>{code}</Code></Error>"))
        });
        let expected = BucketPosture {
            versioning: false,
            object_lock: false,
            retention: None,
            public_access_blocked: false,
            key: None,
            policy: None,
        };
        assert_eq!(bucket(&canned.clients).await, Ok(expected));
        assert_eq!(canned.sent().len(), 5);
    }

    #[tokio::test]
    async fn a_strong_bucket_is_told_as_it_is() {
        let canned = canned(Some("evidence"), |request, _| {
            let body = match asked(request) {
                "versioning" => {
                    "<VersioningConfiguration><Status>Enabled</Status></VersioningConfiguration>"
                }
                "object-lock" => {
                    "<ObjectLockConfiguration><ObjectLockEnabled>Enabled</ObjectLockEnabled><Rule>\
                     <DefaultRetention><Mode>COMPLIANCE</Mode><Years>1</Years></DefaultRetention>\
                     </Rule></ObjectLockConfiguration>"
                }
                "publicAccessBlock" => {
                    "<PublicAccessBlockConfiguration><BlockPublicAcls>true</BlockPublicAcls>\
                     <IgnorePublicAcls>true</IgnorePublicAcls><BlockPublicPolicy>true</BlockPublicPolicy>\
                     <RestrictPublicBuckets>true</RestrictPublicBuckets></PublicAccessBlockConfiguration>"
                }
                "encryption" => {
                    "<ServerSideEncryptionConfiguration><Rule><ApplyServerSideEncryptionByDefault>\
                     <SSEAlgorithm>aws:kms</SSEAlgorithm><KMSMasterKeyID>k</KMSMasterKeyID>\
                     </ApplyServerSideEncryptionByDefault></Rule></ServerSideEncryptionConfiguration>"
                }
                _ => "{\"Statement\":[]}",
            };
            (200, body.to_owned())
        });
        let expected = BucketPosture {
            versioning: true,
            object_lock: true,
            retention: Some(Retention { mode: "COMPLIANCE".into(), days: 365 }),
            public_access_blocked: true,
            key: Some("k".into()),
            policy: Some("{\"Statement\":[]}".into()),
        };
        assert_eq!(bucket(&canned.clients).await, Ok(expected));
    }
}
