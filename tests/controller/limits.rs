//! What a thousand instances take in an account with default quotas, by each limit: the table of `docs/thousand.md`.
//!
//! Calls for an instance are counted in a response against the cloud in memory, states in the state machine itself; rates
//! and quotas are AWS's defaults, each with the page that says so. What is assumed is a constant here, and named in the text.

use std::{collections::BTreeMap, fmt::Write as _};

use cleanroom_cloud_fake::{FakeCloud, World};
use cleanroom_contract::InstanceId;
use cleanroom_controller::{
    case::{Policy, Shared},
    steps::clean_room::size::decide_room,
};
use futures_util::future::join_all;
use serde_json::Value;

use crate::{
    documents::{between, hold, read},
    support::{respond_to, run},
};

/// Instances of the incident.
const INSTANCES: f64 = 1_000.0;

/// A token bucket: how many calls at once, and how many a second after that.
#[derive(Clone, Copy)]
struct Bucket {
    size: f64,
    refill: f64,
    page: &'static str,
}

impl Bucket {
    /// Seconds until so many calls are through, from a full bucket.
    fn seconds(self, calls: f64) -> f64 {
        ((calls - self.size) / self.refill).max(0.0)
    }
}

const EC2: &str = "https://docs.aws.amazon.com/ec2/latest/devguide/ec2-api-throttling.html";
const TRAIL: &str =
    "https://docs.aws.amazon.com/awscloudtrail/latest/APIReference/API_LookupEvents.html";
const STATES: &str = "https://docs.aws.amazon.com/step-functions/latest/dg/service-quotas.html";
const LAMBDA: &str = "https://docs.aws.amazon.com/lambda/latest/dg/gettingstarted-limits.html";
const VPC: &str = "https://docs.aws.amazon.com/vpc/latest/userguide/amazon-vpc-limits.html";
const VCPU: &str =
    "https://docs.aws.amazon.com/AWSEC2/latest/UserGuide/ec2-on-demand-instances.html";
const IAM: &str = "https://docs.aws.amazon.com/IAM/latest/UserGuide/reference_iam-quotas.html";
const STACKS: &str =
    "https://docs.aws.amazon.com/AWSCloudFormation/latest/UserGuide/cloudformation-limits.html";
const EBS: &str = "https://docs.aws.amazon.com/ebs/latest/userguide/ebs-resource-quotas.html";
const S3: &str =
    "https://docs.aws.amazon.com/AmazonS3/latest/userguide/optimizing-performance.html";
const SNS: &str = "https://docs.aws.amazon.com/general/latest/gr/sns.html";

/// Each operation of EC2 has a bucket of its own; these are the sizes of its two kinds.
const MUTATES: Bucket = Bucket { size: 50.0, refill: 5.0, page: EC2 };
const LOOKS: Bucket = Bucket { size: 100.0, refill: 20.0, page: EC2 };
/// `LookupEvents`, the account's. Can not be raised.
const LOOKUPS: Bucket = Bucket { size: 2.0, refill: 2.0, page: TRAIL };
/// `StartExecution` of STANDARD machines, and state transitions, in us-east-1, us-west-2 and eu-west-1; elsewhere less.
const STARTS: Bucket = Bucket { size: 1_300.0, refill: 300.0, page: STATES };
const TRANSITIONS: Bucket = Bucket { size: 5_000.0, refill: 1_500.0, page: STATES };
/// Creating objects below one prefix; a case has prefixes of its own.
const PUTS: Bucket = Bucket { size: 3_500.0, refill: 3_500.0, page: S3 };
/// `Publish` in the smaller Regions.
const PUBLISHES: Bucket = Bucket { size: 300.0, refill: 300.0, page: SNS };

/// `StepConcurrency` of the response stack, and the seconds that a step is assumed to take.
const STEPS_AT_ONCE: f64 = 50.0;
const STEP_SECONDS: f64 = 2.0;

/// Minutes from a room's launch to its report that are assumed: a small volume. A drill tells your own.
const ROOM_MINUTES: f64 = 45.0;

/// GiB of the assumed instance's volumes.
const GIB: u32 = 8;

