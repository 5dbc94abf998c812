//! Walks a state machine of the Amazon States Language, with the world's answers made up.
//!
//! Knows what this project's machines say, and panics on all else: a field that it passed over would make a proof of
//! nothing. Where AWS leaves something open, it takes the worse: a branch that fails has stopped all others, jitter is as long
//! as it may be, groups of a Map follow each other.
//! (Amazon States Language, <https://states-language.net/spec.html>; Step Functions developer guide, "Service quotas".)

use std::collections::{BTreeMap, BTreeSet};

use serde_json::{Map, Value, json};

/// What a state's input, output and parameters may come to.
const MOST_DATA: usize = 262_144;

/// How long the cause of an error may be.
const MOST_CAUSE: usize = 32_768;

/// More transitions than any walk of ours has: it does not end.
const MOST_TRANSITIONS: usize = 20_000;

/// The error of a walk that does not end.
pub const ENDLESS: &str = "endless";

/// What a task comes to.
#[derive(Clone, Debug)]
pub enum Answer {
    /// It answers with this.
    Result(Value),
    /// It fails with this error.
    Error(String),
    /// It does not answer in time.
    Nothing,
}

/// A task, as it is attempted.
#[derive(Debug)]
pub struct Call<'a> {
    /// The state's name.
    pub state: &'a str,
    /// The integration, `arn:…:states:::lambda:invoke`.
    pub resource: &'a str,
    /// What it is given.
    pub parameters: &'a Value,
}

/// Everything outside the machine.
pub trait World {
    /// Answers a task.
    fn answer(&mut self, call: &Call<'_>) -> Answer;
    /// An error with which a Parallel or a Map fails by itself.
    fn breaks(&mut self, state: &str) -> Option<String>;
    /// Whether all that is said is as long as it may be.
    fn talks(&self) -> bool;
}

/// How a walk ended.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Ended {
    /// In this state, which succeeds.
    Succeeded(String),
    /// With this error.
    Failed(String),
}

/// A walk from the start to an end.
#[derive(Clone, Debug)]
pub struct Walk {
    /// How it ended.
    pub ended: Ended,
    /// From which state to which.
    pub edges: BTreeSet<(String, String)>,
    /// States whose branches an error stopped.
    pub stopped: Vec<String>,
    /// Tasks, with the second at which each was first attempted.
    pub tasks: Vec<(String, u64)>,
    /// Events in the execution's history.
    pub events: u64,
}

/// Walks a machine from its input to an end.
pub fn walk(machine: &Value, input: &Value, world: &mut dyn World) -> Walk {
    check(machine, &["Comment", "StartAt", "TimeoutSeconds", "States"]);
    let execution =
        json!({"Name": "run-1", "StartTime": "2026-01-02T03:04:05.678Z", "Input": input});
    let context = json!({"Execution": execution, "Task": {"Token": "token-1"}});
    let mut walker = Walker {
        world,
        context,
        edges: BTreeSet::new(),
        stopped: Vec::new(),
        tasks: Vec::new(),
        events: 2,
        seconds: 0,
        transitions: 0,
        last: String::new(),
    };
    let ended = match walker.through(machine, input.clone()) {
        Ok(_) => Ended::Succeeded(walker.last.clone()),
        Err(failure) => Ended::Failed(failure.error),
    };
    let Walker { edges, stopped, tasks, events, .. } = walker;
    Walk { ended, edges, stopped, tasks, events }
}

/// Every transition that a machine describes, by the states' names: `Next`, `Default`, of choices and of catchers.
pub fn edges(machine: &Value) -> BTreeSet<(String, String)> {
    let mut found = BTreeSet::new();
    for (name, state) in states(machine) {
        let mut targets = vec![&state["Next"], &state["Default"]];
        for field in ["Choices", "Catch"] {
            targets.extend(state[field].as_array().into_iter().flatten().map(|rule| &rule["Next"]));
        }
        let targets = targets.into_iter().filter_map(Value::as_str);
        found.extend(targets.map(|target| (name.clone(), target.to_owned())));
        for inner in inner(state) {
            found.extend(edges(inner));
        }
    }
    found
}

/// Every state, with those of branches and of items.
pub fn all_states(machine: &Value) -> BTreeMap<String, Value> {
    let mut found = BTreeMap::new();
    for (name, state) in states(machine) {
        let twice = found.insert(name.clone(), state.clone());
        assert!(twice.is_none(), "two states have the name {name}");
        for inner in inner(state) {
            for (name, state) in all_states(inner) {
                assert!(found.insert(name.clone(), state).is_none(), "two states are named {name}");
            }
        }
    }
    found
}

