//! Worlds to begin a test with.
//!
//! Purpose: whole and plausible states of an account, from the plain instance to a fleet. Every address is of
//! the blocks that RFC 5737 and RFC 3849 keep for documentation, or private.

use std::{
    collections::{BTreeMap, BTreeSet},
    time::Duration,
};

use cleanroom_cloud::{
    AclEntry, AclId, AlertFinding, AllocationId, AttachedVolume, BucketPosture, Classic,
    ElasticAddress, EncryptionKey, Event, GroupId, Guards, Instance, InstanceState, Interface,
    InterfaceId, Metadata, NetworkAcl, Profile, PublicImage, Quota, Retention, RolePolicy, Rule,
    ScalingGroup, SecurityGroup, Target, TargetGroup, TargetGroupArn, TrailPosture, UserAccess,
    Volume, VpcId,
};
use cleanroom_contract::{InstanceId, Timestamp, VolumeId};

use crate::{
    forensic::Lent,
    room::RoomScript,
    store::Bucket,
    world::{
        BEGINNING, Card, Limits, Machine, Role, Scaling, Setup, Targets, Times, TrailEvent, World,
    },
};

/// The account of every world.
pub const ACCOUNT: &str = "123456789012";
/// The Region of every world.
pub const REGION: &str = "us-east-1";
/// The suspect of every world but a fleet.
pub const INSTANCE: &str = "i-0123456789abcdef0";
/// The other instance of the Auto Scaling group of [`World::full`].
pub const SIBLING: &str = "i-0fedcba9876543210";
/// The topic of every world.
pub const TOPIC: &str = "arn:aws:sns:us-east-1:123456789012:cleanroom";
/// A key of the account's own, fit for a case.
pub const CASE_KEY: &str =
    "arn:aws:kms:us-east-1:123456789012:key/1234abcd-12ab-34cd-56ef-1234567890ab";
/// The key `aws/ebs`, under which nothing can be shared.
pub const AWS_MANAGED_KEY: &str =
    "arn:aws:kms:us-east-1:123456789012:key/0987dcba-09fe-87dc-65ba-ab0987654321";

const VPC: &str = "vpc-0123456789abcdef0";
const SUBNET: &str = "subnet-0123456789abcdef0";
const ACL: &str = "acl-0123456789abcdef0";
const GROUP: &str = "sg-0123456789abcdef0";
/// What every name of the suspect's own ends in.
const SUFFIX: &str = "0123456789abcdef0";
/// The number of the last entry of every network ACL, which denies what no other entry decides.
const LAST_ENTRY: i32 = 32_767;

impl World {
    /// One instance with one volume, one interface and one security group, and nothing else: no public
    /// address, no profile, no Auto Scaling group, no load balancer.
    #[must_use]
    pub fn plain() -> Self {
        let mut world = Self::empty();
        world.add_machine(&id(INSTANCE), SUFFIX, "10.0.0.10");
        world
    }

    /// Everything at once: 3 volumes, of which one is encrypted under `aws/ebs`; 2 interfaces with different
    /// groups, the primary with an Elastic IP, an IPv6 address and the automatic public address on; an Auto
    /// Scaling group of 2 with a termination hook, whose health the load balancers decide; a target group of
    /// instances, one of addresses, and a classic load balancer; a profile with another name than its role's;
    /// a user whose key the instance's session made; a GuardDuty finding; tags.
    #[must_use]
    pub fn full() -> Self {
        let mut world = Self::plain();
        world.add_volumes();
        world.add_interface(1);
        world.add_addresses();
        world.add_balancers(&id(INSTANCE));
        world.add_sibling();
        world.add_identity();
        world.add_signs();
        world
    }

    /// One instance with `count` interfaces, each with a security group of its own, in an Auto Scaling group,
    /// two target groups and a classic load balancer; no public address.
    #[must_use]
    pub fn interfaces(count: u8) -> Self {
        let mut world = Self::plain();
        for index in 1..count {
            world.add_interface(index);
        }
        world.add_balancers(&id(INSTANCE));
        world
    }

