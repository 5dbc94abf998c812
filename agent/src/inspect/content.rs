//! The one read of a file: its bytes, once, into digests, entropy and memory.
//!
//! Purpose: read a descriptor at most once, holes never, and say honestly what was read. Touches one
//! descriptor, by `pread` and `lseek` only (the offset of a descriptor that is shared must not
//! matter). Never writes, never maps a file: a mapping of evidence that shrinks would kill us.

use std::{
    io,
    os::fd::{AsFd, BorrowedFd},
};

use cleanroom_contract::{Extent, ExtentDigest, Sha256};
use rustix::{fs::SeekFrom, io::Errno};
use sha2::Digest as _;

use crate::{
    inspect::entropy::Histogram,
    protocol::{Measures, push_extent},
};

/// The size of one read: small enough that the bytes are still in the second-level cache when the digest
/// gets to them.
pub(crate) const READ: usize = 128 << 10;

/// Digests and entropy of a stream of bytes.
#[derive(Debug)]
pub(crate) struct Digests {
    sha256: sha2::Sha256,
    md5: Option<md5::Md5>,
    sha1: Option<sha1::Sha1>,
    histogram: Option<Histogram>,
}

impl Digests {
    /// Begins with no bytes.
    pub(crate) fn new(measures: &Measures) -> Self {
        Self {
            sha256: sha2::Sha256::new(),
            md5: measures.md5.then(md5::Md5::new),
            sha1: measures.sha1.then(sha1::Sha1::new),
            histogram: measures.entropy.then(Histogram::new),
        }
    }

    /// Takes in the next bytes.
    pub(crate) fn update(&mut self, bytes: &[u8]) {
        self.sha256.update(bytes);
        if let Some(md5) = &mut self.md5 {
            md5.update(bytes);
        }
        if let Some(sha1) = &mut self.sha1 {
            sha1.update(bytes);
        }
        if let Some(histogram) = &mut self.histogram {
            histogram.update(bytes);
        }
    }

    /// Takes in a hole of `length` bytes, without reading it. Holes are not counted into the
    /// entropy twice: they are zeros like any other.
    pub(crate) fn zeros(&mut self, mut length: u64) {
        static ZEROS: [u8; READ] = [0; READ];
        if let Some(histogram) = &mut self.histogram {
            histogram.add_zeros(length);
        }
        while length > 0 {
            let now = usize::try_from(length).map_or(READ, |length| length.min(READ));
            self.sha256.update(&ZEROS[..now]);
            if let Some(md5) = &mut self.md5 {
                md5.update(&ZEROS[..now]);
            }
            if let Some(sha1) = &mut self.sha1 {
                sha1.update(&ZEROS[..now]);
            }
            length -= now as u64;
        }
    }

    /// Ends the stream and writes the results into `facts`.
    pub(crate) fn finish(self, facts: &mut crate::protocol::Facts) {
        facts.entropy = self.histogram.map(|histogram| histogram.entropy());
        facts.sha256 = Some(Sha256(self.sha256.finalize().into()));
        facts.md5 = self.md5.map(|md5| hex(&md5.finalize()));
        facts.sha1 = self.sha1.map(|sha1| hex(&sha1.finalize()));
    }

    /// Ends a stream that had only the data extents of a sparse file.
    pub(crate) fn finish_extents(
        self,
        extents: Vec<Extent>,
        count: u64,
        facts: &mut crate::protocol::Facts,
    ) {
        facts.entropy = self.histogram.map(|histogram| histogram.entropy());
        let sha256 = Sha256(self.sha256.finalize().into());
        facts.extents = Some(ExtentDigest { sha256, extents, count });
    }
}

/// Lower-case hexadecimal.
fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

/// Why a file was not read to its end.
#[derive(Debug)]
pub(crate) enum ReadError {
    /// The file ended at this offset, before the size it had.
    Shrank(u64),
    /// The system refused.
    Io { offset: u64, source: io::Error },
}

/// The data extents of a file, found one after the other, so that a file of a million extents costs
/// no memory.
#[derive(Debug)]
pub(crate) struct Extents<'f> {
    file: BorrowedFd<'f>,
    size: u64,
    next: u64,
    /// True where the file has no holes worth asking for: one extent is all of it.
    dense: bool,
}

