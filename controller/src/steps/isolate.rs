//! No traffic in or out, on any interface.
//!
//! First the forensic group, which has no rule in either direction, on every interface at once, read back: that is
//! *contained*. Public addresses go meanwhile. Then [`flush`] drops the flows that were tracked before. Release puts back what was
//! recorded. What this can not cut is named in [`NOT_CUT`].

pub mod flush;

use std::{
    collections::{BTreeMap, BTreeSet},
    time::Duration,
};

use async_trait::async_trait;
use cleanroom_cloud::{
    AclEntry, Change, GroupId, Interface, NetworkAcl, Result, SecurityGroup, VpcId,
};
use futures_util::future::{join_all, try_join_all};
use tokio::time::timeout;

use crate::case::{Assessment, Goal, History, Scene, Shortfall, Step};

/// The forensic group's name, one in each VPC.
pub const FORENSIC: &str = "cleanroom-forensic";

/// What containment does not surely cut, for the report.
pub const NOT_CUT: [&str; 5] = [
    "branch interfaces behind a trunk (pods of EKS and tasks of ECS that have security groups of their own), which are not attached to the instance itself",
    "flows through NAT gateways, network and gateway load balancers, Global Accelerator, Network Firewall and transit gateways, and ICMP, which stay tracked whatever the rules",
    "the VPC's resolver, the metadata service, DHCP and the time service, which no security group filters: DNS can carry data out until a person adds a resolver DNS firewall rule, which holds for the whole VPC",
    "sessions chained with AssumeRole, and keys or users that the instance's role made: they are listed, and `cleanroom revoke` cuts them",
    "traffic within its subnet is not filtered by a network ACL, which --nacl adds to",
];

/// The name of the group by which a case drops tracked flows.
#[must_use]
pub fn flush_name(scene: &Scene) -> String {
    flush_name_of(scene.case.as_str())
}

/// The same for a case by its name.
#[must_use]
pub fn flush_name_of(case: &str) -> String {
    format!("cleanroom-flush-{case}")
}

/// What a plan calls a group that is yet to be made.
fn promised(vpc: &VpcId) -> GroupId {
    GroupId::from(format!("<{FORENSIC} in {vpc}>"))
}

/// The VPCs that the instance's interfaces are in: its own, and others where it has interfaces there.
fn vpcs<'a>(scene: &'a Scene, interfaces: &'a [Interface]) -> BTreeSet<&'a VpcId> {
    scene.original.instance.vpc.iter().chain(interfaces.iter().map(|i| &i.vpc)).collect()
}

/// The interfaces, and the forensic group of each of their VPCs where there is one.
async fn world(scene: &Scene) -> Result<(Vec<Interface>, BTreeMap<VpcId, Option<SecurityGroup>>)> {
    let inventory = &*scene.inventory;
    let own = async {
        match &scene.original.instance.vpc {
            Some(vpc) => Ok(Some((vpc.clone(), inventory.find_group(vpc, FORENSIC).await?))),
            None => Ok(None),
        }
    };
    let (interfaces, own) = tokio::join!(inventory.interfaces(&scene.instance), own);
    let interfaces = interfaces?;
    let mut groups: BTreeMap<_, _> = own?.into_iter().collect();
    let others: Vec<_> = vpcs(scene, &interfaces)
        .into_iter()
        .filter(|v| !groups.contains_key(*v))
        .cloned()
        .collect();
    let found = try_join_all(others.iter().map(|vpc| inventory.find_group(vpc, FORENSIC))).await?;
    groups.extend(others.into_iter().zip(found));
    Ok((interfaces, groups))
}

/// How long the instance's description may take where one of its interfaces is missing: it is not worth a look that is never done.
const DESCRIBING: Duration = Duration::from_secs(2);

/// The interfaces that must be there and do not show, for people: nothing is known of them, and with them nothing is contained. The
/// description is read anew only where one is missing, since it may have been detached; where it can not be read, the old one counts,
/// and nothing else waits for it.
async fn unlisted(scene: &Scene, listed: &[Interface]) -> Option<String> {
    let before = &scene.original.instance;
    if listed.is_empty() && !before.state.is_ending() {
        return Some("its interfaces".to_owned());
    }
    let mut missing = before.unlisted(listed);
    if !missing.is_empty()
        && let Ok(Ok(now)) =
            timeout(DESCRIBING, scene.inventory.get_instance(&scene.instance)).await
    {
        missing = now.unlisted(listed);
    }
    let missing: Vec<_> = missing.iter().map(ToString::to_string).collect();
    (!missing.is_empty()).then(|| missing.join(", "))
}

