//! Faults between a client and an emulator, as AWS shows them.
//!
//! microburst is a proxy that knows the services' protocols from botocore's models: its errors
//! have the envelope, the code and the status that an SDK parses. What it does of what Cleanroom's
//! tests want, each at a rate of its own:
//!
//! | Fault | On the wire |
//! |---|---|
//! | [`Injection::Error`] | the service's error envelope; throttling is an error with a code |
//! | [`Injection::Latency`] | the request waits, then goes on |
//! | [`Injection::TimeOut`] | the connection is held, then 504; the request never arrives |
//! | [`Injection::Reset`] | the connection is aborted; the request never arrives |
//! | [`Injection::LostAnswer`] | the request arrives and takes effect; the answer breaks off |
//!
//! Rules are tried in their order and the first that fires is the only one. microburst draws from
//! Python's generator, a draw for a rule that fits; the seed given here is set before, so that
//! the same requests one after another meet the same faults. Requests sent at once race for
//! draws. It can do more (fixed sequences, cut uploads, wrong bytes, replays) that is not exposed.

use anyhow::{Context, Result};
use serde_json::{Value, json};

use super::server::Server;

/// What happens to a request.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Injection {
    /// An error in the service's own form.
    Error {
        /// The code, such as `RequestLimitExceeded`.
        code: String,
        /// The HTTP status; by default what AWS sends with this code.
        status: Option<u16>,
    },
    /// A delay, drawn evenly from this range of milliseconds.
    Latency {
        /// The shortest delay.
        min: u32,
        /// The longest delay.
        max: u32,
    },
    /// No answer for this many milliseconds, then status 504.
    TimeOut {
        /// How long the connection is held.
        hold: u32,
    },
    /// The connection is reset before the request is passed on.
    Reset,
    /// The request is passed on; the connection is cut inside the answer's body.
    LostAnswer,
}

/// A fault, for which requests, and how often.
#[derive(Clone, Debug, PartialEq)]
pub struct Fault {
    /// The service as botocore names it (`ec2`, `autoscaling`, `service-quotas`), or `*`. Both
    /// generations of load balancers are `elbv2`: only their operations tell them apart.
    pub service: String,
    /// The operation, such as `CreateSnapshots`; any by default.
    pub operation: Option<String>,
    /// The share of the requests that meet it, from 0 to 1.
    pub rate: f64,
    /// After this many it is over.
    pub times: Option<u32>,
    /// What happens.
    pub injection: Injection,
}

impl Fault {
    /// A fault for every operation of a service, without an end.
    #[must_use]
    pub fn new(service: &str, rate: f64, injection: Injection) -> Self {
        Self { service: service.to_owned(), operation: None, rate, times: None, injection }
    }

    /// Throttling as the service words it.
    #[must_use]
    pub fn throttling(service: &str, rate: f64) -> Self {
        let (code, status) = match service {
            "ec2" => ("RequestLimitExceeded", 503),
            "s3" => ("SlowDown", 503),
            "kms" | "sns" | "sqs" | "stepfunctions" | "cloudtrail" => ("ThrottlingException", 400),
            _ => ("Throttling", 400),
        };
        let injection = Injection::Error { code: code.to_owned(), status: Some(status) };
        Self::new(service, rate, injection)
    }

    /// The same for one operation only.
    #[must_use]
    pub fn on(mut self, operation: &str) -> Self {
        self.operation = Some(operation.to_owned());
        self
    }

    /// The same, this many times at most.
    #[must_use]
    pub fn times(mut self, times: u32) -> Self {
        self.times = Some(times);
        self
    }

    /// As microburst's rule.
    fn rule(&self) -> Value {
        let mut rule = json!({ "service": self.service, "probability": self.rate });
        let (key, value) = match &self.injection {
            Injection::Error { code, status } => {
                let mut error = json!({ "code": code, "message": "injected by the test" });
                if let Some(status) = status {
                    error["status"] = json!(status);
                }
                ("error", error)
            }
            Injection::Latency { min, max } => ("latency", json!({ "min": min, "max": max })),
            Injection::TimeOut { hold } => ("timeout_ms", json!(hold)),
            Injection::Reset => ("reset", json!(true)),
            Injection::LostAnswer => ("response", json!({ "abort_frac": 0.5 })),
        };
        rule[key] = value;
        if let Some(operation) = &self.operation {
            rule["operation"] = json!(operation);
        }
        if let Some(times) = self.times {
            rule["times"] = json!(times);
        }
        rule
    }
}

/// A proxy in front of an emulator; passes everything on until [`set`](Self::set) is called.
#[derive(Debug)]
pub struct Microburst(pub(super) Server);

impl Microburst {
    /// Starts a proxy in front of an emulator's address.
    ///
    /// # Errors
    /// Where the environment can not be made or the proxy does not come up, as for an address
    /// that is not on this machine.
    pub fn start(upstream: &str, seed: u64) -> Result<Self> {
        let seed = seed.to_string();
        let arguments = ["--upstream", upstream, "--seed", &seed];
        Ok(Self(Server::start("microburst", &arguments, "/_microburst/health")?))
    }

    /// The endpoint for clients.
    #[must_use]
    pub fn url(&self) -> String {
        self.0.url()
    }

    /// Replaces all faults. With none, everything is passed on.
    ///
    /// # Errors
    /// Where the proxy refuses them.
    pub fn set(&self, faults: &[Fault]) -> Result<()> {
        let rules: Value = faults.iter().map(Fault::rule).collect();
        self.0
            .control("POST", "/_microburst/rules", &rules.to_string())
            .context("set the faults")
            .map(drop)
    }

    /// What was injected, oldest first: objects with `service`, `operation` and `action`. The
    /// last 2,000 are known.
    ///
    /// # Errors
    /// Where the proxy does not answer.
    pub fn fired(&self) -> Result<Vec<Value>> {
        let fired = self.0.control("GET", "/_microburst/fired?limit=2000", "")?;
        serde_json::from_str(&fired).context("read the injected faults")
    }

    /// What it printed.
    #[must_use]
    pub fn log(&self) -> String {
        self.0.log()
    }

    /// The proxy's process id.
    #[must_use]
    pub fn pid(&self) -> u32 {
        self.0.pid()
    }
}
