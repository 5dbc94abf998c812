//! The alert, the response that it starts, and beside it the machine that stands for the room: what all say, as it comes.
//!
//! Publishes the message; starts `cleanroom respond --via aws`, which follows, and QEMU or the agent. Touches their temporary folders. Whoever is left when something
//! fails is killed.

use std::{
    fs::{self, File},
    io::{BufRead as _, BufReader},
    process::{Child, Command, Stdio},
    thread::{self, JoinHandle},
    time::{Duration, Instant},
};

use anyhow::{Context, Error, Result, ensure};
use serde_json::{Value, json};

use super::{Scene, announce};
use crate::{
    images::MIB,
    incident::Incident,
    response::ResponseStack,
    room::{Machine, STAND_INS, Site, Stack},
    tools::{find, is_root},
    tree,
};

/// How long a part may take under emulation on a busy machine.
const PATIENCE: Duration = Duration::from_secs(600);

/// What the room says when it has booted.
const BOOTED: &str = "the room runs its user data";

/// What its agent says first.
const RUNS: &str = concat!("cleanroom-agent ", env!("CARGO_PKG_VERSION"), " runs");

/// The line of the user data that names the order begins with this, and a space.
const ROOM_MARK: &str = "#cleanroom-room ";

/// Tells what happens, with the time since the alert.
#[derive(Clone, Copy)]
pub(super) struct Teller(Instant);

impl Teller {
    fn tell(self, who: &str, what: &str) {
        println!("{:>6.1} s  {who:<8}  {what}", self.0.elapsed().as_secs_f64());
    }
}

/// A program under way, killed when it is dropped.
struct Running {
    child: Child,
    told: JoinHandle<()>,
}

impl Running {
    /// Starts a program whose standard error is told line by line.
    fn start(
        mut command: Command,
        teller: Teller,
        who: &'static str,
        instance: &str,
    ) -> Result<Self> {
        let mut child =
            command.stderr(Stdio::piped()).spawn().with_context(|| format!("start {who}"))?;
        let said = child.stderr.take().with_context(|| format!("no output of {who}"))?;
        let instance = instance.to_owned();
        let told = thread::spawn(move || {
            let mut last = String::new();
            for line in BufReader::new(said).lines().map_while(Result::ok) {
                let what = words(&line, &instance);
                if what != last {
                    teller.tell(who, what);
                    last = what.to_owned();
                }
            }
        });
        Ok(Self { child, told })
    }

    fn has_ended(&mut self) -> Result<bool> {
        Ok(self.child.try_wait().context("ask for the end of a program")?.is_some())
    }

    /// Waits until it has ended well.
    fn finish(mut self, name: &str) -> Result<()> {
        let status = self.child.wait().with_context(|| format!("wait for {name}"))?;
        let told = std::mem::replace(&mut self.told, thread::spawn(|| ()));
        ensure!(told.join().is_ok(), "what {name} said could not be shown");
        ensure!(status.success(), "{name}: {status}");
        Ok(())
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        // Both fail harmlessly on a process that has ended and been waited for.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// A line of the controller's without what is the same in each.
fn words<'a>(line: &'a str, instance: &str) -> &'a str {
    let own = line.strip_prefix(instance).and_then(|rest| rest.strip_prefix(": "));
    let own = own.unwrap_or(line);
    let own = own.strip_prefix("clean_room waits for ").unwrap_or(own);
    let scan = own.strip_prefix("scan ").and_then(|rest| rest.split_once(": "));
    scan.map_or(own, |(_, news)| news)
}

/// Says what the response stack is here.
pub(super) fn introduce(stack: &ResponseStack) {
    println!(
        "\nThe response stack, made from cloudformation/response.yaml; its functions are cleanroom-lambda:\n"
    );
    for (what, output) in [
        ("alerts come to", "IntakeTopic"),
        ("people hear from", "NotifyTopic"),
        ("state machine", "ResponseMachine"),
    ] {
        println!("  {what:<18}{}", stack.output(output));
    }
    println!(
        "\nEC2 and the evidence bucket are moto's, functions and state machines MiniStack's. What the machine waits takes a"
    );
    println!("fiftieth of its time.");
}

