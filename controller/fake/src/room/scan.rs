//! What a room tells of its scans, and what they come to.

use std::{collections::BTreeMap, time::Duration};

use cleanroom_cloud::{InstanceState, StackState};
use cleanroom_contract::{
    CaseId, Coverage, EvidenceSource, InstanceId, OrderedVolume, PublishedFile, Report, RoomEvent,
    RoomNews, Run, RunState, ScanId, Severity, SeverityCounts, Summary, VersionOne, WorkOrder,
    bundle_prefix, event_key, events_prefix,
};

use super::RoomEnds;
use crate::{later::Later, store::digest, world::World};

/// How often a room looks for another order.
const LOOKS: Duration = Duration::from_secs(10);

impl World {
    /// The room begins with an order, where it can be read.
    pub(super) fn take_up(&mut self, name: &str, key: &str) {
        let order =
            self.bucket.newest(key).and_then(|b| serde_json::from_slice::<WorkOrder>(b).ok());
        let Some(order) = order else { return };
        let clock = self.clock;
        if let Some(built) = self.built.get_mut(name) {
            built.scans.insert(order.scan.clone());
            built.idle_since = clock;
        }
        let pace = self.room.pace;
        self.after(pace, Later::Room { stack: name.to_owned(), scan: order.scan, seq: 1 });
    }

    fn stands(&self, name: &str) -> bool {
        let running = |id: &InstanceId| {
            self.machine(id).is_some_and(|m| m.instance.state == InstanceState::Running)
        };
        self.built.get(name).is_some_and(|b| {
            b.stack.state == StackState::Created && b.instance.as_ref().is_some_and(running)
        })
    }

    /// Where a room looks for orders: where its first is, below the case's own or below `room-<n>/`.
    fn orders_of(&self, name: &str) -> String {
        let key = self.built.get(name).and_then(|b| b.stack.parameters.get("OrderKey"));
        let prefix = key.and_then(|key| key.rsplit_once('/')).map(|(prefix, _)| prefix);
        format!("{}/", prefix.unwrap_or_default())
    }

    pub(super) fn case_of(&self, name: &str) -> Option<CaseId> {
        self.built.get(name)?.stack.parameters.get("Case")?.parse().ok()
    }

    pub(crate) fn tell_of_scan(&mut self, name: &str, scan: &ScanId, seq: u64) {
        let Some(case) = self.case_of(name).filter(|_| self.stands(name)) else { return };
        if matches!(self.room.ends, RoomEnds::FallsSilent(after) if seq > after) {
            return;
        }
        let key = format!("{}{scan}.json", self.orders_of(name));
        let order =
            self.bucket.newest(&key).and_then(|b| serde_json::from_slice::<WorkOrder>(b).ok());
        let Some(order) = order else { return };
        let Some((news, ends)) = self.news(name, &order, seq) else { return };
        self.tell(&case, scan, seq, news);
        if ends {
            let clock = self.clock;
            if let Some(built) = self.built.get_mut(name) {
                built.idle_since = clock;
            }
            self.after(LOOKS, Later::RoomLooks(name.to_owned()));
        } else {
            let next = Later::Room { stack: name.to_owned(), scan: scan.clone(), seq: seq + 1 };
            self.after(self.room.pace, next);
        }
    }

    fn tell(&mut self, case: &CaseId, scan: &ScanId, seq: u64, news: RoomNews) {
        let at = self.now();
        let event =
            RoomEvent { v: VersionOne, case: case.clone(), scan: scan.clone(), seq, at, news };
        let bytes = serde_json::to_vec(&event).unwrap_or_default();
        self.bucket.overwrite(&event_key(case, scan, seq), bytes);
    }

    /// The news of this number, and whether it is the last.
    fn news(&mut self, name: &str, order: &WorkOrder, seq: u64) -> Option<(RoomNews, bool)> {
        let volumes = self.built.get(name)?.volumes.clone();
        let sources: Vec<_> = order.volumes.iter().map(|v| v.source.clone()).collect();
        let (here, absent): (Vec<_>, Vec<_>) =
            sources.into_iter().partition(|source| volumes.contains_key(source));
        let there = here.len().saturating_sub(self.room.missing);
        let (found, late) = here.split_at(there);
        let missing = [late, absent.as_slice()].concat();
        let summary = summary(order);
        Some(match seq {
            1 => {
                let agent = "cleanroom-agent 0.1.0".to_owned();
                (RoomNews::Started { agent, agent_sha256: None, attempt: 1 }, false)
            }
            2 => {
                let found = found.to_vec();
                (RoomNews::Attached { found, missing, unexpected: Vec::new() }, false)
            }
            3 => {
                let volume = order.volumes.first().map(|v| v.source.to_string());
                let news = RoomNews::Progress {
                    volume: volume.unwrap_or_default(),
                    entries: 500,
                    bytes: 1 << 20,
                    bytes_total: 4 << 20,
                    findings: 1,
                    gaps: 0,
                };
                (news, false)
            }
            4 => match &self.room.ends {
                RoomEnds::Fails(why) => (RoomNews::Failed { reason: why.clone() }, true),
                _ => {
                    let sums = digest(sums(&bundle(order)).as_bytes());
                    (RoomNews::Sealed { sums, summary: Box::new(summary) }, false)
                }
            },
            5 => match self.publish_bundle(order) {
                Ok(files) => (RoomNews::Published { files }, true),
                Err(reason) => (RoomNews::Failed { reason }, true),
            },
            _ => return None,
        })
    }

