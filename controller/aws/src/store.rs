//! The evidence bucket over S3.
//!
//! Purpose: create, read and list objects, and hold them. Touches the one bucket that is configured. Never
//! overwrites and never deletes: an object is written on the condition that its key has none.

use std::{
    fs::File,
    io::{self, Write as _},
    path::Path,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use async_trait::async_trait;
use aws_sdk_s3::{
    primitives::ByteStream,
    types::{ChecksumAlgorithm, ChecksumMode, ObjectLockLegalHold, ObjectLockLegalHoldStatus},
};
use cleanroom_cloud::{CloudError, ErrorKind, Fetched, ObjectVersion, Put, Result, Store};
use cleanroom_contract::Sha256;
use sha2::Digest as _;

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
    /// Whether the bucket has no Object Lock, and refuses objects with a legal hold.
    holds_refused: AtomicBool,
}

impl S3Store {
    /// A store in the bucket that `clients` names. Sends nothing.
    pub(crate) fn new(clients: Arc<Clients>) -> Self {
        Self { clients, holds_refused: AtomicBool::new(false) }
    }

    /// The bucket, where one is configured.
    fn named(&self) -> Option<&str> {
        self.clients.bucket.as_deref()
    }
}

/// An object's newest version, for who is no store.
pub(crate) async fn get(clients: &Clients, key: &str) -> Result<Option<Vec<u8>>> {
    let bucket = clients.bucket.as_deref().ok_or_else(|| no_bucket("s3:GetObject"))?;
    let mut attempt = 1;
    loop {
        match read(clients, bucket, key).await {
            Err(error) if error.code == "CutShort" && attempt < READ_ATTEMPTS => attempt += 1,
            answer => return answer,
        }
    }
}

/// One attempt to read an object.
async fn read(clients: &Clients, bucket: &str, key: &str) -> Result<Option<Vec<u8>>> {
    const OPERATION: &str = "s3:GetObject";
    let answer = clients
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
                // The error itself says no more than that a stream failed.
                let cause = std::error::Error::source(&error);
                let message = cause.map_or_else(|| error.to_string(), ToString::to_string);
                return Err(own(OPERATION, key, ErrorKind::Ambiguous, "CutShort", message));
            }
        }
    }
}

/// A file of this machine that can not be read or written.
fn local(operation: &'static str, key: &str, error: &io::Error) -> CloudError {
    own(operation, key, ErrorKind::Other, "LocalFile", error.to_string())
}

/// An object on its way here, and how far it has come.
struct Download {
    file: Option<File>,
    hasher: sha2::Sha256,
    size: u64,
    /// The version that was begun with: another one's end must not follow this one's beginning.
    tag: Option<String>,
}

impl Download {
    fn take(&mut self, chunk: &[u8]) -> io::Result<()> {
        if let Some(file) = &mut self.file {
            file.write_all(chunk)?;
        }
        self.hasher.update(chunk);
        self.size += chunk.len() as u64;
        Ok(())
    }
}

