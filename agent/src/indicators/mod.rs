//! Indicator lists: digests of known files, and patterns of known paths.
//!
//! Purpose: lists as the field exchanges them → answers to "is this digest or path in one of them?".
//! Touches the list files it is handed, once, at the start. Never evidence, and never the network.
//!
//! What a line is, is decided line by line, so that one file may hold both kinds:
//!
//! - `#` begins a comment. The last comment before a pattern is the pattern's description.
//! - A line is a *digest* where it is in the form that `sha256sum` or `md5sum` write, also with `--tag`, or where
//!   one of its columns (between `,`, `;` or tabs, quoted or not) is 32, 40 or 64 hexadecimal digits: MD5,
//!   SHA-1, SHA-256. Where a row has several, they are taken for one file's and the strongest counts.
//! - Else it is a *path pattern* where it is `regex;score` or `regex;score;false-positive-regex` with a whole
//!   number as score: the format of Loki's `filename-iocs.txt`.
//! - The first line that is no comment may also be the header of a table.
//! - Anything else is an error that names the line.

mod digests;
mod line;
mod paths;

use std::{
    collections::BTreeMap,
    fs::File,
    io::{self, BufRead as _, Read as _},
};

use cleanroom_contract::{RuleFile, Sha256};
use rayon::prelude::*;
use sha2::Digest as _;

use digests::DigestTable;
pub(crate) use paths::PathHit;
use paths::{PathPattern, PathPatterns};

/// Lists are parsed in pieces of about this size, beside each other.
const PIECE: usize = 1 << 20;

/// Why indicators could not be loaded.
#[derive(Debug, thiserror::Error)]
pub(crate) enum IndicatorError {
    /// A list could not be read.
    #[error("read indicators {list}")]
    Read {
        /// As given.
        list: String,
        /// Why not.
        source: io::Error,
    },
    /// A line is neither kind of indicator, or a pattern that cannot be used.
    #[error("{list}:{line}: {problem}")]
    Line {
        /// As given.
        list: String,
        /// From 1.
        line: u64,
        /// What is wrong with it.
        problem: String,
    },
    /// More lists than can be numbered.
    #[error("{0} indicator lists, at most 65535 can be used together")]
    TooMany(usize),
    /// All patterns can be used, but not together.
    #[error("path patterns: {0}")]
    Patterns(String),
}

/// All lists together.
#[derive(Debug)]
pub(crate) struct Indicators {
    /// Display names.
    lists: Vec<String>,
    sha256: DigestTable<32>,
    sha1: DigestTable<20>,
    md5: DigestTable<16>,
    paths: PathPatterns,
}

/// Lists as they were loaded.
#[derive(Debug)]
pub(crate) struct Loaded {
    /// What the sound ones say.
    pub(crate) indicators: Indicators,
    /// What was taken from each sound one, for the report.
    pub(crate) files: Vec<RuleFile>,
    /// What is wrong with the others: the first fault of each.
    pub(crate) faults: Vec<IndicatorError>,
}

/// What a list holds, before all are put together.
struct List {
    file: RuleFile,
    pieces: Vec<Parsed>,
}

/// What a piece of a list holds.
#[derive(Default)]
struct Parsed {
    sha256: Vec<[u8; 32]>,
    sha1: Vec<[u8; 20]>,
    md5: Vec<[u8; 16]>,
    /// With lines counted from the piece's first as 1. No description: the comment is in an earlier piece.
    patterns: Vec<PathPattern>,
    /// The last comment, empty where it says nothing.
    comment: Option<String>,
    /// Lines in the piece.
    lines: u64,
    /// The first line that is wrong, and what is wrong.
    error: Option<(u64, String)>,
}

