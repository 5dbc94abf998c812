//! Where evidence is kept, and where people are told.

use std::{collections::BTreeMap, path::Path};

use async_trait::async_trait;
use cleanroom_contract::Sha256;
use serde::{Deserialize, Serialize};

use crate::error::Result;

/// How a conditional write ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Put {
    /// It is there now, as its first version.
    Created,
    /// Something is there already, which may be this very object from a call whose answer was lost.
    Exists,
}

/// One version of an object, or a mark of its deletion.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ObjectVersion {
    /// The object's key.
    pub key: String,
    /// The version's id.
    pub version: String,
    /// Whether it is a delete marker.
    pub deleted: bool,
    /// Whether it is the newest.
    pub latest: bool,
    /// Its size in bytes; 0 for a delete marker.
    pub size: u64,
}

/// An object that was read piece by piece.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Fetched {
    /// Its size in bytes.
    pub size: u64,
    /// Of its bytes, as they came.
    pub sha256: Sha256,
}

/// The evidence bucket: create, never overwrite, never delete. The one object that is ever renewed is no evidence.
#[async_trait]
pub trait Store: Send + Sync {
    /// The bucket's name.
    fn bucket(&self) -> &str;
    /// Creates an object with `If-None-Match: *` and a SHA-256 checksum that the service verifies.
    async fn create(&self, key: &str, bytes: Vec<u8>) -> Result<Put>;
    /// An object's newest version.
    async fn get(&self, key: &str) -> Result<Option<Vec<u8>>>;
    /// Reads an object of any size piece by piece, and digests it on the way. `into` is a file that is not there yet and
    /// gets its bytes; without one they are digested only. More than `most` bytes are
    /// [`Refused`](crate::ErrorKind::Refused); `None` where there is no such object.
    async fn download(&self, key: &str, into: Option<&Path>, most: u64) -> Result<Option<Fetched>>;
    /// Creates an object from a file of any size up to 5 GiB, as [`create`](Self::create) does.
    async fn upload(&self, key: &str, from: &Path) -> Result<Put>;
    /// Writes a new version of a pointer, which is no evidence: keys below `artifacts/` only.
    async fn renew(&self, key: &str, bytes: Vec<u8>) -> Result<()>;
    /// The keys below a prefix, sorted by their bytes. With `folders`, only the next level's common prefixes,
    /// each ending in `/`.
    async fn list(&self, prefix: &str, folders: bool) -> Result<Vec<String>>;
    /// Every version of every object below a prefix.
    async fn versions(&self, prefix: &str) -> Result<Vec<ObjectVersion>>;
    /// Sets or lifts an object's legal hold.
    async fn hold(&self, key: &str, on: bool) -> Result<()>;
}

/// A message to the team.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Notice {
    /// At most 99 characters, ASCII, one line (SNS `Publish`).
    pub subject: String,
    /// For people.
    pub text: String,
    /// The same for programs: published under the message structure's other protocols.
    pub json: String,
    /// Message attributes, for subscribers' filters.
    pub attributes: BTreeMap<String, String>,
}

/// The team's topic.
#[async_trait]
pub trait Notices: Send + Sync {
    /// Publishes once. `Ok(None)` where no topic is configured; else the message's id.
    async fn publish(&self, notice: &Notice) -> Result<Option<String>>;
}
