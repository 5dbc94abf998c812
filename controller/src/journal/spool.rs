//! Events that the store has not taken, kept on this machine until it does.
//!
//! Touches its folder only: one file an event, created under a temporary name and renamed, readable by its owner
//! only. Never fails its caller: where the disk does not take an event either, the run still holds it.

use std::{
    fs,
    io::Write as _,
    path::{Path, PathBuf},
};

use cleanroom_contract::CaseId;

use super::event::CustodyEvent;

/// A folder of events, or none.
#[derive(Clone, Debug, Default)]
pub struct Spool {
    folder: Option<PathBuf>,
}

impl Spool {
    /// Keeps events below `folder`, which is made when it is needed.
    #[must_use]
    pub fn at(folder: Option<PathBuf>) -> Self {
        Self { folder }
    }

    fn case_folder(&self, case: &CaseId) -> Option<PathBuf> {
        // A case id holds no separator, and does not begin with a dot.
        self.folder.as_ref().map(|f| f.join(case.as_str()))
    }

    /// Keeps an event.
    pub(super) fn keep(&self, event: &CustodyEvent) {
        let Some(folder) = self.case_folder(&event.case) else { return };
        let _ = store(&folder, &file_name(event), &super::encode(event));
    }

    /// Keeps an object of evidence that the store did not take, and says where.
    #[must_use]
    pub fn keep_object(&self, case: &CaseId, name: &str, bytes: &[u8]) -> Option<PathBuf> {
        let folder = self.case_folder(case)?.join("record");
        store(&folder, name, bytes).ok()?;
        Some(folder.join(name))
    }

    /// Objects of evidence that wait, by name.
    #[must_use]
    pub fn objects(&self, case: &CaseId) -> Vec<(String, Vec<u8>)> {
        let Some(folder) = self.case_folder(case) else { return Vec::new() };
        let mut objects = files(&folder.join("record"));
        // What an ended run had not renamed yet is no object.
        objects.retain(|(name, _)| !name.starts_with('.'));
        objects.sort();
        objects
    }

    /// Forgets an object that the store has taken.
    pub fn discard_object(&self, case: &CaseId, name: &str) {
        if let Some(folder) = self.case_folder(case) {
            let _ = fs::remove_file(folder.join("record").join(name));
            let _ = fs::remove_dir(folder.join("record"));
            let _ = fs::remove_dir(folder);
        }
    }

    /// Forgets an event that the store has taken.
    pub(super) fn discard(&self, event: &CustodyEvent) {
        if let Some(folder) = self.case_folder(&event.case) {
            let _ = fs::remove_file(folder.join(file_name(event)));
            let _ = fs::remove_dir(folder);
        }
    }

    /// The events that wait, in the order in which they happened. What is no event of this case is left alone.
    pub(super) fn load(&self, case: &CaseId) -> Vec<CustodyEvent> {
        let Some(folder) = self.case_folder(case) else { return Vec::new() };
        let event = |(name, bytes): (String, Vec<u8>)| {
            let event: CustodyEvent = serde_json::from_slice(&bytes).ok()?;
            // Another name is that of a file that an ended run had not renamed yet.
            (event.case == *case && name == file_name(&event)).then_some(event)
        };
        let mut events: Vec<_> = files(&folder).into_iter().filter_map(event).collect();
        let number = |event: &CustodyEvent| {
            event.nonce.rsplit('-').next().and_then(|n| n.parse::<u64>().ok()).unwrap_or(0)
        };
        events.sort_by_key(|event| (event.at, number(event)));
        events
    }

    /// The cases of which something waits.
    #[must_use]
    pub fn cases(&self) -> Vec<CaseId> {
        let Some(folder) = &self.folder else { return Vec::new() };
        let Ok(entries) = fs::read_dir(folder) else { return Vec::new() };
        let names = entries.filter_map(|e| e.ok()?.file_name().into_string().ok());
        let mut cases: Vec<CaseId> = names.filter_map(|n| n.parse().ok()).collect();
        cases.sort();
        cases
    }
}

/// The file of an event. A nonce is ours, hexadecimal digits and a counter; one that was read from a file is that file's name.
fn file_name(event: &CustodyEvent) -> String {
    format!("{}.json", event.nonce)
}

fn store(folder: &Path, name: &str, bytes: &[u8]) -> std::io::Result<()> {
    use std::os::unix::fs::DirBuilderExt as _;
    fs::DirBuilder::new().recursive(true).mode(0o700).create(folder)?;
    let mut file = tempfile::NamedTempFile::new_in(folder)?;
    file.write_all(bytes)?;
    file.as_file().sync_all()?;
    file.persist(folder.join(name)).map_err(|error| error.error)?;
    Ok(())
}

/// Names and contents of a folder's files, at most 64 MiB each.
fn files(folder: &Path) -> Vec<(String, Vec<u8>)> {
    let Ok(entries) = fs::read_dir(folder) else { return Vec::new() };
    entries
        .filter_map(|entry| {
            let entry = entry.ok()?;
            let metadata = entry.metadata().ok()?;
            let fits = metadata.is_file() && metadata.len() <= 64 << 20;
            let name = entry.file_name().into_string().ok()?;
            fits.then(|| Some((name, fs::read(entry.path()).ok()?)))?
        })
        .collect()
}
