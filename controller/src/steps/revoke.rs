//! The instance's credentials stop working.
//!
//! The profile comes off, an inline policy denies its role's sessions that come from this instance, the metadata endpoint
//! goes off. A policy that is read back proves the document, not its effect, which takes minutes. What such a session made for itself is
//! not cut: [`not_cut`] lists it.

pub mod not_cut;
pub mod principal;

use async_trait::async_trait;
use cleanroom_cloud::{Change, ErrorKind, Result, RoleName, RolePolicy};
use serde_json::json;

use crate::case::{Assessment, Goal, History, Scene, Shortfall, Step};

/// All inline policies of a role together, without white space (IAM quotas).
const INLINE_LIMIT: usize = 10_240;

/// No instance profile is on the instance.
#[derive(Debug)]
pub struct Profile;

#[async_trait]
impl Goal for Profile {
    fn step(&self) -> Step {
        Step::Revoke
    }

    fn name(&self) -> &'static str {
        "profile"
    }

    async fn look(&self, scene: &Scene, _history: &History) -> Result<Assessment> {
        let associations = scene.inventory.profile_associations(&scene.instance).await?;
        let mut seen = Assessment::default();
        seen.now.extend(associations.into_iter().filter(|a| a.active).map(|association| {
            Change::DisassociateProfile {
                instance: scene.instance.clone(),
                association: association.id,
                profile: association.profile,
            }
        }));
        Ok(seen)
    }

    async fn look_back(&self, scene: &Scene, _history: &History) -> Result<Assessment> {
        let mut seen = Assessment::default();
        let was = scene.original.associations.get().into_iter().flatten().find(|a| a.active);
        let Some(was) = was else { return Ok(seen) };
        let now = scene.inventory.profile_associations(&scene.instance).await?;
        if !now.iter().any(|a| a.active) {
            seen.now.push(Change::AssociateProfile {
                instance: scene.instance.clone(),
                profile: was.profile.clone(),
            });
        }
        Ok(seen)
    }
}

/// The role's sessions from this instance are denied everything.
#[derive(Debug)]
pub struct Deny;

/// The name of a case's policy.
fn policy_name(scene: &Scene) -> String {
    format!("cleanroom-{}", scene.case)
}

/// Denies every action to credentials that were issued to this instance (global condition key
/// `ec2:SourceInstanceARN`).
fn document(scene: &Scene) -> String {
    json!({
        "Version": "2012-10-17",
        "Statement": {
            "Effect": "Deny",
            "Action": "*",
            "Resource": "*",
            "Condition": { "ArnEquals": { "ec2:SourceInstanceARN": scene.instance_arn() } },
        },
    })
    .to_string()
}

/// The role that the instance had, where it had one.
async fn role(scene: &Scene) -> Result<Option<RoleName>> {
    if let Some(profile) = scene.original.profile.get() {
        return Ok(profile.as_ref().and_then(|p| p.role.as_ref()).map(|(name, _)| name.clone()));
    }
    match &scene.original.instance.profile {
        None => Ok(None),
        Some(arn) => Ok(scene.inventory.profile(arn).await?.role.map(|(name, _)| name)),
    }
}

/// Whether two JSON documents say the same.
fn same(left: &str, right: &str) -> bool {
    let parse = |text: &str| serde_json::from_str::<serde_json::Value>(text).ok();
    parse(left).is_some_and(|l| parse(right) == Some(l))
}

fn size(policies: &[RolePolicy]) -> usize {
    let counted = |text: &str| text.chars().filter(|c| !c.is_whitespace()).count();
    policies.iter().map(|p| counted(&p.document)).sum()
}

#[async_trait]
impl Goal for Deny {
    fn step(&self) -> Step {
        Step::Revoke
    }

    fn name(&self) -> &'static str {
        "deny"
    }

    async fn look(&self, scene: &Scene, history: &History) -> Result<Assessment> {
        let mut seen = Assessment::default();
        let Some(role) = role(scene).await? else { return Ok(seen) };
        let policies = match scene.inventory.role_policies(&role).await {
            Err(error) if error.kind == ErrorKind::NotFound => {
                seen.notes.push(format!("role {role} is gone, and its sessions with it"));
                return Ok(seen);
            }
            policies => policies?,
        };
        let (name, document) = (policy_name(scene), document(scene));
        let others: Vec<_> = policies.iter().filter(|p| p.name != name).cloned().collect();
        if policies.len() > others.len()
            && policies.iter().any(|p| p.name == name && same(&p.document, &document))
        {
            seen.notes.push(format!(
                "credentials of role {role} from this instance are denied by policy {name}, effective within minutes"
            ));
            return Ok(seen);
        }
        let change = Change::PutRolePolicy { role: role.clone(), name, document: document.clone() };
        let refusal = history.refusal(|c| *c == change);
        if refusal.is_some() || size(&others) + document.len() > INLINE_LIMIT {
            let profile = scene.original.instance.profile.as_deref();
            let sharing = scene.inventory.instances_like(None, profile).await.map(|all| all.len());
            let sharing = sharing.map_or_else(|_| "other".to_owned(), |n| n.to_string());
            let why = refusal.unwrap_or("the role's inline policies are full (10,240 characters)");
            seen.short.push(Shortfall {
                step: Step::Revoke,
                what: format!("credentials of role {role} that this instance holds still work: {why}"),
                advice: format!(
                    "`cleanroom revoke --principal` with the role's ARN denies every session begun before now, also those of the {sharing} instances that share it"
                ),
            });
            return Ok(seen);
        }
        seen.now.push(change);
        Ok(seen)
    }

    async fn look_back(&self, scene: &Scene, _history: &History) -> Result<Assessment> {
        let mut seen = Assessment::default();
        let Some(role) = role(scene).await? else { return Ok(seen) };
        let policies = match scene.inventory.role_policies(&role).await {
            Err(error) if error.kind == ErrorKind::NotFound => return Ok(seen),
            policies => policies?,
        };
        let name = policy_name(scene);
        if policies.iter().any(|p| p.name == name) {
            seen.now.push(Change::DeleteRolePolicy { role, name });
        }
        Ok(seen)
    }
}

/// The metadata service does not answer the instance.
#[derive(Debug)]
pub struct Endpoint;

#[async_trait]
impl Goal for Endpoint {
    fn step(&self) -> Step {
        Step::Revoke
    }

    fn name(&self) -> &'static str {
        "endpoint"
    }

    async fn look(&self, scene: &Scene, _history: &History) -> Result<Assessment> {
        let instance = scene.inventory.get_instance(&scene.instance).await?;
        let mut seen = Assessment::default();
        if instance.metadata.endpoint && !instance.state.is_ending() {
            seen.now
                .push(Change::SetMetadataEndpoint { instance: scene.instance.clone(), on: false });
        }
        Ok(seen)
    }

    async fn look_back(&self, scene: &Scene, _history: &History) -> Result<Assessment> {
        let instance = scene.inventory.get_instance(&scene.instance).await?;
        let was = scene.original.instance.metadata.endpoint;
        let mut seen = Assessment::default();
        if instance.metadata.endpoint != was && !instance.state.is_ending() {
            seen.now
                .push(Change::SetMetadataEndpoint { instance: scene.instance.clone(), on: was });
        }
        Ok(seen)
    }
}
