//! Answers for the record, byte for byte.
//!
//! Purpose: each [`Question`] to its calls, and what the service sent back as it sent it. Touches EC2, IAM, Auto Scaling,
//! Elastic Load Balancing and GuardDuty, reading only. Never wakes, stops or otherwise touches what it asks about, and
//! never hands over part of an answer as the whole.
//!
//! Things are asked for by filter where a service has one: an id that has gone meanwhile then makes a shorter answer,
//! not an error that hides the others.

use aws_sdk_ec2::types::{Filter, InstanceAttributeName};
use aws_smithy_types::base64;
use cleanroom_cloud::{Answer, ErrorKind, Question, Result};
use cleanroom_contract::InstanceId;

use crate::{
    balancing,
    calls::{Captured, capture},
    clients::Clients,
    error::{bad_answer, fail, own},
    pages, scaling, trail,
};

/// The most values that one filter takes (EC2 API reference, "Filter").
const FILTER_VALUES: usize = 200;

/// The newest scaling activities that are kept: one page.
const ACTIVITIES: i32 = 100;

/// A filter of EC2's describing calls.
pub(crate) fn filter<T: Into<String>>(name: &str, values: impl IntoIterator<Item = T>) -> Filter {
    let values = values.into_iter().map(Into::into).collect();
    Filter::builder().name(name).set_values(Some(values)).build()
}

/// Sends a call whose answer is captured on the way.
macro_rules! call {
    ($operation:literal, $subject:expr, $builder:expr) => {
        $builder.send().await.map_err(|e| fail($operation, $subject, e))
    };
}

/// Sends a call until its last page; the answers are captured on the way.
macro_rules! all {
    ($operation:literal, $subject:expr, $builder:expr) => {
        pages::all($operation, $subject, $builder.into_paginator().send()).await
    };
}

/// What a group of questions makes of one: its answers beyond those that are captured, or none where the question is
/// another group's.
type Asked = Result<Option<Vec<Answer>>>;

/// The answers to a question, in the order they came.
pub(crate) async fn ask(clients: &Clients, question: &Question) -> Result<Vec<Answer>> {
    let (decoded, captured) = capture(send(clients, question)).await;
    let decoded = decoded?;
    Ok(captured.into_iter().map(answer).chain(decoded).collect())
}

/// Sends what a question takes, and gives what was decoded out of the answers.
async fn send(clients: &Clients, question: &Question) -> Result<Vec<Answer>> {
    if let Some(decoded) = ask_instance(clients, question).await? {
        return Ok(decoded);
    }
    if let Some(decoded) = ask_network(clients, question).await? {
        return Ok(decoded);
    }
    if let Some(decoded) = ask_access(clients, question).await? {
        return Ok(decoded);
    }
    if let Some(decoded) = ask_surroundings(clients, question).await? {
        return Ok(decoded);
    }
    let (name, message) = (question.file_name(), "nobody knows how to ask this");
    Err(own("ask", name, ErrorKind::Unsupported, "NotAsked", message))
}

