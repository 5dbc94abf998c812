//! What must not touch this machine's kernel, or needs another: the agent inside a virtual machine with
//! Debian's 6.1 kernel, disks on NVMe as on an EC2 instance, and file systems that this kernel may lack.
//!
//! One boot serves all of it, since booting is what takes the time.

use std::{
    fs,
    os::unix::process::ExitStatusExt as _,
    path::{Path, PathBuf},
    process::{Command, ExitStatus, Output},
    time::Duration,
};

use cleanroom_contract::{EntryKind, GapKind, ReplayMeans, ScanState, VolumeState};
use cleanroom_harness::{
    damage::{DIRTY_CONTENT, DIRTY_FILE, dirty_copy, panic_on_error},
    disk::{GPT_EFI, GPT_LINUX, gpt, mbr},
    images::{BTRFS_MIN, Ext, Image, MIB, XFS_MIN},
    vm::{Disk, Vm, VmOutcome},
};

use crate::support::{self, Scan, run, sha256sum};

/// The guest's script: scans, each leaving its streams, status and bundle in `/out`.
const SCRIPT: &str = r#"
scan() {
    name=$1; shift
    cleanroom-agent scan "$@" --out /tmp/$name >/out/$name.stdout 2>/out/$name.stderr
    echo $? >/out/$name.status
    cp -r /tmp/$name /out/$name
}
scan panic /dev/nvme0n1
scan disks /dev/nvme1n1 /dev/nvme2n1

# Disks in use when they were copied, set read-only as in a clean room.
dirty="/dev/nvme3n1 /dev/nvme4n1 /dev/nvme5n1"
for disk in $dirty; do blockdev --setro $disk; done
scan replayed $dirty
scan full $dirty --scratch-size 8K

# An inspector that has worked for a second has the endless file in hand.
busy() {
    for stat in /proc/[0-9]*/stat; do
        read -r line <$stat || continue
        case "$line" in *"(cr-inspector)"*) ;; *) continue ;; esac
        set -- ${line##*) }
        [ "${12}" -ge 100 ] && return 0
    done 2>/dev/null
    return 1
}
cp /shrinks.img /tmp/shrinks.img
scan shrinks /tmp/shrinks.img --rules /slow.yar --file-timeout 12s --threads 1 &
for try in $(seq 600); do
    busy && { truncate -s 64K /tmp/shrinks.img; echo yes >/out/shrunk; break; }
    usleep 100000
done
wait

cleanroom-agent scan /dev/nvme3n1 --rules /slow.yar --threads 1 --out /tmp/killed &
agent=$!
for try in $(seq 600); do
    busy && { ls -d /sys/block/dm-* >/out/mapped; break; }
    usleep 100000
done
kill -KILL $agent
wait
for try in $(seq 100); do
    ls -d /sys/block/dm-* /sys/block/loop*/loop >/out/left 2>/dev/null
    [ -s /out/left ] || break
    usleep 100000
done
exit 0
"#;

/// A rule that keeps the one inspector busy with the largest file.
const SLOW_RULE: &str = r#"
rule endless {
    condition:
        filename == "slow" and for all i in (0..1000000000000) : (i * i + filesize != 7)
}
"#;

/// Writes files of these names, each with a content of its own, below a new folder.
fn content(work: &Path, name: &str, files: &[&str]) -> PathBuf {
    let folder = work.join(name);
    for file in files {
        let path = folder.join(file);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, format!("{name}: {file}\n").repeat(500)).unwrap();
    }
    folder
}

/// The agent without what only debuggers read: the guest's memory is small.
fn stripped(work: &Path) -> PathBuf {
    let path = work.join("cleanroom-agent");
    let program = env!("CARGO_BIN_EXE_cleanroom-agent");
    let (status, _, stderr) = run(Command::new("strip").arg("-o").arg(&path).arg(program));
    assert_eq!(status, 0, "{stderr}");
    path
}

/// An ext4 file system that asks the kernel to panic at the first error, with an error in `/broken`.
fn panicking(work: &Path) -> PathBuf {
    let files = ["before/file", "broken/file", "sound/file"];
    let content = content(work, "panic", &files);
    let image = Image::new(work, "panic.img", 16 * MIB).ext(Ext::Ext4, &content).unwrap();
    panic_on_error(&image, "/broken").unwrap();
    image
}

/// An MBR disk and a GPT disk, each with a FAT and an ext4 file system.
fn disks(work: &Path) -> [PathBuf; 2] {
    let image = |name: &str| Image::new(work, name, 16 * MIB);
    let fat =
        image("fat.img").vfat(&content(work, "fat", &["EFI/boot.efi", "readme.txt"])).unwrap();
    let ext = image("ext.img").ext(Ext::Ext4, &content(work, "ext", &["etc/motd"])).unwrap();
    let mbr = mbr(&work.join("mbr.img"), &[(&fat, "c")], &[(&ext, "83")]).unwrap();
    let gpt = gpt(&work.join("gpt.img"), &[(&fat, GPT_EFI), (&ext, GPT_LINUX)]).unwrap();
    [mbr.path, gpt.path]
}

