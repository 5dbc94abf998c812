//! What may be typed.
//!
//! Purpose: the command line and its validation. Touches nothing: no file is opened here.

use std::{path::PathBuf, time::Duration};

use clap::{Parser, Subcommand, ValueEnum};
use cleanroom_contract::{CaseId, InvalidId, Severity, Sha256, VolumeId};

use crate::supervise::role::Role;

/// Examines evidence read-only and writes a sealed bundle: every file hashed and scanned, every gap
/// named.
#[derive(Debug, Parser)]
#[command(name = "cleanroom-agent", version, max_term_width = 100, after_help = EXIT_STATUS)]
pub(crate) struct Cli {
    #[command(subcommand)]
    pub command: Command,
}

/// The one place where exit statuses are documented.
const EXIT_STATUS: &str = "\
Exit status:
  0  complete
  1  failed
  2  the command line is wrong
  3  complete with gaps, or interrupted; verify: the bundle is not what was sealed
  4  findings at or above --fail-on
run:
  0  no newer work order came in time: the room can end
  75 start it again: it goes on where it stopped
  78 the work order or the room is unusable: do not start it again";

#[derive(Debug, Subcommand)]
pub(crate) enum Command {
    /// Scan folders, disk images and block devices into a bundle.
    Scan(Box<Scan>),
    /// In a clean room: scan the volumes of a work order, publish the bundle, wait for the next order.
    Run(Box<Run>),
    /// Check a bundle's sums and signature; names every file that is changed, missing or extra.
    Verify(Verify),
    /// Check or compile YARA rules.
    #[command(subcommand)]
    Rules(Rules),
    /// Seal what a scan left behind that was killed or ran out of disk.
    Seal(Seal),
    /// One of the agent's own processes.
    #[command(hide = true)]
    Role {
        role: Role,
        #[arg(long)]
        parent: u32,
    },
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum Format {
    /// A summary for people.
    Human,
    /// One JSON record a line.
    Jsonl,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum Digest {
    Md5,
    Sha1,
}

#[derive(Debug, clap::Args)]
pub(crate) struct Scan {
    /// Folders, raw disk images or block devices.
    #[arg(required = true, value_name = "EVIDENCE")]
    pub evidence: Vec<PathBuf>,

    /// The bundle's folder: made here, or empty.
    #[arg(long, value_name = "DIR")]
    pub out: PathBuf,

    /// YARA rule file, folder of them, or FILE@sha256=HEX for a compiled pack.
    #[arg(long, value_name = "PATH", help_heading = "What to look for")]
    pub rules: Vec<PathBuf>,

    /// List of bad digests or of path patterns, or a folder of lists.
    #[arg(long, value_name = "PATH", help_heading = "What to look for")]
    pub indicators: Vec<PathBuf>,

    /// Fail when a rule file does not compile.
    #[arg(long, help_heading = "What to look for")]
    pub strict: bool,

    /// Digests beside SHA-256.
    #[arg(long, value_name = "NAME", value_delimiter = ',', help_heading = "What to look for")]
    pub digest: Vec<Digest>,

    /// Leave the entropy out.
    #[arg(long, help_heading = "What to look for")]
    pub no_entropy: bool,

    /// Leave matching paths unread; * crosses slashes. What it kept out is counted as a gap.
    #[arg(long, value_name = "GLOB", help_heading = "Limits")]
    pub exclude: Vec<String>,

    /// Inspectors at work [default: one a CPU].
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..=128), help_heading = "Limits")]
    pub threads: Option<u32>,

    /// Memory for file contents, all inspectors together [default: 256 MiB each].
    #[arg(long, value_name = "SIZE", value_parser = size, help_heading = "Limits")]
    pub memory: Option<u64>,

    /// Leave larger files unread.
    #[arg(long, value_name = "SIZE", value_parser = size, help_heading = "Limits")]
    pub max_file_size: Option<u64>,

    /// Time a file may take, to which 2 s per 100 MiB are added.
    #[arg(long, value_name = "TIME", default_value = "60s", value_parser = duration, help_heading = "Limits")]
    pub file_timeout: Duration,

    /// Scan what is stored, without what a dirty journal holds. Else the kernel replays such journals into
    /// scratch, never into the evidence: for hostile evidence on a machine you need, this is the careful way.
    #[arg(long, help_heading = "Unreplayed journals")]
    pub no_replay: bool,

    /// Folder for what replaying writes, in files without a name [default: $TMPDIR, else /var/tmp].
    #[arg(
        long,
        value_name = "DIR",
        conflicts_with = "no_replay",
        help_heading = "Unreplayed journals"
    )]
    pub scratch: Option<PathBuf>,

    /// The most that is written there for one volume [default: a tenth of it, at least 64 MiB].
    #[arg(long, value_name = "SIZE", value_parser = size, conflicts_with = "no_replay", help_heading = "Unreplayed journals")]
    pub scratch_size: Option<u64>,

    /// The case this belongs to.
    #[arg(long, value_name = "ID", help_heading = "For the report")]
    pub case: Option<CaseId>,

    /// Who examines.
    #[arg(long, value_name = "NAME", help_heading = "For the report")]
    pub examiner: Option<String>,

    /// The evidence's number in your books.
    #[arg(long, value_name = "ID", help_heading = "For the report")]
    pub evidence_id: Option<String>,

    /// Anything worth saying.
    #[arg(long, value_name = "TEXT", help_heading = "For the report")]
    pub note: Vec<String>,

    /// Sign the bundle with this OpenSSH private key.
    #[arg(long, value_name = "FILE", help_heading = "For the report")]
    pub sign_key: Option<PathBuf>,

    /// What to print [default: human on a terminal, jsonl in a pipe].
    #[arg(long, value_name = "FORMAT", help_heading = "Output")]
    pub format: Option<Format>,

    /// Exit with status 4 when there is a finding of this severity or above.
    #[arg(long, value_name = "SEVERITY", value_parser = severity, help_heading = "Output")]
    pub fail_on: Option<Severity>,
}

