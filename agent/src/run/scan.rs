//! `scan`: evidence in, sealed bundle out.
//!
//! Purpose: check everything that can be checked before the first byte is read, run the supervisor over
//! each piece of evidence, seal. Touches the bundle's folder and what the parts touch. Never leaves a
//! started scan without a bundle, or at least a spool and the words how to seal it.

use std::{
    collections::{BTreeMap, HashSet},
    fs::{self, File},
    io,
    os::fd::{AsFd as _, OwnedFd},
    path::{Path, PathBuf},
    process::Command,
};

use anyhow::{Context as _, bail};
use cleanroom_contract::{
    EvidenceSource, Gap, GapKind, Report, Run, RunState, Sha256, Summary, VersionOne, VolumeRecord,
    VolumeState, printable,
};

use super::{FAILED, FINDINGS, GAPS, Hint, USAGE, format_or_default, now, print, say};
use crate::{
    bundle::{
        folder,
        seal::{self, DRAFT, SPOOL},
        signature::SigningKey,
        spool::Spool,
        text,
    },
    cli::{Digest, Format, Scan},
    evidence::{
        probe::{ContentKind, Layout, Part},
        view::{self, Evidence, View, ViewError},
    },
    protocol::{Limits, Measures, WalkOrder},
    rules::{self, source::RuleArgument},
    supervise::{Setup, Signals, Supervisor, Totals, Walked, error_chain},
    walk,
};

mod progress;

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

/// One piece of evidence, opened.
struct Given {
    name: String,
    path: PathBuf,
    evidence: Evidence,
}

/// Runs a scan; the exit status.
pub(super) fn scan(args: &Scan) -> anyhow::Result<u8> {
    if let Err(error) = walk::globs(&args.exclude) {
        say(&format!("error: {}", printable(&error_chain(&error))));
        return Ok(USAGE);
    }
    let key = args.sign_key.as_deref().map(SigningKey::load).transpose()?;
    let given = open_evidence(&args.evidence)?;
    let out = prepare_folder(&args.out, &given)?;
    let prepared = prepare_rules(args)?;
    let indicators = open_indicators(&args.indicators)?;
    raise_descriptor_limit();

    let setup = setup(args, prepared.as_ref().map(|p| p.pack.try_clone()).transpose()?, indicators);
    let mut report = draft(args, &setup);
    if let Some(prepared) = &prepared {
        report.rules.clone_from(&prepared.header.sources);
        report.rule_diagnostics.clone_from(&prepared.header.diagnostics);
    }
    let agent = std::thread::spawn(own_digest);
    fs::create_dir(out.join(SPOOL)).context("begin the spool")?;
    let spool = Spool::create(&out.join(SPOOL)).context("begin the spool")?;
    save_draft(&out, &report)?;

    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let mut session = Session { out: &out, report, next_volume: 0 };
    let done = runtime.block_on(session.run(setup, spool, given));
    let mut report = session.report;
    report.run.ended = now();
    report.run.agent_sha256 = agent.join().ok().flatten();
    let records = match done {
        Ok(spool) => spool.finish().context("close the spool"),
        Err(error) if report.evidence.is_empty() => {
            // No evidence was read yet: there is nothing to seal, and the next try finds the folder empty.
            drop(fs::remove_dir_all(out.join(SPOOL)));
            return Err(error);
        }
        Err(error) => Err(error),
    };
    let sealed = records.and_then(|records| Ok(seal::seal(&out, records, report, key.as_ref())?));
    let report = sealed.with_context(|| {
        let folder = out.display();
        Hint(format!(
            "what was found so far is in {folder}/{SPOOL}: mend the cause, then `cleanroom-agent seal {folder}`"
        ))
    })?;
    show(args, &out, &report)?;
    Ok(status(args, &report))
}

fn status(args: &Scan, report: &Report) -> u8 {
    let at_or_above = |limit| report.summary.findings.0.range(limit..).next().is_some();
    if report.run.state == RunState::Failed {
        FAILED
    } else if args.fail_on.is_some_and(at_or_above) {
        FINDINGS
    } else if report.summary.gaps > 0 || !report.summary.complete {
        GAPS
    } else {
        0
    }
}

