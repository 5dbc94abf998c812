//! How cases stand, and what was done to them.

use std::fmt::Write as _;

use cleanroom_contract::printable;
use cleanroom_controller::{
    flow::{
        approval,
        at_work::AtWork,
        find::Known,
        recover::{self, Task},
        release::{Proposal, Released},
        status::{State, Status},
    },
    journal::verify::Verdict,
};

use super::{Table, field, painted, plain, time};
use crate::terminal::Palette;

/// A word for how a case stands, and its colour.
fn state(state: State) -> (&'static str, fn(Palette, &str) -> String) {
    match state {
        State::Open => ("OPEN", Palette::bad),
        State::Contained => ("contained", Palette::good),
        State::Partial => ("partial", Palette::weak),
        State::Drifted => ("DRIFTED", Palette::bad),
        State::Released => ("released", Palette::dim),
        State::Closed => ("closed", Palette::dim),
    }
}

/// Every status: what was found open first, then the table, then what is wrong with each.
pub(crate) fn statuses(all: &[Status], palette: Palette, width: usize) -> String {
    let mut out = String::new();
    for status in all {
        for interface in &status.still_open {
            let text = format!(
                "!!! {} of {} IS OPEN TO ALL TRAFFIC and could not be closed: give it a security group without rules now",
                printable(interface),
                status.instance
            );
            let _ = writeln!(out, "{}", palette.bad(&text));
        }
        for interface in &status.found_open {
            let text = format!(
                "!!! {} of {} WAS OPEN TO ALL TRAFFIC, left so by a run that ended; it is closed now",
                printable(interface),
                status.instance
            );
            let _ = writeln!(out, "{}", palette.bad(&text));
        }
    }
    if all.is_empty() {
        out.push_str("no open case\n");
        return out;
    }
    let mut table = Table::new(&["case", "instance", "state", "opened", "contained", "preserved"]);
    for status in all {
        let at = |at: Option<_>| plain(at.map_or("-".to_owned(), time));
        let (word, paint) = state(status.state);
        table.row(vec![
            plain(status.case.as_str()),
            plain(status.instance.as_str()),
            painted(word, paint),
            at(status.opened_at),
            at(status.contained_at),
            at(status.preserved_at),
        ]);
    }
    out.push_str(&table.show(palette, width));
    for status in all {
        details(&mut out, status, palette, width);
    }
    out
}

/// Which of a case's rooms, where it is not the first: most cases have no other.
pub(super) fn of_room(room: u32) -> String {
    if room > 1 { format!(" (room {room})") } else { String::new() }
}

fn details(out: &mut String, status: &Status, palette: Palette, width: usize) {
    let mut lines = String::new();
    let mut line = |name: &str, text: &str| lines.push_str(&field(name, &printable(text), width));
    if let Some(asked) = &status.asked {
        match &status.answered {
            None => {
                let (until, otherwise) = (time(asked.deadline), asked.otherwise.words());
                line(
                    "WAITS",
                    &format!("for a person's word until {until}, then it is {otherwise}"),
                );
                for why in &asked.why {
                    line("", why);
                }
                line(
                    "  do",
                    &format!("cleanroom approve {0}, or approve {0} --refuse", status.case),
                );
            }
            Some(answered) => {
                let (decided, by) = (answered.decision.words(), &answered.by);
                line("answered", &format!("it is to be {decided}, says {by}"));
            }
        }
    }
    for scan in &status.scans {
        let told = match (&scan.refused, &scan.told) {
            (Some(why), _) => format!("its bundle is not relied on: {why}"),
            (None, Some((at, what))) => format!("{what} ({})", time(*at)),
            (None, None) => "ordered; its room has told nothing yet".to_owned(),
        };
        let name = if scan.reported { "report" } else { "scan" };
        line(name, &format!("{}{}: {told}", scan.scan, of_room(scan.room)));
        if scan.silent {
            line("", "its room has told nothing since: look at its stack, and run rescan");
        }
        if let Some(why) = &scan.untold {
            line("", &format!("its room could not tell people: {why}"));
        }
    }
    for room in &status.rooms {
        line("room", &format!("{room}, since {}", time(room.since)));
    }
    if !status.rooms.is_empty() {
        let them = if status.rooms.len() > 1 { "they are" } else { "it is" };
        line("  do", &format!("cleanroom teardown {} when {them} done with", status.case));
    }
    for drift in &status.drift {
        line("DRIFTED", &format!("would do again: {drift}"));
    }
    for unknown in &status.unknown {
        line("unknown", unknown);
    }
    for shortfall in &status.shortfalls {
        line("NOT DONE", &format!("{}: {}", shortfall.step, shortfall.what));
        line("  do", &shortfall.advice);
    }
    for what in &status.elsewhere {
        line("elsewhere", what);
    }
    for survivor in &status.survivors {
        line(
            "not cut",
            &format!("{} made {} (event {})", survivor.call, survivor.what, survivor.event),
        );
        if let Some(principal) = &survivor.principal {
            line(
                "  do",
                &format!("cleanroom revoke --principal {principal} --case {}", status.case),
            );
        }
    }
    if !lines.is_empty() {
        let _ = write!(out, "\n{}\n{lines}", palette.strong(status.case.as_str()));
    }
}

