//! `cargo bench-response`: many instances at once, through the state machine and by the command line, in an emulated account.
//!
//! Purpose: shows that all are contained and none twice, that a thousand take as many calls each as ten, and what an instance
//! costs the programs themselves. Calls, invocations and states are counted by the emulators (`counting.py`), not by what is
//! measured; what became of the instances is read by AWS's SDK for Python (`crowd.py`). Fails where an instance is not
//! contained and preserved exactly once, or where calls for an instance grow with their number.
//!
//! Times are the emulators': processes of Python on this machine, moto once for the account and once for its bucket. No agent is in the bucket, so that no room is launched.
//! Touches the emulators and temporary folders.

mod judge;

use std::{
    collections::BTreeMap,
    env, fs,
    path::{Path, PathBuf},
    process::{Command, Stdio},
    thread,
    time::{Duration, Instant, SystemTime},
};

use anyhow::{Context, Result, bail, ensure};
use nix::sys::resource::{UsageWho, getrusage};
use serde::Deserialize;

use self::judge::{Facts, decide_growth};
use crate::{
    emulators::{ACCESS_KEY, Kind, Moto, REGION, SECRET_KEY, World, script},
    memory,
    response::{Program, ResponseStack},
};

/// What to measure.
#[derive(Clone, Debug, clap::Args)]
pub struct Options {
    /// How many instances, several times with commas between: each in an account of its own.
    #[arg(long, value_delimiter = ',', default_values_t = [10, 100, 1_000])]
    pub instances: Vec<u32>,
    /// Measure only these: machine, command.
    #[arg(long, value_delimiter = ',')]
    pub only: Vec<String>,
    /// How many the state machine begins in a minute: about what the emulators bear.
    #[arg(long, default_value_t = 40, value_parser = clap::value_parser!(u32).range(1..=600))]
    pub pace: u32,
    /// How many the command line contains at a time.
    #[arg(long, default_value_t = 50, value_parser = clap::value_parser!(u32).range(1..=200))]
    pub concurrency: u32,
    /// The folder with `cleanroom` and `cleanroom-lambda`; by default, what was built with this program.
    #[arg(long)]
    pub programs: Option<PathBuf>,
}

/// The brake is raised, and nobody is asked.
const SETTINGS: &str = "[brake]\nper_hour = 10000\nper_group = 10000\nper_vpc = 10000\n";

/// Instances that begin at once; they begin anew after as many seconds as fit the pace.
const AT_ONCE: u32 = 4;

/// How many steps run at a time: what two cores bear, where AWS's bear the stack's default of 50.
const STEPS: u32 = 16;

/// How much of a state machine's wait is waited for: see [`ResponseStack`].
const WAITS: f64 = 0.02;

/// Between two looks.
const LOOK: Duration = Duration::from_secs(2);

/// How many operations are named.
const MOST_ASKED: usize = 8;

/// An address where nothing listens, for everything but the emulators.
const NOWHERE: &str = "http://127.0.0.1:1";

/// The call by which interfaces are cut: what came last ended the last containment.
const CUT: &str = "ec2:ModifyNetworkInterfaceAttribute";

/// What an emulator has counted (`counting.py`).
#[derive(Debug, Deserialize)]
struct Counts {
    calls: BTreeMap<String, u64>,
    /// When each was asked last, in seconds since 1970.
    last: BTreeMap<String, f64>,
    invocations: BTreeMap<String, u64>,
    states: u64,
    functions: Functions,
}

impl Counts {
    fn add(&mut self, calls: BTreeMap<String, u64>) {
        for (name, n) in calls {
            *self.calls.entry(name).or_default() += n;
        }
    }
}

#[derive(Debug, Deserialize)]
struct Functions {
    processes: u64,
    cpu_seconds: f64,
    peak_kib: u64,
}

/// What so many instances took.
#[derive(Debug)]
struct Column {
    instances: u32,
    /// Until the last interface was cut, and its tracked flows dropped.
    contained: Duration,
    /// Until nothing was left to do.
    through: Duration,
    /// Calls by service and operation.
    calls: BTreeMap<String, u64>,
    /// What the programs took of the processor.
    cpu: Duration,
    /// The most memory that one process had, in MiB.
    memory: u64,
    /// The machine's load in the end, over the last minute and the last quarter of an hour.
    load: String,
    /// What only the state machine has.
    more: String,
    wrong: Vec<String>,
}

