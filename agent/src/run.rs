//! The composition root: what was typed becomes a run, and a run becomes an exit status.
//!
//! Purpose: put the parts together, read the clock, and talk to people. Touches what the parts touch.
//! Never does the work of a part.

mod room;
mod scan;

use std::{
    fs::File,
    io::{self, IsTerminal as _, Write as _},
    os::fd::AsFd as _,
    path::Path,
    process::ExitCode,
};

use anyhow::Context as _;
use cleanroom_contract::{
    Gap, GapKind, Report, RunState, Timestamp, VersionOne, VolumeState, printable,
};

use crate::{
    bundle::{
        seal::{self, DRAFT, SPOOL},
        signature::SigningKey,
        spool::Sorted,
        verify,
    },
    cli::{Cli, Command, Format, Rules, Seal, Verify},
    inspect::format,
    overlay,
    protocol::Channel,
    rules,
    supervise::{self, role::Role},
    walk,
};

/// Exit statuses; `cli::Cli` documents them.
const FAILED: u8 = 1;
const USAGE: u8 = 2;
const GAPS: u8 = 3;
const FINDINGS: u8 = 4;

/// Runs a command.
pub(crate) fn run(cli: Cli) -> ExitCode {
    let done = match cli.command {
        Command::Scan(scan) => scan::scan(&scan),
        Command::Run(run) => Ok(room::run(&run)),
        Command::Verify(verify) => verify_bundle(&verify),
        Command::Rules(Rules::Check { paths }) => check_rules(&paths),
        Command::Rules(Rules::Filetypes) => list_filetypes(),
        Command::Rules(Rules::Compile { paths, out, strict, parent }) => {
            compile_rules(&paths, (&out, strict), parent)
        }
        Command::Seal(seal) => seal_left_over(&seal),
        Command::Role { role, parent } => play(role, parent),
    };
    match done {
        Ok(status) => ExitCode::from(status),
        Err(error) => {
            complain(&error);
            ExitCode::from(FAILED)
        }
    }
}

/// Prints an error with its causes, and what to do where we know it.
fn complain(error: &anyhow::Error) {
    let mut err = io::stderr().lock();
    // With stderr gone there is nobody to tell.
    drop(writeln!(err, "error: {}", causes(error)));
    if let Some(Hint(hint)) = error.downcast_ref() {
        drop(writeln!(err, "hint: {hint}"));
    }
}

/// An error with its causes in one printable line, without what a person can do about it.
fn causes(error: &anyhow::Error) -> String {
    let hint = error.downcast_ref::<Hint>().map(|Hint(hint)| hint.as_str());
    let causes =
        error.chain().map(ToString::to_string).filter(|cause| Some(cause.as_str()) != hint);
    printable(&causes.collect::<Vec<_>>().join(": "))
}

/// What a person can do about an error; attached to it as context.
#[derive(Debug, thiserror::Error)]
#[error("{0}")]
struct Hint(String);

/// Says something to people, on stderr.
fn say(text: &str) {
    drop(writeln!(io::stderr().lock(), "{text}"));
}

/// What to print where nothing was asked for: people read terminals, programs read pipes.
fn format_or_default(format: Option<Format>) -> Format {
    let terminal = io::stdout().is_terminal();
    format.unwrap_or(if terminal { Format::Human } else { Format::Jsonl })
}

/// The clock that reports are dated with.
#[expect(clippy::disallowed_methods, reason = "the one place where the clock is read for reports")]
fn now() -> Timestamp {
    let since =
        std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap_or_default();
    Timestamp {
        seconds: i64::try_from(since.as_secs()).unwrap_or(i64::MAX),
        nanos: since.subsec_nanos(),
    }
}

/// Writes to stdout; a reader that has gone away ends the output, not the work.
fn print(write: impl FnOnce(&mut dyn io::Write) -> io::Result<()>) -> anyhow::Result<()> {
    let mut out = io::BufWriter::new(io::stdout().lock());
    match write(&mut out).and_then(|()| out.flush()) {
        Err(error) if error.kind() == io::ErrorKind::BrokenPipe => Ok(()),
        written => written.context("write to standard output"),
    }
}

/// One of the agent's own processes.
fn play(role: Role, parent: u32) -> anyhow::Result<u8> {
    let name = role.name();
    supervise::role::enter(name, Some(parent)).context(name)?;
    let channel = Channel::to_parent().context(name)?;
    match role {
        Role::Probe => supervise::probe_role(channel).context(name)?,
        Role::Walker => walk::run(channel).context(name)?,
        Role::Zygote => supervise::zygote::run(channel).context(name)?,
        Role::Overlay => overlay::run(channel).context(name)?,
    }
    Ok(0)
}

