//! What lies on a piece of evidence: its partition table, its partitions, their file systems and
//! whether their journals are dirty.
//!
//! Purpose: pure functions from bytes to a [`Layout`]. Touches nothing but bytes, through [`ReadAt`],
//! at most 64 MiB of them whatever the evidence claims. Never mounts, never writes, never trusts a
//! number that it reads, and never answers with a part that lies outside the evidence.
//!
//! Where two readings of the same bytes are possible, neither hides the other:
//! - A GPT is used where the MBR announces one (type EE), or where there is no other table and nothing
//!   is recognised at the start of the evidence. A GPT that is there and not used is a trouble, and so
//!   is an entry of a hybrid MBR that the GPT does not have.
//! - A file system at the start of evidence that also has a table is listed as number 0, before the
//!   partitions, and is a trouble; except for ISO 9660, since images that boot from disc and disk alike
//!   have both by design. They are scanned once as a disc and once for each partition.
//! - Several signatures in one stretch: see [`content`].

mod content;
mod field;
mod gpt;
mod layout;
mod mbr;
mod seen;
mod source;
mod table;
#[cfg(test)]
mod tests;

use std::io;

use cleanroom_contract::GapKind;

use self::{
    content::Found,
    layout::Troubles,
    mbr::Slot,
    source::{Region, Source},
    table::{Entry, Placed},
};
pub(crate) use self::{
    layout::{Content, ContentKind, Layout, Part, TableKind, Trouble},
    source::{EvidenceFile, ReadAt},
};

/// What to do about evidence that is shorter than it should be.
const ACQUIRE_AGAIN: &str =
    "compare the image's size with the source's, and acquire it again; what is there is examined";

/// A partition table, with its used entries as they are stored.
struct Table {
    kind: TableKind,
    sector: u32,
    entries: Vec<Entry>,
}

/// Tells what lies on the evidence.
///
/// The error is that of reading, where neither the first nor the last byte can be read (a folder, a
/// dead disk). Everything else, bad sectors and nonsense included, is a [`Trouble`] in the layout.
pub(crate) fn probe(evidence: &dyn ReadAt) -> io::Result<Layout> {
    let size = evidence.size();
    let mut troubles = Troubles::default();
    if size == 0 {
        troubles.push(seen::nothing());
        return Ok(Layout {
            table: None,
            sector: 512,
            volumes: Vec::new(),
            troubles: troubles.finish(),
        });
    }
    let mut one = [0];
    if let Err(error) = evidence.read_at(0, &mut one) {
        evidence.read_at(size - 1, &mut one).map_err(|_| error)?;
    }
    let source = Source::new(evidence);
    let whole = Region::new(&source, 0, size);
    let table = find_table(&source, &whole, &mut troubles);
    let mut volumes = list_whole(&whole, table.as_ref(), &mut troubles);
    let (kind, sector) =
        table.as_ref().map_or((None, 512), |table| (Some(table.kind), table.sector));
    let entries = table.map(|table| table.entries).unwrap_or_default();
    for placed in table::place(entries, size, &mut troubles) {
        volumes.push(examine(&source, placed, &mut troubles));
    }
    if volumes.is_empty() {
        troubles.push(seen::no_partition(size));
    }
    drop(whole);
    troubles.extend(source.into_troubles());
    Ok(Layout { table: kind, sector, volumes, troubles: troubles.finish() })
}

/// Decides which table there is; the module's documentation says how.
fn find_table(source: &Source<'_>, whole: &Region<'_>, troubles: &mut Troubles) -> Option<Table> {
    let slots = mbr::parse(whole.head());
    let announced = slots.is_some_and(|slots| slots.iter().any(|slot| slot.is_protective()));
    let record = slots.filter(|slots| mbr::is_plausible(slots, source.size()));
    let complain =
        |reason: String, advice: &str| Trouble::new(GapKind::PartitionTable, reason, advice);
    match gpt::read(source) {
        Ok(Some(gpt)) if announced || record.is_none() && !is_recognised(whole) => {
            if announced {
                troubles.extend(find_hybrids(&slots.unwrap_or_default(), &gpt.entries));
            } else {
                let reason = "a GPT without the protective MBR that should announce it; it is used";
                let advice = "find out what removed the MBR: other tools may show an empty disk";
                troubles.push(complain(reason.to_owned(), advice));
            }
            troubles.extend(gpt.troubles);
            return Some(Table { kind: TableKind::Gpt, sector: gpt.sector, entries: gpt.entries });
        }
        Ok(Some(gpt)) => troubles.push(complain(
            format!(
                "a GPT with {} partitions that no protective MBR announces; it is not used",
                gpt.entries.len()
            ),
            "if the system used it, cut its partitions out of a copy and scan them",
        )),
        Err(defects) => troubles.push(complain(
            format!("a GPT that cannot be used: {defects}"),
            "search the evidence for file systems (testdisk) and scan those by offset",
        )),
        Ok(None) if announced => troubles.push(complain(
            "a protective MBR announces a GPT, and there is none".to_owned(),
            "search the evidence for file systems (testdisk) and scan those by offset",
        )),
        Ok(None) => {}
    }
    let entries = mbr::read(source, &record?, troubles);
    // A protective entry alone is no table.
    let used = !entries.is_empty() || !announced;
    used.then_some(Table { kind: TableKind::Mbr, sector: 512, entries })
}

