//! Adapters.

mod calls;
mod clients;
mod error;
mod permissions;
