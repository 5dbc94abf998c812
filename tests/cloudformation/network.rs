//! The network: no way out, and no name of anything that is out.

use std::collections::BTreeSet;

use cleanroom_harness::template::Rendered;
use serde_json::{Value, json};

use super::{
    policy::{Request, Verdict, judge},
    support::{
        BUCKET, CASE, TOPIC, everything, least, parameters, room, shared, shared_network, source,
        template,
    },
};

/// The networks: a room's own, with all there is and with the least, and the shared one.
fn networks() -> Vec<(&'static str, Rendered)> {
    vec![
        ("own", room(&parameters(1))),
        ("own, with the least", room(&least())),
        ("shared", shared_network()),
    ]
}

#[test]
fn nothing_that_leads_out_is_made() {
    // All that a network may consist of: a gateway, a peering or another route would be of another type.
    let known = [
        "AWS::EC2::VPC",
        "AWS::EC2::Subnet",
        "AWS::EC2::RouteTable",
        "AWS::EC2::SubnetRouteTableAssociation",
        "AWS::EC2::SecurityGroup",
        "AWS::EC2::SecurityGroupIngress",
        "AWS::EC2::VPCEndpoint",
        "AWS::Route53Resolver::FirewallDomainList",
        "AWS::Route53Resolver::FirewallRuleGroup",
        "AWS::Route53Resolver::FirewallRuleGroupAssociation",
        "AWS::EC2::Instance",
        "AWS::EC2::Volume",
        "AWS::EC2::VolumeAttachment",
        "AWS::IAM::Role",
        "AWS::IAM::InstanceProfile",
        "AWS::Logs::LogGroup",
        "AWS::SSM::Document",
        "AWS::CloudFormation::WaitCondition",
    ];
    // In the source, whatever the conditions.
    for name in ["clean-room.yaml", "shared-network.yaml"] {
        let template = template(name);
        for (resource, what) in template.document()["Resources"].as_object().expect("resources") {
            let kind = what["Type"].as_str().expect("a type");
            assert!(known.contains(&kind), "{name}: {resource} is a {kind}");
        }
    }
}

#[test]
fn the_one_subnet_has_the_one_route_table() {
    for (which, network) in networks() {
        assert_eq!(network.of_type("AWS::EC2::Subnet").count(), 1, "{which}");
        let (_, subnet) = network.of_type("AWS::EC2::Subnet").next().expect("a subnet");
        assert_eq!(subnet["MapPublicIpOnLaunch"], false, "{which}");
        assert!(subnet.get("Ipv6CidrBlock").is_none(), "{which}");
        let tables: Vec<_> = network.of_type("AWS::EC2::RouteTable").collect();
        let associations: Vec<_> =
            network.of_type("AWS::EC2::SubnetRouteTableAssociation").collect();
        assert_eq!((tables.len(), associations.len()), (1, 1), "{which}");
        assert_eq!(associations[0].1["RouteTableId"], "Routes-0123456789abcdef0", "{which}");
        assert_eq!(associations[0].1["SubnetId"], "PrivateSubnet-0123456789abcdef0", "{which}");
        // The S3 gateway endpoint writes the only route.
        let gateways: Vec<_> = network
            .of_type("AWS::EC2::VPCEndpoint")
            .filter(|(_, endpoint)| endpoint["VpcEndpointType"] == "Gateway")
            .collect();
        assert_eq!(gateways.len(), 1, "{which}");
        assert_eq!(gateways[0].1["ServiceName"], "com.amazonaws.us-east-1.s3", "{which}");
        assert_eq!(gateways[0].1["RouteTableIds"], json!(["Routes-0123456789abcdef0"]), "{which}");
    }
}

