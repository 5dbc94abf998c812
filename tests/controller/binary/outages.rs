//! Services that are down, and networks that are bad: containment goes on, and the record follows.

use cleanroom_harness::emulators::{Fault, Injection, Kind};
use serde_json::json;

use super::{
    account::{Account, assert_verified},
    interrupted::assert_original_groups,
    station::{CLOSED, Station},
};

/// The case that a report names.
fn case(report: &serde_json::Value) -> String {
    report["case"].as_str().expect("a case").to_owned()
}

#[test]
fn without_the_bucket_the_instance_is_contained_and_the_log_follows() {
    let account = Account::of(Kind::Full);
    let mut station = account.station();
    station.set("AWS_ENDPOINT_URL_S3", CLOSED);
    let instance = account.world.instance();

    let ran = station.expect(3, &["respond", instance]);
    let report = ran.report();
    assert_eq!((&report["contained"], &report["preserved"]), (&json!(true), &json!(true)), "{ran}");
    assert_eq!(report["weak"], true, "nobody could claim: {ran}");
    assert!(report["waiting"].as_u64() > Some(0), "{ran}");
    let weak = case(&report);
    let state = account.state();
    state.assert_contained(&weak, "the bucket is down");
    state.assert_preserved(&weak, "the bucket is down");
    assert_eq!(state["objects"], json!({}), "nothing could be written");
    assert!(!station.spooled().is_empty(), "events wait on this machine");
    // What release needs is with the interfaces.
    for interface in state["interfaces"].as_array().expect("interfaces") {
        let id = interface["id"].as_str().expect("an id");
        let tags = interface["tags"].as_object().expect("tags");
        let kept: Vec<_> = tags.iter().filter(|(k, _)| k.starts_with("cleanroom:groups")).collect();
        assert_eq!(kept.len(), 1, "{interface}");
        assert_eq!(*kept[0].1, account.world.groups(id).join(" "));
    }

    // A second run without the bucket goes on with the same case.
    let again = station.expect(3, &["respond", instance]).report();
    assert_eq!(case(&again), weak);
    assert_eq!(account.state().snapshots().len(), 3, "one set of snapshots");

    station.unset("AWS_ENDPOINT_URL_S3");
    let ran = station.expect(0, &["respond", instance]);
    let report = ran.report();
    assert_eq!((case(&report), &report["weak"]), (weak.clone(), &json!(false)), "{ran}");
    assert_eq!(report["waiting"], 0);
    let verdict = assert_verified(&station, &weak);
    assert!(verdict["late"].as_u64() > Some(0), "{verdict}");
    assert!(verdict["exhibits"].as_u64() > Some(30), "{verdict}");
    assert_eq!(station.spooled(), Vec::<std::path::PathBuf>::new(), "nothing waits any more");
    let claims = account.claims();
    assert_eq!(claims.len(), 1, "{claims:?}");
    assert_eq!(claims[0].1["case"], weak);
    let events = account.events(&weak);
    assert_original_groups(&account, &events, "late");
    let state = account.state();
    state.assert_contained(&weak, "the bucket is back");
    state.assert_evidence_whole("the bucket is back");

    station.expect(0, &["release", &weak, "--yes"]);
    let released = account.state();
    for interface in released["interfaces"].as_array().expect("interfaces") {
        let id = interface["id"].as_str().expect("an id");
        assert_eq!(interface["groups"], json!(account.world.groups(id)), "{interface}");
    }
}

#[test]
fn without_the_topic_the_instance_is_contained_and_somebody_must_tell_the_team() {
    let account = Account::of(Kind::Plain);
    let mut station = account.station();
    station.set("AWS_ENDPOINT_URL_SNS", CLOSED);
    let ran = station.expect(3, &["respond", account.world.instance()]);
    let case = case(&ran.report());
    assert_eq!(ran.short_steps().into_iter().collect::<Vec<_>>(), ["notify"], "{ran}");
    let state = account.state();
    state.assert_contained(&case, "the topic is down");
    assert_eq!(state["notices"], json!([]));
    assert_verified(&station, &case);

    station.unset("AWS_ENDPOINT_URL_SNS");
    station.expect(0, &["respond", account.world.instance()]);
    let told = account.state();
    let steps: Vec<_> = told["notices"].as_array().expect("a queue").iter().collect();
    assert_eq!(steps.len(), 2, "contained and preserved: {steps:#?}");
    assert_verified(&station, &case);
}

/// Faults on three calls of ten, as a bad hour of AWS shows them.
fn bad_hour() -> Vec<Fault> {
    let of = |rate, injection| Fault::new("*", rate, injection);
    let mut faults = vec![
        of(0.08, Injection::Latency { min: 50, max: 400 }),
        of(0.05, Injection::TimeOut { hold: 300 }),
        of(0.06, Injection::Reset),
        of(0.03, Injection::LostAnswer),
    ];
    for service in ["ec2", "s3", "iam", "autoscaling", "elbv2", "sns", "sts", "cloudtrail"] {
        faults.push(Fault::throttling(service, 0.1));
    }
    faults
}

#[test]
fn with_faults_on_three_calls_of_ten_the_instance_is_contained_and_the_log_whole() {
    let account = Account::of(Kind::Full);
    let proxy = account.proxy(30);
    proxy.set(&bad_hour()).expect("the proxy takes faults");
    let station = Station::new(&proxy.url());
    let instance = account.world.instance();

    let ran = station.run(&["respond", instance]);
    ran.expect_any(&[0, 3]);
    assert_eq!(ran.report()["contained"], true, "{ran}");
    account.state().assert_no_way_in_or_out("after the first run");
    let fired = proxy.fired().expect("what was injected");
    let share = fired.len() * 100 / station.calls_since(0).len().max(1);
    assert!((15..=45).contains(&share), "{share} of 100 calls met a fault");

    let mut runs = 1;
    let mut status = ran.status.code();
    while status != Some(0) && runs < 3 {
        runs += 1;
        let ran = station.run(&["respond", instance]);
        status = ran.status.code();
        ran.expect_any(&[0, 3]);
    }
    proxy.set(&[]).expect("the bad hour is over");
    if status != Some(0) {
        station.expect(0, &["respond", instance]);
    }
    let claims = account.claims();
    assert_eq!(claims.len(), 1, "{claims:?}");
    let case = claims[0].1["case"].as_str().expect("a case");
    let state = account.state();
    state.assert_contained(case, "in the end");
    state.assert_preserved(case, "in the end");
    state.assert_evidence_whole("in the end");
    assert_original_groups(&account, &account.events(case), "in the end");
    assert_verified(&station, case);
}
