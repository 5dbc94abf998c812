//! Calls of AWS's protocols to an emulator: signed by nobody, since emulators check no signatures.

use anyhow::{Context, Result, ensure};
use serde::Deserialize;
use serde_json::Value;

use crate::emulators::{ACCESS_KEY, REGION, http};

/// A service, as far as requests to it differ.
#[derive(Clone, Copy, Debug)]
pub(super) enum Service {
    Ec2,
    Events,
    Logs,
    Sns,
    Sqs,
    States,
}

impl Service {
    /// Its name in signatures.
    fn scope(self) -> &'static str {
        match self {
            Self::Ec2 => "ec2",
            Self::Events => "events",
            Self::Logs => "logs",
            Self::Sns => "sns",
            Self::Sqs => "sqs",
            Self::States => "states",
        }
    }

    /// What an action's name follows in `X-Amz-Target`, and the version of the JSON protocol.
    fn target(self) -> (&'static str, &'static str) {
        match self {
            Self::Events => ("AWSEvents", "1.1"),
            Self::Logs => ("Logs_20140328", "1.1"),
            Self::Sqs => ("AmazonSQS", "1.0"),
            Self::States => ("AWSStepFunctions", "1.0"),
            Self::Ec2 | Self::Sns => ("", "1.0"),
        }
    }
}

/// An execution, as Step Functions describes it.
#[derive(Clone, Debug, Deserialize)]
pub struct Execution {
    /// `RUNNING`, `SUCCEEDED`, `FAILED`, `ABORTED`, `TIMED_OUT`.
    pub status: String,
    /// What it was given, JSON.
    pub input: String,
    /// What it gave, JSON.
    pub output: Option<String>,
    /// The error's name, where it failed.
    pub error: Option<String>,
    /// And its cause.
    pub cause: Option<String>,
}

impl Execution {
    /// Whether it runs no more.
    #[must_use]
    pub fn has_ended(&self) -> bool {
        self.status != "RUNNING"
    }

    /// What it gave; null where it gave nothing.
    #[must_use]
    pub fn result(&self) -> Value {
        let output = self.output.as_deref().unwrap_or("null");
        serde_json::from_str(output).unwrap_or_default()
    }
}

/// Calls an action of a service that speaks JSON.
pub(super) fn json(url: &str, service: Service, action: &str, body: &Value) -> Result<Value> {
    let (target, version) = service.target();
    let head = format!(
        "Content-Type: application/x-amz-json-{version}\r\nX-Amz-Target: {target}.{action}\r\n"
    );
    let told = send(url, ("POST", "/"), service.scope(), &head, &body.to_string())
        .with_context(|| format!("{target}.{action}"))?;
    serde_json::from_str(if told.is_empty() { "null" } else { &told })
        .with_context(|| format!("read the answer to {action}"))
}

/// Calls an action of a service that speaks the query protocol.
pub(super) fn query(url: &str, service: Service, body: &str) -> Result<String> {
    let head = "Content-Type: application/x-www-form-urlencoded; charset=utf-8\r\n";
    send(url, ("POST", "/"), service.scope(), head, body)
        .with_context(|| format!("{}: {body}", service.scope()))
}

/// Calls Lambda, which has a path for each action.
pub(super) fn lambda(url: &str, method: &str, path: &str, body: &str) -> Result<String> {
    let head = "Content-Type: application/json\r\n";
    send(url, (method, path), "lambda", head, body).with_context(|| format!("{method} {path}"))
}

fn send(
    url: &str,
    (method, path): (&str, &str),
    scope: &str,
    head: &str,
    body: &str,
) -> Result<String> {
    let port = url.rsplit(':').next().and_then(|port| port.parse().ok());
    let port: u16 = port.with_context(|| format!("{url} has no port"))?;
    let head = format!(
        "{method} {path} HTTP/1.0\r\nHost: 127.0.0.1:{port}\r\n{head}X-Amz-Date: 20260101T000000Z\r\n\
         Authorization: AWS4-HMAC-SHA256 Credential={ACCESS_KEY}/20260101/{REGION}/{scope}/aws4_request, \
         SignedHeaders=host;x-amz-date, Signature={:064}\r\nContent-Length: {}\r\n\r\n",
        0,
        body.len()
    );
    let (status, told) = http::exchange(port, &head, body.as_bytes())?;
    ensure!((200..300).contains(&status), "answered with {status}: {told}");
    Ok(told)
}

/// Text as it may stand in a form.
pub(super) fn escaped(text: &str) -> String {
    let byte = |b: u8| match b {
        b'A'..=b'Z' | b'a'..=b'z' | b'0'..=b'9' | b'-' | b'_' | b'.' | b'~' => {
            char::from(b).to_string()
        }
        _ => format!("%{b:02X}"),
    };
    text.bytes().map(byte).collect()
}
