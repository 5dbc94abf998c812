//! An entry of a view as a record.
//!
//! Purpose: inode facts, extended attributes and owners in the contract's words. Touches descriptors
//! that are already open, and the view's own passwd. Never reads a file's content but that one.

use std::{
    collections::{BTreeMap, HashMap},
    fs::File,
    os::fd::{BorrowedFd, OwnedFd},
};

use base64::{Engine as _, prelude::BASE64_STANDARD};
use cleanroom_contract::{
    EntryKind, EntryState, EvidencePath, FileRecord, ScanState, Timestamp, VersionOne,
};
use rustix::fs::{FileType, Statx, StatxAttributes, StatxFlags, StatxTimestamp};

use crate::{
    protocol::read_bounded,
    walk::tree::{Entry, Opened},
};

/// Bytes of names and values kept of an entry's extended attributes.
const MAX_XATTRS: usize = 16 << 10;
/// The largest passwd that is read.
const MAX_PASSWD: u64 = 4 << 20;

/// The record of an entry before its content is known.
pub(crate) fn record(entry: &Entry, seq: u64, volume: &str) -> FileRecord {
    let stat = &entry.stat;
    let kind = kind(stat);
    let (xattrs, truncated) = match &entry.opened {
        Opened::Open(fd) => xattrs(fd),
        _ => (BTreeMap::new(), false),
    };
    let is_device = matches!(kind, EntryKind::Char | EntryKind::Block);
    FileRecord {
        v: VersionOne,
        seq,
        volume: volume.to_owned(),
        path: EvidencePath::new(&entry.path),
        kind,
        size: stat.stx_size,
        allocated: stat.stx_blocks.saturating_mul(512),
        mode: u32::from(stat.stx_mode) & 0o7777,
        uid: stat.stx_uid,
        gid: stat.stx_gid,
        inode: stat.stx_ino,
        links: stat.stx_nlink,
        atime: time(stat.stx_atime),
        mtime: time(stat.stx_mtime),
        ctime: time(stat.stx_ctime),
        btime: (stat.stx_mask & StatxFlags::BTIME.bits() != 0).then(|| time(stat.stx_btime)),
        target: entry.target.as_deref().map(EvidencePath::new),
        device: is_device.then(|| format!("{}:{}", stat.stx_rdev_major, stat.stx_rdev_minor)),
        xattrs,
        attributes: attributes(stat.stx_attributes),
        state: EntryState::Allocated,
        member: Vec::new(),
        stream: None,
        sha256: None,
        md5: None,
        sha1: None,
        extents: None,
        entropy: None,
        format: None,
        scan: ScanState::Skipped,
        matches: Vec::new(),
        binary: None,
        indicators: Vec::new(),
        truncated,
    }
}

fn kind(stat: &Statx) -> EntryKind {
    match FileType::from_raw_mode(stat.stx_mode.into()) {
        FileType::Directory => EntryKind::Dir,
        FileType::Symlink => EntryKind::Symlink,
        FileType::Fifo => EntryKind::Fifo,
        FileType::Socket => EntryKind::Socket,
        FileType::CharacterDevice => EntryKind::Char,
        FileType::BlockDevice => EntryKind::Block,
        // An inode with a kind of its own invention is never opened; it reads as a file of no content.
        _ => EntryKind::File,
    }
}

fn time(time: StatxTimestamp) -> Timestamp {
    Timestamp { seconds: time.tv_sec, nanos: time.tv_nsec.min(999_999_999) }
}

fn attributes(attributes: StatxAttributes) -> Vec<String> {
    [
        (StatxAttributes::APPEND, "append"),
        (StatxAttributes::COMPRESSED, "compressed"),
        (StatxAttributes::DAX, "dax"),
        (StatxAttributes::ENCRYPTED, "encrypted"),
        (StatxAttributes::IMMUTABLE, "immutable"),
        (StatxAttributes::NODUMP, "nodump"),
        (StatxAttributes::VERITY, "verity"),
    ]
    .into_iter()
    .filter(|(flag, _)| attributes.contains(*flag))
    .map(|(_, name)| name.to_owned())
    .collect()
}

