//! The accounts that alerts are about, the stack that responds, and what must be true in the end.

use std::{
    collections::{BTreeMap, BTreeSet},
    env, fs,
    path::Path,
    process::{Command, Output, Stdio},
    sync::{
        OnceLock, RwLock,
        atomic::{AtomicUsize, Ordering},
    },
    time::Duration,
};

use cleanroom_harness::{
    emulators::{Fault, Injection, Kind, Moto, World},
    incident::beside_tests,
    response::{Execution, Program, ResponseStack},
};
use serde_json::Value;

use crate::support::words;

/// How long a response may take on a busy machine, beside others.
pub(super) const PATIENCE: Duration = Duration::from_secs(240);

/// An address where nothing listens, for everything but the emulators.
const NOWHERE: &str = "http://127.0.0.1:1";

/// Everyone may be contained without being asked about: the brake is tested by itself.
pub(super) const SETTINGS: &str = "[brake]\nper_hour = 1000\nper_group = 1000\nper_vpc = 1000\n";

/// How many instances an account has: one a test, and a few to spare.
const FLEET: u32 = 10;

/// An account, and the stack that responds in it.
pub(super) struct Scene {
    pub(super) stack: ResponseStack,
    /// Who wants the functions for themselves takes it for writing.
    pub(super) functions: RwLock<()>,
    next: AtomicUsize,
    _moto: Moto,
}

/// The account in which only the world fails. Its last instance is exempt.
pub(super) fn calm() -> &'static Scene {
    static CALM: OnceLock<Scene> = OnceLock::new();
    CALM.get_or_init(|| Scene::start(false, BTreeMap::new()))
}

/// The account in which everything fails a little.
pub(super) fn rough() -> &'static Scene {
    static ROUGH: OnceLock<Scene> = OnceLock::new();
    ROUGH.get_or_init(|| Scene::start(true, BTreeMap::new()))
}

/// The account that may run one step at a time.
pub(super) fn narrow() -> &'static Scene {
    static NARROW: OnceLock<Scene> = OnceLock::new();
    let one = || BTreeMap::from([("StepConcurrency".to_owned(), "1".to_owned())]);
    NARROW.get_or_init(|| Scene::start(false, one()))
}

/// What happens to calls, of the account and of everything else: each kind to a few of a hundred.
fn weather() -> Vec<Fault> {
    vec![
        Fault::throttling("ec2", 0.05),
        Fault::throttling("s3", 0.03),
        Fault::throttling("autoscaling", 0.05),
        Fault::throttling("elbv2", 0.05),
        Fault::throttling("sns", 0.05),
        Fault::throttling("sqs", 0.05),
        Fault::throttling("stepfunctions", 0.05),
        Fault::new("*", 0.02, Injection::Reset),
        Fault::new("*", 0.05, Injection::Latency { min: 50, max: 500 }),
    ]
}

impl Scene {
    fn start(rough: bool, parameters: BTreeMap<String, String>) -> Self {
        let moto = Moto::start().expect("moto");
        let world = World::build(&moto, Kind::Fleet(FLEET)).expect("an account");
        let exempt = world.instances().last().expect("instances").to_owned();
        let bootstrap = beside_tests("cleanroom-lambda").expect("the program");
        let settings = format!("exempt = [\"{exempt}\"]\n{SETTINGS}");
        let weather = if rough { weather() } else { Vec::new() };
        let program =
            Program { faults: rough, weather, parameters, ..Program::of(bootstrap, settings) };
        let stack = ResponseStack::start(&program, &world).expect("a stack");
        Self { stack, functions: RwLock::default(), next: AtomicUsize::new(0), _moto: moto }
    }

    /// An instance that no other test is about.
    pub(super) fn suspect(&'static self) -> Suspect {
        let number = self.next.fetch_add(1, Ordering::Relaxed);
        let instances = self.stack.world().instances();
        // The last one is exempt.
        assert!(number + 1 < instances.len(), "the fleet is too small");
        let instance = instances[number].to_owned();
        let every = self.stack.world().json()["every"].as_array().expect("every instance");
        let facts = every.iter().find(|facts| facts["instance"] == instance.as_str());
        let volume = &facts.expect("the instance")["volumes"][0]["id"];
        let volume = volume.as_str().expect("a volume").to_owned();
        Suspect { scene: self, case: format!("{instance}-1"), instance, volume }
    }

    /// The instance that the settings exempt.
    pub(super) fn exempt(&self) -> &str {
        self.stack.world().instances().pop().expect("instances")
    }

    /// Waits until something is there.
    pub(super) fn wait<T>(&self, what: &str, look: impl FnMut() -> Option<T>) -> T {
        let mut look = look;
        self.stack.wait(what, PATIENCE, || Ok(look())).unwrap_or_else(|error| panic!("{error:#}"))
    }

    /// Waits until something that contains all of these is said on the notify topic.
    pub(super) fn told(&self, parts: &[&str]) -> String {
        self.wait(&format!("a notice with {parts:?}"), || {
            let all = self.stack.notices().expect("notices");
            let mut texts = all.iter().filter_map(|notice| notice["body"].as_str());
            texts.find(|text| parts.iter().all(|part| text.contains(part))).map(str::to_owned)
        })
    }
}

/// An instance of an account that alerts name.
pub(super) struct Suspect {
    pub(super) scene: &'static Scene,
    pub(super) instance: String,
    pub(super) case: String,
    /// Its only volume.
    pub(super) volume: String,
}

