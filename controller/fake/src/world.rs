//! The state of the fake cloud: plain data that tests read and set.
//!
//! Purpose: everything that an account and a Region hold, as far as the ports show it. Touches nothing:
//! the clock is a number that [`World::settle`] moves. Never locks, waits or fails by itself.

use std::{
    collections::{BTreeMap, BTreeSet},
    time::Duration,
};

use cleanroom_cloud::{
    AccountId, AclId, AlertFinding, AllocationId, Association, BucketPosture, Classic,
    EncryptionKey, ErrorKind, Event, GroupId, Guards, Image, Instance, Interface, InterfaceId,
    NetworkAcl, Notice, Profile, PublicImage, Quota, RoleName, Rule, ScalingGroup, SecurityGroup,
    Snapshot, StackEvent, Target, TargetGroup, TargetGroupArn, TrailPosture, UserAccess, Volume,
    VpcId,
};
use cleanroom_contract::{InstanceId, SnapshotId, Timestamp, VolumeId};

use crate::{
    deployment::ChangeSetOf,
    forensic::{Granted, Lent},
    later::Later,
    machines::{Letter, Ran, Waits},
    room::{Built, RoomScript},
    store::Bucket,
};

/// 2026-01-01T00:00:00Z, when every world begins.
pub const BEGINNING: Timestamp = Timestamp { seconds: 1_767_225_600, nanos: 0 };

/// An instance and what is its own.
#[derive(Clone, Debug, PartialEq)]
pub struct Machine {
    /// As EC2 describes it.
    pub instance: Instance,
    /// Its guards.
    pub guards: Guards,
    /// Its interfaces, the primary first; none once it is terminated.
    pub cards: Vec<Card>,
    /// What it was launched with.
    pub user_data: Option<String>,
}

impl Machine {
    /// As EC2 describes it now.
    pub(crate) fn described(&self) -> Instance {
        let interfaces = self.cards.iter().map(|card| card.interface.id.clone()).collect();
        Instance { interfaces, ..self.instance.clone() }
    }
}

/// A network interface, and what happens on it that EC2 does not tell.
#[derive(Clone, Debug, PartialEq)]
pub struct Card {
    /// As EC2 describes it.
    pub interface: Interface,
    /// Whether EC2 gives it a public address on its own.
    pub auto_public: bool,
    /// Whether flows go on that were tracked: they survive any change of groups but one, from a set that allows
    /// everything both ways to a set without a rule.
    pub tracked: bool,
    /// Whether its groups allow everything, both ways, IPv4 and IPv6. Kept by [`World::refresh`].
    pub open: bool,
}

/// A time in which an interface's groups allowed everything.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct OpenSpan {
    /// The interface.
    pub interface: InterfaceId,
    /// When it was opened, since the world began.
    pub opened: Duration,
    /// When it was closed; none while it is open.
    pub closed: Option<Duration>,
}

/// An Auto Scaling group and what the port does not show of it.
#[derive(Clone, Debug, PartialEq)]
pub struct Scaling {
    /// As Auto Scaling describes it.
    pub group: ScalingGroup,
    /// Members that are protected from scale-in.
    pub protected: BTreeSet<InstanceId>,
    /// Target groups that its members are registered with.
    pub target_groups: Vec<TargetGroupArn>,
    /// Classic load balancers that its members are registered with.
    pub classics: Vec<String>,
    /// The security groups of what it launches.
    pub launch_groups: BTreeSet<GroupId>,
    /// Whether load balancers' health checks decide: then a member that is cut off is replaced.
    pub balancer_health: bool,
    /// Refuses to detach, with this kind of error.
    pub refuse_detach: Option<ErrorKind>,
    /// When the wait of each member in `Terminating:Wait` ends, since the world began.
    pub waits: BTreeMap<InstanceId, Duration>,
}

/// A target group and its targets.
#[derive(Clone, Debug, PartialEq)]
pub struct Targets {
    /// As Elastic Load Balancing describes it.
    pub group: TargetGroup,
    /// The port of targets that name none.
    pub port: i32,
    /// What is registered.
    pub targets: Vec<Target>,
}

/// A role.
#[derive(Clone, Debug, PartialEq)]
pub struct Role {
    /// Its ARN, with its path.
    pub arn: String,
    /// Its inline policies, name to document.
    pub policies: BTreeMap<String, String>,
    /// Its managed policies, ARN to document.
    pub managed: BTreeMap<String, String>,
}

