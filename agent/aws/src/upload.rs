//! The evidence bucket: files of any size.
//!
//! Purpose: one file becomes one object, whole or not at all. Small ones in one request, larger ones in parts that the
//! service checks one by one (SHA-256), several at once; an upload that was interrupted goes on where it stopped. Touches
//! one bucket and the file it is given. Never overwrites: an object that is there already counts as done where it is the
//! same, and is an error where it is not. Never gives an upload up either, which would take a right to delete: the bucket's
//! lifecycle removes parts that nobody puts together. Never holds more than a few parts in memory.
//!
//! S3 has no SHA-256 over the whole of an object that came in parts, only one over the parts' digests (S3 user guide,
//! "Checking object integrity"). The file's own digest is therefore compared while it is read, before the object exists.

use std::{fs::File, io, os::unix::fs::FileExt as _};

use aws_sdk_s3::{
    primitives::ByteStream,
    types::{ChecksumAlgorithm, ChecksumMode, CompletedMultipartUpload, CompletedPart},
};
use base64::{Engine as _, engine::general_purpose::STANDARD};
use cleanroom_contract::Sha256;
use sha2::Digest as _;
use tokio::task::JoinSet;

use crate::{
    error::{CloudError, ErrorKind, fail, own},
    store::{Put, Store, cut_short},
};

/// Files up to this size go in one request.
const WHOLE: u64 = 16 << 20;

/// The least size of a part; S3 takes no less than 5 MiB.
const PART: u64 = 8 << 20;

/// The most parts that we make; S3 takes 10,000.
const MAX_PARTS: u64 = 9_000;

/// Parts that are on their way at once.
const IN_FLIGHT: usize = 4;

/// A file that becomes an object.
#[derive(Debug)]
pub struct Source<'f> {
    /// The object's key.
    pub key: &'f str,
    /// The file.
    pub file: &'f File,
    /// Its size in bytes.
    pub size: u64,
    /// Of its bytes.
    pub sha256: Sha256,
}

/// Why a file did not become an object.
#[derive(Debug, thiserror::Error)]
pub enum UploadError {
    /// A call failed.
    #[error(transparent)]
    Cloud(#[from] CloudError),
    /// The file can not be read.
    #[error("read what is to become {key}")]
    Read {
        /// The object's key.
        key: String,
        /// Why not.
        source: io::Error,
    },
    /// The file is not what it was.
    #[error("what is to become {key} has changed since it was sealed")]
    Changed {
        /// The object's key.
        key: String,
    },
    /// Something else is there.
    #[error("{key} is there already, and is something else")]
    Taken {
        /// The object's key.
        key: String,
    },
}

impl UploadError {
    /// Whether trying again may succeed with nothing else changed.
    #[must_use]
    pub fn is_transient(&self) -> bool {
        matches!(self, Self::Cloud(error) if error.is_transient())
    }
}

/// A part as the service has it.
#[derive(Clone, Debug)]
struct Part {
    number: i32,
    size: u64,
    checksum: String,
    tag: String,
}

impl Part {
    fn completed(&self) -> CompletedPart {
        CompletedPart::builder()
            .part_number(self.number)
            .e_tag(&self.tag)
            .checksum_sha256(&self.checksum)
            .build()
    }
}

/// The size of the parts of a file: the same each time, so that an upload can go on.
fn part_size(size: u64) -> u64 {
    size.div_ceil(MAX_PARTS).max(PART).next_multiple_of(1 << 20)
}

/// Reads a part of a file.
fn read_part(source: &Source<'_>, offset: u64, length: u64) -> Result<Vec<u8>, UploadError> {
    let failed =
        |source_error| UploadError::Read { key: source.key.to_owned(), source: source_error };
    let mut bytes = vec![0; usize::try_from(length).map_err(|e| failed(io::Error::other(e)))?];
    match source.file.read_exact_at(&mut bytes, offset) {
        Ok(()) => Ok(bytes),
        Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => Err(changed(source)),
        Err(error) => Err(failed(error)),
    }
}

fn changed(source: &Source<'_>) -> UploadError {
    UploadError::Changed { key: source.key.to_owned() }
}

impl Store {
    /// Makes an object of a file. `begun` is the id of an upload of this very file that was interrupted; `note` is told
    /// the id of the one that is made, so that it can be gone on with.
    ///
    /// # Errors
    /// [`UploadError`]; a transient one is worth another try, with the last id that was noted.
    pub async fn upload(
        &self,
        source: &Source<'_>,
        begun: Option<&str>,
        note: &mut (dyn FnMut(&str) + Send),
    ) -> Result<Put, UploadError> {
        if source.size <= WHOLE {
            return self.upload_whole(source).await;
        }
        let known = match begun {
            Some(id) => self.parts_of(source.key, id).await?.map(|parts| (id.to_owned(), parts)),
            None => None,
        };
        let (id, have) = match known {
            Some(known) => known,
            // Gigabytes are not sent to learn at their end that they are there already.
            None if self.is_there_already(source).await? => return Ok(Put::Exists),
            None => (self.begin(source.key).await?, Vec::new()),
        };
        note(&id);
        let parts = self.send_parts(source, &id, have).await?;
        self.complete(source, &id, &parts).await
    }

