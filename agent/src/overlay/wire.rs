//! The kernel's FUSE protocol (linux/fuse.h, version 7.31), as far as one file needs it.
//!
//! Purpose: requests in, answers out, as bytes. Touches `/dev/fuse`. Never decides what to answer. Numbers
//! are in the machine's order.

use std::{
    fs::File,
    io::{self, Read as _, Write as _},
};

// Operations.
const FORGET: u32 = 2;
const GETATTR: u32 = 3;
const OPEN: u32 = 14;
const READ: u32 = 15;
const WRITE: u32 = 16;
const RELEASE: u32 = 18;
const FSYNC: u32 = 20;
const FLUSH: u32 = 25;
const INIT: u32 = 26;
const INTERRUPT: u32 = 36;
const DESTROY: u32 = 38;
const BATCH_FORGET: u32 = 42;

/// Flags of `INIT` that are asked for: reads beside each other, writes above 4 KiB, direct reads that do
/// not wait for each other, and requests of more than 32 pages.
const WANTED: u32 = 1 | 1 << 5 | 1 << 15 | 1 << 22;
/// The longest read or write, in bytes: 256 pages.
const LONGEST: u32 = 1 << 20;
/// The header of a request, and of an answer.
const IN_HEADER: usize = 40;
const OUT_HEADER: usize = 16;
/// What a read or write request says before its data.
const IO_REQUEST: usize = 40;
/// The kernel hands out a request only where the longest write fits.
const INBOX: usize = LONGEST as usize + 8192;
/// How long the kernel may believe what it was told of the file, in seconds: nobody else changes it.
const FOREVER: u64 = 1 << 30;

/// What the kernel proposes for the conversation.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Init {
    readahead: u32,
    flags: u32,
}

/// What the kernel asks for.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Request<'b> {
    Init(Init),
    Attributes,
    Open,
    Read {
        at: u64,
        length: u32,
    },
    Write {
        at: u64,
        data: &'b [u8],
    },
    /// There is nothing to do, and the kernel waits for an answer.
    Nothing,
    /// The kernel waits for no answer.
    Silent,
    Unknown,
}

/// Where answers go, by the request they answer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Header {
    unique: u64,
}

/// The conversation with the kernel; several may share a device.
#[derive(Debug)]
pub(super) struct Connection<'f> {
    fuse: &'f File,
    inbox: Vec<u8>,
}

impl<'f> Connection<'f> {
    pub(super) fn new(fuse: &'f File) -> Self {
        Self { fuse, inbox: vec![0; INBOX] }
    }

    /// The next request; `None` where the file system is gone.
    pub(super) fn next(&mut self) -> io::Result<Option<(Header, Request<'_>)>> {
        let length = loop {
            match self.fuse.read(&mut self.inbox) {
                Ok(length) => break length,
                Err(error) => match error.raw_os_error() {
                    Some(nix::libc::ENODEV) => return Ok(None),
                    // ENOENT: whoever asked has gone again.
                    Some(nix::libc::ENOENT | nix::libc::EINTR | nix::libc::EAGAIN) => {}
                    _ => return Err(error),
                },
            }
        };
        let request = self.inbox.get(..length).and_then(parse);
        request.map(Some).ok_or_else(|| io::Error::other("the kernel sent half a request"))
    }
}

/// Answers. A request that was given up meanwhile needs no answer.
pub(super) fn answer(mut fuse: &File, answer: &[u8]) -> io::Result<()> {
    match fuse.write(answer) {
        Ok(length) if length == answer.len() => Ok(()),
        Ok(_) => Err(io::Error::other("the kernel took half an answer")),
        Err(error) => match error.raw_os_error() {
            Some(nix::libc::ENOENT | nix::libc::ENODEV) => Ok(()),
            _ => Err(error),
        },
    }
}

fn parse(bytes: &[u8]) -> Option<(Header, Request<'_>)> {
    let header = Header { unique: u64_at(bytes, 8)? };
    let body = bytes.get(IN_HEADER..)?;
    let request = match u32_at(bytes, 4)? {
        INIT => Request::Init(Init { readahead: u32_at(body, 8)?, flags: u32_at(body, 12)? }),
        GETATTR => Request::Attributes,
        OPEN => Request::Open,
        READ => Request::Read { at: u64_at(body, 8)?, length: u32_at(body, 16)?.min(LONGEST) },
        WRITE => {
            let length = usize::try_from(u32_at(body, 16)?).ok()?;
            Request::Write { at: u64_at(body, 8)?, data: body.get(IO_REQUEST..)?.get(..length)? }
        }
        RELEASE | FSYNC | FLUSH | DESTROY => Request::Nothing,
        FORGET | BATCH_FORGET | INTERRUPT => Request::Silent,
        _ => Request::Unknown,
    };
    Some((header, request))
}

