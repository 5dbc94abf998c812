//! How a response in a state machine looks from outside: its history and its log, as events and in the end as a report. Pure.

use std::collections::BTreeMap;

use cleanroom_cloud::{Execution, ExecutionState, Passed};
use cleanroom_contract::{CaseId, InstanceId, ScanId, Timestamp, bundle_prefix};

use crate::{
    case::{Shortfall, Step},
    flow::{Report, Reported},
    journal::{
        self, Ledger,
        event::{Body, CustodyEvent},
    },
    progress::Event,
    steps::notify::Milestone,
};

/// How far the clocks of Step Functions and of its functions may be apart, in seconds. What is older than the execution by
/// more was there before it.
const SKEW: f64 = 5.0;

/// What a state of the machine does, as the command line has it; none for what only decides or waits.
pub(super) fn goal(state: &str) -> Option<(Step, &'static str)> {
    Some(match state {
        "Verify" => (Step::Verify, "verify"),
        "Open" => (Step::Verify, "open"),
        "Protect beforehand" | "Protect" => (Step::Protect, "guards"),
        "Detach" => (Step::Detach, "scaling"),
        "Balancers" => (Step::Detach, "balancers"),
        "Snapshot beforehand" | "Snapshot" => (Step::Snapshot, "take"),
        "Preserve" => (Step::Snapshot, "settle"),
        "Prepare" => (Step::Isolate, "prepare"),
        "Due" | "Ask" => (Step::Isolate, "ask"),
        "Isolate" | "Look again" | "Contain only" | "Contain again" => (Step::Isolate, "cut"),
        "Flush" => (Step::Isolate, "flush"),
        "Revoke" => (Step::Revoke, "revoke"),
        "Tag" => (Step::Tag, "labels"),
        "Record beforehand" | "Record" => (Step::Record, "record"),
        "Notify" => (Step::Notify, "contained"),
        "Report" | "Report anyway" => (Step::Notify, "report"),
        "Order" => (Step::CleanRoom, "order"),
        "Clean room" => (Step::CleanRoom, "launch"),
        "Read back" => (Step::CleanRoom, "report"),
        _ => return None,
    })
}

/// What a state waits for, for a person.
fn waits(state: &str, case: &CaseId) -> Option<(Step, String)> {
    Some(match state {
        "Ask" => (Step::Isolate, format!("a person's word: cleanroom approve {case}")),
        "Wait for snapshots" | "Wait a little" => {
            (Step::Snapshot, "its snapshots to be whole".to_owned())
        }
        "Clean room" => (Step::CleanRoom, "its clean room to end the scan".to_owned()),
        "Wait for the room" | "Wait for it a little" => {
            (Step::CleanRoom, "its report to be published".to_owned())
        }
        _ => return None,
    })
}

/// The last word of a machine, where it is none on containment.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum LastWord {
    /// Not to be contained.
    Refused,
    /// Left as it is, on a person's word or for want of one.
    Left,
}

/// What was seen of a response so far.
#[derive(Debug)]
pub(super) struct View {
    pub(super) instance: InstanceId,
    /// The case, by whose log it is followed.
    pub(super) case: CaseId,
    /// When the execution began.
    started: Option<Timestamp>,
    /// The newest event of its history.
    pub(super) after: u64,
    /// The newest event of the log.
    pub(super) logged: u64,
    /// Whether it has ended.
    pub(super) over: bool,
    ledger: Ledger,
    /// Whether the case was told of, and was there before.
    opened: Option<bool>,
    /// Shortfalls that were told.
    told: Vec<Shortfall>,
    /// Whether the machine waits for a person's word.
    asking: bool,
    /// Whether it was told until when it does.
    told_asked: bool,
    notes: Vec<String>,
    /// When something was done last, by its goal.
    done: BTreeMap<&'static str, Timestamp>,
    last_word: Option<LastWord>,
}

impl View {
    pub(super) fn of(instance: &InstanceId, case: &CaseId) -> Self {
        Self {
            instance: instance.clone(),
            case: case.clone(),
            started: None,
            after: 0,
            logged: 0,
            over: false,
            ledger: Ledger::default(),
            opened: None,
            told: Vec::new(),
            asking: false,
            told_asked: false,
            notes: Vec::new(),
            done: BTreeMap::new(),
            last_word: None,
        }
    }

    /// Seconds from the execution's start.
    fn since(&self, at: Timestamp) -> f64 {
        self.started.map_or(0.0, |started| journal::seconds(at) - journal::seconds(started))
    }

    /// Whether something happened before this execution.
    fn is_old(&self, at: Timestamp) -> bool {
        self.since(at) < -SKEW
    }

