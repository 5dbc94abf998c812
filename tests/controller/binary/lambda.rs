//! The program of the Lambda functions, `cleanroom-lambda`, as Lambda starts it: a process that asks a runtime API for
//! something to do, in an emulated account.

use std::{
    fs::{self, File},
    process::{Child, Command, ExitStatus, Stdio},
    time::{Duration, Instant},
};

use cleanroom_contract::Timestamp;
use cleanroom_controller::{case::Clock as _, machine::SystemClock};
use cleanroom_harness::emulators::{ACCESS_KEY, Kind, REGION, SECRET_KEY};
use serde_json::{Value, json};
use tempfile::TempDir;

use super::{
    account::{Account, boto},
    station::{BUCKET, CLOSED, TOPIC, pause},
};
use crate::runtime_api::{Answered, RuntimeApi};

/// A task's token, as no line of the log may have it.
const TOKEN: &str = "AQCEAAAAKgAAAAMAAAAAAAAAAexample";

/// How long an invocation may take.
const TIME: Duration = Duration::from_secs(100);

/// No process that can not begin lives so long.
const PATIENCE: Duration = Duration::from_secs(30);

/// A function: its process, and what it is sent.
#[derive(Debug)]
struct Function {
    child: Child,
    api: RuntimeApi,
    folder: TempDir,
}

impl Function {
    /// Starts one, with the variables that the response stack and Lambda set, and more.
    fn start(handler: &str, endpoint: &str, more: &[(&str, &str)]) -> Self {
        let (api, folder) = (RuntimeApi::start(), tempfile::tempdir().expect("a folder"));
        let log = File::create(folder.path().join("log")).expect("a file for the log");
        let states = "arn:aws:states:us-east-1:123456789012:stateMachine:cleanroom";
        let mut command = Command::new(env!("CARGO_BIN_EXE_cleanroom-lambda"));
        command
            .env_clear()
            .current_dir(folder.path())
            .stdin(Stdio::null())
            .stderr(log.try_clone().expect("the log"))
            .stdout(log)
            .env("AWS_LAMBDA_RUNTIME_API", api.address())
            .env("AWS_LAMBDA_FUNCTION_NAME", format!("cleanroom-{handler}"))
            .env("AWS_LAMBDA_FUNCTION_MEMORY_SIZE", "512")
            .env("AWS_LAMBDA_FUNCTION_VERSION", "$LATEST")
            .env("_HANDLER", handler)
            .env("AWS_ENDPOINT_URL", endpoint)
            .env("AWS_ACCESS_KEY_ID", ACCESS_KEY)
            .env("AWS_SECRET_ACCESS_KEY", SECRET_KEY)
            .env("AWS_REGION", REGION)
            .env("AWS_EC2_METADATA_DISABLED", "true")
            .env("HTTPS_PROXY", CLOSED)
            .env("HTTP_PROXY", CLOSED)
            .env("NO_PROXY", "127.0.0.1")
            .env("CLEANROOM_BUCKET", BUCKET)
            .env("CLEANROOM_TOPIC", TOPIC)
            .env("CLEANROOM_MACHINE", format!("{states}-response"))
            .env("CLEANROOM_MANY", format!("{states}-many"))
            .env("CLEANROOM_DEAD_LETTERS", format!("{endpoint}/123456789012/dead-letters"))
            .env("CLEANROOM_AT_ONCE", "10")
            .env("CLEANROOM_PACE", "2")
            .envs(more.iter().copied());
        Self { child: command.spawn().expect("the program starts"), api, folder }
    }

    /// Invokes it, and returns the answer and the lines that it wrote meanwhile.
    fn invoke(&mut self, event: &str) -> (Answered, Vec<Value>) {
        let before = self.lines().len();
        let answer = self.api.invoke(event, TIME);
        // What is written of an invocation is written before it is answered.
        let lines = self.lines().split_off(before);
        for line in &lines {
            assert_eq!(line["request"], answer.request, "{line}");
        }
        (answer, lines)
    }

