//! Stacks over CloudFormation.
//!
//! Purpose: describe, create and delete stacks, and read what happened to them. Touches CloudFormation, and the bucket for
//! the template that a stack is made from. Never decides whether to do something.

use aws_sdk_cloudformation::types::{
    Capability, Parameter, Stack as DescribedStack, StackEvent as DescribedEvent, StackStatus, Tag,
};
use cleanroom_cloud::{
    Change, ErrorKind, Made, Result, STACK_MINUTES, Stack, StackEvent, StackState,
};
use cleanroom_contract::{Sha256, Timestamp};
use sha2::Digest as _;

use crate::{
    clients::Clients,
    ec2::timestamp,
    error::{bad_answer, fail, own},
    iam, pages, store,
};

/// The largest template that a call takes (CloudFormation user guide, "quotas").
const MOST_TEMPLATE: usize = 51_200;

/// Whether an error says that there is no such stack: CloudFormation has no code of its own for this.
pub(crate) fn is_gone(error: &cleanroom_cloud::CloudError) -> bool {
    error.code == "ValidationError" && error.message.contains("does not exist")
}

/// The stack of this name; none where there is no such stack.
pub(crate) async fn find(clients: &Clients, name: &str) -> Result<Option<Stack>> {
    const OPERATION: &str = "cloudformation:DescribeStacks";
    let answer = clients.cloudformation.describe_stacks().stack_name(name).send().await;
    let answer = match answer.map_err(|e| fail(OPERATION, name, e)) {
        Ok(answer) => answer,
        Err(error) if is_gone(&error) => return Ok(None),
        Err(error) => return Err(error),
    };
    let found = answer.stacks.unwrap_or_default().into_iter().next();
    found.map_or(Ok(None), |found| stack(OPERATION, name, found))
}

/// How far a stack is; none for one that is deleted.
fn state(status: &StackStatus) -> Option<StackState> {
    use StackStatus as S;
    Some(match status {
        S::CreateInProgress | S::ReviewInProgress => StackState::Creating,
        S::RollbackInProgress => StackState::RollingBack,
        S::CreateFailed | S::RollbackComplete | S::RollbackFailed => StackState::Failed,
        S::DeleteInProgress => StackState::Deleting,
        S::DeleteFailed => StackState::DeleteFailed,
        S::DeleteComplete => return None,
        // Updated or imported into by somebody: it was made, and stands.
        _ => StackState::Created,
    })
}

/// A stack in our words.
fn stack(operation: &'static str, name: &str, found: DescribedStack) -> Result<Option<Stack>> {
    let status = found.stack_status.ok_or_else(|| bad_answer(operation, name, "StackStatus"))?;
    let Some(state) = state(&status) else { return Ok(None) };
    let parameters = found.parameters.unwrap_or_default().into_iter();
    let outputs = found.outputs.unwrap_or_default().into_iter();
    let tags = found.tags.unwrap_or_default().into_iter();
    Ok(Some(Stack {
        id: found.stack_id.ok_or_else(|| bad_answer(operation, name, "StackId"))?,
        name: found.stack_name.unwrap_or_else(|| name.to_owned()),
        state,
        status: status.as_str().to_owned(),
        reason: found.stack_status_reason,
        created: found.creation_time.map(timestamp).unwrap_or_default(),
        parameters: parameters
            .filter_map(|p| Some((p.parameter_key?, p.parameter_value?)))
            .collect(),
        outputs: outputs.filter_map(|o| Some((o.output_key?, o.output_value?))).collect(),
        tags: tags.filter_map(|t| Some((t.key?, t.value?))).collect(),
    }))
}

