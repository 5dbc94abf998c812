//! A bundle's folder, by descriptor.
//!
//! Purpose: open the files of a bundle without being led astray. Touches one folder. Never follows a
//! symbolic link below it, never opens what is not a regular file, and never overwrites.

use std::{
    fs::File,
    io::{self, Read},
    os::fd::OwnedFd,
    path::Path,
};

use cleanroom_contract::Sha256;
use rustix::fs::{AtFlags, FileType, Mode, OFlags, fstat, fsync, open, openat, statat};
use sha2::Digest as _;

/// How much is read at a time.
const BUFFER_BYTES: usize = 128 * 1024;

/// An open folder.
#[derive(Debug)]
pub(crate) struct Folder(OwnedFd);

/// What a name in a folder is.
#[derive(Debug)]
pub(crate) enum Entry {
    /// A regular file, opened for reading.
    File(File),
    /// Something else, in words; it was not opened.
    Other(&'static str),
    /// Nothing.
    Missing,
}

impl Folder {
    /// Opens `path`, which the operator gave and which may therefore be a link.
    pub(crate) fn open(path: &Path) -> io::Result<Self> {
        Ok(Self(open(path, OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC, Mode::empty())?))
    }

    /// Looks at `name` and opens it where it is a regular file.
    pub(crate) fn entry(&self, name: &str) -> io::Result<Entry> {
        // Looked at first, since opening a device or a pipe can already do something; and again after,
        // since the name may be something else by then.
        match statat(&self.0, name, AtFlags::SYMLINK_NOFOLLOW) {
            Ok(stat) => match FileType::from_raw_mode(stat.st_mode) {
                FileType::RegularFile => {}
                other => return Ok(Entry::Other(words(other))),
            },
            Err(rustix::io::Errno::NOENT) => return Ok(Entry::Missing),
            Err(errno) => return Err(errno.into()),
        }
        let flags = OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::NONBLOCK | OFlags::CLOEXEC;
        let fd = openat(&self.0, name, flags | OFlags::NOCTTY, Mode::empty())?;
        match FileType::from_raw_mode(fstat(&fd)?.st_mode) {
            FileType::RegularFile => Ok(Entry::File(fd.into())),
            other => Ok(Entry::Other(words(other))),
        }
    }

    /// Opens `name`, which must be a regular file.
    pub(crate) fn file(&self, name: &str) -> io::Result<File> {
        match self.entry(name)? {
            Entry::File(file) => Ok(file),
            Entry::Other(what) => Err(io::Error::other(format!("{what}, not a file"))),
            Entry::Missing => Err(io::ErrorKind::NotFound.into()),
        }
    }

    /// Creates `name`, which must not exist; readable by all, as the umask allows.
    pub(crate) fn create(&self, name: &str) -> io::Result<File> {
        let flags = OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL | OFlags::CLOEXEC;
        Ok(openat(&self.0, name, flags, Mode::from_raw_mode(0o644))?.into())
    }

    /// Makes the folder's own entries durable.
    pub(crate) fn sync(&self) -> io::Result<()> {
        Ok(fsync(&self.0)?)
    }
}

/// A kind of file in words.
fn words(kind: FileType) -> &'static str {
    match kind {
        FileType::RegularFile => "a file",
        FileType::Directory => "a folder",
        FileType::Symlink => "a symbolic link",
        FileType::Fifo => "a pipe",
        FileType::Socket => "a socket",
        FileType::CharacterDevice | FileType::BlockDevice => "a device",
        FileType::Unknown => "something unknown",
    }
}

/// Whether `name` is one a bundle's file can have: 1 to 255 of `A-Z a-z 0-9 . - _`, starting with a
/// letter or digit. So it is no path, needs no escape, and hides from no listing.
pub(crate) fn is_plain(name: &str) -> bool {
    (1..=255).contains(&name.len())
        && name.starts_with(|c: char| c.is_ascii_alphanumeric())
        && name.bytes().all(|b| b.is_ascii_alphanumeric() || b"._-".contains(&b))
}

/// Reads `file` to its end; its length in bytes and its SHA-256.
pub(crate) fn digest(mut file: &File) -> io::Result<(u64, Sha256)> {
    let mut hasher = sha2::Sha256::new();
    let mut buffer = vec![0; BUFFER_BYTES];
    let mut size = 0_u64;
    loop {
        let read = match file.read(&mut buffer) {
            Ok(0) => return Ok((size, Sha256(hasher.finalize().into()))),
            Ok(read) => read,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
            Err(error) => return Err(error),
        };
        hasher.update(buffer.get(..read).unwrap_or_default());
        size = size.saturating_add(read as u64);
    }
}

/// The whole of `file`; `None` where it is longer than `limit` bytes.
pub(crate) fn read_bounded(file: &File, limit: u64) -> io::Result<Option<Vec<u8>>> {
    let mut bytes = Vec::new();
    file.take(limit.saturating_add(1)).read_to_end(&mut bytes)?;
    Ok((bytes.len() as u64 <= limit).then_some(bytes))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_that_could_lead_elsewhere_are_not_plain() {
        for good in ["report.json", "files.jsonl.zst", "SHA256SUMS", "a", "0_-"] {
            assert!(is_plain(good), "{good}");
        }
        let long = "x".repeat(256);
        for bad in [
            "",
            ".",
            "..",
            ".hidden",
            "-rf",
            "a/b",
            "/etc/passwd",
            "a\\b",
            "a b",
            "a\r",
            "é",
            &long,
        ] {
            assert!(!is_plain(bad), "{bad:?}");
        }
    }

    #[test]
    fn only_regular_files_are_opened_and_none_is_overwritten() {
        let temp = tempfile::tempdir().unwrap();
        std::fs::write(temp.path().join("file"), "abc").unwrap();
        std::os::unix::fs::symlink("file", temp.path().join("link")).unwrap();
        std::fs::create_dir(temp.path().join("folder")).unwrap();
        let fifo = temp.path().join("pipe");
        nix::unistd::mkfifo(&fifo, nix::sys::stat::Mode::S_IRWXU).unwrap();
        let folder = Folder::open(temp.path()).unwrap();
        assert!(matches!(folder.entry("file").unwrap(), Entry::File(_)));
        assert!(matches!(folder.entry("link").unwrap(), Entry::Other("a symbolic link")));
        assert!(matches!(folder.entry("folder").unwrap(), Entry::Other("a folder")));
        assert!(matches!(folder.entry("pipe").unwrap(), Entry::Other("a pipe")));
        assert!(matches!(folder.entry("none").unwrap(), Entry::Missing));
        for taken in ["file", "link", "folder", "pipe"] {
            assert_eq!(folder.create(taken).unwrap_err().kind(), io::ErrorKind::AlreadyExists);
        }
        assert_eq!(
            digest(&folder.file("file").unwrap()).unwrap().1.to_string(),
            "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"
        );
        let file = folder.file("file").unwrap();
        assert!(read_bounded(&file, 2).unwrap().is_none());
        let file = folder.file("file").unwrap();
        assert_eq!(read_bounded(&file, 3).unwrap().unwrap(), b"abc");
    }
}
