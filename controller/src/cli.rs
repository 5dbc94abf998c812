//! What may be typed.
//!
//! Purpose: the command line, and as much of its validation as needs neither a file nor the network. Touches nothing.

use std::{collections::BTreeSet, path::PathBuf};

use clap::{Args, Parser, Subcommand, ValueEnum};
use cleanroom_contract::{CaseId, ScanId, Sha256};
use cleanroom_controller::{
    case::Step, flow::drill::INSTANCE_TYPE, steps::revoke::principal::Principal,
};

/// Contains EC2 instances and preserves their evidence: cut off and read back within seconds, every volume
/// snapshotted, every act in a custody log, and back to what was there on a person's word.
#[derive(Debug, Parser)]
#[command(name = "cleanroom", version, max_term_width = 100, after_help = EXIT_STATUS)]
pub(crate) struct Cli {
    #[command(subcommand)]
    pub command: Command,

    #[command(flatten)]
    pub global: Global,
}

/// The one place where exit statuses are documented.
const EXIT_STATUS: &str = "\
Exit status:
  0    complete
  1    failed or refused: at least one instance or case was not acted on
  2    the command line, the ids file or a setting is wrong; nothing was changed
  3    contained in part, or with shortfalls; a report that lacks something.
       Without an agent in the bucket there is no report: that is a note, and a
       shortfall only where clean_room was asked for by --only or --until
       status: a case is open, partial or drifted
       preflight: something is missing
       custody verify: the log is not what was written
  4    report, fetch: the scan that was named is not in the custody log
  130  ended by Ctrl-C, 143 by SIGTERM: no interface is left open, and respond
       goes on where it was; with --via aws the response itself goes on

Settings come from flags, then the environment (CLEANROOM_BUCKET,
CLEANROOM_TOPIC, CLEANROOM_KMS_KEY, CLEANROOM_FORENSIC_ACCOUNT,
CLEANROOM_FORENSIC_KEY, CLEANROOM_CONFIG, and AWS_* as for every AWS tool), then cleanroom.toml, then the outputs of the response stack.
`cleanroom preflight` shows the source of each.";

/// Flags of every command.
#[derive(Clone, Debug, Default, Args)]
#[command(next_help_heading = "Account and settings")]
pub(crate) struct Global {
    /// Profile of the AWS configuration files.
    #[arg(long, global = true, value_name = "NAME")]
    pub profile: Option<String>,

    /// Region.
    #[arg(long, global = true, value_name = "REGION")]
    pub region: Option<String>,

    /// Role of a member account to act as.
    #[arg(long, global = true, value_name = "ARN")]
    pub assume_role: Option<String>,

    /// Role of another account, the forensic account, in which evidence is copied and examined.
    #[arg(long, global = true, value_name = "ROLE_ARN")]
    pub forensic_account: Option<String>,

    /// KMS key of what is copied there [default: that account's default for volumes].
    #[arg(long, global = true, value_name = "ARN")]
    pub forensic_key: Option<String>,

    /// Evidence bucket.
    #[arg(long, global = true, value_name = "NAME")]
    pub bucket: Option<String>,

    /// SNS topic of the team.
    #[arg(long, global = true, value_name = "ARN")]
    pub topic: Option<String>,

    /// Response stack whose outputs name bucket, topic and key where nothing else does.
    #[arg(long, global = true, value_name = "NAME", default_value = "cleanroom")]
    pub stack: String,

    /// Settings file [default: cleanroom.toml here, else in the user's configuration folder].
    #[arg(long, global = true, value_name = "FILE")]
    pub config: Option<PathBuf>,

    /// What to print [default: human on a terminal, jsonl in a pipe].
    #[arg(long, global = true, value_name = "FORMAT", help_heading = "Output")]
    pub format: Option<Format>,

    /// Append one JSON line for each attempt of a call to AWS.
    #[arg(long, global = true, value_name = "FILE", help_heading = "Output")]
    pub call_log: Option<PathBuf>,

