//! Indicator lists: digests of known files and patterns of known paths.

use std::{collections::BTreeSet, fs};

use cleanroom_contract::Severity;

use super::folder;
use crate::support::{agent, digest_by, run, scan};

#[test]
fn a_file_whose_digest_is_on_a_list_is_a_critical_finding() {
    let work = tempfile::tempdir().unwrap();
    let files: [(&str, &[u8]); 4] =
        [("a", b"by md5"), ("b", b"by sha1"), ("c", b"by sha256"), ("d", b"by nothing")];
    let evidence = folder(work.path(), "evidence", &files);
    let digest = |program: &str, name: &str| digest_by(program, &evidence.join(name));
    let lists = work.path().join("lists");
    fs::create_dir(&lists).unwrap();
    let plain = format!("# one a line\n{}\n", digest("md5sum", "a").to_uppercase());
    let table = format!("name,sha1\n\"evil, inc\",{}\n", digest("sha1sum", "b"));
    let sums = format!("{}  some/name\n", digest("sha256sum", "c"));
    for (name, text) in [("plain.txt", plain), ("table.csv", table), ("SHA256SUMS", sums)] {
        fs::write(lists.join(name), text).unwrap();
    }
    let args = [evidence.to_str().unwrap(), "--indicators", lists.to_str().unwrap()];
    let scan = scan(work.path(), &args);
    assert_eq!(scan.status, 0, "{}", scan.stderr);
    let expected: BTreeSet<_> = [
        ("/a", "digest:md5:lists/plain.txt"),
        ("/b", "digest:sha1:lists/table.csv"),
        ("/c", "digest:sha256:lists/SHA256SUMS"),
    ]
    .into();
    let place = |finding: &cleanroom_contract::Finding| finding.path.clone().unwrap().path;
    let found: Vec<_> = scan.findings.iter().map(|f| (place(f), f.source.clone())).collect();
    assert_eq!(
        found.iter().map(|(path, source)| (&**path, &**source)).collect::<BTreeSet<_>>(),
        expected
    );
    assert!(scan.findings.iter().all(|finding| finding.severity == Severity::Critical));
    let hit = &scan.file("/a").indicators;
    assert_eq!(hit.len(), 1);
    assert_eq!((&*hit[0].algorithm, &*hit[0].list), ("md5", "lists/plain.txt"));
    // The lists ask for these digests, so every file has them.
    let of_d = scan.file("/d");
    assert_eq!(of_d.md5.as_deref(), Some(&*digest("md5sum", "d")));
    assert_eq!(of_d.sha1.as_deref(), Some(&*digest("sha1sum", "d")));
    assert!(of_d.indicators.is_empty());
    let used: Vec<_> = scan.report.indicators.iter().map(|l| (&*l.path, l.entries)).collect();
    let expected = [("lists/SHA256SUMS", 1), ("lists/plain.txt", 1), ("lists/table.csv", 1)];
    assert_eq!(used, expected);
}

#[test]
fn a_path_matches_by_regex_unless_it_is_a_false_positive() {
    let work = tempfile::tempdir().unwrap();
    let files: [(&str, &[u8]); 4] = [
        ("tmp/.x/miner", b""),
        ("opt/vendor/.x/miner", b""),
        ("tmp/loot", b""),
        ("home/quiet", b""),
    ];
    let evidence = folder(work.path(), "evidence", &files);
    let list = work.path().join("paths.txt");
    let text = "# Miner of the Tuesday group\n/\\.x/miner$;80;^/opt/vendor/\n\n/tmp/l(oo)t;95\n/quiet;10\n";
    fs::write(&list, text).unwrap();
    let args = [evidence.to_str().unwrap(), "--indicators", list.to_str().unwrap()];
    let scan = scan(work.path(), &args);
    let found: Vec<_> = scan
        .findings
        .iter()
        .map(|f| (f.path.as_ref().unwrap().path.as_str(), f.severity, f.source.as_str()))
        .collect();
    let expected = [
        ("/home/quiet", Severity::Info, "path:paths.txt:5"),
        ("/tmp/.x/miner", Severity::High, "path:paths.txt:2"),
        ("/tmp/loot", Severity::Critical, "path:paths.txt:4"),
    ];
    assert_eq!(found, expected);
    assert_eq!(scan.findings[1].title, "Miner of the Tuesday group");
}

#[test]
fn a_line_that_is_no_indicator_is_named() {
    let work = tempfile::tempdir().unwrap();
    let evidence = folder(work.path(), "evidence", &[("file", b"")]);
    let list = work.path().join("list.txt");
    for (text, place) in [
        ("d41d8cd98f00b204e9800998ecf8427e\nd41d8cd98f00b204e9800998ecf8427\n", "list.txt:2: "),
        ("/tmp/x;70\n\n/tmp/(x;70\n", "list.txt:3: "),
        ("/tmp/x;70\n/tmp/x;many\n", "list.txt:2: "),
    ] {
        fs::write(&list, text).unwrap();
        let out = work.path().join("out");
        let mut command = agent(work.path());
        command.arg("scan").arg(&evidence).arg("--indicators").arg(&list).arg("--out").arg(&out);
        let (status, stdout, stderr) = run(&mut command);
        assert_eq!((status, stdout.as_str()), (1, ""), "{text:?}");
        assert!(stderr.starts_with("error: ") && stderr.contains(place), "{text:?}: {stderr}");
        assert!(!stderr.contains("hint"), "there is nothing to seal: {stderr}");
    }
    let mut command = agent(work.path());
    command.arg("scan").arg(&evidence).arg("--out").arg(work.path().join("out"));
    let (status, _, stderr) = run(command.arg("--indicators").arg(work.path().join("none")));
    assert_eq!(status, 1);
    assert!(stderr.contains("none") && stderr.contains("No such file"), "{stderr}");
}
