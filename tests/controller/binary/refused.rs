//! What is wrong before anything begins: named, told with an exit status, and nothing changed.

use std::net::TcpListener;

use cleanroom_harness::emulators::{Fault, Injection, Kind};
use serde_json::json;

use super::{
    account::{Account, assert_verified, boto},
    station::{BUCKET, CLOSED, Ran, Station},
};

/// An instance that nobody has.
const NOBODY: &str = "i-0123456789abcdef0";

/// A run says each of these on standard error.
fn assert_says(ran: &Ran, words: &[&str]) {
    for word in words {
        assert!(ran.stderr.contains(word), "no {word:?}: {ran}");
    }
}

#[test]
fn what_is_typed_wrong_ends_with_2_before_anything_is_asked() {
    let listener = TcpListener::bind("127.0.0.1:0").expect("a free port");
    listener.set_nonblocking(true).expect("a listener that does not wait");
    let station = Station::new(&format!("http://{}", listener.local_addr().expect("an address")));
    station.write("garbage.txt", "i-0123456789abcdef0\ni-xyz\u{7}\n# fine\n\narn:aws:s3:::x\n");
    station.write("empty.txt", "# nobody\n");
    station.write("bad.toml", "bucket = 7\n");
    let table: &[(&[&str], &[&str])] = &[
        (&["respond", "i-12", NOBODY, "arn:aws:x"], &["i-12", "arn:aws:x", "2 of 3"]),
        (&["plan", "i-1g", "i-"], &["i-"]),
        (&["respond", "--file", "garbage.txt"], &["line 2", "line 5", "arn:aws:s3:::x"]),
        (&["plan", "--file", "garbage.txt"], &["line 2", "line 5"]),
        (&["respond", "--file", "empty.txt"], &["empty.txt"]),
        (&["respond", "--file", "none.txt"], &["none.txt"]),
        (&["respond"], &["ID"]),
        (&["respond", NOBODY, "--case", "a/b"], &["a/b"]),
        (&["status", "../x"], &["../x"]),
        (&["custody", "verify", "a/b"], &["a/b"]),
        (&["approve", "a/b", "--yes"], &["a/b"]),
        (&["release", "a/b", "--yes"], &["a/b"]),
        (&["respond", NOBODY, "i-0fedcba9876543210", "--case", "c-1"], &["--case"]),
        (&["respond", NOBODY, "--only", "reboot"], &["reboot", "isolate"]),
        (&["respond", NOBODY, "--concurrency", "0"], &["0"]),
        (&["respond", NOBODY, "--via", "moon"], &["moon", "aws"]),
        (
            &["respond", NOBODY, "--via", "aws", "--until", "isolate", "--rules", "x"],
            &["--until, --rules", "as the response stack is set"],
        ),
        (&["respond", NOBODY, "--via", "aws", "--nacl"], &["--nacl"]),
        (&["respond", NOBODY, "--via", "aws", "--concurrency", "8"], &["--concurrency"]),
        (&["respond", NOBODY, "--bucket", "s3://x"], &["s3://x"]),
        (&["respond", NOBODY, "--topic", "cleanroom"], &["cleanroom", "topic"]),
        (&["respond", NOBODY, "--config", "bad.toml"], &["bad.toml:1"]),
        (&["respond", NOBODY, "--config", "none.toml"], &["none.toml"]),
        (&["revoke", "--principal", "eve", "--yes"], &["eve"]),
        (&["frobnicate"], &["frobnicate"]),
    ];
    for (arguments, words) in table {
        let ran = station.expect(2, arguments);
        assert_says(&ran, words);
        assert_eq!(ran.stdout, "", "{ran}");
        assert!(!ran.stderr.contains('\u{7}'), "no control characters: {ran}");
    }
    assert_eq!(station.log_length(), 0, "nothing was asked of AWS");
    let asked = listener.accept().map_err(|error| error.kind());
    assert_eq!(asked.err(), Some(std::io::ErrorKind::WouldBlock), "nobody was called");
}