impl Indicators {
    /// Reads `lists`, each a display name and a file open at its beginning. One that cannot be read, has a line that is
    /// no indicator or a pattern that does not compile is left out as a whole and named: what its other lines would
    /// have found is not known to be what was meant.
    ///
    /// A list is held in memory while it is read; digests then take 34 bytes each for SHA-256.
    ///
    /// # Errors
    /// Where sound lists cannot be used together.
    pub(crate) fn load(lists: Vec<(String, File)>) -> Result<Loaded, IndicatorError> {
        if lists.len() > usize::from(u16::MAX) {
            return Err(IndicatorError::TooMany(lists.len()));
        }
        let mut names = Vec::new();
        let mut sound: BTreeMap<u16, List> = BTreeMap::new();
        let mut faults: BTreeMap<u16, IndicatorError> = BTreeMap::new();
        let mut patterns = Vec::new();
        for (index, (name, file)) in (0_u16..).zip(lists) {
            match List::read(index, &name, file) {
                Ok(mut list) => {
                    patterns.extend(list.pieces.iter_mut().flat_map(|p| p.patterns.drain(..)));
                    sound.insert(index, list);
                }
                Err(fault) => drop(faults.insert(index, fault)),
            }
            names.push(name);
        }
        let paths = match PathPatterns::new(patterns) {
            Ok(paths) => paths,
            Err((mut patterns, reason)) => {
                let wrong = paths::wrong(&patterns, &names);
                if wrong.is_empty() {
                    return Err(IndicatorError::Patterns(reason));
                }
                patterns.retain(|pattern| !wrong.contains_key(&pattern.list));
                sound.retain(|index, _| !wrong.contains_key(index));
                faults.extend(wrong);
                PathPatterns::new(patterns)
                    .map_err(|(_, reason)| IndicatorError::Patterns(reason))?
            }
        };
        let mut files = Vec::new();
        let (mut sha256, mut sha1, mut md5) = (Vec::new(), Vec::new(), Vec::new());
        for (index, List { file, pieces }) in sound {
            files.push(file);
            for piece in pieces {
                sha256.push((index, piece.sha256));
                sha1.push((index, piece.sha1));
                md5.push((index, piece.md5));
            }
        }
        let (sha256, (sha1, md5)) = rayon::join(
            || DigestTable::new(sha256),
            || (DigestTable::new(sha1), DigestTable::new(md5)),
        );
        let indicators = Self { lists: names, sha256, sha1, md5, paths };
        Ok(Loaded { indicators, files, faults: faults.into_values().collect() })
    }

    /// Whether files' MD5 is worth computing.
    pub(crate) fn needs_md5(&self) -> bool {
        !self.md5.is_empty()
    }

    /// Whether files' SHA-1 is worth computing.
    pub(crate) fn needs_sha1(&self) -> bool {
        !self.sha1.is_empty()
    }

    /// The first list that holds this SHA-256.
    pub(crate) fn find_sha256(&self, digest: &[u8; 32]) -> Option<&str> {
        self.name(self.sha256.find(digest)?)
    }

    /// The first list that holds this SHA-1.
    pub(crate) fn find_sha1(&self, digest: &[u8; 20]) -> Option<&str> {
        self.name(self.sha1.find(digest)?)
    }

    /// The first list that holds this MD5.
    pub(crate) fn find_md5(&self, digest: &[u8; 16]) -> Option<&str> {
        self.name(self.md5.find(digest)?)
    }

    /// The patterns that match `path`, absolute from the view's root, and whose false-positive pattern
    /// does not; in the order of the lists.
    pub(crate) fn match_path(&self, path: &[u8]) -> Vec<PathHit<'_>> {
        self.paths.matches(path, &self.lists)
    }

    fn name(&self, list: u16) -> Option<&str> {
        self.lists.get(usize::from(list)).map(String::as_str)
    }
}

impl List {
    /// Reads the list of this number.
    fn read(index: u16, name: &str, mut file: File) -> Result<Self, IndicatorError> {
        let mut data = Vec::new();
        file.read_to_end(&mut data)
            .map_err(|source| IndicatorError::Read { list: name.to_owned(), source })?;
        let (mut pieces, digest) = rayon::join(|| parse(&data), || sha2::Sha256::digest(&data));
        let mut entries = 0;
        let mut first_line = 0;
        let mut comment: Option<String> = None;
        for piece in &mut pieces {
            if let Some((line, problem)) = piece.error.take() {
                let (list, line) = (name.to_owned(), first_line + line);
                return Err(IndicatorError::Line { list, line, problem });
            }
            for pattern in &mut piece.patterns {
                pattern.list = index;
                pattern.line += first_line;
                pattern.description = pattern.description.take().or_else(|| comment.clone());
            }
            entries +=
                piece.sha256.len() + piece.sha1.len() + piece.md5.len() + piece.patterns.len();
            comment = piece.comment.take().or(comment);
            first_line += piece.lines;
        }
        let sha256 = Sha256(digest.into());
        let file = RuleFile { path: name.to_owned(), sha256, entries: entries as u64 };
        Ok(Self { file, pieces })
    }
}

/// The pieces of a list, in order.
fn parse(data: &[u8]) -> Vec<Parsed> {
    let data = data.strip_prefix(b"\xef\xbb\xbf").unwrap_or(data);
    let mut pieces = Vec::new();
    let mut rest = data;
    while !rest.is_empty() {
        let newline =
            rest.get(PIECE..).and_then(|tail| tail.iter().position(|byte| *byte == b'\n'));
        let (piece, tail) = rest.split_at(newline.map_or(rest.len(), |at| PIECE + at + 1));
        pieces.push(piece);
        rest = tail;
    }
    pieces
        .into_par_iter()
        .enumerate()
        .map(|(index, piece)| parse_piece(piece, index == 0))
        .collect()
}

