//! Responds by the state machine: starts an execution for every instance that was named, and follows them all.
//!
//! What is shown is what `respond` shows of its own work. A signal ends the following, never the response.

use std::io::{self, IsTerminal as _};

use anyhow::Context as _;
use cleanroom_cloud::Instance;
use cleanroom_contract::{CaseId, InstanceId};
use cleanroom_controller::{
    case::{Run, Step},
    flow::{
        FlowError,
        follow::{self, Following},
    },
    progress::{Event, Progress},
};
use futures_util::{StreamExt as _, stream};
use tokio::sync::mpsc;

use super::{
    PARTIAL, Shape, Usage,
    respond::{DEPTH, Outcome, READERS, over, status, told},
    session::{Opening, Session, persist},
    signals::Signals,
    targets,
};
use crate::{
    cli::Respond,
    output::Next,
    settings,
    terminal::{Palette, Shown, Talk},
};

/// How many executions are started at a time.
const AT_ONCE: usize = 16;

/// The most characters of a reason: an execution's input has little room.
const MOST_OF_REASON: usize = 2000;

/// How many cases are named to whoever interrupts.
const NAMED: usize = 10;

/// The output of the response stack that names the state machine.
const MACHINE: &str = "ResponseMachine";

/// Starts the state machine for each of these instances, and follows it.
pub(super) async fn respond(
    opening: &Opening,
    args: &Respond,
    words: &[String],
    shape: Shape,
) -> anyhow::Result<u8> {
    possible(opening, args)?;
    let session = opening.open(None, "cleanroom").await?;
    let machine = machine(&session, &opening.global.stack).await?;
    let instances = targets::resolve(&session, words, args.targets.skip_bad).await?;
    let (progress, mut events) = Progress::channel(DEPTH);
    let policy = settings::policy(Step::ALL.into(), &args.evidence, &session.file, None);
    let run = session.run(policy, progress)?;
    let mut signals = Signals::take().context("take over signals")?;

    let stderr = io::stderr().is_terminal();
    let shown = Shown {
        events: !shape.is_human(),
        live: stderr && (shape.is_human() || !io::stdout().is_terminal()),
    };
    let ids = instances.iter().map(|i| i.id.clone()).collect();
    let palette = Palette::of(stderr, shape.no_color);
    let talk = Talk::begin(shown, ids, Step::ALL.into(), palette);
    let mut crew = Crew {
        run: &run,
        next: session.next(),
        shape,
        talk: &talk,
        at_work: Vec::new(),
        done: Vec::new(),
    };
    let asked = (args.case.as_ref(), args.targets.reason.as_deref());
    let interrupted = tokio::select! {
        () = crew.work(&machine, &instances, asked, &mut events) => None,
        status = signals.next() => Some(status),
    };
    if interrupted.is_some() {
        crew.leave(instances.len());
    }
    let done = crew.done;
    let dropped = run.progress.dropped();
    let written = talk.end(interrupted.map(|_| READERS)).context("write to standard output");
    let unwritten = written.is_err();
    told(&done, written, dropped, shape);
    let status = interrupted.unwrap_or_else(|| status(&done));
    Ok(if status == 0 && unwritten { PARTIAL } else { status })
}

/// Refuses what the state machine would not obey, before anything is started.
fn possible(opening: &Opening, args: &Respond) -> Result<(), Usage> {
    let mut flags = args.only_here();
    let global = &opening.global;
    let forensic = [
        ("--forensic-account", &global.forensic_account),
        ("--forensic-key", &global.forensic_key),
    ];
    flags.extend(forensic.iter().filter(|(_, given)| given.is_some()).map(|(flag, _)| *flag));
    if !flags.is_empty() {
        return Err(Usage(format!(
            "{} can not be given with --via aws: the state machine does every step, as the response stack is set",
            flags.join(", ")
        )));
    }
    let reason = args.targets.reason.as_deref().unwrap_or_default();
    if reason.chars().count() > MOST_OF_REASON {
        return Err(Usage(format!(
            "--reason has at most {MOST_OF_REASON} characters with --via aws"
        )));
    }
    Ok(())
}

