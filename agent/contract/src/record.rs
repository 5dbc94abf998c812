//! The records: one stream of JSON lines that the bundle, the terminal and the controller all read.

use std::collections::BTreeMap;

use serde::{Deserialize, Deserializer, Serialize, Serializer, de::Error as _};

use crate::{EvidencePath, Sha256, Timestamp};

/// The record's schema version. Written as `1`; reading any other number is an error.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct VersionOne;

impl Serialize for VersionOne {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_u8(1)
    }
}

impl<'de> Deserialize<'de> for VersionOne {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        match u64::deserialize(deserializer)? {
            1 => Ok(Self),
            other => Err(D::Error::custom(format!("record version {other}, this program reads 1"))),
        }
    }
}

/// One line of the stream.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(tag = "type", rename_all = "snake_case")]
pub enum Record {
    /// A volume that was looked at.
    Volume(VolumeRecord),
    /// An entry of a volume.
    File(Box<FileRecord>),
    /// Something worth a person's look.
    Finding(Finding),
    /// Something that was not examined.
    Gap(Gap),
    /// How far a running scan is.
    Progress(Progress),
    /// The end of a scan.
    Summary(Summary),
}

/// How far the examination of a volume came.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum VolumeState {
    /// Walked to its end. Single files may still be gaps.
    Examined,
    /// The walk stopped early; a gap says why.
    Incomplete,
    /// Not walked; a gap says why.
    NotExamined,
}

/// One file system, folder or unmountable part of the evidence.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct VolumeRecord {
    /// Schema version.
    pub v: VersionOne,
    /// The volume's name in every other record: `vol-0123…:p1`, `disk.img:p2`, or the folder's name.
    pub volume: String,
    /// The evidence it lies in, as given on the command line.
    pub evidence: String,
    /// `ext4`, `xfs`, `btrfs`, `folder`, `swap`, `luks`…; `unknown` where nothing was recognised.
    pub content: String,
    /// First byte on the evidence. Absent for folders.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub offset: Option<u64>,
    /// Length in bytes. Absent for folders.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub length: Option<u64>,
    /// File-system UUID as the file system's tools print it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub uuid: Option<String>,
    /// File-system label, printable.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub label: Option<String>,
    /// Partition name (GPT), printable.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub partition_name: Option<String>,
    /// Why the journal is dirty; absent where it is clean, was replayed, or there is none.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub unreplayed_journal: Option<String>,
    /// The journal was dirty, and what is recorded is the state after its replay.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub replayed: Option<Replay>,
    /// The options it was mounted with, or how the folder was viewed.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub view: Vec<String>,
    /// How far the examination came.
    pub state: VolumeState,
}

/// How a dirty journal was replayed without a byte of the evidence changing.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Replay {
    /// Why the journal was taken for dirty, for people.
    pub reason: String,
    /// What took the replay's writes.
    pub means: ReplayMeans,
}

/// What stands between a file system that is replayed and the evidence.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum ReplayMeans {
    /// A snapshot by the kernel's device mapper.
    DeviceMapper,
    /// An overlay that a process of the agent serves over FUSE.
    Overlay,
}

impl ReplayMeans {
    /// The words for people.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::DeviceMapper => "device mapper snapshot",
            Self::Overlay => "overlay over FUSE",
        }
    }
}

/// The kind of an entry, from its inode.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum EntryKind {
    /// Regular file.
    File,
    /// Directory.
    Dir,
    /// Symbolic link.
    Symlink,
    /// Named pipe.
    Fifo,
    /// Socket.
    Socket,
    /// Character device.
    Char,
    /// Block device.
    Block,
}

/// Whether the entry is in use on the file system.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum EntryState {
    /// Reachable by name.
    #[default]
    Allocated,
    /// Its name or inode is freed and its content could be followed.
    Deleted,
    /// Carved from blocks that belong to no file.
    Unallocated,
}

/// What became of the rules on this entry.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum ScanState {
    /// Every rule was judged and none matched.
    Clean,
    /// At least one rule matched.
    Matched,
    /// Rules do not apply (not a regular file, no rules given), it was excluded by the operator, or a stop
    /// came first; for the last a gap says so.
    Skipped,
    /// Judged in blocks, so that some rules could not be judged; or it changed while it was read.
    Partial,
    /// The time limit struck.
    Timeout,
    /// Above `--max-file-size`.
    TooLarge,
    /// It could not be read to its end, or its inspector died.
    Error,
}

/// A run of data in a sparse file, in bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Extent {
    /// First byte.
    pub offset: u64,
    /// Length in bytes.
    pub length: u64,
}

/// The digest that a sparse file gets when it has too many holes for a full one: SHA-256 over the
/// data extents' bytes, one after the other in the order of their offsets.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ExtentDigest {
    /// SHA-256 over the bytes of all extents.
    pub sha256: Sha256,
    /// The first extents, at most 1,024.
    pub extents: Vec<Extent>,
    /// How many there are.
    pub count: u64,
}

