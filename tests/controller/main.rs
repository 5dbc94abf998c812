//! The controller's tests: its goals and its flow against a cloud in memory, and the real binary against emulators.

mod approval;
mod binary;
mod brake;
mod close;
mod containment;
mod custody;
mod deploy;
mod documents;
mod drill;
mod follow;
mod forensic;
mod intake;
mod limits;
mod machine;
mod measure;
mod preflight;
mod recover;
mod release;
mod room;
mod rules;
mod runtime_api;
mod support;
mod times;
mod watch;