    async fn upload_whole(&self, source: &Source<'_>) -> Result<Put, UploadError> {
        let bytes = read_part(source, 0, source.size)?;
        if sha2::Sha256::digest(&bytes)[..] != source.sha256.0 {
            return Err(changed(source));
        }
        match self.create(source.key, bytes).await? {
            Put::Created => Ok(Put::Created),
            Put::Exists => self.same_or_taken(source, None).await,
        }
    }

    /// Whether the object is there before anything is sent, as far as that can be seen.
    async fn is_there_already(&self, source: &Source<'_>) -> Result<bool, UploadError> {
        match self.is_there(source, None).await {
            // Without the right to list, a key that has no object is forbidden and not missing.
            Err(UploadError::Cloud(error)) if error.kind == ErrorKind::Denied => Ok(false),
            answer => answer,
        }
    }

    /// What is there already is the same, or is in the way.
    async fn same_or_taken(
        &self,
        source: &Source<'_>,
        composite: Option<&str>,
    ) -> Result<Put, UploadError> {
        match self.is_there(source, composite).await? {
            true => Ok(Put::Exists),
            false => Err(UploadError::Taken { key: source.key.to_owned() }),
        }
    }

    /// Whether the object is there: by its size and the checksum that the service gives, else by its bytes.
    /// `composite` is the checksum over the parts' digests.
    async fn is_there(
        &self,
        source: &Source<'_>,
        composite: Option<&str>,
    ) -> Result<bool, UploadError> {
        let call = self.s3.head_object().bucket(&self.bucket).key(source.key);
        let answer = call.checksum_mode(ChecksumMode::Enabled).send().await;
        let head = match answer.map_err(|e| fail("s3:HeadObject", source.key, e)) {
            Ok(head) => head,
            Err(error) if error.kind == ErrorKind::NotFound => return Ok(false),
            Err(error) => return Err(error.into()),
        };
        if head.content_length.and_then(|length| u64::try_from(length).ok()) != Some(source.size) {
            return Err(UploadError::Taken { key: source.key.to_owned() });
        }
        let whole = STANDARD.encode(source.sha256.0);
        match head.checksum_sha256 {
            Some(checksum) if checksum == whole => Ok(true),
            Some(checksum) if composite.is_some_and(|own| own == checksum) => Ok(true),
            _ if self.digest_of(source.key).await? == source.sha256 => Ok(true),
            _ => Err(UploadError::Taken { key: source.key.to_owned() }),
        }
    }

    /// SHA-256 of an object's bytes.
    async fn digest_of(&self, key: &str) -> Result<Sha256, CloudError> {
        const OPERATION: &str = "s3:GetObject";
        let call = self.s3.get_object().bucket(&self.bucket).key(key);
        let mut body = call.send().await.map_err(|e| fail(OPERATION, key, e))?.body;
        let mut digest = sha2::Sha256::new();
        while let Some(chunk) =
            body.try_next().await.map_err(|error| cut_short(OPERATION, key, &error))?
        {
            digest.update(&chunk);
        }
        Ok(Sha256(digest.finalize().into()))
    }

    async fn begin(&self, key: &str) -> Result<String, CloudError> {
        const OPERATION: &str = "s3:CreateMultipartUpload";
        let call = self.s3.create_multipart_upload().bucket(&self.bucket).key(key);
        let answer = call.checksum_algorithm(ChecksumAlgorithm::Sha256).send().await;
        let id = answer.map_err(|e| fail(OPERATION, key, e))?.upload_id;
        id.ok_or_else(|| own(OPERATION, key, ErrorKind::Other, "BadAnswer", "it names no upload"))
    }

