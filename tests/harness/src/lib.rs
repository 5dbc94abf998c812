//! What Cleanroom's tests stand on: disk images built without mounting, planted evidence, damage
//! done on purpose, a virtual machine for images that must not touch this kernel, the demo and the
//! self-test.
//!
//! Test tooling only: nothing that ships depends on it. It installs packages, starts programs and
//! writes files, always in folders it was given or in its own cache.
#![allow(
    clippy::print_stdout,
    clippy::print_stderr,
    reason = "the demo and the self-test are commands for people: what they print is their product"
)]

pub mod asl;
pub mod bench;
pub mod crowd;
pub mod damage;
pub mod demo;
pub mod disk;
pub mod elf;
pub mod emulators;
pub mod images;
pub mod incident;
pub mod kernel;
mod lints;
mod memory;
pub mod numbers;
pub mod release;
pub mod response;
pub mod room;
pub mod selftest;
pub mod template;
pub mod tools;
pub mod tree;
pub mod vm;
