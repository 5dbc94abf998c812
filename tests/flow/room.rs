//! From an alert to a report, in a room that boots from what the emulated account says its stack has made.
//!
//! One boot serves most of it, since booting is what takes the time.

use std::{collections::BTreeMap, fs, path::Path};

use cleanroom_harness::{
    damage::{DIRTY_CONTENT, DIRTY_FILE},
    incident::{Incident, Programs},
    release::bundle,
    room::{Copy, Ended, Machine},
    tools::{command, fixtures, is_root},
};
use serde_json::Value;

use crate::support::{PATIENCE, boot, ended, expect, lines, start, words};

/// A rule that only a second look has.
const SECOND_RULE: &str = r#"rule second_look { meta: severity = "medium" strings: $a = "this is disk two" condition: $a }"#;

#[test]
fn an_alert_becomes_a_report_without_anyone_touching_a_thing() {
    let programs = Programs::beside_tests().expect("the programs");
    let incident = Incident::begin(programs).expect("an incident");
    let fixtures = fixtures();
    let (rules, lists) = (fixtures.join("rules/demo.yar"), fixtures.join("indicators"));
    let (rules, lists) = (rules.display().to_string(), lists.display().to_string());
    let kit = incident.home().join("kit");
    fs::create_dir(&kit).expect("a folder");
    let kit = bundle::of_packages(&kit).expect("the bundle of tools").display().to_string();
    expect(
        &incident,
        &[0],
        &["deploy", "--artifacts", "artifacts", "--agent-only", "--tools", &kit],
    );

    let instance = incident.world.instance().to_owned();
    let case = format!("{instance}-1");
    let typed = [
        "respond",
        &instance,
        "--reason",
        "beacons",
        "--rules",
        &rules,
        "--indicators",
        &lists,
        "--format",
        "jsonl",
    ];
    let mut respond = start(&incident, &typed);
    let site = incident.site(&case);
    let mut room = boot(&incident, &site, &mut respond);
    // Made from another instance's root, a volume can have the label and the UUID of the room's own.
    room.copy_root(&incident.double.1).expect("copy the room's root");
    let copies = site.attach(&mut room, &[]).expect("attach");
    let before = incident.digests().expect("digests");
    let output = ended(respond, &mut room);
    assert_eq!(output.status.code(), Some(0), "{}\n{}", words(&output), room.tail());

    let report = first_report(&incident, &case, &before);
    tools_at_hand(&incident, &copies, &mut room);
    // The evidence stays mounted for whoever looks, and is scanned again all the same.
    second_look(&incident, &case, &mut room);

    // Nobody orders anything more: the room turns itself off, and goes.
    assert_eq!(room.wait(PATIENCE).expect("off"), Ended::Off, "{}", room.tail());
    assert_eq!(incident.digests().expect("digests"), before, "evidence is as it was");
    for _ in 0..2 {
        expect(&incident, &[0], &["teardown", &case, "--yes"]);
    }
    assert!(site.look().expect("look").stack.is_none(), "the stack is gone");
    let seen = site.look().expect("look");
    assert!(seen.objects.keys().any(|key| key.ends_with("/report.json")), "{:?}", seen.objects);
    expect(&incident, &[0], &["custody", "verify", &case]);
    assert!(report["summary"]["complete"].as_bool() == Some(true), "{report:#}");
}

/// Fetches the first bundle and judges it; its report.
fn first_report(incident: &Incident, case: &str, disks: &BTreeMap<String, String>) -> Value {
    expect(incident, &[0], &["fetch", case, "--out", "bundle"]);
    let bundle = incident.home().join("bundle");
    let mut sums = command("sha256sum").expect("sha256sum");
    let sums = sums.args(["-c", "--quiet", "SHA256SUMS"]).current_dir(&bundle).output();
    let sums = sums.expect("run sha256sum");
    assert!(sums.status.success(), "{}", words(&sums));

    let report = fs::read(bundle.join("report.json")).expect("report.json");
    let report: Value = serde_json::from_slice(&report).expect("a report");
    let names: Vec<_> =
        report["evidence"].as_array().expect("evidence").iter().map(|e| &e["name"]).collect();
    assert_eq!(names.len(), disks.len(), "{names:?}");
    for volume in disks.keys() {
        assert!(names.contains(&&Value::from(volume.as_str())), "{volume} in {names:?}");
    }
    let volumes = report["volumes"].as_array().expect("volumes");
    let content = |what: &str| volumes.iter().filter(|v| v["content"] == what).count();
    // The instance's root, and the room's own root as evidence.
    assert_eq!((content("ext4"), content("xfs"), content("ntfs")), (2, 2, 1), "{volumes:#?}");

    let findings = lines(&bundle.join("findings.jsonl"));
    let root = incident.world.volumes()[0];
    let on_root = |finding: &&Value| {
        finding["volume"].as_str().is_some_and(|volume| volume.starts_with(root))
    };
    assert!(findings.iter().filter(on_root).count() >= 10, "{findings:#?}");
    replayed(incident, &bundle, volumes);
    let gaps = lines(&bundle.join("gaps.jsonl"));
    let told =
        |what: &str| gaps.iter().any(|gap| gap["reason"].as_str().unwrap_or("").contains(what));
    assert!(told("LVM") || told("lvm"), "{gaps:#?}");
    report
}

