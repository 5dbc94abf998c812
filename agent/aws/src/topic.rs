//! The team's topic.
//!
//! Purpose: one message in the forms that its readers take: text for people, JSON for programs. Touches one topic. Never
//! sends more than SNS takes: what is too long is shortened, not refused, since a message that does not arrive helps
//! nobody.

use std::collections::{BTreeMap, HashMap};

use aws_sdk_sns::types::MessageAttributeValue;

use crate::error::{ErrorKind, Result, fail, own};

/// A subject has fewer than 100 characters (SNS API reference, `Publish`).
const MAX_SUBJECT: usize = 99;

/// A message has at most 256 KiB, its attributes included (same page); some is left for those.
const MAX_MESSAGE: usize = 240 << 10;

/// The most of a text for people, in bytes.
const MAX_TEXT: usize = 16 << 10;

/// Protocols whose subscribers are programs.
const PROGRAMS: [&str; 6] = ["sqs", "https", "http", "lambda", "firehose", "email-json"];

/// A message.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Notice {
    /// For a mail's subject: one ASCII line; what is not is replaced.
    pub subject: String,
    /// For people.
    pub text: String,
    /// The same for programs.
    pub json: String,
    /// For subscribers' filters.
    pub attributes: BTreeMap<String, String>,
    /// The same for the same message: a topic that keeps order (`.fifo`) drops what it has already.
    pub deduplication: String,
}

/// A topic.
#[derive(Clone, Debug)]
pub struct Topic {
    sns: aws_sdk_sns::Client,
    arn: String,
}

impl Topic {
    pub(crate) fn new(sns: aws_sdk_sns::Client, arn: &str) -> Self {
        Self { sns, arn: arn.to_owned() }
    }

    /// Publishes once; the message's id.
    ///
    /// # Errors
    /// Where SNS refuses or does not answer.
    pub async fn publish(&self, notice: &Notice) -> Result<String> {
        const OPERATION: &str = "sns:Publish";
        let not_sent = |why: String| own(OPERATION, &self.arn, ErrorKind::Other, "NotSent", why);
        let message = message(notice).map_err(|e| not_sent(e.to_string()))?;
        let mut attributes = HashMap::new();
        // SNS refuses empty values.
        for (name, value) in notice.attributes.iter().filter(|(_, value)| !value.is_empty()) {
            let value = MessageAttributeValue::builder().data_type("String").string_value(value);
            attributes.insert(name.clone(), value.build().map_err(|e| not_sent(e.to_string()))?);
        }
        let ordered = self.arn.ends_with(".fifo");
        let answer = self
            .sns
            .publish()
            .topic_arn(&self.arn)
            .subject(subject(&notice.subject))
            .message_structure("json")
            .message(message)
            .set_message_attributes(Some(attributes))
            .set_message_group_id(ordered.then(|| "cleanroom".to_owned()))
            .set_message_deduplication_id(ordered.then(|| notice.deduplication.clone()))
            .send()
            .await
            .map_err(|e| fail(OPERATION, &self.arn, e))?;
        Ok(answer.message_id.unwrap_or_default())
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

/// The message structure: a text for each protocol that people read, the JSON for each that programs read.
fn message(notice: &Notice) -> serde_json::Result<String> {
    let text = &notice.text[..notice.text.floor_char_boundary(MAX_TEXT)];
    let line = subject(&notice.subject);
    // SNS refuses a structure whose default is empty.
    let text = if text.trim().is_empty() { &line } else { text };
    let people = BTreeMap::from([("default", text), ("email", text), ("sms", line.as_str())]);
    let mut all = people.clone();
    if !notice.json.is_empty() {
        all.extend(PROGRAMS.map(|protocol| (protocol, notice.json.as_str())));
    }
    let whole = serde_json::to_string(&all)?;
    if whole.len() <= MAX_MESSAGE {
        return Ok(whole);
    }
    // Half a JSON document is none: programs then get the text, which names the case and the bundle.
    serde_json::to_string(&people)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(text: &str, json: &str) -> BTreeMap<String, String> {
        let notice = Notice {
            subject: "scanned c-1".into(),
            text: text.into(),
            json: json.into(),
            attributes: BTreeMap::new(),
            deduplication: String::new(),
        };
        let message = message(&notice).expect("serialisable");
        assert!(message.len() <= MAX_MESSAGE, "{}", message.len());
        serde_json::from_str(&message).expect("a map of texts")
    }

    #[test]
    fn a_subject_is_one_ascii_line_under_a_hundred_characters() {
        for (given, expected) in [
            ("  two\r\nlines\tand\u{7}more ", "two lines and more"),
            ("Zürich – web", "Z?rich ? web"),
            ("", "Cleanroom"),
        ] {
            assert_eq!(subject(given), expected, "{given:?}");
        }
        assert_eq!(subject(&"x".repeat(99)), "x".repeat(99));
        assert_eq!(subject(&"x".repeat(100)), format!("{}...", "x".repeat(96)));
    }

    #[test]
    fn people_get_the_text_and_programs_the_json() {
        let all = read("scanned", r#"{"case":"c-1"}"#);
        assert_eq!((all["default"].as_str(), all["email"].as_str()), ("scanned", "scanned"));
        assert_eq!(all["sms"], "scanned c-1");
        for protocol in PROGRAMS {
            assert_eq!(all[protocol], r#"{"case":"c-1"}"#, "{protocol}");
        }
    }

    #[test]
    fn what_is_too_long_is_shortened_to_what_can_be_sent() {
        let long = read(&"ü".repeat(20_000), &format!("\"{}\"", "x".repeat(100_000)));
        assert_eq!(long["default"], "ü".repeat(MAX_TEXT / 2));
        assert!(!long.contains_key("sqs"), "a cut JSON document is none");
        assert_eq!(read(" ", "")["default"], "scanned c-1");
    }
}
