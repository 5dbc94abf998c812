//! One case an instance, claimed atomically.
//!
//! Purpose: `instances/<account>/<region>/<instance>/<n>.json` is created with `If-None-Match: *`; who loses reads
//! what is there and joins that case. `<n>.released.json` beside it frees the instance for case n + 1. Where the
//! store is down, the case's tag on the instance is all there is: weak, and made good later. Touches the store only.

use std::time::Duration;

use cleanroom_cloud::{Caller, CloudError, ErrorKind, Instance, Put, Store};
use cleanroom_contract::{CaseId, InstanceId, Timestamp};
use serde::{Deserialize, Serialize};

use crate::journal::{
    self,
    event::{self, Body},
};

/// What a claim holds.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Claim {
    /// The form of this object: 1.
    pub v: u8,
    /// The case.
    pub case: CaseId,
    /// The instance.
    pub instance: InstanceId,
    /// The claimer's nonce, by which it knows its own claim after a lost answer.
    pub nonce: String,
    /// Who claimed.
    pub actor: String,
    /// When.
    pub at: Timestamp,
}

/// A claim and its number.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Claimed {
    /// The claim.
    pub claim: Claim,
    /// 1 for the instance's first case.
    pub n: u32,
    /// Whether this run made it.
    pub new: bool,
}

/// Why there is no claim.
#[derive(Debug, thiserror::Error)]
pub enum ClaimError {
    /// The store failed.
    #[error("claim {instance}")]
    Store {
        /// The instance.
        instance: InstanceId,
        /// What the store said.
        source: CloudError,
    },
    /// Somebody's object is no claim.
    #[error("claim {key} can not be read: {why}")]
    Malformed {
        /// The object.
        key: String,
        /// What is wrong.
        why: String,
    },
    /// The instance has an open case of another name.
    #[error("{instance} has the open case {open}, not {asked}")]
    Other {
        /// The instance.
        instance: InstanceId,
        /// Its open case.
        open: CaseId,
        /// The case that was asked for.
        asked: CaseId,
    },
    /// The name that was asked for is another case's: its log would be taken for this instance's.
    #[error("{instance} can not have the case {asked}, {whose}: name another")]
    Taken {
        /// The instance.
        instance: InstanceId,
        /// The case that was asked for.
        asked: CaseId,
        /// Whose case it is.
        whose: String,
    },
}

/// Where an instance's claims are.
#[must_use]
pub fn prefix(caller: &Caller, instance: &InstanceId) -> String {
    format!("instances/{}/{}/{instance}/", caller.account, caller.region)
}

fn key(caller: &Caller, instance: &InstanceId, n: u32) -> String {
    format!("{}{n}.json", prefix(caller, instance))
}

/// The mark beside a claim that its case was released.
#[must_use]
pub fn released_key(caller: &Caller, instance: &InstanceId, n: u32) -> String {
    format!("{}{n}.released.json", prefix(caller, instance))
}

/// The case id of an instance's n-th case, where people name none.
#[must_use]
pub fn default_case(instance: &InstanceId, n: u32) -> CaseId {
    // An instance id is at most 19 characters of the case id's own set.
    format!("{instance}-{n}")
        .parse()
        .unwrap_or_else(|_| unreachable!("an instance id fits a case id"))
}

/// The case that a claim without a name would open or join, by the instance's newest claim and whether its case was released.
#[must_use]
pub fn open_or_next(instance: &InstanceId, newest: Option<&(Claimed, bool)>) -> CaseId {
    match newest {
        Some((open, false)) => open.claim.case.clone(),
        Some((released, true)) => default_case(instance, released.n.saturating_add(1)),
        None => default_case(instance, 1),
    }
}

/// Who asks for a claim.
#[derive(Debug)]
pub struct Claimer<'a> {
    /// Who calls.
    pub caller: &'a Caller,
    /// Marks the run.
    pub nonce: &'a str,
    /// Now.
    pub now: Timestamp,
    /// The case that people named.
    pub case: Option<&'a CaseId>,
    /// Whether the instance carries a case's tag: a hint that there is a claim, and that looking comes first.
    pub tagged: bool,
    /// The case that was begun for the instance while the store was down.
    pub weak: Option<&'a CaseId>,
}

/// Claims an instance, or joins its open case.
///
/// # Errors
/// When the store fails, the open case is not the one that was asked for, or the name that was asked for is another case's.
pub async fn claim(
    store: &dyn Store,
    instance: &InstanceId,
    claimer: &Claimer<'_>,
) -> Result<Claimed, ClaimError> {
    // The first case is the common one, and one call.
    let mut n = 1;
    let mut name = claimer.case.or(claimer.weak);
    if claimer.tagged || name.is_some() {
        match newest(store, instance, claimer.caller).await? {
            Some((open, false)) => return joined(open, instance, claimer),
            Some((released, true)) => n = released.n + 1,
            None => {}
        }
    }
    if let Some(named) = name
        && let Some(whose) = owner(store, instance, claimer, named, n).await?
    {
        if let Some(asked) = claimer.case {
            let (instance, asked) = (instance.clone(), asked.clone());
            return Err(ClaimError::Taken { instance, asked, whose });
        }
        // Whoever may write tags could name an ended case of this instance.
        name = None;
    }
    loop {
        let claimed = try_claim(store, instance, claimer, name, n).await?;
        if claimed.new {
            return Ok(claimed);
        }
        match newest(store, instance, claimer.caller).await? {
            Some((open, false)) => return joined(open, instance, claimer),
            Some((released, true)) => n = released.n + 1,
            // Listing may lag behind the object that refused us.
            None => return joined(claimed, instance, claimer),
        }
    }
}

