//! Places in rule texts.
//!
//! Purpose: offsets to lines and columns, the spans of rules, and blanking parts of a text without
//! moving the rest. Pure; touches nothing.

use std::ops::Range;

use yara_x_parser::{
    Parser,
    cst::{Event, SyntaxKind},
};

/// Where a text's lines begin.
#[derive(Debug)]
pub(crate) struct LineIndex {
    starts: Vec<usize>,
}

impl LineIndex {
    /// Indexes a text by its line feeds.
    pub(crate) fn new(bytes: &[u8]) -> Self {
        let mut starts = vec![0];
        starts.extend(bytes.iter().enumerate().filter(|(_, b)| **b == b'\n').map(|(at, _)| at + 1));
        Self { starts }
    }

    /// Line and column of an offset, both from 1; columns count characters, as the compiler's do.
    pub(crate) fn position(&self, bytes: &[u8], offset: usize) -> (u64, u64) {
        let line = self.starts.partition_point(|start| *start <= offset);
        let start = self.starts.get(line.saturating_sub(1)).copied().unwrap_or(0);
        let before = bytes.get(start..offset).unwrap_or_default();
        let column = String::from_utf8_lossy(before).chars().count() + 1;
        (u64::try_from(line).unwrap_or(u64::MAX), u64::try_from(column).unwrap_or(u64::MAX))
    }
}

/// The spans of the rule declarations of a text, in order.
pub(crate) fn rule_spans(bytes: &[u8]) -> Vec<Range<usize>> {
    Parser::new(bytes)
        .filter_map(|event| match event {
            Event::Begin { kind: SyntaxKind::RULE_DECL, span } => Some(span.range()),
            _ => None,
        })
        .collect()
}

/// Whether a text has one of these identifiers anywhere, in a rule or beside it.
pub(crate) fn has_identifier(bytes: &[u8], names: &[&str]) -> bool {
    Parser::new(bytes).any(|event| match event {
        Event::Token { kind: SyntaxKind::IDENT, span } => {
            let text = bytes.get(span.range()).unwrap_or_default();
            names.iter().any(|name| name.as_bytes() == text)
        }
        _ => false,
    })
}

/// Whether a text is only white space and comments.
pub(crate) fn is_trivia(bytes: &[u8]) -> bool {
    use SyntaxKind::{COMMENT, NEWLINE, SOURCE_FILE, WHITESPACE};
    Parser::new(bytes).all(|event| match event {
        Event::Begin { kind, .. } | Event::End { kind, .. } => kind == SOURCE_FILE,
        Event::Token { kind, .. } => matches!(kind, COMMENT | NEWLINE | WHITESPACE),
        Event::Error { .. } => false,
    })
}

/// Fills a part of a text with spaces; line ends stay, so that no other line moves.
pub(crate) fn blank(bytes: &mut [u8], span: Range<usize>) {
    for byte in bytes.get_mut(span).unwrap_or_default() {
        if !matches!(byte, b'\n' | b'\r') {
            *byte = b' ';
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn positions_count_from_one_and_in_characters() {
        let text = "ab\n\u{e9}x\n".as_bytes();
        let index = LineIndex::new(text);
        for (offset, expected) in [(0, (1, 1)), (2, (1, 3)), (3, (2, 1)), (5, (2, 2)), (7, (3, 1))]
        {
            assert_eq!(index.position(text, offset), expected, "offset {offset}");
        }
    }

    #[test]
    fn a_blanked_rule_leaves_the_lines_in_place() {
        let mut text = b"rule a { condition:\r\n true }\nrule b { condition: false }".to_vec();
        let spans = rule_spans(&text);
        assert_eq!(spans.len(), 2);
        blank(&mut text, spans[0].clone());
        assert_eq!(text, b"                   \r\n       \nrule b { condition: false }");
        blank(&mut text, 5..usize::MAX);
    }

    #[test]
    fn comments_declare_nothing() {
        for (text, trivia) in [
            ("", true),
            (" \r\n// rule\n/* a */\t", true),
            ("import \"pe\"", false),
            ("rule a { condition: true }", false),
            ("}", false),
            ("/*", false),
        ] {
            assert_eq!(is_trivia(text.as_bytes()), trivia, "{text:?}");
        }
    }
}
