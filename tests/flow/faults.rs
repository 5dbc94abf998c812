//! A room that is failed by all around it, one after the other: a volume that never comes, the network, the topic, its own
//! agent, the bucket, the network for good, and then the power.
//!
//! One boot serves all of it, since booting is what takes the time: each fault meets a scan of its own.

use std::{
    fs,
    path::Path,
    process::Output,
    time::{Duration, Instant},
};

use anyhow::Result;
use cleanroom_contract::{RoomEvent, RoomNews, ScanId, bundle_prefix, event_key, orders_prefix};
use cleanroom_harness::{
    disk::{GPT_LINUX, gpt},
    emulators::{Fault, Injection, Microburst},
    images::{Ext, Image, MIB},
    incident::{Incident, Programs},
    numbers::Numbers,
    room::{Copy, Evidence, Machine, Site},
    tools::{command, fixtures, run},
    tree,
};
use serde_json::Value;

use crate::support::{PATIENCE, boot, ended, expect, lines, start, words};

/// How many times the agent is killed, and how many of these while it scans: a third beginning is the last, and killed there
/// a scan is sealed as far as it came.
const KILLS: usize = 10;
const WHILE_IT_SCANS: usize = 2;

/// What the moments are drawn from.
const SEED: u64 = 20_261_122;

/// The time after the seal in which the agent publishes, tells and listens.
const PUBLISHING: Duration = Duration::from_secs(3);

/// The files of a bundle.
const FILES: [&str; 7] = [
    "SHA256SUMS",
    "files.jsonl.zst",
    "findings.jsonl",
    "gaps.jsonl",
    "report.html",
    "report.json",
    "timeline.body",
];

/// Kills the agent's supervisor, its oldest process, as soon as there is one.
const KILL: &str = "until [ \"$(pidof cleanroom-agent)\" ]; do usleep 20000; done; \
     kill -9 $(pidof cleanroom-agent | tr ' ' '\\n' | sort -n | head -n 1)";

/// What the room says when its agent was killed and comes again.
const KILLED: &str = "the agent ended with 137, ";

/// Small disks that take some seconds to look through: a root that was broken into, and data.
fn disks(folder: &Path) -> Result<Vec<Evidence>> {
    let (root, data) = (folder.join("root"), folder.join("data"));
    fs::create_dir(&root)?;
    tree::planted_compromise(&root)?;
    for number in 0..200 {
        fs::write(root.join(format!("opt/file-{number}")), vec![b'x'; 32 << 10])?;
    }
    fs::create_dir(&data)?;
    tree::data(&data)?;
    let part = Image::new(folder, "root.img", 64 * MIB).ext(Ext::Ext4, &root)?;
    let root = gpt(&folder.join("disk-root.img"), &[(&part, GPT_LINUX)])?.path;
    let data = Image::new(folder, "disk-data.img", 16 * MIB).ext(Ext::Ext4, &data)?;
    let disk = |what, path| Evidence { what, path };
    Ok(vec![disk("GPT; ext4 that was broken into", root), disk("ext4", data)])
}

/// A case whose room stands.
struct Scene {
    incident: Incident,
    case: String,
    site: Site,
    proxy: Microburst,
    rules: String,
}

impl Scene {
    fn begin() -> Self {
        let incident = Incident::on(disks, Programs::beside_tests().expect("the programs"));
        let incident = incident.expect("an incident");
        // What comes late is small too.
        let late = incident.home().join("late");
        fs::create_dir(&late).expect("a folder");
        fs::write(late.join("late.txt"), "this came late\n").expect("a file");
        let folder = incident.double.1.parent().expect("a folder").to_owned();
        let late = Image::new(&folder, "late.img", 8 * MIB).ext(Ext::Ext4, &late).expect("image");
        fs::rename(late, &incident.double.1).expect("rename");
        incident.settle("idle_seconds = 120\nattach_seconds = 60\n").expect("settings");
        expect(&incident, &[0], &["deploy", "--artifacts", "artifacts", "--agent-only"]);

        let case = format!("{}-1", incident.world.instance());
        let proxy = Microburst::start(incident.world.endpoint(), 7).expect("a proxy");
        let site = incident.site(&case).behind(&proxy);
        let rules = fixtures().join("rules/demo.yar").display().to_string();
        Self { incident, case, site, proxy, rules }
    }

    /// The newest scan that was ordered after `last`.
    fn scan_after(&self, last: Option<&ScanId>, room: &mut Machine) -> ScanId {
        let prefix = orders_prefix(&self.case.parse().expect("a case id"), 1);
        let mut newest = None;
        room.until("an order", PATIENCE, |_| {
            let keys = self.site.look()?.objects.into_keys();
            let scan = |key: String| key.strip_prefix(&prefix)?.strip_suffix(".json")?.parse().ok();
            newest = keys.filter_map(scan).max().filter(|scan| Some(scan) > last);
            Ok(newest.is_some())
        })
        .expect("an order");
        newest.expect("it is there")
    }

