//! The overlay: evidence that takes writes, which go elsewhere.
//!
//! Purpose: a process that serves one file to the kernel over FUSE, the bytes of a volume, so that a loop
//! device on it can be mounted and its journal replayed. Touches the descriptors it is sent: the evidence,
//! read-only; the scratch file; `/dev/fuse`. Never parses what it passes on, never writes to the evidence,
//! and never answers a read with anything but what lies there: what cannot be had is an error.
//!
//! It ends when the kernel takes the file system down, or with the supervisor, whose death kills it.
//! The mount is attached to no path, so that then nothing is left.

mod store;
mod wire;

use std::{fs::File, io, os::fd::OwnedFd, thread};

use serde::{Deserialize, Serialize};

pub(crate) use store::Standing;
use store::Store;
use wire::{Connection, Outbox, Request};

use crate::protocol::{Channel, ProtocolError};

/// Requests that are answered at once: the kernel reads ahead while it copies.
const WORKERS: usize = 2;

/// Supervisor → overlay, once; with the descriptors of `/dev/fuse`, the evidence, the scratch file and
/// the ledger, in this order.
#[derive(Clone, Copy, Debug, Serialize, Deserialize)]
pub(crate) struct OverlayOrder {
    /// First byte on the evidence.
    pub offset: u64,
    /// Bytes of the volume.
    pub length: u64,
    /// Bytes that may be written to scratch.
    pub bound: u64,
}

/// What can keep an overlay from serving.
#[derive(Debug, thiserror::Error)]
pub(crate) enum OverlayError {
    #[error(transparent)]
    Protocol(#[from] ProtocolError),
    #[error("answer the kernel")]
    Fuse(#[source] io::Error),
}

/// Serves until the kernel is done with it.
pub(crate) fn run(mut channel: Channel) -> Result<(), OverlayError> {
    let Some(order) = channel.receive::<OverlayOrder>()? else { return Ok(()) };
    let mut file = || channel.descriptor().map(|descriptor: OwnedFd| File::from(descriptor));
    let (fuse, image, scratch, ledger) = (file()?, file()?, file()?, file()?);
    let store = Store::new((image, order.offset, order.length), (scratch, order.bound), ledger);
    let served = thread::scope(|scope| {
        let workers: Vec<_> = (0..WORKERS).map(|_| scope.spawn(|| serve(&fuse, &store))).collect();
        workers.into_iter().map(|worker| worker.join().unwrap_or(Ok(()))).collect::<Vec<_>>()
    });
    served.into_iter().collect::<io::Result<()>>().map_err(OverlayError::Fuse)
}

/// Answers one request after the other.
fn serve(fuse: &File, store: &Store) -> io::Result<()> {
    let (mut inbox, mut out) = (Connection::new(fuse), Outbox::new());
    while let Some((header, request)) = inbox.next()? {
        let answer = match request {
            Request::Init(init) => out.initialised(header, init),
            Request::Attributes => out.attributes(header, store.length()),
            Request::Open => out.opened(header),
            Request::Read { at, length } => {
                let length = store.length().saturating_sub(at).min(length.into());
                out.read(header, length, |into| store.read(at, into))
            }
            Request::Write { at, data } => out.written(header, store.write(at, data), data.len()),
            Request::Nothing => out.done(header),
            Request::Silent => continue,
            Request::Unknown => out.error(header, nix::libc::ENOSYS),
        };
        wire::answer(fuse, answer)?;
    }
    Ok(())
}
