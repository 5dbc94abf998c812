//! From an order to a sealed bundle, on the room's own disk.
//!
//! Purpose: wait for the volumes, fetch the rules, scan all of it into one bundle. Touches the evidence through the scan,
//! the bucket for reading, and the scan's own folder. Never gives a scan up for a volume, a rule or a list that is missing:
//! each is a gap.

use std::{
    path::{Path, PathBuf},
    time::{Duration, Instant},
};

use anyhow::Context as _;
use cleanroom_contract::{Gap, RoomNews, Summary, VolumeId, WorkOrder, printable};

use super::{
    super::{
        say,
        scan::{self, Given, Plan},
        seal_spool,
    },
    Agent, EVIDENCE, SYS, Stop,
    disks::{self, Disk},
    files,
    news::News,
    order::Taken,
    state::{Ledger, Phase},
};
use crate::{
    cli::Scan,
    evidence::view::Evidence,
    publish,
    rules::RulesError,
    supervise::{SuperviseError, error_chain},
};

/// How often a scan is begun, before what the last one found is sealed as it is: something here ends the agent.
const BEGINNINGS: u32 = 16;
/// The pause between two looks at the disks.
const LOOK: Duration = Duration::from_millis(250);
/// The time a file gets where the order does not say, in seconds.
const FILE_SECONDS: u32 = 60;

/// Where a volume of the order is, or why it is nowhere.
struct Place {
    name: String,
    path: Result<PathBuf, String>,
}

impl Agent<'_> {
    /// Scans, and seals what was found. What keeps it from a bundle is written down: nothing but a kill leads here again.
    pub(super) fn examine(
        &mut self,
        taken: &Taken,
        ledger: &mut Ledger,
        news: &News,
        is_first: bool,
    ) -> Result<(), Stop> {
        if publish::sealed(&ledger.bundle()).is_none() {
            let scanned = if ledger.state.begun < BEGINNINGS {
                let places = self.attach(&taken.order, news, is_first)?;
                ledger.begin().context("write the state")?;
                self.scan(taken, ledger, &places, news)
            } else {
                say(&format!("the scan was begun {BEGINNINGS} times: its last records are sealed"));
                seal_spool(&ledger.bundle(), None).map(drop)
            };
            self.asked |= self.signals.as_ref().is_some_and(|signals| signals.received > 0);
            if let Err(error) = scanned {
                let reason = printable(&format!("{error:#}"));
                say(&format!("the scan ended without a bundle: {reason}"));
                news.tell(RoomNews::Failed { reason: reason.clone() });
                return Ok(ledger.fail(&reason).context("write the state")?);
            }
        }
        Ok(ledger.reach(Phase::Sealed).context("write the state")?)
    }

    /// Waits until the volumes are there, or their time is up; makes them read-only, and tells who came.
    fn attach(
        &mut self,
        order: &WorkOrder,
        news: &News,
        is_first: bool,
    ) -> Result<Vec<Place>, Stop> {
        let wanted = self.wanted(order);
        let until = Instant::now() + Duration::from_secs(order.limits.attach_seconds.into());
        let (places, disks) = loop {
            let disks = disks::list(Path::new(SYS)).unwrap_or_default();
            let places: Vec<_> = wanted.iter().map(|w| self.place(w, &disks)).collect();
            if places.iter().all(|place| place.path.is_ok()) || Instant::now() >= until {
                break (places, disks);
            }
            self.pause(LOOK)?;
        };
        let came = |place: &&Place| place.path.is_ok();
        let sources = wanted.iter().map(|wanted| wanted.source.clone());
        let (found, missing): (Vec<_>, Vec<_>) =
            sources.zip(&places).partition(|(_, place)| came(place));
        let ids =
            |some: Vec<(VolumeId, &Place)>| some.into_iter().map(|(id, _)| id).collect::<Vec<_>>();
        let (found, missing) = (ids(found), ids(missing));
        if is_first {
            self.signal(EVIDENCE, !found.is_empty());
        }
        let unexpected = disks::unexpected(&disks, &wanted, &self.root);
        news.tell(RoomNews::Attached { found, missing, unexpected });
        Ok(places)
    }

    /// Where a volume is now.
    fn place(&self, wanted: &disks::Wanted, disks: &[Disk]) -> Place {
        let named = self.args.evidence.iter().find(|(volume, _)| *volume == wanted.source);
        let path = match (named, wanted.find(disks)) {
            (Some((_, path)), _) => Ok(path.clone()),
            (None, Some(disk)) => Ok(Path::new("/dev").join(&disk.name)),
            (None, None) => Err(match &wanted.copy {
                Some(copy) => format!("its copy {copy} was not attached in time"),
                None => "nobody said which disk is its copy".to_owned(),
            }),
        };
        // A device may be named before it can be opened.
        let path = path.and_then(|path| match path.exists() {
            true => Ok(path),
            false => Err(format!("{} is not there", printable(&path.to_string_lossy()))),
        });
        Place { name: wanted.source.to_string(), path }
    }

    /// Scans the volumes that are there into one bundle.
    fn scan(
        &mut self,
        taken: &Taken,
        ledger: &Ledger,
        places: &[Place],
        news: &News,
    ) -> anyhow::Result<()> {
        let order = &taken.order;
        let store = self.aws.store(&order.publish.bucket);
        let (rules, lists) = self.runtime.block_on(async {
            let rules = files::fetch(&store, &order.rules, &ledger.folder("rules")).await;
            let folder = ledger.folder("indicators");
            (rules, files::fetch(&store, &order.indicators, &folder).await)
        });
        let rules = files::as_arguments(&order.rules, rules);
        let mut gaps = rules.gaps;
        gaps.extend(lists.gaps);
        let mut args = arguments(taken, ledger.bundle(), self.args.state.clone());
        (args.rules, args.indicators) = (rules.paths, lists.paths);
        // Rules or lists that can not be used at all cost what they would have found, and no more.
        for _ in 0..2 {
            match self.scan_once(&args, places, gaps.clone(), news) {
                Err(error) if error.downcast_ref::<RulesError>().is_some() => {
                    gaps.push(unused("the rules", &error));
                    args.rules.clear();
                }
                Err(error) if is_of_lists(&error) => {
                    gaps.push(unused("the indicators", &error));
                    args.indicators.clear();
                }
                scanned => return scanned,
            }
        }
        self.scan_once(&args, places, gaps, news)
    }

    fn scan_once(
        &mut self,
        args: &Scan,
        places: &[Place],
        gaps: Vec<Gap>,
        news: &News,
    ) -> anyhow::Result<()> {
        let given = places.iter().map(open).collect();
        let plan = Plan { watcher: Some(news), gaps, ..Plan::default() };
        scan::examine(args, given, plan, (&self.runtime, &mut self.signals)).map(drop)
    }

    /// Tells that the bundle is sealed.
    pub(super) fn tell_sealed(folder: &Path, news: &News) -> anyhow::Result<()> {
        let report = publish::report(folder).context("read the sealed report")?;
        let sums = publish::sealed(folder).context("read the sums")?;
        let summary: Box<Summary> = Box::new(report.summary);
        news.tell(RoomNews::Sealed { sums, summary });
        Ok(())
    }
}

