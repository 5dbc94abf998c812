//! Rules and indicators: what is given is used, what cannot be used is said, and what matched is told in
//! full.

mod indicators;

use std::{
    collections::{BTreeMap, BTreeSet},
    fs,
    os::unix::fs::{MetadataExt as _, PermissionsExt as _},
    path::{Path, PathBuf},
};

use base64::{Engine as _, prelude::BASE64_STANDARD};
use cleanroom_contract::{Finding, GapKind, ScanState, Severity};
use cleanroom_harness::{elf::Elf, tools::fixtures};
use serde_json::json;

use crate::support::{Scan, agent, run, scan};

const MARKER: &str = "rule marker { strings: $m = \"fixture-marker\" condition: $m }";

/// Writes files below a new folder of `work`.
fn folder(work: &Path, name: &str, files: &[(&str, &[u8])]) -> PathBuf {
    let folder = work.join(name);
    for (path, content) in files {
        let path = folder.join(path);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, content).unwrap();
    }
    folder
}

/// Path, namespace and name of everything that matched.
fn matches(scan: &Scan) -> BTreeSet<(String, String, String)> {
    let of = |file: &cleanroom_contract::FileRecord| {
        let path = file.path.path.clone();
        let rules = file.matches.clone().into_iter();
        rules.map(|rule| (path.clone(), rule.namespace, rule.rule)).collect::<Vec<_>>()
    };
    scan.files.iter().flat_map(of).collect()
}

fn triple(path: &str, namespace: &str, rule: &str) -> (String, String, String) {
    (path.to_owned(), namespace.to_owned(), rule.to_owned())
}

/// Scans a folder that holds one file with the marker; all paths as text.
fn scan_marked(work: &Path, more: &[&str]) -> Scan {
    let evidence = folder(work, "evidence", &[("file", b"a fixture-marker")]);
    scan(work, &[&[evidence.to_str().unwrap()], more].concat())
}

#[test]
fn every_file_has_a_namespace_of_its_own() {
    let work = tempfile::tempdir().unwrap();
    let rule = MARKER.as_bytes();
    let pack = folder(
        work.path(),
        "pack",
        &[("a/x.yar", rule), ("b/x.yara", rule), ("c.txt", b"no rule")],
    );
    let more = folder(work.path(), "more", &[("x.yar", rule)]);
    let (single, twin) = (work.path().join("single.yar"), more.join("x.yar"));
    fs::write(&single, rule).unwrap();
    let other = folder(work.path(), "other", &[("x.yar", rule)]);
    let args = [&pack, &single, &twin, &other].map(|path| path.to_str().unwrap());
    let args = args.iter().flat_map(|path| ["--rules", *path]).collect::<Vec<_>>();
    let scan = scan_marked(work.path(), &args);
    assert_eq!(scan.status, 0, "{}", scan.stderr);
    let expected = ["a/x.yar", "b/x.yara", "single.yar", "x.yar", "x.yar#2"];
    let expected: BTreeSet<_> =
        expected.iter().map(|name| triple("/file", name, "marker")).collect();
    assert_eq!(matches(&scan), expected);
    let sources: BTreeSet<_> = scan.findings.iter().map(|finding| &*finding.source).collect();
    assert!(sources.contains("rule:a/x.yar:marker"), "{sources:?}");
    let used: Vec<_> = scan.report.rules.iter().map(|file| (&*file.path, file.entries)).collect();
    assert_eq!(used.len(), 5, "{used:?}");
    assert!(used.iter().all(|(_, entries)| *entries == 1));
    let digest = crate::support::sha256sum(&single);
    assert!(scan.report.rules.iter().any(|file| file.sha256.to_string() == digest));
}

/// Compiles a rule file into `work/rules.pack`; what was printed: the argument that names the pack.
fn compile(work: &Path, rules: &Path) -> String {
    let pack = work.join("rules.pack");
    let mut command = agent(&work.join("cache"));
    let (status, stdout, stderr) =
        run(command.args(["rules", "compile"]).arg(rules).arg("--out").arg(&pack));
    assert_eq!(status, 0, "{stderr}");
    let digest = crate::support::sha256sum(&pack);
    assert_eq!(stdout, format!("{}@sha256={digest}\n", pack.display()));
    stdout.trim_end().to_owned()
}