    /// Print without colours; NO_COLOR does the same.
    #[arg(long, global = true, help_heading = "Output")]
    pub no_color: bool,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum Format {
    /// For people.
    Human,
    /// One JSON record a line.
    Jsonl,
}

#[derive(Debug, Subcommand)]
pub(crate) enum Command {
    /// Check that account, bucket, topic, permissions and logging are ready for an incident. Changes nothing.
    Preflight,
    /// Show every change that respond would make. Changes nothing.
    Plan(Box<Plan>),
    /// Contain instances and preserve their evidence; run again, it goes on where it was.
    Respond(Box<Respond>),
    /// Look again at how cases stand; an interface found open is closed.
    Status {
        /// Only this one, released or not.
        case: Option<CaseId>,
    },
    /// Show what the newest report of a case says.
    Report {
        /// The case.
        case: CaseId,
        /// The scan [default: the newest of each of the case's rooms that was read back into the custody log].
        #[arg(long, value_name = "SCAN")]
        scan: Option<ScanId>,
    },
    /// Bring a bundle here and compare every byte with its sums; run again, it goes on.
    Fetch(Fetch),
    /// Examine a case's snapshots again, with other rules.
    Rescan(Box<Rescan>),
    /// Delete a case's clean room; snapshots, records, bundles and the custody log stay.
    Teardown(Teardown),
    /// Set up or change the response stack, and put the programs of a clean room into the bucket.
    Deploy(Box<Deploy>),
    /// Rehearse: launch a harmless instance, respond to it, tell the times, take it all away again.
    Drill(Drill),
    /// List the cases of this account and Region.
    Cases {
        /// Only those that are open, the oldest first: since when, and what is done last.
        #[arg(long)]
        open: bool,
    },
    /// The custody log.
    #[command(subcommand)]
    Custody(Custody),
    /// Answer a case that waits for a person's word: contain its instance, or leave it as it is.
    Approve(Approve),
    /// Put an instance back to what was recorded before the response.
    Release(Release),
    /// Cut off a role's present sessions, or a user and their keys.
    Revoke(Revoke),
    /// Show what eradication and recovery still need.
    Recover {
        /// The case.
        case: CaseId,
    },
    /// End a case with its post-incident record.
    Close {
        /// The case.
        case: CaseId,
        /// Why, for the record.
        #[arg(long, value_name = "TEXT")]
        reason: Option<String>,
    },
    /// Print completions for a shell.
    Completions {
        /// The shell.
        shell: clap_complete::Shell,
    },
    /// Print the manual page, or write one for each command.
    Man {
        /// Write all pages into this folder.
        #[arg(long, value_name = "DIR")]
        out: Option<PathBuf>,
    },
}

#[derive(Debug, Subcommand)]
pub(crate) enum Custody {
    /// Check numbering, chain, nonces, versions, delete markers and every digest.
    Verify {
        /// The case.
        case: CaseId,
    },
}

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
pub(crate) struct Fetch {
    /// The case.
    pub case: CaseId,

    /// The scan [default: the newest of each of the case's rooms that was read back into the custody log].
    #[arg(long, value_name = "SCAN")]
    pub scan: Option<ScanId>,

    /// The folder; each bundle in its own, room-N, where the case has several rooms [default: ./CASE-SCAN].
    #[arg(long, value_name = "DIR")]
    pub out: Option<PathBuf>,
}

#[derive(Debug, Args)]
pub(crate) struct Rescan {
    /// The case.
    pub case: CaseId,

    #[command(flatten)]
    pub room: Room,
}

#[derive(Debug, Args)]
pub(crate) struct Teardown {
    /// The case.
    pub case: CaseId,

    /// Do not ask.
    #[arg(long)]
    pub yes: bool,
}

#[derive(Debug, Args)]
pub(crate) struct Deploy {
    /// Folder with cleanroom-agent and cleanroom-lambda.zip, and with SHA256SUMS where digests are to be compared:
    /// cargo package-release makes it.
    #[arg(long, value_name = "DIR", required_unless_present = "delete")]
    pub artifacts: Option<PathBuf>,

    /// Offline bundle of tools for investigators, which rooms unpack: cargo package-tools makes it.
    #[arg(long, value_name = "FILE")]
    pub tools: Option<PathBuf>,

    /// YARA rules of scans for which nobody names others: a file, or a folder of them. May be given several times
    /// [default: rules of [room] in --settings, else those that are there].
    #[arg(long, value_name = "PATH", conflicts_with = "delete")]
    pub rules: Vec<PathBuf>,

    /// Indicator lists, likewise.
    #[arg(long, value_name = "PATH", conflicts_with = "delete")]
    pub indicators: Vec<PathBuf>,

    /// Upload agent, tools, rules and indicators alone, into the evidence bucket that is configured; the response stack stays as it is.
    #[arg(long, conflicts_with_all = ["settings", "parameters", "artifacts_bucket", "delete"])]
    pub agent_only: bool,

    /// Settings of the response stack's functions [default: those that it has].
    #[arg(long, value_name = "FILE")]
    pub settings: Option<PathBuf>,

    /// Parameter of the response stack [default: what it has]. May be given several times.
    #[arg(long = "parameter", value_name = "NAME=VALUE", value_parser = parameter)]
    pub parameters: Vec<(String, String)>,

    /// Bucket of programs, state machines and template [default: what the stack has, else
    /// cleanroom-artifacts-ACCOUNT-REGION; made where it is not there].
    #[arg(long, value_name = "NAME")]
    pub artifacts_bucket: Option<String>,

