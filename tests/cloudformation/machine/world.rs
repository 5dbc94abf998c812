//! The functions that a machine calls, as they answer in a scenario, and what is injected into them.

use std::collections::BTreeMap;

use cleanroom_harness::asl::{Answer, Call, World};
use serde_json::{Value, json};

/// What people answer to being asked.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Word {
    Contain,
    Leave,
    Silence,
}

/// What comes of isolating.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Cut {
    /// Contained, and still so when looked at again.
    Whole,
    /// Only the function that does nothing else contains it.
    ByContainOnly,
    /// Contained, and then an interface came that nothing contains.
    Lost,
    /// Never.
    Never,
}

/// A case, as the functions see it.
#[derive(Clone, Debug)]
pub(super) struct Scenario {
    pub(super) refused: bool,
    /// Who says that a person is to be asked: `input`, `open` or nobody.
    pub(super) approval: &'static str,
    pub(super) word: Word,
    pub(super) otherwise: &'static str,
    pub(super) cut: Cut,
    /// Looks until the snapshots are whole, and until a bundle is read back.
    pub(super) looks: u64,
    pub(super) rooms: usize,
    /// Facts and causes as long as the contract allows.
    pub(super) large: bool,
}

impl Default for Scenario {
    fn default() -> Self {
        Self {
            refused: false,
            approval: "nobody",
            word: Word::Contain,
            otherwise: "contain",
            cut: Cut::Whole,
            looks: 2,
            rooms: 1,
            large: false,
        }
    }
}

impl Scenario {
    /// The execution's input, as intake writes it.
    pub(super) fn input(&self) -> Value {
        let approval = if self.approval == "input" { "needed" } else { "none" };
        let reason = "x".repeat(if self.large { 15_000 } else { 8 });
        json!({"instance": "i-0123456789abcdef0", "case": "i-0123456789abcdef0-1", "source": "guardduty",
            "reason": reason, "approval": approval, "otherwise": self.otherwise})
    }

    /// What the functions' facts are filled up with.
    fn padding(&self, step: &str) -> String {
        let most = match step {
            "open" => 63_000,
            "preserve" => 7_000,
            _ => 1_900,
        };
        "x".repeat(if self.large { most } else { 0 })
    }
}

/// What goes wrong with a state, each time.
#[derive(Clone, Debug, PartialEq)]
pub(super) enum Fault {
    /// Its function fails for a reason of its own.
    Broken,
    /// Its function's process dies.
    Crashed,
    /// It does not answer.
    Silent,
    /// Lambda has no room for it.
    Throttled,
    /// It fails for a reason that passes, and that does not pass.
    Retryable,
    /// As that, but once.
    RetryableOnce,
    /// It answers with this, which no contract knows.
    Facts(Value),
    /// It answers after as many failures as its retriers stand: of the first, and of the second.
    Stubborn(u64, u64),
}

/// All faults of a task, but the stubborn.
pub(super) fn faults() -> Vec<Fault> {
    let wrong = json!({"contained": "yes", "done": "yes", "seconds": "soon", "rooms": {"0": 1}, "decision": 5,
        "room": "yes", "verdict": 7, "approval": ["needed"], "going": 1});
    let extreme =
        json!({"seconds": 1_000_000_000_000_u64, "room": true, "going": true, "decision": "wait"});
    vec![
        Fault::Broken,
        Fault::Crashed,
        Fault::Silent,
        Fault::Throttled,
        Fault::Retryable,
        Fault::RetryableOnce,
        Fault::Facts(Value::Null),
        Fault::Facts(json!({})),
        Fault::Facts(json!([])),
        Fault::Facts(wrong),
        Fault::Facts(extreme),
    ]
}

/// A call that was made, and what came of it.
#[derive(Clone, Debug)]
pub(super) struct Made {
    pub(super) state: String,
    /// The step, or the integration that is not a function of ours.
    pub(super) step: String,
    pub(super) function: String,
    /// What was answered; nothing where it failed.
    pub(super) facts: Option<Value>,
}

/// Everything outside the machine, in a scenario and with faults.
pub(super) struct Account {
    pub(super) scenario: Scenario,
    pub(super) faults: BTreeMap<String, Fault>,
    pub(super) calls: Vec<Made>,
    attempts: BTreeMap<String, u64>,
}

impl Account {
    pub(super) fn new(scenario: &Scenario, faults: &[(String, Fault)]) -> Self {
        let faults = faults.iter().cloned().collect();
        Self { scenario: scenario.clone(), faults, calls: Vec::new(), attempts: BTreeMap::new() }
    }

