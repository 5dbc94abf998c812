//! The agent's processes die, hang and are told to stop: each loss is one gap, and nothing outlives a run.

pub(crate) mod running;

use std::{fs, path::Path};

use cleanroom_contract::{GapKind, RunState, ScanState, VolumeState};
use cleanroom_harness::images::{Ext, Image, MIB};
use nix::sys::signal::Signal;

use crate::support::{self, Scan, agent, is_root_for, wait_until};
use running::{Running, SLOW, busy_folder, loop_devices, slow_rule, wait_until_gone};

/// A folder `evidence` with the slow file among `count` others, and a scan of it by one inspector.
fn start_busy(work: &Path, count: usize, slow: usize, more: &[&str]) -> Running {
    let evidence = work.join("evidence");
    busy_folder(&evidence, count, slow);
    let rules = slow_rule(work);
    let mut args = vec![evidence.to_str().unwrap(), "--rules", rules.to_str().unwrap()];
    args.extend(["--threads", "1"]);
    args.extend(more);
    Running::start(work, &args)
}

/// The slow file is a gap of this kind and a finding; each of the `count` others matched.
fn assert_only_slow_is_lost(scan: &Scan, count: usize, kind: GapKind) {
    let kinds: Vec<_> = scan.gaps.iter().map(|gap| (gap.kind, gap.path.clone())).collect();
    assert_eq!(kinds.len(), 1, "{kinds:?}");
    assert_eq!(kinds[0].0, kind);
    assert_eq!(kinds[0].1.as_ref().unwrap().path, SLOW);
    let findings: Vec<_> =
        scan.findings.iter().filter(|f| f.path.as_ref().unwrap().path == SLOW).collect();
    assert_eq!(findings.len(), 1, "{findings:?}");
    assert_eq!(findings[0].source, "inspect:lost");
    let matched = scan.files.iter().filter(|file| file.scan == ScanState::Matched);
    assert_eq!(matched.filter(|file| file.sha256.is_some()).count(), count);
    assert_eq!(scan.report.run.state, RunState::Complete);
    assert!(scan.report.summary.complete);
    assert_eq!(scan.status, 3);
}

/// What `verify` says to people; its exit status must be 0, the bundle intact.
fn verified(bundle: &Path) -> String {
    let output = agent(bundle).args(["verify", "--format", "human"]).arg(bundle).output().unwrap();
    let text = String::from_utf8(output.stdout).unwrap();
    assert_eq!(output.status.code(), Some(0), "{text}");
    text
}

#[test]
fn a_killed_inspector_costs_the_file_in_hand_and_nothing_else() {
    let work = tempfile::tempdir().unwrap();
    // Smaller than some and larger than others: it is in the middle of its batch.
    let mut running = start_busy(work.path(), 200, 9, &[]);
    running.wait_for_slow_file().signal(Signal::SIGKILL);
    let scan = running.finish();
    assert_only_slow_is_lost(&scan, 200, GapKind::Crashed);
    assert!(scan.gaps[0].reason.contains("was killed by SIGKILL"), "{}", scan.gaps[0].reason);
    assert_eq!(scan.file(SLOW).scan, ScanState::Error);
    assert_eq!(scan.file(SLOW).sha256, None);
}

#[test]
fn a_silent_inspector_costs_the_file_in_hand_and_nothing_else() {
    let work = tempfile::tempdir().unwrap();
    let mut running = start_busy(work.path(), 200, 9, &["--file-timeout", "6s"]);
    let stopped = running.wait_for_slow_file();
    stopped.signal(Signal::SIGSTOP);
    let scan = running.finish();
    assert!(stopped.is_gone());
    assert_only_slow_is_lost(&scan, 200, GapKind::Timeout);
    // Not by the engine's own limit: this was the kill from outside.
    assert!(scan.gaps[0].reason.contains("not done after 6.0 s"), "{}", scan.gaps[0].reason);
    assert_eq!(scan.file(SLOW).scan, ScanState::Timeout);
}

#[test]
fn a_slow_rule_costs_its_verdict_and_not_the_digest() {
    let work = tempfile::tempdir().unwrap();
    let running = start_busy(work.path(), 50, 9, &["--file-timeout", "2s"]);
    let scan = running.finish();
    assert_only_slow_is_lost(&scan, 50, GapKind::Timeout);
    let slow = scan.file(SLOW);
    assert_eq!(slow.scan, ScanState::Timeout);
    let expected = support::sha256sum(&work.path().join("evidence").join(&SLOW[1..]));
    assert_eq!(slow.sha256.unwrap().to_string(), expected);
}

