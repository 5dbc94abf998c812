//! The post-incident record as Markdown: pure.
//!
//! Whatever the cloud, a person or an attacker named goes through [`text`]: it is shown, and breaks nothing.

use cleanroom_cloud::{Caller, Change};
use cleanroom_contract::{CaseId, Timestamp};

use super::markdown::text;
use crate::{
    flow::{approval::Decision, find},
    journal::{
        Ledger,
        event::{Body, CustodyEvent, Outcome},
        seconds,
        verify::Verdict,
    },
    original::Original,
    steps::{clean_room::in_room, forensic, isolate},
};

/// What a record is made of.
pub(super) struct Closing<'a> {
    pub(super) known: &'a find::Known,
    pub(super) caller: &'a Caller,
    pub(super) original: &'a Original,
    pub(super) ledger: &'a Ledger,
    pub(super) events: &'a [CustodyEvent],
    pub(super) verdict: &'a Verdict,
    /// Why it is closed.
    pub(super) reason: Option<&'a str>,
    pub(super) now: Timestamp,
    /// Cases of the same instance of which something waits on this machine.
    pub(super) apart: &'a [CaseId],
}

/// How many things one line of the timeline names.
const NAMED: usize = 8;

/// The record.
pub(super) fn render(closing: &Closing<'_>) -> String {
    let parts = [
        head(closing),
        why(closing),
        times(closing),
        timeline(closing),
        approvals(closing),
        not_cut(closing),
        gaps(closing),
        evidence(closing),
        custody(closing),
    ];
    parts.join("\n")
}

fn head(closing: &Closing<'_>) -> String {
    let claim = &closing.known.claim;
    let instance = &closing.original.instance;
    let mut out = format!("# Post-incident record of case {}\n\n", claim.case);
    let name = instance.name().unwrap_or("none");
    let rows = [
        ("Instance", claim.instance.to_string()),
        ("Name tag", text(name)),
        (
            "Type and image",
            format!("{}, {}", text(&instance.instance_type), text(instance.image.as_str())),
        ),
        (
            "Account and Region",
            format!("{}, {}", text(closing.caller.account.as_str()), text(&closing.caller.region)),
        ),
        ("Case of this instance", format!("number {}", closing.known.n)),
        ("Claimed", format!("{} by {}", time(claim.at), text(&claim.actor))),
        ("Closed", format!("{} by {}", time(closing.now), text(&closing.caller.arn))),
    ];
    out.push_str("| | |\n|---|---|\n");
    for (what, value) in rows {
        out.push_str(&format!("| {what} | {value} |\n"));
    }
    if closing.ledger.released_at.is_none() && !closing.known.released {
        out.push_str(
            "\n**The instance was not released.** It is as the response left it, or as people have left it since: isolated, or ended by them. This record does not say that it serves again.\n",
        );
    }
    out
}

fn why(closing: &Closing<'_>) -> String {
    let mut out = "## What spoke for a compromise\n\n".to_owned();
    for ground in &closing.ledger.grounds {
        out.push_str(&item(ground));
    }
    match &closing.ledger.reason {
        Some(reason) => out.push_str(&format!("\nThe reason that was given: {}\n", text(reason))),
        None => out.push_str("\nNobody gave a reason.\n"),
    }
    out
}

fn times(closing: &Closing<'_>) -> String {
    let ledger = closing.ledger;
    let opened = ledger.opened_at;
    let since = |at: Timestamp| match opened {
        Some(opened) => format!("{:.1} s", seconds(at) - seconds(opened)),
        None => "not known".to_owned(),
    };
    let mut out =
        "## Times\n\n| Milestone | UTC | After the case was opened |\n|---|---|---|\n".to_owned();
    for (what, at) in [
        ("opened", opened),
        ("contained", ledger.contained_at),
        ("preserved", ledger.preserved_at),
        ("released", ledger.released_at),
        ("closed", Some(closing.now)),
    ] {
        let row = match at {
            Some(at) => format!("| {what} | {} | {} |\n", time(at), since(at)),
            None => format!("| {what} | not | |\n"),
        };
        out.push_str(&row);
    }
    out
}

