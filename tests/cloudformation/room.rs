//! The instance, its volumes, and the order in which they come.

use std::collections::{BTreeMap, BTreeSet};

use cleanroom_contract::Room;
use serde_json::{Value, json};

use super::support::{
    AGENT_SHA256, BUCKET, CASE, KEY, MOST, Parameters, least, parameters, room, rooms, shared,
    template,
};

#[test]
fn the_instance_is_closed() {
    for (which, rendered) in rooms() {
        let instances: Vec<_> = rendered.of_type("AWS::EC2::Instance").collect();
        assert_eq!(instances.len(), 1, "{which}");
        let (name, instance) = instances[0];
        assert_eq!(name, "Room");
        assert!(instance.get("KeyName").is_none(), "{which}");
        let options = &instance["MetadataOptions"];
        assert_eq!(options["HttpTokens"], "required", "{which}");
        assert_eq!(options["HttpEndpoint"], "enabled", "{which}");
        assert_eq!(options["HttpPutResponseHopLimit"], 1, "{which}");
        assert_eq!(options["InstanceMetadataTags"], "disabled", "{which}");
        let interfaces = instance["NetworkInterfaces"].as_array().expect("interfaces");
        assert_eq!(interfaces.len(), 1, "{which}");
        assert_eq!(interfaces[0]["AssociatePublicIpAddress"], false, "{which}");
        assert_eq!(interfaces[0]["GroupSet"].as_array().map(Vec::len), Some(1), "{which}");
        assert!(interfaces[0].get("Ipv6AddressCount").is_none(), "{which}");
        for elsewhere in ["SecurityGroupIds", "SecurityGroups", "SubnetId", "Volumes"] {
            assert!(instance.get(elsewhere).is_none(), "{which}: {elsewhere}");
        }
        assert_eq!(instance["InstanceInitiatedShutdownBehavior"], "stop", "{which}");
        assert_eq!(instance["IamInstanceProfile"], "Profile-0123456789abcdef0", "{which}");
    }
    let own = room(&parameters(1));
    assert_eq!(
        own.property("Room", "/NetworkInterfaces/0/GroupSet/0"),
        "RoomGroup-0123456789abcdef0"
    );
    assert_eq!(
        own.property("Room", "/NetworkInterfaces/0/SubnetId"),
        "PrivateSubnet-0123456789abcdef0"
    );
    let shared = room(&shared(parameters(1)));
    assert_eq!(shared.property("Room", "/NetworkInterfaces/0/GroupSet/0"), "sg-0123456789abcdef0");
    assert_eq!(
        shared.property("Room", "/NetworkInterfaces/0/SubnetId"),
        "subnet-0123456789abcdef0"
    );
}

#[test]
fn every_disk_is_encrypted() {
    for (which, rendered) in rooms() {
        let key = if which.contains("least") { Value::Null } else { KEY.into() };
        let disks = rendered.property("Room", "/BlockDeviceMappings").as_array().expect("disks");
        assert_eq!(disks.len(), 1, "{which}");
        let volumes = rendered.of_type("AWS::EC2::Volume").map(|(_, volume)| volume);
        for disk in volumes.chain([&disks[0]["Ebs"]]) {
            assert_eq!(disk["Encrypted"], true, "{which}: {disk}");
            assert_eq!(disk["KmsKeyId"], key, "{which}: {disk}");
        }
        assert_eq!(rendered.property("Log", "/KmsKeyId"), &key, "{which}");
        assert_eq!(disks[0]["Ebs"]["DeleteOnTermination"], true, "{which}");
    }
}

#[test]
fn sessions_are_on_record() {
    for (which, rendered) in rooms() {
        let inputs = rendered.property("Session", "/Content/inputs");
        assert_eq!(&inputs["cloudWatchLogGroupName"], rendered.property("Log", "/LogGroupName"));
        assert_eq!(inputs["cloudWatchStreamingEnabled"], true, "{which}");
        let keyed = !rendered.property("Log", "/KmsKeyId").is_null();
        assert_eq!(inputs["cloudWatchEncryptionEnabled"], keyed, "{which}: no session would open");
        assert_eq!(rendered.resources["Log"]["DeletionPolicy"], "Retain", "{which}");
    }
}

