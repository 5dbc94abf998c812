//! A clean room on this machine: what the emulated account says that a stack has made, booted.
//!
//! A QEMU machine without hardware acceleration, with a root disk of its own, whose network leads to the emulator and
//! nowhere else. Its first program does what cloud-init does on Amazon Linux: it asks the metadata service for the user
//! data and runs that. Evidence is plugged in while it runs, as NVMe disks whose serial numbers are volume ids, the
//! way EBS shows them on Nitro.
//!
//! What stands in for parts of Amazon Linux that a guest of this size lacks is in [`STAND_INS`], to be printed by whoever
//! shows the room. Touches a temporary folder; QEMU dies with the thread that started it.

mod evidence;
mod qmp;
mod site;

use std::{
    ffi::OsString,
    fs,
    io::{Read, Write as _},
    os::unix::{fs::PermissionsExt as _, net::UnixStream},
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    sync::{Arc, Mutex, PoisonError},
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context, Result, bail, ensure};
use serde_json::json;
use tempfile::TempDir;

pub use self::evidence::{Evidence, disks};
use self::qmp::Qmp;
pub use self::site::{Copy, Instance as RoomInstance, Seen, Signal, Site, Stack};
use crate::{
    images::{Ext, Image, MIB},
    kernel::Kernel,
    tools::find,
    vm::{
        Disk,
        guest::{self, BEGIN, Contents},
    },
};

/// What is not Amazon Linux's own in the emulated room, for people to read.
pub const STAND_INS: [(&str, &str); 4] = [
    ("cloud-init", "a script that reads the user data by IMDSv2 and runs it"),
    ("the AWS CLI", "curl, for s3api get-object and cloudformation signal-resource"),
    ("systemd and udev", "absent: the user data goes on without, and restarts the agent itself"),
    ("poweroff", "busybox's, at once"),
];

/// The serial number of the room's own root disk.
pub const ROOT_SERIAL: &str = "vol0f00000000000ca5e";

/// Where the guest finds the emulator, besides the metadata service's own address.
const ENDPOINT: &str = "169.254.169.253";

/// Ports into which disks can be plugged: the root, the demo's volumes, and some to spare. Each costs a busy machine up to a
/// third of a second while the room boots.
const PORTS: usize = 12;

/// Room on the root disk beside what is put there: the agent, its spool, bundles and scratch.
const ROOT_BYTES: u64 = 768 * MIB;

/// Modules that are loaded when the room begins: the network, and what devices of its own are made by. File systems come when
/// one is mounted.
const AT_ONCE: [&str; 7] =
    ["virtio_pci", "virtio_net", "loop", "fuse", "crc32c_intel", "dm-mod", "dm-snapshot"];

/// The kernel's command line. The second half saves time under emulation: no tests of the kernel's own, no measures against
/// neighbours that are not there; and a timer that a busy machine lets wait is no broken one.
const KERNEL: &str = "console=ttyS0 panic=-1 loglevel=4 root=/dev/nvme0n1 rootwait rw init=/init \
     no_timer_check nokaslr mitigations=off cryptomgr.notests tsc=reliable random.trust_cpu=on audit=0 apparmor=0 nowatchdog";

/// Sockets of QEMU's monitor and of the second serial line, in the machine's folder.
const MONITOR: &str = "monitor";
const LINE: &str = "line";

/// The most that is kept of what the console says; the end counts.
const CONSOLE_BYTES: usize = 4 << 20;

/// What the guest says when its user data has ended, followed by the exit status.
const EXIT_MARK: &str = "CLEANROOM-EXIT:";

