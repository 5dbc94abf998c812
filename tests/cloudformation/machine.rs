//! `response.asl.json` and `response-many.asl.json`: every way through them comes to an end, and no failure on it skips
//! isolation.
//!
//! # What machine and functions say to each other
//!
//! Three functions, one program: *intake* starts executions, *step* does the one step that it is told, *contain-only*
//! isolates and reports, whatever else is broken.
//!
//! **An execution's input**, written by intake: `{"instance": "i-…", "case": "i-…-1", "source": …, "reason": …,
//! "approval": "none" | "needed", "otherwise": "contain" | "leave"}`, and what else intake knows, at most 16 KiB. The
//! execution is named by the case. Only `instance` and `case` must be there. `otherwise` is what the settings say for when
//! nobody answers.
//!
//! **A request** to step and contain-only:
//!
//! | Field | |
//! |---|---|
//! | `step` | what to do: a row below |
//! | `instance`, `case` | of the input. The claim may name another case: then `open` says so, and it is the one that counts |
//! | `run`, `started` | the execution's name and RFC 3339 start |
//! | `input` | the whole input |
//! | `open` | the facts of `open`; `{}` before it, or where it gave no answer |
//! | `token` | `ask` and `clean_room`: ends the task, by `SendTaskSuccess` |
//! | `asked` | `due` and `ask`: `{"round": n, "seconds": n}`; `round` above 1 is a reminder |
//! | `looked` | `preserve` and `read_back`: `{"round": n}`, from 1 |
//! | `group` | `order`, `clean_room`, `read_back`: the element of `rooms` that it is about: its `n` is the room's number in the case |
//! | `order` | `clean_room`: the facts of `order` |
//! | `machine` | `report`: all that the machine holds, by the names of `ResultPath` and `ResultSelector` in the file; a step without facts gave no answer |
//!
//! **An answer** is an object of facts, of which the machine reads these. `open` has at most 64 KiB, `preserve` 8 KiB, all others
//! 2 KiB: what a state holds may have 256 KiB. A number is whole. Where the store is down, `open` carries what release needs,
//! and each step's `late` the digest and place of what is to be appended later.
//!
//! | Step | Facts that are read | What it does |
//! |---|---|---|
//! | `verify` | `verdict`: `contain`, `refuse` | looks; an instance that is ending is `contain` |
//! | `open` | `approval`: `none`, `needed` | claims, records the original state |
//! | `protect`, `detach`, `snapshot`, `prepare` | | guards; Auto Scaling; `CreateSnapshots` has returned; the forensic group, and tags where the log is down |
//! | `due` | `decision`: `wait`, `contain`, `leave`; `seconds` until the next reminder, 60 to 86400 | whether it is approved or refused by now, or the deadline over |
//! | `ask` | (of the token) `decision`: `contain`, `leave`; `by` | keeps the token where `cleanroom approve` finds it, tells people |
//! | `isolate` | `contained`: every interface was read back as isolated | all interfaces, addresses. Without interfaces it is contained |
//! | `flush`, `revoke`, `tag`, `record`, `notify`, `balancers` | | as the steps of the command line |
//! | `preserve` | `done`; else `seconds` until the next look, 1 to 21600; `rooms`: `[{"n": 1, "volumes": […]}]`, at most 24 each | settle, rekey, lock, image |
//! | `order` | `room`; `seconds` that it may take, 3600 to 1209600 | whether there is to be a room; makes nothing |
//! | `clean_room` | (of the token, by the room's agent) none | writes the order with the token, launches. Fails where no room will ever end the token |
//! | `read_back` | `going`; `seconds`, 1 to 21600 | reads a bundle back, or as much as there is time for; tells people |
//! | `report` | | appends what is late, logs what is short, tells people |
//! | `contain` | `contained` | contain-only: as `isolate`, and tells people |
//!
//! **An error** of a function is `Cleanroom.Retryable` where another try may help, and any other name where none will. Contain-only
//! also takes `{"step": "watch"}` each hour, for the open cases that there is time for, others first each time, and the events of EventBridge: an execution that ended (`detail.input` names the instance), and calls that
//! CloudTrail saw. It looks by itself whether they concern a case.
//!
//! **Metrics**, in the embedded format, namespace `Cleanroom`, dimension `Stack`: `SecondsToContain`, `SecondsToPreserve`,
//! `SecondsToReport`, `InterfaceOpen`, `Drifted`, `CaseAgeHours`, `AgentSilent`, `FindingsCritical`, `FindingsHigh`,
//! `FindingsMedium`, `Gaps`. `response.yaml` has alarms and a dashboard on them.
//!
//! **An execution fails** only where an interface of the instance is not isolated in the end. All else is an execution that
//! succeeds, and a report that says what is short.

