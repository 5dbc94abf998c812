//! The room's role: it handles hostile data, so it is judged as if the data had won.

use serde_json::Value;

use super::{
    policy::{Request, Verdict, judge},
    support::{BOUNDARY, BUCKET, CASE, KEY, TOPIC, least, parameters, room, rooms, shared, source},
};

fn policy(rendered: &cleanroom_harness::template::Rendered) -> &Value {
    let policies = rendered.property("Role", "/Policies").as_array().expect("policies");
    assert_eq!(policies.len(), 1);
    &policies[0]["PolicyDocument"]
}

fn object(key: &str) -> String {
    format!("arn:aws:s3:::{BUCKET}/{key}")
}

/// A request from inside the room.
fn inside(action: &str, resource: impl Into<String>) -> Request {
    Request::new(action, resource).with("aws:SourceVpc", "Network-0123456789abcdef0")
}

/// Creating an object that is not there yet, by one request or by putting the parts of an upload together: both are
/// `s3:PutObject` with `If-None-Match: *` (S3 user guide, "Enforce conditional writes on Amazon S3 buckets").
fn creating(request: Request) -> Request {
    request.with("s3:if-none-match", "*").with("s3:ObjectCreationOperation", "true")
}

#[test]
fn it_may_do_its_work() {
    let rendered = room(&parameters(1));
    let stack = "arn:aws:cloudformation:us-east-1:123456789012:stack/cleanroom-case/11111111-2222-3333-4444-555555555555";
    let log = format!(
        "arn:aws:logs:us-east-1:123456789012:log-group:/cleanroom/{CASE}/11111111-2222-3333-4444-555555555555:log-stream:x"
    );
    let bundle = object(&format!("cases/{CASE}/bundles/scan/report.json"));
    let prefix = |name: &str| {
        inside("s3:ListBucket", format!("arn:aws:s3:::{BUCKET}"))
            .with("s3:prefix", format!("cases/{CASE}/{name}/"))
    };
    let key = |action| inside(action, KEY).with("kms:ViaService", "s3.us-east-1.amazonaws.com");
    for request in [
        inside("s3:GetObject", object(&format!("cases/{CASE}/orders/x.json"))),
        inside("s3:GetObject", object(&format!("cases/{CASE}/orders/room-2/x.json"))),
        inside("s3:GetObject", object("agent/cleanroom-agent")),
        inside("s3:GetObject", object("rules/webshells.yar")),
        inside("s3:GetObject", object("tools/tools.tar.gz")),
        // To tell its own object, whose answer was lost, from somebody else's.
        inside("s3:GetObject", bundle.as_str()),
        creating(inside("s3:PutObject", bundle.as_str())),
        // Beginning an upload and its parts, which take no condition.
        inside("s3:PutObject", bundle.as_str()).with("s3:ObjectCreationOperation", "false"),
        inside("s3:ListMultipartUploadParts", bundle),
        prefix("orders"),
        prefix("bundles"),
        inside("sns:Publish", TOPIC),
        inside("cloudformation:SignalResource", stack),
        inside("logs:PutLogEvents", log.as_str()),
        inside("logs:CreateLogStream", log),
        inside("ssm:UpdateInstanceInformation", "*"),
        inside("ssmmessages:OpenControlChannel", "*"),
        inside("states:SendTaskHeartbeat", "*"),
        key("kms:Decrypt"),
        key("kms:GenerateDataKey"),
    ] {
        assert_eq!(judge(policy(&rendered), &request), Verdict::Allowed, "{request:?}");
    }
}

