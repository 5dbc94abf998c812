//! What a clean room asks of AWS.
//!
//! Purpose: the only crate of the agent that knows the SDK. Small things to ask and to tell ([`Store`], [`Topic`],
//! [`Aws`], [`metadata`]), each in the agent's own words; what fails is a [`CloudError`]; no type of the SDK leaves.
//!
//! Touches the evidence bucket, where it creates and never overwrites or deletes an object, the team's topic, the room's
//! stack and the task that waits for it. Never decides what is published, nor what a failure means for a scan.
//!
//! Clients keep their connections with the runtime that first used them: each runtime connects for itself.

mod error;
pub mod metadata;
mod store;
mod tasks;
mod topic;
mod upload;

use std::time::Duration;

use aws_config::{AppName, BehaviorVersion, Region, SdkConfig};
use aws_credential_types::{Credentials, provider::SharedCredentialsProvider};
use aws_smithy_runtime_api::{
    box_error::BoxError,
    client::{
        interceptors::{Intercept, context::BeforeTransmitInterceptorContextMut},
        runtime_components::RuntimeComponents,
    },
};
use aws_smithy_types::{config_bag::ConfigBag, retry::RetryConfig, timeout::TimeoutConfig};

pub use crate::{
    error::{CloudError, ErrorKind, Result},
    store::{Put, Store},
    topic::{Notice, Topic},
    upload::{Source, UploadError},
};

/// How this program names itself to AWS, by which CloudTrail shows whose call it was.
const PRODUCT: &str = concat!("cleanroom-agent/", env!("CARGO_PKG_VERSION"));

/// Services in one Region, with the room's credentials.
#[derive(Clone, Debug)]
pub struct Aws {
    shared: SdkConfig,
    own_s3_endpoint: bool,
    cloudformation: aws_sdk_cloudformation::Client,
    sfn: aws_sdk_sfn::Client,
}

/// Neither the work order, the environment nor the instance names a Region.
#[derive(Debug, thiserror::Error)]
#[error("no Region is configured: set AWS_REGION")]
pub struct NoRegion;

/// The configuration of a service's client. Each service has types of its own for the same thing, which only a
/// macro can span.
macro_rules! config {
    ($sdk:ident, $shared:expr, $timeouts:expr) => {
        $sdk::config::Builder::from($shared)
            .timeout_config($timeouts)
            .retry_config($crate::retries())
            .interceptor($crate::Product)
    };
}

impl Aws {
    /// Sets up the clients. Nothing is asked of AWS yet, and credentials are looked for at the first call; only where
    /// no Region is known is the instance's metadata asked for one. `AWS_ENDPOINT_URL` and `AWS_ENDPOINT_URL_<SERVICE>`
    /// are honoured.
    ///
    /// # Errors
    /// There is no Region.
    pub async fn connect(region: Option<&str>) -> std::result::Result<Self, NoRegion> {
        let mut loader = aws_config::defaults(BehaviorVersion::latest())
            .timeout_config(timeouts(10, 30))
            .retry_config(retries());
        if let Ok(name) = AppName::new("cleanroom-agent") {
            loader = loader.app_name(name);
        }
        if let Some(region) = region {
            loader = loader.region(Region::new(region.to_owned()));
        }
        let shared = loader.load().await;
        if shared.region().is_none_or(|region| region.as_ref().is_empty()) {
            return Err(NoRegion);
        }
        Ok(Self::new(shared))
    }

    /// Sets up the clients for an emulator: one address, and keys that open nothing else. The environment is not asked.
    #[must_use]
    pub fn emulated(endpoint: &str, region: &str, (key, secret): (&str, &str)) -> Self {
        let keys = Credentials::new(key, secret, None, None, "emulated");
        let shared = SdkConfig::builder()
            .behavior_version(BehaviorVersion::latest())
            .region(Region::new(region.to_owned()))
            .credentials_provider(SharedCredentialsProvider::new(keys))
            .endpoint_url(endpoint)
            .build();
        Self::new(shared)
    }

    fn new(shared: SdkConfig) -> Self {
        let quick = || timeouts(10, 30);
        Self {
            own_s3_endpoint: has_own_s3_endpoint(&shared),
            cloudformation: aws_sdk_cloudformation::Client::from_conf(
                config!(aws_sdk_cloudformation, &shared, quick()).build(),
            ),
            sfn: aws_sdk_sfn::Client::from_conf(config!(aws_sdk_sfn, &shared, quick()).build()),
            shared,
        }
    }

    /// A bucket, with the time that parts of many MiB take on a busy network.
    #[must_use]
    pub fn store(&self, bucket: &str) -> Store {
        self.store_within(bucket, timeouts(60, 240))
    }

    /// A bucket, for small objects that are soon tried again.
    #[must_use]
    pub fn brief_store(&self, bucket: &str) -> Store {
        self.store_within(bucket, timeouts(10, 30))
    }

    fn store_within(&self, bucket: &str, timeouts: TimeoutConfig) -> Store {
        let config = config!(aws_sdk_s3, &self.shared, timeouts)
            // An emulator is one host without a name for each bucket.
            .force_path_style(self.own_s3_endpoint)
            .build();
        Store::new(aws_sdk_s3::Client::from_conf(config), bucket)
    }

    /// A topic, by its ARN.
    #[must_use]
    pub fn topic(&self, arn: &str) -> Topic {
        let config = config!(aws_sdk_sns, &self.shared, timeouts(10, 30));
        // A topic answers in its own Region only.
        let config = match arn.split(':').nth(3).filter(|region| !region.is_empty()) {
            Some(region) => config.region(Region::new(region.to_owned())),
            None => config,
        };
        Topic::new(aws_sdk_sns::Client::from_conf(config.build()), arn)
    }
}

