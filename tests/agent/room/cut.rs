//! Scans that are cut short: by what ends the agent or its processes, or by a full disk. What was recorded is published.

use std::{fs, path::Path};

use cleanroom_contract::{Gap, GapKind, RoomNews, RunState, ScanState, WorkOrder};
use nix::sys::signal::Signal;

use super::{
    account::Account,
    machine::{Machine, Running, order, ordered_file, said},
};
use crate::{
    processes::running::{Process, SLOW, SLOW_RULE, busy_folder, descendants},
    support::{Scan, is_root_for, wait_until},
};

const SCAN: &str = "20260102T030405Z-0123abcd";
/// Files that are soon scanned.
const QUICK: usize = 300;
/// Files behind them that never are: each outlives two inspectors at the most.
const ENDLESS: usize = 16;

/// A machine whose evidence no scan comes to the end of, and the order to scan it.
fn endless(account: &Account) -> (Machine, WorkOrder) {
    let machine = Machine::new(account);
    let tree = machine.path().join("tree");
    busy_folder(&tree, QUICK, 1);
    for number in 0..ENDLESS {
        let folder = tree.join(format!("zz-{number:02}"));
        fs::create_dir(&folder).unwrap();
        fs::copy(tree.join(&SLOW[1..]), folder.join(&SLOW[1..])).unwrap();
    }
    fs::remove_file(tree.join(&SLOW[1..])).unwrap();
    let mut order = order(account, SCAN);
    order.limits.threads = Some(2);
    order.limits.file_seconds = Some(600);
    order.rules = vec![ordered_file(account, "slow.yar", SLOW_RULE.as_bytes())];
    (machine, order)
}

/// The processes of a run.
fn processes(running: &Running) -> Vec<Process> {
    descendants(i32::try_from(running.id()).unwrap())
}

/// Waits until a beginning has recorded most of the quick files.
fn wait_for_records(machine: &Machine, beginning: &str) {
    let records = machine.state().join(SCAN).join(beginning).join(".spool/000000.records");
    let enough = QUICK as u64 * 300;
    wait_until("records", || fs::metadata(&records).is_ok_and(|file| file.len() > enough));
}

/// The one gap that says why a scan was cut short.
fn cut(scan: &Scan) -> &Gap {
    let gaps = scan.gaps_of(GapKind::Interrupted);
    assert_eq!(gaps.len(), 1, "{:?}", scan.gaps);
    gaps[0]
}

fn matched(scan: &Scan) -> usize {
    scan.files.iter().filter(|file| file.scan == ScanState::Matched).count()
}

#[test]
fn a_scan_that_can_not_go_on_publishes_what_it_found() {
    let account = Account::new();
    let (machine, order) = endless(&account);
    let file = machine.order_file(&order);
    let running = machine.start(&["--work-order", &file]);
    wait_for_records(&machine, "bundle-1");
    let mut killed: Vec<Process> = Vec::new();
    while killed.len() < 6 {
        let mut family = Vec::new();
        let mut new = None;
        wait_until("a zygote that has loaded the rules", || {
            family = processes(&running);
            new = family.iter().find(|p| p.name == "cr-zygote" && !killed.contains(p)).cloned();
            new.is_some() && family.iter().any(|process| process.name == "cr-inspector")
        });
        let zygote = new.unwrap();
        zygote.signal(Signal::SIGKILL);
        wait_until("its end", || zygote.is_gone());
        killed.push(zygote);
    }
    let output = running.finish();
    assert_eq!(output.status.code(), Some(0), "{}", said(&output));
    let scan = machine.published(&account, &order, &output);
    assert_eq!(scan.report.run.state, RunState::Failed);
    assert!(cut(&scan).reason.contains("the zygote ended 5 times"), "{:?}", scan.gaps);
    assert!(scan.files.len() > QUICK / 3, "{} files", scan.files.len());
    let events = account.events(&order.case, &order.scan);
    assert!(!events.iter().any(|event| matches!(event.news, RoomNews::Failed { .. })));
    assert!(matches!(events.last().unwrap().news, RoomNews::Published { .. }), "{events:?}");
    assert_eq!(account.messages().len(), 1);
    machine.expect(0, &["--work-order", &file]);
    account.assert_written_once();
}