#[derive(Debug, clap::Args)]
pub(crate) struct Run {
    /// FILE, s3://BUCKET/KEY or s3://BUCKET/KEY@sha256=HEX [default: what the instance's user data names].
    #[arg(long, value_name = "ORDER", value_parser = order_place)]
    pub work_order: Option<OrderPlace>,

    /// Where scans are kept until they are published, and how far each is.
    #[arg(long, value_name = "DIR", default_value = "/var/lib/cleanroom")]
    pub state: PathBuf,

    /// A folder, image or device that stands for a volume that is not attached to this machine.
    #[arg(long, value_name = "VOLUME=PATH", value_parser = stand_in)]
    pub evidence: Vec<(VolumeId, PathBuf)>,

    /// Time to wait for a newer order [default: what the user data says, else none].
    #[arg(long, value_name = "TIME", value_parser = duration)]
    pub idle: Option<Duration>,

    /// Time to try to fetch rules, which then are a gap, and to publish, before the next start has to.
    #[arg(long, value_name = "TIME", default_value = "15m", value_parser = duration)]
    pub patience: Duration,
}

/// Where a work order is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum OrderPlace {
    File(PathBuf),
    Object { bucket: String, key: String, sha256: Option<Sha256> },
}

#[derive(Debug, clap::Args)]
pub(crate) struct Verify {
    /// The bundle's folder.
    pub bundle: PathBuf,

    /// OpenSSH public key or allowed-signers file that must have signed it.
    #[arg(long, value_name = "FILE")]
    pub signer: Option<PathBuf>,

    /// What to print [default: human on a terminal, jsonl in a pipe].
    #[arg(long, value_name = "FORMAT")]
    pub format: Option<Format>,
}

#[derive(Debug, Subcommand)]
pub(crate) enum Rules {
    /// Say what the compiler thinks of each file.
    Check {
        #[arg(required = true, value_name = "PATH")]
        paths: Vec<PathBuf>,
    },
    /// List the values that rules see in the external variable `filetype`.
    Filetypes,
    /// Compile into one pack that loads fast.
    Compile {
        #[arg(required = true, value_name = "PATH")]
        paths: Vec<PathBuf>,
        /// Where to write the pack.
        #[arg(long, value_name = "FILE")]
        out: PathBuf,
        /// Fail when a rule file does not compile.
        #[arg(long)]
        strict: bool,
        /// The scan that this runs for, and ends with.
        #[arg(long, value_name = "PID", hide = true)]
        parent: Option<u32>,
    },
}

#[derive(Debug, clap::Args)]
pub(crate) struct Seal {
    /// The folder that was given as --out.
    pub bundle: PathBuf,

    /// Sign the bundle with this OpenSSH private key.
    #[arg(long, value_name = "FILE")]
    pub sign_key: Option<PathBuf>,
}

/// `512`, `64K`, `10MiB`, `2G`: bytes, in powers of 1,024.
fn size(text: &str) -> Result<u64, String> {
    let digits = text.trim_end_matches(|c: char| c.is_ascii_alphabetic());
    let shift = match text[digits.len()..].to_ascii_lowercase().as_str() {
        "" | "b" => 0,
        "k" | "kib" | "kb" => 10,
        "m" | "mib" | "mb" => 20,
        "g" | "gib" | "gb" => 30,
        "t" | "tib" | "tb" => 40,
        unit => return Err(format!("unknown unit {unit:?}: use K, M, G or T")),
    };
    let number: u64 =
        digits.parse().map_err(|_| "a whole number and a unit, like 64M".to_owned())?;
    number
        .checked_mul(1 << shift)
        .filter(|bytes| *bytes > 0)
        .ok_or_else(|| "between 1 byte and 16 EiB".to_owned())
}

