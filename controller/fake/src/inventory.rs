//! What is there, read from the world.
//!
//! Purpose: the `Inventory` port. Never changes the world. Each method says where it takes more than one
//! request one after another in the real adapter; what goes out at once counts as one.

use std::collections::{BTreeMap, BTreeSet};

use async_trait::async_trait;
use cleanroom_cloud::{
    AccountId, AlertFinding, Association, Caller, Classic, EncryptionKey, Event, EventPage,
    EventQuery, Grant, GroupId, Guards, Image, Instance, InstanceQuery, InstanceState, Interface,
    InterfaceId, Inventory, Membership, NetworkAcl, Profile, PublicImage, Result, RoleName,
    RolePolicy, ScalingGroup, SecurityGroup, Snapshot, Stack, StackEvent, Target, TargetGroup,
    TargetGroupArn, UserAccess, Volume, VpcId,
};
use cleanroom_contract::{CaseId, InstanceId, SnapshotId, VolumeId};

use crate::{
    gate::{Call, FakeCloud},
    problem::{Answered, Problem},
    world::{Machine, Role, World},
};

/// The tag by which a case's snapshots and images are found.
const CASE_TAG: &str = "cleanroom:case";
/// What `LookupEvents` gives at most.
const EVENTS_A_PAGE: usize = 50;

impl World {
    /// An instance, or EC2's error.
    pub(crate) fn get_machine(&self, id: &InstanceId) -> Answered<&Machine> {
        self.machines.get(id).ok_or_else(|| no_instance(id))
    }

    /// A security group, or EC2's error.
    pub(crate) fn get_group(&self, id: &GroupId) -> Answered<&SecurityGroup> {
        let missing = || {
            let message = format!("The security group '{id}' does not exist");
            Problem::not_found("InvalidGroup.NotFound", message)
        };
        self.groups.get(id).ok_or_else(missing)
    }

    /// A role, or IAM's error.
    pub(crate) fn get_role(&self, name: &RoleName) -> Answered<&Role> {
        let missing = || {
            let message = format!("The role with name {name} cannot be found.");
            Problem::not_found("NoSuchEntity", message)
        };
        self.roles.get(name).ok_or_else(missing)
    }

    /// A key by its ARN or its id.
    pub(crate) fn find_key(&self, key: &str) -> Option<&EncryptionKey> {
        self.keys.iter().find(|k| k.arn == key || k.arn.rsplit('/').next() == Some(key))
    }

    fn fits(&self, query: &InstanceQuery) -> Vec<Instance> {
        let fits = |machine: &&Machine| match query {
            InstanceQuery::Id(id) => machine.instance.id == *id,
            InstanceQuery::Name(name) => {
                machine.instance.name() == Some(name)
                    && machine.instance.state != InstanceState::Terminated
            }
            InstanceQuery::Address(address) => machine.cards.iter().any(|card| {
                card.interface.private.contains(address)
                    || card.interface.public.iter().any(|a| a.public == *address)
            }),
        };
        self.machines.values().filter(fits).map(|m| m.described()).collect()
    }

    fn look_up(&self, query: &EventQuery, next: Option<&str>) -> Answered<EventPage> {
        let mut found: Vec<&Event> = self
            .events
            .iter()
            .filter(|e| match query {
                EventQuery::Resource(resource) => e.resources.contains(resource),
                EventQuery::Username(name) => e.event.username.as_ref() == Some(name),
                EventQuery::AccessKey(key) => e.access_key.as_ref() == Some(key),
            })
            .map(|e| &e.event)
            .collect();
        found.sort_by_key(|e| std::cmp::Reverse(e.time));
        let invalid = |_| Problem::refused("InvalidNextTokenException", "Invalid token");
        let from = next.map_or(Ok(0), str::parse::<usize>).map_err(invalid)?;
        let events: Vec<_> =
            found.iter().skip(from).take(EVENTS_A_PAGE).copied().cloned().collect();
        let end = from + events.len();
        Ok(EventPage { events, next: (end < found.len()).then(|| end.to_string()) })
    }
}

pub(crate) fn no_instance(id: &InstanceId) -> Problem {
    let message = format!("The instance ID '{id}' does not exist");
    Problem::not_found("InvalidInstanceID.NotFound", message)
}

fn no_entity(kind: &str, name: &str) -> Problem {
    Problem::not_found("NoSuchEntity", format!("The {kind} with name {name} cannot be found."))
}

/// Whether these tags carry the case.
fn of_case(tags: &BTreeMap<String, String>, case: &CaseId) -> bool {
    tags.get(CASE_TAG).is_some_and(|value| value == case.as_str())
}

