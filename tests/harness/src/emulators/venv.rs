//! The Python environments that the emulators and the lints run in: each made once, kept in the cache.
//!
//! Touches the cache folder and, through pip, the package index that this machine is configured
//! for. Wheels only, each checked against the hash in `requirements.txt`: no package's own code
//! runs while it is installed. Never touches the system's Python packages.

use std::{
    fs::{self, File},
    path::{Path, PathBuf},
    process::{Command, Stdio},
};

use anyhow::{Context, Result, bail};
use nix::fcntl::{Flock, FlockArg};
use sha2::{Digest, Sha256};

use crate::tools::{PYTHON, cache_dir, find, install as install_packages, run, workspace_root};

/// The names that a fitting interpreter may have, in the order of preference.
const INTERPRETERS: [&str; 6] =
    ["python3", "python3.11", "python3.12", "python3.13", "python3.14", "python3.10"];

/// Prints the version of an interpreter that is new enough and can make environments.
const PROBE: &str = "import sys, ensurepip, venv\n\
                     assert sys.version_info >= (3, 10)\n\
                     print('%d.%d' % sys.version_info[:2])";

/// How long the installation may take, in seconds.
const PATIENCE: &str = "900";

/// Packages from PyPI that belong together, pinned in `requirements.txt` of a folder.
#[derive(Debug)]
pub(crate) struct Packages {
    /// Names the environment in the cache, and the folder below the harness.
    name: &'static str,
    /// For the person who watches them being installed: the size, and what each is for.
    purpose: &'static [&'static str],
}

const EMULATORS: Packages = Packages {
    name: "emulators",
    purpose: &[
        "to run without AWS (a minute, 200 MB):",
        "  moto        EC2, S3, IAM and other services of AWS, emulated",
        "  ministack   Lambda, Step Functions and EventBridge, emulated",
        "  microburst  a proxy that injects faults as AWS shows them",
    ],
};

/// What judges the templates.
pub(crate) const LINTS: Packages = Packages {
    name: "lints",
    purpose: &[
        "to judge the CloudFormation templates (a minute, 400 MB):",
        "  cfn-lint    goes by the published schemas of the resource types",
        "  checkov     goes by good practice",
        "  shellcheck  reads the script that a clean room starts with",
    ],
};

/// What builds for Amazon Linux 2023.
pub(crate) const RELEASE: Packages = Packages {
    name: "release",
    purpose: &[
        "to build for an older C library (a minute, 300 MB):",
        "  cargo-zigbuild  lets zig link what cargo compiles",
        "  ziglang         compiles and links for any version of glibc",
    ],
};

/// The folder of the Python side.
pub(super) fn scripts() -> PathBuf {
    workspace_root().join("tests/harness/emulators")
}

/// Makes the environment, where it is not there yet, before anything waits for it. Installs the
/// distribution's package first where Python lacks what makes environments, as on a fresh Debian.
///
/// # Errors
/// As [`python`], and where the package is missing and this user can not install it.
pub fn prepare() -> Result<()> {
    if interpreter().is_err() {
        install_packages(&[PYTHON])?;
    }
    python().map(drop)
}

/// The interpreter of the emulators' environment.
///
/// # Errors
/// Where there is no fitting Python, or a package can not be installed.
pub fn python() -> Result<PathBuf> {
    environment(&EMULATORS)
}

/// The interpreter of an environment with these packages. Makes the environment first where there is none for these
/// requirements and this version of Python, saying so on stderr; waits for another process that is doing so.
///
/// # Errors
/// Where there is no fitting Python, or a package can not be installed.
pub(crate) fn environment(packages: &Packages) -> Result<PathBuf> {
    let name = packages.name;
    let requirements = workspace_root().join("tests/harness").join(name).join("requirements.txt");
    let content = fs::read(&requirements)
        .with_context(|| format!("read the requirements {}", requirements.display()))?;
    let (interpreter, version) = interpreter()?;
    let digest: String = Sha256::digest(&content).iter().map(|b| format!("{b:02x}")).collect();
    let cache = cache_dir()?;
    let folder = cache.join(format!("{name}-{version}-{digest}"));
    // A link to the system's interpreter: dangling where that is gone, and then made anew.
    let ready = folder.join("bin/python");
    if ready.is_file() {
        return Ok(ready);
    }

    let lock = File::create(cache.join(format!("{name}.lock"))).context("create a lock file")?;
    let _lock = Flock::lock(lock, FlockArg::LockExclusive)
        .map_err(|(_, error)| error)
        .with_context(|| format!("lock the environment of the {name}"))?;
    if ready.is_file() {
        return Ok(ready);
    }
    let fresh = tempfile::tempdir_in(&cache).context("create a folder in the cache")?;
    let made = fresh.path().join("venv");
    install(&interpreter, &made, &requirements, packages)?;
    if folder.exists() {
        fs::remove_dir_all(&folder)
            .with_context(|| format!("remove the broken {}", folder.display()))?;
    }
    // The name appears only when everything is there. Scripts in `bin` would point to the old
    // name; the modules, which is all that is used, do not care.
    fs::rename(&made, &folder).with_context(|| format!("keep the environment of the {name}"))?;
    Ok(ready)
}

/// The first fitting interpreter on this machine, and its version, as `3.11`.
fn interpreter() -> Result<(PathBuf, String)> {
    let mut seen = Vec::new();
    for name in INTERPRETERS {
        let Some(path) = find(name) else { continue };
        let mut probe = plain(Path::new("timeout"));
        let output = probe.args(["--kill-after=5", "60"]).arg(&path).args(["-c", PROBE]).output();
        match output {
            Ok(output) if output.status.success() => {
                let version = String::from_utf8_lossy(&output.stdout).trim().to_owned();
                return Ok((path, version));
            }
            _ => seen.push(name),
        }
    }
    if seen.is_empty() {
        bail!("the emulators need Python 3.10 or newer; on Debian: apt-get install python3-venv");
    }
    bail!(
        "the emulators need Python 3.10 or newer with its modules venv and ensurepip, which {} \
         lacks; on Debian: apt-get install python3-venv",
        seen.join(", ")
    )
}

/// Makes an environment and installs the packages.
fn install(
    interpreter: &Path,
    folder: &Path,
    requirements: &Path,
    packages: &Packages,
) -> Result<()> {
    eprintln!("Installing into the cache, once, {}", packages.purpose.join("\n"));
    run(plain(interpreter).args(["-m", "venv"]).arg(folder))
        .context("make a Python environment; on Debian: apt-get install python3-venv")?;
    let mut pip = plain(Path::new("timeout"));
    pip.args(["--kill-after=5", PATIENCE]).arg(folder.join("bin/python"));
    pip.args(["-m", "pip", "install", "--quiet", "--no-input", "--disable-pip-version-check"]);
    pip.args(["--require-hashes", "--only-binary", ":all:", "--requirement"]).arg(requirements);
    run(&mut pip).context(
        "install them from PyPI; behind a proxy or a mirror, configure pip first \
         (pip config set global.index-url …)",
    )?;
    Ok(())
}

/// A command without what would lead Python to other modules than the environment's.
pub(crate) fn plain(program: &Path) -> Command {
    let mut command = Command::new(program);
    command.stdin(Stdio::null()).env_remove("PYTHONPATH").env_remove("PYTHONHOME");
    command
}