    /// `count` plain instances in one VPC, named `fleet-0000` and so on, the first ten of them in one Auto
    /// Scaling group.
    #[must_use]
    pub fn fleet(count: u16) -> Self {
        let mut world = Self::empty();
        let mut ids = Vec::new();
        for n in 0..count {
            let suffix = format!("0f1ee7{n:011x}");
            let instance = id(&format!("i-{suffix}"));
            let [high, low] = n.to_be_bytes();
            world.add_machine(&instance, &suffix, &format!("10.1.{high}.{low}"));
            if let Some(machine) = world.machines.get_mut(&instance) {
                machine.instance.tags.insert("Name".into(), format!("fleet-{n:04}"));
            }
            ids.push(instance);
        }
        ids.truncate(10);
        world.add_scaling(&ids);
        world
    }

    /// An account with a VPC, a bucket, a topic and keys, but no instance.
    #[must_use]
    pub fn empty() -> Self {
        let vpc = VpcId::from(VPC);
        Self {
            account: ACCOUNT.into(),
            region: REGION.to_owned(),
            clock_ahead: Some(0),
            machines: BTreeMap::new(),
            elsewhere: BTreeMap::new(),
            unlisted: BTreeSet::new(),
            instance_store_types: BTreeSet::from(["i4i.large".to_owned()]),
            vpcs: BTreeSet::from([vpc.clone()]),
            subnets: BTreeMap::from([(SUBNET.to_owned(), (vpc.clone(), AclId::from(ACL)))]),
            egress: BTreeMap::new(),
            acls: BTreeMap::from([(AclId::from(ACL), default_acl())]),
            groups: BTreeMap::from([(GroupId::from(GROUP), web_group(GROUP, "web"))]),
            allocations: BTreeMap::new(),
            scaling: BTreeMap::new(),
            target_groups: BTreeMap::new(),
            classics: BTreeMap::new(),
            volumes: BTreeMap::new(),
            failing_volumes: BTreeSet::new(),
            snapshots: Vec::new(),
            locks: BTreeMap::new(),
            shares: BTreeMap::new(),
            grants: Vec::new(),
            ungranted: BTreeSet::new(),
            key_policies: BTreeSet::new(),
            images: Vec::new(),
            keys: vec![key(CASE_KEY, false), key(AWS_MANAGED_KEY, true)],
            other_tags: BTreeMap::new(),
            profiles: Vec::new(),
            associations: Vec::new(),
            roles: BTreeMap::new(),
            users: BTreeMap::new(),
            findings: BTreeMap::new(),
            events: Vec::new(),
            stacks: BTreeMap::new(),
            built: BTreeMap::new(),
            buried: BTreeMap::new(),
            change_sets: BTreeMap::new(),
            room: RoomScript::default(),
            public_images: vec![PublicImage {
                id: "ami-0fedcba9876543210".into(),
                name: "al2023-ami-2023.9.20251208.0-kernel-6.1-x86_64".to_owned(),
                created: "2025-12-08T00:00:00.000Z".to_owned(),
            }],
            unanswered: BTreeMap::new(),
            bucket: Bucket::named("cleanroom-evidence-123456789012"),
            topic: Some(TOPIC.to_owned()),
            notices: Vec::new(),
            executions: BTreeMap::new(),
            tokens: BTreeMap::new(),
            letters: Vec::new(),
            setup: good_setup(vpc),
            times: Times::default(),
            limits: Limits::default(),
            open_spans: Vec::new(),
            clock: Duration::ZERO,
            forensic: None,
            lent: Lent::default(),
            later: BTreeMap::new(),
            named: 0,
        }
    }

    /// Adds a plain instance whose volume and interface end in `suffix`, in the group `web`.
    pub fn add_machine(&mut self, id: &InstanceId, suffix: &str, private: &str) {
        let volume = volume_id(&format!("vol-{suffix}"));
        self.volumes.insert(volume.clone(), plain_volume(&volume, id, "/dev/xvda", 8));
        let mut interface = plain_interface(&format!("eni-{suffix}"), 0, GROUP);
        interface.private = vec![private.to_owned()];
        let instance = plain_instance(id, volume);
        let guards = Guards { termination: false, stop: false, shutdown_terminates: false };
        let cards = vec![Card { interface, auto_public: false, tracked: true, open: false }];
        self.machines.insert(id.clone(), Machine { instance, guards, cards, user_data: None });
    }

    fn suspect(&mut self) -> &mut Machine {
        self.machines.get_mut(&id(INSTANCE)).expect("every world with a suspect begins plain")
    }

