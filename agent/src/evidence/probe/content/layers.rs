//! What holds something else or nothing that can be mounted: swap, LVM, LUKS, software RAID, ZFS.

use cleanroom_contract::GapKind;

use super::Found;
use crate::evidence::probe::{
    field::{array, be16, be32, be64, has, le32, le64, text, uuid},
    layout::{Content, ContentKind, Trouble},
    source::Region,
};

/// Signatures that replace swap's own while a hibernated system's memory lies in it
/// (`kernel/power/swap.c`, and `blkid` for those of other implementations).
const HIBERNATED: [&[u8; 9]; 4] = [b"S1SUSPEND", b"S2SUSPEND", b"ULSUSPEND", b"LINHIB000"];

/// `include/linux/swap.h`, `union swap_header`: the signature ends the first page, whose size is the
/// writing machine's.
pub(super) fn swap(region: &Region<'_>) -> Option<Found> {
    for page in [4096_u32, 8192, 16_384, 32_768, 65_536] {
        let Some(end) = region.get(u64::from(page) - 10, 10) else { break };
        let hibernated = HIBERNATED.iter().any(|signature| end.starts_with(*signature));
        if !hibernated && *end != *b"SWAPSPACE2" && *end != *b"SWAP-SPACE" {
            continue;
        }
        let header = region.get(1024, 44)?;
        let mut content = Content::new(ContentKind::Swap);
        if *end != *b"SWAP-SPACE" {
            content.uuid = uuid(&header, 12);
            content.label = text(header.get(28..44)?);
            content.declared_bytes = Some((u64::from(le32(&header, 4)?) + 1) * u64::from(page));
        }
        let mut found = Found::from(content);
        if hibernated {
            found.notes.push(Trouble::new(
                GapKind::Unmounted,
                "the swap space holds the memory of a hibernated system",
                "keep it: memory forensics on it may show what ran and what was decrypted",
            ));
        }
        return Some(found);
    }
    None
}

/// LVM2's `lib/format_text/layout.h` and `lib/label/label.h`: a label in one of the first four
/// sectors, and in it the offset of the physical volume's header.
pub(super) fn lvm(region: &Region<'_>) -> Option<Found> {
    for sector in 0..4 {
        let Some(label) = region.get(sector * 512, 512) else { break };
        if !has(&label, 0, b"LABELONE") || !has(&label, 24, b"LVM2 001") {
            continue;
        }
        let mut content = Content::new(ContentKind::Lvm);
        let header = usize::try_from(le32(&label, 20)?).ok().and_then(|at| label.get(at..));
        if let Some((id, size)) = header.and_then(|h| Some((array::<32>(h, 0)?, le64(h, 32)?))) {
            content.uuid = volume_id(&id);
            content.declared_bytes = Some(size);
        }
        return Some(content.into());
    }
    None
}

/// LVM's grouping of its 32 characters: 6-4-4-4-4-4-6.
fn volume_id(id: &[u8; 32]) -> Option<String> {
    let id =
        std::str::from_utf8(id).ok().filter(|id| id.bytes().all(|b| b.is_ascii_alphanumeric()))?;
    let groups = [0..6, 6..10, 10..14, 14..18, 18..22, 22..26, 26..32];
    let groups: Option<Vec<&str>> = groups.into_iter().map(|group| id.get(group)).collect();
    groups.map(|groups| groups.join("-"))
}

/// The LUKS1 and LUKS2 on-disk format specifications: both begin alike.
pub(super) fn luks(region: &Region<'_>) -> Option<Found> {
    let header = region.get(0, 208)?;
    let version = be16(&header, 6)?;
    if !has(&header, 0, b"LUKS\xba\xbe") || !matches!(version, 1 | 2) {
        return None;
    }
    let mut content = Content::new(ContentKind::Luks);
    content.uuid = text(header.get(168..208)?);
    if version == 2 {
        content.label = text(header.get(24..72)?);
    }
    Some(content.into())
}

/// What a RAID's level says about one member.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Level {
    /// Each member holds everything.
    Mirror,
    /// It does not.
    Other,
}

/// The magic of both versions, `include/uapi/linux/raid/md_p.h`.
const MD: u32 = 0xa92b_4efc;

/// RAID superblocks of version 1.1 (at 0) and 1.2 (at 4 KiB).
pub(super) fn md_at_start(region: &Region<'_>) -> Option<Found> {
    [0, 4096].into_iter().find_map(|at| md_one(region, at)).map(|(found, _)| found)
}

/// RAID superblocks of version 1.0 (8 KiB before the end, aligned to 4 KiB) and 0.90 (in the last
/// whole 64 KiB).
pub(super) fn md_at_end(region: &Region<'_>) -> Option<(Found, Level)> {
    let length = region.length();
    let one = (length / 512).checked_sub(16).map(|sector| (sector & !7) * 512);
    let zero = (length & !0xffff).checked_sub(0x1_0000);
    one.and_then(|at| md_one(region, at)).or_else(|| md_zero(region, zero?))
}

/// `struct mdp_superblock_1`, always little-endian; it names its own place.
fn md_one(region: &Region<'_>, at: u64) -> Option<(Found, Level)> {
    let block = region.get(at, 256)?;
    let own_place = le64(&block, 144)?.checked_mul(512);
    if le32(&block, 0)? != MD || le32(&block, 4)? != 1 || own_place != Some(at) {
        return None;
    }
    let mut content = Content::new(ContentKind::Md);
    content.uuid = uuid(&block, 16);
    content.label = text(block.get(32..64)?);
    let level = if le32(&block, 72)? == 1 { Level::Mirror } else { Level::Other };
    Some((content.into(), level))
}

/// `struct mdp_superblock_s`, in the byte order of the machine that wrote it.
fn md_zero(region: &Region<'_>, at: u64) -> Option<(Found, Level)> {
    let block = region.get(at, 256)?;
    let word = if le32(&block, 0)? == MD { le32 } else { be32 };
    if word(&block, 0)? != MD || word(&block, 4)? != 0 {
        return None;
    }
    let level = if word(&block, 28)? == 1 { Level::Mirror } else { Level::Other };
    Some((Content::new(ContentKind::Md).into(), level))
}

/// OpenZFS' `include/sys/uberblock_impl.h` and `vdev_impl.h`: the first label's uberblocks are at 128
/// KiB, one in each KiB at the closest.
pub(super) fn zfs(region: &Region<'_>) -> Option<Found> {
    const MAGIC: u64 = 0x00ba_b10c;
    let ring = region.get(128 << 10, 128 << 10)?;
    ring.chunks_exact(1024)
        .any(|block| le64(block, 0) == Some(MAGIC) || be64(block, 0) == Some(MAGIC))
        .then(|| Content::new(ContentKind::Zfs).into())
}
