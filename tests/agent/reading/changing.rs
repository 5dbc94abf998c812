//! Files and images that change, shrink or fail under the reader.
//!
//! What must happen while the agent is at work is not left to luck: a test waits until the agent holds
//! the file, or has read from the image, and keeps it busy with a hole of 3 GiB until then.

use std::{
    fs::File,
    os::unix::fs::FileExt as _,
    process::{Child, Stdio},
    sync::atomic::{AtomicBool, Ordering},
};

use cleanroom_contract::{RunState, VolumeState};
use cleanroom_harness::images::{BTRFS_MIN, Ext, Image};

use super::*;
use crate::support::{self, Scan, wait_until};

const MIB: u64 = 1 << 20;

/// Scans while another thread does something to the evidence again and again, from before the
/// beginning to after the end.
fn scan_while(work: &Path, evidence: &Path, meddle: impl Fn(u64) + Sync) -> Scan {
    let done = AtomicBool::new(false);
    std::thread::scope(|scope| {
        scope.spawn(|| {
            for round in 0.. {
                if done.load(Ordering::Relaxed) {
                    break;
                }
                meddle(round);
            }
        });
        let scan = std::panic::catch_unwind(|| scan(work, &[evidence]));
        done.store(true, Ordering::Relaxed);
        scan.unwrap_or_else(|panic| std::panic::resume_unwind(panic))
    })
}

/// The file has one gap, which says that it changed; the file beside it is examined.
fn assert_changed(scan: &Scan, beside: &Path) {
    let gaps = scan.gaps_of(GapKind::Changed);
    let paths: Vec<_> = gaps.iter().map(|gap| gap.path.as_ref().unwrap().path.as_str()).collect();
    assert_eq!((paths, scan.status), (vec!["/victim"], 3), "{:?}", scan.gaps);
    let file = scan.file("/beside");
    assert_eq!(file.sha256.unwrap().to_string(), sha256sum(beside));
    assert_eq!(scan.gaps.len(), 1, "{:?}", scan.gaps);
}

/// A folder with a victim of 64 MiB, open for writing, and a file beside it.
fn victim() -> (TempDir, File, PathBuf) {
    let folder = tempfile::tempdir().unwrap();
    let (path, beside) = (folder.path().join("victim"), folder.path().join("beside"));
    fs::write(&path, vec![b'x'; 64 << 20]).unwrap();
    fs::write(&beside, "left alone").unwrap();
    let file = File::options().write(true).open(&path).unwrap();
    (folder, file, beside)
}

#[test]
fn a_file_that_is_written_to_while_it_is_read_is_a_gap() {
    let ((folder, file, beside), work) = (victim(), tempfile::tempdir().unwrap());
    let scan = scan_while(work.path(), folder.path(), |round| {
        let byte = [round.to_le_bytes()[0]];
        file.write_all_at(&byte, round * 4099 % (64 * MIB)).unwrap();
    });
    assert_changed(&scan, &beside);
}

#[test]
fn a_file_that_grows_while_it_is_read_is_a_gap() {
    let ((folder, file, beside), work) = (victim(), tempfile::tempdir().unwrap());
    let scan = scan_while(work.path(), folder.path(), |round| {
        file.write_all_at(b"more", 64 * MIB + 4 * round).unwrap();
    });
    assert_changed(&scan, &beside);
    assert!(scan.file("/victim").size >= 64 * MIB);
}

#[test]
fn a_file_that_shrinks_and_grows_while_it_is_read_is_a_gap() {
    let ((folder, file, beside), work) = (victim(), tempfile::tempdir().unwrap());
    let scan = scan_while(work.path(), folder.path(), |round| {
        file.set_len(if round % 2 == 0 { 40 * MIB } else { 64 * MIB }).unwrap();
    });
    assert_changed(&scan, &beside);
}

/// A scan that runs, and is killed where the test fails before its end.
struct Running {
    agent: Option<Child>,
    bundle: PathBuf,
}

