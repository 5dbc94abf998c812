//! What an account is ready for, and what a response would do: reads only.

use anyhow::Context as _;
use cleanroom_contract::printable;
use cleanroom_controller::{
    flow::{
        plan::{self, Plan, PlanError},
        preflight::{self, Check, Level},
    },
    progress::Progress,
};
use futures_util::{StreamExt as _, stream};

use super::{
    FAILED, PARTIAL, Shape, Usage, complain, print, room, say,
    session::{Opening, Session},
    targets,
};
use crate::{cli, output, settings};

/// How many plans are made at a time.
const AT_ONCE: usize = 8;

/// Checks that the account is ready.
pub(super) async fn preflight(opening: &Opening, shape: Shape) -> anyhow::Result<u8> {
    let session = opening.open(None, "cleanroom-preflight").await?;
    let actions: Vec<String> =
        cleanroom_cloud_aws::permissions::actions().into_iter().map(str::to_owned).collect();
    let key = session.settings.kms_key.as_ref().map(|key| key.value.as_str());
    let mut checks = set(&session);
    checks.extend(preflight::preflight(&session.cloud, &actions, key).await);
    let room = room::policy(&cli::Room::default(), &session.file, false)?;
    checks.extend(preflight::room(&session.cloud, &room).await);
    if let Some(forensic) = &session.forensic {
        checks.extend(preflight::forensic(&session.cloud, &forensic.view).await);
    }
    if shape.is_human() {
        print(&output::preflight(&checks, shape.palette, shape.width))?;
    } else {
        let lines = checks.iter().map(|check| output::record("check", check));
        print(&lines.collect::<String>())?;
    }
    Ok(if checks.iter().any(|check| check.level == Level::Missing) { PARTIAL } else { 0 })
}

/// Where each setting comes from.
fn set(session: &Session) -> Vec<Check> {
    let file = session.file.path.as_ref();
    let file = file.map_or("none".to_owned(), |path| path.to_string_lossy().into_owned());
    let check = |name: &str, level, found: String, fix: &str| Check {
        area: "settings",
        name: name.to_owned(),
        level,
        found,
        fix: fix.to_owned(),
    };
    let mut checks = vec![check("file", Level::Good, file, "")];
    checks.extend(session.settings.named().map(|(name, value)| match (name, value) {
        (_, Some(value)) => {
            check(name, Level::Good, format!("{} (from {})", value.value, value.source), "")
        }
        ("bucket", None) => check(
            name,
            Level::Missing,
            "not set: cases would be weak, and their log on this machine only".to_owned(),
            "--bucket, CLEANROOM_BUCKET, cleanroom.toml, or output EvidenceBucket of the response stack",
        ),
        ("topic", None) => check(
            name,
            Level::Weak,
            "not set: nobody would be told".to_owned(),
            "--topic, CLEANROOM_TOPIC, cleanroom.toml, or output NotifyTopic of the response stack",
        ),
        ("kms_key", None) => check(
            name,
            Level::Weak,
            "not set: snapshots stay under the keys that their volumes have".to_owned(),
            "CLEANROOM_KMS_KEY, cleanroom.toml, or output KmsKey of the response stack",
        ),
        ("forensic_account" | "forensic_key" | "assume_role", None) => check(name, Level::Good, "none".to_owned(), ""),
        (_, None) => check(name, Level::Good, "as the SDK finds it".to_owned(), ""),
    }));
    checks
}

/// Shows every change that a response would make.
pub(super) async fn plan(opening: &Opening, args: &cli::Plan, shape: Shape) -> anyhow::Result<u8> {
    let words = targets::words(&args.targets)?.words;
    let steps = args.steps.chosen().map_err(Usage)?;
    let session = opening.open(args.evidence.kms_key.as_deref(), "cleanroom-plan").await?;
    let key = session.settings.kms_key.as_ref().map(|key| key.value.clone());
    let mut policy = settings::policy(steps, &args.evidence, &session.file, key);
    policy.room = room::policy(&args.room, &session.file, args.steps.asks_for_a_room())?;
    policy.room.topic = session.settings.topic.as_ref().map(|topic| topic.value.clone());
    let run = session.run(policy, Progress::silent())?;
    let reason = args.targets.reason.as_deref();
    let plans = words.iter().map(|word| {
        let (session, run) = (&session, &run);
        async move {
            let instance = targets::look(session, word).await?;
            Ok::<_, PlanError>(plan::plan(run, &instance, reason).await?)
        }
    });
    let plans: Vec<_> = plans.collect();
    let plans: Vec<_> = stream::iter(plans).buffered(AT_ONCE).collect().await;
    let mut failed = false;
    for (word, planned) in words.iter().zip(plans) {
        match planned {
            Ok(plan) => show(&plan, shape)?,
            Err(PlanError::Find(error)) if args.targets.skip_bad => {
                say(&format!("skipped: {}", printable(&error.to_string())));
            }
            Err(error) => {
                failed = true;
                complain(&anyhow::Error::new(error).context(format!("plan for {word}")));
            }
        }
    }
    if shape.is_human() {
        print("nothing was changed\n")?;
    }
    Ok(if failed { FAILED } else { 0 })
}

fn show(plan: &Plan, shape: Shape) -> anyhow::Result<()> {
    let text = if shape.is_human() {
        format!("{}\n", output::plan(plan, shape.palette, shape.width))
    } else {
        output::record("plan", plan)
    };
    print(&text).context("show the plan")
}
