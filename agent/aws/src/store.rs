//! The evidence bucket: small objects.
//!
//! Purpose: read, list and create. Touches one bucket. Never overwrites and never deletes: an object is written on the
//! condition that its key has none. Files of any size are in [`upload`](crate::upload).

use std::time::Duration;

use aws_sdk_s3::{
    Client,
    primitives::ByteStream,
    types::{ChecksumAlgorithm, ChecksumMode},
};
use base64::{Engine as _, engine::general_purpose::STANDARD};
use sha2::{Digest as _, Sha256};

use crate::error::{CloudError, ErrorKind, Result, fail, own};

/// How often a write is tried that meets another write of the same key in flight.
const WRITE_ATTEMPTS: u32 = 5;

/// The pause after the first such meeting; each later one is twice as long.
const WRITE_PAUSE: Duration = Duration::from_millis(100);

/// How often a body is asked for whose bytes stop coming: the SDK repeats requests, not half-read bodies.
const READ_ATTEMPTS: u32 = 4;

/// The most pages of a listing: a million keys.
const MAX_PAGES: usize = 1000;

/// How a conditional write ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Put {
    /// It is there now, by this call.
    Created,
    /// Something was there already.
    Exists,
}

/// A bucket.
#[derive(Clone, Debug)]
pub struct Store {
    pub(crate) s3: Client,
    pub(crate) bucket: String,
}

impl Store {
    pub(crate) fn new(s3: Client, bucket: &str) -> Self {
        Self { s3, bucket: bucket.to_owned() }
    }

    /// The bucket's name.
    #[must_use]
    pub fn bucket(&self) -> &str {
        &self.bucket
    }

    /// An object of at most `limit` bytes; `None` where there is none.
    ///
    /// # Errors
    /// It can not be read, or is larger.
    pub async fn get(&self, key: &str, limit: usize) -> Result<Option<Vec<u8>>> {
        let mut attempt = 1;
        loop {
            match self.read(key, limit).await {
                Err(error) if error.code == "CutShort" && attempt < READ_ATTEMPTS => attempt += 1,
                answer => return answer,
            }
        }
    }

    /// One attempt to read an object.
    async fn read(&self, key: &str, limit: usize) -> Result<Option<Vec<u8>>> {
        const OPERATION: &str = "s3:GetObject";
        let call = self.s3.get_object().bucket(&self.bucket).key(key);
        let answer = call.checksum_mode(ChecksumMode::Enabled).send().await;
        let mut body = match answer.map_err(|e| fail(OPERATION, key, e)) {
            Ok(answer) => answer.body,
            Err(error) if error.code == "NoSuchKey" => return Ok(None),
            Err(error) => return Err(error),
        };
        let mut bytes = Vec::new();
        loop {
            match body.try_next().await {
                Ok(None) => return Ok(Some(bytes)),
                Ok(Some(chunk)) if bytes.len() + chunk.len() <= limit => {
                    bytes.extend_from_slice(&chunk);
                }
                Ok(Some(_)) => {
                    let message = format!("it is larger than {limit} bytes");
                    return Err(own(OPERATION, key, ErrorKind::Refused, "TooLarge", message));
                }
                Err(error) => return Err(cut_short(OPERATION, key, &error)),
            }
        }
    }

    /// The keys below a prefix that come after `after`, sorted by their bytes.
    ///
    /// # Errors
    /// They can not be listed, or go on without an end.
    pub async fn list(&self, prefix: &str, after: Option<&str>) -> Result<Vec<String>> {
        const OPERATION: &str = "s3:ListObjectsV2";
        let call = self.s3.list_objects_v2().bucket(&self.bucket).prefix(prefix);
        let call = call.set_start_after(after.map(str::to_owned));
        let mut pages = call.into_paginator().send();
        let mut keys = Vec::new();
        let mut count = 0;
        while let Some(page) = pages.next().await {
            count += 1;
            if count > MAX_PAGES {
                let message = format!("the answer goes on after {MAX_PAGES} pages");
                return Err(own(OPERATION, prefix, ErrorKind::Other, "TooManyPages", message));
            }
            let objects = page.map_err(|e| fail(OPERATION, prefix, e))?.contents;
            keys.extend(objects.unwrap_or_default().into_iter().filter_map(|o| o.key));
        }
        // Not every service that speaks S3 heeds where to start.
        keys.retain(|key| after.is_none_or(|after| key.as_str() > after));
        keys.sort_unstable();
        Ok(keys)
    }

    /// Creates a small object, with a SHA-256 checksum that the service verifies.
    ///
    /// # Errors
    /// It can not be written.
    pub async fn create(&self, key: &str, bytes: Vec<u8>) -> Result<Put> {
        const OPERATION: &str = "s3:PutObject";
        let checksum = STANDARD.encode(Sha256::digest(&bytes));
        // Shared by the attempts, not copied for each.
        let body = ByteStream::from(bytes).into_inner();
        let mut pause = WRITE_PAUSE;
        let mut attempt = 1;
        loop {
            let Some(body) = body.try_clone() else {
                return Err(own(OPERATION, key, ErrorKind::Other, "NotSent", "the body is gone"));
            };
            let call = self.s3.put_object().bucket(&self.bucket).key(key).if_none_match("*");
            let call = call
                .checksum_algorithm(ChecksumAlgorithm::Sha256)
                .checksum_sha256(&checksum)
                .body(ByteStream::new(body));
            let error = match call.send().await {
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
}

/// The error of a body whose bytes stopped coming.
pub(crate) fn cut_short(
    operation: &'static str,
    key: &str,
    error: &aws_sdk_s3::primitives::ByteStreamError,
) -> CloudError {
    // The error itself says no more than that a stream failed.
    let cause = std::error::Error::source(error);
    let message = cause.map_or_else(|| error.to_string(), ToString::to_string);
    own(operation, key, ErrorKind::Ambiguous, "CutShort", message)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::tests::{Answer, canned};

    fn answer(answers: &'static [(u16, &'static str)], before: usize) -> Answer {
        match answers.get(before) {
            Some((status, code)) => {
                (*status, Vec::new(), format!("<Error><Code>{code}</Code></Error>"))
            }
            None => (200, Vec::new(), String::new()),
        }
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
            let (aws, sent) = canned(move |_, before| answer(answers, before));
            let put = aws.store("evidence").create("k", b"{}".to_vec()).await;
            assert_eq!(put, Ok(end), "{answers:?}");
            let sent = sent.lock().expect("no test panics here");
            assert!(sent.iter().all(|sent| sent.ends_with("{}")), "the body is whole");
        }
        let (aws, sent) = canned(|_, before| answer(&[CONFLICT; 20], before));
        let error = aws.store("evidence").create("k", Vec::new()).await.expect_err("no end");
        assert_eq!(error.kind, ErrorKind::Conflict);
        assert_eq!(sent.lock().expect("no test panics here").len(), 5);
    }

    #[tokio::test]
    async fn what_is_too_large_is_refused() {
        let (aws, _) = canned(|_, _| (200, Vec::new(), "12345".to_owned()));
        let store = aws.store("evidence");
        assert_eq!(store.get("k", 5).await, Ok(Some(b"12345".to_vec())));
        assert_eq!(store.get("k", 4).await.expect_err("too large").code, "TooLarge");
    }
}