    fn add_volumes(&mut self) {
        let suspect = id(INSTANCE);
        for (n, device, size) in [(1_u8, "/dev/sdf", 100), (2, "/dev/sdg", 500)] {
            let volume = volume_id(&format!("vol-0{n}fedcba987654321"));
            let mut plain = plain_volume(&volume, &suspect, device, size);
            plain.encrypted = n == 1;
            plain.key = plain.encrypted.then(|| AWS_MANAGED_KEY.to_owned());
            self.volumes.insert(volume.clone(), plain);
            let device = device.to_owned();
            let mapping = AttachedVolume { device, volume, delete_on_termination: n == 1 };
            self.suspect().instance.volumes.push(mapping);
        }
    }

    /// An interface of the suspect with a group of its own.
    fn add_interface(&mut self, index: u8) {
        let group = format!("sg-0{index:03x}56789abcdef01");
        self.groups.insert(group.as_str().into(), web_group(&group, &format!("side-{index}")));
        let name = format!("eni-0{index:03x}56789abcdef01");
        let mut interface = plain_interface(&name, i32::from(index), &group);
        interface.private = vec![format!("10.0.{index}.10")];
        let card = Card { interface, auto_public: false, tracked: true, open: false };
        self.suspect().cards.push(card);
    }

    fn add_addresses(&mut self) {
        let allocation = AllocationId::from("eipalloc-0123456789abcdef0");
        let public = "203.0.113.25".to_owned();
        self.allocations.insert(allocation.clone(), public.clone());
        let card = &mut self.suspect().cards[0];
        card.auto_public = true;
        card.interface.ipv6 = vec!["2001:db8::10".to_owned()];
        card.interface.public = vec![ElasticAddress {
            public,
            private: "10.0.0.10".to_owned(),
            allocation: Some(allocation),
            association: Some("eipassoc-0123456789abcdef0".into()),
        }];
    }

    fn add_scaling(&mut self, ids: &[InstanceId]) {
        let size = i32::try_from(ids.len()).unwrap_or(i32::MAX / 2);
        let members = ids.iter().cloned().map(|id| (id, "InService".into(), "Healthy".into()));
        let group = ScalingGroup {
            name: "web".to_owned(),
            suspended: BTreeSet::new(),
            termination_hooks: Vec::new(),
            size: (0, size, size + 2),
            instances: members.collect(),
            launch_template: Some(("lt-0123456789abcdef0".to_owned(), "1".to_owned())),
        };
        let scaling = Scaling {
            group,
            protected: BTreeSet::new(),
            target_groups: Vec::new(),
            classics: Vec::new(),
            launch_groups: BTreeSet::from([GroupId::from(GROUP)]),
            balancer_health: false,
            refuse_detach: None,
            waits: BTreeMap::new(),
        };
        self.scaling.insert("web".to_owned(), scaling);
    }

    /// The Auto Scaling group `web` of this one instance, and its load balancers.
    fn add_balancers(&mut self, id: &InstanceId) {
        let instances = target_group("web", "instance");
        let addresses = target_group("web-ip", "ip");
        let arns = [instances.group.arn.clone(), addresses.group.arn.clone()];
        self.target_groups = BTreeMap::from([
            (arns[0].clone(), instances.with(id.as_str())),
            (arns[1].clone(), addresses.with("10.0.0.10")),
        ]);
        let name = "web-classic".to_owned();
        let classic = Classic { name: name.clone(), instances: vec![id.clone()] };
        self.classics.insert(name.clone(), classic);
        self.add_scaling(std::slice::from_ref(id));
        if let Some(scaling) = self.scaling.get_mut("web") {
            scaling.target_groups = vec![arns[0].clone()];
            scaling.classics = vec![name];
            scaling.balancer_health = true;
        }
    }

    /// A second member of the group `web`, registered as the first, and the group's hook.
    fn add_sibling(&mut self) {
        let sibling = id(SIBLING);
        self.add_machine(&sibling, "0fedcba9876543210", "10.0.0.11");
        if let Some(scaling) = self.scaling.get_mut("web") {
            let group = &mut scaling.group;
            group.instances.push((sibling.clone(), "InService".into(), "Healthy".into()));
            group.size = (1, 2, 4);
            group.termination_hooks = vec!["drain-logs".to_owned()];
        }
        for (arn, target) in [("web", SIBLING), ("web-ip", "10.0.0.11")] {
            if let Some(group) = self.target_groups.get_mut(&target_group_arn(arn)) {
                group.targets.push(registered(target));
            }
        }
        if let Some(classic) = self.classics.get_mut("web-classic") {
            classic.instances.push(sibling);
        }
    }

