//! The instance as it was before the response touched it: all that release needs.
//!
//! Purpose: reads it, in as few dependent calls as there can be, and says of each part that could not be read why.
//! Reads the cloud only. Never records what an earlier response did as the original state: where
//! the case is not new, the log has it.

use std::{
    collections::{BTreeMap, BTreeSet},
    fmt::Display,
    time::Duration,
};

use cleanroom_cloud::{
    Association, Classic, GroupId, Guards, Instance, Interface, InterfaceId, Inventory, Membership,
    Profile, ScalingGroup, Target, TargetGroup, TargetGroupArn,
};
use cleanroom_contract::{InstanceId, VolumeId};
use futures_util::{StreamExt as _, future::join_all, stream};
use serde::{Deserialize, Serialize};
use tokio::time::Instant;

use crate::{
    case::{Shared, lock},
    engine::again,
};

/// What could be read, or why it could not.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Known<T> {
    /// What was read.
    Is(T),
    /// Why nothing was.
    Unknown(String),
}

impl<T> Known<T> {
    /// What was read, if anything.
    pub fn get(&self) -> Option<&T> {
        match self {
            Self::Is(value) => Some(value),
            Self::Unknown(_) => None,
        }
    }

    fn from(result: Result<T, impl Display>) -> Self {
        match result {
            Ok(value) => Self::Is(value),
            Err(error) => Self::Unknown(error.to_string()),
        }
    }
}

/// An instance's place in its Auto Scaling group, and the group.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Scaling {
    /// Its place.
    pub membership: Membership,
    /// The group; none where it could not be read.
    pub group: Option<ScalingGroup>,
}

/// An interface, and whether it is given a public address on its own.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct OriginalInterface {
    /// The interface.
    pub interface: Interface,
    /// Whether `AssociatePublicIpAddress` is on.
    pub auto_public: Known<bool>,
}

/// The instance before the response.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Original {
    /// Its description.
    pub instance: Instance,
    /// Its guards.
    pub guards: Known<Guards>,
    /// Its interfaces with their own groups.
    pub interfaces: Known<Vec<OriginalInterface>>,
    /// Its Auto Scaling group.
    pub scaling: Known<Option<Scaling>>,
    /// Its registrations with target groups, by instance id and by address.
    pub targets: Known<Vec<(TargetGroupArn, Target)>>,
    /// Classic load balancers it is registered with.
    pub classic: Known<Vec<String>>,
    /// Its instance profile's associations.
    pub associations: Known<Vec<Association>>,
    /// Its instance profile and role.
    pub profile: Known<Option<Profile>>,
}

impl Original {
    /// What is known from the description alone: for a plan's start, and where nothing else could be read.
    #[must_use]
    pub fn of(instance: Instance) -> Self {
        fn unread<T>() -> Known<T> {
            Known::Unknown("not read".to_owned())
        }
        Self {
            instance,
            guards: unread(),
            interfaces: unread(),
            scaling: unread(),
            targets: unread(),
            classic: unread(),
            associations: unread(),
            profile: unread(),
        }
    }

    /// The volumes it had.
    #[must_use]
    pub fn volumes(&self) -> BTreeSet<VolumeId> {
        self.instance.volumes.iter().map(|v| v.volume.clone()).collect()
    }

    /// The groups that each interface had.
    #[must_use]
    pub fn groups(&self) -> BTreeMap<InterfaceId, BTreeSet<GroupId>> {
        let interfaces = self.interfaces.get().map(Vec::as_slice).unwrap_or_default();
        interfaces.iter().map(|i| (i.interface.id.clone(), i.interface.groups.clone())).collect()
    }

    /// Never takes what a response did for the original: an interface that has one of `ours` gets the groups that its
    /// tags tell of, or none.
    pub fn exclude(&mut self, ours: &BTreeSet<GroupId>) {
        let Known::Is(interfaces) = &mut self.interfaces else { return };
        for OriginalInterface { interface, .. } in interfaces {
            if !interface.groups.is_disjoint(ours) {
                interface.groups = crate::steps::tag::recorded(interface).unwrap_or_default();
            }
        }
    }

    /// What could not be read: release will not be able to restore it.
    #[must_use]
    pub fn unknown(&self) -> Vec<(&'static str, &str)> {
        fn why<T>(part: &Known<T>) -> Option<&str> {
            match part {
                Known::Is(_) => None,
                Known::Unknown(why) => Some(why),
            }
        }
        [
            ("guards", why(&self.guards)),
            ("interfaces", why(&self.interfaces)),
            ("Auto Scaling group", why(&self.scaling)),
            ("target groups", why(&self.targets)),
            ("classic load balancers", why(&self.classic)),
            ("instance profile's associations", why(&self.associations)),
            ("instance profile", why(&self.profile)),
        ]
        .into_iter()
        .filter_map(|(name, why)| Some((name, why?)))
        .collect()
    }
}

