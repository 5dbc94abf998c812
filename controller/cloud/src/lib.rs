//! What the controller asks of a cloud and does to it.
//!
//! Purpose: the ports between the steps and whatever stands behind them, in the words of incident
//! response. Reading and acting are different ports: [`Inventory`], [`Facts`] and [`Posture`] look,
//! [`Hands`] is the only one that changes anything about an instance, and it does so one [`Change`] at a
//! time; [`Store`] holds evidence, [`Notices`] tells people, [`Workflows`] starts and follows executions,
//! [`DeadLetters`] keeps what could not be read. Code that is given no [`Hands`] can not change the world.
//!
//! Touches nothing: types and traits. Never names a type of an SDK.

mod change;
mod deployment;
mod drill;
mod error;
mod facts;
mod instance;
mod inventory;
mod names;
mod network;
mod outside;
mod posture;
mod snapshot;
mod stack;
mod workflow;

use std::sync::Arc;

pub use change::{AclEntry, Change, Hands, Made, Tags};
pub use deployment::{BucketState, ChangeSet, Deployment, Proposed, StackChange};
pub use drill::{DRILL, DRILL_PREFIX, drill_tags, is_drill, marks_drill, marks_drill_snapshot};
pub use error::{CloudError, ErrorKind, Result};
pub use facts::{Answer, Facts, Question};
pub use instance::{
    Association, AttachedVolume, Guards, Instance, InstanceState, Metadata, Profile, RolePolicy,
};
pub use inventory::{
    AlertFinding, Caller, EncryptionKey, Event, EventPage, EventQuery, Grant, InstanceQuery,
    Inventory, UserAccess,
};
pub use names::{
    AccountId, AclId, AllocationId, AssociationId, GroupId, ImageId, InterfaceId, RoleName,
    TargetGroupArn, VpcId,
};
pub use network::{
    Classic, ElasticAddress, Interface, Membership, NetworkAcl, Rule, ScalingGroup, SecurityGroup,
    Target, TargetGroup,
};
pub use outside::{Fetched, Notice, Notices, ObjectVersion, Put, Store};
pub use posture::{BucketPosture, Permission, Posture, Quota, Retention, TrailPosture};
pub use snapshot::{Image, PublicImage, Snapshot, SnapshotState, Volume};
pub use stack::{STACK_MINUTES, Stack, StackEvent, StackState, first_failure, own_failures};
pub use workflow::{
    Begun, DeadLetters, Execution, ExecutionState, Passed, Workflows, execution_arn,
};

/// Everything that a step may talk to.
#[derive(Clone)]
pub struct Cloud {
    /// What is there.
    pub inventory: Arc<dyn Inventory>,
    /// What changes it.
    pub hands: Arc<dyn Hands>,
    /// What is to be recorded as the cloud tells it.
    pub facts: Arc<dyn Facts>,
    /// How the account is set up.
    pub posture: Arc<dyn Posture>,
    /// The evidence bucket.
    pub store: Arc<dyn Store>,
    /// The team's topic.
    pub notices: Arc<dyn Notices>,
    /// State machines.
    pub workflows: Arc<dyn Workflows>,
    /// Queues of what could not be read.
    pub letters: Arc<dyn DeadLetters>,
}

impl std::fmt::Debug for Cloud {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Cloud")
    }
}
