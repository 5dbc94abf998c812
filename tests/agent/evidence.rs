//! Evidence of every kind: folders, images of every file system, partitioned disks, block devices.
//!
//! What is damaged, hostile or no evidence at all is in [`damaged`], what a dirty journal holds in
//! [`journals`]. Touches temporary folders and, as root, loop devices.

mod damaged;
mod journals;

use std::{
    collections::BTreeMap,
    fs,
    os::unix::fs::MetadataExt as _,
    path::{Path, PathBuf},
    process::Command,
};

use cleanroom_contract::{EntryKind, GapKind, RunState, VolumeRecord, VolumeState};
use cleanroom_harness::{
    damage,
    disk::{self, GPT_EFI, GPT_LINUX, GPT_SWAP},
    images::{BTRFS_MIN, Ext, Image, MIB, XFS_MIN},
};
use tempfile::TempDir;

use crate::support::{self, Scan, is_root_for, scan, sha256sum, wait_until};

/// The files of [`content`], with what they hold.
const FILES: [(&str, &str); 3] = [
    ("/etc/motd", "welcome\n"),
    ("/etc/passwd", "root:x:0:0::/root:/bin/sh\n"),
    ("/srv/a/b/letter", "dear reader\n"),
];

/// A folder of folders and files, one of them with `mark`, to tell two apart.
fn content(mark: &str) -> TempDir {
    let dir = tempfile::tempdir().unwrap();
    for (path, text) in FILES.into_iter().chain([("/mark", mark)]) {
        let path = dir.path().join(&path[1..]);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, text).unwrap();
    }
    dir
}

/// Evidence that must be the same after a scan as before, and no longer in use.
struct Witness {
    path: PathBuf,
    sha256: String,
    times: [(i64, i64); 3],
}

impl Witness {
    fn of(path: &Path) -> Self {
        let sha256 = sha256sum(path);
        let times = times(path);
        Self { path: path.to_owned(), sha256, times }
    }

    /// Times first: taking the digest moves one.
    fn testify(&self) {
        assert_eq!(times(&self.path), self.times, "times of {}", self.path.display());
        assert_eq!(sha256sum(&self.path), self.sha256, "{}", self.path.display());
        wait_until("no loop device is left", || loop_devices_of(&self.path).is_empty());
    }
}

/// Access, modification and change time of a file; those of a device node are nobody's evidence.
fn times(path: &Path) -> [(i64, i64); 3] {
    let meta = fs::metadata(path).unwrap();
    if !meta.is_file() {
        return [(0, 0); 3];
    }
    [
        (meta.atime(), meta.atime_nsec()),
        (meta.mtime(), meta.mtime_nsec()),
        (meta.ctime(), meta.ctime_nsec()),
    ]
}

/// The loop devices that show a file or device.
fn loop_devices_of(path: &Path) -> Vec<PathBuf> {
    let path = fs::canonicalize(path).unwrap();
    let devices = fs::read_dir("/sys/block").unwrap().map(|entry| entry.unwrap().path());
    devices
        .filter(|device| {
            fs::read_to_string(device.join("loop/backing_file"))
                .is_ok_and(|backing| Path::new(backing.trim_end()) == path)
        })
        .collect()
}

/// The volume's record.
fn volume<'s>(scan: &'s Scan, name: &str) -> &'s VolumeRecord {
    let found = scan.report.volumes.iter().find(|volume| volume.volume == name);
    found.unwrap_or_else(|| panic!("no volume {name} in {:?}", scan.report.volumes))
}

/// The digests of a volume's regular files by path.
fn digests(scan: &Scan, volume: &str) -> BTreeMap<String, String> {
    let files = scan.files.iter().filter(|file| file.volume == volume);
    files
        .filter(|file| file.kind == EntryKind::File)
        .map(|file| {
            let sha256 = file.sha256.map_or("none".to_owned(), |sha256| sha256.to_string());
            (file.path.path.clone(), sha256)
        })
        .collect()
}

