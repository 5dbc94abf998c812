//! The controller's tests: its goals and its flow against a cloud in memory, and the real binary against emulators.

mod containment;
mod support;
