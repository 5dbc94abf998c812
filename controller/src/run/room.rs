//! Commands on clean rooms and what comes out of them: report, fetch, rescan, teardown.

use std::{
    collections::BTreeSet,
    fs,
    path::{Path, PathBuf},
    sync::Arc,
};

use anyhow::Context as _;
use cleanroom_contract::{CaseId, ScanId, Severity, printable};
use cleanroom_controller::{
    case::{Run, Step},
    flow::{
        fetch::{self, FetchedBundle},
        investigate::counted,
        rescan::{self, Rescanned},
        teardown,
    },
    progress::{Event, Progress},
    room::{Given, RoomPolicy},
};

use super::{
    FAILED, PARTIAL, Shape, UNLOGGED, Usage, print, say,
    session::Opening,
    signals::{Ended, Signals},
};
use crate::{
    cli::{Fetch, Rescan, Room, Teardown},
    output, settings, terminal,
};

/// The largest file of rules or indicators that is taken, in bytes.
const MOST_BYTES: u64 = 256 << 20;
/// How many files of rules or indicators are taken.
const MOST_FILES: usize = 10_000;
/// How deep folders of them are.
const MOST_DEPTH: usize = 16;

/// The clean room that people want, from flags and file. Reads the files that they name.
///
/// # Errors
/// When one of them can not be read: a mistake of the command line, told before anything is changed.
pub(super) fn policy(
    flags: &Room,
    file: &settings::File,
    asked: bool,
) -> anyhow::Result<RoomPolicy> {
    let (set, named) = (file.room.policy(), &file.room);
    let given = |flags: &[PathBuf], set: &[PathBuf]| {
        files(if flags.is_empty() { set } else { flags }).map_err(Usage)
    };
    let agent = flags.agent.clone().map(|agent| (agent.key, agent.sha256)).or(set.agent);
    let template = match &named.template {
        None => set.template,
        Some(path) => {
            let text = fs::read_to_string(path);
            Arc::from(text.map_err(|error| Usage(told("read the template", path, &error)))?)
        }
    };
    Ok(RoomPolicy {
        asked: asked || agent.is_some(),
        agent,
        image: flags.image_id.as_deref().map(Into::into).or(set.image),
        role: flags.room_role.clone().or(set.role),
        rules: given(&flags.rules, &named.rules)?,
        indicators: given(&flags.indicators, &named.indicators)?,
        template,
        ..set
    })
}

fn told(what: &str, path: &Path, error: &std::io::Error) -> String {
    format!("{what} {}: {error}", printable(&path.to_string_lossy()))
}

/// Files, and those in folders, by names without slashes.
///
/// # Errors
/// When one can not be read, is too large, or two have the same name.
pub(super) fn files(paths: &[PathBuf]) -> Result<Vec<Given>, String> {
    let mut given = Vec::new();
    for path in paths {
        let name = path.file_name().map(|name| name.to_string_lossy().into_owned());
        let about = fs::metadata(path).map_err(|error| told("read", path, &error))?;
        let base = if about.is_dir() { String::new() } else { name.unwrap_or_default() };
        take(path, &base, MOST_DEPTH, &mut given)?;
    }
    let mut names = BTreeSet::new();
    for file in &given {
        if !names.insert(&file.name) {
            return Err(format!("two files are called {}: rename one", printable(&file.name)));
        }
    }
    Ok(given)
}

fn take(path: &Path, name: &str, depth: usize, given: &mut Vec<Given>) -> Result<(), String> {
    let failed = |error| told("read", path, &error);
    let about = fs::metadata(path).map_err(failed)?;
    if about.is_dir() {
        if depth == 0 {
            return Err(format!("{} lies too deep", printable(&path.to_string_lossy())));
        }
        let mut entries: Vec<_> =
            fs::read_dir(path).map_err(failed)?.collect::<Result<_, _>>().map_err(failed)?;
        entries.sort_by_key(fs::DirEntry::file_name);
        for entry in entries {
            let own = entry.file_name().to_string_lossy().into_owned();
            if own.starts_with('.') {
                continue;
            }
            let below = if name.is_empty() { own } else { format!("{name}__{own}") };
            take(&entry.path(), &below, depth - 1, given)?;
        }
        return Ok(());
    }
    let plain = |c: char| c.is_ascii_alphanumeric() || "-_.+".contains(c);
    let name: String = name.chars().map(|c| if plain(c) { c } else { '_' }).collect();
    if !about.is_file() || about.len() > MOST_BYTES || given.len() >= MOST_FILES {
        let shown = printable(&path.to_string_lossy());
        return Err(format!("{shown} is no file of rules: none, too large, or one too many"));
    }
    let bytes = fs::read(path).map_err(failed)?;
    given.push(Given { name, bytes: bytes.into() });
    Ok(())
}

