//! Is a bundle as it was sealed?
//!
//! Purpose: compare a bundle's folder with its `SHA256SUMS`, and that list with its signature. Touches
//! the folder and the file of trusted keys, reading only. Believes nothing in the folder: no link in
//! it is followed, nothing but regular files is opened, no name is used that leads elsewhere. Never
//! says who may be trusted: without trusted keys a signature only tells which key made it.

use std::{collections::HashSet, fmt, io, path::Path};

use cleanroom_contract::{RunState, Sha256, printable};
use serde::Deserialize;
use ssh_key::{HashAlg, PublicKey};
use walkdir::WalkDir;

use super::{
    folder::{Entry, Folder, digest, read_bounded},
    signature::{check, open_regular},
    sums::{SUMS, SUMS_LIMIT, SUMS_SIGNATURE, SumsError, parse_sums},
    trust::{TrustError, parse as parse_trusted},
};

/// Longest `report.json` that is looked into, in bytes.
const REPORT_LIMIT: u64 = 64 * 1024 * 1024;
/// Longest signature and file of trusted keys, in bytes.
const KEYS_LIMIT: u64 = 1024 * 1024;
/// Most files outside the list that are named: a folder can hold any number.
const EXTRA_LIMIT: usize = 10_000;

/// Why a bundle could not be verified at all.
#[derive(Debug, thiserror::Error)]
pub(crate) enum VerifyError {
    /// The folder itself.
    #[error("open the bundle {path}")]
    Folder {
        /// The bundle, printable.
        path: String,
        /// What the system said.
        #[source]
        source: io::Error,
    },
    /// There is no list to compare with.
    #[error("the bundle has no SHA256SUMS: it was never sealed, or the list was taken away")]
    Unsealed,
    /// The list could not be read, or is none.
    #[error("read SHA256SUMS of the bundle")]
    ReadSums(#[source] io::Error),
    /// The list is not one that a sealed bundle has.
    #[error("SHA256SUMS is not that of a sealed bundle")]
    Sums(#[source] SumsError),
    /// The file of trusted keys could not be read.
    #[error("read the trusted keys {path}")]
    ReadTrusted {
        /// The file, printable.
        path: String,
        /// What the system said.
        #[source]
        source: io::Error,
    },
    /// The file of trusted keys holds something else.
    #[error("use the trusted keys {path}")]
    Trusted {
        /// The file, printable.
        path: String,
        /// What is wrong with it.
        #[source]
        source: TrustError,
    },
}

/// What stands where a listed file should.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Found {
    /// A file with another digest.
    Digest(Sha256),
    /// No file: a symbolic link, a folder, a device…
    Other(&'static str),
    /// Something that could not be read, and why.
    Unreadable(String),
}

impl fmt::Display for Found {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Digest(digest) => write!(f, "{digest}"),
            Self::Other(what) => f.write_str(what),
            Self::Unreadable(why) => write!(f, "unreadable ({why})"),
        }
    }
}

/// How a name in the folder compares with the list.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum FileState {
    /// Listed, and as listed.
    Ok,
    /// Listed, and not as listed.
    Changed {
        /// The digest in the list.
        expected: Sha256,
        /// What is there.
        found: Found,
    },
    /// Listed, and not there.
    Missing,
    /// There, and not listed.
    Extra,
}

/// What the signature over the list is worth.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum SignatureState {
    /// There is none.
    None,
    /// By a trusted key with this fingerprint.
    ValidBy(String),
    /// It fits, by a key with this fingerprint that is not among the trusted ones, or none were given.
    UntrustedBy(String),
    /// It is there and worthless, and why.
    Invalid(String),
}

/// The outcome.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Verification {
    /// Listed files in the list's order, then extra ones by name; names are printable.
    pub(crate) files: Vec<(String, FileState)>,
    /// True where there are more extra files than were named.
    pub(crate) more_extra: bool,
    /// The signature.
    pub(crate) signature: SignatureState,
    /// Whether trusted keys were given: then only their signature will do.
    pub(crate) trust_required: bool,
    /// True where the bundle's own report does not say that its scan came to its end. Such a bundle can
    /// be intact.
    pub(crate) incomplete: bool,
}

