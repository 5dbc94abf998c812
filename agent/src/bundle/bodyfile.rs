//! `timeline.body`: The Sleuth Kit's bodyfile, version 3.
//!
//! Purpose: `file` records as the lines that `mactime` reads,
//! `MD5|name|inode|mode_as_string|UID|GID|size|atime|mtime|ctime|crtime`, with whole seconds
//! (<https://wiki.sleuthkit.org/index.php?title=Body_file>). Pure. Never lets a name on the evidence end
//! a field or a line.
//!
//! **Escape.** `fls` writes names as they are, and a name may hold `|`. Here names are written as
//! everywhere in the bundle: a backslash is `\\`; control, bidirectional and other invisible characters
//! are `\u{hex}`, and a byte that is no UTF-8 is `\xhh`. So are `\u{7c}` for `|`; `\u{22}` for the
//! quote, with which `mactime -d` encloses names and which it does not escape; and `\u{25}` for a `%`
//! before two hexadecimal digits, which `mactime` would turn into the character of that number, a
//! newline for instance. All other text is as it is on the evidence, and the escape can be undone.

use std::{borrow::Cow, fmt, io::Write as _};

use base64::{Engine as _, prelude::BASE64_STANDARD};
use cleanroom_contract::{EntryKind, EntryState, ScanState, printable};
use serde::{Deserialize, Deserializer, de};

/// Text borrowed from the line where it has no escapes.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
struct Text<'a>(#[serde(borrow)] Cow<'a, str>);

/// A path of a record: text, and its exact bytes where the text cannot hold them.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
struct BodyPath<'a> {
    #[serde(borrow)]
    path: Cow<'a, str>,
    #[serde(borrow, default)]
    path_bytes: Option<Text<'a>>,
}

/// What the bodyfile needs of a `file` record; all else of the record is passed over.
#[derive(Clone, Debug, PartialEq, Deserialize)]
pub(crate) struct BodyEntry<'a> {
    #[serde(borrow)]
    volume: Cow<'a, str>,
    #[serde(borrow)]
    path: Cow<'a, str>,
    #[serde(borrow, default)]
    path_bytes: Option<Text<'a>>,
    #[serde(borrow, default)]
    target: Option<BodyPath<'a>>,
    #[serde(borrow, default)]
    md5: Option<Text<'a>>,
    #[serde(default)]
    sha256: Option<de::IgnoredAny>,
    #[serde(default)]
    extents: Option<BodyExtents>,
    /// What became of the rules.
    pub(crate) scan: ScanState,
    /// The kind of the entry.
    pub(crate) kind: EntryKind,
    #[serde(default)]
    state: EntryState,
    /// Bytes.
    pub(crate) size: u64,
    mode: u32,
    uid: u32,
    gid: u32,
    inode: u64,
    atime: Seconds,
    mtime: Seconds,
    ctime: Seconds,
    #[serde(default)]
    btime: Seconds,
}

impl BodyEntry<'_> {
    /// Whether the content was read to its end.
    pub(crate) fn is_hashed(&self) -> bool {
        self.sha256.is_some() || self.extents.is_some()
    }

    /// Bytes of content that the digest covers: of a file with too many holes, the data in the extents
    /// that the record lists.
    pub(crate) fn hashed_bytes(&self) -> u64 {
        match &self.extents {
            Some(listed) => listed.extents.iter().map(|extent| extent.length).sum(),
            None if self.sha256.is_some() => self.size,
            None => 0,
        }
    }
}

/// The data of a file with too many holes.
#[derive(Clone, Debug, PartialEq, Deserialize)]
struct BodyExtents {
    extents: Vec<BodyExtent>,
}

/// One run of it.
#[derive(Clone, Debug, PartialEq, Deserialize)]
struct BodyExtent {
    length: u64,
}

/// Reads a `file` record's JSON line.
///
/// # Errors
/// Where the line is no JSON object with the fields and times of a `file` record.
pub(crate) fn from_line(line: &[u8]) -> serde_json::Result<BodyEntry<'_>> {
    serde_json::from_slice(line)
}

