//! The script that an instance starts with, run in a folder that looks like a machine: BusyBox for all commands, and stand-ins
//! for those that would reach AWS or the machine, which write down what they were asked.

use std::{
    fs,
    os::unix::fs::{PermissionsExt, symlink},
    path::{Path, PathBuf},
    process::Output,
};

use cleanroom_harness::tools::{self, find, is_root};
use sha2::{Digest, Sha256};
use tempfile::TempDir;

use super::support::{MOST, Parameters, least, parameters, room, shared};

fn user_data(parameters: &Parameters) -> String {
    room(parameters).property("Room", "/UserData").as_str().expect("user data").to_owned()
}

#[test]
fn every_shell_takes_it() {
    let folder = tempfile::tempdir().expect("a folder");
    let file = folder.path().join("user-data");
    for parameters in [parameters(MOST), least(), shared(least())] {
        let script = user_data(&parameters);
        assert!(script.starts_with("#!/bin/sh\n#cleanroom-room {"), "{script:.80}");
        assert!(!script.contains("${!"), "an escape is left");
        fs::write(&file, script).expect("write");
        for shell in [&["busybox", "sh"][..], &["dash"], &["bash", "--posix"]] {
            if find(shell[0]).is_none() && shell[0] != "busybox" {
                continue;
            }
            let mut command = tools::command(shell[0]).expect("a shell");
            command.args(&shell[1..]).arg("-n").arg(&file);
            let talk = command.output().expect("start a shell");
            assert!(talk.status.success() && talk.stderr.is_empty(), "{shell:?}: {talk:?}");
        }
    }
}

/// What a stand-in does: writes down how it was called.
const STAND_IN: &str = "#!/bin/sh\necho \"${0##*/} $*\" >>/log/calls\n";

/// A stand-in for AWS's command line, with the bucket in a folder.
const AWS: &str = r#"
if [ "$1 $2" = "s3api get-object" ]; then
  while [ "$#" -gt 1 ]; do
    if [ "$1" = --key ]; then key=$2; fi
    shift
  done
  cp "/bucket/$key" "$1"
fi
"#;

/// A stand-in for the agent: ends as the next line of `/plan` says, after as many seconds as `/works` says.
const AGENT: &str = r#"#!/bin/sh
echo "agent $*" >>/log/calls
read -r up _ </proc/uptime
echo "$((${up%.*} + $(cat /works))).00 0.00" >/proc/uptime
status=$(head -n 1 /plan)
sed -i 1d /plan
exit "$status"
"#;

/// A folder that looks like a machine.
struct Machine {
    folder: TempDir,
    parameters: Parameters,
}

impl Machine {
    /// One with the agent in its bucket, whose root is on `nvme0n1`, and which has one more disk.
    fn new() -> Self {
        let folder = tempfile::tempdir().expect("a folder");
        let mut parameters = least();
        parameters.insert("AgentSha256".into(), sha256(AGENT));
        let machine = Self { folder, parameters };
        for folder in [
            "bin",
            "bucket/agent/0.1.0",
            "dev",
            "etc",
            "log",
            "opt",
            "proc/self",
            "proc/sys/kernel",
            "run/systemd/system",
            "sys/block",
            "sys/dev/block",
            "tmp",
            "var/lib/cloud/data",
            "sys/devices/nvme0/nvme0n1/nvme0n1p1",
            "sys/devices/nvme1/nvme1n1",
        ] {
            fs::create_dir_all(machine.path(folder)).expect("a folder");
        }
        let busybox = find("busybox").expect("busybox is installed");
        fs::copy(&busybox, machine.path("bin/busybox")).expect("copy busybox");
        let applets = tools::command("busybox").expect("busybox").arg("--list").output();
        let without = ["aws", "blockdev", "poweroff", "sleep", "swapoff", "busybox"];
        for applet in String::from_utf8(applets.expect("a list").stdout).expect("text").lines() {
            if !without.contains(&applet) {
                symlink("busybox", machine.path("bin").join(applet)).expect("a link");
            }
        }
        machine.program("aws", AWS);
        for name in ["blockdev", "poweroff", "sleep", "swapoff"] {
            machine.program(name, "");
        }
        for (number, serial) in [(0, "vol0aaaaaaaaaaaaaaa0"), (1, "vol0bbbbbbbbbbbbbbb1")] {
            let disk = format!("sys/devices/nvme{number}/nvme{number}n1");
            symlink("..", machine.path(&format!("{disk}/device"))).expect("a link");
            machine.write(&format!("sys/devices/nvme{number}/serial"), &format!("{serial}\n"));
            let name = format!("sys/block/nvme{number}n1");
            symlink(format!("../devices/nvme{number}/nvme{number}n1"), machine.path(&name))
                .expect("a link");
        }
        machine.write("sys/devices/nvme0/nvme0n1/nvme0n1p1/partition", "1\n");
        let partition = "../../devices/nvme0/nvme0n1/nvme0n1p1";
        symlink(partition, machine.path("sys/dev/block/259:1")).expect("a link");
        let mounts = "22 1 259:1 / / rw,noatime - xfs /dev/nvme0n1p1 rw\n23 22 0:5 / /dev rw - devtmpfs devtmpfs rw\n";
        machine.write("proc/self/mountinfo", mounts);
        machine.write("proc/uptime", "61.07 118.42\n");
        machine.write("works", "3599\n");
        machine.write("var/lib/cloud/data/instance-id", "i-0fedcba9876543210\n");
        machine.write(&format!("bucket/{}", machine.parameters["AgentKey"]), AGENT);
        machine
    }

    fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    fn write(&self, name: &str, content: &str) {
        fs::write(self.path(name), content).unwrap_or_else(|error| panic!("{name}: {error}"));
    }

    fn read(&self, name: &str) -> String {
        fs::read_to_string(self.path(name)).unwrap_or_default()
    }

    /// Puts a stand-in on the path.
    fn program(&self, name: &str, does: &str) {
        let name = format!("bin/{name}");
        self.write(&name, &format!("{STAND_IN}{does}"));
        fs::set_permissions(self.path(&name), fs::Permissions::from_mode(0o755)).expect("a mode");
    }

    /// Makes it one with systemd and udev.
    fn with_systemd(self) -> Self {
        for name in ["systemctl", "udevadm"] {
            self.program(name, "");
        }
        self
    }

    /// Runs the script; the agent ends in these ways, one after the other.
    fn run(&self, plan: &str) -> Output {
        self.write("plan", plan);
        self.write("user-data", &user_data(&self.parameters));
        let root: &Path = self.folder.path();
        let mut command = if is_root() {
            tools::command("chroot").expect("chroot")
        } else {
            let mut command = tools::command("unshare").expect("unshare");
            command.args(["--map-root-user", "chroot"]);
            command
        };
        command.arg(root).args(["/bin/sh", "/user-data"]).output().expect("start the machine")
    }

    /// What the stand-ins were asked, in order.
    fn calls(&self) -> Vec<String> {
        self.read("log/calls").lines().map(str::to_owned).collect()
    }

    /// How many calls begin so.
    fn count(&self, prefix: &str) -> usize {
        self.calls().iter().filter(|call| call.starts_with(prefix)).count()
    }

    /// Where the first call is that begins so.
    fn position(&self, prefix: &str) -> usize {
        let calls = self.calls();
        let found = calls.iter().position(|call| call.starts_with(prefix));
        found.unwrap_or_else(|| panic!("no {prefix} in {calls:#?}"))
    }
}

fn sha256(content: &str) -> String {
    Sha256::digest(content.as_bytes()).iter().map(|byte| format!("{byte:02x}")).collect()
}

const FAILURE: &str = "aws cloudformation signal-resource --region us-east-1 --stack-name cleanroom-case \
--logical-resource-id Room --unique-id i-0fedcba9876543210 --status FAILURE";

#[test]
fn the_agent_runs_until_it_has_nothing_to_do() {
    let machine = Machine::new();
    let done = machine.run("75\n1\n137\n0\n");
    assert!(done.status.success(), "{done:?} {:#?}", machine.calls());
    assert_eq!(machine.count("agent run"), 4, "{:#?}", machine.calls());
    assert_eq!(machine.count("poweroff"), 1);
    assert_eq!(machine.calls().last().map(String::as_str), Some("poweroff -f"));
    assert_eq!(machine.count("aws cloudformation"), 0, "the agent itself signals");
    assert_eq!(machine.read("proc/sys/kernel/panic"), "0\n");
}

