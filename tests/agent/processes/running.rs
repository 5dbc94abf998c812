//! A scan that runs: its processes as `/proc` shows them, and evidence that keeps it busy.
//!
//! Touches only processes that the scan itself has started, by their ids. A process is known by its id
//! and the time it began at, so that no id that was used again is taken for it.

use std::{
    ffi::OsStr,
    fs,
    path::{Path, PathBuf},
    process::{Child, Command, Output, Stdio},
};

use nix::{
    sys::signal::{Signal, kill},
    unistd::Pid,
};

use crate::support::{self, Scan, agent, wait_until};

/// A rule that is never done with the file [`SLOW`].
pub(crate) const SLOW_RULE: &str = r#"
rule endless {
    condition:
        filename == "aaa-slow" and for all i in (0..1000000000000) : (i * i + filesize != 7)
}
rule marker {
    strings:
        $marker = "marker"
    condition:
        $marker
}
"#;

/// The file that [`SLOW_RULE`] is never done with. It sorts first.
pub(crate) const SLOW: &str = "/aaa-slow";

/// What its inspector's marker says while it is in hand: the root is entry 0, this is 1, and 0 stands for
/// none (`protocol::write_marker`).
const SLOW_MARK: u64 = 2;

/// Fills a folder with `count` small files, and with the slow one of `slow` bytes.
pub(crate) fn busy_folder(folder: &Path, count: usize, slow: usize) {
    fs::create_dir_all(folder).unwrap();
    fs::write(folder.join(&SLOW[1..]), vec![b's'; slow]).unwrap();
    for number in 0..count {
        let part = folder.join(format!("part-{:02}", number / 100));
        fs::create_dir_all(&part).unwrap();
        fs::write(part.join(format!("file-{number}")), format!("marker {number}\n")).unwrap();
    }
}

/// Writes [`SLOW_RULE`] into `work`.
pub(crate) fn slow_rule(work: &Path) -> PathBuf {
    let path = work.join("slow.yar");
    fs::write(&path, SLOW_RULE).unwrap();
    path
}

/// A process, for as long as it is this one.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Process {
    pub pid: i32,
    pub name: String,
    parent: i32,
    /// Clock ticks since boot.
    began: u64,
    ended: bool,
}

impl Process {
    fn read(pid: i32) -> Option<Self> {
        // proc_pid_stat(5): the name is in parentheses and may hold anything.
        let stat = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
        let (head, tail) = stat.rsplit_once(')')?;
        let name = head.split_once('(')?.1.to_owned();
        let fields: Vec<&str> = tail.split_whitespace().collect();
        Some(Self {
            pid,
            name,
            parent: fields.get(1)?.parse().ok()?,
            began: fields.get(19)?.parse().ok()?,
            // A zombie runs no more; whoever inherited it may be slow to bury it.
            ended: matches!(*fields.first()?, "Z" | "X"),
        })
    }

    pub(crate) fn is_gone(&self) -> bool {
        Self::read(self.pid).is_none_or(|now| now.began != self.began || now.ended)
    }

    pub(crate) fn signal(&self, signal: Signal) {
        // It may have ended by itself a moment ago.
        let _ = kill(Pid::from_raw(self.pid), signal);
    }

    /// Whether the file [`SLOW`] is in this inspector's hand.
    fn has_slow_file(&self) -> bool {
        let Ok(descriptors) = fs::read_dir(format!("/proc/{}/fd", self.pid)) else { return false };
        descriptors.flatten().any(|descriptor| {
            let is_marker = fs::read_link(descriptor.path())
                .is_ok_and(|target| target.to_string_lossy().starts_with("/memfd:marker"));
            is_marker
                && fs::read(descriptor.path()).is_ok_and(|mark| mark == SLOW_MARK.to_le_bytes())
        })
    }
}

/// All processes below `pid`.
pub(crate) fn descendants(pid: i32) -> Vec<Process> {
    let numbers = fs::read_dir("/proc").unwrap().flatten();
    let all: Vec<Process> = numbers
        .filter_map(|entry| entry.file_name().to_str()?.parse().ok())
        .filter_map(Process::read)
        .filter(|process| !process.ended)
        .collect();
    let mut family = vec![pid];
    let mut found: Vec<Process> = Vec::new();
    while let Some(parent) = family.pop() {
        for child in all.iter().filter(|process| process.parent == parent) {
            family.push(child.pid);
            found.push(child.clone());
        }
    }
    found
}

