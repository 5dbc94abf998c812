use std::{fs, io::Write as _, path::Path};

use proptest::prelude::*;
use yara_x::{Rules, Scanner};

use super::*;
use crate::rules::{
    compile::{compile, compile_unrouted},
    pack::LoadedPack,
    source::{self, SourceSet, digest},
};

/// A source with a text of its own.
fn source_of(text: &str) -> Source {
    let bytes = text.as_bytes().to_vec();
    let text =
        Text { path: "t.yar".to_owned(), sha256: digest(&bytes), bytes, includes: Vec::new() };
    Source { namespace: "t.yar".to_owned(), text }
}

/// The facts of a text whose rules all compile.
fn facts_of(text: &str) -> Vec<RuleFacts> {
    let mut rules = facts(&source_of(text));
    settle(&mut rules, |_| true);
    rules
}

/// Packs and loads a set, and compiles it without routing.
fn both(set: &SourceSet) -> (LoadedPack, Rules) {
    let mut bytes = Vec::new();
    compile(set).unwrap().write_to(&mut bytes).unwrap();
    (LoadedPack::load(&bytes).unwrap(), compile_unrouted(set).unwrap())
}

/// Namespace and name of each rule that matches.
fn matches(rules: &Rules, data: &[u8]) -> BTreeSet<(String, String)> {
    let mut scanner = Scanner::new(rules);
    let results = scanner.scan(data).unwrap();
    results
        .matching_rules()
        .map(|rule| (rule.namespace().to_owned(), rule.identifier().to_owned()))
        .collect()
}

/// Heads, each alone and before text and before a marker.
fn corpus() -> Vec<Vec<u8>> {
    let heads: [&[u8]; 14] = [
        b"",
        b"M",
        b"MZ",
        b"ZM",
        b"MZ\x90\0",
        b"mz",
        b"\x7f",
        b"\x7fE",
        b"\x7fELF",
        b"\x7fELF\x02\x01\x01",
        b"\x7fELG",
        b"#!/bin/sh\n",
        b"PK\x03\x04",
        b"plain text",
    ];
    let tails: [&[u8]; 4] =
        [b"", b"\0", b" fixture-marker ", b" cmd.exe /c powershell http://a eval(base64_decode"];
    heads.iter().flat_map(|head| tails.iter().map(|tail| [*head, *tail].concat())).collect()
}

/// Fails where routing changes what matches; gives the number of matches and the routes taken.
fn compare(set: &SourceSet, corpus: &[Vec<u8>]) -> (usize, BTreeSet<RouteIndex>) {
    let (pack, unrouted) = both(set);
    let mut found = 0;
    let mut routes = BTreeSet::new();
    for data in corpus {
        let route = pack.set_for(&data[..data.len().min(HEAD_BYTES)]);
        let expected = matches(&unrouted, data);
        assert_eq!(matches(pack.rules(route), data), expected, "{}", data.escape_ascii());
        found += expected.len();
        routes.insert(route);
    }
    (found, routes)
}

