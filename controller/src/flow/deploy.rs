//! Sets the response stack up, changes it and takes it down: by change sets, and never without a look at them.
//!
//! Purpose: `deploy`'s order, and what an interrupted one finds. Touches the artifacts bucket and the response stack through
//! ports. Never deletes evidence: the template retains it, and nothing here names an object of it.

mod parameters;
mod reserve;

use std::{sync::Arc, time::Duration};

use cleanroom_cloud::{
    AccountId, BucketState, Change, ChangeSet, CloudError, Deployment, Hands, Inventory, Proposed,
    Stack, StackChange, StackEvent, Store, first_failure,
};
use cleanroom_contract::printable;
use tokio::time::{Instant, sleep};

pub use self::{
    parameters::{Parameter, check_chosen, decide_parameters, parameters},
    reserve::reserve_tags,
};

/// The response stack's template, as it is shipped.
pub const TEMPLATE: &str = include_str!("../../../cloudformation/response.yaml");
/// The state machine of one instance.
pub const MACHINE: &str = include_str!("../../../cloudformation/response.asl.json");
/// The state machine of an incident of many.
pub const MANY: &str = include_str!("../../../cloudformation/response-many.asl.json");

/// What the program's file is called.
pub const PROGRAM: &str = "cleanroom-lambda.zip";

/// How long CloudFormation may compare: it takes seconds.
const COMPARING: Duration = Duration::from_secs(600);
/// How long a stack may take: a first one takes some five minutes.
const MAKING: Duration = Duration::from_secs(3600);

/// Resources of the template that outlive the stack, and what they are.
pub const RETAINED: [(&str, &str); 8] = [
    ("Evidence", "the evidence bucket"),
    ("EvidencePolicy", "the evidence bucket's policy"),
    ("EvidenceKey", "the evidence's key"),
    ("MessagesKey", "the key of the logs"),
    ("IntakeLog", "the log of intake"),
    ("StepLog", "the log of the steps"),
    ("ContainLog", "the log of contain-only"),
    ("MachineLog", "the log of the state machines"),
];

/// Why the response stack is not as it should be.
#[derive(Debug, thiserror::Error)]
pub enum DeployError {
    /// A call failed.
    #[error("{what}")]
    Cloud {
        /// What was attempted, on what.
        what: String,
        /// Why not.
        source: CloudError,
    },
    /// CloudFormation takes no such change.
    #[error("compare the stack {stack} with its template: {why}")]
    NotComparable {
        /// The stack.
        stack: String,
        /// Why, untrusted text made printable.
        why: String,
    },
    /// A resource could not be made.
    #[error("the stack {stack} is {status}: {first}")]
    Failed {
        /// The stack.
        stack: String,
        /// CloudFormation's word for how it is.
        status: String,
        /// The first resource that failed, with its reason.
        first: String,
    },
    /// It is in a state out of which only a person leads.
    #[error(
        "the stack {stack} is {status}: continue its rollback in the CloudFormation console, then deploy again"
    )]
    Stuck {
        /// The stack.
        stack: String,
        /// CloudFormation's word for how it is.
        status: String,
    },
    /// It did not end.
    #[error("{what} took more than {} minutes: deploy again, it goes on", .bound.as_secs() / 60)]
    Late {
        /// What was waited for.
        what: String,
        /// How long.
        bound: Duration,
    },
}

/// The result of a part of a deployment.
pub type Result<T> = std::result::Result<T, DeployError>;

fn cloud(what: impl Into<String>) -> impl FnOnce(CloudError) -> DeployError {
    let what = what.into();
    move |source| DeployError::Cloud { what, source }
}

/// Where a response stack is set up.
pub struct Site {
    /// Looks at the stack.
    pub inventory: Arc<dyn Inventory>,
    /// Deletes it.
    pub hands: Arc<dyn Hands>,
    /// Changes it.
    pub deployment: Arc<dyn Deployment>,
    /// The artifacts bucket.
    pub artifacts: Arc<dyn Store>,
    /// The account.
    pub account: AccountId,
    /// The stack's name.
    pub stack: String,
    /// What no other run has: change sets and requests are named by it.
    pub nonce: String,
    /// The pause between two looks.
    pub poll: Duration,
}

impl std::fmt::Debug for Site {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Site").field("stack", &self.stack).finish_non_exhaustive()
    }
}

