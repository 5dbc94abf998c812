//! What a report says in one sentence.
//!
//! Purpose: the verdict and the words for states and gaps, the same in the report and on the terminal.
//! Pure. Never calls evidence clean: it says what was found in what was examined.

use cleanroom_contract::{GapKind, Report, RunState, Severity, VolumeState};

use super::figures::{counted, grouped};

/// The worst severity that was found.
pub(crate) fn worst(report: &Report) -> Option<Severity> {
    Severity::ALL.into_iter().rev().find(|s| report.summary.findings.get(*s) > 0)
}

/// Why the scan is incomplete; `None` where it came to its end.
pub(crate) fn incomplete(report: &Report) -> Option<&'static str> {
    match report.run.state {
        RunState::Interrupted => Some("The scan was interrupted before its end."),
        RunState::Failed => Some("A part of the scan failed before its end."),
        RunState::Complete if !report.summary.complete => Some("The scan stopped before its end."),
        RunState::Complete => None,
    }
}

/// The verdict: how many findings and the worst, then complete or not, then what was not examined.
pub(crate) fn sentence(report: &Report) -> String {
    let total = report.summary.findings.total();
    let so_far = if incomplete(report).is_some() { " so far" } else { "" };
    let found = match (worst(report), total) {
        (Some(worst), 1) => format!("1 finding{so_far}, of severity {}", worst.as_str()),
        (Some(worst), _) => {
            let at_worst = report.summary.findings.get(worst);
            let those = match at_worst {
                1 => "one of them",
                n if n == total => "all of them",
                _ => &format!("{} of them", grouped(at_worst)),
            };
            format!("{}{so_far}, {those} {}", counted(total, "finding"), worst.as_str())
        }
        (None, _) => format!("No findings{so_far} in what was examined"),
    };
    let state = if incomplete(report).is_some() { "incomplete" } else { "complete" };
    format!("{found}; the scan is {state}, {}.", missed(report))
}

/// What the verdict says of gaps.
fn missed(report: &Report) -> String {
    let coverage = &report.coverage;
    let volumes = coverage.volumes.saturating_sub(coverage.volumes_examined);
    match (volumes, report.summary.gaps) {
        (0, 0) => "with no gaps".to_owned(),
        (0, gaps) => format!("with {}", counted(gaps, "gap")),
        (volumes, gaps) => format!(
            "with {}, and {} of {} not examined to the end",
            counted(gaps, "gap"),
            grouped(volumes),
            counted(coverage.volumes, "volume")
        ),
    }
}

/// A gap's kind in words.
pub(crate) fn gap_words(kind: GapKind) -> &'static str {
    match kind {
        GapKind::Evidence => "evidence not usable",
        GapKind::PartitionTable => "partition table malformed",
        GapKind::Unmounted => "not mountable here",
        GapKind::UnreplayedJournal => "journal not replayed",
        GapKind::MountPoint => "mount point not entered",
        GapKind::Unreadable => "unreadable",
        GapKind::Changed => "changed while read",
        GapKind::Timeout => "time limit struck",
        GapKind::Crashed => "inspector died",
        GapKind::TooLarge => "too large",
        GapKind::Partial => "judged in part",
        GapKind::Sparse => "too many holes",
        GapKind::Parser => "not parsed",
        GapKind::Excluded => "excluded by the operator",
        GapKind::TooDeep => "too deep",
        GapKind::Interrupted => "scan interrupted",
        GapKind::Walker => "volume abandoned",
        GapKind::Rules => "rules not compiled",
        GapKind::AccessTimes => "access times changed",
        GapKind::Storage => "bundle's disk full",
    }
}

/// How far a volume's examination came, in words.
pub(crate) fn volume_words(state: VolumeState) -> &'static str {
    match state {
        VolumeState::Examined => "examined",
        VolumeState::Incomplete => "incomplete",
        VolumeState::NotExamined => "not examined",
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::bundle::sample;

    #[test]
    fn the_sentence_says_count_worst_state_and_gaps() {
        let mut report = sample::report();
        assert_eq!(
            sentence(&report),
            "14 findings so far, 2 of them critical; the scan is incomplete, with 1,284 gaps, and 2 of \
             3 volumes not examined to the end."
        );
        report.run.state = RunState::Complete;
        report.summary.complete = true;
        report.summary.gaps = 0;
        report.coverage.volumes_examined = report.coverage.volumes;
        report.summary.findings.0 = [(Severity::Low, 1)].into();
        assert_eq!(
            sentence(&report),
            "1 finding, of severity low; the scan is complete, with no gaps."
        );
        report.summary.findings.0 = [(Severity::Low, 4)].into();
        assert!(sentence(&report).starts_with("4 findings, all of them low; "));
        report.summary.findings.0 = [(Severity::Low, 4), (Severity::High, 1)].into();
        assert!(sentence(&report).starts_with("5 findings, one of them high; "));
        report.summary.findings.0.clear();
        report.summary.gaps = 1;
        assert_eq!(
            sentence(&report),
            "No findings in what was examined; the scan is complete, with 1 gap."
        );
    }

    #[test]
    fn a_run_that_says_complete_is_believed_only_if_its_summary_agrees() {
        let mut report = sample::report();
        report.run.state = RunState::Complete;
        report.summary.complete = false;
        assert!(incomplete(&report).is_some());
        report.summary.complete = true;
        assert!(incomplete(&report).is_none());
        report.run.state = RunState::Failed;
        assert!(incomplete(&report).is_some());
    }
}
