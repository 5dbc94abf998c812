//! Cleanroom's ports over the AWS SDK.
//!
//! Purpose: the only crate that knows the SDK. Each port of `cleanroom-cloud` is a thin translation here: one module a
//! service, one function a question, one call a change. What comes back is in the ports' words, what fails is a
//! [`CloudError`](cleanroom_cloud::CloudError); no type of the SDK leaves.
//!
//! Touches AWS, through clients that all pass the same gate (`calls`), which lets nothing out that the [table of
//! permissions](permissions) does not name. Reads the SDK's own settings (environment, profiles) when [`connect`] is
//! called. Never decides what is done, in what order, or what a failure means for a case.

mod balancing;
mod calls;
#[cfg(test)]
mod canned;
mod clients;
mod deployment;
mod ec2;
mod error;
mod facts;
mod hands;
mod iam;
mod inventory;
mod keys;
mod letters;
mod notices;
mod pages;
pub mod permissions;
mod posture;
mod quotas;
mod scaling;
mod stacks;
mod store;
mod trail;
mod workflows;

use std::{io, path::PathBuf, sync::Arc};

use async_trait::async_trait;
use aws_config::{
    AppName, BehaviorVersion, Region, profile::ProfileFileCredentialsProvider,
    provider_config::ProviderConfig, sts::AssumeRoleProvider,
};
use aws_credential_types::provider::SharedCredentialsProvider;
use cleanroom_cloud::{
    Answer, BucketPosture, Cloud, Deployment, Facts, Permission, Posture, Question, Quota, Result,
    TrailPosture,
};

use crate::{
    calls::Calls, clients::Clients, letters::SqsLetters, notices::SnsNotices, store::S3Store,
    workflows::SfnWorkflows,
};

/// What is needed to reach an account. What is left out comes from the environment and the profile, as with every
/// program on the SDK; `AWS_ENDPOINT_URL` and `AWS_ENDPOINT_URL_<SERVICE>` are honoured.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Connection {
    /// A profile of the shared configuration files.
    pub profile: Option<String>,
    /// The Region.
    pub region: Option<String>,
    /// The ARN of a role to act as, in a member account.
    pub assume_role: Option<String>,
    /// What the role's session is named, so that CloudTrail shows which case did what. Characters that STS does not take
    /// become `-`.
    pub session_name: String,
    /// The evidence bucket.
    pub bucket: Option<String>,
    /// The ARN of the team's topic.
    pub topic: Option<String>,
    /// A file that gets one line for each attempt of a call.
    pub call_log: Option<PathBuf>,
}

/// Why no connection could be set up.
#[derive(Debug, thiserror::Error)]
pub enum ConnectError {
    /// Neither flag, environment nor profile names a Region.
    #[error("no Region is configured: name one with --region, AWS_REGION or in the profile")]
    NoRegion,
    /// The call log can not be written.
    #[error("open the call log {path}")]
    CallLog {
        /// Where it was to be.
        path: PathBuf,
        /// Why not.
        source: io::Error,
    },
}

/// Sets up the ports. Nothing is asked of AWS yet, and credentials are looked for at the first call; only where no Region
/// is configured is an instance's own metadata asked for one.
///
/// # Errors
/// There is no Region, or the call log can not be opened.
pub async fn connect(connection: &Connection) -> std::result::Result<Cloud, ConnectError> {
    let calls = interceptor(connection, None)?;
    let shared = shared_config(connection).await?;
    let clients = Clients::new(&shared, calls, connection.bucket.clone(), connection.topic.clone());
    Ok(ports(clients))
}

/// The ports of another account, in which one acts as `role`: with the connection's own credentials, not with those of the
/// role of a member account, which must not lead there. The bucket is read as by the connection, so that the role needs no
/// right to it. Only the calls of [`permissions::FORENSIC`] go out.
///
/// # Errors
/// As [`connect`].
pub async fn connect_forensic(
    connection: &Connection,
    role: &str,
) -> std::result::Result<Cloud, ConnectError> {
    let (calls, limited) =
        (interceptor(connection, None)?, interceptor(connection, Some(permissions::FORENSIC))?);
    let own = shared_config(connection).await?;
    let there = Connection { assume_role: Some(role.to_owned()), ..connection.clone() };
    let shared = shared_config(&there).await?;
    let (bucket, topic) = (connection.bucket.clone(), connection.topic.clone());
    let clients = Clients::new(&shared, limited, bucket, topic).reading_as(&own, &calls);
    Ok(ports(clients))
}

/// The port that sets the response stack up.
///
/// # Errors
/// As [`connect`].
pub async fn connect_deployment(
    connection: &Connection,
) -> std::result::Result<Arc<dyn Deployment>, ConnectError> {
    let calls = interceptor(connection, None)?;
    let shared = shared_config(connection).await?;
    let clients = Arc::new(Clients::new(&shared, calls, connection.bucket.clone(), None));
    Ok(Arc::new(Aws { clients }))
}

