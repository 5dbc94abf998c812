//! `report.html`: the report for an incident responder and a court.
//!
//! Purpose: one page that stands alone, is printed and filed, and is read by people who were not there.
//! Touches only the stream it is given. Never runs a script or fetches anything, which its own policy
//! forbids too, and never lets text from the evidence be anything but text.

use std::io::{self, Write};

use askama::Template;
use cleanroom_contract::{
    EvidencePath, EvidenceSource, Finding, Gap, Replay, Report, RuleFile, Severity, VolumeRecord,
    VolumeState, printable,
};

use super::{
    figures::{grouped, instant, prose, size, span},
    signature::NAMESPACE,
    verdict,
};

/// The page. All text is printable here, and escaped for HTML by the template engine.
#[derive(Template)]
#[template(path = "report.html")]
struct Page {
    /// Also stands in the style sheet, for the foot of printed pages: a case id holds nothing that could
    /// end a string there.
    case: String,
    about: Vec<Fact>,
    notes: Vec<String>,
    incomplete: Option<&'static str>,
    verdict: String,
    worst: &'static str,
    severities: Vec<Count>,
    coverage: Vec<Fact>,
    gap_kinds: Vec<Count>,
    findings: Vec<FindingView>,
    more_findings: Option<String>,
    gaps: Vec<GapView>,
    more_gaps: Option<String>,
    volumes: Vec<VolumeView>,
    evidence: Vec<Vec<String>>,
    rules: Vec<RuleView>,
    diagnostics: Vec<DiagnosticView>,
    limits: Vec<Fact>,
    run: Vec<Fact>,
    files: Vec<Vec<String>>,
    namespace: &'static str,
}

/// A name and its value; `mono` for what must be read letter by letter.
struct Fact {
    name: String,
    value: String,
    mono: bool,
}

/// A word, how often, and the class that colours it.
struct Count {
    word: &'static str,
    count: String,
    class: &'static str,
}

struct FindingView {
    severity: &'static str,
    title: String,
    volume: String,
    path: Option<String>,
    reason: String,
    evidence: Option<String>,
    facts: Vec<Fact>,
}

struct GapView {
    kind: &'static str,
    count: String,
    place: Option<String>,
    exact_bytes: Option<String>,
    volume: Option<String>,
    reason: String,
    advice: Option<String>,
}

struct VolumeView {
    name: String,
    evidence: String,
    content: String,
    label: Option<String>,
    partition_name: Option<String>,
    place: String,
    length: String,
    uuid: Option<String>,
    journal: String,
    view: String,
    state: &'static str,
    class: &'static str,
}

struct RuleView {
    kind: &'static str,
    path: String,
    entries: String,
    sha256: String,
}

struct DiagnosticView {
    kind: &'static str,
    place: String,
    message: String,
}

/// Writes the report as one HTML page.
///
/// # Errors
/// What `out` says.
pub(crate) fn write_html(report: &Report, out: &mut impl Write) -> io::Result<()> {
    page(report).write_into(out)
}

/// Everything on the page.
fn page(report: &Report) -> Page {
    let total = report.summary.findings.total();
    let files = |f: &cleanroom_contract::BundleFile| {
        vec![printable(&f.name), exact_size(f.size), f.sha256.to_string()]
    };
    Page {
        case: report.case.as_ref().map_or_else(|| "No case named".to_owned(), ToString::to_string),
        about: about(report),
        notes: report.notes.iter().map(|note| printable(note)).collect(),
        incomplete: verdict::incomplete(report),
        verdict: verdict::sentence(report),
        worst: verdict::worst(report).map_or("none", Severity::as_str),
        severities: severities(report),
        coverage: coverage(report),
        gap_kinds: gap_kinds(report),
        findings: report.worst.iter().map(finding).collect(),
        more_findings: more(total, report.worst.len(), "finding", "findings.jsonl"),
        gaps: report.gaps.iter().map(gap).collect(),
        more_gaps: more(report.summary.gaps, report.gaps.len(), "gap", "gaps.jsonl"),
        volumes: report.volumes.iter().map(volume).collect(),
        evidence: report.evidence.iter().map(evidence).collect(),
        rules: rules(report),
        diagnostics: diagnostics(report),
        limits: report
            .limits
            .iter()
            .map(|(name, value)| fact(&printable(name), printable(value)))
            .collect(),
        run: run(report),
        files: report.files.iter().map(files).collect(),
        namespace: NAMESPACE,
    }
}

