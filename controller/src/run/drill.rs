//! Rehearses: says what it will make, asks, launches, responds, tells the times, and takes everything away again.
//!
//! Whoever responds, here or in the state machine, it is this program and its caller that delete. As long as an execution of the
//! drill runs, nothing is taken away: it would make it again.

use std::time::Duration;

use anyhow::Context as _;
use clap::Parser as _;
use cleanroom_contract::{CaseId, InstanceId, printable};
use cleanroom_controller::{
    case::Run,
    flow::{
        drill::{self, Cleaned, Proposal, Remains, Times, Wanted, clean},
        follow::{self, Following},
    },
};
use tokio::time::{Instant, timeout};

use super::{
    FAILED, PARTIAL, Shape, Usage, print, respond, say,
    session::{Opening, Session},
    signals::{Ended, Signals},
    via,
};
use crate::{
    cli::{Cli, Command, Drill, Via},
    output, terminal,
};

/// How long a person who interrupts waits for the list of what there is.
const LISTING: Duration = Duration::from_secs(10);

/// Exit statuses of what a signal ended.
const INTERRUPTED: [u8; 2] = [130, 143];

/// Runs a drill, or takes away what one left.
pub(super) async fn drill(opening: &Opening, args: &Drill, shape: Shape) -> anyhow::Result<u8> {
    let in_aws = args.via == Via::Aws;
    if in_aws {
        via::possible(&opening.global, Vec::new())?;
    }
    let session = opening.open(None, "cleanroom-drill").await?;
    let run = session.quiet()?;
    let stack = &opening.global.stack;
    if let Some(drill) = &args.clean {
        let machine = via::known(&session, stack).await?;
        let at = Place { session: &session, run: &run, drill, machine, shape };
        return clean_up(&at, args).await;
    }
    let machine = if in_aws { Some(via::machine(&session, stack).await?) } else { None };
    let wanted = Wanted {
        subnet: args.subnet.clone(),
        instance_type: args.instance_type.clone(),
        image: args.image_id.as_deref().map(Into::into),
        machine: in_aws,
    };
    let name = drill::name(run.clock.now(), &run.nonce);
    let proposal = drill::propose(&run, name, wanted).await?;
    show(&proposal, shape)?;
    if !asked(args, "Launch it, respond, and take it away again?")? {
        return Ok(FAILED);
    }
    let drill = &proposal.drill;
    let at = Place { session: &session, run: &run, drill, machine, shape };
    Rehearsal { opening, at }.whole(&proposal, args.keep).await
}

/// Takes away what an earlier drill left, once nobody responds to it any more.
async fn clean_up(at: &Place<'_>, args: &Drill) -> anyhow::Result<u8> {
    // Looked at first: what is no drill's is nobody's to wait for.
    let mut remains = clean::look(at.run, at.drill).await?;
    if let Some(following) = at.running().await? {
        say(&format!(
            "execution {} still runs, and would make again what is taken away: it is followed to its end first; Ctrl-C leaves it as it is",
            following.started.name
        ));
        let status = via::join(at.session, following, at.shape).await?;
        if INTERRUPTED.contains(&status) {
            say(&format!("nothing was taken away; to go on: {}", at.command()));
            return Ok(status);
        }
        remains = clean::look(at.run, at.drill).await?;
    }
    show_remains(at.drill, &remains, at.shape)?;
    let question = format!("Take away what {} left?", at.drill);
    if !remains.removes.is_empty() && !asked(args, &question)? {
        return Ok(FAILED);
    }
    let mut signals = Signals::take().context("take over signals")?;
    take_away(at, remains, &mut signals).await
}

/// Whether a person agrees, or has agreed before.
fn asked(args: &Drill, question: &str) -> anyhow::Result<bool> {
    if args.yes {
        return Ok(true);
    }
    if !terminal::can_ask() {
        let why = "there is no terminal to ask on: give --yes; nothing was changed";
        return Err(Usage(why.to_owned()).into());
    }
    let agreed = terminal::ask(question);
    if !agreed {
        say("nothing was changed");
    }
    Ok(agreed)
}

/// A drill, and where it is looked after.
struct Place<'a> {
    session: &'a Session,
    run: &'a Run,
    drill: &'a CaseId,
    /// The state machine, where executions of the drill may run.
    machine: Option<String>,
    shape: Shape,
}

