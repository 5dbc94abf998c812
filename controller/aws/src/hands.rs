//! Carries out changes.
//!
//! Purpose: every [`Change`] as the call it stands for, so that doing it again, after an answer that was lost or a run that
//! was cut short, ends where doing it once does. Touches EC2 here; Auto Scaling, load balancers and IAM through their
//! modules. Never decides whether to do something, and never does more than it is told.

use std::{collections::BTreeMap, time::Duration};

use async_trait::async_trait;
use aws_sdk_ec2::{
    Client,
    types::{
        ArchitectureValues, AttributeBooleanValue, AttributeValue, BlockDeviceMapping,
        CopyTagsFromSource, EbsBlockDevice, EbsInstanceBlockDeviceSpecification,
        IamInstanceProfileSpecification, InstanceBlockDeviceMappingSpecification,
        InstanceMetadataEndpointState, InstanceSpecification, IpPermission, IpRange, Ipv6Range,
        LockMode, ResourceType, RuleAction, SecurityGroupRule, Tag, TagSpecification,
    },
};
use cleanroom_cloud::{
    AclEntry, AclId, AllocationId, AssociationId, Change, CloudError, ErrorKind, GroupId, Hands,
    ImageId, InterfaceId, Made, Result, Tags,
};
use cleanroom_contract::{InstanceId, SnapshotId};

use crate::{
    Aws, balancing,
    clients::Clients,
    ec2::{instances, network, volumes},
    error::{bad_answer, fail},
    facts::filter,
    iam, pages, scaling,
};

/// How often a group that was just made is asked for again, and the first pause: EC2 may not know it everywhere yet.
const GROUP_ATTEMPTS: u32 = 5;
const GROUP_PAUSE: Duration = Duration::from_millis(200);

