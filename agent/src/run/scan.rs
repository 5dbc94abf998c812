//! `scan`: evidence in, sealed bundle out.
//!
//! Purpose: check everything that can be checked before the first byte is read, run the supervisor over
//! each piece of evidence, seal. Touches the bundle's folder and what the parts touch. Never leaves a
//! started scan without a bundle, or at least a spool and the words how to seal it.

use std::{
    fs::{self, File},
    io,
    os::fd::{AsFd as _, OwnedFd},
    path::Path,
};

use anyhow::Context as _;
use cleanroom_contract::{
    EvidenceSource, Finding, Gap, GapKind, Report, RunState, VersionOne, VolumeRecord, VolumeState,
    printable,
};
use tokio::runtime::Runtime;

use super::{FAILED, FINDINGS, GAPS, Hint, USAGE, format_or_default, now, print, say};
use crate::{
    bundle::{
        seal::{self, DRAFT, SPOOL},
        signature::SigningKey,
        spool::Spool,
        text,
    },
    cli::{Format, Scan},
    evidence::{
        probe::{ContentKind, Layout, Part},
        scratch::Scratch,
        view::{self, Evidence, View, ViewError},
    },
    protocol::WalkOrder,
    rules,
    supervise::{Setup, Sight, Signals, Supervisor, Walked, error_chain},
    walk,
};
pub(super) use prepare::Given;

pub(super) use prepare::own_digest;

mod journals;
mod prepare;
mod progress;

/// Runs a scan; the exit status.
pub(super) fn scan(args: &Scan) -> anyhow::Result<u8> {
    if let Err(error) = walk::globs(&args.exclude) {
        say(&format!("error: {}", printable(&error_chain(&error))));
        return Ok(USAGE);
    }
    let key = args.sign_key.as_deref().map(SigningKey::load).transpose()?;
    let given = prepare::open_evidence(&args.evidence)?;
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    // Until the scan itself begins, Ctrl-C ends it as it ends any program.
    let mut signals = None;
    let plan = Plan { key: key.as_ref(), ..Plan::default() };
    let report = examine(args, given, plan, (&runtime, &mut signals))?;
    show(args, &args.out, &report)?;
    Ok(status(args, &report))
}

/// Who else watches a scan; must not hold it up.
pub(super) trait Watcher {
    /// A volume begins; `total` are the bytes in use on it, where that is known.
    fn begins(&self, volume: &str, total: Option<u64>);
    /// What the run shows.
    fn sees(&self, sight: &Sight<'_>);
    /// The bundle is being sealed; told again and again while it is.
    fn seals(&self);
}

/// What is not typed on a command line.
#[derive(Default)]
pub(super) struct Plan<'p> {
    /// Signs the bundle.
    pub(super) key: Option<&'p SigningKey>,
    /// Watches.
    pub(super) watcher: Option<&'p dyn Watcher>,
    /// What is known to be missing before the scan begins.
    pub(super) gaps: Vec<Gap>,
    /// What is known to be suspicious before it begins.
    pub(super) findings: Vec<Finding>,
    /// A broken indicator list costs itself only, which is a gap, and not the scan.
    pub(super) spares_lists: bool,
}