#[test]
fn a_killed_zygote_costs_nothing() {
    let work = tempfile::tempdir().unwrap();
    let mut running = start_busy(work.path(), 200, 9, &["--file-timeout", "5s"]);
    running.wait_for_slow_file();
    running.wait_for("cr-zygote").signal(Signal::SIGKILL);
    // No file is blamed for it: the endless one is read again, and runs into its time limit.
    assert_only_slow_is_lost(&running.finish(), 200, GapKind::Timeout);
}

#[test]
fn a_killed_walker_costs_the_rest_of_its_volume_and_no_other() {
    let work = tempfile::tempdir().unwrap();
    let second = work.path().join("second");
    fs::create_dir(&second).unwrap();
    for number in 0..20 {
        fs::write(second.join(format!("{number}")), "marker").unwrap();
    }
    let more = [second.to_str().unwrap(), "--file-timeout", "300s"];
    let mut running = start_busy(work.path(), 50, 9, &more);
    running.wait_for_slow_file();
    running.wait_for("cr-walker").signal(Signal::SIGKILL);
    let scan = running.finish();
    assert_eq!(scan.status, 3);
    assert_eq!(scan.gaps.len(), 1, "{:?}", scan.gaps);
    let gap = &scan.gaps[0];
    assert_eq!((gap.kind, gap.volume.as_deref()), (GapKind::Walker, Some("evidence")));
    assert!(gap.advice.is_some());
    let states: Vec<_> = scan.report.volumes.iter().map(|v| (&*v.volume, v.state)).collect();
    let expected = [("evidence", VolumeState::Incomplete), ("second", VolumeState::Examined)];
    assert_eq!(states, expected);
    let in_second = scan.files.iter().filter(|file| file.volume == "second");
    assert_eq!(in_second.filter(|file| file.scan == ScanState::Matched).count(), 20);
    assert!(!scan.report.summary.complete);
    assert!(verified(&scan.bundle).contains("INCOMPLETE"));
}

/// Interrupts a scan of two folders by what `interrupt` does, while the first file of the first keeps
/// the only inspector busy and hundreds wait.
fn interrupted_by(interrupt: impl FnOnce(&mut Running)) -> Scan {
    let work = tempfile::tempdir().unwrap().keep();
    let second = work.join("second");
    fs::create_dir(&second).unwrap();
    fs::write(second.join("file"), "marker").unwrap();
    // A batch of its own: everything else waits behind it.
    let slow = usize::try_from(2 * MIB).unwrap();
    let mut running = start_busy(&work, 900, slow, &[second.to_str().unwrap()]);
    running.wait_for_slow_file();
    let family = running.processes();
    interrupt(&mut running);
    let scan = running.finish();
    wait_until_gone(&family);
    assert_eq!(scan.status, 3, "{}", scan.stderr);
    assert_eq!(scan.report.run.state, RunState::Interrupted);
    assert!(!scan.report.summary.complete);
    assert!(scan.gaps.iter().any(|gap| gap.volume.as_deref() == Some("evidence")));
    assert!(verified(&scan.bundle).contains("INCOMPLETE"));
    let page = fs::read_to_string(scan.bundle.join("report.html")).unwrap();
    assert!(page.contains("INCOMPLETE"));
    assert!(scan.files.iter().all(|file| file.scan != ScanState::Clean), "nothing was judged");
    fs::remove_dir_all(&work).unwrap();
    scan
}

#[test]
fn signals_end_a_scan_with_a_valid_and_visibly_incomplete_bundle() {
    for signal in [Signal::SIGINT, Signal::SIGTERM] {
        let scan = interrupted_by(|running| running.supervisor().signal(signal));
        let gaps: Vec<_> = scan.gaps.iter().map(|gap| (gap.kind, gap.volume.clone())).collect();
        let of = |volume: &str| (GapKind::Interrupted, Some(volume.to_owned()));
        assert_eq!(gaps, [of("evidence"), of("second")], "{signal}");
        let states: Vec<_> = scan.report.volumes.iter().map(|volume| volume.state).collect();
        assert_eq!(states, [VolumeState::Incomplete, VolumeState::NotExamined]);
        // What was found and not read is recorded, and says so.
        let waiting = scan.files.iter().filter(|file| file.path.path.contains("/file-"));
        let waiting: Vec<_> = waiting.collect();
        assert!(!waiting.is_empty());
        assert!(waiting.iter().all(|file| file.sha256.is_none()));
    }
}

