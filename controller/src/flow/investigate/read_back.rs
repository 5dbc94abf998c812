//! A published bundle: read back, logged or refused, and told.
//!
//! Nothing of a bundle is relied on before every byte is what its sums say. Reads the bucket, writes the custody log.

use std::{collections::BTreeSet, time::Duration};

use cleanroom_cloud::CloudError;
use cleanroom_contract::{Report, ScanId, VolumeId};
use tokio::time::Instant;

use super::{
    AGAIN, Reported, counted,
    evidence::{Coverage, Scanned},
    join, not_reported, unknown,
};
use crate::{
    case::{Case, Shortfall, Step, lock},
    journal::event::Body,
    progress::Event,
    steps::{
        clean_room::{
            bundle::{self, BundleError, Verified},
            order::Ordered,
            watch::{self, Heard},
        },
        notify::{self, Milestone},
    },
};

/// Reads the bundle back, logs it, and tells people.
pub(super) async fn read_back(case: &Case, ordered: &Ordered, heard: &Heard) -> Option<Reported> {
    let scan = &ordered.order.scan;
    for odd in &heard.odd {
        case.note(format!("scan {scan}: {odd}"));
    }
    let verified = match verified(case, scan, heard).await {
        Ok(verified) => verified,
        Err(error) => return refuse(case, scan, &error).await,
    };
    for name in &verified.unnamed {
        case.note(format!(
            "beside the bundle of scan {scan} is {name}, which its sums do not name"
        ));
    }
    if !heard.unexpected.is_empty() {
        case.note(format!(
            "the room of scan {scan} has disks that nobody ordered: {}",
            join(&heard.unexpected)
        ));
    }
    let report = &verified.report;
    let sources: BTreeSet<_> = ordered.order.volumes.iter().map(|v| v.source.clone()).collect();
    let mut missing = never_seen(&sources, heard, report);
    // What no scan has examined, whatever the reason, is on record with this one.
    let coverage = Coverage::read(case).await;
    match &coverage {
        Ok(coverage) => missing.extend(coverage.beside(&sources)),
        Err(why) => unknown(case, why),
    }
    let missing: Vec<_> = missing.into_iter().collect();
    let summary = report.summary.clone();
    let body = Body::Reported {
        scan: scan.clone(),
        room: ordered.order.room,
        exhibits: verified.exhibits,
        summary: Box::new(summary.clone()),
        missing: missing.clone(),
    };
    case.journal.append(Some(Step::CleanRoom), body).await;
    let scanned = Scanned { scan, missing: &missing, complete: summary.complete };
    scanned.tell(case, coverage.as_ref().ok());
    let reported = Reported::of(case, scan, &summary);
    let name = format!("{} {scan}", Milestone::Reported.as_str());
    let lines = lines(&reported, report, &lock(&case.shortfalls).clone());
    notify::publish_as(case, Milestone::Reported, &name, &lines).await;
    // Only now: it tells people when it has published, and so after what was waited for.
    if let Ok(Some(why)) = watch::untold(&*case.store, (&case.scene.case, scan)).await {
        case.note(format!("the room of scan {scan} could not tell people: {why}"));
    }
    Some(reported)
}

/// A bundle that is not what it says of itself will never be: its scan is over. One that could not be read may be read later.
async fn refuse(case: &Case, scan: &ScanId, error: &BundleError) -> Option<Reported> {
    let why = crate::journal::error_chain(error);
    let what = format!("not relied on: {why}");
    if !is_final(error) {
        return not_reported(case, scan, what, AGAIN).await;
    }
    let body = Body::Refused { scan: scan.clone(), why };
    case.journal.append(Some(Step::CleanRoom), body).await;
    let advice = "nothing of it is relied on; find out who wrote to the bundle's prefix (CloudTrail), and run respond or rescan again: it orders another scan";
    not_reported(case, scan, what, advice).await
}

fn is_final(error: &BundleError) -> bool {
    match error {
        BundleError::Store { source, .. } => is_too_large(source),
        BundleError::Absent(_) | BundleError::Faulty { .. } => true,
    }
}

/// A list or a report that no room writes.
fn is_too_large(error: &CloudError) -> bool {
    error.code == "TooLarge"
}

/// Reads it back, again as long as that may help: reading hours of a scan's work is worth patience.
async fn verified(case: &Case, scan: &ScanId, heard: &Heard) -> Result<Verified, BundleError> {
    let waiting = |what: String| {
        case.progress.tell(Event::Waiting {
            instance: case.scene.instance.clone(),
            step: Step::CleanRoom,
            what,
        });
    };
    waiting(format!("the bundle of scan {scan} to be read back"));
    let ends = Instant::now() + case.bounds.silence;
    let mut pause = Duration::from_millis(500);
    loop {
        match bundle::verify(&*case.store, (&case.scene.case, scan), heard).await {
            Err(BundleError::Store { source, .. })
                if source.is_transient() && Instant::now() + pause < ends =>
            {
                waiting(format!("the bundle of scan {scan} is read again: {source}"));
            }
            ended => return ended,
        }
        tokio::time::sleep(pause).await;
        pause = (pause * 2).min(LONGEST);
    }
}

/// Between two attempts at reading a bundle back, at most.
const LONGEST: Duration = Duration::from_secs(30);

/// Volumes of the order that the room never saw: by its report, and by what it said was missing.
fn never_seen(ordered: &BTreeSet<VolumeId>, heard: &Heard, report: &Report) -> BTreeSet<VolumeId> {
    let examined = |source: &VolumeId| {
        report.evidence.iter().any(|e| e.name == source.as_str() && e.kind != "unknown")
    };
    let is_missing = |source: &&VolumeId| !examined(source) || heard.missing.contains(source);
    ordered.iter().filter(is_missing).cloned().collect()
}

/// What people are told of a report: within what SNS takes, whatever the evidence holds.
fn lines(reported: &Reported, report: &Report, shortfalls: &[Shortfall]) -> Vec<String> {
    let cut = |text: &str| text.chars().take(300).collect::<String>();
    let mut lines =
        vec![format!("report: {}report.html", reported.bundle), counted(&reported.summary)];
    lines.extend(report.worst.iter().take(10).map(|finding| {
        let path = finding.path.as_ref().map(|path| path.path.as_str()).unwrap_or_default();
        cut(&format!("{}: {} {}{path}", finding.severity.as_str(), finding.title, finding.volume))
    }));
    lines.extend(shortfalls.iter().take(20).map(|s| cut(&format!("NOT DONE: {}", s.what))));
    lines
}