/// Scans what was given into a sealed bundle; `args` says how and where.
pub(super) fn examine(
    args: &Scan,
    given: Vec<Given>,
    plan: Plan<'_>,
    (runtime, signals): (&Runtime, &mut Option<Signals>),
) -> anyhow::Result<Report> {
    let out = prepare::folder(&args.out, &given)?;
    let prepared = prepare::rules(args, &given)?;
    let indicators = prepare::open_indicators(&args.indicators)?;
    prepare::raise_descriptor_limit();

    let scratch = prepare::scratch(args, &given)?;
    let mut setup = prepare::setup(args, prepared.as_ref(), indicators)?;
    setup.replay = scratch;
    setup.spares_lists = plan.spares_lists;
    let mut report = prepare::draft(args, &setup);
    if let Some(prepared) = &prepared {
        report.rules.clone_from(&prepared.header.sources);
        report.rule_diagnostics.clone_from(&prepared.header.diagnostics);
    }
    let agent = std::thread::spawn(prepare::own_digest);
    fs::create_dir(out.join(SPOOL)).context("begin the spool")?;
    let spool = Spool::create(&out.join(SPOOL)).context("begin the spool")?;
    save_draft(&out, &report)?;

    let scratch = setup.replay.clone();
    let mut session = Session { out: &out, report, next_volume: 0, plan: &plan, scratch };
    let done = runtime.block_on(session.run((setup, spool), given, signals));
    let mut report = session.report;
    report.run.ended = now();
    report.run.agent_sha256 = agent.join().ok().flatten();
    if report.run.agent_sha256.is_none() {
        say("the agent's own executable could not be read: the report lacks its SHA-256");
    }
    let records = match done {
        Ok(spool) => spool.finish().context("close the spool"),
        Err(error) if report.evidence.is_empty() => {
            // No evidence was read yet: there is nothing to seal, and the next try finds the folder empty.
            drop(fs::remove_dir_all(out.join(SPOOL)));
            return Err(error);
        }
        Err(error) => {
            report.run.state = RunState::Failed;
            // With a full disk there is no room for this either; the older draft stays.
            drop(save_draft(&out, &report));
            Err(error)
        }
    };
    let mut alive = || plan.watcher.into_iter().for_each(Watcher::seals);
    let sealed =
        records.and_then(|records| Ok(seal::seal(&out, records, report, plan.key, &mut alive)?));
    sealed.with_context(|| {
        let folder = out.display();
        Hint(format!(
            "what was found so far is in {folder}/{SPOOL}: mend the cause, then `cleanroom-agent seal {folder}`"
        ))
    })
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
    plan: &'s Plan<'s>,
    /// Where dirty journals are replayed into; absent where they are not.
    scratch: Option<Scratch>,
}

