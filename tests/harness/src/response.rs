//! The response stack of an emulated account: `cloudformation/response.yaml` itself, deployed, with the real program in its
//! functions.
//!
//! | What | Where |
//! |---|---|
//! | Lambda, Step Functions, SNS, SQS, EventBridge, logs, STS, CloudFormation of this stack | [`MiniStack`], with its corrections |
//! | EC2, Auto Scaling, load balancers, IAM, KMS, GuardDuty, CloudTrail, the evidence bucket, CloudFormation of rooms | [`Moto`](crate::emulators::Moto) |
//!
//! The template is deployed as it is. Three things are done besides: the functions' environment gets the emulators' addresses,
//! a queue listens to the notify topic, and what the state machines wait, and wait between tries, takes a fiftieth of
//! its time. Nothing is retried that SNS and EventBridge would deliver again, heartbeats are not watched for,
//! policies are not enforced but the evidence bucket's.
//!
//! Touches the emulators and a temporary folder. Everything listens on 127.0.0.1 and ends with this process.

mod calls;

use std::{
    collections::BTreeMap,
    fs,
    path::{Path, PathBuf},
    sync::Mutex,
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context, Result, bail, ensure};
use serde::Deserialize;
use serde_json::{Value, json};
use tempfile::TempDir;

pub use self::calls::Execution;
use self::calls::{Service, escaped};
use crate::{
    emulators::{
        ACCESS_KEY, Fault, Microburst, MiniStack, REGION, Router, SECRET_KEY, World, script,
    },
    tools::{command, run, workspace_root},
};

/// The stack's name.
const NAME: &str = "cleanroom";

/// How much of a state machine's wait is waited for.
const WAITS: f64 = 0.02;

/// What the proxies draw from.
const SEED: u64 = 11;

/// The time between two looks.
const LOOK: Duration = Duration::from_millis(250);

/// What is not MiniStack's, by the names that AWS's SDKs have for the addresses.
const ON_MOTO: [&str; 9] = [
    "AWS_ENDPOINT_URL_AUTO_SCALING",
    "AWS_ENDPOINT_URL_CLOUDFORMATION",
    "AWS_ENDPOINT_URL_CLOUDTRAIL",
    "AWS_ENDPOINT_URL_EC2",
    "AWS_ENDPOINT_URL_ELASTIC_LOAD_BALANCING",
    "AWS_ENDPOINT_URL_ELASTIC_LOAD_BALANCING_V2",
    "AWS_ENDPOINT_URL_GUARDDUTY",
    "AWS_ENDPOINT_URL_IAM",
    "AWS_ENDPOINT_URL_KMS",
];

/// And the evidence bucket, whose rules moto keeps.
const STORE: &str = "AWS_ENDPOINT_URL_S3";

/// What happens to a step.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum StepFault {
    /// The function's process ends before the program has seen the request.
    Crash,
    /// It ends when the program has done what it was asked, and before it answers.
    Lose,
    /// Nobody answers until the state's time is up.
    Hang,
}

impl StepFault {
    fn word(self) -> &'static str {
        match self {
            Self::Crash => "crash",
            Self::Lose => "lose",
            Self::Hang => "hang",
        }
    }
}

/// What the stack has made, by the names of its outputs.
#[derive(Debug, Deserialize)]
struct Deployed {
    outputs: BTreeMap<String, String>,
    /// The functions' log groups.
    logs: Vec<String>,
    /// The address of the queue that listens to the notify topic.
    notices: String,
}

/// A response stack, and the account that it responds in.
#[derive(Debug)]
pub struct ResponseStack {
    ministack: MiniStack,
    world: World,
    deployed: Deployed,
    /// One file a fault, where faults can be injected.
    faults: Option<TempDir>,
    /// What the functions' calls pass.
    _proxies: Option<[Microburst; 2]>,
    /// What queues have given so far, by their addresses: a message is received once.
    received: Mutex<BTreeMap<String, Vec<Value>>>,
}

