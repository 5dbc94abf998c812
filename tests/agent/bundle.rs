//! The bundle: what is in it, that it is the same every time, and that tampering shows.

mod disk;

use std::{collections::BTreeSet, fs, os::unix::fs::symlink, path::Path, process::Command};

use cleanroom_contract::{EvidencePath, GapKind};
use cleanroom_harness::{
    images::{Ext, Image, MIB},
    tools::fixtures,
    tree::planted_compromise,
};
use serde_json::Value;

use crate::support::{Scan, agent, is_root_for, run, scan};

/// The files of a bundle.
const FILES: [&str; 7] = [
    "SHA256SUMS",
    "files.jsonl.zst",
    "findings.jsonl",
    "gaps.jsonl",
    "report.html",
    "report.json",
    "timeline.body",
];

fn names(folder: &Path) -> BTreeSet<String> {
    let entries = fs::read_dir(folder).unwrap();
    entries.map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect()
}

/// A bundle of a small folder, below `work`.
fn small(work: &Path, more: &[&str]) -> Scan {
    let evidence = work.join("evidence");
    fs::create_dir_all(&evidence).unwrap();
    fs::write(evidence.join("file"), "content").unwrap();
    scan(work, &[&[evidence.to_str().unwrap()], more].concat())
}

/// `verify`: exit status, and its JSON lines.
fn verify(bundle: &Path, more: &[&str]) -> (i32, Vec<Value>) {
    let (status, stdout, _) = run(agent(bundle).arg("verify").arg(bundle).args(more));
    (status, stdout.lines().map(|line| serde_json::from_str(line).unwrap()).collect())
}

/// Names and states of the files that are not as sealed.
fn differing(lines: &[Value]) -> Vec<(String, String)> {
    let word = |line: &Value, key: &str| line[key].as_str().unwrap_or_default().to_owned();
    let files = lines.iter().filter(|line| line["type"] == "verified_file");
    files
        .map(|line| (word(line, "name"), word(line, "state")))
        .filter(|(_, state)| state != "ok")
        .collect()
}

#[test]
fn a_bundle_holds_its_files_and_nothing_else() {
    let work = tempfile::tempdir().unwrap();
    let scan = small(work.path(), &[]);
    assert_eq!(scan.status, 0, "{}", scan.stderr);
    assert_eq!(names(&scan.bundle), FILES.map(String::from).into());
    let sums = fs::read_to_string(scan.bundle.join("SHA256SUMS")).unwrap();
    let listed: BTreeSet<_> = sums.lines().map(|line| line[66..].to_owned()).collect();
    assert_eq!(listed, FILES[1..].iter().map(|name| (*name).to_owned()).collect());
    for file in &scan.report.files {
        let path = scan.bundle.join(&file.name);
        assert_eq!(fs::metadata(&path).unwrap().len(), file.size, "{}", file.name);
        assert!(sums.contains(&format!("{}  {}", file.sha256, file.name)), "{}", file.name);
    }
    assert_eq!(scan.report.files.len(), 4);
    assert_eq!(verify(&scan.bundle, &[]).0, 0);
}

/// Where records lie in the bundle's order: the volumes in `order`, each by raw path bytes, and what
/// concerns a volume as a whole behind its entries.
fn places<'a>(
    order: &[&str],
    records: impl Iterator<Item = (&'a str, Option<&'a EvidencePath>)>,
) -> Vec<(usize, bool, Vec<u8>)> {
    let place = |(volume, path): (&str, Option<&EvidencePath>)| {
        let at = order.iter().position(|name| *name == volume).unwrap();
        (at, path.is_none(), path.map(EvidencePath::to_bytes).unwrap_or_default())
    };
    records.map(place).collect()
}

