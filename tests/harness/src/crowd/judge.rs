//! What must be true of a fleet that was responded to, and of the calls that it took. Pure.

use std::collections::{BTreeMap, BTreeSet};

use serde::Deserialize;

/// How much more calls an instance may take among the most than among the fewest.
const GROWTH: f64 = 1.1;

/// Calls of an operation for an instance that do not count as growth: what only some instances need.
const FEW: f64 = 0.2;

/// What is true of a fleet (`crowd.py`).
#[derive(Clone, Debug, Default, Deserialize)]
pub(super) struct Facts {
    /// Security groups, and whether each lets anything through.
    pub groups: BTreeMap<String, bool>,
    /// By instance: interfaces, and the groups of each.
    pub interfaces: BTreeMap<String, BTreeMap<String, Vec<String>>>,
    /// By instance: volumes, and the snapshots of each.
    pub snapshots: BTreeMap<String, BTreeMap<String, Vec<String>>>,
    /// By instance: the objects that claim it.
    pub claims: BTreeMap<String, Vec<String>>,
    /// The folders of cases.
    pub cases: Vec<String>,
}

impl Facts {
    /// Whatever is not contained, not preserved, or more than once.
    pub(super) fn wrong(&self, instances: &[&str]) -> Vec<String> {
        let mut wrong: Vec<String> =
            instances.iter().filter_map(|instance| self.wrong_with(instance)).collect();
        let expected: BTreeSet<_> = instances.iter().map(|i| format!("{i}-1")).collect();
        let cases: BTreeSet<_> = self.cases.iter().cloned().collect();
        wrong
            .extend(cases.difference(&expected).map(|case| format!("{case} is one case too many")));
        wrong.extend(expected.difference(&cases).map(|case| format!("there is no case {case}")));
        wrong
    }

    fn wrong_with(&self, instance: &str) -> Option<String> {
        let interfaces = self.interfaces.get(instance).into_iter().flatten();
        let open: Vec<_> = interfaces
            .clone()
            .filter(|(_, groups)| {
                let shut = |group: &String| self.groups.get(group) == Some(&false);
                groups.is_empty() || !groups.iter().all(shut)
            })
            .map(|(interface, _)| interface.as_str())
            .collect();
        let volumes = self.snapshots.get(instance).into_iter().flatten();
        let odd: Vec<_> = volumes
            .clone()
            .filter(|(_, snapshots)| snapshots.len() != 1)
            .map(|(volume, snapshots)| format!("{volume}: {}", snapshots.len()))
            .collect();
        let claims = self.claims.get(instance).map_or(0, Vec::len);
        if interfaces.count() == 0 || volumes.count() == 0 {
            Some(format!("{instance} has no interface or no volume"))
        } else if !open.is_empty() {
            Some(format!("{instance} is not contained: {}", open.join(", ")))
        } else if !odd.is_empty() {
            Some(format!("{instance} is not preserved once: snapshots of {}", odd.join(", ")))
        } else if claims != 1 {
            Some(format!("{instance} has {claims} claims"))
        } else {
            None
        }
    }
}

/// What an instance takes more of among many than among few; nothing where all of it together does not grow.
pub(super) fn decide_growth(
    few: &BTreeMap<String, f64>,
    many: &BTreeMap<String, f64>,
) -> Vec<String> {
    let (before, after): (f64, f64) = (few.values().sum(), many.values().sum());
    if after <= before * GROWTH {
        return Vec::new();
    }
    let of = |name: &str| few.get(name).copied().unwrap_or_default();
    let grown = many.iter().filter(|(name, each)| **each > of(name) * GROWTH + FEW);
    let mut words = vec![format!("calls for an instance grow from {before:.1} to {after:.1}")];
    words.extend(grown.map(|(name, each)| format!("{name}: {:.1}, then {each:.1}", of(name))));
    words
}

#[cfg(test)]
mod tests {
    use super::*;

    const ONE: &str = "i-0123456789abcdef0";

    /// A fleet of one that is as it must be.
    fn good() -> Facts {
        let of = |key: &str, values: &[&str]| {
            let values = values.iter().map(|value| (*value).to_owned()).collect::<Vec<_>>();
            BTreeMap::from([(key.to_owned(), values)])
        };
        Facts {
            groups: BTreeMap::from([("sg-1".to_owned(), false), ("sg-2".to_owned(), true)]),
            interfaces: BTreeMap::from([(ONE.to_owned(), of("eni-1", &["sg-1"]))]),
            snapshots: BTreeMap::from([(ONE.to_owned(), of("vol-1", &["snap-1"]))]),
            claims: of(ONE, &["instances/123456789012/us-east-1/x/1.json"]),
            cases: vec![format!("{ONE}-1")],
        }
    }

    #[test]
    fn once_is_right_and_everything_else_is_told() {
        assert_eq!(good().wrong(&[ONE]), Vec::<String>::new());
        let twice = |list: &mut Vec<String>| list.push("another".to_owned());
        type Spoil = fn(&mut Facts) -> &mut Vec<String>;
        let spoil: [(Spoil, &str); 4] = [
            (|f| f.interfaces.get_mut(ONE).unwrap().get_mut("eni-1").unwrap(), "not contained"),
            (|f| f.snapshots.get_mut(ONE).unwrap().get_mut("vol-1").unwrap(), "not preserved"),
            (|f| f.claims.get_mut(ONE).unwrap(), "2 claims"),
            (|f| &mut f.cases, "one case too many"),
        ];
        for (which, expected) in spoil {
            let mut facts = good();
            twice(which(&mut facts));
            let wrong = facts.wrong(&[ONE]);
            assert!(wrong.len() == 1 && wrong[0].contains(expected), "{expected}: {wrong:?}");
            which(&mut facts).clear();
            assert_eq!(facts.wrong(&[ONE]).len(), 1, "{expected}: none at all");
        }
        let mut facts = good();
        facts.interfaces.get_mut(ONE).unwrap().insert("eni-2".to_owned(), vec!["sg-2".to_owned()]);
        assert!(facts.wrong(&[ONE])[0].contains("not contained: eni-2"));
        assert_eq!(Facts::default().wrong(&[ONE]).len(), 2);
    }

    #[test]
    fn a_tenth_more_is_no_growth_and_beyond_it_is_named() {
        let calls = |a: f64, b: f64| BTreeMap::from([("a".to_owned(), a), ("b".to_owned(), b)]);
        assert!(decide_growth(&calls(10.0, 10.0), &calls(12.0, 9.9)).is_empty());
        let told = decide_growth(&calls(10.0, 10.0), &calls(10.1, 13.0));
        assert_eq!(told.len(), 2, "{told:?}");
        assert_eq!(told[1], "b: 10.0, then 13.0");
    }
}