/// What is deployed.
#[derive(Clone, Debug)]
pub struct Program {
    /// What runs as `bootstrap`.
    pub bootstrap: PathBuf,
    /// The text of `cleanroom.toml`.
    pub settings: String,
    /// Whether steps can be made to fail: then a program stands between the runtime and this one.
    pub faults: bool,
    /// What happens to the functions' calls, on the way to either emulator: without any, nothing stands between.
    pub weather: Vec<Fault>,
    /// Parameters of the stack besides those that every stack has.
    pub parameters: BTreeMap<String, String>,
}

impl Program {
    /// A program, with settings, that nothing happens to.
    #[must_use]
    pub fn of(bootstrap: PathBuf, settings: String) -> Self {
        let (weather, parameters) = (Vec::new(), BTreeMap::new());
        Self { bootstrap, settings, faults: false, weather, parameters }
    }
}

impl ResponseStack {
    /// Deploys the stack, to respond in this account.
    ///
    /// # Errors
    /// Where an emulator does not start, or the stack can not be made.
    pub fn start(program: &Program, world: &World) -> Result<Self> {
        let ministack = MiniStack::hurried(WAITS)?;
        let scratch = tempfile::tempdir().context("create a temporary folder")?;
        let faults = program.faults.then(tempfile::tempdir).transpose();
        let faults = faults.context("create a folder for faults")?;
        let bootstrap = stripped(&program.bootstrap, scratch.path())?;
        let scripts = workspace_root().join("tests/harness/emulators");
        let (bootstrap, wrapped) = match &faults {
            Some(_) => (scripts.join("faulty.py"), Some(bootstrap)),
            None => (bootstrap, None),
        };
        let templates = workspace_root().join("cloudformation");
        let proxies = match program.weather.as_slice() {
            [] => None,
            _ => Some([
                Microburst::start(&ministack.url(), SEED)?,
                Microburst::start(world.endpoint(), SEED)?,
            ]),
        };
        let mut environment = match &proxies {
            Some([services, account]) => endpoints(&services.url(), &account.url(), &account.url()),
            None => endpoints(&ministack.url(), world.endpoint(), world.store()),
        };
        if let Some(folder) = &faults {
            let folder = folder.path().display().to_string();
            environment.insert("CLEANROOM_TEST_FAULTS".to_owned(), folder);
        }
        let options = json!({
            "name": NAME,
            "template": templates.join("response.yaml"),
            "machine": templates.join("response.asl.json"),
            "many": templates.join("response-many.asl.json"),
            "program": bootstrap,
            "wrapped": wrapped,
            "settings": program.settings,
            "bucket": world.bucket(),
            "key": world.key(),
            "environment": environment,
            "parameters": program.parameters,
        });
        let file = scratch.path().join("options.json");
        fs::write(&file, options.to_string()).context("write what to deploy")?;
        let words = [ministack.url(), world.addresses(), file.display().to_string()];
        let made = script("response.py", &words).context("deploy the response stack")?;
        let deployed = serde_json::from_value(made).context("read what response.py printed")?;
        for proxy in proxies.iter().flatten() {
            proxy.set(&program.weather)?;
        }
        let (received, world) = (Mutex::default(), world.clone());
        Ok(Self { ministack, world, deployed, faults, _proxies: proxies, received })
    }

    /// The account.
    #[must_use]
    pub fn world(&self) -> &World {
        &self.world
    }

    /// An output of the stack; empty where it has none of this name.
    #[must_use]
    pub fn output(&self, name: &str) -> &str {
        self.deployed.outputs.get(name).map_or("", String::as_str)
    }

