//! Where orders come from, and which are refused.

use std::fs;

use cleanroom_contract::{
    Finding, OrderedFile, Room, RoomNews, VersionOne, WorkOrder, bundle_prefix, order_key,
};

use super::{
    account::Account,
    machine::{
        CASE, Machine, RULE, VOLUME, digest, metadata, order, ordered_file, put_order, said,
    },
};
use crate::support::{is_root_for, wait_until};

const FIRST: &str = "20260102T030405Z-0123abcd";
const UNUSABLE: &str = "20260102T040000Z-00000000";
const SECOND: &str = "20260102T050607Z-89abcdef";

/// The user data of a room with this order.
pub(super) fn user_data(
    account: &Account,
    order: &WorkOrder,
    sha256: cleanroom_contract::Sha256,
) -> String {
    let room = Room {
        v: VersionOne,
        case: CASE.parse().unwrap(),
        region: "us-east-1".to_owned(),
        stack: "cleanroom-case".to_owned(),
        bucket: account.bucket.clone(),
        order: OrderedFile {
            name: "order".to_owned(),
            key: order_key(&order.case, order.room, &order.scan),
            sha256,
        },
        volumes: [].into(),
        idle_seconds: 60,
    };
    format!("#!/bin/sh\n#cleanroom-room {}\nexit 0\n", serde_json::to_string(&room).unwrap())
}

#[test]
fn a_room_takes_its_order_from_user_data_and_waits_for_newer_ones() {
    let account = Account::new();
    let mut machine = Machine::new(&account);
    let first = order(&account, FIRST);
    let (_, sha256) = put_order(&account, &first);
    machine
        .set("AWS_EC2_METADATA_SERVICE_ENDPOINT", &metadata(user_data(&account, &first, sha256)));
    machine.unset("AWS_REGION");

    let running = machine.start(&["--idle", "8s"]);
    let sums = |order: &WorkOrder| format!("{}SHA256SUMS", bundle_prefix(&order.case, &order.scan));
    wait_until("the first bundle", || account.versions().contains_key(&sums(&first)));
    account.put(&order_key(&first.case, 1, &UNUSABLE.parse().unwrap()), b"{\"v\":1}");
    let mut second = order(&account, SECOND);
    second.rules = vec![ordered_file(&account, "new.yar", RULE.as_bytes())];
    put_order(&account, &second);
    let output = running.finish();
    assert_eq!(output.status.code(), Some(0), "{}", said(&output));

    let (before, after) = (
        machine.published(&account, &first, &output),
        machine.published(&account, &second, &output),
    );
    let added: Vec<&Finding> =
        after.findings.iter().filter(|finding| !before.findings.contains(finding)).collect();
    assert_eq!(added.len(), 1, "what the new rule adds, and only that: {added:?}");
    assert!(added[0].source.contains("planted_shell"), "{added:?}");
    assert_eq!(after.findings.len(), before.findings.len() + 1);
    let failed = account.events(&first.case, &UNUSABLE.parse().unwrap());
    assert!(matches!(failed.last().unwrap().news, RoomNews::Failed { .. }), "{failed:?}");
    let last = account.events(&second.case, &second.scan);
    assert!(matches!(last.last().unwrap().news, RoomNews::Idle), "{last:?}");
    assert_eq!(account.messages().len(), 2);
    account.assert_written_once();
}

#[test]
fn an_order_that_waits_behind_another_is_told_so() {
    let account = Account::new();
    let machine = Machine::new(&account);
    let (first, second) = (order(&account, FIRST), order(&account, SECOND));
    put_order(&account, &second);
    machine.expect(0, &["--work-order", &machine.order_file(&first), "--idle", "4s"]);
    let told = account.events(&second.case, &second.scan);
    match &told[0].news {
        RoomNews::Queued { behind } => assert_eq!(*behind, first.scan),
        other => panic!("{other:?}"),
    }
    assert!(matches!(told[1].news, RoomNews::Started { attempt: 1, .. }), "{told:?}");
    assert!(told.iter().any(|event| matches!(event.news, RoomNews::Published { .. })), "{told:?}");
    account.assert_written_once();
}

#[test]
fn orders_for_the_case_s_other_rooms_are_left_to_them() {
    for (own, other) in [(1, 2), (2, 1)] {
        let account = Account::new();
        let machine = Machine::new(&account);
        let in_room = |room, scan| WorkOrder { room, ..order(&account, scan) };
        let (first, others, later) =
            (in_room(own, FIRST), in_room(other, UNUSABLE), in_room(own, SECOND));
        put_order(&account, &others);
        put_order(&account, &later);
        let output =
            machine.expect(0, &["--work-order", &machine.order_file(&first), "--idle", "4s"]);
        machine.published(&account, &first, &output);
        machine.published(&account, &later, &output);
        assert_eq!(account.events(&others.case, &others.scan), [], "room {own} says nothing of it");
        account.assert_written_once();
    }
}

