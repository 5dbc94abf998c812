//! Brings a bundle here, and compares every byte with its sums on the way, and its sums with the custody log.
//!
//! A room may write below its case's bundles, so what lies there says nothing of itself: which scan is the newest, and which
//! sums are its own, is what the log says that was read back. Reads the bucket; writes one folder. Never overwrites a file:
//! what is there and is the same is left, what is there and differs is an error. Files appear under their names only once
//! they are whole.

use std::{
    collections::BTreeMap,
    fs, io,
    path::{Path, PathBuf},
};

use cleanroom_cloud::CloudError;
use cleanroom_contract::{CaseId, Report, ScanId, Sha256, Timestamp, bundle_prefix, printable};
use serde::Serialize;
use sha2::Digest as _;

use super::FlowError;
use crate::{
    case::Run,
    flow::find,
    journal::{self, Examined, Ledger, digest, event::Exhibit},
    steps::clean_room::bundle::{self, BundleError, SIGNATURE, SUMS, SUMS_LIMIT},
};

/// Why a bundle did not come.
#[derive(Debug, thiserror::Error)]
pub enum FetchError {
    /// There is no such case, or its log can not be read.
    #[error(transparent)]
    Flow(#[from] FlowError),
    /// No scan of the case was read back.
    #[error(
        "no scan of {case} was read back into the custody log yet: status shows how it stands{}",
        unread(unlogged)
    )]
    None {
        /// The case.
        case: CaseId,
        /// Scans that have sums in the bucket all the same.
        unlogged: Vec<ScanId>,
    },
    /// What is in the bucket is no longer what was read back.
    #[error(
        "{what}: it is not what was read back and logged at {at}; CloudTrail's data events of the bucket say who wrote it since, and its older versions may be what was logged"
    )]
    Altered {
        /// What, and how it differs.
        what: String,
        /// When it was read back.
        at: Timestamp,
    },
    /// The bundle is not what it says of itself.
    #[error(transparent)]
    Bundle(#[from] BundleError),
    /// A file could not be read from the bucket.
    #[error("fetch {name}")]
    Store {
        /// The file.
        name: String,
        /// What the store said.
        source: CloudError,
    },
    /// A file is not what the sums say, which nobody has read back.
    #[error("{name} is not what {SUMS} says: its SHA-256 is {found}")]
    Differs {
        /// The file.
        name: String,
        /// Its digest.
        found: Sha256,
    },
    /// A file of this name is here already, and is another.
    #[error("{} is there already, and is another file: give another folder", printable(&path.to_string_lossy()))]
    Taken {
        /// The file.
        path: PathBuf,
    },
    /// The folder.
    #[error("{what} {}", printable(&path.to_string_lossy()))]
    Local {
        /// What was tried.
        what: &'static str,
        /// On what.
        path: PathBuf,
        /// Why not.
        source: io::Error,
    },
}

/// A bundle that is here.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct FetchedBundle {
    /// The case.
    pub case: CaseId,
    /// The scan.
    pub scan: ScanId,
    /// Where it is.
    pub folder: PathBuf,
    /// Files that came.
    pub came: usize,
    /// Files that were here already.
    pub kept: usize,
    /// Their bytes, all together.
    pub bytes: u64,
    /// Whether the custody log has these very sums.
    pub logged: bool,
}

/// What else is known where no scan was read back, as the end of the sentence.
fn unread(unlogged: &[ScanId]) -> String {
    let names: Vec<_> = unlogged.iter().rev().take(3).map(ToString::to_string).collect();
    if names.is_empty() {
        return String::new();
    }
    format!(
        "; the bucket has {}: respond reads the newest back, and --scan shows one as it lies there",
        names.join(", ")
    )
}

/// A scan that is meant.
struct Chosen {
    scan: ScanId,
    sums: BTreeMap<String, Sha256>,
    /// The bytes of the sums.
    list: Vec<u8>,
    /// What the custody log has of it; none where it was not read back.
    logged: Option<Examined>,
}

impl Chosen {
    /// What the custody log has of a file.
    fn exhibit(&self, case: &CaseId, name: &str) -> Option<&Exhibit> {
        exhibit(self.logged.as_ref()?, &format!("{}{name}", bundle_prefix(case, &self.scan)))
    }

    /// A bundle that is not what it says of itself: was it read back, it was then.
    fn blame(&self, error: BundleError) -> FetchError {
        blame(self.logged.as_ref(), error)
    }

