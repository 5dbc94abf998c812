//! An account to work in: settings, ports, and who calls.

use std::{collections::BTreeMap, env, path::PathBuf, sync::Arc, time::Duration};

use anyhow::Context as _;
use cleanroom_cloud::{Caller, Cloud, Deployment};
use cleanroom_cloud_aws::{Connection, connect, connect_deployment, connect_forensic};
use cleanroom_controller::{
    case::{Policy, Run, Shared},
    claim,
    forensic::ForensicAccount,
    machine::{SystemClock, nonce},
    progress::Progress,
};
use tokio::time::{Instant, timeout};

use super::{Usage, say};
use crate::{
    cli::Global,
    output::Next,
    settings::{self, Env, File, Settings, Source},
};

/// How long the response stack's outputs are waited for where nothing else names the bucket.
const OUTPUTS: Duration = Duration::from_secs(4);

/// How long where only less is missing, since a containment waits meanwhile.
const LESSER_OUTPUTS: Duration = Duration::from_secs(1);

/// How long a session of an assumed role may take to be named for its case.
const NAMING: Duration = Duration::from_secs(4);

/// How long it is tried to learn who calls, and what a word names.
const PATIENCE: Duration = Duration::from_secs(30);

/// What a command begins with.
pub(super) struct Opening {
    /// The flags of every command.
    pub global: Global,
    /// When the process began.
    pub started: Instant,
}

/// An account, ready to work in.
pub(super) struct Session {
    /// What holds, and where it comes from.
    pub settings: Settings,
    /// The settings file.
    pub file: File,
    /// The ports.
    pub cloud: Cloud,
    /// Who calls.
    pub caller: Caller,
    /// The forensic account, where one is set.
    pub forensic: Option<ForensicAccount>,
    connection: Connection,
    program: Next,
    started: Instant,
}

impl Opening {
    /// The settings file alone.
    ///
    /// # Errors
    /// When a line of it is wrong.
    pub(super) fn file(&self) -> anyhow::Result<File> {
        let env = Env::read();
        let named = self.global.config.as_deref().or_else(|| env.config());
        Ok(match settings::find(named) {
            Some(path) => settings::read(&path)?,
            None => File::default(),
        })
    }

    /// Reads the settings, connects, and asks who calls. `session` names the session of an assumed role.
    ///
    /// # Errors
    /// When a setting is wrong, no Region is known, or nobody can tell who calls.
    pub(super) async fn open(
        &self,
        kms_key: Option<&str>,
        session: &str,
    ) -> anyhow::Result<Session> {
        let env = Env::read();
        let file = self.file()?;
        let flags = (&self.global, kms_key);
        let mut settings = settings::decide(flags, &env, &file, &BTreeMap::new());
        settings.check()?;
        let mut connection = self.connection(&settings, session);
        let mut cloud = connect(&connection).await.context("connect to AWS")?;
        let (caller, outputs) = tokio::join!(caller(&cloud), self.outputs(&cloud, &settings));
        let caller = caller.context("ask AWS who calls")?;
        match outputs {
            Ok(outputs) if !outputs.is_empty() => {
                settings = settings::decide(flags, &env, &file, &outputs);
                settings.check()?;
                let with_outputs = self.connection(&settings, session);
                if with_outputs != connection {
                    connection = with_outputs;
                    cloud = connect(&connection).await.context("connect to AWS")?;
                }
            }
            Ok(_) => {}
            Err(why) => say(&format!("note: {why}")),
        }
        let forensic = forensic(&settings, &connection).await?;
        if let Some(account) = forensic.as_ref().map(|f| &f.view.account)
            && *account == caller.account
        {
            let why = format!(
                "the forensic account is the one that is called, {account}: name a role of another"
            );
            return Err(Usage(why).into());
        }
        let program = program(&self.global);
        let started = self.started;
        Ok(Session { settings, file, cloud, caller, forensic, connection, program, started })
    }

