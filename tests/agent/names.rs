//! Names, links and special files that are made to mislead, trap or break a scanner.
//!
//! Touches temporary folders, and as root a mount in a namespace of its own.

use std::{
    ffi::OsStr,
    fs,
    mem::MaybeUninit,
    os::{
        fd::OwnedFd,
        unix::{ffi::OsStrExt as _, fs::symlink, net::UnixListener},
    },
    path::Path,
};

use base64::{Engine as _, prelude::BASE64_STANDARD};
use cleanroom_contract::{EntryKind, GapKind, ScanState};
use cleanroom_harness::{
    images::{Ext, Image, MIB},
    tree::{DeepFolder, ODD_NAMES},
};
use rustix::fs::{FileType, Mode, inotify};

use crate::support::{
    Scan, is_root_for, scan, scan_as_nobody, scan_through, settle_link, sha256sum,
};

/// Names beside [`ODD_NAMES`] that terminals, pages, field separators and decoders trip over.
const MORE_NAMES: [&[u8]; 14] = [
    b"bell\x07\x7f",
    b"\r\x08\x08overprint",
    b"csi-\xc2\x9b31m",
    b"override-\xe2\x80\xaegnp.exe",
    b"separator-\xe2\x80\xa8line",
    b"a|b|c",
    b"<script>alert(1)<b>",
    b"&amp;\"'",
    b"%0a%00%7c",
    b"back\\slash\\u{a}",
    b"\xff\xfe",
    b"half-\xe2\x82",
    b"surrogate-\xed\xa0\x80",
    b"...",
];

/// A rule that every file with `PLANTED` in it matches.
const RULE: &str = r#"rule planted { strings: $a = "PLANTED" condition: $a }"#;

/// Makes a file of every odd name, and one of 255 bytes, in `folder`; the names in raw order.
fn plant_odd_names(folder: &Path) -> Vec<Vec<u8>> {
    let longest = [b"\xc3\xa9".repeat(127), b"x".to_vec()].concat();
    assert_eq!(longest.len(), 255);
    let names = ODD_NAMES.iter().chain(&MORE_NAMES).map(|name| name.to_vec());
    let mut names: Vec<_> = names.chain([longest]).collect();
    for name in &names {
        fs::write(folder.join(OsStr::from_bytes(name)), [b"PLANTED ", name.as_slice()].concat())
            .unwrap();
    }
    names.sort();
    names
}

/// The files of the bundle and the streams that people look at, none of which may hold what a
/// terminal would obey.
fn assert_nothing_raw(scan: &Scan) {
    let file = |name: &str| fs::read_to_string(scan.bundle.join(name)).unwrap();
    let [html, body] = ["report.html", "timeline.body"].map(file);
    let texts = [("stdout", &scan.stdout), ("stderr", &scan.stderr), ("html", &html)];
    for (name, text) in texts.into_iter().chain([("body", &body)]) {
        let obeyed = |c: char| {
            c.is_control() && c != '\n'
                || matches!(c, '\u{202a}'..='\u{202e}' | '\u{2028}' | '\u{2029}')
        };
        // JSON lines are for programs: there the escape is JSON's own, of what is below a space.
        let raw = |c: &char| if name == "stdout" { *c < ' ' && *c != '\n' } else { obeyed(*c) };
        let found = text.chars().position(|c| raw(&c));
        assert_eq!(found, None, "{name} at character {found:?}");
    }
    for name in ["report.json", "findings.jsonl", "gaps.jsonl"] {
        assert!(!file(name).contains('\u{1b}'), "{name}");
    }
    assert!(!html.contains("<script>alert"), "names are text, not markup");
    let lines: Vec<_> = body.lines().collect();
    assert_eq!(lines.len(), scan.files.len(), "a line for each entry");
    for line in lines {
        assert_eq!(line.matches('|').count(), 10, "{line}");
    }
}

