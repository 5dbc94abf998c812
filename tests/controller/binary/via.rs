//! `respond --via aws`: the program starts a real state machine, follows it, and leaves it alone. The machine here passes
//! through states of the shipped one's names and does nothing: what its functions do is not this test's.

use cleanroom_harness::emulators::{Kind, MiniStack, REGION};
use rustix::process::Signal;
use serde_json::{Value, json};

use super::{
    account::{Account, boto},
    station::{BUCKET, Station},
};

/// Makes a state machine on MiniStack that waits so long, and a response stack on moto whose outputs name it.
pub(super) fn deploy(account: &Account, ministack: &MiniStack, seconds: u32) -> String {
    let pass = |next: &str| json!({"Type": "Pass", "Next": next});
    let machine = json!({"StartAt": "Verify", "States": {
        "Verify": pass("Isolate"),
        "Isolate": {"Type": "Wait", "Seconds": seconds, "Next": "Done"},
        "Done": {"Type": "Succeed"},
    }});
    let code = "
sfn = client('stepfunctions')
role = 'arn:aws:iam::123456789012:role/cleanroom-machine'
made = sfn.create_state_machine(name=sys.argv[3], definition=sys.argv[2], roleArn=role)
print(json.dumps(made['stateMachineArn']))
";
    let name = format!("cleanroom-response-{seconds}");
    let arn = boto(&ministack.url(), REGION, code, &[&machine.to_string(), &name]);
    let arn = arn.as_str().expect("an ARN").to_owned();
    let template = json!({
        "Resources": {"Topic": {"Type": "AWS::SNS::Topic"}},
        "Outputs": {"ResponseMachine": {"Value": arn}, "EvidenceBucket": {"Value": BUCKET}},
    });
    let code = "
client('cloudformation').create_stack(StackName=sys.argv[3], TemplateBody=sys.argv[2])
";
    let stack = format!("cleanroom-{seconds}");
    boto(&account.url(), REGION, code, &[&template.to_string(), &stack]);
    stack
}

/// The executions of all machines, each with its name, state and input.
pub(super) fn executions(ministack: &MiniStack) -> Vec<Value> {
    let code = "
sfn = client('stepfunctions')
found = [sfn.describe_execution(executionArn=e['executionArn'])
         for m in sfn.list_state_machines()['stateMachines']
         for e in sfn.list_executions(stateMachineArn=m['stateMachineArn'])['executions']]
print(json.dumps([{'name': e['name'], 'status': e['status'], 'input': json.loads(e['input'])} for e in found]))
";
    let found = boto(&ministack.url(), REGION, code, &[]);
    found.as_array().expect("executions").clone()
}

fn changes(station: &Station, before: u64) -> Vec<String> {
    let known = |call: &Value| {
        let name = format!("{}:{}", call["service"].as_str()?, call["operation"].as_str()?);
        cleanroom_cloud_aws::permissions::operation(&name).filter(|row| row.mutates)?;
        Some(name)
    };
    station.calls_since(before).iter().filter_map(known).collect()
}

