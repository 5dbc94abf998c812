//! The few plain HTTP requests that the harness itself sends to an emulator's control address.
//!
//! HTTP/1.0 on a fresh connection to 127.0.0.1: no chunks, and the end of the answer is its end.

use std::{
    io::{Read, Write},
    net::{Ipv4Addr, SocketAddr, TcpStream},
    time::Duration,
};

use anyhow::{Context, Result};

/// How long an emulator may take to answer.
const PATIENCE: Duration = Duration::from_secs(60);

/// Sends a request with a body that is JSON or empty, and returns the status and the body.
///
/// # Errors
/// Where there is no connection, or no answer that is HTTP.
pub(super) fn request(port: u16, method: &str, path: &str, body: &str) -> Result<(u16, String)> {
    let head = format!(
        "{method} {path} HTTP/1.0\r\nHost: 127.0.0.1:{port}\r\nContent-Type: application/json\r\n\
         Content-Length: {}\r\n\r\n",
        body.len()
    );
    exchange(port, &head, body.as_bytes()).with_context(|| format!("{method} {path}"))
}

/// Sends a head and a body as they are, and returns the answer's status and body.
///
/// # Errors
/// As [`request`].
pub(crate) fn exchange(port: u16, head: &str, body: &[u8]) -> Result<(u16, String)> {
    let address = SocketAddr::from((Ipv4Addr::LOCALHOST, port));
    let mut stream = TcpStream::connect_timeout(&address, PATIENCE)
        .with_context(|| format!("connect to {address}"))?;
    stream.set_read_timeout(Some(PATIENCE))?;
    stream.set_write_timeout(Some(PATIENCE))?;
    stream.write_all(head.as_bytes()).and_then(|()| stream.write_all(body)).context("send")?;
    let mut answer = Vec::new();
    stream.read_to_end(&mut answer).context("receive")?;
    let answer = String::from_utf8_lossy(&answer);
    let (head, body) = answer.split_once("\r\n\r\n").context("the answer is not HTTP")?;
    let status = head.split(' ').nth(1).and_then(|code| code.parse().ok());
    Ok((status.context("the answer has no status")?, body.to_owned()))
}

/// Sends a signed-looking request of EC2's query protocol; the emulators check no signatures.
#[cfg(test)]
pub(crate) fn ec2(port: u16, action: &str, more: &str) -> Result<(u16, String)> {
    use super::{ACCESS_KEY, REGION};

    let body = format!("Action={action}&Version=2016-11-15{more}");
    let head = format!(
        "POST / HTTP/1.0\r\nHost: 127.0.0.1:{port}\r\n\
         Content-Type: application/x-www-form-urlencoded; charset=utf-8\r\n\
         X-Amz-Date: 20240101T000000Z\r\n\
         Authorization: AWS4-HMAC-SHA256 Credential={ACCESS_KEY}/20240101/{REGION}/ec2/\
         aws4_request, SignedHeaders=host;x-amz-date, Signature={:064}\r\n\
         Content-Length: {}\r\n\r\n",
        0,
        body.len()
    );
    exchange(port, &head, body.as_bytes())
}