impl Session<'_> {
    async fn run(
        &mut self,
        (setup, spool): (Setup, Spool),
        given: Vec<Given>,
        signals: &mut Option<Signals>,
    ) -> anyhow::Result<Spool> {
        let signals = match signals {
            Some(taken) => taken,
            none => none.insert(Signals::take().context("take the signals")?),
        };
        let bar = progress::Bar::new(self.plan.watcher);
        let watch = bar.clone();
        let mut supervisor =
            Supervisor::start(setup, spool, signals, Box::new(move |sight| watch.see(&sight)))
                .await?;
        self.report.indicators.clone_from(&supervisor.indicators);
        self.own_records(&mut supervisor)?;
        for given in given {
            if supervisor.signals.received > 0 {
                let record = volume_record(&given.name, &given.path, "unknown");
                self.not_reached(&mut supervisor, record)?;
                continue;
            }
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

    /// A rule that did not compile judged nothing, nor did a broken list, nor what did not come.
    fn own_records(&self, supervisor: &mut Supervisor<'_>) -> anyhow::Result<()> {
        let gap = |what: &str, advice: &str| Gap {
            v: VersionOne,
            kind: GapKind::Rules,
            volume: None,
            path: None,
            reason: format!("not used: {what}"),
            advice: Some(advice.to_owned()),
            count: 1,
        };
        let errors = self.report.rule_diagnostics.iter().filter(|diagnostic| diagnostic.error);
        let rules = errors.map(|e| gap(&rules::line_of(e), "mend the rule and scan again"));
        let lists = supervisor.list_faults.iter();
        let lists = lists.map(|fault| gap(&printable(fault), "mend the list and scan again"));
        let gaps: Vec<_> = rules.chain(lists).chain(self.plan.gaps.iter().cloned()).collect();
        for (sub, gap) in (0..).zip(&gaps) {
            supervisor.write_own(u32::MAX, &walk::gap_line(gap, u64::MAX, sub))?;
        }
        for (sub, finding) in (0..).zip(&self.plan.findings) {
            supervisor.write_own(u32::MAX, &walk::finding_line(finding, u64::MAX, sub))?;
        }
        Ok(())
    }

    /// Examines one piece of evidence.
    async fn examine(
        &mut self,
        supervisor: &mut Supervisor<'_>,
        bar: &progress::Bar<'_>,
        given: Given,
    ) -> anyhow::Result<()> {
        let mut source = EvidenceSource {
            name: given.name.clone(),
            given: printable(&given.path.to_string_lossy()),
            kind: given.evidence.as_ref().map_or("unknown", Evidence::kind).to_owned(),
            size: None,
            partition_table: None,
        };
        let (file, size) = match given.evidence {
            Err(reason) => {
                self.report.evidence.push(source);
                let record = volume_record(&given.name, &given.path, "unknown");
                let advice = Some("see what became of it, and scan again".to_owned());
                return self.not_walked(supervisor, record, GapKind::Evidence, reason, advice);
            }
            Ok(Evidence::Folder(folder)) => {
                self.report.evidence.push(source);
                let record = volume_record(&given.name, &given.path, "folder");
                let view = view::folder(&folder, &given.path);
                return self.walk(supervisor, bar, record, (view, None)).await;
            }
            Ok(Evidence::Image(file, size) | Evidence::Device(file, size)) => (file, size),
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
            if supervisor.signals.received > 0 {
                let name = volume_name(&given.name, part.number);
                let kind = part.content.kind.as_str();
                let record = volume_record(&name, &given.path, kind);
                self.not_reached(supervisor, record)?;
                continue;
            }
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
        bar: &progress::Bar<'_>,
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
        let view = view::file_system(backing.0.as_fd(), part, sector, self.scratch.as_ref());
        self.walk(supervisor, bar, record, (view, Some(backing))).await
    }

    /// Walks a view, or says why there is none.
    async fn walk(
        &mut self,
        supervisor: &mut Supervisor<'_>,
        bar: &progress::Bar<'_>,
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
        record.replayed.clone_from(&view.replayed);
        record.unreplayed_journal = match (&view.unreplayed, &view.replayed) {
            (Some(unreplayed), _) => Some(unreplayed.why.clone()),
            (None, Some(_)) => None,
            (None, None) => record.unreplayed_journal,
        };
        if let Some(unreplayed) = &view.unreplayed {
            let gap = journals::unreplayed(&record.volume, unreplayed);
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
        let volume = order.volume.clone();
        let walked = supervisor.walk(order, &view, backing.map(|backing| &backing.0)).await?;
        let trouble = journals::close(view).await;
        if let Some(trouble) = &trouble {
            let gap = journals::broken(&volume, trouble);
            supervisor.write_own(ordinal, &walk::gap_line(&gap, u64::MAX, 1001))?;
        }
        let state = match walked {
            Walked::Complete if trouble.is_some() => VolumeState::Incomplete,
            Walked::Complete => VolumeState::Examined,
            Walked::Incomplete if interrupted => VolumeState::NotExamined,
            Walked::Incomplete => VolumeState::Incomplete,
        };
        if let Some(record) = self.report.volumes.last_mut() {
            record.state = state;
        }
        Ok(())
    }

    /// Records a volume that a stop has kept from being looked at.
    fn not_reached(
        &mut self,
        supervisor: &mut Supervisor<'_>,
        record: VolumeRecord,
    ) -> anyhow::Result<()> {
        let reason = "the scan was interrupted before it came to this".to_owned();
        self.not_walked(supervisor, record, GapKind::Interrupted, reason, None)
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
        replayed: None,
        view: Vec::new(),
        state: VolumeState::NotExamined,
    }
}

/// The bytes in use on a mounted file system, which is about what a scan will read.
fn used_bytes(view: &View) -> Option<u64> {
    let stat = rustix::fs::fstatvfs(&view.root).ok()?;
    Some(stat.f_blocks.saturating_sub(stat.f_bfree).saturating_mul(stat.f_frsize))
}