/// Prints what people or programs want to know.
fn show(args: &Scan, out: &Path, report: &Report) -> anyhow::Result<()> {
    use io::IsTerminal as _;
    match format_or_default(args.format) {
        Format::Human => {
            let colour = io::stdout().is_terminal() && std::env::var_os("NO_COLOR").is_none();
            let width = if io::stdout().is_terminal() { progress::width() } else { 100 };
            print(|mut to| text::write_summary(report, out, colour, width, &mut to))
        }
        Format::Jsonl => print(|to| {
            let mut line = |record: cleanroom_contract::Record| {
                serde_json::to_writer(&mut *to, &record)?;
                to.write_all(b"\n")
            };
            for volume in &report.volumes {
                line(cleanroom_contract::Record::Volume(volume.clone()))?;
            }
            for name in ["findings.jsonl", "gaps.jsonl"] {
                io::copy(&mut File::open(out.join(name))?, to)?;
            }
            serde_json::to_writer(
                &mut *to,
                &cleanroom_contract::Record::Summary(report.summary.clone()),
            )?;
            to.write_all(b"\n")
        }),
    }
}

/// Opens everything that was given, before anything is read.
fn open_evidence(paths: &[PathBuf]) -> anyhow::Result<Vec<Given>> {
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
            Ok(Given { name, path: path.clone(), evidence })
        })
        .collect()
}

