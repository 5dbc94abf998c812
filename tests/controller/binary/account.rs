//! The account that the program acts in, as AWS's Python SDK tells of it, and what must be true of it.

use std::{
    collections::{BTreeMap, BTreeSet},
    env,
    process::Command,
    sync::{Condvar, Mutex, PoisonError},
};

use cleanroom_harness::emulators::{
    ACCESS_KEY, Kind, Microburst, Moto, REGION, SECRET_KEY, World, python,
};
use serde_json::{Value, json};

use super::station::{BUCKET, Station};

/// Emulators that may still be started.
static FREE: (Mutex<u32>, Condvar) = (Mutex::new(2), Condvar::new());

/// The right to run one emulator.
#[derive(Debug)]
pub(super) struct Slot;

impl Slot {
    pub(super) fn take() -> Self {
        let (free, freed) = &FREE;
        let free = free.lock().unwrap_or_else(PoisonError::into_inner);
        let mut free = freed.wait_while(free, |n| *n == 0).unwrap_or_else(PoisonError::into_inner);
        *free -= 1;
        Self
    }
}

impl Drop for Slot {
    fn drop(&mut self) {
        let (free, freed) = &FREE;
        *free.lock().unwrap_or_else(PoisonError::into_inner) += 1;
        freed.notify_one();
    }
}

/// An emulated account with a known world in it.
#[derive(Debug)]
pub(super) struct Account {
    moto: Moto,
    pub(super) world: World,
    // Dropped last.
    _slot: Slot,
}

impl Account {
    /// Starts an emulator and builds a world in it.
    pub(super) fn of(kind: Kind) -> Self {
        let slot = Slot::take();
        let moto = Moto::start().expect("moto starts");
        let world = World::build(&moto, kind).expect("the world is built");
        Self { moto, world, _slot: slot }
    }

    /// Empties the account and builds a world in it.
    pub(super) fn rebuild(&mut self, kind: Kind) {
        self.moto.reset().expect("moto forgets");
        self.world = World::build(&self.moto, kind).expect("the world is built");
    }

    /// Where it answers.
    pub(super) fn url(&self) -> String {
        self.moto.url()
    }

    /// A machine that responds in it.
    pub(super) fn station(&self) -> Station {
        Station::new(&self.url())
    }

    /// A proxy before it, that lets everything pass until it is told otherwise.
    pub(super) fn proxy(&self, seed: u64) -> Microburst {
        Microburst::start(&self.url(), seed).expect("microburst starts")
    }

    /// How it is now.
    pub(super) fn state(&self) -> State {
        State(self.world.state(None).expect("the account can be read"))
    }

    /// How it is now for another instance.
    pub(super) fn state_of(&self, instance: &str) -> State {
        State(self.world.state(Some(instance)).expect("the account can be read"))
    }

    /// Every object of the evidence bucket that is JSON, by key.
    pub(super) fn objects(&self) -> BTreeMap<String, Value> {
        let code = "
s3 = client('s3')
found = s3.get_paginator('list_objects_v2').paginate(Bucket=sys.argv[2])
keys = [o['Key'] for page in found for o in page.get('Contents', [])]
keys = [k for k in keys if k.endswith('.json')]
read = lambda key: s3.get_object(Bucket=sys.argv[2], Key=key)['Body'].read()
print(json.dumps({key: json.loads(read(key)) for key in keys}))
";
        let found = boto(&self.url(), REGION, code, &[BUCKET]);
        serde_json::from_value(found).expect("objects by key")
    }

    /// The claims of an instance, by key.
    pub(super) fn claims(&self) -> Vec<(String, Value)> {
        let claims = |(key, _): &(String, Value)| {
            key.starts_with("instances/") && !key.ends_with(".released.json")
        };
        self.objects().into_iter().filter(claims).collect()
    }

    /// The events of a case's custody log, in order.
    pub(super) fn events(&self, case: &str) -> Vec<Value> {
        let prefix = format!("cases/{case}/custody/");
        let all = self.objects().into_iter().filter(|(key, _)| key.starts_with(&prefix));
        all.flat_map(|(_, event)| each(event)).collect()
    }
}