/// A CloudTrail event and what it can be looked up by.
#[derive(Clone, Debug, PartialEq)]
pub struct TrailEvent {
    /// The event.
    pub event: Event,
    /// The resources it names.
    pub resources: Vec<String>,
    /// The access key it was made with.
    pub access_key: Option<String>,
}

/// How the account is set up.
#[derive(Clone, Debug, PartialEq)]
pub struct Setup {
    /// The evidence bucket.
    pub bucket: BucketPosture,
    /// Actions that simulation denies; all others are allowed.
    pub denied: BTreeSet<String>,
    /// Trails.
    pub trails: Vec<TrailPosture>,
    /// Whether GuardDuty is on. Off, there are no findings.
    pub guardduty: bool,
    /// VPCs that have a flow log.
    pub flow_logs: BTreeSet<VpcId>,
    /// Quotas.
    pub quotas: Vec<Quota>,
}

/// How long things take that AWS does after its answer.
#[derive(Clone, Debug, PartialEq)]
pub struct Times {
    /// A snapshot, from pending to its final state.
    pub snapshot: Duration,
    /// Giving and taking a public address.
    pub address: Duration,
    /// A target's draining.
    pub drain: Duration,
    /// Until a health check ends a member that is cut off.
    pub health: Duration,
    /// The wait of a termination hook, and what a heartbeat puts it off by.
    pub hook: Duration,
    /// From shutting down to terminated.
    pub termination: Duration,
    /// From launched to running.
    pub launch: Duration,
    /// Until an ended profile association is no longer listed.
    pub association: Duration,
}

impl Default for Times {
    fn default() -> Self {
        Self {
            snapshot: Duration::from_secs(30),
            address: Duration::from_secs(1),
            drain: Duration::from_secs(300),
            health: Duration::from_secs(60),
            hook: Duration::from_secs(3600),
            termination: Duration::from_secs(30),
            launch: Duration::from_secs(15),
            association: Duration::from_secs(1),
        }
    }
}

/// What there may be at most: AWS's defaults.
#[derive(Clone, Debug, PartialEq)]
pub struct Limits {
    /// Security groups of an interface.
    pub groups_per_interface: usize,
    /// Characters of all inline policies of a role, white space not counted.
    pub role_policies: usize,
    /// The same for a user.
    pub user_policies: usize,
    /// Entries of a network ACL, each direction.
    pub acl_entries: usize,
    /// Tags of a resource.
    pub tags: usize,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            groups_per_interface: 5,
            role_policies: 10_240,
            user_policies: 2_048,
            acl_entries: 20,
            tags: 50,
        }
    }
}

