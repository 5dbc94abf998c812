//! Evidence as folders: the planted compromise that the demo finds, the data partition beside it,
//! and folders too deep for ordinary paths.
//!
//! Text comes from `fixtures/`; what git can not hold (programs, odd names, links, FIFOs, modes,
//! times) is made here. Everything is harmless: the programs only exit. Writes into the folder it
//! is given.

use std::{
    ffi::OsStr,
    fs,
    os::unix::{
        ffi::OsStrExt,
        fs::{PermissionsExt, chown, symlink},
    },
    path::{Path, PathBuf},
};

use anyhow::{Context, Result};
use nix::{
    fcntl::AT_FDCWD,
    sys::{
        stat::{Mode, UtimensatFlags, utimensat},
        time::TimeSpec,
    },
    unistd::mkfifo,
};
use walkdir::WalkDir;

use crate::{
    elf::Elf,
    images::IMAGE_TIME,
    tools::{fixtures, is_root},
};

/// Names that break a scanner which takes names for text, in [`ODD_FOLDER`] of the planted
/// compromise: a newline, an ANSI escape, bytes that are not UTF-8, a leading dash, white space.
/// A name of 255 bytes, the longest there is, lies beside them.
pub const ODD_NAMES: [&[u8]; 5] =
    [b"new\nline", b"\x1b[31mred\x1b[0m", b"latin-\xe9", b"-rf", b" two  words "];

/// Where the odd names are.
pub const ODD_FOLDER: &str = "/home/alice/odd";

/// The FIFO, which a scanner that opens it waits on for ever.
pub const FIFO: &str = "/var/tmp/pipe";

/// How deep the deep folder at `/home/alice/deep` is.
pub const DEPTH: u32 = 80;

/// Fills an empty folder with a small root file system that somebody has broken into.
///
/// What is planted: a second account with uid 0, a crontab that pipes a download into a shell,
/// `ld.so.preload`, an authorised key, a packed ELF file without sections in `/tmp/.x`, an ELF file
/// called `logo.jpg`, one with its own dynamic linker, a stand-in for a web shell, and a tool that
/// is known by its digest. Around it lie ordinary files and what scanners stumble over. As root
/// the owners are set too.
///
/// # Errors
/// Where the folder can not be written.
pub fn planted_compromise(dir: &Path) -> Result<()> {
    copy_fixture("planted-compromise", dir)?;
    for folder in ["tmp/.x", "usr/bin", "var/tmp", "dev", "proc", "home/alice/odd", "root"] {
        fs::create_dir_all(dir.join(folder)).with_context(|| format!("create {folder}"))?;
    }
    programs(dir)?;
    stumbling_blocks(dir)?;
    for (path, mode) in [
        ("tmp", 0o1777),
        ("var/tmp", 0o1777),
        ("root", 0o700),
        ("root/.ssh", 0o700),
        ("root/.ssh/authorized_keys", 0o600),
        ("etc/shadow", 0o640),
        ("opt/kit/install.sh", 0o755),
    ] {
        set_mode(&dir.join(path), mode)?;
    }
    if is_root() {
        for entry in WalkDir::new(dir.join("home/alice")) {
            let entry = entry?;
            // The links themselves, never what they name.
            nix::unistd::fchownat(
                AT_FDCWD,
                entry.path(),
                Some(1000.into()),
                Some(1000.into()),
                nix::fcntl::AtFlags::AT_SYMLINK_NOFOLLOW,
            )?;
        }
        chown(dir.join("var/www/html/upload.php"), Some(33), Some(33))?;
    }
    set_times(dir)
}

/// Fills an empty folder with the data partition's content: ordinary files and one program where
/// no program belongs. Holds nothing that an XFS prototype file can not say.
///
/// # Errors
/// Where the folder can not be written.
pub fn data(dir: &Path) -> Result<()> {
    copy_fixture("data-partition", dir)?;
    fs::create_dir(dir.join(".cache")).context("create .cache")?;
    program(&dir.join(".cache/kworker"), &packed())?;
    symlink("/etc/shadow", dir.join("backups/shadow")).context("link")?;
    set_times(dir)
}

/// The program that looks like a packed cryptocurrency miner, and only exits.
fn packed() -> Elf {
    Elf {
        section_less: true,
        writable_code: true,
        upx: true,
        noise: 16 << 10,
        overlay: b"overlay".to_vec(),
        ..Elf::default()
    }
}

