//! The emulators and the worlds are what the other tests take them for.

use std::{
    net::{Ipv4Addr, SocketAddr, TcpStream},
    os::unix::process::CommandExt,
    path::Path,
    process::Stdio,
};

use serde_json::json;

use super::{http::ec2, server::Server, *};
use crate::{template::Template, tools::workspace_root};

fn running(pid: u32) -> bool {
    Path::new(&format!("/proc/{pid}")).exists()
}

#[test]
fn worlds_are_built_and_read() {
    let moto = Moto::start().expect("moto");

    let world = World::build(&moto, Kind::Full).expect("full");
    assert_eq!(world.account(), "123456789012");
    assert_eq!(world.instances().len(), 2);
    assert_eq!((world.interfaces().len(), world.volumes().len()), (2, 3));
    assert_ne!(world.groups(world.interfaces()[0]), world.groups(world.interfaces()[1]));
    let state = world.state(None).expect("state");
    assert_eq!(state["unread"], serde_json::json!({}));
    assert_eq!(state["state"], "running");
    assert_eq!(state["asg"], "web");
    assert_eq!(state["guards"]["instanceInitiatedShutdownBehavior"], "terminate");
    assert_eq!(state["interfaces"][0]["allocation_id"], world.allocation());
    assert_eq!(state["profile_associations"][0]["arn"], world.profile_arn());
    assert_eq!(state["classic_load_balancers"]["web-classic"], true);
    let groups = state["target_groups"].as_object().expect("target groups");
    assert!(groups.len() == 2 && groups.values().all(|targets| targets[0]["port"] == 443));
    corrections_hold(&moto, &world);

    moto.reset().expect("reset");
    let world = World::build(&moto, Kind::Plain).expect("plain");
    let state = world.state(None).expect("state");
    assert!(state["asg"].is_null() && state["public_ip"].is_string(), "{state}");
    assigned_addresses_can_be_given_up(&moto, &world);

    moto.reset().expect("reset");
    let world = World::build(&moto, Kind::Fleet(20)).expect("fleet");
    assert_eq!(world.instances().len(), 20);
    let scaled = world.json()["asg_instances"][4].as_str().expect("five in the group");
    assert_eq!(world.state(Some(scaled)).expect("state")["asg"], "fleet");

    let error = world.state(Some("i-0123456789abcdef0")).expect_err("no such instance");
    assert!(format!("{error:#}").contains("InvalidInstanceID.NotFound"), "{error:#}");
    let error = World::build(&moto, Kind::Plain).expect_err("not empty");
    assert!(format!("{error:#}").contains("reset()"), "{error:#}");
}

/// What moto would get wrong without `corrections.py`.
fn corrections_hold(moto: &Moto, world: &World) {
    let (port, instance) = (moto.0.port(), world.instance());
    let call = |action: &str, more: String| {
        let (status, body) = ec2(port, action, &more).expect(action);
        assert_eq!(status, 200, "{action}: {body}");
    };
    let [primary, second] = world.interfaces()[..] else { panic!("two interfaces") };
    let group = world.groups(second)[0];
    let replace = |group: &str| format!("&NetworkInterfaceId={primary}&SecurityGroupId.1={group}");
    call("ModifyNetworkInterfaceAttribute", replace(group));
    let (status, body) =
        ec2(port, "ModifyNetworkInterfaceAttribute", &replace("sg-0123456789abcdef0"))
            .expect("unknown group");
    assert!(status == 400 && body.contains("InvalidGroup.NotFound"), "{status}: {body}");
    let stop = "InstanceInitiatedShutdownBehavior.Value=stop";
    call("ModifyInstanceAttribute", format!("&InstanceId={instance}&{stop}"));
    call("ModifyInstanceMetadataOptions", format!("&InstanceId={instance}&HttpEndpoint=disabled"));

    let state = world.state(None).expect("state");
    assert_eq!(state["interfaces"][0]["groups"], serde_json::json!([group]));
    assert_eq!(state["security_groups"], serde_json::json!([group]));
    assert_eq!(state["guards"]["instanceInitiatedShutdownBehavior"], "stop");
    let attached = format!("&Filter.1.Name=attachment.instance-id&Filter.1.Value.1={instance}");
    let (_, body) = ec2(port, "DescribeVolumes", &attached).expect("volumes");
    assert_eq!(body.matches("<attachTime>").count(), world.volumes().len(), "{body}");
    let options = &state["metadata_options"];
    assert!(options["HttpEndpoint"] == "disabled" && options["HttpTokens"] == "required");
}