#[test]
fn a_compiled_pack_is_used_by_its_digest_only() {
    let work = tempfile::tempdir().unwrap();
    let rules = folder(work.path(), "rules", &[("one.yar", MARKER.as_bytes())]);
    let pack = compile(work.path(), &rules);
    let from_sources = scan_marked(work.path(), &["--rules", rules.to_str().unwrap()]);
    let from_pack = scan_marked(work.path(), &["--rules", &pack]);
    assert_eq!(from_pack.status, 0, "{}", from_pack.stderr);
    assert_eq!(matches(&from_pack), matches(&from_sources));
    assert_eq!(matches(&from_pack).len(), 1);
    assert_eq!(from_pack.report.rules, from_sources.report.rules);

    let (path, digest) = pack.split_once("@sha256=").unwrap();
    let zeros = format!("{path}@sha256={}", "0".repeat(64));
    for (argument, word) in [
        (path.to_owned(), "holds native code"),
        (zeros, digest),
        (format!("{path}@sha256=abc"), "64 hexadecimal digits"),
        (format!("{path}@sha256="), "64 hexadecimal digits"),
    ] {
        assert_refused(work.path(), &["--rules", &argument], word);
    }
    let sources = rules.to_str().unwrap();
    assert_refused(work.path(), &["--rules", &pack, "--rules", sources], "stands alone");
    // One changed bit is another pack.
    let mut bytes = fs::read(path).unwrap();
    *bytes.last_mut().unwrap() ^= 1;
    fs::write(path, bytes).unwrap();
    assert_refused(work.path(), &["--rules", &pack], "its SHA-256 is");
}

/// A scan with these arguments fails with this word and leaves no bundle.
fn assert_refused(work: &Path, args: &[&str], word: &str) {
    let evidence = folder(work, "evidence", &[("file", b"a fixture-marker")]);
    let out = work.join("refused");
    let mut command = agent(&work.join("cache"));
    command.arg("scan").arg(evidence).arg("--out").arg(&out).args(args);
    let (status, stdout, stderr) = run(&mut command);
    assert_eq!((status, stdout.as_str()), (1, ""), "{args:?}");
    assert!(stderr.contains("error: ") && stderr.contains(word), "{args:?}: {stderr}");
    assert!(!out.join("SHA256SUMS").exists());
}