impl S3Store {
    /// One attempt to read what is left of an object. Whether there is one.
    async fn read_on(&self, key: &str, so_far: &mut Download, most: u64) -> Result<bool> {
        const OPERATION: &str = "s3:GetObject";
        let bucket = self.named().ok_or_else(|| no_bucket(OPERATION))?;
        let rest = (so_far.size > 0).then(|| format!("bytes={}-", so_far.size));
        let answer = self
            .clients
            .s3
            .get_object()
            .bucket(bucket)
            .key(key)
            .set_range(rest)
            .set_if_match(so_far.tag.clone())
            .send()
            .await;
        let mut body = match answer.map_err(|e| fail(OPERATION, key, e)) {
            Ok(answer) => {
                so_far.tag = answer.e_tag;
                answer.body
            }
            Err(error) if error.code == "NoSuchKey" => return Ok(false),
            Err(error) => return Err(error),
        };
        loop {
            match body.try_next().await {
                Ok(None) => return Ok(true),
                Ok(Some(chunk)) if so_far.size + chunk.len() as u64 <= most => {
                    so_far.take(&chunk).map_err(|error| local(OPERATION, key, &error))?;
                }
                Ok(Some(_)) => {
                    let message = format!("it is larger than {most} bytes");
                    return Err(own(OPERATION, key, ErrorKind::Refused, "TooLarge", message));
                }
                Err(error) => {
                    let cause = std::error::Error::source(&error);
                    let message = cause.map_or_else(|| error.to_string(), ToString::to_string);
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

/// Digests what is written to it.
struct Digesting(sha2::Sha256);

impl io::Write for Digesting {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.0.update(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
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
            // Held from its first moment until the case is closed, where the bucket can hold.
            let held = key.starts_with("cases/") && !self.holds_refused.load(Ordering::Relaxed);
            let answer = self
                .clients
                .s3
                .put_object()
                .bucket(bucket)
                .key(key)
                .if_none_match("*")
                .set_object_lock_legal_hold_status(held.then_some(ObjectLockLegalHoldStatus::On))
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
                // A bucket without Object Lock is weak evidence, and better than none; so is an object that the caller may
                // write and not hold.
                _ if held
                    && (error.code == "InvalidRequest" || error.kind == ErrorKind::Denied) =>
                {
                    self.holds_refused.store(true, Ordering::Relaxed);
                }
                _ => return Err(error),
            }
        }
    }

    async fn get(&self, key: &str) -> Result<Option<Vec<u8>>> {
        get(&self.clients, key).await
    }

    async fn download(&self, key: &str, into: Option<&Path>, most: u64) -> Result<Option<Fetched>> {
        let file = into.map(File::create_new).transpose();
        let file = file.map_err(|error| local("s3:GetObject", key, &error))?;
        let hasher = sha2::Sha256::new();
        let mut so_far = Download { file, hasher, size: 0, tag: None };
        let (mut attempt, mut before) = (1, 0);
        loop {
            match self.read_on(key, &mut so_far, most).await {
                // What goes on is no failure, however often it is cut short.
                Err(error) if error.code == "CutShort" && so_far.size > before => {
                    (attempt, before) = (1, so_far.size);
                }
                Err(error) if error.code == "CutShort" && attempt < READ_ATTEMPTS => attempt += 1,
                Err(error) => return Err(error),
                Ok(false) => return Ok(None),
                Ok(true) => break,
            }
        }
        if let Some(file) = &so_far.file {
            file.sync_all().map_err(|error| local("s3:GetObject", key, &error))?;
        }
        let sha256 = Sha256(so_far.hasher.finalize().into());
        Ok(Some(Fetched { size: so_far.size, sha256 }))
    }

    async fn upload(&self, key: &str, from: &Path) -> Result<Put> {
        const OPERATION: &str = "s3:PutObject";
        let bucket = self.named().ok_or_else(|| no_bucket(OPERATION))?;
        let failed = |error| local(OPERATION, key, &error);
        let mut digest = Digesting(sha2::Sha256::new());
        let size = File::open(from)
            .and_then(|mut file| io::copy(&mut file, &mut digest))
            .map_err(failed)?;
        // The service compares it with what arrives.
        let sha256 = aws_smithy_types::base64::encode(digest.0.finalize());
        let body = ByteStream::from_path(from).await;
        let body = body.map_err(|error| failed(io::Error::other(error)))?;
        // At 100 kB a second, and a minute.
        let seconds = 60 + size / 100_000;
        let patient = aws_sdk_s3::config::Config::builder()
            .timeout_config(crate::clients::timeouts(seconds, seconds.saturating_mul(3)));
        let call = self.clients.s3.put_object().bucket(bucket).key(key).if_none_match("*");
        // A bucket with Object Lock wants to be told of the algorithm besides.
        let call = call.checksum_algorithm(ChecksumAlgorithm::Sha256).checksum_sha256(sha256);
        let call = call.body(body).customize().config_override(patient);
        match call.send().await.map_err(|e| fail(OPERATION, key, e)) {
            Ok(_) => Ok(Put::Created),
            Err(error) if error.code == "PreconditionFailed" => Ok(Put::Exists),
            Err(error) => Err(error),
        }
    }

    async fn renew(&self, key: &str, bytes: Vec<u8>) -> Result<()> {
        const OPERATION: &str = "s3:PutObject";
        let bucket = self.named().ok_or_else(|| no_bucket(OPERATION))?;
        if !key.starts_with("artifacts/") {
            let message = "only pointers are renewed, never evidence";
            return Err(own(OPERATION, key, ErrorKind::Refused, "Evidence", message));
        }
        let call = self.clients.s3.put_object().bucket(bucket).key(key).body(bytes.into());
        let call = call.checksum_algorithm(ChecksumAlgorithm::Sha256);
        call.send().await.map_err(|e| fail(OPERATION, key, e))?;
        Ok(())
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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::canned::{Canned, canned};

    /// A store whose writes are answered with these statuses and codes, then with success.
    fn writes(answers: &'static [(u16, &'static str)]) -> (S3Store, Canned) {
        let canned = canned(Some("evidence"), |_, before| match answers.get(before) {
            Some((status, code)) => (*status, format!("<Error><Code>{code}</Code></Error>")),
            None => (200, String::new()),
        });
        (S3Store::new(Arc::clone(&canned.clients)), canned)
    }

    const CONFLICT: (u16, &str) = (409, "ConditionalRequestConflict");
    const EXISTS: (u16, &str) = (412, "PreconditionFailed");

    #[tokio::test]
    async fn a_write_that_meets_another_asks_again_until_one_has_won() {
        for (answers, end) in [
            (&[][..], Put::Created),
            (&[CONFLICT], Put::Created),
            (&[CONFLICT, EXISTS], Put::Exists),
            (&[EXISTS], Put::Exists),
        ] {
            let (store, canned) = writes(answers);
            let put = store.create("claim.json", b"{}".to_vec()).await;
            assert_eq!(put, Ok(end), "{answers:?}");
            assert_eq!(canned.sent().len(), answers.len() + usize::from(end == Put::Created));
            assert!(canned.sent().iter().all(|sent| sent.ends_with("{}")), "the body is whole");
        }
    }

    #[tokio::test]
    async fn a_conflict_without_end_and_a_refusal_are_errors() {
        let (store, canned) = writes(&[CONFLICT; 20]);
        let error = store.create("claim.json", Vec::new()).await.expect_err("never ends");
        assert_eq!((error.kind, canned.sent().len()), (ErrorKind::Conflict, 5));
        let (store, _) = writes(&[(403, "AccessDenied")]);
        let error = store.create("claim.json", Vec::new()).await.expect_err("denied");
        assert_eq!((error.kind, error.resource.as_str()), (ErrorKind::Denied, "claim.json"));
    }

    #[tokio::test]
    async fn without_a_bucket_nothing_is_sent() {
        let canned = canned(None, |_, _| (200, String::new()));
        let store = S3Store::new(Arc::clone(&canned.clients));
        let errors = [
            store.create("k", Vec::new()).await.map(drop).expect_err("no bucket"),
            store.get("k").await.map(drop).expect_err("no bucket"),
            store.list("k", false).await.map(drop).expect_err("no bucket"),
            store.download("k", None, 1).await.map(drop).expect_err("no bucket"),
            store.renew("artifacts/k", Vec::new()).await.expect_err("no bucket"),
            store.versions("k").await.map(drop).expect_err("no bucket"),
            store.hold("k", true).await.expect_err("no bucket"),
        ];
        for error in errors {
            assert_eq!((error.kind, error.code.as_str()), (ErrorKind::Unsupported, "NoBucket"));
            assert!(error.message.contains("--bucket"), "{error}");
        }
        assert_eq!((store.bucket(), canned.sent().len()), ("", 0));
    }

    #[tokio::test]
    async fn an_object_is_digested_as_it_comes_and_no_further_than_allowed() {
        let canned = canned(Some("evidence"), |request, _| match request.contains("/missing") {
            true => (404, "<Error><Code>NoSuchKey</Code></Error>".to_owned()),
            false => (200, "abc".to_owned()),
        });
        let store = S3Store::new(Arc::clone(&canned.clients));
        let folder = tempfile::tempdir().expect("a folder");
        let path = folder.path().join("object");
        let fetched = store.download("cases/c/x", Some(&path), 3).await.expect("it comes");
        let fetched = fetched.expect("it is there");
        // FIPS 180-4, the example of one block.
        let known = "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad";
        assert_eq!((fetched.size, fetched.sha256.to_string().as_str()), (3, known));
        assert_eq!(std::fs::read(&path).expect("the file"), b"abc");
        let error = store.download("cases/c/x", Some(&path), 3).await.expect_err("it is taken");
        assert_eq!(error.code, "LocalFile");
        let error = store.download("cases/c/x", None, 2).await.expect_err("too large");
        assert_eq!((error.kind, error.code.as_str()), (ErrorKind::Refused, "TooLarge"));
        assert_eq!(store.download("missing", None, 2).await, Ok(None));
    }

    #[tokio::test]
    async fn a_file_is_uploaded_once_with_its_digest_and_only_pointers_are_renewed() {
        let canned = canned(Some("evidence"), |_, before| match before {
            0 | 2 => (200, String::new()),
            _ => (412, "<Error><Code>PreconditionFailed</Code></Error>".to_owned()),
        });
        let store = S3Store::new(Arc::clone(&canned.clients));
        let folder = tempfile::tempdir().expect("a folder");
        let path = folder.path().join("agent");
        std::fs::write(&path, b"abc").expect("a file");
        assert_eq!(store.upload("agent/x/cleanroom-agent", &path).await, Ok(Put::Created));
        assert_eq!(store.upload("agent/x/cleanroom-agent", &path).await, Ok(Put::Exists));
        store.renew("artifacts/latest.json", b"{}".to_vec()).await.expect("renewed");
        let error = store.renew("cases/c/x", b"{}".to_vec()).await.expect_err("evidence");
        assert_eq!((error.code.as_str(), canned.sent().len()), ("Evidence", 3));
    }

    #[tokio::test]
    async fn versions_and_marks_come_from_all_pages() {
        let canned = canned(Some("evidence"), |request, _| {
            let page = if request.contains("key-marker=b") {
                "<DeleteMarker><Key>b</Key><VersionId>2</VersionId><IsLatest>true</IsLatest></DeleteMarker>\
                 <Version><Key>b</Key><VersionId>1</VersionId><IsLatest>false</IsLatest><Size>7</Size></Version>"
            } else {
                "<IsTruncated>true</IsTruncated><NextKeyMarker>b</NextKeyMarker>\
                 <NextVersionIdMarker>3</NextVersionIdMarker>\
                 <Version><Key>a</Key><VersionId>1</VersionId><IsLatest>true</IsLatest><Size>5</Size></Version>"
            };
            (200, format!("<ListVersionsResult>{page}</ListVersionsResult>"))
        });
        let store = S3Store::new(Arc::clone(&canned.clients));
        let versions = store.versions("").await.expect("two pages");
        let told: Vec<_> = versions
            .iter()
            .map(|v| (v.key.as_str(), v.version.as_str(), v.deleted, v.latest, v.size))
            .collect();
        let expected =
            [("a", "1", false, true, 5), ("b", "1", false, false, 7), ("b", "2", true, true, 0)];
        assert_eq!(told, expected);
        assert!(canned.sent()[1].contains("version-id-marker=3"));
    }
}
