//! What GuardDuty has found and CloudTrail has recorded.
//!
//! Purpose: the findings about an instance, and the events by a resource, a name or a key. Touches GuardDuty and
//! CloudTrail, reading only. Never archives a finding and never slows itself: who asks keeps to CloudTrail's two lookups
//! a second.

use std::collections::HashMap;

use aws_sdk_cloudtrail::types::{LookupAttribute, LookupAttributeKey};
use aws_sdk_guardduty::types::{Condition, Finding, FindingCriteria};
use cleanroom_cloud::{AlertFinding, Event, EventPage, EventQuery, Result};
use cleanroom_contract::{InstanceId, Timestamp};

use crate::{
    clients::Clients,
    error::{bad_answer, fail},
    pages,
};

/// The most findings that one call takes or gives (GuardDuty API reference, `GetFindings`).
const FINDINGS_A_CALL: usize = 50;

/// The most events that one call gives (CloudTrail API reference, `LookupEvents`).
const EVENTS_A_PAGE: i32 = 50;

/// The ids of the Region's detectors: none where GuardDuty was never switched on.
pub(crate) async fn detectors(clients: &Clients) -> Result<Vec<String>> {
    let stream = clients.guardduty.list_detectors().into_paginator().send();
    let pages = pages::all("guardduty:ListDetectors", "", stream).await?;
    Ok(pages.into_iter().flat_map(|page| page.detector_ids.unwrap_or_default()).collect())
}

/// Findings about the instance that nobody has archived; none where GuardDuty is off.
pub(crate) async fn findings(
    clients: &Clients,
    instance: &InstanceId,
) -> Result<Vec<AlertFinding>> {
    let mut findings = Vec::new();
    for detector in detectors(clients).await? {
        findings.extend(detected(clients, &detector, instance).await?);
    }
    Ok(findings)
}

/// One detector's findings about the instance.
async fn detected(
    clients: &Clients,
    detector: &str,
    instance: &InstanceId,
) -> Result<Vec<AlertFinding>> {
    const LIST: &str = "guardduty:ListFindings";
    const GET: &str = "guardduty:GetFindings";
    let stream = clients
        .guardduty
        .list_findings()
        .detector_id(detector)
        .finding_criteria(about(instance))
        .into_paginator()
        .send();
    let pages = pages::all(LIST, instance, stream).await?;
    let ids: Vec<_> =
        pages.into_iter().flat_map(|page| page.finding_ids.unwrap_or_default()).collect();
    let mut findings = Vec::new();
    for some in ids.chunks(FINDINGS_A_CALL) {
        let answer = clients
            .guardduty
            .get_findings()
            .detector_id(detector)
            .set_finding_ids(Some(some.to_vec()))
            .send()
            .await
            .map_err(|e| fail(GET, instance, e))?;
        findings.extend(answer.findings.unwrap_or_default().into_iter().filter_map(translate));
    }
    Ok(findings)
}

/// The criteria of findings about an instance that are not archived.
fn about(instance: &InstanceId) -> FindingCriteria {
    let equals = |value: &str| Condition::builder().equals(value).build();
    let criteria = HashMap::from([
        ("resource.instanceDetails.instanceId".to_owned(), equals(instance.as_str())),
        ("service.archived".to_owned(), equals("false")),
    ]);
    FindingCriteria::builder().set_criterion(Some(criteria)).build()
}

/// A finding in our own words; none for one without an id.
fn translate(finding: Finding) -> Option<AlertFinding> {
    let role = finding.service.and_then(|s| s.resource_role);
    Some(AlertFinding {
        id: finding.id?,
        kind: finding.r#type.unwrap_or_default(),
        severity_tenths: tenths(finding.severity.unwrap_or(0.0)),
        title: finding.title.unwrap_or_default(),
        actor: role.is_some_and(|role| role == "ACTOR"),
    })
}

/// A severity, 0.0 to 10.0, times ten and rounded.
fn tenths(severity: f64) -> u32 {
    // By way of its text: a number has no lossless conversion, and this one is at most a hundred.
    format!("{:.0}", (severity * 10.0).clamp(0.0, 100.0)).parse().unwrap_or(0)
}

/// One page of events, newest first.
pub(crate) async fn events(
    clients: &Clients,
    query: &EventQuery,
    next: Option<&str>,
) -> Result<EventPage> {
    const OPERATION: &str = "cloudtrail:LookupEvents";
    let (key, value) = match query {
        EventQuery::Resource(name) => (LookupAttributeKey::ResourceName, name),
        EventQuery::Username(name) => (LookupAttributeKey::Username, name),
        EventQuery::AccessKey(key) => (LookupAttributeKey::AccessKeyId, key),
    };
    let attribute = LookupAttribute::builder()
        .attribute_key(key)
        .attribute_value(value)
        .build()
        .map_err(|e| bad_answer(OPERATION, value, e))?;
    let answer = clients
        .cloudtrail
        .lookup_events()
        .lookup_attributes(attribute)
        .max_results(EVENTS_A_PAGE)
        .set_next_token(next.map(str::to_owned))
        .send()
        .await
        .map_err(|e| fail(OPERATION, value, e))?;
    Ok(EventPage {
        events: answer.events.unwrap_or_default().into_iter().map(event).collect(),
        next: answer.next_token.filter(|token| !token.is_empty()),
    })
}