#[test]
fn records_are_sorted_by_volume_and_raw_path_bytes() {
    use std::os::unix::ffi::OsStrExt as _;
    let work = tempfile::tempdir().unwrap();
    let folders = ["zulu", "alpha"].map(|name| work.path().join(name));
    for folder in &folders {
        for path in ["a/b/c", "a/b.d", "a-b", "a.b", "a0", "B", "ab/x", "ä/y", "z"] {
            let path = folder.join(path);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(path, "marker").unwrap();
        }
        let odd = std::ffi::OsStr::from_bytes(b"a\xff");
        fs::write(folder.join(odd), "marker").unwrap();
    }
    let rules = work.path().join("rules.yar");
    fs::write(&rules, "rule marker { strings: $m = \"marker\" condition: $m }").unwrap();
    let [zulu, alpha] = folders.each_ref().map(|folder| folder.to_str().unwrap());
    let rules = rules.to_str().unwrap();
    let more = ["--threads", "3", "--max-file-size", "5", "--exclude", "*/z"];
    let scan_limited = scan(work.path(), &[&[zulu, alpha, "--rules", rules], &more[..]].concat());
    let scan_whole = scan(work.path(), &[zulu, alpha, "--rules", rules, "--threads", "3"]);

    let order = ["zulu", "alpha"];
    let files = scan_whole.files.iter().map(|file| (file.volume.as_str(), Some(&file.path)));
    let files = places(&order, files);
    assert_eq!(files.len(), 2 * 15);
    assert!(files.windows(2).all(|pair| pair[0] < pair[1]), "{files:?}");
    let findings = scan_whole.findings.iter().map(|f| (f.volume.as_str(), f.path.as_ref()));
    let findings = places(&order, findings);
    assert_eq!(findings.len(), 2 * 10);
    assert!(findings.is_sorted(), "{findings:?}");
    let gaps = scan_limited.gaps.iter();
    let gaps = places(&order, gaps.map(|gap| (gap.volume.as_deref().unwrap(), gap.path.as_ref())));
    // Nine are too large in each, and one more gap counts what was excluded.
    assert_eq!(gaps.len(), 2 * 10);
    assert!(gaps.is_sorted(), "{gaps:?}");
}

#[test]
fn two_runs_differ_in_times_and_ids_only() {
    let work = tempfile::tempdir().unwrap();
    let tree = work.path().join("tree");
    fs::create_dir(&tree).unwrap();
    planted_compromise(&tree).unwrap();
    let mut args = vec![tree.to_str().unwrap().to_owned()];
    if is_root_for("that two runs on an image are alike") {
        let image = Image::new(work.path(), "disk.img", 32 * MIB).ext(Ext::Ext4, &tree).unwrap();
        args.push(image.to_str().unwrap().to_owned());
    }
    let rules = fixtures().join("rules");
    args.extend(["--rules", rules.to_str().unwrap()].map(String::from));
    let lists = fixtures().join("indicators");
    args.extend(["--indicators", lists.to_str().unwrap()].map(String::from));
    args.extend(["--digest", "md5,sha1", "--exclude", "/var/log/*"].map(String::from));
    // The second finds its rules compiled.
    let [one, two] = [(); 2].map(|()| scan(work.path(), &[&args[..]].concat()));
    assert!(!one.findings.is_empty() && !one.gaps.is_empty());
    assert_eq!(one.status, two.status);
    let bytes = |scan: &Scan, name: &str| fs::read(scan.bundle.join(name)).unwrap();
    for name in ["findings.jsonl", "gaps.jsonl", "timeline.body", "files.jsonl.zst"] {
        assert!(bytes(&one, name) == bytes(&two, name), "{name} differs");
    }
    assert_eq!(one.files, two.files);
    let report = |scan: &Scan| {
        let mut report: Value = serde_json::from_slice(&bytes(scan, "report.json")).unwrap();
        report.as_object_mut().unwrap().remove("run").unwrap();
        report
    };
    assert_eq!(report(&one), report(&two));
    assert_ne!(one.report.run.id, two.report.run.id);
}