    fn connection(&self, settings: &Settings, session: &str) -> Connection {
        let value = |value: &Option<settings::Value>| value.as_ref().map(|v| v.value.clone());
        // What comes from the environment is the SDK's own to read; and keys in the environment go before a
        // profile of the settings file, as the environment goes before the file.
        let profile = settings.profile.as_ref().filter(|profile| match profile.source {
            Source::Flag(_) => true,
            Source::Environment(_) | Source::Output(_) => false,
            Source::File(_) => env::var_os("AWS_ACCESS_KEY_ID").is_none(),
        });
        Connection {
            profile: profile.map(|v| v.value.clone()),
            region: value(&settings.region),
            assume_role: value(&settings.assume_role),
            session_name: session.to_owned(),
            bucket: value(&settings.bucket),
            topic: value(&settings.topic),
            call_log: self.global.call_log.clone(),
        }
    }

    /// What the response stack says of what nothing else does. A failure is worth a note.
    async fn outputs(
        &self,
        cloud: &Cloud,
        settings: &Settings,
    ) -> Result<BTreeMap<String, String>, String> {
        if !settings.wants_outputs() {
            return Ok(BTreeMap::new());
        }
        let stack = &self.global.stack;
        let bound = if settings.bucket.is_none() { OUTPUTS } else { LESSER_OUTPUTS };
        match timeout(bound, cloud.inventory.stack_outputs(stack)).await {
            Ok(Ok(outputs)) => Ok(outputs),
            Ok(Err(error)) => Err(format!("the response stack {stack} could not be read: {error}")),
            Err(_) => Err(format!("the response stack {stack} could not be read within {bound:?}")),
        }
    }
}

impl Session {
    /// A run in this account.
    ///
    /// # Errors
    /// When the machine has no randomness.
    pub(super) fn run(&self, policy: Policy, progress: Progress) -> anyhow::Result<Run> {
        let spool = spool();
        if spool.is_none() {
            say(
                "note: neither XDG_STATE_HOME nor HOME is set: what the bucket does not take is kept in memory only",
            );
        }
        Ok(Run {
            cloud: self.cloud.clone(),
            policy,
            bounds: self.file.bounds.bounds(),
            clock: Arc::new(SystemClock),
            caller: self.caller.clone(),
            nonce: nonce().context("draw a nonce")?,
            shared: Arc::new(Shared::new()),
            started: self.started,
            progress,
            spool,
            forensic: self.forensic.clone(),
        })
    }

    /// A run for commands on a case, which tell no progress.
    ///
    /// # Errors
    /// When the machine has no randomness.
    pub(super) fn quiet(&self) -> anyhow::Result<Run> {
        let key = self.settings.kms_key.as_ref().map(|key| key.value.clone());
        let all = cleanroom_controller::case::Step::ALL.into();
        let policy = settings::policy(all, &Default::default(), &self.file, key);
        self.run(policy, Progress::silent())
    }

    /// Whether a role is acted as, whose sessions are to be named for their cases.
    pub(super) fn assumes(&self) -> bool {
        self.connection.assume_role.is_some() || self.forensic.is_some()
    }

    /// The same run in a session that is named for the instance's case, so that CloudTrail shows which case did
    /// what. Where that does not come about in a few seconds, the session stays as it is.
    pub(super) async fn named_for(
        &self,
        run: &Run,
        instance: &cleanroom_contract::InstanceId,
    ) -> Run {
        let naming = async {
            let newest = claim::newest(&*run.cloud.store, instance, &run.caller).await;
            let case = claim::open_or_next(instance, newest.ok().flatten().as_ref());
            let session_name = case.to_string();
            let connection = Connection { session_name, ..self.connection.clone() };
            let cloud = connect(&connection).await.ok()?;
            let caller = cloud.inventory.caller().await.ok()?;
            let forensic = forensic(&self.settings, &connection).await.ok()?;
            Some(Run { cloud, caller, forensic, ..run.clone() })
        };
        timeout(NAMING, naming).await.ok().flatten().unwrap_or_else(|| run.clone())
    }

