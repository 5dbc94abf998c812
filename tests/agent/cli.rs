//! The command line: what is refused, what is printed where, and what the exit status says.

use std::{
    fs,
    path::Path,
    process::{Command, Stdio},
};

use cleanroom_contract::{GapKind, Record, VolumeState};
use cleanroom_harness::{
    images::{Ext, Image, MIB},
    tree::planted_compromise,
};

use crate::support::{agent, run, scan, scan_as_nobody};

/// A small folder with names that are hostile to terminals, and a rule that matches in it.
fn hostile(work: &Path) -> [String; 3] {
    let tree = work.join("tree");
    fs::create_dir(&tree).unwrap();
    planted_compromise(&tree).unwrap();
    let rules = work.join("rules.yar");
    let text = "rule odd { meta: description = \"\x1b[2Jodd\" score = 75 \
                condition: filepath contains \"odd\" }";
    fs::write(&rules, text).unwrap();
    [tree, "--rules".into(), rules].map(|path| path.to_str().unwrap().to_owned())
}

/// A folder with one harmless file.
fn harmless(work: &Path) -> String {
    let folder = work.join("harmless");
    fs::create_dir_all(&folder).unwrap();
    fs::write(folder.join("file"), "content").unwrap();
    folder.to_str().unwrap().to_owned()
}

#[test]
fn what_may_not_be_typed_is_refused_with_status_2() {
    let work = tempfile::tempdir().unwrap();
    let folder = harmless(work.path());
    let out = work.path().join("out");
    let scan = ["scan", folder.as_str(), "--out", out.to_str().unwrap()];
    let mut lines: Vec<Vec<&str>> = vec![
        vec![],
        vec!["examine"],
        vec!["scan"],
        vec!["scan", "--out", scan[3]],
        vec!["scan", scan[1]],
        vec!["verify"],
        vec!["seal"],
        vec!["rules"],
        vec!["rules", "check"],
        vec!["rules", "compile", scan[1]],
    ];
    for bad in [
        ["--memory", "5x"],
        ["--memory", "0"],
        ["--max-file-size", "-1"],
        ["--max-file-size", "1.5G"],
        ["--file-timeout", "0s"],
        ["--file-timeout", "soon"],
        ["--threads", "0"],
        ["--threads", "2000"],
        ["--case", "not a case!"],
        ["--case", ""],
        ["--exclude", "["],
        ["--exclude", "{a"],
        ["--digest", "sha512"],
        ["--fail-on", "horrible"],
        ["--format", "xml"],
        ["--frobnicate", "yes"],
    ] {
        lines.push([&scan[..], &bad].concat());
    }
    for line in lines {
        let (status, stdout, stderr) = run(agent(work.path()).args(&line));
        assert_eq!((status, stdout.as_str()), (2, ""), "{line:?}: {stderr}");
        // The last thing typed is what is wrong with it, or help says what is missing.
        assert!(stderr.contains("error: ") || stderr.contains("Usage: "), "{line:?}: {stderr}");
        assert!(!out.exists(), "{line:?} touched --out");
    }
}

#[test]
fn what_cannot_be_done_fails_with_status_1() {
    let work = tempfile::tempdir().unwrap();
    let missing = work.path().join("missing");
    let out = work.path().join("out");
    let [missing, out] = [&missing, &out].map(|path| path.to_str().unwrap());
    for line in [
        &["scan", missing, "--out", out][..],
        &["scan", "/dev/null", "--out", out],
        &["verify", missing],
        &["seal", missing],
        &["rules", "check", missing],
        &["rules", "compile", missing, "--out", out],
        // The agent's own processes are nobody else's.
        &["role", "walker", "--parent", "1"],
    ] {
        let (status, stdout, stderr) = run(agent(work.path()).args(line).stdin(Stdio::null()));
        assert_eq!((status, stdout.as_str()), (1, ""), "{line:?}: {stderr}");
        assert!(stderr.starts_with("error: "), "{line:?}: {stderr}");
        assert!(!Path::new(out).exists(), "{line:?} touched --out");
    }
}

