//! Security Hub's custom actions: a person chose findings, and what to do with them.
//!
//! Pure. Format: AWS Security Finding Format; the instance is a resource of the type `AwsEc2Instance`, whose id is its ARN.

use serde_json::Value;

use super::{Delivery, Part, Source, of_arn};

pub(super) fn read(detail: &Value) -> Delivery {
    let Some(action) = detail.get("actionName").and_then(Value::as_str) else {
        return Delivery::unreadable("a Security Hub action without a name");
    };
    let findings = detail.get("findings").and_then(Value::as_array);
    let mut delivery = Delivery::default();
    for finding in findings.into_iter().flatten() {
        let resources = finding.get("Resources").and_then(Value::as_array).into_iter().flatten();
        let instances = resources
            .filter(|r| r.get("Type").and_then(Value::as_str) == Some("AwsEc2Instance"))
            .filter_map(|r| of_arn(r.get("Id")?.as_str()?));
        let title = finding.get("Title").and_then(Value::as_str).unwrap_or("no title");
        let source = Source::SecurityHub { action: super::shown(action) };
        let why = format!("Security Hub, {action}: {title}");
        delivery.add(Delivery::of(instances, &source, Part::Unsaid, &why));
    }
    if delivery.alerts.is_empty() {
        return Delivery::unreadable(format!(
            "Security Hub's action {action:?} is on no EC2 instance"
        ));
    }
    delivery
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn every_instance_of_every_finding_is_named() {
        let arn = |id: &str| format!("arn:aws:ec2:us-east-1:123456789012:instance/{id}");
        let resource = |id: &str| json!({"Type": "AwsEc2Instance", "Id": arn(id)});
        let detail = json!({
            "actionName": "contain",
            "findings": [
                {"Title": "one", "Resources": [resource("i-1234abcd"), {"Type": "AwsS3Bucket", "Id": "arn:aws:s3:::x"}]},
                {"Title": "two", "Resources": [resource("i-0123456789abcdef0"), resource("i-1234abcd")]},
            ],
        });
        let delivery = read(&detail);
        let seen: Vec<_> = delivery
            .alerts
            .iter()
            .map(|alert| (alert.named.instance.as_str(), alert.reason.as_str()))
            .collect();
        assert_eq!(
            seen,
            [
                ("i-1234abcd", "Security Hub, contain: one"),
                ("i-0123456789abcdef0", "Security Hub, contain: two"),
                ("i-1234abcd", "Security Hub, contain: two"),
            ]
        );
    }

    #[test]
    fn an_action_on_no_instance_is_unreadable() {
        for detail in [
            json!({}),
            json!({"actionName": "contain"}),
            json!({"actionName": "contain", "findings": [{}]}),
        ] {
            let delivery = read(&detail);
            assert_eq!((delivery.alerts.len(), delivery.unreadable.len()), (0, 1), "{detail}");
        }
    }
}