#[test]
fn rooms_reach_the_endpoints_and_s3_only() {
    for (which, network) in networks() {
        let rooms =
            network.property("RoomGroup", "/SecurityGroupEgress").as_array().expect("rules");
        let https = |rule: &Value| {
            assert_eq!(rule["IpProtocol"], "tcp", "{which}");
            assert_eq!((&rule["FromPort"], &rule["ToPort"]), (&json!(443), &json!(443)), "{which}");
            assert!(rule.get("CidrIp").is_none() && rule.get("CidrIpv6").is_none(), "{which}");
        };
        rooms.iter().for_each(https);
        let to =
            |name: &str| rooms.iter().filter_map(|rule| rule[name].as_str()).collect::<Vec<_>>();
        assert_eq!(rooms.len(), 2, "{which}");
        assert_eq!(
            to("DestinationSecurityGroupId"),
            ["EndpointsGroup-0123456789abcdef0"],
            "{which}"
        );
        assert_eq!(to("DestinationPrefixListId"), ["pl-63a5400a"], "{which}");
        assert_eq!(network.property("RoomGroup", "/SecurityGroupIngress"), &Value::Null, "{which}");

        // The endpoints start no connection: the one rule is there since none would mean all.
        let endpoints = network.property("EndpointsGroup", "/SecurityGroupEgress");
        assert_eq!(endpoints.as_array().expect("rules").len(), 1, "{which}");
        assert_eq!(endpoints[0]["CidrIp"], "127.0.0.1/32", "{which}");
        assert_eq!(network.property("EndpointsGroup", "/SecurityGroupIngress"), &Value::Null);
        let ingress: Vec<_> = network.of_type("AWS::EC2::SecurityGroupIngress").collect();
        assert_eq!(ingress.len(), 1, "{which}: rooms reach each other");
        https(ingress[0].1);
        assert_eq!(ingress[0].1["GroupId"], "EndpointsGroup-0123456789abcdef0", "{which}");
        assert_eq!(ingress[0].1["SourceSecurityGroupId"], "RoomGroup-0123456789abcdef0", "{which}");
    }
}

#[test]
fn only_the_endpoints_names_are_answered() {
    for (which, network) in networks() {
        let rules = network.property("NameRules", "/FirewallRules").as_array().expect("rules");
        let [allow, block] = rules.as_slice() else { panic!("{which}: {rules:?}") };
        assert_eq!((&allow["Priority"], &allow["Action"]), (&json!(1), &json!("ALLOW")), "{which}");
        assert_eq!(allow["FirewallDomainListId"], "AllowedNames-0123456789abcdef0", "{which}");
        assert_eq!((&block["Priority"], &block["Action"]), (&json!(2), &json!("BLOCK")), "{which}");
        assert_eq!(block["BlockResponse"], "NODATA", "{which}");
        assert_eq!(block["FirewallDomainListId"], "AllNames-0123456789abcdef0", "{which}");
        // Of any type of query.
        assert!(block.get("Qtype").is_none(), "{which}");
        assert_eq!(network.property("AllNames", "/Domains"), &json!(["*"]), "{which}");
        let association = network.property("NameRulesOfNetwork", "");
        assert_eq!(association["VpcId"], "Network-0123456789abcdef0", "{which}");
        assert_eq!(association["FirewallRuleGroupId"], "NameRules-0123456789abcdef0", "{which}");

        let names = network.property("AllowedNames", "/Domains").as_array().expect("names");
        let names: BTreeSet<_> = names.iter().map(|name| name.as_str().expect("a name")).collect();
        let services = network.of_type("AWS::EC2::VPCEndpoint").map(|(_, endpoint)| {
            let name = endpoint["ServiceName"].as_str().expect("a service");
            let service = name.strip_prefix("com.amazonaws.us-east-1.").expect("of this Region");
            format!("{service}.us-east-1.amazonaws.com")
        });
        let bucket = format!("{BUCKET}.s3.us-east-1.amazonaws.com");
        let expected: BTreeSet<_> = services.chain([bucket]).collect();
        assert_eq!(names, expected.iter().map(String::as_str).collect(), "{which}");
        assert!(names.iter().all(|name| !name.contains('*')), "{which}");
        for switch in ["/EnableDnsSupport", "/EnableDnsHostnames"] {
            assert_eq!(network.property("Network", switch), true, "{which}: {switch}");
        }
    }
}

