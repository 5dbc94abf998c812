//! A known account in moto, and what is true of it now.
//!
//! Built and read by Python programs on AWS's Python SDK, so that a mistake in Cleanroom's own
//! adapters can not hide itself. Writes only into the emulator.

use std::{fmt, process::Command, process::Stdio};

use anyhow::{Context, Result, bail};
use serde_json::Value;

use super::{
    ACCESS_KEY, Moto, REGION, http,
    server::isolate,
    venv::{python, scripts},
};
use crate::tools::run;

/// Which account.
///
/// In all of them: a bucket `cleanroom-evidence` with Object Lock (governance, one day), blocked
/// public access and a policy against plain HTTP; a topic `cleanroom` with a queue
/// `cleanroom-notices` that keeps what is published; a KMS key.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// A web server with everything that can be attached to one: an Auto Scaling group (2 of 1 to
    /// 4, health from the load balancer), two interfaces with different groups, an Elastic IP,
    /// three volumes, a profile whose name and path are not its role's, a target group by instance
    /// and one by address, a classic load balancer; a detector and a trail.
    Full,
    /// One instance in the default VPC, with an assigned public address.
    Plain,
    /// This many plain instances from one request, and five more in an Auto Scaling group.
    Fleet(u32),
}

impl fmt::Display for Kind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Full => "full",
            Self::Plain => "plain",
            Self::Fleet(_) => "fleet",
        })
    }
}

/// The account that was built: ids as they were then.
#[derive(Clone, Debug)]
pub struct World {
    endpoint: String,
    /// Where its buckets are, if not there.
    store: Option<String>,
    json: Value,
}

/// The addresses of an account, as the programs in Python take them.
fn addresses(endpoint: &str, store: Option<&str>) -> String {
    match store {
        Some(store) => format!("{endpoint},{store}"),
        None => endpoint.to_owned(),
    }
}

impl World {
    /// Builds an account in a moto that is empty.
    ///
    /// # Errors
    /// Where moto refuses a call, as for names that are there already.
    pub fn build(moto: &Moto, kind: Kind) -> Result<Self> {
        Self::build_at(moto.url(), None, kind)
    }

    /// The same with its buckets in another moto: two processes answer more calls than one.
    ///
    /// # Errors
    /// As [`build`](Self::build).
    pub fn build_apart(moto: &Moto, store: &Moto, kind: Kind) -> Result<Self> {
        Self::build_at(moto.url(), Some(store.url()), kind)
    }

    fn build_at(endpoint: String, store: Option<String>, kind: Kind) -> Result<Self> {
        let mut arguments = vec![addresses(&endpoint, store.as_deref()), kind.to_string()];
        if let Kind::Fleet(count) = kind {
            arguments.push(count.to_string());
        }
        let json = script("world.py", &arguments).with_context(|| {
            format!("build the {kind} world; moto must be empty, call reset() first")
        })?;
        Ok(Self { endpoint, store, json })
    }

    /// Everything that the builder said.
    #[must_use]
    pub fn json(&self) -> &Value {
        &self.json
    }

    /// The address of the moto that it is in.
    #[must_use]
    pub fn endpoint(&self) -> &str {
        &self.endpoint
    }

    /// The address of the moto that its buckets are in.
    #[must_use]
    pub fn store(&self) -> &str {
        self.store.as_deref().unwrap_or(&self.endpoint)
    }

    /// Both, as the programs in Python take them.
    #[must_use]
    pub fn addresses(&self) -> String {
        addresses(&self.endpoint, self.store.as_deref())
    }

    /// A text in the builder's object, by JSON pointer; empty where this world has none.
    #[must_use]
    pub fn text(&self, pointer: &str) -> &str {
        self.json.pointer(pointer).and_then(Value::as_str).unwrap_or_default()
    }

    /// The instance that the tests are about; in a fleet, the first.
    #[must_use]
    pub fn instance(&self) -> &str {
        self.text("/instance")
    }

    /// The instances: in the full world those of the Auto Scaling group, in a fleet those outside
    /// of it.
    #[must_use]
    pub fn instances(&self) -> Vec<&str> {
        self.texts("/instances", None)
    }

    /// The instance's interfaces, the primary one first.
    #[must_use]
    pub fn interfaces(&self) -> Vec<&str> {
        self.texts("/interfaces", Some("id"))
    }

    /// The instance's volumes, the root's first.
    #[must_use]
    pub fn volumes(&self) -> Vec<&str> {
        self.texts("/volumes", Some("id"))
    }

    /// The security groups of one of the instance's interfaces, as built.
    #[must_use]
    pub fn groups(&self, interface: &str) -> Vec<&str> {
        let all = self.json.pointer("/interfaces").and_then(Value::as_array);
        let found = all.into_iter().flatten().find(|i| i["id"] == interface);
        let groups = found.and_then(|i| i["groups"].as_array());
        groups.into_iter().flatten().filter_map(Value::as_str).collect()
    }

    /// The account's number.
    #[must_use]
    pub fn account(&self) -> &str {
        self.text("/account")
    }

    /// The instance's VPC.
    #[must_use]
    pub fn vpc(&self) -> &str {
        self.text("/vpc")
    }

