//! The contract between the Cleanroom agent and its controller.
//!
//! Purpose: the names, records and report that one side writes and the other reads. Touches nothing:
//! plain types with their serialisation. Never holds behaviour that belongs to one side only, and
//! never reads a clock, a file or the network.

mod ids;
mod path;
mod record;
mod report;
mod time;

pub use ids::{CaseId, InstanceId, InvalidId, Sha256, SnapshotId, VolumeId};
pub use path::{EvidencePath, printable};
pub use record::{
    Binary, BinaryKind, DigestIndicator, EntryKind, EntryState, Extent, ExtentDigest, FileRecord,
    Finding, Gap, GapKind, PatternMatch, Progress, Record, RuleMatch, ScanState, Section, Severity,
    Summary, VersionOne, VolumeRecord, VolumeState,
};
pub use report::{
    BundleFile, Coverage, EvidenceSource, Report, RuleDiagnostic, RuleFile, Run, RunState,
    SeverityCounts,
};
pub use time::Timestamp;