#[test]
fn a_header_is_found_only_where_the_condition_requires_it() {
    let mz = Some(vec![b"MZ".to_vec()]);
    let elf = Some(vec![ELF.to_vec()]);
    for (condition, expected) in [
        ("uint16(0) == 0x5A4D", &mz),
        ("0x5A4D == uint16(0)", &mz),
        ("uint16be(0) == 0x4D5A", &mz),
        ("int16(0) == 0x5A4D", &mz),
        ("uint32(0) == 0x464c457f", &elf),
        ("uint32be(0) == 0x7f454c46", &elf),
        ("uint8(0) == 0x4D", &Some(vec![b"M".to_vec()])),
        ("(($a and ((uint16(0) == 0x5A4D)))) and #a > 2", &mz),
        ("$h at 0", &Some(vec![b"\x01\x02".to_vec()])),
        ("$t at 0", &Some(vec![b"a\"b".to_vec()])),
        ("uint8(0) == 0x4D and $h at 0", &Some(vec![b"\x01\x02".to_vec()])),
        (
            "uint16(0) == 0x5A4D or uint32(0) == 0x464c457f",
            &Some(vec![b"MZ".to_vec(), ELF.to_vec()]),
        ),
        ("(uint16(0) == 0x5A4D or $a) and uint32(0) == 0x464c457f", &elf),
        ("uint16(0) == 0x5A4D or $a", &None),
        ("not uint16(0) == 0x5A4D", &None),
        ("uint16(0) != 0x5A4D", &None),
        ("uint16(1) == 0x5A4D", &None),
        ("uint16(filesize) == 0x5A4D", &None),
        ("uint16(0) == 0x15A4D", &None),
        ("uint16(0) == uint16(2)", &None),
        ("uint16(0) == (0x5A4D)", &mz),
        ("$h at 1", &None),
        ("$h in (0..0)", &None),
        ("$h", &None),
        ("$w at 0", &None),
        ("$n at 0", &None),
        ("$f at 0", &None),
        ("$j at 0", &None),
        ("$r at 0", &None),
        ("defined (uint16(0) == 0x5A4D)", &None),
        ("for any of them : ($ at 0)", &None),
        ("1 of (uint16(0) == 0x5A4D, $a)", &None),
        ("any of them at 0", &None),
    ] {
        let rules = facts_of(&format!(
            "rule t {{ strings: $a = \"a\" $h = {{ 01 02 ?3 04 }} $t = \"a\\\"b\" $w = \"w\" wide $n = \"n\" nocase \
             $f = \"f\" fullword $j = {{ ?? 01 }} $r = /re/ condition: {condition} }}"
        ));
        assert_eq!(rules.len(), 1, "{condition}");
        assert_eq!(&rules[0].headers, expected, "{condition}");
        assert_eq!(rules[0].routable, expected.is_some(), "{condition}");
    }
}

#[test]
fn a_reference_passes_the_header_on_and_keeps_the_rule() {
    let rules = facts_of(
        "private rule m { condition: uint16(0) == 0x5A4D } rule a { strings: $a = \"a\" condition: m and $a } \
         rule b { strings: $a = \"b\" condition: $a and not m }",
    );
    assert!(rules[0].routable && rules[1].routable && !rules[2].routable);
    assert_eq!(keep(&[rules], |_| false), [[true, false, true]]);
}

#[test]
fn a_rule_that_others_could_mistake_is_never_routed() {
    let mz = "condition: uint16(0) == 0x5A4D";
    for (text, expected) in [
        (format!("global rule a {{ {mz} }} rule b {{ {mz} }}"), vec![false, true]),
        (
            format!("rule a {{ condition: true }} rule a {{ {mz} }} rule b {{ condition: a }}"),
            vec![false; 3],
        ),
        (format!("rule a {{ {mz} }} rule bad {{ condition: ( }}"), vec![false]),
    ] {
        let routable: Vec<bool> = facts_of(&text).iter().map(|rule| rule.routable).collect();
        assert_eq!(routable, expected, "{text}");
    }
    let mut rules = facts(&source_of(&format!(
        "rule owner {{ {mz} }} rule b {{ condition: owner }} rule c {{ condition: b }} rule d {{ {mz} }}"
    )));
    settle(&mut rules, |name| name != "owner");
    assert_eq!(rules.iter().map(|r| r.routable).collect::<Vec<_>>(), [false, false, false, true]);
}

#[test]
fn conditions_that_need_the_whole_file_are_known() {
    for (condition, expected) in [
        ("filesize > 1", true),
        ("$a and $a at 5", false),
        ("for any i in (1..#a) : (@a[i] < 10)", false),
        ("for any i in (1..#a) : (uint8(@a[i]) == 1)", true),
        ("$a in (0..filesize)", true),
        ("any of them and pe.is_pe", true),
        ("hash.md5(0, 10) == \"x\"", true),
        ("w", true),
        ("filename contains \"x\"", false),
    ] {
        let rules = facts_of(&format!(
            "import \"pe\" import \"hash\" rule w {{ condition: filesize == 0 }} \
             rule t {{ strings: $a = \"a\" condition: {condition} }}"
        ));
        assert_eq!(rules[1].whole_file, expected, "{condition}");
    }
    let rules = facts_of("rule a { condition: true } global rule g { condition: filesize > 1 }");
    assert!(rules.iter().all(|rule| rule.whole_file));
}

