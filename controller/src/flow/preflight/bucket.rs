//! The evidence bucket's set-up, judged: pure.

use cleanroom_cloud::{BucketPosture, CloudError, EncryptionKey, ErrorKind, Result};

use super::{
    Check, Level,
    policy::{Denied, Overwriting, Policy},
};

const AREA: &str = "bucket";

/// Whether a default encryption names AWS's own key, by its alias.
pub(crate) fn is_default_key(key: &str) -> bool {
    matches!(key, "aws/s3" | "alias/aws/s3") || key.ends_with(":alias/aws/s3")
}

/// Judges the bucket of this name. `key` is what KMS says of its key, where it names one of its own.
pub(super) fn judge(
    bucket: &str,
    posture: &Result<BucketPosture>,
    key: Option<&Result<EncryptionKey>>,
) -> Vec<Check> {
    let posture = match posture {
        Ok(posture) => posture,
        Err(error) => return vec![absent(bucket, error)],
    };
    vec![
        Check::good(AREA, "exists", bucket),
        switch(
            "versioning",
            posture.versioning,
            Level::Missing,
            "off: what is written over or deleted is gone, and shows nowhere",
            &format!(
                "aws s3api put-bucket-versioning --bucket {bucket} --versioning-configuration Status=Enabled"
            ),
        ),
        object_lock(bucket, posture),
        switch(
            "public access",
            posture.public_access_blocked,
            Level::Weak,
            "not all four kinds are blocked by the bucket itself",
            &format!("aws s3api put-public-access-block --bucket {bucket} with all four kinds on"),
        ),
        tls_only(bucket, posture),
        deletion(bucket, posture),
        create_only(bucket, posture),
        encryption(posture, key),
    ]
}

/// A bucket that nothing could be read of.
fn absent(bucket: &str, error: &CloudError) -> Check {
    let fix = "deploy the response stack, or create a bucket with Object Lock and name it with --bucket or CLEANROOM_BUCKET";
    if bucket.is_empty() {
        let found = "none is configured: cases are weak, and evidence is kept on this machine";
        Check::new(AREA, "exists", Level::Missing, found, fix)
    } else if error.kind == ErrorKind::NotFound {
        Check::new(AREA, "exists", Level::Missing, &format!("{bucket} is not there"), fix)
    } else {
        Check::unread(AREA, "exists", error)
    }
}

fn switch(name: &str, on: bool, otherwise: Level, found: &str, fix: &str) -> Check {
    if on { Check::good(AREA, name, "on") } else { Check::new(AREA, name, otherwise, found, fix) }
}

fn object_lock(bucket: &str, posture: &BucketPosture) -> Check {
    const NAME: &str = "Object Lock";
    let fix = format!(
        "aws s3api put-object-lock-configuration --bucket {bucket} with a default retention"
    );
    match &posture.retention {
        _ if !posture.object_lock => {
            let found = "off: evidence can be deleted by whoever may delete objects";
            Check::new(AREA, NAME, Level::Missing, found, &fix)
        }
        None => Check::new(AREA, NAME, Level::Weak, "on, without a default retention", &fix),
        Some(retention) => {
            let found = format!("on, {} for {} days", retention.mode, retention.days);
            Check::good(AREA, NAME, &found)
        }
    }
}