/// What an object of the log tells, one by one: where the bucket is slow, what happens meanwhile shares an object.
fn each(mut event: Value) -> Vec<Value> {
    let entries = event.get_mut("entries").map(Value::take);
    let Some(Value::Array(entries)) = entries else { return vec![event] };
    let with_who = |entry: Value| {
        let mut whole = event.clone();
        let members = entry.as_object().expect("an entry").clone();
        whole.as_object_mut().expect("an event").extend(members);
        whole
    };
    entries.into_iter().map(with_who).collect()
}

/// Runs a few lines of Python on AWS's SDK, with `client(service)`, `json` and `sys`; what they print.
pub(super) fn boto(endpoint: &str, region: &str, code: &str, arguments: &[&str]) -> Value {
    const PRELUDE: &str = "
import boto3, json, sys
assert sys.argv[1].startswith('http://127.0.0.1:')
def client(service):
    return boto3.client(service, endpoint_url=sys.argv[1])
";
    let mut command = Command::new(python().expect("the emulators' Python"));
    command.env_clear().env("PATH", env::var_os("PATH").unwrap_or_default());
    command.env("AWS_ACCESS_KEY_ID", ACCESS_KEY).env("AWS_SECRET_ACCESS_KEY", SECRET_KEY);
    command.env("AWS_DEFAULT_REGION", region).env("AWS_EC2_METADATA_DISABLED", "true");
    command.args(["-B", "-c", &format!("{PRELUDE}{code}"), endpoint]).args(arguments);
    let output = command.output().expect("Python runs");
    let stderr = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{code}\n{stderr}");
    serde_json::from_slice(&output.stdout).unwrap_or(Value::Null)
}

/// How an instance and what surrounds it are.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct State(pub(super) Value);

impl std::ops::Deref for State {
    type Target = Value;

    fn deref(&self) -> &Value {
        &self.0
    }
}

impl State {
    fn array(&self, member: &str) -> Vec<Value> {
        self[member].as_array().unwrap_or_else(|| panic!("no {member}: {}", self["unread"])).clone()
    }

    fn object(&self, member: &str) -> serde_json::Map<String, Value> {
        self[member]
            .as_object()
            .unwrap_or_else(|| panic!("no {member}: {}", self["unread"]))
            .clone()
    }

    /// Everything but what every run may add to: the bucket's objects and the notices.
    pub(super) fn without_records(&self) -> Value {
        let mut state = self.0.clone();
        for member in ["objects", "notices"] {
            state.as_object_mut().expect("an object").remove(member);
        }
        state
    }

    /// The instance's and surroundings' settings that a response changes and a release restores, without ids that are
    /// given anew.
    pub(super) fn restorable(&self) -> Value {
        let interfaces: Vec<_> = self
            .array("interfaces")
            .iter()
            .map(|i| json!([i["id"], i["groups"], i["public_ip"], i["allocation_id"], i["tags"]]))
            .collect();
        let targets: BTreeMap<_, _> = self
            .object("target_groups")
            .into_iter()
            .map(|(group, all)| {
                let all = all.as_array().into_iter().flatten();
                let live = all.filter(|t| t["state"] != "draining");
                (group, live.map(|t| json!([t["id"], t["port"]])).collect::<Vec<_>>())
            })
            .collect();
        let profiles: Vec<_> =
            self.array("profile_associations").iter().map(|a| a["arn"].clone()).collect();
        json!({
            "interfaces": interfaces,
            "targets": targets,
            "classic": self["classic_load_balancers"],
            "asg": self["asg"],
            "guards": self["guards"],
            "delete_on_termination": self["delete_on_termination"],
            "metadata": self["metadata_options"],
            "profiles": profiles,
            "role_policies": self["role_policies"],
        })
    }

    /// The forensic group, which has no rule.
    fn forensic_group(&self) -> String {
        let groups = self.object("vpc_security_groups");
        let named: Vec<_> =
            groups.iter().filter(|(_, g)| g["name"] == "cleanroom-forensic").collect();
        assert_eq!(named.len(), 1, "one forensic group: {groups:#?}");
        let (id, group) = named[0];
        assert_eq!((&group["ingress"], &group["egress"]), (&json!([]), &json!([])), "no rule");
        id.clone()
    }