fn assigned_addresses_can_be_given_up(moto: &Moto, world: &World) {
    let primary = world.interfaces()[0];
    let more = format!("&NetworkInterfaceId={primary}&AssociatePublicIpAddress=false");
    let (status, body) =
        ec2(moto.0.port(), "ModifyNetworkInterfaceAttribute", &more).expect("modify");
    assert_eq!(status, 200, "{body}");
    let state = world.state(None).expect("state");
    assert!(state["public_ip"].is_null() && state["interfaces"][0]["public_ip"].is_null());
}

#[test]
fn a_server_ends_with_its_owner() {
    let moto = Moto::start().expect("moto");
    let (pid, port) = (moto.pid(), moto.0.port());
    assert!(running(pid) && moto.log().contains("data.json"));
    drop(moto);
    assert!(!running(pid));
    let address = SocketAddr::from((Ipv4Addr::LOCALHOST, port));
    TcpStream::connect(address).expect_err("nobody listens");

    // Where the owner is killed, only its end of the server's standard input goes.
    let scratch = tempfile::tempdir().expect("a temporary folder");
    let mut command = std::process::Command::new(python().expect("python"));
    server::isolate(&mut command, scratch.path());
    command.arg("-B").arg(venv::scripts().join("serve.py")).args(["moto", "--lifetime", "60"]);
    command.process_group(0);
    command.stdin(Stdio::piped()).stdout(Stdio::null()).stderr(Stdio::null());
    let mut child = command.spawn().expect("start");
    drop(child.stdin.take());
    assert!(!child.wait().expect("wait").success());
}

#[test]
fn a_server_that_does_not_come_up_tells_what_it_said() {
    let error = Microburst::start("https://ec2.us-east-1.amazonaws.com", 1).expect_err("AWS");
    assert!(format!("{error:#}").contains("must be an emulator"), "{error:#}");
    let error = Server::start("moto", &["--nonsense"], "/").expect_err("nonsense");
    assert!(format!("{error:#}").contains("unrecognized arguments"), "{error:#}");
}

#[test]
fn ministack_starts_and_forgets() {
    let ministack = MiniStack::start().expect("ministack");
    assert!(ministack.url().starts_with("http://127.0.0.1:"));
    ministack.reset().expect("reset");
}

