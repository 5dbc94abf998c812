//! File systems that Linux writes: ext2, ext3, ext4, XFS, Btrfs, F2FS.

use cleanroom_contract::GapKind;

use super::Found;
use crate::evidence::probe::{
    field::{be16, be32, be64, byte, has, le16, le32, le64, text, text_utf16, uuid},
    layout::{Content, ContentKind, Trouble, Unreplayed},
    source::Region,
};

/// The kernel's `Documentation/filesystems/ext4/super.rst`. Kinds are told apart by features, as
/// `blkid` does.
pub(super) fn ext(region: &Region<'_>) -> Option<Found> {
    const HAS_JOURNAL: u32 = 0x4;
    const RECOVER: u32 = 0x4;
    const JOURNAL_DEVICE: u32 = 0x8;
    const WIDE: u32 = 0x80;
    /// filetype, recover, meta_bg; sparse_super, large_file, btree_dir.
    const EXT3: (u32, u32) = (0x2 | RECOVER | 0x10, 0x7);

    let block = region.get(1024, 1024)?;
    let (inodes, blocks, scale) = (le32(&block, 0)?, le32(&block, 4)?, le32(&block, 0x18)?);
    let (compatible, incompatible) = (le32(&block, 0x5c)?, le32(&block, 0x60)?);
    let read_only = le32(&block, 0x64)?;
    // 16 bits of magic are few; a block size that exists is asked for beside them.
    if le16(&block, 0x38)? != 0xef53 || scale > 6 || blocks == 0 && incompatible & WIDE == 0 {
        return None;
    }
    let kind = if incompatible & JOURNAL_DEVICE != 0 {
        ContentKind::Jbd
    } else if inodes == 0 {
        return None;
    } else if incompatible & !EXT3.0 != 0 || read_only & !EXT3.1 != 0 {
        ContentKind::Ext4
    } else if compatible & HAS_JOURNAL != 0 {
        ContentKind::Ext3
    } else {
        ContentKind::Ext2
    };
    let high = if incompatible & WIDE != 0 { le32(&block, 0x150)? } else { 0 };
    let mut content = Content::new(kind);
    content.uuid = uuid(&block, 0x68);
    content.label = text(block.get(0x78..0x88)?);
    content.declared_bytes = (u64::from(high) << 32 | u64::from(blocks)).checked_mul(1024 << scale);
    if incompatible & RECOVER != 0 {
        let reason =
            "the superblock asks for recovery (needs_recovery): it was in use, or not unmounted";
        content.unreplayed = Some(Unreplayed { reason: reason.to_owned() });
    }
    Some(content.into())
}

/// `fs/xfs/libxfs/xfs_format.h`, `struct xfs_dsb`. Whether the log is dirty is not in the superblock.
pub(super) fn xfs(region: &Region<'_>) -> Option<Found> {
    let block = region.get(0, 512)?;
    let (block_size, sector_size) = (be32(&block, 4)?, be16(&block, 102)?);
    let sane = (512..=65_536).contains(&block_size)
        && block_size.is_power_of_two()
        && (512..=32_768).contains(&sector_size)
        && sector_size.is_power_of_two();
    if !has(&block, 0, b"XFSB") || !sane {
        return None;
    }
    let mut content = Content::new(ContentKind::Xfs);
    content.uuid = uuid(&block, 32);
    content.label = text(block.get(108..120)?);
    content.declared_bytes = be64(&block, 8)?.checked_mul(block_size.into());
    Some(content.into())
}

/// Btrfs' `On-disk Format` page: the superblock is at 64 KiB, its device item at 0xc9.
pub(super) fn btrfs(region: &Region<'_>) -> Option<Found> {
    let block = region.get(0x1_0000, 4096)?;
    if !has(&block, 0x40, b"_BHRfS_M") || le64(&block, 0x30)? != 0x1_0000 {
        return None;
    }
    let mut content = Content::new(ContentKind::Btrfs);
    content.uuid = uuid(&block, 0x20);
    content.label = text(block.get(0x12b..0x22b)?);
    // The device item's total, not the file system's, which may span several devices.
    content.declared_bytes = Some(le64(&block, 0xc9 + 8)?);
    if le64(&block, 0x60)? != 0 {
        let reason = "the superblock points to a log tree (log_root): writes after the last commit";
        content.unreplayed = Some(Unreplayed { reason: reason.to_owned() });
    }
    let mut found = Found::from(content);
    let devices = le64(&block, 0x88)?;
    if devices > 1 {
        found.notes.push(Trouble::new(
            GapKind::Unmounted,
            format!("a Btrfs file system over {devices} devices, of which this is one"),
            "on copies of all devices run btrfs device scan, mount one read-only, and scan it as a folder",
        ));
    }
    Some(found)
}

/// `include/linux/f2fs_fs.h`, `struct f2fs_super_block`.
pub(super) fn f2fs(region: &Region<'_>) -> Option<Found> {
    let block = region.get(1024, 3072)?;
    let scale = le32(&block, 16)?;
    if le32(&block, 0)? != 0xf2f5_2010 || !(9..=16).contains(&scale) || byte(&block, 4)? == 0 {
        return None;
    }
    let mut content = Content::new(ContentKind::F2fs);
    content.uuid = uuid(&block, 108);
    content.label = text_utf16(block.get(124..124 + 1024)?);
    content.declared_bytes = le64(&block, 36)?.checked_mul(1 << scale);
    Some(content.into())
}
