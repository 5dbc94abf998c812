//! The terminal: what it can show, what it asks, and who writes to it.
//!
//! Purpose: colours, size, a question, and the thread that owns both streams while a response runs. Touches
//! standard input, output and error. Never lets a slow or dead reader hold up who works.

mod board;
mod talk;

use std::{
    env,
    io::{self, BufRead as _, IsTerminal as _, Write as _},
};

use anstyle::{AnsiColor, Style};

pub(crate) use self::talk::{Shown, Talk};

/// Colours, where they are wanted.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Palette {
    on: bool,
}

impl Palette {
    /// Whether a stream gets colours: a terminal that knows them, unless somebody said no.
    pub(crate) fn of(terminal: bool, no_color: bool) -> Self {
        let set = |name| env::var_os(name).is_some_and(|value| !value.is_empty());
        let dumb = env::var_os("TERM").is_some_and(|term| term == "dumb");
        Self { on: terminal && !no_color && !set("NO_COLOR") && !dumb }
    }

    fn paint(self, style: Style, text: &str) -> String {
        if self.on { format!("{style}{text}{style:#}") } else { text.to_owned() }
    }

    /// As it should be.
    pub(crate) fn good(self, text: &str) -> String {
        self.paint(AnsiColor::Green.on_default(), text)
    }

    /// Short of something.
    pub(crate) fn weak(self, text: &str) -> String {
        self.paint(AnsiColor::Yellow.on_default(), text)
    }

    /// Not as it should be.
    pub(crate) fn bad(self, text: &str) -> String {
        self.paint(AnsiColor::Red.on_default().bold(), text)
    }

    /// A heading.
    pub(crate) fn strong(self, text: &str) -> String {
        self.paint(Style::new().bold(), text)
    }

    /// Beside the matter.
    pub(crate) fn dim(self, text: &str) -> String {
        self.paint(Style::new().dimmed(), text)
    }
}

/// Columns and rows of the terminal behind standard error.
fn size() -> (usize, usize) {
    rustix::termios::tcgetwinsize(io::stderr()).map_or((100, 24), |size| {
        (usize::from(size.ws_col).max(40), usize::from(size.ws_row).max(4))
    })
}

/// The columns to fill on standard output: the terminal's, or without end where there is none.
pub(crate) fn width() -> usize {
    match rustix::termios::tcgetwinsize(io::stdout()) {
        Ok(size) if size.ws_col > 0 => usize::from(size.ws_col).max(60),
        _ => usize::MAX,
    }
}

/// Whether a person can be asked.
pub(crate) fn can_ask() -> bool {
    io::stdin().is_terminal() && io::stderr().is_terminal()
}

/// Asks a person. Anything but a yes is a no.
pub(crate) fn ask(question: &str) -> bool {
    drop(write!(io::stderr().lock(), "{question} [y/N] "));
    let mut answer = String::new();
    let read = io::stdin().lock().read_line(&mut answer);
    read.is_ok() && matches!(answer.trim().to_ascii_lowercase().as_str(), "y" | "yes")
}

/// Cuts a line to so many columns. Escape sequences count for nothing, and end with the line.
fn cut(line: &str, width: usize) -> String {
    let mut out = String::with_capacity(line.len());
    let mut columns = 0;
    let mut painted = false;
    let mut chars = line.chars();
    while let Some(c) = chars.next() {
        if c == '\u{1b}' {
            painted = true;
            out.push(c);
            for c in chars.by_ref() {
                out.push(c);
                if c.is_ascii_alphabetic() {
                    break;
                }
            }
        } else if columns < width {
            columns += 1;
            out.push(c);
        }
    }
    if painted {
        out.push_str("\u{1b}[0m");
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_line_is_cut_by_what_is_seen_of_it() {
        assert_eq!(cut("contained", 20), "contained");
        assert_eq!(cut("contained", 4), "cont");
        let painted = Palette { on: true }.good("contained");
        assert_eq!(cut(&painted, 4), "\u{1b}[32mcont\u{1b}[0m\u{1b}[0m");
    }

    #[test]
    fn no_colour_means_none() {
        assert_eq!(Palette::of(true, true).bad("x"), "x");
        assert_eq!(Palette::of(false, false).bad("x"), "x");
    }
}
