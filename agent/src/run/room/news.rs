//! What the room tells of a scan while it runs.
//!
//! Purpose: events in the bucket as things happen, a sign of life where nothing does, a word to the orders that wait behind
//! the scan, and heartbeats for the task that waits. Touches the bucket's events of one case and one task, from a thread of
//! its own with connections of its own. Never holds the scan up: what the scan tells is put on a board, where newer progress
//! takes the place of older, and of findings only the worst are kept; all of them are in the bundle. Never says that the
//! scan goes on by itself: who works says so, and says it again.

use std::{
    collections::{BTreeMap, VecDeque},
    sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError},
    thread::JoinHandle,
    time::{Duration, Instant},
};

use cleanroom_agent_aws::{Aws, CloudError, ErrorKind, Put, Store};
use cleanroom_contract::{
    CaseId, Finding, Record, RoomEvent, RoomNews, RoomWork, ScanId, Severity, VersionOne,
    event_key, events_prefix, order_key, orders_prefix,
};
use tokio::sync::Notify;

use super::super::{now, say, scan::Watcher};
use crate::supervise::Sight;

/// Findings that one event names.
const NAMED: usize = 10;
/// What is found at once is told at once.
const GATHER: Duration = Duration::from_millis(300);
/// The shortest time between two events of a kind, and the longest that it grows to: a scan takes seconds, or days.
const PACE: (Duration, Duration) = (Duration::from_secs(5), Duration::from_secs(60));
/// The shortest and the longest pause after an event that could not be written.
const PAUSE: (Duration, Duration) = (Duration::from_millis(500), Duration::from_secs(15));
/// The longest time without an event while the agent works: whoever waits is promised a minute.
const LIFE: Duration = Duration::from_secs(40);
/// Orders that are told that they wait; there is no sense in more.
const QUEUED: usize = 16;
/// The time between two heartbeats.
const HEARTBEAT: Duration = Duration::from_secs(30);
/// The largest event that is read back.
const MAX_EVENT: usize = 4 << 20;

/// Whom the news are about, and who waits for them.
#[derive(Clone, Debug)]
pub(super) struct About {
    pub(super) region: Option<String>,
    pub(super) bucket: String,
    pub(super) case: CaseId,
    pub(super) room: u32,
    pub(super) scan: ScanId,
    pub(super) token: Option<String>,
}

/// The room's voice on one scan.
#[derive(Debug)]
pub(super) struct News {
    shared: Arc<Shared>,
    thread: Option<JoinHandle<()>>,
}

#[derive(Debug, Default)]
struct Shared {
    board: Mutex<Board>,
    /// Something is to be told.
    changed: Notify,
    /// Something was told.
    told: Condvar,
}

/// What is to be told.
#[derive(Debug, Default)]
struct Board {
    /// In this order, all of it.
    told: VecDeque<RoomNews>,
    /// An event is being written.
    busy: bool,
    /// The worst that were not told yet.
    findings: Vec<(Severity, Vec<u8>)>,
    progress: Option<RoomNews>,
    /// What is worked on, since the last event.
    work: Option<RoomWork>,
    /// The order is carried out: whoever is queued need not wait for it any more.
    resting: bool,
    volume: String,
    bytes_total: u64,
    /// Until when what is left may still be told, once nothing is added any more.
    closing: Option<Instant>,
}

impl Shared {
    fn board(&self) -> MutexGuard<'_, Board> {
        // What is on the board is whole at every moment.
        self.board.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl News {
    /// Begins to tell.
    pub(super) fn start(about: About) -> Self {
        let shared = Arc::new(Shared::default());
        let board = Arc::clone(&shared);
        let named = std::thread::Builder::new().name("news".to_owned());
        let thread = named.spawn(move || tell_all(&board, &about));
        if let Err(error) = &thread {
            say(&format!("no events will be written: {error}"));
        }
        Self { shared, thread: thread.ok() }
    }

    /// Tells something, after what was told before.
    pub(super) fn tell(&self, news: RoomNews) {
        self.shared.board().told.push_back(news);
        self.shared.changed.notify_one();
    }

    /// Says that the work goes on, which is told where nothing else is.
    pub(super) fn works(&self, at: RoomWork) {
        self.shared.board().work = Some(at);
    }

    /// Says that the order is carried out.
    pub(super) fn rest(&self) {
        let mut board = self.shared.board();
        (board.resting, board.work) = (true, None);
    }

    /// Waits until all that was to be told is written, but no longer than this. Whether it is.
    pub(super) fn flush(&self, patience: Duration) -> bool {
        let left = |board: &mut Board| board.busy || !board.told.is_empty();
        let waited = self.shared.told.wait_timeout_while(self.shared.board(), patience, left);
        let (mut board, _) = waited.unwrap_or_else(PoisonError::into_inner);
        !left(&mut board)
    }

    /// Waits until all is told, but no longer than this, and ends.
    pub(super) fn close(mut self, patience: Duration) {
        self.shared.board().closing = Some(Instant::now() + patience);
        self.shared.changed.notify_one();
        if let Some(thread) = self.thread.take() {
            drop(thread.join());
        }
        let board = self.shared.board();
        let left = board.told.len() + usize::from(board.busy);
        if left > 0 {
            say(&format!("{left} events could not be written"));
        }
    }
}

impl Watcher for News {
    fn begins(&self, volume: &str, total: Option<u64>) {
        let mut board = self.shared.board();
        board.volume = volume.to_owned();
        board.bytes_total = board.bytes_total.saturating_add(total.unwrap_or(0));
    }