/// The list of cases.
pub(crate) fn cases(all: &[Known], palette: Palette, width: usize) -> String {
    if all.is_empty() {
        return "no cases\n".to_owned();
    }
    let mut table = Table::new(&["case", "instance", "opened", "state", "by"]);
    for known in all {
        let claim = &known.claim;
        table.row(vec![
            plain(claim.case.as_str()),
            plain(claim.instance.as_str()),
            plain(time(claim.at)),
            if known.released { painted("released", Palette::dim) } else { plain("open") },
            plain(&claim.actor),
        ]);
    }
    table.show(palette, width)
}

/// What a verification found.
pub(crate) fn verdict(case: &str, verdict: &Verdict, palette: Palette) -> String {
    let mut out = String::new();
    for fault in &verdict.faults {
        let _ = writeln!(out, "{}", palette.bad(&format!("FAULT  {}", printable(fault))));
    }
    let how = match verdict.faults.len() {
        0 => palette.good("whole"),
        1 => palette.bad("1 fault"),
        n => palette.bad(&format!("{n} faults")),
    };
    let late = match verdict.late {
        0 => String::new(),
        n => format!(", {n} of them appended late"),
    };
    let _ = writeln!(
        out,
        "custody log of {case}: {how}; {} events{late}; {} objects of evidence compared",
        verdict.events, verdict.exhibits
    );
    out
}

/// What a release would do.
pub(crate) fn proposal(case: &str, proposal: &Proposal, palette: Palette, width: usize) -> String {
    let mut out = format!("{}\n", palette.strong(&format!("release of {case}")));
    let mut line = |name: &str, text: &str| out.push_str(&field(name, &printable(text), width));
    for drift in &proposal.drift {
        line("DRIFTED", drift);
    }
    for change in &proposal.changes {
        line("restore", change);
    }
    if proposal.changes.is_empty() {
        line("restore", "nothing: all is as it was");
    }
    for short in &proposal.short {
        line("NOT DONE", short);
    }
    for note in &proposal.notes {
        line("note", note);
    }
    out
}

/// What a release came to.
pub(crate) fn released(released: &Released, palette: Palette, width: usize) -> String {
    let mut out = String::new();
    for shortfall in &released.shortfalls {
        let what = format!("{}: {}", shortfall.step, printable(&shortfall.what));
        out.push_str(&field("NOT DONE", &what, width));
        out.push_str(&field("  do", &printable(&shortfall.advice), width));
    }
    for note in &released.notes {
        out.push_str(&field("note", &printable(note), width));
    }
    let head = if released.whole {
        palette.good("released: restored and read back")
    } else {
        palette.bad("released in part: the case stays open")
    };
    let _ = writeln!(out, "{}: {head}", released.case);
    out
}

/// What recovery needs.
pub(crate) fn recovery(tasks: &[Task], palette: Palette, width: usize) -> String {
    let mut table = Table::new(&["state", "what", "found"]);
    for task in tasks {
        let (word, paint): (_, fn(Palette, &str) -> String) = match task.state {
            recover::State::Done => ("done", Palette::good),
            recover::State::Open => ("OPEN", Palette::bad),
            recover::State::Look => ("look", Palette::weak),
        };
        table.row(vec![painted(word, paint), plain(&task.what), plain(&task.found)]);
    }
    let mut out = table.show(palette, width);
    let due: Vec<_> = tasks.iter().filter(|t| !t.advice.is_empty()).collect();
    if !due.is_empty() {
        let mut table = Table::new(&["to do", "how"]);
        for task in due {
            table.row(vec![plain(&task.what), plain(&task.advice)]);
        }
        let _ = write!(out, "\n{}", table.show(palette, width));
    }
    out
}

