//! The controller's tests: its goals and its flow against a cloud in memory, and the real binary against emulators.

mod binary;
mod containment;
mod documents;
mod measure;
mod release;
mod rules;
mod support;
mod times;
