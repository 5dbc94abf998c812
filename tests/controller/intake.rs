//! The first door for alerts: what is begun, refused, answered and put off, and that nothing is done twice.

use std::collections::{BTreeMap, BTreeSet};

use cleanroom_cloud::{ErrorKind, ExecutionState};
use cleanroom_cloud_fake::{At, FakeCloud, Fault, INSTANCE, Storm, World};
use cleanroom_contract::InstanceId;
use cleanroom_controller::{
    alert::{Part, Source},
    case::Policy,
    execution::{Approval, Failed, Input},
    intake::{Taken, Way, take},
};
use futures_util::future::join_all;
use serde_json::{Value, json};

use crate::support::{respond, run, suspect};

const MACHINE: &str = "arn:aws:states:us-east-1:123456789012:stateMachine:cleanroom-response";
const MANY: &str = "arn:aws:states:us-east-1:123456789012:stateMachine:cleanroom-many";
const QUEUE: &str = "https://sqs.us-east-1.amazonaws.com/123456789012/dead";

fn way() -> Way {
    let (machine, many, queue) = (MACHINE.to_owned(), MANY.to_owned(), QUEUE.to_owned());
    Way { machine, many, queue, at_once: 40, pace: 10 }
}

fn message(text: &str) -> Value {
    json!({"Records": [{"EventSource": "aws:sns", "Sns": {"Message": text}}]})
}

fn finding(id: &str, severity: f64) -> Value {
    json!({
        "detail-type": "GuardDuty Finding", "source": "aws.guardduty",
        "detail": {
            "id": id, "type": "CryptoCurrency:EC2/BitcoinTool.B!DNS", "severity": severity,
            "accountId": "123456789012", "region": "us-east-1", "title": "mines",
            "resource": {"resourceType": "Instance", "instanceDetails": {"instanceId": INSTANCE}},
            "service": {"resourceRole": "ACTOR", "archived": false},
        },
    })
}

async fn taken(cloud: &FakeCloud, event: &Value) -> Result<Taken, Failed> {
    with(cloud, event, Policy::default()).await
}

async fn with(cloud: &FakeCloud, event: &Value, policy: Policy) -> Result<Taken, Failed> {
    let run = run(cloud, policy, None).await;
    take(&run, &way(), event).await
}

/// The executions of a machine, each name with its input.
fn executions(cloud: &FakeCloud, machine: &str) -> BTreeMap<String, Value> {
    let prefix = format!("{}:", machine.replace(":stateMachine:", ":execution:"));
    let world = cloud.world();
    let ours = world.executions.iter().filter(|(arn, _)| arn.starts_with(&prefix));
    ours.map(|(_, ran)| {
        let input = serde_json::from_str(&ran.execution.input).expect("its input is JSON");
        (ran.execution.name.clone(), input)
    })
    .collect()
}

fn names(cloud: &FakeCloud) -> Vec<String> {
    executions(cloud, MACHINE).into_keys().collect()
}

fn end(cloud: &FakeCloud, name: &str, state: ExecutionState) {
    let arn = format!("{}:{name}", MACHINE.replace(":stateMachine:", ":execution:"));
    cloud.with(|world| world.stop(&arn, state, None));
}

#[tokio::test(start_paused = true)]
async fn an_alert_starts_one_execution_that_is_told_all_of_it() {
    let cloud = FakeCloud::new(World::plain());
    let outcome = taken(&cloud, &finding("f-1", 8.1)).await.expect("it is taken");
    assert_eq!(outcome.started.len(), 1);
    let all = executions(&cloud, MACHINE);
    let input: Input =
        serde_json::from_value(all[&format!("{INSTANCE}-1")].clone()).expect("input");
    assert_eq!(input.instance, suspect());
    assert_eq!(input.part, Some(Part::Actor));
    assert!(matches!(input.source, Some(Source::GuardDuty { severity_tenths: 81, .. })));
    assert!(input.reason.is_some_and(|reason| reason.contains("mines")));
    assert_eq!(input.approval, None);
    // It changes nothing but that: no claim, no log, nobody is told.
    let changes: Vec<_> = cloud.changes().into_iter().map(|call| call.operation).collect();
    assert_eq!(changes, ["states:StartExecution"]);
}