#[test]
fn odd_names_are_exact_in_records_and_harmless_everywhere_else() {
    let (folder, work) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let names = plant_odd_names(folder.path());
    let rules = work.path().join("planted.yar");
    fs::write(&rules, RULE).unwrap();
    let folder = folder.path().to_str().unwrap();
    let mut arguments = vec![folder, "--rules", rules.to_str().unwrap(), "--format", "jsonl"];
    let scanned = scan(work.path(), &arguments);
    assert_eq!((scanned.status, scanned.gaps.len()), (0, 0), "{:?}", scanned.gaps);
    assert_eq!(scanned.files.len(), 1 + names.len());
    for (name, file) in names.iter().zip(&scanned.files[1..]) {
        let path = [b"/", name.as_slice()].concat();
        assert_eq!(file.path.to_bytes(), path);
        let (text, bytes) = match String::from_utf8(path.clone()) {
            Ok(text) => (text, None),
            Err(_) => {
                (String::from_utf8_lossy(&path).into_owned(), Some(BASE64_STANDARD.encode(&path)))
            }
        };
        assert_eq!((&file.path.path, &file.path.path_bytes), (&text, &bytes));
        let on_disk = Path::new(folder).join(OsStr::from_bytes(name));
        assert_eq!(file.sha256.unwrap().to_string(), sha256sum(&on_disk));
        assert_eq!((file.scan, file.matches.len()), (ScanState::Matched, 1), "{text:?}");
    }
    let found: Vec<_> = scanned.findings.iter().map(|f| f.path.as_ref().unwrap()).collect();
    for file in &scanned.files[1..] {
        assert!(found.contains(&&file.path), "{:?} has its finding", file.path);
    }
    assert_nothing_raw(&scanned);

    *arguments.last_mut().unwrap() = "human";
    let told = scan(work.path(), &arguments);
    assert!(told.stdout.contains("planted"), "{}", told.stdout);
    let raw = told.stdout.chars().find(|c| c.is_control() && *c != '\n' || *c == '\u{202e}');
    assert_eq!(raw, None, "{:?}", told.stdout);
    assert!(!told.stdout.contains("new\nline"), "{:?}", told.stdout);
}

#[test]
fn evidence_with_an_odd_name_is_as_harmless() {
    let (parent, work) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    for name in [b"\x1b[31mred\nline".as_slice(), b"latin-\xe9|\xe2\x80\xae"] {
        let folder = parent.path().join(OsStr::from_bytes(name));
        fs::create_dir(&folder).unwrap();
        fs::write(folder.join("file"), "text").unwrap();
        fs::write(folder.join("left out"), "text").unwrap();
        let exclude = OsStr::new("*left out");
        let arguments = [folder.as_os_str(), OsStr::new("--exclude"), exclude];
        let scan = scan(work.path(), &arguments);
        assert_eq!(scan.file("/file").sha256.unwrap().to_string(), sha256sum(&folder.join("file")));
        assert_eq!(scan.gaps.len(), 1, "{:?}", scan.gaps);
        assert!(!scan.report.volumes[0].volume.chars().any(char::is_control));
        assert_nothing_raw(&scan);
    }
}

#[test]
fn a_directory_5000_deep_is_walked_to_its_bottom() {
    let (folder, work) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let _deep = DeepFolder::new(folder.path(), 5_000).unwrap();
    fs::write(folder.path().join("z"), "after the climb").unwrap();
    let scan = scan(work.path(), &[folder.path()]);
    assert_eq!((scan.status, scan.files.len()), (0, 1 + 5_000 + 2), "{:?}", scan.gaps);
    for (file, depth) in scan.files.iter().zip(0..).filter(|(file, _)| file.path.path != "/z") {
        let path = match depth {
            0 => "/".to_owned(),
            // The file sorts before the folder that is not there.
            5_001 => format!("{}/bottom", "/d".repeat(5_000)),
            depth => "/d".repeat(depth),
        };
        assert_eq!(file.path.path, path, "depth {depth}");
    }
    let bottom = scan.files.iter().find(|file| file.path.path.ends_with("/bottom")).unwrap();
    // SHA-256 of "bottom\n".
    let digest = bottom.sha256.unwrap().to_string();
    assert_eq!(digest, "dbbe8ac2e23d8c06dc3734be139408017714660f20b94a886b525c4378590f9b");
    assert!(scan.file("/z").sha256.is_some());
}

