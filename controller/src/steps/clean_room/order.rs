//! Work orders: what a room is asked to examine, written once.
//!
//! The orders in the bucket are the record of what was asked: the newest is the one that holds. Nothing here overwrites.

use std::collections::BTreeMap;

use cleanroom_cloud::{Put, Snapshot, Store};
use cleanroom_contract::{
    CaseId, Destination, OrderedVolume, ScanId, Timestamp, VersionOne, VolumeId, VolumeRole,
    WorkOrder, order_key, orders_prefix,
};
use futures_util::{StreamExt as _, TryStreamExt as _, stream};

use super::{
    artifacts::{self, Sought, patiently},
    deal::decide_rooms,
    in_room,
};
use crate::{
    case::{Case, Scene, Step},
    engine::again,
    journal::{
        digest,
        event::{Body, Exhibit},
    },
};

/// Orders that are read at a time.
const AT_ONCE: usize = 8;

/// A work order as it lies in the bucket.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Ordered {
    /// The order.
    pub order: WorkOrder,
    /// Its object.
    pub exhibit: Exhibit,
}

/// The scans that were ordered for a case, oldest first, and in which of its rooms.
///
/// # Errors
/// When the store does not answer.
pub async fn scans(store: &dyn Store, case: &CaseId) -> Result<BTreeMap<ScanId, u32>, String> {
    // Those of the other rooms are below it.
    let prefix = orders_prefix(case, 1);
    let keys = again(artifacts::PATIENCE, || store.list(&prefix, false)).await?;
    let scan = |key: &String| {
        let name = key.strip_prefix(&prefix)?;
        let (room, name) = match name.strip_prefix("room-").and_then(|rest| rest.split_once('/')) {
            Some((room, name)) => (room.parse().ok()?, name),
            None => (1, name),
        };
        let scan = name.strip_suffix(".json")?.parse::<ScanId>().ok()?;
        (order_key(case, room, &scan) == *key).then_some((scan, room))
    };
    Ok(keys.iter().filter_map(scan).collect())
}

/// The newest order of one of a case's rooms.
///
/// # Errors
/// When the store does not answer, or the order can not be read.
pub async fn newest(
    store: &dyn Store,
    case: &CaseId,
    room: u32,
) -> Result<Option<Ordered>, String> {
    match scans(store, case).await?.iter().rfind(|(_, of)| **of == room) {
        Some((scan, _)) => read(store, case, (room, scan)).await.map(Some),
        None => Ok(None),
    }
}

/// All orders of a case, oldest first.
///
/// # Errors
/// When the store does not answer, or an order can not be read.
pub async fn all(store: &dyn Store, case: &CaseId) -> Result<Vec<Ordered>, String> {
    let scans = scans(store, case).await?;
    let reads: Vec<_> = scans
        .into_iter()
        .map(|(scan, room)| async move { read(store, case, (room, &scan)).await })
        .collect();
    stream::iter(reads).buffered(AT_ONCE).try_collect().await
}

/// The order of a scan in one of a case's rooms.
///
/// # Errors
/// When the store does not answer, or there is no such order, or it is another's.
pub async fn read(
    store: &dyn Store,
    case: &CaseId,
    (room, scan): (u32, &ScanId),
) -> Result<Ordered, String> {
    let key = order_key(case, room, scan);
    let bytes = again(artifacts::PATIENCE, || store.get(&key)).await?;
    let bytes = bytes.ok_or_else(|| format!("{key} is not there"))?;
    let order: WorkOrder = serde_json::from_slice(&bytes)
        .map_err(|error| format!("{key} can not be read: {error}"))?;
    if (&order.case, order.room, &order.scan) != (case, room, scan) {
        return Err(format!(
            "{key} is the order of scan {}{} of {}",
            order.scan,
            in_room(order.room),
            order.case
        ));
    }
    Ok(Ordered { order, exhibit: exhibit(key, &bytes) })
}

fn exhibit(key: String, bytes: &[u8]) -> Exhibit {
    Exhibit {
        key,
        sha256: digest(bytes),
        size: bytes.len() as u64,
        operation: "cleanroom respond".to_owned(),
        request: None,
    }
}

