//! How every instance stands, from the events: what the live view draws. Pure.

use std::{
    collections::{BTreeMap, BTreeSet},
    fmt::Write as _,
};

use cleanroom_contract::{InstanceId, printable};
use cleanroom_controller::{case::Step, flow::approval, progress::Event};

use super::{Palette, cut};

/// How a step stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum State {
    Waiting,
    Working,
    Done,
    Short,
}

/// One instance.
#[derive(Debug, Default)]
struct Entry {
    case: String,
    /// Goals at work, by step.
    at_work: BTreeMap<Step, usize>,
    /// Steps of which a goal ended.
    ended: BTreeSet<Step>,
    short: BTreeSet<Step>,
    /// What takes its time, by step.
    waiting: BTreeMap<Step, String>,
    shortfalls: Vec<String>,
    /// What a person is asked.
    asked: Option<String>,
    open: BTreeSet<String>,
    contained: Option<f64>,
    preserved: Option<f64>,
    reported: Option<f64>,
    /// What it came to.
    over: Option<bool>,
}

impl Entry {
    fn state(&self, step: Step) -> State {
        if self.at_work.get(&step).is_some_and(|n| *n > 0) {
            State::Working
        } else if self.short.contains(&step) {
            State::Short
        } else if self.ended.contains(&step) || self.over.is_some() {
            State::Done
        } else {
            State::Waiting
        }
    }

    fn take(&mut self, event: &Event) {
        match event {
            Event::Case { case, .. } => {
                self.case = case.to_string();
                self.ended.insert(Step::Verify);
            }
            Event::Started { step, goal, .. } => {
                *self.at_work.entry(*step).or_default() += 1;
                // It is decided, by a person or by their silence.
                if *goal == "cut" {
                    self.asked = None;
                }
            }
            Event::Ended { step, reached, .. } => {
                let at_work = self.at_work.entry(*step).or_default();
                *at_work = at_work.saturating_sub(1);
                if *at_work == 0 {
                    self.waiting.remove(step);
                }
                self.ended.insert(*step);
                if !reached {
                    self.short.insert(*step);
                }
            }
            Event::Waiting { step, what, .. } => {
                self.waiting.insert(*step, printable(what));
            }
            Event::Asked { case, until, .. } => {
                // It says more than the wait itself.
                self.waiting.remove(&Step::Isolate);
                self.asked = Some(approval::waiting(case, *until));
            }
            Event::Answered { .. } => self.asked = None,
            Event::Shortfall { shortfall, .. } => {
                self.short.insert(shortfall.step);
                self.shortfalls.push(format!("{}: {}", shortfall.step, printable(&shortfall.what)));
            }
            Event::Open { interface, .. } => {
                self.open.insert(printable(interface));
            }
            Event::Milestone { name, seconds, .. } => match *name {
                "contained" => self.contained = Some(*seconds),
                "preserved" => self.preserved = Some(*seconds),
                "reported" => self.reported = Some(*seconds),
                _ => {}
            },
            Event::Change { .. } | Event::Note { .. } | Event::Unlogged { .. } => {}
        }
    }
}

/// Every instance of a run.
#[derive(Debug)]
pub(super) struct Board {
    /// In the order in which they were named.
    order: Vec<InstanceId>,
    entries: BTreeMap<InstanceId, Entry>,
    /// The steps that were asked for.
    steps: BTreeSet<Step>,
    palette: Palette,
}

impl Board {
    pub(super) fn new(order: Vec<InstanceId>, steps: BTreeSet<Step>, palette: Palette) -> Self {
        let entries = order.iter().map(|id| (id.clone(), Entry::default())).collect();
        Self { order, entries, steps, palette }
    }

    /// Takes an event into account.
    pub(super) fn take(&mut self, event: &Event) {
        self.entries.entry(instance(event).clone()).or_default().take(event);
    }

    /// An instance's response is over.
    pub(super) fn over(&mut self, instance: &InstanceId, whole: bool) {
        let entry = self.entries.entry(instance.clone()).or_default();
        entry.over = Some(whole);
        entry.at_work.clear();
        entry.waiting.clear();
        entry.asked = None;
    }

