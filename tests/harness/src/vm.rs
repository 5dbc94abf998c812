//! A virtual machine for images that must not touch this machine's kernel, and for file systems
//! that this kernel lacks.
//!
//! QEMU without hardware acceleration, so that it works where no nested virtualisation is; no
//! network; disks as NVMe with a serial number, as EBS shows them on Nitro. The guest boots an
//! initramfs made for the run, runs one script, and turns itself off. Everything it leaves is in a
//! temporary folder; QEMU dies with the thread that started it.

pub(crate) mod guest;

use std::{
    fs::{self, File},
    io::Read,
    path::{Path, PathBuf},
    process::{Child, Stdio},
    sync::mpsc,
    thread,
    time::Duration,
};

use anyhow::{Context, Result, bail, ensure};
use tempfile::TempDir;

use self::guest::{BEGIN, Contents};
use crate::{
    images::MIB,
    kernel::Kernel,
    tools::{command, find, run},
};

/// The serial number of the disk that carries the results out.
const OUT_SERIAL: &str = "cleanroom-out";

/// How much the script can hand back in `/out`.
const OUT_BYTES: u64 = 64 * MIB;

/// The most that is kept of what the console says; the end counts.
const CONSOLE_BYTES: usize = 4 << 20;

/// What the guest prints before it turns itself off, followed by the script's exit status.
const EXIT_MARK: &str = "CLEANROOM-EXIT:";

/// A disk of the guest.
#[derive(Clone, Debug)]
pub struct Disk {
    /// The raw image.
    pub path: PathBuf,
    /// Its NVMe serial, at most 20 characters: `vol0123456789abcdef0` for `vol-0123456789abcdef0`.
    pub serial: String,
    /// Whether QEMU refuses writes. Otherwise they reach the image.
    pub readonly: bool,
}

/// A virtual machine to be run once.
#[derive(Clone, Debug)]
pub struct Vm {
    /// Processors.
    pub cpu: u32,
    /// Memory in MiB. The initramfs needs about twice its size of it.
    pub memory_mib: u64,
    /// Disks, `/dev/nvme0n1` and so on in this order. The results' disk comes after them.
    pub disks: Vec<Disk>,
    /// Files of this machine and where the guest sees them (absolute), with the shared libraries
    /// that programs need.
    pub files: Vec<(PathBuf, PathBuf)>,
    /// A script for busybox's `sh`, run as root. What it leaves in `/out` is handed back.
    pub script: String,
    /// After this time QEMU is killed, which is an error.
    pub timeout: Duration,
}

impl Default for Vm {
    fn default() -> Self {
        Self {
            cpu: 2,
            memory_mib: 1024,
            disks: Vec::new(),
            files: Vec::new(),
            script: String::new(),
            timeout: Duration::from_secs(180),
        }
    }
}

/// What a run of the virtual machine left.
#[derive(Debug)]
pub struct VmOutcome {
    /// The script's exit status; `None` when the guest never got to say it, as after a panic.
    pub exit: Option<i32>,
    /// What the kernel and the boot script said on the serial console.
    pub console: String,
    /// What the script left in `/out`, with its `stdout` and `stderr` as files. Empty where `exit`
    /// is `None`.
    pub out: TempDir,
}

impl VmOutcome {
    /// What the script wrote to its standard output.
    #[must_use]
    pub fn stdout(&self) -> String {
        self.text("stdout")
    }

    /// What the script wrote to its standard error.
    #[must_use]
    pub fn stderr(&self) -> String {
        self.text("stderr")
    }

    /// Whether the guest's kernel panicked.
    #[must_use]
    pub fn panicked(&self) -> bool {
        self.console.contains("Kernel panic - not syncing")
    }

    fn text(&self, name: &str) -> String {
        let bytes = fs::read(self.out.path().join(name)).unwrap_or_default();
        String::from_utf8_lossy(&bytes).into_owned()
    }
}

impl Vm {
    /// Boots, runs the script, and comes back when the guest is off.
    ///
    /// # Errors
    /// Where a program or the kernel is missing, memory is too small for the files, or the time
    /// is up: then with the console's last lines.
    pub fn run(&self) -> Result<VmOutcome> {
        let kernel = Kernel::get()?;
        let scratch = tempfile::tempdir().context("create a temporary folder")?;
        let initramfs = scratch.path().join("initramfs");
        self.pack(&kernel, &scratch.path().join("root"), &initramfs)?;
        let size = fs::metadata(&initramfs)?.len();
        let needed = 2 * size / MIB + 192;
        ensure!(
            needed <= self.memory_mib,
            "the guest needs {needed} MiB for an initramfs of {size} bytes"
        );

        let out_disk = scratch.path().join("out.img");
        File::create(&out_disk)
            .and_then(|f| f.set_len(OUT_BYTES))
            .context("create the out disk")?;
        let console = self.boot(&kernel, &initramfs, &out_disk)?;

        let exit = exit_status(&console);
        let out = tempfile::tempdir().context("create a temporary folder")?;
        if exit.is_some() {
            ensure!(!console.contains("CLEANROOM-OUT-FAILED"), "/out does not fit the out disk");
            let mut tar = command("tar")?;
            tar.args(["--no-same-owner", "--no-same-permissions", "-x", "-f"]);
            run(tar.arg(&out_disk).arg("-C").arg(out.path()))?;
        }
        Ok(VmOutcome { exit, console, out })
    }

