//! What roles may do: contain, preserve, examine. What none may, whatever it is told: release, or lose evidence.

use std::{collections::BTreeSet, fs};

use cleanroom_harness::{template::Rendered, tools::workspace_root};
use serde_json::Value;

use super::{
    super::{
        policy::{Request, Verdict, judge},
        support::{BOUNDARY, CASE, KEY, parameters, room},
    },
    AUTOMATIC, FUNCTIONS, allowed, both, ec2, least, most, object, policy, response,
};

const GROUP: &str = "security-group/sg-0123456789abcdef0";

/// A request on a security group with tags.
fn on_group(action: &str, tags: &[(&str, &str)]) -> Request {
    let request = Request::new(action, ec2(GROUP));
    tags.iter().fold(request, |request, (key, value)| {
        request.with(&format!("ec2:ResourceTag/{key}"), *value)
    })
}

/// Whether a role may give an interface a group with these tags: AWS asks for the interface and for the group.
fn may_give(rendered: &Rendered, role: &str, tags: &[(&str, &str)]) -> bool {
    const ACTION: &str = "ec2:ModifyNetworkInterfaceAttribute";
    let interface = Request::new(ACTION, ec2("network-interface/eni-0123456789abcdef0"));
    allowed(rendered, role, &interface) && allowed(rendered, role, &on_group(ACTION, tags))
}

#[test]
fn what_contains_gives_an_interface_groups_of_cleanroom_s_own_and_no_others() {
    for rendered in both() {
        for role in ["StepRole", "ContainRole"] {
            assert!(may_give(&rendered, role, &[("cleanroom:group", "forensic")]), "{role}");
            assert!(may_give(&rendered, role, &[("cleanroom:case", CASE)]), "{role}");
        }
        for role in AUTOMATIC {
            assert!(!may_give(&rendered, role, &[]), "{role}");
            assert!(!may_give(&rendered, role, &[("Name", "web")]), "{role}");
            assert!(!may_give(&rendered, role, &[("cleanroom:group", "web")]), "{role}");
            // Nor make one of its own of it: tags come with the making only.
            assert!(
                !allowed(&rendered, role, &Request::new("ec2:CreateTags", ec2(GROUP))),
                "{role}"
            );
            // The other call that sets groups.
            let groups = Request::new("ec2:ModifyInstanceAttribute", ec2(GROUP));
            assert!(!allowed(&rendered, role, &groups), "{role}");
        }
    }
}

#[test]
fn nothing_that_runs_by_itself_can_release() {
    let instance = ec2("instance/i-0123456789abcdef0");
    let role = "arn:aws:iam::123456789012:role/app/web".to_owned();
    let group =
        "arn:aws:autoscaling:us-east-1:123456789012:autoScalingGroup:x:autoScalingGroupName/web";
    let targets =
        "arn:aws:elasticloadbalancing:us-east-1:123456789012:targetgroup/web/0123456789abcdef";
    for rendered in both() {
        for name in AUTOMATIC {
            for (action, resource) in [
                ("ec2:AssociateIamInstanceProfile", instance.clone()),
                ("ec2:ReplaceIamInstanceProfileAssociation", instance.clone()),
                ("ec2:AssociateAddress", ec2("elastic-ip/eipalloc-0123456789abcdef0")),
                ("ec2:AttachNetworkInterface", instance.clone()),
                ("ec2:DeleteNetworkAclEntry", ec2("network-acl/acl-0123456789abcdef0")),
                ("ec2:DeleteTags", instance.clone()),
                ("iam:DeleteRolePolicy", role.clone()),
                ("autoscaling:AttachInstances", group.to_owned()),
                ("autoscaling:ResumeProcesses", group.to_owned()),
                ("elasticloadbalancing:RegisterTargets", targets.to_owned()),
                ("elasticloadbalancing:RegisterInstancesWithLoadBalancer", targets.to_owned()),
            ] {
                let request = Request::new(action, resource);
                assert_eq!(
                    judge(&policy(&rendered, name), &request),
                    Verdict::Denied,
                    "{name}: {action}"
                );
            }
            let passes = Request::new("iam:PassRole", role.as_str())
                .with("iam:PassedToService", "ec2.amazonaws.com");
            let endpoint = |state: &str| {
                Request::new("ec2:ModifyInstanceMetadataOptions", instance.as_str())
                    .with("ec2:Attribute/HttpEndpoint", state)
            };
            assert!(!allowed(&rendered, name, &passes), "{name}");
            assert!(!allowed(&rendered, name, &endpoint("enabled")), "{name}");
            assert_eq!(allowed(&rendered, name, &endpoint("disabled")), name == "StepRole");
        }
    }
}

