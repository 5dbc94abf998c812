//! What the cloud says for the record: JSON of the state that a question concerns. Never changes the world.

use async_trait::async_trait;
use cleanroom_cloud::{Answer, Facts, Question, Result};
use cleanroom_contract::InstanceId;
use serde_json::{Value, json};

use crate::{
    gate::{Call, FakeCloud},
    problem::{Answered, Problem},
    world::{Card, World},
};

/// A JPEG image of nothing: its first and its last marker.
const SCREENSHOT: &[u8] = &[0xff, 0xd8, 0xff, 0xd9];
/// The same in base64, as the service sends it.
const SCREENSHOT_SENT: &str = "/9j/2Q==";
const CONSOLE: &str = "login:";
/// The same in base64.
const CONSOLE_SENT: &str = "bG9naW46";

/// The operation that answers, what it is about, and how many requests it takes one after another.
fn call(question: &Question) -> (&'static str, String, u32) {
    use Question as Q;
    let first = |all: &[String]| all.first().cloned().unwrap_or_default();
    match question {
        Q::Instance { instance } => ("ec2:DescribeInstances", instance.to_string(), 1),
        Q::InstanceAttribute { instance, .. } => {
            ("ec2:DescribeInstanceAttribute", instance.to_string(), 1)
        }
        Q::InstanceStatus { instance } => ("ec2:DescribeInstanceStatus", instance.to_string(), 1),
        Q::ConsoleOutput { instance } => ("ec2:GetConsoleOutput", instance.to_string(), 1),
        Q::ConsoleScreenshot { instance } => ("ec2:GetConsoleScreenshot", instance.to_string(), 1),
        Q::Interfaces { instance } => ("ec2:DescribeNetworkInterfaces", instance.to_string(), 1),
        Q::SecurityGroups { groups } => ("ec2:DescribeSecurityGroups", first(groups), 1),
        Q::SecurityGroupRules { groups } => ("ec2:DescribeSecurityGroupRules", first(groups), 1),
        Q::Volumes { instance } => ("ec2:DescribeVolumes", instance.to_string(), 1),
        Q::Tags { resources } => ("ec2:DescribeTags", first(resources), 1),
        Q::Image { image } => ("ec2:DescribeImages", image.clone(), 1),
        Q::Addresses { instance } => ("ec2:DescribeAddresses", instance.to_string(), 1),
        Q::Subnet { subnet } => ("ec2:DescribeSubnets", subnet.clone(), 1),
        Q::Vpc { vpc } => ("ec2:DescribeVpcs", vpc.clone(), 1),
        Q::RouteTables { vpc } => ("ec2:DescribeRouteTables", vpc.clone(), 1),
        Q::NetworkAcls { subnet } => ("ec2:DescribeNetworkAcls", subnet.clone(), 1),
        Q::FlowLogs { resources } => ("ec2:DescribeFlowLogs", first(resources), 1),
        Q::ProfileAssociations { instance } => {
            ("ec2:DescribeIamInstanceProfileAssociations", instance.to_string(), 1)
        }
        Q::Profile { name } => ("iam:GetInstanceProfile", name.clone(), 1),
        Q::Role { role } => ("iam:GetRole", role.clone(), 1),
        Q::AttachedPolicies { role } => ("iam:ListAttachedRolePolicies", role.clone(), 1),
        Q::ManagedPolicy { arn } => ("iam:GetPolicy", arn.clone(), 2),
        Q::InlinePolicies { role } => ("iam:ListRolePolicies", role.clone(), 1),
        Q::InlinePolicy { role, .. } => ("iam:GetRolePolicy", role.clone(), 1),
        Q::ScalingInstance { instance } => {
            ("autoscaling:DescribeAutoScalingInstances", instance.to_string(), 1)
        }
        Q::ScalingGroup { group } => ("autoscaling:DescribeAutoScalingGroups", group.clone(), 1),
        Q::ScalingActivities { group } => {
            ("autoscaling:DescribeScalingActivities", group.clone(), 1)
        }
        Q::TargetHealth { target_group } => {
            ("elasticloadbalancing:DescribeTargetHealth", target_group.clone(), 1)
        }
        Q::ClassicBalancer { name } => {
            ("elasticloadbalancing:DescribeLoadBalancers", name.clone(), 1)
        }
        Q::Findings { instance } => ("guardduty:ListFindings", instance.to_string(), 3),
        Q::InstanceType { name } => ("ec2:DescribeInstanceTypes", name.clone(), 1),
        Q::LaunchTemplate { template, .. } => {
            ("ec2:DescribeLaunchTemplateVersions", template.clone(), 1)
        }
    }
}