/// What the journal alone holds was seen, through a device mapper snapshot.
#[expect(clippy::print_stdout, reason = "what is left out is said")]
fn replayed(incident: &Incident, bundle: &Path, volumes: &[Value]) {
    let root = incident.world.volumes()[0];
    let volume = volumes.iter().find(|v| v["volume"].as_str().is_some_and(|v| v.starts_with(root)));
    let volume = volume.expect("the root's volume");
    if !is_root() {
        println!("left out, as this is not root: a dirty journal, which only mounting can make");
        return;
    }
    assert!(volume["replayed"].is_object(), "{volume:#}");
    let files = command("zstd")
        .expect("zstd")
        .args(["-dc", "files.jsonl.zst"])
        .current_dir(bundle)
        .output();
    let files = String::from_utf8(files.expect("run zstd").stdout).expect("text");
    let found = files.lines().any(|line| line.contains(DIRTY_FILE));
    assert!(found, "{DIRTY_FILE} ({DIRTY_CONTENT:?}) is in no record");
}

/// What an investigator does who opens a session: the note mounts the evidence read-only, and the tools read it.
fn tools_at_hand(incident: &Incident, copies: &[Copy], room: &mut Machine) {
    let root = incident.world.volumes()[0];
    let copy = copies.iter().find(|copy| copy.source == root).expect("the root's copy");
    let serial = copy.id.replacen('-', "", 1);
    for line in [
        // As the session of root on Amazon Linux has it.
        "PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin:/opt/cleanroom/tools/bin".to_owned(),
        "sh -c 'exec 2>&1; /opt/cleanroom/tools/welcome; echo noted: $?'".to_owned(),
        format!("for disk in /sys/class/nvme/*; do grep -q '^{serial} *$' $disk/serial && node=/dev/${{disk##*/}}n1; done"),
        "mmls $node; echo mmls: $?; fls ${node}p1; echo fls: $?; echo type: $(fsstat -t ${node}p1)".to_owned(),
        format!("touch /evidence/{}/*/etc/passwd; echo touched: $?", copy.id),
        "for tool in lvm mdadm ntfscat; do command -v $tool; done; echo looked: $?".to_owned(),
    ] {
        room.types(&line).expect("type");
    }
    room.until("the last answer", PATIENCE, |room| Ok(room.console().contains("looked: ")))
        .expect("tools");
    let console = room.console().replace('\r', "");
    let note = console.split_once("A clean room: a copy of the evidence").expect("the note").1;
    for said in [
        format!("read-only at /evidence/{}/", copy.id),
        "noted: 0".to_owned(),
        "NTFS: ntfsls /dev/".to_owned(),
        "GUID Partition Table".to_owned(),
        "mmls: 0".to_owned(),
        ":\tetc\n".to_owned(),
        "fls: 0".to_owned(),
        "type: ext4".to_owned(),
        "touched: 1".to_owned(),
        "/opt/cleanroom/tools/bin/ntfscat".to_owned(),
        "looked: 0".to_owned(),
    ] {
        assert!(note.contains(&said), "{said:?} is not in:\n{note}");
    }
}

/// Orders a second scan from the standing room, which finds what the new rule adds.
fn second_look(incident: &Incident, case: &str, room: &mut Machine) {
    incident.write("second.yar", SECOND_RULE.as_bytes()).expect("write");
    let typed = ["rescan", case, "--rules", "second.yar", "--format", "jsonl"];
    let rescan = start(incident, &typed);
    let output = ended(rescan, room);
    assert_eq!(output.status.code(), Some(0), "{}\n{}", words(&output), room.tail());
    expect(incident, &[0], &["fetch", case, "--out", "second"]);
    let findings = lines(&incident.home().join("second/findings.jsonl"));
    let by_rule = |name: &str| findings.iter().filter(|f| f.to_string().contains(name)).count();
    assert_eq!(by_rule("second_look"), 1, "{findings:#?}");
    assert_eq!(by_rule("cleanroom_test_webshell"), 0, "the first rules were not ordered again");
}
