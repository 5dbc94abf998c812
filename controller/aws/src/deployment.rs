//! Setting the response stack up, over S3 and CloudFormation.
//!
//! Purpose: the [`Deployment`] port: the bucket of the artifacts, and change sets. Touches one bucket's settings, which it
//! made, and change sets of the stack that it is told. Never decides whether to carry one out.

use async_trait::async_trait;
use aws_sdk_cloudformation::types::{
    Capability, Change, ChangeSetStatus, ChangeSetType, Parameter,
};
use aws_sdk_s3::types::{
    BucketLocationConstraint, BucketVersioningStatus, CreateBucketConfiguration,
    PublicAccessBlockConfiguration, ServerSideEncryption, ServerSideEncryptionByDefault,
    ServerSideEncryptionConfiguration, ServerSideEncryptionRule, VersioningConfiguration,
};
use cleanroom_cloud::{
    AccountId, BucketState, ChangeSet, Deployment, ErrorKind, Proposed, Result, StackChange,
};

use crate::{
    Aws,
    clients::Clients,
    error::{bad_answer, fail, own},
    pages, stacks,
};

/// The Region whose buckets are made without naming it (`CreateBucket`).
const FIRST_REGION: &str = "us-east-1";

#[async_trait]
impl Deployment for Aws {
    async fn bucket(&self, bucket: &str, owner: &AccountId) -> Result<BucketState> {
        const OPERATION: &str = "s3:HeadBucket";
        let s3 = &self.clients.s3;
        let head = s3.head_bucket().bucket(bucket).expected_bucket_owner(owner.as_str());
        match head.send().await.map_err(|e| fail(OPERATION, bucket, e)) {
            Ok(_) => {}
            Err(error) if error.kind == ErrorKind::NotFound => return Ok(BucketState::Absent),
            Err(error) => return Err(error),
        }
        const POLICY: &str = "s3:GetBucketPolicy";
        let policy = s3.get_bucket_policy().bucket(bucket).expected_bucket_owner(owner.as_str());
        match policy.send().await.map_err(|e| fail(POLICY, bucket, e)) {
            Ok(_) => Ok(BucketState::There),
            Err(error) if error.code == "NoSuchBucketPolicy" => Ok(BucketState::Bare),
            Err(error) => Err(error),
        }
    }

    async fn make_bucket(&self, bucket: &str, owner: &AccountId) -> Result<()> {
        create(&self.clients, bucket).await?;
        secure(&self.clients, bucket, owner.as_str()).await
    }

    async fn propose(&self, proposed: &Proposed) -> Result<String> {
        const OPERATION: &str = "cloudformation:CreateChangeSet";
        let parameters = proposed.parameters.iter();
        let parameters = parameters
            .map(|(name, value)| Parameter::builder().parameter_key(name).parameter_value(value));
        let parameters = parameters.map(|parameter| parameter.build()).collect();
        let kind = if proposed.create { ChangeSetType::Create } else { ChangeSetType::Update };
        let call = self.clients.cloudformation.create_change_set();
        let call = call.stack_name(&proposed.stack).change_set_name(&proposed.name);
        let call = call.change_set_type(kind).client_token(&proposed.name);
        // Its roles and policies have names of CloudFormation's own choice.
        let call = call.capabilities(Capability::CapabilityIam).set_parameters(Some(parameters));
        let region = &self.clients.region;
        let call = call.template_url(address(region, &proposed.bucket, &proposed.template));
        let answer = call.send().await.map_err(|e| fail(OPERATION, &proposed.stack, e))?;
        answer.id.ok_or_else(|| bad_answer(OPERATION, &proposed.stack, "Id"))
    }

    async fn change_set(&self, id: &str) -> Result<ChangeSet> {
        const OPERATION: &str = "cloudformation:DescribeChangeSet";
        let mut changes = Vec::new();
        let mut next = None;
        for _ in 0..pages::MAX_PAGES {
            let call = self.clients.cloudformation.describe_change_set().change_set_name(id);
            let page = call.set_next_token(next.take()).send().await;
            let page = page.map_err(|e| fail(OPERATION, id, e))?;
            let reason = page.status_reason.unwrap_or_default();
            match page.status {
                Some(ChangeSetStatus::CreateComplete) => {}
                Some(ChangeSetStatus::CreatePending | ChangeSetStatus::CreateInProgress) => {
                    return Ok(ChangeSet::Pending);
                }
                Some(ChangeSetStatus::Failed) if is_empty(&reason) => return Ok(ChangeSet::Empty),
                status => {
                    let status = status.map(|s| s.as_str().to_owned()).unwrap_or_default();
                    let why = if reason.is_empty() { status } else { reason };
                    return Ok(ChangeSet::Failed(why));
                }
            }
            changes.extend(page.changes.unwrap_or_default().into_iter().filter_map(change));
            match page.next_token.filter(|token| !token.is_empty()) {
                Some(token) => next = Some(token),
                None => return Ok(ChangeSet::Ready(changes)),
            }
        }
        Err(own(OPERATION, id, ErrorKind::Other, "TooMany", "it has no end of changes"))
    }

