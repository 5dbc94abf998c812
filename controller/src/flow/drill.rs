//! A drill: a harmless instance of our own, responded to as if it were not, and cleaned up again.
//!
//! Purpose: what a drill launches, and what it takes away. The response between the two is the one that incidents get, by this
//! program or by the state machine. A
//! drill is named before anything is made, so that whatever a run leaves behind is found again by that name. The only flow
//! that deletes evidence, and only a drill's own: see [`clean`].

pub mod clean;

use std::{collections::BTreeMap, time::Duration};

use cleanroom_cloud::{Change, ErrorKind, ImageId, Instance, InstanceState, Made};
use cleanroom_contract::{CaseId, InstanceId, Timestamp};
use serde::Serialize;
use tokio::time::Instant;

pub use self::clean::{Cleaned, Remains};
use super::{FlowError, standing::decide_price};
use crate::{
    case::Run,
    journal::{self, Ledger},
    room::RoomPolicy,
    steps::clean_room::{artifacts, size::decide_room},
};

/// What the reason of a drill's case begins with: the log says that it is one.
const REASON: &str = "cleanroom drill";

/// What a drill launches where nobody says otherwise.
pub const INSTANCE_TYPE: &str = "t3.micro";

/// GiB of the instance's only volume: what Amazon Linux has.
const GIB: u32 = 8;

/// How long an instance may take to run.
const RUNNING_WITHIN: Duration = Duration::from_secs(300);

/// A drill's name, which is its case: by the time, and a few digits of what nobody else has.
#[must_use]
pub fn name(now: Timestamp, nonce: &str) -> CaseId {
    let digits: String = now.to_string().chars().filter(char::is_ascii_digit).collect();
    let at = |from: usize, to: usize| digits.get(from..to).unwrap_or("0").to_owned();
    let some: String = nonce.chars().filter(char::is_ascii_hexdigit).take(6).collect();
    let name = format!("drill-{}-{}-{some}", at(0, 8), at(8, 14));
    name.parse().unwrap_or_else(|_| unreachable!("digits and hyphens fit a case id"))
}

/// The reason that a drill's case is opened with.
#[must_use]
pub fn reason(drill: &CaseId) -> String {
    format!("{REASON} {drill}: nothing is wrong with this instance")
}

/// What people want of a drill.
#[derive(Clone, Debug)]
pub struct Wanted {
    /// The subnet; none for one of the default VPC.
    pub subnet: Option<String>,
    /// The instance's type.
    pub instance_type: String,
    /// The AMI; none for Amazon's newest.
    pub image: Option<ImageId>,
    /// Whether the state machine responds, and not this program.
    pub machine: bool,
}

/// What a drill would make, before it makes anything.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Proposal {
    /// Its name, which is its case.
    pub drill: CaseId,
    /// The AMI.
    pub image: ImageId,
    /// The instance's type.
    pub instance_type: String,
    /// The subnet; none for one of the default VPC.
    pub subnet: Option<String>,
    /// What it makes, a line each.
    pub makes: Vec<String>,
    /// What that costs about, a line each: list prices of us-east-1 in US dollars.
    pub costs: Vec<String>,
    /// What it may do that a response may not, a line each.
    pub needs: Vec<String>,
}