    fn sees(&self, sight: &Sight<'_>) {
        let mut board = self.shared.board();
        match sight {
            Sight::Totals(totals) => {
                let sum = totals.sum();
                board.progress = Some(RoomNews::Progress {
                    volume: board.volume.clone(),
                    entries: sum.entries,
                    bytes: sum.bytes,
                    bytes_total: board.bytes_total,
                    findings: totals.findings.total(),
                    gaps: totals.gaps.values().sum(),
                });
            }
            Sight::Finding(severity, json) => {
                board.found(*severity, json);
                self.shared.changed.notify_one();
            }
        }
    }

    fn seals(&self) {
        self.works(RoomWork::Sealing);
    }
}

impl Board {
    /// Keeps a finding where it is among the worst; of equals the first.
    fn found(&mut self, severity: Severity, json: &[u8]) {
        let at = self.findings.partition_point(|(known, _)| *known >= severity);
        if at < NAMED {
            self.findings.insert(at, (severity, json.to_owned()));
            self.findings.truncate(NAMED);
        }
    }

    /// The findings that are to be told, worst first.
    fn take_findings(&mut self) -> Option<RoomNews> {
        let lines = std::mem::take(&mut self.findings);
        let findings: Vec<Finding> = lines
            .iter()
            .filter_map(|(_, json)| match serde_json::from_slice(json) {
                Ok(Record::Finding(finding)) => Some(finding),
                _ => None,
            })
            .collect();
        (!findings.is_empty()).then_some(RoomNews::Findings { findings })
    }
}

/// When the next event of a kind may go out.
struct Pace {
    next: Instant,
    between: Duration,
}

impl Pace {
    fn new(first: Duration) -> Self {
        Self { next: Instant::now() + first, between: PACE.0 }
    }

    fn is_due(&self) -> bool {
        Instant::now() >= self.next
    }

    fn went_out(&mut self) {
        self.next = Instant::now() + self.between;
        self.between = (self.between * 5 / 4).min(PACE.1);
    }
}

/// When the next event of each kind may go out.
struct Paces {
    findings: Pace,
    progress: Pace,
    /// When something was told last.
    told: Instant,
}

impl Paces {
    fn new() -> Self {
        let (findings, progress) = (Pace::new(Duration::ZERO), Pace::new(PACE.0));
        Self { findings, progress, told: Instant::now() }
    }
}

/// The thread.
fn tell_all(shared: &Shared, about: &About) {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
    let Ok(runtime) = runtime else { return say("no events will be written: no runtime") };
    runtime.block_on(async {
        let aws = match Aws::connect(about.region.as_deref()).await {
            Ok(aws) => aws,
            Err(error) => return say(&format!("no events will be written: {error}")),
        };
        let mut teller = Teller::new(aws.brief_store(&about.bucket), about, &about.scan);
        tokio::select! {
            () = teller.run(shared) => {}
            () = deadline(shared) => {}
            () = tell_queued(&aws, about, shared) => {}
            () = heartbeats(&aws, about.token.as_deref()) => {}
        }
    });
}

/// Ends when there is no more time to tell anything.
async fn deadline(shared: &Shared) {
    loop {
        let closing = shared.board().closing;
        if closing.is_some_and(|until| Instant::now() >= until) {
            return;
        }
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
}

/// Tells the task that the work goes on, as long as it waits. Never ends.
async fn heartbeats(aws: &Aws, token: Option<&str>) {
    let Some(token) = token else { return std::future::pending().await };
    loop {
        match aws.heartbeat(token).await {
            Err(CloudError { kind: ErrorKind::NotFound | ErrorKind::Refused, .. }) => break,
            // The next one is soon.
            Ok(()) | Err(_) => tokio::time::sleep(HEARTBEAT).await,
        }
    }
    std::future::pending().await
}

/// Tells the orders that came meanwhile that they wait, as long as they do. Never ends.
async fn tell_queued(aws: &Aws, about: &About, shared: &Shared) {
    let store = aws.brief_store(&about.bucket);
    let prefix = orders_prefix(&about.case, about.room);
    let own = order_key(&about.case, about.room, &about.scan);
    let mut tellers: BTreeMap<ScanId, Teller<'_>> = BTreeMap::new();
    while !shared.board().resting {
        // Who can not be told now is told the next time.
        let keys = store.list(&prefix, Some(&own)).await.unwrap_or_default();
        let scan = |key: &String| key.strip_prefix(&prefix)?.strip_suffix(".json")?.parse().ok();
        for scan in keys.iter().filter_map(scan).take(QUEUED) {
            let new = || Teller::new(store.clone(), about, &scan);
            let teller = tellers.entry(scan.clone()).or_insert_with(new);
            drop(teller.try_write(&RoomNews::Queued { behind: about.scan.clone() }).await);
        }
        tokio::time::sleep(LIFE).await;
    }
    std::future::pending().await
}

/// Writes events of a scan.
struct Teller<'a> {
    store: Store,
    case: &'a CaseId,
    scan: ScanId,
    /// The next event's number, once it is known.
    seq: Option<u64>,
}

impl<'a> Teller<'a> {
    fn new(store: Store, about: &'a About, scan: &ScanId) -> Self {
        Self { store, case: &about.case, scan: scan.clone(), seq: None }
    }

