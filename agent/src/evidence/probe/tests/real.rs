//! Images made by the tools that people use, and `blkid` as the second opinion.

use std::{
    fs::File,
    io::Write as _,
    path::Path,
    process::{Command, Stdio},
};

use tempfile::TempDir;

use super::*;
use crate::evidence::probe::{ContentKind, EvidenceFile, TableKind};

const MIB: u64 = 1 << 20;

/// Runs a tool with `input`; these tests need it, and say so where it is missing.
fn run(tool: &str, arguments: &[&str], input: &str) -> String {
    let path = format!("{}:/usr/sbin:/sbin", std::env::var("PATH").unwrap_or_default());
    let mut child = Command::new(tool)
        .args(arguments)
        .env("PATH", path)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap_or_else(|error| panic!("{tool} must be installed for this test: {error}"));
    child.stdin.take().unwrap().write_all(input.as_bytes()).unwrap();
    let output = child.wait_with_output().unwrap();
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{tool} {arguments:?}: {said}");
    String::from_utf8_lossy(&output.stdout).into_owned()
}

/// A sparse image in a folder of its own.
struct Image {
    folder: TempDir,
}

impl Image {
    fn new(size: u64) -> Self {
        let image = Self { folder: tempfile::tempdir().unwrap() };
        File::create(image.folder.path().join("disk.img")).unwrap().set_len(size).unwrap();
        image
    }

    fn path(&self) -> String {
        self.folder.path().join("disk.img").to_str().unwrap().to_owned()
    }

    /// Runs a tool with the image as its last argument.
    fn make(&self, tool: &str, arguments: &[&str]) {
        let path = self.path();
        run(tool, &[arguments, &[&path]].concat(), "");
    }

    fn probe(&self) -> Layout {
        let file = EvidenceFile::new(File::open(self.path()).unwrap()).unwrap();
        let layout = probe(&file).unwrap();
        check(&layout, file.size());
        layout
    }

    fn set_len(&self, size: u64) {
        File::options().write(true).open(self.path()).unwrap().set_len(size).unwrap();
    }
}

/// A value of `blkid`'s answer.
fn second_opinion(path: &Path, tag: &str) -> Option<String> {
    let said = run("blkid", &["-p", "-o", "export", path.to_str().unwrap()], "");
    let line = said.lines().find_map(|line| line.strip_prefix(tag)?.strip_prefix('='));
    line.map(str::to_owned)
}

#[test]
fn what_the_tools_make_is_recognised_and_blkid_agrees() {
    let uuid = ["-U", UUID_TEXT];
    let cases: [(u64, &str, Vec<&str>, ContentKind); 11] = [
        (8, "mke2fs", [&["-q", "-t", "ext2", "-L", "two"], &uuid[..]].concat(), ContentKind::Ext2),
        (
            8,
            "mke2fs",
            [&["-q", "-t", "ext3", "-L", "three"], &uuid[..]].concat(),
            ContentKind::Ext3,
        ),
        (8, "mke2fs", [&["-q", "-t", "ext4", "-L", "four"], &uuid[..]].concat(), ContentKind::Ext4),
        (8, "mke2fs", vec!["-q", "-O", "journal_dev", "-b", "4096"], ContentKind::Jbd),
        (320, "mkfs.xfs", vec!["-q", "-L", "xfs root"], ContentKind::Xfs),
        (128, "mkfs.btrfs", [&["-q", "-L", "btr"], &uuid[..]].concat(), ContentKind::Btrfs),
        (4, "mkfs.vfat", vec!["-F", "12", "-n", "TWELVE"], ContentKind::Vfat),
        (16, "mkfs.vfat", vec!["-F", "16", "-n", "SIXTEEN"], ContentKind::Vfat),
        (64, "mkfs.vfat", vec!["-F", "32"], ContentKind::Vfat),
        (8, "mkntfs", vec!["-q", "-Q", "-F"], ContentKind::Ntfs),
        (1, "mkswap", [&["-q", "-L", "swap"], &uuid[..]].concat(), ContentKind::Swap),
    ];
    for (mib, tool, arguments, kind) in cases {
        let image = Image::new(mib * MIB);
        image.make(tool, &arguments);
        let layout = image.probe();
        assert_eq!((layout.table, &layout.troubles[..]), (None, &[][..]), "{tool} {arguments:?}");
        let [part] = &layout.volumes[..] else { panic!("{tool}: {layout:?}") };
        assert_eq!((part.number, part.offset, part.length), (0, 0, mib * MIB));
        assert_eq!(part.content.kind, kind, "{tool} {arguments:?}");
        assert_eq!(part.content.unreplayed, None);
        let declared = part.content.declared_bytes.unwrap();
        assert!(declared <= mib * MIB && declared > mib * MIB * 9 / 10, "{tool}: {declared}");
        let path = image.folder.path().join("disk.img");
        assert_eq!(second_opinion(&path, "TYPE").as_deref(), Some(kind.as_str()));
        assert_eq!(second_opinion(&path, "UUID"), part.content.uuid, "{tool} {arguments:?}");
        let label = second_opinion(&path, "LABEL").map(|label| label.replace("\\ ", " "));
        assert_eq!(label, part.content.label, "{tool} {arguments:?}");
    }
}

