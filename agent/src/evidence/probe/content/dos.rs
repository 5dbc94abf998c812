//! File systems with a boot sector in the manner of DOS: FAT, exFAT, NTFS, BitLocker.

use super::Found;
use crate::evidence::probe::{
    field::{byte, has, le16, le32, le64, text},
    layout::{Content, ContentKind},
    source::Region,
};

/// Sector sizes that a boot sector may name.
fn is_sector_size(bytes: u16) -> bool {
    (512..=4096).contains(&bytes) && bytes.is_power_of_two()
}

/// The FAT specification (Microsoft, 2000), sections "BPB" and "Boot Sector".
pub(super) fn vfat(region: &Region<'_>) -> Option<Found> {
    let block = region.get(0, 512)?;
    let (sector, cluster) = (le16(&block, 11)?, byte(&block, 13)?);
    let (reserved, tables, media) = (le16(&block, 14)?, byte(&block, 16)?, byte(&block, 21)?);
    let jump = matches!(*block, [0xeb, _, 0x90, ..] | [0xe9, ..]);
    let sane = is_sector_size(sector)
        && cluster.is_power_of_two()
        && reserved > 0
        && matches!(tables, 1 | 2)
        && (media == 0xf0 || media >= 0xf8);
    // FAT32 has no 16-bit length of its tables, and its extended fields lie 28 bytes later.
    let (kind_at, serial_at, label_at) =
        if le16(&block, 22)? == 0 { (82, 67, 71) } else { (54, 39, 43) };
    let named = has(&block, kind_at, b"FAT");
    if !sane || !(named || jump && has(&block, 510, &[0x55, 0xaa])) {
        return None;
    }
    let mut content = Content::new(ContentKind::Vfat);
    if named {
        let serial = le32(&block, serial_at)?;
        content.uuid = Some(format!("{:04X}-{:04X}", serial >> 16, serial & 0xffff));
        content.label =
            text(block.get(label_at..label_at + 11)?).filter(|label| label != "NO NAME");
    }
    let sectors = match le16(&block, 19)? {
        0 => le32(&block, 32)?,
        short => short.into(),
    };
    content.declared_bytes =
        Some(u64::from(sectors) * u64::from(sector)).filter(|bytes| *bytes > 0);
    Some(content.into())
}

/// The exFAT specification (Microsoft, 2019), section 3.1. The label is in the root directory, and
/// not read.
pub(super) fn exfat(region: &Region<'_>) -> Option<Found> {
    let block = region.get(0, 512)?;
    let scale = byte(&block, 108)?;
    if !has(&block, 3, b"EXFAT   ") || !(9..=12).contains(&scale) {
        return None;
    }
    let serial = le32(&block, 100)?;
    let mut content = Content::new(ContentKind::Exfat);
    content.uuid = Some(format!("{:04X}-{:04X}", serial >> 16, serial & 0xffff));
    content.declared_bytes = le64(&block, 72)?.checked_mul(1 << scale);
    Some(content.into())
}

/// The kernel's `fs/ntfs3/ntfs.h`, `struct NTFS_BOOT`. The label is in `$Volume`, and not read.
pub(super) fn ntfs(region: &Region<'_>) -> Option<Found> {
    let block = region.get(0, 512)?;
    let (sector, cluster) = (le16(&block, 11)?, byte(&block, 13)?);
    // Above 0x80 the byte is the negated logarithm of the cluster's sectors.
    let sane = is_sector_size(sector) && (cluster.is_power_of_two() || cluster > 0x80);
    if !has(&block, 3, b"NTFS    ") || !sane {
        return None;
    }
    let mut content = Content::new(ContentKind::Ntfs);
    content.uuid = Some(format!("{:016X}", le64(&block, 72)?));
    content.declared_bytes = le64(&block, 40)?.checked_mul(sector.into());
    Some(content.into())
}

/// The signatures of libbde's `BitLocker Drive Encryption (BDE) format`: the boot sector's name, or
/// for removable media, whose boot sector is FAT's, the identifier at byte 424.
pub(super) fn bitlocker(region: &Region<'_>) -> Option<Found> {
    const TO_GO: [u8; 16] = [
        0x3b, 0xd6, 0x67, 0x49, 0x29, 0x2e, 0xd8, 0x4a, 0x83, 0x99, 0xf6, 0xa3, 0x39, 0xe3, 0xd0,
        0x01,
    ];
    let block = region.get(0, 512)?;
    (has(&block, 3, b"-FVE-FS-") || has(&block, 424, &TO_GO))
        .then(|| Content::new(ContentKind::Bitlocker).into())
}
