//! What a response works with: the run, the case, and what people have set.
//!
//! Touches nothing; holds the ports.

use std::{
    collections::{BTreeMap, BTreeSet},
    fmt,
    sync::Arc,
    time::Duration,
};

use cleanroom_cloud::{
    Caller, Change, Cloud, DRILL, Facts, Hands, Inventory, Notices, Posture, Store, Target,
    TargetGroup, TargetGroupArn, marks_drill,
};
use cleanroom_contract::{CaseId, InstanceId, Timestamp};
use serde::{Deserialize, Serialize};
use tokio::sync::{Mutex, OnceCell, Semaphore};

use crate::{
    brake::BrakePolicy,
    forensic::{Forensic, ForensicAccount},
    journal::Journal,
    original::Original,
    progress::{Event, Progress},
    room::RoomPolicy,
};

/// A step of the response: one word everywhere, in files, logs, tags and on the command line.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
#[expect(missing_docs, reason = "the module of each step says what it does")]
pub enum Step {
    Verify,
    Protect,
    Detach,
    Snapshot,
    Isolate,
    Revoke,
    Tag,
    Record,
    Notify,
    CleanRoom,
}

impl Step {
    /// All steps, in the order in which a response begins them.
    pub const ALL: [Self; 10] = [
        Self::Verify,
        Self::Protect,
        Self::Detach,
        Self::Snapshot,
        Self::Isolate,
        Self::Revoke,
        Self::Tag,
        Self::Record,
        Self::Notify,
        Self::CleanRoom,
    ];

    /// Its name.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Verify => "verify",
            Self::Protect => "protect",
            Self::Detach => "detach",
            Self::Snapshot => "snapshot",
            Self::Isolate => "isolate",
            Self::Revoke => "revoke",
            Self::Tag => "tag",
            Self::Record => "record",
            Self::Notify => "notify",
            Self::CleanRoom => "clean_room",
        }
    }
}

impl fmt::Display for Step {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

impl std::str::FromStr for Step {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        Self::ALL.into_iter().find(|s| s.as_str() == text).ok_or_else(|| {
            let names: Vec<_> = Self::ALL.iter().map(|s| s.as_str()).collect();
            format!("{text:?} is no step; there are {}", names.join(", "))
        })
    }
}

/// The time of day, so that nothing below the composition root reads a clock of its own.
pub trait Clock: Send + Sync {
    /// Now, in UTC.
    fn now(&self) -> Timestamp;
}

/// What people have set for a response.
#[derive(Clone, Debug)]
pub struct Policy {
    /// The steps to do.
    pub steps: BTreeSet<Step>,
    /// Instances and `key=value` tags that are never contained.
    pub exempt: Vec<String>,
    /// GuardDuty severity from which a finding speaks for a compromise, times ten.
    pub severity_tenths: u32,
    /// Whether to register an image of the evidence.
    pub image: bool,
    /// For how many days to lock the snapshots.
    pub lock_days: Option<u32>,
    /// The case's own key, to which snapshots under other keys are copied.
    pub key: Option<String>,
    /// Whether to deny this host's addresses in the subnets' network ACLs.
    pub acl: bool,
    /// Whether to refuse, instead of going on, where the custody log can not be written.
    pub require_custody: bool,
    /// Pages of CloudTrail events to read for each question, of 50 events.
    pub event_pages: usize,
    /// What the clean room is made of, and what it looks for.
    pub room: RoomPolicy,
    /// Who may be contained without a person's word.
    pub brake: BrakePolicy,
}

impl Default for Policy {
    fn default() -> Self {
        Self {
            steps: Step::ALL.into(),
            exempt: Vec::new(),
            severity_tenths: 40,
            image: false,
            lock_days: None,
            key: None,
            acl: false,
            require_custody: false,
            event_pages: 20,
            room: RoomPolicy::default(),
            brake: BrakePolicy::default(),
        }
    }
}

/// How long a response waits for what, at most. A bound that passes lets the response go on without.
#[derive(Clone, Debug)]
pub struct Bounds {
    /// For one object of the custody log, or the claim, before it goes to the spool.
    pub custody: Duration,
    /// For what release needs to be read.
    pub original: Duration,
    /// For guards and the Auto Scaling detach, before isolation goes on without.
    pub guard: Duration,
    /// For `CreateSnapshots` to return, before isolation goes on without.
    pub snapshot: Duration,
    /// For one call, before it counts as lost.
    pub call: Duration,
    /// For an independent goal's retries.
    pub goal: Duration,
    /// How long no public address must show before tracked flows are dropped.
    pub address_settle: Duration,
    /// How long an interface stays open so that its tracked flows are forgotten.
    pub open: Duration,
    /// Between two looks at something that takes its time.
    pub poll: Duration,
    /// How long a clean room may tell nothing before it counts as silent. It boots and attaches volumes within it.
    pub silence: Duration,
    /// How long to wait at most for what only takes its time; none for as long as that takes. What is not over by then is
    /// [under way](Case::is_under_way), and not short.
    pub wait: Option<Duration>,
}