#[test]
fn a_path_too_long_for_a_record_is_a_gap_and_a_finding() {
    let (folder, work) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let name = OsStr::from_bytes(&[b'n'; 255]);
    let (spare, top) = (folder.path().join("spare"), folder.path().join(name));
    fs::create_dir(&top).unwrap();
    // From the inside out, so that no path is too long for the making of it.
    for _ in 1..140 {
        fs::create_dir(&spare).unwrap();
        fs::rename(&top, spare.join(name)).unwrap();
        fs::rename(&spare, &top).unwrap();
    }
    let scan = scan(work.path(), &[folder.path()]);
    let gaps = scan.gaps_of(GapKind::TooDeep);
    assert_eq!((gaps.len(), scan.status), (1, 3), "{:?}", scan.gaps);
    assert!(gaps[0].reason.contains("longer than"), "{:?}", gaps[0]);
    assert_eq!(gaps[0].path, scan.files.last().map(|file| file.path.clone()));
    let findings = scan.findings.iter().filter(|finding| finding.path == gaps[0].path);
    assert_eq!(findings.count(), 1, "{:?}", scan.findings);
    assert_eq!(scan.files.len(), 1 + (32 << 10) / 256 + 1);
    // And from the outside in, for the same reason.
    while fs::rename(top.join(name), &spare).is_ok() {
        fs::remove_dir(&top).unwrap();
        fs::rename(&spare, &top).unwrap();
    }
}

#[test]
fn links_are_recorded_with_their_targets_and_never_followed() {
    let (folder, work) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let root = folder.path();
    let secret = work.path().join("secret");
    fs::write(&secret, "PLANTED outside the evidence").unwrap();
    fs::create_dir(root.join("sub")).unwrap();
    let targets: [(&str, &[u8]); 10] = [
        ("shadow", b"/etc/shadow"),
        ("secret", secret.as_os_str().as_bytes()),
        ("etc", b"/etc"),
        ("sub/up", b"../../../../../../../../etc/passwd"),
        ("up", b".."),
        ("self", b"self"),
        ("ring-a", b"ring-b"),
        ("ring-b", b"ring-a"),
        ("dangling", b"/no/such/\x1b[2J\xff"),
        ("proc", b"/proc/self/root"),
    ];
    for (link, target) in targets {
        symlink(OsStr::from_bytes(target), root.join(link)).unwrap();
        settle_link(&root.join(link));
    }
    symlink(".", root.join("sub/dot")).unwrap();
    settle_link(&root.join("sub/dot"));
    let rules = work.path().join("planted.yar");
    fs::write(&rules, RULE).unwrap();
    let arguments = [root, Path::new("--rules"), &rules].map(Path::as_os_str);
    let scan = scan(work.path(), &arguments);
    assert_eq!((scan.status, scan.gaps.len()), (0, 0), "{:?}", scan.gaps);
    assert_eq!(scan.files.len(), 2 + targets.len() + 1, "{:?}", scan.paths());
    for (link, target) in targets {
        let file = scan.file(&format!("/{link}"));
        assert_eq!(file.kind, EntryKind::Symlink);
        assert_eq!(file.target.as_ref().unwrap().to_bytes(), target, "{link}");
        assert_eq!(file.size, target.len() as u64, "{link}");
        assert_eq!((file.sha256, file.scan), (None, ScanState::Skipped), "{link}");
    }
    assert!(scan.findings.is_empty(), "{:?}", scan.findings);
    assert_eq!(scan.report.summary.bytes, 0, "no content was read");
    assert_nothing_raw(&scan);
}

