//! `run`: what the agent does in a clean room.
//!
//! Purpose: take the work order, see that the room is safe, scan, publish, tell, and wait for the next order. Touches what
//! the parts touch: the metadata service, the bucket, the topic, the stack, the task, the folder that `--state` names, and
//! the evidence. Never does a thing twice that was done, whenever it was killed ([`state`]), and never lets the network hold
//! a scan up ([`news`]).

use std::{
    collections::BTreeSet,
    fs::{self, File},
    os::unix::fs::{FileTypeExt as _, MetadataExt as _},
    path::Path,
    time::{Duration, Instant},
};

use anyhow::Context as _;
use cleanroom_agent_aws::{Aws, CloudError, ErrorKind, metadata::Metadata};
use cleanroom_contract::{Room, RoomNews, ScanId, WorkOrder, order_key, orders_prefix, printable};
use tokio::runtime::Runtime;

use super::{complain, say, scan};
use crate::{cli::Run, supervise::Signals};
use disks::Wanted;
use news::{About, News};
use order::{OrderError, Taken};
use state::{Ledger, Phase};

mod disks;
mod equip;
mod examine;
mod files;
mod finish;
mod news;
mod order;
mod state;

/// Exit statuses of `run`; `cli::Cli` documents them.
const AGAIN: u8 = 75;
const UNUSABLE: u8 = 78;

/// Where the kernel tells of disks.
const SYS: &str = "/sys";
/// The stack's resources that wait for the room.
const ROOM: &str = "Room";
const EVIDENCE: &str = "Evidence";
/// How many times a signal is sent, and how long between: without the first the stack attaches no evidence.
const SIGNALS: u32 = 8;
const SIGNAL_PAUSE: Duration = Duration::from_secs(4);
/// How long what was told last may take to be written.
const LAST_WORDS: Duration = Duration::from_secs(20);

/// Why the agent ends before its time.
#[derive(Debug, thiserror::Error)]
enum Stop {
    /// Another start would end the same.
    #[error("{0}")]
    Unusable(String),
    /// Another start goes on.
    #[error(transparent)]
    Again(#[from] anyhow::Error),
    /// Somebody asked it to end.
    #[error("asked to end")]
    Asked,
}

/// Runs; the exit status.
pub(super) fn run(args: &Run) -> u8 {
    // On the room's console this is the first that is seen of it.
    say(concat!("cleanroom-agent ", env!("CARGO_PKG_VERSION"), " runs"));
    let ended = Agent::enter(args).and_then(|mut agent| agent.work());
    match ended {
        Ok(()) => 0,
        Err(Stop::Unusable(why)) => {
            complain(&anyhow::anyhow!(why));
            UNUSABLE
        }
        Err(Stop::Again(error)) => {
            complain(&error);
            AGAIN
        }
        Err(Stop::Asked) => {
            say("asked to end: the next start goes on");
            AGAIN
        }
    }
}

/// The agent in its room.
struct Agent<'r> {
    args: &'r Run,
    runtime: Runtime,
    signals: Option<Signals>,
    aws: Aws,
    /// What the instance was told at its launch, where the order comes from there.
    room: Option<Room>,
    /// The disks behind the root file system.
    root: BTreeSet<String>,
    /// Somebody asked it to end.
    asked: bool,
    _lock: File,
}

impl<'r> Agent<'r> {
    fn enter(args: &'r Run) -> Result<Self, Stop> {
        let shown = printable(&args.state.to_string_lossy());
        let lock = state::lock(&args.state).with_context(|| format!("take the folder {shown}"))?;
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
        let runtime = runtime.context("start the runtime")?;
        let signals = {
            let _within = runtime.enter();
            Signals::take().context("take the signals")?
        };
        let (room, aws) = runtime.block_on(async {
            let room = match &args.work_order {
                Some(_) => None,
                None => Some(order::document(&Metadata::default()).await?),
            };
            let region = room.as_ref().map(|room| room.region.as_str());
            let aws = Aws::connect(region).await;
            let aws = aws.map_err(|error| OrderError::Unusable(error.to_string()))?;
            Ok::<_, OrderError>((room, aws))
        })?;
        let root = disks::behind_root(Path::new(SYS)).context("find the disk behind /")?;
        let signals = Some(signals);
        Ok(Self { args, runtime, signals, aws, room, root, asked: false, _lock: lock })
    }

