//! `cargo selftest`: everything that must hold before a change is taken, in one command.
//!
//! Installs the tools that the tests need, then runs formatting, lints, tests, documentation and
//! dependency checks, and looks whether the work tree is as it was. Stops at the first that fails.

use std::{
    env,
    ffi::OsString,
    io::{BufRead, BufReader, Write as _},
    path::{Path, PathBuf},
    process::{Command, Stdio},
};

use anyhow::{Context, Result, bail, ensure};

use crate::{
    emulators, lints,
    tools::{self, cache_dir, cargo, workspace_root},
};

/// The version of cargo-deny that judges the dependencies.
const CARGO_DENY: &str = "0.20.2";

/// How many tests ended how.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct Counts {
    passed: u64,
    failed: u64,
    skipped: u64,
}

impl Counts {
    /// Adds what a line of `cargo test` says, when it is the closing line of a test binary:
    /// `test result: ok. 5 passed; 0 failed; 1 ignored; 0 measured; 0 filtered out; …`.
    fn add(&mut self, line: &str) {
        let Some(fields) = line.trim().strip_prefix("test result: ") else { return };
        // The verdict before the first count ends with a full stop.
        for field in fields.split_once(". ").map_or("", |(_, rest)| rest).split("; ") {
            let Some((number, what)) = field.split_once(' ') else { continue };
            let Ok(number) = number.parse::<u64>() else { continue };
            match what {
                "passed" => self.passed += number,
                "failed" => self.failed += number,
                "ignored" | "filtered out" => self.skipped += number,
                _ => {}
            }
        }
    }
}

/// Runs it all.
///
/// # Errors
/// Names the first check that failed.
pub fn run() -> Result<()> {
    let target = target_dir()?;
    println!("building in {}", target.display());
    tools::ensure(tools::DEMO)?;
    tools::ensure(tools::ROOM)?;
    tools::ensure(tools::TESTS)?;
    // Here, with a message, and not in the first test that wants an emulator.
    emulators::prepare()?;
    lints::prepare()?;
    components()?;
    let before = work_tree()?;
    tools::refresh_workspace()?;

    let cargo = |arguments: &[&str]| {
        let mut command = cargo();
        command.env("CARGO_TARGET_DIR", &target).args(arguments);
        command
    };
    check("formatting", &mut cargo(&["fmt", "--all", "--check"]))?;
    let lints = ["clippy", "--workspace", "--all-targets", "--", "-D", "warnings"];
    check("lints", &mut cargo(&lints))?;
    let counts = tests(&mut cargo(&["test", "--workspace", "--no-fail-fast"]))?;
    let docs = ["doc", "--no-deps", "--workspace", "--document-private-items"];
    check("documentation", cargo(&docs).env("RUSTDOCFLAGS", "-D warnings"))?;
    announce("templates");
    lints::templates()?;
    dependencies()?;

    announce("work tree unchanged");
    let after = work_tree()?;
    ensure!(after == before, "work tree unchanged: the run left changes behind:\n{after}");

    print_counts(counts);
    Ok(())
}

/// Makes sure that the toolchain has its formatter and its lints: rustup's minimal profile leaves them out.
fn components() -> Result<()> {
    for (command, component) in [("fmt", "rustfmt"), ("clippy", "clippy")] {
        if cargo().args([command, "--version"]).output().is_ok_and(|output| output.status.success())
        {
            continue;
        }
        println!(
            "installing {component}, which this toolchain lacks: rustup component add {component}"
        );
        tools::run(std::process::Command::new("rustup").args(["component", "add", component]))?;
    }
    Ok(())
}

fn announce(name: &str) {
    println!("\n== {name}");
    // The check's own output comes through other descriptors: keep the order.
    let _ = std::io::stdout().flush();
}

/// Runs one check on this terminal.
fn check(name: &str, command: &mut Command) -> Result<()> {
    announce(name);
    let status = command.status().with_context(|| format!("{name}: start {command:?}"))?;
    ensure!(status.success(), "{name} failed: {status}");
    Ok(())
}