    /// Takes one more event of the history into account.
    pub(super) fn passed(&mut self, passed: &Passed) -> Vec<Event> {
        self.after = self.after.max(passed.id);
        self.started.get_or_insert(passed.at);
        let ends =
            ["ExecutionSucceeded", "ExecutionFailed", "ExecutionTimedOut", "ExecutionAborted"];
        self.over |= ends.contains(&passed.kind.as_str());
        let Some(state) = passed.state.as_deref() else { return Vec::new() };
        if passed.kind.ends_with("StateEntered") {
            self.entered(state)
        } else if passed.kind.ends_with("StateExited") {
            self.left(state, passed.at)
        } else {
            Vec::new()
        }
    }

    fn entered(&mut self, state: &str) -> Vec<Event> {
        self.asking |= state == "Ask";
        let question = self.question();
        // Until when it waits says more than that it does.
        let waits = waits(state, &self.case).filter(|_| state != "Ask" || !self.told_asked);
        let instance = || self.instance.clone();
        match state {
            "Refused" => self.last_word = Some(LastWord::Refused),
            "Left" => self.last_word = Some(LastWord::Left),
            _ => {}
        }
        // A state that is there for the failure of another one.
        if let Some((step, goal)) = state.strip_suffix(": no answer").and_then(goal) {
            return vec![Event::Ended { instance: instance(), step, goal, reached: false }];
        }
        let begun =
            goal(state).map(|(step, goal)| Event::Started { instance: instance(), step, goal });
        let waiting = waits.map(|(step, what)| Event::Waiting { instance: instance(), step, what });
        begun.into_iter().chain(waiting).chain(question).collect()
    }

    /// What people are asked, once: as soon as the log says so, where the machine waits for the answer or has asked itself.
    fn question(&mut self) -> Option<Event> {
        let asked = self.ledger.asked.as_ref()?;
        let decided = self.ledger.answered.is_some() || self.ledger.contained_at.is_some();
        if self.told_asked || decided || !self.asking && self.is_old(asked.at) {
            return None;
        }
        let told = Event::Asked {
            instance: self.instance.clone(),
            case: self.case.clone(),
            until: asked.deadline,
            otherwise: asked.otherwise,
            why: asked.why.clone(),
        };
        self.told_asked = true;
        Some(told)
    }

    fn left(&mut self, state: &str, at: Timestamp) -> Vec<Event> {
        self.asking &= state != "Ask";
        let Some((step, goal)) = goal(state) else { return Vec::new() };
        self.done.insert(goal, at);
        vec![Event::Ended { instance: self.instance.clone(), step, goal, reached: true }]
    }

    /// Takes one more event of the log into account.
    pub(super) fn logged(&mut self, event: &CustodyEvent) -> Vec<Event> {
        let mut events = Vec::new();
        if self.opened.is_none() {
            let joined = self.is_old(event.at);
            self.opened = Some(joined);
            let (instance, case) = (self.instance.clone(), self.case.clone());
            events.push(Event::Case { instance, case, joined, weak: false });
        }
        self.ledger.take(event);
        for (at, step, body) in event.entries() {
            if self.is_old(at) {
                if let Body::Short { shortfalls, .. } = body {
                    self.told.extend(shortfalls.iter().cloned());
                }
                continue;
            }
            self.entry(at, step, body, &mut events);
        }
        events.extend(self.question());
        events
    }

    fn entry(&mut self, at: Timestamp, step: Option<Step>, body: &Body, events: &mut Vec<Event>) {
        let instance = || self.instance.clone();
        let milestone = |name: Milestone| Event::Milestone {
            instance: instance(),
            name: name.as_str(),
            seconds: self.since(at).max(0.0),
        };
        match body {
            Body::Done { outcomes, .. } => {
                events.extend(outcomes.iter().map(|outcome| Event::Change {
                    instance: instance(),
                    step: step.unwrap_or(Step::Verify),
                    change: outcome.change.to_string(),
                    operation: outcome.change.operation(),
                    resource: outcome.change.resource(),
                    error: outcome.error.clone(),
                }))
            }
            Body::Contained { .. } => events.push(milestone(Milestone::Contained)),
            Body::Preserved { notes, .. } => {
                events.push(milestone(Milestone::Preserved));
                let told = notes.iter().cloned();
                events.extend(told.map(|note| Event::Note { instance: instance(), note }));
                self.notes.extend(notes.iter().cloned());
            }
            Body::Answered { decision, by, .. } => {
                let (decision, by) = (*decision, by.clone());
                events.push(Event::Answered { instance: instance(), decision, by });
            }
            Body::Reported { .. } => events.push(milestone(Milestone::Reported)),
            // Each once: a step tells what it lacks, and the report tells it again.
            Body::Short { shortfalls, .. } => {
                let new = shortfalls.iter().filter(|short| !self.told.contains(short));
                let new: Vec<_> = new.cloned().collect();
                events.extend(new.iter().map(|shortfall| Event::Shortfall {
                    instance: instance(),
                    shortfall: shortfall.clone(),
                }));
                self.told.extend(new);
            }
            _ => {}
        }
    }

