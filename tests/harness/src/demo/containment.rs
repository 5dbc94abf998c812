//! The second half of the demo: an instance with everything that can be attached to one is contained in an emulated
//! account, and released again.
//!
//! Runs `cleanroom` as a person would, in an environment that knows the emulator and nothing else: neither the settings
//! and keys of whoever runs the demo, nor a way to AWS. What came of it is judged by the account as AWS's Python SDK
//! tells it, never by the program's own word alone.

use std::{
    env,
    io::{IsTerminal as _, Write as _},
    path::Path,
    process::{Command, Stdio},
};

use anyhow::{Context, Result, bail, ensure};
use serde_json::Value;
use tempfile::TempDir;

use super::{
    cut, step,
    world::{self, Facts},
};
use crate::emulators::{ACCESS_KEY, Kind, Moto, REGION, SECRET_KEY, World};

/// An address where nothing listens, for everything but the emulator.
const NOWHERE: &str = "http://127.0.0.1:1";

/// Columns that lines which are shortened here may have.
const WIDTH: usize = 100;

/// Restored things that are shown.
const RESTORED: usize = 6;

/// Plans, responds, verifies and releases.
///
/// # Errors
/// Where the emulator does not come up, a command ends with a status that it should not, or the account is not as it
/// should be.
pub(super) fn run(program: &Path) -> Result<()> {
    step("An alert: one of the web servers talks to a command-and-control server");
    println!("Starting an emulator of AWS, and building an account in it.");
    let moto = Moto::start()?;
    let world = World::build(&moto, Kind::Full)?;
    let station = Station::new(program, &world)?;
    let instance = world.instance();
    let before = Facts::read(&world)?;
    println!(
        "{instance}: {} interfaces, {} volumes, an Elastic IP, a role, in an Auto Scaling group\n\
         and behind three load balancers. These settings lead to the emulator, and nowhere else:\n",
        world.interfaces().len(),
        world.volumes().len(),
    );
    for (name, value) in &station.settings {
        println!("  export {name}={value}");
    }

    step("What would be done? Nothing is changed");
    let case = plan(&station, instance)?;
    ensure!(Facts::read(&world)? == before, "the plan changed something");

    step("Containing it");
    station.shown(&["respond", instance, "--reason", "beacons to a known C2 server"])?;
    step("Where the case stands, and whether its custody log is whole");
    station.shown(&["status", &case])?;
    station.shown(&["custody", "verify", &case])?;

    step("The account as AWS's Python SDK sees it, read without any of our code");
    let contained = Facts::read(&world)?;
    println!("before");
    before.print();
    println!("contained");
    contained.print();
    hold("contained", &contained.not_contained(&case))?;
    hold("evidence", &contained.not_preserved(&case))?;

    step("A false alarm after all: everything back, on a person's word");
    release(&station, &case)?;
    let released = Facts::read(&world)?;
    println!("\nreleased, as AWS's Python SDK sees it");
    released.print();
    hold("restored", &world::differences(&before, &released))?;
    hold("evidence after the release", &released.not_preserved(&case))?;
    println!("\nThe instance is as it was before. Snapshots, record and custody log stay.");
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

/// Shows the plan, in short, and returns the case that it would open.
fn plan(station: &Station<'_>, instance: &str) -> Result<String> {
    let said = station.captured(&["plan", instance, "--format", "jsonl"])?;
    let plan: Value = serde_json::from_str(said.trim()).context("read the plan")?;
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
            println!("  {step:<9} {}{more}", cut(&what, WIDTH - 12 - more.len()));
        }
    }
    println!("\nWithout --format, on a terminal, it is a table with the AWS call of each.");
    Ok(case)
}

/// Releases the case, and shows what was restored, in short.
fn release(station: &Station<'_>, case: &str) -> Result<()> {
    let words = ["release", case, "--yes", "--reason", "a false alarm", "--format", "human"];
    let said = station.captured(&words)?;
    let restored = said.lines().filter(|line| line.starts_with("  restore ")).count();
    let mut shown = 0;
    for line in said.lines() {
        if line.starts_with("  restore ") {
            shown += 1;
            if shown == RESTORED + 1 {
                println!("  … and {} more", restored - RESTORED);
            }
            if shown > RESTORED {
                continue;
            }
        }
        println!("{}", cut(line, WIDTH));
    }
    ensure!(restored > 0, "nothing was restored");
    Ok(())
}

/// A responder's machine: the program, and an environment of its own.
struct Station<'a> {
    program: &'a Path,
    home: TempDir,
    settings: Vec<(&'static str, String)>,
}

impl<'a> Station<'a> {
    fn new(program: &'a Path, world: &World) -> Result<Self> {
        let endpoint = world.endpoint();
        let local = endpoint.strip_prefix("http://127.0.0.1:").is_some();
        ensure!(local, "{endpoint} is no emulator");
        let settings = vec![
            ("AWS_ENDPOINT_URL", endpoint.to_owned()),
            ("AWS_REGION", REGION.to_owned()),
            ("AWS_ACCESS_KEY_ID", ACCESS_KEY.to_owned()),
            ("AWS_SECRET_ACCESS_KEY", SECRET_KEY.to_owned()),
            ("CLEANROOM_BUCKET", world.bucket().to_owned()),
            ("CLEANROOM_TOPIC", world.topic().to_owned()),
        ];
        let home = tempfile::tempdir().context("create a home folder")?;
        Ok(Self { program, home, settings })
    }

    /// The program in that environment, announced as a person would type it.
    fn command(&self, words: &[&str]) -> Command {
        let quoted = |word: &&str| {
            if word.contains(' ') { format!("\"{word}\"") } else { (*word).to_owned() }
        };
        let typed: Vec<_> = words.iter().map(quoted).collect();
        println!("\n$ cleanroom {}", typed.join(" "));
        // The program writes through other descriptors: keep the order.
        let _ = std::io::stdout().flush();
        let mut command = Command::new(self.program);
        command.env_clear().args(words).stdin(Stdio::null()).current_dir(self.home.path());
        command.env("HOME", self.home.path()).env("AWS_EC2_METADATA_DISABLED", "true");
        command.env("HTTP_PROXY", NOWHERE).env("HTTPS_PROXY", NOWHERE).env("NO_PROXY", "127.0.0.1");
        for name in ["PATH", "TERM", "LANG", "LC_ALL", "NO_COLOR"] {
            if let Some(value) = env::var_os(name) {
                command.env(name, value);
            }
        }
        command.envs(self.settings.iter().map(|(name, value)| (name, value)));
        command
    }

    /// Runs it on this terminal: with its live view, where there is one.
    fn shown(&self, words: &[&str]) -> Result<()> {
        let mut words = words.to_vec();
        // A demonstration is for people, in a pipe too.
        if !std::io::stdout().is_terminal() {
            words.extend(["--format", "human"]);
        }
        let status = self.command(&words).status().context("start cleanroom")?;
        ensure!(status.success(), "cleanroom {}: {status}", words.join(" "));
        Ok(())
    }

    /// Runs it and returns what it wrote to standard output.
    fn captured(&self, words: &[&str]) -> Result<String> {
        let output = self.command(words).stderr(Stdio::inherit()).output();
        let output = output.context("start cleanroom")?;
        ensure!(output.status.success(), "cleanroom {}: {}", words.join(" "), output.status);
        String::from_utf8(output.stdout).context("read what cleanroom wrote")
    }
}
