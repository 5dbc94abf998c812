//! Evidence as bytes and as a tree.
//!
//! Purpose: [`probe`] tells what lies on an image or a device, [`view`] shows it as a directory, over a
//! [`layer`] where a journal has to be replayed first. Touches the evidence through read-only descriptors.
//! Never writes to it.

pub(crate) mod layer;
mod mapper;
mod mount;
pub(crate) mod probe;
pub(crate) mod scratch;
mod sys;
pub(crate) mod view;