/// One entry of a volume.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct FileRecord {
    /// Schema version.
    pub v: VersionOne,
    /// Place in the volume's order of raw path bytes, from 0.
    pub seq: u64,
    /// The volume's name.
    pub volume: String,
    /// Absolute from the view's root.
    #[serde(flatten)]
    pub path: EvidencePath,
    /// From the inode.
    pub kind: EntryKind,
    /// Bytes.
    pub size: u64,
    /// Bytes allocated on the volume.
    pub allocated: u64,
    /// Permission bits, `0` to `0o7777`.
    pub mode: u32,
    /// Owner.
    pub uid: u32,
    /// Group.
    pub gid: u32,
    /// Inode number.
    pub inode: u64,
    /// Hard links.
    pub links: u32,
    /// Last access.
    pub atime: Timestamp,
    /// Last content change.
    pub mtime: Timestamp,
    /// Last inode change.
    pub ctime: Timestamp,
    /// Birth, where the file system keeps it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub btime: Option<Timestamp>,
    /// Where a symbolic link points, as stored.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub target: Option<EvidencePath>,
    /// Device number `major:minor` of a device node.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub device: Option<String>,
    /// Extended attributes by name (non-UTF-8 bytes as U+FFFD), values in base64.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub xattrs: BTreeMap<String, String>,
    /// Inode attributes: `immutable`, `append`, `compressed`, `encrypted`, `nodump`, `verity`, `dax`.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub attributes: Vec<String>,
    /// Allocated, deleted or unallocated.
    #[serde(default)]
    pub state: EntryState,
    /// Path inside an archive, outermost first.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub member: Vec<String>,
    /// Alternate data stream.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub stream: Option<String>,
    /// SHA-256 of the content.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub sha256: Option<Sha256>,
    /// MD5 of the content, lower-case hexadecimal, where asked for.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub md5: Option<String>,
    /// SHA-1 of the content, lower-case hexadecimal, where asked for.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub sha1: Option<String>,
    /// In place of `sha256` where a sparse file has more holes than are hashed.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub extents: Option<ExtentDigest>,
    /// Shannon entropy of the content in bits a byte, 0 to 8, to three decimals.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub entropy: Option<f64>,
    /// The content's format from its first bytes, a name of the documented list.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub format: Option<String>,
    /// What became of the rules.
    pub scan: ScanState,
    /// Rules that matched.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub matches: Vec<RuleMatch>,
    /// Facts about an executable.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub binary: Option<Box<Binary>>,
    /// Lists that hold this file's digest.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub indicators: Vec<DigestIndicator>,
    /// True where the record was cut to the size limit: lists are shorter than they were.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub truncated: bool,
}

/// A rule that matched.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct RuleMatch {
    /// The rule's identifier.
    pub rule: String,
    /// The rule file it comes from.
    pub namespace: String,
    /// The rule's tags.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub tags: Vec<String>,
    /// The rule's metadata: strings, numbers, booleans; byte strings in base64.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub metadata: BTreeMap<String, serde_json::Value>,
    /// The patterns that matched.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub patterns: Vec<PatternMatch>,
}

/// A pattern of a rule that matched.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct PatternMatch {
    /// The pattern's identifier, `$a`.
    pub pattern: String,
    /// How many matches there are.
    pub count: u64,
    /// Offsets of the first matches in the file, at most 32.
    pub offsets: Vec<u64>,
    /// The first 64 bytes of each of these matches, base64, in the order of `offsets`.
    pub bytes: Vec<String>,
}

/// A list of indicators that holds a file's digest.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct DigestIndicator {
    /// `md5`, `sha1` or `sha256`.
    pub algorithm: String,
    /// The list's file name.
    pub list: String,
}

/// The executable formats whose facts are read.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum BinaryKind {
    /// Linux and Unix.
    Elf,
    /// Windows.
    Pe,
    /// macOS, one architecture.
    MachO,
    /// macOS, several architectures.
    MachOFat,
}

/// A section, with its entropy where the bytes are in the file.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Section {
    /// Name as stored, printable, at most 64 characters.
    pub name: String,
    /// Bytes in the file.
    pub size: u64,
    /// Shannon entropy in bits a byte, to three decimals.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub entropy: Option<f64>,
}

/// Facts about an executable. A field that its format does not have is absent.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Binary {
    /// Which format.
    pub kind: BinaryKind,
    /// `32` or `64`; absent for fat Mach-O.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub class: Option<u8>,
    /// Machine or architectures: `x86_64`, `aarch64`, `machine-243`…
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub machines: Vec<String>,
    /// ELF `exec`, `dyn`, `rel`, `core`; PE `exe`, `dll`; Mach-O file type.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub object_type: Option<String>,
    /// ELF program interpreter.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub interpreter: Option<String>,
    /// ELF `DT_NEEDED`, PE imported DLLs, Mach-O libraries; at most 256.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub libraries: Vec<String>,
    /// ELF `DT_RPATH` entries.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub rpath: Vec<String>,
    /// ELF `DT_RUNPATH` entries.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub runpath: Vec<String>,
    /// ELF GNU build id, lower-case hexadecimal.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub build_id: Option<String>,
    /// ELF: no `.symtab`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub stripped: Option<bool>,
    /// ELF: no interpreter and no needed library.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub statically_linked: Option<bool>,
    /// ELF: number of loadable segments that are writable and executable at once.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub writable_code_segments: Option<u32>,
    /// ELF: no section headers at all.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub sectionless: Option<bool>,
    /// Bytes behind the last byte that the headers account for.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub overlay: Option<u64>,
    /// Marks of a packer, for example `upx`.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub packers: Vec<String>,
    /// PE import hash (MD5, lower-case hexadecimal), computed as pefile does.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub imphash: Option<String>,
    /// PE compile time from the COFF header.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub compile_time: Option<Timestamp>,
    /// PE sections, at most 96.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub sections: Vec<Section>,
    /// PE: a certificate table is present. Its validity is not judged.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub signature_present: Option<bool>,
}

