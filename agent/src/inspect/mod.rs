//! An inspector: descriptors in, facts out.
//!
//! Purpose: read each file once and say what it is. Touches the descriptors it is sent, its job
//! socket and its marker. Never opens anything by name, never writes to evidence, and may die on any
//! file: the walker lays the loss to that file and goes on with another inspector.

pub(crate) mod binary;
mod content;
pub(crate) mod entropy;
pub(crate) mod format;
mod scan;

use std::{
    fs::File,
    os::fd::{AsFd, BorrowedFd, OwnedFd},
    panic::{AssertUnwindSafe, catch_unwind},
};

use cleanroom_contract::{GapKind, ScanState, Timestamp, printable};

use crate::{
    protocol::{
        Channel, Facts, FromInspector, Job, Limits, Measures, ProtocolError, ToInspector, Trouble,
        write_marker,
    },
    rules::pack::LoadedPack,
};
pub(crate) use content::current_size;
use content::{Blocks, Digests, READ, ReadError};
pub(crate) use scan::RuleScanner;
use scan::Verdict;

/// Bytes of a block where rules are judged in blocks.
const BLOCK: usize = 8 << 20;
/// And where memory is scarce.
const MIN_BLOCK: usize = 1 << 20;
/// Bytes that two blocks share: a pattern that is longer may be missed at the seam.
const OVERLAP: usize = 256 << 10;
/// A buffer larger than this is given back after the file that needed it.
const KEEP: usize = 32 << 20;
/// Bytes from which the format is told.
const HEAD: usize = 4096;
/// Answers are sent when this many have gathered, so that a crash repeats little work.
const ANSWERS: usize = 32;
/// Or when they weigh about this many bytes, far below what a frame may have.
const ANSWER_BYTES: usize = 256 << 10;

/// What an inspector needs to know for all files.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Settings<'s> {
    pub limits: &'s Limits,
    pub measures: &'s Measures,
    pub pack: Option<&'s LoadedPack>,
}

/// Serves jobs until the walker closes the channel.
pub(crate) fn serve(
    mut channel: Channel,
    marker: &OwnedFd,
    settings: Settings<'_>,
) -> Result<(), ProtocolError> {
    let mut inspector = Inspector {
        settings,
        scanner: settings.pack.map(RuleScanner::new),
        buffer: Vec::new(),
        backing: None,
    };
    while let Some(message) = channel.receive()? {
        match message {
            ToInspector::Volume { backing } => {
                inspector.backing = match backing {
                    Some(size) => Some((File::from(channel.descriptor()?), size)),
                    None => None,
                };
            }
            ToInspector::Jobs(jobs) => inspector.work(&mut channel, marker, &jobs)?,
        }
    }
    Ok(())
}

struct Inspector<'s> {
    settings: Settings<'s>,
    scanner: Option<RuleScanner<'s>>,
    buffer: Vec<u8>,
    /// The image under the volume and the size it must keep.
    backing: Option<(File, u64)>,
}

