//! `cargo demo` and `cargo selftest`.
#![allow(clippy::print_stderr, reason = "a command for people reports its errors on stderr")]

use std::process::ExitCode;

use clap::{Parser, Subcommand};
use cleanroom_harness::{demo, selftest};

/// Cleanroom's demo and self-test.
#[derive(Debug, Parser)]
#[command(name = "cleanroom-harness")]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Build a disk image with a planted compromise, scan it, verify the bundle.
    Demo,
    /// Run every check and every test.
    Selftest,
}

fn main() -> ExitCode {
    let outcome = match Cli::parse().command {
        Command::Demo => demo::run(),
        Command::Selftest => selftest::run(),
    };
    match outcome {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("error: {error:#}");
            ExitCode::FAILURE
        }
    }
}