/// Hears what happens to the stack.
pub type Tell<'t> = &'t mut dyn FnMut(&StackEvent);

/// How a stack stands, as much as a deployment decides by.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Standing {
    /// It is not there, or has a change set and nothing else.
    Absent,
    /// It is there, whole.
    Stands,
    /// Something is done to it at this moment.
    Moves,
    /// Its creation or deletion failed: it can only be deleted.
    Failed,
    /// Only a person can end what it is in.
    Stuck,
}

/// How a stack stands, by CloudFormation's word for it (`StackStatus`).
#[must_use]
pub fn decide_standing(status: Option<&str>) -> Standing {
    match status {
        None | Some("REVIEW_IN_PROGRESS" | "DELETE_COMPLETE") => Standing::Absent,
        Some(status) if status.ends_with("_IN_PROGRESS") => Standing::Moves,
        Some("CREATE_FAILED" | "ROLLBACK_COMPLETE" | "ROLLBACK_FAILED" | "DELETE_FAILED") => {
            Standing::Failed
        }
        Some(status) if status.ends_with("_FAILED") => Standing::Stuck,
        Some(_) => Standing::Stands,
    }
}

/// How a stack stands.
#[must_use]
pub fn standing(stack: Option<&Stack>) -> Standing {
    decide_standing(stack.map(|stack| stack.status.as_str()))
}

/// CloudFormation's word for how what was begun has ended, where it has: of the stack's own newest event.
fn decide_end<'e>(stack: &str, news: &'e [StackEvent]) -> Option<&'e str> {
    let own = |e: &&StackEvent| e.resource == stack && e.kind == "AWS::CloudFormation::Stack";
    let newest = news.iter().rev().find(own).map(|event| event.status.as_str());
    newest.filter(|status| !status.ends_with("_IN_PROGRESS"))
}

/// Waits for whatever is done to the stack at this moment, as a run that was interrupted leaves it behind.
///
/// # Errors
/// When it can not be read, does not come to an end, or is in a state that only a person can end.
pub async fn settle(site: &Site, tell: Tell<'_>) -> Result<Option<Stack>> {
    let ends = Instant::now() + MAKING;
    let mut told = None;
    loop {
        let found = find(site).await?;
        let Some(stack) = &found else { return Ok(None) };
        match standing(found.as_ref()) {
            Standing::Moves => {
                let events = events(site, &stack.id).await?;
                // What was before is no news.
                let from = *told.get_or_insert(events.len());
                events.iter().skip(from).for_each(&mut *tell);
                told = Some(events.len());
            }
            Standing::Stuck => {
                let (stack, status) = (site.stack.clone(), stack.status.clone());
                return Err(DeployError::Stuck { stack, status });
            }
            Standing::Absent | Standing::Stands | Standing::Failed => {
                if let Some(from) = told {
                    events(site, &stack.id).await?.iter().skip(from).for_each(&mut *tell);
                }
                return Ok(found);
            }
        }
        if Instant::now() > ends {
            return Err(late(format!("the stack {}", site.stack), MAKING));
        }
        sleep(site.poll).await;
    }
}

/// The stack; none where there is none.
///
/// # Errors
/// When it can not be read.
pub async fn find(site: &Site) -> Result<Option<Stack>> {
    let found = site.inventory.find_stack(&site.stack).await;
    found.map_err(cloud(format!("look at the stack {}", site.stack)))
}

async fn events(site: &Site, stack: &str) -> Result<Vec<StackEvent>> {
    let events = site.inventory.stack_events(stack).await;
    events.map_err(cloud(format!("read what happened to the stack {}", site.stack)))
}

fn late(what: String, bound: Duration) -> DeployError {
    DeployError::Late { what, bound }
}

/// Makes sure that there is an artifacts bucket, of this account's. Whether one was made. One that people named, and that is
/// there, stays as it is; one of `ours` whose making was interrupted is finished.
///
/// # Errors
/// When it is somebody else's, or can not be made.
pub async fn ensure_artifacts(site: &Site, ours: bool) -> Result<bool> {
    let bucket = site.artifacts.bucket();
    let (deployment, account) = (&site.deployment, &site.account);
    let state = deployment.bucket(bucket, account).await;
    let state = state.map_err(cloud(format!(
        "look at the artifacts bucket {bucket}, which is another account's or not open to the caller (--artifacts-bucket names another)"
    )))?;
    let make = state == BucketState::Absent || (ours && state == BucketState::Bare);
    if make {
        let made = deployment.make_bucket(bucket, account).await;
        made.map_err(cloud(format!("make the artifacts bucket {bucket}")))?;
    }
    Ok(make)
}

