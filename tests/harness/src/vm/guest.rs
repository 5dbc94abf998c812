//! What a guest is made of: kernel modules, busybox, programs with their libraries.
//!
//! Touches the folder that it is given. Starts `ldd` and `cpio`, and no guest.

use std::{
    ffi::OsString,
    fs::{self, File},
    io::{Read as _, Write as _},
    os::unix::{
        ffi::OsStrExt,
        fs::{PermissionsExt, symlink},
    },
    path::{Path, PathBuf},
    process::{Command, Stdio},
};

use anyhow::{Context, Result, ensure};
use walkdir::WalkDir;

use super::Disk;
use crate::{
    kernel::Kernel,
    tools::{command, find, run},
};

/// Modules that every guest loads, where its kernel has them and has not built them in.
const MODULES: [&str; 24] = [
    "nvme",
    "loop",
    "crc32c_generic",
    "crc32c_intel",
    "ext4",
    "xfs",
    "btrfs",
    "vfat",
    "exfat",
    "ntfs3",
    "isofs",
    "udf",
    "squashfs",
    "nls_cp437",
    "nls_iso8859-1",
    "nls_ascii",
    "nls_utf8",
    "overlay",
    "fuse",
    "dm-mod",
    "dm-snapshot",
    "dm-crypt",
    "raid0",
    "raid1",
];

/// The shell commands with which an `init` begins: file systems, busybox, modules.
pub(crate) const BEGIN: &str = r#"#!/bin/sh
export PATH=/usr/local/bin:/bin:/sbin:/usr/bin:/usr/sbin HOME=/ TMPDIR=/tmp
mount -t proc proc /proc
mount -t sysfs sys /sys
mount -t devtmpfs dev /dev 2>/dev/null
mount -t tmpfs tmp /tmp
ln -sf /proc/self/fd /dev/fd
exec </dev/null >/dev/console 2>&1
while read -r module; do
    insmod /modules/$module.ko || echo "module $module can not be loaded"
done </modules/order
"#;

/// The kernel's own way to ask for a file system (kernel `kernel/module/kmod.c`): `modprobe -q -- fs-xfs`.
const MODPROBE: &str = r#"#!/bin/sh
for name; do :; done
[ -e "/modules/$name.needs" ] || exit 1
while read -r module; do
    insmod "/modules/$module.ko" 2>/dev/null
done <"/modules/$name.needs"
"#;

/// What is put into a guest.
#[derive(Debug)]
pub(crate) struct Contents<'a> {
    /// Modules besides those that every guest has.
    pub modules: &'a [&'a str],
    /// Of all of them, those that are loaded when the guest begins; the others when its kernel asks for them. Under emulation
    /// a large module takes a second. None for all.
    pub at_once: Option<&'a [&'a str]>,
    /// Files of this machine and where the guest sees them, with the libraries of programs.
    pub files: &'a [(PathBuf, PathBuf)],
    /// The first program.
    pub init: &'a str,
}

/// Fills a guest's root folder.
pub(crate) fn fill(root: &Path, kernel: &Kernel, contents: &Contents<'_>) -> Result<()> {
    for folder in ["bin", "dev", "proc", "sys", "tmp", "mnt", "out", "modules", "run", "etc"] {
        fs::create_dir_all(root.join(folder))?;
    }
    let busybox = find("busybox").context("busybox is not installed")?;
    install(&busybox, &root.join("bin/busybox"))?;
    // The static one has none; where Debian's dynamic one is installed instead, it does as well.
    for library in libraries(&busybox)? {
        place(root, &library, &library)?;
    }
    for (host, guest) in contents.files {
        place(root, host, guest)?;
        for library in libraries(host)? {
            place(root, &library, &library)?;
        }
    }
    link(&busybox, &root.join("bin"))?;
    put_modules(root, kernel, contents)?;
    fs::write(root.join("etc/passwd"), "root:x:0:0:root:/:/bin/sh\n")?;
    fs::write(root.join("init"), contents.init)?;
    fs::set_permissions(root.join("init"), fs::Permissions::from_mode(0o755))?;
    Ok(())
}

/// Links every name that busybox goes by, but for programs that are there already. Done here, since under emulation the guest would take half a second for it.
fn link(busybox: &Path, folder: &Path) -> Result<()> {
    let mut list = Command::new(busybox);
    let names = run(list.arg("--list").stdin(Stdio::null()))?;
    for name in String::from_utf8_lossy(&names).lines() {
        let at = folder.join(name);
        if !at.exists() {
            symlink("busybox", &at).with_context(|| format!("link {name}"))?;
        }
    }
    Ok(())
}

/// Puts the modules there, with the order in which they are loaded and what loads the rest.
fn put_modules(root: &Path, kernel: &Kernel, contents: &Contents<'_>) -> Result<()> {
    let modules: Vec<_> = MODULES.iter().chain(contents.modules).copied().collect();
    let folder = root.join("modules");
    let mut strip = command("strip")?;
    strip.arg("--strip-debug");
    for (name, content) in kernel.modules(&modules)? {
        let path = folder.join(format!("{name}.ko"));
        fs::write(&path, &content)?;
        strip.arg(&path);
        if contents.at_once.is_none() {
            continue;
        }
        // The kernel knows a module by its name or by what it says it stands for.
        let needs = names(&kernel.modules(&[&name])?);
        for known in aliases(&content).chain([name.replace('_', "-"), name]) {
            fs::write(folder.join(format!("{known}.needs")), &needs)?;
        }
    }
    // Without its debugging information, and without the signature over it, a module loads in half the time.
    run(&mut strip)?;
    let order = names(&kernel.modules(contents.at_once.unwrap_or(&modules))?);
    fs::write(folder.join("order"), order)?;
    let modprobe = root.join("sbin/modprobe");
    fs::create_dir_all(root.join("sbin"))?;
    fs::write(&modprobe, MODPROBE)?;
    fs::set_permissions(&modprobe, fs::Permissions::from_mode(0o755))?;
    Ok(())
}

