//! `cargo package-release`: what `cleanroom deploy --artifacts` uploads, in one folder; and the bundle of tools beside it.
//!
//! The agent for Amazon Linux 2023, the program of the Lambda functions in its zip, templates and state machines, a bill of
//! materials of each program, and checksums over all of them. Builds in the target folder, and writes `dist/` anew, but
//! for the bundle; publishes nothing.

pub mod bundle;
mod sbom;
mod symbols;
mod zip;

use std::{
    env,
    ffi::OsString,
    fmt::Write as _,
    fs,
    os::unix::fs::PermissionsExt as _,
    path::{Path, PathBuf},
};

use anyhow::{Context, Result, ensure};
use sha2::{Digest, Sha256};

use crate::{
    emulators::venv::{RELEASE, environment},
    tools::{cache_dir, cargo, run, workspace_root},
};

/// Amazon Linux 2023's C library. A plain build on a newer system asks for that system's, and does not start there.
const GLIBC: (u32, u32) = (2, 34);

/// What it is built for.
const TARGET: &str = "x86_64-unknown-linux-gnu";

/// The checksums of what is deployed.
const SUMS: &str = "SHA256SUMS";

/// A program that is shipped.
struct Program {
    /// The package.
    package: &'static str,
    /// Its binary.
    binary: &'static str,
    /// The profile that it is built by.
    profile: &'static str,
}

/// The agent.
const AGENT: Program =
    Program { package: "cleanroom-agent", binary: "cleanroom-agent", profile: "release" };

/// What the Lambda functions run.
const LAMBDA: Program =
    Program { package: "cleanroom-controller", binary: "cleanroom-lambda", profile: "lambda" };

/// What is copied as it is: the templates and the state machines of the response stack.
const DEFINITIONS: [&str; 5] = [
    "clean-room.yaml",
    "response-many.asl.json",
    "response.asl.json",
    "response.yaml",
    "shared-network.yaml",
];

/// Builds and gathers everything.
///
/// # Errors
/// Where a tool can not be installed, a program does not build or would not start on Amazon Linux 2023, or the zip is too large.
pub fn run_all() -> Result<()> {
    let agent = build(&AGENT)?;
    let lambda = build(&LAMBDA)?;
    let zip = zip::bootstrap(&lambda)?;
    println!("{}.zip: {} bytes", LAMBDA.binary, zip.len());

    let mut metadata = cargo();
    metadata.args(["metadata", "--format-version", "1", "--locked", "--filter-platform", TARGET]);
    let metadata = serde_json::from_slice(&run(&mut metadata)?).context("read cargo's metadata")?;
    let lock =
        fs::read_to_string(workspace_root().join("Cargo.lock")).context("read Cargo.lock")?;

    let dist = dist()?;
    for entry in fs::read_dir(&dist).with_context(|| format!("list {}", dist.display()))? {
        let path = entry?.path();
        if !path.ends_with(bundle::BUNDLE) {
            fs::remove_file(&path).with_context(|| format!("remove {}", path.display()))?;
        }
    }
    for (program, bytes) in [(&AGENT, &agent), (&LAMBDA, &lambda)] {
        let bill = sbom::cyclonedx(&metadata, &lock, program.package, &digest(bytes))?;
        let bill = serde_json::to_vec_pretty(&bill).context("write the bill of materials")?;
        let name = format!("{}.cdx.json", program.binary);
        fs::write(dist.join(&name), bill).with_context(|| format!("write {name}"))?;
    }
    let path = dist.join(AGENT.binary);
    fs::write(&path, &agent).context("write the agent")?;
    // So that it runs where it lies.
    let mode = fs::Permissions::from_mode(0o755);
    fs::set_permissions(&path, mode).context("let the agent be run")?;
    fs::write(dist.join(format!("{}.zip", LAMBDA.binary)), zip).context("write the zip")?;
    for name in DEFINITIONS {
        let from = workspace_root().join("cloudformation").join(name);
        fs::copy(&from, dist.join(name)).with_context(|| format!("copy {}", from.display()))?;
    }
    write_sums(&dist)?;
    println!("in {}", dist.display());
    Ok(())
}

/// The folder of what is deployed.
fn dist() -> Result<PathBuf> {
    let dist = workspace_root().join("dist");
    fs::create_dir_all(&dist).with_context(|| format!("create {}", dist.display()))?;
    Ok(dist)
}

/// Writes the checksums of a folder's files into it, and shows them.
fn write_sums(folder: &Path) -> Result<()> {
    let sums = sums(folder)?;
    print!("{sums}");
    fs::write(folder.join(SUMS), sums).context("write the checksums")
}