#[test]
fn verify_names_what_was_tampered_with() {
    let work = tempfile::tempdir().unwrap();
    type Tamper = fn(&Path);
    let cases: [(Tamper, &str, &str); 6] = [
        (|b| fs::write(b.join("gaps.jsonl"), "{}\n").unwrap(), "gaps.jsonl", "changed"),
        (|b| fs::remove_file(b.join("timeline.body")).unwrap(), "timeline.body", "missing"),
        (|b| fs::write(b.join("extra.txt"), "x").unwrap(), "extra.txt", "extra"),
        (|b| fs::create_dir(b.join("more")).unwrap(), "more/", "extra"),
        (|b| symlink("report.json", b.join("link")).unwrap(), "link", "extra"),
        (
            |b| {
                // The link's target is what was sealed, and yet it is no file of the bundle.
                fs::rename(b.join("findings.jsonl"), b.join("../moved")).unwrap();
                symlink("../moved", b.join("findings.jsonl")).unwrap();
            },
            "findings.jsonl",
            "changed",
        ),
    ];
    for (tamper, name, state) in cases {
        let scan = small(work.path(), &[]);
        tamper(&scan.bundle);
        let (status, lines) = verify(&scan.bundle, &[]);
        assert_eq!(status, 3, "{name}");
        assert_eq!(differing(&lines), [(name.to_owned(), state.to_owned())]);
        assert_eq!(lines.last().unwrap()["intact"], false);
        let human = ["verify", "--format", "human"];
        let (_, text, _) = run(agent(work.path()).args(human).arg(&scan.bundle));
        let line = format!("{state:<8} {name}");
        assert!(text.lines().any(|l| l == line) && text.contains("NOT INTACT"), "{text}");
    }
}

#[test]
fn a_list_that_leads_elsewhere_is_refused() {
    let work = tempfile::tempdir().unwrap();
    let outside = work.path().join("outside");
    fs::write(&outside, "secret").unwrap();
    for name in ["../outside", outside.to_str().unwrap(), "a/../../outside", "..", ""] {
        let scan = small(work.path(), &[]);
        let sums = scan.bundle.join("SHA256SUMS");
        let mut text = fs::read_to_string(&sums).unwrap();
        text.push_str(&format!("{}  {name}\n", crate::support::sha256sum(&outside)));
        fs::write(&sums, text).unwrap();
        let (status, stdout, stderr) = run(agent(work.path()).arg("verify").arg(&scan.bundle));
        assert_eq!(status, 1, "{name:?}: {stdout}");
        assert!(stderr.contains("line 7 of SHA256SUMS"), "{name:?}: {stderr}");
        assert!(!stdout.contains("\"ok\""), "{name:?}: {stdout}");
    }
    let (status, _, stderr) = run(agent(work.path()).arg("verify").arg(work.path()));
    assert_eq!(status, 1);
    assert!(stderr.contains("never sealed"), "{stderr}");
}

fn make_key(path: &Path) {
    let mut keygen = Command::new("ssh-keygen");
    let (status, _, stderr) = run(keygen.args(["-q", "-t", "ed25519", "-N", "", "-f"]).arg(path));
    assert_eq!(status, 0, "{stderr}");
}