    /// Puts the bundle into the bucket, its sums last. What somebody else has put there is never written over.
    fn publish_bundle(&mut self, order: &WorkOrder) -> Result<Vec<PublishedFile>, String> {
        let mut files = bundle(order);
        files.push(("SHA256SUMS".to_owned(), sums(&files).into_bytes()));
        let prefix = bundle_prefix(&order.case, &order.scan);
        let mut published = Vec::new();
        for (name, bytes) in files {
            let key = format!("{prefix}{name}");
            if self.bucket.newest(&key).is_some_and(|there| there != bytes.as_slice()) {
                return Err(format!("{key} is there already, and is another"));
            }
            let (size, sha256) = (bytes.len() as u64, digest(&bytes));
            published.push(PublishedFile { key: key.clone(), size, sha256 });
            let spoilt = self.room.spoilt.as_deref() == Some(name.as_str());
            self.bucket.overwrite(&key, if spoilt { vec![b'x'; bytes.len()] } else { bytes });
        }
        Ok(published)
    }

    /// Another order is taken up; without one for long enough the room ends itself.
    pub(crate) fn look_for_orders(&mut self, name: &str) {
        let Some(case) = self.case_of(name).filter(|_| self.stands(name)) else { return };
        let Some(built) = self.built.get(name) else { return };
        let prefix = self.orders_of(name);
        let scan_of =
            |key: &String| key.strip_prefix(&prefix)?.strip_suffix(".json")?.parse::<ScanId>().ok();
        let newest = built.scans.last().cloned();
        let keys = self.bucket.keys(&prefix);
        let next = keys.iter().find(|key| scan_of(key) > newest);
        let idle: u64 =
            built.stack.parameters.get("IdleSeconds").and_then(|s| s.parse().ok()).unwrap_or(3600);
        let since = built.idle_since;
        let instance = built.instance.clone();
        if let Some(key) = next.cloned() {
            self.take_up(name, &key);
        } else if self.clock.saturating_sub(since) >= Duration::from_secs(idle) {
            if let Some(scan) = newest {
                let told = self.bucket.keys(&events_prefix(&case, &scan)).len();
                self.tell(&case, &scan, told as u64 + 1, RoomNews::Idle);
            }
            let machine = instance.and_then(|id| self.machines.get_mut(&id));
            if let Some(machine) = machine {
                machine.instance.state = InstanceState::Stopped;
            }
        } else {
            self.after(LOOKS, Later::RoomLooks(name.to_owned()));
        }
    }
}

/// What a scan of this order comes to: a finding of its own, and one for each file of rules.
fn summary(order: &WorkOrder) -> Summary {
    let mut findings = SeverityCounts::default();
    findings.add(Severity::Critical);
    for _ in &order.rules {
        findings.add(Severity::High);
    }
    Summary {
        v: VersionOne,
        entries: 1000,
        files: 900,
        bytes: 4 << 20,
        findings,
        gaps: 2,
        complete: true,
    }
}

fn sums(files: &[(String, Vec<u8>)]) -> String {
    files.iter().map(|(name, bytes)| format!("{}  {name}\n", digest(bytes))).collect()
}

/// A bundle, but for its sums. The same bytes for the same order.
fn bundle(order: &WorkOrder) -> Vec<(String, Vec<u8>)> {
    let source = |v: &OrderedVolume| EvidenceSource {
        name: v.source.to_string(),
        given: v.source.to_string(),
        kind: "device".to_owned(),
        size: Some(u64::from(v.gib) << 30),
        partition_table: None,
    };
    let report = Report {
        v: VersionOne,
        case: Some(order.case.clone()),
        examiner: None,
        evidence_id: None,
        notes: Vec::new(),
        run: Run {
            id: "0".repeat(32),
            started: crate::BEGINNING,
            ended: crate::BEGINNING,
            agent: "cleanroom-agent 0.1.0".to_owned(),
            agent_sha256: None,
            arguments: Vec::new(),
            host: "room".to_owned(),
            kernel: "6.1".to_owned(),
            state: RunState::Complete,
        },
        evidence: order.volumes.iter().map(source).collect(),
        volumes: Vec::new(),
        rules: Vec::new(),
        indicators: Vec::new(),
        rule_diagnostics: Vec::new(),
        limits: BTreeMap::new(),
        summary: summary(order),
        coverage: Coverage { volumes: order.volumes.len() as u64, ..Coverage::default() },
        worst: Vec::new(),
        gaps: Vec::new(),
        files: Vec::new(),
    };
    let findings: String =
        order.rules.iter().map(|rule| format!("{{\"rule\":\"{}\"}}\n", rule.name)).collect();
    vec![
        ("findings.jsonl".to_owned(), findings.into_bytes()),
        ("report.json".to_owned(), serde_json::to_vec(&report).unwrap_or_default()),
    ]
}