    /// Carries out the first order and those that come after it.
    fn work(&mut self) -> Result<(), Stop> {
        let place = self.args.work_order.as_ref();
        let first = self.runtime.block_on(order::first(&self.aws, place, self.room.as_ref()));
        let first = first.map_err(Stop::from).and_then(|taken| {
            self.refuse_own_disk(&taken.order)?;
            Ok(taken)
        });
        if let Err(Stop::Unusable(_)) = first {
            self.signal(ROOM, false);
        }
        let mut taken = first?;
        self.signal(ROOM, true);
        let mut is_first = true;
        loop {
            let news = self.carry_out(&taken, is_first)?;
            is_first = false;
            if self.asked {
                close(news, LAST_WORDS);
                return Err(Stop::Asked);
            }
            match self.next_order(&taken.order)? {
                Some(next) => {
                    close(news, LAST_WORDS);
                    taken = next;
                }
                None => {
                    let news = news.unwrap_or_else(|| self.news(&taken.order, false));
                    if self.idle() > Duration::ZERO {
                        news.tell(RoomNews::Idle);
                    }
                    news.close(LAST_WORDS);
                    return Ok(());
                }
            }
        }
    }

    /// Carries out an order as far as it has not been; the voice that is left to tell more.
    fn carry_out(&mut self, taken: &Taken, is_first: bool) -> Result<Option<News>, Stop> {
        let order = &taken.order;
        let mut ledger = Ledger::open(&self.args.state, &order.scan, taken.sha256)
            .with_context(|| format!("take up the scan {}", order.scan))?;
        if ledger.state.phase == Phase::Done {
            return Ok(None);
        }
        ledger.take_up().context("write the state")?;
        let news = self.news(order, true);
        let carried = self.carry_on(taken, &mut ledger, &news, is_first);
        match carried {
            Ok(()) => {
                news.rest();
                Ok(Some(news))
            }
            Err(stop) => {
                news.close(LAST_WORDS / 4);
                Err(stop)
            }
        }
    }

    fn carry_on(
        &mut self,
        taken: &Taken,
        ledger: &mut Ledger,
        news: &News,
        is_first: bool,
    ) -> Result<(), Stop> {
        let order = &taken.order;
        news.tell(RoomNews::Started {
            agent: concat!("cleanroom-agent ", env!("CARGO_PKG_VERSION")).to_owned(),
            agent_sha256: scan::own_digest(),
            attempt: ledger.state.attempt,
        });
        if ledger.state.phase >= Phase::Published {
            Self::tell_again(order, ledger, news)?;
        }
        if ledger.state.phase == Phase::Scanning {
            self.examine(taken, ledger, news, is_first)?;
        }
        if ledger.state.phase == Phase::Sealed {
            self.publish(order, ledger, news)?;
        }
        if ledger.state.phase < Phase::Told {
            self.tell_people(order, ledger, news)?;
        }
        self.end_task(order, ledger)?;
        if !news.flush(LAST_WORDS) {
            say("some events are not written yet: the bundle is");
        }
        Ok(ledger.reach(Phase::Done).context("write the state")?)
    }

    /// The voice on a scan; `waited_for` where a task may wait for its end.
    fn news(&self, order: &WorkOrder, waited_for: bool) -> News {
        News::start(About {
            region: self.room.as_ref().map(|room| room.region.clone()),
            bucket: order.publish.bucket.clone(),
            case: order.case.clone(),
            room: order.room,
            scan: order.scan.clone(),
            token: order.task_token.clone().filter(|_| waited_for),
        })
    }

    /// The volumes of an order, with the room's copies.
    fn wanted(&self, order: &WorkOrder) -> Vec<Wanted> {
        let copies = self.room.as_ref().map(|room| &room.volumes);
        let volumes = order.volumes.iter().enumerate().map(|(place, volume)| Wanted {
            source: volume.source.clone(),
            copy: volume.volume.clone().or_else(|| copies?.get(&volume.snapshot).cloned()),
            gib: volume.gib,
            place,
        });
        volumes.collect()
    }

    /// A room that runs on the evidence has changed it already.
    fn refuse_own_disk(&self, order: &WorkOrder) -> Result<(), Stop> {
        // Without knowing the disks nobody can say that the evidence is not among them.
        let disks = disks::list(Path::new(SYS)).context("list the disks of this machine")?;
        let wanted = self.wanted(order);
        if let Some((wanted, name)) = disks::evidence_at_root(&disks, &wanted, &self.root) {
            return Err(Stop::Unusable(format!(
                "the disk behind / ({name}) is {}: this machine runs on the evidence",
                wanted.source
            )));
        }
        for (volume, path) in &self.args.evidence {
            let device = fs::metadata(path).ok().filter(|file| file.file_type().is_block_device());
            let disks = device.map(|device| disks::behind(Path::new(SYS), device.rdev()));
            if disks.is_some_and(|disks| !disks.is_disjoint(&self.root)) {
                return Err(Stop::Unusable(format!(
                    "--evidence {volume}={} is the disk behind /",
                    printable(&path.to_string_lossy())
                )));
            }
        }
        Ok(())
    }

