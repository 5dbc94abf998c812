//! What a room tells of its scan, read as it comes.
//!
//! Every event is the word of a machine that handled hostile data: it decides how long to wait and what to show, never
//! what is evidence. Reads the bucket; changes nothing.

use std::time::Duration;

use cleanroom_cloud::{CloudError, Store};
use cleanroom_contract::{
    CaseId, PublishedFile, RoomEvent, RoomNews, ScanId, Sha256, Timestamp, VolumeId, bundle_prefix,
    event_key, events_prefix, printable,
};
use tokio::time::Instant;

use super::{bundle::SUMS, order};
use crate::{
    case::{Case, Step},
    progress::Event,
};

/// Events of one scan that are read at most: a room that tells more has nothing to say.
const MOST_EVENTS: u64 = 100_000;
/// How many unreadable events are named.
const MOST_ODD: usize = 10;

/// After the news that a scan is published come at most that people were not told, and that the room has ended itself.
const LAST_NEWS: usize = 3;

/// What a room has told of a scan so far.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Heard {
    /// The number of the newest event.
    pub seq: u64,
    /// When it was told, by the room's clock.
    pub at: Option<Timestamp>,
    /// The newest, in a few words.
    pub newest: String,
    /// Volumes of the instance whose copies never came.
    pub missing: Vec<VolumeId>,
    /// Disks that nobody expected.
    pub unexpected: Vec<String>,
    /// Of the sums of the sealed bundle.
    pub sums: Option<Sha256>,
    /// The published files.
    pub published: Option<Vec<PublishedFile>>,
    /// Why there is no bundle.
    pub failed: Option<String>,
    /// Whether the room has ended itself.
    pub idle: bool,
    /// Events that could not be read, or are of something else.
    pub odd: Vec<String>,
}

impl Heard {
    /// Takes an object into account that is under the key of the next event.
    fn take(&mut self, case: &CaseId, scan: &ScanId, bytes: &[u8]) {
        self.seq += 1;
        let event = match serde_json::from_slice::<RoomEvent>(bytes) {
            Ok(event) if event.case == *case && event.scan == *scan && event.seq == self.seq => {
                event
            }
            Ok(_) => return self.note_odd("is of another scan or number"),
            Err(_) => return self.note_odd("can not be read"),
        };
        self.at = Some(event.at);
        self.newest = words(&event.news);
        match event.news {
            RoomNews::Attached { missing, unexpected, .. } => {
                self.missing = missing;
                self.unexpected = unexpected.iter().take(MOST_ODD).map(|s| printable(s)).collect();
            }
            RoomNews::Sealed { sums, .. } => self.sums = Some(sums),
            RoomNews::Published { files } => {
                self.published = Some(files);
                // An attempt that failed before is no longer what came of it.
                self.failed = None;
            }
            RoomNews::Failed { reason } => self.failed = Some(printable(&reason)),
            RoomNews::Idle => self.idle = true,
            RoomNews::Started { .. } => {
                self.failed = None;
                self.idle = false;
            }
            RoomNews::Progress { .. }
            | RoomNews::Findings { .. }
            | RoomNews::Working { .. }
            | RoomNews::Queued { .. }
            | RoomNews::Unpublished { .. }
            | RoomNews::Untold { .. } => {}
        }
    }

    /// Why nothing more comes of the scan, where that is so and there is no bundle.
    #[must_use]
    pub fn ended(&self) -> Option<&str> {
        let idle = self.idle.then_some("the room ended itself without a bundle");
        self.failed.as_deref().or(idle).filter(|_| self.published.is_none())
    }

    fn note_odd(&mut self, how: &str) {
        if self.odd.len() < MOST_ODD {
            self.odd.push(format!("event {} {how}", self.seq));
        }
    }
}

/// An event in a few words.
#[must_use]
pub fn words(news: &RoomNews) -> String {
    match news {
        RoomNews::Started { agent, attempt, .. } => {
            format!("{} runs, attempt {attempt}", printable(agent))
        }
        RoomNews::Attached { found, missing, unexpected } => format!(
            "{} volumes are attached, {} missing, {} unexpected",
            found.len(),
            missing.len(),
            unexpected.len()
        ),
        RoomNews::Progress { volume, entries, bytes, bytes_total, findings, gaps } => {
            let share = bytes.saturating_mul(100).checked_div(*bytes_total).unwrap_or(0).min(100);
            format!(
                "{}: {share} %, {entries} entries, {findings} findings, {gaps} gaps",
                printable(volume)
            )
        }
        RoomNews::Findings { findings } => match findings.first() {
            Some(worst) => {
                format!("found: {} ({})", printable(&worst.title), worst.severity.as_str())
            }
            None => "found nothing new".to_owned(),
        },
        RoomNews::Sealed { summary, .. } => {
            format!("sealed, with {} findings and {} gaps", summary.findings.total(), summary.gaps)
        }
        RoomNews::Unpublished { reason } => {
            format!("sealed on the room's disk, and not published yet: {}", printable(reason))
        }
        RoomNews::Published { files } => format!("published {} files", files.len()),
        RoomNews::Failed { reason } => format!("failed: {}", printable(reason)),
        RoomNews::Untold { reason } => format!("could not tell people: {}", printable(reason)),
        RoomNews::Working { doing } => doing.as_str().to_owned(),
        RoomNews::Queued { behind } => format!("waits until the scan {behind} is done"),
        RoomNews::Idle => "the room has ended itself".to_owned(),
    }
}

