//! What the agent's processes say to each other.
//!
//! Purpose: the messages; [`Channel`] carries them. Touches nothing but the markers. Never holds a
//! decision of one of the sides.
//!
//! A frame is its length (four bytes, little endian) and a MessagePack value with named fields, so
//! that the contract's types travel as they are.

mod channel;

use std::{
    io::{self, Read as _},
    os::fd::BorrowedFd,
};

use cleanroom_contract::{
    Binary, Extent, ExtentDigest, GapKind, RuleFile, RuleMatch, ScanState, Sha256, Timestamp,
};
use serde::{Deserialize, Serialize};

pub(crate) use channel::{Channel, Filled};

/// The longest frame: a batch of answers in which every executable has all the names it may have.
const MAX_FRAME: usize = 8 << 20;
/// Descriptors in one message, below the kernel's `SCM_MAX_FD` of 253 (unix(7)).
pub(crate) const MAX_DESCRIPTORS: usize = 128;

/// What can go wrong between two of our processes.
#[derive(Debug, thiserror::Error)]
pub(crate) enum ProtocolError {
    #[error("exchange messages with the {peer}")]
    Socket { peer: &'static str, source: io::Error },
    #[error("frame of {length} bytes from the {peer}, at most {MAX_FRAME} are allowed")]
    TooLong { peer: &'static str, length: usize },
    #[error("message from the {peer} does not decode")]
    Decode { peer: &'static str, source: rmp_serde::decode::Error },
    #[error("encode a message for the {peer}")]
    Encode { peer: &'static str, source: rmp_serde::encode::Error },
    #[error("message from the {peer} lacks its descriptor")]
    NoDescriptor { peer: &'static str },
    #[error("descriptors from the {peer} were lost, or there are more than it may send")]
    Descriptors { peer: &'static str },
    #[error("the {peer} ended")]
    Ended { peer: &'static str },
}

/// Limits that all roles share. Times in milliseconds, sizes in bytes.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) struct Limits {
    /// Files up to this size are read into memory and scanned whole.
    pub in_memory: u64,
    /// Files above this size are not read at all.
    pub max_file_size: Option<u64>,
    /// The time a file of no size gets.
    pub file_timeout_ms: u64,
    /// Holes above this total are not hashed.
    pub max_hole_bytes: u64,
    /// Directories deeper than this are not entered.
    pub depth: u32,
}

impl Limits {
    /// The time that a file may take: the base and 2 s per 100 MiB of what is read or hashed of it.
    /// Holes count only as far as they are hashed: the size alone is what the evidence claims.
    pub(crate) fn time_for(&self, size: u64, allocated: u64) -> std::time::Duration {
        let real = size.min(allocated.saturating_add(self.max_hole_bytes));
        let by_size = (real >> 20).saturating_mul(20);
        std::time::Duration::from_millis(self.file_timeout_ms.saturating_add(by_size))
    }
}

/// What an inspector works out for each file.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) struct Measures {
    pub md5: bool,
    pub sha1: bool,
    pub entropy: bool,
}

/// Supervisor → zygote, the process that has loaded the rules and forks inspectors.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) enum ToZygote {
    /// First, once; with the compiled pack's descriptor where there are rules.
    Configure { limits: Limits, measures: Measures, rules: bool },
    /// Fork an inspector; with its job socket and its marker file.
    Fork { slot: u32 },
    /// Kill an inspector.
    Kill { slot: u32 },
}

/// Zygote → supervisor.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) enum FromZygote {
    /// The rules are loaded.
    Ready,
    /// The rules cannot be loaded.
    Unable { reason: String },
    /// An inspector has begun.
    Forked { slot: u32, pid: i32 },
    /// An inspector has ended: `how` says by what.
    Exited { slot: u32, pid: i32, how: String },
}

/// Supervisor → walker.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) enum ToWalker {
    /// First, once. `reuse_links`: no rule asks for a file's name.
    Configure { limits: Limits, excludes: Vec<String>, slots: u32, reuse_links: bool },
    /// An indicator list; with its descriptor. Any number, before the first volume.
    Indicators { name: String },
    /// No more lists.
    IndicatorsEnd,
    /// An inspector for a slot; with its job socket and its marker file. `ended` says how the one
    /// before it in this slot ended; `generation` counts those of the slot.
    Inspector { slot: u32, generation: u32, ended: Option<String> },
    /// Walk a volume; with its root directory and, where `backing` is given, the image it lies in.
    Walk(WalkOrder),
    /// End the walk: what is in flight may finish, nothing new is begun.
    Stop,
}

/// A volume to walk.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) struct WalkOrder {
    /// Its name in the records.
    pub volume: String,
    /// Its place among the volumes, from 0.
    pub ordinal: u32,
    /// The bytes that the image had when it was opened.
    pub backing: Option<u64>,
    /// True where reading moves access times unless a descriptor says otherwise.
    pub protect_access_times: bool,
}

/// Walker → supervisor.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) enum FromWalker {
    /// The sound lists are loaded, and `faults` says what is wrong with the others; or the error of all together.
    Indicators { loaded: Result<Vec<RuleFile>, String>, faults: Vec<String>, md5: bool, sha1: bool },
    /// Records, ready to be written.
    Lines(Vec<Line>),
    /// How far the walk is, since its beginning.
    Counters(Counters),
    /// The inspector of this generation must be replaced: `reason` says why.
    Replace { slot: u32, generation: u32, reason: String },
    /// The volume is done.
    Walked { complete: bool, counters: Counters },
}