fn programs(dir: &Path) -> Result<()> {
    let plain = Elf::default();
    program(&dir.join("usr/bin/true"), &plain)?;
    program(&dir.join("usr/bin/id"), &Elf { noise: 64, ..plain.clone() })?;
    let own_linker = Elf { interpreter: Some("/tmp/.x/ld.so".into()), ..plain.clone() };
    program(&dir.join("usr/bin/sshd-session"), &own_linker)?;
    program(&dir.join("tmp/.x/kworker"), &packed())?;
    program(&dir.join("var/www/html/logo.jpg"), &plain)
}

fn program(path: &Path, elf: &Elf) -> Result<()> {
    fs::write(path, elf.build()).with_context(|| format!("write {}", path.display()))?;
    set_mode(path, 0o755)
}

/// Odd names, links that lead out or in circles, a FIFO, a deep folder.
fn stumbling_blocks(dir: &Path) -> Result<()> {
    let odd = dir.join("home/alice/odd");
    let longest = vec![b'a'; 255];
    for name in ODD_NAMES.into_iter().chain([longest.as_slice()]) {
        fs::write(odd.join(OsStr::from_bytes(name)), name).context("write an odd name")?;
    }
    for (link, target) in [
        ("home/alice/shadow", "/etc/shadow"),
        ("home/alice/up", "../../../../../../../../etc"),
        ("home/alice/loop", "loop"),
    ] {
        symlink(target, dir.join(link)).with_context(|| format!("link {link}"))?;
    }
    mkfifo(&dir.join(FIFO.trim_start_matches('/')), Mode::S_IRUSR | Mode::S_IWUSR)
        .context("make a FIFO")?;
    let mut deep = dir.join("home/alice/deep");
    for level in 1..DEPTH {
        deep.push(format!("level-{level}"));
    }
    fs::create_dir_all(&deep).context("create the deep folder")?;
    fs::write(deep.join("bottom"), "bottom\n").context("write at the bottom")
}

/// Copies `fixtures/<name>` into the folder: directories 0755, files 0644.
fn copy_fixture(name: &str, dir: &Path) -> Result<()> {
    let source = fixtures().join(name);
    for entry in WalkDir::new(&source).min_depth(1).sort_by_file_name() {
        let entry = entry?;
        let target = dir.join(entry.path().strip_prefix(&source)?);
        let mode = if entry.file_type().is_dir() {
            fs::create_dir_all(&target).with_context(|| format!("create {}", target.display()))?;
            0o755
        } else {
            let content = fs::read(entry.path())?;
            fs::write(&target, content).with_context(|| format!("write {}", target.display()))?;
            0o644
        };
        set_mode(&target, mode)?;
    }
    Ok(())
}

fn set_mode(path: &Path, mode: u32) -> Result<()> {
    fs::set_permissions(path, fs::Permissions::from_mode(mode))
        .with_context(|| format!("chmod {}", path.display()))
}

/// Gives every entry an access and modification time of its own, to the nanosecond and the same
/// every time, contents before their folders.
///
/// # Errors
/// Where an entry's times can not be set.
pub fn set_times(dir: &Path) -> Result<()> {
    let walk = WalkDir::new(dir).contents_first(true).sort_by_file_name();
    for (count, entry) in (1_i64..).zip(walk) {
        let entry = entry?;
        let modified = TimeSpec::new(IMAGE_TIME - count * 60, 123_456_789);
        let accessed = TimeSpec::new(IMAGE_TIME - count * 60 + 7, 987_654_321);
        let flags = UtimensatFlags::NoFollowSymlink;
        utimensat(AT_FDCWD, entry.path(), &accessed, &modified, flags)
            .with_context(|| format!("set times of {}", entry.path().display()))?;
    }
    Ok(())
}

/// A chain of folders called `d`, as deep as wanted, taken away again when dropped. Ordinary means
/// fail on it: its path is longer than the 4,096 bytes that the kernel takes at once.
#[derive(Debug)]
pub struct DeepFolder {
    top: PathBuf,
}

