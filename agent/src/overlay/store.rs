//! Where the bytes of an overlay are: on the evidence, or, once written to, in scratch.
//!
//! Purpose: copy-on-write in blocks. Touches the evidence for reading and the scratch file. Never writes
//! past the scratch's bound, and says in the ledger when it had to refuse.

use std::{
    collections::BTreeMap,
    fs::File,
    io,
    os::unix::fs::FileExt as _,
    sync::{
        PoisonError, RwLock,
        atomic::{AtomicU64, Ordering},
    },
};

/// The unit of copying.
const BYTES: usize = 4096;
const BLOCK: u64 = BYTES as u64;

/// The bytes of a volume, with what was written over them.
#[derive(Debug)]
pub(super) struct Store {
    image: File,
    offset: u64,
    length: u64,
    scratch: File,
    bound: u64,
    /// Blocks that were written to, and the places of their copies.
    copies: RwLock<BTreeMap<u64, u64>>,
    ledger: Ledger,
}

impl Store {
    pub(super) fn new(
        (image, offset, length): (File, u64, u64),
        (scratch, bound): (File, u64),
        ledger: File,
    ) -> Self {
        let ledger = Ledger { file: ledger, refused: AtomicU64::new(0), failed: AtomicU64::new(0) };
        Self { image, offset, length, scratch, bound, copies: RwLock::default(), ledger }
    }

    /// Bytes of the volume.
    pub(super) fn length(&self) -> u64 {
        self.length
    }

    /// Fills `into` with what is at `at`, all of which lies on the volume.
    pub(super) fn read(&self, at: u64, into: &mut [u8]) -> io::Result<()> {
        let read = self.read_through(at, into);
        if read.is_err() {
            self.ledger.count(&self.ledger.failed, 8);
        }
        read
    }

    fn read_through(&self, at: u64, into: &mut [u8]) -> io::Result<()> {
        let end = at.saturating_add(into.len() as u64);
        let copies = self.copies.read().unwrap_or_else(PoisonError::into_inner);
        // An image that has become shorter is an error here, and not zeros.
        self.image.read_exact_at(into, self.offset.saturating_add(at))?;
        for (block, copy) in copies.range(at / BLOCK..end.div_ceil(BLOCK)) {
            let from = (block * BLOCK).max(at);
            let until = (block * BLOCK + BLOCK).min(end);
            let part = place(from - at)?..place(until - at)?;
            self.scratch.read_exact_at(&mut into[part], copy * BLOCK + from % BLOCK)?;
        }
        Ok(())
    }

    /// Writes over what is at `at`. A block is copied before its first byte changes.
    pub(super) fn write(&self, at: u64, data: &[u8]) -> io::Result<()> {
        let written = self.write_through(at, data);
        if written.is_err() {
            self.ledger.count(&self.ledger.refused, 0);
        }
        written
    }

    fn write_through(&self, mut at: u64, mut data: &[u8]) -> io::Result<()> {
        if at.checked_add(data.len() as u64).is_none_or(|end| end > self.length) {
            return Err(io::ErrorKind::InvalidInput.into());
        }
        let mut copies = self.copies.write().unwrap_or_else(PoisonError::into_inner);
        while !data.is_empty() {
            let (block, within) = (at / BLOCK, at % BLOCK);
            let (now, rest) = data.split_at(place(BLOCK - within)?.min(data.len()));
            match copies.get(&block) {
                Some(copy) => self.scratch.write_all_at(now, copy * BLOCK + within)?,
                None => {
                    let copy = copies.len() as u64;
                    if (copy + 1) * BLOCK > self.bound {
                        return Err(io::ErrorKind::StorageFull.into());
                    }
                    self.scratch.write_all_at(&self.merged(block, within, now)?, copy * BLOCK)?;
                    copies.insert(block, copy);
                }
            }
            at += now.len() as u64;
            data = rest;
        }
        Ok(())
    }

    /// A block of the evidence with `data` put over it.
    fn merged(&self, block: u64, within: u64, data: &[u8]) -> io::Result<[u8; BYTES]> {
        let mut bytes = [0; BYTES];
        let there = place(BLOCK.min(self.length - block * BLOCK))?;
        if data.len() < there {
            let from = self.offset.saturating_add(block * BLOCK);
            self.image.read_exact_at(&mut bytes[..there], from)?;
        }
        bytes[place(within)?..][..data.len()].copy_from_slice(data);
        Ok(bytes)
    }
}

/// A place in memory.
fn place(bytes: u64) -> io::Result<usize> {
    usize::try_from(bytes).map_err(io::Error::other)
}

