//! What may be typed.
//!
//! Purpose: the command line, and as much of its validation as needs neither a file nor the network. Touches nothing. Here are the
//! commands and the flags of all; below, what each takes: [`response`] for those on instances, [`case`] for those on a case, [`stack`]
//! for the response stack and drills.

mod case;
mod response;
mod stack;

use std::path::PathBuf;

use clap::{Args, Parser, Subcommand, ValueEnum};
use cleanroom_contract::{CaseId, ScanId};

pub(crate) use self::{
    case::{Approve, Fetch, Named, Release, Rescan, Revoke, Teardown},
    response::{Evidence, Plan, Respond, Room, Targets, Via},
    stack::{Deploy, Drill},
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

#[cfg(test)]
mod tests {
    use clap::CommandFactory as _;

    use super::*;

    #[test]
    fn the_command_line_is_well_formed() {
        Cli::command().debug_assert();
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
            "drill --clean drill-1 --via aws",
            "drill --via somewhere",
            "drill i-0123456789abcdef0",
            "respond i-0123456789abcdef0 --agent agent/x",
            "respond i-0123456789abcdef0 --agent agent/x@sha256=12",
        ] {
            let words = std::iter::once("cleanroom").chain(line.split(' '));
            let error = Cli::try_parse_from(words).expect_err(line);
            assert_eq!(error.exit_code(), 2, "{line}");
        }
    }
}
