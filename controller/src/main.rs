//! `cleanroom`: contains an EC2 instance and preserves its evidence.

mod cli;
mod ids;
mod output;
mod run;
mod settings;
mod terminal;

use clap::Parser as _;

fn main() -> std::process::ExitCode {
    run::run(cli::Cli::parse())
}
