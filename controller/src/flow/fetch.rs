//! Brings a bundle here, and compares every byte with its sums on the way.
//!
//! Reads the bucket; writes one folder. Never overwrites a file: what is there and is the same is left, what is there and
//! differs is an error. Files appear under their names only once they are whole.

use std::{
    collections::BTreeMap,
    fs, io,
    path::{Path, PathBuf},
};

use cleanroom_cloud::CloudError;
use cleanroom_contract::{CaseId, Report, ScanId, Sha256, bundle_prefix, printable};
use serde::Serialize;
use sha2::Digest as _;

use super::FlowError;
use crate::{
    case::Run,
    flow::find,
    journal::digest,
    steps::clean_room::bundle::{self, BundleError, SIGNATURE, SUMS, SUMS_LIMIT},
};

/// Why a bundle did not come.
#[derive(Debug, thiserror::Error)]
pub enum FetchError {
    /// There is no such case, or its log can not be read.
    #[error(transparent)]
    Flow(#[from] FlowError),
    /// No scan of the case has published.
    #[error("no scan of {0} has published a bundle yet: status shows how it stands")]
    None(CaseId),
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
    /// A file is not what the sums say.
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

/// The scan that is meant, and its sums.
async fn chosen(
    run: &Run,
    case: &CaseId,
    scan: Option<&ScanId>,
) -> Result<(ScanId, BTreeMap<String, Sha256>, Vec<u8>), FetchError> {
    let store = &*run.cloud.store;
    let scan = match scan {
        Some(scan) => scan.clone(),
        None => {
            let failed = |source| FlowError::Cloud { what: format!("bundles of {case}"), source };
            let all = bundle::published(store, case).await.map_err(failed)?;
            all.into_iter().next_back().ok_or_else(|| FetchError::None(case.clone()))?
        }
    };
    let (sums, list) = bundle::sums(store, case, &scan).await?;
    Ok((scan, sums, list))
}

/// The report of a scan, the newest where none is named; and whether the custody log has its sums.
///
/// # Errors
/// When there is none, or it is not what its sums say.
pub async fn report(
    run: &Run,
    case: &CaseId,
    scan: Option<&ScanId>,
) -> Result<(ScanId, Box<Report>, bool), FetchError> {
    let (scan, sums, list) = chosen(run, case, scan).await?;
    let report = bundle::report(&*run.cloud.store, (case, &scan), &sums).await?;
    let logged = is_logged(run, case, &scan, &list).await?;
    Ok((scan, report, logged))
}

async fn is_logged(
    run: &Run,
    case: &CaseId,
    scan: &ScanId,
    list: &[u8],
) -> Result<bool, FlowError> {
    let events = crate::journal::read(&*run.cloud.store, case).await?;
    let ledger = crate::journal::Ledger::of(events.iter().map(|(event, _)| event));
    let key = format!("{}{SUMS}", bundle_prefix(case, scan));
    let sha256 = digest(list);
    Ok(ledger
        .reports
        .get(scan)
        .is_some_and(|r| r.exhibits.iter().any(|e| e.key == key && e.sha256 == sha256)))
}

/// Brings a bundle into a folder, which is made where it is not there.
///
/// # Errors
/// At the first file that does not come, or is not what the sums say. What came before stays, and the next run goes on.
pub async fn fetch(
    run: &Run,
    case: &CaseId,
    scan: Option<&ScanId>,
    out: Option<&Path>,
) -> Result<FetchedBundle, FetchError> {
    find::case(&*run.cloud.store, &run.caller, case).await?;
    let (scan, sums, list) = chosen(run, case, scan).await?;
    let logged = is_logged(run, case, &scan, &list).await?;
    let folder = out.map_or_else(|| PathBuf::from(format!("{case}-{scan}")), Path::to_owned);
    fs::create_dir_all(&folder).map_err(|source| local("make the folder", &folder, source))?;
    let mut fetched =
        FetchedBundle { case: case.clone(), scan, folder, came: 0, kept: 0, bytes: 0, logged };
    for (name, sha256) in &sums {
        one(run, &mut fetched, name, Some(sha256)).await?;
    }
    one(run, &mut fetched, SIGNATURE, None).await?;
    // Last, as in the bucket: a folder that has it is whole.
    one(run, &mut fetched, SUMS, Some(&digest(&list))).await?;
    Ok(fetched)
}

fn local(what: &'static str, path: &Path, source: io::Error) -> FetchError {
    FetchError::Local { what, path: path.to_owned(), source }
}

/// Brings one file. Without a digest to compare with it is the signature, which need not be there.
async fn one(
    run: &Run,
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
    let most = if expected.is_some() { u64::MAX } else { SUMS_LIMIT };
    let read = run.cloud.store.download(&key, Some(&part), most).await;
    let read = read.map_err(|source| FetchError::Store { name: name.to_owned(), source })?;
    let Some(read) = read else {
        return match expected {
            None => Ok(()),
            Some(_) => {
                let faults = vec![format!("{name} is missing")];
                Err(BundleError::Faulty { scan: fetched.scan.clone(), faults }.into())
            }
        };
    };
    if let Some(expected) = expected
        && *expected != read.sha256
    {
        // Nobody is to take it for what it says it is.
        fs::remove_file(&part).map_err(|source| local("remove", &part, source))?;
        return Err(FetchError::Differs { name: name.to_owned(), found: read.sha256 });
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