/// `aws` as far as the user data needs it. The emulator asks for a signature and does not check it; the keys are those of
/// AWS's documentation.
const AWS: &str = r#"#!/bin/sh
# aws s3api get-object --bucket B --key K [--option VALUE]... FILE
# aws cloudformation signal-resource --stack-name S --logical-resource-id R --unique-id U --status STATUS
operation="$1 $2"
shift 2
while [ $# -gt 0 ]; do
    case $1 in
    --bucket) bucket=$2; shift 2 ;;
    --key) key=$2; shift 2 ;;
    --region) region=$2; shift 2 ;;
    --stack-name) stack=$2; shift 2 ;;
    --logical-resource-id) resource=$2; shift 2 ;;
    --unique-id) unique=$2; shift 2 ;;
    --status) status=$2; shift 2 ;;
    --*) shift 2 ;;
    *) file=$1; shift ;;
    esac
done
signed() {
    service=$1
    shift
    curl -sS -f --retry 5 --retry-connrefused --aws-sigv4 "aws:amz:$region:$service" \
        --user AKIAIOSFODNN7EXAMPLE:wJalrXUtnFEMI/K7MDENG/bPxRfiCYEXAMPLEKEY "$@"
}
case $operation in
"s3api get-object") signed s3 -o "$file" "$AWS_ENDPOINT_URL/$bucket/$key" ;;
"cloudformation signal-resource")
    signed cloudformation -o /dev/null -d Action=SignalResource -d Version=2010-05-15 \
        -d "StackName=$stack" -d "LogicalResourceId=$resource" -d "UniqueId=$unique" \
        -d "Status=$status" "$AWS_ENDPOINT_URL/" ;;
*) echo "aws: $operation is not here" >&2; exit 252 ;;
esac
"#;

/// A script to run beside the user data: whoever tests the room types into its second serial line what is to happen in it.
pub const SHELL: &str = "stty -F /dev/ttyS1 -echo && exec sh </dev/ttyS1\n";

const POWEROFF: &str = "#!/bin/sh\nsync\nexec busybox poweroff -f\n";

/// A room to be started.
#[derive(Clone, Copy, Debug)]
pub struct Start<'a> {
    /// The emulator's port on 127.0.0.1.
    pub port: u16,
    /// The port of what stands between the room and the emulator, where anything does. The metadata service is never behind
    /// it.
    pub proxy: Option<u16>,
    /// Programs that the user data fetches: their shared libraries must be there already.
    pub programs: &'a [PathBuf],
    /// A script that runs beside the user data, as root: what a test does to the room from inside.
    pub beside: &'a str,
    /// Memory in MiB.
    pub memory_mib: u64,
    /// Processors.
    pub cpu: u32,
}

/// How a room ended.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Ended {
    /// It turned itself off.
    Off,
    /// Its kernel panicked.
    Panicked,
}

/// A room that runs.
#[derive(Debug)]
pub struct Machine {
    child: Child,
    qmp: Qmp,
    shell: UnixStream,
    console: Arc<Mutex<Vec<u8>>>,
    plugged: usize,
    scratch: TempDir,
    started: Instant,
}

impl Machine {
    /// Boots the room, with no evidence attached.
    ///
    /// # Errors
    /// Where a program or the kernel is missing, or QEMU does not start.
    pub fn boot(start: &Start<'_>) -> Result<Self> {
        let kernel = Kernel::get()?;
        let scratch = tempfile::tempdir().context("create a temporary folder")?;
        let root = root_disk(&kernel, start, scratch.path())?;
        let mut qemu = qemu(&kernel, start, &root, scratch.path())?;
        let log = fs::File::create(scratch.path().join("log")).context("create a log file")?;
        qemu.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(log);
        let mut child = qemu.spawn().context("start QEMU")?;
        let started = Instant::now();
        let output = child.stdout.take().context("QEMU has no console")?;
        let console = Arc::<Mutex<Vec<u8>>>::default();
        thread::spawn({
            let console = console.clone();
            move || keep(output, &console)
        });
        let lines = Qmp::connect(&scratch.path().join(MONITOR)).and_then(|qmp| {
            let shell = UnixStream::connect(scratch.path().join(LINE));
            Ok((qmp, shell.context("connect to the second serial line")?))
        });
        let complaint = || fs::read_to_string(scratch.path().join("log")).unwrap_or_default();
        match lines {
            Ok((qmp, shell)) => {
                Ok(Self { child, qmp, shell, console, plugged: 0, scratch, started })
            }
            Err(error) => {
                let _ = child.kill();
                let _ = child.wait();
                Err(error.context(format!("start QEMU: {}", complaint().trim())))
            }
        }
    }