#[test]
fn it_may_do_nothing_else_to_evidence() {
    for (which, rendered) in rooms() {
        let vpc = rendered.outputs["Vpc"].as_str().expect("a VPC").to_owned();
        let bundle = object(&format!("cases/{CASE}/bundles/scan/report.json"));
        let bucket = format!("arn:aws:s3:::{BUCKET}");
        for (action, resource) in [
            // Deleting, in whatever way.
            ("s3:DeleteObject", bundle.clone()),
            ("s3:DeleteObjectVersion", bundle.clone()),
            ("s3:DeleteObjectTagging", bundle.clone()),
            ("s3:AbortMultipartUpload", bundle.clone()),
            ("s3:BypassGovernanceRetention", bundle.clone()),
            ("s3:PutObjectRetention", bundle.clone()),
            ("s3:PutObjectLegalHold", bundle),
            ("s3:PutLifecycleConfiguration", bucket.clone()),
            ("s3:PutBucketPolicy", bucket.clone()),
            ("s3:PutBucketVersioning", bucket.clone()),
            ("s3:DeleteBucket", bucket),
            // The custody log, claims, its own orders, its own agent.
            ("s3:PutObject", object(&format!("cases/{CASE}/custody/000001.json"))),
            ("s3:GetObject", object(&format!("cases/{CASE}/custody/000001.json"))),
            ("s3:PutObject", object("instances/123456789012/us-east-1/i-1/1.json")),
            ("s3:PutObject", object(&format!("cases/{CASE}/orders/x.json"))),
            ("s3:PutObject", object("agent/cleanroom-agent")),
            ("s3:PutObject", object("rules/x.yar")),
            ("s3:PutObject", object("tools/tools.tar.gz")),
            // Another case, one whose name begins with this one's too.
            ("s3:GetObject", object("cases/case-2/orders/x.json")),
            ("s3:GetObject", object(&format!("cases/{CASE}0/orders/x.json"))),
            ("s3:PutObject", object("cases/case-2/bundles/scan/report.json")),
            ("s3:PutObject", object(&format!("cases/{CASE}0/bundles/scan/report.json"))),
            // Another bucket, the attacker's.
            ("s3:PutObject", format!("arn:aws:s3:::drop-box/cases/{CASE}/bundles/x")),
            ("s3:GetObject", "arn:aws:s3:::drop-box/x".to_owned()),
        ] {
            let request = Request::new(action, resource).with("aws:SourceVpc", vpc.as_str());
            let request = if action == "s3:PutObject" { creating(request) } else { request };
            assert_eq!(judge(policy(&rendered), &request), Verdict::Denied, "{which}: {request:?}");
        }
    }
}

#[test]
fn it_may_write_over_nothing_not_even_its_own() {
    for (which, rendered) in rooms() {
        let vpc = rendered.outputs["Vpc"].as_str().expect("a VPC").to_owned();
        for name in ["bundles/scan/SHA256SUMS", "bundles/scan/events/000001.json"] {
            let object = object(&format!("cases/{CASE}/{name}"));
            let put = Request::new("s3:PutObject", object).with("aws:SourceVpc", vpc.as_str());
            let verdict = |request: &Request| judge(policy(&rendered), request);
            assert_eq!(verdict(&creating(put.clone())), Verdict::Allowed, "{which}: {name}");
            let creates = put.clone().with("s3:ObjectCreationOperation", "true");
            // Where an object is there, each of these would replace it.
            let over = creates.clone().with("s3:if-match", "\"d41d8cd98f00b204e9800998ecf8427e\"");
            let copy = creates.clone().with("s3:x-amz-copy-source", "somewhere/else");
            for request in [creates, over, copy, put] {
                assert_eq!(verdict(&request), Verdict::Denied, "{which}: {request:?}");
            }
        }
    }
}

