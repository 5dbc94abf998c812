//! Paths on evidence: raw bytes that nobody may trust to be text.

use std::fmt::Write as _;

use base64::{Engine as _, prelude::BASE64_STANDARD};
use serde::{Deserialize, Serialize};

/// A path as it is on the evidence, absolute from the view's root.
///
/// `path` is always valid text; where the name is not UTF-8, its bad sequences read U+FFFD there and
/// `path_bytes` holds the exact bytes in base64. Flattened into records.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct EvidencePath {
    /// The path as text.
    pub path: String,
    /// The exact bytes, base64, only where `path` cannot hold them.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub path_bytes: Option<String>,
}

impl EvidencePath {
    /// Keeps `raw` without loss.
    #[must_use]
    pub fn new(raw: &[u8]) -> Self {
        match std::str::from_utf8(raw) {
            Ok(text) => Self { path: text.to_owned(), path_bytes: None },
            Err(_) => Self {
                path: String::from_utf8_lossy(raw).into_owned(),
                path_bytes: Some(BASE64_STANDARD.encode(raw)),
            },
        }
    }

    /// The exact bytes; `path` itself where `path_bytes` is absent or is not base64.
    #[must_use]
    pub fn to_bytes(&self) -> Vec<u8> {
        self.path_bytes
            .as_ref()
            .and_then(|text| BASE64_STANDARD.decode(text).ok())
            .unwrap_or_else(|| self.path.clone().into_bytes())
    }
}

/// Evidence text made safe for a terminal, a log line or a subject: control characters, the bidirectional
/// overrides and other invisible formatting become `\u{…}` escapes, as does a backslash become `\\`.
#[must_use]
pub fn printable(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    for c in text.chars() {
        let hidden = c.is_control()
            || matches!(c, '\u{ad}' | '\u{61c}' | '\u{180e}' | '\u{200b}'..='\u{200f}'
                | '\u{2028}'..='\u{202e}' | '\u{2060}'..='\u{206f}' | '\u{feff}' | '\u{fff9}'..='\u{fffb}'
                | '\u{e0000}'..='\u{e007f}');
        if hidden {
            let _ = write!(out, "\\u{{{:x}}}", u32::from(c));
        } else if c == '\\' {
            out.push_str("\\\\");
        } else {
            out.push(c);
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn every_name_survives_exactly(raw in proptest::collection::vec(any::<u8>(), 0..64)) {
            let json = serde_json::to_string(&EvidencePath::new(&raw)).unwrap();
            let back: EvidencePath = serde_json::from_str(&json).unwrap();
            prop_assert_eq!(back.to_bytes(), raw);
        }

        #[test]
        fn printable_text_has_no_control_characters(text in ".*") {
            prop_assert!(!printable(&text).chars().any(char::is_control));
        }
    }

    #[test]
    fn an_escape_sequence_is_shown_and_not_obeyed() {
        assert_eq!(printable("a\u{1b}[2Jb\n\u{202e}c"), "a\\u{1b}[2Jb\\u{a}\\u{202e}c");
    }
}