/// Retries of calls that may be repeated, which all of these may: five attempts, with pauses from a tenth of a second
/// to three.
pub(crate) fn retries() -> RetryConfig {
    RetryConfig::standard()
        .with_max_attempts(5)
        .with_initial_backoff(Duration::from_millis(100))
        .with_max_backoff(Duration::from_secs(3))
}

/// Time-outs of one attempt and of all of them, in seconds.
pub(crate) fn timeouts(attempt: u64, operation: u64) -> TimeoutConfig {
    TimeoutConfig::builder()
        .connect_timeout(Duration::from_secs(3))
        .operation_attempt_timeout(Duration::from_secs(attempt))
        .operation_timeout(Duration::from_secs(operation))
        .build()
}

/// Whether S3 is reached under an address of the user's own (`AWS_ENDPOINT_URL`, `AWS_ENDPOINT_URL_S3`, or the profile).
fn has_own_s3_endpoint(shared: &SdkConfig) -> bool {
    let key = aws_types::service_config::ServiceConfigKey::builder()
        .service_id("S3")
        .env("AWS_ENDPOINT_URL")
        .profile("endpoint_url")
        .build();
    let for_s3 = match (shared.service_config(), key) {
        (Some(config), Ok(key)) => config.load_config(key),
        _ => None,
    };
    for_s3.is_some() || shared.endpoint_url().is_some()
}

/// Puts this program's name into the user agent.
#[derive(Debug)]
pub(crate) struct Product;

impl Intercept for Product {
    fn name(&self) -> &'static str {
        "CleanroomAgent"
    }

    fn modify_before_signing(
        &self,
        context: &mut BeforeTransmitInterceptorContextMut<'_>,
        _: &RuntimeComponents,
        _: &mut ConfigBag,
    ) -> std::result::Result<(), BoxError> {
        // The SDK sends the same text under two names, and which one CloudTrail shows is up to the service.
        let headers = context.request_mut().headers_mut();
        for header in ["user-agent", "x-amz-user-agent"] {
            let agent = match headers.get(header) {
                Some(sdk) => format!("{PRODUCT} {sdk}"),
                None => PRODUCT.to_owned(),
            };
            headers.insert(header, agent);
        }
        Ok(())
    }
}

#[cfg(test)]
pub(crate) mod tests {
    use std::sync::{Arc, Mutex};

    use aws_smithy_runtime_api::{
        client::{
            http::{HttpConnector, HttpConnectorFuture, SharedHttpConnector, http_client_fn},
            orchestrator::{HttpRequest, HttpResponse},
        },
        http::StatusCode,
    };
    use aws_smithy_types::body::SdkBody;

    use super::*;

    /// What a request is answered with: a status, headers and a body.
    pub(crate) type Answer = (u16, Vec<(&'static str, String)>, String);

    /// What a request is answered with, and how many came before it.
    type Service = Box<dyn Fn(&str, usize) -> Answer + Send + Sync>;

    /// The requests so far: method, address, user agent and body, as one text each.
    pub(crate) type Sent = Arc<Mutex<Vec<String>>>;

    /// Clients whose answers are made up, and what they were made to send: method, address and body.
    pub(crate) fn canned(
        answer: impl Fn(&str, usize) -> Answer + Send + Sync + 'static,
    ) -> (Aws, Sent) {
        let sent = Arc::new(Mutex::new(Vec::new()));
        let connector = SharedHttpConnector::new(Connector {
            sent: Arc::clone(&sent),
            answer: Box::new(answer),
        });
        let keys = Credentials::new("AKIAIOSFODNN7EXAMPLE", "none", None, None, "canned");
        let shared = SdkConfig::builder()
            .behavior_version(BehaviorVersion::latest())
            .region(Region::new("eu-west-1"))
            .credentials_provider(SharedCredentialsProvider::new(keys))
            .http_client(http_client_fn(move |_, _| connector.clone()))
            .build();
        (Aws::new(shared), sent)
    }

    struct Connector {
        sent: Sent,
        answer: Service,
    }

    impl std::fmt::Debug for Connector {
        fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
            f.write_str("Connector")
        }
    }

    impl HttpConnector for Connector {
        fn call(&self, request: HttpRequest) -> HttpConnectorFuture {
            let agent = request.headers().get("user-agent").unwrap_or_default();
            let body = String::from_utf8_lossy(request.body().bytes().unwrap_or_default());
            let text = format!("{} {} {agent} {body}", request.method(), request.uri());
            let mut sent = self.sent.lock().expect("no test panics here");
            let (status, headers, body) = (self.answer)(&text, sent.len());
            sent.push(text);
            let status = StatusCode::try_from(status).expect("a status");
            let mut response = HttpResponse::new(status, SdkBody::from(body));
            for (name, value) in headers {
                response.headers_mut().insert(name, value);
            }
            HttpConnectorFuture::ready(Ok(response))
        }
    }

    #[tokio::test]
    async fn a_call_says_whose_it_is() {
        let (aws, sent) = canned(|_, _| (200, Vec::new(), String::new()));
        let put = aws.store("evidence").create("k", b"{}".to_vec()).await;
        assert_eq!(put, Ok(Put::Created));
        let sent = sent.lock().expect("no test panics here");
        assert!(sent[0].contains(&format!(" {PRODUCT} aws-sdk-rust/")), "{}", sent[0]);
    }

    #[test]
    fn an_endpoint_of_one_s_own_is_seen() {
        let shared = SdkConfig::builder().endpoint_url("http://127.0.0.1:5000").build();
        assert!(has_own_s3_endpoint(&shared));
        assert!(!has_own_s3_endpoint(&SdkConfig::builder().build()));
    }
}
