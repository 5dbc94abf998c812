//! `cargo package-tools`: what investigators work with in a clean room, in one file that a room without network unpacks.
//!
//! The Sleuth Kit, LVM, MD, NTFS and YARA-X programs, with every library and the loader that they need: they start on any
//! x86-64 Linux, whatever its own C library. From the packages in `release/tools.lock`, each compared with its SHA-256 there;
//! downloaded and unpacked, never installed. Writes `dist/tools.tar.gz`, after starting its programs in an empty root folder.

mod lock;
mod programs;

use std::{
    env, fs,
    os::unix::fs::{PermissionsExt as _, symlink},
    path::{Path, PathBuf},
    process::Command,
};

use anyhow::{Context, Result, bail, ensure};
use walkdir::WalkDir;

use self::lock::{Kind, Lock, Package};
use super::{digest, dist, write_sums};
use crate::tools::{self, YR, cache_dir, command, find, is_root, run, workspace_root};

/// The bundle in `dist/`.
pub(super) const BUNDLE: &str = "tools.tar.gz";

/// What is started before the bundle is given away, a program of each package: its name, an option, what it says of itself.
/// Not all of them end with 0 where they only say their version.
const STARTS: [(&str, &str, &str); 6] = [
    ("fls", "-V", "The Sleuth Kit ver"),
    ("lvm", "version", "LVM version"),
    ("mdadm", "--version", "mdadm - v"),
    ("ntfscat", "--version", "ntfscat v"),
    ("ntfsls", "--version", "ntfsls v"),
    ("yr", "--version", "yara-x-cli"),
];

/// What `cargo package-tools` is told.
#[derive(Clone, Copy, Debug, clap::Args)]
pub struct Options {
    /// Take the versions that this machine's package lists have now into the lock file, and end.
    #[arg(long)]
    renew: bool,
}

/// The bundle without `yr`, which takes a quarter of an hour to build: made in a folder, for tests of what it is good for.
///
/// # Errors
/// Where a package can not be had or is not the one that is locked, or a library is missing.
pub fn of_packages(folder: &Path) -> Result<PathBuf> {
    let text = include_str!("../../release/tools.lock");
    made(&Lock::parse(text).context("read the lock")?, text, &[], folder)
}

/// Unpacks the packages into a folder, gathers what is taken of them, and packs it.
fn made(lock: &Lock, text: &str, extra: &[PathBuf], folder: &Path) -> Result<PathBuf> {
    let (root, stage, bundle) = (folder.join("root"), folder.join("stage"), folder.join(BUNDLE));
    for package in downloaded(lock)? {
        unpack(&package, &root)?;
    }
    programs::gather(&root, extra, &stage)?;
    papers(&root, text, &stage)?;
    packed(&stage, &bundle)?;
    Ok(bundle)
}

/// Makes the bundle, or renews the lock.
///
/// # Errors
/// Where a package can not be had or is not the one that is locked, a library is missing, or a program does not start.
pub fn run_all(options: &Options) -> Result<()> {
    let path = workspace_root().join("tests/harness/release/tools.lock");
    let text = fs::read_to_string(&path).with_context(|| format!("read {}", path.display()))?;
    if options.renew {
        let renewed = lock::renewed(&text)?;
        return fs::write(&path, renewed).with_context(|| format!("write {}", path.display()));
    }
    tools::ensure(tools::BUNDLE)?;
    let lock = Lock::parse(&text).with_context(|| format!("read {}", path.display()))?;
    let scratch = tempfile::tempdir().context("create a temporary folder")?;
    let crates = lock.packages.iter().filter(|package| package.kind == Kind::Crate);
    let extra = crates.map(yara_x).collect::<Result<Vec<_>>>()?;
    println!("{} packages, each of the SHA-256 in {}", lock.packages.len(), path.display());
    let bundle = made(&lock, &text, &extra, scratch.path())?;
    started(&bundle, scratch.path(), &STARTS)?;
    let dist = dist()?;
    fs::copy(&bundle, dist.join(BUNDLE)).with_context(|| format!("write {}", dist.display()))?;
    write_sums(&dist)?;
    let content = fs::read(&bundle).context("read the bundle")?;
    println!("{}  {}, {} bytes", digest(&content), dist.join(BUNDLE).display(), content.len());
    println!("cleanroom deploy --artifacts dist/ --tools dist/{BUNDLE} puts it into the bucket");
    Ok(())
}

