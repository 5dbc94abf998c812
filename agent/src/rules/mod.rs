//! YARA rules: files in, a compiled pack out, which the scanning processes load.
//!
//! [`source`] reads the files, [`routing`] finds which rules a file can match by its first bytes,
//! [`mod@compile`] runs the compiler, [`pack`] is the container, [`cache`] keeps packs between runs.
//!
//! Purpose: everything between `--rules` and a loaded rule set. Touches: rule files for reading, the
//! cache folder, and an anonymous file in memory that carries the pack to other processes. Never sees
//! evidence, and never loads compiled rules that neither this user's cache nor a named digest vouches for.

pub(crate) mod cache;
mod compile;
pub(crate) mod pack;
pub(crate) mod routing;
pub(crate) mod source;
mod syntax;

use std::{
    fs::File,
    io::{self, Seek, SeekFrom, Write},
    path::{Path, PathBuf},
    process::{Command, Stdio},
};

use cleanroom_contract::{RuleDiagnostic, printable};
use rustix::fs::{MemfdFlags, SealFlags};

pub(crate) use compile::compile;
use pack::{PackError, PackHeader};
use source::{RuleArgument, SourceError, SourceSet};

/// The external variables that rules may use, all strings: base name, directory on the host, extension
/// with its dot, file type, and the owner's name. A scanner sets them for each file; unset they are empty.
pub(crate) const VARIABLES: [&str; 5] = ["filename", "filepath", "extension", "filetype", "owner"];

