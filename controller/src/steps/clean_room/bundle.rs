//! A published bundle, read back: every file that its sums name, byte for byte.
//!
//! The bundle comes from a machine that handled hostile data: no name, size or digest in it is believed. Reads the bucket;
//! changes nothing.

use std::collections::{BTreeMap, BTreeSet};

use cleanroom_cloud::{CloudError, Fetched, Store};
use cleanroom_contract::{CaseId, Report, ScanId, Sha256, bundle_prefix, printable};
use futures_util::{StreamExt as _, stream};

use super::watch::Heard;
use crate::journal::{digest, event::Exhibit};

/// The list of a bundle's files and digests.
pub const SUMS: &str = "SHA256SUMS";
/// Its signature.
pub const SIGNATURE: &str = "SHA256SUMS.sig";
/// The longest list and signature that are read, in bytes: a bundle has eight files.
pub const SUMS_LIMIT: u64 = 1 << 20;
/// The longest `report.json` that is read, in bytes: it holds at most a hundred findings and gaps, each below 256 KiB.
const REPORT_LIMIT: u64 = 60 << 20;
/// Files that are read at a time.
const AT_ONCE: usize = 4;
/// How many faults are named.
const MOST_FAULTS: usize = 20;

/// Why a bundle is not relied on.
#[derive(Debug, thiserror::Error)]
pub enum BundleError {
    /// The store did not answer.
    #[error("read the bundle of scan {scan}")]
    Store {
        /// The scan.
        scan: ScanId,
        /// What it said.
        source: CloudError,
    },
    /// It is not published: its sums come last.
    #[error("the bundle of scan {0} is not published: it has no {SUMS}")]
    Absent(ScanId),
    /// It is not what its sums or its room say.
    #[error("the bundle of scan {scan} is not what it says of itself: {}", faults.join("; "))]
    Faulty {
        /// The scan.
        scan: ScanId,
        /// What is wrong.
        faults: Vec<String>,
    },
}

/// A bundle that is what it says of itself.
#[derive(Clone, Debug)]
pub struct Verified {
    /// Its files, the sums and their signature last.
    pub exhibits: Vec<Exhibit>,
    /// Its report.
    pub report: Box<Report>,
    /// Objects beside it that its sums do not name.
    pub unnamed: Vec<String>,
}

/// Whether a name is one that a file of a bundle may have: no folder, nothing hidden, nothing that a shell or a terminal minds.
#[must_use]
pub fn is_plain(name: &str) -> bool {
    (1..=255).contains(&name.len())
        && !name.starts_with(['.', '-'])
        && name.bytes().all(|b| b.is_ascii_alphanumeric() || b"-_.+".contains(&b))
}

/// Reads a list as `sha256sum` writes it: a digest, two spaces or a space and a star, a plain name, a line feed.
///
/// # Errors
/// At the first line that is anything else, or names a file twice.
pub fn parse_sums(bytes: &[u8]) -> Result<BTreeMap<String, Sha256>, String> {
    let text = std::str::from_utf8(bytes).map_err(|_| format!("{SUMS} is no text"))?;
    let Some(text) = text.strip_suffix('\n') else {
        return Err(format!("{SUMS} is empty or cut short"));
    };
    let mut sums = BTreeMap::new();
    for (n, line) in text.split('\n').enumerate() {
        let wrong = |what: &str| format!("line {} of {SUMS} {what}", n + 1);
        let (hex, rest) = line.split_at_checked(64).ok_or_else(|| wrong("is too short"))?;
        let sha256 = hex.parse::<Sha256>().map_err(|_| wrong("begins with no digest"))?;
        let name = rest.strip_prefix("  ").or_else(|| rest.strip_prefix(" *"));
        let name = name.filter(|name| is_plain(name) && *name != SUMS && *name != SIGNATURE);
        let name = name.ok_or_else(|| wrong("names no file of a bundle"))?;
        if sums.insert(name.to_owned(), sha256).is_some() {
            return Err(wrong("names a file again"));
        }
    }
    Ok(sums)
}

