//! An order from a file, from its first event to the message: published whole, and once.

use std::fs;

use cleanroom_contract::{
    Destination, Gap, GapKind, OrderedFile, RoomNews, RunState, Severity, bundle_prefix, event_key,
    events_prefix,
};
use serde_json::json;

use super::{
    account::Account,
    machine::{Machine, RULE, VOLUME, order, ordered_file, said, volume},
};
use crate::support::wait_until;

const SCAN: &str = "20260102T030405Z-0123abcd";
const ABSENT: &str = "vol-0fedcba9876543210";

#[test]
fn an_order_is_scanned_published_and_told_once() {
    let account = Account::new();
    let machine = Machine::new(&account);
    let mut order = order(&account, SCAN);
    order.volumes.push(volume(ABSENT, "snap-0fedcba9876543210"));
    let rule = ordered_file(&account, "webshells.yar", RULE.as_bytes());
    let other = OrderedFile { name: "other.yar".to_owned(), ..rule.clone() };
    let bad = ordered_file(&account, "changed.yar", b"rule never { condition: true }");
    let absent = OrderedFile { key: "rules/absent.yar".to_owned(), ..bad.clone() };
    let changed = OrderedFile { sha256: rule.sha256, ..bad };
    order.rules = vec![rule, other, changed, OrderedFile { name: "absent.yar".into(), ..absent }];
    order.indicators = vec![ordered_file(
        &account,
        "paths.txt",
        include_bytes!("../../../fixtures/indicators/paths.txt"),
    )];
    let file = machine.order_file(&order);
    let output = machine.expect(0, &["--work-order", &file]);

    let scan = machine.published(&account, &order, &output);
    assert_eq!(scan.report.run.state, RunState::Complete);
    assert_eq!(scan.report.case.as_ref(), Some(&order.case));
    let names: Vec<_> = scan.report.evidence.iter().map(|source| source.name.as_str()).collect();
    assert_eq!(names, [VOLUME, ABSENT], "evidence is named after the instance's volumes");
    assert!(scan.file("/etc/passwd").sha256.is_some());
    assert_eq!(scan.file("/etc/passwd").volume, VOLUME);
    let by_rule = scan.findings.iter().filter(|finding| finding.source.starts_with("rule:"));
    assert_eq!(by_rule.count(), 2, "one of two files of rules: {:?}", scan.findings);
    let missing = scan.gaps_of(GapKind::Evidence);
    assert_eq!(missing.len(), 1, "{:?}", scan.gaps);
    assert_eq!(missing[0].volume.as_deref(), Some(ABSENT));
    let refused: Vec<_> =
        scan.gaps_of(GapKind::Rules).iter().map(|gap| gap.reason.clone()).collect();
    assert_eq!(refused.len(), 2, "{refused:?}");
    assert!(
        refused[0].contains("changed.yar") && refused[0].contains("was ordered"),
        "{refused:?}"
    );
    assert!(refused[1].contains("absent.yar"), "{refused:?}");

    let events = account.events(&order.case, &order.scan);
    let mut news = events.iter().map(|event| &event.news);
    assert!(matches!(news.next(), Some(RoomNews::Started { attempt: 1, .. })), "{events:#?}");
    match news.next() {
        Some(RoomNews::Attached { found, missing, unexpected }) => {
            assert_eq!(found, &[VOLUME.parse().unwrap()]);
            assert_eq!(missing, &[ABSENT.parse().unwrap()]);
            assert!(!unexpected.iter().any(|serial| serial.contains("vol0123456789abcdef0")));
        }
        other => panic!("{other:?}"),
    }
    let told = events.iter().find_map(|event| match &event.news {
        RoomNews::Findings { findings } => Some(findings),
        _ => None,
    });
    let told = told.expect("findings are told before the bundle");
    assert!(told[0].severity >= Severity::High, "the worst first: {told:?}");
    match &events[events.len() - 2..] {
        [sealed, published] => match (&sealed.news, &published.news) {
            (RoomNews::Sealed { summary, .. }, RoomNews::Published { files }) => {
                assert_eq!(**summary, scan.report.summary);
                let last = files.last().expect("files");
                assert!(last.key.ends_with("/SHA256SUMS"), "{files:?}");
                assert_eq!(files.len(), 7);
            }
            other => panic!("{other:?}"),
        },
        other => panic!("{other:?}"),
    }

    let messages = account.messages();
    assert_eq!(messages.len(), 1, "{messages:#?}");
    let (message, attributes) = &messages[0];
    let prefix = bundle_prefix(&order.case, &order.scan);
    assert_eq!(message["bundle"]["bucket"], account.bucket.as_str());
    assert_eq!(message["bundle"]["prefix"], prefix.as_str());
    assert_eq!(message["summary"], serde_json::to_value(&scan.report.summary).unwrap());
    let shown = message["worst"].as_array().map_or(0, Vec::len);
    assert_eq!(shown, scan.report.worst.len().min(10));
    assert_eq!(attributes["case"]["Value"], order.case.as_str());
    assert_eq!(attributes["step"]["Value"], "publish");
    assert_eq!(attributes["severity"]["Value"], message["severity"]);

    let before = account.versions();
    machine.expect(0, &["--work-order", &file]);
    assert_eq!(account.versions(), before, "the second run does nothing");
    assert_eq!(account.messages(), []);
    account.assert_written_once();
}