    async fn execute(&self, id: &str, token: &str) -> Result<()> {
        const OPERATION: &str = "cloudformation:ExecuteChangeSet";
        let call = self.clients.cloudformation.execute_change_set().change_set_name(id);
        let call = call.client_request_token(token).retain_except_on_create(true);
        call.send().await.map_err(|e| fail(OPERATION, id, e))?;
        Ok(())
    }

    async fn discard(&self, id: &str) -> Result<()> {
        const OPERATION: &str = "cloudformation:DeleteChangeSet";
        let call = self.clients.cloudformation.delete_change_set().change_set_name(id);
        match call.send().await.map_err(|e| fail(OPERATION, id, e)) {
            Err(error) if error.code != "ChangeSetNotFound" && !stacks::is_gone(&error) => {
                Err(error)
            }
            _ => Ok(()),
        }
    }
}

/// Whether a change set failed because there is nothing to change: CloudFormation has no code for this. Its sentences have
/// been these for years, and tools of AWS's own go by them (AWS CLI, `cloudformation deploy`).
fn is_empty(reason: &str) -> bool {
    ["didn't contain changes", "No updates are to be performed"].iter().any(|t| reason.contains(t))
}

/// The address of an object, as CloudFormation takes it for a template.
fn address(region: &str, bucket: &str, key: &str) -> String {
    let suffix = if region.starts_with("cn-") { "amazonaws.com.cn" } else { "amazonaws.com" };
    format!("https://s3.{region}.{suffix}/{bucket}/{key}")
}

fn change(found: Change) -> Option<StackChange> {
    let found = found.resource_change?;
    Some(StackChange {
        action: found.action.map(|a| a.as_str().to_owned()).unwrap_or_default(),
        resource: found.logical_resource_id.unwrap_or_default(),
        kind: found.resource_type.unwrap_or_default(),
        replacement: found.replacement.map(|r| r.as_str().to_owned()),
        physical: found.physical_resource_id.filter(|id| !id.is_empty()),
    })
}

/// Makes the bucket. One that is this account's already is no error.
async fn create(clients: &Clients, bucket: &str) -> Result<()> {
    const OPERATION: &str = "s3:CreateBucket";
    let region = BucketLocationConstraint::from(clients.region.as_str());
    let place = CreateBucketConfiguration::builder().location_constraint(region).build();
    let place = (clients.region != FIRST_REGION).then_some(place);
    let call = clients.s3.create_bucket().bucket(bucket).set_create_bucket_configuration(place);
    match call.send().await.map_err(|e| fail(OPERATION, bucket, e)) {
        Err(error) if error.code != "BucketAlreadyOwnedByYou" => Err(error),
        _ => Ok(()),
    }
}

