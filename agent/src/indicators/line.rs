//! One line of an indicator list.
//!
//! Written for lists of millions of lines: a line that is a digest is decoded in place, and the rest is only looked
//! at closely where a line is something else.

/// What a line is.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Line {
    /// Nothing.
    Empty,
    /// Its text without `#`.
    Comment(String),
    /// The names of a table's columns.
    Header,
    /// A digest.
    Sha256([u8; 32]),
    /// A digest.
    Sha1([u8; 20]),
    /// A digest.
    Md5([u8; 16]),
    /// A pattern of paths.
    Path {
        /// A regular expression, not yet compiled.
        pattern: String,
        /// From the list.
        score: i64,
        /// A regular expression, not yet compiled, for paths that are harmless after all.
        false_positive: Option<String>,
    },
    /// No indicator; what is wrong.
    Wrong(String),
}

/// The digest of `N` bytes that `text` begins with, and what is behind it, where its line ends there or,
/// for SHA-256, the strongest, goes on with another column.
pub(super) fn leading<const N: usize>(text: &[u8]) -> Option<([u8; N], &[u8])> {
    let (hex, rest) = text.split_at_checked(2 * N)?;
    match rest {
        [] | [b'\n', ..] | [b'\r', b'\n', ..] => {}
        [b' ' | b'\t' | b',' | b';', ..] if N == 32 => {}
        _ => return None,
    }
    Some((decode(hex)?, rest))
}

/// `hex` as `N` bytes, where all of it is `2 * N` hexadecimal digits. `N` is a multiple of 4.
fn decode<const N: usize>(hex: &[u8]) -> Option<[u8; N]> {
    if hex.len() != 2 * N {
        return None;
    }
    let mut out = [0; N];
    let mut rest = hex;
    for bytes in out.as_chunks_mut::<4>().0 {
        let (digits, tail) = rest.split_first_chunk::<8>()?;
        *bytes = decode_eight(u64::from_le_bytes(*digits))?;
        rest = tail;
    }
    Some(out)
}

/// Eight hexadecimal digits, the first in the lowest byte, as four bytes. All eight are worked on at once:
/// lists have hundreds of millions of them, and are read by unoptimised builds too.
fn decode_eight(digits: u64) -> Option<[u8; 4]> {
    const ONES: u64 = 0x0101_0101_0101_0101;
    const TOPS: u64 = 0x80 * ONES;
    if digits & TOPS != 0 {
        return None;
    }
    // Adding brings a byte's top bit up where the character is at or past a bound, and never reaches the
    // next byte, since no character has that bit yet.
    let decimal = (digits + (0x80 - 0x30) * ONES) & !(digits + (0x80 - 0x3a) * ONES);
    let lower = digits | (0x20 * ONES);
    let letter = (lower + (0x80 - 0x61) * ONES) & !(lower + (0x80 - 0x67) * ONES);
    if (decimal | letter) & TOPS != TOPS {
        return None;
    }
    // A letter has bit 6, and a low half of 1 to 6 for 10 to 15.
    let halves = (digits & (0x0f * ONES)) + 9 * (digits >> 6 & ONES);
    let bytes = (halves << 4 | halves >> 8) & 0x00ff_00ff_00ff_00ff;
    let pairs = (bytes | bytes >> 8) & 0x0000_ffff_0000_ffff;
    let [one, two, _, _, three, four, _, _] = pairs.to_le_bytes();
    Some([one, two, three, four])
}

/// What `text` is: a line without its end and without white space around it. The module `indicators`
/// says how it is decided.
pub(super) fn read(text: &[u8], header_allowed: bool) -> Line {
    let Some(first) = text.first() else { return Line::Empty };
    if *first == b'#' {
        let comment =
            text.trim_ascii_start().iter().position(|byte| *byte != b'#' && *byte != b' ');
        let comment = comment.and_then(|at| text.get(at..)).unwrap_or_default();
        return Line::Comment(String::from_utf8_lossy(comment).into_owned());
    }
    if let Some(digest) = sum_line(text).or_else(|| table_row(text)) {
        return digest;
    }
    let fields: Vec<&[u8]> = text.split(|byte| *byte == b';').collect();
    match fields.as_slice() {
        [pattern, score] => {
            path_line(pattern, score, b"").unwrap_or_else(|| other(text, header_allowed))
        }
        [pattern, score, false_positive] => {
            path_line(pattern, score, false_positive).unwrap_or_else(|| other(text, header_allowed))
        }
        _ => other(text, header_allowed),
    }
}