#[test]
fn an_agent_that_can_not_use_its_order_is_not_run_again_and_its_room_ends_like_an_idle_one() {
    let machine = Machine::new();
    let done = machine.run("75\n78\n0\n");
    assert!(done.status.success(), "{done:?}");
    assert_eq!(machine.count("agent run"), 2);
    // Whoever looks for the reason finds the room there for as long as it would be idle.
    let calls = machine.calls();
    assert_eq!(calls[calls.len() - 2..], ["sleep 3600", "poweroff -f"], "{calls:#?}");
    let talk = String::from_utf8_lossy(&done.stdout).into_owned();
    assert!(talk.contains("can not use its work order. Power off in 3600 s"), "{talk}");
    assert!(talk.contains("No alarm goes out from here"), "{talk}");
}

#[test]
fn an_agent_that_fails_again_and_again_is_given_up_after_an_outage_was_sat_out() {
    let machine = Machine::new();
    let done = machine.run(&"75\n".repeat(40));
    assert!(done.status.success(), "{done:?}");
    assert_eq!(machine.count("agent run"), 32);
    let slept = |seconds: &str| machine.calls().iter().filter(|c| *c == seconds).count();
    // At once after a crash; more than an hour in all before it is given up.
    assert_eq!((slept("sleep 2"), slept("sleep 300"), slept("sleep 3600")), (16, 15, 1));
    assert_eq!(machine.calls().last().map(String::as_str), Some("poweroff -f"));
    let talk = String::from_utf8_lossy(&done.stdout).into_owned();
    assert!(talk.contains("failed 32 times in a row, at last with 75. Power off"), "{talk}");
}

#[test]
fn an_agent_that_worked_for_an_hour_begins_to_count_anew() {
    let machine = Machine::new();
    machine.write("works", "3600\n");
    let done = machine.run(&format!("{}0\n", "137\n".repeat(40)));
    assert!(done.status.success(), "{done:?}");
    assert_eq!(machine.count("agent run"), 41);
    assert_eq!(machine.count("sleep 300"), 0);
}

#[test]
fn an_agent_of_other_bytes_never_runs() {
    let mut machine = Machine::new();
    machine.parameters.insert("AgentSha256".into(), sha256("something else"));
    for machine in [machine, {
        let mut machine = Machine::new().with_systemd();
        machine.parameters.insert("AgentSha256".into(), sha256("something else"));
        machine
    }] {
        let done = machine.run("0\n");
        assert_eq!(done.status.code(), Some(1), "{done:?}");
        let talk = String::from_utf8_lossy(&done.stdout).into_owned();
        assert!(talk.contains("is not what was deployed"), "{talk}");
        assert_eq!(machine.count("agent"), 0);
        assert_eq!(machine.count("systemctl start"), 0);
        assert_eq!(machine.calls().last().map(String::as_str), Some(FAILURE));
        let left = fs::read_dir(machine.path("opt/cleanroom/bin")).expect("a folder");
        assert_eq!(left.count(), 0, "nothing of it is kept");
    }
}

#[test]
fn an_agent_that_is_not_there_fails_the_stack() {
    let machine = Machine::new();
    fs::remove_file(machine.path(&format!("bucket/{}", machine.parameters["AgentKey"])))
        .expect("removed");
    let done = machine.run("0\n");
    assert_eq!(done.status.code(), Some(1), "{done:?}");
    assert_eq!(machine.count("aws s3api"), 30, "it is asked for again: credentials may come late");
    assert_eq!(machine.calls().last().map(String::as_str), Some(FAILURE));
}

#[test]
fn tools_are_for_people_and_hold_nothing_up() {
    let tools = |machine: &mut Machine, sha256: String| {
        machine.parameters.insert("ToolsKey".into(), "tools/tools.tar.gz".into());
        machine.parameters.insert("ToolsSha256".into(), sha256);
        let made = machine.path("made");
        fs::create_dir_all(made.join("bin")).expect("a folder");
        fs::write(made.join("bin/fls"), "fls").expect("write");
        fs::create_dir_all(machine.path("bucket/tools")).expect("a folder");
        let archive = machine.path("bucket/tools/tools.tar.gz");
        let mut tar = tools::command("tar").expect("tar");
        let packed = tar.arg("-czf").arg(&archive).arg("-C").arg(made).arg("bin").status();
        assert!(packed.expect("start tar").success());
        archive
    };
    let mut machine = Machine::new();
    let archive = tools(&mut machine, String::new());
    let digest = Sha256::digest(fs::read(archive).expect("read"));
    let digest = digest.iter().map(|byte| format!("{byte:02x}")).collect();
    machine.parameters.insert("ToolsSha256".into(), digest);
    assert!(machine.run("0\n").status.success(), "{:#?}", machine.calls());
    assert_eq!(machine.read("opt/cleanroom/tools/bin/fls"), "fls");

    let mut machine = Machine::new();
    tools(&mut machine, sha256("something else"));
    assert!(machine.run("0\n").status.success(), "{:#?}", machine.calls());
    assert_eq!(machine.count("agent run"), 1);
    assert_eq!(machine.read("opt/cleanroom/tools/bin/fls"), "");
}

