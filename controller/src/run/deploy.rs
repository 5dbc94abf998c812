//! Sets the response stack up, and puts the programs of a clean room into the evidence bucket.
//!
//! Everything that can be wrong on this machine is found before AWS is called; everything that can be wrong in the account
//! before anything is changed. Until a person says yes, all that is made is the artifacts bucket and what lies in it.

mod programs;

use std::{
    collections::BTreeMap,
    fs::File,
    io::Read as _,
    path::{Path, PathBuf},
    time::Duration,
};

use anyhow::Context as _;
use cleanroom_cloud::{BucketState, Cloud, Stack, StackEvent};
use cleanroom_contract::{Sha256, printable};
use cleanroom_controller::{
    flow::{
        deploy::{
            self as flow, MACHINE, MANY, PROGRAM, Parameter, RETAINED, Ready, Site, Standing,
            TEMPLATE,
        },
        fetch,
    },
    journal::digest,
    machine::nonce,
    room::LATEST,
    steps::clean_room::artifacts::{keep, key},
};

use self::programs::Programs;
use super::{
    FAILED, Shape, Usage, account,
    hint::Hint,
    print, say,
    session::{Opening, Session},
    signals::{Ended, Signals},
};
use crate::{cli::Deploy, output, settings, terminal};

/// The pause between two looks at a stack.
const POLL: Duration = Duration::from_secs(2);

/// What comes from this machine: read and checked.
struct Local {
    program: PathBuf,
    sha256: Sha256,
    settings: Option<Vec<u8>>,
    template: Vec<Parameter>,
    chosen: BTreeMap<String, String>,
}

/// Deploys, in whole or in part, or deletes.
pub(super) async fn deploy(opening: &Opening, args: &Deploy, shape: Shape) -> anyhow::Result<u8> {
    let Some(folder) = args.artifacts.as_ref().filter(|_| !args.delete) else {
        return delete(opening, args, shape).await;
    };
    let set = args.settings.as_deref().map(functions).transpose()?;
    let programs = Programs::find(folder, args, set.as_ref().map(|(file, _)| file))?;
    if args.agent_only {
        let session = opening.open(None, "cleanroom-deploy").await?;
        programs.place(&*session.cloud.store, shape).await?;
        return Ok(0);
    }
    let local = local(folder, args, set.map(|(_, bytes)| bytes))?;
    if !args.yes && !terminal::can_ask() {
        let why = "there is no terminal to ask on: give --yes; nothing was changed";
        return Err(Usage(why.to_owned()).into());
    }
    let session = opening.open(None, "cleanroom-deploy").await?;
    let stack = match set_up(opening, &session, (args, &local), shape).await? {
        Ok(stack) => stack,
        Err(status) => return Ok(status),
    };
    let evidence = stack.outputs.get("EvidenceBucket");
    let evidence = evidence.with_context(|| format!("{} names no EvidenceBucket", stack.name))?;
    if let Some(other) = session.settings.bucket.as_ref().filter(|b| b.value != *evidence) {
        say(&format!(
            "note: the response stack's evidence bucket is {evidence}, and {} says {}: what people start goes there",
            other.source, other.value
        ));
    }
    let with_evidence = session.with_bucket(evidence).await?;
    programs.place(&*with_evidence.store, shape).await?;
    let status = account::preflight(opening, shape).await?;
    tell_policy(&session, args, shape)?;
    Ok(status)
}

/// The functions' settings, read and checked, and the bytes that are uploaded.
fn functions(path: &Path) -> anyhow::Result<(settings::File, Vec<u8>)> {
    let file = settings::read(path)?;
    let shown = printable(&path.to_string_lossy());
    let not_there = [
        (
            file.room.template.is_some(),
            "template in [room]",
            "make rooms from the template that ships",
        ),
        (file.forensic_account.is_some(), "forensic_account", "have no rights in another account"),
    ];
    if let Some((_, what, why)) = not_there.iter().find(|(set, ..)| *set) {
        return Err(Usage(format!(
            "{shown}: {what} is for people who respond at a terminal; functions {why}: leave it out of what they are set by"
        ))
        .into());
    }
    let bytes = std::fs::read(path).with_context(|| format!("read {shown}"))?;
    Ok((file, bytes))
}

