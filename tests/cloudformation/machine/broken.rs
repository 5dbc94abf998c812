//! The proofs can fail: machines that are broken on purpose are found out.

use serde_json::{Value, json};

use super::{Cut, ENDLESS, Ended, Scenario, Word, response, scenarios, states, unsound, walked};

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
    unsound(&machine, &few()).unwrap_or_else(|| panic!("{why}, and nobody noticed"))
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
    for n in 2..10 {
        let lie = |machine: &mut Value| {
            let next = &mut state(machine, "Outcome")["Choices"][n]["Next"];
            *next = if next == "Done" { "Not contained" } else { "Done" }.into();
        };
        let mut machine = response();
        lie(&mut machine);
        let found = unsound(&machine, &scenarios());
        assert!(found.is_some(), "choice {n} lies, and nobody noticed");
    }
    let silent =
        |machine: &mut Value| state(machine, "Preserved")["Choices"][1]["Next"] = "Outcome".into();
    let mut machine = response();
    silent(&mut machine);
    assert!(unsound(&machine, &scenarios()).expect("found").contains("without a report"));
}

#[test]
fn a_loop_without_an_end_is_found() {
    for (name, choice) in [("Preserved", 1), ("Asked enough", 0)] {
        let mut machine = response();
        let choices = state(&mut machine, name)["Choices"].as_array_mut().expect("choices");
        choices[choice] = json!({"Variable": "$.never", "IsPresent": true, "Next": "Report"});
        assert!(unsound(&machine, &scenarios()).is_some(), "{name} goes on for ever");
    }
    let mut machine = response();
    state(&mut machine, "Read again")["Choices"][0] =
        json!({"Variable": "$.never", "IsPresent": true, "Next": "Room done"});
    let scenario = Scenario { looks: 59, ..Scenario::default() };
    let going = super::Fault::Facts(json!({"going": true}));
    let (walk, _) = walked(&machine, &scenario, &[("Read back".to_owned(), going)]);
    assert_eq!(walk.ended, Ended::Failed(ENDLESS.to_owned()));
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
