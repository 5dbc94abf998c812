//! What a scan needs before the first byte of evidence is read.
//!
//! Purpose: open, make and check everything that can fail early. Touches the evidence's descriptors, the
//! bundle's folder, rules, lists and the rule cache. Never reads evidence.

use std::{
    collections::{BTreeMap, HashSet},
    fs::{self, File},
    path::{Component, Path, PathBuf},
    process::Command,
};

use anyhow::{Context as _, bail};
use cleanroom_contract::{Report, Run, RunState, Sha256, Summary, VersionOne, printable};

use super::super::{Hint, now, say};
use crate::{
    bundle::{
        folder,
        seal::{DRAFT, SPOOL},
    },
    cli::{Digest, Scan},
    evidence::{scratch::Scratch, view::Evidence},
    protocol::{Limits, Measures},
    rules::{self, source::RuleArgument},
    supervise::{Setup, role},
};

/// Files up to this size are scanned whole.
const IN_MEMORY: u64 = 256 << 20;
/// Holes above this total are not hashed: at 1.5 GB/s a core they would take longer than a minute.
const MAX_HOLE_BYTES: u64 = 64 << 30;
/// Directories deeper than this are not entered.
const DEPTH: u32 = 10_000;
/// Errors in rules that are told one by one.
const TOLD: usize = 50;
/// The free space below which a scan does not begin.
const MIN_FREE: u64 = 32 << 20;

/// One piece of evidence, opened, or why it is not.
pub(in crate::run) struct Given {
    pub(in crate::run) name: String,
    pub(in crate::run) path: PathBuf,
    pub(in crate::run) evidence: Result<Evidence, String>,
}

/// Opens everything that was given, before anything is read.
pub(super) fn open_evidence(paths: &[PathBuf]) -> anyhow::Result<Vec<Given>> {
    let mut taken: HashSet<String> = HashSet::new();
    paths
        .iter()
        .map(|path| {
            let evidence = Evidence::open(path)?;
            // `.` and `..` have no name of their own.
            let full = fs::canonicalize(path).unwrap_or_else(|_| path.clone());
            let base = full.file_name().unwrap_or(full.as_os_str()).to_string_lossy().into_owned();
            let base = printable(&base);
            // Evidence may itself be called `x#2`.
            let mut name = base.clone();
            let mut count = 1;
            while !taken.insert(name.clone()) {
                count += 1;
                name = format!("{base}#{count}");
            }
            Ok(Given { name, path: path.clone(), evidence: Ok(evidence) })
        })
        .collect()
}

/// The evidence in which a path lies, or would lie once it is made.
fn lies_within<'g>(path: &Path, given: &'g [Given]) -> Option<&'g Given> {
    let there = resolved(path);
    given.iter().find(|given| {
        matches!(given.evidence, Ok(Evidence::Folder(_)))
            && fs::canonicalize(&given.path).is_ok_and(|evidence| there.starts_with(evidence))
    })
}

/// Where a path leads once its missing folders are made: `missing/../there` is `there`.
fn resolved(path: &Path) -> PathBuf {
    // Without a working folder a relative path leads nowhere.
    let mut there = fs::canonicalize(".").unwrap_or_default();
    for component in path.components() {
        if component == Component::ParentDir {
            there.pop();
            continue;
        }
        there.push(component);
        // What is missing will be a folder, no link.
        if let Ok(real) = fs::canonicalize(&there) {
            there = real;
        }
    }
    there
}

/// Makes the bundle's folder, and sees to it that it is empty and can be written.
pub(super) fn folder(out: &Path, given: &[Given]) -> anyhow::Result<PathBuf> {
    let shown = printable(&out.to_string_lossy());
    if let Some(evidence) = lies_within(out, given) {
        bail!(
            "--out {shown} lies in the evidence {}: writing there would change it",
            evidence.name
        );
    }
    fs::create_dir_all(out).with_context(|| format!("make the bundle's folder {shown}"))?;
    let mut entries = fs::read_dir(out).with_context(|| format!("read the folder {shown}"))?;
    if entries.next().is_some() {
        let unfinished = fs::exists(out.join(SPOOL).join(DRAFT)).unwrap_or(false);
        let hint = if unfinished {
            format!("it holds an unfinished scan: `cleanroom-agent seal {shown}` seals it")
        } else {
            "a bundle is never overwritten: name a new folder".to_owned()
        };
        return Err(anyhow::anyhow!("--out {shown} is not empty").context(Hint(hint)));
    }
    // What fails from here on leaves the folder empty, so that it does not stand in the way of the next try.
    let probe = out.join(SPOOL);
    fs::create_dir(&probe)
        .and_then(|()| fs::remove_dir(&probe))
        .with_context(|| format!("write into {shown}"))?;
    let stat = rustix::fs::statvfs(out).with_context(|| format!("measure the disk of {shown}"))?;
    let free = stat.f_bavail.saturating_mul(stat.f_frsize);
    // Some file systems, ramfs for one, do not say how large they are.
    if stat.f_blocks > 0 && free < MIN_FREE {
        bail!("{free} bytes are free for --out {shown}: a scan needs at least {MIN_FREE}");
    }
    Ok(out.to_owned())
}

