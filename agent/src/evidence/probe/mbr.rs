//! The master boot record and its chain of logical partitions.
//!
//! Sources: UEFI 2.10, section 5.2, for the record; the Linux kernel's `block/partitions/msdos.c` for
//! the chain, so that numbers are those the system had. Sectors are 512 bytes: a record has no field
//! that would say otherwise.

use std::collections::BTreeSet;

use cleanroom_contract::GapKind;

use super::{
    field::{byte, has, le32},
    layout::{Trouble, Troubles},
    source::Source,
    table::Entry,
};

/// Bytes of a sector.
const SECTOR: u64 = 512;

/// The type of the entry that protects a GPT.
const PROTECTIVE: u8 = 0xee;

/// Records of one chain that are followed.
const CHAIN: usize = 256;

/// Logical partitions count from here.
const FIRST_LOGICAL: u32 = 5;

/// One of a record's four entries.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Slot {
    status: u8,
    kind: u8,
    /// First sector; in the chain relative to something else.
    pub(super) start: u32,
    /// Sectors.
    count: u32,
}

impl Slot {
    /// As Linux sees it: a length is what makes an entry a partition, whatever its type.
    pub(super) fn is_used(self) -> bool {
        self.count > 0
    }

    /// Stands for the GPT, not for a partition.
    pub(super) fn is_protective(self) -> bool {
        self.is_used() && self.kind == PROTECTIVE
    }

    fn is_extended(self) -> bool {
        self.is_used() && matches!(self.kind, 0x05 | 0x0f | 0x85)
    }

    /// First byte, for a start that counts from `base`.
    pub(super) fn offset(self, base: u64) -> u64 {
        base.saturating_add(u64::from(self.start)).saturating_mul(SECTOR)
    }

    fn entry(self, number: u32, base: u64) -> Entry {
        Entry {
            number,
            name: None,
            type_id: format!("0x{:02x}", self.kind),
            offset: self.offset(base),
            length: u64::from(self.count) * SECTOR,
        }
    }
}

/// The four entries of a sector that ends in 55 AA.
pub(super) fn parse(sector: &[u8]) -> Option<[Slot; 4]> {
    if !has(sector, 510, &[0x55, 0xaa]) {
        return None;
    }
    let mut slots = [Slot::default(); 4];
    for (slot, at) in slots.iter_mut().zip([446, 462, 478, 494]) {
        *slot = Slot {
            status: byte(sector, at)?,
            kind: byte(sector, at + 4)?,
            start: le32(sector, at + 8)?,
            count: le32(sector, at + 12)?,
        };
    }
    Some(slots)
}

/// Whether the four are a partition table and not a boot sector's code: every status is one of the
/// two that exist, and at least one entry has a type, a length and a start on the evidence.
pub(super) fn is_plausible(slots: &[Slot; 4], size: u64) -> bool {
    slots.iter().all(|slot| matches!(slot.status, 0x00 | 0x80))
        && slots.iter().any(|slot| slot.is_used() && slot.kind != 0 && slot.offset(0) < size)
}

/// The partitions of a record: its own, then the logical ones. Extended partitions and the protective
/// entry are containers and not listed.
pub(super) fn read(source: &Source<'_>, slots: &[Slot; 4], troubles: &mut Troubles) -> Vec<Entry> {
    let used = || (1..).zip(slots).filter(|(_, slot)| slot.is_used() && !slot.is_protective());
    let mut entries: Vec<Entry> = used()
        .filter(|(_, slot)| !slot.is_extended())
        .map(|(number, slot)| slot.entry(number, 0))
        .collect();
    let mut chain = Chain { source, next: FIRST_LOGICAL, visited: BTreeSet::new() };
    for (number, slot) in used().filter(|(_, slot)| slot.is_extended()) {
        if let Some(trouble) = chain.follow(*slot, &mut entries, troubles) {
            troubles.push(trouble.of(number));
        }
    }
    entries
}

/// A walk along the extended boot records. What it has visited is kept over several extended
/// partitions, since hostile ones can lead into each other.
struct Chain<'a> {
    source: &'a Source<'a>,
    next: u32,
    visited: BTreeSet<u64>,
}

impl Chain<'_> {
    /// Adds the logical partitions of one extended partition; answers why the chain broke off.
    fn follow(
        &mut self,
        extended: Slot,
        entries: &mut Vec<Entry>,
        troubles: &mut Troubles,
    ) -> Option<Trouble> {
        let base = u64::from(extended.start);
        let mut record = base;
        for _ in 0..CHAIN {
            let offset = record.saturating_mul(SECTOR);
            if offset >= self.source.size() {
                return Some(broken(format!(
                    "the next record is at byte {offset}, outside the evidence"
                )));
            }
            if !self.visited.insert(record) {
                return Some(broken(format!(
                    "the record at byte {offset} was followed before: a loop"
                )));
            }
            let Some(slots) = parse(&self.source.bytes(offset, 512)) else {
                return Some(broken(format!("no boot record at byte {offset}")));
            };
            self.take(&slots, record, extended, (entries, troubles));
            // A link counts from the start of the extended partition, not from this record.
            let link = slots.iter().find(|slot| slot.is_extended())?;
            record = base.saturating_add(u64::from(link.start));
        }
        Some(broken(format!("it has more than {CHAIN} records")))
    }

    /// The logical partitions of one record, which count from the record's own sector.
    fn take(
        &mut self,
        slots: &[Slot; 4],
        record: u64,
        extended: Slot,
        (entries, troubles): (&mut Vec<Entry>, &mut Troubles),
    ) {
        let end = extended.offset(0).saturating_add(u64::from(extended.count) * SECTOR);
        for (index, slot) in slots.iter().enumerate() {
            if !slot.is_used() || slot.is_extended() {
                continue;
            }
            let entry = slot.entry(self.next, record);
            let inside = entry.offset.saturating_add(entry.length) <= end;
            // The third and fourth entries have no meaning here; like Linux, take them only where
            // they could be partitions.
            if index >= 2 && !inside {
                continue;
            }
            if !inside {
                let reason = format!(
                    "logical partition {} ends outside its extended partition, at byte {end}",
                    entry.number
                );
                let advice = "compare it with its file system's own size";
                troubles
                    .push(Trouble::new(GapKind::PartitionTable, reason, advice).of(entry.number));
            }
            self.next = self.next.saturating_add(1);
            entries.push(entry);
        }
    }
}

fn broken(why: String) -> Trouble {
    Trouble::new(
        GapKind::PartitionTable,
        format!("the chain of logical partitions breaks off: {why}"),
        "search the extended partition for further file systems (testdisk, sfdisk --dump)",
    )
}
