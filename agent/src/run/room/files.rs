//! The rules and lists that a work order names.
//!
//! Purpose: fetch each from the bucket and take it only where its bytes are those that were meant; what does not come, or is
//! no source of rules, is a gap, and the scan goes on without it. Touches the bucket, for reading, and the scan's own folder. Never takes a file of
//! another digest.

use std::{
    fs,
    path::{Path, PathBuf},
};

use cleanroom_agent_aws::Store;
use cleanroom_contract::{Gap, GapKind, OrderedFile, Sha256, VersionOne, printable};
use sha2::Digest as _;

use crate::{
    rules::{pack, source},
    supervise::error_chain,
};

/// The largest file that is fetched: a compiled pack.
const MAX_FILE: usize = 1 << 30;

/// Why a file did not come.
#[derive(Debug)]
pub(super) enum NotFetched {
    /// It may come when it is asked for again.
    Yet(String),
    /// It will not.
    Ever(String),
}

/// What came of the files of one kind.
#[derive(Debug, Default)]
pub(super) struct Fetched {
    /// As the scan's arguments.
    pub(super) paths: Vec<PathBuf>,
    /// What did not come.
    pub(super) gaps: Vec<Gap>,
}

/// Where the file of this number is fetched to. Two of one name are two files; a rule's namespace is its file's name.
pub(super) fn place(folder: &Path, number: usize, file: &OrderedFile) -> PathBuf {
    folder.join(format!("{number:04}")).join(&file.name)
}

/// Fetches a file, unless it is there already, whole.
pub(super) async fn fetch(
    store: &Store,
    file: &OrderedFile,
    path: &Path,
) -> Result<(), NotFetched> {
    use NotFetched::{Ever, Yet};
    let is_it = |bytes: &[u8]| Sha256(sha2::Sha256::digest(bytes).into()) == file.sha256;
    if fs::read(path).is_ok_and(|bytes| is_it(&bytes)) {
        return Ok(());
    }
    let bytes =
        store.get(&file.key, MAX_FILE).await.map_err(|error| match error.is_transient() {
            true => Yet(error.to_string()),
            false => Ever(error.to_string()),
        })?;
    let bytes = bytes.ok_or_else(|| Ever(format!("there is no {}", printable(&file.key))))?;
    if !is_it(&bytes) {
        let found = Sha256(sha2::Sha256::digest(&bytes).into());
        let why = format!("its SHA-256 is {found}, and {} was ordered", file.sha256);
        return Err(Ever(why));
    }
    let write = || {
        fs::create_dir_all(path.parent().unwrap_or(path))?;
        fs::write(path, &bytes)
    };
    write().map_err(|error| Ever(format!("keep it on the disk: {error}")))
}

/// The gap of a file that is not used.
pub(super) fn missing(file: &OrderedFile, why: &str) -> Gap {
    gap(format!("not used: {}: {why}", printable(&file.name)))
}

/// A gap of rules or lists.
pub(super) fn gap(reason: String) -> Gap {
    Gap {
        v: VersionOne,
        kind: GapKind::Rules,
        volume: None,
        path: None,
        reason,
        advice: Some("mend what the order names, and scan again".to_owned()),
        count: 1,
    }
}

/// Rules as the scan takes them: sources, or one compiled pack, which stands alone.
pub(super) fn as_arguments(files: &[OrderedFile], mut fetched: Fetched) -> Fetched {
    let is_pack = |path: &PathBuf| {
        let mut start = [0; pack::MAGIC.len()];
        fs::File::open(path)
            .and_then(|mut file| std::io::Read::read_exact(&mut file, &mut start))
            .is_ok_and(|()| start == *pack::MAGIC)
    };
    let (packs, sources): (Vec<_>, Vec<_>) = fetched.paths.drain(..).partition(is_pack);
    match (packs.as_slice(), sources.is_empty()) {
        ([pack], true) => {
            fetched.paths.extend(with_digest(pack));
            fetched
        }
        _ => {
            fetched.paths = sources;
            for pack in packs {
                let name = pack.file_name().unwrap_or_default().to_string_lossy().into_owned();
                let named = files.iter().find(|file| file.name == name);
                let why = "a compiled pack stands alone; compile it together with the other rules";
                fetched.gaps.extend(named.map(|file| missing(file, why)));
            }
            readable(files, fetched)
        }
    }
}

/// Leaves out the sources that can not even be read as such: one of them would cost all the others.
fn readable(files: &[OrderedFile], mut fetched: Fetched) -> Fetched {
    for path in std::mem::take(&mut fetched.paths) {
        match source::read(std::slice::from_ref(&path)) {
            Ok(_) => fetched.paths.push(path),
            Err(error) => {
                let name = path.file_name().unwrap_or_default().to_string_lossy().into_owned();
                let named = files.iter().find(|file| file.name == name);
                fetched.gaps.extend(named.map(|file| missing(file, &error_chain(&error))));
            }
        }
    }
    fetched
}

/// A pack's argument, by the digest that was checked.
fn with_digest(pack: &Path) -> Option<PathBuf> {
    let bytes = fs::read(pack).ok()?;
    let mut argument = pack.as_os_str().to_owned();
    argument.push(format!("@sha256={}", source::digest(&bytes)));
    Some(argument.into())
}