impl Verification {
    /// Whether the bundle is as it was sealed, and signed as the caller required.
    pub(crate) fn is_intact(&self) -> bool {
        let signature = match &self.signature {
            SignatureState::ValidBy(_) => true,
            SignatureState::None | SignatureState::UntrustedBy(_) => !self.trust_required,
            SignatureState::Invalid(_) => false,
        };
        signature && !self.more_extra && self.files.iter().all(|(_, state)| *state == FileState::Ok)
    }
}

/// Verifies the bundle in the folder `bundle`. `trusted` is a file with a public key, or an OpenSSH
/// allowed-signers file; its principals are not compared, since a bundle names no signer.
///
/// # Errors
/// Where there is nothing to compare with: no folder, no list, a list that no sealed bundle has, or
/// trusted keys that cannot be used. A file that differs is no error but part of the outcome.
pub(crate) fn verify(bundle: &Path, trusted: Option<&Path>) -> Result<Verification, VerifyError> {
    let trusted = trusted.map(read_trusted).transpose()?;
    let folder = Folder::open(bundle).map_err(|source| VerifyError::Folder {
        path: printable(&bundle.to_string_lossy()),
        source,
    })?;
    let sums = read_sums(&folder)?;
    let listed = parse_sums(&sums).map_err(VerifyError::Sums)?;
    let signature = judge_signature(&folder, &sums, trusted.as_deref());
    let mut files: Vec<(String, FileState)> = listed
        .iter()
        .map(|(name, expected)| (name.clone(), compare(&folder, name, *expected)))
        .collect();
    let known: HashSet<&str> =
        listed.iter().map(|(name, _)| name.as_str()).chain([SUMS, SUMS_SIGNATURE]).collect();
    let (extra, more_extra) = find_extra(bundle, &known);
    files.extend(extra.into_iter().map(|name| (name, FileState::Extra)));
    let incomplete = !says_complete(&folder);
    let trust_required = trusted.is_some();
    Ok(Verification { files, more_extra, signature, trust_required, incomplete })
}

/// The list's bytes.
fn read_sums(folder: &Folder) -> Result<Vec<u8>, VerifyError> {
    match folder.entry(SUMS).map_err(VerifyError::ReadSums)? {
        Entry::Missing => Err(VerifyError::Unsealed),
        Entry::Other(what) => Err(VerifyError::ReadSums(io::Error::other(format!("it is {what}")))),
        Entry::File(file) => read_bounded(&file, SUMS_LIMIT)
            .and_then(|bytes| bytes.ok_or_else(|| io::ErrorKind::FileTooLarge.into()))
            .map_err(VerifyError::ReadSums),
    }
}

/// The keys in the file at `path`.
fn read_trusted(path: &Path) -> Result<Vec<ssh_key::public::KeyData>, VerifyError> {
    let shown = || printable(&path.to_string_lossy());
    let text = open_regular(path)
        .and_then(|file| read_bounded(&file, KEYS_LIMIT))
        .and_then(|bytes| bytes.ok_or_else(|| io::ErrorKind::FileTooLarge.into()))
        .and_then(|bytes| String::from_utf8(bytes).map_err(|_| io::Error::other("it is not text")))
        .map_err(|source| VerifyError::ReadTrusted { path: shown(), source })?;
    parse_trusted(&text).map_err(|source| VerifyError::Trusted { path: shown(), source })
}

