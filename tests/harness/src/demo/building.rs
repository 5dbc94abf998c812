//! Builds the programs, and shows on a terminal how far it has come.

use std::{
    ffi::OsStr,
    io::{BufReader, IsTerminal as _, Read as _, Write as _},
    path::Path,
    process::Stdio,
};

use anyhow::{Context, Result, ensure};

use super::cut;
use crate::{
    incident::Programs,
    tools::{self, cargo},
};

/// What cargo says of its own progress; all else it says is for people.
const PROGRESS: [&str; 8] = [
    "Adding",
    "Blocking",
    "Building",
    "Compiling",
    "Downloaded",
    "Downloading",
    "Finished",
    "Updating",
];

/// Builds the programs in one go: in several, cargo would compile what they share again and again.
///
/// # Errors
/// Where cargo can not be started, or they do not build: then after what cargo said.
pub(super) fn programs(target: &Path) -> Result<Programs> {
    tools::refresh_workspace()?;
    let mut command = cargo();
    // The same selection as of the tests: another one unifies other features, and would build the SDK a second time.
    command.args(["build", "--workspace", "--all-targets"]);
    command.arg("--target-dir").arg(target);
    // Cargo draws its progress for a terminal of a width it is told when it does not see one.
    command.env("CARGO_TERM_PROGRESS_WHEN", "always").env("CARGO_TERM_PROGRESS_WIDTH", "100");
    let mut child = command.stderr(Stdio::piped()).spawn().context("start cargo")?;
    let said = child.stderr.take().context("no output of cargo")?;
    show(BufReader::new(said).bytes().map_while(Result::ok));
    let built = child.wait().context("wait for cargo")?;
    ensure!(built.success(), "the programs do not build: {built}");

    let named = |name: &str| {
        let path = target.join("debug").join(OsStr::new(name));
        ensure!(path.is_file(), "cargo built no {}", path.display());
        Ok(path)
    };
    Ok(Programs {
        agent: named("cleanroom-agent")?,
        cleanroom: named("cleanroom")?,
        lambda: named("cleanroom-lambda")?,
    })
}

/// Shows cargo's lines: its progress on one line of a terminal, what is for people as it is.
fn show(bytes: impl Iterator<Item = u8>) {
    let mut out = std::io::stderr().lock();
    let terminal = out.is_terminal();
    let mut line = Vec::new();
    for byte in bytes {
        if byte != b'\n' && byte != b'\r' {
            line.push(byte);
            continue;
        }
        let text = String::from_utf8_lossy(&line).into_owned();
        line.clear();
        // With stderr gone there is nobody to show it to.
        let _shown = match (is_progress(&text), terminal) {
            (true, true) => write!(out, "\r\x1b[K{}", cut(text.trim(), 98)),
            (true, false) => Ok(()),
            (false, true) => writeln!(out, "\r\x1b[K{text}"),
            (false, false) => writeln!(out, "{text}"),
        };
        let _ = out.flush();
    }
    if terminal {
        let _ = write!(out, "\r\x1b[K");
    }
}

/// Whether a line only tells that cargo is busy.
fn is_progress(line: &str) -> bool {
    let word = line.split_whitespace().next();
    word.is_none_or(|word| PROGRESS.contains(&word))
}

#[cfg(test)]
mod tests {
    use super::is_progress;

    #[test]
    fn errors_are_no_progress() {
        for line in ["", "   Compiling aws-sdk-ec2 v1.2.3", "    Building [==>  ] 3/9: syn"] {
            assert!(is_progress(line), "{line}");
        }
        for line in
            ["error[E0425]: cannot find value `x`", "  --> agent/src/main.rs:1:1", "warning: x"]
        {
            assert!(!is_progress(line), "{line}");
        }
    }
}