/// Runs the benchmark and prints its tables.
///
/// # Errors
/// An emulator or a program is missing, or an instance was not contained and preserved exactly once, or calls grow.
pub fn run(options: &Options) -> Result<()> {
    let own = env::current_exe().context("find this program")?;
    let beside = own.parent().context("find the programs")?.to_owned();
    let folder = options.programs.clone().unwrap_or(beside);
    println!("programs of {}; the emulators are moto and MiniStack", folder.display());
    println!(
        "no agent is in the bucket: instances are contained and preserved, and no room is launched"
    );
    let mut wrong = Vec::new();
    let wanted = |part: &str| options.only.is_empty() || options.only.iter().any(|o| o == part);
    type Door = fn(&Path, u32, &Options) -> Result<Column>;
    let doors: [(&str, &str, Door); 2] = [
        ("machine", "one message on the topic, through the state machine", by_machine),
        ("command", "cleanroom respond --file ids", by_command),
    ];
    for (name, title, door) in doors {
        if !wanted(name) {
            continue;
        }
        println!("\n{title}");
        let mut columns = Vec::new();
        for count in &options.instances {
            let column = door(&folder, *count, options)
                .with_context(|| format!("{count} instances, {name}"))?;
            column.print();
            wrong.extend(column.wrong.iter().map(|what| format!("{name}, {count}: {what}")));
            columns.push(column);
        }
        wrong.extend(grown(&columns).into_iter().map(|what| format!("{name}: {what}")));
    }
    for what in &wrong {
        println!("WRONG  {what}");
    }
    ensure!(wrong.is_empty(), "{} things are not as they must be", wrong.len());
    println!("\nall contained and preserved, none twice; calls for an instance do not grow");
    Ok(())
}

/// What grows from the fewest instances to the most.
fn grown(columns: &[Column]) -> Vec<String> {
    let each = |column: &Column| -> BTreeMap<String, f64> {
        let count = f64::from(column.instances);
        column.calls.iter().map(|(name, n)| (name.clone(), *n as f64 / count)).collect()
    };
    let few = columns.iter().min_by_key(|column| column.instances);
    let many = columns.iter().max_by_key(|column| column.instances);
    match (few, many) {
        (Some(few), Some(many)) if few.instances < many.instances => {
            decide_growth(&each(few), &each(many))
        }
        _ => Vec::new(),
    }
}

impl Column {
    fn print(&self) {
        let count = f64::from(self.instances);
        let each = |n: u64| n as f64 / count;
        let mut services = BTreeMap::<&str, u64>::new();
        for (name, n) in &self.calls {
            *services.entry(name.split(':').next().unwrap_or_default()).or_default() += n;
        }
        let mut services: Vec<_> = services.into_iter().collect();
        services.sort_by_key(|(_, n)| std::cmp::Reverse(*n));
        let services: Vec<_> =
            services.iter().map(|(name, n)| format!("{name} {:.1}", each(*n))).collect();
        println!(
            "{:>5} instances  all contained after {:.0} s, through after {:.0} s: {:.2} s each",
            self.instances,
            self.contained.as_secs_f64(),
            self.through.as_secs_f64(),
            self.through.as_secs_f64() / count,
        );
        println!(
            "      an instance  {:.1} calls: {}",
            each(self.calls.values().sum()),
            services.join(", ")
        );
        let mut operations: Vec<_> = self.calls.iter().collect();
        operations.sort_by_key(|(_, n)| std::cmp::Reverse(**n));
        let operations: Vec<_> = operations
            .iter()
            .take(MOST_ASKED)
            .map(|(name, n)| format!("{name} {:.1}", each(**n)))
            .collect();
        println!("                   most of all {}", operations.join(", "));
        println!(
            "                   {}{:.0} ms of processor; at most {} MiB a process; load {}",
            self.more,
            self.cpu.as_secs_f64() * 1_000.0 / count,
            self.memory,
            self.load
        );
    }
}

/// A fleet, and what is to be true of it in the end.
struct Fleet {
    moto: Moto,
    /// The evidence bucket's.
    store: Moto,
    world: World,
}

impl Fleet {
    fn build(count: u32) -> Result<Self> {
        let (moto, store) = (Moto::start()?, Moto::start()?);
        let world = World::build_apart(&moto, &store, Kind::Fleet(count))?;
        Ok(Self { moto, store, world })
    }

    fn counts(&self) -> Result<Counts> {
        let read = |moto: &Moto| -> Result<Counts> {
            serde_json::from_value(moto.counts()?).context("read what moto has counted")
        };
        let mut counts = read(&self.moto)?;
        counts.add(read(&self.store)?.calls);
        Ok(counts)
    }