/// Appends the record's line, with its newline. `with_volume` puts the volume's name and a colon before
/// the path, as a timeline of several volumes needs. A birth time that the file system does not keep is 0,
/// and an MD5 that was not computed too, as `fls` writes them; times before 1970 are negative.
pub(crate) fn write_line(record: &BodyEntry<'_>, with_volume: bool, out: &mut Vec<u8>) {
    match &record.md5 {
        Some(Text(md5)) if md5.len() == 32 && md5.bytes().all(|b| b.is_ascii_hexdigit()) => {
            out.extend_from_slice(md5.as_bytes());
        }
        _ => out.push(b'0'),
    }
    out.push(b'|');
    if with_volume {
        push_text(&record.volume, out);
        out.push(b':');
    }
    push_name(&record.path, record.path_bytes.as_ref(), out);
    if let Some(target) = &record.target {
        out.extend_from_slice(b" -> ");
        push_name(&target.path, target.path_bytes.as_ref(), out);
    }
    if record.state != EntryState::Allocated {
        out.extend_from_slice(b" (deleted)");
    }
    let mode = mode_text(record.kind, record.mode);
    // A vector takes all that is written to it.
    let _ = writeln!(
        out,
        "|{}|{}|{}|{}|{}|{}|{}|{}|{}",
        record.inode,
        std::str::from_utf8(&mode).unwrap_or_default(),
        record.uid,
        record.gid,
        record.size,
        record.atime.0,
        record.mtime.0,
        record.ctime.0,
        record.btime.0,
    );
}

/// The kind twice, from the name and from the inode, and the permissions as `ls` shows them. A socket
/// is `s` as a name and `h` as an inode, which is what `fls` prints (`tsk_fs_name_type_str`,
/// `tsk_fs_meta_type_str`).
fn mode_text(kind: EntryKind, mode: u32) -> [u8; 12] {
    let (name, inode) = match kind {
        EntryKind::File => (b'r', b'r'),
        EntryKind::Dir => (b'd', b'd'),
        EntryKind::Symlink => (b'l', b'l'),
        EntryKind::Fifo => (b'p', b'p'),
        EntryKind::Socket => (b's', b'h'),
        EntryKind::Char => (b'c', b'c'),
        EntryKind::Block => (b'b', b'b'),
    };
    let bit = |bit: u32, set: u8| if mode & bit == 0 { b'-' } else { set };
    let run =
        |execute: u32, special: u32, both: u8, only: u8| match (mode & execute, mode & special) {
            (0, 0) => b'-',
            (_, 0) => b'x',
            (0, _) => only,
            _ => both,
        };
    [
        name,
        b'/',
        inode,
        bit(0o400, b'r'),
        bit(0o200, b'w'),
        run(0o100, 0o4000, b's', b'S'),
        bit(0o040, b'r'),
        bit(0o020, b'w'),
        run(0o010, 0o2000, b's', b'S'),
        bit(0o004, b'r'),
        bit(0o002, b'w'),
        run(0o001, 0o1000, b't', b'T'),
    ]
}

/// Appends a name, escaped as the module says.
fn push_name(path: &str, path_bytes: Option<&Text<'_>>, out: &mut Vec<u8>) {
    if let Some(raw) =
        path_bytes.and_then(|Text(text)| BASE64_STANDARD.decode(text.as_bytes()).ok())
    {
        for chunk in raw.utf8_chunks() {
            push_text(chunk.valid(), out);
            for byte in chunk.invalid() {
                let _ = write!(out, "\\x{byte:02x}");
            }
        }
        return;
    }
    push_text(path, out);
}

/// Appends text, escaped as the module says.
fn push_text(text: &str, out: &mut Vec<u8>) {
    // Nearly every name needs no escape, and there are millions.
    let plain = |b: u8| matches!(b, b' '..=b'~') && !matches!(b, b'\\' | b'|' | b'"' | b'%');
    if text.bytes().all(plain) {
        out.extend_from_slice(text.as_bytes());
        return;
    }
    let text = printable(text);
    let bytes = text.as_bytes();
    for (index, byte) in bytes.iter().enumerate() {
        let hex = |ahead| bytes.get(index + ahead).is_some_and(u8::is_ascii_hexdigit);
        match byte {
            b'|' => out.extend_from_slice(b"\\u{7c}"),
            b'"' => out.extend_from_slice(b"\\u{22}"),
            b'%' if hex(1) && hex(2) => out.extend_from_slice(b"\\u{25}"),
            other => out.push(*other),
        }
    }
}