/// Questions about the instance itself and its volumes.
async fn ask_instance(clients: &Clients, question: &Question) -> Asked {
    use Question as Q;
    let ec2 = &clients.ec2;
    match question {
        Q::Instance { instance } => {
            let by_id = filter("instance-id", [instance.as_str()]);
            all!("ec2:DescribeInstances", instance, ec2.describe_instances().filters(by_id))?;
        }
        Q::InstanceAttribute { instance, attribute } => {
            let subject = format!("{instance} {attribute}");
            let name = InstanceAttributeName::from(attribute.as_str());
            let builder = ec2.describe_instance_attribute();
            let builder = builder.instance_id(instance.as_str()).attribute(name);
            call!("ec2:DescribeInstanceAttribute", subject, builder)?;
        }
        Q::InstanceStatus { instance } => {
            // Of running ones only, unless told otherwise; it has no filter by id.
            let builder = ec2.describe_instance_status().instance_ids(instance.as_str());
            let builder = builder.include_all_instances(true);
            all!("ec2:DescribeInstanceStatus", instance, builder)?;
        }
        Q::ConsoleOutput { instance } => return console_output(clients, instance).await.map(Some),
        Q::ConsoleScreenshot { instance } => return screenshot(clients, instance).await.map(Some),
        Q::Volumes { instance } => {
            let attached = filter("attachment.instance-id", [instance.as_str()]);
            all!("ec2:DescribeVolumes", instance, ec2.describe_volumes().filters(attached))?;
        }
        Q::Tags { resources } => {
            for some in resources.chunks(FILTER_VALUES) {
                let by_id = filter("resource-id", some);
                all!("ec2:DescribeTags", some.join(" "), ec2.describe_tags().filters(by_id))?;
            }
        }
        Q::Image { image } => {
            let by_id = filter("image-id", [image]);
            all!("ec2:DescribeImages", image, ec2.describe_images().filters(by_id))?;
        }
        Q::InstanceType { name } => {
            let by_name = filter("instance-type", [name]);
            let builder = ec2.describe_instance_types().filters(by_name);
            all!("ec2:DescribeInstanceTypes", name, builder)?;
        }
        Q::LaunchTemplate { template, version } => {
            let builder = ec2.describe_launch_template_versions().versions(version);
            let builder = if is_template_id(template) {
                builder.launch_template_id(template)
            } else {
                builder.launch_template_name(template)
            };
            all!("ec2:DescribeLaunchTemplateVersions", template, builder)?;
        }
        _ => return Ok(None),
    }
    Ok(Some(Vec::new()))
}

/// Questions about what the instance is connected to.
async fn ask_network(clients: &Clients, question: &Question) -> Asked {
    use Question as Q;
    let ec2 = &clients.ec2;
    match question {
        Q::Interfaces { instance } => {
            let builder = ec2
                .describe_network_interfaces()
                .filters(filter("attachment.instance-id", [instance.as_str()]));
            all!("ec2:DescribeNetworkInterfaces", instance, builder)?;
        }
        Q::SecurityGroups { groups } => {
            for some in groups.chunks(FILTER_VALUES) {
                let builder = ec2.describe_security_groups().filters(filter("group-id", some));
                all!("ec2:DescribeSecurityGroups", some.join(" "), builder)?;
            }
        }
        Q::SecurityGroupRules { groups } => {
            for some in groups.chunks(FILTER_VALUES) {
                let builder = ec2.describe_security_group_rules().filters(filter("group-id", some));
                all!("ec2:DescribeSecurityGroupRules", some.join(" "), builder)?;
            }
        }
        Q::Addresses { instance } => {
            let by_instance = filter("instance-id", [instance.as_str()]);
            call!(
                "ec2:DescribeAddresses",
                instance,
                ec2.describe_addresses().filters(by_instance)
            )?;
        }
        Q::Subnet { subnet } => {
            let by_id = filter("subnet-id", [subnet]);
            all!("ec2:DescribeSubnets", subnet, ec2.describe_subnets().filters(by_id))?;
        }
        Q::Vpc { vpc } => {
            let by_id = filter("vpc-id", [vpc]);
            all!("ec2:DescribeVpcs", vpc, ec2.describe_vpcs().filters(by_id))?;
        }
        Q::RouteTables { vpc } => {
            let by_vpc = filter("vpc-id", [vpc]);
            all!("ec2:DescribeRouteTables", vpc, ec2.describe_route_tables().filters(by_vpc))?;
        }
        Q::NetworkAcls { subnet } => {
            let by_subnet = filter("association.subnet-id", [subnet]);
            let builder = ec2.describe_network_acls().filters(by_subnet);
            all!("ec2:DescribeNetworkAcls", subnet, builder)?;
        }
        Q::FlowLogs { resources } => {
            for some in resources.chunks(FILTER_VALUES) {
                let builder = ec2.describe_flow_logs().filter(filter("resource-id", some));
                all!("ec2:DescribeFlowLogs", some.join(" "), builder)?;
            }
        }
        _ => return Ok(None),
    }
    Ok(Some(Vec::new()))
}

