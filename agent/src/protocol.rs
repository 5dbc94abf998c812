//! What the agent's processes say to each other.
//!
//! Purpose: the messages, and a channel that carries them with descriptors over a Unix stream socket.
//! Touches one socket. Never trusts the other side: a frame's length is bounded before anything is
//! allocated for it, descriptors are bounded by what the kernel passes at once, and a frame that does
//! not decode ends the channel.
//!
//! A frame is its length (four bytes, little endian) and a MessagePack value with named fields, so
//! that the contract's types travel as they are.

use std::{
    collections::VecDeque,
    io::{self, IoSlice, IoSliceMut, Read as _},
    mem::MaybeUninit,
    os::{
        fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd, RawFd},
        unix::net::UnixStream,
    },
};

use cleanroom_contract::{
    Binary, Extent, ExtentDigest, GapKind, RuleFile, RuleMatch, ScanState, Sha256, Timestamp,
};
use rustix::net::{
    RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, SendAncillaryBuffer,
    SendAncillaryMessage, SendFlags,
};
use serde::{Deserialize, Serialize, de::DeserializeOwned};

/// The longest frame: a batch of answers in which every executable has all the names it may have.
const MAX_FRAME: usize = 8 << 20;
/// Descriptors in one message, below the kernel's `SCM_MAX_FD` of 253 (unix(7)).
pub(crate) const MAX_DESCRIPTORS: usize = 128;

/// What can go wrong between two of our processes.
#[derive(Debug, thiserror::Error)]
pub(crate) enum ProtocolError {
    #[error("exchange messages with the {peer}")]
    Socket { peer: &'static str, source: io::Error },
    #[error("frame of {length} bytes from the {peer}, at most {MAX_FRAME} are allowed")]
    TooLong { peer: &'static str, length: usize },
    #[error("message from the {peer} does not decode")]
    Decode { peer: &'static str, source: rmp_serde::decode::Error },
    #[error("encode a message for the {peer}")]
    Encode { peer: &'static str, source: rmp_serde::encode::Error },
    #[error("message from the {peer} lacks its descriptor")]
    NoDescriptor { peer: &'static str },
    #[error("descriptors from the {peer} were lost, or there are more than it may send")]
    Descriptors { peer: &'static str },
    #[error("the {peer} ended")]
    Ended { peer: &'static str },
}

/// Limits that all roles share. Times in milliseconds, sizes in bytes.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) struct Limits {
    /// Files up to this size are read into memory and scanned whole.
    pub in_memory: u64,
    /// Files above this size are not read at all.
    pub max_file_size: Option<u64>,
    /// The time a file of no size gets.
    pub file_timeout_ms: u64,
    /// Holes above this total are not hashed.
    pub max_hole_bytes: u64,
    /// Directories deeper than this are not entered.
    pub depth: u32,
}

impl Limits {
    /// The time that a file may take: the base and 2 s per 100 MiB of what is read or hashed of it.
    /// Holes count only as far as they are hashed: the size alone is what the evidence claims.
    pub(crate) fn time_for(&self, size: u64, allocated: u64) -> std::time::Duration {
        let real = size.min(allocated.saturating_add(self.max_hole_bytes));
        let by_size = (real >> 20).saturating_mul(20);
        std::time::Duration::from_millis(self.file_timeout_ms.saturating_add(by_size))
    }
}

/// What an inspector works out for each file.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) struct Measures {
    pub md5: bool,
    pub sha1: bool,
    pub entropy: bool,
}

/// Supervisor → zygote, the process that has loaded the rules and forks inspectors.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) enum ToZygote {
    /// First, once; with the compiled pack's descriptor where there are rules.
    Configure { limits: Limits, measures: Measures, rules: bool },
    /// Fork an inspector; with its job socket and its marker file.
    Fork { slot: u32 },
    /// Kill an inspector.
    Kill { slot: u32 },
}

/// Zygote → supervisor.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) enum FromZygote {
    /// The rules are loaded.
    Ready,
    /// The rules cannot be loaded.
    Unable { reason: String },
    /// An inspector has begun.
    Forked { slot: u32, pid: i32 },
    /// An inspector has ended: `how` says by what.
    Exited { slot: u32, pid: i32, how: String },
}

/// Supervisor → walker.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) enum ToWalker {
    /// First, once. `reuse_links`: no rule asks for a file's name.
    Configure { limits: Limits, excludes: Vec<String>, slots: u32, reuse_links: bool },
    /// An indicator list; with its descriptor. Any number, before the first volume.
    Indicators { name: String },
    /// No more lists.
    IndicatorsEnd,
    /// An inspector for a slot; with its job socket and its marker file. `ended` says how the one
    /// before it in this slot ended; `generation` counts those of the slot.
    Inspector { slot: u32, generation: u32, ended: Option<String> },
    /// Walk a volume; with its root directory and, where `backing` is given, the image it lies in.
    Walk(WalkOrder),
    /// End the walk: what is in flight may finish, nothing new is begun.
    Stop,
}

/// A volume to walk.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) struct WalkOrder {
    /// Its name in the records.
    pub volume: String,
    /// Its place among the volumes, from 0.
    pub ordinal: u32,
    /// The bytes that the image had when it was opened.
    pub backing: Option<u64>,
    /// True where reading moves access times unless a descriptor says otherwise.
    pub protect_access_times: bool,
}

/// Walker → supervisor.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) enum FromWalker {
    /// The lists are loaded, or the first error in them.
    Indicators { loaded: Result<Vec<RuleFile>, String>, md5: bool, sha1: bool },
    /// Records, ready to be written.
    Lines(Vec<Line>),
    /// How far the walk is, since its beginning.
    Counters(Counters),
    /// The inspector of this generation must be replaced: `reason` says why.
    Replace { slot: u32, generation: u32, reason: String },
    /// The volume is done.
    Walked { complete: bool, counters: Counters },
}