/// Sets it up; the policy last, by which a bucket is known whose making was not interrupted. Owners enforced is what every
/// new bucket has.
async fn secure(clients: &Clients, bucket: &str, owner: &str) -> Result<()> {
    let s3 = &clients.s3;
    let block = PublicAccessBlockConfiguration::builder()
        .block_public_acls(true)
        .block_public_policy(true)
        .ignore_public_acls(true)
        .restrict_public_buckets(true)
        .build();
    let call = s3.put_public_access_block().bucket(bucket).expected_bucket_owner(owner);
    let answer = call.public_access_block_configuration(block).send().await;
    answer.map_err(|e| fail("s3:PutPublicAccessBlock", bucket, e))?;

    let on = VersioningConfiguration::builder().status(BucketVersioningStatus::Enabled).build();
    let call = s3.put_bucket_versioning().bucket(bucket).expected_bucket_owner(owner);
    let answer = call.versioning_configuration(on).send().await;
    answer.map_err(|e| fail("s3:PutBucketVersioning", bucket, e))?;

    const ENCRYPTION: &str = "s3:PutBucketEncryption";
    let unfit = |_| own(ENCRYPTION, bucket, ErrorKind::Other, "NotSent", "no such rule can be");
    // Not KMS: Lambda, Step Functions and CloudFormation read it without rights to a key.
    let aes = ServerSideEncryptionByDefault::builder().sse_algorithm(ServerSideEncryption::Aes256);
    let aes = aes.build().map_err(unfit)?;
    let rule = ServerSideEncryptionRule::builder();
    let rule = rule.apply_server_side_encryption_by_default(aes).build();
    let rules = ServerSideEncryptionConfiguration::builder().rules(rule).build().map_err(unfit)?;
    let call = s3.put_bucket_encryption().bucket(bucket).expected_bucket_owner(owner);
    let answer = call.server_side_encryption_configuration(rules).send().await;
    answer.map_err(|e| fail(ENCRYPTION, bucket, e))?;

    let policy = tls_only(&clients.region, bucket);
    let call = s3.put_bucket_policy().bucket(bucket).expected_bucket_owner(owner);
    let answer = call.policy(policy).send().await;
    answer.map_err(|e| fail("s3:PutBucketPolicy", bucket, e))?;
    Ok(())
}