/// The volume was walked to its end, and holds the files of a [`content`] with this mark.
fn assert_examined(scan: &Scan, name: &str, content: &TempDir) {
    assert_eq!(volume(scan, name).state, VolumeState::Examined, "{:?}", scan.gaps);
    let found = digests(scan, name);
    for path in FILES.map(|(path, _)| path).into_iter().chain(["/mark"]) {
        let want = sha256sum(&content.path().join(&path[1..]));
        assert_eq!(found.get(path), Some(&want), "{name}:{path}");
    }
    let folder = scan.files.iter().find(|f| f.volume == name && f.path.path == "/srv/a/b");
    assert_eq!(folder.map(|folder| folder.kind), Some(EntryKind::Dir), "{name}");
}

#[test]
fn a_folder_is_examined_under_its_own_name() {
    let (content, work) = (content("folder"), tempfile::tempdir().unwrap());
    let scan = scan(work.path(), &[content.path()]);
    let name = content.path().file_name().unwrap().to_str().unwrap();
    assert_examined(&scan, name, &content);
    assert_eq!((scan.status, scan.gaps.len()), (0, 0), "{:?}", scan.gaps);
    assert_eq!(scan.report.run.state, RunState::Complete);
    assert!(scan.report.summary.complete);
    assert_eq!(volume(&scan, name).content, "folder");
    let evidence = &scan.report.evidence[0];
    assert_eq!((evidence.kind.as_str(), evidence.size), ("folder", None));
    assert_eq!(scan.paths()[0], "/");
    assert_eq!(scan.files.len() as u64, scan.report.summary.entries);
    assert!(scan.files.iter().zip(0..).all(|(file, seq)| file.seq == seq), "no gaps in seq");
}

#[test]
fn a_link_to_evidence_and_a_dot_are_followed() {
    let (content, work) = (content("link"), tempfile::tempdir().unwrap());
    let link = work.path().join("link");
    std::os::unix::fs::symlink(content.path(), &link).unwrap();
    let name = content.path().file_name().unwrap().to_str().unwrap();
    assert_examined(&scan(work.path(), &[&link]), name, &content);

    let out = work.path().join("out");
    let mut command = support::agent(work.path());
    command.current_dir(content.path()).args(["scan", ".", "--out"]).arg(&out);
    let output = command.output().unwrap();
    assert_examined(&support::read(&out, &output), name, &content);
}

#[test]
fn ext_images_are_examined_and_stay_as_they_are() {
    if !is_root_for("bare ext2, ext3 and ext4 images") {
        return;
    }
    let (content, work) = (content("ext"), tempfile::tempdir().unwrap());
    for (kind, name) in [(Ext::Ext2, "ext2"), (Ext::Ext3, "ext3"), (Ext::Ext4, "ext4")] {
        let image = Image::new(work.path(), &format!("{name}.img"), 16 * MIB).label("Evidence 1");
        let image = image.ext(kind, content.path()).unwrap();
        let witness = Witness::of(&image);
        let scan = scan(work.path(), &[&image]);
        let name = format!("{name}.img");
        assert_examined(&scan, &name, &content);
        assert_eq!((scan.status, scan.gaps.len()), (0, 0), "{:?}", scan.gaps);
        let volume = volume(&scan, &name);
        assert_eq!(format!("{}.img", volume.content), name);
        assert_eq!(volume.uuid.as_deref(), Some("c1ea0000-0000-4000-8000-000000000001"));
        assert_eq!(volume.label.as_deref(), Some("Evidence 1"));
        assert_eq!((volume.offset, volume.length), (Some(0), Some(16 * MIB)));
        for option in ["ro", "noload", "errors=continue", "nosuid", "nodev", "noexec"] {
            assert!(volume.view.iter().any(|o| o == option), "{option}: {:?}", volume.view);
        }
        assert_eq!(scan.report.evidence[0].partition_table, None);
        assert_eq!(scan.report.evidence[0].size, Some(16 * MIB));
        witness.testify();
    }
}