#[tokio::test(start_paused = true)]
async fn the_same_alert_five_times_is_one_execution() {
    let cloud = FakeCloud::new(World::plain());
    let event = finding("f-1", 8.1);
    for answer in join_all((0..5).map(|_| taken(&cloud, &event))).await {
        let answer = answer.expect("it is taken");
        assert_eq!(answer.started.len() + answer.joined.len(), 1);
    }
    // Another source joins what runs.
    let other = taken(&cloud, &message(INSTANCE)).await.expect("it is taken");
    assert_eq!((other.started.len(), other.joined.len()), (0, 1));
    assert_eq!(names(&cloud), [format!("{INSTANCE}-1")]);
}

#[tokio::test(start_paused = true)]
async fn after_the_execution_a_finding_that_comes_again_begins_nothing_and_a_new_one_does() {
    let cloud = FakeCloud::new(World::plain());
    let first = format!("{INSTANCE}-1");
    taken(&cloud, &finding("f-1", 8.1)).await.expect("it is taken");
    respond(&cloud, None).await;
    end(&cloud, &first, ExecutionState::Succeeded);
    let again = taken(&cloud, &finding("f-1", 8.5)).await.expect("it is taken");
    assert_eq!((again.started.len(), again.joined.len()), (0, 1));
    taken(&cloud, &finding("f-2", 8.5)).await.expect("it is taken");
    let second = format!("{first}-r2");
    assert_eq!(names(&cloud), [first.clone(), second.clone()], "the same case");
    // What was stopped is begun anew.
    end(&cloud, &second, ExecutionState::Aborted);
    taken(&cloud, &finding("f-2", 8.5)).await.expect("it is taken");
    assert_eq!(names(&cloud), [first.clone(), second, format!("{first}-r3")]);
}

#[tokio::test(start_paused = true)]
async fn what_is_refused_is_answered_with_the_reason_and_the_rest_goes_on() {
    let cloud = FakeCloud::new(World::full());
    let sibling = cleanroom_cloud_fake::SIBLING;
    let absent = "i-00000000000000bad";
    let elsewhere = "arn:aws:ec2:eu-west-1:123456789012:instance/i-0000000000000e1e0";
    let foreign = "arn:aws:ec2:us-east-1:111122223333:instance/i-0000000000000f0f0";
    let policy = Policy { exempt: vec![sibling.to_owned()], ..Policy::default() };
    let text = [INSTANCE, sibling, absent, elsewhere, foreign].join(" ");
    let outcome = with(&cloud, &message(&text), policy).await.expect("it is taken");
    assert_eq!(outcome.started.len(), 1);
    assert_eq!(outcome.refused.len(), 4, "{:?}", outcome.refused);
    let world = cloud.world();
    assert_eq!(world.notices.len(), 1, "one message a delivery");
    let text = &world.notices[0].text;
    for part in [
        "exempt by the settings",
        "there is no instance i-00000000000000bad",
        "Region eu-west-1",
        "account 111122223333",
    ] {
        assert!(text.contains(part), "{part} in {text}");
    }
    assert!(world.letters.is_empty());
}

#[tokio::test(start_paused = true)]
async fn one_bad_id_fails_no_other_of_its_batch_and_a_terminated_instance_is_taken() {
    let mut world = World::full();
    let id = suspect();
    let machine = world.machines.get_mut(&id).expect("it is there");
    machine.instance.state = cleanroom_cloud::InstanceState::Terminated;
    machine.instance.vpc = None;
    let cloud = FakeCloud::new(world);
    let text = format!("{INSTANCE} i-00000000000000bad {}", cleanroom_cloud_fake::SIBLING);
    let outcome = taken(&cloud, &message(&text)).await.expect("it is taken");
    assert_eq!((outcome.started.len(), outcome.refused.len()), (2, 1));
}

