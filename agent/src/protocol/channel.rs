//! A channel: frames with descriptors over a Unix stream socket.
//!
//! Purpose: carry the messages. Touches one socket. Never trusts the other side: a frame's length is
//! bounded before anything is allocated for it, descriptors are bounded by what the kernel passes at
//! once, and a frame that does not decode ends the channel.

use std::{
    collections::VecDeque,
    io::{self, IoSlice, IoSliceMut},
    mem::MaybeUninit,
    os::{
        fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd, RawFd},
        unix::net::UnixStream,
    },
};

use rustix::net::{
    RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, SendAncillaryBuffer,
    SendAncillaryMessage, SendFlags,
};
use serde::{Serialize, de::DeserializeOwned};

use super::{MAX_DESCRIPTORS, MAX_FRAME, ProtocolError};

/// What [`Channel::fill`] took in.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Filled {
    /// Bytes; there may be more.
    Some,
    /// Nothing has arrived.
    Nothing,
    /// The other side has closed.
    Closed,
}

/// One end of a conversation.
#[derive(Debug)]
pub(crate) struct Channel {
    peer: &'static str,
    socket: UnixStream,
    /// Room for what arrives; only `consumed..filled` holds what is not yet decoded.
    inbox: Vec<u8>,
    filled: usize,
    consumed: usize,
    descriptors: VecDeque<OwnedFd>,
    /// Whether a send may wait for the other side.
    patient: bool,
}

impl Channel {
    /// Speaks over `socket` to the process called `peer` in errors.
    pub(crate) fn new(socket: UnixStream, peer: &'static str) -> Self {
        let (inbox, descriptors) = (Vec::new(), VecDeque::new());
        Self { peer, socket, inbox, filled: 0, consumed: 0, descriptors, patient: true }
    }

    /// The same, but a send that would have to wait is an error.
    pub(crate) fn impatient(mut self) -> Self {
        self.patient = false;
        self
    }

    fn send_flags(&self) -> SendFlags {
        let mut flags = SendFlags::NOSIGNAL;
        flags.set(SendFlags::DONTWAIT, !self.patient);
        flags
    }

    /// Sends one message with its descriptors, waiting while the other side is behind.
    pub(crate) fn send<T: Serialize>(
        &mut self,
        message: &T,
        descriptors: &[BorrowedFd<'_>],
    ) -> Result<(), ProtocolError> {
        let peer = self.peer;
        let mut frame = vec![0; 4];
        rmp_serde::encode::write_named(&mut frame, message)
            .map_err(|source| ProtocolError::Encode { peer, source })?;
        let length = frame.len() - 4;
        match u32::try_from(length) {
            Ok(short) if length <= MAX_FRAME => frame[..4].copy_from_slice(&short.to_le_bytes()),
            _ => return Err(ProtocolError::TooLong { peer, length }),
        }
        let socket = |source| ProtocolError::Socket { peer, source };
        let sent = if descriptors.is_empty() {
            0
        } else {
            self.send_first(&frame, descriptors).map_err(socket)?
        };
        self.send_rest(&frame[sent..]).map_err(socket)
    }

    fn send_rest(&self, mut rest: &[u8]) -> io::Result<()> {
        while !rest.is_empty() {
            match rustix::net::send(&self.socket, rest, self.send_flags()) {
                Ok(sent) => rest = &rest[sent..],
                Err(rustix::io::Errno::INTR) => {}
                Err(errno) => return Err(errno.into()),
            }
        }
        Ok(())
    }

    /// Sends the head of a frame, to which the descriptors are attached; returns the bytes sent.
    fn send_first(&self, frame: &[u8], descriptors: &[BorrowedFd<'_>]) -> io::Result<usize> {
        let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(MAX_DESCRIPTORS))];
        let mut control = SendAncillaryBuffer::new(&mut space);
        if !control.push(SendAncillaryMessage::ScmRights(descriptors)) {
            return Err(io::Error::other("too many descriptors for one message"));
        }
        loop {
            let sent = rustix::net::sendmsg(
                &self.socket,
                &[IoSlice::new(frame)],
                &mut control,
                self.send_flags(),
            );
            match sent {
                Err(rustix::io::Errno::INTR) => {}
                sent => return Ok(sent?),
            }
        }
    }

    /// Waits for the next message; `None` where the other side has closed.
    pub(crate) fn receive<T: DeserializeOwned>(&mut self) -> Result<Option<T>, ProtocolError> {
        loop {
            if let Some(message) = self.next()? {
                return Ok(Some(message));
            }
            if self.fill(true)? == Filled::Closed {
                return Ok(None);
            }
        }
    }

    /// Decodes a message that has already arrived whole.
    pub(crate) fn next<T: DeserializeOwned>(&mut self) -> Result<Option<T>, ProtocolError> {
        let peer = self.peer;
        let pending = &self.inbox[self.consumed..self.filled];
        let Some((head, rest)) = pending.split_first_chunk::<4>() else { return Ok(None) };
        let length = usize::try_from(u32::from_le_bytes(*head)).unwrap_or(usize::MAX);
        if length > MAX_FRAME {
            return Err(ProtocolError::TooLong { peer, length });
        }
        let Some(frame) = rest.get(..length) else { return Ok(None) };
        let message = rmp_serde::from_slice(frame)
            .map_err(|source| ProtocolError::Decode { peer, source })?;
        self.consumed += 4 + length;
        if self.consumed == self.filled {
            self.filled = 0;
            self.consumed = 0;
        }
        Ok(Some(message))
    }