/// What the signature file says of `sums`.
fn judge_signature(
    folder: &Folder,
    sums: &[u8],
    trusted: Option<&[ssh_key::public::KeyData]>,
) -> SignatureState {
    let read = folder.entry(SUMS_SIGNATURE).and_then(|entry| match entry {
        Entry::File(file) => read_bounded(&file, KEYS_LIMIT)?
            .map(Some)
            .ok_or_else(|| io::ErrorKind::FileTooLarge.into()),
        Entry::Other(what) => Err(io::Error::other(format!("it is {what}"))),
        Entry::Missing => Ok(None),
    });
    let signature = match read {
        Ok(Some(signature)) => signature,
        Ok(None) => return SignatureState::None,
        Err(error) => return SignatureState::Invalid(error.to_string()),
    };
    match check(&signature, sums) {
        Err(reason) => SignatureState::Invalid(reason),
        Ok(key) => {
            let known = trusted.is_some_and(|keys| keys.contains(&key));
            let fingerprint = PublicKey::from(key).fingerprint(HashAlg::Sha256).to_string();
            if known {
                SignatureState::ValidBy(fingerprint)
            } else {
                SignatureState::UntrustedBy(fingerprint)
            }
        }
    }
}

/// Compares one listed file.
fn compare(folder: &Folder, name: &str, expected: Sha256) -> FileState {
    let found = match folder.entry(name) {
        Ok(Entry::Missing) => return FileState::Missing,
        Ok(Entry::Other(what)) => Found::Other(what),
        Ok(Entry::File(file)) => match digest(&file) {
            Ok((_, found)) if found == expected => return FileState::Ok,
            Ok((_, found)) => Found::Digest(found),
            Err(error) => Found::Unreadable(error.to_string()),
        },
        Err(error) => Found::Unreadable(error.to_string()),
    };
    FileState::Changed { expected, found }
}

/// Names below `bundle` that are not in `known`, sorted; and whether there are more than the limit.
/// A folder is named with a `/` at its end, and so is what it holds.
fn find_extra(bundle: &Path, known: &HashSet<&str>) -> (Vec<String>, bool) {
    let mut extra = Vec::new();
    // `min_depth` is not set: it would leave out an error on the bundle folder itself.
    for entry in WalkDir::new(bundle).follow_links(false) {
        let (path, folder) = match &entry {
            Ok(entry) if entry.depth() == 0 => continue,
            Ok(entry) => (entry.path(), entry.file_type().is_dir()),
            // What cannot be listed is there all the same.
            Err(error) => (error.path().unwrap_or(bundle), false),
        };
        let relative = path.strip_prefix(bundle).unwrap_or(path);
        if relative.to_str().is_some_and(|name| known.contains(name)) {
            continue;
        }
        if extra.len() == EXTRA_LIMIT {
            return (extra, true);
        }
        let mut name = printable(&relative.to_string_lossy());
        if folder {
            name.push('/');
        }
        extra.push(name);
    }
    extra.sort_unstable();
    (extra, false)
}

/// As much of a report, of any version, as tells whether its scan came to its end.
#[derive(Deserialize)]
struct ReportEnd {
    run: RunEnd,
    summary: SummaryEnd,
}

#[derive(Deserialize)]
struct RunEnd {
    state: RunState,
}

#[derive(Deserialize)]
struct SummaryEnd {
    complete: bool,
}

/// Whether the bundle's report can be read and says that the scan is complete.
fn says_complete(folder: &Folder) -> bool {
    let Ok(Entry::File(file)) = folder.entry("report.json") else { return false };
    let Ok(Some(bytes)) = read_bounded(&file, REPORT_LIMIT) else { return false };
    serde_json::from_slice::<ReportEnd>(&bytes)
        .is_ok_and(|report| report.run.state == RunState::Complete && report.summary.complete)
}

#[cfg(test)]
mod tests {
    use std::{fs, os::unix::fs::symlink, path::PathBuf, process::Command};

    use super::{super::signature::SigningKey, *};
    use crate::bundle::{sample, sums::write_sums};

    /// A sealed bundle in `bundle/`, and beside it the key that may sign it, `key` and `key.pub`.
    struct Case {
        _temp: tempfile::TempDir,
        bundle: PathBuf,
        key: PathBuf,
        trusted: PathBuf,
    }