/// A name for a scan that begins now, after the newest there is: a room takes orders up in the order of their names, whatever the
/// clocks of those who wrote them.
#[must_use]
pub fn scan_id(
    case: &CaseId,
    nonce: &str,
    now: Timestamp,
    after: Option<&ScanId>,
) -> Option<ScanId> {
    let begins = match after {
        Some(newest) if second(now)?.as_str() <= &newest.as_str()[..SECOND] => {
            Timestamp { seconds: begun(newest)?.checked_add(1)?, nanos: 0 }
        }
        _ => now,
    };
    let random = digest(format!("{case} {nonce} {now}").as_bytes()).to_string();
    format!("{}-{}", second(begins)?, &random[..8]).parse().ok()
}

/// How long the time is that a scan's name begins with.
const SECOND: usize = "20260102T030405Z".len();

/// A second as scans are named for it.
fn second(at: Timestamp) -> Option<String> {
    // 2026-01-02T03:04:05.000000000Z without its marks and fractions. A year of more digits has no such name.
    let text = at.to_string();
    let time: String = text.chars().take(19).filter(|c| !matches!(c, '-' | ':')).collect();
    (!text.starts_with('@')).then(|| format!("{time}Z"))
}

/// The second that a scan is named for.
fn begun(scan: &ScanId) -> Option<i64> {
    let name = &scan.as_str()[..SECOND];
    // Names are sorted by time, so the last second that is named no later is the one.
    let (mut from, mut to) = (0_i64, 253_402_300_799);
    while from < to {
        let middle = from + (to - from + 1) / 2;
        if second(Timestamp { seconds: middle, nanos: 0 })?.as_str() <= name {
            from = middle;
        } else {
            to = middle - 1;
        }
    }
    Some(from)
}

/// Where a volume comes among the case's: the root first, then by the names of their devices. One that came after the case was
/// opened has no name on record, and comes after the others.
fn rank(scene: &Scene, volume: &VolumeId) -> (bool, bool, String, VolumeId) {
    let instance = &scene.original.instance;
    let known = instance.volumes.iter().find(|v| v.volume == *volume);
    let device = known.map(|known| known.device.clone());
    let is_root = device.is_some() && device == instance.root_device;
    (!is_root, device.is_none(), device.unwrap_or_default(), volume.clone())
}

/// Which of the case's rooms examines each of its volumes, by these orders of it so far.
#[must_use]
pub fn rooms<'v>(
    scene: &Scene,
    volumes: impl Iterator<Item = &'v VolumeId>,
    orders: &[Ordered],
) -> BTreeMap<VolumeId, u32> {
    let mut volumes: Vec<_> = volumes.collect();
    volumes.sort_by_cached_key(|volume| rank(scene, volume));
    let mut first = BTreeMap::new();
    for order in orders.iter().map(|ordered| &ordered.order) {
        for volume in &order.volumes {
            first.entry(volume.source.clone()).or_insert(order.room);
        }
    }
    decide_rooms(volumes, &first)
}

/// The volumes to examine, in their order.
#[must_use]
pub fn volumes(scene: &Scene, snapshots: &BTreeMap<VolumeId, Snapshot>) -> Vec<OrderedVolume> {
    let instance = &scene.original.instance;
    let device =
        |id: &VolumeId| instance.volumes.iter().find(|v| v.volume == *id).map(|v| v.device.clone());
    let ordered = |(id, snapshot): (&VolumeId, &Snapshot)| {
        let device = device(id);
        let root = device.is_some() && device == instance.root_device;
        OrderedVolume {
            source: id.clone(),
            snapshot: snapshot.id.clone(),
            volume: None,
            gib: snapshot.size,
            role: if root { VolumeRole::Root } else { VolumeRole::Data },
            device: device.unwrap_or_default(),
        }
    };
    let mut volumes: Vec<_> = snapshots.iter().map(ordered).collect();
    volumes.sort_by_cached_key(|volume| rank(scene, &volume.source));
    volumes
}