#[test]
fn xfs_and_btrfs_images_are_examined_and_stay_as_they_are() {
    if !is_root_for("bare XFS and btrfs images") {
        return;
    }
    let (content, work) = (content("others"), tempfile::tempdir().unwrap());
    let xfs = Image::new(work.path(), "x.img", XFS_MIN).xfs(content.path()).unwrap();
    let uuid = "c1ea0000-0000-4000-8000-0000000e0001";
    let btrfs = Image::new(work.path(), "b.img", BTRFS_MIN).uuid(uuid).label("data");
    let btrfs = btrfs.btrfs(content.path()).unwrap();
    let witnesses = [Witness::of(&xfs), Witness::of(&btrfs)];
    let scan = scan(work.path(), &[&xfs, &btrfs]);
    for (name, content_kind) in [("x.img", "xfs"), ("b.img", "btrfs")] {
        assert_examined(&scan, name, &content);
        assert_eq!(volume(&scan, name).content, content_kind);
    }
    assert_eq!((scan.status, scan.gaps.len()), (0, 0), "{:?}", scan.gaps);
    let options = |name| volume(&scan, name).view.join(",");
    assert!(options("x.img").contains("nouuid"), "{}", options("x.img"));
    assert!(options("b.img").contains("rescue=nologreplay,subvolid=5"), "{}", options("b.img"));
    assert_eq!(volume(&scan, "b.img").uuid.as_deref(), Some(uuid));
    assert_eq!(volume(&scan, "b.img").label.as_deref(), Some("data"));
    witnesses.iter().for_each(Witness::testify);
}

#[test]
fn a_gpt_disk_is_examined_partition_by_partition() {
    if !is_root_for("a GPT disk") {
        return;
    }
    let (one, two) = (content("first"), content("second"));
    let work = tempfile::tempdir().unwrap();
    let ext4 = Image::new(work.path(), "a", 16 * MIB).ext(Ext::Ext4, one.path()).unwrap();
    let xfs = Image::new(work.path(), "b", XFS_MIN).xfs(two.path()).unwrap();
    let path = work.path().join("disk.img");
    let disk = disk::gpt(&path, &[(&ext4, GPT_LINUX), (&xfs, GPT_LINUX)]).unwrap();
    let witness = Witness::of(&path);
    let scan = scan(work.path(), &[&path]);
    assert_examined(&scan, "disk.img:p1", &one);
    assert_examined(&scan, "disk.img:p2", &two);
    assert_eq!((scan.status, scan.report.volumes.len()), (0, 2), "{:?}", scan.gaps);
    assert_eq!(scan.report.evidence[0].partition_table.as_deref(), Some("gpt"));
    assert_eq!(scan.report.coverage.volumes_examined, 2);
    for (partition, name) in disk.partitions.iter().zip(["disk.img:p1", "disk.img:p2"]) {
        let volume = volume(&scan, name);
        let place = (volume.offset, volume.length);
        assert_eq!(place, (Some(partition.offset), Some(partition.size)), "{name}");
    }
    let order: Vec<_> = scan.files.iter().map(|file| file.volume.as_str()).collect();
    assert!(order.is_sorted(), "records are sorted by volume");
    witness.testify();
}

#[test]
fn a_disk_of_4096_byte_sectors_is_examined() {
    if !is_root_for("a disk of 4,096-byte sectors") {
        return;
    }
    let (content, work) = (content("4k"), tempfile::tempdir().unwrap());
    // Of small file systems, only btrfs has blocks as large as these sectors.
    let uuid = "c1ea0000-0000-4000-8000-0000000e0005";
    let part = Image::new(work.path(), "a", BTRFS_MIN).uuid(uuid).btrfs(content.path()).unwrap();
    let path = work.path().join("disk.img");
    fs::File::create(&path).unwrap().set_len(BTRFS_MIN + 8 * MIB).unwrap();
    // Only a device has a sector size that sfdisk believes.
    let device = LoopDevice::attach(&path, &["--sector-size", "4096"]);
    let script = r#"echo 'label: gpt
        start=256, size=32768' | sfdisk --quiet --no-reread --no-tell-kernel "$1"
        dd if="$2" of="$1" bs=1M seek=1 conv=sparse,fsync status=none"#;
    let mut shell = Command::new("sh");
    shell.args(["-euc", script, "sh"]).arg(&device.path).arg(&part);
    assert!(shell.status().unwrap().success());
    drop(device);
    let scan = scan(work.path(), &[&path]);
    assert_examined(&scan, "disk.img:p1", &content);
    assert_eq!(volume(&scan, "disk.img:p1").offset, Some(MIB));
    assert_eq!(scan.status, 0, "{:?}", scan.gaps);
}