#[test]
fn a_signature_is_what_ssh_keygen_accepts() {
    let work = tempfile::tempdir().unwrap();
    let [key, other] = ["key", "other"].map(|name| work.path().join(name));
    make_key(&key);
    make_key(&other);
    let [trusted, stranger] = [&key, &other].map(|key| key.with_extension("pub"));
    let signed = small(work.path(), &["--sign-key", key.to_str().unwrap()]);
    let mut expected: BTreeSet<String> = FILES.map(String::from).into();
    expected.insert("SHA256SUMS.sig".to_owned());
    assert_eq!(names(&signed.bundle), expected);

    let allowed = work.path().join("allowed");
    fs::write(&allowed, format!("me {}", fs::read_to_string(&trusted).unwrap())).unwrap();
    let keygen = |allowed: &Path| {
        let sums = fs::File::open(signed.bundle.join("SHA256SUMS")).unwrap();
        let mut keygen = Command::new("ssh-keygen");
        keygen.args(["-Y", "verify", "-I", "me", "-n", "cleanroom-bundle@v1", "-f"]).arg(allowed);
        run(keygen.arg("-s").arg(signed.bundle.join("SHA256SUMS.sig")).stdin(sums)).0
    };
    assert_eq!(keygen(&allowed), 0);
    let strangers = work.path().join("strangers");
    fs::write(&strangers, format!("me {}", fs::read_to_string(&stranger).unwrap())).unwrap();
    assert_ne!(keygen(&strangers), 0);

    let signature_of = |bundle: &Path, signer: Option<&Path>| {
        let more: Vec<&str> =
            signer.iter().flat_map(|s| ["--signer", s.to_str().unwrap()]).collect();
        let (status, lines) = verify(bundle, &more);
        (status, lines.last().unwrap()["signature"].as_str().unwrap().to_owned())
    };
    let said = |status: i32, word: &str| (status, word.to_owned());
    assert_eq!(signature_of(&signed.bundle, Some(&trusted)), said(0, "valid"));
    assert_eq!(signature_of(&signed.bundle, Some(&allowed)), said(0, "valid"));
    assert_eq!(signature_of(&signed.bundle, None), said(0, "untrusted"));
    assert_eq!(signature_of(&signed.bundle, Some(&stranger)), said(3, "untrusted"));
    let unsigned = small(work.path(), &[]);
    assert_eq!(signature_of(&unsigned.bundle, Some(&trusted)), said(3, "none"));
    // A list that was made to fit a changed file no longer fits the signature.
    fs::write(signed.bundle.join("gaps.jsonl"), "").unwrap();
    fs::copy(unsigned.bundle.join("SHA256SUMS"), signed.bundle.join("SHA256SUMS")).unwrap();
    for name in &FILES[1..] {
        fs::copy(unsigned.bundle.join(name), signed.bundle.join(name)).unwrap();
    }
    assert_eq!(signature_of(&signed.bundle, None), said(3, "invalid"));
}

#[test]
fn a_key_that_cannot_sign_is_refused_before_anything_is_read() {
    let work = tempfile::tempdir().unwrap();
    let out = work.path().join("out");
    for (name, text) in [("missing", None), ("junk", Some("not a key"))] {
        let key = work.path().join(name);
        if let Some(text) = text {
            fs::write(&key, text).unwrap();
        }
        let mut command = agent(work.path());
        command.arg("scan").arg(work.path()).arg("--out").arg(&out).arg("--sign-key").arg(&key);
        assert_eq!(run(&mut command).0, 1, "{name}");
        assert!(!out.exists(), "{name}");
    }
}

