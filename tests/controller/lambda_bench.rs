//! `cargo bench-lambda [PROGRAM]`: how long `cleanroom-lambda` takes from its start until it first asks Lambda for something
//! to do, how much memory it has at most, and how large it is to deploy.
//!
//! Builds the program as it is shipped, unless one is named, starts it so many times on this machine, and judges by the numbers that the design asks for: the
//! process ends with 1 where one is not met. Reaches no AWS: the memory is that after an invocation whose calls are refused.

#[path = "runtime_api.rs"]
mod runtime_api;

use std::{
    fs,
    io::Write as _,
    path::{Path, PathBuf},
    process::{Child, Command, ExitCode, Stdio},
    time::{Duration, Instant},
};

use flate2::{Compression, write::DeflateEncoder};
use runtime_api::RuntimeApi;

type Result<T> = std::result::Result<T, Box<dyn std::error::Error>>;

/// How many times it is started.
const STARTS: usize = 41;

/// An address where nothing listens.
const CLOSED: &str = "http://127.0.0.1:1";

/// Kills its process when it is dropped.
struct Process(Child);

impl Drop for Process {
    fn drop(&mut self) {
        let _ended = self.0.kill();
        let _status = self.0.wait();
    }
}

/// The program as it is shipped, but for the C library that it is linked with.
fn build() -> Result<PathBuf> {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).parent().ok_or("the workspace is gone")?;
    let cargo = std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into());
    let (name, profile) = ("cleanroom-lambda", "lambda");
    let arguments =
        ["build", "--profile", profile, "--package", "cleanroom-controller", "--bin", name];
    let built = Command::new(&cargo).current_dir(root).args(arguments).status()?;
    if !built.success() {
        return Err("the build failed".into());
    }
    let metadata = ["metadata", "--format-version", "1", "--no-deps"];
    let metadata = Command::new(&cargo).current_dir(root).args(metadata).output()?;
    let metadata: serde_json::Value = serde_json::from_slice(&metadata.stdout)?;
    let target = metadata["target_directory"].as_str().ok_or("cargo names no target folder")?;
    Ok(Path::new(target).join(profile).join(name))
}

fn start(program: &Path, api: &RuntimeApi) -> Result<(Process, Instant)> {
    let mut command = Command::new(program);
    command
        .env_clear()
        .env("AWS_LAMBDA_RUNTIME_API", api.address())
        .env("AWS_LAMBDA_FUNCTION_NAME", "cleanroom-step")
        .env("AWS_LAMBDA_FUNCTION_MEMORY_SIZE", "512")
        .env("AWS_LAMBDA_FUNCTION_VERSION", "$LATEST")
        .env("_HANDLER", "step")
        .env("AWS_ENDPOINT_URL", CLOSED)
        .env("AWS_ACCESS_KEY_ID", "AKIAIOSFODNN7EXAMPLE")
        .env("AWS_SECRET_ACCESS_KEY", "wJalrXUtnFEMI/K7MDENG/bPxRfiCYEXAMPLEKEY")
        .env("AWS_REGION", "us-east-1")
        .env("CLEANROOM_BUCKET", "evidence")
        .stdin(Stdio::null())
        .stdout(Stdio::null());
    let began = Instant::now();
    Ok((Process(command.spawn()?), began))
}

/// The most memory that a process had, in KiB (`VmHWM`, proc_pid_status(5)).
fn peak(process: &Process) -> Result<u64> {
    let status = fs::read_to_string(format!("/proc/{}/status", process.0.id()))?;
    let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:"));
    Ok(line.ok_or("no VmHWM")?.trim().trim_end_matches(" kB").parse()?)
}

fn main() -> Result<ExitCode> {
    let program = match std::env::args_os().nth(1) {
        Some(program) => PathBuf::from(program),
        None => build()?,
    };
    let mut times = Vec::with_capacity(STARTS);
    for _ in 0..STARTS {
        let api = RuntimeApi::start();
        let (_process, began) = start(&program, &api)?;
        times.push(api.first_poll().duration_since(began));
    }
    times.sort_unstable();
    let mut api = RuntimeApi::start();
    let (process, _) = start(&program, &api)?;
    let ask =
        r#"{"step": "verify", "instance": "i-0123456789abcdef0", "case": "i-0123456789abcdef0-1"}"#;
    let idle = {
        api.first_poll();
        peak(&process)?
    };
    let answer = api.invoke(ask, Duration::from_secs(100));
    if !answer.failed {
        return Err(format!("a call was to be refused, and it answered {}", answer.body).into());
    }
    let worked = peak(&process)?;
    let bytes = fs::read(&program)?;
    let mut packed = DeflateEncoder::new(Vec::new(), Compression::best());
    packed.write_all(&bytes)?;
    let packed = packed.finish()?.len();

    let mut met = true;
    let mut line = |what: &str, has: f64, most: f64, unit: &str| -> Result<()> {
        let good = has <= most;
        met &= good;
        let verdict = if good { "" } else { "  TOO MUCH" };
        Ok(writeln!(std::io::stdout(), "{what:<44} {has:>8.1} {unit} (at most {most}){verdict}")?)
    };
    #[expect(clippy::cast_precision_loss, reason = "sizes of files and processes")]
    let mib = |bytes: u64| bytes as f64 / 1_048_576.0;
    let milliseconds = |time: &Duration| time.as_secs_f64() * 1_000.0;
    line("start to first poll, median", milliseconds(&times[STARTS / 2]), 60.0, "ms")?;
    line("start to first poll, slowest", milliseconds(&times[STARTS - 1]), 60.0, "ms")?;
    line("memory before the first invocation", mib(idle * 1_024), 128.0, "MiB")?;
    line("memory after a refused invocation", mib(worked * 1_024), 128.0, "MiB")?;
    line("deflated, as in the zip", mib(packed as u64), 10.0, "MiB")?;
    Ok(if met { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}
