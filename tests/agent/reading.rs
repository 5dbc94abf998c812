//! What a record says of an entry, what reading leaves as it was, and what options keep from being
//! read.
//!
//! Large and sparse files are in [`large`], files that change under the reader in [`changing`].
//! Touches temporary folders, and as root a mount in a namespace of its own.

mod changing;
mod large;

use std::{
    collections::BTreeMap,
    fs,
    os::unix::fs::{MetadataExt as _, PermissionsExt as _, chown, symlink},
    path::{Path, PathBuf},
    process::Command,
};

use base64::{Engine as _, prelude::BASE64_STANDARD};
use cleanroom_contract::{EntryKind, FileRecord, GapKind, ScanState, Timestamp};
use cleanroom_harness::tree;
use nix::{
    fcntl::AT_FDCWD,
    sys::{
        stat::{UtimensatFlags, utimensat},
        time::TimeSpec,
    },
};
use rustix::fs::XattrFlags;
use tempfile::TempDir;

use crate::support::{
    NOBODY, digest_by, is_root_for, scan, scan_as_nobody, scan_through, settle_link, sha256sum,
};

/// A rule that every file with `PLANTED` in it matches.
const PLANTED: &str = r#"rule planted { strings: $a = "PLANTED" condition: $a }"#;

/// A folder with an entry of each kind that needs no root, modes and times of all sorts.
fn assorted() -> (TempDir, Vec<PathBuf>) {
    let folder = tempfile::tempdir().unwrap();
    let root = folder.path();
    fs::create_dir_all(root.join("etc/empty folder")).unwrap();
    let text = "text ".repeat(20_000);
    for (path, content) in [
        ("etc/passwd", "root:x:0:0::/root:/bin/sh\n"),
        ("etc/empty", ""),
        ("etc/text", text.as_str()),
        ("setuid", "#!/bin/sh\n"),
        ("hard", "one file, two names\n"),
    ] {
        fs::write(root.join(path), content).unwrap();
    }
    fs::write(root.join("noise"), (0..70_000_u32).map(|n| n.to_be_bytes()[3]).collect::<Vec<_>>())
        .unwrap();
    fs::hard_link(root.join("hard"), root.join("etc/harder")).unwrap();
    symlink("etc/text", root.join("link")).unwrap();
    settle_link(&root.join("link"));
    nix::unistd::mkfifo(&root.join("fifo"), nix::sys::stat::Mode::S_IRWXU).unwrap();
    for (path, mode) in [("setuid", 0o6755), ("etc", 0o1777), ("noise", 0o400), ("hard", 0o640)] {
        fs::set_permissions(root.join(path), fs::Permissions::from_mode(mode)).unwrap();
    }
    let mut paths: Vec<_> = [
        "",
        "etc",
        "etc/empty",
        "etc/empty folder",
        "etc/harder",
        "etc/passwd",
        "etc/text",
        "fifo",
        "hard",
        "link",
        "noise",
        "setuid",
    ]
    .map(|path| root.join(path))
    .to_vec();
    paths[0] = root.to_owned();
    (folder, paths)
}

/// What the system's own program says of an entry, field by field.
fn stat(path: &Path) -> Vec<String> {
    let format = "%s|%b|%a|%u|%g|%i|%h|%.9X|%.9Y|%.9Z|%.9W";
    let output = Command::new("stat").args(["--format", format]).arg(path).output().unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8(output.stdout).unwrap().trim_end().split('|').map(str::to_owned).collect()
}

/// The same from a record.
fn fields(file: &FileRecord) -> Vec<String> {
    let time = |time: Timestamp| format!("{}.{:09}", time.seconds, time.nanos);
    [
        file.size.to_string(),
        (file.allocated / 512).to_string(),
        format!("{:o}", file.mode),
        file.uid.to_string(),
        file.gid.to_string(),
        file.inode.to_string(),
        file.links.to_string(),
        time(file.atime),
        time(file.mtime),
        time(file.ctime),
        file.btime.map_or_else(|| "0.000000000".to_owned(), time),
    ]
    .to_vec()
}