#[test]
fn an_execution_is_started_followed_to_its_end_and_left_alone_on_a_signal() {
    let account = Account::of(Kind::Plain);
    let ministack = MiniStack::start().expect("MiniStack starts");
    let mut station = account.station();
    station.set("AWS_ENDPOINT_URL_SFN", &ministack.url());
    let instance = account.world.instance();
    let short = deploy(&account, &ministack, 3);
    let long = deploy(&account, &ministack, 600);

    // Its functions write no log here, so that nothing says that anything is preserved.
    let before = station.log_length();
    let arguments =
        ["respond", "--via", "aws", instance, "--stack", &short, "--reason", "it calls home"];
    let ran = station.expect(3, &arguments);
    let report = ran.report();
    assert_eq!(
        (&report["contained"], &report["preserved"]),
        (&json!(true), &json!(false)),
        "{ran}"
    );
    assert!(report["contained_seconds"].as_f64().is_some_and(|s| s >= 3.0), "{ran}");
    let begun = ran.records("started");
    assert!(begun.iter().any(|event| event["step"] == "isolate"), "{ran}");
    assert_eq!(changes(&station, before), ["states:StartExecution"]);
    let found = executions(&ministack);
    assert_eq!(found.len(), 1, "{found:?}");
    assert_eq!(
        (&found[0]["name"], &found[0]["status"]),
        (&json!(format!("{instance}-1")), &json!("SUCCEEDED"))
    );
    let input = json!({"instance": instance, "case": format!("{instance}-1"), "reason": "it calls home", "approval": "none"});
    assert_eq!(found[0]["input"], input);

    // A signal ends the following alone.
    let mut run = station.start(&["respond", "--via", "aws", instance, "--stack", &long]);
    let told = run.wait_until(|run| run.said().contains("\"step\":\"isolate\""));
    assert!(told, "{}", run.said());
    run.signal(Signal::INT);
    let ran = run.finish();
    ran.expect_any(&[130]);
    assert!(ran.stderr.contains("go on in AWS"), "{ran}");
    assert!(ran.stderr.contains(&format!("status {instance}-1")), "{ran}");
    // Who follows it again joins it.
    let mut run = station.start(&["respond", "--via", "aws", instance, "--stack", &long]);
    assert!(run.wait_until(|run| run.said().contains("\"step\":\"isolate\"")), "{}", run.said());
    run.signal(Signal::TERM);
    run.finish().expect_any(&[143]);
    let running: Vec<_> =
        executions(&ministack).into_iter().filter(|e| e["status"] == "RUNNING").collect();
    assert_eq!(running.len(), 1, "{running:?}");
}

#[test]
fn a_stack_that_can_not_respond_is_told_before_anything_is_started() {
    let account = Account::of(Kind::Plain);
    let ministack = MiniStack::start().expect("MiniStack starts");
    let mut station = account.station();
    station.set("AWS_ENDPOINT_URL_SFN", &ministack.url());
    let instance = account.world.instance();
    let ran = station.expect(1, &["respond", "--via", "aws", instance]);
    assert!(ran.stderr.contains("ResponseMachine") || ran.stderr.contains("stack"), "{ran}");

    let stack = deploy(&account, &ministack, 1);
    let other = ["respond", "--via", "aws", instance, "--stack", &stack, "--bucket", "another-one"];
    let ran = station.expect(2, &other);
    assert!(ran.stderr.contains("another-one") && ran.stderr.contains(BUCKET), "{ran}");
    station.expect(1, &["respond", "--via", "aws", "i-0123456789abcdef0", "--stack", &stack]);
    assert_eq!(executions(&ministack), Vec::<Value>::new());
}

#[test]
fn open_cases_are_listed_until_they_are_released() {
    let account = Account::of(Kind::Plain);
    let station = account.station();
    let instance = account.world.instance();
    let ran = station.expect(0, &["cases", "--open"]);
    assert_eq!(ran.records("open_case"), Vec::<Value>::new(), "{ran}");
    station.run(&["respond", instance]).expect_any(&[0, 3]);
    let before = station.log_length();
    let ran = station.expect(0, &["cases", "--open"]);
    let open = ran.record("open_case");
    assert_eq!(
        (&open["instance"], &open["case"]),
        (&json!(instance), &json!(format!("{instance}-1")))
    );
    assert!(open["age_seconds"].as_i64().is_some_and(|age| age >= 0), "{ran}");
    assert!(open["last"]["what"].is_string() && open["last"]["at"].is_string(), "{ran}");
    assert_eq!(changes(&station, before), Vec::<String>::new());
    let ran = station.expect(0, &["cases", "--open", "--format", "human"]);
    assert!(ran.stdout.starts_with("case "), "{ran}");
    let case = format!("{instance}-1");
    station.expect(0, &["release", &case, "--yes"]);
    let ran = station.expect(0, &["cases", "--open", "--format", "human"]);
    assert_eq!(ran.stdout, "no open case\n", "{ran}");
}
