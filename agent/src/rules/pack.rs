//! The compiled pack: a container of rule sets with a description.
//!
//! Layout, integers little-endian: [`MAGIC`] (8 bytes), format version (`u32`), length of the header
//! (`u32`), the header (JSON, [`PackHeader`]), then the serialised `yara_x::Rules` of each set, in the
//! order and with the lengths that the header gives. Nothing follows.
//!
//! Purpose: write and read that container. Touches nothing but the bytes it is given. Never decides
//! whether a pack may be trusted: sets hold native code, so callers load only what they made or what a
//! digest or an authenticated cache vouches for.

use std::{
    fs::File,
    io::{self, Write},
    os::unix::fs::FileExt as _,
};

use cleanroom_contract::{RuleDiagnostic, RuleFile};
use serde::{Deserialize, Serialize};
use yara_x::Rules;

use super::routing::{self, HEAD_BYTES, Header, RouteIndex};

/// First bytes of a pack.
pub(crate) const MAGIC: &[u8; 8] = b"CLNRPACK";

/// Version of the container and of its header.
pub(crate) const FORMAT: u32 = 3;

/// Largest pack that is read, in bytes.
pub(crate) const MAX_PACK: u64 = 4 << 30;

/// Largest header, in bytes.
const MAX_HEADER: usize = 256 << 20;

/// Bytes before the header.
const PREFIX: usize = 16;

