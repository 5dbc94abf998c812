//! From an order to a sealed bundle, on the room's own disk.
//!
//! Purpose: wait for the volumes, scan all of it into one bundle. Touches the evidence through the scan, the bucket for
//! reading, and the scan's own folder. Never gives a scan up for a volume, a rule or a list that is missing: each is a gap;
//! nor what was recorded, whatever ended the scan.

use std::{
    fs, io,
    path::{Path, PathBuf},
    time::{Duration, Instant},
};

use anyhow::Context as _;
use cleanroom_contract::{
    RoomNews, RoomWork, Summary, VolumeId, WorkOrder, bundle_prefix, printable,
};

use super::{
    super::{
        causes, say,
        scan::{self, Given, Plan},
        seal_spool,
    },
    Agent, EVIDENCE, SYS, Stop,
    disks::{self, Disk, Wanted},
    equip::Equipment,
    news::News,
    order::Taken,
    state::{self, Ledger},
};
use crate::{
    bundle::{seal::SPOOL, sums::SUMS},
    cli::Scan,
    evidence::view::Evidence,
    publish,
    supervise::error_chain,
};

/// How often a scan is begun, before the most that was found is sealed as it is: something here ends the agent, and is not
/// met again and again.
const BEGINNINGS: u32 = 3;
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
    /// Scans, and seals what was found: all of it, or what there is where something cut the scan short. Where there is
    /// nothing to seal, that is written down: nothing but a kill leads here again.
    pub(super) fn examine(
        &mut self,
        taken: &Taken,
        ledger: &mut Ledger,
        news: &News,
        is_first: bool,
    ) -> Result<(), Stop> {
        if publish::sealed(&ledger.bundle()).is_none() {
            if ledger.state.cut.is_none()
                && let Some(why) = self.begin(taken, ledger, news, is_first)?
            {
                ledger.cut(&why).context("write the state")?;
            }
            if let Some(why) = ledger.state.cut.clone()
                && let Err(reason) = salvage(ledger, news, &why)?
            {
                return give_up(ledger, news, &reason);
            }
        }
        Ok(ledger.sealed().context("write the state")?)
    }

    /// Why a scan of this name can not be published, where another room has done so.
    fn done_elsewhere(&self, order: &WorkOrder) -> Option<String> {
        let prefix = bundle_prefix(&order.case, &order.scan);
        let store = self.aws.brief_store(&order.publish.bucket);
        // Who can not look now finds out when it publishes.
        let keys = self.runtime.block_on(store.list(&prefix, None)).ok()?;
        let sums = format!("{prefix}{SUMS}");
        keys.contains(&sums).then(|| {
            format!("{sums} is there already: another room has published a bundle of this scan")
        })
    }

    /// Begins the scan, and comes to its end; else why not.
    fn begin(
        &mut self,
        taken: &Taken,
        ledger: &mut Ledger,
        news: &News,
        is_first: bool,
    ) -> Result<Option<String>, Stop> {
        if ledger.state.begun >= BEGINNINGS {
            return Ok(Some(format!("the agent was ended {BEGINNINGS} times while it scanned")));
        }
        let places = self.attach(&taken.order, news, is_first)?;
        if ledger.state.begun == 0
            && let Some(why) = self.done_elsewhere(&taken.order)
        {
            return Ok(Some(why));
        }
        let equipment = self.equip(&taken.order, ledger, news)?;
        ledger.begin().context("write the state")?;
        let scanned = self.scan(taken, ledger, (&places, equipment), news);
        self.asked |= self.signals.as_ref().is_some_and(|signals| signals.received > 0);
        Ok(scanned.err().map(|error| causes(&error)))
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
        let mut said = false;
        let (places, disks) = loop {
            news.works(RoomWork::Attaching);
            let disks = disks::list(Path::new(SYS));
            if let Err(error) = &disks
                && !std::mem::replace(&mut said, true)
            {
                say(&format!("the disks of this machine can not be listed: {error}"));
            }
            let places: Vec<_> = wanted.iter().map(|w| self.place(w, &disks)).collect();
            let is_open = |(wanted, place): (&Wanted, &Place)| {
                place.path.is_err() && self.may_come(wanted, &disks)
            };
            if !wanted.iter().zip(&places).any(is_open) || Instant::now() >= until {
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
        // Where disks can not be listed, the gap of each volume says why.
        let unexpected = disks::unexpected(&disks.unwrap_or_default(), &wanted, &self.root);
        news.tell(RoomNews::Attached { found, missing, unexpected });
        Ok(places)
    }

    /// Whether waiting for a volume is of use: a room that was made without it gets none.
    fn may_come(&self, wanted: &Wanted, disks: &io::Result<Vec<Disk>>) -> bool {
        let is_named = self.args.evidence.iter().any(|(volume, _)| *volume == wanted.source);
        is_named || disks.as_ref().map_or(true, |disks| wanted.may_come(disks))
    }

    /// Where a volume is now.
    fn place(&self, wanted: &Wanted, disks: &io::Result<Vec<Disk>>) -> Place {
        let named = self.args.evidence.iter().find(|(volume, _)| *volume == wanted.source);
        let found = disks.as_ref().ok().and_then(|disks| wanted.find(disks));
        let path = match (named, found) {
            (Some((_, path)), _) => Ok(path.clone()),
            (None, Some(disk)) => Ok(Path::new("/dev").join(&disk.name)),
            (None, None) => Err(nowhere(wanted, disks)),
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
        (places, mut equipment): (&[Place], Equipment),
        news: &News,
    ) -> anyhow::Result<()> {
        let mut args = arguments(taken, ledger.bundle(), self.args.state.clone());
        loop {
            let Equipment { rules, indicators, gaps, findings } = equipment.clone();
            (args.rules, args.indicators) = (rules, indicators);
            let given = places.iter().map(open).collect();
            let plan = Plan { key: None, watcher: Some(news), gaps, findings, spares_lists: true };
            match scan::examine(&args, given, plan, (&self.runtime, &mut self.signals)) {
                // Rules or lists that can not be used at all cost what they would have found, and no more.
                Err(error) if equipment.shed(&taken.order, &error) => {}
                scanned => return scanned.map(drop),
            }
        }
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

/// Seals the most that any beginning of a scan has recorded, or says why there is no bundle.
///
/// # Errors
/// There is no space for it. That may change: what was recorded stays as it is, for the next start.
fn salvage(ledger: &mut Ledger, news: &News, why: &str) -> Result<Result<(), String>, Stop> {
    if !ledger.choose().context("write the state")? {
        return Ok(Err(why.to_owned()));
    }
    say(&format!("the scan was cut short, and what it recorded is sealed: {why}"));
    let folder = ledger.bundle();
    let sealed = seal_spool(&folder, None, Some(why), &mut || news.works(RoomWork::Sealing));
    let Err(error) = sealed else { return Ok(Ok(())) };
    let reason = format!("{why}; seal what was found: {}", causes(&error));
    let is_full = |cause: &(dyn std::error::Error + 'static)| {
        cause.downcast_ref::<io::Error>().is_some_and(state::is_full)
    };
    if !error.chain().any(is_full) {
        return Ok(Err(reason));
    }
    // Half a bundle is in the way of the whole one.
    for entry in fs::read_dir(&folder).into_iter().flatten().flatten() {
        if entry.file_name() != SPOOL {
            drop(fs::remove_file(entry.path()));
        }
    }
    let kept = folder.join(SPOOL);
    let reason = format!("{reason}: what was found stays in {}", kept.display());
    news.tell(RoomNews::Failed { reason: reason.clone() });
    Err(Stop::Again(anyhow::anyhow!(reason)))
}

/// Writes down and tells that there will be no bundle.
fn give_up(ledger: &mut Ledger, news: &News, reason: &str) -> Result<(), Stop> {
    say(&format!("the scan ended without a bundle: {reason}"));
    news.tell(RoomNews::Failed { reason: reason.to_owned() });
    Ok(ledger.fail(reason).context("write the state")?)
}

/// Why a volume is nowhere: what is said of the disks, where they could not be listed.
fn nowhere(wanted: &Wanted, disks: &io::Result<Vec<Disk>>) -> String {
    match (disks, &wanted.copy) {
        (Err(error), _) => format!("the disks of this machine can not be listed: {error}"),
        (Ok(_), Some(copy)) => format!("its copy {copy} was not attached in time"),
        (Ok(_), None) => "nobody said which disk is its copy".to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_volume_that_can_not_be_looked_for_is_not_said_to_be_missing() {
        let copy: VolumeId = "vol-0bbbbbbbbbbbbbbbb".parse().unwrap();
        let source = "vol-0aaaaaaaaaaaaaaaa".parse().unwrap();
        let wanted = Wanted { source, copy: Some(copy), gib: 8, place: 0 };
        let none = tempfile::tempdir().unwrap();
        let why = nowhere(&wanted, &disks::list(none.path()));
        assert!(why.contains("can not be listed: No such file"), "{why}");
        fs::create_dir(none.path().join("block")).unwrap();
        let why = nowhere(&wanted, &disks::list(none.path()));
        assert_eq!(why, "its copy vol-0bbbbbbbbbbbbbbbb was not attached in time");
    }
}
