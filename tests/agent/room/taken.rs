//! Keys that are not free: another room's bundle of the same scan, or what an earlier room left.

use std::{collections::BTreeMap, fs};

use cleanroom_contract::{RoomNews, WorkOrder, bundle_prefix};

use super::{
    account::Account,
    machine::{CLOSED, Machine, order, said},
};

const SCAN: &str = "20260102T030405Z-0123abcd";

/// The objects of an order's bundle, and how often each was written.
fn bundle(account: &Account, order: &WorkOrder) -> BTreeMap<String, usize> {
    let prefix = bundle_prefix(&order.case, &order.scan);
    account.versions().into_iter().filter(|(key, _)| key.starts_with(&prefix)).collect()
}

/// Why the scan has no bundle, by what the room told last.
fn failed(account: &Account, order: &WorkOrder) -> String {
    match account.events(&order.case, &order.scan).pop().map(|event| event.news) {
        Some(RoomNews::Failed { reason }) => reason,
        other => panic!("{other:?}"),
    }
}

#[test]
fn a_second_room_leaves_the_bundle_of_the_first_alone() {
    let account = Account::new();
    let first = Machine::new(&account);
    let order = order(&account, SCAN);
    first.expect(0, &["--work-order", &first.order_file(&order)]);
    let before = bundle(&account, &order);
    assert_eq!(before.len(), 7);
    assert_eq!(account.messages().len(), 1);

    let second = Machine::new(&account);
    let file = second.order_file(&order);
    let output = second.expect(0, &["--work-order", &file]);
    assert!(said(&output).contains("another room"), "{}", said(&output));
    assert!(failed(&account, &order).contains("SHA256SUMS is there already"));
    assert!(!second.state().join(SCAN).join("bundle-1").exists(), "nothing was scanned for it");
    assert_eq!(bundle(&account, &order), before);
    let messages = account.messages();
    assert_eq!(messages.len(), 1, "{messages:?}");
    assert_eq!(messages[0].0["state"], "failed");

    let told = account.versions();
    second.expect(0, &["--work-order", &file]);
    assert_eq!(account.versions(), told, "it is not tried for ever");
    account.assert_written_once();
}

#[test]
fn what_an_earlier_room_left_is_gone_on_with_where_it_is_the_same() {
    let account = Account::new();
    let mut machine = Machine::new(&account);
    let order = order(&account, SCAN);
    let file = machine.order_file(&order);
    machine.set("AWS_ENDPOINT_URL_S3", CLOSED);
    machine.expect(75, &["--work-order", &file, "--patience", "1s"]);
    machine.unset("AWS_ENDPOINT_URL_S3");
    let prefix = bundle_prefix(&order.case, &order.scan);
    let sealed = machine.state().join(SCAN).join("bundle-1");
    for name in ["findings.jsonl", "report.json"] {
        account.put(&format!("{prefix}{name}"), &fs::read(sealed.join(name)).unwrap());
    }
    let output = machine.expect(0, &["--work-order", &file]);
    machine.published(&account, &order, &output);
    let events = account.events(&order.case, &order.scan);
    assert!(matches!(events.last().unwrap().news, RoomNews::Published { .. }), "{events:?}");
    account.assert_written_once();
}

#[test]
fn what_is_something_else_is_never_overwritten() {
    let account = Account::new();
    let machine = Machine::new(&account);
    let order = order(&account, SCAN);
    let key = format!("{}gaps.jsonl", bundle_prefix(&order.case, &order.scan));
    account.put(&key, b"somebody else's");
    let file = machine.order_file(&order);
    machine.expect(0, &["--work-order", &file]);
    let reason = failed(&account, &order);
    assert!(reason.contains("gaps.jsonl is there already"), "{reason}");
    assert!(reason.contains("nothing was overwritten"), "{reason}");
    assert_eq!(account.get(&key), b"somebody else's");
    let sums = format!("{}SHA256SUMS", bundle_prefix(&order.case, &order.scan));
    let told = account.versions();
    assert!(!told.contains_key(&sums), "half a bundle does not look whole");
    assert_eq!(account.messages().len(), 1);
    assert_eq!(machine.phase(&order.scan), "done");
    machine.expect(0, &["--work-order", &file]);
    assert_eq!(account.versions(), told, "it is not tried for ever");
    account.assert_written_once();
}
