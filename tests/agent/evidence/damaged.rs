//! Evidence that is damaged, hostile, locked, or none at all.

use std::{fs, os::unix::fs::FileExt as _};

use cleanroom_contract::Gap;
use cleanroom_harness::tools;

use super::*;

/// The gaps of a volume.
pub(super) fn gaps_at<'s>(scan: &'s Scan, volume: &str) -> Vec<&'s Gap> {
    scan.gaps.iter().filter(|gap| gap.volume.as_deref() == Some(volume)).collect()
}

/// One gap of the volume is of this kind and says this, and what to do.
pub(super) fn assert_gap(scan: &Scan, volume: &str, kind: GapKind, text: &str) {
    let gaps = gaps_at(scan, volume);
    let found = gaps.iter().find(|gap| gap.kind == kind && gap.reason.contains(text));
    let found = found.unwrap_or_else(|| panic!("no gap {kind:?} {text:?} in {:?}", scan.gaps));
    assert!(found.advice.is_some(), "no advice: {found:?}");
    assert_eq!(scan.status, 3);
}

#[test]
fn evidence_that_is_not_there_is_an_error_and_writes_nothing() {
    let (content, work) = (content("good"), tempfile::tempdir().unwrap());
    let missing = work.path().join("missing.img");
    let fifo = work.path().join("fifo");
    nix::unistd::mkfifo(&fifo, nix::sys::stat::Mode::S_IRWXU).unwrap();
    for (bad, words) in [
        (missing.as_path(), "No such file or directory"),
        (fifo.as_path(), "neither a folder, a file nor a block device"),
        (Path::new("/dev/null"), "neither a folder, a file nor a block device"),
    ] {
        let out = work.path().join("out");
        let mut command = support::agent(work.path());
        // The good one before it is not begun either.
        command.arg("scan").arg(content.path()).arg(bad).arg("--out").arg(&out);
        let output = command.output().unwrap();
        let talk = String::from_utf8(output.stderr).unwrap();
        assert_eq!(output.status.code(), Some(1), "{talk}");
        assert!(output.stdout.is_empty());
        assert!(talk.starts_with("error: ") && talk.contains(words), "{talk}");
        assert!(talk.contains(bad.to_str().unwrap()), "{talk}");
        assert!(!out.exists(), "nothing is written");
    }
}

#[test]
fn evidence_that_is_nothing_is_a_gap_and_the_rest_is_examined() {
    let (content, work) = (content("good"), tempfile::tempdir().unwrap());
    let evidence = ["empty", "one", "zeros", "random"].map(|name| work.path().join(name));
    fs::write(&evidence[0], "").unwrap();
    fs::write(&evidence[1], "x").unwrap();
    fs::write(&evidence[2], vec![0; 3 << 20]).unwrap();
    damage::random_bytes(&evidence[3], 1_000_001).unwrap();
    let witnesses = evidence.each_ref().map(|path| Witness::of(path));
    let mut arguments = evidence.to_vec();
    arguments.push(content.path().to_owned());
    let scan = scan(work.path(), &arguments);
    for (name, words) in [
        ("empty", "the evidence is empty"),
        ("one", "shorter than one sector"),
        ("zeros", "reads as zeros"),
        ("random", "no known file system"),
    ] {
        assert_gap(&scan, name, GapKind::Evidence, words);
    }
    assert_examined(&scan, content.path().file_name().unwrap().to_str().unwrap(), &content);
    assert_eq!(scan.report.coverage.volumes_examined, 1);
    assert_eq!(scan.report.evidence.len(), 5);
    witnesses.iter().for_each(Witness::testify);
}

