//! Which bundle `report` and `fetch` take: the one that the custody log vouches for.

use cleanroom_cloud_fake::{FakeCloud, RoomEnds};
use cleanroom_contract::{ScanId, bundle_prefix};
use cleanroom_controller::{
    case::Policy,
    flow::fetch::{self, FetchError},
    journal::digest,
};

use super::{case, small};
use crate::support::{respond, run};

/// Puts a bundle into the bucket that is whole by its own sums, and that nobody has read back.
fn plant(cloud: &FakeCloud, like: &ScanId) -> ScanId {
    let planted: ScanId = "29991231T235959Z-0123abcd".parse().expect("a scan id");
    let (from, to) = (bundle_prefix(&case(), like), bundle_prefix(&case(), &planted));
    cloud.with(|w| {
        for key in w.bucket.keys(&from) {
            let bytes = w.bucket.newest(&key).expect("an object").to_vec();
            w.bucket.overwrite(&key.replace(&from, &to), bytes);
        }
    });
    planted
}

#[tokio::test(start_paused = true)]
async fn a_bundle_that_nobody_read_back_is_shown_only_where_it_is_named() {
    let cloud = FakeCloud::new(small());
    let logged = respond(&cloud, None).await.reported.expect("a report").scan;
    let planted = plant(&cloud, &logged);
    assert!(planted > logged, "it says that it is newer");
    let run = run(&cloud, Policy::default(), None).await;
    let folder = tempfile::tempdir().expect("a folder");
    let at = |name: &str| folder.path().join(name);
    let (scan, _, vouched) = fetch::report(&run, &case(), None).await.expect("it is there");
    assert_eq!((&scan, vouched), (&logged, true));
    let fetched = fetch::fetch(&run, &case(), None, Some(&at("newest"))).await.expect("it comes");
    assert_eq!((&fetched.scan, fetched.logged), (&logged, true));
    let (_, _, vouched) = fetch::report(&run, &case(), Some(&planted)).await.expect("it is there");
    assert!(!vouched);
    let named = fetch::fetch(&run, &case(), Some(&planted), Some(&at("named"))).await;
    assert!(!named.expect("it comes").logged);
}

#[tokio::test(start_paused = true)]
async fn a_case_without_a_report_has_no_newest_bundle_whatever_lies_there() {
    let other = FakeCloud::new(small());
    let like = respond(&other, None).await.reported.expect("a report").scan;
    let cloud = FakeCloud::new(small());
    cloud.with(|w| w.room.ends = RoomEnds::FallsSilent(2));
    respond(&cloud, None).await;
    let prefix = bundle_prefix(&case(), &like);
    let files = other.with(|w| {
        let keys = w.bucket.keys(&prefix).into_iter();
        keys.map(|key| (key.clone(), w.bucket.newest(&key).expect("it").to_vec()))
            .collect::<Vec<_>>()
    });
    let run = run(&cloud, Policy::default(), None).await;
    let error = fetch::report(&run, &case(), None).await.expect_err("there is none");
    assert!(error.to_string().ends_with("status shows how it stands"), "{error}");
    cloud.with(|w| files.into_iter().for_each(|(key, bytes)| w.bucket.overwrite(&key, bytes)));
    let folder = tempfile::tempdir().expect("a folder");
    let out = folder.path().join("bundle");
    for error in [
        fetch::report(&run, &case(), None).await.map(drop).expect_err("none was read back"),
        fetch::fetch(&run, &case(), None, Some(&out)).await.map(drop).expect_err("the same"),
    ] {
        assert!(matches!(error, FetchError::None { .. }), "{error}");
        assert!(error.to_string().contains(like.as_str()), "{error}");
    }
    assert!(!out.exists(), "nothing of it came");
    let (_, _, vouched) = fetch::report(&run, &case(), Some(&like)).await.expect("it is there");
    assert!(!vouched);
}

#[tokio::test(start_paused = true)]
async fn a_bundle_that_was_written_over_with_other_sums_is_not_the_one_in_the_log() {
    let cloud = FakeCloud::new(small());
    let scan = respond(&cloud, None).await.reported.expect("a report").scan;
    let key = |name: &str| format!("{}{name}", bundle_prefix(&case(), &scan));
    let sums = cloud.with(|w| w.bucket.newest(&key("SHA256SUMS")).expect("it").to_vec());
    let run = run(&cloud, Policy::default(), None).await;
    let folder = tempfile::tempdir().expect("a folder");
    // Whole by its own word: the findings are others, and the sums say so.
    cloud.with(|w| {
        let findings = w.bucket.newest(&key("findings.jsonl")).expect("it").to_vec();
        let list = String::from_utf8(sums.clone()).expect("text");
        let list =
            list.replace(&digest(&findings).to_string(), &digest(b"{}").to_string()).into_bytes();
        w.bucket.overwrite(&key("findings.jsonl"), b"{}".to_vec());
        w.bucket.overwrite(&key("SHA256SUMS"), list);
    });
    let assert_altered = |error: FetchError| {
        assert!(matches!(error, FetchError::Altered { .. }), "{error}");
        assert!(error.to_string().contains("CloudTrail"), "{error}");
    };
    for scan in [None, Some(&scan)] {
        assert_altered(fetch::report(&run, &case(), scan).await.map(drop).expect_err("another"));
        let out = folder.path().join("other");
        let fetched = fetch::fetch(&run, &case(), scan, Some(&out)).await;
        assert_altered(fetched.map(drop).expect_err("another"));
        assert!(!out.exists(), "nothing of it came");
    }
    cloud.with(|w| w.bucket.delete(&key("SHA256SUMS")));
    assert_altered(fetch::report(&run, &case(), None).await.map(drop).expect_err("gone"));
    // With the sums that were logged, a file that is another is told all the same; and a signature that came later is not
    // taken for the bundle's own.
    cloud.with(|w| {
        w.bucket.overwrite(&key("SHA256SUMS"), sums);
        w.bucket.overwrite(&key("SHA256SUMS.sig"), b"mine".to_vec());
    });
    let out = folder.path().join("other");
    let fetched = fetch::fetch(&run, &case(), None, Some(&out)).await;
    assert_altered(fetched.map(drop).expect_err("the findings are others"));
    assert!(!out.join("SHA256SUMS.sig").exists());
}