    /// Its log. Every line is one JSON object, and none gives away a task.
    fn lines(&self) -> Vec<Value> {
        let text = fs::read_to_string(self.folder.path().join("log")).expect("the log");
        assert!(!text.contains(TOKEN), "{text}");
        let lines = text.lines().map(|line| {
            let line: Value = serde_json::from_str(line).unwrap_or_else(|e| panic!("{e}: {line}"));
            assert!(line["function"].is_string(), "{line}");
            assert!(line["level"].is_string() || line["_aws"].is_object(), "{line}");
            line
        });
        lines.collect()
    }

    /// Waits for its end.
    fn ended(&mut self) -> ExitStatus {
        let began = Instant::now();
        while began.elapsed() < PATIENCE {
            if let Some(status) = self.child.try_wait().expect("a child") {
                return status;
            }
            pause(5);
        }
        panic!("it does not end: {:?}", self.lines());
    }
}

impl Drop for Function {
    fn drop(&mut self) {
        let _ended = self.child.kill();
        let _status = self.child.wait();
    }
}

fn ask(step: &str, instance: &str) -> Value {
    json!({
        "step": step,
        "instance": instance,
        "case": format!("{instance}-1"),
        "run": format!("{instance}-1"),
        "started": "2026-01-02T03:04:05.678Z",
        "input": {"instance": instance, "case": format!("{instance}-1")},
        "token": TOKEN,
    })
}

/// The error's name, and what it says.
fn error(answer: &Answered) -> (String, String) {
    assert!(answer.failed, "{answer:?}");
    let body: Value = serde_json::from_str(&answer.body).expect("JSON");
    let text = |name: &str| body[name].as_str().expect("a text").to_owned();
    (text("errorType"), text("errorMessage"))
}

fn has(lines: &[Value], message: &str) -> bool {
    lines.iter().any(|line| line["message"] == message)
}

#[test]
fn requests_that_are_none_are_refused_by_name_and_the_process_goes_on() {
    let account = Account::of(Kind::Plain);
    for handler in ["step", "contain-only"] {
        let mut function = Function::start(handler, &account.url(), &[]);
        // It asks before there is anything, and before it knows whether AWS answers.
        function.api.first_poll();
        for (event, expected) in [
            (json!({"step": "contain", "case": "c-1", "token": TOKEN}), "instance"),
            (json!({"step": "contain", "instance": "i-xyz", "case": "c-1"}), "read the request"),
            (json!([1, 2]), "read the request"),
            (json!(null), "read the request"),
        ] {
            let (answer, lines) = function.invoke(&event.to_string());
            let (name, why) = error(&answer);
            assert_eq!(name, "Cleanroom.Failed", "{handler} {event}: {why}");
            assert!(why.contains(expected), "{handler} {event}: {why}");
            assert!(has(&lines, "failed"), "{lines:?}");
        }
        let (answer, _) = function.invoke("{\"step\": ");
        assert!(answer.failed, "{answer:?}");
        let (answer, _) = function.invoke(&json!({"step": "contain"}).to_string());
        assert_eq!(error(&answer).0, "Cleanroom.Failed", "it serves on");
        assert!(function.child.try_wait().expect("a child").is_none(), "it is one process");
    }
}

#[test]
fn every_line_of_a_step_names_its_case() {
    let account = Account::of(Kind::Plain);
    let mut function = Function::start("step", &account.url(), &[]);
    let instance = account.world.instance();
    let mut other = ask("verify", instance);
    other["open"] = json!({"case": "claimed-by-another-1"});
    for (event, case) in [
        (ask("verify", instance), format!("{instance}-1")),
        (other, "claimed-by-another-1".to_owned()),
    ] {
        let (answer, lines) = function.invoke(&event.to_string());
        assert!(!answer.failed && !lines.is_empty(), "{answer:?} {lines:?}");
        assert!(answer.body.contains("verdict"), "{answer:?}");
        for line in lines {
            assert_eq!(line["case"], case, "{line}");
            assert_eq!(line["instance"], instance, "{line}");
            assert_eq!(line["run"], format!("{instance}-1"), "{line}");
            assert_eq!(line["step"], "verify", "{line}");
            assert_eq!(line["function"], "step", "{line}");
        }
    }
}

