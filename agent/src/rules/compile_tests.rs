use std::path::{Path, PathBuf};

use yara_x::Scanner;

use super::*;
use crate::rules::{
    pack::LoadedPack,
    source::{self, Include, Source, Text, digest},
};

/// A set of one text a source, each in a namespace of its path.
fn set_of(texts: &[(&str, &[u8])]) -> SourceSet {
    let source = |(path, bytes): &(&str, &[u8])| Source {
        namespace: (*path).to_owned(),
        text: Text {
            path: (*path).to_owned(),
            bytes: bytes.to_vec(),
            sha256: digest(bytes),
            includes: Vec::new(),
        },
    };
    SourceSet { sources: texts.iter().map(source).collect(), diagnostics: Vec::new() }
}

fn loaded(pack: &Pack) -> LoadedPack {
    let mut bytes = Vec::new();
    pack.write_to(&mut bytes).unwrap();
    LoadedPack::load(&bytes).unwrap()
}

/// Names of the rules that match, with the smallest set that may be used.
fn matching(pack: &Pack, data: &[u8]) -> Vec<String> {
    let pack = loaded(pack);
    let mut scanner = Scanner::new(pack.rules(pack.set_for(data)));
    let results = scanner.scan(data).unwrap();
    let mut names: Vec<_> = results.matching_rules().map(|r| r.identifier().to_owned()).collect();
    names.sort();
    names
}

fn fixture(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../fixtures/rules").join(name)
}

/// Line, column and whether it is an error, of each diagnostic about a file whose path ends so.
fn places(pack: &Pack, end: &str) -> Vec<(u64, u64, bool)> {
    let of_file = pack.header.diagnostics.iter().filter(|d| d.path.ends_with(end));
    of_file.map(|d| (d.line, d.column, d.error)).collect()
}

#[test]
fn a_broken_rule_is_placed_and_the_others_still_match() {
    let paths = ["broken-missing-brace.yar", "broken-unknown-identifier.yar", "header-negated.yar"]
        .map(fixture);
    let pack = compile(&source::read(&paths).unwrap()).unwrap();
    assert_eq!(places(&pack, "broken-missing-brace.yar"), [(14, 1, true)]);
    assert_eq!(places(&pack, "broken-unknown-identifier.yar"), [(4, 33, true)]);
    let unknown = pack.header.diagnostics.iter().find(|d| d.line == 4).unwrap();
    assert!(unknown.message.contains("unknown identifier `no_such_thing`"), "{}", unknown.message);
    let matched = matching(&pack, b"MZ a fixture-marker");
    for name in ["before_the_break", "still_sound", "at_least_two_bytes"] {
        assert!(matched.iter().any(|m| m == name), "{name} is not in {matched:?}");
    }
}

#[test]
fn a_rule_that_needs_a_missing_module_is_reported_and_the_others_match() {
    let pack = compile(&source::read(&[fixture("missing-module.yar")]).unwrap()).unwrap();
    assert_eq!(
        places(&pack, "missing-module.yar"),
        [(1, 1, false), (3, 1, true), (6, 9, false), (9, 1, true)]
    );
    assert_eq!(matching(&pack, b"fixture-marker"), ["needs_nothing"]);
}

#[test]
fn an_include_stands_where_it_is_written() {
    let pack = compile(&source::read(&[fixture("include-index.yar")]).unwrap()).unwrap();
    assert_eq!(matching(&pack, b"fixture-marker"), ["greeting", "uses_included"]);
    assert_eq!(places(&pack, "include-index.yar"), [(3, 1, true)]);
    assert_eq!(places(&pack, "greeting.inc"), [(12, 9, true)]);
    let entries: Vec<u64> = pack.header.sources.iter().map(|file| file.entries).collect();
    assert_eq!(entries, [1, 1]);
}

#[test]
fn the_part_before_an_include_is_visible_in_it_and_lines_stay() {
    let mut set = set_of(&[("a.yar", b"rule a { condition: true }\ninclude \"b\" rule c { condition: b }\nrule d { condition: x }")]);
    let inner = set_of(&[("b", b"rule b { condition: a }")]).sources.remove(0).text;
    set.sources[0].text.includes.push(Include { span: 27..38, text: Some(inner) });
    let pack = compile(&set).unwrap();
    assert_eq!(matching(&pack, b""), ["a", "b", "c"]);
    let errors: Vec<_> = places(&pack, "a.yar").into_iter().filter(|place| place.2).collect();
    assert_eq!(errors, [(3, 21, true)]);
}

#[test]
fn a_text_that_is_no_utf8_is_an_error_of_its_own() {
    let good = b"rule good { condition: true }";
    let pack = compile(&set_of(&[
        ("bad.yar", b"// caf\xe9\nrule bad { condition: true }"),
        ("good.yar", good),
    ]))
    .unwrap();
    assert_eq!(matching(&pack, b""), ["good"]);
    assert_eq!(places(&pack, "bad.yar"), [(1, 7, true)]);
}

#[test]
fn relaxed_regular_expressions_are_accepted() {
    let pack = compile(&source::read(&[fixture("relaxed-regexp.yar")]).unwrap()).unwrap();
    assert_eq!(
        pack.header.diagnostics.iter().filter(|d| d.error).count(),
        0,
        "{:?}",
        pack.header.diagnostics
    );
    assert_eq!(matching(&pack, b"fixtureR"), ["unknown_escape"]);
}

#[test]
fn the_variables_are_strings() {
    let text = VARIABLES.map(|name| format!("{name} == \"\"")).join(" and ");
    let pack =
        compile(&set_of(&[("a", format!("rule v {{ condition: {text} }}").as_bytes())])).unwrap();
    assert_eq!(matching(&pack, b""), ["v"]);
}

#[test]
fn rules_that_blocks_cannot_judge_are_counted() {
    let pack = compile(&source::read(&[fixture("whole-file.yar")]).unwrap()).unwrap();
    let loaded = loaded(&pack);
    assert_eq!((loaded.header.rules(), loaded.unjudged_in_blocks(RouteIndex::Other)), (4, 3));
}

#[test]
fn messages_are_printable_and_bounded_in_number() {
    let broken = "rule \u{202e} { condition: true }\n".to_owned();
    let pack = compile(&set_of(&[("a", broken.as_bytes())])).unwrap();
    assert!(pack.header.diagnostics.iter().any(|d| d.error));
    assert!(pack.header.diagnostics.iter().all(|d| !d.message.contains('\u{202e}')));
    let diagnostic = RuleDiagnostic {
        path: "p".to_owned(),
        line: 1,
        column: 1,
        message: String::new(),
        error: true,
    };
    let kept = bounded(vec![diagnostic; MAX_DIAGNOSTICS + 5]);
    assert_eq!(kept.len(), MAX_DIAGNOSTICS + 1);
    assert!(kept.iter().any(|d| d.message == "further errors are not listed"));
}

#[test]
fn deep_conditions_neither_crash_nor_spoil_the_others() {
    let deep =
        format!("rule deep {{ condition: {}true{} }}", "(".repeat(20_000), ")".repeat(20_000));
    let nots = format!("rule nots {{ condition: {}true }}", "not ".repeat(2_000));
    let pack = compile(&set_of(&[
        ("deep", deep.as_bytes()),
        ("nots", nots.as_bytes()),
        ("good", b"rule good { condition: true }"),
    ]))
    .unwrap();
    assert!(matching(&pack, b"").contains(&"good".to_owned()));
}
