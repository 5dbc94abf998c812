//! Policies of the bucket, the topics, the queue and the keys.

use serde_json::Value;

use super::{
    super::{
        policy::{Request, Verdict, judge},
        support::{BUCKET, CASE},
    },
    both, least, most, object, response,
};

const ROOM: &str = "arn:aws:iam::123456789012:role/cleanroom/cleanroom-case-Role-1";
const STEP: &str = "arn:aws:iam::123456789012:role/cleanroom/response/StepRole";
const ADMIN: &str = "arn:aws:iam::123456789012:role/admin";

fn judged(policy: &Value, request: Request, who: &str) -> Verdict {
    let request = request.with("aws:PrincipalArn", who).with("principal", who);
    judge(policy, &request)
}

#[test]
fn nobody_deletes_evidence_or_writes_custody_over() {
    let rendered = response(&least());
    let policy = rendered.property("EvidencePolicy", "/PolicyDocument");
    let event = object(&format!("cases/{CASE}/custody/000001.json"));
    for who in [ADMIN, STEP, ROOM] {
        for action in [
            "s3:DeleteObject",
            "s3:DeleteObjectVersion",
            "s3:BypassGovernanceRetention",
            "s3:PutObject",
        ] {
            let request = Request::new(action, event.as_str());
            assert_eq!(judged(policy, request, who), Verdict::Denied, "{who}: {action}");
        }
        let bucket = format!("arn:aws:s3:::{BUCKET}");
        assert_eq!(judged(policy, Request::new("s3:DeleteBucket", bucket), who), Verdict::Denied);
        let plain =
            Request::new("s3:GetObject", event.as_str()).with("aws:SecureTransport", "false");
        assert_eq!(judged(policy, plain, who), Verdict::Denied, "{who} without TLS");
    }
    let once = |key: &str| Request::new("s3:PutObject", object(key)).with("s3:if-none-match", "*");
    let custody = format!("cases/{CASE}/custody/000002.json");
    // Not denied: whether it is allowed is up to who asks.
    assert_eq!(judged(policy, once(&custody), STEP), Verdict::Silent);
    assert_eq!(judged(policy, once(&custody), ROOM), Verdict::Denied);
    let bundle = format!("cases/{CASE}/bundles/s/report.json");
    assert_eq!(judged(policy, once(&bundle), ROOM), Verdict::Silent);
    for claim in ["instances/1/us-east-1/i-1/1.json", "cases/c/orders/s.json"] {
        let request = Request::new("s3:PutObject", object(claim));
        assert_eq!(judged(policy, request, ADMIN), Verdict::Denied, "{claim}");
    }
}

#[test]
fn the_bucket_keeps_what_it_has() {
    let rendered = response(&least());
    let bucket = |pointer: &str| rendered.property("Evidence", pointer).clone();
    assert_eq!(bucket("/VersioningConfiguration/Status"), "Enabled");
    assert_eq!(bucket("/ObjectLockEnabled"), true);
    assert_eq!(bucket("/ObjectLockConfiguration/Rule/DefaultRetention/Mode"), "GOVERNANCE");
    let encryption = bucket(
        "/BucketEncryption/ServerSideEncryptionConfiguration/0/ServerSideEncryptionByDefault",
    );
    assert_eq!(encryption["SSEAlgorithm"], "aws:kms");
    let public = bucket("/PublicAccessBlockConfiguration");
    assert!(
        public
            .as_object()
            .is_some_and(|kinds| kinds.len() == 4 && kinds.values().all(|on| on == true))
    );
    for (name, resource) in &rendered.resources {
        let kind = resource["Type"].as_str().expect("a type");
        let retained = ["Evidence", "EvidenceKey", "EvidencePolicy", "MessagesKey"];
        let evidence = retained.contains(&name.as_str());
        if evidence || kind == "AWS::Logs::LogGroup" {
            for policy in ["DeletionPolicy", "UpdateReplacePolicy"] {
                assert_eq!(resource[policy], "Retain", "{name}");
            }
        }
    }
    // What is there already is not made again.
    let other = response(&most());
    for name in ["Evidence", "EvidenceKey", "EvidencePolicy"] {
        assert!(!other.resources.contains_key(name), "{name}");
    }
}

