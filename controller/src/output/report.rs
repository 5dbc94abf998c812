//! What a response came to.

use std::fmt::Write as _;

use cleanroom_contract::printable;
use cleanroom_controller::{
    case::Step,
    flow::{Report, investigate::counted},
    steps::isolate::NOT_CUT,
};

use super::{cases::of_room, field};
use crate::terminal::Palette;

/// How the next command is typed: the program with the flags by which this run found the account.
#[derive(Clone, Debug)]
pub(crate) struct Next(pub String);

/// A report for people.
pub(crate) fn report(report: &Report, next: &Next, (palette, width): (Palette, usize)) -> String {
    let asked = |step| report.steps.contains(&step);
    let (isolate, snapshot) = (asked(Step::Isolate), asked(Step::Snapshot));
    let head = match (isolate, report.contained, report.is_whole()) {
        (true, false, _) => palette.bad("NOT CONTAINED"),
        (true, true, true) => palette.good("contained"),
        (true, true, false) => palette.weak("contained, partial"),
        (false, _, true) => palette.good("done"),
        (false, _, false) => palette.weak("partial"),
    };
    let mut out = format!("\n{}: {head}\n", palette.strong(report.instance.as_str()));
    let how = match (report.weak, report.joined) {
        (true, _) => " (weak: not claimed in the bucket)",
        (false, true) => " (joined)",
        (false, false) => "",
    };
    let mut line = |name: &str, text: &str| out.push_str(&field(name, text, width));
    line("case", &format!("{}{how}", report.case));
    line("contained", &contained(report, isolate));
    line("preserved", &preserved(report, snapshot));
    for reported in report.reported.iter().chain(&report.others) {
        let (counted, bundle) = (counted(&reported.summary), printable(&reported.bundle));
        line("report", &format!("{counted}; {bundle}{}", of_room(reported.room)));
    }
    if !report.flushed.is_empty() {
        let flushed = report.flushed.join(", ");
        line("flushed", &format!("{}: tracked flows are dropped too", printable(&flushed)));
    }
    for shortfall in &report.shortfalls {
        line("NOT DONE", &format!("{}: {}", shortfall.step, printable(&shortfall.what)));
        line("  do", &printable(&shortfall.advice));
    }
    if report.waiting > 0 {
        line(
            "waiting",
            &format!(
                "{} events and objects wait on this machine for the bucket; respond again appends them",
                report.waiting
            ),
        );
    }
    for note in &report.notes {
        line("note", &printable(note));
    }
    let Next(program) = next;
    let mut commands = vec![format!("{program} status {}", report.case)];
    if !report.is_whole() {
        commands.insert(0, format!("{program} respond {}", report.instance));
    }
    if report.reported.is_some() {
        commands.push(format!("{program} fetch {}", report.case));
        commands.push(format!("{program} teardown {}", report.case));
    }
    commands.push(format!("{program} custody verify {}", report.case));
    commands.push(format!("{program} recover {}", report.case));
    commands.push(format!("{program} release {}", report.case));
    for (n, command) in commands.iter().enumerate() {
        let _ = writeln!(out, "  {:<12}{command}", if n == 0 { "next" } else { "" });
    }
    out
}

fn contained(report: &Report, asked: bool) -> String {
    match (report.contained_seconds, asked) {
        (Some(seconds), _) => {
            format!("yes, every interface read back, {seconds:.2} s after the start")
        }
        (None, true) => "NO: at least one interface is not read back as isolated".to_owned(),
        (None, false) => "not asked for".to_owned(),
    }
}

fn preserved(report: &Report, asked: bool) -> String {
    let snapshots = printable(&report.snapshots.join(", "));
    match (report.preserved_seconds, asked) {
        (Some(seconds), _) if snapshots.is_empty() => {
            format!("yes, {seconds:.2} s after the start")
        }
        (Some(seconds), _) => format!("yes, {seconds:.2} s after the start: {snapshots}"),
        (None, true) => "NO: not every volume has a whole snapshot".to_owned(),
        (None, false) => "not asked for".to_owned(),
    }
}

