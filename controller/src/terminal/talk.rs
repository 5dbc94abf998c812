//! The one thread that writes while a response runs.
//!
//! A pipe that nobody reads, or a terminal that is stopped, blocks whoever writes to it, and here an interface may be open
//! for a moment: so the runtime never writes. It hands over, and what the thread is too slow for is counted and dropped, but
//! for what a person is told and the reports in the end.

use std::{
    io::{self, Write as _},
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
        mpsc::{self, RecvTimeoutError},
    },
    thread::JoinHandle,
    time::{Duration, Instant},
};

use cleanroom_contract::InstanceId;
use cleanroom_controller::progress::Event;
use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};

use super::board::{self, Board};

/// Events that may wait to be written.
const DEPTH: usize = 16_384;

/// How often the live view is drawn.
const FRAME: Duration = Duration::from_millis(100);

/// What is shown where.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Shown {
    /// Every event as a line of JSON on standard output.
    pub events: bool,
    /// The live view on standard error; else lines.
    pub live: bool,
}

enum Message {
    Event(Event),
    /// For people, now.
    Say(String),
    /// An instance's response is over: whether it is whole, and what goes to standard output.
    Over(InstanceId, bool, String),
}

/// The way to the thread.
pub(crate) struct Talk {
    sender: mpsc::Sender<Message>,
    queued: Arc<AtomicUsize>,
    dropped: AtomicUsize,
    thread: JoinHandle<io::Result<()>>,
}

impl Talk {
    /// Begins to show.
    pub(crate) fn begin(
        shown: Shown,
        order: Vec<InstanceId>,
        steps: std::collections::BTreeSet<cleanroom_controller::case::Step>,
        palette: super::Palette,
    ) -> Self {
        let (sender, receiver) = mpsc::channel();
        let queued = Arc::new(AtomicUsize::new(0));
        let mut screen = Screen {
            shown,
            board: Board::new(order, steps, palette),
            bar: shown.live.then(bar),
            began: Instant::now(),
            drawn: None,
            written: Ok(()),
            gone: false,
            queued: Arc::clone(&queued),
        };
        let thread = std::thread::spawn(move || screen.run(&receiver));
        Self { sender, queued, dropped: AtomicUsize::new(0), thread }
    }

    /// Shows an event, unless too many wait already.
    pub(crate) fn event(&self, event: Event) {
        let loud = matches!(event, Event::Open { .. });
        if !loud && self.queued.load(Ordering::Relaxed) >= DEPTH {
            self.dropped.fetch_add(1, Ordering::Relaxed);
            return;
        }
        self.queued.fetch_add(1, Ordering::Relaxed);
        drop(self.sender.send(Message::Event(event)));
    }

    /// Tells people something.
    pub(crate) fn say(&self, text: impl Into<String>) {
        drop(self.sender.send(Message::Say(text.into())));
    }

    /// An instance's response is over; `out` is for standard output.
    pub(crate) fn over(&self, instance: &InstanceId, whole: bool, out: String) {
        drop(self.sender.send(Message::Over(instance.clone(), whole, out)));
    }

    /// Waits until all is written, as long as `bound` where there is one: a person who interrupts does not wait
    /// for a reader who does not read. Returns how many events were dropped.
    ///
    /// # Errors
    /// Standard output takes no more, for another reason than that its reader is gone.
    pub(crate) fn end(self, bound: Option<Duration>) -> io::Result<usize> {
        drop(self.sender);
        let ends = bound.map(|bound| Instant::now() + bound);
        while let Some(ends) = ends
            && !self.thread.is_finished()
        {
            if Instant::now() >= ends {
                return Ok(self.dropped.into_inner());
            }
            std::thread::park_timeout(Duration::from_millis(10));
        }
        self.thread.join().unwrap_or_else(|_| Err(io::Error::other("the writing thread ended")))?;
        Ok(self.dropped.into_inner())
    }
}

fn bar() -> ProgressBar {
    let bar = ProgressBar::with_draw_target(None, ProgressDrawTarget::stderr_with_hz(10));
    if let Ok(style) = ProgressStyle::with_template("{msg}") {
        bar.set_style(style);
    }
    bar
}

/// What the thread owns.
struct Screen {
    shown: Shown,
    board: Board,
    bar: Option<ProgressBar>,
    began: Instant,
    drawn: Option<Instant>,
    written: io::Result<()>,
    /// Whether nobody reads standard output any more.
    gone: bool,
    queued: Arc<AtomicUsize>,
}

impl Screen {
    fn run(&mut self, receiver: &mpsc::Receiver<Message>) -> io::Result<()> {
        let mut reports = Vec::new();
        loop {
            match receiver.recv_timeout(FRAME) {
                Ok(message) => self.take(message, &mut reports),
                Err(RecvTimeoutError::Timeout) => self.draw(),
                Err(RecvTimeoutError::Disconnected) => break,
            }
        }
        if let Some(bar) = &self.bar {
            bar.finish_and_clear();
        }
        for report in reports {
            self.print(&report);
        }
        std::mem::replace(&mut self.written, Ok(()))
    }

    fn take(&mut self, message: Message, reports: &mut Vec<String>) {
        match message {
            Message::Event(event) => {
                self.queued.fetch_sub(1, Ordering::Relaxed);
                self.board.take(&event);
                if self.shown.events
                    && let Ok(mut line) = serde_json::to_string(&event)
                {
                    line.push('\n');
                    self.print(&line);
                }
                if self.bar.is_none()
                    && !self.shown.events
                    && let Some(line) = board::line(&event)
                {
                    self.say(&line);
                }
                self.draw();
            }
            Message::Say(text) => self.say(&text),
            Message::Over(instance, whole, out) => {
                self.board.over(&instance, whole);
                // For people, reports follow the live view; programs get each when it is there.
                if self.shown.events { self.print(&out) } else { reports.push(out) }
            }
        }
    }

    fn draw(&mut self) {
        let due = self.drawn.is_none_or(|at| at.elapsed() >= FRAME);
        if let Some(bar) = self.bar.as_ref().filter(|_| due) {
            self.drawn = Some(Instant::now());
            let frame = self.board.frame(self.began.elapsed().as_secs_f64(), super::size());
            bar.set_message(frame);
        }
    }

    fn say(&self, text: &str) {
        match &self.bar {
            Some(bar) => bar.println(text),
            // With standard error gone there is nobody to tell.
            None => drop(writeln!(io::stderr().lock(), "{text}")),
        }
    }

    /// Writes to standard output, until it takes no more.
    fn print(&mut self, text: &str) {
        if self.written.is_ok() && !self.gone {
            let mut out = io::stdout().lock();
            self.written = out.write_all(text.as_bytes()).and_then(|()| out.flush());
        }
        // A reader who has gone ends the output, not the work.
        if self.written.as_ref().is_err_and(|e| e.kind() == io::ErrorKind::BrokenPipe) {
            self.written = Ok(());
            self.gone = true;
        }
    }
}