#[test]
fn after_the_third_kill_the_most_that_was_recorded_is_published() {
    let account = Account::new();
    let (machine, order) = endless(&account);
    let file = machine.order_file(&order);
    let run = ["--work-order", file.as_str()];
    let running = machine.start(&run);
    wait_for_records(&machine, "bundle-1");
    running.signal(Signal::SIGKILL);
    running.finish();
    for beginning in ["bundle-2", "bundle-3"] {
        let running = machine.start(&run);
        let draft = machine.state().join(SCAN).join(beginning).join(".spool/report.json");
        wait_until("the next beginning", || draft.exists());
        running.signal(Signal::SIGKILL);
        running.finish();
    }
    let output = machine.expect(0, &run);
    let scan = machine.published(&account, &order, &output);
    assert_eq!(scan.report.run.state, RunState::Interrupted);
    assert!(cut(&scan).reason.contains("was ended 3 times"), "{:?}", scan.gaps);
    assert!(scan.files.len() > QUICK / 3, "{} files", scan.files.len());
    let bundles: Vec<_> = fs::read_dir(machine.state().join(SCAN))
        .unwrap()
        .map(|entry| entry.unwrap().file_name().into_string().unwrap())
        .filter(|name| name.starts_with("bundle-"))
        .collect();
    assert_eq!(bundles, ["bundle-1"], "what else was recorded is of no use");
    account.assert_written_once();
}

/// 600 files of 100 KB of records each: a rule with long metadata matches them all.
fn talkative(tree: &Path) -> String {
    for number in 0..600 {
        fs::write(tree.join(format!("talk-{number:03}")), "marker").unwrap();
    }
    // Nothing that a bundle could hold in a few bytes.
    let mut state = 20_260_301_u64;
    let mut letter = || {
        state = state.wrapping_mul(0x5851_F42D_4C95_7F2D).wrapping_add(1);
        char::from(b'a' + u8::try_from((state >> 33) % 26).unwrap())
    };
    let long: String = (0..100_000).map(|_| letter()).collect();
    format!("rule talkative {{ meta: long = \"{long}\" strings: $m = \"marker\" condition: $m }}")
}

#[test]
fn a_full_disk_is_told_and_costs_nothing_once_there_is_space() {
    if !is_root_for("a room's disk that fills up") {
        return;
    }
    let account = Account::new();
    let machine = Machine::new(&account);
    let rule = talkative(&machine.path().join("tree"));
    let mut order = order(&account, SCAN);
    order.rules = vec![ordered_file(&account, "talkative.yar", rule.as_bytes())];
    fs::create_dir(machine.state()).unwrap();
    let script = r#"
        mount -t tmpfs -o size=40m tmpfs "$state"
        for run in first second; do
            "$@" 2>"$log/$run"; echo $? >>"$log/status"
            cp "$state"/*/state.json "$log/$run.json"
        done
        mount -o remount,size=400m "$state"
        "$@" 2>"$log/third"; echo $? >>"$log/status"
        cp "$state"/*/state.json "$log/third.json"
    "#;
    let log = machine.script(script, &["--work-order", &machine.order_file(&order)]);
    let text = |name: &str| fs::read_to_string(log.join(name)).unwrap();
    assert_eq!(text("status"), "75\n75\n0\n", "{}\n{}", text("first"), text("third"));
    for run in ["first", "second"] {
        assert!(text(run).contains("No space left on device"), "{}", text(run));
        let state: serde_json::Value = serde_json::from_str(&text(&format!("{run}.json"))).unwrap();
        assert_eq!(state["begun"], 1, "a scan that filled the disk is not made again: {state}");
        assert!(state["cut"].as_str().unwrap().contains("No space left"), "{state}");
    }
    let output = std::process::Output {
        status: std::process::ExitStatus::default(),
        stdout: Vec::new(),
        stderr: text("third").into_bytes(),
    };
    let scan = machine.published(&account, &order, &output);
    assert_ne!(scan.report.run.state, RunState::Complete);
    assert!(cut(&scan).reason.contains("No space left"), "{:?}", scan.gaps);
    assert!(!cut(&scan).reason.contains("mend the cause"), "{:?}", scan.gaps);
    assert!(matched(&scan) > 100, "{}", matched(&scan));
    let events = account.events(&order.case, &order.scan);
    let failed = events.iter().filter_map(|event| match &event.news {
        RoomNews::Failed { reason } => Some(reason.as_str()),
        _ => None,
    });
    let failed: Vec<_> = failed.collect();
    assert_eq!(failed.len(), 2, "{events:?}");
    assert!(failed[0].contains("No space left") && failed[0].contains(".spool"), "{failed:?}");
    assert!(matches!(events.last().unwrap().news, RoomNews::Published { .. }), "{events:?}");
    account.assert_written_once();
}
