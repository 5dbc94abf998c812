//! Partition tables: good ones, damaged ones, hostile ones.

use super::*;
use crate::evidence::probe::{EvidenceFile, TableKind};

/// A good disk: two partitions, an ext2 file system in the first.
fn good_gpt(sector: usize) -> Gpt {
    let mut disk = Gpt::new(sector, 256, &[(40, 99), (100, 199)]);
    let kib = u32::try_from(60 * sector / 1024).unwrap();
    plant_ext2(&mut disk.image, 40 * sector, kib);
    disk
}

#[test]
fn a_gpt_is_read_with_both_sector_sizes() {
    for sector in [512_u32, 4096] {
        let layout = look(&good_gpt(sector as usize).image);
        assert_eq!((layout.table, layout.sector), (Some(TableKind::Gpt), sector));
        let unit = u64::from(sector);
        assert_eq!(
            listing(&layout),
            [(1, "ext2", 40 * unit, 60 * unit), (2, "empty", 100 * unit, 100 * unit)]
        );
        let first = &layout.volumes[0];
        assert_eq!(first.name.as_deref(), Some("root"));
        assert_eq!(first.type_id.as_deref(), Some("0fc63daf-8483-4772-8e79-3d69d8477de4"));
        assert_eq!(first.content.label.as_deref(), Some("data"));
        assert_eq!(layout.troubles, []);
    }
}

#[test]
fn a_damaged_primary_gpt_falls_back_to_the_backup() {
    for sector in [512, 4096] {
        let good = look(&good_gpt(sector).image);
        let mut header = good_gpt(sector);
        header.damage(1);
        let mut entries = good_gpt(sector);
        entries.image[2 * sector + 128 + 40] ^= 0x40;
        let mut gone = good_gpt(sector);
        gone.image[sector..2 * sector].fill(0);
        for (disk, why) in [(header, "header's"), (entries, "entries'"), (gone, "missing")] {
            let layout = look(&disk.image);
            assert_eq!(layout.volumes, good.volumes);
            let reasons = reasons(&layout, GapKind::PartitionTable);
            assert!(
                matches!(reasons[..], [(None, r)] if r.contains("backup") && r.contains(why)),
                "{reasons:?}"
            );
        }
    }
}

#[test]
fn the_backup_is_found_where_a_grown_disk_left_it() {
    let mut disk = good_gpt(512);
    disk.image.resize(512 * 400, 0);
    assert_eq!(look(&disk.image).troubles, []);
    disk.damage(1);
    let layout = look(&disk.image);
    assert_eq!(listing(&layout).len(), 2);
    assert!(
        layout.troubles[0].reason.contains("the backup GPT at sector 255 is used"),
        "{layout:?}"
    );
}

#[test]
fn with_both_headers_damaged_the_entries_are_used_all_the_same() {
    let mut disk = good_gpt(512);
    disk.damage(1);
    disk.damage(255);
    let layout = look(&disk.image);
    assert_eq!(listing(&layout).len(), 2);
    assert!(layout.troubles[0].reason.contains("damaged and used all the same"), "{layout:?}");
}

#[test]
fn a_truncated_image_says_so_for_the_disk_and_for_the_partition() {
    let mut disk = good_gpt(512);
    disk.image.truncate(512 * 150);
    let layout = look(&disk.image);
    assert_eq!(listing(&layout)[1], (2, "empty", 100 * 512, 50 * 512));
    assert!(layout.volumes[1].content.truncated && !layout.volumes[0].content.truncated);
    let reasons = reasons(&layout, GapKind::Evidence);
    assert!(
        matches!(reasons[..], [(None, a), (Some(2), b)]
        if a.contains("131072 bytes, 76800") && b.contains("51200 bytes, 25600")),
        "{reasons:?}"
    );
}

#[test]
fn bad_gpt_entries_are_told_and_the_others_used() {
    let parts = [(40, 99), (500, 600), (120, 110), (90, 130), (10, 20), (u64::MAX - 1, u64::MAX)];
    let layout = look(&Gpt::new(512, 256, &parts).image);
    assert_eq!(layout.volumes.iter().map(|part| part.number).collect::<Vec<_>>(), [1, 4, 5]);
    let mut reasons = reasons(&layout, GapKind::PartitionTable);
    reasons.sort_unstable();
    let expected = [
        "outside the evidence",
        "ends at sector 110",
        "overlaps partition 1",
        "before the first usable",
        "outside",
    ];
    for ((number, (of, reason)), part) in (2..).zip(reasons).zip(expected) {
        assert_eq!(of, Some(number), "{reason}");
        assert!(reason.contains(part), "{reason}");
    }
}