fn parse_piece(piece: &[u8], mut header_allowed: bool) -> Parsed {
    let mut parsed = Parsed::default();
    let mut rest = piece;
    while !rest.is_empty() && parsed.error.is_none() {
        parsed.lines += 1;
        // Nearly all lines of a large list begin with a digest.
        let simple = if let Some((digest, behind)) = line::leading(rest) {
            parsed.sha256.push(digest);
            Some(behind)
        } else if let Some((digest, behind)) = line::leading(rest) {
            parsed.sha1.push(digest);
            Some(behind)
        } else if let Some((digest, behind)) = line::leading(rest) {
            parsed.md5.push(digest);
            Some(behind)
        } else {
            None
        };
        if let Some(behind) = simple {
            rest = split_line(behind).1;
            header_allowed = false;
            continue;
        }
        let (text, tail) = split_line(rest);
        rest = tail;
        parse_line(&mut parsed, text.trim_ascii(), &mut header_allowed);
    }
    parsed
}

/// The first line with its end, and what comes behind it.
fn split_line(text: &[u8]) -> (&[u8], &[u8]) {
    let mut tail = text;
    // Reading memory does not fail.
    let length = tail.skip_until(b'\n').unwrap_or(text.len());
    text.split_at_checked(length).unwrap_or((text, &[]))
}

fn parse_line(parsed: &mut Parsed, text: &[u8], header_allowed: &mut bool) {
    match line::read(text, *header_allowed) {
        line::Line::Empty => return,
        line::Line::Comment(comment) => {
            if !comment.is_empty() {
                parsed.comment = Some(comment);
            }
            return;
        }
        line::Line::Header => {}
        line::Line::Sha256(digest) => parsed.sha256.push(digest),
        line::Line::Sha1(digest) => parsed.sha1.push(digest),
        line::Line::Md5(digest) => parsed.md5.push(digest),
        line::Line::Path { pattern, score, false_positive } => parsed.patterns.push(PathPattern {
            list: 0,
            line: parsed.lines,
            pattern,
            score,
            false_positive,
            description: parsed.comment.clone(),
        }),
        line::Line::Wrong(problem) => parsed.error = Some((parsed.lines, problem)),
    }
    *header_allowed = false;
}

#[cfg(test)]
mod tests {
    use std::io::{Seek as _, Write as _};

    use proptest::prelude::*;

    use super::*;

    fn file(text: &[u8]) -> File {
        let mut file = tempfile::tempfile().unwrap();
        file.write_all(text).unwrap();
        file.rewind().unwrap();
        file
    }

    fn load_all(texts: &[&[u8]]) -> Loaded {
        let names = ["one.txt", "two.txt", "three.txt", "four.txt"];
        let lists = names.iter().zip(texts);
        Indicators::load(lists.map(|(name, text)| ((*name).to_owned(), file(text))).collect())
            .unwrap()
    }

    fn load(texts: &[&[u8]]) -> Result<(Indicators, Vec<RuleFile>), IndicatorError> {
        let Loaded { indicators, files, faults } = load_all(texts);
        faults.into_iter().next().map_or(Ok((indicators, files)), Err)
    }

    const EMPTY_SHA256: &str = "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855";
    const EMPTY_SHA1: &str = "da39a3ee5e6b4b0d3255bfef95601890afd80709";
    const EMPTY_MD5: &str = "d41d8cd98f00b204e9800998ecf8427e";

    fn raw<const N: usize>(hex: &str) -> [u8; N] {
        std::array::from_fn(|i| u8::from_str_radix(&hex[2 * i..2 * i + 2], 16).unwrap())
    }

