//! CloudTrail events, as a CloudWatch Logs subscription delivers them: calls by an instance's role.
//!
//! Pure. A session of an instance's role is named by the instance, and its calls come from the instance's own addresses, from
//! those of its VPC's NAT gateways, or through a VPC endpoint. Which addresses those are is not known here: every call from a
//! public address is a candidate, and the intake compares.
//! Format: CloudWatch Logs user guide, "Subscription filters with AWS Lambda"; CloudTrail user guide, "userIdentity element".

use std::{
    collections::BTreeSet,
    io::Read as _,
    net::{IpAddr, Ipv4Addr},
};

use base64::Engine as _;
use flate2::read::MultiGzDecoder;
use serde::Deserialize;
use serde_json::Value;

use super::{Delivery, Named, Part, Source, account, of_principal, region};

/// The most that a delivery may unpack to, in bytes: a call of Lambda takes 6 MiB, and CloudTrail's JSON packs well.
const MOST_BYTES: u64 = 64 << 20;

#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
struct Logged {
    message_type: String,
    #[serde(default)]
    log_events: Vec<LogEvent>,
}

#[derive(Debug, Deserialize)]
struct LogEvent {
    message: String,
}

pub(super) fn read(data: &str) -> Delivery {
    let logged = match unpack(data) {
        Ok(logged) => logged,
        Err(why) => return Delivery::unreadable(format!("a log subscription's data: {why}")),
    };
    if logged.message_type != "DATA_MESSAGE" {
        return Delivery::ignored(format!("a log subscription's {}", logged.message_type));
    }
    let mut delivery = Delivery::default();
    let mut seen = BTreeSet::new();
    for event in &logged.log_events {
        match serde_json::from_str::<Value>(&event.message) {
            // The same call from the same place again says nothing new.
            Ok(event) => delivery.alerts.extend(call(&event).filter(|alert| {
                let Source::Trail { address, .. } = &alert.source else { return true };
                seen.insert((alert.named.instance.clone(), *address))
            })),
            // CloudTrail cuts events of more than 256 KiB for CloudWatch Logs.
            Err(error) => {
                delivery.add(Delivery::unreadable(format!("a CloudTrail event: {error}")))
            }
        }
    }
    delivery
}

fn unpack(data: &str) -> Result<Logged, String> {
    let packed =
        base64::engine::general_purpose::STANDARD.decode(data).map_err(|e| e.to_string())?;
    let mut bytes = Vec::new();
    let mut reader = MultiGzDecoder::new(&*packed).take(MOST_BYTES + 1);
    reader.read_to_end(&mut bytes).map_err(|e| e.to_string())?;
    if bytes.len() as u64 > MOST_BYTES {
        return Err(format!("it unpacks to more than {MOST_BYTES} bytes"));
    }
    serde_json::from_slice(&bytes).map_err(|e| e.to_string())
}

/// A call by an instance's role from a public address, which may be the instance's own.
fn call(event: &Value) -> Option<super::Alert> {
    let text = |pointer: &str| event.pointer(pointer).and_then(Value::as_str);
    if text("/userIdentity/type") != Some("AssumedRole") {
        return None;
    }
    let instance = of_principal(text("/userIdentity/principalId")?)?;
    // A service that calls in the role's name is named here in place of an address.
    let address: IpAddr = text("/sourceIPAddress")?.parse().ok()?;
    if event.get("vpcEndpointId").is_some() || is_private(&address) {
        return None;
    }
    let call = format!("{}:{}", text("/eventSource")?, text("/eventName")?);
    let named = Named {
        instance,
        account: account(event.pointer("/userIdentity/accountId")),
        region: region(event.get("awsRegion")),
    };
    let why = format!("its role called {call} from {address}");
    let source = Source::Trail { call: super::shown(&call), address };
    Delivery::of([named], &source, Part::Credentials, &why).alerts.pop()
}