/// The policy of a bucket that is read over TLS only.
fn tls_only(region: &str, bucket: &str) -> String {
    let partition = match region {
        region if region.starts_with("cn-") => "aws-cn",
        region if region.starts_with("us-gov-") => "aws-us-gov",
        _ => "aws",
    };
    let arn = format!("arn:{partition}:s3:::{bucket}");
    serde_json::json!({
        "Version": "2012-10-17",
        "Statement": [{
            "Sid": "OnlyTls", "Effect": "Deny", "Principal": "*", "Action": "s3:*",
            "Resource": [arn, format!("{arn}/*")],
            "Condition": { "Bool": { "aws:SecureTransport": "false" } },
        }],
    })
    .to_string()
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use super::*;
    use crate::canned::{Canned, canned};

    fn port(answer: impl Fn(&str) -> (u16, String) + Send + Sync + 'static) -> (Aws, Canned) {
        let canned = canned(None, move |request, _| answer(request));
        (Aws { clients: canned.clients.clone() }, canned)
    }

    fn error(code: &str, message: &str) -> String {
        format!(
            "<ErrorResponse><Error><Code>{code}</Code><Message>{message}</Message></Error></ErrorResponse>"
        )
    }

    fn owner() -> AccountId {
        "123456789012".into()
    }

    /// A page of `DescribeChangeSet`.
    fn page(inside: &str) -> String {
        format!(
            "<DescribeChangeSetResponse><DescribeChangeSetResult>{inside}</DescribeChangeSetResult></DescribeChangeSetResponse>"
        )
    }

    #[tokio::test]
    async fn a_bucket_is_made_in_its_region_and_closed_with_the_policy_last() {
        let (aws, canned) = port(|_| (200, String::new()));
        aws.make_bucket("artifacts-example", &owner()).await.expect("made");
        let sent = canned.sent();
        assert_eq!(sent.len(), 5, "{sent:#?}");
        assert!(sent[0].contains("<LocationConstraint>eu-west-1"), "{}", sent[0]);
        for (n, part) in [(1, "<RestrictPublicBuckets>true"), (2, "<Status>Enabled"), (3, "AES256")]
        {
            assert!(sent[n].contains(part), "{}", sent[n]);
        }
        assert!(sent[4].contains("aws:SecureTransport"), "{}", sent[4]);
    }

    #[tokio::test]
    async fn a_bucket_is_absent_bare_or_there_and_never_somebody_else_s() {
        for (head, policy, expected) in [
            (404, (200, ""), Some(BucketState::Absent)),
            (200, (404, "NoSuchBucketPolicy"), Some(BucketState::Bare)),
            (200, (200, ""), Some(BucketState::There)),
            (403, (200, ""), None),
        ] {
            let (aws, _canned) = port(move |request| {
                if request.starts_with("HEAD") {
                    return (head, String::new());
                }
                match policy {
                    (200, _) => (200, "{}".to_owned()),
                    (status, code) => {
                        (status, format!("<Error><Code>{code}</Code><Message>x</Message></Error>"))
                    }
                }
            });
            let found = aws.bucket("artifacts-example", &owner()).await;
            match expected {
                Some(state) => assert_eq!(found, Ok(state)),
                None => assert_eq!(found.expect_err("not ours").kind, ErrorKind::Denied),
            }
        }
    }

    #[tokio::test]
    async fn a_change_set_is_asked_for_by_address_and_with_no_more_than_it_needs() {
        let (aws, canned) = port(|_| {
            let id = "<Id>arn:aws:cloudformation:eu-west-1:123456789012:changeSet/n/1</Id>";
            (
                200,
                format!(
                    "<CreateChangeSetResponse><CreateChangeSetResult>{id}</CreateChangeSetResult></CreateChangeSetResponse>"
                ),
            )
        });
        let proposed = Proposed {
            stack: "cleanroom".to_owned(),
            name: "cleanroom-0".to_owned(),
            create: true,
            bucket: "artifacts-example".to_owned(),
            template: "template/0/response.yaml".to_owned(),
            parameters: BTreeMap::from([("LogDays".to_owned(), "90".to_owned())]),
        };
        let id = aws.propose(&proposed).await.expect("begun");
        assert!(id.ends_with("/n/1"), "{id}");
        let sent = &canned.sent()[0];
        for part in [
            "ChangeSetType=CREATE",
            "Capabilities.member.1=CAPABILITY_IAM",
            "ParameterKey=LogDays",
            "TemplateURL=https%3A%2F%2Fs3.eu-west-1.amazonaws.com%2Fartifacts-example%2Ftemplate%2F0%2Fresponse.yaml",
            "ClientToken=cleanroom-0",
        ] {
            assert!(sent.contains(part), "{part}: {sent}");
        }
    }

    #[tokio::test]
    async fn a_change_set_s_pages_are_read_to_the_end_and_an_empty_one_is_no_failure() {
        let (aws, _canned) = port(|request| {
            let member = |action: &str, name: &str, more: &str| {
                format!(
                    "<Status>CREATE_COMPLETE</Status><Changes><member><Type>Resource</Type><ResourceChange><Action>{action}</Action>\
                     <LogicalResourceId>{name}</LogicalResourceId><ResourceType>AWS::S3::Bucket</ResourceType>{more}</ResourceChange></member></Changes>"
                )
            };
            let failed =
                |why: &str| format!("<Status>FAILED</Status><StatusReason>{why}</StatusReason>");
            let inside = if request.contains("NextToken=more") {
                let more =
                    "<Replacement>True</Replacement><PhysicalResourceId>b</PhysicalResourceId>";
                member("Modify", "Evidence", more)
            } else if request.contains("ChangeSetName=empty") {
                failed(
                    "The submitted information didn't contain changes. Submit different information to create a change set.",
                )
            } else if request.contains("ChangeSetName=wrong") {
                failed("Parameters: [X] must have values")
            } else if request.contains("ChangeSetName=early") {
                "<Status>CREATE_PENDING</Status>".to_owned()
            } else {
                member("Add", "IntakeTopic", "") + "<NextToken>more</NextToken>"
            };
            (200, page(&inside))
        });
        let ChangeSet::Ready(changes) = aws.change_set("whole").await.expect("an answer") else {
            panic!("it is ready");
        };
        let told: Vec<_> = changes.iter().map(|c| (&*c.action, c.replacement.as_deref())).collect();
        assert_eq!(told, [("Add", None), ("Modify", Some("True"))]);
        assert_eq!(aws.change_set("empty").await, Ok(ChangeSet::Empty));
        assert_eq!(aws.change_set("early").await, Ok(ChangeSet::Pending));
        let wrong = aws.change_set("wrong").await;
        assert_eq!(wrong, Ok(ChangeSet::Failed("Parameters: [X] must have values".to_owned())));
    }

    #[tokio::test]
    async fn a_change_set_is_carried_out_so_that_a_failed_creation_leaves_nothing() {
        let (aws, canned) = port(|request| {
            if request.contains("Action=DeleteChangeSet") {
                return (400, error("ChangeSetNotFound", "ChangeSet [x] does not exist"));
            }
            (200, "<ExecuteChangeSetResponse/>".to_owned())
        });
        aws.execute("arn:x", "token").await.expect("begun");
        assert!(canned.sent()[0].contains("RetainExceptOnCreate=true"), "{}", canned.sent()[0]);
        aws.discard("arn:x").await.expect("one that is gone is no error");
    }
}
