//! Defects that were found once and must not come back, each by what an examiner would have seen of it.
//!
//! Touches temporary folders, images in them, and the processes of the scans that it starts.

use std::{
    collections::BTreeSet,
    ffi::OsString,
    fs,
    os::{fd::OwnedFd, unix::fs::symlink},
    path::{Path, PathBuf},
    process::Command,
};

use cleanroom_contract::{EntryKind, GapKind, RunState, ScanState, VolumeState};
use cleanroom_harness::{
    elf::Elf,
    images::{Ext, Image, MIB},
};
use nix::sys::signal::Signal;
use rustix::fs::{Mode, OFlags};

#[expect(clippy::duplicate_mod, reason = "the module is private to the tests of processes")]
#[path = "processes/running.rs"]
mod running;

use crate::support::{self, agent, is_root_for, scan, sha256sum, wait_until};
use running::{Process, Running, SLOW, busy_folder, loop_devices, slow_rule, wait_until_gone};

#[test]
fn a_stop_after_the_walk_says_what_was_not_read() {
    const HOLES: usize = 8;
    let work = tempfile::tempdir().unwrap();
    let evidence = work.path().join("evidence");
    fs::create_dir(&evidence).unwrap();
    // Listed in a moment, and each takes seconds to hash: the walk has ended long before the reading.
    let others = (1..HOLES).map(|number| format!("hole-{number}"));
    for name in others.chain([SLOW[1..].to_owned()]) {
        fs::File::create(evidence.join(name)).unwrap().set_len(6 << 30).unwrap();
    }
    // The smallest is read last.
    fs::write(evidence.join("malware"), "malware").unwrap();
    let mut running =
        Running::start(work.path(), &[evidence.as_os_str(), "--threads".as_ref(), "1".as_ref()]);
    running.wait_for_slow_file();
    running.supervisor().signal(Signal::SIGINT);
    let scan = running.finish();

    assert_eq!(scan.status, 3, "{}", scan.stderr);
    assert_eq!(scan.report.run.state, RunState::Interrupted);
    assert!(!scan.report.summary.complete);
    let states: Vec<_> = scan.report.volumes.iter().map(|volume| volume.state).collect();
    assert_eq!(states, [VolumeState::Incomplete]);
    let files: Vec<_> = scan.files.iter().filter(|file| file.kind == EntryKind::File).collect();
    assert_eq!(files.len(), HOLES + 1, "what was found is listed: {:?}", scan.paths());
    let unread: Vec<_> = files.iter().filter(|file| file.sha256.is_none()).collect();
    assert!(unread.iter().any(|file| file.path.path == "/malware"));
    assert!(unread.iter().all(|file| file.scan == ScanState::Skipped), "{unread:?}");
    let gaps = scan.gaps_of(GapKind::Interrupted);
    assert_eq!(gaps.len(), 1, "{gaps:?}");
    assert_eq!(gaps[0].volume.as_deref(), Some("evidence"));
    assert_eq!(gaps[0].count, unread.len() as u64, "{}", gaps[0].reason);
    let told = format!("{} files that were found were not read", unread.len());
    assert!(gaps[0].reason.contains(&told), "{}", gaps[0].reason);
}

/// Makes nested folders with names of 250 bytes below `root`, one component at a time, since the whole
/// path is longer than the kernel takes (`PATH_MAX`, 4,096 bytes); gives back the innermost.
fn long_path(root: &Path, levels: usize) -> OwnedFd {
    let flags = OFlags::DIRECTORY | OFlags::CLOEXEC;
    let mut folder = rustix::fs::open(root, flags, Mode::empty()).unwrap();
    for level in 0..levels {
        let name = format!("{level:0>250}");
        rustix::fs::mkdirat(&folder, &name, Mode::RWXU).unwrap();
        folder = rustix::fs::openat(&folder, &name, flags, Mode::empty()).unwrap();
    }
    folder
}