    /// Packs the guest's root file system.
    fn pack(&self, kernel: &Kernel, root: &Path, initramfs: &Path) -> Result<()> {
        let contents = Contents { modules: &[], at_once: None, files: &self.files, init: &init() };
        guest::fill(root, kernel, &contents)?;
        fs::write(root.join("script"), &self.script)?;
        guest::archive(root, initramfs)
    }

    /// Runs QEMU and returns what the console said.
    fn boot(&self, kernel: &Kernel, initramfs: &Path, out_disk: &Path) -> Result<String> {
        // The parent-death signal: not even SIGKILL on the test leaves a QEMU behind.
        let mut qemu = std::process::Command::new(find("setpriv").context("no setpriv")?);
        qemu.args(["--pdeathsig", "KILL"]);
        qemu.arg(find("qemu-system-x86_64").context("qemu-system-x86_64 is not installed")?);
        qemu.args(["-no-user-config", "-nodefaults", "-display", "none", "-serial", "stdio"]);
        qemu.args(["-accel", "tcg", "-cpu", "max", "-nic", "none", "-no-reboot"]);
        qemu.args(["-sandbox", "on,obsolete=deny,elevateprivileges=deny,spawn=deny"]);
        qemu.args(["-smp", &self.cpu.to_string(), "-m", &format!("{}M", self.memory_mib)]);
        qemu.arg("-kernel").arg(&kernel.image).arg("-initrd").arg(initramfs);
        // panic=-1 reboots at once, and -no-reboot makes that the end.
        qemu.args(["-append", "console=ttyS0 panic=-1 loglevel=5 rdinit=/init"]);
        let out =
            Disk { path: out_disk.to_owned(), serial: OUT_SERIAL.to_owned(), readonly: false };
        for (number, disk) in self.disks.iter().chain([&out]).enumerate() {
            ensure!(guest::valid_serial(&disk.serial), "{:?} is no NVMe serial", disk.serial);
            qemu.arg("-drive").arg(guest::drive(number, disk));
            qemu.args(["-device", &format!("nvme,serial={},drive=d{number}", disk.serial)]);
        }
        let child = qemu.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn();
        let mut guard = KillOnDrop(child.context("start QEMU")?);
        let talk = guard.0.stderr.take().context("QEMU has no stderr")?;
        let console = guard.0.stdout.take().context("QEMU has no console")?;
        let (said, complained) = (drain(console), drain(talk));

        // The console's end is QEMU's end.
        let in_time = said.recv_timeout(self.timeout);
        if in_time.is_err() {
            guard.0.kill().context("kill QEMU")?;
        }
        let status = guard.0.wait().context("wait for QEMU")?;
        let said = in_time.or_else(|_| said.recv()).context("the console's reader is gone")?;
        let said = String::from_utf8_lossy(&said).into_owned();
        let complaint = complained.recv().unwrap_or_default();
        let complaint = String::from_utf8_lossy(&complaint).into_owned();
        if status.success() {
            return Ok(said);
        }
        let tail: Vec<_> = said.lines().rev().take(15).collect();
        let tail: Vec<_> = tail.into_iter().rev().collect();
        bail!(
            "the virtual machine did not end within {:?}: {status}: {complaint}\n{}",
            self.timeout,
            tail.join("\n")
        )
    }
}

/// A process that is killed where its owner leaves early.
#[derive(Debug)]
struct KillOnDrop(Child);

