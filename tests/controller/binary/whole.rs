//! A response from plan to release and beyond: the instance with everything that can be attached to one, and the one with
//! nothing.

use std::collections::BTreeSet;

use cleanroom_cloud_aws::permissions;
use cleanroom_harness::emulators::Kind;
use serde_json::{Value, json};

use super::{
    account::{Account, State, assert_verified},
    station::Station,
};

/// Steps that moto lets no response finish.
const MOTO_LACKS: [&str; 0] = [];

/// Plans, and proves that nothing was changed and nothing asked that could change anything.
fn plan(account: &Account, before: &State) -> Value {
    let station = account.station();
    let ran = station.expect(0, &["plan", account.world.instance()]);
    let plan = ran.record("plan");
    assert_eq!(account.state(), *before, "a plan changes nothing");
    let operations = station.operations();
    assert!(operations.contains("ec2:DescribeInstances"), "{operations:?}");
    for operation in operations {
        let known = permissions::operation(&operation).expect("in the table");
        assert!(!known.mutates, "a plan called {operation}");
    }
    plan
}

/// The notices of a step, in the team's queue.
fn notices(state: &State, step: &str) -> Vec<Value> {
    let all = state["notices"].as_array().expect("a queue").iter();
    all.filter(|n| n["attributes"]["step"] == step).cloned().collect()
}

/// The team was told once of this milestone, in a form that people can read and subscribers can filter.
fn assert_told(state: &State, case: &str, step: &str) {
    let told = notices(state, step);
    assert_eq!(told.len(), 1, "{step}: {:#?}", state["notices"]);
    let subject = told[0]["subject"].as_str().expect("a subject");
    assert!(subject.len() < 100 && subject.contains(step), "{subject}");
    assert_eq!(told[0]["attributes"]["case"], case);
    assert!(told[0]["attributes"]["severity"].is_string(), "{}", told[0]);
    let message = told[0]["message"].as_str().expect("a message");
    let message: Value = serde_json::from_str(message).expect("programs get JSON");
    assert_eq!((&message["case"], &message["step"]), (&json!(case), &json!(step)));
}

/// A response that is whole but for what moto lacks.
fn respond(station: &Station, instance: &str) -> Value {
    let ran = station.run(&["respond", instance, "--reason", "beacons to a known server"]);
    let short = ran.short_steps();
    let lacks: BTreeSet<_> = MOTO_LACKS.into_iter().map(str::to_owned).collect();
    assert_eq!(short, lacks, "{ran}");
    ran.expect_any(&[if short.is_empty() { 0 } else { 3 }]);
    let report = ran.report();
    assert_eq!((&report["contained"], &report["preserved"]), (&json!(true), &json!(true)), "{ran}");
    assert!(report["contained_seconds"].as_f64() <= report["preserved_seconds"].as_f64(), "{ran}");
    report
}

/// The case's state by the program's word.
fn status(station: &Station, case: &str) -> Value {
    let ran = station.run(&["status", case]);
    ran.expect_any(&[0, 3]);
    ran.record("status")
}

