//! The spool: records as they come, safe on disk at once, read back in order.
//!
//! Purpose: hold any number of records in bounded memory until the bundle is sealed. Records are
//! appended in completion order to segment files; the places of a full segment's records are sorted
//! and written beside it; reading merges the segments. What a killed run leaves behind can still be
//! read: frames carry their own length and key, so a lost index is made again and a torn last frame
//! is dropped. Touches its own folder. Never rewrites what was appended.

use std::{
    cmp::Reverse,
    collections::BinaryHeap,
    fs::{self, File},
    io::{self, BufReader, BufWriter, Read as _, Write as _},
    os::unix::fs::FileExt as _,
    path::{Path, PathBuf},
};

use cleanroom_contract::Severity;

use crate::protocol::{Line, LineKind};

/// A segment is closed when it has grown past this.
const SEGMENT: u64 = 128 << 20;
/// Length, class, rank, volume, seq, sub.
const HEADER: usize = 4 + 1 + 1 + 4 + 8 + 4;
/// Volume, class, seq, sub, rank, offset, length.
const PLACE: usize = 4 + 1 + 8 + 4 + 1 + 8 + 4;
/// The longest record.
const MAX_RECORD: u32 = 1 << 20;

/// Which of the bundle's streams a record belongs to.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Class {
    File,
    Finding(Severity),
    Gap,
}

impl Class {
    fn encode(self) -> (u8, u8) {
        match self {
            Self::File => (0, 0),
            Self::Finding(severity) => {
                let rank = Severity::ALL.iter().position(|s| *s == severity).unwrap_or(0);
                (1, u8::try_from(rank).unwrap_or(0))
            }
            Self::Gap => (2, 0),
        }
    }

    fn decode(class: u8, rank: u8) -> Option<Self> {
        match class {
            0 => Some(Self::File),
            1 => Severity::ALL.get(usize::from(rank)).copied().map(Self::Finding),
            2 => Some(Self::Gap),
            _ => None,
        }
    }
}

/// Where a record lies; ordered as the bundle is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
struct Place {
    volume: u32,
    seq: u64,
    class: Class,
    sub: u32,
    offset: u64,
    length: u32,
}

impl Place {
    fn to_bytes(self) -> [u8; PLACE] {
        let (class, rank) = self.class.encode();
        let mut bytes = [0; PLACE];
        bytes[..4].copy_from_slice(&self.volume.to_le_bytes());
        bytes[4] = class;
        bytes[5..13].copy_from_slice(&self.seq.to_le_bytes());
        bytes[13..17].copy_from_slice(&self.sub.to_le_bytes());
        bytes[17] = rank;
        bytes[18..26].copy_from_slice(&self.offset.to_le_bytes());
        bytes[26..].copy_from_slice(&self.length.to_le_bytes());
        bytes
    }

    fn from_bytes(bytes: &[u8; PLACE]) -> io::Result<Self> {
        let u32_at = |at: usize| bytes[at..].first_chunk().map_or(0, |b| u32::from_le_bytes(*b));
        let u64_at = |at: usize| bytes[at..].first_chunk().map_or(0, |b| u64::from_le_bytes(*b));
        Ok(Self {
            volume: u32_at(0),
            class: Class::decode(bytes[4], bytes[17]).ok_or_else(|| damaged("class"))?,
            seq: u64_at(5),
            sub: u32_at(13),
            offset: u64_at(18),
            length: u32_at(26),
        })
    }
}

fn damaged(what: &str) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, format!("the spool is damaged: {what}"))
}

/// A spool that is being written.
#[derive(Debug)]
pub(crate) struct Spool {
    folder: PathBuf,
    segment: BufWriter<File>,
    number: u32,
    written: u64,
    places: Vec<Place>,
}

impl Spool {
    /// Begins in `folder`, which exists and is empty.
    pub(crate) fn create(folder: &Path) -> io::Result<Self> {
        Ok(Self {
            folder: folder.to_owned(),
            segment: BufWriter::with_capacity(256 << 10, new_file(&segment_path(folder, 0))?),
            number: 0,
            written: 0,
            places: Vec::new(),
        })
    }

    /// Appends a record of the volume with this ordinal.
    pub(crate) fn append(&mut self, volume: u32, line: &Line) -> io::Result<()> {
        let class = match line.kind {
            LineKind::File => Class::File,
            LineKind::Finding(severity) => Class::Finding(severity),
            LineKind::Gap(_) => Class::Gap,
        };
        let length = u32::try_from(line.json.len())
            .ok()
            .filter(|length| *length <= MAX_RECORD)
            .ok_or_else(|| io::Error::other("a record above the size limit"))?;
        let (code, rank) = class.encode();
        let mut header = [0; HEADER];
        header[..4].copy_from_slice(&length.to_le_bytes());
        header[4] = code;
        header[5] = rank;
        header[6..10].copy_from_slice(&volume.to_le_bytes());
        header[10..18].copy_from_slice(&line.seq.to_le_bytes());
        header[18..].copy_from_slice(&line.sub.to_le_bytes());
        self.segment.write_all(&header)?;
        self.segment.write_all(&line.json)?;
        let offset = self.written + HEADER as u64;
        let (seq, sub) = (line.seq, line.sub);
        self.places.push(Place { volume, seq, class, sub, offset, length });
        self.written = offset + u64::from(length);
        if self.written >= SEGMENT { self.roll() } else { Ok(()) }
    }

