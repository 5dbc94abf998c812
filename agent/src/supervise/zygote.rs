//! The zygote: loads the rules once and forks inspectors.
//!
//! Purpose: a new inspector costs a fork, not a second of loading rules, so that a scan in which every
//! thousandth file kills its inspector stays fast. Touches its sockets, the compiled rules and its
//! children. Never scans, and never has a second thread: both would be lost in a fork.

use std::{
    collections::HashMap,
    fs::File,
    io,
    os::fd::{AsFd as _, OwnedFd},
    os::unix::net::UnixStream,
};

use nix::{
    poll::{PollFd, PollFlags, PollTimeout},
    sys::{
        signal::{SigSet, Signal, kill},
        signalfd::{SfdFlags, SignalFd},
        wait::{WaitPidFlag, WaitStatus, waitpid},
    },
    unistd::{ForkResult, Pid},
};

use crate::{
    inspect,
    protocol::{Channel, Filled, FromZygote, Limits, Measures, ProtocolError, ToZygote},
    rules::pack::LoadedPack,
    supervise::role,
};

/// What can end the zygote, or an inspector forked from it.
#[derive(Debug, thiserror::Error)]
pub(crate) enum ZygoteError {
    #[error(transparent)]
    Protocol(#[from] ProtocolError),
    #[error("fork or wait for an inspector")]
    Process(#[from] nix::Error),
    #[error("read the compiled rules")]
    Rules(#[source] io::Error),
    #[error("unexpected message before the configuration")]
    Order,
}

/// Runs until the supervisor closes the channel. Returns in every inspector too, when its walker
/// closes the job socket.
pub(crate) fn run(mut channel: Channel) -> Result<(), ZygoteError> {
    let Some(ToZygote::Configure { limits, measures, rules }) = channel.receive()? else {
        return Err(ZygoteError::Order);
    };
    let pack = if rules {
        let file = File::from(channel.descriptor()?);
        match LoadedPack::load_file(&file) {
            Ok(pack) => Some(pack),
            Err(error) => {
                let reason = error_chain(&error);
                channel.send(&FromZygote::Unable { reason }, &[])?;
                return Ok(());
            }
        }
    } else {
        None
    };
    if let Some(pack) = &pack {
        match trial(pack)? {
            Trial::Child => return Ok(()),
            Trial::Ended(how) => {
                let reason = format!("an inspector that made scanners of them {how}");
                channel.send(&FromZygote::Unable { reason }, &[])?;
                return Ok(());
            }
            Trial::Passed => {}
        }
    }
    channel.send(&FromZygote::Ready, &[])?;

    let mut mask = SigSet::empty();
    mask.add(Signal::SIGCHLD);
    mask.thread_block()?;
    let signals = SignalFd::with_flags(&mask, SfdFlags::SFD_CLOEXEC | SfdFlags::SFD_NONBLOCK)?;
    let mut children = Children::default();
    loop {
        let mut ready = [
            PollFd::new(channel.as_fd(), PollFlags::POLLIN),
            PollFd::new(signals.as_fd(), PollFlags::POLLIN),
        ];
        match nix::poll::poll(&mut ready, PollTimeout::NONE) {
            Err(nix::Error::EINTR) => continue,
            polled => polled?,
        };
        let [has_message, has_signal] = ready.map(|fd| fd.any().unwrap_or(true));
        if has_signal {
            while signals.read_signal()?.is_some() {}
            match children.reap(&mut channel) {
                // The supervisor has ended, and so do we.
                Err(ZygoteError::Protocol(ProtocolError::Socket { .. })) => {
                    children.end();
                    return Ok(());
                }
                reaped => reaped?,
            }
        }
        if has_message && channel.fill(false)? == Filled::Closed {
            children.end();
            return Ok(());
        }
        while let Some(message) = channel.next()? {
            match message {
                ToZygote::Configure { .. } => return Err(ZygoteError::Order),
                ToZygote::Kill { slot } => children.kill(slot),
                ToZygote::Fork { slot } => {
                    let socket = channel.descriptor()?;
                    let marker = channel.descriptor()?;
                    if let Some(pid) = fork()? {
                        children.started(slot, pid);
                        channel.send(&FromZygote::Forked { slot, pid: pid.as_raw() }, &[])?;
                        continue;
                    }
                    // In the inspector: nothing of the zygote's conversation may stay open.
                    drop((channel, signals));
                    return inspector(socket, &marker, (&limits, &measures, pack.as_ref()));
                }
            }
        }
    }
}

/// The child's pid in the zygote, `None` in the child.
#[expect(
    unsafe_code,
    reason = "forks a process that has loaded the rules; exec would load them again"
)]
fn fork() -> nix::Result<Option<Pid>> {
    // SAFETY: this process has one thread, so no lock can be held by one that the child lacks.
    match unsafe { nix::unistd::fork() }? {
        ForkResult::Parent { child } => Ok(Some(child)),
        ForkResult::Child => Ok(None),
    }
}

/// How a trial of the rules went.
enum Trial {
    /// This is the process that they were tried on.
    Child,
    Passed,
    Ended(String),
}

/// Has a process make of the rules what every inspector makes of them. Where it dies of that, so would all: no file is to
/// blame, and none would be examined. Where it falls silent, so does the zygote.
fn trial(pack: &LoadedPack) -> Result<Trial, ZygoteError> {
    let Some(pid) = fork()? else {
        role::enter("trial", None).map_err(ZygoteError::Rules)?;
        inspect::RuleScanner::make_all(pack);
        return Ok(Trial::Child);
    };
    loop {
        match waitpid(pid, None) {
            Err(nix::Error::EINTR) => {}
            Ok(WaitStatus::Exited(_, 0)) => return Ok(Trial::Passed),
            status => return Ok(Trial::Ended(ended(status?).map_or_else(String::new, |e| e.1))),
        }
    }
}

/// Who ended, and how; `None` where nobody has.
fn ended(status: WaitStatus) -> Option<(Pid, String)> {
    match status {
        WaitStatus::Exited(pid, code) => Some((pid, format!("exited with status {code}"))),
        WaitStatus::Signaled(pid, signal, _) => {
            Some((pid, format!("was killed by {}", signal.as_str())))
        }
        _ => None,
    }
}

/// What the forked process does.
fn inspector(
    socket: OwnedFd,
    marker: &OwnedFd,
    (limits, measures, pack): (&Limits, &Measures, Option<&LoadedPack>),
) -> Result<(), ZygoteError> {
    role::enter("inspector", None).map_err(ZygoteError::Rules)?;
    // Its panics are told in the answer.
    std::panic::set_hook(Box::new(|_| {}));
    let channel = Channel::new(UnixStream::from(socket), "walker");
    let settings = inspect::Settings { limits, measures, pack };
    match inspect::serve(channel, marker, settings) {
        // The walker has gone, so nobody is left to tell.
        Err(ProtocolError::Socket { .. }) => Ok(()),
        ended => Ok(ended?),
    }
}

/// The inspectors, by slot.
#[derive(Debug, Default)]
struct Children {
    slots: HashMap<Pid, u32>,
}

impl Children {
    fn started(&mut self, slot: u32, pid: Pid) {
        self.slots.insert(pid, slot);
    }