/// Reads what is new. Returns whether anything was.
///
/// # Errors
/// When the store does not answer.
pub async fn listen(
    store: &dyn Store,
    (case, scan): (&CaseId, &ScanId),
    heard: &mut Heard,
) -> Result<bool, CloudError> {
    let before = heard.seq;
    while heard.seq < MOST_EVENTS {
        let key = event_key(case, scan, heard.seq + 1);
        match store.get(&key).await {
            Ok(Some(bytes)) => heard.take(case, scan, &bytes),
            Ok(None) => break,
            // Hostile, and no reason to fail.
            Err(error) if error.code == "TooLarge" => {
                heard.seq += 1;
                heard.note_odd("is too large");
            }
            Err(error) => return Err(error),
        }
    }
    Ok(heard.seq > before)
}

/// The newest event alone: how a scan stands, without reading all that was told.
///
/// # Errors
/// When the store does not answer.
pub async fn newest(
    store: &dyn Store,
    (case, scan): (&CaseId, &ScanId),
) -> Result<Option<RoomEvent>, CloudError> {
    let keys = store.list(&events_prefix(case, scan), false).await?;
    let Some(last) = keys.last() else { return Ok(None) };
    let bytes = store.get(last).await?.unwrap_or_default();
    Ok(serde_json::from_slice::<RoomEvent>(&bytes).ok().filter(|event| event.scan == *scan))
}

/// Why the room could not tell people of a scan that it has published: what it tells after that is the end of its news.
///
/// # Errors
/// When the store does not answer.
pub async fn untold(
    store: &dyn Store,
    (case, scan): (&CaseId, &ScanId),
) -> Result<Option<String>, CloudError> {
    let keys = store.list(&events_prefix(case, scan), false).await?;
    for key in keys.iter().rev().take(LAST_NEWS) {
        let bytes = store.get(key).await?.unwrap_or_default();
        if let Ok(RoomEvent { news: RoomNews::Untold { reason }, scan: of, .. }) =
            serde_json::from_slice(&bytes)
            && of == *scan
        {
            return Ok(Some(printable(&reason)));
        }
    }
    Ok(None)
}

/// How a wait ended.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Told {
    /// There is a bundle, by the room's word or by its sums, which are written last.
    Published,
    /// The scan ended without one.
    Failed(String),
    /// Nothing more comes, or nothing more is waited for.
    Silent(String),
    /// What the room tells can not be read: that says nothing about the scan.
    Unread(String),
    /// It goes on, and is not waited for.
    UnderWay,
}

/// How long a scan of so many GiB may take: two hours, and thirty seconds a GiB.
fn patience(gib: u64) -> Duration {
    Duration::from_secs(7_200 + gib.saturating_mul(30))
}

/// All that a room has told of a scan so far, read again as long as that may help.
///
/// # Errors
/// When the store does not answer.
pub async fn so_far(case: &Case, scan: &ScanId) -> Result<Heard, CloudError> {
    let mut heard = Heard::default();
    let ends = Instant::now() + case.bounds.goal;
    loop {
        match listen(&*case.store, (&case.scene.case, scan), &mut heard).await {
            Ok(_) => return Ok(heard),
            Err(error) if !error.is_transient() || Instant::now() >= ends => return Err(error),
            Err(error) => waiting(case, scan, &format!("what its room told is read: {error}")),
        }
        tokio::time::sleep(case.bounds.poll).await;
    }
}

