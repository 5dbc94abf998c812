//! A person's word, as it is typed.

use cleanroom_harness::emulators::Kind;

use super::account::{Account, assert_verified};

#[test]
fn an_answer_is_shown_asked_for_and_logged() {
    let account = Account::of(Kind::Plain);
    let station = account.station();
    let instance = account.world.instance();
    let ran = station.run(&["respond", instance, "--only", "protect"]);
    let case = ran.report()["case"].as_str().expect("a case").to_owned();

    let ran = station.expect(2, &["approve", &case]);
    assert!(ran.stderr.contains("give --yes; nothing was answered"), "{ran}");
    assert_eq!(ran.record("question")["instance"], instance, "{ran}");
    let ran = station.expect(1, &["approve", "no-such-case", "--yes"]);
    assert!(ran.stderr.contains("no-such-case"), "{ran}");

    // Nothing waits for it: then the log alone tells, and no state machine is asked.
    let arguments = ["approve", &case, "--refuse", "--reason", "known test", "--yes"];
    let ran = station.expect(0, &arguments);
    let answered = ran.record("answered");
    assert_eq!((&answered["decision"], &answered["went_on"]), (&"leave".into(), &0.into()));
    let logged = account.events(&case).into_iter().find(|event| event["event"] == "answered");
    let logged = logged.expect("it is in the log");
    assert_eq!((&logged["decision"], &logged["reason"]), (&"leave".into(), &"known test".into()));
    assert_eq!(logged["by"], logged["actor"], "who answered is who called");
    assert_verified(&station, &case);
    let status = station.run(&["status", &case]).record("status");
    assert_eq!(status["answered"]["decision"], "leave");
}