    /// The port that sets the response stack up.
    ///
    /// # Errors
    /// When no connection can be set up.
    pub(super) async fn deployment(&self) -> anyhow::Result<Arc<dyn Deployment>> {
        connect_deployment(&self.connection).await.context("connect to AWS")
    }

    /// The same account's ports, with another bucket.
    ///
    /// # Errors
    /// When no connection can be set up.
    pub(super) async fn with_bucket(&self, bucket: &str) -> anyhow::Result<Cloud> {
        let connection = Connection { bucket: Some(bucket.to_owned()), ..self.connection.clone() };
        connect(&connection).await.context("connect to AWS")
    }

    /// How the next command is typed.
    pub(super) fn next(&self) -> &Next {
        &self.program
    }
}

/// The ports of the forensic account, where one is set. Nothing is asked of it yet: that it can not be acted in keeps nobody
/// from being contained.
async fn forensic(
    settings: &Settings,
    connection: &Connection,
) -> anyhow::Result<Option<ForensicAccount>> {
    let Some(role) = &settings.forensic_account else { return Ok(None) };
    let cloud = connect_forensic(connection, &role.value).await.context("connect to AWS")?;
    let key = settings.forensic_key.as_ref().map(|key| key.value.clone());
    Ok(ForensicAccount::of(&role.value, key, &cloud))
}

/// Who calls. Throttling and lost answers are no reason not to contain.
async fn caller(cloud: &Cloud) -> cleanroom_cloud::Result<Caller> {
    persist(|| cloud.inventory.caller(), |error| error.is_transient()).await
}

/// Asks again as long as asking may help, for half a minute.
pub(super) async fn persist<T, E, F: Future<Output = Result<T, E>>>(
    mut ask: impl FnMut() -> F,
    transient: impl Fn(&E) -> bool,
) -> Result<T, E> {
    let ends = Instant::now() + PATIENCE;
    let mut pause = Duration::from_millis(100);
    loop {
        match ask().await {
            Err(error) if transient(&error) && Instant::now() + pause < ends => {
                tokio::time::sleep(pause).await;
                pause = (pause * 2).min(Duration::from_secs(2));
            }
            answer => return answer,
        }
    }
}

/// Where to keep what the bucket does not take.
fn spool() -> Option<PathBuf> {
    let folder = |name| env::var_os(name).map(PathBuf::from).filter(|path| path.is_absolute());
    let state = folder("XDG_STATE_HOME").or_else(|| Some(folder("HOME")?.join(".local/state")))?;
    Some(state.join("cleanroom/spool"))
}

/// The program with the flags by which the account was found.
fn program(global: &Global) -> Next {
    let config = global.config.as_ref().map(|path| path.to_string_lossy().into_owned());
    let stack = (global.stack != "cleanroom").then_some(&global.stack);
    let mut typed = "cleanroom".to_owned();
    for (flag, value) in [
        ("profile", global.profile.as_ref()),
        ("region", global.region.as_ref()),
        ("assume-role", global.assume_role.as_ref()),
        ("forensic-account", global.forensic_account.as_ref()),
        ("forensic-key", global.forensic_key.as_ref()),
        ("bucket", global.bucket.as_ref()),
        ("topic", global.topic.as_ref()),
        ("stack", stack),
        ("config", config.as_ref()),
    ] {
        if let Some(value) = value {
            typed.push_str(&format!(" --{flag} {}", quoted(value)));
        }
    }
    Next(typed)
}

/// A word as a shell takes it.
fn quoted(word: &str) -> String {
    let plain = |c: char| c.is_ascii_alphanumeric() || "-_.,:/@%+=".contains(c);
    if !word.is_empty() && word.chars().all(plain) {
        word.to_owned()
    } else {
        format!("'{}'", word.replace('\'', "'\\''"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_next_command_has_the_flags_of_this_one() {
        let global = Global {
            profile: Some("it's mine".to_owned()),
            region: Some("eu-west-1".to_owned()),
            stack: "cleanroom".to_owned(),
            ..Global::default()
        };
        let Next(typed) = program(&global);
        assert_eq!(typed, "cleanroom --profile 'it'\\''s mine' --region eu-west-1");
    }
}
