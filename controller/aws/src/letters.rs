//! Queues of what could not be read, over SQS.
//!
//! Purpose: one message with its reason. Touches the queue that it is told. Never sends more than SQS takes, nor characters
//! that it refuses: what nobody could read must at least be kept.

use std::sync::Arc;

use async_trait::async_trait;
use aws_sdk_sqs::types::MessageAttributeValue;
use cleanroom_cloud::{DeadLetters, ErrorKind, Result};

use crate::{
    clients::Clients,
    error::{fail, own},
};

/// The most of a message, in bytes: a queue takes 256 KiB or more, attributes included (SQS developer guide, "quotas").
const MOST: usize = 240 << 10;

/// The most of a reason, in bytes.
const MOST_OF_REASON: usize = 4 << 10;

/// Dead letters, over SQS.
#[derive(Debug)]
pub(crate) struct SqsLetters {
    clients: Arc<Clients>,
}

impl SqsLetters {
    /// Sends nothing.
    pub(crate) fn new(clients: Arc<Clients>) -> Self {
        Self { clients }
    }
}

/// A text as SQS takes it (API reference, `SendMessage`): not empty, without control characters and non-characters, and no
/// longer than this.
fn sendable(text: &str, bytes: usize) -> String {
    let fits = |c: char| matches!(c, '\t' | '\n' | '\r' | ' '..='\u{d7ff}' | '\u{e000}'..='\u{fffd}' | '\u{10000}'..);
    let mut plain: String =
        text.chars().map(|c| if fits(c) { c } else { char::REPLACEMENT_CHARACTER }).collect();
    plain.truncate(plain.floor_char_boundary(bytes));
    if plain.is_empty() { "(empty)".to_owned() } else { plain }
}

#[async_trait]
impl DeadLetters for SqsLetters {
    async fn put(&self, queue: &str, body: &str, reason: &str) -> Result<()> {
        const OPERATION: &str = "sqs:SendMessage";
        let reason = MessageAttributeValue::builder()
            .data_type("String")
            .string_value(sendable(reason, MOST_OF_REASON))
            .build()
            .map_err(|e| own(OPERATION, queue, ErrorKind::Other, "NotSent", e.to_string()))?;
        let ask = self.clients.sqs.send_message().queue_url(queue);
        let ask = ask.message_body(sendable(body, MOST)).message_attributes("reason", reason);
        ask.send().await.map_err(|e| fail(OPERATION, queue, e))?;
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use serde_json::Value;

    use super::*;
    use crate::canned::canned;

    const QUEUE: &str = "https://sqs.us-east-1.amazonaws.com/123456789012/cleanroom-DeadLetters";

    #[test]
    fn what_sqs_refuses_is_replaced_and_what_is_too_long_is_cut() {
        assert_eq!(
            sendable("a\u{0}b\u{1b}c\r\n\t\u{fffe}\u{1f600}", 99),
            "a\u{fffd}b\u{fffd}c\r\n\t\u{fffd}\u{1f600}"
        );
        assert_eq!(sendable("", 99), "(empty)");
        assert_eq!(sendable("üü", 3), "ü");
        assert_eq!(sendable(&"\u{0}".repeat(MOST), MOST).len(), MOST);
    }

    #[tokio::test]
    async fn a_letter_is_kept_with_its_reason() {
        let canned = canned(None, |_, before| match before {
            0 => (200, r#"{"MessageId":"m-1"}"#.to_owned()),
            _ => (
                400,
                r#"{"__type":"com.amazonaws.sqs#QueueDoesNotExist","message":"no such"}"#
                    .to_owned(),
            ),
        });
        let port = SqsLetters::new(Arc::clone(&canned.clients));
        assert_eq!(port.put(QUEUE, "???", "no SNS message").await, Ok(()));
        let sent = &canned.sent()[0];
        assert!(sent.contains("AmazonSQS.SendMessage"), "{sent}");
        let body: Value =
            serde_json::from_str(&sent[sent.find('{').expect("a body")..]).expect("JSON");
        assert_eq!((&body["QueueUrl"], &body["MessageBody"]), (&QUEUE.into(), &"???".into()));
        assert_eq!(body["MessageAttributes"]["reason"]["StringValue"], "no SNS message");

        let error = port.put(QUEUE, "x", "y").await.expect_err("no queue");
        assert_eq!((error.operation.as_str(), error.resource.as_str()), ("sqs:SendMessage", QUEUE));
    }
}