/// What containment does not surely cut: once for a run.
pub(crate) fn not_cut(width: usize) -> String {
    let lines = NOT_CUT.iter().map(|what| field("not cut", what, width));
    format!("\n{}", lines.collect::<String>())
}

#[cfg(test)]
mod tests {
    use cleanroom_controller::case::Shortfall;

    use super::*;

    fn whole() -> Report {
        Report {
            instance: "i-0123456789abcdef0".parse().expect("an id"),
            case: "i-0123456789abcdef0-1".parse().expect("a case id"),
            joined: false,
            weak: false,
            contained: true,
            contained_seconds: Some(1.126),
            preserved: true,
            preserved_seconds: Some(12.4),
            reported: None,
            others: Vec::new(),
            flushed: vec!["eni-0123456789abcdef0".to_owned()],
            snapshots: vec!["snap-0123456789abcdef0".to_owned()],
            shortfalls: Vec::new(),
            notes: vec!["memory was not taken".to_owned()],
            waiting: 0,
            steps: Step::ALL.to_vec(),
        }
    }

    fn shown(it: &Report) -> String {
        let next = Next("cleanroom --region eu-west-1".to_owned());
        report(it, &next, (Palette::default(), usize::MAX))
    }

    #[test]
    fn a_whole_report_says_when_and_what_next() {
        let expected = "
i-0123456789abcdef0: contained
  case        i-0123456789abcdef0-1
  contained   yes, every interface read back, 1.13 s after the start
  preserved   yes, 12.40 s after the start: snap-0123456789abcdef0
  flushed     eni-0123456789abcdef0: tracked flows are dropped too
  note        memory was not taken
  next        cleanroom --region eu-west-1 status i-0123456789abcdef0-1
              cleanroom --region eu-west-1 custody verify i-0123456789abcdef0-1
              cleanroom --region eu-west-1 recover i-0123456789abcdef0-1
              cleanroom --region eu-west-1 release i-0123456789abcdef0-1
";
        assert_eq!(shown(&whole()), expected);
    }

    #[test]
    fn what_is_short_comes_with_what_to_do() {
        let it = Report {
            weak: true,
            contained: false,
            contained_seconds: None,
            preserved: false,
            preserved_seconds: None,
            flushed: Vec::new(),
            snapshots: Vec::new(),
            shortfalls: vec![Shortfall {
                step: Step::Isolate,
                what: "eni-0\u{1b} refused".to_owned(),
                advice: "ask its service".to_owned(),
            }],
            notes: Vec::new(),
            waiting: 3,
            ..whole()
        };
        let expected = "
i-0123456789abcdef0: NOT CONTAINED
  case        i-0123456789abcdef0-1 (weak: not claimed in the bucket)
  contained   NO: at least one interface is not read back as isolated
  preserved   NO: not every volume has a whole snapshot
  NOT DONE    isolate: eni-0\\u{1b} refused
    do        ask its service
  waiting     3 events and objects wait on this machine for the bucket; respond again appends them
  next        cleanroom --region eu-west-1 respond i-0123456789abcdef0
              cleanroom --region eu-west-1 status i-0123456789abcdef0-1
              cleanroom --region eu-west-1 custody verify i-0123456789abcdef0-1
              cleanroom --region eu-west-1 recover i-0123456789abcdef0-1
              cleanroom --region eu-west-1 release i-0123456789abcdef0-1
";
        assert_eq!(shown(&it), expected);
    }

    #[test]
    fn what_was_not_asked_for_is_not_missing() {
        let it = Report {
            contained: false,
            contained_seconds: None,
            steps: vec![Step::Verify, Step::Snapshot],
            ..whole()
        };
        let shown = shown(&it);
        assert!(shown.starts_with("\ni-0123456789abcdef0: done\n"), "{shown}");
        assert!(shown.contains("  contained   not asked for\n"), "{shown}");
    }
}
