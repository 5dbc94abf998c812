//! All volumes, preserved at one point in time.
//!
//! `CreateSnapshots` is asked once; it has no idempotency token, so what it made is looked up by the case's tag. Two complete
//! sets: the earliest is the evidence, the rest is surplus. Nothing here deletes a snapshot.

use std::{
    collections::{BTreeMap, BTreeSet},
    time::Duration,
};

use async_trait::async_trait;
use cleanroom_cloud::{Change, ErrorKind, Result, Snapshot, SnapshotState};
use cleanroom_contract::{SnapshotId, VolumeId};

use crate::{
    case::{Assessment, Case, Goal, History, Scene, Shortfall, Step},
    journal::event::Body,
};

/// The tag that says which call made a snapshot.
pub const SET: &str = "cleanroom:set";
/// The tag that says which snapshot a copy was made from.
pub(super) const COPY_OF: &str = "cleanroom:copy-of";
/// How many sets a case may begin where all before have failed.
const MOST_SETS: usize = 3;

/// A case's snapshots, judged: pure.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Sets {
    /// The earliest set that has a good snapshot of every volume, one a volume.
    pub evidence: BTreeMap<VolumeId, Snapshot>,
    /// Good snapshots beside it.
    pub surplus: Vec<SnapshotId>,
    /// Snapshots that carry the case's tag, and were not taken by it.
    pub foreign: Vec<SnapshotId>,
    /// Snapshots that failed, for good.
    pub failed: Vec<SnapshotId>,
    /// Copies under the case's own key, by what they were copied from.
    pub copies: BTreeMap<String, Snapshot>,
    /// How many calls made them.
    pub calls: usize,
}

/// Sorts a case's snapshots into sets. Where no one call can take all volumes any more they are taken `apart`: then each volume's
/// earliest good snapshot is the evidence, unless one set has them all.
#[must_use]
pub fn judge(
    snapshots: &[Snapshot],
    volumes: &BTreeSet<VolumeId>,
    apart: bool,
    ours: impl Fn(&str) -> bool,
) -> Sets {
    let mut sets = Sets::default();
    let mut calls = BTreeMap::<&str, Vec<&Snapshot>>::new();
    for snapshot in snapshots {
        // What a call of ours made is never a copy, whatever else its tags say.
        let copy_of = snapshot.tags.get(COPY_OF).filter(|_| !snapshot.tags.contains_key(SET));
        if let Some(from) = copy_of {
            // The latest holds; where it failed, so does the key, and another copy would fail too.
            let better = sets.copies.get(from).is_none_or(|c| c.state == SnapshotState::Error);
            if better {
                sets.copies.insert(from.clone(), snapshot.clone());
            }
            continue;
        }
        // Tags are hints, and whoever broke in may write them: one of ours names a call that the log tells of.
        match snapshot.tags.get(SET) {
            Some(call) if ours(call) => calls.entry(call.as_str()).or_default().push(snapshot),
            _ => sets.foreign.push(snapshot.id.clone()),
        }
    }
    sets.calls = calls.len();
    let complete = |set: &Vec<&Snapshot>| {
        let good = set.iter().filter(|s| s.state != SnapshotState::Error);
        let covered: BTreeSet<_> = good.map(|s| &s.volume).collect();
        !volumes.is_empty() && volumes.iter().all(|v| covered.contains(v))
    };
    let began = |set: &Vec<&Snapshot>| set.iter().map(|s| (s.started, s.id.clone())).min();
    let earliest = calls.values().filter(|set| complete(set)).min_by_key(|set| began(set)).cloned();
    let mut candidates: Vec<_> = match earliest {
        Some(whole) => whole,
        None if apart => calls.values().flatten().copied().collect(),
        None => Vec::new(),
    };
    candidates.sort_by_key(|s| (s.started, s.id.clone()));
    for snapshot in candidates {
        if snapshot.state != SnapshotState::Error && volumes.contains(&snapshot.volume) {
            sets.evidence.entry(snapshot.volume.clone()).or_insert_with(|| snapshot.clone());
        }
    }
    let kept: BTreeSet<_> = sets.evidence.values().map(|s| &s.id).collect();
    for snapshot in calls.values().flatten() {
        if snapshot.state == SnapshotState::Error {
            sets.failed.push(snapshot.id.clone());
        } else if !kept.contains(&snapshot.id) {
            sets.surplus.push(snapshot.id.clone());
        }
    }
    sets
}