/// Whole seconds since 1970 of a record's time, rounded down as records store them.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct Seconds(i64);

impl<'de> Deserialize<'de> for Seconds {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Visitor;
        impl de::Visitor<'_> for Visitor {
            type Value = Seconds;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a UTC time with nine decimals, or @seconds.nanoseconds")
            }

            fn visit_str<E: de::Error>(self, text: &str) -> Result<Seconds, E> {
                parse_seconds(text)
                    .map(Seconds)
                    .ok_or_else(|| E::invalid_value(de::Unexpected::Str(text), &self))
            }
        }
        deserializer.deserialize_str(Visitor)
    }
}

/// The seconds of a record's time. By hand and without allocating, since each record has four.
fn parse_seconds(text: &str) -> Option<i64> {
    if let Some(text) = text.strip_prefix('@') {
        let (seconds, nanos) = text.split_once('.')?;
        let nine = nanos.len() == 9 && nanos.bytes().all(|b| b.is_ascii_digit());
        return if nine { seconds.parse().ok() } else { None };
    }
    const FORM: &[u8; 30] = b"0000-00-00T00:00:00.000000000Z";
    let bytes: &[u8; 30] = text.as_bytes().try_into().ok()?;
    let mut numbers = [0_i64; 7];
    let mut field = 0;
    for (byte, form) in bytes.iter().zip(FORM) {
        match form {
            b'0' if byte.is_ascii_digit() => {
                let number = numbers.get_mut(field)?;
                *number = *number * 10 + i64::from(byte - b'0');
            }
            b'0' => return None,
            _ if byte == form => field += 1,
            _ => return None,
        }
    }
    let [year, month, day, hour, minute, second, _nanos] = numbers;
    let leap = year % 4 == 0 && (year % 100 != 0 || year % 400 == 0);
    let month_days = match month {
        2 => 28 + i64::from(leap),
        4 | 6 | 9 | 11 => 30,
        1 | 3 | 5 | 7 | 8 | 10 | 12 => 31,
        _ => return None,
    };
    if !(1..=month_days).contains(&day) || hour > 23 || minute > 59 || second > 59 {
        return None;
    }
    // Days before each month of a common year; from March on a leap year has one more.
    const BEFORE: [i64; 12] = [0, 31, 59, 90, 120, 151, 181, 212, 243, 273, 304, 334];
    let before = BEFORE.get(usize::try_from(month - 1).ok()?)? + i64::from(leap && month > 2);
    // Days from 0000-01-01, with the leap days of the years before this one; the year 0 was one.
    let past = year + 3;
    let leap_days = past / 4 - (year + 99) / 100 + (year + 399) / 400;
    let days = year * 365 + leap_days + before + day - 1 - 719_528;
    Some(days * 86_400 + hour * 3600 + minute * 60 + second)
}

#[cfg(test)]
mod tests {
    use std::process::Command;

    use cleanroom_contract::{EvidencePath, FileRecord, Record, Timestamp};
    use proptest::prelude::*;

    use super::*;
    use crate::bundle::sample;

    /// The line of a record, through its JSON.
    fn line(record: &FileRecord) -> String {
        let json = serde_json::to_vec(&Record::File(Box::new(record.clone()))).unwrap();
        let mut out = Vec::new();
        write_line(&from_line(&json).unwrap(), false, &mut out);
        String::from_utf8(out).unwrap()
    }

    fn named(path: &[u8]) -> FileRecord {
        FileRecord { path: EvidencePath::new(path), ..sample::file("/") }
    }