#[test]
fn rules_and_lists_that_can_not_be_used_at_all_cost_no_scan() {
    let account = Account::new();
    let machine = Machine::new(&account);
    let mut order = order(&account, SCAN);
    order.publish = Destination { topic: None, ..order.publish };
    order.rules = vec![ordered_file(&account, "broken.yar", b"rule broken {")];
    order.indicators = vec![ordered_file(&account, "broken.txt", b"neither digest nor path\n")];
    let file = machine.order_file(&order);
    let output = machine.expect(0, &["--work-order", &file]);
    let scan = machine.published(&account, &order, &output);
    let gaps: Vec<_> = scan.gaps_of(GapKind::Rules).iter().map(|gap| gap.reason.clone()).collect();
    assert!(gaps.iter().any(|reason| reason.contains("the rules")), "{gaps:?}");
    assert!(scan.file("/etc/passwd").sha256.is_some());
    assert_eq!(account.messages(), [], "there is no topic");
}

#[test]
fn a_volume_that_comes_late_is_waited_for() {
    let account = Account::new();
    let machine = Machine::new(&account);
    let late = machine.path().join("late");
    let mut order = order(&account, SCAN);
    order.volumes = vec![volume(ABSENT, "snap-0fedcba9876543210")];
    order.limits.attach_seconds = 300;
    let stand_in = format!("{ABSENT}={}", late.display());
    let file = machine.order_file(&order);
    let running = machine.start(&["--work-order", &file, "--evidence", &stand_in]);
    let started = event_key(&order.case, &order.scan, 1);
    wait_until("the agent has started", || account.versions().contains_key(&started));
    fs::create_dir(&late).unwrap();
    let output = running.finish();
    assert_eq!(output.status.code(), Some(0), "{}", said(&output));
    let scan = machine.published(&account, &order, &output);
    assert_eq!(scan.gaps_of(GapKind::Evidence), Vec::<&Gap>::new());
    assert_eq!(scan.report.volumes[0].volume, ABSENT);
}

/// The supervisor alone may know the keys.
#[test]
fn no_role_inherits_what_opens_the_account() {
    let account = Account::new();
    let machine = Machine::new(&account);
    // Enough of a tree that the roles live for a while.
    for number in 0..400 {
        let path = machine.path().join("tree").join(format!("file-{number}"));
        fs::write(path, vec![b'x'; 64 << 10]).unwrap();
    }
    let order = order(&account, SCAN);
    let mut running = machine.start(&["--work-order", &machine.order_file(&order)]);
    let mut seen = 0;
    while !running.has_ended() {
        for environment in children(running.id()) {
            seen += 1;
            let names: Vec<_> = environment
                .split(|byte| *byte == 0)
                .filter(|variable| variable.starts_with(b"AWS_"))
                .collect();
            assert!(names.is_empty(), "{:?}", String::from_utf8_lossy(&environment));
        }
    }
    let output = running.finish();
    assert_eq!(output.status.code(), Some(0), "{}", said(&output));
    assert!(seen > 0, "no role was seen");
    let events = events_prefix(&order.case, &order.scan);
    let keys = account.versions();
    assert!(keys.keys().any(|key| key.starts_with(&events)), "{:?}", json!(keys));
}

/// The environments of a process's children that are roles.
fn children(parent: u32) -> Vec<Vec<u8>> {
    let ids = fs::read_to_string(format!("/proc/{parent}/task/{parent}/children"));
    let ids = ids.unwrap_or_default();
    let roles = ids.split_whitespace().filter(|id| {
        // Between its fork and its exec a child still is what its parent was.
        let line = fs::read(format!("/proc/{id}/cmdline")).unwrap_or_default();
        line.windows(6).any(|word| word == b"\0role\0")
    });
    roles.filter_map(|id| fs::read(format!("/proc/{id}/environ")).ok()).collect()
}