/// Opens a volume, and makes its device read-only.
fn open(place: &Place) -> Given {
    let path = place.path.as_ref().map_or_else(|_| PathBuf::from(&place.name), Clone::clone);
    let evidence = place.path.clone().and_then(|path| {
        let evidence = Evidence::open(&path).map_err(|error| printable(&error_chain(&error)))?;
        if let Err(error) = evidence.set_read_only() {
            // Its file systems are seen through a read-only loop in any case.
            say(&format!("{} could not be made read-only: {error}", path.display()));
        }
        Ok(evidence)
    });
    Given { name: place.name.clone(), path, evidence }
}

/// The order as the scan's arguments; what replaying writes goes to the disk that the bundle is on.
fn arguments(taken: &Taken, out: PathBuf, scratch: PathBuf) -> Scan {
    let WorkOrder { case, instance, scan, limits, .. } = &taken.order;
    let seconds = limits.file_seconds.unwrap_or(FILE_SECONDS).max(1);
    Scan {
        evidence: Vec::new(),
        out,
        rules: Vec::new(),
        indicators: Vec::new(),
        strict: false,
        digest: Vec::new(),
        no_entropy: false,
        exclude: Vec::new(),
        threads: limits.threads.map(|threads| threads.clamp(1, 128)),
        memory: limits.memory.filter(|bytes| *bytes > 0),
        max_file_size: limits.max_file_size,
        file_timeout: Duration::from_secs(seconds.into()),
        no_replay: !limits.replay,
        scratch: limits.replay.then_some(scratch),
        scratch_size: None,
        case: Some(case.clone()),
        examiner: None,
        evidence_id: Some(instance.to_string()),
        note: vec![format!("scan {scan}, work order {}", taken.sha256)],
        sign_key: None,
        format: None,
        fail_on: None,
    }
}

fn is_of_lists(error: &anyhow::Error) -> bool {
    matches!(error.downcast_ref(), Some(SuperviseError::Indicators { .. }))
}

/// The gap of rules or lists that can not be used at all.
fn unused(what: &str, error: &anyhow::Error) -> Gap {
    files::gap(printable(&format!("not used: {what}: {error:#}")))
}
