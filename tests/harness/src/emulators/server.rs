//! The processes of the emulators: started, watched until they answer, ended.
//!
//! A server is started by `serve.py`, which listens on a port of the kernel's choice before it
//! tells us, so that nobody can take it in between. It reads its standard input, whose other end
//! only this process holds: when this process ends, in whatever way, the input ends, and the
//! server kills itself. (A death signal for the parent would be sent when the *thread* that
//! started the server ends, and tests share servers over threads.)

use std::{
    env,
    fs::{self, File},
    io::{BufRead, BufReader},
    os::unix::process::CommandExt,
    path::Path,
    process::{Child, Command, Stdio},
    sync::mpsc,
    thread,
    time::Duration,
};

use anyhow::{Context, Result, ensure};
use nix::{
    sys::signal::{Signal, killpg},
    unistd::Pid,
};
use serde::Deserialize;
use serde_json::Value;
use tempfile::TempDir;

use super::{ACCESS_KEY, REGION, SECRET_KEY, http, venv};

/// How long a server may take until it listens. A busy machine loads Python slowly.
const PATIENCE: Duration = Duration::from_secs(120);

/// How much of its output an error quotes, in bytes.
const QUOTE: usize = 3_000;

/// A running emulator; ended when dropped.
#[derive(Debug)]
pub(super) struct Server {
    name: &'static str,
    child: Child,
    port: u16,
    /// The server's folder for temporary files, with its output in `log`.
    scratch: TempDir,
}

/// What `serve.py` says first.
#[derive(Deserialize)]
struct Announcement {
    port: u16,
}

impl Server {
    /// Starts an emulator and waits until `health` answers with 200.
    ///
    /// # Errors
    /// Where the environment can not be made or the server does not come up: then with the end of
    /// what it printed.
    pub(super) fn start(name: &'static str, arguments: &[&str], health: &str) -> Result<Self> {
        let python = venv::python()?;
        let scratch = tempfile::tempdir().context("create a temporary folder")?;
        let mut command = Command::new(&python);
        isolate(&mut command, scratch.path());
        command.arg("-B").arg(venv::scripts().join("serve.py")).arg(name).args(arguments);
        let log = File::create(scratch.path().join("log")).context("create a log file")?;
        command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(log).process_group(0);
        let child = command.spawn().with_context(|| format!("start {name}"))?;
        let mut server = Self { name, child, port: 0, scratch };
        server.port = server.announced().with_context(|| server.quoted("came not up"))?;
        let (status, _) =
            server.request("GET", health, "").with_context(|| server.quoted("is not answering"))?;
        ensure!(status == 200, server.quoted(&format!("answers {health} with {status}")));
        Ok(server)
    }

    /// The port that the process says it listens on.
    fn announced(&mut self) -> Result<u16> {
        let output = self.child.stdout.take().context("no output")?;
        let (sender, receiver) = mpsc::channel();
        // Ends with the first line, or with the process, which is killed when this fails.
        thread::spawn(move || {
            let mut line = String::new();
            let read = BufReader::new(output).read_line(&mut line).map(|_| line);
            let _ = sender.send(read);
        });
        let line = receiver
            .recv_timeout(PATIENCE)
            .with_context(|| format!("no port within {PATIENCE:?}"))?
            .context("read the port")?;
        let said: Announcement =
            serde_json::from_str(&line).with_context(|| format!("no port in {line:?}"))?;
        Ok(said.port)
    }

    /// The address for clients.
    pub(super) fn url(&self) -> String {
        format!("http://127.0.0.1:{}", self.port)
    }

    /// Sends a request to the server's control address.
    pub(super) fn request(&self, method: &str, path: &str, body: &str) -> Result<(u16, String)> {
        http::request(self.port, method, path, body)
    }

    /// Sends a request that must be answered with 200.
    pub(super) fn control(&self, method: &str, path: &str, body: &str) -> Result<String> {
        let (status, answer) = self.request(method, path, body)?;
        ensure!(status == 200, self.quoted(&format!("answers {path} with {status}: {answer}")));
        Ok(answer)
    }

    /// Everything that the server printed: for most, a line a request.
    pub(super) fn log(&self) -> String {
        let bytes = fs::read(self.scratch.path().join("log")).unwrap_or_default();
        String::from_utf8_lossy(&bytes).into_owned()
    }

    /// What it has counted so far: see `counting.py`.
    fn counts(&self) -> Result<Value> {
        let told = self.control("GET", "/_calls", "")?;
        serde_json::from_str(&told).context("read what was counted")
    }

    /// The process id.
    pub(super) fn pid(&self) -> u32 {
        self.child.id()
    }

    /// The port.
    #[cfg(test)]
    pub(super) fn port(&self) -> u16 {
        self.port
    }