#[test]
fn nothing_that_runs_by_itself_can_lose_evidence() {
    let snapshot = "arn:aws:ec2:us-east-1::snapshot/snap-0123456789abcdef0".to_owned();
    let event = object(&format!("cases/{CASE}/custody/000001.json"));
    let key = "arn:aws:kms:us-east-1:123456789012:EvidenceKey-0123456789abcdef0".to_owned();
    for rendered in both() {
        for role in AUTOMATIC {
            for (action, resource) in [
                ("ec2:DeleteSnapshot", &snapshot),
                ("ec2:ModifySnapshotAttribute", &snapshot),
                ("ec2:UnlockSnapshot", &snapshot),
                ("ec2:TerminateInstances", &ec2("instance/i-0123456789abcdef0")),
                ("ec2:StopInstances", &ec2("instance/i-0123456789abcdef0")),
                ("s3:DeleteObject", &event),
                ("s3:DeleteObjectVersion", &event),
                ("s3:BypassGovernanceRetention", &event),
                ("s3:PutObjectRetention", &event),
                ("s3:PutBucketPolicy", &object("")),
                ("kms:ScheduleKeyDeletion", &key),
            ] {
                let request = Request::new(action, resource.as_str());
                assert_eq!(
                    judge(&policy(&rendered, role), &request),
                    Verdict::Denied,
                    "{role}: {action}"
                );
            }
            let hold = |word: &str| {
                Request::new("s3:PutObjectLegalHold", event.as_str())
                    .with("s3:object-lock-legal-hold", word)
            };
            assert!(!allowed(&rendered, role, &hold("OFF")), "{role}");
            let writes = ["StepRole", "ContainRole"].contains(&role);
            assert_eq!(allowed(&rendered, role, &hold("ON")), writes, "{role}");
        }
    }
}

#[test]
fn custody_is_written_under_the_condition_alone() {
    for rendered in both() {
        for key in [
            format!("cases/{CASE}/custody/000001.json"),
            format!("cases/{CASE}/orders/20260102T030405Z-0123abcd.json"),
            "instances/123456789012/us-east-1/i-0123456789abcdef0/1.json".to_owned(),
        ] {
            let put = Request::new("s3:PutObject", object(&key));
            let once = put.clone().with("s3:if-none-match", "*");
            for role in AUTOMATIC {
                assert!(!allowed(&rendered, role, &put), "{role}: {key}");
                let writes = ["StepRole", "ContainRole"].contains(&role);
                assert_eq!(allowed(&rendered, role, &once), writes, "{role}: {key}");
            }
        }
        // A bundle is a room's to write, and an agent a person's.
        for key in [format!("cases/{CASE}/bundles/s/report.json"), "agent/latest.json".to_owned()] {
            let put = Request::new("s3:PutObject", object(&key)).with("s3:if-none-match", "*");
            for role in AUTOMATIC {
                assert!(!allowed(&rendered, role, &put), "{role}: {key}");
            }
        }
    }
}

