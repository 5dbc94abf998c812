//! The cache of compiled packs: a private folder, authenticated.
//!
//! A pack holds native code, so what is read here must be what this user's own agent wrote: the folder
//! belongs to the user and is closed to everyone else, and each file begins with an HMAC-SHA256 (RFC
//! 2104) over its name and content, made with a random key that lies beside it.
//!
//! Purpose: find and keep packs by key. Touches: its folder only, all files by descriptor of that folder.
//! Never fails a scan: what is wrong with the folder comes back as a reason to go without it.

use std::{
    ffi::OsString,
    fs::File,
    io::{self, Read, Write},
    os::{fd::OwnedFd, unix::fs::MetadataExt as _},
    path::{Path, PathBuf},
};

use cleanroom_contract::Sha256;
use hmac::{Hmac, KeyInit as _, Mac as _};
use rustix::fs::{AtFlags, Mode, OFlags};
use sha2::Digest as _;

use super::{VARIABLES, pack, source::SourceSet};

/// Most packs kept.
const KEEP: usize = 8;

/// Name of the key file: 32 random bytes.
const KEY_FILE: &str = "pack.key";

/// How names of packs end.
const PACK_SUFFIX: &str = ".pack";

/// How names of files being written begin.
const UNFINISHED: &str = "unfinished-";

/// Bytes of the code before the pack.
const MAC_BYTES: usize = 32;

/// Where the cache is by default: `$XDG_CACHE_HOME/cleanroom-agent` (XDG Base Directory Specification: a
/// relative value is ignored), else `$HOME/.cache/cleanroom-agent`.
pub(crate) fn default_dir(xdg: Option<OsString>, home: Option<OsString>) -> Option<PathBuf> {
    let absolute =
        |value: Option<OsString>| value.map(PathBuf::from).filter(|path| path.is_absolute());
    let base = absolute(xdg).or_else(|| absolute(home).map(|home| home.join(".cache")));
    base.map(|base| base.join("cleanroom-agent"))
}

/// The processor, as far as native code depends on it: architecture, vendor and model, and a digest of
/// its feature list (`/proc/cpuinfo`, proc(5)).
pub(crate) fn cpu_identity() -> String {
    let mut text = String::new();
    // The first processor is enough, and machines can have hundreds.
    let read = File::open("/proc/cpuinfo").and_then(|f| f.take(1 << 14).read_to_string(&mut text));
    if read.is_err() {
        text.clear();
    }
    describe_cpu(std::env::consts::ARCH, &text)
}

/// The identity from the text of `/proc/cpuinfo`.
fn describe_cpu(arch: &str, cpuinfo: &str) -> String {
    let value = |names: &[&str]| {
        let mut lines = cpuinfo.lines().filter_map(|line| line.split_once(':'));
        lines.find(|(name, _)| names.contains(&name.trim())).map_or("", |(_, value)| value.trim())
    };
    let features = sha2::Sha256::digest(value(&["flags", "Features"]));
    format!(
        "{arch} {} {} {} {}",
        value(&["vendor_id", "CPU implementer"]),
        value(&["cpu family", "CPU architecture"]),
        value(&["model", "CPU part"]),
        pack::hex(&features[..8])
    )
}

/// The key of a set of sources: everything that decides the compiled bytes and what the header says.
pub(crate) fn key(set: &SourceSet) -> Sha256 {
    let mut hash = sha2::Sha256::new();
    let mut add = |bytes: &[u8]| {
        hash.update((bytes.len() as u64).to_le_bytes());
        hash.update(bytes);
    };
    add(&pack::FORMAT.to_le_bytes());
    add(yara_x::VERSION.as_bytes());
    add(env!("CARGO_PKG_VERSION").as_bytes());
    add(cpu_identity().as_bytes());
    add(VARIABLES.join(",").as_bytes());
    for source in &set.sources {
        add(source.namespace.as_bytes());
        for text in source.text.all() {
            add(text.path.as_bytes());
            add(text.sha256.as_bytes());
        }
    }
    for diagnostic in &set.diagnostics {
        add(diagnostic.path.as_bytes());
        add(diagnostic.message.as_bytes());
    }
    Sha256(hash.finalize().into())
}

