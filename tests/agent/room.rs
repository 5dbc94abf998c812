//! `run`: the agent in a clean room, against an emulator over HTTP, with folders that stand for volumes.

mod account;
mod killed;
mod machine;
mod orders;
mod refused;
mod upload;
mod waiting;
mod whole;
