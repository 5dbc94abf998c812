//! A responder's machine: a home of its own, the program, and what its runs said and called.

use std::{
    collections::{BTreeMap, BTreeSet},
    fs::{self, File},
    io::{Read as _, Seek as _, SeekFrom},
    os::unix::process::ExitStatusExt as _,
    path::{Path, PathBuf},
    process::{Child, Command, ExitStatus, Stdio},
    sync::atomic::{AtomicU32, Ordering},
    thread,
    time::{Duration, Instant},
};

use cleanroom_harness::emulators::{ACCESS_KEY, REGION, SECRET_KEY};
use rustix::process::{Pid, Signal, kill_process};
use serde_json::Value;
use tempfile::TempDir;

/// The evidence bucket of every world.
pub(super) const BUCKET: &str = "cleanroom-evidence";

/// The topic of every world.
pub(super) const TOPIC: &str = "arn:aws:sns:us-east-1:123456789012:cleanroom";

/// An address where nothing listens.
pub(super) const CLOSED: &str = "http://127.0.0.1:1";

/// No run takes so long: a longer one hangs.
const PATIENCE: Duration = Duration::from_secs(400);

/// Refuses what is no emulator, so that no test can reach AWS.
fn emulator(endpoint: &str) -> &str {
    let port = endpoint.strip_prefix("http://127.0.0.1:").expect("an endpoint on this machine");
    assert!(port.bytes().all(|b| b.is_ascii_digit()), "{endpoint} is no emulator");
    endpoint
}

/// A machine from which people respond.
#[derive(Debug)]
pub(super) struct Station {
    home: TempDir,
    variables: BTreeMap<String, String>,
    runs: AtomicU32,
}

impl Station {
    /// A machine that knows one address for all of AWS.
    pub(super) fn new(endpoint: &str) -> Self {
        let home = tempfile::tempdir().expect("a temporary folder");
        let variables = BTreeMap::from([
            ("AWS_ENDPOINT_URL".to_owned(), endpoint.to_owned()),
            ("AWS_ACCESS_KEY_ID".to_owned(), ACCESS_KEY.to_owned()),
            ("AWS_SECRET_ACCESS_KEY".to_owned(), SECRET_KEY.to_owned()),
            ("AWS_REGION".to_owned(), REGION.to_owned()),
            ("AWS_EC2_METADATA_DISABLED".to_owned(), "true".to_owned()),
            ("CLEANROOM_BUCKET".to_owned(), BUCKET.to_owned()),
            ("CLEANROOM_TOPIC".to_owned(), TOPIC.to_owned()),
            ("NO_COLOR".to_owned(), "1".to_owned()),
        ]);
        Self { home, variables, runs: AtomicU32::new(0) }
    }

    /// Sets a variable for the runs to come.
    pub(super) fn set(&mut self, name: &str, value: &str) {
        self.variables.insert(name.to_owned(), value.to_owned());
    }

    /// Takes a variable away from the runs to come.
    pub(super) fn unset(&mut self, name: &str) {
        self.variables.remove(name);
    }

    /// The home folder, which is the working folder too.
    pub(super) fn home(&self) -> &Path {
        self.home.path()
    }

    /// Writes a file into the home folder.
    pub(super) fn write(&self, name: &str, content: impl AsRef<[u8]>) -> PathBuf {
        let path = self.home().join(name);
        fs::write(&path, content).expect("a file in the home folder");
        path
    }

    /// The program, in an environment of this machine's and nothing else.
    pub(super) fn command(&self, arguments: &[&str]) -> Command {
        let home = self.home();
        let mut command = Command::new(env!("CARGO_BIN_EXE_cleanroom"));
        command.env_clear().current_dir(home).args(arguments);
        command.arg("--call-log").arg(self.call_log());
        command.env("HOME", home).env("TMPDIR", home).env("TZ", "UTC");
        for folder in ["CONFIG", "STATE", "DATA", "CACHE"] {
            command.env(format!("XDG_{folder}_HOME"), home.join(folder.to_lowercase()));
        }
        // A proxy that is no one, for all that is not on this machine.
        command.env("HTTPS_PROXY", CLOSED).env("HTTP_PROXY", CLOSED).env("NO_PROXY", "127.0.0.1");
        for (name, value) in &self.variables {
            if name.starts_with("AWS_ENDPOINT_URL") {
                emulator(value);
            }
            command.env(name, value);
        }
        assert!(self.variables.contains_key("AWS_ENDPOINT_URL"), "no way to AWS is left open");
        command
    }

