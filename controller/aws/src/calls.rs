//! The gate that every call to AWS goes through.
//!
//! Purpose: one interceptor, in every client, that
//! 1. lets nothing out that the [table of permissions](crate::permissions) does not name,
//! 2. writes one line for each attempt to the call log, where one is wanted,
//! 3. keeps the answer's bytes for whoever asked for them with [`capture`],
//! 4. remembers the service's clock, and
//! 5. puts `cleanroom/<version>` into the user agent, by which CloudTrail shows whose call it was.
//!
//! Touches the call log's file. Never changes what is asked, and never fails a declared call: a log that can not be
//! written is no reason to leave an instance uncontained.

use std::{
    cell::RefCell,
    fmt,
    fs::{File, OpenOptions},
    io::{self, Write},
    path::Path,
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicI64, Ordering},
    },
    time::{Instant, SystemTime, UNIX_EPOCH},
};

use aws_smithy_runtime_api::{
    box_error::BoxError,
    client::{
        interceptors::{
            Intercept,
            context::{
                AfterDeserializationInterceptorContextRef,
                BeforeDeserializationInterceptorContextRef,
                BeforeSerializationInterceptorContextRef, BeforeTransmitInterceptorContextMut,
                BeforeTransmitInterceptorContextRef, FinalizerInterceptorContextRef,
            },
        },
        orchestrator::Metadata,
        retries::RequestAttempts,
        runtime_components::RuntimeComponents,
    },
};
use aws_smithy_types::{
    DateTime,
    config_bag::{ConfigBag, Storable, StoreReplace},
    date_time::Format,
};
use aws_types::request_id::RequestId;
use cleanroom_contract::Timestamp;
use serde_json::json;

use crate::permissions;

/// How this program names itself to AWS.
const PRODUCT: &str = concat!("cleanroom/", env!("CARGO_PKG_VERSION"));

/// Where no answer has said what time it is.
const UNKNOWN: i64 = i64::MIN;

/// A call that the table of permissions does not name: a defect of this crate, caught before anything is sent.
#[derive(Debug, thiserror::Error)]
#[error("{0} is not in the table of permissions")]
pub(crate) struct Undeclared(String);

/// An answer as the service sent it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Captured {
    /// The operation that gave it, `ec2:DescribeInstances`.
    pub(crate) operation: String,
    /// The request's id.
    pub(crate) request: Option<String>,
    /// The body's bytes.
    pub(crate) bytes: Vec<u8>,
    /// The body's media type, `text/xml;charset=UTF-8`.
    pub(crate) content_type: Option<String>,
}

tokio::task_local! {
    /// Answers of the calls that this task makes within [`capture`].
    static CAPTURED: RefCell<Vec<Captured>>;
}

/// Runs `future` and keeps every answer that its calls get, in order. A call that it spawns as another task is not
/// seen, nor one that fails, nor a streamed body.
pub(crate) async fn capture<F: Future>(future: F) -> (F::Output, Vec<Captured>) {
    CAPTURED
        .scope(RefCell::default(), async {
            let output = future.await;
            let captured = CAPTURED.with(|slot| std::mem::take(&mut *slot.borrow_mut()));
            (output, captured)
        })
        .await
}

/// The interceptor, and what it learned.
#[derive(Clone)]
pub(crate) struct Calls(Arc<Shared>);

struct Shared {
    /// The only operations that go out, where not all of the table do.
    only: Option<&'static [&'static str]>,
    log: Option<Mutex<File>>,
    clock_ahead: AtomicI64,
}

impl fmt::Debug for Calls {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Calls").field("logs", &self.0.log.is_some()).finish()
    }
}

/// When an attempt began.
#[derive(Debug)]
struct Began(Instant);

impl Storable for Began {
    type Storer = StoreReplace<Self>;
}