/// The packages of the distribution, in the cache: brought there by apt where they are missing, and in both cases those that
/// are locked.
fn downloaded(lock: &Lock) -> Result<Vec<PathBuf>> {
    let cache = cache_dir()?.join("packages");
    fs::create_dir_all(&cache).with_context(|| format!("create {}", cache.display()))?;
    let packages = || lock.packages.iter().filter(|package| package.kind == Kind::Debian);
    let kept = |package: &Package| cache.join(format!("{}.deb", package.sha256));
    let is_it = |package: &Package| {
        fs::read(kept(package)).is_ok_and(|bytes| digest(&bytes) == package.sha256)
    };
    let missing: Vec<_> = packages().filter(|package| !is_it(package)).collect();
    if !missing.is_empty() {
        println!("downloading {} packages (not installing)", missing.len());
        let folder = tempfile::tempdir_in(&cache).context("create a folder in the cache")?;
        let named = missing.iter().map(|package| format!("{}={}", package.name, package.version));
        let mut apt = command("apt-get")?;
        apt.args(["download", "-qq"]).args(named).current_dir(folder.path());
        run(&mut apt).context(
            "download the locked packages; where apt knows one no more: apt-get update, cargo package-tools --renew",
        )?;
        for entry in fs::read_dir(folder.path()).context("list the download")? {
            let path = entry?.path();
            let bytes = fs::read(&path).with_context(|| format!("read {}", path.display()))?;
            fs::rename(&path, cache.join(format!("{}.deb", digest(&bytes))))
                .context("keep a package")?;
        }
    }
    for package in missing {
        let Package { name, version, sha256, .. } = package;
        ensure!(
            is_it(package),
            "apt has another {name} {version} than the one of SHA-256 {sha256} that is locked"
        );
    }
    Ok(packages().map(kept).collect())
}

fn unpack(package: &Path, root: &Path) -> Result<()> {
    run(command("dpkg")?.arg("-x").arg(package).arg(root)).map(drop)
}

/// `yr`, built from the crate that is locked.
fn yara_x(package: &Package) -> Result<PathBuf> {
    let (name, version) = YR;
    ensure!(
        (package.name.as_str(), package.version.as_str()) == YR,
        "{} {} is locked, and {name} {version} is what is built",
        package.name,
        package.version
    );
    let yr = tools::yr()?;
    let home = env::var_os("CARGO_HOME").map(PathBuf::from);
    let home = home.or_else(|| env::home_dir().map(|home| home.join(".cargo")));
    let registry = home.context("no home folder; set CARGO_HOME")?.join("registry/cache");
    let file = format!("{name}-{version}.crate");
    let found = WalkDir::new(&registry).max_depth(2).into_iter().filter_map(Result::ok);
    let found = found.into_iter().find(|entry| entry.file_name().to_str() == Some(&file));
    let Some(found) = found else {
        bail!("{} was not built here: remove it, and this builds it anew", yr.display());
    };
    let bytes = fs::read(found.path()).with_context(|| format!("read {file}"))?;
    ensure!(digest(&bytes) == package.sha256, "{file} is not of the SHA-256 {}", package.sha256);
    Ok(yr)
}