#[test]
fn endpoints_are_there_where_they_are_used() {
    let services = |network: &Rendered| -> BTreeSet<String> {
        let endpoints = network.of_type("AWS::EC2::VPCEndpoint");
        endpoints
            .map(|(_, endpoint)| endpoint["ServiceName"].as_str().expect("a name")[24..].into())
            .collect()
    };
    let named = |names: &[&str]| names.iter().map(|name| (*name).to_owned()).collect();
    let few: BTreeSet<String> = named(&["s3", "cloudformation", "logs", "ssm", "ssmmessages"]);
    let all = &few | &named(&["sns", "states"]);
    assert_eq!(services(&room(&least())), few);
    assert_eq!(services(&room(&parameters(1))), all);
    assert_eq!(services(&shared_network()), all);
    // One private name of a service can be in a VPC once: a room brings none along.
    assert_eq!(services(&room(&shared(parameters(1)))), BTreeSet::new());
    for (which, network) in networks() {
        for (name, endpoint) in network.of_type("AWS::EC2::VPCEndpoint") {
            if endpoint["VpcEndpointType"] == "Interface" {
                assert_eq!(endpoint["PrivateDnsEnabled"], true, "{which}: {name}");
                assert_eq!(
                    endpoint["SecurityGroupIds"],
                    json!(["EndpointsGroup-0123456789abcdef0"])
                );
                assert_eq!(endpoint["SubnetIds"], json!(["PrivateSubnet-0123456789abcdef0"]));
            }
        }
    }
}

/// What a room asks of AWS, and over which endpoint.
fn asked() -> Vec<(&'static str, Request)> {
    let object = |key: &str| format!("arn:aws:s3:::{BUCKET}/{key}");
    let bucket = format!("arn:aws:s3:::{BUCKET}");
    let order = object(&format!("cases/{CASE}/orders/x.json"));
    let bundle = object(&format!("cases/{CASE}/bundles/scan/report.json"));
    let stack = "arn:aws:cloudformation:us-east-1:123456789012:stack/cleanroom-case/11111111-2222-3333-4444-555555555555";
    let log = format!("arn:aws:logs:us-east-1:123456789012:log-group:/cleanroom/{CASE}/1:*");
    let instance = "arn:aws:ec2:us-east-1:123456789012:instance/i-1";
    let list = |prefix: &str| {
        Request::new("s3:ListBucket", bucket.as_str())
            .with("s3:prefix", format!("cases/{CASE}/{prefix}/"))
    };
    vec![
        ("S3Endpoint", Request::new("s3:GetObject", order)),
        ("S3Endpoint", Request::new("s3:GetObject", object("agent/cleanroom-agent"))),
        ("S3Endpoint", Request::new("s3:GetObject", object("rules/webshells.yar"))),
        ("S3Endpoint", Request::new("s3:GetObject", object("tools/tools.tar.gz"))),
        ("S3Endpoint", Request::new("s3:GetObject", bundle.as_str())),
        ("S3Endpoint", Request::new("s3:PutObject", bundle.as_str())),
        ("S3Endpoint", Request::new("s3:ListMultipartUploadParts", bundle)),
        ("S3Endpoint", list("orders")),
        // Those of a case's other rooms.
        ("S3Endpoint", list("orders/room-2")),
        ("S3Endpoint", list("bundles")),
        ("SnsEndpoint", Request::new("sns:Publish", TOPIC)),
        ("CloudFormationEndpoint", Request::new("cloudformation:SignalResource", stack)),
        ("LogsEndpoint", Request::new("logs:CreateLogStream", log.as_str())),
        ("LogsEndpoint", Request::new("logs:PutLogEvents", log)),
        ("LogsEndpoint", Request::new("logs:DescribeLogGroups", "*")),
        ("SsmEndpoint", Request::new("ssm:UpdateInstanceInformation", instance)),
        ("SsmMessagesEndpoint", Request::new("ssmmessages:OpenControlChannel", "*")),
        ("SsmMessagesEndpoint", Request::new("ssmmessages:OpenDataChannel", "*")),
        ("StatesEndpoint", Request::new("states:SendTaskSuccess", "*")),
    ]
}