impl<'f> Extents<'f> {
    /// The extents of `file`; it is asked for holes only where fewer bytes are allocated than it has.
    pub(crate) fn new(file: BorrowedFd<'f>, size: u64, allocated: u64) -> Self {
        Self { file, size, next: 0, dense: allocated >= size || size <= READ as u64 }
    }

    /// The bytes that lie in holes, by a first pass over the extents.
    pub(crate) fn hole_bytes(&self) -> u64 {
        let walk = Self { file: self.file, size: self.size, next: 0, dense: self.dense };
        self.size - walk.map(|extent| extent.length).sum::<u64>().min(self.size)
    }
}

impl Iterator for Extents<'_> {
    type Item = Extent;

    fn next(&mut self) -> Option<Extent> {
        if self.next >= self.size {
            return None;
        }
        let rest = Extent { offset: self.next, length: self.size - self.next };
        if self.dense {
            self.next = self.size;
            return Some(rest);
        }
        let start = match rustix::fs::seek(self.file, SeekFrom::Data(self.next)) {
            Ok(start) => start,
            Err(Errno::NXIO) => {
                self.next = self.size;
                return None;
            }
            // A file system that cannot tell is read whole.
            Err(_) => {
                self.next = self.size;
                return Some(rest);
            }
        };
        let start = start.max(self.next);
        if start >= self.size {
            self.next = self.size;
            return None;
        }
        let end = rustix::fs::seek(self.file, SeekFrom::Hole(start)).unwrap_or(self.size);
        // A file system that answers out of order must not send us backwards.
        let end = if end <= start { self.size } else { end.min(self.size) };
        self.next = end;
        Some(Extent { offset: start, length: end - start })
    }
}

/// One `pread` into the unused capacity of `buffer`, at most `limit` bytes.
fn read_some(
    file: BorrowedFd<'_>,
    buffer: &mut Vec<u8>,
    limit: usize,
    offset: u64,
) -> Result<usize, ReadError> {
    let start = buffer.len();
    debug_assert!(buffer.capacity() - start >= limit);
    loop {
        let spare = &mut buffer.spare_capacity_mut()[..limit];
        let got = match rustix::io::pread(file, spare, offset) {
            Ok((bytes, _)) => bytes.len(),
            Err(Errno::INTR) => continue,
            Err(errno) => return Err(ReadError::Io { offset, source: errno.into() }),
        };
        if got == 0 {
            return Err(ReadError::Shrank(offset));
        }
        append_initialised(buffer, got);
        return Ok(got);
    }
}

/// Makes `count` bytes that the kernel has just written part of `buffer`.
#[expect(
    unsafe_code,
    reason = "read into spare capacity, so that no byte is zeroed before it is read"
)]
fn append_initialised(buffer: &mut Vec<u8>, count: usize) {
    let length = buffer.len() + count;
    assert!(length <= buffer.capacity());
    // SAFETY: `pread` reported that it wrote `count` bytes from the first unused one on, and the
    // length stays within the capacity.
    unsafe { buffer.set_len(length) };
}

/// Reads a file of `size` bytes into `buffer` (emptied first), feeding `digests` while the bytes are hot.
/// Returns the bytes read from the file, holes not counted.
pub(crate) fn read_whole(
    file: BorrowedFd<'_>,
    (size, allocated): (u64, u64),
    buffer: &mut Vec<u8>,
    digests: &mut Digests,
) -> Result<u64, ReadError> {
    buffer.clear();
    let length = usize::try_from(size).unwrap_or(usize::MAX);
    if let Err(error) = buffer.try_reserve(length) {
        return Err(ReadError::Io { offset: 0, source: io::Error::other(error) });
    }
    let mut read = 0;
    for extent in Extents::new(file, size, allocated) {
        fill_hole(buffer, extent.offset, digests);
        let end = extent.offset + extent.length;
        while (buffer.len() as u64) < end {
            let offset = buffer.len() as u64;
            let limit = usize::try_from(end - offset).map_or(READ, |rest| rest.min(READ));
            let got = read_some(file, buffer, limit, offset)?;
            digests.update(&buffer[buffer.len() - got..]);
            read += got as u64;
        }
    }
    fill_hole(buffer, size, digests);
    Ok(read)
}

