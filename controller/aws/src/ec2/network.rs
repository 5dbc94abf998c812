//! Interfaces, security groups and network ACLs.

use std::collections::{BTreeMap, BTreeSet};

use aws_sdk_ec2::types::{
    IpPermission, NetworkAcl as DescribedAcl, NetworkAclEntry, NetworkInterface,
    NetworkInterfaceAssociation, NetworkInterfaceAttribute, RuleAction,
    SecurityGroup as DescribedGroup,
};
use cleanroom_cloud::{
    AclEntry, AclId, AllocationId, AssociationId, ElasticAddress, ErrorKind, GroupId, Interface,
    InterfaceId, NetworkAcl, Result, Rule, SecurityGroup, VpcId,
};
use cleanroom_contract::InstanceId;

use super::{literally, need, tags};
use crate::{
    clients::Clients,
    error::{fail, missing},
    facts::filter,
    pages,
};

const INTERFACES: &str = "ec2:DescribeNetworkInterfaces";
const GROUPS: &str = "ec2:DescribeSecurityGroups";
const ACLS: &str = "ec2:DescribeNetworkAcls";
const NAT_GATEWAYS: &str = "ec2:DescribeNatGateways";
const PREFIX_LISTS: &str = "ec2:DescribeManagedPrefixLists";

/// The entry that denies whatever no other one matched; every ACL has it and nobody can change it.
const LAST_ENTRY: i32 = 32767;

/// All interfaces of an instance, the primary first.
pub(crate) async fn interfaces(clients: &Clients, instance: &InstanceId) -> Result<Vec<Interface>> {
    let stream = clients
        .ec2
        .describe_network_interfaces()
        .filters(filter("attachment.instance-id", [instance.as_str()]))
        .into_paginator()
        .send();
    let pages = pages::all(INTERFACES, instance, stream).await?;
    let mut interfaces = pages
        .into_iter()
        .flat_map(|page| page.network_interfaces.unwrap_or_default())
        .map(|described| interface(instance.as_str(), described))
        .collect::<Result<Vec<_>>>()?;
    interfaces.sort_by(|a, b| (a.index, &a.id).cmp(&(b.index, &b.id)));
    Ok(interfaces)
}

/// One interface.
pub(crate) async fn get_interface(clients: &Clients, id: &InterfaceId) -> Result<Interface> {
    let request = clients.ec2.describe_network_interfaces().network_interface_ids(id.as_str());
    let answer = request.send().await.map_err(|error| fail(INTERFACES, id, error))?;
    let found = answer.network_interfaces.unwrap_or_default().into_iter().next();
    interface(id.as_str(), found.ok_or_else(|| missing(INTERFACES, id))?)
}

/// One interface in our words.
fn interface(resource: &str, n: NetworkInterface) -> Result<Interface> {
    let id = need(INTERFACES, resource, "networkInterfaceId", n.network_interface_id())?;
    let attachment = n.attachment();
    let device = attachment.and_then(|a| a.device_index()).unwrap_or(0);
    let card = attachment.and_then(|a| a.network_card_index()).unwrap_or(0);
    Ok(Interface {
        id: InterfaceId::from(id),
        owner: n.owner_id().unwrap_or_default().into(),
        managed: n.requester_managed().unwrap_or(false)
            || n.operator().and_then(|o| o.managed()).unwrap_or(false),
        vpc: VpcId::from(need(INTERFACES, id, "vpcId", n.vpc_id())?),
        subnet: n.subnet_id().unwrap_or_default().to_owned(),
        // On further network cards the device index starts anew; only the first card has the primary.
        index: if card == 0 { device } else { device.max(1) },
        groups: n.groups().iter().filter_map(|g| g.group_id()).map(GroupId::from).collect(),
        private: private(&n),
        ipv6: n
            .ipv6_addresses()
            .iter()
            .filter_map(|a| a.ipv6_address().map(str::to_owned))
            .collect(),
        public: public(&n),
        tags: tags(n.tag_set),
    })
}

