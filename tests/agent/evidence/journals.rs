//! Dirty journals: what they hold is seen, and the evidence stays as it is.
//!
//! The images are copies of file systems in use, made here and nowhere else, so that mounting them on this
//! kernel is no risk. What the device mapper does is in [`crate::vm`]: this kernel may lack it.

use std::io::Write as _;

use cleanroom_contract::{ReplayMeans, RunState};
use cleanroom_harness::damage::{DIRTY_CONTENT, DIRTY_FILE};
use nix::sys::signal::Signal;

use super::{
    damaged::{assert_gap, gaps_at},
    *,
};
use crate::processes::running::{Running, SLOW, slow_rule, wait_until_gone};

/// Whether journals can be replayed here; where not, says what stays untested.
fn can_replay_for(what: &str) -> bool {
    let means = ["/dev/fuse", "/dev/mapper/control"];
    let able = means.iter().any(|means| Path::new(means).exists());
    if !able {
        drop(writeln!(std::io::stderr(), "not tested without FUSE or device mapper: {what}"));
    }
    able && is_root_for(what)
}

/// A copy of an image in use: its journal holds what the file system lacks.
fn dirty(work: &Path, image: &Path) -> PathBuf {
    let copy = work.join("dirty.img");
    damage::dirty_copy(image, &copy).unwrap();
    copy
}

fn ext(kind: Ext, work: &Path, content: &TempDir) -> PathBuf {
    Image::new(work, "i", 16 * MIB).ext(kind, content.path()).unwrap()
}

/// What is stored lacks the file, and that is a gap.
fn assert_stored(work: &Path, image: &Path, content: &TempDir, option: &str) {
    let witness = Witness::of(image);
    let scan = scan(work, &[Path::new("--no-replay"), image]);
    witness.testify();
    assert_examined(&scan, "dirty.img", content);
    assert_gap(&scan, "dirty.img", GapKind::UnreplayedJournal, "not replayed");
    assert_eq!(scan.gaps.len(), 1, "{:?}", scan.gaps);
    assert!(scan.gaps[0].advice.as_ref().unwrap().contains("--no-replay"), "{:?}", scan.gaps);
    let volume = volume(&scan, "dirty.img");
    assert!(volume.unreplayed_journal.is_some() && volume.replayed.is_none(), "{volume:?}");
    assert!(volume.view.iter().any(|o| o == option), "{:?}", volume.view);
    assert!(!scan.paths().contains(&DIRTY_FILE), "nothing was replayed");
}

/// What is replayed has it, nothing is missing, and the evidence is as it was.
fn assert_replayed(work: &Path, image: &Path, content: &TempDir, option: &str) {
    let witness = Witness::of(image);
    let scan = scan(work, &[image]);
    witness.testify();
    assert_examined(&scan, "dirty.img", content);
    assert_eq!((scan.status, scan.gaps.len()), (0, 0), "{:?}", scan.gaps);
    let volume = volume(&scan, "dirty.img");
    assert_eq!(volume.unreplayed_journal, None);
    let replayed = volume.replayed.as_ref().unwrap();
    assert!(!replayed.reason.is_empty());
    for option in ["ro", "nosuid", "nodev", "noexec", "noatime"] {
        assert!(volume.view.iter().any(|o| o == option), "{option}: {:?}", volume.view);
    }
    assert!(!volume.view.iter().any(|o| o == option), "{:?}", volume.view);
    let written = work.join("written");
    fs::write(&written, DIRTY_CONTENT).unwrap();
    assert_eq!(scan.file(DIRTY_FILE).sha256.unwrap().to_string(), sha256sum(&written));
    let page = fs::read_to_string(scan.bundle.join("report.html")).unwrap();
    assert!(page.contains(&format!("replayed ({})", replayed.means.as_str())));
}

#[test]
fn what_a_dirty_ext_journal_holds_is_seen() {
    if !can_replay_for("dirty ext3 and ext4 images") {
        return;
    }
    for kind in [Ext::Ext3, Ext::Ext4] {
        let (content, work) = (content("before"), tempfile::tempdir().unwrap());
        let image = dirty(work.path(), &ext(kind, work.path(), &content));
        assert_stored(work.path(), &image, &content, "noload");
        assert_replayed(work.path(), &image, &content, "noload");
    }
}

