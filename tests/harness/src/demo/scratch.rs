//! Everything temporary of the demo in one folder, which goes with it however it ends: disks of an instance are large.
//!
//! Touches that folder, and takes Ctrl-C and SIGTERM over. QEMU and the emulator die with this process by themselves.

use std::{fs, io, path::Path, thread};

use anyhow::{Context, Result, ensure};
use tempfile::TempDir;
use tokio::signal::unix::{SignalKind, signal};

/// A folder in `work`, in which from now on all temporary files of this process are.
pub(super) fn below(work: &Path) -> Result<TempDir> {
    let folder = tempfile::Builder::new().prefix("run-").tempdir_in(work);
    let folder = folder.with_context(|| format!("create a folder in {}", work.display()))?;
    let path = folder.path().to_owned();
    ensure!(
        tempfile::env::override_temp_dir(&path).is_ok(),
        "temporary files lie elsewhere already"
    );
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
    let runtime = runtime.context("start a runtime")?;
    thread::spawn(move || {
        let Ok(status) = runtime.block_on(interrupted()) else { return };
        let _gone = fs::remove_dir_all(&path);
        leave(status);
    });
    Ok(folder)
}

/// Waits for somebody to end the demo; the exit status that says so.
async fn interrupted() -> io::Result<i32> {
    let (mut interrupt, mut terminate) =
        (signal(SignalKind::interrupt())?, signal(SignalKind::terminate())?);
    Ok(tokio::select! {
        _ = interrupt.recv() => 130,
        _ = terminate.recv() => 143,
    })
}

#[expect(clippy::exit, reason = "the other threads wait for what will not come any more")]
fn leave(status: i32) {
    std::process::exit(status);
}
