//! The GUID partition table (UEFI 2.10, section 5.3).
//!
//! Two headers should be there, one after the first sector and one in the last. Of all that carry the
//! signature the soundest is used, the first before the last: a damaged table that can be read shows
//! more than none, and what is wrong with it becomes a trouble.

use cleanroom_contract::GapKind;

use super::{
    field::{array, crc32, guid, has, le32, le64, text_utf16},
    layout::Trouble,
    source::Source,
    table::Entry,
};

/// Sector sizes that disks have.
const SECTORS: [u32; 2] = [512, 4096];

/// Bytes of entries that are read from one table: 8,192 entries of the usual 128 bytes.
const ARRAY: u64 = 1 << 20;

/// Bytes of an entry: at least 128 and a power of two times that (UEFI 2.10, table 5.5).
const ENTRY: std::ops::RangeInclusive<u32> = 128..=4096;

/// A table that can be used.
#[derive(Debug)]
pub(super) struct Gpt {
    /// Bytes of a sector.
    pub(super) sector: u32,
    /// Its used entries.
    pub(super) entries: Vec<Entry>,
    /// What is wrong with it, to be told if it is used.
    pub(super) troubles: Vec<Trouble>,
}

/// A header with the signature, and what is wrong with it.
struct Candidate {
    sector: u32,
    lba: u64,
    alternate: u64,
    first_usable: u64,
    entry_size: usize,
    /// The entries; absent where the header's numbers make no sense.
    array: Option<Vec<u8>>,
    defects: Vec<String>,
}

impl Candidate {
    fn is_primary(&self) -> bool {
        self.lba == 1
    }

    fn name(&self) -> String {
        let which = if self.is_primary() { "primary" } else { "backup" };
        format!("{which} GPT at sector {}", self.lba)
    }
}

/// Looks for a table. `Ok(None)` where no signature is found; the error says why nothing that carries
/// one can be used.
pub(super) fn read(source: &Source<'_>) -> Result<Option<Gpt>, String> {
    let mut candidates = find_primaries(source);
    candidates.extend(find_backups(source, &candidates));
    // min_by_key keeps the first of equals: a sound primary wins over a sound backup.
    let best = candidates
        .iter()
        .filter_map(|candidate| candidate.array.as_ref().map(|array| (candidate, array)))
        .min_by_key(|(candidate, _)| candidate.defects.len());
    let Some((best, array)) = best else {
        let defects: Vec<String> =
            candidates.iter().map(|c| format!("{}: {}", c.name(), c.defects.join(", "))).collect();
        return if defects.is_empty() { Ok(None) } else { Err(defects.join("; ")) };
    };
    let mut troubles = describe(best, &candidates, source.size());
    let entries = read_entries(best, array, &mut troubles);
    Ok(Some(Gpt { sector: best.sector, entries, troubles }))
}

fn find_primaries(source: &Source<'_>) -> Vec<Candidate> {
    SECTORS.into_iter().filter_map(|sector| read_candidate(source, sector, 1)).collect()
}

/// Backups where the primaries say, and in the last sector.
fn find_backups(source: &Source<'_>, primaries: &[Candidate]) -> Vec<Candidate> {
    let mut places: Vec<(u32, u64)> = Vec::new();
    let named = primaries.iter().map(|primary| (primary.sector, primary.alternate));
    let last = SECTORS
        .into_iter()
        .filter_map(|sector| Some((sector, (source.size() / u64::from(sector)).checked_sub(1)?)));
    for place in named.chain(last) {
        if place.1 > 1 && !places.contains(&place) {
            places.push(place);
        }
    }
    places.into_iter().filter_map(|(sector, lba)| read_candidate(source, sector, lba)).collect()
}

/// The header at a sector, or nothing without a signature.
fn read_candidate(source: &Source<'_>, sector: u32, lba: u64) -> Option<Candidate> {
    let offset = lba.checked_mul(sector.into())?;
    let header = source.bytes(offset, usize::try_from(sector).ok()?);
    // Table 5.3, GPT header.
    if !has(&header, 0, b"EFI PART") {
        return None;
    }
    let mut defects = check_header(&header, sector, lba);
    let (array, size) = match read_array(source, &header, sector, &mut defects) {
        Ok((array, size)) => (Some(array), size),
        Err(defect) => {
            defects.push(defect);
            (None, 0)
        }
    };
    Some(Candidate {
        sector,
        lba,
        alternate: le64(&header, 32)?,
        first_usable: le64(&header, 40)?,
        entry_size: size,
        array,
        defects,
    })
}

