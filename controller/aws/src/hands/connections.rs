//! Security groups, addresses and network ACLs: what an instance is connected by.

use std::time::Duration;

use aws_sdk_ec2::{
    Client,
    types::{IpPermission, IpRange, Ipv6Range, ResourceType, RuleAction, SecurityGroupRule},
};
use cleanroom_cloud::{
    AclEntry, AclId, AllocationId, AssociationId, Change, ErrorKind, GroupId, InterfaceId, Made,
    Result,
};

use super::{done, gone, tagged};
use crate::{
    clients::Clients,
    ec2::network,
    error::{bad_answer, fail},
    facts::filter,
    iam, pages,
};

/// How often a group that was just made is asked for again, and the first pause: EC2 may not know it everywhere yet.
const GROUP_ATTEMPTS: u32 = 5;
const GROUP_PAUSE: Duration = Duration::from_millis(200);

/// The longest such pause: with those before it about thirteen seconds.
const LONGEST_GROUP_PAUSE: Duration = Duration::from_millis(6400);

/// The most rules that one call revokes: a group's own quota never exceeds it.
const RULES: usize = 1000;

/// Groups, addresses and network ACLs.
pub(super) async fn apply(clients: &Clients, ec2: &Client, change: &Change) -> Result<Made> {
    use Change as C;
    match change {
        C::CreateGroup { .. } => create_group(ec2, change).await,
        C::EmptyGroup { group } => empty_group(ec2, group).await,
        C::OpenGroup { group } => {
            tokio::try_join!(allow_in(ec2, group, everyone()), allow_out(ec2, group, everyone()))?;
            Ok(Made::Nothing)
        }
        C::DeleteGroup { group } => gone(delete_group(ec2, group).await),
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

/// Deletes a group. EC2 may hold one in use for some seconds after the last interface left it.
async fn delete_group(
    ec2: &Client,
    group: &GroupId,
) -> Result<aws_sdk_ec2::operation::delete_security_group::DeleteSecurityGroupOutput> {
    let mut pause = GROUP_PAUSE;
    loop {
        let answer = ec2.delete_security_group().group_id(group.as_str()).send().await;
        match answer.map_err(|error| fail("ec2:DeleteSecurityGroup", group, error)) {
            Err(error) if error.code == "DependencyViolation" && pause <= LONGEST_GROUP_PAUSE => {
                tokio::time::sleep(pause).await;
                pause *= 2;
            }
            answer => return answer,
        }
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