/// Makes the bundle's folder, and sees to it that it is empty and can be written.
fn prepare_folder(out: &Path, given: &[Given]) -> anyhow::Result<PathBuf> {
    let shown = printable(&out.to_string_lossy());
    let within = |folder: &Path| {
        given.iter().find(|given| {
            matches!(given.evidence, Evidence::Folder(_))
                && fs::canonicalize(&given.path).is_ok_and(|evidence| folder.starts_with(evidence))
        })
    };
    // The nearest folder that is there already decides, before anything is made.
    let there = out.ancestors().find_map(|folder| {
        let folder = if folder.as_os_str().is_empty() { Path::new(".") } else { folder };
        fs::canonicalize(folder).ok()
    });
    if let Some(evidence) = there.as_deref().and_then(within) {
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

/// Compiles the rules, or finds them compiled.
fn prepare_rules(args: &Scan) -> anyhow::Result<Option<rules::Prepared>> {
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
    let prepared = rules::prepare(&arguments, cache.as_deref(), &|_, out| {
        let mut compiler = Command::new("/proc/self/exe");
        compiler.args(["rules", "compile", "--out", "-"]);
        compiler.args(["--parent", &std::process::id().to_string()]);
        compiler.arg("--").args(&args.rules);
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
fn open_indicators(paths: &[PathBuf]) -> anyhow::Result<Vec<(String, File)>> {
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
fn raise_descriptor_limit() {
    use nix::sys::resource::{Resource, getrlimit, setrlimit};
    if let Ok((_, hard)) = getrlimit(Resource::RLIMIT_NOFILE) {
        // Without it the look-ahead fails loudly, file by file; nothing is lost silently.
        let _ = setrlimit(Resource::RLIMIT_NOFILE, hard.min(1 << 20), hard);
    }
}

fn setup(args: &Scan, rules: Option<File>, indicators: Vec<(String, File)>) -> Setup {
    let cpus = std::thread::available_parallelism().map_or(1, std::num::NonZero::get);
    let inspectors = args.threads.unwrap_or_else(|| u32::try_from(cpus).unwrap_or(1));
    let memory = args.memory.map(|memory| memory / u64::from(inspectors));
    Setup {
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
        rules,
        indicators,
    }
}

/// The report before anything is known.
fn draft(args: &Scan, setup: &Setup) -> Report {
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
fn own_digest() -> Option<Sha256> {
    let file = File::open("/proc/self/exe").ok()?;
    folder::digest(&file).ok().map(|(_, sha256)| sha256)
}

/// Puts the report so far beside the spool, whole or not at all.
fn save_draft(out: &Path, report: &Report) -> anyhow::Result<()> {
    let spool = out.join(SPOOL);
    let new = spool.join("report.json.new");
    let json = serde_json::to_vec(report).context("encode the report")?;
    fs::write(&new, json)
        .and_then(|()| fs::rename(&new, spool.join(DRAFT)))
        .context("write into the bundle's folder")
}

/// A scan that runs.
struct Session<'s> {
    out: &'s Path,
    report: Report,
    next_volume: u32,
}

impl Session<'_> {
    async fn run(
        &mut self,
        setup: Setup,
        spool: Spool,
        given: Vec<Given>,
    ) -> anyhow::Result<Spool> {
        let signals = Signals::take().context("take the signals")?;
        let bar = progress::Bar::new();
        let watch = bar.clone();
        let mut supervisor =
            Supervisor::start(setup, spool, signals, Box::new(move |totals| watch.show(totals)))
                .await?;
        self.report.indicators.clone_from(&supervisor.indicators);
        self.rule_gaps(&mut supervisor)?;
        for given in given {
            self.examine(&mut supervisor, &bar, given).await?;
            save_draft(self.out, &self.report)?;
        }
        bar.clear();
        let interrupted = supervisor.signals.received > 0;
        self.report.run.state =
            if interrupted { RunState::Interrupted } else { RunState::Complete };
        self.report.summary.complete = !interrupted
            && self.report.volumes.iter().all(|volume| volume.state != VolumeState::Incomplete);
        let volumes = &self.report.volumes;
        self.report.coverage.volumes = volumes.len() as u64;
        let examined = volumes.iter().filter(|volume| volume.state == VolumeState::Examined);
        self.report.coverage.volumes_examined = examined.count() as u64;
        let (spool, _, _) = supervisor.end().await;
        Ok(spool)
    }

    /// A rule that did not compile judged nothing.
    fn rule_gaps(&self, supervisor: &mut Supervisor<'_>) -> anyhow::Result<()> {
        let errors = self.report.rule_diagnostics.iter().filter(|diagnostic| diagnostic.error);
        for (sub, diagnostic) in (0..).zip(errors) {
            let gap = Gap {
                v: VersionOne,
                kind: GapKind::Rules,
                volume: None,
                path: None,
                reason: format!("not used: {}", rules::line_of(diagnostic)),
                advice: Some("mend the rule and scan again".to_owned()),
                count: 1,
            };
            supervisor.write_own(u32::MAX, &walk::gap_line(&gap, u64::MAX, sub))?;
        }
        Ok(())
    }

    /// Examines one piece of evidence.
    async fn examine(
        &mut self,
        supervisor: &mut Supervisor<'_>,
        bar: &progress::Bar,
        given: Given,
    ) -> anyhow::Result<()> {
        let mut source = EvidenceSource {
            name: given.name.clone(),
            given: printable(&given.path.to_string_lossy()),
            kind: given.evidence.kind().to_owned(),
            size: None,
            partition_table: None,
        };
        let (file, size) = match given.evidence {
            Evidence::Folder(folder) => {
                self.report.evidence.push(source);
                let record = volume_record(&given.name, &given.path, "folder");
                let view = view::folder(&folder, &given.path);
                return self.walk(supervisor, bar, record, (view, None)).await;
            }
            Evidence::Image(file, size) | Evidence::Device(file, size) => (file, size),
        };
        source.size = Some(size);
        let layout = supervisor.probe(file.as_fd()).await;
        let layout = match layout {
            Ok(layout) => layout,
            Err(reason) => {
                self.report.evidence.push(source);
                let record = volume_record(&given.name, &given.path, "unknown");
                let reason = format!("tell what lies on it: {reason}");
                return self.not_walked(supervisor, record, GapKind::Evidence, reason, None);
            }
        };
        source.partition_table = layout.table.map(|table| table.as_str().to_owned());
        self.report.evidence.push(source);
        self.troubles(supervisor, &given.name, &layout)?;
        let backing = (OwnedFd::from(file), size);
        for part in &layout.volumes {
            self.examine_part(
                supervisor,
                bar,
                (&given.name, &given.path),
                (part, layout.sector),
                &backing,
            )
            .await?;
        }
        Ok(())
    }

    async fn examine_part(
        &mut self,
        supervisor: &mut Supervisor<'_>,
        bar: &progress::Bar,
        (name, path): (&str, &Path),
        (part, sector): (&Part, u32),
        backing: &(OwnedFd, u64),
    ) -> anyhow::Result<()> {
        let kind = part.content.kind;
        let mut record = volume_record(&volume_name(name, part.number), path, kind.as_str());
        record.offset = Some(part.offset);
        record.length = Some(part.length);
        record.uuid.clone_from(&part.content.uuid);
        record.label.clone_from(&part.content.label);
        record.partition_name.clone_from(&part.name);
        record.unreplayed_journal = part.content.unreplayed.as_ref().map(|u| u.reason.clone());
        if kind.mount_type().is_none() {
            let what = match kind {
                ContentKind::Unknown => "nothing that is known was recognised here".to_owned(),
                ContentKind::Empty => "holds zeros where a file system would begin".to_owned(),
                kind => format!("holds {}, which is no file system", kind.as_str()),
            };
            let advice = kind.advice().map(str::to_owned);
            return self.not_walked(supervisor, record, GapKind::Unmounted, what, advice);
        }
        let view = view::file_system(backing.0.as_fd(), part, sector);
        self.walk(supervisor, bar, record, (view, Some(backing))).await
    }

    /// Walks a view, or says why there is none.
    async fn walk(
        &mut self,
        supervisor: &mut Supervisor<'_>,
        bar: &progress::Bar,
        mut record: VolumeRecord,
        (view, backing): (Result<View, ViewError>, Option<&(OwnedFd, u64)>),
    ) -> anyhow::Result<()> {
        let view = match view {
            Ok(view) => view,
            Err(error) => {
                let advice = error.advice();
                let reason = printable(&error_chain(&error));
                return self.not_walked(supervisor, record, GapKind::Unmounted, reason, advice);
            }
        };
        let ordinal = self.next_volume;
        self.next_volume += 1;
        record.view.clone_from(&view.options);
        record.unreplayed_journal = record.unreplayed_journal.or(view.unreplayed.clone());
        if let Some(why) = &record.unreplayed_journal {
            let reason = format!("the journal holds changes that were not replayed: {why}");
            let mut gap = walk::gap(GapKind::UnreplayedJournal, &record.volume, None, reason);
            gap.advice = Some(
                "what was written last may be missing or old here: replay it on a copy and scan that"
                    .to_owned(),
            );
            supervisor.write_own(ordinal, &walk::gap_line(&gap, u64::MAX, 1000))?;
        }
        bar.begin(&record.volume, backing.and_then(|_| used_bytes(&view)));
        let order = WalkOrder {
            volume: record.volume.clone(),
            ordinal,
            backing: backing.map(|backing| backing.1),
            protect_access_times: view.protect_access_times,
        };
        let interrupted = supervisor.signals.received > 0;
        // A run that is killed meanwhile has said which volume it was at.
        record.state = VolumeState::Incomplete;
        self.report.volumes.push(record);
        save_draft(self.out, &self.report)?;
        let walked = supervisor.walk(order, &view, backing.map(|backing| &backing.0)).await?;
        let state = match walked {
            Walked::Complete => VolumeState::Examined,
            Walked::Incomplete if interrupted => VolumeState::NotExamined,
            Walked::Incomplete => VolumeState::Incomplete,
        };
        if let Some(record) = self.report.volumes.last_mut() {
            record.state = state;
        }
        Ok(())
    }

    /// Records a volume that is not walked, with the gap that says why.
    fn not_walked(
        &mut self,
        supervisor: &mut Supervisor<'_>,
        record: VolumeRecord,
        kind: GapKind,
        reason: String,
        advice: Option<String>,
    ) -> anyhow::Result<()> {
        let mut gap = walk::gap(kind, &record.volume, None, reason);
        gap.advice = advice;
        let ordinal = self.next_volume;
        self.next_volume += 1;
        supervisor.write_own(ordinal, &walk::gap_line(&gap, u64::MAX, 0))?;
        self.report.volumes.push(record);
        Ok(())
    }

    /// What the probe found wrong.
    fn troubles(
        &mut self,
        supervisor: &mut Supervisor<'_>,
        name: &str,
        layout: &Layout,
    ) -> anyhow::Result<()> {
        for (sub, trouble) in (2000..).zip(&layout.troubles) {
            let volume = volume_name(name, trouble.number.unwrap_or(0));
            let mut gap = walk::gap(trouble.kind, &volume, None, trouble.reason.clone());
            gap.advice.clone_from(&trouble.advice);
            supervisor.write_own(self.next_volume, &walk::gap_line(&gap, u64::MAX, sub))?;
        }
        Ok(())
    }
}

/// `disk.img` for the whole, `disk.img:p2` for a partition.
fn volume_name(evidence: &str, number: u32) -> String {
    if number == 0 { evidence.to_owned() } else { format!("{evidence}:p{number}") }
}

fn volume_record(volume: &str, evidence: &Path, content: &str) -> VolumeRecord {
    VolumeRecord {
        v: VersionOne,
        volume: volume.to_owned(),
        evidence: printable(&evidence.to_string_lossy()),
        content: content.to_owned(),
        offset: None,
        length: None,
        uuid: None,
        label: None,
        partition_name: None,
        unreplayed_journal: None,
        view: Vec::new(),
        state: VolumeState::NotExamined,
    }
}

/// The bytes in use on a mounted file system, which is about what a scan will read.
fn used_bytes(view: &View) -> Option<u64> {
    let stat = rustix::fs::fstatvfs(&view.root).ok()?;
    Some(stat.f_blocks.saturating_sub(stat.f_bfree).saturating_mul(stat.f_frsize))
}
