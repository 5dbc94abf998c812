//! Files of several names: read once where no rule asks for a name, recorded under each.

use std::fs;

use cleanroom_contract::ScanState;

use crate::support::scan;

/// A folder with one file of 100 KB under three names, a rule on its content, and one on a name.
fn evidence() -> tempfile::TempDir {
    let work = tempfile::tempdir().unwrap();
    let tree = work.path().join("tree");
    fs::create_dir(&tree).unwrap();
    fs::write(tree.join("a.bin"), b"LINKED-MARK ".repeat(9000)).unwrap();
    for name in ["b.bin", "c.bin"] {
        fs::hard_link(tree.join("a.bin"), tree.join(name)).unwrap();
    }
    let content = "rule content { strings: $a = \"LINKED-MARK\" condition: $a }\n";
    fs::write(work.path().join("content.yar"), content).unwrap();
    let named = "rule named { condition: filename == \"b.bin\" }\n";
    fs::write(work.path().join("named.yar"), named).unwrap();
    work
}

#[test]
fn every_name_of_a_file_has_what_was_found_in_it() {
    let work = evidence();
    let rules = work.path().join("content.yar");
    let tree = work.path().join("tree");
    let scan = scan(work.path(), &[tree.as_os_str(), "--rules".as_ref(), rules.as_os_str()]);
    let first = scan.file("/a.bin");
    assert_eq!((first.scan, first.links), (ScanState::Matched, 3));
    assert!(first.sha256.is_some());
    for path in ["/b.bin", "/c.bin"] {
        let other = scan.file(path);
        assert_eq!(
            (other.scan, other.sha256, other.entropy, &other.matches, &other.format),
            (first.scan, first.sha256, first.entropy, &first.matches, &first.format),
        );
        assert_ne!(other.seq, first.seq);
    }
    let mut found: Vec<_> = scan.findings.iter().filter_map(|f| f.path.as_ref()).collect();
    found.sort_by(|a, b| a.path.cmp(&b.path));
    let found: Vec<_> = found.iter().map(|path| path.path.as_str()).collect();
    assert_eq!(found, ["/a.bin", "/b.bin", "/c.bin"]);
    assert_eq!(scan.report.coverage.files_examined, 3);
}

#[test]
fn a_rule_on_a_name_is_judged_for_every_name() {
    let work = evidence();
    let rules = work.path().join("named.yar");
    let tree = work.path().join("tree");
    let scan = scan(work.path(), &[tree.as_os_str(), "--rules".as_ref(), rules.as_os_str()]);
    let matched: Vec<_> = scan
        .files
        .iter()
        .filter(|file| file.scan == ScanState::Matched)
        .map(|file| file.path.path.as_str())
        .collect();
    assert_eq!(matched, ["/b.bin"]);
}