#[test]
fn whom_nobody_knows_is_refused_by_name() {
    let account = Account::of(Kind::Plain);
    let station = account.station();
    let (before, known) = (account.state(), account.world.instance());

    let ran = station.expect(1, &["respond", NOBODY]);
    assert_says(&ran, &[NOBODY, "us-east-1", "123456789012"]);
    let ran = station.expect(1, &["respond", "no-such-name", known]);
    assert_says(&ran, &["no-such-name"]);
    let ran = station.expect(1, &["respond", "10.99.99.99"]);
    assert_says(&ran, &["10.99.99.99"]);

    // It is in another Region: say which.
    let code = "
ec2 = client('ec2')
image = ec2.describe_images(Owners=['amazon'])['Images'][0]['ImageId']
made = ec2.run_instances(ImageId=image, MinCount=1, MaxCount=1)
print(json.dumps(made['Instances'][0]['InstanceId']))
";
    let elsewhere = boto(&account.url(), "eu-west-1", code, &[]);
    let elsewhere = elsewhere.as_str().expect("an id");
    let ran = station.expect(1, &["respond", elsewhere]);
    assert_says(&ran, &[elsewhere, "eu-west-1", "--region"]);
    let arn = format!("arn:aws:ec2:eu-west-1:123456789012:instance/{elsewhere}");
    let ran = station.expect(1, &["respond", &arn]);
    assert_says(&ran, &["eu-west-1"]);
    let arn = format!("arn:aws:ec2:us-east-1:111122223333:instance/{known}");
    let ran = station.expect(1, &["respond", &arn]);
    assert_says(&ran, &["111122223333"]);

    // Names that fit two: all are listed.
    let code = "
ec2 = client('ec2')
image = ec2.describe_images(Owners=['amazon'])['Images'][0]['ImageId']
tags = [{'ResourceType': 'instance', 'Tags': [{'Key': 'Name', 'Value': 'plain'}]}]
made = ec2.run_instances(ImageId=image, MinCount=1, MaxCount=1, TagSpecifications=tags)
print(json.dumps(made['Instances'][0]['InstanceId']))
";
    let twin = boto(&account.url(), "us-east-1", code, &[]);
    let ran = station.expect(1, &["respond", "plain"]);
    assert_says(&ran, &["plain", known, twin.as_str().expect("an id")]);

    // By settings, or with custody required and not to be had.
    station.write("exempt.toml", format!("exempt = [\"{known}\"]\n"));
    let ran = station.expect(1, &["respond", known, "--config", "exempt.toml"]);
    assert_says(&ran, &[known]);
    let ran = station.expect(1, &["status", "no-such-case"]);
    assert_says(&ran, &["no-such-case"]);
    assert_eq!(account.state(), before, "nothing was changed");

    // The good lines of a file that has others are acted on, where that is asked for.
    station.write("ids.txt", format!("{known}\ni-12\n{NOBODY}\n"));
    let ran = station.expect(2, &["respond", "--file", "ids.txt"]);
    assert_says(&ran, &["line 2"]);
    assert_eq!(account.state(), before, "nothing was changed");
    let ran = station.expect(0, &["respond", "--file", "ids.txt", "--skip-bad"]);
    assert_says(&ran, &["line 2", NOBODY]);
    account.state().assert_contained(&format!("{known}-1"), "the good line");

    // The open case has another name.
    let ran = station.expect(1, &["respond", known, "--case", "another"]);
    assert_says(&ran, &[&format!("{known}-1"), "another"]);
}

#[test]
fn who_is_nobody_changes_nothing() {
    let account = Account::of(Kind::Plain);
    let (before, known) = (account.state(), account.world.instance());

    let mut station = account.station();
    station.unset("AWS_ACCESS_KEY_ID");
    station.unset("AWS_SECRET_ACCESS_KEY");
    for arguments in [&["respond", known][..], &["plan", known], &["preflight"], &["cases"]] {
        let ran = station.expect(1, arguments);
        assert_says(&ran, &["hint: no credentials"]);
    }

    let proxy = account.proxy(1);
    let expired = Injection::Error { code: "ExpiredToken".to_owned(), status: Some(403) };
    proxy.set(&[Fault::new("*", 1.0, expired)]).expect("the proxy takes faults");
    let station = Station::new(&proxy.url());
    for arguments in [&["respond", known][..], &["plan", known], &["preflight"], &["cases"]] {
        let ran = station.expect(1, arguments);
        assert_says(&ran, &["ExpiredToken", "hint: the credentials are expired"]);
    }

    let mut station = account.station();
    station.set("AWS_ENDPOINT_URL_S3", CLOSED);
    let ran = station.expect(1, &["respond", known, "--require-custody"]);
    assert_says(&ran, &[known, "s3:PutObject", "hint: the service can not be reached"]);
    assert_eq!(account.state(), before, "nothing was changed");
}