/// Entries of a hybrid MBR that begin where no GPT partition does: some systems mount these.
fn find_hybrids(slots: &[Slot; 4], entries: &[Entry]) -> Vec<Trouble> {
    (1_u32..)
        .zip(slots)
        .filter(|(_, slot)| slot.is_used() && !slot.is_protective())
        .filter(|(_, slot)| entries.iter().all(|entry| entry.offset != slot.offset(0)))
        .map(|(number, slot)| {
            let reason = format!(
                "entry {number} of the hybrid MBR, at byte {}, is not in the GPT and was not examined",
                slot.offset(0)
            );
            Trouble::new(GapKind::PartitionTable, reason, "cut it out of a copy and scan it as an image")
        })
        .collect()
}

fn is_recognised(region: &Region<'_>) -> bool {
    let kind = content::detect(region, false).content.kind;
    !matches!(kind, ContentKind::Unknown | ContentKind::Empty)
}

/// The evidence as one volume: always where there is no table, beside one only where it is recognised.
fn list_whole(whole: &Region<'_>, table: Option<&Table>, troubles: &mut Troubles) -> Vec<Part> {
    let found = content::detect(whole, table.is_none());
    let kind = found.content.kind;
    let recognised = !matches!(kind, ContentKind::Unknown | ContentKind::Empty);
    let extent = found.content.declared_bytes.unwrap_or(u64::MAX).min(whole.length());
    match table {
        None if !recognised => troubles.push(seen::unrecognised(whole, kind)),
        None => {}
        Some(_) if !recognised => return Vec::new(),
        // That partition shows all of it already.
        Some(table)
            if table.entries.iter().any(|entry| entry.offset == 0 && entry.length >= extent) =>
        {
            return Vec::new();
        }
        Some(_) if kind == ContentKind::Iso9660 => {}
        Some(table) => troubles.push(Trouble::new(
            GapKind::PartitionTable,
            format!(
                "the evidence has a partition table ({}) and at its start also {}; both are listed",
                table.kind.as_str(),
                kind.as_str()
            ),
            "decide which of the two the system used: the other is left over, or was planted",
        )),
    }
    let part = Part {
        number: 0,
        name: None,
        type_id: None,
        offset: 0,
        length: whole.length(),
        content: Content::new(kind),
    };
    vec![complete(part, found, true, troubles)]
}

/// Looks into one partition.
fn examine(source: &Source<'_>, placed: Placed, troubles: &mut Troubles) -> Part {
    let Placed { entry, length } = placed;
    let region = Region::new(source, entry.offset, length);
    let mut found = content::detect(&region, true);
    if length < entry.length {
        let (number, declared) = (entry.number, entry.length);
        let reason = format!(
            "the image is truncated: partition {number} has {declared} bytes, {length} are there"
        );
        troubles.push(Trouble::new(GapKind::Evidence, reason, ACQUIRE_AGAIN).of(number));
        found.content.truncated = true;
    }
    let part = Part {
        number: entry.number,
        name: entry.name,
        type_id: Some(entry.type_id),
        offset: entry.offset,
        length,
        content: Content::new(ContentKind::Unknown),
    };
    let at_end = entry.offset.saturating_add(length) == source.size();
    complete(part, found, at_end, troubles)
}

/// Puts the content into its part, compares its size with what is there, and tells its notes.
/// `at_end` says that the evidence ends where the part does.
fn complete(mut part: Part, found: Found, at_end: bool, troubles: &mut Troubles) -> Part {
    let Found { mut content, notes } = found;
    let kind = content.kind.as_str();
    if let Some(declared) = content.declared_bytes.filter(|declared| *declared > part.length) {
        let there = part.length;
        let what = if at_end { "the image is truncated" } else { "the partition is too small" };
        let reason =
            format!("{what}: the file system ({kind}) says {declared} bytes, {there} are there");
        // A cut partition has been told already.
        if !content.truncated {
            troubles.push(Trouble::new(GapKind::Evidence, reason, ACQUIRE_AGAIN).of(part.number));
        }
        content.truncated = true;
    }
    troubles.extend(notes.into_iter().map(|note| note.of(part.number)));
    part.content = content;
    part
}
