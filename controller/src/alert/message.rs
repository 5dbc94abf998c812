//! Messages on the intake topic: ids as people and scripts type them, or JSON.
//!
//! Pure. A message is all or nothing only where it is JSON that can not be read: of a list, every id that is one counts, and
//! every word that is none is told.

use cleanroom_contract::InstanceId;
use serde::Deserialize;
use serde_json::Value;

use super::{Delivery, Named, Part, Source, of_arn, of_event_bus};

/// JSON of a script: `{"instances": ["i-…"], "source": "…", "reason": "…"}`.
#[derive(Debug, Deserialize)]
struct Script {
    #[serde(alias = "instance_id", alias = "instanceId", alias = "InstanceId")]
    instance: Option<String>,
    #[serde(default, alias = "instance_ids", alias = "instanceIds", alias = "InstanceIds")]
    instances: Vec<String>,
    source: Option<String>,
    reason: Option<String>,
}

/// An alarm as CloudWatch itself publishes it to a topic.
#[derive(Debug, Deserialize)]
#[serde(rename_all = "PascalCase")]
struct TopicAlarm {
    alarm_name: String,
    new_state_value: String,
    new_state_reason: Option<String>,
    #[serde(rename = "AWSAccountId")]
    account: Option<String>,
    trigger: Option<Value>,
}

pub(super) fn read(text: &str) -> Delivery {
    let text = text.trim().trim_start_matches('\u{feff}');
    match serde_json::from_str::<Value>(text) {
        Ok(Value::Array(ids)) => of_array(&ids),
        Ok(Value::String(id)) => of_words(&id),
        Ok(value @ Value::Object(_)) => of_object(value),
        Ok(_) => Delivery::unreadable("a message that is a bare number or word of JSON"),
        Err(_) if text.starts_with(['{', '[']) => Delivery::unreadable(format!(
            "a message that begins as JSON and is none: {}",
            beginning(text)
        )),
        Err(_) => of_words(text),
    }
}

fn beginning(text: &str) -> String {
    text.chars().take(80).collect()
}

/// Ids and ARNs between white space, commas and semicolons.
fn of_words(text: &str) -> Delivery {
    let words = text.split(|c: char| c.is_whitespace() || c == ',' || c == ';');
    of_list(words.filter(|word| !word.is_empty()), &Source::Message { named: None }, None)
}

fn of_array(ids: &[Value]) -> Delivery {
    let words = ids.iter().map(|id| id.as_str().unwrap_or("?"));
    of_list(words, &Source::Message { named: None }, None)
}

fn of_object(value: Value) -> Delivery {
    // EventBridge can be set to publish to a topic: then its event is the message.
    if let Some(delivery) = of_event_bus(&value) {
        return delivery;
    }
    if value.get("AlarmName").is_some() {
        return match serde_json::from_value::<TopicAlarm>(value) {
            Ok(alarm) => of_alarm(&alarm),
            Err(error) => Delivery::unreadable(format!("an alarm that can not be read: {error}")),
        };
    }
    let script = match serde_json::from_value::<Script>(value) {
        Ok(script) => script,
        Err(error) => {
            return Delivery::unreadable(format!("a message that can not be read: {error}"));
        }
    };
    let named = script.source.map(|name| super::shown(&name));
    let words = script.instance.iter().chain(&script.instances).map(String::as_str);
    of_list(words, &Source::Message { named }, script.reason.as_deref())
}

/// Each word that is an instance, and a complaint of each that is none.
fn of_list<'w>(
    words: impl Iterator<Item = &'w str>,
    source: &Source,
    reason: Option<&str>,
) -> Delivery {
    let (mut named, mut bad) = (Vec::new(), Vec::new());
    for word in words {
        match of_word(word.trim()) {
            Some(instance) => named.push(instance),
            None => bad.push(super::shown(&format!("{:?} names no instance", beginning(word)))),
        }
    }
    if named.is_empty() && bad.is_empty() {
        return Delivery::unreadable("a message that names no instance");
    }
    let why = match (reason, source) {
        (Some(reason), _) => reason.to_owned(),
        (None, Source::Message { named: Some(named) }) => {
            format!("{named} named it, and gave no reason")
        }
        (None, _) => "a message named it, and gave no reason".to_owned(),
    };
    let mut delivery = Delivery::of(named, source, Part::Unsaid, &why);
    delivery.unreadable.extend(bad);
    delivery
}

fn of_word(word: &str) -> Option<Named> {
    if word.starts_with("arn:") {
        return of_arn(word);
    }
    let instance: InstanceId = word.parse().ok()?;
    Some(Named { instance, account: None, region: None })
}

