//! Names that the cloud gives, kept apart from each other.

use std::fmt;

use serde::{Deserialize, Serialize};

/// Declares a newtype over `String` whose text is the cloud's own and is passed back unchanged.
macro_rules! name {
    ($($(#[$doc:meta])* $name:ident),+ $(,)?) => {$(
        $(#[$doc])*
        #[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
        #[serde(transparent)]
        pub struct $name(String);

        impl $name {
            /// The name as the cloud gave it.
            #[must_use]
            pub fn as_str(&self) -> &str {
                &self.0
            }
        }

        impl From<String> for $name {
            fn from(text: String) -> Self {
                Self(text)
            }
        }

        impl From<&str> for $name {
            fn from(text: &str) -> Self {
                Self(text.to_owned())
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(&self.0)
            }
        }
    )+};
}

name! {
    /// An AWS account, twelve digits.
    AccountId,
    /// A network ACL, `acl-…`.
    AclId,
    /// An Elastic IP address, `eipalloc-…`.
    AllocationId,
    /// An Elastic IP's association with an interface (`eipassoc-…`), or an instance profile's with an
    /// instance (`iip-assoc-…`).
    AssociationId,
    /// A security group, `sg-…`.
    GroupId,
    /// An AMI, `ami-…`.
    ImageId,
    /// A network interface, `eni-…`.
    InterfaceId,
    /// A role's name, without its path.
    RoleName,
    /// A target group's ARN.
    TargetGroupArn,
    /// A VPC, `vpc-…`.
    VpcId,
}
