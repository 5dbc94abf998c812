//! Running the real agent and reading its bundle back.

use std::{
    ffi::OsStr,
    fs,
    path::{Path, PathBuf},
    process::{Command, Output},
};

use cleanroom_contract::{FileRecord, Finding, Gap, GapKind, Record, Report};

/// The agent, as a user would start it, but with a rule cache of its own.
pub(crate) fn agent(cache: &Path) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_cleanroom-agent"));
    command.env("XDG_CACHE_HOME", cache);
    command
}

/// A finished scan.
#[derive(Debug)]
pub(crate) struct Scan {
    pub status: i32,
    pub stdout: String,
    pub stderr: String,
    pub bundle: PathBuf,
    pub report: Report,
    pub files: Vec<FileRecord>,
    pub findings: Vec<Finding>,
    pub gaps: Vec<Gap>,
}

impl Scan {
    /// The record of a path; the first, where several volumes have it.
    pub(crate) fn file(&self, path: &str) -> &FileRecord {
        self.files
            .iter()
            .find(|file| file.path.path == path)
            .unwrap_or_else(|| panic!("{path} has no record; the paths are {:?}", self.paths()))
    }

    pub(crate) fn paths(&self) -> Vec<&str> {
        self.files.iter().map(|file| file.path.path.as_str()).collect()
    }

    /// The gaps of a kind.
    pub(crate) fn gaps_of(&self, kind: GapKind) -> Vec<&Gap> {
        self.gaps.iter().filter(|gap| gap.kind == kind).collect()
    }
}

/// Scans with these arguments into a new folder below `work`, and reads the bundle back. Panics with the
/// agent's own words where there is none.
pub(crate) fn scan<S: AsRef<OsStr>>(work: &Path, args: &[S]) -> Scan {
    let out = tempfile::Builder::new().prefix("bundle-").tempdir_in(work).unwrap().keep();
    let mut command = agent(&work.join("cache"));
    command.arg("scan").args(args).arg("--out").arg(&out);
    let output = command.output().unwrap();
    read(&out, &output)
}

/// Reads a bundle, and checks it with the sums of the system's own program.
pub(crate) fn read(bundle: &Path, output: &Output) -> Scan {
    let stdout = String::from_utf8_lossy(&output.stdout).into_owned();
    let stderr = String::from_utf8_lossy(&output.stderr).into_owned();
    let report = fs::read(bundle.join("report.json")).unwrap_or_else(|error| {
        panic!("no report ({error}): {:?}\n{stdout}{stderr}", output.status)
    });
    let sums = Command::new("sha256sum")
        .args(["--check", "--strict", "--quiet", "SHA256SUMS"])
        .current_dir(bundle)
        .output()
        .unwrap();
    assert!(sums.status.success(), "{}", String::from_utf8_lossy(&sums.stdout));
    let packed = fs::File::open(bundle.join("files.jsonl.zst")).unwrap();
    let files = zstd::decode_all(packed).unwrap();
    Scan {
        status: output.status.code().unwrap_or(-1),
        stdout,
        stderr,
        bundle: bundle.to_owned(),
        report: serde_json::from_slice(&report).unwrap(),
        files: records(&files, |record| match record {
            Record::File(file) => Some(*file),
            _ => None,
        }),
        findings: records(
            &fs::read(bundle.join("findings.jsonl")).unwrap(),
            |record| match record {
                Record::Finding(finding) => Some(finding),
                _ => None,
            },
        ),
        gaps: records(&fs::read(bundle.join("gaps.jsonl")).unwrap(), |record| match record {
            Record::Gap(gap) => Some(gap),
            _ => None,
        }),
    }
}

/// Every line is a record of the one kind that its file holds.
fn records<T>(lines: &[u8], only: impl Fn(Record) -> Option<T>) -> Vec<T> {
    lines
        .split(|byte| *byte == b'\n')
        .filter(|line| !line.is_empty())
        .map(|line| {
            let record: Record = serde_json::from_slice(line).unwrap();
            only(record).expect("a file of the bundle holds records of one kind")
        })
        .collect()
}