/// Reads what comes from this machine.
fn local(folder: &Path, args: &Deploy, settings: Option<Vec<u8>>) -> anyhow::Result<Local> {
    let program = folder.join(PROGRAM);
    let shown = printable(&program.to_string_lossy());
    let mut magic = [0; 4];
    let opened = File::open(&program).and_then(|mut file| file.read_exact(&mut magic));
    if let Err(error) = opened {
        return Err(Usage(format!(
            "read {shown}: {error}: build it with cargo package-release, or give --agent-only"
        ))
        .into());
    }
    if magic != *b"PK\x03\x04" {
        return Err(Usage(format!("{shown} is no zip")).into());
    }
    let (_, sha256) = fetch::digest_of(&program)?.with_context(|| format!("{shown} is gone"))?;
    programs::compare(folder, PROGRAM, &sha256)?;
    let template = flow::parameters(TEMPLATE);
    let mut chosen = BTreeMap::new();
    for (name, value) in &args.parameters {
        if chosen.insert(name.clone(), value.clone()).is_some() {
            return Err(Usage(format!("--parameter {name} is given twice")).into());
        }
    }
    flow::check_chosen(&template, &chosen).map_err(Usage)?;
    Ok(Local { program, sha256, settings, template, chosen })
}

/// Where the stack is set up, with this artifacts bucket.
async fn site(session: &Session, opening: &Opening, bucket: &str) -> anyhow::Result<Site> {
    let Cloud { inventory, hands, .. } = session.cloud.clone();
    Ok(Site {
        inventory,
        hands,
        deployment: session.deployment().await?,
        artifacts: session.with_bucket(bucket).await?.store,
        account: session.caller.account.clone(),
        stack: opening.global.stack.clone(),
        nonce: nonce().context("draw a nonce")?,
        poll: POLL,
    })
}

/// What this account's bucket of a kind is called. Names of buckets are the world's: nobody else's account has this one,
/// and who took the name before is found out by its owner.
fn bucket_name(session: &Session, kind: &str) -> String {
    format!("cleanroom-{kind}-{}-{}", session.caller.account, session.caller.region)
}

/// Brings the stack to what its template and the parameters say. The exit status where a person says no, or ends it.
async fn set_up(
    opening: &Opening,
    session: &Session,
    (args, local): (&Deploy, &Local),
    shape: Shape,
) -> anyhow::Result<Result<Stack, u8>> {
    let own = bucket_name(session, "artifacts");
    let mut site = site(session, opening, &own).await?;
    let Some(before) = settled(&site, args, shape).await? else { return Ok(Err(FAILED)) };
    let had = before.as_ref().map(|stack| stack.parameters.clone()).unwrap_or_default();
    let bucket = args.artifacts_bucket.as_ref().or_else(|| had.get("ArtifactsBucket"));
    let bucket = bucket.cloned().unwrap_or_else(|| own.clone());
    let elsewhere = had.get("ArtifactsBucket").is_some_and(|had| *had != bucket);
    if elsewhere
        && local.settings.is_none()
        && had.get("SettingsKey").is_some_and(|k| !k.is_empty())
    {
        let why = "the settings lie in the artifacts bucket, and another is named: give --settings";
        return Err(Usage(why.to_owned()).into());
    }
    site.artifacts = session.with_bucket(&bucket).await?.store;
    let parameters = decided(session, &site, local, &had)?;
    if before.is_none() {
        refuse_taken(&site, &parameters).await?;
    }
    let template = upload(&site, local, bucket == own).await?;
    let ready = flow::propose(&site, before.as_ref(), &template, parameters).await?;
    let Some(ready) = ready else {
        say(&format!("the stack {} is as it should be: nothing was changed", site.stack));
        return Ok(before.ok_or(FAILED));
    };
    show(&ready, shape)?;
    if !args.yes && !terminal::ask(&format!("Change the stack {} so?", site.stack)) {
        flow::discard(&site, &ready.id).await?;
        say("nothing was changed");
        return Ok(Err(FAILED));
    }
    carry_out(session, &site, &ready, shape).await
}

/// The stack at rest: what an interrupted run began has ended, and a creation that failed is deleted, where a person says
/// so. None where a person says no; inside, none where there is no stack.
async fn settled(
    site: &Site,
    args: &Deploy,
    shape: Shape,
) -> anyhow::Result<Option<Option<Stack>>> {
    let mut tell = |event: &StackEvent| hear(event, shape);
    let found = flow::settle(site, &mut tell).await?;
    let Some(failed) =
        found.as_ref().filter(|_| flow::standing(found.as_ref()) == Standing::Failed)
    else {
        // One that has a change set and nothing else has no parameters either.
        return Ok(Some(found.filter(|stack| flow::standing(Some(stack)) == Standing::Stands)));
    };
    let why = flow::why_failed(site, failed).await?;
    say(&format!("the stack {} is {}: {why}", failed.name, failed.status));
    let question = format!("Delete what is left of the stack {}, and make it anew?", failed.name);
    if !args.yes && !terminal::ask(&question) {
        say("nothing was changed");
        return Ok(None);
    }
    flow::delete(site, failed, &mut tell).await?;
    Ok(Some(None))
}

