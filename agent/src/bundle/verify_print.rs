//! What `verify` prints.
//!
//! Purpose: a verification for people and as JSON lines. Touches only the stream it is given. Never
//! prints a name that could move a cursor.

use std::io::{self, Write};

use cleanroom_contract::printable;
use serde::Serialize;

use super::{
    figures::counted,
    verify::{FileState, SignatureState, Verification},
};

impl Verification {
    /// Writes it for people: a line for each file that is not as sealed, then the signature, then the
    /// verdict.
    ///
    /// # Errors
    /// What `out` says.
    pub(crate) fn write_human(&self, out: &mut impl Write) -> io::Result<()> {
        for (name, state) in &self.files {
            match state {
                FileState::Ok => {}
                FileState::Changed { expected, found } => {
                    writeln!(
                        out,
                        "changed  {name}\n         sealed as {expected}\n         found {}",
                        printable(&found.to_string())
                    )?;
                }
                FileState::Missing => writeln!(out, "missing  {name}")?,
                FileState::Extra => writeln!(out, "extra    {name}")?,
            }
        }
        if self.more_extra {
            writeln!(out, "extra    and more that are not named here")?;
        }
        writeln!(out, "{}", self.signature_line())?;
        if self.incomplete {
            writeln!(out, "scan     INCOMPLETE, as its own report says or leaves open")?;
        }
        let good = self.files.iter().filter(|(_, state)| *state == FileState::Ok).count();
        let good = counted(u64::try_from(good).unwrap_or(u64::MAX), "file");
        match self.is_intact() {
            true => writeln!(out, "intact   {good} as sealed"),
            false => writeln!(out, "NOT INTACT  {good} as sealed; see above"),
        }
    }

    /// The line on the signature.
    fn signature_line(&self) -> String {
        match (&self.signature, self.trust_required) {
            (SignatureState::None, false) => {
                "unsigned SHA256SUMS has no signature: anyone could have written it".to_owned()
            }
            (SignatureState::None, true) => {
                "UNSIGNED SHA256SUMS has no signature, and one by a trusted key is required"
                    .to_owned()
            }
            (SignatureState::ValidBy(key), _) => format!("signed   by the trusted key {key}"),
            (SignatureState::UntrustedBy(key), false) => format!(
                "signed   by the key {key}; no trusted key was given, so this only tells which key it was"
            ),
            (SignatureState::UntrustedBy(key), true) => {
                format!("UNTRUSTED signature by the key {key}, which is not among the trusted keys")
            }
            (SignatureState::Invalid(reason), _) => {
                format!("INVALID  signature: {}", printable(reason))
            }
        }
    }

    /// Writes it as JSON lines: a `verified_file` for each file, then one `verification`.
    ///
    /// # Errors
    /// What `out` says.
    pub(crate) fn write_jsonl(&self, out: &mut impl Write) -> io::Result<()> {
        for (name, state) in &self.files {
            let (word, expected, found) = match state {
                FileState::Ok => ("ok", None, None),
                FileState::Changed { expected, found } => {
                    ("changed", Some(expected.to_string()), Some(found.to_string()))
                }
                FileState::Missing => ("missing", None, None),
                FileState::Extra => ("extra", None, None),
            };
            let line = FileLine { kind: "verified_file", v: 1, name, state: word, expected, found };
            write_line(&line, out)?;
        }
        let (signature, key, reason) = match &self.signature {
            SignatureState::None => ("none", None, None),
            SignatureState::ValidBy(key) => ("valid", Some(key.as_str()), None),
            SignatureState::UntrustedBy(key) => ("untrusted", Some(key.as_str()), None),
            SignatureState::Invalid(reason) => ("invalid", None, Some(reason.as_str())),
        };
        let line = OutcomeLine {
            kind: "verification",
            v: 1,
            intact: self.is_intact(),
            incomplete: self.incomplete,
            more_extra: self.more_extra,
            signature,
            key,
            reason,
        };
        write_line(&line, out)
    }
}

/// A file's line.
#[derive(Serialize)]
struct FileLine<'a> {
    #[serde(rename = "type")]
    kind: &'static str,
    v: u8,
    name: &'a str,
    state: &'static str,
    #[serde(skip_serializing_if = "Option::is_none")]
    expected: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    found: Option<String>,
}

/// The last line.
#[derive(Serialize)]
struct OutcomeLine<'a> {
    #[serde(rename = "type")]
    kind: &'static str,
    v: u8,
    intact: bool,
    incomplete: bool,
    more_extra: bool,
    signature: &'static str,
    #[serde(skip_serializing_if = "Option::is_none")]
    key: Option<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    reason: Option<&'a str>,
}

/// One JSON line.
fn write_line(line: &impl Serialize, out: &mut impl Write) -> io::Result<()> {
    serde_json::to_writer(&mut *out, line)?;
    out.write_all(b"\n")
}

#[cfg(test)]
mod tests {
    use cleanroom_contract::Sha256;

    use super::{super::verify::Found, *};

    fn verification() -> Verification {
        let expected = Sha256([0xab; 32]);
        Verification {
            files: vec![
                ("report.json".to_owned(), FileState::Ok),
                (
                    "gaps.jsonl".to_owned(),
                    FileState::Changed { expected, found: Found::Other("a symbolic link") },
                ),
                ("timeline.body".to_owned(), FileState::Missing),
                ("evil".to_owned(), FileState::Extra),
            ],
            more_extra: false,
            signature: SignatureState::UntrustedBy("SHA256:xyz".to_owned()),
            trust_required: true,
            incomplete: true,
        }
    }

    #[test]
    fn people_read_each_file_that_differs_and_the_verdict() {
        let mut out = Vec::new();
        verification().write_human(&mut out).unwrap();
        let expected = format!(
            "changed  gaps.jsonl\n         sealed as {}\n         found a symbolic link\n\
             missing  timeline.body\n\
             extra    evil\n\
             UNTRUSTED signature by the key SHA256:xyz, which is not among the trusted keys\n\
             scan     INCOMPLETE, as its own report says or leaves open\n\
             NOT INTACT  1 file as sealed; see above\n",
            "ab".repeat(32)
        );
        assert_eq!(String::from_utf8(out).unwrap(), expected);
    }

    #[test]
    fn programs_read_one_line_a_file_and_the_outcome() {
        let mut out = Vec::new();
        verification().write_jsonl(&mut out).unwrap();
        let text = String::from_utf8(out).unwrap();
        let lines: Vec<&str> = text.lines().collect();
        assert_eq!(lines.len(), 5);
        assert_eq!(lines[0], r#"{"type":"verified_file","v":1,"name":"report.json","state":"ok"}"#);
        assert!(lines[1].ends_with(r#""found":"a symbolic link"}"#), "{}", lines[1]);
        assert_eq!(
            lines[4],
            r#"{"type":"verification","v":1,"intact":false,"incomplete":true,"more_extra":false,"signature":"untrusted","key":"SHA256:xyz"}"#
        );
    }

    #[test]
    fn a_reason_cannot_move_the_cursor() {
        let mut verification = verification();
        verification.signature = SignatureState::Invalid("\u{1b}[2J".to_owned());
        let mut out = Vec::new();
        verification.write_human(&mut out).unwrap();
        assert!(!out.contains(&0x1b));
    }
}
