//! From facts to records: what a file is, what is worth a look, and what was not examined.
//!
//! Purpose: the one place that turns what inspectors answer into lines of the stream. Touches memory
//! only. Never lets a record grow past the contract's limit.

use cleanroom_contract::{
    DigestIndicator, EvidencePath, FileRecord, Finding, Gap, GapKind, Record, ScanState, Severity,
    VersionOne, printable,
};

use crate::{
    checks,
    indicators::Indicators,
    protocol::{Facts, Line, LineKind},
    walk::{crew::Outcome, links::Twin, tree::NotEntered},
};

/// The longest record, with its newline.
const MAX_RECORD: usize = 256 << 10;

/// Judges the entries of a volume.
#[derive(Debug)]
pub(crate) struct Judge {
    indicators: Indicators,
    /// Losses that became known outside the walk's own loop.
    pub(crate) late: Vec<Outcome>,
}

impl Judge {
    pub(crate) fn new(indicators: Indicators) -> Self {
        Self { indicators, late: Vec::new() }
    }

    /// The lines of a file that was inspected.
    pub(crate) fn answered(&self, twin: Twin, facts: Facts) -> Vec<Line> {
        let Twin { mut record, path } = twin;
        record.sha256 = facts.sha256;
        record.md5 = facts.md5;
        record.sha1 = facts.sha1;
        record.extents = facts.extents;
        record.entropy = facts.entropy;
        record.format = facts.format;
        record.scan = facts.scan;
        record.matches = facts.matches;
        record.binary = facts.binary;
        record.truncated |= facts.truncated;
        record.indicators = self.digest_hits(&record);

        let subject = checks::Subject {
            volume: &record.volume,
            path: &path,
            mode: record.mode,
            format: record.format.as_deref(),
            binary: record.binary.as_deref(),
            entropy: record.entropy,
            sha256: record.sha256,
        };
        let mut findings = checks::binaries::judge(&subject);
        findings.extend(checks::rules::judge_matches(&subject, &record.matches));
        findings.extend(record.indicators.iter().map(|hit| digest_finding(&record, &path, hit)));
        findings.extend(self.path_findings(&record, &path));
        if record.scan == ScanState::Timeout {
            findings.push(costly(&record, &path, "the rules were not done in time"));
        }
        let gaps = facts.troubles.into_iter().map(|trouble| {
            let mut gap = gap(trouble.kind, &record.volume, Some(&path), trouble.reason);
            gap.count = trouble.count;
            gap
        });
        let gaps: Vec<_> = gaps.collect();
        lines(*record, findings, gaps)
    }

    /// The lines of an entry whose content was not read for a reason that is no gap, or whose gaps are
    /// given.
    pub(crate) fn unread(&self, record: Box<FileRecord>, gaps: Vec<Gap>) -> Vec<Line> {
        let path = record.path.to_bytes();
        let findings = self.path_findings(&record, &path);
        lines(*record, findings, gaps)
    }

    /// The lines of a file above `--max-file-size`.
    pub(crate) fn too_large(&self, mut record: Box<FileRecord>, limit: u64) -> Vec<Line> {
        record.scan = ScanState::TooLarge;
        let reason = format!("{} bytes, --max-file-size is {limit}", record.size);
        let gap = gap_of(&record, GapKind::TooLarge, reason);
        self.unread(record, vec![gap])
    }

    /// The lines of an entry that could not be opened.
    pub(crate) fn unreadable(
        &self,
        mut record: Box<FileRecord>,
        error: &std::io::Error,
    ) -> Vec<Line> {
        record.scan = ScanState::Error;
        let mut gap = gap_of(&record, GapKind::Unreadable, format!("open: {error}"));
        if error.kind() == std::io::ErrorKind::PermissionDenied {
            gap.advice = Some("scan as root".to_owned());
        }
        self.unread(record, vec![gap])
    }

    /// The lines of a directory on which something is mounted.
    pub(crate) fn mount_point(&self, record: Box<FileRecord>) -> Vec<Line> {
        let reason = "a file system is mounted here, and was not entered".to_owned();
        let mut gap = gap_of(&record, GapKind::MountPoint, reason);
        gap.advice = Some("give it as evidence of its own".to_owned());
        self.unread(record, vec![gap])
    }

