//! What Ctrl-C and SIGTERM do to work that must not be left half done.
//!
//! The first one ends the work, but for what may have an interface open: that ends closed before the process does. A
//! second one changes nothing. A terminal that hangs up ends nothing at all: a lost connection is no reason to stop a
//! containment. SIGKILL is what is left, and the next run closes what that leaves open.

use std::{io, pin::pin};

use cleanroom_controller::case::Shared;
use tokio::signal::unix::{Signal, SignalKind, signal};

/// How work ended.
pub(super) enum Ended<T> {
    /// By itself.
    Done(T),
    /// By a signal; the exit status that tells of it.
    Interrupted(u8),
}

/// The signals that end work.
pub(super) struct Signals {
    interrupt: Signal,
    terminate: Signal,
    /// Held, so that a hang-up does not end the process.
    _hangup: Signal,
}

impl Signals {
    /// Takes the signals over from the system.
    ///
    /// # Errors
    /// What the system said.
    pub(super) fn take() -> io::Result<Self> {
        Ok(Self {
            interrupt: signal(SignalKind::interrupt())?,
            terminate: signal(SignalKind::terminate())?,
            _hangup: signal(SignalKind::hangup())?,
        })
    }

    /// The next signal, as the exit status that tells of it.
    pub(super) async fn next(&mut self) -> u8 {
        tokio::select! {
            _ = self.interrupt.recv() => 130,
            _ = self.terminate.recv() => 143,
        }
    }

    /// Works until the end, or until a signal. Either way no interface is left open behind it.
    pub(super) async fn guard<T>(
        &mut self,
        shared: &Shared,
        work: impl Future<Output = T>,
        say: impl Fn(&str),
    ) -> Ended<T> {
        let ended = {
            let mut work = pin!(work);
            tokio::select! {
                ended = &mut work => Ended::Done(ended),
                status = self.next() => Ended::Interrupted(status),
            }
        };
        if matches!(ended, Ended::Interrupted(_)) {
            say("interrupted: nothing new is begun; closing what is open…");
            // Who still waits for a turn to open an interface gets none.
            shared.open.close();
        }
        let mut closing = pin!(shared.finish_units());
        loop {
            tokio::select! {
                () = &mut closing => return ended,
                _ = self.next() => say(
                    "still closing: an interface may be open to all traffic, and stays so if this ends now; it takes a moment",
                ),
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::{
        sync::{Arc, Mutex},
        time::Duration,
    };

    use super::*;

    fn raise(signal: rustix::process::Signal) {
        rustix::process::kill_process(rustix::process::getpid(), signal)
            .expect("a signal to oneself");
    }

    #[tokio::test]
    async fn a_signal_ends_the_work_and_not_what_is_open() {
        let mut signals = Signals::take().expect("signals");
        let shared = Shared::new();
        let closed = Arc::new(Mutex::new(Vec::new()));
        let (said, unit) = (Arc::clone(&closed), Arc::clone(&closed));
        let work = async {
            let ends = async move {
                // Ends a while after the second signal.
                tokio::time::sleep(Duration::from_millis(200)).await;
                unit.lock().expect("a lock").push("closed".to_owned());
            };
            shared.units.lock().expect("a lock").spawn(ends);
            raise(rustix::process::Signal::TERM);
            tokio::time::sleep(Duration::from_millis(50)).await;
            std::future::pending::<()>().await;
        };
        let say = |text: &str| {
            said.lock().expect("a lock").push(text.chars().take(11).collect());
            if text.starts_with("interrupted") {
                raise(rustix::process::Signal::INT);
            }
        };
        let ended = signals.guard(&shared, work, say).await;
        assert!(matches!(ended, Ended::Interrupted(143)));
        assert_eq!(*closed.lock().expect("a lock"), ["interrupted", "still closi", "closed"]);
        assert!(shared.open.is_closed());

        // Signals are the whole process's, so this is the same test: a terminal that hangs up ends nothing.
        let work = async {
            raise(rustix::process::Signal::HUP);
            tokio::time::sleep(Duration::from_millis(20)).await;
            7
        };
        assert!(matches!(signals.guard(&Shared::new(), work, |_| ()).await, Ended::Done(7)));
    }
}
