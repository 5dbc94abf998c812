//! Work orders: where the first one is, and whether one can be carried out.
//!
//! Purpose: the order's bytes from the instance's user data, a file or the bucket; their digest; every field that is used
//! as a name. Touches the metadata service, a file and the bucket, for reading. Never carries anything out.

use std::{collections::HashSet, fs, path::Path};

use cleanroom_agent_aws::{Aws, CloudError, ErrorKind, metadata::Metadata};
use cleanroom_contract::{Room, ScanId, Sha256, WorkOrder, order_key, printable};
use sha2::Digest as _;

use crate::{bundle::folder::is_plain, cli::OrderPlace};

/// The largest order; 24 volumes and ten thousand rule files are far below it.
const MAX_ORDER: usize = 4 << 20;
/// The most volumes of an order.
const MAX_VOLUMES: usize = 24;
/// The most files of an order.
const MAX_FILES: usize = 10_000;

/// Why there is no order to carry out.
#[derive(Debug, thiserror::Error)]
pub(super) enum OrderError {
    /// It can never be carried out here.
    #[error("{0}")]
    Unusable(String),
    /// It can not be had now.
    #[error("get the work order")]
    Cloud(#[source] CloudError),
}

impl From<CloudError> for OrderError {
    fn from(error: CloudError) -> Self {
        // What a new role may is known everywhere some seconds later only.
        if error.is_transient() || error.kind == ErrorKind::Denied {
            Self::Cloud(error)
        } else {
            Self::Unusable(error.to_string())
        }
    }
}

/// An order, as it was given.
#[derive(Clone, Debug)]
pub(super) struct Taken {
    pub(super) order: WorkOrder,
    pub(super) sha256: Sha256,
}

/// The room's own document, from the instance's user data.
pub(super) async fn document(metadata: &Metadata) -> Result<Room, OrderError> {
    let text = metadata.user_data().await?;
    Room::in_user_data(&text).map_err(|why| OrderError::Unusable(format!("the user data: {why}")))
}

/// The order that is named, or that the room's document names.
pub(super) async fn first(
    aws: &Aws,
    place: Option<&OrderPlace>,
    room: Option<&Room>,
) -> Result<Taken, OrderError> {
    let (bytes, expected) = match (place, room) {
        (Some(OrderPlace::File(path)), _) => (read(path)?, None),
        (Some(OrderPlace::Object { bucket, key, sha256 }), _) => {
            (get(aws, bucket, key).await?, *sha256)
        }
        (None, Some(room)) => {
            (get(aws, &room.bucket, &room.order.key).await?, Some(room.order.sha256))
        }
        (None, None) => return Err(OrderError::Unusable("no order is named".to_owned())),
    };
    parse(&bytes, expected, room)
}

/// An order from the bucket, by its name.
pub(super) async fn named(
    aws: &Aws,
    like: &WorkOrder,
    scan: &ScanId,
    room: Option<&Room>,
) -> Result<Taken, OrderError> {
    let key = order_key(&like.case, like.room, scan);
    let bytes = get(aws, &like.publish.bucket, &key).await?;
    let taken = parse(&bytes, None, room)?;
    let order = &taken.order;
    let fits = order.case == like.case
        && order.room == like.room
        && order.scan == *scan
        && order.publish.bucket == like.publish.bucket;
    match fits {
        true => Ok(taken),
        false => Err(OrderError::Unusable(format!(
            "{key} is the order of scan {} of case {}, to be published in {}",
            order.scan,
            order.case,
            printable(&order.publish.bucket)
        ))),
    }
}

fn read(path: &Path) -> Result<Vec<u8>, OrderError> {
    let shown = printable(&path.to_string_lossy());
    match fs::read(path) {
        Ok(bytes) if bytes.len() <= MAX_ORDER => Ok(bytes),
        Ok(_) => Err(OrderError::Unusable(format!("{shown} is larger than any order"))),
        Err(error) => Err(OrderError::Unusable(format!("read {shown}: {error}"))),
    }
}

async fn get(aws: &Aws, bucket: &str, key: &str) -> Result<Vec<u8>, OrderError> {
    match aws.brief_store(bucket).get(key, MAX_ORDER).await? {
        Some(bytes) => Ok(bytes),
        None => Err(OrderError::Unusable(format!("there is no s3://{bucket}/{}", printable(key)))),
    }
}

/// Reads an order, where its bytes are those that were meant.
fn parse(bytes: &[u8], expected: Option<Sha256>, room: Option<&Room>) -> Result<Taken, OrderError> {
    let sha256 = Sha256(sha2::Sha256::digest(bytes).into());
    if let Some(expected) = expected.filter(|expected| *expected != sha256) {
        let why = format!("the work order's SHA-256 is {sha256}, and {expected} was expected");
        return Err(OrderError::Unusable(why));
    }
    let order: WorkOrder = serde_json::from_slice(bytes)
        .map_err(|error| OrderError::Unusable(format!("read the work order: {error}")))?;
    match fault(&order, room) {
        None => Ok(Taken { order, sha256 }),
        Some(why) => Err(OrderError::Unusable(format!("the work order {why}"))),
    }
}

/// What keeps an order from being carried out.
fn fault(order: &WorkOrder, room: Option<&Room>) -> Option<String> {
    let volumes = order.volumes.len();
    if !(1..=MAX_VOLUMES).contains(&volumes) {
        return Some(format!("names {volumes} volumes: 1 to {MAX_VOLUMES} can be attached"));
    }
    let mut known = HashSet::new();
    if let Some(twice) = order.volumes.iter().find(|volume| !known.insert(&volume.source)) {
        return Some(format!("names {} twice", twice.source));
    }
    let mut files = order.rules.iter().chain(&order.indicators);
    if order.rules.len() + order.indicators.len() > MAX_FILES {
        return Some(format!("names more than {MAX_FILES} files"));
    }
    if let Some(file) = files.find(|file| !is_plain(&file.name)) {
        let name = printable(&file.name.chars().take(80).collect::<String>());
        return Some(format!(
            "names a file {name:?}: letters, digits, dots and hyphens are allowed"
        ));
    }
    let room = room?;
    if order.case != room.case {
        return Some(format!("is of case {}, and this room of {}", order.case, room.case));
    }
    (order.publish.bucket != room.bucket)
        .then(|| "publishes in another bucket than the room's".to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    const ORDER: &str = r#"{"v":1,"case":"case-1","instance":"i-0123456789abcdef0",
"scan":"20260102T030405Z-0123abcd","volumes":[{"source":"vol-0123456789abcdef0",
"snapshot":"snap-0123456789abcdef0","gib":8,"role":"root","device":"/dev/xvda"}],"rules":[],"indicators":[],
"limits":{"attach_seconds":1,"replay":true},"publish":{"bucket":"evidence"}}"#;

    fn why(bytes: &str, expected: Option<Sha256>) -> String {
        match parse(bytes.as_bytes(), expected, None) {
            Ok(_) => String::new(),
            Err(error) => error.to_string(),
        }
    }

    #[test]
    fn an_order_that_can_not_be_carried_out_says_why() {
        assert_eq!(why(ORDER, None), "");
        let digest = Sha256(sha2::Sha256::digest(ORDER).into());
        assert_eq!(why(ORDER, Some(digest)), "");
        assert!(why(ORDER, Some(Sha256([0; 32]))).contains("was expected"));
        let rule = |name: &str| {
            let file = format!(r#"[{{"name":{name:?},"key":"k","sha256":"{digest}"}}]"#);
            ORDER.replace(r#""rules":[]"#, &format!(r#""rules":{file}"#))
        };
        assert_eq!(why(&rule("webshells.yar"), None), "");
        for (bad, word) in [
            (rule("../x.yar"), "names a file"),
            (rule(""), "names a file"),
            (ORDER.replace(r#""v":1"#, r#""v":2"#), "read the work order"),
            (ORDER.replace("20260102T030405Z-0123abcd", "../x"), "read the work order"),
            (String::new(), "read the work order"),
        ] {
            assert!(why(&bad, None).contains(word), "{bad}: {}", why(&bad, None));
        }
        let from = ORDER.find('[').unwrap();
        let to = ORDER.find(']').unwrap();
        let (volume, rest) = (&ORDER[from + 1..to], &ORDER[to..]);
        let none = format!("{}{rest}", &ORDER[..=from]);
        assert!(why(&none, None).contains("0 volumes"));
        let twice = format!("{}{volume},{volume}{rest}", &ORDER[..=from]);
        assert!(why(&twice, None).contains("twice"));
    }
}