    fn case(signed: bool) -> Case {
        let temp = tempfile::tempdir().unwrap();
        let bundle = temp.path().join("bundle");
        fs::create_dir(&bundle).unwrap();
        let report = serde_json::to_vec(&sample::report()).unwrap();
        fs::write(bundle.join("report.json"), report).unwrap();
        fs::write(bundle.join("gaps.jsonl"), "{}\n").unwrap();
        fs::write(bundle.join("timeline.body"), "").unwrap();
        write_sums(&bundle, &["report.json", "gaps.jsonl", "timeline.body"]).unwrap();
        let key = temp.path().join("key");
        if signed {
            make_key(&key);
            SigningKey::load(&key).unwrap().sign_sums(&bundle).unwrap();
        }
        let trusted = temp.path().join("key.pub");
        Case { _temp: temp, bundle, key, trusted }
    }

    fn make_key(path: &Path) {
        let made = Command::new("ssh-keygen")
            .args(["-q", "-t", "ed25519", "-N", "", "-f"])
            .arg(path)
            .status()
            .expect("this test needs ssh-keygen (Debian: openssh-client)");
        assert!(made.success());
    }

    fn bad(verification: &Verification) -> Vec<(&str, &FileState)> {
        let bad = verification.files.iter().filter(|(_, state)| *state != FileState::Ok);
        bad.map(|(name, state)| (name.as_str(), state)).collect()
    }

    #[test]
    fn an_untouched_bundle_is_intact_and_says_that_its_scan_was_interrupted() {
        let case = case(false);
        let verification = verify(&case.bundle, None).unwrap();
        assert!(verification.is_intact());
        assert_eq!(verification.files.len(), 3);
        assert_eq!(verification.signature, SignatureState::None);
        assert!(verification.incomplete);

        let mut report = sample::report();
        report.run.state = RunState::Complete;
        report.summary.complete = true;
        fs::write(case.bundle.join("report.json"), serde_json::to_vec(&report).unwrap()).unwrap();
        fs::remove_file(case.bundle.join(SUMS)).unwrap();
        write_sums(&case.bundle, &["report.json", "gaps.jsonl", "timeline.body"]).unwrap();
        assert!(!verify(&case.bundle, None).unwrap().incomplete);
    }

    #[test]
    fn what_was_changed_taken_or_added_is_named() {
        let case = case(false);
        fs::write(case.bundle.join("gaps.jsonl"), "{}\n\n").unwrap();
        fs::remove_file(case.bundle.join("timeline.body")).unwrap();
        fs::create_dir(case.bundle.join("more")).unwrap();
        fs::write(case.bundle.join("more/gaps.jsonl"), "").unwrap();
        fs::write(case.bundle.join("\u{1b}[2J"), "").unwrap();
        let verification = verify(&case.bundle, None).unwrap();
        assert!(!verification.is_intact());
        let bad = bad(&verification);
        assert!(matches!(
            bad[0],
            ("gaps.jsonl", FileState::Changed { found: Found::Digest(_), .. })
        ));
        let rest: Vec<_> = bad[1..].to_vec();
        assert_eq!(
            rest,
            [
                ("timeline.body", &FileState::Missing),
                ("\\u{1b}[2J", &FileState::Extra),
                ("more/", &FileState::Extra),
                ("more/gaps.jsonl", &FileState::Extra),
            ]
        );
    }

    #[test]
    fn links_and_pipes_are_never_opened() {
        let case = case(false);
        let elsewhere = case.bundle.with_file_name("elsewhere");
        fs::rename(case.bundle.join("gaps.jsonl"), &elsewhere).unwrap();
        symlink(&elsewhere, case.bundle.join("gaps.jsonl")).unwrap();
        fs::remove_file(case.bundle.join("timeline.body")).unwrap();
        let pipe = case.bundle.join("timeline.body");
        nix::unistd::mkfifo(&pipe, nix::sys::stat::Mode::S_IRWXU).unwrap();
        symlink("/", case.bundle.join("root")).unwrap();
        let verification = verify(&case.bundle, None).unwrap();
        let found = |state: &FileState| match state {
            FileState::Changed { found, .. } => found.to_string(),
            other => format!("{other:?}"),
        };
        let bad: Vec<_> = bad(&verification).into_iter().map(|(n, s)| (n, found(s))).collect();
        assert_eq!(
            bad,
            [
                ("gaps.jsonl", "a symbolic link".to_owned()),
                ("timeline.body", "a pipe".to_owned()),
                ("root", "Extra".to_owned()),
            ]
        );
    }