#[test]
fn other_programs_read_the_bundle() {
    let work = tempfile::tempdir().unwrap();
    let tree = work.path().join("tree");
    fs::create_dir(&tree).unwrap();
    planted_compromise(&tree).unwrap();
    let scan = scan(work.path(), &[tree.to_str().unwrap(), "--digest", "md5"]);

    let packed = scan.bundle.join("files.jsonl.zst");
    let (status, text, stderr) = run(Command::new("zstd").arg("-dcq").arg(&packed));
    assert_eq!((status, stderr.as_str()), (0, ""));
    assert_eq!(text.lines().count(), scan.files.len());
    assert!(text.lines().all(|line| line.starts_with(r#"{"type":"file","v":1,"#)));

    let body = scan.bundle.join("timeline.body");
    let lines = fs::read_to_string(&body).unwrap();
    assert_eq!(lines.lines().count(), scan.files.len());
    assert!(lines.lines().all(|line| line.split('|').count() == 11));
    let mut mactime = Command::new("mactime");
    let (status, timeline, stderr) = run(mactime.args(["-d", "-y", "-b"]).arg(&body));
    assert_eq!((status, stderr.as_str()), (0, ""));
    // Every entry is in it by at least one of its times; a header goes before.
    let at = timeline.lines().filter(|line| line.contains("/opt/kit/install.sh")).count();
    assert!(at >= 1, "{timeline}");
    let mtime = timeline.lines().any(|line| line.starts_with("2023-11-14T"));
    assert!(mtime, "the images' own time is not in {timeline}");
    assert!(timeline.lines().all(|line| line.split(',').count() >= 8), "a name broke a line");
}

#[test]
fn an_out_folder_that_will_not_do_is_refused_at_the_start() {
    let work = tempfile::tempdir().unwrap();
    let evidence = work.path().join("evidence");
    fs::create_dir_all(evidence.join("sub")).unwrap();
    let full = work.path().join("full");
    fs::create_dir(&full).unwrap();
    fs::write(full.join("precious"), "x").unwrap();
    let file = work.path().join("file");
    fs::write(&file, "x").unwrap();
    let link = work.path().join("link");
    symlink(evidence.join("sub"), &link).unwrap();
    for (out, word) in [
        (full.clone(), "is not empty"),
        (file.clone(), "bundle's folder"),
        (file.join("below"), "bundle's folder"),
        (evidence.clone(), "lies in the evidence"),
        (evidence.join("sub"), "lies in the evidence"),
        (evidence.join("new/and/deeper"), "lies in the evidence"),
        (work.path().join("full/../evidence/x"), "lies in the evidence"),
        (link.join("x"), "lies in the evidence"),
    ] {
        let mut command = agent(work.path());
        command.arg("scan").arg(&evidence).arg("--out").arg(&out);
        let (status, stdout, stderr) = run(&mut command);
        assert_eq!((status, stdout.as_str()), (1, ""), "{}", out.display());
        assert!(stderr.starts_with("error: ") && stderr.contains(word), "{stderr}");
    }
    assert_eq!(names(&full), ["precious".to_owned()].into());
    assert_eq!(names(&evidence), ["sub".to_owned()].into());
    assert_eq!(names(&evidence.join("sub")), BTreeSet::new());
}

#[test]
fn a_start_that_fails_leaves_the_folder_free_for_the_next_try() {
    let work = tempfile::tempdir().unwrap();
    let evidence = work.path().join("evidence");
    fs::create_dir(&evidence).unwrap();
    let out = work.path().join("out");
    let list = work.path().join("list.txt");
    fs::write(&list, "hash\nno indicator\n").unwrap();
    let missing = work.path().join("missing");
    for bad in [["--rules", missing.to_str().unwrap()], ["--indicators", list.to_str().unwrap()]] {
        let mut command = agent(work.path());
        command.arg("scan").arg(&evidence).arg("--out").arg(&out).args(bad);
        assert_eq!(run(&mut command).0, 1, "{bad:?}");
        assert_eq!(names(&out), BTreeSet::new(), "{bad:?}");
    }
    let mut command = agent(work.path());
    assert_eq!(run(command.arg("scan").arg(&evidence).arg("--out").arg(&out)).0, 0);
}

#[test]
fn what_the_operator_says_is_in_the_report() {
    let work = tempfile::tempdir().unwrap();
    let more = ["--case", "case-2026-001", "--examiner", "A. Nalyst", "--evidence-id", "E-7"];
    let notes = ["--note", "first", "--note", "second"];
    let scan = small(work.path(), &[&more[..], &notes].concat());
    let report = &scan.report;
    assert_eq!(report.case.as_ref().unwrap().to_string(), "case-2026-001");
    assert_eq!(report.examiner.as_deref(), Some("A. Nalyst"));
    assert_eq!(report.evidence_id.as_deref(), Some("E-7"));
    assert_eq!(report.notes, ["first", "second"]);
    let own = crate::support::sha256sum(Path::new(env!("CARGO_BIN_EXE_cleanroom-agent")));
    assert_eq!(report.run.agent_sha256.unwrap().to_string(), own);
    assert!(report.run.started <= report.run.ended);
    assert_eq!(scan.gaps_of(GapKind::Interrupted).len(), 0);
    let page = fs::read_to_string(scan.bundle.join("report.html")).unwrap();
    for word in ["case-2026-001", "A. Nalyst", "E-7", "second"] {
        assert!(page.contains(word), "{word}");
    }
}
