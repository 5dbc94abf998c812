//! Tags, within EC2's limits. Touches no other field of a resource.

use std::collections::{BTreeMap, BTreeSet};

use cleanroom_cloud::{Made, Tags};

use crate::{
    problem::{Answered, Problem},
    world::World,
};

impl World {
    /// Refuses tags that EC2 would refuse (EC2 user guide, "Tag restrictions"), on a resource that has `had`
    /// already.
    pub(crate) fn check_tags(&self, had: &Tags, new: &Tags) -> Answered<()> {
        for (key, value) in new {
            let invalid = |what: &str| Problem::refused("InvalidParameterValue", what.to_owned());
            if key.is_empty() || key.chars().count() > 128 || key.starts_with("aws:") {
                return Err(invalid("Tag key is invalid"));
            }
            if value.chars().count() > 256 {
                return Err(invalid("Tag value exceeds the maximum length of 256 characters"));
            }
        }
        if had.keys().chain(new.keys()).collect::<BTreeSet<_>>().len() > self.limits.tags {
            let message = "More than 50 tags are not permitted";
            return Err(Problem::refused("TagLimitExceeded", message));
        }
        Ok(())
    }

    pub(super) fn put_tags(&mut self, resource: &str, tags: &Tags) -> Answered<Made> {
        let had = self.tags_of(resource)?.clone();
        self.check_tags(&had, tags)?;
        self.tags_of(resource)?.extend(tags.clone());
        Ok(Made::Nothing)
    }

    pub(super) fn remove_tags(
        &mut self,
        resource: &str,
        keys: &BTreeSet<String>,
    ) -> Answered<Made> {
        self.tags_of(resource)?.retain(|key, _| !keys.contains(key));
        Ok(Made::Nothing)
    }

    /// The tags of any EC2 resource that exists.
    fn tags_of(&mut self, resource: &str) -> Answered<&mut BTreeMap<String, String>> {
        let known = self.acls.keys().any(|id| id.as_str() == resource)
            || self.allocations.keys().any(|id| id.as_str() == resource)
            || self.vpcs.iter().any(|id| id.as_str() == resource)
            || self.subnets.contains_key(resource);
        if known {
            return Ok(self.other_tags.entry(resource.to_owned()).or_default());
        }
        for machine in self.machines.values_mut() {
            if machine.instance.id.as_str() == resource {
                return Ok(&mut machine.instance.tags);
            }
            for card in &mut machine.cards {
                if card.interface.id.as_str() == resource {
                    return Ok(&mut card.interface.tags);
                }
            }
        }
        let groups = self.groups.values_mut().filter(|g| g.id.as_str() == resource);
        let snapshots = self.snapshots.iter_mut().filter(|s| s.id.as_str() == resource);
        let images = self.images.iter_mut().filter(|i| i.id.as_str() == resource);
        let tags = groups.map(|g| &mut g.tags).chain(snapshots.map(|s| &mut s.tags));
        let volumes = self.volumes.values_mut().filter(|v| v.id.as_str() == resource);
        let tags = tags.chain(volumes.map(|v| &mut v.tags));
        tags.chain(images.map(|i| &mut i.tags)).next().ok_or_else(|| {
            Problem::not_found("InvalidID", format!("The ID '{resource}' is not valid"))
        })
    }
}