fn fact(name: &str, value: String) -> Fact {
    Fact { name: name.to_owned(), value, mono: false }
}

fn exact(name: &str, value: String) -> Fact {
    Fact { name: name.to_owned(), value, mono: true }
}

/// Bytes exactly, and in words.
fn exact_size(bytes: u64) -> String {
    match bytes {
        0..1024 => size(bytes),
        _ => format!("{} bytes ({})", grouped(bytes), size(bytes)),
    }
}

/// The path as the bundle writes it.
fn place(path: &EvidencePath) -> String {
    printable(&path.path)
}

/// The exact bytes of a path that is not text.
fn exact_bytes(path: Option<&EvidencePath>) -> Option<String> {
    path.and_then(|path| path.path_bytes.as_deref()).map(printable)
}

/// What lies outside the first hundred.
fn more(total: u64, shown: usize, noun: &str, file: &str) -> Option<String> {
    let rest = total.saturating_sub(u64::try_from(shown).unwrap_or(u64::MAX));
    (rest > 0).then(|| {
        format!("{} more {noun}{} in {file}", grouped(rest), if rest == 1 { "" } else { "s" })
    })
}

fn about(report: &Report) -> Vec<Fact> {
    let given = report.evidence.iter().map(|e| printable(&e.given)).collect::<Vec<_>>().join(", ");
    let mut facts = vec![exact("Evidence", given)];
    facts.extend(report.evidence_id.as_ref().map(|id| fact("Evidence number", printable(id))));
    facts.extend(report.examiner.as_ref().map(|name| fact("Examiner", printable(name))));
    facts.push(fact("Scanned", instant(report.run.started)));
    facts
}

fn severities(report: &Report) -> Vec<Count> {
    let counts = Severity::ALL.into_iter().rev().map(|severity| Count {
        word: severity.as_str(),
        count: grouped(report.summary.findings.get(severity)),
        class: if report.summary.findings.get(severity) == 0 { "zero" } else { severity.as_str() },
    });
    counts.collect()
}

fn coverage(report: &Report) -> Vec<Fact> {
    let coverage = &report.coverage;
    let of = |part: u64, all: u64| format!("{} of {}", grouped(part), grouped(all));
    let missed = coverage.files.saturating_sub(coverage.files_examined);
    vec![
        fact("Volumes examined", of(coverage.volumes_examined, coverage.volumes)),
        fact("Entries recorded", grouped(coverage.entries)),
        fact("Files examined", of(coverage.files_examined, coverage.files)),
        fact("Files not examined in full", grouped(missed)),
        fact("Content read", exact_size(report.summary.bytes)),
        fact("Gaps", grouped(report.summary.gaps)),
    ]
}

fn gap_kinds(report: &Report) -> Vec<Count> {
    let count = |(kind, count): (&cleanroom_contract::GapKind, &u64)| Count {
        word: verdict::gap_words(*kind),
        count: grouped(*count),
        class: "gap",
    };
    report.coverage.gaps.iter().map(count).collect()
}

fn finding(finding: &Finding) -> FindingView {
    let mut facts = Vec::new();
    facts.extend(finding.technique.as_ref().map(|t| exact("ATT&CK technique", printable(t))));
    facts.push(exact("Source", prose(&finding.source)));
    facts.extend(finding.author.as_ref().map(|author| fact("Author", printable(author))));
    facts.extend(finding.sha256.map(|digest| exact("SHA-256 of the file", digest.to_string())));
    facts.push(exact("Finding", printable(&finding.id)));
    facts
        .extend(exact_bytes(finding.path.as_ref()).map(|raw| exact("Path as stored, base64", raw)));
    FindingView {
        severity: finding.severity.as_str(),
        title: prose(&finding.title),
        volume: printable(&finding.volume),
        path: finding.path.as_ref().map(place),
        reason: prose(&finding.reason),
        evidence: finding.evidence.as_deref().map(prose),
        facts,
    }
}