impl Default for Bounds {
    fn default() -> Self {
        Self {
            custody: Duration::from_secs(4),
            original: Duration::from_secs(15),
            guard: Duration::from_secs(15),
            snapshot: Duration::from_secs(45),
            call: Duration::from_secs(20),
            goal: Duration::from_secs(180),
            address_settle: Duration::from_secs(3),
            open: Duration::from_millis(200),
            poll: Duration::from_secs(5),
            silence: Duration::from_secs(20 * 60),
            wait: None,
        }
    }
}

/// What a clean room with a VPC of its own takes of [`Shared::rooms`]: an account has five VPCs a Region by default, and
/// one is there already.
pub const OWN_VPC: u32 = 16;

/// What the cases of one run share.
#[derive(Debug)]
pub struct Shared {
    /// The Region's target groups and what was registered with each when the run began.
    pub target_groups: OnceCell<Vec<(TargetGroup, Vec<Target>)>>,
    /// Targets of target groups that were read so far, on the way to that index.
    pub targets: std::sync::Mutex<BTreeMap<TargetGroupArn, Vec<Target>>>,
    /// Instances that are being contained at a time. What comes after containment takes hours, and holds no slot.
    pub slots: Semaphore,
    /// Instances whose record is being taken at a time.
    pub records: Semaphore,
    /// At most a few interfaces are open at a time.
    pub open: Semaphore,
    /// Clean rooms at a time: each that has a VPC of its own takes [`OWN_VPC`] of these.
    pub rooms: Semaphore,
    /// Flush units that were begun: each ends before the process may.
    pub units: std::sync::Mutex<tokio::task::JoinSet<()>>,
    /// VPCs whose forensic group this run has prepared.
    pub prepared: Mutex<BTreeSet<String>>,
    /// Writes to a role's policies, one at a time for each role.
    roles: Mutex<BTreeMap<String, Arc<Mutex<()>>>>,
    /// CloudTrail answers two questions a second for the whole account and Region.
    pub trail: Mutex<tokio::time::Instant>,
}

impl Shared {
    /// What a run begins with that contains eight instances at a time. Must be called in a runtime, whose clock it reads.
    #[must_use]
    pub fn new() -> Self {
        Self::with_slots(8)
    }

    /// What a run begins with that contains so many instances at a time.
    #[must_use]
    pub fn with_slots(slots: usize) -> Self {
        Self {
            slots: Semaphore::new(slots.max(1)),
            records: Semaphore::new(16),
            target_groups: OnceCell::new(),
            targets: std::sync::Mutex::default(),
            open: Semaphore::new(8),
            rooms: Semaphore::new(64),
            units: std::sync::Mutex::default(),
            prepared: Mutex::default(),
            roles: Mutex::default(),
            trail: Mutex::new(tokio::time::Instant::now()),
        }
    }

    /// Waits until CloudTrail may be asked again.
    pub async fn trail_turn(&self) {
        let turn = {
            let mut next = self.trail.lock().await;
            let turn = (*next).max(tokio::time::Instant::now());
            *next = turn + Duration::from_millis(500);
            turn
        };
        tokio::time::sleep_until(turn).await;
    }

    /// The lock under which a role's policies are written.
    pub async fn role(&self, role: &str) -> Arc<Mutex<()>> {
        self.roles.lock().await.entry(role.to_owned()).or_default().clone()
    }

    /// Waits for every flush unit: called before the process ends, however it ends.
    pub async fn finish_units(&self) {
        loop {
            let mut units = std::mem::take(&mut *lock(&self.units));
            if units.is_empty() {
                return;
            }
            while units.join_next().await.is_some() {}
        }
    }
}

impl Default for Shared {
    fn default() -> Self {
        Self::new()
    }
}

/// Locks, going on where another holder panicked: what it guards has no half-done state.
pub(crate) fn lock<T>(mutex: &std::sync::Mutex<T>) -> std::sync::MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(std::sync::PoisonError::into_inner)
}

