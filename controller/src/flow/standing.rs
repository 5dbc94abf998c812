//! The clean rooms that stand for a case, and about what they cost: nobody is to forget one.
//!
//! Looks only. Prices are list prices of us-east-1 in US dollars; what is not in them (requests, traffic, the DNS firewall) is
//! negligible beside them.

use std::{collections::BTreeMap, fmt};

use cleanroom_cloud::{ErrorKind, InstanceState, Result, Stack, StackState};
use cleanroom_contract::{InstanceId, Timestamp, VolumeId};
use serde::Serialize;

use crate::{case::Case, steps::clean_room};

/// Hours of a month, as AWS counts them.
const HOURS: f64 = 730.0;
/// An instance an hour, by its type (aws.amazon.com/ec2/pricing/on-demand). All types that a room is made with.
const INSTANCES: [(&str, f64); 5] = [
    ("m6i.xlarge", 0.192),
    ("m6i.2xlarge", 0.384),
    ("m6i.4xlarge", 0.768),
    ("m6i.8xlarge", 1.536),
    ("m6i.16xlarge", 3.072),
];
/// An interface endpoint an hour (aws.amazon.com/privatelink/pricing).
const ENDPOINT: f64 = 0.01;
/// Endpoints that every room with a network of its own has: cloudformation, logs, ssm, ssmmessages.
const ENDPOINTS: f64 = 4.0;
/// A GiB of gp3 a month (aws.amazon.com/ebs/pricing).
const GIB: f64 = 0.08;
/// An operation a second a month, above those that come with a volume.
const IOPS: (f64, f64) = (0.005, 3_000.0);
/// A MiB a second a month, above those that come with a volume.
const THROUGHPUT: (f64, f64) = (0.04, 125.0);

/// A room, as it stands.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Standing {
    /// Its stack.
    pub stack: String,
    /// How that is, in CloudFormation's word.
    pub status: String,
    /// Whether anything of it stands: a stack that was rolled back has nothing left, one that is being deleted soon has.
    pub stands: bool,
    /// The room's instance.
    pub instance: Option<InstanceId>,
    /// How that is, in EC2's word, or `gone`; none where it is not known.
    pub state: Option<String>,
    /// When the stack was begun.
    pub since: Timestamp,
    /// About what it costs an hour, in US dollars.
    pub dollars_an_hour: f64,
}

impl fmt::Display for Standing {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} {}", self.stack, self.status)?;
        if !self.stands {
            return f.write_str(": nothing of it stands");
        }
        if let Some(instance) = &self.instance {
            write!(f, ", instance {instance} {}", self.state.as_deref().unwrap_or("unknown"))?;
        }
        write!(f, ", about {:.3} USD an hour", self.dollars_an_hour)
    }
}

/// The volumes that a stack made.
pub(super) fn copies(stack: &Stack) -> Vec<VolumeId> {
    let of = |(name, value): (&String, &String)| {
        name.starts_with("Volume").then(|| value.parse().ok()).flatten()
    };
    stack.outputs.iter().filter_map(of).collect()
}

/// The case's rooms, as many as it may have; none of those of which there is no stack of the name, or that is another case's.
///
/// # Errors
/// When the cloud does not say.
pub(super) async fn look(case: &Case, rooms: u32) -> Result<Vec<Standing>> {
    let stacks = clean_room::stacks(&case.scene.inventory, &case.scene.case, rooms).await?;
    let mut all = Vec::new();
    for (_, stack) in stacks {
        if clean_room::is_ours(&case.scene, &stack) {
            all.push(look_at(case, stack).await?);
        }
    }
    Ok(all)
}

