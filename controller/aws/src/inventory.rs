//! What is there, over the SDK.
//!
//! Purpose: the [`Inventory`] port, each question handed to the module of its service. Touches AWS to read. Never changes
//! anything.

use std::collections::{BTreeMap, BTreeSet};

use async_trait::async_trait;
use cleanroom_cloud::{
    AccountId, AlertFinding, Association, Caller, Classic, EncryptionKey, EventPage, EventQuery,
    Grant, GroupId, Guards, Image, Instance, InstanceQuery, Interface, InterfaceId, Inventory,
    Membership, NetworkAcl, Profile, PublicImage, Result, RoleName, RolePolicy, ScalingGroup,
    SecurityGroup, Snapshot, Stack, StackEvent, Target, TargetGroup, TargetGroupArn, UserAccess,
    Volume, VpcId,
};
use cleanroom_contract::{CaseId, InstanceId, SnapshotId, VolumeId};

use crate::{
    Aws, balancing,
    clients::Clients,
    ec2::{instances, network, volumes},
    error::{bad_answer, fail},
    iam, keys, scaling, stacks, trail,
};

#[async_trait]
impl Inventory for Aws {
    async fn caller(&self) -> Result<Caller> {
        caller(&self.clients).await
    }

    async fn regions_with(&self, instance: &InstanceId) -> Result<Vec<String>> {
        instances::regions_with(&self.clients, instance).await
    }

    async fn find_instances(&self, query: &InstanceQuery) -> Result<Vec<Instance>> {
        instances::find(&self.clients, query).await
    }

    async fn instances(&self, ids: &[InstanceId]) -> Result<Vec<Instance>> {
        instances::those_of(&self.clients, ids).await
    }

    async fn get_instance(&self, instance: &InstanceId) -> Result<Instance> {
        instances::get(&self.clients, instance).await
    }

    async fn guards(&self, instance: &InstanceId) -> Result<Guards> {
        instances::guards(&self.clients, instance).await
    }

    async fn has_instance_store(&self, instance_type: &str) -> Result<bool> {
        instances::has_instance_store(&self.clients, instance_type).await
    }

    async fn instances_like(
        &self,
        image: Option<&str>,
        profile: Option<&str>,
    ) -> Result<Vec<InstanceId>> {
        instances::like(&self.clients, image, profile).await
    }

    async fn interfaces(&self, instance: &InstanceId) -> Result<Vec<Interface>> {
        network::interfaces(&self.clients, instance).await
    }

    async fn get_interface(&self, interface: &InterfaceId) -> Result<Interface> {
        network::get_interface(&self.clients, interface).await
    }

    async fn auto_public_address(&self, interface: &InterfaceId) -> Result<bool> {
        network::auto_public_address(&self.clients, interface).await
    }

    async fn find_group(&self, vpc: &VpcId, name: &str) -> Result<Option<SecurityGroup>> {
        network::find_group(&self.clients, vpc, name).await
    }

    async fn get_group(&self, group: &GroupId) -> Result<SecurityGroup> {
        network::get_group(&self.clients, group).await
    }

    async fn egress_addresses(&self) -> Result<BTreeMap<VpcId, BTreeSet<String>>> {
        network::egress_addresses(&self.clients).await
    }

    async fn acls(&self, vpc: &VpcId) -> Result<Vec<NetworkAcl>> {
        network::acls_of(&self.clients, vpc).await
    }

    async fn membership(&self, instance: &InstanceId) -> Result<Option<Membership>> {
        scaling::membership(&self.clients, instance).await
    }

    async fn scaling_group(&self, name: &str) -> Result<ScalingGroup> {
        scaling::scaling_group(&self.clients, name).await
    }

    async fn target_groups(&self) -> Result<Vec<TargetGroup>> {
        balancing::target_groups(&self.clients).await
    }

    async fn targets(&self, target_group: &TargetGroupArn) -> Result<Vec<Target>> {
        balancing::targets(&self.clients, target_group).await
    }

    async fn classic_balancers(&self) -> Result<Vec<Classic>> {
        balancing::classic_balancers(&self.clients).await
    }

    async fn volumes(&self, ids: &[VolumeId]) -> Result<Vec<Volume>> {
        volumes::volumes(&self.clients, ids).await
    }

    async fn attached_volumes(&self, instance: &InstanceId) -> Result<Vec<Volume>> {
        volumes::attached(&self.clients, instance).await
    }

    async fn snapshots(&self, case: &CaseId) -> Result<Vec<Snapshot>> {
        volumes::snapshots(&self.clients, case).await
    }

    async fn images(&self, case: &CaseId) -> Result<Vec<Image>> {
        volumes::images(&self.clients, case).await
    }

    async fn shared_with(&self, snapshot: &SnapshotId) -> Result<Vec<AccountId>> {
        volumes::shared_with(&self.clients, snapshot).await
    }

    async fn key(&self, key: &str) -> Result<EncryptionKey> {
        keys::describe(&self.clients, key).await
    }

    async fn grants(&self, key: &str, grantee: &str) -> Result<Vec<Grant>> {
        keys::grants(&self.clients, key, grantee).await
    }

    async fn profile_associations(&self, instance: &InstanceId) -> Result<Vec<Association>> {
        instances::profile_associations(&self.clients, instance).await
    }

    async fn profile(&self, arn: &str) -> Result<Profile> {
        iam::profile(&self.clients, arn).await
    }

    async fn role_policies(&self, role: &RoleName) -> Result<Vec<RolePolicy>> {
        iam::role_policies(&self.clients, role).await
    }

    async fn user_access(&self, user: &str) -> Result<UserAccess> {
        iam::user_access(&self.clients, user).await
    }

    async fn findings(&self, instance: &InstanceId) -> Result<Vec<AlertFinding>> {
        trail::findings(&self.clients, instance).await
    }

    async fn events(&self, query: &EventQuery, next: Option<&str>) -> Result<EventPage> {
        trail::events(&self.clients, query, next).await
    }

    async fn stack_outputs(&self, stack: &str) -> Result<BTreeMap<String, String>> {
        let found = stacks::find(&self.clients, stack).await?;
        Ok(found.map(|stack| stack.outputs).unwrap_or_default())
    }

    async fn find_stack(&self, name: &str) -> Result<Option<Stack>> {
        stacks::find(&self.clients, name).await
    }

    async fn stack_events(&self, stack: &str) -> Result<Vec<StackEvent>> {
        stacks::events(&self.clients, stack).await
    }

    async fn public_image(
        &self,
        owner: &str,
        name: &str,
        architecture: &str,
    ) -> Result<Option<PublicImage>> {
        volumes::public_image(&self.clients, owner, name, architecture).await
    }

    async fn prefix_list(&self, name: &str) -> Result<Option<String>> {
        network::prefix_list(&self.clients, name).await
    }
}

/// Who calls, and how far apart the clocks are by that very answer.
async fn caller(clients: &Clients) -> Result<Caller> {
    const OPERATION: &str = "sts:GetCallerIdentity";
    let answer = clients.sts.get_caller_identity().send().await;
    let answer = answer.map_err(|error| fail(OPERATION, "", error))?;
    Ok(Caller {
        account: AccountId::from(
            answer.account.ok_or_else(|| bad_answer(OPERATION, "", "Account"))?,
        ),
        arn: answer.arn.ok_or_else(|| bad_answer(OPERATION, "", "Arn"))?,
        region: clients.region.clone(),
        clock_ahead: clients.calls.clock_ahead(),
    })
}
