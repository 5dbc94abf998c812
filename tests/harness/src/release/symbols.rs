//! Which C library a program asks for. Pure.

use anyhow::{Context, Result};
use goblin::elf::Elf;

/// The newest version of glibc that one of a program's symbols is from (`GLIBC_2.34`: the version needs of the GNU symbol
/// versioning); 0.0 where it asks for none.
///
/// # Errors
/// Where it is no ELF program, or names a version that is not understood.
pub(super) fn newest_glibc(program: &[u8]) -> Result<(u32, u32)> {
    let elf = Elf::parse(program).context("not an ELF program")?;
    let mut newest = (0, 0);
    for need in elf.verneed.iter().flat_map(|needs| needs.iter()) {
        for version in need.iter() {
            let name =
                elf.dynstrtab.get_at(version.vna_name).context("a version without a name")?;
            // GLIBC_PRIVATE is of no release, and no program of ours may use it.
            if let Some(number) = name.strip_prefix("GLIBC_") {
                newest = newest.max(parse(number).with_context(|| name.to_owned())?);
            }
        }
    }
    Ok(newest)
}

/// `2.34` and `2.2.5`: the first two numbers.
fn parse(version: &str) -> Result<(u32, u32)> {
    let mut numbers = version.split('.').map(str::parse);
    let mut next = || numbers.next().context("no version")?.context("no number");
    Ok((next()?, next()?))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn this_very_program_asks_for_a_c_library() {
        let program = std::fs::read("/proc/self/exe").expect("this program");
        let newest = newest_glibc(&program).expect("its versions");
        // The standard library has asked for 2.3.4's and newer functions for ever; nobody has 3.
        assert!(newest > (2, 3) && newest < (3, 0), "{newest:?}");
        assert!(newest_glibc(b"#!/bin/sh\n").is_err());
    }

    #[test]
    fn versions_are_compared_by_number() {
        assert_eq!(parse("2.2.5").expect("a version"), (2, 2));
        assert!(parse("2.34").expect("a version") > parse("2.9").expect("a version"));
        assert!(parse("PRIVATE").is_err());
    }
}