    /// What to draw, `seconds` after the start, in so many columns and rows.
    pub(super) fn frame(&self, seconds: f64, (columns, rows): (usize, usize)) -> String {
        let all = || self.order.iter().filter_map(|id| Some((id, self.entries.get(id)?)));
        let mut lines: Vec<String> = all()
            .flat_map(|(id, entry)| entry.open.iter().map(move |eni| (id, eni)))
            .map(|(id, eni)| {
                self.palette
                    .bad(&format!("OPEN {eni} of {id} allows all traffic: closing it again"))
            })
            .collect();
        let mut blocks = Vec::new();
        for (id, entry) in all() {
            self.block(id, entry, &mut blocks);
        }
        if lines.len() + blocks.len() < rows {
            lines.append(&mut blocks);
        } else {
            lines.push(self.sum(seconds));
            // Those that wait for a person, and then those that are short, are what one must see.
            let asked = all().filter_map(|(id, entry)| Some((id, entry.asked.as_ref()?)));
            let asked = asked.map(|(id, what)| self.palette.bad(&format!("  ? {id} {what}")));
            let short = all().filter(|(_, entry)| !entry.shortfalls.is_empty());
            let short = short.map(|(id, entry)| self.short(id, entry));
            let room = rows.saturating_sub(lines.len() + 2);
            let shown: Vec<_> = asked.chain(short).collect();
            lines.extend(shown.iter().take(room).cloned());
            if shown.len() > room {
                lines.push(format!("  and {} more that wait or are short", shown.len() - room));
            }
        }
        let lines: Vec<_> = lines.iter().map(|line| cut(line, columns.saturating_sub(1))).collect();
        lines.join("\n")
    }

    /// One instance in a few lines.
    fn block(&self, id: &InstanceId, entry: &Entry, lines: &mut Vec<String>) {
        let mut head = self.palette.strong(id.as_str());
        if !entry.case.is_empty() {
            let _ = write!(head, "  case {}", entry.case);
        }
        for (name, seconds) in [
            ("contained", entry.contained),
            ("preserved", entry.preserved),
            ("reported", entry.reported),
        ] {
            if let Some(seconds) = seconds {
                let _ = write!(head, "  {}", self.palette.good(&format!("{name} {seconds:.1} s")));
            }
        }
        lines.push(head);
        let steps = Step::ALL.iter().filter(|step| self.steps.contains(step));
        let steps: Vec<_> = steps.map(|step| self.step(*step, entry.state(*step))).collect();
        lines.push(format!("  {}", steps.join(" ")));
        if let Some(what) = &entry.asked {
            lines.push(self.palette.bad(&format!("  {what}")));
        }
        for (step, what) in &entry.waiting {
            lines.push(self.palette.dim(&format!("  {step} waits for {what}")));
        }
        for short in &entry.shortfalls {
            lines.push(self.palette.weak(&format!("  ! {short}")));
        }
    }

    fn step(&self, step: Step, state: State) -> String {
        match state {
            State::Waiting => self.palette.dim(&format!("·{step}")),
            State::Working => self.palette.strong(&format!("▸{step}")),
            State::Done => self.palette.good(&format!("✓{step}")),
            State::Short => self.palette.weak(&format!("!{step}")),
        }
    }

    /// All instances in one line.
    fn sum(&self, seconds: f64) -> String {
        let count = |is: fn(&Entry) -> bool| self.entries.values().filter(|e| is(e)).count();
        let at_work = count(|e| !e.case.is_empty() && e.over.is_none());
        format!(
            "{}  {} contained · {} preserved · {} whole · {} short · {at_work} at work · {} waiting  {seconds:.0} s",
            self.palette.strong(&format!("{} instances", self.order.len())),
            count(|e| e.contained.is_some()),
            count(|e| e.preserved.is_some()),
            count(|e| e.over == Some(true)),
            count(|e| !e.shortfalls.is_empty()),
            count(|e| e.case.is_empty() && e.over.is_none()),
        )
    }