#[test]
fn help_and_version_are_data() {
    let work = tempfile::tempdir().unwrap();
    let said = |words: &[&str]| {
        let (status, stdout, stderr) = run(agent(work.path()).args(words));
        assert_eq!((status, stderr.as_str()), (0, ""), "{words:?}");
        stdout
    };
    assert_eq!(said(&["--version"]), concat!("cleanroom-agent ", env!("CARGO_PKG_VERSION"), "\n"));
    let help = said(&["--help"]);
    for word in ["scan", "verify", "rules", "seal", "Exit status:", "4  findings at or above"] {
        assert!(help.contains(word), "{word}: {help}");
    }
    assert!(!help.contains("role"), "the agent's own processes are not offered: {help}");
    let scan = said(&["scan", "--help"]);
    for option in [
        "--rules",
        "--indicators",
        "--out",
        "--threads",
        "--memory",
        "--max-file-size",
        "--file-timeout",
        "--no-entropy",
        "--exclude",
        "--case",
        "--examiner",
        "--evidence-id",
        "--note",
        "--digest",
        "--strict",
        "--fail-on",
        "--sign-key",
        "--format",
    ] {
        assert!(scan.contains(option), "{option}: {scan}");
    }
    assert!(!said(&["rules", "compile", "--help"]).contains("--parent"));
}

#[test]
fn a_pipe_gets_records_and_nothing_else() {
    let work = tempfile::tempdir().unwrap();
    let scan = scan(work.path(), &hostile(work.path()));
    let records: Vec<Record> =
        scan.stdout.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    assert!(scan.stdout.ends_with('\n'));
    assert!(matches!(&records[0], Record::Volume(volume) if volume.volume == "tree"));
    assert!(matches!(records.last().unwrap(), Record::Summary(s) if *s == scan.report.summary));
    let findings: Vec<_> = records
        .iter()
        .filter_map(|record| match record {
            Record::Finding(finding) => Some(finding.clone()),
            _ => None,
        })
        .collect();
    assert_eq!(findings, scan.findings);
    assert!(findings.iter().any(|finding| finding.path.as_ref().unwrap().path.contains('\u{1b}')));
    let gaps = records.iter().filter(|record| matches!(record, Record::Gap(_)));
    assert_eq!(gaps.count(), scan.gaps.len());
    // JSON escapes control characters, and talk has none.
    for text in [&scan.stdout, &scan.stderr] {
        assert!(!text.contains('\u{1b}') && !text.contains('\r'), "{text:?}");
    }
}

#[test]
fn people_get_a_summary_where_they_ask_for_it() {
    let work = tempfile::tempdir().unwrap();
    let args = hostile(work.path());
    let args = args.iter().map(String::as_str).chain(["--format", "human"]).collect::<Vec<_>>();
    let scan = scan(work.path(), &args);
    for word in ["Verdict", "Findings, worst first", "Coverage", "report.html", "odd"] {
        assert!(scan.stdout.contains(word), "{word}: {}", scan.stdout);
    }
    assert!(!scan.stdout.contains('\u{1b}'), "no colours in a pipe: {:?}", scan.stdout);
}

#[test]
fn a_terminal_gets_a_summary_and_no_escape_of_the_evidence() {
    let work = tempfile::tempdir().unwrap();
    let args = hostile(work.path());
    let out = work.path().join("out");
    // script(1) gives it a terminal on all three streams.
    let program = env!("CARGO_BIN_EXE_cleanroom-agent");
    let line = format!("'{program}' scan {} --out '{}'", args.join(" "), out.display());
    let mut script = Command::new("script");
    script.args(["-q", "-e", "-c", &line, "/dev/null"]).stdin(Stdio::null());
    script.env("XDG_CACHE_HOME", work.path().join("cache")).env("TERM", "xterm");
    let (status, screen, _) = run(&mut script);
    assert_eq!(status, 0, "{screen}");
    assert!(screen.contains("Findings, worst first"), "{screen}");
    assert!(!screen.contains("{\"type\""), "{screen}");
    // Colours are ours; red and clearing the screen were the evidence's and the rule's ideas.
    assert!(screen.contains("\u{1b}["), "{screen}");
    assert!(!screen.contains("\u{1b}[31mred") && !screen.contains("\u{1b}[2Jodd"), "{screen:?}");
}

