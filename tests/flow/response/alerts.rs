//! What alerts come to, where nothing fails but the world.

use std::thread;

use serde_json::{Value, json};

use super::scene::{calm, cleanroom, narrow};
use crate::support::words;

/// A finding about an instance that acts.
fn finding(instance: &str, severity: f64) -> Value {
    json!({
        "schemaVersion": "2.0",
        "accountId": "123456789012",
        "region": "us-east-1",
        "id": format!("0123456789abcdef0123456789abcdef-{instance}"),
        "type": "CryptoCurrency:EC2/BitcoinTool.B!DNS",
        "severity": severity,
        "title": "Bitcoin-related domain name queried by EC2 instance",
        "resource": {"resourceType": "Instance", "instanceDetails": {"instanceId": instance}},
        "service": {"resourceRole": "ACTOR", "archived": false, "count": 1},
    })
}

#[test]
fn a_message_on_the_topic_contains_and_preserves() {
    let suspect = calm().suspect();
    suspect.alert();
    let machine = suspect.succeeded(1);
    assert_eq!(machine["verify"]["facts"]["verdict"], "contain", "{machine:#}");
    assert_eq!(machine["isolate"]["facts"]["contained"], true, "{machine:#}");
    assert_eq!(machine["preserve"]["facts"]["done"], true, "{machine:#}");
    suspect.assert_contained();
    suspect.scene.told(&[&suspect.case]);
    // Nobody has read a secret into a log, and every line is one that a program can read.
    let logs = suspect.stack().logs().expect("logs");
    let ours = logs.iter().filter(|line| line.contains(&suspect.instance));
    let bad: Vec<_> = ours.filter(|line| serde_json::from_str::<Value>(line).is_err()).collect();
    assert!(bad.is_empty(), "{bad:#?}");
    assert!(logs.iter().any(|line| line.contains("SecondsToContain")), "no metric");
}

#[test]
fn the_same_alert_five_times_at_once_and_again_is_one_case() {
    let suspect = calm().suspect();
    thread::scope(|scope| {
        for number in 0..5 {
            let suspect = &suspect;
            scope.spawn(move || match number {
                0..4 => suspect.alert(),
                _ => {
                    let detail = finding(&suspect.instance, 8.0);
                    let stack = suspect.stack();
                    stack.put_event("aws.guardduty", "GuardDuty Finding", &detail).expect("event");
                }
            });
        }
    });
    suspect.succeeded(1);
    let first = suspect.executions();
    for name in &first {
        let ended = suspect.stack().ended(name, super::scene::PATIENCE).expect("it ends");
        assert_eq!(ended.status, "SUCCEEDED", "{name}: {ended:?}");
    }
    suspect.assert_contained();
    // And again later: whoever asks again wants it to go on.
    suspect.alert();
    let later = suspect.scene.wait("another execution", || {
        suspect.executions().into_iter().find(|name| !first.contains(name))
    });
    let ended = suspect.stack().ended(&later, super::scene::PATIENCE).expect("it ends");
    assert_eq!(ended.status, "SUCCEEDED", "{ended:?}");
    suspect.assert_contained();
}

#[test]
fn many_in_one_message_share_the_functions_that_the_stack_may_have() {
    let scene = narrow();
    let suspects = [(); 4].map(|()| scene.suspect());
    let ids: Vec<_> = suspects.iter().map(|suspect| suspect.instance.as_str()).collect();
    scene.stack.publish(&ids.join("\n")).expect("publish");
    for suspect in &suspects {
        suspect.succeeded(1);
        suspect.assert_contained();
        assert_eq!(suspect.executions().len(), 1, "{:?}", suspect.executions());
    }
    // Intake's process, and one for all steps of all four.
    let counts = scene.stack.counts().expect("counts");
    assert_eq!(counts["functions"]["processes"], 2, "{counts:#}");
}