/// Zeros from the buffer's end up to `offset`.
fn fill_hole(buffer: &mut Vec<u8>, offset: u64, digests: &mut Digests) {
    let hole = offset.saturating_sub(buffer.len() as u64);
    if hole > 0 {
        digests.zeros(hole);
        let length = usize::try_from(offset).unwrap_or(usize::MAX);
        buffer.resize(length, 0);
    }
}

/// What a streamed read did.
#[derive(Debug, Default)]
pub(crate) struct Streamed {
    /// Bytes read from the file.
    pub read: u64,
    /// The first data extents.
    pub extents: Vec<Extent>,
    /// How many data extents there are.
    pub count: u64,
}

/// Reads a file in blocks. `block` sees each with its offset; consecutive blocks of one extent share
/// `overlap` bytes. With `hash_holes` the digests see the holes as zeros, else not at all.
pub(crate) fn read_blocks(
    file: BorrowedFd<'_>,
    (size, allocated): (u64, u64),
    shape: &mut Blocks<'_>,
    block: &mut dyn FnMut(u64, &[u8]),
) -> Result<Streamed, ReadError> {
    let mut done = Streamed::default();
    let mut position = 0;
    for extent in Extents::new(file, size, allocated) {
        if shape.hash_holes {
            shape.digests.zeros(extent.offset - position);
        }
        push_extent(&mut done.extents, extent);
        done.count += 1;
        position = extent.offset + extent.length;
        let mut start = extent.offset;
        shape.buffer.clear();
        while start + (shape.buffer.len() as u64) < position {
            fill_block(file, start, position, shape, &mut done)?;
            block(start, shape.buffer);
            let end = start + shape.buffer.len() as u64;
            if end >= position {
                break;
            }
            let keep = shape.overlap.min(shape.buffer.len() / 2);
            let from = shape.buffer.len() - keep;
            shape.buffer.copy_within(from.., 0);
            shape.buffer.truncate(keep);
            start = end - keep as u64;
        }
    }
    if shape.hash_holes {
        shape.digests.zeros(size - position);
    }
    Ok(done)
}

/// How a file is cut into blocks.
#[derive(Debug)]
pub(crate) struct Blocks<'b> {
    /// Reused for every block.
    pub buffer: &'b mut Vec<u8>,
    /// Bytes of a block.
    pub length: usize,
    /// Bytes that two blocks share.
    pub overlap: usize,
    /// Whether holes count as zeros.
    pub hash_holes: bool,
    /// Fed with every byte once.
    pub digests: &'b mut Digests,
}

/// Reads from behind what the buffer holds until it is full or the extent ends.
fn fill_block(
    file: BorrowedFd<'_>,
    start: u64,
    end: u64,
    shape: &mut Blocks<'_>,
    done: &mut Streamed,
) -> Result<(), ReadError> {
    let missing = shape.length.saturating_sub(shape.buffer.len());
    shape.buffer.reserve_exact(missing);
    while shape.buffer.len() < shape.length {
        let offset = start + shape.buffer.len() as u64;
        if offset >= end {
            break;
        }
        let room = (shape.length - shape.buffer.len()).min(READ);
        let limit = usize::try_from(end - offset).map_or(room, |rest| rest.min(room));
        let got = read_some(file, shape.buffer, limit, offset)?;
        shape.digests.update(&shape.buffer[shape.buffer.len() - got..]);
        done.read += got as u64;
    }
    Ok(())
}

/// The size of an image now; evidence mounted from it must not be believed once this is smaller than
/// it was. By lseek(2), since fstat(2) calls every block device empty.
pub(crate) fn current_size(image: impl AsFd) -> io::Result<u64> {
    Ok(rustix::fs::seek(image, SeekFrom::End(0))?)
}

#[cfg(test)]
mod tests {
    use std::{
        fs::File,
        io::{Seek as _, Write as _},
    };

    use super::*;
    use crate::protocol::Facts;

    const ALL: Measures = Measures { md5: true, sha1: true, entropy: true };

