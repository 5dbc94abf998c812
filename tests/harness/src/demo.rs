//! `cargo demo`: from a message on the topic to a report, in one go: intake, the state machine, a clean room that boots, the
//! bundle fetched.
//!
//! Plays an [`Incident`] as a team would live it: an emulated account with the response stack, an instance whose disks were
//! broken into, and the room booted in QEMU. Where QEMU or a kernel for it can not be had, the agent runs on this machine instead, and the
//! demo says so. Builds the programs. Writes below `demo/` in the target folder only: the disks go with the demo, the
//! bundles are kept. Never asks AWS, and knows nothing of the AWS settings of whoever runs it.

mod building;
mod response;
mod scratch;
mod summary;
mod world;

use std::{
    env, fs,
    io::Write as _,
    path::{Path, PathBuf},
    process::Command,
};

use anyhow::{Context, Result, bail, ensure};

use self::world::Facts;
use crate::{
    emulators,
    incident::Incident,
    kernel::Kernel,
    response::ResponseStack,
    tools::{self, fixtures, workspace_root},
};

/// A demonstration is for people, in a pipe too.
const HUMAN: [&str; 2] = ["--format", "human"];

/// Columns that lines which are shortened here may have.
const WIDTH: usize = 100;

/// Runs the demo.
///
/// # Errors
/// Where a tool is missing and can not be installed, a program does not build, or anything that it
/// did is not as it should be.
pub fn run() -> Result<()> {
    let work = target_dir().join("demo");
    fs::create_dir_all(&work).with_context(|| format!("create {}", work.display()))?;
    let _scratch = scratch::below(&work)?;
    tools::ensure(tools::DEMO)?;
    let bootable = tools::ensure(tools::ROOM).and_then(|()| Kernel::get());
    emulators::prepare()?;
    act(
        "Building the agent and the controller (the first time some minutes: the AWS SDK is large)",
    );
    let programs = building::programs(&target_dir())?;

    act("An account with the response stack: functions, state machine, topics");
    println!("Building it in emulators of AWS, and the disks of an instance in it.");
    let incident = Incident::begin(programs)?;
    set_the_scene(&incident)?;
    let stack = incident.response_stack("")?;
    response::introduce(&stack);
    let before = Facts::read(&incident.world)?;

    act(
        "An alert: a message on the topic says that a web server talks to a command-and-control server",
    );
    let scene = Scene { incident: &incident, stack: &stack };
    let (case, teller) = response::alert(&scene)?;
    let room = match bootable {
        Ok(_) => response::booted(&scene, (&case, teller)).map(Some)?,
        Err(why) => {
            response::on_this_machine(&scene, (&case, teller), &why)?;
            None
        }
    };

    act("The account, as AWS's Python SDK sees it, read without any of our code");
    let contained = Facts::read(&incident.world)?;
    println!("before");
    before.print();
    println!("contained");
    contained.print();
    hold("contained", &contained.not_contained(&case))?;
    hold("evidence", &contained.not_preserved(&case))?;

    act("The bundle comes here, every byte of it compared; then the room goes");
    let bundle = fresh_folder(&work)?;
    let (at, out) = (bundle.display().to_string(), ["fetch", &case, "--out"]);
    scene.shown(&[&out[..], &[&at]].concat())?;
    scene.shown(&["custody", "verify", &case])?;
    drop(room);
    scene.shown(&["teardown", &case, "--yes"])?;

    act("The report");
    print!("{}", summary::of(&bundle)?);
    Ok(())
}