/// What happened to a stack, newest last.
pub(crate) async fn events(clients: &Clients, stack: &str) -> Result<Vec<StackEvent>> {
    const OPERATION: &str = "cloudformation:DescribeStackEvents";
    let call = clients.cloudformation.describe_stack_events();
    let stream = call.stack_name(stack).into_paginator().send();
    let pages = pages::all(OPERATION, stack, stream).await?;
    let events = pages.into_iter().flat_map(|page| page.stack_events.unwrap_or_default());
    let mut events: Vec<_> = events.map(event).collect();
    events.reverse();
    Ok(events)
}

fn event(found: DescribedEvent) -> StackEvent {
    StackEvent {
        at: found.timestamp.map_or_else(Timestamp::default, timestamp),
        resource: found.logical_resource_id.unwrap_or_default(),
        kind: found.resource_type.unwrap_or_default(),
        status: found.resource_status.map(|s| s.as_str().to_owned()).unwrap_or_default(),
        reason: found.resource_status_reason,
    }
}

/// Creates and deletes stacks.
pub(crate) async fn apply(clients: &Clients, change: &Change) -> Result<Made> {
    match change {
        Change::CreateStack { .. } => create(clients, change).await,
        Change::DeleteStack { name, id, token } => {
            const OPERATION: &str = "cloudformation:DeleteStack";
            let call = clients.cloudformation.delete_stack().stack_name(id);
            let answer = call.client_request_token(token).send().await;
            match answer.map_err(|e| fail(OPERATION, name, e)) {
                Err(error) if !is_gone(&error) => Err(error),
                _ => Ok(Made::Nothing),
            }
        }
        _ => Err(iam::foreign(change)),
    }
}

async fn create(clients: &Clients, change: &Change) -> Result<Made> {
    const OPERATION: &str = "cloudformation:CreateStack";
    let Change::CreateStack { name, template, template_sha256, parameters, tags, role, token } =
        change
    else {
        return Err(iam::foreign(change));
    };
    let body = template_of(clients, template, template_sha256).await?;
    let parameters = parameters
        .iter()
        .map(|(key, value)| Parameter::builder().parameter_key(key).parameter_value(value).build());
    let tags = tags.iter().map(|(key, value)| Tag::builder().key(key).value(value).build());
    let call = clients.cloudformation.create_stack();
    let call =
        call.stack_name(name).template_body(body).capabilities(Capability::CapabilityNamedIam);
    let call = call.set_parameters(Some(parameters.collect())).set_tags(Some(tags.collect()));
    let call = call.set_role_arn(role.clone()).timeout_in_minutes(STACK_MINUTES.into());
    let answer = call.client_request_token(token).send().await;
    let answer = answer.map_err(|e| fail(OPERATION, name, e))?;
    Ok(Made::Stack(answer.stack_id.ok_or_else(|| bad_answer(OPERATION, name, "StackId"))?))
}