    fn short(&self, id: &InstanceId, entry: &Entry) -> String {
        let contained = if entry.contained.is_some() { "contained" } else { "NOT contained" };
        let what = entry.shortfalls.first().map_or("", String::as_str);
        self.palette.weak(&format!("  ! {id} {contained}: {what}"))
    }
}

/// The instance that an event is about.
pub(super) fn instance(event: &Event) -> &InstanceId {
    match event {
        Event::Case { instance, .. }
        | Event::Started { instance, .. }
        | Event::Change { instance, .. }
        | Event::Waiting { instance, .. }
        | Event::Asked { instance, .. }
        | Event::Answered { instance, .. }
        | Event::Ended { instance, .. }
        | Event::Note { instance, .. }
        | Event::Shortfall { instance, .. }
        | Event::Open { instance, .. }
        | Event::Unlogged { instance, .. }
        | Event::Milestone { instance, .. } => instance,
    }
}

/// What is worth a line where there is no live view.
pub(super) fn line(event: &Event) -> Option<String> {
    let text = match event {
        Event::Case { case, joined, .. } => {
            let how = if *joined { "goes on with" } else { "opens" };
            format!("{how} case {case}")
        }
        Event::Milestone { name, seconds, .. } => format!("{name} after {seconds:.1} s"),
        Event::Shortfall { shortfall, .. } => format!("NOT DONE: {}", shortfall.what),
        Event::Open { interface, .. } => {
            format!("OPEN: {interface} allows all traffic and is being closed again")
        }
        Event::Waiting { step, what, .. } => format!("{step} waits for {what}"),
        Event::Asked { case, until, otherwise, why, .. } => format!(
            "{}; else it is {}; asked because {}",
            approval::waiting(case, *until),
            otherwise.words(),
            why.join("; ")
        ),
        Event::Answered { decision, by, .. } => format!("to be {}, says {by}", decision.words()),
        Event::Started { .. }
        | Event::Change { .. }
        | Event::Ended { .. }
        | Event::Note { .. }
        | Event::Unlogged { .. } => {
            return None;
        }
    };
    Some(format!("{}: {}", instance(event), printable(&text)))
}

#[cfg(test)]
mod tests {
    use cleanroom_contract::Timestamp;
    use cleanroom_controller::{brake::AtDeadline, case::Shortfall};

    use super::*;

    fn id(n: usize) -> InstanceId {
        format!("i-{n:017x}").parse().expect("an id")
    }

    fn started(step: Step) -> Event {
        Event::Started { instance: id(1), step, goal: "goal" }
    }

    fn ended(step: Step, reached: bool) -> Event {
        Event::Ended { instance: id(1), step, goal: "goal", reached }
    }

    fn short(n: usize) -> Event {
        let shortfall = Shortfall {
            step: Step::Revoke,
            what: "the role's policies\u{1b} are full".to_owned(),
            advice: "do something".to_owned(),
        };
        Event::Shortfall { instance: id(n), shortfall }
    }

    fn opened(n: usize) -> Event {
        let case = format!("case-{n}").parse().expect("a case id");
        Event::Case { instance: id(n), case, joined: false, weak: false }
    }

    fn board(instances: usize) -> Board {
        Board::new((1..=instances).map(id).collect(), Step::ALL.into(), Palette::default())
    }

    #[test]
    fn a_block_shows_every_step_as_it_stands() {
        let mut board = board(1);
        let waiting = "snap-0123456789abcdef0 34 %".to_owned();
        for event in [
            opened(1),
            started(Step::Protect),
            ended(Step::Protect, true),
            started(Step::Isolate),
            ended(Step::Isolate, true),
            started(Step::Isolate),
            ended(Step::Revoke, false),
            started(Step::Snapshot),
            Event::Waiting { instance: id(1), step: Step::Snapshot, what: waiting },
            Event::Milestone { instance: id(1), name: "contained", seconds: 1.13 },
            short(1),
        ] {
            board.take(&event);
        }
        assert_eq!(
            board.frame(2.0, (100, 24)),
            "i-00000000000000001  case case-1  contained 1.1 s
  ✓verify ✓protect ·detach ▸snapshot ▸isolate !revoke ·tag ·record ·notify ·clean_room
  snapshot waits for snap-0123456789abcdef0 34 %
  ! revoke: the role's policies\\u{1b} are full"
        );
        board.over(&id(1), false);
        let frame = board.frame(9.0, (100, 24));
        assert!(
            frame.contains(
                "✓verify ✓protect ✓detach ✓snapshot ✓isolate !revoke ✓tag ✓record ✓notify ✓clean_room"
            ),
            "{frame}"
        );
    }

