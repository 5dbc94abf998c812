//! Reaches goals: looks, says what it will do, does it, looks again.
//!
//! Purpose: the one way in which a goal is worked at, for every goal and in both directions. Changes go through
//! [`Hands`](cleanroom_cloud::Hands) and are announced in the custody log before and told after. Never undoes: an error ends in a shortfall that
//! says what is not done.

use std::{future::Future, time::Duration};

use cleanroom_cloud::{Change, CloudError, ErrorKind, Made};
use futures_util::future::join_all;
use tokio::time::Instant;

use crate::{
    case::{Assessment, Case, Goal, History, Shortfall},
    journal::event::{Body, Outcome},
    progress::Event,
};

/// How long one attempt at a read may take before it is made again.
const ATTEMPT: Duration = Duration::from_secs(5);

/// A read, made again as long as that may help. What went wrong last, where the bound passes.
pub(crate) async fn again<T, F>(bound: Duration, read: impl Fn() -> F) -> Result<T, String>
where
    F: Future<Output = cleanroom_cloud::Result<T>>,
{
    let ends = Instant::now() + bound;
    let mut pause = Duration::from_millis(100);
    loop {
        let why = match tokio::time::timeout(ATTEMPT.min(bound), read()).await {
            Ok(Ok(value)) => return Ok(value),
            Ok(Err(error)) if !error.is_transient() => return Err(error.to_string()),
            Ok(Err(error)) => error.to_string(),
            Err(_) => "no answer in time".to_owned(),
        };
        if Instant::now() + pause >= ends {
            return Err(why);
        }
        tokio::time::sleep(pause).await;
        pause = (pause * 2).min(Duration::from_secs(2));
    }
}

/// In which direction a goal is worked at.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Direction {
    /// Towards containment.
    Respond,
    /// Towards what was recorded.
    Release,
}

/// How a goal ended.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Ended {
    /// Whether a look found nothing left to do.
    pub reached: bool,
    /// Whether nothing was out of reach either.
    pub whole: bool,
    /// When the last look ended: the read-back, where the goal is reached.
    pub seen: Instant,
    /// What was carried out by this run.
    pub outcomes: Vec<Outcome>,
}

/// How many looks may find work to do that is refused or undone again and again.
const MOST_ROUNDS: usize = 24;

/// How many times what may pass by itself is met before it counts as a refusal: about twenty seconds.
const MOST_MISSES: u32 = 7;

/// Whether an error may pass although the service calls it a refusal (EC2 and IAM user guides, "eventual consistency").
fn may_pass(error: &CloudError) -> bool {
    const CODES: [&str; 5] = [
        "DependencyViolation",
        "IncorrectState",
        "IncorrectInstanceState",
        "ConcurrentModification",
        "EntityTemporarilyUnmodifiable",
    ];
    matches!(error.kind, ErrorKind::NotFound | ErrorKind::Conflict)
        || CODES.iter().any(|code| error.code.starts_with(code))
}

/// Works at a goal until a look finds nothing left to do, nothing more can be done, or its bound has passed.
pub async fn ensure(case: &Case, goal: &dyn Goal, direction: Direction) -> Ended {
    let instance = &case.scene.instance;
    let step = goal.step();
    case.progress.tell(Event::Started { instance: instance.clone(), step, goal: goal.name() });
    let ended = work(case, goal, direction).await;
    let reached = ended.reached;
    case.progress.tell(Event::Ended {
        instance: instance.clone(),
        step,
        goal: goal.name(),
        reached,
    });
    ended
}

async fn look(
    case: &Case,
    goal: &dyn Goal,
    direction: Direction,
    history: &History,
) -> cleanroom_cloud::Result<Assessment> {
    match direction {
        Direction::Respond => goal.look(&case.scene, history).await,
        Direction::Release => goal.look_back(&case.scene, history).await,
    }
}

/// What ends the work at a goal before it is reached.
enum Stopped {
    /// It is not reached, for this reason.
    GivenUp(String),
    /// This only takes its time, and is not waited for.
    UnderWay(String),
}

