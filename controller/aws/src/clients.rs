//! The SDK's clients, one for each service and way of trying.
//!
//! Purpose: time-outs, retries and the interceptor that every call passes, in one place. Touches the network only when a
//! client is used. Never decides what is called.
//!
//! - Ordinary clients repeat what failed, with backoff: only calls that may be repeated harmlessly go through them.
//! - `…_once` clients never repeat: for calls that would make a second thing ([`Change::creates`](cleanroom_cloud::Change::creates)).
//! - `ec2_first` never repeats, never waits for a rate limit, and gives up fast, so that its caller can ask again at
//!   once: for closing what is open.

use std::time::Duration;

use aws_config::SdkConfig;
use aws_smithy_runtime::client::retries::{RetryPartition, TokenBucket};
use aws_smithy_runtime_api::client::{
    interceptors::context::InterceptorContext,
    retries::classifiers::{ClassifyRetry, RetryAction},
};
use aws_smithy_types::{retry::RetryConfig, timeout::TimeoutConfig};

use crate::calls::Calls;

/// Everything that the adapters call through.
#[derive(Debug)]
pub(crate) struct Clients {
    pub(crate) ec2: aws_sdk_ec2::Client,
    pub(crate) ec2_once: aws_sdk_ec2::Client,
    pub(crate) ec2_first: aws_sdk_ec2::Client,
    pub(crate) autoscaling: aws_sdk_autoscaling::Client,
    pub(crate) autoscaling_once: aws_sdk_autoscaling::Client,
    pub(crate) elbv2: aws_sdk_elasticloadbalancingv2::Client,
    pub(crate) elb: aws_sdk_elasticloadbalancing::Client,
    pub(crate) iam: aws_sdk_iam::Client,
    pub(crate) s3: aws_sdk_s3::Client,
    pub(crate) sns: aws_sdk_sns::Client,
    pub(crate) sts: aws_sdk_sts::Client,
    pub(crate) kms: aws_sdk_kms::Client,
    pub(crate) cloudtrail: aws_sdk_cloudtrail::Client,
    pub(crate) guardduty: aws_sdk_guardduty::Client,
    pub(crate) cloudformation: aws_sdk_cloudformation::Client,
    pub(crate) quotas: aws_sdk_servicequotas::Client,
    pub(crate) sfn: aws_sdk_sfn::Client,
    pub(crate) sqs: aws_sdk_sqs::Client,
    /// The evidence bucket, where one is configured.
    pub(crate) bucket: Option<String>,
    /// The ARN of the team's topic, where one is configured.
    pub(crate) topic: Option<String>,
    /// The Region that is called.
    pub(crate) region: String,
    /// What the interceptor learned on the way: the clock's skew.
    pub(crate) calls: Calls,
}

/// One way of trying: how long, how often, on whose account.
struct Way {
    timeouts: TimeoutConfig,
    retries: RetryConfig,
    quota: TokenBucket,
}

impl Way {
    /// Repeated: up to six attempts within thirty seconds.
    fn patient() -> Self {
        Self {
            timeouts: timeouts(10, 30),
            retries: retries(),
            // The SDK's own quota (100 failed attempts) is meant for a service under overload. An incident with
            // hundreds of instances under throttling runs dry of it, and then nothing is retried at all.
            quota: TokenBucket::builder().capacity(10_000).refill_rate(100.0).build(),
        }
    }

    /// Once, with all the time that snapshotting many volumes takes.
    fn once() -> Self {
        Self {
            timeouts: timeouts(60, 60),
            retries: RetryConfig::disabled(),
            quota: TokenBucket::unlimited(),
        }
    }

    /// Once and fast.
    fn first() -> Self {
        Self {
            timeouts: timeouts(5, 5),
            retries: RetryConfig::disabled(),
            quota: TokenBucket::unlimited(),
        }
    }
}

/// Retries of calls that may be repeated: six attempts, with pauses from a tenth of a second to three.
pub(crate) fn retries() -> RetryConfig {
    RetryConfig::standard()
        .with_max_attempts(6)
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

/// Repeats what was answered with 429. The SDK goes by the service's code there, and what stands before a service does
/// not always give one.
#[derive(Debug)]
struct TooMany;

impl ClassifyRetry for TooMany {
    fn classify_retry(&self, context: &InterceptorContext) -> RetryAction {
        match context.response().map(|response| response.status().as_u16()) {
            Some(429) => RetryAction::throttling_error(),
            _ => RetryAction::NoActionIndicated,
        }
    }

    fn name(&self) -> &'static str {
        "TooManyRequests"
    }
}

/// The configuration of a service's client that tries in a given way. Each service has types of its own for the
/// same thing, which only a macro can span.
macro_rules! config {
    ($sdk:ident, $shared:expr, $calls:expr, $way:expr) => {{
        let way: Way = $way;
        $sdk::config::Builder::from($shared)
            .timeout_config(way.timeouts)
            .retry_config(way.retries)
            .retry_partition(
                RetryPartition::custom(stringify!($sdk)).token_bucket(way.quota).build(),
            )
            .retry_classifier(TooMany)
            .interceptor($calls.clone())
    }};
}