/// Where dirty journals are replayed into: nowhere, where it was not wanted. Evidence is not written to, not
/// even by files without a name.
pub(super) fn scratch(args: &Scan, given: &[Given]) -> anyhow::Result<Option<Scratch>> {
    if args.no_replay {
        return Ok(None);
    }
    let size = args.scratch_size;
    if let Some(folder) = &args.scratch {
        let shown = printable(&folder.to_string_lossy());
        if let Some(evidence) = lies_within(folder, given) {
            bail!(
                "--scratch {shown} lies in the evidence {}: writing there would change it",
                evidence.name
            );
        }
        let made = tempfile::tempfile_in(folder);
        drop(made.with_context(|| format!("write into the scratch folder {shown}"))?);
        return Ok(Some(Scratch { folder: folder.clone(), size }));
    }
    let folder = std::env::var_os("TMPDIR").filter(|folder| !folder.is_empty());
    let folder = folder.map_or_else(|| PathBuf::from("/var/tmp"), PathBuf::from);
    // Without a folder of its own a journal is left as it is, which becomes a gap where there is one.
    Ok(lies_within(&folder, given).is_none().then_some(Scratch { folder, size }))
}

/// Compiles the rules, or finds them compiled.
pub(super) fn rules(args: &Scan, given: &[Given]) -> anyhow::Result<Option<rules::Prepared>> {
    if args.rules.is_empty() {
        return Ok(None);
    }
    let arguments = args
        .rules
        .iter()
        .map(|path| RuleArgument::parse(path.as_os_str()))
        .collect::<Result<Vec<_>, _>>()?;
    let cache =
        rules::cache::default_dir(std::env::var_os("XDG_CACHE_HOME"), std::env::var_os("HOME"));
    // Evidence is not written to, not even by a cache.
    let cache = cache.filter(|cache| lies_within(cache, given).is_none());
    let prepared = rules::prepare(&arguments, cache.as_deref(), &|_, out| {
        let mut compiler = Command::new("/proc/self/exe");
        compiler.args(["rules", "compile", "--out", "-"]);
        compiler.args(["--parent", &std::process::id().to_string()]);
        compiler.arg("--").args(&args.rules);
        for name in role::cloud_variables() {
            compiler.env_remove(name);
        }
        rules::run_compiler(compiler, out)
    })?;
    let (errors, warnings): (Vec<_>, Vec<_>) =
        prepared.header.diagnostics.iter().partition(|diagnostic| diagnostic.error);
    for error in errors.iter().take(TOLD) {
        say(&rules::line_of(error));
    }
    let more = errors.len().saturating_sub(TOLD);
    if more > 0 || !warnings.is_empty() {
        let warnings = warnings.len();
        say(&format!(
            "rules: {more} more errors and {warnings} warnings; `cleanroom-agent rules check` shows them"
        ));
    }
    if !prepared.cached {
        say(&format!("compiled {} rules", prepared.header.rules()));
    }
    if let Some(note) = &prepared.cache_note {
        say(note);
    }
    if args.strict && !errors.is_empty() {
        bail!("{} errors in the rules, and --strict was given", errors.len());
    }
    Ok(Some(prepared))
}

/// Opens the lists; a folder stands for the files in it, in the order of their names.
pub(super) fn open_indicators(paths: &[PathBuf]) -> anyhow::Result<Vec<(String, File)>> {
    let mut lists = Vec::new();
    for given in paths {
        for entry in walkdir::WalkDir::new(given).sort_by_file_name() {
            let entry = entry.context("read the indicators")?;
            let path = entry.path();
            if entry.file_type().is_file() || entry.depth() == 0 && path.is_file() {
                let file = File::open(path)
                    .with_context(|| format!("read the indicators {}", path.display()))?;
                // As seen from where the argument lies: findings name lists, not folders of a machine.
                let name = given.parent().and_then(|parent| path.strip_prefix(parent).ok());
                lists.push((printable(&name.unwrap_or(path).to_string_lossy()), file));
            }
        }
    }
    Ok(lists)
}

