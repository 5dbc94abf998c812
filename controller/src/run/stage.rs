//! Where responses are shown while they run: what they tell as they tell it, each outcome when it is there, and in the end
//! what people must know and the exit status.
//!
//! Touches the terminal and standard output. Never begins, stops or changes a response: who responds here and who follows the
//! state machine show the same.

use std::{
    collections::BTreeSet,
    io::{self, IsTerminal as _},
    time::Duration,
};

use anyhow::Context as _;
use cleanroom_contract::{InstanceId, printable};
use cleanroom_controller::{
    case::Step,
    flow::{FlowError, Report},
    progress::Event,
    steps::isolate::NOT_CUT,
};
use futures_util::{Stream, StreamExt as _};
use serde::Serialize;
use tokio::sync::mpsc;

use super::{FAILED, PARTIAL, Shape, complain, hint, print, say};
use crate::{
    output::{self, Next},
    terminal::{Palette, Shown, Talk},
};

/// Events that may wait for the program's own loop.
pub(super) const DEPTH: usize = 16_384;

/// How long a person who interrupts waits for a reader of the output.
const READERS: Duration = Duration::from_secs(2);

/// What became of an instance.
pub(super) type Outcome = (InstanceId, Result<Report, FlowError>);

/// Responses that are shown.
pub(super) struct Stage<'a> {
    talk: Talk,
    next: &'a Next,
    shape: Shape,
}

impl<'a> Stage<'a> {
    /// Begins to show the responses of these instances, in this order, by these steps.
    pub(super) fn begin(
        instances: Vec<InstanceId>,
        steps: BTreeSet<Step>,
        (next, shape): (&'a Next, Shape),
    ) -> Self {
        let stderr = io::stderr().is_terminal();
        let shown = Shown {
            events: !shape.is_human(),
            live: stderr && (shape.is_human() || !io::stdout().is_terminal()),
        };
        let palette = Palette::of(stderr, shape.no_color);
        Self { talk: Talk::begin(shown, instances, steps, palette), next, shape }
    }

    /// Tells people something.
    pub(super) fn say(&self, text: impl Into<String>) {
        self.talk.say(text);
    }

    /// How the next command is typed.
    pub(super) fn next(&self) -> &'a Next {
        self.next
    }

    /// Shows what responses tell, until the last of them has ended.
    pub(super) async fn follow(
        &self,
        events: &mut mpsc::Receiver<Event>,
        mut at_work: impl Stream<Item = Outcome> + Unpin,
        done: &mut Vec<Outcome>,
    ) {
        loop {
            tokio::select! {
                biased;
                Some(event) = events.recv() => self.talk.event(event),
                ended = at_work.next() => {
                    let Some(ended) = ended else { return };
                    // What the instance has told comes before what it came to.
                    while let Ok(event) = events.try_recv() {
                        self.talk.event(event);
                    }
                    self.over(&ended);
                    done.push(ended);
                }
            }
        }
    }

    /// Shows what an instance's response came to.
    pub(super) fn over(&self, (id, ended): &Outcome) {
        let shape = self.shape;
        let out = match ended {
            Ok(report) if shape.is_human() => {
                output::report(report, self.next, (shape.palette, shape.width))
            }
            Ok(report) => {
                let isolates = report.steps.contains(&Step::Isolate);
                let not_cut = if isolates { NOT_CUT.as_slice() } else { &[] };
                output::record("report", &Line { report, whole: report.is_whole(), not_cut })
            }
            // People read it on standard error, where errors are.
            Err(_) if shape.is_human() => String::new(),
            Err(error) => {
                let fields = serde_json::json!({ "instance": id, "error": chain(error) });
                output::record("error", &fields)
            }
        };
        let whole = ended.as_ref().is_ok_and(Report::is_whole);
        self.talk.over(id, whole, out);
    }

    /// Waits until all is written, and tells people what they must know in the end: the exit status, which is a signal's
    /// where one has ended the work. `dropped` events were never shown.
    pub(super) fn end(self, done: &[Outcome], interrupted: Option<u8>, dropped: u64) -> u8 {
        let written = self.talk.end(interrupted.map(|_| READERS));
        let written = written.context("write to standard output");
        let unwritten = written.is_err();
        told(done, written, dropped, self.shape);
        let status = interrupted.unwrap_or_else(|| status(done));
        if status == 0 && unwritten { PARTIAL } else { status }
    }
}

/// A report for programs.
#[derive(Serialize)]
struct Line<'a> {
    #[serde(flatten)]
    report: &'a Report,
    whole: bool,
    not_cut: &'a [&'static str],
}

/// An error and its causes on one line.
fn chain(error: &dyn std::error::Error) -> String {
    let causes = std::iter::successors(Some(error), |error| error.source());
    causes.map(ToString::to_string).collect::<Vec<_>>().join(": ")
}

/// What people are told in the end.
fn told(done: &[Outcome], written: anyhow::Result<usize>, dropped: u64, shape: Shape) {
    let isolated = |outcome: &Outcome| {
        outcome.1.as_ref().is_ok_and(|report| report.steps.contains(&Step::Isolate))
    };
    if shape.is_human() && done.iter().any(isolated) {
        // A reader that has gone misses nothing but this.
        drop(print(&output::not_cut(shape.width)));
    }
    match written {
        Ok(late) if late as u64 + dropped > 0 => {
            say(&format!(
                "note: {} events of progress were not shown: nobody read them in time",
                late as u64 + dropped
            ));
        }
        Ok(_) => {}
        Err(error) => complain(&error),
    }
    for (id, ended) in done {
        if let Err(error) = ended {
            // The hint is found in the error itself, which is not ours to give away.
            let hint = hint::of_error(error);
            say(&format!("error: {id}: {}", printable(&chain(error))));
            if let Some(hint) = hint {
                say(&format!("hint: {}", printable(&hint)));
            }
        }
    }
}

/// The exit status: a refusal or a failure is worse than a shortfall.
fn status(done: &[Outcome]) -> u8 {
    if done.iter().any(|(_, ended)| ended.is_err()) {
        FAILED
    } else if done.iter().any(|(_, ended)| !ended.as_ref().is_ok_and(Report::is_whole)) {
        PARTIAL
    } else {
        0
    }
}
