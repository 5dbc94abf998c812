//! `SHA256SUMS`: the digests of a bundle's files, as `sha256sum` writes and reads them.
//!
//! Purpose: seal a bundle's files, and read such a list back without believing it. Touches one folder.
//! Never writes or accepts a name that needs an escape or leads out of the folder.

use std::{
    io::{self, Write as _},
    path::Path,
};

use cleanroom_contract::{BundleFile, Sha256};

use super::folder::{Folder, digest, is_plain};

/// Name of the list in the bundle.
pub(crate) const SUMS: &str = "SHA256SUMS";
/// Name of its signature in the bundle.
pub(crate) const SUMS_SIGNATURE: &str = "SHA256SUMS.sig";
/// Longest list that is read, in bytes; a bundle has eight files.
pub(crate) const SUMS_LIMIT: u64 = 1024 * 1024;

/// Why a list could not be written or read.
#[derive(Debug, thiserror::Error)]
pub(crate) enum SumsError {
    /// The folder itself.
    #[error("open the bundle folder")]
    Folder(#[source] io::Error),
    /// A file could not be read.
    #[error("digest {name} of the bundle")]
    Digest {
        /// The file.
        name: String,
        /// What the system said.
        #[source]
        source: io::Error,
    },
    /// The list could not be written.
    #[error("write SHA256SUMS")]
    Write(#[source] io::Error),
    /// A name that no file of a bundle has.
    #[error("{0:?} is not a name for a file of a bundle")]
    Name(String),
    /// A line of a list that was read.
    #[error("line {line} of SHA256SUMS: {reason}")]
    Line {
        /// From 1.
        line: usize,
        /// What is wrong with it.
        reason: &'static str,
    },
    /// A list without lines.
    #[error("SHA256SUMS lists no file")]
    Empty,
}

/// The size and SHA-256 of one file of the bundle in `folder`, its content made durable first.
///
/// # Errors
/// [`SumsError::Digest`] where it is not a regular file or cannot be read.
pub(crate) fn seal_file(folder: &Folder, name: &str) -> Result<BundleFile, SumsError> {
    let sealed = || {
        let file = folder.file(name)?;
        file.sync_all()?;
        digest(&file)
    };
    let (size, sha256) =
        sealed().map_err(|source| SumsError::Digest { name: name.to_owned(), source })?;
    Ok(BundleFile { name: name.to_owned(), size, sha256 })
}

/// Writes `SHA256SUMS` over `names` in the order given, and makes it durable. The format is that of
/// coreutils `sha256sum` in text mode: digest, two spaces, name, newline.
///
/// # Errors
/// Where a name is not plain, given twice or the list's own, where a file cannot be read, or where
/// `SHA256SUMS` exists: a bundle is sealed once.
pub(crate) fn write_sums(dir: &Path, names: &[&str]) -> Result<Vec<BundleFile>, SumsError> {
    for (index, name) in names.iter().enumerate() {
        let twice = names.get(..index).unwrap_or_default().contains(name);
        if !is_plain(name) || twice || *name == SUMS || *name == SUMS_SIGNATURE {
            return Err(SumsError::Name((*name).to_owned()));
        }
    }
    let folder = Folder::open(dir).map_err(SumsError::Folder)?;
    let files = names.iter().map(|name| seal_file(&folder, name)).collect::<Result<Vec<_>, _>>()?;
    let text: String = files.iter().map(|f| format!("{}  {}\n", f.sha256, f.name)).collect();
    let mut file = folder.create(SUMS).map_err(SumsError::Write)?;
    let mut write = || {
        file.write_all(text.as_bytes())?;
        file.sync_all()?;
        folder.sync()
    };
    if let Err(error) = write() {
        // Half a list would pass for a bundle that is sealed already.
        drop(std::fs::remove_file(dir.join(SUMS)));
        return Err(SumsError::Write(error));
    }
    Ok(files)
}

/// Reads a list, in text or binary mode (`*` before the name).
///
/// # Errors
/// At the first line that is not a digest and a plain name, or whose name was there before. Escaped
/// lines (`\` first), paths and the names of the list and its signature are such lines: no sealed bundle
/// has them, and what they mean to other programs is not worth the risk.
pub(crate) fn parse_sums(bytes: &[u8]) -> Result<Vec<(String, Sha256)>, SumsError> {
    let mut seen = std::collections::HashSet::new();
    let mut files = Vec::new();
    let Some(body) = bytes.strip_suffix(b"\n") else {
        return match bytes.is_empty() {
            true => Err(SumsError::Empty),
            false => Err(SumsError::Line {
                line: bytes.split(|b| *b == b'\n').count(),
                reason: "it does not end with a newline",
            }),
        };
    };
    for (index, line) in body.split(|b| *b == b'\n').enumerate() {
        let refuse = |reason| SumsError::Line { line: index + 1, reason };
        let (name, digest) = parse_line(line).map_err(refuse)?;
        if !seen.insert(name) {
            return Err(refuse("the name is listed twice"));
        }
        files.push((name.to_owned(), digest));
    }
    Ok(files)
}

/// One line without its newline.
fn parse_line(line: &[u8]) -> Result<(&str, Sha256), &'static str> {
    if line.starts_with(b"\\") {
        return Err("the name is escaped");
    }
    let text = std::str::from_utf8(line).map_err(|_| "it is not text")?;
    let (digest, rest) = text.split_at_checked(64).ok_or("it holds no SHA-256 and name")?;
    let digest = digest.parse().map_err(|_| "it does not begin with a SHA-256")?;
    let name = rest
        .strip_prefix("  ")
        .or_else(|| rest.strip_prefix(" *"))
        .ok_or("no name follows the digest")?;
    match is_plain(name) {
        false => Err("the name is not that of a file of a bundle"),
        true if name == SUMS || name == SUMS_SIGNATURE => Err("the list lists itself"),
        true => Ok((name, digest)),
    }
}

#[cfg(test)]
mod tests {
    use std::{fs, process::Command};