#[test]
fn faults_come_at_their_rate_and_in_the_right_form() {
    let moto = Moto::start().expect("moto");
    let proxy = Microburst::start(&moto.url(), 7).expect("microburst");
    let port = proxy.0.port();
    let vpcs = || ec2(port, "DescribeVpcs", "");
    let (status, body) = vpcs().expect("nothing set");
    assert!(status == 200 && body.contains("vpc-"), "{status}: {body}");

    proxy.set(&[Fault::throttling("ec2", 0.3)]).expect("set");
    let mut throttled = 0;
    for _ in 0..200 {
        match vpcs().expect("an answer") {
            (200, _) => {}
            (503, body) if body.contains("<Code>RequestLimitExceeded</Code>") => throttled += 1,
            (status, body) => panic!("{status}: {body}"),
        }
    }
    // Four standard deviations of 200 draws at 0.3 are 26.
    assert!((34..=86).contains(&throttled), "{throttled} of 200");
    assert_eq!(proxy.fired().expect("fired").len(), throttled);

    proxy.set(&[Fault::new("ec2", 1.0, Injection::Reset).times(1)]).expect("set");
    let error = vpcs().expect_err("reset");
    assert!(format!("{error:#}").contains("reset"), "{error:#}");
    assert_eq!(vpcs().expect("once only").0, 200);

    let hold = Injection::TimeOut { hold: 50 };
    proxy.set(&[Fault::new("ec2", 1.0, hold).on("DescribeVpcs")]).expect("set");
    assert_eq!(vpcs().expect("held").0, 504);
    assert_eq!(ec2(port, "DescribeSubnets", "").expect("another operation").0, 200);

    let start = std::time::Instant::now();
    proxy.set(&[Fault::new("*", 1.0, Injection::Latency { min: 300, max: 400 })]).expect("set");
    assert_eq!(vpcs().expect("late").0, 200);
    assert!(start.elapsed().as_millis() >= 300);

    let named = "&GroupName=lost&GroupDescription=lost";
    proxy.set(&[Fault::new("ec2", 1.0, Injection::LostAnswer).times(1)]).expect("set");
    let answer = ec2(port, "CreateSecurityGroup", named);
    assert!(
        !matches!(&answer, Ok((_, body)) if body.contains("</CreateSecurityGroup")),
        "{answer:?}"
    );
    let (_, body) = ec2(port, "CreateSecurityGroup", named).expect("again");
    assert!(body.contains("InvalidGroup.Duplicate"), "it took effect: {body}");
}

#[test]
fn the_same_seed_meets_the_same_faults() {
    let moto = Moto::start().expect("moto");
    let pattern = |seed| {
        let proxy = Microburst::start(&moto.url(), seed).expect("microburst");
        proxy.set(&[Fault::throttling("ec2", 0.5)]).expect("set");
        let ask = |_| ec2(proxy.0.port(), "DescribeVpcs", "").expect("an answer").0;
        (0..40).map(ask).collect::<Vec<_>>()
    };
    let first = pattern(1);
    assert_eq!(first, pattern(1));
    assert_ne!(first, pattern(2));
}

/// The parameters of a room for these snapshots.
fn room_parameters(snapshots: &[String]) -> std::collections::BTreeMap<String, String> {
    let digest = "0".repeat(64);
    let fixed = [
        ("Case", "case-1"),
        ("Bucket", "cleanroom-evidence"),
        ("OrderKey", "cases/case-1/orders/20260102T030405Z-0123abcd.json"),
        ("OrderSha256", digest.as_str()),
        ("AgentKey", "agent/cleanroom-agent"),
        ("AgentSha256", digest.as_str()),
        ("Topic", "arn:aws:sns:us-east-1:123456789012:cleanroom"),
        ("ImageId", "ami-0123456789abcdef0"),
        ("Zone", "us-east-1a"),
        ("S3PrefixList", "pl-63a5400a"),
    ];
    let fixed = fixed.map(|(name, value)| (name.to_owned(), value.to_owned()));
    let named = |(n, id): (usize, &String)| (format!("Snapshot{:02}", n + 1), id.clone());
    fixed.into_iter().chain(snapshots.iter().enumerate().map(named)).collect()
}

/// The text of the first element of this name.
fn element(body: &str, name: &str) -> String {
    let (_, rest) = body.split_once(&format!("<{name}>")).expect(name);
    rest.split_once('<').expect(name).0.to_owned()
}