/// The list of a bundle, and its own bytes.
///
/// # Errors
/// When the store does not answer, there is none, or it is no list.
pub async fn sums(
    store: &dyn Store,
    case: &CaseId,
    scan: &ScanId,
) -> Result<(BTreeMap<String, Sha256>, Vec<u8>), BundleError> {
    let key = format!("{}{SUMS}", bundle_prefix(case, scan));
    let failed = |source| BundleError::Store { scan: scan.clone(), source };
    let bytes = store.get(&key).await.map_err(failed)?;
    let bytes = bytes.ok_or_else(|| BundleError::Absent(scan.clone()))?;
    let faulty = |why: String| BundleError::Faulty { scan: scan.clone(), faults: vec![why] };
    if bytes.len() as u64 > SUMS_LIMIT {
        return Err(faulty(format!("{SUMS} is larger than {SUMS_LIMIT} bytes")));
    }
    Ok((parse_sums(&bytes).map_err(faulty)?, bytes))
}

/// Scans of a case whose bundles are published, oldest first.
///
/// # Errors
/// When the store does not answer.
pub async fn published(store: &dyn Store, case: &CaseId) -> Result<Vec<ScanId>, CloudError> {
    let prefix = format!("cases/{case}/bundles/");
    let keys = store.list(&prefix, false).await?;
    let scan = |key: &String| {
        let rest = key.strip_prefix(&prefix)?;
        rest.strip_suffix(SUMS)?.strip_suffix('/')?.parse::<ScanId>().ok()
    };
    Ok(keys.iter().filter_map(scan).collect::<BTreeSet<_>>().into_iter().collect())
}

/// The report of a bundle, which must have the digest that its sums give.
///
/// # Errors
/// When the store does not answer, or the report is another or can not be read.
pub async fn report(
    store: &dyn Store,
    (case, scan): (&CaseId, &ScanId),
    sums: &BTreeMap<String, Sha256>,
) -> Result<Box<Report>, BundleError> {
    const NAME: &str = "report.json";
    let faulty = |why: &str| {
        let faults = vec![format!("{NAME} {why}")];
        BundleError::Faulty { scan: scan.clone(), faults }
    };
    let expected = sums.get(NAME).ok_or_else(|| faulty("is not in the list"))?;
    let key = format!("{}{NAME}", bundle_prefix(case, scan));
    let failed = |source| BundleError::Store { scan: scan.clone(), source };
    let bytes = store.get(&key).await.map_err(failed)?.ok_or_else(|| faulty("is missing"))?;
    if bytes.len() as u64 > REPORT_LIMIT {
        return Err(faulty("is too large"));
    }
    if digest(&bytes) != *expected {
        return Err(faulty("has another digest than the list gives"));
    }
    let report: Report = serde_json::from_slice(&bytes)
        .map_err(|error| faulty(&format!("can not be read: {error}")))?;
    if report.case.as_ref().is_some_and(|other| other != case) {
        return Err(faulty("is of another case"));
    }
    Ok(Box::new(report))
}