/// Questions about what the instance may do.
async fn ask_access(clients: &Clients, question: &Question) -> Asked {
    use Question as Q;
    let iam = &clients.iam;
    match question {
        Q::ProfileAssociations { instance } => {
            let builder = clients
                .ec2
                .describe_iam_instance_profile_associations()
                .filters(filter("instance-id", [instance.as_str()]));
            all!("ec2:DescribeIamInstanceProfileAssociations", instance, builder)?;
        }
        Q::Profile { name } => {
            let builder = iam.get_instance_profile().instance_profile_name(name);
            call!("iam:GetInstanceProfile", name, builder)?;
        }
        Q::Role { role } => {
            call!("iam:GetRole", role, iam.get_role().role_name(role))?;
        }
        Q::AttachedPolicies { role } => {
            let builder = iam.list_attached_role_policies().role_name(role);
            let pages = all!("iam:ListAttachedRolePolicies", role, builder)?;
            let attached = pages.into_iter().flat_map(|p| p.attached_policies.unwrap_or_default());
            for arn in attached.filter_map(|policy| policy.policy_arn) {
                managed_policy(clients, &arn).await?;
            }
        }
        Q::ManagedPolicy { arn } => managed_policy(clients, arn).await?,
        Q::InlinePolicies { role } => {
            let builder = iam.list_role_policies().role_name(role);
            let pages = all!("iam:ListRolePolicies", role, builder)?;
            for name in pages.into_iter().flat_map(|page| page.policy_names) {
                let builder = iam.get_role_policy().role_name(role).policy_name(&name);
                call!("iam:GetRolePolicy", format!("{role} {name}"), builder)?;
            }
        }
        Q::InlinePolicy { role, name } => {
            let builder = iam.get_role_policy().role_name(role).policy_name(name);
            call!("iam:GetRolePolicy", format!("{role} {name}"), builder)?;
        }
        _ => return Ok(None),
    }
    Ok(Some(Vec::new()))
}

/// A managed policy and the version of its document that is in force.
async fn managed_policy(clients: &Clients, arn: &str) -> Result<()> {
    let iam = &clients.iam;
    let answer = call!("iam:GetPolicy", arn, iam.get_policy().policy_arn(arn))?;
    let version = answer.policy.and_then(|policy| policy.default_version_id);
    let version =
        version.ok_or_else(|| bad_answer("iam:GetPolicy", arn, "the version in force"))?;
    let builder = iam.get_policy_version().policy_arn(arn).version_id(version);
    call!("iam:GetPolicyVersion", arn, builder)?;
    Ok(())
}

/// Questions about the groups and balancers around the instance, and what was found about it.
async fn ask_surroundings(clients: &Clients, question: &Question) -> Asked {
    use Question as Q;
    let groups = &clients.autoscaling;
    match question {
        Q::ScalingInstance { instance } => {
            scaling::membership(clients, instance).await?;
        }
        Q::ScalingGroup { group } => {
            let builder = groups.describe_auto_scaling_groups().auto_scaling_group_names(group);
            all!("autoscaling:DescribeAutoScalingGroups", group, builder)?;
        }
        Q::ScalingActivities { group } => {
            let builder = groups.describe_scaling_activities().auto_scaling_group_name(group);
            let builder = builder.max_records(ACTIVITIES);
            call!("autoscaling:DescribeScalingActivities", group, builder)?;
        }
        Q::TargetHealth { target_group } => {
            balancing::targets(clients, &target_group.as_str().into()).await?;
        }
        Q::ClassicBalancer { name } => {
            let builder = clients.elb.describe_load_balancers().load_balancer_names(name);
            all!("elasticloadbalancing:DescribeLoadBalancers", name, builder)?;
        }
        Q::Findings { instance } => {
            trail::findings(clients, instance).await?;
        }
        _ => return Ok(None),
    }
    Ok(Some(Vec::new()))
}