#[async_trait]
impl Inventory for FakeCloud {
    async fn caller(&self) -> Result<Caller> {
        let arn = self.caller_arn().to_owned();
        self.call(Call::read("sts:GetCallerIdentity", ""), |world| {
            Ok(Caller {
                account: world.account.clone(),
                arn,
                region: world.region.clone(),
                clock_ahead: world.clock_ahead,
            })
        })
        .await
    }

    /// Two requests: the Regions, then all of them at once.
    async fn regions_with(&self, instance: &InstanceId) -> Result<Vec<String>> {
        self.call(Call::read("ec2:DescribeRegions", instance).links(2), |world| {
            Ok(world.elsewhere.get(instance).cloned().unwrap_or_default())
        })
        .await
    }

    async fn find_instances(&self, query: &InstanceQuery) -> Result<Vec<Instance>> {
        let subject = match query {
            InstanceQuery::Id(id) => id.to_string(),
            InstanceQuery::Address(text) | InstanceQuery::Name(text) => text.clone(),
        };
        self.call(Call::read("ec2:DescribeInstances", subject), |world| Ok(world.fits(query))).await
    }

    async fn instances(&self, ids: &[InstanceId]) -> Result<Vec<Instance>> {
        let subject = ids.iter().map(InstanceId::as_str).collect::<Vec<_>>().join(",");
        self.call(Call::read("ec2:DescribeInstances", subject), |world| {
            if ids.len() > 200 {
                let message =
                    "The maximum number of filter values specified on a single call is 200";
                return Err(Problem::refused("FilterLimitExceeded", message));
            }
            let there = ids.iter().filter_map(|id| world.machines.get(id));
            Ok(there.map(|machine| machine.described()).collect())
        })
        .await
    }

    async fn get_instance(&self, instance: &InstanceId) -> Result<Instance> {
        self.call(Call::read("ec2:DescribeInstances", instance), |world| {
            Ok(world.get_machine(instance)?.described())
        })
        .await
    }

    /// Three attributes at once: the latency of one.
    async fn guards(&self, instance: &InstanceId) -> Result<Guards> {
        self.call(Call::read("ec2:DescribeInstanceAttribute", instance), |world| {
            Ok(world.get_machine(instance)?.guards.clone())
        })
        .await
    }

    async fn has_instance_store(&self, instance_type: &str) -> Result<bool> {
        self.call(Call::read("ec2:DescribeInstanceTypes", instance_type), |world| {
            Ok(world.instance_store_types.contains(instance_type))
        })
        .await
    }

    /// By image and by profile at once.
    async fn instances_like(
        &self,
        image: Option<&str>,
        profile: Option<&str>,
    ) -> Result<Vec<InstanceId>> {
        let subject = image.or(profile).unwrap_or_default();
        self.call(Call::read("ec2:DescribeInstances", subject), |world| {
            let alike = |m: &&Machine| {
                m.instance.state != InstanceState::Terminated
                    && (image == Some(m.instance.image.as_str())
                        || (profile.is_some() && profile == m.instance.profile.as_deref()))
            };
            Ok(world.machines.values().filter(alike).map(|m| m.instance.id.clone()).collect())
        })
        .await
    }

    async fn interfaces(&self, instance: &InstanceId) -> Result<Vec<Interface>> {
        self.call(Call::read("ec2:DescribeNetworkInterfaces", instance), |world| {
            let cards = world.machines.get(instance).map(|m| m.cards.as_slice());
            let all = cards.unwrap_or_default().iter().map(|c| &c.interface);
            Ok(all.filter(|i| !world.unlisted.contains(&i.id)).cloned().collect())
        })
        .await
    }

    async fn get_interface(&self, interface: &InterfaceId) -> Result<Interface> {
        self.call(Call::read("ec2:DescribeNetworkInterfaces", interface), |world| {
            let card = world.card(interface).ok_or_else(|| no_interface(interface))?;
            Ok(card.interface.clone())
        })
        .await
    }

    async fn auto_public_address(&self, interface: &InterfaceId) -> Result<bool> {
        self.call(Call::read("ec2:DescribeNetworkInterfaceAttribute", interface), |world| {
            let card = world.card(interface).ok_or_else(|| no_interface(interface))?;
            Ok(card.auto_public)
        })
        .await
    }

    async fn find_group(&self, vpc: &VpcId, name: &str) -> Result<Option<SecurityGroup>> {
        self.call(Call::read("ec2:DescribeSecurityGroups", name), |world| {
            Ok(world.groups.values().find(|g| g.vpc == *vpc && g.name == name).cloned())
        })
        .await
    }

    async fn get_group(&self, group: &GroupId) -> Result<SecurityGroup> {
        self.call(Call::read("ec2:DescribeSecurityGroups", group), |world| {
            world.get_group(group).cloned()
        })
        .await
    }

    /// Those that a subnet of the VPC uses.
    async fn egress_addresses(&self) -> Result<BTreeMap<VpcId, BTreeSet<String>>> {
        self.call(Call::read("ec2:DescribeNatGateways", ""), |world| Ok(world.egress.clone())).await
    }

