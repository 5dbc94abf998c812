//! `report.json`: what was examined, by whom, with what, and what came of it.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use crate::{
    CaseId, Finding, Gap, GapKind, Severity, Sha256, Summary, Timestamp, VersionOne, VolumeRecord,
};

/// Findings counted by severity. Severities without any are absent.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(transparent)]
pub struct SeverityCounts(pub BTreeMap<Severity, u64>);

impl SeverityCounts {
    /// Counts one more.
    pub fn add(&mut self, severity: Severity) {
        *self.0.entry(severity).or_default() += 1;
    }

    /// The count of one severity.
    #[must_use]
    pub fn get(&self, severity: Severity) -> u64 {
        self.0.get(&severity).copied().unwrap_or(0)
    }

    /// All together.
    #[must_use]
    pub fn total(&self) -> u64 {
        self.0.values().sum()
    }
}

/// Whether the scan came to its end.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum RunState {
    /// Everything that can be examined was.
    Complete,
    /// A person or the system stopped it.
    Interrupted,
    /// A part of it failed; gaps say which.
    Failed,
}

/// One run of the agent. Its values and times are all that differs between two runs on the same
/// evidence with the same rules.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Run {
    /// Random, 32 hexadecimal digits.
    pub id: String,
    /// When it began.
    pub started: Timestamp,
    /// When the bundle was sealed.
    pub ended: Timestamp,
    /// `cleanroom-agent <version>`.
    pub agent: String,
    /// SHA-256 of the agent's own executable.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub agent_sha256: Option<Sha256>,
    /// The arguments as typed, printable.
    pub arguments: Vec<String>,
    /// Host name of the machine that scanned.
    pub host: String,
    /// Kernel release of that machine.
    pub kernel: String,
    /// How it ended.
    pub state: RunState,
}

/// One piece of evidence, as given.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct EvidenceSource {
    /// Its name in the volumes' names.
    pub name: String,
    /// As typed.
    pub given: String,
    /// `folder`, `image`, `device`, or `unknown` where it could not be opened.
    pub kind: String,
    /// Bytes; absent for folders.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub size: Option<u64>,
    /// Partition table: `gpt`, `mbr`; absent where there is none.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub partition_table: Option<String>,
}

/// A rule or indicator file that was used.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct RuleFile {
    /// As found.
    pub path: String,
    /// Of its bytes.
    pub sha256: Sha256,
    /// Rules or indicators taken from it.
    pub entries: u64,
}

/// What the rule compiler said of a source.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct RuleDiagnostic {
    /// The rule file.
    pub path: String,
    /// From 1.
    pub line: u64,
    /// From 1.
    pub column: u64,
    /// The compiler's message, printable.
    pub message: String,
    /// False for a warning: the file was still used.
    pub error: bool,
}

/// A file of the bundle.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct BundleFile {
    /// Name in the bundle.
    pub name: String,
    /// Bytes.
    pub size: u64,
    /// Of its bytes.
    pub sha256: Sha256,
}

/// How much of the evidence was examined.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Coverage {
    /// Volumes found.
    pub volumes: u64,
    /// Volumes walked to their end.
    pub volumes_examined: u64,
    /// Entries recorded.
    pub entries: u64,
    /// Regular files among them.
    pub files: u64,
    /// Regular files read to their end and judged by every rule.
    pub files_examined: u64,
    /// Gaps by kind.
    pub gaps: BTreeMap<GapKind, u64>,
}

/// `report.json`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Report {
    /// Schema version.
    pub v: VersionOne,
    /// The case, where one was given.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub case: Option<CaseId>,
    /// Who examines.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub examiner: Option<String>,
    /// The evidence's number in the examiner's books.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub evidence_id: Option<String>,
    /// Free text.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub notes: Vec<String>,
    /// The run.
    pub run: Run,
    /// What was given.
    pub evidence: Vec<EvidenceSource>,
    /// What was found in it.
    pub volumes: Vec<VolumeRecord>,
    /// Rule files used.
    pub rules: Vec<RuleFile>,
    /// Indicator lists used.
    pub indicators: Vec<RuleFile>,
    /// What the rule compiler said.
    pub rule_diagnostics: Vec<RuleDiagnostic>,
    /// The limits in force: name to value.
    pub limits: BTreeMap<String, String>,
    /// Counts.
    pub summary: Summary,
    /// How much was examined.
    pub coverage: Coverage,
    /// The worst findings, at most 100, worst first; all are in `findings.jsonl`.
    pub worst: Vec<Finding>,
    /// The first gaps, at most 100; all are in `gaps.jsonl`.
    pub gaps: Vec<Gap>,
    /// The other files of the bundle, this report and the sums excepted.
    pub files: Vec<BundleFile>,
}