/// The console's output, the latest where the instance type has it.
async fn console_output(clients: &Clients, instance: &InstanceId) -> Result<Vec<Answer>> {
    const OPERATION: &str = "ec2:GetConsoleOutput";
    let builder = || clients.ec2.get_console_output().instance_id(instance.as_str());
    let latest = builder().latest(true).send().await.map_err(|e| fail(OPERATION, instance, e));
    let answer = match latest {
        // Instances that do not run on Nitro keep what was posted at their last state change only.
        Err(error) if matches!(error.kind, ErrorKind::Unsupported | ErrorKind::Refused) => {
            builder().send().await.map_err(|e| fail(OPERATION, instance, e))?
        }
        answer => answer?,
    };
    Ok(decoded(OPERATION, "txt", answer.output.as_deref()))
}

/// A picture of the console.
async fn screenshot(clients: &Clients, instance: &InstanceId) -> Result<Vec<Answer>> {
    const OPERATION: &str = "ec2:GetConsoleScreenshot";
    // Without the key press that would wake a sleeping screen: it would reach the suspect.
    let builder = clients.ec2.get_console_screenshot().instance_id(instance.as_str());
    let answer = builder.send().await.map_err(|e| fail(OPERATION, instance, e))?;
    Ok(decoded(OPERATION, "jpg", answer.image_data.as_deref()))
}

/// What a field holds in base64. One that is empty or can not be decoded is in the answer as sent all the same.
fn decoded(operation: &str, extension: &'static str, field: Option<&str>) -> Vec<Answer> {
    let plain: String = field.unwrap_or_default().split_ascii_whitespace().collect();
    match base64::decode(plain) {
        Ok(bytes) if !bytes.is_empty() => {
            vec![Answer { operation: operation.to_owned(), request: None, extension, bytes }]
        }
        _ => Vec::new(),
    }
}

/// A captured answer as the port has it.
fn answer(captured: Captured) -> Answer {
    let Captured { operation, request, bytes, content_type } = captured;
    let extension = extension(content_type.as_deref(), &bytes);
    Answer { operation, request, extension, bytes }
}

/// What a body is: by its media type, else by how it opens.
fn extension(content_type: Option<&str>, bytes: &[u8]) -> &'static str {
    let kind = content_type.unwrap_or_default();
    match bytes.trim_ascii_start().first() {
        _ if kind.contains("xml") => "xml",
        _ if kind.contains("json") => "json",
        Some(b'<') => "xml",
        Some(b'{' | b'[') => "json",
        _ => "txt",
    }
}