/// A change set that waits for a word.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Ready {
    /// Its id.
    pub id: String,
    /// What it does.
    pub changes: Vec<StackChange>,
}

/// Has CloudFormation compare the stack with a template in the artifacts bucket. None where nothing would change; then the
/// change set is deleted again.
///
/// # Errors
/// When it can not be compared.
pub async fn propose(
    site: &Site,
    stack: Option<&Stack>,
    template: &str,
    parameters: std::collections::BTreeMap<String, String>,
) -> Result<Option<Ready>> {
    let proposed = Proposed {
        stack: site.stack.clone(),
        name: format!("cleanroom-{}", site.nonce),
        create: standing(stack) == Standing::Absent,
        bucket: site.artifacts.bucket().to_owned(),
        template: template.to_owned(),
        parameters,
    };
    let what = || format!("compare the stack {} with its template", site.stack);
    let id = site.deployment.propose(&proposed).await.map_err(cloud(what()))?;
    let ends = Instant::now() + COMPARING;
    loop {
        match site.deployment.change_set(&id).await.map_err(cloud(what()))? {
            ChangeSet::Ready(changes) => return Ok(Some(Ready { id, changes })),
            ChangeSet::Empty => {
                discard(site, &id).await?;
                return Ok(None);
            }
            ChangeSet::Failed(why) => {
                discard(site, &id).await?;
                let (stack, why) = (site.stack.clone(), printable(&why));
                return Err(DeployError::NotComparable { stack, why });
            }
            ChangeSet::Pending if Instant::now() > ends => return Err(late(what(), COMPARING)),
            ChangeSet::Pending => sleep(site.poll).await,
        }
    }
}

/// Deletes a change set that nobody wants.
///
/// # Errors
/// When it can not be deleted.
pub async fn discard(site: &Site, id: &str) -> Result<()> {
    site.deployment.discard(id).await.map_err(cloud(format!("delete the change set {id}")))
}

/// Carries a change set out, and follows the stack to the end of it.
///
/// # Errors
/// When a resource could not be made: the first, with its reason.
pub async fn apply(site: &Site, ready: &Ready, tell: Tell<'_>) -> Result<Stack> {
    let before = events(site, &site.stack).await?.len();
    let token = format!("cleanroom-{}", site.nonce);
    let begun = site.deployment.execute(&ready.id, &token).await;
    begun.map_err(cloud(format!("carry out the change set {}", ready.id)))?;
    let status = follow(site, &site.stack, before, tell).await?;
    let stack = find(site).await?;
    match stack {
        Some(stack) if matches!(status.as_str(), "CREATE_COMPLETE" | "UPDATE_COMPLETE") => {
            Ok(stack)
        }
        _ => {
            let events = events(site, stack.as_ref().map_or(&site.stack, |s| &s.id)).await?;
            let first = first_reason(site, &events[before.min(events.len())..]);
            Err(DeployError::Failed { stack: site.stack.clone(), status, first })
        }
    }
}

/// Why a stack has failed.
///
/// # Errors
/// When its events can not be read.
pub async fn why_failed(site: &Site, stack: &Stack) -> Result<String> {
    Ok(first_reason(site, &events(site, &stack.id).await?))
}

fn first_reason(site: &Site, events: &[StackEvent]) -> String {
    first_failure(&site.stack, events).map_or_else(
        || "CloudFormation gives no reason".to_owned(),
        |event| {
            let why = event.reason.as_deref().unwrap_or("no reason is given");
            format!("{} ({}): {}", event.resource, event.kind, printable(why))
        },
    )
}

/// Tells the events of a stack as they come, from this one on, until its own says that it is over.
async fn follow(site: &Site, stack: &str, from: usize, tell: Tell<'_>) -> Result<String> {
    let ends = Instant::now() + MAKING;
    let mut told = from;
    loop {
        let events = events(site, stack).await?;
        events.iter().skip(told).for_each(&mut *tell);
        told = told.max(events.len());
        if let Some(status) = decide_end(&site.stack, &events[from.min(events.len())..]) {
            return Ok(status.to_owned());
        }
        if Instant::now() > ends {
            return Err(late(format!("the stack {}", site.stack), MAKING));
        }
        sleep(site.poll).await;
    }
}

