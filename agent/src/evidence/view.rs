//! Views: a folder or a file system of the evidence as a directory that nothing can write through.
//!
//! Purpose: decide how evidence is mounted. Touches loop devices and detached mounts, which are never
//! attached to any path ([`mod@mount`]). Never mounts writable, never parses a byte of evidence.
//!
//! A dirty journal holds what was written last. The kernel replays it, and the writes of that go to a
//! [`Layer`], not to the evidence. So a hostile journal reaches the kernel's code for replaying, as a hostile
//! file system reaches the rest of its driver: that is what a clean room is for.

use std::{
    fs::File,
    io,
    os::{
        fd::{AsFd, BorrowedFd, OwnedFd},
        unix::fs::{FileTypeExt as _, OpenOptionsExt as _},
    },
    path::{Path, PathBuf},
};

use cleanroom_contract::Replay;
use rustix::{
    io::Errno,
    mount::{OpenTreeFlags, open_tree},
};

use super::{
    layer::{Layer, Lower},
    mount::{self, Refused},
    probe::{ContentKind, Part},
    scratch::Scratch,
    sys::{self, Access},
};
use crate::supervise::error_chain;

/// Why a view could not be made.
#[derive(Debug, thiserror::Error)]
pub(crate) enum ViewError {
    #[error("open {path}")]
    Open { path: PathBuf, source: io::Error },
    #[error("{path} is neither a folder, a file nor a block device")]
    Kind { path: PathBuf },
    #[error("attach a loop device")]
    Loop { source: io::Error },
    #[error("mount the {kind} file system{log}")]
    Mount { kind: String, log: String, source: io::Error },
    #[error("view {path} read-only")]
    Folder { path: PathBuf, source: io::Error },
}

impl ViewError {
    /// What a person can do about it.
    pub(crate) fn advice(&self) -> Option<String> {
        let (Self::Loop { source } | Self::Mount { source, .. }) = self else { return None };
        match source.raw_os_error() {
            Some(nix::libc::EPERM | nix::libc::EACCES) => Some(
                "mounting needs root: run as root, or copy the files out and scan the folder"
                    .into(),
            ),
            Some(nix::libc::ENODEV) => {
                Some("this kernel has no driver for it: scan it on a machine that does".into())
            }
            Some(nix::libc::ENOENT) => Some("this machine offers no loop devices".into()),
            _ if matches!(self, Self::Mount { .. }) => Some(
                "the kernel's log (dmesg) may say more: check a copy with the file system's own tools, \
                 mend that copy or extract its files, and scan them"
                    .into(),
            ),
            _ => None,
        }
    }
}

/// Evidence as given: opened once, read-only, and never again by name.
#[derive(Debug)]
pub(crate) enum Evidence {
    /// A directory.
    Folder(OwnedFd),
    /// A regular file, with its size.
    Image(File, u64),
    /// A block device, with its size.
    Device(File, u64),
}

impl Evidence {
    /// Opens what `path` names. Symbolic links are followed: the operator gave the path.
    pub(crate) fn open(path: &Path) -> Result<Self, ViewError> {
        let failed = |source| ViewError::Open { path: path.to_owned(), source };
        let metadata = std::fs::metadata(path).map_err(failed)?;
        let kind = metadata.file_type();
        if kind.is_dir() {
            return Ok(Self::Folder(File::open(path).map_err(failed)?.into()));
        }
        if !kind.is_file() && !kind.is_block_device() {
            return Err(ViewError::Kind { path: path.to_owned() });
        }
        let open = |flags| File::options().read(true).custom_flags(flags).open(path);
        let noatime = nix::libc::O_NOATIME | nix::libc::O_NONBLOCK;
        let file = open(noatime).or_else(|_| open(nix::libc::O_NONBLOCK)).map_err(failed)?;
        if kind.is_block_device() {
            let size = sys::device_size(file.as_fd()).map_err(failed)?;
            return Ok(Self::Device(file, size));
        }
        Ok(Self::Image(file, metadata.len()))
    }