    /// The scans that were ordered and have no report yet.
    pub(super) fn awaited(&self) -> impl Iterator<Item = &ScanId> {
        let ledger = &self.ledger;
        let over =
            |scan: &&ScanId| ledger.reports.contains_key(scan) || ledger.refused.contains_key(scan);
        ledger.orders.keys().filter(move |scan| !over(scan))
    }

    /// Something that the following itself lacks.
    pub(super) fn note(&mut self, note: String) {
        self.notes.push(note);
    }

    /// Whether the machine's last word was that the instance is not to be contained.
    pub(super) fn is_refused(&self) -> bool {
        self.last_word == Some(LastWord::Refused)
    }

    /// What it came to. Nothing of the execution is taken for more than its last word on the interfaces: all else is the log's.
    pub(super) fn report(mut self, ended: &Execution, bucket: &str) -> Report {
        let succeeded = ended.state == ExecutionState::Succeeded;
        let contained = succeeded && self.last_word.is_none();
        let mut shortfalls = std::mem::take(&mut self.ledger.shortfalls);
        shortfalls.extend(self.cut_short(ended));
        shortfalls.sort_by_key(|short| short.step);
        if self.last_word == Some(LastWord::Left) {
            self.note("it was left as it is, on a person's word or for want of one".to_owned());
        }
        // What was so before this execution was looked at by it again.
        let seconds = |at: Timestamp, goal: &str| {
            let looked = self.done.get(goal).copied().filter(|_| self.is_old(at));
            self.since(looked.unwrap_or(at)).max(0.0)
        };
        let contained_at = self.ledger.contained_at.or_else(|| self.done.get("cut").copied());
        let preserved_at = self.ledger.preserved_at;
        let newest = self.ledger.newest_reports().into_iter();
        let newest = newest.filter(|(_, (_, report))| !self.is_old(report.at));
        let reported = newest.map(|(room, (scan, report))| Reported {
            room,
            scan: scan.clone(),
            bundle: format!("s3://{bucket}/{}", bundle_prefix(&self.case, scan)),
            summary: report.summary.clone(),
        });
        let mut reported = reported.collect::<Vec<_>>().into_iter();
        Report {
            instance: self.instance.clone(),
            joined: self.opened == Some(true),
            weak: false,
            contained,
            contained_seconds: contained_at.filter(|_| contained).map(|at| seconds(at, "cut")),
            preserved: preserved_at.is_some(),
            preserved_seconds: preserved_at.map(|at| seconds(at, "settle")),
            reported: reported.next(),
            others: reported.collect(),
            flushed: self.ledger.flushed.iter().cloned().collect(),
            snapshots: self.ledger.snapshots.clone(),
            shortfalls,
            notes: self.notes.clone(),
            waiting: 0,
            steps: Step::ALL.to_vec(),
            case: self.case,
        }
    }

    /// What is short where the execution did not come to its end by itself.
    fn cut_short(&self, ended: &Execution) -> Option<Shortfall> {
        let how = match ended.state {
            ExecutionState::Succeeded => return None,
            ExecutionState::Failed => "failed",
            ExecutionState::TimedOut => "took too long",
            ExecutionState::Aborted => "was stopped",
            ExecutionState::Running => "was still running when it was looked at last",
        };
        let why = ended.error.as_ref().map(|(name, cause)| format!(": {name}: {cause}"));
        Some(Shortfall {
            step: Step::Isolate,
            what: format!("execution {} {how}{}", ended.name, why.unwrap_or_default()),
            advice: format!(
                "a rule of the response stack has isolated it again, if it could: see `cleanroom status {}`, and respond again",
                self.case
            ),
        })
    }
}

#[cfg(test)]
mod tests {
    use serde_json::Value;

    use super::*;