/// A pack that cannot be used.
#[derive(Debug, thiserror::Error)]
pub(crate) enum PackError {
    /// The bytes are not a pack of this format.
    #[error("rule pack: {0}; compile the rules again with this program")]
    Malformed(&'static str),
    /// The header is not the JSON it should be.
    #[error("rule pack: header")]
    Header(#[source] serde_json::Error),
    /// Made by another version of the rule engine.
    #[error("rule pack: made for yara-x {found}, this program has {ours}; compile the rules again")]
    Engine {
        /// The pack's.
        found: String,
        /// This program's.
        ours: &'static str,
    },
    /// A set cannot be read back.
    #[error("rule pack: load the {0:?} set")]
    Load(RouteIndex, #[source] Box<yara_x::errors::SerializationError>),
}

/// What a pack says of itself.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct PackHeader {
    /// [`FORMAT`].
    pub(crate) format: u32,
    /// Version of yara-x that compiled it.
    pub(crate) yara_x: String,
    /// The processor that the native code is for.
    pub(crate) cpu: String,
    /// External variables, all strings.
    pub(crate) variables: Vec<String>,
    /// Every rule file, included ones too, with the number of rules taken from it.
    pub(crate) sources: Vec<RuleFile>,
    /// What was wrong, sorted by place.
    pub(crate) diagnostics: Vec<RuleDiagnostic>,
    /// Headers that send a file to the full set: hexadecimal, sorted, each at most [`HEAD_BYTES`] long.
    pub(crate) headers: Vec<String>,
    /// The set for ELF files.
    pub(crate) elf: RouteIndex,
    /// Whether a rule may ask for a file's name, folder or extension. Where none does, what one name of
    /// an inode has given holds for the others.
    pub(crate) reads_names: bool,
    /// The sets, in the order of their bytes.
    pub(crate) sets: Vec<SetInfo>,
}

impl PackHeader {
    /// Rules in the pack, private ones included.
    pub(crate) fn rules(&self) -> u64 {
        self.sets.iter().map(|set| set.rules).max().unwrap_or(0)
    }

    /// Reads the header of a pack without loading its rules.
    ///
    /// # Errors
    /// The bytes are not a pack of this format and engine version, or its lengths do not add up.
    pub(crate) fn parse(pack: &[u8]) -> Result<Self, PackError> {
        split(pack).map(|(header, _)| header)
    }

    /// The description of a set.
    fn set(&self, index: RouteIndex) -> Option<&SetInfo> {
        self.sets.iter().find(|set| set.index == index)
    }
}

/// What a pack says of one of its sets.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct SetInfo {
    /// Which one.
    pub(crate) index: RouteIndex,
    /// Bytes of its serialised form.
    pub(crate) length: u64,
    /// Rules in it, private ones included.
    pub(crate) rules: u64,
    /// Patterns in it, private ones not included.
    pub(crate) patterns: u64,
    /// Rules whose conditions are undefined when a file is scanned in blocks.
    pub(crate) needs_whole_file: u64,
}

impl SetInfo {
    /// A set of nothing.
    pub(crate) const EMPTY: Self =
        Self { index: RouteIndex::Other, length: 0, rules: 0, patterns: 0, needs_whole_file: 0 };
}

/// A pack in memory, ready to be written.
#[derive(Debug)]
pub(crate) struct Pack {
    /// Its description.
    pub(crate) header: PackHeader,
    /// The sets' bytes, in the header's order.
    pub(crate) blobs: Vec<Vec<u8>>,
}

impl Pack {
    /// Writes the container.
    ///
    /// # Errors
    /// Writing fails, or the header is too large for its length field.
    pub(crate) fn write_to(&self, mut out: impl Write) -> io::Result<()> {
        let header = serde_json::to_vec(&self.header)?;
        let too_large =
            || io::Error::new(io::ErrorKind::InvalidData, "the pack's header is too large");
        if header.len() > MAX_HEADER {
            return Err(too_large());
        }
        let length = u32::try_from(header.len()).map_err(|_| too_large())?;
        out.write_all(MAGIC)?;
        out.write_all(&FORMAT.to_le_bytes())?;
        out.write_all(&length.to_le_bytes())?;
        out.write_all(&header)?;
        for blob in &self.blobs {
            out.write_all(blob)?;
        }
        out.flush()
    }
}

/// Takes the container apart: header, and the bytes of each set in its order.
fn split(pack: &[u8]) -> Result<(PackHeader, Vec<&[u8]>), PackError> {
    let malformed = PackError::Malformed;
    let (prefix, rest) =
        pack.split_at_checked(PREFIX).ok_or(malformed("shorter than its prefix"))?;
    if !prefix.starts_with(MAGIC) {
        return Err(malformed("not a compiled pack"));
    }
    let number = |at: usize| {
        let bytes = prefix.get(at..at + 4).and_then(|bytes| bytes.try_into().ok());
        bytes.map(u32::from_le_bytes)
    };
    if number(8) != Some(FORMAT) {
        return Err(malformed("of another format version"));
    }
    let length = number(12).and_then(|length| usize::try_from(length).ok());
    let length =
        length.filter(|length| *length <= MAX_HEADER).ok_or(malformed("header too large"))?;
    let (header, mut rest) =
        rest.split_at_checked(length).ok_or(malformed("cut off in its header"))?;
    let header: PackHeader = serde_json::from_slice(header).map_err(PackError::Header)?;
    if header.yara_x != yara_x::VERSION {
        return Err(PackError::Engine { found: header.yara_x, ours: yara_x::VERSION });
    }
    let mut blobs = Vec::new();
    for set in &header.sets {
        let length = usize::try_from(set.length).unwrap_or(usize::MAX);
        let (blob, after) = rest.split_at_checked(length).ok_or(malformed("cut off in a set"))?;
        blobs.push(blob);
        rest = after;
    }
    if !rest.is_empty() {
        return Err(malformed("longer than its header says"));
    }
    Ok((header, blobs))
}

/// A pack whose rules can be used.
#[derive(Debug)]
pub(crate) struct LoadedPack {
    /// Its description.
    pub(crate) header: PackHeader,
    /// Required headers, sorted.
    headers: Vec<Header>,
    other: Loaded,
    elf: Option<Loaded>,
    full: Option<Loaded>,
}

/// A set of rules that prints as little as it should.
struct Loaded(Rules);

impl std::fmt::Debug for Loaded {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{} rules", self.0.iter().len())
    }
}

