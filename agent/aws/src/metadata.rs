//! The instance that the agent runs on, as its metadata service (IMDSv2) tells it.
//!
//! Purpose: user data and the instance's id. Touches `169.254.169.254`, or what `AWS_EC2_METADATA_SERVICE_ENDPOINT` names
//! instead; each question carries a session token (EC2 user guide, "Use IMDSv2"). Never falls back to IMDSv1.

use std::time::Duration;

use aws_config::imds::{Client, client::error::ImdsError};

use crate::error::{CloudError, ErrorKind, Result, chain, own};

/// The service of this instance.
#[derive(Debug)]
pub struct Metadata(Client);

impl Default for Metadata {
    fn default() -> Self {
        let client = Client::builder()
            .max_attempts(5)
            .connect_timeout(Duration::from_secs(2))
            .read_timeout(Duration::from_secs(5));
        Self(client.build())
    }
}

impl Metadata {
    /// The user data that the instance was launched with.
    ///
    /// # Errors
    /// There is none, or there is no such service.
    pub async fn user_data(&self) -> Result<String> {
        self.get("/latest/user-data").await
    }

    /// The instance's id.
    ///
    /// # Errors
    /// There is no such service.
    pub async fn instance_id(&self) -> Result<String> {
        self.get("/latest/meta-data/instance-id").await
    }

    async fn get(&self, path: &'static str) -> Result<String> {
        self.0.get(path).await.map(String::from).map_err(|error| failed(path, &error))
    }
}

fn failed(path: &str, error: &ImdsError) -> CloudError {
    const OPERATION: &str = "imds:Get";
    match error {
        ImdsError::ErrorResponse(answer) => {
            let status = answer.response().status().as_u16();
            let kind = if status == 404 { ErrorKind::NotFound } else { ErrorKind::Ambiguous };
            own(OPERATION, path, kind, "BadStatus", format!("answered with {status}"))
        }
        error => own(OPERATION, path, ErrorKind::Unreachable, "NotReached", chain(error)),
    }
}