/// Running counts of one volume.
#[derive(Clone, Copy, Debug, Default, Serialize, Deserialize)]
pub(crate) struct Counters {
    pub entries: u64,
    pub files: u64,
    pub files_examined: u64,
    pub bytes: u64,
}

/// What a line of the stream is, so that the supervisor can count and sort without reading it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) enum LineKind {
    File,
    Finding(cleanroom_contract::Severity),
    Gap(GapKind),
}

/// A record on its way into the spool.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct Line {
    pub kind: LineKind,
    /// Place of the entry in the volume's order; `u64::MAX` for what concerns the whole volume.
    pub seq: u64,
    /// Place among the lines of one entry and kind.
    pub sub: u32,
    /// The record as a JSON line, with its newline.
    #[serde(with = "serde_bytes")]
    pub json: Vec<u8>,
}

/// Walker → inspector.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) enum ToInspector {
    /// A new volume begins; with the image's descriptor where `backing` gives its size.
    Volume { backing: Option<u64> },
    /// Files to read; with one descriptor each, in order.
    Jobs(Vec<Job>),
}

/// A file to read, and what the rules may know of it.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) struct Job {
    pub seq: u64,
    pub size: u64,
    pub allocated: u64,
    pub mtime: Timestamp,
    pub ctime: Timestamp,
    /// Absolute from the view's root.
    #[serde(with = "serde_bytes")]
    pub path: Vec<u8>,
    /// The owner's name in the volume's own passwd, else its number.
    pub owner: String,
}

/// Inspector → walker.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) enum FromInspector {
    /// What was found out about files, each once.
    Facts(Vec<Facts>),
}

/// What an inspector found out about a file.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) struct Facts {
    pub seq: u64,
    /// Bytes of content that were read.
    pub read: u64,
    pub sha256: Option<Sha256>,
    pub md5: Option<String>,
    pub sha1: Option<String>,
    pub extents: Option<ExtentDigest>,
    pub entropy: Option<f64>,
    pub format: Option<String>,
    pub scan: ScanState,
    pub matches: Vec<RuleMatch>,
    pub binary: Option<Box<Binary>>,
    /// What was not examined of it.
    pub troubles: Vec<Trouble>,
    /// Matches were left out for their size.
    pub truncated: bool,
    /// The image under the volume lost bytes while this was read: nothing of the volume is sure.
    pub backing_shrank: bool,
}