    /// Takes in what has arrived. With `wait` it blocks until there is something.
    pub(crate) fn fill(&mut self, wait: bool) -> Result<Filled, ProtocolError> {
        const CHUNK: usize = 128 << 10;
        let peer = self.peer;
        if self.consumed > 0 {
            self.inbox.copy_within(self.consumed..self.filled, 0);
            self.filled -= self.consumed;
            self.consumed = 0;
        }
        if self.inbox.len() < self.filled + CHUNK {
            self.inbox.resize(self.filled + CHUNK, 0);
        }
        let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(MAX_DESCRIPTORS))];
        let mut control = RecvAncillaryBuffer::new(&mut space);
        let mut flags = RecvFlags::CMSG_CLOEXEC;
        flags.set(RecvFlags::DONTWAIT, !wait);
        let received = loop {
            let buffer = &mut self.inbox[self.filled..];
            let result = rustix::net::recvmsg(
                &self.socket,
                &mut [IoSliceMut::new(buffer)],
                &mut control,
                flags,
            );
            if !matches!(result, Err(rustix::io::Errno::INTR)) {
                break result;
            }
        };
        self.filled += received.as_ref().map_or(0, |message| message.bytes);
        for message in control.drain() {
            if let RecvAncillaryMessage::ScmRights(descriptors) = message {
                self.descriptors.extend(descriptors);
            }
        }
        let lost = received
            .as_ref()
            .is_ok_and(|message| message.flags.contains(rustix::net::ReturnFlags::CTRUNC));
        if lost || self.descriptors.len() > 4 * MAX_DESCRIPTORS {
            return Err(ProtocolError::Descriptors { peer });
        }
        match received {
            Ok(message) if message.bytes == 0 => Ok(Filled::Closed),
            Ok(_) => Ok(Filled::Some),
            Err(rustix::io::Errno::AGAIN) => Ok(Filled::Nothing),
            Err(rustix::io::Errno::CONNRESET) => Ok(Filled::Closed),
            Err(errno) => Err(ProtocolError::Socket { peer, source: errno.into() }),
        }
    }

    /// The next descriptor that came with a message.
    pub(crate) fn descriptor(&mut self) -> Result<OwnedFd, ProtocolError> {
        self.descriptors.pop_front().ok_or(ProtocolError::NoDescriptor { peer: self.peer })
    }

    /// The channel that a role process was started with: its standard input.
    pub(crate) fn to_parent() -> io::Result<Self> {
        let input = rustix::stdio::stdin().try_clone_to_owned()?;
        // What is forked from here must not find the conversation on its own standard input.
        rustix::stdio::dup2_stdin(std::fs::File::open("/dev/null")?)?;
        Ok(Self::new(UnixStream::from(input), "supervisor"))
    }
}

impl AsFd for Channel {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.socket.as_fd()
    }
}

impl AsRawFd for Channel {
    fn as_raw_fd(&self) -> RawFd {
        self.socket.as_raw_fd()
    }
}

#[cfg(test)]
mod tests {
    use std::{io::Write as _, os::fd::AsFd as _};

    use super::*;
    use crate::protocol::ToZygote;

    fn pair() -> (Channel, Channel) {
        let (a, b) = UnixStream::pair().unwrap();
        (Channel::new(a, "walker"), Channel::new(b, "inspector"))
    }

    #[test]
    fn descriptors_arrive_with_their_message_and_in_order() {
        let (mut a, mut b) = pair();
        let mut files = Vec::new();
        for text in ["one", "two", "three"] {
            let mut file = tempfile::tempfile().unwrap();
            file.write_all(text.as_bytes()).unwrap();
            files.push(file);
        }
        a.send(&ToZygote::Kill { slot: 7 }, &[]).unwrap();
        a.send(&ToZygote::Fork { slot: 1 }, &[files[0].as_fd(), files[1].as_fd()]).unwrap();
        a.send(&ToZygote::Fork { slot: 2 }, &[files[2].as_fd()]).unwrap();
        drop((a, files));

        assert!(matches!(b.receive().unwrap(), Some(ToZygote::Kill { slot: 7 })));
        for (slot, texts) in [(1, vec!["one", "two"]), (2, vec!["three"])] {
            let Some(ToZygote::Fork { slot: got }) = b.receive().unwrap() else { panic!() };
            assert_eq!(got, slot);
            for text in texts {
                let mut bytes = [0; 8];
                let n = rustix::io::pread(b.descriptor().unwrap(), &mut bytes, 0).unwrap();
                assert_eq!(&bytes[..n], text.as_bytes());
            }
        }
        assert!(b.receive::<ToZygote>().unwrap().is_none());
        assert!(b.descriptor().is_err());
    }

    #[test]
    fn a_frame_longer_than_allowed_is_refused_before_it_is_read() {
        let (a, mut b) = pair();
        (&a.socket).write_all(&u32::MAX.to_le_bytes()).unwrap();
        assert!(matches!(
            b.receive::<ToZygote>(),
            Err(ProtocolError::TooLong { length: 0xffff_ffff, .. })
        ));
    }

    #[test]
    fn bytes_that_are_no_message_are_an_error() {
        let (a, mut b) = pair();
        (&a.socket).write_all(&[3, 0, 0, 0, 0xc1, 0xc1, 0xc1]).unwrap();
        assert!(matches!(b.receive::<ToZygote>(), Err(ProtocolError::Decode { .. })));
    }
}
