//! The hardware behind an emulated account: boots what a case's stack launches, plugs in what it attaches.
//!
//! Reads the account with AWS's Python SDK and never writes to it. Evidence is plugged in only when the room has said
//! that it is safe, which on AWS is what the stack's attachments wait for.

use std::{collections::BTreeMap, path::PathBuf, time::Duration, time::Instant};

use anyhow::{Context, Result, ensure};
use serde::Deserialize;

use super::{Machine, Start, pause};
use crate::{
    emulators::{Microburst, Moto, script},
    vm::Disk,
};

/// How long the parts may take under emulation on a busy machine.
const PATIENCE: Duration = Duration::from_secs(300);

/// The time between two looks at the account. Each starts a program, on the processors that the room is emulated with.
const LOOK: Duration = Duration::from_secs(1);

/// What a case's stack has made.
#[derive(Clone, Debug, Deserialize)]
pub struct Stack {
    /// As CloudFormation names it.
    pub status: String,
    /// The types of its resources, by their logical ids.
    pub resources: BTreeMap<String, String>,
    /// The room's instance.
    #[serde(rename = "room")]
    pub instance: Option<Instance>,
    /// What was signalled, oldest first.
    pub signals: Vec<Signal>,
}

/// The room's instance.
#[derive(Clone, Debug, Deserialize)]
pub struct Instance {
    /// Its id.
    #[serde(rename = "instance")]
    pub id: String,
    /// As EC2 names it.
    pub state: String,
    /// Its user data, decoded.
    pub user_data: String,
    /// What is attached to it, its own root too.
    volumes: Vec<Attached>,
}

impl Instance {
    /// The room's copies of the evidence, in the order of their devices.
    #[must_use]
    pub fn copies(&self) -> Vec<Copy> {
        let copy = |volume: &Attached| {
            let source = volume.source.clone()?;
            Some(Copy { id: volume.id.clone(), source })
        };
        self.volumes.iter().filter_map(copy).collect()
    }
}

/// A volume as the account shows it.
#[derive(Clone, Debug, Deserialize)]
struct Attached {
    id: String,
    source: Option<String>,
}

/// A copy of a volume.
#[derive(Clone, Debug)]
pub struct Copy {
    /// Its id, which its serial number is made of.
    pub id: String,
    /// The volume that it is a copy of.
    pub source: String,
}

/// A signal for a resource of a stack.
#[derive(Clone, Debug, Deserialize)]
pub struct Signal {
    /// The resource, by its logical id.
    pub resource: String,
    /// What CloudFormation noted.
    pub reason: String,
}

/// What a case has in the account.
#[derive(Clone, Debug, Deserialize)]
pub struct Seen {
    /// Its stack.
    pub stack: Option<Stack>,
    /// Keys below `cases/<case>/`, with sizes in bytes.
    pub objects: BTreeMap<String, u64>,
}

/// Where a case's room stands.
#[derive(Debug)]
pub struct Site {
    endpoint: String,
    bucket: String,
    case: String,
    /// Images of the instance's volumes, by the volumes' ids.
    disks: BTreeMap<String, PathBuf>,
    /// The address of what stands between the room and the emulator.
    proxy: Option<String>,
}

impl Site {
    /// A site for the room of a case, with the images that the instance's volumes hold.
    #[must_use]
    pub fn new(moto: &Moto, bucket: &str, case: &str, disks: BTreeMap<String, PathBuf>) -> Self {
        let (bucket, case) = (bucket.to_owned(), case.to_owned());
        Self { endpoint: moto.url(), bucket, case, disks, proxy: None }
    }

    /// The same, with a proxy between the room and the emulator.
    #[must_use]
    pub fn behind(mut self, proxy: &Microburst) -> Self {
        self.proxy = Some(proxy.url());
        self
    }

    /// The same, with the room's calls led to wherever this address leads them.
    #[must_use]
    pub fn through(mut self, address: &str) -> Self {
        self.proxy = Some(address.to_owned());
        self
    }

    /// What the case has now.
    ///
    /// # Errors
    /// Where the emulator does not answer.
    pub fn look(&self) -> Result<Seen> {
        let stack = format!("cleanroom-{}", self.case);
        let prefix = format!("cases/{}/", self.case);
        let words = [self.endpoint.as_str(), "look", &stack, &self.bucket, &prefix];
        let seen = script("stack.py", &words.map(str::to_owned))
            .with_context(|| format!("read the room of {}", self.case))?;
        serde_json::from_value(seen).context("read what stack.py printed")
    }

    /// Waits until the case's stack has launched an instance, which is returned.
    ///
    /// # Errors
    /// Where the time is up, or `going` says that there is nothing to wait for any more.
    pub fn launched(&self, mut going: impl FnMut() -> Result<bool>) -> Result<Stack> {
        let ends = Instant::now() + PATIENCE;
        loop {
            let stack = self.look()?.stack;
            if let Some(stack) = stack.filter(|stack| stack.instance.is_some()) {
                return Ok(stack);
            }
            ensure!(going()?, "what was to launch the room of {} has ended", self.case);
            ensure!(Instant::now() < ends, "no room was launched for {}", self.case);
            pause(LOOK);
        }
    }

    /// Boots the room.
    ///
    /// # Errors
    /// Where QEMU does not start.
    pub fn boot(&self, programs: &[PathBuf], beside: &str) -> Result<Machine> {
        let port = |address: &str| {
            let port = address.rsplit(':').next().and_then(|port| port.parse().ok());
            port.with_context(|| format!("{address} has no port"))
        };
        let proxy = self.proxy.as_deref().map(port).transpose()?;
        let port = port(&self.endpoint)?;
        Machine::boot(&Start { port, proxy, programs, beside, memory_mib: 1024, cpu: 2 })
    }

    /// Waits until the room has signalled that it is safe, and plugs in the volumes, but for those in `missing`.
    ///
    /// # Errors
    /// Where the room ends or does not signal in time, or a volume's image is not known.
    pub fn attach(&self, room: &mut Machine, missing: &[&str]) -> Result<Vec<Copy>> {
        let mut looked = Instant::now();
        room.until("the room's signal that it is safe", PATIENCE, |_| {
            let signalled = looked.elapsed() >= LOOK && self.signalled("Room")?.is_some();
            if looked.elapsed() >= LOOK {
                looked = Instant::now();
            }
            Ok(signalled)
        })?;
        let instance = self.look()?.stack.and_then(|stack| stack.instance);
        let copies = instance.with_context(|| format!("{} has no room", self.case))?.copies();
        for copy in &copies {
            if !missing.contains(&copy.source.as_str()) {
                self.plug_in(room, copy)?;
            }
        }
        Ok(copies)
    }

    /// Plugs in one of the room's copies.
    ///
    /// # Errors
    /// Where QEMU refuses it, or the volume's image is not known.
    pub fn plug_in(&self, room: &mut Machine, copy: &Copy) -> Result<()> {
        let path = self.disks.get(&copy.source);
        let path = path.with_context(|| format!("no image of {} is known", copy.source))?.clone();
        // EBS gives no other sign of a copy's id than its serial number, without the hyphen.
        let serial = copy.id.replacen('-', "", 1);
        room.attach(&Disk { path, serial, readonly: false })
    }

    /// What was signalled of a resource last.
    ///
    /// # Errors
    /// Where the emulator does not answer.
    pub fn signalled(&self, resource: &str) -> Result<Option<String>> {
        let Some(stack) = self.look()?.stack else { return Ok(None) };
        let last = stack.signals.into_iter().rev().find(|signal| signal.resource == resource);
        Ok(last.map(|signal| signal.reason))
    }
}
