//! What a deployment would change, and what happens while it does.

use cleanroom_cloud::{StackChange, StackEvent};
use cleanroom_contract::printable;

use super::{Table, painted, plain};
use crate::terminal::Palette;

/// The table of a change set. What is made anew or taken away stands out.
pub(crate) fn changes(changes: &[StackChange], palette: Palette, width: usize) -> String {
    let mut table = Table::new(&["action", "resource", "type", "replacement", "now"]);
    for change in changes {
        let loses = change.action == "Remove" || change.replacement.as_deref() == Some("True");
        let paint: fn(Palette, &str) -> String =
            if loses { Palette::bad } else { |_, text| text.to_owned() };
        table.row(vec![
            painted(&change.action, paint),
            painted(&change.resource, paint),
            plain(&change.kind),
            plain(change.replacement.as_deref().unwrap_or("-")),
            plain(change.physical.as_deref().unwrap_or("-")),
        ]);
    }
    table.show(palette, width)
}

/// A line for an event of a stack.
pub(crate) fn stack_event(event: &StackEvent) -> String {
    let reason = event.reason.as_deref().filter(|reason| !reason.is_empty());
    let reason = reason.map(|reason| format!(": {reason}")).unwrap_or_default();
    printable(&format!("{:<20} {} ({}){reason}", event.status, event.resource, event.kind))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_change_set_is_a_line_for_each_resource() {
        let change =
            |action: &str, replacement: Option<&str>, physical: Option<&str>| StackChange {
                action: action.to_owned(),
                resource: "Evidence".to_owned(),
                kind: "AWS::S3::Bucket".to_owned(),
                replacement: replacement.map(str::to_owned),
                physical: physical.map(str::to_owned),
            };
        let all = [change("Add", None, None), change("Modify", Some("True"), Some("evidence"))];
        let expected = "\
action  resource  type             replacement  now
Add     Evidence  AWS::S3::Bucket  -            -
Modify  Evidence  AWS::S3::Bucket  True         evidence
";
        assert_eq!(changes(&all, Palette::default(), usize::MAX), expected);
    }
}
