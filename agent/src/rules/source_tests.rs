use std::{fs, os::unix::fs::symlink};

use super::*;

const RULE: &str = "rule a { condition: true }";

fn folder(files: &[(&str, &str)]) -> tempfile::TempDir {
    let folder = tempfile::tempdir().unwrap();
    for (name, text) in files {
        let path = folder.path().join(name);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, text).unwrap();
    }
    folder
}

fn read_one(path: &Path) -> Result<SourceSet, SourceError> {
    read(&[path.to_owned()])
}

fn namespaces(set: &SourceSet) -> Vec<&str> {
    set.sources.iter().map(|source| source.namespace.as_str()).collect()
}

fn messages(set: &SourceSet) -> Vec<(u64, u64, bool, &str)> {
    set.diagnostics.iter().map(|d| (d.line, d.column, d.error, d.message.as_str())).collect()
}

#[test]
fn an_argument_is_a_path_or_a_pack_with_its_digest() {
    let digest = "ab".repeat(32);
    let parse = |text: &str| RuleArgument::parse(OsStr::new(text));
    assert_eq!(parse("rules/x.yar").unwrap(), RuleArgument::Sources("rules/x.yar".into()));
    let pack = RuleArgument::Pack { path: "a@sha256=b".into(), sha256: digest.parse().unwrap() };
    assert_eq!(parse(&format!("a@sha256=b@sha256={digest}")).unwrap(), pack);
    for bad in
        ["x@sha256=", "x@sha256=abc", &format!("@sha256={digest}"), &format!("x@sha256={digest}0")]
    {
        assert!(parse(bad).unwrap_err().to_string().contains("PATH@sha256="), "{bad}");
    }
}

#[test]
fn a_folder_gives_its_rule_files_sorted_and_named_by_their_place() {
    let folder = folder(&[
        ("z.yar", RULE),
        ("sub/b.YARA", RULE),
        ("a.rule", RULE),
        ("README.md", "no rules"),
        ("greeting.inc", RULE),
    ]);
    let set = read_one(folder.path()).unwrap();
    assert_eq!(namespaces(&set), ["a.rule", "sub/b.YARA", "z.yar"]);
    assert!(set.diagnostics.is_empty());
}

#[test]
fn equal_names_become_different_namespaces() {
    let first = folder(&[("x.yar", RULE), ("x.yar#2.yar", RULE)]);
    let second = folder(&[("x.yar", RULE)]);
    let paths = [first.path().to_owned(), second.path().to_owned()];
    assert_eq!(namespaces(&read(&paths).unwrap()), ["x.yar", "x.yar#2.yar", "x.yar#2"]);
}

#[test]
fn a_file_given_twice_is_used_once() {
    let folder = folder(&[("x.yar", RULE)]);
    let set = read(&[folder.path().join("x.yar"), folder.path().to_owned()]).unwrap();
    assert_eq!(namespaces(&set), ["x.yar"]);
    assert_eq!(messages(&set), [(1, 1, false, "given twice; used once")]);
}

#[test]
fn links_in_a_folder_are_not_followed_and_pipes_not_read() {
    let folder = folder(&[("x.yar", RULE)]);
    symlink("/etc/passwd", folder.path().join("link.yar")).unwrap();
    let pipe = folder.path().join("pipe.yar");
    rustix::fs::mknodat(
        rustix::fs::CWD,
        &pipe,
        rustix::fs::FileType::Fifo,
        Mode::RUSR | Mode::WUSR,
        0,
    )
    .unwrap();
    let set = read_one(folder.path()).unwrap();
    assert_eq!(namespaces(&set), ["x.yar"]);
    let told: Vec<bool> = set.diagnostics.iter().map(|d| d.error).collect();
    assert_eq!(told, [false, true], "{:?}", set.diagnostics);
    assert!(read_one(&pipe).unwrap_err().to_string().contains("not a regular file"));
}

#[test]
fn a_folder_without_rules_and_a_missing_path_say_what_to_do() {
    let folder = folder(&[("README", "")]);
    assert!(read_one(folder.path()).unwrap_err().to_string().contains(".yar"));
    let missing = folder.path().join("missing");
    let error = read_one(&missing).unwrap_err();
    assert!(error.to_string().contains("missing"), "{error}");
}

#[test]
fn compiled_files_are_refused_without_a_digest() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("x.yar");
    for bytes in [&b"CLNRPACK\x01\0\0\0"[..], b"YARA-X\0\0\x08\0\0\0", b"YARA\0\0\0\x30"] {
        fs::write(&path, bytes).unwrap();
        let error = read_one(&path).unwrap_err().to_string();
        assert!(error.contains("PATH@sha256="), "{error}");
    }
}

#[test]
fn a_file_larger_than_the_limit_is_refused() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("x.yar");
    fs::write(&path, "12345").unwrap();
    assert_eq!(read_regular(&path, 5).unwrap(), b"12345");
    assert!(read_regular(&path, 4).unwrap_err().to_string().contains("larger than 4 bytes"));
    let sparse = folder.path().join("big.yar");
    File::create(&sparse).unwrap().set_len(MAX_FILE + 1).unwrap();
    fs::write(&path, RULE).unwrap();
    let set = read_one(folder.path()).unwrap();
    assert_eq!(namespaces(&set), ["x.yar"]);
    assert_eq!(messages(&set), [(1, 1, true, "larger than 67108864 bytes; split it")]);
}

#[test]
fn includes_are_read_from_the_including_files_folder() {
    let folder = folder(&[
        ("index.yar", "include \"sub/one.inc\"\ninclude \"./two.inc\""),
        ("sub/one.inc", "include \"../two.inc\""),
        ("two.inc", RULE),
    ]);
    let set = read_one(&folder.path().join("index.yar")).unwrap();
    assert!(set.diagnostics.is_empty(), "{:?}", set.diagnostics);
    let all = set.sources[0].text.all();
    let names: Vec<_> = all.iter().map(|text| Path::new(&text.path).file_name().unwrap()).collect();
    assert_eq!(names, ["index.yar", "one.inc", "two.inc", "two.inc"]);
    assert_eq!(all[0].includes[1].span, 22..41);
}

#[test]
fn an_include_that_cannot_be_used_is_placed() {
    let folder = folder(&[(
        "a.yar",
        "rule a { condition: true }\n\n  include \"a.yar\"\ninclude \"/etc/passwd\"\ninclude \"none\"\ninclude \".\"",
    )]);
    let set = read_one(&folder.path().join("a.yar")).unwrap();
    let places: Vec<_> = set.diagnostics.iter().map(|d| (d.line, d.column, d.error)).collect();
    assert_eq!(places, [(3, 3, true), (4, 1, true), (5, 1, true), (6, 1, true)]);
    assert!(set.diagnostics[0].message.contains("includes itself"));
    assert!(set.diagnostics[1].message.contains("absolute"));
    assert!(set.sources[0].text.includes.iter().all(|include| include.text.is_none()));
}

#[test]
fn a_byte_order_mark_is_not_part_of_the_rules() {
    let folder = folder(&[("a.yar", "\u{feff}rule a { condition: true }")]);
    let set = read_one(folder.path()).unwrap();
    assert_eq!(set.sources[0].text.bytes, b"   rule a { condition: true }");
    assert_eq!(set.sources[0].text.sha256, digest("\u{feff}rule a { condition: true }".as_bytes()));
}
