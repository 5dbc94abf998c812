//! Which instance, and which case, people mean.
//!
//! Reads only. Ambiguity is an error that lists the candidates.

use std::net::IpAddr;

use cleanroom_cloud::{Caller, Cloud, ErrorKind, Instance, InstanceQuery, Store};
use cleanroom_contract::{CaseId, InstanceId};
use futures_util::{StreamExt as _, stream};

use super::FlowError;
use crate::{
    claim::{self, Claim},
    journal::{Journal, Ledger, Spool, Writer},
};

/// Why a word names no one instance.
#[derive(Debug, thiserror::Error)]
pub enum FindError {
    /// It has no form that names an instance.
    #[error(
        "{0:?} names no instance: give its id (i- and 8 or 17 hexadecimal digits), ARN, address or Name tag"
    )]
    Malformed(String),
    /// An ARN of something else, or of another account or Region.
    #[error("{arn}: {why}")]
    Arn {
        /// The ARN.
        arn: String,
        /// What is wrong with it.
        why: String,
    },
    /// Nothing fits.
    #[error("there is no instance {name} in account {account}, Region {region}{elsewhere}")]
    Unknown {
        /// What was asked for.
        name: String,
        /// The account.
        account: String,
        /// The Region.
        region: String,
        /// Where it was found instead, as the end of the sentence.
        elsewhere: String,
    },
    /// Several fit.
    #[error("{name} names {} instances: {}", candidates.len(), candidates.join(", "))]
    Ambiguous {
        /// What was asked for.
        name: String,
        /// What fits.
        candidates: Vec<String>,
    },
    /// The cloud did not answer.
    #[error("look for {name}")]
    Cloud {
        /// What was asked for.
        name: String,
        /// What it said.
        source: cleanroom_cloud::CloudError,
    },
}

/// How a word names an instance, by its form alone.
///
/// # Errors
/// When it has no such form: an id that is malformed is never taken for a name.
pub fn query(word: &str) -> Result<InstanceQuery, FindError> {
    let malformed = || FindError::Malformed(word.chars().take(120).collect());
    if let Some(resource) = word.strip_prefix("arn:") {
        let id = resource.splitn(5, ':').nth(4).and_then(|r| r.strip_prefix("instance/"));
        let id = id.and_then(|id| id.parse().ok());
        return id.map(InstanceQuery::Id).ok_or_else(|| FindError::Arn {
            arn: word.chars().take(200).collect(),
            why: "it is not arn:aws:ec2:REGION:ACCOUNT:instance/i-…".to_owned(),
        });
    }
    if let Ok(id) = word.parse::<InstanceId>() {
        return Ok(InstanceQuery::Id(id));
    }
    if word.parse::<IpAddr>().is_ok() {
        return Ok(InstanceQuery::Address(word.to_owned()));
    }
    // What begins like an id was meant as one: a mistyped id must never find another instance by its name.
    let printable = word.chars().all(|c| !c.is_control());
    if word.starts_with("i-") || word.is_empty() || word.chars().count() > 256 || !printable {
        return Err(malformed());
    }
    Ok(InstanceQuery::Name(word.to_owned()))
}

/// The one instance that a word names.
///
/// # Errors
/// See [`FindError`].
pub async fn instance(cloud: &Cloud, caller: &Caller, word: &str) -> Result<Instance, FindError> {
    let asked = query(word)?;
    check_arn(word, caller)?;
    let error = |source| FindError::Cloud { name: word.to_owned(), source };
    let mut found = match cloud.inventory.find_instances(&asked).await {
        Err(source) if source.kind == ErrorKind::NotFound => Vec::new(),
        found => found.map_err(error)?,
    };
    // A name or an address of something that is gone names nothing.
    if found.len() > 1 {
        found.retain(|i| !i.state.is_ending());
    }
    match found.len() {
        1 => Ok(found.swap_remove(0)),
        0 => Err(FindError::Unknown {
            name: word.to_owned(),
            account: caller.account.to_string(),
            region: caller.region.clone(),
            elsewhere: elsewhere(cloud, &asked).await,
        }),
        _ => Err(FindError::Ambiguous {
            name: word.to_owned(),
            candidates: found
                .iter()
                .map(|i| format!("{} ({}, {:?})", i.id, i.zone, i.state).to_lowercase())
                .collect(),
        }),
    }
}

/// An ARN names its Region and account: they must be the ones that are called.
fn check_arn(word: &str, caller: &Caller) -> Result<(), FindError> {
    let mut parts = word.split(':');
    if parts.next() != Some("arn") {
        return Ok(());
    }
    let (region, account) = (parts.nth(2).unwrap_or_default(), parts.next().unwrap_or_default());
    let why = if region != caller.region {
        format!("it is in Region {region}, and {} is called: give --region {region}", caller.region)
    } else if account != caller.account.as_str() {
        format!("it is in account {account}, and {} is called: give --assume-role", caller.account)
    } else {
        return Ok(());
    };
    Err(FindError::Arn { arn: word.to_owned(), why })
}