    /// Plugs a disk into the running machine.
    ///
    /// # Errors
    /// Where QEMU refuses it, or all ports are taken.
    pub fn attach(&mut self, disk: &Disk) -> Result<()> {
        ensure!(guest::valid_serial(&disk.serial), "{:?} is no NVMe serial", disk.serial);
        ensure!(self.plugged + 1 < PORTS, "all {PORTS} ports are taken");
        self.plugged += 1;
        let (number, path) = (self.plugged, disk.path.canonicalize()?);
        let node = format!("evidence{number}");
        let file = json!({"driver": "file", "filename": path, "read-only": disk.readonly});
        let drive = json!({
            "driver": "raw", "node-name": node, "read-only": disk.readonly, "file": file
        });
        self.qmp.run("blockdev-add", drive)?;
        let device = json!({
            "driver": "nvme", "id": format!("nvme{number}"), "serial": disk.serial, "drive": node,
            "bus": format!("port{number}"),
        });
        self.qmp.run("device_add", device)?;
        Ok(())
    }

    /// Plugs the network in or out.
    ///
    /// # Errors
    /// Where QEMU has ended.
    pub fn network(&mut self, up: bool) -> Result<()> {
        self.qmp.run("set_link", json!({"name": "net", "up": up}))?;
        Ok(())
    }

    /// Types a line into the second serial line, where [`SHELL`] takes it for a command.
    ///
    /// # Errors
    /// Where QEMU has ended.
    pub fn types(&mut self, line: &str) -> Result<()> {
        writeln!(self.shell, "{line}").with_context(|| format!("type {line:?} into the room"))
    }

    /// What the console has said so far, the last four MiB of it at least.
    #[must_use]
    pub fn console(&self) -> String {
        let bytes = self.console.lock().unwrap_or_else(PoisonError::into_inner);
        String::from_utf8_lossy(&bytes).into_owned()
    }

    /// The time since the machine was switched on.
    #[must_use]
    pub fn running(&self) -> Duration {
        self.started.elapsed()
    }

    /// Whether the machine has ended.
    ///
    /// # Errors
    /// Where the process can not be asked.
    pub fn has_ended(&mut self) -> Result<bool> {
        Ok(self.child.try_wait().context("ask for QEMU's end")?.is_some())
    }

    /// Waits until something is true, looking ten times a second.
    ///
    /// # Errors
    /// Where the time is up or the machine ends before: with the console's last lines.
    pub fn until(
        &mut self,
        what: &str,
        patience: Duration,
        mut is: impl FnMut(&mut Self) -> Result<bool>,
    ) -> Result<()> {
        let ends = Instant::now() + patience;
        while !is(self)? {
            let ended = self.has_ended()?;
            // What was said last may have made it true.
            if ended && is(self)? {
                return Ok(());
            }
            ensure!(!ended, "the room ended before {what}:\n{}", self.tail());
            ensure!(Instant::now() < ends, "not within {patience:?}: {what}:\n{}", self.tail());
            pause(Duration::from_millis(100));
        }
        Ok(())
    }

    /// Waits until the machine turns itself off.
    ///
    /// # Errors
    /// Where the time is up: then the machine is killed.
    pub fn wait(&mut self, patience: Duration) -> Result<Ended> {
        let ends = Instant::now() + patience;
        while !self.has_ended()? {
            if Instant::now() > ends {
                self.kill();
                bail!("the room did not end within {patience:?}:\n{}", self.tail());
            }
            pause(Duration::from_millis(100));
        }
        let panicked = self.console().contains("Kernel panic - not syncing");
        Ok(if panicked { Ended::Panicked } else { Ended::Off })
    }