/// Whose case a name is, where it can not be that of this instance's `n`-th case.
async fn owner(
    store: &dyn Store,
    instance: &InstanceId,
    claimer: &Claimer<'_>,
    case: &CaseId,
    n: u32,
) -> Result<Option<String>, ClaimError> {
    for earlier in 1..n {
        let claim = read(store, &key(claimer.caller, instance, earlier)).await;
        if claim.is_ok_and(|claim| claim.case == *case) {
            return Ok(Some(format!("which is its case {earlier}, and was released")));
        }
    }
    let first = event::key(case, 1);
    let there = store.get(&first).await;
    let there = there.map_err(|source| ClaimError::Store { instance: instance.clone(), source })?;
    let event = there.and_then(|bytes| journal::decode(&first, &bytes).ok());
    Ok(match event.map(|event| event.body) {
        Some(Body::Opened { instance: other, .. }) if other != *instance => {
            Some(format!("which is that of {other}"))
        }
        _ => None,
    })
}

fn joined(
    open: Claimed,
    instance: &InstanceId,
    claimer: &Claimer<'_>,
) -> Result<Claimed, ClaimError> {
    match claimer.case {
        Some(asked) if *asked != open.claim.case => Err(ClaimError::Other {
            instance: instance.clone(),
            open: open.claim.case,
            asked: asked.clone(),
        }),
        _ => Ok(open),
    }
}

async fn try_claim(
    store: &dyn Store,
    instance: &InstanceId,
    claimer: &Claimer<'_>,
    name: Option<&CaseId>,
    n: u32,
) -> Result<Claimed, ClaimError> {
    let store_error = |source| ClaimError::Store { instance: instance.clone(), source };
    let claim = Claim {
        v: 1,
        case: name.cloned().unwrap_or_else(|| default_case(instance, n)),
        instance: instance.clone(),
        nonce: claimer.nonce.to_owned(),
        actor: claimer.caller.arn.clone(),
        at: claimer.now,
    };
    let key = key(claimer.caller, instance, n);
    let bytes = serde_json::to_vec(&claim).unwrap_or_default();
    let mut pause = Duration::from_millis(50);
    loop {
        match store.create(&key, bytes.clone()).await {
            Ok(Put::Created) => return Ok(Claimed { claim, n, new: true }),
            Ok(Put::Exists) => break,
            Err(error) if error.is_transient() && error.kind != ErrorKind::Unreachable => {
                tokio::time::sleep(pause).await;
                pause = (pause * 2).min(Duration::from_secs(1));
            }
            Err(error) => return Err(store_error(error)),
        }
    }
    let there = read(store, &key).await.map_err(|e| e.into_claim_error(instance))?;
    let new = there.nonce == claimer.nonce;
    Ok(Claimed { claim: there, n, new })
}

enum ReadError {
    Store(CloudError),
    Malformed { key: String, why: String },
}

impl ReadError {
    fn into_claim_error(self, instance: &InstanceId) -> ClaimError {
        match self {
            Self::Store(source) => ClaimError::Store { instance: instance.clone(), source },
            Self::Malformed { key, why } => ClaimError::Malformed { key, why },
        }
    }
}

async fn read(store: &dyn Store, key: &str) -> Result<Claim, ReadError> {
    let malformed = |why: String| ReadError::Malformed { key: key.to_owned(), why };
    let bytes = store.get(key).await.map_err(ReadError::Store)?;
    let bytes = bytes.ok_or_else(|| malformed("it exists and can not be read".to_owned()))?;
    serde_json::from_slice(&bytes).map_err(|error| malformed(error.to_string()))
}

/// An instance's newest claim, and whether its case was released.
///
/// # Errors
/// When the store fails.
pub async fn newest(
    store: &dyn Store,
    instance: &InstanceId,
    caller: &Caller,
) -> Result<Option<(Claimed, bool)>, ClaimError> {
    let prefix = prefix(caller, instance);
    let keys = store
        .list(&prefix, false)
        .await
        .map_err(|source| ClaimError::Store { instance: instance.clone(), source })?;
    let names = keys.iter().filter_map(|k| k.strip_prefix(&prefix));
    let numbers = names.clone().filter_map(|name| name.strip_suffix(".json")?.parse::<u32>().ok());
    let Some(n) = numbers.max() else { return Ok(None) };
    let released = names.clone().any(|name| name == format!("{n}.released.json"));
    let claim = read(store, &key(caller, instance, n)).await;
    let claim = claim.map_err(|e| e.into_claim_error(instance))?;
    Ok(Some((Claimed { claim, n, new: false }, released)))
}

/// The case that was begun for an instance while the store was down, as its tag tells: only one that is named for this
/// instance, since whoever may write tags could name another's.
#[must_use]
pub fn weak_tag(instance: &Instance) -> Option<CaseId> {
    let tagged = instance.tags.get("cleanroom:case")?.parse::<CaseId>().ok()?;
    is_weak(&tagged, &instance.id).then_some(tagged)
}

/// Whether a case was begun for this instance while the store was down.
#[must_use]
pub fn is_weak(case: &CaseId, instance: &InstanceId) -> bool {
    case.as_str().starts_with(&format!("{instance}-weak-"))
}

/// A new case where no claim can be made.
#[must_use]
pub fn weak(instance: &InstanceId, now: Timestamp) -> CaseId {
    let name = format!("{instance}-weak-{}", now.seconds.max(0));
    name.parse().unwrap_or_else(|_| unreachable!("an instance id and a number fit a case id"))
}
