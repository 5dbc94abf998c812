//! Whether the account is ready.

use std::fmt::Write as _;

use cleanroom_controller::flow::preflight::{Check, Level};

use super::{Table, painted, plain};
use crate::terminal::Palette;

/// A word for how bad it is.
fn word(level: Level) -> &'static str {
    match level {
        Level::Good => "good",
        Level::Unknown => "unknown",
        Level::Weak => "weak",
        Level::Missing => "MISSING",
    }
}

fn paint(level: Level) -> fn(Palette, &str) -> String {
    match level {
        Level::Good => Palette::good,
        Level::Unknown => Palette::dim,
        Level::Weak => Palette::weak,
        Level::Missing => Palette::bad,
    }
}

/// The table of a preflight, and what to fix below it.
pub(crate) fn preflight(checks: &[Check], palette: Palette, width: usize) -> String {
    let mut table = Table::new(&["area", "what", "level", "found"]);
    for check in checks {
        table.row(vec![
            plain(check.area),
            plain(&check.name),
            painted(word(check.level), paint(check.level)),
            plain(&check.found),
        ]);
    }
    let mut out = table.show(palette, width);
    let mut fixes = Table::new(&["area", "to fix", "what to do"]);
    let due: Vec<_> = checks.iter().filter(|c| !c.fix.is_empty()).collect();
    for check in &due {
        let painted = painted(&check.name, paint(check.level));
        fixes.row(vec![plain(check.area), painted, plain(&check.fix)]);
    }
    if !due.is_empty() {
        let _ = write!(out, "\n{}", fixes.show(palette, width));
    }
    let count = |level| checks.iter().filter(|c| c.level == level).count();
    let _ = writeln!(
        out,
        "\n{} good, {} weak, {} missing, {} unknown; nothing was changed",
        count(Level::Good),
        count(Level::Weak),
        count(Level::Missing),
        count(Level::Unknown),
    );
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_to_be_fixed_stands_below_the_table() {
        let check = |area, name: &str, level, found: &str, fix: &str| Check {
            area,
            name: name.to_owned(),
            level,
            found: found.to_owned(),
            fix: fix.to_owned(),
        };
        let checks = [
            check("bucket", "versioning", Level::Good, "on", ""),
            check("bucket", "Object Lock", Level::Missing, "off", "make a bucket with Object Lock"),
        ];
        let expected = "\
area    what         level    found
bucket  versioning   good     on
bucket  Object Lock  MISSING  off

area    to fix       what to do
bucket  Object Lock  make a bucket with Object Lock

1 good, 0 weak, 1 missing, 0 unknown; nothing was changed
";
        assert_eq!(preflight(&checks, Palette::default(), usize::MAX), expected);
    }
}