fn gap(gap: &Gap) -> GapView {
    GapView {
        kind: verdict::gap_words(gap.kind),
        count: grouped(gap.count),
        place: gap.path.as_ref().map(place),
        exact_bytes: exact_bytes(gap.path.as_ref()),
        volume: gap.volume.as_deref().map(printable),
        reason: prose(&gap.reason),
        advice: gap.advice.as_deref().map(prose),
    }
}

fn volume(volume: &VolumeRecord) -> VolumeView {
    let or_dash = |text: Option<String>| text.unwrap_or_else(|| "–".to_owned());
    VolumeView {
        name: printable(&volume.volume),
        evidence: printable(&volume.evidence),
        content: printable(&volume.content),
        label: volume.label.as_deref().map(prose),
        partition_name: volume.partition_name.as_deref().map(prose),
        place: or_dash(volume.offset.map(grouped)),
        length: or_dash(volume.length.map(exact_size)),
        uuid: volume.uuid.as_deref().map(printable),
        journal: journal(volume),
        view: match volume.view.is_empty() {
            true => "–".to_owned(),
            false => printable(&volume.view.join(", ")),
        },
        state: verdict::volume_words(volume.state),
        class: if volume.state == VolumeState::Examined { "good" } else { "poor" },
    }
}

fn journal(volume: &VolumeRecord) -> String {
    match (&volume.unreplayed_journal, &volume.replayed) {
        (Some(why), _) => format!("not replayed: {}", prose(why)),
        (None, Some(Replay { reason, means })) => {
            format!("replayed ({}): {}", means.as_str(), prose(reason))
        }
        (None, None) => "–".to_owned(),
    }
}

fn evidence(source: &EvidenceSource) -> Vec<String> {
    vec![
        printable(&source.name),
        printable(&source.given),
        printable(&source.kind),
        source.size.map_or_else(|| "–".to_owned(), exact_size),
        source.partition_table.as_deref().map_or_else(|| "–".to_owned(), printable),
    ]
}

fn rules(report: &Report) -> Vec<RuleView> {
    let view = |kind| {
        move |file: &RuleFile| RuleView {
            kind,
            path: printable(&file.path),
            entries: grouped(file.entries),
            sha256: file.sha256.to_string(),
        }
    };
    let indicators = report.indicators.iter().map(view("indicators"));
    report.rules.iter().map(view("rules")).chain(indicators).collect()
}

fn diagnostics(report: &Report) -> Vec<DiagnosticView> {
    let view = |d: &cleanroom_contract::RuleDiagnostic| DiagnosticView {
        kind: if d.error { "error: file not used" } else { "warning" },
        place: format!("{}:{}:{}", printable(&d.path), d.line, d.column),
        message: prose(&d.message),
    };
    report.rule_diagnostics.iter().map(view).collect()
}

fn run(report: &Report) -> Vec<Fact> {
    let run = &report.run;
    let mut facts = vec![
        exact("Run", printable(&run.id)),
        fact("Began", instant(run.started)),
        fact("Sealed", instant(run.ended)),
    ];
    let took = span(run.started, run.ended);
    facts.extend((!took.is_empty()).then(|| fact("Took", took)));
    facts.push(fact("Agent", printable(&run.agent)));
    facts.extend(run.agent_sha256.map(|d| exact("SHA-256 of the agent", d.to_string())));
    facts.push(fact("Machine", printable(&run.host)));
    facts.push(fact("Kernel", printable(&run.kernel)));
    facts.push(exact("Arguments", command_line(&run.arguments)));
    facts
}