    /// What the room has told of a scan so far.
    fn events(&self, scan: &ScanId) -> Vec<RoomEvent> {
        let case = self.case.parse().expect("a case id");
        let event = |seq| {
            let text = self.incident.world.object(&event_key(&case, scan, seq)).expect("an answer");
            text.map(|text| serde_json::from_str(&text).expect("an event"))
        };
        (1..).map_while(event).collect()
    }

    /// Waits until the room has told something of a scan.
    fn told(&self, room: &mut Machine, scan: &ScanId, what: &str, is: fn(&RoomNews) -> bool) {
        let heard = |_: &mut Machine| Ok(self.events(scan).iter().any(|event| is(&event.news)));
        room.until(what, PATIENCE, heard).expect(what);
    }

    /// What `status` says to people. It looks at the world too: the case is partial as long as something is not done.
    fn status(&self) -> String {
        let shown = expect(&self.incident, &[0, 3], &["status", &self.case, "--format", "human"]);
        let shown = String::from_utf8(shown.stdout).expect("text");
        // As it would be on an endless line.
        shown.split_whitespace().collect::<Vec<_>>().join(" ")
    }

    fn rescan(&self) -> std::process::Child {
        let typed = ["rescan", &self.case, "--rules", &self.rules, "--format", "jsonl"];
        start(&self.incident, &typed)
    }

    /// The versions of what is published of a scan, by the names of the files.
    fn published(&self, scan: &ScanId) -> Vec<(String, usize)> {
        let prefix = bundle_prefix(&self.case.parse().expect("a case id"), scan);
        let state = self.incident.world.state(None).expect("state");
        let objects = state["objects"].as_object().expect("objects");
        let versions = |value: &Value| value.as_array().map_or(0, Vec::len);
        let named = |(key, value): (&String, &Value)| {
            Some((key.strip_prefix(&prefix)?.to_owned(), versions(value)))
        };
        objects.iter().filter_map(named).collect()
    }

    /// Asserts that a scan is published, whole and once, and fetches it: its findings and gaps.
    fn whole(&self, scan: &ScanId, into: &str) -> (Vec<Value>, Vec<Value>) {
        let once = FILES.map(|name| (name.to_owned(), 1));
        assert_eq!(self.published(scan), once, "whole, and once");
        expect(&self.incident, &[0], &["fetch", &self.case, "--out", into]);
        let bundle = self.incident.home().join(into);
        let mut sums = command("sha256sum").expect("sha256sum");
        run(sums.args(["-c", "--quiet", "SHA256SUMS"]).current_dir(&bundle)).expect("its sums");
        (lines(&bundle.join("findings.jsonl")), lines(&bundle.join("gaps.jsonl")))
    }

    /// How many messages about a scan the room's topic has sent.
    fn messages(&self, scan: &ScanId) -> usize {
        let state = self.incident.world.state(None).expect("state");
        let notices = state["notices"].as_array().expect("notices");
        let of_scan = |notice: &&Value| {
            let text = notice["message"].as_str().unwrap_or_default();
            text.contains(scan.as_str()) && text.contains("\"type\":\"scan\"")
        };
        notices.iter().filter(of_scan).count()
    }
}

fn status_of(output: &Output) -> i32 {
    output.status.code().unwrap_or(-1)
}

/// Lets the room run for so long.
fn pass(room: &mut Machine, time: Duration) {
    let until = Instant::now() + time;
    room.until("time to pass", PATIENCE, |_| Ok(Instant::now() >= until)).expect("it runs");
}

#[test]
#[expect(clippy::print_stdout, reason = "how long each part took is said")]
fn a_room_that_all_around_it_fails_loses_nothing() {
    let scene = Scene::begin();
    let before = scene.incident.digests().expect("digests");
    let (mut room, copy, first) = a_volume_that_never_comes_and_a_cut_of_half_a_minute(&scene);
    println!("{:?}: a volume missing, and the network for half a minute", room.running());

    scene.site.plug_in(&mut room, &copy).expect("attach");
    let (second, took, findings) = a_topic_that_refuses(&scene, &mut room, &first);
    println!("{:?}: the topic refuses; the scan took {took:?}", room.running());

    let third = ten_kills(&scene, &mut room, &second, (took, &findings));
    println!("{:?}: killed {KILLS} times, at moments drawn from {SEED}", room.running());

    let fourth = a_bucket_that_denies(&scene, &mut room, &third);
    println!("{:?}: the bucket denied, and then throttled", room.running());

    a_cut_for_good(&scene, room, &fourth);
    assert_eq!(scene.incident.digests().expect("digests"), before, "evidence is as it was");
    expect(&scene.incident, &[0], &["custody", "verify", &scene.case]);
}

