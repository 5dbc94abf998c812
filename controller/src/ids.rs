//! Which instances were named, on the command line or in a file.
//!
//! Purpose: reads words, and checks the form of all of them before anything is asked of AWS. Touches the ids file or
//! standard input. Bounded: 10,000 lines, 1 MiB.

use std::{
    collections::BTreeSet,
    fs::File,
    io::{self, Read},
    path::{Path, PathBuf},
};

use cleanroom_contract::printable;
use cleanroom_controller::flow::find;

/// The largest ids file.
const MAX_BYTES: u64 = 1 << 20;

/// The most lines of an ids file.
const MAX_LINES: usize = 10_000;

/// Why the instances that were named can not be acted on.
#[derive(Debug, thiserror::Error)]
pub(crate) enum IdsError {
    /// The file can not be read.
    #[error("read {}", printable(&path.to_string_lossy()))]
    Read {
        /// The file.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// It is too large to be meant.
    #[error("{}: {why}", printable(&path.to_string_lossy()))]
    Large {
        /// The file.
        path: PathBuf,
        /// What is too large.
        why: String,
    },
    /// Some of it names no instance.
    #[error(transparent)]
    Bad(Several),
    /// It names nothing at all.
    #[error("{} names no instance", printable(&path.to_string_lossy()))]
    Empty {
        /// The file.
        path: PathBuf,
    },
}

/// Several things are wrong, and all of them are told at once.
#[derive(Debug, thiserror::Error)]
#[error("{what}")]
pub(crate) struct Several {
    /// How many, and with what.
    pub what: String,
    /// Each of them, a line each, fit to be printed.
    pub each: Vec<String>,
}

/// Words that have the form of an instance's name, each once, and what was left out.
#[derive(Debug, Default, PartialEq, Eq)]
pub(crate) struct Words {
    /// In the order in which they were given.
    pub words: Vec<String>,
    /// Lines that name nothing, where they were to be skipped.
    pub skipped: Vec<String>,
}

/// The words of the command line.
///
/// # Errors
/// Names every word that has no form of an instance's name.
pub(crate) fn of_arguments(arguments: &[String]) -> Result<Words, IdsError> {
    let bad: Vec<_> =
        arguments.iter().filter_map(|word| find::query(word).err()).map(|e| shown(&e)).collect();
    if !bad.is_empty() {
        let what = format!("{} of {} arguments name no instance", bad.len(), arguments.len());
        return Err(IdsError::Bad(Several { what, each: bad }));
    }
    Ok(Words { words: once(arguments.iter().cloned()), skipped: Vec::new() })
}

/// The words of a file, or of standard input where it is `-`.
///
/// # Errors
/// See [`IdsError`]. With `skip_bad`, lines that name nothing are left out instead.
pub(crate) fn of_file(path: &Path, skip_bad: bool) -> Result<Words, IdsError> {
    let read = |source| IdsError::Read { path: path.to_owned(), source };
    let mut bytes = Vec::new();
    let mut reader: Box<dyn Read> = if path == Path::new("-") {
        Box::new(io::stdin().lock())
    } else {
        Box::new(File::open(path).map_err(read)?)
    };
    (&mut reader).take(MAX_BYTES + 1).read_to_end(&mut bytes).map_err(read)?;
    parse(path, &bytes, skip_bad)
}

/// The words of a file's bytes.
fn parse(path: &Path, bytes: &[u8], skip_bad: bool) -> Result<Words, IdsError> {
    let large = |why: &str| IdsError::Large { path: path.to_owned(), why: why.to_owned() };
    if bytes.len() as u64 > MAX_BYTES {
        return Err(large("it is larger than 1 MiB"));
    }
    let bytes = bytes.strip_prefix(b"\xef\xbb\xbf").unwrap_or(bytes);
    let mut words = Vec::new();
    let mut bad = Vec::new();
    for (number, line) in (1..).zip(bytes.split(|byte| *byte == b'\n')) {
        if number > MAX_LINES + 1 || (number > MAX_LINES && !line.is_empty()) {
            return Err(large("it has more than 10,000 lines"));
        }
        match word(line) {
            Ok(None) => {}
            Ok(Some(word)) => words.push(word),
            Err(why) => bad.push(format!("line {number}: {why}")),
        }
    }
    if !bad.is_empty() && !skip_bad {
        let shown = printable(&path.to_string_lossy());
        let what = match bad.len() {
            1 => format!("{shown}: one line names no instance"),
            n => format!("{shown}: {n} lines name no instance"),
        };
        return Err(IdsError::Bad(Several { what, each: bad }));
    }
    if words.is_empty() {
        return Err(IdsError::Empty { path: path.to_owned() });
    }
    Ok(Words { words: once(words), skipped: bad })
}

/// The word of a line; none where it is blank or a comment.
fn word(line: &[u8]) -> Result<Option<String>, String> {
    let Ok(text) = std::str::from_utf8(line) else {
        return Err(format!("{:?} is no UTF-8 text", printable(&String::from_utf8_lossy(line))));
    };
    // A Name tag may hold a #, so a comment within a line begins after white space.
    let end = text
        .char_indices()
        .zip(std::iter::once(' ').chain(text.chars()))
        .find(|((_, c), before)| *c == '#' && before.is_whitespace())
        .map_or(text.len(), |((at, _), _)| at);
    let text = text[..end].trim();
    if text.is_empty() {
        return Ok(None);
    }
    find::query(text).map_err(|error| shown(&error))?;
    Ok(Some(text.to_owned()))
}

fn shown(error: &find::FindError) -> String {
    match error {
        // It quotes the word already.
        find::FindError::Malformed(_) => error.to_string(),
        _ => printable(&error.to_string()),
    }
}

/// Each once, in the order of their first mention.
fn once(words: impl IntoIterator<Item = String>) -> Vec<String> {
    let mut seen = BTreeSet::new();
    words.into_iter().filter(|word| seen.insert(word.clone())).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn file(text: &[u8], skip_bad: bool) -> Result<Words, IdsError> {
        parse(Path::new("ids.txt"), text, skip_bad)
    }

    #[test]
    fn comments_blank_lines_and_repetitions_are_left_out() {
        let text = b"\xef\xbb\xbf# ticket 7\ni-0123456789abcdef0  # web\r\n\n  10.0.0.5\t\nweb #1\nC#\ni-0123456789abcdef0\n";
        let words = file(text, false).expect("all of it names instances").words;
        assert_eq!(words, ["i-0123456789abcdef0", "10.0.0.5", "web", "C#"]);
    }

    #[test]
    fn every_garbage_line_is_named_with_its_number() {
        let text = b"i-0123456789abcdef0\ni-123\n\narn:aws:s3:::x\n\xff\xfe\nweb\x1b[2J\n";
        let Err(IdsError::Bad(several)) = file(text, false) else {
            panic!("four lines are garbage")
        };
        assert_eq!(several.what, "ids.txt: 4 lines name no instance");
        assert_eq!(
            several.each,
            [
                "line 2: \"i-123\" names no instance: give its id (i- and 8 or 17 hexadecimal digits), ARN, address or Name tag",
                "line 4: arn:aws:s3:::x: it is not arn:aws:ec2:REGION:ACCOUNT:instance/i-…",
                "line 5: \"\u{fffd}\u{fffd}\" is no UTF-8 text",
                "line 6: \"web\\u{1b}[2J\" names no instance: give its id (i- and 8 or 17 hexadecimal digits), ARN, address or Name tag",
            ]
        );
        let words = file(text, true).expect("the first line is good");
        assert_eq!(words.words, ["i-0123456789abcdef0"]);
        assert_eq!(words.skipped.len(), 4);
    }

    #[test]
    fn a_file_is_bounded_and_names_something() {
        let most = "web\n".repeat(MAX_LINES);
        assert!(file(most.as_bytes(), false).is_ok());
        let more = format!("{most}web");
        assert!(matches!(file(more.as_bytes(), true), Err(IdsError::Large { .. })));
        assert!(matches!(file(&vec![b'#'; 1 << 20], false), Err(IdsError::Empty { .. })));
        assert!(matches!(file(&vec![b'#'; (1 << 20) + 1], true), Err(IdsError::Large { .. })));
        assert!(matches!(file(b"# nothing\n", false), Err(IdsError::Empty { .. })));
        assert!(matches!(file(b"i-1\n", true), Err(IdsError::Empty { .. })));
    }

    #[test]
    fn all_bad_arguments_are_named_at_once() {
        let arguments = ["i-12", "web", "arn:x"].map(str::to_owned);
        let Err(IdsError::Bad(several)) = of_arguments(&arguments) else {
            panic!("two are garbage")
        };
        assert_eq!(several.what, "2 of 3 arguments name no instance");
        assert_eq!(several.each.len(), 2, "{several:?}");
    }
}