/// Notes every opening and reading of what lies in a folder.
struct Watch {
    inotify: OwnedFd,
}

impl Watch {
    fn new(folder: &Path) -> Self {
        let inotify = inotify::init(inotify::CreateFlags::NONBLOCK).unwrap();
        let flags = inotify::WatchFlags::OPEN | inotify::WatchFlags::ACCESS;
        inotify::add_watch(&inotify, folder, flags).unwrap();
        Self { inotify }
    }

    /// The names that were opened or read, each once, in order.
    fn opened(self) -> Vec<String> {
        let mut buffer = [MaybeUninit::uninit(); 4096];
        let mut reader = inotify::Reader::new(self.inotify, &mut buffer);
        let mut names = std::collections::BTreeSet::new();
        while let Ok(event) = reader.next() {
            names.extend(event.file_name().map(|name| name.to_str().unwrap().to_owned()));
        }
        names.into_iter().collect()
    }
}

#[test]
fn special_files_are_recorded_and_never_opened() {
    let (folder, work) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let root = folder.path();
    fs::write(root.join("file"), "content").unwrap();
    nix::unistd::mkfifo(&root.join("fifo"), nix::sys::stat::Mode::S_IRWXU).unwrap();
    let _listener = UnixListener::bind(root.join("socket")).unwrap();
    let mut wanted = vec![("/fifo", EntryKind::Fifo, None), ("/socket", EntryKind::Socket, None)];
    if is_root_for("device nodes") {
        for (name, kind, device) in [
            // The kernel's random numbers never end; nothing answers to the block device's number.
            ("char", FileType::CharacterDevice, (1, 9)),
            ("block", FileType::BlockDevice, (240, 77)),
        ] {
            let device = rustix::fs::makedev(device.0, device.1);
            let mode = Mode::from(0o644);
            rustix::fs::mknodat(rustix::fs::CWD, root.join(name), kind, mode, device).unwrap();
        }
        wanted.push(("/char", EntryKind::Char, Some("1:9")));
        wanted.push(("/block", EntryKind::Block, Some("240:77")));
    }
    let watch = Watch::new(root);
    let scan = scan(work.path(), &[root]);
    assert_eq!(watch.opened(), ["file"], "the watch works, and nothing else was opened");
    assert_eq!((scan.status, scan.gaps.len()), (0, 0), "{:?}", scan.gaps);
    for (path, kind, device) in wanted {
        let file = scan.file(path);
        assert_eq!((file.kind, file.device.as_deref()), (kind, device), "{path}");
        assert_eq!((file.sha256, file.scan), (None, ScanState::Skipped), "{path}");
    }
}

#[test]
fn a_mount_below_the_evidence_is_a_gap_and_is_not_entered() {
    if !is_root_for("mounts below the evidence") {
        return;
    }
    let (folder, work) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let root = folder.path().to_str().unwrap();
    for name in ["mnt", "plain"] {
        fs::create_dir(folder.path().join(name)).unwrap();
    }
    fs::write(folder.path().join("covered"), "under the cover").unwrap();
    fs::write(folder.path().join("plain/file"), "plain").unwrap();
    let script = r#"
        mount -t tmpfs none "$1/mnt"
        echo PLANTED > "$1/mnt/inside"
        mount --bind /etc/passwd "$1/covered"
        shift
        exec "$@""#;
    let prefix =
        ["unshare", "--mount", "--propagation", "private", "sh", "-euc", script, "sh", root];
    let scan = scan_through(work.path(), &prefix, &[root]);
    let gaps = scan.gaps_of(GapKind::MountPoint);
    let paths: Vec<_> = gaps.iter().map(|gap| gap.path.as_ref().unwrap().path.as_str()).collect();
    assert_eq!(paths, ["/covered", "/mnt"], "{:?}", scan.gaps);
    assert!(gaps.iter().all(|gap| gap.count == 1 && gap.advice.is_some()), "{gaps:?}");
    assert_eq!(scan.paths(), ["/", "/covered", "/mnt", "/plain", "/plain/file"]);
    assert_eq!(scan.file("/covered").sha256, None);
    assert!(scan.file("/plain/file").sha256.is_some());
    assert_eq!(scan.status, 3);
}

