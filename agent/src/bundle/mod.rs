//! The bundle: a scan's records as files that people, programs and courts read.
//!
//! Purpose: one writer per format, and the reader that says whether a bundle is as it was sealed.
//! Touches only the bundle's folder, the signing key it is given and the streams it is given. Never
//! reads evidence, a clock, the environment or the network, and never overwrites a file.

pub(crate) mod bodyfile;
mod figures;
pub(crate) mod folder;
pub(crate) mod html;
pub(crate) mod seal;
pub(crate) mod signature;
pub(crate) mod spool;
pub(crate) mod sums;
pub(crate) mod text;
mod trust;
mod verdict;
pub(crate) mod verify;
mod verify_print;
pub(crate) mod zstd_frames;

#[cfg(test)]
mod sample;