#[test]
fn absurd_gpt_headers_are_told() {
    // Offset in the header, value, what is said; the checksums are right.
    let cases: [(usize, u32, &str); 5] = [
        (84, 127, "entries of 127 bytes"),
        (84, 1 << 30, "entries of 1073741824 bytes"),
        (80, 0, "claims 0 entries"),
        (76, 1, "outside the evidence"),
        (12, 513, "claims 513 bytes"),
    ];
    for (offset, value, said) in cases {
        let mut disk = good_gpt(512);
        for lba in [1, 255] {
            let at = disk.at(lba) + offset;
            put(&mut disk.image, at, &value.to_le_bytes());
        }
        disk.seal();
        let layout = look(&disk.image);
        let reasons = reasons(&layout, GapKind::PartitionTable);
        assert!(reasons.iter().any(|(_, reason)| reason.contains(said)), "{said}: {layout:?}");
    }
    let mut disk = good_gpt(512);
    put(&mut disk.image, 512 + 80, &u32::MAX.to_le_bytes());
    disk.image.truncate(512 * 250);
    disk.seal();
    let layout = look(&disk.image);
    assert_eq!(listing(&layout)[0].1, "ext2");
    assert!(
        layout.troubles.iter().any(|t| t.reason.contains("claims 4294967295 entries")),
        "{layout:?}"
    );
}

#[test]
fn a_gpt_without_its_mbr_is_used_unless_something_else_is_there() {
    let mut disk = good_gpt(512);
    disk.image[..512].fill(0);
    let layout = look(&disk.image);
    assert_eq!((layout.table, listing(&layout).len()), (Some(TableKind::Gpt), 2));
    assert!(layout.troubles[0].reason.contains("without the protective MBR"));

    plant_slot(&mut disk.image, 0, 0, (0x83, 40, 60));
    let layout = look(&disk.image);
    assert_eq!(
        (layout.table, listing(&layout)),
        (Some(TableKind::Mbr), vec![(1, "ext2", 20_480, 30_720)])
    );
    assert!(layout.troubles[0].reason.contains("it is not used"));

    let mut disk = good_gpt(512);
    disk.image[..1024].fill(0);
    plant_ext2(&mut disk.image, 0, 128);
    let layout = look(&disk.image);
    assert_eq!((layout.table, listing(&layout)), (None, vec![(0, "ext2", 0, 131_072)]));
    assert!(layout.troubles[0].reason.contains("it is not used"));
}

#[test]
fn a_hybrid_mbr_hides_nothing() {
    let mut disk = good_gpt(512);
    plant_slot(&mut disk.image, 0, 1, (0x83, 40, 60));
    assert_eq!(look(&disk.image).troubles, []);
    plant_slot(&mut disk.image, 0, 2, (0x83, 220, 4));
    let layout = look(&disk.image);
    assert_eq!(listing(&layout).len(), 2);
    assert!(layout.troubles[0].reason.contains("entry 3 of the hybrid MBR"), "{layout:?}");
}

#[test]
fn a_protective_mbr_without_a_gpt_leaves_the_whole_evidence() {
    let mut image = vec![0; 512 * 256];
    plant_slot(&mut image, 0, 0, (0xee, 1, 255));
    let layout = look(&image);
    assert_eq!((layout.table, listing(&layout)), (None, vec![(0, "unknown", 0, 131_072)]));
    assert!(layout.troubles[0].reason.contains("there is none"), "{layout:?}");
    assert_eq!(layout.troubles[1].kind, GapKind::Evidence);
}