impl World {
    fn cards(&self, id: &InstanceId) -> Answered<&[Card]> {
        Ok(&self.get_machine(id)?.cards)
    }

    fn fact(&self, question: &Question) -> Answered<Value> {
        use Question as Q;
        Ok(match question {
            Q::Instance { .. }
            | Q::InstanceAttribute { .. }
            | Q::InstanceStatus { .. }
            | Q::ConsoleOutput { .. }
            | Q::ConsoleScreenshot { .. }
            | Q::Volumes { .. }
            | Q::ProfileAssociations { .. } => self.instance_fact(question)?,
            Q::Interfaces { instance } => {
                json!(self.cards(instance)?.iter().map(|c| json!(&c.interface)).collect::<Vec<_>>())
            }
            Q::Addresses { instance } => {
                let addresses = self.cards(instance)?.iter().flat_map(|c| &c.interface.public);
                json!(addresses.map(|x| json!(x)).collect::<Vec<_>>())
            }
            Q::SecurityGroups { groups } => {
                json!(self.groups_named(groups).map(|x| json!(x)).collect::<Vec<_>>())
            }
            Q::SecurityGroupRules { groups } => {
                let rules = self.groups_named(groups).flat_map(|g| &g.rules);
                json!(rules.map(|x| json!(x)).collect::<Vec<_>>())
            }
            Q::Tags { resources } => self.tags_fact(resources),
            Q::Image { image } => json!({"ImageId": image, "CreationDate": "2025-11-01"}),
            Q::Subnet { subnet } => {
                json!({"SubnetId": subnet, "VpcId": self.subnets.get(subnet).map(|s| s.0.as_str())})
            }
            Q::Vpc { vpc } | Q::RouteTables { vpc } => json!({"VpcId": vpc}),
            Q::NetworkAcls { subnet } => {
                let acl = self.subnets.get(subnet).and_then(|(_, acl)| self.acls.get(acl));
                json!(acl.map(|x| json!(x)))
            }
            Q::FlowLogs { resources } => json!({"resources": resources, "flowLogs": []}),
            Q::InstanceType { name } => json!({"InstanceType": name}),
            Q::LaunchTemplate { template, version } => json!({"id": template, "version": version}),
            Q::Profile { .. }
            | Q::Role { .. }
            | Q::AttachedPolicies { .. }
            | Q::ManagedPolicy { .. }
            | Q::InlinePolicies { .. }
            | Q::InlinePolicy { .. } => self.identity_fact(question)?,
            Q::ScalingInstance { instance } => {
                json!({"group": self.scaling_of(instance).map(|s| &s.group.name)})
            }
            Q::ScalingGroup { group } => json!(self.scaling.get(group).map(|s| json!(&s.group))),
            Q::ScalingActivities { group } => json!({"group": group, "activities": []}),
            Q::TargetHealth { target_group } => {
                let group = self.target_groups.get(&target_group.as_str().into());
                json!(group.map(|g| json!(&g.targets)))
            }
            Q::ClassicBalancer { name } => json!(self.classics.get(name).map(|x| json!(x))),
            Q::Findings { instance } => json!(self.findings.get(instance).map(|x| json!(x))),
        })
    }