/// Shows what a report says.
pub(super) async fn report(
    opening: &Opening,
    case: &CaseId,
    scan: Option<&ScanId>,
    shape: Shape,
) -> anyhow::Result<u8> {
    let session = opening.open(None, case.as_str()).await?;
    let run = session.quiet()?;
    let mut status = 0;
    for (room, scan) in meant(&run, case, scan).await? {
        status = status.max(report_of(&run, case, (room, &scan), shape).await?);
    }
    Ok(status)
}

/// The scan that is named; else the newest of each of the case's rooms, and which room that is, where there are several.
async fn meant(
    run: &Run,
    case: &CaseId,
    scan: Option<&ScanId>,
) -> anyhow::Result<Vec<(Option<u32>, ScanId)>> {
    if let Some(scan) = scan {
        return Ok(vec![(None, scan.clone())]);
    }
    let newest = fetch::newest(run, case).await?;
    let several = newest.len() > 1;
    Ok(newest.into_iter().map(|(room, scan)| (several.then_some(room), scan)).collect())
}

/// Shows what the report of one scan says.
async fn report_of(
    run: &Run,
    case: &CaseId,
    (room, scan): (Option<u32>, &ScanId),
    shape: Shape,
) -> anyhow::Result<u8> {
    let (scan, report, logged) = fetch::report(run, case, Some(scan)).await?;
    if !shape.is_human() {
        let fields =
            serde_json::json!({ "case": case, "scan": scan, "logged": logged, "report": report });
        print(&output::record("report", &fields))?;
        return Ok(vouched(case, &scan, logged));
    }
    let room = room.map(|room| format!(" (room {room})")).unwrap_or_default();
    let mut text = format!("scan {scan} of {case}{room}: {}\n", counted(&report.summary));
    for finding in report.worst.iter().filter(|f| f.severity >= Severity::Medium).take(20) {
        let path = finding.path.as_ref().map(|path| path.path.as_str()).unwrap_or_default();
        text.push_str(&format!(
            "  {:<8}  {}  {} {}\n",
            finding.severity.as_str(),
            printable(&finding.title),
            printable(&finding.volume),
            printable(path),
        ));
    }
    text.push_str(&format!("all of it: cleanroom fetch {case} --scan {scan}\n"));
    let status = vouched(case, &scan, logged);
    print(&text)?;
    Ok(status)
}

/// The exit status by whether the custody log vouches for a scan. Where it does not, nobody is to overlook that.
fn vouched(case: &CaseId, scan: &ScanId, logged: bool) -> u8 {
    if logged {
        return 0;
    }
    say(&format!(
        "!!! scan {scan} of {case} IS NOT IN THE CUSTODY LOG: whoever may write below its bundles wrote it, and nobody has read it back. Rely on nothing of it"
    ));
    UNLOGGED
}

/// Brings a bundle here.
pub(super) async fn fetch(opening: &Opening, args: &Fetch, shape: Shape) -> anyhow::Result<u8> {
    let session = opening.open(None, args.case.as_str()).await?;
    let run = session.quiet()?;
    let mut status = 0;
    for (room, scan) in meant(&run, &args.case, args.scan.as_ref()).await? {
        // Bundles have files of the same names.
        let out = args.out.as_ref().map(|out| match room {
            Some(room) => out.join(format!("room-{room}")),
            None => out.clone(),
        });
        let fetched = fetch::fetch(&run, &args.case, Some(&scan), out.as_deref()).await?;
        status = status.max(fetched_text(args, &fetched, shape)?);
    }
    Ok(status)
}

/// Shows what came. The exit status.
fn fetched_text(args: &Fetch, fetched: &FetchedBundle, shape: Shape) -> anyhow::Result<u8> {
    let status = vouched(&args.case, &fetched.scan, fetched.logged);
    if !shape.is_human() {
        print(&output::record("fetched", fetched))?;
        return Ok(status);
    }
    let folder = printable(&fetched.folder.to_string_lossy());
    let known = if fetched.logged { "; the custody log has it so" } else { "" };
    print(&format!(
        "{folder}: {} files, {} bytes, every one as SHA256SUMS says{known}\n",
        fetched.came + fetched.kept,
        fetched.bytes
    ))?;
    Ok(status)
}

/// Examines a case again.
pub(super) async fn rescan(opening: &Opening, args: &Rescan, shape: Shape) -> anyhow::Result<u8> {
    let room = policy(&args.room, &opening.file()?, true)?;
    let session = opening.open(None, args.case.as_str()).await?;
    let mut run = session.quiet()?;
    run.policy.room = room;
    run.policy.room.topic = session.settings.topic.as_ref().map(|topic| topic.value.clone());
    let (progress, mut events) = Progress::channel(1024);
    run.progress = progress;
    let mut signals = Signals::take().context("take over signals")?;
    let work = async {
        let mut work = std::pin::pin!(rescan::rescan(&run, &args.case));
        loop {
            tokio::select! {
                biased;
                Some(event) = events.recv() => show(&event, shape)?,
                ended = &mut work => return ended.map_err(anyhow::Error::new),
            }
        }
    };
    let rescanned = match signals.guard(&run.shared, work, say).await {
        Ended::Done(rescanned) => rescanned?,
        Ended::Interrupted(status) => {
            say("the room goes on; rescan with the same rules waits for it again");
            return Ok(status);
        }
    };
    print(&rescanned_text(&rescanned, shape))?;
    let mut others = rescanned.others.iter();
    let ordered = rescanned.scan.is_some() || others.any(|other| other.scan.is_some());
    Ok(match (rescanned.is_whole(), ordered) {
        (true, _) => 0,
        (false, true) => PARTIAL,
        (false, false) => FAILED,
    })
}