/// Reads it all, each part within the bound. The longest chain is two calls: the interfaces and then their public addresses, the index of target
/// groups and then their targets, the membership and then the group, the association and then its profile.
pub async fn read(
    inventory: &dyn Inventory,
    instance: Instance,
    shared: &Shared,
    bound: Duration,
) -> Original {
    let id = instance.id.clone();
    let profile = || async {
        match &instance.profile {
            Some(arn) => inventory.profile(arn).await.map(Some),
            None => Ok(None),
        }
    };
    let interfaces = async {
        // Nothing can be isolated whose interfaces are not known: worth more patience than the rest.
        let interfaces = again(bound * 4, || listed(inventory, &instance)).await?;
        let autos = interfaces.iter().map(|i| {
            let id = i.id.clone();
            async move { again(bound, || inventory.auto_public_address(&id)).await }
        });
        let autos = join_all(autos).await;
        Ok::<_, String>((interfaces, autos))
    };
    let (guards, interfaces, scaling, index, classic, associations, profile) = tokio::join!(
        again(bound, || inventory.guards(&id)),
        interfaces,
        again(bound, || scaling(inventory, &id)),
        again(bound, || target_index(inventory, shared)),
        again(bound, || inventory.classic_balancers()),
        again(bound, || inventory.profile_associations(&id)),
        again(bound, profile),
    );
    let addresses: BTreeSet<String> = interfaces
        .iter()
        .flat_map(|(interfaces, _)| interfaces)
        .flat_map(|i| i.private.iter().chain(&i.ipv6).cloned())
        .collect();
    let interfaces = interfaces.map(|(interfaces, autos)| {
        let pair =
            |(interface, auto)| OriginalInterface { interface, auto_public: Known::from(auto) };
        interfaces.into_iter().zip(autos).map(pair).collect()
    });
    Original {
        guards: Known::from(guards),
        interfaces: Known::from(interfaces),
        scaling: Known::from(scaling),
        targets: Known::from(index.map(|index| registrations(index, &id, &addresses))),
        classic: Known::from(classic.map(|all| memberships(&all, &id))),
        associations: Known::from(associations),
        profile: Known::from(profile),
        instance,
    }
}

/// How long an interface that the instance names is waited for where it does not show.
const SHOW: Duration = Duration::from_secs(2);

/// The interfaces. One that does not show is waited for: its own groups are to be recorded before it is cut.
async fn listed(
    inventory: &dyn Inventory,
    instance: &Instance,
) -> cleanroom_cloud::Result<Vec<Interface>> {
    let ends = Instant::now() + SHOW;
    let mut pause = Duration::from_millis(100);
    loop {
        let interfaces = inventory.interfaces(&instance.id).await?;
        if instance.unlisted(&interfaces).is_empty() || Instant::now() + pause >= ends {
            return Ok(interfaces);
        }
        tokio::time::sleep(pause).await;
        pause *= 2;
    }
}

async fn scaling(
    inventory: &dyn Inventory,
    id: &InstanceId,
) -> cleanroom_cloud::Result<Option<Scaling>> {
    let Some(membership) = inventory.membership(id).await? else { return Ok(None) };
    // The membership alone lets it leave; the group serves release and the record.
    let group = inventory.scaling_group(&membership.group).await.ok();
    Ok(Some(Scaling { membership, group }))
}

/// The Region's target groups and their targets, asked once a run: no API maps an instance to its target
/// groups.
pub async fn target_index<'s>(
    inventory: &dyn Inventory,
    shared: &'s Shared,
) -> cleanroom_cloud::Result<&'s [(TargetGroup, Vec<Target>)]> {
    let index = shared.target_groups.get_or_try_init(|| async {
        let groups = inventory.target_groups().await?;
        // Lambda functions and other load balancers are no hosts.
        let groups = groups.into_iter().filter(|g| matches!(g.kind.as_str(), "instance" | "ip"));
        let reads: Vec<_> = groups
            .map(|group| async move {
                // What an attempt has learned before its time was up is not asked again.
                let known = lock(&shared.targets).get(&group.arn).cloned();
                if let Some(targets) = known {
                    return Ok((group, targets));
                }
                let targets = match inventory.targets(&group.arn).await {
                    // One that was deleted since it was listed has no targets.
                    Err(error) if error.kind == cleanroom_cloud::ErrorKind::NotFound => Vec::new(),
                    targets => targets?,
                };
                lock(&shared.targets).insert(group.arn.clone(), targets.clone());
                Ok((group, targets))
            })
            .collect();
        let answers: Vec<_> = stream::iter(reads).buffered(16).collect().await;
        answers.into_iter().collect::<cleanroom_cloud::Result<Vec<_>>>()
    });
    index.await.map(Vec::as_slice)
}

/// The registrations of one instance in the index.
#[must_use]
pub fn registrations(
    index: &[(TargetGroup, Vec<Target>)],
    id: &InstanceId,
    addresses: &BTreeSet<String>,
) -> Vec<(TargetGroupArn, Target)> {
    let mine = |target: &&Target| {
        !target.draining && (target.id == id.as_str() || addresses.contains(&target.id))
    };
    index
        .iter()
        .flat_map(|(group, targets)| {
            targets.iter().filter(mine).map(|target| (group.arn.clone(), target.clone()))
        })
        .collect()
}

/// The classic load balancers that an instance is registered with.
fn memberships(all: &[Classic], id: &InstanceId) -> Vec<String> {
    all.iter().filter(|c| c.instances.contains(id)).map(|c| c.name.clone()).collect()
}
