//! Stacks, and what is told of their making.

use std::collections::BTreeMap;

use cleanroom_contract::Timestamp;
use serde::{Deserialize, Serialize};

/// The minutes within which a stack must be made, before CloudFormation takes it back: twenty for the room to signal, 45 for the
/// evidence, and what its network and the attaching of 24 volumes take.
pub const STACK_MINUTES: u16 = 90;

/// How far a stack is (CloudFormation `StackStatus`), as much as a step may decide by.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum StackState {
    /// Being made.
    Creating,
    /// Made, whole.
    Created,
    /// It failed, and what was made of it is being taken away again.
    RollingBack,
    /// It failed, for good.
    Failed,
    /// Being deleted.
    Deleting,
    /// Its deletion failed: something of it is left.
    DeleteFailed,
}

/// A stack (CloudFormation `DescribeStacks`). One that is deleted is not there.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Stack {
    /// Its id, an ARN: another stack of the same name has another.
    pub id: String,
    /// Its name.
    pub name: String,
    /// How far it is.
    pub state: StackState,
    /// The service's own word for that, `ROLLBACK_COMPLETE`.
    pub status: String,
    /// Why, where the service says so; untrusted text.
    pub reason: Option<String>,
    /// When it was begun.
    pub created: Timestamp,
    /// Its parameters.
    pub parameters: BTreeMap<String, String>,
    /// Its outputs; empty until it is made.
    pub outputs: BTreeMap<String, String>,
    /// Its tags.
    pub tags: BTreeMap<String, String>,
}

/// Something that happened to a resource of a stack (CloudFormation `DescribeStackEvents`).
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct StackEvent {
    /// When.
    pub at: Timestamp,
    /// The resource's name in the template; the stack's own name where it is about the stack.
    pub resource: String,
    /// Its type, `AWS::EC2::Volume`.
    pub kind: String,
    /// `CREATE_FAILED`.
    pub status: String,
    /// Why, where the service says so; untrusted text.
    pub reason: Option<String>,
}

fn is_failure(event: &StackEvent) -> bool {
    event.status.ends_with("_FAILED")
}

/// Resources of a stack that failed by themselves, the first one first. What was cancelled for them failed only after.
pub fn own_failures<'e>(
    stack: &str,
    events: &'e [StackEvent],
) -> impl Iterator<Item = &'e StackEvent> {
    let cancelled = |e: &StackEvent| {
        e.reason.as_deref().is_some_and(|why| why.to_ascii_lowercase().contains("cancelled"))
    };
    events.iter().filter(move |e| {
        let of_a_resource = e.resource != stack && e.kind != "AWS::CloudFormation::Stack";
        is_failure(e) && of_a_resource && !cancelled(e)
    })
}

/// Why a stack failed: the first resource that did, by its own reason.
#[must_use]
pub fn first_failure<'e>(stack: &str, events: &'e [StackEvent]) -> Option<&'e StackEvent> {
    own_failures(stack, events).next().or_else(|| events.iter().find(|e| is_failure(e)))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn event(resource: &str, status: &str, reason: &str) -> StackEvent {
        StackEvent {
            at: Timestamp::default(),
            resource: resource.to_owned(),
            kind: if resource == "s" { "AWS::CloudFormation::Stack" } else { "AWS::EC2::VPC" }
                .to_owned(),
            status: status.to_owned(),
            reason: (!reason.is_empty()).then(|| reason.to_owned()),
        }
    }

    #[test]
    fn the_first_failure_is_the_one_that_was_not_cancelled_for_another() {
        let events = [
            event("s", "CREATE_IN_PROGRESS", ""),
            event("Role", "CREATE_FAILED", "Resource creation cancelled"),
            event("Vpc", "CREATE_FAILED", "The maximum number of VPCs has been reached."),
            event("Room", "CREATE_FAILED", "later"),
            event("s", "ROLLBACK_IN_PROGRESS", "The following resource(s) failed"),
        ];
        assert_eq!(first_failure("s", &events).map(|e| e.resource.as_str()), Some("Vpc"));
        assert_eq!(first_failure("s", &events[..2]).map(|e| e.resource.as_str()), Some("Role"));
        assert_eq!(first_failure("s", &events[..1]), None);
        let own = [event("s", "CREATE_FAILED", "no rights to the role")];
        assert_eq!(first_failure("s", &own), Some(&own[0]));
    }
}