/// One primary partition and an extended one with three logical ones, at sectors 101, 201, 301.
fn logical_mbr() -> Vec<u8> {
    let mut image = vec![0; 512 * 400];
    plant_slot(&mut image, 0, 0, (0x83, 10, 50));
    plant_slot(&mut image, 0, 1, (0x05, 100, 300));
    for (record, next) in [(100, Some(100)), (200, Some(200)), (300, None)] {
        plant_slot(&mut image, record * 512, 0, (0x83, 1, 50));
        if let Some(next) = next {
            plant_slot(&mut image, record * 512, 1, (0x05, next, 100));
        }
    }
    plant_ext2(&mut image, 201 * 512, 25);
    image
}

#[test]
fn an_mbr_is_read_with_its_logical_partitions() {
    for kind in [0x05, 0x0f, 0x85] {
        let mut image = logical_mbr();
        plant_slot(&mut image, 0, 1, (kind, 100, 300));
        let layout = look(&image);
        assert_eq!((layout.table, layout.sector), (Some(TableKind::Mbr), 512));
        assert_eq!(
            listing(&layout),
            [
                (1, "empty", 5120, 25_600),
                (5, "empty", 101 * 512, 25_600),
                (6, "ext2", 201 * 512, 25_600),
                (7, "empty", 301 * 512, 25_600)
            ]
        );
        assert_eq!(layout.volumes[2].type_id.as_deref(), Some("0x83"));
        assert_eq!(layout.troubles, []);
    }
}

#[test]
fn a_broken_chain_of_logical_partitions_is_told() {
    type Change = fn(&mut Vec<u8>);
    let cases: [(Change, usize, &str); 5] = [
        (|image| plant_slot(image, 300 * 512, 1, (0x05, 100, 100)), 4, "a loop"),
        (|image| plant_slot(image, 300 * 512, 1, (0x05, 0, 100)), 4, "a loop"),
        (|image| plant_slot(image, 300 * 512, 1, (0x05, u32::MAX, 1)), 4, "outside the evidence"),
        (|image| image[200 * 512 + 510] = 0, 2, "no boot record at byte 102400"),
        (
            |image| plant_slot(image, 300 * 512, 0, (0x83, 1, 150)),
            4,
            "outside its extended partition",
        ),
    ];
    for (change, parts, said) in cases {
        let mut image = logical_mbr();
        change(&mut image);
        let layout = look(&image);
        assert_eq!(layout.volumes.len(), parts, "{said}");
        let reasons = reasons(&layout, GapKind::PartitionTable);
        assert!(
            matches!(reasons[..], [(Some(2 | 7), r)] if r.contains(said)),
            "{said}: {reasons:?}"
        );
    }
}

#[test]
fn a_chain_of_logical_partitions_has_an_end() {
    let mut image = vec![0; 512 * 1000];
    plant_slot(&mut image, 0, 0, (0x0f, 1, 999));
    for record in 1..999_u32 {
        plant_slot(&mut image, record as usize * 512, 0, (0x83, 1, 1));
        plant_slot(&mut image, record as usize * 512, 1, (0x05, record, 1));
    }
    let layout = look(&image);
    assert_eq!(layout.volumes.len(), 256);
    assert!(layout.troubles[0].reason.contains("more than 256 records"), "{:?}", layout.troubles);
}

#[test]
fn bad_mbr_entries_are_told_and_the_others_used() {
    let mut image = vec![0; 512 * 100];
    plant_slot(&mut image, 0, 0, (0x83, 10, 50));
    plant_slot(&mut image, 0, 1, (0x83, 40, 20));
    plant_slot(&mut image, 0, 2, (0x83, 90, 20));
    plant_slot(&mut image, 0, 3, (0x83, 100, 1));
    let layout = look(&image);
    let numbers: Vec<u32> = layout.volumes.iter().map(|part| part.number).collect();
    assert_eq!(numbers, [1, 2, 3]);
    assert_eq!((layout.volumes[2].length, layout.volumes[2].content.truncated), (5120, true));
    let table = reasons(&layout, GapKind::PartitionTable);
    assert!(
        matches!(table[..], [(Some(4), a), (Some(2), b)]
        if a.contains("outside") && b.contains("overlaps partition 1")),
        "{table:?}"
    );
    assert!(reasons(&layout, GapKind::Evidence)[0].1.contains("10240 bytes, 5120 are there"));
}