#[test]
fn rules_know_name_folder_extension_type_and_owner_of_a_file() {
    let work = tempfile::tempdir().unwrap();
    let evidence = folder(
        work.path(),
        "evidence",
        &[("srv/data/archive.tar.Gz", b"text"), ("srv/.hidden", b""), ("top", b"")],
    );
    fs::write(evidence.join("srv/tool"), Elf::default().build()).unwrap();
    // Whoever owns the evidence here has this name there, whatever this machine calls them.
    let uid = fs::metadata(&evidence).unwrap().uid();
    let passwd = format!("other:x:4242:0::/:/bin/sh\nits-owner:x:{uid}:0::/:/bin/sh\n");
    fs::create_dir(evidence.join("etc")).unwrap();
    fs::write(evidence.join("etc/passwd"), passwd).unwrap();
    let rules = work.path().join("variables.yar");
    let conditions = [
        ("by_name", r#"filename == "archive.tar.Gz""#),
        ("by_folder", r#"filepath == "/srv/data""#),
        ("at_the_top", r#"filepath == "/""#),
        ("by_extension", r#"extension == ".Gz""#),
        ("without_extension", r#"extension == """#),
        ("by_type", r#"filetype == "ELF""#),
        ("by_owner", r#"owner == "its-owner" and filename == "top""#),
        ("by_local_owner", r#"owner == "root""#),
    ];
    let text: String = conditions
        .iter()
        .map(|(name, condition)| format!("rule {name} {{ condition: {condition} }}\n"))
        .collect();
    fs::write(&rules, text).unwrap();
    let args = [evidence.to_str().unwrap(), "--rules", rules.to_str().unwrap()];
    let scan = scan(work.path(), &args);
    assert_eq!(scan.status, 0, "{}", scan.stderr);
    let mut found: BTreeMap<String, Vec<String>> = BTreeMap::new();
    for (path, _, rule) in matches(&scan) {
        found.entry(rule).or_default().push(path);
    }
    let expected: BTreeMap<String, Vec<String>> = [
        ("by_name", &["/srv/data/archive.tar.Gz"][..]),
        ("by_folder", &["/srv/data/archive.tar.Gz"]),
        ("at_the_top", &["/top"]),
        ("by_extension", &["/srv/data/archive.tar.Gz"]),
        ("without_extension", &["/etc/passwd", "/srv/.hidden", "/srv/tool", "/top"]),
        ("by_type", &["/srv/tool"]),
        ("by_owner", &["/top"]),
    ]
    .into_iter()
    .map(|(rule, paths)| (rule.to_owned(), paths.iter().map(|p| (*p).to_owned()).collect()))
    .collect();
    assert_eq!(found, expected);
}

#[test]
fn a_broken_rule_is_named_by_its_place_and_costs_itself_only() {
    let work = tempfile::tempdir().unwrap();
    let broken = fixtures().join("rules/broken-unknown-identifier.yar");
    let broken = broken.to_str().unwrap();
    let scan = scan_marked(work.path(), &["--rules", broken]);
    assert_eq!(scan.status, 3);
    let place = format!("{broken}:4:33: error: ");
    let line = scan.stderr.lines().find(|line| line.starts_with(&place));
    assert!(line.is_some_and(|line| line.contains("no_such_thing")), "{}", scan.stderr);
    let errors: Vec<_> = scan.report.rule_diagnostics.iter().filter(|d| d.error).collect();
    assert_eq!(errors.len(), 1, "{errors:?}");
    assert_eq!((&*errors[0].path, errors[0].line, errors[0].column), (broken, 4, 33));
    assert!(errors[0].message.contains("no_such_thing"));
    assert_eq!(scan.gaps.len(), 1, "{:?}", scan.gaps);
    assert_eq!((scan.gaps[0].kind, &scan.gaps[0].volume), (GapKind::Rules, &None));
    assert!(scan.gaps[0].reason.contains(":4:33"), "{}", scan.gaps[0].reason);
    let name = "broken-unknown-identifier.yar";
    assert_eq!(matches(&scan), [triple("/file", name, "still_sound")].into());

    assert_refused(work.path(), &["--rules", broken, "--strict"], "1 errors in the rules");
    // Nothing but broken rules is no rule set at all.
    let hopeless = work.path().join("hopeless.yar");
    fs::write(&hopeless, "rule x { condition: nothing }").unwrap();
    let hopeless = hopeless.to_str().unwrap();
    assert_refused(work.path(), &["--rules", hopeless], "hopeless.yar:1:21");
}

#[test]
fn rules_are_checked_and_compiled_apart() {
    let work = tempfile::tempdir().unwrap();
    let broken = fixtures().join("rules/broken-unknown-identifier.yar");
    let sound = work.path().join("sound.yar");
    fs::write(&sound, MARKER).unwrap();
    let command = |words: &[&str], path: &Path| {
        run(agent(&work.path().join("cache")).arg("rules").args(words).arg(path))
    };
    let (status, stdout, stderr) = command(&["check"], &broken);
    assert_eq!(status, 1);
    assert!(stdout.contains(":4:33: error: "), "{stdout}");
    assert!(stderr.contains("1 files, 1 rules, 1 errors"), "{stderr}");
    let (status, stdout, _) = command(&["check"], &sound);
    assert_eq!((status, stdout.as_str()), (0, ""));

    let pack = work.path().join("strict.pack");
    let to = ["compile", "--strict", "--out", pack.to_str().unwrap()];
    let (status, stdout, stderr) = command(&to, &broken);
    assert_eq!((status, stdout.as_str()), (1, ""));
    assert!(stderr.contains(":4:33: error: ") && stderr.contains("no pack is written"), "{stderr}");
    assert!(!pack.exists());
    assert_eq!(command(&to, &sound).0, 0);
    assert!(pack.exists());
}

#[test]
fn a_match_is_told_in_full() {
    let work = tempfile::tempdir().unwrap();
    let content = format!("..{}", "needle--".repeat(40));
    let evidence = folder(work.path(), "evidence", &[("hay", content.as_bytes())]);
    let rules = work.path().join("rules.yar");
    let text = r#"
        rule Needles : tag_one tag_two {
            meta:
                author = "A. Nalyst"
                description = "needles in hay"
                reference = "https://example.org/needles"
                score = 65
                exact = true
                mitre = "T1059.004"
            strings:
                $needle = "needle"
                $long = /needle--(needle--)+/
                $absent = "pin"
            condition:
                #needle > 3 and $long and not $absent
        }"#;
    fs::write(&rules, text).unwrap();
    let args = [evidence.to_str().unwrap(), "--rules", rules.to_str().unwrap()];
    let scan = scan(work.path(), &args);
    assert_eq!(scan.file("/hay").scan, ScanState::Matched);
    let [matched] = &scan.file("/hay").matches[..] else { panic!("one rule matches") };
    assert_eq!((&*matched.rule, &*matched.namespace), ("Needles", "rules.yar"));
    assert_eq!(matched.tags, ["tag_one", "tag_two"]);
    let metadata = json!({
        "author": "A. Nalyst", "description": "needles in hay", "score": 65, "exact": true,
        "reference": "https://example.org/needles", "mitre": "T1059.004",
    });
    assert_eq!(serde_json::to_value(&matched.metadata).unwrap(), metadata);
    let patterns: Vec<_> = matched.patterns.iter().map(|p| (&*p.pattern, p.count)).collect();
    assert_eq!(patterns[0], ("$needle", 40));
    assert_eq!(patterns.len(), 2, "{patterns:?}");
    let expected: Vec<u64> = (0..32).map(|n| 2 + 8 * n).collect();
    assert_eq!(matched.patterns[0].offsets, expected);
    let first = |number: usize| BASE64_STANDARD.decode(&matched.patterns[number].bytes[0]).unwrap();
    assert_eq!(first(0), b"needle");
    assert_eq!(first(1), content.as_bytes()[2..66]);

    let [finding] = &scan.findings[..] else { panic!("{:?}", scan.findings) };
    assert_eq!(finding.severity, Severity::Medium);
    assert_eq!((&*finding.title, &*finding.reason), ("Needles", "needles in hay"));
    assert_eq!(finding.author.as_deref(), Some("A. Nalyst"));
    assert_eq!(finding.technique.as_deref(), Some("T1059.004"));
    assert_eq!(finding.source, "rule:rules.yar:Needles");
    assert_eq!(finding.sha256, scan.file("/hay").sha256);
    let evidence = finding.evidence.as_deref().unwrap();
    assert!(evidence.starts_with("$needle at 0x2, 40 times: needle"), "{evidence}");
}

#[test]
fn severity_follows_the_score() {
    let work = tempfile::tempdir().unwrap();
    let scores = [("info", 10), ("low", 40), ("medium", 60), ("high", 75), ("critical", 90)];
    let text: String = scores
        .iter()
        .map(|(name, score)| format!("rule {name} {{ meta: score = {score} condition: true }}\n"))
        .collect();
    let rules = work.path().join("scores.yar");
    fs::write(&rules, format!("{text} rule unrated {{ condition: true }}")).unwrap();
    let scan = scan_marked(work.path(), &["--rules", rules.to_str().unwrap()]);
    let severity = |finding: &Finding| finding.severity.as_str().to_owned();
    let found: BTreeMap<_, _> =
        scan.findings.iter().map(|finding| (finding.title.clone(), severity(finding))).collect();
    let mut expected: BTreeMap<_, _> =
        scores.iter().map(|(name, _)| ((*name).to_owned(), (*name).to_owned())).collect();
    expected.insert("unrated".to_owned(), "high".to_owned());
    assert_eq!(found, expected);
    assert_eq!(scan.report.worst[0].title, "critical");
}

/// The packs in the cache: file name, inode, content.
fn cached(work: &Path) -> Vec<(String, u64, Vec<u8>)> {
    let folder = fs::read_dir(work.join("cache/cleanroom-agent")).unwrap();
    let packs = folder.map(|entry| entry.unwrap().path());
    let mut packs: Vec<_> = packs
        .filter(|path| path.extension().is_some_and(|extension| extension == "pack"))
        .map(|path| {
            let name = path.file_name().unwrap().to_str().unwrap().to_owned();
            (name, fs::metadata(&path).unwrap().ino(), fs::read(&path).unwrap())
        })
        .collect();
    packs.sort();
    packs
}

#[test]
fn unchanged_rules_are_compiled_once() {
    let work = tempfile::tempdir().unwrap();
    let rules = work.path().join("rules.yar");
    fs::write(&rules, MARKER).unwrap();
    let args = ["--rules", rules.to_str().unwrap()];
    let first = scan_marked(work.path(), &args);
    let packs = cached(work.path());
    assert_eq!(packs.len(), 1);
    // The same text written again is the same rule.
    fs::write(&rules, MARKER).unwrap();
    let second = scan_marked(work.path(), &args);
    assert!(cached(work.path()) == packs, "compiled again: a pack is always a new file");
    assert_eq!(matches(&second), matches(&first));
    assert_eq!(matches(&second).len(), 1);
    // Another text is another pack.
    fs::write(&rules, MARKER.replace("rule marker", "rule other")).unwrap();
    let third = scan_marked(work.path(), &args);
    assert_eq!(cached(work.path()).len(), 2);
    assert_eq!(matches(&third), [triple("/file", "rules.yar", "other")].into());
}

#[test]
fn a_tampered_cache_is_not_used() {
    let work = tempfile::tempdir().unwrap();
    let rules = work.path().join("rules.yar");
    let args = ["--rules", rules.to_str().unwrap()];
    let cache = work.path().join("cache/cleanroom-agent");
    fs::write(&rules, MARKER.replace("rule marker", "rule decoy")).unwrap();
    scan_marked(work.path(), &args);
    let decoy = cached(work.path()).remove(0);
    fs::write(&rules, MARKER).unwrap();
    scan_marked(work.path(), &args);
    let (name, _, good) =
        cached(work.path()).into_iter().find(|(name, ..)| *name != decoy.0).unwrap();
    let mut flipped = good.clone();
    *flipped.last_mut().unwrap() ^= 1;
    let spoilt = [
        ("a bit is flipped", flipped),
        ("another pack of the same cache", decoy.2),
        ("cut off", good[..good.len() / 2].to_vec()),
        ("empty", Vec::new()),
    ];
    for (what, bytes) in spoilt {
        fs::write(cache.join(&name), bytes).unwrap();
        let scan = scan_marked(work.path(), &args);
        assert_eq!(scan.status, 0, "{what}: {}", scan.stderr);
        assert_eq!(matches(&scan), [triple("/file", "rules.yar", "marker")].into(), "{what}");
        let now = fs::read(cache.join(&name)).unwrap();
        assert!(now == good, "{what}: the pack is not made anew");
    }
    // Where others may write, nothing is taken and nothing is left.
    fs::set_permissions(&cache, fs::Permissions::from_mode(0o777)).unwrap();
    let before = cached(work.path());
    let scan = scan_marked(work.path(), &args);
    assert!(scan.stderr.contains("chmod 700"), "{}", scan.stderr);
    assert_eq!(matches(&scan).len(), 1);
    assert!(cached(work.path()) == before);
}

#[test]
fn every_rule_judges_the_files_it_can_match() {
    let work = tempfile::tempdir().unwrap();
    let evidence = folder(
        work.path(),
        "evidence",
        &[
            ("bare-mz", b"MZ\x90\0"),
            ("elf", b"\x7fELF\x02\x01\x01\0 fixture-marker"),
            ("mz", b"MZ\x90\0 fixture-marker"),
            ("script", b"#!/bin/sh\nfixture-marker\n"),
            ("text", b"fixture-marker\n"),
        ],
    );
    let rules = fixtures().join("rules");
    let args = [evidence.to_str().unwrap(), "--rules", rules.to_str().unwrap()];
    let scan = scan(work.path(), &args);
    let found = matches(&scan);
    let all = "bare-mz elf mz script text";
    for (namespace, rule, files) in [
        ("header-mz.yar", "mz_with_marker", "mz"),
        ("header-mz.yar", "mz_big_endian_reversed", "mz"),
        ("header-elf.yar", "elf_with_marker", "elf"),
        ("header-elf.yar", "elf_first_byte_only", "elf"),
        ("header-either.yar", "program_of_any_kind", "elf mz"),
        ("header-either.yar", "program_or_marker", all),
        ("header-negated.yar", "marker_outside_programs", "elf script text"),
        ("header-negated.yar", "at_least_two_bytes", all),
        ("header-pattern-at-zero.yar", "hex_at_zero", "bare-mz mz"),
        ("header-pattern-at-zero.yar", "text_at_zero", "script"),
        ("header-pattern-at-zero.yar", "caseless_at_zero", "bare-mz mz"),
        ("rule-reference.yar", "elf_by_reference", "elf"),
        ("rule-reference.yar", "not_elf_by_reference", "mz script text"),
        ("rule-reference.yar", "is_elf", ""),
        ("rule-set.yar", "none_of_the_starts", "script text"),
        ("global-rule.yar", "marker_in_program", "elf mz"),
        ("duplicate-name.yar", "twice", "elf mz script text"),
        ("missing-module.yar", "needs_nothing", "elf mz script text"),
        ("missing-module.yar", "needs_the_module", ""),
    ] {
        let of_rule = found.iter().filter(|(_, n, r)| n == namespace && r == rule);
        let paths: Vec<_> = of_rule.map(|(path, ..)| path.trim_start_matches('/')).collect();
        assert_eq!(paths.join(" "), files, "{namespace}:{rule}");
    }
}