fn of_alarm(alarm: &TopicAlarm) -> Delivery {
    let name = &alarm.alarm_name;
    if alarm.new_state_value != "ALARM" {
        return Delivery::ignored(format!("alarm {name:?} is {}", alarm.new_state_value));
    }
    let dimensions = alarm.trigger.iter().flat_map(|trigger| {
        let own = trigger.get("Dimensions").into_iter();
        let metrics = trigger.get("Metrics").and_then(Value::as_array).into_iter().flatten();
        own.chain(metrics.filter_map(|m| m.pointer("/MetricStat/Metric/Dimensions")))
    });
    let pairs = dimensions.filter_map(Value::as_array).flatten();
    let ids = pairs.filter(|d| d.get("name").and_then(Value::as_str) == Some("InstanceId"));
    let ids = ids.filter_map(|d| d.get("value")?.as_str()?.parse().ok());
    let account = alarm.account.clone().filter(|text| super::is_account(text));
    let named = ids.map(|instance| Named { instance, account: account.clone(), region: None });
    let source = Source::Alarm { name: super::shown(name) };
    let why = format!("alarm {name}: {}", alarm.new_state_reason.as_deref().unwrap_or("no reason"));
    let delivery = Delivery::of(named, &source, Part::Unsaid, &why);
    if delivery.alerts.is_empty() {
        return Delivery::unreadable(format!(
            "alarm {name:?} is on no instance: none of its dimensions is InstanceId"
        ));
    }
    delivery
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    const ONE: &str = "i-0123456789abcdef0";
    const TWO: &str = "i-1234abcd";

    fn ids(delivery: &Delivery) -> Vec<&str> {
        delivery.alerts.iter().map(|alert| alert.named.instance.as_str()).collect()
    }

    #[test]
    fn every_form_of_a_message_is_read() {
        let arn = format!("arn:aws:ec2:eu-west-1:123456789012:instance/{ONE}");
        for (text, expected) in [
            (ONE.to_owned(), vec![ONE]),
            (format!("  {ONE}\n"), vec![ONE]),
            (format!("{ONE},{TWO};{ONE}\n{TWO}"), vec![ONE, TWO]),
            (json!(ONE).to_string(), vec![ONE]),
            (json!([ONE, TWO]).to_string(), vec![ONE, TWO]),
            (json!({"instance": ONE}).to_string(), vec![ONE]),
            (json!({"InstanceId": ONE, "instances": [TWO]}).to_string(), vec![ONE, TWO]),
            (arn, vec![ONE]),
        ] {
            let delivery = read(&text);
            assert_eq!(ids(&delivery), expected, "{text}");
            assert!(delivery.unreadable.is_empty(), "{text}: {delivery:?}");
        }
    }

    #[test]
    fn source_reason_account_and_region_are_kept() {
        let text = json!({"instance": ONE, "source": "edr", "reason": "a beacon"}).to_string();
        let alert = &read(&text).alerts[0];
        assert_eq!(alert.source, Source::Message { named: Some("edr".to_owned()) });
        assert_eq!(alert.reason, "a beacon");
        let arn = format!("arn:aws:ec2:eu-west-1:123456789012:instance/{ONE}");
        let named = &read(&arn).alerts[0].named;
        assert_eq!(named.account.as_deref(), Some("123456789012"));
        assert_eq!(named.region.as_deref(), Some("eu-west-1"));
    }

    #[test]
    fn a_bad_word_costs_no_other() {
        let delivery = read(&format!("{ONE} i-xyz {TWO} arn:aws:s3:::bucket"));
        assert_eq!(ids(&delivery), [ONE, TWO]);
        assert_eq!(delivery.unreadable.len(), 2, "{delivery:?}");
        assert!(delivery.unreadable[0].contains("i-xyz"));
    }

    #[test]
    fn garbage_is_unreadable() {
        for text in [
            "",
            "  \n",
            "{",
            "[1,",
            "null",
            "7",
            "{}",
            "[]",
            "{\"instance\":7}",
            "{\"AlarmName\":1}",
        ] {
            let delivery = read(text);
            assert!(delivery.alerts.is_empty(), "{text}");
            assert_eq!(delivery.unreadable.len(), 1, "{text}: {delivery:?}");
        }
    }

    #[test]
    fn an_alarm_of_a_topic_names_the_instances_of_its_metrics() {
        let alarm = |state: &str| {
            json!({
                "AlarmName": "outbound", "NewStateValue": state, "NewStateReason": "threshold crossed",
                "AWSAccountId": "123456789012",
                "Trigger": {"Dimensions": [{"name": "InstanceId", "value": ONE}, {"name": "x", "value": TWO}]},
            })
            .to_string()
        };
        let delivery = read(&alarm("ALARM"));
        assert_eq!(ids(&delivery), [ONE]);
        assert_eq!(delivery.alerts[0].reason, "alarm outbound: threshold crossed");
        let well = read(&alarm("OK"));
        assert!(well.alerts.is_empty() && well.unreadable.is_empty() && well.ignored.len() == 1);
    }
}