#[test]
fn long_paths_and_many_matches_do_not_stall_the_scan() {
    const FILES: usize = 400;
    const RULES: usize = 20;
    let work = tempfile::tempdir().unwrap();
    let evidence = work.path().join("evidence");
    fs::create_dir(&evidence).unwrap();
    let folder = long_path(&evidence, 20);
    let flags = OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL | OFlags::CLOEXEC;
    for number in 0..FILES {
        let name = format!("file-{number:03}");
        let file = rustix::fs::openat(&folder, name, flags, Mode::RUSR | Mode::WUSR).unwrap();
        assert_eq!(rustix::io::write(&file, b"content").unwrap(), 7);
    }
    // Jobs with long paths go one way while answers with much metadata come the other: neither side may
    // wait for the other to read.
    let filler = "x".repeat(200);
    let text: String = (0..RULES)
        .map(|rule| {
            let meta: String = (0..8).map(|n| format!("note_{n} = \"{filler}\" ")).collect();
            format!("rule all_{rule} {{ meta: {meta} condition: filesize == 7 }}\n")
        })
        .collect();
    let rules = work.path().join("rules.yar");
    fs::write(&rules, text).unwrap();
    let args = [evidence.as_os_str(), "--rules".as_ref(), rules.as_os_str()];
    let mut running = Running::start(work.path(), &args);
    wait_until("the scan of long paths ends", || running.has_ended());
    let scan = running.finish();

    assert_eq!(scan.status, 0, "{}{:?}", scan.stderr, scan.gaps);
    assert!(scan.report.summary.complete);
    let matched = scan.files.iter().filter(|file| file.scan == ScanState::Matched);
    let whole = matched.filter(|file| {
        file.sha256.is_some() && file.matches.len() == RULES && file.path.path.len() > 5000
    });
    assert_eq!(whole.count(), FILES);
}

/// What a process's descriptors are, as `/proc` shows them: `socket:[1234]` with the inode number.
fn sockets(process: &Process) -> BTreeSet<PathBuf> {
    let descriptors = fs::read_dir(format!("/proc/{}/fd", process.pid)).unwrap().flatten();
    let targets = descriptors.filter_map(|descriptor| fs::read_link(descriptor.path()).ok());
    targets.filter(|target| target.to_string_lossy().starts_with("socket:[")).collect()
}

#[test]
fn an_inspector_does_not_hold_the_zygotes_conversation() {
    let work = tempfile::tempdir().unwrap();
    let evidence = work.path().join("evidence");
    busy_folder(&evidence, 10, 9);
    let rules = slow_rule(work.path());
    let args = [evidence.as_os_str(), "--rules".as_ref(), rules.as_os_str()];
    let mut running = Running::start(work.path(), &args);
    let inspector = running.wait_for_slow_file();
    let zygote = running.wait_for("cr-zygote");
    let family = running.processes();

    let input = fs::read_link(format!("/proc/{}/fd/0", inspector.pid)).unwrap();
    assert_eq!(input, Path::new("/dev/null"));
    let (of_inspector, of_zygote) = (sockets(&inspector), sockets(&zygote));
    assert!(!of_inspector.is_empty(), "it has its jobs from one");
    assert!(!of_zygote.is_empty(), "it has its orders from one");
    assert!(of_inspector.is_disjoint(&of_zygote), "{of_inspector:?} {of_zygote:?}");
    drop(running);
    wait_until_gone(&family);
}