    fn add_identity(&mut self) {
        let arn = "arn:aws:iam::123456789012:instance-profile/app/web-profile";
        let role = "arn:aws:iam::123456789012:role/app/web-role";
        self.profiles.push(Profile {
            arn: arn.to_owned(),
            name: "web-profile".to_owned(),
            role: Some(("web-role".into(), role.to_owned())),
        });
        let read = r#"{"Version":"2012-10-17","Statement":[{"Effect":"Allow","Action":"s3:GetObject","Resource":"*"}]}"#;
        let managed = "arn:aws:iam::aws:policy/AmazonSSMManagedInstanceCore";
        self.roles.insert(
            "web-role".into(),
            Role {
                arn: role.to_owned(),
                policies: BTreeMap::from([("read".to_owned(), read.to_owned())]),
                managed: BTreeMap::from([(managed.to_owned(), read.to_owned())]),
            },
        );
        for instance in [id(INSTANCE), id(SIBLING)] {
            self.add_association(&instance, arn);
            if let Some(machine) = self.machines.get_mut(&instance) {
                machine.instance.profile = Some(arn.to_owned());
            }
        }
        let policy = RolePolicy { name: "all".to_owned(), document: read.to_owned() };
        let keys = BTreeMap::from([("AKIAIOSFODNN7EXAMPLE".to_owned(), true)]);
        self.users.insert("intruder".into(), UserAccess { keys, policies: vec![policy] });
    }

    fn add_signs(&mut self) {
        let machine = self.suspect();
        machine.instance.tags = BTreeMap::from([
            ("Name".to_owned(), "web-1".to_owned()),
            ("team".to_owned(), "shop".to_owned()),
        ]);
        machine.instance.key_pair = Some("ops".to_owned());
        machine.user_data = Some("#!/bin/sh\n".to_owned());
        machine.guards.shutdown_terminates = true;
        let finding = AlertFinding {
            id: "60a1b2c3d4e5f60718293a4b5c6d7e8f".to_owned(),
            kind: "CryptoCurrency:EC2/BitcoinTool.B!DNS".to_owned(),
            severity_tenths: 80,
            title: "The instance asks for a domain of a mining pool.".to_owned(),
            actor: true,
        };
        self.findings.insert(id(INSTANCE), vec![finding]);
        let (launch, assume) = ("ec2.amazonaws.com", "iam.amazonaws.com");
        self.events = vec![
            trail_event("RunInstances", launch, "ops", -86_400),
            trail_event("CreateAccessKey", assume, INSTANCE, -600),
        ];
    }
}

impl Targets {
    fn with(mut self, target: &str) -> Self {
        self.targets.push(registered(target));
        self
    }
}

fn id(text: &str) -> InstanceId {
    text.parse().expect("an instance id of this file")
}

fn volume_id(text: &str) -> VolumeId {
    text.parse().expect("a volume id of this file")
}

pub(crate) fn key(arn: &str, aws_managed: bool) -> EncryptionKey {
    EncryptionKey { arn: arn.to_owned(), account: ACCOUNT.into(), aws_managed, enabled: true }
}

pub(crate) fn plain_instance(id: &InstanceId, root: VolumeId) -> Instance {
    let device = "/dev/xvda".to_owned();
    Instance {
        id: id.clone(),
        account: ACCOUNT.into(),
        state: InstanceState::Running,
        image: "ami-0123456789abcdef0".into(),
        instance_type: "m7i.large".to_owned(),
        architecture: "x86_64".to_owned(),
        vpc: Some(VPC.into()),
        subnet: Some(SUBNET.to_owned()),
        zone: "us-east-1a".to_owned(),
        launched: Timestamp { seconds: BEGINNING.seconds - 86_400, nanos: 0 },
        spot: false,
        windows: false,
        product_codes: Vec::new(),
        root_device: Some(device.clone()),
        volumes: vec![AttachedVolume { device, volume: root, delete_on_termination: true }],
        interfaces: BTreeSet::new(),
        profile: None,
        metadata: Metadata { endpoint: true, tokens_required: true },
        key_pair: None,
        tags: BTreeMap::new(),
    }
}

pub(crate) fn plain_volume(
    id: &VolumeId,
    instance: &InstanceId,
    device: &str,
    size: u32,
) -> Volume {
    Volume {
        id: id.clone(),
        size,
        encrypted: false,
        key: None,
        product_codes: Vec::new(),
        attached: vec![(instance.clone(), device.to_owned())],
        tags: BTreeMap::new(),
    }
}

