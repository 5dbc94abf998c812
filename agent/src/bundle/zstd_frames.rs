//! `files.jsonl.zst`: JSON lines in independent zstd frames.
//!
//! Purpose: a compressed file that plain `zstd -dc` reads whole, and of which any frame can be decoded
//! alone, because no frame refers to another and each ends at the end of a line (RFC 8878, section 3:
//! frames are independent and may be concatenated). Touches only the stream it is given, and the rayon
//! pool it is called in. Never looks into a line, and never lets the number of threads change a byte.

use std::io::{self, Write};

use rayon::prelude::*;
use zstd::{bulk::Compressor, zstd_safe::CParameter};

/// Most input of one frame, newlines included. Twice this, four at a time, is what bounds memory: 8 MiB
/// of input and at most a little more of output, beside four compression contexts.
const FRAME_BYTES: usize = 2 * 1024 * 1024;
/// Frames compressed together. A constant, so that the output is the same on every machine.
const BATCH_FRAMES: usize = 4;
/// The fastest level that still finds the repetition records are made of.
const LEVEL: i32 = 1;

/// Writes lines as frames. [`FrameWriter::finish`] must be called: what is not yet a frame is lost
/// otherwise.
#[derive(Debug)]
pub(crate) struct FrameWriter<W: Write> {
    out: W,
    /// `BATCH_FRAMES` buffers that are filled in order and used again.
    buffers: Vec<Vec<u8>>,
    /// The buffer being filled.
    current: usize,
    /// Whether anything was written.
    started: bool,
}

impl<W: Write> FrameWriter<W> {
    /// Begins a file on `out`, which is best unbuffered: each write is a whole frame.
    pub(crate) fn new(out: W) -> Self {
        Self { out, buffers: vec![Vec::new(); BATCH_FRAMES], current: 0, started: false }
    }

    /// Appends one line, given without its newline.
    ///
    /// # Errors
    /// `InvalidInput` for a line that holds a newline or is longer than a frame, which a record (at
    /// most 256 KiB) never is; else what `out` says.
    pub(crate) fn line(&mut self, line: &[u8]) -> io::Result<()> {
        if line.len() >= FRAME_BYTES || line.contains(&b'\n') {
            let text = "a record is one line of less than 2 MiB";
            return Err(io::Error::new(io::ErrorKind::InvalidInput, text));
        }
        let used = self.buffers.get(self.current).map_or(0, Vec::len);
        if used + line.len() + 1 > FRAME_BYTES {
            self.current += 1;
            if self.current == BATCH_FRAMES {
                self.write_batch()?;
            }
        }
        if let Some(buffer) = self.buffers.get_mut(self.current) {
            buffer.extend_from_slice(line);
            buffer.push(b'\n');
        }
        Ok(())
    }

    /// Writes what is left and gives the stream back, flushed. A file without lines is one empty frame,
    /// since an empty file is no zstd file.
    ///
    /// # Errors
    /// What `out` says.
    pub(crate) fn finish(mut self) -> io::Result<W> {
        self.write_batch()?;
        if !self.started {
            self.out.write_all(&compress(&[])?)?;
        }
        self.out.flush()?;
        Ok(self.out)
    }

    /// Compresses the filled buffers side by side, writes them in order, and empties them.
    fn write_batch(&mut self) -> io::Result<()> {
        let frames: Vec<io::Result<Vec<u8>>> = self
            .buffers
            .par_iter()
            .filter(|buffer| !buffer.is_empty())
            .map(|buffer| compress(buffer))
            .collect();
        for frame in frames {
            self.out.write_all(&frame?)?;
            self.started = true;
        }
        for buffer in &mut self.buffers {
            buffer.clear();
        }
        self.current = 0;
        Ok(())
    }
}

/// One frame with its content size and its checksum.
fn compress(input: &[u8]) -> io::Result<Vec<u8>> {
    let mut compressor = Compressor::new(LEVEL)?;
    compressor.set_parameter(CParameter::ChecksumFlag(true))?;
    compressor.compress(input)
}