async fn look_at(case: &Case, stack: Stack) -> Result<Standing> {
    let inventory = &case.scene.inventory;
    let stands =
        !matches!(stack.state, StackState::Failed | StackState::RollingBack | StackState::Deleting);
    let instance = stack.outputs.get("Instance").and_then(|id| id.parse::<InstanceId>().ok());
    let (state, runs) = match &instance {
        None => (None, true),
        Some(id) => match inventory.get_instance(id).await {
            Ok(there) => {
                let runs = matches!(there.state, InstanceState::Pending | InstanceState::Running);
                let word = serde_json::to_value(there.state).ok();
                (word.and_then(|word| word.as_str().map(str::to_owned)), runs)
            }
            Err(error) if error.kind == ErrorKind::NotFound => (Some("gone".to_owned()), false),
            Err(error) => return Err(error),
        },
    };
    let copies = inventory.volumes(&copies(&stack)).await?;
    let gib: Vec<_> = copies.iter().map(|copy| copy.size).collect();
    let dollars_an_hour = if stands { decide_price(&stack.parameters, &gib, runs) } else { 0.0 };
    let (status, since) = (stack.status, stack.created);
    Ok(Standing { stack: stack.name, status, stands, instance, state, since, dollars_an_hour })
}

/// About what a room costs an hour, by its stack's parameters and the GiB of its copies.
pub(super) fn decide_price(
    parameters: &BTreeMap<String, String>,
    copies: &[u32],
    runs: bool,
) -> f64 {
    let given = |name: &str| parameters.get(name).map(String::as_str).unwrap_or_default();
    let number = |name: &str| given(name).parse::<f64>().unwrap_or_default();
    let kind = INSTANCES.iter().find(|(kind, _)| runs && *kind == given("InstanceType"));
    let instance = kind.map_or(0.0, |(_, price)| *price);
    let extra = |yes: bool| if yes { 1.0 } else { 0.0 };
    let endpoints = if given("Vpc").is_empty() {
        ENDPOINTS + extra(!given("Topic").is_empty()) + extra(given("UsesStates") == "true")
    } else {
        // A shared network pays once for all of its rooms.
        0.0
    };
    let gib = number("RootGib") + copies.iter().map(|gib| f64::from(*gib)).sum::<f64>();
    let beyond = |name: &str, (price, free): (f64, f64)| (number(name) - free).max(0.0) * price;
    let each = beyond("Iops", IOPS) + beyond("Throughput", THROUGHPUT);
    let disks = gib * GIB + copies.iter().map(|_| each).sum::<f64>();
    instance + endpoints * ENDPOINT + disks / HOURS
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::steps::clean_room::size::decide_room;

    #[test]
    fn every_room_that_is_made_has_a_price() {
        for gib in [1, 512, 2_048, 16_384] {
            for count in [1, 24] {
                let kind = decide_room(&vec![gib; count]).instance_type;
                assert!(INSTANCES.iter().any(|(known, _)| *known == kind), "{kind}");
            }
        }
    }

    #[test]
    fn the_readme_s_example_costs_what_it_says() {
        let parameters = |more: &[(&str, &str)]| -> BTreeMap<String, String> {
            let fixed = [
                ("InstanceType", "m6i.2xlarge"),
                ("Topic", "arn:aws:sns:us-east-1:123456789012:incidents"),
                ("RootGib", "67"),
                ("Iops", "3000"),
                ("Throughput", "149"),
            ];
            let all = fixed.iter().chain(more);
            all.map(|(name, value)| ((*name).to_owned(), (*value).to_owned())).collect()
        };
        for (more, copies, runs, expected) in [
            (&[][..], &[8, 100][..], true, "0.456"),
            (&[], &[8, 100], false, "0.072"),
            (&[("UsesStates", "true")], &[8, 100], true, "0.466"),
            (&[("Vpc", "vpc-1")], &[8, 100], true, "0.406"),
            (&[("Iops", "5000")], &[8, 100], true, "0.483"),
            // Being made: what it consists of is not told yet.
            (&[], &[], true, "0.441"),
            (&[("InstanceType", "m7i.large")], &[8, 100], true, "0.072"),
        ] {
            let price = decide_price(&parameters(more), copies, runs);
            assert_eq!(format!("{price:.3}"), expected, "{more:?} {copies:?} {runs}");
        }
    }
}
