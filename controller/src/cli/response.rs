//! What `plan` and `respond` take: which instances, which steps, how far, and who does it. Touches nothing.

use std::{collections::BTreeSet, path::PathBuf};

use clap::{Args, ValueEnum};
use cleanroom_contract::{CaseId, Sha256};
use cleanroom_controller::case::Step;

/// Which instances.
#[derive(Debug, Args)]
pub(crate) struct Targets {
    /// Instances: id, ARN, private or public address, or Name tag.
    #[arg(value_name = "ID", required_unless_present = "file")]
    pub ids: Vec<String>,

    /// File of instances, one a line, # begins a comment; - is standard input.
    #[arg(long, value_name = "IDS", conflicts_with = "ids")]
    pub file: Option<PathBuf>,

    /// Go on without the lines of --file that name no instance.
    #[arg(long)]
    pub skip_bad: bool,

    /// A person's reason, for the custody log.
    #[arg(long, value_name = "TEXT")]
    pub reason: Option<String>,
}

/// Which steps.
#[derive(Debug, Default, Args)]
#[command(next_help_heading = "Steps")]
pub(crate) struct Steps {
    /// Do these steps only, separated by commas; verify always is.
    #[arg(long, value_name = "STEP", value_delimiter = ',', value_parser = step_parser())]
    pub only: Vec<Step>,

    /// Leave these steps out, separated by commas.
    #[arg(long, value_name = "STEP", value_delimiter = ',', value_parser = step_parser())]
    pub skip: Vec<Step>,

    /// Stop after this step.
    #[arg(long, value_name = "STEP", value_parser = step_parser())]
    pub until: Option<Step>,
}

/// How evidence is kept, and how far containment goes.
#[derive(Debug, Default, Args)]
#[command(next_help_heading = "Evidence and containment")]
pub(crate) struct Evidence {
    /// Refuse, instead of going on, where the custody log can not be written.
    #[arg(long)]
    pub require_custody: bool,

    /// Register an image of the evidence too.
    #[arg(long)]
    pub image: bool,

    /// Lock the snapshots for so many days.
    #[arg(long, value_name = "DAYS", value_parser = clap::value_parser!(u32).range(1..=36_500))]
    pub lock: Option<u32>,

    /// Deny the host's addresses in the network ACLs of its VPC too.
    #[arg(long)]
    pub nacl: bool,

    /// The case's own KMS key, to which snapshots under other keys are copied.
    #[arg(long, value_name = "ARN")]
    pub kms_key: Option<String>,
}

/// What the clean room is made of, and what it looks for.
#[derive(Clone, Debug, Default, Args)]
#[command(next_help_heading = "Clean room")]
pub(crate) struct Room {
    /// YARA rules: a file, or a folder of them. May be given several times.
    #[arg(long, value_name = "PATH")]
    pub rules: Vec<PathBuf>,

    /// Indicator lists: a file, or a folder of them. May be given several times.
    #[arg(long, value_name = "PATH")]
    pub indicators: Vec<PathBuf>,

    /// The agent in the bucket [default: the newest that was deployed].
    #[arg(long, value_name = "KEY@sha256=DIGEST", value_parser = agent)]
    pub agent: Option<Agent>,

    /// AMI of the room [default: Amazon's newest Amazon Linux 2023].
    #[arg(long, value_name = "AMI")]
    pub image_id: Option<String>,

    /// Role in which CloudFormation makes the room [default: with the caller's own rights].
    #[arg(long, value_name = "ARN")]
    pub room_role: Option<String>,
}

/// A file in the bucket, by its digest.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Agent {
    pub key: String,
    pub sha256: Sha256,
}

pub(crate) fn agent(text: &str) -> Result<Agent, String> {
    let (key, sha256) = cleanroom_controller::room::agent(text)?;
    Ok(Agent { key, sha256 })
}

#[derive(Debug, Args)]
pub(crate) struct Plan {
    #[command(flatten)]
    pub targets: Targets,

    #[command(flatten)]
    pub steps: Steps,

    #[command(flatten)]
    pub evidence: Evidence,

    #[command(flatten)]
    pub room: Room,
}

#[derive(Debug, Args)]
pub(crate) struct Respond {
    #[command(flatten)]
    pub targets: Targets,

    /// The case's name; with one instance only [default: the instance's id and a number].
    #[arg(long, value_name = "CASE")]
    pub case: Option<CaseId>,

    #[command(flatten)]
    pub steps: Steps,

    #[command(flatten)]
    pub evidence: Evidence,

    #[command(flatten)]
    pub room: Room,

    /// Instances on the way to being contained at a time; snapshots and what else follows keep nobody waiting [default: 8].
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u16).range(1..=200))]
    pub concurrency: Option<u16>,

    /// Who does it. The state machine goes on without this machine; what it does is set in the response stack.
    #[arg(long, value_name = "WHERE", default_value = "here")]
    pub via: Via,
}

/// Who does the steps of a response.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum Via {
    /// This program.
    Here,
    /// The state machine of the response stack.
    Aws,
}

