//! Views: a folder or a file system of the evidence as a directory that nothing can write through.
//!
//! Purpose: the only place that mounts. Touches loop devices and detached mounts. A mount made here is
//! never attached to any path: it is a descriptor, in no process's namespace but by that descriptor,
//! and the kernel takes it down when the last one closes, SIGKILL included. Never mounts writable,
//! never replays a journal, never parses a byte of evidence.

use std::{
    fs::File,
    io::{self, Read as _},
    os::{
        fd::{AsFd, BorrowedFd, OwnedFd},
        unix::fs::{FileTypeExt as _, OpenOptionsExt as _},
    },
    path::{Path, PathBuf},
};

use cleanroom_contract::printable;
use rustix::{
    io::Errno,
    mount::{
        FsMountFlags, FsOpenFlags, MountAttrFlags, OpenTreeFlags, fsconfig_create,
        fsconfig_set_flag, fsconfig_set_string, fsmount, fsopen, open_tree,
    },
};

use super::{
    probe::{ContentKind, Part},
    sys,
};

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
    /// Why the journal's changes are missing from what is seen; found out by mounting.
    pub unreplayed: Option<String>,
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
            let root = readable(mount.as_fd()).map_err(|errno| failed(errno.into()))?;
            Ok(View {
                root,
                options: ["ro", "noatime", "noexec", "nodev", "nosuid"].map(String::from).to_vec(),
                protect_access_times: false,
                unreplayed: None,
            })
        }
        // Without the privilege, or on a kernel before 5.2, each file is opened with O_NOATIME.
        Err(Errno::PERM | Errno::NOSYS | Errno::INVAL) => Ok(View {
            root: folder.try_clone().map_err(failed)?,
            options: vec!["O_NOATIME where allowed".to_owned()],
            protect_access_times: true,
            unreplayed: None,
        }),
        Err(errno) => Err(failed(errno.into())),
    }
}

/// A file system in an image or on a device.
pub(crate) fn file_system(
    backing: BorrowedFd<'_>,
    part: &Part,
    sector: u32,
) -> Result<View, ViewError> {
    let Some(kind) = part.content.kind.mount_type() else {
        let kind = part.content.kind.as_str().to_owned();
        let source = io::Error::from_raw_os_error(nix::libc::ENODEV);
        return Err(ViewError::Mount { kind, log: String::new(), source });
    };
    let device = sys::attach_loop(backing, (part.offset, part.length), sector)
        .map_err(|source| ViewError::Loop { source })?;
    let mount = |options: &[&str]| mount(kind, &device.path, options);
    match part.content.kind {
        ContentKind::Ext2 | ContentKind::Ext3 | ContentKind::Ext4 => {
            // The superblock may ask the kernel to panic on the first error it sees.
            mount(&["noload", "errors=continue"])
        }
        ContentKind::Xfs => match mount(&["nouuid"]) {
            // The log is dirty, and the device does not let it be replayed.
            Err(ViewError::Mount { source, .. })
                if source.raw_os_error() == Some(nix::libc::EROFS) =>
            {
                let mut view = mount(&["norecovery", "nouuid"])?;
                view.unreplayed = Some("the log is dirty".to_owned());
                Ok(view)
            }
            // A dirty log can also read as corruption; without it the rest may still be seen.
            Err(ViewError::Mount { source, .. })
                if source.raw_os_error() == Some(nix::libc::EUCLEAN) =>
            {
                let mut view = mount(&["norecovery", "nouuid"])?;
                view.unreplayed = Some("the log cannot be read".to_owned());
                Ok(view)
            }
            mounted => mounted,
        },
        ContentKind::Btrfs => {
            // The kernel remembers devices by file-system UUID: a copy of one scanned before would be
            // taken for it. A kernel without the call says so when mounting.
            drop(sys::forget_btrfs_devices());
            mount(&["rescue=nologreplay", "subvolid=5"])
        }
        _ => mount(&[]),
    }
}

/// Mounts `device` with `ro` and `options`, attached nowhere.
fn mount(kind: &str, device: &str, options: &[&str]) -> Result<View, ViewError> {
    let failed = |errno: Errno, log: String| ViewError::Mount {
        kind: kind.to_owned(),
        log,
        source: errno.into(),
    };
    let context =
        fsopen(kind, FsOpenFlags::FSOPEN_CLOEXEC).map_err(|e| failed(e, String::new()))?;
    let configure = || {
        fsconfig_set_string(&context, "source", device)?;
        fsconfig_set_flag(&context, "ro")?;
        for option in options {
            match option.split_once('=') {
                Some((key, value)) => fsconfig_set_string(&context, key, value)?,
                None => fsconfig_set_flag(&context, *option)?,
            }
        }
        fsconfig_create(&context)?;
        let attributes = MountAttrFlags::MOUNT_ATTR_RDONLY
            | MountAttrFlags::MOUNT_ATTR_NOSUID
            | MountAttrFlags::MOUNT_ATTR_NODEV
            | MountAttrFlags::MOUNT_ATTR_NOEXEC
            | MountAttrFlags::MOUNT_ATTR_NOATIME;
        fsmount(&context, FsMountFlags::FSMOUNT_CLOEXEC, attributes)
    };
    let mount = configure().map_err(|errno| failed(errno, kernel_log(&context)))?;
    let root = readable(mount.as_fd()).map_err(|errno| failed(errno, kernel_log(&context)))?;
    let fixed = ["ro", "nosuid", "nodev", "noexec", "noatime"];
    let options = fixed.iter().chain(options).map(|option| (*option).to_owned()).collect();
    Ok(View { root, options, protect_access_times: false, unreplayed: None })
}

/// The mount's root, opened for reading: the mount's own descriptor is a path only.
fn readable(mount: BorrowedFd<'_>) -> Result<OwnedFd, Errno> {
    use rustix::fs::{Mode, OFlags, openat};
    openat(mount, c".", OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC, Mode::empty())
}

/// What the kernel said while mounting, one message a read (fsopen(2)).
fn kernel_log(context: &OwnedFd) -> String {
    let Ok(context) = context.try_clone() else { return String::new() };
    let mut context = File::from(context);
    let mut log = String::new();
    let mut message = [0; 1024];
    while let Ok(n @ 1..) = context.read(&mut message) {
        let text = String::from_utf8_lossy(&message[..n]);
        log.push_str(if log.is_empty() { " (" } else { "; " });
        log.push_str(&printable(text.trim_end().trim_start_matches(['e', 'w', 'i', ' '])));
        if log.len() > 4096 {
            break;
        }
    }
    if !log.is_empty() {
        log.push(')');
    }
    log
}