#[test]
fn only_those_who_are_named_raise_an_alert() {
    let publish = || Request::new("sns:Publish", "IntakeTopic-0123456789abcdef0");
    let service = |rendered: &_, account: &str| {
        let policy = cleanroom_harness::template::Rendered::property(
            rendered,
            "IntakeTopicPolicy",
            "/PolicyDocument",
        );
        let request = publish()
            .with("aws:SourceAccount", account)
            .with("principal", "cloudwatch.amazonaws.com");
        judge(policy, &request)
    };
    for rendered in both() {
        assert_eq!(service(&rendered, "123456789012"), Verdict::Allowed);
        assert_eq!(service(&rendered, "999999999999"), Verdict::Silent);
        let policy = rendered.property("IntakeTopicPolicy", "/PolicyDocument");
        let stranger = "arn:aws:iam::999999999999:role/x";
        assert_eq!(judged(policy, publish(), stranger), Verdict::Silent);
        let plain = publish().with("aws:SecureTransport", "false");
        assert_eq!(
            judged(policy, plain, "arn:aws:iam::123456789012:role/scanner"),
            Verdict::Denied
        );
    }
    let rendered = response(&most());
    let named = rendered.property("IntakeTopicPolicy", "/PolicyDocument");
    for (who, expected) in [
        ("arn:aws:iam::123456789012:role/scanner", Verdict::Allowed),
        ("arn:aws:iam::210987654321:role/any", Verdict::Allowed),
        (ADMIN, Verdict::Silent),
    ] {
        assert_eq!(judged(named, publish(), who), expected, "{who}");
    }
}

#[test]
fn services_reach_topics_queue_and_key_for_this_account_only() {
    for rendered in both() {
        let from = |request: Request, service: &str, account: &str| {
            request.with("aws:SourceAccount", account).with("principal", service)
        };
        let key = rendered.property("MessagesKey", "/KeyPolicy");
        let queue = rendered.property("DeadLettersPolicy", "/PolicyDocument");
        let topic = rendered.property("NotifyTopicPolicy", "/PolicyDocument");
        let letters = "arn:aws:sqs:us-east-1:123456789012:DeadLetters-0123456789abcdef0";
        for (policy, request, services) in [
            (key, Request::new("kms:GenerateDataKey", "*"), &["cloudwatch", "events", "sns"][..]),
            (key, Request::new("kms:Decrypt", "*"), &["cloudwatch", "events", "sns"]),
            (queue, Request::new("sqs:SendMessage", letters), &["events", "sns"]),
            (topic, Request::new("sns:Publish", "NotifyTopic-0123456789abcdef0"), &["cloudwatch"]),
        ] {
            for service in services {
                let service = format!("{service}.amazonaws.com");
                let ours = from(request.clone(), &service, "123456789012");
                assert_eq!(judge(policy, &ours), Verdict::Allowed, "{ours:?}");
                let theirs = from(request.clone(), &service, "999999999999");
                assert_eq!(judge(policy, &theirs), Verdict::Silent, "{theirs:?}");
            }
            let stranger = from(request, "lambda.amazonaws.com", "123456789012");
            assert_eq!(judge(policy, &stranger), Verdict::Silent, "{stranger:?}");
        }
    }
}

#[test]
fn the_evidence_s_key_outlives_the_functions() {
    let rendered = response(&least());
    let policy = rendered.property("EvidenceKey", "/KeyPolicy");
    for action in ["kms:ScheduleKeyDeletion", "kms:DisableKey", "kms:PutKeyPolicy"] {
        for who in [STEP, ROOM] {
            assert_eq!(
                judged(policy, Request::new(action, "*"), who),
                Verdict::Denied,
                "{who}: {action}"
            );
        }
        assert_eq!(judged(policy, Request::new(action, "*"), ADMIN), Verdict::Allowed, "{action}");
    }
    assert_eq!(rendered.property("EvidenceKey", "/EnableKeyRotation"), true);
}
