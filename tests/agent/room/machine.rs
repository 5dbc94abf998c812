//! A machine that stands for the room: its folder, its evidence, its metadata service, and the agent on it.

use std::{
    fs,
    io::{BufRead as _, BufReader, Write as _},
    net::{TcpListener, TcpStream},
    path::{Path, PathBuf},
    process::{Child, Command, Output, Stdio},
};

use cleanroom_contract::{
    Destination, OrderedFile, OrderedVolume, ScanId, ScanLimits, Sha256, VersionOne, VolumeRole,
    WorkOrder, bundle_prefix, order_key,
};
use cleanroom_harness::{
    emulators::{ACCESS_KEY, REGION, SECRET_KEY},
    tree::planted_compromise,
};
use sha2::Digest as _;
use tempfile::TempDir;

use super::account::Account;
use crate::support::{Scan, agent};

/// The case of every order.
pub(super) const CASE: &str = "case-20260102-web";

/// The volume of every order.
pub(super) const VOLUME: &str = "vol-0123456789abcdef0";

/// An address where nothing listens.
pub(super) const CLOSED: &str = "http://127.0.0.1:1";

/// A rule that finds something in the planted compromise.
pub(super) const RULE: &str = "rule planted_shell { meta: score = 90 description = \"a planted shell\" \
                               condition: filename == \"upload.php\" }";

/// A machine, and what is on it.
#[derive(Debug)]
pub(super) struct Machine {
    folder: TempDir,
    variables: Vec<(String, String)>,
    arguments: Vec<String>,
}

impl Machine {
    /// A machine that reaches the account and nothing else, on which the planted compromise stands for the volume.
    pub(super) fn new(account: &Account) -> Self {
        let folder = tempfile::tempdir().unwrap();
        fs::create_dir(folder.path().join("tree")).unwrap();
        planted_compromise(&folder.path().join("tree")).unwrap();
        let port = account.url().strip_prefix("http://127.0.0.1:").expect("an emulator");
        assert!(port.bytes().all(|b| b.is_ascii_digit()), "{port} is no port");
        let variables = [
            ("AWS_ENDPOINT_URL", account.url()),
            ("AWS_ACCESS_KEY_ID", ACCESS_KEY),
            ("AWS_SECRET_ACCESS_KEY", SECRET_KEY),
            ("AWS_REGION", REGION),
            ("AWS_EC2_METADATA_SERVICE_ENDPOINT", CLOSED),
            ("HTTP_PROXY", CLOSED),
            ("HTTPS_PROXY", CLOSED),
            ("NO_PROXY", "127.0.0.1"),
        ];
        let variables = variables.map(|(name, value)| (name.to_owned(), value.to_owned()));
        let stand_in = format!("{VOLUME}={}", folder.path().join("tree").display());
        let arguments = ["--evidence".to_owned(), stand_in];
        Self { folder, variables: variables.to_vec(), arguments: arguments.to_vec() }
    }

    /// Its folder.
    pub(super) fn path(&self) -> &Path {
        self.folder.path()
    }

    /// Where the agent keeps its state.
    pub(super) fn state(&self) -> PathBuf {
        self.path().join("state")
    }

    /// Sets a variable for the runs to come.
    pub(super) fn set(&mut self, name: &str, value: &str) {
        self.variables.retain(|(known, _)| known != name);
        self.variables.push((name.to_owned(), value.to_owned()));
    }

    /// Takes a variable away from the runs to come.
    pub(super) fn unset(&mut self, name: &str) {
        self.variables.retain(|(known, _)| known != name);
    }

    /// Writes an order to a file; its name.
    pub(super) fn order_file(&self, order: &WorkOrder) -> String {
        let path = self.path().join(format!("{}.json", order.scan));
        fs::write(&path, serde_json::to_vec(order).unwrap()).unwrap();
        path.to_str().unwrap().to_owned()
    }

    /// The agent with these arguments, in this machine's environment.
    pub(super) fn command(&self, arguments: &[&str]) -> Command {
        let mut command = agent(&self.path().join("cache"));
        command.arg("run").arg("--state").arg(self.state());
        command.args(&self.arguments).args(arguments);
        command.envs(self.variables.iter().map(|(name, value)| (name, value)));
        command
    }

    /// Starts the agent.
    pub(super) fn start(&self, arguments: &[&str]) -> Running {
        let mut command = self.command(arguments);
        command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
        Running(Some(command.spawn().unwrap()))
    }

    /// Runs the agent, which must end with this status.
    pub(super) fn expect(&self, status: i32, arguments: &[&str]) -> Output {
        let output = self.start(arguments).finish();
        assert_eq!(output.status.code(), Some(status), "{}", said(&output));
        output
    }

    /// The bundle that was published for an order.
    pub(super) fn published(&self, account: &Account, order: &WorkOrder, output: &Output) -> Scan {
        account.bundle(&bundle_prefix(&order.case, &order.scan), self.path(), output)
    }

    /// What the agent's state says of a scan's phase; empty where nothing is said yet.
    pub(super) fn phase(&self, scan: &ScanId) -> String {
        self.told(scan)["phase"].as_str().unwrap_or_default().to_owned()
    }

    /// How many times a scan was begun.
    pub(super) fn begun(&self, scan: &ScanId) -> u64 {
        self.told(scan)["begun"].as_u64().unwrap_or_default()
    }

    /// What the agent's state says of a scan; nothing where none is there yet.
    fn told(&self, scan: &ScanId) -> serde_json::Value {
        let state = fs::read(self.state().join(scan.as_str()).join("state.json"));
        state.ok().and_then(|bytes| serde_json::from_slice(&bytes).ok()).unwrap_or_default()
    }