    /// Hands what is buffered to the system, so that it outlives this process.
    pub(crate) fn flush(&mut self) -> io::Result<()> {
        self.segment.flush()
    }

    /// Closes the segment and begins the next.
    fn roll(&mut self) -> io::Result<()> {
        self.close_segment()?;
        self.number += 1;
        let next = new_file(&segment_path(&self.folder, self.number))?;
        self.segment = BufWriter::with_capacity(256 << 10, next);
        self.written = 0;
        Ok(())
    }

    fn close_segment(&mut self) -> io::Result<()> {
        self.segment.flush()?;
        self.places.sort_unstable();
        write_index(&index_path(&self.folder, self.number), &self.places)?;
        self.places.clear();
        Ok(())
    }

    /// Ends the writing; the records can be read in order.
    pub(crate) fn finish(mut self) -> io::Result<Sorted> {
        self.close_segment()?;
        Sorted::open(&self.folder)
    }
}

fn segment_path(folder: &Path, number: u32) -> PathBuf {
    folder.join(format!("{number:06}.records"))
}

fn index_path(folder: &Path, number: u32) -> PathBuf {
    folder.join(format!("{number:06}.index"))
}

fn new_file(path: &Path) -> io::Result<File> {
    File::options().write(true).create_new(true).open(path)
}

/// Writes an index, whole or not at all: one that a full disk cut off would hide records.
fn write_index(path: &Path, places: &[Place]) -> io::Result<()> {
    let new = path.with_extension("index.new");
    let mut index = BufWriter::new(File::create(&new)?);
    for place in places {
        index.write_all(&place.to_bytes())?;
    }
    index.flush()?;
    fs::rename(new, path)
}

/// A record read back.
#[derive(Debug)]
pub(crate) struct Spooled {
    pub class: Class,
    /// The JSON line with its newline.
    pub json: Vec<u8>,
}

/// The spool's records in the bundle's order: volume, path, then the entry's file record, findings
/// and gaps.
#[derive(Debug)]
pub(crate) struct Sorted {
    segments: Vec<Segment>,
    heads: BinaryHeap<Reverse<(Place, usize)>>,
    /// A gap that comes after all records.
    last: Option<Vec<u8>>,
}

#[derive(Debug)]
struct Segment {
    records: File,
    index: BufReader<File>,
}

impl Segment {
    fn next_place(&mut self) -> io::Result<Option<Place>> {
        let mut bytes = [0; PLACE];
        match self.index.read_exact(&mut bytes) {
            Ok(()) => Place::from_bytes(&bytes).map(Some),
            Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => Ok(None),
            Err(error) => Err(error),
        }
    }
}

impl Sorted {
    /// Opens a spool that was written here, by this run or by one that was killed.
    pub(crate) fn open(folder: &Path) -> io::Result<Self> {
        let mut sorted = Self { segments: Vec::new(), heads: BinaryHeap::new(), last: None };
        for number in 0.. {
            let records = match File::open(segment_path(folder, number)) {
                Ok(records) => records,
                Err(error) if error.kind() == io::ErrorKind::NotFound => break,
                Err(error) => return Err(error),
            };
            let index = index_path(folder, number);
            if !fs::exists(&index)? {
                write_index(&index, &places_of(&records)?)?;
            }
            let index = BufReader::new(File::open(&index)?);
            let mut segment = Segment { records, index };
            if let Some(place) = segment.next_place()? {
                sorted.heads.push(Reverse((place, sorted.segments.len())));
            }
            sorted.segments.push(segment);
        }
        Ok(sorted)
    }

    /// Lets a gap, a JSON line with its newline, follow all records.
    pub(crate) fn push_last(&mut self, gap: Vec<u8>) {
        self.last = Some(gap);
    }

    /// The next record.
    pub(crate) fn next(&mut self) -> io::Result<Option<Spooled>> {
        let Some(Reverse((place, number))) = self.heads.pop() else {
            let last = self.last.take();
            return Ok(last.map(|json| Spooled { class: Class::Gap, json }));
        };
        let segment = &mut self.segments[number];
        if place.length > MAX_RECORD {
            return Err(damaged("record length"));
        }
        let mut json = vec![0; place.length as usize];
        segment.records.read_exact_at(&mut json, place.offset)?;
        if let Some(next) = segment.next_place()? {
            self.heads.push(Reverse((next, number)));
        }
        Ok(Some(Spooled { class: place.class, json }))
    }
}