#[test]
fn logical_partitions_of_an_mbr_count_from_five() {
    if !is_root_for("an MBR disk") {
        return;
    }
    let work = tempfile::tempdir().unwrap();
    let contents = ["one", "five", "six"].map(content);
    let kinds = [Ext::Ext2, Ext::Ext3, Ext::Ext4];
    let names = ["1", "5", "6"];
    let images: Vec<_> = (contents.iter().zip(kinds).zip(names))
        .map(|((content, kind), name)| {
            Image::new(work.path(), name, 8 * MIB).ext(kind, content.path()).unwrap()
        })
        .collect();
    let path = work.path().join("disk.img");
    let (primary, logical) = images.split_at(1);
    let primary: Vec<_> = primary.iter().map(|image| (image.as_path(), "83")).collect();
    let logical: Vec<_> = logical.iter().map(|image| (image.as_path(), "83")).collect();
    disk::mbr(&path, &primary, &logical).unwrap();
    let witness = Witness::of(&path);
    let scan = scan(work.path(), &[&path]);
    for (content, name) in contents.iter().zip(names) {
        assert_examined(&scan, &format!("disk.img:p{name}"), content);
    }
    assert_eq!((scan.status, scan.report.volumes.len()), (0, 3), "{:?}", scan.gaps);
    assert_eq!(scan.report.evidence[0].partition_table.as_deref(), Some("mbr"));
    witness.testify();
}

#[test]
fn what_this_kernel_cannot_mount_is_named_with_advice() {
    if !is_root_for("FAT, NTFS and swap partitions") {
        return;
    }
    let (content, work) = (content("foreign"), tempfile::tempdir().unwrap());
    let fat = Image::new(work.path(), "f", 16 * MIB).vfat(content.path()).unwrap();
    let mark = content.path().join("mark");
    let ntfs = Image::new(work.path(), "n", 8 * MIB).ntfs(&[mark]).unwrap();
    let swap = Image::new(work.path(), "s", MIB).swap().unwrap();
    let ext4 = Image::new(work.path(), "e", 8 * MIB).ext(Ext::Ext4, content.path()).unwrap();
    let path = work.path().join("disk.img");
    let parts = [(&fat, GPT_EFI), (&ntfs, GPT_LINUX), (&swap, GPT_SWAP), (&ext4, GPT_LINUX)];
    disk::gpt(&path, &parts.map(|(image, kind)| (image.as_path(), kind))).unwrap();
    let witness = Witness::of(&path);
    let scan = scan(work.path(), &[&path]);
    assert_examined(&scan, "disk.img:p4", &content);
    for (name, kind) in [("disk.img:p1", "vfat"), ("disk.img:p2", "ntfs"), ("disk.img:p3", "swap")]
    {
        let volume = volume(&scan, name);
        assert_eq!(volume.content, kind);
        if volume.state == VolumeState::Examined {
            assert_ne!(kind, "swap");
            let want = sha256sum(&content.path().join("mark"));
            assert_eq!(digests(&scan, name).get("/mark"), Some(&want), "{name}");
            continue;
        }
        let mut gaps = scan.gaps.iter().filter(|gap| gap.volume.as_deref() == Some(name));
        let gap = gaps.next().unwrap();
        assert_eq!((gap.kind, volume.state), (GapKind::Unmounted, VolumeState::NotExamined));
        assert!(gap.reason.contains(kind.trim_end_matches("fs")), "{kind}: {}", gap.reason);
        assert!(gap.advice.is_some(), "{gap:?}");
        assert_eq!(scan.status, 3);
    }
    witness.testify();
}

/// Two images of one name and UUID, which differ in a file.
fn twins(work: &Path, build: impl Fn(&Path, &TempDir) -> PathBuf) -> [(PathBuf, TempDir); 2] {
    ["first", "second"].map(|mark| {
        let (folder, content) = (work.join(mark), content(mark));
        fs::create_dir(&folder).unwrap();
        (build(&folder, &content), content)
    })
}