    /// The parts that an interrupted upload has; `None` where there is no such upload any more.
    async fn parts_of(&self, key: &str, id: &str) -> Result<Option<Vec<Part>>, CloudError> {
        let call = self.s3.list_parts().bucket(&self.bucket).key(key).upload_id(id);
        let mut pages = call.into_paginator().send();
        let mut parts = Vec::new();
        while let Some(page) = pages.next().await {
            let page = match page.map_err(|e| fail("s3:ListParts", key, e)) {
                Ok(page) => page,
                Err(error) if error.kind == ErrorKind::NotFound => return Ok(None),
                // Who may not see the parts sends them again, which changes nothing.
                Err(error) if error.kind == ErrorKind::Denied => break,
                Err(error) => return Err(error),
            };
            for part in page.parts.unwrap_or_default() {
                let size = part.size.and_then(|size| u64::try_from(size).ok());
                if let (Some(number), Some(size), Some(checksum), Some(tag)) =
                    (part.part_number, size, part.checksum_sha256, part.e_tag)
                {
                    parts.push(Part { number, size, checksum, tag });
                }
            }
        }
        Ok(Some(parts))
    }

    /// Sends the parts that the service does not have yet; all of them, in order.
    async fn send_parts(
        &self,
        source: &Source<'_>,
        id: &str,
        have: Vec<Part>,
    ) -> Result<Vec<Part>, UploadError> {
        let size = part_size(source.size);
        let mut whole = sha2::Sha256::new();
        let mut done = Vec::new();
        let mut under_way = JoinSet::new();
        for (number, offset) in (1..).zip((0..source.size).step_by(step(size))) {
            let bytes = read_part(source, offset, size.min(source.size - offset))?;
            whole.update(&bytes);
            let checksum = STANDARD.encode(sha2::Sha256::digest(&bytes));
            let same = |part: &&Part| {
                part.number == number
                    && part.size == bytes.len() as u64
                    && part.checksum == checksum
            };
            if let Some(part) = have.iter().find(same) {
                done.push(part.clone());
                continue;
            }
            if under_way.len() >= IN_FLIGHT {
                done.extend(joined(under_way.join_next().await)?);
            }
            let (store, key, id) = (self.clone(), source.key.to_owned(), id.to_owned());
            let part = Part { number, size: bytes.len() as u64, checksum, tag: String::new() };
            under_way.spawn(async move { store.send_part(&key, &id, part, bytes).await });
        }
        while let Some(part) = joined(under_way.join_next().await)? {
            done.push(part);
        }
        if whole.finalize()[..] != source.sha256.0 {
            return Err(changed(source));
        }
        done.sort_by_key(|part| part.number);
        Ok(done)
    }

    async fn send_part(
        &self,
        key: &str,
        id: &str,
        mut part: Part,
        bytes: Vec<u8>,
    ) -> Result<Part, CloudError> {
        const OPERATION: &str = "s3:UploadPart";
        let call = self.s3.upload_part().bucket(&self.bucket).key(key).upload_id(id);
        let answer = call
            .part_number(part.number)
            .checksum_algorithm(ChecksumAlgorithm::Sha256)
            .checksum_sha256(&part.checksum)
            .body(ByteStream::from(bytes))
            .send()
            .await;
        let tag = answer.map_err(|e| fail(OPERATION, key, e))?.e_tag;
        part.tag = tag.ok_or_else(|| {
            own(OPERATION, key, ErrorKind::Other, "BadAnswer", "it has no entity tag")
        })?;
        Ok(part)
    }