#[test]
fn a_truncated_image_says_so_and_never_calls_lost_files_clean() {
    if !is_root_for("truncated images") {
        return;
    }
    let (content, work) = (content("whole"), tempfile::tempdir().unwrap());
    fs::write(content.path().join("large"), vec![b'x'; 6 << 20]).unwrap();
    let image = Image::new(work.path(), "i", 16 * MIB).ext(Ext::Ext4, content.path()).unwrap();
    let xfs = Image::new(work.path(), "x", XFS_MIN).xfs(content.path()).unwrap();
    let uuid = "c1ea0000-0000-4000-8000-0000000e0003";
    let btrfs = Image::new(work.path(), "b", BTRFS_MIN).uuid(uuid).btrfs(content.path()).unwrap();
    let cases =
        [(&image, "ext.img", 5 * MIB), (&xfs, "xfs.img", 200 * MIB), (&btrfs, "b.img", 9 * MIB)];
    for (whole, name, length) in cases {
        let path = work.path().join(name);
        damage::truncated_copy(whole, &path, length).unwrap();
        let witness = Witness::of(&path);
        let scan = scan(work.path(), &[&path]);
        assert_gap(&scan, name, GapKind::Evidence, "the image is truncated");
        let large = scan.files.iter().find(|file| file.path.path == "/large");
        if let Some(sha256) = large.and_then(|file| file.sha256) {
            assert_eq!(sha256.to_string(), sha256sum(&content.path().join("large")));
        } else {
            let lost = |gap: &&Gap| gap.path.as_ref().is_some_and(|path| path.path == "/large");
            let whole = |gap: &&Gap| gap.kind == GapKind::Unmounted;
            assert!(scan.gaps.iter().any(|gap| lost(&gap) || whole(&gap)), "{:?}", scan.gaps);
        }
        witness.testify();
    }
}

#[test]
fn a_disk_cut_in_its_second_partition_shows_the_first() {
    if !is_root_for("a truncated disk") {
        return;
    }
    let (content, work) = (content("first"), tempfile::tempdir().unwrap());
    let image = Image::new(work.path(), "i", 16 * MIB).ext(Ext::Ext4, content.path()).unwrap();
    let disk = work.path().join("disk");
    disk::gpt(&disk, &[(&image, GPT_LINUX), (&image, GPT_LINUX), (&image, GPT_LINUX)]).unwrap();
    let path = work.path().join("disk.img");
    damage::truncated_copy(&disk, &path, 25 * MIB).unwrap();
    let witness = Witness::of(&path);
    let scan = scan(work.path(), &[&path]);
    assert_examined(&scan, "disk.img:p1", &content);
    assert_gap(&scan, "disk.img:p2", GapKind::Evidence, "the image is truncated");
    assert!(!gaps_at(&scan, "disk.img:p3").is_empty(), "{:?}", scan.gaps);
    witness.testify();
}

#[test]
fn partitions_that_lie_about_their_place_are_gaps() {
    if !is_root_for("partition tables that lie") {
        return;
    }
    let (content, work) = (content("honest"), tempfile::tempdir().unwrap());
    let image = Image::new(work.path(), "i", 8 * MIB).ext(Ext::Ext4, content.path()).unwrap();
    let path = work.path().join("disk.img");
    let parts = [image.as_path(); 4].map(|image| (image, GPT_LINUX));
    let disk = disk::gpt(&path, &parts).unwrap();
    let sector = |byte: u64| byte / disk::SECTOR;
    let p2 = sector(disk.partitions[1].offset);
    // The second ends far outside, the third lies there altogether, the fourth inside the second.
    damage::gpt_move(&path, 2, p2, 1 << 40).unwrap();
    damage::gpt_move(&path, 3, 1 << 41, (1 << 41) + 100).unwrap();
    damage::gpt_move(&path, 4, p2 + 8, p2 + 1000).unwrap();
    let witness = Witness::of(&path);
    let scan = scan(work.path(), &[&path]);
    assert_examined(&scan, "disk.img:p1", &content);
    let table = scan.gaps_of(GapKind::PartitionTable);
    let reasons: Vec<_> = table.iter().map(|gap| gap.reason.as_str()).collect();
    assert!(reasons.iter().any(|reason| reason.contains("overlap")), "{reasons:?}");
    assert!(!gaps_at(&scan, "disk.img:p2").is_empty(), "{:?}", scan.gaps);
    assert!(!gaps_at(&scan, "disk.img:p3").is_empty(), "{:?}", scan.gaps);
    assert!(scan.gaps.iter().all(|gap| gap.reason.is_ascii()));
    assert_eq!(scan.status, 3);
    // What the second holds is still a file system of 8 MiB from its first byte on.
    assert_examined(&scan, "disk.img:p2", &content);
    witness.testify();
}

