//! Profiles, policies, keys.

use cleanroom_cloud::Inventory as _;

use super::*;

const PROFILE: &str = "arn:aws:iam::123456789012:instance-profile/app/web-profile";

#[tokio::test(start_paused = true)]
async fn a_profile_comes_off_at_once_and_goes_back_on() {
    let fake = FakeCloud::new(World::full());
    let there = fake.profile_associations(&suspect()).await.expect("listed").remove(0);
    let association = there.id.clone();
    let off =
        Change::DisassociateProfile { instance: suspect(), association, profile: PROFILE.into() };
    done(&fake, off.clone()).await;
    assert_eq!(fake.get_instance(&suspect()).await.expect("there").profile, None);
    assert!(!fake.profile_associations(&suspect()).await.expect("listed")[0].active);
    done(&fake, off).await;
    tokio::time::sleep(SECOND).await;
    assert!(fake.profile_associations(&suspect()).await.expect("listed").is_empty());
    let on = |profile: &str| Change::AssociateProfile {
        instance: suspect(),
        profile: profile.to_owned(),
    };
    assert_eq!(
        refused(&fake, on("arn:aws:iam::123456789012:instance-profile/no")).await.0,
        ErrorKind::NotFound
    );
    let made = done(&fake, on(PROFILE)).await;
    assert_eq!(done(&fake, on(PROFILE)).await, made);
    assert_ne!(made, Made::Association(there.id));
    assert_eq!(
        fake.get_instance(&suspect()).await.expect("there").profile.as_deref(),
        Some(PROFILE)
    );
}

#[tokio::test(start_paused = true)]
async fn a_roles_inline_policies_have_one_limit_together() {
    let fake = FakeCloud::new(World::full());
    let profile = fake.profile(PROFILE).await.expect("there");
    let (role, arn) = profile.role.expect("a role");
    assert_eq!((role.as_str(), arn.ends_with("role/app/web-role")), ("web-role", true));
    let used: usize = fake.role_policies(&role).await.expect("read")[0].document.len();
    // 18 characters around the text, and white space that is not counted.
    let document = |size: usize| format!("{{\"Statement\":[\"{}\"]}}  \n", "a".repeat(size - 18));
    let put = |name: &str, document: String| Change::PutRolePolicy {
        role: role.clone(),
        name: name.to_owned(),
        document,
    };
    let full = refused(&fake, put("more", document(10_240 - used + 1))).await;
    assert_eq!(full, (ErrorKind::Refused, "LimitExceeded".to_owned()));
    done(&fake, put("more", document(10_240 - used))).await;
    done(&fake, put("more", document(10_240 - used))).await;
    assert_eq!(refused(&fake, put("bad", "{".to_owned())).await.1, "MalformedPolicyDocument");
    assert_eq!(fake.role_policies(&role).await.expect("read").len(), 2);
    let gone = Change::DeleteRolePolicy { role: role.clone(), name: "more".to_owned() };
    done(&fake, gone.clone()).await;
    done(&fake, gone).await;
    assert_eq!(fake.role_policies(&role).await.expect("read").len(), 1);
    assert_eq!(kind(fake.role_policies(&"no-role".into()).await), ErrorKind::NotFound);
}

#[tokio::test(start_paused = true)]
async fn keys_are_switched_and_users_denied() {
    let fake = FakeCloud::new(World::full());
    let key = |key: &str| Change::SetAccessKey {
        user: "intruder".to_owned(),
        key: key.to_owned(),
        active: false,
    };
    done(&fake, key("AKIAIOSFODNN7EXAMPLE")).await;
    assert_eq!(refused(&fake, key("AKIAI44QH8DHBEXAMPLE")).await.0, ErrorKind::NotFound);
    let deny = |document: String| Change::PutUserPolicy {
        user: "intruder".to_owned(),
        name: "cleanroom-c1".to_owned(),
        document,
    };
    done(&fake, deny(r#"{"Statement":[]}"#.to_owned())).await;
    let long = format!("{{\"Statement\":[\"{}\"]}}", "a".repeat(2_048));
    assert_eq!(refused(&fake, deny(long)).await.1, "LimitExceeded");
    let access = fake.user_access("intruder").await.expect("there");
    assert_eq!((access.keys["AKIAIOSFODNN7EXAMPLE"], access.policies.len()), (false, 2));
}