/// The volume is missing in the report, and the case is not whole; what the network did not take is told when it is back.
fn a_volume_that_never_comes_and_a_cut_of_half_a_minute(scene: &Scene) -> (Machine, Copy, ScanId) {
    let instance = scene.incident.world.instance();
    let typed = ["respond", instance, "--reason", "beacons", "--rules", &scene.rules];
    let typed = [&typed[..], &["--format", "jsonl"]].concat();
    let mut respond = start(&scene.incident, &typed);
    let mut room = boot(&scene.incident, &scene.site, &mut respond);
    let missing = scene.incident.double.0.as_str();
    let copies = scene.site.attach(&mut room, &[missing]).expect("attach");
    let scan = scene.scan_after(None, &mut room);
    scene.told(&mut room, &scan, "what is attached", |news| {
        matches!(news, RoomNews::Attached { .. })
    });
    room.network(false).expect("cut");
    pass(&mut room, Duration::from_secs(30));
    assert!(scene.published(&scan).is_empty(), "the network is cut");
    room.network(true).expect("mend");
    let output = ended(respond, &mut room);
    assert_eq!(status_of(&output), 3, "{}\n{}", words(&output), room.tail());

    let lacks = format!("scan {scan} never saw {missing}");
    assert!(words(&output).contains(&lacks), "{}", words(&output));
    let status = scene.status();
    assert!(status.contains("partial") && status.contains(&lacks), "{status}");
    let (findings, gaps) = scene.whole(&scan, "first");
    assert!(findings.len() >= 10, "{findings:#?}");
    assert!(!gaps.iter().any(|gap| gap["kind"] == "rules"), "all rules came: {gaps:#?}");
    let named = |gap: &&Value| gap["volume"].as_str() == Some(missing);
    let gap = gaps.iter().find(named).unwrap_or_else(|| panic!("{missing} in {gaps:#?}"));
    assert!(gap["reason"].as_str().is_some_and(|r| r.contains("not attached")), "{gap:#}");
    let copy = copies.into_iter().find(|copy| copy.source == missing).expect("its copy");
    (room, copy, scan)
}

/// The report is there, and it is said that the room could not tell people of it. How long the scan took, and what it found.
fn a_topic_that_refuses(
    scene: &Scene,
    room: &mut Machine,
    last: &ScanId,
) -> (ScanId, Duration, Vec<Value>) {
    let denied = Injection::Error { code: "AuthorizationError".to_owned(), status: Some(403) };
    scene.proxy.set(&[Fault::new("sns", 1.0, denied)]).expect("faults");
    let rescan = scene.rescan();
    let scan = scene.scan_after(Some(last), room);
    let output = ended(rescan, room);
    assert_eq!(status_of(&output), 0, "{}\n{}", words(&output), room.tail());
    scene.told(room, &scan, "that nobody was told", |news| matches!(news, RoomNews::Untold { .. }));
    scene.proxy.set(&[]).expect("no faults");
    let status = scene.status();
    let said = "its room could not tell people: sns:Publish";
    assert!(status.contains(said) && status.contains("AuthorizationError"), "{status}");
    assert_eq!(scene.messages(&scan), 0);
    let (findings, gaps) = scene.whole(&scan, "second");
    let of_volumes: Vec<_> = gaps.iter().filter(|gap| !gap["volume"].is_null()).collect();
    assert!(of_volumes.is_empty(), "it sees all volumes: {of_volumes:#?}");

    let events = scene.events(&scan);
    let at = |is: fn(&RoomNews) -> bool| {
        let at = events.iter().find(|event| is(&event.news)).expect("it was told").at;
        Duration::from_secs(u64::try_from(at.seconds).expect("after 1970"))
            + Duration::from_nanos(at.nanos.into())
    };
    let began = at(|news| matches!(news, RoomNews::Started { .. }));
    let took = at(|news| matches!(news, RoomNews::Published { .. })).saturating_sub(began);
    (scan, took, findings)
}

