//! GuardDuty findings, as EventBridge delivers them.
//!
//! Pure. An administrator account's bus has the findings of its members: a finding's own `accountId` says whose instance it is,
//! never the event's `account`. Format: GuardDuty API reference, `Finding`; the event has the same names in lower camel
//! case.

use cleanroom_contract::InstanceId;
use serde_json::Value;

use super::{Delivery, Named, Part, Source, account, of_principal, region};

pub(super) fn read(finding: &Value) -> Delivery {
    let text = |pointer: &str| finding.pointer(pointer).and_then(Value::as_str);
    let (Some(id), Some(kind)) = (text("/id"), text("/type")) else {
        return Delivery::unreadable("a GuardDuty finding without id or type");
    };
    let Some(severity) = finding.get("severity").and_then(Value::as_f64) else {
        return Delivery::unreadable(format!("GuardDuty finding {id} has no severity"));
    };
    if is_sample(finding) {
        return Delivery::ignored(format!("GuardDuty finding {id} is a sample"));
    }
    if finding.pointer("/service/archived").and_then(Value::as_bool) == Some(true) {
        return Delivery::ignored(format!("GuardDuty finding {id} is archived"));
    }
    let Some((instance, of_credentials)) = instance(finding) else {
        return Delivery::ignored(format!("GuardDuty finding {id}, {kind}, is about no instance"));
    };
    let part =
        if of_credentials { Part::Credentials } else { part(kind, text("/service/resourceRole")) };
    let named = Named {
        instance,
        account: account(finding.get("accountId")),
        region: region(finding.get("region")),
    };
    let source = Source::GuardDuty {
        finding: super::shown(id),
        kind: super::shown(kind),
        severity_tenths: tenths(severity),
    };
    let why = format!("GuardDuty {kind}: {}", text("/title").unwrap_or("no title"));
    Delivery::of([named], &source, part, &why)
}

/// 1.0 to 10.0, times ten. What is outside of it is cut to it.
fn tenths(severity: f64) -> u32 {
    #[expect(
        clippy::cast_possible_truncation,
        clippy::cast_sign_loss,
        reason = "it is between 0 and 100"
    )]
    let tenths = (severity * 10.0).round().clamp(0.0, 100.0) as u32;
    tenths
}

/// `CreateSampleFindings` marks what it makes: `additionalInfo.sample`, also inside the JSON text of `additionalInfo.value`.
fn is_sample(finding: &Value) -> bool {
    let sample = |info: &Value| info.get("sample").and_then(Value::as_bool) == Some(true);
    let Some(info) = finding.pointer("/service/additionalInfo") else { return false };
    let inner = info.get("value").and_then(Value::as_str);
    sample(info) || inner.is_some_and(|text| serde_json::from_str(text).is_ok_and(|v| sample(&v)))
}

/// The instance, and whether it is known by its role's credentials alone.
fn instance(finding: &Value) -> Option<(InstanceId, bool)> {
    let text = |pointer: &str| finding.pointer(pointer).and_then(Value::as_str);
    if let Some(id) = text("/resource/instanceDetails/instanceId") {
        let of_credentials = text("/resource/resourceType") == Some("AccessKey");
        return Some((id.parse().ok()?, of_credentials));
    }
    let id = of_principal(text("/resource/accessKeyDetails/principalId")?)?;
    Some((id, true))
}

