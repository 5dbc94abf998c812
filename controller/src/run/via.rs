//! Responds by the state machine: starts an execution for every instance that was named, and follows them all.
//!
//! What is shown is what `respond` shows of its own work. A signal ends the following, never the response.

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
    Shape, Usage,
    session::{Opening, Session, persist},
    signals::Signals,
    stage::{DEPTH, Outcome, Stage},
    targets,
};
use crate::{
    cli::{Global, Respond},
    output::Next,
    settings,
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
    possible(&opening.global, args.only_here())?;
    let reason = args.targets.reason.as_deref();
    if reason.is_some_and(|reason| reason.chars().count() > MOST_OF_REASON) {
        let why = format!("--reason has at most {MOST_OF_REASON} characters with --via aws");
        return Err(Usage(why).into());
    }
    let session = opening.open(None, "cleanroom").await?;
    let machine = machine(&session, &opening.global.stack).await?;
    let instances = targets::resolve(&session, words, args.targets.skip_bad).await?;
    let ids = instances.iter().map(|i| i.id.clone()).collect();
    let work =
        Work::Start { machine: &machine, instances: &instances, case: args.case.as_ref(), reason };
    shown(&session, work, ids, shape).await
}

/// Follows an execution that runs, whoever started it, to its end.
pub(super) async fn join(
    session: &Session,
    following: Following,
    shape: Shape,
) -> anyhow::Result<u8> {
    let ids = vec![following.instance.clone()];
    shown(session, Work::Join(following), ids, shape).await
}

/// Refuses what the state machine would not obey: these flags, and those of every command that change how the steps are done.
pub(super) fn possible(global: &Global, mut flags: Vec<&'static str>) -> Result<(), Usage> {
    let forensic = [
        ("--forensic-account", &global.forensic_account),
        ("--forensic-key", &global.forensic_key),
    ];
    flags.extend(forensic.iter().filter(|(_, given)| given.is_some()).map(|(flag, _)| *flag));
    if flags.is_empty() {
        return Ok(());
    }
    Err(Usage(format!(
        "{} can not be given with --via aws: the state machine does every step, as the response stack is set",
        flags.join(", ")
    )))
}

/// The state machine's ARN, by the response stack. Its evidence must be where this program reads.
pub(super) async fn machine(session: &Session, stack: &str) -> anyhow::Result<String> {
    known(session, stack).await?.with_context(|| {
        format!("the response stack {stack} has no output {MACHINE}: deploy it, or name it with --stack; without --via aws none is needed")
    })
}

/// The same; none where there is no such stack.
pub(super) async fn known(session: &Session, stack: &str) -> anyhow::Result<Option<String>> {
    let inventory = &session.cloud.inventory;
    let outputs = persist(|| inventory.stack_outputs(stack), |error| error.is_transient()).await;
    let mut outputs =
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
    Ok(outputs.remove(MACHINE).filter(|arn| !arn.is_empty()))
}

/// What is followed.
enum Work<'a> {
    /// Executions that are started first.
    Start {
        machine: &'a str,
        instances: &'a [Instance],
        case: Option<&'a CaseId>,
        reason: Option<&'a str>,
    },
    /// One that runs.
    Join(Following),
}

/// Does the work while it is shown, until it ends or somebody interrupts.
async fn shown(
    session: &Session,
    work: Work<'_>,
    ids: Vec<InstanceId>,
    shape: Shape,
) -> anyhow::Result<u8> {
    let (progress, mut events) = Progress::channel(DEPTH);
    let policy = settings::policy(Step::ALL.into(), &Default::default(), &session.file, None);
    let run = session.run(policy, progress)?;
    let mut signals = Signals::take().context("take over signals")?;
    let all = ids.len();
    let stage = Stage::begin(ids, Step::ALL.into(), (session.next(), shape));
    let mut crew = Crew { run: &run, stage: &stage, at_work: Vec::new(), done: Vec::new() };
    let interrupted = tokio::select! {
        () = crew.work(work, &mut events) => None,
        status = signals.next() => Some(status),
    };
    if interrupted.is_some() {
        crew.leave(all);
    }
    let done = crew.done;
    Ok(stage.end(&done, interrupted, run.progress.dropped()))
}

/// What follows the executions.
struct Crew<'a> {
    run: &'a Run,
    stage: &'a Stage<'a>,
    /// Executions that run.
    at_work: Vec<Following>,
    done: Vec<Outcome>,
}

impl Crew<'_> {
    async fn work(&mut self, work: Work<'_>, events: &mut mpsc::Receiver<Event>) {
        match work {
            Work::Start { machine, instances, case, reason } => {
                self.start(machine, instances, (case, reason)).await;
            }
            Work::Join(following) => self.begun(following),
        }
        let run = self.run;
        let pace = follow::pace(self.at_work.len());
        let followed = self.at_work.iter().map(|following| async move {
            let report = follow::follow(run, following, pace).await;
            (following.instance.clone(), report.map_err(FlowError::from))
        });
        let followed: Vec<_> = followed.collect();
        let all = followed.len().max(1);
        let at_work = stream::iter(followed).buffer_unordered(all);
        self.stage.follow(events, at_work, &mut self.done).await;
    }

    async fn start(
        &mut self,
        machine: &str,
        instances: &[Instance],
        asked: (Option<&CaseId>, Option<&str>),
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
                Ok(following) => self.begun(following),
                Err(error) => {
                    let outcome = (id, Err(error.into()));
                    self.stage.over(&outcome);
                    self.done.push(outcome);
                }
            }
        }
    }

    fn begun(&mut self, following: Following) {
        let how = if following.started.joined { "runs already" } else { "runs" };
        let name = &following.started.name;
        self.stage.say(format!("{}: execution {name} {how}", following.instance));
        self.at_work.push(following);
    }

    /// Tells whoever interrupts that the response goes on.
    fn leave(&self, all: usize) {
        let over = |id: &InstanceId| self.done.iter().any(|(done, _)| done == id);
        let left: Vec<_> = self.at_work.iter().filter(|f| !over(&f.instance)).collect();
        let Next(program) = self.stage.next();
        self.stage.say(format!(
            "no longer followed; {} of {all} responses go on in AWS without this program:",
            left.len()
        ));
        for following in left.iter().take(NAMED) {
            self.stage.say(format!("  {program} status {}", following.case));
        }
        if left.len() > NAMED {
            self.stage.say(format!("  {program} status"));
        }
        let failed =
            self.done.iter().filter(|(id, _)| !self.at_work.iter().any(|f| f.instance == *id));
        let rest = all - self.at_work.len() - failed.count();
        if rest > 0 {
            self.stage.say(format!("of {rest} others nobody waited for the start: respond again"));
        }
    }
}