impl Calls {
    /// An interceptor that appends to the log at `path`, where one is given, and lets only these operations of the table
    /// out, where some are named.
    ///
    /// # Errors
    /// The log can not be opened.
    pub(crate) fn limited(
        path: Option<&Path>,
        only: Option<&'static [&'static str]>,
    ) -> io::Result<Self> {
        let log = path
            .map(|path| OpenOptions::new().create(true).append(true).open(path).map(Mutex::new))
            .transpose()?;
        Ok(Self(Arc::new(Shared { only, log, clock_ahead: AtomicI64::new(UNKNOWN) })))
    }

    /// How far this machine's clock is ahead of the service's, in seconds, by the newest answer.
    pub(crate) fn clock_ahead(&self) -> Option<i64> {
        Some(self.0.clock_ahead.load(Ordering::Relaxed)).filter(|seconds| *seconds != UNKNOWN)
    }

    /// Appends one line. Several processes may share the log, so a line is one write.
    fn log(&self, line: &serde_json::Value) {
        let Some(log) = &self.0.log else { return };
        let mut bytes = line.to_string().into_bytes();
        bytes.push(b'\n');
        let mut file = log.lock().unwrap_or_else(PoisonError::into_inner);
        // Nobody could act on a diagnostic that is lost, and the call was made all the same.
        let _lost = file.write_all(&bytes);
    }
}

/// A call's name in the form of the table, `ec2:DescribeInstances`.
fn name_of(cfg: &ConfigBag) -> String {
    cfg.load::<Metadata>().map_or_else(
        || "unknown".to_owned(),
        |call| match permissions::prefix(call.service()) {
            Some(prefix) => format!("{prefix}:{}", call.name()),
            None => format!("{}:{}", call.service(), call.name()),
        },
    )
}

/// A point in time as the contract writes it.
fn timestamp(time: SystemTime) -> Timestamp {
    let since = time.duration_since(UNIX_EPOCH).unwrap_or_default();
    let seconds = i64::try_from(since.as_secs()).unwrap_or(i64::MAX);
    Timestamp { seconds, nanos: since.subsec_nanos() }
}

/// This machine's time by the SDK's own source of it.
fn now(components: &RuntimeComponents) -> Option<SystemTime> {
    components.time_source().map(|source| source.now())
}

