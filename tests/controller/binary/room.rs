//! A clean room from deploy to teardown, over HTTP: the stack is made, and no machine runs in it, so that the room is silent.

use cleanroom_harness::emulators::{Kind, REGION};
use serde_json::{Value, json};

use super::{
    account::Account,
    station::{BUCKET, Station},
};

/// A template of which every emulator makes a stack, with the parameters of the shipped one.
fn template() -> String {
    let fixed = [
        "Case",
        "Bucket",
        "BucketKey",
        "OrderKey",
        "OrderSha256",
        "AgentKey",
        "AgentSha256",
        "ToolsKey",
        "ToolsSha256",
        "Topic",
        "UsesStates",
        "ImageId",
        "InstanceType",
        "RootGib",
        "VolumeType",
        "Iops",
        "Throughput",
        "InitializationRate",
        "KmsKey",
        "IdleSeconds",
        "Zone",
        "Vpc",
        "Subnet",
        "SecurityGroup",
        "S3PrefixList",
        "PermissionsBoundary",
        "Snapshot01",
    ];
    let parameters: String =
        fixed.map(|name| format!("  {name}: {{Type: String, Default: \"\"}}\n")).concat();
    format!(
        "AWSTemplateFormatVersion: '2010-09-09'\nParameters:\n{parameters}Resources:\n  RoomVpc:\n    Type: AWS::EC2::VPC\n    Properties: {{CidrBlock: 10.9.0.0/24}}\n"
    )
}

/// Settings of a room that tells nothing, and is soon found silent.
pub(super) fn settings(station: &Station) {
    station.write("room.yaml", template());
    station.write(
        "cleanroom.toml",
        "[room]\ntemplate = \"room.yaml\"\nimage = \"ami-0fedcba9876543210\"\n\n[bounds]\nsilence = 3\npoll = 0.5\n",
    );
}

/// What of a report is short of the room.
pub(super) fn short(report: &Value) -> Vec<String> {
    let all = report["shortfalls"].as_array().expect("shortfalls").iter();
    let of = all.filter(|s| s["step"] == "clean_room");
    of.map(|s| s["what"].as_str().expect("a text").to_owned()).collect()
}

