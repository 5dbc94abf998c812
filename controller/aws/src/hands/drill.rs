//! Drills: a harmless instance, and the only deletions of instances and snapshots that this program knows.
//!
//! Purpose: the gate before both. What is to go is described first, and goes only where its own tags say that it is the
//! drill's; the policy of drills has the same as a condition. Never deletes by an id alone.

use aws_sdk_ec2::{
    Client,
    types::{
        HttpTokensState, InstanceMetadataOptionsRequest, InstanceType, ResourceType,
        TagSpecification,
    },
};
use cleanroom_cloud::{
    Change, ErrorKind, Made, Result, drill_tags, marks_drill, marks_drill_snapshot,
};
use cleanroom_contract::{CaseId, InstanceId, SnapshotId};

use super::{done, gone, sdk_tags};
use crate::{
    clients::Clients,
    ec2::{instances, volumes},
    error::{bad_answer, fail, own},
    iam,
};

const RUN: &str = "ec2:RunInstances";
const TERMINATE: &str = "ec2:TerminateInstances";
const DELETE: &str = "ec2:DeleteSnapshot";

/// `#!/bin/sh` and a comment, in base64, as `RunInstances` takes it.
const IDLE: &str = "IyEvYmluL3NoCiMgQSBkcmlsbCBvZiBjbGVhbnJvb206IG5vdGhpbmcgcnVucyBoZXJlLgo=";

/// Launches or deletes what is a drill's.
pub(super) async fn apply(clients: &Clients, ec2: &Client, change: &Change) -> Result<Made> {
    match change {
        Change::RunDrill { drill, image, instance_type, subnet } => {
            let launch = (image.as_str(), instance_type.as_str(), subnet.clone());
            run(ec2, drill, launch).await
        }
        Change::TerminateDrill { drill, instance } => {
            terminate(clients, ec2, drill, instance).await
        }
        Change::DeleteDrillSnapshot { drill, instance, snapshot } => {
            delete(clients, ec2, (drill, instance), snapshot).await
        }
        _ => Err(iam::foreign(change)),
    }
}

/// Launches one instance: marked at once, without a profile and a key pair.
async fn run(
    ec2: &Client,
    drill: &CaseId,
    (image, instance_type, subnet): (&str, &str, Option<String>),
) -> Result<Made> {
    let tags = sdk_tags(&drill_tags(drill));
    let tagged = [ResourceType::Instance, ResourceType::Volume].map(|kind| {
        TagSpecification::builder().resource_type(kind).set_tags(Some(tags.clone())).build()
    });
    let metadata = InstanceMetadataOptionsRequest::builder()
        .http_tokens(HttpTokensState::Required)
        .http_put_response_hop_limit(1);
    let call = ec2
        .run_instances()
        .image_id(image)
        .instance_type(InstanceType::from(instance_type))
        .min_count(1)
        .max_count(1)
        .client_token(drill.as_str())
        .set_subnet_id(subnet)
        .user_data(IDLE)
        .metadata_options(metadata.build())
        .set_tag_specifications(Some(tagged.into()));
    let answer = call.send().await.map_err(|error| fail(RUN, drill, error))?;
    let made = answer.instances.unwrap_or_default().into_iter().next();
    let id = made.and_then(|instance| instance.instance_id?.parse().ok());
    Ok(Made::Instance(id.ok_or_else(|| bad_answer(RUN, drill, "instanceId"))?))
}

/// Terminates the drill's instance, and no other.
async fn terminate(
    clients: &Clients,
    ec2: &Client,
    drill: &CaseId,
    instance: &InstanceId,
) -> Result<Made> {
    let there = match instances::get(clients, instance).await {
        Err(error) if error.kind == ErrorKind::NotFound => return Ok(Made::Nothing),
        there => there?,
    };
    if !marks_drill(&there.tags, drill) {
        let why = format!("it is not marked as the instance of {drill}: nothing was done to it");
        return Err(own(TERMINATE, instance, ErrorKind::Refused, "NotThisDrill", why));
    }
    let call = ec2.terminate_instances().instance_ids(instance.as_str());
    gone(call.send().await.map_err(|error| fail(TERMINATE, instance, error)))
}

/// Deletes a snapshot of the drill, and no other.
async fn delete(
    clients: &Clients,
    ec2: &Client,
    (drill, instance): (&CaseId, &InstanceId),
    snapshot: &SnapshotId,
) -> Result<Made> {
    let all = volumes::snapshots(clients, drill).await?;
    let marked = |tags| marks_drill_snapshot(tags, drill, instance);
    if !all.iter().any(|there| there.id == *snapshot && marked(&there.tags)) {
        let why = format!("no snapshot of {drill} and {instance} has this id: nothing was done");
        return Err(own(DELETE, snapshot, ErrorKind::Refused, "NotThisDrill", why));
    }
    let call = ec2.delete_snapshot().snapshot_id(snapshot.as_str());
    match call.send().await.map_err(|error| fail(DELETE, snapshot, error)) {
        Err(error) if error.kind == ErrorKind::NotFound => Ok(Made::Nothing),
        answer => done(answer),
    }
}

#[cfg(test)]
mod tests {
    use cleanroom_cloud::Hands as _;

    use super::*;
    use crate::{Aws, canned::canned};