    /// Makes the kernel refuse every write to it, where it is a device.
    pub(crate) fn set_read_only(&self) -> io::Result<()> {
        match self {
            Self::Device(device, _) => sys::set_read_only(device.as_fd()),
            Self::Folder(_) | Self::Image(..) => Ok(()),
        }
    }

    /// `folder`, `image` or `device`.
    pub(crate) fn kind(&self) -> &'static str {
        match self {
            Self::Folder(_) => "folder",
            Self::Image(..) => "image",
            Self::Device(..) => "device",
        }
    }
}

/// A directory to walk, and how it was made.
#[derive(Debug)]
pub(crate) struct View {
    pub root: OwnedFd,
    /// The mount options, or how the folder is seen.
    pub options: Vec<String>,
    /// True where reading would move access times unless each descriptor says otherwise.
    pub protect_access_times: bool,
    /// The journal was dirty and is not replayed: its changes are missing from what is seen.
    pub unreplayed: Option<Unreplayed>,
    /// The journal was dirty and is replayed.
    pub replayed: Option<Replay>,
    /// What took the replay's writes. After the root, so that it is dropped last.
    pub layer: Option<Layer>,
}

impl View {
    fn new(root: OwnedFd, options: Vec<String>) -> Self {
        Self {
            root,
            options,
            protect_access_times: false,
            unreplayed: None,
            replayed: None,
            layer: None,
        }
    }
}

/// A journal that is dirty and not replayed.
#[derive(Debug)]
pub(crate) struct Unreplayed {
    /// Why it is taken for dirty.
    pub why: String,
    /// Why it could not be replayed; absent where nobody wanted it.
    pub why_not: Option<String>,
}

/// A folder as it is: through a private read-only mount where we may, else directly.
pub(crate) fn folder(folder: &OwnedFd, path: &Path) -> Result<View, ViewError> {
    let failed = |source: io::Error| ViewError::Folder { path: path.to_owned(), source };
    let flags = OpenTreeFlags::OPEN_TREE_CLONE
        | OpenTreeFlags::OPEN_TREE_CLOEXEC
        | OpenTreeFlags::AT_EMPTY_PATH
        | OpenTreeFlags::AT_RECURSIVE;
    match open_tree(folder, c"", flags) {
        Ok(mount) => {
            sys::lock_mount(&mount).map_err(failed)?;
            let root = mount::readable(mount.as_fd()).map_err(|errno| failed(errno.into()))?;
            let options = ["ro", "noatime", "noexec", "nodev", "nosuid"].map(String::from);
            Ok(View::new(root, options.to_vec()))
        }
        // Without the privilege, or on a kernel before 5.2, each file is opened with O_NOATIME.
        Err(Errno::PERM | Errno::NOSYS | Errno::INVAL) => {
            let root = folder.try_clone().map_err(failed)?;
            let mut view = View::new(root, vec!["O_NOATIME where allowed".to_owned()]);
            view.protect_access_times = true;
            Ok(view)
        }
        Err(errno) => Err(failed(errno.into())),
    }
}

/// A file system in an image or on a device. Where its journal is dirty, it is replayed into `scratch`,
/// none of it reaching the evidence; without scratch, or where that fails, what is stored is seen.
pub(crate) fn file_system(
    backing: BorrowedFd<'_>,
    part: &Part,
    sector: u32,
    scratch: Option<&Scratch>,
) -> Result<View, ViewError> {
    let Some(kind) = part.content.kind.mount_type() else {
        let kind = part.content.kind.as_str().to_owned();
        let source = io::Error::from_raw_os_error(nix::libc::ENODEV);
        return Err(ViewError::Mount { kind, log: String::new(), source });
    };
    let attach = || {
        sys::attach_loop(backing, (part.offset, part.length), sector, Access::ReadOnly)
            .map_err(|source| ViewError::Loop { source })
    };
    let device = attach()?;
    let options = Options::of(part.content.kind);
    let dirty = match part.content.kind {
        // Its superblock does not tell: mounting does, on a device that cannot be written to.
        ContentKind::Xfs => match mount(kind, &device.path, options.replaying) {
            Err(ViewError::Mount { source, .. }) if is(&source, nix::libc::EROFS) => {
                Some("the log is dirty".to_owned())
            }
            // A dirty log can also read as corruption; without it the rest may still be seen.
            Err(ViewError::Mount { source, .. }) if is(&source, nix::libc::EUCLEAN) => {
                Some("the log cannot be read".to_owned())
            }
            mounted => return mounted,
        },
        _ => part.content.unreplayed.as_ref().map(|unreplayed| unreplayed.reason.clone()),
    };
    let Some(why) = dirty else { return mount(kind, &device.path, options.stored) };
    let mut why_not = None;
    if let Some(scratch) = scratch {
        let length = part.length / 512 * 512;
        let lower = Lower { backing, offset: part.offset, length, sector, device: &device };
        match replay(kind, &lower, &options, scratch) {
            Ok((mut view, layer)) => {
                view.replayed = Some(Replay { reason: why, means: layer.means() });
                view.layer = Some(layer);
                return Ok(view);
            }
            Err(reason) => why_not = Some(reason),
        }
    }
    // Another device: the layer may hold the first a moment longer, which then cannot be mounted.
    let mut view = mount(kind, &attach()?.path, options.stored)?;
    view.unreplayed = Some(Unreplayed { why, why_not });
    Ok(view)
}