/// Builds a program against the old C library, and makes sure that it starts there.
fn build(program: &Program) -> Result<Vec<u8>> {
    let Program { package, binary, profile } = program;
    let python = environment(&RELEASE)?;
    let programs = python.parent().context("no folder of the environment")?;
    let mut path = OsString::from(programs);
    path.push(":");
    path.push(env::var_os("PATH").unwrap_or_default());
    let target = match env::var_os("CARGO_TARGET_DIR").filter(|dir| !dir.is_empty()) {
        Some(dir) => workspace_root().join(dir),
        None => workspace_root().join("target"),
    };
    let (major, minor) = GLIBC;
    let mut build = cargo();
    build.args(["zigbuild", "--profile", profile, "--locked", "--package", package]);
    build.args(["--bin", binary, "--target"]).arg(format!("{TARGET}.{major}.{minor}"));
    build.env("PATH", path).env("CARGO_TARGET_DIR", &target);
    build.env("CARGO_PROFILE_RELEASE_STRIP", "symbols").env("RUSTFLAGS", remapped()?);
    let status = build.status().context("start cargo zigbuild")?;
    ensure!(status.success(), "{binary} does not build for {TARGET}.{major}.{minor}: {status}");
    let built = target.join(TARGET).join(profile).join(binary);
    let bytes = fs::read(&built).with_context(|| format!("read {}", built.display()))?;
    let newest = symbols::newest_glibc(&bytes).context("read the program's symbols")?;
    ensure!(
        newest <= GLIBC,
        "{binary} asks for GLIBC_{}.{}, and Amazon Linux 2023 has {major}.{minor}: it was not built by zig",
        newest.0,
        newest.1
    );
    println!("{binary}: {} bytes, newest symbol GLIBC_{}.{}", bytes.len(), newest.0, newest.1);
    Ok(bytes)
}

/// Keeps this machine's paths out of the program, whose messages would show them.
fn remapped() -> Result<String> {
    let cargo_home = env::var_os("CARGO_HOME").map(PathBuf::from);
    let cargo_home = cargo_home.or_else(|| env::home_dir().map(|home| home.join(".cargo")));
    let mut flags = String::new();
    for (from, to) in [
        (workspace_root(), "/cleanroom"),
        (cargo_home.context("no home folder; set CARGO_HOME")?, "/cargo"),
        (cache_dir()?, "/cache"),
    ] {
        write!(flags, "--remap-path-prefix={}={to} ", from.display())?;
    }
    Ok(flags.trim_end().to_owned())
}

/// A line for each file of a folder, as `sha256sum -c` takes them.
fn sums(folder: &Path) -> Result<String> {
    let entries = fs::read_dir(folder).with_context(|| format!("list {}", folder.display()))?;
    let paths: Result<Vec<_>, _> = entries.map(|entry| entry.map(|entry| entry.path())).collect();
    let mut paths = paths.with_context(|| format!("list {}", folder.display()))?;
    paths.sort();
    let mut lines = String::new();
    for path in paths.into_iter().filter(|path| !path.ends_with(SUMS)) {
        let content = fs::read(&path).with_context(|| format!("read {}", path.display()))?;
        let name = path.file_name().and_then(|name| name.to_str()).context("a file's name")?;
        writeln!(lines, "{}  {name}", digest(&content))?;
    }
    Ok(lines)
}

fn digest(content: &[u8]) -> String {
    Sha256::digest(content).iter().map(|byte| format!("{byte:02x}")).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_shipped_is_there_and_has_a_profile() {
        for name in DEFINITIONS {
            assert!(workspace_root().join("cloudformation").join(name).is_file(), "{name}");
        }
        let manifest = fs::read_to_string(workspace_root().join("Cargo.toml")).expect("a manifest");
        for program in [AGENT, LAMBDA] {
            let profile = format!("[profile.{}]", program.profile);
            assert!(manifest.contains(&profile), "{profile}");
        }
    }

    #[test]
    fn checksums_are_as_sha256sum_writes_them() {
        let folder = tempfile::tempdir().expect("a folder");
        fs::write(folder.path().join("b"), "").expect("write");
        fs::write(folder.path().join("a"), "x").expect("write");
        let sums = sums(folder.path()).expect("sums");
        fs::write(folder.path().join(SUMS), &sums).expect("write");
        assert_eq!(super::sums(folder.path()).expect("sums"), sums, "the sums are not among them");
        assert!(
            sums.ends_with("e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855  b\n")
        );
        let mut check = crate::tools::command("sha256sum").expect("sha256sum");
        check.args(["--check", "--strict", "SHA256SUMS"]).current_dir(folder.path());
        assert!(check.output().expect("started").status.success(), "{sums}");
    }
}
