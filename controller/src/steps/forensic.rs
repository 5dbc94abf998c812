//! The evidence, in another account: shared, its keys opened for reading, copied there, so that a clean room can be made out of
//! reach of whoever owns the instance's account.
//!
//! A copy has no idempotency token: it is found again by its tags. Sharing and grants are asked for only while a copy is missing,
//! and nothing here takes either back, or deletes a snapshot: that is a person's to do.

use std::{
    collections::{BTreeMap, BTreeSet},
    time::Duration,
};

use async_trait::async_trait;
use cleanroom_cloud::{Change, ErrorKind, Result, Snapshot, SnapshotState};
use cleanroom_contract::{SnapshotId, VolumeId};

use super::snapshot::{self, COPY_OF, patience};
use crate::{
    case::{Assessment, Case, Goal, History, Scene, Shortfall, Step},
    engine::{Direction, again, ensure},
    forensic::Forensic,
    journal::{Ledger, event::Body},
    steps::clean_room::{self, stack_name},
};

/// The tag of a copy that says which account it came from.
const FROM: &str = "cleanroom:account";
/// Copies under way at a time (EC2 user guide: twenty to a Region).
const AT_ONCE: usize = 20;
/// How many copies of one snapshot may fail before no other is made.
const MOST_FAILED: usize = 3;
/// How long a grant may take to hold (KMS developer guide, "eventual consistency": usually less than five minutes).
const GRANTED_WITHIN: Duration = Duration::from_secs(10 * 60);

/// The statement of a key's policy that lets a role copy what is under the key.
#[must_use]
pub fn key_statement(role: &str) -> String {
    format!(
        r#"{{"Sid":"CleanroomForensic","Effect":"Allow","Principal":{{"AWS":"{role}"}},"Action":["kms:CreateGrant","kms:Decrypt","kms:DescribeKey","kms:ReEncryptFrom"],"Resource":"*"}}"#
    )
}

/// The name of a case's grants.
fn grant_name(scene: &Scene) -> String {
    stack_name(&scene.case, 1)
}

/// A snapshot's copies in the forensic account, as their tags tell.
#[derive(Debug, Default, PartialEq, Eq)]
struct Copies<'s> {
    /// The earliest that did not fail.
    best: Option<&'s Snapshot>,
    /// Those that failed, for good.
    failed: Vec<&'s SnapshotId>,
}

fn copies<'s>(source: &Snapshot, there: &'s [Snapshot]) -> Copies<'s> {
    let mut copies = Copies::default();
    // Whoever may tag snapshots there could name another one: it would at least have to be of the same size.
    let of = there.iter().filter(|s| {
        s.tags.get(COPY_OF).map(String::as_str) == Some(source.id.as_str()) && s.size == source.size
    });
    for copy in of {
        if copy.state == SnapshotState::Error {
            copies.failed.push(&copy.id);
        } else if copies.best.is_none_or(|b| (copy.started, &copy.id) < (b.started, &b.id)) {
            copies.best = Some(copy);
        }
    }
    copies
}

/// The case's snapshots that have no whole copy in the forensic account yet.
async fn missing(scene: &Scene, forensic: &Forensic) -> Result<(Vec<Snapshot>, Vec<Snapshot>)> {
    let home = scene.at_home();
    let (own, there) = tokio::join!(
        snapshot::in_its_own_account(&home),
        forensic.inventory.snapshots(&scene.case)
    );
    let ((own, _), there) = (own?, there?);
    let whole = |source: &Snapshot| {
        copies(source, &there).best.is_some_and(|copy| copy.state == SnapshotState::Completed)
    };
    let missing = own.into_values().filter(|source| !whole(source)).collect();
    Ok((missing, there))
}

/// What a room in the forensic account is made from: the whole copies of what is the evidence; and the volumes that have none.
pub(super) async fn received(
    scene: &Scene,
    own: BTreeMap<VolumeId, Snapshot>,
    mut lacking: Vec<VolumeId>,
) -> Result<(BTreeMap<VolumeId, Snapshot>, Vec<VolumeId>)> {
    let there = scene.inventory.snapshots(&scene.case).await?;
    let mut received = BTreeMap::new();
    for (volume, source) in own {
        match copies(&source, &there).best {
            Some(copy) => drop(received.insert(volume, copy.clone())),
            None => lacking.push(volume),
        }
    }
    Ok((received, lacking))
}