    /// The lines of a file that its inspector did not survive.
    pub(crate) fn lost(&self, twin: Twin, kind: GapKind, reason: &str) -> Vec<Line> {
        let Twin { mut record, path } = twin;
        record.scan = if kind == GapKind::Timeout { ScanState::Timeout } else { ScanState::Error };
        let mut findings = self.path_findings(&record, &path);
        findings.push(costly(&record, &path, reason));
        let gap = gap_of(&record, kind, reason.to_owned());
        lines(*record, findings, vec![gap])
    }

    /// The lines of a directory that was not entered.
    pub(crate) fn not_entered(
        &self,
        volume: &str,
        path: &[u8],
        why: &NotEntered,
        seq: u64,
    ) -> Vec<Line> {
        let (kind, reason) = match why {
            NotEntered::TooDeep(limit) => {
                (GapKind::TooDeep, format!("deeper than {limit} directories: not entered"))
            }
            NotEntered::LongPath => {
                (GapKind::TooDeep, "its path is longer than 32 KiB: not entered".to_owned())
            }
            NotEntered::Failed(errno) => {
                (GapKind::Unreadable, format!("read: {}", std::io::Error::from(*errno)))
            }
            NotEntered::Twice => (
                GapKind::TooDeep,
                "a directory that was entered before, by another name: not entered again"
                    .to_owned(),
            ),
            NotEntered::TooManyNames => {
                (GapKind::Unreadable, "more names than are read: the rest was not seen".to_owned())
            }
        };
        let mut lines = Vec::new();
        if kind == GapKind::TooDeep {
            let source = "walk:depth";
            let finding = Finding {
                v: VersionOne,
                id: checks::finding_id(volume, path, source),
                severity: Severity::Medium,
                title: "directories that no honest system makes".to_owned(),
                reason: reason.clone(),
                technique: Some("T1564.001".to_owned()),
                volume: volume.to_owned(),
                path: Some(EvidencePath::new(path)),
                evidence: None,
                source: source.to_owned(),
                author: None,
                sha256: None,
            };
            lines.push(line(
                LineKind::Finding(finding.severity),
                seq,
                0,
                &Record::Finding(finding),
            ));
        }
        lines.push(gap_line(&gap(kind, volume, Some(path), reason), seq, 0));
        lines
    }

    fn digest_hits(&self, record: &FileRecord) -> Vec<DigestIndicator> {
        let mut hits = Vec::new();
        let mut add = |algorithm: &str, list: Option<&str>| {
            hits.extend(list.map(|list| DigestIndicator {
                algorithm: algorithm.to_owned(),
                list: list.to_owned(),
            }));
        };
        add("sha256", record.sha256.as_ref().and_then(|d| self.indicators.find_sha256(&d.0)));
        add("sha1", record.sha1.as_ref().and_then(|d| self.indicators.find_sha1(&unhex(d)?)));
        add("md5", record.md5.as_ref().and_then(|d| self.indicators.find_md5(&unhex(d)?)));
        hits
    }

    fn path_findings(&self, record: &FileRecord, path: &[u8]) -> Vec<Finding> {
        let hits = self.indicators.match_path(path).into_iter();
        hits.map(|hit| {
            let source = format!("path:{}:{}", hit.list, hit.line);
            Finding {
                v: VersionOne,
                id: checks::finding_id(&record.volume, path, &source),
                severity: checks::severity_of_score(hit.score as f64),
                title: hit.description.unwrap_or("path indicator").to_owned(),
                reason: format!("the path matches {} (score {})", hit.pattern, hit.score),
                technique: None,
                volume: record.volume.clone(),
                path: Some(record.path.clone()),
                evidence: Some(printable(&record.path.path).chars().take(1024).collect()),
                source,
                author: None,
                sha256: record.sha256,
            }
        })
        .collect()
    }
}

/// Lower-case hexadecimal as bytes.
fn unhex<const N: usize>(text: &str) -> Option<[u8; N]> {
    let mut bytes = [0; N];
    if text.len() != 2 * N || !text.is_ascii() {
        return None;
    }
    for (i, byte) in bytes.iter_mut().enumerate() {
        *byte = u8::from_str_radix(&text[2 * i..2 * i + 2], 16).ok()?;
    }
    Some(bytes)
}