    #[test]
    fn every_common_form_of_a_digest_is_read() {
        let upper = EMPTY_SHA256.to_uppercase();
        for text in [
            EMPTY_SHA256.to_owned(),
            format!("{upper}\n"),
            format!("\u{feff}{EMPTY_SHA256}\r\n"),
            format!("# comment\n\n  {EMPTY_SHA256}  \n"),
            format!("{EMPTY_SHA256}  a file.txt\n"),
            format!("{EMPTY_SHA256} *a,b;c.bin\n"),
            format!("\\{EMPTY_SHA256}  new\\nline\n"),
            format!("SHA256 (a (b).txt) = {EMPTY_SHA256}\n"),
            format!("{EMPTY_SHA256};Bad thing\n"),
            format!("name,sha256,seen\n\"evil, inc\",\"{EMPTY_SHA256}\",2026\n"),
            format!("hash\n{EMPTY_SHA256}\n"),
            format!("1\t{EMPTY_SHA256}\tx"),
            format!("7;80;{EMPTY_SHA256}"),
            format!("md5,sha1,sha256\n{EMPTY_MD5},{EMPTY_SHA1},{EMPTY_SHA256}"),
        ] {
            let (indicators, files) =
                load(&[text.as_bytes()]).unwrap_or_else(|error| panic!("{text:?}: {error}"));
            assert_eq!(indicators.find_sha256(&raw(EMPTY_SHA256)), Some("one.txt"), "{text:?}");
            assert_eq!(files[0].entries, 1, "{text:?}");
            assert!(!indicators.needs_md5() && !indicators.needs_sha1(), "{text:?}");
        }
    }

    #[test]
    fn shorter_digests_are_kept_apart() {
        let text = format!("MD5 (x) = {EMPTY_MD5}\n{EMPTY_SHA1}  x\n");
        let (indicators, files) = load(&[b"", text.as_bytes()]).unwrap();
        assert_eq!(indicators.find_md5(&raw(EMPTY_MD5)), Some("two.txt"));
        assert_eq!(indicators.find_sha1(&raw(EMPTY_SHA1)), Some("two.txt"));
        assert_eq!(indicators.find_md5(&[0; 16]), None);
        assert!(indicators.needs_md5() && indicators.needs_sha1());
        assert_eq!(files.iter().map(|file| file.entries).collect::<Vec<_>>(), [0, 2]);
        assert_eq!(files[0].sha256.to_string(), EMPTY_SHA256);
    }

    #[test]
    fn a_digest_in_several_lists_is_the_first_lists() {
        let text = EMPTY_SHA256.as_bytes();
        let (indicators, _) = load(&[b"# none", text, text]).unwrap();
        assert_eq!(indicators.find_sha256(&raw(EMPTY_SHA256)), Some("two.txt"));
    }

    #[test]
    fn a_bad_line_is_named() {
        let cut = &EMPTY_SHA256[..63];
        for (text, line, word) in [
            (format!("{EMPTY_SHA256}\n\n# c\n{cut}\n"), 4, "63 hexadecimal digits"),
            (format!("{EMPTY_SHA256}\r\nnot an indicator\r\n"), 2, "neither"),
            ("/tmp/x;many\n".to_owned(), 1, "score"),
            ("/tmp/x;70\n/tmp/(x;70".to_owned(), 2, "unclosed group"),
            ("/tmp/x;70;(".to_owned(), 1, "false-positive"),
            (";70".to_owned(), 1, "empty"),
            ("/tmp/x;70;a;b".to_owned(), 1, "neither"),
            ("just a word".to_owned(), 1, "neither"),
        ] {
            let error = load(&[text.as_bytes()]).unwrap_err().to_string();
            assert!(
                error.starts_with(&format!("one.txt:{line}: ")) && error.contains(word),
                "{text:?}: {error}"
            );
        }
        let error = load(&[b"ok;50\n\xff\xfe;70"]).unwrap_err().to_string();
        assert_eq!(error, "one.txt:2: the pattern is not UTF-8");
    }

    #[test]
    fn a_broken_list_costs_itself_and_no_other() {
        let digest = EMPTY_SHA256.as_bytes();
        let pattern = format!("{EMPTY_MD5}\n/tmp/ok$;80\n/tmp/(;80\n");
        let loaded = load_all(&[
            b"/tmp/y$;80\nnot an indicator\n",
            digest,
            pattern.as_bytes(),
            b"/tmp/x$;80\n",
        ]);
        let faults: Vec<_> = loaded.faults.iter().map(ToString::to_string).collect();
        assert!(faults[0].starts_with("one.txt:2: "), "{faults:?}");
        assert!(faults[1].starts_with("three.txt:3: "), "{faults:?}");
        assert_eq!(faults.len(), 2, "{faults:?}");
        let files: Vec<_> = loaded.files.iter().map(|file| file.path.as_str()).collect();
        assert_eq!(files, ["two.txt", "four.txt"]);
        let sound = loaded.indicators;
        assert_eq!(sound.find_sha256(&raw(EMPTY_SHA256)), Some("two.txt"));
        assert_eq!(sound.match_path(b"/tmp/x")[0].list, "four.txt");
        assert!(sound.match_path(b"/tmp/ok").is_empty(), "nothing of a broken list is used");
        assert_eq!(sound.find_md5(&raw(EMPTY_MD5)), None);
    }

