//! The programs of the distribution that the harness starts, and getting the missing ones.
//!
//! Touches the package database through `apt-get` when something is missing and it may; writes
//! nothing else. Never installs silently: it says first what comes and what for.

use std::{
    env,
    ffi::OsStr,
    fs,
    os::unix::fs::PermissionsExt,
    path::{Path, PathBuf},
    process::{Command, Stdio},
};

use anyhow::{Context, Result, bail};
use nix::{
    fcntl::AT_FDCWD,
    sys::{
        stat::{UtimensatFlags, utimensat},
        time::TimeSpec,
    },
};
use serde::Deserialize;

/// A program, the Debian and Ubuntu package that holds it, and what it is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Tool {
    /// The program's name, as `command -v` would be asked.
    pub command: &'static str,
    /// The package, of the same name on Debian 12 and Ubuntu.
    pub package: &'static str,
    /// Why it is needed, for the person who watches it being installed.
    pub purpose: &'static str,
}

const fn tool(command: &'static str, package: &'static str, purpose: &'static str) -> Tool {
    Tool { command, package, purpose }
}

/// What the demo needs to build the disks of an instance, and to deploy the agent.
pub const DEMO: &[Tool] = &[
    tool("mke2fs", "e2fsprogs", "builds ext2, ext3 and ext4 images"),
    tool("mkfs.xfs", "xfsprogs", "builds XFS images"),
    tool("mkntfs", "ntfs-3g", "builds NTFS images"),
    tool("sfdisk", "fdisk", "writes partition tables"),
    tool("strip", "binutils", "makes the agent small for the virtual machine"),
];

/// What a clean room needs to boot on this machine.
pub const ROOM: &[Tool] = &[
    tool("qemu-system-x86_64", "qemu-system-x86", "is the virtual machine of the clean room"),
    tool("busybox", "busybox-static", "is the virtual machine's user space"),
    tool("xz", "xz-utils", "unpacks kernel modules"),
    tool("curl", "curl", "fetches for the emulated clean room, as the AWS CLI does in a real one"),
    tool(
        "update-ca-certificates",
        "ca-certificates",
        "has the roots that the room's agent looks for",
    ),
];

/// What the benchmark compares with.
pub const BENCH: &[Tool] = &[
    tool("sha256deep", "hashdeep", "hashes trees, to compare with"),
    tool("openssl", "openssl", "measures the digest by itself"),
    tool("strip", "binutils", "takes the line numbers out of the agent"),
];

/// What the bundle of tools is made with.
pub const BUNDLE: &[Tool] = &[
    tool("strip", "binutils", "makes programs small"),
    tool("busybox", "busybox-static", "is the shell in which the tools are tried out"),
];

/// YARA-X's own scanner: the crate, and its version.
pub(crate) const YR: (&str, &str) = ("yara-x-cli", "1.22.1");

/// What the tests need besides [`DEMO`] and [`ROOM`].
pub const TESTS: &[Tool] = &[
    tool("mkfs.btrfs", "btrfs-progs", "builds btrfs images"),
    tool("mkfs.vfat", "dosfstools", "builds FAT images"),
    tool("mcopy", "mtools", "fills FAT images without mounting"),
    tool("sgdisk", "gdisk", "checks GPT tables independently"),
    tool("fls", "sleuthkit", "reads file systems independently"),
    tool("zstd", "zstd", "reads the bundle's file list; unpacks kernel modules"),
    tool("cpio", "cpio", "packs the virtual machine's initramfs"),
    tool("ssh-keygen", "openssh-client", "verifies signatures independently"),
];

/// What the emulators of AWS need, in the demo and in the tests. The package holds modules of the
/// interpreter, so that finding the command is not enough: see [`crate::emulators::prepare`].
pub(crate) const PYTHON: Tool = tool("python3", "python3-venv", "runs the emulators of AWS");

/// Makes sure that every tool is there, installing what is missing.
///
/// # Errors
/// Names the missing packages when this user can not install them, or when `apt-get` fails.
pub fn ensure(tools: &[Tool]) -> Result<()> {
    let missing = missing(tools);
    if missing.is_empty() { Ok(()) } else { install(&missing) }
}