/// Looks at what a drill would make.
///
/// # Errors
/// When there is no image.
pub async fn propose(run: &Run, drill: CaseId, wanted: Wanted) -> Result<Proposal, FlowError> {
    let policy = RoomPolicy { image: wanted.image, ..run.policy.room.clone() };
    let found = artifacts::image(&*run.cloud.inventory, &policy).await;
    let (image, called) = found.map_err(FlowError::Case)?;
    let room = match artifacts::latest(&*run.cloud.store).await {
        // The state machine has settings of its own.
        Ok(latest) => latest.is_some() || run.policy.room.agent.is_some() && !wanted.machine,
        Err(_) => false,
    };
    let subnet = wanted.subnet.clone().unwrap_or_else(|| "the default VPC".to_owned());
    let kind = &wanted.instance_type;
    let called = called.map(|name| format!(" ({name})")).unwrap_or_default();
    let mut makes = vec![
        format!(
            "an instance, {kind} from {image}{called}, in {subnet}: no profile, no key pair, user data that does nothing"
        ),
        format!("the case {drill}, and all that respond makes: snapshots, record, custody log"),
    ];
    if wanted.machine {
        let execution = format!(
            "the execution {drill} of the state machine, as an alert starts one: its functions do every step"
        );
        makes.insert(1, execution);
    }
    makes.push(if room {
        "a clean room on the snapshots, since the bucket has an agent".to_owned()
    } else {
        "no clean room: the bucket has no agent (cleanroom deploy)".to_owned()
    });
    let needs = ["ec2:RunInstances", "ec2:TerminateInstances", "ec2:DeleteSnapshot"]
        .map(|action| format!("{action}, on what is tagged cleanroom:drill=drill-* only"));
    Ok(Proposal {
        image,
        makes,
        costs: costs(kind, room, wanted.machine),
        needs: needs.into(),
        instance_type: wanted.instance_type,
        subnet: wanted.subnet,
        drill,
    })
}

/// What a drill costs about, by list prices of us-east-1 (aws.amazon.com/ec2/pricing/on-demand, aws.amazon.com/vpc/pricing,
/// aws.amazon.com/ebs/pricing, aws.amazon.com/step-functions/pricing).
fn costs(instance_type: &str, room: bool, machine: bool) -> Vec<String> {
    let instance = match instance_type {
        INSTANCE_TYPE => "0.010 USD".to_owned(),
        other => format!("what a {other} costs"),
    };
    let mut costs = vec![
        format!("the instance: {instance} an hour, 0.001 for its disk, 0.005 for a public address"),
        format!(
            "its snapshots until they are deleted: at most {:.2} USD a month",
            f64::from(GIB) * 0.05
        ),
    ];
    if room {
        let size = decide_room(&[GIB]);
        let parameters = BTreeMap::from([
            ("InstanceType".to_owned(), size.instance_type.to_owned()),
            ("RootGib".to_owned(), size.root_gib.to_string()),
            ("Iops".to_owned(), size.iops.to_string()),
            ("Throughput".to_owned(), size.throughput.to_string()),
            ("Topic".to_owned(), "one".to_owned()),
        ]);
        let hour = decide_price(&parameters, &[GIB], true);
        costs.push(format!("the clean room until it is taken down: {hour:.3} USD an hour"));
    }
    if machine {
        costs.push("the execution and its functions: less than 0.01 USD".to_owned());
    }
    costs.push("log, record and bundle, which stay: cents a month".to_owned());
    costs
}

/// A change that can be repeated harmlessly, a few times while that may help.
async fn applied(run: &Run, change: &Change) -> cleanroom_cloud::Result<Made> {
    let mut pause = Duration::from_millis(200);
    for _ in 0..4 {
        match run.cloud.hands.apply(change).await {
            Err(error) if error.is_transient() => tokio::time::sleep(pause).await,
            ended => return ended,
        }
        pause *= 2;
    }
    run.cloud.hands.apply(change).await
}