#[tokio::test(start_paused = true)]
async fn garbage_is_a_dead_letter_with_its_text_and_the_reason() {
    let cloud = FakeCloud::new(World::plain());
    let outcome = taken(&cloud, &message("{\"instance\": ")).await.expect("it is taken");
    assert_eq!(outcome.unreadable.len(), 1);
    taken(&cloud, &message(&format!("{INSTANCE} i-xyz"))).await.expect("it is taken");
    let world = cloud.world();
    let letters: Vec<_> =
        world.letters.iter().map(|l| (l.queue.as_str(), l.body.as_str())).collect();
    let partly = format!("{INSTANCE} i-xyz");
    assert_eq!(letters, [(QUEUE, "{\"instance\": "), (QUEUE, partly.as_str())]);
    assert!(world.letters[1].reason.contains("i-xyz"), "{}", world.letters[1].reason);
    assert!(world.notices.is_empty());
    assert_eq!(names(&cloud), [format!("{INSTANCE}-1")], "what could be read goes on");
}

#[tokio::test(start_paused = true)]
async fn where_nobody_can_be_told_the_dead_letters_say_it() {
    let cloud = FakeCloud::new(World::plain());
    cloud.faults(Fault::Refuse(ErrorKind::Denied), At::Matching("sns:".to_owned(), 1), u64::MAX);
    taken(&cloud, &message("i-00000000000000bad")).await.expect("it is taken");
    let letters = cloud.world().letters;
    assert_eq!(letters.len(), 1);
    assert!(letters[0].reason.contains("nobody could be told"), "{}", letters[0].reason);
}

/// Ids of a fleet, as one message.
fn fleet(cloud: &FakeCloud) -> (BTreeSet<InstanceId>, Value) {
    let ids: BTreeSet<_> = cloud.world().machines.into_keys().collect();
    let text = ids.iter().map(InstanceId::as_str).collect::<Vec<_>>().join("\n");
    (ids, message(&text))
}

/// Calls of one delivery by operation, those to name the caller left out.
fn calls(cloud: &FakeCloud) -> BTreeMap<String, usize> {
    let mut calls = BTreeMap::new();
    for call in cloud.calls().iter().filter(|call| call.operation != "sts:GetCallerIdentity") {
        *calls.entry(call.operation.clone()).or_insert(0) += 1;
    }
    calls
}

#[tokio::test(start_paused = true)]
async fn a_thousand_in_one_message_cost_no_more_calls_each_than_ten() {
    let mut each = Vec::new();
    for count in [10_u16, 1000] {
        let cloud = FakeCloud::new(World::fleet(count));
        let (_, event) = fleet(&cloud);
        let outcome = taken(&cloud, &event).await.expect("it is taken");
        assert_eq!(outcome.started.len(), usize::from(count));
        let calls = calls(&cloud);
        let of = |operation: &str| calls.get(operation).copied().unwrap_or_default();
        assert_eq!(of("ec2:DescribeInstances"), usize::from(count).div_ceil(100), "{calls:?}");
        let others: usize = calls.values().sum::<usize>() - of("ec2:DescribeInstances");
        each.push(others.div_ceil(usize::from(count)));
    }
    assert!(each[1] <= each[0], "{each:?}");
}