    #[test]
    fn a_folder_of_countless_files_is_not_named_whole() {
        let case = case(false);
        for n in 0..=EXTRA_LIMIT {
            fs::File::create(case.bundle.join(format!("x{n}"))).unwrap();
        }
        let verification = verify(&case.bundle, None).unwrap();
        assert_eq!(bad(&verification).len(), EXTRA_LIMIT);
        assert!(verification.more_extra && !verification.is_intact());
    }

    #[test]
    fn a_list_that_no_sealed_bundle_has_is_an_error() {
        let case = case(false);
        let sums = case.bundle.join(SUMS);
        let digest = Sha256([0; 32]);
        for bad in [
            String::new(),
            format!("{digest}  ../../etc/passwd\n"),
            format!("{digest}  /etc/passwd\n"),
            format!("\\{digest}  a\\nb\n"),
            format!("{digest}  a\n{digest}  a\n"),
        ] {
            fs::write(&sums, &bad).unwrap();
            assert!(matches!(verify(&case.bundle, None), Err(VerifyError::Sums(_))), "{bad:?}");
        }
        fs::write(&sums, format!("{digest}  a\n").repeat(20_000)).unwrap();
        assert!(matches!(verify(&case.bundle, None), Err(VerifyError::ReadSums(_))));
        fs::remove_file(&sums).unwrap();
        assert!(matches!(verify(&case.bundle, None), Err(VerifyError::Unsealed)));
        symlink("/dev/zero", &sums).unwrap();
        assert!(matches!(verify(&case.bundle, None), Err(VerifyError::ReadSums(_))));
        assert!(matches!(verify(&case.key, None), Err(VerifyError::Folder { .. })));
    }

    #[test]
    fn a_signature_counts_only_by_a_trusted_key() {
        let case = case(true);
        let trusted = Some(case.trusted.as_path());
        let fingerprint = SigningKey::load(&case.key).unwrap().fingerprint();
        let verification = verify(&case.bundle, trusted).unwrap();
        assert_eq!(verification.signature, SignatureState::ValidBy(fingerprint.clone()));
        assert!(verification.is_intact());

        let verification = verify(&case.bundle, None).unwrap();
        assert_eq!(verification.signature, SignatureState::UntrustedBy(fingerprint.clone()));
        assert!(verification.is_intact(), "nobody asked for a trusted key");

        let other = case.key.with_file_name("other");
        make_key(&other);
        let verification = verify(&case.bundle, Some(&other.with_extension("pub"))).unwrap();
        assert_eq!(verification.signature, SignatureState::UntrustedBy(fingerprint));
        assert!(!verification.is_intact());
        assert!(matches!(verify(&case.bundle, Some(&other)), Err(VerifyError::Trusted { .. })));
    }

    #[test]
    fn a_resealed_or_stripped_bundle_is_not_intact() {
        let case = case(true);
        fs::write(case.bundle.join("gaps.jsonl"), "").unwrap();
        fs::remove_file(case.bundle.join(SUMS)).unwrap();
        write_sums(&case.bundle, &["report.json", "gaps.jsonl", "timeline.body"]).unwrap();
        for trusted in [None, Some(case.trusted.as_path())] {
            let verification = verify(&case.bundle, trusted).unwrap();
            assert!(matches!(verification.signature, SignatureState::Invalid(_)));
            assert!(!verification.is_intact());
        }
        fs::remove_file(case.bundle.join(SUMS_SIGNATURE)).unwrap();
        let verification = verify(&case.bundle, Some(&case.trusted)).unwrap();
        assert_eq!(verification.signature, SignatureState::None);
        assert!(!verification.is_intact(), "a trusted signature was required");
        symlink(&case.trusted, case.bundle.join(SUMS_SIGNATURE)).unwrap();
        let verification = verify(&case.bundle, None).unwrap();
        assert!(matches!(verification.signature, SignatureState::Invalid(_)));
    }
}
