//! From `--rules` arguments to rule texts in memory.
//!
//! Purpose: find the rule files, read each once, resolve its includes, and give each file a namespace.
//! Touches: the files and folders named by the arguments, for reading. Never follows a symbolic link
//! inside a folder, never reads anything but regular files, and never compiles.

use std::{
    collections::{BTreeSet, HashSet},
    ffi::{OsStr, OsString},
    fs::File,
    io::{self, Read},
    ops::Range,
    os::unix::ffi::{OsStrExt, OsStringExt},
    path::{Component, Path, PathBuf},
};

use cleanroom_contract::{RuleDiagnostic, Sha256, printable};
use rustix::fs::{Mode, OFlags};
use sha2::Digest;
use walkdir::WalkDir;
use yara_x_parser::ast::{AST, Item, WithSpan};

use super::syntax::LineIndex;

/// File-name extensions of rule files in a folder, compared without case.
pub(crate) const EXTENSIONS: [&str; 3] = ["yar", "yara", "rule"];

/// Largest rule file that is read, in bytes.
pub(crate) const MAX_FILE: u64 = 64 << 20;

/// Largest sum of all rule files, in bytes. Includes count each time they are included.
const MAX_TOTAL: u64 = 1 << 30;

/// Most rule files of one run, included ones counted each time.
const MAX_FILES: usize = 100_000;

/// Deepest chain of includes.
const MAX_INCLUDE_DEPTH: usize = 16;

/// What introduces the digest in a compiled pack's argument.
const DIGEST_MARK: &[u8] = b"@sha256=";

/// One `--rules` argument.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum RuleArgument {
    /// A rule file, or a folder of them.
    Sources(PathBuf),
    /// A compiled pack and the digest that its bytes must have.
    Pack {
        /// Where it is.
        path: PathBuf,
        /// SHA-256 of the whole file.
        sha256: Sha256,
    },
}

impl RuleArgument {
    /// Reads an argument as typed: `PATH`, or `PATH@sha256=<64 hexadecimal digits>` for a compiled pack.
    ///
    /// # Errors
    /// The text after the last `@sha256=` is not 64 hexadecimal digits, or there is no path before it.
    pub(crate) fn parse(text: &OsStr) -> Result<Self, SourceError> {
        let bytes = text.as_bytes();
        let Some(at) = bytes.windows(DIGEST_MARK.len()).rposition(|w| w == DIGEST_MARK) else {
            return Ok(Self::Sources(PathBuf::from(text)));
        };
        let (path, digest) = (&bytes[..at], &bytes[at + DIGEST_MARK.len()..]);
        let sha256 = std::str::from_utf8(digest).ok().and_then(|d| d.parse().ok());
        match sha256 {
            Some(sha256) if !path.is_empty() => {
                Ok(Self::Pack { path: PathBuf::from(OsString::from_vec(path.to_vec())), sha256 })
            }
            _ => Err(SourceError::Unusable {
                path: shown(Path::new(text)),
                reason: "a compiled pack is named as PATH@sha256=<64 hexadecimal digits>"
                    .to_owned(),
            }),
        }
    }
}

/// Rules that cannot be read as asked.
#[derive(Debug, thiserror::Error)]
pub(crate) enum SourceError {
    /// The argument cannot be used; the reason says what to do.
    #[error("rules {path}: {reason}")]
    Unusable {
        /// As typed, printable.
        path: String,
        /// Why, and what to do.
        reason: String,
    },
    /// The file or folder could not be read.
    #[error("read rules {path}")]
    Read {
        /// As typed, printable.
        path: String,
        /// The system's answer.
        source: io::Error,
    },
}

/// A text that the compiler sees: a rule file, or one included by it.
#[derive(Clone, Debug)]
pub(crate) struct Text {
    /// As found; what is not UTF-8 in the name reads U+FFFD.
    pub(crate) path: String,
    /// Its bytes. A byte-order mark at the start is replaced by spaces, which the parser accepts.
    pub(crate) bytes: Vec<u8>,
    /// Of the bytes of the file.
    pub(crate) sha256: Sha256,
    /// Its `include` statements in order, each with the text that takes its place.
    pub(crate) includes: Vec<Include>,
}