#[test]
fn what_is_refused_is_answered_with_the_reason() {
    let scene = calm();
    let (exempt, nobody) = (scene.exempt(), "i-0123456789abcdef0");
    scene.stack.publish(&format!("{exempt} {nobody}")).expect("publish");
    scene.told(&[exempt, "exempt"]);
    scene.told(&[nobody]);
    let executions = scene.stack.executions().expect("executions");
    let of = |id: &str| executions.iter().any(|name| name.starts_with(id));
    assert!(!of(exempt) && !of(nobody), "{executions:?}");
}

#[test]
fn what_nobody_can_read_is_kept_with_the_reason() {
    let scene = calm();
    let garbage = "lorem ipsum \u{1b}[2J, and no instance";
    scene.stack.publish(garbage).expect("publish");
    let letter = scene.wait("a dead letter", || {
        let letters = scene.stack.dead_letters().expect("letters");
        letters.into_iter().find(|letter| letter["body"].to_string().contains("lorem ipsum"))
    });
    let reason = letter["attributes"]["reason"]["StringValue"].as_str();
    assert!(reason.is_some_and(|reason| !reason.is_empty()), "{letter:#}");
}

#[test]
fn the_command_line_and_the_state_machine_share_a_case() {
    let suspect = calm().suspect();
    let home = tempfile::tempdir().expect("a home folder");
    let typed = ["respond", &suspect.instance, "--reason", "beacons", "--format", "jsonl"];
    let ran = thread::scope(|scope| {
        let command = scope
            .spawn(|| cleanroom(suspect.stack(), home.path(), &typed).output().expect("start"));
        suspect.alert();
        command.join().expect("it ran")
    });
    // 3: done, and something is short, such as what the other has under way.
    assert!([Some(0), Some(3)].contains(&ran.status.code()), "{}", words(&ran));
    suspect.succeeded(1);
    suspect.assert_contained();
}

#[test]
fn an_isolation_undone_behind_our_back_is_done_again() {
    let suspect = calm().suspect();
    let before = suspect.state();
    let interface = before["interfaces"][0]["id"].as_str().expect("an interface").to_owned();
    let group = before["interfaces"][0]["groups"][0].as_str().expect("a group").to_owned();
    suspect.alert();
    suspect.succeeded(1);
    assert!(suspect.is_isolated(&suspect.state()));

    let back = format!(
        "Action=ModifyNetworkInterfaceAttribute&NetworkInterfaceId={interface}&SecurityGroupId.1={group}"
    );
    suspect.stack().ec2(&back).expect("put back");
    assert!(!suspect.is_isolated(&suspect.state()), "it is open");
    let call = json!({
        "eventSource": "ec2.amazonaws.com",
        "eventName": "ModifyNetworkInterfaceAttribute",
        "userIdentity": {"type": "IAMUser", "arn": "arn:aws:iam::123456789012:user/mallory"},
        "requestParameters": {
            "networkInterfaceId": interface, "groupSet": {"items": [{"groupId": group}]}
        },
    });
    suspect.stack().put_event("aws.ec2", "AWS API Call via CloudTrail", &call).expect("an event");
    suspect
        .scene
        .wait("it to be isolated again", || suspect.is_isolated(&suspect.state()).then_some(()));
    // The metric that the alarm is on.
    suspect.scene.wait("the metric", || {
        let logs = suspect.stack().logs().expect("logs");
        logs.iter().any(|line| line.contains("\"Drifted\"")).then_some(())
    });
    suspect.assert_contained();
}

#[test]
fn where_a_person_is_to_be_asked_nothing_is_cut_before() {
    let suspect = calm().suspect();
    let detail = finding(&suspect.instance, 4.0);
    suspect.stack().put_event("aws.guardduty", "GuardDuty Finding", &detail).expect("an event");
    suspect.enters(1, "Ask");
    suspect.scene.told(&[&suspect.case, "approve"]);
    let state = suspect.state();
    assert!(!suspect.is_isolated(&state), "nobody has said a word");
    assert_eq!(state["guards"]["disableApiTermination"], true, "{}", state["guards"]);
    suspect.assert_preserved(&state);

    let approved = suspect.typed(&["approve", &suspect.case, "--reason", "it mines", "--yes"]);
    assert!(approved.status.success(), "{}", words(&approved));
    suspect.succeeded(1);
    suspect.assert_contained();
}