/// A folder with a file and a folder of mode 000, and one file that anyone may read.
fn locked_folder() -> tempfile::TempDir {
    use std::os::unix::fs::PermissionsExt as _;
    let folder = tempfile::tempdir().unwrap();
    let root = folder.path();
    fs::create_dir(root.join("locked")).unwrap();
    for (path, mode) in [("locked/inside", 0o644), ("none", 0o000), ("open", 0o644)] {
        fs::write(root.join(path), path).unwrap();
        fs::set_permissions(root.join(path), fs::Permissions::from_mode(mode)).unwrap();
    }
    fs::set_permissions(root.join("locked"), fs::Permissions::from_mode(0o000)).unwrap();
    fs::set_permissions(root, fs::Permissions::from_mode(0o755)).unwrap();
    folder
}

#[test]
fn root_reads_what_nobody_may() {
    if !is_root_for("reading files of mode 000") {
        return;
    }
    let (folder, work) = (locked_folder(), tempfile::tempdir().unwrap());
    let scan = scan(work.path(), &[folder.path()]);
    assert_eq!((scan.status, scan.gaps.len()), (0, 0), "{:?}", scan.gaps);
    assert_eq!(scan.paths(), ["/", "/locked", "/locked/inside", "/none", "/open"]);
    for path in ["locked/inside", "none", "open"] {
        let file = scan.file(&format!("/{path}"));
        assert_eq!(file.sha256.unwrap().to_string(), sha256sum(&folder.path().join(path)));
    }
    assert_eq!(scan.file("/none").mode, 0);
}

#[test]
fn what_a_user_may_not_read_is_a_gap_with_advice() {
    use std::os::unix::fs::PermissionsExt as _;
    let (folder, work) = (locked_folder(), tempfile::tempdir().unwrap());
    let scan = scan_as_nobody(work.path(), &[folder.path()]);
    // Without root the folder is our own, and its owner must be able to take it away.
    fs::set_permissions(folder.path().join("locked"), fs::Permissions::from_mode(0o755)).unwrap();
    let gaps = scan.gaps_of(GapKind::Unreadable);
    let paths: Vec<_> = gaps.iter().map(|gap| gap.path.as_ref().unwrap().path.as_str()).collect();
    assert_eq!(paths, ["/locked", "/none"], "{:?}", scan.gaps);
    for gap in gaps {
        assert!(gap.reason.contains("Permission denied"), "{gap:?}");
        assert_eq!(gap.advice.as_deref(), Some("scan as root"));
    }
    assert_eq!(scan.paths(), ["/", "/locked", "/none", "/open"]);
    let none = scan.file("/none");
    assert_eq!((none.scan, none.sha256, none.size), (ScanState::Error, None, 4));
    assert_eq!(
        scan.file("/open").sha256.unwrap().to_string(),
        sha256sum(&folder.path().join("open"))
    );
    assert_eq!(scan.status, 3);
}

#[test]
fn odd_names_on_an_image_are_as_exact() {
    if !is_root_for("odd names on an image") {
        return;
    }
    let (folder, work) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let names = plant_odd_names(folder.path());
    let image = Image::new(work.path(), "i.img", 8 * MIB).ext(Ext::Ext4, folder.path()).unwrap();
    let scan = scan(work.path(), &[&image]);
    let found: Vec<_> = scan.files.iter().map(|file| file.path.to_bytes()).collect();
    for name in names {
        assert!(found.contains(&[b"/", name.as_slice()].concat()), "{name:?}");
    }
    assert_eq!(scan.status, 0, "{:?}", scan.gaps);
    assert_nothing_raw(&scan);
}
