//! Evidence in another account, over HTTP: shared, copied there, a stack made there and deleted again. No machine runs in it, so
//! that the room is silent; a key that is another account's can not be asked for, so that nothing is encrypted.

use cleanroom_harness::emulators::{Kind, REGION};
use serde_json::{Value, json};

use super::{
    account::{Account, assert_verified, boto},
    room::{settings, short},
};

const ROLE: &str = "arn:aws:iam::111122223333:role/cleanroom-forensic";

/// What is in the forensic account, and whom each snapshot of the other one is shared with.
fn elsewhere(account: &Account) -> Value {
    let code = "
got = client('sts').assume_role(RoleArn=sys.argv[2], RoleSessionName='test')['Credentials']
def there(service):
    keys = {'aws_access_key_id': got['AccessKeyId'], 'aws_secret_access_key': got['SecretAccessKey'], 'aws_session_token': got['SessionToken']}
    return boto3.client(service, endpoint_url=sys.argv[1], **keys)
tagged = [{'Name': 'tag-key', 'Values': ['cleanroom:case']}]
def snapshots(ec2):
    return ec2.describe_snapshots(Filters=tagged)['Snapshots']
own = client('ec2')
def shared(id):
    found = own.describe_snapshot_attribute(SnapshotId=id, Attribute='createVolumePermission')
    return [p['UserId'] for p in found['CreateVolumePermissions']]
copies = [{t['Key']: t['Value'] for t in s['Tags']} for s in snapshots(there('ec2'))]
def stacks(cloudformation):
    return [s['StackId'] for s in cloudformation.describe_stacks()['Stacks']]
print(json.dumps({
    'copies': copies,
    'shared': {s['SnapshotId']: shared(s['SnapshotId']) for s in snapshots(own)},
    'stacks': stacks(there('cloudformation')),
    'stacks_at_home': stacks(client('cloudformation')),
}))
";
    boto(&account.url(), REGION, code, &[ROLE])
}

#[test]
fn evidence_is_copied_and_examined_in_another_account() {
    let account = Account::of(Kind::Plain);
    let station = account.station();
    settings(&station);
    std::fs::create_dir(station.home().join("artifacts")).expect("a folder");
    station.write("artifacts/cleanroom-agent", "an agent");
    station.expect(0, &["deploy", "--artifacts", "artifacts", "--agent-only"]);
    let there = ["--forensic-account", ROLE];
    let with = |words: &[&'static str]| [words, &there].concat();
    let own = "arn:aws:iam::123456789012:role/cleanroom-forensic";
    let same = station.expect(2, &["cases", "--forensic-account", own]);
    assert!(same.stderr.contains("name a role of another"), "{same}");

    let checks = station.expect(3, &with(&["preflight"]));
    let admits = checks
        .stdout
        .lines()
        .filter_map(|line| serde_json::from_str::<Value>(line).ok())
        .find(|check| check["name"] == "bucket admits its rooms")
        .expect("a check of the bucket's policy");
    assert_eq!(admits["level"], "missing", "{admits}");
    assert!(admits["fix"].as_str().is_some_and(|fix| fix.contains("role/cleanroom/*")), "{admits}");

    let instance = account.world.instance();
    let plan = station.expect(0, &[&["plan", instance, "--reason", "a test"], &there[..]].concat());
    let plan = plan.record("plan");
    let planned: Vec<_> = plan["entries"]
        .as_array()
        .expect("entries")
        .iter()
        .filter(|e| e["step"] == "clean_room")
        .filter_map(|e| e["operation"].as_str())
        .collect();
    assert!(planned.contains(&"ec2:ModifySnapshotAttribute"), "{planned:?}");
    assert!(planned.contains(&"ec2:CopySnapshot"), "{planned:?}");

    let typed = [&["respond", instance, "--reason", "a test"], &there[..]].concat();
    let ran = station.expect(3, &typed);
    let report = ran.report();
    let case = report["case"].as_str().expect("a case").to_owned();
    assert_eq!((&report["contained"], &report["preserved"]), (&json!(true), &json!(true)), "{ran}");
    let told = short(&report);
    assert!(told.len() == 1 && told[0].contains("is silent"), "{ran}");
    let state = elsewhere(&account);
    let copies = state["copies"].as_array().expect("copies");
    assert_eq!(copies.len(), 1, "{state:#}");
    assert_eq!(copies[0]["cleanroom:case"], case.as_str(), "{state:#}");
    assert_eq!(copies[0]["cleanroom:account"], "123456789012", "{state:#}");
    let shared = state["shared"].as_object().expect("snapshots");
    let source = copies[0]["cleanroom:copy-of"].as_str().expect("an id");
    assert_eq!(shared[source], json!(["111122223333"]), "{state:#}");
    let stacks = state["stacks"].as_array().expect("stacks");
    assert!(stacks.len() == 1 && stacks[0].to_string().contains(":111122223333:"), "{state:#}");
    assert_eq!(state["stacks_at_home"], json!([]), "{state:#}");

    // It goes on with the same copy, the same order and the same stack.
    assert_eq!(short(&station.expect(3, &typed).report()), told);
    assert_eq!(elsewhere(&account), state);
    let status = station.expect(3, &["status", &case]).record("status");
    assert_eq!(status["elsewhere"].as_array().map(Vec::len), Some(2), "{status:#}");

    let refused = station.expect(1, &["teardown", &case, "--yes"]);
    assert!(refused.stderr.contains("--forensic-account"), "{refused}");
    for _ in 0..2 {
        let torn = station.expect(0, &[&["teardown", &case, "--yes"], &there[..]].concat());
        let torn = torn.record("torn_down");
        assert_eq!(torn["whole"], true, "{torn:#}");
        assert_eq!(torn["left"].as_array().map(Vec::len), Some(4), "{torn:#}");
    }
    let after = elsewhere(&account);
    assert_eq!((&after["copies"], &after["shared"]), (&state["copies"], &state["shared"]));
    assert_eq!(after["stacks"], json!([]), "{after:#}");
    account.state().assert_contained(&case, "without its room elsewhere");
    assert_verified(&station, &case);
}