fn states(machine: &Value) -> &Map<String, Value> {
    machine["States"].as_object().expect("states")
}

fn inner(state: &Value) -> impl Iterator<Item = &Value> {
    let branches = state["Branches"].as_array().into_iter().flatten();
    branches.chain(state.get("ItemProcessor"))
}

/// Panics where an object has a field that is not among these.
fn check(object: &Value, known: &[&str]) {
    for name in object.as_object().expect("an object").keys() {
        assert!(known.contains(&name.as_str()), "{name} is not understood in {object}");
    }
}

/// An error that looks for a catcher.
#[derive(Debug)]
struct Failure {
    error: String,
    /// Whether no retrier and no catcher gets it.
    fatal: bool,
}

impl Failure {
    fn of(error: &str) -> Self {
        let fatal = ["States.Runtime", "States.DataLimitExceeded", ENDLESS].contains(&error);
        Self { error: error.to_owned(), fatal }
    }
}

type Outcome<T> = Result<T, Failure>;

struct Walker<'w> {
    world: &'w mut dyn World,
    context: Value,
    edges: BTreeSet<(String, String)>,
    stopped: Vec<String>,
    tasks: Vec<(String, u64)>,
    events: u64,
    seconds: u64,
    transitions: usize,
    last: String,
}

impl Walker<'_> {
    /// From the first state of a machine, a branch or an item's processor to its end.
    fn through(&mut self, machine: &Value, input: Value) -> Outcome<Value> {
        let states = states(machine);
        let mut name = machine["StartAt"].as_str().expect("a first state").to_owned();
        let mut data = input;
        loop {
            let state = states.get(&name).unwrap_or_else(|| panic!("there is no state {name}"));
            self.transitions += 1;
            if self.transitions > MOST_TRANSITIONS {
                return Err(Failure::of(ENDLESS));
            }
            self.last.clone_from(&name);
            let (next, output) = self.state(&name, state, data)?;
            self.limit(&output)?;
            data = output;
            let Some(next) = next else { return Ok(data) };
            self.edges.insert((name, next.clone()));
            name = next;
        }
    }

    /// One state: where to go from it, and with what.
    fn state(
        &mut self,
        name: &str,
        state: &Value,
        input: Value,
    ) -> Outcome<(Option<String>, Value)> {
        let next = || {
            let next = state["Next"].as_str().map(str::to_owned);
            assert_eq!(next.is_none(), state["End"] == true, "{name} goes on, or ends");
            next
        };
        // Entered and exited.
        self.events += 2;
        match state["Type"].as_str().expect("a type") {
            "Pass" => {
                let known = ["Type", "Comment", "InputPath", "Parameters", "Result", "ResultPath"];
                check(state, &[&known[..], &["Next", "End"]].concat());
                let result = match (state.get("Result"), state.get("Parameters")) {
                    (Some(result), None) => result.clone(),
                    (None, Some(template)) => self.fill(template, &input)?,
                    (None, None) => {
                        self.path(state["InputPath"].as_str().expect("a path"), &input)?
                    }
                    _ => panic!("{name} has two results"),
                };
                Ok((next(), placed(state, input, result)?))
            }
            "Choice" => {
                check(state, &["Type", "Comment", "Choices", "Default"]);
                for rule in state["Choices"].as_array().expect("choices") {
                    if self.holds(rule, &input)? {
                        return Ok((Some(text(&rule["Next"])), input));
                    }
                }
                Ok((Some(text(&state["Default"])), input))
            }
            "Wait" => {
                check(state, &["Type", "Comment", "Seconds", "SecondsPath", "Next"]);
                self.seconds += self.number(state, "Seconds", &input)?.expect("seconds");
                Ok((next(), input))
            }
            "Succeed" => {
                check(state, &["Type", "Comment"]);
                Ok((None, input))
            }
            "Fail" => {
                check(state, &["Type", "Comment", "Error", "Cause"]);
                Err(Failure::of(&text(&state["Error"])))
            }
            "Task" => {
                let result = self.task(name, state, &input);
                self.caught(state, input, result, next)
            }
            "Parallel" => {
                let result = self.parallel(name, state, &input);
                self.caught(state, input, result, next)
            }
            "Map" => {
                let result = self.map(name, state, &input);
                self.caught(state, input, result, next)
            }
            other => panic!("a state of type {other}"),
        }
    }

    /// Puts a result where it belongs, or finds who catches the error.
    fn caught(
        &self,
        state: &Value,
        input: Value,
        result: Outcome<Value>,
        next: impl Fn() -> Option<String>,
    ) -> Outcome<(Option<String>, Value)> {
        let failure = match result {
            Ok(result) => {
                let result = match state.get("ResultSelector") {
                    Some(template) => self.fill(template, &result)?,
                    None => result,
                };
                return Ok((next(), placed(state, input, result)?));
            }
            Err(failure) => failure,
        };
        for catcher in state["Catch"].as_array().into_iter().flatten() {
            check(catcher, &["ErrorEquals", "ResultPath", "Next"]);
            if matches(catcher, &failure) {
                let error = json!({"Error": failure.error, "Cause": "x".repeat(if self.world.talks() { MOST_CAUSE } else { 0 })});
                return Ok((Some(text(&catcher["Next"])), placed(catcher, input, error)?));
            }
        }
        Err(failure)
    }

    fn task(&mut self, name: &str, state: &Value, input: &Value) -> Outcome<Value> {
        let known = ["Type", "Comment", "Resource", "Parameters", "TimeoutSeconds", "ResultPath"];
        let more = ["TimeoutSecondsPath", "HeartbeatSeconds", "ResultSelector", "Retry", "Catch"];
        check(state, &[&known[..], &more, &["Next", "End"]].concat());
        let resource = text(&state["Resource"]);
        let within = self.number(state, "TimeoutSeconds", input)?;
        let within = within.unwrap_or_else(|| panic!("{name} may take for ever"));
        let waits = resource.ends_with(".waitForTaskToken");
        if let Some(heartbeat) = state["HeartbeatSeconds"].as_u64() {
            assert!(waits && heartbeat < within, "{name}: a heartbeat within {within} s");
        }
        self.tasks.push((name.to_owned(), self.seconds));
        let mut tries = BTreeMap::new();
        loop {
            let parameters = self.fill(&state["Parameters"], input)?;
            self.limit(&parameters)?;
            let call = Call { state: name, resource: &resource, parameters: &parameters };
            let answer = self.world.answer(&call);
            // Scheduled, started, where a token is waited for submitted, and how it ended.
            self.events += 3 + u64::from(waits);
            let failure = match answer {
                Answer::Result(result) => {
                    self.seconds += 1;
                    return Ok(if waits { result } else { lambda(&resource, result) });
                }
                Answer::Error(error) => {
                    self.seconds += 1;
                    Failure::of(&error)
                }
                // Who says nothing sends no heartbeat either.
                Answer::Nothing => match state["HeartbeatSeconds"].as_u64() {
                    Some(heartbeat) => {
                        self.seconds += heartbeat;
                        Failure::of("States.HeartbeatTimeout")
                    }
                    None => {
                        self.seconds += within;
                        Failure::of("States.Timeout")
                    }
                },
            };
            match pause(state, &failure, &mut tries) {
                Some(seconds) => self.seconds += seconds,
                None => return Err(failure),
            }
        }
    }

    fn parallel(&mut self, name: &str, state: &Value, input: &Value) -> Outcome<Value> {
        let known = ["Type", "Comment", "Branches", "ResultSelector", "ResultPath", "Catch"];
        check(state, &[&known[..], &["Next", "End"]].concat());
        if let Some(error) = self.world.breaks(name) {
            return Err(Failure::of(&error));
        }
        // Started, and how it ended.
        self.events += 2;
        let began = self.seconds;
        let (mut ended, mut results) = (began, Vec::new());
        for branch in state["Branches"].as_array().expect("branches") {
            check(branch, &["Comment", "StartAt", "States"]);
            self.seconds = began;
            match self.through(branch, input.clone()) {
                Ok(result) => results.push(result),
                Err(failure) => {
                    self.stopped.push(name.to_owned());
                    return Err(failure);
                }
            }
            ended = ended.max(self.seconds);
        }
        self.seconds = ended;
        Ok(results.into())
    }

    fn map(&mut self, name: &str, state: &Value, input: &Value) -> Outcome<Value> {
        let known = ["Type", "Comment", "ItemsPath", "ItemSelector", "ItemProcessor", "ResultPath"];
        let more = ["MaxConcurrency", "MaxConcurrencyPath", "ToleratedFailurePercentage", "Label"];
        check(state, &[&known[..], &more, &["Catch", "Next", "End"]].concat());
        if let Some(error) = self.world.breaks(name) {
            return Err(Failure::of(&error));
        }
        let items = self.path(&text(&state["ItemsPath"]), input)?;
        let Value::Array(items) = items else { return Err(Failure::of("States.Runtime")) };
        let processor = &state["ItemProcessor"];
        check(processor, &["ProcessorConfig", "StartAt", "States"]);
        let apart = processor["ProcessorConfig"]["Mode"] == "DISTRIBUTED";
        self.events += 2;
        let mut results = Vec::new();
        for item in items {
            self.context["Map"] = json!({"Item": {"Value": item}});
            let chosen = self.fill(&state["ItemSelector"], input)?;
            let events = self.events;
            let result = self.through(processor, chosen);
            // An item of a distributed map has a history of its own.
            self.events = if apart { events } else { self.events + 2 };
            match result {
                Ok(result) => results.push(result),
                Err(_) if apart && state["ToleratedFailurePercentage"] == 100 => {}
                Err(failure) => {
                    self.stopped.push(name.to_owned());
                    return Err(failure);
                }
            }
        }
        Ok(results.into())
    }

    /// A number that is there, or where a path says.
    fn number(&self, state: &Value, field: &str, input: &Value) -> Outcome<Option<u64>> {
        match (state.get(field), state.get(format!("{field}Path"))) {
            (Some(number), None) => Ok(Some(number.as_u64().expect("whole seconds"))),
            (None, Some(path)) => {
                let number = self.path(&text(path), input)?;
                number.as_u64().map(Some).ok_or_else(|| Failure::of("States.Runtime"))
            }
            (None, None) => Ok(None),
            _ => panic!("{field} twice"),
        }
    }

    fn holds(&self, rule: &Value, input: &Value) -> Outcome<bool> {
        let all = |rules: &Value| rules.as_array().expect("rules").clone();
        if let Some(rules) = rule.get("And") {
            check(rule, &["And", "Next"]);
            return all(rules)
                .iter()
                .try_fold(true, |held, one| Ok(held && self.holds(one, input)?));
        }
        if let Some(rules) = rule.get("Or") {
            check(rule, &["Or", "Next"]);
            return all(rules)
                .iter()
                .try_fold(false, |held, one| Ok(held || self.holds(one, input)?));
        }
        let path = text(&rule["Variable"]);
        let members = rule.as_object().expect("a rule").iter();
        let tests: Vec<_> =
            members.filter(|(name, _)| !["Variable", "Next"].contains(&name.as_str())).collect();
        let [(test, wanted)] = tests[..] else { panic!("{rule} has more than one test") };
        let found = self.path(&path, input);
        if test == "IsPresent" {
            return Ok(found.is_ok() == (wanted == true));
        }
        let found = found?;
        let number = |value: &Value| value.as_f64();
        Ok(match test.as_str() {
            "IsString" => found.is_string() == (wanted == true),
            "IsNumeric" => found.is_number() == (wanted == true),
            "StringEquals" | "BooleanEquals" => found == *wanted,
            "NumericGreaterThanEquals" => number(&found) >= number(wanted),
            "NumericLessThanEquals" => number(&found).is_some_and(|n| Some(n) <= number(wanted)),
            other => panic!("the test {other} is not understood"),
        })
    }

    /// A template with the values in place of its paths.
    fn fill(&self, template: &Value, input: &Value) -> Outcome<Value> {
        match template {
            Value::Object(members) => {
                let mut filled = Map::new();
                for (name, value) in members {
                    match name.strip_suffix(".$") {
                        Some(name) => filled.insert(name.into(), self.term(&text(value), input)?),
                        None => filled.insert(name.clone(), self.fill(value, input)?),
                    };
                }
                Ok(filled.into())
            }
            Value::Array(list) => list.iter().map(|one| self.fill(one, input)).collect(),
            plain => Ok(plain.clone()),
        }
    }

    /// A path, or one of the functions that are used.
    fn term(&self, term: &str, input: &Value) -> Outcome<Value> {
        let Some((function, arguments)) = term.split_once('(') else {
            return self.path(term, input);
        };
        let arguments = arguments.strip_suffix(')').expect("a closing bracket");
        match function {
            "States.MathAdd" => {
                let (path, more) = arguments.split_once(", ").expect("two arguments");
                let sum =
                    self.path(path, input)?.as_i64().map(|n| n + more.parse::<i64>().expect("n"));
                sum.map(Value::from).ok_or_else(|| Failure::of("States.IntrinsicFailure"))
            }
            "States.Format" => {
                let quoted = arguments.strip_prefix('\'').and_then(|rest| rest.split_once("', "));
                let (format, paths) = quoted.expect("a format and paths");
                let mut made = format.to_owned();
                for path in paths.split(", ") {
                    let Value::String(value) = self.path(path, input)? else {
                        return Err(Failure::of("States.IntrinsicFailure"));
                    };
                    made = made.replacen("{}", &value, 1);
                }
                Ok(made.into())
            }
            other => panic!("the function {other} is not understood"),
        }
    }

    /// Where little is said, nothing comes near the limit.
    fn limit(&self, data: &Value) -> Outcome<()> {
        let exceeds = self.world.talks() && data.to_string().len() > MOST_DATA;
        if exceeds { Err(Failure::of("States.DataLimitExceeded")) } else { Ok(()) }
    }

    /// What a path leads to, in the data (`$.a.b[0]`) or in the context (`$$.a`).
    fn path(&self, path: &str, data: &Value) -> Outcome<Value> {
        let (root, rest) = match path.strip_prefix("$$") {
            Some(rest) => (&self.context, rest),
            None => (data, path.strip_prefix('$').expect("a path")),
        };
        let pointer = rest.replace(['.', '['], "/").replace(']', "");
        // An index leads into lists only.
        let is_list = |at: usize| root.pointer(&pointer[..at]).is_some_and(Value::is_array);
        let lists = rest.match_indices('[').all(|(at, _)| is_list(at));
        let found = root.pointer(&pointer).filter(|_| lists);
        found.cloned().ok_or_else(|| Failure::of("States.Runtime"))
    }
}

