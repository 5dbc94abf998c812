//! Mounts that are attached nowhere.
//!
//! Purpose: the one call that mounts. Touches what it is told to mount. What it makes is a descriptor, in
//! no process's namespace but by that descriptor, and the kernel takes it down when the last one closes,
//! SIGKILL included. Never allows devices, programs or privileges on it.

use std::{
    fs::File,
    io::Read as _,
    os::fd::{AsFd as _, BorrowedFd, OwnedFd},
};

use cleanroom_contract::printable;
use rustix::{
    io::Errno,
    mount::{
        FsMountFlags, FsOpenFlags, MountAttrFlags, fsconfig_create, fsconfig_set_flag,
        fsconfig_set_string, fsmount, fsopen,
    },
};

/// Why the kernel did not mount, and what it said meanwhile.
#[derive(Debug)]
pub(super) struct Refused {
    pub errno: Errno,
    /// Empty, or in parentheses after a blank.
    pub log: String,
}

/// Mounts `source` and answers with the root of it, which is a path only. `ro` among the options makes
/// it read-only in both senses, the file system's and the mount's.
pub(super) fn mount(kind: &str, source: &str, options: &[&str]) -> Result<OwnedFd, Refused> {
    let context = fsopen(kind, FsOpenFlags::FSOPEN_CLOEXEC)
        .map_err(|errno| Refused { errno, log: String::new() })?;
    let configure = || {
        fsconfig_set_string(&context, "source", source)?;
        for option in options {
            match option.split_once('=') {
                Some((key, value)) => fsconfig_set_string(&context, key, value)?,
                None => fsconfig_set_flag(&context, *option)?,
            }
        }
        fsconfig_create(&context)?;
        let mut attributes = MountAttrFlags::MOUNT_ATTR_NOSUID
            | MountAttrFlags::MOUNT_ATTR_NODEV
            | MountAttrFlags::MOUNT_ATTR_NOEXEC
            | MountAttrFlags::MOUNT_ATTR_NOATIME;
        attributes.set(MountAttrFlags::MOUNT_ATTR_RDONLY, options.contains(&"ro"));
        fsmount(&context, FsMountFlags::FSMOUNT_CLOEXEC, attributes)
    };
    configure().map_err(|errno| Refused { errno, log: kernel_log(&context) })
}

/// The mount's root directory, opened for reading: the mount's own descriptor is a path only.
pub(super) fn readable(mount: BorrowedFd<'_>) -> Result<OwnedFd, Errno> {
    use rustix::fs::{Mode, OFlags, openat};
    openat(mount, c".", OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC, Mode::empty())
}

/// What the kernel said while mounting, one message a read (fsopen(2)).
fn kernel_log(context: &OwnedFd) -> String {
    let Ok(context) = context.as_fd().try_clone_to_owned() else { return String::new() };
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