/// What there is to preserve.
struct Targets {
    /// The volumes that the instance had, those it has, and those that the case has taken snapshots of. A volume that is gone
    /// is evidence as long as a snapshot of it is there.
    volumes: BTreeSet<VolumeId>,
    /// Those that exist.
    there: BTreeSet<VolumeId>,
    /// Those that one call takes all at once.
    attached: BTreeSet<VolumeId>,
    /// Whether no one call can take them all: the instance is ending, or some are no longer attached to it.
    apart: bool,
    /// Whether the instance is ending.
    ending: bool,
}

impl Targets {
    /// Volumes that have no good snapshot, by whether one can still be taken.
    fn lacking(&self, sets: &Sets) -> (Vec<VolumeId>, Vec<VolumeId>) {
        let lacking = self.volumes.iter().filter(|v| !sets.evidence.contains_key(*v)).cloned();
        lacking.partition(|volume| self.there.contains(volume))
    }

    /// Whether these can be taken at one point in time, although others are no longer attached.
    fn are_together(&self, lacking: &[VolumeId]) -> bool {
        !self.ending && lacking.iter().eq(&self.attached)
    }
}

async fn targets(scene: &Scene) -> Result<Targets> {
    let had: Vec<_> = scene.original.volumes().into_iter().collect();
    let (instance, there, attached) = tokio::join!(
        scene.inventory.get_instance(&scene.instance),
        scene.inventory.volumes(&had),
        scene.inventory.attached_volumes(&scene.instance),
    );
    let ending = match instance {
        Err(error) if error.kind == ErrorKind::NotFound => true,
        instance => instance?.state.is_ending(),
    };
    let attached: BTreeSet<_> = attached?.into_iter().map(|v| v.id).collect();
    let mut there: BTreeSet<_> = there?.into_iter().map(|v| v.id).collect();
    let mut volumes: BTreeSet<_> = had.into_iter().collect();
    let apart = ending || !volumes.is_subset(&attached);
    volumes.extend(attached.iter().cloned());
    there.extend(attached.iter().cloned());
    Ok(Targets { volumes, there, attached, apart, ending })
}

async fn sets(scene: &Scene) -> Result<(Sets, Targets)> {
    sets_as(scene, false).await
}

/// As [`sets`]; where no set has every volume, `apart` takes what there is of each.
async fn sets_as(scene: &Scene, apart: bool) -> Result<(Sets, Targets)> {
    let (targets, snapshots) = tokio::join!(targets(scene), scene.inventory.snapshots(&scene.case));
    let (mut targets, snapshots) = (targets?, snapshots?);
    let ours =
        |call: &str| scene.sets.contains(call) || call.starts_with(&format!("{}-", scene.nonce));
    let taken = |s: &&Snapshot| s.tags.get(SET).is_some_and(|call| ours(call));
    let taken = snapshots.iter().filter(taken).map(|s| &s.volume);
    let detached: BTreeSet<_> = taken.filter(|v| !targets.volumes.contains(*v)).cloned().collect();
    if !detached.is_empty() {
        let asked: Vec<_> = detached.iter().cloned().collect();
        let there = scene.inventory.volumes(&asked).await?;
        targets.there.extend(there.into_iter().map(|v| v.id));
        targets.volumes.extend(detached);
        targets.apart = true;
    }
    Ok((judge(&snapshots, &targets.volumes, apart || targets.apart, ours), targets))
}

/// What a clean room's volumes are made from: each volume's snapshot that is the evidence, or its copy under the case's own
/// key where that is whole; and the volumes that have none. One volume without a good snapshot does not keep the others waiting.
/// In the forensic account, the copies of these.
pub(crate) async fn for_a_room(
    scene: &Scene,
) -> Result<(BTreeMap<VolumeId, Snapshot>, Vec<VolumeId>)> {
    let (own, lacking) = in_its_own_account(&scene.at_home()).await?;
    if scene.home.is_none() {
        return Ok((own, lacking));
    }
    super::forensic::received(scene, own, lacking).await
}