fn u32_at(bytes: &[u8], at: usize) -> Option<u32> {
    bytes.get(at..)?.first_chunk().map(|field| u32::from_ne_bytes(*field))
}

fn u64_at(bytes: &[u8], at: usize) -> Option<u64> {
    bytes.get(at..)?.first_chunk().map(|field| u64::from_ne_bytes(*field))
}

/// Room for one answer, which is used again and again.
#[derive(Debug)]
pub(super) struct Outbox(Vec<u8>);

impl Outbox {
    pub(super) fn new() -> Self {
        Self(vec![0; OUT_HEADER + LONGEST as usize])
    }

    /// Begins an answer with `length` bytes after its header, which hold what an earlier one left.
    fn begin(&mut self, header: Header, length: usize) -> &mut [u8] {
        let answer = &mut self.0[..OUT_HEADER + length];
        let total = u32::try_from(answer.len()).unwrap_or(u32::MAX);
        answer[..4].copy_from_slice(&total.to_ne_bytes());
        answer[4..8].fill(0);
        answer[8..16].copy_from_slice(&header.unique.to_ne_bytes());
        answer
    }

    /// An answer of fields: where each begins after the header, and its bytes. The rest is zeros.
    fn fields(&mut self, header: Header, length: usize, fields: &[(usize, &[u8])]) -> &[u8] {
        let answer = self.begin(header, length);
        let body = &mut answer[OUT_HEADER..];
        body.fill(0);
        for (at, bytes) in fields {
            body[*at..at + bytes.len()].copy_from_slice(bytes);
        }
        answer
    }

    /// `struct fuse_init_out`.
    pub(super) fn initialised(&mut self, header: Header, init: Init) -> &[u8] {
        let fields: [(usize, &[u8]); 9] = [
            (0, &7_u32.to_ne_bytes()),
            (4, &31_u32.to_ne_bytes()),
            (8, &init.readahead.to_ne_bytes()),
            (12, &(init.flags & WANTED).to_ne_bytes()),
            // In the background at once, and from when on that is many.
            (16, &64_u16.to_ne_bytes()),
            (18, &48_u16.to_ne_bytes()),
            (20, &LONGEST.to_ne_bytes()),
            // The times' grain in nanoseconds, and the pages of a request.
            (24, &1_u32.to_ne_bytes()),
            (28, &256_u16.to_ne_bytes()),
        ];
        self.fields(header, 64, &fields)
    }

    /// `struct fuse_attr_out`: a regular file of `length` bytes.
    pub(super) fn attributes(&mut self, header: Header, length: u64) -> &[u8] {
        let fields: [(usize, &[u8]); 7] = [
            (0, &FOREVER.to_ne_bytes()),
            (16, &1_u64.to_ne_bytes()),
            (24, &length.to_ne_bytes()),
            (32, &length.div_ceil(512).to_ne_bytes()),
            (76, &(nix::libc::S_IFREG | 0o600).to_ne_bytes()),
            (80, &1_u32.to_ne_bytes()),
            (96, &4096_u32.to_ne_bytes()),
        ];
        self.fields(header, 104, &fields)
    }

    /// `struct fuse_open_out`.
    pub(super) fn opened(&mut self, header: Header) -> &[u8] {
        self.fields(header, 16, &[])
    }

    /// The bytes that `fill` provides, or its error.
    pub(super) fn read(
        &mut self,
        header: Header,
        length: u64,
        fill: impl FnOnce(&mut [u8]) -> io::Result<()>,
    ) -> &[u8] {
        let length = usize::try_from(length).unwrap_or_default().min(LONGEST as usize);
        match fill(&mut self.begin(header, length)[OUT_HEADER..]) {
            Ok(()) => &self.0[..OUT_HEADER + length],
            Err(_) => self.error(header, nix::libc::EIO),
        }
    }

    /// `struct fuse_write_out`, or the error.
    pub(super) fn written(
        &mut self,
        header: Header,
        written: io::Result<()>,
        length: usize,
    ) -> &[u8] {
        match written {
            Ok(()) => {
                let length = u32::try_from(length).unwrap_or_default();
                self.fields(header, 8, &[(0, &length.to_ne_bytes())])
            }
            Err(error) if error.kind() == io::ErrorKind::StorageFull => {
                self.error(header, nix::libc::ENOSPC)
            }
            Err(_) => self.error(header, nix::libc::EIO),
        }
    }