    #[test]
    fn a_record_is_one_line_of_eleven_fields() {
        let mut record = sample::file("/usr/bin/a b");
        record.btime = Some(Timestamp { seconds: -1, nanos: 999_999_999 });
        assert_eq!(
            line(&record),
            "0|/usr/bin/a b|4711|r/rrwxr-xr-x|1000|100|5|1700000000|1700000001|1700000002|-1\n"
        );
        record.md5 = Some("d41d8cd98f00b204e9800998ecf8427e".to_owned());
        record.btime = None;
        record.mtime = Timestamp { seconds: i64::MAX, nanos: 1 };
        record.state = EntryState::Deleted;
        assert_eq!(
            line(&record),
            "d41d8cd98f00b204e9800998ecf8427e|/usr/bin/a b (deleted)|4711|r/rrwxr-xr-x|1000|100|5|\
             1700000000|9223372036854775807|1700000002|0\n"
        );
        record.md5 = Some("d41d8cd9|forged".to_owned());
        assert!(line(&record).starts_with("0|/usr"));
        record.kind = EntryKind::Symlink;
        record.mode = 0o777;
        record.state = EntryState::Allocated;
        record.target = Some(EvidencePath::new(b"../x|y"));
        assert!(line(&record).starts_with("0|/usr/bin/a b -> ../x\\u{7c}y|4711|l/lrwxrwxrwx|"));
    }

    /// The expected texts are what `fls -m /` of The Sleuth Kit 4.11 printed for such inodes.
    #[test]
    fn modes_read_as_fls_prints_them() {
        for (kind, mode, text) in [
            (EntryKind::File, 0o4755, "r/rrwsr-xr-x"),
            (EntryKind::File, 0o4644, "r/rrwSr--r--"),
            (EntryKind::File, 0o2755, "r/rrwxr-sr-x"),
            (EntryKind::File, 0o2644, "r/rrw-r-Sr--"),
            (EntryKind::File, 0o1644, "r/rrw-r--r-T"),
            (EntryKind::Dir, 0o1777, "d/drwxrwxrwt"),
            (EntryKind::Dir, 0o700, "d/drwx------"),
            (EntryKind::Symlink, 0o777, "l/lrwxrwxrwx"),
            (EntryKind::Fifo, 0o644, "p/prw-r--r--"),
            (EntryKind::Socket, 0o755, "s/hrwxr-xr-x"),
            (EntryKind::Char, 0o644, "c/crw-r--r--"),
            (EntryKind::Block, 0o644, "b/brw-r--r--"),
            (EntryKind::File, 0, "r/r---------"),
        ] {
            assert_eq!(std::str::from_utf8(&mode_text(kind, mode)).unwrap(), text);
        }
    }

    #[test]
    fn no_name_ends_a_field_or_a_line() {
        for (name, text) in [
            (&b"/a|b"[..], "/a\\u{7c}b"),
            (b"/a\nb\r\0", "/a\\u{a}b\\u{d}\\u{0}"),
            (b"/a\\nb", "/a\\\\nb"),
            (b"/100%", "/100%"),
            (b"/a%0Ab%zz%4", "/a\\u{25}0Ab%zz%4"),
            (b"/a\",\"b", "/a\\u{22},\\u{22}b"),
            (b"/\xff\xc3\xa9|", "/\\xff\u{e9}\\u{7c}"),
            ("/\u{202e}x".as_bytes(), "/\\u{202e}x"),
            (b"/\x1b[2J", "/\\u{1b}[2J"),
        ] {
            let line = line(&named(name));
            assert_eq!(line.split('|').nth(1).unwrap(), text);
            assert_eq!(line.split('|').count(), 11);
        }
    }

    #[test]
    fn lines_that_are_no_file_record_are_refused() {
        for bad in ["", "{}", "[]", "null", r#"{"type":"gap","v":1,"kind":"sparse"}"#] {
            assert!(from_line(bad.as_bytes()).is_err(), "{bad}");
        }
        let json = serde_json::to_string(&Record::File(Box::new(sample::file("/x")))).unwrap();
        assert!(from_line(json.as_bytes()).is_ok());
        assert!(from_line(json.replace("2023-11-14", "2023-11-31").as_bytes()).is_err());
    }