/// An `include` statement.
#[derive(Clone, Debug)]
pub(crate) struct Include {
    /// The statement's bytes in the including text.
    pub(crate) span: Range<usize>,
    /// What it names; absent where it could not be used, which a diagnostic says.
    pub(crate) text: Option<Text>,
}

impl Text {
    /// This text and all that it includes, in the order in which the compiler sees their beginnings.
    pub(crate) fn all(&self) -> Vec<&Self> {
        let mut all = vec![self];
        for text in self.includes.iter().filter_map(|include| include.text.as_ref()) {
            all.extend(text.all());
        }
        all
    }
}

/// A rule file with its namespace.
#[derive(Clone, Debug)]
pub(crate) struct Source {
    /// Unique in the set: the path relative to the argument (the file's name where the argument is the
    /// file itself), printable; a second one of the same name gets `#2`, and so on.
    pub(crate) namespace: String,
    /// The text.
    pub(crate) text: Text,
}

/// Everything the compiler needs.
#[derive(Clone, Debug, Default)]
pub(crate) struct SourceSet {
    /// In the order of the arguments, and within a folder sorted by path bytes.
    pub(crate) sources: Vec<Source>,
    /// What could not be read, and what was left out on purpose.
    pub(crate) diagnostics: Vec<RuleDiagnostic>,
}

/// Reads rule files.
///
/// A file that cannot be read is an error where it is the argument itself, and a diagnostic where it
/// was found in a folder or included, so that one bad file of a pack does not cost the others.
///
/// # Errors
/// An argument that cannot be used, a folder without rule files, or more than the documented limits.
pub(crate) fn read(paths: &[PathBuf]) -> Result<SourceSet, SourceError> {
    let mut reader = Reader::default();
    for path in paths {
        let metadata = std::fs::metadata(path)
            .map_err(|source| SourceError::Read { path: shown(path), source })?;
        if metadata.is_dir() { reader.folder(path)? } else { reader.argument_file(path)? }
    }
    Ok(reader.set)
}

/// Reads a regular file of at most `limit` bytes.
///
/// # Errors
/// It cannot be read, is something else, or is larger.
pub(crate) fn read_regular(path: &Path, limit: u64) -> Result<Vec<u8>, SourceError> {
    let failed = |source: io::Error| SourceError::Read { path: shown(path), source };
    let unusable = |reason: String| SourceError::Unusable { path: shown(path), reason };
    // Non-blocking, so that a pipe in a rules folder is refused and not waited for.
    let flags = OFlags::RDONLY | OFlags::CLOEXEC | OFlags::NONBLOCK | OFlags::NOCTTY;
    let file =
        File::from(rustix::fs::open(path, flags, Mode::empty()).map_err(|e| failed(e.into()))?);
    let metadata = file.metadata().map_err(failed)?;
    if !metadata.is_file() {
        return Err(unusable("not a regular file; copy it to one".to_owned()));
    }
    let mut bytes = Vec::new();
    file.take(limit.saturating_add(1)).read_to_end(&mut bytes).map_err(failed)?;
    if u64::try_from(bytes.len()).is_ok_and(|length| length <= limit) {
        Ok(bytes)
    } else {
        Err(unusable(format!("larger than {limit} bytes; split it")))
    }
}

/// A path for messages.
fn shown(path: &Path) -> String {
    printable(&path.to_string_lossy())
}

/// The SHA-256 of some bytes.
pub(crate) fn digest(bytes: &[u8]) -> Sha256 {
    Sha256(sha2::Sha256::digest(bytes).into())
}

/// Reading in progress.
#[derive(Debug, Default)]
struct Reader {
    set: SourceSet,
    /// Namespaces in use.
    namespaces: BTreeSet<String>,
    /// Canonical paths of the rule files in use, so that a file given twice is compiled once.
    seen: HashSet<PathBuf>,
    files: usize,
    bytes: u64,
}