/// A file whose digest is on a list.
fn digest_finding(record: &FileRecord, path: &[u8], hit: &DigestIndicator) -> Finding {
    let source = format!("digest:{}:{}", hit.algorithm, hit.list);
    Finding {
        v: VersionOne,
        id: checks::finding_id(&record.volume, path, &source),
        severity: Severity::Critical,
        title: "known bad file".to_owned(),
        reason: format!("its {} is on the list {}", hit.algorithm, hit.list),
        technique: None,
        volume: record.volume.clone(),
        path: Some(record.path.clone()),
        evidence: None,
        source,
        author: None,
        sha256: record.sha256,
    }
}

/// A file that cost its inspector its life or its time: made to, perhaps.
fn costly(record: &FileRecord, path: &[u8], reason: &str) -> Finding {
    let source = "inspect:lost";
    Finding {
        v: VersionOne,
        id: checks::finding_id(&record.volume, path, source),
        severity: Severity::Medium,
        title: "file that could not be inspected".to_owned(),
        reason: format!("{reason}; a file can be made to do this"),
        technique: Some("T1027".to_owned()),
        volume: record.volume.clone(),
        path: Some(record.path.clone()),
        evidence: None,
        source: source.to_owned(),
        author: None,
        sha256: record.sha256,
    }
}

/// A gap about one thing.
pub(crate) fn gap(kind: GapKind, volume: &str, path: Option<&[u8]>, reason: String) -> Gap {
    Gap {
        v: VersionOne,
        kind,
        volume: Some(volume.to_owned()),
        path: path.map(EvidencePath::new),
        reason,
        advice: None,
        count: 1,
    }
}

/// A gap about several things of a volume.
pub(crate) fn counted(kind: GapKind, volume: &str, reason: String, count: u64) -> Gap {
    Gap { count, ..gap(kind, volume, None, reason) }
}

fn gap_of(record: &FileRecord, kind: GapKind, reason: String) -> Gap {
    Gap { path: Some(record.path.clone()), ..gap(kind, &record.volume, None, reason) }
}

/// The lines of an entry: its record, its findings, its gaps.
fn lines(record: FileRecord, findings: Vec<Finding>, gaps: Vec<Gap>) -> Vec<Line> {
    let seq = record.seq;
    let mut lines = vec![file_line(record)];
    for (sub, finding) in (0..).zip(&findings) {
        lines.push(finding_line(finding, seq, sub));
    }
    for (sub, gap) in (0..).zip(&gaps) {
        lines.push(gap_line(gap, seq, sub));
    }
    lines
}

/// A file record within the size limit: what can be long is cut, and the record says so.
fn file_line(record: FileRecord) -> Line {
    let seq = record.seq;
    let mut record = Record::File(Box::new(record));
    let mut made = line(LineKind::File, seq, 0, &record);
    if made.json.len() > MAX_RECORD
        && let Record::File(file) = &mut record
    {
        file.truncated = true;
        file.xattrs.clear();
        file.matches.truncate(64);
        for matched in &mut file.matches {
            matched.metadata.clear();
            matched.patterns.truncate(4);
        }
        if let Some(binary) = &mut file.binary {
            binary.libraries.truncate(16);
            binary.sections.truncate(16);
        }
        made = line(LineKind::File, seq, 0, &record);
        if made.json.len() > MAX_RECORD
            && let Record::File(file) = &mut record
        {
            // Only a lying inspector gets here: its facts are dropped, the entry's own are kept.
            file.matches.clear();
            file.binary = None;
            file.extents = None;
            file.scan = ScanState::Error;
            made = line(LineKind::File, seq, 0, &record);
        }
    }
    made
}

/// A gap as a line.
pub(crate) fn gap_line(gap: &Gap, seq: u64, sub: u32) -> Line {
    line(LineKind::Gap(gap.kind), seq, sub, &Record::Gap(gap.clone()))
}

/// A finding as a line.
pub(crate) fn finding_line(finding: &Finding, seq: u64, sub: u32) -> Line {
    line(LineKind::Finding(finding.severity), seq, sub, &Record::Finding(finding.clone()))
}

fn line(kind: LineKind, seq: u64, sub: u32, record: &Record) -> Line {
    // The contract's types always serialise: their maps have text keys and their numbers are finite.
    let mut json = serde_json::to_vec(record).unwrap_or_default();
    json.push(b'\n');
    Line { kind, seq, sub, json }
}
