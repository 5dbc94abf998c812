//! Carries out changes.
//!
//! Purpose: every [`Change`] as the call it stands for, so that doing it again, after an answer that was lost or a run that
//! was cut short, ends where doing it once does. Touches EC2 here; Auto Scaling, load balancers and IAM through their
//! modules. Never decides whether to do something, and never does more than it is told.

mod connections;
mod drill;
mod evidence;
#[cfg(test)]
mod tests;

use async_trait::async_trait;
use aws_sdk_ec2::{
    Client,
    types::{
        AttributeBooleanValue, AttributeValue, EbsInstanceBlockDeviceSpecification,
        IamInstanceProfileSpecification, InstanceBlockDeviceMappingSpecification,
        InstanceMetadataEndpointState, ResourceType, Tag, TagSpecification,
    },
};
use cleanroom_cloud::{AssociationId, Change, CloudError, ErrorKind, Hands, Made, Result, Tags};
use cleanroom_contract::InstanceId;

use crate::{
    Aws, balancing,
    clients::Clients,
    ec2::instances,
    error::{bad_answer, fail},
    iam, keys, scaling, stacks,
};

#[async_trait]
impl Hands for Aws {
    async fn apply(&self, change: &Change) -> Result<Made> {
        let clients = &self.clients;
        // Locking again would begin the time anew, so a lost answer is for the caller to look into.
        let once = change.creates() || matches!(change, Change::LockSnapshot { .. });
        carry_out(clients, if once { &clients.ec2_once } else { &clients.ec2 }, change).await
    }

    async fn apply_first(&self, change: &Change) -> Result<Made> {
        carry_out(&self.clients, &self.clients.ec2_first, change).await
    }
}

/// One change, over the given client where it is EC2's.
async fn carry_out(clients: &Clients, ec2: &Client, change: &Change) -> Result<Made> {
    use Change as C;
    match change {
        C::DetachFromGroup { .. }
        | C::AttachToGroup { .. }
        | C::SetScaleInProtection { .. }
        | C::SuspendProcesses { .. }
        | C::ResumeProcesses { .. }
        | C::Heartbeat { .. } => scaling::apply(clients, change).await,
        C::DeregisterTarget { .. }
        | C::RegisterTarget { .. }
        | C::DeregisterClassic { .. }
        | C::RegisterClassic { .. } => balancing::apply(clients, change).await,
        C::PutRolePolicy { .. }
        | C::DeleteRolePolicy { .. }
        | C::SetAccessKey { .. }
        | C::PutUserPolicy { .. } => iam::apply(clients, change).await,
        C::SetTerminationProtection { .. }
        | C::SetStopProtection { .. }
        | C::SetShutdownBehavior { .. }
        | C::SetDeleteOnTermination { .. }
        | C::SetMetadataEndpoint { .. } => guard(ec2, change).await,
        C::CreateSnapshots { .. }
        | C::CreateSnapshot { .. }
        | C::LockSnapshot { .. }
        | C::CopySnapshot { .. }
        | C::CopyFromAccount { .. }
        | C::ShareSnapshot { .. }
        | C::RegisterImage { .. }
        | C::CreateImage { .. } => evidence::apply(clients, ec2, change).await,
        C::CreateGroup { .. }
        | C::EmptyGroup { .. }
        | C::OpenGroup { .. }
        | C::DeleteGroup { .. }
        | C::SetGroups { .. }
        | C::DisassociateAddress { .. }
        | C::AssociateAddress { .. }
        | C::SetAutoPublicAddress { .. }
        | C::CreateAclEntry { .. }
        | C::DeleteAclEntry { .. } => connections::apply(clients, ec2, change).await,
        C::DisassociateProfile { instance, association, .. } => {
            disassociate_profile(clients, ec2, instance, association).await
        }
        C::AssociateProfile { instance, profile } => {
            associate_profile(clients, ec2, instance, profile).await
        }
        C::GrantKey { .. } => keys::apply(clients, change).await,
        C::CreateStack { .. } | C::DeleteStack { .. } => stacks::apply(clients, change).await,
        C::RunDrill { .. } | C::TerminateDrill { .. } | C::DeleteDrillSnapshot { .. } => {
            drill::apply(clients, ec2, change).await
        }
        C::PutTags { resource, tags } => put_tags(ec2, resource, tags).await,
        C::RemoveTags { resource, keys } => {
            let keys = keys.iter().map(|key| Tag::builder().key(key).build()).collect();
            let call = ec2.delete_tags().resources(resource).set_tags(Some(keys));
            done(call.send().await.map_err(|error| fail("ec2:DeleteTags", resource, error)))
        }
    }
}

/// A call whose answer says nothing but that it was done.
fn done<T>(answer: Result<T>) -> Result<Made> {
    answer.map(|_| Made::Nothing)
}

/// As [`done`], where the thing not being there is the end that was wanted.
fn gone<T>(answer: Result<T>) -> Result<Made> {
    match answer {
        Err(error) if error.kind == ErrorKind::NotFound => Ok(Made::Nothing),
        answer => done(answer),
    }
}

