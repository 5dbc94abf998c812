use std::{cell::Cell, ffi::OsStr, fs, io::Read as _};

use super::{pack::LoadedPack, *};

const RULES: &str = "rule marker { strings: $a = \"marker\" condition: $a }\n";

/// A folder with one rule file, and a place for a cache in another.
fn rules_and_cache() -> (tempfile::TempDir, PathBuf, PathBuf) {
    let folder = tempfile::tempdir().unwrap();
    let rules = folder.path().join("rules");
    fs::create_dir(&rules).unwrap();
    fs::write(rules.join("a.yar"), RULES).unwrap();
    let cache = folder.path().join("cache");
    (folder, rules, cache)
}

fn refuse(_: &SourceSet, _: &File) -> Result<(), RulesError> {
    Err(RulesError::Compiler("called".to_owned()))
}

/// The rules that match, as a worker sees them.
fn matching(prepared: &Prepared, data: &[u8]) -> usize {
    let pack = LoadedPack::load_file(&prepared.pack).unwrap();
    let mut scanner = yara_x::Scanner::new(pack.rules(pack.set_for(data)));
    scanner.scan(data).unwrap().matching_rules().len()
}

#[test]
fn the_second_time_the_pack_comes_from_the_cache() {
    let (_folder, rules, cache) = rules_and_cache();
    let arguments = [RuleArgument::Sources(rules.clone())];
    let first = prepare(&arguments, Some(&cache), &compile_here).unwrap();
    assert!(!first.cached && first.cache_note.is_none(), "{:?}", first.cache_note);
    let second = prepare(&arguments, Some(&cache), &refuse).unwrap();
    assert!(second.cached);
    assert_eq!(second.header, first.header);
    for prepared in [first, second] {
        assert_eq!(matching(&prepared, b"a marker"), 1);
        let mut bytes = Vec::new();
        let mut pack = prepared.pack;
        pack.read_to_end(&mut bytes).unwrap();
        assert_eq!(PackHeader::parse(&bytes).unwrap(), prepared.header);
        assert!(pack.write_all(b"x").is_err() && pack.set_len(0).is_err());
    }
    fs::write(rules.join("a.yar"), RULES.replace("marker\"", "other\"")).unwrap();
    assert!(matches!(prepare(&arguments, Some(&cache), &refuse), Err(RulesError::Compiler(_))));
}

#[test]
fn a_tampered_cache_is_compiled_again_and_replaced() {
    let (_folder, rules, cache) = rules_and_cache();
    let arguments = [RuleArgument::Sources(rules)];
    prepare(&arguments, Some(&cache), &compile_here).unwrap();
    let entries = fs::read_dir(&cache).unwrap().map(|entry| entry.unwrap().path());
    let file =
        entries.into_iter().find(|path| path.extension().is_some_and(|e| e == "pack")).unwrap();
    let mut bytes = fs::read(&file).unwrap();
    *bytes.last_mut().unwrap() ^= 1;
    fs::write(&file, bytes).unwrap();
    let calls = Cell::new(0);
    let counted = |set: &SourceSet, out: &File| {
        calls.set(calls.get() + 1);
        compile_here(set, out)
    };
    assert!(!prepare(&arguments, Some(&cache), &counted).unwrap().cached);
    assert!(prepare(&arguments, Some(&cache), &counted).unwrap().cached);
    assert_eq!(calls.get(), 1);
}

#[test]
fn a_cache_that_cannot_be_used_is_a_note() {
    use std::os::unix::fs::PermissionsExt as _;
    let (_folder, rules, cache) = rules_and_cache();
    fs::create_dir(&cache).unwrap();
    fs::set_permissions(&cache, fs::Permissions::from_mode(0o755)).unwrap();
    let prepared = prepare(&[RuleArgument::Sources(rules)], Some(&cache), &compile_here).unwrap();
    assert!(prepared.cache_note.unwrap().contains("chmod 700"));
    assert_eq!(fs::read_dir(&cache).unwrap().count(), 0);
}

#[test]
fn a_pack_of_other_texts_is_used_but_not_kept() {
    let (_folder, rules, cache) = rules_and_cache();
    let changing = |set: &SourceSet, out: &File| {
        let mut set = set.clone();
        set.sources[0].text.sha256 = source::digest(b"changed meanwhile");
        compile_here(&set, out)
    };
    let arguments = [RuleArgument::Sources(rules)];
    let prepared = prepare(&arguments, Some(&cache), &changing).unwrap();
    assert!(prepared.cache_note.unwrap().contains("changed meanwhile"));
    assert!(!prepare(&arguments, Some(&cache), &compile_here).unwrap().cached);
}