/// Puts a bundle below a prefix that is whole by its own sums.
fn plant(account: &Account, prefix: &str) {
    let code = "
import hashlib
s3 = client('s3')
put = lambda name, body: s3.put_object(Bucket=sys.argv[2], Key=sys.argv[3] + name, Body=body)
put('report.json', b'{}')
put('SHA256SUMS', f\"{hashlib.sha256(b'{}').hexdigest()}  report.json\\n\".encode())
";
    super::account::boto(&account.url(), REGION, code, &[BUCKET, prefix]);
}

#[test]
fn a_room_is_deployed_for_made_once_found_silent_and_torn_down() {
    let account = Account::of(Kind::Plain);
    let station = account.station();
    settings(&station);
    std::fs::create_dir(station.home().join("artifacts")).expect("a folder");
    station.write("artifacts/cleanroom-agent", "an agent");
    station.expect(2, &["deploy", "--artifacts", "nowhere", "--agent-only"]);
    let with_tools =
        ["deploy", "--artifacts", "artifacts", "--agent-only", "--tools", "artifacts/tools.tar.gz"];
    station.write("artifacts/tools.tar.gz", "tools");
    station.write("artifacts/SHA256SUMS", format!("{}  tools.tar.gz\n", "0".repeat(64)));
    let refused = station.expect(1, &with_tools);
    assert!(refused.stderr.contains("tools.tar.gz is not the one"), "{refused}");
    let sum = "f9d35d43770d39092a663e665e82ae1d84a9e0da3d0d10c407acada6a40cd281";
    station.write("artifacts/SHA256SUMS", format!("{sum}  tools.tar.gz\n"));
    let deployed = station.expect(0, &with_tools).record("deployed");
    assert_eq!(deployed["tools"]["key"], format!("tools/{sum}/tools.tar.gz"), "{deployed:#}");
    let again = station
        .expect(0, &["deploy", "--artifacts", "artifacts", "--agent-only"])
        .record("deployed");
    assert_eq!(deployed, again, "kept under its digest, once; the tools stay");

    // Rules and lists are deployed with it, and stay until others are.
    station.write("webshells.yar", "rule a { condition: true }");
    station.write("c2.txt", "192.0.2.1\n");
    let agent_only = ["deploy", "--artifacts", "artifacts", "--agent-only"];
    let given = ["--rules", "webshells.yar", "--indicators", "c2.txt"];
    station.expect(2, &[&agent_only[..], &["--rules", "nowhere.yar"]].concat());
    let with_rules = station.expect(0, &[&agent_only[..], &given].concat()).record("deployed");
    let name = |kind: &str| with_rules[kind][0]["name"].as_str().map(str::to_owned);
    assert_eq!(name("rules").as_deref(), Some("webshells.yar"), "{with_rules:#}");
    assert_eq!(name("indicators").as_deref(), Some("c2.txt"), "{with_rules:#}");
    assert_eq!(station.expect(0, &agent_only).record("deployed"), with_rules);

    let typed =
        ["respond", account.world.instance(), "--reason", "a test", "--rules", "webshells.yar"];
    let ran = station.expect(3, &typed);
    let report = ran.report();
    let case = report["case"].as_str().expect("a case").to_owned();
    assert_eq!((&report["contained"], &report["preserved"]), (&json!(true), &json!(true)), "{ran}");
    let told = short(&report);
    assert!(told.len() == 1 && told[0].contains("is silent"), "{ran}");
    let status = station.expect(3, &["status", &case]).record("status");
    assert_eq!(status["state"], "partial", "{status:#}");
    assert_eq!(status["scans"][0]["reported"], false, "{status:#}");
    assert_eq!(status["rooms"][0]["stands"], true, "{status:#}");
    assert!(status["rooms"][0]["dollars_an_hour"].as_f64() > Some(0.2), "{status:#}");
    let closed = station.expect(1, &["close", &case]);
    assert!(closed.stderr.contains(&format!("cleanroom teardown {case}")), "{closed}");

    // It goes on with the same order and the same stack.
    let joined = station.expect(3, &typed);
    assert_eq!(short(&joined.report()), told, "{joined}");
    let events = account.events(&case);
    let ordered = events.iter().filter(|e| e["event"] == "ordered").count();
    assert_eq!(ordered, 1, "{events:#?}");

    station.expect(1, &["report", &case]);
    station.expect(1, &["fetch", &case]);
    // What lies in the bucket is no report: nobody has read it back.
    let scan = status["scans"][0]["scan"].as_str().expect("a scan");
    plant(&account, &format!("cases/{case}/bundles/{scan}/"));
    for command in ["report", "fetch"] {
        let none = station.expect(1, &[command, &case]);
        assert!(none.stderr.contains(&format!("the bucket has {scan}")), "{none}");
    }
    let named = station.expect(4, &["fetch", &case, "--scan", scan, "--out", "planted"]);
    assert!(named.stderr.contains("IS NOT IN THE CUSTODY LOG"), "{named}");
    assert_eq!(named.record("fetched")["logged"], false, "{named}");
    let refused = station.expect(2, &["teardown", &case]);
    assert!(refused.stderr.contains("--yes"), "{refused}");
    for _ in 0..2 {
        let torn = station.expect(0, &["teardown", &case, "--yes"]).record("torn_down");
        assert_eq!(torn["whole"], true, "{torn:#}");
        assert_eq!(torn["left"].as_array().map(Vec::len), Some(3), "{torn:#}");
    }
    let after = account.state();
    after.assert_contained(&case, "without its room");
    after.assert_evidence_whole("without its room");
    super::account::assert_verified(&station, &case);
}
