//! The account that the function works in: its ports, who calls, and what people have set.
//!
//! What can be once for many invocations is: clients and who calls, and the settings for a few minutes. Touches STS and the
//! settings file in its bucket. Nothing of it may keep an instance from being contained: where STS does not answer,
//! the function's own ARN says what account this is, and where the settings can not be read, the last that could be hold; without
//! any, a person is asked before anything is contained, since they would say who is exempt.

use std::{
    path::Path,
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use cleanroom_cloud::{Caller, Cloud};
use cleanroom_cloud_aws::{Connection, connect, connect_forensic};
use cleanroom_contract::Timestamp;
use cleanroom_controller::{
    alert::Source,
    case::{Clock as _, Policy, Run, Shared},
    execution::Failed,
    forensic::ForensicAccount,
    machine::{SystemClock, nonce},
    progress::Progress,
    settings::{self, File},
};
use serde_json::json;
use tokio::{
    sync::OnceCell,
    time::{Instant, timeout},
};

use super::{
    environment::{Environment, Place},
    log::{Level, Log},
};

/// For how many seconds settings hold that were read.
const FRESH: i64 = 180;

/// How long the settings file is waited for: a containment waits meanwhile.
const READING: Duration = Duration::from_secs(4);

/// How long it is waited for who calls.
const CALLING: Duration = Duration::from_secs(10);

/// The account.
#[derive(Debug)]
pub(crate) struct Account {
    pub(crate) environment: Environment,
    log: Log,
    cloud: OnceCell<Cloud>,
    caller: OnceCell<Caller>,
    settings: Mutex<Option<(Timestamp, Arc<File>)>>,
}

/// What is each invocation's own.
#[derive(Debug)]
pub(crate) struct Own {
    pub shared: Arc<Shared>,
    pub progress: Progress,
    /// When the execution was started, as far as can be told.
    pub started: Instant,
    /// The function's ARN, as Lambda tells it.
    pub function: String,
}

fn retryable(why: String) -> Failed {
    Failed { retryable: true, why }
}

impl Account {
    pub(crate) fn new(environment: Environment, log: Log) -> Self {
        let (cloud, caller) = (OnceCell::new(), OnceCell::new());
        Self { environment, log, cloud, caller, settings: Mutex::default() }
    }

    /// A run of one invocation.
    ///
    /// # Errors
    /// When there is no Region, no randomness, or nobody can tell which account this is.
    pub(crate) async fn run(&self, own: Own) -> Result<Run, Failed> {
        let cloud = self.cloud.get_or_try_init(|| self.connect(self.environment.bucket.clone()));
        let cloud = cloud.await?.clone();
        let (caller, set) = tokio::join!(self.caller(&cloud, &own.function), self.settings(&cloud));
        let (policy, file) = match set {
            Ok(file) => (file.policy(), file),
            Err(why) => {
                let why =
                    format!("{why}: until then a person is asked before anything is contained");
                self.log.line(Level::Error, "settings", json!({ "why": why }));
                (cautious(), Arc::default())
            }
        };
        Ok(Run {
            policy: self.policy(policy, &file),
            bounds: file.bounds.bounds(),
            clock: Arc::new(SystemClock),
            caller: caller?,
            nonce: nonce().map_err(|error| retryable(format!("draw a nonce: {error}")))?,
            shared: own.shared,
            started: own.started,
            progress: own.progress,
            // What Lambda has of a disk is lost with the process.
            spool: None,
            forensic: self.forensic(&file).await?,
            cloud,
        })
    }

    fn connection(&self, bucket: Option<String>) -> Connection {
        let topic = self.environment.topic.clone();
        Connection { bucket, topic, ..Connection::default() }
    }

    async fn connect(&self, bucket: Option<String>) -> Result<Cloud, Failed> {
        let connected = connect(&self.connection(bucket)).await;
        connected.map_err(|error| retryable(format!("connect to AWS: {error}")))
    }

    /// Who calls. Where STS does not answer, the function itself, until it does.
    async fn caller(&self, cloud: &Cloud, function: &str) -> Result<Caller, Failed> {
        let asked = async {
            match timeout(CALLING, cloud.inventory.caller()).await {
                Ok(caller) => caller.map_err(|error| error.to_string()),
                Err(_) => Err(format!("sts:GetCallerIdentity: no answer within {CALLING:?}")),
            }
        };
        match self.caller.get_or_try_init(|| asked).await {
            Ok(caller) => Ok(caller.clone()),
            Err(why) => {
                let caller = named_by(function);
                let caller = caller.ok_or_else(|| retryable(format!("ask who calls: {why}")))?;
                self.log.line(Level::Warn, "caller", json!({ "why": why, "assumed": function }));
                Ok(caller)
            }
        }
    }

    /// The settings that hold.
    async fn settings(&self, cloud: &Cloud) -> Result<Arc<File>, String> {
        let Some(place) = &self.environment.settings else { return Ok(Arc::default()) };
        let held = self.settings.lock().unwrap_or_else(PoisonError::into_inner).clone();
        let now = SystemClock.now();
        if let Some((read, file)) = &held
            && (0..FRESH).contains(&(now.seconds - read.seconds))
        {
            return Ok(file.clone());
        }
        match (timeout(READING, self.read(cloud, place)).await, held) {
            (Ok(Ok(file)), _) => {
                let file = Arc::new(file);
                let held = Some((now, file.clone()));
                *self.settings.lock().unwrap_or_else(PoisonError::into_inner) = held;
                Ok(file)
            }
            (failed, held) => {
                let why = match failed {
                    Ok(Err(why)) => why,
                    _ => format!("read the settings: no answer within {READING:?}"),
                };
                let (_, file) = held.ok_or_else(|| why.clone())?;
                let why = format!("{why}: the settings that were read before hold on");
                self.log.line(Level::Warn, "settings", json!({ "why": why }));
                Ok(file)
            }
        }
    }

    async fn read(&self, cloud: &Cloud, place: &Place) -> Result<File, String> {
        let named = format!("s3://{}/{}", place.bucket, place.key);
        let store = if self.environment.bucket.as_ref() == Some(&place.bucket) {
            cloud.store.clone()
        } else {
            let there = self.connect(Some(place.bucket.clone())).await;
            there.map_err(|failed| failed.why)?.store
        };
        let bytes = store.get(&place.key).await.map_err(|error| error.to_string())?;
        let bytes = bytes.ok_or_else(|| format!("read the settings: {named} is not there"))?;
        let text = Some(bytes).filter(|bytes| bytes.len() as u64 <= settings::MAX_BYTES);
        let text = text.and_then(|bytes| String::from_utf8(bytes).ok());
        let text = text.ok_or_else(|| format!("{named} is no text of at most 1 MiB"))?;
        // The files that [room] names lie on the machine that people type on: `deploy` has put them into the bucket.
        settings::parse(Path::new(&named), &text).map_err(|error| error.to_string())
    }

    fn policy(&self, set: Policy, file: &File) -> Policy {
        let environment = &self.environment;
        let mut room = file.room.policy();
        room.role = room.role.or_else(|| environment.room_role.clone());
        room.boundary = room.boundary.or_else(|| environment.room_boundary.clone());
        room.topic = environment.topic.clone();
        Policy { key: environment.key.clone().or_else(|| file.kms_key.clone()), room, ..set }
    }

    /// The forensic account, where one is set. Nothing is asked of it yet.
    async fn forensic(&self, file: &File) -> Result<Option<ForensicAccount>, Failed> {
        let Some(role) = &file.forensic_account else { return Ok(None) };
        let connection = self.connection(self.environment.bucket.clone());
        let cloud = connect_forensic(&connection, role).await;
        let cloud = cloud.map_err(|error| retryable(format!("connect to AWS: {error}")))?;
        Ok(ForensicAccount::of(role, file.forensic_key.clone(), &cloud))
    }
}

/// Who is exempt is not known: evidence is preserved, and a person is asked.
fn cautious() -> Policy {
    let mut policy = Policy::default();
    policy.brake.ask_after = Source::WORDS.map(str::to_owned).into();
    policy
}

/// The caller that a function's ARN tells: `arn:aws:lambda:us-east-1:123456789012:function:cleanroom-step`.
fn named_by(arn: &str) -> Option<Caller> {
    let parts: Vec<_> = arn.splitn(6, ':').collect();
    let ["arn", _, "lambda", region, account, _] = parts[..] else { return None };
    let good = account.len() == 12 && account.bytes().all(|b| b.is_ascii_digit());
    (good && !region.is_empty()).then(|| Caller {
        account: account.into(),
        arn: arn.to_owned(),
        region: region.to_owned(),
        clock_ahead: None,
    })
}

#[cfg(test)]
mod tests {
    use cleanroom_controller::{
        alert::Part,
        brake::{Counts, Verdict, judge},
    };

    use super::*;

    #[test]
    fn a_function_s_arn_tells_the_account() {
        let arn = "arn:aws:lambda:us-east-1:123456789012:function:cleanroom-step";
        let caller = named_by(arn).expect("it names an account");
        assert_eq!(
            (caller.account.as_str(), caller.region.as_str()),
            ("123456789012", "us-east-1")
        );
        for other in [
            "",
            "No header lambda-runtime-invoked-function-arn found.",
            "arn:aws:lambda:us-east-1:x:function:y",
        ] {
            assert!(named_by(other).is_none(), "{other}");
        }
    }

    #[test]
    fn without_settings_a_person_is_asked_whoever_says_so() {
        let address = std::net::Ipv4Addr::LOCALHOST.into();
        for source in [
            Source::Message { named: None },
            Source::GuardDuty {
                finding: "1".to_owned(),
                kind: "x".to_owned(),
                severity_tenths: 90,
            },
            Source::Alarm { name: "x".to_owned() },
            Source::SecurityHub { action: "x".to_owned() },
            Source::Trail { call: "x".to_owned(), address },
        ] {
            let verdict = judge(&source, Part::Actor, Counts::default(), &cautious().brake);
            assert!(matches!(verdict, Verdict::Ask { .. }), "{source:?}");
        }
    }
}