fn check_header(header: &[u8], sector: u32, lba: u64) -> Vec<String> {
    let mut defects = Vec::new();
    let claimed = le32(header, 12).unwrap_or(0);
    let covered = usize::try_from(claimed).ok().and_then(|size| header.get(..size));
    match covered.filter(|covered| covered.len() >= 92) {
        None => defects.push(format!("the header claims {claimed} bytes in a sector of {sector}")),
        Some(covered) => {
            // The checksum covers the header with its own field as zeros.
            let (before, after) = (covered.get(..16), covered.get(20..));
            let sum = crc32(&[before.unwrap_or_default(), &[0; 4], after.unwrap_or_default()]);
            if Some(sum) != le32(covered, 16) {
                defects.push("the header's checksum is wrong".to_owned());
            }
        }
    }
    if le64(header, 24) != Some(lba) {
        defects.push("the header names another sector as its own".to_owned());
    }
    defects
}

/// The entries' bytes and the size of one. The error is a defect that makes the header unusable.
fn read_array(
    source: &Source<'_>,
    header: &[u8],
    sector: u32,
    defects: &mut Vec<String>,
) -> Result<(Vec<u8>, usize), String> {
    let short = || "the header is cut off".to_owned();
    let start = le64(header, 72).ok_or_else(short)?;
    let count = le32(header, 80).ok_or_else(short)?;
    let size = le32(header, 84).ok_or_else(short)?;
    if !ENTRY.contains(&size) || !size.is_power_of_two() || count == 0 {
        return Err(format!("it claims {count} entries of {size} bytes"));
    }
    let claimed = u64::from(count) * u64::from(size);
    let wanted = claimed.min(ARRAY);
    let array = match start.checked_mul(sector.into()) {
        Some(offset) if start > 0 && offset < source.size() => {
            source.bytes(offset, usize::try_from(wanted).map_err(|error| error.to_string())?)
        }
        _ => return Err(format!("its entries begin at sector {start}, outside the evidence")),
    };
    if claimed > wanted {
        defects.push(format!(
            "it claims {count} entries, of which {} were read",
            wanted / u64::from(size)
        ));
    } else if (array.len() as u64) < claimed {
        defects.push("its entries run past the end of the evidence".to_owned());
    } else if Some(crc32(&[&array])) != le32(header, 88) {
        defects.push("the entries' checksum is wrong".to_owned());
    }
    Ok((array, usize::try_from(size).map_err(|error| error.to_string())?))
}

/// What to say about the choice.
fn describe(best: &Candidate, all: &[Candidate], size: u64) -> Vec<Trouble> {
    let mut troubles = Vec::new();
    let mut table = |reason: String, advice: &str| {
        troubles.push(Trouble::new(GapKind::PartitionTable, reason, advice));
    };
    if !best.is_primary() {
        let primary = all.iter().find(|other| other.is_primary() && other.sector == best.sector);
        let fault =
            primary.map_or("missing".to_owned(), |p| format!("damaged ({})", p.defects.join(", ")));
        table(
            format!("the primary GPT is {fault}; the {} is used", best.name()),
            "find out what overwrote it: tools that destroy or hide partitions start there",
        );
    }
    if !best.defects.is_empty() {
        table(
            format!(
                "the {} is damaged and used all the same: {}",
                best.name(),
                best.defects.join(", ")
            ),
            "compare the partitions found with what the system should have",
        );
    }
    let end = best.alternate.saturating_add(1).saturating_mul(best.sector.into());
    if best.is_primary() && best.defects.is_empty() && end > size {
        troubles.push(Trouble::new(
            GapKind::Evidence,
            format!(
                "the image is truncated: its GPT is of a disk of {end} bytes, {size} are there"
            ),
            "compare the image's size with the source's, and acquire it again",
        ));
    }
    troubles
}

/// The used entries (table 5.5), without those that make no sense.
fn read_entries(table: &Candidate, stored: &[u8], troubles: &mut Vec<Trouble>) -> Vec<Entry> {
    let sector = u64::from(table.sector);
    let mut entries = Vec::new();
    for (number, raw) in (1_u32..).zip(stored.chunks_exact(table.entry_size.max(1))) {
        let Some(kind) = array::<16>(raw, 0).filter(|kind| *kind != [0; 16]) else { continue };
        let (Some(first), Some(last)) = (le64(raw, 32), le64(raw, 40)) else { continue };
        let mut doubt = |reason: String| {
            troubles.push(Trouble::new(GapKind::PartitionTable, reason, "").of(number));
        };
        let Some(sectors) = last.checked_sub(first).map(|sectors| sectors.saturating_add(1)) else {
            doubt(format!("partition {number} ends at sector {last}, before its first, {first}"));
            continue;
        };
        if first < table.first_usable {
            let usable = table.first_usable;
            doubt(format!(
                "partition {number} begins at sector {first}, before the first usable one, {usable}; it is examined"
            ));
        }
        entries.push(Entry {
            number,
            name: raw.get(56..128).and_then(text_utf16),
            type_id: guid(kind),
            offset: first.saturating_mul(sector),
            length: sectors.saturating_mul(sector),
        });
    }
    entries
}