    /// A file that came, and is another than the sums say.
    fn differs(&self, name: &str, found: Sha256) -> FetchError {
        match &self.logged {
            Some(examined) => {
                let what = format!("{name} of scan {} has SHA-256 {found}", self.scan);
                FetchError::Altered { what, at: examined.at }
            }
            None => FetchError::Differs { name: name.to_owned(), found },
        }
    }

    /// A file that did not come.
    fn not_read(&self, name: &str, source: CloudError) -> FetchError {
        match &self.logged {
            Some(examined) if source.code == "TooLarge" => {
                let what = format!("{name} of scan {} is larger than it was", self.scan);
                FetchError::Altered { what, at: examined.at }
            }
            _ => FetchError::Store { name: name.to_owned(), source },
        }
    }
}

fn exhibit<'e>(examined: &'e Examined, key: &str) -> Option<&'e Exhibit> {
    examined.exhibits.iter().find(|exhibit| exhibit.key == key)
}

fn blame(examined: Option<&Examined>, error: BundleError) -> FetchError {
    match (examined, &error) {
        (Some(examined), BundleError::Absent(_) | BundleError::Faulty { .. }) => {
            FetchError::Altered { what: error.to_string(), at: examined.at }
        }
        _ => error.into(),
    }
}

/// The scan that is meant: the one that is named, else the newest that the custody log has as read back.
async fn chosen(run: &Run, case: &CaseId, scan: Option<&ScanId>) -> Result<Chosen, FetchError> {
    let store = &*run.cloud.store;
    find::case(store, &run.caller, case).await?;
    let events = journal::read(store, case).await.map_err(FlowError::from)?;
    let mut reports = Ledger::of(events.iter().map(|(event, _)| event)).reports;
    let newest = reports.last_key_value().map(|(scan, _)| scan.clone());
    let Some(scan) = scan.cloned().or(newest) else {
        return Err(none(run, case).await);
    };
    let examined = reports.remove(&scan);
    let read = bundle::sums(store, case, &scan).await;
    let (sums, list) = read.map_err(|error| blame(examined.as_ref(), error))?;
    if let Some(examined) = &examined {
        let key = format!("{}{SUMS}", bundle_prefix(case, &scan));
        let (found, known) = (digest(&list), exhibit(examined, &key).map(|e| e.sha256));
        if known != Some(found) {
            let known = known.map_or("none".to_owned(), |sha256| sha256.to_string());
            let what = format!(
                "{SUMS} of scan {scan} has SHA-256 {found}, and the custody log has {known}"
            );
            return Err(FetchError::Altered { what, at: examined.at });
        }
    }
    Ok(Chosen { scan, sums, list, logged: examined })
}

/// The newest scan of each of the case's rooms that was read back, by the room.
///
/// # Errors
/// When there is none, or no such case.
pub async fn newest(run: &Run, case: &CaseId) -> Result<BTreeMap<u32, ScanId>, FetchError> {
    find::case(&*run.cloud.store, &run.caller, case).await?;
    let events = journal::read(&*run.cloud.store, case).await.map_err(FlowError::from)?;
    let ledger = Ledger::of(events.iter().map(|(event, _)| event));
    let newest = ledger.newest_reports();
    if newest.is_empty() {
        return Err(none(run, case).await);
    }
    Ok(newest.into_iter().map(|(room, (scan, _))| (room, scan.clone())).collect())
}

/// Nothing was read back.
async fn none(run: &Run, case: &CaseId) -> FetchError {
    match bundle::published(&*run.cloud.store, case).await {
        Ok(unlogged) => FetchError::None { case: case.clone(), unlogged },
        Err(source) => FlowError::Cloud { what: format!("bundles of {case}"), source }.into(),
    }
}

/// The report of a scan, the newest that was read back where none is named; and whether the custody log has it.
///
/// # Errors
/// When there is none, or it is not what its sums or the custody log say.
pub async fn report(
    run: &Run,
    case: &CaseId,
    scan: Option<&ScanId>,
) -> Result<(ScanId, Box<Report>, bool), FetchError> {
    let chosen = chosen(run, case, scan).await?;
    let report = bundle::report(&*run.cloud.store, (case, &chosen.scan), &chosen.sums).await;
    let report = report.map_err(|error| chosen.blame(error))?;
    let logged = chosen.logged.is_some();
    Ok((chosen.scan, report, logged))
}