/// How much a finding matters.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Severity {
    /// Worth knowing.
    Info,
    /// Unusual.
    Low,
    /// Suspicious.
    Medium,
    /// Likely hostile.
    High,
    /// Hostile.
    Critical,
}

impl Severity {
    /// All, mildest first.
    pub const ALL: [Self; 5] = [Self::Info, Self::Low, Self::Medium, Self::High, Self::Critical];

    /// The word that records use.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Info => "info",
            Self::Low => "low",
            Self::Medium => "medium",
            Self::High => "high",
            Self::Critical => "critical",
        }
    }
}

/// Something worth a person's look.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Finding {
    /// Schema version.
    pub v: VersionOne,
    /// The same for the same evidence and rules in every run: 16 hexadecimal digits of the SHA-256 over
    /// volume, path and source.
    pub id: String,
    /// How much it matters.
    pub severity: Severity,
    /// What it is, in a few words.
    pub title: String,
    /// Why it was flagged.
    pub reason: String,
    /// ATT&CK technique, `T1574.006`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub technique: Option<String>,
    /// The volume's name.
    pub volume: String,
    /// Where; absent for a finding on the whole volume.
    #[serde(flatten, default, skip_serializing_if = "Option::is_none")]
    pub path: Option<EvidencePath>,
    /// The line or bytes that show it, printable, at most 1,024 characters.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub evidence: Option<String>,
    /// The check, rule (`rule:<namespace>:<name>`) or list that says so.
    pub source: String,
    /// The author of the rule, where it names one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub author: Option<String>,
    /// SHA-256 of the file it is about.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub sha256: Option<Sha256>,
}

/// Why something was not examined.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum GapKind {
    /// The evidence could not be opened, is empty, or holds nothing that was recognised.
    Evidence,
    /// The partition table, or an entry of it, is malformed.
    PartitionTable,
    /// Recognised content that cannot be mounted here.
    Unmounted,
    /// The journal has changes that the stored state lacks.
    UnreplayedJournal,
    /// A file system is mounted here; it was not entered.
    MountPoint,
    /// The entry could not be opened or read.
    Unreadable,
    /// It changed while it was read.
    Changed,
    /// The time limit struck.
    Timeout,
    /// The inspector died or fell silent on it.
    Crashed,
    /// Above `--max-file-size`.
    TooLarge,
    /// Judged in blocks: rules that need the whole file were not judged.
    Partial,
    /// Too many holes for a full digest.
    Sparse,
    /// A parser failed on it.
    Parser,
    /// Excluded by the operator.
    Excluded,
    /// Deeper than the depth limit.
    TooDeep,
    /// The scan was interrupted.
    Interrupted,
    /// The walker of the volume died or fell silent.
    Walker,
    /// A rule file did not compile.
    Rules,
    /// Access times may have changed.
    AccessTimes,
    /// The bundle's disk is full.
    Storage,
}

/// Something that was not examined, and why.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Gap {
    /// Schema version.
    pub v: VersionOne,
    /// Why, as one word.
    pub kind: GapKind,
    /// The volume's name; absent for what concerns the whole run.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub volume: Option<String>,
    /// Where; absent for a gap of the whole volume.
    #[serde(flatten, default, skip_serializing_if = "Option::is_none")]
    pub path: Option<EvidencePath>,
    /// What was not examined and why, for people.
    pub reason: String,
    /// What to do about it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub advice: Option<String>,
    /// How many things this gap stands for: entries, or rules for a `partial` one.
    pub count: u64,
}

/// How far a running scan is.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Progress {
    /// Schema version.
    pub v: VersionOne,
    /// Entries recorded.
    pub entries: u64,
    /// Bytes of content read.
    pub bytes: u64,
    /// Bytes in use on the volumes that can be walked, so far as known.
    pub bytes_total: u64,
    /// Findings so far.
    pub findings: u64,
    /// Gaps so far.
    pub gaps: u64,
}

/// The end of a scan.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Summary {
    /// Schema version.
    pub v: VersionOne,
    /// Entries recorded.
    pub entries: u64,
    /// Regular files among them.
    pub files: u64,
    /// Bytes of content read.
    pub bytes: u64,
    /// Findings by severity.
    pub findings: crate::SeverityCounts,
    /// Gap records.
    pub gaps: u64,
    /// False where the scan stopped before its end.
    pub complete: bool,
}
