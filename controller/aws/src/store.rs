//! The evidence bucket over S3.
//!
//! Purpose: create, read and list objects, and hold them. Touches the one bucket that is configured. Never
//! overwrites and never deletes: an object is written on the condition that its key has none.

use std::{sync::Arc, time::Duration};

use async_trait::async_trait;
use aws_sdk_s3::{
    primitives::ByteStream,
    types::{ChecksumAlgorithm, ChecksumMode, ObjectLockLegalHold, ObjectLockLegalHoldStatus},
};
use cleanroom_cloud::{CloudError, ErrorKind, ObjectVersion, Put, Result, Store};

use crate::{
    clients::Clients,
    error::{fail, own},
    pages,
};

/// The largest object that is read: far above any custody event, work order or ids file, and below what hurts.
const MAX_BODY: usize = 64 << 20;

/// How often a write is tried that meets another write of the same key in flight.
const WRITE_ATTEMPTS: u32 = 5;

/// The pause after the first such meeting; each later one is twice as long.
const WRITE_PAUSE: Duration = Duration::from_millis(100);

/// How often a body is asked for whose bytes stop coming: the SDK repeats requests, not half-read bodies.
const READ_ATTEMPTS: u32 = 4;

/// The evidence bucket, over S3.
#[derive(Debug)]
pub(crate) struct S3Store {
    clients: Arc<Clients>,
}

impl S3Store {
    /// A store in the bucket that `clients` names. Sends nothing.
    pub(crate) fn new(clients: Arc<Clients>) -> Self {
        Self { clients }
    }

    /// The bucket, where one is configured.
    fn named(&self) -> Option<&str> {
        self.clients.bucket.as_deref()
    }

    /// One attempt to read an object.
    async fn read(&self, bucket: &str, key: &str) -> Result<Option<Vec<u8>>> {
        const OPERATION: &str = "s3:GetObject";
        let answer = self
            .clients
            .s3
            .get_object()
            .bucket(bucket)
            .key(key)
            .checksum_mode(ChecksumMode::Enabled)
            .send()
            .await;
        let mut body = match answer.map_err(|e| fail(OPERATION, key, e)) {
            Ok(answer) => answer.body,
            Err(error) if error.code == "NoSuchKey" => return Ok(None),
            Err(error) => return Err(error),
        };
        let mut bytes = Vec::new();
        loop {
            match body.try_next().await {
                Ok(None) => return Ok(Some(bytes)),
                Ok(Some(chunk)) if bytes.len() + chunk.len() <= MAX_BODY => {
                    bytes.extend_from_slice(&chunk);
                }
                Ok(Some(_)) => {
                    let message = format!("it is larger than {MAX_BODY} bytes");
                    return Err(own(OPERATION, key, ErrorKind::Refused, "TooLarge", message));
                }
                Err(error) => {
                    let message = error.to_string();
                    return Err(own(OPERATION, key, ErrorKind::Ambiguous, "CutShort", message));
                }
            }
        }
    }
}

/// The error of a call that needs a bucket where none is configured.
pub(crate) fn no_bucket(operation: &'static str) -> CloudError {
    own(
        operation,
        "",
        ErrorKind::Unsupported,
        "NoBucket",
        "no evidence bucket is configured: name one with --bucket, CLEANROOM_BUCKET or in cleanroom.toml",
    )
}

/// S3 gives sizes as signed numbers.
fn size(bytes: Option<i64>) -> u64 {
    bytes.and_then(|b| u64::try_from(b).ok()).unwrap_or(0)
}

#[async_trait]
impl Store for S3Store {
    fn bucket(&self) -> &str {
        self.named().unwrap_or_default()
    }

    async fn create(&self, key: &str, bytes: Vec<u8>) -> Result<Put> {
        const OPERATION: &str = "s3:PutObject";
        let bucket = self.named().ok_or_else(|| no_bucket(OPERATION))?;
        // Shared by the attempts, not copied for each.
        let body = ByteStream::from(bytes).into_inner();
        let mut pause = WRITE_PAUSE;
        let mut attempt = 1;
        loop {
            let Some(body) = body.try_clone() else {
                return Err(own(OPERATION, key, ErrorKind::Other, "NotSent", "the body is gone"));
            };
            let answer = self
                .clients
                .s3
                .put_object()
                .bucket(bucket)
                .key(key)
                .if_none_match("*")
                .checksum_algorithm(ChecksumAlgorithm::Sha256)
                .body(ByteStream::new(body))
                .send()
                .await;
            let error = match answer {
                Ok(_) => return Ok(Put::Created),
                Err(error) => fail(OPERATION, key, error),
            };
            match error.code.as_str() {
                "PreconditionFailed" => return Ok(Put::Exists),
                // Somebody else writes the key at this moment (S3 user guide, "conditional writes"). Who wins is
                // known when that write ends: asked again, the answer is one of the two above.
                "ConditionalRequestConflict" if attempt < WRITE_ATTEMPTS => {
                    tokio::time::sleep(pause).await;
                    pause *= 2;
                    attempt += 1;
                }
                _ => return Err(error),
            }
        }
    }