/// An open cache.
#[derive(Debug)]
pub(crate) struct Cache {
    dir: OwnedFd,
    key: [u8; 32],
}

impl Cache {
    /// Opens the folder, making it and its key where they are missing.
    ///
    /// # Errors
    /// A reason, for people: the folder is a symbolic link, somebody else's, open to others, or cannot
    /// be made.
    pub(crate) fn open(path: &Path) -> Result<Self, String> {
        let explain = |what: &str, error: &dyn std::fmt::Display| {
            format!("rule cache {}: {what}: {error}", path.display())
        };
        if let Some(parent) = path.parent() {
            std::fs::create_dir_all(parent).map_err(|error| explain("make its parent", &error))?;
        }
        match rustix::fs::mkdir(path, Mode::RWXU) {
            Ok(()) | Err(rustix::io::Errno::EXIST) => {}
            Err(error) => return Err(explain("make it", &error)),
        }
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let dir = rustix::fs::open(path, flags, Mode::empty())
            .map_err(|error| explain("open it as a folder of its own", &error))?;
        let stat = rustix::fs::fstat(&dir).map_err(|error| explain("look at it", &error))?;
        if stat.st_uid != rustix::process::geteuid().as_raw() {
            return Err(explain("not used", &"it belongs to another user"));
        }
        if stat.st_mode & 0o077 != 0 {
            return Err(explain("not used", &"others may enter it; chmod 700 it"));
        }
        let key = key_of(&dir).map_err(|error| explain("its key file", &error))?;
        Ok(Self { dir, key })
    }

    /// The pack kept under a key. Anything but an authentic file is a miss.
    pub(crate) fn get(&self, key: &Sha256) -> Option<Vec<u8>> {
        let file = File::from(open_at(&self.dir, &name_of(key), OFlags::RDONLY).ok()?);
        let metadata = file.metadata().ok()?;
        if !metadata.is_file() || metadata.len() > pack::MAX_PACK {
            return None;
        }
        let mut bytes = Vec::with_capacity(usize::try_from(metadata.len()).ok()?);
        (&file).take(pack::MAX_PACK).read_to_end(&mut bytes).ok()?;
        let (code, pack) = bytes.split_at_checked(MAC_BYTES)?;
        self.mac(key, pack).verify_slice(code).ok()?;
        let now = rustix::fs::Timespec { tv_sec: 0, tv_nsec: rustix::fs::UTIME_NOW };
        // The time of last use decides what is kept; without it the time of writing does.
        let times = rustix::fs::Timestamps { last_access: now, last_modification: now };
        let _ = rustix::fs::futimens(&file, &times);
        bytes.drain(..MAC_BYTES);
        Some(bytes)
    }

    /// Keeps a pack, in place of what was there, and drops the oldest beyond the limit.
    ///
    /// # Errors
    /// The system's answer; the cache is as it was, but for an unfinished file.
    pub(crate) fn put(&self, key: &Sha256, pack: &[u8]) -> io::Result<()> {
        let temporary = format!("{UNFINISHED}{}-{key}", std::process::id());
        let flags = OFlags::WRONLY | OFlags::CREATE | OFlags::TRUNC;
        let mut file = File::from(open_at(&self.dir, &temporary, flags)?);
        file.write_all(&self.mac(key, pack).finalize().into_bytes())?;
        file.write_all(pack)?;
        rustix::fs::renameat(&self.dir, &temporary, &self.dir, name_of(key))?;
        self.prune()
    }