    /// The tasks of a machine and of all that is nested in it.
    fn tasks(machine: &Value, into: &mut Vec<String>) {
        let states = machine["States"].as_object().expect("states");
        for (name, state) in states {
            if state["Type"] == "Task" {
                into.push(name.clone());
            }
            let branches = state["Branches"].as_array().into_iter().flatten();
            let nested = branches.chain(state.get("ItemProcessor")).chain(state.get("Iterator"));
            nested.for_each(|nested| tasks(nested, into));
        }
    }

    #[test]
    fn every_task_of_the_state_machine_is_shown() {
        let file = concat!(env!("CARGO_MANIFEST_DIR"), "/../cloudformation/response.asl.json");
        let text = std::fs::read_to_string(file).expect("read the state machine");
        let mut names = Vec::new();
        tasks(&serde_json::from_str(&text).expect("JSON"), &mut names);
        assert!(names.len() > 20, "{names:?}");
        for name in names {
            assert!(goal(&name).is_some(), "{name} is a task that nobody would see");
        }
        for name in ["Refused", "Left", "Wait for snapshots", "Wait for the room"] {
            assert!(text.contains(&format!("\"{name}\": {{")), "{name} is no state any more");
        }
    }

    fn passed(id: u64, seconds: i64, kind: &str, state: &str) -> Passed {
        let at = Timestamp { seconds, nanos: 0 };
        let state = (!state.is_empty()).then(|| state.to_owned());
        Passed { id, at, kind: kind.to_owned(), state }
    }

    fn view() -> View {
        let instance = "i-0123456789abcdef0".parse().expect("an id");
        View::of(&instance, &"i-0123456789abcdef0-1".parse().expect("a case id"))
    }

    /// What events say, in a word or two each.
    fn words(events: Vec<Event>) -> Vec<String> {
        let word = |event| match event {
            Event::Started { step, goal, .. } => format!("{step}:{goal} begins"),
            Event::Ended { step, goal, reached, .. } => format!("{step}:{goal} {reached}"),
            Event::Waiting { step, what, .. } => format!("{step} waits for {what}"),
            other => format!("{other:?}"),
        };
        events.into_iter().map(word).collect()
    }

    #[test]
    fn states_are_steps_and_what_fails_is_not_reached() {
        let mut view = view();
        let mut all = Vec::new();
        for (id, (kind, state)) in [
            ("ExecutionStarted", ""),
            ("TaskStateEntered", "Revoke"),
            ("LambdaFunctionFailed", ""),
            ("TaskStateExited", "Revoke"),
            ("PassStateEntered", "Revoke: no answer"),
            ("PassStateExited", "Revoke: no answer"),
            ("TaskStateEntered", "Ask"),
            ("ChoiceStateEntered", "Answered"),
            ("WaitStateEntered", "Wait for snapshots"),
        ]
        .into_iter()
        .enumerate()
        {
            all.extend(words(view.passed(&passed(id as u64 + 1, 0, kind, state))));
        }
        assert_eq!(
            all,
            [
                "revoke:revoke begins",
                "revoke:revoke true",
                "revoke:revoke false",
                "isolate:ask begins",
                "isolate waits for a person's word: cleanroom approve i-0123456789abcdef0-1",
                "snapshot waits for its snapshots to be whole",
            ]
        );
        assert_eq!((view.after, view.over), (9, false));
        view.passed(&passed(10, 9, "ExecutionAborted", ""));
        assert!(view.over);
    }

    #[test]
    fn one_that_did_not_end_by_itself_is_not_contained() {
        let ended = |state, error: Option<(&str, &str)>| {
            let mut view = view();
            view.passed(&passed(1, 100, "ExecutionStarted", ""));
            view.passed(&passed(2, 104, "TaskStateExited", "Isolate"));
            let at = Timestamp { seconds: 100, nanos: 0 };
            let execution = Execution {
                arn: String::new(),
                name: "i-0123456789abcdef0-1".to_owned(),
                state,
                started: at,
                stopped: Some(at),
                input: String::new(),
                output: None,
                error: error.map(|(name, cause)| (name.to_owned(), cause.to_owned())),
            };
            view.report(&execution, "evidence")
        };
        let report = ended(ExecutionState::Succeeded, None);
        assert_eq!((report.contained, report.contained_seconds), (true, Some(4.0)));
        assert!(report.shortfalls.is_empty() && !report.preserved, "{report:?}");
        let report = ended(ExecutionState::Failed, Some(("Cleanroom.NotContained", "eni-1")));
        assert_eq!((report.contained, report.contained_seconds), (false, None));
        let what = &report.shortfalls[0].what;
        assert_eq!(what, "execution i-0123456789abcdef0-1 failed: Cleanroom.NotContained: eni-1");
        assert!(!ended(ExecutionState::Aborted, None).is_whole());
    }
}