#[test]
fn contain_only_can_isolate_and_tell() {
    let forensic = [("cleanroom:group", "forensic")];
    let flush = [("cleanroom:case", CASE)];
    let made = |key: &str, value: &str| {
        Request::new("ec2:CreateSecurityGroup", ec2(GROUP))
            .with(&format!("aws:RequestTag/{key}"), value)
    };
    let tagged =
        Request::new("ec2:CreateTags", ec2(GROUP)).with("ec2:CreateAction", "CreateSecurityGroup");
    for rendered in both() {
        for request in [
            Request::new("ec2:DescribeInstances", "*"),
            Request::new("ec2:DescribeNetworkInterfaces", "*"),
            Request::new("ec2:DescribeSecurityGroupRules", "*"),
            Request::new("ec2:CreateSecurityGroup", ec2("vpc/vpc-0123456789abcdef0")),
            made("cleanroom:group", "forensic"),
            made("cleanroom:case", CASE),
            tagged.clone(),
            on_group("ec2:RevokeSecurityGroupEgress", &forensic),
            on_group("ec2:RevokeSecurityGroupIngress", &forensic),
            on_group("ec2:AuthorizeSecurityGroupEgress", &flush),
            on_group("ec2:AuthorizeSecurityGroupIngress", &flush),
            on_group("ec2:DeleteSecurityGroup", &flush),
            Request::new(
                "ec2:ModifyNetworkInterfaceAttribute",
                ec2("network-interface/eni-0123456789abcdef0"),
            ),
            Request::new("ec2:DisassociateAddress", ec2("elastic-ip/eipalloc-0123456789abcdef0")),
            Request::new("ec2:CreateTags", ec2("network-interface/eni-0123456789abcdef0")),
            Request::new("sns:Publish", "NotifyTopic-0123456789abcdef0"),
        ] {
            for role in ["StepRole", "ContainRole"] {
                assert!(allowed(&rendered, role, &request), "{role}: {request:?}");
            }
        }
        // The forensic group is never opened, nor anybody else's.
        for tags in [&forensic[..], &[]] {
            for action in ["ec2:AuthorizeSecurityGroupEgress", "ec2:DeleteSecurityGroup"] {
                assert!(!allowed(&rendered, "ContainRole", &on_group(action, tags)), "{action}");
            }
        }
    }
}

/// What the actions of a role's permissions are, in order.
fn actions(policy: &Value) -> BTreeSet<String> {
    let statements = policy["Statement"].as_array().expect("statements").iter();
    let allows = statements.filter(|statement| statement["Effect"] == "Allow");
    let actions = allows.flat_map(|statement| match &statement["Action"] {
        Value::Array(all) => all.clone(),
        one => vec![one.clone()],
    });
    actions.map(|action| action.as_str().expect("a name").to_owned()).collect()
}

#[test]
fn the_step_may_do_exactly_what_the_command_line_does_without_a_person() {
    let file = workspace_root().join("controller/iam-policy.json");
    let text = fs::read_to_string(file).expect("read the policy of the command line");
    let mut expected = actions(&serde_json::from_str(&text).expect("JSON"));
    for (why, theirs) in [
        (
            "release",
            &[
                "autoscaling:AttachInstances",
                "autoscaling:ResumeProcesses",
                "ec2:AssociateAddress",
                "ec2:AssociateIamInstanceProfile",
                "ec2:DeleteNetworkAclEntry",
                "ec2:DeleteTags",
                "elasticloadbalancing:RegisterInstancesWithLoadBalancer",
                "elasticloadbalancing:RegisterTargets",
                "iam:DeleteRolePolicy",
            ][..],
        ),
        (
            "respond --via aws",
            &["states:DescribeExecution", "states:GetExecutionHistory", "states:StartExecution"],
        ),
        ("approve", &["states:SendTaskFailure", "states:SendTaskSuccess"]),
        (
            "revoke --principal",
            &[
                "iam:GetUserPolicy",
                "iam:ListAccessKeys",
                "iam:ListUserPolicies",
                "iam:PutUserPolicy",
                "iam:UpdateAccessKey",
            ],
        ),
        (
            "a forensic account, to which no alert hands evidence by itself",
            &["ec2:DescribeSnapshotAttribute", "ec2:ModifySnapshotAttribute", "kms:ListGrants"],
        ),
        (
            "preflight",
            &[
                "cloudtrail:DescribeTrails",
                "cloudtrail:GetTrailStatus",
                "guardduty:GetDetector",
                "iam:SimulatePrincipalPolicy",
                "s3:GetBucketObjectLockConfiguration",
                "s3:GetBucketPolicy",
                "s3:GetBucketPublicAccessBlock",
                "s3:GetBucketVersioning",
                "s3:GetEncryptionConfiguration",
                "servicequotas:GetAWSDefaultServiceQuota",
                "servicequotas:GetServiceQuota",
                "sns:GetTopicAttributes",
            ],
        ),
    ] {
        for action in theirs {
            assert!(expected.remove(*action), "{action} of {why} is not asked for at all");
        }
    }
    // A function's own.
    expected.extend(
        ["logs:CreateLogStream", "logs:PutLogEvents", "sqs:SendMessage"].map(str::to_owned),
    );
    for rendered in both() {
        let found = actions(&policy(&rendered, "StepRole"));
        let missing: Vec<_> = expected.difference(&found).collect();
        let more: Vec<_> = found.difference(&expected).collect();
        assert!(missing.is_empty() && more.is_empty(), "missing: {missing:?}; more: {more:?}");
    }
}

