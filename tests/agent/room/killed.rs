//! Runs that are killed, at whatever moment.

use std::{
    fs,
    time::{Duration, Instant},
};

use cleanroom_contract::{RoomNews, RunState, WorkOrder, bundle_prefix};
use cleanroom_harness::numbers::Numbers;
use nix::sys::signal::Signal;

use super::{
    account::Account,
    machine::{Machine, order, said},
};

/// How many runs are killed.
const KILLS: u32 = 10;

/// An order that is carried out in spite of all. `in_doubt` are the kills that met it while people were being told. How long
/// the last run took.
fn carried_out(
    account: &Account,
    machine: &Machine,
    order: &WorkOrder,
    in_doubt: usize,
) -> Duration {
    let began = Instant::now();
    let output = machine.expect(0, &["--work-order", &machine.order_file(order)]);
    let took = began.elapsed();
    let scan = machine.published(account, order, &output);
    assert_eq!(scan.report.run.state, RunState::Complete, "{}", said(&output));
    let prefix = bundle_prefix(&order.case, &order.scan);
    let files = account.versions().into_keys().filter(|key| key.starts_with(&prefix)).count();
    assert_eq!(files, 7, "one bundle");
    let events = account.events(&order.case, &order.scan);
    let published =
        |event: &&cleanroom_contract::RoomEvent| matches!(event.news, RoomNews::Published { .. });
    assert!(events.iter().any(|event| published(&event)), "{events:?}");
    let messages = account.messages();
    assert!((1..=1 + in_doubt).contains(&messages.len()), "{in_doubt} in doubt: {messages:#?}");
    for (message, _) in messages {
        assert_eq!(message["scan"], order.scan.as_str());
    }
    took
}

/// Moments are drawn from the time that a whole run takes here, so that a slow machine is killed at the same places as a
/// fast one.
#[test]
fn ten_killed_runs_end_as_one_that_was_not() {
    let account = Account::new();
    let machine = Machine::new(&account);
    for number in 0..300 {
        let path = machine.path().join("tree").join(format!("file-{number}"));
        fs::write(path, vec![b'x'; 64 << 10]).unwrap();
    }
    let whole = carried_out(&account, &machine, &order(&account, "20260102T030400Z-00000000"), 0);
    let mut numbers = Numbers::new(20_260_301);
    let (mut kills, mut orders, mut in_doubt) = (0, 1, 0);
    let next = |orders: u32| order(&account, &format!("20260102T0304{orders:02}Z-00000000"));
    let mut ordered = next(orders);
    while kills < KILLS {
        let mut running = machine.start(&["--work-order", &machine.order_file(&ordered)]);
        let until = Instant::now() + numbers.part_of(whole);
        while Instant::now() < until && !running.has_ended() {
            std::thread::park_timeout(Duration::from_millis(1));
        }
        let killed = !running.has_ended();
        running.signal(Signal::SIGKILL);
        let output = running.finish();
        if killed {
            assert_eq!(output.status.code(), None, "{}", said(&output));
            kills += 1;
            in_doubt += usize::from(machine.phase(&ordered.scan) == "telling");
        }
        // A third beginning is the last: killed there, the scan would be sealed as far as it came.
        let is_last =
            machine.phase(&ordered.scan) == "scanning" && machine.begun(&ordered.scan) > 1;
        if !killed || is_last {
            carried_out(&account, &machine, &ordered, in_doubt);
            orders += 1;
            in_doubt = 0;
            ordered = next(orders);
        }
    }
    carried_out(&account, &machine, &ordered, in_doubt);
    account.assert_written_once();
}