#[test]
fn the_clean_room_is_made_from_the_template_that_ships() {
    let moto = Moto::start().expect("moto");
    let port = moto.0.port();
    let call = |action: &str, more: &str, wanted: &str| {
        let (status, body) = ec2(port, action, more).expect(action);
        assert_eq!(status, 200, "{action}: {body}");
        element(&body, wanted)
    };
    let snapshots: Vec<_> = [8, 20]
        .iter()
        .map(|gib| {
            let volume = call(
                "CreateVolume",
                &format!("&AvailabilityZone=us-east-1a&Size={gib}"),
                "volumeId",
            );
            call("CreateSnapshot", &format!("&VolumeId={volume}"), "snapshotId")
        })
        .collect();
    let parameters = room_parameters(&snapshots);
    let path = workspace_root().join("cloudformation/clean-room.yaml");
    let stack = Stack::named(&moto, "cleanroom-case-1");
    let facts = stack.create(&path, &parameters).expect("a stack");

    // Not one byte of the template was changed for it, and what it makes is what the renderer says.
    assert_eq!(facts["status"], "CREATE_COMPLETE");
    let rendered = Template::read(&path).expect("a template");
    let rendered = rendered.render("cleanroom-case-1", &parameters).expect("a room");
    let kinds = rendered.resources.iter().map(|(name, what)| (name.clone(), what["Type"].clone()));
    assert_eq!(facts["resources"], json!(kinds.collect::<std::collections::BTreeMap<_, _>>()));
    let room = &facts["room"];
    let after_ids = |script: &str| {
        script.split_once("\nregion=").map(|(_, rest)| rest.to_owned()).expect("a script")
    };
    assert_eq!(
        after_ids(room["user_data"].as_str().expect("user data")),
        after_ids(rendered.property("Room", "/UserData").as_str().expect("user data"))
    );

    let volumes = room["volumes"].as_array().expect("volumes");
    let [first, second, root] = volumes.as_slice() else { panic!("{volumes:?}") };
    for (volume, gib, snapshot, n) in [(first, 8, &snapshots[0], 1), (second, 20, &snapshots[1], 2)]
    {
        assert_eq!((&volume["gib"], &volume["snapshot"]), (&json!(gib), &json!(snapshot)));
        assert_eq!(volume["id"], facts["outputs"][format!("Volume{n:02}")]);
        assert_eq!(
            (&volume["encrypted"], &volume["tags"]["cleanroom:case"]),
            (&json!(true), &json!("case-1"))
        );
        let pair = format!("\"{snapshot}\":{}", volume["id"]);
        assert!(room["user_data"].as_str().is_some_and(|script| script.contains(&pair)), "{pair}");
    }
    assert_eq!((&root["device"], &root["encrypted"]), (&json!("/dev/xvda"), &json!(true)));
    assert_eq!(room["instance"], facts["outputs"]["Instance"]);
    assert_eq!(room["subnet"], facts["outputs"]["Subnet"]);
    assert_eq!(room["groups"], json!([facts["outputs"]["SecurityGroup"]]));
    assert_eq!(
        (&room["public_ip"], &room["metadata_options"]["HttpTokens"]),
        (&json!(null), &json!("required"))
    );

    let instance = room["instance"].as_str().expect("an instance");
    stack.signal("Room", instance, "SUCCESS").expect("waits for a signal");
    let facts = stack.signal("Evidence", instance, "SUCCESS").expect("waits for a signal");
    let reason = format!("Received SUCCESS signal with UniqueId {instance}");
    assert_eq!(
        facts["signals"],
        json!([{"resource": "Room", "reason": reason}, {"resource": "Evidence", "reason": reason}])
    );
    for (resource, status) in [("Volume01", "SUCCESS"), ("Nothing", "SUCCESS"), ("Room", "MAYBE")] {
        assert!(stack.signal(resource, instance, status).is_err(), "{resource} {status}");
    }

    assert_eq!(stack.delete().expect("deleted")["status"], "DELETE_COMPLETE");
    for (volume, wanted) in [(first, 400), (root, 400)] {
        let id = volume["id"].as_str().expect("an id");
        let (status, body) =
            ec2(port, "DescribeVolumes", &format!("&VolumeId.1={id}")).expect("asked");
        assert_eq!(status, wanted, "{body}");
    }
}