fn shortfall(what: String, advice: String) -> Shortfall {
    Shortfall { step: Step::CleanRoom, what, advice }
}

/// Why a snapshot can not be shared as it is, where that is so (`containment.md`, rule 10).
async fn unshareable(scene: &Scene, snapshot: &Snapshot) -> Result<Option<Shortfall>> {
    let Some(key) = snapshot.key.as_ref().filter(|_| snapshot.encrypted) else { return Ok(None) };
    let why = match scene.at_home().inventory.key(key).await {
        Ok(known) if known.aws_managed => "which AWS manages",
        Ok(known) if known.account != scene.caller.account => "which another account owns",
        Ok(_) => return Ok(None),
        Err(error) if error.is_transient() => return Err(error),
        Err(_) => "which can not be looked at",
    };
    let what = format!("{} can not be shared: it is under key {key}, {why}", snapshot.id);
    let advice = match &scene.policy.key {
        None => {
            "name the case's own key with --kms-key, and run respond again: the snapshot is copied to it first"
        }
        Some(_) => {
            "its copy under the case's own key comes first: run respond again once that is whole"
        }
    };
    Ok(Some(shortfall(what, advice.to_owned())))
}

/// The forensic account may copy every snapshot.
#[derive(Debug)]
pub struct Share;

#[async_trait]
impl Goal for Share {
    fn step(&self) -> Step {
        Step::CleanRoom
    }

    fn name(&self) -> &'static str {
        "share"
    }

    async fn look(&self, scene: &Scene, _history: &History) -> Result<Assessment> {
        let mut seen = Assessment::default();
        let Some(forensic) = &scene.forensic else { return Ok(seen) };
        let (missing, _) = missing(scene, forensic).await?;
        let home = scene.at_home();
        for source in missing {
            if let Some(why) = unshareable(scene, &source).await? {
                seen.short.push(why);
                continue;
            }
            if !home.inventory.shared_with(&source.id).await?.contains(&forensic.account) {
                let (snapshot, account) = (source.id, forensic.account.clone());
                seen.now.push(Change::ShareSnapshot { snapshot, account });
            }
        }
        Ok(seen)
    }
}

/// The forensic role may read with every key that a shared snapshot is under.
#[derive(Debug)]
pub struct Grant;

#[async_trait]
impl Goal for Grant {
    fn step(&self) -> Step {
        Step::CleanRoom
    }

    fn name(&self) -> &'static str {
        "grant"
    }

    async fn look(&self, scene: &Scene, history: &History) -> Result<Assessment> {
        let mut seen = Assessment::default();
        let Some(forensic) = &scene.forensic else { return Ok(seen) };
        let (missing, _) = missing(scene, forensic).await?;
        let mut keys = BTreeSet::new();
        for source in missing.iter().filter(|s| s.encrypted) {
            // What can not be shared needs no grant: that it can not is told by who shares.
            if unshareable(scene, source).await?.is_none() {
                keys.extend(source.key.clone());
            }
        }
        for key in keys {
            grant(scene, forensic, (&key, history), &mut seen).await?;
        }
        Ok(seen)
    }
}

/// Looks at one key.
async fn grant(
    scene: &Scene,
    forensic: &Forensic,
    (key, history): (&str, &History),
    seen: &mut Assessment,
) -> Result<()> {
    let name = grant_name(scene);
    let change = Change::GrantKey {
        key: key.to_owned(),
        grantee: forensic.role.clone(),
        name: name.clone(),
    };
    let granted = match scene.at_home().inventory.grants(key, &forensic.role).await {
        Ok(grants) => grants.iter().any(|grant| grant.name == name),
        // Who may not list them may make one all the same, and the same one twice is one.
        Err(error) if error.kind == ErrorKind::Denied => history.applied.contains(&change),
        Err(error) => return Err(error),
    };
    let refusal = history.refusal(|c| *c == change);
    if !granted && refusal.is_none() {
        seen.now.push(change);
        return Ok(());
    }
    // What counts is whether it holds there. The key's own policy may admit the role too.
    let there = forensic.inventory.key(key).await;
    let holds = match there {
        Ok(_) => true,
        Err(error) if error.is_transient() => return Err(error),
        Err(_) => false,
    };
    match (refusal, holds) {
        (None, true) => {}
        (None, false) => {
            let what = format!("the grant on {key} to hold in account {}", forensic.account);
            seen.waiting = Some((what, GRANTED_WITHIN));
        }
        (Some(why), true) => seen.notes.push(format!(
            "no grant on {key} could be made ({why}): its policy lets account {} describe it, and is relied on",
            forensic.account
        )),
        (Some(why), false) => seen.short.push(shortfall(
            format!("{} can not read with key {key}: {why}", forensic.role),
            format!(
                "allow the caller kms:CreateGrant on the key, or add to the key's policy {}; and run respond again",
                key_statement(&forensic.role)
            ),
        )),
    }
    Ok(())
}

