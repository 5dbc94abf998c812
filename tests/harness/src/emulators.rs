//! AWS without AWS: emulators of its services that the tests and the demo run against.
//!
//! | What | Stands for |
//! |---|---|
//! | [`Moto`] | EC2, Auto Scaling, load balancers, IAM, STS, S3 with Object Lock, SNS, SQS, KMS, CloudTrail, GuardDuty, CloudFormation |
//! | [`MiniStack`] | Lambda run natively, Step Functions, EventBridge, CloudTrail's LookupEvents |
//! | [`Microburst`] | A proxy before either, injecting throttling, delays, time-outs and resets |
//! | [`Router`] | One address before moto and MiniStack, for a room that knows one |
//! | [`Stack`] | A stack in moto, and the machine that it describes, as read by Python's SDK |
//! | [`World`] | A known account in moto, and its present state as read by Python's SDK, not by ours |
//!
//! Every server listens on a port of 127.0.0.1 that the kernel chose, holds its state in memory,
//! and dies with this process, however that ends, and after two hours at the latest. Installs
//! Python packages into the cache once, each checked against its hash. Never reaches AWS: the
//! Python side refuses any address but 127.0.0.1, and the servers see neither credentials nor
//! proxies of the machine.
//!
//! Clients need [`ACCESS_KEY`] and [`SECRET_KEY`], the region [`REGION`], and path-style S3.

pub(crate) mod http;
mod microburst;
mod server;
mod stack;
pub(crate) mod venv;
mod world;

pub use self::{
    microburst::{Fault, Injection, Microburst},
    server::{MiniStack, Moto, Router},
    stack::Stack,
    venv::{prepare, python},
    world::{Kind, World},
};
pub(crate) use world::script;

/// The access key in AWS's documentation. Both emulators see account 123456789012 behind it.
pub const ACCESS_KEY: &str = "AKIAIOSFODNN7EXAMPLE";

/// The secret key in AWS's documentation.
pub const SECRET_KEY: &str = "wJalrXUtnFEMI/K7MDENG/bPxRfiCYEXAMPLEKEY";

/// The region that the worlds are in.
pub const REGION: &str = "us-east-1";

#[cfg(test)]
mod tests;