/// A request as it comes from the role of a case's room.
fn from_room(request: &Request, account: &str, case: Option<&str>, role: &str) -> Request {
    let request = request
        .clone()
        .with("aws:PrincipalAccount", account)
        .with("aws:PrincipalArn", format!("arn:aws:iam::{account}:role/{role}"));
    match case {
        None => request,
        Some(case) => request
            .with("aws:PrincipalTag/cleanroom:case", case)
            .with("aws:PrincipalTag/cleanroom:stack", "cleanroom-case"),
    }
}

const ACCOUNT: &str = "123456789012";

#[test]
fn endpoints_let_through_what_a_room_asks() {
    for (which, network) in [("own", room(&parameters(1))), ("shared", shared_network())] {
        for (endpoint, request) in asked() {
            let policy = network.property(endpoint, "/PolicyDocument");
            let request = from_room(&request, ACCOUNT, Some(CASE), "cleanroom/Role");
            assert_eq!(judge(policy, &request), Verdict::Allowed, "{which}: {request:?}");
        }
    }
}

#[test]
fn endpoints_refuse_everybody_else() {
    for (which, network) in [("own", room(&parameters(1))), ("shared", shared_network())] {
        for (endpoint, request) in asked() {
            let policy = network.property(endpoint, "/PolicyDocument");
            // The attacker's own account, another role of ours, and a role without a case's tag.
            let mut others = vec![
                from_room(&request, "999999999999", Some(CASE), "cleanroom/Role"),
                from_room(&request, ACCOUNT, Some(CASE), "web-role"),
                request.clone(),
            ];
            if which == "own" {
                others.push(from_room(&request, ACCOUNT, Some("case-2"), "cleanroom/Other"));
            } else {
                others.push(from_room(&request, ACCOUNT, None, "cleanroom/Role"));
            }
            for other in others {
                assert_eq!(judge(policy, &other), Verdict::Silent, "{which}: {other:?}");
            }
        }
    }
}

#[test]
fn endpoints_lead_to_nothing_of_another_case() {
    for (which, network) in [("own", room(&parameters(1))), ("shared", shared_network())] {
        let mut refused = vec![
            ("SnsEndpoint", Request::new("sns:Publish", "arn:aws:sns:us-east-1:999999999999:drop")),
            ("SnsEndpoint", Request::new("sns:Subscribe", TOPIC)),
            ("CloudFormationEndpoint", Request::new("cloudformation:CreateStack", "*")),
            ("SsmEndpoint", Request::new("ssm:SendCommand", "*")),
        ];
        let stack = "arn:aws:cloudformation:us-east-1:123456789012:stack/cleanroom-case-2/1";
        refused
            .push(("CloudFormationEndpoint", Request::new("cloudformation:SignalResource", stack)));
        let log = "arn:aws:logs:us-east-1:123456789012:log-group:/cleanroom/case-2/1:*";
        refused.push(("LogsEndpoint", Request::new("logs:PutLogEvents", log)));
        for (action, object) in [
            ("s3:GetObject", format!("{BUCKET}/cases/case-2/orders/x.json")),
            ("s3:GetObject", format!("{BUCKET}/cases/{CASE}/custody/000001.json")),
            ("s3:PutObject", format!("{BUCKET}/cases/case-2/bundles/scan/report.json")),
            ("s3:PutObject", format!("{BUCKET}/cases/{CASE}/custody/000002.json")),
            ("s3:PutObject", format!("{BUCKET}/cases/{CASE}/orders/x.json")),
            ("s3:PutObject", format!("{BUCKET}/rules/x.yar")),
            ("s3:DeleteObject", format!("{BUCKET}/cases/{CASE}/bundles/scan/report.json")),
            // The same key in a bucket of the attacker's.
            ("s3:PutObject", format!("drop-box/cases/{CASE}/bundles/scan/report.json")),
            ("s3:GetObject", "al2023-repos-us-east-1-de612dc2/core/mirrorlist".to_owned()),
        ] {
            refused.push(("S3Endpoint", Request::new(action, format!("arn:aws:s3:::{object}"))));
        }
        let list = Request::new("s3:ListBucket", format!("arn:aws:s3:::{BUCKET}"));
        refused.push(("S3Endpoint", list.clone()));
        refused.push(("S3Endpoint", list.with("s3:prefix", "cases/case-2/orders/")));
        for (endpoint, request) in refused {
            let policy = network.property(endpoint, "/PolicyDocument");
            let request = from_room(&request, ACCOUNT, Some(CASE), "cleanroom/Role");
            assert_eq!(judge(policy, &request), Verdict::Silent, "{which}: {request:?}");
        }
    }
}

