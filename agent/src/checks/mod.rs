//! The investigation: facts → findings.
//!
//! Purpose: to judge what inspectors found, each family in its file. Touches nothing: every judgement is a
//! function of what it is given, so that two runs give the same findings with the same ids. Never reads
//! evidence or a clock.

pub(crate) mod binaries;
pub(crate) mod rules;

use cleanroom_contract::{Binary, EvidencePath, Finding, Severity, Sha256, VersionOne};
use sha2::Digest as _;

/// Characters of a finding's `evidence`.
const EVIDENCE_LIMIT: usize = 1024;
/// Characters of other texts of a finding that evidence or rules bring.
const TEXT_LIMIT: usize = 1024;

/// A file, as far as judgements on single files ask.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Subject<'a> {
    /// The volume's name.
    pub(crate) volume: &'a str,
    /// Absolute from the view's root.
    pub(crate) path: &'a [u8],
    /// Permission bits.
    pub(crate) mode: u32,
    /// A name of `inspect::format`.
    pub(crate) format: Option<&'a str>,
    /// Facts about an executable.
    pub(crate) binary: Option<&'a Binary>,
    /// Of the whole content, in bits a byte.
    pub(crate) entropy: Option<f64>,
    /// Of the content.
    pub(crate) sha256: Option<Sha256>,
}

/// What a judgement says about a subject.
struct Verdict {
    /// The check: `binaries:<what>`, or `rule:<namespace>:<rule>`.
    source: String,
    severity: Severity,
    title: String,
    /// A plain sentence with the facts.
    reason: String,
    technique: Option<String>,
    evidence: Option<String>,
    author: Option<String>,
}

impl Verdict {
    fn on(self, subject: &Subject<'_>) -> Finding {
        Finding {
            v: VersionOne,
            id: finding_id(subject.volume, subject.path, &self.source),
            severity: self.severity,
            title: self.title,
            reason: self.reason,
            technique: self.technique,
            volume: subject.volume.to_owned(),
            path: Some(EvidencePath::new(subject.path)),
            evidence: self.evidence.map(|text| text.chars().take(EVIDENCE_LIMIT).collect()),
            source: self.source,
            author: self.author,
            sha256: subject.sha256,
        }
    }
}

/// A finding's id: the first 16 hexadecimal digits of the SHA-256 over volume, path and source, each after
/// its length as 64 bits, big-endian, so that no two triples give the same bytes.
pub(crate) fn finding_id(volume: &str, path: &[u8], source: &str) -> String {
    let mut hash = sha2::Sha256::new();
    for part in [volume.as_bytes(), path, source.as_bytes()] {
        hash.update((part.len() as u64).to_be_bytes());
        hash.update(part);
    }
    hash.finalize().iter().take(8).map(|byte| format!("{byte:02x}")).collect()
}

/// The severity of a score of 0 to 100 as THOR and Loki give their rules and indicators: from 90 critical,
/// from 75 high, from 60 medium, from 40 low, else info.
pub(crate) fn severity_of_score(score: f64) -> Severity {
    match score {
        90.0.. => Severity::Critical,
        75.0.. => Severity::High,
        60.0.. => Severity::Medium,
        40.0.. => Severity::Low,
        _ => Severity::Info,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_id_depends_on_every_part_and_on_where_one_ends() {
        let id = finding_id("disk.img:p1", b"/bin/x", "binaries:packed");
        assert_eq!(id.len(), 16);
        assert_eq!(id, finding_id("disk.img:p1", b"/bin/x", "binaries:packed"));
        for (volume, path, source) in [
            ("disk.img:p2", &b"/bin/x"[..], "binaries:packed"),
            ("disk.img:p1", b"/bin/", "xbinaries:packed"),
            ("disk.img:p1/", b"bin/x", "binaries:packed"),
            ("disk.img:p1", b"/bin/x", "binaries:packee"),
        ] {
            assert_ne!(id, finding_id(volume, path, source));
        }
    }

    /// Python: `hashlib.sha256(b"".join(struct.pack(">Q", len(p)) + p for p in (b"v", b"/p", b"s")))`.
    #[test]
    fn an_id_is_the_documented_digest() {
        assert_eq!(finding_id("v", b"/p", "s"), "4938663660a961e5");
    }

    #[test]
    fn scores_fall_into_their_bands() {
        for (score, severity) in [
            (-5.0, Severity::Info),
            (0.0, Severity::Info),
            (39.0, Severity::Info),
            (40.0, Severity::Low),
            (60.0, Severity::Medium),
            (74.9, Severity::Medium),
            (75.0, Severity::High),
            (90.0, Severity::Critical),
            (1000.0, Severity::Critical),
            (f64::NAN, Severity::Info),
        ] {
            assert_eq!(severity_of_score(score), severity, "{score}");
        }
    }
}