#[tokio::test(start_paused = true)]
async fn an_incident_starts_every_case_once_however_often_it_is_delivered() {
    let cloud = FakeCloud::new(World::fleet(1000));
    let (ids, event) = fleet(&cloud);
    for answer in join_all((0..5).map(|_| taken(&cloud, &event))).await {
        let answer = answer.expect("it is taken");
        assert_eq!(answer.started.len() + answer.joined.len(), 1000);
    }
    assert!(names(&cloud).is_empty(), "the incident starts them, at its pace");
    let incidents = executions(&cloud, MANY);
    let mut named = Vec::new();
    let mut at_once = 0;
    for input in incidents.values() {
        assert_eq!(input["pace"], 10);
        at_once += input["max_concurrency"].as_u64().expect("a number");
        for item in input["instances"].as_array().expect("a list") {
            let input: Input = serde_json::from_value(item.clone()).expect("an input");
            assert_eq!(input.case.as_str(), format!("{}-1", input.instance));
            named.push(input.instance);
        }
    }
    assert_eq!(named.len(), 1000, "none twice");
    assert_eq!(named.into_iter().collect::<BTreeSet<_>>(), ids);
    assert!(at_once <= 40, "{at_once}");
}

#[tokio::test(start_paused = true)]
async fn an_incident_that_can_not_be_begun_is_begun_one_by_one() {
    let cloud = FakeCloud::new(World::fleet(20));
    let (_, event) = fleet(&cloud);
    let denied = At::Matching("cleanroom-many".to_owned(), 1);
    cloud.faults(Fault::Refuse(ErrorKind::Denied), denied, u64::MAX);
    let outcome = taken(&cloud, &event).await.expect("it is taken");
    assert_eq!(outcome.started.len(), 20);
    assert_eq!(names(&cloud).len(), 20);
}

#[tokio::test(start_paused = true)]
async fn throttling_and_lost_answers_in_between_cost_nothing_but_time() {
    for seed in 0..10 {
        let cloud = FakeCloud::new(World::fleet(30));
        let (ids, event) = fleet(&cloud);
        cloud.storm(Storm {
            seed,
            percent: 33,
            faults: vec![Fault::Refuse(ErrorKind::Throttled), Fault::LoseAnswer],
            matching: String::new(),
        });
        taken(&cloud, &event).await.expect("it is taken");
        let incidents = executions(&cloud, MANY);
        let items = incidents.values().flat_map(|i| i["instances"].as_array().cloned());
        let by_incident = items.flatten().map(|item| item["case"].as_str().map(str::to_owned));
        let mut begun: Vec<_> = by_incident.flatten().chain(names(&cloud)).collect();
        begun.sort();
        let expected: Vec<_> = ids.iter().map(|id| format!("{id}-1")).collect();
        assert_eq!(begun, expected, "seed {seed}");
    }
}

#[tokio::test(start_paused = true)]
async fn what_fails_for_now_is_put_off_after_all_else_and_nobody_is_told_twice() {
    let cloud = FakeCloud::new(World::full());
    let sibling = cleanroom_cloud_fake::SIBLING;
    let event = message(&format!("{INSTANCE} {sibling} i-00000000000000bad i-xyz"));
    let of_one = At::Matching(format!("cleanroom-response:{INSTANCE}-1"), 1);
    cloud.faults(Fault::Refuse(ErrorKind::Throttled), of_one, u64::MAX);
    let failed = taken(&cloud, &event).await.expect_err("one is put off");
    assert!(failed.retryable, "{failed}");
    assert_eq!(names(&cloud), [format!("{sibling}-1")], "all else was begun");
    let world = cloud.world();
    assert!(world.notices.is_empty() && world.letters.is_empty());
    cloud.calm();
    taken(&cloud, &event).await.expect("it is taken");
    let world = cloud.world();
    assert_eq!((world.notices.len(), world.letters.len()), (1, 1));
    assert_eq!(names(&cloud).len(), 2);
}