    /// What the command line needs to respond in the same account, with the same bucket and topic.
    #[must_use]
    pub fn settings(&self) -> BTreeMap<String, String> {
        let mut all = endpoints(&self.ministack.url(), self.world.endpoint(), self.world.store());
        for (name, value) in [
            ("AWS_REGION", REGION),
            ("AWS_ACCESS_KEY_ID", ACCESS_KEY),
            ("AWS_SECRET_ACCESS_KEY", SECRET_KEY),
            ("CLEANROOM_BUCKET", self.world.bucket()),
            ("CLEANROOM_TOPIC", self.output("NotifyTopic")),
        ] {
            all.insert(name.to_owned(), value.to_owned());
        }
        all
    }

    /// The same for what asks CloudFormation of this stack itself: the stacks of rooms are in the account.
    #[must_use]
    pub fn settings_beside(&self) -> BTreeMap<String, String> {
        let mut all = self.settings();
        all.insert("AWS_ENDPOINT_URL_CLOUDFORMATION".to_owned(), self.ministack.url());
        all
    }

    /// Starts what leads a room's calls to the right emulator: it knows one address only.
    ///
    /// # Errors
    /// Where it does not start.
    pub fn router(&self) -> Result<Router> {
        Router::start(self.world.endpoint(), &self.ministack.url())
    }

    /// Publishes on the intake topic.
    ///
    /// # Errors
    /// Where MiniStack refuses.
    pub fn publish(&self, message: &str) -> Result<()> {
        let topic = escaped(self.output("IntakeTopic"));
        let body = format!(
            "Action=Publish&Version=2010-03-31&TopicArn={topic}&Message={}",
            escaped(message)
        );
        calls::query(&self.ministack.url(), Service::Sns, &body).map(drop)
    }

    /// Puts an event on the default bus, as the service `source` would.
    ///
    /// # Errors
    /// Where MiniStack refuses.
    pub fn put_event(&self, source: &str, detail_type: &str, detail: &Value) -> Result<()> {
        let entry = json!({
            "Source": source, "DetailType": detail_type, "Detail": detail.to_string()
        });
        let told = self.call(Service::Events, "PutEvents", &json!({ "Entries": [entry] }))?;
        ensure!(told["FailedEntryCount"] == 0, "the bus refused: {told}");
        Ok(())
    }

    /// Every execution of the response machine.
    ///
    /// # Errors
    /// Where MiniStack does not answer.
    pub fn executions(&self) -> Result<Vec<String>> {
        Ok(self.standings()?.into_keys().collect())
    }

    /// How each execution of the response machine stands, by its name.
    ///
    /// # Errors
    /// Where MiniStack does not answer.
    pub fn standings(&self) -> Result<BTreeMap<String, String>> {
        let machine = self.output("ResponseMachine");
        let mut asked = json!({ "stateMachineArn": machine, "maxResults": 1000 });
        let mut all = BTreeMap::new();
        loop {
            let told = self.call(Service::States, "ListExecutions", &asked)?;
            let page = told["executions"].as_array().context("no list of executions")?;
            let text = |item: &Value, name: &str| item[name].as_str().map(str::to_owned);
            all.extend(page.iter().filter_map(|i| Some((text(i, "name")?, text(i, "status")?))));
            match told["nextToken"].as_str() {
                Some(next) => asked["nextToken"] = json!(next),
                None => return Ok(all),
            }
        }
    }

    /// What MiniStack has counted so far: see `counting.py`.
    ///
    /// # Errors
    /// Where it does not answer.
    pub fn counts(&self) -> Result<Value> {
        self.ministack.counts()
    }

    /// An execution of the response machine; `None` where there is none of this name.
    ///
    /// # Errors
    /// Where MiniStack does not answer.
    pub fn execution(&self, name: &str) -> Result<Option<Execution>> {
        // To ask for one that is not there is an error like others.
        if !self.executions()?.iter().any(|known| known == name) {
            return Ok(None);
        }
        let asked = json!({ "executionArn": self.arn(name) });
        let told = self.call(Service::States, "DescribeExecution", &asked)?;
        Ok(Some(serde_json::from_value(told).context("read an execution")?))
    }