/// One account in one Region. Tests set any field; what hangs together they keep together.
#[derive(Clone, Debug, PartialEq)]
pub struct World {
    /// The account.
    pub account: AccountId,
    /// The Region.
    pub region: String,
    /// How far the caller's clock is ahead of the service's, in seconds.
    pub clock_ahead: Option<i64>,
    /// Instances.
    pub machines: BTreeMap<InstanceId, Machine>,
    /// Instances that are in other Regions.
    pub elsewhere: BTreeMap<InstanceId, Vec<String>>,
    /// Interfaces that no listing shows yet: they are there, and the instance names them.
    pub unlisted: BTreeSet<InterfaceId>,
    /// Instance types with disks that die with the instance.
    pub instance_store_types: BTreeSet<String>,
    /// VPCs.
    pub vpcs: BTreeSet<VpcId>,
    /// Subnets, each with its VPC and network ACL.
    pub subnets: BTreeMap<String, (VpcId, AclId)>,
    /// Public addresses of NAT gateways, by VPC.
    pub egress: BTreeMap<VpcId, BTreeSet<String>>,
    /// Network ACLs.
    pub acls: BTreeMap<AclId, NetworkAcl>,
    /// Security groups.
    pub groups: BTreeMap<GroupId, SecurityGroup>,
    /// Elastic IPs and their public addresses. What they are associated with stands with the interface.
    pub allocations: BTreeMap<AllocationId, String>,
    /// Auto Scaling groups.
    pub scaling: BTreeMap<String, Scaling>,
    /// Target groups.
    pub target_groups: BTreeMap<TargetGroupArn, Targets>,
    /// Classic load balancers.
    pub classics: BTreeMap<String, Classic>,
    /// Volumes.
    pub volumes: BTreeMap<VolumeId, Volume>,
    /// Volumes whose snapshots end in error.
    pub failing_volumes: BTreeSet<VolumeId>,
    /// Snapshots, oldest first.
    pub snapshots: Vec<Snapshot>,
    /// How long each locked snapshot is locked, in days.
    pub locks: BTreeMap<SnapshotId, u32>,
    /// The accounts that snapshots are shared with.
    pub shares: BTreeMap<SnapshotId, BTreeSet<AccountId>>,
    /// Grants on keys.
    pub grants: Vec<Granted>,
    /// Keys, by ARN, on which no grant can be made.
    pub ungranted: BTreeSet<String>,
    /// Keys, by ARN, and accounts that their policies admit.
    pub key_policies: BTreeSet<(String, AccountId)>,
    /// Images, oldest first.
    pub images: Vec<Image>,
    /// Keys of KMS.
    pub keys: Vec<EncryptionKey>,
    /// Tags of what has none in the ports' types: ACLs, Elastic IPs, VPCs, subnets.
    pub other_tags: BTreeMap<String, BTreeMap<String, String>>,
    /// Instance profiles.
    pub profiles: Vec<Profile>,
    /// Which profile is on which instance.
    pub associations: Vec<(InstanceId, Association)>,
    /// Roles.
    pub roles: BTreeMap<RoleName, Role>,
    /// Users.
    pub users: BTreeMap<String, UserAccess>,
    /// GuardDuty's findings.
    pub findings: BTreeMap<InstanceId, Vec<AlertFinding>>,
    /// CloudTrail's events.
    pub events: Vec<TrailEvent>,
    /// CloudFormation stacks' outputs.
    pub stacks: BTreeMap<String, BTreeMap<String, String>>,
    /// Stacks that were made through the port, by name.
    pub built: BTreeMap<String, Built>,
    /// Deleted ones' events, by the stack's id.
    pub buried: BTreeMap<String, Vec<StackEvent>>,
    /// Change sets of stacks, by id.
    pub change_sets: BTreeMap<String, ChangeSetOf>,
    /// What clean rooms do.
    pub room: RoomScript,
    /// Amazon's own images.
    pub public_images: Vec<PublicImage>,
    /// Questions for the record that are not answered, by
    /// [`Question::file_name`](cleanroom_cloud::Question::file_name).
    pub unanswered: BTreeMap<String, ErrorKind>,
    /// The evidence bucket.
    pub bucket: Bucket,
    /// The topic's ARN.
    pub topic: Option<String>,
    /// What was published, in order.
    pub notices: Vec<Notice>,
    /// Executions of state machines, by ARN.
    pub executions: BTreeMap<String, Ran>,
    /// Tasks that wait for a token, or did, by it.
    pub tokens: BTreeMap<String, Waits>,
    /// What could not be read, in order.
    pub letters: Vec<Letter>,
    /// How the account is set up.
    pub setup: Setup,
    /// How long things take.
    pub times: Times,
    /// What there may be at most.
    pub limits: Limits,
    /// When which interface was open, in the order of opening.
    pub open_spans: Vec<OpenSpan>,
    /// The time since the world began.
    pub clock: Duration,
    /// The forensic account. Its bucket is this one's.
    pub forensic: Option<Box<World>>,
    /// What another account lets this one see, while a call is at work.
    pub(crate) lent: Lent,
    /// What happens by itself later on.
    pub(crate) later: BTreeMap<(Duration, u64), Later>,
    /// How many names were given.
    pub(crate) named: u64,
}

impl World {
    /// The time of day.
    #[must_use]
    pub fn now(&self) -> Timestamp {
        time_of_day(self.clock)
    }

    /// An instance and what is its own.
    #[must_use]
    pub fn machine(&self, id: &InstanceId) -> Option<&Machine> {
        self.machines.get(id)
    }

    /// An interface, wherever it is attached.
    #[must_use]
    pub fn card(&self, id: &InterfaceId) -> Option<&Card> {
        self.machines.values().flat_map(|m| &m.cards).find(|c| c.interface.id == *id)
    }

    /// The same, to change.
    pub fn card_mut(&mut self, id: &InterfaceId) -> Option<&mut Card> {
        self.machines.values_mut().flat_map(|m| &mut m.cards).find(|c| c.interface.id == *id)
    }