/// Every parameter.
fn decided(
    session: &Session,
    site: &Site,
    local: &Local,
    had: &BTreeMap<String, String>,
) -> anyhow::Result<BTreeMap<String, String>> {
    let named = |name: &str, value: String| (name.to_owned(), value);
    let of = |folder, name, text: &str| key(folder, &digest(text.as_bytes()), name);
    let mut own = BTreeMap::from([
        named("ArtifactsBucket", site.artifacts.bucket().to_owned()),
        named("ProgramKey", key("program", &local.sha256, PROGRAM)),
        named("MachineKey", of("machine", "response.asl.json", MACHINE)),
        named("ManyKey", of("machine", "response-many.asl.json", MANY)),
    ]);
    if let Some(settings) = &local.settings {
        own.insert("SettingsKey".to_owned(), key("settings", &digest(settings), "cleanroom.toml"));
    }
    let configured = session.settings.bucket.as_ref().map(|bucket| bucket.value.clone());
    let evidence = configured.unwrap_or_else(|| bucket_name(session, "evidence"));
    let fallback = BTreeMap::from([named("Bucket", evidence)]);
    let sources = [&own, &local.chosen, had, &fallback];
    Ok(flow::decide_parameters(&local.template, sources).map_err(Usage)?)
}

/// A new stack can not make an evidence bucket that is there: CloudFormation would find out after everything else.
async fn refuse_taken(site: &Site, parameters: &BTreeMap<String, String>) -> anyhow::Result<()> {
    let of = |name: &str| parameters.get(name).map(String::as_str).unwrap_or_default();
    let bucket = of("Bucket");
    if of("MakeBucket") != "true" {
        return Ok(());
    }
    let state = site.deployment.bucket(bucket, &site.account).await;
    let state = state.with_context(|| {
        format!("see whether the evidence bucket {bucket} is there already (--parameter Bucket=… names another)")
    })?;
    if state == BucketState::Absent {
        return Ok(());
    }
    Err(Usage(format!(
        "the evidence bucket {bucket} is there already: give --parameter MakeBucket=false to use it as it is (and --parameter Key=ARN, \
         the key that it encrypts with), or --parameter Bucket=… for a new one; nothing was changed"
    ))
    .into())
}

/// Puts everything that the stack is made from into the artifacts bucket, under its digests. The template's key.
async fn upload(site: &Site, local: &Local, ours: bool) -> anyhow::Result<String> {
    let bucket = site.artifacts.bucket();
    if flow::ensure_artifacts(site, ours).await? {
        say(&format!("made the artifacts bucket {bucket}"));
    }
    let store = &*site.artifacts;
    let placed = programs::put(store, "program", PROGRAM, &local.program).await?;
    if placed.sha256 != local.sha256 {
        anyhow::bail!("{PROGRAM} has changed since it was read: deploy again");
    }
    let texts = [
        ("machine", "response.asl.json", MACHINE.as_bytes()),
        ("machine", "response-many.asl.json", MANY.as_bytes()),
        ("template", "response.yaml", TEMPLATE.as_bytes()),
    ];
    let settings = local.settings.as_deref().map(|bytes| ("settings", "cleanroom.toml", bytes));
    for (folder, name, bytes) in texts.into_iter().chain(settings) {
        let kept = keep(store, folder, name, bytes).await;
        kept.with_context(|| format!("put {name} into the artifacts bucket {bucket}"))?;
    }
    Ok(key("template", &digest(TEMPLATE.as_bytes()), "response.yaml"))
}

fn show(ready: &Ready, shape: Shape) -> anyhow::Result<()> {
    if shape.is_human() {
        return print(&output::changes(&ready.changes, shape.palette, shape.width));
    }
    let lines = ready.changes.iter().map(|change| output::record("change", change));
    print(&lines.collect::<String>())
}

/// What happens to a stack, on stderr for people.
fn hear(event: &StackEvent, shape: Shape) {
    if shape.is_human() {
        say(&output::stack_event(event));
    } else {
        // Who has gone away ends the output, not the work.
        drop(print(&output::record("stack_event", event)));
    }
}

async fn carry_out(
    session: &Session,
    site: &Site,
    ready: &Ready,
    shape: Shape,
) -> anyhow::Result<Result<Stack, u8>> {
    let run = session.quiet()?;
    let mut signals = Signals::take().context("take over signals")?;
    let mut tell = |event: &StackEvent| hear(event, shape);
    let work = flow::apply(site, ready, &mut tell);
    let stack = match signals.guard(&run.shared, work, say).await {
        Ended::Done(stack) => stack?,
        Ended::Interrupted(status) => {
            say("CloudFormation goes on; deploy again waits for it, and goes on");
            return Ok(Err(status));
        }
    };
    let fields =
        serde_json::json!({ "name": stack.name, "status": stack.status, "outputs": stack.outputs });
    if shape.is_human() {
        say(&format!("the stack {} is {}", stack.name, stack.status));
    } else {
        print(&output::record("stack", &fields))?;
    }
    Ok(Ok(stack))
}

