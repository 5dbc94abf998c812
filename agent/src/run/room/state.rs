//! How far a scan is, on the room's own disk.
//!
//! Purpose: an agent that was killed at any moment goes on where it stopped, and does nothing twice. Touches the folder that
//! `--state` names: a lock, a reserve of space, and a folder for each scan with `state.json`, the rules, and the bundle. Each
//! state is written whole, by rename, also on a disk that a scan has filled. Never says that something is done before it is,
//! and never deletes the most that any beginning of a scan recorded, before there is a bundle.

use std::{
    collections::BTreeMap,
    fs::{self, File},
    io::{self, Write as _},
    path::{Path, PathBuf},
};

use cleanroom_contract::{ScanId, Sha256, VersionOne};
use rustix::fs::{FallocateFlags, FlockOperation, flock};
use serde::{Deserialize, Serialize};

use crate::{
    bundle::{
        seal::{DRAFT, SPOOL},
        spool,
    },
    publish::Uploads,
};

/// The file that says how far a scan is.
const STATE: &str = "state.json";
/// The file that holds space for it.
const RESERVE: &str = "reserve";
/// The bytes that it holds.
const RESERVED: u64 = 1 << 20;

/// How far a scan is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(super) enum Phase {
    /// Not sealed yet.
    Scanning,
    /// The bundle is whole, on this disk.
    Sealed,
    /// There is nothing more to publish: the bundle is in the bucket, or there will be none.
    Published,
    /// People are being told: whether they were is not known.
    Telling,
    /// People were told, or can not be.
    Told,
    /// Nothing is left to do.
    Done,
}

/// `state.json`.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(super) struct State {
    v: VersionOne,
    pub(super) scan: ScanId,
    /// Of the work order.
    order: Sha256,
    /// How many times the agent has taken this scan up.
    pub(super) attempt: u32,
    /// How many times it was begun; each beginning has a folder of this number.
    pub(super) begun: u32,
    /// Why it is not begun again: what was recorded is all there will be.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(super) cut: Option<String>,
    /// The beginning that becomes the bundle, where it is not the last.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    chosen: Option<u32>,
    pub(super) phase: Phase,
    /// Why there is no bundle.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(super) failed: Option<String>,
    /// Uploads in parts that were begun, by the file's name.
    #[serde(default)]
    uploads: BTreeMap<String, String>,
}

/// A scan's folder and its state.
#[derive(Debug)]
pub(super) struct Ledger {
    folder: PathBuf,
    pub(super) state: State,
}

impl Ledger {
    /// Takes up the scan of an order, for the first time or again.
    pub(super) fn open(root: &Path, scan: &ScanId, order: Sha256) -> io::Result<Self> {
        keep_reserve(root);
        let folder = root.join(scan.as_str());
        fs::create_dir_all(&folder)?;
        let new = State {
            v: VersionOne,
            scan: scan.clone(),
            order,
            attempt: 0,
            begun: 0,
            cut: None,
            chosen: None,
            phase: Phase::Scanning,
            failed: None,
            uploads: BTreeMap::new(),
        };
        let state = match fs::read(folder.join(STATE)) {
            Ok(bytes) => serde_json::from_slice(&bytes)?,
            Err(error) if error.kind() == io::ErrorKind::NotFound => new,
            Err(error) => return Err(error),
        };
        if state.order != order {
            return Err(io::Error::other(format!(
                "{} holds the scan of another order of the same name",
                folder.display()
            )));
        }
        Ok(Self { folder, state })
    }

    /// Counts one more time that the scan is taken up.
    pub(super) fn take_up(&mut self) -> io::Result<()> {
        self.state.attempt += 1;
        self.save()
    }

    /// Counts one more beginning, in a new folder. Of what earlier ones left the most is kept: nobody knows yet whether
    /// this one comes as far.
    pub(super) fn begin(&mut self) -> io::Result<()> {
        self.keep(self.richest());
        self.state.begun += 1;
        self.save()
    }

    /// Writes down that the scan goes no further, and why.
    pub(super) fn cut(&mut self, why: &str) -> io::Result<()> {
        self.state.cut = Some(why.to_owned());
        self.save()
    }