    use proptest::prelude::*;

    use super::*;

    const ABC: &str = "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad";

    #[test]
    fn the_list_is_what_sha256sum_writes_and_accepts() {
        let temp = tempfile::tempdir().unwrap();
        fs::write(temp.path().join("report.json"), "abc").unwrap();
        fs::write(temp.path().join("gaps.jsonl"), vec![7; 300_000]).unwrap();
        let files = write_sums(temp.path(), &["report.json", "gaps.jsonl"]).unwrap();
        assert_eq!(files[0].sha256.to_string(), ABC);
        assert_eq!((files[0].size, files[1].size), (3, 300_000));
        let run = |arguments: &[&str]| {
            let output = Command::new("sha256sum")
                .args(arguments)
                .current_dir(temp.path())
                .output()
                .unwrap();
            assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
            output.stdout
        };
        assert_eq!(fs::read(temp.path().join(SUMS)).unwrap(), run(&["report.json", "gaps.jsonl"]));
        assert_eq!(run(&["-c", "--strict", SUMS]), b"report.json: OK\ngaps.jsonl: OK\n");
        let parsed = parse_sums(&fs::read(temp.path().join(SUMS)).unwrap()).unwrap();
        assert_eq!(parsed[1], ("gaps.jsonl".to_owned(), files[1].sha256));
    }

    #[test]
    fn a_bundle_is_sealed_once_and_only_over_its_own_files() {
        let temp = tempfile::tempdir().unwrap();
        fs::write(temp.path().join("a"), "abc").unwrap();
        std::os::unix::fs::symlink("a", temp.path().join("link")).unwrap();
        for bad in [&["../a"][..], &["a", "a"], &[SUMS], &[SUMS_SIGNATURE], &["a\nb"]] {
            assert!(matches!(write_sums(temp.path(), bad), Err(SumsError::Name(_))), "{bad:?}");
        }
        for bad in ["link", "missing"] {
            assert!(matches!(write_sums(temp.path(), &[bad]), Err(SumsError::Digest { .. })));
        }
        assert!(!temp.path().join(SUMS).exists());
        write_sums(temp.path(), &["a"]).unwrap();
        assert!(matches!(write_sums(temp.path(), &["a"]), Err(SumsError::Write(_))));
    }

    #[test]
    fn hostile_lines_are_refused() {
        let upper = ABC.to_uppercase();
        for good in
            [format!("{ABC}  a\n"), format!("{ABC} *a\n{ABC}  b\n"), format!("{upper}  a\n")]
        {
            assert!(parse_sums(good.as_bytes()).is_ok(), "{good:?}");
        }
        for bad in [
            String::new(),
            "\n".to_owned(),
            format!("{ABC}  a"),
            format!("{ABC}  a\n\n"),
            format!("{ABC}  a\r\n"),
            format!("\\{ABC}  a\\nb\n"),
            format!("{ABC}  ../a\n"),
            format!("{ABC}  /etc/passwd\n"),
            format!("{ABC}  a/b\n"),
            format!("{ABC}  ..\n"),
            format!("{ABC}  a\n{ABC}  a\n"),
            format!("{ABC}  SHA256SUMS\n"),
            format!("{ABC}  SHA256SUMS.sig\n"),
            format!("{ABC}  \n"),
            format!("{ABC} a\n"),
            format!("{ABC}\ta\n"),
            format!("{}  a\n", &ABC[1..]),
            format!("SHA256 (a) = {ABC}\n"),
            format!("{ABC}  a\u{202e}\n"),
        ] {
            assert!(parse_sums(bad.as_bytes()).is_err(), "{bad:?}");
        }
        assert!(parse_sums(b"\xff\n").is_err());
    }

    proptest! {
        #[test]
        fn any_bytes_are_read_without_panic(bytes in proptest::collection::vec(any::<u8>(), 0..200)) {
            let _ = parse_sums(&bytes);
        }

        #[test]
        fn what_is_accepted_is_plain(rest in "[ *\\\\]{0,3}[a-z./\\\\\n]{0,6}\n") {
            if let Ok(files) = parse_sums(format!("{ABC}{rest}").as_bytes()) {
                prop_assert!(files.iter().all(|(name, _)| is_plain(name)));
            }
        }
    }
}