/// What the instance has to do with it. Runtime Monitoring and Malware Protection leave the role out: what they see happens on
/// the instance itself (GuardDuty user guide, "Finding details").
fn part(kind: &str, role: Option<&str>) -> Part {
    match role {
        Some(role) if role.eq_ignore_ascii_case("actor") => Part::Actor,
        Some(role) if role.eq_ignore_ascii_case("target") => Part::Target,
        _ if kind.contains(":Runtime/") || kind.starts_with("Execution:EC2/") => Part::Actor,
        _ => Part::Unsaid,
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn finding() -> Value {
        json!({
            "schemaVersion": "2.0", "accountId": "111122223333", "region": "eu-west-1",
            "id": "16afba5c5c43e07c9e3e5e2e544e95df", "type": "CryptoCurrency:EC2/BitcoinTool.B!DNS",
            "severity": 8, "title": "It asks for a mining pool.",
            "resource": {"resourceType": "Instance", "instanceDetails": {"instanceId": "i-0123456789abcdef0"}},
            "service": {"resourceRole": "ACTOR", "archived": false, "additionalInfo": {"value": "{}", "type": "default"}},
        })
    }

    fn with(pointer: &str, value: Value) -> Value {
        let mut finding = finding();
        let (parent, key) = pointer.rsplit_once('/').expect("a pointer");
        finding.pointer_mut(parent).expect("the parent")[key] = value;
        finding
    }

    #[test]
    fn the_finding_says_whose_instance_it_is() {
        let alert = read(&finding()).alerts.remove(0);
        assert_eq!(alert.named.instance.as_str(), "i-0123456789abcdef0");
        assert_eq!(alert.named.account.as_deref(), Some("111122223333"));
        assert_eq!(alert.named.region.as_deref(), Some("eu-west-1"));
        assert_eq!(alert.part, Part::Actor);
        let Source::GuardDuty { severity_tenths, .. } = alert.source else { panic!("its source") };
        assert_eq!(severity_tenths, 80);
    }

    #[test]
    fn who_acts_is_told_from_who_is_acted_on() {
        for (pointer, value, expected) in [
            ("/service/resourceRole", json!("TARGET"), Part::Target),
            ("/service/resourceRole", json!("Actor"), Part::Actor),
            ("/service/resourceRole", Value::Null, Part::Unsaid),
        ] {
            assert_eq!(read(&with(pointer, value.clone())).alerts[0].part, expected, "{value}");
        }
        let mut runtime = with("/type", json!("Execution:Runtime/NewBinaryExecuted"));
        runtime["service"]["resourceRole"] = Value::Null;
        assert_eq!(read(&runtime).alerts[0].part, Part::Actor);
    }

    #[test]
    fn an_instance_is_known_by_the_session_of_its_role() {
        let mut theft = with(
            "/type",
            json!("UnauthorizedAccess:IAMUser/InstanceCredentialExfiltration.OutsideAWS"),
        );
        theft["resource"] = json!({
            "resourceType": "AccessKey",
            "accessKeyDetails": {"principalId": "AROAEXAMPLE1234567890:i-1234abcd", "userType": "AssumedRole"},
        });
        let alert = read(&theft).alerts.remove(0);
        assert_eq!(alert.named.instance.as_str(), "i-1234abcd");
        assert_eq!(alert.part, Part::Credentials);
        theft["resource"]["accessKeyDetails"]["principalId"] = json!("AROAEXAMPLE1234567890:alice");
        let user = read(&theft);
        assert!(user.alerts.is_empty() && user.ignored.len() == 1, "{user:?}");
    }

    #[test]
    fn samples_and_archived_findings_are_ignored() {
        for finding in [
            with("/service/archived", json!(true)),
            with("/service/additionalInfo", json!({"sample": true})),
            with("/service/additionalInfo", json!({"value": "{\"sample\":true}"})),
        ] {
            let delivery = read(&finding);
            assert!(delivery.alerts.is_empty() && delivery.unreadable.is_empty(), "{finding}");
            assert_eq!(delivery.ignored.len(), 1, "{finding}");
        }
    }

    #[test]
    fn a_finding_without_what_matters_is_unreadable() {
        for key in ["id", "type", "severity"] {
            let delivery = read(&with(&format!("/{key}"), Value::Null));
            assert_eq!((delivery.alerts.len(), delivery.unreadable.len()), (0, 1), "{key}");
        }
    }
}