/// The same, in the instance's own account.
pub(super) async fn in_its_own_account(
    scene: &Scene,
) -> Result<(BTreeMap<VolumeId, Snapshot>, Vec<VolumeId>)> {
    let (mut sets, targets) = sets_as(scene, true).await?;
    let (mut lacking, gone) = targets.lacking(&sets);
    lacking.extend(gone);
    for snapshot in sets.evidence.values_mut() {
        let copy = sets.copies.get(snapshot.id.as_str());
        if let Some(copy) = copy.filter(|copy| copy.state == SnapshotState::Completed) {
            *snapshot = copy.clone();
        }
    }
    Ok((sets.evidence, lacking))
}

/// Volumes that nothing can bring back.
fn lost(volumes: &[VolumeId]) -> Shortfall {
    Shortfall {
        step: Step::Snapshot,
        what: format!("gone without a good snapshot: {}", join(volumes)),
        advice: "find out who deleted them (CloudTrail, DeleteVolume), and look for other snapshots and backups of them".to_owned(),
    }
}

/// Snapshots of every volume have begun: their content is fixed.
#[derive(Debug)]
pub struct Take;

#[async_trait]
impl Goal for Take {
    fn step(&self) -> Step {
        Step::Snapshot
    }

    fn name(&self) -> &'static str {
        "take"
    }

    async fn look(&self, scene: &Scene, history: &History) -> Result<Assessment> {
        let (sets, targets) = sets(scene).await?;
        let mut seen = Assessment::default();
        if targets.volumes.is_empty() {
            seen.notes.push("there is no EBS volume to snapshot".to_owned());
            return Ok(seen);
        }
        if !sets.foreign.is_empty() {
            seen.notes.push(format!(
                "snapshots that carry the case's tag and are not the case's: {}",
                join(&sets.foreign)
            ));
        }
        let (lacking, gone) = targets.lacking(&sets);
        if !gone.is_empty() {
            seen.short.push(lost(&gone));
        }
        if lacking.is_empty() {
            return Ok(seen);
        }
        let apart = targets.apart && !targets.are_together(&lacking);
        let most = if apart { MOST_SETS * targets.volumes.len() } else { MOST_SETS };
        if sets.calls >= most {
            seen.short.push(Shortfall {
                step: Step::Snapshot,
                what: format!(
                    "{} calls left no whole set: {} failed",
                    sets.calls,
                    join(&sets.failed)
                ),
                advice: "look at the volumes' state, and snapshot them by hand".to_owned(),
            });
            return Ok(seen);
        }
        let mut tags = scene.snapshot_tags();
        let call = history.applied.len() + sets.calls + 1;
        tags.insert(SET.to_owned(), format!("{}-{call}", scene.nonce));
        let description = format!("Cleanroom {} of {}", scene.case, scene.instance);
        if apart {
            seen.now.extend(lacking.into_iter().map(|volume| {
                let (description, tags) = (description.clone(), tags.clone());
                Change::CreateSnapshot { volume: volume.clone(), description, tags }
            }));
            return Ok(seen);
        }
        let instance = scene.instance.clone();
        match history.refusal(|c| matches!(c, Change::CreateSnapshots { .. })) {
            Some(why) => seen.short.push(Shortfall {
                step: Step::Snapshot,
                what: format!("the volumes of {instance} have no snapshots: {why}"),
                advice:
                    "the volumes are kept on termination; run respond again once that is mended"
                        .to_owned(),
            }),
            None => seen.now.push(Change::CreateSnapshots { instance, description, tags }),
        }
        Ok(seen)
    }
}

/// Every snapshot is whole.
#[derive(Debug)]
pub struct Settle;

/// How long copying a volume to S3 may take: an hour, and ten seconds a GiB.
pub(super) fn patience(snapshots: &BTreeMap<VolumeId, Snapshot>) -> Duration {
    let gib: u64 = snapshots.values().map(|s| u64::from(s.size)).max().unwrap_or(0);
    Duration::from_secs(3600 + gib * 10)
}