/// `500ms`, `60s`, `5m`; a bare number is seconds.
fn duration(text: &str) -> Result<Duration, String> {
    let digits = text.trim_end_matches(|c: char| c.is_ascii_alphabetic());
    let number: u64 =
        digits.parse().map_err(|_| "a whole number and a unit, like 60s".to_owned())?;
    let millis = match &text[digits.len()..] {
        "ms" => Some(number),
        "" | "s" => number.checked_mul(1000),
        "m" => number.checked_mul(60_000),
        "h" => number.checked_mul(3_600_000),
        unit => return Err(format!("unknown unit {unit:?}: use ms, s, m or h")),
    };
    millis
        .filter(|millis| (1..=7 * 86_400_000).contains(millis))
        .map(Duration::from_millis)
        .ok_or_else(|| "between 1ms and 7 days".to_owned())
}

/// `order.json`, `s3://bucket/key`, `s3://bucket/key@sha256=…`.
fn order_place(text: &str) -> Result<OrderPlace, String> {
    let Some(rest) = text.strip_prefix("s3://") else {
        return match text {
            "" => Err("a file, or s3://BUCKET/KEY".to_owned()),
            path => Ok(OrderPlace::File(path.into())),
        };
    };
    let (rest, sha256) = match rest.rsplit_once("@sha256=") {
        Some((rest, digest)) => {
            (rest, Some(digest.parse().map_err(|error: InvalidId| error.to_string())?))
        }
        None => (rest, None),
    };
    match rest.split_once('/') {
        Some((bucket, key)) if !bucket.is_empty() && !key.is_empty() => {
            Ok(OrderPlace::Object { bucket: bucket.to_owned(), key: key.to_owned(), sha256 })
        }
        _ => Err("s3://BUCKET/KEY, with @sha256=HEX where only those bytes will do".to_owned()),
    }
}

/// `vol-0123456789abcdef0=disk.img`.
fn stand_in(text: &str) -> Result<(VolumeId, PathBuf), String> {
    match text.split_once('=') {
        Some((volume, path)) if !path.is_empty() => {
            Ok((volume.parse().map_err(|error: InvalidId| error.to_string())?, path.into()))
        }
        _ => Err("a volume and a path, as in vol-0123456789abcdef0=disk.img".to_owned()),
    }
}

fn severity(text: &str) -> Result<Severity, String> {
    Severity::ALL
        .into_iter()
        .find(|severity| severity.as_str() == text)
        .ok_or_else(|| "one of info, low, medium, high, critical".to_owned())
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
    fn orders_and_stand_ins_read_as_written() {
        let object = |sha256| OrderPlace::Object {
            bucket: "evidence".to_owned(),
            key: "cases/c/orders/x.json".to_owned(),
            sha256,
        };
        let place = "s3://evidence/cases/c/orders/x.json";
        assert_eq!(order_place(place), Ok(object(None)));
        let digest = "0".repeat(64);
        let with_digest = order_place(&format!("{place}@sha256={digest}"));
        assert_eq!(with_digest, Ok(object(Some(Sha256([0; 32])))));
        assert_eq!(order_place("a/b.json"), Ok(OrderPlace::File("a/b.json".into())));
        for bad in ["", "s3://", "s3://evidence", "s3:///key", "s3://b/k@sha256=0"] {
            assert!(order_place(bad).is_err(), "{bad}");
        }
        let volume = "vol-0123456789abcdef0".parse().unwrap();
        assert_eq!(stand_in("vol-0123456789abcdef0=a=b"), Ok((volume, "a=b".into())));
        for bad in ["", "vol-0123456789abcdef0", "vol-0123456789abcdef0=", "disk=/dev/sda"] {
            assert!(stand_in(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn sizes_and_times_read_as_written() {
        assert_eq!(size("512"), Ok(512));
        assert_eq!(size("64K"), Ok(64 << 10));
        assert_eq!(size("10MiB"), Ok(10 << 20));
        for bad in ["", "M", "0", "-1", "1.5G", "99999999T", "1 G", "5x"] {
            assert!(size(bad).is_err(), "{bad}");
        }
        assert_eq!(duration("500ms"), Ok(Duration::from_millis(500)));
        assert_eq!(duration("60"), Ok(Duration::from_secs(60)));
        for bad in ["", "0s", "1y", "-5s", "999999999h", "é"] {
            assert!(duration(bad).is_err(), "{bad}");
        }
    }
}