/// Rules that cannot be prepared.
#[derive(Debug, thiserror::Error)]
pub(crate) enum RulesError {
    /// An argument or a file.
    #[error(transparent)]
    Source(#[from] SourceError),
    /// A pack's content.
    #[error(transparent)]
    Pack(#[from] PackError),
    /// A compiled pack is not the one that was named.
    #[error("rules {path}: its SHA-256 is {found}, not the one given")]
    WrongDigest {
        /// The pack, printable.
        path: String,
        /// What it is.
        found: cleanroom_contract::Sha256,
    },
    /// Arguments that do not go together.
    #[error("rules: {0}")]
    Arguments(&'static str),
    /// Nothing compiled.
    #[error("rules: none of the {files} rule files gave a rule{}", first_of(.diagnostics))]
    NoRules {
        /// Files read.
        files: usize,
        /// What was wrong with them.
        diagnostics: Vec<RuleDiagnostic>,
    },
    /// The compiler did not come to an end.
    #[error("rule compiler: {0}")]
    Compiler(String),
    /// The compiler's thread could not be started.
    #[error("rule compiler: start its thread")]
    Thread(#[source] io::Error),
    /// A compiled set could not be written down.
    #[error("rule compiler: serialise a set")]
    Serialise(#[source] Box<yara_x::errors::SerializationError>),
    /// The file that carries the pack, or the output.
    #[error("{0}")]
    Io(&'static str, #[source] io::Error),
}

/// The first error of some diagnostics, as the tail of a sentence.
fn first_of(diagnostics: &[RuleDiagnostic]) -> String {
    diagnostics.iter().find(|d| d.error).map_or_else(String::new, |d| format!("; {}", line_of(d)))
}

/// A pack for the scanning processes.
#[derive(Debug)]
pub(crate) struct Prepared {
    /// The pack's bytes and nothing else, in memory, sealed against change, at position 0. Close-on-exec:
    /// who passes it on clears that or sends the descriptor.
    pub(crate) pack: File,
    /// Its description.
    pub(crate) header: PackHeader,
    /// It came from the cache.
    pub(crate) cached: bool,
    /// Why the cache was not used or not written, printable.
    pub(crate) cache_note: Option<String>,
}

/// Makes a pack ready: a compiled one that is named with its digest, or one from rule sources, by the
/// cache where it holds one and by `compile` where not. `compile` writes the pack of a source set into
/// the file it is given: [`compile_here`], or a child process by way of [`run_compiler`].
///
/// # Errors
/// Arguments that cannot be read, a compiled pack of another digest, or sources that give no rule at all.
/// Broken rules beside sound ones are diagnostics in the header, and the cache is never a reason to fail.
pub(crate) fn prepare(
    arguments: &[RuleArgument],
    cache: Option<&Path>,
    compile: &dyn Fn(&SourceSet, &File) -> Result<(), RulesError>,
) -> Result<Prepared, RulesError> {
    let mut paths = Vec::new();
    for argument in arguments {
        match argument {
            RuleArgument::Sources(path) => paths.push(path.clone()),
            RuleArgument::Pack { path, sha256 } if arguments.len() == 1 => {
                return named_pack(path, *sha256);
            }
            RuleArgument::Pack { .. } => {
                return Err(RulesError::Arguments(
                    "a compiled pack stands alone; compile it together with the other rules",
                ));
            }
        }
    }
    let set = source::read(&paths)?;
    let key = cache::key(&set);
    let (cache, mut note) = match cache.map(cache::Cache::open) {
        Some(Ok(cache)) => (Some(cache), None),
        Some(Err(reason)) => (None, Some(printable(&reason))),
        None => (None, None),
    };
    if let Some(bytes) = cache.as_ref().and_then(|cache| cache.get(&key))
        && let Ok(header) = PackHeader::parse(&bytes)
    {
        return Ok(Prepared { pack: carry(&bytes)?, header, cached: true, cache_note: None });
    }
    let file = anonymous()?;
    compile(&set, &file)?;
    let bytes =
        pack::read_pack(&file).map_err(|error| RulesError::Io("read the compiled pack", error))?;
    let header = PackHeader::parse(&bytes)?;
    if header.rules() == 0 {
        return Err(RulesError::NoRules {
            files: set.sources.len(),
            diagnostics: header.diagnostics,
        });
    }
    if let Some(cache) = cache {
        // A compiler in another process reads the files again: a pack of other texts has another key.
        note = if describes(&header, &set) {
            let kept = cache.put(&key, &bytes);
            kept.err().map(|error| printable(&format!("rule cache: keep the pack: {error}")))
        } else {
            Some("rule cache: a rule file changed meanwhile; the pack is not kept".to_owned())
        };
    }
    Ok(Prepared { pack: seal(file)?, header, cached: false, cache_note: note })
}

/// Whether a pack was compiled from exactly these texts.
fn describes(header: &PackHeader, set: &SourceSet) -> bool {
    let texts = set.sources.iter().flat_map(|source| source.text.all());
    header
        .sources
        .iter()
        .map(|file| (&file.path, file.sha256))
        .eq(texts.map(|t| (&t.path, t.sha256)))
}

/// A compiled pack given by path and digest.
fn named_pack(path: &Path, sha256: cleanroom_contract::Sha256) -> Result<Prepared, RulesError> {
    let bytes = source::read_regular(path, pack::MAX_PACK)?;
    let found = source::digest(&bytes);
    if found != sha256 {
        return Err(RulesError::WrongDigest { path: printable(&path.to_string_lossy()), found });
    }
    let header = PackHeader::parse(&bytes)?;
    Ok(Prepared { pack: carry(&bytes)?, header, cached: false, cache_note: None })
}

/// The compile step of [`prepare`] in this process, for tests. The compiler takes much memory: a long-lived
/// process lets a child do it.
///
/// # Errors
/// As [`compile()`], and writing the pack.
pub(crate) fn compile_here(set: &SourceSet, out: &File) -> Result<(), RulesError> {
    compile(set)?
        .write_to(io::BufWriter::new(out))
        .map_err(|error| RulesError::Io("write the pack", error))
}

/// The compile step of [`prepare`] in a child process: runs `command`, which compiles the same paths and
/// writes the pack to its standard output. Its other streams are closed: the pack's header tells all.
///
/// # Errors
/// The command cannot be run, or ends with anything but success.
pub(crate) fn run_compiler(mut command: Command, out: &File) -> Result<(), RulesError> {
    let failed = |error| RulesError::Io("run the rule compiler", error);
    let stdout = out.try_clone().map_err(failed)?;
    command.stdin(Stdio::null()).stdout(stdout).stderr(Stdio::null());
    let status = command.status().map_err(failed)?;
    if status.success() {
        Ok(())
    } else {
        Err(RulesError::Compiler(format!("its process ended: {status}")))
    }
}

/// An anonymous file in memory.
fn anonymous() -> Result<File, RulesError> {
    rustix::fs::memfd_create("rule-pack", MemfdFlags::CLOEXEC | MemfdFlags::ALLOW_SEALING)
        .map(File::from)
        .map_err(|error| RulesError::Io("make an anonymous file", error.into()))
}

/// Puts a pack's bytes into an anonymous file.
fn carry(bytes: &[u8]) -> Result<File, RulesError> {
    let mut file = anonymous()?;
    file.write_all(bytes)
        .map_err(|error| RulesError::Io("fill the pack's anonymous file", error))?;
    seal(file)
}

/// Closes an anonymous file to every change, by whomever holds it, and rewinds it.
fn seal(mut file: File) -> Result<File, RulesError> {
    let failed = |error| RulesError::Io("seal the pack's anonymous file", error);
    file.seek(SeekFrom::Start(0)).map_err(failed)?;
    let seals = SealFlags::WRITE | SealFlags::GROW | SealFlags::SHRINK | SealFlags::SEAL;
    rustix::fs::fcntl_add_seals(&file, seals).map_err(|error| failed(error.into()))?;
    Ok(file)
}

/// What `rules check` and `rules compile` found.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct CheckOutcome {
    /// Rule files read, included ones too.
    pub(crate) files: u64,
    /// Rules that can be used, private ones included.
    pub(crate) rules: u64,
    /// Errors reported.
    pub(crate) errors: u64,
    /// Warnings reported.
    pub(crate) warnings: u64,
}

/// Compiles rules only to tell what is wrong with them: one line a diagnostic, `path:line:column: error:
/// message` or `… warning: …`, printable.
///
/// # Errors
/// The paths cannot be read, or writing fails. Broken rules are counted in the outcome.
pub(crate) fn check(paths: &[PathBuf], out: &mut impl Write) -> Result<CheckOutcome, RulesError> {
    let set = source::read(paths)?;
    report(&compile(&set)?.header, out)
}

/// Compiles rules into a pack, and writes diagnostics as [`check`] does. `strict` writes no pack where
/// there is any error.
///
/// # Errors
/// As [`check`], and: writing the pack fails, no rule compiled, or `strict` and there were errors.
pub(crate) fn compile_to(
    paths: &[PathBuf],
    pack: &mut impl Write,
    strict: bool,
    diagnostics: &mut impl Write,
) -> Result<CheckOutcome, RulesError> {
    let set = source::read(paths)?;
    let compiled = compile(&set)?;
    let outcome = report(&compiled.header, diagnostics)?;
    if strict && outcome.errors > 0 {
        return Err(RulesError::Compiler(format!("{} errors; no pack is written", outcome.errors)));
    }
    if outcome.rules == 0 {
        let diagnostics = compiled.header.diagnostics;
        return Err(RulesError::NoRules { files: set.sources.len(), diagnostics });
    }
    compiled.write_to(pack).map_err(|error| RulesError::Io("write the pack", error))?;
    Ok(outcome)
}

/// Writes a header's diagnostics and counts them.
fn report(header: &PackHeader, out: &mut impl Write) -> Result<CheckOutcome, RulesError> {
    for diagnostic in &header.diagnostics {
        writeln!(out, "{}", line_of(diagnostic))
            .map_err(|error| RulesError::Io("write the diagnostics", error))?;
    }
    let errors = header.diagnostics.iter().filter(|d| d.error).count() as u64;
    Ok(CheckOutcome {
        files: header.sources.len() as u64,
        rules: header.rules(),
        errors,
        warnings: header.diagnostics.len() as u64 - errors,
    })
}

/// A diagnostic as one printable line.
pub(crate) fn line_of(diagnostic: &RuleDiagnostic) -> String {
    let RuleDiagnostic { path, line, column, message, error } = diagnostic;
    let level = if *error { "error" } else { "warning" };
    // The message is printable as it is kept.
    format!("{}:{line}:{column}: {level}: {message}", printable(path))
}

#[cfg(test)]
#[path = "mod_tests.rs"]
mod tests;