#[test]
fn impatience_ends_a_scan_no_worse_than_patience() {
    interrupted_by(|running| {
        let supervisor = running.supervisor();
        wait_until("the scan ends", || {
            supervisor.signal(Signal::SIGINT);
            supervisor.signal(Signal::SIGTERM);
            running.has_ended()
        });
    });
}

#[test]
fn sigkill_leaves_nothing_behind_but_records_that_can_be_sealed() {
    if !is_root_for("loop devices and mounts after SIGKILL") {
        return;
    }
    let work = tempfile::tempdir().unwrap();
    let content = work.path().join("content");
    busy_folder(&content, 300, 9);
    let image = Image::new(work.path(), "disk.img", 32 * MIB).ext(Ext::Ext4, &content).unwrap();
    let rules = slow_rule(work.path());
    let args = [image.to_str().unwrap(), "--rules", rules.to_str().unwrap(), "--threads", "2"];
    let mut running = Running::start(work.path(), &args);
    running.wait_for_slow_file();
    assert_eq!(loop_devices(&image).len(), 1, "the image is seen through a loop device");
    // The other inspector is through with everything else, and the records have been written down.
    let spool = running.out.join(".spool/000000.records");
    wait_until("records are on disk", || fs::metadata(&spool).is_ok_and(|file| file.len() > 1000));
    let family = running.processes();
    assert_eq!(family.iter().filter(|process| process.name == "cr-inspector").count(), 2);
    running.supervisor().signal(Signal::SIGKILL);
    let out = running.out.clone();
    let output = running.output();
    assert_eq!(output.status.code(), None);
    wait_until_gone(&family);
    wait_until("the loop device is gone", || loop_devices(&image).is_empty());
    let mounts = fs::read_to_string("/proc/self/mountinfo").unwrap();
    assert!(!mounts.contains(work.path().to_str().unwrap()), "{mounts}");

    let refused =
        agent(work.path()).arg("scan").arg(&content).arg("--out").arg(&out).output().unwrap();
    assert_eq!(refused.status.code(), Some(1));
    assert!(String::from_utf8_lossy(&refused.stderr).contains("cleanroom-agent seal"));
    assert_seal_says_what_is_missing(&out);
}

/// Seals what a killed scan left, which names the volume that was in hand.
fn assert_seal_says_what_is_missing(out: &Path) {
    let sealed = agent(out).arg("seal").arg(out).output().unwrap();
    assert_eq!(sealed.status.code(), Some(3), "{}", String::from_utf8_lossy(&sealed.stderr));
    let scan = support::read(out, &sealed);
    assert!(!scan.files.is_empty());
    assert_eq!(scan.report.run.state, RunState::Interrupted);
    assert!(!scan.report.summary.complete);
    let gaps: Vec<_> = scan.gaps.iter().map(|gap| (gap.kind, gap.volume.as_deref())).collect();
    assert_eq!(gaps, [(GapKind::Interrupted, Some("disk.img"))]);
    let volumes: Vec<_> = scan.report.volumes.iter().map(|v| (&*v.volume, v.state)).collect();
    assert_eq!(volumes, [("disk.img", VolumeState::Incomplete)]);
    assert!(verified(out).contains("INCOMPLETE"));
    assert!(!out.join(".spool").exists());
    let again = agent(out).arg("seal").arg(out).output().unwrap();
    assert_eq!(again.status.code(), Some(1), "a bundle is sealed once");
}

#[test]
fn the_rule_compiler_ends_with_the_scan_it_works_for() {
    let work = tempfile::tempdir().unwrap();
    let text: String = (0..20_000)
        .map(|n| format!("rule r{n} {{ strings: $a = /k[a-z]+{n}[0-9]{{3,9}}/ condition: $a }}\n"))
        .collect();
    let rules = work.path().join("many.yar");
    fs::write(&rules, text).unwrap();
    let evidence = work.path().join("evidence");
    fs::create_dir(&evidence).unwrap();
    let args = [evidence.as_os_str(), "--rules".as_ref(), rules.as_os_str()];
    let mut running = Running::start(work.path(), &args);
    let compiler = running.wait_for("cr-compiler");
    // Stopped, it cannot end by having compiled everything.
    compiler.signal(Signal::SIGSTOP);
    running.supervisor().signal(Signal::SIGKILL);
    let out = running.out.clone();
    running.output();
    wait_until_gone(&[compiler]);
    assert_eq!(fs::read_dir(out).unwrap().count(), 0, "nothing was examined, nothing is left");
}