/// Open cases, the oldest first.
pub(crate) fn at_work(all: &[AtWork], palette: Palette, width: usize) -> String {
    if all.is_empty() {
        return "no open case\n".to_owned();
    }
    let mut table = Table::new(&["case", "instance", "opened", "age", "since", "last"]);
    for it in all {
        let (since, last) = match (&it.asked, &it.last) {
            // Nothing else is as pressing.
            (Some(asked), _) => {
                (time(asked.at), painted(approval::waiting(&it.case, asked.deadline), Palette::bad))
            }
            (None, Some(last)) => (time(last.at), plain(last.what.as_str())),
            (None, None) => ("-".to_owned(), plain("claimed; its log says nothing yet")),
        };
        table.row(vec![
            plain(it.case.as_str()),
            plain(it.instance.as_str()),
            plain(time(it.opened_at)),
            plain(age(it.age_seconds)),
            plain(since),
            last,
        ]);
    }
    table.show(palette, width)
}

/// A time span in its two largest units.
fn age(seconds: i64) -> String {
    match (seconds / 86_400, seconds / 3600 % 24, seconds / 60 % 60) {
        (0, 0, 0) => format!("{seconds} s"),
        (0, 0, minutes) => format!("{minutes} min"),
        (0, hours, minutes) => format!("{hours} h {minutes} min"),
        (days, hours, _) => format!("{days} d {hours} h"),
    }
}

#[cfg(test)]
mod tests {
    use cleanroom_contract::Timestamp;
    use cleanroom_controller::{
        brake::AtDeadline,
        case::{Shortfall, Step},
        flow::{at_work::Last, standing::Standing},
        journal::Asked,
        steps::revoke::not_cut::Survivor,
    };

    use super::*;

    fn status(state: State) -> Status {
        let at = |seconds: i64| Some(Timestamp { seconds: 1_772_366_400 + seconds, nanos: 7 });
        Status {
            case: "i-0123456789abcdef0-1".parse().expect("a case id"),
            instance: "i-0123456789abcdef0".parse().expect("an id"),
            state,
            found_open: Vec::new(),
            still_open: Vec::new(),
            drift: Vec::new(),
            shortfalls: Vec::new(),
            unknown: Vec::new(),
            survivors: Vec::new(),
            asked: None,
            answered: None,
            opened_at: at(0),
            contained_at: at(1),
            preserved_at: None,
            snapshots: Vec::new(),
            elsewhere: Vec::new(),
            scans: Vec::new(),
            rooms: Vec::new(),
        }
    }

    #[test]
    fn what_was_open_is_the_first_line() {
        let mut drifted = status(State::Drifted);
        drifted.found_open.push("eni-0123456789abcdef0".to_owned());
        drifted.drift.push("isolate eni-0: set security groups sg-0".to_owned());
        drifted.unknown.push("revoke:deny: AccessDenied".to_owned());
        drifted.shortfalls.push(Shortfall {
            step: Step::Protect,
            what: "spot refuses".to_owned(),
            advice: "watch it".to_owned(),
        });
        drifted.survivors.push(Survivor {
            call: "AssumeRole".to_owned(),
            what: "arn:aws:sts::123456789012:assumed-role/other/x".to_owned(),
            principal: Some("arn:aws:iam::123456789012:role/other".to_owned()),
            event: "e-1".to_owned(),
        });
        let expected = "\
!!! eni-0123456789abcdef0 of i-0123456789abcdef0 WAS OPEN TO ALL TRAFFIC, left so by a run that ended; it is closed now
case                   instance             state    opened                contained             preserved
i-0123456789abcdef0-1  i-0123456789abcdef0  DRIFTED  2026-03-01T12:00:00Z  2026-03-01T12:00:01Z  -

i-0123456789abcdef0-1
  DRIFTED     would do again: isolate eni-0: set security groups sg-0
  unknown     revoke:deny: AccessDenied
  NOT DONE    protect: spot refuses
    do        watch it
  not cut     AssumeRole made arn:aws:sts::123456789012:assumed-role/other/x (event e-1)
    do        cleanroom revoke --principal arn:aws:iam::123456789012:role/other --case i-0123456789abcdef0-1
";
        assert_eq!(statuses(&[drifted], Palette::default(), usize::MAX), expected);
        let plain = statuses(&[status(State::Contained)], Palette::default(), usize::MAX);
        assert_eq!(plain.lines().count(), 2, "{plain}");
    }

