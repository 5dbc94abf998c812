//! The bundle's disk: too small, not writable, or full in the middle of a scan.

use std::{
    fs,
    os::unix::{fs::PermissionsExt as _, process::ExitStatusExt as _},
    path::{Path, PathBuf},
    process::{Command, ExitStatus, Output},
};

use cleanroom_contract::{GapKind, RunState};

use crate::support::{self, is_root_for, nobody, run};

#[test]
fn a_folder_that_cannot_be_written_is_found_at_the_start() {
    let work = tempfile::tempdir().unwrap();
    let evidence = work.path().join("evidence");
    let locked = work.path().join("locked");
    let own = work.path().join("own");
    for folder in [&evidence, &locked, &own] {
        fs::create_dir(folder).unwrap();
    }
    fs::set_permissions(&locked, fs::Permissions::from_mode(0o555)).unwrap();
    for out in [locked.clone(), locked.join("new")] {
        let mut command = nobody(work.path(), &own);
        let (status, _, stderr) = run(command.arg("scan").arg(&evidence).arg("--out").arg(&out));
        assert_eq!(status, 1, "{}", out.display());
        assert!(stderr.contains("Permission denied") && stderr.contains("locked"), "{stderr}");
    }
}

/// What a script in namespaces of its own, of mounts and processes, left: statuses and messages by name.
struct Script {
    folder: PathBuf,
}

impl Script {
    /// Runs `script` with a tmpfs of `size` at `$disk`, and with `$agent`, `$work` and `$log`. The tmpfs
    /// ends with the script, however that ends.
    fn run(work: &Path, size: &str, script: &str) -> Self {
        let [disk, log] = ["disk", "log"].map(|name| work.join(name));
        for folder in [&disk, &log] {
            fs::create_dir(folder).unwrap();
        }
        let script = format!("mount -t tmpfs -o size={size} tmpfs \"$disk\"\n{script}");
        let mut shell = Command::new("unshare");
        shell.args(["--mount", "--propagation", "private", "--pid", "--fork", "--mount-proc"]);
        shell.args(["sh", "-uc", &script]);
        shell.env("disk", &disk).env("log", &log).env("work", work);
        shell.env("agent", env!("CARGO_BIN_EXE_cleanroom-agent"));
        let (status, _, stderr) = run(shell.env("XDG_CACHE_HOME", work.join("cache")));
        assert_eq!(status, 0, "{stderr}");
        Self { folder: log }
    }

    /// The text of a file in `$log`.
    fn text(&self, name: &str) -> String {
        fs::read_to_string(self.folder.join(name)).unwrap().trim_end().to_owned()
    }
}

#[test]
fn a_disk_that_is_too_small_is_found_at_the_start() {
    if !is_root_for("an --out on a disk that is too small") {
        return;
    }
    let work = tempfile::tempdir().unwrap();
    fs::create_dir(work.path().join("evidence")).unwrap();
    let script = r#"
        $agent scan "$work/evidence" --out "$disk/out" 2>"$log/err"; echo $? >"$log/status"
        ls -A "$disk/out" >"$log/left"
    "#;
    let script = Script::run(work.path(), "16m", script);
    assert_eq!(script.text("status"), "1");
    assert!(script.text("err").contains("bytes are free for --out"), "{}", script.text("err"));
    assert_eq!(script.text("left"), "");
}

#[test]
fn a_disk_that_does_not_say_its_size_is_taken_as_it_is() {
    if !is_root_for("an --out on a ramfs") {
        return;
    }
    let work = tempfile::tempdir().unwrap();
    fs::create_dir(work.path().join("evidence")).unwrap();
    let script = r#"
        mount -t ramfs ramfs "$disk"
        $agent scan "$work/evidence" --out "$disk/out" 2>"$log/err"; echo $? >"$log/status"
    "#;
    let script = Script::run(work.path(), "16m", script);
    assert_eq!(script.text("status"), "0", "{}", script.text("err"));
}

/// 600 files of 100 KB of records each: a rule with long metadata matches them all.
fn talkative_evidence(work: &Path) {
    let evidence = work.join("evidence");
    fs::create_dir(&evidence).unwrap();
    for number in 0..600 {
        fs::write(evidence.join(format!("{number:03}")), "marker").unwrap();
    }
    let long = "x".repeat(100_000);
    let rule = format!(
        "rule talkative {{ meta: long = \"{long}\" strings: $m = \"marker\" condition: $m }}"
    );
    fs::write(work.join("rules.yar"), rule).unwrap();
}

#[test]
fn a_disk_that_fills_up_loses_nothing_that_was_written() {
    if !is_root_for("an --out on a disk that fills up") {
        return;
    }
    let work = tempfile::tempdir().unwrap();
    talkative_evidence(work.path());
    let script = r#"
        $agent scan "$work/evidence" --rules "$work/rules.yar" --out "$disk/out" 2>"$log/err"
        echo $? >"$log/status"
        for try in $(seq 100); do
            cat /proc/[0-9]*/comm | grep ^cr- >"$log/left" || break
            sleep 0.1
        done
        stat -c %s "$disk/out/.spool/000000.records" >"$log/size"
        $agent seal "$disk/out" 2>"$log/full-err"; echo $? >"$log/full-status"
        mount -o remount,size=400m "$disk"
        $agent seal "$disk/out" 2>"$log/seal-err"; echo $? >"$log/seal-status"
        $agent verify "$disk/out" >"$log/verify"; echo $? >"$log/verify-status"
        cp -a "$disk/out" "$work/bundle"
    "#;
    let script = Script::run(work.path(), "40m", script);
    assert_eq!(script.text("status"), "1");
    let said = script.text("err");
    assert!(said.contains("No space left on device"), "{said}");
    let hint = said.lines().find(|line| line.starts_with("hint: ")).unwrap_or_default();
    assert!(hint.contains("cleanroom-agent seal"), "{said}");
    assert_eq!(script.text("left"), "", "processes outlived the scan");
    // Still full: sealing fails, and spoils nothing for the next try.
    assert_eq!(script.text("full-status"), "1", "{}", script.text("full-err"));
    assert_eq!(script.text("seal-status"), "3", "{}", script.text("seal-err"));
    assert_eq!(script.text("verify-status"), "0", "{}", script.text("verify"));

    let output = Output { status: ExitStatus::from_raw(0), stdout: Vec::new(), stderr: Vec::new() };
    let scan = support::read(&work.path().join("bundle"), &output);
    // All but what the end of the disk cut off.
    let size: usize = script.text("size").parse().unwrap();
    let matched = scan.files.iter().filter(|file| !file.matches.is_empty()).count();
    assert!(matched < 600 && matched >= size / 102_000 - 1, "{matched} of {size} bytes");
    assert_eq!(scan.report.run.state, RunState::Interrupted);
    assert_eq!(scan.gaps.len(), 1);
    assert_eq!(scan.gaps[0].kind, GapKind::Interrupted);
}