/// Puts the responder's files there, shows what there is, and deploys what rooms examine with.
fn set_the_scene(incident: &Incident) -> Result<()> {
    for (from, to) in [
        ("rules/demo.yar", "demo.yar"),
        ("indicators/hashes.txt", "hashes.txt"),
        ("indicators/paths.txt", "paths.txt"),
    ] {
        let path = fixtures().join(from);
        let content = fs::read(&path).with_context(|| format!("read {}", path.display()))?;
        incident.write(to, &content)?;
    }
    println!(
        "\n{}: in an Auto Scaling group, behind three load balancers, with an Elastic IP and a role; its disks:\n",
        incident.world.instance()
    );
    for (volume, disk) in &incident.disks {
        println!("  {volume}  {}", disk.what);
    }
    println!(
        "  {}  will be a byte copy of the clean room's own root disk, to tempt it",
        incident.double.0
    );
    println!(
        "\nThe commands below know these emulators, at 127.0.0.1, and nothing else. What the team examines with is deployed once:"
    );
    let typed = [
        "deploy",
        "--artifacts",
        "artifacts",
        "--agent-only",
        "--rules",
        "demo.yar",
        "--indicators",
        "hashes.txt",
        "--indicators",
        "paths.txt",
    ];
    shown(incident.cleanroom(&[&typed[..], &HUMAN].concat()), &typed)
}

/// What the demo's parts are played with.
struct Scene<'a> {
    incident: &'a Incident,
    stack: &'a ResponseStack,
}

impl Scene<'_> {
    /// `cleanroom` as the responder runs it, beside the response stack.
    fn cleanroom(&self, typed: &[&str]) -> Command {
        let mut command = self.incident.cleanroom(&[typed, &HUMAN].concat());
        command.envs(self.stack.settings());
        command
    }

    fn shown(&self, typed: &[&str]) -> Result<()> {
        shown(self.cleanroom(typed), typed)
    }
}

/// A heading.
fn act(what: &str) {
    println!("\n== {what}");
}

/// Shows a command as a person would type it.
fn announce(words: &[&str]) {
    let quoted = |word: &&str| {
        if word.contains(' ') { format!("\"{word}\"") } else { (*word).to_owned() }
    };
    let typed: Vec<_> = words.iter().map(quoted).collect();
    println!("\n$ cleanroom {}", typed.join(" "));
    // The program writes through other descriptors: keep the order.
    let _ = std::io::stdout().flush();
}

/// Runs `cleanroom` on this terminal.
fn shown(mut command: Command, typed: &[&str]) -> Result<()> {
    announce(typed);
    let status = command.status().context("start cleanroom")?;
    ensure!(status.success(), "cleanroom {}: {status}", typed.join(" "));
    Ok(())
}

/// Fails with everything that is not as it should be.
fn hold(what: &str, wrong: &[String]) -> Result<()> {
    if wrong.is_empty() {
        Ok(())
    } else {
        bail!("{what}: not as it should be: {}", wrong.join("; "))
    }
}

/// A text of at most so many columns.
fn cut(text: &str, columns: usize) -> String {
    if text.chars().count() <= columns {
        return text.to_owned();
    }
    text.chars().take(columns.saturating_sub(1)).chain(['…']).collect()
}

/// `$CARGO_TARGET_DIR`, else `target` in the workspace.
fn target_dir() -> PathBuf {
    let named = env::var_os("CARGO_TARGET_DIR").filter(|v| !v.is_empty());
    workspace_root().join(named.map_or_else(|| "target".into(), PathBuf::from))
}

/// A name for a bundle that no earlier run has taken.
fn fresh_folder(work: &Path) -> Result<PathBuf> {
    (1..100_000)
        .map(|number| work.join(format!("bundle-{number}")))
        .find(|path| !path.exists())
        .with_context(|| format!("too many bundles in {}", work.display()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_long_text_ends_where_it_is_told_to() {
        assert_eq!(cut("contained", 9), "contained");
        assert_eq!(cut("contained", 5), "cont…");
    }

    #[test]
    fn bundles_are_never_overwritten() {
        let dir = tempfile::tempdir().expect("temporary folder");
        let first = fresh_folder(dir.path()).expect("first");
        fs::create_dir(&first).expect("mkdir");
        assert_ne!(fresh_folder(dir.path()).expect("second"), first);
    }
}