#[test]
fn what_a_dirty_xfs_log_holds_is_seen() {
    if !can_replay_for("a dirty XFS image") {
        return;
    }
    let (content, work) = (content("before"), tempfile::tempdir().unwrap());
    let image = Image::new(work.path(), "i", XFS_MIN).xfs(content.path()).unwrap();
    let image = dirty(work.path(), &image);
    assert_stored(work.path(), &image, &content, "norecovery");
    assert_replayed(work.path(), &image, &content, "norecovery");
}

#[test]
fn what_a_dirty_btrfs_log_tree_holds_is_seen() {
    if !can_replay_for("a dirty btrfs image") {
        return;
    }
    let (content, work) = (content("before"), tempfile::tempdir().unwrap());
    let uuid = "c1ea0000-0000-4000-8000-0000000e0004";
    let image = Image::new(work.path(), "i", BTRFS_MIN).uuid(uuid).btrfs(content.path()).unwrap();
    let image = dirty(work.path(), &image);
    assert_stored(work.path(), &image, &content, "rescue=nologreplay");
    assert_replayed(work.path(), &image, &content, "rescue=nologreplay");
}

#[test]
fn a_dirty_partition_is_replayed_and_its_neighbour_left_alone() {
    if !can_replay_for("a dirty partition of a disk") {
        return;
    }
    let (content, work) = (content("before"), tempfile::tempdir().unwrap());
    let clean = ext(Ext::Ext4, work.path(), &content);
    let other = work.path().join("other");
    damage::sparse_copy(&clean, &other).unwrap();
    let image = dirty(work.path(), &clean);
    let path = work.path().join("disk.img");
    disk::gpt(&path, &[(&other, GPT_LINUX), (&image, GPT_LINUX)]).unwrap();
    let witness = Witness::of(&path);
    let scan = scan(work.path(), &[&path]);
    witness.testify();
    assert_eq!(scan.status, 0, "{:?}", scan.gaps);
    for (name, replayed) in [("disk.img:p1", false), ("disk.img:p2", true)] {
        assert_examined(&scan, name, &content);
        assert_eq!(volume(&scan, name).replayed.is_some(), replayed, "{name}");
        assert_eq!(digests(&scan, name).contains_key(DIRTY_FILE), replayed, "{name}");
    }
}

#[test]
fn a_journal_that_is_only_marked_dirty_counts_as_dirty() {
    if !can_replay_for("an ext4 image that needs recovery") {
        return;
    }
    let (content, work) = (content("marked"), tempfile::tempdir().unwrap());
    let path = ext(Ext::Ext4, work.path(), &content);
    damage::mark_needs_recovery(&path).unwrap();
    let witness = Witness::of(&path);
    let stored = scan(work.path(), &[Path::new("--no-replay"), &path]);
    assert_examined(&stored, "i", &content);
    assert_gap(&stored, "i", GapKind::UnreplayedJournal, "needs_recovery");
    let replayed = scan(work.path(), &[&path]);
    assert_examined(&replayed, "i", &content);
    assert_eq!(replayed.status, 0, "{:?}", replayed.gaps);
    assert!(volume(&replayed, "i").replayed.as_ref().unwrap().reason.contains("needs_recovery"));
    witness.testify();
}

#[test]
fn scratch_that_is_too_small_is_a_gap_and_what_is_stored_is_seen() {
    if !can_replay_for("too little scratch") {
        return;
    }
    let (content, work) = (content("before"), tempfile::tempdir().unwrap());
    let image = dirty(work.path(), &ext(Ext::Ext4, work.path(), &content));
    let witness = Witness::of(&image);
    let args = [Path::new("--scratch-size"), Path::new("8K"), &image];
    let scan = scan(work.path(), &args);
    witness.testify();
    assert_gap(&scan, "dirty.img", GapKind::UnreplayedJournal, "8192 bytes of scratch");
    assert!(gaps_at(&scan, "dirty.img")[0].advice.as_ref().unwrap().contains("--scratch"));
    assert_examined(&scan, "dirty.img", &content);
    assert!(volume(&scan, "dirty.img").replayed.is_none());
    assert!(!scan.paths().contains(&DIRTY_FILE));
}