fn timeline(closing: &Closing<'_>) -> String {
    let mut out = "## Timeline\n\nTimes are by the clock of who acted. An event marked late was appended after the fact.\n\n| UTC | Who | Step | What |\n|---|---|---|---|\n".to_owned();
    let mut entries: Vec<_> = closing
        .events
        .iter()
        .flat_map(|event| event.entries().map(move |(at, step, body)| (at, event, step, body)))
        .collect();
    entries.sort_by_key(|(at, event, ..)| (*at, event.seq));
    for (at, event, step, body) in entries {
        let step = step.map_or("", |step| step.as_str());
        let late = if event.late { " (late)" } else { "" };
        let (at, who, what) = (time(at), text(&event.actor), sentence(body));
        out.push_str(&format!("| {at} | {who} | {step} | {what}{late} |\n"));
    }
    out
}

/// One event, as a sentence.
fn sentence(body: &Body) -> String {
    match body {
        Body::Opened { instance, .. } => {
            format!("opened the case of {instance}, and recorded how it was")
        }
        Body::Grounds { grounds } => {
            format!("heard what speaks for it: {}", list(grounds.iter().map(|g| text(g))))
        }
        Body::Several { entries } => list(entries.iter().map(|entry| sentence(&entry.body))),
        Body::Intent { goal, changes } => {
            format!("is about to do for {}: {}", text(goal), list(changes.iter().map(change)))
        }
        Body::Done { goal, outcomes } => format!("did for {}: {}", text(goal), ended(outcomes)),
        Body::Reached { goal } => format!("read back {} as reached", text(goal)),
        Body::Flushed { interfaces } => {
            format!("dropped the tracked flows of {}", list(interfaces.iter().map(|i| text(i))))
        }
        Body::Recorded { exhibits, missing, survivors } => format!(
            "stored {} answers for the record; {} questions were not answered; {} things were found that the instance's role made",
            exhibits.len(),
            missing.len(),
            survivors.len()
        ),
        Body::Preserved { snapshots, surplus, .. } => format!(
            "all snapshots are whole: {}; {} are surplus",
            list(snapshots.iter().map(|s| text(s))),
            surplus.len()
        ),
        Body::Contained { interfaces, seconds } => format!(
            "read back as isolated: {}, {} s after that run began",
            list(interfaces.iter().map(|i| text(i))),
            text(seconds)
        ),
        Body::Notified { milestone, message } => format!(
            "told the team: {} (message {})",
            text(milestone),
            text(message.as_deref().unwrap_or("without an id"))
        ),
        Body::Short { shortfalls, .. } if shortfalls.is_empty() => {
            "nothing is short any more".to_owned()
        }
        Body::Short { shortfalls, .. } => {
            format!("ended with this short: {}", list(shortfalls.iter().map(|s| text(&s.what))))
        }
        Body::Released { reason, forced } => released(reason.as_deref(), *forced),
        Body::Closed { record } => format!("closed the case with {}", text(&record.key)),
        Body::Ordered { scan, room, order } => {
            format!("ordered scan {scan}{} with {}", in_room(*room), text(&order.key))
        }
        Body::Reported { scan, room, exhibits, summary, missing } => format!(
            "read back the bundle of scan {scan}{}, {} files, and it is what its room said: {}; {} volumes are not examined",
            in_room(*room),
            exhibits.len(),
            crate::flow::investigate::counted(summary),
            missing.len()
        ),
        Body::Refused { scan, why } => {
            format!("read back the bundle of scan {scan}, and does not rely on it: {}", text(why))
        }
        Body::Entrusted { account, role, session } => format!(
            "began to hand the evidence to account {}, acting there in role {} as {}",
            text(account.as_str()),
            text(role),
            text(session)
        ),
        Body::Received { account, copies } => format!(
            "copies are whole in account {}: {}",
            text(account.as_str()),
            list(copies.iter().map(|(from, copy)| format!("{} of {}", text(copy), text(from))))
        ),
        Body::TornDown { stack, left } => format!(
            "took the clean room {} down; left are {}",
            text(stack),
            list(left.iter().map(|what| text(what)))
        ),
        Body::Asked { why, deadline, otherwise } => format!(
            "asked people whether to contain, until {}; {} where nobody answers: {}",
            time(*deadline),
            otherwise.words(),
            list(why.iter().map(|why| text(why)))
        ),
        Body::Answered { decision, by, reason } => answered(*decision, by, reason.as_deref()),
        Body::Acted { what, outcomes } => format!("{}: {}", text(what), ended(outcomes)),
    }
}