/// A service's client that tries in a given way.
macro_rules! client {
    ($sdk:ident, $shared:expr, $calls:expr, $way:expr) => {
        $sdk::Client::from_conf(config!($sdk, $shared, $calls, $way).build())
    };
}

impl Clients {
    /// Clients that share one configuration, one pool of connections and one interceptor. Sends nothing.
    pub(crate) fn new(
        shared: &SdkConfig,
        calls: Calls,
        bucket: Option<String>,
        topic: Option<String>,
    ) -> Self {
        // A topic answers in its own Region only.
        let told = config!(aws_sdk_sns, shared, calls, Way::patient());
        let told = match topic.as_deref().and_then(region_of) {
            Some(region) => told.region(aws_sdk_sns::config::Region::new(region.to_owned())),
            None => told,
        };
        Self {
            ec2: client!(aws_sdk_ec2, shared, calls, Way::patient()),
            ec2_once: client!(aws_sdk_ec2, shared, calls, Way::once()),
            ec2_first: client!(aws_sdk_ec2, shared, calls, Way::first()),
            autoscaling: client!(aws_sdk_autoscaling, shared, calls, Way::patient()),
            autoscaling_once: client!(aws_sdk_autoscaling, shared, calls, Way::once()),
            elbv2: client!(aws_sdk_elasticloadbalancingv2, shared, calls, Way::patient()),
            elb: client!(aws_sdk_elasticloadbalancing, shared, calls, Way::patient()),
            iam: client!(aws_sdk_iam, shared, calls, Way::patient()),
            s3: s3(shared, &calls),
            sns: aws_sdk_sns::Client::from_conf(told.build()),
            sts: client!(aws_sdk_sts, shared, calls, Way::patient()),
            kms: client!(aws_sdk_kms, shared, calls, Way::patient()),
            cloudtrail: client!(aws_sdk_cloudtrail, shared, calls, Way::patient()),
            guardduty: client!(aws_sdk_guardduty, shared, calls, Way::patient()),
            cloudformation: client!(aws_sdk_cloudformation, shared, calls, Way::patient()),
            quotas: client!(aws_sdk_servicequotas, shared, calls, Way::patient()),
            sfn: client!(aws_sdk_sfn, shared, calls, Way::patient()),
            sqs: client!(aws_sdk_sqs, shared, calls, Way::patient()),
            bucket,
            topic,
            region: shared.region().map(ToString::to_string).unwrap_or_default(),
            calls,
        }
    }

    /// The same, which read the evidence bucket as somebody else.
    pub(crate) fn reading_as(self, shared: &SdkConfig, calls: &Calls) -> Self {
        Self { s3: s3(shared, calls), ..self }
    }
}

/// The client of S3.
fn s3(shared: &SdkConfig, calls: &Calls) -> aws_sdk_s3::Client {
    // An emulator is one host without a name for each bucket.
    let config = config!(aws_sdk_s3, shared, calls, Way::patient())
        .force_path_style(has_own_s3_endpoint(shared))
        .build();
    aws_sdk_s3::Client::from_conf(config)
}

/// The Region of an ARN.
fn region_of(arn: &str) -> Option<&str> {
    arn.split(':').nth(3).filter(|region| !region.is_empty())
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

#[cfg(test)]
pub(crate) mod tests {
    use std::path::Path;

    use aws_config::{BehaviorVersion, Region};
    use aws_credential_types::{Credentials, provider::SharedCredentialsProvider};

    use super::*;

    /// Clients of a service at `endpoint`, with the credentials of AWS's documentation.
    pub(crate) fn clients(endpoint: &str, log: Option<&Path>) -> Clients {
        clients_with(endpoint, Calls::limited(log, None).expect("a log that can be written"))
    }

    /// The same, whose calls pass this interceptor.
    pub(crate) fn clients_with(endpoint: &str, calls: Calls) -> Clients {
        let secret = "wJalrXUtnFEMI/K7MDENG/bPxRfiCYEXAMPLEKEY";
        let credentials = Credentials::new("AKIAIOSFODNN7EXAMPLE", secret, None, None, "test");
        let shared = SdkConfig::builder()
            .behavior_version(BehaviorVersion::latest())
            .region(Region::new("eu-central-1"))
            .credentials_provider(SharedCredentialsProvider::new(credentials))
            .endpoint_url(endpoint)
            .build();
        Clients::new(&shared, calls, Some("evidence".to_owned()), None)
    }

    #[test]
    fn an_endpoint_of_one_s_own_is_seen() {
        let shared = SdkConfig::builder().endpoint_url("http://127.0.0.1:5000").build();
        assert!(has_own_s3_endpoint(&shared));
        assert!(!has_own_s3_endpoint(&SdkConfig::builder().build()));
    }
}
