//! What goes to standard output: for people, or one JSON record a line.
//!
//! Purpose: pure functions from results to text. Touches nothing. Text from AWS and from tags is never obeyed by the
//! terminal: every cell and line goes through [`printable`].

mod account;
mod approval;
mod cases;
mod deploy;
mod plan;
mod report;

use std::fmt::Write as _;

use cleanroom_contract::{Timestamp, printable};
use serde::Serialize;

pub(crate) use self::{
    account::preflight,
    approval::{given, question},
    cases::{at_work, cases, proposal, recovery, released, statuses, verdict},
    deploy::{changes, stack_event},
    plan::plan,
    report::{Next, not_cut, report},
};

/// A line of JSON: the record's type first, then the fields of a value.
pub(crate) fn record(kind: &str, value: &impl Serialize) -> String {
    #[derive(Serialize)]
    struct Record<'a, T> {
        r#type: &'a str,
        #[serde(flatten)]
        value: &'a T,
    }
    let line = serde_json::to_string(&Record { r#type: kind, value });
    // Only a map with keys that are no text can not be JSON, and there is none.
    line.map_or_else(|_| String::new(), |line| format!("{line}\n"))
}

/// A time to the second.
pub(crate) fn time(at: Timestamp) -> String {
    Timestamp { nanos: 0, ..at }.to_string().replace(".000000000", "")
}

/// The least room for the last column: with less, a table becomes a list.
const LAST: usize = 32;

/// A table whose columns are as wide as what is in them; the last one is wrapped to the terminal. Where the others leave no
/// room for it, each row becomes a paragraph beside its first cell.
pub(crate) struct Table {
    head: Vec<&'static str>,
    rows: Vec<Vec<Cell>>,
}

/// What is in a cell, and how it is painted.
pub(crate) struct Cell {
    text: String,
    paint: fn(crate::terminal::Palette, &str) -> String,
}

/// An unpainted cell.
pub(crate) fn plain(text: impl AsRef<str>) -> Cell {
    Cell { text: printable(text.as_ref()), paint: |_, text| text.to_owned() }
}

/// A painted cell.
pub(crate) fn painted(
    text: impl AsRef<str>,
    paint: fn(crate::terminal::Palette, &str) -> String,
) -> Cell {
    Cell { text: printable(text.as_ref()), paint }
}

impl Table {
    pub(crate) fn new(head: &[&'static str]) -> Self {
        Self { head: head.to_vec(), rows: Vec::new() }
    }

    pub(crate) fn row(&mut self, cells: Vec<Cell>) {
        self.rows.push(cells);
    }

    /// The table in so many columns.
    pub(crate) fn show(&self, palette: crate::terminal::Palette, width: usize) -> String {
        let columns = self.head.len();
        let mut widths: Vec<usize> = self.head.iter().map(|h| h.chars().count()).collect();
        for row in &self.rows {
            for (width, cell) in widths.iter_mut().zip(row) {
                *width = (*width).max(cell.text.chars().count());
            }
        }
        let before: usize = widths.iter().take(columns - 1).map(|w| w + 2).sum();
        let last = width.saturating_sub(before);
        if last < LAST
            && self.rows.iter().any(|row| row.last().is_some_and(|c| c.text.chars().count() > last))
        {
            return self.list(palette, width, widths[0]);
        }
        let mut out = String::new();
        let head: Vec<_> = self.head.iter().zip(&widths).map(|(h, w)| format!("{h:<w$}")).collect();
        let _ = writeln!(out, "{}", palette.strong(head.join("  ").trim_end()));
        for row in &self.rows {
            let mut line = String::new();
            for (n, (cell, width)) in row.iter().zip(&widths).enumerate() {
                let rest = width.saturating_sub(cell.text.chars().count());
                if n + 1 < columns {
                    let _ = write!(line, "{}{:rest$}  ", (cell.paint)(palette, &cell.text), "");
                } else {
                    let wrapped = wrap(&cell.text, last);
                    let lines: Vec<_> =
                        wrapped.iter().map(|text| (cell.paint)(palette, text)).collect();
                    line.push_str(&lines.join(&format!("\n{:before$}", "")));
                }
            }
            let _ = writeln!(out, "{}", line.trim_end());
        }
        out
    }
}

impl Table {
    /// The table as paragraphs.
    fn list(&self, palette: crate::terminal::Palette, width: usize, first: usize) -> String {
        let mut out = String::new();
        for row in &self.rows {
            let [head, rest @ ..] = row.as_slice() else { continue };
            let rest: Vec<_> = rest.iter().filter(|c| !c.text.is_empty()).collect();
            let text: Vec<_> = rest.iter().map(|cell| cell.text.as_str()).collect();
            let lines = wrap(&text.join("  "), width.saturating_sub(first + 2).max(LAST));
            // One colour for a paragraph: that of its most telling cell.
            let paint = rest.iter().find(|cell| (cell.paint)(palette, "x") != "x");
            let paint = paint.map_or_else(|| plain("").paint, |cell| cell.paint);
            let lines: Vec<_> = lines.iter().map(|line| paint(palette, line)).collect();
            let lines = lines.join(&format!("\n{:1$}", "", first + 2));
            let rest = first.saturating_sub(head.text.chars().count());
            let _ = writeln!(out, "{}{:rest$}  {lines}", (head.paint)(palette, &head.text), "");
        }
        out
    }
}

/// A text in lines of at most so many columns, broken between words where that can be.
pub(crate) fn wrap(text: &str, width: usize) -> Vec<String> {
    let mut lines = Vec::new();
    let mut line = String::new();
    let mut used = 0;
    for word in text.split(' ') {
        let long = word.chars().count();
        if used > 0 && used + 1 + long > width {
            lines.push(std::mem::take(&mut line));
            used = 0;
        }
        if used > 0 {
            line.push(' ');
            used += 1;
        }
        line.push_str(word);
        used += long;
    }
    lines.push(line);
    lines
}

/// A named line of a report, wrapped under itself.
pub(crate) fn field(name: &str, text: &str, width: usize) -> String {
    const NAME: usize = 12;
    let lines = wrap(text, width.saturating_sub(NAME + 2).max(24));
    format!("  {name:<NAME$}{}\n", lines.join(&format!("\n{:1$}", "", NAME + 2)))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::terminal::Palette;

    #[test]
    fn the_last_column_is_wrapped_under_itself() {
        let mut table = Table::new(&["step", "what"]);
        table.row(vec![plain("isolate"), plain("set security groups sg-0123 on eni-01234\u{1b}")]);
        table.row(vec![plain("tag"), plain("")]);
        let shown = table.show(Palette::default(), 42);
        let expected = "\
step     what
isolate  set security groups sg-0123 on
         eni-01234\\u{1b}
tag
";
        assert_eq!(shown, expected);
        assert_eq!(table.show(Palette::default(), usize::MAX).lines().count(), 3);
    }

    #[test]
    fn a_table_without_room_is_a_list() {
        let mut table = Table::new(&["step", "call", "what"]);
        let call = plain("ec2:ModifyNetworkInterfaceAttribute");
        table.row(vec![plain("isolate"), call, plain("set security groups sg-0123")]);
        table.row(vec![plain("tag"), plain("ec2:CreateTags"), plain("tag it")]);
        let expected = "\
isolate  ec2:ModifyNetworkInterfaceAttribute  set
         security groups sg-0123
tag      ec2:CreateTags  tag it
";
        assert_eq!(table.show(Palette::default(), 52), expected);
    }

    #[test]
    fn a_record_begins_with_its_type() {
        let value = serde_json::json!({"case": "c"});
        assert_eq!(record("claim", &value), "{\"type\":\"claim\",\"case\":\"c\"}\n");
    }

    #[test]
    fn times_are_shown_to_the_second() {
        let at = Timestamp { seconds: 1_772_366_400, nanos: 5 };
        assert_eq!(time(at), "2026-03-01T12:00:00Z");
    }
}