impl Intercept for Calls {
    fn name(&self) -> &'static str {
        "Cleanroom"
    }

    fn read_before_serialization(
        &self,
        _: &BeforeSerializationInterceptorContextRef<'_>,
        _: &RuntimeComponents,
        cfg: &mut ConfigBag,
    ) -> Result<(), BoxError> {
        let name = name_of(cfg);
        let here = self.0.only.is_none_or(|only| only.contains(&name.as_str()));
        match permissions::operation(&name) {
            Some(_) if here => Ok(()),
            _ => Err(Undeclared(name).into()),
        }
    }

    fn read_before_attempt(
        &self,
        _: &BeforeTransmitInterceptorContextRef<'_>,
        _: &RuntimeComponents,
        cfg: &mut ConfigBag,
    ) -> Result<(), BoxError> {
        cfg.interceptor_state().store_put(Began(Instant::now()));
        Ok(())
    }

    fn modify_before_signing(
        &self,
        context: &mut BeforeTransmitInterceptorContextMut<'_>,
        _: &RuntimeComponents,
        _: &mut ConfigBag,
    ) -> Result<(), BoxError> {
        // The SDK sends the same text under two names, and which one CloudTrail shows is up to the service.
        let headers = context.request_mut().headers_mut();
        for header in ["user-agent", "x-amz-user-agent"] {
            let agent = match headers.get(header) {
                Some(sdk) => format!("{PRODUCT} {sdk}"),
                None => PRODUCT.to_owned(),
            };
            headers.insert(header, agent);
        }
        Ok(())
    }

    fn read_before_deserialization(
        &self,
        context: &BeforeDeserializationInterceptorContextRef<'_>,
        components: &RuntimeComponents,
        _: &mut ConfigBag,
    ) -> Result<(), BoxError> {
        let date = context.response().headers().get("date");
        let theirs = date.and_then(|text| DateTime::from_str(text, Format::HttpDate).ok());
        if let (Some(theirs), Some(ours)) = (theirs, now(components)) {
            let ahead = timestamp(ours).seconds.saturating_sub(theirs.secs());
            self.0.clock_ahead.store(ahead, Ordering::Relaxed);
        }
        Ok(())
    }

    fn read_after_deserialization(
        &self,
        context: &AfterDeserializationInterceptorContextRef<'_>,
        _: &RuntimeComponents,
        cfg: &mut ConfigBag,
    ) -> Result<(), BoxError> {
        let response = context.response();
        let (Ok(_), Some(bytes)) = (context.output_or_error(), response.body().bytes()) else {
            return Ok(());
        };
        let _outside = CAPTURED.try_with(|slot| {
            slot.borrow_mut().push(Captured {
                operation: name_of(cfg),
                request: response.request_id().map(str::to_owned),
                bytes: bytes.to_vec(),
                content_type: response.headers().get("content-type").map(str::to_owned),
            });
        });
        Ok(())
    }

    fn read_after_attempt(
        &self,
        context: &FinalizerInterceptorContextRef<'_>,
        components: &RuntimeComponents,
        cfg: &mut ConfigBag,
    ) -> Result<(), BoxError> {
        if self.0.log.is_none() {
            return Ok(());
        }
        let name = name_of(cfg);
        let (service, operation) = name.split_once(':').unwrap_or(("", &name));
        let response = context.response();
        let error = match context.output_or_error() {
            Some(Err(error)) if error.is_timeout_error() => Some("timed out"),
            Some(Err(error)) if error.is_connector_error() => Some("no answer"),
            Some(Err(error)) if error.is_operation_error() => Some("refused"),
            Some(Err(_)) => Some("other"),
            _ => None,
        };
        self.log(&json!({
            "time": now(components).map(|time| timestamp(time).to_string()),
            "service": service,
            "operation": operation,
            "attempt": cfg.load::<RequestAttempts>().map(RequestAttempts::attempts),
            "status": response.map(|response| response.status().as_u16()),
            "request": response.and_then(RequestId::request_id),
            "error": error,
            "ms": cfg.load::<Began>().map(|began| began.0.elapsed().as_secs_f64() * 1000.0),
        }));
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use std::{
        io::{BufRead, BufReader, Read},
        net::{TcpListener, TcpStream},
        thread::{self, JoinHandle},
    };

    use serde_json::Value;

    use super::*;
    use crate::{
        clients::tests::{clients, clients_with},
        error::fail,
    };

    const REGIONS: &str = "<DescribeRegionsResponse><requestId>r</requestId><regionInfo><item>\
        <regionName>eu-west-1</regionName></item></regionInfo></DescribeRegionsResponse>";

    /// A service that gives each request the next answer, status and body, and then the requests' heads.
    fn service(answers: Vec<(u16, &'static str)>) -> (String, JoinHandle<Vec<String>>) {
        let listener = TcpListener::bind("127.0.0.1:0").expect("a free port");
        let address = listener.local_addr().expect("its address");
        let served = thread::spawn(move || {
            answers.into_iter().map(|answer| serve(&listener, answer)).collect()
        });
        (format!("http://{address}"), served)
    }

    /// Answers one request, and gives its head.
    fn serve(listener: &TcpListener, (status, body): (u16, &str)) -> String {
        let (stream, _) = listener.accept().expect("a connection");
        let mut reader = BufReader::new(stream.try_clone().expect("the same connection"));
        let (mut head, mut length) = (String::new(), 0);
        loop {
            let mut line = String::new();
            reader.read_line(&mut line).expect("a line");
            if line == "\r\n" {
                break;
            }
            let lower = line.to_ascii_lowercase();
            if let Some(value) = lower.strip_prefix("content-length:") {
                length = value.trim().parse().expect("a number");
            }
            head.push_str(&lower);
        }
        reader.read_exact(&mut vec![0; length]).expect("the body");
        answer(stream, status, body);
        head
    }

    /// Writes an answer that ends the connection.
    fn answer(mut stream: TcpStream, status: u16, body: &str) {
        let head = format!(
            "HTTP/1.1 {status} status\r\ncontent-type: text/xml;charset=UTF-8\r\n\
             x-amzn-requestid: req-{status}\r\ndate: Thu, 01 Jan 2026 00:00:00 GMT\r\n\
             content-length: {}\r\nconnection: close\r\n\r\n",
            body.len()
        );
        stream.write_all(head.as_bytes()).expect("the head");
        stream.write_all(body.as_bytes()).expect("the body");
    }

    #[tokio::test]
    async fn every_attempt_is_logged_and_the_last_answer_is_captured() {
        let (endpoint, served) = service(vec![(503, ""), (200, REGIONS)]);
        let folder = tempfile::tempdir().expect("a folder");
        let path = folder.path().join("calls.jsonl");
        let clients = clients(&endpoint, Some(&path));

        assert_eq!(clients.calls.clock_ahead(), None);
        let (answer, captured) = capture(clients.ec2.describe_regions().send()).await;
        assert_eq!(answer.expect("the second answer").regions().len(), 1);

        assert_eq!(captured.len(), 1, "{captured:?}");
        assert_eq!(captured[0].operation, "ec2:DescribeRegions");
        assert_eq!(captured[0].bytes, REGIONS.as_bytes());
        assert_eq!(captured[0].request.as_deref(), Some("req-200"));
        assert_eq!(captured[0].content_type.as_deref(), Some("text/xml;charset=UTF-8"));

        let log = std::fs::read_to_string(&path).expect("the log");
        let lines: Vec<Value> =
            log.lines().map(|line| serde_json::from_str(line).expect("a line of JSON")).collect();
        assert_eq!(lines.len(), 2, "{log}");
        for (line, (attempt, status)) in lines.iter().zip([(1, 503), (2, 200)]) {
            assert_eq!(line["service"], "ec2");
            assert_eq!(line["operation"], "DescribeRegions");
            assert_eq!(line["attempt"], attempt);
            assert_eq!(line["status"], status);
            assert_eq!(line["request"], format!("req-{status}"));
            assert!(line["ms"].is_f64() && line["time"].is_string(), "{line}");
        }
        assert!(clients.calls.clock_ahead().is_some(), "a date was sent");

        for head in served.join().expect("the service") {
            let agent = head.lines().find(|line| line.starts_with("user-agent:")).expect("one");
            assert!(agent.contains(&format!(" {PRODUCT} aws-sdk-rust/")), "{agent}");
        }
    }

    #[tokio::test]
    async fn what_is_not_in_the_table_is_not_sent() {
        let (endpoint, _) = service(Vec::new());
        let clients = clients(&endpoint, None);
        let answer = clients.ec2.describe_account_attributes().send().await;
        let error = fail("ec2:DescribeAccountAttributes", "", answer.expect_err("not declared"));
        assert_eq!(error.code, "Undeclared");
        assert!(error.message.contains("ec2:DescribeAccountAttributes"), "{}", error.message);
    }

    #[tokio::test]
    async fn what_is_not_for_another_account_is_not_sent_there() {
        let (endpoint, _) = service(Vec::new());
        let calls = Calls::limited(None, Some(permissions::FORENSIC)).expect("there is no log");
        let clients = clients_with(&endpoint, calls);
        let answer = clients.ec2.describe_regions().send().await;
        let error = fail("ec2:DescribeRegions", "", answer.expect_err("not for there"));
        assert_eq!(error.code, "Undeclared");
    }

    #[tokio::test]
    async fn a_call_outside_is_not_captured() {
        let (endpoint, served) = service(vec![(200, REGIONS), (200, REGIONS)]);
        let clients = clients(&endpoint, None);
        clients.ec2.describe_regions().send().await.expect("an answer");
        let (_, captured) = capture(async {}).await;
        assert_eq!(captured, []);
        let (_, captured) = capture(clients.ec2.describe_regions().send()).await;
        assert_eq!(captured.len(), 1);
        served.join().expect("the service");
    }
}
