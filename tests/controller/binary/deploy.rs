//! The response stack from an empty account to its deletion, over HTTP, with the template and the state machines that are
//! shipped. MiniStack makes its resources; no program runs in its functions here.

use std::{fs, path::Path};

use cleanroom_harness::emulators::{MiniStack, REGION};
use serde_json::{Value, json};

use super::{
    account::{Slot, boto},
    station::Station,
};

/// What the account's buckets are called by.
const ARTIFACTS: &str = "cleanroom-artifacts-123456789012-us-east-1";
const EVIDENCE: &str = "cleanroom-evidence-123456789012-us-east-1";

/// A machine with artifacts and without any settings.
fn station(endpoint: &str) -> Station {
    let mut station = Station::new(endpoint);
    station.unset("CLEANROOM_BUCKET");
    station.unset("CLEANROOM_TOPIC");
    fs::create_dir(station.home().join("dist")).expect("a folder");
    station.write("dist/cleanroom-agent", "an agent");
    // How a zip begins. Who reads further gets a true one.
    station.write("dist/cleanroom-lambda.zip", b"PK\x03\x04");
    station
}

/// Each bucket's keys, and whether it is versioned and closed.
fn buckets(endpoint: &str) -> Value {
    let code = "
s3 = client('s3')
def about(name):
    keys = [o['Key'] for o in s3.list_objects_v2(Bucket=name).get('Contents', [])]
    if name != sys.argv[2]:
        return {'keys': keys}
    block = s3.get_public_access_block(Bucket=name)['PublicAccessBlockConfiguration']
    policy = json.loads(s3.get_bucket_policy(Bucket=name)['Policy'])
    return {
        'keys': keys,
        'versioned': s3.get_bucket_versioning(Bucket=name).get('Status'),
        'closed': all(block.values()) and len(block) == 4,
        'tls': any('aws:SecureTransport' in json.dumps(s) for s in policy['Statement']),
    }
print(json.dumps({b['Name']: about(b['Name']) for b in s3.list_buckets()['Buckets']}))
";
    boto(endpoint, REGION, code, &[ARTIFACTS])
}

fn calls(station: &Station, from: u64) -> Vec<String> {
    let name = |call: &Value| call["operation"].as_str().unwrap_or_default().to_owned();
    station.calls_since(from).iter().map(name).collect()
}