    /// No interface has a group that lets anything through, and none that would is left.
    pub(super) fn assert_no_way_in_or_out(&self, what: &str) {
        let forensic = self.forensic_group();
        for interface in self.array("interfaces") {
            assert_eq!(interface["groups"], json!([forensic]), "{what}: {interface}");
            assert_eq!(interface["public_ip"], Value::Null, "{what}: {interface}");
        }
        for (id, group) in self.object("vpc_security_groups") {
            let name = group["name"].as_str().unwrap_or_default();
            assert!(!name.starts_with("cleanroom-flush"), "{what}: {id} {name} is left");
        }
    }

    /// The snapshots that were made of the instance's volumes.
    pub(super) fn snapshots(&self) -> Vec<Value> {
        let volumes = self.object("volumes");
        let ours = |s: &Value| volumes.values().any(|v| *v == s["volume"]);
        self.array("snapshots").into_iter().filter(ours).collect()
    }

    /// Contained: cut off, guarded, out of its group and balancers, without credentials. `case` is its case.
    pub(super) fn assert_contained(&self, case: &str, what: &str) {
        self.assert_no_way_in_or_out(what);
        assert_eq!(
            self["guards"],
            json!({
                "disableApiTermination": true,
                "disableApiStop": true,
                "instanceInitiatedShutdownBehavior": "stop",
            }),
            "{what}"
        );
        for (device, deleted) in self.object("delete_on_termination") {
            assert_eq!(deleted, false, "{what}: {device} would be deleted on termination");
        }
        assert_eq!(self["asg"], Value::Null, "{what}: in its Auto Scaling group");
        for (group, targets) in self.object("target_groups") {
            let live =
                targets.as_array().into_iter().flatten().filter(|t| t["state"] != "draining");
            assert_eq!(live.count(), 0, "{what}: registered with {group}: {targets}");
        }
        for (balancer, registered) in self.object("classic_load_balancers") {
            assert_eq!(registered, false, "{what}: registered with {balancer}");
        }
        assert_eq!(self["metadata_options"]["HttpEndpoint"], "disabled", "{what}");
        let associated =
            self.array("profile_associations").into_iter().find(|a| a["state"] == "associated");
        assert_eq!(associated, None, "{what}: the profile is on");
        assert_eq!(self["tags"]["cleanroom:case"], case, "{what}: {}", self["tags"]);
    }

    /// One snapshot of each volume at least, all with the case's tag; how many there are of each.
    pub(super) fn assert_preserved(&self, case: &str, what: &str) -> usize {
        let mut sets = BTreeMap::<String, usize>::new();
        for snapshot in self.snapshots() {
            assert_eq!(snapshot["tags"]["cleanroom:case"], case, "{what}: {snapshot}");
            *sets.entry(snapshot["volume"].to_string()).or_default() += 1;
        }
        let volumes: BTreeSet<_> = self.object("volumes").values().map(Value::to_string).collect();
        assert_eq!(sets.keys().cloned().collect::<BTreeSet<_>>(), volumes, "{what}");
        sets.values().copied().max().unwrap_or_default()
    }

    /// Nothing in the bucket was written twice or deleted, but for the pointer to what was deployed.
    pub(super) fn assert_evidence_whole(&self, what: &str) {
        assert_eq!(self["delete_markers"], json!([]), "{what}");
        let objects = self.object("objects");
        for (key, versions) in objects.iter().filter(|(key, _)| *key != "artifacts/latest.json") {
            assert_eq!(versions.as_array().map(Vec::len), Some(1), "{what}: {key} {versions}");
        }
    }
}

/// The case's log is what was written, by the program's own verification.
pub(super) fn assert_verified(station: &Station, case: &str) -> Value {
    let ran = station.expect(0, &["custody", "verify", case]);
    let verdict = ran.record("verdict");
    assert_eq!(verdict["faults"], json!([]), "{ran}");
    assert!(verdict["events"].as_u64() > Some(0), "{ran}");
    verdict
}
