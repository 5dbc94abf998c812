//! Who starts what: rules, machines, functions, alarms.

use std::collections::BTreeSet;

use serde_json::{Value, json};

use super::{
    super::{policy::Request, support::source},
    allowed, both, least, most, response,
};

/// What a machine has put in: `${Name}`.
fn substituted(file: &str) -> BTreeSet<String> {
    let text = source(file);
    let parts = text.split("${").skip(1);
    parts.map(|part| part.split_once('}').expect("a closing brace").0.to_owned()).collect()
}

#[test]
fn the_machines_get_what_they_name_and_may_do_it() {
    for rendered in both() {
        for (machine, file, role) in [
            ("ResponseMachine", "response.asl.json", "MachineRole"),
            ("ManyMachine", "response-many.asl.json", "ManyRole"),
        ] {
            let given =
                rendered.property(machine, "/DefinitionSubstitutions").as_object().expect("names");
            let given_names: BTreeSet<_> = given.keys().cloned().collect();
            assert_eq!(given_names, substituted(file), "{machine}");
            assert_eq!(rendered.property(machine, "/StateMachineType"), "STANDARD");
            for (name, value) in given {
                let action = match name.as_str() {
                    "StepFunction" | "ContainFunction" => "lambda:InvokeFunction",
                    "NotifyTopic" => "sns:Publish",
                    _ => continue,
                };
                let request = Request::new(action, value.as_str().expect("a text"));
                assert!(allowed(&rendered, role, &request), "{role}: {request:?}");
            }
        }
        let starts =
            "arn:aws:states:us-east-1:123456789012:stateMachine:cleanroom-response-response";
        for role in ["IntakeRole", "ManyRole"] {
            assert!(
                allowed(&rendered, role, &Request::new("states:StartExecution", starts)),
                "{role}"
            );
        }
        let name =
            rendered.property("ResponseMachine", "/StateMachineName").as_str().expect("a name");
        assert!(starts.ends_with(&format!(":{name}")));
    }
}

#[test]
fn every_rule_reaches_its_function_and_loses_nothing() {
    for rendered in both() {
        let mut targets = Vec::new();
        for (name, rule) in rendered.of_type("AWS::Events::Rule") {
            assert_eq!(rule["Targets"].as_array().map(Vec::len), Some(1), "{name}");
            let target = &rule["Targets"][0];
            assert!(
                target["DeadLetterConfig"]["Arn"]
                    .as_str()
                    .is_some_and(|arn| arn.contains("DeadLetters"))
            );
            let permission = rendered.property(&format!("{name}Permission"), "");
            assert_eq!(permission["Principal"], "events.amazonaws.com", "{name}");
            assert!(
                permission["SourceArn"].as_str().is_some_and(|arn| arn.contains(name)),
                "{name}"
            );
            let function = permission["FunctionName"].as_str().expect("a function");
            assert!(target["Arn"].as_str().is_some_and(|arn| arn.ends_with(function)), "{name}");
            targets.push((name.to_owned(), function.split('-').next().expect("a name").to_owned()));
        }
        let expected = [
            ("AlarmRule", "IntakeFunction"),
            ("DriftRule", "ContainFunction"),
            ("EndedRule", "ContainFunction"),
            ("GuardDutyRule", "IntakeFunction"),
            ("SecurityHubRule", "IntakeFunction"),
            ("WatchRule", "ContainFunction"),
        ];
        assert_eq!(
            targets,
            expected.map(|(rule, function)| (rule.to_owned(), function.to_owned()))
        );
    }
}