#[test]
fn a_directory_linked_into_many_is_entered_once() {
    const LEVELS: usize = 6;
    if !is_root_for("a directory that is linked into many") {
        return;
    }
    let work = tempfile::tempdir().unwrap();
    let content = work.path().join("content");
    let folders = (1..=LEVELS).map(|level| format!("level-{level}"));
    let innermost = folders.fold(content.clone(), |path, name| path.join(name));
    fs::create_dir_all(&innermost).unwrap();
    fs::write(innermost.join("file"), "content").unwrap();
    let image = Image::new(work.path(), "disk.img", 32 * MIB).ext(Ext::Ext4, &content).unwrap();
    // Each level holds the next under a second name: 64 ways lead to the file.
    let mut parent = String::new();
    for level in 1..=LEVELS {
        let request = format!("ln {parent}/level-{level} {parent}/again-{level}");
        let (status, out, err) =
            support::run(Command::new("debugfs").args(["-w", "-R", &request]).arg(&image));
        assert_eq!(status, 0, "{request}: {out}{err}");
        parent = format!("{parent}/level-{level}");
    }
    let scan = scan(work.path(), &[&image]);

    assert_eq!(scan.status, 3, "{}{:?}", scan.stderr, scan.gaps);
    // The root, lost+found, two names a level, and the file: not 2 + 4 + 8 + … of them.
    assert_eq!(scan.files.len(), 2 + 2 * LEVELS + 1, "{:?}", scan.paths());
    let read = scan.files.iter().filter(|file| file.sha256.is_some());
    assert_eq!(read.map(|file| file.size).collect::<Vec<_>>(), [7]);
    let gaps = scan.gaps_of(GapKind::TooDeep);
    assert_eq!((gaps.len(), scan.gaps.len()), (LEVELS, LEVELS), "{:?}", scan.gaps);
    for gap in gaps {
        assert!(gap.reason.contains("entered before"), "{}", gap.reason);
        let named = scan.findings.iter().any(|f| f.source == "walk:depth" && f.path == gap.path);
        assert!(named, "{:?} is no finding: {:?}", gap.path, scan.findings);
    }
}

/// Gives the one directory entry of a name another kind: its header ends with the name's length and the
/// kind, 1 for a file, 2 for a directory (ext4 disk layout, kernel documentation: `ext4_dir_entry_2`).
fn forge_kind(image: &Path, name: &str, from: u8, to: u8) {
    let mut bytes = fs::read(image).unwrap();
    let length = u8::try_from(name.len()).unwrap();
    let wanted = [&[length, from], name.as_bytes()].concat();
    let found = bytes.windows(wanted.len()).enumerate().filter(|(_, window)| *window == wanted);
    let found: Vec<usize> = found.map(|(at, _)| at).collect();
    assert_eq!(found.len(), 1, "{name} is at {found:?}");
    bytes[found[0] + 1] = to;
    fs::write(image, bytes).unwrap();
}

#[test]
fn a_forged_kind_in_a_directory_does_not_hide_a_file() {
    const FILE: u8 = 1;
    const DIRECTORY: u8 = 2;
    if !is_root_for("kinds that a directory lies about") {
        return;
    }
    let work = tempfile::tempdir().unwrap();
    let content = work.path().join("content");
    fs::create_dir_all(content.join("a-real-folder")).unwrap();
    fs::write(content.join("a-real-file"), "hidden").unwrap();
    fs::write(content.join("a-real-folder/child"), "in a hidden folder").unwrap();
    // Directories of ext2 have no checksums that would give the forgery away.
    let image = Image::new(work.path(), "disk.img", 8 * MIB).ext(Ext::Ext2, &content).unwrap();
    forge_kind(&image, "a-real-file", FILE, DIRECTORY);
    forge_kind(&image, "a-real-folder", DIRECTORY, FILE);
    let scan = scan(work.path(), &[&image]);

    assert_eq!(scan.file("/a-real-file").kind, EntryKind::File);
    assert_eq!(scan.file("/a-real-folder").kind, EntryKind::Dir);
    for path in ["/a-real-file", "/a-real-folder/child"] {
        let digest = scan.file(path).sha256.map(|digest| digest.to_string());
        assert_eq!(digest, Some(sha256sum(&content.join(&path[1..]))), "{path}");
    }
    assert_eq!(scan.status, 0, "{:?}", scan.gaps);
    wait_until("the loop device is gone", || loop_devices(&image).is_empty());
}

