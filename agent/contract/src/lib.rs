//! The contract between the Cleanroom agent and its controller.
//!
//! Purpose: the names, records and report that one side writes and the other reads. Touches nothing:
//! plain types with their serialisation. Never holds behaviour that belongs to one side only, and
//! never reads a clock, a file or the network.

mod ids;
mod keys;
mod order;
mod path;
mod record;
mod report;
mod room;
mod time;

pub use ids::{CaseId, InstanceId, InvalidId, ScanId, Sha256, SnapshotId, VolumeId};
pub use keys::{bundle_prefix, event_key, events_prefix, order_key, orders_prefix};
pub use order::{
    Destination, OrderedFile, OrderedVolume, ScanLimits, VolumeRole, WorkOrder, first_room,
    is_first_room,
};
pub use path::{EvidencePath, printable};
pub use record::{
    Binary, BinaryKind, DigestIndicator, EntryKind, EntryState, Extent, ExtentDigest, FileRecord,
    Finding, Gap, GapKind, PatternMatch, Progress, Record, Replay, ReplayMeans, RuleMatch,
    ScanState, Section, Severity, Summary, VersionOne, VolumeRecord, VolumeState,
};
pub use report::{
    BundleFile, Coverage, EvidenceSource, Report, RuleDiagnostic, RuleFile, Run, RunState,
    SeverityCounts,
};
pub use room::{PublishedFile, Room, RoomEvent, RoomNews, RoomWork};
pub use time::Timestamp;
