//! The steps of a response, one file each.
//!
//! Each goal looks and decides; [`engine`](crate::engine) does the rest. Talks to ports only.

pub mod clean_room;
pub mod detach;
pub mod forensic;
pub mod isolate;
pub mod notify;
pub mod protect;
pub mod record;
pub mod revoke;
pub mod snapshot;
pub mod tag;
pub mod verify;

use crate::case::Goal;

/// Every goal of a response, in the order in which release undoes them last to first.
#[must_use]
pub fn goals() -> Vec<&'static dyn Goal> {
    vec![
        &protect::Guards,
        &detach::Scaling,
        &detach::Balancers,
        &snapshot::Take,
        &snapshot::Settle,
        &snapshot::Rekey,
        &snapshot::Lock,
        &snapshot::Register,
        &isolate::Prepare,
        &isolate::Cut,
        &isolate::Addresses,
        &isolate::Acl,
        &isolate::Tidy,
        &revoke::Profile,
        &revoke::Deny,
        &revoke::Endpoint,
        &tag::Labels,
        &forensic::Share,
        &forensic::Grant,
        &forensic::Receive,
        &clean_room::UNORDERED,
    ]
}