#[test]
fn everything_that_can_be_attached_is_contained_preserved_and_released() {
    let account = Account::of(Kind::Full);
    let (world, station) = (&account.world, account.station());
    let before = account.state();
    let instance = world.instance();

    let planned = plan(&account, &before);
    let entries = planned["entries"].as_array().expect("entries");
    for (operation, resource) in [
        ("autoscaling:DetachInstances", instance),
        ("ec2:CreateSnapshots", instance),
        ("ec2:DisassociateIamInstanceProfile", instance),
        ("ec2:ModifyNetworkInterfaceAttribute", world.interfaces()[0]),
        ("ec2:ModifyNetworkInterfaceAttribute", world.interfaces()[1]),
    ] {
        let there = |e: &Value| {
            e["operation"] == operation
                && e["resource"].as_str().is_some_and(|r| r.contains(resource))
        };
        assert!(entries.iter().any(there), "{operation} {resource}: {planned:#}");
    }

    let report = respond(&station, instance);
    let case = report["case"].as_str().expect("a case").to_owned();
    assert_eq!(case, format!("{instance}-1"));
    assert_eq!(planned["case"], case);
    let after = account.state();
    after.assert_contained(&case, "after the response");
    assert_eq!(after.assert_preserved(&case, "after the response"), 1, "one set of snapshots");
    assert_eq!(after.snapshots().len(), 3);
    after.assert_evidence_whole("after the response");
    assert_told(&after, &case, "contained");
    assert_told(&after, &case, "preserved");
    assert_surroundings(&account, &before, &after);
    assert_denied(&account, &after, &case);
    let flushed: BTreeSet<_> = report["flushed"]
        .as_array()
        .expect("interfaces")
        .iter()
        .filter_map(Value::as_str)
        .collect();
    assert_eq!(flushed, world.interfaces().into_iter().collect(), "tracked flows were dropped");

    assert_verified(&station, &case);
    assert_recorded(&account, &case);
    assert_eq!(status(&station, &case)["state"], "contained");
    let cases = station.expect(0, &["cases"]);
    assert!(cases.stdout.contains(&case), "{cases}");

    let again = respond(&station, instance);
    assert_eq!((&again["case"], &again["joined"]), (&json!(case), &json!(true)));
    let and_again = account.state();
    assert_eq!(and_again.without_records(), after.without_records(), "nothing more to do");
    assert_eq!(and_again["notices"], after["notices"], "the team is told once");

    release(&account, &station, &before, &case);
    reopened(&account, &station, &case);
}

/// What surrounds the instance is as it was, and its address is still the account's.
fn assert_surroundings(account: &Account, before: &State, after: &State) {
    let group = account.world.asg();
    assert_eq!(
        after["asgs"][group]["desired"], before["asgs"][group]["desired"],
        "capacity is kept"
    );
    let address = &after["addresses"][account.world.allocation()];
    assert_eq!(
        (&address["public_ip"], &address["association_id"], &address["interface"]),
        (&before["addresses"][account.world.allocation()]["public_ip"], &Value::Null, &Value::Null),
        "the Elastic IP is kept and leads nowhere"
    );
    for (id, group) in before["vpc_security_groups"].as_object().expect("groups") {
        assert_eq!(after["vpc_security_groups"][id], *group, "{id} is somebody else's");
    }
}

/// The role is denied to this instance, and to nobody else.
fn assert_denied(account: &Account, after: &State, case: &str) {
    let policies = after["role_policies"].as_object().expect("policies");
    let names: Vec<_> = policies.keys().map(String::as_str).collect();
    let ours = format!("cleanroom-{case}");
    assert_eq!(names, [ours.as_str(), "read-config"]);
    let (world, policy) = (&account.world, &policies[&ours]);
    let arn = format!("arn:aws:ec2:us-east-1:{}:instance/{}", world.account(), world.instance());
    let statement = match &policy["Statement"] {
        Value::Array(statements) if statements.len() == 1 => &statements[0],
        statement => statement,
    };
    assert_eq!(
        (&statement["Effect"], &statement["Action"], &statement["Resource"]),
        (&json!("Deny"), &json!("*"), &json!("*")),
        "{policy}"
    );
    let condition = statement["Condition"].as_object().expect("a condition");
    assert_eq!(condition.len(), 1, "{policy}");
    let (kind, keys) = condition.iter().next().expect("one condition");
    assert!(["ArnEquals", "StringEquals", "ArnLike"].contains(&kind.as_str()), "{policy}");
    assert_eq!(keys, &json!({ "ec2:SourceInstanceARN": arn }), "{policy}");
}

