//! The composition root: what was typed becomes a run, and a run becomes an exit status.
//!
//! Purpose: puts settings, ports and flow together, reads the clock and the machine's randomness, and talks to people.
//! Touches what the parts touch. Never does the work of a part.

mod account;
mod approve;
mod cases;
mod deploy;
mod documents;
mod drill;
mod hint;
mod release;
mod respond;
mod revoke;
mod room;
mod session;
mod signals;
mod stage;
mod targets;
mod via;

use std::{
    io::{self, IsTerminal as _, Write as _},
    process::ExitCode,
};

use anyhow::Context as _;
use cleanroom_contract::printable;

use crate::{
    cli::{Cli, Command, Custody, Format, Global},
    ids::{IdsError, Several},
    settings::SettingsError,
    terminal::{self, Palette},
};

/// Exit statuses; `cli::Cli` documents them.
const FAILED: u8 = 1;
const USAGE: u8 = 2;
const PARTIAL: u8 = 3;
const UNLOGGED: u8 = 4;

/// Runs a command.
pub(crate) fn run(cli: Cli) -> ExitCode {
    // Every time that is reported counts from here.
    let started = tokio::time::Instant::now();
    let runtime = match tokio::runtime::Builder::new_current_thread().enable_all().build() {
        Ok(runtime) => runtime,
        Err(error) => {
            complain(&anyhow::Error::new(error).context("start"));
            return ExitCode::from(FAILED);
        }
    };
    let ended = runtime.block_on(command(cli, started));
    // Nothing that still runs may hold the process: what must end has ended.
    runtime.shutdown_background();
    match ended {
        Ok(status) => ExitCode::from(status),
        Err(error) => {
            complain(&error);
            ExitCode::from(status_of(&error))
        }
    }
}

async fn command(cli: Cli, started: tokio::time::Instant) -> anyhow::Result<u8> {
    let shape = Shape::of(&cli.global);
    let opening = session::Opening { global: cli.global, started };
    match cli.command {
        Command::Preflight => account::preflight(&opening, shape).await,
        Command::Plan(plan) => account::plan(&opening, &plan, shape).await,
        Command::Respond(args) => respond::respond(&opening, &args, shape).await,
        Command::Status { case } => cases::status(&opening, case.as_ref(), shape).await,
        Command::Report { case, scan } => room::report(&opening, &case, scan.as_ref(), shape).await,
        Command::Fetch(args) => room::fetch(&opening, &args, shape).await,
        Command::Rescan(args) => room::rescan(&opening, &args, shape).await,
        Command::Teardown(args) => room::teardown(&opening, &args, shape).await,
        Command::Deploy(args) => deploy::deploy(&opening, &args, shape).await,
        Command::Drill(args) => drill::drill(&opening, &args, shape).await,
        Command::Cases { open: false } => cases::list(&opening, shape).await,
        Command::Cases { open: true } => cases::open(&opening, shape).await,
        Command::Custody(Custody::Verify { case }) => cases::verify(&opening, &case, shape).await,
        Command::Approve(args) => approve::approve(&opening, &args, shape).await,
        Command::Release(args) => release::release(&opening, &args, shape).await,
        Command::Revoke(args) => revoke::revoke(&opening, &args, shape).await,
        Command::Recover { case } => cases::recover(&opening, &case, shape).await,
        Command::Close { case, reason } => {
            cases::close(&opening, &case, reason.as_deref(), shape).await
        }
        Command::Completions { shell } => documents::completions(shell),
        Command::Man { out } => documents::man(out.as_deref()),
    }
}

/// What the output looks like.
#[derive(Clone, Copy, Debug)]
struct Shape {
    format: Format,
    palette: Palette,
    no_color: bool,
    width: usize,
}

impl Shape {
    fn of(global: &Global) -> Self {
        let terminal = io::stdout().is_terminal();
        // People read terminals, programs read pipes.
        let format = global.format.unwrap_or(if terminal { Format::Human } else { Format::Jsonl });
        Self {
            format,
            palette: Palette::of(terminal, global.no_color),
            no_color: global.no_color,
            width: terminal::width(),
        }
    }

    fn is_human(self) -> bool {
        self.format == Format::Human
    }
}

/// An error's exit status.
fn status_of(error: &anyhow::Error) -> u8 {
    let usage = error.is::<IdsError>() || error.is::<SettingsError>() || error.is::<Usage>();
    if usage { USAGE } else { FAILED }
}

/// The command line is wrong in a way that only shows when more is known.
#[derive(Debug, thiserror::Error)]
#[error("{0}")]
struct Usage(String);

/// Prints an error with its causes, and what to do where we know it.
fn complain(error: &anyhow::Error) {
    let attached = error.downcast_ref::<hint::Hint>().map(|hint::Hint(hint)| hint.as_str());
    let mut causes: Vec<String> = Vec::new();
    for cause in error.chain().map(ToString::to_string) {
        // A transparent error says what its cause says.
        if causes.last() != Some(&cause) && attached != Some(&cause) {
            causes.push(cause);
        }
    }
    let mut err = io::stderr().lock();
    // With stderr gone there is nobody to tell.
    let text = causes.join(": ").replace('\n', "; ").replace("\\u{a}", "; ");
    drop(writeln!(err, "error: {}", printable(&text)));
    let several = match error.downcast_ref::<IdsError>() {
        Some(IdsError::Bad(several)) => Some(several),
        _ => error.downcast_ref::<Several>(),
    };
    for line in several.iter().flat_map(|several| &several.each) {
        drop(writeln!(err, "  {line}"));
    }
    if let Some(hint) = hint::of(error) {
        drop(writeln!(err, "hint: {}", printable(&hint)));
    }
}

/// Says something to people, on stderr.
fn say(text: &str) {
    drop(writeln!(io::stderr().lock(), "{text}"));
}

/// Writes to stdout; a reader that has gone away ends the output, not the work.
fn print(text: &str) -> anyhow::Result<()> {
    let mut out = io::stdout().lock();
    match out.write_all(text.as_bytes()).and_then(|()| out.flush()) {
        Err(error) if error.kind() == io::ErrorKind::BrokenPipe => Ok(()),
        written => written.context("write to standard output"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_typed_wrong_is_a_usage_error() {
        let usage = anyhow::Error::new(Usage("x".to_owned()));
        let several = Several { what: "x".to_owned(), each: Vec::new() };
        assert_eq!(status_of(&usage), USAGE);
        assert_eq!(status_of(&anyhow::Error::new(IdsError::Bad(several))), USAGE);
        let several = Several { what: "x".to_owned(), each: Vec::new() };
        assert_eq!(status_of(&anyhow::Error::new(several)), FAILED);
        assert_eq!(status_of(&usage.context("more")), USAGE);
    }
}