    /// Tells the stack, where one waits. That nobody waits, as when the agent was started again, changes nothing.
    fn signal(&self, resource: &str, ready: bool) {
        let Some(room) = &self.room else { return };
        let once = || async {
            let id = Metadata::default().instance_id().await?;
            self.aws.signal(&room.stack, resource, &id, ready).await
        };
        // CloudFormation refuses what comes a moment before it waits for it.
        let told = self.runtime.block_on(async {
            let mut told = once().await;
            for _ in 1..SIGNALS {
                if told.is_ok() {
                    break;
                }
                tokio::time::sleep(SIGNAL_PAUSE).await;
                told = once().await;
            }
            told
        });
        if let Err(error) = told {
            say(&format!("the stack was not told that {resource} is ready: {error}"));
        }
    }

    /// How long the room waits for another order.
    fn idle(&self) -> Duration {
        let told = self.room.as_ref().map(|room| Duration::from_secs(room.idle_seconds.into()));
        self.args.idle.or(told).unwrap_or(Duration::ZERO)
    }

    /// The next order that can be carried out; `None` where none came in time.
    fn next_order(&mut self, order: &WorkOrder) -> Result<Option<Taken>, Stop> {
        let idle = self.idle();
        if idle.is_zero() {
            return Ok(None);
        }
        let pause = (idle / 20).clamp(Duration::from_millis(200), Duration::from_secs(10));
        let until = Instant::now() + idle;
        let mut after = order_key(&order.case, order.room, &order.scan);
        let mut said = false;
        loop {
            match self.runtime.block_on(self.newer(order, &after)) {
                Ok(Some(scan)) => {
                    after = order_key(&order.case, order.room, &scan);
                    if let Some(taken) = self.take(order, &scan)? {
                        return Ok(Some(taken));
                    }
                    continue;
                }
                Ok(None) => said = false,
                Err(error) if !std::mem::replace(&mut said, true) => {
                    say(&format!("look for newer orders: {error}"));
                }
                Err(_) => {}
            }
            if Instant::now() >= until {
                return Ok(None);
            }
            self.pause(pause)?;
        }
    }

    /// The scan of the oldest order after this key.
    async fn newer(&self, order: &WorkOrder, after: &str) -> Result<Option<ScanId>, CloudError> {
        let prefix = orders_prefix(&order.case, order.room);
        let store = self.aws.brief_store(&order.publish.bucket);
        let keys = store.list(&prefix, Some(after)).await?;
        let scan = |key: &String| key.strip_prefix(&prefix)?.strip_suffix(".json")?.parse().ok();
        Ok(keys.iter().find_map(scan))
    }

    /// A later order; `None` where it can not be carried out, which its events then say.
    fn take(&mut self, order: &WorkOrder, scan: &ScanId) -> Result<Option<Taken>, Stop> {
        let taken = self.runtime.block_on(order::named(&self.aws, order, scan, self.room.as_ref()));
        match taken.map_err(Stop::from) {
            Ok(taken) => {
                self.refuse_own_disk(&taken.order)?;
                Ok(Some(taken))
            }
            Err(Stop::Unusable(reason)) => {
                say(&format!("the order {scan} is passed over: {reason}"));
                let news = self.news(&WorkOrder { scan: scan.clone(), ..order.clone() }, false);
                news.tell(RoomNews::Failed { reason });
                news.close(LAST_WORDS);
                Ok(None)
            }
            Err(stop) => Err(stop),
        }
    }

    /// Waits, unless somebody asks the agent to end.
    fn pause(&mut self, time: Duration) -> Result<(), Stop> {
        let Some(signals) = self.signals.as_mut() else { return Ok(()) };
        self.asked |= self.runtime.block_on(async {
            tokio::select! {
                () = tokio::time::sleep(time) => false,
                () = signals.next() => true,
            }
        });
        if self.asked { Err(Stop::Asked) } else { Ok(()) }
    }
}

/// Ends a voice, where there is one.
fn close(news: Option<News>, patience: Duration) {
    if let Some(news) = news {
        news.close(patience);
    }
}

impl From<OrderError> for Stop {
    fn from(error: OrderError) -> Self {
        match error {
            OrderError::Unusable(why) => Self::Unusable(why),
            error => Self::Again(error.into()),
        }
    }
}

/// Whether nobody waits for a task any more.
fn is_over(error: &CloudError) -> bool {
    matches!(error.kind, ErrorKind::NotFound | ErrorKind::Refused)
}
