//! The virtual machine's kernel: the distribution's own for clouds, downloaded as a package and
//! unpacked in the cache, never installed.
//!
//! Touches the cache folder only, and the package lists where they are missing. What was unpacked
//! once is used from then on, without a network; removing `vm-kernel` in the cache fetches anew.

use std::{
    collections::{BTreeMap, BTreeSet},
    fs::{self, File},
    path::{Path, PathBuf},
};

use anyhow::{Context, Result, bail, ensure};
use nix::fcntl::{Flock, FlockArg};
use walkdir::WalkDir;

use crate::tools::{cache_dir, command, run};

/// Packages that depend on the newest kernel for virtual machines: Debian's, Ubuntu's.
const META_PACKAGES: [&str; 2] = ["linux-image-cloud-amd64", "linux-image-virtual"];

/// A kernel and its modules.
#[derive(Clone, Debug)]
pub struct Kernel {
    /// The compressed kernel that QEMU boots.
    pub image: PathBuf,
    /// Module names, with `_` for `-`, and their files.
    modules: BTreeMap<String, PathBuf>,
}

impl Kernel {
    /// The kernel in the cache; downloads it first where there is none. Waits for another process
    /// that is doing so.
    ///
    /// # Errors
    /// Where the package can not be had or unpacked.
    pub fn get() -> Result<Self> {
        let cache = cache_dir()?;
        let lock = File::create(cache.join("vm-kernel.lock")).context("create a lock file")?;
        let _lock = Flock::lock(lock, FlockArg::LockExclusive)
            .map_err(|(_, error)| error)
            .context("lock the cached kernel")?;
        let folder = cache.join("vm-kernel");
        if !folder.is_dir() {
            let fresh = tempfile::tempdir_in(&cache).context("create a folder in the cache")?;
            download(fresh.path())?;
            // The name appears only when everything is there.
            fs::rename(fresh.path().join("root"), &folder).context("keep the kernel")?;
        }
        Self::open(&folder)
    }

    /// The kernel in an unpacked package.
    fn open(root: &Path) -> Result<Self> {
        let boot = fs::read_dir(root.join("boot")).context("list the kernel's boot folder")?;
        let image = boot
            .filter_map(|entry| Some(entry.ok()?.path()))
            .find(|path| {
                path.file_name().is_some_and(|n| n.to_string_lossy().starts_with("vmlinuz"))
            })
            .context("the kernel's package holds no vmlinuz")?;
        let mut modules = BTreeMap::new();
        for entry in WalkDir::new(root.join("lib")) {
            let entry = entry?;
            let name = entry.file_name().to_string_lossy();
            if let Some((name, "" | ".xz" | ".zst")) = name.split_once(".ko") {
                modules.insert(canonical(name), entry.into_path());
            }
        }
        Ok(Self { image, modules })
    }

    /// The wanted modules and everything they need, each after what it needs, ready to be loaded:
    /// names and contents. A name without a file is left out: it is built into this kernel, or
    /// this kernel does not have it.
    ///
    /// # Errors
    /// Where a module can not be read.
    pub fn modules(&self, wanted: &[&str]) -> Result<Vec<(String, Vec<u8>)>> {
        let mut loaded = Vec::new();
        let mut seen = BTreeSet::new();
        for name in wanted {
            self.add(name, &mut seen, &mut loaded)?;
        }
        Ok(loaded)
    }

    fn add(
        &self,
        name: &str,
        seen: &mut BTreeSet<String>,
        loaded: &mut Vec<(String, Vec<u8>)>,
    ) -> Result<()> {
        let name = canonical(name);
        let Some(path) = self.modules.get(&name) else { return Ok(()) };
        if !seen.insert(name.clone()) {
            return Ok(());
        }
        let content = read_module(path)?;
        for needed in depends(&content) {
            self.add(&needed, seen, loaded)?;
        }
        loaded.push((name, content));
        Ok(())
    }
}

/// Module names are the same with `-` and `_`.
fn canonical(name: &str) -> String {
    name.replace('-', "_")
}

/// The module's bytes, decompressed.
fn read_module(path: &Path) -> Result<Vec<u8>> {
    let tool = match path.extension().and_then(|e| e.to_str()) {
        Some("xz") => "xz",
        Some("zst") => "zstd",
        _ => return fs::read(path).with_context(|| format!("read {}", path.display())),
    };
    run(command(tool)?.args(["-d", "-c"]).arg(path))
}

