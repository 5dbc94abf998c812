//! CloudWatch alarms, as EventBridge delivers them.
//!
//! Pure. The instance is the `InstanceId` dimension of one of the alarm's metrics (CloudWatch user guide, "Alarm events and
//! EventBridge").

use serde_json::Value;

use super::{Delivery, Named, Part, Source, account, region};

pub(super) fn read(event: &Value, detail: &Value) -> Delivery {
    let text = |pointer: &str| detail.pointer(pointer).and_then(Value::as_str);
    let Some(name) = text("/alarmName") else {
        return Delivery::unreadable("an alarm without a name");
    };
    match text("/state/value") {
        Some("ALARM") => {}
        state => {
            return Delivery::ignored(format!(
                "alarm {name:?} is {}",
                state.unwrap_or("in no state")
            ));
        }
    }
    let metrics = detail.pointer("/configuration/metrics").and_then(Value::as_array);
    let ids = metrics.into_iter().flatten().filter_map(|metric| {
        metric.pointer("/metricStat/metric/dimensions/InstanceId")?.as_str()?.parse().ok()
    });
    let (account, region) = (account(event.get("account")), region(event.get("region")));
    let named =
        ids.map(|instance| Named { instance, account: account.clone(), region: region.clone() });
    let why = format!("alarm {name}: {}", text("/state/reason").unwrap_or("no reason"));
    let delivery =
        Delivery::of(named, &Source::Alarm { name: super::shown(name) }, Part::Unsaid, &why);
    if delivery.alerts.is_empty() {
        return Delivery::unreadable(format!(
            "alarm {name:?} is on no instance: none of its metrics has the dimension InstanceId"
        ));
    }
    delivery
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn event(state: &str, dimensions: &Value) -> Value {
        json!({
            "detail-type": "CloudWatch Alarm State Change", "account": "123456789012", "region": "us-east-1",
            "detail": {
                "alarmName": "outbound", "state": {"value": state, "reason": "threshold crossed"},
                "configuration": {"metrics": [
                    {"id": "e1", "expression": "m1*2"},
                    {"id": "m1", "metricStat": {"metric": {"namespace": "AWS/EC2", "dimensions": dimensions}}},
                ]},
            },
        })
    }

    #[test]
    fn an_alarm_names_the_instance_of_its_metrics() {
        let event = event("ALARM", &json!({"InstanceId": "i-1234abcd"}));
        let delivery = super::super::read(&event);
        assert_eq!(delivery.alerts[0].named.instance.as_str(), "i-1234abcd");
        assert_eq!(delivery.alerts[0].named.region.as_deref(), Some("us-east-1"));
        assert_eq!(delivery.alerts[0].reason, "alarm outbound: threshold crossed");
    }

    #[test]
    fn an_alarm_that_is_well_is_ignored_and_one_on_something_else_is_unreadable() {
        let well = super::super::read(&event("OK", &json!({"InstanceId": "i-1234abcd"})));
        assert_eq!((well.alerts.len(), well.ignored.len()), (0, 1));
        let other = super::super::read(&event("ALARM", &json!({"QueueName": "i-1234abcd"})));
        assert_eq!((other.alerts.len(), other.unreadable.len()), (0, 1));
    }
}