    /// Drops all but the newest packs, and unfinished files likewise.
    fn prune(&self) -> io::Result<()> {
        for is_kind in [is_pack, is_unfinished] {
            let mut files = Vec::new();
            for entry in rustix::fs::Dir::read_from(&self.dir)? {
                let entry = entry?;
                let name = entry.file_name().to_bytes();
                if is_kind(name) {
                    let stat = rustix::fs::statat(
                        &self.dir,
                        entry.file_name(),
                        AtFlags::SYMLINK_NOFOLLOW,
                    )?;
                    files.push(((stat.st_mtime, stat.st_mtime_nsec), entry.file_name().to_owned()));
                }
            }
            files.sort();
            let surplus = files.len().saturating_sub(KEEP);
            for (_, name) in files.into_iter().take(surplus) {
                rustix::fs::unlinkat(&self.dir, name, AtFlags::empty())?;
            }
        }
        Ok(())
    }

    /// The authentication code of a pack under its name.
    fn mac(&self, key: &Sha256, pack: &[u8]) -> Hmac<sha2::Sha256> {
        let mut mac = keyed(&self.key);
        mac.update(key.as_bytes());
        mac.update(pack);
        mac
    }
}

/// A keyed HMAC.
fn keyed(key: &[u8; 32]) -> Hmac<sha2::Sha256> {
    let mut block = hmac::digest::Key::<Hmac<sha2::Sha256>>::default();
    // A key shorter than the hash's block is padded with zeros (RFC 2104, section 2).
    for (to, from) in block.iter_mut().zip(key) {
        *to = *from;
    }
    Hmac::new(&block)
}

/// Whether a name is a pack's.
fn is_pack(name: &[u8]) -> bool {
    name.ends_with(PACK_SUFFIX.as_bytes())
}

/// Whether a name is an unfinished file's.
fn is_unfinished(name: &[u8]) -> bool {
    name.starts_with(UNFINISHED.as_bytes())
}

/// The file name of a key.
fn name_of(key: &Sha256) -> String {
    format!("{key}{PACK_SUFFIX}")
}

/// Opens a file of the folder, itself and no link's target; new ones are for the user alone.
fn open_at(dir: &OwnedFd, name: &str, flags: OFlags) -> io::Result<OwnedFd> {
    let flags = flags | OFlags::NOFOLLOW | OFlags::CLOEXEC | OFlags::NONBLOCK;
    Ok(rustix::fs::openat(dir, name, flags, Mode::RUSR | Mode::WUSR)?)
}

/// The folder's key, made where there is none.
fn key_of(dir: &OwnedFd) -> io::Result<[u8; 32]> {
    let file = match open_at(dir, KEY_FILE, OFlags::RDONLY) {
        Ok(file) => file,
        Err(error) if error.kind() == io::ErrorKind::NotFound => {
            make_key(dir)?;
            open_at(dir, KEY_FILE, OFlags::RDONLY)?
        }
        Err(error) => return Err(error),
    };
    let mut file = File::from(file);
    let metadata = file.metadata()?;
    let private =
        metadata.uid() == rustix::process::geteuid().as_raw() && metadata.mode() & 0o077 == 0;
    if !metadata.is_file() || metadata.len() != 32 || !private {
        return Err(io::Error::other("not 32 bytes in a private file; remove it"));
    }
    let mut key = [0; 32];
    file.read_exact(&mut key)?;
    Ok(key)
}

/// Makes the key: written whole under another name and linked into place, which fails where another
/// process was first, so that nobody ever reads half a key.
fn make_key(dir: &OwnedFd) -> io::Result<()> {
    let mut key = [0; 32];
    File::open("/dev/urandom")?.read_exact(&mut key)?;
    let temporary = format!("{UNFINISHED}key-{}", pack::hex(&key[..8]));
    let flags = OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL;
    // The first bytes name the file, so the key proper is drawn anew.
    File::open("/dev/urandom")?.read_exact(&mut key)?;
    File::from(open_at(dir, &temporary, flags)?).write_all(&key)?;
    let linked = rustix::fs::linkat(dir, &temporary, dir, KEY_FILE, AtFlags::empty());
    rustix::fs::unlinkat(dir, &temporary, AtFlags::empty())?;
    match linked {
        Ok(()) | Err(rustix::io::Errno::EXIST) => Ok(()),
        Err(error) => Err(error.into()),
    }
}

#[cfg(test)]
#[path = "cache_tests.rs"]
mod tests;