    #[test]
    fn plain_text_is_borrowed() {
        let json = serde_json::to_vec(&Record::File(Box::new(named(b"/a\xff")))).unwrap();
        let entry = from_line(&json).unwrap();
        assert!(matches!(entry.path, Cow::Borrowed(_)));
        assert!(matches!(entry.path_bytes, Some(Text(Cow::Borrowed(_)))));
    }

    /// What the real program makes of it; a machine without it fails this test.
    #[test]
    fn mactime_reads_the_lines_and_no_forged_ones() {
        let temp = tempfile::tempdir().unwrap();
        let body = temp.path().join("timeline.body");
        let forged = b"/x%0A0|forged|1|r/rrw-------|0|0|0|1700000000|0|0|0\n0|forged";
        let mut link = sample::file("/etc/alternatives/vi");
        link.kind = EntryKind::Symlink;
        link.mode = 0o777;
        link.target = Some(EvidencePath::new(b"/usr/bin/vim"));
        let lines = [line(&sample::file("/bin/sh")), line(&link), line(&named(forged))];
        std::fs::write(&body, lines.concat()).unwrap();
        let output = Command::new("mactime")
            .args(["-d", "-y", "-z", "UTC", "-b"])
            .arg(&body)
            .output()
            .expect("this test needs mactime (Debian: sleuthkit)");
        let text = String::from_utf8(output.stdout).unwrap();
        assert!(output.status.success(), "{text}");
        let expected: Vec<String> = [
            ("2023-11-14T22:13:20Z", ".a.."),
            ("2023-11-14T22:13:21Z", "m..."),
            ("2023-11-14T22:13:22Z", "..c."),
        ]
        .into_iter()
        .flat_map(|(time, letters)| {
            [
                format!("{time},5,{letters},r/rrwxr-xr-x,1000,100,4711,\"/bin/sh\""),
                format!(
                    "{time},5,{letters},l/lrwxrwxrwx,1000,100,4711,\"/etc/alternatives/vi -> /usr/bin/vim\""
                ),
            ]
        })
        .collect();
        for line in &expected {
            assert!(text.lines().any(|l| l == line), "{line}\n{text}");
        }
        assert!(!text.lines().any(|l| l.ends_with("\"forged\"") || l.starts_with("0|")), "{text}");
        // A heading, three times of three entries; mactime shows an unknown birth time as its own day.
        let shown = text.lines().filter(|l| l.starts_with("2023-")).count();
        assert_eq!(shown, 9, "{text}");
    }

    proptest! {
        #[test]
        fn seconds_agree_with_the_contract(seconds in any::<i64>(), near in -62_167_219_200..253_402_300_800_i64, nanos in 0..1_000_000_000_u32) {
            for seconds in [seconds, near] {
                let text = Timestamp { seconds, nanos }.to_string();
                prop_assert_eq!(parse_seconds(&text), Some(seconds));
            }
        }

        #[test]
        fn dates_are_accepted_as_the_contract_does(text in "[0-9]{4}-[01][0-9]-[0-3][0-9]T[0-2][0-9]:[0-6][0-9]:[0-6][0-9]\\.[0-9]{9}Z") {
            let contract = serde_json::from_str::<Timestamp>(&format!("\"{text}\"")).ok();
            prop_assert_eq!(parse_seconds(&text), contract.map(|t| t.seconds));
        }

        #[test]
        fn any_name_is_one_field(raw in proptest::collection::vec(any::<u8>(), 0..60), target in proptest::collection::vec(any::<u8>(), 0..60)) {
            let mut record = named(&raw);
            record.target = Some(EvidencePath::new(&target));
            let line = line(&record);
            prop_assert_eq!(line.matches('|').count(), 10);
            prop_assert_eq!(line.matches('\n').count(), 1);
            prop_assert!(!line.trim_end_matches('\n').chars().any(char::is_control));
        }

        #[test]
        fn any_bytes_are_read_without_panic(bytes in proptest::collection::vec(any::<u8>(), 0..200), text in ".{0,40}") {
            let _ = from_line(&bytes);
            let _ = parse_seconds(&text);
        }
    }
}
