//! Reading: the trait through which the probe sees evidence, and the bounds on what it reads.

use std::{
    borrow::Cow,
    cell::{Cell, RefCell},
    fs::File,
    io::{self, Seek as _, SeekFrom},
    os::unix::fs::FileExt as _,
};

use cleanroom_contract::{GapKind, printable};

use super::layout::Trouble;

/// Bytes at an offset. All that the probe can do with evidence.
pub(crate) trait ReadAt {
    /// Bytes in all.
    fn size(&self) -> u64;

    /// Reads `buf.len()` bytes at `offset`, fewer only at the end. The error is the operating system's.
    fn read_at(&self, offset: u64, buf: &mut [u8]) -> io::Result<usize>;
}

impl ReadAt for &[u8] {
    fn size(&self) -> u64 {
        self.len() as u64
    }

    fn read_at(&self, offset: u64, buf: &mut [u8]) -> io::Result<usize> {
        let start = usize::try_from(offset).unwrap_or(usize::MAX);
        let there = self.get(start..).unwrap_or_default();
        let length = there.len().min(buf.len());
        if let (Some(to), Some(from)) = (buf.get_mut(..length), there.get(..length)) {
            to.copy_from_slice(from);
        }
        Ok(length)
    }
}

/// An image or a block device, with its size.
#[derive(Debug)]
pub(crate) struct EvidenceFile {
    file: File,
    size: u64,
}

impl EvidenceFile {
    /// Takes an open file. Its size is where lseek(2) finds the end, which serves block devices too,
    /// whose metadata says 0. Moves the descriptor's position; nothing here uses it.
    pub(crate) fn new(mut file: File) -> io::Result<Self> {
        let size = file.seek(SeekFrom::End(0))?;
        Ok(Self { file, size })
    }
}

impl ReadAt for EvidenceFile {
    fn size(&self) -> u64 {
        self.size
    }

    fn read_at(&self, offset: u64, buf: &mut [u8]) -> io::Result<usize> {
        let mut done = 0;
        while let Some(rest) = buf.get_mut(done..).filter(|rest| !rest.is_empty()) {
            match self.file.read_at(rest, offset.saturating_add(done as u64)) {
                Ok(0) => break,
                Ok(read) => done += read,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(error),
            }
        }
        Ok(done)
    }
}

/// Bytes that one probe reads at most, whatever the evidence claims.
pub(super) const BUDGET: u64 = 64 << 20;

/// Where a long read meets an error it is tried again in pieces of this many bytes: a disk's bad
/// sector then costs one piece and not the superblock beside it.
const PIECE: u64 = 4096;

/// Unreadable ranges that are reported one by one.
const FAULTS: usize = 16;

/// The evidence with a budget. Unreadable bytes read as zeros and are remembered.
pub(super) struct Source<'a> {
    evidence: &'a dyn ReadAt,
    left: Cell<u64>,
    exhausted: Cell<bool>,
    faults: RefCell<Vec<Trouble>>,
    unlisted: Cell<u64>,
}

impl<'a> Source<'a> {
    pub(super) fn new(evidence: &'a dyn ReadAt) -> Self {
        Self {
            evidence,
            left: Cell::new(BUDGET),
            exhausted: Cell::new(false),
            faults: RefCell::default(),
            unlisted: Cell::new(0),
        }
    }

    /// Bytes of the evidence.
    pub(super) fn size(&self) -> u64 {
        self.evidence.size()
    }

    /// Bytes at `offset`: `length` of them, fewer at the end of the evidence or of the budget.
    pub(super) fn bytes(&self, offset: u64, length: usize) -> Vec<u8> {
        let wanted = self.size().saturating_sub(offset).min(length as u64);
        let granted = wanted.min(self.left.get());
        if granted < wanted {
            self.exhausted.set(true);
        }
        self.left.set(self.left.get() - granted);
        let Ok(granted) = usize::try_from(granted) else { return Vec::new() };
        let mut bytes = vec![0; granted];
        match self.evidence.read_at(offset, &mut bytes) {
            Ok(read) => bytes.truncate(read),
            Err(error) => {
                self.fault(offset, granted, &error);
                self.read_pieces(offset, &mut bytes);
            }
        }
        bytes
    }