/// The file system whose image loses its content while it is scanned.
fn shrinking(work: &Path) -> PathBuf {
    let names: Vec<String> = (0..40).map(|number| format!("folder/{number}")).collect();
    let names: Vec<&str> = names.iter().map(String::as_str).collect();
    let folder = content(work, "shrinks", &names);
    // The largest file is inspected first, and more than a megabyte is a batch of its own.
    fs::write(folder.join("slow"), vec![b's'; 2 << 20]).unwrap();
    Image::new(work, "shrinks.img", 16 * MIB).ext(Ext::Ext4, &folder).unwrap()
}

/// Copies of an ext4, an XFS and a btrfs file system in use, with their digests.
fn dirty(work: &Path) -> [(PathBuf, String); 3] {
    let files = content(work, "dirty", &["etc/motd", "slow"]);
    let uuid = "c1ea0000-0000-4000-8000-0000000e0006";
    let images = [
        Image::new(work, "ext4", 16 * MIB).ext(Ext::Ext4, &files),
        Image::new(work, "xfs", XFS_MIN).xfs(&files),
        Image::new(work, "btrfs", BTRFS_MIN).uuid(uuid).btrfs(&files),
    ];
    images.map(|image| {
        let image = image.unwrap();
        let copy = image.with_extension("dirty");
        dirty_copy(&image, &copy).unwrap();
        let sha256 = sha256sum(&copy);
        (copy, sha256)
    })
}

fn boot(work: &Path, dirty: &[(PathBuf, String)]) -> VmOutcome {
    let disk =
        |path: PathBuf, serial: &str| Disk { path, serial: serial.to_owned(), readonly: true };
    let [mbr, gpt] = disks(work);
    let rule = work.join("slow.yar");
    fs::write(&rule, SLOW_RULE).unwrap();
    let mut disks = vec![
        disk(panicking(work), "vol0000000000000000a"),
        disk(mbr, "vol0000000000000000b"),
        disk(gpt, "vol0000000000000000c"),
    ];
    // To these QEMU would write what the guest writes.
    disks.extend(dirty.iter().zip(["d", "e", "f"]).map(|((path, _), end)| Disk {
        readonly: false,
        ..disk(path.clone(), &format!("vol0000000000000000{end}"))
    }));
    Vm {
        disks,
        files: vec![
            (stripped(work), "/bin/cleanroom-agent".into()),
            (shrinking(work), "/shrinks.img".into()),
            (rule, "/slow.yar".into()),
        ],
        script: SCRIPT.to_owned(),
        timeout: Duration::from_secs(400),
        ..Vm::default()
    }
    .run()
    .unwrap()
}

/// Reads what one of the guest's scans left.
fn read(outcome: &VmOutcome, name: &str) -> Scan {
    let text = |end: &str| {
        let path = outcome.out.path().join(format!("{name}.{end}"));
        fs::read(path).unwrap_or_else(|error| panic!("{name}.{end}: {error}: {}", outcome.stderr()))
    };
    let status: i32 = String::from_utf8(text("status")).unwrap().trim().parse().unwrap();
    let [stdout, stderr] = ["stdout", "stderr"].map(text);
    let output = Output { status: ExitStatus::from_raw(status << 8), stdout, stderr };
    support::read(&outcome.out.path().join(name), &output)
}

#[test]
fn in_a_virtual_machine() {
    let work = tempfile::tempdir().unwrap();
    let dirty = dirty(work.path());
    let outcome = boot(work.path(), &dirty);
    assert!(!outcome.panicked(), "{}", outcome.console);
    assert_eq!(outcome.exit, Some(0), "{}\n{}", outcome.stderr(), outcome.console);
    a_superblock_that_asks_for_a_panic_is_not_obeyed(&read(&outcome, "panic"));
    disks_are_examined_by_their_own_tables(work.path(), &read(&outcome, "disks"));
    let shrunk = outcome.out.path().join("shrunk");
    assert!(shrunk.exists(), "the image was not cut in the middle of the scan");
    an_image_that_shrinks_is_a_gap_and_never_clean(work.path(), &read(&outcome, "shrinks"));
    let text = |name: &str| fs::read_to_string(outcome.out.path().join(name)).unwrap();
    what_a_journal_holds_is_not_seen_where_scratch_is_too_small(&read(&outcome, "full"));
    what_a_journal_holds_is_seen_through_a_snapshot(&read(&outcome, "replayed"));
    assert!(text("mapped").contains("/sys/block/dm-"), "nothing was mapped while it scanned");
    assert_eq!(text("left"), "", "devices are left after SIGKILL");
    for (disk, before) in &dirty {
        assert_eq!(sha256sum(disk), *before, "{} is as it was", disk.display());
    }
}

/// The volumes of the three dirty disks.
const DIRTY: [(&str, &str); 3] = [("nvme3n1", "ext4"), ("nvme4n1", "xfs"), ("nvme5n1", "btrfs")];

