//! QEMU's machine protocol (QEMU `docs/interop/qmp-spec.rst`): one JSON object a line, over a Unix socket.
//!
//! Touches the socket only.

use std::{
    io::{BufRead, BufReader, Write},
    os::unix::net::UnixStream,
    path::Path,
    time::{Duration, Instant},
};

use anyhow::{Context, Result, bail};
use serde_json::{Value, json};

/// How long QEMU may take for an answer. Under emulation the guest shares its processor with QEMU.
const PATIENCE: Duration = Duration::from_secs(60);

/// A connection that is ready for commands.
#[derive(Debug)]
pub(super) struct Qmp {
    reader: BufReader<UnixStream>,
    writer: UnixStream,
}

impl Qmp {
    /// Connects to the socket that a QEMU which was just started is about to make.
    pub(super) fn connect(path: &Path) -> Result<Self> {
        let ends = Instant::now() + PATIENCE;
        let stream = loop {
            match UnixStream::connect(path) {
                Ok(stream) => break stream,
                Err(error) if Instant::now() > ends => {
                    return Err(error).with_context(|| format!("connect to {}", path.display()));
                }
                Err(_) => super::pause(Duration::from_millis(20)),
            }
        };
        stream.set_read_timeout(Some(PATIENCE)).context("set a time-out")?;
        let writer = stream.try_clone().context("duplicate the socket")?;
        let mut qmp = Self { reader: BufReader::new(stream), writer };
        qmp.line().context("read QEMU's greeting")?;
        qmp.run("qmp_capabilities", json!({}))?;
        Ok(qmp)
    }

    /// Runs a command and returns what it answers.
    pub(super) fn run(&mut self, command: &str, arguments: Value) -> Result<Value> {
        let request = json!({"execute": command, "arguments": arguments});
        writeln!(self.writer, "{request}").with_context(|| format!("send {command} to QEMU"))?;
        loop {
            let answer = self.line().with_context(|| format!("read QEMU's answer to {command}"))?;
            if let Some(error) = answer.get("error") {
                bail!("QEMU refuses {command}: {error}");
            }
            // Events come between.
            if let Some(value) = answer.get("return") {
                return Ok(value.clone());
            }
        }
    }

    fn line(&mut self) -> Result<Value> {
        let mut line = String::new();
        if self.reader.read_line(&mut line)? == 0 {
            bail!("QEMU has ended");
        }
        Ok(serde_json::from_str(&line)?)
    }
}