impl Reader {
    /// A file that is the argument itself.
    fn argument_file(&mut self, path: &Path) -> Result<(), SourceError> {
        let name = path.file_name().map_or_else(|| path.as_os_str().to_owned(), OsStr::to_owned);
        if self.is_repeated(path) {
            return Ok(());
        }
        let bytes = read_regular(path, MAX_FILE)?;
        self.add(path, Path::new(&name), bytes)
    }

    /// The rule files of a folder.
    fn folder(&mut self, folder: &Path) -> Result<(), SourceError> {
        let mut found = 0_usize;
        for entry in WalkDir::new(folder).follow_links(false).sort_by_file_name() {
            let entry = match entry {
                Ok(entry) => entry,
                Err(error) if error.depth() == 0 => {
                    return Err(SourceError::Read { path: shown(folder), source: error.into() });
                }
                Err(error) => {
                    let path = error.path().unwrap_or(folder).to_owned();
                    self.complain(&path, (1, 1), format!("read: {error}"), true);
                    continue;
                }
            };
            let path = entry.path();
            if entry.file_type().is_dir() || !has_rule_extension(path) {
                continue;
            }
            found += 1;
            if entry.file_type().is_symlink() {
                let reason =
                    "a symbolic link, not followed; give its target as an argument of its own";
                self.complain(path, (1, 1), reason.to_owned(), false);
                continue;
            }
            if self.is_repeated(path) {
                continue;
            }
            match read_regular(path, MAX_FILE) {
                Ok(bytes) => self.add(path, path.strip_prefix(folder).unwrap_or(path), bytes)?,
                Err(error) => self.complain(path, (1, 1), explain(&error), true),
            }
        }
        if found == 0 {
            return Err(SourceError::Unusable {
                path: shown(folder),
                reason: format!(
                    "no rule files in this folder; their names end in .{}",
                    EXTENSIONS.join(", .")
                ),
            });
        }
        Ok(())
    }

    /// Whether the file is already in the set; says so where it is.
    fn is_repeated(&mut self, path: &Path) -> bool {
        let new = path.canonicalize().is_ok_and(|canonical| self.seen.insert(canonical));
        // A path that does not resolve is not a repetition: reading it will tell what is wrong.
        let repeated = !new && path.exists();
        if repeated {
            self.complain(path, (1, 1), "given twice; used once".to_owned(), false);
        }
        repeated
    }

    /// Takes a rule file's bytes into the set.
    fn add(&mut self, path: &Path, relative: &Path, bytes: Vec<u8>) -> Result<(), SourceError> {
        if let Some(kind) = compiled_kind(&bytes) {
            let reason = format!(
                "{kind}, which holds native code: name a pack made by `rules compile` as \
                 PATH@sha256=<64 hexadecimal digits>, or give the rule sources"
            );
            return Err(SourceError::Unusable { path: shown(path), reason });
        }
        self.count(path, &bytes)?;
        let namespace = self.namespace(&printable(&relative.to_string_lossy()));
        let mut chain = vec![path.canonicalize().unwrap_or_else(|_| path.to_owned())];
        let text = self.text(path, bytes, &mut chain)?;
        self.set.sources.push(Source { namespace, text });
        Ok(())
    }

    /// Counts a file against the limits.
    fn count(&mut self, path: &Path, bytes: &[u8]) -> Result<(), SourceError> {
        self.files += 1;
        self.bytes = self.bytes.saturating_add(u64::try_from(bytes.len()).unwrap_or(u64::MAX));
        if self.files > MAX_FILES || self.bytes > MAX_TOTAL {
            return Err(SourceError::Unusable {
                path: shown(path),
                reason: format!(
                    "more than {MAX_FILES} rule files or {MAX_TOTAL} bytes in all; scan with fewer at a time"
                ),
            });
        }
        Ok(())
    }

    /// A namespace that no other file has.
    fn namespace(&mut self, wanted: &str) -> String {
        let mut name = wanted.to_owned();
        let mut number = 2_u64;
        while !self.namespaces.insert(name.clone()) {
            name = format!("{wanted}#{number}");
            number += 1;
        }
        name
    }

