//! Running the real agent and reading its bundle back.

use std::{
    ffi::OsStr,
    fs,
    io::Write as _,
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

/// Whether we are root; where not, says what stays untested.
pub(crate) fn is_root_for(what: &str) -> bool {
    let root = nix::unistd::geteuid().is_root();
    if !root {
        // Not through `eprintln!`, which the test runner keeps to itself where a test passes.
        drop(writeln!(std::io::stderr(), "not tested without root: {what}"));
    }
    root
}

/// Scans like [`scan`], with the agent started by another program: `unshare --mount` for instance.
pub(crate) fn scan_through<S: AsRef<OsStr>>(work: &Path, prefix: &[&str], args: &[S]) -> Scan {
    let out = tempfile::Builder::new().prefix("bundle-").tempdir_in(work).unwrap().keep();
    let (program, words) = prefix.split_first().unwrap();
    let mut command = Command::new(program);
    command.args(words).arg(env!("CARGO_BIN_EXE_cleanroom-agent"));
    command.env("XDG_CACHE_HOME", work.join("cache"));
    let output = command.arg("scan").args(args).arg("--out").arg(&out).output().unwrap();
    read(&out, &output)
}

/// The user that [`scan_as_nobody`] is, where we are root.
pub(crate) const NOBODY: u32 = 65_534;

/// Scans like [`scan`], as a user without any privilege: ourselves where we are not root, else
/// [`NOBODY`], for whom `work` is opened and the agent copied into it.
pub(crate) fn scan_as_nobody<S: AsRef<OsStr>>(work: &Path, args: &[S]) -> Scan {
    let out = tempfile::Builder::new().prefix("bundle-").tempdir_in(work).unwrap().keep();
    let output = nobody(work, &out).arg("scan").args(args).arg("--out").arg(&out).output().unwrap();
    read(&out, &output)
}

/// The agent as a user without any privilege, who may write into `out`.
pub(crate) fn nobody(work: &Path, out: &Path) -> Command {
    use std::os::unix::fs::{PermissionsExt as _, chown};
    if !nix::unistd::geteuid().is_root() {
        return agent(&work.join("cache"));
    }
    // The build folder may lie below a home that others cannot enter.
    let copy = work.join("cleanroom-agent");
    if !copy.exists() {
        fs::copy(env!("CARGO_BIN_EXE_cleanroom-agent"), &copy).unwrap();
    }
    fs::set_permissions(work, fs::Permissions::from_mode(0o755)).unwrap();
    chown(out, Some(NOBODY), Some(NOBODY)).unwrap();
    let mut command = Command::new("setpriv");
    command.args(["--reuid", "65534", "--regid", "65534", "--clear-groups"]).arg(copy);
    command.env("XDG_CACHE_HOME", out.join("no-cache"));
    command
}

/// Gives a link an access time so far ahead that reading the link does not move it, not even without
/// root, on a `relatime` mount (mount(8)): else that would be one more gap.
pub(crate) fn settle_link(link: &Path) {
    use nix::sys::{stat, time::TimeSpec};
    let (ahead, as_it_is) = (TimeSpec::new(4_000_000_000, 123_456_789), TimeSpec::UTIME_OMIT);
    let flags = stat::UtimensatFlags::NoFollowSymlink;
    stat::utimensat(nix::fcntl::AT_FDCWD, link, &ahead, &as_it_is, flags).unwrap();
}

/// SHA-256 of a file's bytes, by the system's own program.
pub(crate) fn sha256sum(path: &Path) -> String {
    digest_by("sha256sum", path)
}

/// The first word that `program` prints of a file: its digest.
pub(crate) fn digest_by(program: &str, path: &Path) -> String {
    let file = fs::File::open(path).unwrap_or_else(|error| panic!("{}: {error}", path.display()));
    let output = Command::new(program).stdin(file).output().unwrap();
    assert!(output.status.success(), "{program} {}", path.display());
    String::from_utf8(output.stdout).unwrap().split_whitespace().next().unwrap().to_owned()
}

/// Waits until something is so; panics after half a minute, long past any machine's hiccup.
#[expect(clippy::disallowed_methods, reason = "tests have no runtime that sleeping could block")]
pub(crate) fn wait_until(what: &str, mut is_so: impl FnMut() -> bool) {
    for _ in 0..30_000 {
        if is_so() {
            return;
        }
        std::thread::sleep(std::time::Duration::from_millis(1));
    }
    panic!("still not so after 30 s: {what}");
}

/// Runs a command to its end: exit status (-1 for a signal's), stdout, stderr.
pub(crate) fn run(command: &mut Command) -> (i32, String, String) {
    let output = command.output().unwrap();
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    (output.status.code().unwrap_or(-1), text(&output.stdout), text(&output.stderr))
}