/// The forensic account has a whole copy of every snapshot. Worked at with that account's hands.
#[derive(Debug)]
pub struct Receive;

#[async_trait]
impl Goal for Receive {
    fn step(&self) -> Step {
        Step::CleanRoom
    }

    fn name(&self) -> &'static str {
        "receive"
    }

    async fn look(&self, scene: &Scene, history: &History) -> Result<Assessment> {
        let mut seen = Assessment::default();
        let Some(forensic) = &scene.forensic else { return Ok(seen) };
        let (missing, there) = missing(scene, forensic).await?;
        let mut waiting = Vec::new();
        let mut sizes = BTreeMap::new();
        for source in missing {
            if source.state != SnapshotState::Completed {
                seen.short.push(shortfall(
                    format!("{} can not be copied yet: it is not whole", source.id),
                    "run respond again once it is: it goes on from there".to_owned(),
                ));
                continue;
            }
            let copies = copies(&source, &there);
            if let Some(copy) = copies.best {
                waiting.push(format!("{} {} %", copy.id, copy.progress));
                sizes.insert(source.volume.clone(), copy.clone());
            } else if is_given_up(&source, &copies, history) {
                seen.short.push(failed(&source, &copies, forensic));
            } else {
                seen.now.push(copy(scene, forensic, &source));
            }
        }
        seen.now.truncate(AT_ONCE.saturating_sub(waiting.len()));
        if !waiting.is_empty() {
            let what = format!(
                "copies in account {} to complete: {}",
                forensic.account,
                waiting.join(", ")
            );
            seen.waiting = Some((what, patience(&sizes)));
        }
        Ok(seen)
    }
}

fn copy(scene: &Scene, forensic: &Forensic, source: &Snapshot) -> Change {
    let mut tags = scene.tags();
    tags.insert(COPY_OF.to_owned(), source.id.to_string());
    tags.insert(FROM.to_owned(), source.owner.to_string());
    Change::CopyFromAccount {
        snapshot: source.id.clone(),
        owner: source.owner.clone(),
        into: forensic.account.clone(),
        key: forensic.key.clone(),
        tags,
    }
}

/// Whether no other copy is made: one that this run made has failed, or too many have.
fn is_given_up(source: &Snapshot, copies: &Copies<'_>, history: &History) -> bool {
    let made = |change: &Change| matches!(change, Change::CopyFromAccount { snapshot, .. } if *snapshot == source.id);
    let now = history.applied.iter().any(made) && !copies.failed.is_empty();
    now || copies.failed.len() >= MOST_FAILED
}

fn failed(source: &Snapshot, copies: &Copies<'_>, forensic: &Forensic) -> Shortfall {
    let ids: Vec<_> = copies.failed.iter().map(ToString::to_string).collect();
    let mut advice = format!(
        "look at the rights of {} to the key of the copy in account {}",
        forensic.role, forensic.account
    );
    if let Some(key) = source.key.as_ref().filter(|_| source.encrypted) {
        advice.push_str(&format!(
            ", and to {key}: its policy could have {}",
            key_statement(&forensic.role)
        ));
    }
    advice.push_str("; delete the copies that failed, and run respond again");
    let what = format!(
        "{} has no copy in account {}: {} failed",
        source.id,
        forensic.account,
        ids.join(", ")
    );
    shortfall(what, advice)
}