/// Progress: lines for people on stderr, records for programs.
fn show(event: &Event, shape: Shape) -> anyhow::Result<()> {
    if !shape.is_human() {
        // An event has a type of its own.
        let line = serde_json::to_string(event).context("tell progress")?;
        return print(&format!("{line}\n"));
    }
    match event {
        Event::Waiting { step: Step::CleanRoom, what, .. } => say(&printable(what)),
        Event::Change { change, resource, .. } => {
            say(&format!("{}: {}", printable(resource), printable(change)));
        }
        _ => {}
    }
    Ok(())
}

fn rescanned_text(rescanned: &Rescanned, shape: Shape) -> String {
    if !shape.is_human() {
        return output::record("rescanned", rescanned);
    }
    let mut text = String::new();
    for shortfall in &rescanned.shortfalls {
        text.push_str(&output::field("NOT DONE", &printable(&shortfall.what), shape.width));
        text.push_str(&output::field("  do", &printable(&shortfall.advice), shape.width));
    }
    for note in &rescanned.notes {
        text.push_str(&output::field("note", &printable(note), shape.width));
    }
    let others = rescanned.others.iter().filter_map(|other| other.reported.as_ref());
    for reported in rescanned.reported.iter().chain(others) {
        text.push_str(&output::field("report", &counted(&reported.summary), shape.width));
        text.push_str(&output::field("bundle", &printable(&reported.bundle), shape.width));
    }
    text
}

/// Deletes a room.
pub(super) async fn teardown(
    opening: &Opening,
    args: &Teardown,
    shape: Shape,
) -> anyhow::Result<u8> {
    let session = opening.open(None, args.case.as_str()).await?;
    let run = session.quiet()?;
    let proposal = teardown::propose(&run, &args.case).await?;
    let stands = !proposal.removes.is_empty();
    if shape.is_human() {
        let mut text = String::new();
        let mut line = |name: &str, what: &str| {
            text.push_str(&output::field(name, &printable(what), shape.width))
        };
        for removes in &proposal.removes {
            line("delete", removes);
        }
        if !stands {
            line("delete", "nothing: there is no room");
        }
        for note in &proposal.notes {
            line("note", note);
        }
        print(&text)?;
    }
    if stands && !args.yes {
        if !terminal::can_ask() {
            let why = "there is no terminal to ask on: give --yes; nothing was deleted";
            return Err(Usage(why.to_owned()).into());
        }
        if !terminal::ask(&format!("Delete the clean room of {}?", args.case)) {
            say("nothing was deleted");
            return Ok(FAILED);
        }
    }
    let mut signals = Signals::take().context("take over signals")?;
    let work = teardown::carry_out(proposal);
    let torn = match signals.guard(&run.shared, work, say).await {
        Ended::Done(torn) => torn?,
        Ended::Interrupted(status) => {
            say("teardown again goes on where it was");
            return Ok(status);
        }
    };
    let text = if shape.is_human() {
        let mut text = String::new();
        for shortfall in &torn.shortfalls {
            text.push_str(&output::field("NOT DONE", &printable(&shortfall.what), shape.width));
            text.push_str(&output::field("  do", &printable(&shortfall.advice), shape.width));
        }
        for left in &torn.left {
            text.push_str(&output::field("stays", &printable(&left.to_string()), shape.width));
        }
        text
    } else {
        output::record("torn_down", &torn)
    };
    print(&text)?;
    Ok(if torn.whole { 0 } else { PARTIAL })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rules_come_from_files_and_folders_by_names_without_slashes() {
        let folder = tempfile::tempdir().expect("a folder");
        let at = |name: &str| folder.path().join(name);
        fs::create_dir_all(at("set/web")).expect("folders");
        for name in ["one file.yar", "set/a.yar", "set/web/b.yar", "set/.hidden"] {
            fs::write(at(name), name).expect("a file");
        }
        let given = files(&[at("one file.yar"), at("set")]).expect("files");
        let names: Vec<_> = given.iter().map(|g| g.name.as_str()).collect();
        assert_eq!(names, ["one_file.yar", "a.yar", "web__b.yar"]);
        assert_eq!(&*given[2].bytes, b"set/web/b.yar");
        let twice = files(&[at("set/a.yar"), at("set")]).expect_err("one name, two files");
        assert!(twice.contains("a.yar"), "{twice}");
        assert!(files(&[at("missing")]).is_err());
    }
}