    /// A snapshot.
    #[must_use]
    pub fn snapshot(&self, id: &SnapshotId) -> Option<&Snapshot> {
        self.snapshots.iter().find(|s| s.id == *id)
    }

    /// The Auto Scaling group of an instance.
    #[must_use]
    pub fn scaling_of(&self, id: &InstanceId) -> Option<&Scaling> {
        self.scaling.values().find(|s| s.group.instances.iter().any(|(i, _, _)| i == id))
    }

    /// Whether nothing comes in or goes out by the instance's groups, on any interface.
    #[must_use]
    pub fn is_cut(&self, id: &InstanceId) -> bool {
        self.machines.get(id).is_some_and(|m| {
            m.cards.iter().all(|c| rules_of(&self.groups, &c.interface.groups).next().is_none())
        })
    }

    /// Whether the load balancers' health checks can not reach the instance: no rule lets anything in by its
    /// primary interface.
    pub(crate) fn is_unreachable(&self, id: &InstanceId) -> bool {
        self.machines
            .get(id)
            .and_then(|m| m.cards.first())
            .is_some_and(|c| rules_of(&self.groups, &c.interface.groups).all(|rule| rule.egress))
    }

    /// Looks at every interface's groups again, and notes what opened and what closed.
    pub fn refresh(&mut self) {
        let Self { machines, groups, open_spans, clock, .. } = self;
        for card in machines.values_mut().flat_map(|m| &mut m.cards) {
            look_at(card, groups, open_spans, *clock);
        }
    }

    /// The same for one interface.
    pub(crate) fn refresh_card(&mut self, id: &InterfaceId) {
        let Self { machines, groups, open_spans, clock, .. } = self;
        let mut cards = machines.values_mut().flat_map(|m| &mut m.cards);
        if let Some(card) = cards.find(|c| c.interface.id == *id) {
            look_at(card, groups, open_spans, *clock);
        }
    }

    /// A name that was never given before, in EC2's form.
    pub(crate) fn name(&mut self, prefix: &str) -> String {
        self.named += 1;
        format!("{prefix}0a{:015x}", self.named)
    }
}

/// The time of day, `since` after the beginning.
pub(crate) fn time_of_day(since: Duration) -> Timestamp {
    Timestamp {
        seconds: BEGINNING.seconds + i64::try_from(since.as_secs()).unwrap_or(i64::MAX / 2),
        nanos: since.subsec_nanos(),
    }
}

/// The rules of all these groups.
fn rules_of<'a>(
    all: &'a BTreeMap<GroupId, SecurityGroup>,
    groups: &'a BTreeSet<GroupId>,
) -> impl Iterator<Item = &'a Rule> {
    groups.iter().filter_map(|id| all.get(id)).flat_map(|group| &group.rules)
}

/// Everything, both ways, IPv4 and IPv6.
pub(crate) fn open_rules() -> Vec<Rule> {
    [(false, "0.0.0.0/0"), (false, "::/0"), (true, "0.0.0.0/0"), (true, "::/0")]
        .map(|(egress, peer)| Rule {
            egress,
            all_traffic: true,
            peer: peer.to_owned(),
            what: "all traffic".to_owned(),
        })
        .to_vec()
}

/// Brings an interface's own state in line with its groups. Flows that were tracked end only here: untracked
/// while everything is allowed, they have nothing to go on with when at once nothing is.
fn look_at(
    card: &mut Card,
    groups: &BTreeMap<GroupId, SecurityGroup>,
    spans: &mut Vec<OpenSpan>,
    clock: Duration,
) {
    let rules = || rules_of(groups, &card.interface.groups);
    let open = open_rules().iter().all(|wanted| {
        rules().any(|r| r.all_traffic && r.egress == wanted.egress && r.peer == wanted.peer)
    });
    let empty = rules().next().is_none();
    if open && !card.open {
        let interface = card.interface.id.clone();
        spans.push(OpenSpan { interface, opened: clock, closed: None });
    }
    if !open && card.open {
        let id = &card.interface.id;
        if let Some(span) =
            spans.iter_mut().rev().find(|s| s.interface == *id && s.closed.is_none())
        {
            span.closed = Some(clock);
        }
        card.tracked &= !empty;
    }
    card.open = open;
}