    /// A sentence about the server, with the end of its output.
    fn quoted(&self, what: &str) -> String {
        let log = self.log();
        let tail = log.get(log.floor_char_boundary(log.len().saturating_sub(QUOTE))..);
        format!("{} {what}; it printed:\n{}", self.name, tail.unwrap_or_default().trim())
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        // Its own group, with the functions that MiniStack runs. The id is ours until `wait`.
        if let Ok(pid) = i32::try_from(self.child.id()) {
            let _ = killpg(Pid::from_raw(pid), Signal::SIGKILL);
        }
        let _ = self.child.wait();
    }
}

/// Gives a command nothing of this machine but the path: no credentials, no proxies, no settings.
pub(super) fn isolate(command: &mut Command, temporary: &Path) {
    command.env_clear().env("PATH", env::var_os("PATH").unwrap_or_default());
    command.env("HOME", temporary).env("TMPDIR", temporary);
    command.env("LC_ALL", "C.UTF-8").env("TZ", "UTC").env("NO_PROXY", "127.0.0.1");
    command.env("AWS_ACCESS_KEY_ID", ACCESS_KEY).env("AWS_SECRET_ACCESS_KEY", SECRET_KEY);
    command.env("AWS_DEFAULT_REGION", REGION).env("AWS_EC2_METADATA_DISABLED", "true");
}

/// moto: EC2 and what surrounds it, in depth; with the corrections in `corrections.py`.
#[derive(Debug)]
pub struct Moto(pub(super) Server);

impl Moto {
    /// Starts an empty account, 123456789012, with the default VPC in every region.
    ///
    /// # Errors
    /// Where the environment can not be made or the server does not come up.
    pub fn start() -> Result<Self> {
        Ok(Self(Server::start("moto", &[], "/moto-api/data.json")?))
    }

    /// The endpoint for every service.
    #[must_use]
    pub fn url(&self) -> String {
        self.0.url()
    }

    /// Makes the account empty again.
    ///
    /// # Errors
    /// Where the server does not answer.
    pub fn reset(&self) -> Result<()> {
        self.0.control("POST", "/moto-api/reset", "").map(drop)
    }

    /// What it printed: a line for every request, with tracebacks of what moto has not got.
    #[must_use]
    pub fn log(&self) -> String {
        self.0.log()
    }

    /// What it has counted so far: see `counting.py`.
    ///
    /// # Errors
    /// Where the server does not answer.
    pub fn counts(&self) -> Result<Value> {
        self.0.counts()
    }

    /// The server's process id.
    #[must_use]
    pub fn pid(&self) -> u32 {
        self.0.pid()
    }
}

/// MiniStack: Lambda, Step Functions, EventBridge.
#[derive(Debug)]
pub struct MiniStack(pub(super) Server);

impl MiniStack {
    /// Starts an empty account, 123456789012.
    ///
    /// # Errors
    /// Where the environment can not be made or the server does not come up.
    pub fn start() -> Result<Self> {
        Ok(Self(Server::start("ministack", &[], "/_ministack/health")?))
    }

    /// The same, where state machines wait, and wait between tries, for this part of the time.
    ///
    /// # Errors
    /// As [`MiniStack::start`].
    pub fn hurried(waits: f64) -> Result<Self> {
        let arguments = ["--waits", &waits.to_string()];
        Ok(Self(Server::start("ministack", &arguments, "/_ministack/health")?))
    }

    /// The endpoint for every service.
    #[must_use]
    pub fn url(&self) -> String {
        self.0.url()
    }

    /// Makes the account empty again.
    ///
    /// # Errors
    /// Where the server does not answer.
    pub fn reset(&self) -> Result<()> {
        self.0.control("POST", "/_ministack/reset", "").map(drop)
    }

    /// What it printed.
    #[must_use]
    pub fn log(&self) -> String {
        self.0.log()
    }

    /// What it has counted so far: see `counting.py`.
    ///
    /// # Errors
    /// Where the server does not answer.
    pub fn counts(&self) -> Result<Value> {
        self.0.counts()
    }

    /// The server's process id.
    #[must_use]
    pub fn pid(&self) -> u32 {
        self.0.pid()
    }
}

/// What has one address and leads requests to two emulators: Step Functions, SNS and SQS to MiniStack, all others to moto.
#[derive(Debug)]
pub struct Router(Server);

impl Router {
    /// Starts it before these two.
    ///
    /// # Errors
    /// Where the environment can not be made or it does not come up.
    pub fn start(moto: &str, ministack: &str) -> Result<Self> {
        let arguments = ["--upstream", moto, "--ministack", ministack];
        Ok(Self(Server::start("router", &arguments, "/_router/health")?))
    }

    /// The endpoint for clients.
    #[must_use]
    pub fn url(&self) -> String {
        self.0.url()
    }
}
