//! The response stack, made by change sets.
//!
//! Purpose: change sets over one bucket, which is the world's own. What a template says is not known here: a stack's
//! outputs come from its parameters. Touches the world only.

use std::collections::{BTreeMap, BTreeSet};

use async_trait::async_trait;
use cleanroom_cloud::{
    AccountId, BucketState, ChangeSet, Deployment, Proposed, Result, Stack, StackChange, StackState,
};

use crate::{
    gate::{Call, FakeCloud},
    later::Later,
    problem::{Answered, Problem},
    room::Built,
    world::World,
};

/// A change set of a stack.
#[derive(Clone, Debug, PartialEq)]
pub struct ChangeSetOf {
    /// What was asked for.
    pub proposed: Proposed,
    /// What it would do.
    pub changes: Vec<StackChange>,
    /// Whether it was carried out.
    pub executed: bool,
}

fn unknown(id: &str) -> Problem {
    Problem::not_found("ChangeSetNotFound", format!("ChangeSet [{id}] does not exist"))
}

impl World {
    fn propose(&mut self, proposed: &Proposed) -> Answered<String> {
        let name = &proposed.stack;
        if self.bucket.newest(&proposed.template).is_none() {
            return Err(Problem::refused("ValidationError", "S3 error: The key does not exist"));
        }
        let standing = self.built.get(name).map(|built| built.stack.status.clone());
        let is_new = matches!(standing.as_deref(), None | Some("REVIEW_IN_PROGRESS"));
        if is_new != proposed.create {
            let status = standing.unwrap_or_else(|| "no".to_owned());
            let message = format!("Stack:{name} is in {status} state and can not be updated.");
            return Err(Problem::refused("ValidationError", message));
        }
        if standing.is_none() {
            let stack = Stack {
                id: format!("arn:aws:cloudformation:us-east-1:{}:stack/{name}/1", self.account),
                name: name.clone(),
                state: StackState::Creating,
                status: "REVIEW_IN_PROGRESS".to_owned(),
                reason: None,
                created: self.now(),
                parameters: BTreeMap::new(),
                outputs: BTreeMap::new(),
                tags: BTreeMap::new(),
            };
            let built = Built {
                stack,
                events: Vec::new(),
                instance: None,
                volumes: BTreeMap::new(),
                scans: BTreeSet::new(),
                idle_since: self.clock,
            };
            self.built.insert(name.clone(), built);
        }
        let done = |set: &&ChangeSetOf| set.executed && set.proposed.stack == *name;
        let same = self.change_sets.values().filter(done).any(|set| {
            let parameters = self.built.get(name).map(|b| &b.stack.parameters);
            set.proposed.template == proposed.template && parameters == Some(&proposed.parameters)
        });
        let change = StackChange {
            action: if proposed.create { "Add" } else { "Modify" }.to_owned(),
            resource: "Evidence".to_owned(),
            kind: "AWS::S3::Bucket".to_owned(),
            replacement: (!proposed.create).then(|| "False".to_owned()),
            physical: None,
        };
        let changes = if same && !proposed.create { Vec::new() } else { vec![change] };
        let id = format!("arn:aws:cloudformation:us-east-1:x:changeSet/{}", proposed.name);
        let set = ChangeSetOf { proposed: proposed.clone(), changes, executed: false };
        self.change_sets.insert(id.clone(), set);
        Ok(id)
    }

    fn execute(&mut self, id: &str) -> Answered<()> {
        let set = self.change_sets.get_mut(id).filter(|set| !set.executed);
        let set = set.ok_or_else(|| unknown(id))?;
        set.executed = true;
        let Proposed { stack: name, create, parameters, .. } = set.proposed.clone();
        let status = if create { "CREATE_IN_PROGRESS" } else { "UPDATE_IN_PROGRESS" };
        let Some(built) = self.built.get_mut(&name) else { return Err(unknown(id)) };
        built.stack.parameters = parameters;
        let stack = built.stack.id.clone();
        self.set_stack(&name, StackState::Creating, status, None);
        self.note_stack(&name, "Evidence", "CREATE_IN_PROGRESS", None);
        self.after(self.room.launch, Later::Stack(stack));
        Ok(())
    }

    /// A stack that is no room's is made.
    pub(crate) fn finish_response(&mut self, name: &str) {
        let Some(built) = self.built.get_mut(name) else { return };
        let of = |name: &str| built.stack.parameters.get(name).cloned().unwrap_or_default();
        let outputs = BTreeMap::from([("EvidenceBucket".to_owned(), of("Bucket"))]);
        let updated = built.stack.status.starts_with("UPDATE");
        built.stack.outputs = outputs.clone();
        self.stacks.insert(name.to_owned(), outputs);
        let status = if updated { "UPDATE_COMPLETE" } else { "CREATE_COMPLETE" };
        self.note_stack(name, "Evidence", "CREATE_COMPLETE", None);
        self.set_stack(name, StackState::Created, status, None);
    }
}

#[async_trait]
impl Deployment for FakeCloud {
    async fn bucket(&self, bucket: &str, _owner: &AccountId) -> Result<BucketState> {
        self.call(Call::read("s3:HeadBucket", bucket), |world| {
            let there = world.bucket.exists && world.bucket.name == bucket;
            Ok(if there { BucketState::There } else { BucketState::Absent })
        })
        .await
    }

    async fn make_bucket(&self, bucket: &str, _owner: &AccountId) -> Result<()> {
        self.call(Call::write("s3:CreateBucket", bucket).links(5), |world| {
            world.bucket.exists = true;
            Ok(())
        })
        .await
    }

    async fn propose(&self, proposed: &Proposed) -> Result<String> {
        let call = Call::write("cloudformation:CreateChangeSet", &proposed.stack);
        self.call(call, |world| world.propose(proposed)).await
    }

    async fn change_set(&self, id: &str) -> Result<ChangeSet> {
        self.call(Call::read("cloudformation:DescribeChangeSet", id), |world| {
            let set = world.change_sets.get(id).ok_or_else(|| unknown(id))?;
            let changes = set.changes.clone();
            Ok(if changes.is_empty() { ChangeSet::Empty } else { ChangeSet::Ready(changes) })
        })
        .await
    }

    async fn execute(&self, id: &str, _token: &str) -> Result<()> {
        let call = Call::write("cloudformation:ExecuteChangeSet", id);
        self.call(call, |world| world.execute(id)).await
    }

    async fn discard(&self, id: &str) -> Result<()> {
        self.call(Call::write("cloudformation:DeleteChangeSet", id), |world| {
            world.change_sets.retain(|known, set| known != id || set.executed);
            Ok(())
        })
        .await
    }
}