#[test]
fn every_endpoint_has_a_policy() {
    for (which, network) in networks() {
        for (name, endpoint) in network.of_type("AWS::EC2::VPCEndpoint") {
            let statements = endpoint["PolicyDocument"]["Statement"].as_array();
            assert!(statements.is_some_and(|list| !list.is_empty()), "{which}: {name}");
        }
    }
}

#[test]
fn both_networks_are_the_same_but_for_whom_they_admit() {
    let (own, shared) = (room(&parameters(1)), shared_network());
    for (name, resource) in &shared.resources {
        let comparable = |resource: &Value, stack: &str| {
            let mut resource = resource.clone();
            let object = resource.as_object_mut().expect("a resource");
            object.remove("Condition");
            let properties = object["Properties"].as_object_mut().expect("properties");
            properties.remove("PolicyDocument");
            properties.remove("Tags");
            resource.to_string().replace(stack, "")
        };
        let ours = own.resources.get(name).unwrap_or_else(|| panic!("no {name} of its own"));
        assert_eq!(comparable(ours, "cleanroom-case"), comparable(resource, "cleanroom-network"));
    }
    let networks = |rendered: &Rendered| {
        let kinds =
            ["AWS::EC2::VPC", "AWS::EC2::Sub", "AWS::EC2::Sec", "AWS::EC2::Rou", "AWS::Route53"];
        let of_network = |kind: &str| kinds.iter().any(|one| kind.starts_with(one));
        rendered
            .resources
            .values()
            .filter(|r| of_network(r["Type"].as_str().expect("a type")))
            .count()
    };
    assert_eq!(networks(&own), shared.resources.len());
    assert_eq!(networks(&room(&super::support::shared(parameters(1)))), 0);
}

#[test]
fn all_that_can_carry_tags_carries_the_case() {
    // By the resource types' own schemas ("taggable"), as cfn-lint has them.
    let bare = [
        "AWS::EC2::SubnetRouteTableAssociation",
        "AWS::EC2::SecurityGroupIngress",
        "AWS::EC2::VolumeAttachment",
        "AWS::IAM::InstanceProfile",
        "AWS::CloudFormation::WaitCondition",
    ];
    for (which, stack) in everything() {
        let case = if which == "the shared network" { "-" } else { CASE };
        for (name, resource) in &stack.resources {
            let kind = resource["Type"].as_str().expect("a type");
            let tags = resource["Properties"]["Tags"].as_array();
            if bare.contains(&kind) {
                assert!(tags.is_none(), "{which}: {name} can carry tags");
                continue;
            }
            let tags = tags.unwrap_or_else(|| panic!("{which}: {name} carries no tags"));
            let ours = json!({"Key": "cleanroom:case", "Value": case});
            assert!(tags.contains(&ours), "{which}: {name}: {tags:?}");
        }
    }
}

#[test]
fn the_templates_fit_into_a_call() {
    // CreateStack takes 51,200 bytes of template, and 200 parameters, mappings and outputs each.
    for name in ["clean-room.yaml", "shared-network.yaml"] {
        let text = source(name);
        assert!(text.len() < 51_200, "{name}: {} bytes", text.len());
        assert!(text.is_ascii(), "{name}");
        let document = template(name).document().clone();
        for part in ["Parameters", "Outputs", "Resources"] {
            let count = document[part].as_object().expect("members").len();
            assert!(count <= 200, "{name}: {count} {part}");
        }
    }
}
