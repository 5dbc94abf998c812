//! Instances: found, described, and what guards them.

use std::{collections::BTreeSet, time::Duration};

use aws_sdk_ec2::{
    config::Region,
    types::{
        Filter, HttpTokensState, Instance as Described, InstanceAttributeName,
        InstanceLifecycleType, InstanceMetadataEndpointState, InstanceStateName, InstanceType,
        PlatformValues, ProductCodeValues,
    },
};
use cleanroom_cloud::{
    Association, AssociationId, AttachedVolume, CloudError, ErrorKind, Guards, ImageId, Instance,
    InstanceQuery, InstanceState, InterfaceId, Metadata, Result, VpcId,
};
use cleanroom_contract::InstanceId;
use tokio::task::JoinSet;

use super::{id, literally, need, tags, timestamp};
use crate::{
    clients::Clients,
    error::{bad_answer, fail, missing},
    facts::filter,
    pages,
};

const DESCRIBE: &str = "ec2:DescribeInstances";

/// How long other Regions are searched for a better error.
const OTHER_REGIONS: Duration = Duration::from_secs(5);

/// The states of an instance that still is.
const ALIVE: [&str; 4] = ["pending", "running", "stopping", "stopped"];

/// One instance.
pub(crate) async fn get(clients: &Clients, instance: &InstanceId) -> Result<Instance> {
    let mut found = by_ids(clients, [instance.to_string()].into()).await?;
    found.pop().ok_or_else(|| missing(DESCRIBE, instance))
}

/// The instances that fit.
pub(crate) async fn find(clients: &Clients, query: &InstanceQuery) -> Result<Vec<Instance>> {
    match query {
        InstanceQuery::Id(instance) => match by_ids(clients, [instance.to_string()].into()).await {
            Err(error) if error.kind == ErrorKind::NotFound => Ok(Vec::new()),
            found => found,
        },
        InstanceQuery::Name(name) => {
            let filters =
                vec![filter("tag:Name", [literally(name)]), filter("instance-state-name", ALIVE)];
            by_filters(clients, name, filters).await
        }
        InstanceQuery::Address(address) => by_address(clients, address).await,
    }
}

/// Those of these instances that are there: a filter, unlike a list of ids, fails for none that is not.
pub(crate) async fn those_of(clients: &Clients, ids: &[InstanceId]) -> Result<Vec<Instance>> {
    let Some(first) = ids.first() else { return Ok(Vec::new()) };
    let resource = format!("{first} and {} more", ids.len() - 1);
    let filters = vec![filter("instance-id", ids.iter().map(InstanceId::as_str))];
    by_filters(clients, &resource, filters).await
}

/// Instances of these ids. One that is not there fails all of them, so callers ask for what they know to be there.
async fn by_ids(clients: &Clients, ids: BTreeSet<String>) -> Result<Vec<Instance>> {
    let resource = ids.iter().map(String::as_str).collect::<Vec<_>>().join(",");
    let request =
        clients.ec2.describe_instances().set_instance_ids(Some(ids.into_iter().collect()));
    let answer = request.send().await.map_err(|error| fail(DESCRIBE, &resource, error))?;
    read(answer.reservations.unwrap_or_default())
}

/// Instances that fit every filter.
async fn by_filters(
    clients: &Clients,
    resource: &str,
    filters: Vec<Filter>,
) -> Result<Vec<Instance>> {
    let stream =
        clients.ec2.describe_instances().set_filters(Some(filters)).into_paginator().send();
    let pages = pages::all(DESCRIBE, resource, stream).await?;
    read(pages.into_iter().flat_map(|page| page.reservations.unwrap_or_default()))
}