#[test]
fn nothing_is_left_of_a_run_that_ended_well() {
    let work = tempfile::tempdir().unwrap();
    let content = work.path().join("content");
    busy_folder(&content, 50, 9);
    let rules = slow_rule(work.path());
    let image = Image::new(work.path(), "disk.img", 32 * MIB).ext(Ext::Ext4, &content).unwrap();
    let root = is_root_for("the loop device of a run that ended well");
    let evidence = if root { &image } else { &content };
    let args = [evidence.to_str().unwrap(), "--rules", rules.to_str().unwrap()];
    let mut running = Running::start(work.path(), &[&args[..], &["--file-timeout", "2s"]].concat());
    running.wait_for_slow_file();
    let family = running.processes();
    let names: Vec<_> = family.iter().map(|process| process.name.as_str()).collect();
    for name in ["cr-walker", "cr-zygote", "cr-inspector"] {
        assert!(names.contains(&name), "{names:?}");
    }
    let scan = running.finish();
    assert_eq!(scan.gaps_of(GapKind::Timeout).len(), scan.gaps.len());
    wait_until_gone(&family);
    wait_until("the loop device is gone", || loop_devices(&image).is_empty());
    assert!(!scan.bundle.join(".spool").exists());
}

/// Scans a tree of 3,000 files while `harass` is called again and again; each call says how many
/// processes it killed. Returns the scan and all kills.
fn harassed(mut harass: impl FnMut(&mut Running, usize) -> usize) -> (Scan, usize) {
    const FILES: usize = 3000;
    let work = tempfile::tempdir().unwrap().keep();
    let evidence = work.join("evidence");
    busy_folder(&evidence, FILES, 0);
    let rules = work.join("rules.yar");
    fs::write(&rules, "rule marker { strings: $m = \"marker\" condition: $m }").unwrap();
    let args = [evidence.as_os_str(), "--rules".as_ref(), rules.as_os_str()];
    let threads = ["--threads".as_ref(), "2".as_ref()];
    let mut running = Running::start(&work, &[&args[..], &threads].concat());
    running.wait_for("cr-inspector");
    let mut kills = 0;
    wait_until("the harassed scan ends", || {
        kills += harass(&mut running, kills);
        running.has_ended()
    });
    let scan = running.finish();
    let read = scan.files.iter().filter(|file| file.scan == ScanState::Matched).count();
    let lost = scan.gaps_of(GapKind::Crashed);
    assert_eq!(lost.len(), scan.gaps.len(), "{:?}", scan.gaps);
    for gap in &lost {
        let path = &gap.path.as_ref().unwrap().path;
        assert_eq!(scan.file(path).scan, ScanState::Error, "{path}");
    }
    // The empty slow file matches nothing, or is among the lost.
    let clean = scan.files.iter().filter(|file| file.scan == ScanState::Clean).count();
    assert_eq!(read + clean + lost.len(), FILES + 1);
    assert_eq!(scan.report.run.state, RunState::Complete);
    assert_eq!(scan.status, if lost.is_empty() { 0 } else { 3 });
    fs::remove_dir_all(&work).unwrap();
    (scan, kills)
}

#[test]
fn inspectors_that_keep_dying_cost_no_more_files_than_deaths() {
    let (scan, kills) = harassed(|running, so_far| {
        let inspectors = running.named("cr-inspector");
        let Some(victim) = inspectors.get(so_far % 2).filter(|_| so_far < 100) else { return 0 };
        victim.signal(Signal::SIGKILL);
        1
    });
    assert!(kills > 5, "only {kills} were killed");
    assert!(scan.gaps.len() <= kills, "{} gaps, {kills} kills", scan.gaps.len());
}

#[test]
fn zygotes_that_die_cost_no_more_files_than_their_inspectors() {
    let (scan, kills) = harassed(|running, so_far| {
        // Five may die in a run.
        let zygotes = if so_far < 3 { running.named("cr-zygote") } else { Vec::new() };
        let Some(zygote) = zygotes.first() else { return 0 };
        if running.named("cr-inspector").is_empty() {
            return 0;
        }
        zygote.signal(Signal::SIGKILL);
        wait_until("the zygote is gone", || zygote.is_gone());
        1
    });
    assert!(kills >= 1);
    assert!(scan.gaps.len() <= 2 * kills, "{} gaps, {kills} kills", scan.gaps.len());
}
