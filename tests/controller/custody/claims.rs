//! Claims: one case an instance, and one instance a case, whoever asks.

use std::time::Duration;

use cleanroom_cloud::Caller;
use cleanroom_cloud_fake::{At, FakeCloud, Fault, World};
use cleanroom_contract::{CaseId, InstanceId, Timestamp};
use cleanroom_controller::{
    claim::{self, ClaimError, Claimed, Claimer},
    journal::{Journal, Spool},
};

use super::{case, open, opened, plain, writer};
use crate::support::suspect;

async fn caller(cloud: &FakeCloud) -> Caller {
    cloud.cloud().inventory.caller().await.expect("somebody calls")
}

/// What a claim is asked for with.
#[derive(Default)]
struct Asked<'a> {
    nonce: &'a str,
    case: Option<CaseId>,
    weak: Option<CaseId>,
    tagged: bool,
}

async fn claimed(
    cloud: &FakeCloud,
    instance: &InstanceId,
    asked: &Asked<'_>,
) -> Result<Claimed, ClaimError> {
    let caller = caller(cloud).await;
    let claimer = Claimer {
        caller: &caller,
        nonce: asked.nonce,
        now: cloud.now(),
        case: asked.case.as_ref(),
        tagged: asked.tagged,
        weak: asked.weak.as_ref(),
    };
    claim::claim(&*cloud.cloud().store, instance, &claimer).await
}

async fn mark_released(cloud: &FakeCloud, n: u32) {
    let key = claim::released_key(&caller(cloud).await, &suspect(), n);
    cloud.cloud().store.create(&key, b"{}".to_vec()).await.expect("the store takes it");
}

fn named(name: &str) -> Option<CaseId> {
    Some(name.parse().expect("a case id"))
}

#[tokio::test(start_paused = true)]
async fn two_claims_at_once_make_one_case() {
    let cloud = plain();
    cloud.set_latency(Duration::from_millis(50));
    let (id, a, b) = (
        suspect(),
        Asked { nonce: "a", ..Asked::default() },
        Asked { nonce: "b", ..Asked::default() },
    );
    let (a, b) = tokio::join!(claimed(&cloud, &id, &a), claimed(&cloud, &id, &b));
    let (a, b) = (a.expect("a claim"), b.expect("a claim"));
    assert_eq!((a.claim.case.clone(), a.n), (b.claim.case, b.n));
    assert!(a.new != b.new, "one made it, the other joined");
    assert_eq!(a.claim.case, claim::default_case(&id, 1));
}

#[tokio::test(start_paused = true)]
async fn a_claim_whose_answer_was_lost_is_known_again() {
    let cloud = plain();
    cloud.fault(Fault::LoseAnswer, At::Matching("s3:PutObject".to_owned(), 1));
    let asked = Asked { nonce: "a", ..Asked::default() };
    let claim = claimed(&cloud, &suspect(), &asked).await.expect("a claim");
    assert!(claim.new);
    assert_eq!(cloud.world().bucket.keys("instances/").len(), 1);
}

#[tokio::test(start_paused = true)]
async fn a_released_instance_has_its_next_case() {
    let cloud = plain();
    let id = suspect();
    for n in 1..=12 {
        for (nonce, tagged) in [(format!("a{n}"), false), (format!("b{n}"), true)] {
            let asked = Asked { nonce: &nonce, tagged, ..Asked::default() };
            let claim = claimed(&cloud, &id, &asked).await.expect("a claim");
            assert_eq!((claim.n, &claim.claim.case), (n, &claim::default_case(&id, n)));
            assert_eq!(claim.new, !tagged, "the second joins");
        }
        mark_released(&cloud, n).await;
    }
}

#[tokio::test(start_paused = true)]
async fn an_open_case_is_not_claimed_by_another_name() {
    let cloud = plain();
    let first = Asked { nonce: "a", case: named("breach"), ..Asked::default() };
    assert_eq!(
        claimed(&cloud, &suspect(), &first).await.expect("a claim").claim.case,
        case_named("breach")
    );
    let again = Asked { nonce: "b", case: named("breach"), ..Asked::default() };
    assert!(!claimed(&cloud, &suspect(), &again).await.expect("joined").new);
    let other = Asked { nonce: "c", case: named("other"), ..Asked::default() };
    let error = claimed(&cloud, &suspect(), &other).await.expect_err("it is open");
    assert!(matches!(error, ClaimError::Other { .. }), "{error:?}");
}