/// Launches the drill's instance, and waits until it runs. Twice with one name launches one.
///
/// # Errors
/// When EC2 does not launch it, or it ends instead of running, or takes too long. It may be there all the same: what is
/// left is found by the drill's name.
pub async fn launch(run: &Run, proposal: &Proposal) -> Result<Instance, FlowError> {
    let drill = &proposal.drill;
    let change = Change::RunDrill {
        drill: drill.clone(),
        image: proposal.image.clone(),
        instance_type: proposal.instance_type.clone(),
        subnet: proposal.subnet.clone(),
    };
    let failed = |source| FlowError::Cloud { what: format!("the launch of {drill}"), source };
    let Made::Instance(id) = applied(run, &change).await.map_err(failed)? else {
        return Err(FlowError::Case(format!("{drill} was launched, and its id was not told")));
    };
    let ends = Instant::now() + RUNNING_WITHIN;
    loop {
        match run.cloud.inventory.get_instance(&id).await {
            Ok(there) if there.state == InstanceState::Running => return Ok(there),
            Ok(there) if there.state.is_ending() => {
                let why = format!(
                    "{id} of {drill} ended instead of running: see why with aws ec2 describe-instances --instance-ids {id}"
                );
                return Err(FlowError::Case(why));
            }
            // What was just launched may not show for a moment.
            Err(error) if !error.is_transient() && error.kind != ErrorKind::NotFound => {
                return Err(failed(error));
            }
            _ => {}
        }
        if Instant::now() >= ends {
            let why = format!("{id} of {drill} does not run {} s after", RUNNING_WITHIN.as_secs());
            return Err(FlowError::Case(why));
        }
        tokio::time::sleep(run.bounds.poll.min(Duration::from_secs(2))).await;
    }
}

/// How long what took, in seconds. Each but the first counts from the beginning of the response.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Times {
    /// The drill.
    pub drill: CaseId,
    /// Its instance.
    pub instance: InstanceId,
    /// From the call until the instance ran.
    pub launched: f64,
    /// Until every interface was read back as isolated.
    pub contained: Option<f64>,
    /// Until every volume had a whole snapshot.
    pub preserved: Option<f64>,
    /// Until the report was read back; none where there is no clean room.
    pub reported: Option<f64>,
    /// Whether nothing is short.
    pub whole: bool,
}

/// The times of a response that began at `began`, by the custody log: the same whoever responded.
///
/// # Errors
/// When the log can not be read.
pub async fn times(
    run: &Run,
    drill: &CaseId,
    (instance, launched, began): (&InstanceId, f64, Timestamp),
) -> Result<Times, FlowError> {
    let events = journal::read(&*run.cloud.store, drill).await?;
    let ledger = Ledger::of(events.iter().map(|(event, _)| event));
    let after = |at: Option<Timestamp>| at.map(|at| seconds(began, at));
    let reported = ledger.reports.values().map(|examined| examined.at).min();
    Ok(Times {
        drill: drill.clone(),
        instance: instance.clone(),
        launched,
        contained: after(ledger.contained_at),
        preserved: after(ledger.preserved_at),
        reported: after(reported),
        whole: ledger.shortfalls.is_empty()
            && ledger.contained_at.is_some()
            && ledger.preserved_at.is_some(),
    })
}

/// Seconds from one time to a later one.
fn seconds(from: Timestamp, to: Timestamp) -> f64 {
    let whole = i32::try_from(to.seconds.saturating_sub(from.seconds)).unwrap_or(i32::MAX);
    f64::from(whole) + (f64::from(to.nanos) - f64::from(from.nanos)) / 1e9
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_drill_is_named_by_its_time_and_by_what_nobody_else_has() {
        let now = Timestamp { seconds: 1_767_225_600, nanos: 5 };
        let name = name(now, "0123456789abcdef");
        assert_eq!(name.as_str(), "drill-20260101-000000-012345");
        assert!(cleanroom_cloud::is_drill(&name));
        assert!(reason(&name).starts_with(REASON));
    }

    #[test]
    fn a_time_is_told_to_the_nanosecond() {
        let at = |seconds, nanos| Timestamp { seconds, nanos };
        let took = seconds(at(1_767_225_600, 900_000_000), at(1_767_225_602, 400_000_000));
        assert!((took - 1.5).abs() < 1e-9, "{took}");
    }

    #[test]
    fn what_a_drill_costs_has_a_room_where_there_is_one() {
        assert!(costs(INSTANCE_TYPE, false, true).iter().all(|line| !line.contains("room")));
        let with = costs(INSTANCE_TYPE, true, false);
        assert!(with.iter().any(|line| line.contains("0.2") && line.contains("room")), "{with:?}");
        assert!(costs("m7i.large", false, false)[0].contains("m7i.large"));
    }
}
