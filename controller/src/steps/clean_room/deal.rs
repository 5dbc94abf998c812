//! Which of a case's rooms examines which volumes, where there are more than one room takes. Pure.
//!
//! A volume stays with the room that was ordered to examine it first, whatever comes or goes later; all others take the seats that
//! are left, from the first room on. So whoever deals, and when, the rooms come out the same.

use std::collections::BTreeMap;

use cleanroom_contract::VolumeId;

use super::MOST_VOLUMES;

/// The room of each volume, from 1. `ordered` is where volumes were ordered to be examined first.
#[must_use]
pub fn decide_rooms<'v>(
    volumes: impl IntoIterator<Item = &'v VolumeId> + Clone,
    ordered: &BTreeMap<VolumeId, u32>,
) -> BTreeMap<VolumeId, u32> {
    let mut taken: BTreeMap<u32, usize> = BTreeMap::new();
    let mut rooms = BTreeMap::new();
    for volume in volumes.clone() {
        let Some(room) = ordered.get(volume).copied() else { continue };
        let seats = taken.entry(room).or_default();
        // A room may have examined others before, and been taken down.
        if *seats < MOST_VOLUMES {
            *seats += 1;
            rooms.insert(volume.clone(), room);
        }
    }
    let mut room = 1;
    for volume in volumes {
        if rooms.contains_key(volume) {
            continue;
        }
        while taken.get(&room).is_some_and(|seats| *seats >= MOST_VOLUMES) {
            room += 1;
        }
        *taken.entry(room).or_default() += 1;
        rooms.insert(volume.clone(), room);
    }
    rooms
}

#[cfg(test)]
mod tests {
    use super::*;

    fn volume(n: usize) -> VolumeId {
        format!("vol-{n:017x}").parse().expect("a volume id")
    }

    fn dealt(volumes: &[VolumeId], ordered: &BTreeMap<VolumeId, u32>) -> BTreeMap<VolumeId, u32> {
        let rooms = decide_rooms(volumes, ordered);
        assert_eq!(rooms.len(), volumes.len(), "none is left out");
        for n in 1..=rooms.values().max().copied().unwrap_or(1) {
            assert!(rooms.values().filter(|room| **room == n).count() <= MOST_VOLUMES, "{n}");
        }
        rooms
    }

    #[test]
    fn volumes_fill_one_room_after_the_other() {
        let volumes: Vec<_> = (0..60).map(volume).collect();
        let rooms = dealt(&volumes, &BTreeMap::new());
        for (n, volume) in volumes.iter().enumerate() {
            assert_eq!(rooms[volume] as usize, n / 24 + 1);
        }
        assert!(dealt(&[], &BTreeMap::new()).is_empty());
    }

    #[test]
    fn a_volume_stays_in_its_room_whatever_comes_and_goes() {
        let volumes: Vec<_> = (0..60).map(volume).collect();
        let first = dealt(&volumes, &BTreeMap::new());
        // Some are gone, and one that sorts before all of them has come.
        let others: Vec<_> = (100..101).chain(10..60).map(volume).collect();
        let later = dealt(&others, &first);
        assert!(others[1..].iter().all(|volume| later[volume] == first[volume]));
        assert_eq!(later[&volume(100)], 1, "a seat is free there");
        // One room alone was ordered for so far.
        let first: BTreeMap<_, _> = first.into_iter().filter(|(_, room)| *room == 2).collect();
        let again = dealt(&volumes, &first);
        assert_eq!((again[&volume(0)], again[&volume(24)], again[&volume(59)]), (1, 2, 3));
    }

    #[test]
    fn a_room_that_examined_more_in_its_time_keeps_as_many_as_it_takes() {
        let volumes: Vec<_> = (0..26).map(volume).collect();
        let ordered = volumes.iter().map(|volume| (volume.clone(), 1)).collect();
        let rooms = dealt(&volumes, &ordered);
        assert_eq!(rooms.values().filter(|room| **room == 2).count(), 2);
    }
}