/// Instances with this address on any of their interfaces. The filters on instances see the primary interface
/// only, so interfaces and Elastic IPs are asked as well.
async fn by_address(clients: &Clients, address: &str) -> Result<Vec<Instance>> {
    const INTERFACES: &str = "ec2:DescribeNetworkInterfaces";
    const ADDRESSES: &str = "ec2:DescribeAddresses";
    let private = by_filters(clients, address, vec![filter("private-ip-address", [address])]);
    let public = by_filters(clients, address, vec![filter("ip-address", [address])]);
    let interfaces = async {
        let stream = clients
            .ec2
            .describe_network_interfaces()
            .filters(filter("addresses.private-ip-address", [address]))
            .into_paginator()
            .send();
        pages::all(INTERFACES, address, stream).await
    };
    let elastic = async {
        let request =
            clients.ec2.describe_addresses().filters(filter("public-ip", [address])).send();
        request.await.map_err(|error| fail(ADDRESSES, address, error))
    };
    let (mut found, public, interfaces, elastic) =
        tokio::try_join!(private, public, interfaces, elastic)?;

    found.extend(public);
    let known: BTreeSet<String> = found.iter().map(|instance| instance.id.to_string()).collect();
    let attached = interfaces
        .into_iter()
        .flat_map(|page| page.network_interfaces.unwrap_or_default())
        .filter_map(|interface| interface.attachment?.instance_id);
    let associated = elastic
        .addresses
        .unwrap_or_default()
        .into_iter()
        .filter_map(|address| address.instance_id.filter(|id| !id.is_empty()));
    let more: BTreeSet<String> =
        attached.chain(associated).filter(|i| !known.contains(i)).collect();
    if !more.is_empty() {
        found.extend(by_ids(clients, more).await?);
    }
    found.sort_by(|a, b| a.id.cmp(&b.id));
    found.dedup_by(|a, b| a.id == b.id);
    Ok(found)
}

/// The instances of reservations, each of which names the account.
fn read(
    reservations: impl IntoIterator<Item = aws_sdk_ec2::types::Reservation>,
) -> Result<Vec<Instance>> {
    let mut instances = Vec::new();
    for reservation in reservations {
        let account = reservation.owner_id.unwrap_or_default();
        for described in reservation.instances.unwrap_or_default() {
            instances.push(instance(&account, described)?);
        }
    }
    Ok(instances)
}

/// One instance in our words.
fn instance(account: &str, i: Described) -> Result<Instance> {
    let instance: InstanceId = id(DESCRIBE, "instanceId", i.instance_id())?;
    let name = instance.as_str();
    let state = need(DESCRIBE, name, "instanceState", i.state().and_then(|s| s.name()))?;
    let metadata = i.metadata_options();
    Ok(Instance {
        account: account.into(),
        state: state_of(name, state)?,
        image: ImageId::from(i.image_id().unwrap_or_default()),
        instance_type: i.instance_type().map(InstanceType::as_str).unwrap_or_default().to_owned(),
        architecture: i.architecture().map(|a| a.as_str()).unwrap_or_default().to_owned(),
        vpc: i.vpc_id().filter(|id| !id.is_empty()).map(VpcId::from),
        subnet: i.subnet_id().filter(|id| !id.is_empty()).map(str::to_owned),
        zone: i.placement().and_then(|p| p.availability_zone()).unwrap_or_default().to_owned(),
        launched: timestamp(*need(DESCRIBE, name, "launchTime", i.launch_time())?),
        spot: i.instance_lifecycle() == Some(&InstanceLifecycleType::Spot),
        windows: i.platform() == Some(&PlatformValues::Windows),
        product_codes: i
            .product_codes()
            .iter()
            .filter(|code| code.product_code_type() == Some(&ProductCodeValues::Marketplace))
            .filter_map(|code| code.product_code_id().map(str::to_owned))
            .collect(),
        root_device: i.root_device_name().map(str::to_owned),
        volumes: volumes(&i)?,
        interfaces: i
            .network_interfaces()
            .iter()
            .filter_map(|interface| interface.network_interface_id().map(InterfaceId::from))
            .collect(),
        profile: i.iam_instance_profile().and_then(|p| p.arn()).map(str::to_owned),
        metadata: Metadata {
            // An answer of a time before the option, or of a terminated instance, says nothing; the
            // endpoint was always on then.
            endpoint: metadata.and_then(|m| m.http_endpoint())
                != Some(&InstanceMetadataEndpointState::Disabled),
            tokens_required: metadata.and_then(|m| m.http_tokens())
                == Some(&HttpTokensState::Required),
        },
        key_pair: i.key_name().map(str::to_owned),
        tags: tags(i.tags),
        id: instance,
    })
}

