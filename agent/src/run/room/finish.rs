//! From a sealed bundle to people who know of it.
//!
//! Purpose: publish, tell the team, end the task that waits. Touches the bucket, the topic and the task. Never publishes or
//! tells twice what is known to have been published or told; a message whose answer was lost to a kill is sent again, since
//! nobody knowing is worse than somebody knowing twice, and carries the scan's name.

use std::time::{Duration, Instant};

use anyhow::Context as _;
use cleanroom_agent_aws::CloudError;
use cleanroom_contract::{RoomNews, RoomWork, WorkOrder, bundle_prefix, printable};

use super::{
    super::say,
    Agent, Stop, is_over,
    news::News,
    state::{Ledger, Phase},
};
use crate::{publish, supervise::error_chain};

/// The shortest and the longest pause between two tries to publish.
const PAUSE: (Duration, Duration) = (Duration::from_secs(1), Duration::from_secs(60));
/// The time between two signs that the bundle is still being sent.
const SIGN: Duration = Duration::from_secs(10);
/// How often a message or a result is tried; each try repeats by itself for half a minute.
const TRIES: u32 = 3;

impl Agent<'_> {
    /// Publishes the sealed bundle. Where that is impossible it stays as it is, for the next start.
    pub(super) fn publish(
        &mut self,
        order: &WorkOrder,
        ledger: &mut Ledger,
        news: &News,
    ) -> Result<(), Stop> {
        let folder = ledger.bundle();
        Self::tell_sealed(&folder, news)?;
        let prefix = bundle_prefix(&order.case, &order.scan);
        let store = self.aws.store(&order.publish.bucket);
        let until = Instant::now() + self.args.patience;
        let mut pause = PAUSE.0;
        let mut told = String::new();
        loop {
            let sending = publish::bundle(&store, &folder, &prefix, ledger);
            let error = match self.runtime.block_on(while_it_goes_on(sending, news)) {
                Ok(files) => {
                    ledger.reach(Phase::Published).context("write the state")?;
                    news.tell(RoomNews::Published { files });
                    return Ok(());
                }
                Err(error) => error,
            };
            let shown = printable(&error_chain(&error));
            if error.is_final() {
                let kept = folder.display();
                let reason =
                    format!("{shown}; nothing was overwritten, the bundle stays in {kept}");
                say(&format!("the bundle can not be published: {reason}"));
                news.tell(RoomNews::Failed { reason: reason.clone() });
                return Ok(ledger.fail(&reason).context("write the state")?);
            }
            // Once for each reason: it may stay the same for hours. Request ids come and go.
            let why = shown.split(" (request ").next().unwrap_or_default();
            if told != why {
                why.clone_into(&mut told);
                news.tell(RoomNews::Unpublished { reason: shown.clone() });
            }
            if self.asked || Instant::now() + pause >= until {
                let kept = folder.display();
                let why = format!("the bundle stays in {kept}, and the next start publishes it");
                return Err(anyhow::Error::new(error).context(why).into());
            }
            say(&format!("the bundle is not published yet: {shown}"));
            self.pause(pause)?;
            pause = (pause * 2).min(PAUSE.1);
        }
    }

    /// Tells the team, once.
    pub(super) fn tell_people(
        &mut self,
        order: &WorkOrder,
        ledger: &mut Ledger,
        news: &News,
    ) -> Result<(), Stop> {
        let folder = ledger.bundle();
        let notice = match &ledger.state.failed {
            Some(reason) => publish::failure(order, reason),
            None => {
                let report = publish::report(&folder).context("read the sealed report")?;
                let sums = publish::sealed(&folder).context("read the sums")?;
                publish::notice(order, &report, sums)
            }
        };
        if let Some(arn) = &order.publish.topic {
            ledger.reach(Phase::Telling).context("write the state")?;
            let topic = self.aws.topic(arn);
            let told = self.runtime.block_on(tried(|| topic.publish(&notice)));
            if let Err(error) = told {
                say(&format!("the team was not told: {error}"));
                news.tell(RoomNews::Untold { reason: error.to_string() });
            }
        }
        Ok(ledger.reach(Phase::Told).context("write the state")?)
    }

    /// Ends the task that waits for the scan, where one does.
    pub(super) fn end_task(&mut self, order: &WorkOrder, ledger: &Ledger) -> Result<(), Stop> {
        if let Some(token) = &order.task_token {
            let folder = ledger.bundle();
            let ended = match &ledger.state.failed {
                Some(reason) => {
                    self.runtime.block_on(tried(|| self.aws.give_up(token, "Scan", reason)))
                }
                None => {
                    let report = publish::report(&folder).context("read the sealed report")?;
                    let sums = publish::sealed(&folder).context("read the sums")?;
                    let output = publish::outcome(order, &report, sums).to_string();
                    self.runtime.block_on(tried(|| self.aws.succeed(token, &output)))
                }
            };
            match ended {
                // An earlier start has ended it, or it ended by itself.
                Err(error) if is_over(&error) => {
                    say(&format!("nobody waits for the result: {error}"));
                }
                Err(error) => say(&format!("the task was not told of the result: {error}")),
                Ok(()) => {}
            }
        }
        Ok(())
    }

    /// Tells again what an agent that was killed may have told: twice is better than never.
    pub(super) fn tell_again(
        order: &WorkOrder,
        ledger: &Ledger,
        news: &News,
    ) -> anyhow::Result<()> {
        if let Some(reason) = &ledger.state.failed {
            news.tell(RoomNews::Failed { reason: reason.clone() });
            return Ok(());
        }
        let folder = ledger.bundle();
        Self::tell_sealed(&folder, news)?;
        let files = publish::objects(&folder, &bundle_prefix(&order.case, &order.scan))?;
        news.tell(RoomNews::Published { files });
        Ok(())
    }
}

/// Waits for the bundle to be sent, and says all the while that this goes on.
async fn while_it_goes_on<T>(sending: impl Future<Output = T>, news: &News) -> T {
    let mut sending = std::pin::pin!(sending);
    loop {
        news.works(RoomWork::Publishing);
        tokio::select! {
            sent = &mut sending => return sent,
            () = tokio::time::sleep(SIGN) => {}
        }
    }
}

/// Makes a call, and again where that may help.
async fn tried<T, F: Future<Output = Result<T, CloudError>>>(
    mut call: impl FnMut() -> F,
) -> Result<T, CloudError> {
    let mut tries = 1;
    loop {
        match call().await {
            Err(error) if error.is_transient() && tries < TRIES => tries += 1,
            ended => return ended,
        }
    }
}