impl Place<'_> {
    /// The execution of the drill that still runs.
    async fn running(&self) -> anyhow::Result<Option<Following>> {
        let Some(machine) = &self.machine else { return Ok(None) };
        let running = follow::running(self.run, machine, self.drill).await;
        running.with_context(|| format!("look whether the response to {} goes on", self.drill))
    }

    /// The command that goes on.
    fn command(&self) -> String {
        let output::Next(program) = self.session.next();
        format!("{program} drill --clean {}", self.drill)
    }

    /// Lists what a drill that did not come to its end has made so far.
    async fn left_behind(&self) {
        match timeout(LISTING, clean::look(self.run, self.drill)).await {
            Ok(Ok(remains)) if remains.removes.is_empty() => {
                say("nothing of the drill is there yet")
            }
            Ok(Ok(remains)) => {
                for what in &remains.removes {
                    say(&format!("there is: {}", printable(what)));
                }
            }
            Ok(Err(error)) => say(&format!("what there is could not be read: {error}")),
            Err(_) => say("what there is could not be read in time"),
        }
        if self.machine.is_some() {
            say(
                "an execution of it, once started, goes on in AWS and makes more: the next command waits for its end",
            );
        }
        say(&format!("to take it away: {}", self.command()));
    }
}

/// A drill at work.
struct Rehearsal<'a> {
    opening: &'a Opening,
    at: Place<'a>,
}

impl Rehearsal<'_> {
    /// Launches, responds, tells the times, and cleans up on the word that was given for all of it.
    async fn whole(&self, proposal: &Proposal, keep: bool) -> anyhow::Result<u8> {
        let at = &self.at;
        let mut signals = Signals::take().context("take over signals")?;
        let began = Instant::now();
        let launch = drill::launch(at.run, proposal);
        let instance = match signals.guard(&at.run.shared, launch, say).await {
            Ended::Done(Ok(instance)) => instance,
            Ended::Done(Err(error)) => {
                at.left_behind().await;
                return Err(error.into());
            }
            Ended::Interrupted(status) => {
                at.left_behind().await;
                return Ok(status);
            }
        };
        let launched = began.elapsed().as_secs_f64();
        say(&format!("{} runs after {launched:.1} s; the response begins", instance.id));
        let began = at.run.clock.now();
        let status = match self.respond(&instance.id).await {
            Ok(status) => status,
            Err(error) => {
                at.left_behind().await;
                return Err(error);
            }
        };
        if INTERRUPTED.contains(&status) {
            at.left_behind().await;
            return Ok(status);
        }
        match drill::times(at.run, at.drill, (&instance.id, launched, began)).await {
            Ok(times) => print(&times_text(&times, at.shape))?,
            Err(error) => say(&format!("note: the times are not known: {error}")),
        }
        if keep {
            say(&format!("kept; to take it away: {}", at.command()));
            return Ok(status);
        }
        let remains = match self.at_rest().await {
            Ok(remains) => remains,
            Err(error) => {
                say(&format!("nothing was taken away; to try again: {}", at.command()));
                return Err(error);
            }
        };
        let gone = take_away(at, remains, &mut signals).await?;
        Ok(if gone == 0 { status } else { gone })
    }

    /// What is left, once nobody responds to it any more: whoever could not follow an execution does not know that it ended.
    async fn at_rest(&self) -> anyhow::Result<Remains> {
        if let Some(following) = self.at.running().await? {
            anyhow::bail!("execution {} still runs", following.started.name);
        }
        Ok(clean::look(self.at.run, self.at.drill).await?)
    }

    /// Responds to the instance as to any other: by the very command.
    async fn respond(&self, instance: &InstanceId) -> anyhow::Result<u8> {
        let (drill, shape) = (self.at.drill, self.at.shape);
        let reason = drill::reason(drill);
        let via = if self.at.machine.is_some() { "aws" } else { "here" };
        let words = ["respond", instance.as_str(), "--case", drill.as_str()];
        let words = words.into_iter().chain(["--reason", &reason, "--via", via]);
        let typed = Cli::try_parse_from(std::iter::once("cleanroom").chain(words));
        let Command::Respond(args) = typed.context("respond")?.command else {
            anyhow::bail!("respond is no command any more")
        };
        // Times count from here, not from the process's beginning, which has waited for a person and for the launch.
        let opening = Opening { global: self.opening.global.clone(), started: Instant::now() };
        respond::respond(&opening, &args, shape).await
    }
}

