//! What sets the response up: the bucket of its artifacts, and change sets of its stack.

use std::collections::BTreeMap;

use async_trait::async_trait;
use serde::{Deserialize, Serialize};

use crate::{error::Result, names::AccountId};

/// How a bucket is, as far as who deploys must know.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum BucketState {
    /// Nobody has one of this name.
    Absent,
    /// It is there, and has no policy: its making was interrupted, or nobody secured it.
    Bare,
    /// It is there, and has a policy.
    There,
}

/// What is asked of CloudFormation (`CreateChangeSet`).
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Proposed {
    /// The stack's name.
    pub stack: String,
    /// The change set's name.
    pub name: String,
    /// Whether the stack is not there yet.
    pub create: bool,
    /// The bucket with the template.
    pub bucket: String,
    /// The template's key in it.
    pub template: String,
    /// Every parameter.
    pub parameters: BTreeMap<String, String>,
}

/// One resource of a change set (`DescribeChangeSet`), in CloudFormation's words.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct StackChange {
    /// `Add`, `Modify`, `Remove`.
    pub action: String,
    /// The resource's name in the template.
    pub resource: String,
    /// Its type.
    pub kind: String,
    /// Whether a modified one is made anew: `True`, `False`, `Conditional`.
    pub replacement: Option<String>,
    /// What it is called now, where it is there.
    pub physical: Option<String>,
}

/// How far a change set is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ChangeSet {
    /// CloudFormation still compares.
    Pending,
    /// It can be carried out.
    Ready(Vec<StackChange>),
    /// The stack is as it should be.
    Empty,
    /// It can not be made; untrusted text.
    Failed(String),
}

/// Sets the response stack up. Only who deploys is given it.
#[async_trait]
pub trait Deployment: Send + Sync {
    /// A bucket of this account's. One that is somebody else's is [`Denied`](crate::ErrorKind::Denied), whatever it lets
    /// others do: whoever guesses a name may have taken it first.
    async fn bucket(&self, bucket: &str, owner: &AccountId) -> Result<BucketState>;
    /// Makes a bucket, or goes on making it: private, versioned, encrypted, over TLS only. The policy is its last part.
    async fn make_bucket(&self, bucket: &str, owner: &AccountId) -> Result<()>;
    /// Begins a change set, and returns its id. Changes no resource.
    async fn propose(&self, proposed: &Proposed) -> Result<String>;
    /// How far it is.
    async fn change_set(&self, id: &str) -> Result<ChangeSet>;
    /// Begins to carry it out. What a creation that fails has made is taken away again, evidence's bucket and key too:
    /// they are empty.
    async fn execute(&self, id: &str, token: &str) -> Result<()>;
    /// Deletes it; one that is gone is no error.
    async fn discard(&self, id: &str) -> Result<()>;
}
