//! A file's bytes against the compiled rules.
//!
//! Purpose: one scanner a rule set, reused from file to file, and matches in the contract's words.
//! Touches memory only. Never lets a scanner live on after an error: its state would leak into the
//! next file.

use std::{collections::BTreeMap, time::Duration};

use base64::{Engine as _, prelude::BASE64_STANDARD};
use cleanroom_contract::{PatternMatch, RuleMatch};
use yara_x::{MetaValue, Rule, ScanError, ScanResults, Scanner};

use crate::{
    protocol::{Job, Limits},
    rules::{pack::LoadedPack, routing::RouteIndex},
};

/// Offsets kept of a pattern's matches.
const MAX_OFFSETS: usize = 32;
/// Bytes kept of each match.
const FIRST_BYTES: usize = 64;
/// The room that one file's matches may take in an answer; the rest is counted, not kept.
const MAX_MATCH_BYTES: usize = 128 << 10;

/// What the rules said of a file.
#[derive(Debug)]
pub(crate) struct Verdict {
    pub matches: Vec<RuleMatch>,
    /// True where matches were left out for their size.
    pub truncated: bool,
}

/// The scanners of an inspector, made when first needed.
pub(crate) struct RuleScanner<'r> {
    pack: &'r LoadedPack,
    scanners: BTreeMap<RouteIndex, Scanner<'r>>,
}

impl std::fmt::Debug for RuleScanner<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("RuleScanner").finish_non_exhaustive()
    }
}

impl<'r> RuleScanner<'r> {
    /// Scans with `pack`.
    pub(crate) fn new(pack: &'r LoadedPack) -> Self {
        Self { pack, scanners: BTreeMap::new() }
    }

    /// Makes every scanner that files may need, and gives them up: whoever can not make them judges no file.
    pub(crate) fn make_all(pack: &LoadedPack) {
        for route in [RouteIndex::Other, RouteIndex::Elf, RouteIndex::Full] {
            drop(Scanner::new(pack.rules(route)));
        }
    }

    /// Scans a file that is in memory.
    pub(crate) fn scan(
        &mut self,
        job: &Job,
        format: Option<&str>,
        data: &[u8],
        limits: &Limits,
    ) -> Result<Verdict, ScanError> {
        let route = self.pack.set_for(data);
        let rules = self.pack.rules(route);
        let mut scanner = self.scanners.remove(&route).unwrap_or_else(|| Scanner::new(rules));
        scanner.set_timeout(inner_limit(limits, job));
        for (name, value) in variables(job, format) {
            scanner.set_global(name, value).map_err(variable_error)?;
        }
        let verdict = verdict(&scanner.scan(data)?);
        // Only a scanner that ended well is used again.
        self.scanners.insert(route, scanner);
        Ok(verdict)
    }

    /// Begins a scan in blocks, with the rules for a file that begins with `head`.
    pub(crate) fn blocks(
        &self,
        job: &Job,
        head: &[u8],
        format: Option<&str>,
        limits: &Limits,
    ) -> Result<BlockScan<'r>, ScanError> {
        let route = self.pack.set_for(head);
        let mut scanner = yara_x::blocks::Scanner::new(self.pack.rules(route));
        scanner.set_timeout(inner_limit(limits, job));
        for (name, value) in variables(job, format) {
            scanner.set_global(name, value).map_err(variable_error)?;
        }
        let unjudged = self.pack.unjudged_in_blocks(route);
        Ok(BlockScan { scanner, unjudged, fed: false })
    }
}

/// A scan in blocks. Made new for each file and dropped with it, whatever happens in between.
pub(crate) struct BlockScan<'r> {
    scanner: yara_x::blocks::Scanner<'r>,
    /// Rules that need the whole file.
    pub(crate) unjudged: u64,
    fed: bool,
}

impl BlockScan<'_> {
    /// Scans the next block.
    pub(crate) fn feed(&mut self, offset: u64, block: &[u8]) -> Result<(), ScanError> {
        self.fed = true;
        let offset = usize::try_from(offset).unwrap_or(usize::MAX);
        self.scanner.scan(offset, block).map(drop)
    }

    /// Judges the conditions. A file without any block matches nothing.
    pub(crate) fn finish(mut self) -> Result<Verdict, ScanError> {
        if !self.fed {
            return Ok(Verdict { matches: Vec::new(), truncated: false });
        }
        self.scanner.finish().map(|results| verdict(&results))
    }
}

