//! The service control policy that keeps `cleanroom:*` tags to the response. Pure.
//!
//! After the form of AWS Organizations' user guide, "Example SCPs for tagging resources: prevent tags from being modified
//! except by authorized principals". It does not bind the organisation's management account nor service-linked roles.

use serde_json::{Value, json};

/// What writes tags that the response goes by: of instances, interfaces, volumes, snapshots, groups; of rooms' stacks; and of
/// their resolver's firewall.
const WRITES: [&str; 11] = [
    "cloudformation:CreateChangeSet",
    "cloudformation:CreateStack",
    "cloudformation:TagResource",
    "cloudformation:UntagResource",
    "cloudformation:UpdateStack",
    "ec2:CreateTags",
    "ec2:DeleteTags",
    "route53resolver:CreateFirewallDomainList",
    "route53resolver:CreateFirewallRuleGroup",
    "route53resolver:TagResource",
    "route53resolver:UntagResource",
];

/// The policy, which exempts the response stack's roles, that of CloudFormation for rooms among them, and `exempt`, ARNs of
/// roles in which people respond and release. A clean room's own role handles hostile data, and is not exempt.
#[must_use]
pub fn reserve_tags(partition: &str, account: &str, exempt: &[String]) -> Value {
    let own = format!("arn:{partition}:iam::{account}:role/cleanroom/response/*");
    let principals: Vec<_> = std::iter::once(own).chain(exempt.iter().cloned()).collect();
    let others = json!({ "aws:PrincipalArn": principals });
    // DeleteTags that names no tag deletes all that a resource has (EC2 API reference), and is told by that.
    let delete_all = |sid: &str, tag: &str| {
        let whole = json!({ "aws:TagKeys": "true", (format!("aws:ResourceTag/{tag}")): "false" });
        json!({
            "Sid": sid, "Effect": "Deny", "Action": ["ec2:DeleteTags"], "Resource": "*",
            "Condition": { "Null": whole, "ArnNotLike": others },
        })
    };
    json!({
        "Version": "2012-10-17",
        "Statement": [
            {
                "Sid": "ReserveCleanroomTags", "Effect": "Deny", "Action": WRITES, "Resource": "*",
                "Condition": {
                    "ForAnyValue:StringLike": { "aws:TagKeys": ["cleanroom:*"] },
                    "ArnNotLike": others,
                },
            },
            delete_all("KeepCaseTags", "cleanroom:case"),
            delete_all("KeepGroupTags", "cleanroom:group"),
        ],
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_policy_denies_all_but_the_stack_s_roles_and_those_that_are_named() {
        let people = "arn:aws:iam::123456789012:role/responder".to_owned();
        let policy = reserve_tags("aws", "123456789012", std::slice::from_ref(&people));
        let statements = policy["Statement"].as_array().expect("statements");
        assert_eq!(statements.len(), 3);
        for statement in statements {
            assert_eq!(statement["Effect"], "Deny");
            let exempt = &statement["Condition"]["ArnNotLike"]["aws:PrincipalArn"];
            let own = "arn:aws:iam::123456789012:role/cleanroom/response/*";
            assert_eq!(*exempt, json!([own, people]), "a room's role is below /cleanroom/ alone");
        }
        for (statement, tag) in [(&statements[1], "case"), (&statements[2], "group")] {
            let untold = &statement["Condition"]["Null"];
            assert_eq!(untold["aws:TagKeys"], "true");
            assert_eq!(untold[format!("aws:ResourceTag/cleanroom:{tag}")], "false");
        }
        // Organizations takes 5,120 characters without white space.
        assert!(policy.to_string().len() < 5_120, "{}", policy.to_string().len());
    }
}
