//! The evidence bucket in memory, and the topic.
//!
//! Purpose: objects with their versions, as S3 keeps them with versioning on. Touches only the world.
//! [`Bucket::overwrite`] and [`Bucket::delete`] are for tests that tamper: no port leads to them.

use std::{
    collections::{BTreeMap, BTreeSet},
    path::Path,
};

use async_trait::async_trait;
use cleanroom_cloud::{
    CloudError, ErrorKind, Fetched, Notice, Notices, ObjectVersion, Put, Result, Store,
};
use cleanroom_contract::Sha256;
use sha2::Digest as _;

use crate::{
    gate::{Call, FakeCloud},
    problem::{Answered, Problem},
};

/// One version of an object.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Version {
    /// Its id, which rises with time over the whole bucket.
    pub id: u64,
    /// Its bytes; none for a delete marker.
    pub bytes: Option<Vec<u8>>,
    /// Whether it is under legal hold.
    pub hold: bool,
}

/// A bucket with versioning.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Bucket {
    /// Its name, set before the cloud is made; empty where no bucket is configured.
    pub name: String,
    /// Whether it exists.
    pub exists: bool,
    /// Every object's versions, oldest first.
    pub objects: BTreeMap<String, Vec<Version>>,
    /// How many versions were made.
    pub made: u64,
}

impl Bucket {
    /// An empty bucket.
    #[must_use]
    pub fn named(name: &str) -> Self {
        Self { name: name.to_owned(), exists: true, objects: BTreeMap::new(), made: 0 }
    }

    /// An object's newest bytes.
    #[must_use]
    pub fn newest(&self, key: &str) -> Option<&[u8]> {
        self.objects.get(key)?.last()?.bytes.as_deref()
    }

    /// The keys below a prefix that a listing shows, sorted by their bytes.
    #[must_use]
    pub fn keys(&self, prefix: &str) -> Vec<String> {
        self.below(prefix)
            .filter(|(_, versions)| versions.last().is_some_and(|v| v.bytes.is_some()))
            .map(|(key, _)| key.clone())
            .collect()
    }

    /// Tampers: puts a new version over whatever is there.
    pub fn overwrite(&mut self, key: &str, bytes: Vec<u8>) {
        self.add(key, Some(bytes));
    }

    /// Tampers: hides an object behind a delete marker.
    pub fn delete(&mut self, key: &str) {
        self.add(key, None);
    }

    fn add(&mut self, key: &str, bytes: Option<Vec<u8>>) {
        self.made += 1;
        let version = Version { id: self.made, bytes, hold: false };
        self.objects.entry(key.to_owned()).or_default().push(version);
    }

    fn below<'a>(
        &'a self,
        prefix: &'a str,
    ) -> impl Iterator<Item = (&'a String, &'a Vec<Version>)> {
        self.objects.range(prefix.to_owned()..).take_while(move |(key, _)| key.starts_with(prefix))
    }

    fn there(&self) -> Answered<()> {
        if self.name.is_empty() {
            let kind = ErrorKind::Unsupported;
            Err(Problem::new(kind, "NoBucket", "no evidence bucket is configured"))
        } else if self.exists {
            Ok(())
        } else {
            Err(Problem::not_found("NoSuchBucket", "The specified bucket does not exist"))
        }
    }

    fn versions(&self, prefix: &str) -> Vec<ObjectVersion> {
        let mut all = Vec::new();
        for (key, versions) in self.below(prefix) {
            for (nth, version) in versions.iter().enumerate().rev() {
                all.push(ObjectVersion {
                    key: key.clone(),
                    version: format!("v{:06}", version.id),
                    deleted: version.bytes.is_none(),
                    latest: nth + 1 == versions.len(),
                    size: version.bytes.as_ref().map_or(0, |b| b.len() as u64),
                });
            }
        }
        all
    }
}

/// The next level's common prefixes of sorted keys.
fn folders(keys: &[String], prefix: &str) -> Vec<String> {
    let level = |key: &String| {
        let rest = key.strip_prefix(prefix)?;
        let end = rest.find('/')?;
        Some(format!("{prefix}{}/", &rest[..end]))
    };
    keys.iter().filter_map(level).collect::<BTreeSet<_>>().into_iter().collect()
}

/// One request each.
#[async_trait]
impl Store for FakeCloud {
    fn bucket(&self) -> &str {
        self.bucket_name()
    }

    async fn create(&self, key: &str, bytes: Vec<u8>) -> Result<Put> {
        self.call(Call::write("s3:PutObject", key), |world| {
            world.bucket.there()?;
            if world.bucket.newest(key).is_some() {
                return Ok(Put::Exists);
            }
            world.bucket.add(key, Some(bytes));
            Ok(Put::Created)
        })
        .await
    }