fn is(error: &io::Error, errno: i32) -> bool {
    error.raw_os_error() == Some(errno)
}

/// The mount options of a kind of file system, beside those of all.
struct Options {
    /// What is stored is seen as it is.
    stored: &'static [&'static str],
    /// A dirty journal is replayed, if the device can be written to.
    replaying: &'static [&'static str],
}

impl Options {
    fn of(kind: ContentKind) -> Self {
        match kind {
            // The superblock may ask the kernel to panic on the first error it sees.
            ContentKind::Ext2 | ContentKind::Ext3 | ContentKind::Ext4 => {
                Self { stored: &["noload", "errors=continue"], replaying: &["errors=continue"] }
            }
            ContentKind::Xfs => Self { stored: &["norecovery", "nouuid"], replaying: &["nouuid"] },
            ContentKind::Btrfs => {
                Self { stored: &["rescue=nologreplay", "subvolid=5"], replaying: &["subvolid=5"] }
            }
            _ => Self { stored: &[], replaying: &[] },
        }
    }
}

/// Mounts over a layer, so that the kernel replays the journal into scratch. The error says why the
/// replayed state cannot be seen, or not all of it.
fn replay(
    kind: &str,
    lower: &Lower<'_>,
    options: &Options,
    scratch: &Scratch,
) -> Result<(View, Layer), String> {
    let (mut layer, upper) = Layer::over(lower, scratch)?;
    let view = mount(kind, &upper.path, options.replaying)
        .map_err(|error| layer.trouble().unwrap_or_else(|| error_chain(&error)))?;
    // What the replay has left in the cache is written now, where it can still be said that it was lost.
    let synced = upper.device.sync_all();
    match (layer.trouble(), synced) {
        (Some(trouble), _) => Err(trouble),
        (None, Err(error)) => Err(format!("write the replayed blocks: {error}")),
        (None, Ok(())) => Ok((view, layer)),
    }
}

/// Mounts `device` with `ro` and `options`, attached nowhere.
fn mount(kind: &str, device: &str, options: &[&str]) -> Result<View, ViewError> {
    if kind == "btrfs" {
        // The kernel remembers devices by file-system UUID: a copy of one scanned before would be
        // taken for it. A kernel without the call says so when mounting.
        drop(sys::forget_btrfs_devices());
    }
    let failed = |refused: Refused| ViewError::Mount {
        kind: kind.to_owned(),
        log: refused.log,
        source: refused.errno.into(),
    };
    let all: Vec<&str> = ["ro"].iter().chain(options).copied().collect();
    let mount = mount::mount(kind, device, &all).map_err(failed)?;
    let root = mount::readable(mount.as_fd())
        .map_err(|errno| failed(Refused { errno, log: String::new() }))?;
    let fixed = ["ro", "nosuid", "nodev", "noexec", "noatime"];
    let options = fixed.iter().chain(options).map(|option| (*option).to_owned()).collect();
    Ok(View::new(root, options))
}
