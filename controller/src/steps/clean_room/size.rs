//! How large a clean room is: pure.

/// What a room is made with, from what it is to examine.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RoomSize {
    /// The instance's type.
    pub instance_type: &'static str,
    /// The volumes' type.
    pub volume_type: &'static str,
    /// GiB of the room's own disk, where the bundle is made.
    pub root_gib: u64,
    /// I/O operations a second of each volume.
    pub iops: u32,
    /// MiB a second of each volume.
    pub throughput: u32,
    /// MiB a second at which each volume is filled from its snapshot; 0 for as it comes.
    pub initialization_rate: u32,
}

/// Types by the GiB up to which they do, with the MiB a second that their EBS bandwidth sustains (EC2 user guide,
/// "EBS-optimized instances", M6i). All have x86-64, NVMe, and room for 24 volumes beside the root and one interface, which
/// share 28 attachments (EC2 user guide, "volume limits").
const TYPES: [(u64, &str, u32); 5] = [
    (64, "m6i.xlarge", 149),
    (512, "m6i.2xlarge", 298),
    (2_048, "m6i.4xlarge", 596),
    (16_384, "m6i.8xlarge", 1_192),
    (u64::MAX, "m6i.16xlarge", 2_384),
];

/// What gp3 has without paying for more, and its most (EBS user guide, "General Purpose SSD volumes").
const IOPS: (u32, u32) = (3_000, 16_000);
/// The same for MiB a second.
const THROUGHPUT: (u32, u32) = (125, 1_000);
/// IOPS that a GiB can be given.
const IOPS_A_GIB: u32 = 500;
/// MiB a second at which a volume can be filled from its snapshot (EBS user guide, "Provisioned Rate for Volume
/// Initialization").
const FILLING: (u32, u32) = (100, 300);
/// What a room asks of the 5,000 that all volumes of a Region share: other rooms fill theirs, too.
const FILLING_ALL: u32 = 2_500;
/// Seconds within which a volume should be filled, where the rate allows it.
const FILLED_WITHIN: u64 = 600;
/// GiB of the largest volume from which a rate pays: it is paid for each GiB, and what it saves is hours of the room. A smaller
/// volume is read about as soon as it comes.
const FILLED_FROM: u64 = 128;

/// GiB of the room's own disk: what the system and a small bundle take, and one for each so many GiB of evidence.
const ROOT: (u64, u64, u64) = (64, 32, 1_024);

/// Decides how large a room is, by the sizes of its volumes in GiB.
#[must_use]
pub fn decide_room(volumes: &[u32]) -> RoomSize {
    let count = u32::try_from(volumes.len()).unwrap_or(u32::MAX).max(1);
    let total: u64 = volumes.iter().map(|gib| u64::from(*gib)).sum();
    let smallest = volumes.iter().copied().min().unwrap_or(1).max(1);
    let largest = u64::from(volumes.iter().copied().max().unwrap_or(1));
    let [.., most] = TYPES;
    let (_, instance_type, bandwidth) =
        TYPES.into_iter().find(|(up_to, ..)| total <= *up_to).unwrap_or(most);
    // All volumes are read side by side: more than their share of the instance's bandwidth is paid for and never used.
    let share = (bandwidth / count).clamp(THROUGHPUT.0, THROUGHPUT.1);
    // Reads are of 256 KiB at best, so a MiB a second takes four operations.
    let possible = smallest.saturating_mul(IOPS_A_GIB).max(IOPS.0);
    let iops = (share * 4).clamp(IOPS.0, IOPS.1).min(possible);
    let throughput = share.min(iops / 4);
    let wanted = u32::try_from((largest * 1024).div_ceil(FILLED_WITHIN)).unwrap_or(u32::MAX);
    let rate = wanted.clamp(FILLING.0, FILLING.1).min(FILLING_ALL / count);
    let pays = largest >= FILLED_FROM && rate >= FILLING.0;
    let initialization_rate = if pays { rate } else { 0 };
    let root_gib = (ROOT.0 + total / ROOT.1).min(ROOT.2);
    RoomSize { instance_type, volume_type: "gp3", root_gib, iops, throughput, initialization_rate }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rooms_grow_with_what_they_examine() {
        for (volumes, expected) in [
            (&[][..], ("m6i.xlarge", 3_000, 149, 0)),
            (&[1], ("m6i.xlarge", 3_000, 149, 0)),
            (&[8], ("m6i.xlarge", 3_000, 149, 0)),
            (&[32, 32], ("m6i.xlarge", 3_000, 125, 0)),
            (&[100], ("m6i.2xlarge", 3_000, 298, 0)),
            (&[128], ("m6i.2xlarge", 3_000, 298, 219)),
            (&[8, 100, 500], ("m6i.4xlarge", 3_000, 198, 300)),
            (&[2_048], ("m6i.4xlarge", 3_000, 596, 300)),
            (&[16_384], ("m6i.8xlarge", 4_000, 1_000, 300)),
            (&[16_384, 16_384], ("m6i.16xlarge", 4_000, 1_000, 300)),
            (&[16_384; 24], ("m6i.16xlarge", 3_000, 125, 104)),
            // Beside a large volume a tiny one keeps what its size allows.
            (&[1, 16_000], ("m6i.8xlarge", 3_000, 596, 300)),
        ] {
            let size = decide_room(volumes);
            let told = (size.instance_type, size.iops, size.throughput, size.initialization_rate);
            assert_eq!(told, expected, "{volumes:?}");
        }
    }

    #[test]
    fn the_room_s_own_disk_grows_with_the_evidence_up_to_a_bound() {
        for (volumes, expected) in [(&[8][..], 64), (&[3_200], 164), (&[16_384; 24], 1_024)] {
            assert_eq!(decide_room(volumes).root_gib, expected, "{volumes:?}");
        }
    }

    #[test]
    fn no_room_asks_for_what_gp3_does_not_have() {
        for count in 1..=24 {
            for gib in [1, 7, 8, 9, 31, 32, 500, 16_384] {
                let size = decide_room(&vec![gib; count]);
                assert!((3_000..=16_000).contains(&size.iops), "{size:?}");
                assert!((125..=1_000).contains(&size.throughput), "{size:?}");
                assert!(size.throughput * 4 <= size.iops, "{size:?}");
                assert!(size.iops == 3_000 || size.iops <= gib * 500, "{size:?}");
                let rate = size.initialization_rate;
                assert!(rate == 0 || (100..=300).contains(&rate), "{size:?}");
                assert!(rate * u32::try_from(count).expect("few") <= 2_500, "{size:?}");
            }
        }
    }
}
