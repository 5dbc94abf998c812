//! Responds: every instance that was named, a few at a time, while the terminal shows how they stand.

use std::sync::Arc;

use anyhow::Context as _;
use cleanroom_cloud::Instance;
use cleanroom_controller::{
    case::{Run, Shared},
    flow::{self, Request},
    progress::Progress,
};
use futures_util::{StreamExt as _, stream};

use super::{
    Shape, Usage, room,
    session::{Opening, Session},
    signals::{Ended, Signals},
    stage::{DEPTH, Outcome, Stage},
    targets, via,
};
use crate::{
    cli::{Respond, Via},
    settings,
};

/// Instances on the way to being contained at a time, where nobody says otherwise.
const SLOTS: u16 = 8;

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
    let (progress, mut events) = Progress::channel(DEPTH);
    let mut run = session.run(policy, progress)?;
    run.shared = Arc::new(Shared::with_slots(usize::from(args.concurrency.unwrap_or(SLOTS))));
    let mut signals = Signals::take().context("take over signals")?;

    let ids: Vec<_> = instances.iter().map(|i| i.id.clone()).collect();
    let stage = Stage::begin(ids, run.policy.steps.clone(), (session.next(), shape));
    let all = instances.len();
    let mut done = Vec::with_capacity(all);
    let ended = {
        let crew = Crew { session: &session, run: &run, args };
        let at_work = stream::iter(instances)
            .map(|instance| crew.one(instance))
            // All at once: how many are contained at a time is the run's to say.
            .buffer_unordered(all.max(1));
        let work = stage.follow(&mut events, at_work, &mut done);
        signals.guard(&run.shared, work, |text| stage.say(text)).await
    };
    let interrupted = match ended {
        Ended::Done(()) => None,
        Ended::Interrupted(status) => Some(status),
    };
    if interrupted.is_some() {
        stage.say(format!(
            "{} of {all} instances are through, and no interface is left open; respond again goes on where it was",
            done.len()
        ));
    }
    Ok(stage.end(&done, interrupted, run.progress.dropped()))
}

/// Everything an instance's response needs.
struct Crew<'a> {
    session: &'a Session,
    run: &'a Run,
    args: &'a Respond,
}

impl Crew<'_> {
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