/// Tags for what a call makes.
fn tagged(kind: ResourceType, tags: &Tags) -> Option<Vec<TagSpecification>> {
    let tags: Vec<Tag> = sdk_tags(tags);
    (!tags.is_empty())
        .then(|| vec![TagSpecification::builder().resource_type(kind).set_tags(Some(tags)).build()])
}

/// Tags as the SDK has them.
fn sdk_tags(tags: &Tags) -> Vec<Tag> {
    tags.iter().map(|(key, value)| Tag::builder().key(key).value(value).build()).collect()
}

/// Tags something.
async fn put_tags(ec2: &Client, resource: &str, tags: &Tags) -> Result<Made> {
    let call = ec2.create_tags().resources(resource).set_tags(Some(sdk_tags(tags)));
    done(call.send().await.map_err(|error| fail("ec2:CreateTags", resource, error)))
}

/// What keeps an instance, and what it may ask the metadata service.
async fn guard(ec2: &Client, change: &Change) -> Result<Made> {
    use Change as C;
    const MODIFY: &str = "ec2:ModifyInstanceAttribute";
    let boolean = |on: bool| AttributeBooleanValue::builder().value(on).build();
    let call = ec2.modify_instance_attribute();
    let (instance, call) = match change {
        C::SetTerminationProtection { instance, on } => {
            (instance, call.disable_api_termination(boolean(*on)))
        }
        C::SetStopProtection { instance, on } => (instance, call.disable_api_stop(boolean(*on))),
        C::SetShutdownBehavior { instance, terminate } => {
            let value = if *terminate { "terminate" } else { "stop" };
            let value = AttributeValue::builder().value(value).build();
            (instance, call.instance_initiated_shutdown_behavior(value))
        }
        C::SetDeleteOnTermination { instance, device, volume, on } => {
            let ebs = EbsInstanceBlockDeviceSpecification::builder()
                .volume_id(volume.as_str())
                .delete_on_termination(*on);
            let mapping = InstanceBlockDeviceMappingSpecification::builder()
                .device_name(device)
                .ebs(ebs.build());
            (instance, call.block_device_mappings(mapping.build()))
        }
        C::SetMetadataEndpoint { instance, on } => {
            let state = if *on {
                InstanceMetadataEndpointState::Enabled
            } else {
                InstanceMetadataEndpointState::Disabled
            };
            let call = ec2.modify_instance_metadata_options().instance_id(instance.as_str());
            let answer = call.http_endpoint(state).send().await;
            return done(
                answer.map_err(|e| fail("ec2:ModifyInstanceMetadataOptions", instance, e)),
            );
        }
        _ => return Err(iam::foreign(change)),
    };
    let answer = call.instance_id(instance.as_str()).send().await;
    done(answer.map_err(|error| fail(MODIFY, instance, error)))
}

/// Takes a profile off. An association that is going already is no error.
async fn disassociate_profile(
    clients: &Clients,
    ec2: &Client,
    instance: &InstanceId,
    association: &AssociationId,
) -> Result<Made> {
    const OPERATION: &str = "ec2:DisassociateIamInstanceProfile";
    let call = ec2.disassociate_iam_instance_profile().association_id(association.as_str());
    match call.send().await.map_err(|error| fail(OPERATION, instance, error)) {
        Err(error) if error.kind == ErrorKind::Refused => {
            let there = instances::profile_associations(clients, instance).await?;
            if there.iter().any(|a| a.active && a.id == *association) {
                return Err(error);
            }
            Ok(Made::Nothing)
        }
        answer => gone(answer),
    }
}

/// Puts a profile on. One that is on already is no error; another one in its place is.
async fn associate_profile(
    clients: &Clients,
    ec2: &Client,
    instance: &InstanceId,
    profile: &str,
) -> Result<Made> {
    const OPERATION: &str = "ec2:AssociateIamInstanceProfile";
    let named = IamInstanceProfileSpecification::builder();
    let named = if profile.starts_with("arn:") { named.arn(profile) } else { named.name(profile) };
    let call = ec2.associate_iam_instance_profile().iam_instance_profile(named.build());
    let answer = call.instance_id(instance.as_str()).send().await;
    match answer.map_err(|error| fail(OPERATION, instance, error)) {
        Ok(answer) => {
            let association = answer.iam_instance_profile_association;
            let id = association.and_then(|association| association.association_id);
            let id = id.ok_or_else(|| bad_answer(OPERATION, instance, "associationId"))?;
            Ok(Made::Association(AssociationId::from(id)))
        }
        Err(error) if matches!(error.kind, ErrorKind::Refused | ErrorKind::Conflict) => {
            let there = instances::profile_associations(clients, instance).await?;
            let same = there.into_iter().find(|a| {
                let name = a.profile.rsplit('/').next();
                a.active && (a.profile == profile || name == Some(profile))
            });
            // One that is still coming off is in the way for some seconds: asked again, it is gone.
            let passing = error.code == "IncorrectState";
            same.map(|a| Made::Association(a.id)).ok_or(if passing {
                CloudError { kind: ErrorKind::Throttled, ..error }
            } else {
                error
            })
        }
        Err(error) => Err(error),
    }
}
