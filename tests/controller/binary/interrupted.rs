//! Runs that are killed, interrupted, or lose their reader.

use std::process::Stdio;

use cleanroom_harness::emulators::{Fault, Injection, Kind};
use rustix::process::Signal;
use serde_json::{Value, json};

use super::{
    account::{Account, State, assert_verified},
    station::{Running, Station, pause},
};

/// How many runs are killed.
const KILLS: usize = 50;

/// Numbers that look random and are the same each time (SplitMix64).
struct Numbers(u64);

impl Numbers {
    fn below(&mut self, bound: usize) -> usize {
        self.0 = self.0.wrapping_add(0x9E37_79B9_7F4A_7C15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
        let z = z ^ (z >> 31);
        usize::try_from(z % u64::try_from(bound).expect("small")).expect("small")
    }
}

/// Responds and kills the run once so many more calls were answered. Whether it lived to be killed.
fn respond_and_kill(station: &Station, instance: &str, calls: usize, delay: u64) -> bool {
    let before = station.log_length();
    let mut run = station.start(&["respond", instance]);
    run.wait_until(|_| station.calls_since(before).len() >= calls);
    pause(delay);
    let killed = !run.has_ended();
    run.signal(Signal::KILL);
    let ran = run.finish();
    assert!(!killed || ran.signal() == Some(9), "{ran}");
    killed
}

/// The world after the last run: one case, nothing open, evidence and log whole.
fn judge(account: &Account, station: &Station, what: &str) {
    let claims = account.claims();
    assert_eq!(claims.len(), 1, "{what}: one case: {claims:?}");
    let case = claims[0].1["case"].as_str().expect("a case");
    let state = account.state();
    state.assert_contained(case, what);
    state.assert_evidence_whole(what);
    let sets = state.assert_preserved(case, what);
    let events = account.events(case);
    let preserved = events.iter().rfind(|e| e["event"] == "preserved").expect("preserved");
    let length = |member: &str| preserved[member].as_array().map_or(0, Vec::len);
    assert_eq!(length("snapshots"), account.world.volumes().len(), "{what}: {preserved}");
    assert_eq!(
        length("snapshots") + length("surplus"),
        state.snapshots().len(),
        "{what}: {sets} sets, and what is surplus is listed: {preserved}"
    );
    assert_original_groups(account, &events, what);
    assert_verified(station, case);
}

/// The groups that the log gives as the interfaces' own are those that they were built with.
pub(super) fn assert_original_groups(account: &Account, events: &[Value], what: &str) {
    let opened = events.iter().find(|e| e["event"] == "opened").expect("the case was opened");
    let text = opened["original"].to_string();
    for interface in account.world.interfaces() {
        assert!(text.contains(interface), "{what}: {interface} is not recorded");
    }
    let mut found = std::collections::BTreeMap::new();
    collect_groups(&opened["original"], &mut found);
    for interface in account.world.interfaces() {
        let built: Vec<_> = account.world.groups(interface);
        assert_eq!(found.get(interface), Some(&json!(built)), "{what}: {interface}");
    }
}

/// Every object with an interface's id and its groups.
fn collect_groups(value: &Value, found: &mut std::collections::BTreeMap<String, Value>) {
    match value {
        Value::Object(members) => {
            if let (Some(id), Some(groups)) = (members.get("id"), members.get("groups"))
                && let Some(id) = id.as_str().filter(|id| id.starts_with("eni-"))
            {
                found.insert(id.to_owned(), groups.clone());
            }
            members.values().for_each(|value| collect_groups(value, found));
        }
        Value::Array(items) => items.iter().for_each(|item| collect_groups(item, found)),
        _ => {}
    }
}

/// Fifty runs are killed, each at another moment, one after another on the same instance; where one of them gets through,
/// the next begin with an instance that is new. Moments are drawn as a number of answered calls and a few milliseconds
/// more, so that a slow machine is killed at the same places as a fast one.
#[test]
fn fifty_killed_runs_end_as_one_that_was_not() {
    let mut account = Account::of(Kind::Full);
    let mut station = account.station();
    let mut numbers = Numbers(20_260_301);
    let (mut kills, mut worlds) = (0, 1);
    while kills < KILLS {
        let instance = account.world.instance().to_owned();
        // A whole run makes some two hundred calls, and each begins with a few that only look.
        let calls = 3 + numbers.below(150);
        let delay = u64::try_from(numbers.below(30)).expect("small");
        if respond_and_kill(&station, &instance, calls, delay) {
            kills += 1;
            continue;
        }
        station.expect(0, &["respond", &instance]);
        judge(&account, &station, &format!("world {worlds}, after {kills} kills"));
        if kills < KILLS {
            account.rebuild(Kind::Full);
            station = account.station();
            worlds += 1;
        }
    }
    station.expect(0, &["respond", account.world.instance()]);
    judge(&account, &station, &format!("world {worlds}, in the end"));
}

/// Waits until a run has told this.
fn until_told(run: &mut Running, what: &str) {
    assert!(run.wait_until(|run| run.said().contains(what)), "no {what} in {}", run.said());
}

/// Waits until a run that began with every interface isolated has opened one: groups change for nothing else then. `before` is
/// the length of the log of calls at its start.
fn until_open(run: &mut Running, station: &Station, before: u64) {
    let is_change = |call: &Value| call["operation"] == "ModifyNetworkInterfaceAttribute";
    let opened = run.wait_until(|_| station.calls_since(before).iter().any(is_change));
    assert!(opened, "nothing was opened: {}", run.said());
}

/// The interfaces that let everything through.
fn open_interfaces(state: &State) -> Vec<String> {
    let is_open = |group: &Value| {
        let group = &state["vpc_security_groups"][group.as_str().expect("an id")];
        group["name"].as_str().expect("a name").starts_with("cleanroom-flush")
    };
    let all = state["interfaces"].as_array().expect("interfaces").iter();
    all.filter(|i| i["groups"].as_array().expect("groups").iter().any(is_open))
        .map(|i| i["id"].as_str().expect("an id").to_owned())
        .collect()
}

#[test]
fn an_interrupted_run_leaves_nothing_open_and_says_how_to_go_on() {
    let account = Account::of(Kind::Full);
    let station = account.station();
    let instance = account.world.instance();
    type Moment = fn(&mut Running, &Station, u64);
    let moments: [(Signal, i32, Moment); 3] = [
        (Signal::INT, 130, |run, _, _| until_told(run, "\"type\":\"case\"")),
        (Signal::TERM, 143, |run, _, _| until_told(run, "\"name\":\"contained\"")),
        (Signal::INT, 130, until_open),
    ];
    for (signal, status, moment) in moments {
        let before = station.log_length();
        let mut run = station.start(&["respond", instance]);
        moment(&mut run, &station, before);
        run.signal(signal);
        let ran = run.finish();
        ran.expect_any(&[status]);
        assert!(ran.stderr.contains("respond again"), "{ran}");
        assert_eq!(open_interfaces(&account.state()), Vec::<String>::new(), "{ran}");
    }
    station.expect(0, &["respond", instance]);
    judge(&account, &station, "after interruptions");
}

#[test]
fn an_interface_that_a_killed_run_left_open_is_told_first_and_closed() {
    let account = Account::of(Kind::Full);
    let station = account.station();
    let instance = account.world.instance();
    let case = format!("{instance}-1");
    // As far as the read-back that it is contained, so that groups change for the opening only.
    let mut run = station.start(&["respond", instance]);
    until_told(&mut run, "\"name\":\"contained\"");
    run.signal(Signal::KILL);
    run.finish();
    for (closer, status) in [(&["status", "--format", "human"][..], 3), (&["respond", instance], 0)]
    {
        let before = station.log_length();
        let mut run = station.start(&["respond", instance]);
        until_open(&mut run, &station, before);
        run.signal(Signal::KILL);
        assert_eq!(run.finish().signal(), Some(9));
        let open = open_interfaces(&account.state());
        assert!(!open.is_empty(), "it was killed while one was open");

        let ran = station.expect(status, closer);
        // Nothing comes before it in what status says.
        let first = |line: &&str| closer[0] != "status" || line.starts_with("!!!");
        let said: String = ran.stdout.lines().take_while(first).collect();
        for interface in &open {
            assert!(said.contains(interface.as_str()), "{interface} was open: {ran}");
        }
        assert!(said.contains("open") || said.contains("OPEN"), "{ran}");
        assert_eq!(open_interfaces(&account.state()), Vec::<String>::new(), "{ran}");
    }
    judge(&account, &station, &format!("{case} after kills"));
}

#[test]
fn a_reader_that_goes_away_stops_no_containment() {
    let account = Account::of(Kind::Plain);
    let station = account.station();
    let arguments = ["respond", account.world.instance()];
    for format in ["jsonl", "human"] {
        let mut command = station.command(&arguments);
        command.args(["--format", format]);
        command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::null());
        let mut child = command.spawn().expect("the program starts");
        // As `head` that has seen enough, before anything was written.
        drop(child.stdout.take());
        let status = child.wait().expect("it ends");
        assert_eq!(status.code(), Some(0), "{format}: {status}");
        judge(&account, &station, format);
    }
}

/// What was answered without the change having been made, and the other way round.
#[test]
fn a_snapshot_whose_answer_is_lost_is_found_and_not_made_twice() {
    let account = Account::of(Kind::Full);
    let proxy = account.proxy(7);
    let station = Station::new(&proxy.url());
    let lost = Fault::new("ec2", 1.0, Injection::LostAnswer).on("CreateSnapshots").times(1);
    proxy.set(&[lost]).expect("the proxy takes faults");
    station.expect(0, &["respond", account.world.instance()]);
    assert_eq!(proxy.fired().expect("faults").len(), 1);
    judge(&account, &station, "a lost answer");
    assert_eq!(account.state().snapshots().len(), 3, "one set");
}
