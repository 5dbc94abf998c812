//! What a clean room is told at its launch, and what it tells of itself.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use crate::{
    CaseId, Finding, OrderedFile, ScanId, Sha256, SnapshotId, Summary, Timestamp, VersionOne,
    VolumeId,
};

/// The line of an instance's user data that holds its [`Room`] begins with this, and a space.
const MARK: &str = "#cleanroom-room";

/// What an instance is told at its launch, in one line of its user data.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Room {
    /// Schema version.
    pub v: VersionOne,
    /// The case.
    pub case: CaseId,
    /// The Region.
    pub region: String,
    /// The stack to signal, by name.
    pub stack: String,
    /// The evidence bucket.
    pub bucket: String,
    /// The first work order.
    pub order: OrderedFile,
    /// The room's copies, by the snapshot each is made from.
    pub volumes: BTreeMap<SnapshotId, VolumeId>,
    /// Seconds without a new work order after which the room ends itself.
    pub idle_seconds: u32,
}

impl Room {
    /// Finds the document in user data.
    ///
    /// # Errors
    /// Where there is none, or it can not be read.
    pub fn in_user_data(text: &str) -> Result<Self, String> {
        let lines = text.lines().filter_map(|line| line.strip_prefix(MARK));
        let mut found = lines.filter_map(|rest| rest.strip_prefix(' '));
        let Some(json) = found.next() else {
            return Err(format!("no line of the user data begins with {MARK}"));
        };
        if found.next().is_some() {
            return Err(format!("more than one line of the user data begins with {MARK}"));
        }
        serde_json::from_str(json).map_err(|error| error.to_string())
    }
}

/// A file that was published.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct PublishedFile {
    /// Its key.
    pub key: String,
    /// Bytes.
    pub size: u64,
    /// Of its bytes.
    pub sha256: Sha256,
}

/// What a room is at, where it has nothing else to tell.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum RoomWork {
    /// It waits for volumes.
    Attaching,
    /// It fetches rules and lists.
    Fetching,
    /// It seals the bundle.
    Sealing,
    /// It publishes the bundle.
    Publishing,
}

impl RoomWork {
    /// In a few words, for people.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Attaching => "waits for volumes",
            Self::Fetching => "fetches rules and lists",
            Self::Sealing => "seals the bundle",
            Self::Publishing => "publishes the bundle",
        }
    }
}

/// What a room tells of a scan.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(tag = "event", rename_all = "snake_case")]
pub enum RoomNews {
    /// The agent runs, and the room is safe: nothing assembles or mounts evidence by itself.
    Started {
        /// `cleanroom-agent <version>`.
        agent: String,
        /// Of the agent's own program.
        agent_sha256: Option<Sha256>,
        /// How many times the agent has taken up this scan, from 1.
        attempt: u32,
    },
    /// The volumes that came, those that never did, and disks that nobody expected.
    Attached {
        /// By the ids of the instance's volumes, as the order has them ([`crate::OrderedVolume::source`]).
        found: Vec<VolumeId>,
        /// Those that did not come in time, by the same ids.
        missing: Vec<VolumeId>,
        /// Serial numbers, printable.
        unexpected: Vec<String>,
    },
    /// How far it is.
    Progress {
        /// The volume in hand.
        volume: String,
        /// Entries recorded so far, in all volumes.
        entries: u64,
        /// Bytes of content read.
        bytes: u64,
        /// Bytes in use on the volumes, so far as known.
        bytes_total: u64,
        /// Findings so far.
        findings: u64,
        /// Gaps so far.
        gaps: u64,
    },
    /// Findings as they come, before the bundle: at most a few, the worst that are new.
    Findings {
        /// Worst first.
        findings: Vec<Finding>,
    },
    /// The bundle is sealed, on the room's own disk.
    Sealed {
        /// Of `SHA256SUMS`.
        sums: Sha256,
        /// What came of the scan.
        summary: Box<Summary>,
    },
    /// The bundle can not be published yet. It stays sealed on the room's own disk, and is tried again.
    Unpublished {
        /// Why.
        reason: String,
    },
    /// The bundle is whole in the bucket.
    Published {
        /// Every file of it.
        files: Vec<PublishedFile>,
    },
    /// The scan ended without a bundle.
    Failed {
        /// Why.
        reason: String,
    },
    /// People could not be told.
    Untold {
        /// Why.
        reason: String,
    },
    /// It is at work and has nothing else to tell: told every minute at the latest, so that nobody takes it for dead.
    Working {
        /// On what. Not `at`: that is the event's own.
        doing: RoomWork,
    },
    /// The order waits until the room is done with another; told again as long as it does.
    Queued {
        /// The scan that is under way.
        behind: ScanId,
    },
    /// The room ends itself.
    Idle,
}