impl Inspector<'_> {
    /// Examines a batch and answers it.
    fn work(
        &mut self,
        channel: &mut Channel,
        marker: &OwnedFd,
        jobs: &[Job],
    ) -> Result<(), ProtocolError> {
        let mut answers = Vec::new();
        let mut weight = 0;
        for job in jobs {
            let file = channel.descriptor()?;
            // The marker is a courtesy to the walker: without it a death is laid to the first job.
            let _ = write_marker(marker.as_fd(), Some(job.seq));
            let facts = self.examine_guarded(job, file.as_fd());
            // Closed before it is answered: the walker may give up the view at the last answer.
            drop(file);
            weight += weight_of(&facts);
            answers.push(facts);
            if weight > ANSWER_BYTES || answers.len() == ANSWERS {
                weight = 0;
                channel.send(&FromInspector::Facts(std::mem::take(&mut answers)), &[])?;
            }
        }
        let _ = write_marker(marker.as_fd(), None);
        if !answers.is_empty() {
            channel.send(&FromInspector::Facts(answers), &[])?;
        }
        Ok(())
    }

    /// Examines a file; a panic of any parser becomes a gap.
    fn examine_guarded(&mut self, job: &Job, file: BorrowedFd<'_>) -> Facts {
        guarded(job.seq, || self.examine(job, file)).unwrap_or_else(|facts| {
            self.scanner = self.settings.pack.map(RuleScanner::new);
            self.buffer = Vec::new();
            *facts
        })
    }

    fn examine(&mut self, job: &Job, file: BorrowedFd<'_>) -> Facts {
        let mut facts = Facts::new(job.seq);
        if job.size == 0 && rustix::io::pread(file, &mut [0_u8; 1], 0) == Ok(1) {
            let reason = "it says that it is empty, and has content: not read".to_owned();
            fail(&mut facts, GapKind::Unreadable, reason);
            return facts;
        }
        if job.size <= self.settings.limits.in_memory {
            self.examine_whole(job, file, &mut facts);
        } else {
            self.examine_blocks(job, file, &mut facts);
        }
        self.look_back(job, file, &mut facts);
        if self.buffer.capacity() > KEEP {
            self.buffer = Vec::new();
        }
        facts
    }

    fn examine_whole(&mut self, job: &Job, file: BorrowedFd<'_>, facts: &mut Facts) {
        let mut digests = Digests::new(self.settings.measures);
        let size = (job.size, job.allocated);
        match content::read_whole(file, size, &mut self.buffer, &mut digests) {
            Ok(read) => facts.read = read,
            Err(error) => return fail_read(facts, job, &error),
        }
        digests.finish(facts);
        let data = self.buffer.as_slice();
        let format = format::identify(&data[..data.len().min(HEAD)]);
        facts.format = format.map(str::to_owned);
        if let Some(name) = format {
            facts.binary = parsed(facts, name, || binary::facts(data, name));
        }
        if let Some(scanner) = &mut self.scanner {
            let result = scanner.scan(job, format, data, self.settings.limits);
            judge(facts, result, ScanState::Clean);
        }
    }

    fn examine_blocks(&mut self, job: &Job, file: BorrowedFd<'_>, facts: &mut Facts) {
        let size = (job.size, job.allocated);
        let holes = content::Extents::new(file, job.size, job.allocated).hole_bytes();
        let hash_holes = holes <= self.settings.limits.max_hole_bytes;
        let mut head = vec![0; HEAD];
        let got = rustix::io::pread(file, &mut head[..], 0).unwrap_or(0);
        head.truncate(got);
        let format = format::identify(&head);
        facts.format = format.map(str::to_owned);

        let limits = self.settings.limits;
        let mut scan = match self.scanner.as_ref().map(|s| s.blocks(job, &head, format, limits)) {
            None => None,
            Some(Ok(scan)) => Some(scan),
            Some(Err(error)) => {
                judge(facts, Err(error), ScanState::Partial);
                None
            }
        };
        let mut digests = Digests::new(self.settings.measures);
        // A small memory budget makes small blocks.
        let budget = usize::try_from(limits.in_memory).unwrap_or(BLOCK);
        let block = BLOCK.min(budget.max(MIN_BLOCK));
        let mut shape = Blocks {
            buffer: &mut self.buffer,
            length: if scan.is_some() { block } else { READ },
            overlap: if scan.is_some() { OVERLAP.min(block / 4) } else { 0 },
            hash_holes,
            digests: &mut digests,
        };
        let mut scan_error = None;
        let done = content::read_blocks(file, size, &mut shape, &mut |offset, block| {
            if let Some(scanner) = &mut scan
                && let Err(error) = scanner.feed(offset, block)
            {
                // The digest still goes on: only the rules are lost.
                scan_error = Some(error);
                scan = None;
            }
        });
        let done = match done {
            Ok(done) => done,
            Err(error) => return fail_read(facts, job, &error),
        };
        facts.read = done.read;
        if hash_holes {
            digests.finish(facts);
        } else {
            digests.finish_extents(done.extents, done.count, facts);
            let reason = format!(
                "{holes} bytes of holes were not hashed: the digest covers {} data extents",
                done.count
            );
            trouble(facts, GapKind::Sparse, reason, 1);
        }
        match (scan_error, scan) {
            (Some(error), _) => judge(facts, Err(error), ScanState::Partial),
            (None, Some(scan)) => {
                let unjudged = scan.unjudged;
                judge(facts, scan.finish(), ScanState::Partial);
                let reason = format!(
                    "{} bytes are above the in-memory limit: judged in blocks, {unjudged} rules that \
                     need the whole file were not",
                    job.size
                );
                trouble(facts, GapKind::Partial, reason, unjudged);
            }
            (None, None) => {}
        }
        if matches!(format, Some("ELF" | "EXE" | "MACHO")) {
            let reason = "the executable is above the in-memory limit: its structure was not read";
            trouble(facts, GapKind::Partial, reason.to_owned(), 1);
        }
    }

    /// Whether what was read is what was there: the file and the image under it are looked at again.
    fn look_back(&self, job: &Job, file: BorrowedFd<'_>, facts: &mut Facts) {
        if let Some((image, expected)) = &self.backing
            && current_size(image).is_ok_and(|size| size < *expected)
        {
            facts.backing_shrank = true;
            let reason = "the image lost bytes while this was read".to_owned();
            return fail(facts, GapKind::Evidence, reason);
        }
        let Ok(now) = rustix::fs::fstat(file) else { return };
        let time = |seconds: i64, nanos: u64| Timestamp {
            seconds,
            // As the walker read it: a hostile inode can hold more.
            nanos: u32::try_from(nanos).unwrap_or(u32::MAX).min(999_999_999),
        };
        let changed = u64::try_from(now.st_size) != Ok(job.size)
            || time(now.st_mtime, now.st_mtime_nsec) != job.mtime
            || time(now.st_ctime, now.st_ctime_nsec) != job.ctime;
        if changed && !facts.troubles.iter().any(|t| t.kind == GapKind::Changed) {
            let reason =
                format!("changed while it was read: {} bytes, then {}", job.size, now.st_size);
            trouble(facts, GapKind::Changed, reason, 1);
            if facts.scan == ScanState::Clean {
                // What was judged is a state that the file never had as a whole.
                facts.scan = ScanState::Partial;
            }
        }
    }
}

