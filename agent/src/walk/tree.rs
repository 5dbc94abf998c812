//! A view's entries, one after the other in the order of their raw path bytes.
//!
//! Purpose: list and open what lies below a root directory, confined to it. Touches the view by
//! descriptor only, one component at a time: no path of the evidence is ever resolved by the kernel.
//! Never follows a link, never leaves the file system, never opens anything but regular files and
//! directories, and holds a bounded number of descriptors however deep the tree is.

use std::{
    cmp::Reverse,
    collections::{BinaryHeap, HashSet},
    ffi::CString,
    mem::MaybeUninit,
    os::fd::{AsFd, BorrowedFd, OwnedFd},
    rc::Rc,
};

use rustix::{
    fs::{AtFlags, FileType, Mode, OFlags, RawDir, ResolveFlags, Statx, StatxFlags},
    io::Errno,
};

/// Longer paths are not entered: a record must hold its path, even escaped, within its size limit.
const MAX_PATH: usize = 32 << 10;
/// A directory with more names is read up to here; the rest is a gap.
const MAX_NAMES: usize = 20_000_000;
/// Directories whose descriptors stay open: the innermost ones…
const OPEN_NEAR: usize = 128;
/// …and every so many-th above them, from which the others are opened again on the way back.
const OPEN_EVERY: usize = 64;

const CONFINED: ResolveFlags = ResolveFlags::BENEATH
    .union(ResolveFlags::NO_SYMLINKS)
    .union(ResolveFlags::NO_MAGICLINKS)
    .union(ResolveFlags::NO_XDEV);

/// An entry of the view.
#[derive(Debug)]
pub(crate) struct Entry {
    /// Absolute from the root, raw bytes.
    pub path: Vec<u8>,
    pub stat: Statx,
    /// Where a symbolic link points, as stored.
    pub target: Option<Vec<u8>>,
    /// The opened entry (regular files and directories), or why it could not be opened.
    pub opened: Opened,
}

/// What opening an entry gave.
#[derive(Debug)]
pub(crate) enum Opened {
    /// Open for reading.
    Open(OwnedFd),
    /// A kind that is never opened.
    Never,
    /// Something is mounted here.
    MountPoint,
    /// The system refused.
    Failed(Errno),
}

/// What the tree came upon.
#[derive(Debug)]
pub(crate) enum Step {
    Entry(Box<Entry>),
    /// This directory was not entered or not read to its end.
    NotEntered {
        path: Vec<u8>,
        why: NotEntered,
    },
}

/// Why a directory was not entered, or a name not looked at.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum NotEntered {
    /// Below the depth limit.
    TooDeep(u32),
    /// Its path is longer than a record can hold.
    LongPath,
    /// The system refused to open it or to read all of it.
    Failed(Errno),
    /// It has more names than are read.
    TooManyNames,
    /// It was entered before, by another name.
    Twice,
}

/// The walk over one view.
#[derive(Debug)]
pub(crate) struct Tree {
    root: OwnedFd,
    frames: Vec<Frame>,
    /// The path of the innermost frame, without a trailing slash.
    path: Vec<u8>,
    depth_limit: u32,
    protect_access_times: bool,
    /// Entries whose access times may have moved, since they belong to others.
    pub access_times_at_risk: u64,
    /// Links whose access times were seen to move: readlink(2) has no flag that would keep them.
    pub link_times_moved: u64,
    begun: bool,
    /// The directories entered so far: a hostile file system can link one into many others, and a walk
    /// that entered it each time would never end.
    entered: HashSet<(u64, u64)>,
}

#[derive(Debug)]
struct Frame {
    /// Closed where the tree is deep and this level is far above.
    fd: Option<Rc<OwnedFd>>,
    identity: (u64, u64),
    names: Listing,
    /// Directories among the names already passed, each with a slash: their contents come where
    /// `name/` sorts, which may be behind `name-x` or `name.x`.
    awaiting: BinaryHeap<Reverse<Vec<u8>>>,
    /// Length of the path of this directory.
    path_len: usize,
}

/// The names of a directory in order, in one allocation.
#[derive(Debug, Default)]
struct Listing {
    bytes: Vec<u8>,
    /// Offset, length, kind; sorted by name, next to come last.
    entries: Vec<(u32, u16, FileType)>,
}

