//! The table itself.
//!
//! Purpose: a row for each operation, and nothing else. Touches nothing.

use super::{Implied, Operation};

const TAGS: Implied = Implied {
    action: "ec2:CreateTags",
    reason: "what is made carries the case's tags from its first moment",
    page: "https://docs.aws.amazon.com/AWSEC2/latest/UserGuide/supported-iam-actions-tagging.html",
};

const DRILL_TAGS: Implied = Implied {
    action: "ec2:CreateTags",
    reason: "the instance of a drill is marked from its first moment",
    page: "https://docs.aws.amazon.com/AWSEC2/latest/UserGuide/supported-iam-actions-tagging.html",
};

/// The page on what a user of encrypted snapshots must be allowed.
const EBS_ENCRYPTION: &str =
    "https://docs.aws.amazon.com/ebs/latest/userguide/ebs-encryption-requirements.html";

/// An action on the keys of a snapshot that is copied from one to the other.
const fn re_encrypt(action: &'static str) -> Implied {
    Implied {
        action,
        reason: "the copy of a snapshot is encrypted with the case's key",
        page: EBS_ENCRYPTION,
    }
}

/// An action on the key of a bucket that encrypts with KMS.
const fn bucket_key(action: &'static str) -> Implied {
    Implied {
        action,
        reason: "the evidence bucket encrypts with a KMS key",
        page: "https://docs.aws.amazon.com/AmazonS3/latest/userguide/UsingKMSEncryption.html",
    }
}

/// An action on the key of a topic that encrypts with KMS.
const fn topic_key(action: &'static str) -> Implied {
    Implied {
        action,
        reason: "the topic encrypts with a KMS key",
        page: "https://docs.aws.amazon.com/sns/latest/dg/sns-key-management.html",
    }
}

/// An action on the key of a queue that encrypts with KMS.
const fn queue_key(action: &'static str) -> Implied {
    Implied {
        action,
        reason: "the queue of what could not be read encrypts with a KMS key",
        page: "https://docs.aws.amazon.com/AWSSimpleQueueService/latest/SQSDeveloperGuide/sqs-key-management.html",
    }
}

const PASS_ROLE: Implied = Implied {
    action: "iam:PassRole",
    reason: "release puts the instance's own profile back on",
    page: "https://docs.aws.amazon.com/AWSEC2/latest/UserGuide/permission-to-pass-iam-roles.html",
};

const PASS_ROOM_ROLE: Implied = Implied {
    action: "iam:PassRole",
    reason: "the stack is made in the role that --room-role names; without one, the caller's own rights are used",
    page: "https://docs.aws.amazon.com/AWSCloudFormation/latest/UserGuide/using-iam-servicerole.html",
};

const TAG_STACK: Implied = Implied {
    action: "cloudformation:TagResource",
    reason: "the stack and all that it makes carry the case's tags",
    page: "https://docs.aws.amazon.com/service-authorization/latest/reference/list_awscloudformation.html",
};

const LIST_TO_MISS: Implied = Implied {
    action: "s3:ListBucket",
    reason: "without it, an object that is not there is reported as denied",
    page: "https://docs.aws.amazon.com/AmazonS3/latest/API/API_GetObject.html",
};

/// Writes the table: the step, whether it looks or acts, the operation, its actions where they are named otherwise, and
/// what it implies.
macro_rules! table {
    (@way look) => { false };
    (@way act) => { true };
    (@actions $name:literal) => { &[$name] };
    (@actions $name:literal $($action:literal),+) => { &[$($action),+] };
    (@implied) => { &[] };
    (@implied $($implied:expr),+) => { &[$($implied),+] };
    ($($step:literal $way:ident $name:literal
        $(= $($action:literal),+)? $(, with $($implied:expr),+)?;)*) => {
        &[$(Operation {
            name: $name,
            actions: table!(@actions $name $($($action),+)?),
            implied: table!(@implied $($($implied),+)?),
            step: $step,
            mutates: table!(@way $way),
        }),*]
    };
}