    fn call_log(&self) -> PathBuf {
        self.home().join("calls.jsonl")
    }

    /// Starts the program, its output going to files.
    pub(super) fn start(&self, arguments: &[&str]) -> Running {
        self.start_command(self.command(arguments), arguments)
    }

    /// Starts a command that was made by [`command`](Self::command).
    pub(super) fn start_command(&self, mut command: Command, arguments: &[&str]) -> Running {
        let run = self.runs.fetch_add(1, Ordering::Relaxed);
        let path = |stream| self.home().join(format!("{run}.{stream}"));
        let (stdout, stderr) = (path("stdout"), path("stderr"));
        let file = |path| File::create(path).expect("a file for output");
        let child = command
            .stdin(Stdio::null())
            .stdout(file(&stdout))
            .stderr(file(&stderr))
            .spawn()
            .expect("the program starts");
        Running { child, stdout, stderr, line: arguments.join(" "), peak: 0, began: Instant::now() }
    }

    /// Runs the program to its end.
    pub(super) fn run(&self, arguments: &[&str]) -> Ran {
        let ran = self.start(arguments).finish();
        self.check_calls();
        ran
    }

    /// Runs the program, which must end with this status.
    pub(super) fn expect(&self, status: i32, arguments: &[&str]) -> Ran {
        let ran = self.run(arguments);
        assert_eq!(ran.status.code(), Some(status), "{ran}");
        ran
    }

    /// How long the log of calls is, so that [`calls_since`](Self::calls_since) knows where to begin.
    pub(super) fn log_length(&self) -> u64 {
        fs::metadata(self.call_log()).map_or(0, |log| log.len())
    }

    /// The attempts of calls that were logged beyond this length of the log.
    pub(super) fn calls_since(&self, length: u64) -> Vec<Value> {
        let Ok(mut log) = File::open(self.call_log()) else { return Vec::new() };
        let mut text = String::new();
        log.seek(SeekFrom::Start(length)).expect("a place in the log");
        log.read_to_string(&mut text).expect("the log");
        // A process may be killed, or at work, in the middle of a line.
        text.lines().filter_map(|line| serde_json::from_str(line).ok()).collect()
    }

    /// The operations that were called so far.
    pub(super) fn operations(&self) -> BTreeSet<String> {
        let name = |call: &Value| {
            format!("{}:{}", call["service"].as_str()?, call["operation"].as_str()?).into()
        };
        self.calls_since(0).iter().filter_map(name).collect()
    }

    /// Every call of every run of every test is one that the table of permissions names.
    fn check_calls(&self) {
        for operation in self.operations() {
            let known = cleanroom_cloud_aws::permissions::operation(&operation);
            assert!(known.is_some(), "{operation} is not in the table of permissions");
        }
    }

    /// Files below the home folder that hold what waits for the bucket.
    pub(super) fn spooled(&self) -> Vec<PathBuf> {
        let mut folders = vec![self.home().to_owned()];
        let mut files = Vec::new();
        while let Some(folder) = folders.pop() {
            for entry in fs::read_dir(folder).into_iter().flatten().flatten() {
                let path = entry.path();
                if path.is_dir() {
                    folders.push(path);
                } else if path.parent() != Some(self.home()) {
                    files.push(path);
                }
            }
        }
        files
    }
}

/// A run under way; killed when it is dropped.
#[derive(Debug)]
pub(super) struct Running {
    child: Child,
    stdout: PathBuf,
    stderr: PathBuf,
    line: String,
    /// The highest resident memory that was seen, in KiB.
    peak: u64,
    began: Instant,
}

impl Running {
    /// Sends a signal.
    pub(super) fn signal(&self, signal: Signal) {
        let pid = i32::try_from(self.child.id()).ok().and_then(Pid::from_raw).expect("a process");
        // The child is not waited for yet, so its id is still its own.
        let _ended = kill_process(pid, signal);
    }

