//! Stacks, and the clean rooms that they make.
//!
//! Purpose: a stack goes from being made to made or rolled back, and deleted; the room in it tells of its scan in the
//! bucket and publishes a bundle, as a script of the world says. Touches the world only. Knows one template: whatever
//! is created makes an instance and a volume for each snapshot that the parameters name.

mod scan;

use std::{
    collections::{BTreeMap, BTreeSet},
    time::Duration,
};

use cleanroom_cloud::{Change, Made, Stack, StackEvent, StackState};
use cleanroom_contract::{
    InstanceId, OrderedFile, OrderedVolume, ScanId, Sha256, VolumeId, WorkOrder, events_prefix,
};

use crate::{
    build::{plain_instance, plain_volume},
    later::Later,
    problem::{Answered, Problem},
    store::digest,
    world::{Machine, World},
};

/// A stack and what is in it.
#[derive(Clone, Debug, PartialEq)]
pub struct Built {
    /// As CloudFormation describes it.
    pub stack: Stack,
    /// What happened, newest last.
    pub events: Vec<StackEvent>,
    /// The room's instance.
    pub instance: Option<InstanceId>,
    /// The room's copies, by the volume that each comes from.
    pub volumes: BTreeMap<VolumeId, VolumeId>,
    /// Scans that the room has taken up.
    pub scans: BTreeSet<ScanId>,
    /// When it ended the last one, since the world began.
    pub idle_since: Duration,
}

/// How the scans of the rooms end.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum RoomEnds {
    /// With a bundle.
    Publishes,
    /// Nothing is told after so many events.
    FallsSilent(u64),
    /// Without a bundle, for this reason.
    Fails(String),
}

/// What clean rooms do.
#[derive(Clone, Debug, PartialEq)]
pub struct RoomScript {
    /// Until a stack is made.
    pub launch: Duration,
    /// The resource that fails, and its reason.
    pub fails: Option<(String, String)>,
    /// Until a stack is rolled back or deleted.
    pub deletion: Duration,
    /// From the stack's end to the first news, and between two news.
    pub pace: Duration,
    /// How scans end.
    pub ends: RoomEnds,
    /// How many volumes never attach.
    pub missing: usize,
    /// Volumes whose copies EC2 refuses to attach, and what it says.
    pub refuses: BTreeMap<VolumeId, String>,
    /// What is left of the Region's quota of initialization rates, in MiB a second.
    pub rates: u64,
    /// The published file whose bytes are not those that the sums name.
    pub spoilt: Option<String>,
}

impl Default for RoomScript {
    fn default() -> Self {
        Self {
            launch: Duration::from_secs(120),
            fails: None,
            deletion: Duration::from_secs(60),
            pace: Duration::from_secs(20),
            ends: RoomEnds::Publishes,
            missing: 0,
            refuses: BTreeMap::new(),
            rates: 5_000,
            spoilt: None,
        }
    }
}

/// The agent's key in the bucket, by its digest.
#[must_use]
pub fn agent_key(sha256: &Sha256) -> String {
    format!("agent/{sha256}/cleanroom-agent")
}

impl World {
    /// Puts an agent into the bucket, as `deploy` does.
    pub fn add_agent(&mut self) {
        let bytes = b"an agent".to_vec();
        let sha256 = digest(&bytes);
        let key = agent_key(&sha256);
        let agent = serde_json::json!({ "name": "cleanroom-agent", "key": key, "sha256": sha256 });
        let latest = serde_json::json!({ "v": 1, "agent": agent });
        self.bucket.overwrite(&key, bytes);
        self.bucket.overwrite("artifacts/latest.json", latest.to_string().into_bytes());
    }

    /// Puts rules beside the agent, as `deploy` does, in the place of those that are there. They are as the pointer names them.
    ///
    /// # Panics
    /// Where there is no agent.
    pub fn add_rules(&mut self, names: &[&str]) -> Vec<OrderedFile> {
        let rules: Vec<_> = names
            .iter()
            .map(|name| {
                let bytes = format!("rule {} {{ condition: true }}", name.replace('.', "_"));
                let sha256 = digest(bytes.as_bytes());
                let key = format!("rules/{sha256}/{name}");
                self.bucket.overwrite(&key, bytes.into_bytes());
                OrderedFile { name: (*name).to_owned(), key, sha256 }
            })
            .collect();
        let latest = self.bucket.newest("artifacts/latest.json").expect("an agent was added");
        let mut latest: serde_json::Value = serde_json::from_slice(latest).expect("it is JSON");
        latest["rules"] = serde_json::json!(rules);
        self.bucket.overwrite("artifacts/latest.json", latest.to_string().into_bytes());
        rules
    }