/// Whether this is a launch template's id; a name may open with `lt-` too.
fn is_template_id(template: &str) -> bool {
    template.strip_prefix("lt-").is_some_and(|hex| {
        matches!(hex.len(), 8 | 17) && hex.bytes().all(|b| matches!(b, b'0'..=b'9' | b'a'..=b'f'))
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::canned::canned;

    #[test]
    fn a_body_is_named_by_its_media_type_or_how_it_opens() {
        for (kind, bytes, expected) in [
            (Some("text/xml;charset=UTF-8"), "{", "xml"),
            (Some("application/x-amz-json-1.1"), "", "json"),
            (Some("application/json"), "<", "json"),
            (None, "\n <?xml", "xml"),
            (Some("text/plain"), " {}", "json"),
            (None, "hello", "txt"),
            (None, "", "txt"),
        ] {
            assert_eq!(extension(kind, bytes.as_bytes()), expected, "{kind:?} {bytes:?}");
        }
    }

    #[test]
    fn a_field_is_decoded_through_its_line_breaks() {
        let answers = decoded("ec2:GetConsoleOutput", "txt", Some("aGVs\r\nbG8K\n"));
        assert_eq!(answers.len(), 1);
        assert_eq!((answers[0].extension, answers[0].bytes.as_slice()), ("txt", &b"hello\n"[..]));
        for nothing in [None, Some(""), Some("not base64!")] {
            assert_eq!(decoded("ec2:GetConsoleOutput", "txt", nothing), []);
        }
    }

    #[test]
    fn a_template_is_named_or_has_an_id() {
        assert!(is_template_id("lt-0123456789abcdef0"));
        for name in ["lt-web", "lt-0123456789abcdefg", "web", "lt-", "LT-0123456789abcdef0"] {
            assert!(!is_template_id(name), "{name}");
        }
    }

    fn instance() -> InstanceId {
        "i-0123456789abcdef0".parse().expect("an id")
    }

    #[tokio::test]
    async fn console_output_comes_as_sent_and_decoded_also_from_types_without_the_latest() {
        const OUTPUT: &str =
            "<GetConsoleOutputResponse><output>aGVsbG8=</output></GetConsoleOutputResponse>";
        let canned = canned(None, |request, _| {
            if request.contains("Latest=true") {
                let error = "<Response><Errors><Error><Code>UnsupportedOperation</Code></Error></Errors></Response>";
                return (400, error.to_owned());
            }
            (200, OUTPUT.to_owned())
        });
        let question = Question::ConsoleOutput { instance: instance() };
        let answers = ask(&canned.clients, &question).await.expect("an answer");
        let told: Vec<_> = answers.iter().map(|a| (a.extension, a.bytes.as_slice())).collect();
        assert_eq!(told, [("xml", OUTPUT.as_bytes()), ("txt", b"hello")]);
        assert!(answers.iter().all(|a| a.operation == "ec2:GetConsoleOutput"));
        assert_eq!(canned.sent().len(), 2);
    }

    #[tokio::test]
    async fn a_screenshot_comes_as_sent_and_as_a_picture_and_wakes_nobody() {
        let canned = canned(None, |_, _| {
            let body = "<GetConsoleScreenshotResponse><imageData>/9j/</imageData></GetConsoleScreenshotResponse>";
            (200, body.to_owned())
        });
        let question = Question::ConsoleScreenshot { instance: instance() };
        let answers = ask(&canned.clients, &question).await.expect("an answer");
        assert_eq!((answers[0].extension, answers[1].extension), ("xml", "jpg"));
        assert_eq!(answers[1].bytes, [0xff, 0xd8, 0xff]);
        assert!(!canned.sent()[0].contains("WakeUp"));
    }

    #[tokio::test]
    async fn every_page_is_an_answer_and_a_page_that_fails_fails_all() {
        let page = |next: &str| {
            format!(
                "<DescribeTagsResponse><tagSet/><nextToken>{next}</nextToken></DescribeTagsResponse>"
            )
        };
        let pages = move |broken: bool| {
            canned(None, move |request, _| {
                match request {
                _ if request.contains("NextToken=b") && broken => {
                    (403, "<Response><Errors><Error><Code>UnauthorizedOperation</Code></Error></Errors></Response>".into())
                }
                _ if request.contains("NextToken=b") => (200, page("")),
                _ => (200, page("b")),
            }
            })
        };
        let question = Question::Tags { resources: vec!["i-0123456789abcdef0".into()] };
        let whole = pages(false);
        assert_eq!(ask(&whole.clients, &question).await.expect("two pages").len(), 2);
        let broken = pages(true);
        let error = ask(&broken.clients, &question).await.expect_err("half an answer is none");
        assert_eq!(error.kind, ErrorKind::Denied);
    }

    #[tokio::test]
    async fn many_ids_go_in_several_calls_and_none_in_no_call() {
        let canned = canned(None, |_, _| (200, "<DescribeSecurityGroupsResponse/>".to_owned()));
        let groups = (0..450).map(|n| format!("sg-{n:017x}")).collect();
        let question = Question::SecurityGroups { groups };
        assert_eq!(ask(&canned.clients, &question).await.expect("answers").len(), 3);
        // Without a filter the call would be about every group of the Region.
        let question = Question::SecurityGroups { groups: Vec::new() };
        assert_eq!(ask(&canned.clients, &question).await, Ok(Vec::new()));
        assert_eq!(canned.sent().len(), 3);
    }
}