    fn sparse(parts: &[(u64, &[u8])], size: u64) -> (File, u64) {
        let mut file = tempfile::tempfile().unwrap();
        file.set_len(size).unwrap();
        for (offset, bytes) in parts {
            file.seek(io::SeekFrom::Start(*offset)).unwrap();
            file.write_all(bytes).unwrap();
        }
        let blocks = rustix::fs::fstat(&file).unwrap().st_blocks;
        (file, u64::try_from(blocks).unwrap() * 512)
    }

    fn of(bytes: &[u8]) -> Facts {
        let mut facts = Facts::new(0);
        let mut digests = Digests::new(&ALL);
        digests.update(bytes);
        digests.finish(&mut facts);
        facts
    }

    #[test]
    fn digests_are_those_of_the_standards() {
        let facts = of(b"abc");
        assert_eq!(
            facts.sha256.unwrap().to_string(),
            "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"
        );
        assert_eq!(facts.md5.unwrap(), "900150983cd24fb0d6963f7d28e17f72");
        assert_eq!(facts.sha1.unwrap(), "a9993e364706816aba3e25717850c26c9cd0d89d");
        assert_eq!(facts.entropy.unwrap(), 1.585);
    }

    #[test]
    fn a_sparse_file_reads_as_its_zeros_in_both_ways() {
        let size = 3 << 20;
        let (file, allocated) = sparse(&[(70_000, b"head"), (2 << 20, b"tail")], size);
        let mut plain = vec![0; usize::try_from(size).unwrap()];
        plain[70_000..70_004].copy_from_slice(b"head");
        plain[2 << 20..(2 << 20) + 4].copy_from_slice(b"tail");
        let expected = of(&plain);

        let (mut buffer, mut whole) = (Vec::new(), Digests::new(&ALL));
        let read = read_whole(file.as_fd(), (size, allocated), &mut buffer, &mut whole).unwrap();
        assert!(buffer == plain && read < size / 2, "{read} bytes of {size} read");
        let mut facts = Facts::new(0);
        whole.finish(&mut facts);
        assert_eq!((facts.sha256, facts.entropy), (expected.sha256, expected.entropy));

        let mut digests = Digests::new(&ALL);
        let mut shape = Blocks {
            buffer: &mut buffer,
            length: 1 << 20,
            overlap: 0,
            hash_holes: true,
            digests: &mut digests,
        };
        let done =
            read_blocks(file.as_fd(), (size, allocated), &mut shape, &mut |_, _| ()).unwrap();
        assert_eq!((done.read, done.count), (read, 2));
        let mut facts = Facts::new(0);
        digests.finish(&mut facts);
        assert_eq!((facts.sha256, facts.md5), (expected.sha256, expected.md5));
    }

    #[test]
    fn blocks_overlap_and_cover_every_byte_once_for_the_digest() {
        let bytes: Vec<u8> =
            (0..300_000_u32).map(|i| i.to_le_bytes()[1] ^ i.to_le_bytes()[0]).collect();
        let (file, allocated) = sparse(&[(0, &bytes)], 300_000);
        let (mut buffer, mut digests) = (Vec::new(), Digests::new(&ALL));
        let mut shape = Blocks {
            buffer: &mut buffer,
            length: 64 << 10,
            overlap: 4 << 10,
            hash_holes: true,
            digests: &mut digests,
        };
        let mut covered = 0;
        read_blocks(file.as_fd(), (300_000, allocated), &mut shape, &mut |offset, block| {
            let at = usize::try_from(offset).unwrap();
            assert_eq!(block, &bytes[at..at + block.len()]);
            assert!(offset == 0 || offset + (4 << 10) == covered, "{offset} {covered}");
            covered = offset + block.len() as u64;
        })
        .unwrap();
        assert_eq!(covered, 300_000);
        let mut facts = Facts::new(0);
        digests.finish(&mut facts);
        assert_eq!(facts.sha256, of(&bytes).sha256);
    }

    #[test]
    fn a_file_that_is_shorter_than_it_was_is_told() {
        let (file, _) = sparse(&[(0, b"short")], 5);
        let (mut buffer, mut digests) = (Vec::new(), Digests::new(&ALL));
        let result = read_whole(file.as_fd(), (9, 9), &mut buffer, &mut digests);
        assert!(matches!(result, Err(ReadError::Shrank(5))), "{result:?}");
    }
}
