//! The programs of a clean room, and the rules that it scans with, on their way into the evidence bucket.

use std::{
    fs,
    path::{Path, PathBuf},
};

use anyhow::Context as _;
use cleanroom_cloud::{Put, Store};
use cleanroom_contract::{OrderedFile, Sha256, printable};
use cleanroom_controller::{
    flow::fetch,
    room::{AGENT, Given, LATEST, Latest},
    steps::clean_room::{artifacts, bundle::parse_sums},
};

use crate::{
    cli::Deploy,
    output,
    run::{Shape, Usage, print, room},
    settings,
};

/// The agent, and the tools of investigators, rules and indicators where they are given: else those that are there stay.
pub(super) struct Programs {
    agent: PathBuf,
    tools: Option<PathBuf>,
    rules: Option<Vec<Given>>,
    indicators: Option<Vec<Given>>,
}

impl Programs {
    /// The agent in a folder, and what flags name beside it, or the functions' settings.
    ///
    /// # Errors
    /// When one of them is not there: a mistake of the command line.
    pub(super) fn find(
        folder: &Path,
        args: &Deploy,
        settings: Option<&settings::File>,
    ) -> anyhow::Result<Self> {
        let tools = args.tools.as_deref();
        let agent = folder.join(AGENT);
        for path in [Some(agent.as_path()), tools].into_iter().flatten() {
            if !path.is_file() {
                let shown = printable(&path.to_string_lossy());
                let made =
                    if path == agent { "cargo package-release" } else { "cargo package-tools" };
                return Err(Usage(format!("{shown} is not there: build it with {made}")).into());
            }
        }
        let given = |flags: &[PathBuf], set: Option<&Vec<PathBuf>>| {
            let paths = Some(flags).filter(|flags| !flags.is_empty());
            let paths = paths.or(set.map(Vec::as_slice));
            paths.map(room::files).transpose().map_err(Usage)
        };
        Ok(Self {
            agent,
            tools: tools.map(Path::to_owned),
            rules: given(&args.rules, settings.map(|file| &file.room.rules))?,
            indicators: given(&args.indicators, settings.map(|file| &file.room.indicators))?,
        })
    }

    /// Puts them into the evidence bucket, and says what is there.
    ///
    /// # Errors
    /// When one is not what its sums say, or the bucket does not take it.
    pub(super) async fn place(&self, store: &dyn Store, shape: Shape) -> anyhow::Result<()> {
        let agent = checked(store, "agent", AGENT, &self.agent).await?;
        // A pointer that can not be read is written anew.
        let before = artifacts::latest(store).await.ok().flatten();
        let tools = match &self.tools {
            None => before.as_ref().and_then(|latest| latest.tools.clone()),
            Some(path) => {
                let name = path.file_name().unwrap_or_default().to_string_lossy().into_owned();
                Some(checked(store, "tools", &name, path).await?)
            }
        };
        let rules = kept(store, self.rules.as_deref(), before.as_ref().map(|l| &l.rules)).await?;
        let indicators = before.as_ref().map(|latest| &latest.indicators);
        let indicators = kept(store, self.indicators.as_deref(), indicators).await?;
        let latest = Latest { v: 1, agent, tools, rules, indicators };
        if before.as_ref() != Some(&latest) {
            let bytes = serde_json::to_vec_pretty(&latest).context("write the pointer")?;
            store.renew(LATEST, bytes).await.context("renew the pointer")?;
        }
        if !shape.is_human() {
            return print(&output::record("deployed", &latest));
        }
        let line = |(folder, file): (&str, &OrderedFile)| {
            format!("{folder:<6} {}\n", printable(&file.key))
        };
        print(&latest.files().map(line).collect::<String>())
    }
}

/// Keeps what was given; where nothing was, what is there stays.
async fn kept(
    store: &dyn Store,
    given: Option<&[Given]>,
    there: Option<&Vec<OrderedFile>>,
) -> anyhow::Result<Vec<OrderedFile>> {
    let Some(given) = given else { return Ok(there.cloned().unwrap_or_default()) };
    let kept = artifacts::keep_given(store, given).await.map_err(anyhow::Error::msg);
    kept.context("put rules and indicators into the bucket")
}

/// Uploads a file that is what the sums beside it say.
async fn checked(
    store: &dyn Store,
    folder: &str,
    name: &str,
    path: &Path,
) -> anyhow::Result<OrderedFile> {
    let file = put(store, folder, name, path).await?;
    compare(path.parent().unwrap_or(Path::new("")), name, &file.sha256)?;
    Ok(file)
}

/// Uploads a file under its digest, and makes sure that it is what lies there.
///
/// # Errors
/// When it can not be read, or the bucket does not take it.
pub(super) async fn put(
    store: &dyn Store,
    folder: &str,
    name: &str,
    path: &Path,
) -> anyhow::Result<OrderedFile> {
    let shown = printable(&path.to_string_lossy());
    let sha256 = fetch::digest_of(path)?.map(|(_, sha256)| sha256);
    let sha256 = sha256.with_context(|| format!("{shown} is not there"))?;
    let key = artifacts::key(folder, &sha256, name);
    let put = store.upload(&key, path).await.with_context(|| format!("upload {shown}"))?;
    if put == Put::Exists {
        artifacts::held(store, &key, &sha256).await?;
    }
    Ok(OrderedFile { name: name.to_owned(), key, sha256 })
}

/// Compares a file with the sums of the folder that it is from, where that has any.
///
/// # Errors
/// When it is another.
pub(super) fn compare(folder: &Path, name: &str, sha256: &Sha256) -> anyhow::Result<()> {
    let path = folder.join("SHA256SUMS");
    let list = match fs::read(&path) {
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(()),
        list => list.with_context(|| format!("read {}", printable(&path.to_string_lossy())))?,
    };
    let sums = parse_sums(&list).map_err(anyhow::Error::msg)?;
    match sums.get(name) {
        Some(listed) if listed != sha256 => {
            let name = printable(name);
            anyhow::bail!("{name} is not the one that its SHA256SUMS names: {sha256}")
        }
        _ => Ok(()),
    }
}