    #[test]
    fn open_cases_are_told_with_their_age_and_what_is_done_last() {
        let opened_at = Timestamp { seconds: 1_772_366_400, nanos: 7 };
        let it = AtWork {
            case: "i-0123456789abcdef0-1".parse().expect("a case id"),
            instance: "i-0123456789abcdef0".parse().expect("an id"),
            opened_at,
            age_seconds: 90_000,
            last: Some(Last {
                what: "begun snapshot:settle".to_owned(),
                step: Some(Step::Snapshot),
                at: opened_at,
            }),
            asked: None,
        };
        let expected = "\
case                   instance             opened                age      since                 last
i-0123456789abcdef0-1  i-0123456789abcdef0  2026-03-01T12:00:00Z  1 d 1 h  2026-03-01T12:00:00Z  begun snapshot:settle
";
        assert_eq!(at_work(std::slice::from_ref(&it), Palette::default(), usize::MAX), expected);
        let asked = Asked {
            at: opened_at,
            why: vec!["the brake".to_owned()],
            deadline: Timestamp { seconds: opened_at.seconds + 9_000, nanos: 7 },
            otherwise: AtDeadline::Contain,
        };
        let waits = AtWork { asked: Some(asked), ..it };
        let shown = at_work(&[waits], Palette::default(), usize::MAX);
        let expected = "  waits for approval until 2026-03-01 14:30 UTC: cleanroom approve i-0123456789abcdef0-1\n";
        assert!(shown.ends_with(expected), "{shown}");
        assert_eq!(at_work(&[], Palette::default(), 80), "no open case\n");
        for (seconds, expected) in
            [(0, "0 s"), (59, "59 s"), (60, "1 min"), (3_660, "1 h 1 min"), (864_000, "10 d 0 h")]
        {
            assert_eq!(age(seconds), expected);
        }
    }

    #[test]
    fn a_room_is_told_with_its_cost_and_what_ends_it() {
        let mut it = status(State::Contained);
        it.rooms.push(Standing {
            stack: "cleanroom-i-0123456789abcdef0-1".to_owned(),
            status: "CREATE_COMPLETE".to_owned(),
            stands: true,
            instance: "i-0fedcba9876543210".parse().ok(),
            state: Some("running".to_owned()),
            since: Timestamp { seconds: 1_772_366_401, nanos: 0 },
            dollars_an_hour: 0.455_8,
        });
        let expected = "
i-0123456789abcdef0-1
  room        cleanroom-i-0123456789abcdef0-1 CREATE_COMPLETE, instance i-0fedcba9876543210 running, about 0.456 USD an hour, since 2026-03-01T12:00:01Z
    do        cleanroom teardown i-0123456789abcdef0-1 when it is done with
";
        let shown = statuses(&[it], Palette::default(), usize::MAX);
        assert!(shown.ends_with(expected), "{shown}");
    }

    #[test]
    fn a_verdict_names_its_faults_and_counts() {
        let mut it = Verdict { events: 12, exhibits: 20, late: 2, faults: Vec::new() };
        assert_eq!(
            verdict("c", &it, Palette::default()),
            "custody log of c: whole; 12 events, 2 of them appended late; 20 objects of evidence compared\n"
        );
        it.faults.push("cases/c/custody/000002.json has 2 versions: it was overwritten".to_owned());
        it.late = 0;
        assert_eq!(
            verdict("c", &it, Palette::default()),
            "FAULT  cases/c/custody/000002.json has 2 versions: it was overwritten\n\
             custody log of c: 1 fault; 12 events; 20 objects of evidence compared\n"
        );
    }

    #[test]
    fn a_release_in_part_says_that_the_case_stays_open() {
        let it = Released {
            case: "c".parse().expect("a case id"),
            whole: false,
            shortfalls: vec![Shortfall {
                step: Step::Detach,
                what: "the group is gone".to_owned(),
                advice: "put it where it belongs".to_owned(),
            }],
            notes: vec!["203.0.113.5 can not come back".to_owned()],
        };
        let expected = [
            "  NOT DONE    detach: the group is gone",
            "    do        put it where it belongs",
            "  note        203.0.113.5 can not come back",
            "c: released in part: the case stays open\n",
        ];
        assert_eq!(released(&it, Palette::default(), usize::MAX), expected.join("\n"));
    }
}
