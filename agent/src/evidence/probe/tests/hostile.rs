//! Bytes from someone who wants the probe to fail.

use proptest::{collection::vec, prelude::*};

use super::*;
use crate::evidence::probe::{layout::LISTED, source::BUDGET};

/// A disk with every kind of structure: a table, file systems, a chain of logical partitions.
fn valid_images() -> [Vec<u8>; 4] {
    let mut gpt = Gpt::new(512, 512, &[(40, 99), (100, 199), (200, 400)]);
    plant_ext2(&mut gpt.image, 40 * 512, 30);
    put(&mut gpt.image, 100 * 512 + 4086, b"SWAPSPACE2");
    put(&mut gpt.image, 200 * 512 + 0x1_0040, b"_BHRfS_M");
    let big = Gpt::new(4096, 64, &[(6, 20), (21, 50)]);
    let mut mbr = vec![0; 512 * 400];
    plant_slot(&mut mbr, 0, 0, (0x83, 10, 50));
    plant_slot(&mut mbr, 0, 1, (0x05, 100, 300));
    for (record, next) in [(100, 100), (200, 200), (300, 250)] {
        plant_slot(&mut mbr, record * 512, 0, (0x83, 1, 50));
        plant_slot(&mut mbr, record * 512, 1, (0x05, next, 100));
    }
    plant_ext2(&mut mbr, 10 * 512, 25);
    let mut bare = vec![0; 100_000];
    plant_ext2(&mut bare, 0, 90);
    put(&mut bare, 32_768, b"\x01CD001\x01");
    put(&mut bare, 3, b"NTFS    \0\x02\x08");
    put(&mut bare, 512, b"LABELONE\0\0\0\0\0\0\0\0\0\0\0\0\x20\0\0\0LVM2 001");
    [gpt.image, big.image, mbr, bare]
}

/// Where the structures of those images are: most changes should hit one.
fn place() -> impl Strategy<Value = usize> {
    let near = |at: usize, length: usize| at..at + length;
    prop_oneof![
        3 => near(440, 72),
        3 => near(512, 92),
        3 => near(1024, 384),
        2 => near(4096, 92),
        2 => near(8192, 384),
        2 => near(10 * 512 + 1024, 512),
        2 => near(40 * 512 + 1024, 512),
        2 => near(100 * 512 + 440, 72),
        2 => near(200 * 512 + 440, 72),
        1 => near(0x1_0000, 512),
        1 => 0..512 * 512_usize,
    ]
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(512))]

    #[test]
    fn any_bytes_have_a_layout(image in vec(any::<u8>(), 0..3000), signed in any::<bool>()) {
        let mut image = image;
        if let (true, Some(end)) = (signed, image.get_mut(510..512)) {
            end.copy_from_slice(&[0x55, 0xaa]);
        }
        look(&image);
    }

    #[test]
    fn a_changed_image_has_a_layout(
        which in 0..4_usize,
        changes in vec((place(), any::<u8>()), 1..12),
        cut in prop_oneof![3 => Just(usize::MAX), 1 => 0..300_000_usize],
    ) {
        let mut image = valid_images()[which].clone();
        for (at, byte) in changes {
            if let Some(old) = image.get_mut(at) {
                *old = byte;
            }
        }
        image.truncate(cut);
        look(&image);
    }

    #[test]
    fn a_changed_gpt_with_right_checksums_has_a_layout(
        fields in vec((prop_oneof![24..88_usize, 512..1024_usize], any::<u64>(), 0..64_u32), 1..4),
    ) {
        let mut disk = Gpt::new(512, 512, &[(40, 99), (100, 199), (200, 400)]);
        for (at, value, shift) in fields {
            // Shifted, so that small numbers are as likely as large ones.
            put(&mut disk.image, 512 + at, &(value >> shift).to_le_bytes());
        }
        disk.seal();
        look(&disk.image);
    }
}

#[test]
fn reading_is_bounded_whatever_is_claimed() {
    // 16 TiB with as many entries as a table may have, each far from the others.
    let count = 20_000;
    let parts: Vec<(u64, u64)> = (1..=count).map(|i| (i << 16, (i << 16) + 60_000)).collect();
    let mut disk = Gpt::new(512, 40_000, &parts[..1]);
    // A sound backup would be preferred.
    let backup = disk.at(disk.last());
    disk.image[backup..].fill(0);
    put(&mut disk.image, 512 + 80, &u32::MAX.to_le_bytes());
    for (index, (first, last)) in parts.iter().enumerate() {
        let at = 1024 + index * 128;
        put(&mut disk.image, at, &LINUX);
        put(&mut disk.image, at + 32, &first.to_le_bytes());
        put(&mut disk.image, at + 40, &last.to_le_bytes());
    }
    let evidence = Pretended::new(16 << 40, &disk.image);
    let layout = probe(&evidence).unwrap();
    check(&layout, evidence.size);
    assert_eq!(layout.volumes.len(), PARTS);
    assert!(evidence.read.get() <= BUDGET + 2, "{} bytes", evidence.read.get());
    let said = |part: &str| layout.troubles.iter().any(|trouble| trouble.reason.contains(part));
    assert!(said("partitions beyond the first 256"), "{:?}", layout.troubles);
    assert!(said("claims 4294967295 entries"), "{:?}", layout.troubles);
}

#[test]
fn troubles_are_counted_and_not_repeated_without_end() {
    let parts = vec![(300, 200); 128];
    let layout = look(&Gpt::new(512, 512, &parts).image);
    let told = reasons(&layout, GapKind::PartitionTable);
    assert_eq!(told.len() as u64, LISTED + 1);
    assert_eq!(told.last().unwrap().1, "64 more problems of this kind are not listed");
    // They do not crowd out what is said of the evidence itself.
    assert_eq!(reasons(&layout, GapKind::Evidence).len(), 1);
}
