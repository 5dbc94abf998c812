//! What a room is made with beside the evidence: the agent, the template, the machine image.
//!
//! Programs and rules are kept in the bucket under their digest, created once. Only the pointer to the newest is renewed.

use cleanroom_cloud::{CloudError, ErrorKind, Inventory, Put, Result, Store};
use cleanroom_contract::{OrderedFile, Sha256};

use crate::{
    engine::again,
    journal::digest,
    room::{AGENT, Given, LATEST, Latest, RULES, RoomPolicy},
};

/// Amazon Linux 2023, by its name: the kernels differ, the minimal ones lack the Session Manager.
const IMAGE_NAME: &str = "al2023-ami-2023*-kernel-*-x86_64";
/// Its owner.
const IMAGE_OWNER: &str = "amazon";

/// How long a look at an artifact may take.
pub(crate) const PATIENCE: std::time::Duration = std::time::Duration::from_secs(60);

/// A write that can be repeated harmlessly, a few times while that may help. It may take its time: files may be large.
pub(crate) async fn patiently<T, F: Future<Output = Result<T>>>(
    call: impl Fn() -> F,
) -> std::result::Result<T, String> {
    let mut pause = std::time::Duration::from_millis(200);
    for _ in 0..4 {
        match call().await {
            Err(error) if error.is_transient() => tokio::time::sleep(pause).await,
            ended => return ended.map_err(|error| error.to_string()),
        }
        pause *= 2;
    }
    call().await.map_err(|error| error.to_string())
}

/// The newest artifacts; none where nothing was deployed.
///
/// # Errors
/// When the store does not answer, or what is there names no artifacts.
pub async fn latest(store: &dyn Store) -> std::result::Result<Option<Latest>, String> {
    let Some(bytes) = again(PATIENCE, || store.get(LATEST)).await? else { return Ok(None) };
    let latest: Latest = serde_json::from_slice(&bytes)
        .map_err(|error| format!("{LATEST} can not be read: {error}"))?;
    // A key that is not the digest's own would let who may write the pointer name anything.
    let odd = latest.files().find(|(folder, f)| f.key != key(folder, &f.sha256, &f.name));
    if let Some((_, file)) = odd {
        return Err(format!("{LATEST} names {:?} for a file of another key", file.key));
    }
    Ok(Some(latest))
}

/// The agent and the tools that a room gets. None where there is no agent.
///
/// # Errors
/// As [`latest`].
pub async fn chosen(
    store: &dyn Store,
    room: &RoomPolicy,
) -> std::result::Result<Option<(OrderedFile, Option<OrderedFile>)>, String> {
    let latest = latest(store).await;
    if let Some((key, sha256)) = &room.agent {
        let agent = OrderedFile { name: AGENT.to_owned(), key: key.clone(), sha256: *sha256 };
        // The tools are a convenience: an odd pointer does not keep from them who names the agent.
        return Ok(Some((agent, latest.ok().flatten().and_then(|l| l.tools))));
    }
    Ok(latest?.map(|latest| (latest.agent, latest.tools)))
}

/// What a scan looks for beside what the agent knows by itself.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Sought {
    /// YARA rules, in the order of their names.
    pub rules: Vec<OrderedFile>,
    /// Indicator lists, in the order of their names.
    pub indicators: Vec<OrderedFile>,
}

/// What a scan that is ordered now looks for: the files that people gave, and of a kind of which they gave none, those that
/// were deployed. Writes nothing.
///
/// # Errors
/// As [`latest`].
pub async fn sought(store: &dyn Store, room: &RoomPolicy) -> std::result::Result<Sought, String> {
    let (mut rules, mut indicators) = (named(&room.rules), named(&room.indicators));
    if rules.is_empty() || indicators.is_empty() {
        let deployed = latest(store).await?;
        let of = |of: fn(Latest) -> Vec<OrderedFile>| deployed.clone().map(of).unwrap_or_default();
        if rules.is_empty() {
            rules = of(|latest| latest.rules);
        }
        if indicators.is_empty() {
            indicators = of(|latest| latest.indicators);
        }
    }
    for files in [&mut rules, &mut indicators] {
        files.sort_by(|a, b| a.name.cmp(&b.name));
    }
    Ok(Sought { rules, indicators })
}

/// Files that people gave, as they lie in the bucket once they are kept.
fn named(given: &[Given]) -> Vec<OrderedFile> {
    let file = |file: &Given| {
        let sha256 = digest(&file.bytes);
        OrderedFile { name: file.name.clone(), key: key(RULES, &sha256, &file.name), sha256 }
    };
    given.iter().map(file).collect()
}

/// Keeps files that people gave under their digests, a few times while that may help.
///
/// # Errors
/// What the store said.
pub async fn keep_given(
    store: &dyn Store,
    given: &[Given],
) -> std::result::Result<Vec<OrderedFile>, String> {
    let mut kept = Vec::with_capacity(given.len());
    for file in given {
        kept.push(patiently(|| keep(store, RULES, &file.name, &file.bytes)).await?);
    }
    Ok(kept)
}

/// The key of a file that is kept under its digest.
#[must_use]
pub fn key(folder: &str, sha256: &Sha256, name: &str) -> String {
    format!("{folder}/{sha256}/{name}")
}

/// Keeps a file in the bucket under its digest.
///
/// # Errors
/// When the store does not take it, or holds something else under its digest.
pub async fn keep(
    store: &dyn Store,
    folder: &str,
    name: &str,
    bytes: &[u8],
) -> Result<OrderedFile> {
    let sha256 = digest(bytes);
    let key = key(folder, &sha256, name);
    if store.create(&key, bytes.to_vec()).await? == Put::Exists {
        held(store, &key, &sha256).await?;
    }
    Ok(OrderedFile { name: name.to_owned(), key, sha256 })
}

/// Whether what is under a digest's key has that digest.
///
/// # Errors
/// When it has not, or the store does not answer.
pub async fn held(store: &dyn Store, key: &str, sha256: &Sha256) -> Result<()> {
    let there = store.download(key, None, u64::MAX).await?;
    if there.is_some_and(|there| there.sha256 == *sha256) {
        return Ok(());
    }
    Err(CloudError {
        operation: "s3:GetObject".to_owned(),
        resource: key.to_owned(),
        kind: ErrorKind::Refused,
        code: "OtherDigest".to_owned(),
        message: "it is there, and is not what its name says".to_owned(),
        request: None,
    })
}

/// The machine image: the one that people set, else Amazon's newest.
///
/// # Errors
/// When there is none, or EC2 does not answer.
pub async fn image(
    inventory: &dyn Inventory,
    room: &RoomPolicy,
) -> std::result::Result<(cleanroom_cloud::ImageId, Option<String>), String> {
    if let Some(image) = &room.image {
        return Ok((image.clone(), None));
    }
    let found =
        again(PATIENCE, || inventory.public_image(IMAGE_OWNER, IMAGE_NAME, "x86_64")).await?;
    let found = found
        .ok_or_else(|| format!("{IMAGE_OWNER} offers no image {IMAGE_NAME} in this Region"))?;
    Ok((found.id, Some(found.name)))
}
