//! What marks a drill, and what proves that something may be deleted because it is one.
//!
//! Purpose: one judgement for flow, adapter and cloud in memory. Pure. A tag alone proves nothing about an instance that
//! somebody else launched: a drill is named before its instance is there, by a name that no other case has.

use cleanroom_contract::{CaseId, InstanceId};

use crate::change::Tags;

/// The tag that a drill's instance, its volumes and its snapshots carry; its value is the drill's case.
pub const DRILL: &str = "cleanroom:drill";

/// What the cases of drills begin with, and no other's: those that intake names begin with `i-`.
pub const DRILL_PREFIX: &str = "drill-";

/// Whether a case is named as drills are.
#[must_use]
pub fn is_drill(case: &CaseId) -> bool {
    case.as_str().starts_with(DRILL_PREFIX)
}

/// The tags of what a drill launches.
#[must_use]
pub fn drill_tags(drill: &CaseId) -> Tags {
    let name = drill.to_string();
    Tags::from([("Name".to_owned(), name.clone()), (DRILL.to_owned(), name)])
}

/// Whether an instance's tags say that it is this drill's, and the drill is one.
#[must_use]
pub fn marks_drill(tags: &Tags, drill: &CaseId) -> bool {
    is_drill(drill) && tags.get(DRILL).map(String::as_str) == Some(drill.as_str())
}

/// Whether a snapshot's tags say that it is of this drill, of its case, and of its instance.
#[must_use]
pub fn marks_drill_snapshot(tags: &Tags, drill: &CaseId, instance: &InstanceId) -> bool {
    let is = |key: &str, value: &str| tags.get(key).map(String::as_str) == Some(value);
    marks_drill(tags, drill)
        && is("cleanroom:case", drill.as_str())
        && is("cleanroom:instance", instance.as_str())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn tags(pairs: &[(&str, &str)]) -> Tags {
        pairs.iter().map(|(k, v)| ((*k).to_owned(), (*v).to_owned())).collect()
    }

    #[test]
    fn only_a_drill_s_own_name_on_a_drill_marks_it() {
        let drill: CaseId = "drill-20261122-1".parse().expect("a case");
        assert!(marks_drill(&drill_tags(&drill), &drill));
        let real: CaseId = "i-0123456789abcdef0-1".parse().expect("a case");
        for (tags, case) in [
            (tags(&[]), &drill),
            (tags(&[(DRILL, "drill-20261122-2")]), &drill),
            (tags(&[("Name", "drill-20261122-1")]), &drill),
            // Whoever may tag an instance may write this on one that is no drill.
            (tags(&[(DRILL, "i-0123456789abcdef0-1")]), &real),
        ] {
            assert!(!marks_drill(&tags, case), "{tags:?} {case}");
        }
    }

    #[test]
    fn a_snapshot_is_of_the_drill_the_case_and_the_instance_at_once() {
        let drill: CaseId = "drill-1".parse().expect("a case");
        let instance: InstanceId = "i-0123456789abcdef0".parse().expect("an id");
        let whole = [
            (DRILL, "drill-1"),
            ("cleanroom:case", "drill-1"),
            ("cleanroom:instance", "i-0123456789abcdef0"),
        ];
        assert!(marks_drill_snapshot(&tags(&whole), &drill, &instance));
        for missing in 0..whole.len() {
            for wrong in [None, Some("drill-2")] {
                let mut some = tags(&whole);
                match wrong {
                    None => some.remove(whole[missing].0),
                    Some(value) => some.insert(whole[missing].0.to_owned(), value.to_owned()),
                };
                assert!(!marks_drill_snapshot(&some, &drill, &instance), "{some:?}");
            }
        }
    }
}