impl Respond {
    /// The flags that were given and that only this program's own steps obey.
    pub(crate) fn only_here(&self) -> Vec<&'static str> {
        let (steps, evidence, room) = (&self.steps, &self.evidence, &self.room);
        let given = [
            ("--only", !steps.only.is_empty()),
            ("--skip", !steps.skip.is_empty()),
            ("--until", steps.until.is_some()),
            ("--require-custody", evidence.require_custody),
            ("--image", evidence.image),
            ("--lock", evidence.lock.is_some()),
            ("--nacl", evidence.nacl),
            ("--kms-key", evidence.kms_key.is_some()),
            ("--rules", !room.rules.is_empty()),
            ("--indicators", !room.indicators.is_empty()),
            ("--agent", room.agent.is_some()),
            ("--image-id", room.image_id.is_some()),
            ("--room-role", room.room_role.is_some()),
            ("--concurrency", self.concurrency.is_some()),
        ];
        given.into_iter().filter(|(_, given)| *given).map(|(flag, _)| flag).collect()
    }
}

/// Steps by name, listed in the help and in completions.
fn step_parser() -> impl clap::builder::TypedValueParser<Value = Step> {
    use clap::builder::{PossibleValuesParser, TypedValueParser as _};
    PossibleValuesParser::new(Step::ALL.map(Step::as_str)).try_map(|name| name.parse::<Step>())
}

impl Steps {
    /// The steps that are left, verify always among them.
    ///
    /// # Errors
    /// When nothing but verify is.
    pub(crate) fn chosen(&self) -> Result<BTreeSet<Step>, String> {
        let last = self.until.unwrap_or(Step::CleanRoom);
        let within = Step::ALL.iter().take_while(|step| **step != last).chain([&last]);
        let wanted = |step: &Step| self.only.is_empty() || self.only.contains(step);
        let mut steps: BTreeSet<Step> =
            within.copied().filter(|step| wanted(step) && !self.skip.contains(step)).collect();
        let given = !self.only.is_empty() || !self.skip.is_empty() || self.until.is_some();
        let only_verify = steps.iter().all(|step| *step == Step::Verify);
        if given
            && only_verify
            && !self.only.contains(&Step::Verify)
            && self.until != Some(Step::Verify)
        {
            return Err("--only, --skip and --until leave no step to do".to_owned());
        }
        steps.insert(Step::Verify);
        Ok(steps)
    }
}

impl Steps {
    /// Whether the clean room was asked for by name.
    pub(crate) fn asks_for_a_room(&self) -> bool {
        self.only.contains(&Step::CleanRoom) || self.until == Some(Step::CleanRoom)
    }
}

#[cfg(test)]
mod tests {
    use clap::Parser as _;

    use super::*;
    use crate::cli::{Cli, Command};

    #[test]
    fn what_only_this_program_obeys_is_named() {
        let parsed = |line: &str| {
            let words = ["cleanroom", "respond", "i-0123456789abcdef0", "--via", "aws"];
            match Cli::try_parse_from(words.into_iter().chain(line.split_whitespace())) {
                Ok(Cli { command: Command::Respond(args), .. }) => args.only_here(),
                other => panic!("{other:?}"),
            }
        };
        assert_eq!(parsed("--reason x --case c"), [""; 0]);
        assert_eq!(
            parsed(
                "--only isolate --skip tag --until isolate --require-custody --image --lock 3 --nacl"
            ),
            ["--only", "--skip", "--until", "--require-custody", "--image", "--lock", "--nacl"]
        );
        assert_eq!(
            parsed(
                "--kms-key k --rules r --indicators i --image-id a --room-role r --concurrency 8"
            ),
            ["--kms-key", "--rules", "--indicators", "--image-id", "--room-role", "--concurrency"]
        );
    }

    #[test]
    fn steps_are_chosen_by_only_skip_and_until() {
        use Step as S;
        let chosen = |only: &[S], skip: &[S], until| {
            Steps { only: only.to_vec(), skip: skip.to_vec(), until }
                .chosen()
                .map(|steps| steps.into_iter().collect::<Vec<_>>())
        };
        assert_eq!(chosen(&[], &[], None), Ok(S::ALL.to_vec()));
        assert_eq!(chosen(&[S::Isolate], &[], None), Ok(vec![S::Verify, S::Isolate]));
        assert_eq!(chosen(&[S::Isolate, S::Tag], &[S::Tag], None), Ok(vec![S::Verify, S::Isolate]));
        assert_eq!(
            chosen(&[], &[S::Protect], Some(S::Snapshot)),
            Ok(vec![S::Verify, S::Detach, S::Snapshot])
        );
        assert_eq!(chosen(&[], &[], Some(S::Verify)), Ok(vec![S::Verify]));
        assert!(chosen(&[S::Tag], &[S::Tag], None).is_err());
        assert!(chosen(&[S::Notify], &[], Some(S::Detach)).is_err());
    }

    #[test]
    fn a_list_of_steps_takes_no_instance_for_a_step() {
        let words = "cleanroom respond --only snapshot,isolate --skip tag i-0123456789abcdef0 --region eu-west-1";
        let cli = Cli::try_parse_from(words.split(' ')).expect("this may be typed");
        let Command::Respond(respond) = cli.command else { panic!("it is respond") };
        assert_eq!(respond.steps.only, [Step::Snapshot, Step::Isolate]);
        assert_eq!(respond.steps.skip, [Step::Tag]);
        assert_eq!(respond.targets.ids, ["i-0123456789abcdef0"]);
        assert_eq!(cli.global.region.as_deref(), Some("eu-west-1"));
    }
}
