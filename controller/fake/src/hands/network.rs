//! Security groups, interfaces, addresses, network ACLs. Touches those of the world, and what becomes of flows.

use std::collections::BTreeSet;

use cleanroom_cloud::{
    AclEntry, AclId, AllocationId, AssociationId, Change, ElasticAddress, ErrorKind, GroupId,
    InterfaceId, Made, Rule, SecurityGroup, Tags, VpcId,
};

use super::compute::not_mine;
use crate::{
    inventory::no_interface,
    later::Later,
    problem::{Answered, Problem},
    world::{Card, World, open_rules},
};

impl World {
    pub(super) fn change_network(&mut self, change: &Change) -> Answered<Made> {
        use Change as C;
        match change {
            C::CreateGroup { vpc, name, tags, .. } => self.create_group(vpc, name, tags),
            C::EmptyGroup { group } => self.set_rules(group, Vec::new()),
            C::OpenGroup { group } => {
                let mut rules = self.get_group(group)?.rules.clone();
                for rule in open_rules() {
                    if !rules.contains(&rule) {
                        rules.push(rule);
                    }
                }
                self.set_rules(group, rules)
            }
            C::DeleteGroup { group } => self.delete_group(group),
            C::SetGroups { interface, groups } => self.set_groups(interface, groups),
            C::DisassociateAddress { association, .. } => {
                self.disassociate_address(association);
                Ok(Made::Nothing)
            }
            C::AssociateAddress { allocation, interface, private } => {
                self.associate_address(allocation, interface, private)
            }
            C::SetAutoPublicAddress { interface, on } => self.set_auto_public(interface, *on),
            C::CreateAclEntry { acl, entry } => self.create_acl_entry(acl, entry),
            C::DeleteAclEntry { acl, number, egress } => {
                let entries = self.acl_entries(acl)?;
                entries.retain(|e| e.number != *number || e.egress != *egress);
                Ok(Made::Nothing)
            }
            _ => Err(not_mine(change)),
        }
    }

    /// A new group lets everything out, IPv4 and IPv6, as in any VPC with an IPv6 block.
    fn create_group(&mut self, vpc: &VpcId, name: &str, tags: &Tags) -> Answered<Made> {
        self.check_tags(&Tags::new(), tags)?;
        if !self.vpcs.contains(vpc) {
            let message = format!("The vpc ID '{vpc}' does not exist");
            return Err(Problem::not_found("InvalidVpcID.NotFound", message));
        }
        if self.groups.values().any(|g| g.vpc == *vpc && g.name == name) {
            let message = format!("The security group '{name}' already exists for VPC '{vpc}'");
            return Err(Problem::conflict("InvalidGroup.Duplicate", message));
        }
        if name.is_empty() || name.len() > 255 || name.starts_with("sg-") {
            let message = "Invalid value for parameter GroupName";
            return Err(Problem::refused("InvalidParameterValue", message));
        }
        let id = GroupId::from(self.name("sg-"));
        let rules: Vec<Rule> = open_rules().into_iter().filter(|r| r.egress).collect();
        let (name, vpc, tags) = (name.to_owned(), vpc.clone(), tags.clone());
        self.groups.insert(id.clone(), SecurityGroup { id: id.clone(), name, vpc, tags, rules });
        Ok(Made::Group(id))
    }

    fn set_rules(&mut self, id: &GroupId, rules: Vec<Rule>) -> Answered<Made> {
        self.get_group(id)?;
        if let Some(group) = self.groups.get_mut(id) {
            group.rules = rules;
        }
        self.refresh();
        self.watch_health();
        Ok(Made::Nothing)
    }

    /// A group that is gone already is no error.
    fn delete_group(&mut self, id: &GroupId) -> Answered<Made> {
        let mut cards = self.machines.values().flat_map(|m| &m.cards);
        let attached = cards.any(|c| c.interface.groups.contains(id));
        let mut others = self.groups.values().filter(|g| g.id != *id).flat_map(|g| &g.rules);
        if attached || others.any(|r| r.peer == id.as_str()) {
            let message = format!("resource {id} has a dependent object");
            return Err(Problem::refused("DependencyViolation", message));
        }
        self.groups.remove(id);
        Ok(Made::Nothing)
    }

    fn get_card(&self, id: &InterfaceId) -> Answered<&Card> {
        self.card(id).ok_or_else(|| no_interface(id))
    }

    fn set_groups(&mut self, id: &InterfaceId, groups: &BTreeSet<GroupId>) -> Answered<Made> {
        let interface = &self.get_card(id)?.interface;
        if interface.managed {
            let message = "You are not allowed to manage this interface";
            return Err(Problem::new(ErrorKind::Denied, "OperationNotPermitted", message));
        }
        if groups.is_empty() {
            let message = "The request must contain at least one security group";
            return Err(Problem::refused("MissingParameter", message));
        }
        if groups.len() > self.limits.groups_per_interface {
            let code = "SecurityGroupsPerInterfaceLimitExceeded";
            return Err(Problem::refused(code, "The maximum number of groups is reached"));
        }
        for group in groups {
            if self.get_group(group)?.vpc != interface.vpc {
                let message = format!("{group} and {id} belong to different networks");
                return Err(Problem::refused("InvalidGroup.InNetwork", message));
            }
        }
        if let Some(card) = self.card_mut(id) {
            card.interface.groups.clone_from(groups);
        }
        self.refresh_card(id);
        self.watch_health();
        Ok(Made::Nothing)
    }

