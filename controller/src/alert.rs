//! What an alert says: which instances, who says so, and what speaks for it.
//!
//! Purpose: turns whatever arrives at the intake into [`Alert`]s. Pure: bytes and values in, alerts out. Touches nothing, and
//! believes nothing: an alert is a claim, which the intake verifies before anything is begun. Never decides whether
//! to contain.
//!
//! Sources: SNS messages of people and third-party tools; GuardDuty findings, CloudWatch alarms and Security Hub custom
//! actions as EventBridge delivers them; CloudTrail events as a CloudWatch Logs subscription delivers them.

mod alarm;
mod guardduty;
mod hub;
mod message;
mod trail;

use std::{collections::BTreeSet, fmt};

use cleanroom_contract::{InstanceId, printable};
use serde::{Deserialize, Serialize};
use serde_json::Value;

/// The most instances that one delivery names: EventBridge and SNS take 256 KiB, and an id with its comma is 20 bytes.
pub const MOST: usize = 10_000;

/// The longest reason that is kept, in characters.
const LONGEST: usize = 500;

/// What an instance has to do with what was seen.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Part {
    /// It acts: it mines, scans, calls home, runs malware.
    Actor,
    /// It is acted on: somebody scans it, or tries its door.
    Target,
    /// Its role's credentials are used by somebody else.
    Credentials,
    /// The source does not say.
    Unsaid,
}

/// Who says so.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "by", rename_all = "snake_case")]
pub enum Source {
    /// A message on the intake topic.
    Message {
        /// What it calls itself; whoever may publish may write any name here.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        named: Option<String>,
    },
    /// A GuardDuty finding.
    GuardDuty {
        /// Its id, the same for every update of it.
        finding: String,
        /// `CryptoCurrency:EC2/BitcoinTool.B!DNS`.
        kind: String,
        /// 1.0 to 10.0, times ten.
        severity_tenths: u32,
    },
    /// A CloudWatch alarm.
    Alarm {
        /// Its name.
        name: String,
    },
    /// A Security Hub custom action: a person chose it.
    SecurityHub {
        /// The action's name.
        action: String,
    },
    /// A call by the instance's role that came from elsewhere, as CloudTrail logs it.
    Trail {
        /// `s3.amazonaws.com:ListBuckets`.
        call: String,
        /// Where it came from.
        address: std::net::IpAddr,
    },
}

impl Source {
    /// All words for sources.
    pub const WORDS: [&str; 5] = ["message", "guardduty", "alarm", "security_hub", "trail"];

    /// One word, as settings name it.
    #[must_use]
    pub fn word(&self) -> &'static str {
        match self {
            Self::Message { .. } => "message",
            Self::GuardDuty { .. } => "guardduty",
            Self::Alarm { .. } => "alarm",
            Self::SecurityHub { .. } => "security_hub",
            Self::Trail { .. } => "trail",
        }
    }
}

impl fmt::Display for Source {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Message { named: None } => f.write_str("a message on the intake topic"),
            Self::Message { named: Some(named) } => {
                write!(f, "a message that calls itself {named}")
            }
            Self::GuardDuty { finding, kind, severity_tenths } => {
                let (whole, tenth) = (severity_tenths / 10, severity_tenths % 10);
                write!(f, "GuardDuty {kind} {whole}.{tenth}, finding {finding}")
            }
            Self::Alarm { name } => write!(f, "the alarm {name}"),
            Self::SecurityHub { action } => write!(f, "Security Hub's action {action}"),
            Self::Trail { call, address } => write!(f, "CloudTrail, {call} from {address}"),
        }
    }
}

/// Which instance is meant.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Named {
    /// The instance.
    pub instance: InstanceId,
    /// Its account, where the alert says so: 12 digits.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub account: Option<String>,
    /// Its Region, where the alert says so.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub region: Option<String>,
}

/// One instance that is said to be compromised.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Alert {
    /// Which.
    #[serde(flatten)]
    pub named: Named,
    /// Who says so.
    pub source: Source,
    /// What it has to do with it.
    pub part: Part,
    /// Why, in the source's words, fit to be printed.
    pub reason: String,
}

/// What a delivery holds.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Delivery {
    /// Alerts, each instance once for each message.
    pub alerts: Vec<Alert>,
    /// What was left alone on purpose, and why: sample and archived findings, alarms that are well again.
    pub ignored: Vec<String>,
    /// What names no instance, or can not be read, and why: it goes to the dead-letter queue.
    pub unreadable: Vec<String>,
}

impl Delivery {
    fn ignored(why: impl Into<String>) -> Self {
        Self { ignored: vec![shown(&why.into())], ..Self::default() }
    }

    fn unreadable(why: impl Into<String>) -> Self {
        Self { unreadable: vec![shown(&why.into())], ..Self::default() }
    }

    fn add(&mut self, other: Self) {
        self.alerts.extend(other.alerts);
        self.ignored.extend(other.ignored);
        self.unreadable.extend(other.unreadable);
    }

    /// Alerts for each of these, the same instance once.
    fn of(named: impl IntoIterator<Item = Named>, source: &Source, part: Part, why: &str) -> Self {
        let mut seen = BTreeSet::new();
        let mut delivery = Self::default();
        for named in named {
            if !seen.insert(named.instance.clone()) {
                continue;
            }
            if delivery.alerts.len() == MOST {
                delivery.unreadable.push(format!("more than {MOST} instances in one message"));
                break;
            }
            let reason = shown(why);
            delivery.alerts.push(Alert { named, source: source.clone(), part, reason });
        }
        delivery
    }
}