    /// Lets rooms that fell silent go on where they were.
    pub fn wake_rooms(&mut self) {
        let scans: Vec<_> = self
            .built
            .iter()
            .flat_map(|(name, b)| b.scans.iter().map(|scan| (name.clone(), scan.clone())))
            .collect();
        for (stack, scan) in scans {
            let Some(case) = self.case_of(&stack) else { continue };
            let told = self.bucket.keys(&events_prefix(&case, &scan)).len();
            let seq = told as u64 + 1;
            self.after(self.room.pace, Later::Room { stack, scan, seq });
        }
    }

    pub(crate) fn stack_events(&self, stack: &str) -> Answered<Vec<StackEvent>> {
        let built = self.built.values().find(|b| b.stack.name == stack || b.stack.id == stack);
        if let Some(built) = built {
            return Ok(built.events.clone());
        }
        let missing = || {
            let message = format!("Stack [{stack}] does not exist");
            Problem::not_found("ValidationError", message)
        };
        self.buried.get(stack).cloned().ok_or_else(missing)
    }

    pub(crate) fn create_stack(&mut self, change: &Change) -> Answered<Made> {
        let Change::CreateStack { name, template, template_sha256, parameters, tags, .. } = change
        else {
            return Err(Problem::refused("ValidationError", "no stack"));
        };
        let body = self.bucket.newest(template).unwrap_or_default();
        if digest(body) != *template_sha256 {
            return Err(Problem::refused("OtherTemplate", format!("{template} is another")));
        }
        if self.built.contains_key(name) {
            let message = format!("Stack [{name}] already exists");
            return Err(Problem::conflict("AlreadyExistsException", message));
        }
        let id = self.name("");
        let account = &self.account;
        let id = format!("arn:aws:cloudformation:us-east-1:{account}:stack/{name}/{id}");
        let stack = Stack {
            id: id.clone(),
            name: name.clone(),
            state: StackState::Creating,
            status: "CREATE_IN_PROGRESS".to_owned(),
            reason: None,
            created: self.now(),
            parameters: parameters.clone(),
            outputs: BTreeMap::new(),
            tags: tags.clone(),
        };
        let built = Built {
            stack,
            events: Vec::new(),
            instance: None,
            volumes: BTreeMap::new(),
            scans: BTreeSet::new(),
            idle_since: self.clock,
        };
        self.built.insert(name.clone(), built);
        self.note_stack(name, name, "CREATE_IN_PROGRESS", Some("User Initiated"));
        self.note_stack(name, "Room", "CREATE_IN_PROGRESS", None);
        self.after(self.room.launch, Later::Stack(id.clone()));
        Ok(Made::Stack(id))
    }

    /// A stack that is gone already is no error.
    pub(crate) fn delete_stack(&mut self, id: &str) -> Made {
        let found = self.built.values_mut().find(|b| b.stack.id == id);
        let Some(built) = found.filter(|b| b.stack.state != StackState::Deleting) else {
            return Made::Nothing;
        };
        built.stack.state = StackState::Deleting;
        built.stack.status = "DELETE_IN_PROGRESS".to_owned();
        let name = built.stack.name.clone();
        self.note_stack(&name, &name, "DELETE_IN_PROGRESS", Some("User Initiated"));
        self.after(self.room.deletion, Later::Stack(id.to_owned()));
        Made::Nothing
    }

    pub(crate) fn note_stack(
        &mut self,
        name: &str,
        resource: &str,
        status: &str,
        reason: Option<&str>,
    ) {
        let at = self.now();
        let kind =
            if resource == name { "AWS::CloudFormation::Stack" } else { "AWS::EC2::Instance" };
        if let Some(built) = self.built.get_mut(name) {
            built.events.push(StackEvent {
                at,
                resource: resource.to_owned(),
                kind: kind.to_owned(),
                status: status.to_owned(),
                reason: reason.map(str::to_owned),
            });
        }
    }

    pub(crate) fn set_stack(
        &mut self,
        name: &str,
        state: StackState,
        status: &str,
        reason: Option<&str>,
    ) {
        if let Some(built) = self.built.get_mut(name) {
            built.stack.state = state;
            status.clone_into(&mut built.stack.status);
            built.stack.reason = reason.map(str::to_owned);
        }
        self.note_stack(name, name, status, reason);
    }

    /// What is due next: made or failed, then rolled back; or gone.
    pub(crate) fn step_stack(&mut self, id: &str) {
        let found = self.built.values().find(|b| b.stack.id == id);
        let Some((name, state)) = found.map(|b| (b.stack.name.clone(), b.stack.state)) else {
            return;
        };
        match state {
            StackState::Creating => match self.failures(&name) {
                failed if failed.is_empty() => self.finish_stack(&name),
                failed => {
                    let cancelled = Some("Resource creation cancelled");
                    self.note_stack(&name, "Room", "CREATE_FAILED", cancelled);
                    for (resource, why) in &failed {
                        self.note_stack(&name, resource, "CREATE_FAILED", Some(why));
                    }
                    let resources: Vec<_> = failed.iter().map(|(r, _)| r.as_str()).collect();
                    let all = format!(
                        "The following resource(s) failed to create: [Room, {}].",
                        resources.join(", ")
                    );
                    let (state, status) = (StackState::RollingBack, "ROLLBACK_IN_PROGRESS");
                    self.set_stack(&name, state, status, Some(&all));
                    self.after(self.room.deletion, Later::Stack(id.to_owned()));
                }
            },
            StackState::RollingBack => {
                self.set_stack(&name, StackState::Failed, "ROLLBACK_COMPLETE", None);
            }
            StackState::Deleting => self.bury(&name),
            StackState::Created | StackState::Failed | StackState::DeleteFailed => {}
        }
    }