#[cfg(test)]
mod tests {
    use std::process::{Command, Stdio};

    use proptest::prelude::*;
    use zstd::zstd_safe::find_frame_compressed_size;

    use super::*;

    fn write(lines: &[Vec<u8>]) -> Vec<u8> {
        let mut writer = FrameWriter::new(Vec::new());
        for line in lines {
            writer.line(line).unwrap();
        }
        writer.finish().unwrap()
    }

    /// Each frame of `file`, decoded alone.
    fn frames(mut file: &[u8]) -> Vec<Vec<u8>> {
        let mut frames = Vec::new();
        while !file.is_empty() {
            let (frame, rest) = file.split_at(find_frame_compressed_size(file).unwrap());
            assert_eq!(frame[4] & 4, 4, "the frame header says that a checksum follows");
            frames.push(zstd::bulk::decompress(frame, FRAME_BYTES).unwrap());
            file = rest;
        }
        frames
    }

    /// Lines of many lengths, in all more than `total` bytes.
    fn many_lines(total: usize) -> Vec<Vec<u8>> {
        let mut lines = Vec::new();
        let mut bytes = 0;
        while bytes < total {
            let n = lines.len();
            let line = format!("{{\"n\":{n},\"x\":\"{}\"}}", "ab7".repeat(n * 7919 % 30_000));
            bytes += line.len() + 1;
            lines.push(line.into_bytes());
        }
        lines
    }

    #[test]
    fn frames_stand_alone_end_with_a_line_and_join_to_the_input() {
        let lines = many_lines(21 * 1024 * 1024);
        let file = write(&lines);
        let frames = frames(&file);
        assert!(frames.len() >= 11, "{} frames", frames.len());
        assert!(frames.iter().all(|f| f.len() <= FRAME_BYTES && f.ends_with(b"\n")));
        let expected: Vec<u8> = lines.iter().flat_map(|l| [l.as_slice(), b"\n"].concat()).collect();
        assert!(frames.concat() == expected);
    }

    #[test]
    fn any_number_of_threads_writes_the_same_bytes() {
        let lines = many_lines(9 * 1024 * 1024);
        let with = |threads| {
            let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build().unwrap();
            pool.install(|| write(&lines))
        };
        assert!(with(1) == with(3));
    }

    #[test]
    fn the_plain_zstd_program_reads_it() {
        for lines in [vec![], many_lines(5 * 1024 * 1024)] {
            let mut file = tempfile::tempfile().unwrap();
            file.write_all(&write(&lines)).unwrap();
            io::Seek::rewind(&mut file).unwrap();
            let output = Command::new("zstd")
                .arg("-dc")
                .stdin(Stdio::from(file))
                .output()
                .expect("this test needs the zstd program");
            assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
            assert_eq!(output.stdout.iter().filter(|b| **b == b'\n').count(), lines.len());
        }
    }

    #[test]
    fn what_is_not_one_line_of_a_frame_is_refused() {
        let mut writer = FrameWriter::new(Vec::new());
        assert!(writer.line(b"a\nb").is_err());
        assert!(writer.line(&vec![b'x'; FRAME_BYTES]).is_err());
        writer.line(&vec![b'x'; FRAME_BYTES - 1]).unwrap();
        writer.line(b"y").unwrap();
        let frames = frames(&writer.finish().unwrap());
        assert_eq!(frames.iter().map(Vec::len).collect::<Vec<_>>(), [FRAME_BYTES, 2]);
    }

    proptest! {
        #[test]
        fn every_line_comes_back(lines in proptest::collection::vec("[^\n]{0,40}", 0..20)) {
            let lines: Vec<Vec<u8>> = lines.into_iter().map(String::into_bytes).collect();
            let expected: Vec<u8> = lines.iter().flat_map(|l| [l.as_slice(), b"\n"].concat()).collect();
            prop_assert_eq!(frames(&write(&lines)).concat(), expected);
        }
    }
}
