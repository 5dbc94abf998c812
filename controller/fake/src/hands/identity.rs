//! Profiles, policies, keys. Touches associations, roles and users of the world.

use std::collections::BTreeMap;

use cleanroom_cloud::{Association, AssociationId, Change, Made, RolePolicy};
use cleanroom_contract::InstanceId;

use super::compute::not_mine;
use crate::{
    later::Later,
    problem::{Answered, Problem},
    world::World,
};

impl World {
    pub(super) fn change_identity(&mut self, change: &Change) -> Answered<Made> {
        use Change as C;
        match change {
            C::DisassociateProfile { association, .. } => self.disassociate_profile(association),
            C::AssociateProfile { instance, profile } => {
                return self.associate_profile(instance, profile);
            }
            C::PutRolePolicy { role, name, document } => {
                let limit = self.limits.role_policies;
                check_policies(&self.get_role(role)?.policies, (name, document), limit)?;
                if let Some(role) = self.roles.get_mut(role) {
                    role.policies.insert(name.clone(), document.clone());
                }
            }
            C::DeleteRolePolicy { role, name } => {
                self.get_role(role)?;
                if let Some(role) = self.roles.get_mut(role) {
                    role.policies.remove(name);
                }
            }
            C::SetAccessKey { user, key, active } => {
                let access = self.users.get_mut(user).and_then(|u| u.keys.get_mut(key));
                let Some(state) = access else {
                    let message = format!("The Access Key with id {key} cannot be found.");
                    return Err(Problem::not_found("NoSuchEntity", message));
                };
                *state = *active;
            }
            C::PutUserPolicy { user, name, document } => {
                let limit = self.limits.user_policies;
                let Some(access) = self.users.get_mut(user) else {
                    let message = format!("The user with name {user} cannot be found.");
                    return Err(Problem::not_found("NoSuchEntity", message));
                };
                let had = access.policies.iter().map(|p| (p.name.clone(), p.document.clone()));
                check_policies(&had.collect(), (name, document), limit)?;
                access.policies.retain(|p| p.name != *name);
                let (name, document) = (name.clone(), document.clone());
                access.policies.push(RolePolicy { name, document });
            }
            _ => return Err(not_mine(change)),
        }
        Ok(Made::Nothing)
    }

    /// Off at once; still listed, as not active, for a while. One that is gone already is no error.
    fn disassociate_profile(&mut self, id: &AssociationId) {
        let wait = self.times.association;
        let Some((instance, association)) =
            self.associations.iter_mut().find(|(_, a)| a.id == *id && a.active)
        else {
            return;
        };
        association.active = false;
        let instance = instance.clone();
        if let Some(machine) = self.machines.get_mut(&instance) {
            machine.instance.profile = None;
        }
        self.after(wait, Later::AssociationGone(id.clone()));
    }

    /// The same profile again is no error; another one on top of it is.
    fn associate_profile(&mut self, id: &InstanceId, profile: &str) -> Answered<Made> {
        self.living(id)?;
        if !self.profiles.iter().any(|p| p.arn == profile) {
            let message = format!("Value ({profile}) for parameter iamInstanceProfile is invalid");
            return Err(Problem::not_found("InvalidParameterValue", message));
        }
        let active = self.associations.iter().find(|(i, a)| i == id && a.active);
        match active {
            Some((_, there)) if there.profile == profile => Ok(Made::Association(there.id.clone())),
            Some(_) => {
                let message = format!("There is an existing association for instance {id}");
                Err(Problem::refused("IncorrectState", message))
            }
            None => {
                let association = self.add_association(id, profile);
                self.living(id)?.instance.profile = Some(profile.to_owned());
                Ok(Made::Association(association))
            }
        }
    }

    /// Puts a profile on, without looking.
    pub(crate) fn add_association(&mut self, id: &InstanceId, profile: &str) -> AssociationId {
        let name = AssociationId::from(self.name("iip-assoc-"));
        let association =
            Association { id: name.clone(), profile: profile.to_owned(), active: true };
        self.associations.push((id.clone(), association));
        name
    }
}

/// Refuses a policy that is no JSON object, or does not fit beside the others. IAM does not count white space.
fn check_policies(
    had: &BTreeMap<String, String>,
    (name, document): (&str, &str),
    limit: usize,
) -> Answered<()> {
    let parsed = serde_json::from_str::<serde_json::Value>(document);
    if !parsed.is_ok_and(|value| value.get("Statement").is_some()) {
        let message = "Syntax errors in policy.";
        return Err(Problem::refused("MalformedPolicyDocument", message));
    }
    let size = |text: &str| text.chars().filter(|c| !c.is_whitespace()).count();
    let others: usize = had.iter().filter(|(n, _)| *n != name).map(|(_, d)| size(d)).sum();
    if others + size(document) > limit {
        let message = format!("Maximum policy size of {limit} bytes exceeded");
        return Err(Problem::refused("LimitExceeded", message));
    }
    Ok(())
}
