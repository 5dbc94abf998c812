//! `cargo demo`, `cargo selftest`, `cargo bench-agent`, `cargo bench-response`, `cargo package-release` and `cargo package-tools`.
#![allow(clippy::print_stderr, reason = "a command for people reports its errors on stderr")]

use std::process::ExitCode;

use clap::{Parser, Subcommand};
use cleanroom_harness::{bench, crowd, demo, release, selftest};

/// Cleanroom's demo, self-test and benchmark.
#[derive(Debug, Parser)]
#[command(name = "cleanroom-harness")]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// From an alert to a report: contain an instance in an emulated account, and boot the clean room that examines its disks.
    Demo,
    /// Run every check and every test.
    Selftest,
    /// Measure the agent beside other programs.
    BenchAgent(bench::Options),
    /// Measure a response to many instances at once, in an emulated account.
    BenchResponse(crowd::Options),
    /// Build the agent for Amazon Linux 2023, and gather what is deployed.
    PackageRelease,
    /// Make the bundle of tools that investigators find in a clean room.
    PackageTools(release::bundle::Options),
}

fn main() -> ExitCode {
    let outcome = match Cli::parse().command {
        Command::Demo => demo::run(),
        Command::Selftest => selftest::run(),
        Command::BenchAgent(options) => bench::run(&options),
        Command::BenchResponse(options) => crowd::run(&options),
        Command::PackageRelease => release::run_all(),
        Command::PackageTools(options) => release::bundle::run_all(&options),
    };
    match outcome {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("error: {error:#}");
            ExitCode::FAILURE
        }
    }
}
