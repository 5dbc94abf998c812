//! Everything together: the real programs, an emulated account, and a clean room that boots.

mod faults;
mod response;
mod room;
mod support;