/// The modules' names, a line each.
fn names(modules: &[(String, Vec<u8>)]) -> String {
    modules.iter().fold(String::new(), |lines, (name, _)| lines + name + "\n")
}

/// The plain names that a module says it stands for, such as `fs-iso9660`: the `alias=` entries of its `.modinfo`.
fn aliases(module: &[u8]) -> impl Iterator<Item = String> {
    let entries =
        module.split(|&byte| byte == 0).filter_map(|entry| std::str::from_utf8(entry).ok());
    let names = entries.filter_map(|entry| entry.strip_prefix("alias="));
    let plain = |name: &&str| name.bytes().all(|b| b.is_ascii_alphanumeric() || b"-_".contains(&b));
    names.filter(plain).map(str::to_owned)
}

/// The `-drive` argument; a comma in a path is written twice.
pub(crate) fn drive(number: usize, disk: &Disk) -> OsString {
    let mut text = OsString::from(format!("id=d{number},if=none,format=raw,"));
    text.push(if disk.readonly { "readonly=on,file=" } else { "file=" });
    for (at, part) in disk.path.as_os_str().as_bytes().split(|&b| b == b',').enumerate() {
        text.push(if at == 0 { "" } else { ",," });
        text.push(std::ffi::OsStr::from_bytes(part));
    }
    text
}

/// NVMe serials have at most 20 characters, and a comma would end QEMU's argument.
pub(crate) fn valid_serial(serial: &str) -> bool {
    (1..=20).contains(&serial.len())
        && serial.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'-')
}

/// Puts a file of this machine where the guest expects it.
pub(crate) fn place(root: &Path, host: &Path, guest: &Path) -> Result<()> {
    let relative = guest.strip_prefix("/").with_context(|| format!("{guest:?} is not absolute"))?;
    let target = root.join(relative);
    if target.exists() {
        return Ok(());
    }
    let folder = target.parent().context("a file needs a folder")?;
    fs::create_dir_all(folder).with_context(|| format!("create {}", folder.display()))?;
    install(host, &target)
}

pub(crate) fn install(source: &Path, target: &Path) -> Result<()> {
    fs::copy(source, target).with_context(|| format!("copy {}", source.display()))?;
    Ok(())
}

/// The shared libraries of a program, as `ldd` finds them: its own programs are the harness's, so
/// that the loader runs is no risk. None for a file that is no dynamic program.
pub(crate) fn libraries(program: &Path) -> Result<Vec<PathBuf>> {
    let mut magic = [0; 4];
    let is_elf = File::open(program)
        .and_then(|mut file| file.read_exact(&mut magic))
        .is_ok_and(|()| magic == *b"\x7fELF");
    if !is_elf {
        return Ok(Vec::new());
    }
    // A static program makes ldd unhappy; that one needs nothing.
    let Ok(output) = run(command("ldd")?.arg(program)) else { return Ok(Vec::new()) };
    let text = String::from_utf8_lossy(&output).into_owned();
    ensure!(!text.contains("not found"), "{} misses libraries: {text}", program.display());
    Ok(library_paths(&text))
}

/// Paths in lines such as `libc.so.6 => /lib/x86_64-linux-gnu/libc.so.6 (0x…)` and
/// `/lib64/ld-linux-x86-64.so.2 (0x…)`.
pub(crate) fn library_paths(ldd: &str) -> Vec<PathBuf> {
    let words = ldd.lines().filter_map(|line| line.split_whitespace().find(|w| w.starts_with('/')));
    words.map(PathBuf::from).collect()
}

/// Packs the folder as the kernel expects an initramfs (kernel
/// `Documentation/driver-api/early-userspace/buffer-format.rst`).
pub(crate) fn archive(root: &Path, initramfs: &Path) -> Result<()> {
    let mut names = Vec::new();
    for entry in WalkDir::new(root).min_depth(1).sort_by_file_name() {
        let entry = entry?;
        names.extend_from_slice(entry.path().strip_prefix(root)?.as_os_str().as_bytes());
        names.push(0);
    }
    let mut cpio = command("cpio")?;
    cpio.args(["--quiet", "--null", "-o", "-H", "newc", "-R", "0:0"]).current_dir(root);
    cpio.stdin(Stdio::piped()).stdout(File::create(initramfs)?);
    let mut child = cpio.spawn().context("start cpio")?;
    child.stdin.take().context("cpio has no input")?.write_all(&names)?;
    let status = child.wait().context("wait for cpio")?;
    ensure!(status.success(), "cpio: {status}");
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::aliases;

    #[test]
    fn a_module_is_known_by_what_it_stands_for() {
        let module =
            b"\x7fELF\0alias=fs-iso9660\0alias=pci:v00001AF4d*\0depends=cdrom\0alias=iso9660\0";
        assert_eq!(aliases(module).collect::<Vec<_>>(), ["fs-iso9660", "iso9660"]);
    }
}