/// A scan that runs. Killed when dropped.
#[derive(Debug)]
pub(crate) struct Running {
    child: Child,
    pub out: PathBuf,
}

impl Running {
    /// Starts a scan with these arguments into a new folder below `work`.
    pub(crate) fn start<S: AsRef<OsStr>>(work: &Path, args: &[S]) -> Self {
        let out = tempfile::Builder::new().prefix("bundle-").tempdir_in(work).unwrap().keep();
        let mut command: Command = agent(&work.join("cache"));
        command.arg("scan").args(args).arg("--out").arg(&out);
        // Into files: nobody reads while it runs, and a full pipe would stop it.
        let [stdout, stderr] =
            ["stdout", "stderr"].map(|name| fs::File::create(out.with_extension(name)).unwrap());
        command.stdin(Stdio::null()).stdout(stdout).stderr(stderr);
        Self { child: command.spawn().unwrap(), out }
    }

    pub(crate) fn supervisor(&mut self) -> Process {
        let pid = i32::try_from(self.child.id()).unwrap();
        Process::read(pid).unwrap()
    }

    /// The processes that the supervisor has started, and theirs.
    pub(crate) fn processes(&mut self) -> Vec<Process> {
        descendants(i32::try_from(self.child.id()).unwrap())
    }

    /// Those of a name: `cr-walker`, `cr-zygote`, `cr-inspector`, `cr-compiler`.
    pub(crate) fn named(&mut self, name: &str) -> Vec<Process> {
        let mut processes = self.processes();
        processes.retain(|process| process.name == name);
        processes
    }

    pub(crate) fn has_ended(&mut self) -> bool {
        self.child.try_wait().unwrap().is_some()
    }

    /// Waits for the one process of a name.
    pub(crate) fn wait_for(&mut self, name: &str) -> Process {
        let mut found = None;
        wait_until(name, || {
            assert!(!self.has_ended(), "the scan ended before there was a {name}");
            found = self.named(name).pop();
            found.is_some()
        });
        found.unwrap()
    }

    /// Waits until an inspector has the slow file in hand.
    pub(crate) fn wait_for_slow_file(&mut self) -> Process {
        let mut found = None;
        wait_until("the slow file is in hand", || {
            assert!(!self.has_ended(), "the scan ended before the slow file was in hand");
            found = self.named("cr-inspector").into_iter().find(Process::has_slow_file);
            found.is_some()
        });
        found.unwrap()
    }

    /// Waits for the end.
    pub(crate) fn output(mut self) -> Output {
        let status = self.child.wait().unwrap();
        let [stdout, stderr] =
            ["stdout", "stderr"].map(|name| fs::read(self.out.with_extension(name)).unwrap());
        Output { status, stdout, stderr }
    }

    /// Waits for the end and reads the bundle.
    pub(crate) fn finish(self) -> Scan {
        let out = self.out.clone();
        support::read(&out, &self.output())
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        // Both fail harmlessly on a process that has ended and been waited for.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// Waits until none of these is left.
pub(crate) fn wait_until_gone(processes: &[Process]) {
    assert!(!processes.is_empty(), "there was nothing to end");
    let mut left = Vec::new();
    let mut tries = 0;
    wait_until("no process of the scan is left", || {
        left = processes.iter().filter(|process| !process.is_gone()).collect();
        tries += 1;
        assert!(tries < 25_000, "still running: {left:?}");
        left.is_empty()
    });
}

/// Loop devices over a file.
pub(crate) fn loop_devices(image: &Path) -> Vec<PathBuf> {
    let image = fs::canonicalize(image).unwrap();
    let devices = fs::read_dir("/sys/block").unwrap().flatten();
    devices
        .map(|device| device.path())
        .filter(|device| {
            fs::read_to_string(device.join("loop/backing_file"))
                .is_ok_and(|file| Path::new(file.trim_end()) == image)
        })
        .collect()
}
