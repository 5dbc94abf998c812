//! Each family by its signature, built by hand from its format.

use super::*;
use crate::evidence::probe::{Content, ContentKind};

/// Bytes of the image that a signature is planted into.
const SIZE: usize = 512 << 10;

/// Plants pieces into zeros and answers with what the whole is taken for.
fn planted(pieces: &[(usize, &[u8])]) -> Content {
    let mut image = vec![0; SIZE];
    for (at, bytes) in pieces {
        put(&mut image, *at, bytes);
    }
    look(&image).volumes.remove(0).content
}

#[track_caller]
fn assert_kind(pieces: &[(usize, &[u8])], kind: ContentKind) -> Content {
    let content = planted(pieces);
    assert_eq!(content.kind, kind);
    content
}

fn known(content: &Content) -> (Option<&str>, Option<&str>, Option<u64>) {
    (content.uuid.as_deref(), content.label.as_deref(), content.declared_bytes)
}

#[test]
fn ext_is_told_apart_by_its_features() {
    let ext = |compatible: u32, incompatible: u32, read_only: u32| {
        let mut block = vec![0; 1024];
        put(&mut block, 0, &64_u32.to_le_bytes());
        put(&mut block, 4, &128_u32.to_le_bytes());
        put(&mut block, 0x18, &2_u32.to_le_bytes());
        put(&mut block, 0x38, &[0x53, 0xef]);
        for (at, features) in [(0x5c, compatible), (0x60, incompatible), (0x64, read_only)] {
            put(&mut block, at, &features.to_le_bytes());
        }
        put(&mut block, 0x68, &UUID);
        put(&mut block, 0x78, b"cloudimg-rootfs!");
        block
    };
    for (compatible, incompatible, read_only, kind, dirty) in [
        (0x38, 0x2, 0x3, ContentKind::Ext2, false),
        (0x3c, 0x2, 0x3, ContentKind::Ext3, false),
        (0x3c, 0x6, 0x3, ContentKind::Ext3, true),
        (0x3c, 0x2c2, 0x46b, ContentKind::Ext4, false),
        (0x3c, 0x42, 0x3, ContentKind::Ext4, false),
        (0x3c, 0x2, 0x8, ContentKind::Ext4, false),
        (0x3c, 0x46, 0x3, ContentKind::Ext4, true),
        (0, 0x8, 0, ContentKind::Jbd, false),
    ] {
        let content = assert_kind(&[(1024, &ext(compatible, incompatible, read_only))], kind);
        assert_eq!(known(&content), (Some(UUID_TEXT), Some("cloudimg-rootfs!"), Some(SIZE as u64)));
        assert_eq!(content.unreplayed.is_some(), dirty, "{kind:?}");
        assert!(!content.truncated);
    }
    // Magic alone is not enough, nor is a block size that does not exist.
    assert_kind(&[(1024 + 0x38, &[0x53, 0xef])], ContentKind::Unknown);
    let mut block = ext(0, 0, 0);
    block[0x18] = 7;
    assert_kind(&[(1024, &block)], ContentKind::Unknown);
    // 64 bits of block count, more than is there.
    let mut block = ext(0, 0xc0, 0);
    block[0x150] = 1;
    let content = assert_kind(&[(1024, &block)], ContentKind::Ext4);
    assert_eq!((content.declared_bytes, content.truncated), (Some(((1 << 32) + 128) * 4096), true));
}

#[test]
fn xfs_is_recognised() {
    let sane: [(usize, &[u8]); 6] = [
        (0, b"XFSB\0\0\x10\0"),
        (8, &128_u64.to_be_bytes()),
        (32, &UUID),
        (102, &[2, 0]),
        (108, b"root\0"),
        (512, b"XAGF"),
    ];
    let content = assert_kind(&sane, ContentKind::Xfs);
    assert_eq!(known(&content), (Some(UUID_TEXT), Some("root"), Some(524_288)));
    assert_eq!(content.unreplayed, None);
    assert_kind(&[(0, b"XFSB\0\0\x10\x01"), (102, &[2, 0])], ContentKind::Unknown);
}

#[test]
fn btrfs_is_recognised_with_its_log_and_its_devices() {
    let base: [(usize, &[u8]); 6] = [
        (0x1_0020, &UUID),
        (0x1_0032, &[1]),
        (0x1_0040, b"_BHRfS_M"),
        (0x1_0088, &[1]),
        (0x1_00d1, &(SIZE as u64).to_le_bytes()),
        (0x1_012b, b"fedora\0"),
    ];
    let content = assert_kind(&base, ContentKind::Btrfs);
    assert_eq!(known(&content), (Some(UUID_TEXT), Some("fedora"), Some(524_288)));
    assert_eq!(content.unreplayed, None);
    let mut dirty = base.to_vec();
    dirty.push((0x1_0060, &[0, 0, 1]));
    assert!(assert_kind(&dirty, ContentKind::Btrfs).unreplayed.is_some());

    let mut image = vec![0; SIZE];
    base.iter().for_each(|(at, bytes)| put(&mut image, *at, bytes));
    image[0x1_0088] = 3;
    let layout = look(&image);
    assert!(reasons(&layout, GapKind::Unmounted)[0].1.contains("over 3 devices"));
}

