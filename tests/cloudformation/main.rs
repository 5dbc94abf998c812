//! What `cloudformation/` promises, proven on what the templates come to: no emulator enforces a policy, a route or a name.

mod machine;
mod network;
mod policy;
mod response;
mod role;
mod room;
mod script;
mod support;