    #[test]
    fn lines_are_counted_through_all_pieces() {
        let mut text = format!("{EMPTY_SHA256}\n").repeat(40_000);
        text.push_str("# from here on\n/tmp/x$;80\n");
        text.push_str(&format!("{EMPTY_SHA256}\n").repeat(40_000));
        text.push_str("/tmp/y$;80\n");
        assert!(text.len() > 4 * PIECE);
        let (indicators, files) = load(&[text.as_bytes()]).unwrap();
        assert_eq!(files[0].entries, 80_002);
        let hit = &indicators.match_path(b"/tmp/y")[0];
        assert_eq!((hit.line, hit.description), (80_003, Some("from here on")));
        text.push_str("wrong");
        assert!(load(&[text.as_bytes()]).unwrap_err().to_string().starts_with("one.txt:80004: "));
    }

    #[test]
    fn paths_match_unless_their_false_positive_does() {
        let text = "# Miner\n# dropped by x\n(?i)/xmrig[0-9]*$;80;^/opt/\n\n\\\\Temp\\\\svchost\\.exe;65\n.*\\.kirbi$;95\n";
        let (indicators, files) = load(&[text.as_bytes()]).unwrap();
        assert_eq!(files[0].entries, 3);
        let hit = indicators.match_path(b"/tmp/XMRig7").remove(0);
        assert_eq!((hit.list, hit.line, hit.score), ("one.txt", 3, 80));
        assert_eq!((hit.pattern, hit.description), ("(?i)/xmrig[0-9]*$", Some("dropped by x")));
        assert!(indicators.match_path(b"/opt/xmrig").is_empty());
        assert!(indicators.match_path(b"/usr/bin/ls").is_empty());
        let hit = indicators.match_path(b"/mnt/c/Windows/Temp/svchost.exe").remove(0);
        assert_eq!((hit.pattern, hit.score), ("\\\\Temp\\\\svchost\\.exe", 65), "as written");
        assert_eq!(
            indicators.match_path(b"/root/\xff\xfe.kirbi").len(),
            1,
            "names need not be text"
        );
    }

    #[test]
    fn more_patterns_than_one_set_holds_all_match() {
        let text: String = (0..4500).map(|i| format!("^/srv/known-{i}/;60\n")).collect();
        let (indicators, _) = load(&[text.as_bytes()]).unwrap();
        for i in [0, 1999, 2000, 4499] {
            let hits = indicators.match_path(format!("/srv/known-{i}/x").as_bytes());
            assert_eq!(hits.iter().map(|hit| hit.line).collect::<Vec<_>>(), [i + 1]);
        }
    }

    proptest! {
        /// Short digests spread over few values, so that buckets are shared and digests repeat.
        #[test]
        fn a_lookup_is_a_naive_search(
            lists in proptest::collection::vec(proptest::collection::vec((0..3_u8, any::<bool>(), 0..5_u8), 0..40), 1..4),
            wanted in (0..3_u8, any::<bool>(), 0..5_u8),
        ) {
            let digest = |(first, second, last): (u8, bool, u8)| -> [u8; 32] {
                let mut digest = [0x5a; 32];
                (digest[0], digest[1], digest[31]) = (first.wrapping_mul(127), if second { 0xff } else { 0 }, last);
                digest
            };
            let lists: Vec<Vec<[u8; 32]>> = lists.into_iter().map(|list| list.into_iter().map(digest).collect()).collect();
            let texts: Vec<Vec<u8>> = lists.iter().map(|list| {
                list.iter().flat_map(|digest| format!("{}\n", Sha256(*digest)).into_bytes()).collect()
            }).collect();
            let texts: Vec<&[u8]> = texts.iter().map(Vec::as_slice).collect();
            let (indicators, _) = load(&texts).unwrap();
            let wanted = digest(wanted);
            let naive = lists.iter().position(|list| list.contains(&wanted)).map(|i| ["one.txt", "two.txt", "three.txt"][i]);
            prop_assert_eq!(indicators.find_sha256(&wanted), naive);
        }

        #[test]
        fn any_bytes_are_a_list_or_an_error(text in proptest::collection::vec(prop_oneof![any::<u8>(), Just(b'\n'), Just(b';'), Just(b'a'), Just(b'7')], 0..300)) {
            match load(&[&text]) {
                Ok((indicators, files)) => {
                    prop_assert!(files[0].entries <= text.len() as u64);
                    indicators.match_path(&text);
                }
                Err(IndicatorError::Line { line, .. }) => prop_assert!(line >= 1 && line <= 1 + text.len() as u64),
                Err(other) => prop_assert!(false, "{other}"),
            }
        }
    }
}
