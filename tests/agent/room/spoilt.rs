//! Rules and lists that are broken, come late, or end whoever loads them: each costs itself, and never the scan.

use std::{fs, process::Command};

use cleanroom_contract::{GapKind, OrderedFile, RoomNews, RunState};
use cleanroom_harness::emulators::{Fault, Microburst};

use super::{
    account::Account,
    machine::{Machine, RULE, order, ordered_file, said},
};
use crate::support::{Scan, agent, run};

const SCAN: &str = "20260102T030405Z-0123abcd";

/// Why rules or lists were not used.
fn refused(scan: &Scan) -> Vec<&str> {
    scan.gaps_of(GapKind::Rules).iter().map(|gap| gap.reason.as_str()).collect()
}

fn by_rule(scan: &Scan) -> usize {
    scan.findings.iter().filter(|finding| finding.source.starts_with("rule:")).count()
}

#[test]
fn a_broken_file_costs_itself_and_no_other() {
    let account = Account::new();
    let machine = Machine::new(&account);
    let mut order = order(&account, SCAN);
    order.rules = vec![
        ordered_file(&account, "broken.yar", b"rule sound { condition: false }\nrule broken {"),
        ordered_file(&account, "compiled.yar", b"YARA-X\0\x01\x02"),
        ordered_file(&account, "webshells.yar", RULE.as_bytes()),
    ];
    order.indicators = vec![
        ordered_file(&account, "broken.txt", b"/etc/passwd$;90\nneither digest nor path\n"),
        ordered_file(&account, "paths.txt", b"/etc/passwd$;90\n"),
        ordered_file(&account, "regex.txt", b"/etc/passwd$;90\n/etc/(;90\n"),
    ];
    let output = machine.expect(0, &["--work-order", &machine.order_file(&order)]);
    let scan = machine.published(&account, &order, &output);
    assert_eq!(scan.report.run.state, RunState::Complete);
    assert_eq!(by_rule(&scan), 1, "{:?}", scan.findings);
    let sources = scan.findings.iter().map(|finding| finding.source.as_str());
    let by_list: Vec<_> = sources.filter(|source| source.starts_with("path:")).collect();
    assert_eq!(by_list, ["path:paths.txt:1"], "of the three lists the sound one");
    let refused = refused(&scan);
    assert_eq!(refused.len(), 4, "{refused:#?}");
    for named in ["broken.yar:2:", "compiled.yar: ", "broken.txt:2: ", "regex.txt:2: "] {
        assert!(refused.iter().any(|reason| reason.contains(named)), "{named}: {refused:#?}");
    }
}

/// A pack whose description is sound and whose rules are not: what loads it can not know before.
fn spoilt_pack(machine: &Machine) -> Vec<u8> {
    let (source, pack) = (machine.path().join("source.yar"), machine.path().join("pack"));
    fs::write(&source, RULE).unwrap();
    let mut command: Command = agent(&machine.path().join("cache"));
    let (status, _, stderr) =
        run(command.args(["rules", "compile"]).arg(&source).arg("--out").arg(&pack));
    assert_eq!(status, 0, "{stderr}");
    let mut bytes = fs::read(&pack).unwrap();
    let end = bytes.len();
    bytes[end - end / 4..].fill(0xff);
    bytes
}

#[test]
fn rules_that_do_not_load_cost_the_rules_and_are_a_finding() {
    let account = Account::new();
    let machine = Machine::new(&account);
    let mut order = order(&account, SCAN);
    order.rules = vec![ordered_file(&account, "pack", &spoilt_pack(&machine))];
    order.indicators = vec![ordered_file(&account, "paths.txt", b"/etc/passwd$;90\n")];
    let output = machine.expect(0, &["--work-order", &machine.order_file(&order)]);
    let scan = machine.published(&account, &order, &output);
    assert_eq!(scan.report.run.state, RunState::Complete);
    assert!(scan.file("/etc/passwd").sha256.is_some());
    let refused = refused(&scan);
    assert_eq!(refused.len(), 1, "{refused:?}");
    assert!(
        refused[0].starts_with("not used: the rules: load the compiled rules: "),
        "{refused:?}"
    );
    let of = |source: &str| scan.findings.iter().find(|finding| finding.source == source);
    let finding = of("room:equipment").expect("a finding");
    assert!(finding.reason.contains("load the compiled rules"), "{finding:?}");
    assert!(of("path:paths.txt:1").is_some(), "the lists were used: {:?}", scan.findings);
    let events = account.events(&order.case, &order.scan);
    assert!(!events.iter().any(|event| matches!(event.news, RoomNews::Failed { .. })));
}

#[test]
fn rules_that_come_late_are_waited_for() {
    let account = Account::new();
    let mut machine = Machine::new(&account);
    let proxy = Microburst::start(account.url(), 7).expect("microburst starts");
    // More than one call repeats by itself.
    proxy.set(&[Fault::throttling("s3", 1.0).on("GetObject").times(12)]).expect("faults are set");
    machine.set("AWS_ENDPOINT_URL_S3", &proxy.url());
    let mut order = order(&account, SCAN);
    order.rules = vec![ordered_file(&account, "webshells.yar", RULE.as_bytes())];
    let output = machine.expect(0, &["--work-order", &machine.order_file(&order)]);
    assert!(said(&output).contains("webshells.yar is not here yet"), "{}", said(&output));
    let scan = machine.published(&account, &order, &output);
    assert_eq!(refused(&scan), Vec::<&str>::new());
    assert_eq!(by_rule(&scan), 1, "{:?}", scan.findings);
}

#[test]
fn rules_that_never_come_are_a_gap() {
    let account = Account::new();
    let mut machine = Machine::new(&account);
    let proxy = Microburst::start(account.url(), 7).expect("microburst starts");
    proxy.set(&[Fault::throttling("s3", 1.0).on("GetObject")]).expect("faults are set");
    machine.set("AWS_ENDPOINT_URL_S3", &proxy.url());
    let mut order = order(&account, SCAN);
    let rule = ordered_file(&account, "webshells.yar", RULE.as_bytes());
    order.rules = vec![rule.clone(), OrderedFile { name: "other.yar".to_owned(), ..rule }];
    let file = machine.order_file(&order);
    let output = machine.expect(0, &["--work-order", &file, "--patience", "2s"]);
    let scan = machine.published(&account, &order, &output);
    let refused = refused(&scan);
    assert_eq!(refused.len(), 2, "{refused:?}");
    assert!(refused.iter().all(|reason| reason.contains("SlowDown")), "{refused:?}");
}