/// Shannon entropy in bits a byte, to three decimals, from the definition.
fn entropy(bytes: &[u8]) -> f64 {
    let mut counts = [0_u32; 256];
    bytes.iter().for_each(|byte| counts[usize::from(*byte)] += 1);
    let all = bytes.len() as f64;
    let bits: f64 = counts.iter().filter(|count| **count > 0).fold(0.0, |sum, count| {
        let share = f64::from(*count) / all;
        sum - share * share.log2()
    });
    (bits * 1000.0).round() / 1000.0
}

#[test]
fn every_field_of_a_record_is_what_the_systems_own_programs_say() {
    let (folder, paths) = assorted();
    tree::set_times(folder.path()).unwrap();
    settle_link(&folder.path().join("link"));
    if is_root_for("owners other than ourselves") {
        chown(folder.path().join("noise"), Some(4_000_000_000), Some(33)).unwrap();
    }
    let work = tempfile::tempdir().unwrap();
    let scan = scan(work.path(), &[folder.path()]);
    assert_eq!((scan.status, scan.gaps.len()), (0, 0), "{:?}", scan.gaps);
    assert_eq!(scan.files.len(), paths.len());
    // Before anything below reads them.
    let wanted: Vec<_> = paths.iter().map(|path| stat(path)).collect();
    for ((path, file), wanted) in paths.iter().zip(&scan.files).zip(wanted) {
        let relative = path.strip_prefix(folder.path()).unwrap();
        assert_eq!(file.path.path, format!("/{}", relative.display()), "in this order");
        assert_eq!(fields(file), wanted, "{}", path.display());
        let kind = fs::symlink_metadata(path).unwrap().file_type();
        assert_eq!(file.kind == EntryKind::Dir, kind.is_dir());
        assert_eq!(file.kind == EntryKind::Symlink, kind.is_symlink());
        assert_eq!(file.kind == EntryKind::File, kind.is_file());
        if kind.is_file() {
            let content = fs::read(path).unwrap();
            assert_eq!(file.sha256.unwrap().to_string(), sha256sum(path));
            let want = if content.is_empty() { 0.0 } else { entropy(&content) };
            assert!((file.entropy.unwrap() - want).abs() < 0.0011, "{:?} {want}", file.entropy);
        } else {
            assert_eq!((file.sha256, file.entropy), (None, None));
        }
        assert_eq!(file.scan, ScanState::Skipped, "no rules were given");
    }
    let nanos = scan.files.iter().map(|file| file.mtime.nanos);
    assert!(nanos.into_iter().all(|nanos| nanos == 123_456_789));
    let bytes: u64 = scan.files.iter().filter(|f| f.kind == EntryKind::File).map(|f| f.size).sum();
    assert_eq!(scan.report.summary.bytes, bytes);
}

#[test]
fn times_before_1970_and_far_ahead_are_exact() {
    let (folder, work) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let path = folder.path().join("file");
    fs::write(&path, "x").unwrap();
    let (accessed, modified) = (TimeSpec::new(-2, 999_999_999), TimeSpec::new(9_000_000_000, 1));
    utimensat(AT_FDCWD, &path, &accessed, &modified, UtimensatFlags::NoFollowSymlink).unwrap();
    let scan = scan(work.path(), &[folder.path()]);
    let file = scan.file("/file");
    assert_eq!(file.atime, Timestamp { seconds: -2, nanos: 999_999_999 });
    assert_eq!(file.mtime, Timestamp { seconds: 9_000_000_000, nanos: 1 });
}

#[test]
fn both_names_of_a_hard_link_are_recorded() {
    let ((folder, _), work) = (assorted(), tempfile::tempdir().unwrap());
    let scan = scan(work.path(), &[folder.path()]);
    let (one, two) = (scan.file("/hard"), scan.file("/etc/harder"));
    assert_eq!((one.inode, one.links, one.sha256), (two.inode, 2, two.sha256));
    assert_eq!(one.sha256.unwrap().to_string(), sha256sum(&folder.path().join("hard")));
}

/// Sets an attribute; false, with a word, where the file system has none of that kind.
#[expect(clippy::print_stderr, reason = "a test that tests nothing must say so")]
fn set_attribute(path: &Path, name: &str, value: &[u8]) -> bool {
    match rustix::fs::lsetxattr(path, name, value, XattrFlags::empty()) {
        Ok(()) => true,
        Err(rustix::io::Errno::NOTSUP) => {
            eprintln!("not tested: {} has no {name}", path.display());
            false
        }
        Err(error) => panic!("{name}: {error}"),
    }
}