mod broken;
mod many;
mod world;

use std::{collections::BTreeSet, fs};

use cleanroom_harness::asl::{ENDLESS, Ended, Walk, all_states, edges, walk};
use serde_json::Value;

use self::world::{Account, Cut, Fault, Made, Scenario, Word, faults};
use super::support::path;

/// An execution's history ends at 25,000 events; half of them is as near as ours come.
const MOST_EVENTS: u64 = 12_500;

/// Seconds until isolation begins, whatever two things go wrong before.
const ISOLATES_WITHIN: u64 = 300;

fn machine(name: &str) -> Value {
    let text = fs::read_to_string(path(name)).expect("read the state machine");
    serde_json::from_str(&text).expect("JSON")
}

fn response() -> Value {
    machine("response.asl.json")
}

/// Cases that take different ways where nothing goes wrong.
fn scenarios() -> Vec<Scenario> {
    let plain = Scenario::default;
    let asked = |word, otherwise| Scenario { approval: "input", word, otherwise, ..plain() };
    vec![
        plain(),
        Scenario { rooms: 0, looks: 0, ..plain() },
        Scenario { rooms: 6, looks: 5, ..plain() },
        Scenario { refused: true, ..plain() },
        Scenario { cut: Cut::ByContainOnly, ..plain() },
        Scenario { cut: Cut::Lost, ..plain() },
        Scenario { cut: Cut::Never, ..plain() },
        Scenario { approval: "open", ..plain() },
        asked(Word::Contain, "leave"),
        asked(Word::Leave, "contain"),
        asked(Word::Silence, "contain"),
        asked(Word::Silence, "leave"),
    ]
}

/// The states that something can go wrong with: those that ask the world, and those that hold branches.
fn states(machine: &Value, kinds: &[&str]) -> Vec<String> {
    let all = all_states(machine).into_iter();
    all.filter(|(_, s)| kinds.contains(&s["Type"].as_str().expect("a type")))
        .map(|(n, _)| n)
        .collect()
}

/// One walk, with all that was asked on it.
fn walked(machine: &Value, scenario: &Scenario, faults: &[(String, Fault)]) -> (Walk, Vec<Made>) {
    let mut account = Account::new(scenario, faults);
    let walk = walk(machine, &scenario.input(), &mut account);
    (walk, account.calls)
}

/// Faults that lead different ways: it fails, it answers nothing in time, it answers with nothing.
fn few_faults() -> Vec<Fault> {
    vec![Fault::Broken, Fault::Silent, Fault::Facts(Value::Null)]
}

/// The faults of walks in which nothing, or one thing, goes wrong: one of these.
fn single_faults(machine: &Value, faults: &[Fault]) -> Vec<Vec<(String, Fault)>> {
    let mut all = vec![vec![]];
    for state in states(machine, &["Task"]) {
        all.extend(faults.iter().map(|fault| vec![(state.clone(), fault.clone())]));
    }
    let told = ["Report", "Report anyway"].map(|state| (state.to_owned(), Fault::Broken));
    all.push(told.into());
    let holders = states(machine, &["Parallel", "Map"]).into_iter();
    all.extend(holders.map(|state| vec![(state, Fault::Broken)]));
    all
}

/// A walk, and what was asked on it.
struct Trip<'a> {
    scenario: &'a Scenario,
    faults: &'a [(String, Fault)],
    walk: &'a Walk,
    calls: &'a [Made],
}