/// `cases/<case>/bundles/<scan>.events/000001.json`: a claim by a machine that handled hostile data. The controller checks
/// what can be checked before it relies on it.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct RoomEvent {
    /// Schema version.
    pub v: VersionOne,
    /// The case.
    pub case: CaseId,
    /// The scan.
    pub scan: ScanId,
    /// From 1, without gaps.
    pub seq: u64,
    /// When, by the room's clock.
    pub at: Timestamp,
    /// What.
    #[serde(flatten)]
    pub news: RoomNews,
}

#[cfg(test)]
mod tests {
    use super::*;

    const ROOM: &str = r#"{"v":1,"case":"case-1","region":"us-east-1","stack":"cleanroom-case-1","bucket":"evidence",
"order":{"name":"order","key":"cases/case-1/orders/20260102T030405Z-0123abcd.json",
"sha256":"e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855"},
"volumes":{"snap-0123456789abcdef0":"vol-0123456789abcdef0"},"idle_seconds":3600}"#;

    #[test]
    fn a_room_is_found_in_a_script() {
        let room = ROOM.replace('\n', "");
        let script = format!("#!/bin/sh\n#cleanroom-room {room}\necho\n");
        let found = Room::in_user_data(&script).expect("a room");
        assert_eq!(found.case.as_str(), "case-1");
        assert_eq!(found.volumes.len(), 1);
        let twice = format!("{script}#cleanroom-room {room}\n");
        for bad in ["", "#!/bin/sh\n", "#cleanroom-room\n", "#cleanroom-room {}\n", &twice] {
            assert!(Room::in_user_data(bad).is_err(), "{bad}");
        }
    }

    /// News of every kind. The match has to be added to for a new one.
    fn every_news() -> Vec<RoomNews> {
        let volume: VolumeId = "vol-0123456789abcdef0".parse().expect("a volume id");
        let scan: ScanId = "20260102T030405Z-0123abcd".parse().expect("a scan id");
        let (sums, reason) = (Sha256([7; 32]), "refused".to_owned());
        let file = PublishedFile { key: "key".to_owned(), size: 1, sha256: sums };
        let summary = Box::new(Summary {
            v: VersionOne,
            entries: 1,
            files: 1,
            bytes: 1,
            findings: crate::SeverityCounts::default(),
            gaps: 0,
            complete: true,
        });
        let (found, missing) = (vec![volume.clone()], vec![volume]);
        let all = vec![
            RoomNews::Started { agent: "agent".to_owned(), agent_sha256: Some(sums), attempt: 1 },
            RoomNews::Attached { found, missing, unexpected: vec!["vol0".to_owned()] },
            RoomNews::Progress {
                volume: "vol".to_owned(),
                entries: 1,
                bytes: 2,
                bytes_total: 3,
                findings: 4,
                gaps: 5,
            },
            RoomNews::Findings { findings: Vec::new() },
            RoomNews::Sealed { sums, summary },
            RoomNews::Unpublished { reason: reason.clone() },
            RoomNews::Published { files: vec![file] },
            RoomNews::Failed { reason: reason.clone() },
            RoomNews::Untold { reason },
            RoomNews::Working { doing: RoomWork::Sealing },
            RoomNews::Queued { behind: scan },
            RoomNews::Idle,
        ];
        for news in &all {
            match news {
                RoomNews::Started { .. }
                | RoomNews::Attached { .. }
                | RoomNews::Progress { .. }
                | RoomNews::Findings { .. }
                | RoomNews::Sealed { .. }
                | RoomNews::Unpublished { .. }
                | RoomNews::Published { .. }
                | RoomNews::Failed { .. }
                | RoomNews::Untold { .. }
                | RoomNews::Working { .. }
                | RoomNews::Queued { .. }
                | RoomNews::Idle => {}
            }
        }
        all
    }

    /// News lie beside the event's own fields: one of the same name could not be read back.
    #[test]
    fn every_news_is_read_back_as_it_was_told() {
        for news in every_news() {
            let event = RoomEvent {
                v: VersionOne,
                case: "case-1".parse().expect("a case id"),
                scan: "20260102T030405Z-0123abcd".parse().expect("a scan id"),
                seq: 3,
                at: Timestamp { seconds: 1_767_323_045, nanos: 6 },
                news,
            };
            let text = serde_json::to_string(&event).expect("JSON");
            let back: RoomEvent = serde_json::from_str(&text).expect(&text);
            assert_eq!(back, event, "{text}");
        }
    }

    #[test]
    fn scan_ids_have_one_form() {
        assert!("20260102T030405Z-0123abcd".parse::<ScanId>().is_ok());
        for bad in [
            "",
            "20260102T030405Z",
            "20260102T030405Z-0123ABCD",
            "2026-102T030405Z-0123abcd",
            "../../x",
        ] {
            assert!(bad.parse::<ScanId>().is_err(), "{bad}");
        }
    }
}