fn interceptor(
    connection: &Connection,
    only: Option<&'static [&'static str]>,
) -> std::result::Result<Calls, ConnectError> {
    Calls::limited(connection.call_log.as_deref(), only).map_err(|source| ConnectError::CallLog {
        path: connection.call_log.clone().unwrap_or_default(),
        source,
    })
}

/// All ports over some clients.
fn ports(clients: Clients) -> Cloud {
    let clients = Arc::new(clients);
    let aws = Arc::new(Aws { clients: Arc::clone(&clients) });
    Cloud {
        inventory: aws.clone(),
        hands: aws.clone(),
        facts: aws.clone(),
        posture: aws,
        store: Arc::new(S3Store::new(Arc::clone(&clients))),
        notices: Arc::new(SnsNotices::new(Arc::clone(&clients))),
        workflows: Arc::new(SfnWorkflows::new(Arc::clone(&clients))),
        letters: Arc::new(SqsLetters::new(clients)),
    }
}

/// What all clients share: Region, credentials, connections. Its time-outs and retries are those of getting credentials.
async fn shared_config(
    connection: &Connection,
) -> std::result::Result<aws_config::SdkConfig, ConnectError> {
    let mut loader = aws_config::defaults(BehaviorVersion::latest())
        .timeout_config(clients::timeouts(10, 30))
        .retry_config(clients::retries());
    if let Ok(name) = AppName::new("cleanroom") {
        loader = loader.app_name(name);
    }
    let profile = connection.profile.as_deref().filter(|name| !name.is_empty());
    if let Some(profile) = profile {
        loader = loader.profile_name(profile);
    }
    if let Some(region) = connection.region.clone().filter(|name| !name.is_empty()) {
        loader = loader.region(Region::new(region));
    }
    let mut shared = loader.load().await;
    let region = shared.region().filter(|region| !region.as_ref().is_empty());
    let region = region.cloned().ok_or(ConnectError::NoRegion)?;
    if let Some(profile) = profile {
        let provider = SharedCredentialsProvider::new(named_profile(profile, region));
        shared = shared.into_builder().credentials_provider(provider).build();
    }
    let Some(role) = &connection.assume_role else { return Ok(shared) };
    let provider = AssumeRoleProvider::builder(role)
        .session_name(session_name(&connection.session_name))
        .configure(&shared)
        .build()
        .await;
    let provider = SharedCredentialsProvider::new(provider);
    Ok(shared.into_builder().credentials_provider(provider).build())
}

/// Credentials of this profile and of nothing else. The SDK's own chain asks the environment first: keys that were
/// forgotten there would act, in another account perhaps, although somebody named a profile.
fn named_profile(profile: &str, region: Region) -> ProfileFileCredentialsProvider {
    let settings = ProviderConfig::without_region().with_region(Some(region));
    ProfileFileCredentialsProvider::builder().configure(&settings).profile_name(profile).build()
}

/// A name that STS takes for a session (`AssumeRole`: 2 to 64 characters of `\w+=,.@-`).
fn session_name(wanted: &str) -> String {
    let mut name: String = wanted
        .chars()
        .map(|c| if c.is_ascii_alphanumeric() || "_+=,.@-".contains(c) { c } else { '-' })
        .take(64)
        .collect();
    if name.len() < 2 {
        name.insert_str(0, "cleanroom-");
    }
    name
}

/// The ports that ask and act.
#[derive(Debug)]
struct Aws {
    clients: Arc<Clients>,
}

#[async_trait]
impl Facts for Aws {
    async fn ask(&self, question: &Question) -> Result<Vec<Answer>> {
        facts::ask(&self.clients, question).await
    }
}

#[async_trait]
impl Posture for Aws {
    async fn bucket(&self) -> Result<BucketPosture> {
        posture::bucket(&self.clients).await
    }

    async fn topic(&self) -> Result<Option<String>> {
        posture::topic(&self.clients).await
    }

    async fn permissions(&self, actions: &[String]) -> Result<Vec<Permission>> {
        posture::permissions(&self.clients, actions).await
    }

    async fn trails(&self) -> Result<Vec<TrailPosture>> {
        posture::trails(&self.clients).await
    }

    async fn guardduty(&self) -> Result<bool> {
        posture::guardduty(&self.clients).await
    }

    async fn flow_logs(&self) -> Result<Vec<(String, bool)>> {
        posture::flow_logs(&self.clients).await
    }

    async fn quotas(&self) -> Result<Vec<Quota>> {
        posture::quotas(&self.clients).await
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_session_s_name_is_one_that_sts_takes() {
        let table = [
            ("case-20260101-web", "case-20260101-web"),
            ("fall für/alle", "fall-f-r-alle"),
            ("", "cleanroom-"),
            ("x", "cleanroom-x"),
        ];
        for (wanted, expected) in table {
            assert_eq!(session_name(wanted), expected);
        }
        assert_eq!(session_name(&"a".repeat(100)).len(), 64);
        assert_eq!(session_name(&"ü".repeat(100)), "-".repeat(64));
    }
}