/// Waits until the scan has ended, telling its progress.
pub async fn until_told(case: &Case, scan: &ScanId, gib: u64, heard: &mut Heard) -> Told {
    let mut wait = Wait::begin(case, scan, gib);
    loop {
        let unheard = heard.seq == 0;
        match listen(&*case.store, (&case.scene.case, scan), heard).await {
            Ok(true) => {
                wait.heard(unheard);
                waiting(case, scan, &heard.newest);
            }
            Ok(false) => wait.unread = None,
            Err(error) if error.is_transient() => {
                if let Some(told) = wait.not_read(&error) {
                    return told;
                }
            }
            Err(error) => return Told::Unread(error.to_string()),
        }
        if heard.published.is_some() {
            return Told::Published;
        }
        match (&heard.failed, heard.ended()) {
            (Some(why), _) => return Told::Failed(why.clone()),
            (None, Some(why)) => return Told::Silent(why.to_owned()),
            (None, None) => {}
        }
        if let Some(most) = case.bounds.wait
            && wait.began.elapsed() >= most
        {
            return unwaited(case, heard);
        }
        if wait.is_quiet() {
            wait.listen_to_others().await;
        }
        if let Some(why) = wait.over(heard) {
            let sums = format!("{}{SUMS}", bundle_prefix(&case.scene.case, scan));
            if matches!(case.store.get(&sums).await, Ok(Some(_))) {
                return Told::Published;
            }
            return Told::Silent(why);
        }
        tokio::time::sleep(wait.pause).await;
        wait.pause = (wait.pause * 2).min(case.bounds.poll);
    }
}

/// How a scan stands that is not waited for: its silence counts from what its room told last, whoever listened.
fn unwaited(case: &Case, heard: &Heard) -> Told {
    let quiet = heard.at.map_or(0, |at| case.journal.now().seconds.saturating_sub(at.seconds));
    if quiet <= case.bounds.silence.as_secs().cast_signed() {
        return Told::UnderWay;
    }
    Told::Silent(format!(
        "it has told nothing for {} minutes; the last was: {}",
        quiet / 60,
        heard.newest
    ))
}

/// One scan being waited for.
struct Wait<'a> {
    case: &'a Case,
    scan: &'a ScanId,
    /// How long it may take, by what it reads.
    patience: Duration,
    /// When it began, or began to be waited for.
    began: Instant,
    /// When its room last gave a sign of life.
    last: Instant,
    /// Since when its events can not be read.
    unread: Option<Instant>,
    /// The newest that the room told of scans before this one, and when that was looked at.
    others: Option<(Instant, Vec<String>)>,
    pause: Duration,
}

/// How often, within the time that counts as silence, a quiet room's other scans are looked at.
const LOOKS: u32 = 4;

impl<'a> Wait<'a> {
    fn begin(case: &'a Case, scan: &'a ScanId, gib: u64) -> Self {
        let now = Instant::now();
        let (patience, pause) = (patience(gib), shortest(case));
        Self { case, scan, patience, began: now, last: now, unread: None, others: None, pause }
    }

    /// The room told something of this scan; the first that it told where it was `unheard` of.
    fn heard(&mut self, unheard: bool) {
        self.last = Instant::now();
        self.unread = None;
        self.pause = shortest(self.case);
        if unheard {
            self.began = self.last;
        }
    }

    /// Its events could not be read now. A store that fails says nothing about the room, for as long as a room may be silent.
    fn not_read(&mut self, error: &CloudError) -> Option<Told> {
        let (now, bound) = (Instant::now(), self.case.bounds.silence);
        let since = *self.unread.get_or_insert(now);
        if since == now {
            waiting(self.case, self.scan, &format!("its events are read again: {error}"));
        }
        self.last = now;
        (now - since > bound).then(|| {
            let minutes = bound.as_secs() / 60;
            Told::Unread(format!("for {minutes} minutes now: {error}"))
        })
    }

    /// Whether to look if the room is busy with another scan.
    fn is_quiet(&self) -> bool {
        let every = self.case.bounds.silence / LOOKS;
        let looked = self.others.as_ref().is_none_or(|(at, _)| at.elapsed() >= every);
        self.last.elapsed() >= every && looked
    }

    /// A room carries orders out one after the other: what it tells of those before is a sign of its life.
    async fn listen_to_others(&mut self) {
        let Ok(told) = before(self.case, self.scan).await else { return };
        let now = Instant::now();
        if let Some((_, known)) = &self.others
            && *known != told
        {
            self.last = now;
            waiting(self.case, self.scan, "the room carries out an order before it");
        }
        self.others = Some((now, told));
    }