#[test]
fn intake_and_the_machines_change_nothing_themselves() {
    let fine = [
        "kms:Decrypt",
        "kms:GenerateDataKey",
        "lambda:InvokeFunction",
        "sns:Publish",
        "sqs:SendMessage",
        "states:StartExecution",
        "states:StopExecution",
    ];
    for rendered in both() {
        for role in ["IntakeRole", "MachineRole", "ManyRole", "Investigator"] {
            for action in actions(&policy(&rendered, role)) {
                let (service, verb) = action.split_once(':').expect("a service and a name");
                let looks = ["Describe", "Get", "List", "Lookup", "Filter"]
                    .iter()
                    .any(|v| verb.starts_with(v));
                let fine = service == "logs" || fine.contains(&action.as_str());
                assert!(looks || fine, "{role} may {action}");
            }
        }
        let investigator = policy(&rendered, "Investigator");
        for action in ["states:StartExecution", "sns:Publish", "s3:PutObject"] {
            assert!(!actions(&investigator).contains(action), "{action}");
        }
        let other = "arn:aws:lambda:us-east-1:123456789012:other";
        for role in AUTOMATIC {
            assert!(
                !allowed(&rendered, role, &Request::new("lambda:InvokeFunction", other)),
                "{role}"
            );
        }
    }
}

#[test]
fn credentials_are_denied_to_instances_roles_and_to_no_role_of_cleanroom() {
    let put = |role: &str| {
        Request::new("iam:PutRolePolicy", format!("arn:aws:iam::123456789012:role/{role}"))
    };
    let any = response(&least());
    let narrow = response(&most());
    assert!(allowed(&any, "StepRole", &put("web")));
    assert!(allowed(&narrow, "StepRole", &put("app/web")));
    assert!(!allowed(&narrow, "StepRole", &put("admin")));
    for rendered in [&any, &narrow] {
        for role in ["cleanroom/response/StepRole", "cleanroom/cleanroom-case-Role-1"] {
            assert_eq!(judge(&policy(rendered, "StepRole"), &put(role)), Verdict::Denied, "{role}");
        }
        assert!(!allowed(rendered, "ContainRole", &put("app/web")));
    }
}

#[test]
fn rooms_are_made_by_cloudformation_alone_and_under_the_boundary() {
    let stack =
        |name: &str| format!("arn:aws:cloudformation:us-east-1:123456789012:stack/{name}/1");
    let maker = "arn:aws:iam::123456789012:role/cleanroom/response/RoomMaker";
    for rendered in both() {
        let create = Request::new("cloudformation:CreateStack", stack("cleanroom-case"))
            .with("aws:RequestTag/cleanroom:case", CASE);
        assert!(!allowed(&rendered, "StepRole", &create), "with rights of its own");
        assert!(allowed(&rendered, "StepRole", &create.with("cloudformation:RoleArn", maker)));
        let delete = |name: &str| Request::new("cloudformation:DeleteStack", stack(name));
        assert!(!allowed(&rendered, "StepRole", &delete("cleanroom-network")));
        let room = delete("cleanroom-case").with("aws:ResourceTag/cleanroom:case", CASE);
        assert!(allowed(&rendered, "StepRole", &room));
        let own = delete(super::STACK).with("aws:ResourceTag/cleanroom:case", CASE);
        assert_eq!(judge(&policy(&rendered, "StepRole"), &own), Verdict::Denied);

        let role = |action: &str, name: &str| {
            Request::new(action, format!("arn:aws:iam::123456789012:role/cleanroom/{name}"))
        };
        let may = |request: &Request| allowed(&rendered, "RoomMaker", request);
        let bounded = |request: Request| {
            request.with("iam:PermissionsBoundary", "RoomBoundary-0123456789abcdef0")
        };
        assert!(may(&bounded(role("iam:CreateRole", "cleanroom-case-Role-1"))));
        assert!(!may(&role("iam:CreateRole", "cleanroom-case-Role-1")), "without the boundary");
        assert!(!may(&bounded(role("iam:PutRolePolicy", "response/StepRole"))));
        let pass = |name: &str| {
            role("iam:PassRole", name).with("iam:PassedToService", "ec2.amazonaws.com")
        };
        assert!(may(&pass("cleanroom-case-Role-1")));
        assert!(!may(&pass("response/StepRole")));
        let end = Request::new("ec2:TerminateInstances", ec2("instance/i-0123456789abcdef0"));
        assert!(!may(&end), "the evidence's own instance");
        assert!(may(&end.with("aws:ResourceTag/aws:cloudformation:stack-name", "cleanroom-case")));
        let snapshot = "arn:aws:ec2:us-east-1::snapshot/snap-0123456789abcdef0";
        assert!(!may(&Request::new("ec2:DeleteSnapshot", snapshot)));
    }
}