/// A template out of the bucket, which must be the one that was meant.
async fn template_of(clients: &Clients, key: &str, sha256: &Sha256) -> Result<String> {
    const OPERATION: &str = "s3:GetObject";
    let refuse =
        |message: String| own(OPERATION, key, ErrorKind::Refused, "OtherTemplate", message);
    let bytes = store::get(clients, key).await?;
    let bytes = bytes.ok_or_else(|| refuse("the template is not there".to_owned()))?;
    if Sha256(sha2::Sha256::digest(&bytes).into()) != *sha256 {
        return Err(refuse(format!("the template is not the one of SHA-256 {sha256}")));
    }
    if bytes.len() > MOST_TEMPLATE {
        return Err(refuse(format!("the template is larger than {MOST_TEMPLATE} bytes")));
    }
    String::from_utf8(bytes).map_err(|_| refuse("the template is no text".to_owned()))
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use super::*;
    use crate::canned::canned;

    const TEMPLATE: &str = "Resources: {}";

    fn creation(sha256_of: &str) -> Change {
        Change::CreateStack {
            name: "cleanroom-c-1".to_owned(),
            template: "templates/x/clean-room.yaml".to_owned(),
            template_sha256: Sha256(sha2::Sha256::digest(sha256_of).into()),
            parameters: BTreeMap::from([("Case".to_owned(), "c-1".to_owned())]),
            tags: BTreeMap::from([("cleanroom:case".to_owned(), "c-1".to_owned())]),
            role: Some("arn:aws:iam::123456789012:role/room-maker".to_owned()),
            token: "cleanroom-create-0".to_owned(),
        }
    }

    fn answered(request: &str) -> (u16, String) {
        if request.contains("templates/") {
            return (200, TEMPLATE.to_owned());
        }
        let id = "<StackId>arn:aws:cloudformation:eu-west-1:123456789012:stack/cleanroom-c-1/1</StackId>";
        (
            200,
            format!(
                "<CreateStackResponse><CreateStackResult>{id}</CreateStackResult></CreateStackResponse>"
            ),
        )
    }

    #[tokio::test]
    async fn a_stack_is_made_of_the_template_that_was_meant_in_the_role_that_was_given() {
        let canned = canned(Some("evidence"), |request, _| answered(request));
        let made = apply(&canned.clients, &creation(TEMPLATE)).await.expect("made");
        assert!(matches!(&made, Made::Stack(id) if id.ends_with("/cleanroom-c-1/1")), "{made:?}");
        let sent = canned.sent();
        assert_eq!(sent.len(), 2, "{sent:?}");
        for part in [
            "Action=CreateStack",
            "TemplateBody=Resources%3A%20%7B%7D",
            "ParameterKey=Case",
            "RoleARN=arn%3Aaws%3Aiam",
            "ClientRequestToken=cleanroom-create-0",
            "TimeoutInMinutes=90",
            "CAPABILITY_NAMED_IAM",
            "cleanroom%3Acase",
        ] {
            assert!(sent[1].contains(part), "{part}: {}", sent[1]);
        }
        let error = apply(&canned.clients, &creation("another")).await.expect_err("another");
        assert_eq!((error.code.as_str(), canned.sent().len()), ("OtherTemplate", 3));
    }

    #[tokio::test]
    async fn a_name_that_is_taken_is_a_conflict_and_a_stack_that_is_gone_is_deleted() {
        let canned = canned(Some("evidence"), |request, _| {
            let (code, message) = if request.contains("Action=DeleteStack") {
                ("ValidationError", "Stack with id x does not exist")
            } else if request.contains("templates/") {
                return (200, TEMPLATE.to_owned());
            } else {
                ("AlreadyExistsException", "Stack [cleanroom-c-1] already exists")
            };
            let error = format!("<Code>{code}</Code><Message>{message}</Message>");
            (400, format!("<ErrorResponse><Error>{error}</Error></ErrorResponse>"))
        });
        let error = apply(&canned.clients, &creation(TEMPLATE)).await.expect_err("it is taken");
        assert_eq!(error.kind, ErrorKind::Conflict);
        let deletion = Change::DeleteStack {
            name: "cleanroom-c-1".to_owned(),
            id: "arn:x".to_owned(),
            token: "t".to_owned(),
        };
        assert_eq!(apply(&canned.clients, &deletion).await, Ok(Made::Nothing));
    }

    #[tokio::test]
    async fn a_stack_that_fails_on_a_quota_tells_of_it_in_its_events_newest_last() {
        // CloudFormation API reference, DescribeStackEvents: reverse chronological order.
        let canned = canned(None, |request, _| {
            let page = if request.contains("NextToken=more") {
                "<StackEvents><member><LogicalResourceId>cleanroom-c-1</LogicalResourceId>\
                 <ResourceType>AWS::CloudFormation::Stack</ResourceType>\
                 <ResourceStatus>CREATE_IN_PROGRESS</ResourceStatus></member></StackEvents>"
            } else {
                "<StackEvents><member><LogicalResourceId>Room</LogicalResourceId>\
                 <ResourceType>AWS::EC2::Instance</ResourceType><ResourceStatus>CREATE_FAILED</ResourceStatus>\
                 <ResourceStatusReason>Resource creation cancelled</ResourceStatusReason></member>\
                 <member><LogicalResourceId>RoomVpc</LogicalResourceId><ResourceType>AWS::EC2::VPC</ResourceType>\
                 <ResourceStatus>CREATE_FAILED</ResourceStatus>\
                 <ResourceStatusReason>The maximum number of VPCs has been reached.</ResourceStatusReason></member>\
                 </StackEvents><NextToken>more</NextToken>"
            };
            (
                200,
                format!(
                    "<DescribeStackEventsResponse><DescribeStackEventsResult>{page}</DescribeStackEventsResult></DescribeStackEventsResponse>"
                ),
            )
        });
        let events = events(&canned.clients, "cleanroom-c-1").await.expect("two pages");
        let told: Vec<_> = events.iter().map(|e| e.resource.as_str()).collect();
        assert_eq!(told, ["cleanroom-c-1", "RoomVpc", "Room"]);
        let first = cleanroom_cloud::first_failure("cleanroom-c-1", &events).expect("a failure");
        assert_eq!(first.resource, "RoomVpc");
    }

    #[tokio::test]
    async fn what_is_deleted_or_never_was_is_not_there() {
        let canned = canned(None, |request, _| {
            if request.contains("StackName=never") {
                let error = "<Code>ValidationError</Code><Message>Stack with id never does not exist</Message>";
                return (400, format!("<ErrorResponse><Error>{error}</Error></ErrorResponse>"));
            }
            let status = if request.contains("StackName=gone") {
                "DELETE_COMPLETE"
            } else {
                "ROLLBACK_COMPLETE"
            };
            let stack = format!(
                "<StackId>arn:x</StackId><StackName>s</StackName><StackStatus>{status}</StackStatus>\
                 <Parameters><member><ParameterKey>Case</ParameterKey><ParameterValue>c-1</ParameterValue></member></Parameters>\
                 <Outputs><member><OutputKey>Room</OutputKey><OutputValue>i-1</OutputValue></member></Outputs>\
                 <Tags><member><Key>cleanroom:case</Key><Value>c-1</Value></member></Tags>"
            );
            (
                200,
                format!(
                    "<DescribeStacksResponse><DescribeStacksResult><Stacks><member>{stack}</member></Stacks></DescribeStacksResult></DescribeStacksResponse>"
                ),
            )
        });
        for name in ["never", "gone"] {
            assert_eq!(find(&canned.clients, name).await, Ok(None), "{name}");
        }
        let stack = find(&canned.clients, "s").await.expect("an answer").expect("a stack");
        assert_eq!((stack.state, stack.status.as_str()), (StackState::Failed, "ROLLBACK_COMPLETE"));
        assert_eq!(
            (stack.parameters["Case"].as_str(), stack.outputs["Room"].as_str()),
            ("c-1", "i-1")
        );
        assert_eq!(stack.tags["cleanroom:case"], "c-1");
    }

    #[test]
    fn every_status_is_a_state() {
        for (status, expected) in [
            ("CREATE_IN_PROGRESS", Some(StackState::Creating)),
            ("CREATE_COMPLETE", Some(StackState::Created)),
            ("UPDATE_ROLLBACK_COMPLETE", Some(StackState::Created)),
            ("CREATE_FAILED", Some(StackState::Failed)),
            ("ROLLBACK_FAILED", Some(StackState::Failed)),
            ("ROLLBACK_IN_PROGRESS", Some(StackState::RollingBack)),
            ("DELETE_IN_PROGRESS", Some(StackState::Deleting)),
            ("DELETE_FAILED", Some(StackState::DeleteFailed)),
            ("DELETE_COMPLETE", None),
        ] {
            assert_eq!(state(&StackStatus::from(status)), expected, "{status}");
        }
    }
}