/// Walking deep trees and reading ahead takes more descriptors than the usual limit of 1,024.
pub(super) fn raise_descriptor_limit() {
    use nix::sys::resource::{Resource, getrlimit, setrlimit};
    if let Ok((_, hard)) = getrlimit(Resource::RLIMIT_NOFILE) {
        // Without it the look-ahead fails loudly, file by file; nothing is lost silently.
        let _ = setrlimit(Resource::RLIMIT_NOFILE, hard.min(1 << 20), hard);
    }
}

pub(super) fn setup(
    args: &Scan,
    rules: Option<&rules::Prepared>,
    indicators: Vec<(String, File)>,
) -> anyhow::Result<Setup> {
    let reuse_links = rules.is_none_or(|rules| !rules.header.reads_names);
    let rules = rules.map(|rules| rules.pack.try_clone()).transpose()?;
    let cpus = std::thread::available_parallelism().map_or(1, std::num::NonZero::get);
    let inspectors = args.threads.unwrap_or_else(|| u32::try_from(cpus).unwrap_or(1));
    let memory = args.memory.map(|memory| memory / u64::from(inspectors));
    Ok(Setup {
        limits: Limits {
            in_memory: memory.map_or(IN_MEMORY, |memory| memory.min(IN_MEMORY)),
            max_file_size: args.max_file_size,
            file_timeout_ms: u64::try_from(args.file_timeout.as_millis()).unwrap_or(u64::MAX),
            max_hole_bytes: MAX_HOLE_BYTES,
            depth: DEPTH,
        },
        measures: Measures {
            md5: args.digest.contains(&Digest::Md5),
            sha1: args.digest.contains(&Digest::Sha1),
            entropy: !args.no_entropy,
        },
        excludes: args.exclude.clone(),
        inspectors,
        reuse_links,
        rules,
        indicators,
        spares_lists: false,
        replay: None,
    })
}

/// The report before anything is known.
pub(super) fn draft(args: &Scan, setup: &Setup) -> Report {
    let mut random = [0; 16];
    // The name of a run need not be secret, only unlikely to be another's.
    let _ = rustix::rand::getrandom(&mut random, rustix::rand::GetRandomFlags::empty());
    let system = rustix::system::uname();
    let limit =
        |bytes: Option<u64>| bytes.map_or("none".to_owned(), |bytes| format!("{bytes} bytes"));
    let limits = [
        ("in-memory", limit(Some(setup.limits.in_memory))),
        ("max-file-size", limit(setup.limits.max_file_size)),
        ("file-timeout", format!("{} ms and 2 s per 100 MiB", setup.limits.file_timeout_ms)),
        ("hashed holes", limit(Some(setup.limits.max_hole_bytes))),
        ("depth", setup.limits.depth.to_string()),
        ("inspectors", setup.inspectors.to_string()),
        ("dirty journals", if setup.replay.is_some() { "replayed" } else { "not replayed" }.into()),
    ];
    let started = now();
    Report {
        v: VersionOne,
        case: args.case.clone(),
        examiner: args.examiner.clone(),
        evidence_id: args.evidence_id.clone(),
        notes: args.note.clone(),
        run: Run {
            id: random.iter().map(|byte| format!("{byte:02x}")).collect(),
            started,
            ended: started,
            agent: concat!("cleanroom-agent ", env!("CARGO_PKG_VERSION")).to_owned(),
            agent_sha256: None,
            arguments: std::env::args_os().map(|a| printable(&a.to_string_lossy())).collect(),
            host: printable(&system.nodename().to_string_lossy()),
            kernel: printable(&system.release().to_string_lossy()),
            // What a killed run leaves behind must not call itself complete.
            state: RunState::Interrupted,
        },
        evidence: Vec::new(),
        volumes: Vec::new(),
        rules: Vec::new(),
        indicators: Vec::new(),
        rule_diagnostics: Vec::new(),
        limits: limits
            .into_iter()
            .map(|(name, value)| (name.to_owned(), value))
            .collect::<BTreeMap<_, _>>(),
        summary: Summary {
            v: VersionOne,
            entries: 0,
            files: 0,
            bytes: 0,
            findings: Default::default(),
            gaps: 0,
            complete: false,
        },
        coverage: Default::default(),
        worst: Vec::new(),
        gaps: Vec::new(),
        files: Vec::new(),
    }
}

/// SHA-256 of this executable.
pub(in crate::run) fn own_digest() -> Option<Sha256> {
    let file = File::open("/proc/self/exe").ok()?;
    folder::digest(&file).ok().map(|(_, sha256)| sha256)
}