#[test]
fn a_dirty_ext4_journal_is_seen() {
    let image = Image::new(8 * MIB);
    image.make("mke2fs", &["-q", "-t", "ext4"]);
    assert_eq!(image.probe().volumes[0].content.unreplayed, None);
    image.make("debugfs", &["-w", "-R", "feature needs_recovery"]);
    let unreplayed = image.probe().volumes[0].content.unreplayed.clone().unwrap();
    assert!(unreplayed.reason.contains("needs_recovery"));
}

#[test]
fn a_truncated_file_system_is_told() {
    for (mib, tool) in [(8, "mke2fs"), (320, "mkfs.xfs"), (128, "mkfs.btrfs"), (8, "mkntfs")] {
        let image = Image::new(mib * MIB);
        let force: &[&str] = if tool == "mkntfs" { &["-q", "-Q", "-F"] } else { &["-q"] };
        image.make(tool, force);
        image.set_len(mib * MIB / 2);
        let layout = image.probe();
        assert!(layout.volumes[0].content.truncated, "{tool}");
        let reasons = reasons(&layout, GapKind::Evidence);
        assert!(
            matches!(reasons[..], [(Some(0), r)] if r.contains("the image is truncated")),
            "{reasons:?}"
        );
    }
}

/// Partitions as sfdisk lists them: number, first byte, bytes.
fn sfdisk_listing(image: &Image) -> Vec<(u32, u64, u64)> {
    let dump = run("sfdisk", &["--dump", &image.path()], "");
    let number = |line: &str, key: &str| -> u64 {
        let value = line.split(key).nth(1).unwrap().split(',').next().unwrap();
        value.trim().parse().unwrap()
    };
    dump.lines()
        .filter(|line| line.contains("start="))
        .filter(|line| !line.contains("type=5") && !line.contains("type=f"))
        .map(|line| {
            let name = line.split(" :").next().unwrap();
            let digits = name.rsplit("disk.img").next().unwrap();
            (digits.parse().unwrap(), number(line, "start=") * 512, number(line, "size=") * 512)
        })
        .collect()
}

#[test]
fn the_tables_that_sfdisk_writes_are_read_as_sfdisk_reads_them() {
    let gpt = "label: gpt\nsize=1MiB,type=21686148-6449-6E6F-744E-656564454649\nsize=16MiB,type=U,name=EFI\nname=root,type=L\n";
    let mbr = "label: dos\nsize=16MiB,type=83,bootable\nsize=8MiB,type=82\nsize=30MiB,type=5\n5:size=4MiB\n6:size=4MiB\n7:size=4MiB\n";
    for (script, kind, numbers) in
        [(gpt, TableKind::Gpt, &[1, 2, 3][..]), (mbr, TableKind::Mbr, &[1, 2, 5, 6, 7])]
    {
        let image = Image::new(64 * MIB);
        run("sfdisk", &["-q", &image.path()], script);
        let placed = sfdisk_listing(&image);
        for (_, offset, length) in &placed {
            let (offset, kib) = (format!("offset={offset}"), format!("{}k", length / 1024));
            run("mke2fs", &["-q", "-F", "-t", "ext4", "-E", &offset, &image.path(), &kib], "");
        }
        let layout = image.probe();
        assert_eq!((layout.table, &layout.troubles[..]), (Some(kind), &[][..]));
        let listed: Vec<_> =
            layout.volumes.iter().map(|p| (p.number, p.offset, p.length)).collect();
        assert_eq!(listed, placed);
        assert_eq!(listed.iter().map(|part| part.0).collect::<Vec<_>>(), numbers);
        for part in &layout.volumes {
            assert_eq!(part.content.declared_bytes, Some(part.length));
            assert!(matches!(part.content.kind, ContentKind::Ext4 | ContentKind::Ext2), "{part:?}");
        }
        if kind == TableKind::Gpt {
            assert_eq!(layout.volumes[2].name.as_deref(), Some("root"));
            let bios = Some("21686148-6449-6e6f-744e-656564454649");
            assert_eq!(layout.volumes[0].type_id.as_deref(), bios);
        }
    }
}
