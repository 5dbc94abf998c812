//! What the documents say of the program is what it is.
//!
//! `controller/iam-policy.json`, `controller/forensic-policy.json`, `controller/permissions.md` and the marked parts of `README.md` are made from the code
//! and committed. With `CLEANROOM_UPDATE_DOCS=1` these tests write them anew instead of comparing:
//!
//! ```text
//! CLEANROOM_UPDATE_DOCS=1 cargo test --package cleanroom-controller documents
//! ```

use std::{
    collections::BTreeSet,
    env,
    fmt::Write as _,
    fs,
    path::{Path, PathBuf},
    process::{Command, Output, Stdio},
};

use cleanroom_cloud_aws::permissions::{self, Operation, TABLE};
use cleanroom_controller::steps::{goals, isolate::NOT_CUT};

/// The steps and commands of the table of permissions, and what each is for.
const STEPS: &[(&str, &str)] = &[
    ("verify", "real, ours, compromised, not exempt? Refuses with a reason, changes nothing"),
    (
        "custody",
        "the claim of the case, the custody log, the record: objects in the evidence bucket",
    ),
    ("protect", ""),
    ("detach", ""),
    ("snapshot", ""),
    ("isolate", ""),
    ("revoke", ""),
    ("tag", ""),
    ("record", "everything that AWS knows of the instance, answer by answer, each with its digest"),
    ("notify", "tells the team: contained, preserved, failed, released, reported, unreported"),
    ("clean_room", ""),
    (
        "via aws",
        "`respond --via aws`: starts the state machine of the response stack, and follows it",
    ),
    ("approve", "a person's word for a response that waits for it"),
    (
        "intake",
        "the function's own, and not in the policy: what could not be read, with the reason",
    ),
    ("release", "what was recorded, put back on a person's word; the steps' own calls besides"),
    ("preflight", "whether the account is ready; the other steps' looking calls besides"),
    ("drill", "an instance of our own to rehearse on, and its end; the other steps' calls besides"),
];

/// The goals of the steps, and what holds when they are reached.
const GOALS: &[(&str, &str, &str)] = &[
    (
        "protect",
        "guards",
        "termination and stop protection on, a shutdown stops, volumes outlive the instance",
    ),
    ("detach", "scaling", "out of its Auto Scaling group, capacity kept"),
    (
        "detach",
        "balancers",
        "out of target groups, by instance and by address, and classic load balancers",
    ),
    ("snapshot", "take", "all volumes in one call"),
    ("snapshot", "settle", "all of them completed"),
    ("snapshot", "rekey", "copied to the case's key (`--kms-key`)"),
    ("snapshot", "lock", "locked (`--lock`)"),
    ("snapshot", "image", "an AMI registered (`--image`)"),
    ("isolate", "prepare", "the forensic group is there, and has no rule"),
    ("isolate", "cut", "every interface has that group alone; then tracked flows are dropped"),
    ("isolate", "addresses", "no public IPv4 address is left or comes back"),
    ("isolate", "acl", "network ACLs deny its addresses (`--nacl`)"),
    ("isolate", "tidy", "the group that opened interfaces for a moment is gone"),
    ("revoke", "profile", "the instance profile is off"),
    ("revoke", "deny", "its role's credentials are denied from this instance"),
    ("revoke", "endpoint", "the metadata endpoint is off"),
    ("tag", "labels", "the case's name is on the instance, its interfaces and volumes"),
    ("clean_room", "share", "snapshots are shared (`--forensic-account`)"),
    ("clean_room", "grant", "their keys can be read with from there"),
    ("clean_room", "receive", "whole copies are in the forensic account"),
    (
        "clean_room",
        "launch",
        "a stack with a volume from each snapshot; its scan is awaited, and the bundle read back byte for byte",
    ),
];

/// A file of the repository.
fn file(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("..").join(name)
}

pub(crate) fn read(name: &str) -> String {
    fs::read_to_string(file(name)).unwrap_or_else(|error| panic!("{name}: {error}"))
}