/// An interface's private IPv4 addresses, the primary first.
fn private(n: &NetworkInterface) -> Vec<String> {
    let mut addresses: Vec<_> = n.private_ip_addresses().iter().collect();
    addresses.sort_by_key(|address| !address.primary().unwrap_or(false));
    let mut addresses: Vec<String> = addresses
        .into_iter()
        .filter_map(|address| address.private_ip_address().map(str::to_owned))
        .collect();
    if let (true, Some(only)) = (addresses.is_empty(), n.private_ip_address()) {
        addresses.push(only.to_owned());
    }
    addresses
}

/// An interface's public IPv4 addresses.
fn public(n: &NetworkInterface) -> Vec<ElasticAddress> {
    let mut public: Vec<ElasticAddress> = n
        .private_ip_addresses()
        .iter()
        .filter_map(|address| elastic(address.association()?, address.private_ip_address()?))
        .collect();
    // The primary's is said twice, of the interface and of the address; one of them is enough.
    if let Some(of_primary) = n
        .association()
        .and_then(|association| elastic(association, n.private_ip_address().unwrap_or_default()))
        && public.iter().all(|known| known.public != of_primary.public)
    {
        public.push(of_primary);
    }
    public
}

/// A public address, if the association has one.
fn elastic(association: &NetworkInterfaceAssociation, private: &str) -> Option<ElasticAddress> {
    let some = |text: Option<&str>| text.filter(|text| !text.is_empty()).map(str::to_owned);
    Some(ElasticAddress {
        public: some(association.public_ip())?,
        private: private.to_owned(),
        allocation: some(association.allocation_id()).map(AllocationId::from),
        association: some(association.association_id()).map(AssociationId::from),
    })
}

/// Whether the interface is given a public address on its own.
pub(crate) async fn auto_public_address(
    clients: &Clients,
    interface: &InterfaceId,
) -> Result<bool> {
    let answer = clients
        .ec2
        .describe_network_interface_attribute()
        .network_interface_id(interface.as_str())
        .attribute(NetworkInterfaceAttribute::AssociatePublicIpAddress)
        .send()
        .await;
    match answer {
        Ok(answer) => Ok(answer.associate_public_ip_address.unwrap_or(false)),
        Err(error) => {
            let mut error = fail("ec2:DescribeNetworkInterfaceAttribute", interface, error);
            // The attribute is younger than the operation: where it is not known, neither is the feature.
            if error.code == "InvalidParameterValue" {
                error.kind = ErrorKind::Unsupported;
            }
            Err(error)
        }
    }
}

/// The group of this name in the VPC.
pub(crate) async fn find_group(
    clients: &Clients,
    vpc: &VpcId,
    name: &str,
) -> Result<Option<SecurityGroup>> {
    let stream = clients
        .ec2
        .describe_security_groups()
        .filters(filter("vpc-id", [vpc.as_str()]))
        .filters(filter("group-name", [literally(name)]))
        .into_paginator()
        .send();
    let pages = pages::all(GROUPS, name, stream).await?;
    let found = pages.into_iter().flat_map(|page| page.security_groups.unwrap_or_default()).next();
    found.map(group).transpose()
}

/// One group.
pub(crate) async fn get_group(clients: &Clients, id: &GroupId) -> Result<SecurityGroup> {
    let answer = clients
        .ec2
        .describe_security_groups()
        .group_ids(id.as_str())
        .send()
        .await
        .map_err(|error| fail(GROUPS, id, error))?;
    let found = answer.security_groups.unwrap_or_default().into_iter().next();
    group(found.ok_or_else(|| missing(GROUPS, id))?)
}

/// A group in our words.
fn group(g: DescribedGroup) -> Result<SecurityGroup> {
    let id = need(GROUPS, "", "groupId", g.group_id())?;
    let ingress = g.ip_permissions().iter().flat_map(|p| rules(false, p));
    let egress = g.ip_permissions_egress().iter().flat_map(|p| rules(true, p));
    Ok(SecurityGroup {
        id: GroupId::from(id),
        name: g.group_name().unwrap_or_default().to_owned(),
        vpc: VpcId::from(g.vpc_id().unwrap_or_default()),
        rules: ingress.chain(egress).collect(),
        tags: tags(g.tags),
    })
}