    /// What is not as it must be.
    fn wrong(&self) -> Result<Vec<String>> {
        let folder = tempfile::tempdir().context("create a temporary folder")?;
        let file = folder.path().join("world.json");
        fs::write(&file, self.world.json().to_string()).context("write the world's ids")?;
        let arguments = [self.world.addresses(), file.display().to_string()];
        let facts = script("crowd.py", &arguments).context("read the state of the fleet")?;
        let facts: Facts = serde_json::from_value(facts).context("read what crowd.py printed")?;
        Ok(facts.wrong(&self.world.instances()))
    }
}

/// One message that names them all.
fn by_machine(programs: &Path, count: u32, options: &Options) -> Result<Column> {
    let fleet = Fleet::build(count)?;
    // Of a wait that is hurried, so much is set that the pace is right.
    let seconds = f64::from(AT_ONCE) * 60.0 / f64::from(options.pace) / WAITS;
    let (at_once, seconds) = decide_pace(seconds);
    let parameters = BTreeMap::from([
        ("StartAtOnce".to_owned(), at_once.to_string()),
        ("StartSeconds".to_owned(), seconds.to_string()),
        ("StepConcurrency".to_owned(), STEPS.to_string()),
    ]);
    let bootstrap = there(programs, "cleanroom-lambda")?;
    let program = Program { parameters, ..Program::of(bootstrap, SETTINGS.to_owned()) };
    let stack = ResponseStack::start(&program, &fleet.world)?;
    let (began, at) = (Instant::now(), now());
    stack.publish(&fleet.world.instances().join(" "))?;
    // Ten times as long as all of them take to begin, and a few minutes.
    let patience = Duration::from_secs(300 + u64::from(count) * 600 / u64::from(options.pace));
    let standings = wait(&stack, count as usize, patience)?;
    let through = began.elapsed();
    let mut counts = fleet.counts()?;
    let of_machine: Counts =
        serde_json::from_value(stack.counts()?).context("read what MiniStack has counted")?;
    let mut wrong = fleet.wrong()?;
    for (name, status) in standings.iter().filter(|(_, status)| *status != "SUCCEEDED") {
        wrong.push(format!("the execution {name} is {status}"));
    }
    if standings.len() != count as usize {
        wrong.push(format!("{} executions for {count} instances", standings.len()));
    }
    let letters = stack.dead_letters()?;
    wrong.extend(letters.iter().map(|letter| format!("a dead letter: {letter}")));
    counts.add(of_machine.calls);
    let invocations: Vec<_> = of_machine
        .invocations
        .iter()
        .map(|(name, n)| format!("{name} {:.1}", *n as f64 / f64::from(count)))
        .collect();
    Ok(Column {
        instances: count,
        contained: since(at, counts.last.get(CUT)),
        through,
        calls: counts.calls,
        cpu: Duration::from_secs_f64(of_machine.functions.cpu_seconds),
        memory: of_machine.functions.peak_kib >> 10,
        load: load(),
        more: format!(
            "invocations of {} in {} processes; {:.0} states; ",
            invocations.join(", "),
            of_machine.functions.processes,
            of_machine.states as f64 / f64::from(count)
        ),
        wrong,
    })
}

/// How many begin at once, and in how many seconds: of these the stack takes at most 120.
fn decide_pace(seconds: f64) -> (u32, u64) {
    let at_once = if seconds > 120.0 { 1 } else { AT_ONCE };
    let seconds = seconds * f64::from(at_once) / f64::from(AT_ONCE);
    #[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "1 to 120")]
    let seconds = seconds.round().clamp(1.0, 120.0) as u64;
    (at_once, seconds)
}

/// Waits until so many executions have ended.
fn wait(
    stack: &ResponseStack,
    count: usize,
    patience: Duration,
) -> Result<BTreeMap<String, String>> {
    let began = Instant::now();
    let mut told = 0;
    let what = format!("the end of {count} executions; a slower --pace may help");
    stack.wait(&what, patience, || {
        // To list a thousand is work for MiniStack: the more there are, the less often.
        pause(LOOK + LOOK.mul_f64(count as f64 / 100.0));
        let standings = stack.standings()?;
        let ended = standings.values().filter(|status| *status != "RUNNING").count();
        if ended / 50 > told {
            told = ended / 50;
            let (begun, seconds) = (standings.len(), began.elapsed().as_secs());
            eprintln!("{ended} of {count} are through after {seconds} s, {begun} begun");
        }
        Ok((ended >= count && ended == standings.len()).then_some(standings))
    })
}