/// An event in our own words. None is dropped for what it lacks: it is evidence.
fn event(event: aws_sdk_cloudtrail::types::Event) -> Event {
    Event {
        id: event.event_id.unwrap_or_default(),
        name: event.event_name.unwrap_or_default(),
        source: event.event_source.unwrap_or_default(),
        time: event.event_time.map_or_else(Timestamp::default, |time| Timestamp {
            seconds: time.secs(),
            nanos: time.subsec_nanos(),
        }),
        username: event.username,
        raw: event.cloud_trail_event.unwrap_or_default(),
    }
}

#[cfg(test)]
mod tests {
    use aws_sdk_guardduty::types::Service;

    use super::*;
    use crate::canned::canned;

    fn finding(role: Option<&str>, severity: f64) -> AlertFinding {
        let service = Service::builder().set_resource_role(role.map(str::to_owned)).build();
        let finding = Finding::builder()
            .id("f")
            .r#type("CryptoCurrency:EC2/BitcoinTool.B!DNS")
            .severity(severity)
            .service(service);
        translate(finding.build()).expect("it has an id")
    }

    #[test]
    fn only_the_actor_of_a_finding_acts() {
        assert!(finding(Some("ACTOR"), 8.0).actor);
        assert!(!finding(Some("TARGET"), 8.0).actor);
        assert!(!finding(None, 8.0).actor);
    }

    #[test]
    fn severities_are_rounded_to_tenths() {
        for (severity, expected) in
            [(8.0, 80), (8.94, 89), (0.1 + 0.2, 3), (10.0, 100), (-1.0, 0), (f64::NAN, 0)]
        {
            assert_eq!(finding(None, severity).severity_tenths, expected, "{severity}");
        }
        assert_eq!(finding(None, f64::INFINITY).severity_tenths, 100);
    }

    #[test]
    fn the_criteria_name_the_instance_and_leave_out_what_is_archived() {
        let id = "i-0123456789abcdef0".parse().expect("an id");
        let criteria = about(&id).criterion.expect("criteria");
        assert_eq!(criteria["resource.instanceDetails.instanceId"].equals(), [id.as_str()]);
        assert_eq!(criteria["service.archived"].equals(), ["false"]);
        assert_eq!(criteria.len(), 2);
    }

    #[tokio::test]
    async fn findings_are_fetched_fifty_at_a_time() {
        let canned = canned(None, |request, _| {
            let ids: Vec<_> = (0..60).map(|n| format!("\"f{n}\"")).collect();
            let body = if request.contains("/findings/get") {
                // One for each id that was asked for.
                let asked = request.matches("\"f").count() - 1;
                let one = r#"{"id":"f","type":"T","severity":8,"title":"t","service":{"resourceRole":"ACTOR"}}"#;
                format!("{{\"findings\":[{}]}}", vec![one; asked].join(","))
            } else if request.contains("/findings") {
                format!("{{\"findingIds\":[{}]}}", ids.join(","))
            } else {
                r#"{"detectorIds":["d"]}"#.to_owned()
            };
            (200, body)
        });
        let id = "i-0123456789abcdef0".parse().expect("an id");
        let findings = findings(&canned.clients, &id).await.expect("findings");
        assert_eq!((findings.len(), findings[0].severity_tenths), (60, 80));
        assert!(findings.iter().all(|finding| finding.actor));
        assert_eq!(canned.sent().len(), 4, "detectors, ids, fifty, ten");
    }

    #[tokio::test]
    async fn without_a_detector_there_are_no_findings() {
        let canned = canned(None, |_, _| (200, r#"{"detectorIds":[]}"#.to_owned()));
        let id = "i-0123456789abcdef0".parse().expect("an id");
        assert_eq!(findings(&canned.clients, &id).await, Ok(Vec::new()));
    }

    #[tokio::test]
    async fn events_are_asked_for_by_one_attribute_and_kept_as_they_are() {
        let canned = canned(None, |_, _| {
            let event = r#"{"EventId":"e","EventName":"AssumeRole","EventSource":"sts.amazonaws.com",
                "EventTime":1700000000.5,"Username":"i-0123456789abcdef0","CloudTrailEvent":"{\"a\": 1}"}"#;
            (200, format!("{{\"Events\":[{event},{{}}],\"NextToken\":\"n\"}}"))
        });
        for (query, attribute) in [
            (EventQuery::Resource("x".into()), "ResourceName"),
            (EventQuery::Username("x".into()), "Username"),
            (EventQuery::AccessKey("x".into()), "AccessKeyId"),
        ] {
            let page = events(&canned.clients, &query, Some("before")).await.expect("a page");
            assert_eq!((page.events.len(), page.next.as_deref()), (2, Some("n")));
            assert_eq!(page.events[0].raw, "{\"a\": 1}");
            let half = Timestamp { seconds: 1_700_000_000, nanos: 500_000_000 };
            assert_eq!(page.events[0].time, half);
            let sent = canned.sent().pop().expect("a request");
            for part in [&format!("\"AttributeKey\":\"{attribute}\""), "\"NextToken\":\"before\""] {
                assert!(sent.contains(part), "{sent}");
            }
        }
    }
}
