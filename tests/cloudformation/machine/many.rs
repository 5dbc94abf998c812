//! Incidents of many instances: each is started, or contained without.

use std::collections::BTreeMap;

use cleanroom_harness::asl::{Answer, Call, Ended, World, edges, walk};
use serde_json::{Value, json};

use super::machine;

/// What Step Functions and Lambda answer for each case.
#[derive(Default)]
struct Region {
    starts: BTreeMap<String, Answer>,
    contains: bool,
    refuses: bool,
    started: Vec<String>,
    contained: Vec<String>,
    told: usize,
}

impl World for Region {
    fn answer(&mut self, call: &Call<'_>) -> Answer {
        let answer =
            |ok| if ok { Answer::Result(json!({})) } else { Answer::Error("X.Y".to_owned()) };
        match call.state {
            "Start" => {
                let name = call.parameters["Name"].as_str().expect("a name").to_owned();
                assert_eq!(call.parameters["Input"]["case"], name.as_str());
                let ended = self.starts.get(&name).cloned();
                self.started.push(name);
                ended.unwrap_or_else(|| answer(true))
            }
            "Contain it only" => {
                let payload = &call.parameters["Payload"];
                assert_eq!(payload["step"], "contain");
                self.contained.push(payload["instance"].as_str().expect("an instance").to_owned());
                answer(self.contains)
            }
            "Tell" => {
                self.told += 1;
                answer(true)
            }
            other => panic!("{other}"),
        }
    }

    fn breaks(&mut self, _state: &str) -> Option<String> {
        self.refuses.then(|| "States.ExceedToleratedFailureThreshold".to_owned())
    }

    fn talks(&self) -> bool {
        true
    }
}

fn many() -> Value {
    machine("response-many.asl.json")
}

fn incident(count: usize) -> Value {
    let one = |n: usize| json!({"instance": format!("i-{n:017x}"), "case": format!("i-{n:017x}-1"), "source": "sns"});
    json!({"instances": (1..=count).map(one).collect::<Vec<_>>(), "max_concurrency": 40, "pace": 10})
}

#[test]
fn every_instance_is_started_once_by_its_case() {
    let mut region = Region::default();
    let walked = walk(&many(), &incident(1_000), &mut region);
    assert_eq!(walked.ended, Ended::Succeeded("Done".to_owned()));
    assert_eq!(region.started.len(), 1_000);
    assert!(region.contained.is_empty());
    // The items' own histories are not the parent's.
    assert!(walked.events < 100, "{}", walked.events);
}

#[test]
fn one_that_runs_already_is_no_failure_and_one_that_can_not_start_is_contained() {
    let case = |n: usize| format!("i-{n:017x}-1");
    let error = |name: &str| Answer::Error(name.to_owned());
    let starts = [
        (case(2), error("StepFunctions.ExecutionAlreadyExistsException")),
        (case(3), error("StepFunctions.StateMachineDoesNotExistException")),
        (case(4), Answer::Nothing),
        (case(5), error("StepFunctions.ThrottlingException")),
    ];
    for contains in [true, false] {
        let mut region = Region { starts: starts.clone().into(), contains, ..Region::default() };
        let walked = walk(&many(), &incident(6), &mut region);
        assert_eq!(
            walked.ended,
            Ended::Succeeded("Done".to_owned()),
            "one does not stop the others"
        );
        assert!(region.started.contains(&case(6)));
        let mut contained = region.contained.clone();
        contained.dedup();
        assert_eq!(contained, [3, 4, 5].map(|n| format!("i-{n:017x}")));
        // Throttled, it was tried again as often as may be.
        assert_eq!(region.started.iter().filter(|name| **name == case(5)).count(), 7);
        assert!(walked.stopped.is_empty());
    }
}

#[test]
fn every_transition_of_it_is_walked() {
    let mut walked = Vec::new();
    for (refuses, contains) in [(false, true), (false, false), (true, true)] {
        let mut input = incident(3);
        input["instances"][2] = json!({"instance": 7});
        let starts = [
            ("i-00000000000000001-1".to_owned(), Answer::Nothing),
            (
                "i-00000000000000002-1".to_owned(),
                Answer::Error("StepFunctions.ExecutionAlreadyExistsException".to_owned()),
            ),
        ];
        let mut region = Region { starts: starts.into(), contains, refuses, ..Region::default() };
        let walk = walk(&many(), &input, &mut region);
        let expected = if refuses {
            Ended::Failed("Cleanroom.NotStarted".to_owned())
        } else {
            Ended::Succeeded("Done".to_owned())
        };
        assert_eq!((walk.ended, region.told), (expected, usize::from(refuses)));
        walked.extend(walk.edges);
    }
    let mut fine = Region::default();
    walked.extend(walk(&many(), &incident(1), &mut fine).edges);
    for wrong in [
        json!({}),
        json!({"instances": [], "max_concurrency": 1, "pace": 1}),
        json!({"instances": [1], "max_concurrency": 0, "pace": 1}),
    ] {
        let walk = walk(&many(), &wrong, &mut Region::default());
        assert_eq!(walk.ended, Ended::Failed("Cleanroom.Unreadable".to_owned()));
        walked.extend(walk.edges);
    }
    let tells_in_vain = ("Tell".to_owned(), "Not started all".to_owned());
    walked.push(tells_in_vain);
    let missed: Vec<_> = edges(&many()).into_iter().filter(|edge| !walked.contains(edge)).collect();
    assert!(missed.is_empty(), "never walked: {missed:?}");
}
