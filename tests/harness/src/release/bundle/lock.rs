//! The packages that are pinned, and renewing the pins. Renewing asks apt; the rest is pure.

use std::fmt::Write as _;

use anyhow::{Context, Result, ensure};

use crate::tools::{command, run};

/// Where a package is from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Kind {
    /// Debian's archive.
    Debian,
    /// crates.io.
    Crate,
}

/// A pinned package.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Package {
    pub(super) kind: Kind,
    pub(super) name: String,
    pub(super) version: String,
    /// Of the package's file, in lower-case hexadecimal digits.
    pub(super) sha256: String,
}

/// All of them.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Lock {
    pub(super) packages: Vec<Package>,
}

impl Lock {
    /// Reads a lock file: `debian NAME VERSION SHA256` and `crate NAME VERSION SHA256`, a line each; `#` begins a comment.
    ///
    /// # Errors
    /// Where a line is none of these.
    pub(super) fn parse(text: &str) -> Result<Self> {
        let lines = text.lines().filter(|line| !line.is_empty() && !line.starts_with('#'));
        let packages: Result<Vec<_>> =
            lines.map(|line| package(line).with_context(|| format!("the line {line:?}"))).collect();
        Ok(Self { packages: packages? })
    }
}

fn package(line: &str) -> Result<Package> {
    let fields: Vec<_> = line.split(' ').collect();
    let [kind, name, version, sha256] = fields[..] else { anyhow::bail!("it has not four fields") };
    let kind = match kind {
        "debian" => Kind::Debian,
        "crate" => Kind::Crate,
        _ => anyhow::bail!("it begins with neither debian nor crate"),
    };
    // Both become arguments of programs.
    for text in [name, version] {
        let plain = |b: u8| b.is_ascii_alphanumeric() || b"+-.:~_".contains(&b);
        let starts = text.starts_with(|c: char| c.is_ascii_alphanumeric());
        ensure!(starts && text.bytes().all(plain), "{text:?} is no name and no version");
    }
    let is_digit = |b: u8| b.is_ascii_digit() || (b'a'..=b'f').contains(&b);
    ensure!(sha256.len() == 64 && sha256.bytes().all(is_digit), "{sha256:?} is no SHA-256");
    let owned = str::to_owned;
    Ok(Package { kind, name: owned(name), version: owned(version), sha256: owned(sha256) })
}

/// The lock with the versions of Debian's packages that apt knows now. Crates stay.
///
/// # Errors
/// Where it can not be read, or apt does not know a package.
pub(super) fn renewed(text: &str) -> Result<String> {
    let mut lines = String::new();
    for line in text.lines() {
        let name = line.strip_prefix("debian ").and_then(|rest| rest.split(' ').next());
        match name {
            Some(name) => writeln!(lines, "{}", known(name)?)?,
            None => writeln!(lines, "{line}")?,
        }
    }
    Lock::parse(&lines)?;
    Ok(lines)
}

/// The line of a package as apt knows it.
fn known(name: &str) -> Result<String> {
    let told = run(command("apt-cache")?.args(["show", "--no-all-versions", name]))?;
    let told = String::from_utf8_lossy(&told).into_owned();
    let field = |field: &str| {
        let value = told.lines().find_map(|line| line.strip_prefix(field));
        value.map(str::trim).with_context(|| format!("apt says no {field} of {name}"))
    };
    Ok(format!("debian {name} {} {}", field("Version:")?, field("SHA256:")?))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_lock_names_every_package_with_its_digest() {
        let digest = "a".repeat(64);
        let lock =
            Lock::parse(&format!("# why\n\ndebian a 1:2.0-1~x {digest}\ncrate b 1.0.0 {digest}\n"));
        let lock = lock.expect("a lock");
        assert_eq!((lock.packages[0].kind, lock.packages[1].kind), (Kind::Debian, Kind::Crate));
        assert_eq!(
            (lock.packages[0].version.as_str(), &lock.packages[1].sha256),
            ("1:2.0-1~x", &digest)
        );
        for bad in [
            format!("debian a 1.0 {}", &digest[1..]),
            format!("debian a 1.0 {}", digest.to_uppercase()),
            format!("debian --option 1.0 {digest}"),
            format!("debian a b;c {digest}"),
            format!("rpm a 1.0 {digest}"),
            "debian a 1.0".to_owned(),
        ] {
            assert!(Lock::parse(&bad).is_err(), "{bad}");
        }
    }
}
