//! How far a scan is, on the room's own disk.
//!
//! Purpose: an agent that was killed at any moment goes on where it stopped, and does nothing twice. Touches the folder that
//! `--state` names: a lock, and a folder for each scan with `state.json`, the rules, and the bundle. Each state is written
//! whole, by rename. Never says that something is done before it is.

use std::{
    collections::BTreeMap,
    fs::{self, File},
    io::{self, Write as _},
    path::{Path, PathBuf},
};

use cleanroom_contract::{ScanId, Sha256, VersionOne};
use rustix::fs::{FlockOperation, flock};
use serde::{Deserialize, Serialize};

use crate::publish::Uploads;

/// The file that says how far a scan is.
const STATE: &str = "state.json";

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
    /// How many times it was begun; the bundle's folder has this number.
    pub(super) begun: u32,
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
        let folder = root.join(scan.as_str());
        fs::create_dir_all(&folder)?;
        let new = State {
            v: VersionOne,
            scan: scan.clone(),
            order,
            attempt: 0,
            begun: 0,
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

    /// Counts one more beginning, in a new folder; what an earlier one left is given up.
    pub(super) fn begin(&mut self) -> io::Result<()> {
        if self.state.begun > 0 {
            // It holds less than the scan that begins will find.
            drop(fs::remove_dir_all(self.bundle()));
        }
        self.state.begun += 1;
        self.save()
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
        self.folder.join(format!("bundle-{}", self.state.begun))
    }

    /// A folder for what was fetched.
    pub(super) fn folder(&self, name: &str) -> PathBuf {
        self.folder.join(name)
    }

    /// Writes the state, whole or not at all, so that it outlives the machine.
    fn save(&self) -> io::Result<()> {
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
        assert!(!root.path().join(SCAN).join("bundle-1").exists());
        assert!(Ledger::open(root.path(), &scan, Sha256([8; 32])).is_err(), "another order");
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