fn plain_interface(id: &str, index: i32, group: &str) -> Interface {
    Interface {
        id: InterfaceId::from(id),
        owner: ACCOUNT.into(),
        managed: false,
        vpc: VPC.into(),
        subnet: SUBNET.to_owned(),
        index,
        groups: BTreeSet::from([GroupId::from(group)]),
        private: Vec::new(),
        ipv6: Vec::new(),
        public: Vec::new(),
        tags: BTreeMap::new(),
    }
}

/// HTTPS in from anywhere, everything out: what most instances have.
fn web_group(id: &str, name: &str) -> SecurityGroup {
    let rule = |egress: bool, peer: &str| Rule {
        egress,
        all_traffic: egress,
        peer: peer.to_owned(),
        what: if egress { "all traffic" } else { "tcp 443" }.to_owned(),
    };
    SecurityGroup {
        id: id.into(),
        name: name.to_owned(),
        vpc: VPC.into(),
        tags: BTreeMap::new(),
        rules: vec![rule(false, "0.0.0.0/0"), rule(true, "0.0.0.0/0"), rule(true, "::/0")],
    }
}

/// Every VPC's first ACL: all allowed at 100, the rest denied.
fn default_acl() -> NetworkAcl {
    let entry = |number, egress| AclEntry {
        number,
        egress,
        allow: number == 100,
        cidr: "0.0.0.0/0".to_owned(),
        protocol: "-1".to_owned(),
    };
    let entries = vec![
        entry(100, false),
        entry(LAST_ENTRY, false),
        entry(100, true),
        entry(LAST_ENTRY, true),
    ];
    NetworkAcl { id: ACL.into(), entries }
}

fn target_group_arn(name: &str) -> TargetGroupArn {
    let hash = if name == "web" { "6d0ecf831eec9f09" } else { "73e2d6bc24d8a067" };
    format!("arn:aws:elasticloadbalancing:{REGION}:{ACCOUNT}:targetgroup/{name}/{hash}").into()
}

fn target_group(name: &str, kind: &str) -> Targets {
    let group = TargetGroup {
        arn: target_group_arn(name),
        vpc: Some(VPC.into()),
        kind: kind.to_owned(),
        protocol: Some("HTTP".to_owned()),
    };
    Targets { group, port: 80, targets: Vec::new() }
}

fn registered(target: &str) -> Target {
    Target { id: target.to_owned(), port: Some(80), zone: None, draining: false }
}

fn trail_event(name: &str, source: &str, username: &str, ago: i64) -> TrailEvent {
    let event = Event {
        id: format!("{name}-0001"),
        name: name.to_owned(),
        source: source.to_owned(),
        time: Timestamp { seconds: BEGINNING.seconds + ago, nanos: 0 },
        username: Some(username.to_owned()),
        raw: format!(r#"{{"eventName":"{name}","eventSource":"{source}"}}"#),
    };
    let access_key = (username == INSTANCE).then(|| "ASIAIOSFODNN7EXAMPLE".to_owned());
    TrailEvent { event, resources: vec![INSTANCE.to_owned()], access_key }
}

/// An account that is prepared as it should be.
fn good_setup(vpc: VpcId) -> Setup {
    let denied = r#"{"Version":"2012-10-17","Statement":[{"Effect":"Deny","Principal":"*","Action":"s3:*","Resource":"*","Condition":{"Bool":{"aws:SecureTransport":"false"}}}]}"#;
    let bucket = BucketPosture {
        versioning: true,
        object_lock: true,
        retention: Some(Retention { mode: "GOVERNANCE".to_owned(), days: 365 }),
        public_access_blocked: true,
        key: Some(CASE_KEY.to_owned()),
        policy: Some(denied.to_owned()),
    };
    let quota = |name: &str, limit| Quota { name: name.to_owned(), limit, used: Some(1) };
    Setup {
        bucket,
        denied: BTreeSet::new(),
        trails: vec![TrailPosture {
            name: "main".to_owned(),
            multi_region: true,
            log_validation: true,
            logging: true,
        }],
        guardduty: true,
        flow_logs: BTreeSet::from([vpc]),
        quotas: vec![quota("VPCs per Region", 5), quota("VPC security groups per Region", 2_500)],
    }
}
