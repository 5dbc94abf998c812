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

use super::bundle::SUMS;
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
    /// Volumes that never came, by the ids of the room's copies.
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
            RoomNews::Started { .. } => self.failed = None,
            RoomNews::Progress { .. }
            | RoomNews::Findings { .. }
            | RoomNews::Unpublished { .. }
            | RoomNews::Untold { .. } => {}
        }
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
}

/// How long a scan of so many GiB may take: two hours, and thirty seconds a GiB.
fn patience(gib: u64) -> Duration {
    Duration::from_secs(7_200 + gib.saturating_mul(30))
}

/// Waits until the scan has ended, telling its progress.
pub async fn until_told(case: &Case, scan: &ScanId, gib: u64, heard: &mut Heard) -> Told {
    let (began, bounds) = (Instant::now(), &case.bounds);
    let mut last = began;
    let mut pause = Duration::from_millis(500).min(bounds.poll);
    loop {
        match listen(&*case.store, (&case.scene.case, scan), heard).await {
            Ok(true) => {
                last = Instant::now();
                pause = Duration::from_millis(500).min(bounds.poll);
                waiting(case, scan, heard);
            }
            Ok(false) => {}
            Err(error) if error.is_transient() => {}
            Err(error) => return Told::Silent(format!("its events can not be read: {error}")),
        }
        if heard.published.is_some() {
            return Told::Published;
        }
        if let Some(why) = &heard.failed {
            return Told::Failed(why.clone());
        }
        if heard.idle {
            return Told::Silent("the room ended itself without a bundle".to_owned());
        }
        let (quiet, long) = (last.elapsed() > bounds.silence, began.elapsed() > patience(gib));
        if quiet || long {
            let sums = format!("{}{SUMS}", bundle_prefix(&case.scene.case, scan));
            if matches!(case.store.get(&sums).await, Ok(Some(_))) {
                return Told::Published;
            }
            let bound = if quiet { bounds.silence } else { patience(gib) };
            let minutes = bound.as_secs() / 60;
            return Told::Silent(match (quiet, heard.newest.as_str()) {
                (true, "") => format!("it has told nothing within {minutes} minutes"),
                (true, newest) => {
                    format!("it has told nothing for {minutes} minutes; the last was: {newest}")
                }
                (false, newest) => {
                    format!("it took longer than {minutes} minutes; the last was: {newest}")
                }
            });
        }
        tokio::time::sleep(pause).await;
        pause = (pause * 2).min(bounds.poll);
    }
}

fn waiting(case: &Case, scan: &ScanId, heard: &Heard) {
    case.progress.tell(Event::Waiting {
        instance: case.scene.instance.clone(),
        step: Step::CleanRoom,
        what: format!("scan {scan}: {}", heard.newest),
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