    async fn acls(&self, vpc: &VpcId) -> Result<Vec<NetworkAcl>> {
        self.call(Call::read("ec2:DescribeNetworkAcls", vpc), |world| {
            let used =
                |acl: &&NetworkAcl| world.subnets.values().any(|(v, id)| v == vpc && *id == acl.id);
            Ok(world.acls.values().filter(used).cloned().collect())
        })
        .await
    }

    async fn membership(&self, instance: &InstanceId) -> Result<Option<Membership>> {
        self.call(Call::read("autoscaling:DescribeAutoScalingInstances", instance), |world| {
            let scaling = world.scaling_of(instance);
            Ok(scaling.and_then(|scaling| {
                let group = &scaling.group;
                let (_, state, _) = group.instances.iter().find(|(id, _, _)| id == instance)?;
                Some(Membership {
                    group: group.name.clone(),
                    state: state.clone(),
                    protected: scaling.protected.contains(instance),
                })
            }))
        })
        .await
    }

    /// The group and its hooks at once.
    async fn scaling_group(&self, name: &str) -> Result<ScalingGroup> {
        self.call(Call::read("autoscaling:DescribeAutoScalingGroups", name), |world| {
            let scaling = world.scaling.get(name).map(|s| s.group.clone());
            scaling.ok_or_else(|| Problem::not_found("NotFound", "no such Auto Scaling group"))
        })
        .await
    }

    async fn target_groups(&self) -> Result<Vec<TargetGroup>> {
        self.call(Call::read("elasticloadbalancing:DescribeTargetGroups", ""), |world| {
            Ok(world.target_groups.values().map(|t| t.group.clone()).collect())
        })
        .await
    }

    async fn targets(&self, target_group: &TargetGroupArn) -> Result<Vec<Target>> {
        self.call(Call::read("elasticloadbalancing:DescribeTargetHealth", target_group), |world| {
            let group = world.target_groups.get(target_group);
            group.map(|t| t.targets.clone()).ok_or_else(|| no_target_group(target_group))
        })
        .await
    }

    async fn classic_balancers(&self) -> Result<Vec<Classic>> {
        self.call(Call::read("elasticloadbalancing:DescribeLoadBalancers", ""), |world| {
            Ok(world.classics.values().cloned().collect())
        })
        .await
    }

    async fn volumes(&self, volumes: &[VolumeId]) -> Result<Vec<Volume>> {
        let subject = volumes.first().map(ToString::to_string).unwrap_or_default();
        self.call(Call::read("ec2:DescribeVolumes", subject), |world| {
            Ok(volumes.iter().filter_map(|id| world.volumes.get(id)).cloned().collect())
        })
        .await
    }

    async fn attached_volumes(&self, instance: &InstanceId) -> Result<Vec<Volume>> {
        self.call(Call::read("ec2:DescribeVolumes", instance), |world| {
            let attached = |v: &&Volume| v.attached.iter().any(|(id, _)| id == instance);
            Ok(world.volumes.values().filter(attached).cloned().collect())
        })
        .await
    }

    /// Snapshots and locks at once, or one after the other: counted as one.
    async fn snapshots(&self, case: &CaseId) -> Result<Vec<Snapshot>> {
        self.call(Call::read("ec2:DescribeSnapshots", case), |world| {
            Ok(world.snapshots.iter().filter(|s| of_case(&s.tags, case)).cloned().collect())
        })
        .await
    }

    async fn images(&self, case: &CaseId) -> Result<Vec<Image>> {
        self.call(Call::read("ec2:DescribeImages", case), |world| {
            Ok(world.images.iter().filter(|i| of_case(&i.tags, case)).cloned().collect())
        })
        .await
    }

    async fn shared_with(&self, snapshot: &SnapshotId) -> Result<Vec<AccountId>> {
        self.call(Call::read("ec2:DescribeSnapshotAttribute", snapshot), |world| {
            world.get_snapshot(snapshot)?;
            let with = world.shares.get(snapshot).into_iter().flatten();
            Ok(with.cloned().collect())
        })
        .await
    }

    async fn key(&self, key: &str) -> Result<EncryptionKey> {
        self.call(Call::read("kms:DescribeKey", key), |world| world.see_key(key)).await
    }

    async fn grants(&self, key: &str, grantee: &str) -> Result<Vec<Grant>> {
        self.call(Call::read("kms:ListGrants", key), |world| {
            let arn = world.see_key(key)?.arn;
            let to = world.grants.iter().filter(|g| g.key == arn && g.grantee == grantee);
            Ok(to.map(|g| g.grant.clone()).collect())
        })
        .await
    }