#[test]
fn a_large_executable_says_that_its_structure_was_not_read() {
    let work = tempfile::tempdir().unwrap();
    let evidence = work.path().join("evidence");
    fs::create_dir(&evidence).unwrap();
    fs::write(evidence.join("small"), Elf::default().build()).unwrap();
    let overlay = vec![b'x'; 3 << 20];
    fs::write(evidence.join("large"), Elf { overlay, ..Elf::default() }.build()).unwrap();
    let evidence = evidence.to_str().unwrap();
    let scan = scan(work.path(), &[evidence, "--memory", "2M", "--threads", "1"]);

    assert_eq!(scan.status, 3, "{:?}", scan.gaps);
    let gaps: Vec<_> =
        scan.gaps.iter().map(|gap| (gap.kind, gap.path.as_ref().unwrap().path.as_str())).collect();
    assert_eq!(gaps, [(GapKind::Partial, "/large")]);
    assert!(scan.gaps[0].reason.contains("structure was not read"), "{}", scan.gaps[0].reason);
    let large = scan.file("/large");
    assert_eq!(large.format.as_deref(), Some("ELF"));
    assert!(large.sha256.is_some() && large.binary.is_none());
    assert!(scan.file("/small").binary.is_some());
}

/// Every path below a folder.
fn listing(folder: &Path) -> Vec<PathBuf> {
    walkdir::WalkDir::new(folder)
        .sort_by_file_name()
        .into_iter()
        .map(|entry| entry.unwrap().into_path())
        .collect()
}

#[test]
fn a_rule_cache_inside_the_evidence_is_not_written() {
    let work = tempfile::tempdir().unwrap();
    let evidence = work.path().join("evidence");
    fs::create_dir_all(evidence.join("existing")).unwrap();
    fs::write(evidence.join("file"), "marker").unwrap();
    let rules = work.path().join("rules.yar");
    fs::write(&rules, "rule marker { strings: $m = \"marker\" condition: $m }").unwrap();
    let door = work.path().join("door");
    symlink(&evidence, &door).unwrap();
    let before = listing(&evidence);
    let within = [
        evidence.clone(),
        evidence.join("existing"),
        evidence.join("missing/too"),
        door.join("existing"),
        door.join("missing"),
        work.path().join("nowhere/../evidence/existing"),
    ];
    let inside = within.map(|path| ("XDG_CACHE_HOME", path)).into_iter();
    for (variable, path) in inside.chain([("HOME", evidence.clone())]) {
        let out = tempfile::Builder::new().prefix("out-").tempdir_in(work.path()).unwrap().keep();
        let mut command = agent(work.path());
        command.env_remove("XDG_CACHE_HOME").env(variable, OsString::from(&path));
        command.arg("scan").arg(&evidence).arg("--rules").arg(&rules).arg("--out").arg(&out);
        let output = command.output().unwrap();
        let scan = support::read(&out, &output);
        assert_eq!(scan.status, 0, "{}", scan.stderr);
        assert_eq!(scan.file("/file").scan, ScanState::Matched);
        assert_eq!(listing(&evidence), before, "{variable}={}", path.display());
    }
}

#[test]
fn a_bundle_is_not_made_in_the_evidence_by_way_of_a_missing_folder() {
    let work = tempfile::tempdir().unwrap();
    let evidence = work.path().join("evidence");
    fs::create_dir_all(evidence.join("existing")).unwrap();
    let before = listing(&evidence);
    let rest = ["evidence/out", "evidence/existing/out", "missing/../evidence/out"];
    for out in rest.map(|rest| work.path().join("nowhere/..").join(rest)) {
        let (status, _, stderr) =
            support::run(agent(work.path()).arg("scan").arg(&evidence).arg("--out").arg(&out));
        assert_eq!(status, 1, "{}: {stderr}", out.display());
        assert!(stderr.contains("lies in the evidence"), "{stderr}");
        assert_eq!(listing(&evidence), before, "{}", out.display());
    }
    // What only passes by the evidence is taken.
    let beside = work.path().join("nowhere/../evidence/existing/../../bundle");
    let scan = [evidence.as_os_str(), "--out".as_ref(), beside.as_os_str()];
    let (status, _, stderr) = support::run(agent(work.path()).arg("scan").args(scan));
    assert_eq!(status, 0, "{stderr}");
    assert_eq!(listing(&evidence), before);
}