    /// A script in a mount namespace of its own, which runs the agent with these arguments as `"$@"`, and has `$state` and
    /// `$log`, a folder. What it left in `$log`.
    pub(super) fn script(&self, script: &str, arguments: &[&str]) -> PathBuf {
        let log = tempfile::Builder::new().prefix("log-").tempdir_in(self.path()).unwrap().keep();
        let agent = self.command(arguments);
        let mut shell = Command::new("unshare");
        shell.args(["--mount", "--propagation", "private", "sh", "-uc", script, "sh"]);
        shell.arg(agent.get_program()).args(agent.get_args());
        shell.envs(agent.get_envs().filter_map(|(name, value)| Some((name, value?))));
        shell.env("state", self.state()).env("log", &log);
        let output = shell.output().unwrap();
        assert_eq!(output.status.code(), Some(0), "{}", said(&output));
        log
    }
}

/// What a run said.
pub(super) fn said(output: &Output) -> String {
    String::from_utf8_lossy(&output.stderr).into_owned()
}

/// A run under way; killed when it is dropped.
#[derive(Debug)]
pub(super) struct Running(Option<Child>);

impl Running {
    /// Its process.
    pub(super) fn id(&self) -> u32 {
        self.0.as_ref().expect("it was not finished").id()
    }

    /// Whether it has ended.
    pub(super) fn has_ended(&mut self) -> bool {
        self.0.as_mut().expect("it was not finished").try_wait().unwrap().is_some()
    }

    /// Sends a signal.
    pub(super) fn signal(&self, signal: nix::sys::signal::Signal) {
        let id = i32::try_from(self.id()).unwrap();
        // It is not waited for yet, so its id is still its own.
        let _ended = nix::sys::signal::kill(nix::unistd::Pid::from_raw(id), signal);
    }

    /// Waits for its end.
    pub(super) fn finish(mut self) -> Output {
        let output = self.0.take().expect("it was not finished").wait_with_output().unwrap();
        assert!(!said(&output).contains("panicked"), "{}", said(&output));
        output
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        if let Some(mut child) = self.0.take() {
            let _ended = child.kill();
            let _status = child.wait();
        }
    }
}

/// An order for the one volume, without rules, that publishes in the account.
pub(super) fn order(account: &Account, scan: &str) -> WorkOrder {
    WorkOrder {
        v: VersionOne,
        case: CASE.parse().unwrap(),
        instance: "i-0123456789abcdef0".parse().unwrap(),
        room: 1,
        scan: scan.parse().unwrap(),
        volumes: vec![volume(VOLUME, "snap-0123456789abcdef0")],
        rules: Vec::new(),
        indicators: Vec::new(),
        limits: ScanLimits { attach_seconds: 0, threads: Some(1), ..ScanLimits::default() },
        publish: Destination { bucket: account.bucket.clone(), topic: Some(account.topic.clone()) },
        task_token: None,
    }
}

/// A volume of an order.
pub(super) fn volume(source: &str, snapshot: &str) -> OrderedVolume {
    OrderedVolume {
        source: source.parse().unwrap(),
        snapshot: snapshot.parse().unwrap(),
        volume: None,
        gib: 8,
        role: VolumeRole::Root,
        device: "/dev/xvda".to_owned(),
    }
}

/// SHA-256 of bytes.
pub(super) fn digest(bytes: &[u8]) -> Sha256 {
    Sha256(sha2::Sha256::digest(bytes).into())
}

/// Puts a file where an order can name it.
pub(super) fn ordered_file(account: &Account, name: &str, bytes: &[u8]) -> OrderedFile {
    let key = format!("rules/{name}");
    account.put(&key, bytes);
    OrderedFile { name: name.to_owned(), key, sha256: digest(bytes) }
}

/// Puts an order into the bucket; its place there.
pub(super) fn put_order(account: &Account, order: &WorkOrder) -> (String, Sha256) {
    let bytes = serde_json::to_vec(order).unwrap();
    let key = order_key(&order.case, order.room, &order.scan);
    account.put(&key, &bytes);
    (key, digest(&bytes))
}

/// A metadata service that asks for a token and knows two things (EC2 user guide, "Use IMDSv2"). Its address.
pub(super) fn metadata(user_data: String) -> String {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = format!("http://{}", listener.local_addr().unwrap());
    // Ends with this process.
    std::thread::spawn(move || {
        for stream in listener.incoming().flatten() {
            answer(stream, &user_data);
        }
    });
    address
}

fn answer(mut stream: TcpStream, user_data: &str) {
    let mut lines = BufReader::new(stream.try_clone().unwrap()).lines().map_while(Result::ok);
    let first = lines.next().unwrap_or_default();
    let head: Vec<_> = lines.take_while(|line| !line.is_empty()).collect();
    let has_token =
        head.iter().any(|line| line.eq_ignore_ascii_case("x-aws-ec2-metadata-token: t0ken"));
    let words: Vec<_> = first.split(' ').collect();
    let (status, body) = match words.as_slice() {
        ["PUT", "/latest/api/token", ..] => ("200 OK", "t0ken"),
        _ if !has_token => ("401 Unauthorized", ""),
        ["GET", "/latest/user-data", ..] => ("200 OK", user_data),
        ["GET", "/latest/meta-data/instance-id", ..] => ("200 OK", "i-0aaaaaaaaaaaaaaaa"),
        _ => ("404 Not Found", ""),
    };
    let _gone = write!(
        stream,
        "HTTP/1.1 {status}\r\nx-aws-ec2-metadata-token-ttl-seconds: 21600\r\nConnection: close\r\n\
         Content-Length: {}\r\n\r\n{body}",
        body.len()
    );
}