/// The state machine's ARN, by the response stack. Its evidence must be where this program reads.
async fn machine(session: &Session, stack: &str) -> anyhow::Result<String> {
    let inventory = &session.cloud.inventory;
    let outputs = persist(|| inventory.stack_outputs(stack), |error| error.is_transient()).await;
    let outputs =
        outputs.with_context(|| format!("read the outputs of the response stack {stack}"))?;
    let bucket = outputs.get("EvidenceBucket");
    if let (Some(theirs), Some(ours)) = (bucket, &session.settings.bucket)
        && *theirs != ours.value
    {
        return Err(Usage(format!(
            "the response stack {stack} keeps its evidence in {theirs}, and {} ({}) is another bucket: leave it out, or name the stack with --stack",
            ours.value, ours.source
        ))
        .into());
    }
    outputs.get(MACHINE).filter(|arn| !arn.is_empty()).cloned().with_context(|| {
        format!("the response stack {stack} has no output {MACHINE}: deploy it, or name it with --stack; respond without --via aws needs none")
    })
}

/// What follows the executions.
struct Crew<'a> {
    run: &'a Run,
    next: &'a Next,
    shape: Shape,
    talk: &'a Talk,
    /// Executions that were started.
    at_work: Vec<Following>,
    done: Vec<Outcome>,
}

impl Crew<'_> {
    async fn work(
        &mut self,
        machine: &str,
        instances: &[Instance],
        asked: (Option<&CaseId>, Option<&str>),
        events: &mut mpsc::Receiver<Event>,
    ) {
        let run = self.run;
        let starting = instances.iter().map(|instance| async move {
            let begun = follow::begin(run, machine, &instance.id, asked).await;
            (instance.id.clone(), begun)
        });
        let starting: Vec<_> = starting.collect();
        let mut starting = stream::iter(starting).buffer_unordered(AT_ONCE);
        while let Some((id, begun)) = starting.next().await {
            match begun {
                Ok(following) => {
                    self.say(&following);
                    self.at_work.push(following);
                }
                Err(error) => self.over((id, Err(error.into()))),
            }
        }
        let pace = follow::pace(self.at_work.len());
        let all = self.at_work.clone();
        let followed = all.iter().map(|following| async move {
            let report = follow::follow(run, following, pace).await;
            (following.instance.clone(), report.map_err(FlowError::from))
        });
        let followed: Vec<_> = followed.collect();
        let mut at_work = stream::iter(followed).buffer_unordered(all.len().max(1));
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
                    self.over(ended);
                }
            }
        }
    }

    fn say(&self, following: &Following) {
        let how = if following.started.joined { "runs already" } else { "runs" };
        self.talk
            .say(format!("{}: execution {} {how}", following.instance, following.started.name));
    }

    fn over(&mut self, outcome: Outcome) {
        over(&outcome, self.next, self.shape, self.talk);
        self.done.push(outcome);
    }

    /// Tells whoever interrupts that the response goes on.
    fn leave(&self, all: usize) {
        let over = |id: &InstanceId| self.done.iter().any(|(done, _)| done == id);
        let left: Vec<_> = self.at_work.iter().filter(|f| !over(&f.instance)).collect();
        let Next(program) = self.next;
        self.talk.say(format!(
            "no longer followed; {} of {all} responses go on in AWS without this program:",
            left.len()
        ));
        for following in left.iter().take(NAMED) {
            self.talk.say(format!("  {program} status {}", following.case));
        }
        if left.len() > NAMED {
            self.talk.say(format!("  {program} status"));
        }
        let failed =
            self.done.iter().filter(|(id, _)| !self.at_work.iter().any(|f| f.instance == *id));
        let rest = all - self.at_work.len() - failed.count();
        if rest > 0 {
            self.talk.say(format!("of {rest} others nobody waited for the start: respond again"));
        }
    }
}
