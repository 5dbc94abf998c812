//! What `respond` would do.

use std::fmt::Write as _;

use cleanroom_contract::printable;
use cleanroom_controller::flow::plan::Plan;

use super::{Table, field, plain};
use crate::terminal::Palette;

/// A plan for people.
pub(crate) fn plan(plan: &Plan, palette: Palette, width: usize) -> String {
    let how = if plan.joins { "goes on with" } else { "would open" };
    let mut out = palette.strong(&format!("{}: {how} case {}", plan.instance, plan.case));
    out.push('\n');
    for ground in &plan.grounds {
        out.push_str(&field("because", &printable(ground), width));
    }
    if plan.entries.is_empty() {
        out.push_str("\n  nothing is left to do\n");
    } else {
        let mut table = Table::new(&["step", "call", "resource", "what"]);
        for entry in &plan.entries {
            table.row(vec![
                plain(entry.step.as_str()),
                plain(entry.operation),
                plain(&entry.resource),
                plain(&entry.what),
            ]);
        }
        let _ = write!(out, "\n{}", table.show(palette, width));
    }
    if !plan.short.is_empty() || !plan.notes.is_empty() {
        out.push('\n');
    }
    for short in &plan.short {
        out.push_str(&palette.weak(&field("NOT DONE", &printable(short), width)));
    }
    for note in &plan.notes {
        out.push_str(&field("note", &printable(note), width));
    }
    out
}

#[cfg(test)]
mod tests {
    use cleanroom_controller::{case::Step, flow::plan::Entry};

    use super::*;

    #[test]
    fn a_plan_is_a_table_with_its_reasons() {
        let entry = |step, operation, resource: &str, what: &str| Entry {
            step,
            operation,
            resource: resource.to_owned(),
            what: what.to_owned(),
            change: None,
        };
        let it = Plan {
            instance: "i-0123456789abcdef0".parse().expect("an id"),
            case: "i-0123456789abcdef0-1".parse().expect("a case id"),
            joins: false,
            grounds: vec!["a person says: beacon".to_owned()],
            entries: vec![
                entry(
                    Step::Protect,
                    "ec2:ModifyInstanceAttribute",
                    "i-0123456789abcdef0",
                    "switch termination protection on",
                ),
                entry(
                    Step::Isolate,
                    "ec2:ModifyNetworkInterfaceAttribute",
                    "eni-0123456789abcdef0",
                    "set security groups sg-0\u{1b}",
                ),
            ],
            short: vec!["the role's policies are full".to_owned()],
            notes: vec!["memory was not taken".to_owned()],
        };
        let expected = "\
i-0123456789abcdef0: would open case i-0123456789abcdef0-1
  because     a person says: beacon

step     call                                 resource               what
protect  ec2:ModifyInstanceAttribute          i-0123456789abcdef0    switch termination protection on
isolate  ec2:ModifyNetworkInterfaceAttribute  eni-0123456789abcdef0  set security groups sg-0\\u{1b}

  NOT DONE    the role's policies are full
  note        memory was not taken
";
        assert_eq!(plan(&it, Palette::default(), usize::MAX), expected);
        let joined =
            Plan { joins: true, entries: Vec::new(), short: Vec::new(), notes: Vec::new(), ..it };
        let expected = "\
i-0123456789abcdef0: goes on with case i-0123456789abcdef0-1
  because     a person says: beacon

  nothing is left to do
";
        assert_eq!(plan(&joined, Palette::default(), usize::MAX), expected);
    }
}
