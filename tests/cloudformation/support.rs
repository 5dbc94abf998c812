//! The templates, rendered for a case.

use std::{collections::BTreeMap, fs, path::PathBuf};

use cleanroom_harness::{
    template::{Rendered, Template},
    tools::workspace_root,
};

pub(crate) const CASE: &str = "i-0123456789abcdef0-1";
pub(crate) const BUCKET: &str = "evidence-example";
pub(crate) const TOPIC: &str = "arn:aws:sns:us-east-1:123456789012:incidents";
pub(crate) const KEY: &str =
    "arn:aws:kms:us-east-1:123456789012:key/11111111-2222-3333-4444-555555555555";
pub(crate) const BOUNDARY: &str = "arn:aws:iam::123456789012:policy/cleanroom/boundary";
pub(crate) const AGENT_SHA256: &str =
    "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855";

/// As many volumes as a room takes.
pub(crate) const MOST: usize = 24;

pub(crate) fn path(template: &str) -> PathBuf {
    workspace_root().join("cloudformation").join(template)
}

pub(crate) fn source(template: &str) -> String {
    fs::read_to_string(path(template)).expect("read the template")
}

pub(crate) fn template(name: &str) -> Template {
    Template::read(&path(name)).expect("a template")
}

pub(crate) type Parameters = BTreeMap<String, String>;

/// All parameters of a room with so many volumes and everything that can be chosen.
pub(crate) fn parameters(volumes: usize) -> Parameters {
    let fixed = [
        ("Case", CASE),
        ("Bucket", BUCKET),
        ("BucketKey", KEY),
        ("OrderKey", "cases/i-0123456789abcdef0-1/orders/20260102T030405Z-0123abcd.json"),
        ("OrderSha256", AGENT_SHA256),
        ("AgentKey", "agent/0.1.0/cleanroom-agent"),
        ("AgentSha256", AGENT_SHA256),
        ("ToolsKey", "tools/2026-01-02/tools.tar.gz"),
        ("ToolsSha256", AGENT_SHA256),
        ("Topic", TOPIC),
        ("UsesStates", "true"),
        ("ImageId", "ami-0123456789abcdef0"),
        ("Iops", "16000"),
        ("Throughput", "1000"),
        ("InitializationRate", "300"),
        ("KmsKey", KEY),
        ("LogKey", KEY),
        ("Zone", "us-east-1a"),
        ("S3PrefixList", "pl-63a5400a"),
        ("PermissionsBoundary", BOUNDARY),
    ];
    let fixed = fixed.map(|(name, value)| (name.to_owned(), value.to_owned()));
    let snapshots = (1..=volumes).map(|n| (format!("Snapshot{n:02}"), format!("snap-{n:017x}")));
    fixed.into_iter().chain(snapshots).collect()
}

/// The parameters of a room in a network that is there already.
pub(crate) fn shared(mut parameters: Parameters) -> Parameters {
    for (name, value) in [
        ("Vpc", "vpc-0123456789abcdef0"),
        ("Subnet", "subnet-0123456789abcdef0"),
        ("SecurityGroup", "sg-0123456789abcdef0"),
    ] {
        parameters.insert(name.to_owned(), value.to_owned());
    }
    parameters
}

/// No more parameters than must be.
pub(crate) fn least() -> Parameters {
    let mut parameters = parameters(1);
    for name in [
        "BucketKey",
        "ToolsKey",
        "ToolsSha256",
        "Topic",
        "UsesStates",
        "Iops",
        "Throughput",
        "InitializationRate",
        "KmsKey",
        "LogKey",
        "PermissionsBoundary",
    ] {
        parameters.remove(name);
    }
    parameters
}

pub(crate) fn room(parameters: &Parameters) -> Rendered {
    template("clean-room.yaml").render("cleanroom-case", parameters).expect("a room")
}

pub(crate) fn shared_network() -> Rendered {
    let wanted = ["Bucket", "Topic", "UsesStates", "Zone", "S3PrefixList"];
    let mut parameters = parameters(0);
    parameters.retain(|name, _| wanted.contains(&name.as_str()));
    template("shared-network.yaml").render("cleanroom-network", &parameters).expect("a network")
}

/// Every room that the template makes: in both networks, with everything and with the least.
pub(crate) fn rooms() -> Vec<(&'static str, Rendered)> {
    vec![
        ("with everything", room(&parameters(MOST))),
        ("with the least", room(&least())),
        ("in a shared network", room(&shared(parameters(MOST)))),
        ("in a shared network, with the least", room(&shared(least()))),
    ]
}

/// Everything that the templates make together.
pub(crate) fn everything() -> Vec<(&'static str, Rendered)> {
    let mut all = rooms();
    all.push(("the shared network", shared_network()));
    all
}