#[test]
fn there_are_as_many_volumes_as_snapshots() {
    for count in [1, 2, 7, MOST] {
        let rendered = room(&parameters(count));
        assert_eq!(rendered.of_type("AWS::EC2::Volume").count(), count);
        assert_eq!(rendered.of_type("AWS::EC2::VolumeAttachment").count(), count);
        let outputs = rendered.outputs.keys().filter(|name| name.starts_with("Volume"));
        assert_eq!(outputs.count(), count);
        let devices: BTreeSet<_> = rendered
            .of_type("AWS::EC2::VolumeAttachment")
            .map(|(_, attachment)| attachment["Device"].to_string())
            .collect();
        assert_eq!(devices.len(), count);
    }
}

#[test]
fn all_volumes_are_alike() {
    let template = template("clean-room.yaml");
    let document = template.document();
    let nth = |n: usize| {
        let name = format!("{n:02}");
        let device = format!("/dev/sd{}", char::from(b'a' + u8::try_from(n).expect("few")));
        let alike = |part: &str, kind: &str| {
            let text = document[part][format!("{kind}{name}")].to_string();
            text.replace(&name, "NN").replace(&device, "/dev/sdX")
        };
        [
            alike("Parameters", "Snapshot"),
            alike("Conditions", "Has"),
            alike("Resources", "Volume"),
            alike("Resources", "Attachment"),
            alike("Outputs", "Volume"),
        ]
    };
    let first = nth(1);
    assert!(first.iter().all(|text| text != "null"), "{first:?}");
    assert!(first[3].contains("/dev/sdX"), "{first:?}");
    for n in 2..=MOST {
        assert_eq!(nth(n), first, "{n}");
    }
    let names = document["Resources"].as_object().expect("resources").keys();
    let volumes = names.filter(|name| name.starts_with("Volume") || name.starts_with("Attachment"));
    assert_eq!(volumes.count(), 2 * MOST);
}

#[test]
fn volumes_are_made_as_told() {
    let rendered = room(&parameters(2));
    let volume = rendered.property("Volume02", "");
    let expected = json!({
        "SnapshotId": "snap-00000000000000002", "AvailabilityZone": "us-east-1a", "Encrypted": true,
        "KmsKeyId": KEY, "VolumeType": "gp3", "Iops": "16000", "Throughput": "1000",
        "VolumeInitializationRate": "300", "Tags": [{"Key": "cleanroom:case", "Value": CASE}],
    });
    assert_eq!(volume, &expected);
    let least = room(&least());
    for absent in ["/Throughput", "/VolumeInitializationRate", "/KmsKeyId"] {
        assert_eq!(least.property("Volume01", absent), &Value::Null, "{absent}");
    }
    // Deleted with the stack; what is attached is let go by the instance's end.
    for (name, resource) in &rendered.resources {
        let policy = match resource["Type"].as_str() {
            Some("AWS::EC2::VolumeAttachment" | "AWS::Logs::LogGroup") => json!("Retain"),
            _ => Value::Null,
        };
        assert_eq!(resource["DeletionPolicy"], policy, "{name}");
    }
}

/// The names of everything that must be there before a resource is: what it names, and what it says it waits for.
fn needed(document: &Value, name: &str) -> BTreeSet<String> {
    fn named(value: &Value, found: &mut BTreeSet<String>) {
        match value {
            Value::Object(members) => {
                for (key, member) in members {
                    match (key.as_str(), member) {
                        ("Ref", Value::String(name)) => drop(found.insert(name.clone())),
                        ("Fn::GetAtt", Value::Array(path)) => {
                            found.extend(path[0].as_str().map(str::to_owned));
                        }
                        ("Fn::Sub", argument) => {
                            let pattern = argument.get(0).unwrap_or(argument);
                            let pieces = pattern.as_str().expect("a pattern").split("${").skip(1);
                            let names = pieces.filter_map(|piece| piece.split(['}', '.']).next());
                            found.extend(names.map(str::to_owned));
                            named(argument, found);
                        }
                        ("DependsOn", Value::String(name)) => drop(found.insert(name.clone())),
                        ("DependsOn", list) => {
                            let names = list.as_array().into_iter().flatten();
                            found.extend(names.filter_map(|name| name.as_str().map(str::to_owned)));
                        }
                        _ => named(member, found),
                    }
                }
            }
            Value::Array(list) => list.iter().for_each(|one| named(one, found)),
            _ => {}
        }
    }
    let resources = &document["Resources"];
    let (mut all, mut open) = (BTreeSet::new(), vec![name.to_owned()]);
    while let Some(next) = open.pop() {
        let mut found = BTreeSet::new();
        named(&resources[&next], &mut found);
        for name in found.into_iter().filter(|name| resources.get(name).is_some()) {
            if all.insert(name.clone()) {
                open.push(name);
            }
        }
    }
    all
}