#[test]
fn the_first_bytes_choose_the_set() {
    use RouteIndex::{Elf, Full, Other};
    let headers = vec![b"MZ".to_vec(), b"\x7f".to_vec(), ELF.to_vec()];
    for (head, expected) in [
        (&b""[..], Other),
        (b"M", Other),
        (b"MZ", Full),
        (b"MZ\x90", Full),
        (b"\x7f", Full),
        (b"\x7fEL", Full),
        (b"\x7fELF", Elf),
        (b"\x7fELF\x02", Elf),
        (b"text", Other),
    ] {
        assert_eq!(choose(&headers, Elf, head), expected, "{}", head.escape_ascii());
    }
    assert_eq!(choose(&[], Other, b"\x7fELF"), Other);
}

#[test]
fn one_set_serves_where_routing_gains_little() {
    let plain = "rule p { strings: $a = \"a\" $b = \"b\" $c = \"c\" $d = \"d\" $e = \"e\" $f = \"f\" $g = \"g\" condition: any of them }";
    let mz = "rule m { condition: uint16(0) == 0x5A4D }";
    let plan = plan(&[facts_of(plain), facts_of(mz)]);
    assert!(plan.partial.is_empty() && plan.headers.is_empty());
    assert_eq!(plan.elf, RouteIndex::Other);
}

#[test]
fn the_fixtures_match_the_same_with_and_without_routing() {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../fixtures/rules");
    let set = source::read(&[folder]).unwrap();
    let (found, routes) = compare(&set, &corpus());
    assert!(found > 100, "{found} matches");
    assert_eq!(routes.len(), 3, "{routes:?}");
}

#[test]
fn published_rules_match_the_same_with_and_without_routing() {
    let Some(folder) = std::env::var_os("CLEANROOM_RULES_DIR") else {
        writeln!(std::io::stderr(), "CLEANROOM_RULES_DIR is not set: no published rules compared")
            .unwrap();
        return;
    };
    let set = source::read(&[folder.into()]).unwrap();
    let mut corpus = corpus();
    for source in set.sources.iter().step_by(1 + set.sources.len() / 60) {
        for body in bodies(&source.text.bytes) {
            for head in [&b""[..], b"MZ", ELF, b"\xd0\xcf\x11\xe0"] {
                corpus.push([head, body.as_slice()].concat());
            }
        }
    }
    corpus.push(fs::read("/proc/self/exe").unwrap().into_iter().take(1 << 20).collect());
    let (found, _) = compare(&set, &corpus);
    assert!(found > 0, "no rule matched anything");
    writeln!(std::io::stderr(), "{found} matches in {} files", corpus.len()).unwrap();
}

/// For each rule of a text, bytes in which its text and hexadecimal patterns match.
fn bodies(text: &[u8]) -> Vec<Vec<u8>> {
    fn hex(tokens: &yara_x_parser::ast::HexSubPattern, out: &mut Vec<u8>) {
        for token in tokens.iter() {
            match token {
                HexToken::Byte(byte) => out.push(byte.value),
                HexToken::NotByte(byte) => out.push(!byte.value),
                HexToken::Alternative(either) => hex(&either.alternatives[0], out),
                HexToken::Jump(jump) => out.extend(vec![0; jump.start.unwrap_or(0) as usize]),
            }
        }
    }
    let ast = AST::from(text);
    let body = |rule: &Rule<'_>| {
        let mut out = Vec::new();
        for pattern in rule.patterns.iter().flatten() {
            match pattern {
                Pattern::Text(text) => out.extend_from_slice(&text.text.value),
                Pattern::Hex(pattern) => hex(&pattern.sub_patterns, &mut out),
                Pattern::Regexp(_) => {}
            }
        }
        out
    };
    ast.rules().map(body).collect()
}