fn answered(decision: Decision, by: &str, reason: Option<&str>) -> String {
    let reason = text(reason.unwrap_or("no reason given"));
    format!("answered that it is {}, as {} ({reason})", decision.words(), text(by))
}

fn released(reason: Option<&str>, forced: bool) -> String {
    let forced = if forced { ", although the world was not as the response left it" } else { "" };
    let reason = text(reason.unwrap_or("no reason given"));
    format!("released the instance{forced} ({reason})")
}

fn change(change: &Change) -> String {
    format!("{}: {}", text(&change.resource()), text(&change.to_string()))
}

fn ended(outcomes: &[Outcome]) -> String {
    if outcomes.is_empty() {
        return "nothing".to_owned();
    }
    list(outcomes.iter().map(|outcome| match &outcome.error {
        None => change(&outcome.change),
        Some(why) => format!("NOT DONE {}: {}", change(&outcome.change), text(why)),
    }))
}

fn approvals(closing: &Closing<'_>) -> String {
    let mut out = "## Who asked for what\n\n| UTC | Who | What |\n|---|---|---|\n".to_owned();
    let entries = closing
        .events
        .iter()
        .flat_map(|event| event.entries().map(move |(at, _, body)| (at, event, body)));
    for (at, event, body) in entries {
        let what = match body {
            Body::Opened { reason, .. } => {
                let reason = text(reason.as_deref().unwrap_or("no reason given"));
                format!("asked for the response ({reason})")
            }
            Body::Released { reason, forced } => released(reason.as_deref(), *forced),
            Body::Answered { decision, by, reason } => answered(*decision, by, reason.as_deref()),
            Body::Acted { what, .. } => text(what),
            _ => continue,
        };
        out.push_str(&format!("| {} | {} | {what} |\n", time(at), text(&event.actor)));
    }
    let (at, who) = (time(closing.now), text(&closing.caller.arn));
    let reason = text(closing.reason.unwrap_or("no reason given"));
    out.push_str(&format!("| {at} | {who} | closed the case ({reason}) |\n"));
    out
}

fn not_cut(closing: &Closing<'_>) -> String {
    let mut out = "## What was not cut\n\nContainment does not surely cut:\n\n".to_owned();
    for what in isolate::NOT_CUT {
        out.push_str(&item(what));
    }
    let survivors = &closing.ledger.survivors;
    if survivors.is_empty() {
        out.push_str("\nThe CloudTrail events that were read name no key, user or session that the instance's role made.\n");
        return out;
    }
    out.push_str("\nMade by the instance's role, by CloudTrail's events:\n\n| Call | What | Principal | Event |\n|---|---|---|---|\n");
    for survivor in survivors {
        out.push_str(&format!(
            "| {} | {} | {} | {} |\n",
            text(&survivor.call),
            text(&survivor.what),
            text(survivor.principal.as_deref().unwrap_or("not told")),
            text(&survivor.event)
        ));
    }
    out
}