/// Publishes the message, and waits until intake has started the machine. The case, and who tells the time since.
///
/// # Errors
/// Where it does not.
pub(super) fn alert(scene: &Scene<'_>) -> Result<(String, Teller)> {
    let Scene { incident, stack } = scene;
    let message = json!({
        "instance": incident.world.instance(),
        "source": "network monitor",
        "reason": "beacons to a known C2 server",
    });
    println!(
        "\n$ aws sns publish --topic-arn {} --message '{message}'",
        stack.output("IntakeTopic")
    );
    let teller = Teller(Instant::now());
    stack.publish(&message.to_string())?;
    let case = format!("{}-1", incident.world.instance());
    stack.wait("the execution of the case", PATIENCE, || stack.execution(&case))?;
    println!(
        "\nIntake has verified the instance and started execution {case}. Nobody needs to do anything; a person follows:"
    );
    Ok((case, teller))
}

/// Follows the response, as a person would.
fn follow(scene: &Scene<'_>, teller: Teller) -> Result<Running> {
    let instance = scene.incident.world.instance();
    let words = ["respond", instance, "--via", "aws"];
    announce(&words);
    println!();
    let mut command = scene.cleanroom(&words);
    command.envs(scene.stack.settings_beside());
    Running::start(command, teller, "machine", instance)
}

/// Waits for the stack of the case's room.
fn launched(site: &Site, case: &str, response: &mut Running, teller: Teller) -> Result<Stack> {
    let stack = site.launched(|| Ok(!response.has_ended()?))?;
    let made = stack.resources.len();
    teller.tell(
        "account",
        &format!("the stack cleanroom-{case} stands: {made} resources, among them a closed VPC"),
    );
    Ok(stack)
}

/// Responds, with a room that boots. The room is returned: it waits for another order.
///
/// # Errors
/// Where the room does not boot, or the response does not end in a report.
pub(super) fn booted(scene: &Scene<'_>, (case, teller): (&str, Teller)) -> Result<Machine> {
    let incident = scene.incident;
    println!(
        "\nThe room is a QEMU machine without hardware acceleration. What stands in for parts of Amazon Linux:\n"
    );
    for (part, stand_in) in STAND_INS {
        println!("  {part:<18}{stand_in}");
    }
    let mut response = follow(scene, teller)?;
    let router = scene.stack.router()?;
    let site = incident.site(case).through(&router.url());
    launched(&site, case, &mut response, teller)?;
    let mut room = site.boot(&[incident.agent().to_owned()], "")?;
    teller.tell("room", "is switched on, with its own disk and no evidence");
    room.until("the user data", PATIENCE, |room| Ok(room.console().contains(BOOTED)))?;
    let since =
        |room: &Machine| format!("{:.1} s after it was switched on", room.running().as_secs_f64());
    let booted =
        format!("has booted, {}: its user data makes it safe and fetches the agent", since(&room));
    teller.tell("room", &booted);
    room.until("the agent", PATIENCE, |room| Ok(room.console().contains(RUNS)))?;
    teller.tell("room", &format!("its agent runs, {}", since(&room)));
    // Made from another instance's root, a volume can have the label and the UUID of the room's own.
    room.copy_root(&incident.double.1)?;
    for copy in site.attach(&mut room, &[])? {
        teller.tell(
            "account",
            &format!("the room is safe: {} attaches, a copy of {}", copy.id, copy.source),
        );
    }
    room.until("the end of the response", PATIENCE, |_| response.has_ended())?;
    response.finish("cleanroom respond")?;
    Ok(room)
}