/// An integration's answer around what a function returned.
fn lambda(resource: &str, result: Value) -> Value {
    if resource.ends_with("lambda:invoke") {
        json!({"Payload": result, "StatusCode": 200})
    } else {
        result
    }
}

fn text(value: &Value) -> String {
    value.as_str().unwrap_or_else(|| panic!("{value} is no text")).to_owned()
}

/// A result at the place in the input that the state names.
fn placed(state: &Value, input: Value, result: Value) -> Outcome<Value> {
    let path = match state.get("ResultPath") {
        None => return Ok(result),
        Some(Value::Null) => return Ok(input),
        Some(path) => text(path),
    };
    let mut output = input;
    let mut at = &mut output;
    for name in path.strip_prefix("$.").expect("a path").split('.') {
        let Value::Object(members) = at else { return Err(Failure::of("States.Runtime")) };
        at = members.entry(name).or_insert_with(|| json!({}));
    }
    *at = result;
    Ok(output)
}

/// Whether a retrier or a catcher is for this error.
fn matches(rule: &Value, failure: &Failure) -> bool {
    let names: Vec<_> = rule["ErrorEquals"].as_array().expect("errors").iter().map(text).collect();
    for name in &names {
        let ours = !name.starts_with("States.")
            || ["States.ALL", "States.Timeout"].contains(&name.as_str());
        assert!(ours, "{name} is not understood");
    }
    !failure.fatal && names.iter().any(|name| *name == failure.error || name == "States.ALL")
}

/// How long to wait before the next try, at most; nothing where there is none.
fn pause(state: &Value, failure: &Failure, tries: &mut BTreeMap<usize, u32>) -> Option<u64> {
    let retriers = state["Retry"].as_array()?;
    let (which, retrier) = retriers.iter().enumerate().find(|(_, r)| matches(r, failure))?;
    let known = ["ErrorEquals", "MaxAttempts", "IntervalSeconds", "BackoffRate", "MaxDelaySeconds"];
    check(retrier, &[&known[..], &["JitterStrategy"]].concat());
    let done = tries.entry(which).or_default();
    if u64::from(*done) >= retrier["MaxAttempts"].as_u64().expect("a number") {
        return None;
    }
    let number = |field: &str| retrier[field].as_u64().expect("a number");
    let seconds = number("IntervalSeconds") * number("BackoffRate").saturating_pow(*done);
    *done += 1;
    Some(seconds.min(number("MaxDelaySeconds")))
}