#[test]
fn findings_can_decide_the_exit_status() {
    let work = tempfile::tempdir().unwrap();
    let evidence = harmless(work.path());
    let rules = work.path().join("rules.yar");
    fs::write(&rules, "rule high { meta: score = 75 condition: true }").unwrap();
    let with_rules = [evidence.as_str(), "--rules", rules.to_str().unwrap()];
    let status = |more: &[&str]| scan(work.path(), &[&with_rules, more].concat()).status;
    assert_eq!(status(&[]), 0);
    for (limit, expected) in [("info", 4), ("medium", 4), ("high", 4), ("critical", 0)] {
        assert_eq!(status(&["--fail-on", limit]), expected, "{limit}");
    }
    // Gaps alone are 3; findings weigh more than gaps.
    let gap = ["--exclude", "/none", "--max-file-size", "3"];
    assert_eq!(scan(work.path(), &[&[evidence.as_str()], &gap[..]].concat()).status, 3);
    fs::write(work.path().join("harmless/small"), "").unwrap();
    assert_eq!(status(&[&gap[..], &["--fail-on", "high"]].concat()), 4);
    assert_eq!(status(&[&gap[..], &["--fail-on", "critical"]].concat()), 3);
}

#[test]
fn a_reader_that_goes_away_does_not_fail_the_run() {
    let work = tempfile::tempdir().unwrap();
    let evidence = harmless(work.path());
    let broken = work.path().join("broken.yar");
    fs::write(&broken, "rule x { condition: nothing }").unwrap();
    let bundle = work.path().join("bundle");
    let [broken, out] = [&broken, &bundle].map(|path| path.to_str().unwrap());
    for (line, expected) in [
        (&["scan", evidence.as_str(), "--out", out][..], 0),
        (&["verify", out], 0),
        (&["rules", "check", broken], 1),
    ] {
        let mut command = agent(work.path());
        command.args(line).stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
        let mut child = command.spawn().unwrap();
        drop(child.stdout.take());
        let output = child.wait_with_output().unwrap();
        let stderr = String::from_utf8_lossy(&output.stderr);
        assert_eq!(output.status.code(), Some(expected), "{line:?}: {stderr}");
        assert!(!stderr.contains("roken pipe"), "{line:?}: {stderr}");
    }
    assert!(bundle.join("SHA256SUMS").exists());
    // Nor do streams that are closed from the beginning: no file may get their numbers.
    let second = work.path().join("second");
    let mut shell = Command::new("sh");
    shell.args(["-c", "exec \"$0\" scan \"$1\" --out \"$2\" <&- >&- 2>&-"]);
    shell.arg(env!("CARGO_BIN_EXE_cleanroom-agent")).arg(&evidence).arg(&second);
    assert_eq!(run(&mut shell).0, 0);
    assert_eq!(run(agent(work.path()).arg("verify").arg(&second)).0, 0);
}

#[test]
fn without_root_an_image_is_a_gap_that_says_what_to_do() {
    let work = tempfile::tempdir().unwrap();
    let content = work.path().join("content");
    fs::create_dir(&content).unwrap();
    fs::write(content.join("file"), "content").unwrap();
    let image = Image::new(work.path(), "disk.img", 16 * MIB).ext(Ext::Ext4, &content).unwrap();
    let scan = scan_as_nobody(work.path(), &[image.to_str().unwrap()]);
    assert_eq!(scan.status, 3, "{}", scan.stderr);
    let [gap] = &scan.gaps[..] else { panic!("{:?}", scan.gaps) };
    assert_eq!((gap.kind, gap.volume.as_deref()), (GapKind::Unmounted, Some("disk.img")));
    assert!(gap.advice.as_deref().is_some_and(|advice| advice.contains("root")), "{gap:?}");
    let [volume] = &scan.report.volumes[..] else { panic!("{:?}", scan.report.volumes) };
    assert_eq!((&*volume.content, volume.state), ("ext4", VolumeState::NotExamined));
    assert!(scan.files.is_empty());
}