/// The snapshots that are not whole yet, and how long that may take.
fn completing(sets: &Sets) -> Option<(String, Duration)> {
    let pending = sets.evidence.values().filter(|s| s.state == SnapshotState::Pending);
    let parts: Vec<_> = pending.map(|s| format!("{} {} %", s.id, s.progress)).collect();
    let what = format!("snapshots to complete: {}", join(&parts));
    (!parts.is_empty()).then(|| (what, patience(&sets.evidence)))
}

#[async_trait]
impl Goal for Settle {
    fn step(&self) -> Step {
        Step::Snapshot
    }

    fn name(&self) -> &'static str {
        "settle"
    }

    async fn look(&self, scene: &Scene, _history: &History) -> Result<Assessment> {
        let (sets, targets) = sets(scene).await?;
        let mut seen = Assessment::default();
        // What is gone for good is told by who was to take it, and holds up nothing.
        let (lacking, _) = targets.lacking(&sets);
        if !lacking.is_empty() {
            // What there is of the others is worth waiting for.
            let (parts, _) = sets_as(scene, true).await?;
            seen.waiting = completing(&parts);
            if seen.waiting.is_some() {
                return Ok(seen);
            }
            seen.short.push(Shortfall {
                step: Step::Snapshot,
                what: format!("{} without a good snapshot", join(&lacking)),
                advice: "run respond again: it takes another set".to_owned(),
            });
            return Ok(seen);
        }
        seen.waiting = completing(&sets);
        if !sets.surplus.is_empty() {
            seen.notes.push(format!(
                "surplus snapshots, taken after the evidence: {}",
                join(&sets.surplus)
            ));
        }
        Ok(seen)
    }
}

fn join<T: std::fmt::Display>(things: impl IntoIterator<Item = T>) -> String {
    things.into_iter().map(|t| t.to_string()).collect::<Vec<_>>().join(", ")
}

/// No snapshot depends on a key that is not the case's, where the case has one.
#[derive(Debug)]
pub struct Rekey;

#[async_trait]
impl Goal for Rekey {
    fn step(&self) -> Step {
        Step::Snapshot
    }

    fn name(&self) -> &'static str {
        "rekey"
    }

    async fn look(&self, scene: &Scene, _history: &History) -> Result<Assessment> {
        let (sets, ..) = sets(scene).await?;
        let mut seen = Assessment::default();
        for snapshot in sets.evidence.values().filter(|s| s.encrypted) {
            let Some(key) = &snapshot.key else { continue };
            if scene.policy.key.as_ref() == Some(key) {
                continue;
            }
            let why = match scene.inventory.key(key).await {
                Ok(known) if known.aws_managed => "which AWS manages, so it can not be shared",
                Ok(known) if known.account != scene.caller.account => "which another account owns",
                Ok(_) => continue,
                Err(_) => "which can not be looked at",
            };
            if let Some(copy) = sets.copies.get(snapshot.id.as_str()) {
                if copy.state == SnapshotState::Error {
                    seen.short.push(Shortfall {
                        step: Step::Snapshot,
                        what: format!("{} depends on key {key}, {why}: its copy {} failed", snapshot.id, copy.id),
                        advice: "look at the rights to both keys; delete the failed copy, and run respond again".to_owned(),
                    });
                } else if copy.state == SnapshotState::Pending {
                    let what = format!("copy {} of {} to complete", copy.id, snapshot.id);
                    seen.waiting = Some((what, patience(&sets.evidence)));
                }
            } else if let Some(own) = &scene.policy.key {
                let mut tags = scene.snapshot_tags();
                tags.insert(COPY_OF.to_owned(), snapshot.id.to_string());
                let snapshot = snapshot.id.clone();
                seen.now.push(Change::CopySnapshot { snapshot, key: own.clone(), tags });
            } else {
                seen.notes.push(format!("{} depends on key {key}, {why}", snapshot.id));
            }
        }
        Ok(seen)
    }
}

/// Nobody can delete the snapshots, where people asked for that.
#[derive(Debug)]
pub struct Lock;

