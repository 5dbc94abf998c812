//! File systems that are written once: ISO 9660, UDF, Squashfs, EROFS.

use super::Found;
use crate::evidence::probe::{
    field::{byte, has, le16, le32, le64, text, uuid},
    layout::{Content, ContentKind},
    source::Region,
};

/// Where the volume descriptors begin, and how far each is from the next (ECMA-119, section 6.2.1).
const DESCRIPTORS: u64 = 32_768;
const DESCRIPTOR: usize = 2048;

/// Descriptors that are looked at; they end well before the read-ahead of the region does.
const LOOKED_AT: u64 = 16;

/// ISO 9660 (ECMA-119), else UDF (ECMA-167, part 2, section 8.3.1) where it stands alone. A disc with
/// both is taken for ISO 9660: the two name the same files.
pub(super) fn optical(region: &Region<'_>) -> Option<Found> {
    let mut extended = false;
    for index in 0..LOOKED_AT {
        let Some(block) = region.get(DESCRIPTORS + index * DESCRIPTOR as u64, DESCRIPTOR) else {
            break;
        };
        if has(&block, 1, b"CD001") {
            // Types 0 and 2 (boot record, supplementary) may come before the primary one, 255 ends.
            match byte(&block, 0)? {
                1 => return iso9660(&block),
                255 => break,
                _ => {}
            }
        } else if has(&block, 1, b"BEA01") {
            extended = true;
        } else if extended && (has(&block, 1, b"NSR02") || has(&block, 1, b"NSR03")) {
            return Some(Content::new(ContentKind::Udf).into());
        } else if !extended {
            break;
        }
    }
    None
}

/// The primary volume descriptor (ECMA-119, section 8.4).
fn iso9660(block: &[u8]) -> Option<Found> {
    let mut content = Content::new(ContentKind::Iso9660);
    content.label = text(block.get(40..72)?);
    content.declared_bytes = Some(u64::from(le32(block, 80)?) * u64::from(le16(block, 128)?));
    content.uuid = date(block.get(830..846)?).or_else(|| date(block.get(813..829)?));
    Some(content.into())
}

/// Sixteen digits of a date (ECMA-119, section 8.4.26.1), written as `blkid` does; absent where unset.
fn date(digits: &[u8]) -> Option<String> {
    let digits = std::str::from_utf8(digits).ok()?;
    let set = digits.bytes().all(|b| b.is_ascii_digit()) && digits.bytes().any(|b| b != b'0');
    let parts = [0..4, 4..6, 6..8, 8..10, 10..12, 12..14, 14..16];
    let parts: Option<Vec<&str>> = parts.into_iter().map(|part| digits.get(part)).collect();
    parts.filter(|_| set).map(|parts| parts.join("-"))
}

/// The kernel's `fs/squashfs/squashfs_fs.h`, `struct squashfs_super_block`.
pub(super) fn squashfs(region: &Region<'_>) -> Option<Found> {
    let block = region.get(0, 96)?;
    if !has(&block, 0, b"hsqs") || le16(&block, 28)? != 4 {
        return None;
    }
    let mut content = Content::new(ContentKind::Squashfs);
    content.declared_bytes = Some(le64(&block, 40)?);
    Some(content.into())
}

/// The kernel's `fs/erofs/erofs_fs.h`, `struct erofs_super_block`.
pub(super) fn erofs(region: &Region<'_>) -> Option<Found> {
    let block = region.get(1024, 128)?;
    let scale = byte(&block, 12)?;
    if le32(&block, 0)? != 0xe0f5_e1e2 || !(9..=16).contains(&scale) {
        return None;
    }
    let mut content = Content::new(ContentKind::Erofs);
    content.uuid = uuid(&block, 48);
    content.label = text(block.get(64..80)?);
    content.declared_bytes = u64::from(le32(&block, 36)?).checked_mul(1 << scale);
    Some(content.into())
}