/// Calls for one instance, by operation, counted over so many.
async fn calls_an_instance(count: u16) -> BTreeMap<String, f64> {
    let mut world = World::fleet(count);
    world.times.snapshot = std::time::Duration::from_secs(1);
    let ids: Vec<InstanceId> = world.machines.keys().cloned().collect();
    let cloud = FakeCloud::new(world);
    let mut run = run(&cloud, Policy::default(), None).await;
    run.shared = std::sync::Arc::new(Shared::with_slots(usize::from(count)));
    for report in join_all(ids.iter().map(|id| respond_to(&run, id))).await {
        assert!(report.expect("not refused").is_whole());
    }
    let mut calls = BTreeMap::new();
    for call in cloud.calls() {
        *calls.entry(call.operation).or_insert(0.0) += 1.0 / f64::from(count);
    }
    calls
}

/// States and tasks of a state machine, however deep.
fn states(machine: &Value) -> (f64, f64) {
    let (mut all, mut tasks) = (0.0, 0.0);
    for state in machine["States"].as_object().into_iter().flatten().map(|(_, state)| state) {
        all += 1.0;
        tasks += f64::from(u8::from(state["Type"] == "Task"));
        let branches = state["Branches"].as_array().into_iter().flatten();
        for inner in branches.chain([&state["ItemProcessor"], &state["Iterator"]]) {
            let (some, working) = self::states(inner);
            all += some;
            tasks += working;
        }
    }
    (all, tasks)
}

/// A row: what limits, by how much, what an instance takes of it, and the seconds for all of them.
struct Row {
    what: String,
    limit: String,
    each: String,
    seconds: f64,
    page: &'static str,
}

fn by_rate(what: &str, each: f64, bucket: Bucket) -> Row {
    Row {
        what: what.to_owned(),
        limit: format!("{} at once, then {} a second", bucket.size, bucket.refill),
        each: format!("{each:.1}"),
        seconds: bucket.seconds(each * INSTANCES),
        page: bucket.page,
    }
}

/// Rooms of which so many stand at a time.
fn by_room(what: &str, limit: &str, each: &str, at_once: f64, page: &'static str) -> Row {
    Row {
        what: what.to_owned(),
        limit: limit.to_owned(),
        each: each.to_owned(),
        seconds: (INSTANCES / at_once).ceil() * ROOM_MINUTES * 60.0,
        page,
    }
}

/// What bounds containing and preserving, the longest first.
fn containing(calls: &BTreeMap<String, f64>, machine: &Value) -> Vec<Row> {
    let mut rows: Vec<Row> = calls
        .iter()
        .filter_map(|(operation, each)| {
            let name = operation.strip_prefix("ec2:")?;
            let bucket = if name.starts_with("Describe") || name.starts_with("Get") {
                LOOKS
            } else {
                MUTATES
            };
            Some(by_rate(&format!("EC2 {name}"), *each, bucket))
        })
        .collect();
    rows.sort_by(|a, b| b.seconds.total_cmp(&a.seconds));
    rows.truncate(8);
    let (all, tasks) = states(machine);
    let of = |name: &str| calls.get(name).copied().unwrap_or_default();
    rows.push(by_rate(
        "CloudTrail LookupEvents (record; nothing waits for it)",
        of("cloudtrail:LookupEvents"),
        LOOKUPS,
    ));
    rows.push(by_rate("Step Functions StartExecution", 1.0, STARTS));
    rows.push(by_rate("Step Functions state transitions, every state once", all, TRANSITIONS));
    rows.push(by_rate("S3 PutObject, were all below one prefix", of("s3:PutObject"), PUTS));
    rows.push(by_rate("SNS Publish, smaller Regions", of("sns:Publish"), PUBLISHES));
    rows.push(Row {
        what: format!(
            "Lambda: {STEPS_AT_ONCE} steps at once (`StepConcurrency`), {STEP_SECONDS} s each"
        ),
        limit: "1000 at once in the account".to_owned(),
        each: format!("{tasks} steps"),
        seconds: tasks * INSTANCES * STEP_SECONDS / STEPS_AT_ONCE,
        page: LAMBDA,
    });
    rows.sort_by(|a, b| b.seconds.total_cmp(&a.seconds));
    rows
}