/// Running counts of one volume.
#[derive(Clone, Copy, Debug, Default, Serialize, Deserialize)]
pub(crate) struct Counters {
    pub entries: u64,
    pub files: u64,
    pub files_examined: u64,
    pub bytes: u64,
}

/// What a line of the stream is, so that the supervisor can count and sort without reading it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) enum LineKind {
    File,
    Finding(cleanroom_contract::Severity),
    Gap(GapKind),
}

/// A record on its way into the spool.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct Line {
    pub kind: LineKind,
    /// Place of the entry in the volume's order; `u64::MAX` for what concerns the whole volume.
    pub seq: u64,
    /// Place among the lines of one entry and kind.
    pub sub: u32,
    /// The record as a JSON line, with its newline.
    #[serde(with = "serde_bytes")]
    pub json: Vec<u8>,
}

/// Walker → inspector.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) enum ToInspector {
    /// A new volume begins; with the image's descriptor where `backing` gives its size.
    Volume { backing: Option<u64> },
    /// Files to read; with one descriptor each, in order.
    Jobs(Vec<Job>),
}

/// A file to read, and what the rules may know of it.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) struct Job {
    pub seq: u64,
    pub size: u64,
    pub allocated: u64,
    pub mtime: Timestamp,
    pub ctime: Timestamp,
    /// Absolute from the view's root.
    #[serde(with = "serde_bytes")]
    pub path: Vec<u8>,
    /// The owner's name in the volume's own passwd, else its number.
    pub owner: String,
}

/// Inspector → walker.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) enum FromInspector {
    /// What was found out about files, each once.
    Facts(Vec<Facts>),
}

/// What an inspector found out about a file.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) struct Facts {
    pub seq: u64,
    /// Bytes of content that were read.
    pub read: u64,
    pub sha256: Option<Sha256>,
    pub md5: Option<String>,
    pub sha1: Option<String>,
    pub extents: Option<ExtentDigest>,
    pub entropy: Option<f64>,
    pub format: Option<String>,
    pub scan: ScanState,
    pub matches: Vec<RuleMatch>,
    pub binary: Option<Box<Binary>>,
    /// What was not examined of it.
    pub troubles: Vec<Trouble>,
    /// Matches were left out for their size.
    pub truncated: bool,
    /// The image under the volume lost bytes while this was read: nothing of the volume is sure.
    pub backing_shrank: bool,
}

impl Facts {
    /// Nothing known yet about `seq`.
    pub(crate) fn new(seq: u64) -> Self {
        Self {
            seq,
            read: 0,
            sha256: None,
            md5: None,
            sha1: None,
            extents: None,
            entropy: None,
            format: None,
            scan: ScanState::Skipped,
            matches: Vec::new(),
            binary: None,
            troubles: Vec::new(),
            truncated: false,
            backing_shrank: false,
        }
    }

