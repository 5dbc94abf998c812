//! What changes the world through the port: each change, done or refused as AWS would.
//!
//! Purpose: the `Hands` port. A change is checked in full before anything is touched, so that a refused one
//! has done nothing.

mod compute;
mod drill;
mod identity;
mod network;
mod scaling;
mod tags;

use async_trait::async_trait;
use cleanroom_cloud::{Change, Hands, Made, Result};

pub(crate) use self::compute::not_mine;
use crate::{
    gate::{Call, FakeCloud},
    problem::Answered,
    world::World,
};

/// How many requests a change takes one after another in the real adapter: emptying a group reads its rules,
/// then revokes both directions at once; opening one authorises both directions at once.
fn links(change: &Change) -> u32 {
    match change {
        // A stack's template is read first.
        Change::EmptyGroup { .. } | Change::CreateStack { .. } => 2,
        // What is to go is described first.
        Change::TerminateDrill { .. } | Change::DeleteDrillSnapshot { .. } => 2,
        _ => 1,
    }
}

impl FakeCloud {
    async fn carry_out(&self, change: &Change, first: bool) -> Result<Made> {
        let call = Call::change(change, first).links(links(change));
        self.call(call, |world| world.carry_out(change)).await
    }
}

#[async_trait]
impl Hands for FakeCloud {
    async fn apply(&self, change: &Change) -> Result<Made> {
        self.carry_out(change, false).await
    }

    /// As any other: the fake has no rate limit to go past. The log says that it was to go first.
    async fn apply_first(&self, change: &Change) -> Result<Made> {
        self.carry_out(change, true).await
    }
}

impl World {
    pub(crate) fn carry_out(&mut self, change: &Change) -> Answered<Made> {
        use Change as C;
        match change {
            C::SetTerminationProtection { .. }
            | C::SetStopProtection { .. }
            | C::SetShutdownBehavior { .. }
            | C::SetDeleteOnTermination { .. }
            | C::SetMetadataEndpoint { .. }
            | C::CreateSnapshots { .. }
            | C::CreateSnapshot { .. }
            | C::LockSnapshot { .. }
            | C::CopySnapshot { .. }
            | C::RegisterImage { .. }
            | C::CreateImage { .. } => self.change_compute(change),
            C::DetachFromGroup { .. }
            | C::AttachToGroup { .. }
            | C::SetScaleInProtection { .. }
            | C::SuspendProcesses { .. }
            | C::ResumeProcesses { .. }
            | C::Heartbeat { .. }
            | C::DeregisterTarget { .. }
            | C::RegisterTarget { .. }
            | C::DeregisterClassic { .. }
            | C::RegisterClassic { .. } => self.change_scaling(change),
            C::PutTags { resource, tags } => self.put_tags(resource, tags),
            C::RemoveTags { resource, keys } => self.remove_tags(resource, keys),
            C::CreateGroup { .. }
            | C::EmptyGroup { .. }
            | C::OpenGroup { .. }
            | C::DeleteGroup { .. }
            | C::SetGroups { .. }
            | C::DisassociateAddress { .. }
            | C::AssociateAddress { .. }
            | C::SetAutoPublicAddress { .. }
            | C::CreateAclEntry { .. }
            | C::DeleteAclEntry { .. } => self.change_network(change),
            C::DisassociateProfile { .. }
            | C::AssociateProfile { .. }
            | C::PutRolePolicy { .. }
            | C::DeleteRolePolicy { .. }
            | C::SetAccessKey { .. }
            | C::PutUserPolicy { .. } => self.change_identity(change),
            C::ShareSnapshot { .. } | C::GrantKey { .. } | C::CopyFromAccount { .. } => {
                self.change_sharing(change)
            }
            C::CreateStack { .. } => self.create_stack(change),
            C::DeleteStack { id, .. } => Ok(self.delete_stack(id)),
            C::RunDrill { .. } | C::TerminateDrill { .. } | C::DeleteDrillSnapshot { .. } => {
                self.change_drill(change)
            }
        }
    }
}