/// Conditions over the patterns `$_a`, `$_b`, `$_m` and the rules before rule `index`.
fn condition(index: usize) -> impl Strategy<Value = String> {
    let leaf = prop_oneof![
        4 => prop::sample::select(vec![
            "uint16(0) == 0x5A4D", "0x4D5A == uint16be(0)", "uint32(0) == 0x464c457f", "uint8(0) == 0x7f",
            "uint16(0) == 0x15A4D", "uint8(1) == 0x5A", "int8(0) == 0x4D", "$_m at 0", "$_b at 0",
        ]).prop_map(str::to_owned),
        3 => prop::sample::select(vec![
            "$_a", "$_b", "$_m", "any of them", "all of ($_a, $_b)", "filesize > 3", "#_a == 1", "true", "false",
            "for any i in (0..1) : (uint8(i) == 0x4D)", "any of them at 0", "nothing_known",
        ]).prop_map(str::to_owned),
        2 => (0..index.max(1)).prop_map(move |n| if index == 0 { "true".to_owned() } else { format!("r{n}") }),
    ];
    leaf.prop_recursive(4, 16, 3, |inner| {
        prop_oneof![
            3 => (inner.clone(), inner.clone()).prop_map(|(a, b)| format!("({a} and {b})")),
            2 => (inner.clone(), inner.clone()).prop_map(|(a, b)| format!("({a} or {b})")),
            1 => inner.clone().prop_map(|a| format!("not ({a})")),
            1 => inner.clone().prop_map(|a| format!("defined ({a})")),
            1 => (inner.clone(), inner).prop_map(|(a, b)| format!("any of (({a}), ({b}))")),
        ]
    })
}

/// A rule file: a few rules, now and then global, private, or with a name that is taken.
fn rule_file() -> impl Strategy<Value = String> {
    let rules: Vec<_> = (0..6)
        .map(|index| {
            let flags = prop::sample::select(vec!["", "", "", "", "private", "global", "global private"]);
            let name = prop_oneof![
                8 => Just(format!("r{index}")),
                1 => Just("r0".to_owned()),
                1 => Just("owner".to_owned()),
            ];
            (flags, name, condition(index)).prop_map(|(flags, name, condition)| {
                format!(
                    "{flags} rule {name} {{ strings: $_a = \"aaa\" $_b = \"bb\" $_m = {{ 4D 5A ?? }} \
                     condition: {condition} }}\n"
                )
            })
        })
        .collect();
    rules.prop_map(|rules| rules.concat())
}

/// Rules that make both partial sets pay, whatever else is in the pack.
fn ballast() -> String {
    let strings: String = (0..60).map(|n| format!("$s{n} = \"ballast {n}\" ")).collect();
    format!(
        "rule mz {{ strings: {strings} condition: uint16(0) == 0x5A4D and any of them }}\n\
         rule elf {{ strings: {strings} condition: uint32(0) == 0x464c457f and any of them }}\n"
    )
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(48))]

    #[test]
    fn routing_never_changes_what_matches(
        texts in prop::collection::vec(rule_file(), 1..3),
        tails in prop::collection::vec("[abMZ ]{0,8}", 2),
    ) {
        let mut set = SourceSet::default();
        for (index, text) in texts.iter().map(String::as_str).chain([ballast().as_str()]).enumerate() {
            let mut source = source_of(text);
            source.namespace = format!("{index}.yar");
            set.sources.push(source);
        }
        let heads: [&[u8]; 8] = [b"", b"M", b"MZ", b"MZ\x90", b"bb", b"\x7f", ELF, b"\x7fELG"];
        let corpus: Vec<Vec<u8>> = heads.iter()
            .flat_map(|head| tails.iter().map(|tail| [*head, tail.as_bytes()].concat()))
            .collect();
        let (_, routes) = compare(&set, &corpus);
        prop_assert!(routes.contains(&RouteIndex::Other) && routes.contains(&RouteIndex::Full));
    }

    #[test]
    fn any_text_has_facts(bytes in prop::collection::vec(any::<u8>(), 0..200), text in "(rule|import|include|[a-z{}()\":/$ =\n]|condition:|strings:){0,40}") {
        for bytes in [bytes, text.into_bytes()] {
            let mut source = source_of("");
            source.text.bytes = bytes;
            let mut rules = facts(&source);
            settle(&mut rules, |_| true);
            let set = SourceSet { sources: vec![source], diagnostics: Vec::new() };
            prop_assert!(compile(&set).is_ok());
        }
    }
}