/// Installs the packages of these tools, saying so first.
///
/// # Errors
/// Names the packages when this user can not install them, or when `apt-get` fails.
pub(crate) fn install(missing: &[Tool]) -> Result<()> {
    let mut packages: Vec<_> = missing.iter().map(|t| t.package).collect();
    packages.sort_unstable();
    packages.dedup();
    let by_hand = format!("install them with: apt-get install {}", packages.join(" "));

    let Some(apt) = find("apt-get") else {
        bail!("missing packages, and this system has no apt-get; {by_hand}");
    };
    let Some(prefix) = privilege() else {
        bail!("missing packages, and this user is neither root nor has sudo; {by_hand}");
    };
    println!("Installing packages that are missing here:");
    for tool in missing {
        println!("  {:<16} {} ({})", tool.package, tool.purpose, tool.command);
    }
    let apt_get = |arguments: &[&str]| {
        let mut words: Vec<&OsStr> = prefix.iter().map(OsStr::new).collect();
        words.push(apt.as_os_str());
        words.extend(arguments.iter().map(OsStr::new));
        let (program, rest) = words.split_first().context("empty command")?;
        let mut command = Command::new(program);
        command.args(rest).stdin(Stdio::null());
        command.status().with_context(|| format!("start {}", apt.display()))
    };
    // A stale or empty package list is common on a fresh machine; a failing mirror is not fatal
    // as long as the installation itself works.
    apt_get(&["update", "-qq"])?;
    let mut arguments = vec!["install", "-y", "-qq", "--no-install-recommends"];
    arguments.extend(&packages);
    if !apt_get(&arguments)?.success() {
        bail!("apt-get could not install the packages; {by_hand}");
    }
    match self::missing(missing).first() {
        None => Ok(()),
        Some(tool) => bail!("package {} is installed, but has no {}", tool.package, tool.command),
    }
}

/// The tools that are not there.
fn missing(tools: &[Tool]) -> Vec<Tool> {
    tools.iter().copied().filter(|t| find(t.command).is_none()).collect()
}

/// The words before a command that needs root: none for root, `sudo` where it asks no password.
fn privilege() -> Option<Vec<String>> {
    if is_root() {
        // Without this, a package's questions would wait for an answer that never comes.
        return Some(vec!["env".into(), "DEBIAN_FRONTEND=noninteractive".into()]);
    }
    let sudo = find("sudo")?;
    let silent = Command::new(&sudo)
        .args(["-n", "true"])
        .stdin(Stdio::null())
        .stderr(Stdio::null())
        .status()
        .is_ok_and(|status| status.success());
    let sudo = sudo.to_str()?.to_owned();
    silent.then(|| vec![sudo, "-n".into(), "DEBIAN_FRONTEND=noninteractive".into()])
}

/// Whether this process has the effective user id 0.
#[must_use]
pub fn is_root() -> bool {
    nix::unistd::geteuid().is_root()
}

/// The program's path: on `PATH`, else in the system folders that `PATH` of ordinary users on
/// Debian leaves out.
#[must_use]
pub fn find(command: &str) -> Option<PathBuf> {
    let path = env::var_os("PATH").unwrap_or_default();
    env::split_paths(&path)
        .chain(["/usr/local/sbin", "/usr/sbin", "/sbin"].map(PathBuf::from))
        .map(|folder| folder.join(command))
        .find(|candidate| {
            fs::metadata(candidate)
                .is_ok_and(|meta| meta.is_file() && meta.permissions().mode() & 0o111 != 0)
        })
}

/// A command for the program that is ended after five minutes, with no standard input and the
/// language set to C, so that its messages can be read by a test.
///
/// # Errors
/// Where the program is not installed.
pub fn command(name: &str) -> Result<Command> {
    let path = find(name).with_context(|| format!("{name} is not installed"))?;
    let mut command = Command::new("timeout");
    command.args(["--foreground", "--kill-after=5", "300"]).arg(path);
    command.stdin(Stdio::null()).env("LC_ALL", "C");
    Ok(command)
}

/// Runs a command to its end and returns its standard output.
///
/// # Errors
/// Where it can not be started or ends unsuccessfully: then with the last 2,000 characters that
/// it wrote to stderr.
pub fn run(command: &mut Command) -> Result<Vec<u8>> {
    let shown = format!("{command:?}");
    let output = command.output().with_context(|| format!("start {shown}"))?;
    if !output.status.success() {
        let talk = String::from_utf8_lossy(&output.stderr);
        let start = talk.char_indices().rev().nth(2_000).map_or(0, |(at, _)| at);
        let tail = talk.get(start..).unwrap_or_default().trim();
        bail!("{shown}: {}: {tail}", output.status);
    }
    Ok(output.stdout)
}

/// Where downloads and built tools are kept: `$CLEANROOM_CACHE`, else `~/.cache/cleanroom`.
///
/// # Errors
/// Where neither is known, or the folder can not be made.
pub fn cache_dir() -> Result<PathBuf> {
    let dir = match env::var_os("CLEANROOM_CACHE").filter(|v| !v.is_empty()) {
        Some(dir) => PathBuf::from(dir),
        None => {
            let home = env::home_dir().context("no home folder; set CLEANROOM_CACHE")?;
            home.join(".cache/cleanroom")
        }
    };
    fs::create_dir_all(&dir).with_context(|| format!("create {}", dir.display()))?;
    Ok(dir)
}

/// YARA-X's own scanner, installed outside the project when it is missing.
///
/// # Errors
/// Where it does not build.
pub(crate) fn yr() -> Result<PathBuf> {
    let root = cache_dir()?.join("tools");
    let yr = root.join("bin/yr");
    if !yr.exists() {
        let (name, version) = YR;
        println!("installing {name} {version}, which takes a quarter of an hour");
        let mut install = cargo();
        install.args(["install", name, "--version", version, "--locked", "--root"]);
        let status = install.arg(&root).status().context("start cargo install")?;
        if !status.success() {
            bail!("{name} {version} does not install: {status}");
        }
    }
    Ok(yr)
}