fn what_a_journal_holds_is_not_seen_where_scratch_is_too_small(scan: &Scan) {
    assert_eq!(scan.status, 3, "{}", scan.stderr);
    for ((volume, content), gap) in DIRTY.iter().zip(scan.gaps_of(GapKind::UnreplayedJournal)) {
        assert_eq!(gap.volume.as_deref(), Some(*volume), "{content}");
        assert!(gap.reason.contains("8192 bytes of scratch"), "{content}: {}", gap.reason);
    }
    assert_eq!(scan.gaps.len(), 3, "{:?}", scan.gaps);
    assert!(!scan.paths().contains(&DIRTY_FILE));
    let known = scan.paths().iter().filter(|path| **path == "/etc/motd").count();
    assert_eq!(known, 3, "{:?} {:?}", scan.paths(), scan.report.volumes);
}

fn what_a_journal_holds_is_seen_through_a_snapshot(scan: &Scan) {
    assert_eq!(scan.status, 0, "{}{:?}", scan.stderr, scan.gaps);
    for (name, content) in DIRTY {
        let volume = scan.report.volumes.iter().find(|volume| volume.volume == name).unwrap();
        assert_eq!((&*volume.content, volume.state), (content, VolumeState::Examined));
        let means = volume.replayed.as_ref().map(|replayed| replayed.means);
        assert_eq!(means, Some(ReplayMeans::DeviceMapper), "{name}");
        assert_eq!(volume.unreplayed_journal, None);
        let file = scan.files.iter().find(|f| f.volume == name && f.path.path == DIRTY_FILE);
        let size = file.map(|file| file.size);
        assert_eq!(size, Some(DIRTY_CONTENT.len() as u64), "{name}");
    }
}

fn a_superblock_that_asks_for_a_panic_is_not_obeyed(scan: &Scan) {
    assert_eq!(scan.status, 3, "{}", scan.stderr);
    for path in ["/before/file", "/sound/file"] {
        assert!(scan.file(path).sha256.is_some(), "{path}");
    }
    let gaps: Vec<_> = scan
        .gaps
        .iter()
        .map(|gap| (gap.kind, gap.path.as_ref().map(|path| path.path.as_str())))
        .collect();
    assert_eq!(gaps, [(GapKind::Unreadable, Some("/broken"))]);
    let [volume] = &scan.report.volumes[..] else { panic!("{:?}", scan.report.volumes) };
    assert_eq!((&*volume.volume, volume.state), ("nvme0n1", VolumeState::Examined));
    assert!(volume.view.iter().any(|option| option == "errors=continue"), "{:?}", volume.view);
    assert_eq!(scan.report.evidence[0].kind, "device");
}

fn disks_are_examined_by_their_own_tables(work: &Path, scan: &Scan) {
    assert_eq!(scan.status, 0, "{}{:?}", scan.stderr, scan.gaps);
    let volumes: Vec<_> = scan
        .report
        .volumes
        .iter()
        .map(|volume| (&*volume.volume, &*volume.content, volume.state))
        .collect();
    let examined = |volume, content| (volume, content, VolumeState::Examined);
    let expected = [
        examined("nvme1n1:p1", "vfat"),
        examined("nvme1n1:p5", "ext4"),
        examined("nvme2n1:p1", "vfat"),
        examined("nvme2n1:p2", "ext4"),
    ];
    assert_eq!(volumes, expected);
    let tables = scan.report.evidence.iter().map(|e| e.partition_table.as_deref());
    assert_eq!(tables.collect::<Vec<_>>(), [Some("mbr"), Some("gpt")]);
    for (volume, path, source) in [
        ("nvme1n1:p1", "/EFI/boot.efi", "fat/EFI/boot.efi"),
        ("nvme1n1:p5", "/etc/motd", "ext/etc/motd"),
        ("nvme2n1:p1", "/readme.txt", "fat/readme.txt"),
        ("nvme2n1:p2", "/etc/motd", "ext/etc/motd"),
    ] {
        let file = scan.files.iter().find(|f| f.volume == volume && f.path.path == path);
        let file = file.unwrap_or_else(|| panic!("{volume} {path}: {:?}", scan.paths()));
        assert_eq!(file.sha256.unwrap().to_string(), sha256sum(&work.join(source)));
    }
}

/// This kernel reads zeros, and no error, where the image has ended.
fn an_image_that_shrinks_is_a_gap_and_never_clean(work: &Path, scan: &Scan) {
    assert_eq!(scan.status, 3, "{}", scan.stderr);
    assert!(!scan.gaps_of(GapKind::Evidence).is_empty(), "{:?}", scan.gaps);
    assert_eq!(scan.report.volumes[0].state, VolumeState::Incomplete);
    assert!(!scan.report.summary.complete);
    for file in scan.files.iter().filter(|file| file.kind == EntryKind::File) {
        // What has a digest has that of the true content.
        if let Some(found) = file.sha256 {
            let path = work.join("shrinks").join(&file.path.path[1..]);
            assert_eq!(found.to_string(), sha256sum(&path), "{}", file.path.path);
        } else {
            assert_ne!(file.scan, ScanState::Clean, "{}", file.path.path);
        }
    }
}