/// Brings a bundle into a folder, which is made where it is not there: the newest that was read back where none is named.
///
/// # Errors
/// At the first file that does not come, or is not what the sums or the custody log say. What came before stays, and the next
/// run goes on.
pub async fn fetch(
    run: &Run,
    case: &CaseId,
    scan: Option<&ScanId>,
    out: Option<&Path>,
) -> Result<FetchedBundle, FetchError> {
    let chosen = chosen(run, case, scan).await?;
    let folder =
        out.map_or_else(|| PathBuf::from(format!("{case}-{}", chosen.scan)), Path::to_owned);
    fs::create_dir_all(&folder).map_err(|source| local("make the folder", &folder, source))?;
    let mut fetched = FetchedBundle {
        case: case.clone(),
        scan: chosen.scan.clone(),
        folder,
        came: 0,
        kept: 0,
        bytes: 0,
        logged: chosen.logged.is_some(),
    };
    for (name, sha256) in &chosen.sums {
        one(run, &chosen, &mut fetched, name, Some(sha256)).await?;
    }
    // No sums name the signature. Of a bundle that was read back it is the one that was there then, or none.
    let signature = chosen.exhibit(case, SIGNATURE).map(|exhibit| exhibit.sha256);
    if signature.is_some() || chosen.logged.is_none() {
        one(run, &chosen, &mut fetched, SIGNATURE, signature.as_ref()).await?;
    }
    // Last, as in the bucket: a folder that has it is whole.
    one(run, &chosen, &mut fetched, SUMS, Some(&digest(&chosen.list))).await?;
    Ok(fetched)
}

fn local(what: &'static str, path: &Path, source: io::Error) -> FetchError {
    FetchError::Local { what, path: path.to_owned(), source }
}

/// Brings one file. Without a digest to compare with it is the signature, which need not be there.
async fn one(
    run: &Run,
    chosen: &Chosen,
    fetched: &mut FetchedBundle,
    name: &str,
    expected: Option<&Sha256>,
) -> Result<(), FetchError> {
    let path = fetched.folder.join(name);
    if let Some(there) = digest_of(&path)? {
        let same = match expected {
            Some(expected) => *expected == there.1,
            None => true,
        };
        if !same {
            return Err(FetchError::Taken { path });
        }
        fetched.kept += 1;
        fetched.bytes += there.0;
        return Ok(());
    }
    let part = fetched.folder.join(format!("{name}.part"));
    match fs::remove_file(&part) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => {
            return Err(local("remove what an ended run left at", &part, error));
        }
        _ => {}
    }
    let key = format!("{}{name}", bundle_prefix(&fetched.case, &fetched.scan));
    // What was read back has a size: a larger object is another, and need not come here to be known for that.
    let most = match (chosen.exhibit(&fetched.case, name), expected) {
        (Some(exhibit), _) => exhibit.size,
        (None, Some(_)) => u64::MAX,
        (None, None) => SUMS_LIMIT,
    };
    let read = run.cloud.store.download(&key, Some(&part), most).await;
    let read = read.map_err(|source| chosen.not_read(name, source))?;
    let Some(read) = read else {
        return match expected {
            None => Ok(()),
            Some(_) => {
                let faults = vec![format!("{name} is missing")];
                Err(chosen.blame(BundleError::Faulty { scan: chosen.scan.clone(), faults }))
            }
        };
    };
    if let Some(expected) = expected
        && *expected != read.sha256
    {
        // Nobody is to take it for what it says it is.
        fs::remove_file(&part).map_err(|source| local("remove", &part, source))?;
        return Err(chosen.differs(name, read.sha256));
    }
    // A link fails where somebody made a file of that name meanwhile. Some file systems have none.
    match fs::hard_link(&part, &path) {
        Ok(()) => fs::remove_file(&part).map_err(|source| local("remove", &part, source))?,
        Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {
            return Err(FetchError::Taken { path });
        }
        Err(_) => fs::rename(&part, &path).map_err(|source| local("name", &path, source))?,
    }
    fetched.came += 1;
    fetched.bytes += read.size;
    Ok(())
}

/// The size and digest of a file; none where there is none.
///
/// # Errors
/// When it can not be read.
pub fn digest_of(path: &Path) -> Result<Option<(u64, Sha256)>, FetchError> {
    let mut file = match fs::File::open(path) {
        Ok(file) => file,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(source) => return Err(local("read", path, source)),
    };
    let mut hasher = Hasher(sha2::Sha256::new());
    let size = io::copy(&mut file, &mut hasher).map_err(|source| local("read", path, source))?;
    Ok(Some((size, Sha256(hasher.0.finalize().into()))))
}

/// Digests what is written to it.
struct Hasher(sha2::Sha256);

impl io::Write for Hasher {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.0.update(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}