    async fn profile_associations(&self, instance: &InstanceId) -> Result<Vec<Association>> {
        self.call(Call::read("ec2:DescribeIamInstanceProfileAssociations", instance), |world| {
            let of = world.associations.iter().filter(|(id, _)| id == instance);
            Ok(of.map(|(_, association)| association.clone()).collect())
        })
        .await
    }

    async fn profile(&self, arn: &str) -> Result<Profile> {
        self.call(Call::read("iam:GetInstanceProfile", arn), |world| {
            let found = world.profiles.iter().find(|p| p.arn == arn).cloned();
            found.ok_or_else(|| no_entity("instance profile", arn))
        })
        .await
    }

    /// Two requests: the names, then all documents at once.
    async fn role_policies(&self, role: &RoleName) -> Result<Vec<RolePolicy>> {
        self.call(Call::read("iam:ListRolePolicies", role).links(2), |world| {
            let policies = world.get_role(role)?.policies.iter();
            let policy = |(name, document): (&String, &String)| RolePolicy {
                name: name.clone(),
                document: document.clone(),
            };
            Ok(policies.map(policy).collect())
        })
        .await
    }

    /// Two requests: keys and names of policies, then all documents at once.
    async fn user_access(&self, user: &str) -> Result<UserAccess> {
        self.call(Call::read("iam:ListAccessKeys", user).links(2), |world| {
            world.users.get(user).cloned().ok_or_else(|| no_entity("user", user))
        })
        .await
    }

    /// Three requests: the detector, the findings' ids, the findings.
    async fn findings(&self, instance: &InstanceId) -> Result<Vec<AlertFinding>> {
        self.call(Call::read("guardduty:ListFindings", instance).links(3), |world| {
            let found = world.findings.get(instance).filter(|_| world.setup.guardduty);
            Ok(found.cloned().unwrap_or_default())
        })
        .await
    }

    async fn events(&self, query: &EventQuery, next: Option<&str>) -> Result<EventPage> {
        let subject = match query {
            EventQuery::Resource(text)
            | EventQuery::Username(text)
            | EventQuery::AccessKey(text) => text.clone(),
        };
        self.call(Call::read("cloudtrail:LookupEvents", subject), |world| {
            world.look_up(query, next)
        })
        .await
    }

    async fn stack_outputs(&self, stack: &str) -> Result<BTreeMap<String, String>> {
        self.call(Call::read("cloudformation:DescribeStacks", stack), |world| {
            Ok(world.stacks.get(stack).cloned().unwrap_or_default())
        })
        .await
    }

    async fn find_stack(&self, name: &str) -> Result<Option<Stack>> {
        self.call(Call::read("cloudformation:DescribeStacks", name), |world| {
            Ok(world.built.get(name).map(|built| built.stack.clone()))
        })
        .await
    }

    async fn stack_events(&self, stack: &str) -> Result<Vec<StackEvent>> {
        self.call(Call::read("cloudformation:DescribeStackEvents", stack), |world| {
            world.stack_events(stack)
        })
        .await
    }

    async fn public_image(
        &self,
        owner: &str,
        name: &str,
        architecture: &str,
    ) -> Result<Option<PublicImage>> {
        self.call(Call::read("ec2:DescribeImages", name), |world| {
            let fits = |image: &&PublicImage| {
                owner == "amazon"
                    && fits_pattern(name, &image.name)
                    && image.name.ends_with(architecture)
            };
            let fitting = world.public_images.iter().filter(fits);
            Ok(fitting.max_by_key(|image| image.created.clone()).cloned())
        })
        .await
    }

    async fn prefix_list(&self, name: &str) -> Result<Option<String>> {
        self.call(Call::read("ec2:DescribeManagedPrefixLists", name), |_| {
            Ok(name.ends_with(".s3").then(|| "pl-0123456789abcdef0".to_owned()))
        })
        .await
    }
}

/// Whether a text fits a pattern in which `*` stands for anything.
fn fits_pattern(pattern: &str, text: &str) -> bool {
    let mut parts = pattern.split('*');
    let Some(mut rest) = parts.next().and_then(|first| text.strip_prefix(first)) else {
        return false;
    };
    let parts: Vec<_> = parts.collect();
    for (nth, part) in parts.iter().enumerate() {
        if nth + 1 == parts.len() {
            return rest.ends_with(part);
        }
        let Some(at) = rest.find(part) else { return false };
        rest = &rest[at + part.len()..];
    }
    rest.is_empty()
}

pub(crate) fn no_interface(id: &InterfaceId) -> Problem {
    let message = format!("The networkInterface ID '{id}' does not exist");
    Problem::not_found("InvalidNetworkInterfaceID.NotFound", message)
}

pub(crate) fn no_target_group(arn: &TargetGroupArn) -> Problem {
    let message = format!("Target groups '{arn}' not found");
    Problem::not_found("TargetGroupNotFound", message)
}