    /// Why it is not waited for any longer, where that is so.
    fn over(&self, heard: &Heard) -> Option<String> {
        let silence = self.case.bounds.silence;
        let ahead = self.others.as_ref().map_or(0, |(_, told)| told.len());
        let turns = if heard.seq == 0 { u32::try_from(ahead).unwrap_or(u32::MAX) } else { 0 };
        let most = self.patience.saturating_mul(turns.saturating_add(1));
        let minutes = |bound: Duration| bound.as_secs() / 60;
        let newest = heard.newest.as_str();
        if self.last.elapsed() > silence {
            let minutes = minutes(silence);
            return Some(match newest {
                "" => format!("it has told nothing within {minutes} minutes"),
                newest => {
                    format!("it has told nothing for {minutes} minutes; the last was: {newest}")
                }
            });
        }
        (self.began.elapsed() > most).then(|| {
            format!("it took longer than {} minutes; the last was: {newest}", minutes(most))
        })
    }
}

/// Between two reads of what a room tells, at first.
fn shortest(case: &Case) -> Duration {
    Duration::from_millis(500).min(case.bounds.poll)
}

/// Orders before a scan's that are looked at, the newest of them.
const MOST_BEFORE: usize = 8;

/// The keys of the newest events of the scans that were ordered before this one and have not come to an end.
async fn before(case: &Case, scan: &ScanId) -> Result<Vec<String>, String> {
    let (store, id) = (&*case.store, &case.scene.case);
    let ledger = case.journal.ledger().await;
    let scans = order::scans(store, id).await?;
    // Another room's are no sign of this one's life.
    let before = scans.range(..scan.clone()).rev().filter(|(_, room)| **room == case.scene.room);
    let open = before.map(|(scan, _)| scan).filter(|scan| !ledger.is_over(scan));
    let mut told = Vec::new();
    for other in open.take(MOST_BEFORE) {
        let keys = store.list(&events_prefix(id, other), false).await;
        let keys = keys.map_err(|error| error.to_string())?;
        told.extend(keys.into_iter().next_back());
    }
    Ok(told)
}

fn waiting(case: &Case, scan: &ScanId, what: &str) {
    case.progress.tell(Event::Waiting {
        instance: case.scene.instance.clone(),
        step: Step::CleanRoom,
        what: format!("scan {scan}: {what}"),
    });
}

#[cfg(test)]
mod tests {
    use cleanroom_contract::VersionOne;

    use super::*;

    fn ids() -> (CaseId, ScanId) {
        let scan = "20260102T030405Z-0123abcd".parse().expect("a scan id");
        ("c-1".parse().expect("a case id"), scan)
    }

    fn event(seq: u64, news: RoomNews) -> Vec<u8> {
        let (case, scan) = ids();
        let event = RoomEvent { v: VersionOne, case, scan, seq, at: Timestamp::default(), news };
        serde_json::to_vec(&event).expect("an event is JSON")
    }

    #[test]
    fn what_is_no_event_of_the_scan_decides_nothing() {
        let (case, scan) = ids();
        let mut heard = Heard::default();
        let failed = RoomNews::Failed { reason: "none of its business".to_owned() };
        for bytes in [&b"{"[..], &event(7, failed.clone()), b"[]"] {
            heard.take(&case, &scan, bytes);
        }
        assert_eq!((heard.seq, heard.odd.len(), heard.failed.clone()), (3, 3, None));
        let other: CaseId = "c-2".parse().expect("a case id");
        heard.take(&other, &scan, &event(4, failed));
        assert_eq!((heard.odd.len(), heard.failed.clone()), (4, None));
    }

    #[test]
    fn a_new_attempt_forgets_that_the_last_one_failed() {
        let (case, scan) = ids();
        let mut heard = Heard::default();
        let failed = RoomNews::Failed { reason: "x\u{1b}[2J".to_owned() };
        heard.take(&case, &scan, &event(1, failed));
        assert_eq!(heard.failed.as_deref(), Some("x\\u{1b}[2J"));
        let agent = "cleanroom-agent 0.1.0".to_owned();
        let started = RoomNews::Started { agent, agent_sha256: None, attempt: 2 };
        heard.take(&case, &scan, &event(2, started));
        assert_eq!(
            (heard.failed, heard.newest.as_str()),
            (None, "cleanroom-agent 0.1.0 runs, attempt 2")
        );
    }

    #[test]
    fn progress_is_told_even_where_its_numbers_are_nonsense() {
        for (bytes, bytes_total, share) in
            [(0, 0, "0 %"), (5, 10, "50 %"), (u64::MAX, 1, "100 %"), (20, 10, "100 %")]
        {
            let news = RoomNews::Progress {
                volume: "vol-1".to_owned(),
                entries: 1,
                bytes,
                bytes_total,
                findings: 0,
                gaps: 0,
            };
            let words = words(&news);
            assert!(words.starts_with(&format!("vol-1: {share},")), "{words}");
        }
    }
}
