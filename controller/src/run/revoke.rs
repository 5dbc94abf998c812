//! Cuts a principal that a person names, and logs it.

use cleanroom_cloud::{Change, CloudError, RolePolicy};
use cleanroom_contract::printable;
use cleanroom_controller::{
    case::Run,
    flow::find,
    journal::{
        Journal,
        event::{Body, Outcome},
    },
    steps::revoke::principal::{self, Principal},
};

use super::{
    FAILED, PARTIAL, Shape, Usage,
    hint::{self, Hint},
    print, say,
    session::{Opening, Session, persist},
};
use crate::{
    cli::{Named, Revoke},
    output, terminal,
};

/// Shows what cuts the principal, asks, and does it.
pub(super) async fn revoke(opening: &Opening, args: &Revoke, shape: Shape) -> anyhow::Result<u8> {
    let session_name = args.case.as_ref().map_or("cleanroom-revoke", |case| case.as_str());
    let session = opening.open(None, session_name).await?;
    same_account(&args.principal, &session)?;
    let run = session.quiet()?;
    let journal = match &args.case {
        Some(case) => {
            find::case(&*run.cloud.store, &run.caller, case).await?;
            Some(find::log(&run, case).await?.0)
        }
        None => None,
    };
    let inventory = &*run.cloud.inventory;
    let named = &args.principal.principal;
    let now = run.clock.now();
    let changes =
        persist(|| principal::plan(inventory, named, now), CloudError::is_transient).await?;
    show(args, &changes, shape)?;
    if !args.yes {
        if !terminal::can_ask() {
            let why = "there is no terminal to ask on: give --yes; nothing was changed";
            return Err(Usage(why.to_owned()).into());
        }
        if !terminal::ask(&format!("Cut {}?", printable(&args.principal.arn))) {
            say("nothing was changed");
            return Ok(FAILED);
        }
    }
    let outcomes = act(&run, &args.principal.arn, changes, journal.as_ref()).await;
    let unread = unread(&run, named, &outcomes).await;
    told(args, &outcomes, &unread, shape)?;
    let waiting = match &journal {
        Some(journal) => journal.catch_up().await,
        None => 0,
    };
    if waiting > 0 {
        say(&format!("note: {waiting} events wait on this machine for the bucket"));
    }
    let failed = outcomes.iter().any(|outcome| outcome.error.is_some());
    Ok(match (failed, unread.is_empty() && waiting == 0) {
        (true, _) => FAILED,
        (false, false) => PARTIAL,
        (false, true) => 0,
    })
}

/// IAM's calls take names: a principal of another account would be taken for one of this account.
fn same_account(named: &Named, session: &Session) -> anyhow::Result<()> {
    let account = named.arn.split(':').nth(4).unwrap_or_default();
    if account == session.caller.account.as_str() {
        return Ok(());
    }
    let error = anyhow::anyhow!(
        "{} is in account {}, and {} is called; nothing was changed",
        named.arn,
        printable(account),
        session.caller.account
    );
    Err(error.context(Hint("name a role of that account with --assume-role".to_owned())))
}

fn show(args: &Revoke, changes: &[Change], shape: Shape) -> anyhow::Result<()> {
    let Named { arn, principal } = &args.principal;
    if !shape.is_human() {
        let fields = serde_json::json!({ "principal": arn, "changes": changes });
        return print(&output::record("proposal", &fields));
    }
    let mut text = format!("revoke of {}\n", printable(arn));
    for change in changes {
        let what = format!("{}: {change}", change.resource());
        text.push_str(&output::field("will", &printable(&what), shape.width));
    }
    let reach = match principal {
        Principal::Role(_) => {
            "every session of the role that was begun before now is denied, on every host that uses it; later ones are not"
        }
        Principal::User(_) => {
            "the user is denied everything, and the active keys are switched off; nothing is deleted"
        }
    };
    text.push_str(&output::field("note", reach, shape.width));
    print(&text)
}

/// Carries the changes out, announced in the case's log before and told after.
async fn act(
    run: &Run,
    arn: &str,
    changes: Vec<Change>,
    journal: Option<&Journal>,
) -> Vec<Outcome> {
    if let Some(journal) = journal {
        let goal = "revoke:principal".to_owned();
        journal.append(None, Body::Intent { goal, changes: changes.clone() }).await;
    }
    let mut outcomes = Vec::with_capacity(changes.len());
    for change in changes {
        let applied = persist(|| run.cloud.hands.apply(&change), CloudError::is_transient).await;
        if let Some(hint) = applied.as_ref().err().and_then(|error| hint::of_error(error)) {
            say(&format!("hint: {hint}"));
        }
        let (made, error) = match applied {
            Ok(made) => (Some(made), None),
            Err(error) => (None, Some(error.to_string())),
        };
        outcomes.push(Outcome { change, made, error });
    }
    if let Some(journal) = journal {
        let what = format!("revoke --principal {arn}");
        journal.append(None, Body::Acted { what, outcomes: outcomes.clone() }).await;
    }
    outcomes
}

/// What does not show when it is read back.
async fn unread(run: &Run, named: &Principal, outcomes: &[Outcome]) -> Vec<String> {
    let inventory = &*run.cloud.inventory;
    let done: Vec<_> = outcomes.iter().filter(|o| o.error.is_none()).map(|o| &o.change).collect();
    let (policies, keys) = match named {
        Principal::Role(role) => match inventory.role_policies(role).await {
            Ok(policies) => (policies, None),
            Err(error) => return vec![error.to_string()],
        },
        Principal::User(user) => match inventory.user_access(user).await {
            Ok(access) => (access.policies, Some(access.keys)),
            Err(error) => return vec![error.to_string()],
        },
    };
    let shows = |change: &&&Change| match change {
        Change::PutRolePolicy { name, document, .. }
        | Change::PutUserPolicy { name, document, .. } => has(&policies, name, document),
        Change::SetAccessKey { key, active, .. } => {
            keys.as_ref().is_some_and(|keys| keys.get(key).is_none_or(|now| now == active))
        }
        _ => true,
    };
    done.iter()
        .filter(|change| !shows(change))
        .map(|change| format!("{}: {change}", change.resource()))
        .collect()
}

/// Whether a policy of this name says the same.
fn has(policies: &[RolePolicy], name: &str, document: &str) -> bool {
    let parsed = |text: &str| serde_json::from_str::<serde_json::Value>(text).ok();
    let wanted = parsed(document);
    policies.iter().any(|p| p.name == name && wanted.is_some() && parsed(&p.document) == wanted)
}

fn told(
    args: &Revoke,
    outcomes: &[Outcome],
    unread: &[String],
    shape: Shape,
) -> anyhow::Result<()> {
    if !shape.is_human() {
        let whole = unread.is_empty() && outcomes.iter().all(|o| o.error.is_none());
        let fields = serde_json::json!({
            "principal": args.principal.arn,
            "outcomes": outcomes,
            "not_read_back": unread,
            "whole": whole,
        });
        return print(&output::record("revoked", &fields));
    }
    let mut text = String::new();
    for Outcome { change, error, .. } in outcomes {
        let what = format!("{}: {change}", change.resource());
        let (name, what) = match error {
            None => ("done", what),
            Some(error) => ("NOT DONE", format!("{what}: {error}")),
        };
        text.push_str(&output::field(name, &printable(&what), shape.width));
    }
    for what in unread {
        text.push_str(&output::field("not shown", &printable(what), shape.width));
    }
    if unread.is_empty() && outcomes.iter().all(|o| o.error.is_none()) {
        text.push_str("read back; effective within minutes\n");
    }
    print(&text)
}