    /// Ends it as a power cut does.
    pub fn kill(&mut self) {
        // Both fail harmlessly on a process that has ended and been waited for.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }

    /// A copy of the room's own root disk, as it is now, or as a machine that was killed has left it.
    ///
    /// # Errors
    /// Where it can not be read or written.
    pub fn copy_root(&self, to: &Path) -> Result<()> {
        let root = self.scratch.path().join("root.img");
        fs::copy(root, to).with_context(|| format!("copy the root disk to {}", to.display()))?;
        Ok(())
    }

    /// The console's last lines.
    #[must_use]
    pub fn tail(&self) -> String {
        let console = self.console();
        let lines: Vec<_> = console.lines().rev().take(40).collect();
        lines.into_iter().rev().collect::<Vec<_>>().join("\n")
    }
}

impl Drop for Machine {
    fn drop(&mut self) {
        self.kill();
    }
}

/// Waits on the harness's own thread.
#[expect(clippy::disallowed_methods, reason = "there is no runtime here whose tasks would wait")]
fn pause(time: Duration) {
    thread::sleep(time);
}

/// Keeps what a console says, the end of it.
fn keep(mut output: impl Read, console: &Mutex<Vec<u8>>) {
    let mut block = [0; 4096];
    while let Ok(len @ 1..) = output.read(&mut block) {
        let mut kept = console.lock().unwrap_or_else(PoisonError::into_inner);
        kept.extend_from_slice(block.get(..len).unwrap_or_default());
        if kept.len() > 2 * CONSOLE_BYTES {
            let surplus = kept.len() - CONSOLE_BYTES;
            kept.drain(..surplus);
        }
    }
}

/// Makes the disk that the room boots from.
fn root_disk(kernel: &Kernel, start: &Start<'_>, scratch: &Path) -> Result<PathBuf> {
    let root = scratch.join("root");
    let curl = find("curl").context("curl is not installed")?;
    let roots = PathBuf::from("/etc/ssl/certs/ca-certificates.crt");
    ensure!(roots.is_file(), "{} is missing: install ca-certificates", roots.display());
    // Busybox's takes longer for a digest, and its blkid has none of the options that the welcome note uses.
    let sums = find("sha256sum").context("sha256sum is not installed")?;
    let blkid = find("blkid").context("blkid is not installed")?;
    let files = [
        (curl, PathBuf::from("/usr/bin/curl")),
        (sums, PathBuf::from("/usr/bin/sha256sum")),
        (blkid, PathBuf::from("/usr/sbin/blkid")),
        (roots.clone(), roots),
    ];
    let contents = Contents {
        modules: &["virtio_pci", "virtio_net"],
        at_once: Some(&AT_ONCE),
        files: &files,
        init: &init(),
    };
    guest::fill(&root, kernel, &contents)?;
    for program in start.programs {
        for library in guest::libraries(program)? {
            guest::place(&root, &library, &library)?;
        }
    }
    fs::create_dir_all(root.join("usr/local/bin"))?;
    fs::create_dir_all(root.join("var/lib"))?;
    fs::create_dir_all(root.join("var/tmp"))?;
    for (name, script) in [("aws", AWS), ("poweroff", POWEROFF), ("shutdown", POWEROFF)] {
        let path = root.join("usr/local/bin").join(name);
        fs::write(&path, script)?;
        fs::set_permissions(&path, fs::Permissions::from_mode(0o755))?;
    }
    fs::write(root.join("beside"), start.beside)?;
    let image = Image::new(scratch, "root.img", ROOT_BYTES).label("room").ext(Ext::Ext4, &root)?;
    fs::remove_dir_all(&root).context("remove the root folder")?;
    Ok(image)
}

/// The first program of the room. It asks the metadata service with busybox alone: starting curl twice takes a second.
fn init() -> String {
    format!(
        r#"{BEGIN}export TMPDIR=/var/tmp
ip link set lo up
ip addr add 169.254.169.15/24 dev eth0
ip link set eth0 up
export AWS_ENDPOINT_URL=http://{ENDPOINT}
imds() {{
    printf '%s /latest/%s HTTP/1.0\r\nHost: 169.254.169.254\r\n%s\r\n\r\n' "$@" |
        nc -w 5 169.254.169.254 80 >/run/answer
    head -n 1 /run/answer | grep -q ' 200 ' && sed '1,/^\r$/d' /run/answer
}}
for try in $(seq 100); do
    token=$(imds PUT api/token 'X-aws-ec2-metadata-token-ttl-seconds: 300') && break
    usleep 200000
done
imds GET user-data "X-aws-ec2-metadata-token: $token" >/run/user-data || echo "no user data"
sh /beside &
echo "the room runs its user data"
sh /run/user-data
echo "{EXIT_MARK}$?"
sync
busybox poweroff -f
"#
    )
}

/// QEMU's command line.
fn qemu(kernel: &Kernel, start: &Start<'_>, root: &Path, scratch: &Path) -> Result<Command> {
    // The parent-death signal: not even SIGKILL on the test leaves a QEMU behind.
    let mut qemu = Command::new(find("setpriv").context("no setpriv")?);
    qemu.args(["--pdeathsig", "KILL"]);
    qemu.arg(find("qemu-system-x86_64").context("qemu-system-x86_64 is not installed")?);
    qemu.args(["-no-user-config", "-nodefaults", "-display", "none", "-serial", "stdio"]);
    qemu.args(["-machine", "q35", "-accel", "tcg", "-cpu", "max", "-no-reboot"]);
    // Each connection of the guest is a program of its own, in a session of its own: starting programs and
    // `setsid`, which QEMU counts as a privilege, are allowed here.
    qemu.args(["-sandbox", "on,obsolete=deny"]);
    qemu.args(["-smp", &start.cpu.to_string(), "-m", &format!("{}M", start.memory_mib)]);
    qemu.arg("-kernel").arg(&kernel.image);
    qemu.args(["-append", KERNEL]);
    for port in 0..PORTS {
        let slot = port + 1;
        qemu.args(["-device", &format!("pcie-root-port,id=port{port},chassis={slot},slot={slot}")]);
    }
    let disk = Disk { path: root.to_owned(), serial: ROOT_SERIAL.to_owned(), readonly: false };
    qemu.arg("-drive").arg(guest::drive(0, &disk));
    qemu.args(["-device", &format!("nvme,serial={ROOT_SERIAL},drive=d0,bus=port0")]);

    let nc = find("busybox").context("busybox is not installed")?;
    let nc = nc.to_str().filter(|path| !path.contains([',', ' '])).context("busybox's path")?;
    let forward = |address: &str, port: u16| {
        format!("guestfwd=tcp:{address}:80-cmd:{nc} nc 127.0.0.1 {port}")
    };
    let imds = forward("169.254.169.254", start.port);
    let endpoint = forward(ENDPOINT, start.proxy.unwrap_or(start.port));
    let network = "net=169.254.169.0/24,host=169.254.169.1,restrict=on";
    qemu.args(["-netdev", &format!("user,id=n,{network},{imds},{endpoint}")]);
    qemu.args(["-device", "virtio-net-pci,id=net,netdev=n,romfile="]);
    for (option, name) in [("-qmp", MONITOR), ("-serial", LINE)] {
        let mut socket = OsString::from("unix:");
        socket.push(scratch.join(name));
        socket.push(",server=on,wait=off");
        qemu.arg(option).arg(socket);
    }
    Ok(qemu)
}

#[cfg(test)]
mod tests;