impl Trip<'_> {
    /// Whether it kept what the machine promises; what it broke, where not.
    fn is_sound(&self) -> Result<(), String> {
        if let Some(state) = self.walk.stopped.first() {
            return Err(format!("a failure in {state} stopped what ran beside it"));
        }
        if self.walk.events > MOST_EVENTS {
            return Err(format!("{} events", self.walk.events));
        }
        let refused = self.said("verify", "verdict", "refuse");
        let isolating = self.isolating();
        // Only a person's word, or what people have set for their silence, leaves an instance on the network.
        let silent =
            self.scenario.word == Word::Silence || self.disturbs("Ask") || self.disturbs("Due");
        let left =
            self.said("ask", "decision", "leave") || silent && self.scenario.otherwise == "leave";
        match isolating.is_empty() {
            true if !refused && !left => return Err("isolation was never attempted".to_owned()),
            false if refused => {
                return Err("an instance that is not to be contained was".to_owned());
            }
            true => {}
            false => self.isolates_in_order()?,
        }
        if self.needs_approval() {
            self.does_what_comes_before_approval()?;
        }
        self.contains_otherwise()?;
        self.reports()?;
        let words = isolating.iter().rev();
        let contained = words.filter_map(|c| c.facts.as_ref()?["contained"].as_bool()).next();
        let expected = match (isolating.is_empty(), contained) {
            (true, _) if refused => Ended::Succeeded("Refused".to_owned()),
            (true, _) => Ended::Succeeded("Left".to_owned()),
            (_, Some(true)) => Ended::Succeeded("Done".to_owned()),
            _ => Ended::Failed("Cleanroom.NotContained".to_owned()),
        };
        if self.walk.ended != expected {
            return Err(format!("it ended as {:?}, and not as {expected:?}", self.walk.ended));
        }
        Ok(())
    }

    fn disturbs(&self, state: &str) -> bool {
        self.faults.iter().any(|(name, _)| name == state)
    }

    /// Whether a step answered with this word.
    fn said(&self, step: &str, field: &str, word: &str) -> bool {
        let says = |facts: &Value| facts[field] == word;
        self.calls.iter().any(|c| c.step == step && c.facts.as_ref().is_some_and(says))
    }

    fn needs_approval(&self) -> bool {
        let refused = self.said("verify", "verdict", "refuse");
        let asked = self.scenario.approval == "input" || self.said("open", "approval", "needed");
        asked && !refused
    }

    fn isolating(&self) -> Vec<&Made> {
        let isolates = |call: &&Made| ["isolate", "contain"].contains(&call.step.as_str());
        self.calls.iter().filter(isolates).collect()
    }

    fn first(&self, step: &str) -> Option<usize> {
        self.calls.iter().position(|call| call.step == step)
    }

    /// Isolation comes soon, in its own state, and after what it waits for was tried.
    fn isolates_in_order(&self) -> Result<(), String> {
        let first = self.first("isolate").ok_or("contain-only alone isolated")?;
        let mut waited_for = vec!["verify", "open"];
        if !self.disturbs("Before") {
            waited_for.extend(["protect", "detach", "snapshot", "prepare"]);
        }
        for step in waited_for {
            if self.first(step).is_none_or(|at| at > first) {
                return Err(format!("{step} was not tried before isolation"));
            }
        }
        let isolates = self.walk.tasks.iter().find(|(state, _)| state == "Isolate");
        let (_, seconds) = isolates.ok_or("the state Isolate was skipped")?;
        if !self.needs_approval() && *seconds > ISOLATES_WITHIN {
            return Err(format!("isolation began after {seconds} s"));
        }
        Ok(())
    }

    /// Where a person is to be asked, evidence is safe before, and nothing is cut or taken out of service.
    fn does_what_comes_before_approval(&self) -> Result<(), String> {
        let asks = self.first("due").ok_or("nobody was asked")?;
        let cuts = ["detach", "prepare", "isolate", "contain", "flush", "revoke", "balancers"];
        if let Some(step) = cuts.iter().find(|step| self.first(step).is_some_and(|at| at < asks)) {
            return Err(format!("{step} did not wait for the approval"));
        }
        if self.disturbs("Beforehand") {
            return Ok(());
        }
        let missing = |step: &&&str| self.first(step).is_none_or(|at| at > asks);
        match ["protect", "snapshot", "record"].iter().find(missing) {
            Some(step) => Err(format!("{step} waited for the approval")),
            None => Ok(()),
        }
    }

    /// Where the step did not contain, the function that does nothing else was asked next.
    fn contains_otherwise(&self) -> Result<(), String> {
        let isolating = self.isolating();
        let contained = |call: &Made| call.facts.as_ref().is_some_and(|f| f["contained"] == true);
        for (n, call) in isolating.iter().enumerate() {
            let next = isolating.get(n + 1);
            let goes_on =
                next.is_some_and(|next| next.state == call.state || next.step == "contain");
            if call.step == "isolate" && !contained(call) && !goes_on {
                return Err(format!(
                    "{} did not contain, and contain-only was not asked",
                    call.state
                ));
            }
        }
        let wrong =
            |call: &&&Made| (call.step == "contain") != (call.function == "${ContainFunction}");
        match isolating.iter().find(wrong) {
            Some(call) => Err(format!("{} asks {}", call.state, call.function)),
            None => Ok(()),
        }
    }

    /// The last thing that was done is the report, by the machine itself where its step can not.
    fn reports(&self) -> Result<(), String> {
        match self.calls.last() {
            Some(call) if call.step == "report" && call.facts.is_some() => Ok(()),
            Some(call) if call.state == "Report anyway" => Ok(()),
            last => Err(format!("it ended without a report, after {last:?}")),
        }
    }
}