/// Reads a whole bundle back and compares it with its sums, and with what its room told.
///
/// # Errors
/// When the store does not answer, or anything differs.
pub async fn verify(
    store: &dyn Store,
    (case, scan): (&CaseId, &ScanId),
    heard: &Heard,
) -> Result<Verified, BundleError> {
    let (listed, list) = sums(store, case, scan).await?;
    let prefix = bundle_prefix(case, scan);
    let failed = |source| BundleError::Store { scan: scan.clone(), source };
    let mut faults = Vec::new();
    let list_sha256 = digest(&list);
    if heard.sums.is_some_and(|told| told != list_sha256) {
        faults.push(format!("{SUMS} is not the one that the room sealed"));
    }
    let keys = store.list(&prefix, false).await.map_err(failed)?;
    let reads: Vec<_> = listed
        .keys()
        .map(|name| {
            let key = format!("{prefix}{name}");
            async move { (name.as_str(), store.download(&key, None, u64::MAX).await) }
        })
        .collect();
    let reads: Vec<_> = stream::iter(reads).buffered(AT_ONCE).collect().await;
    let mut found = BTreeMap::new();
    for (name, read) in reads {
        match read.map_err(failed)? {
            None => faults.push(format!("{name} is missing")),
            Some(there) => {
                if listed.get(name) != Some(&there.sha256) {
                    faults.push(format!(
                        "{name} has SHA-256 {}, and the list says {}",
                        there.sha256,
                        listed.get(name).map(ToString::to_string).unwrap_or_default()
                    ));
                }
                found.insert(name.to_owned(), there);
            }
        }
    }
    let size = list.len() as u64;
    found.insert(SUMS.to_owned(), Fetched { size, sha256: list_sha256 });
    let signature = format!("{prefix}{SIGNATURE}");
    if keys.contains(&signature) {
        let there = store.download(&signature, None, SUMS_LIMIT).await.map_err(failed)?;
        found.extend(there.map(|there| (SIGNATURE.to_owned(), there)));
    }
    faults.extend(untrue(&prefix, heard, &found));
    if !faults.is_empty() {
        faults.truncate(MOST_FAULTS);
        return Err(BundleError::Faulty { scan: scan.clone(), faults });
    }
    let report = report(store, (case, scan), &listed).await?;
    let unnamed = keys.iter().filter_map(|key| key.strip_prefix(&prefix));
    let unnamed = unnamed.filter(|name| !found.contains_key(*name)).map(printable).collect();
    let exhibit = |(name, there): (String, Fetched)| Exhibit {
        key: format!("{prefix}{name}"),
        sha256: there.sha256,
        size: there.size,
        operation: "cleanroom-agent run".to_owned(),
        request: None,
    };
    let exhibits = found.into_iter().map(exhibit).collect();
    Ok(Verified { exhibits, report, unnamed })
}

/// What the room said that it published, and is not so.
fn untrue(prefix: &str, heard: &Heard, found: &BTreeMap<String, Fetched>) -> Vec<String> {
    let mut faults = Vec::new();
    for file in heard.published.iter().flatten().take(1000) {
        let name = file.key.strip_prefix(prefix).unwrap_or_default();
        let Some(there) = found.get(name) else {
            faults.push(format!(
                "the room published {}, which is not in the list",
                printable(&file.key)
            ));
            continue;
        };
        if (there.size, there.sha256) != (file.size, file.sha256) {
            faults.push(format!(
                "{name} is not what the room published: {} bytes, {}",
                there.size, there.sha256
            ));
        }
    }
    faults
}

#[cfg(test)]
mod tests {
    use super::*;

    const HEX: &str = "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855";

    #[test]
    fn a_list_is_what_sha256sum_writes_of_plain_files() {
        let good = format!("{HEX}  report.json\n{HEX} *files.jsonl.zst\n");
        let sums = parse_sums(good.as_bytes()).expect("a list");
        assert_eq!(sums.keys().collect::<Vec<_>>(), ["files.jsonl.zst", "report.json"]);
        for bad in [
            String::new(),
            "\n".to_owned(),
            format!("{HEX}  report.json"),
            format!("{HEX}  report.json\n\n"),
            format!("{HEX}  report.json\n{HEX}  report.json\n"),
            format!("{HEX}  ../report.json\n"),
            format!("{HEX}  a/b\n"),
            format!("{HEX}  /etc/passwd\n"),
            format!("{HEX}  .bashrc\n"),
            format!("{HEX}  -rf\n"),
            format!("{HEX}  a\u{1b}b\n"),
            format!("{HEX}  SHA256SUMS\n"),
            format!("{HEX}  SHA256SUMS.sig\n"),
            format!("{HEX} report.json\n"),
            format!("{}  report.json\n", &HEX[1..]),
            format!("\\{HEX}  report.json\n"),
            format!("{}\u{e9}  x\n", &HEX[1..]),
        ] {
            assert!(parse_sums(bad.as_bytes()).is_err(), "{bad:?}");
        }
        assert!(parse_sums(b"\xff\n").is_err());
    }
}