/// The command line, on moto alone.
fn by_command(programs: &Path, count: u32, options: &Options) -> Result<Column> {
    let fleet = Fleet::build(count)?;
    let home = tempfile::tempdir().context("create a home folder")?;
    fs::write(home.path().join("ids"), fleet.world.instances().join("\n")).context("write ids")?;
    let out = fs::File::create(home.path().join("out")).context("create a file")?;
    let told = fs::File::create(home.path().join("told")).context("create a file")?;
    let mut command = Command::new(there(programs, "cleanroom")?);
    command.env_clear().env("PATH", env::var_os("PATH").unwrap_or_default());
    command.env("HOME", home.path()).current_dir(home.path()).stdin(Stdio::null());
    for (name, value) in [
        ("AWS_ENDPOINT_URL", fleet.world.endpoint()),
        ("AWS_ENDPOINT_URL_S3", fleet.world.store()),
        ("AWS_REGION", REGION),
        ("AWS_ACCESS_KEY_ID", ACCESS_KEY),
        ("AWS_SECRET_ACCESS_KEY", SECRET_KEY),
        ("AWS_EC2_METADATA_DISABLED", "true"),
        ("CLEANROOM_BUCKET", fleet.world.bucket()),
        ("CLEANROOM_TOPIC", fleet.world.topic()),
        ("HTTP_PROXY", NOWHERE),
        ("HTTPS_PROXY", NOWHERE),
        ("NO_PROXY", "127.0.0.1"),
    ] {
        command.env(name, value);
    }
    command.args(["respond", "--file", "ids", "--format", "jsonl", "--concurrency"]);
    command.arg(options.concurrency.to_string());
    let before = children()?;
    let (began, at) = (Instant::now(), now());
    let mut child = command.stdout(out).stderr(told).spawn().context("start cleanroom")?;
    let watch = memory::Watch::start(child.id());
    let status = child.wait().context("wait for cleanroom")?;
    let (through, memory) = (began.elapsed(), watch.peak() >> 20);
    let cpu = children()?.saturating_sub(before);
    // The emulator lacks some of what is recorded: those cases are contained, and end partial.
    if !matches!(status.code(), Some(0 | 3)) {
        let told = fs::read_to_string(home.path().join("told")).unwrap_or_default();
        bail!("cleanroom respond: {status}: {}", told.lines().last().unwrap_or_default());
    }
    let counts = fleet.counts()?;
    Ok(Column {
        instances: count,
        contained: since(at, counts.last.get(CUT)),
        through,
        calls: counts.calls,
        cpu,
        memory,
        load: load(),
        more: String::new(),
        wrong: fleet.wrong()?,
    })
}

fn there(folder: &Path, name: &str) -> Result<PathBuf> {
    let path = folder.join(name);
    ensure!(
        path.is_file(),
        "{} is not built: cargo build --workspace --all-targets",
        path.display()
    );
    Ok(path)
}

/// The processor's time of all children that were waited for.
fn children() -> Result<Duration> {
    let usage = getrusage(UsageWho::RUSAGE_CHILDREN).context("ask for the processor's time")?;
    let micros = |time: nix::sys::time::TimeVal| {
        let micros = time.tv_sec() * 1_000_000 + time.tv_usec();
        Duration::from_micros(u64::try_from(micros).unwrap_or_default())
    };
    Ok(micros(usage.user_time()) + micros(usage.system_time()))
}

/// The time, by the clock that the emulators go by.
#[expect(clippy::disallowed_methods, reason = "what other programs count is compared with it")]
fn now() -> SystemTime {
    SystemTime::now()
}

/// From a moment until a time in seconds since 1970; nothing where it never came.
fn since(at: SystemTime, last: Option<&f64>) -> Duration {
    let at = at.duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
    let last = last.and_then(|last| Duration::try_from_secs_f64(*last).ok());
    last.unwrap_or_default().saturating_sub(at)
}

/// The machine's load (proc_loadavg(5)).
fn load() -> String {
    let told = fs::read_to_string("/proc/loadavg").unwrap_or_default();
    let told: Vec<_> = told.split(' ').collect();
    format!("{}, {}", told.first().unwrap_or(&"?"), told.get(2).unwrap_or(&"?"))
}

/// Waits on the harness's own thread.
#[expect(clippy::disallowed_methods, reason = "there is no runtime here whose tasks would wait")]
fn pause(time: Duration) {
    thread::sleep(time);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_pace_is_kept_within_what_the_stack_takes() {
        for (seconds, expected) in
            [(600.0, (1, 120)), (300.0, (1, 75)), (120.0, (4, 120)), (20.0, (4, 20)), (0.1, (4, 1))]
        {
            assert_eq!(decide_pace(seconds), expected, "{seconds}");
        }
    }
}