/// One goal being worked at.
struct Work<'a> {
    case: &'a Case,
    goal: &'a dyn Goal,
    direction: Direction,
    history: History,
    outcomes: Vec<Outcome>,
    ends: Instant,
    pause: Duration,
    whole: bool,
    seen: Instant,
    /// Looks that still wait for something to show whose making was never confirmed.
    settle: u32,
}

impl Work<'_> {
    fn label(&self) -> String {
        let back = if self.direction == Direction::Release { "release:" } else { "" };
        format!("{back}{}:{}", self.goal.step(), self.goal.name())
    }

    /// Waits a little longer each time, but not past the end.
    async fn rest(&mut self) -> Result<(), Stopped> {
        if Instant::now() >= self.ends {
            return Err(Stopped::GivenUp("the time for it has passed".to_owned()));
        }
        tokio::time::sleep_until((Instant::now() + self.pause).min(self.ends)).await;
        self.pause = (self.pause * 2).min(self.case.bounds.poll);
        Ok(())
    }

    /// A look that is tried again as long as trying may help.
    async fn look(&mut self) -> Result<Assessment, Stopped> {
        loop {
            let looking = look(self.case, self.goal, self.direction, &self.history);
            let why = match tokio::time::timeout(self.case.bounds.call, looking).await {
                Ok(Ok(assessment)) => return Ok(assessment),
                Ok(Err(error)) if !error.is_transient() => {
                    return Err(Stopped::GivenUp(error.to_string()));
                }
                Ok(Err(error)) => error.to_string(),
                Err(_) => "no answer in time".to_owned(),
            };
            self.rest().await.map_err(|_| Stopped::GivenUp(why))?;
        }
    }

    /// Carries out changes, all at once.
    async fn act(&mut self, changes: Vec<Change>) -> Result<(), Stopped> {
        let step = Some(self.goal.step());
        let intent = Body::Intent { goal: self.label(), changes: changes.clone() };
        self.case.journal.append(step, intent).await;
        let applying = changes.iter().map(|change| apply(self.case, change));
        let results = join_all(applying).await;
        let mut outcomes = Vec::with_capacity(changes.len());
        let (mut transient, mut passing) = (false, false);
        for (change, result) in changes.into_iter().zip(results) {
            self.tell(&change, result.as_ref().err());
            transient |= result.as_ref().is_err_and(CloudError::is_transient);
            passing |= result.as_ref().is_err_and(may_pass);
            // EC2 shows what was made a moment later: a look that misses it must not make a second one.
            if change.creates() && result.as_ref().map_or_else(CloudError::is_ambiguous, |_| true) {
                self.settle = 5;
            }
            outcomes.push(outcome(change, result, &mut self.history));
        }
        self.outcomes.extend(outcomes.iter().cloned());
        // Nothing waits for the result to be in the log: the next look tells what the world is like.
        self.case.journal.note(step, Body::Done { goal: self.label(), outcomes });
        if transient || passing {
            self.rest().await?;
        } else {
            self.pause = Duration::from_millis(200);
        }
        Ok(())
    }

    fn tell(&self, change: &Change, error: Option<&CloudError>) {
        self.case.progress.tell(Event::Change {
            instance: self.case.scene.instance.clone(),
            step: self.goal.step(),
            change: change.to_string(),
            operation: change.operation(),
            resource: change.resource(),
            error: error.map(ToString::to_string),
        });
    }

    /// Tells that something takes its time, and waits for the next look.
    async fn wait(&mut self, what: &str, bound: Duration, began: Instant) -> Result<(), Stopped> {
        if self.case.bounds.wait.is_some_and(|most| began.elapsed() >= most) {
            return Err(Stopped::UnderWay(what.to_owned()));
        }
        // What takes its time has a bound of its own, sized by the work.
        self.ends = self.ends.max(began + bound);
        self.case.progress.tell(Event::Waiting {
            instance: self.case.scene.instance.clone(),
            step: self.goal.step(),
            what: what.to_owned(),
        });
        self.rest()
            .await
            .map_err(|_| Stopped::GivenUp(format!("{what} took longer than {bound:?}")))
    }

    async fn run(&mut self) -> Result<(), Stopped> {
        let began = Instant::now();
        let mut rounds = 0;
        loop {
            let mut seen = self.look().await?;
            self.seen = Instant::now();
            for note in std::mem::take(&mut seen.notes) {
                self.case.note(note);
            }
            // What was refused for good is not asked for again.
            let (refused, now): (Vec<_>, Vec<_>) = std::mem::take(&mut seen.now)
                .into_iter()
                .partition(|change| self.history.refusal(|c| c == change).is_some());
            let looking_for_made = self.settle > 0 && now.iter().any(Change::creates);
            if now.is_empty() {
                if let Some((what, bound)) = seen.waiting.take() {
                    self.wait(&what, bound, began).await?;
                    continue;
                }
                self.whole = seen.short.is_empty();
                for shortfall in seen.short {
                    self.case.short(shortfall);
                }
                return self.reached(&refused).await;
            }
            if looking_for_made {
                // It may have been made, and not show yet: look for a bounded time before making another.
                self.settle -= 1;
                self.rest().await?;
                continue;
            }
            rounds += 1;
            if rounds > MOST_ROUNDS {
                return Err(Stopped::GivenUp("it is undone as fast as it is done".to_owned()));
            }
            self.act(now).await?;
        }
    }

    async fn reached(&self, refused: &[Change]) -> Result<(), Stopped> {
        if let Some(change) = refused.first() {
            let why = self.history.refusal(|c| c == change).unwrap_or_default();
            return Err(Stopped::GivenUp(format!("{change} on {}: {why}", change.resource())));
        }
        if !self.outcomes.is_empty() {
            let body = Body::Reached { goal: self.label() };
            self.case.journal.note(Some(self.goal.step()), body);
        }
        Ok(())
    }
}

