//! Contains an EC2 instance and preserves its evidence.
//!
//! Purpose: the steps of a response and their order, against the ports of `cleanroom-cloud`. One implementation of
//! each step, for every door to it. Touches the cloud through the ports only, and this machine's disk
//! in the spool only; [`machine`] is for the programs. Never names an SDK's type, and never deletes what is evidence.

pub mod alert;
pub mod brake;
pub mod case;
pub mod claim;
pub mod engine;
pub mod execution;
pub mod flow;
pub mod forensic;
pub mod intake;
pub mod journal;
pub mod machine;
pub mod original;
pub mod progress;
pub mod room;
pub mod steps;

/// What people have set in a file. Its text is read here; where it comes from, and what goes before it, is each program's.
pub mod settings {
    mod brake;
    mod file;

    pub use file::{BoundsInSeconds, File, MAX_BYTES, Malformed, Room, parse};
}