    async fn get(&self, key: &str) -> Result<Option<Vec<u8>>> {
        self.call(Call::read("s3:GetObject", key), |world| {
            world.bucket.there()?;
            Ok(world.bucket.newest(key).map(<[u8]>::to_vec))
        })
        .await
    }

    async fn download(&self, key: &str, into: Option<&Path>, most: u64) -> Result<Option<Fetched>> {
        let bytes = self
            .call(Call::read("s3:GetObject", key), |world| {
                world.bucket.there()?;
                let bytes = world.bucket.newest(key);
                if bytes.is_some_and(|bytes| bytes.len() as u64 > most) {
                    return Err(Problem::refused("TooLarge", format!("more than {most} bytes")));
                }
                Ok(bytes.map(<[u8]>::to_vec))
            })
            .await?;
        let Some(bytes) = bytes else { return Ok(None) };
        if let Some(path) = into {
            let written = std::fs::File::create_new(path)
                .and_then(|mut file| std::io::Write::write_all(&mut file, &bytes));
            written.map_err(|error| local("s3:GetObject", key, &error))?;
        }
        Ok(Some(Fetched { size: bytes.len() as u64, sha256: digest(&bytes) }))
    }

    async fn upload(&self, key: &str, from: &Path) -> Result<Put> {
        let bytes = std::fs::read(from).map_err(|error| local("s3:PutObject", key, &error))?;
        self.create(key, bytes).await
    }

    async fn renew(&self, key: &str, bytes: Vec<u8>) -> Result<()> {
        self.call(Call::write("s3:PutObject", key), |world| {
            world.bucket.there()?;
            if !key.starts_with("artifacts/") {
                return Err(Problem::refused("Evidence", "only pointers are renewed"));
            }
            world.bucket.add(key, Some(bytes));
            Ok(())
        })
        .await
    }

    async fn list(&self, prefix: &str, folders_only: bool) -> Result<Vec<String>> {
        self.call(Call::read("s3:ListObjectsV2", prefix), |world| {
            world.bucket.there()?;
            let keys = world.bucket.keys(prefix);
            Ok(if folders_only { folders(&keys, prefix) } else { keys })
        })
        .await
    }

    async fn versions(&self, prefix: &str) -> Result<Vec<ObjectVersion>> {
        self.call(Call::read("s3:ListObjectVersions", prefix), |world| {
            world.bucket.there()?;
            Ok(world.bucket.versions(prefix))
        })
        .await
    }

    async fn hold(&self, key: &str, on: bool) -> Result<()> {
        self.call(Call::write("s3:PutObjectLegalHold", key), |world| {
            world.bucket.there()?;
            let newest = world.bucket.objects.get_mut(key).and_then(|v| v.last_mut());
            let Some(version) = newest.filter(|v| v.bytes.is_some()) else {
                return Err(Problem::not_found("NoSuchKey", "The specified key does not exist."));
            };
            version.hold = on;
            Ok(())
        })
        .await
    }
}

/// The digest of bytes.
pub(crate) fn digest(bytes: &[u8]) -> Sha256 {
    Sha256(sha2::Sha256::digest(bytes).into())
}

/// A file of this machine that can not be read or written.
fn local(operation: &str, key: &str, error: &std::io::Error) -> CloudError {
    CloudError {
        operation: operation.to_owned(),
        resource: key.to_owned(),
        kind: ErrorKind::Other,
        code: "LocalFile".to_owned(),
        message: error.to_string(),
        request: None,
    }
}

/// What SNS publishes at most, in bytes.
const MESSAGE_LIMIT: usize = 262_144;

/// One request; none where no topic is set.
#[async_trait]
impl Notices for FakeCloud {
    async fn publish(&self, notice: &Notice) -> Result<Option<String>> {
        let Some(topic) = self.with(|world| world.topic.clone()) else { return Ok(None) };
        self.call(Call::write("sns:Publish", &topic), |world| {
            let subject = &notice.subject;
            let printable = subject.bytes().all(|b| (b' '..=b'~').contains(&b));
            if subject.is_empty() || subject.len() > 99 || !printable {
                return Err(Problem::refused("InvalidParameter", "Invalid parameter: Subject"));
            }
            let attributes: usize = notice.attributes.iter().map(|(k, v)| k.len() + v.len()).sum();
            if notice.text.len() + notice.json.len() + attributes > MESSAGE_LIMIT {
                return Err(Problem::refused("InvalidParameter", "Message too long"));
            }
            if notice.attributes.values().any(String::is_empty) {
                let code = "InvalidParameterValue";
                return Err(Problem::new(ErrorKind::Refused, code, "attribute without a value"));
            }
            world.notices.push(notice.clone());
            Ok(Some(format!("message-{:06}", world.notices.len())))
        })
        .await
    }
}
