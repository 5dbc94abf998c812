//! The response stack's roles, topics and bucket, judged as IAM would, and what the stack is wired to.

mod documents;
mod roles;
mod wiring;

use cleanroom_harness::template::Rendered;
use serde_json::{Value, json};

use super::{
    policy::{Request, Verdict, judge},
    support::{BOUNDARY, BUCKET, KEY, Parameters, template},
};

/// The name of the stack.
const STACK: &str = "cleanroom-response";

/// The functions' roles.
const FUNCTIONS: [&str; 3] = ["IntakeRole", "StepRole", "ContainRole"];

/// Everything that runs by itself.
const AUTOMATIC: [&str; 5] = ["IntakeRole", "StepRole", "ContainRole", "MachineRole", "ManyRole"];

/// What must be given.
fn least() -> Parameters {
    let given = [
        ("ArtifactsBucket", "artifacts-example"),
        ("ProgramKey", "cleanroom/0123abcd/cleanroom-lambda.zip"),
        ("MachineKey", "cleanroom/0123abcd/response.asl.json"),
        ("ManyKey", "cleanroom/0123abcd/response-many.asl.json"),
        ("Bucket", BUCKET),
    ];
    given.map(|(name, value)| (name.to_owned(), value.to_owned())).into()
}

/// With everything that can be chosen.
fn most() -> Parameters {
    let chosen = [
        ("SettingsKey", "cleanroom.toml"),
        ("MakeBucket", "false"),
        ("Key", KEY),
        ("Publishers", "arn:aws:iam::123456789012:role/scanner,arn:aws:iam::210987654321:root"),
        ("InstanceRoles", "app/*"),
        ("TrailLogGroup", "trail"),
        ("PermissionsBoundary", BOUNDARY),
        ("StepConcurrency", "0"),
        ("ContainConcurrency", "0"),
        ("IntakeConcurrency", "0"),
    ];
    let chosen = chosen.map(|(name, value)| (name.to_owned(), value.to_owned()));
    least().into_iter().chain(chosen).collect()
}

fn response(parameters: &Parameters) -> Rendered {
    template("response.yaml").render(STACK, parameters).expect("a response stack")
}

fn both() -> [Rendered; 2] {
    [response(&least()), response(&most())]
}

/// All that a role's policies say, those of its own and those that it shares.
fn policy(rendered: &Rendered, role: &str) -> Value {
    let mut statements = Vec::new();
    for named in rendered.property(role, "/ManagedPolicyArns").as_array().into_iter().flatten() {
        let named = named.as_str().and_then(|id| id.split('-').next()).expect("a policy of ours");
        let document = rendered.property(named, "/PolicyDocument");
        statements.extend(document["Statement"].as_array().expect("statements").clone());
    }
    for own in rendered.property(role, "/Policies").as_array().expect("policies") {
        statements
            .extend(own["PolicyDocument"]["Statement"].as_array().expect("statements").clone());
    }
    json!({ "Statement": statements })
}

fn object(key: &str) -> String {
    format!("arn:aws:s3:::{BUCKET}/{key}")
}

/// A resource of EC2 in this account.
fn ec2(resource: &str) -> String {
    format!("arn:aws:ec2:us-east-1:123456789012:{resource}")
}

fn allowed(rendered: &Rendered, role: &str, request: &Request) -> bool {
    judge(&policy(rendered, role), request) == Verdict::Allowed
}
