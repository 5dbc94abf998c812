//! What GPT and MBR have in common: entries, and their place on the evidence.

use cleanroom_contract::GapKind;

use super::layout::{Trouble, Troubles};

/// Partitions that are examined; a GPT of the usual size has room for 128.
pub(super) const PARTS: usize = 256;

/// One used entry, as the table tells it: nothing about it is checked yet.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Entry {
    /// As Linux counts.
    pub(super) number: u32,
    /// GPT name.
    pub(super) name: Option<String>,
    /// Type, as in `Part`.
    pub(super) type_id: String,
    /// First byte; `u64::MAX` where the product does not fit, which is outside any evidence.
    pub(super) offset: u64,
    /// Bytes, likewise.
    pub(super) length: u64,
}

/// An entry of which at least one byte lies on the evidence.
#[derive(Debug)]
pub(super) struct Placed {
    /// As the table tells it.
    pub(super) entry: Entry,
    /// Bytes that are there.
    pub(super) length: u64,
}

impl Placed {
    fn end(&self) -> u64 {
        self.entry.offset.saturating_add(self.length)
    }
}

/// Cuts entries to evidence of `size` bytes. Those outside are dropped, those that end outside are
/// cut, those that overlap another are kept; each is a trouble.
pub(super) fn place(entries: Vec<Entry>, size: u64, troubles: &mut Troubles) -> Vec<Placed> {
    let mut placed = Vec::new();
    let mut unexamined = 0_u64;
    for entry in entries {
        let length = entry.length.min(size.saturating_sub(entry.offset));
        if length == 0 {
            let reason = format!(
                "partition {} begins at byte {}, outside the evidence of {size} bytes",
                entry.number, entry.offset
            );
            let advice =
                "compare the image's size with the source's, and acquire it again if it is shorter";
            troubles.push(Trouble::new(GapKind::PartitionTable, reason, advice).of(entry.number));
        } else if placed.len() == PARTS {
            unexamined += 1;
        } else {
            placed.push(Placed { entry, length });
        }
    }
    if unexamined > 0 {
        troubles.push(Trouble::new(
            GapKind::PartitionTable,
            format!("{unexamined} partitions beyond the first {PARTS} were not examined"),
            "cut them out of the image and scan each as its own image",
        ));
    }
    find_overlaps(&placed, troubles);
    placed
}

/// One trouble for each partition that begins inside another.
fn find_overlaps(placed: &[Placed], troubles: &mut Troubles) {
    let mut ordered: Vec<&Placed> = placed.iter().collect();
    ordered.sort_by_key(|part| (part.entry.offset, part.entry.number));
    let mut reaching: Option<&Placed> = None;
    for part in ordered {
        if let Some(other) = reaching.filter(|other| other.end() > part.entry.offset) {
            let (number, inside) = (part.entry.number, other.entry.number);
            let reason =
                format!("partition {number} overlaps partition {inside}; both are examined");
            let advice = "decide by their contents which of the two the system used";
            troubles.push(Trouble::new(GapKind::PartitionTable, reason, advice).of(number));
        }
        if reaching.is_none_or(|other| other.end() < part.end()) {
            reaching = Some(part);
        }
    }
}
