//! Layers: a device that shows evidence and takes writes, none of which reach the evidence.
//!
//! Purpose: what a file system is replayed on. Touches the device mapper where the kernel has it, else FUSE
//! and a process of ours, a loop device and a file without a name. All of it goes with its last user,
//! SIGKILL included. Never writes to the evidence, never decides what is mounted.

use std::{
    fs::File,
    io,
    os::fd::{AsFd as _, AsRawFd as _, BorrowedFd},
};

use cleanroom_contract::ReplayMeans;
use rustix::fs::MemfdFlags;

use super::{
    mapper::{self, Snapshot},
    mount,
    scratch::Scratch,
    sys::{self, Access, Loop},
};
use crate::{
    overlay::{OverlayOrder, Standing},
    supervise::{
        error_chain,
        role::{Peer, Role},
    },
};

/// How far the kernel reads ahead through an overlay: each request is a message to another process, which
/// may as well be a long one.
const READ_AHEAD: u32 = 1 << 20;

/// A part of the evidence, and the read-only loop device that shows it.
#[derive(Debug)]
pub(super) struct Lower<'e> {
    pub backing: BorrowedFd<'e>,
    pub offset: u64,
    pub length: u64,
    pub sector: u32,
    pub device: &'e Loop,
}

/// What stands between a mounted file system and the evidence.
#[derive(Debug)]
pub(crate) struct Layer {
    kind: Kind,
    /// Bytes that may be written.
    bound: u64,
}

#[derive(Debug)]
enum Kind {
    Snapshot(Snapshot),
    Overlay { peer: Box<Peer>, ledger: File },
}

/// A device that can be written to: its path, and an open descriptor that keeps it until it is mounted.
#[derive(Debug)]
pub(super) struct Upper {
    pub path: String,
    pub device: File,
}

impl Layer {
    /// Puts a layer over a part of the evidence, by the first means that there is.
    pub(super) fn over(lower: &Lower<'_>, scratch: &Scratch) -> Result<(Self, Upper), String> {
        let room = || {
            scratch.take(lower.length).map_err(|error| {
                format!("no scratch below {}: {error}", scratch.folder().display())
            })
        };
        let (file, bound) = room()?;
        let snapshot = match snapshot(lower, &file, bound) {
            Ok((kind, upper)) => return Ok((Self { kind, bound }, upper)),
            Err(error) => error,
        };
        match overlay(lower, &file, bound) {
            Ok((kind, upper)) => Ok((Self { kind, bound }, upper)),
            Err(overlay) => Err(format!("no device mapper ({snapshot}), no overlay ({overlay})")),
        }
    }

    pub(crate) fn means(&self) -> ReplayMeans {
        match self.kind {
            Kind::Snapshot(_) => ReplayMeans::DeviceMapper,
            Kind::Overlay { .. } => ReplayMeans::Overlay,
        }
    }

    /// Why what is seen through this layer is not all that the replay wrote; `None` where it is.
    pub(crate) fn trouble(&mut self) -> Option<String> {
        let bound = self.bound;
        match &mut self.kind {
            Kind::Snapshot(snapshot) => match snapshot.status() {
                Ok(status) => mapper::trouble(&status).map(|trouble| {
                    format!("{trouble}: more was written than the {bound} bytes of scratch take")
                }),
                Err(error) => Some(format!("the snapshot's state is unknown: {error}")),
            },
            Kind::Overlay { peer, ledger } => match Standing::read(ledger) {
                Ok(Standing { refused: 0, failed: 0 }) => {
                    let ended = peer.child.try_wait().ok().flatten();
                    ended.map(|how| format!("the overlay ended before its time: {how}"))
                }
                Ok(Standing { refused: 0, failed }) => {
                    Some(format!("{failed} reads through the overlay failed"))
                }
                Ok(Standing { refused, .. }) => Some(format!(
                    "{refused} writes were refused, since {bound} bytes of scratch were not enough"
                )),
                Err(error) => Some(format!("the overlay's state is unknown: {error}")),
            },
        }
    }

    /// Waits until it is gone, which it is soon after its last user.
    pub(crate) async fn end(self) {
        if let Kind::Overlay { peer, .. } = self.kind {
            peer.end().await;
        }
    }
}

/// By the kernel's device mapper.
fn snapshot(lower: &Lower<'_>, file: &File, bound: u64) -> io::Result<(Kind, Upper)> {
    let scratch = sys::attach_loop(file.as_fd(), (0, bound), 512, Access::Writable)?;
    let mut snapshot = Snapshot::over(lower.device, lower.length, &scratch)?;
    let device = snapshot.device.take().ok_or_else(|| io::Error::other("it was not opened"))?;
    let upper = Upper { path: snapshot.path.clone(), device };
    Ok((Kind::Snapshot(snapshot), upper))
}

/// By a process that serves the bytes over FUSE, and a loop device on what it serves.
fn overlay(lower: &Lower<'_>, scratch: &File, bound: u64) -> io::Result<(Kind, Upper)> {
    let fuse = File::options().read(true).write(true).open("/dev/fuse")?;
    let ledger = File::from(rustix::fs::memfd_create("ledger", MemfdFlags::CLOEXEC)?);
    let mut peer = Peer::start(Role::Overlay)?;
    let order = OverlayOrder { offset: lower.offset, length: lower.length, bound };
    let descriptors = [fuse.as_fd(), lower.backing, scratch.as_fd(), ledger.as_fd()];
    peer.channel()
        .send(&order, &descriptors)
        .map_err(|error| io::Error::other(error_chain(&error)))?;
    let device = format!("fd={}", fuse.as_raw_fd());
    let user = format!("user_id={}", rustix::process::geteuid().as_raw());
    let group = format!("group_id={}", rustix::process::getegid().as_raw());
    // The root of this file system is a regular file.
    let options = [device.as_str(), "rootmode=100600", &user, &group];
    let mounted = mount::mount("fuse", "cleanroom", &options)
        .map_err(|refused| io::Error::from(refused.errno))?;
    // From here on the overlay alone holds its end: where it dies, the kernel knows at once.
    drop(fuse);
    // The mount's own descriptor is a path only.
    let path = format!("/proc/self/fd/{}", mounted.as_raw_fd());
    let shown = File::options().read(true).write(true).open(path)?;
    // Asks for the length, which the kernel does not know before.
    shown.metadata()?;
    let part = (0, lower.length);
    let device = sys::attach_loop(shown.as_fd(), part, lower.sector, Access::WritableDirect)?;
    // It is as right without, only slower.
    drop(sys::read_ahead(device.device.as_fd(), READ_AHEAD));
    let upper = Upper { path: device.path, device: device.device };
    Ok((Kind::Overlay { peer: Box::new(peer), ledger }, upper))
}
