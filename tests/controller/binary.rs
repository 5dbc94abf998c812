//! The program itself, `cleanroom`, as people start it, against emulators over HTTP.
//!
//! What it did is judged by the account as AWS's Python SDK tells it, never by the program's own word alone. At most two
//! emulators run at a time. Each run has an environment of its own that knows nothing of this machine's AWS settings, and
//! every endpoint that it is given must be on this machine.

mod account;
mod approve;
mod deploy;
mod drill;
mod forensic;
mod interrupted;
mod lambda;
mod outages;
mod refused;
mod room;
mod station;
mod together;
mod via;
mod whole;