    /// What the step answers where nothing is wrong with it.
    fn facts(&self, state: &str, payload: &Value) -> Answer {
        let scenario = &self.scenario;
        let step = payload["step"].as_str().expect("a step");
        let round = payload["looked"]["round"].as_u64().unwrap_or(0);
        let looking = round < scenario.looks;
        let contained = match (scenario.cut, state) {
            (Cut::Whole, _) | (Cut::Lost, "Isolate") => true,
            (Cut::ByContainOnly, _) => step == "contain",
            (Cut::Lost | Cut::Never, _) => false,
        };
        let rooms: Vec<_> = (1..=scenario.rooms)
            .map(|n| json!({"n": n, "volumes": vec!["vol-0123456789abcdef0"; 24]}))
            .collect();
        let asked = payload["asked"]["round"].as_u64().unwrap_or(0);
        let decision = if asked > 3 { scenario.otherwise } else { "wait" };
        let mut facts = match step {
            "verify" => json!({"verdict": if scenario.refused { "refuse" } else { "contain" }}),
            "open" => {
                json!({"approval": if scenario.approval == "open" { "needed" } else { "none" }})
            }
            "isolate" | "contain" => json!({ "contained": contained }),
            "due" => json!({"decision": decision, "seconds": 3600}),
            "ask" => match scenario.word {
                Word::Contain => {
                    json!({"decision": "contain", "by": "arn:aws:sts::123456789012:assumed-role/x/y"})
                }
                Word::Leave => {
                    json!({"decision": "leave", "by": "arn:aws:sts::123456789012:assumed-role/x/y"})
                }
                Word::Silence => return Answer::Nothing,
            },
            "preserve" => {
                json!({"done": !looking, "seconds": 60 * round, "rooms": if looking { vec![] } else { rooms }})
            }
            "order" => json!({"room": true, "seconds": 7200}),
            "read_back" => json!({"going": looking, "seconds": 60}),
            _ => json!({"short": 0}),
        };
        facts["x"] = scenario.padding(step).into();
        Answer::Result(facts)
    }

    fn disturbed(&mut self, state: &str) -> Option<Answer> {
        let attempt = self.attempts.entry(state.to_owned()).or_default();
        *attempt += 1;
        let error = |name: &str| Some(Answer::Error(name.to_owned()));
        match self.faults.get(state)? {
            Fault::Broken => error("Cleanroom.Failed"),
            Fault::Crashed => error("Runtime.ExitError"),
            Fault::Silent => Some(Answer::Nothing),
            Fault::Throttled => error("Lambda.TooManyRequestsException"),
            Fault::Retryable => error("Cleanroom.Retryable"),
            Fault::RetryableOnce => {
                (*attempt == 1).then(|| Answer::Error("Cleanroom.Retryable".into()))
            }
            Fault::Facts(facts) => Some(Answer::Result(facts.clone())),
            Fault::Stubborn(service, throttled) => match (*attempt - 1) % (service + throttled + 1)
            {
                n if n < *service => error("Lambda.ServiceException"),
                n if n < service + throttled => error("Lambda.TooManyRequestsException"),
                _ => None,
            },
        }
    }
}

/// The contract: what every step is given, and `ask` and `clean_room` besides.
fn obeys(payload: &Value) {
    for field in ["step", "instance", "case", "run", "started"] {
        assert!(payload[field].is_string(), "{field} in {payload}");
    }
    assert!(payload["input"].is_object() && payload.get("open").is_some(), "{payload}");
    let step = payload["step"].as_str().expect("a step");
    assert_eq!(payload["token"].is_string(), ["ask", "clean_room"].contains(&step), "{payload}");
    let grouped = ["order", "clean_room", "read_back"].contains(&step);
    assert_eq!(payload["group"].is_object(), grouped, "{payload}");
    assert_eq!(payload["machine"].is_object(), step == "report", "{payload}");
}

impl World for Account {
    fn answer(&mut self, call: &Call<'_>) -> Answer {
        let payload = &call.parameters["Payload"];
        let function = call.parameters["FunctionName"].as_str().unwrap_or_default().to_owned();
        let step = match payload["step"].as_str() {
            Some(step) => {
                obeys(payload);
                step.to_owned()
            }
            None => call.resource.to_owned(),
        };
        let answer = self.disturbed(call.state).unwrap_or_else(|| match payload {
            Value::Null => Answer::Result(json!({"MessageId": "1"})),
            payload => self.facts(call.state, payload),
        });
        let facts = match &answer {
            Answer::Result(facts) => Some(facts.clone()),
            Answer::Error(_) | Answer::Nothing => None,
        };
        self.calls.push(Made { state: call.state.to_owned(), step, function, facts });
        answer
    }

    fn breaks(&mut self, state: &str) -> Option<String> {
        self.faults.contains_key(state).then(|| "States.BranchFailed".to_owned())
    }

    fn talks(&self) -> bool {
        self.scenario.large
    }
}