#[test]
fn an_entry_without_a_type_is_still_a_partition() {
    let mut image = vec![0; 512 * 100];
    plant_slot(&mut image, 0, 0, (0x83, 10, 10));
    plant_slot(&mut image, 0, 1, (0x00, 20, 20));
    assert_eq!(listing(&look(&image))[1], (2, "empty", 10_240, 10_240));
}

#[test]
fn a_table_whose_partitions_are_all_elsewhere_is_told() {
    let layout = look(&Gpt::new(512, 256, &[]).image);
    assert_eq!((layout.table, layout.volumes.len()), (Some(TableKind::Gpt), 0));
    assert!(reasons(&layout, GapKind::Evidence)[0].1.contains("lists no partition"));
}

#[test]
fn a_file_system_beside_a_table_is_listed_with_it() {
    let mut image = logical_mbr();
    plant_ext2(&mut image, 0, 100);
    let layout = look(&image);
    assert_eq!(layout.volumes.len(), 5);
    assert_eq!(listing(&layout)[0], (0, "ext2", 0, 512 * 400));
    assert!(layout.troubles[0].reason.contains("both are listed"));
    // An entry that begins at 0 and shows less of it does not hide it.
    plant_slot(&mut image, 0, 2, (0x83, 0, 1));
    assert_eq!(listing(&look(&image))[0].0, 0);
}

#[test]
fn a_hybrid_iso_image_is_a_disc_and_a_disk() {
    let mut image = vec![0; 512 * 400];
    put(&mut image, 32_768, b"\x01CD001\x01");
    put(&mut image, 32_768 + 80, &100_u32.to_le_bytes());
    put(&mut image, 32_768 + 128, &2048_u16.to_le_bytes());
    plant_slot(&mut image, 0, 1, (0xef, 300, 50));
    let layout = look(&image);
    assert_eq!(listing(&layout), [(0, "iso9660", 0, 204_800), (2, "empty", 153_600, 25_600)]);
    assert_eq!(layout.troubles, []);
    // The usual hybrid has an entry over the whole disc, of no type.
    plant_slot(&mut image, 0, 0, (0x00, 0, 400));
    let layout = look(&image);
    assert_eq!(listing(&layout)[0], (1, "iso9660", 0, 204_800));
    assert_eq!(layout.volumes.len(), 2);
}

#[test]
fn evidence_without_anything_is_told() {
    let random: Vec<u8> =
        (0..100_000_u32).map(|i| i.wrapping_mul(2_654_435_761).to_be_bytes()[0]).collect();
    let cases: [(&[u8], &str); 7] = [
        (b"", "empty: 0 bytes"),
        (b"x", "shorter than one sector; it begins with 78"),
        (b"\0", "reads as zeros"),
        (&[0; 200_000], "reads as zeros"),
        (&random, "no partition table and no known file system"),
        (b"QFI\xfb\0\0\0\x03", "begins like a QCOW2 image"),
        (b"EVF\x09\x0d\x0a\xff\x00", "begins like an EWF"),
    ];
    for (image, said) in cases {
        let layout = look(image);
        assert_eq!((layout.table, layout.volumes.len()), (None, usize::from(!image.is_empty())));
        let [trouble] = &layout.troubles[..] else { panic!("{:?}", layout.troubles) };
        assert!(trouble.reason.contains(said), "{trouble:?}");
        assert_eq!((trouble.kind, trouble.advice.is_some()), (GapKind::Evidence, true));
    }
}

#[test]
fn a_bad_sector_costs_its_piece_only() {
    let disk = good_gpt(4096);
    let mut evidence = Pretended::new(disk.image.len() as u64, &disk.image);
    evidence.broken = 8192..8193;
    let layout = probe(&evidence).unwrap();
    // Of the primary only the entries are lost, and the backup has them.
    assert_eq!(listing(&layout)[0].1, "ext2");
    assert!(
        layout
            .troubles
            .iter()
            .any(|t| t.kind == GapKind::Unreadable && t.reason.contains("bad sector"))
    );
    evidence.broken = 0..u64::MAX;
    assert!(probe(&evidence).is_err());
}

#[test]
fn a_folder_is_an_error() {
    let folder = tempfile::tempdir().unwrap();
    let opened = EvidenceFile::new(std::fs::File::open(folder.path()).unwrap());
    assert!(opened.and_then(|file| probe(&file)).is_err());
}