    /// Fills what can be read; the rest stays zero.
    fn read_pieces(&self, offset: u64, bytes: &mut [u8]) {
        let (mut at, mut rest) = (offset, bytes);
        while !rest.is_empty() {
            // Up to the next multiple, so that pieces match the device's sectors.
            let step = usize::try_from(PIECE - at % PIECE).unwrap_or(rest.len()).min(rest.len());
            let (piece, tail) = rest.split_at_mut(step);
            if self.evidence.read_at(at, piece).is_err() {
                piece.fill(0);
            }
            at = at.saturating_add(step as u64);
            rest = tail;
        }
    }

    fn fault(&self, offset: u64, length: usize, error: &io::Error) {
        let mut faults = self.faults.borrow_mut();
        if faults.len() < FAULTS {
            let error = printable(&error.to_string());
            faults.push(Trouble::new(
                GapKind::Unreadable,
                format!("some of the {length} bytes at byte {offset} could not be read: {error}"),
                "acquire the evidence again with a tool that retries and logs bad sectors (ddrescue)",
            ));
        } else {
            self.unlisted.set(self.unlisted.get().saturating_add(1));
        }
    }

    /// What went wrong while reading.
    pub(super) fn into_troubles(self) -> Vec<Trouble> {
        let mut troubles = self.faults.into_inner();
        if self.unlisted.get() > 0 {
            let reason = format!("{} more ranges could not be read", self.unlisted.get());
            troubles.push(Trouble::new(GapKind::Unreadable, reason, ""));
        }
        if self.exhausted.get() {
            troubles.push(Trouble::new(
                GapKind::Evidence,
                format!(
                    "the probe stopped after {BUDGET} bytes: later partitions were not recognised"
                ),
                "scan the partitions one by one, each as its own image",
            ));
        }
        troubles
    }
}

/// Bytes read from the start of every partition: up to the end of the Btrfs superblock at 64 KiB,
/// the farthest of the fixed places.
const HEAD: usize = 68 << 10;

/// A stretch of the evidence in which content is looked for.
pub(super) struct Region<'a> {
    source: &'a Source<'a>,
    offset: u64,
    length: u64,
    head: Vec<u8>,
}

impl<'a> Region<'a> {
    /// The stretch, cut to what the evidence has; its head is read at once.
    pub(super) fn new(source: &'a Source<'a>, offset: u64, length: u64) -> Self {
        let length = length.min(source.size().saturating_sub(offset));
        let head = usize::try_from(length).unwrap_or(HEAD).min(HEAD);
        Self { source, offset, length, head: source.bytes(offset, head) }
    }

    /// Bytes in all.
    pub(super) fn length(&self) -> u64 {
        self.length
    }

    /// The first bytes, at most [`HEAD`].
    pub(super) fn head(&self) -> &[u8] {
        &self.head
    }

    /// Exactly `length` bytes at `at`, or nothing where the stretch or the budget ends before.
    pub(super) fn get(&self, at: u64, length: usize) -> Option<Cow<'_, [u8]>> {
        let end = at.checked_add(length as u64)?;
        if let Some(bytes) = usize::try_from(at)
            .ok()
            .zip(usize::try_from(end).ok())
            .and_then(|(at, end)| self.head.get(at..end))
        {
            return Some(Cow::Borrowed(bytes));
        }
        if end > self.length {
            return None;
        }
        let bytes = self.source.bytes(self.offset.checked_add(at)?, length);
        (bytes.len() == length).then_some(Cow::Owned(bytes))
    }

    /// True where the head and the last 4 KiB hold nothing but zeros.
    pub(super) fn is_zero(&self) -> bool {
        let tail = usize::try_from(self.length).unwrap_or(4096).min(4096);
        let tail = self.get(self.length - tail as u64, tail);
        self.head.iter().all(|b| *b == 0) && tail.is_some_and(|tail| tail.iter().all(|b| *b == 0))
    }
}