fn is_private(address: &IpAddr) -> bool {
    /// Shared address space, which providers and some VPCs use within (RFC 6598).
    fn is_shared(v4: Ipv4Addr) -> bool {
        v4.octets()[0] == 100 && (64..128).contains(&v4.octets()[1])
    }
    match address {
        IpAddr::V4(v4) => {
            v4.is_private() || v4.is_loopback() || v4.is_link_local() || is_shared(*v4)
        }
        IpAddr::V6(v6) => v6.is_loopback() || v6.is_unique_local() || v6.is_unicast_link_local(),
    }
}

#[cfg(test)]
mod tests {
    use std::io::Write as _;

    use flate2::{Compression, write::GzEncoder};
    use serde_json::json;

    use super::*;

    fn packed(value: &Value) -> String {
        let mut encoder = GzEncoder::new(Vec::new(), Compression::fast());
        encoder.write_all(value.to_string().as_bytes()).expect("memory takes it");
        base64::engine::general_purpose::STANDARD.encode(encoder.finish().expect("it ends"))
    }

    fn event(principal: &str, address: &str) -> Value {
        json!({
            "eventSource": "s3.amazonaws.com", "eventName": "ListBuckets", "awsRegion": "us-east-1",
            "sourceIPAddress": address,
            "userIdentity": {"type": "AssumedRole", "principalId": principal, "accountId": "123456789012"},
        })
    }

    fn logged(events: &[Value]) -> Delivery {
        let events: Vec<_> =
            events.iter().map(|e| json!({"id": "1", "message": e.to_string()})).collect();
        let data = packed(&json!({"messageType": "DATA_MESSAGE", "logEvents": events}));
        super::super::read(&json!({"awslogs": {"data": data}}))
    }

    const ROLE: &str = "AROAEXAMPLE1234567890:i-0123456789abcdef0";

    #[test]
    fn calls_of_an_instance_role_from_public_addresses_are_candidates() {
        let delivery = logged(&[
            event(ROLE, "203.0.113.7"),
            event(ROLE, "203.0.113.7"),
            event(ROLE, "10.0.0.7"),
            event(ROLE, "fd00::1"),
            event(ROLE, "ec2.amazonaws.com"),
            event("AROAEXAMPLE1234567890:alice", "203.0.113.7"),
            event(ROLE, "198.51.100.9"),
        ]);
        let reasons: Vec<_> = delivery.alerts.iter().map(|a| a.reason.as_str()).collect();
        assert_eq!(
            reasons,
            [
                "its role called s3.amazonaws.com:ListBuckets from 203.0.113.7",
                "its role called s3.amazonaws.com:ListBuckets from 198.51.100.9",
            ]
        );
        assert!(delivery.alerts.iter().all(|alert| alert.part == Part::Credentials));
        assert!(delivery.unreadable.is_empty());
    }

    #[test]
    fn a_call_through_an_endpoint_is_none() {
        let mut through = event(ROLE, "203.0.113.7");
        through["vpcEndpointId"] = json!("vpce-0123456789abcdef0");
        assert!(logged(&[through]).alerts.is_empty());
    }

    #[test]
    fn what_checks_a_subscription_is_ignored_and_what_is_cut_is_told() {
        let data = packed(&json!({"messageType": "CONTROL_MESSAGE", "logEvents": []}));
        let control = read(&data);
        assert_eq!((control.ignored.len(), control.unreadable.len()), (1, 0));
        let cut =
            packed(&json!({"messageType": "DATA_MESSAGE", "logEvents": [{"message": "{\"event"}]}));
        assert_eq!(read(&cut).unreadable.len(), 1);
        assert_eq!(read("AAAA").unreadable.len(), 1);
    }

    #[test]
    fn a_bomb_is_refused() {
        let mut encoder = GzEncoder::new(Vec::new(), Compression::best());
        let zeros = vec![b' '; 1 << 20];
        for _ in 0..=(MOST_BYTES >> 20) {
            encoder.write_all(&zeros).expect("memory takes it");
        }
        let bomb =
            base64::engine::general_purpose::STANDARD.encode(encoder.finish().expect("it ends"));
        assert!(unpack(&bomb).expect_err("too large").contains("more than"));
    }
}