/// One change, within its bound. One that never answers may have been done.
async fn apply(case: &Case, change: &Change) -> cleanroom_cloud::Result<Made> {
    // What can not be repeated is worth more patience than what can.
    let bound = case.bounds.call * if change.creates() { 3 } else { 1 };
    tokio::time::timeout(bound, case.hands.apply(change)).await.unwrap_or_else(|_| {
        Err(CloudError {
            operation: change.operation().to_owned(),
            resource: change.resource(),
            kind: ErrorKind::Ambiguous,
            code: "NoAnswer".to_owned(),
            message: format!("no answer within {bound:?}"),
            request: None,
        })
    })
}

fn outcome(
    change: Change,
    result: cleanroom_cloud::Result<Made>,
    history: &mut History,
) -> Outcome {
    match result {
        Ok(made) => {
            history.applied.push(change.clone());
            Outcome { change, made: Some(made), error: None }
        }
        Err(error) => {
            let why = error.to_string();
            // What EC2 does not know yet, or still holds in use, passes by itself; a taken name was made by somebody else or
            // by a call whose answer was lost, and a look finds it. Where that does not help, asking on and on helps nobody.
            let mut given_up = !error.is_transient();
            if given_up && may_pass(&error) {
                let misses =
                    history.misses.entry(format!("{} {}", error.operation, error.resource));
                let misses = misses.or_default();
                *misses += 1;
                given_up = *misses > MOST_MISSES;
            }
            if given_up {
                history.refused.push((change.clone(), why.clone()));
            }
            Outcome { change, made: None, error: Some(why) }
        }
    }
}

async fn work(case: &Case, goal: &dyn Goal, direction: Direction) -> Ended {
    let mut work = Work {
        case,
        goal,
        direction,
        history: History::default(),
        outcomes: Vec::new(),
        ends: Instant::now() + case.bounds.goal,
        pause: Duration::from_millis(200),
        whole: true,
        seen: Instant::now(),
        settle: 0,
    };
    let ended = work.run().await;
    match &ended {
        Ok(()) => {}
        Err(Stopped::UnderWay(what)) => case.leave_under_way(what.clone()),
        Err(Stopped::GivenUp(why)) => case.short(Shortfall {
            step: goal.step(),
            what: format!("{} of {} is not done: {why}", work.label(), case.scene.instance),
            advice: "run respond again once that is mended: it goes on where it was".to_owned(),
        }),
    }
    Ended {
        reached: ended.is_ok(),
        whole: ended.is_ok() && work.whole,
        seen: work.seen,
        outcomes: work.outcomes,
    }
}
