//! The response stack's parameters: which there are, and what each is. Pure.

use std::collections::{BTreeMap, BTreeSet};

/// Those that `deploy` sets by itself, and the flag that decides them.
const OWN: [(&str, &str); 5] = [
    ("ArtifactsBucket", "--artifacts-bucket"),
    ("ProgramKey", "--artifacts"),
    ("MachineKey", "--artifacts"),
    ("ManyKey", "--artifacts"),
    ("SettingsKey", "--settings"),
];

/// A parameter of the template.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Parameter {
    /// Its name.
    pub name: String,
    /// What it is where nobody says.
    pub default: Option<String>,
    /// What alone it may be; empty where that is not a list.
    pub allowed: Vec<String>,
}

/// The parameters of a template in the form of `response.yaml`: each a line of its own, `  Name: {Type: …}`. CloudFormation
/// judges patterns; what is known here is known before it is asked.
#[must_use]
pub fn parameters(template: &str) -> Vec<Parameter> {
    let section = template.split_once("\nParameters:\n").map_or("", |(_, after)| after);
    let lines = section.lines().take_while(|line| line.starts_with("  "));
    let parameter = |line: &str| {
        let (name, form) = line.trim_start().split_once(": {")?;
        let (allowed, default) = (after(form, "AllowedValues: ["), after(form, "Default: "));
        let allowed = allowed.and_then(|text| text.split_once(']'));
        Some(Parameter {
            name: name.to_owned(),
            default: default.map(|text| unquoted(text.split([',', '}']).next().unwrap_or(""))),
            allowed: allowed
                .map(|(list, _)| list.split(',').map(unquoted).collect())
                .unwrap_or_default(),
        })
    };
    lines.filter_map(parameter).collect()
}

fn after<'t>(text: &'t str, mark: &str) -> Option<&'t str> {
    text.split_once(mark).map(|(_, after)| after)
}

fn unquoted(text: &str) -> String {
    text.trim().trim_matches('"').to_owned()
}

/// What is wrong with the parameters that people chose, before anything is asked.
///
/// # Errors
/// Names every one that the template does not have, that a flag decides, or that has no such value.
pub fn check_chosen(
    template: &[Parameter],
    chosen: &BTreeMap<String, String>,
) -> Result<(), String> {
    let settable = || template.iter().filter(|p| OWN.iter().all(|(own, _)| *own != p.name));
    let mut wrong = Vec::new();
    for (name, value) in chosen {
        if let Some((_, flag)) = OWN.iter().find(|(own, _)| own == name) {
            wrong.push(format!("{name} is what {flag} says"));
            continue;
        }
        match settable().find(|parameter| parameter.name == *name) {
            None => {
                let known: Vec<_> = settable().map(|p| p.name.as_str()).collect();
                wrong.push(format!("there is no {name}; there are {}", known.join(", ")));
            }
            Some(parameter) if !parameter.allowed.is_empty() => {
                if !parameter.allowed.contains(value) {
                    wrong.push(format!("{name} is one of {}", parameter.allowed.join(", ")));
                }
            }
            Some(_) => {}
        }
    }
    if wrong.is_empty() { Ok(()) } else { Err(format!("--parameter: {}", wrong.join("; "))) }
}

/// What each parameter is: what `deploy` decides, else what people chose, else what the stack has, else the fallback of this
/// deployment, else the template's default.
///
/// # Errors
/// Names every parameter that nothing says.
pub fn decide_parameters(
    template: &[Parameter],
    sources: [&BTreeMap<String, String>; 4],
) -> Result<BTreeMap<String, String>, String> {
    let mut decided = BTreeMap::new();
    let mut missing = BTreeSet::new();
    for parameter in template {
        let given = sources.iter().find_map(|source| source.get(&parameter.name));
        match given.or(parameter.default.as_ref()) {
            Some(value) => {
                decided.insert(parameter.name.clone(), value.clone());
            }
            None => {
                missing.insert(parameter.name.as_str());
            }
        }
    }
    if missing.is_empty() {
        return Ok(decided);
    }
    let missing: Vec<_> = missing.into_iter().map(|name| format!("{name}=…")).collect();
    Err(format!("the response stack needs --parameter {}", missing.join(" --parameter ")))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn map(pairs: &[(&str, &str)]) -> BTreeMap<String, String> {
        pairs.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned())).collect()
    }

    #[test]
    fn the_template_s_parameters_are_read_with_defaults_and_lists() {
        let all = parameters(super::super::TEMPLATE);
        let of = |name: &str| all.iter().find(|p| p.name == name).expect(name);
        assert_eq!(of("ArtifactsBucket").default, None);
        assert_eq!(of("Key").default.as_deref(), Some(""));
        assert_eq!(of("RetentionDays").default.as_deref(), Some("365"));
        assert_eq!(of("InstanceRoles").default.as_deref(), Some("*"));
        assert_eq!(of("MakeBucket").allowed, ["true", "false"]);
        assert_eq!(of("LogDays").allowed.len(), 7);
        assert_eq!(of("CaseHours").default.as_deref(), Some("168"));
        // Every line of the section is one of them, and what follows is none.
        let section = super::super::TEMPLATE.split_once("\nParameters:\n").expect("a section").1;
        let lines = section.lines().take_while(|line| !line.is_empty()).count();
        assert_eq!(all.len(), lines);
        for (own, _) in OWN {
            assert!(all.iter().any(|p| p.name == own), "{own}");
        }
    }

    #[test]
    fn what_people_choose_wrong_is_named_all_at_once() {
        let all = parameters(super::super::TEMPLATE);
        check_chosen(&all, &map(&[("LogDays", "90"), ("Bucket", "b")])).expect("both are there");
        let wrong = map(&[("LogDay", "90"), ("MakeBucket", "yes"), ("ProgramKey", "x")]);
        let error = check_chosen(&all, &wrong).expect_err("three mistakes");
        for part in
            ["no LogDay; there are Architecture", "MakeBucket is one of true, false", "--artifacts"]
        {
            assert!(error.contains(part), "{error}");
        }
        assert!(!error.contains(", ProgramKey"), "{error}");
    }

    #[test]
    fn a_parameter_keeps_what_the_stack_has_until_somebody_says_otherwise() {
        let template = parameters(
            "\nParameters:\n  A: {Type: String, Default: a}\n  B: {Type: String}\n\nResources:\n",
        );
        let none = BTreeMap::new();
        let decide = |own, chosen, before, fallback| {
            decide_parameters(&template, [&own, &chosen, &before, &fallback])
        };
        let first = decide(map(&[("B", "own")]), none.clone(), none.clone(), none.clone());
        assert_eq!(first, Ok(map(&[("A", "a"), ("B", "own")])));
        // One that the template has lost is not sent.
        let kept = map(&[("A", "kept"), ("Gone", "x")]);
        let later = decide(none.clone(), none.clone(), kept.clone(), map(&[("B", "fallback")]));
        assert_eq!(later, Ok(map(&[("A", "kept"), ("B", "fallback")])));
        let chosen = decide(none.clone(), map(&[("A", "new"), ("B", "b")]), kept, none.clone());
        assert_eq!(chosen, Ok(map(&[("A", "new"), ("B", "b")])));
        let error = decide(none.clone(), none.clone(), none.clone(), none).expect_err("no B");
        assert_eq!(error, "the response stack needs --parameter B=…");
    }
}