/// The record holds what the cloud said, and names what it did not say.
fn assert_recorded(account: &Account, case: &str) {
    let events = account.events(case);
    let recorded: Vec<_> = events.iter().filter(|e| e["event"] == "recorded").collect();
    let of = |member: &str| -> Vec<Value> {
        recorded.iter().filter_map(|e| e[member].as_array()).flatten().cloned().collect()
    };
    let keys: BTreeSet<_> =
        of("exhibits").iter().filter_map(|e| Some(e["key"].as_str()?.to_owned())).collect();
    for question in ["instance-1", "interfaces", "volumes", "security-groups", "console-output"] {
        let prefix = format!("cases/{case}/record/{question}");
        assert!(keys.iter().any(|key| key.starts_with(&prefix)), "{question}: {keys:#?}");
    }
    let missing: BTreeSet<_> = recorded
        .iter()
        .filter_map(|e| e["missing"].as_object())
        .flat_map(|m| m.keys().cloned())
        .collect();
    // moto has neither: recorded as missing, and nothing falls short for it.
    for question in ["cloudtrail-pass-1-resource", "console-screenshot"] {
        assert!(missing.contains(question), "{question}: {missing:?}");
    }
    assert!(keys.len() > 30, "{} objects; missing: {missing:#?}", keys.len());
}

/// Release puts back what was recorded.
fn release(account: &Account, station: &Station, before: &State, case: &str) {
    let refused = station.run(&["release", case]);
    assert_ne!(refused.status.code(), Some(0), "nobody said yes: {refused}");
    account.state().assert_no_way_in_or_out("nobody said yes");

    let ran = station.expect(0, &["release", case, "--yes", "--reason", "a false alarm"]);
    let after = account.state();
    assert_eq!(after.restorable(), before.restorable(), "{ran}");
    assert_verified(station, case);
    assert_told(&after, case, "released");
    assert_eq!(after.assert_preserved(case, "evidence stays"), 1);
    assert_eq!(status(station, case)["state"], "released");
}

/// A response after a release opens the next case.
fn reopened(account: &Account, station: &Station, first: &str) {
    let report = respond(station, account.world.instance());
    let case = report["case"].as_str().expect("a case");
    assert_eq!(case, format!("{}-2", account.world.instance()));
    let claims = account.claims();
    assert_eq!(claims.len(), 2, "{claims:?}");
    assert_eq!(report["joined"], false);
    let after = account.state();
    after.assert_contained(case, "again");
    let of = |case: &str| {
        after.snapshots().iter().filter(|s| s["tags"]["cleanroom:case"] == case).count()
    };
    assert_eq!((of(first), of(case)), (3, 3), "each case has its own evidence");
    assert_verified(station, case);
    assert_verified(station, first);
}

#[test]
fn an_instance_with_nothing_attached_is_contained_and_released() {
    let account = Account::of(Kind::Plain);
    let station = account.station();
    let before = account.state();
    assert!(before["public_ip"].is_string(), "it has an assigned address");
    plan(&account, &before);

    let report = respond(&station, account.world.instance());
    let case = report["case"].as_str().expect("a case");
    let after = account.state();
    after.assert_contained(case, "after the response");
    assert_eq!(after.assert_preserved(case, "after the response"), 1);
    after.assert_evidence_whole("after the response");
    assert_told(&after, case, "contained");
    assert_verified(&station, case);

    let ran = station.run(&["release", case, "--yes"]);
    ran.expect_any(&[0, 3]);
    let released = account.state();
    let groups = |state: &State| {
        let all = state["interfaces"].as_array().expect("interfaces").iter();
        all.map(|i| i["groups"].clone()).collect::<Vec<_>>()
    };
    assert_eq!(groups(&released), groups(&before));
    for member in ["guards", "delete_on_termination", "metadata_options", "tags"] {
        assert_eq!(released[member], before[member], "{member}");
    }
    let said = format!("{}{}", ran.stdout, ran.stderr);
    assert!(said.contains("can not come back"), "an assigned address: {ran}");
    assert_verified(&station, case);
}
