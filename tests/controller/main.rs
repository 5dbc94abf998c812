//! The controller's tests: its goals and its flow against a cloud in memory, and the real binary against emulators.

mod binary;
mod brake;
mod close;
mod containment;
mod custody;
mod documents;
mod follow;
mod forensic;
mod measure;
mod preflight;
mod recover;
mod release;
mod room;
mod rules;
mod support;
mod times;