impl Drop for KillOnDrop {
    fn drop(&mut self) {
        // Both fail harmlessly on a process that has ended and been waited for.
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// Reads to the end on a thread of its own and sends what was read, the last [`CONSOLE_BYTES`] of
/// it.
fn drain(mut source: impl Read + Send + 'static) -> mpsc::Receiver<Vec<u8>> {
    let (sender, receiver) = mpsc::sync_channel(1);
    thread::spawn(move || {
        let mut kept = Vec::new();
        let mut block = [0; 4096];
        while let Ok(len @ 1..) = source.read(&mut block) {
            kept.extend_from_slice(block.get(..len).unwrap_or_default());
            if kept.len() > 2 * CONSOLE_BYTES {
                kept.drain(..kept.len() - CONSOLE_BYTES);
            }
        }
        kept.drain(..kept.len().saturating_sub(CONSOLE_BYTES));
        // Nobody listens any more where the owner left early.
        let _ = sender.send(kept);
    });
    receiver
}

/// The first program of the guest.
fn init() -> String {
    format!(
        r#"{BEGIN}out=
for try in $(seq 100); do
    for serial in /sys/class/nvme/nvme*/serial; do
        if grep -q '^{OUT_SERIAL} *$' $serial 2>/dev/null; then
            out=/dev/$(basename $(dirname $serial))n1
        fi
    done
    [ -b "$out" ] && break
    usleep 100000
done
sh /script >/out/stdout 2>/out/stderr
code=$?
tar -c -f "$out" -C /out . || echo CLEANROOM-OUT-FAILED
sync
echo
echo "{EXIT_MARK}$code"
poweroff -f || echo o >/proc/sysrq-trigger
"#
    )
}

/// The status in the last line of its own that starts with [`EXIT_MARK`].
fn exit_status(console: &str) -> Option<i32> {
    console.lines().rev().find_map(|line| line.trim().strip_prefix(EXIT_MARK)?.parse().ok())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        damage,
        images::{Ext, Image},
    };

    /// An ext4 image that asks for a panic when `/etc` is listed.
    fn hostile(folder: &Path) -> Disk {
        let content = tempfile::tempdir().expect("temporary folder");
        fs::create_dir(content.path().join("etc")).expect("mkdir");
        fs::write(content.path().join("etc/motd"), "hello\n").expect("write");
        let path = Image::new(folder, "hostile,with-comma.img", 16 * MIB)
            .ext(Ext::Ext4, content.path())
            .expect("ext4");
        damage::panic_on_error(&path, "/etc").expect("damage");
        Disk { path, serial: "vol0123456789abcdef0".into(), readonly: true }
    }

    #[test]
    fn boots_and_hands_results_back() {
        let dir = tempfile::tempdir().expect("temporary folder");
        let vm = Vm {
            disks: vec![hostile(dir.path())],
            // A program with shared libraries, and a plain file.
            files: vec![
                (find("ls").expect("ls"), "/usr/local/bin/host-ls".into()),
                (dir.path().join("data"), "/data/file".into()),
            ],
            script: "set -e; uname -r; /usr/local/bin/host-ls /dev/nvme0n1; cat /data/file
                cat /sys/class/nvme/nvme0/serial; grep -cE '^\t(ext4|xfs|btrfs|vfat)$' /proc/filesystems
                mount -t ext4 -o ro,errors=continue /dev/nvme0n1 /mnt
                ls /mnt/etc 2>&1 || true; echo kept > /out/kept
                echo talk >&2; exit 5"
                .into(),
            ..Vm::default()
        };
        fs::write(dir.path().join("data"), "from outside\n").expect("write");
        let outcome = vm.run().expect("run");
        assert_eq!(outcome.exit, Some(5), "{}\n{}", outcome.stderr(), outcome.console);
        let stdout = outcome.stdout();
        let lines: Vec<_> = stdout.lines().map(str::trim).collect();
        assert!(lines[0].starts_with(|c: char| c.is_ascii_digit()), "{stdout}");
        assert_eq!(lines[1..5], ["/dev/nvme0n1", "from outside", "vol0123456789abcdef0", "4"]);
        assert_eq!(outcome.stderr(), "talk\n");
        assert_eq!(fs::read(outcome.out.path().join("kept")).expect("kept"), b"kept\n");
        assert!(!outcome.panicked());
    }

    #[test]
    fn a_panic_in_the_guest_is_seen_and_ends_it() {
        let dir = tempfile::tempdir().expect("temporary folder");
        let vm = Vm {
            disks: vec![hostile(dir.path())],
            script: "mount -t ext4 -o ro /dev/nvme0n1 /mnt; ls /mnt/etc".into(),
            ..Vm::default()
        };
        let outcome = vm.run().expect("run");
        assert_eq!(outcome.exit, None);
        assert!(outcome.panicked(), "{}", outcome.console);
    }

    #[test]
    fn a_guest_that_does_not_end_is_killed() {
        let vm = Vm { timeout: Duration::from_millis(300), ..Vm::default() };
        let error = vm.run().expect_err("the time is up before any guest can boot");
        assert!(format!("{error:#}").contains("did not end within"), "{error:#}");
    }

    #[test]
    fn files_that_do_not_fit_are_an_error() {
        let vm = Vm { memory_mib: 100, ..Vm::default() };
        assert!(format!("{:#}", vm.run().expect_err("too small")).contains("the guest needs"));
    }

    #[test]
    fn ldd_lines() {
        let text = "\tlinux-vdso.so.1 (0x0)\n\tlibc.so.6 => /lib/x/libc.so.6 (0x1)\n\t/lib64/ld.so (0x2)\n";
        let want = [PathBuf::from("/lib/x/libc.so.6"), PathBuf::from("/lib64/ld.so")];
        assert_eq!(guest::library_paths(text), want);
    }

    #[test]
    fn exit_marks() {
        assert_eq!(
            exit_status("noise\r\nCLEANROOM-EXIT:3\r\n[1.0] reboot: Power down\r\n"),
            Some(3)
        );
        assert_eq!(exit_status("noise about CLEANROOM-EXIT:3\n"), None);
    }
}