/// What a module says it needs: the `depends=` entry of its `.modinfo`, a comma-separated list
/// (kernel `scripts/mod/modpost.c`), and modules named in `softdep=pre: `.
fn depends(module: &[u8]) -> Vec<String> {
    let mut names = Vec::new();
    for entry in module.split(|&byte| byte == 0) {
        let Ok(entry) = std::str::from_utf8(entry) else { continue };
        if let Some(list) = entry.strip_prefix("depends=") {
            names.extend(list.split(',').filter(|n| !n.is_empty()).map(str::to_owned));
        } else if let Some(list) = entry.strip_prefix("softdep=pre: ") {
            names.extend(list.split_whitespace().map(str::to_owned));
        }
    }
    names
}

/// Downloads and unpacks the kernel's packages into `root` in the folder.
fn download(folder: &Path) -> Result<()> {
    let packages = match packages() {
        Ok(packages) => packages,
        Err(_) => {
            // A fresh machine has no package lists yet. Only root can fetch them; where that
            // fails, the second look says what is wrong.
            let _ = run(command("apt-get")?.args(["update", "-qq"]));
            packages()?
        }
    };
    println!("downloading for the virtual machine (not installing): {}", packages.join(" "));
    run(command("apt-get")?.args(["download", "-qq"]).args(&packages).current_dir(folder))?;
    let root = folder.join("root");
    let mut unpacked = 0;
    for entry in fs::read_dir(folder)? {
        let path = entry?.path();
        if path.extension().is_some_and(|e| e == "deb") {
            run(command("dpkg")?.arg("-x").arg(&path).arg(&root))?;
            unpacked += 1;
        }
    }
    ensure!(unpacked == packages.len(), "apt-get downloaded {unpacked} of {packages:?}");
    Ok(())
}

/// The packages that hold the newest kernel and its modules.
fn packages() -> Result<Vec<String>> {
    for meta in META_PACKAGES {
        let Ok(output) = run(command("apt-cache")?.args(["depends", meta])) else { continue };
        let Some(image) = image_package(&String::from_utf8_lossy(&output)) else { continue };
        // Ubuntu keeps the modules apart.
        let modules = image.replacen("linux-image-", "linux-modules-", 1);
        let apart =
            run(command("apt-cache")?.args(["show", &modules])).is_ok_and(|o| !o.is_empty());
        return Ok(if apart { vec![image, modules] } else { vec![image] });
    }
    bail!("none of the packages {META_PACKAGES:?} is known here; run apt-get update")
}

/// The kernel's package in what `apt-cache depends` says: `  Depends: linux-image-6.1.0-56-cloud-amd64`.
fn image_package(depends: &str) -> Option<String> {
    let names = depends.lines().filter_map(|line| line.trim().strip_prefix("Depends: "));
    names
        .filter(|name| {
            name.strip_prefix("linux-image-")
                .is_some_and(|v| v.starts_with(|c: char| c.is_ascii_digit()))
        })
        .map(str::to_owned)
        .next()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_kernels_package_is_found() {
        let debian = "linux-image-cloud-amd64\n  Depends: linux-image-6.1.0-56-cloud-amd64\n";
        assert_eq!(image_package(debian).as_deref(), Some("linux-image-6.1.0-56-cloud-amd64"));
        let ubuntu =
            "linux-image-virtual\n  Depends: linux-base\n  Depends: linux-image-6.8.0-31-generic\n";
        assert_eq!(image_package(ubuntu).as_deref(), Some("linux-image-6.8.0-31-generic"));
        assert_eq!(image_package("nothing"), None);
    }

    #[test]
    fn modules_come_after_what_they_need() {
        let dir = tempfile::tempdir().expect("temporary folder");
        let lib = dir.path().join("lib/modules/6.1/kernel");
        fs::create_dir_all(&lib).expect("mkdir");
        fs::create_dir(dir.path().join("boot")).expect("mkdir");
        fs::write(dir.path().join("boot/vmlinuz-6.1"), "").expect("write");
        for (name, content) in [
            ("xfs.ko", &b"\x7fELF\0license=GPL\0depends=libcrc32c\0"[..]),
            ("libcrc32c.ko", b"\0depends=\0softdep=pre: crc-impl\0"),
            // A circle, which no real kernel has, must not be one here.
            ("crc-impl.ko", b"\0depends=xfs\0"),
        ] {
            fs::write(lib.join(name), content).expect("write");
        }
        let kernel = Kernel::open(dir.path()).expect("open");
        let modules = kernel.modules(&["ext4", "xfs", "libcrc32c"]).expect("modules");
        let names: Vec<_> = modules.iter().map(|(name, _)| name.as_str()).collect();
        assert_eq!(names, ["crc_impl", "libcrc32c", "xfs"]);
    }
}
