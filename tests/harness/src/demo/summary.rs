//! What a bundle says, in a few lines. Reads its `report.json`.

use std::{fmt::Write as _, fs, path::Path};

use anyhow::{Context, Result, ensure};
use serde_json::Value;

use super::{WIDTH, cut};

/// Severities, the worst first.
const SEVERITIES: [&str; 5] = ["critical", "high", "medium", "low", "info"];

/// Findings that are named.
const WORST: usize = 5;

/// What the bundle in a folder says, and where its report is.
///
/// # Errors
/// Where there is no report, or it found nothing.
pub(super) fn of(bundle: &Path) -> Result<String> {
    let page = bundle.join("report.html");
    ensure!(page.is_file(), "there is no {}", page.display());
    let path = bundle.join("report.json");
    let report = fs::read(&path).with_context(|| format!("read {}", path.display()))?;
    let report =
        serde_json::from_slice(&report).with_context(|| format!("read {}", path.display()))?;
    let mut text = told(&report).with_context(|| format!("read {}", path.display()))?;
    writeln!(text, "\n  bundle    {}\n  report    {}", bundle.display(), page.display())?;
    Ok(text)
}

fn told(report: &Value) -> Result<String> {
    let counts = &report["summary"]["findings"];
    let counted = SEVERITIES.iter().filter_map(|severity| {
        counts[*severity].as_u64().map(|count| format!("{count} {severity}"))
    });
    let counted: Vec<_> = counted.collect();
    ensure!(!counted.is_empty(), "nothing was found");
    // Names on evidence are somebody else's.
    let plain = |c: char| if c.is_control() { '\u{fffd}' } else { c };
    let text =
        |value: &Value| value.as_str().unwrap_or_default().chars().map(plain).collect::<String>();
    let mut lines = format!("  findings  {}\n", counted.join(", "));
    for (number, finding) in
        report["worst"].as_array().into_iter().flatten().take(WORST).enumerate()
    {
        let name = if number == 0 { "worst" } else { "" };
        let (volume, path) = (text(&finding["volume"]), text(&finding["path"]));
        let what = format!(
            "{:<8}  {}: {volume} {path}",
            text(&finding["severity"]),
            text(&finding["title"])
        );
        writeln!(lines, "  {name:<8}  {}", cut(&what, WIDTH - 12))?;
    }
    let number = |member: &str| report["coverage"][member].as_u64().unwrap_or_default();
    let gaps: u64 = report["coverage"]["gaps"]
        .as_object()
        .into_iter()
        .flatten()
        .filter_map(|(_, n)| n.as_u64())
        .sum();
    writeln!(
        lines,
        "  coverage  {} of {} volumes and {} of {} files examined in full; {gaps} gaps, each with its reason",
        number("volumes_examined"),
        number("volumes"),
        number("files_examined"),
        number("files"),
    )?;
    Ok(lines)
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn the_worst_comes_first_and_an_empty_report_is_none() {
        let report = json!({
            "summary": {"findings": {"low": 3, "critical": 1}},
            "worst": [{"severity": "critical", "title": "known bad file", "volume": "vol-1:p1", "path": "/opt/x"}],
            "coverage": {"volumes": 3, "volumes_examined": 2, "files": 9, "files_examined": 9, "gaps": {"evidence": 1}},
        });
        assert_eq!(
            told(&report).expect("a report"),
            "  findings  1 critical, 3 low\n  \
               worst     critical  known bad file: vol-1:p1 /opt/x\n  \
               coverage  2 of 3 volumes and 9 of 9 files examined in full; 1 gaps, each with its reason\n"
        );
        assert!(told(&json!({"summary": {"findings": {}}})).is_err());
    }
}