#[test]
fn two_images_of_one_uuid_and_name_are_both_examined() {
    if !is_root_for("images that share a UUID") {
        return;
    }
    type Build = fn(&Path, &TempDir) -> PathBuf;
    let builders: [(&str, Build); 3] = [
        ("ext4", |folder, content| {
            Image::new(folder, "x.img", 8 * MIB).ext(Ext::Ext4, content.path()).unwrap()
        }),
        ("xfs", |folder, content| {
            Image::new(folder, "x.img", XFS_MIN).xfs(content.path()).unwrap()
        }),
        ("btrfs", |folder, content| {
            let uuid = "c1ea0000-0000-4000-8000-0000000e0002";
            Image::new(folder, "x.img", BTRFS_MIN).uuid(uuid).btrfs(content.path()).unwrap()
        }),
    ];
    for (kind, build) in builders {
        let work = tempfile::tempdir().unwrap();
        let [(one, first), (two, second)] = twins(work.path(), build);
        let witnesses = [Witness::of(&one), Witness::of(&two)];
        let scan = scan(work.path(), &[&one, &two]);
        assert_eq!(scan.status, 0, "{kind}: {:?}", scan.gaps);
        assert_examined(&scan, "x.img", &first);
        assert_examined(&scan, "x.img#2", &second);
        let uuid = |name| volume(&scan, name).uuid.clone();
        assert_eq!(uuid("x.img"), uuid("x.img#2"), "{kind}");
        witnesses.iter().for_each(Witness::testify);
    }
}

#[test]
fn no_two_volumes_share_a_name_whatever_the_evidence_is_called() {
    let work = tempfile::tempdir().unwrap();
    let folders = ["a/x", "b/x", "c/x#2", "d/x"].map(|name| work.path().join(name));
    for folder in &folders {
        fs::create_dir_all(folder).unwrap();
        fs::write(folder.join("where"), folder.to_str().unwrap()).unwrap();
    }
    let scan = scan(work.path(), &folders);
    let mut names: Vec<_> = scan.report.volumes.iter().map(|v| v.volume.as_str()).collect();
    assert_eq!(names[0..2], ["x", "x#2"]);
    names.sort_unstable();
    names.dedup();
    assert_eq!(names.len(), 4, "{names:?}");
}

/// A loop device made by the system's own program.
struct LoopDevice {
    path: PathBuf,
}

impl LoopDevice {
    fn attach(image: &Path, options: &[&str]) -> Self {
        let mut losetup = Command::new("losetup");
        losetup.args(["--find", "--show"]).args(options).arg(image);
        let output = losetup.output().unwrap();
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        Self { path: String::from_utf8(output.stdout).unwrap().trim_end().into() }
    }

    fn is_read_only(&self) -> bool {
        let output = Command::new("blockdev").arg("--getro").arg(&self.path).output().unwrap();
        output.stdout == b"1\n"
    }
}

impl Drop for LoopDevice {
    fn drop(&mut self) {
        let detached = Command::new("losetup").arg("--detach").arg(&self.path).status();
        assert!(detached.is_ok_and(|status| status.success()) || std::thread::panicking());
    }
}

#[test]
fn a_block_device_is_examined() {
    if !is_root_for("a block device") {
        return;
    }
    let (one, two) = (content("bare"), content("partition"));
    let work = tempfile::tempdir().unwrap();
    let bare = Image::new(work.path(), "bare", 8 * MIB).ext(Ext::Ext4, one.path()).unwrap();
    let part = Image::new(work.path(), "part", 8 * MIB).ext(Ext::Ext4, two.path()).unwrap();
    let disk = work.path().join("disk");
    disk::gpt(&disk, &[(&part, GPT_LINUX)]).unwrap();
    // The second could be written to.
    let options: [&[&str]; 2] = [&["--read-only"], &[]];
    let devices = [0, 1].map(|i| LoopDevice::attach([&bare, &disk][i], options[i]));
    let witnesses = [&devices[0].path, &devices[1].path].map(|path| Witness::of(path));
    let scan = scan(work.path(), &[&devices[0].path, &devices[1].path]);
    let names = [&devices[0].path, &devices[1].path]
        .map(|path| path.file_name().unwrap().to_str().unwrap().to_owned());
    assert_examined(&scan, &names[0], &one);
    assert_examined(&scan, &format!("{}:p1", names[1]), &two);
    assert_eq!(scan.status, 0, "{:?}", scan.gaps);
    assert_eq!(scan.report.evidence[0].kind, "device");
    assert_eq!(scan.report.evidence[0].size, Some(8 * MIB));
    let read_only = devices.each_ref().map(|device| device.is_read_only());
    assert_eq!(read_only, [true, false], "devices are as they were given to us");
    witnesses.iter().for_each(Witness::testify);
}
