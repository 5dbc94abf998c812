//! The proofs can fail: machines that are broken on purpose are found out.

use serde_json::{Value, json};

use super::{
    Cut, ENDLESS, Ended, Fault, Scenario, Word, few_faults, response, scenarios, states, unsound,
    walked,
};

/// The state of this name, wherever it is.
fn state<'m>(machine: &'m mut Value, name: &str) -> &'m mut Value {
    fn find<'m>(machine: &'m mut Value, name: &str) -> Option<&'m mut Value> {
        let states = machine["States"].as_object_mut()?;
        if states.contains_key(name) {
            return states.get_mut(name);
        }
        states.values_mut().find_map(|state| {
            if state.get("Branches").is_some() {
                let branches = state["Branches"].as_array_mut()?;
                return branches.iter_mut().find_map(|branch| find(branch, name));
            }
            find(state.get_mut("ItemProcessor")?, name)
        })
    }
    find(machine, name).unwrap_or_else(|| panic!("there is no state {name}"))
}

/// Scenarios that pass by every state.
fn few() -> Vec<Scenario> {
    let asked = |word| Scenario { approval: "input", word, ..Scenario::default() };
    let otherwise = Scenario { cut: Cut::ByContainOnly, ..Scenario::default() };
    vec![Scenario::default(), otherwise, asked(Word::Contain), asked(Word::Silence)]
}

fn is_found(change: impl FnOnce(&mut Value), why: &str) -> String {
    let mut machine = response();
    change(&mut machine);
    unsound(&machine, &few(), &few_faults()).unwrap_or_else(|| panic!("{why}, and nobody noticed"))
}

#[test]
fn a_catch_that_is_missing_is_found_wherever_it_is() {
    for name in states(&response(), &["Task", "Parallel", "Map"]) {
        let remove = |machine: &mut Value| {
            state(machine, &name)
                .as_object_mut()
                .expect("a state")
                .remove("Catch")
                .expect("a catcher");
        };
        is_found(remove, &format!("{name} has no catcher"));
    }
}

#[test]
fn a_way_around_isolation_is_found() {
    for (from, field, to) in [
        ("Before", "/Next", "After"),
        ("Before", "/Catch/0/Next", "After"),
        ("Approval", "/Default", "After"),
        ("Open", "/Catch/0/Next", "Report"),
        ("Verify", "/Catch/0/Next", "Report"),
        ("Verified", "/Default", "Outcome"),
        ("Isolate", "/Catch/0/Next", "After"),
        ("Isolated", "/Default", "After"),
        ("Looked again", "/Default", "Cut"),
        ("Otherwise", "/Default", "Leave"),
        ("Answered", "/Choices/1/Next", "Report"),
    ] {
        let change = |machine: &mut Value| {
            *state(machine, from).pointer_mut(field).expect("a way") = to.into();
        };
        is_found(change, &format!("{from} leads to {to}"));
    }
}

#[test]
fn what_the_brake_must_not_wait_for_is_found_missing() {
    let drop = |machine: &mut Value| {
        let state = state(machine, "Beforehand");
        state["Branches"].as_array_mut().expect("branches").remove(1);
        state.as_object_mut().expect("a state").remove("ResultSelector");
    };
    let found = is_found(drop, "no snapshot beforehand");
    assert!(found.contains("snapshot waited for the approval"), "{found}");
}

#[test]
fn an_end_that_lies_is_found() {
    for n in 2..9 {
        let lie = |machine: &mut Value| {
            let next = &mut state(machine, "Outcome")["Choices"][n]["Next"];
            *next = if next == "Done" { "Not contained" } else { "Done" }.into();
        };
        let mut machine = response();
        lie(&mut machine);
        let found = unsound(&machine, &scenarios(), &few_faults());
        assert!(found.is_some(), "choice {n} lies, and nobody noticed");
    }
    let silent =
        |machine: &mut Value| state(machine, "Preserved")["Choices"][1]["Next"] = "Outcome".into();
    let mut machine = response();
    silent(&mut machine);
    let never = Scenario { looks: u64::MAX, ..Scenario::default() };
    let found = unsound(&machine, &[never], &[]).expect("an end without a report");
    assert!(found.contains("without a report"), "{found}");
}

#[test]
fn a_loop_without_an_end_is_found() {
    let endless = |name: &str, choice: usize, scenario: Scenario, fault: Option<(&str, Value)>| {
        let mut machine = response();
        let choices = state(&mut machine, name)["Choices"].as_array_mut().expect("choices");
        let next = choices[choice]["Next"].clone();
        choices[choice] = json!({"Variable": "$.never", "IsPresent": true, "Next": next});
        let faults: Vec<_> =
            fault.into_iter().map(|(s, f)| (s.to_owned(), Fault::Facts(f))).collect();
        let (walk, _) = walked(&machine, &scenario, &faults);
        assert_eq!(walk.ended, Ended::Failed(ENDLESS.to_owned()), "{name}");
    };
    let plain = Scenario::default;
    let silent = Scenario { approval: "input", word: Word::Silence, ..plain() };
    endless("Preserved", 1, Scenario { looks: u64::MAX, ..plain() }, None);
    endless("Asked enough", 0, silent, Some(("Due", json!({}))));
    endless("Read again", 0, plain(), Some(("Read back", json!({"going": true}))));
}

#[test]
fn facts_that_do_not_fit_are_found() {
    let mut machine = response();
    // Everything twice.
    state(&mut machine, "Report")["Parameters"]["Payload"]["again.$"] = "$".into();
    let scenario = Scenario { large: true, ..Scenario::default() };
    let (walk, _) = walked(&machine, &scenario, &[]);
    assert_eq!(walk.ended, Ended::Failed("States.DataLimitExceeded".to_owned()));
}