/// Compares a file with what it should be, or writes it.
pub(crate) fn hold(name: &str, expected: &str) {
    if env::var_os("CLEANROOM_UPDATE_DOCS").is_some_and(|value| value == "1") {
        fs::write(file(name), expected).unwrap_or_else(|error| panic!("{name}: {error}"));
    }
    let again = "CLEANROOM_UPDATE_DOCS=1 cargo test --package cleanroom-controller documents";
    assert_eq!(read(name), expected, "{name} is not up to date; make it anew with: {again}");
}

/// A text with the part between two marks replaced.
pub(crate) fn between(text: &str, name: &str, part: &str) -> String {
    let (begin, end) = (format!("<!-- begin {name} -->\n"), format!("<!-- end {name} -->"));
    let (before, rest) = text.split_once(&begin).unwrap_or_else(|| panic!("no {begin}"));
    let (_, after) = rest.split_once(&end).unwrap_or_else(|| panic!("no {end}"));
    format!("{before}{begin}{part}{end}{after}")
}

/// Operations by service, in the table's order: `ec2` DescribeVolumes, DescribeImages · `kms` DescribeKey.
fn calls(rows: &[&Operation]) -> String {
    let mut services: Vec<(&str, Vec<&str>)> = Vec::new();
    for row in rows {
        let (service, name) = row.name.split_once(':').expect("a service and a name");
        match services.iter_mut().find(|(known, _)| *known == service) {
            Some((_, names)) => names.push(name),
            None => services.push((service, vec![name])),
        }
    }
    let named = services.iter().map(|(service, names)| format!("`{service}` {}", names.join(", ")));
    named.collect::<Vec<_>>().join(" · ")
}

/// The README's table of steps.
fn steps() -> String {
    let mut table = String::from("| Step | What it reaches | Looks | Acts |\n|---|---|---|---|\n");
    for (step, what) in STEPS {
        let of = |acts: bool| -> Vec<&Operation> {
            TABLE.iter().filter(|row| row.step == *step && row.mutates == acts).collect()
        };
        let goals: Vec<_> = GOALS
            .iter()
            .filter(|(of, ..)| of == step)
            .map(|(_, name, holds)| format!("*{name}*: {holds}"))
            .collect();
        let reaches = if goals.is_empty() { (*what).to_owned() } else { goals.join("; ") };
        let (looks, acts) = (calls(&of(false)), calls(&of(true)));
        writeln!(table, "| {step} | {reaches} | {looks} | {acts} |").expect("a text");
    }
    table
}

/// `controller/permissions.md`.
fn permissions() -> String {
    let mut text = String::from(
        "# What `cleanroom` asks of AWS\n\n\
         Made from the table that the adapters declare (`controller/aws/src/permissions.rs`). A call that is not in the\n\
         table does not go out. The policy is [iam-policy.json](iam-policy.json): exactly the actions named here, but for those of\n\
         intake, a function of the response stack that has a role of its own there, and those of drills, which have\n\
         [a policy of their own](drill-policy.json).\n\n\
         ## Operations and their actions\n\n\
         The action has the operation's name where no other is given.\n\n\
         | Operation | First needed by | | Actions, where named otherwise |\n|---|---|---|---|\n",
    );
    for row in TABLE {
        let way = if row.mutates { "acts" } else { "looks" };
        let other: Vec<_> =
            row.actions.iter().filter(|action| **action != row.name).copied().collect();
        let line = writeln!(text, "| {} | {} | {way} | {} |", row.name, row.step, other.join(", "));
        line.expect("a text");
    }
    text.push_str(
        "\n## Actions that are implied\n\n\
         An operation needs these besides, in some uses of it.\n\n\
         | Operation | Needs besides | Because | Page |\n|---|---|---|---|\n",
    );
    for row in TABLE {
        for implied in row.implied {
            let page = implied.page.rsplit('/').next().unwrap_or(implied.page);
            let (action, reason) = (implied.action, implied.reason);
            let line = writeln!(
                text,
                "| {} | {action} | {reason} | [{page}]({}) |",
                row.name, implied.page
            );
            line.expect("a text");
        }
    }
    text
}