/// Walks, and judges.
fn judged(machine: &Value, scenario: &Scenario, faults: &[(String, Fault)]) -> Result<(), String> {
    let (walk, calls) = walked(machine, scenario, faults);
    let trip = Trip { scenario, faults, walk: &walk, calls: &calls };
    trip.is_sound().map_err(|broke| format!("{scenario:?} with {faults:?}: {broke}"))
}

/// The first walk of these, with one of these faults, that is not sound.
fn unsound(machine: &Value, scenarios: &[Scenario], faults: &[Fault]) -> Option<String> {
    let all = single_faults(machine, faults);
    let judged =
        |scenario| all.iter().find_map(move |faults| judged(machine, scenario, faults).err());
    scenarios.iter().find_map(judged)
}

#[test]
fn whatever_goes_wrong_it_is_isolated_and_reported() {
    assert_eq!(unsound(&response(), &scenarios(), &faults()), None);
}

#[test]
fn snapshots_that_are_never_whole_end_in_a_report() {
    let never = Scenario { looks: u64::MAX, ..Scenario::default() };
    assert_eq!(unsound(&response(), &[never], &few_faults()), None);
}

#[test]
fn whatever_two_things_go_wrong_it_is_isolated_and_reported() {
    let machine = response();
    let few = [Fault::Broken, Fault::Facts(Value::Null)];
    let tasks = states(&machine, &["Task"]);
    let asked = Scenario { approval: "open", word: Word::Silence, ..Scenario::default() };
    for scenario in [Scenario::default(), asked] {
        for (n, one) in tasks.iter().enumerate() {
            for other in &tasks[n + 1..] {
                for (a, b) in few.iter().flat_map(|a| few.iter().map(move |b| (a, b))) {
                    let faults = [(one.clone(), a.clone()), (other.clone(), b.clone())];
                    assert_eq!(judged(&machine, &scenario, &faults), Ok(()));
                }
            }
        }
    }
}

#[test]
fn where_everything_is_broken_people_are_told_and_the_execution_fails() {
    let machine = response();
    let all: Vec<_> = states(&machine, &["Task"]).into_iter().map(|s| (s, Fault::Silent)).collect();
    let scenario = Scenario::default();
    assert_eq!(judged(&machine, &scenario, &all), Ok(()));
    let (walk, calls) = walked(&machine, &scenario, &all);
    assert_eq!(walk.ended, Ended::Failed("Cleanroom.NotContained".to_owned()));
    assert!(calls.iter().any(|call| call.step == "contain"));
}

#[test]
fn every_transition_is_walked() {
    let machine = response();
    let mut walked_on = BTreeSet::new();
    let never = Scenario { looks: u64::MAX, ..Scenario::default() };
    walked_on.extend(walked(&machine, &never, &[]).0.edges);
    for scenario in scenarios() {
        for faults in single_faults(&machine, &faults()) {
            walked_on.extend(walked(&machine, &scenario, &faults).0.edges);
        }
    }
    // Nobody answers, the settings' word is not heard, and so the machine's own bound is reached.
    for otherwise in ["contain", "leave"] {
        let scenario =
            Scenario { approval: "input", word: Word::Silence, otherwise, ..Scenario::default() };
        walked_on.extend(walked(&machine, &scenario, &[("Due".to_owned(), Fault::Broken)]).0.edges);
    }
    let nothing = walk(
        &machine,
        &serde_json::json!({"case": 7}),
        &mut Account::new(&Scenario::default(), &[]),
    );
    assert_eq!(nothing.ended, Ended::Failed("Cleanroom.Unreadable".to_owned()));
    walked_on.extend(nothing.edges);
    let missed: Vec<_> = edges(&machine).difference(&walked_on).cloned().collect();
    assert!(missed.is_empty(), "never walked: {missed:?}");
}