/// vCPUs of the room for the assumed instance. Of M6i, an xlarge has four (EC2 user guide, "M6i").
fn vcpus() -> f64 {
    match decide_room(&[GIB]).instance_type {
        "m6i.xlarge" => 4.0,
        other => panic!("how many vCPUs has a {other}?"),
    }
}

/// What bounds examining, the longest first.
fn examining() -> Vec<Row> {
    let vcpus = vcpus();
    let mut rows = vec![
        by_room(
            "Rooms, by On-Demand Standard vCPUs",
            "5 (new accounts)",
            &format!("{vcpus} vCPUs"),
            (5.0 / vcpus).floor(),
            VCPU,
        ),
        by_room("Rooms with a VPC each", "5 VPCs a Region, one is there", "1 VPC", 4.0, VPC),
        by_room(
            "Rooms in a shared network, as many as `cleanroom` makes at a time",
            "64 (its own)",
            &format!("{} vCPUs for all", 64.0 * vcpus),
            64.0,
            VCPU,
        ),
        by_room("Roles, one a room", "1000 an account", "1 role", 1_000.0, IAM),
        by_room("Stacks, one a room", "2000 a Region", "1 stack", 2_000.0, STACKS),
        by_room("Snapshots", "100000 a Region", "1 snapshot", 100_000.0, EBS),
    ];
    rows.sort_by(|a, b| b.seconds.total_cmp(&a.seconds));
    rows
}

/// As people say it.
fn spoken(seconds: f64) -> String {
    match seconds {
        s if s < 1.0 => "at once".to_owned(),
        s if s < 120.0 => format!("{s:.0} s"),
        s if s < 7_200.0 => format!("{:.0} min", s / 60.0),
        s if s < 172_800.0 => format!("{:.1} h", s / 3_600.0),
        s => format!("{:.1} days", s / 86_400.0),
    }
}

fn table(rows: &[Row]) -> String {
    let mut text = String::from(
        "| Limit | AWS's default | An instance takes | A thousand take | Page |\n|---|---|---|---|---|\n",
    );
    for Row { what, limit, each, seconds, page } in rows {
        let name = page.rsplit('/').next().unwrap_or(page).trim_end_matches(".html");
        let spoken = spoken(*seconds);
        writeln!(text, "| {what} | {limit} | {each} | {spoken} | [{name}]({page}) |")
            .expect("a text");
    }
    text
}

#[tokio::test(start_paused = true)]
async fn the_tables_of_a_thousand_instances_are_the_code_s() {
    let calls = calls_an_instance(20).await;
    let machine: Value =
        serde_json::from_str(&read("cloudformation/response.asl.json")).expect("JSON");
    let (contain, examine) = (containing(&calls, &machine), examining());
    // What the text says binds first does.
    assert!(contain[0].what.starts_with("Lambda"), "{}", contain[0].what);
    assert!(contain[1].what.contains("LookupEvents"), "{}", contain[1].what);
    assert!(examine[0].what.contains("vCPU"), "{}", examine[0].what);
    let text = between(&read("docs/thousand.md"), "containing", &table(&contain));
    hold("docs/thousand.md", &between(&text, "examining", &table(&examine)));
}

#[tokio::test(start_paused = true)]
async fn an_instance_takes_as_many_calls_among_a_hundred_as_among_ten() {
    let (few, many) = (calls_an_instance(10).await, calls_an_instance(100).await);
    for (operation, each) in &many {
        // What is asked once a run is shared by more; the Auto Scaling group is the first ten's.
        let before = few.get(operation).copied().unwrap_or_default();
        assert!(*each <= before * 1.05 + 0.05, "{operation}: {before:.2}, then {each:.2}");
    }
}

#[test]
fn a_bucket_gives_what_it_holds_at_once_and_the_rest_by_its_refill() {
    assert!((MUTATES.seconds(50.0)).abs() < f64::EPSILON);
    assert!((MUTATES.seconds(1_050.0) - 200.0).abs() < f64::EPSILON);
    for (seconds, said) in [
        (0.2, "at once"),
        (90.0, "90 s"),
        (600.0, "10 min"),
        (7_200.0, "2.0 h"),
        (864_000.0, "10.0 days"),
    ] {
        assert_eq!(spoken(seconds), said);
    }
}
