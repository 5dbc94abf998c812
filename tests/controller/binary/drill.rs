//! A drill over HTTP, to its end and cut short: what it made is gone, by the account's word, and its log stays.

use cleanroom_harness::emulators::{Kind, MiniStack, REGION};
use rustix::process::Signal;
use serde_json::{Value, json};

use super::{
    account::{Account, assert_verified, boto},
    station::Station,
    via::{deploy, executions},
};

/// The AMI of the account's own instance.
fn image(account: &Account) -> String {
    let code = "
found = client('ec2').describe_instances(InstanceIds=[sys.argv[2]])
print(json.dumps(found['Reservations'][0]['Instances'][0]['ImageId']))
";
    let found = boto(&account.url(), REGION, code, &[account.world.instance()]);
    found.as_str().expect("an id").to_owned()
}

/// What there is of drills: instances that live, volumes and snapshots.
fn there(account: &Account) -> Value {
    let code = "
ec2 = client('ec2')
mark = [{'Name': 'tag-key', 'Values': ['cleanroom:drill']}]
instances = [i for r in ec2.describe_instances(Filters=mark)['Reservations'] for i in r['Instances']]
living = [i['InstanceId'] for i in instances if i['State']['Name'] != 'terminated']
volumes = [v['VolumeId'] for v in ec2.describe_volumes(Filters=mark)['Volumes']]
snapshots = [s['SnapshotId'] for s in ec2.describe_snapshots(OwnerIds=['self'], Filters=mark)['Snapshots']]
print(json.dumps([len(instances), len(living), len(volumes), len(snapshots)]))
";
    boto(&account.url(), REGION, code, &[])
}

/// The drill that the station's account has a claim of, other than these.
fn named(station: &Station, account: &Account) -> String {
    let cases = account.claims().into_iter().map(|(_, claim)| claim["case"].clone());
    let mut drills = cases.filter(|case| case.as_str().is_some_and(|c| c.starts_with("drill-")));
    let drill = drills.next().expect("a drill was claimed");
    let drill = drill.as_str().expect("a text").to_owned();
    assert_verified(station, &drill);
    drill
}

#[test]
fn a_drill_runs_is_timed_and_leaves_its_log_only() {
    let account = Account::of(Kind::Plain);
    let station = account.station();
    let before = account.state();
    let image = image(&account);
    let refused = station.expect(2, &["drill", "--image-id", &image]);
    assert!(refused.stderr.contains("--yes"), "{refused}");
    assert_eq!(refused.record("proposal")["needs"].as_array().map(Vec::len), Some(3), "{refused}");
    assert_eq!(there(&account), serde_json::json!([0, 0, 0, 0]), "nothing was launched");

    let ran = station.expect(0, &["drill", "--image-id", &image, "--yes"]);
    let times = ran.record("times");
    assert!(times["contained"].as_f64() <= times["preserved"].as_f64(), "{times:#}");
    assert_eq!(times["whole"], true, "{ran}");
    let cleaned = ran.record("cleaned");
    assert_eq!(cleaned["whole"], true, "{cleaned:#}");
    assert_eq!(there(&account), serde_json::json!([1, 0, 0, 0]), "{ran}");
    let drill = named(&station, &account);
    assert_eq!(cleaned["drill"], drill.as_str(), "{cleaned:#}");
    let after = account.state();
    assert_eq!(before.restorable(), after.restorable(), "the other instance is as it was");

    let again = station.expect(0, &["drill", "--clean", &drill, "--yes"]).record("cleaned");
    assert_eq!(again["whole"], true, "{again:#}");
    let real = format!("{}-1", account.world.instance());
    let refused = station.expect(1, &["drill", "--clean", &real, "--yes"]);
    assert!(refused.stderr.contains("is no drill"), "{refused}");
    station.expect(0, &["close", &drill, "--reason", "rehearsed"]);
}

#[test]
fn a_drill_that_is_cut_short_says_what_there_is_and_how_to_go_on() {
    let account = Account::of(Kind::Plain);
    let station = account.station();
    let image = image(&account);
    for operation in ["CreateSnapshots", "TerminateInstances"] {
        let before = station.log_length();
        let mut run = station.start(&["drill", "--image-id", &image, "--yes"]);
        let called = |call: &Value| call["operation"] == operation;
        let met = run.wait_until(|_| station.calls_since(before).iter().any(called));
        assert!(met, "{operation} was called");
        run.signal(Signal::INT);
        let ran = run.finish();
        let told =
            ran.stderr.lines().find_map(|line| line.split_once("drill --clean ")).map(|(_, d)| d);
        // A moment too late, it was through already.
        if ran.expect_any(&[130, 0]) == 130 {
            let drill = told.unwrap_or_else(|| panic!("it says how to go on\n{ran}"));
            let cleaned =
                station.expect(0, &["drill", "--clean", drill, "--yes"]).record("cleaned");
            assert_eq!(cleaned["whole"], true, "{cleaned:#}");
        }
        let left = there(&account);
        assert_eq!(
            (&left[1], &left[2], &left[3]),
            (&0.into(), &0.into(), &0.into()),
            "{operation}"
        );
    }
}