#[test]
fn a_room_can_work_within_the_boundary() {
    let mut parameters = parameters(1);
    parameters.insert("Topic".to_owned(), "NotifyTopic-0123456789abcdef0".to_owned());
    let room = room(&parameters);
    let rendered = response(&most());
    let boundary = rendered.property("RoomBoundary", "/PolicyDocument");
    let statements = room.property("Role", "/Policies/0/PolicyDocument/Statement");
    let allows =
        statements.as_array().expect("statements").iter().filter(|s| s["Effect"] == "Allow");
    let texts = |value: &Value| match value {
        Value::Array(all) => all.clone(),
        one => vec![one.clone()],
    };
    let mut judged = 0;
    for statement in allows {
        for action in texts(&statement["Action"]) {
            for resource in texts(&statement["Resource"]) {
                let (action, resource) =
                    (action.as_str().expect("an action"), resource.as_str().expect("a resource"));
                let request = Request::new(action, resource.trim_end_matches(":*"));
                assert_eq!(judge(boundary, &request), Verdict::Allowed, "{action} {resource}");
                judged += 1;
            }
        }
    }
    assert!(judged > 20, "{judged}");
    for (action, resource) in [
        ("s3:PutObject", object(&format!("cases/{CASE}/custody/000001.json"))),
        ("ec2:ModifyNetworkInterfaceAttribute", "*".to_owned()),
        ("iam:PassRole", "*".to_owned()),
        ("kms:Decrypt", KEY.replace("1111", "2222")),
    ] {
        assert_ne!(judge(boundary, &Request::new(action, resource)), Verdict::Allowed, "{action}");
    }
}

#[test]
fn roles_are_under_their_path_and_the_boundary() {
    for (rendered, boundary) in both().iter().zip([Value::Null, BOUNDARY.into()]) {
        let mut roles = 0;
        for (name, role) in rendered.of_type("AWS::IAM::Role") {
            assert_eq!(role["Path"], "/cleanroom/response/", "{name}");
            assert_eq!(
                role.get("PermissionsBoundary").unwrap_or(&Value::Null),
                &boundary,
                "{name}"
            );
            let never =
                role["ManagedPolicyArns"][0].as_str().is_some_and(|id| id.starts_with("Never-"));
            assert!(never || name == "RoomMaker", "{name}");
            // 10,240 characters for all policies of a role, without what is between them.
            let inline: usize = role["Policies"]
                .as_array()
                .expect("policies")
                .iter()
                .map(|p| p["PolicyDocument"].to_string().len())
                .sum();
            assert!(inline < 10_240, "{name}: {inline}");
            roles += 1;
        }
        assert_eq!(roles, 7);
        for (name, shared) in rendered.of_type("AWS::IAM::ManagedPolicy") {
            assert!(shared["PolicyDocument"].to_string().len() < 6_144, "{name}");
        }
        for role in FUNCTIONS {
            let trust = rendered.property(role, "/AssumeRolePolicyDocument/Statement");
            assert_eq!(trust.as_array().map(Vec::len), Some(1), "{role}");
            assert_eq!(trust[0]["Principal"]["Service"], "lambda.amazonaws.com", "{role}");
        }
    }
}