/// The bucket policy, or the line that says why it can not be judged.
fn policy(name: &str, posture: &BucketPosture) -> std::result::Result<Policy, Check> {
    let text = posture.policy.as_deref().unwrap_or(r#"{"Statement":[]}"#);
    Policy::parse(text).map_err(|why| {
        let found = format!("the bucket policy can not be read: {why}");
        Check::new(AREA, name, Level::Unknown, &found, "look at the bucket policy yourself")
    })
}

fn tls_only(bucket: &str, posture: &BucketPosture) -> Check {
    const NAME: &str = "TLS only";
    let policy = match policy(NAME, posture) {
        Ok(policy) => policy,
        Err(check) => return check,
    };
    if policy.denies_plain_http(bucket) {
        return Check::good(AREA, NAME, "the bucket policy denies requests without TLS");
    }
    let found =
        "the bucket policy does not deny requests without TLS to the bucket and its objects";
    let fix = format!(
        "deny s3:* to everybody on arn:aws:s3:::{bucket} and arn:aws:s3:::{bucket}/* where aws:SecureTransport is false"
    );
    Check::new(AREA, NAME, Level::Weak, found, &fix)
}

fn deletion(bucket: &str, posture: &BucketPosture) -> Check {
    const NAME: &str = "deletion denied";
    let policy = match policy(NAME, posture) {
        Ok(policy) => policy,
        Err(check) => return check,
    };
    let mut actions = vec!["s3:DeleteObject", "s3:DeleteObjectVersion"];
    // Nobody can bypass the compliance mode.
    if posture.retention.as_ref().is_none_or(|r| r.mode != "COMPLIANCE") {
        actions.push("s3:BypassGovernanceRetention");
    }
    let of = |wanted: Denied| -> Vec<_> {
        actions.iter().filter(|a| policy.denies(a, bucket) == wanted).copied().collect()
    };
    let (no, sometimes) = (of(Denied::No), of(Denied::UnderConditions));
    if no.is_empty() && sometimes.is_empty() {
        return Check::good(
            AREA,
            NAME,
            &format!("the bucket policy denies {}", actions.join(", ")),
        );
    }
    let mut found = Vec::new();
    if !no.is_empty() {
        found.push(format!("the bucket policy does not deny {}", no.join(", ")));
    }
    if !sometimes.is_empty() {
        found.push(format!("it denies {} under conditions only", sometimes.join(", ")));
    }
    let fix = format!("deny {} to everybody on arn:aws:s3:::{bucket}/*", actions.join(", "));
    Check::new(AREA, NAME, Level::Weak, &found.join("; "), &fix)
}

/// Prefixes of what is written once: the custody log, records, orders and bundles; claims.
const WRITTEN_ONCE: [&str; 2] = ["cases/", "instances/"];

fn create_only(bucket: &str, posture: &BucketPosture) -> Check {
    const NAME: &str = "create only";
    let policy = match policy(NAME, posture) {
        Ok(policy) => policy,
        Err(check) => return check,
    };
    let names = WRITTEN_ONCE.map(|prefix| format!("arn:aws:s3:::{bucket}/{prefix}*")).join(" and ");
    let fix = format!(
        "deny s3:PutObject to everybody on {names} where s3:if-none-match is null and s3:ObjectCreationOperation is true"
    );
    let found = WRITTEN_ONCE.map(|prefix| policy.overwriting(bucket, prefix));
    if found.contains(&Overwriting::PartsToo) {
        let found =
            "the bucket policy denies the parts of an upload too: no room publishes a large bundle";
        Check::new(AREA, NAME, Level::Missing, found, &fix)
    } else if found.contains(&Overwriting::Allowed) {
        let found = "the bucket policy does not deny writing over the custody log, bundles and claims: it shows, as another version";
        Check::new(AREA, NAME, Level::Weak, found, &fix)
    } else {
        Check::good(AREA, NAME, "the bucket policy denies writing over what is there")
    }
}

fn encryption(posture: &BucketPosture, key: Option<&Result<EncryptionKey>>) -> Check {
    const NAME: &str = "encryption";
    let fix = "set a customer key of KMS as the bucket's default encryption: only its users can read evidence";
    let weak = |found: &str| Check::new(AREA, NAME, Level::Weak, found, fix);
    match (&posture.key, key) {
        (None, _) => weak("by S3's own keys"),
        (Some(named), _) if is_default_key(named) => weak("by the key aws/s3, which AWS manages"),
        (Some(_), Some(Ok(key))) if key.aws_managed => {
            weak(&format!("by {}, which AWS manages", key.arn))
        }
        (Some(_), Some(Ok(key))) if !key.enabled => {
            let found = format!("by {}, which is not enabled: nothing can be written", key.arn);
            let fix = format!("aws kms enable-key --key-id {}", key.arn);
            Check::new(AREA, NAME, Level::Missing, &found, &fix)
        }
        (Some(_), Some(Ok(key))) => {
            Check::good(AREA, NAME, &format!("by the customer key {}", key.arn))
        }
        (Some(named), Some(Err(error))) if error.kind == ErrorKind::NotFound => {
            let found = format!("by {named}, which is not there: nothing can be written");
            Check::new(AREA, NAME, Level::Missing, &found, fix)
        }
        (Some(_), Some(Err(error))) => Check::unread(AREA, NAME, error),
        (Some(named), None) => {
            let found = format!("by {named}, which was not looked at");
            Check::new(AREA, NAME, Level::Unknown, &found, "run preflight again")
        }
    }
}

#[cfg(test)]
mod tests {
    use cleanroom_cloud::Retention;

    use super::*;
    use crate::flow::preflight::tests::error;

    const BUCKET: &str = "evidence";
    const TLS: &str = r#"{"Effect":"Deny","Principal":"*","Action":"s3:*","Resource":"*","Condition":{"Bool":{"aws:SecureTransport":"false"}}}"#;
    const KEEP: &str = r#"{"Effect":"Deny","Principal":"*","Action":["s3:DeleteObject*","s3:BypassGovernanceRetention"],"Resource":"arn:aws:s3:::evidence/*"}"#;

    const ONCE: &str = r#"{"Effect":"Deny","Principal":"*","Action":"s3:PutObject","Resource":["arn:aws:s3:::evidence/cases/*","arn:aws:s3:::evidence/instances/*"],"Condition":{"Null":{"s3:if-none-match":"true"},"Bool":{"s3:ObjectCreationOperation":"true"}}}"#;

    fn good() -> BucketPosture {
        BucketPosture {
            versioning: true,
            object_lock: true,
            retention: Some(Retention { mode: "GOVERNANCE".to_owned(), days: 90 }),
            public_access_blocked: true,
            key: Some("arn:aws:kms:eu-west-1:123456789012:key/k".to_owned()),
            policy: Some(format!(r#"{{"Statement":[{TLS},{KEEP},{ONCE}]}}"#)),
        }
    }

    fn key(aws_managed: bool, enabled: bool) -> EncryptionKey {
        EncryptionKey {
            arn: "arn:aws:kms:eu-west-1:123456789012:key/k".to_owned(),
            account: "123456789012".into(),
            aws_managed,
            enabled,
        }
    }

    /// The lines that are not good.
    fn bad(posture: BucketPosture) -> Vec<(String, Level)> {
        let checks = judge(BUCKET, &Ok(posture), Some(&Ok(key(false, true))));
        let bad = checks.into_iter().filter(|c| c.level != Level::Good);
        bad.map(|c| {
            assert!(!c.fix.is_empty(), "{c:?}");
            (c.name, c.level)
        })
        .collect()
    }

    #[test]
    fn each_weakness_has_its_own_line() {
        let one = |name: &str, level| vec![(name.to_owned(), level)];
        let lock = |retention: Option<&str>| BucketPosture {
            retention: retention.map(|mode| Retention { mode: mode.to_owned(), days: 1 }),
            ..good()
        };
        let policy = |statements: &str| BucketPosture {
            policy: Some(format!(r#"{{"Statement":[{statements}]}}"#)),
            ..good()
        };
        assert_eq!(bad(good()), []);
        for (posture, expected) in [
            (BucketPosture { versioning: false, ..good() }, one("versioning", Level::Missing)),
            (BucketPosture { object_lock: false, ..good() }, one("Object Lock", Level::Missing)),
            (lock(None), one("Object Lock", Level::Weak)),
            (
                BucketPosture { public_access_blocked: false, ..good() },
                one("public access", Level::Weak),
            ),
            (policy(&[KEEP, ONCE].join(",")), one("TLS only", Level::Weak)),
            (policy(&[TLS, ONCE].join(",")), one("deletion denied", Level::Weak)),
            (policy(&[TLS, KEEP].join(",")), one("create only", Level::Weak)),
            (
                policy(
                    &[
                        TLS,
                        KEEP,
                        &ONCE.replace(r#","Bool":{"s3:ObjectCreationOperation":"true"}"#, ""),
                    ]
                    .join(","),
                ),
                one("create only", Level::Missing),
            ),
            (BucketPosture { key: None, ..good() }, one("encryption", Level::Weak)),
            (
                BucketPosture { key: Some("aws/s3".to_owned()), ..good() },
                one("encryption", Level::Weak),
            ),
        ] {
            assert_eq!(bad(posture.clone()), expected, "{posture:?}");
        }
        let none = BucketPosture { policy: None, ..good() };
        assert_eq!(bad(none).len(), 3, "no policy denies nothing");
        let garbled = BucketPosture { policy: Some("{".to_owned()), ..good() };
        assert!(bad(garbled).iter().all(|(_, level)| *level == Level::Unknown));
    }

    #[test]
    fn the_compliance_mode_needs_no_denial_of_bypassing() {
        let delete =
            r#"{"Effect":"Deny","Principal":"*","Action":"s3:DeleteObject*","Resource":"*"}"#;
        for (mode, expected) in [("COMPLIANCE", 0), ("GOVERNANCE", 1)] {
            let posture = BucketPosture {
                retention: Some(Retention { mode: mode.to_owned(), days: 1 }),
                policy: Some(format!(r#"{{"Statement":[{TLS},{delete},{ONCE}]}}"#)),
                ..good()
            };
            assert_eq!(bad(posture).len(), expected, "{mode}");
        }
    }

    #[test]
    fn the_buckets_key_is_judged_by_what_kms_says() {
        for (said, expected) in [
            (Ok(key(false, true)), Level::Good),
            (Ok(key(true, true)), Level::Weak),
            (Ok(key(false, false)), Level::Missing),
            (Err(error(ErrorKind::NotFound)), Level::Missing),
            (Err(error(ErrorKind::Denied)), Level::Unknown),
        ] {
            let checks = judge(BUCKET, &Ok(good()), Some(&said));
            let line = checks.iter().find(|c| c.name == "encryption").expect("a line");
            assert_eq!(line.level, expected, "{said:?}");
        }
    }

    #[test]
    fn a_bucket_that_is_not_there_is_missing_and_one_that_can_not_be_read_is_unknown() {
        for (bucket, kind, expected) in [
            ("evidence", ErrorKind::NotFound, Level::Missing),
            ("", ErrorKind::Unsupported, Level::Missing),
            ("evidence", ErrorKind::Denied, Level::Unknown),
        ] {
            let checks = judge(bucket, &Err(error(kind)), None);
            assert_eq!(checks.len(), 1);
            assert_eq!(checks[0].level, expected, "{bucket:?} {kind:?}");
        }
    }
}
