//! What a clean room is made of, and what it looks for: as people have set it, and as it was deployed.
//!
//! Plain values. Files are read by whoever takes the words from a person; nothing here reads or writes.

use std::sync::Arc;

use cleanroom_cloud::ImageId;
use cleanroom_contract::{OrderedFile, ScanLimits, Sha256};

/// A file that people gave: its name without folders, and its bytes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Given {
    /// Its name, without slashes.
    pub name: String,
    /// Its bytes.
    pub bytes: Arc<[u8]>,
}

/// The clean room that people want.
#[derive(Clone, Debug)]
pub struct RoomPolicy {
    /// Whether people asked for the step by name: then a room that can not be made is a shortfall, else a note.
    pub asked: bool,
    /// The agent in the bucket; none for the newest that was deployed.
    pub agent: Option<(String, Sha256)>,
    /// The AMI; none for Amazon's newest Amazon Linux 2023.
    pub image: Option<ImageId>,
    /// The role that CloudFormation acts in; none for the caller's own rights.
    pub role: Option<String>,
    /// The team's topic, which the room tells of its findings.
    pub topic: Option<String>,
    /// The Availability Zone; none for the instance's own.
    pub zone: Option<String>,
    /// A VPC that rooms share; none for one of the room's own.
    pub vpc: Option<String>,
    /// The subnet in it.
    pub subnet: Option<String>,
    /// The security group in it.
    pub group: Option<String>,
    /// The permissions boundary of the room's role.
    pub boundary: Option<String>,
    /// Seconds without a work order after which a room ends itself.
    pub idle_seconds: u32,
    /// YARA rules; none for those that were deployed.
    pub rules: Vec<Given>,
    /// Indicator lists; none for those that were deployed.
    pub indicators: Vec<Given>,
    /// What a scan may take.
    pub limits: ScanLimits,
    /// The Step Functions task that the room tells of the scan's end; none where nobody waits there.
    pub task_token: Option<String>,
    /// The stack's template.
    pub template: Arc<str>,
}

/// The template of a case's stack, as it is shipped.
pub const TEMPLATE: &str = include_str!("../../cloudformation/clean-room.yaml");

impl Default for RoomPolicy {
    fn default() -> Self {
        Self {
            asked: false,
            agent: None,
            image: None,
            role: None,
            topic: None,
            zone: None,
            vpc: None,
            subnet: None,
            group: None,
            boundary: None,
            idle_seconds: 3600,
            rules: Vec::new(),
            indicators: Vec::new(),
            limits: ScanLimits::default(),
            task_token: None,
            template: Arc::from(TEMPLATE),
        }
    }
}

/// Reads how an agent is named in settings and flags, `KEY@sha256=DIGEST`: its key and digest.
///
/// # Errors
/// What is missing.
pub fn agent(text: &str) -> Result<(String, Sha256), String> {
    let (key, sha256) = text
        .rsplit_once("@sha256=")
        .filter(|(key, _)| !key.is_empty())
        .ok_or("give the key and the digest: agent/…/cleanroom-agent@sha256=…")?;
    let sha256 = sha256.parse().map_err(|error| format!("{error}"))?;
    Ok((key.to_owned(), sha256))
}

/// What `deploy` writes beside the artifacts: the newest of each, `artifacts/latest.json`.
#[derive(Clone, Debug, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub struct Latest {
    /// The form of this object: 1.
    pub v: u8,
    /// The agent.
    pub agent: OrderedFile,
    /// The offline bundle of tools for investigators.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub tools: Option<OrderedFile>,
    /// YARA rules of scans for which nobody names others.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub rules: Vec<OrderedFile>,
    /// Indicator lists, likewise.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub indicators: Vec<OrderedFile>,
}

impl Latest {
    /// Every file that it names, with the folder that such files lie in.
    pub fn files(&self) -> impl Iterator<Item = (&'static str, &OrderedFile)> {
        let programs = [("agent", Some(&self.agent)), ("tools", self.tools.as_ref())];
        let programs = programs.into_iter().filter_map(|(folder, file)| Some((folder, file?)));
        programs.chain(self.rules.iter().chain(&self.indicators).map(|file| (RULES, file)))
    }
}

/// The folder of rules and indicator lists in the bucket.
pub const RULES: &str = "rules";

/// Where the newest artifacts are named.
pub const LATEST: &str = "artifacts/latest.json";

/// What an agent's file is called.
pub const AGENT: &str = "cleanroom-agent";