impl Listing {
    fn name(&self, (offset, length, _): (u32, u16, FileType)) -> &[u8] {
        &self.bytes[offset as usize..offset as usize + usize::from(length)]
    }

    fn read(directory: BorrowedFd<'_>) -> (Self, Option<NotEntered>) {
        let mut listing = Self::default();
        let mut problem = None;
        let mut buffer = vec![MaybeUninit::uninit(); 64 << 10];
        let mut names = RawDir::new(directory, &mut buffer);
        while let Some(entry) = names.next() {
            let entry = match entry {
                Ok(entry) => entry,
                Err(errno) => {
                    problem = Some(NotEntered::Failed(errno));
                    break;
                }
            };
            let name = entry.file_name().to_bytes();
            if matches!(name, b"" | b"." | b"..") || name.contains(&b'/') {
                continue;
            }
            let (Ok(offset), Ok(length)) =
                (u32::try_from(listing.bytes.len()), u16::try_from(name.len()))
            else {
                problem = Some(NotEntered::TooManyNames);
                break;
            };
            if listing.entries.len() == MAX_NAMES {
                problem = Some(NotEntered::TooManyNames);
                break;
            }
            listing.bytes.extend_from_slice(name);
            listing.entries.push((offset, length, entry.file_type()));
        }
        let mut entries = std::mem::take(&mut listing.entries);
        entries.sort_unstable_by(|a, b| listing.name(*b).cmp(listing.name(*a)));
        listing.entries = entries;
        (listing, problem)
    }
}

impl Tree {
    /// Walks below `root`.
    pub(crate) fn new(root: OwnedFd, depth_limit: u32, protect_access_times: bool) -> Self {
        Self {
            root,
            frames: Vec::new(),
            path: Vec::new(),
            depth_limit,
            protect_access_times,
            access_times_at_risk: 0,
            link_times_moved: 0,
            begun: false,
            entered: HashSet::new(),
        }
    }

    /// The next entry or obstacle; `None` at the end. An error is the root's: nothing can be walked.
    pub(crate) fn next(&mut self) -> Result<Option<Step>, Errno> {
        if !self.begun {
            self.begun = true;
            return self.begin().map(Some);
        }
        loop {
            let Some(frame) = self.frames.last_mut() else { return Ok(None) };
            let name = frame.names.entries.last().copied();
            let descend = match (frame.awaiting.peek(), name) {
                (None, _) => false,
                (Some(_), None) => true,
                (Some(Reverse(directory)), Some(name)) => {
                    directory.as_slice() < frame.names.name(name)
                }
            };
            if descend {
                let Some(Reverse(mut name)) = frame.awaiting.pop() else { continue };
                name.pop();
                let path = self.child_path(&name);
                if let Some(why) = self.descend(&name) {
                    return Ok(Some(Step::NotEntered { path, why }));
                }
                continue;
            }
            let Some(entry) = frame.names.entries.pop() else {
                self.ascend();
                continue;
            };
            let name = frame.names.name(entry).to_vec();
            let path = self.child_path(&name);
            return Ok(Some(match self.look(&name, entry.2) {
                Ok(found) => Step::Entry(Box::new(Entry { path, ..found })),
                Err(errno) => Step::NotEntered { path, why: NotEntered::Failed(errno) },
            }));
        }
    }

    /// Records the root and reads its names.
    fn begin(&mut self) -> Result<Step, Errno> {
        let stat = stat_fd(self.root.as_fd())?;
        let (fd, at_risk) = self.open(self.root.as_fd(), c".", OFlags::DIRECTORY)?;
        self.access_times_at_risk += u64::from(at_risk);
        let (names, problem) = Listing::read(fd.as_fd());
        let opened =
            rustix::io::fcntl_dupfd_cloexec(&fd, 0).map_or_else(Opened::Failed, Opened::Open);
        let identity = identity(&stat);
        self.entered.insert(identity);
        self.frames.push(Frame {
            fd: Some(Rc::new(fd)),
            identity,
            names,
            awaiting: BinaryHeap::new(),
            path_len: 0,
        });
        if let Some(why) = problem {
            return Ok(Step::NotEntered { path: b"/".to_vec(), why });
        }
        Ok(Step::Entry(Box::new(Entry { path: b"/".to_vec(), stat, target: None, opened })))
    }

