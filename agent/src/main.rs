//! `cleanroom-agent`: evidence in, sealed bundle out.

mod bundle;
mod checks;
mod cli;
mod evidence;
mod indicators;
mod inspect;
mod overlay;
mod protocol;
mod publish;
mod rules;
mod run;
mod supervise;
mod walk;

use clap::Parser as _;

fn main() -> std::process::ExitCode {
    run::run(cli::Cli::parse())
}
