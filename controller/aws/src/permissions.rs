//! Placeholder
pub(crate) fn prefix(service: &str) -> Option<&'static str> {
    Some(match service {
        "EC2" => "ec2",
        "Auto Scaling" => "autoscaling",
        "Elastic Load Balancing" | "Elastic Load Balancing v2" => "elasticloadbalancing",
        "IAM" => "iam",
        "S3" => "s3",
        "SNS" => "sns",
        "STS" => "sts",
        "KMS" => "kms",
        "CloudTrail" => "cloudtrail",
        "GuardDuty" => "guardduty",
        "CloudFormation" => "cloudformation",
        "Service Quotas" => "servicequotas",
        _ => return None,
    })
}
pub(crate) fn operation(_: &str) -> Option<()> { Some(()) }
