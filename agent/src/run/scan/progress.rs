//! The progress that people watch.
//!
//! Purpose: one line on stderr while a scan runs, on a terminal only. Touches the terminal.

use std::{cell::Cell, rc::Rc, time::Duration};

use cleanroom_contract::printable;
use indicatif::{HumanCount, ProgressBar, ProgressDrawTarget, ProgressStyle};

use super::Watcher;
use crate::supervise::{Sight, Totals};

/// The line. Hidden where stderr is no terminal. Passes on what it is shown to who else watches.
#[derive(Clone)]
pub(super) struct Bar<'w> {
    bar: ProgressBar,
    watcher: Option<&'w dyn Watcher>,
    /// Bytes of the volumes before the one in hand.
    before: Rc<Cell<u64>>,
    seen: Rc<Cell<u64>>,
}

impl<'w> Bar<'w> {
    pub(super) fn new(watcher: Option<&'w dyn Watcher>) -> Self {
        let bar = ProgressBar::with_draw_target(None, ProgressDrawTarget::stderr_with_hz(10));
        Self { bar, watcher, before: Rc::default(), seen: Rc::default() }
    }

    /// A volume begins; `total` are the bytes that will be read, where that is known.
    pub(super) fn begin(&self, volume: &str, total: Option<u64>) {
        self.before.set(self.seen.get());
        if let Some(watcher) = self.watcher {
            watcher.begins(volume, total);
        }
        let template = match total {
            Some(_) => "{prefix} {bar:24} {bytes}/{total_bytes} {bytes_per_sec} {eta} left · {msg}",
            None => "{prefix} {spinner} {bytes} {bytes_per_sec} · {msg}",
        };
        if let Ok(style) = ProgressStyle::with_template(template) {
            self.bar.set_style(style.progress_chars("=> "));
        }
        match total {
            Some(total) => self.bar.set_length(total),
            None => self.bar.unset_length(),
        }
        self.bar.reset();
        self.bar.set_prefix(printable(volume).chars().take(32).collect::<String>());
        self.bar.enable_steady_tick(Duration::from_millis(250));
    }

    /// Shows what the run shows.
    pub(super) fn see(&self, sight: &Sight<'_>) {
        if let Some(watcher) = self.watcher {
            watcher.sees(sight);
        }
        if let Sight::Totals(totals) = sight {
            self.show(totals);
        }
    }

    /// Shows how far the scan is.
    fn show(&self, totals: &Totals) {
        let sum = totals.sum();
        self.seen.set(sum.bytes);
        self.bar.set_position(sum.bytes.saturating_sub(self.before.get()));
        let gaps: u64 = totals.gaps.values().sum();
        self.bar.set_message(format!(
            "{} files · {} findings · {gaps} gaps",
            HumanCount(sum.files),
            HumanCount(totals.findings.total())
        ));
    }

    pub(super) fn clear(&self) {
        self.bar.finish_and_clear();
    }
}

/// The terminal's width in columns.
pub(super) fn width() -> usize {
    let size = rustix::termios::tcgetwinsize(std::io::stdout());
    size.map_or(100, |size| usize::from(size.ws_col.max(40)))
}