    /// Takes what the richest beginning recorded for the bundle. Whether there is any.
    pub(super) fn choose(&mut self) -> io::Result<bool> {
        let richest = self.richest();
        self.state.chosen = richest.or(self.state.chosen);
        self.save()?;
        self.keep(richest);
        Ok(richest.is_some())
    }

    /// Writes down that the bundle is sealed: what else was recorded is of no use any more.
    pub(super) fn sealed(&mut self) -> io::Result<()> {
        self.reach(Phase::Sealed)?;
        self.keep(Some(self.state.chosen.unwrap_or(self.state.begun)));
        Ok(())
    }

    /// The beginning that recorded the most; of equals the last.
    fn richest(&self) -> Option<u32> {
        let recorded = |number: &u32| {
            let spool = self.numbered(*number).join(SPOOL);
            // Without its draft a spool can not be sealed.
            let has_draft = fs::exists(spool.join(DRAFT)).unwrap_or(false);
            has_draft.then(|| spool::count(&spool).unwrap_or(0))
        };
        let all = (1..=self.state.begun).filter_map(|n| recorded(&n).map(|count| (count, n)));
        all.max().map(|(_, number)| number)
    }

    /// Deletes all beginnings but one; none, where there is none to keep.
    fn keep(&self, kept: Option<u32>) {
        let Some(kept) = kept else { return };
        for number in (1..=self.state.begun).filter(|number| *number != kept) {
            // It is not there, or is in nobody's way.
            drop(fs::remove_dir_all(self.numbered(number)));
        }
    }

    /// Writes down that this much is done.
    pub(super) fn reach(&mut self, phase: Phase) -> io::Result<()> {
        self.state.phase = phase;
        self.save()
    }

    /// Writes down that there will be no bundle.
    pub(super) fn fail(&mut self, reason: &str) -> io::Result<()> {
        self.state.failed = Some(reason.to_owned());
        self.reach(Phase::Published)
    }

    /// The bundle's folder.
    pub(super) fn bundle(&self) -> PathBuf {
        self.numbered(self.state.chosen.unwrap_or(self.state.begun))
    }

    /// The folder of a beginning.
    fn numbered(&self, number: u32) -> PathBuf {
        self.folder.join(format!("bundle-{number}"))
    }

    /// A folder for what was fetched.
    pub(super) fn folder(&self, name: &str) -> PathBuf {
        self.folder.join(name)
    }

    /// Writes the state. On a full disk the reserve makes room for it.
    fn save(&self) -> io::Result<()> {
        match self.write() {
            Err(error) if is_full(&error) => {
                drop(fs::remove_file(self.folder.with_file_name(RESERVE)));
                self.write()
            }
            written => written,
        }
    }

    /// Writes the state, whole or not at all, so that it outlives the machine.
    fn write(&self) -> io::Result<()> {
        let new = self.folder.join("state.json.new");
        let mut file = File::create(&new)?;
        file.write_all(&serde_json::to_vec_pretty(&self.state)?)?;
        file.sync_all()?;
        fs::rename(&new, self.folder.join(STATE))?;
        File::open(&self.folder)?.sync_all()
    }
}

impl Uploads for Ledger {
    fn begun(&self, name: &str) -> Option<String> {
        self.state.uploads.get(name).cloned()
    }

    fn note(&mut self, name: &str, id: &str) {
        if self.state.uploads.get(name).is_some_and(|known| known == id) {
            return;
        }
        self.state.uploads.insert(name.to_owned(), id.to_owned());
        // Without it the next start sends the file from its beginning.
        drop(self.save());
    }
}

/// Whether there was no space.
pub(super) fn is_full(error: &io::Error) -> bool {
    matches!(error.kind(), io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded)
}

/// Sets space aside for the state, while there is some.
fn keep_reserve(root: &Path) {
    let path = root.join(RESERVE);
    if fs::metadata(&path).is_ok_and(|file| file.len() == RESERVED) {
        return;
    }
    let reserve = || {
        fs::create_dir_all(root)?;
        let file = File::create(&path)?;
        rustix::fs::fallocate(&file, FallocateFlags::empty(), 0, RESERVED)?;
        Ok::<_, io::Error>(())
    };
    // The disk is full already, or knows no such thing: then writing the state may fail, and says so.
    if reserve().is_err() {
        drop(fs::remove_file(&path));
    }
}