    /// The states that an execution has entered so far, but for those within a Parallel or a Map, of which MiniStack
    /// keeps no record.
    ///
    /// # Errors
    /// Where MiniStack does not answer.
    pub fn entered(&self, name: &str) -> Result<Vec<String>> {
        let asked = json!({ "executionArn": self.arn(name), "maxResults": 1000 });
        let told = self.call(Service::States, "GetExecutionHistory", &asked)?;
        let events = told["events"].as_array().context("no history")?;
        let state =
            |event: &Value| event["stateEnteredEventDetails"]["name"].as_str().map(str::to_owned);
        Ok(events.iter().filter_map(state).collect())
    }

    /// Starts an execution of a machine of this stack, by the name of its output.
    ///
    /// # Errors
    /// Where MiniStack refuses.
    pub fn begin(&self, machine: &str, name: &str, input: &Value) -> Result<()> {
        let asked = json!({
            "stateMachineArn": self.output(machine), "name": name, "input": input.to_string()
        });
        self.call(Service::States, "StartExecution", &asked).map(drop)
    }

    /// Stops an execution, as a person would in the console.
    ///
    /// # Errors
    /// Where there is no such execution, or it has ended.
    pub fn stop(&self, name: &str) -> Result<()> {
        let asked = json!({ "executionArn": self.arn(name) });
        self.call(Service::States, "StopExecution", &asked).map(drop)
    }

    /// Waits until something is there.
    ///
    /// # Errors
    /// Where the time is up: then with what the functions have logged last.
    pub fn wait<T>(
        &self,
        what: &str,
        patience: Duration,
        mut look: impl FnMut() -> Result<Option<T>>,
    ) -> Result<T> {
        let ends = Instant::now() + patience;
        loop {
            if let Some(found) = look()? {
                return Ok(found);
            }
            if Instant::now() > ends {
                let logs = self.logs().unwrap_or_default();
                let last: Vec<_> = logs.iter().rev().take(30).rev().map(String::as_str).collect();
                bail!("not within {patience:?}: {what}\n{}", last.join("\n"));
            }
            pause(LOOK);
        }
    }

    /// Waits until an execution has ended.
    ///
    /// # Errors
    /// As [`ResponseStack::wait`].
    pub fn ended(&self, name: &str, patience: Duration) -> Result<Execution> {
        let look = || Ok(self.execution(name)?.filter(Execution::has_ended));
        self.wait(&format!("the end of {name}"), patience, look)
    }

    /// What the functions have logged, each line by itself, function by function.
    ///
    /// # Errors
    /// Where MiniStack does not answer.
    pub fn logs(&self) -> Result<Vec<String>> {
        let mut lines = Vec::new();
        for group in &self.deployed.logs {
            let asked = json!({ "logGroupName": group, "limit": 10_000 });
            let told = self.call(Service::Logs, "FilterLogEvents", &asked)?;
            let events = told["events"].as_array().context("no log")?.iter();
            lines.extend(events.filter_map(|event| event["message"].as_str().map(str::to_owned)));
        }
        Ok(lines)
    }

    /// What could not be handled: bodies and, in `attributes`, reasons.
    ///
    /// # Errors
    /// Where MiniStack does not answer.
    pub fn dead_letters(&self) -> Result<Vec<Value>> {
        self.receive(self.output("DeadLetters"))
    }

    /// What was published on the notify topic, in `body`.
    ///
    /// # Errors
    /// Where MiniStack does not answer.
    pub fn notices(&self) -> Result<Vec<Value>> {
        self.receive(&self.deployed.notices)
    }