#[test]
fn a_loop_of_boot_records_ends() {
    if !is_root_for("a loop of boot records") {
        return;
    }
    let (content, work) = (content("looped"), tempfile::tempdir().unwrap());
    let image = Image::new(work.path(), "i", 4 * MIB).ext(Ext::Ext2, content.path()).unwrap();
    let path = work.path().join("disk.img");
    disk::mbr(&path, &[(&image, "83")], &[(&image, "83"), (&image, "83")]).unwrap();
    damage::mbr_loop(&path).unwrap();
    let scan = scan(work.path(), &[&path]);
    for name in ["disk.img:p1", "disk.img:p5", "disk.img:p6"] {
        assert_examined(&scan, name, &content);
    }
    assert_eq!(scan.report.volumes.len(), 3);
    let gaps = scan.gaps_of(GapKind::PartitionTable);
    assert_eq!(gaps.len(), 1, "{:?}", scan.gaps);
    assert!(gaps[0].reason.contains("a loop") && gaps[0].advice.is_some(), "{:?}", gaps[0]);
    assert_eq!(scan.status, 3);
}

#[test]
fn partitions_that_cannot_be_used_do_not_hide_the_good_one() {
    if !is_root_for("partitions that cannot be mounted") {
        return;
    }
    let (content, work) = (content("good"), tempfile::tempdir().unwrap());
    let ext4 =
        |name: &str| Image::new(work.path(), name, 8 * MIB).ext(Ext::Ext4, content.path()).unwrap();
    let (good, future) = (ext4("good"), ext4("future"));
    // An incompatible feature that no kernel knows (bit 31 of s_feature_incompat).
    tools::run(
        tools::command("debugfs").unwrap().args(["-w", "-R", "feature FEATURE_I31"]).arg(&future),
    )
    .unwrap();
    let random = work.path().join("random");
    damage::random_bytes(&random, 1 << 20).unwrap();
    let luks = Image::new(work.path(), "luks", MIB).zeros().unwrap();
    let file = fs::File::options().write(true).open(&luks).unwrap();
    file.write_all_at(b"LUKS\xba\xbe\x00\x01", 0).unwrap();
    let zeros = Image::new(work.path(), "zeros", MIB).zeros().unwrap();
    let path = work.path().join("disk.img");
    let parts = [&future, &random, &luks, &good, &zeros];
    disk::gpt(&path, &parts.map(|image| (image.as_path(), GPT_LINUX))).unwrap();
    let witness = Witness::of(&path);
    let scan = scan(work.path(), &[&path]);
    assert_examined(&scan, "disk.img:p4", &content);
    let states: Vec<_> = scan.report.volumes.iter().map(|v| v.content.as_str()).collect();
    assert_eq!(states, ["ext4", "unknown", "luks", "ext4", "empty"]);
    for (number, words) in [(2, "nothing that is known"), (3, "holds luks"), (5, "holds zeros")] {
        assert_gap(&scan, &format!("disk.img:p{number}"), GapKind::Unmounted, words);
    }
    assert_gap(&scan, "disk.img:p1", GapKind::Unmounted, "mount the ext4 file system");
    assert_eq!(scan.report.coverage.volumes_examined, 1);
    assert!(gaps_at(&scan, "disk.img:p4").is_empty());
    witness.testify();
}

#[test]
fn without_root_an_image_is_a_gap_that_says_what_to_do() {
    let (content, work) = (content("locked"), tempfile::tempdir().unwrap());
    let path = Image::new(work.path(), "i.img", 8 * MIB).ext(Ext::Ext4, content.path()).unwrap();
    let scan = support::scan_as_nobody(work.path(), &[&path]);
    assert_gap(&scan, "i.img", GapKind::Unmounted, "loop device");
    let gap = scan.gaps_of(GapKind::Unmounted)[0];
    assert!(gap.advice.as_ref().unwrap().contains("root"), "{gap:?}");
    let volume = volume(&scan, "i.img");
    assert_eq!((volume.content.as_str(), volume.state), ("ext4", VolumeState::NotExamined));
}

#[test]
fn evidence_that_may_not_be_read_is_an_error() {
    use std::os::unix::fs::PermissionsExt as _;
    let work = tempfile::tempdir().unwrap();
    let (image, out) = (work.path().join("i.img"), work.path().join("out"));
    fs::write(&image, "x").unwrap();
    fs::set_permissions(&image, fs::Permissions::from_mode(0o000)).unwrap();
    fs::create_dir(&out).unwrap();
    let mut command = support::nobody(work.path(), &out);
    let output = command.arg("scan").arg(&image).arg("--out").arg(&out).output().unwrap();
    let talk = String::from_utf8(output.stderr).unwrap();
    assert_eq!(output.status.code(), Some(1), "{talk}");
    assert!(talk.contains("Permission denied") && talk.contains("i.img"), "{talk}");
    assert_eq!(fs::read_dir(&out).unwrap().count(), 0, "nothing is written");
}