#[test]
fn who_watches_tells_numbers_that_cloudwatch_reads() {
    let account = Account::of(Kind::Plain);
    let mut function = Function::start("contain-only", &account.url(), &[]);
    let (answer, lines) = function.invoke(&json!({"step": "watch"}).to_string());
    assert!(!answer.failed, "{answer:?} {lines:?}");
    assert_eq!(answer.body, json!({"watched": [], "left": 0}).to_string());
    let embedded: Vec<_> = lines.iter().filter(|line| line["_aws"].is_object()).collect();
    assert_eq!(embedded.len(), 1, "{lines:?}");
    let (line, directive) = (embedded[0], &embedded[0]["_aws"]["CloudWatchMetrics"][0]);
    assert_eq!(
        (&directive["Namespace"], &line["Stack"]),
        (&json!("Cleanroom"), &json!("cleanroom"))
    );
    assert_eq!(directive["Dimensions"], json!([["Stack"]]));
    let metrics = directive["Metrics"].as_array().expect("a list");
    let names: Vec<_> = metrics.iter().filter_map(|metric| metric["Name"].as_str()).collect();
    assert_eq!(names, ["InterfaceOpen", "Drifted", "AgentSilent", "CaseAgeHours"]);
    for name in names {
        assert_eq!(line[name], 0.0, "{line}");
    }
}

#[test]
fn settings_that_can_not_be_read_are_told_and_read_again() {
    let account = Account::of(Kind::Plain);
    let place = format!("s3://{BUCKET}/cleanroom.toml");
    let mut function =
        Function::start("contain-only", &account.url(), &[("CLEANROOM_SETTINGS", &place)]);
    let watch = json!({"step": "watch"}).to_string();
    let put = |text: &str| {
        let code = "
client('s3').put_object(Bucket=sys.argv[2], Key='cleanroom.toml', Body=sys.argv[3].encode())
print('null')
";
        boto(&account.url(), REGION, code, &[BUCKET, text]);
    };
    let why = |lines: &[Value]| {
        let line = lines.iter().find(|line| line["message"] == "settings");
        line.map(|line| (line["level"].clone(), line["why"].as_str().expect("a text").to_owned()))
    };
    let (answer, lines) = function.invoke(&watch);
    assert!(!answer.failed, "{answer:?}");
    let (level, text) = why(&lines).expect("they are not there");
    assert_eq!(level, "ERROR");
    assert!(text.contains(&format!("{place} is not there")), "{text}");
    put("exempt = [\"role=bastion\"]\nimage = 7\n");
    let (_, lines) = function.invoke(&watch);
    let (_, text) = why(&lines).expect("they are malformed");
    assert!(text.contains(&format!("{place}:2: ")) && text.contains("a person is asked"), "{text}");
    put("exempt = [\"role=bastion\"]\n");
    assert_eq!(why(&function.invoke(&watch).1), None, "they are read again");
    put("image = 7\n");
    assert_eq!(why(&function.invoke(&watch).1), None, "they hold for a while");
}

#[test]
fn where_sts_is_gone_the_function_s_own_name_says_whose_account_it_is() {
    let mut function = Function::start("contain-only", CLOSED, &[]);
    let (_, lines) = function.invoke(&json!({"step": "contain"}).to_string());
    let line = lines.iter().find(|line| line["message"] == "caller").expect("it is told");
    assert_eq!(line["assumed"], "arn:aws:lambda:us-east-1:123456789012:function:cleanroom");
}

