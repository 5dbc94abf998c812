//! What EC2 describes, in the ports' words.
//!
//! Purpose: reads of instances, of what connects them, and of their volumes, snapshots and images. Touches EC2 only, and
//! only to read. Never fills in what an answer does not say: a thing without its id or state is an error, not a guess.

pub(crate) mod instances;
pub(crate) mod network;
pub(crate) mod volumes;

use std::{collections::BTreeMap, str::FromStr};

use aws_sdk_ec2::types::Tag;
use aws_smithy_types::DateTime;
use cleanroom_cloud::Result;
use cleanroom_contract::Timestamp;

use crate::error::bad_answer;

/// The most values that one filter takes (EC2 API reference, "Filtering").
const FILTER_VALUES: usize = 200;

/// A field that the service documents as always there.
fn need<T>(operation: &'static str, resource: &str, field: &str, value: Option<T>) -> Result<T> {
    value.ok_or_else(|| bad_answer(operation, resource, field))
}

/// An id of a kind whose form the contract knows.
fn id<T: FromStr>(operation: &'static str, field: &str, value: Option<&str>) -> Result<T> {
    let text = value.unwrap_or_default();
    text.parse().map_err(|_| bad_answer(operation, text, field))
}

/// Tags, name to value.
pub(crate) fn tags(tags: Option<Vec<Tag>>) -> BTreeMap<String, String> {
    tags.unwrap_or_default()
        .into_iter()
        .filter_map(|tag| Some((tag.key?, tag.value.unwrap_or_default())))
        .collect()
}

/// A point in time as the contract writes it.
pub(crate) fn timestamp(time: DateTime) -> Timestamp {
    Timestamp { seconds: time.secs(), nanos: time.subsec_nanos() }
}

/// A filter's value that stands for itself: `*` and `?` are wildcards there, and `\` takes their meaning away.
fn literally(text: &str) -> String {
    let mut escaped = String::with_capacity(text.len());
    for c in text.chars() {
        if matches!(c, '*' | '?' | '\\') {
            escaped.push('\\');
        }
        escaped.push(c);
    }
    escaped
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_filter_value_is_not_a_pattern() {
        assert_eq!(literally("web-1"), "web-1");
        assert_eq!(literally(r"we*b?\1"), r"we\*b\?\\1");
    }

    #[test]
    fn a_tag_without_a_value_is_an_empty_one_and_without_a_key_is_none() {
        let tagged = tags(Some(vec![
            Tag::builder().key("Name").value("web-1").build(),
            Tag::builder().key("empty").build(),
            Tag::builder().value("lost").build(),
        ]));
        let expected = [("Name", "web-1"), ("empty", "")];
        assert_eq!(tagged, expected.map(|(k, v)| (k.to_owned(), v.to_owned())).into());
        assert_eq!(tags(None), BTreeMap::new());
    }

    #[test]
    fn a_time_before_1970_counts_forwards() {
        let time = timestamp(DateTime::from_secs_f64(-0.5));
        assert_eq!((time.seconds, time.nanos), (-1, 500_000_000));
    }
}
