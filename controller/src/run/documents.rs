//! Completions and manual pages, from the command line's own definition. Ask nothing of anybody.

use std::{fs, path::Path};

use anyhow::Context as _;
use clap::CommandFactory as _;
use cleanroom_contract::printable;

use super::{print, say};
use crate::cli::Cli;

/// Prints a shell's completions.
pub(super) fn completions(shell: clap_complete::Shell) -> anyhow::Result<u8> {
    let mut script = Vec::new();
    clap_complete::generate(shell, &mut Cli::command(), "cleanroom", &mut script);
    print(&String::from_utf8_lossy(&script))?;
    Ok(0)
}

/// Prints the manual page, or writes one for each command.
pub(super) fn man(out: Option<&Path>) -> anyhow::Result<u8> {
    let Some(folder) = out else {
        let mut page = Vec::new();
        clap_mangen::Man::new(Cli::command())
            .render(&mut page)
            .context("render the manual page")?;
        print(&String::from_utf8_lossy(&page))?;
        return Ok(0);
    };
    let shown = printable(&folder.to_string_lossy());
    fs::create_dir_all(folder).with_context(|| format!("make {shown}"))?;
    clap_mangen::generate_to(Cli::command(), folder)
        .with_context(|| format!("write manual pages into {shown}"))?;
    say(&format!("manual pages are in {shown}"));
    Ok(0)
}