    /// A text with its includes; `chain` holds the canonical paths that lead to it.
    fn text(
        &mut self,
        path: &Path,
        mut bytes: Vec<u8>,
        chain: &mut Vec<PathBuf>,
    ) -> Result<Text, SourceError> {
        let sha256 = digest(&bytes);
        if let Some(mark) = bytes.get_mut(..3).filter(|mark| *mark == b"\xef\xbb\xbf") {
            mark.fill(b' ');
        }
        let mut includes = Vec::new();
        // Parsing twice is dear: most rule files include nothing.
        if bytes.windows(7).any(|window| window == b"include") {
            for (span, name) in include_statements(&bytes) {
                let text = match self.included(path, &name, chain)? {
                    Ok(text) => Some(text),
                    Err(reason) => {
                        let position = LineIndex::new(&bytes).position(&bytes, span.start);
                        self.complain(path, position, format!("include {name:?}: {reason}"), true);
                        None
                    }
                };
                includes.push(Include { span, text });
            }
        }
        Ok(Text { path: path.to_string_lossy().into_owned(), bytes, sha256, includes })
    }

    /// The text that an include names, relative to the including file's folder; the inner error is a
    /// reason for a diagnostic.
    fn included(
        &mut self,
        from: &Path,
        name: &str,
        chain: &mut Vec<PathBuf>,
    ) -> Result<Result<Text, String>, SourceError> {
        let name = Path::new(name);
        // A rule pack is somebody else's text: it may name its neighbours, not any file of this machine.
        if name.components().any(|part| matches!(part, Component::RootDir)) {
            return Ok(Err("an absolute path; make it relative to this file".to_owned()));
        }
        let path = from.parent().unwrap_or(Path::new("")).join(name);
        let canonical = match path.canonicalize() {
            Ok(canonical) => canonical,
            Err(error) => return Ok(Err(error.to_string())),
        };
        if chain.contains(&canonical) {
            return Ok(Err("includes itself".to_owned()));
        }
        if chain.len() > MAX_INCLUDE_DEPTH {
            return Ok(Err(format!("more than {MAX_INCLUDE_DEPTH} includes deep")));
        }
        let bytes = match read_regular(&path, MAX_FILE) {
            Ok(bytes) => bytes,
            Err(error) => return Ok(Err(explain(&error))),
        };
        self.count(&path, &bytes)?;
        chain.push(canonical);
        let text = self.text(&path, bytes, chain);
        chain.pop();
        text.map(Ok)
    }

    /// Adds a diagnostic.
    fn complain(&mut self, path: &Path, position: (u64, u64), message: String, error: bool) {
        self.set.diagnostics.push(RuleDiagnostic {
            path: path.to_string_lossy().into_owned(),
            line: position.0,
            column: position.1,
            message: printable(&message),
            error,
        });
    }
}

/// The reason of an error, without the path that a diagnostic names anyway.
fn explain(error: &SourceError) -> String {
    match error {
        SourceError::Unusable { reason, .. } => reason.clone(),
        SourceError::Read { source, .. } => format!("read: {source}"),
    }
}

/// Whether a name in a folder is a rule file's.
fn has_rule_extension(path: &Path) -> bool {
    path.extension().is_some_and(|extension| {
        EXTENSIONS.iter().any(|known| extension.eq_ignore_ascii_case(known))
    })
}

/// What kind of compiled rules the bytes are, if any.
fn compiled_kind(bytes: &[u8]) -> Option<&'static str> {
    if bytes.starts_with(super::pack::MAGIC) {
        Some("a compiled pack")
    } else if bytes.starts_with(b"YARA-X\0") {
        Some("a file compiled by yara-x")
    } else if bytes.starts_with(b"YARA") && bytes.contains(&0) {
        Some("a file compiled by YARA")
    } else {
        None
    }
}

/// The include statements of a text: bytes of the statement, and the name as written.
fn include_statements(bytes: &[u8]) -> Vec<(Range<usize>, String)> {
    if std::str::from_utf8(bytes).is_err() {
        return Vec::new();
    }
    AST::from(bytes)
        .items()
        .filter_map(|item| match item {
            Item::Include(include) => Some((include.span().range(), include.file_name.to_owned())),
            _ => None,
        })
        .collect()
}

#[cfg(test)]
#[path = "source_tests.rs"]
mod tests;