/// Deletes the stack, and follows it to the end. What the template retains stays.
///
/// # Errors
/// When a resource could not be deleted: the first, with its reason.
pub async fn delete(site: &Site, stack: &Stack, tell: Tell<'_>) -> Result<()> {
    let before = events(site, &stack.id).await?.len();
    let token = format!("cleanroom-delete-{}", site.nonce);
    let (name, id) = (site.stack.clone(), stack.id.clone());
    let begun = site.hands.apply(&Change::DeleteStack { name, id, token }).await;
    begun.map_err(cloud(format!("delete the stack {}", site.stack)))?;
    let ends = Instant::now() + MAKING;
    let mut told = before;
    loop {
        // A stack that is gone is known by its id alone, and an emulator may not know it even so.
        let gone = find(site).await?.is_none_or(|found| found.id != stack.id);
        let events = match events(site, &stack.id).await {
            Err(_) if gone => return Ok(()),
            events => events?,
        };
        events.iter().skip(told).for_each(&mut *tell);
        told = told.max(events.len());
        let news = &events[before.min(events.len())..];
        match decide_end(&site.stack, news) {
            _ if gone => return Ok(()),
            Some(status) if status != "DELETE_COMPLETE" => {
                let (stack, status) = (site.stack.clone(), status.to_owned());
                let first = first_reason(site, news);
                return Err(DeployError::Failed { stack, status, first });
            }
            _ if Instant::now() > ends => {
                return Err(late(format!("the stack {}", site.stack), MAKING));
            }
            _ => sleep(site.poll).await,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_status_of_a_stack_is_one_that_a_deployment_knows() {
        use Standing as S;
        for (status, expected) in [
            (None, S::Absent),
            (Some("REVIEW_IN_PROGRESS"), S::Absent),
            (Some("CREATE_IN_PROGRESS"), S::Moves),
            (Some("UPDATE_COMPLETE_CLEANUP_IN_PROGRESS"), S::Moves),
            (Some("DELETE_IN_PROGRESS"), S::Moves),
            (Some("CREATE_COMPLETE"), S::Stands),
            (Some("UPDATE_ROLLBACK_COMPLETE"), S::Stands),
            (Some("IMPORT_COMPLETE"), S::Stands),
            (Some("ROLLBACK_COMPLETE"), S::Failed),
            (Some("DELETE_FAILED"), S::Failed),
            (Some("UPDATE_ROLLBACK_FAILED"), S::Stuck),
        ] {
            assert_eq!(decide_standing(status), expected, "{status:?}");
        }
    }

    #[test]
    fn a_stack_has_ended_by_its_own_newest_event_and_not_by_a_resource_s() {
        let event = |resource: &str, status: &str| StackEvent {
            at: cleanroom_contract::Timestamp::default(),
            resource: resource.to_owned(),
            kind: if resource == "s" { "AWS::CloudFormation::Stack" } else { "AWS::SNS::Topic" }
                .to_owned(),
            status: status.to_owned(),
            reason: None,
        };
        let begun = [event("s", "UPDATE_IN_PROGRESS"), event("Topic", "UPDATE_COMPLETE")];
        assert_eq!(decide_end("s", &begun), None);
        let cleaning = [event("s", "UPDATE_COMPLETE_CLEANUP_IN_PROGRESS")];
        assert_eq!(decide_end("s", &cleaning), None);
        let ended = [event("s", "UPDATE_COMPLETE"), event("Topic", "DELETE_COMPLETE")];
        assert_eq!(decide_end("s", &ended), Some("UPDATE_COMPLETE"));
        assert_eq!(decide_end("s", &[]), None);
    }

    #[test]
    fn what_outlives_the_stack_is_what_its_template_retains() {
        let mut retained = Vec::new();
        let mut resource = "";
        for line in TEMPLATE.lines() {
            if let Some(name) = line.strip_prefix("  ").filter(|l| !l.starts_with(' ')) {
                resource = name.trim_end_matches(':');
            } else if line.trim() == "DeletionPolicy: Retain" {
                retained.push(resource);
            }
        }
        let mut named = RETAINED.map(|(name, _)| name);
        named.sort_unstable();
        retained.sort_unstable();
        assert_eq!(retained, named);
    }
}
