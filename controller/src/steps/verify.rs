//! Is this instance real, ours, compromised, not exempt?
//!
//! Collects what speaks for a compromise and decides; refuses with a reason. Changes nothing. An instance that is
//! ending is not refused: what survives it is recorded and preserved.

use cleanroom_cloud::{AlertFinding, Caller, Instance};
use serde::Serialize;

use crate::case::Policy;

/// Why an instance is not contained.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Refusal {
    /// It belongs to another account.
    #[error(
        "{instance} belongs to account {owner}, and the caller to {caller}: name a role of that account with --assume-role"
    )]
    OtherAccount {
        /// The instance.
        instance: String,
        /// Its owner.
        owner: String,
        /// The caller's account.
        caller: String,
    },
    /// The settings say so.
    #[error("{instance} is exempt by the settings: {by}")]
    Exempt {
        /// The instance.
        instance: String,
        /// The entry of the settings.
        by: String,
    },
}

/// What speaks for containing the instance.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Grounds(pub Vec<String>);

/// Decides. `reason` is a person's word, which suffices; what else speaks for it is collected beside it.
///
/// # Errors
/// When the instance is not to be contained.
pub fn decide(
    instance: &Instance,
    caller: &Caller,
    policy: &Policy,
    reason: Option<&str>,
) -> Result<Grounds, Refusal> {
    if instance.account != caller.account {
        return Err(Refusal::OtherAccount {
            instance: instance.id.to_string(),
            owner: instance.account.to_string(),
            caller: caller.account.to_string(),
        });
    }
    if let Some(by) = exempt_by(instance, policy) {
        return Err(Refusal::Exempt { instance: instance.id.to_string(), by: by.to_owned() });
    }
    let mut grounds = vec![match reason {
        Some(reason) => format!("{} says: {reason}", caller.arn),
        None => format!("{} asked for it, and gave no reason", caller.arn),
    }];
    if instance.tags.contains_key("cleanroom:compromised") {
        grounds.push("its tag cleanroom:compromised, which is a hint only".to_owned());
    }
    if instance.state.is_ending() {
        grounds.push("it is ending: only what survives it can be preserved".to_owned());
    }
    Ok(Grounds(grounds))
}

/// The findings that speak for a compromise: those at or above the severity that is set.
#[must_use]
pub fn speaking(findings: &[AlertFinding], policy: &Policy) -> Vec<String> {
    let severe = findings.iter().filter(|f| f.severity_tenths >= policy.severity_tenths);
    let tell = |finding: &AlertFinding| {
        let part = if finding.actor { "actor" } else { "target" };
        let (whole, tenth) = (finding.severity_tenths / 10, finding.severity_tenths % 10);
        format!("GuardDuty {} {whole}.{tenth}, as its {part}: {}", finding.kind, finding.title)
    };
    severe.map(tell).collect()
}

/// The entry of the settings that exempts the instance: its id, or `key=value` of a tag. A tag by itself exempts
/// nothing, since the attacker may write it.
fn exempt_by<'p>(instance: &Instance, policy: &'p Policy) -> Option<&'p str> {
    policy.exempt.iter().map(String::as_str).find(|entry| {
        *entry == instance.id.as_str()
            || entry.split_once('=').is_some_and(|(key, value)| {
                instance.tags.get(key).is_some_and(|tagged| tagged == value)
            })
    })
}