impl Running {
    fn start(work: &Path, args: &[&str]) -> Self {
        let bundle = work.join("bundle");
        let mut command = support::agent(&work.join("cache"));
        command.arg("scan").args(args).arg("--out").arg(&bundle);
        let agent = command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
        Self { agent: Some(agent), bundle }
    }

    /// Waits until a process below the agent has the file open, under its path on the evidence.
    fn wait_for_open(&self, path: &str) {
        let agent = self.agent.as_ref().unwrap().id().to_string();
        wait_until(path, || {
            let processes = fs::read_dir("/proc").unwrap().map(|entry| entry.unwrap().path());
            let ours = |process: &PathBuf| {
                fs::read_to_string(process.join("stat")).is_ok_and(|stat| {
                    stat.rsplit(") ").next().and_then(|rest| rest.split(' ').nth(1)) == Some(&agent)
                })
            };
            processes.filter(ours).any(|process| {
                let open = fs::read_dir(process.join("fd")).into_iter().flatten().flatten();
                open.filter_map(|fd| fs::read_link(fd.path()).ok()).any(|file| file.ends_with(path))
            })
        });
    }

    fn finish(mut self) -> Scan {
        let output = self.agent.take().unwrap().wait_with_output().unwrap();
        support::read(&self.bundle, &output)
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        if let Some(mut agent) = self.agent.take() {
            drop(agent.kill());
            drop(agent.wait());
        }
    }
}

#[test]
fn a_file_that_ends_early_is_an_error_without_a_digest() {
    let (folder, work) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let victim = folder.path().join("victim");
    fs::write(&victim, vec![b'x'; 1 << 20]).unwrap();
    File::create(folder.path().join("busy")).unwrap().set_len(3 << 30).unwrap();
    let running = Running::start(work.path(), &[folder.path().to_str().unwrap(), "--threads", "1"]);
    running.wait_for_open("victim");
    File::options().write(true).open(&victim).unwrap().set_len(1000).unwrap();
    let scan = running.finish();
    let file = scan.file("/victim");
    assert_eq!((file.scan, file.sha256, file.entropy), (ScanState::Error, None, None));
    let gaps = scan.gaps_of(GapKind::Changed);
    assert_eq!((gaps.len(), scan.gaps.len(), scan.status), (1, 1, 3), "{:?}", scan.gaps);
    assert!(gaps[0].reason.contains("ended at byte 1000 of 1048576"), "{:?}", gaps[0]);
    assert!(scan.file("/busy").sha256.is_some());
}

/// Rules that match where what one file holds is taken for another's.
const LEAK_RULES: &str = r#"
rule first { strings: $a = "ONLY-IN-THE-VICTIM" condition: $a }
rule both { strings: $a = "ONLY-IN-THE-VICTIM" $b = "ONLY-IN-THE-CLEAN" condition: all of them }
rule clean { strings: $b = "ONLY-IN-THE-CLEAN" condition: $b }
"#;

/// Twenty MiB that begin with `text`, so that several blocks follow.
fn begins_with(text: &[u8]) -> Vec<u8> {
    let mut content = vec![b'x'; 20 << 20];
    content[..text.len()].copy_from_slice(text);
    content
}

/// The victim lost its matches with its content, and the clean files have their own only.
fn assert_nothing_leaked(scan: &Scan) {
    let victim = scan.file("/victim");
    assert_eq!((victim.scan, victim.sha256), (ScanState::Error, None));
    let rules = |path| {
        let matches = scan.file(path).matches.iter();
        matches.map(|found| found.rule.clone()).collect::<Vec<_>>()
    };
    assert_eq!(rules("/victim"), [""; 0]);
    assert_eq!(rules("/clean"), ["clean"]);
    assert_eq!(rules("/small"), ["clean"]);
    assert_eq!(scan.file("/empty of words").scan, ScanState::Partial);
    assert_eq!(rules("/empty of words"), [""; 0]);
}

