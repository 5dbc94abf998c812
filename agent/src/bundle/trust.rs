//! Whose signatures are trusted.
//!
//! Purpose: read a public key file or an OpenSSH allowed-signers file (ssh-keygen(1), section ALLOWED
//! SIGNERS). Pure. Never trusts a line that it understands only in part.

use ssh_key::{PublicKey, public::KeyData};

use super::signature::NAMESPACE;

/// A line of a file of trusted keys that cannot be used.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub(crate) enum TrustError {
    /// Neither a public key nor an allowed signer.
    #[error("line {0} is neither a public key nor an allowed signer")]
    Line(usize),
    /// Certificates and validity times are for OpenSSH to judge.
    #[error("line {line} has the option {option}, which only ssh-keygen -Y verify can judge")]
    Option {
        /// From 1.
        line: usize,
        /// The option's name.
        option: String,
    },
    /// The file names nobody for this purpose.
    #[error("it holds no key that may sign bundles (namespace {NAMESPACE})")]
    Empty,
}

/// The keys of `text` that may sign bundles: each line a public key, or principals, options and a key.
///
/// # Errors
/// At the first line that is not understood as a whole: leaving it out could hide a typing mistake,
/// and using it in part could trust more than was meant.
pub(crate) fn parse(text: &str) -> Result<Vec<KeyData>, TrustError> {
    let mut keys = Vec::new();
    for (index, line) in text.lines().enumerate() {
        let line = line.trim();
        if !line.is_empty() && !line.starts_with('#') {
            keys.extend(parse_line(line, index + 1)?);
        }
    }
    if keys.is_empty() { Err(TrustError::Empty) } else { Ok(keys) }
}

/// One line; `None` where its key is for other purposes only.
fn parse_line(line: &str, number: usize) -> Result<Option<KeyData>, TrustError> {
    let key = |text: &str| PublicKey::from_openssh(text).map(|key| key.key_data().clone());
    if let Ok(key) = key(line) {
        return Ok(Some(key));
    }
    let (_principals, rest) = word(line);
    if let Ok(key) = key(rest) {
        return Ok(Some(key));
    }
    let (options, rest) = word(rest);
    let key = key(rest).map_err(|_| TrustError::Line(number))?;
    for option in split_outside_quotes(options, ',') {
        let (name, value) = option.split_once('=').unwrap_or((option, ""));
        if !name.eq_ignore_ascii_case("namespaces") {
            let option = name.chars().take(40).collect();
            return Err(TrustError::Option { line: number, option });
        }
        let patterns = value.trim_matches('"');
        // OpenSSH also has '!' patterns; a list with one of them is used for nothing here.
        if patterns.contains('!') || !patterns.split(',').any(|p| fits(p, NAMESPACE)) {
            return Ok(None);
        }
    }
    Ok(Some(key))
}

/// The first word of `text`, in which quotes may hold blanks, and what follows it.
fn word(text: &str) -> (&str, &str) {
    let mut parts = split_outside_quotes(text, ' ');
    let first = parts.next().unwrap_or_default();
    (first, text.get(first.len()..).unwrap_or_default().trim_start())
}

/// Splits at `separator` (for a blank, at tabs too) except between quotes.
fn split_outside_quotes(text: &str, separator: char) -> impl Iterator<Item = &str> {
    let mut quoted = false;
    text.split(move |c: char| {
        quoted ^= c == '"';
        !quoted && (c == separator || (separator == ' ' && c == '\t'))
    })
}

/// Whether `text` fits a pattern of OpenSSH: `*` is any text, `?` any one character.
fn fits(pattern: &str, text: &str) -> bool {
    // One row of the match table a pattern character: row[i] says whether the pattern so far fits the
    // first i characters. Unlike backtracking its cost cannot grow beyond the product of the lengths.
    let text: Vec<char> = text.chars().collect();
    let mut row = vec![false; text.len() + 1];
    if let Some(first) = row.first_mut() {
        *first = true;
    }
    for p in pattern.chars() {
        let mut next = Vec::with_capacity(row.len());
        for (index, fitted) in row.iter().enumerate() {
            let before = index.checked_sub(1);
            let one = before.is_some_and(|b| {
                row.get(b) == Some(&true) && (p == '?' || (p != '*' && text.get(b) == Some(&p)))
            });
            let any = p == '*' && (*fitted || before.is_some_and(|b| next.get(b) == Some(&true)));
            next.push(one || any);
        }
        row = next;
    }
    row.last() == Some(&true)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const KEY: &str =
        "ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAILM+rvN+ot98qgEN796jTiQfZfG1KaT0PtFDJ/XFSqti";

    #[test]
    fn keys_and_allowed_signers_are_read() {
        for text in [
            format!("{KEY}\n"),
            format!("{KEY} lab of the first floor\n"),
            format!("# the lab\n\nlab@example {KEY} comment\n"),
            format!("\"the lab\",other {KEY}\n"),
            format!("lab\tnamespaces=\"git,cleanroom-*\" {KEY}\n"),
            format!("lab NAMESPACES=\"cleanroom-bundle@v1\"  {KEY}\n"),
        ] {
            assert_eq!(parse(&text).map(|keys| keys.len()), Ok(1), "{text}");
        }
    }

    #[test]
    fn lines_that_could_trust_too_much_are_refused() {
        let option = |name: &str| TrustError::Option { line: 1, option: name.to_owned() };
        for (text, error) in [
            (String::new(), TrustError::Empty),
            ("lab ssh-ed25519 nonsense".to_owned(), TrustError::Line(1)),
            (format!("{KEY}\nhello"), TrustError::Line(2)),
            (format!("lab cert-authority {KEY}"), option("cert-authority")),
            (format!("lab valid-before=\"20200101\" {KEY}"), option("valid-before")),
            (format!("lab namespaces=\"*\",valid-after=\"2020\" {KEY}"), option("valid-after")),
            (format!("lab namespaces=\"git\" {KEY}"), TrustError::Empty),
            (format!("lab namespaces=\"*,!cleanroom-*\" {KEY}"), TrustError::Empty),
        ] {
            assert_eq!(parse(&text), Err(error), "{text}");
        }
    }

    #[test]
    fn patterns_fit_as_openssh_says() {
        for (pattern, text, expected) in [
            ("*", "", true),
            ("a*c", "abbc", true),
            ("a*c", "abb", false),
            ("a?c", "abc", true),
            ("a?c", "ac", false),
            ("", "a", false),
            ("**b", "ab", true),
        ] {
            assert_eq!(fits(pattern, text), expected, "{pattern} {text}");
        }
    }

    proptest! {
        #[test]
        fn any_text_is_read_without_panic(text in ".{0,60}", mix in "[a \t\",=!*\n]{0,40}") {
            let _ = parse(&text);
            let _ = parse(&format!("{mix}{KEY}"));
        }
    }
}
