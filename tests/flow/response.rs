//! Alerts in, cases out: the real program in the real stack's functions, the real state machines, the real topics.
//!
//! Two accounts. In the calm one nothing fails but the world. In the rough one every call of a function passes a proxy, whichever
//! service it is to, that throttles, delays and resets some of them, and functions fail where a test says so.

mod alerts;
mod faults;
mod room;
mod scene;