#[test]
fn the_history_stays_far_below_its_bound() {
    let machine = response();
    let all = all_states(&machine);
    // Every task fails as often as it may and then answers, and all that can be waited for comes never.
    let stubborn: Vec<_> = states(&machine, &["Task"])
        .into_iter()
        .map(|name| {
            let most = |n: usize| all[&name]["Retry"][n]["MaxAttempts"].as_u64().unwrap_or(0);
            let fault = Fault::Stubborn(most(0), most(1));
            (name, fault)
        })
        .collect();
    let mut most = 0;
    for scenario in [
        Scenario {
            looks: u64::MAX,
            rooms: 6,
            approval: "input",
            word: Word::Silence,
            ..Scenario::default()
        },
        // An instance has at most 128 volumes: six rooms.
        Scenario {
            looks: 19,
            rooms: 6,
            approval: "input",
            word: Word::Silence,
            ..Scenario::default()
        },
    ] {
        let (walk, _) = walked(&machine, &scenario, &stubborn);
        most = most.max(walk.events);
    }
    // Besides, a person who is never heard is asked as often as the machine asks.
    let asking: Vec<_> = stubborn
        .iter()
        .map(|(name, fault)| {
            let wait = Fault::Facts(serde_json::json!({"decision": "wait"}));
            (name.clone(), if name == "Due" { wait } else { fault.clone() })
        })
        .collect();
    let scenario = Scenario {
        looks: 19,
        rooms: 6,
        approval: "input",
        word: Word::Silence,
        ..Scenario::default()
    };
    let (walk, _) = walked(&machine, &scenario, &asking);
    most = most.max(walk.events);
    assert!(most > 1_000, "{most} events are no worst case");
    assert!(most < MOST_EVENTS, "{most} events");
}

#[test]
fn facts_and_causes_as_long_as_allowed_fit_into_a_state() {
    let machine = response();
    let asked = Scenario { approval: "input", word: Word::Silence, ..Scenario::default() };
    for scenario in [Scenario { rooms: 6, ..Scenario::default() }, asked] {
        let scenario = Scenario { large: true, ..scenario };
        assert_eq!(judged(&machine, &scenario, &[]), Ok(()));
        for state in states(&machine, &["Task"]) {
            assert_eq!(judged(&machine, &scenario, &[(state, Fault::Broken)]), Ok(()));
        }
    }
}

#[test]
fn only_what_deserves_it_is_tried_again() {
    let deserving = [
        "Cleanroom.Retryable",
        "Lambda.AWSLambdaException",
        "Lambda.ClientExecutionTimeoutException",
        "Lambda.SdkClientException",
        "Lambda.ServiceException",
        "Lambda.TooManyRequestsException",
        "SNS.InternalErrorException",
        "SNS.SdkClientException",
        "SNS.ThrottledException",
        "StepFunctions.ExecutionLimitExceededException",
        "StepFunctions.SdkClientException",
        "StepFunctions.ThrottlingException",
    ];
    for file in ["response.asl.json", "response-many.asl.json"] {
        for (name, state) in all_states(&machine(file)) {
            if state["Type"] != "Task" {
                assert!(state.get("Retry").is_none(), "{name}");
                continue;
            }
            let retriers =
                state["Retry"].as_array().unwrap_or_else(|| panic!("{name} has no retrier"));
            for retrier in retriers {
                assert_eq!(retrier["JitterStrategy"], "FULL", "{name}");
                for error in retrier["ErrorEquals"].as_array().expect("errors") {
                    assert!(
                        deserving.contains(&error.as_str().expect("a name")),
                        "{name}: {error}"
                    );
                }
            }
            let last = state["Catch"].as_array().and_then(|all| all.last());
            let last = last.unwrap_or_else(|| panic!("{name} has no catcher"));
            assert_eq!(last["ErrorEquals"], serde_json::json!(["States.ALL"]), "{name}");
        }
    }
}

#[test]
fn steps_that_are_asked_for_are_those_of_the_contract() {
    let source = include_str!("machine.rs");
    let mut asked = BTreeSet::new();
    for state in all_states(&response()).values() {
        if let Some(step) = state["Parameters"]["Payload"]["step"].as_str() {
            asked.insert(step.to_owned());
        }
    }
    assert_eq!(asked.len(), 21);
    let rows: Vec<_> = source.lines().filter_map(|line| line.strip_prefix("//! | `")).collect();
    for step in &asked {
        let named = format!("`{step}`");
        let row = rows
            .iter()
            .any(|row| format!("`{}", row.split('|').next().unwrap_or_default()).contains(&named));
        assert!(row, "the contract has no row for {step}");
    }
}