#[test]
fn an_order_of_another_digest_is_refused() {
    let account = Account::new();
    let mut machine = Machine::new(&account);
    let order = order(&account, FIRST);
    let (key, sha256) = put_order(&account, &order);
    let place = format!("s3://{}/{key}@sha256=", account.bucket);
    let output = machine.expect(78, &["--work-order", &format!("{place}{}", digest(b"else"))]);
    assert!(said(&output).contains("was expected"), "{}", said(&output));
    let other = user_data(&account, &order, digest(b"else"));
    machine.set("AWS_EC2_METADATA_SERVICE_ENDPOINT", &metadata(other));
    let output = machine.expect(78, &[]);
    assert!(said(&output).contains("was expected"), "{}", said(&output));
    assert_eq!(account.versions().len(), 1, "nothing but the order is there");
    machine.expect(0, &["--work-order", &format!("{place}{sha256}")]);
    machine.published(&account, &order, &output);
}

#[test]
fn what_can_never_be_carried_out_is_not_tried_again() {
    let account = Account::new();
    let mut machine = Machine::new(&account);
    let orders = machine.path().join("orders");
    fs::create_dir(&orders).unwrap();
    let file = |name: &str, text: &str| {
        let path = orders.join(name);
        fs::write(&path, text).unwrap();
        path.to_str().unwrap().to_owned()
    };
    let mut empty = order(&account, FIRST);
    empty.volumes.clear();
    let empty = file("empty.json", &serde_json::to_string(&empty).unwrap());
    let garbage = file("garbage.json", "{");
    let absent = orders.join("absent.json").to_str().unwrap().to_owned();
    let nowhere = format!("s3://{}/cases/none.json", account.bucket);
    for (place, word) in [
        (empty.as_str(), "0 volumes"),
        (&garbage, "read the work order"),
        (&absent, "absent.json"),
        (&nowhere, "there is no"),
    ] {
        let output = machine.expect(78, &["--work-order", place]);
        assert!(said(&output).contains(word), "{place}: {}", said(&output));
    }
    machine.set("AWS_EC2_METADATA_SERVICE_ENDPOINT", &metadata("#!/bin/sh\necho\n".to_owned()));
    let output = machine.expect(78, &[]);
    assert!(said(&output).contains("user data"), "{}", said(&output));
    assert!(account.versions().is_empty());
}

#[test]
fn a_machine_whose_disks_are_not_known_is_refused() {
    if !is_root_for("a machine that does not show its disks") {
        return;
    }
    let account = Account::new();
    let machine = Machine::new(&account);
    let file = machine.order_file(&order(&account, FIRST));
    let script = r#"
        mount -t tmpfs tmpfs /sys
        "$@" 2>"$log/err"; echo $? >"$log/status"
    "#;
    let log = machine.script(script, &["--work-order", &file]);
    let text = |name: &str| fs::read_to_string(log.join(name)).unwrap();
    assert_eq!(text("status"), "75\n", "{}", text("err"));
    assert!(
        text("err").contains("list the disks of this machine: No such file"),
        "{}",
        text("err")
    );
    assert!(account.versions().is_empty());
}

/// The disk behind `/` as a stand-in for evidence, where this machine's `/` is on one.
#[test]
fn the_disk_behind_the_root_is_refused_as_evidence() {
    use std::os::unix::fs::MetadataExt as _;
    let device = fs::metadata("/").unwrap().dev();
    let (major, minor) = (nix::sys::stat::major(device), nix::sys::stat::minor(device));
    let uevent = fs::read_to_string(format!("/sys/dev/block/{major}:{minor}/uevent"));
    let name = uevent.ok().and_then(|text| {
        text.lines().find_map(|line| line.strip_prefix("DEVNAME=").map(str::to_owned))
    });
    let Some(name) = name.filter(|name| fs::metadata(format!("/dev/{name}")).is_ok()) else {
        return;
    };
    let account = Account::new();
    let machine = Machine::new(&account);
    let mut order = order(&account, FIRST);
    order.volumes[0].source = "vol-0fedcba9876543210".parse().unwrap();
    let file = machine.order_file(&order);
    let root = format!("vol-0fedcba9876543210=/dev/{name}");
    let output = machine.expect(78, &["--work-order", &file, "--evidence", &root]);
    assert!(said(&output).contains("behind /"), "{VOLUME}: {}", said(&output));
    assert!(account.versions().is_empty());
}
