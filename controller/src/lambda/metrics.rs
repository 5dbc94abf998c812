//! Numbers for CloudWatch, in the embedded metric format.
//!
//! Pure: facts in, numbers out. The alarms and the dashboard of `cloudformation/response.yaml` are on these names, in the
//! namespace `Cleanroom`, by the dimension `Stack`.
//!
//! | Fact | Metric |
//! |---|---|
//! | `contained`: true, with `seconds` | `SecondsToContain`, since the execution was started |
//! | `preserved_seconds` | `SecondsToPreserve` |
//! | `reported_seconds` | `SecondsToReport` |
//! | `findings`: `{"critical": n, "high": n, "medium": n}`, where one is absent none | `FindingsCritical`, `FindingsHigh`, `FindingsMedium` |
//! | `gaps` | `Gaps` |
//!
//! A case that was looked at again has `age_hours` and gives `open`, how many of its interfaces were found open; `drift`,
//! what was not as the response left it; and `silent`: `InterfaceOpen`, `Drifted`, `AgentSilent`, `CaseAgeHours`. An
//! interface that can not be closed is counted at once, without waiting for the facts.

use cleanroom_contract::Timestamp;
use serde_json::{Map, Value, json};

/// A number, by its name and unit (CloudWatch `MetricDatum`).
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) struct Metric {
    pub name: &'static str,
    pub value: f64,
    pub unit: &'static str,
}

fn seconds(name: &'static str, value: &Value) -> Option<Metric> {
    let value = value.as_f64().filter(|value| *value >= 0.0)?;
    Some(Metric { name, value, unit: "Seconds" })
}

fn count(name: &'static str, value: f64) -> Metric {
    Metric { name, value, unit: "Count" }
}

/// An interface is open, and could not be closed yet.
pub(crate) fn open() -> Metric {
    count("InterfaceOpen", 1.0)
}

/// What a step's facts say.
pub(crate) fn metrics(facts: &Value) -> Vec<Metric> {
    let contained = facts["contained"] == true;
    let mut all: Vec<_> = [
        seconds("SecondsToContain", &facts["seconds"]).filter(|_| contained),
        seconds("SecondsToPreserve", &facts["preserved_seconds"]),
        seconds("SecondsToReport", &facts["reported_seconds"]),
        facts["gaps"].as_f64().map(|gaps| count("Gaps", gaps)),
    ]
    .into_iter()
    .flatten()
    .collect();
    if facts["findings"].is_object() {
        let of = |severity: &str| facts["findings"][severity].as_f64().unwrap_or(0.0);
        all.push(count("FindingsCritical", of("critical")));
        all.push(count("FindingsHigh", of("high")));
        all.push(count("FindingsMedium", of("medium")));
    }
    all
}

/// What cases that were looked at again say: of all together, also where it is nothing, so that who looks at the dashboard
/// sees that somebody watches.
pub(crate) fn watched(cases: &[Value]) -> Vec<Metric> {
    let sum = |of: &dyn Fn(&Value) -> f64| cases.iter().map(of).sum::<f64>();
    let has = |yes: bool| f64::from(u8::from(yes));
    let oldest = cases.iter().filter_map(|case| case["age_hours"].as_f64()).fold(0.0, f64::max);
    vec![
        count("InterfaceOpen", sum(&|case| case["open"].as_f64().unwrap_or(0.0))),
        count(
            "Drifted",
            sum(&|case| has(case["drift"].as_array().is_some_and(|drift| !drift.is_empty()))),
        ),
        count("AgentSilent", sum(&|case| has(case["silent"] == true))),
        Metric { name: "CaseAgeHours", value: oldest, unit: "None" },
    ]
}

/// One line of the log that CloudWatch reads numbers from.
pub(crate) fn embedded(stack: &str, at: Timestamp, metrics: &[Metric]) -> Map<String, Value> {
    let named: Vec<_> =
        metrics.iter().map(|metric| json!({ "Name": metric.name, "Unit": metric.unit })).collect();
    let milliseconds = at.seconds.saturating_mul(1_000) + i64::from(at.nanos / 1_000_000);
    let mut line = Map::new();
    line.insert(
        "_aws".to_owned(),
        json!({
            "Timestamp": milliseconds,
            "CloudWatchMetrics": [
                { "Namespace": "Cleanroom", "Dimensions": [["Stack"]], "Metrics": named }
            ],
        }),
    );
    line.insert("Stack".to_owned(), stack.into());
    line.extend(metrics.iter().map(|metric| (metric.name.to_owned(), metric.value.into())));
    line
}

#[cfg(test)]
mod tests {
    use super::*;

    fn numbers(metrics: &[Metric]) -> Vec<(&'static str, f64)> {
        metrics.iter().map(|metric| (metric.name, metric.value)).collect()
    }

    #[test]
    fn facts_become_the_numbers_that_alarms_are_on() {
        for (facts, expected) in [
            (json!({}), vec![]),
            (json!(null), vec![]),
            (json!({"contained": false, "seconds": 3.0}), vec![]),
            (json!({"decision": "wait", "seconds": 60}), vec![]),
            (json!({"contained": true}), vec![]),
            (json!({"contained": true, "seconds": -1.0}), vec![]),
            (json!({"contained": true, "seconds": 3.5}), vec![("SecondsToContain", 3.5)]),
            (json!({"done": true, "preserved_seconds": 90}), vec![("SecondsToPreserve", 90.0)]),
            (
                json!({"reported_seconds": 900.0, "gaps": 2, "findings": {"critical": 1, "low": 7}}),
                vec![
                    ("SecondsToReport", 900.0),
                    ("Gaps", 2.0),
                    ("FindingsCritical", 1.0),
                    ("FindingsHigh", 0.0),
                    ("FindingsMedium", 0.0),
                ],
            ),
        ] {
            assert_eq!(numbers(&metrics(&facts)), expected, "{facts}");
        }
    }

    #[test]
    fn watching_tells_the_worst_of_all_cases_and_nothing_too() {
        let cases = [
            json!({"open": 2, "drift": ["eni-1"], "silent": false, "age_hours": 1.5}),
            json!({"open": 0, "drift": [], "silent": true, "age_hours": 80.0}),
            json!({"contained": true}),
        ];
        let expected = [
            ("InterfaceOpen", 2.0),
            ("Drifted", 1.0),
            ("AgentSilent", 1.0),
            ("CaseAgeHours", 80.0),
        ];
        assert_eq!(numbers(&watched(&cases)), expected);
        assert_eq!(numbers(&watched(&[])), expected.map(|(name, _)| (name, 0.0)));
    }

    #[test]
    fn a_line_names_each_of_its_numbers() {
        let at = Timestamp { seconds: 1_700_000_000, nanos: 5_000_000 };
        let line = embedded("cleanroom", at, &watched(&[]));
        assert_eq!(line["_aws"]["Timestamp"], 1_700_000_000_005_i64);
        let directive = &line["_aws"]["CloudWatchMetrics"][0];
        assert_eq!(directive["Dimensions"], json!([["Stack"]]));
        assert_eq!(line["Stack"], "cleanroom");
        let named = directive["Metrics"].as_array().expect("a list");
        assert_eq!(named.len(), 4);
        for metric in named {
            let name = metric["Name"].as_str().expect("a name");
            assert!(line[name].is_number(), "{name}");
        }
    }
}