/// How many whole records a spool holds, whoever wrote it.
pub(crate) fn count(folder: &Path) -> io::Result<u64> {
    let mut count = 0;
    for number in 0.. {
        let records = match File::open(segment_path(folder, number)) {
            Ok(records) => records,
            Err(error) if error.kind() == io::ErrorKind::NotFound => break,
            Err(error) => return Err(error),
        };
        count += match fs::metadata(index_path(folder, number)) {
            Ok(index) => index.len() / PLACE as u64,
            Err(_) => places_of(&records)?.len() as u64,
        };
    }
    Ok(count)
}

/// The places of a segment whose index was never written, up to the first frame that is not whole.
fn places_of(records: &File) -> io::Result<Vec<Place>> {
    let size = records.metadata()?.len();
    let mut reader = BufReader::new(records);
    let mut places = Vec::new();
    let mut offset = 0;
    loop {
        let mut header = [0; HEADER];
        match reader.read_exact(&mut header) {
            Ok(()) => {}
            Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => break,
            Err(error) => return Err(error),
        }
        let u32_at = |at: usize| header[at..].first_chunk().map_or(0, |b| u32::from_le_bytes(*b));
        let length = u32_at(0);
        offset += HEADER as u64;
        let Some(class) = Class::decode(header[4], header[5]) else { break };
        if length > MAX_RECORD || offset + u64::from(length) > size {
            break;
        }
        let seq = header[10..].first_chunk().map_or(0, |b| u64::from_le_bytes(*b));
        let (volume, sub) = (u32_at(6), u32_at(18));
        places.push(Place { volume, seq, class, sub, offset, length });
        offset += u64::from(length);
        reader.seek_relative(i64::from(length))?;
    }
    places.sort_unstable();
    Ok(places)
}

#[cfg(test)]
mod tests {
    use cleanroom_contract::GapKind;
    use proptest::prelude::*;

    use super::*;

    fn line(kind: LineKind, seq: u64, sub: u32) -> Line {
        Line { kind, seq, sub, json: format!("{{\"seq\":{seq},\"sub\":{sub}}}\n").into_bytes() }
    }

    fn drain(mut sorted: Sorted) -> Vec<(Class, String)> {
        let mut all = Vec::new();
        while let Some(record) = sorted.next().unwrap() {
            all.push((record.class, String::from_utf8(record.json).unwrap()));
        }
        all
    }

    proptest! {
        #[test]
        fn records_come_back_whole_and_in_order(keys in proptest::collection::vec((0..3_u32, 0..50_u64, 0..3_u32), 0..200), roll in 1..20_usize) {
            let folder = tempfile::tempdir().unwrap();
            let mut spool = Spool::create(folder.path()).unwrap();
            for (i, (volume, seq, sub)) in keys.iter().enumerate() {
                spool.append(*volume, &line(LineKind::File, *seq, *sub)).unwrap();
                if i % roll == 0 {
                    spool.roll().unwrap();
                }
            }
            let mut expected = keys.clone();
            expected.sort_unstable();
            let expected: Vec<_> = expected
                .into_iter()
                .map(|(_, seq, sub)| (Class::File, format!("{{\"seq\":{seq},\"sub\":{sub}}}\n")))
                .collect();
            prop_assert_eq!(drain(spool.finish().unwrap()), expected);
        }
    }

    #[test]
    fn an_entrys_file_comes_before_its_findings_and_gaps() {
        let folder = tempfile::tempdir().unwrap();
        let mut spool = Spool::create(folder.path()).unwrap();
        let high = LineKind::Finding(Severity::High);
        for kind in [LineKind::Gap(GapKind::Timeout), high, LineKind::File] {
            spool.append(0, &line(kind, 4, 0)).unwrap();
        }
        let classes: Vec<_> = drain(spool.finish().unwrap()).into_iter().map(|r| r.0).collect();
        assert_eq!(classes, [Class::File, Class::Finding(Severity::High), Class::Gap]);
    }

    #[test]
    fn a_killed_run_loses_its_torn_last_record_only() {
        let folder = tempfile::tempdir().unwrap();
        let mut spool = Spool::create(folder.path()).unwrap();
        for seq in [2, 0, 1] {
            spool.append(0, &line(LineKind::File, seq, 0)).unwrap();
        }
        spool.flush().unwrap();
        drop(spool);
        let path = segment_path(folder.path(), 0);
        let torn = fs::metadata(&path).unwrap().len() - 3;
        File::options().write(true).open(&path).unwrap().set_len(torn).unwrap();
        assert_eq!(count(folder.path()).unwrap(), 2, "without an index");
        let left = drain(Sorted::open(folder.path()).unwrap());
        assert_eq!(left.len(), 2);
        assert_eq!(count(folder.path()).unwrap(), 2, "with one");
        assert_eq!(count(&folder.path().join("none")).unwrap(), 0);
        assert!(left[0].1.contains("\"seq\":0,") && left[1].1.contains("\"seq\":2,"));
    }
}