#[test]
fn scratch_that_cannot_be_used_is_an_error_before_anything_is_read() {
    let (content, work) = (content("good"), tempfile::tempdir().unwrap());
    let inside = content.path().join("etc");
    for (folder, words) in
        [(work.path().join("missing"), "scratch folder"), (inside, "would change it")]
    {
        let out = work.path().join("out");
        let mut command = support::agent(work.path());
        command.arg("scan").arg(content.path()).arg("--scratch").arg(&folder);
        let output = command.arg("--out").arg(&out).output().unwrap();
        let talk = String::from_utf8(output.stderr).unwrap();
        assert_eq!(output.status.code(), Some(1), "{talk}");
        assert!(talk.contains(words) && talk.contains(folder.to_str().unwrap()), "{talk}");
        assert!(!out.exists() || fs::read_dir(&out).unwrap().count() == 0, "nothing is written");
    }
}

/// A scan that is busy in a view of a dirty image.
fn busy(work: &Path, content: &TempDir) -> (PathBuf, Running) {
    fs::write(content.path().join(&SLOW[1..]), b"slow\n").unwrap();
    let image = dirty(work, &ext(Ext::Ext4, work, content));
    let rules = slow_rule(work);
    let scratch = work.join("scratch");
    fs::create_dir(&scratch).unwrap();
    let args = [&image, Path::new("--rules"), &rules, Path::new("--scratch"), &scratch];
    let mut running = Running::start(work, &args);
    running.wait_for_slow_file();
    (image, running)
}

/// The loop device that a process sees files through, and how often it was set up: another may take its
/// name a moment later.
fn loop_device_under(process: i32) -> Option<(PathBuf, String)> {
    let descriptors = fs::read_dir(format!("/proc/{process}/fd")).ok()?;
    descriptors.flatten().find_map(|descriptor| {
        let device = fs::metadata(descriptor.path()).ok()?.dev();
        let device = fs::canonicalize(format!("/sys/dev/block/{}:{}", device >> 8, device & 0xff));
        let device = device.ok().filter(|device| device.join("loop").is_dir())?;
        let count = fs::read_to_string(device.join("diskseq")).ok()?;
        Some((device, count))
    })
}

#[test]
fn sigkill_leaves_nothing_of_a_view_behind() {
    if !can_replay_for("views after SIGKILL") {
        return;
    }
    let (content, work) = (content("killed"), tempfile::tempdir().unwrap());
    let (image, mut running) = busy(work.path(), &content);
    let witness = Witness::of(&image);
    let walker = running.wait_for("cr-walker");
    let family = running.processes();
    let device = loop_device_under(walker.pid);
    assert!(device.is_some() || Path::new("/dev/mapper/control").exists(), "{family:?}");
    running.supervisor().signal(Signal::SIGKILL);
    assert_eq!(running.output().status.code(), None);
    wait_until_gone(&family);
    if let Some((device, count)) = device {
        wait_until("the view's loop device is gone", || {
            let now = fs::read_to_string(device.join("diskseq"));
            !device.join("loop").is_dir() || now.is_ok_and(|now| now != count)
        });
    }
    witness.testify();
    assert_eq!(fs::read_dir(work.path().join("scratch")).unwrap().count(), 0);
    let mounts = fs::read_to_string("/proc/self/mountinfo").unwrap();
    assert!(!mounts.contains(" cleanroom "), "{mounts}");
}

#[test]
fn an_overlay_that_dies_is_a_gap_and_the_volume_incomplete() {
    if !can_replay_for("an overlay that dies") {
        return;
    }
    let (content, work) = (content("torn"), tempfile::tempdir().unwrap());
    let (image, mut running) = busy(work.path(), &content);
    let Some(overlay) = running.named("cr-overlay").pop() else {
        drop(writeln!(std::io::stderr(), "not tested with device mapper: an overlay that dies"));
        return;
    };
    let witness = Witness::of(&image);
    overlay.signal(Signal::SIGKILL);
    wait_until_gone(&[overlay]);
    running.wait_for_slow_file().signal(Signal::SIGKILL);
    let scan = running.finish();
    witness.testify();
    assert_gap(&scan, "dirty.img", GapKind::UnreplayedJournal, "the overlay ended");
    assert_eq!(volume(&scan, "dirty.img").state, VolumeState::Incomplete);
    let means = volume(&scan, "dirty.img").replayed.as_ref().unwrap().means;
    assert_eq!(means, ReplayMeans::Overlay);
    assert_eq!(scan.report.run.state, RunState::Complete, "other volumes would be examined");
    assert!(!scan.report.summary.complete);
}