    /// The volumes that a stack's parameters name, by their numbers. A copied snapshot does not tell its volume: the order does.
    fn named_volumes(&self, parameters: &BTreeMap<String, String>) -> Vec<(usize, OrderedVolume)> {
        let order = parameters.get("OrderKey").and_then(|key| self.bucket.newest(key));
        let order = order.and_then(|bytes| serde_json::from_slice::<WorkOrder>(bytes).ok());
        let ordered = order.map(|order| order.volumes).unwrap_or_default();
        let named = (1..=24).filter_map(|n| {
            let given = parameters.get(&format!("Snapshot{n:02}"))?;
            let volume = ordered.iter().find(|v| v.snapshot.as_str() == given)?;
            Some((n, volume.clone()))
        });
        named.collect()
    }

    /// Resources of a stack that fail, and why.
    fn failures(&self, name: &str) -> Vec<(String, String)> {
        if let Some(failure) = &self.room.fails {
            return vec![failure.clone()];
        }
        let Some(built) = self.built.get(name) else { return Vec::new() };
        let parameters = &built.stack.parameters;
        let volumes = self.named_volumes(parameters);
        let rate = parameters.get("InitializationRate").and_then(|r| r.parse::<u64>().ok());
        if rate.unwrap_or(0) * volumes.len() as u64 > self.room.rates {
            let why = "You have exceeded your volume initialization rate quota. (Status Code: 400)";
            return vec![("Volume01".to_owned(), why.to_owned())];
        }
        // A volume can not be made from a snapshot that is not this account's.
        let absent = |(n, volume): &(usize, OrderedVolume)| {
            let there = self.snapshots.iter().any(|s| s.id == volume.snapshot);
            let why = format!("The snapshot '{}' does not exist.", volume.snapshot);
            (!there).then(|| (format!("Volume{n:02}"), why))
        };
        if let Some(absent) = volumes.iter().find_map(absent) {
            return vec![absent];
        }
        let refused = |(n, volume): &(usize, OrderedVolume)| {
            let why = self.room.refuses.get(&volume.source)?;
            Some((format!("Attachment{n:02}"), why.clone()))
        };
        volumes.iter().filter_map(refused).collect()
    }

    fn finish_stack(&mut self, name: &str) {
        let Some(built) = self.built.get(name) else { return };
        if !built.stack.tags.contains_key("cleanroom:case") {
            return self.finish_response(name);
        }
        let parameters = built.stack.parameters.clone();
        let key = parameters.get("OrderKey").cloned().unwrap_or_default();
        let snapshots = self.named_volumes(&parameters);
        let Ok(instance) = self.name("i-").parse::<InstanceId>() else { return };
        let Ok(root) = self.name("vol-").parse::<VolumeId>() else { return };
        let mut described = plain_instance(&instance, root);
        described.account = self.account.clone();
        described.volumes.clear();
        let guards =
            cleanroom_cloud::Guards { termination: false, stop: false, shutdown_terminates: false };
        let machine = Machine { instance: described, guards, cards: Vec::new(), user_data: None };
        self.machines.insert(instance.clone(), machine);
        let mut outputs = BTreeMap::from([("Instance".to_owned(), instance.to_string())]);
        let mut volumes = BTreeMap::new();
        for (n, ordered) in snapshots {
            let Ok(copy) = self.name("vol-").parse::<VolumeId>() else { return };
            let volume = plain_volume(&copy, &instance, &format!("/dev/xvdb{n}"), ordered.gib);
            self.volumes.insert(copy.clone(), volume);
            outputs.insert(format!("Volume{n:02}"), copy.to_string());
            volumes.insert(ordered.source, copy);
        }
        if let Some(built) = self.built.get_mut(name) {
            built.stack.outputs = outputs;
            built.instance = Some(instance);
            built.volumes = volumes;
        }
        self.set_stack(name, StackState::Created, "CREATE_COMPLETE", None);
        self.take_up(name, &key);
    }

    fn bury(&mut self, name: &str) {
        self.note_stack(name, name, "DELETE_COMPLETE", None);
        let Some(built) = self.built.remove(name) else { return };
        if let Some(instance) = &built.instance {
            self.machines.remove(instance);
        }
        for copy in built.volumes.values() {
            self.volumes.remove(copy);
        }
        self.buried.insert(built.stack.id, built.events);
    }
}