/// The workspace's root, two folders above this crate.
#[must_use]
pub fn workspace_root() -> PathBuf {
    let here = Path::new(env!("CARGO_MANIFEST_DIR"));
    here.ancestors().nth(2).unwrap_or(here).to_owned()
}

/// The workspace's `fixtures` folder.
#[must_use]
pub fn fixtures() -> PathBuf {
    workspace_root().join("fixtures")
}

/// A `cargo` command in the workspace's root.
///
/// The variables that the outer cargo set for this very package are taken away: build scripts of
/// dependencies watch some of them and would run again.
#[must_use]
pub fn cargo() -> Command {
    let program = env::var_os("CARGO").unwrap_or_else(|| "cargo".into());
    let mut command = Command::new(program);
    command.current_dir(workspace_root()).stdin(Stdio::null());
    for (name, _) in env::vars_os() {
        let text = name.to_string_lossy();
        let ours = ["CARGO_PKG_", "CARGO_MANIFEST_", "CARGO_BIN_", "CARGO_CRATE_"];
        if ours.iter().any(|prefix| text.starts_with(prefix)) || text == "CARGO_PRIMARY_PACKAGE" {
            command.env_remove(&name);
        }
    }
    command
}

/// Makes cargo build the workspace's own crates anew, by giving the first file of each of their
/// targets the present as modification time. Contents stay as they are; dependencies stay built.
///
/// Cargo names what it builds from a path relative to the workspace, and looks at times alone to
/// see whether it is fresh. Where two checkouts share a target folder, which is how dependencies
/// are compiled only once, the later build of one passes for a build of the other: its tests
/// would run, and pass, in place of ours.
///
/// # Errors
/// Where `cargo metadata` fails or a file's times can not be set.
pub fn refresh_workspace() -> Result<usize> {
    let mut metadata = cargo();
    metadata.args(["metadata", "--no-deps", "--format-version", "1"]);
    let sources = target_sources(&run(&mut metadata)?)?;
    for source in &sources {
        let now = TimeSpec::UTIME_NOW;
        utimensat(AT_FDCWD, source, &now, &now, UtimensatFlags::FollowSymlink)
            .with_context(|| format!("set times of {}", source.display()))?;
    }
    Ok(sources.len())
}

/// The `src_path` of every target in what `cargo metadata --no-deps` prints.
fn target_sources(metadata: &[u8]) -> Result<Vec<PathBuf>> {
    #[derive(Deserialize)]
    struct Metadata {
        packages: Vec<Package>,
    }
    #[derive(Deserialize)]
    struct Package {
        targets: Vec<Target>,
    }
    #[derive(Deserialize)]
    struct Target {
        src_path: PathBuf,
    }
    let metadata: Metadata = serde_json::from_slice(metadata).context("read cargo's metadata")?;
    let targets = metadata.packages.into_iter().flat_map(|package| package.targets);
    Ok(targets.map(|target| target.src_path).collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn finds_programs_outside_the_path_of_ordinary_users() {
        let path = find("mke2fs").expect("e2fsprogs is part of every Debian");
        assert!(path.is_absolute());
        assert_eq!(find("no-such-program-here"), None);
    }

    #[test]
    fn missing_tools_are_told_from_present_ones() {
        let absent = tool("no-such-program-here", "nothing", "a test");
        let present = tool("sh", "dash", "a test");
        assert_eq!(missing(&[present, absent]), [absent]);
        assert!(ensure(&[present]).is_ok());
    }

    #[test]
    fn an_unsuccessful_command_tells_what_it_said() {
        let mut shell = command("sh").expect("sh");
        let error = run(shell.args(["-c", "echo oh dear >&2; exit 7"])).expect_err("exit 7");
        let text = format!("{error:#}");
        assert!(text.contains("oh dear") && text.contains('7'), "{text}");
    }

    #[test]
    fn the_workspace_is_found() {
        assert!(workspace_root().join("Cargo.toml").is_file());
        assert!(workspace_root().join("agent/contract").is_dir());
    }

    #[test]
    fn every_target_of_the_workspace_is_refreshed() {
        let mut metadata = cargo();
        metadata.args(["metadata", "--no-deps", "--format-version", "1"]);
        let sources = target_sources(&run(&mut metadata).expect("metadata")).expect("parse");
        let root = workspace_root();
        for crate_root in ["agent/src/main.rs", "agent/contract/src/lib.rs"] {
            assert!(sources.contains(&root.join(crate_root)), "{crate_root} is not in {sources:?}");
        }
        assert!(sources.iter().any(|s| s.ends_with("tests/harness/src/lib.rs")), "{sources:?}");
        assert!(target_sources(b"{}").is_err());
    }
}
