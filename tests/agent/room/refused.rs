//! A bucket or a topic that refuses, and an agent that is asked to end.

use std::fs;

use cleanroom_contract::{GapKind, RoomNews, RunState, bundle_prefix};
use cleanroom_harness::emulators::{Fault, Injection, Microburst};
use nix::sys::signal::Signal;

use super::{
    account::Account,
    machine::{CLOSED, Machine, order, ordered_file, said},
};
use crate::support::wait_until;

const SCAN: &str = "20260102T030405Z-0123abcd";

#[test]
fn what_can_not_be_published_stays_sealed_until_it_can() {
    let account = Account::new();
    let mut machine = Machine::new(&account);
    let order = order(&account, SCAN);
    let file = machine.order_file(&order);
    let run = ["--work-order", file.as_str(), "--patience", "1s"];

    machine.set("AWS_ENDPOINT_URL_S3", CLOSED);
    let output = machine.expect(75, &run);
    assert!(said(&output).contains("the next start publishes it"), "{}", said(&output));
    assert_eq!(machine.phase(&order.scan), "sealed");
    let bundle = machine.state().join(SCAN).join("bundle-1");
    let sealed = fs::read(bundle.join("SHA256SUMS")).unwrap();
    assert!(account.versions().is_empty());

    machine.unset("AWS_ENDPOINT_URL_S3");
    let output = machine.expect(0, &run);
    let scan = machine.published(&account, &order, &output);
    let prefix = bundle_prefix(&order.case, &order.scan);
    assert_eq!(account.get(&format!("{prefix}SHA256SUMS")), sealed, "the bundle that was sealed");
    assert_eq!(scan.report.run.state, RunState::Complete);
    assert!(!machine.state().join(SCAN).join("bundle-2").exists(), "it was not scanned again");
    assert_eq!(account.messages().len(), 1);
    account.assert_written_once();
}

#[test]
fn a_throttled_bucket_gets_all_of_it_in_the_end() {
    let account = Account::new();
    let mut machine = Machine::new(&account);
    let proxy = Microburst::start(account.url(), 7).expect("microburst starts");
    proxy.set(&[Fault::throttling("s3", 0.3)]).expect("faults are set");
    machine.set("AWS_ENDPOINT_URL_S3", &proxy.url());
    let order = order(&account, SCAN);
    let output = machine.expect(0, &["--work-order", &machine.order_file(&order)]);
    machine.published(&account, &order, &output);
    assert!(!proxy.fired().expect("it answers").is_empty(), "something was throttled");
    let events = account.events(&order.case, &order.scan);
    assert!(matches!(events.last().unwrap().news, RoomNews::Published { .. }), "{events:?}");
    account.assert_written_once();
}

#[test]
fn a_cut_network_keeps_nothing_from_being_told() {
    let account = Account::new();
    let mut machine = Machine::new(&account);
    let proxy = Microburst::start(account.url(), 7).expect("microburst starts");
    proxy.set(&[Fault::new("*", 1.0, Injection::Reset)]).expect("faults are set");
    machine.set("AWS_ENDPOINT_URL", &proxy.url());
    let order = order(&account, SCAN);
    let running = machine.start(&["--work-order", &machine.order_file(&order)]);
    wait_until("the bundle is sealed", || machine.phase(&order.scan) == "sealed");
    assert!(account.versions().is_empty());
    proxy.set(&[]).expect("faults are set");
    let output = running.finish();
    assert_eq!(output.status.code(), Some(0), "{}", said(&output));
    machine.published(&account, &order, &output);
    let events = account.events(&order.case, &order.scan);
    let told = |is: fn(&RoomNews) -> bool| events.iter().any(|event| is(&event.news));
    assert!(matches!(events[0].news, RoomNews::Started { attempt: 1, .. }), "{events:?}");
    assert!(told(|news| matches!(news, RoomNews::Attached { .. })), "{events:?}");
    assert!(told(|news| matches!(news, RoomNews::Findings { .. })), "{events:?}");
    assert!(told(|news| matches!(news, RoomNews::Sealed { .. })), "{events:?}");
    assert!(told(|news| matches!(news, RoomNews::Published { .. })), "{events:?}");
    assert_eq!(account.messages().len(), 1);
    account.assert_written_once();
}

#[test]
fn rules_that_can_not_be_reached_at_first_are_asked_for_again() {
    let account = Account::new();
    let mut machine = Machine::new(&account);
    let proxy = Microburst::start(account.url(), 7).expect("microburst starts");
    // One more than the attempts of a call.
    let cut = Fault::new("s3", 1.0, Injection::Reset).on("GetObject").times(6);
    proxy.set(&[cut]).expect("faults are set");
    machine.set("AWS_ENDPOINT_URL_S3", &proxy.url());
    let mut order = order(&account, SCAN);
    order.rules = vec![ordered_file(&account, "late.yar", b"rule late { condition: true }")];
    let output = machine.expect(0, &["--work-order", &machine.order_file(&order)]);
    let scan = machine.published(&account, &order, &output);
    assert_eq!(proxy.fired().expect("it answers").len(), 6);
    assert!(scan.gaps_of(GapKind::Rules).is_empty(), "{}", said(&output));
}

#[test]
fn without_the_topic_the_bundle_is_there_and_the_events_say_who_was_not_told() {
    let account = Account::new();
    let mut machine = Machine::new(&account);
    let proxy = Microburst::start(account.url(), 7).expect("microburst starts");
    let denied = Injection::Error { code: "AuthorizationError".to_owned(), status: Some(403) };
    proxy.set(&[Fault::new("sns", 1.0, denied)]).expect("faults are set");
    machine.set("AWS_ENDPOINT_URL_SNS", &proxy.url());
    let order = order(&account, SCAN);
    let output = machine.expect(0, &["--work-order", &machine.order_file(&order)]);
    machine.published(&account, &order, &output);
    let events = account.events(&order.case, &order.scan);
    match &events.last().unwrap().news {
        RoomNews::Untold { reason } => assert!(reason.contains("AuthorizationError"), "{reason}"),
        other => panic!("{other:?}"),
    }
    assert_eq!(account.messages(), []);
}

#[test]
fn an_agent_that_is_asked_to_end_seals_and_publishes_what_it_has() {
    let account = Account::new();
    let machine = Machine::new(&account);
    for number in 0..2_000 {
        let path = machine.path().join("tree").join(format!("file-{number}"));
        fs::write(path, vec![b'x'; 128 << 10]).unwrap();
    }
    let order = order(&account, SCAN);
    let file = machine.order_file(&order);
    let running = machine.start(&["--work-order", &file]);
    let records = machine.state().join(SCAN).join("bundle-1/.spool/000000.records");
    wait_until("records", || fs::metadata(&records).is_ok_and(|file| file.len() > 10_000));
    running.signal(Signal::SIGTERM);
    let output = running.finish();
    assert_eq!(output.status.code(), Some(75), "{}", said(&output));
    let scan = machine.published(&account, &order, &output);
    assert_eq!(scan.report.run.state, RunState::Interrupted);
    assert_eq!(account.messages().len(), 1);
    machine.expect(0, &["--work-order", &file]);
    account.assert_written_once();
}