/// The policy that reserves tags, and whom it exempts.
fn tell_policy(session: &Session, args: &Deploy, shape: Shape) -> anyhow::Result<()> {
    let partition = session.caller.arn.split(':').nth(1).unwrap_or("aws");
    let mut exempt = args.exempt.clone();
    exempt.extend(session.settings.assume_role.as_ref().map(|role| role.value.clone()));
    let policy = flow::reserve_tags(partition, session.caller.account.as_str(), &exempt);
    if !shape.is_human() {
        return print(&output::record(
            "service_control_policy",
            &serde_json::json!({ "policy": policy }),
        ));
    }
    say(
        "Attach this service control policy to the account, so that nobody else writes cleanroom:* tags. It exempts the stack's roles, \
         that of CloudFormation for rooms among them, and the roles of --exempt: name those in which people respond and release, or \
         they can not.",
    );
    let text = serde_json::to_string_pretty(&policy).context("write the policy")?;
    print(&format!("{text}\n"))
}

/// Deletes the stack. Evidence stays, and is read back.
async fn delete(opening: &Opening, args: &Deploy, shape: Shape) -> anyhow::Result<u8> {
    let session = opening.open(None, "cleanroom-deploy").await?;
    let site = site(&session, opening, &bucket_name(&session, "artifacts")).await?;
    let mut tell = |event: &StackEvent| hear(event, shape);
    let Some(stack) = flow::settle(&site, &mut tell).await? else {
        say(&format!("there is no stack {}: nothing was deleted", site.stack));
        return Ok(0);
    };
    for (_, what) in RETAINED {
        say(&format!("stays: {what}"));
    }
    if !args.yes {
        if !terminal::can_ask() {
            let why = "there is no terminal to ask on: give --yes; nothing was deleted";
            return Err(Usage(why.to_owned()).into());
        }
        let question = format!(
            "Delete the stack {}? Alerts are no longer answered, executions under way end, and what is contained stays so. Tear clean rooms \
             down first: a role of this stack deletes theirs.",
            stack.name
        );
        if !terminal::ask(&question) {
            say("nothing was deleted");
            return Ok(FAILED);
        }
    }
    let run = session.quiet()?;
    let mut signals = Signals::take().context("take over signals")?;
    let work = flow::delete(&site, &stack, &mut tell);
    match signals.guard(&run.shared, work, say).await {
        Ended::Done(deleted) => deleted?,
        Ended::Interrupted(status) => {
            say("CloudFormation goes on deleting; deploy --delete again waits for it");
            return Ok(status);
        }
    }
    read_back(&session, &stack, shape).await
}

/// Whether the evidence is there after its stack is gone, and how the next stack finds it.
async fn read_back(session: &Session, stack: &Stack, shape: Shape) -> anyhow::Result<u8> {
    let output = |name: &str| stack.outputs.get(name);
    // It has outputs once it was made; before, there was no evidence.
    let Some(bucket) = output("EvidenceBucket") else {
        say(&format!("the stack {} is deleted; it was never made whole", stack.name));
        return Ok(0);
    };
    let store = session.with_bucket(bucket).await?.store;
    let read = async {
        let folders = store.list("", true).await?;
        // With an object, its key too.
        store.get(LATEST).await.map(|object| (folders, object.is_some()))
    };
    let (folders, decrypted) = read.await.context(Hint(format!(
        "the stack is gone, and its evidence bucket {bucket} can not be read by this caller: look at it at once"
    )))?;
    let artifacts = stack.parameters.get("ArtifactsBucket");
    let fields = serde_json::json!({
        "stack": stack.name, "bucket": bucket, "folders": folders, "decrypted": decrypted,
        "key": output("KmsKey"), "artifacts_bucket": artifacts,
        "retained": RETAINED.map(|(_, what)| what),
    });
    if !shape.is_human() {
        print(&output::record("stack_deleted", &fields))?;
        return Ok(0);
    }
    let key = output("KmsKey").map(String::as_str).unwrap_or_default();
    let how = if decrypted { "an object of it was read" } else { "it was listed" };
    let mut text = String::new();
    let mut line = |name: &str, what: &str| {
        text.push_str(&output::field(name, &printable(what), shape.width));
    };
    line("stays", &format!("the evidence bucket {bucket}: {how}; below it {}", folders.join(" ")));
    line("stays", &format!("its key {key}, without which nobody can read it"));
    line("stays", "the logs of functions and state machines, and their key");
    if let Some(artifacts) = artifacts {
        line("stays", &format!("the artifacts bucket {artifacts}, which holds no evidence"));
    }
    line(
        "again",
        &format!(
            "--parameter Bucket={bucket} --parameter MakeBucket=false --parameter Key={key}, for a stack with this evidence"
        ),
    );
    print(&text)?;
    Ok(0)
}
