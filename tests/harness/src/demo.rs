//! `cargo demo`: a break-in in a disk image, found; an instance in an emulated account, contained.
//!
//! Builds both programs and runs them as a person would. Writes below `demo/` in the target folder
//! only: the image is built anew each time, the bundles are kept. The emulated account ends with
//! the demo. Never asks AWS, and knows nothing of the AWS settings of whoever runs it.

mod building;
mod containment;
mod world;

use std::{
    env, fs,
    path::{Path, PathBuf},
    process::Command,
};

use anyhow::{Context, Result, bail, ensure};

use crate::{
    disk::{GPT_LINUX, gpt},
    emulators,
    images::{Ext, Image, MIB, XFS_MIN},
    tools::{self, fixtures, is_root, workspace_root},
    tree,
};

/// The exit status with which the agent says: complete, but with gaps.
const COMPLETE_WITH_GAPS: i32 = 3;

/// Runs the demo.
///
/// # Errors
/// Where a tool is missing and can not be installed, a program does not build, or anything that it
/// did is not as it should be.
pub fn run() -> Result<()> {
    let as_image = is_root() && Path::new("/dev/loop-control").exists();
    if as_image {
        tools::ensure(tools::DEMO)?;
    }
    emulators::prepare()?;
    step(
        "Building the agent and the controller (the first time some minutes: the AWS SDK is large)",
    );
    let programs = building::programs(&target_dir())?;
    let bundle = investigate(&programs.agent, as_image)?;
    containment::run(&programs.cleanroom)?;
    step("Done");
    println!("bundle   {}", bundle.display());
    println!("report   {}", bundle.join("report.html").display());
    Ok(())
}

/// Has the agent scan a planted compromise, and verifies the bundle that it returns.
fn investigate(agent: &Path, as_image: bool) -> Result<PathBuf> {
    let work = target_dir().join("demo");
    fs::create_dir_all(&work).with_context(|| format!("create {}", work.display()))?;
    let scratch = tempfile::tempdir_in(&work).context("create a scratch folder")?;

    let evidence = if as_image {
        step(
            "Building the evidence: a GPT disk, an ext4 root that was broken into, an XFS data partition",
        );
        disk_image(scratch.path(), &work.join("disk.img"))?
    } else {
        step("Building the evidence: a folder that holds a root file system that was broken into");
        let why = if is_root() { "this machine has no loop devices" } else { "you are not root" };
        println!(
            "Left out, as {why}: the disk image (GPT, ext4 and XFS), which has to be mounted."
        );
        println!("Run `cargo demo` as root to see it.");
        let folder = scratch.path().join("web-01");
        fs::create_dir(&folder)?;
        tree::planted_compromise(&folder)?;
        folder
    };
    println!("{}", evidence.display());

    step("Scanning it, with the demo's rules and indicators");
    let out = fresh_folder(&work)?;
    let fixtures = fixtures();
    let mut scan = Command::new(agent);
    scan.arg("scan").arg(&evidence);
    scan.arg("--rules").arg(fixtures.join("rules/demo.yar"));
    scan.arg("--indicators").arg(fixtures.join("indicators"));
    scan.arg("--out").arg(&out).args(["--case", "DEMO-1", "--examiner", "demo"]);
    // A demonstration is for people, in a pipe too.
    scan.args(["--format", "human"]);
    match status(&mut scan)? {
        0 => println!("The scan is complete."),
        COMPLETE_WITH_GAPS => println!("The scan is complete; its gaps say what was not examined."),
        other => bail!("the agent's scan ended with status {other}"),
    }

    let bundle = bundle_in(&out)?;
    step("Verifying the bundle: every file against its sum");
    let verdict =
        status(Command::new(agent).arg("verify").arg(&bundle).args(["--format", "human"]))?;
    ensure!(verdict == 0, "the agent's verify ended with status {verdict}");
    Ok(bundle)
}

fn step(what: &str) {
    println!("\n== {what}");
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

/// The demo's disk image, as evidence: root file system and data partition behind a GPT.
///
/// # Errors
/// Where one of the tools refuses.
pub fn disk_image(scratch: &Path, path: &Path) -> Result<PathBuf> {
    let (root, data) = (scratch.join("root"), scratch.join("data"));
    fs::create_dir(&root)?;
    fs::create_dir(&data)?;
    tree::planted_compromise(&root)?;
    tree::data(&data)?;
    let root = Image::new(scratch, "root.img", 64 * MIB)
        .uuid("c1ea0000-0000-4000-8000-000000000001")
        .label("root")
        .ext(Ext::Ext4, &root)?;
    let data = Image::new(scratch, "data.img", XFS_MIN)
        .uuid("c1ea0000-0000-4000-8000-000000000002")
        .label("data")
        .xfs(&data)?;
    Ok(gpt(path, &[(&root, GPT_LINUX), (&data, GPT_LINUX)])?.path)
}

/// A name for a bundle that no earlier run has taken.
fn fresh_folder(work: &Path) -> Result<PathBuf> {
    (1..100_000)
        .map(|number| work.join(format!("bundle-{number}")))
        .find(|path| !path.exists())
        .with_context(|| format!("too many bundles in {}", work.display()))
}

/// Where the report is: in the folder itself or in one below it.
fn bundle_in(out: &Path) -> Result<PathBuf> {
    let listed = fs::read_dir(out).with_context(|| format!("list {}", out.display()))?;
    let below = listed.filter_map(|entry| Some(entry.ok()?.path()));
    std::iter::once(out.to_owned())
        .chain(below)
        .find(|folder| folder.join("report.json").is_file())
        .with_context(|| format!("no report.json in {}", out.display()))
}

/// Runs the command on this terminal and returns its exit status.
fn status(command: &mut Command) -> Result<i32> {
    let shown = command.get_program().to_string_lossy().into_owned();
    let status = command.status().with_context(|| format!("start {shown}"))?;
    status.code().with_context(|| format!("{shown}: {status}"))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::tools::command;

    #[test]
    fn the_disk_image_holds_both_file_systems() {
        let dir = tempfile::tempdir().expect("temporary folder");
        let disk = disk_image(dir.path(), &dir.path().join("disk.img")).expect("build");
        let mut fls = command("fls").expect("fls");
        fls.args(["-r", "-p", "-o", "2048"]).arg(&disk);
        let names = tools::run(&mut fls).expect("fls");
        let names = String::from_utf8_lossy(&names);
        for planted in
            ["tmp/.x/kworker", "etc/ld.so.preload", "var/www/html/logo.jpg", "var/tmp/pipe"]
        {
            assert!(names.contains(planted), "{planted} is not in {names}");
        }
        let mut sfdisk = command("sfdisk").expect("sfdisk");
        let table = tools::run(sfdisk.arg("-d").arg(&disk)).expect("sfdisk");
        assert_eq!(String::from_utf8_lossy(&table).matches("start=").count(), 2);
    }

    #[test]
    fn the_bundle_is_found_in_the_folder_or_below() {
        let dir = tempfile::tempdir().expect("temporary folder");
        assert!(bundle_in(dir.path()).is_err());
        let below = dir.path().join("scan");
        fs::create_dir(&below).expect("mkdir");
        fs::write(below.join("report.json"), "{}").expect("write");
        assert_eq!(bundle_in(dir.path()).expect("below"), below);
        fs::write(dir.path().join("report.json"), "{}").expect("write");
        assert_eq!(bundle_in(dir.path()).expect("here"), dir.path());
    }

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