impl DeepFolder {
    /// Makes `depth` folders in each other below `parent`, and a file `bottom` in the last.
    ///
    /// # Errors
    /// Where the parent can not be written or has a `d` already.
    pub fn new(parent: &Path, depth: u32) -> Result<Self> {
        let this = Self { top: parent.join("d") };
        let spare = parent.join("d.spare");
        fs::create_dir(&this.top).with_context(|| format!("create {}", this.top.display()))?;
        fs::write(this.top.join("bottom"), "bottom\n")?;
        // From the inside out: every path stays short.
        for _ in 1..depth {
            fs::create_dir(&spare)?;
            fs::rename(&this.top, spare.join("d"))?;
            fs::rename(&spare, &this.top)?;
        }
        Ok(this)
    }
}

impl Drop for DeepFolder {
    fn drop(&mut self) {
        let spare = self.top.with_extension("spare");
        // From the outside in, for the same reason; the last folder has no `d` in it.
        while fs::rename(self.top.join("d"), &spare).is_ok() {
            if fs::remove_dir_all(&self.top).is_err() || fs::rename(&spare, &self.top).is_err() {
                return;
            }
        }
        // Nothing can be done here about a folder that stays; the temporary folder around it goes.
        let _ = fs::remove_dir_all(&self.top);
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::{FileTypeExt, MetadataExt};

    use sha2::{Digest, Sha256};

    use super::*;

    fn planted() -> tempfile::TempDir {
        let dir = tempfile::tempdir().expect("temporary folder");
        planted_compromise(dir.path()).expect("plant");
        dir
    }

    #[test]
    fn what_is_planted_is_there() {
        let dir = planted();
        let root = dir.path();
        let text = |path: &str| fs::read_to_string(root.join(path)).expect(path);
        assert!(text("etc/crontab").contains("| sh"));
        assert!(text("var/www/html/upload.php").contains("CLEANROOM-TEST-WEBSHELL"));
        assert!(text("root/.ssh/authorized_keys").starts_with("ssh-ed25519 "));
        assert!(
            fs::read(root.join("var/www/html/logo.jpg")).expect("read").starts_with(b"\x7fELF")
        );
        let packed = fs::read(root.join("tmp/.x/kworker")).expect("read");
        assert!(packed.windows(4).any(|w| w == b"UPX!"));
        for name in ODD_NAMES {
            let path = root.join("home/alice/odd").join(OsStr::from_bytes(name));
            assert_eq!(fs::read(path).expect("odd name"), name);
        }
        let fifo = fs::symlink_metadata(root.join(&FIFO[1..])).expect("FIFO");
        assert!(fifo.file_type().is_fifo());
        let shadow = fs::read_link(root.join("home/alice/shadow")).expect("link");
        assert_eq!(shadow, Path::new("/etc/shadow"));
    }

    #[test]
    fn times_are_the_same_every_time() {
        let (one, two) = (planted(), planted());
        for path in ["etc/passwd", "home/alice/loop", ""] {
            let of = |dir: &tempfile::TempDir| {
                let meta = fs::symlink_metadata(dir.path().join(path)).expect("metadata");
                (meta.mtime(), meta.mtime_nsec())
            };
            assert_eq!(of(&one), of(&two), "{path}");
            assert_eq!(of(&one).1, 123_456_789);
        }
    }

    #[test]
    fn the_hash_list_names_a_planted_file() {
        let dir = planted();
        let tool = fs::read(dir.path().join("opt/kit/install.sh")).expect("read");
        let digest: String = Sha256::digest(&tool).iter().map(|b| format!("{b:02x}")).collect();
        let list = fs::read_to_string(fixtures().join("indicators/hashes.txt")).expect("list");
        assert!(list.lines().any(|line| line == digest), "{digest} is not in the list");
    }

    #[test]
    fn the_data_partition_fits_a_prototype_file() {
        let dir = tempfile::tempdir().expect("temporary folder");
        data(dir.path()).expect("fill");
        let text = crate::images::xfs_prototype(dir.path(), Path::new("/s")).expect("prototype");
        assert!(String::from_utf8_lossy(&text).contains("customers.csv"));
    }

    #[test]
    fn deep_folders_come_and_go() {
        let dir = tempfile::tempdir().expect("temporary folder");
        let deep = DeepFolder::new(dir.path(), 3_000).expect("make");
        let mut path = dir.path().to_owned();
        path.extend(["d"; 50]);
        assert!(path.join("d").is_dir());
        drop(deep);
        assert_eq!(fs::read_dir(dir.path()).expect("list").count(), 0);
    }
}
