//! `run`: the agent in a clean room, against an emulator over HTTP, with folders that stand for volumes.

mod account;
mod cut;
mod killed;
mod machine;
mod orders;
mod refused;
mod spoilt;
mod taken;
mod upload;
mod waiting;
mod whole;