/// What is published in the end is whole, once, and what a scan that nobody killed has found.
fn ten_kills(
    scene: &Scene,
    room: &mut Machine,
    last: &ScanId,
    (took, findings): (Duration, &[Value]),
) -> ScanId {
    let deaths = |room: &Machine| room.console().matches(KILLED).count();
    let died_before = deaths(room);
    let rescan = scene.rescan();
    let scan = scene.scan_after(Some(last), room);
    scene.told(room, &scan, "its beginning", |news| matches!(news, RoomNews::Started { .. }));
    let mut numbers = Numbers::new(SEED);
    for kill in 1..=KILLS {
        let scans = kill <= WHILE_IT_SCANS;
        if !scans {
            let sealed = |news: &RoomNews| matches!(news, RoomNews::Sealed { .. });
            scene.told(room, &scan, "its seal", sealed);
        }
        pass(room, numbers.part_of(if scans { took } else { PUBLISHING }));
        room.types(KILL).expect("type");
        room.until("a death", PATIENCE, |room| Ok(deaths(room) >= died_before + kill))
            .expect("it died");
    }
    let output = ended(rescan, room);
    assert_eq!(status_of(&output), 0, "{}\n{}", words(&output), room.tail());
    assert_eq!(deaths(room), died_before + KILLS);
    let (found, _) = scene.whole(&scan, "third");
    let known = |findings: &[Value]| -> Vec<(Value, Value, Value)> {
        let of = |f: &Value| (f["title"].clone(), f["volume"].clone(), f["path"].clone());
        findings.iter().map(of).collect()
    };
    assert_eq!(known(&found), known(findings), "as if nobody had killed it");
    // A kill may hide whether people were told, and then they are told again.
    room.until("a message", PATIENCE, |_| Ok(scene.messages(&scan) > 0)).expect("people know");
    scan
}

/// It says so, and publishes when it may.
fn a_bucket_that_denies(scene: &Scene, room: &mut Machine, last: &ScanId) -> ScanId {
    scene.incident.world.deny_writing(&FILES).expect("deny");
    let rescan = scene.rescan();
    let scan = scene.scan_after(Some(last), room);
    let mut status = String::new();
    room.until("a status that says so", PATIENCE, |_| {
        status = scene.status();
        Ok(status.contains("not published yet"))
    })
    .unwrap_or_else(|error| panic!("{error:#}\n{status}"));
    let said = format!("{scan}: sealed on the room's disk, and not published yet");
    assert!(status.contains(&said) && status.contains("AccessDenied"), "{status}");
    assert!(scene.published(&scan).is_empty(), "nothing is half there");

    scene.proxy.set(&[Fault::throttling("s3", 0.2)]).expect("faults");
    scene.incident.world.deny_writing(&[]).expect("allow");
    let output = ended(rescan, room);
    assert_eq!(status_of(&output), 0, "{}\n{}", words(&output), room.tail());
    scene.proxy.set(&[]).expect("no faults");
    scene.whole(&scan, "fourth");
    scan
}

/// The bundle is sealed on the room's disk, also after a power cut, and `status` says what is known.
fn a_cut_for_good(scene: &Scene, room: Machine, last: &ScanId) {
    let mut room = room;
    let silence = "idle_seconds = 120\nattach_seconds = 60\n[bounds]\nsilence = 30\n";
    scene.incident.settle(silence).expect("settings");
    let rescan = scene.rescan();
    let scan = scene.scan_after(Some(last), &mut room);
    scene.told(&mut room, &scan, "what it finds", |news| matches!(news, RoomNews::Findings { .. }));
    room.network(false).expect("cut");
    let output = ended(rescan, &mut room);
    assert_eq!(status_of(&output), 3, "{}\n{}", words(&output), room.tail());
    let silent = format!("the room of scan {scan} is silent");
    assert!(words(&output).contains(&silent), "{}", words(&output));
    let status = scene.status();
    let said = "its room has told nothing since";
    assert!(status.contains(&format!("scan {scan}")) && status.contains(said), "{status}");
    assert!(scene.published(&scan).is_empty(), "nothing is half there");

    let look = format!("grep phase /var/lib/cleanroom/{scan}/state.json");
    room.until("a sealed bundle", PATIENCE, |room| {
        room.types(&look)?;
        pass(room, Duration::from_secs(2));
        Ok(room.console().contains(r#""phase": "sealed""#))
    })
    .expect("sealed");
    room.kill();
    let home = scene.incident.home();
    let disk = home.join("left.img");
    room.copy_root(&disk).expect("copy");
    // Replays the journal, which ends with status 1 where there was something to do.
    let _ = command("e2fsck").expect("e2fsck").arg("-fy").arg(&disk).output().expect("run");
    let dump = format!("rdump /var/lib/cleanroom/{scan} {}", home.display());
    run(command("debugfs").expect("debugfs").args(["-R", &dump]).arg(&disk)).expect("debugfs");
    let mut verify = std::process::Command::new(scene.incident.agent());
    let verdict = verify.arg("verify").arg(home.join(scan.as_str()).join("bundle-1")).output();
    let verdict = verdict.expect("run the agent");
    assert!(verdict.status.success(), "{}", words(&verdict));
}