#[test]
fn it_may_do_nothing_else_at_all() {
    let rendered = room(&parameters(1));
    let stack = "arn:aws:cloudformation:us-east-1:123456789012:stack/cleanroom-case-2/1";
    for request in [
        inside("s3:ListBucket", format!("arn:aws:s3:::{BUCKET}")),
        inside("s3:ListBucket", format!("arn:aws:s3:::{BUCKET}"))
            .with("s3:prefix", "cases/case-2/orders/"),
        inside("s3:ListBucketVersions", format!("arn:aws:s3:::{BUCKET}")),
        inside("cloudformation:SignalResource", stack),
        inside("cloudformation:DeleteStack", stack),
        inside("sns:Publish", "arn:aws:sns:us-east-1:999999999999:drop"),
        inside(
            "logs:PutLogEvents",
            "arn:aws:logs:us-east-1:123456789012:log-group:/cleanroom/case-2/1:*",
        ),
        inside(
            "logs:DeleteLogGroup",
            format!("arn:aws:logs:us-east-1:123456789012:log-group:/cleanroom/{CASE}/1:*"),
        ),
        inside("kms:Decrypt", KEY),
        inside("ec2:DescribeInstances", "*"),
        inside("ec2:ModifyNetworkInterfaceAttribute", "*"),
        inside("iam:PassRole", "*"),
        inside("sts:AssumeRole", "arn:aws:iam::123456789012:role/admin"),
        inside("ssm:SendCommand", "*"),
        inside("ssm:GetParameter", "*"),
    ] {
        assert_ne!(judge(policy(&rendered), &request), Verdict::Allowed, "{request:?}");
    }
    // Without a topic, a task or a key, no right to any.
    let rendered = room(&least());
    for request in [
        inside("sns:Publish", TOPIC),
        inside("states:SendTaskSuccess", "*"),
        inside("kms:Decrypt", KEY).with("kms:ViaService", "s3.us-east-1.amazonaws.com"),
    ] {
        assert_eq!(judge(policy(&rendered), &request), Verdict::Silent, "{request:?}");
    }
}

#[test]
fn its_credentials_are_of_no_use_elsewhere() {
    let own = room(&parameters(1));
    let shared = room(&shared(parameters(1)));
    let object = object(&format!("cases/{CASE}/bundles/scan/report.json"));
    let from = |vpc: &str| {
        creating(Request::new("s3:PutObject", object.as_str()).with("aws:SourceVpc", vpc))
    };
    assert_eq!(judge(policy(&own), &from("Network-0123456789abcdef0")), Verdict::Allowed);
    assert_eq!(judge(policy(&shared), &from("vpc-0123456789abcdef0")), Verdict::Allowed);
    for rendered in [&own, &shared] {
        assert_eq!(judge(policy(rendered), &from("vpc-0fedcba9876543210")), Verdict::Denied);
        // From the internet there is no such key.
        let outside = creating(Request::new("s3:PutObject", object.as_str()));
        assert_eq!(judge(policy(rendered), &outside), Verdict::Denied);
    }
}

#[test]
fn it_is_under_the_path_and_the_boundary() {
    for (which, rendered) in rooms() {
        let roles: Vec<_> = rendered.of_type("AWS::IAM::Role").collect();
        assert_eq!(roles.len(), 1, "{which}");
        let (_, role) = roles[0];
        assert_eq!(role["Path"], "/cleanroom/", "{which}");
        assert!(role.get("ManagedPolicyArns").is_none(), "{which}: policies of others");
        // CAPABILITY_IAM is enough, and two rooms do not meet, where nothing is named.
        assert!(role.get("RoleName").is_none(), "{which}");
        let trust = &role["AssumeRolePolicyDocument"]["Statement"];
        assert_eq!(trust.as_array().expect("statements").len(), 1, "{which}");
        assert_eq!(trust[0]["Principal"]["Service"], "ec2.amazonaws.com", "{which}");
        let (_, profile) = rendered.of_type("AWS::IAM::InstanceProfile").next().expect("a profile");
        assert_eq!(profile["Path"], "/cleanroom/", "{which}");
    }
    assert_eq!(room(&parameters(1)).property("Role", "/PermissionsBoundary"), BOUNDARY);
    assert_eq!(room(&least()).property("Role", "/PermissionsBoundary"), &Value::Null);
    // The endpoints of a shared network know the stack by the role's own tag.
    let stack = serde_json::json!({"Key": "cleanroom:stack", "Value": "cleanroom-case"});
    let tags = room(&parameters(1)).property("Role", "/Tags").as_array().expect("tags").clone();
    assert!(tags.contains(&stack));
    assert!(!source("shared-network.yaml").contains("AWS::IAM::"));
}