    #[test]
    fn more_than_the_terminal_holds_becomes_one_line_and_what_is_short() {
        let mut board = board(200);
        for n in 1..=50 {
            board.take(&opened(n));
        }
        for n in 1..=30 {
            board.take(&Event::Milestone { instance: id(n), name: "contained", seconds: 1.0 });
        }
        for n in [7, 8, 9, 40] {
            board.take(&short(n));
        }
        board.over(&id(1), true);
        assert_eq!(
            board.frame(3.0, (120, 6)),
            "200 instances  30 contained · 0 preserved · 1 whole · 4 short · 49 at work · 150 waiting  3 s
  ! i-00000000000000007 contained: revoke: the role's policies\\u{1b} are full
  ! i-00000000000000008 contained: revoke: the role's policies\\u{1b} are full
  ! i-00000000000000009 contained: revoke: the role's policies\\u{1b} are full
  and 1 more that wait or are short"
        );
        assert!(board.frame(3.0, (60, 24)).lines().all(|line| line.chars().count() < 60));
    }

    #[test]
    fn that_a_person_is_asked_is_told_until_it_is_decided() {
        let asked = |n: usize| Event::Asked {
            instance: id(n),
            case: format!("case-{n}").parse().expect("a case id"),
            until: Timestamp { seconds: 1_772_375_400, nanos: 0 },
            otherwise: AtDeadline::Leave,
            why: vec!["of the\u{1b} brake".to_owned()],
        };
        let waits = |n: usize| {
            format!("waits for approval until 2026-03-01 14:30 UTC: cleanroom approve case-{n}")
        };
        let expected = format!(
            "{}: {}; else it is left as it is; asked because of the\\u{{1b}} brake",
            id(1),
            waits(1)
        );
        assert_eq!(line(&asked(1)), Some(expected));
        let answered = Event::Answered {
            instance: id(1),
            decision: approval::Decision::Leave,
            by: "arn:aws:iam::123456789012:user/ops".to_owned(),
        };
        let cut = Event::Started { instance: id(1), step: Step::Isolate, goal: "cut" };
        for decides in [answered, cut] {
            let mut board = board(1);
            let what = "a person's word".to_owned();
            board.take(&opened(1));
            board.take(&Event::Waiting { instance: id(1), step: Step::Isolate, what });
            board.take(&asked(1));
            let frame = board.frame(1.0, (100, 24));
            assert!(frame.ends_with(&format!("\n  {}", waits(1))), "{frame}");
            board.take(&decides);
            assert!(!board.frame(1.0, (100, 24)).contains("approval"), "{decides:?}");
        }
        // Among many, those that wait come before those that are short.
        let mut board = board(50);
        board.take(&short(2));
        board.take(&asked(40));
        let frame = board.frame(1.0, (120, 6));
        let second = frame.lines().nth(1).map(str::to_owned);
        assert_eq!(second, Some(format!("  ? {} {}", id(40), waits(40))), "{frame}");
    }

    #[test]
    fn an_open_interface_comes_first() {
        let mut board = board(2);
        board.take(&opened(1));
        board.take(&Event::Open { instance: id(2), interface: "eni-0123456789abcdef0".to_owned() });
        let frame = board.frame(1.0, (100, 24));
        assert!(
            frame.starts_with(
                "OPEN eni-0123456789abcdef0 of i-00000000000000002 allows all traffic"
            ),
            "{frame}"
        );
    }
}
