//! Evidence as bytes and as a tree.
//!
//! Purpose: [`probe`] tells what lies on an image or a device, [`view`] shows it as a directory. Touches
//! the evidence through read-only descriptors. Never writes to it.

pub(crate) mod probe;
mod sys;
pub(crate) mod view;