/// What an overlay had to refuse, in a memory file that it shares with the supervisor, who so can read it
/// even when the overlay has died: two counts of eight bytes, in the machine's order.
#[derive(Debug)]
struct Ledger {
    file: File,
    refused: AtomicU64,
    failed: AtomicU64,
}

impl Ledger {
    fn count(&self, what: &AtomicU64, at: u64) {
        let count = what.fetch_add(1, Ordering::Relaxed) + 1;
        // A memory file of 16 bytes takes them.
        drop(self.file.write_all_at(&count.to_ne_bytes(), at));
    }
}

/// How an overlay stands.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Standing {
    /// Writes that did not fit, or could not be kept.
    pub refused: u64,
    /// Reads that the evidence or the scratch did not answer.
    pub failed: u64,
}

impl Standing {
    /// Reads a ledger; one that nothing was written to is empty.
    pub(crate) fn read(ledger: &File) -> io::Result<Self> {
        let field = |at| {
            let mut bytes = [0; 8];
            ledger.read_at(&mut bytes, at).map(|_| u64::from_ne_bytes(bytes))
        };
        Ok(Self { refused: field(0)?, failed: field(8)? })
    }
}

#[cfg(test)]
mod tests {
    use std::io::{Read as _, Seek as _, Write as _};

    use proptest::prelude::*;

    use super::*;

    const LENGTH: usize = 5 * BYTES + 512;

    fn content() -> Vec<u8> {
        (0..=250).cycle().take(LENGTH).collect()
    }

    /// A store over an image whose volume begins at byte 512, and its ledger.
    fn store(bound: u64) -> (Store, File, Vec<u8>, File) {
        let bytes = content();
        let mut image = tempfile::tempfile().unwrap();
        image.write_all(&[0xff; 512]).unwrap();
        image.write_all(&bytes).unwrap();
        image.write_all(&[0xff; 512]).unwrap();
        let (scratch, ledger) = (tempfile::tempfile().unwrap(), tempfile::tempfile().unwrap());
        let theirs = ledger.try_clone().unwrap();
        let own = image.try_clone().unwrap();
        (Store::new((own, 512, LENGTH as u64), (scratch, bound), theirs), image, bytes, ledger)
    }

    proptest! {
        #[test]
        fn what_was_written_is_read_and_the_image_stays(
            writes in prop::collection::vec((0..LENGTH, 1..2 * BYTES, any::<u8>()), 0..12),
            reads in prop::collection::vec((0..LENGTH, 1..LENGTH), 1..12),
        ) {
            let (store, mut image, mut expected, ledger) = store(1 << 20);
            for (at, length, byte) in writes {
                let length = length.min(LENGTH - at);
                store.write(at as u64, &vec![byte; length]).unwrap();
                expected[at..at + length].fill(byte);
            }
            for (at, length) in reads {
                let mut into = vec![0; length.min(LENGTH - at)];
                store.read(at as u64, &mut into).unwrap();
                prop_assert_eq!(&into[..], &expected[at..at + into.len()]);
            }
            let mut after = Vec::new();
            image.rewind().unwrap();
            image.read_to_end(&mut after).unwrap();
            prop_assert_eq!(after[..512].to_vec(), vec![0xff; 512]);
            prop_assert!(after[512..512 + LENGTH] == content());
            prop_assert_eq!(Standing::read(&ledger).unwrap(), Standing::default());
        }
    }

    #[test]
    fn a_write_that_does_not_fit_is_refused_and_counted() {
        let (store, _, bytes, ledger) = store(2 * BLOCK);
        store.write(0, &[7; 2 * BYTES]).unwrap();
        store.write(100, &[8; 100]).unwrap();
        let full = store.write(3 * BLOCK, &[9]).unwrap_err();
        assert_eq!(full.kind(), io::ErrorKind::StorageFull);
        assert!(store.write(LENGTH as u64, &[9]).is_err(), "outside");
        assert!(store.write(u64::MAX, &[9]).is_err(), "far outside");
        assert_eq!(Standing::read(&ledger).unwrap(), Standing { refused: 3, failed: 0 });
        let mut into = [0; 8];
        store.read(3 * BLOCK, &mut into).unwrap();
        assert_eq!(into, bytes[3 * BYTES..][..8]);
    }

    #[test]
    fn an_image_that_becomes_shorter_is_an_error_and_counted() {
        let (store, image, _, ledger) = store(1 << 20);
        image.set_len(512 + BLOCK).unwrap();
        let mut into = [0; 512];
        store.read(0, &mut into).unwrap();
        assert!(store.read(BLOCK, &mut into).is_err());
        assert_eq!(Standing::read(&ledger).unwrap(), Standing { refused: 0, failed: 1 });
    }
}