/// Stops every execution that runs.
fn stop(ministack: &MiniStack) {
    let code = "
sfn = client('stepfunctions')
for m in sfn.list_state_machines()['stateMachines']:
    for e in sfn.list_executions(stateMachineArn=m['stateMachineArn'], statusFilter='RUNNING')['executions']:
        sfn.stop_execution(executionArn=e['executionArn'])
print(json.dumps(True))
";
    boto(&ministack.url(), REGION, code, &[]);
}

#[test]
fn a_drill_by_the_state_machine_waits_for_its_execution_before_anything_is_taken_away() {
    let account = Account::of(Kind::Plain);
    let ministack = MiniStack::start().expect("MiniStack starts");
    let mut station = account.station();
    station.set("AWS_ENDPOINT_URL_SFN", &ministack.url());
    let image = image(&account);
    let start = ["drill", "--via", "aws", "--image-id", &image, "--yes"];
    // Without a machine nothing is launched.
    let refused = station.expect(1, &start);
    assert!(refused.stderr.contains("ResponseMachine"), "{refused}");
    let role = "arn:aws:iam::111122223333:role/forensic";
    let refused = station.expect(2, &[&start[..], &["--forensic-account", role]].concat());
    assert!(refused.stderr.contains("--forensic-account"), "{refused}");
    assert_eq!(there(&account), json!([0, 0, 0, 0]), "nothing was launched");

    // Its functions do nothing here: it is short of everything, and what was launched goes all the same.
    let short = deploy(&account, &ministack, 3);
    let ran = station.expect(3, &[&start[..], &["--stack", &short]].concat());
    let drill = ran.record("proposal")["drill"].clone();
    assert_eq!(ran.report()["contained"], true, "{ran}");
    assert_eq!(ran.record("times")["whole"], false, "{ran}");
    assert_eq!(ran.record("cleaned")["whole"], true, "{ran}");
    assert_eq!(there(&account), json!([1, 0, 0, 0]), "{ran}");
    let found = executions(&ministack);
    assert_eq!(found.len(), 1, "{found:?}");
    let input = &found[0]["input"];
    assert_eq!((&found[0]["name"], &input["case"]), (&drill, &drill));
    assert!(input["reason"].as_str().is_some_and(|r| r.starts_with("cleanroom drill")), "{input}");

    // Interrupted, it goes on in AWS, and nothing is taken away before its end.
    let long = deploy(&account, &ministack, 600);
    let mut run = station.start(&[&start[..], &["--stack", &long]].concat());
    assert!(run.wait_until(|run| run.said().contains("\"step\":\"isolate\"")), "{}", run.said());
    run.signal(Signal::INT);
    let ran = run.finish();
    ran.expect_any(&[130]);
    assert!(ran.stderr.contains("there is: the instance"), "{ran}");
    let told = ran.stderr.lines().find_map(|line| line.split_once("drill --clean "));
    let drill = told.unwrap_or_else(|| panic!("it says how to go on\n{ran}")).1.to_owned();
    let clean = ["drill", "--clean", &drill, "--yes", "--stack", &long];
    for ends in [Signal::INT, Signal::TERM] {
        let mut run = station.start(&clean);
        let followed = |run: &super::station::Running| run.said().contains("\"step\":\"isolate\"");
        assert!(run.wait_until(followed), "{}", run.said());
        run.signal(ends);
        let ran = run.finish();
        ran.expect_any(&[130, 143]);
        assert!(ran.stderr.contains("nothing was taken away"), "{ran}");
        assert_eq!(there(&account)[1], 1, "its instance lives");
    }
    let mut run = station.start(&clean);
    assert!(run.wait_until(|run| run.said().contains("\"step\":\"isolate\"")), "{}", run.said());
    stop(&ministack);
    let ran = run.finish();
    ran.expect_any(&[0]);
    assert_eq!(ran.record("cleaned")["whole"], true, "{ran}");
    assert_eq!(there(&account), json!([2, 0, 0, 0]), "{ran}");
}