/// The fields that FAT12, FAT16 and FAT32 share: 512 bytes a sector, 4 sectors a cluster.
const BPB: &[u8] = b"\xeb\x3c\x90mkfs.fat\x00\x02\x04\x01\x00\x02\x00\x02\x00\x04\xf8";

#[test]
fn the_boot_sectors_of_dos_are_told_apart() {
    let fat16: [(usize, &[u8]); 4] =
        [(0, BPB), (22, &[8, 0]), (39, &[0x78, 0x56, 0x34, 0x12]), (43, b"EFI        FAT16   ")];
    let content = assert_kind(&fat16, ContentKind::Vfat);
    assert_eq!(known(&content), (Some("1234-5678"), Some("EFI"), Some(1024 * 512)));
    let fat32: [(usize, &[u8]); 5] = [
        (0, BPB),
        (19, &[0, 0]),
        (32, &512_u32.to_le_bytes()),
        (67, &[0x78, 0x56, 0x34, 0x12]),
        (71, b"NO NAME    FAT32   "),
    ];
    assert_eq!(
        known(&assert_kind(&fat32, ContentKind::Vfat)),
        (Some("1234-5678"), None, Some(512 * 512))
    );
    // Without its name it needs both the jump and the end of a boot sector.
    assert_kind(&[(0, BPB)], ContentKind::Unknown);
    assert_kind(&[(0, BPB), (510, &[0x55, 0xaa])], ContentKind::Vfat);

    let exfat: [(usize, &[u8]); 4] = [
        (3, b"EXFAT   "),
        (72, &1024_u64.to_le_bytes()),
        (100, &[0x78, 0x56, 0x34, 0x12]),
        (108, &[9]),
    ];
    assert_eq!(
        known(&assert_kind(&exfat, ContentKind::Exfat)),
        (Some("1234-5678"), None, Some(524_288))
    );

    let ntfs: [(usize, &[u8]); 4] = [
        (3, b"NTFS    \0\x02\x08"),
        (40, &1023_u64.to_le_bytes()),
        (72, &[0x11; 8]),
        (510, &[0x55, 0xaa]),
    ];
    let content = assert_kind(&ntfs, ContentKind::Ntfs);
    assert_eq!(known(&content), (Some("1111111111111111"), None, Some(1023 * 512)));

    assert_kind(&[(3, b"-FVE-FS-\0\x02\x08")], ContentKind::Bitlocker);
    let to_go = b"\x3b\xd6\x67\x49\x29\x2e\xd8\x4a\x83\x99\xf6\xa3\x39\xe3\xd0\x01";
    let layout = [(0, BPB), (43, b"NO NAME    FAT32   "), (424, &to_go[..])];
    assert_kind(&layout, ContentKind::Bitlocker);
}

#[test]
fn file_systems_that_are_written_once_are_recognised() {
    let iso: [(usize, &[u8]); 6] = [
        (32_768, b"\0CD001"),
        (34_816, b"\x01CD001\x01\0"),
        (34_856, b"Debian 12 n          "),
        (34_896, &200_u32.to_le_bytes()),
        (34_944, &2048_u16.to_le_bytes()),
        (34_816 + 830, b"2023061013592800"),
    ];
    let content = assert_kind(&iso, ContentKind::Iso9660);
    assert_eq!(
        known(&content),
        (Some("2023-06-10-13-59-28-00"), Some("Debian 12 n"), Some(409_600))
    );
    assert_kind(&[(32_769, b"BEA01"), (34_817, b"NSR03"), (36_865, b"TEA01")], ContentKind::Udf);
    assert_kind(&[(32_769, b"BEA01"), (34_817, b"TEA01")], ContentKind::Unknown);

    let squashfs: [(usize, &[u8]); 3] =
        [(0, b"hsqs"), (28, &[4, 0]), (40, &9000_u64.to_le_bytes())];
    assert_eq!(known(&assert_kind(&squashfs, ContentKind::Squashfs)).2, Some(9000));

    let erofs: [(usize, &[u8]); 5] = [
        (1024, b"\xe2\xe1\xf5\xe0"),
        (1036, &[12]),
        (1060, &9_u32.to_le_bytes()),
        (1072, &UUID),
        (1088, b"sys"),
    ];
    assert_eq!(
        known(&assert_kind(&erofs, ContentKind::Erofs)),
        (Some(UUID_TEXT), Some("sys"), Some(36_864))
    );

    let f2fs: [(usize, &[u8]); 5] = [
        (1024, b"\x10\x20\xf5\xf2\x01"),
        (1040, &[12]),
        (1060, &64_u64.to_le_bytes()),
        (1132, &UUID),
        (1148, b"a\0b\0"),
    ];
    assert_eq!(
        known(&assert_kind(&f2fs, ContentKind::F2fs)),
        (Some(UUID_TEXT), Some("ab"), Some(262_144))
    );
}

