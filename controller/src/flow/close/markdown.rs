//! Text of others in a Markdown document: shown, and never obeyed.

use cleanroom_contract::printable;

/// How many characters of one text are shown.
const MOST: usize = 1_000;

/// A text as the same text in Markdown: no markup, no HTML, no link, no new line, no table cell of its own.
pub(super) fn text(text: &str) -> String {
    let mut shown: String = printable(text.trim()).chars().take(MOST).collect();
    if text.chars().count() > MOST {
        shown.push('…');
    }
    let mut out = String::with_capacity(shown.len() + 16);
    // What would begin a list at the start of a line.
    let digits = shown.bytes().take_while(u8::is_ascii_digit).count();
    for (at, c) in shown.char_indices() {
        let begins_list = (at == 0 && matches!(c, '-' | '+' | '='))
            || (at > 0 && at == digits && matches!(c, '.' | ')'));
        // A colon before slashes and the first dot of `www.` would make a link of what follows, an at-sign an address.
        let begins_link = (c == ':' && shown[at..].starts_with("://"))
            || (c == '.' && shown[..at].to_ascii_lowercase().ends_with("www"))
            || c == '@';
        if begins_list || begins_link || r"\`*_[]<>#|~&!$".contains(c) {
            out.push('\\');
        }
        out.push(c);
    }
    out
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn markup_is_shown_and_not_obeyed() {
        for (given, expected) in [
            (
                "plain text, as it was (i-0123456789abcdef0)",
                "plain text, as it was (i-0123456789abcdef0)",
            ),
            ("a | b", r"a \| b"),
            ("a\n| b |\n", r"a\\u{a}\| b \|"),
            (r"a\|b", r"a\\\\\|b"),
            ("<script>", r"\<script\>"),
            ("[x](http://example.com)", r"\[x\](http\://example.com)"),
            ("www.example.com", r"www\.example.com"),
            ("# title", r"\# title"),
            ("- item", r"\- item"),
            ("12. item", r"12\. item"),
            ("1.5 GiB", r"1\.5 GiB"),
            ("   code", "code"),
            ("![x](y)", r"\!\[x\](y)"),
            ("\u{1b}[2J\u{202e}", r"\\u{1b}\[2J\\u{202e}"),
            ("arn:aws:iam::123456789012:role/a_b", r"arn:aws:iam::123456789012:role/a\_b"),
        ] {
            assert_eq!(text(given), expected, "{given:?}");
        }
    }

    proptest! {
        #[test]
        fn no_text_breaks_a_table(given in ".*") {
            let shown = text(&given);
            prop_assert!(!shown.chars().any(char::is_control), "{shown:?}");
            // Every bar is escaped by an odd number of backslashes.
            for (at, _) in shown.match_indices(['|', '<', '`']) {
                let before = shown[..at].chars().rev().take_while(|c| *c == '\\').count();
                prop_assert!(before % 2 == 1, "{shown:?}");
            }
        }

        #[test]
        fn a_text_is_bounded(given in "\\PC{900,3000}") {
            prop_assert!(text(&given).chars().count() <= 2 * (MOST + 1));
        }
    }
}