#[test]
fn what_ends_otherwise_and_what_undoes_a_containment_is_heard_of() {
    let rendered = response(&least());
    let ended = rendered.property("EndedRule", "/EventPattern/detail");
    assert_eq!(ended["status"], json!(["ABORTED", "FAILED", "TIMED_OUT"]));
    assert_eq!(
        ended["stateMachineArn"],
        json!(["ManyMachine-0123456789abcdef0", "ResponseMachine-0123456789abcdef0"])
    );
    let drift = rendered.property("DriftRule", "/EventPattern/detail");
    let heard = drift["eventName"].as_array().expect("names");
    // What release does, and what an attacker would.
    for call in [
        "AssociateAddress",
        "AssociateIamInstanceProfile",
        "AttachInstances",
        "AttachNetworkInterface",
        "AuthorizeSecurityGroupEgress",
        "AuthorizeSecurityGroupIngress",
        "ModifyInstanceAttribute",
        "ModifyInstanceMetadataOptions",
        "ModifyNetworkInterfaceAttribute",
        "ReplaceIamInstanceProfileAssociation",
    ] {
        assert!(heard.contains(&call.into()), "{call}");
    }
    let who = &drift["userIdentity"]["sessionContext"]["sessionIssuer"]["arn"];
    let ours = who[0]["anything-but"].as_array().expect("our own roles");
    let roles = ["StepRole", "ContainRole", "RoomMaker"];
    assert_eq!(
        *ours,
        roles.map(|role| Value::from(format!(
            "arn:aws:iam::123456789012:role/cleanroom/response/{role}"
        )))
    );
    assert_eq!(who[1], json!({"exists": false}), "users, who have no issuer");
    // Its own alarms start nothing.
    let alarms =
        rendered.property("AlarmRule", "/EventPattern/detail/alarmName/0/anything-but/prefix");
    for (name, alarm) in rendered.of_type("AWS::CloudWatch::Alarm") {
        let own = alarm["AlarmName"].as_str().expect("a name");
        assert!(own.starts_with(alarms.as_str().expect("a prefix")), "{name}");
    }
}

#[test]
fn people_are_woken() {
    for rendered in both() {
        let alarms: Vec<_> = rendered.of_type("AWS::CloudWatch::Alarm").collect();
        for (name, alarm) in &alarms {
            assert_eq!(alarm["AlarmActions"], json!(["NotifyTopic-0123456789abcdef0"]), "{name}");
            assert_eq!(alarm["TreatMissingData"], "notBreaching", "{name}");
        }
        let metrics: BTreeSet<_> =
            alarms.iter().filter_map(|(_, alarm)| alarm["MetricName"].as_str()).collect();
        for metric in [
            "AgentSilent",
            "ApproximateNumberOfMessagesVisible",
            "CaseAgeHours",
            "Drifted",
            "Errors",
            "ExecutionsFailed",
            "InterfaceOpen",
        ] {
            assert!(metrics.contains(metric), "{metric}");
        }
        let body = rendered.property("Dashboard", "/DashboardBody").as_str().expect("a body");
        let body: Value = serde_json::from_str(body).expect("JSON");
        assert_eq!(body["widgets"].as_array().map(Vec::len), Some(6));
    }
}

#[test]
fn functions_are_one_program_and_lose_no_event() {
    for (rendered, reserved) in both().iter().zip([true, false]) {
        let functions: Vec<_> = rendered.of_type("AWS::Lambda::Function").collect();
        assert_eq!(functions.len(), 3);
        let programs: BTreeSet<_> =
            functions.iter().map(|(_, function)| function["Code"].to_string()).collect();
        assert_eq!(programs.len(), 1);
        for (name, function) in &functions {
            assert_eq!(function["Runtime"], "provided.al2023", "{name}");
            assert!(function["DeadLetterConfig"]["TargetArn"].is_string(), "{name}");
            assert_eq!(function.get("ReservedConcurrentExecutions").is_some(), reserved, "{name}");
            assert!(function["MemorySize"].as_u64().is_some_and(|mib| mib <= 512), "{name}");
            for variable in ["CLEANROOM_BUCKET", "CLEANROOM_TOPIC", "CLEANROOM_KMS_KEY"] {
                assert!(
                    function["Environment"]["Variables"][variable].is_string(),
                    "{name}: {variable}"
                );
            }
        }
        let groups: Vec<_> = rendered.of_type("AWS::Logs::LogGroup").collect();
        assert_eq!(groups.len(), 4);
        assert!(groups.iter().all(|(_, group)| group["RetentionInDays"] == "400"));
    }
    let trail = |rendered: &cleanroom_harness::template::Rendered| {
        rendered.of_type("AWS::Logs::SubscriptionFilter").count()
    };
    assert_eq!((trail(&response(&least())), trail(&response(&most()))), (0, 1));
}

#[test]
fn the_command_line_finds_its_settings() {
    for rendered in both() {
        for output in ["EvidenceBucket", "NotifyTopic", "KmsKey"] {
            assert!(
                rendered.outputs[output].as_str().is_some_and(|value| !value.is_empty()),
                "{output}"
            );
        }
    }
}

#[test]
fn the_template_is_within_what_s3_hands_over() {
    // CloudFormation user guide, "quotas": 1 MB from S3, 51,200 bytes inline.
    assert!(source("response.yaml").len() < 1_000_000);
}
