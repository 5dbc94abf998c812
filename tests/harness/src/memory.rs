//! The memory of a program and all its processes, watched while it runs.
//!
//! Purpose: the highest sum of proportional set sizes (proc(5), `smaps_rollup`): a page that three
//! processes share counts a third for each, so that a program of many processes compares fairly with one
//! of many threads. Reads /proc only. What comes and goes between two looks is not seen.

use std::{
    collections::HashMap,
    fs,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    thread::JoinHandle,
    time::Duration,
};

/// Between two looks.
const PERIOD: Duration = Duration::from_millis(50);

/// A watch over one program.
#[derive(Debug)]
pub(crate) struct Watch {
    stop: Arc<AtomicBool>,
    thread: JoinHandle<u64>,
}

impl Watch {
    /// Begins to watch the process and its descendants.
    #[must_use]
    pub(crate) fn start(pid: u32) -> Self {
        let stop = Arc::new(AtomicBool::new(false));
        let ended = Arc::clone(&stop);
        let thread = std::thread::spawn(move || {
            let mut peak = 0;
            while !ended.load(Ordering::Relaxed) {
                peak = peak.max(total(pid));
                std::thread::park_timeout(PERIOD);
            }
            peak
        });
        Self { stop, thread }
    }

    /// Ends the watch; the highest sum seen, in bytes.
    #[must_use]
    pub(crate) fn peak(self) -> u64 {
        self.stop.store(true, Ordering::Relaxed);
        self.thread.thread().unpark();
        self.thread.join().unwrap_or(0)
    }
}

/// The sum over a process and its descendants, in bytes.
fn total(root: u32) -> u64 {
    let parents: HashMap<u32, u32> = fs::read_dir("/proc")
        .into_iter()
        .flatten()
        .filter_map(|entry| entry.ok()?.file_name().to_str()?.parse().ok())
        .filter_map(|pid| Some((pid, parent(pid)?)))
        .collect();
    let is_ours = |mut pid: u32| {
        // No chain of parents is longer than the number of processes.
        for _ in 0..parents.len() {
            if pid == root {
                return true;
            }
            match parents.get(&pid) {
                Some(parent) => pid = *parent,
                None => return false,
            }
        }
        false
    };
    parents.keys().copied().filter(|pid| is_ours(*pid)).map(proportional).sum()
}

fn parent(pid: u32) -> Option<u32> {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    // The name before it may hold spaces and parentheses.
    stat.rsplit_once(')')?.1.split_whitespace().nth(1)?.parse().ok()
}

fn proportional(pid: u32) -> u64 {
    let Ok(rollup) = fs::read_to_string(format!("/proc/{pid}/smaps_rollup")) else { return 0 };
    let line = rollup.lines().find_map(|line| line.strip_prefix("Pss:"));
    let kib = line.and_then(|line| line.trim().trim_end_matches(" kB").parse::<u64>().ok());
    kib.unwrap_or(0) << 10
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_child_counts_with_its_parent() {
        let alone = total(std::process::id());
        let mut child = std::process::Command::new("sleep").arg("30").spawn().unwrap();
        let both = total(std::process::id());
        let child_only = total(child.id());
        child.kill().unwrap();
        child.wait().unwrap();
        assert!(alone > 0 && child_only > 0 && both > child_only, "{alone} {child_only} {both}");
    }
}
