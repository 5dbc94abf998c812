//! What a scan looks for: the rules and lists of a work order, as far as they can be had and used.
//!
//! Purpose: fetch them, with patience where the bucket does not answer, and leave out what can not be used. Touches the
//! bucket, for reading, and the scan's own folder. Never keeps a scan from being made: whatever is missing is a gap, and
//! what may be meant to blind the scan a finding.

use std::{
    path::{Path, PathBuf},
    time::{Duration, Instant},
};

use cleanroom_agent_aws::Store;
use cleanroom_contract::{
    Finding, Gap, OrderedFile, RoomWork, Severity, VersionOne, WorkOrder, printable,
};

use super::{
    super::say,
    Agent, Stop,
    files::{self, Fetched, NotFetched},
    news::News,
    state::Ledger,
};
use crate::{checks, rules::RulesError, supervise::SuperviseError};

/// The shortest and the longest pause between two tries to fetch a file.
const PAUSE: (Duration, Duration) = (Duration::from_secs(1), Duration::from_secs(30));

/// Rules and lists, as the scan's arguments, and what is known of those that it does without.
#[derive(Clone, Debug, Default)]
pub(super) struct Equipment {
    pub(super) rules: Vec<PathBuf>,
    pub(super) indicators: Vec<PathBuf>,
    pub(super) gaps: Vec<Gap>,
    pub(super) findings: Vec<Finding>,
}

impl Equipment {
    /// Leaves out what a scan that ended before it began can not be made with. Whether there was any.
    pub(super) fn shed(&mut self, order: &WorkOrder, error: &anyhow::Error) -> bool {
        let loading = error.downcast_ref::<SuperviseError>();
        let is_of_rules = error.downcast_ref::<RulesError>().is_some()
            || matches!(loading, Some(SuperviseError::Rules { .. }));
        let is_of_lists = matches!(loading, Some(SuperviseError::Indicators { .. }));
        let (what, left) = match (is_of_rules, is_of_lists) {
            (true, _) => ("the rules", &mut self.rules),
            (_, true) => ("the indicators", &mut self.indicators),
            _ => return false,
        };
        if left.is_empty() {
            return false;
        }
        left.clear();
        let why = printable(&format!("{error:#}"));
        self.gaps.push(files::gap(format!("not used: {what}: {why}")));
        // Text that is wrong is a mistake. What ends the process that loads it is more than that.
        if loading.is_some() {
            self.findings.push(blinding(order, what, &why));
        }
        true
    }
}

impl Agent<'_> {
    /// Fetches what an order names.
    pub(super) fn equip(
        &mut self,
        order: &WorkOrder,
        ledger: &Ledger,
        news: &News,
    ) -> Result<Equipment, Stop> {
        let store = self.aws.store(&order.publish.bucket);
        // For all together: a bucket that is away for good is away for each of them.
        let until = Instant::now() + self.args.patience;
        let mut fetch = |files: &[OrderedFile], name| {
            self.fetch(&store, (files, &ledger.folder(name)), until, news)
        };
        let rules = files::as_arguments(&order.rules, fetch(&order.rules, "rules")?);
        let lists = fetch(&order.indicators, "indicators")?;
        let mut gaps = rules.gaps;
        gaps.extend(lists.gaps);
        let findings = Vec::new();
        Ok(Equipment { rules: rules.paths, indicators: lists.paths, gaps, findings })
    }

    /// Fetches files into a folder of their own, and asks again for those that may still come.
    fn fetch(
        &mut self,
        store: &Store,
        (files, folder): (&[OrderedFile], &Path),
        until: Instant,
        news: &News,
    ) -> Result<Fetched, Stop> {
        let mut fetched = Fetched::default();
        for (number, file) in files.iter().enumerate() {
            let path = files::place(folder, number, file);
            let mut pause = PAUSE.0;
            loop {
                news.works(RoomWork::Fetching);
                match self.runtime.block_on(files::fetch(store, file, &path)) {
                    Ok(()) => fetched.paths.push(path),
                    Err(NotFetched::Yet(why)) if Instant::now() + pause < until => {
                        say(&format!("{} is not here yet: {why}", printable(&file.name)));
                        self.pause(pause)?;
                        pause = (pause * 2).min(PAUSE.1);
                        continue;
                    }
                    Err(NotFetched::Yet(why) | NotFetched::Ever(why)) => {
                        fetched.gaps.push(files::missing(file, &why));
                    }
                }
                break;
            }
        }
        Ok(fetched)
    }
}

/// The finding of rules or lists that end whoever loads them: made to, perhaps.
fn blinding(order: &WorkOrder, what: &str, why: &str) -> Finding {
    let source = "room:equipment";
    let volume = order.instance.to_string();
    Finding {
        v: VersionOne,
        id: checks::finding_id(&volume, what.as_bytes(), source),
        severity: Severity::Medium,
        title: format!("{what} could not be loaded"),
        reason: format!("{why}; the scan was made without them, and they can be made to do this"),
        technique: Some("T1562".to_owned()),
        volume,
        path: None,
        evidence: None,
        source: source.to_owned(),
        author: None,
        sha256: None,
    }
}
