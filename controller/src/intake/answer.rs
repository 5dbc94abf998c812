//! What people are told of a delivery that was not taken whole.
//!
//! Purpose: one notice of what was refused, and one letter of what nobody could read or begin, each for a delivery. Touches
//! the team's topic and the dead-letter queue. Each is at least once: of two of which only the first succeeded, both come
//! again.

use std::{borrow::Cow, collections::BTreeMap};

use cleanroom_cloud::Notice;
use cleanroom_contract::printable;
use serde_json::{Value, json};

use super::{Miss, Patience, Taken, Way};
use crate::{case::Run, execution::Failed};

/// How many are named before the rest is counted.
const NAMED: usize = 20;

/// The longest of them, in characters.
const LONGEST: usize = 300;

/// Tells, where there is something to tell.
pub(super) async fn answer(
    run: &Run,
    way: &Way,
    patience: &Patience,
    (event, taken): (&Value, &Taken),
) -> Result<(), Failed> {
    let mut letter: Vec<&String> = taken.unreadable.iter().chain(&taken.failed).collect();
    let mut untold = None;
    if !taken.refused.is_empty() || !taken.failed.is_empty() {
        let notice = compose(run, taken);
        match patience.have(|| run.cloud.notices.publish(&notice)).await {
            Ok(Some(_)) => {}
            Ok(None) => untold = Some("no topic is configured".to_owned()),
            Err(Miss::Never(why)) => untold = Some(why),
            Err(Miss::Later(why)) => return Err(put_off("tell the team", &why, true)),
        }
    }
    let untold = untold.map(|why| format!("nobody could be told: {why}"));
    if let Some(untold) = &untold {
        letter.extend(taken.refused.iter().chain([untold]));
    }
    if letter.is_empty() {
        return Ok(());
    }
    let (body, reason) = (text(event), named(&letter));
    match patience.have(|| run.cloud.letters.put(&way.queue, &body, &reason)).await {
        Ok(()) => Ok(()),
        Err(Miss::Later(why)) => Err(put_off("keep a dead letter", &why, true)),
        Err(Miss::Never(why)) => Err(put_off("keep a dead letter", &why, false)),
    }
}

fn put_off(what: &str, why: &str, retryable: bool) -> Failed {
    Failed { retryable, why: format!("{what} of what could not be taken: {why}") }
}

/// A delivery's text: the message itself where it is one message, so that it can be mended and sent again.
fn text(event: &Value) -> Cow<'_, str> {
    let records = event.get("Records").and_then(Value::as_array).map(Vec::as_slice);
    match records {
        Some([one]) => one.pointer("/Sns/Message").and_then(Value::as_str).map(Cow::Borrowed),
        _ => None,
    }
    .unwrap_or_else(|| Cow::Owned(event.to_string()))
}

/// The first of them, and how many more there are.
fn named(all: &[&String]) -> String {
    let mut lines = first(all).join("; ");
    if all.len() > NAMED {
        lines.push_str(&format!("; and {} more", all.len() - NAMED));
    }
    lines
}

fn first(all: &[&String]) -> Vec<String> {
    let cut = |text: &&String| printable(&text.chars().take(LONGEST).collect::<String>());
    all.iter().take(NAMED).map(cut).collect()
}

fn compose(run: &Run, taken: &Taken) -> Notice {
    let all: Vec<_> = taken.failed.iter().chain(&taken.refused).collect();
    let lines = first(&all);
    let severity = if taken.failed.is_empty() { "info" } else { "high" };
    let (account, region) = (&run.caller.account, &run.caller.region);
    let mut text = format!(
        "Of an alert, {} instances get no response in account {account}, Region {region}.\n",
        all.len()
    );
    for line in &lines {
        text.push_str(&format!("- {line}\n"));
    }
    if all.len() > lines.len() {
        text.push_str(&format!("- and {} more\n", all.len() - lines.len()));
    }
    let json = json!({
        "v": 1,
        "account": account,
        "region": region,
        "step": "refused",
        "severity": severity,
        "count": all.len(),
        "lines": lines,
    });
    let attributes = BTreeMap::from([
        ("severity".to_owned(), severity.to_owned()),
        ("step".to_owned(), "refused".to_owned()),
    ]);
    let subject = format!("[cleanroom] {} instances of an alert get no response", all.len());
    Notice { subject, text, json: json.to_string(), attributes }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn twenty_are_named_and_the_rest_is_counted() {
        let all: Vec<_> = (0..25).map(|n| format!("no {n}")).collect();
        let all: Vec<_> = all.iter().collect();
        let text = named(&all);
        assert!(text.starts_with("no 0; no 1; "), "{text}");
        assert!(text.ends_with("no 19; and 5 more"), "{text}");
        assert_eq!(named(&all[..2]), "no 0; no 1");
    }

    #[test]
    fn a_message_is_its_own_text_and_all_else_the_whole_event() {
        let record = json!({"Sns": {"Message": "garbage"}});
        assert_eq!(text(&json!({"Records": [record]})), "garbage");
        let two = json!({"Records": [record, record]});
        assert_eq!(text(&two), two.to_string());
        assert_eq!(text(&json!({"x": 1})), "{\"x\":1}");
    }
}