/// The EBS volumes of an instance's block device mapping.
fn volumes(i: &Described) -> Result<Vec<AttachedVolume>> {
    let mut volumes = Vec::new();
    for mapping in i.block_device_mappings() {
        let Some(ebs) = mapping.ebs() else { continue };
        volumes.push(AttachedVolume {
            device: mapping.device_name().unwrap_or_default().to_owned(),
            volume: id(DESCRIBE, "volumeId", ebs.volume_id())?,
            delete_on_termination: ebs.delete_on_termination().unwrap_or(false),
        });
    }
    Ok(volumes)
}

/// A state in our words.
fn state_of(instance: &str, state: &InstanceStateName) -> Result<InstanceState> {
    Ok(match state {
        InstanceStateName::Pending => InstanceState::Pending,
        InstanceStateName::Running => InstanceState::Running,
        InstanceStateName::ShuttingDown => InstanceState::ShuttingDown,
        InstanceStateName::Terminated => InstanceState::Terminated,
        InstanceStateName::Stopping => InstanceState::Stopping,
        InstanceStateName::Stopped => InstanceState::Stopped,
        other => return Err(bad_answer(DESCRIBE, instance, format!("a known state: {other}"))),
    })
}

/// What keeps an instance from going. Each attribute is a call of its own.
pub(crate) async fn guards(clients: &Clients, instance: &InstanceId) -> Result<Guards> {
    use InstanceAttributeName as Name;
    let (termination, stop, shutdown) = tokio::try_join!(
        attribute(clients, instance, Name::DisableApiTermination),
        // Younger than the others, and not known everywhere: its setting is refused then, which is told.
        async {
            match attribute(clients, instance, Name::DisableApiStop).await {
                Err(error) if matches!(error.kind, ErrorKind::Refused | ErrorKind::Unsupported) => {
                    Ok(None)
                }
                answer => answer.map(|answer| answer.disable_api_stop),
            }
        },
        attribute(clients, instance, Name::InstanceInitiatedShutdownBehavior),
    )?;
    let on = |value: Option<aws_sdk_ec2::types::AttributeBooleanValue>| {
        value.and_then(|value| value.value).unwrap_or(false)
    };
    let shutdown = shutdown.instance_initiated_shutdown_behavior.and_then(|value| value.value);
    Ok(Guards {
        termination: on(termination.disable_api_termination),
        stop: on(stop),
        shutdown_terminates: shutdown.as_deref() == Some("terminate"),
    })
}

/// One attribute of an instance.
async fn attribute(
    clients: &Clients,
    instance: &InstanceId,
    name: InstanceAttributeName,
) -> Result<aws_sdk_ec2::operation::describe_instance_attribute::DescribeInstanceAttributeOutput> {
    clients
        .ec2
        .describe_instance_attribute()
        .instance_id(instance.as_str())
        .attribute(name)
        .send()
        .await
        .map_err(|error| fail("ec2:DescribeInstanceAttribute", instance, error))
}

/// Whether instances of the type have disks that die with them.
pub(crate) async fn has_instance_store(clients: &Clients, instance_type: &str) -> Result<bool> {
    const OPERATION: &str = "ec2:DescribeInstanceTypes";
    let answer = clients
        .ec2
        .describe_instance_types()
        .instance_types(InstanceType::from(instance_type))
        .send()
        .await
        .map_err(|error| fail(OPERATION, instance_type, error))?;
    let found = answer.instance_types.unwrap_or_default().into_iter().next();
    let found = found.ok_or_else(|| missing(OPERATION, instance_type))?;
    Ok(found.instance_storage_supported.unwrap_or(false))
}