    /// Tells what comes, until nothing is left and nothing will be added.
    async fn run(&mut self, shared: &Shared) {
        let mut paces = Paces::new();
        loop {
            let (news, is_last) = {
                let mut board = shared.board();
                let next = next(&mut board, &mut paces);
                board.busy = next.0.is_some();
                next
            };
            match news {
                Some(news) => {
                    self.write(&news).await;
                    paces.told = Instant::now();
                    shared.board().busy = false;
                    shared.told.notify_all();
                }
                None if is_last => return,
                None => {}
            }
            if shared.board().is_waiting() {
                let wait = tokio::time::timeout(PACE.0 / 10, shared.changed.notified());
                if wait.await.is_ok() && shared.board().is_waiting() {
                    tokio::time::sleep(GATHER).await;
                }
            }
        }
    }

    /// Writes one event, however long it takes.
    async fn write(&mut self, news: &RoomNews) {
        let mut pause = PAUSE.0;
        let mut said = false;
        loop {
            match self.try_write(news).await {
                Ok(()) => return,
                Err(error) => {
                    if !std::mem::replace(&mut said, true) {
                        say(&format!("an event could not be written, and is tried again: {error}"));
                    }
                    tokio::time::sleep(pause).await;
                    pause = (pause * 2).min(PAUSE.1);
                }
            }
        }
    }

    async fn try_write(&mut self, news: &RoomNews) -> Result<(), CloudError> {
        let (case, scan) = (self.case, &self.scan);
        let at = now();
        loop {
            let seq = match self.seq {
                Some(seq) => seq,
                None => self.first_free().await?,
            };
            let event = RoomEvent {
                v: VersionOne,
                case: case.clone(),
                scan: scan.clone(),
                seq,
                at,
                news: news.clone(),
            };
            // What the contract's types hold can always be written.
            let bytes = serde_json::to_vec(&event).unwrap_or_default();
            let key = event_key(case, scan, seq);
            let put = self.store.create(&key, bytes.clone()).await?;
            // There may be an event of an agent that was killed; or this very one, whose answer was lost.
            let ours = put == Put::Created
                || matches!(self.store.get(&key, MAX_EVENT).await, Ok(Some(there)) if there == bytes);
            self.seq = Some(seq + 1);
            if ours {
                return Ok(());
            }
        }
    }