    /// The Auto Scaling group's name; empty in the plain world.
    #[must_use]
    pub fn asg(&self) -> &str {
        self.text("/asg")
    }

    /// The role's name; empty but in the full world.
    #[must_use]
    pub fn role(&self) -> &str {
        self.text("/role")
    }

    /// The instance profile's ARN; empty but in the full world.
    #[must_use]
    pub fn profile_arn(&self) -> &str {
        self.text("/profile_arn")
    }

    /// The Elastic IP's allocation; empty but in the full world.
    #[must_use]
    pub fn allocation(&self) -> &str {
        self.text("/allocation_id")
    }

    /// The evidence bucket.
    #[must_use]
    pub fn bucket(&self) -> &str {
        self.text("/bucket")
    }

    /// The topic that notices go to.
    #[must_use]
    pub fn topic(&self) -> &str {
        self.text("/topic_arn")
    }

    /// The customer's KMS key.
    #[must_use]
    pub fn key(&self) -> &str {
        self.text("/key_arn")
    }

    /// Attaches so many volumes more to the instance, and returns the ids of all of them by device.
    ///
    /// # Errors
    /// Where moto refuses.
    pub fn add_volumes(&self, count: usize) -> Result<Vec<String>> {
        let arguments = [self.endpoint.clone(), self.instance().to_owned(), count.to_string()];
        let ids = script("volumes.py", &arguments).context("attach volumes")?;
        serde_json::from_value(ids).context("read what volumes.py printed")
    }

    /// An object of the evidence bucket that is text; `None` where there is none.
    ///
    /// # Errors
    /// Where moto does not answer.
    pub fn object(&self, key: &str) -> Result<Option<String>> {
        let port = self.endpoint.rsplit(':').next().and_then(|port| port.parse().ok());
        let port = port.context("the emulator's address has no port")?;
        // Signed by nobody: the emulator takes any signature.
        let head = format!(
            "GET /{}/{key} HTTP/1.0\r\nHost: 127.0.0.1:{port}\r\nAuthorization: AWS4-HMAC-SHA256 \
             Credential={ACCESS_KEY}/20260101/{REGION}/s3/aws4_request, SignedHeaders=host, \
             Signature=0\r\n\r\n",
            self.bucket()
        );
        match http::exchange(port, &head, b"")? {
            (200, body) => Ok(Some(body)),
            (404, _) => Ok(None),
            (status, body) => bail!("{key}: {status}: {body}"),
        }
    }

    /// Has the evidence bucket deny writing objects of these names, in whatever folder; with none, nothing any more.
    ///
    /// # Errors
    /// Where moto refuses.
    pub fn deny_writing(&self, names: &[&str]) -> Result<()> {
        let words =
            [self.endpoint.as_str(), self.bucket()].into_iter().chain(names.iter().copied());
        let words: Vec<_> = words.map(str::to_owned).collect();
        script("bucket.py", &words).context("change the bucket's policy").map(drop)
    }

    /// What is true of an instance now, and of what surrounds it; of [`instance`](Self::instance)
    /// by default. Members: `state`, `public_ip`, `security_groups`, `guards`,
    /// `delete_on_termination`, `volumes`, `metadata_options`, `tags`; `interfaces` (with `groups`,
    /// `public_ip`, `allocation_id`); `asg`, `asgs`; `target_groups`, `classic_load_balancers`;
    /// `snapshots`, `images`; `profile_associations`, `role_policies`; `vpc_security_groups`,
    /// `network_acls`, `addresses`; `notices`; `objects`, `delete_markers`; and `unread`, the
    /// parts that moto refused to tell.
    ///
    /// # Errors
    /// Where moto does not know the instance.
    pub fn state(&self, instance: Option<&str>) -> Result<Value> {
        let instance = instance.unwrap_or_else(|| self.instance());
        let folder = tempfile::tempdir().context("create a temporary folder")?;
        let file = folder.path().join("world.json");
        std::fs::write(&file, self.json.to_string()).context("write the world's ids")?;
        let arguments = [self.endpoint.clone(), file.display().to_string(), instance.to_owned()];
        script("state.py", &arguments).with_context(|| format!("read the state of {instance}"))
    }

    /// The texts of an array, or of a member of the objects in it.
    fn texts(&self, pointer: &str, member: Option<&str>) -> Vec<&str> {
        let items = self.json.pointer(pointer).and_then(Value::as_array).into_iter().flatten();
        items.filter_map(|item| member.map_or(Some(item), |m| item.get(m))?.as_str()).collect()
    }
}

/// Runs one of the Python programs and reads the JSON that it prints.
pub(crate) fn script(name: &str, arguments: &[String]) -> Result<Value> {
    let scratch = tempfile::tempdir().context("create a temporary folder")?;
    let mut command = Command::new("timeout");
    isolate(&mut command, scratch.path());
    command.args(["--kill-after=5", "300"]).arg(python()?).arg("-B").arg(scripts().join(name));
    let output = run(command.args(arguments).stdin(Stdio::null()))?;
    serde_json::from_slice(&output).with_context(|| format!("read what {name} printed"))
}