#[test]
fn a_stack_is_deployed_twice_and_deleted_and_its_evidence_stays() {
    let _slot = Slot::take();
    let ministack = MiniStack::start().expect("ministack starts");
    let station = station(&ministack.url());
    let code = "
import zipfile
with zipfile.ZipFile(sys.argv[2], 'w') as packed:
    packed.writestr('bootstrap', 'a program that nobody starts')
print('null')
";
    let zip = station.home().join("dist/cleanroom-lambda.zip");
    boto(&ministack.url(), REGION, code, &[zip.to_str().expect("a path")]);
    let typed = ["deploy", "--artifacts", "dist", "--yes"];

    let first = station.run(&typed);
    // What an emulator lacks, preflight says; nothing of the stack.
    first.expect_any(&[0, 3]);
    assert!(first.records("change").len() > 50, "{first}");
    assert!(first.records("change").iter().all(|c| c["action"] == "Add"), "{first}");
    let stack = first.record("stack");
    assert_eq!(stack["status"], "CREATE_COMPLETE", "{stack:#}");
    assert_eq!(stack["outputs"]["EvidenceBucket"], EVIDENCE, "{stack:#}");
    assert!(!first.records("stack_event").is_empty(), "{first}");
    assert!(first.records("check").len() > 10, "{first}");
    let policy = first.record("service_control_policy");
    assert_eq!(policy["policy"]["Statement"][0]["Sid"], "ReserveCleanroomTags", "{policy:#}");
    let found = buckets(&ministack.url());
    let artifacts = &found[ARTIFACTS];
    let closed = json!([artifacts["versioned"], artifacts["closed"], artifacts["tls"]]);
    assert_eq!(closed, json!(["Enabled", true, true]), "{found:#}");
    assert_eq!(artifacts["keys"].as_array().map(Vec::len), Some(4), "{found:#}");
    assert_eq!(found[EVIDENCE]["keys"].as_array().map(Vec::len), Some(2), "{found:#}");

    let from = station.log_length();
    let again = station.run(&typed);
    again.expect_any(&[0, 3]);
    assert!(again.stderr.contains("as it should be: nothing was changed"), "{again}");
    assert!(again.records("change").is_empty(), "{again}");
    let called = calls(&station, from);
    assert!(called.contains(&"DeleteChangeSet".to_owned()), "{called:?}");
    assert!(!called.iter().any(|c| c == "ExecuteChangeSet" || c == "CreateBucket"), "{called:?}");
    assert_eq!(buckets(&ministack.url()), found, "nothing is uploaded twice");

    // Settings and parameters that people choose; what they chose stays.
    station.write("lambda.toml", "severity = 8.0\n[room]\nrules = [\"team.yar\"]\n");
    station.write("team.yar", "rule team { condition: false }");
    let changed = [
        "deploy",
        "--artifacts",
        "dist",
        "--yes",
        "--settings",
        "lambda.toml",
        "--parameter",
        "CaseHours=24",
    ];
    let third = station.run(&changed);
    third.expect_any(&[0, 3]);
    assert_eq!(third.record("stack")["status"], "UPDATE_COMPLETE", "{third}");
    let deployed = third.record("deployed");
    assert_eq!(deployed["rules"][0]["name"], "team.yar", "functions find them there: {third}");
    let fourth = station.run(&typed);
    assert!(fourth.stderr.contains("nothing was changed"), "{fourth}");
    assert_eq!(fourth.record("deployed"), deployed, "they stay");
    let found = buckets(&ministack.url());

    station.expect(2, &["deploy", "--delete"]);
    let deleted = station.expect(0, &["deploy", "--delete", "--yes"]).record("stack_deleted");
    assert_eq!(deleted["bucket"], EVIDENCE, "{deleted:#}");
    assert_eq!(deleted["decrypted"], true, "{deleted:#}");
    let after = buckets(&ministack.url());
    assert_eq!(after[EVIDENCE], found[EVIDENCE], "{after:#}");
    let nothing = station.expect(0, &["deploy", "--delete", "--yes"]);
    assert!(nothing.stderr.contains("nothing was deleted"), "{nothing}");

    // The evidence that is there is not run into, but named.
    let from = station.log_length();
    let refused = station.expect(2, &typed);
    assert!(refused.stderr.contains("--parameter MakeBucket=false"), "{refused}");
    assert!(!calls(&station, from).iter().any(|c| c.starts_with("Put") || c.starts_with("Create")));
    let key = format!("Key={}", deleted["key"].as_str().expect("a key"));
    let with = ["--parameter", "MakeBucket=false", "--parameter", key.as_str()];
    let anew = station.run(&[&typed[..], &with[..]].concat());
    anew.expect_any(&[0, 3]);
    assert_eq!(anew.record("stack")["status"], "CREATE_COMPLETE", "{anew}");
    assert_eq!(anew.record("stack")["outputs"]["KmsKey"], deleted["key"], "{anew}");
}

#[test]
fn what_is_typed_wrong_is_told_before_anything_is_called() {
    let station = station(super::station::CLOSED);
    let wrong = |arguments: &[&str], told: &str| {
        let ran = station.expect(2, &[&["deploy", "--artifacts", "dist"], arguments].concat());
        assert!(ran.stderr.contains(told), "{ran}");
    };
    wrong(&[], "give --yes");
    wrong(&["--yes", "--parameter", "LogDay=90"], "there is no LogDay");
    wrong(&["--yes", "--parameter", "LogDays=91"], "LogDays is one of 90, 180");
    wrong(&["--yes", "--parameter", "ProgramKey=x"], "ProgramKey is what --artifacts says");
    wrong(&["--yes", "--parameter", "LogDays=90", "--parameter", "LogDays=180"], "given twice");
    station.write("wrong.toml", "severity = 11.0\n");
    wrong(&["--yes", "--settings", "wrong.toml"], "severity is from 0.0 to 10.0");
    station.write("template.toml", "[room]\ntemplate = \"own.yaml\"\n");
    wrong(&["--yes", "--settings", "template.toml"], "template in [room]");
    station
        .write("forensic.toml", "forensic_account = \"arn:aws:iam::111122223333:role/forensic\"\n");
    wrong(&["--yes", "--settings", "forensic.toml"], "forensic_account is for people");
    station.write("rules.toml", "[room]\nrules = [\"nowhere.yar\"]\n");
    wrong(&["--yes", "--settings", "rules.toml"], "nowhere.yar");
    wrong(&["--yes", "--tools", "nowhere.tar.gz"], "nowhere.tar.gz is not there");
    station.write("dist/cleanroom-lambda.zip", "no zip");
    wrong(&["--yes"], "is no zip");
    fs::remove_file(station.home().join(Path::new("dist/cleanroom-lambda.zip"))).expect("removed");
    wrong(&["--yes"], "--agent-only");
    assert_eq!(station.calls_since(0), Vec::<Value>::new());
}
