//! Fields of a structure on disk: numbers, identifiers, text and checksums, each absent where the
//! bytes end before it.

use std::fmt::Write as _;

use cleanroom_contract::printable;

/// Characters of a label or a name that are kept; the longest real one is Btrfs's, 255 bytes.
const TEXT: usize = 256;

/// `N` bytes at `at`.
pub(super) fn array<const N: usize>(bytes: &[u8], at: usize) -> Option<[u8; N]> {
    bytes.get(at..at.checked_add(N)?)?.try_into().ok()
}

/// True where `expected` stands at `at`.
pub(super) fn has(bytes: &[u8], at: usize, expected: &[u8]) -> bool {
    bytes.get(at..).is_some_and(|rest| rest.starts_with(expected))
}

/// One byte.
pub(super) fn byte(bytes: &[u8], at: usize) -> Option<u8> {
    bytes.get(at).copied()
}

/// Little-endian, 16 bits.
pub(super) fn le16(bytes: &[u8], at: usize) -> Option<u16> {
    array(bytes, at).map(u16::from_le_bytes)
}

/// Little-endian, 32 bits.
pub(super) fn le32(bytes: &[u8], at: usize) -> Option<u32> {
    array(bytes, at).map(u32::from_le_bytes)
}

/// Little-endian, 64 bits.
pub(super) fn le64(bytes: &[u8], at: usize) -> Option<u64> {
    array(bytes, at).map(u64::from_le_bytes)
}

/// Big-endian, 16 bits.
pub(super) fn be16(bytes: &[u8], at: usize) -> Option<u16> {
    array(bytes, at).map(u16::from_be_bytes)
}

/// Big-endian, 32 bits.
pub(super) fn be32(bytes: &[u8], at: usize) -> Option<u32> {
    array(bytes, at).map(u32::from_be_bytes)
}

/// Big-endian, 64 bits.
pub(super) fn be64(bytes: &[u8], at: usize) -> Option<u64> {
    array(bytes, at).map(u64::from_be_bytes)
}

/// Sixteen bytes in the text form of RFC 9562, lower case, in the order they are stored; absent where
/// all are zero, which means that there is none.
pub(super) fn uuid(bytes: &[u8], at: usize) -> Option<String> {
    let raw: [u8; 16] = array(bytes, at)?;
    (raw != [0; 16]).then(|| dashed(raw))
}

/// A GUID as UEFI and Windows store it: the first three groups little-endian (UEFI 2.10, appendix A).
pub(super) fn guid(mut raw: [u8; 16]) -> String {
    let [a, b, c, d, e, f, g, h, ..] = raw;
    raw = {
        let mut swapped = raw;
        for (to, from) in swapped.iter_mut().zip([d, c, b, a, f, e, h, g]) {
            *to = from;
        }
        swapped
    };
    dashed(raw)
}

fn dashed(raw: [u8; 16]) -> String {
    let mut text = String::with_capacity(36);
    for (index, byte) in raw.iter().enumerate() {
        if matches!(index, 4 | 6 | 8 | 10) {
            text.push('-');
        }
        let _ = write!(text, "{byte:02x}");
    }
    text
}

/// Text of a fixed field: up to the first NUL, without the padding around it, printable, bounded;
/// absent where nothing is left.
pub(super) fn text(field: &[u8]) -> Option<String> {
    let end = field.iter().position(|b| *b == 0).unwrap_or(field.len());
    let raw: String = String::from_utf8_lossy(field.get(..end)?).chars().take(TEXT).collect();
    Some(printable(raw.trim())).filter(|text| !text.is_empty())
}

/// The same for UTF-16, little-endian.
pub(super) fn text_utf16(field: &[u8]) -> Option<String> {
    let units =
        field.chunks_exact(2).filter_map(|unit| le16(unit, 0)).take_while(|unit| *unit != 0);
    let raw: String = char::decode_utf16(units)
        .map(|c| c.unwrap_or(char::REPLACEMENT_CHARACTER))
        .take(TEXT)
        .collect();
    Some(printable(raw.trim())).filter(|text| !text.is_empty())
}

/// CRC-32 as GPT uses it (UEFI 2.10, section 5.3.2: the polynomial of ISO 3309, reflected).
pub(super) fn crc32(parts: &[&[u8]]) -> u32 {
    const TABLE: [u32; 256] = crc_table();
    let crc = parts.iter().flat_map(|part| part.iter()).fold(u32::MAX, |crc, byte| {
        let [low, ..] = crc.to_le_bytes();
        let entry = TABLE.get(usize::from(low ^ byte)).copied().unwrap_or_default();
        crc >> 8 ^ entry
    });
    !crc
}

#[expect(clippy::cast_possible_truncation, reason = "the index is below 256")]
const fn crc_table() -> [u32; 256] {
    let mut table = [0; 256];
    let mut index = 0;
    while index < table.len() {
        let mut crc = index as u32;
        let mut bit = 0;
        while bit < 8 {
            crc = if crc & 1 == 1 { crc >> 1 ^ 0xedb8_8320 } else { crc >> 1 };
            bit += 1;
        }
        table[index] = crc;
        index += 1;
    }
    table
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_checksum_has_its_published_check_value() {
        assert_eq!(crc32(&[b"123456789"]), 0xcbf4_3926);
        assert_eq!(crc32(&[b"1234", b"", b"56789"]), 0xcbf4_3926);
    }

    #[test]
    fn a_guid_swaps_its_first_three_groups() {
        let stored = *b"\x28\x73\x2a\xc1\x1f\xf8\xd2\x11\xba\x4b\x00\xa0\xc9\x3e\xc9\x3b";
        assert_eq!(guid(stored), "c12a7328-f81f-11d2-ba4b-00a0c93ec93b");
        assert_eq!(uuid(&stored, 0).unwrap(), "28732ac1-1ff8-d211-ba4b-00a0c93ec93b");
        assert_eq!(uuid(&[0; 16], 0), None);
    }

    #[test]
    fn text_ends_at_nul_and_cannot_speak_to_a_terminal() {
        assert_eq!(text(b"root\0junk").as_deref(), Some("root"));
        assert_eq!(text(b"  padded   ").as_deref(), Some("padded"));
        assert_eq!(text(b"a\x1b[2Jb").as_deref(), Some("a\\u{1b}[2Jb"));
        assert_eq!(text(b"\xff\xfe").as_deref(), Some("\u{fffd}\u{fffd}"));
        assert_eq!(text(b"\0\0"), None);
        assert_eq!(text(&[b'x'; 4096]).unwrap().len(), TEXT);
        assert_eq!(text_utf16(b"E\0F\0I\0\0\0x\0").as_deref(), Some("EFI"));
        assert_eq!(text_utf16(b"\0\xd8a\0").as_deref(), Some("\u{fffd}a"));
    }

    #[test]
    fn a_field_past_the_end_is_absent() {
        assert_eq!(le32(&[1, 2, 3], 0), None);
        assert_eq!(le16(&[1, 2, 3], 1), Some(0x0302));
        assert_eq!(le64(&[0; 8], usize::MAX), None);
        assert!(!has(b"abc", 2, b"cd"));
        assert!(!has(b"abc", 9, b""));
    }
}