    /// What EC2 says of an instance with this tag.
    fn described(tag: &str) -> String {
        format!(
            "<DescribeInstancesResponse><reservationSet><item><ownerId>123456789012</ownerId><instancesSet><item>\
             <instanceId>i-0123456789abcdef0</instanceId><imageId>ami-0123456789abcdef0</imageId>\
             <instanceState><name>running</name></instanceState><instanceType>t3.micro</instanceType>\
             <launchTime>2026-01-01T00:00:00.000Z</launchTime><placement><availabilityZone>us-east-1a</availabilityZone></placement>\
             <architecture>x86_64</architecture>\
             <tagSet><item><key>cleanroom:drill</key><value>{tag}</value></item></tagSet>\
             </item></instancesSet></item></reservationSet></DescribeInstancesResponse>"
        )
    }

    /// What EC2 says of a snapshot with these values of the tags of case, drill and instance.
    fn snapshot(case: &str, drill: &str, instance: &str) -> String {
        let tags = [("case", case), ("drill", drill), ("instance", instance)]
            .map(|(k, v)| format!("<item><key>cleanroom:{k}</key><value>{v}</value></item>"))
            .concat();
        format!(
            "<DescribeSnapshotsResponse><snapshotSet><item><snapshotId>snap-0123456789abcdef0</snapshotId>\
             <volumeId>vol-0123456789abcdef0</volumeId><status>completed</status><volumeSize>8</volumeSize>\
             <startTime>2026-01-01T00:00:00.000Z</startTime><tagSet>{tags}</tagSet></item></snapshotSet></DescribeSnapshotsResponse>"
        )
    }

    async fn applied(change: &Change, described: String) -> (Result<Made>, Vec<String>) {
        let canned = canned(None, move |request, _| {
            let answer = if request.contains("Action=Describe") {
                if request.contains("Locked") { String::new() } else { described.clone() }
            } else if request.contains("Action=RunInstances") {
                "<RunInstancesResponse><instancesSet><item><instanceId>i-0123456789abcdef0</instanceId></item></instancesSet></RunInstancesResponse>".to_owned()
            } else if request.contains("Action=TerminateInstances") {
                "<TerminateInstancesResponse/>".to_owned()
            } else {
                String::new()
            };
            (200, answer)
        });
        let made = Aws { clients: canned.clients.clone() }.apply(change).await;
        let acts = canned.sent().into_iter().filter(|sent| !sent.contains("Action=Describe"));
        (made, acts.collect())
    }

    fn drill() -> CaseId {
        "drill-1".parse().expect("a case")
    }

    fn instance() -> InstanceId {
        "i-0123456789abcdef0".parse().expect("an id")
    }

    #[tokio::test]
    async fn an_instance_is_terminated_only_where_it_is_marked_as_this_drill_s() {
        let change = Change::TerminateDrill { drill: drill(), instance: instance() };
        let (made, sent) = applied(&change, described("drill-1")).await;
        assert_eq!(made, Ok(Made::Nothing));
        assert!(
            sent.len() == 1 && sent[0].contains("InstanceId.1=i-0123456789abcdef0"),
            "{sent:?}"
        );
        for tag in ["drill-2", ""] {
            let (made, sent) = applied(&change, described(tag)).await;
            assert_eq!(made.expect_err("refused").code, "NotThisDrill");
            assert!(sent.is_empty(), "{sent:?}");
        }
        // A case of another kind is no drill, whatever an instance says of itself.
        let real = "i-0123456789abcdef0-1".parse().expect("a case");
        let change = Change::TerminateDrill { drill: real, instance: instance() };
        let (made, sent) = applied(&change, described("i-0123456789abcdef0-1")).await;
        assert!(made.is_err() && sent.is_empty(), "{made:?} {sent:?}");
    }

    #[tokio::test]
    async fn a_snapshot_is_deleted_only_where_its_own_tags_say_so() {
        let change = Change::DeleteDrillSnapshot {
            drill: drill(),
            instance: instance(),
            snapshot: "snap-0123456789abcdef0".parse().expect("an id"),
        };
        let (made, sent) =
            applied(&change, snapshot("drill-1", "drill-1", "i-0123456789abcdef0")).await;
        assert_eq!(made, Ok(Made::Nothing));
        assert!(sent.len() == 1 && sent[0].contains("SnapshotId=snap-0123456789abcdef0"));
        for (case, drill, instance) in [
            ("i-0123456789abcdef0-1", "drill-1", "i-0123456789abcdef0"),
            ("drill-1", "drill-2", "i-0123456789abcdef0"),
            ("drill-1", "drill-1", "i-0fedcba9876543210"),
        ] {
            let (made, sent) = applied(&change, snapshot(case, drill, instance)).await;
            assert_eq!(made.expect_err("refused").code, "NotThisDrill");
            assert!(sent.is_empty(), "{sent:?}");
        }
    }

    #[tokio::test]
    async fn a_drill_is_launched_marked_and_with_its_name_as_token() {
        let change = Change::RunDrill {
            drill: drill(),
            image: "ami-0123456789abcdef0".into(),
            instance_type: "t3.micro".to_owned(),
            subnet: None,
        };
        let (made, sent) = applied(&change, String::new()).await;
        assert_eq!(made, Ok(Made::Instance(instance())));
        let sent = &sent[0];
        for part in [
            "ClientToken=drill-1",
            "MetadataOptions.HttpTokens=required",
            "Tag.1.Key=Name",
            "Key=cleanroom%3Adrill",
            "ResourceType=volume",
        ] {
            assert!(sent.contains(part), "{part}: {sent}");
        }
        for part in ["IamInstanceProfile", "KeyName", "SubnetId"] {
            assert!(!sent.contains(part), "{part}: {sent}");
        }
    }
}