#[async_trait]
impl Goal for Lock {
    fn step(&self) -> Step {
        Step::Snapshot
    }

    fn name(&self) -> &'static str {
        "lock"
    }

    async fn look(&self, scene: &Scene, _history: &History) -> Result<Assessment> {
        let mut seen = Assessment::default();
        let Some(days) = scene.policy.lock_days else { return Ok(seen) };
        let (sets, ..) = sets(scene).await?;
        let whole = |s: &&Snapshot| !s.locked && s.state != SnapshotState::Error;
        let all = sets.evidence.values().chain(sets.copies.values()).filter(whole);
        seen.now.extend(all.map(|s| Change::LockSnapshot { snapshot: s.id.clone(), days }));
        Ok(seen)
    }
}

/// An image of the evidence is registered, where people asked for that.
#[derive(Debug)]
pub struct Register;

#[async_trait]
impl Goal for Register {
    fn step(&self) -> Step {
        Step::Snapshot
    }

    fn name(&self) -> &'static str {
        "image"
    }

    async fn look(&self, scene: &Scene, _history: &History) -> Result<Assessment> {
        let mut seen = Assessment::default();
        if !scene.policy.image {
            return Ok(seen);
        }
        let (images, found) = tokio::join!(scene.inventory.images(&scene.case), sets(scene));
        let (images, (sets, targets)) = (images?, found?);
        if let Some(image) = images.iter().find(|i| i.state != "failed") {
            if image.state == "pending" {
                let what = format!("image {} to become available", image.id);
                seen.waiting = Some((what, patience(&sets.evidence)));
            }
            return Ok(seen);
        }
        if sets.evidence.is_empty() || !targets.lacking(&sets).0.is_empty() {
            return Ok(seen);
        }
        let instance = &scene.original.instance;
        let name = format!("cleanroom-{}", scene.case);
        let devices: BTreeMap<_, _> = instance
            .volumes
            .iter()
            .filter_map(|v| Some((v.device.clone(), sets.evidence.get(&v.volume)?.id.clone())))
            .collect();
        let root = instance.root_device.clone().filter(|root| devices.contains_key(root));
        // Windows' and the Marketplace's billing codes are lost when an image is registered from a snapshot.
        let by_ec2 = instance.windows || !instance.product_codes.is_empty();
        match root {
            Some(root_device) if !by_ec2 => seen.now.push(Change::RegisterImage {
                name,
                architecture: instance.architecture.clone(),
                root_device,
                devices,
                tags: scene.tags(),
            }),
            _ if targets.ending => seen.short.push(Shortfall {
                step: Step::Snapshot,
                what: "no image can be registered from these snapshots, and the instance is ending"
                    .to_owned(),
                advice: "attach volumes made from the snapshots instead".to_owned(),
            }),
            _ => seen.now.push(Change::CreateImage {
                instance: scene.instance.clone(),
                name,
                tags: scene.tags(),
            }),
        }
        Ok(seen)
    }
}

/// Logs which snapshots are the evidence, where that has changed. Returns whether there are any.
pub async fn log_preserved(case: &Case) -> bool {
    let sets = match crate::engine::again(case.bounds.goal, || sets(&case.scene)).await {
        Ok((sets, _)) => sets,
        Err(why) => {
            case.short(Shortfall {
                step: Step::Snapshot,
                what: format!("which snapshots are the evidence could not be read: {why}"),
                advice: "run respond again: it logs them".to_owned(),
            });
            return false;
        }
    };
    if sets.evidence.is_empty() {
        return false;
    }
    let snapshots: Vec<_> = sets.evidence.values().map(|s| s.id.to_string()).collect();
    if case.journal.ledger().await.snapshots == snapshots {
        return true;
    }
    let surplus = sets.surplus.iter().map(ToString::to_string).collect();
    let depends = sets.evidence.values();
    let depends =
        depends.filter_map(|s| Some(format!("{} is under key {}", s.id, s.key.as_ref()?)));
    let notes = depends.collect();
    let body = Body::Preserved { snapshots, surplus, notes };
    case.journal.append(Some(Step::Snapshot), body).await;
    true
}
