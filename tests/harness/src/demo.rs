//! `cargo demo`: from an alert to a report, in one go: plan, respond, a clean room that boots, the bundle fetched.
//!
//! Plays an [`Incident`] as a person would live it: an emulated account, an instance whose disks were broken into, and the
//! room booted in QEMU. Where QEMU or a kernel for it can not be had, the agent runs on this machine instead, and the
//! demo says so. Builds both programs. Writes below `demo/` in the target folder only: the disks go with the demo, the
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
    process::Stdio,
};

use anyhow::{Context, Result, bail, ensure};
use serde_json::Value;

use self::world::Facts;
use crate::{
    emulators,
    incident::Incident,
    kernel::Kernel,
    tools::{self, fixtures, workspace_root},
};

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

    act("An alert: one of the web servers talks to a command-and-control server");
    println!("Building an account in an emulator of AWS, and the disks of an instance in it.");
    let incident = Incident::begin(programs)?;
    set_the_scene(&incident)?;
    let instance = incident.world.instance();
    let before = Facts::read(&incident.world)?;

    act("What would be done? Nothing is changed");
    let case = plan(&incident, instance)?;
    ensure!(Facts::read(&incident.world)? == before, "the plan changed something");

    act("Responding: contain, preserve, then examine copies of the disks in a clean room");
    let room = match bootable {
        Ok(_) => response::booted(&incident, &case).map(Some)?,
        Err(why) => {
            response::on_this_machine(&incident, &case, &why)?;
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
    shown(&incident, &[&out[..], &[&at]].concat())?;
    shown(&incident, &["custody", "verify", &case])?;
    drop(room);
    shown(&incident, &["teardown", &case, "--yes"])?;

    act("The report");
    print!("{}", summary::of(&bundle)?);
    Ok(())
}

/// Puts the responder's files there, shows what there is, and deploys the agent.
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
        "\nThe commands below know this emulator at {}, and nothing else.",
        incident.world.endpoint()
    );
    shown(incident, &["deploy", "--artifacts", "artifacts", "--agent-only"])
}

/// Shows the plan, in short, and returns the case that it would open.
fn plan(incident: &Incident, instance: &str) -> Result<String> {
    let words = ["plan", instance, "--rules", "demo.yar"];
    announce(&words);
    let output = incident.cleanroom(&[&words[..], &["--format", "jsonl"]].concat());
    let output = { output }.stderr(Stdio::inherit()).output().context("start cleanroom plan")?;
    ensure!(output.status.success(), "cleanroom plan: {}", output.status);
    let plan: Value = serde_json::from_slice(&output.stdout).context("read the plan")?;
    let case = plan["case"].as_str().context("the plan names no case")?.to_owned();
    let entries = plan["entries"].as_array().map_or(&[][..], Vec::as_slice);
    ensure!(!entries.is_empty(), "the plan has no changes");
    let of = |entry: &Value, member: &str| entry[member].as_str().unwrap_or_default().to_owned();
    println!("{} changes, of which:\n", entries.len());
    for steps in entries.chunk_by(|a, b| a["step"] == b["step"]) {
        // The step that it is all about is shown in more of its length.
        let shown = if steps[0]["step"] == "isolate" { 4 } else { 2 }.min(steps.len());
        for (number, entry) in steps.iter().take(shown).enumerate() {
            let step = if number == 0 { of(entry, "step") } else { String::new() };
            let more = match steps.len() - shown {
                more if more > 0 && number + 1 == shown => format!(" (and {more} more)"),
                _ => String::new(),
            };
            let (what, resource) = (of(entry, "what"), of(entry, "resource"));
            let what = if resource == instance { what } else { format!("{what}: {resource}") };
            println!("  {step:<10} {}{more}", cut(&what, WIDTH - 13 - more.len()));
        }
    }
    Ok(case)
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
fn shown(incident: &Incident, words: &[&str]) -> Result<()> {
    announce(words);
    // A demonstration is for people, in a pipe too.
    let mut command = incident.cleanroom(&[words, &["--format", "human"]].concat());
    let status = command.status().context("start cleanroom")?;
    ensure!(status.success(), "cleanroom {}: {status}", words.join(" "));
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
