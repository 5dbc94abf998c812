//! Where the agent and the controller find each other's objects in the evidence bucket.
//!
//! A clean room's role may read `cases/<case>/orders/` and write below `cases/<case>/bundles/`, and nothing else of the case.

use crate::{CaseId, ScanId};

/// The prefix of the work orders of one of a case's rooms: `cases/<case>/orders/` for the first, and
/// `cases/<case>/orders/room-<n>/` for each other. A room looks for orders below its own, so that it never sees another's.
#[must_use]
pub fn orders_prefix(case: &CaseId, room: u32) -> String {
    match room {
        0 | 1 => format!("cases/{case}/orders/"),
        n => format!("cases/{case}/orders/room-{n}/"),
    }
}

/// The key of a scan's work order: `<scan>.json` below the prefix of its room's orders.
#[must_use]
pub fn order_key(case: &CaseId, room: u32, scan: &ScanId) -> String {
    format!("{}{scan}.json", orders_prefix(case, room))
}

/// The prefix of a scan's bundle: `cases/<case>/bundles/<scan>/`. `SHA256SUMS` and its signature are written last: a
/// bundle without it is not published yet.
#[must_use]
pub fn bundle_prefix(case: &CaseId, scan: &ScanId) -> String {
    format!("cases/{case}/bundles/{scan}/")
}

/// The prefix of what the room tells of a scan: `cases/<case>/bundles/<scan>.events/`.
#[must_use]
pub fn events_prefix(case: &CaseId, scan: &ScanId) -> String {
    format!("cases/{case}/bundles/{scan}.events/")
}

/// The key of an event of a scan, from 1: `cases/<case>/bundles/<scan>.events/000001.json`.
#[must_use]
pub fn event_key(case: &CaseId, scan: &ScanId, seq: u64) -> String {
    format!("{}{seq:06}.json", events_prefix(case, scan))
}