fn gaps(closing: &Closing<'_>) -> String {
    let ledger = closing.ledger;
    let mut out = "## Gaps\n\n".to_owned();
    out.push_str(&item("memory was not taken"));
    if ledger.contained_at.is_none() {
        out.push_str(&item("the instance was never read back as isolated on every interface"));
    }
    if ledger.preserved_at.is_none() {
        out.push_str(&item("its volumes were never read back as preserved by whole snapshots"));
    }
    for shortfall in &ledger.shortfalls {
        out.push_str(&item(&format!(
            "{}: {} ({})",
            shortfall.step, shortfall.what, shortfall.advice
        )));
    }
    for (part, why) in closing.original.unknown() {
        out.push_str(&item(&format!("the {part} could not be read before the response: {why}")));
    }
    for (question, why) in &ledger.missing {
        out.push_str(&item(&format!("not in the record: {question}: {why}")));
    }
    if ledger.recorded_at.is_none() {
        out.push_str(&item("nothing was stored for the record"));
    }
    if closing.verdict.late > 0 {
        out.push_str(&item(&format!(
            "{} custody events were appended after the fact",
            closing.verdict.late
        )));
    }
    for case in closing.apart {
        out.push_str(&item(&format!(
            "events of {case}, begun for the same instance while the bucket was down, wait on the machine of whoever closed this case"
        )));
    }
    out
}

fn evidence(closing: &Closing<'_>) -> String {
    let ledger = closing.ledger;
    let mut out = "## Evidence\n\n".to_owned();
    for snapshot in &ledger.snapshots {
        out.push_str(&item(&format!("snapshot {snapshot}")));
    }
    for what in forensic::stays(ledger) {
        out.push_str(&item(&what));
    }
    let entries = closing.events.iter().flat_map(CustodyEvent::entries);
    let preserved = entries.filter_map(|(_, _, body)| match body {
        Body::Preserved { surplus, notes, .. } => Some((surplus, notes)),
        _ => None,
    });
    if let Some((surplus, notes)) = preserved.last() {
        for snapshot in surplus {
            out.push_str(&item(&format!("surplus snapshot {snapshot}")));
        }
        for note in notes {
            out.push_str(&item(note));
        }
    }
    if ledger.snapshots.is_empty() {
        out.push_str(&item("no snapshot is logged"));
    }
    out.push_str("\n| Object | Bytes | SHA-256 | Answer of |\n|---|---|---|---|\n");
    for exhibit in ledger.exhibits.values() {
        let (key, operation) = (text(&exhibit.key), text(&exhibit.operation));
        out.push_str(&format!("| {key} | {} | {} | {operation} |\n", exhibit.size, exhibit.sha256));
    }
    out
}

fn custody(closing: &Closing<'_>) -> String {
    let verdict = closing.verdict;
    let mut out = format!(
        "## Custody log\n\nVerified at {}: {} events, {} objects of evidence, {} events late.\n\n",
        time(closing.now),
        verdict.events,
        verdict.exhibits,
        verdict.late
    );
    if verdict.faults.is_empty() {
        out.push_str("The chain is whole, and every object is what was recorded.\n");
        return out;
    }
    out.push_str(&format!("**It is not what was written: {} faults.** The case was closed all the same (see above for the reason).\n\n", verdict.faults.len()));
    for fault in &verdict.faults {
        out.push_str(&item(fault));
    }
    out
}

fn item(what: &str) -> String {
    format!("- {}\n", text(what))
}

/// Texts that are Markdown already, separated by semicolons.
fn list(texts: impl Iterator<Item = String>) -> String {
    let all: Vec<_> = texts.collect();
    let more = all.len().saturating_sub(NAMED);
    let first = all.iter().take(NAMED).cloned().collect::<Vec<_>>().join("; ");
    if more == 0 { first } else { format!("{first}; and {more} more") }
}

/// A time to the millisecond, which is what people compare.
fn time(at: Timestamp) -> String {
    let whole = at.to_string();
    match whole.split_once('.') {
        Some((seconds, _)) if whole.ends_with('Z') => {
            format!("{seconds}.{:03}Z", at.nanos / 1_000_000)
        }
        _ => whole,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_are_told_to_the_millisecond() {
        for (seconds, nanos, expected) in [
            (1_767_225_600, 0, "2026-01-01T00:00:00.000Z"),
            (1_767_225_600, 123_456_789, "2026-01-01T00:00:00.123Z"),
            (1_767_225_600, 999_999_999, "2026-01-01T00:00:00.999Z"),
            (i64::MAX, 5, "@9223372036854775807.000000005"),
        ] {
            assert_eq!(time(Timestamp { seconds, nanos }), expected);
        }
    }
}