/// The output of `md5sum`, `sha1sum` or `sha256sum`, with and without `--tag`. A leading backslash says that
/// the file name is escaped (GNU coreutils).
fn sum_line(text: &[u8]) -> Option<Line> {
    let plain = text.strip_prefix(b"\\").unwrap_or(text);
    let word = plain.split(u8::is_ascii_whitespace).next().unwrap_or_default();
    let tagged = || {
        let tag = text.split(|byte| *byte == b' ').next().unwrap_or_default();
        let known: [&[u8]; 4] = [b"SHA256", b"SHA2-256", b"SHA1", b"MD5"];
        let last = text.rsplit(|byte| *byte == b' ').next().unwrap_or_default();
        known.contains(&tag.strip_prefix(b"\\").unwrap_or(tag)).then_some(last)
    };
    digest(word).or_else(|| digest(tagged()?)).filter(|line| {
        // A table's first column: a later one may be stronger.
        matches!(line, Line::Sha256(_)) || !text.iter().any(|byte| b",;\t".contains(byte))
    })
}

/// The strongest digest among the columns.
fn table_row(text: &[u8]) -> Option<Line> {
    let columns = text.split(|byte| b",;\t".contains(byte)).filter_map(|column| {
        // A first column can also be a digest and a file name.
        let column = unquoted(column);
        digest(column).or_else(|| digest(column.split(u8::is_ascii_whitespace).next()?))
    });
    let strength = |line: &Line| match line {
        Line::Sha256(_) => 3,
        Line::Sha1(_) => 2,
        _ => 1,
    };
    columns.reduce(|one, two| if strength(&two) > strength(&one) { two } else { one })
}

fn unquoted(column: &[u8]) -> &[u8] {
    let quote = |byte: &u8| b"\"' ".contains(byte);
    let start = column.iter().position(|byte| !quote(byte)).unwrap_or(column.len());
    let end = column.iter().rposition(|byte| !quote(byte)).map_or(start, |at| at + 1);
    column.get(start..end).unwrap_or_default()
}

fn digest(word: &[u8]) -> Option<Line> {
    match word.len() {
        64 => decode(word).map(Line::Sha256),
        40 => decode(word).map(Line::Sha1),
        32 => decode(word).map(Line::Md5),
        _ => None,
    }
}

/// A pattern; `None` where the score is no number, and the line may be something else.
fn path_line(pattern: &[u8], score: &[u8], false_positive: &[u8]) -> Option<Line> {
    let score = std::str::from_utf8(score).ok()?.trim().parse().ok()?;
    if pattern.is_empty() {
        return Some(Line::Wrong("the pattern is empty".to_owned()));
    }
    Some(match (std::str::from_utf8(pattern), std::str::from_utf8(false_positive)) {
        (Ok(pattern), Ok(false_positive)) => Line::Path {
            pattern: pattern.to_owned(),
            score,
            false_positive: Some(false_positive.to_owned()).filter(|text| !text.is_empty()),
        },
        _ => Line::Wrong("the pattern is not UTF-8".to_owned()),
    })
}

/// A header, or what is wrong.
fn other(text: &[u8], header_allowed: bool) -> Line {
    let word = text
        .split(|byte| byte.is_ascii_whitespace() || b",;".contains(byte))
        .next()
        .unwrap_or_default();
    if word.len() >= 32 && word.iter().all(u8::is_ascii_hexdigit) {
        return Line::Wrong(format!(
            "{} hexadecimal digits are no MD5, SHA-1 or SHA-256",
            word.len()
        ));
    }
    if header_allowed && is_header(text) {
        return Line::Header;
    }
    let mut fields = text.split(|byte| *byte == b';').skip(1);
    match (fields.next(), fields.nth(1)) {
        (Some(score), None) => {
            let score: String = String::from_utf8_lossy(score).escape_default().take(40).collect();
            Line::Wrong(format!("the score {score:?} is not a whole number"))
        }
        _ => Line::Wrong("neither a digest nor regex;score".to_owned()),
    }
}