/// What greets people, what the bundle is made of, and under which terms.
fn papers(root: &Path, lock: &str, stage: &Path) -> Result<()> {
    let welcome = workspace_root().join("cloudformation/tools/welcome");
    fs::copy(&welcome, stage.join("welcome")).context("copy welcome")?;
    fs::set_permissions(stage.join("welcome"), fs::Permissions::from_mode(0o755))?;
    fs::write(stage.join("PACKAGES"), lock).context("write PACKAGES")?;
    for entry in fs::read_dir(root.join("usr/share/doc")).context("list the packages' papers")? {
        let entry = entry?;
        let terms = entry.path().join("copyright");
        if terms.is_file() {
            let folder = stage.join("doc").join(entry.file_name());
            fs::create_dir_all(&folder)?;
            fs::copy(&terms, folder.join("copyright")).context("copy the packages' terms")?;
        }
    }
    Ok(())
}

/// Packs a folder's content, to the same bytes each time.
fn packed(stage: &Path, bundle: &Path) -> Result<()> {
    let mut names: Vec<_> =
        fs::read_dir(stage)?.map(|entry| entry.map(|e| e.file_name())).collect::<Result<_, _>>()?;
    names.sort();
    let mut tar = command("tar")?;
    tar.args(["--sort=name", "--mtime=@0", "--owner=0", "--group=0", "--numeric-owner"]);
    tar.args(["--mode=u=rwX,go=rX", "--use-compress-program=gzip -n -9"]);
    run(tar.arg("-C").arg(stage).arg("-cf").arg(bundle).args(names)).map(drop)
}

/// Unpacks the bundle where a room does, in a root folder that holds a shell and nothing else, and starts its programs.
fn started(bundle: &Path, scratch: &Path, starts: &[(&str, &str, &str)]) -> Result<()> {
    let root = scratch.join("empty");
    let home = root.join("opt/cleanroom/tools");
    fs::create_dir_all(&home)?;
    fs::create_dir(root.join("bin"))?;
    let shell = find("busybox").context("busybox is not installed")?;
    fs::copy(shell, root.join("bin/busybox")).context("copy busybox")?;
    symlink("busybox", root.join("bin/sh")).context("link sh")?;
    run(command("tar")?.arg("-xzf").arg(bundle).arg("-C").arg(&home))?;
    for (name, option, says) in starts {
        let mut inside = if is_root() {
            Command::new(find("chroot").context("chroot is not installed")?)
        } else {
            let mut unshare = Command::new(find("unshare").context("unshare is not installed")?);
            unshare.args(["--user", "--map-root-user", "chroot"]);
            unshare
        };
        inside.arg(&root).arg(format!("/opt/cleanroom/tools/bin/{name}")).arg(option);
        let output = inside.env_clear().output().with_context(|| format!("start {name}"))?;
        let said = [output.stdout, output.stderr].concat();
        let said = String::from_utf8_lossy(&said).into_owned();
        let line = said.lines().find(|line| line.contains(says));
        let line = line.with_context(|| {
            format!("{name} {option} does not start in an empty root: {}: {said}", output.status)
        })?;
        println!("  {name:<8} {}", line.trim());
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The programs of the distribution; `yr` takes a quarter of an hour to build.
    #[test]
    fn the_tools_start_where_nothing_else_is() {
        let scratch = tempfile::tempdir().expect("a folder");
        let (root, stage) = (scratch.path().join("root"), scratch.path().join("stage"));
        let one = of_packages(scratch.path()).expect("the bundle");
        let two = scratch.path().join("two");
        packed(&stage, &two).expect("pack");
        assert_eq!(fs::read(&one).expect("one"), fs::read(&two).expect("two"));
        started(&one, scratch.path(), &STARTS[..5]).expect("they start");
        assert!(scratch.path().join("empty/opt/cleanroom/tools/welcome").is_file());

        // Nothing is left out silently.
        fs::remove_dir_all(&stage).expect("remove");
        let lib = WalkDir::new(&root).into_iter().filter_map(Result::ok);
        for file in lib.filter(|f| f.file_name().to_string_lossy().starts_with("libewf.so")) {
            fs::remove_file(file.path()).expect("remove");
        }
        let error = programs::gather(&root, &[], &stage).expect_err("a library is missing");
        assert!(format!("{error:#}").contains("libewf.so"), "{error:#}");
    }
}