/// What an examination found out; where it panics, what is left to say of the file.
fn guarded(seq: u64, examine: impl FnOnce() -> Facts) -> Result<Facts, Box<Facts>> {
    catch_unwind(AssertUnwindSafe(examine)).map_err(|panic| {
        let mut facts = Facts::new(seq);
        let reason = format!("a parser panicked: {}", panic_text(&*panic));
        fail(&mut facts, GapKind::Parser, reason);
        Box::new(facts)
    })
}

/// What a parser made of a format. Goblin has panicked on hostile files before, and may again: only its facts are lost.
fn parsed<T>(
    facts: &mut Facts,
    format: &str,
    parse: impl FnOnce() -> Result<Option<T>, String>,
) -> Option<T> {
    let reason = match catch_unwind(AssertUnwindSafe(parse)) {
        Ok(Ok(parsed)) => return parsed,
        Ok(Err(reason)) => reason,
        Err(panic) => format!("the parser panicked: {}", panic_text(&*panic)),
    };
    trouble(facts, GapKind::Parser, format!("{format}: {reason}"), 1);
    None
}

/// About how many bytes an answer takes.
fn weight_of(facts: &Facts) -> usize {
    let binary = facts.binary.as_ref().map_or(0, |binary| {
        let lists = [&binary.libraries, &binary.rpath, &binary.runpath, &binary.machines];
        lists.into_iter().flatten().map(|text| text.len() + 8).sum::<usize>()
            + binary.sections.len() * 128
    });
    // Matches are bounded together; whoever has any is sent soon.
    let matches = if facts.matches.is_empty() { 0 } else { ANSWER_BYTES };
    1024 + binary + matches
}

/// Notes a part that was not examined.
fn trouble(facts: &mut Facts, kind: GapKind, reason: String, count: u64) {
    facts.troubles.push(Trouble { kind, reason: printable(&reason), count });
}

/// Nothing that was found out may be believed.
fn fail(facts: &mut Facts, kind: GapKind, reason: String) {
    let seq = facts.seq;
    let backing_shrank = facts.backing_shrank;
    let read = facts.read;
    *facts = Facts { scan: ScanState::Error, backing_shrank, read, ..Facts::new(seq) };
    trouble(facts, kind, reason, 1);
}

fn fail_read(facts: &mut Facts, job: &Job, error: &ReadError) {
    match error {
        ReadError::Shrank(offset) => {
            let reason = format!("ended at byte {offset} of {} while it was read", job.size);
            fail(facts, GapKind::Changed, reason);
        }
        ReadError::Io { offset, source } => {
            fail(facts, GapKind::Unreadable, format!("read at byte {offset}: {source}"));
        }
    }
}

/// Writes what the rules said into the facts; `clean` is the state of a file that matched nothing.
fn judge(facts: &mut Facts, result: Result<Verdict, yara_x::ScanError>, clean: ScanState) {
    match result {
        Ok(verdict) => {
            facts.scan = if verdict.matches.is_empty() { clean } else { ScanState::Matched };
            facts.matches = verdict.matches;
            facts.truncated = verdict.truncated;
        }
        Err(yara_x::ScanError::Timeout) => {
            facts.scan = ScanState::Timeout;
            trouble(facts, GapKind::Timeout, "the rules were not done in time".to_owned(), 1);
        }
        Err(error) => {
            facts.scan = ScanState::Error;
            trouble(facts, GapKind::Parser, format!("scan with the rules: {error}"), 1);
        }
    }
}

/// The message of a panic, as far as it has one.
fn panic_text(panic: &(dyn std::any::Any + Send)) -> String {
    let text = panic
        .downcast_ref::<&str>()
        .map(|text| (*text).to_owned())
        .or_else(|| panic.downcast_ref::<String>().cloned())
        .unwrap_or_else(|| "no message".to_owned());
    text.chars().take(200).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_parser_that_panics_costs_its_file_and_says_so() {
        let facts = guarded(7, || panic!("index\n{} of 3", 9)).expect_err("it panicked");
        assert_eq!((facts.seq, facts.scan), (7, ScanState::Error));
        let trouble = Trouble {
            kind: GapKind::Parser,
            reason: r"a parser panicked: index\u{a}9 of 3".to_owned(),
            count: 1,
        };
        assert_eq!(facts.troubles, [trouble]);
        assert_eq!(guarded(7, || Facts::new(7)).expect("it did not").troubles, []);
    }

    #[test]
    fn a_format_s_parser_that_panics_costs_what_it_would_have_said() {
        let mut facts = Facts { scan: ScanState::Clean, ..Facts::new(7) };
        let none: Option<()> = parsed(&mut facts, "ELF", || panic!("out of bounds"));
        assert_eq!((none, facts.scan), (None, ScanState::Clean));
        assert_eq!(facts.troubles[0].reason, "ELF: the parser panicked: out of bounds");
        assert_eq!(parsed(&mut facts, "ELF", || Ok(Some(1))), Some(1));
        assert_eq!(facts.troubles.len(), 1);
    }
}