impl LoadedPack {
    /// Loads a pack. Its bytes must be trusted: see the module's documentation.
    ///
    /// Native code for another processor is compiled again from the portable form in the pack, which
    /// gives the same matches and takes seconds for large packs.
    ///
    /// # Errors
    /// The bytes are not a pack of this format and engine version, or a set does not load.
    pub(crate) fn load(pack: &[u8]) -> Result<Self, PackError> {
        let (header, blobs) = split(pack)?;
        let mut sets = [None, None, None];
        for (info, blob) in header.sets.iter().zip(blobs) {
            let rules = Rules::deserialize(blob)
                .map_err(|error| PackError::Load(info.index, Box::new(error)))?;
            sets[info.index as usize] = Some(Loaded(rules));
        }
        let [other, elf, full] = sets;
        let other = other.ok_or(PackError::Malformed("without its first set"))?;
        let mut headers = Vec::new();
        for text in &header.headers {
            let bytes = unhex(text).filter(|bytes| (1..=HEAD_BYTES).contains(&bytes.len()));
            headers.push(bytes.ok_or(PackError::Malformed("with a bad header in its list"))?);
        }
        headers.sort();
        let pack = Self { header, headers, other, elf, full };
        // A route without its set would silently judge by too few rules.
        let full_needed = !pack.headers.is_empty() || pack.header.elf == RouteIndex::Full;
        let elf_needed = pack.header.elf == RouteIndex::Elf;
        if full_needed && pack.full.is_none() || elf_needed && pack.elf.is_none() {
            return Err(PackError::Malformed("without a set that its routes need"));
        }
        Ok(pack)
    }

    /// Loads a pack from a file that other processes may be reading too: the file's position is
    /// neither used nor moved.
    ///
    /// # Errors
    /// It cannot be read, is larger than [`MAX_PACK`], or does not load.
    pub(crate) fn load_file(file: &File) -> io::Result<Self> {
        let bytes = read_pack(file)?;
        Self::load(&bytes).map_err(|error| io::Error::new(io::ErrorKind::InvalidData, error))
    }

    /// The set with which to scan a file that begins with `head`: at least
    /// [`HEAD_BYTES`] bytes, or all that the file has.
    pub(crate) fn set_for(&self, head: &[u8]) -> RouteIndex {
        routing::choose(&self.headers, self.header.elf, head)
    }

    /// The rules of a set.
    pub(crate) fn rules(&self, index: RouteIndex) -> &Rules {
        let set = match index {
            RouteIndex::Other => None,
            RouteIndex::Elf => self.elf.as_ref(),
            RouteIndex::Full => self.full.as_ref(),
        };
        &set.unwrap_or(&self.other).0
    }

    /// How many rules of a set cannot be judged on a file that is scanned in blocks. The rules that the
    /// set lacks are judged by the file's first bytes alone.
    pub(crate) fn unjudged_in_blocks(&self, index: RouteIndex) -> u64 {
        self.header.set(index).map_or(0, |set| set.needs_whole_file)
    }
}

/// Reads a whole pack without moving the file's position.
///
/// # Errors
/// It cannot be read, or is larger than [`MAX_PACK`].
pub(crate) fn read_pack(file: &File) -> io::Result<Vec<u8>> {
    let size = file.metadata()?.len();
    let length = usize::try_from(size).ok().filter(|_| size <= MAX_PACK);
    let Some(length) = length else {
        return Err(io::Error::new(io::ErrorKind::InvalidData, "the rule pack is too large"));
    };
    let mut bytes = vec![0; length];
    file.read_exact_at(&mut bytes, 0)?;
    Ok(bytes)
}

/// Lower-case hexadecimal digits.
pub(crate) fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

/// The inverse of [`hex`].
fn unhex(text: &str) -> Option<Vec<u8>> {
    let digits = text.as_bytes();
    if !digits.len().is_multiple_of(2) || !digits.iter().all(u8::is_ascii_hexdigit) {
        return None;
    }
    let pair = |pair: &[u8]| u8::from_str_radix(std::str::from_utf8(pair).ok()?, 16).ok();
    digits.chunks_exact(2).map(pair).collect()
}

#[cfg(test)]
#[path = "pack_tests.rs"]
mod tests;