/// Fills a folder with the victim and those that come after it: files are read largest first.
fn plant_leak(folder: &Path, work: &Path) -> String {
    let mut victim = begins_with(b"ONLY-IN-THE-VICTIM");
    victim.extend([b'x'; 4096]);
    fs::write(folder.join("victim"), victim).unwrap();
    fs::write(folder.join("clean"), begins_with(b"ONLY-IN-THE-CLEAN")).unwrap();
    fs::write(folder.join("empty of words"), vec![b'x'; 19 << 20]).unwrap();
    fs::write(folder.join("small"), "ONLY-IN-THE-CLEAN").unwrap();
    let rules = work.join("rules.yar");
    fs::write(&rules, LEAK_RULES).unwrap();
    rules.to_str().unwrap().to_owned()
}

#[test]
fn nothing_of_a_file_cut_off_in_its_second_block_leaks_into_the_next() {
    let (folder, work) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let rules = plant_leak(folder.path(), work.path());
    File::create(folder.path().join("busy")).unwrap().set_len(3 << 30).unwrap();
    let evidence = folder.path().to_str().unwrap();
    let arguments = [evidence, "--rules", &rules, "--memory", "2M", "--threads", "1"];
    let running = Running::start(work.path(), &arguments);
    running.wait_for_open("victim");
    let victim = File::options().write(true).open(folder.path().join("victim")).unwrap();
    victim.set_len(10 * MIB).unwrap();
    let scan = running.finish();
    assert_nothing_leaked(&scan);
    let gaps = scan.gaps_of(GapKind::Changed);
    assert_eq!(gaps.len(), 1, "{:?}", scan.gaps);
    assert!(gaps[0].reason.contains("ended at byte 10485760"), "{:?}", gaps[0]);
}

#[test]
fn nothing_of_a_file_with_a_bad_block_leaks_into_the_next() {
    if !is_root_for("files with bad blocks") {
        return;
    }
    let (folder, work) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let rules = plant_leak(folder.path(), work.path());
    // Where this text lies, the file system's own checksum will be wrong.
    let mark = b"THIS-IS-WHERE-THE-DISK-IS-BAD";
    let victim = File::options().write(true).open(folder.path().join("victim")).unwrap();
    victim.write_all_at(mark, 12 * MIB).unwrap();
    let uuid = "c1ea0000-0000-4000-8000-0000000e0006";
    let image = Image::new(work.path(), "b.img", BTRFS_MIN + 64 * MIB).uuid(uuid);
    let path = image.btrfs(folder.path()).unwrap();
    let bytes = fs::read(&path).unwrap();
    let at = bytes.windows(mark.len()).position(|window| window == mark).unwrap();
    let image = File::options().write(true).open(&path).unwrap();
    image.write_all_at(b"BAD", at as u64).unwrap();
    let evidence = path.to_str().unwrap();
    let scan =
        scan(work.path(), &[evidence, "--rules", &rules, "--memory", "2M", "--threads", "1"]);
    assert_nothing_leaked(&scan);
    let gaps = scan.gaps_of(GapKind::Unreadable);
    let paths: Vec<_> = gaps.iter().map(|gap| gap.path.as_ref().unwrap().path.as_str()).collect();
    assert_eq!(paths, ["/victim"], "{:?}", scan.gaps);
    assert!(gaps[0].reason.contains("Input/output error"), "{:?}", gaps[0]);
    assert_eq!(scan.report.volumes[0].state, VolumeState::Examined);
}

/// Sectors of 512 bytes that were read from the loop device which shows the image
/// (Documentation/block/stat.rst); none where there is no such device.
fn sectors_read(image: &Path) -> u64 {
    let devices = fs::read_dir("/sys/block").unwrap().map(|entry| entry.unwrap().path());
    let shows = |device: &PathBuf| {
        fs::read_to_string(device.join("loop/backing_file"))
            .is_ok_and(|backing| Path::new(backing.trim_end()) == image)
    };
    let stat =
        devices.filter(shows).find_map(|device| fs::read_to_string(device.join("stat")).ok());
    stat.and_then(|stat| stat.split_whitespace().nth(2)?.parse().ok()).unwrap_or(0)
}