/// The case as it is worked at where its room is. None, with a shortfall, where that can not be: the evidence was handed to
/// another account than the one that is given, or a room stands in the instance's own.
async fn at_the_room(case: &Case) -> Option<Case> {
    let ledger = case.journal.ledger().await;
    let room = match room_of(case, &ledger) {
        Ok(room) => room,
        Err(why) => {
            case.short(why);
            return None;
        }
    };
    if ledger.entrusted.is_none() && case.forensic.is_some() {
        let stacks = || clean_room::stacks(&case.scene.inventory, &case.scene.case, ledger.rooms());
        let (what, advice) =
            match again(case.bounds.original, stacks).await.map(|stacks| stacks.into_iter().next())
            {
                Ok(None) => return room,
                Ok(Some((_, stack))) => (
                    format!(
                        "no clean room in another account: {} stands in the instance's own",
                        stack.name
                    ),
                    format!("take it down with teardown {}, and run this again", case.scene.case),
                ),
                Err(why) => (
                    format!("no clean room: whether one stands already could not be read: {why}"),
                    "run respond again: it goes on where it was".to_owned(),
                ),
            };
        case.short(shortfall(what, advice));
        return None;
    }
    room
}

/// [`at_the_room`], with the evidence there. What has been examined already is not handed over anew, unless it is to be
/// examined `again`.
pub(crate) async fn ready(case: &Case, again: bool) -> Option<Case> {
    let room = at_the_room(case).await?;
    let ledger = case.journal.ledger().await;
    let newest = ledger.newest_orders();
    let examined = !newest.is_empty() && newest.values().all(|s| ledger.reports.contains_key(*s));
    if (again || !examined) && !hand_over(case).await {
        return None;
    }
    Some(room)
}

/// Where a case's room is, or would be: the case as it is worked at there.
///
/// # Errors
/// What is short: it is in another account than the one that is given.
pub(crate) fn room_of(
    case: &Case,
    ledger: &Ledger,
) -> std::result::Result<Option<Case>, Shortfall> {
    match (&ledger.entrusted, &case.forensic) {
        (None, None) => Ok(Some(case.clone())),
        (Some((account, _)), Some(given)) if given.view.account == *account => Ok(case.abroad()),
        (None, Some(_)) => Ok(case.abroad()),
        (Some((account, role)), _) => Err(shortfall(
            format!("the clean room of {} is in account {account}", case.scene.case),
            format!("run this again with --forensic-account {role}"),
        )),
    }
}

/// Hands the evidence to the forensic account, where there is one: shares it, opens its keys, copies it. Whether all of it is
/// there.
async fn hand_over(case: &Case) -> bool {
    let (Some(forensic), Some(abroad)) = (case.scene.forensic.clone(), case.abroad()) else {
        return true;
    };
    if !entrust(case, &forensic).await {
        return false;
    }
    let (share, grant) = tokio::join!(
        ensure(case, &Share, Direction::Respond),
        ensure(case, &Grant, Direction::Respond)
    );
    if !share.whole || !grant.whole || !ensure(&abroad, &Receive, Direction::Respond).await.whole {
        return false;
    }
    log_received(&abroad, &forensic).await;
    true
}

/// Logs who acts in the forensic account, before anything is done there.
async fn entrust(case: &Case, forensic: &Forensic) -> bool {
    let caller = again(case.bounds.original, || forensic.inventory.caller()).await;
    let why = match caller {
        Ok(caller) if caller.account == forensic.account => {
            let known = (forensic.account.clone(), forensic.role.clone());
            if case.journal.ledger().await.entrusted.as_ref() != Some(&known) {
                let (account, role) = known;
                let body = Body::Entrusted { account, role, session: caller.arn };
                case.journal.append(Some(Step::CleanRoom), body).await;
            }
            return true;
        }
        Ok(caller) => format!("it is account {} that answers", caller.account),
        Err(why) => why,
    };
    case.short(shortfall(
        format!("nothing is handed to account {}: {} can not be acted in: {why}", forensic.account, forensic.role),
        "look at the role's trust policy and at the caller's right to assume it; the snapshots stay where they are; run respond again".to_owned(),
    ));
    false
}