    /// Role in which people respond and release, for the policy that reserves tags. May be given several times.
    #[arg(long, value_name = "ROLE_ARN")]
    pub exempt: Vec<String>,

    /// Delete the response stack. Evidence, its key and the logs stay.
    #[arg(long, conflicts_with_all = ["artifacts", "tools", "settings", "parameters", "artifacts_bucket", "exempt"])]
    pub delete: bool,

    /// Do not ask.
    #[arg(long)]
    pub yes: bool,
}

fn parameter(text: &str) -> Result<(String, String), String> {
    let (name, value) =
        text.split_once('=').filter(|(name, _)| !name.is_empty()).ok_or("give NAME=VALUE")?;
    Ok((name.to_owned(), value.to_owned()))
}

#[derive(Debug, Args)]
pub(crate) struct Drill {
    /// Subnet of the instance [default: one of the default VPC].
    #[arg(long, value_name = "SUBNET")]
    pub subnet: Option<String>,

    /// Type of the instance.
    #[arg(long, value_name = "TYPE", default_value = INSTANCE_TYPE)]
    pub instance_type: String,

    /// AMI of the instance [default: Amazon's newest Amazon Linux 2023].
    #[arg(long, value_name = "AMI")]
    pub image_id: Option<String>,

    /// Leave everything as the response left it; --clean takes it away later.
    #[arg(long)]
    pub keep: bool,

    /// Launch nothing: take away what an earlier drill left.
    #[arg(long, value_name = "CASE", conflicts_with_all = ["subnet", "instance_type", "image_id", "keep"])]
    pub clean: Option<CaseId>,

    /// Do not ask.
    #[arg(long)]
    pub yes: bool,
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

#[derive(Debug, Args)]
pub(crate) struct Approve {
    /// The case.
    pub case: CaseId,

    /// Leave the instance as it is, preserved and watched.
    #[arg(long)]
    pub refuse: bool,

    /// Do not ask.
    #[arg(long)]
    pub yes: bool,

    /// Why, for the custody log.
    #[arg(long, value_name = "TEXT")]
    pub reason: Option<String>,
}

#[derive(Debug, Args)]
pub(crate) struct Release {
    /// The case.
    pub case: CaseId,

    /// Do not ask.
    #[arg(long)]
    pub yes: bool,

    /// Release although something is not as the response left it.
    #[arg(long)]
    pub force: bool,

    /// Why, for the custody log.
    #[arg(long, value_name = "TEXT")]
    pub reason: Option<String>,
}

#[derive(Debug, Args)]
pub(crate) struct Revoke {
    /// Role, user or assumed role.
    #[arg(long, value_name = "ARN", value_parser = principal)]
    pub principal: Named,

    /// The case in whose custody log this belongs.
    #[arg(long, value_name = "CASE")]
    pub case: Option<CaseId>,

    /// Do not ask.
    #[arg(long)]
    pub yes: bool,
}

/// A principal, and the ARN that named it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Named {
    pub arn: String,
    pub principal: Principal,
}

fn principal(text: &str) -> Result<Named, String> {
    let principal = text.parse().map_err(|error| format!("{error}"))?;
    Ok(Named { arn: text.to_owned(), principal })
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
    use clap::CommandFactory as _;

    use super::*;

    #[test]
    fn the_command_line_is_well_formed() {
        Cli::command().debug_assert();
    }

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
    fn what_is_typed_wrong_is_refused_by_the_parser() {
        for line in [
            "respond",
            "respond i-0123456789abcdef0 --file ids.txt",
            "respond i-0123456789abcdef0 --concurrency 0",
            "respond i-0123456789abcdef0 --concurrency 201",
            "respond i-0123456789abcdef0 --lock 0",
            "respond i-0123456789abcdef0 --case a/b",
            "respond i-0123456789abcdef0 --until clean-room",
            "custody verify ../x",
            "approve",
            "approve ../x",
            "release case/1",
            "revoke --principal web",
            "status a b",
            "fetch",
            "fetch c-1 --scan 2026",
            "deploy",
            "deploy --artifacts dist --parameter LogDays",
            "deploy --artifacts dist --delete",
            "deploy --artifacts dist --agent-only --parameter LogDays=90",
            "rescan ../x",
            "teardown",
            "drill --clean ../x",
            "drill --clean drill-1 --keep",
            "drill i-0123456789abcdef0",
            "respond i-0123456789abcdef0 --agent agent/x",
            "respond i-0123456789abcdef0 --agent agent/x@sha256=12",
        ] {
            let words = std::iter::once("cleanroom").chain(line.split(' '));
            let error = Cli::try_parse_from(words).expect_err(line);
            assert_eq!(error.exit_code(), 2, "{line}");
        }
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