/// Where an id exists, when not here.
async fn elsewhere(cloud: &Cloud, asked: &InstanceQuery) -> String {
    let InstanceQuery::Id(id) = asked else { return String::new() };
    let looking = cloud.inventory.regions_with(id);
    match tokio::time::timeout(std::time::Duration::from_secs(10), looking).await {
        Ok(Ok(regions)) if !regions.is_empty() => {
            format!("; it is in {}: give --region", regions.join(", "))
        }
        Ok(Ok(_)) => "; nor in any other Region of the account".to_owned(),
        _ => "; other Regions could not be asked".to_owned(),
    }
}

/// A claim, and whether its case was released.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Known {
    /// The claim.
    pub claim: Claim,
    /// 1 for the instance's first case.
    pub n: u32,
    /// Whether its case was released.
    pub released: bool,
}

/// All claims of the caller's account and Region, oldest first.
///
/// # Errors
/// When the store fails. A claim that can not be read is left out of the list and named in the second part.
pub async fn cases(
    store: &dyn Store,
    caller: &Caller,
) -> Result<(Vec<Known>, Vec<String>), FlowError> {
    let cloud = |source| FlowError::Cloud { what: "the claims".to_owned(), source };
    let prefix = format!("instances/{}/{}/", caller.account, caller.region);
    let keys = store.list(&prefix, false).await.map_err(cloud)?;
    let all: std::collections::BTreeSet<&str> = keys.iter().map(String::as_str).collect();
    let claims = keys.iter().filter(|k| k.ends_with(".json") && !k.ends_with(".released.json"));
    let reads: Vec<_> = claims.map(|key| async move { (key, store.get(key).await) }).collect();
    let answers: Vec<_> = stream::iter(reads).buffered(16).collect().await;
    let mut known = Vec::new();
    let mut odd = Vec::new();
    for (key, bytes) in answers {
        let bytes = bytes.map_err(cloud)?.unwrap_or_default();
        let stem = key.trim_end_matches(".json");
        let n = stem.rsplit('/').next().and_then(|n| n.parse().ok());
        match (serde_json::from_slice::<Claim>(&bytes), n) {
            (Ok(claim), Some(n)) => {
                let released = all.contains(format!("{stem}.released.json").as_str());
                known.push(Known { claim, n, released });
            }
            _ => odd.push(format!("{key} is no claim")),
        }
    }
    known.sort_by(|a, b| (a.claim.at, &a.claim.case).cmp(&(b.claim.at, &b.claim.case)));
    Ok((known, odd))
}

/// The claim of a case.
///
/// # Errors
/// When there is no such case here, or the store fails.
pub async fn case(store: &dyn Store, caller: &Caller, case: &CaseId) -> Result<Known, FlowError> {
    let (known, _) = cases(store, caller).await?;
    known.into_iter().find(|k| k.claim.case == *case).ok_or_else(|| {
        FlowError::Case(format!(
            "there is no case {case} of account {}, Region {}, in this bucket",
            caller.account, caller.region
        ))
    })
}

/// A case's log, opened for writing, and what it comes to.
///
/// # Errors
/// When the log can not be read.
pub async fn log(run: &crate::case::Run, case: &CaseId) -> Result<(Journal, Ledger), FlowError> {
    let writer = Writer {
        actor: run.caller.arn.clone(),
        nonce: run.nonce.clone(),
        clock: run.clock.clone(),
        bound: run.bounds.custody,
    };
    let spool = Spool::at(run.spool.clone());
    let journal = Journal::found(run.cloud.store.clone(), case.clone(), writer, spool).await?;
    let ledger = journal.ledger().await;
    Ok((journal, ledger))
}

/// A case at work again, for commands on a case.
///
/// # Errors
/// When there is no such case, or its log can not be read or holds no original state.
pub async fn open(
    run: &crate::case::Run,
    case: &CaseId,
) -> Result<(crate::case::Case, Ledger, Known), FlowError> {
    let known = self::case(&*run.cloud.store, &run.caller, case).await?;
    let (case, ledger) = open_known(run, &known).await?;
    Ok((case, ledger, known))
}

/// A case whose claim has been read already.
///
/// # Errors
/// When its log can not be read or holds no original state.
pub async fn open_known(
    run: &crate::case::Run,
    known: &Known,
) -> Result<(crate::case::Case, Ledger), FlowError> {
    let case = &known.claim.case;
    let (journal, ledger) = log(run, case).await?;
    let original = ledger.original.clone().ok_or_else(|| {
        FlowError::Case(format!(
            "the log of {case} does not say how the instance was: run respond again"
        ))
    })?;
    let at_work = super::open::case(run, std::sync::Arc::new(journal), original, &ledger);
    Ok((at_work, ledger))
}

/// Where the mark goes that a case was released.
#[must_use]
pub fn released_key(caller: &Caller, known: &Known) -> String {
    claim::released_key(caller, &known.claim.instance, known.n)
}