    /// Whether it has ended.
    pub(super) fn has_ended(&mut self) -> bool {
        let status = fs::read_to_string(format!("/proc/{}/status", self.child.id()));
        let peak = status.unwrap_or_default();
        let peak = peak.lines().find_map(|l| l.strip_prefix("VmHWM:")?.trim().strip_suffix(" kB"));
        self.peak = self.peak.max(peak.and_then(|kib| kib.parse().ok()).unwrap_or(0));
        self.child.try_wait().expect("a child").is_some()
    }

    /// What it has written to standard output so far.
    pub(super) fn said(&self) -> String {
        fs::read_to_string(&self.stdout).unwrap_or_default()
    }

    /// Waits until something holds or the program ends. Whether it holds.
    pub(super) fn wait_until(&mut self, mut holds: impl FnMut(&Self) -> bool) -> bool {
        while !self.has_ended() {
            if holds(self) {
                return true;
            }
            assert!(self.began.elapsed() < PATIENCE, "{} hangs: {}", self.line, self.said());
            pause(5);
        }
        holds(self)
    }

    /// Waits for its end.
    pub(super) fn finish(mut self) -> Ran {
        self.wait_until(|_| false);
        let status = self.child.wait().expect("a child");
        let read = |path| String::from_utf8_lossy(&fs::read(path).unwrap_or_default()).into_owned();
        let (stdout, stderr) = (read(&self.stdout), read(&self.stderr));
        let ran = Ran { line: self.line.clone(), status, stdout, stderr, peak: self.peak };
        for defect in ["panicked at", "is not in the table of permissions"] {
            assert!(!ran.stderr.contains(defect) && !ran.stdout.contains(defect), "{ran}");
        }
        ran
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        let _ended = self.child.kill();
        let _status = self.child.wait();
    }
}

/// Waits for so many milliseconds.
pub(super) fn pause(milliseconds: u64) {
    let ends = Instant::now() + Duration::from_millis(milliseconds);
    while let Some(left) = ends.checked_duration_since(Instant::now()) {
        thread::park_timeout(left);
    }
}

/// A run that has ended.
#[derive(Debug)]
pub(super) struct Ran {
    line: String,
    pub(super) status: ExitStatus,
    pub(super) stdout: String,
    pub(super) stderr: String,
    /// The highest resident memory that was seen, in KiB.
    pub(super) peak: u64,
}

impl std::fmt::Display for Ran {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let tail = |text: &str| {
            let from = text.floor_char_boundary(text.len().saturating_sub(12_000));
            text[from..].to_owned()
        };
        let Self { line, status, stdout, stderr, .. } = self;
        write!(f, "cleanroom {line}: {status}\n{}\n{}", tail(stdout), tail(stderr))
    }
}

impl Ran {
    /// The signal that ended it.
    pub(super) fn signal(&self) -> Option<i32> {
        self.status.signal()
    }

    /// Whether it ended with one of these.
    pub(super) fn expect_any(&self, statuses: &[i32]) -> i32 {
        let code = self.status.code().unwrap_or(-1);
        assert!(statuses.contains(&code), "{self}");
        code
    }

    /// The records of a type on standard output.
    pub(super) fn records(&self, kind: &str) -> Vec<Value> {
        let lines = self.stdout.lines().map(|line| {
            let record: Value =
                serde_json::from_str(line).unwrap_or_else(|e| panic!("{e} in {line:?}\n{self}"));
            assert!(record["type"].is_string(), "a record has a type: {line}");
            record
        });
        lines.filter(|record| record["type"] == kind).collect()
    }

    /// The one record of a type.
    pub(super) fn record(&self, kind: &str) -> Value {
        let mut all = self.records(kind);
        assert_eq!(all.len(), 1, "{} records of type {kind}\n{self}", all.len());
        all.remove(0)
    }

    /// The report of a response to one instance.
    pub(super) fn report(&self) -> Value {
        self.record("report")
    }

    /// The steps that a report is short of.
    pub(super) fn short_steps(&self) -> BTreeSet<String> {
        let report = self.report();
        let all = report["shortfalls"].as_array().into_iter().flatten();
        all.filter_map(|s| Some(s["step"].as_str()?.to_owned())).collect()
    }
}