    /// The number after those of an agent that was killed. Who may not list them tries one after another.
    async fn first_free(&self) -> Result<u64, CloudError> {
        let prefix = events_prefix(self.case, &self.scan);
        let keys = match self.store.list(&prefix, None).await {
            Ok(keys) => keys,
            Err(error) if error.kind == ErrorKind::Denied => Vec::new(),
            Err(error) => return Err(error),
        };
        let number =
            |key: &String| key.strip_prefix(&prefix)?.strip_suffix(".json")?.parse::<u64>().ok();
        Ok(keys.iter().filter_map(number).max().unwrap_or(0) + 1)
    }
}

impl Board {
    /// Whether the next moment may bring something new: nothing is left to tell in order.
    fn is_waiting(&self) -> bool {
        self.told.is_empty() && self.closing.is_none()
    }
}

/// What is told next, and whether nothing will come after.
fn next(board: &mut Board, paces: &mut Paces) -> (Option<RoomNews>, bool) {
    let next = choose(board, paces);
    if next.0.is_some() {
        // That is sign of life enough, and what was worked on may be done.
        board.work = None;
    }
    next
}

fn choose(board: &mut Board, paces: &mut Paces) -> (Option<RoomNews>, bool) {
    let Paces { findings, progress, told } = paces;
    // What is in the bundle needs no event after it.
    let sealed = matches!(board.told.front(), Some(RoomNews::Sealed { .. }));
    let due = findings.is_due() && board.told.is_empty();
    if (due || sealed)
        && let Some(news) = board.take_findings()
    {
        findings.went_out();
        return (Some(news), false);
    }
    if sealed {
        board.progress = None;
    }
    if let Some(news) = board.told.pop_front() {
        return (Some(news), false);
    }
    if progress.is_due()
        && let Some(news) = board.progress.take()
    {
        progress.went_out();
        return (Some(news), false);
    }
    if told.elapsed() >= LIFE
        && let Some(at) = board.work
    {
        return (Some(RoomNews::Working { doing: at }), false);
    }
    (None, board.closing.is_some())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn kinds(board: &mut Board) -> Vec<&'static str> {
        let mut paces = Paces { findings: Pace::new(PACE.1), ..Paces::new() };
        paces.progress = Pace::new(PACE.1);
        board.closing = Some(Instant::now());
        let mut kinds = Vec::new();
        loop {
            match next(board, &mut paces) {
                (Some(RoomNews::Findings { .. }), _) => kinds.push("findings"),
                (Some(RoomNews::Sealed { .. }), _) => kinds.push("sealed"),
                (Some(RoomNews::Progress { .. }), _) => kinds.push("progress"),
                (Some(_), _) => kinds.push("other"),
                (None, true) => return kinds,
                (None, false) => {}
            }
        }
    }

    fn finding(severity: Severity, title: &str) -> Vec<u8> {
        let record = Record::Finding(Finding {
            v: VersionOne,
            id: "0123456789abcdef".to_owned(),
            severity,
            title: title.to_owned(),
            reason: String::new(),
            technique: None,
            volume: "vol".to_owned(),
            path: None,
            evidence: None,
            source: "check".to_owned(),
            author: None,
            sha256: None,
        });
        serde_json::to_vec(&record).unwrap()
    }

    fn sealed() -> RoomNews {
        RoomNews::Sealed {
            sums: cleanroom_contract::Sha256([0; 32]),
            summary: Box::new(cleanroom_contract::Summary {
                v: VersionOne,
                entries: 0,
                files: 0,
                bytes: 0,
                findings: Default::default(),
                gaps: 0,
                complete: true,
            }),
        }
    }

    #[test]
    fn findings_go_out_before_the_seal_and_progress_not_after_it() {
        let mut board = Board::default();
        board.told.push_back(RoomNews::Idle);
        board.told.push_back(sealed());
        board.progress = Some(RoomNews::Idle);
        board.found(Severity::Low, &finding(Severity::Low, "x"));
        assert_eq!(kinds(&mut board), ["other", "findings", "sealed"]);
    }

    #[test]
    fn whoever_works_and_has_nothing_to_tell_is_not_taken_for_dead() {
        let mut board = Board { work: Some(RoomWork::Sealing), ..Board::default() };
        let mut paces = Paces::new();
        assert_eq!(next(&mut board, &mut paces), (None, false), "something was told just now");
        paces.told = Instant::now().checked_sub(LIFE).expect("the machine runs for a minute");
        let sealing = RoomNews::Working { doing: RoomWork::Sealing };
        assert_eq!(next(&mut board, &mut paces), (Some(sealing), false));
        assert_eq!(next(&mut board, &mut paces), (None, false), "who stops working is silent");
        board.work = Some(RoomWork::Publishing);
        board.told.push_back(sealed());
        assert_eq!(next(&mut board, &mut paces), (Some(sealed()), false), "news before that");
    }

    #[test]
    fn the_worst_findings_are_told_worst_first() {
        let mut board = Board::default();
        for number in 0..30 {
            board.found(Severity::Low, &finding(Severity::Low, &format!("low {number}")));
        }
        board.found(Severity::High, &finding(Severity::High, "high"));
        board.found(Severity::Critical, &finding(Severity::Critical, "critical"));
        let Some(RoomNews::Findings { findings }) = board.take_findings() else {
            panic!("there are findings")
        };
        let titles: Vec<_> = findings.iter().map(|finding| finding.title.as_str()).collect();
        assert_eq!(titles.len(), NAMED);
        assert_eq!(titles[..4], ["critical", "high", "low 0", "low 1"]);
        assert!(board.take_findings().is_none(), "each is told once");
    }
}