    /// Kills what runs in `slot`. Nobody but us reaps it, so the pid cannot be another's.
    fn kill(&self, slot: u32) {
        for pid in self.slots.iter().filter(|(_, s)| **s == slot).map(|(pid, _)| *pid) {
            // It may have ended by itself; its end is reported all the same.
            let _ = kill(pid, Signal::SIGKILL);
        }
    }

    /// Kills what still runs, and waits until it has ended: nothing outlives the run.
    fn end(&self) {
        for pid in self.slots.keys() {
            let _ = kill(*pid, Signal::SIGKILL);
            let _ = waitpid(*pid, None);
        }
    }

    /// Reports every inspector that has ended.
    fn reap(&mut self, channel: &mut Channel) -> Result<(), ZygoteError> {
        loop {
            let (pid, how) = match waitpid(None, Some(WaitPidFlag::WNOHANG)) {
                Ok(WaitStatus::StillAlive) | Err(nix::Error::ECHILD) => return Ok(()),
                Err(nix::Error::EINTR) => continue,
                status => match ended(status?) {
                    Some(ended) => ended,
                    None => continue,
                },
            };
            if let Some(slot) = self.slots.remove(&pid) {
                channel.send(&FromZygote::Exited { slot, pid: pid.as_raw(), how }, &[])?;
            }
        }
    }
}

/// An error and its causes in one line.
pub(crate) fn error_chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(error) = cause {
        text.push_str(": ");
        text.push_str(&error.to_string());
        cause = error.source();
    }
    text
}