    async fn get(&self, key: &str) -> Result<Option<Vec<u8>>> {
        let bucket = self.named().ok_or_else(|| no_bucket("s3:GetObject"))?;
        let mut attempt = 1;
        loop {
            match self.read(bucket, key).await {
                Err(error) if error.code == "CutShort" && attempt < READ_ATTEMPTS => attempt += 1,
                answer => return answer,
            }
        }
    }

    async fn list(&self, prefix: &str, folders: bool) -> Result<Vec<String>> {
        const OPERATION: &str = "s3:ListObjectsV2";
        let bucket = self.named().ok_or_else(|| no_bucket(OPERATION))?;
        let stream = self
            .clients
            .s3
            .list_objects_v2()
            .bucket(bucket)
            .prefix(prefix)
            .set_delimiter(folders.then(|| "/".to_owned()))
            .into_paginator()
            .send();
        let mut keys = Vec::new();
        for page in pages::all(OPERATION, prefix, stream).await? {
            if folders {
                let prefixes = page.common_prefixes.unwrap_or_default();
                keys.extend(prefixes.into_iter().filter_map(|p| p.prefix));
            } else {
                let objects = page.contents.unwrap_or_default();
                keys.extend(objects.into_iter().filter_map(|o| o.key));
            }
        }
        keys.sort_unstable();
        Ok(keys)
    }

    async fn versions(&self, prefix: &str) -> Result<Vec<ObjectVersion>> {
        const OPERATION: &str = "s3:ListObjectVersions";
        let bucket = self.named().ok_or_else(|| no_bucket(OPERATION))?;
        let mut versions = Vec::new();
        let (mut after_key, mut after_version) = (None, None);
        for _ in 0..pages::MAX_PAGES {
            let page = self
                .clients
                .s3
                .list_object_versions()
                .bucket(bucket)
                .prefix(prefix)
                .set_key_marker(after_key.take())
                .set_version_id_marker(after_version.take())
                .send()
                .await
                .map_err(|e| fail(OPERATION, prefix, e))?;
            for version in page.versions.unwrap_or_default() {
                versions.push(ObjectVersion {
                    key: version.key.unwrap_or_default(),
                    version: version.version_id.unwrap_or_default(),
                    deleted: false,
                    latest: version.is_latest.unwrap_or(false),
                    size: size(version.size),
                });
            }
            for mark in page.delete_markers.unwrap_or_default() {
                versions.push(ObjectVersion {
                    key: mark.key.unwrap_or_default(),
                    version: mark.version_id.unwrap_or_default(),
                    deleted: true,
                    latest: mark.is_latest.unwrap_or(false),
                    size: 0,
                });
            }
            // Versions and marks come in lists of their own; stable, so that each list keeps its order.
            if page.is_truncated != Some(true) {
                versions.sort_by(|a, b| a.key.cmp(&b.key));
                return Ok(versions);
            }
            (after_key, after_version) = (page.next_key_marker, page.next_version_id_marker);
            if after_key.is_none() {
                return Err(own(
                    OPERATION,
                    prefix,
                    ErrorKind::Other,
                    "BadAnswer",
                    "the answer is cut short and does not say where it goes on",
                ));
            }
        }
        Err(pages::too_many(OPERATION, prefix))
    }

    async fn hold(&self, key: &str, on: bool) -> Result<()> {
        const OPERATION: &str = "s3:PutObjectLegalHold";
        let bucket = self.named().ok_or_else(|| no_bucket(OPERATION))?;
        let status =
            if on { ObjectLockLegalHoldStatus::On } else { ObjectLockLegalHoldStatus::Off };
        self.clients
            .s3
            .put_object_legal_hold()
            .bucket(bucket)
            .key(key)
            .legal_hold(ObjectLockLegalHold::builder().status(status).build())
            .send()
            .await
            .map_err(|e| fail(OPERATION, key, e))?;
        Ok(())
    }
}