#[test]
fn extended_attributes_are_recorded_byte_for_byte() {
    let ((folder, _), work) = (assorted(), tempfile::tempdir().unwrap());
    let file = folder.path().join("noise");
    fs::set_permissions(&file, fs::Permissions::from_mode(0o644)).unwrap();
    // POSIX ACL, version 2: owner rw-, user 1000 r--, group r--, mask rw-, others r--
    // (linux/posix_acl_xattr.h).
    let entries: [(u16, u16, u32); 5] =
        [(1, 6, u32::MAX), (2, 4, 1000), (4, 4, u32::MAX), (16, 6, u32::MAX), (32, 4, u32::MAX)];
    let mut acl = 2_u32.to_le_bytes().to_vec();
    for (tag, permissions, id) in entries {
        acl.extend([tag.to_le_bytes(), permissions.to_le_bytes()].concat());
        acl.extend(id.to_le_bytes());
    }
    let mut wanted = BTreeMap::new();
    for (name, value) in
        [("user.note", b"\x00\xff\n".as_slice()), ("system.posix_acl_access", &acl)]
    {
        if set_attribute(&file, name, value) {
            wanted.insert(name.to_owned(), BASE64_STANDARD.encode(value));
        }
    }
    if is_root_for("file capabilities") {
        // cap_net_raw=ep, revision 2 (linux/capability.h).
        let mut capability = vec![1, 0, 0, 2];
        capability.extend([0, 0x20, 0, 0].into_iter().chain([0; 12]));
        set_attribute(&file, "security.capability", &capability);
        wanted.insert("security.capability".to_owned(), BASE64_STANDARD.encode(&capability));
    }
    let on_folder = set_attribute(&folder.path().join("etc"), "user.folder", b"too");
    let scan = scan(work.path(), &[folder.path()]);
    let record = scan.file("/noise");
    // A security module may have added its own.
    let found: BTreeMap<_, _> = record.xattrs.clone();
    for (name, value) in &wanted {
        assert_eq!(found.get(name), Some(value), "{name}");
    }
    assert!(!record.truncated);
    assert_eq!(scan.file("/etc").xattrs.contains_key("user.folder"), on_folder);
    assert_eq!(scan.file("/setuid").mode, 0o6755);
    assert!(!scan.file("/setuid").xattrs.contains_key("user.note"));
}

#[test]
fn inode_attributes_are_recorded() {
    let ((folder, _), work) = (assorted(), tempfile::tempdir().unwrap());
    let chattr = |change: &str, path: &str| {
        let mut chattr = Command::new("chattr");
        chattr.arg(change).arg(folder.path().join(path)).output().unwrap().status.success()
    };
    let nodump = chattr("+d", "noise");
    let immutable = is_root_for("immutable files") && chattr("+i", "setuid");
    let append = immutable && chattr("+a", "etc/text");
    let scan = scan(work.path(), &[folder.path()]);
    // Else the folder cannot be taken away.
    assert!(!immutable || chattr("-i", "setuid"));
    assert!(!append || chattr("-a", "etc/text"));
    for (path, set, word) in [
        ("/noise", nodump, "nodump"),
        ("/setuid", immutable, "immutable"),
        ("/etc/text", append, "append"),
    ] {
        assert_eq!(scan.file(path).attributes.iter().any(|a| a == word), set, "{path}");
    }
    assert_eq!(scan.file("/hard").attributes, [""; 0]);
}

/// Access, modification and change time of each, to the nanosecond.
fn times(paths: &[PathBuf]) -> Vec<(PathBuf, [(i64, i64); 3])> {
    let times = paths.iter().map(|path| {
        let meta = fs::symlink_metadata(path).unwrap();
        let accessed = (meta.atime(), meta.atime_nsec());
        let modified = (meta.mtime(), meta.mtime_nsec());
        (path.clone(), [accessed, modified, (meta.ctime(), meta.ctime_nsec())])
    });
    times.collect()
}

