//! Responds: every instance that was named, a few at a time, while the terminal shows how they stand.

use std::{
    io::{self, IsTerminal as _},
    sync::Arc,
    time::Duration,
};

use anyhow::Context as _;
use cleanroom_cloud::Instance;
use cleanroom_contract::{InstanceId, printable};
use cleanroom_controller::{
    case::{Run, Shared, Step},
    flow::{self, FlowError, Report, Request},
    progress::{Event, Progress},
    steps::isolate::NOT_CUT,
};
use futures_util::{StreamExt as _, stream};
use serde::Serialize;
use tokio::sync::mpsc;

use super::{
    FAILED, PARTIAL, Shape, Usage, complain, print, room, say,
    session::{Opening, Session},
    signals::{Ended, Signals},
    targets, via,
};
use crate::{
    cli::{Respond, Via},
    output::{self, Next},
    settings,
    terminal::{Palette, Shown, Talk},
};

/// Events that may wait for this program's own loop.
pub(super) const DEPTH: usize = 16_384;

/// Instances on the way to being contained at a time, where nobody says otherwise.
const SLOTS: u16 = 8;

/// How long a person who interrupts waits for a reader of the output.
pub(super) const READERS: Duration = Duration::from_secs(2);

/// What became of an instance.
pub(super) type Outcome = (InstanceId, Result<Report, FlowError>);

/// Contains instances and preserves their evidence.
pub(super) async fn respond(opening: &Opening, args: &Respond, shape: Shape) -> anyhow::Result<u8> {
    let words = targets::words(&args.targets)?.words;
    if args.case.is_some() && words.len() != 1 {
        let why = "--case names the case of one instance: give one instance, or no --case";
        return Err(Usage(why.to_owned()).into());
    }
    if args.via == Via::Aws {
        return via::respond(opening, args, &words, shape).await;
    }
    let steps = args.steps.chosen().map_err(Usage)?;
    // Rules that can not be read are told of before anything is changed.
    let room = room::policy(&args.room, &opening.file()?, args.steps.asks_for_a_room())?;
    // In an assumed role CloudTrail knows the session by the case.
    let session_name = args.case.as_ref().map_or("cleanroom", |case| case.as_str());
    let session = opening.open(args.evidence.kms_key.as_deref(), session_name).await?;
    let instances = targets::resolve(&session, &words, args.targets.skip_bad).await?;
    let key = session.settings.kms_key.as_ref().map(|key| key.value.clone());
    let mut policy = settings::policy(steps, &args.evidence, &session.file, key);
    policy.room = room;
    policy.room.topic = session.settings.topic.as_ref().map(|topic| topic.value.clone());
    let (progress, events) = Progress::channel(DEPTH);
    let mut run = session.run(policy, progress)?;
    run.shared = Arc::new(Shared::with_slots(usize::from(args.concurrency.unwrap_or(SLOTS))));
    let mut signals = Signals::take().context("take over signals")?;

    let stderr = io::stderr().is_terminal();
    let shown = Shown {
        events: !shape.is_human(),
        live: stderr && (shape.is_human() || !io::stdout().is_terminal()),
    };
    let ids: Vec<_> = instances.iter().map(|i| i.id.clone()).collect();
    let palette = Palette::of(stderr, shape.no_color);
    let talk = Talk::begin(shown, ids, run.policy.steps.clone(), palette);
    let all = instances.len();
    let mut done = Vec::with_capacity(all);
    let ended = {
        let crew = Crew { session: &session, run: &run, args, shape, talk: &talk };
        let work = crew.work(instances, events, &mut done);
        signals.guard(&run.shared, work, |text| talk.say(text)).await
    };
    let interrupted = match ended {
        Ended::Done(()) => None,
        Ended::Interrupted(status) => Some(status),
    };
    if interrupted.is_some() {
        talk.say(format!(
            "{} of {all} instances are through, and no interface is left open; respond again goes on where it was",
            done.len()
        ));
    }
    let dropped = run.progress.dropped();
    let written = talk.end(interrupted.map(|_| READERS)).context("write to standard output");
    let unwritten = written.is_err();
    told(&done, written, dropped, shape);
    let status = interrupted.unwrap_or_else(|| status(&done));
    Ok(if status == 0 && unwritten { PARTIAL } else { status })
}

/// A report for programs.
#[derive(Serialize)]
struct Line<'a> {
    #[serde(flatten)]
    report: &'a Report,
    whole: bool,
    not_cut: &'a [&'static str],
}

/// Everything an instance's response needs.
struct Crew<'a> {
    session: &'a Session,
    run: &'a Run,
    args: &'a Respond,
    shape: Shape,
    talk: &'a Talk,
}

impl Crew<'_> {
    async fn work(
        &self,
        instances: Vec<Instance>,
        mut events: mpsc::Receiver<Event>,
        done: &mut Vec<Outcome>,
    ) {
        let count = instances.len();
        let mut at_work = stream::iter(instances)
            .map(|instance| self.one(instance))
            // All at once: how many are contained at a time is the run's to say.
            .buffer_unordered(count.max(1));
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
                    over(&ended, self.session.next(), self.shape, self.talk);
                    done.push(ended);
                }
            }
        }
    }

    async fn one(&self, instance: Instance) -> Outcome {
        let id = instance.id.clone();
        let named = match &self.args.case {
            None if self.session.assumes() => Some(self.session.named_for(self.run, &id).await),
            _ => None,
        };
        let request = Request {
            instance,
            case: self.args.case.clone(),
            reason: self.args.targets.reason.clone(),
        };
        (id, flow::respond(named.as_ref().unwrap_or(self.run), &request).await)
    }
}

/// Shows what an instance's response came to.
pub(super) fn over((id, ended): &Outcome, next: &Next, shape: Shape, talk: &Talk) {
    let out = match ended {
        Ok(report) if shape.is_human() => {
            output::report(report, next, (shape.palette, shape.width))
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
    talk.over(id, whole, out);
}

/// An error and its causes on one line.
fn chain(error: &dyn std::error::Error) -> String {
    let causes = std::iter::successors(Some(error), |error| error.source());
    causes.map(ToString::to_string).collect::<Vec<_>>().join(": ")
}

/// What people are told in the end.
pub(super) fn told(done: &[Outcome], written: anyhow::Result<usize>, dropped: u64, shape: Shape) {
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
            let hint = super::hint::of_error(error);
            say(&format!("error: {id}: {}", printable(&chain(error))));
            if let Some(hint) = hint {
                say(&format!("hint: {}", printable(&hint)));
            }
        }
    }
}

/// The exit status: a refusal or a failure is worse than a shortfall.
pub(super) fn status(done: &[Outcome]) -> u8 {
    if done.iter().any(|(_, ended)| ended.is_err()) {
        FAILED
    } else if done.iter().any(|(_, ended)| !ended.as_ref().is_ok_and(Report::is_whole)) {
        PARTIAL
    } else {
        0
    }
}