fn show(proposal: &Proposal, shape: Shape) -> anyhow::Result<()> {
    if !shape.is_human() {
        return print(&output::record("proposal", proposal));
    }
    let mut text = format!("{}\n", proposal.drill);
    let fields =
        [("makes", &proposal.makes), ("costs", &proposal.costs), ("needs", &proposal.needs)];
    for (name, lines) in fields {
        for line in lines {
            text.push_str(&output::field(name, &printable(line), shape.width));
        }
    }
    let beside = "beside what respond needs; the policy is controller/drill-policy.json";
    text.push_str(&output::field("", beside, shape.width));
    let after =
        "everything but the custody log, the record and the bundle is taken away afterwards";
    text.push_str(&output::field("then", after, shape.width));
    print(&text)
}

fn show_remains(drill: &CaseId, remains: &Remains, shape: Shape) -> anyhow::Result<()> {
    if !shape.is_human() {
        let fields = serde_json::json!({
            "drill": drill,
            "removes": remains.removes,
            "keeps": remains.keeps,
        });
        return print(&output::record("proposal", &fields));
    }
    let mut text = String::new();
    for (name, lines) in [("remove", &remains.removes), ("keep", &remains.keeps)] {
        for line in lines {
            text.push_str(&output::field(name, &printable(line), shape.width));
        }
    }
    if remains.removes.is_empty() {
        text.push_str(&output::field("remove", "nothing: it is all gone", shape.width));
    }
    print(&text)
}

fn times_text(times: &Times, shape: Shape) -> String {
    if !shape.is_human() {
        return output::record("times", times);
    }
    let after = |seconds: Option<f64>, without: &str| match seconds {
        Some(seconds) => format!("{seconds:.2} s after the start of the response"),
        None => without.to_owned(),
    };
    let mut text = format!("\n{} on {}\n", times.drill, times.instance);
    for (name, value) in [
        ("launched", format!("{:.2} s", times.launched)),
        ("contained", after(times.contained, "NO")),
        ("preserved", after(times.preserved, "NO")),
        ("reported", after(times.reported, "no: there is no clean room, or it made no report")),
    ] {
        text.push_str(&output::field(name, &value, shape.width));
    }
    text
}

/// Takes away what is left, and tells what stays.
async fn take_away(at: &Place<'_>, remains: Remains, signals: &mut Signals) -> anyhow::Result<u8> {
    let (run, again) = (at.run, at.command());
    // A person may have thought long about the question.
    if let Some(following) = at.running().await? {
        let name = &following.started.name;
        say(&format!("execution {name} runs again: nothing was taken away; to go on: {again}"));
        return Ok(FAILED);
    }
    let cleaned = match signals.guard(&run.shared, clean::clean(run, remains), say).await {
        Ended::Done(cleaned) => cleaned.inspect_err(|_| say(&format!("to go on: {again}")))?,
        Ended::Interrupted(status) => {
            say(&format!("not all is taken away; to go on: {again}"));
            return Ok(status);
        }
    };
    let output::Next(program) = at.session.next();
    let next = if cleaned.whole { format!("{program} close {}", at.drill) } else { again };
    print(&cleaned_text(&cleaned, &next, at.shape))?;
    Ok(if cleaned.whole { 0 } else { PARTIAL })
}

fn cleaned_text(cleaned: &Cleaned, next: &str, shape: Shape) -> String {
    if !shape.is_human() {
        return output::record("cleaned", cleaned);
    }
    let mut text = String::new();
    let mut line = |name: &str, what: &str| {
        text.push_str(&output::field(name, &printable(what), shape.width));
    };
    for what in &cleaned.removed {
        line("removed", what);
    }
    for what in &cleaned.shortfalls {
        line("NOT DONE", what);
    }
    for what in &cleaned.kept {
        line("kept", what);
    }
    for left in &cleaned.left {
        line("stays", &left.to_string());
    }
    line("next", next);
    text
}