#[test]
fn what_nobody_can_read_becomes_a_dead_letter_with_the_reason() {
    let account = Account::of(Kind::Plain);
    let made = "print(json.dumps(client('sqs').create_queue(QueueName='letters')['QueueUrl']))";
    let queue = boto(&account.url(), REGION, made, &[]);
    let queue = queue.as_str().expect("a queue's address");
    let mut function =
        Function::start("intake", &account.url(), &[("CLEANROOM_DEAD_LETTERS", queue)]);
    let event = json!({"Records": [{"Sns": {"Message": "is anybody there?"}}]});
    let (answer, lines) = function.invoke(&event.to_string());
    assert!(!answer.failed && has(&lines, "answered"), "{answer:?} {lines:?}");
    let code = "
got = client('sqs').receive_message(QueueUrl=sys.argv[2], MessageAttributeNames=['All'], MaxNumberOfMessages=10)
print(json.dumps([[m['Body'], m['MessageAttributes']['reason']['StringValue']] for m in got.get('Messages', [])]))
";
    let letters = boto(&account.url(), REGION, code, &[queue]);
    assert_eq!(letters.as_array().map(Vec::len), Some(1), "{letters}");
    assert_eq!(letters[0][0], "is anybody there?");
    assert!(letters[0][1].as_str().is_some_and(|why| !why.is_empty()), "{letters}");

    // A queue that is gone is no reason to end.
    let mut function = Function::start("intake", &account.url(), &[]);
    for _ in 0..2 {
        let (answer, lines) = function.invoke(&event.to_string());
        assert!(error(&answer).0.starts_with("Cleanroom."), "{answer:?}");
        assert!(has(&lines, "failed"), "{lines:?}");
    }
}

#[test]
fn contain_only_contains_and_tells_after_how_many_seconds() {
    let account = Account::of(Kind::Plain);
    let instance = account.world.instance();
    let now = SystemClock.now();
    let mut event = ask("contain", instance);
    event["started"] = json!(Timestamp { seconds: now.seconds - 1_000, ..now });
    let mut function = Function::start("contain-only", &account.url(), &[]);
    let (answer, lines) = function.invoke(&event.to_string());
    assert!(!answer.failed, "{answer:?} {lines:?}");
    let facts: Value = serde_json::from_str(&answer.body).expect("JSON");
    assert_eq!(facts["contained"], true, "{facts}");
    account.state().assert_no_way_in_or_out("contain-only");
    let told = lines.iter().find(|line| line["SecondsToContain"].is_number());
    let seconds = told.and_then(|line| line["SecondsToContain"].as_f64()).expect("it is told");
    assert!((1_000.0..1_100.0).contains(&seconds), "seconds count from the start: {seconds}");
    let case = format!("{instance}-1");
    for line in &lines {
        assert_eq!((&line["case"], &line["instance"]), (&json!(case), &json!(instance)), "{line}");
    }
    assert!(lines.iter().any(|line| line["event"]["type"] == "change"), "{lines:?}");

    // Another process, another invocation: it is contained already.
    let mut function = Function::start("contain-only", &account.url(), &[]);
    let (answer, lines) = function.invoke(&json!({"step": "watch"}).to_string());
    let seen: Value = serde_json::from_str(&answer.body).expect("JSON");
    assert_eq!(seen["watched"][0]["case"], case, "{seen} {lines:?}");
    assert_eq!(seen["watched"][0]["contained"], true, "{seen}");
}

#[test]
fn without_what_it_needs_it_says_so_and_ends() {
    for (handler, more, expected) in [
        ("step", [("AWS_LAMBDA_FUNCTION_VERSION", "")], "AWS_LAMBDA_FUNCTION_VERSION"),
        ("intake", [("CLEANROOM_DEAD_LETTERS", "")], "CLEANROOM_DEAD_LETTERS"),
        ("step", [("_HANDLER", "main")], "none of intake, step, contain-only"),
    ] {
        let mut function = Function::start(handler, CLOSED, &more);
        assert_eq!(function.ended().code(), Some(1), "{expected}");
        let lines = function.lines();
        assert_eq!(lines.len(), 1, "{lines:?}");
        assert!(lines[0]["why"].as_str().is_some_and(|why| why.contains(expected)), "{lines:?}");
    }
}