/// One run of the program: everything that its cases share.
#[derive(Clone)]
pub struct Run {
    /// The ports.
    pub cloud: Cloud,
    /// What people have set.
    pub policy: Policy,
    /// How long to wait for what.
    pub bounds: Bounds,
    /// The time of day.
    pub clock: Arc<dyn Clock>,
    /// Who calls, asked once.
    pub caller: Caller,
    /// Marks what this run writes, so that it knows its own: 32 hexadecimal digits, random.
    pub nonce: String,
    /// What the cases share.
    pub shared: Arc<Shared>,
    /// When the run began.
    pub started: tokio::time::Instant,
    /// Where progress is told.
    pub progress: Progress,
    /// Where to spool what the store does not take; none keeps it in memory.
    pub spool: Option<std::path::PathBuf>,
    /// The account in which evidence is examined, where that is another.
    pub forensic: Option<ForensicAccount>,
}

impl fmt::Debug for Run {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Run").field("caller", &self.caller).finish_non_exhaustive()
    }
}

/// Why a case ends partial: something that was to be done and is not, and what a person can do about it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Shortfall {
    /// The step that is not whole.
    pub step: Step,
    /// What is not done, on what, and why.
    pub what: String,
    /// What to do.
    pub advice: String,
}

/// What a goal may look at. There is no way from here to a change.
#[derive(Clone)]
pub struct Scene {
    /// What is there.
    pub inventory: Arc<dyn Inventory>,
    /// What is in the instance's own account, where `inventory` is the forensic account's.
    pub home: Option<Arc<dyn Inventory>>,
    /// The account in which evidence is examined, where that is another.
    pub forensic: Option<Arc<Forensic>>,
    /// The case.
    pub case: CaseId,
    /// Which of the case's rooms is worked at, from 1: one takes so many volumes, and a case may have more.
    pub room: u32,
    /// The instance.
    pub instance: InstanceId,
    /// The instance as it was when the case was opened, or as it is where there is no case yet.
    pub original: Arc<Original>,
    /// Changes that the case has made so far, as its log tells.
    pub done: Arc<Vec<Change>>,
    /// The calls by which this case takes snapshots, as its log tells: a tag that names another is somebody else's.
    pub sets: Arc<BTreeSet<String>>,
    /// Interfaces whose tracked flows an earlier run dropped.
    pub flushed: Arc<BTreeSet<String>>,
    /// What people have set.
    pub policy: Arc<Policy>,
    /// Who calls.
    pub caller: Caller,
    /// Marks what this run makes.
    pub nonce: String,
    /// What the cases of the run share.
    pub shared: Arc<Shared>,
}

impl fmt::Debug for Scene {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Scene").field("case", &self.case).finish_non_exhaustive()
    }
}

impl Scene {
    /// The instance's ARN.
    #[must_use]
    pub fn instance_arn(&self) -> String {
        instance_arn(&self.caller, &self.instance)
    }

    /// The tags of what this case makes.
    #[must_use]
    pub fn tags(&self) -> BTreeMap<String, String> {
        BTreeMap::from([
            ("cleanroom:case".to_owned(), self.case.to_string()),
            ("cleanroom:instance".to_owned(), self.instance.to_string()),
        ])
    }
}

impl Scene {
    /// The tags of the snapshots that this case makes. Those of a drill say that they are, so that its clean-up may delete them.
    #[must_use]
    pub fn snapshot_tags(&self) -> BTreeMap<String, String> {
        let mut tags = self.tags();
        if marks_drill(&self.original.instance.tags, &self.case) {
            tags.insert(DRILL.to_owned(), self.case.to_string());
        }
        tags
    }
}

/// An instance's ARN, in the caller's partition, Region and account.
#[must_use]
pub fn instance_arn(caller: &Caller, instance: &InstanceId) -> String {
    let partition = caller.arn.split(':').nth(1).filter(|p| !p.is_empty()).unwrap_or("aws");
    format!("arn:{partition}:ec2:{}:{}:instance/{instance}", caller.region, caller.account)
}