#[test]
fn a_bucket_that_is_not_there_or_weak_stops_nothing() {
    let mut account = Account::of(Kind::Plain);
    let station = account.station();
    let known = account.world.instance().to_owned();
    let ran = station.expect(3, &["respond", &known, "--bucket", "no-such-bucket"]);
    let case = ran.report()["case"].as_str().expect("a case").to_owned();
    let state = account.state();
    state.assert_contained(&case, "no bucket");
    state.assert_preserved(&case, "no bucket");
    let said = format!("{}{}", ran.stdout, ran.stderr);
    assert!(said.contains("no-such-bucket") || said.contains("NoSuchBucket"), "{ran}");

    account.rebuild(Kind::Plain);
    let code = "
s3 = client('s3')
s3.create_bucket(Bucket='weak-evidence')
print('null')
";
    boto(&account.url(), "us-east-1", code, &[]);
    let station = account.station();
    let ran = station.run(&["preflight", "--bucket", "weak-evidence"]);
    ran.expect_any(&[3]);
    let checks = ran.records("check");
    let bucket: Vec<_> = checks.iter().filter(|c| c["area"] == "bucket").collect();
    let bad = |name: &str| {
        let named = |c: &&&serde_json::Value| {
            let text = format!("{} {}", c["name"], c["found"]).to_lowercase();
            text.contains(name)
        };
        let found = bucket.iter().find(named).unwrap_or_else(|| panic!("{name}: {bucket:#?}"));
        assert!(["weak", "missing"].contains(&found["level"].as_str().unwrap_or("")), "{found}");
        assert_ne!(found["fix"], "", "{found}");
    };
    bad("object lock");
    bad("versioning");
    bad("public");

    let known = account.world.instance().to_owned();
    let ran = station.run(&["respond", &known, "--bucket", "weak-evidence"]);
    ran.expect_any(&[0, 3]);
    assert_eq!(ran.report()["contained"], true, "{ran}");
    account.state().assert_contained(&format!("{known}-1"), "a weak bucket");

    // The good bucket, in the account that is as it should be.
    let ran = station.run(&["preflight", "--bucket", BUCKET]);
    let checks = ran.records("check");
    let bucket: Vec<_> = checks.iter().filter(|c| c["area"] == "bucket").collect();
    let missing: Vec<_> = bucket.iter().filter(|c| c["level"] == "missing").collect();
    assert_eq!(missing, Vec::<&&serde_json::Value>::new(), "{ran}");
    assert_eq!(account.state()["objects"], json!({}), "a preflight writes nothing");
}

#[test]
fn by_hand_the_custody_log_is_found_broken() {
    let account = Account::of(Kind::Plain);
    let station = account.station();
    let known = account.world.instance();
    station.expect(0, &["respond", known]);
    let case = format!("{known}-1");
    assert_verified(&station, &case);
    let code = "
s3 = client('s3')
key = 'cases/%s/custody/000002.json' % sys.argv[2]
body = s3.get_object(Bucket='cleanroom-evidence', Key=key)['Body'].read()
s3.put_object(Bucket='cleanroom-evidence', Key=key, Body=body.replace(b'intent', b'reached'))
key = 'cases/%s/custody/000003.json' % sys.argv[2]
s3.delete_object(Bucket='cleanroom-evidence', Key=key)
print('null')
";
    boto(&account.url(), "us-east-1", code, &[&case]);
    let ran = station.expect(3, &["custody", "verify", &case]);
    let faults = ran.record("verdict")["faults"].to_string();
    for fault in ["000002.json has 2 versions", "000003.json was deleted"] {
        assert!(faults.contains(fault), "{fault}: {faults}");
    }
}