/// The most rules that one call revokes: a group's own quota never exceeds it.
const RULES: usize = 1000;

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
        | C::RegisterImage { .. }
        | C::CreateImage { .. } => preserve(clients, ec2, change).await,
        C::CreateGroup { .. }
        | C::EmptyGroup { .. }
        | C::OpenGroup { .. }
        | C::DeleteGroup { .. }
        | C::SetGroups { .. }
        | C::DisassociateAddress { .. }
        | C::AssociateAddress { .. }
        | C::SetAutoPublicAddress { .. }
        | C::CreateAclEntry { .. }
        | C::DeleteAclEntry { .. } => connect(clients, ec2, change).await,
        C::DisassociateProfile { instance, association, .. } => {
            disassociate_profile(clients, ec2, instance, association).await
        }
        C::AssociateProfile { instance, profile } => {
            associate_profile(clients, ec2, instance, profile).await
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

/// Snapshots and images.
async fn preserve(clients: &Clients, ec2: &Client, change: &Change) -> Result<Made> {
    use Change as C;
    match change {
        C::CreateSnapshots { instance, description, tags } => {
            match snapshots(ec2, instance, description, tags, true).await {
                Err(error) if tags_refused(&error) => {
                    snapshots(ec2, instance, description, tags, false).await
                }
                answer => answer,
            }
        }
        C::CreateSnapshot { volume, description, tags } => {
            let call = ec2
                .create_snapshot()
                .volume_id(volume.as_str())
                .description(description)
                .set_tag_specifications(tagged(ResourceType::Snapshot, tags));
            let answer = call.send().await;
            let answer = answer.map_err(|error| fail("ec2:CreateSnapshot", volume, error))?;
            Ok(Made::Snapshots(vec![volumes::taken(answer)?]))
        }
        C::LockSnapshot { snapshot, days } => {
            let days = i32::try_from(*days).unwrap_or(i32::MAX);
            let call = ec2.lock_snapshot().snapshot_id(snapshot.as_str());
            let answer = call.lock_mode(LockMode::Governance).lock_duration(days).send().await;
            done(answer.map_err(|error| fail("ec2:LockSnapshot", snapshot, error)))
        }
        C::CopySnapshot { snapshot, key, tags } => {
            copy_snapshot(clients, ec2, snapshot, key, tags).await
        }
        C::RegisterImage { .. } => register_image(ec2, change).await,
        C::CreateImage { instance, name, tags } => {
            let mut specifications = tagged(ResourceType::Image, tags).unwrap_or_default();
            specifications.extend(tagged(ResourceType::Snapshot, tags).unwrap_or_default());
            let call = ec2
                .create_image()
                .instance_id(instance.as_str())
                .name(name)
                .no_reboot(true)
                .set_tag_specifications(Some(specifications).filter(|s| !s.is_empty()));
            let answer = call.send().await;
            let answer = answer.map_err(|error| fail("ec2:CreateImage", instance, error))?;
            made_image("ec2:CreateImage", name, answer.image_id)
        }
        _ => Err(iam::foreign(change)),
    }
}

/// All volumes of an instance at one point in time.
async fn snapshots(
    ec2: &Client,
    instance: &InstanceId,
    description: &str,
    tags: &Tags,
    copy_tags: bool,
) -> Result<Made> {
    const OPERATION: &str = "ec2:CreateSnapshots";
    let all = InstanceSpecification::builder().instance_id(instance.as_str());
    let call = ec2
        .create_snapshots()
        .instance_specification(all.exclude_boot_volume(false).build())
        .description(description)
        .set_tag_specifications(tagged(ResourceType::Snapshot, tags))
        .set_copy_tags_from_source(copy_tags.then_some(CopyTagsFromSource::Volume));
    let answer = call.send().await.map_err(|error| fail(OPERATION, instance, error))?;
    let taken = answer.snapshots.unwrap_or_default();
    let taken: Result<Vec<_>> = taken.into_iter().map(volumes::taken_together).collect();
    Ok(Made::Snapshots(taken?))
}

/// Whether it was for the tags that nothing was made. Whoever owns the instance may own its volumes' tags, and a volume
/// with as many of them as there may be must not keep itself from being preserved.
fn tags_refused(error: &CloudError) -> bool {
    error.kind == ErrorKind::Refused
        && (error.code.contains("Tag") || error.message.to_ascii_lowercase().contains("tag"))
}

/// A copy of a snapshot under another key.
async fn copy_snapshot(
    clients: &Clients,
    ec2: &Client,
    snapshot: &SnapshotId,
    key: &str,
    tags: &Tags,
) -> Result<Made> {
    const OPERATION: &str = "ec2:CopySnapshot";
    let call = ec2
        .copy_snapshot()
        .source_region(&clients.region)
        .source_snapshot_id(snapshot.as_str())
        .description(format!("copy of {snapshot} to a key of its own"))
        .encrypted(true)
        .kms_key_id(key)
        .set_tag_specifications(tagged(ResourceType::Snapshot, tags));
    let answer = call.send().await.map_err(|error| fail(OPERATION, snapshot, error))?;
    let id = answer.snapshot_id.and_then(|id| id.parse().ok());
    Ok(Made::Copy(id.ok_or_else(|| bad_answer(OPERATION, snapshot, "snapshotId"))?))
}

/// An image from snapshots.
async fn register_image(ec2: &Client, change: &Change) -> Result<Made> {
    const OPERATION: &str = "ec2:RegisterImage";
    let Change::RegisterImage { name, architecture, root_device, devices, tags } = change else {
        return Err(iam::foreign(change));
    };
    let call = ec2
        .register_image()
        .name(name)
        .architecture(ArchitectureValues::from(architecture.as_str()))
        .root_device_name(root_device)
        .virtualization_type("hvm")
        .ena_support(true)
        .set_block_device_mappings(Some(mappings(devices)))
        .set_tag_specifications(tagged(ResourceType::Image, tags));
    let answer = call.send().await.map_err(|error| fail(OPERATION, name, error))?;
    made_image(OPERATION, name, answer.image_id)
}

/// Devices and what is on them.
fn mappings(devices: &BTreeMap<String, SnapshotId>) -> Vec<BlockDeviceMapping> {
    devices
        .iter()
        .map(|(device, snapshot)| {
            let ebs = EbsBlockDevice::builder().snapshot_id(snapshot.as_str()).build();
            BlockDeviceMapping::builder().device_name(device).ebs(ebs).build()
        })
        .collect()
}

/// The image that an answer names.
fn made_image(operation: &'static str, name: &str, image: Option<String>) -> Result<Made> {
    let image = image.ok_or_else(|| bad_answer(operation, name, "imageId"))?;
    Ok(Made::Image(ImageId::from(image)))
}

/// Groups, addresses and network ACLs.
async fn connect(clients: &Clients, ec2: &Client, change: &Change) -> Result<Made> {
    use Change as C;
    match change {
        C::CreateGroup { .. } => create_group(ec2, change).await,
        C::EmptyGroup { group } => empty_group(ec2, group).await,
        C::OpenGroup { group } => {
            tokio::try_join!(allow_in(ec2, group, everyone()), allow_out(ec2, group, everyone()))?;
            Ok(Made::Nothing)
        }
        C::DeleteGroup { group } => {
            let answer = ec2.delete_security_group().group_id(group.as_str()).send().await;
            gone(answer.map_err(|error| fail("ec2:DeleteSecurityGroup", group, error)))
        }
        C::SetGroups { interface, groups } => {
            let groups = groups.iter().map(ToString::to_string).collect();
            let call = ec2.modify_network_interface_attribute().set_groups(Some(groups));
            let answer = call.network_interface_id(interface.as_str()).send().await;
            done(answer.map_err(|e| fail("ec2:ModifyNetworkInterfaceAttribute", interface, e)))
        }
        C::SetAutoPublicAddress { interface, on } => {
            let call = ec2.modify_network_interface_attribute().associate_public_ip_address(*on);
            let answer = call.network_interface_id(interface.as_str()).send().await;
            done(answer.map_err(|e| fail("ec2:ModifyNetworkInterfaceAttribute", interface, e)))
        }
        C::DisassociateAddress { association, interface, .. } => {
            let call = ec2.disassociate_address().association_id(association.as_str());
            let answer = call.send().await;
            gone(answer.map_err(|error| fail("ec2:DisassociateAddress", interface, error)))
        }
        C::AssociateAddress { allocation, interface, private } => {
            associate_address(ec2, allocation, interface, private).await
        }
        C::CreateAclEntry { acl, entry } => create_acl_entry(clients, ec2, acl, entry).await,
        C::DeleteAclEntry { acl, number, egress } => {
            let call = ec2.delete_network_acl_entry().network_acl_id(acl.as_str());
            let answer = call.rule_number(*number).egress(*egress).send().await;
            gone(answer.map_err(|error| fail("ec2:DeleteNetworkAclEntry", acl, error)))
        }
        _ => Err(iam::foreign(change)),
    }
}

/// A new group, with the rules that EC2 gives every new group.
async fn create_group(ec2: &Client, change: &Change) -> Result<Made> {
    const OPERATION: &str = "ec2:CreateSecurityGroup";
    let Change::CreateGroup { vpc, name, description, tags } = change else {
        return Err(iam::foreign(change));
    };
    let call = ec2
        .create_security_group()
        .vpc_id(vpc.as_str())
        .group_name(name)
        .description(description)
        .set_tag_specifications(tagged(ResourceType::SecurityGroup, tags));
    let answer = call.send().await.map_err(|error| fail(OPERATION, name, error))?;
    let group = answer.group_id.ok_or_else(|| bad_answer(OPERATION, name, "groupId"))?;
    Ok(Made::Group(GroupId::from(group)))
}

/// Revokes every rule of a group. Its rules are read first, since new groups allow all traffic out in ways that differ
/// between VPCs; a rule that goes meanwhile makes it read again.
async fn empty_group(ec2: &Client, group: &GroupId) -> Result<Made> {
    let mut pause = GROUP_PAUSE;
    for attempt in 1..=GROUP_ATTEMPTS {
        match revoke_all(ec2, group).await {
            Err(error) if error.kind == ErrorKind::NotFound && attempt < GROUP_ATTEMPTS => {
                tokio::time::sleep(pause).await;
                pause *= 2;
            }
            answer => return done(answer),
        }
    }
    Ok(Made::Nothing)
}

/// Reads a group's rules and revokes them, both directions at once.
async fn revoke_all(ec2: &Client, group: &GroupId) -> Result<()> {
    let rules = rules(ec2, group).await?;
    let ids = |egress: bool| -> Vec<String> {
        rules
            .iter()
            .filter(|rule| rule.is_egress().unwrap_or(false) == egress)
            .filter_map(|rule| rule.security_group_rule_id().map(str::to_owned))
            .take(RULES)
            .collect()
    };
    let (ingress, egress) = (ids(false), ids(true));
    let revoke_in = async {
        if ingress.is_empty() {
            return Ok(());
        }
        let call = ec2.revoke_security_group_ingress().group_id(group.as_str());
        let answer = call.set_security_group_rule_ids(Some(ingress)).send().await;
        answer.map(drop).map_err(|e| fail("ec2:RevokeSecurityGroupIngress", group, e))
    };
    let revoke_out = async {
        if egress.is_empty() {
            return Ok(());
        }
        let call = ec2.revoke_security_group_egress().group_id(group.as_str());
        let answer = call.set_security_group_rule_ids(Some(egress)).send().await;
        answer.map(drop).map_err(|e| fail("ec2:RevokeSecurityGroupEgress", group, e))
    };
    // Both are tried: one that fails must not keep the other direction open.
    let (ingress, egress) = tokio::join!(revoke_in, revoke_out);
    ingress.and(egress)
}

/// Every rule of a group. Asked by the group's id twice over: the list of rules gives none for a group that EC2 does not
/// know yet, the group itself says so.
async fn rules(ec2: &Client, group: &GroupId) -> Result<Vec<SecurityGroupRule>> {
    const RULES: &str = "ec2:DescribeSecurityGroupRules";
    const GROUPS: &str = "ec2:DescribeSecurityGroups";
    let list = async {
        let filter = filter("group-id", [group.as_str()]);
        let stream = ec2.describe_security_group_rules().filters(filter).into_paginator().send();
        pages::all(RULES, group, stream).await
    };
    let known = async {
        let answer = ec2.describe_security_groups().group_ids(group.as_str()).send().await;
        answer.map_err(|error| fail(GROUPS, group, error))
    };
    let (pages, _) = tokio::try_join!(list, known)?;
    Ok(pages.into_iter().flat_map(|page| page.security_group_rules.unwrap_or_default()).collect())
}

/// All traffic with everybody, IPv4 and IPv6.
fn everyone() -> Vec<IpPermission> {
    let all = || IpPermission::builder().ip_protocol("-1");
    vec![
        all().ip_ranges(IpRange::builder().cidr_ip("0.0.0.0/0").build()).build(),
        all().ipv6_ranges(Ipv6Range::builder().cidr_ipv6("::/0").build()).build(),
    ]
}

/// Adds rules for traffic in. One that is there already fails the call for all of them, so then each is added alone.
async fn allow_in(ec2: &Client, group: &GroupId, rules: Vec<IpPermission>) -> Result<()> {
    match authorize_in(ec2, group, rules.clone()).await {
        Err(error) if error.kind == ErrorKind::Conflict => {
            for rule in rules {
                exists_or(authorize_in(ec2, group, vec![rule]).await)?;
            }
            Ok(())
        }
        answer => answer,
    }
}

/// As [`allow_in`], for traffic out.
async fn allow_out(ec2: &Client, group: &GroupId, rules: Vec<IpPermission>) -> Result<()> {
    match authorize_out(ec2, group, rules.clone()).await {
        Err(error) if error.kind == ErrorKind::Conflict => {
            for rule in rules {
                exists_or(authorize_out(ec2, group, vec![rule]).await)?;
            }
            Ok(())
        }
        answer => answer,
    }
}

/// The call that adds rules for traffic in.
async fn authorize_in(ec2: &Client, group: &GroupId, rules: Vec<IpPermission>) -> Result<()> {
    let call = ec2.authorize_security_group_ingress().group_id(group.as_str());
    let answer = call.set_ip_permissions(Some(rules)).send().await;
    answer.map(drop).map_err(|error| fail("ec2:AuthorizeSecurityGroupIngress", group, error))
}

/// The call that adds rules for traffic out.
async fn authorize_out(ec2: &Client, group: &GroupId, rules: Vec<IpPermission>) -> Result<()> {
    let call = ec2.authorize_security_group_egress().group_id(group.as_str());
    let answer = call.set_ip_permissions(Some(rules)).send().await;
    answer.map(drop).map_err(|error| fail("ec2:AuthorizeSecurityGroupEgress", group, error))
}

/// That it is there already is the end that was wanted.
fn exists_or(answer: Result<()>) -> Result<()> {
    match answer {
        Err(error) if error.kind == ErrorKind::Conflict => Ok(()),
        answer => answer,
    }
}

/// Gives an interface's private address its Elastic IP back.
async fn associate_address(
    ec2: &Client,
    allocation: &AllocationId,
    interface: &InterfaceId,
    private: &str,
) -> Result<Made> {
    const OPERATION: &str = "ec2:AssociateAddress";
    let call = ec2
        .associate_address()
        .allocation_id(allocation.as_str())
        .network_interface_id(interface.as_str())
        .private_ip_address(private)
        // An address that serves another host by now stays there.
        .allow_reassociation(false);
    let answer = call.send().await.map_err(|error| fail(OPERATION, interface, error))?;
    let id = answer.association_id;
    let id = id.ok_or_else(|| bad_answer(OPERATION, interface, "associationId"))?;
    Ok(Made::Association(AssociationId::from(id)))
}

/// Adds an entry to a network ACL. A number that is taken by this very entry is the end that was wanted.
async fn create_acl_entry(
    clients: &Clients,
    ec2: &Client,
    acl: &AclId,
    entry: &AclEntry,
) -> Result<Made> {
    let action = if entry.allow { RuleAction::Allow } else { RuleAction::Deny };
    let call = ec2
        .create_network_acl_entry()
        .network_acl_id(acl.as_str())
        .rule_number(entry.number)
        .egress(entry.egress)
        .protocol(&entry.protocol)
        .rule_action(action);
    let call = if entry.cidr.contains(':') {
        call.ipv6_cidr_block(&entry.cidr)
    } else {
        call.cidr_block(&entry.cidr)
    };
    let answer = call.send().await;
    match answer.map_err(|error| fail("ec2:CreateNetworkAclEntry", acl, error)) {
        Err(error) if error.kind == ErrorKind::Conflict => {
            let there = network::get_acl(clients, acl).await?;
            if there.entries.contains(entry) { Ok(Made::Nothing) } else { Err(error) }
        }
        answer => done(answer),
    }
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
            same.map(|a| Made::Association(a.id)).ok_or(error)
        }
        Err(error) => Err(error),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::error::own;

    /// A failure of this kind.
    fn failure(kind: ErrorKind, code: &'static str, message: &str) -> CloudError {
        own("ec2:CreateSnapshots", "i-0123456789abcdef0", kind, code, message)
    }

    #[test]
    fn only_a_refusal_that_is_about_tags_is_tried_without_them() {
        let table = [
            (ErrorKind::Refused, "TagLimitExceeded", "", true),
            (ErrorKind::Refused, "InvalidParameterValue", "Duplicate tag key 'Name'", true),
            (ErrorKind::Refused, "SnapshotLimitExceeded", "too many", false),
            // It may have been done, so it is not done again.
            (ErrorKind::Ambiguous, "TimedOut", "while writing tags", false),
            (ErrorKind::Denied, "UnauthorizedOperation", "ec2:CreateTags", false),
        ];
        for (kind, code, message, expected) in table {
            assert_eq!(tags_refused(&failure(kind, code, message)), expected, "{code}");
        }
    }

    #[test]
    fn what_is_gone_is_an_end_and_what_is_denied_is_not() {
        let not_found = failure(ErrorKind::NotFound, "InvalidGroup.NotFound", "");
        assert_eq!(gone::<()>(Err(not_found)), Ok(Made::Nothing));
        let denied = failure(ErrorKind::Denied, "UnauthorizedOperation", "");
        assert_eq!(gone::<()>(Err(denied.clone())), Err(denied));
    }

    #[test]
    fn nothing_is_tagged_with_nothing() {
        assert_eq!(tagged(ResourceType::Snapshot, &Tags::new()), None);
        let tags = Tags::from([("cleanroom:case".to_owned(), "c-1".to_owned())]);
        let tagged = tagged(ResourceType::Snapshot, &tags).expect("one specification");
        assert_eq!(tagged.len(), 1);
        assert_eq!(tagged[0].tags()[0].value(), Some("c-1"));
    }
}