/// Gives every entry an access time that any mount but a `noatime` one would move: long past, and
/// before the modification.
fn age(paths: &[PathBuf]) {
    for path in paths {
        let (accessed, modified) =
            (TimeSpec::new(1_000_000_000, 1), TimeSpec::new(1_000_000_001, 2));
        utimensat(AT_FDCWD, path, &accessed, &modified, UtimensatFlags::NoFollowSymlink).unwrap();
    }
}

#[test]
fn no_time_stamp_moves_when_root_scans_a_folder() {
    if !is_root_for("time stamps after a scan by root") {
        return;
    }
    let ((_folder, paths), work) = (assorted(), tempfile::tempdir().unwrap());
    age(&paths);
    let before = times(&paths);
    let scan = scan(work.path(), &[&paths[0]]);
    assert_eq!(times(&paths), before);
    assert_eq!((scan.status, scan.gaps.len()), (0, 0), "{:?}", scan.gaps);
    assert!(scan.report.volumes[0].view.iter().any(|option| option == "noatime"));
}

#[test]
fn no_time_stamp_moves_where_every_access_would_move_one() {
    if !is_root_for("time stamps on a strictatime mount") {
        return;
    }
    let work = tempfile::tempdir().unwrap();
    let mount = work.path().join("mnt");
    fs::create_dir(&mount).unwrap();
    // Prints the times before and after, and after ordinary access, to prove that these move here.
    let script = r#"
        cd "$1"; shift
        mount -t tmpfs -o strictatime none mnt
        mkdir -p mnt/etc/sub
        echo text | tee mnt/etc/passwd mnt/file mnt/etc/sub/file > mnt/other
        ln -s file mnt/link
        all='mnt mnt/etc mnt/etc/sub mnt/etc/passwd mnt/etc/sub/file mnt/file mnt/other mnt/link'
        touch --no-dereference --date '2001-02-03 04:05:06.789' $all
        stat --format '%n %x %y %z' $all > before
        "$@" || exit
        stat --format '%n %x %y %z' $all > after
        cat mnt/file; ls mnt/etc; readlink mnt/link
        stat --format '%n %x %y %z' mnt/file mnt/etc mnt/link > moved"#;
    let folder = work.path().to_str().unwrap();
    let prefix =
        ["unshare", "--mount", "--propagation", "private", "sh", "-euc", script, "sh", folder];
    let scan = scan_through(work.path(), &prefix, &[&mount]);
    let text = |name: &str| fs::read_to_string(work.path().join(name)).unwrap();
    assert_eq!(text("after"), text("before"));
    assert!(text("moved").lines().all(|line| !text("after").contains(line)), "{}", text("moved"));
    assert_eq!((scan.status, scan.files.len()), (0, 8), "{:?}", scan.gaps);
}

#[test]
fn an_owner_without_root_moves_no_time_stamp_that_the_system_lets_him_keep() {
    let ((folder, paths), work) = (assorted(), tempfile::tempdir().unwrap());
    if nix::unistd::geteuid().is_root() {
        for path in &paths {
            std::os::unix::fs::lchown(path, Some(NOBODY), Some(NOBODY)).unwrap();
        }
    }
    age(&paths);
    let before = times(&paths);
    let scan = scan_as_nobody(work.path(), &[folder.path()]);
    let after = times(&paths);
    let moved: Vec<_> = before.iter().zip(&after).filter(|(b, a)| b != a).map(|(b, _)| b).collect();
    // readlink(2) has no flag that would keep a link's access time.
    assert!(moved.iter().all(|(path, _)| path.is_symlink()), "{moved:?}");
    let gaps = scan.gaps_of(GapKind::AccessTimes);
    let told: u64 = gaps.iter().map(|gap| gap.count).sum();
    assert_eq!(told, moved.len() as u64, "{:?}", scan.gaps);
    assert_eq!(scan.files.len(), paths.len());
}

#[test]
fn access_times_that_may_have_moved_are_a_gap_that_counts_them() {
    if !is_root_for("scanning what belongs to others") {
        return;
    }
    let (folder, work) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    fs::set_permissions(folder.path(), fs::Permissions::from_mode(0o755)).unwrap();
    fs::create_dir_all(folder.path().join("a/b")).unwrap();
    for name in ["one", "a/two", "a/b/three"] {
        fs::write(folder.path().join(name), name).unwrap();
    }
    let scan = scan_as_nobody(work.path(), &[folder.path()]);
    let gaps = scan.gaps_of(GapKind::AccessTimes);
    assert_eq!((gaps.len(), scan.gaps.len(), scan.status), (1, 1, 3), "{:?}", scan.gaps);
    assert_eq!(gaps[0].count, scan.files.len() as u64, "each entry once");
    assert!(gaps[0].advice.is_some() && gaps[0].reason.contains("access times"), "{:?}", gaps[0]);
}

