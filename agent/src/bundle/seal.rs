//! Sealing: the spool becomes the bundle.
//!
//! Purpose: one pass over the records in order, which feeds every writer; then the report, the sums
//! and the signature. Touches the bundle's folder. Never seals twice, and gives the spool up only when
//! everything is on disk under its final name.

use std::{
    collections::{BTreeMap, BinaryHeap},
    fs::{self, File},
    io::{self, BufWriter, Write as _},
    path::Path,
};

use cleanroom_contract::{
    EntryKind, Finding, Gap, Record, Report, ScanState, Severity, SeverityCounts,
};
use rayon::prelude::*;

use super::{
    bodyfile, html,
    signature::{SignatureError, SigningKey},
    spool::{Class, Sorted},
    sums::{self, SumsError},
    zstd_frames::FrameWriter,
};

/// The spool's folder within a bundle that is not yet sealed.
pub(crate) const SPOOL: &str = ".spool";
/// The report as far as it is known while the scan runs, in the spool's folder.
pub(crate) const DRAFT: &str = "report.json";
/// Findings and gaps that the report repeats.
const LISTED: usize = 100;
/// File records that are turned into timeline lines together.
const BATCH: usize = 4096;

/// Why a bundle could not be sealed.
#[derive(Debug, thiserror::Error)]
pub(crate) enum SealError {
    #[error("write {name}")]
    Write { name: &'static str, source: io::Error },
    #[error("read the spool")]
    Spool(#[source] io::Error),
    #[error("the bundle is sealed already")]
    Sealed,
    #[error("a record in the spool is damaged")]
    Record(#[source] serde_json::Error),
    #[error("encode the report")]
    Report(#[source] serde_json::Error),
    #[error("render the report")]
    Html(#[source] io::Error),
    #[error(transparent)]
    Sums(#[from] SumsError),
    #[error(transparent)]
    Signature(#[from] SignatureError),
}

/// Makes the bundle in `folder` from `records`. `report` says everything but the counts, which are made
/// here from the records themselves. `alive` is called again and again while it goes on.
pub(crate) fn seal(
    folder: &Path,
    records: Sorted,
    mut report: Report,
    key: Option<&SigningKey>,
    alive: &mut dyn FnMut(),
) -> Result<Report, SealError> {
    if fs::exists(folder.join(sums::SUMS)).map_err(SealError::Spool)? {
        return Err(SealError::Sealed);
    }
    let counts = write_records(folder, records, report.volumes.len() > 1, alive)?;
    counts.into_report(&mut report);
    let names = ["findings.jsonl", "files.jsonl.zst", "gaps.jsonl", "timeline.body"];
    let opened = super::folder::Folder::open(folder).map_err(SealError::Spool)?;
    let mut sealed = |name: &&'static str| {
        alive();
        sums::seal_file(&opened, name)
    };
    report.files = names.iter().map(&mut sealed).collect::<Result<_, _>>()?;
    alive();
    write_report(folder, &report)?;
    sums::write_sums(
        folder,
        &["report.json", "report.html", names[0], names[1], names[2], names[3]],
    )?;
    if let Some(key) = key
        && let Err(error) = key.sign_sums(folder)
    {
        // Without what was asked for it is not sealed, and can be sealed again.
        for name in [sums::SUMS, sums::SUMS_SIGNATURE] {
            drop(fs::remove_file(folder.join(name)));
        }
        return Err(error.into());
    }
    // What is sealed does not need it; a spool that stays behind is named by `verify`.
    drop(fs::remove_dir_all(folder.join(SPOOL)));
    Ok(report)
}

/// Writes the two forms of the report.
fn write_report(folder: &Path, report: &Report) -> Result<(), SealError> {
    let write = |name| move |source| SealError::Write { name, source };
    let mut json = serde_json::to_vec_pretty(report).map_err(SealError::Report)?;
    json.push(b'\n');
    fs::write(folder.join("report.json"), json).map_err(write("report.json"))?;
    let mut page = create(folder, "report.html")?;
    html::write_html(report, &mut page).map_err(SealError::Html)?;
    page.flush().map_err(write("report.html"))
}

fn create(folder: &Path, name: &'static str) -> Result<BufWriter<File>, SealError> {
    let file = File::create(folder.join(name));
    file.map(|file| BufWriter::with_capacity(256 << 10, file))
        .map_err(|source| SealError::Write { name, source })
}

/// What the records add up to.
#[derive(Debug, Default)]
struct Counts {
    entries: u64,
    files: u64,
    examined: u64,
    bytes: u64,
    findings: SeverityCounts,
    /// The worst findings, the first of each severity kept.
    worst: BinaryHeap<Kept>,
    gap_kinds: BTreeMap<cleanroom_contract::GapKind, u64>,
    gaps: Vec<Gap>,
    gap_records: u64,
}

/// A finding that is listed; the heap gives up the mildest and, among equals, the latest.
#[derive(Debug)]
struct Kept {
    severity: Severity,
    order: u64,
    finding: Finding,
}

impl Kept {
    fn key(&self) -> (std::cmp::Reverse<Severity>, u64) {
        (std::cmp::Reverse(self.severity), self.order)
    }
}
impl PartialEq for Kept {
    fn eq(&self, other: &Self) -> bool {
        self.key() == other.key()
    }
}
impl Eq for Kept {}
impl PartialOrd for Kept {
    fn partial_cmp(&self, other: &Self) -> Option<std::cmp::Ordering> {
        Some(self.cmp(other))
    }
}
impl Ord for Kept {
    fn cmp(&self, other: &Self) -> std::cmp::Ordering {
        self.key().cmp(&other.key())
    }
}

impl Counts {
    fn finding(&mut self, severity: Severity, json: &[u8]) -> Result<(), SealError> {
        self.findings.add(severity);
        let order = self.findings.total();
        let full = self.worst.len() >= LISTED;
        if full && self.worst.peek().is_some_and(|mildest| mildest.severity >= severity) {
            return Ok(());
        }
        if let Record::Finding(finding) = serde_json::from_slice(json).map_err(SealError::Record)? {
            self.worst.push(Kept { severity, order, finding });
            if full {
                self.worst.pop();
            }
        }
        Ok(())
    }

    fn gap(&mut self, json: &[u8]) -> Result<(), SealError> {
        if let Record::Gap(gap) = serde_json::from_slice(json).map_err(SealError::Record)? {
            self.gap_records += 1;
            *self.gap_kinds.entry(gap.kind).or_default() += 1;
            if self.gaps.len() < LISTED {
                self.gaps.push(gap);
            }
        }
        Ok(())
    }

    fn into_report(self, report: &mut Report) {
        report.summary.entries = self.entries;
        report.summary.files = self.files;
        report.summary.bytes = self.bytes;
        report.summary.findings = self.findings;
        report.summary.gaps = self.gap_records;
        report.coverage.entries = self.entries;
        report.coverage.files = self.files;
        report.coverage.files_examined = self.examined;
        report.coverage.gaps = self.gap_kinds;
        report.worst = self.worst.into_sorted_vec().into_iter().map(|kept| kept.finding).collect();
        report.gaps = self.gaps;
    }
}

/// The stream's writers.
struct Writers {
    files: FrameWriter<File>,
    timeline: BufWriter<File>,
    findings: BufWriter<File>,
    gaps: BufWriter<File>,
    batch: Vec<Vec<u8>>,
    /// Whether the timeline's paths name their volume.
    with_volume: bool,
    counts: Counts,
}

/// One pass over all records.
fn write_records(
    folder: &Path,
    mut records: Sorted,
    with_volume: bool,
    alive: &mut dyn FnMut(),
) -> Result<Counts, SealError> {
    let write = |name| move |source| SealError::Write { name, source };
    let files = File::create(folder.join("files.jsonl.zst")).map_err(write("files.jsonl.zst"))?;
    let mut writers = Writers {
        files: FrameWriter::new(files),
        timeline: create(folder, "timeline.body")?,
        findings: create(folder, "findings.jsonl")?,
        gaps: create(folder, "gaps.jsonl")?,
        batch: Vec::new(),
        with_volume,
        counts: Counts::default(),
    };
    while let Some(record) = records.next().map_err(SealError::Spool)? {
        match record.class {
            Class::File => {
                writers.batch.push(record.json);
                if writers.batch.len() == BATCH {
                    writers.flush_files()?;
                    alive();
                }
            }
            Class::Finding(severity) => {
                writers.counts.finding(severity, &record.json)?;
                writers.findings.write_all(&record.json).map_err(write("findings.jsonl"))?;
            }
            Class::Gap => {
                writers.counts.gap(&record.json)?;
                writers.gaps.write_all(&record.json).map_err(write("gaps.jsonl"))?;
            }
        }
    }
    writers.flush_files()?;
    writers.files.finish().map_err(write("files.jsonl.zst"))?;
    writers.timeline.flush().map_err(write("timeline.body"))?;
    writers.findings.flush().map_err(write("findings.jsonl"))?;
    writers.gaps.flush().map_err(write("gaps.jsonl"))?;
    Ok(writers.counts)
}

impl Writers {
    /// Writes the gathered file records and their timeline.
    fn flush_files(&mut self) -> Result<(), SealError> {
        let write = |name| move |source| SealError::Write { name, source };
        let chunk = BATCH / 16;
        let parts: Vec<_> = self
            .batch
            .par_chunks(chunk)
            .map(|records| timeline_of(records, self.with_volume))
            .collect::<Result<_, serde_json::Error>>()
            .map_err(SealError::Record)?;
        for (lines, tally) in parts {
            self.timeline.write_all(&lines).map_err(write("timeline.body"))?;
            self.counts.files += tally.files;
            self.counts.examined += tally.examined;
            self.counts.bytes += tally.bytes;
        }
        self.counts.entries += self.batch.len() as u64;
        for record in self.batch.drain(..) {
            let line = record.strip_suffix(b"\n").unwrap_or(&record);
            self.files.line(line).map_err(write("files.jsonl.zst"))?;
        }
        Ok(())
    }
}

/// What a few file records add up to.
#[derive(Debug, Default)]
struct Tally {
    files: u64,
    examined: u64,
    bytes: u64,
}

/// The timeline lines of some file records.
fn timeline_of(records: &[Vec<u8>], with_volume: bool) -> serde_json::Result<(Vec<u8>, Tally)> {
    let mut lines = Vec::new();
    let mut tally = Tally::default();
    for record in records {
        let entry = bodyfile::from_line(record)?;
        bodyfile::write_line(&entry, with_volume, &mut lines);
        if entry.kind != EntryKind::File {
            continue;
        }
        tally.files += 1;
        if entry.is_hashed() {
            tally.bytes = tally.bytes.saturating_add(entry.hashed_bytes());
            let judged =
                matches!(entry.scan, ScanState::Clean | ScanState::Matched | ScanState::Skipped);
            tally.examined += u64::from(judged);
        }
    }
    Ok((lines, tally))
}