/// Text of an alert as it may be logged, published and kept.
fn shown(text: &str) -> String {
    printable(&text.chars().take(LONGEST).collect::<String>())
}

/// Reads what Lambda was invoked with.
#[must_use]
pub fn read(event: &Value) -> Delivery {
    if let Some(records) = event.get("Records").and_then(Value::as_array) {
        let mut delivery = Delivery::default();
        for record in records {
            delivery.add(match record.pointer("/Sns/Message").and_then(Value::as_str) {
                Some(text) => message::read(text),
                None => Delivery::unreadable("a record that is no SNS message"),
            });
        }
        return delivery;
    }
    if let Some(data) = event.pointer("/awslogs/data").and_then(Value::as_str) {
        return trail::read(data);
    }
    of_event_bus(event).unwrap_or_else(|| {
        Delivery::unreadable(
            "neither SNS, EventBridge nor a CloudWatch Logs subscription sends such events",
        )
    })
}

/// What EventBridge delivers, by `detail-type`. None where it is nothing of EventBridge's.
fn of_event_bus(event: &Value) -> Option<Delivery> {
    let detail = event.get("detail")?;
    Some(match event.get("detail-type")?.as_str()? {
        "GuardDuty Finding" => guardduty::read(detail),
        "CloudWatch Alarm State Change" => alarm::read(event, detail),
        "Security Hub Findings - Custom Action" => hub::read(detail),
        other => Delivery::unreadable(format!("events of the type {other:?} are not understood")),
    })
}

/// An instance by its ARN, `arn:aws:ec2:us-east-1:123456789012:instance/i-…`.
fn of_arn(arn: &str) -> Option<Named> {
    let parts: Vec<_> = arn.splitn(6, ':').collect();
    let [arn, _, service, region, account, resource] = parts[..] else { return None };
    let instance = resource.strip_prefix("instance/")?.parse().ok()?;
    let good = arn == "arn" && service == "ec2" && is_account(account) && !region.is_empty();
    good.then(|| Named {
        instance,
        account: Some(account.to_owned()),
        region: Some(region.to_owned()),
    })
}

fn is_account(text: &str) -> bool {
    text.len() == 12 && text.bytes().all(|b| b.is_ascii_digit())
}

/// An account as an event names it, where it does.
fn account(value: Option<&Value>) -> Option<String> {
    value?.as_str().filter(|text| is_account(text)).map(str::to_owned)
}

/// A Region as an event names it, where it does.
fn region(value: Option<&Value>) -> Option<String> {
    let text = value?.as_str()?;
    let good = (1..=32).contains(&text.len())
        && text.bytes().all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'-');
    good.then(|| text.to_owned())
}

/// The instance that a principal of a role session is, `AROAEXAMPLE:i-0abc…`: EC2 names its sessions by the instance.
fn of_principal(principal: &str) -> Option<InstanceId> {
    principal.rsplit_once(':')?.1.parse().ok()
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn delivered(message: &str) -> Delivery {
        read(&json!({"Records": [{"EventSource": "aws:sns", "Sns": {"Message": message}}]}))
    }

    #[test]
    fn what_nobody_sends_is_unreadable_and_nothing_else() {
        for event in [
            json!(null),
            json!([]),
            json!({}),
            json!({"Records": [{"s3": {}}]}),
            json!({"detail-type": "EC2 Instance State-change Notification", "detail": {}}),
            json!({"detail-type": 7, "detail": {}}),
            json!({"awslogs": {"data": "!!"}}),
        ] {
            let delivery = read(&event);
            assert!(delivery.alerts.is_empty() && delivery.ignored.is_empty(), "{event}");
            assert_eq!(delivery.unreadable.len(), 1, "{event}: {delivery:?}");
        }
    }

    #[test]
    fn several_records_are_read_each_by_itself() {
        let record = |text: &str| json!({"Sns": {"Message": text}});
        let event =
            json!({"Records": [record("i-0123456789abcdef0"), record("?"), record("i-1234abcd")]});
        let delivery = read(&event);
        let ids: Vec<_> = delivery.alerts.iter().map(|a| a.named.instance.as_str()).collect();
        assert_eq!(ids, ["i-0123456789abcdef0", "i-1234abcd"]);
        assert_eq!(delivery.unreadable.len(), 1, "{delivery:?}");
    }

    #[test]
    fn hostile_text_is_cut_and_made_printable() {
        let reason = format!("a\u{1b}[2J{}", "x".repeat(10_000));
        let message = json!({"instance": "i-0123456789abcdef0", "reason": reason}).to_string();
        let delivery = delivered(&message);
        let kept = &delivery.alerts[0].reason;
        assert!(kept.starts_with("a\\u{1b}[2J"), "{kept}");
        assert!(kept.chars().count() < LONGEST + 10);
    }

    #[test]
    fn a_message_names_no_more_than_so_many() {
        let ids: Vec<_> = (0..=MOST).map(|n| format!("i-{n:017x}")).collect();
        let delivery = delivered(&ids.join(","));
        assert_eq!(delivery.alerts.len(), MOST);
        assert_eq!(delivery.unreadable.len(), 1);
    }
}