/// Makes and empties the forensic groups; the same for all that look.
fn prepare(scene: &Scene, groups: &BTreeMap<VpcId, Option<SecurityGroup>>, seen: &mut Assessment) {
    for (vpc, group) in groups {
        match group {
            None => {
                seen.now.push(Change::CreateGroup {
                    vpc: vpc.clone(),
                    name: FORENSIC.to_owned(),
                    description: "Cleanroom: no rule in either direction".to_owned(),
                    tags: BTreeMap::from([("cleanroom:group".to_owned(), "forensic".to_owned())]),
                });
                // A new group allows all traffic out.
                seen.then.push(Change::EmptyGroup { group: promised(vpc) });
            }
            Some(group) if !group.rules.is_empty() => {
                let others = group.rules.iter().any(|r| !(r.egress && r.all_traffic));
                if others && !scene.done.is_empty() {
                    seen.notes.push(format!(
                        "{} had rules that somebody added: they are revoked",
                        group.id
                    ));
                }
                seen.now.push(Change::EmptyGroup { group: group.id.clone() });
            }
            Some(_) => {}
        }
    }
}

/// The forensic group is there, and empty: worked at while guards and snapshots are on their way.
#[derive(Debug)]
pub struct Prepare;

#[async_trait]
impl Goal for Prepare {
    fn step(&self) -> Step {
        Step::Isolate
    }

    fn name(&self) -> &'static str {
        "prepare"
    }

    async fn look(&self, scene: &Scene, _history: &History) -> Result<Assessment> {
        let Some(vpc) = &scene.original.instance.vpc else { return Ok(Assessment::default()) };
        let group = scene.inventory.find_group(vpc, FORENSIC).await?;
        let mut seen = Assessment::default();
        prepare(scene, &BTreeMap::from([(vpc.clone(), group)]), &mut seen);
        Ok(seen)
    }
}

/// Every interface has the forensic group and no other.
#[derive(Debug)]
pub struct Cut;

#[async_trait]
impl Goal for Cut {
    fn step(&self) -> Step {
        Step::Isolate
    }

    fn name(&self) -> &'static str {
        "cut"
    }

    async fn look(&self, scene: &Scene, history: &History) -> Result<Assessment> {
        let (interfaces, groups) = world(scene).await?;
        let mut seen = Assessment::default();
        prepare(scene, &groups, &mut seen);
        if let Some(missing) = unlisted(scene, &interfaces).await {
            seen.waiting = Some((format!("{missing} to show"), Duration::from_secs(30)));
        }
        for interface in &interfaces {
            let group = groups.get(&interface.vpc).and_then(Option::as_ref);
            // Each VPC by itself: one whose group can not be made keeps no other interface connected. A group that could
            // not be emptied is still narrower than what the interface has.
            let making = match group {
                None => true,
                Some(group) => {
                    let empty = Change::EmptyGroup { group: group.id.clone() };
                    !group.rules.is_empty() && history.refusal(|c| *c == empty).is_none()
                }
            };
            let group = group.map_or_else(|| promised(&interface.vpc), |g| g.id.clone());
            let wanted = BTreeSet::from([group]);
            if interface.groups == wanted {
                continue;
            }
            let change = Change::SetGroups { interface: interface.id.clone(), groups: wanted };
            if let Some(why) = history.refusal(|c| *c == change) {
                seen.short.push(not_isolated(interface, why));
            } else if making {
                seen.then.push(change);
            } else {
                seen.now.push(change);
            }
        }
        Ok(seen)
    }

    async fn look_back(&self, scene: &Scene, history: &History) -> Result<Assessment> {
        let interfaces = scene.inventory.interfaces(&scene.instance).await?;
        let original = scene.original.groups();
        let mut seen = Assessment::default();
        for interface in interfaces {
            let Some(groups) = original.get(&interface.id).filter(|g| !g.is_empty()) else {
                seen.short.push(Shortfall {
                    step: Step::Isolate,
                    what: format!("the own groups of {} were never recorded", interface.id),
                    advice: "set its security groups by hand".to_owned(),
                });
                continue;
            };
            if interface.groups == *groups {
                continue;
            }
            let change =
                Change::SetGroups { interface: interface.id.clone(), groups: groups.clone() };
            if let Some(why) = history.refusal(|c| *c == change) {
                seen.short.push(Shortfall {
                    step: Step::Isolate,
                    what: format!("{} did not get its groups back: {why}", interface.id),
                    advice: "set its security groups by hand".to_owned(),
                });
            } else {
                seen.now.push(change);
            }
        }
        Ok(seen)
    }
}