/// The table.
pub const TABLE: &[Operation] = table! {
    "verify" look "sts:GetCallerIdentity";
    "verify" look "ec2:DescribeInstances";
    "verify" look "ec2:DescribeAddresses";
    "verify" look "ec2:DescribeNetworkInterfaces";
    "verify" look "ec2:DescribeRegions";
    "verify" look "guardduty:ListDetectors";
    "verify" look "guardduty:ListFindings";
    "verify" look "guardduty:GetFindings";
    "verify" look "cloudformation:DescribeStacks";

    "custody" look "s3:GetObject", with LIST_TO_MISS, bucket_key("kms:Decrypt");
    "custody" look "s3:ListObjectsV2" = "s3:ListBucket";
    "custody" look "s3:ListObjectVersions" = "s3:ListBucketVersions";
    "custody" act "s3:PutObject",
        with bucket_key("kms:GenerateDataKey"), bucket_key("kms:Decrypt");
    "custody" act "s3:PutObjectLegalHold";

    "protect" look "ec2:DescribeInstanceAttribute";
    "protect" act "ec2:ModifyInstanceAttribute";

    "detach" look "autoscaling:DescribeAutoScalingInstances";
    "detach" look "autoscaling:DescribeAutoScalingGroups";
    "detach" look "autoscaling:DescribeLifecycleHooks";
    "detach" look "elasticloadbalancing:DescribeTargetGroups";
    "detach" look "elasticloadbalancing:DescribeTargetHealth";
    "detach" look "elasticloadbalancing:DescribeLoadBalancers";
    "detach" act "autoscaling:DetachInstances";
    "detach" act "autoscaling:SetInstanceProtection";
    "detach" act "autoscaling:SuspendProcesses";
    "detach" act "autoscaling:RecordLifecycleActionHeartbeat";
    "detach" act "elasticloadbalancing:DeregisterTargets";
    "detach" act "elasticloadbalancing:DeregisterInstancesFromLoadBalancer";

    "snapshot" look "ec2:DescribeVolumes";
    "snapshot" look "ec2:DescribeVolumeAttribute";
    "snapshot" look "ec2:DescribeSnapshots";
    "snapshot" look "ec2:DescribeLockedSnapshots";
    "snapshot" look "ec2:DescribeImages";
    "snapshot" look "ec2:DescribeInstanceTypes";
    "snapshot" look "kms:DescribeKey";
    "snapshot" act "ec2:CreateSnapshots", with TAGS;
    "snapshot" act "ec2:CreateSnapshot", with TAGS;
    "snapshot" act "ec2:CopySnapshot", with TAGS,
        re_encrypt("kms:CreateGrant"), re_encrypt("kms:Decrypt"), re_encrypt("kms:DescribeKey"),
        re_encrypt("kms:GenerateDataKeyWithoutPlaintext"),
        re_encrypt("kms:ReEncryptFrom"), re_encrypt("kms:ReEncryptTo");
    "snapshot" act "ec2:LockSnapshot";
    "snapshot" act "ec2:RegisterImage", with TAGS;
    "snapshot" act "ec2:CreateImage", with TAGS;

    "record" look "ec2:DescribeInstanceStatus";
    "record" look "ec2:GetConsoleOutput";
    "record" look "ec2:GetConsoleScreenshot";
    "record" look "ec2:DescribeTags";
    "record" look "ec2:DescribeSubnets";
    "record" look "ec2:DescribeVpcs";
    "record" look "ec2:DescribeRouteTables";
    "record" look "ec2:DescribeFlowLogs";
    "record" look "ec2:DescribeLaunchTemplateVersions";
    "record" look "autoscaling:DescribeScalingActivities";
    "record" look "iam:GetRole";
    "record" look "iam:ListAttachedRolePolicies";
    "record" look "iam:GetPolicy";
    "record" look "iam:GetPolicyVersion";
    "record" look "cloudtrail:LookupEvents";

    "tag" act "ec2:CreateTags";

    "notify" act "sns:Publish", with topic_key("kms:GenerateDataKey"), topic_key("kms:Decrypt");

    "isolate" look "ec2:DescribeSecurityGroups";
    "isolate" look "ec2:DescribeSecurityGroupRules";
    "isolate" look "ec2:DescribeNetworkInterfaceAttribute";
    "isolate" look "ec2:DescribeNetworkAcls";
    "isolate" act "ec2:CreateSecurityGroup", with TAGS;
    "isolate" act "ec2:RevokeSecurityGroupIngress";
    "isolate" act "ec2:RevokeSecurityGroupEgress";
    "isolate" act "ec2:AuthorizeSecurityGroupIngress";
    "isolate" act "ec2:AuthorizeSecurityGroupEgress";
    "isolate" act "ec2:ModifyNetworkInterfaceAttribute";
    "isolate" act "ec2:DisassociateAddress";
    "isolate" act "ec2:CreateNetworkAclEntry";

    "revoke" look "ec2:DescribeIamInstanceProfileAssociations";
    "revoke" look "iam:GetInstanceProfile";
    "revoke" look "iam:ListRolePolicies";
    "revoke" look "iam:GetRolePolicy";
    "revoke" look "iam:ListAccessKeys";
    "revoke" look "iam:ListUserPolicies";
    "revoke" look "iam:GetUserPolicy";
    "revoke" act "ec2:DisassociateIamInstanceProfile";
    "revoke" act "ec2:ModifyInstanceMetadataOptions";
    "revoke" act "iam:PutRolePolicy";
    "revoke" act "iam:UpdateAccessKey";
    "revoke" act "iam:PutUserPolicy";

    "clean_room" look "cloudformation:DescribeStackEvents";
    "clean_room" look "ec2:DescribeManagedPrefixLists";
    "clean_room" look "ec2:DescribeSnapshotAttribute";
    "clean_room" look "kms:ListGrants";
    "clean_room" act "ec2:ModifySnapshotAttribute";
    "clean_room" act "kms:CreateGrant";
    "clean_room" act "cloudformation:CreateStack", with PASS_ROOM_ROLE, TAG_STACK;
    "clean_room" act "cloudformation:DeleteStack";

    "via aws" look "states:DescribeExecution";
    "via aws" look "states:GetExecutionHistory";
    "via aws" act "states:StartExecution";

    "approve" act "states:SendTaskSuccess";
    "approve" act "states:SendTaskFailure";

    "intake" look "ec2:DescribeNatGateways";
    "intake" act "sqs:SendMessage",
        with queue_key("kms:GenerateDataKey"), queue_key("kms:Decrypt");

    "release" act "ec2:AssociateIamInstanceProfile", with PASS_ROLE;
    "release" act "iam:DeleteRolePolicy";
    "release" act "ec2:AssociateAddress";
    "release" act "ec2:DeleteNetworkAclEntry";
    "release" act "ec2:DeleteSecurityGroup";
    "release" act "ec2:DeleteTags";
    "release" act "autoscaling:AttachInstances";
    "release" act "autoscaling:ResumeProcesses";
    "release" act "elasticloadbalancing:RegisterTargets";
    "release" act "elasticloadbalancing:RegisterInstancesWithLoadBalancer";

    "preflight" look "s3:GetBucketVersioning";
    "preflight" look "s3:GetObjectLockConfiguration" = "s3:GetBucketObjectLockConfiguration";
    "preflight" look "s3:GetPublicAccessBlock" = "s3:GetBucketPublicAccessBlock";
    "preflight" look "s3:GetBucketEncryption" = "s3:GetEncryptionConfiguration";
    "preflight" look "s3:GetBucketPolicy";
    "preflight" look "sns:GetTopicAttributes";
    "preflight" look "iam:SimulatePrincipalPolicy";
    "preflight" look "cloudtrail:DescribeTrails";
    "preflight" look "cloudtrail:GetTrailStatus";
    "preflight" look "guardduty:GetDetector";
    "preflight" look "servicequotas:GetServiceQuota";
    "preflight" look "servicequotas:GetAWSDefaultServiceQuota";

    "drill" act "ec2:RunInstances", with DRILL_TAGS;
    "drill" act "ec2:TerminateInstances";
    "drill" act "ec2:DeleteSnapshot";
};

