//! Plays Lambda's runtime API (AWS: "Using the Lambda runtime API for custom runtimes") for the real program.
//!
//! On a port of 127.0.0.1, for one process. It hands out invocations one after another, and notes when the process first
//! asks for one, which is when it counts as started.

use std::{
    io::{BufRead as _, BufReader, Read as _, Write as _},
    net::{SocketAddr, TcpListener, TcpStream},
    sync::{
        Arc, Mutex, PoisonError,
        mpsc::{Receiver, Sender, channel},
    },
    thread,
    time::{Duration, Instant, SystemTime, UNIX_EPOCH},
};

/// No answer takes so long: what does hangs.
const PATIENCE: Duration = Duration::from_secs(120);

/// What the function answered.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Answered {
    /// The request's id.
    pub(crate) request: String,
    /// Whether it is an error.
    pub(crate) failed: bool,
    /// What it said, JSON.
    pub(crate) body: String,
}

/// An invocation that waits to be fetched: its id, what it sends, and for how long it may be worked at.
type Sent = (String, String, Duration);

/// The API.
#[derive(Debug)]
pub(crate) struct RuntimeApi {
    address: SocketAddr,
    sends: Sender<Sent>,
    answers: Receiver<Answered>,
    polls: Receiver<Instant>,
    sent: u32,
}

/// What its connections share.
#[derive(Debug)]
struct Side {
    waiting: Mutex<Receiver<Sent>>,
    answers: Mutex<Sender<Answered>>,
    polls: Mutex<Sender<Instant>>,
}

impl RuntimeApi {
    pub(crate) fn start() -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").expect("a free port");
        let address = listener.local_addr().expect("an address");
        let (sends, waiting) = channel();
        let (answered, answers) = channel();
        let (polled, polls) = channel();
        let side = Arc::new(Side {
            waiting: Mutex::new(waiting),
            answers: Mutex::new(answered),
            polls: Mutex::new(polled),
        });
        thread::spawn(move || {
            for stream in listener.incoming().flatten() {
                let side = side.clone();
                // A connection ends when the program does.
                thread::spawn(move || side.serve(stream));
            }
        });
        Self { address, sends, answers, polls, sent: 0 }
    }

    /// What the program finds in `AWS_LAMBDA_RUNTIME_API`.
    pub(crate) fn address(&self) -> String {
        self.address.to_string()
    }

    /// When the program first asked for something to do.
    pub(crate) fn first_poll(&self) -> Instant {
        self.polls.recv_timeout(PATIENCE).expect("the program asks for something to do")
    }

    /// Invokes the function and waits for its answer.
    pub(crate) fn invoke(&mut self, event: &str, time: Duration) -> Answered {
        self.sent += 1;
        let request = format!("00000000-0000-4000-8000-{:012}", self.sent);
        let sent = (request.clone(), event.to_owned(), time);
        self.sends.send(sent).expect("somebody serves");
        let answer = self.answers.recv_timeout(PATIENCE).expect("the program answers");
        assert_eq!(answer.request, request, "the answer is of the invocation that was sent");
        answer
    }
}

impl Side {
    fn serve(&self, stream: TcpStream) -> Option<()> {
        let mut reader = BufReader::new(stream.try_clone().ok()?);
        loop {
            let (line, body) = request(&mut reader)?;
            let path = line.split(' ').nth(1)?.to_owned();
            let parts: Vec<_> = path.trim_start_matches('/').split('/').collect();
            match parts[..] {
                [_, "runtime", "invocation", "next"] => {
                    // Who no longer cares when it was has gone.
                    let _ = lock(&self.polls).send(Instant::now());
                    let (id, event, time) = lock(&self.waiting).recv().ok()?;
                    reply(&stream, &next(&id, &event, time))?;
                }
                [_, "runtime", "invocation", id, how @ ("response" | "error")] => {
                    let (request, failed) = (id.to_owned(), how == "error");
                    reply(&stream, "HTTP/1.1 202 Accepted\r\nContent-Length: 0\r\n\r\n")?;
                    lock(&self.answers).send(Answered { request, failed, body }).ok()?;
                }
                _ => reply(&stream, "HTTP/1.1 404 Not Found\r\nContent-Length: 0\r\n\r\n")?,
            }
        }
    }
}

fn lock<T>(mutex: &Mutex<T>) -> std::sync::MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

fn reply(mut stream: &TcpStream, text: &str) -> Option<()> {
    stream.write_all(text.as_bytes()).ok()
}

#[expect(clippy::disallowed_methods, reason = "the program compares the deadline with the clock")]
fn next(id: &str, event: &str, time: Duration) -> String {
    let now = SystemTime::now().duration_since(UNIX_EPOCH).expect("after 1970");
    format!(
        "HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nLambda-Runtime-Aws-Request-Id: {id}\r\n\
         Lambda-Runtime-Deadline-Ms: {}\r\nLambda-Runtime-Invoked-Function-Arn: \
         arn:aws:lambda:us-east-1:123456789012:function:cleanroom\r\nContent-Length: {}\r\n\r\n{event}",
        (now + time).as_millis(),
        event.len()
    )
}

/// Reads a request: its first line and its body. None where the connection has ended.
fn request(reader: &mut BufReader<TcpStream>) -> Option<(String, String)> {
    let mut line = String::new();
    let mut length = 0;
    let mut first = None;
    loop {
        line.clear();
        if reader.read_line(&mut line).ok()? == 0 {
            return None;
        }
        let text = line.trim_end();
        if text.is_empty() {
            break;
        }
        let lower = text.to_ascii_lowercase();
        if let Some(bytes) = lower.strip_prefix("content-length:") {
            length = bytes.trim().parse().ok()?;
        }
        assert!(!lower.starts_with("transfer-encoding:"), "answers are sent whole");
        first.get_or_insert_with(|| text.to_owned());
    }
    let mut body = vec![0; length];
    reader.read_exact(&mut body).ok()?;
    Some((first?, String::from_utf8_lossy(&body).into_owned()))
}