/// Instances of the image, and those that carry the profile.
pub(crate) async fn like(
    clients: &Clients,
    image: Option<&str>,
    profile: Option<&str>,
) -> Result<Vec<InstanceId>> {
    let of_image = async {
        let Some(image) = image else { return Ok(Vec::new()) };
        let filters = vec![filter("image-id", [image]), filter("instance-state-name", ALIVE)];
        by_filters(clients, image, filters).await
    };
    let with_profile = async {
        let Some(profile) = profile else { return Ok(Vec::new()) };
        // Associations take no filter on the profile, so all of them are read.
        let all = associations(clients, profile, Vec::new()).await?;
        Ok::<_, CloudError>(
            all.into_iter().filter(|(_, a)| a.active && a.profile == profile).collect::<Vec<_>>(),
        )
    };
    let (of_image, with_profile) = tokio::try_join!(of_image, with_profile)?;
    let ids: BTreeSet<InstanceId> = of_image
        .into_iter()
        .map(|instance| instance.id)
        .chain(with_profile.into_iter().map(|(instance, _)| instance))
        .collect();
    Ok(ids.into_iter().collect())
}

/// The instance's profile associations.
pub(crate) async fn profile_associations(
    clients: &Clients,
    instance: &InstanceId,
) -> Result<Vec<Association>> {
    let of_it = vec![filter("instance-id", [instance.as_str()])];
    let found = associations(clients, instance.as_str(), of_it).await?;
    Ok(found.into_iter().map(|(_, association)| association).collect())
}

/// Profile associations that fit, each with its instance.
async fn associations(
    clients: &Clients,
    resource: &str,
    filters: Vec<Filter>,
) -> Result<Vec<(InstanceId, Association)>> {
    const OPERATION: &str = "ec2:DescribeIamInstanceProfileAssociations";
    let request = clients.ec2.describe_iam_instance_profile_associations();
    let stream =
        request.set_filters(Some(filters).filter(|f| !f.is_empty())).into_paginator().send();
    let pages = pages::all(OPERATION, resource, stream).await?;
    let mut found = Vec::new();
    for a in pages.into_iter().flat_map(|p| p.iam_instance_profile_associations.unwrap_or_default())
    {
        let profile = a.iam_instance_profile().and_then(|profile| profile.arn());
        let state = a.state().map(|state| state.as_str());
        found.push((
            id(OPERATION, "instanceId", a.instance_id())?,
            Association {
                id: AssociationId::from(need(
                    OPERATION,
                    resource,
                    "associationId",
                    a.association_id(),
                )?),
                profile: profile.unwrap_or_default().to_owned(),
                active: matches!(state, Some("associating" | "associated")),
            },
        ));
    }
    Ok(found)
}

/// Other Regions that have the instance: a help for a person who typed the wrong one, so a Region that does not
/// answer in time is left out.
pub(crate) async fn regions_with(clients: &Clients, instance: &InstanceId) -> Result<Vec<String>> {
    const OPERATION: &str = "ec2:DescribeRegions";
    let answer = clients
        .ec2
        .describe_regions()
        .send()
        .await
        .map_err(|error| fail(OPERATION, instance, error))?;
    let others = answer.regions.unwrap_or_default().into_iter().filter_map(|r| r.region_name);
    let mut asked = JoinSet::new();
    for region in others.filter(|region| *region != clients.region) {
        let there = aws_sdk_ec2::config::Builder::default().region(Region::new(region.clone()));
        let call = clients
            .ec2_first
            .describe_instances()
            .instance_ids(instance.as_str())
            .customize()
            .config_override(there);
        asked.spawn(async move {
            let answer = call.send().await.ok()?;
            (!answer.reservations.unwrap_or_default().is_empty()).then_some(region)
        });
    }
    let mut found = Vec::new();
    let all = async {
        while let Some(answer) = asked.join_next().await {
            found.extend(answer.ok().flatten());
        }
    };
    let _some_may_be_missing = tokio::time::timeout(OTHER_REGIONS, all).await;
    found.sort();
    Ok(found)
}