/// A case at work: what its goals see, and the hands and the log they act with.
#[derive(Clone)]
pub struct Case {
    /// What goals look at.
    pub scene: Scene,
    /// What changes the world.
    pub hands: Arc<dyn Hands>,
    /// The account in which evidence is examined, where that is another.
    pub forensic: Option<ForensicAccount>,
    /// The team's topic.
    pub notices: Arc<dyn Notices>,
    /// What is recorded as the cloud tells it.
    pub facts: Arc<dyn Facts>,
    /// How the account is set up.
    pub posture: Arc<dyn Posture>,
    /// The evidence bucket.
    pub store: Arc<dyn Store>,
    /// The custody log.
    pub journal: Arc<Journal>,
    /// How long to wait for what.
    pub bounds: Bounds,
    /// Where progress is told.
    pub progress: Progress,
    /// Goals that nothing waits for until the end.
    pub tasks: Arc<std::sync::Mutex<Vec<tokio::task::JoinHandle<Option<crate::engine::Ended>>>>>,
    /// What was found short so far.
    pub shortfalls: Arc<std::sync::Mutex<Vec<Shortfall>>>,
    /// What a person should know although nothing is short.
    pub notes: Arc<std::sync::Mutex<Vec<String>>>,
    /// What was waited for, and is not over yet.
    pub under_way: Arc<std::sync::Mutex<Vec<String>>>,
}

impl fmt::Debug for Case {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Case").field("case", &self.scene.case).finish_non_exhaustive()
    }
}

impl Case {
    /// The case as it is worked at in one of its rooms.
    #[must_use]
    pub fn in_room(&self, room: u32) -> Self {
        let mut case = self.clone();
        case.scene.room = room;
        case
    }

    /// Records that something is short, once.
    pub fn short(&self, shortfall: Shortfall) {
        let mut all = lock(&self.shortfalls);
        if !all.contains(&shortfall) {
            self.progress.shortfall(&self.scene.instance, &shortfall);
            all.push(shortfall);
        }
    }

    /// Records something worth knowing, once.
    pub fn note(&self, note: String) {
        let mut all = lock(&self.notes);
        if !all.contains(&note) {
            let instance = self.scene.instance.clone();
            self.progress.tell(Event::Note { instance, note: note.clone() });
            all.push(note);
        }
    }

    /// Records that something only takes its time, and is no longer waited for.
    pub(crate) fn leave_under_way(&self, what: String) {
        lock(&self.under_way).push(what);
    }

    /// Whether something that takes its time was left to be looked at later.
    #[must_use]
    pub fn is_under_way(&self) -> bool {
        !lock(&self.under_way).is_empty()
    }

    /// Whether the step is to be done.
    #[must_use]
    pub fn does(&self, step: Step) -> bool {
        self.scene.policy.steps.contains(&step)
    }
}

/// What this run has done already for a goal: what the world alone does not tell.
#[derive(Clone, Debug, Default)]
pub struct History {
    /// Changes that were carried out.
    pub applied: Vec<Change>,
    /// How many times what may pass by itself was met, by operation and resource.
    pub misses: BTreeMap<String, u32>,
    /// Changes that were refused for good, and why.
    pub refused: Vec<(Change, String)>,
}

impl History {
    /// Why a change of this kind was refused, where one was.
    #[must_use]
    pub fn refusal(&self, is: impl Fn(&Change) -> bool) -> Option<&str> {
        self.refused.iter().find(|(change, _)| is(change)).map(|(_, why)| why.as_str())
    }
}

/// What there is to do towards a goal, and what is in the way.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Assessment {
    /// What can be done at once, all of it at the same time.
    pub now: Vec<Change>,
    /// What will follow, as far as can be told; ids of what is yet to be made are in angle brackets.
    pub then: Vec<Change>,
    /// What is under way and only takes time: what, and how long it may take.
    pub waiting: Option<(String, Duration)>,
    /// What can not be reached.
    pub short: Vec<Shortfall>,
    /// What a person should know.
    pub notes: Vec<String>,
}

impl Assessment {
    /// Whether nothing is left to do.
    #[must_use]
    pub fn is_reached(&self) -> bool {
        self.now.is_empty() && self.waiting.is_none()
    }
}

/// Something to be reached, and to be undone on a person's word.
#[async_trait::async_trait]
pub trait Goal: Send + Sync {
    /// The step it belongs to.
    fn step(&self) -> Step;
    /// A word for the log, unique within the step.
    fn name(&self) -> &'static str;
    /// Looks at the world and decides what is to be done. Called again after acting: an assessment with nothing to do is
    /// the read-back.
    async fn look(&self, scene: &Scene, history: &History) -> cleanroom_cloud::Result<Assessment>;
    /// The same towards what was recorded before the response.
    async fn look_back(
        &self,
        _scene: &Scene,
        _history: &History,
    ) -> cleanroom_cloud::Result<Assessment> {
        Ok(Assessment::default())
    }
}