impl Facts {
    /// Nothing known yet about `seq`.
    pub(crate) fn new(seq: u64) -> Self {
        Self {
            seq,
            read: 0,
            sha256: None,
            md5: None,
            sha1: None,
            extents: None,
            entropy: None,
            format: None,
            scan: ScanState::Skipped,
            matches: Vec::new(),
            binary: None,
            troubles: Vec::new(),
            truncated: false,
            backing_shrank: false,
        }
    }

    /// Cuts every text to what an honest inspector would send: what comes from a process that parses
    /// evidence is bounded before it becomes a record.
    pub(crate) fn bound(&mut self) {
        for text in [&mut self.format, &mut self.md5, &mut self.sha1].into_iter().flatten() {
            truncate(text, 64);
        }
        self.troubles.truncate(16);
        for trouble in &mut self.troubles {
            truncate(&mut trouble.reason, 1024);
        }
    }
}

/// Cuts a text at the last character that ends within `limit` bytes.
fn truncate(text: &mut String, limit: usize) {
    text.truncate(text.floor_char_boundary(limit));
}

/// A part of a file that was not examined.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Trouble {
    pub kind: GapKind,
    pub reason: String,
    pub count: u64,
}

/// Probe → supervisor: the layout of an evidence, or why it could not be read. The evidence itself is the
/// probe's second descriptor.
pub(crate) type ProbeAnswer = Result<crate::evidence::probe::Layout, String>;

/// Where an inspector writes the file it is about to read, so that its end can be laid to the right
/// one: eight bytes, the sequence number plus one, at offset 0. Zero means none.
pub(crate) fn write_marker(marker: BorrowedFd<'_>, seq: Option<u64>) -> rustix::io::Result<()> {
    let value = seq.map_or(0, |seq| seq.wrapping_add(1));
    rustix::io::pwrite(marker, &value.to_le_bytes(), 0).map(drop)
}

/// What [`write_marker`] wrote last; `None` where nothing can be read.
pub(crate) fn read_marker(marker: BorrowedFd<'_>) -> Option<u64> {
    let mut bytes = [0; 8];
    match rustix::io::pread(marker, &mut bytes, 0) {
        Ok(8) => u64::from_le_bytes(bytes).checked_sub(1),
        _ => None,
    }
}

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

/// Reads a whole descriptor, refusing more than `limit` bytes.
pub(crate) fn read_bounded(file: &mut std::fs::File, limit: u64) -> io::Result<Vec<u8>> {
    let mut bytes = Vec::new();
    std::io::Read::take(&mut *file, limit + 1).read_to_end(&mut bytes)?;
    if bytes.len() as u64 > limit {
        return Err(io::Error::new(
            io::ErrorKind::FileTooLarge,
            format!("more than {limit} bytes"),
        ));
    }
    Ok(bytes)
}

/// The extents of a record are a list that must not grow without bound.
pub(crate) const MAX_EXTENTS: usize = 1024;

/// Adds an extent where the list still has room.
pub(crate) fn push_extent(list: &mut Vec<Extent>, extent: Extent) {
    if list.len() < MAX_EXTENTS {
        list.push(extent);
    }
}

#[cfg(test)]
mod tests {
    use std::{io::Write as _, os::fd::AsFd as _};

    use super::*;

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

    #[test]
    fn the_marker_names_the_file_in_hand() {
        let file = tempfile::tempfile().unwrap();
        assert_eq!(read_marker(file.as_fd()), None);
        write_marker(file.as_fd(), Some(0)).unwrap();
        assert_eq!(read_marker(file.as_fd()), Some(0));
        write_marker(file.as_fd(), None).unwrap();
        assert_eq!(read_marker(file.as_fd()), None);
    }

    #[test]
    fn larger_files_get_more_time() {
        let limits = Limits {
            in_memory: 0,
            max_file_size: None,
            file_timeout_ms: 60_000,
            max_hole_bytes: 0,
            depth: 0,
        };
        assert_eq!(limits.time_for(0, 0).as_secs(), 60);
        assert_eq!(limits.time_for(1000 << 20, 1000 << 20).as_secs(), 80);
        assert_eq!(limits.time_for(u64::MAX, 1000 << 20).as_secs(), 80, "holes take no time");
        assert!(limits.time_for(u64::MAX, u64::MAX).as_secs() > 1 << 20);
    }
}