#[test]
fn the_room_starts_behind_closed_doors_and_before_its_evidence() {
    let template = template("clean-room.yaml");
    let document = template.document();
    let room = needed(document, "Room");
    for first in [
        "NameRulesOfNetwork",
        "NameRules",
        "AllNames",
        "RoutesOfSubnet",
        "EndpointsFromRooms",
        "RoomGroup",
        "S3Endpoint",
        "SnsEndpoint",
        "CloudFormationEndpoint",
        "LogsEndpoint",
        "SsmEndpoint",
        "SsmMessagesEndpoint",
        "StatesEndpoint",
        "Profile",
        "Role",
    ] {
        assert!(room.contains(first), "the room may start before {first}");
    }
    assert!(!room.iter().any(|name| name.starts_with("Attachment")), "{room:?}");
    assert_eq!(document["Resources"]["Room"]["CreationPolicy"]["ResourceSignal"]["Count"], 1);
    for n in 1..=MOST {
        assert!(needed(document, &format!("Attachment{n:02}")).contains("Room"), "{n}");
    }
    let evidence = &document["Resources"]["Evidence"];
    assert_eq!(evidence["Type"], "AWS::CloudFormation::WaitCondition");
    assert_eq!(evidence["CreationPolicy"]["ResourceSignal"]["Count"], 1);
    assert!(needed(document, "Evidence").contains("Room"));
    // Nothing waits for itself.
    for name in document["Resources"].as_object().expect("resources").keys() {
        assert!(!needed(document, name).contains(name), "{name} waits for itself");
    }
}

fn user_data(parameters: &Parameters) -> String {
    room(parameters).property("Room", "/UserData").as_str().expect("user data").to_owned()
}

#[test]
fn the_agent_reads_its_room_in_the_user_data() {
    for count in [1, 2, MOST] {
        let room = Room::in_user_data(&user_data(&parameters(count))).expect("a room");
        assert_eq!(room.case.as_str(), CASE);
        assert_eq!(room.bucket, BUCKET);
        assert_eq!((room.region.as_str(), room.stack.as_str()), ("us-east-1", "cleanroom-case"));
        assert_eq!(room.order.key, parameters(count)["OrderKey"]);
        assert_eq!(room.order.sha256.to_string(), AGENT_SHA256);
        assert_eq!(room.idle_seconds, 3600);
        let volumes: BTreeMap<_, _> =
            room.volumes.iter().map(|(from, to)| (from.to_string(), to.to_string())).collect();
        let expected = (1..=count).map(|n| (format!("snap-{n:017x}"), format!("vol-{n:0>17}")));
        assert_eq!(volumes, expected.collect());
    }
}

#[test]
fn user_data_fits_with_as_many_volumes_as_there_can_be() {
    // The longest that each may be; EC2 takes 16 KiB before base64.
    let mut longest = parameters(MOST);
    let names =
        [("Case", 64), ("Bucket", 63), ("OrderKey", 128), ("AgentKey", 128), ("ToolsKey", 128)];
    for (name, length) in names {
        let value = format!("{:x<length$}", longest[name]);
        longest.insert(name.to_owned(), value);
    }
    let data = user_data(&longest);
    assert!(data.len() <= 16 * 1024, "{} bytes", data.len());
    assert!(data.is_ascii());
}

#[test]
fn nothing_that_is_given_can_be_a_command() {
    // What stands unquoted in the script can be no more than letters, digits and a few signs.
    let template = template("clean-room.yaml");
    let declared = &template.document()["Parameters"];
    for name in [
        "Case",
        "Bucket",
        "OrderKey",
        "OrderSha256",
        "AgentKey",
        "AgentSha256",
        "ToolsKey",
        "ToolsSha256",
    ] {
        let pattern = declared[name]["AllowedPattern"].as_str().expect("a pattern");
        assert!(pattern.starts_with('^') && pattern.ends_with('$'), "{name}: {pattern}");
        for sign in [' ', '"', '\'', '\\', '`', ';', '&', '|', '<', '>', '#'] {
            assert!(!pattern.contains(sign), "{name}: {pattern}");
        }
        assert!(!pattern.contains("$("), "{name}: {pattern}");
        assert!(!pattern.contains("[^"), "{name}: {pattern}");
    }
    assert_eq!(declared["IdleSeconds"]["Type"], "Number");
    for name in ["Vpc", "Subnet", "SecurityGroup"] {
        let pattern = declared[name]["AllowedPattern"].as_str().expect("a pattern");
        assert!(pattern.ends_with("-[0-9a-f]+)?$"), "{name}: {pattern}");
    }
}
