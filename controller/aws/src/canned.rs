//! Clients whose answers are made up, for tests of what no emulator offers.
//!
//! Purpose: answers in the wire formats that AWS documents, and the requests that asked for them. Touches nothing: no
//! socket is opened. Never part of a build that is not a test's.

use std::{
    fmt,
    sync::{Arc, Mutex, PoisonError},
};

use aws_config::{BehaviorVersion, Region, SdkConfig};
use aws_credential_types::{Credentials, provider::SharedCredentialsProvider};
use aws_smithy_runtime_api::{
    client::{
        http::{HttpConnector, HttpConnectorFuture, SharedHttpConnector, http_client_fn},
        orchestrator::{HttpRequest, HttpResponse},
    },
    http::StatusCode,
};
use aws_smithy_types::body::SdkBody;

use crate::{calls::Calls, clients::Clients};

/// Clients, and what they were made to send.
pub(crate) struct Canned {
    /// To be called through.
    pub(crate) clients: Arc<Clients>,
    sent: Arc<Mutex<Vec<String>>>,
}

impl Canned {
    /// The requests so far: method, address, the operation's header and the body, as one text each.
    pub(crate) fn sent(&self) -> Vec<String> {
        self.sent.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }
}

/// Clients that get `answer` of each request, and of how many requests there were before it. `bucket` is theirs.
pub(crate) fn canned(
    bucket: Option<&str>,
    answer: impl Fn(&str, usize) -> (u16, String) + Send + Sync + 'static,
) -> Canned {
    let sent = Arc::new(Mutex::new(Vec::new()));
    let connector =
        SharedHttpConnector::new(Connector { sent: Arc::clone(&sent), answer: Box::new(answer) });
    let keys = Credentials::new("AKIAIOSFODNN7EXAMPLE", "none", None, None, "canned");
    let shared = SdkConfig::builder()
        .behavior_version(BehaviorVersion::latest())
        .region(Region::new("eu-west-1"))
        .credentials_provider(SharedCredentialsProvider::new(keys))
        .http_client(http_client_fn(move |_, _| connector.clone()))
        .build();
    let calls = Calls::limited(None, None).expect("there is no log to open");
    let clients = Arc::new(Clients::new(&shared, calls, bucket.map(str::to_owned), None));
    Canned { clients, sent }
}

/// What a request is answered with.
type Answer = Box<dyn Fn(&str, usize) -> (u16, String) + Send + Sync>;

/// The end of the line.
struct Connector {
    sent: Arc<Mutex<Vec<String>>>,
    answer: Answer,
}

impl fmt::Debug for Connector {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Connector")
    }
}

impl HttpConnector for Connector {
    fn call(&self, request: HttpRequest) -> HttpConnectorFuture {
        let target = request.headers().get("x-amz-target").unwrap_or_default();
        let body = String::from_utf8_lossy(request.body().bytes().unwrap_or_default());
        let text = format!("{} {} {target} {body}", request.method(), request.uri());
        let mut sent = self.sent.lock().unwrap_or_else(PoisonError::into_inner);
        let (status, body) = (self.answer)(&text, sent.len());
        sent.push(text);
        let status = StatusCode::try_from(status).expect("a status");
        HttpConnectorFuture::ready(Ok(HttpResponse::new(status, SdkBody::from(body))))
    }
}