    /// All that a queue has held so far.
    fn receive(&self, queue: &str) -> Result<Vec<Value>> {
        let mut all = self.received.lock().ok().context("a test has failed here")?;
        let known = all.entry(queue.to_owned()).or_default();
        loop {
            let asked = json!({
                "QueueUrl": queue, "MaxNumberOfMessages": 10, "MessageAttributeNames": ["All"]
            });
            let told = self.call(Service::Sqs, "ReceiveMessage", &asked)?;
            let Some(messages) = told["Messages"].as_array().filter(|all| !all.is_empty()) else {
                return Ok(known.clone());
            };
            for message in messages {
                let asked = json!({ "QueueUrl": queue, "ReceiptHandle": message["ReceiptHandle"] });
                self.call(Service::Sqs, "DeleteMessage", &asked)?;
                known.push(json!({
                    "body": message["Body"], "attributes": message["MessageAttributes"]
                }));
            }
        }
    }

    /// Lets a step of an instance fail, the next `times` times.
    ///
    /// # Errors
    /// Where no faults can be injected into this stack.
    pub fn fault(&self, instance: &str, step: &str, fault: StepFault, times: u32) -> Result<()> {
        let folder = self.faults.as_ref().context("this stack was started without faults")?;
        let path = folder.path().join(format!("{instance}.{step}"));
        fs::write(path, format!("{} {times}", fault.word())).context("write the fault")
    }

    /// Whether a fault that was set is still to come.
    #[must_use]
    pub fn faults_left(&self, instance: &str) -> bool {
        let of = |name: &str| name.starts_with(instance);
        let files = self.faults.as_ref().and_then(|folder| fs::read_dir(folder.path()).ok());
        files.into_iter().flatten().flatten().any(|f| f.file_name().to_str().is_some_and(of))
    }

    /// Lets Lambda refuse the step function for as long as this is so: it has no concurrency left.
    ///
    /// # Errors
    /// Where MiniStack refuses.
    pub fn throttle(&self, so: bool) -> Result<()> {
        let path = format!("/functions/{NAME}-step/concurrency");
        let (method, body) = if so {
            ("PUT", json!({ "ReservedConcurrentExecutions": 0 }).to_string())
        } else {
            ("DELETE", String::new())
        };
        let path = format!("/2017-10-31{path}");
        calls::lambda(&self.ministack.url(), method, &path, &body).map(drop)
    }

    /// An action of EC2's query protocol in the account, by whoever is not Cleanroom: `Action=…&…`.
    ///
    /// # Errors
    /// Where moto refuses.
    pub fn ec2(&self, action: &str) -> Result<String> {
        let body = format!("{action}&Version=2016-11-15");
        calls::query(self.world.endpoint(), Service::Ec2, &body)
    }

    fn call(&self, service: Service, action: &str, body: &Value) -> Result<Value> {
        calls::json(&self.ministack.url(), service, action, body)
    }

    fn arn(&self, name: &str) -> String {
        let machine = self.output("ResponseMachine").replacen(":stateMachine:", ":execution:", 1);
        format!("{machine}:{name}")
    }
}

/// A program without what only debuggers read: MiniStack keeps it in memory. A script stays as it is.
fn stripped(program: &Path, scratch: &Path) -> Result<PathBuf> {
    if program.extension().is_some() {
        return Ok(program.to_owned());
    }
    let path = scratch.join("bootstrap");
    run(command("strip")?.arg("-o").arg(&path).arg(program))?;
    Ok(path)
}

/// The addresses of the services, those of the account, and that of its buckets.
fn endpoints(services: &str, account: &str, store: &str) -> BTreeMap<String, String> {
    let mut all = BTreeMap::from([("AWS_ENDPOINT_URL".to_owned(), services.to_owned())]);
    all.extend(ON_MOTO.map(|name| (name.to_owned(), account.to_owned())));
    all.insert(STORE.to_owned(), store.to_owned());
    all
}

/// Waits on the harness's own thread.
#[expect(clippy::disallowed_methods, reason = "there is no runtime here whose tasks would wait")]
fn pause(time: Duration) {
    thread::sleep(time);
}

#[cfg(test)]
mod tests;