    /// Puts the parts together, where the key has no object.
    async fn complete(
        &self,
        source: &Source<'_>,
        id: &str,
        parts: &[Part],
    ) -> Result<Put, UploadError> {
        let all = CompletedMultipartUpload::builder()
            .set_parts(Some(parts.iter().map(Part::completed).collect()))
            .build();
        let call = self.s3.complete_multipart_upload().bucket(&self.bucket).key(source.key);
        let call = call.upload_id(id).multipart_upload(all).if_none_match("*");
        let error = match call.send().await {
            Ok(_) => return Ok(Put::Created),
            Err(error) => fail("s3:CompleteMultipartUpload", source.key, error),
        };
        let composite = composite(parts);
        match error.code.as_str() {
            "PreconditionFailed" => self.same_or_taken(source, Some(&composite)).await,
            // It was put together before, and the answer was lost.
            "NoSuchUpload" if self.is_there(source, Some(&composite)).await? => Ok(Put::Exists),
            _ => Err(error.into()),
        }
    }
}

/// A part that has arrived; `None` where none is under way.
fn joined(
    ended: Option<Result<Result<Part, CloudError>, tokio::task::JoinError>>,
) -> Result<Option<Part>, CloudError> {
    match ended {
        None => Ok(None),
        Some(Ok(part)) => part.map(Some),
        Some(Err(error)) => {
            Err(own("s3:UploadPart", "", ErrorKind::Other, "NotSent", error.to_string()))
        }
    }
}

/// A part's size as a step; on a machine of 32 bits no file is larger.
fn step(size: u64) -> usize {
    usize::try_from(size).unwrap_or(usize::MAX)
}

/// The checksum of an object in parts: the digest of the parts' digests, and their number.
fn composite(parts: &[Part]) -> String {
    let mut digest = sha2::Sha256::new();
    for part in parts {
        // We made it ourselves.
        digest.update(STANDARD.decode(&part.checksum).unwrap_or_default());
    }
    format!("{}-{}", STANDARD.encode(digest.finalize()), parts.len())
}

#[cfg(test)]
mod tests {
    use std::io::Write as _;

    use super::*;
    use crate::tests::{Answer, canned};

    #[test]
    fn no_file_has_more_parts_than_the_service_takes() {
        for size in [WHOLE + 1, 1 << 30, 1 << 40, 5 << 40] {
            let part = part_size(size);
            assert!(size.div_ceil(part) <= MAX_PARTS, "{size}");
            assert!((PART..=5 << 30).contains(&part), "{size}: {part}");
        }
        assert_eq!(part_size(WHOLE + 1), PART);
    }

    /// A file of these bytes, and its digest.
    fn file(bytes: &[u8]) -> (File, Sha256) {
        let mut file = tempfile::tempfile().expect("a file");
        file.write_all(bytes).expect("room for it");
        (file, Sha256(sha2::Sha256::digest(bytes).into()))
    }

    fn exists() -> Answer {
        (412, Vec::new(), "<Error><Code>PreconditionFailed</Code></Error>".to_owned())
    }

    #[tokio::test]
    async fn what_is_there_already_is_done_or_in_the_way() {
        let (file, sha256) = file(b"content");
        let same = STANDARD.encode(sha256.0);
        let other = STANDARD.encode([0; 32]);
        for (length, checksum, body, done) in [
            ("7", Some(same), "", true),
            ("7", None, "content", true),
            ("7", Some(other), "CONTENT", false),
            ("7", None, "CONTENT", false),
            ("8", None, "", false),
        ] {
            let (aws, _) = canned(move |request, _| {
                let mut headers = vec![("content-length", length.to_owned())];
                headers.extend(checksum.clone().map(|c| ("x-amz-checksum-sha256", c)));
                match request.split(' ').next() {
                    Some("PUT") => exists(),
                    Some("HEAD") => (200, headers, String::new()),
                    _ => (200, Vec::new(), body.to_owned()),
                }
            });
            let source = Source { key: "k", file: &file, size: 7, sha256 };
            let put = aws.store("evidence").upload(&source, None, &mut |_| {}).await;
            match put {
                Ok(put) => assert!(done && put == Put::Exists, "{length} {body}"),
                Err(error) => {
                    assert!(!done && matches!(error, UploadError::Taken { .. }), "{error}");
                }
            }
        }
    }

    #[tokio::test]
    async fn a_file_that_changed_is_not_published() {
        let (file, _) = file(b"content");
        let (_, sha256) = self::file(b"CONTENT");
        let (aws, sent) = canned(|_, _| (200, Vec::new(), String::new()));
        let source = Source { key: "k", file: &file, size: 7, sha256 };
        let put = aws.store("evidence").upload(&source, None, &mut |_| {}).await;
        assert!(matches!(put, Err(UploadError::Changed { .. })), "{put:?}");
        assert!(sent.lock().expect("no test panics here").is_empty());
    }
}