/// The arguments as one line; one with a blank is quoted, so that their borders can be seen.
fn command_line(arguments: &[String]) -> String {
    let quoted = |argument: &String| {
        let text = prose(argument);
        let bare = !text.is_empty() && !text.contains([' ', '\'', '"']);
        if bare { text } else { format!("'{}'", text.replace('\'', "'\\''")) }
    };
    arguments.iter().map(quoted).collect::<Vec<_>>().join(" ")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::bundle::sample;

    fn html(report: &Report) -> String {
        let mut out = Vec::new();
        write_html(report, &mut out).unwrap();
        // For a person's eye: CLEANROOM_SAMPLE_HTML names a file to keep the page in.
        if let Some(path) = std::env::var_os("CLEANROOM_SAMPLE_HTML") {
            std::fs::write(path, &out).unwrap();
        }
        String::from_utf8(out).unwrap()
    }

    #[test]
    fn the_page_stands_alone() {
        let page = html(&sample::report());
        assert!(page.contains(
            r#"<meta http-equiv="Content-Security-Policy" content="default-src 'none'; style-src 'unsafe-inline'">"#
        ));
        for outside in [
            "<script",
            "<link",
            "<img",
            "<iframe",
            "src=",
            "url(",
            "@import",
            "http-equiv=\"refresh",
        ] {
            let policy_aside = page.replace("style-src", "").replace("default-src", "");
            assert!(!policy_aside.contains(outside), "{outside}");
        }
    }

    #[test]
    fn evidence_is_text_and_nothing_else() {
        let page = html(&sample::report());
        assert!(!page.contains("<script>alert"), "markup from the evidence");
        assert!(page.contains("&#60;script&#62;alert(1)"));
        assert!(page.contains("&#60;b&#62;admin"));
        assert!(!page.chars().any(|c| c.is_control() && c != '\n'), "control characters");
        assert!(!page.contains('\u{202e}'), "a bidirectional override");
        assert!(page.contains("\\u{1b}[2J"));
        assert!(page.contains(">L3Zhci90bXAv"), "the exact bytes");
    }

    #[test]
    fn an_interrupted_scan_is_visibly_incomplete() {
        let mut report = sample::report();
        assert!(html(&report).contains("INCOMPLETE"));
        report.run.state = cleanroom_contract::RunState::Complete;
        report.summary.complete = true;
        let page = html(&report);
        assert!(!page.contains("INCOMPLETE"));
        assert!(page.contains("the scan is complete, with 1,284 gaps"));
    }

    #[test]
    fn everything_of_the_report_is_on_the_page() {
        let report = sample::report();
        let page = html(&report);
        let mut facts: Vec<String> = vec![
            "2026-03-01.web-7".into(),
            "EX-2026-0117/3".into(),
            "Snapshots taken 09:41 UTC".into(),
            "348,901 of 350,112".into(),
            "8 more".into(),
            "1,279 more".into(),
            "needs_recovery is set".into(),
            "2026-03-01 12:34:56 UTC".into(),
            "1 h 02 min 03 s".into(),
            "rules/old/webshells.yar:118:9".into(),
            "sha256sum -c SHA256SUMS".into(),
            "ssh-keygen -Y verify".into(),
            NAMESPACE.into(),
            "T1574.006".into(),
            "60 s a file".into(),
        ];
        facts.extend(report.files.iter().map(|f| f.sha256.to_string()));
        facts.extend(report.rules.iter().chain(&report.indicators).map(|f| f.sha256.to_string()));
        facts.extend(report.run.agent_sha256.map(|d| d.to_string()));
        for fact in facts {
            assert!(page.contains(&fact), "{fact}");
        }
    }

    #[test]
    fn an_empty_report_has_no_empty_tables() {
        let mut report = sample::report();
        report.worst.clear();
        report.gaps.clear();
        report.rules.clear();
        report.indicators.clear();
        report.volumes.clear();
        report.files.clear();
        report.case = None;
        report.summary.findings.0.clear();
        report.summary.gaps = 0;
        let page = html(&report);
        assert!(page.contains("No findings."));
        assert!(page.contains("There are no gaps."));
        assert!(page.contains("No rules were used."));
        assert!(!page.contains("<tbody>\n</tbody>"));
    }

    #[test]
    fn arguments_keep_their_borders() {
        let arguments = ["scan", "a b", "", "it's"].map(String::from);
        assert_eq!(command_line(&arguments), "scan 'a b' '' 'it'\\''s'");
    }
}
