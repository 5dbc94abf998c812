//! A sealed bundle goes into the evidence bucket, and people are told.
//!
//! Purpose: every file of a bundle becomes an object, the sums and their signature last, so that a bundle with sums is
//! whole; and one message says what was found. Touches the bundle's folder, for reading, and the bucket through
//! `cleanroom-agent-aws`. Never overwrites an object, and never publishes a file that is not what was sealed.

use std::{collections::BTreeMap, fmt::Write as _, fs::File, io, path::Path};

use cleanroom_agent_aws::{Notice, Source, Store, UploadError};
use cleanroom_contract::{
    Finding, PublishedFile, Report, RunState, Sha256, WorkOrder, bundle_prefix, printable,
};
use serde_json::json;
use sha2::Digest as _;

use crate::bundle::{
    folder::{Entry, Folder, digest, read_bounded},
    sums::{SUMS, SUMS_LIMIT, SUMS_SIGNATURE, SumsError, parse_sums},
    text,
};

/// Findings that a message shows.
const SHOWN: usize = 10;
/// The most characters of a text from the evidence in a message.
const QUOTED: usize = 300;

/// Why a bundle is not published.
#[derive(Debug, thiserror::Error)]
pub(crate) enum PublishError {
    #[error("read the sealed bundle")]
    Read(#[from] io::Error),
    #[error(transparent)]
    Sums(#[from] SumsError),
    #[error("publish the bundle")]
    Upload(#[from] UploadError),
}

impl PublishError {
    /// Whether no further try can succeed: the bundle or what is in the bucket is not what it should be.
    pub(crate) fn is_final(&self) -> bool {
        match self {
            Self::Upload(error) => {
                matches!(error, UploadError::Changed { .. } | UploadError::Taken { .. })
            }
            Self::Sums(_) => true,
            Self::Read(_) => false,
        }
    }
}

/// Who remembers uploads that were begun, so that the next start goes on with them.
pub(crate) trait Uploads {
    /// The upload of a file that was begun and is not known to have ended.
    fn begun(&self, name: &str) -> Option<String>;
    /// An upload of a file begins.
    fn note(&mut self, name: &str, id: &str);
}

/// A file of a sealed bundle, and the object that it becomes.
struct Sealed {
    name: String,
    file: File,
    object: PublishedFile,
}

/// Publishes the sealed bundle in `folder` under a key prefix; every object of it. What is there already is not sent.
pub(crate) async fn bundle(
    store: &Store,
    folder: &Path,
    prefix: &str,
    uploads: &mut (dyn Uploads + Send),
) -> Result<Vec<PublishedFile>, PublishError> {
    let mut published = Vec::new();
    for Sealed { name, file, object } in files(folder, prefix)? {
        let PublishedFile { key, size, sha256 } = &object;
        let source = Source { key, file: &file, size: *size, sha256: *sha256 };
        let begun = uploads.begun(&name);
        store.upload(&source, begun.as_deref(), &mut |id| uploads.note(&name, id)).await?;
        published.push(object);
    }
    Ok(published)
}

/// The objects that the sealed bundle in `folder` is under a key prefix.
pub(crate) fn objects(folder: &Path, prefix: &str) -> Result<Vec<PublishedFile>, PublishError> {
    Ok(files(folder, prefix)?.into_iter().map(|sealed| sealed.object).collect())
}

/// The files of the sealed bundle in `folder`; its sums last, so that what has sums is whole.
fn files(folder: &Path, prefix: &str) -> Result<Vec<Sealed>, PublishError> {
    let folder = Folder::open(folder)?;
    let mut names = Vec::new();
    for (name, sha256) in parse_sums(&sums_of(&folder)?)? {
        names.push((name, Some(sha256)));
    }
    if let Entry::File(_) = folder.entry(SUMS_SIGNATURE)? {
        names.push((SUMS_SIGNATURE.to_owned(), None));
    }
    names.push((SUMS.to_owned(), None));
    let mut files = Vec::new();
    for (name, listed) in names {
        let file = folder.file(&name)?;
        let (size, sha256) = match listed {
            // Compared with what is read when it is sent.
            Some(sha256) => (file.metadata()?.len(), sha256),
            None => digest(&folder.file(&name)?)?,
        };
        let object = PublishedFile { key: format!("{prefix}{name}"), size, sha256 };
        files.push(Sealed { name, file, object });
    }
    Ok(files)
}

/// The bytes of a sealed bundle's sums.
fn sums_of(folder: &Folder) -> io::Result<Vec<u8>> {
    let sums = read_bounded(&folder.file(SUMS)?, SUMS_LIMIT)?;
    sums.ok_or_else(|| io::Error::other("its sums are longer than those of any bundle"))
}

/// SHA-256 of a sealed bundle's sums; `None` where it is not sealed, or was being sealed when the agent was killed.
pub(crate) fn sealed(folder: &Path) -> Option<Sha256> {
    let sums = sums_of(&Folder::open(folder).ok()?).ok()?;
    parse_sums(&sums).ok()?;
    Some(Sha256(sha2::Sha256::digest(&sums).into()))
}

/// A sealed bundle's report.
pub(crate) fn report(folder: &Path) -> io::Result<Report> {
    let file = Folder::open(folder)?.file("report.json")?;
    Ok(serde_json::from_reader(io::BufReader::new(file))?)
}

/// What a message says of a scan, for programs: bounded, whatever was found.
pub(crate) fn outcome(order: &WorkOrder, report: &Report, sums: Sha256) -> serde_json::Value {
    let worst: Vec<_> = report.worst.iter().take(SHOWN).map(shown).collect();
    json!({
        "v": 1,
        "type": "scan",
        "step": "publish",
        "case": order.case,
        "instance": order.instance,
        "scan": order.scan,
        "state": report.run.state,
        "severity": severity(report),
        "summary": report.summary,
        "coverage": report.coverage,
        "worst": worst,
        "bundle": {
            "bucket": order.publish.bucket,
            "prefix": bundle_prefix(&order.case, &order.scan),
            "sums_sha256": sums,
        },
    })
}

/// A finding, as much of it as a message has room for.
fn shown(finding: &Finding) -> serde_json::Value {
    json!({
        "id": finding.id,
        "severity": finding.severity,
        "title": quoted(&finding.title),
        "reason": quoted(&finding.reason),
        "technique": finding.technique.as_deref().map(quoted),
        "volume": finding.volume,
        "path": finding.path.as_ref().map(|path| quoted(&path.path)),
        "source": quoted(&finding.source),
        "sha256": finding.sha256,
    })
}

/// Text of the evidence, safe to show, and not much of it.
fn quoted(text: &str) -> String {
    let mut short: String = text.chars().take(QUOTED).collect();
    if short.len() < text.len() {
        short.push('…');
    }
    printable(&short)
}

/// The worst severity, for subscribers' filters.
fn severity(report: &Report) -> &'static str {
    text::worst(report).map_or("info", cleanroom_contract::Severity::as_str)
}

/// The message about a scan that has a bundle.
pub(crate) fn notice(order: &WorkOrder, report: &Report, sums: Sha256) -> Notice {
    let prefix = bundle_prefix(&order.case, &order.scan);
    let state = match report.run.state {
        RunState::Complete => "scanned",
        RunState::Interrupted => "scanned in part",
        RunState::Failed => "scan failed in part",
    };
    let mut lines =
        format!("{} of case {}: {}\n\n", order.instance, order.case, text::verdict(report));
    for finding in report.worst.iter().take(SHOWN) {
        let path = finding.path.as_ref().map_or("", |path| path.path.as_str());
        // Into a text nothing fails to be written.
        let _ = writeln!(
            lines,
            "- {}: {} in {} {}",
            finding.severity.as_str(),
            quoted(&finding.title),
            quoted(&finding.volume),
            quoted(path)
        );
    }
    let coverage = &report.coverage;
    let _ = write!(
        lines,
        "\nExamined: {} of {} volumes, {} of {} files, {} gaps.\nBundle: s3://{}/{prefix}\n\
         SHA-256 of its SHA256SUMS: {sums}\n",
        coverage.volumes_examined,
        coverage.volumes,
        coverage.files_examined,
        coverage.files,
        report.summary.gaps,
        order.publish.bucket,
    );
    Notice {
        subject: format!(
            "[cleanroom] {} {state}: {} findings",
            order.instance,
            report.summary.findings.total()
        ),
        text: lines,
        json: outcome(order, report, sums).to_string(),
        attributes: attributes(order, severity(report)),
        deduplication: order.scan.to_string(),
    }
}

/// The message about a scan that has no published bundle.
pub(crate) fn failure(order: &WorkOrder, reason: &str) -> Notice {
    let reason = quoted(reason);
    Notice {
        subject: format!("[cleanroom] {} has no report", order.instance),
        text: format!(
            "{} of case {} has no report: {reason}\nScan {}.\n",
            order.instance, order.case, order.scan
        ),
        json: json!({
            "v": 1,
            "type": "scan",
            "step": "publish",
            "case": order.case,
            "instance": order.instance,
            "scan": order.scan,
            "state": "failed",
            "severity": "high",
            "reason": reason,
        })
        .to_string(),
        attributes: attributes(order, "high"),
        deduplication: order.scan.to_string(),
    }
}

fn attributes(order: &WorkOrder, severity: &str) -> BTreeMap<String, String> {
    BTreeMap::from([
        ("case".to_owned(), order.case.to_string()),
        ("severity".to_owned(), severity.to_owned()),
        ("step".to_owned(), "publish".to_owned()),
    ])
}