#[test]
fn the_committed_policy_is_the_table_s() {
    hold("controller/iam-policy.json", &permissions::policy());
}

#[test]
fn the_committed_policy_of_the_forensic_role_is_the_table_s() {
    hold("controller/forensic-policy.json", &permissions::forensic_policy());
}

#[test]
fn the_committed_policy_of_drills_is_the_table_s() {
    hold("controller/drill-policy.json", &permissions::drill_policy());
}

#[test]
fn the_policy_fits_into_one_managed_policy() {
    // https://docs.aws.amazon.com/IAM/latest/UserGuide/reference_iam-quotas.html: white space does not count.
    let characters = permissions::policy().chars().filter(|c| !c.is_whitespace()).count();
    assert!(characters <= 6_144, "{characters} characters");
}

#[test]
fn the_committed_table_of_permissions_is_the_adapters() {
    hold("controller/permissions.md", &permissions());
}

#[test]
fn the_readme_s_tables_are_the_code_s() {
    let list: String = NOT_CUT.iter().map(|what| format!("- {what}\n")).collect();
    let readme = between(&read("README.md"), "steps", &steps());
    hold("README.md", &between(&readme, "not cut", &list));
}

#[test]
fn every_step_and_goal_is_explained() {
    let explained: Vec<_> = GOALS.iter().map(|(step, name, _)| (*step, *name)).collect();
    let there: Vec<_> = goals().iter().map(|goal| (goal.step().as_str(), goal.name())).collect();
    assert_eq!(explained, there);
    let explained: BTreeSet<_> = STEPS.iter().map(|(step, _)| *step).collect();
    let there: BTreeSet<_> = TABLE.iter().map(|row| row.step).collect();
    assert_eq!(explained, there);
    for (step, what) in STEPS {
        let goals = GOALS.iter().any(|(of, ..)| of == step);
        assert_ne!(goals, !what.is_empty(), "{step} has goals or is explained");
    }
}

/// Runs the program where there is nothing to ask: no settings, no keys, no way to anywhere.
fn cleanroom(words: &[&str]) -> Output {
    let home = tempfile::tempdir().expect("a temporary folder");
    let mut command = Command::new(env!("CARGO_BIN_EXE_cleanroom"));
    command.env_clear().env("HOME", home.path()).current_dir(home.path());
    command.env("AWS_ENDPOINT_URL", "http://127.0.0.1:1").env("AWS_EC2_METADATA_DISABLED", "true");
    command.args(words).stdin(Stdio::null()).output().expect("the program starts")
}

/// What a run printed, which must have ended well.
fn printed(words: &[&str]) -> String {
    let output = cleanroom(words);
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "cleanroom {}: {}\n{said}", words.join(" "), output.status);
    String::from_utf8(output.stdout).expect("text")
}

/// The subcommands that a command's help lists.
fn subcommands(of: &[&str]) -> Vec<String> {
    let help = printed(&[of, &["--help"]].concat());
    let listed = help.lines().skip_while(|line| *line != "Commands:").skip(1);
    let listed = listed.take_while(|line| !line.is_empty());
    // Their descriptions go on below them, further to the right.
    let named = listed.filter_map(|line| {
        line.strip_prefix("  ")?.split_whitespace().next().filter(|_| !line.starts_with("   "))
    });
    named.filter(|name| *name != "help").map(str::to_owned).collect()
}

/// Every command with its subcommands, as words.
fn commands() -> Vec<Vec<String>> {
    let mut all: Vec<Vec<String>> = Vec::new();
    for name in subcommands(&[]) {
        let below = subcommands(&[&name]);
        all.extend(below.into_iter().map(|sub| vec![name.clone(), sub]));
        all.push(vec![name]);
    }
    assert!(all.len() >= 12, "{all:?}");
    all
}

