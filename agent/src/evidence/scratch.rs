//! Scratch: where a copy-on-write view keeps what its file system writes.
//!
//! Purpose: bounded room in files that have no name, so that nothing is left behind however the agent
//! ends. Touches the folder it is given. Never grows past its bound, and leaves the folder's disk some
//! space.

use std::{
    fs::File,
    io,
    os::fd::AsFd as _,
    path::{Path, PathBuf},
};

/// The least that a volume gets by default: an ext4 journal is 64 MiB from 16 GiB on, and a replay writes
/// at most what the journal holds, and little more.
const LEAST: u64 = 64 << 20;
/// What is left free on the folder's disk, unless that is more than half of what is free.
const RESERVE: u64 = 256 << 20;
/// Bounds are multiples of this, which is a number of whole sectors and blocks.
const GRAIN: u64 = 8 << 10;

/// Where copy-on-write views may write, and how much.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Scratch {
    /// The folder; its disk is never the evidence.
    pub folder: PathBuf,
    /// Bytes that one volume may take; by default a tenth of it.
    pub size: Option<u64>,
}

impl Scratch {
    /// A file without a name for a volume of `length` bytes, and the bytes that may be written to it. The
    /// file is that long and holds nothing.
    pub(super) fn take(&self, length: u64) -> io::Result<(File, u64)> {
        let file = tempfile::tempfile_in(&self.folder)?;
        let stat = rustix::fs::fstatvfs(file.as_fd())?;
        // Some file systems, ramfs for one, do not say how large they are.
        let free = (stat.f_blocks > 0).then(|| stat.f_bavail.saturating_mul(stat.f_frsize));
        let bound = bound(self.size, length, free);
        if bound == 0 {
            let free = free.unwrap_or_default();
            return Err(io::Error::other(format!("{free} bytes are free there, too few to begin")));
        }
        file.set_len(bound)?;
        Ok((file, bound))
    }

    /// The folder, for people.
    pub(super) fn folder(&self) -> &Path {
        &self.folder
    }
}

/// How much may be written for a volume of `length` bytes where `free` are free.
fn bound(wanted: Option<u64>, length: u64, free: Option<u64>) -> u64 {
    let wanted = wanted.unwrap_or_else(|| (length / 10).max(LEAST));
    let there = free.map_or(u64::MAX, |free| free - RESERVE.min(free / 2));
    wanted.min(there) / GRAIN * GRAIN
}

#[cfg(test)]
mod tests {
    use super::*;

    const MIB: u64 = 1 << 20;

    #[test]
    fn a_tenth_of_the_volume_and_never_all_that_is_free() {
        for (wanted, length, free, expected) in [
            (None, 0, None, 64 * MIB),
            (None, 8 * MIB, Some(1024 * MIB), 64 * MIB),
            (None, 10_240 * MIB, Some(10_240 * MIB), 1024 * MIB),
            (None, 10_240 * MIB, Some(1024 * MIB), 768 * MIB),
            (None, 10_240 * MIB, Some(100 * MIB), 50 * MIB),
            (Some(MIB + 1), 10_240 * MIB, Some(1024 * MIB), MIB),
            (Some(1024 * MIB), 8 * MIB, Some(1024 * MIB), 768 * MIB),
            (None, u64::MAX, None, u64::MAX / 10 / GRAIN * GRAIN),
            (None, 8 * MIB, Some(0), 0),
            (Some(1), 8 * MIB, None, 0),
        ] {
            assert_eq!(bound(wanted, length, free), expected, "{wanted:?} {length} {free:?}");
        }
    }

    #[test]
    fn what_is_taken_has_no_name_and_no_content() {
        let folder = tempfile::tempdir().unwrap();
        let scratch = Scratch { folder: folder.path().to_owned(), size: Some(MIB) };
        let (file, bound) = scratch.take(0).unwrap();
        assert_eq!((file.metadata().unwrap().len(), bound), (MIB, MIB));
        assert_eq!(std::fs::read_dir(folder.path()).unwrap().count(), 0);
        let missing = Scratch { folder: folder.path().join("missing"), size: None };
        assert!(missing.take(0).is_err());
    }
}