fn not_isolated(interface: &Interface, why: &str) -> Shortfall {
    let owner = if interface.managed { ", which a service manages" } else { "" };
    Shortfall {
        step: Step::Isolate,
        what: format!("interface {}{owner} is not isolated: {why}", interface.id),
        advice: format!(
            "ask the owner of {} to detach it, or deny {} in the network ACLs (--nacl)",
            interface.id,
            interface.private.join(", ")
        ),
    }
}

/// No public address leads to the instance.
#[derive(Debug)]
pub struct Addresses;

#[async_trait]
impl Goal for Addresses {
    fn step(&self) -> Step {
        Step::Isolate
    }

    fn name(&self) -> &'static str {
        "addresses"
    }

    async fn look(&self, scene: &Scene, history: &History) -> Result<Assessment> {
        let inventory = &*scene.inventory;
        let interfaces = inventory.interfaces(&scene.instance).await?;
        let mut seen = Assessment::default();
        // Only the primary interface can be given an address on its own.
        if let Some(primary) = interfaces.iter().find(|i| i.index == 0) {
            let change = Change::SetAutoPublicAddress { interface: primary.id.clone(), on: false };
            let on = match inventory.auto_public_address(&primary.id).await {
                // Where it can not be read, it is switched off once for the case.
                Err(error) if !error.is_transient() => {
                    !scene.done.contains(&change) && !history.applied.contains(&change)
                }
                on => on?,
            };
            if on {
                seen.now.push(change);
            }
        }
        for interface in &interfaces {
            for address in &interface.public {
                if let Some(association) = &address.association {
                    seen.now.push(Change::DisassociateAddress {
                        association: association.clone(),
                        public: address.public.clone(),
                        interface: interface.id.clone(),
                    });
                } else if seen.now.is_empty() && seen.waiting.is_none() {
                    let what = format!("{} to leave {}", address.public, interface.id);
                    seen.waiting = Some((what, Duration::from_secs(60)));
                }
            }
            if !interface.ipv6.is_empty() {
                seen.notes.push(format!(
                    "{} keeps its IPv6 addresses {}, which the forensic group cuts",
                    interface.id,
                    interface.ipv6.join(", ")
                ));
            }
        }
        Ok(seen)
    }

    async fn look_back(&self, scene: &Scene, history: &History) -> Result<Assessment> {
        let inventory = &*scene.inventory;
        let interfaces = inventory.interfaces(&scene.instance).await?;
        let mut seen = Assessment::default();
        for was in scene.original.interfaces.get().into_iter().flatten() {
            let Some(now) = interfaces.iter().find(|i| i.id == was.interface.id) else { continue };
            for address in &was.interface.public {
                let Some(allocation) = &address.allocation else {
                    seen.notes.push(format!(
                        "{} was assigned by EC2 and can not come back",
                        address.public
                    ));
                    continue;
                };
                if !now.public.iter().any(|p| p.allocation.as_ref() == Some(allocation)) {
                    seen.now.push(Change::AssociateAddress {
                        allocation: allocation.clone(),
                        interface: now.id.clone(),
                        private: address.private.clone(),
                    });
                }
            }
            let on = Change::SetAutoPublicAddress { interface: now.id.clone(), on: true };
            let off = Change::SetAutoPublicAddress { interface: now.id.clone(), on: false };
            if was.auto_public.get() == Some(&true)
                && scene.done.contains(&off)
                && !history.applied.contains(&on)
                && history.refusal(|c| *c == on).is_none()
                && !inventory.auto_public_address(&now.id).await?
            {
                seen.now.push(on);
            }
        }
        Ok(seen)
    }
}