/// What `deploy` calls besides, to set up the bucket of the artifacts and the response stack. It is not of the table, since
/// who responds needs none of it. CloudFormation makes the stack's resources with the deployer's own rights.
pub const DEPLOY: &[Operation] = table! {
    "deploy" look "s3:HeadBucket" = "s3:ListBucket";
    "deploy" act "s3:CreateBucket";
    "deploy" act "s3:PutPublicAccessBlock" = "s3:PutBucketPublicAccessBlock";
    "deploy" act "s3:PutBucketEncryption" = "s3:PutEncryptionConfiguration";
    "deploy" act "s3:PutBucketVersioning";
    "deploy" act "s3:PutBucketPolicy";
    "deploy" act "cloudformation:CreateChangeSet";
    "deploy" look "cloudformation:DescribeChangeSet";
    "deploy" act "cloudformation:ExecuteChangeSet";
    "deploy" act "cloudformation:DeleteChangeSet";
};

/// What is called in the forensic account, as the role that `--forensic-account` names. All of it is in the table.
pub const FORENSIC: &[&str] = &[
    "sts:GetCallerIdentity",
    "ec2:DescribeImages",
    "ec2:DescribeInstances",
    "ec2:DescribeLockedSnapshots",
    "ec2:DescribeManagedPrefixLists",
    "ec2:DescribeSnapshots",
    "ec2:DescribeVolumeAttribute",
    "ec2:DescribeVolumes",
    "kms:DescribeKey",
    "cloudformation:DescribeStackEvents",
    "cloudformation:DescribeStacks",
    "ec2:CopySnapshot",
    "cloudformation:CreateStack",
    "cloudformation:DeleteStack",
];