/// Writes a new order for these volumes, and before it what it names.
///
/// # Errors
/// What the store said.
pub async fn write(case: &Case, volumes: Vec<OrderedVolume>) -> Result<Ordered, String> {
    let (scene, store) = (&case.scene, &*case.store);
    let room = &scene.policy.room;
    for given in [&room.rules, &room.indicators] {
        artifacts::keep_given(store, given).await?;
    }
    let Sought { rules, indicators } = artifacts::sought(store, room).await?;
    let before = scans(store, &scene.case).await?;
    // Several rooms may be ordered for in the same moment.
    let nonce = format!("{}{}", scene.nonce, in_room(scene.room));
    let newest = before.last_key_value().map(|(scan, _)| scan);
    let scan = scan_id(&scene.case, &nonce, case.journal.now(), newest);
    let scan = scan.ok_or("the clock tells no time")?;
    let order = WorkOrder {
        v: VersionOne,
        case: scene.case.clone(),
        instance: scene.instance.clone(),
        room: scene.room,
        scan: scan.clone(),
        volumes,
        rules,
        indicators,
        limits: room.limits.clone(),
        publish: Destination { bucket: store.bucket().to_owned(), topic: room.topic.clone() },
        task_token: room.task_token.clone(),
    };
    let key = order_key(&scene.case, scene.room, &scan);
    let bytes = serde_json::to_vec_pretty(&order).map_err(|error| error.to_string())?;
    let put = patiently(|| store.create(&key, bytes.clone())).await?;
    if put == Put::Exists && patiently(|| store.get(&key)).await?.as_ref() != Some(&bytes) {
        return Err(format!("another order has the name {key}"));
    }
    let ordered = Ordered { order, exhibit: exhibit(key, &bytes) };
    log(case, &ordered).await;
    Ok(ordered)
}

/// Logs an order, unless the log has it.
pub async fn log(case: &Case, ordered: &Ordered) {
    let scan = &ordered.order.scan;
    if !case.journal.ledger().await.orders.contains_key(scan) {
        let (room, order) = (ordered.order.room, ordered.exhibit.clone());
        let body = Body::Ordered { scan: scan.clone(), room, order };
        case.journal.append(Some(Step::CleanRoom), body).await;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_scan_is_named_for_its_time_and_two_never_share_a_name() {
        let case: CaseId = "c-1".parse().expect("a case id");
        let now = Timestamp { seconds: 1_767_323_045, nanos: 9 };
        let one = scan_id(&case, "a", now, None).expect("a scan id");
        assert!(one.as_str().starts_with("20260102T030405Z-"), "{one}");
        let later = Timestamp { seconds: now.seconds + 1, ..now };
        for other in [
            scan_id(&case, "b", now, None),
            scan_id(&"c-2".parse().expect("a case id"), "a", now, None),
            scan_id(&case, "a", later, None),
        ] {
            assert_ne!(other.as_ref(), Some(&one));
        }
        assert!(scan_id(&case, "a", later, None) > Some(one), "sorted by time");
        assert_eq!(scan_id(&case, "a", Timestamp { seconds: i64::MAX, nanos: 0 }, None), None);
    }

    #[test]
    fn a_scan_is_named_after_the_newest_whatever_the_clocks() {
        let case: CaseId = "c-1".parse().expect("a case id");
        let now = Timestamp { seconds: 1_767_323_045, nanos: 9 };
        for (newest, expected) in [
            ("20260102T030404Z-ffffffff", "20260102T030405Z-"),
            // The same second: which of two random parts is greater is chance.
            ("20260102T030405Z-00000000", "20260102T030406Z-"),
            ("20260102T030405Z-ffffffff", "20260102T030406Z-"),
            // A writer whose clock is ahead by a year.
            ("20270228T235959Z-0123abcd", "20270301T000000Z-"),
            // No second of this name exists: what is named comes after it all the same.
            ("20261399T999999Z-0123abcd", "20270101T000000Z-"),
        ] {
            let newest: ScanId = newest.parse().expect("a scan id");
            let named = scan_id(&case, "a", now, Some(&newest)).expect("a scan id");
            assert!(named > newest && named.as_str().starts_with(expected), "{newest}: {named}");
        }
        let last: ScanId = "99991231T235959Z-0123abcd".parse().expect("a scan id");
        assert_eq!(scan_id(&case, "a", now, Some(&last)), None);
    }
}
