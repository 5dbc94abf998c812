//! Files of several names: read once, recorded under each.
//!
//! Purpose: a library tree can have a third of its bytes under second names, and reading them again
//! finds nothing new. Touches memory only, a bounded amount. Never reuses what was found out about an
//! inode whose size or times differ now, nor anything that was not examined to its end.

use std::collections::HashMap;

use cleanroom_contract::{FileRecord, Timestamp};

use crate::protocol::Facts;

/// Smaller files are read again sooner than they are remembered.
const MIN_SIZE: u64 = 64 << 10;
/// Inodes that are remembered at a time, and names that may wait for one.
const MAX_REMEMBERED: usize = 4096;

/// Device and inode number.
pub(crate) type Inode = (u64, u64);

/// A further name of a file that is being read.
#[derive(Debug)]
pub(crate) struct Twin {
    pub record: Box<FileRecord>,
    pub path: Vec<u8>,
}

/// What says that an inode is as it was.
type Stamp = (u64, Timestamp, Timestamp);

#[derive(Debug)]
enum State {
    /// One name is with an inspector; others wait for its answer.
    Reading(Vec<Twin>),
    Known(Box<Facts>),
}

/// What to do with a file.
#[derive(Debug)]
pub(crate) enum Choice {
    /// Read it. Where there is an inode, its answer is wanted for other names.
    Read(Twin, Option<Inode>),
    /// It waits for the answer about another name.
    Waits,
    /// Known by another name.
    Known(Twin, Box<Facts>),
}

/// The inodes of a volume that have several names.
#[derive(Debug, Default)]
pub(crate) struct Links {
    inodes: HashMap<Inode, (Stamp, State)>,
}

impl Links {
    /// Decides about a file of inode `inode`.
    pub(crate) fn choose(&mut self, inode: Inode, twin: Twin) -> Choice {
        let record = &twin.record;
        if record.links < 2 || record.size < MIN_SIZE {
            return Choice::Read(twin, None);
        }
        let stamp = (record.size, record.mtime, record.ctime);
        let room = self.inodes.len() < MAX_REMEMBERED;
        match self.inodes.get_mut(&inode) {
            None if room => {
                self.inodes.insert(inode, (stamp, State::Reading(Vec::new())));
                Choice::Read(twin, Some(inode))
            }
            Some((as_it_was, State::Reading(twins)))
                if *as_it_was == stamp && twins.len() < MAX_REMEMBERED =>
            {
                twins.push(twin);
                Choice::Waits
            }
            Some((as_it_was, State::Known(facts))) if *as_it_was == stamp => {
                let facts = Facts { seq: record.seq, read: 0, ..(**facts).clone() };
                Choice::Known(twin, Box::new(facts))
            }
            _ => Choice::Read(twin, None),
        }
    }

    /// Takes in what was found out; gives back those who waited for it.
    pub(crate) fn learn(&mut self, inode: Inode, facts: &Facts) -> Vec<Twin> {
        let sure = facts.troubles.is_empty() && !facts.backing_shrank;
        let Some((_, state)) = self.inodes.get_mut(&inode) else { return Vec::new() };
        let known = State::Known(Box::new(facts.clone()));
        let State::Reading(twins) = std::mem::replace(state, known) else { return Vec::new() };
        if !sure {
            self.inodes.remove(&inode);
        }
        twins
    }

    /// Gives up an inode whose answer will not come; gives back those who waited for it.
    pub(crate) fn forget(&mut self, inode: Inode) -> Vec<Twin> {
        match self.inodes.remove(&inode) {
            Some((_, State::Reading(twins))) => twins,
            _ => Vec::new(),
        }
    }
}