/// Extended attributes within their room, and whether some were left out.
fn xattrs(fd: &OwnedFd) -> (BTreeMap<String, String>, bool) {
    let mut found = BTreeMap::new();
    // Nearly every file has none: the first question is asked without room for an answer.
    let length = match rustix::fs::flistxattr_query(fd) {
        Ok(0) | Err(rustix::io::Errno::NOTSUP) => return (found, false),
        Ok(length) => length,
        Err(_) => return (found, true),
    };
    // The kernel's own bound on a list and on a value is 64 KiB (xattr(7)).
    let mut names = vec![0; length.min(64 << 10)];
    let Ok(length) = rustix::fs::flistxattr(fd, &mut names[..]) else { return (found, true) };
    let mut room = MAX_XATTRS;
    let mut truncated = false;
    let mut value = vec![0; MAX_XATTRS];
    for name in names[..length].split(|b| *b == 0).filter(|name| !name.is_empty()) {
        let got = rustix::fs::fgetxattr(fd, name, &mut value[..]);
        match got.ok().and_then(|n| room.checked_sub(name.len() + n).map(|rest| (n, rest))) {
            Some((n, rest)) => {
                room = rest;
                let name = String::from_utf8_lossy(name).into_owned();
                found.insert(name, BASE64_STANDARD.encode(&value[..n]));
            }
            None => truncated = true,
        }
    }
    (found, truncated)
}

/// The owners' names as the volume itself has them.
#[derive(Debug, Default)]
pub(crate) struct Owners {
    names: HashMap<u32, String>,
}

impl Owners {
    /// Reads `/etc/passwd` below `root`; a view without one has no names.
    pub(crate) fn read(root: BorrowedFd<'_>, protect_access_times: bool) -> Self {
        use rustix::fs::{Mode, OFlags, ResolveFlags, openat2};
        let flags = OFlags::RDONLY | OFlags::CLOEXEC | OFlags::NOFOLLOW | OFlags::NONBLOCK;
        let resolve = ResolveFlags::BENEATH | ResolveFlags::NO_SYMLINKS | ResolveFlags::NO_XDEV;
        let open = |extra| openat2(root, c"etc/passwd", flags | extra, Mode::empty(), resolve);
        // Where the access time cannot be kept, the name is not worth moving it.
        let extra = if protect_access_times { OFlags::NOATIME } else { OFlags::empty() };
        let Ok(fd) = open(extra) else { return Self::default() };
        let mut file = File::from(fd);
        if !file.metadata().is_ok_and(|metadata| metadata.is_file()) {
            return Self::default();
        }
        read_bounded(&mut file, MAX_PASSWD).map_or_else(|_| Self::default(), |b| Self::parse(&b))
    }

    /// `name:password:uid:…` lines (passwd(5)); the first name of a number counts, others are skipped.
    fn parse(passwd: &[u8]) -> Self {
        let mut names = HashMap::new();
        for line in passwd.split(|b| *b == b'\n') {
            let mut fields = line.split(|b| *b == b':');
            let (Some(name), Some(uid)) = (fields.next(), fields.nth(1)) else { continue };
            let (Ok(name), Ok(uid)) = (std::str::from_utf8(name), std::str::from_utf8(uid)) else {
                continue;
            };
            if let Ok(uid) = uid.parse()
                && (1..=256).contains(&name.len())
            {
                names.entry(uid).or_insert_with(|| name.to_owned());
            }
        }
        Self { names }
    }

    /// The name of a user, else the number in decimal.
    pub(crate) fn name(&self, uid: u32) -> String {
        self.names.get(&uid).cloned().unwrap_or_else(|| uid.to_string())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn owners_come_from_well_formed_lines_only() {
        let owners = Owners::parse(
            b"root:x:0:0:r:/root:/bin/sh\ntoor:x:0:0\n:x:1:1\nbad\nw\xff:x:3:3\nwww:x:33:33::/:\n",
        );
        assert_eq!(owners.name(0), "root");
        assert_eq!(owners.name(33), "www");
        for unknown in [1, 3, 65_534] {
            assert_eq!(owners.name(unknown), unknown.to_string());
        }
    }
}