impl Suspect {
    pub(super) fn stack(&self) -> &'static ResponseStack {
        &self.scene.stack
    }

    /// A message on the topic that names it.
    pub(super) fn alert(&self) {
        self.stack().publish(&self.instance).expect("publish");
    }

    /// Waits until the case's `n`-th execution has ended.
    pub(super) fn ended(&self, n: u32) -> Execution {
        let name = self.execution(n);
        self.stack().ended(&name, PATIENCE).unwrap_or_else(|error| panic!("{error:#}"))
    }

    /// Waits until the case's `n`-th execution has succeeded: the instance is contained, and what is short is reported.
    pub(super) fn succeeded(&self, n: u32) -> Value {
        let ended = self.ended(n);
        assert_eq!(ended.status, "SUCCEEDED", "{ended:?}");
        let entered = self.stack().entered(&self.execution(n)).expect("a history");
        assert_eq!(entered.last().map(String::as_str), Some("Done"), "{entered:?}: {ended:?}");
        ended.result()
    }

    /// The name of the case's `n`-th execution.
    pub(super) fn execution(&self, n: u32) -> String {
        if n == 1 { self.case.clone() } else { format!("{}-r{n}", self.case) }
    }

    /// The names of all executions of the case.
    pub(super) fn executions(&self) -> Vec<String> {
        let all = self.stack().executions().expect("executions");
        all.into_iter().filter(|name| name.starts_with(&self.case)).collect()
    }

    /// Waits until an execution has come to a state.
    pub(super) fn enters(&self, n: u32, state: &str) {
        let name = self.execution(n);
        self.scene.wait(&format!("{name} to enter {state}"), || {
            let there = self.stack().execution(&name).expect("an answer").is_some();
            let entered = there.then(|| self.stack().entered(&name).expect("a history"))?;
            entered.iter().any(|entered| entered == state).then_some(())
        });
    }

    /// What is true of it now.
    pub(super) fn state(&self) -> Value {
        self.stack().world().state(Some(&self.instance)).expect("its state")
    }

    /// `cleanroom`, typed by a person.
    pub(super) fn typed(&self, typed: &[&str]) -> Output {
        let home = tempfile::tempdir().expect("a home folder");
        cleanroom(self.stack(), home.path(), typed).output().expect("start cleanroom")
    }

    /// Every interface is in a group without rules, and no other.
    pub(super) fn is_isolated(&self, state: &Value) -> bool {
        let groups = |interface: &Value| -> Vec<String> {
            let groups = interface["groups"].as_array().into_iter().flatten();
            groups.filter_map(|group| group.as_str().map(str::to_owned)).collect()
        };
        let shut = |group: &String| {
            let group = &state["vpc_security_groups"][group];
            group["ingress"] == Value::Array(vec![]) && group["egress"] == Value::Array(vec![])
        };
        let interfaces = state["interfaces"].as_array().expect("interfaces");
        interfaces.iter().map(groups).all(|groups| !groups.is_empty() && groups.iter().all(shut))
    }

    /// It is cut off, guarded, preserved once, and its log is whole.
    pub(super) fn assert_contained(&self) {
        let state = self.state();
        assert!(self.is_isolated(&state), "{:#}", state["interfaces"]);
        let guards = &state["guards"];
        assert_eq!(guards["disableApiTermination"], true, "{guards}");
        assert_eq!(guards["disableApiStop"], true, "{guards}");
        assert_eq!(state["metadata_options"]["HttpEndpoint"], "disabled", "{state:#}");
        self.assert_preserved(&state);
    }

    /// One claim, one snapshot of each volume, one log that is whole.
    pub(super) fn assert_preserved(&self, state: &Value) {
        let objects = state["objects"].as_object().expect("objects");
        let folder = format!("/{}/", self.instance);
        let claims: Vec<_> = objects
            .keys()
            .filter(|key| key.starts_with("instances/") && key.contains(&folder))
            .collect();
        assert_eq!(claims.len(), 1, "one case: {claims:?}");
        let all = state["snapshots"].as_array().expect("snapshots").iter();
        let ours: Vec<_> = all.filter(|s| s["tags"]["cleanroom:case"] == self.case).collect();
        let of_volume = |s: &&Value| s["volume"].as_str() == Some(self.volume.as_str());
        let of_volume: Vec<_> = ours.iter().copied().filter(of_volume).collect();
        assert!(!of_volume.is_empty(), "nothing is preserved: {:#}", state["snapshots"]);
        // A snapshot and its copy under the case's own key are of one volume.
        let keys: BTreeSet<_> = of_volume.iter().map(|s| s["kms_key"].to_string()).collect();
        assert_eq!(of_volume.len(), keys.len(), "one set of snapshots: {ours:#?}");
        let verified = self.typed(&["custody", "verify", &self.case]);
        assert!(verified.status.success(), "{}", words(&verified));
    }
}

/// `cleanroom` as a person runs it beside a stack, with nothing of this machine but the path.
pub(super) fn cleanroom(stack: &ResponseStack, home: &Path, typed: &[&str]) -> Command {
    fs::write(home.join("cleanroom.toml"), SETTINGS).expect("settings");
    let mut command = Command::new(beside_tests("cleanroom").expect("the program"));
    command.env_clear().args(typed).stdin(Stdio::null()).current_dir(home);
    command.env("PATH", env::var_os("PATH").unwrap_or_default()).env("HOME", home);
    command.env("HTTP_PROXY", NOWHERE).env("HTTPS_PROXY", NOWHERE).env("NO_PROXY", "127.0.0.1");
    command.env("AWS_EC2_METADATA_DISABLED", "true").envs(stack.settings());
    command
}