/// The rules of a permission: one for each peer it names.
fn rules(egress: bool, permission: &IpPermission) -> Vec<Rule> {
    let protocol = permission.ip_protocol().unwrap_or_default();
    let ports = match (permission.from_port(), permission.to_port()) {
        (Some(from), Some(to)) if from == to => format!(" {from}"),
        (Some(from), Some(to)) => format!(" {from}-{to}"),
        _ => String::new(),
    };
    let what = if protocol == "-1" { "all".to_owned() } else { format!("{protocol}{ports}") };
    let blocks = permission.ip_ranges().iter().filter_map(|range| range.cidr_ip());
    let blocks6 = permission.ipv6_ranges().iter().filter_map(|range| range.cidr_ipv6());
    let lists = permission.prefix_list_ids().iter().filter_map(|list| list.prefix_list_id());
    let groups = permission.user_id_group_pairs().iter().filter_map(|pair| pair.group_id());
    let mut peers: Vec<String> =
        blocks.chain(blocks6).chain(lists).chain(groups).map(str::to_owned).collect();
    if peers.is_empty() {
        // A peer of a kind that this program does not know is a rule all the same.
        peers.push("unknown".to_owned());
    }
    peers
        .into_iter()
        .map(|peer| Rule { egress, all_traffic: protocol == "-1", peer, what: what.clone() })
        .collect()
}

/// All network ACLs of a VPC.
pub(crate) async fn acls_of(clients: &Clients, vpc: &VpcId) -> Result<Vec<NetworkAcl>> {
    let filter = filter("vpc-id", [vpc.as_str()]);
    let stream = clients.ec2.describe_network_acls().filters(filter).into_paginator().send();
    let pages = pages::all(ACLS, vpc, stream).await?;
    pages.into_iter().flat_map(|page| page.network_acls.unwrap_or_default()).map(acl).collect()
}

/// The public addresses of all NAT gateways, by VPC. Of one that was deleted within the hour too, which EC2 still tells of:
/// what is compared with these may be as old.
pub(crate) async fn egress_addresses(
    clients: &Clients,
) -> Result<BTreeMap<VpcId, BTreeSet<String>>> {
    let stream = clients.ec2.describe_nat_gateways().into_paginator().send();
    let pages = pages::all(NAT_GATEWAYS, "", stream).await?;
    let mut addresses: BTreeMap<VpcId, BTreeSet<String>> = BTreeMap::new();
    for gateway in pages.into_iter().flat_map(|page| page.nat_gateways.unwrap_or_default()) {
        let Some(vpc) = gateway.vpc_id() else { continue };
        let public = gateway.nat_gateway_addresses().iter().filter_map(|a| a.public_ip());
        addresses.entry(VpcId::from(vpc)).or_default().extend(public.map(str::to_owned));
    }
    Ok(addresses)
}

/// The id of a managed prefix list, by its name.
pub(crate) async fn prefix_list(clients: &Clients, name: &str) -> Result<Option<String>> {
    let filter = filter("prefix-list-name", [name]);
    let stream =
        clients.ec2.describe_managed_prefix_lists().filters(filter).into_paginator().send();
    let pages = pages::all(PREFIX_LISTS, name, stream).await?;
    let mut lists = pages.into_iter().flat_map(|page| page.prefix_lists.unwrap_or_default());
    // An emulator, or a service that knows the filter less well, may answer with all of them.
    Ok(lists.find(|l| l.prefix_list_name() == Some(name)).and_then(|l| l.prefix_list_id))
}