/// Every network ACL of the VPC denies this host's addresses, where people asked for that.
///
/// An ACL's entry names the other end of a flow. So the host's own subnet can not name it, and the ACLs of
/// all other subnets can: that includes the subnets of NAT gateways, whose tracked flows nothing else cuts.
#[derive(Debug)]
pub struct Acl;

#[async_trait]
impl Goal for Acl {
    fn step(&self) -> Step {
        Step::Isolate
    }

    fn name(&self) -> &'static str {
        "acl"
    }

    async fn look(&self, scene: &Scene, _history: &History) -> Result<Assessment> {
        let mut seen = Assessment::default();
        if !scene.policy.acl {
            return Ok(seen);
        }
        let interfaces = scene.inventory.interfaces(&scene.instance).await?;
        let vpcs: Vec<_> = vpcs(scene, &interfaces).into_iter().cloned().collect();
        for acls in join_all(vpcs.iter().map(|vpc| scene.inventory.acls(vpc))).await {
            for acl in acls? {
                seen.now.extend(denials(&acl, &interfaces));
            }
        }
        Ok(seen)
    }

    async fn look_back(&self, scene: &Scene, _history: &History) -> Result<Assessment> {
        let made: Vec<_> = scene
            .done
            .iter()
            .filter_map(|change| match change {
                Change::CreateAclEntry { acl, entry } => Some((acl, entry)),
                _ => None,
            })
            .collect();
        let mut seen = Assessment::default();
        if made.is_empty() {
            return Ok(seen);
        }
        let vpcs: BTreeSet<_> = {
            let interfaces = scene.original.interfaces.get().map(Vec::as_slice).unwrap_or_default();
            let others = interfaces.iter().map(|i| i.interface.vpc.clone());
            scene.original.instance.vpc.iter().cloned().chain(others).collect()
        };
        for acls in join_all(vpcs.iter().map(|vpc| scene.inventory.acls(vpc))).await {
            for acl in acls? {
                let ours =
                    |entry: &&AclEntry| made.iter().any(|(a, e)| **a == acl.id && *e == *entry);
                seen.now.extend(acl.entries.iter().filter(ours).map(|entry| {
                    Change::DeleteAclEntry {
                        acl: acl.id.clone(),
                        number: entry.number,
                        egress: entry.egress,
                    }
                }));
            }
        }
        Ok(seen)
    }
}

/// The entries that an ACL lacks, with the lowest numbers that are free, since the lowest decides.
fn denials(acl: &NetworkAcl, interfaces: &[Interface]) -> Vec<Change> {
    let hosts: BTreeSet<String> = interfaces
        .iter()
        .flat_map(|i| {
            let four = i.private.iter().map(|a| format!("{a}/32"));
            four.chain(i.ipv6.iter().map(|a| format!("{a}/128")))
        })
        .collect();
    let mut changes = Vec::new();
    for egress in [false, true] {
        let mine = || acl.entries.iter().filter(move |e| e.egress == egress);
        let taken: BTreeSet<_> = mine().map(|e| e.number).collect();
        let mut free = (1..=32_766).filter(|n| !taken.contains(n));
        for host in &hosts {
            if mine().any(|e| !e.allow && e.cidr == *host && e.protocol == "-1") {
                continue;
            }
            let Some(number) = free.next() else { break };
            changes.push(Change::CreateAclEntry {
                acl: acl.id.clone(),
                entry: AclEntry {
                    number,
                    egress,
                    allow: false,
                    cidr: host.clone(),
                    protocol: "-1".to_owned(),
                },
            });
        }
    }
    changes
}

/// The group by which tracked flows were dropped is gone: scaffolding only.
#[derive(Debug)]
pub struct Tidy;

#[async_trait]
impl Goal for Tidy {
    fn step(&self) -> Step {
        Step::Isolate
    }

    fn name(&self) -> &'static str {
        "tidy"
    }

    async fn look(&self, scene: &Scene, _history: &History) -> Result<Assessment> {
        let mut seen = Assessment::default();
        let interfaces = scene.inventory.interfaces(&scene.instance).await?;
        for vpc in vpcs(scene, &interfaces) {
            if let Some(group) = scene.inventory.find_group(vpc, &flush_name(scene)).await? {
                seen.now.push(Change::DeleteGroup { group: group.id });
            }
        }
        Ok(seen)
    }

    async fn look_back(&self, scene: &Scene, history: &History) -> Result<Assessment> {
        self.look(scene, history).await
    }
}