#[test]
fn a_room_on_a_disk_that_can_not_be_told_apart_is_refused() {
    let machine = Machine::new().with_systemd();
    machine.write("sys/devices/nvme0/serial", "vol0\" RUN+=\"x\n");
    let done = machine.run("0\n");
    assert_eq!(done.status.code(), Some(1), "{done:?}");
    assert_eq!(machine.calls(), [FAILURE]);

    // In memory there is no disk to tell apart.
    let machine = Machine::new();
    machine.write("proc/self/mountinfo", "1 1 0:2 / / rw - rootfs rootfs rw\n");
    assert!(machine.run("0\n").status.success());
    assert_eq!(machine.count("agent run"), 1);
}

#[test]
fn it_is_safe_before_it_fetches_anything() {
    let machine = Machine::new().with_systemd();
    let done = machine.run("");
    assert!(done.status.success(), "{done:?}");
    let (mask, reload) =
        (machine.position("systemctl mask"), machine.position("udevadm control --reload"));
    let (fetch, start) =
        (machine.position("aws s3api get-object"), machine.position("systemctl start"));
    assert!(mask < fetch && reload < fetch && fetch < start, "{:#?}", machine.calls());
    let masked = &machine.calls()[mask];
    for unit in [
        "lvm2-monitor.service",
        "mdmonitor.service",
        "multipathd.socket",
        "udisks2.service",
        "swap.target",
        "reboot.target",
    ] {
        assert!(masked.contains(unit), "{masked}");
    }
    assert!(machine.calls()[start].ends_with("--no-block cleanroom.service"));
    assert_eq!(machine.count("agent"), 0, "the unit runs it");

    // What is masked in /etc comes before the distribution's own file of the same name.
    for rule in ["64-md-raid-assembly", "69-dm-lvm", "64-btrfs", "62-multipath"] {
        let file = machine.path(&format!("etc/udev/rules.d/{rule}.rules"));
        assert_eq!(fs::metadata(&file).expect("a rule").len(), 0, "{rule}");
    }
    let rules = machine.read("etc/udev/rules.d/00-cleanroom.rules");
    let expected = "ATTRS{serial}==\"vol0aaaaaaaaaaaaaaa0\", GOTO=\"cleanroom_end\"\n\
                    PROGRAM==\"/usr/sbin/blockdev --setro $devnode\"\n";
    assert!(rules.contains(expected), "{rules}");
    for line in rules.lines() {
        assert!(line.matches('"').count() % 2 == 0, "{line}");
    }
    assert!(rules.contains("ENV{UDEV_DISABLE_PERSISTENT_STORAGE_RULES_FLAG}=\"1\""), "{rules}");
    assert!(rules.contains("ENV{SYSTEMD_READY}=\"0\""), "{rules}");
    assert_eq!(machine.read("etc/udev/rules.d/99-zz-cleanroom.rules"), rules);
    assert!(machine.read("etc/lvm/lvmlocal.conf").contains("auto_activation_volume_list = []"));
    assert_eq!(machine.read("etc/mdadm.conf"), "AUTO -all\n");

    // Gone with a restart, and never enabled.
    let unit = machine.read("run/systemd/system/cleanroom.service");
    for line in [
        "ExecStart=/bin/sh /opt/cleanroom/bin/room",
        "RestartPreventExitStatus=0",
        "StartLimitAction=poweroff",
        "OOMPolicy=continue",
    ] {
        assert!(unit.lines().any(|one| one == line), "{line}: {unit}");
    }
    assert_eq!(machine.count("systemctl enable"), 0);
    assert_eq!(machine.read("opt/cleanroom/bin/cleanroom-agent"), AGENT);
}