#[test]
fn a_compiled_pack_needs_its_own_digest() {
    let (folder, rules, _) = rules_and_cache();
    let mut bytes = Vec::new();
    compile_to(std::slice::from_ref(&rules), &mut bytes, true, &mut Vec::new()).unwrap();
    let path = folder.path().join("rules.pack");
    fs::write(&path, &bytes).unwrap();
    let named = |digest| RuleArgument::Pack { path: path.clone(), sha256: digest };
    let good = prepare(&[named(source::digest(&bytes))], None, &refuse).unwrap();
    assert_eq!(matching(&good, b"a marker"), 1);
    let error = prepare(&[named(source::digest(b"x"))], None, &refuse).unwrap_err();
    assert!(matches!(error, RulesError::WrongDigest { .. }), "{error}");
    let both = [named(source::digest(&bytes)), RuleArgument::Sources(rules)];
    assert!(matches!(prepare(&both, None, &refuse), Err(RulesError::Arguments(_))));
    let bare = RuleArgument::parse(path.as_os_str()).unwrap();
    assert!(prepare(&[bare], None, &refuse).unwrap_err().to_string().contains("@sha256="));
    let text = folder.path().join("text");
    fs::write(&text, "x").unwrap();
    let argument = format!("{}@sha256={}", text.display(), source::digest(b"x"));
    let argument = RuleArgument::parse(OsStr::new(&argument)).unwrap();
    assert!(matches!(prepare(&[argument], None, &refuse), Err(RulesError::Pack(_))));
}

#[test]
fn rules_of_which_none_compiles_are_an_error() {
    let (_folder, rules, _) = rules_and_cache();
    fs::write(rules.join("a.yar"), "rule a { condition: nothing }").unwrap();
    let error = prepare(&[RuleArgument::Sources(rules)], None, &compile_here).unwrap_err();
    assert!(error.to_string().contains("a.yar:1:21: error: unknown identifier"), "{error}");
}

#[test]
fn a_child_process_can_compile() {
    let (folder, rules, _) = rules_and_cache();
    let pack = folder.path().join("made-before");
    compile_to(
        std::slice::from_ref(&rules),
        &mut File::create(&pack).unwrap(),
        true,
        &mut Vec::new(),
    )
    .unwrap();
    let child = |program: &'static str| {
        let pack = pack.clone();
        move |_: &SourceSet, out: &File| {
            let mut command = Command::new(program);
            command.arg(&pack);
            run_compiler(command, out)
        }
    };
    let arguments = [RuleArgument::Sources(rules)];
    let prepared = prepare(&arguments, None, &child("cat")).unwrap();
    assert_eq!(matching(&prepared, b"a marker"), 1);
    assert!(matches!(prepare(&arguments, None, &child("false")), Err(RulesError::Compiler(_))));
    assert!(matches!(prepare(&arguments, None, &child("true")), Err(RulesError::Pack(_))));
    assert!(matches!(
        prepare(&arguments, None, &child("/no/such/program")),
        Err(RulesError::Io(..))
    ));
}

#[test]
fn check_prints_one_printable_line_a_diagnostic() {
    let (folder, rules, _) = rules_and_cache();
    let odd = rules.join("b\u{1b}.yar");
    fs::write(&odd, "rule b {\n  condition: nothing\n}").unwrap();
    let mut out = Vec::new();
    let outcome = check(&[rules], &mut out).unwrap();
    assert_eq!(outcome, CheckOutcome { files: 2, rules: 1, errors: 1, warnings: 0 });
    let shown = format!(
        "{}/rules/b\\u{{1b}}.yar:2:14: error: unknown identifier `nothing`",
        folder.path().display()
    );
    let text = String::from_utf8(out).unwrap();
    assert!(text.starts_with(&shown), "{text}");
    assert_eq!(text.lines().count(), 1);
}

#[test]
fn strict_compiling_writes_nothing_after_an_error() {
    let (_folder, rules, _) = rules_and_cache();
    fs::write(rules.join("b.yar"), "rule b { condition: nothing }").unwrap();
    let mut pack = Vec::new();
    assert!(compile_to(std::slice::from_ref(&rules), &mut pack, true, &mut Vec::new()).is_err());
    assert!(pack.is_empty());
    let outcome = compile_to(&[rules], &mut pack, false, &mut Vec::new()).unwrap();
    assert_eq!((outcome.rules, outcome.errors), (1, 1));
    assert!(LoadedPack::load(&pack).is_ok());
}
