//! What the flows share: commands that must end well, rooms that boot meanwhile, and bundles read.

use std::{
    fs,
    path::Path,
    process::{Child, Output, Stdio},
    time::Duration,
};

use cleanroom_harness::{
    incident::Incident,
    room::{Machine, SHELL, Site},
};
use serde_json::Value;

/// How long a part may take under emulation on a busy machine.
pub(crate) const PATIENCE: Duration = Duration::from_secs(420);

/// How a command ended, and what it said.
pub(crate) fn words(output: &Output) -> String {
    format!(
        "{}\n{}\n{}",
        output.status,
        String::from_utf8_lossy(&output.stdout),
        String::from_utf8_lossy(&output.stderr)
    )
}

/// Runs a command that must end with one of these statuses.
pub(crate) fn expect(incident: &Incident, statuses: &[i32], typed: &[&str]) -> Output {
    let output = incident.ran(typed).expect("start");
    let code = output.status.code().unwrap_or(-1);
    assert!(statuses.contains(&code), "cleanroom {}: {}", typed.join(" "), words(&output));
    output
}

/// Starts a command, and goes on.
pub(crate) fn start(incident: &Incident, typed: &[&str]) -> Child {
    let mut command = incident.cleanroom(typed);
    command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().expect("start cleanroom")
}

/// Boots the room of a case that a command under way launches. No evidence is attached yet.
pub(crate) fn boot(incident: &Incident, site: &Site, under_way: &mut Child) -> Machine {
    site.launched(|| Ok(under_way.try_wait()?.is_none())).expect("a stack with an instance");
    site.boot(&[incident.agent().to_owned()], SHELL).expect("boot")
}

/// Where a command that was started has ended, what it said.
pub(crate) fn ended(child: Child, room: &mut Machine) -> Output {
    let mut child = child;
    let mut told = None;
    let asked = room.until("the command's end", PATIENCE, |_| {
        told = child.try_wait()?;
        Ok(told.is_some())
    });
    if asked.is_err() && told.is_none() {
        let _ = child.kill();
    }
    let output = child.wait_with_output().expect("output");
    asked.unwrap_or_else(|error| panic!("{error:#}\n{}", words(&output)));
    output
}

/// The records of a file of a bundle.
pub(crate) fn lines(path: &Path) -> Vec<Value> {
    let text = fs::read_to_string(path).expect("a file of the bundle");
    text.lines().map(|line| serde_json::from_str(line).expect("a record")).collect()
}