#[test]
fn swap_is_recognised_for_every_page_size() {
    for page in [4096_usize, 8192, 16_384, 32_768, 65_536] {
        let swap: [(usize, &[u8]); 4] = [
            (1024, b"\x01\0\0\0\x07"),
            (1036, &UUID),
            (1052, b"swap0"),
            (page - 10, b"SWAPSPACE2"),
        ];
        let content = assert_kind(&swap, ContentKind::Swap);
        assert_eq!(known(&content), (Some(UUID_TEXT), Some("swap0"), Some(8 * page as u64)));
    }
    let mut image = vec![0; SIZE];
    put(&mut image, 4086, b"S1SUSPEND\0");
    assert!(reasons(&look(&image), GapKind::Unmounted)[0].1.contains("hibernated"));
}

#[test]
fn containers_are_recognised() {
    for sector in 0..4 {
        let at = sector * 512;
        let lvm: [(usize, &[u8]); 4] = [
            (at, b"LABELONE"),
            (at + 20, b"\x20\0\0\0LVM2 001"),
            (at + 32, b"0123456789abcdefghijABCDEFGHIJ01"),
            (at + 64, &(SIZE as u64).to_le_bytes()),
        ];
        let content = assert_kind(&lvm, ContentKind::Lvm);
        assert_eq!(
            known(&content),
            (Some("012345-6789-abcd-efgh-ijAB-CDEF-GHIJ01"), None, Some(524_288))
        );
    }
    for version in [1, 2] {
        let luks: [(usize, &[u8]); 4] =
            [(0, b"LUKS\xba\xbe\0"), (7, &[version]), (24, b"aes"), (168, UUID_TEXT.as_bytes())];
        let content = assert_kind(&luks, ContentKind::Luks);
        assert_eq!(known(&content), (Some(UUID_TEXT), (version == 2).then_some("aes"), None));
    }
    assert_kind(&[(0, b"LUKS\xba\xbe\0\x03")], ContentKind::Unknown);
    assert_kind(&[((128 + 60) << 10, b"\x0c\xb1\xba\0\0\0\0\0")], ContentKind::Zfs);
    assert_kind(&[((128 + 60) << 10, b"\0\0\0\0\0\xba\xb1\x0c")], ContentKind::Zfs);
}

#[test]
fn raid_members_are_recognised_wherever_the_superblock_is() {
    for at in [0, 4096, SIZE - 8192] {
        let place = (at as u64 / 512).to_le_bytes();
        let md: [(usize, &[u8]); 4] = [
            (at, b"\xfc\x4e\x2b\xa9\x01"),
            (at + 16, &UUID),
            (at + 32, b"host:0"),
            (at + 144, &place),
        ];
        assert_eq!(
            known(&assert_kind(&md, ContentKind::Md)),
            (Some(UUID_TEXT), Some("host:0"), None)
        );
    }
    // Its own place is part of it: a copy elsewhere is not a superblock.
    assert_kind(&[(4096, b"\xfc\x4e\x2b\xa9\x01")], ContentKind::Unknown);
    for magic in [b"\xfc\x4e\x2b\xa9", b"\xa9\x2b\x4e\xfc"] {
        assert_kind(&[(SIZE - 65_536, magic)], ContentKind::Md);
    }
}

#[test]
fn a_mirrors_member_is_what_it_mirrors_and_a_stripes_is_not() {
    for (level, kind) in [(1, ContentKind::Ext2), (5, ContentKind::Md)] {
        let mut image = vec![0; SIZE];
        plant_ext2(&mut image, 0, 100);
        put(&mut image, SIZE - 65_536, b"\xfc\x4e\x2b\xa9");
        image[SIZE - 65_536 + 28] = level;
        assert_eq!(look(&image).volumes[0].content.kind, kind, "level {level}");
    }
}

#[test]
fn a_second_signature_is_told() {
    let mut image = vec![0; SIZE];
    plant_ext2(&mut image, 0, 100);
    put(&mut image, 4086, b"SWAPSPACE2");
    let layout = look(&image);
    assert_eq!(layout.volumes[0].content.kind, ContentKind::Ext2);
    assert!(reasons(&layout, GapKind::Unmounted)[0].1.contains("signature of swap"));
}

#[test]
fn what_cannot_be_mounted_has_advice() {
    use ContentKind as K;
    let mountable = [
        K::Ext2,
        K::Ext3,
        K::Ext4,
        K::Xfs,
        K::Btrfs,
        K::Vfat,
        K::Exfat,
        K::Ntfs,
        K::Iso9660,
        K::Squashfs,
        K::Udf,
        K::F2fs,
        K::Erofs,
    ];
    let others =
        [K::Jbd, K::Swap, K::Lvm, K::Luks, K::Md, K::Zfs, K::Bitlocker, K::Unknown, K::Empty];
    for kind in mountable {
        assert!(kind.mount_type().is_some() && kind.advice().is_none(), "{kind:?}");
    }
    for kind in others {
        assert!(kind.mount_type().is_none() && kind.advice().is_some(), "{kind:?}");
    }
}