fn verify_bundle(args: &Verify) -> anyhow::Result<u8> {
    let verification = verify::verify(&args.bundle, args.signer.as_deref())?;
    print(|mut out| match format_or_default(args.format) {
        Format::Human => verification.write_human(&mut out),
        Format::Jsonl => verification.write_jsonl(&mut out),
    })?;
    Ok(if verification.is_intact() { 0 } else { GAPS })
}

fn check_rules(paths: &[std::path::PathBuf]) -> anyhow::Result<u8> {
    let mut diagnostics = Vec::new();
    let outcome = rules::check(paths, &mut diagnostics)?;
    print(|stdout| stdout.write_all(&diagnostics))?;
    say(&format!(
        "{} files, {} rules, {} errors, {} warnings",
        outcome.files, outcome.rules, outcome.errors, outcome.warnings
    ));
    Ok(if outcome.errors > 0 { FAILED } else { 0 })
}

fn compile_rules(
    paths: &[std::path::PathBuf],
    (out, strict): (&Path, bool),
    parent: Option<u32>,
) -> anyhow::Result<u8> {
    // The scan runs this command for itself and takes the pack from standard output: also one without
    // any rule, for what it says of why.
    if parent.is_some() {
        supervise::role::enter("compiler", parent).context("compiler")?;
        let stdout = io::stdout().as_fd().try_clone_to_owned().context("compiler")?;
        rules::compile_here(&rules::source::read(paths)?, &File::from(stdout))?;
        return Ok(0);
    }
    let mut pack: Vec<u8> = Vec::new();
    let outcome = rules::compile_to(paths, &mut pack, strict, &mut io::stderr().lock())?;
    if out == Path::new("-") {
        print(|stdout| stdout.write_all(&pack))?;
        return Ok(0);
    }
    let folder = out.parent().filter(|parent| !parent.as_os_str().is_empty());
    let folder = folder.unwrap_or(Path::new("."));
    let mut file = tempfile::NamedTempFile::new_in(folder)
        .with_context(|| format!("write the pack into {}", folder.display()))?;
    file.write_all(&pack).context("write the pack")?;
    file.persist(out).with_context(|| format!("write the pack {}", out.display()))?;
    let sha256 = rules::source::digest(&pack);
    say(&format!("{} rules from {} files", outcome.rules, outcome.files));
    print(|stdout| writeln!(stdout, "{}@sha256={sha256}", out.display()))?;
    Ok(0)
}

fn list_filetypes() -> anyhow::Result<u8> {
    print(|out| {
        format::FORMATS.iter().try_for_each(|(name, what)| writeln!(out, "{name:<10} {what}"))
    })?;
    Ok(0)
}

/// The gap of a scan that never came to its end; `why`, where that is known.
fn cut_short(report: &Report, why: Option<&str>) -> Gap {
    let at = report.volumes.iter().find(|volume| volume.state == VolumeState::Incomplete);
    let place = at.map_or("between two volumes".to_owned(), |at| format!("in {}", at.volume));
    let why = why.map_or(String::new(), |why| format!(", {why}"));
    Gap {
        v: VersionOne,
        kind: GapKind::Interrupted,
        volume: at.map(|at| at.volume.clone()),
        path: None,
        reason: format!(
            "the scan was cut short {place}{why}: files that were in hand and everything behind them were not \
             examined"
        ),
        advice: Some("scan again".to_owned()),
        count: 1,
    }
}

/// Seals what a killed scan has left in its spool.
fn seal_left_over(args: &Seal) -> anyhow::Result<u8> {
    let key = args.sign_key.as_deref().map(SigningKey::load).transpose()?;
    let report = seal_spool(&args.bundle, key.as_ref(), None, &mut || {})?;
    let shown = printable(&args.bundle.to_string_lossy());
    say(&format!("sealed {} entries into {shown}", report.summary.entries));
    Ok(GAPS)
}

/// Makes a bundle of what is in its spool; `why` says what cut the scan short, where that is known.
fn seal_spool(
    bundle: &Path,
    key: Option<&SigningKey>,
    why: Option<&str>,
    alive: &mut dyn FnMut(),
) -> anyhow::Result<Report> {
    let spool = bundle.join(SPOOL);
    let shown = printable(&bundle.to_string_lossy());
    let draft = File::open(spool.join(DRAFT))
        .with_context(|| format!("{shown} holds no records of an unfinished scan"))?;
    let mut report: Report = serde_json::from_reader(io::BufReader::new(draft))
        .context("read the unfinished scan's report")?;
    if report.run.state == RunState::Complete {
        report.run.state = RunState::Interrupted;
    }
    report.run.ended = now();
    let mut records = Sorted::open(&spool).context("read the unfinished scan's records")?;
    records.push_last(walk::gap_line(&cut_short(&report, why), u64::MAX, u32::MAX).json);
    Ok(seal::seal(bundle, records, report, key, alive)?)
}