    fn child_path(&self, name: &[u8]) -> Vec<u8> {
        [self.path.as_slice(), b"/", name].concat()
    }

    /// Stats and, where its kind allows, opens a name of the innermost directory.
    fn look(&mut self, name: &[u8], listed: FileType) -> Result<Entry, Errno> {
        let name = CString::new(name).map_err(|_| Errno::INVAL)?;
        let directory = self.current()?;
        let mut kind = listed;
        let mut stat = None;
        if !matches!(listed, FileType::RegularFile | FileType::Directory) {
            let found = stat_at(directory.as_fd(), &name)?;
            kind = FileType::from_raw_mode(found.stx_mode.into());
            stat = Some(found);
        }
        let opened = match kind {
            FileType::RegularFile => self.open(directory.as_fd(), &name, OFlags::empty()),
            FileType::Directory => self.open(directory.as_fd(), &name, OFlags::DIRECTORY),
            _ => {
                let stat = stat.ok_or(Errno::INVAL)?;
                let target = (kind == FileType::Symlink)
                    .then(|| self.read_link(directory.as_fd(), &name, &stat))
                    .transpose()?;
                return Ok(Entry { path: Vec::new(), stat, target, opened: Opened::Never });
            }
        };
        let (stat, opened) = match opened {
            Ok((fd, at_risk)) => {
                self.access_times_at_risk += u64::from(at_risk);
                let stat = stat_fd(fd.as_fd())?;
                let same = FileType::from_raw_mode(stat.stx_mode.into()) == kind;
                if !same && matches!(listed, FileType::RegularFile | FileType::Directory) {
                    // The listing's kind is a hint that evidence can forge; the inode's counts.
                    return self.look(name.as_bytes(), FileType::Unknown);
                }
                // Between the stat and the opening something else has taken the name.
                (stat, if same { Opened::Open(fd) } else { Opened::Failed(Errno::STALE) })
            }
            Err(Errno::NOTDIR) if listed == FileType::Directory => {
                return self.look(name.as_bytes(), FileType::Unknown);
            }
            Err(Errno::LOOP | Errno::NXIO) if listed == FileType::RegularFile => {
                return self.look(name.as_bytes(), FileType::Unknown);
            }
            Err(Errno::XDEV) => (stat_at(directory.as_fd(), &name)?, Opened::MountPoint),
            Err(errno) => (stat_at(directory.as_fd(), &name)?, Opened::Failed(errno)),
        };
        if kind == FileType::Directory
            && matches!(opened, Opened::Open(_))
            && let Some(frame) = self.frames.last_mut()
        {
            frame.awaiting.push(Reverse([name.as_bytes(), b"/"].concat()));
        }
        Ok(Entry { path: Vec::new(), stat, target: None, opened })
    }

    /// Where a link points, as stored.
    fn read_link(
        &mut self,
        directory: BorrowedFd<'_>,
        name: &std::ffi::CStr,
        before: &Statx,
    ) -> Result<Vec<u8>, Errno> {
        let target = rustix::fs::readlinkat(directory, name, Vec::new())?.into_bytes();
        if self.protect_access_times {
            let time = |stat: &Statx| (stat.stx_atime.tv_sec, stat.stx_atime.tv_nsec);
            let after = stat_at(directory, name)?;
            self.link_times_moved += u64::from(time(&after) != time(before));
        }
        Ok(target)
    }

    /// Removes a directory that was just recorded from those to be entered.
    pub(crate) fn do_not_enter(&mut self, path: &[u8]) {
        let name = path.rsplit(|b| *b == b'/').next().unwrap_or(path);
        if let Some(frame) = self.frames.last_mut() {
            frame.awaiting.retain(|Reverse(awaiting)| awaiting.strip_suffix(b"/") != Some(name));
        }
    }