#[test]
fn an_image_that_shrinks_during_the_scan_leaves_a_sealed_incomplete_bundle() {
    if !is_root_for("an image that shrinks during the scan") {
        return;
    }
    let (folder, work) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let content = vec![b'x'; 16 << 20];
    for number in 10..40 {
        fs::write(folder.path().join(format!("file-{number}")), &content).unwrap();
    }
    let image = Image::new(work.path(), "i.img", 600 * MIB).ext(Ext::Ext4, folder.path()).unwrap();
    let beside = tempfile::tempdir().unwrap();
    fs::write(beside.path().join("beside"), "still examined").unwrap();
    let arguments = [&image, beside.path()].map(|path: &Path| path.to_str().unwrap());
    // A counter of earlier users of the same loop device must not pass for ours.
    let running = Running::start(work.path(), &[&arguments[..], &["--threads", "1"]].concat());
    let mut begun = None;
    wait_until("the agent has read 64 MiB", || {
        let read = sectors_read(&image);
        read > 0 && read > *begun.get_or_insert(read) + (64 << 11)
    });
    File::options().write(true).open(&image).unwrap().set_len(24 * MIB).unwrap();
    let scan = running.finish();

    assert_eq!(scan.status, 3, "{}", scan.stderr);
    let volume = &scan.report.volumes[0];
    assert_eq!((volume.volume.as_str(), volume.state), ("i.img", VolumeState::Incomplete));
    assert!(!scan.report.summary.complete);
    assert_eq!(scan.report.run.state, RunState::Complete, "nobody interrupted it");
    let gaps: Vec<_> = scan.gaps.iter().filter(|g| g.volume.as_deref() == Some("i.img")).collect();
    let lost = gaps.iter().find(|gap| gap.kind == GapKind::Evidence && gap.path.is_none());
    let lost = lost.unwrap_or_else(|| panic!("no gap of the volume in {gaps:?}"));
    assert!(lost.reason.contains("lost bytes") && lost.advice.is_some(), "{lost:?}");

    let whole = sha256sum(&folder.path().join("file-10"));
    let on_image = |file: &&FileRecord| file.volume == "i.img" && file.path.path.contains("file");
    let (mut read, mut unread) = (0, 0);
    for file in scan.files.iter().filter(on_image) {
        match file.sha256 {
            Some(sha256) => {
                assert_eq!(
                    sha256.to_string(),
                    whole,
                    "{}: a digest is right or absent",
                    file.path.path
                );
                read += 1;
            }
            None => unread += 1,
        }
    }
    assert!(read > 0 && unread > 0, "{read} {unread}: it shrank in the middle");
    let told = gaps.iter().filter(|gap| gap.path.is_some()).count();
    let waiting = lost.reason.split_whitespace().find_map(|word| word.parse::<usize>().ok());
    assert_eq!(waiting.map(|waiting| waiting + told), Some(unread), "{gaps:?}");
    let beside = scan.files.iter().find(|file| file.path.path == "/beside");
    assert!(beside.unwrap().sha256.is_some(), "the next evidence is examined");
}

#[test]
fn an_image_that_shrinks_while_folders_are_listed_is_not_called_examined() {
    if !is_root_for("an image that shrinks during the scan") {
        return;
    }
    let (folder, work) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    // No file whose reading would show it.
    for number in 0..4000 {
        fs::create_dir(folder.path().join(format!("folder-{number}"))).unwrap();
    }
    let image = Image::new(work.path(), "i.img", 128 * MIB).ext(Ext::Ext4, folder.path()).unwrap();
    let running = Running::start(work.path(), &[image.to_str().unwrap()]);
    wait_until("the agent has read 1 MiB", || sectors_read(&image) > 1 << 11);
    File::options().write(true).open(&image).unwrap().set_len(100 * MIB).unwrap();
    let scan = running.finish();
    assert_eq!(scan.report.volumes[0].state, VolumeState::Incomplete, "{:?}", scan.gaps);
    let gaps = scan.gaps_of(GapKind::Evidence);
    assert!(gaps.iter().any(|gap| gap.reason.contains("lost bytes")), "{:?}", scan.gaps);
    assert_eq!(scan.status, 3);
}
