//! The team's topic over SNS.
//!
//! Purpose: one message in the forms that its readers take: text for people, JSON for programs. Touches the one topic
//! that is configured. Never sends more than SNS takes: what is too long is shortened, not refused, since a notice
//! that does not arrive helps nobody.

use std::{
    collections::{BTreeMap, HashMap},
    sync::Arc,
};

use async_trait::async_trait;
use aws_sdk_sns::{error::BuildError, types::MessageAttributeValue};
use cleanroom_cloud::{ErrorKind, Notice, Notices, Result};

use crate::{
    clients::Clients,
    error::{fail, own},
};

/// A subject has fewer than 100 characters (SNS API reference, `Publish`).
const MAX_SUBJECT: usize = 99;

/// A message has at most 256 KiB, its attributes included (same page); some is left for those.
const MAX_MESSAGE: usize = 240 << 10;

/// The most of a text for people, in bytes.
const MAX_TEXT: usize = 16 << 10;

/// Protocols whose subscribers are programs.
const PROGRAMS: [&str; 6] = ["sqs", "https", "http", "lambda", "firehose", "email-json"];

/// The team's topic, over SNS.
#[derive(Debug)]
pub(crate) struct SnsNotices {
    clients: Arc<Clients>,
}

impl SnsNotices {
    /// The topic that `clients` names. Sends nothing.
    pub(crate) fn new(clients: Arc<Clients>) -> Self {
        Self { clients }
    }
}

#[async_trait]
impl Notices for SnsNotices {
    async fn publish(&self, notice: &Notice) -> Result<Option<String>> {
        const OPERATION: &str = "sns:Publish";
        let Some(topic) = self.clients.topic.as_deref() else { return Ok(None) };
        let message = message(notice)
            .map_err(|e| own(OPERATION, topic, ErrorKind::Other, "NotSent", e.to_string()))?;
        let attributes = attributes(notice)
            .map_err(|e| own(OPERATION, topic, ErrorKind::Other, "NotSent", e.to_string()))?;
        let answer = self
            .clients
            .sns
            .publish()
            .topic_arn(topic)
            .subject(subject(&notice.subject))
            .message_structure("json")
            .message(message)
            .set_message_attributes(Some(attributes))
            .send()
            .await
            .map_err(|e| fail(OPERATION, topic, e))?;
        Ok(answer.message_id)
    }
}

/// A subject as SNS takes it: ASCII, one line, no control characters, opening with a visible one, under 100 characters.
fn subject(text: &str) -> String {
    let plain: String = text
        .chars()
        .map(|c| match c {
            c if c.is_whitespace() || c.is_control() => ' ',
            c if c.is_ascii() => c,
            _ => '?',
        })
        .collect();
    let mut line = plain.split_whitespace().collect::<Vec<_>>().join(" ");
    if line.len() > MAX_SUBJECT {
        line.truncate(MAX_SUBJECT - 3);
        line.push_str("...");
    }
    if line.is_empty() { "Cleanroom".to_owned() } else { line }
}

/// The first `bytes` of a text at most, cut between characters.
fn cut(text: &str, bytes: usize) -> &str {
    &text[..text.floor_char_boundary(bytes)]
}

/// The message structure: a text for each protocol that people read, the JSON for each that programs read.
fn message(notice: &Notice) -> serde_json::Result<String> {
    let text = cut(&notice.text, MAX_TEXT);
    // SNS refuses a structure whose default is empty.
    let text = if text.trim().is_empty() { &subject(&notice.subject) } else { text };
    let line = subject(&notice.subject);
    let people = BTreeMap::from([("default", text), ("email", text), ("sms", line.as_str())]);
    let mut all = people.clone();
    if !notice.json.is_empty() {
        all.extend(PROGRAMS.map(|protocol| (protocol, notice.json.as_str())));
    }
    let whole = serde_json::to_string(&all)?;
    if whole.len() <= MAX_MESSAGE {
        return Ok(whole);
    }
    // Half a JSON document is none: programs then get the text, which names the case, and its attributes.
    serde_json::to_string(&people)
}

/// The attributes as SNS takes them; it refuses empty values.
fn attributes(
    notice: &Notice,
) -> std::result::Result<HashMap<String, MessageAttributeValue>, BuildError> {
    notice
        .attributes
        .iter()
        .filter(|(_, value)| !value.is_empty())
        .map(|(name, value)| {
            let built =
                MessageAttributeValue::builder().data_type("String").string_value(value).build()?;
            Ok((name.clone(), built))
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use serde_json::Value;

    use super::*;

    fn notice(text: &str, json: &str) -> Notice {
        Notice {
            subject: "contained i-0123456789abcdef0".into(),
            text: text.into(),
            json: json.into(),
            attributes: BTreeMap::from([
                ("case".into(), "c-1".into()),
                ("severity".into(), String::new()),
            ]),
        }
    }

    fn read(notice: &Notice) -> BTreeMap<String, String> {
        let message = message(notice).expect("serialisable");
        assert!(message.len() <= MAX_MESSAGE, "{}", message.len());
        serde_json::from_str(&message).expect("a map of texts")
    }

    #[test]
    fn a_subject_is_one_ascii_line_under_a_hundred_characters() {
        for (given, expected) in [
            ("contained: i-0123456789abcdef0", "contained: i-0123456789abcdef0"),
            ("  two\r\nlines\tand\u{7}more ", "two lines and more"),
            ("Zürich – web", "Z?rich ? web"),
            ("\u{2028}line", "line"),
            ("\n", "Cleanroom"),
            ("", "Cleanroom"),
        ] {
            assert_eq!(subject(given), expected, "{given:?}");
        }
        assert_eq!(subject(&"x".repeat(99)), "x".repeat(99));
        assert_eq!(subject(&"x".repeat(100)), format!("{}...", "x".repeat(96)));
    }

    #[test]
    fn people_get_the_text_and_programs_the_json() {
        let json = r#"{"case":"c-1"}"#;
        let all = read(&notice("contained", json));
        for protocol in ["default", "email"] {
            assert_eq!(all[protocol], "contained");
        }
        assert_eq!(all["sms"], "contained i-0123456789abcdef0");
        for protocol in ["sqs", "https", "http", "lambda", "firehose", "email-json"] {
            let inner: Value = serde_json::from_str(&all[protocol]).expect("JSON in the text");
            assert_eq!(inner["case"], "c-1", "{protocol}");
        }
    }

    #[test]
    fn what_is_too_long_is_shortened_to_what_can_be_sent() {
        let long = read(&notice(&"ü".repeat(20_000), &format!("\"{}\"", "x".repeat(100_000))));
        assert_eq!(long["default"], "ü".repeat(MAX_TEXT / 2));
        assert!(!long.contains_key("sqs"), "a cut JSON document is none");
        assert_eq!(read(&notice(" ", ""))["default"], "contained i-0123456789abcdef0");
    }

    #[test]
    fn empty_attributes_are_left_out() {
        let sent = attributes(&notice("x", "{}")).expect("valid");
        assert_eq!(sent.keys().collect::<Vec<_>>(), ["case"]);
        assert_eq!(sent["case"].string_value(), Some("c-1"));
        assert_eq!(sent["case"].data_type(), "String");
    }
}