#[tokio::test(start_paused = true)]
async fn what_can_never_be_begun_is_told_as_loudly_as_can_be() {
    let cloud = FakeCloud::new(World::plain());
    let denied = At::Matching("states:".to_owned(), 1);
    cloud.faults(Fault::Refuse(ErrorKind::Denied), denied, u64::MAX);
    let outcome = taken(&cloud, &message(INSTANCE)).await.expect("it is answered");
    assert_eq!(outcome.failed.len(), 1);
    let world = cloud.world();
    assert_eq!((world.notices.len(), world.letters.len()), (1, 1));
    assert_eq!(world.notices[0].attributes["severity"], "high");
    assert_eq!(world.letters[0].body, INSTANCE);
}

#[tokio::test(start_paused = true)]
async fn a_broken_evidence_store_and_a_blind_inventory_hold_nothing_up() {
    let cloud = FakeCloud::new(World::plain());
    cloud.outage("s3:");
    cloud.faults(
        Fault::Refuse(ErrorKind::Denied),
        At::Matching("ec2:DescribeInstances".to_owned(), 1),
        u64::MAX,
    );
    let outcome = taken(&cloud, &message(INSTANCE)).await.expect("it is taken");
    assert_eq!(outcome.started.len(), 1);
    assert_eq!(names(&cloud), [format!("{INSTANCE}-1")]);
}

/// A call by the suspect's role, as a log subscription delivers it.
fn call(address: &str) -> Value {
    use std::io::Write as _;

    use base64::Engine as _;
    let call = json!({
        "eventSource": "s3.amazonaws.com", "eventName": "ListBuckets", "awsRegion": "us-east-1",
        "sourceIPAddress": address,
        "userIdentity": {
            "type": "AssumedRole", "principalId": format!("AROAEXAMPLE1234567890:{INSTANCE}"),
            "accountId": "123456789012",
        },
    });
    let logged = json!({
        "messageType": "DATA_MESSAGE", "logEvents": [{"id": "1", "message": call.to_string()}],
    });
    let mut packer = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
    packer.write_all(logged.to_string().as_bytes()).expect("memory takes it");
    let packed = packer.finish().expect("memory takes it");
    let data = base64::engine::general_purpose::STANDARD.encode(packed);
    json!({"awslogs": {"data": data}})
}

#[tokio::test(start_paused = true)]
async fn calls_from_the_instance_s_own_addresses_are_none_and_from_elsewhere_are() {
    let cloud = FakeCloud::new(World::full());
    let machine = cloud.world().machines[&suspect()].clone();
    let own = machine.cards[0].interface.public[0].public.clone();
    let vpc = machine.instance.vpc.clone().expect("it is in a VPC");
    cloud.with(|world| world.egress.insert(vpc, BTreeSet::from(["198.51.100.77".to_owned()])));
    for address in [own.as_str(), "198.51.100.77"] {
        let outcome = taken(&cloud, &call(address)).await.expect("it is taken");
        assert_eq!((outcome.started.len(), outcome.ignored.len()), (0, 1), "{address}");
    }
    assert!(names(&cloud).is_empty());
    let outcome = taken(&cloud, &call("192.0.2.99")).await.expect("it is taken");
    assert_eq!(outcome.started.len(), 1);
    let input = executions(&cloud, MACHINE).into_values().next().expect("it runs");
    assert_eq!(input["part"], "credentials");
    assert_eq!(input.get("approval"), None);
}

#[tokio::test(start_paused = true)]
async fn a_call_whose_address_nobody_can_tell_is_asked_about() {
    let cloud = FakeCloud::new(World::full());
    let nat = At::Matching("ec2:DescribeNatGateways".to_owned(), 1);
    cloud.faults(Fault::Refuse(ErrorKind::Denied), nat, u64::MAX);
    taken(&cloud, &call("192.0.2.99")).await.expect("it is taken");
    let input = executions(&cloud, MACHINE).into_values().next().expect("it runs");
    let input: Input = serde_json::from_value(input).expect("an input");
    assert_eq!(input.approval, Some(Approval::Needed));
    assert!(input.reason.is_some_and(|reason| reason.contains("not known")));
}