/// One network ACL.
pub(crate) async fn get_acl(clients: &Clients, id: &AclId) -> Result<NetworkAcl> {
    let request = clients.ec2.describe_network_acls().network_acl_ids(id.as_str());
    let answer = request.send().await.map_err(|error| fail(ACLS, id, error))?;
    let found = answer.network_acls.unwrap_or_default().into_iter().next();
    acl(found.ok_or_else(|| missing(ACLS, id))?)
}

/// An ACL in our words.
fn acl(a: DescribedAcl) -> Result<NetworkAcl> {
    let id = need(ACLS, "", "networkAclId", a.network_acl_id())?;
    let entries = a
        .entries()
        .iter()
        .filter(|entry| entry.rule_number() != Some(LAST_ENTRY))
        .map(|entry| acl_entry(id, entry))
        .collect::<Result<Vec<_>>>()?;
    Ok(NetworkAcl { id: AclId::from(id), entries })
}

/// An entry in our words.
fn acl_entry(acl: &str, entry: &NetworkAclEntry) -> Result<AclEntry> {
    let block = entry.cidr_block().or_else(|| entry.ipv6_cidr_block());
    Ok(AclEntry {
        number: need(ACLS, acl, "ruleNumber", entry.rule_number())?,
        egress: need(ACLS, acl, "egress", entry.egress())?,
        allow: need(ACLS, acl, "ruleAction", entry.rule_action())? == &RuleAction::Allow,
        cidr: block.unwrap_or_default().to_owned(),
        protocol: entry.protocol().unwrap_or_default().to_owned(),
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{canned::canned, ec2::instances::those_of};

    #[tokio::test]
    async fn egress_addresses_are_told_by_vpc() {
        let gateway = |id: &str, vpc: &str, addresses: &[&str]| {
            let addresses: String = addresses
                .iter()
                .map(|address| format!("<item><publicIp>{address}</publicIp></item>"))
                .collect();
            format!(
                "<item><natGatewayId>{id}</natGatewayId><vpcId>{vpc}</vpcId>\
                 <natGatewayAddressSet>{addresses}</natGatewayAddressSet></item>"
            )
        };
        let page = [
            gateway("nat-1", "vpc-1", &["198.51.100.1", "198.51.100.2"]),
            gateway("nat-2", "vpc-1", &["198.51.100.3"]),
            // A private one.
            gateway("nat-3", "vpc-2", &[]),
        ]
        .concat();
        let answer = format!(
            "<DescribeNatGatewaysResponse><natGatewaySet>{page}</natGatewaySet></DescribeNatGatewaysResponse>"
        );
        let canned = canned(None, move |_, _| (200, answer.clone()));
        let egress = egress_addresses(&canned.clients).await.expect("an answer");
        let addresses: Vec<_> = egress[&VpcId::from("vpc-1")].iter().map(String::as_str).collect();
        assert_eq!(addresses, ["198.51.100.1", "198.51.100.2", "198.51.100.3"]);
        assert!(egress[&VpcId::from("vpc-2")].is_empty());
        assert_eq!(canned.sent().len(), 1);
    }

    #[tokio::test]
    async fn many_instances_are_asked_for_by_a_filter_since_a_list_fails_for_one_that_is_not() {
        let answer = "<DescribeInstancesResponse><reservationSet/></DescribeInstancesResponse>";
        let canned = canned(None, move |_, _| (200, answer.to_owned()));
        let ids =
            ["i-0123456789abcdef0", "i-0fedcba9876543210"].map(|id| id.parse().expect("an id"));
        assert!(those_of(&canned.clients, &ids).await.expect("an answer").is_empty());
        let sent = canned.sent();
        assert_eq!(sent.len(), 1);
        assert!(sent[0].contains("Filter.1.Name=instance-id"), "{sent:?}");
        assert!(sent[0].contains("Filter.1.Value.2=i-0fedcba9876543210"), "{sent:?}");
        assert!(!sent[0].contains("InstanceId.1"), "{sent:?}");
        assert!(those_of(&canned.clients, &[]).await.expect("no answer is needed").is_empty());
        assert_eq!(canned.sent().len(), 1, "nobody is asked about nobody");
    }
}
