//! The case's name on what it concerns, for people who meet it in a console.
//!
//! Tags are hints: nothing here reads its state from them, but for what release needs where the store was down.

use std::collections::{BTreeMap, BTreeSet};

use async_trait::async_trait;
use cleanroom_cloud::{Change, GroupId, Interface, Result, Tags};

use crate::case::{Assessment, Goal, History, Scene, Step};

/// The tag that holds an interface's own groups, in numbered parts of at most ten.
const GROUPS: &str = "cleanroom:groups-";

/// The instance, its volumes and interfaces carry the case's name.
#[derive(Debug)]
pub struct Labels;

/// What is missing of the case's tags.
fn missing(scene: &Scene, there: &BTreeMap<String, String>) -> Tags {
    scene.tags().into_iter().filter(|(key, value)| there.get(key) != Some(value)).collect()
}

#[async_trait]
impl Goal for Labels {
    fn step(&self) -> Step {
        Step::Tag
    }

    fn name(&self) -> &'static str {
        "labels"
    }

    async fn look(&self, scene: &Scene, _history: &History) -> Result<Assessment> {
        let mut seen = Assessment::default();
        for (resource, there) in tagged(scene).await? {
            let tags = missing(scene, &there);
            if !tags.is_empty() {
                seen.now.push(Change::PutTags { resource, tags });
            }
        }
        Ok(seen)
    }

    async fn look_back(&self, scene: &Scene, _history: &History) -> Result<Assessment> {
        let mut seen = Assessment::default();
        for (resource, there) in tagged(scene).await? {
            let ours = |key: &&String| scene.tags().contains_key(*key) || key.starts_with(GROUPS);
            let keys: BTreeSet<_> = there.keys().filter(ours).cloned().collect();
            if !keys.is_empty() {
                seen.now.push(Change::RemoveTags { resource, keys });
            }
        }
        Ok(seen)
    }
}

/// What carries the case's tags, and the tags that it has.
async fn tagged(scene: &Scene) -> Result<Vec<(String, BTreeMap<String, String>)>> {
    let volumes: Vec<_> = scene.original.volumes().into_iter().collect();
    let (instance, interfaces, volumes) = tokio::join!(
        scene.inventory.get_instance(&scene.instance),
        scene.inventory.interfaces(&scene.instance),
        scene.inventory.volumes(&volumes),
    );
    let instance = instance?;
    let mut all = vec![(instance.id.to_string(), instance.tags)];
    all.extend(interfaces?.into_iter().map(|i| (i.id.to_string(), i.tags)));
    all.extend(volumes?.into_iter().map(|v| (v.id.to_string(), v.tags)));
    Ok(all)
}

/// Each interface carries its own groups in tags: what release needs, where the custody log can not be written.
#[derive(Debug)]
pub struct Groups;

#[async_trait]
impl Goal for Groups {
    fn step(&self) -> Step {
        Step::Tag
    }

    fn name(&self) -> &'static str {
        "groups"
    }

    async fn look(&self, scene: &Scene, _history: &History) -> Result<Assessment> {
        let interfaces = scene.inventory.interfaces(&scene.instance).await?;
        let original = scene.original.groups();
        let mut seen = Assessment::default();
        for interface in interfaces {
            // What carries it already was recorded by an earlier run, and may be isolated by now.
            if recorded(&interface).is_some() {
                continue;
            }
            // What is recorded as original never holds a group of ours.
            let Some(groups) = original.get(&interface.id).filter(|g| !g.is_empty()) else {
                continue;
            };
            seen.now.push(Change::PutTags {
                resource: interface.id.to_string(),
                tags: in_tags(groups),
            });
        }
        Ok(seen)
    }
}

/// Groups as tags: a tag's value holds 256 characters, a group's id takes 20, and an interface has at most 16.
fn in_tags(groups: &BTreeSet<GroupId>) -> Tags {
    let groups: Vec<_> = groups.iter().map(GroupId::as_str).collect();
    (1..).zip(groups.chunks(10)).map(|(n, part)| (format!("{GROUPS}{n}"), part.join(" "))).collect()
}

/// The groups that an interface's tags tell of. Only ids are taken: an attacker may have written them, which release says.
#[must_use]
pub fn recorded(interface: &Interface) -> Option<BTreeSet<GroupId>> {
    let parts = interface.tags.iter().filter(|(key, _)| key.starts_with(GROUPS));
    let ids = parts.flat_map(|(_, value)| value.split(' ')).filter(|id| id.starts_with("sg-"));
    let groups: BTreeSet<_> = ids.map(GroupId::from).collect();
    (!groups.is_empty()).then_some(groups)
}