/// Makes the folder and takes it for this process alone, until it ends.
pub(super) fn lock(root: &Path) -> io::Result<File> {
    fs::create_dir_all(root)?;
    let file = File::options().write(true).create(true).truncate(false).open(root.join("lock"))?;
    flock(&file, FlockOperation::NonBlockingLockExclusive).map_err(|errno| {
        if errno == rustix::io::Errno::WOULDBLOCK {
            return io::Error::other("another agent works in it");
        }
        errno.into()
    })?;
    Ok(file)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::protocol::{Line, LineKind};

    const SCAN: &str = "20260102T030405Z-0123abcd";

    #[test]
    fn what_was_reached_is_there_after_a_kill() {
        let root = tempfile::tempdir().unwrap();
        let scan = SCAN.parse().unwrap();
        let order = Sha256([7; 32]);
        let mut ledger = Ledger::open(root.path(), &scan, order).unwrap();
        ledger.take_up().unwrap();
        ledger.begin().unwrap();
        fs::create_dir(ledger.bundle()).unwrap();
        ledger.note("files.jsonl.zst", "upload-1");
        ledger.reach(Phase::Sealed).unwrap();
        // What a kill leaves of the next state changes nothing.
        fs::write(root.path().join(SCAN).join("state.json.new"), "{\"v\":1").unwrap();

        let mut again = Ledger::open(root.path(), &scan, order).unwrap();
        assert_eq!((again.state.phase, again.state.attempt), (Phase::Sealed, 1));
        assert_eq!(again.begun("files.jsonl.zst").as_deref(), Some("upload-1"));
        assert!(again.bundle().ends_with("bundle-1"));
        again.begin().unwrap();
        assert!(again.bundle().ends_with("bundle-2"));
        assert!(Ledger::open(root.path(), &scan, Sha256([8; 32])).is_err(), "another order");
    }

    /// What a beginning recorded.
    fn record(ledger: &Ledger, count: u64) {
        let spool = ledger.bundle().join(SPOOL);
        fs::create_dir_all(&spool).unwrap();
        fs::write(spool.join(DRAFT), "{}").unwrap();
        let mut records = spool::Spool::create(&spool).unwrap();
        for seq in 0..count {
            let json = b"{}\n".to_vec();
            let line = Line { kind: LineKind::File, seq, sub: 0, json };
            records.append(0, &line).unwrap();
        }
        records.flush().unwrap();
    }

    #[test]
    fn the_most_that_was_recorded_is_kept_whatever_begins_after_it() {
        let root = tempfile::tempdir().unwrap();
        let mut ledger =
            Ledger::open(root.path(), &SCAN.parse().unwrap(), Sha256([7; 32])).unwrap();
        assert!(!ledger.choose().unwrap(), "nothing was begun");
        for recorded in [3, 9, 2, 0] {
            ledger.begin().unwrap();
            record(&ledger, recorded);
        }
        let left =
            |ledger: &Ledger| (1..=4).filter(|n| ledger.numbered(*n).exists()).collect::<Vec<_>>();
        assert_eq!(left(&ledger), [2, 4]);
        ledger.cut("it was killed").unwrap();
        assert!(ledger.choose().unwrap());
        assert!(ledger.bundle().ends_with("bundle-2"));
        let again = Ledger::open(root.path(), &SCAN.parse().unwrap(), Sha256([7; 32])).unwrap();
        assert!(again.bundle().ends_with("bundle-2"), "also for the next start");
        assert_eq!(again.state.cut.as_deref(), Some("it was killed"));
        ledger.sealed().unwrap();
        assert_eq!(left(&ledger), [2]);
    }

    #[test]
    fn two_agents_do_not_share_a_folder() {
        let root = tempfile::tempdir().unwrap();
        let held = lock(root.path()).unwrap();
        assert!(lock(root.path()).unwrap_err().to_string().contains("another agent"));
        drop(held);
        lock(root.path()).unwrap();
    }
}