#[test]
fn every_command_has_its_manual_page() {
    let folder = tempfile::tempdir().expect("a temporary folder");
    let out = folder.path().join("man");
    printed(&["man", "--out", out.to_str().expect("a text")]);
    let one = printed(&["man"]);
    assert!(one.contains(".TH cleanroom"), "{one}");
    for words in commands() {
        let page = out.join(format!("cleanroom-{}.1", words.join("-")));
        let text = fs::read_to_string(&page).unwrap_or_else(|e| panic!("{}: {e}", page.display()));
        assert!(text.contains(".SH DESCRIPTION"), "{}: {text}", page.display());
    }
}

#[test]
fn every_shell_completes_every_command() {
    let commands = commands();
    for shell in ["bash", "elvish", "fish", "powershell", "zsh"] {
        let script = printed(&["completions", shell]);
        for word in commands.iter().flatten() {
            assert!(script.contains(word.as_str()), "{shell}: {word}");
        }
        for flag in [
            "require-custody",
            "kms-key",
            "principal",
            "room-role",
            "artifacts",
            "forensic-account",
        ] {
            assert!(script.contains(flag), "{shell}: {flag}");
        }
    }
}

/// The words of a line as a shell splits it; quotes hold words together.
fn words(line: &str) -> Vec<String> {
    let mut words = vec![String::new()];
    let mut quoted = false;
    for c in line.chars() {
        match c {
            '"' => quoted = !quoted,
            ' ' if !quoted => words.push(String::new()),
            '#' if !quoted && words.last().is_some_and(String::is_empty) => break,
            c => words.last_mut().expect("never empty").push(c),
        }
    }
    words.retain(|word| !word.is_empty());
    words
}

/// The commands that a document shows: those of its blocks, and those inside sentences and tables, where `CASE` and the like
/// stand for what people type.
fn shown(text: &str) -> (Vec<&str>, Vec<&str>) {
    let lines = text.lines().filter_map(|line| line.strip_prefix("    "));
    let blocks = lines.map(|line| line.strip_prefix("$ ").unwrap_or(line));
    // What is in a block has no marks of its own.
    let marked = text.lines().filter(|line| !line.starts_with("    "));
    let inside = marked.flat_map(|line| line.split('`').skip(1).step_by(2));
    let ours = |code: &&str| code.starts_with("cleanroom ");
    (blocks.filter(ours).collect(), inside.filter(ours).collect())
}

#[test]
fn every_command_in_the_documents_can_be_typed() {
    for (name, least) in
        [("README.md", (9, 5)), ("docs/runbook.md", (12, 10)), ("docs/thousand.md", (0, 1))]
    {
        let text = read(name);
        let (blocks, inside) = shown(&text);
        let count = (blocks.len(), inside.len());
        assert!(count.0 >= least.0 && count.1 >= least.1, "{name} shows {count:?} commands");
        for line in blocks.into_iter().chain(inside) {
            let words = words(line);
            let mut words: Vec<_> = words.iter().skip(1).map(String::as_str).collect();
            // Asked for help, the program looks at all that was typed before, and does nothing.
            words.push("--help");
            let output = cleanroom(&words);
            let said = String::from_utf8_lossy(&output.stderr);
            assert!(output.status.success(), "{name}: {line}: {}\n{said}", output.status);
        }
    }
}

#[test]
fn commands_are_found_in_blocks_and_in_sentences() {
    let text = "Type `cleanroom status` or\n\n    $ cleanroom cases\n    aws `cleanroom x`\n| `cleanroom close CASE` | `aws` |\n";
    assert_eq!(
        shown(text),
        (vec!["cleanroom cases"], vec!["cleanroom status", "cleanroom close CASE"])
    );
}

#[test]
fn lines_are_split_as_a_shell_does() {
    assert_eq!(
        words("respond i-1 --reason \"a b\"   # why"),
        ["respond", "i-1", "--reason", "a b"]
    );
    assert_eq!(words("man"), ["man"]);
}
