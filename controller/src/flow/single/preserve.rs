//! From snapshots that have begun to a report that was read back, a look at a time: the machine waits.

use std::time::Duration;

use futures_util::future::join_all;
use serde_json::{Value, json};

use super::{Failed, never};
use crate::{
    case::{Case, Goal, Run, Step},
    engine::{Direction, ensure},
    execution::Ask,
    flow::{investigate, report::lines},
    journal::seconds,
    progress::Event,
    steps::{
        clean_room::order,
        notify::{self, Milestone},
        snapshot,
    },
};

/// Looks after which pauses are no longer short: a small volume's snapshot is whole in a minute.
const SOON: u64 = 4;

/// Seconds until the next look at something that may take so many: with 60 looks, more than its time.
fn decide_pause(round: u64, most: u64) -> u64 {
    if round <= SOON { 15 } else { (most / 40).clamp(15, 21_600) }
}

fn round(ask: &Ask) -> u64 {
    ask.looked["round"].as_u64().unwrap_or(1)
}

/// Whether every volume has a whole snapshot, under a key that is the case's; and the groups of volumes that rooms examine.
pub(super) async fn preserve(case: &Case, run: &Run, ask: &Ask) -> Value {
    // The step that takes them may never have come to its end: isolation does not wait for that.
    ensure(case, &snapshot::Take, Direction::Respond).await;
    let settled = ensure(case, &snapshot::Settle, Direction::Respond).await;
    if !case.is_under_way() {
        let goals: [&dyn Goal; 3] = [&snapshot::Rekey, &snapshot::Lock, &snapshot::Register];
        join_all(goals.map(|goal| ensure(case, goal, Direction::Respond))).await;
    }
    if case.is_under_way() {
        let gib = case.scene.original.instance.volumes.len() as u64 * 100;
        return json!({ "done": false, "seconds": decide_pause(round(ask), 3_600 + gib * 10) });
    }
    let preserved = settled.whole && snapshot::log_preserved(case).await;
    let mut facts = json!({ "done": true, "preserved": preserved });
    if preserved {
        let took = run.started.elapsed().as_secs_f64();
        facts["preserved_seconds"] = json!(took);
        case.progress.tell(Event::Milestone {
            instance: case.scene.instance.clone(),
            name: Milestone::Preserved.as_str(),
            seconds: took,
        });
        notify::publish(case, Milestone::Preserved, &lines(case)).await;
    }
    if case.does(Step::CleanRoom) {
        facts["rooms"] = rooms(case).await;
    }
    facts
}

/// The volumes of each room that the case needs: at most 24. Each step looks again which they are.
async fn rooms(case: &Case) -> Value {
    match investigate::groups(case).await {
        Ok(groups) => {
            groups.iter().map(|(n, volumes)| json!({ "n": n, "volumes": volumes })).collect()
        }
        // The rooms' own steps look again.
        Err(_) => {
            let rooms = 1..=case.journal.ledger().await.rooms();
            rooms.map(|n| json!({ "n": n, "volumes": [] })).collect()
        }
    }
}

/// Whether there is to be a room, and for how long it may be waited for. Makes nothing.
pub(super) async fn order(case: &Case) -> Value {
    match investigate::outstanding(case).await {
        None => json!({ "room": false }),
        // Two hours for the stack, two for the scan, thirty seconds a GiB.
        Some(gib) => {
            let seconds = gib.saturating_mul(30).saturating_add(14_400).clamp(3_600, 1_209_600);
            json!({ "room": true, "seconds": seconds })
        }
    }
}

/// Orders a scan that tells its end to the task, and launches the room.
///
/// # Errors
/// When no room will ever end the task: the machine then reads back what there is, at its own pace.
pub(super) async fn clean_room(case: &mut Case, token: String) -> Result<Value, Failed> {
    let policy = std::sync::Arc::make_mut(&mut case.scene.policy);
    policy.room.task_token = Some(token.clone());
    let reported = Box::pin(investigate::investigate_here(case)).await;
    if let Some(reported) = reported {
        return Err(never(format!("scan {} has been read back already", reported.scan)));
    }
    let newest = order::newest(&*case.store, &case.scene.case, case.scene.room).await;
    let ours = newest
        .map_err(|why| Failed { retryable: false, why })?
        .is_some_and(|ordered| ordered.order.task_token.as_deref() == Some(token.as_str()));
    match (ours, case.is_under_way()) {
        (true, true) => Ok(json!({})),
        (true, false) => Err(never("there is no room: its case says why")),
        (false, _) => {
            Err(never("a scan that was ordered before is awaited: it does not end this task"))
        }
    }
}

/// Reads a bundle back where there is one, and goes on with what stands in the way of it. Orders no other scan: that is for
/// whoever responds again.
pub(super) async fn read_back(case: &Case, run: &Run, ask: &Ask) -> Value {
    let reported = Box::pin(investigate::go_on_with_newest(case)).await;
    if let Some(reported) = reported {
        let took = run.started.elapsed().as_secs_f64();
        case.progress.tell(Event::Milestone {
            instance: case.scene.instance.clone(),
            name: Milestone::Reported.as_str(),
            seconds: took,
        });
        return json!({
            "going": false,
            "scan": reported.scan,
            "bundle": reported.bundle,
            "reported_seconds": took,
            "findings": reported.summary.findings,
            "gaps": reported.summary.gaps,
        });
    }
    if !case.is_under_way() {
        return json!({ "going": false });
    }
    let ledger = case.journal.ledger().await;
    let since = ledger.preserved_at.map_or(0.0, |at| seconds(case.journal.now()) - seconds(at));
    // A scan that has gone on for long goes on for long.
    let since = Duration::try_from_secs_f64(since).unwrap_or_default().as_secs();
    let pause = if round(ask) <= SOON { 30 } else { (since / 8).clamp(60, 21_600) };
    json!({ "going": true, "seconds": pause })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sixty_looks_cover_what_they_wait_for() {
        for most in [3_600, 100_000, 167_440] {
            let all: u64 = (1..=60).map(|round| decide_pause(round, most)).sum();
            assert!(all >= most, "{most}: {all}");
        }
    }
}