    /// Opens the innermost directory's child and makes it the innermost.
    fn descend(&mut self, name: &[u8]) -> Option<NotEntered> {
        if self.frames.len() >= self.depth_limit as usize {
            return Some(NotEntered::TooDeep(self.depth_limit));
        }
        if self.path.len() + 1 + name.len() > MAX_PATH {
            return Some(NotEntered::LongPath);
        }
        let opened = CString::new(name).map_err(|_| Errno::INVAL).and_then(|name| {
            let directory = self.current()?;
            let (fd, _) = self.open(directory.as_fd(), &name, OFlags::DIRECTORY)?;
            let stat = stat_fd(fd.as_fd())?;
            Ok((fd, identity(&stat)))
        });
        let (fd, identity) = match opened {
            Ok(opened) => opened,
            Err(errno) => return Some(NotEntered::Failed(errno)),
        };
        if !self.entered.insert(identity) {
            return Some(NotEntered::Twice);
        }
        let (names, problem) = Listing::read(fd.as_fd());
        self.path.push(b'/');
        self.path.extend_from_slice(name);
        let path_len = self.path.len();
        self.frames.push(Frame {
            fd: Some(Rc::new(fd)),
            identity,
            names,
            awaiting: BinaryHeap::new(),
            path_len,
        });
        // The level that is now far above gives its descriptor back, unless others are reopened from it.
        if let Some(far) = self.frames.len().checked_sub(OPEN_NEAR + 1)
            && far % OPEN_EVERY != 0
        {
            self.frames[far].fd = None;
        }
        // What was listed is walked all the same.
        problem
    }

    fn ascend(&mut self) {
        self.frames.pop();
        self.path.truncate(self.frames.last().map_or(0, |frame| frame.path_len));
    }

    /// A descriptor of the innermost directory, opened again from above where it was given back.
    fn current(&mut self) -> Result<Rc<OwnedFd>, Errno> {
        let top = self.frames.len().checked_sub(1).ok_or(Errno::INVAL)?;
        if self.frames[top].fd.is_none() {
            let open = self.frames[..top].iter().rposition(|frame| frame.fd.is_some());
            for level in open.ok_or(Errno::BADF)?..top {
                let name = self.path[self.frames[level].path_len..self.frames[level + 1].path_len]
                    .strip_prefix(b"/")
                    .and_then(|name| CString::new(name).ok())
                    .ok_or(Errno::INVAL)?;
                let parent = Rc::clone(self.frames[level].fd.as_ref().ok_or(Errno::BADF)?);
                let (fd, _) = self.open(parent.as_fd(), &name, OFlags::DIRECTORY)?;
                if identity(&stat_fd(fd.as_fd())?) != self.frames[level + 1].identity {
                    return Err(Errno::STALE);
                }
                self.frames[level + 1].fd = Some(Rc::new(fd));
            }
        }
        self.frames[top].fd.as_ref().map(Rc::clone).ok_or(Errno::BADF)
    }

    /// Opens one name below `directory` for reading; true where that may move its access time.
    fn open(
        &self,
        directory: BorrowedFd<'_>,
        name: &std::ffi::CStr,
        extra: OFlags,
    ) -> Result<(OwnedFd, bool), Errno> {
        let base = OFlags::RDONLY
            | OFlags::CLOEXEC
            | OFlags::NOFOLLOW
            | OFlags::NONBLOCK
            | OFlags::NOCTTY
            | extra;
        if self.protect_access_times {
            match open_confined(directory, name, base | OFlags::NOATIME) {
                // Only the owner and root may ask for it (open(2)).
                Err(Errno::PERM) => {}
                opened => return opened.map(|fd| (fd, false)),
            }
        }
        open_confined(directory, name, base).map(|fd| (fd, self.protect_access_times))
    }
}

fn open_confined(
    directory: BorrowedFd<'_>,
    name: &std::ffi::CStr,
    flags: OFlags,
) -> Result<OwnedFd, Errno> {
    for _ in 0..8 {
        match rustix::fs::openat2(directory, name, flags, Mode::empty(), CONFINED) {
            // A rename elsewhere can make the kernel ask for another try (openat2(2)).
            Err(Errno::AGAIN | Errno::INTR) => {}
            opened => return opened,
        }
    }
    Err(Errno::AGAIN)
}

fn identity(stat: &Statx) -> (u64, u64) {
    (u64::from(stat.stx_dev_major) << 32 | u64::from(stat.stx_dev_minor), stat.stx_ino)
}

const WANTED: StatxFlags = StatxFlags::BASIC_STATS.union(StatxFlags::BTIME);