    /// An answer that says only that it is done.
    pub(super) fn done(&mut self, header: Header) -> &[u8] {
        self.begin(header, 0)
    }

    /// An answer that is an error.
    pub(super) fn error(&mut self, header: Header, errno: i32) -> &[u8] {
        let answer = self.begin(header, 0);
        answer[4..8].copy_from_slice(&(-errno).to_ne_bytes());
        answer
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn request(operation: u32, body: &[u8]) -> Vec<u8> {
        let mut bytes = vec![0; IN_HEADER];
        bytes[4..8].copy_from_slice(&operation.to_ne_bytes());
        bytes[8..16].copy_from_slice(&77_u64.to_ne_bytes());
        bytes.extend_from_slice(body);
        bytes
    }

    /// What a read or write request says: where and how much.
    fn place(at: u64, length: u32) -> Vec<u8> {
        let mut body = vec![0; IO_REQUEST];
        body[8..16].copy_from_slice(&at.to_ne_bytes());
        body[16..20].copy_from_slice(&length.to_ne_bytes());
        body
    }

    fn sevens(into: &mut [u8]) -> io::Result<()> {
        into.fill(7);
        Ok(())
    }

    #[test]
    fn requests_are_told_apart() {
        let header = Header { unique: 77 };
        let mut write = place(4096, 3);
        write.extend_from_slice(b"abc");
        for (operation, body, expected) in [
            (GETATTR, vec![0; 16], Request::Attributes),
            (OPEN, vec![0; 8], Request::Open),
            (READ, place(512, 9), Request::Read { at: 512, length: 9 }),
            (READ, place(0, u32::MAX), Request::Read { at: 0, length: LONGEST }),
            (WRITE, write, Request::Write { at: 4096, data: b"abc" }),
            (RELEASE, vec![0; 24], Request::Nothing),
            (FORGET, vec![0; 8], Request::Silent),
            (39, vec![], Request::Unknown),
        ] {
            let bytes = request(operation, &body);
            assert_eq!(parse(&bytes), Some((header, expected)), "{operation}");
        }
        for (operation, body) in [(WRITE, place(0, 1)), (READ, vec![0; 8]), (INIT, vec![0; 8])] {
            assert_eq!(parse(&request(operation, &body)), None, "{operation}");
        }
        assert_eq!(parse(&[0; IN_HEADER - 1]), None);
    }

    #[test]
    fn answers_carry_their_length_and_whom_they_answer() {
        let header = Header { unique: 77 };
        let init = Init { readahead: 9, flags: u32::MAX };
        let eof = || Err(io::ErrorKind::UnexpectedEof.into());
        let full = || Err(io::ErrorKind::StorageFull.into());
        type Build<'b> = &'b dyn Fn(&mut Outbox) -> Vec<u8>;
        let cases: [(Build<'_>, usize, i32); 9] = [
            (&|out| out.initialised(header, init).to_vec(), 80, 0),
            (&|out| out.attributes(header, 1000).to_vec(), 120, 0),
            (&|out| out.opened(header).to_vec(), 32, 0),
            (&|out| out.read(header, 10, sevens).to_vec(), 26, 0),
            (&|out| out.read(header, 10, |_| eof()).to_vec(), 16, -5),
            (&|out| out.written(header, Ok(()), 4096).to_vec(), 24, 0),
            (&|out| out.written(header, full(), 1).to_vec(), 16, -28),
            (&|out| out.done(header).to_vec(), 16, 0),
            (&|out| out.error(header, nix::libc::ENOSYS).to_vec(), 16, -38),
        ];
        let mut out = Outbox::new();
        for (build, length, error) in cases {
            // What an earlier answer has left is in none of them.
            out.0.fill(0xee);
            let answer = build(&mut out);
            assert_eq!(answer.len(), length);
            assert_eq!(u32_at(&answer, 0), u32::try_from(length).ok());
            assert_eq!(u32_at(&answer, 4), Some(i32::cast_unsigned(error)));
            assert_eq!(u64_at(&answer, 8), Some(77));
            assert!(!answer.contains(&0xee));
        }
        assert_eq!(out.read(header, 2, sevens)[OUT_HEADER..], [7, 7]);
        assert_eq!(u64_at(out.attributes(header, 1000), OUT_HEADER + 24), Some(1000));
        assert_eq!(u32_at(out.written(header, Ok(()), 4096), OUT_HEADER), Some(4096));
    }
}
