//! Role processes: this executable, started again to do one job.
//!
//! Purpose: start a role with a socket as its standard input, and, inside the role, make sure that it
//! ends with the process that started it. Touches processes only. Never gives a role the cloud's credentials.

use std::{
    ffi::OsString,
    io::{self, Write as _},
    os::{
        fd::OwnedFd,
        unix::{ffi::OsStrExt as _, net::UnixStream},
    },
    process::Stdio,
};

use cleanroom_contract::printable;
use tokio::io::unix::AsyncFd;

use crate::protocol::{Channel, Filled, ProtocolError};

/// The roles that are processes of their own. Inspectors are forked, not started.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub(crate) enum Role {
    /// Reads partition tables and superblocks, answers, ends.
    Probe,
    /// Walks views and judges.
    Walker,
    /// Loads the rules and forks inspectors.
    Zygote,
    /// Serves evidence that takes writes, and keeps them elsewhere.
    Overlay,
}

impl Role {
    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Probe => "probe",
            Self::Walker => "walker",
            Self::Zygote => "zygote",
            Self::Overlay => "overlay",
        }
    }
}

/// A role that runs, and the supervisor's end of the conversation with it.
#[derive(Debug)]
pub(crate) struct Peer {
    pub child: tokio::process::Child,
    channel: AsyncFd<Channel>,
}

impl Peer {
    /// Starts a role. Must be called on the main thread: the role dies with the thread that started
    /// it (prctl(2), `PR_SET_PDEATHSIG`).
    pub(crate) fn start(role: Role) -> io::Result<Self> {
        let (ours, theirs) = UnixStream::pair()?;
        let mut command = tokio::process::Command::new("/proc/self/exe");
        command
            .arg0("cleanroom-agent")
            .args(["role", role.name(), "--parent", &std::process::id().to_string()])
            .stdin(Stdio::from(OwnedFd::from(theirs)))
            .stdout(Stdio::null())
            // A terminal's Ctrl-C is for the supervisor, who tells the others.
            .process_group(0)
            .kill_on_drop(true);
        for name in cloud_variables() {
            command.env_remove(name);
        }
        let child = command.spawn()?;
        Ok(Self { child, channel: register(Channel::new(ours, role.name()))? })
    }

    pub(crate) fn channel(&mut self) -> &mut Channel {
        self.channel.get_mut()
    }

    /// The next message; `None` where the role has ended. Safe to drop and call again.
    pub(crate) async fn receive<T: serde::de::DeserializeOwned>(
        &mut self,
    ) -> Result<Option<T>, ProtocolError> {
        loop {
            if let Some(message) = self.channel.get_mut().next()? {
                return Ok(Some(message));
            }
            let mut ready = self
                .channel
                .readable_mut()
                .await
                .map_err(|source| ProtocolError::Socket { peer: "role", source })?;
            match ready.get_inner_mut().fill(false)? {
                Filled::Some => {}
                Filled::Nothing => ready.clear_ready(),
                Filled::Closed => return Ok(None),
            }
        }
    }

    /// Ends the role and waits until it has ended.
    pub(crate) async fn end(mut self) {
        let patience = std::time::Duration::from_secs(2);
        drop(self.channel);
        if tokio::time::timeout(patience, self.child.wait()).await.is_err() {
            // One that waits for a dying disk ends when the disk answers; we do not wait with it.
            drop(tokio::time::timeout(patience, self.child.kill()).await);
        }
    }
}

/// The variables of this process that only the supervisor may know: keys, and where the cloud is.
pub(crate) fn cloud_variables() -> impl Iterator<Item = OsString> {
    std::env::vars_os().map(|(name, _)| name).filter(|name| name.as_bytes().starts_with(b"AWS_"))
}

/// Watches a channel for what arrives.
#[expect(
    unsafe_code,
    reason = "the runtime's only way to watch a socket that stays in blocking mode"
)]
fn register(channel: Channel) -> io::Result<AsyncFd<Channel>> {
    // SAFETY: a channel owns its socket from beginning to end and never exchanges it for another.
    Ok(unsafe { AsyncFd::register(channel) }?)
}

/// What a role does first: it dies with its parent, is the first choice when memory runs out, and
/// says its panics in one safe line.
pub(crate) fn enter(name: &'static str, parent: Option<u32>) -> io::Result<()> {
    nix::sys::prctl::set_pdeathsig(nix::sys::signal::Signal::SIGKILL)?;
    if parent.is_some_and(|parent| std::os::unix::process::parent_id() != parent) {
        return Err(io::Error::other("the supervisor has ended"));
    }
    let short = std::ffi::CString::new(format!("cr-{name}")).map_err(io::Error::other)?;
    nix::sys::prctl::set_name(&short)?;
    // Not every system lets a process do so; it is a preference.
    drop(std::fs::write("/proc/self/oom_score_adj", "1000"));
    std::panic::set_hook(Box::new(move |panic| {
        let line = printable(&panic.to_string());
        drop(writeln!(io::stderr(), "cleanroom-agent: {name}: {line}"));
    }));
    Ok(())
}
