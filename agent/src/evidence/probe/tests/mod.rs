//! Tests of the whole probe: images built by hand, images made by the real tools, hostile bytes.

mod hostile;
mod real;
mod signatures;
mod tables;

use std::{cell::Cell, io};

use cleanroom_contract::GapKind;

use super::{Layout, ReadAt, field::crc32, probe, table::PARTS};

/// A UUID as most file systems store it, and its text.
const UUID: [u8; 16] = *b"\x01\x23\x45\x67\x89\xab\xcd\xef\x01\x23\x45\x67\x89\xab\xcd\xef";
const UUID_TEXT: &str = "01234567-89ab-cdef-0123-456789abcdef";

/// The GPT type of Linux data, as stored.
const LINUX: [u8; 16] = *b"\xaf\x3d\xc6\x0f\x83\x84\x72\x47\x8e\x79\x3d\x69\xd8\x47\x7d\xe4";

fn put(image: &mut [u8], at: usize, bytes: &[u8]) {
    image[at..at + bytes.len()].copy_from_slice(bytes);
}

fn look(image: &[u8]) -> Layout {
    let layout = probe(&image).unwrap();
    check(&layout, image.len() as u64);
    layout
}

/// What holds for every layout, whatever the evidence.
fn check(layout: &Layout, size: u64) {
    for part in &layout.volumes {
        assert!(part.length > 0, "{part:?}");
        assert!(part.offset.checked_add(part.length).is_some_and(|end| end <= size), "{part:?}");
    }
    assert!(layout.volumes.len() <= PARTS + 1);
    // Each kind of gap is listed up to a number.
    assert!(layout.troubles.len() <= 400, "{} troubles", layout.troubles.len());
    for trouble in &layout.troubles {
        assert!(!trouble.reason.chars().any(char::is_control), "{trouble:?}");
        assert!(trouble.reason.len() < 2000, "{trouble:?}");
    }
    let bytes = rmp_serde::to_vec_named(layout).unwrap();
    assert_eq!(&rmp_serde::from_slice::<Layout>(&bytes).unwrap(), layout);
}

/// `number kind offset length` of each volume.
fn listing(layout: &Layout) -> Vec<(u32, &'static str, u64, u64)> {
    layout.volumes.iter().map(|p| (p.number, p.content.kind.as_str(), p.offset, p.length)).collect()
}

/// Numbers and reasons of the troubles of one kind.
fn reasons(layout: &Layout, kind: GapKind) -> Vec<(Option<u32>, &str)> {
    let of_kind = layout.troubles.iter().filter(|trouble| trouble.kind == kind);
    of_kind.map(|trouble| (trouble.number, trouble.reason.as_str())).collect()
}

/// Plants an ext2 superblock of as many KiB at `at`.
fn plant_ext2(image: &mut [u8], at: usize, kib: u32) {
    put(image, at + 1024, &16_u32.to_le_bytes());
    put(image, at + 1024 + 4, &kib.to_le_bytes());
    put(image, at + 1024 + 0x38, &[0x53, 0xef]);
    put(image, at + 1024 + 0x68, &UUID);
    put(image, at + 1024 + 0x78, b"data");
}

/// Writes entry `slot` (0 to 3) of a boot record at `at`, and its signature.
fn plant_slot(image: &mut [u8], at: usize, slot: usize, (kind, start, count): (u8, u32, u32)) {
    let entry = at + 446 + 16 * slot;
    image[entry + 4] = kind;
    put(image, entry + 8, &start.to_le_bytes());
    put(image, entry + 12, &count.to_le_bytes());
    put(image, at + 510, &[0x55, 0xaa]);
}

/// A disk with a GPT: 128 entries at sector 2 and before the last sector.
struct Gpt {
    sector: usize,
    image: Vec<u8>,
}

impl Gpt {
    /// `parts` are first and last sectors.
    fn new(sector: usize, sectors: usize, parts: &[(u64, u64)]) -> Self {
        let mut disk = Self { sector, image: vec![0; sector * sectors] };
        plant_slot(&mut disk.image, 0, 0, (0xee, 1, u32::MAX));
        let last = sectors as u64 - 1;
        let array = 16_384 / sector as u64;
        for (lba, alternate, entries) in [(1, last, 2), (last, 1, last - array)] {
            let at = disk.at(lba);
            put(&mut disk.image, at, b"EFI PART\0\0\x01\0\x5c\0\0\0");
            for (offset, value) in
                [(24, lba), (32, alternate), (40, 2 + array), (48, last - array - 1), (72, entries)]
            {
                put(&mut disk.image, at + offset, &value.to_le_bytes());
            }
            put(&mut disk.image, at + 80, &128_u32.to_le_bytes());
            put(&mut disk.image, at + 84, &128_u32.to_le_bytes());
            for (index, (first, last)) in parts.iter().enumerate() {
                let at = disk.at(entries) + index * 128;
                put(&mut disk.image, at, &LINUX);
                put(&mut disk.image, at + 32, &first.to_le_bytes());
                put(&mut disk.image, at + 40, &last.to_le_bytes());
                put(&mut disk.image, at + 56, b"r\0o\0o\0t\0");
            }
        }
        disk.seal();
        disk
    }

    fn at(&self, lba: u64) -> usize {
        usize::try_from(lba).unwrap() * self.sector
    }

    fn last(&self) -> u64 {
        (self.image.len() / self.sector) as u64 - 1
    }

    /// Makes all checksums right again.
    fn seal(&mut self) {
        for lba in [1, self.last()] {
            let at = self.at(lba);
            let field = |offset: usize| {
                u32::from_le_bytes(self.image[at + offset..at + offset + 4].try_into().unwrap())
            };
            let bytes = field(80) as usize * field(84) as usize;
            let entries = self.at(field(72).into());
            if let Some(array) = self.image.get(entries..entries.saturating_add(bytes)) {
                let sum = crc32(&[array]).to_le_bytes();
                put(&mut self.image, at + 88, &sum);
            }
            put(&mut self.image, at + 16, &[0; 4]);
            let sum = crc32(&[&self.image[at..at + 92]]).to_le_bytes();
            put(&mut self.image, at + 16, &sum);
        }
    }

    /// Damages the header at a sector so that its checksum is wrong.
    fn damage(&mut self, lba: u64) {
        let at = self.at(lba);
        self.image[at + 57] ^= 0xff;
    }
}

/// Evidence of any claimed size with bytes at its start, zeros after; counts what is read, and fails
/// where told to.
struct Pretended<'a> {
    size: u64,
    start: &'a [u8],
    broken: std::ops::Range<u64>,
    read: Cell<u64>,
}

impl<'a> Pretended<'a> {
    fn new(size: u64, start: &'a [u8]) -> Self {
        Self { size, start, broken: 0..0, read: Cell::new(0) }
    }
}

impl ReadAt for Pretended<'_> {
    fn size(&self) -> u64 {
        self.size
    }

    fn read_at(&self, offset: u64, buf: &mut [u8]) -> io::Result<usize> {
        let end = offset + buf.len() as u64;
        if offset < self.broken.end && end > self.broken.start {
            return Err(io::Error::other("bad sector"));
        }
        assert!(end <= self.size, "read past the end");
        self.read.set(self.read.get() + buf.len() as u64);
        buf.fill(0);
        self.start.read_at(offset, buf)?;
        Ok(buf.len())
    }
}
