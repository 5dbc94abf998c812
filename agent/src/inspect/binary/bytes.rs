//! Reading numbers, ranges and strings at offsets that nobody may trust.

use goblin::container::Endian;

/// A file's bytes, or a part of them, and the order of its numbers.
#[derive(Clone, Copy, Debug)]
pub(super) struct Bytes<'a> {
    /// All of them.
    pub(super) data: &'a [u8],
    /// Of its numbers.
    pub(super) endian: Endian,
}

impl<'a> Bytes<'a> {
    /// `length` bytes from `at`; `None` unless all are there.
    pub(super) fn slice(self, at: u64, length: u64) -> Option<&'a [u8]> {
        let end = at.checked_add(length)?;
        self.data.get(usize::try_from(at).ok()?..usize::try_from(end).ok()?)
    }

    /// The bytes from `at`, as many of `length` as are there.
    pub(super) fn up_to(self, at: u64, length: u64) -> &'a [u8] {
        let rest = usize::try_from(at).ok().and_then(|at| self.data.get(at..)).unwrap_or_default();
        usize::try_from(length).ok().and_then(|length| rest.get(..length)).unwrap_or(rest)
    }

    /// The number of 16 bits at `at`.
    pub(super) fn u16(self, at: u64) -> Option<u16> {
        let raw = *self.slice(at, 2)?.first_chunk()?;
        Some(if self.endian.is_little() {
            u16::from_le_bytes(raw)
        } else {
            u16::from_be_bytes(raw)
        })
    }

    /// The number of 32 bits at `at`.
    pub(super) fn u32(self, at: u64) -> Option<u32> {
        let raw = *self.slice(at, 4)?.first_chunk()?;
        Some(if self.endian.is_little() {
            u32::from_le_bytes(raw)
        } else {
            u32::from_be_bytes(raw)
        })
    }

    /// The number of 64 bits at `at`.
    pub(super) fn u64(self, at: u64) -> Option<u64> {
        let raw = *self.slice(at, 8)?.first_chunk()?;
        Some(if self.endian.is_little() {
            u64::from_le_bytes(raw)
        } else {
            u64::from_be_bytes(raw)
        })
    }

    /// The bytes from `at` to the next NUL, to the end, or `limit` of them. `None` behind the end.
    pub(super) fn string(self, at: u64, limit: usize) -> Option<&'a [u8]> {
        let rest = self.data.get(usize::try_from(at).ok()?..).filter(|rest| !rest.is_empty())?;
        let rest = rest.get(..limit).unwrap_or(rest);
        rest.split(|byte| *byte == 0).next()
    }

    /// `length` bytes less what is accounted for up to `end`.
    pub(super) fn behind(self, end: u64) -> u64 {
        (self.data.len() as u64).saturating_sub(end)
    }
}

/// Whether `needle` is anywhere in `hay`.
pub(super) fn contains(hay: &[u8], needle: &[u8]) -> bool {
    hay.windows(needle.len()).any(|window| window == needle)
}