    /// Cuts every text to what an honest inspector would send: what comes from a process that parses
    /// evidence is bounded before it becomes a record.
    pub(crate) fn bound(&mut self) {
        for text in [&mut self.format, &mut self.md5, &mut self.sha1].into_iter().flatten() {
            truncate(text, 64);
        }
        self.troubles.truncate(16);
        for trouble in &mut self.troubles {
            truncate(&mut trouble.reason, 1024);
        }
    }
}

/// Cuts a text at the last character that ends within `limit` bytes.
fn truncate(text: &mut String, limit: usize) {
    text.truncate(text.floor_char_boundary(limit));
}

/// A part of a file that was not examined.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Trouble {
    pub kind: GapKind,
    pub reason: String,
    pub count: u64,
}

/// Probe → supervisor: the layout of an evidence, or why it could not be read. The evidence itself is the
/// probe's second descriptor.
pub(crate) type ProbeAnswer = Result<crate::evidence::probe::Layout, String>;

/// Where an inspector writes the file it is about to read, so that its end can be laid to the right
/// one: eight bytes, the sequence number plus one, at offset 0. Zero means none.
pub(crate) fn write_marker(marker: BorrowedFd<'_>, seq: Option<u64>) -> rustix::io::Result<()> {
    let value = seq.map_or(0, |seq| seq.wrapping_add(1));
    rustix::io::pwrite(marker, &value.to_le_bytes(), 0).map(drop)
}

/// What [`write_marker`] wrote last; `None` where nothing can be read.
pub(crate) fn read_marker(marker: BorrowedFd<'_>) -> Option<u64> {
    let mut bytes = [0; 8];
    match rustix::io::pread(marker, &mut bytes, 0) {
        Ok(8) => u64::from_le_bytes(bytes).checked_sub(1),
        _ => None,
    }
}

/// Reads a whole descriptor, refusing more than `limit` bytes.
pub(crate) fn read_bounded(file: &mut std::fs::File, limit: u64) -> io::Result<Vec<u8>> {
    let mut bytes = Vec::new();
    std::io::Read::take(&mut *file, limit + 1).read_to_end(&mut bytes)?;
    if bytes.len() as u64 > limit {
        return Err(io::Error::new(
            io::ErrorKind::FileTooLarge,
            format!("more than {limit} bytes"),
        ));
    }
    Ok(bytes)
}

/// The extents of a record are a list that must not grow without bound.
pub(crate) const MAX_EXTENTS: usize = 1024;

/// Adds an extent where the list still has room.
pub(crate) fn push_extent(list: &mut Vec<Extent>, extent: Extent) {
    if list.len() < MAX_EXTENTS {
        list.push(extent);
    }
}

#[cfg(test)]
mod tests {
    use std::os::fd::AsFd as _;

    use super::*;

    #[test]
    fn the_marker_names_the_file_in_hand() {
        let file = tempfile::tempfile().unwrap();
        assert_eq!(read_marker(file.as_fd()), None);
        write_marker(file.as_fd(), Some(0)).unwrap();
        assert_eq!(read_marker(file.as_fd()), Some(0));
        write_marker(file.as_fd(), None).unwrap();
        assert_eq!(read_marker(file.as_fd()), None);
    }

    #[test]
    fn larger_files_get_more_time() {
        let limits = Limits {
            in_memory: 0,
            max_file_size: None,
            file_timeout_ms: 60_000,
            max_hole_bytes: 0,
            depth: 0,
        };
        assert_eq!(limits.time_for(0, 0).as_secs(), 60);
        assert_eq!(limits.time_for(1000 << 20, 1000 << 20).as_secs(), 80);
        assert_eq!(limits.time_for(u64::MAX, 1000 << 20).as_secs(), 80, "holes take no time");
        assert!(limits.time_for(u64::MAX, u64::MAX).as_secs() > 1 << 20);
    }
}