    /// Lets the health checks of Auto Scaling groups notice in their time what can no longer be reached.
    fn watch_health(&mut self) {
        let members = self.scaling.values().filter(|s| s.balancer_health);
        let members = members.flat_map(|s| &s.group.instances).map(|(id, _, _)| id.clone());
        let cut: Vec<_> = members.filter(|id| self.is_unreachable(id)).collect();
        for id in cut {
            self.after(self.times.health, Later::Health(id));
        }
    }

    /// One that is gone already is no error. An interface that is to have an address gets one by itself then.
    fn disassociate_address(&mut self, id: &AssociationId) {
        let mut cards = self.machines.values_mut().flat_map(|m| &mut m.cards);
        let holds = |a: &ElasticAddress| a.association.as_ref() == Some(id);
        if let Some(card) = cards.find(|c| c.interface.public.iter().any(holds)) {
            card.interface.public.retain(|a| !holds(a));
            let interface = card.interface.id.clone();
            self.after(self.times.address, Later::GiveAddress(interface));
        }
    }

    fn associate_address(
        &mut self,
        allocation: &AllocationId,
        id: &InterfaceId,
        private: &str,
    ) -> Answered<Made> {
        let Some(public) = self.allocations.get(allocation).cloned() else {
            let message = format!("The allocation ID '{allocation}' does not exist");
            return Err(Problem::not_found("InvalidAllocationID.NotFound", message));
        };
        let mut cards = self.machines.values().flat_map(|m| &m.cards);
        let held = cards.find_map(|card| {
            let mut all = card.interface.public.iter();
            let address = all.find(|a| a.allocation.as_ref() == Some(allocation))?;
            Some((card.interface.id.clone(), address.clone()))
        });
        if let Some((holder, address)) = held {
            let same = holder == *id && address.private == private;
            return address.association.filter(|_| same).map(Made::Association).ok_or_else(|| {
                let message = format!("{allocation} is already associated with {holder}");
                Problem::refused("Resource.AlreadyAssociated", message)
            });
        }
        if !self.get_card(id)?.interface.private.iter().any(|p| p == private) {
            let message = format!("{private} is not an address of {id}");
            return Err(Problem::refused("InvalidParameterValue", message));
        }
        let association = AssociationId::from(self.name("eipassoc-"));
        if let Some(card) = self.card_mut(id) {
            // What EC2 gave by itself goes; another Elastic IP there is let go.
            card.interface.public.retain(|a| a.private != private);
            card.interface.public.push(ElasticAddress {
                public,
                private: private.to_owned(),
                allocation: Some(allocation.clone()),
                association: Some(association.clone()),
            });
        }
        Ok(Made::Association(association))
    }

    fn set_auto_public(&mut self, id: &InterfaceId, on: bool) -> Answered<Made> {
        if self.get_card(id)?.interface.index != 0 {
            let message = "AssociatePublicIpAddress is for the primary interface only";
            return Err(Problem::refused("InvalidParameterCombination", message));
        }
        if let Some(card) = self.card_mut(id) {
            card.auto_public = on;
        }
        let id = id.clone();
        let then = if on { Later::GiveAddress(id) } else { Later::TakeAddress(id) };
        self.after(self.times.address, then);
        Ok(Made::Nothing)
    }

    fn acl_entries(&mut self, id: &AclId) -> Answered<&mut Vec<AclEntry>> {
        self.acls.get_mut(id).map(|acl| &mut acl.entries).ok_or_else(|| {
            let message = format!("The networkAcl ID '{id}' does not exist");
            Problem::not_found("InvalidNetworkAclID.NotFound", message)
        })
    }

    /// The very same entry again is no error; another of its number is.
    fn create_acl_entry(&mut self, id: &AclId, entry: &AclEntry) -> Answered<Made> {
        let limit = self.limits.acl_entries;
        let entries = self.acl_entries(id)?;
        if entries.contains(entry) {
            return Ok(Made::Nothing);
        }
        if !(1..=32_766).contains(&entry.number) {
            let message = "The rule number must be between 1 and 32766";
            return Err(Problem::refused("InvalidParameterValue", message));
        }
        if entries.iter().any(|e| e.number == entry.number && e.egress == entry.egress) {
            let message = format!("The entry {} exists already", entry.number);
            return Err(Problem::conflict("NetworkAclEntryAlreadyExists", message));
        }
        // The last entry, which denies the rest and can not be removed, is not counted.
        let counted = entries.iter().filter(|e| e.egress == entry.egress && e.number <= 32_766);
        if counted.count() >= limit {
            let message = "The maximum number of network ACL entries is reached";
            return Err(Problem::refused("NetworkAclEntryLimitExceeded", message));
        }
        entries.push(entry.clone());
        entries.sort_by_key(|e| (e.egress, e.number));
        Ok(Made::Nothing)
    }
}
