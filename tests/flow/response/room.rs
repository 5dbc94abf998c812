//! A message on the topic ends in a report of a clean room that booted.

use cleanroom_harness::{
    incident::{Incident, Programs},
    room::{Ended, SHELL},
    tools::command,
};

use super::scene::{SETTINGS, cleanroom};
use crate::support::{PATIENCE, expect, lines, words};

#[test]
fn a_message_on_the_topic_ends_in_a_report_of_a_booted_clean_room() {
    let incident = Incident::begin(Programs::beside_tests().expect("the programs"));
    let incident = incident.expect("an incident");
    expect(&incident, &[0], &["deploy", "--artifacts", "artifacts", "--agent-only"]);
    let stack = incident.response_stack(SETTINGS).expect("a stack");
    let router = stack.router().expect("a router");

    let instance = incident.world.instance().to_owned();
    let case = format!("{instance}-1");
    stack.publish(&instance).expect("publish");
    stack.wait("the execution", PATIENCE, || stack.execution(&case)).expect("it starts");
    let site = incident.site(&case).through(&router.url());
    let going = || Ok(stack.execution(&case)?.is_some_and(|found| !found.has_ended()));
    if let Err(error) = site.launched(going) {
        panic!("{error:#}\n{:#?}\n{:#?}", stack.execution(&case), stack.logs());
    }
    let mut room = site.boot(&[incident.agent().to_owned()], SHELL).expect("boot");
    room.copy_root(&incident.double.1).expect("copy the room's root");
    site.attach(&mut room, &[]).expect("attach");
    let before = incident.digests().expect("digests");

    // The room's agent ends the task, the machine reads back what it published, and people are told.
    let mut ended = None;
    room.until("the execution's end", PATIENCE, |_| {
        ended = stack.execution(&case)?.filter(|found| found.has_ended());
        Ok(ended.is_some())
    })
    .unwrap_or_else(|error| panic!("{error:#}\n{:#?}", stack.logs()));
    let ended = ended.expect("it has ended");
    assert_eq!(ended.status, "SUCCEEDED", "{ended:?}\n{}", room.tail());
    let told = ended.result();
    assert_eq!(told["rooms"][0]["read"]["going"], false, "{told:#}\n{}", room.tail());

    let home = tempfile::tempdir().expect("a home folder");
    let typed = ["fetch", &case, "--out", "bundle"];
    let fetched = cleanroom(&stack, home.path(), &typed).output().expect("start cleanroom");
    assert!(fetched.status.success(), "{}", words(&fetched));
    let bundle = home.path().join("bundle");
    let mut sums = command("sha256sum").expect("sha256sum");
    let sums = sums.args(["-c", "--quiet", "SHA256SUMS"]).current_dir(&bundle).output();
    let sums = sums.expect("run sha256sum");
    assert!(sums.status.success(), "{}", words(&sums));
    assert!(lines(&bundle.join("findings.jsonl")).len() >= 5, "it was broken into");
    let typed = ["custody", "verify", &case];
    let verified = cleanroom(&stack, home.path(), &typed).output().expect("start cleanroom");
    assert!(verified.status.success(), "{}", words(&verified));

    assert_eq!(room.wait(PATIENCE).expect("off"), Ended::Off, "{}", room.tail());
    assert_eq!(incident.digests().expect("digests"), before, "evidence is as it was");
    let said = stack.notices().expect("notices");
    assert!(said.iter().any(|notice| notice["body"].to_string().contains(&case)), "{said:#?}");
}