/// Runs the tests, passing their output on and counting.
fn tests(command: &mut Command) -> Result<Counts> {
    announce("tests");
    let mut child = command.stdout(Stdio::piped()).spawn().context("tests: start cargo")?;
    let output = child.stdout.take().context("tests: no output")?;
    let mut counts = Counts::default();
    let mut stdout = std::io::stdout();
    for line in BufReader::new(output).split(b'\n') {
        let line = line.context("tests: read output")?;
        stdout.write_all(&line).and_then(|()| stdout.write_all(b"\n"))?;
        counts.add(&String::from_utf8_lossy(&line));
    }
    let status = child.wait().context("tests: wait for cargo")?;
    if !status.success() {
        print_counts(counts);
        bail!("tests failed: {status}");
    }
    ensure!(counts.passed > 0, "tests failed: none ran");
    Ok(counts)
}

/// The closing line, alone on its line, that tools which watch a run look for.
fn print_counts(counts: Counts) {
    let Counts { passed, failed, skipped } = counts;
    println!("\n{passed} passed, {failed} failed, {skipped} skipped");
}

/// Licences, sources and bans always; known vulnerabilities where their database can be had.
fn dependencies() -> Result<()> {
    announce("dependencies");
    let deny = cargo_deny()?;
    let deny = |arguments: &[&str]| {
        // Fetching may hang where packets to the outside vanish.
        let mut command = Command::new("timeout");
        command.args(["--foreground", "--kill-after=5", "300"]).arg(&deny);
        command.current_dir(workspace_root()).stdin(Stdio::null()).args(arguments);
        command
    };
    let words = ["check", "bans", "licenses", "sources"];
    let status = deny(&words).status().context("dependencies: start cargo-deny")?;
    ensure!(status.success(), "dependencies failed: {status}");

    let fetched = deny(&["fetch", "db"]).output().context("dependencies: start cargo-deny")?;
    if !fetched.status.success() {
        println!("advisories not checked: the advisory database can not be had on this machine");
        return Ok(());
    }
    let status = deny(&["check", "--disable-fetch", "advisories"]).status();
    let status = status.context("dependencies: start cargo-deny")?;
    ensure!(status.success(), "advisories failed: {status}");
    Ok(())
}

/// cargo-deny of the pinned version, built into the cache when it is not there yet.
fn cargo_deny() -> Result<PathBuf> {
    // Its own folder for each version: never the user's own set of installed programs.
    let root = cache_dir()?.join(format!("tools/cargo-deny-{CARGO_DENY}"));
    let program = root.join("bin/cargo-deny");
    if program.is_file() {
        return Ok(program);
    }
    println!("installing cargo-deny {CARGO_DENY}, which checks licences, into {}", root.display());
    let mut install = cargo();
    // Built in a temporary folder that cargo removes, not among the project's own files.
    install.env_remove("CARGO_TARGET_DIR").current_dir("/");
    install.args([
        "install",
        "cargo-deny",
        "--quiet",
        "--locked",
        "--version",
        CARGO_DENY,
        "--root",
    ]);
    let status = install.arg(&root).status().context("dependencies: start cargo install")?;
    ensure!(status.success(), "dependencies: cargo-deny {CARGO_DENY} could not be installed");
    Ok(program)
}

/// Where to build: `$CARGO_TARGET_DIR`, else in the cache.
fn target_dir() -> Result<PathBuf> {
    let named = env::var_os("CARGO_TARGET_DIR").filter(|v: &OsString| !v.is_empty());
    match named {
        Some(dir) => Ok(workspace_root().join(Path::new(&dir))),
        None => Ok(workspace_root().join("target")),
    }
}

/// What git says has changed; nothing where this is no git work tree.
fn work_tree() -> Result<String> {
    let Some(git) = tools::find("git") else { return Ok(String::new()) };
    let mut command = Command::new(git);
    command.current_dir(workspace_root()).args(["status", "--porcelain"]);
    let output = command.output().context("start git")?;
    Ok(String::from_utf8_lossy(&output.stdout).into_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn closing_lines_are_summed() {
        let mut counts = Counts::default();
        for line in [
            "running 3 tests",
            "test result: ok. 5 passed; 0 failed; 1 ignored; 0 measured; 2 filtered out; finished in 0.00s",
            "test result: FAILED. 7 passed; 4 failed; 0 ignored; 0 measured; 0 filtered out; finished in 1.20s",
            "test result: nonsense",
            "a test that prints 9 passed; 9 failed",
        ] {
            counts.add(line);
        }
        assert_eq!(counts, Counts { passed: 12, failed: 4, skipped: 3 });
    }
}
