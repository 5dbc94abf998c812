//! The bucket and the topic.

use cleanroom_cloud::{Notice, Notices as _, Put, Store as _};

use super::*;

#[tokio::test(start_paused = true)]
async fn an_object_is_created_once_and_listed_by_its_bytes() {
    let fake = FakeCloud::new(World::plain());
    for key in ["c/b/2", "c/a", "c/b/1", "d", "c/B/1"] {
        assert_eq!(fake.create(key, vec![1]).await, Ok(Put::Created));
    }
    assert_eq!(fake.create("c/a", vec![2]).await, Ok(Put::Exists));
    assert_eq!(fake.get("c/a").await, Ok(Some(vec![1])));
    assert_eq!(fake.get("c").await, Ok(None));
    let listed = fake.list("c/", false).await.expect("listed");
    assert_eq!(listed, ["c/B/1", "c/a", "c/b/1", "c/b/2"]);
    assert_eq!(fake.list("c/", true).await.expect("listed"), ["c/B/", "c/b/"]);
}

#[tokio::test(start_paused = true)]
async fn tampering_shows_in_the_versions() {
    let fake = FakeCloud::new(World::plain());
    for key in ["c/1", "c/2"] {
        fake.create(key, vec![1, 2]).await.expect("created");
    }
    fake.hold("c/1", true).await.expect("held");
    fake.with(|w| {
        w.bucket.overwrite("c/1", vec![3]);
        w.bucket.delete("c/2");
    });
    assert_eq!(fake.get("c/1").await, Ok(Some(vec![3])));
    assert_eq!(fake.get("c/2").await, Ok(None));
    let versions = fake.versions("c/").await.expect("listed");
    let seen: Vec<_> =
        versions.iter().map(|v| (v.key.as_str(), v.deleted, v.latest, v.size)).collect();
    assert_eq!(
        seen,
        [
            ("c/1", false, true, 1),
            ("c/1", false, false, 2),
            ("c/2", true, true, 0),
            ("c/2", false, false, 2)
        ]
    );
    assert!(fake.with(|w| w.bucket.objects["c/1"][0].hold));
    assert_eq!(kind(fake.hold("c/2", true).await), ErrorKind::NotFound);
    // As in S3, a key behind a delete marker is free.
    assert_eq!(fake.create("c/2", vec![4]).await, Ok(Put::Created));
}

#[tokio::test(start_paused = true)]
async fn a_bucket_may_be_missing() {
    let fake = FakeCloud::new(World::plain());
    fake.with(|w| w.bucket.exists = false);
    assert_eq!(kind(fake.create("k", vec![]).await), ErrorKind::NotFound);
    assert_eq!(kind(fake.get("k").await), ErrorKind::NotFound);
}

#[tokio::test(start_paused = true)]
async fn notices_are_kept_and_bad_subjects_refused() {
    let fake = FakeCloud::new(World::plain());
    let notice = |subject: &str| Notice {
        subject: subject.to_owned(),
        text: "text".to_owned(),
        json: "{}".to_owned(),
        attributes: [("case".to_owned(), "c1".to_owned())].into(),
    };
    assert!(fake.publish(&notice("contained")).await.expect("published").is_some());
    for bad in ["", "two\nlines", "\u{e4}", &"s".repeat(100)] {
        assert_eq!(kind(fake.publish(&notice(bad)).await), ErrorKind::Refused, "{bad:?}");
    }
    assert_eq!(fake.with(|w| w.notices.clone()), [notice("contained")]);
    fake.with(|w| w.topic = None);
    assert_eq!(fake.publish(&notice("contained")).await, Ok(None));
}