async fn log_received(abroad: &Case, forensic: &Forensic) {
    let pairs = again(abroad.bounds.goal, || async {
        let (own, _) = snapshot::in_its_own_account(&abroad.scene.at_home()).await?;
        let there = abroad.scene.inventory.snapshots(&abroad.scene.case).await?;
        let pair = |source: &Snapshot| {
            Some((source.id.to_string(), copies(source, &there).best?.id.to_string()))
        };
        Ok(own.values().filter_map(pair).collect::<BTreeMap<_, _>>())
    });
    match pairs.await {
        Ok(copies) if copies.is_empty() || copies == abroad.journal.ledger().await.received => {}
        Ok(copies) => {
            let body = Body::Received { account: forensic.account.clone(), copies };
            abroad.journal.append(Some(Step::CleanRoom), body).await;
        }
        Err(why) => abroad.note(format!("which copies were received could not be logged: {why}")),
    }
}

/// What stays open for another account, one line each: a person takes it back.
#[must_use]
pub fn stays(ledger: &Ledger) -> Vec<String> {
    let mut shared = BTreeMap::<String, Vec<String>>::new();
    let mut grants = BTreeSet::new();
    for change in ledger.changes() {
        match change {
            Change::ShareSnapshot { snapshot, account } => {
                shared.entry(account.to_string()).or_default().push(snapshot.to_string());
            }
            Change::GrantKey { key, grantee, name } => {
                grants.insert(format!("grant {name} on {key} lets {grantee} read with it"));
            }
            _ => {}
        }
    }
    let shared = shared
        .into_iter()
        .map(|(account, ids)| format!("shared with account {account}: {}", ids.join(", ")));
    let stays = shared.chain(grants).map(|what| format!("{what}, until somebody takes it back"));
    let copies =
        ledger.entrusted.iter().filter(|_| !ledger.received.is_empty()).map(|(account, _)| {
            let ids: Vec<_> = ledger.received.values().map(String::as_str).collect();
            format!("account {account} has copies of the snapshots: {}", ids.join(", "))
        });
    stays.chain(copies).collect()
}

#[cfg(test)]
mod tests {
    use cleanroom_contract::Timestamp;

    use super::*;

    fn snapshot(id: &str, of: Option<&str>, state: SnapshotState, started: i64) -> Snapshot {
        Snapshot {
            id: id.parse().expect("a snapshot's id"),
            volume: "vol-ffffffff".parse().expect("a volume's id"),
            owner: "111122223333".into(),
            state,
            progress: 0,
            size: 8,
            started: Timestamp { seconds: started, nanos: 0 },
            encrypted: false,
            key: None,
            locked: false,
            tags: of.map(|of| (COPY_OF.to_owned(), of.to_owned())).into_iter().collect(),
        }
    }

    #[test]
    fn the_earliest_copy_that_did_not_fail_is_the_one() {
        use SnapshotState as S;
        let source = snapshot("snap-00000001", None, S::Completed, 0);
        let of = Some("snap-00000001");
        let mut other_size = snapshot("snap-0000000a", of, S::Completed, 1);
        other_size.size = 9;
        let there = [
            snapshot("snap-0000000b", of, S::Error, 1),
            snapshot("snap-0000000c", of, S::Completed, 3),
            snapshot("snap-0000000d", of, S::Pending, 2),
            snapshot("snap-0000000e", Some("snap-00000002"), S::Completed, 1),
            snapshot("snap-0000000f", None, S::Completed, 1),
            other_size,
        ];
        let copies = copies(&source, &there);
        assert_eq!(copies.best.map(|c| c.id.as_str()), Some("snap-0000000d"));
        assert_eq!(copies.failed.len(), 1);
        assert_eq!(super::copies(&source, &there[3..]), Copies::default());
    }

    #[test]
    fn a_key_s_statement_is_json_that_lets_the_role_read_and_no_more() {
        let role = "arn:aws:iam::111122223333:role/forensic";
        let statement: serde_json::Value =
            serde_json::from_str(&key_statement(role)).expect("JSON");
        assert_eq!(statement["Principal"]["AWS"], role);
        let actions = statement["Action"].as_array().expect("actions");
        assert!(!actions.iter().any(|a| a == "kms:*" || a == "kms:Encrypt"), "{actions:?}");
    }
}