fn stat_fd(fd: BorrowedFd<'_>) -> Result<Statx, Errno> {
    rustix::fs::statx(fd, c"", AtFlags::EMPTY_PATH, WANTED)
}

fn stat_at(directory: BorrowedFd<'_>, name: &std::ffi::CStr) -> Result<Statx, Errno> {
    let flags = AtFlags::SYMLINK_NOFOLLOW | AtFlags::NO_AUTOMOUNT;
    rustix::fs::statx(directory, name, flags, WANTED)
}

#[cfg(test)]
mod tests {
    use std::{fs, os::unix::fs::symlink, path::Path};

    use super::*;

    fn walk(folder: &Path, depth: u32) -> Vec<(String, Option<NotEntered>)> {
        let root = OwnedFd::from(fs::File::open(folder).unwrap());
        let mut tree = Tree::new(root, depth, true);
        let mut seen = Vec::new();
        while let Some(step) = tree.next().unwrap() {
            seen.push(match step {
                Step::Entry(entry) => (String::from_utf8(entry.path).unwrap(), None),
                Step::NotEntered { path, why } => (String::from_utf8(path).unwrap(), Some(why)),
            });
        }
        seen
    }

    #[test]
    fn entries_come_in_the_order_of_their_raw_paths() {
        let folder = tempfile::tempdir().unwrap();
        for path in ["a/x", "a-b/y", "a.txt", "a/b/c/d", "Z", "a b/z", "é/1"] {
            let path = folder.path().join(path);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(path, "").unwrap();
        }
        let seen: Vec<_> = walk(folder.path(), 100).into_iter().map(|(path, _)| path).collect();
        let mut sorted = seen.clone();
        sorted.sort_unstable_by(|a, b| a.as_bytes().cmp(b.as_bytes()));
        assert_eq!(seen, sorted);
        assert_eq!(seen.len(), 1 + 7 + 6);
    }

    #[test]
    fn links_are_recorded_and_not_followed() {
        let folder = tempfile::tempdir().unwrap();
        symlink("/etc", folder.path().join("out")).unwrap();
        symlink(".", folder.path().join("loop")).unwrap();
        symlink("../../..", folder.path().join("up")).unwrap();
        let seen: Vec<_> = walk(folder.path(), 100).into_iter().map(|(path, _)| path).collect();
        assert_eq!(seen, ["/", "/loop", "/out", "/up"]);
    }

    #[test]
    fn a_deep_tree_is_walked_with_few_descriptors_and_back() {
        const DEPTH: usize = 1000;
        let folder = tempfile::tempdir().unwrap();
        let mut directory = OwnedFd::from(fs::File::open(folder.path()).unwrap());
        for _ in 0..DEPTH {
            rustix::fs::mkdirat(&directory, "d", Mode::from(0o700)).unwrap();
            // A name behind the directory's, so that every level is visited again on the way back.
            let flags = OFlags::CREATE | OFlags::WRONLY;
            rustix::fs::openat(&directory, "z", flags, Mode::from(0o600)).unwrap();
            let flags = OFlags::DIRECTORY | OFlags::RDONLY;
            directory = rustix::fs::openat(&directory, "d", flags, Mode::empty()).unwrap();
        }
        let root = OwnedFd::from(fs::File::open(folder.path()).unwrap());
        let mut tree = Tree::new(root, 10_000, true);
        let (mut count, mut most_open) = (0, 0);
        while let Some(step) = tree.next().unwrap() {
            assert!(matches!(step, Step::Entry(_)), "{step:?}");
            count += 1;
            most_open = most_open.max(tree.frames.iter().filter(|f| f.fd.is_some()).count());
        }
        assert_eq!(count, 1 + 2 * DEPTH);
        assert!(most_open <= OPEN_NEAR + DEPTH / OPEN_EVERY + 2 * OPEN_EVERY, "{most_open}");
    }

    #[test]
    fn the_depth_limit_names_the_directory_it_stopped_at() {
        let folder = tempfile::tempdir().unwrap();
        fs::create_dir_all(folder.path().join("a/b/c")).unwrap();
        let seen = walk(folder.path(), 2);
        assert_eq!(seen.last().unwrap(), &("/a/b".to_owned(), Some(NotEntered::TooDeep(2))));
    }
}