/// Responds, with the agent on this machine in the place of a room.
///
/// # Errors
/// Where the response does not end in a report.
pub(super) fn on_this_machine(
    scene: &Scene<'_>,
    (case, teller): (&str, Teller),
    why: &Error,
) -> Result<()> {
    let incident = scene.incident;
    println!("\nNo room boots here: {why:#}.");
    println!(
        "The agent examines the disks on this machine instead: no closed network, no copies, no boot."
    );
    if !is_root() {
        println!(
            "You are not root, so that no disk can be mounted: a folder stands for the instance's root."
        );
    }
    let mut response = follow(scene, teller)?;
    let stack = launched(&incident.site(case), case, &mut response, teller)?;
    let user_data = stack.instance.context("the stack has no instance")?.user_data;
    let router = scene.stack.router()?;
    let mut agent = agent(incident, &user_data)?;
    agent.env("AWS_ENDPOINT_URL", router.url());
    teller.tell("agent", "is started on this machine");
    let agent = Running::start(agent, teller, "agent", incident.world.instance())?;
    agent.finish("cleanroom-agent run")?;
    response.finish("cleanroom respond")
}

/// The agent with the order that the room would have got.
fn agent(incident: &Incident, user_data: &str) -> Result<Command> {
    let home = incident.home();
    let room = user_data.lines().find_map(|line| line.strip_prefix(ROOM_MARK));
    let room: Value = serde_json::from_str(room.context("the user data names no order")?)
        .context("read the user data")?;
    let text =
        |value: &Value| value.as_str().map(str::to_owned).context("the user data lacks a name");
    let (bucket, order) = (text(&room["bucket"])?, &room["order"]);
    let order =
        format!("s3://{bucket}/{}@sha256={}", text(&order["key"])?, text(&order["sha256"])?);

    // Namespaces of its own, as far as this user may have them; all in them ends with it.
    let mut command = match find("unshare").filter(|_| is_root()) {
        Some(unshare) => {
            let mut command = Command::new(unshare);
            command.args([
                "--mount",
                "--pid",
                "--ipc",
                "--uts",
                "--fork",
                "--kill-child",
                "--mount-proc",
            ]);
            command.arg(incident.agent());
            command
        }
        None => Command::new(incident.agent()),
    };
    command.args(["run", "--work-order", &order, "--state"]).arg(home.join("state"));
    File::create(&incident.double.1)
        .and_then(|file| file.set_len(MIB))
        .context("make an empty disk")?;
    let root = incident.world.volumes().first().copied().unwrap_or_default().to_owned();
    let folder = home.join("root-folder");
    fs::create_dir(&folder).context("create a folder")?;
    tree::planted_compromise(&folder)?;
    let disks = incident.disks.iter().map(|(volume, disk)| (volume, &disk.path));
    for (volume, path) in disks.chain([(&incident.double.0, &incident.double.1)]) {
        let path = if *volume == root && !is_root() { &folder } else { path };
        command.arg("--evidence").arg(format!("{volume}={}", path.display()));
    }
    command.env_clear().envs(incident.settings()).stdin(Stdio::null()).stdout(Stdio::null());
    command.env("HOME", home).env("TMPDIR", home).env("AWS_EC2_METADATA_DISABLED", "true");
    command.env("PATH", std::env::var_os("PATH").unwrap_or_default());
    Ok(command)
}

#[cfg(test)]
mod tests {
    use super::words;

    #[test]
    fn a_line_is_shown_without_what_is_in_every_line() {
        for (line, shown) in [
            ("i-1: contained after 1.8 s", "contained after 1.8 s"),
            ("i-1: clean_room waits for scan x: vol-1: 3 %", "vol-1: 3 %"),
            ("i-1: snapshot waits for snap-1", "snapshot waits for snap-1"),
            ("error: i-2: no such instance", "error: i-2: no such instance"),
        ] {
            assert_eq!(words(line, "i-1"), shown);
        }
    }
}
