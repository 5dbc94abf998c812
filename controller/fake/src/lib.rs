//! A cloud in memory behind the controller's ports: for tests and benchmarks.
//!
//! Purpose: a stateful [`World`] that behaves as AWS does where the controller's rules depend on it, behind
//! every port of `cleanroom-cloud`, with latency, faults and a log of every call. It stands at the ports,
//! above the adapter's own retries: a fault here is what remains after them.
//!
//! Touches memory and tokio's clock, which tests pause. Never the network, a file or the real time of day.

mod build;
mod deployment;
mod facts;
mod faults;
mod forensic;
mod gate;
mod hands;
mod inventory;
mod later;
mod machines;
mod posture;
mod problem;
mod room;
mod store;
mod world;

#[cfg(test)]
mod tests;

pub use build::{ACCOUNT, AWS_MANAGED_KEY, CASE_KEY, INSTANCE, REGION, SIBLING, TOPIC};
pub use deployment::ChangeSetOf;
pub use faults::{At, Fault, Storm};
pub use forensic::{FORENSIC_ACCOUNT, FORENSIC_CALLER, FORENSIC_KEY, FORENSIC_ROLE, Granted};
pub use gate::{CALLER, CallRecord, FakeCloud, Outcome};
pub use machines::{Letter, Ran, Waits};
pub use room::{Built, RoomEnds, RoomScript, agent_key};
pub use store::{Bucket, Version};
pub use world::{
    BEGINNING, Card, Limits, Machine, OpenSpan, Role, Scaling, Setup, Targets, Times, TrailEvent,
    World,
};
