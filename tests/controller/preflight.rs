//! `preflight` tells how the account is prepared, and changes nothing.

use std::{collections::BTreeMap, time::Duration};

use cleanroom_cloud::ErrorKind;
use cleanroom_cloud_fake::{At, CASE_KEY, FakeCloud, Fault, World};
use cleanroom_controller::flow::preflight::{Check, Level, preflight};

fn actions() -> Vec<String> {
    ["ec2:CreateSnapshots", "iam:PutRolePolicy", "s3:PutObject"].map(str::to_owned).into()
}

async fn look(cloud: &FakeCloud) -> Vec<Check> {
    let checks = preflight(&cloud.cloud(), &actions(), Some(CASE_KEY)).await;
    assert!(cloud.changes().is_empty(), "it changed something: {:?}", cloud.changes());
    for check in &checks {
        let good = check.level == Level::Good;
        assert_eq!(check.fix.is_empty(), good, "only what is good needs no fix: {check:?}");
    }
    checks
}

/// The lines that are not good.
fn bad(checks: &[Check]) -> BTreeMap<String, Level> {
    let bad = checks.iter().filter(|c| c.level != Level::Good);
    bad.map(|c| (format!("{}/{}", c.area, c.name), c.level)).collect()
}

#[tokio::test(start_paused = true)]
async fn a_prepared_account_lacks_only_what_it_lacks() {
    let cloud = FakeCloud::new(World::plain());
    let checks = look(&cloud).await;
    let expected = ["bucket/deletion denied", "bucket/create only"];
    let expected = expected.map(|name| (name.to_owned(), Level::Weak)).into();
    assert_eq!(bad(&checks), expected);
    for area in ["caller", "bucket", "topic", "key", "permissions", "quotas", "before"] {
        assert!(checks.iter().any(|c| c.area == area), "nothing about {area}");
    }
}

#[tokio::test(start_paused = true)]
async fn everything_is_read_at_once() {
    let cloud = FakeCloud::new(World::plain());
    cloud.set_latency(Duration::from_millis(50));
    look(&cloud).await;
    // Two requests one after another are the most that any answer takes.
    assert_eq!(cloud.elapsed(), Duration::from_millis(100));
}

#[tokio::test(start_paused = true)]
async fn each_thing_that_is_wrong_is_one_line() {
    type Change = fn(&mut World);
    let cases: [(&str, Level, Change); 12] = [
        ("caller/clock", Level::Weak, |w| w.clock_ahead = Some(-45)),
        ("bucket/versioning", Level::Missing, |w| w.setup.bucket.versioning = false),
        ("bucket/Object Lock", Level::Weak, |w| w.setup.bucket.retention = None),
        ("bucket/TLS only", Level::Weak, |w| w.setup.bucket.policy = None),
        ("bucket/encryption", Level::Missing, |w| w.setup.bucket.key = Some("gone".to_owned())),
        ("topic/exists", Level::Missing, |w| w.topic = None),
        ("key/the case's own key", Level::Missing, |w| {
            w.keys[0].enabled = false;
            w.setup.bucket.key = None;
        }),
        ("permissions/iam:PutRolePolicy", Level::Missing, |w| {
            w.setup.denied.insert("iam:PutRolePolicy".to_owned());
        }),
        ("quotas/VPCs per Region", Level::Weak, |w| w.setup.quotas[0].used = Some(5)),
        ("before/CloudTrail", Level::Missing, |w| w.setup.trails.clear()),
        ("before/GuardDuty", Level::Missing, |w| w.setup.guardduty = false),
        ("before/flow logs", Level::Missing, |w| w.setup.flow_logs.clear()),
    ];
    for (name, level, change) in cases {
        let cloud = FakeCloud::new(World::plain());
        cloud.with(change);
        let found = bad(&look(&cloud).await);
        assert_eq!(found.get(name), Some(&level), "{name}: {found:?}");
    }
}

#[tokio::test(start_paused = true)]
async fn what_can_not_be_read_is_unknown_and_hides_nothing_else() {
    let cloud = FakeCloud::new(World::plain());
    let all = look(&cloud).await;
    for (service, area) in [
        ("sts:", "caller"),
        ("s3:", "bucket"),
        ("sns:", "topic"),
        ("kms:", "key"),
        ("iam:", "permissions"),
        ("servicequotas:", "quotas"),
        ("cloudtrail:", "before"),
    ] {
        let cloud = FakeCloud::new(World::plain());
        let refused = Fault::Refuse(ErrorKind::Denied);
        cloud.faults(refused, At::Matching(service.to_owned(), 1), u64::MAX);
        let checks = look(&cloud).await;
        let unknown: Vec<_> = checks.iter().filter(|c| c.level == Level::Unknown).collect();
        assert!(unknown.iter().any(|c| c.area == area), "{service}: {unknown:?}");
        assert!(unknown.iter().all(|c| c.found.contains("UnauthorizedOperation")), "{unknown:?}");
        // The lines that nothing refused was needed for are as they were.
        let others = checks.iter().filter(|c| c.level != Level::Unknown);
        for check in others {
            assert!(all.contains(check), "{service}: {check:?}");
        }
        let lost = all.iter().filter(|c| c.area != area && !checks.contains(c)).count();
        assert!(lost <= 1, "{service} hides {lost} lines of other areas");
    }
}

#[tokio::test(start_paused = true)]
async fn no_bucket_is_one_line() {
    let mut world = World::plain();
    world.bucket.exists = false;
    let cloud = FakeCloud::new(world);
    let checks = look(&cloud).await;
    let lines: Vec<_> = checks.iter().filter(|c| c.area == "bucket").collect();
    assert_eq!(lines.len(), 1, "{lines:?}");
    assert_eq!(lines[0].level, Level::Missing);
}