fn case_named(name: &str) -> CaseId {
    name.parse().expect("a case id")
}

#[tokio::test(start_paused = true)]
async fn a_name_is_one_cases_and_stays_so() {
    let cloud = plain();
    let ended = Asked { nonce: "a", case: named("breach"), ..Asked::default() };
    claimed(&cloud, &suspect(), &ended).await.expect("a claim");
    mark_released(&cloud, 1).await;
    // The instance's own earlier case.
    let again = Asked { nonce: "b", case: named("breach"), ..Asked::default() };
    let error = claimed(&cloud, &suspect(), &again).await.expect_err("it was released");
    assert!(matches!(error, ClaimError::Taken { .. }), "{error:?}");
    // Another instance's: its log says so.
    let other: InstanceId = "i-0fedcba9876543210".parse().expect("an id");
    let mut instance = cloud.world().machines[&suspect()].instance.clone();
    instance.id = other;
    open(&cloud, "z", None).await.append(None, opened(&instance, "another")).await;
    let taken = Asked { nonce: "c", case: Some(case()), ..Asked::default() };
    let error = claimed(&cloud, &suspect(), &taken).await.expect_err("it is another's");
    assert!(error.to_string().contains("i-0fedcba9876543210"), "{error}");
    // Nothing was claimed by what was refused.
    let asked = Asked { nonce: "d", ..Asked::default() };
    assert_eq!(claimed(&cloud, &suspect(), &asked).await.expect("a claim").n, 2);
}

#[tokio::test(start_paused = true)]
async fn a_weak_case_is_claimed_by_its_name_once() {
    let cloud = plain();
    let id = suspect();
    let weak = claim::weak(&id, cloud.now());
    // Its log may be in the store already, from before it was claimed.
    let instance = cloud.world().machines[&id].instance.clone();
    let log =
        Journal::open(cloud.cloud().store, weak.clone(), writer(&cloud, "w"), Spool::default());
    log.await.append(None, opened(&instance, "weak")).await;
    let asked = |nonce| Asked { nonce, weak: Some(weak.clone()), tagged: true, ..Asked::default() };
    let first = claimed(&cloud, &id, &asked("a")).await.expect("a claim");
    assert_eq!((first.claim.case, first.new), (weak.clone(), true));
    mark_released(&cloud, 1).await;
    // Whoever writes tags names it again: the next case is a new one.
    let next = claimed(&cloud, &id, &asked("b")).await.expect("a claim");
    assert_eq!((next.claim.case, next.n), (claim::default_case(&id, 2), 2));
}

#[test]
fn a_weak_tag_counts_for_its_own_instance_only() {
    let mut instance = World::plain().machines[&suspect()].instance.clone();
    for (tag, expected) in [
        ("i-0123456789abcdef0-weak-1767225600", true),
        ("i-0fedcba9876543210-weak-1767225600", false),
        ("i-0123456789abcdef0-1", false),
        ("breach", false),
        ("i-0123456789abcdef0-weak-/../x", false),
        ("", false),
    ] {
        instance.tags.insert("cleanroom:case".to_owned(), tag.to_owned());
        assert_eq!(claim::weak_tag(&instance).is_some(), expected, "{tag:?}");
    }
    let at = Timestamp { seconds: -5, nanos: 0 };
    assert!(claim::is_weak(&claim::weak(&instance.id, at), &instance.id));
}

#[tokio::test(start_paused = true)]
async fn an_object_that_is_no_claim_is_an_error_that_names_it() {
    let cloud = plain();
    let key = format!("{}1.json", claim::prefix(&caller(&cloud).await, &suspect()));
    cloud.with(|world| world.bucket.overwrite(&key, b"{}".to_vec()));
    let asked = Asked { nonce: "a", ..Asked::default() };
    let error = claimed(&cloud, &suspect(), &asked).await.expect_err("no claim");
    assert!(error.to_string().contains(&key), "{error}");
}