/// The engine counts whole seconds; one less than the outer limit, so that a file on which the engine
/// can still stop keeps its digests.
fn inner_limit(limits: &Limits, job: &Job) -> Duration {
    Duration::from_secs(limits.time_for(job.size, job.allocated).as_secs().saturating_sub(1).max(1))
}

/// The external variables of a file.
fn variables(job: &Job, format: Option<&str>) -> [(&'static str, String); 5] {
    let path = String::from_utf8_lossy(&job.path);
    let (directory, name) = path.rsplit_once('/').unwrap_or(("", &path));
    let extension = match name.rfind('.') {
        Some(dot) if dot > 0 => &name[dot..],
        _ => "",
    };
    [
        ("filename", name.to_owned()),
        ("filepath", if directory.is_empty() { "/".to_owned() } else { directory.to_owned() }),
        ("extension", extension.to_owned()),
        ("filetype", format.unwrap_or("").to_owned()),
        ("owner", job.owner.clone()),
    ]
}

/// Every pack of ours defines the variables, so this is a fault of the pack, not of the file.
fn variable_error(error: yara_x::errors::VariableError) -> ScanError {
    ScanError::OpenError { path: "rules".into(), err: std::io::Error::other(error) }
}

/// The matches in the contract's words, within their room.
fn verdict(results: &ScanResults<'_, '_>) -> Verdict {
    let mut verdict = Verdict { matches: Vec::new(), truncated: false };
    let mut room = MAX_MATCH_BYTES;
    for rule in results.matching_rules() {
        let matched = describe(&rule, &mut room, &mut verdict.truncated);
        match matched {
            Some(matched) => verdict.matches.push(matched),
            None => verdict.truncated = true,
        }
    }
    verdict.matches.sort_by(|a, b| (&a.namespace, &a.rule).cmp(&(&b.namespace, &b.rule)));
    verdict
}

/// Takes `bytes` from the room, if it has them.
fn take(room: &mut usize, bytes: usize) -> bool {
    match room.checked_sub(bytes) {
        Some(rest) => {
            *room = rest;
            true
        }
        None => false,
    }
}

/// One matching rule; `None` where not even its name fits.
fn describe(rule: &Rule<'_, '_>, room: &mut usize, truncated: &mut bool) -> Option<RuleMatch> {
    if !take(room, 64 + rule.identifier().len() + rule.namespace().len()) {
        return None;
    }
    let mut metadata = BTreeMap::new();
    for (name, value) in rule.metadata() {
        let value = match value {
            MetaValue::Integer(number) => number.into(),
            MetaValue::Float(number) => number.into(),
            MetaValue::Bool(truth) => truth.into(),
            MetaValue::String(text) => text.into(),
            MetaValue::Bytes(bytes) => BASE64_STANDARD.encode(bytes).into(),
        };
        let value: serde_json::Value = value;
        let size = name.len() + value.as_str().map_or(8, str::len);
        if take(room, size) {
            metadata.insert(name.to_owned(), value);
        } else {
            *truncated = true;
        }
    }
    let mut patterns = Vec::new();
    for pattern in rule.patterns() {
        let matches = pattern.matches();
        let count = matches.len() as u64;
        let (mut offsets, mut bytes) = (Vec::new(), Vec::new());
        for found in matches.take(MAX_OFFSETS) {
            let data = found.data();
            let shown = BASE64_STANDARD.encode(&data[..data.len().min(FIRST_BYTES)]);
            if !take(room, 32 + shown.len() + pattern.identifier().len()) {
                *truncated = true;
                break;
            }
            offsets.push(found.range().start as u64);
            bytes.push(shown);
        }
        if !offsets.is_empty() {
            let pattern = pattern.identifier().to_owned();
            patterns.push(PatternMatch { pattern, count, offsets, bytes });
        }
    }
    Some(RuleMatch {
        rule: rule.identifier().to_owned(),
        namespace: rule.namespace().to_owned(),
        tags: rule.tags().map(|tag| tag.identifier().to_owned()).collect(),
        metadata,
        patterns,
    })
}
