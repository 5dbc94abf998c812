//! The rules and lists that a work order names.
//!
//! Purpose: fetch each from the bucket and take it only where its bytes are those that were meant; what does not come is
//! a gap, and the scan goes on without it. Touches the bucket, for reading, and the scan's own folder. Never takes a file of
//! another digest.

use std::{
    fs,
    path::{Path, PathBuf},
    time::{Duration, Instant},
};

use cleanroom_agent_aws::Store;
use cleanroom_contract::{Gap, GapKind, OrderedFile, Sha256, VersionOne, printable};
use sha2::Digest as _;

use crate::rules::{pack, source};

/// The largest file that is fetched: a compiled pack.
const MAX_FILE: usize = 1 << 30;

/// How long files may take to come while the bucket can not be reached, and the pause between two tries: a network that is
/// away for minutes costs no rule.
const PATIENCE: Duration = Duration::from_secs(300);
const PAUSE: Duration = Duration::from_secs(2);

/// What came of the files of one kind.
#[derive(Debug, Default)]
pub(super) struct Fetched {
    /// As the scan's arguments.
    pub(super) paths: Vec<PathBuf>,
    /// What did not come.
    pub(super) gaps: Vec<Gap>,
}

/// Fetches files into a folder of their own. Those that are there already, whole, are not fetched again.
pub(super) async fn fetch(store: &Store, files: &[OrderedFile], folder: &Path) -> Fetched {
    let mut fetched = Fetched::default();
    let until = Instant::now() + PATIENCE;
    for (number, file) in files.iter().enumerate() {
        // Two of one name are two files; a rule's namespace is its file's name.
        let path = folder.join(format!("{number:04}")).join(&file.name);
        match fetch_one(store, file, &path, until).await {
            Ok(()) => fetched.paths.push(path),
            Err(why) => fetched.gaps.push(missing(file, &why)),
        }
    }
    fetched
}

async fn fetch_one(
    store: &Store,
    file: &OrderedFile,
    path: &Path,
    until: Instant,
) -> Result<(), String> {
    let is_it = |bytes: &[u8]| Sha256(sha2::Sha256::digest(bytes).into()) == file.sha256;
    if fs::read(path).is_ok_and(|bytes| is_it(&bytes)) {
        return Ok(());
    }
    let bytes = loop {
        match store.get(&file.key, MAX_FILE).await {
            Err(error) if error.is_transient() && Instant::now() < until => {
                tokio::time::sleep(PAUSE).await;
            }
            ended => break ended.map_err(|error| error.to_string())?,
        }
    };
    let bytes = bytes.ok_or_else(|| format!("there is no {}", printable(&file.key)))?;
    if !is_it(&bytes) {
        let found = Sha256(sha2::Sha256::digest(&bytes).into());
        return Err(format!("its SHA-256 is {found}, and {} was ordered", file.sha256));
    }
    let write = || {
        fs::create_dir_all(path.parent().unwrap_or(path))?;
        fs::write(path, &bytes)
    };
    write().map_err(|error| format!("keep it on the disk: {error}"))
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
        ([pack], true) => fetched.paths.extend(with_digest(pack)),
        _ => {
            fetched.paths = sources;
            for pack in packs {
                let name = pack.file_name().unwrap_or_default().to_string_lossy().into_owned();
                let named = files.iter().find(|file| file.name == name);
                let why = "a compiled pack stands alone; compile it together with the other rules";
                fetched.gaps.extend(named.map(|file| missing(file, why)));
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