/// Whether one column is called what columns of digests are called.
fn is_header(text: &[u8]) -> bool {
    const NAMES: [&str; 6] = ["hash", "md5", "sha1", "sha-1", "sha256", "sha-256"];
    const GENERAL: [&str; 5] = ["digest", "indicator", "ioc", "value", "checksum"];
    text.split(|byte| b",;\t".contains(byte)).any(|column| {
        let column = String::from_utf8_lossy(unquoted(column)).to_ascii_lowercase();
        column.len() <= 64 && NAMES.iter().chain(&GENERAL).any(|name| column.contains(name))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn digits_decode_in_either_case_and_nothing_else_does() {
        assert_eq!(decode::<4>(b"00fFaB9c"), Some([0, 0xff, 0xab, 0x9c]));
        for byte in 0..=u8::MAX {
            let value = char::from(byte).to_digit(16).and_then(|digit| u8::try_from(digit).ok());
            for at in 0..8 {
                let mut hex = *b"12345678";
                hex[at] = byte;
                let mut expected = [0x12, 0x34, 0x56, 0x78];
                let half = &mut expected[at / 2];
                *half = match (value, at % 2) {
                    (Some(value), 0) => *half & 0x0f | value << 4,
                    (Some(value), _) => *half & 0xf0 | value,
                    (None, _) => *half,
                };
                assert_eq!(decode::<4>(&hex), value.map(|_| expected), "{byte} at {at}");
            }
        }
        for bad in
            [&b"00fFaB9"[..], b"00fFaB9c0", b"00fFaB9g", b"00 FaB9c", b"+0fFaB9c", b"\xff0fFaB9c"]
        {
            assert_eq!(decode::<4>(bad), None);
        }
    }

    #[test]
    fn a_leading_digest_ends_with_its_line_or_column() {
        let hex = [b'a'; 64];
        for (end, sha256, md5) in [
            (&b""[..], true, true),
            (b"\nx", true, true),
            (b"\r\nx", true, true),
            (b"  name", true, false),
            (b",x", true, false),
            (b"a", false, false),
            (b"\r", false, false),
        ] {
            let long = [&hex[..], end].concat();
            let short = [&hex[..32], end].concat();
            assert_eq!(
                leading::<32>(&long),
                sha256.then_some(([0xaa; 32], end)),
                "{}",
                end.escape_ascii()
            );
            assert_eq!(
                leading::<16>(&short),
                md5.then_some(([0xaa; 16], end)),
                "{}",
                end.escape_ascii()
            );
        }
    }

    #[test]
    fn lines_that_are_no_digest() {
        let path = |pattern: &str, score, false_positive: Option<&str>| Line::Path {
            pattern: pattern.into(),
            score,
            false_positive: false_positive.map(str::to_owned),
        };
        for (text, line) in [
            (&b""[..], Line::Empty),
            (b"#", Line::Comment(String::new())),
            (b"## Ebury: x", Line::Comment("Ebury: x".into())),
            (b"/lib/libs[0-9]\\.so$;75", path("/lib/libs[0-9]\\.so$", 75, None)),
            (b"/x{1,3}; 75 ;/opt/", path("/x{1,3}", 75, Some("/opt/"))),
            (b"/x;-5;", path("/x", -5, None)),
        ] {
            assert_eq!(read(text, false), line, "{}", text.escape_ascii());
        }
    }

    #[test]
    fn a_header_is_only_the_first_line() {
        for text in [&b"SHA256"[..], b"id,file_name,sha256_hash", b"first_seen\tMD5"] {
            assert_eq!(read(text, true), Line::Header);
            assert!(matches!(read(text, false), Line::Wrong(_)));
        }
        assert!(matches!(read(b"a,b,c", true), Line::Wrong(_)));
    }
}