#[test]
fn excluded_entries_are_recorded_unread_and_counted() {
    let ((folder, _), work) = (assorted(), tempfile::tempdir().unwrap());
    let evidence = folder.path().to_str().unwrap();
    let rules = work.path().join("planted.yar");
    fs::write(&rules, PLANTED).unwrap();
    for name in ["one.iso", "etc/two.iso", "etc/empty folder/hidden"] {
        fs::write(folder.path().join(name), "PLANTED").unwrap();
    }
    let excludes = ["--exclude", "*.iso", "--exclude", "/etc/empty folder", "--exclude", "/none"];
    let arguments = [&[evidence, "--rules", rules.to_str().unwrap()], &excludes[..]].concat();
    let scan = scan(work.path(), &arguments);
    for path in ["/one.iso", "/etc/two.iso", "/etc/empty folder"] {
        let file = scan.file(path);
        assert_eq!((file.scan, file.sha256, file.entropy), (ScanState::Skipped, None, None));
    }
    assert!(!scan.paths().contains(&"/etc/empty folder/hidden"), "not entered");
    assert!(scan.findings.is_empty(), "{:?}", scan.findings);
    let gaps = scan.gaps_of(GapKind::Excluded);
    let told: Vec<_> = gaps.iter().map(|gap| (gap.count, gap.reason.as_str())).collect();
    assert_eq!(told.len(), 2, "{told:?}");
    assert!(told[0].0 == 2 && told[0].1.contains("*.iso"), "{told:?}");
    assert!(told[1].0 == 1 && told[1].1.contains("/etc/empty folder"), "{told:?}");
    assert_eq!((scan.status, scan.gaps.len()), (3, 2));
    assert!(scan.file("/etc/text").sha256.is_some());
}

#[test]
fn files_above_the_size_limit_are_gaps() {
    let ((folder, _), work) = (assorted(), tempfile::tempdir().unwrap());
    let evidence = folder.path().to_str().unwrap();
    let scan = scan(work.path(), &[evidence, "--max-file-size", "70000"]);
    let gaps = scan.gaps_of(GapKind::TooLarge);
    assert_eq!((gaps.len(), scan.gaps.len(), scan.status), (1, 1, 3), "{:?}", scan.gaps);
    assert_eq!(gaps[0].path.as_ref().unwrap().path, "/etc/text");
    assert!(gaps[0].reason.contains("100000") && gaps[0].reason.contains("70000"), "{:?}", gaps[0]);
    let text = scan.file("/etc/text");
    assert_eq!((text.scan, text.sha256, text.size), (ScanState::TooLarge, None, 100_000));
    assert!(scan.file("/noise").sha256.is_some(), "of exactly the limit's size");
}

#[test]
fn further_digests_and_no_entropy_where_asked_for() {
    let ((folder, paths), work) = (assorted(), tempfile::tempdir().unwrap());
    let evidence = folder.path().to_str().unwrap();
    let scanned = scan(work.path(), &[evidence, "--digest", "md5,sha1", "--no-entropy"]);
    for (path, file) in paths.iter().zip(&scanned.files) {
        assert_eq!(file.entropy, None);
        if file.kind == EntryKind::File {
            assert_eq!(file.md5, Some(digest_by("md5sum", path)));
            assert_eq!(file.sha1, Some(digest_by("sha1sum", path)));
            assert_eq!(file.sha256.unwrap().to_string(), sha256sum(path));
        }
    }
    let one = scan(work.path(), &[evidence, "--digest", "sha1"]);
    let file = one.file("/noise");
    assert!(file.md5.is_none() && file.sha1.is_some() && file.entropy.is_some(), "{file:?}");
    let plain = scan(work.path(), &[evidence]);
    let file = plain.file("/noise");
    assert!(file.md5.is_none() && file.sha1.is_none() && file.entropy.is_some(), "{file:?}");
}
