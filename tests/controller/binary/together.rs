//! Two responders at once, and one with many instances.

use std::collections::{BTreeMap, BTreeSet};

use cleanroom_harness::emulators::Kind;
use serde_json::json;

use super::{
    account::{Account, assert_verified},
    interrupted::assert_original_groups,
    station::Station,
};

#[test]
fn two_responders_at_once_work_at_one_case() {
    let account = Account::of(Kind::Full);
    let (one, other) = (account.station(), account.station());
    let instance = account.world.instance();
    let runs = [(&one, "GuardDuty: crypto mining"), (&other, "a person saw a beacon")]
        .map(|(station, reason)| station.start(&["respond", instance, "--reason", reason]));
    let ran = runs.map(super::station::Running::finish);
    for ran in &ran {
        ran.expect_any(&[0, 3]);
        assert_eq!(ran.report()["contained"], true, "{ran}");
    }
    let reports = ran.each_ref().map(super::station::Ran::report);
    assert_eq!(reports[0]["case"], reports[1]["case"]);
    let joined = reports.iter().filter(|r| r["joined"] == true).count();
    assert_eq!(joined, 1, "one claims, the other joins: {reports:#?}");
    let claims = account.claims();
    assert_eq!(claims.len(), 1, "{claims:?}");

    // Whoever was last may have left the other's scaffolding.
    one.expect(0, &["respond", instance]);
    let case = reports[0]["case"].as_str().expect("a case");
    let state = account.state();
    state.assert_contained(case, "both are through");
    state.assert_evidence_whole("both are through");
    state.assert_preserved(case, "both are through");
    let events = account.events(case);
    assert_original_groups(&account, &events, "both are through");
    let actors: BTreeSet<_> = events
        .iter()
        .filter_map(|e| Some(e["nonce"].as_str()?.split('-').next()?.to_owned()))
        .collect();
    assert!(actors.len() >= 2, "both wrote the log: {actors:?}");
    assert_verified(&one, case);

    one.expect(0, &["release", case, "--yes"]);
    let released = account.state();
    for interface in released["interfaces"].as_array().expect("interfaces") {
        let id = interface["id"].as_str().expect("an id");
        assert_eq!(interface["groups"], json!(account.world.groups(id)), "{interface}");
    }
}

/// How many instances the fleet has, beside five more in an Auto Scaling group. The emulator is one process that answers some
/// fifty calls a second on a busy machine, and a response makes two hundred: more instances, or more at a time, and it
/// answers nobody in time. Two hundred instances, fifty at a time, are the benchmark's, against the cloud in memory.
const FLEET: u32 = 5;

/// The most memory that a responder may take, in KiB.
const MEMORY: u64 = 100 << 10;

#[test]
fn a_fleet_is_contained_by_one_command_in_bounded_memory() {
    let account = Account::of(Kind::Fleet(FLEET));
    let station: Station = account.station();
    let world = &account.world;
    let members = world.json()["asg_instances"].as_array().expect("members").iter();
    let mut ids: Vec<String> = members.map(|id| id.as_str().expect("an id").to_owned()).collect();
    ids.extend(world.instances().into_iter().map(str::to_owned));
    station.write("ids.txt", ids.join("\n"));
    // A claim that a busy machine's emulator does not answer in time makes a weak case: that is tested elsewhere.
    station.write("cleanroom.toml", "[bounds]\ncustody = 120\n");

    let mut ran = station.run(&["respond", "--file", "ids.txt", "--concurrency", "5"]);
    let reports = ran.records("report");
    assert_eq!(reports.len(), ids.len());
    for report in &reports {
        assert_eq!(report["contained"], true, "{report:#}");
    }
    assert!(ran.peak > 0 && ran.peak <= MEMORY, "{} KiB of memory", ran.peak);
    // A busy machine's emulator does not take every object in time: what waits is appended by the next run, which asks less
    // at a time.
    for _ in 0..5 {
        if ran.expect_any(&[0, 3]) == 3 {
            ran = station.run(&["respond", "--file", "ids.txt", "--concurrency", "2"]);
        }
    }
    assert_eq!(ran.status.code(), Some(0), "{ran}");
    let cases: BTreeMap<_, _> = ran
        .records("report")
        .iter()
        .map(|r| (r["instance"].to_string(), r["case"].as_str().expect("a case").to_owned()))
        .collect();

    // Each by another's word: all interfaces at once, and a few instances in full.
    let code = "
ec2 = client('ec2')
groups = ec2.describe_security_groups(Filters=[{'Name': 'group-name', 'Values': ['cleanroom-*']}])
pages = ec2.get_paginator('describe_instances').paginate()
all = [i for p in pages for r in p['Reservations'] for i in r['Instances']]
print(json.dumps({
    'groups': {g['GroupId']: g['GroupName'] for g in groups['SecurityGroups']},
    'instances': {i['InstanceId']: [n['Groups'] for n in i['NetworkInterfaces']] for i in all},
}))
";
    let seen = super::account::boto(&account.url(), "us-east-1", code, &[]);
    let names: Vec<_> = seen["groups"].as_object().expect("groups").values().collect();
    assert_eq!(names, ["cleanroom-forensic"], "one group for all, and no other");
    for id in &ids {
        let interfaces = seen["instances"][id].as_array().expect("interfaces");
        for groups in interfaces {
            let names: Vec<_> =
                groups.as_array().expect("groups").iter().map(|g| &g["GroupName"]).collect();
            assert_eq!(names, ["cleanroom-forensic"], "{id}");
        }
    }
    for id in [&ids[0], &ids[ids.len() - 1]] {
        let case = &cases[&json!(id).to_string()];
        let state = account.state_of(id);
        state.assert_contained(case, id);
        state.assert_preserved(case, id);
        assert_verified(&station, case);
    }
    assert_eq!(account.claims().len(), ids.len());
}