    fn instance_fact(&self, question: &Question) -> Answered<Value> {
        use Question as Q;
        Ok(match question {
            Q::InstanceAttribute { instance, attribute } => {
                let machine = self.get_machine(instance)?;
                match attribute.as_str() {
                    "userData" => json!({"userData": machine.user_data}),
                    _ => json!({"attribute": attribute, "guards": json!(&machine.guards)}),
                }
            }
            Q::InstanceStatus { instance } => {
                json!({"state": json!(self.get_machine(instance)?.instance.state)})
            }
            Q::ConsoleOutput { instance } => {
                self.get_machine(instance)?;
                json!({"Output": CONSOLE_SENT})
            }
            Q::ConsoleScreenshot { instance } => {
                self.get_machine(instance)?;
                json!({"ImageData": SCREENSHOT_SENT})
            }
            Q::Volumes { instance } => {
                let attached =
                    |v: &&cleanroom_cloud::Volume| v.attached.iter().any(|(id, _)| id == instance);
                json!(self.volumes.values().filter(attached).map(|x| json!(x)).collect::<Vec<_>>())
            }
            Q::ProfileAssociations { instance } => {
                let of = self.associations.iter().filter(|(id, _)| id == instance);
                json!(of.map(|(_, a)| json!(a)).collect::<Vec<_>>())
            }
            Q::Instance { instance } => json!(self.get_machine(instance)?.described()),
            _ => Value::Null,
        })
    }

    fn identity_fact(&self, question: &Question) -> Answered<Value> {
        use Question as Q;
        let missing = |name: &str| Problem::not_found("NoSuchEntity", name);
        Ok(match question {
            Q::Profile { name } => {
                let profile = self.profiles.iter().find(|p| p.name == *name);
                json!(profile.ok_or_else(|| missing(name))?)
            }
            Q::ManagedPolicy { arn } => {
                let document = self.roles.values().find_map(|r| r.managed.get(arn));
                json!({"arn": arn, "document": document.ok_or_else(|| missing(arn))?})
            }
            Q::Role { role } => {
                json!({"name": role, "arn": self.get_role(&role.as_str().into())?.arn})
            }
            Q::AttachedPolicies { role } => {
                let role = self.get_role(&role.as_str().into())?;
                json!(role.managed.keys().collect::<Vec<_>>())
            }
            Q::InlinePolicies { role } => {
                let role = self.get_role(&role.as_str().into())?;
                json!(role.policies.keys().collect::<Vec<_>>())
            }
            Q::InlinePolicy { role, name } => {
                let role = self.get_role(&role.as_str().into())?;
                json!({"name": name, "document": role.policies.get(name).ok_or_else(|| missing(name))?})
            }
            _ => Value::Null,
        })
    }

    fn groups_named<'a>(
        &'a self,
        names: &'a [String],
    ) -> impl Iterator<Item = &'a cleanroom_cloud::SecurityGroup> {
        self.groups.values().filter(|g| names.iter().any(|n| n == g.id.as_str()))
    }

    fn tags_fact(&self, resources: &[String]) -> Value {
        let mut tags = serde_json::Map::new();
        for machine in self.machines.values() {
            if resources.iter().any(|r| r == machine.instance.id.as_str()) {
                tags.insert(machine.instance.id.to_string(), json!(&machine.instance.tags));
            }
        }
        for (resource, other) in self.other_tags.iter().filter(|(r, _)| resources.contains(r)) {
            tags.insert(resource.clone(), json!(other));
        }
        Value::Object(tags)
    }
}

/// Questions that `World::unanswered` names are refused with the kind that stands there.
#[async_trait]
impl Facts for FakeCloud {
    async fn ask(&self, question: &Question) -> Result<Vec<Answer>> {
        let (operation, subject, links) = call(question);
        let fact = self
            .call(Call::read(operation, subject).links(links), |world| {
                if let Some(kind) = world.unanswered.get(&question.file_name()) {
                    return Err(Problem::injected(*kind));
                }
                world.fact(question)
            })
            .await?;
        let answer = |extension, bytes| Answer {
            operation: operation.to_owned(),
            request: Some(format!("record-{}", question.file_name())),
            extension,
            bytes,
        };
        let mut answers = vec![answer("json", fact.to_string().into_bytes())];
        match question {
            Question::ConsoleOutput { .. } => {
                answers.push(answer("txt", CONSOLE.as_bytes().to_vec()));
            }
            Question::ConsoleScreenshot { .. } => answers.push(answer("jpg", SCREENSHOT.to_vec())),
            _ => {}
        }
        Ok(answers)
    }
}
