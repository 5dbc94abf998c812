//! Changes against made-up answers.

use cleanroom_cloud::CloudError;

use super::*;
use crate::{
    canned::{Canned, canned},
    error::own,
};

/// A failure of this kind.
fn failure(kind: ErrorKind, code: &'static str, message: &str) -> CloudError {
    own("ec2:CreateSnapshots", "i-0123456789abcdef0", kind, code, message)
}

/// An answer that says no.
fn refusal(code: &str, message: &str) -> (u16, String) {
    let error = format!("<Error><Code>{code}</Code><Message>{message}</Message></Error>");
    (400, format!("<Response><Errors>{error}</Errors><RequestID>r</RequestID></Response>"))
}

/// An answer of the operation that a request names.
fn response(request: &str, content: &str) -> String {
    let action = request.split_once("Action=").map_or("", |(_, rest)| rest);
    let action = action.split('&').next().unwrap_or_default();
    format!("<{action}Response>{content}</{action}Response>")
}

/// Hands over made-up answers.
fn hands(canned: &Canned) -> Aws {
    Aws { clients: canned.clients.clone() }
}

/// The snapshots of the instance of AWS's documentation.
fn create_snapshots() -> Change {
    Change::CreateSnapshots {
        instance: "i-0123456789abcdef0".parse().expect("an id"),
        description: "evidence".to_owned(),
        tags: [("cleanroom:case".to_owned(), "c-1".to_owned())].into(),
    }
}

/// What EC2 says of a snapshot that was just taken.
const TAKEN: &str = "<CreateSnapshotsResponse><snapshotSet><item>\
    <snapshotId>snap-0123456789abcdef0</snapshotId><volumeId>vol-0123456789abcdef0</volumeId>\
    <volumeSize>8</volumeSize><startTime>2026-01-01T00:00:00.000Z</startTime>\
    </item></snapshotSet></CreateSnapshotsResponse>";

#[tokio::test]
async fn snapshots_carry_the_tags_of_the_case_and_none_of_the_volumes() {
    let canned = canned(None, |_, _| (200, TAKEN.to_owned()));
    let made = hands(&canned).apply(&create_snapshots()).await.expect("snapshots");
    let Made::Snapshots(snapshots) = made else { panic!("{made:?}") };
    assert_eq!(snapshots.len(), 1);
    assert_eq!(snapshots[0].state, cleanroom_cloud::SnapshotState::Pending);
    let sent = canned.sent();
    assert_eq!(sent.len(), 1);
    assert!(sent[0].contains("cleanroom%3Acase"), "{sent:?}");
    assert!(!sent[0].contains("CopyTagsFromSource"), "{sent:?}");
}

#[tokio::test]
async fn what_makes_a_second_thing_is_sent_once_and_what_does_not_again() {
    let broken = || canned(None, |_, _| (500, String::new()));
    let canned = broken();
    let error = hands(&canned).apply(&create_snapshots()).await.expect_err("it broke");
    assert_eq!((error.kind, canned.sent().len()), (ErrorKind::Ambiguous, 1));

    let group = Change::DeleteGroup { group: "sg-0123456789abcdef0".into() };
    let canned = broken();
    hands(&canned).apply_first(&group).await.expect_err("it broke");
    assert_eq!(canned.sent().len(), 1);

    let canned = self::canned(None, |_, before| match before {
        0 => (500, String::new()),
        1 => (429, String::new()),
        _ => (200, "<DeleteSecurityGroupResponse/>".to_owned()),
    });
    assert_eq!(hands(&canned).apply(&group).await, Ok(Made::Nothing));
    assert_eq!(canned.sent().len(), 3);
}

#[tokio::test]
async fn a_snapshot_is_shared_with_one_account_and_copied_there_once() {
    let canned = canned(None, |request, _| {
        let copied = request.contains("Action=CopySnapshot");
        (
            200,
            response(
                request,
                if copied { "<snapshotId>snap-0fedcba9876543210</snapshotId>" } else { "" },
            ),
        )
    });
    let snapshot: cleanroom_contract::SnapshotId = "snap-0123456789abcdef0".parse().expect("an id");
    let share =
        Change::ShareSnapshot { snapshot: snapshot.clone(), account: "111122223333".into() };
    assert_eq!(hands(&canned).apply(&share).await, Ok(Made::Nothing));
    for key in [None, Some("arn:aws:kms:eu-west-1:111122223333:key/k".to_owned())] {
        let copy = Change::CopyFromAccount {
            snapshot: snapshot.clone(),
            owner: "123456789012".into(),
            into: "111122223333".into(),
            key,
            tags: [("cleanroom:case".to_owned(), "c-1".to_owned())].into(),
        };
        assert!(copy.creates());
        let made = hands(&canned).apply(&copy).await.expect("a copy");
        assert!(matches!(made, Made::Copy(id) if id.as_str() == "snap-0fedcba9876543210"));
    }
    let sent = canned.sent();
    assert_eq!(sent.len(), 3, "{sent:?}");
    for part in ["OperationType=add", "UserId.1=111122223333", "Attribute=createVolumePermission"] {
        assert!(sent[0].contains(part), "{part}: {}", sent[0]);
    }
    assert!(!sent[0].contains("UserGroup"), "never with everybody: {}", sent[0]);
    // Without a key the account's own default holds, and a copy is encrypted all the same.
    assert!(sent[1].contains("Encrypted=true") && !sent[1].contains("KmsKeyId"), "{}", sent[1]);
    assert!(
        sent[2].contains("KmsKeyId=arn") && sent[2].contains("cleanroom%3Acase"),
        "{}",
        sent[2]
    );
}

#[tokio::test]
async fn who_a_snapshot_is_shared_with_is_read() {
    let canned = canned(None, |request, _| {
        let with = "<createVolumePermission><item><userId>111122223333</userId></item>\
             <item><group>all</group></item></createVolumePermission>";
        (200, response(request, with))
    });
    let snapshot = "snap-0123456789abcdef0".parse().expect("an id");
    let with = cleanroom_cloud::Inventory::shared_with(&hands(&canned), &snapshot).await;
    assert_eq!(with, Ok(vec!["111122223333".into(), "all".into()]));
}

#[tokio::test]
async fn a_rule_that_is_there_keeps_no_other_from_being_added() {
    let canned = canned(None, |request, _| {
        if request.contains("Egress") && request.contains("0.0.0.0") {
            return refusal("InvalidPermission.Duplicate", "it exists");
        }
        (200, response(request, ""))
    });
    let open = Change::OpenGroup { group: "sg-0123456789abcdef0".into() };
    assert_eq!(hands(&canned).apply(&open).await, Ok(Made::Nothing));
    let sent = canned.sent();
    let egress: Vec<_> = sent.iter().filter(|request| request.contains("Egress")).collect();
    assert_eq!((sent.len(), egress.len()), (4, 3));
    let last = egress.last().expect("a request");
    assert!(last.contains("CidrIpv6=%3A%3A%2F0") && !last.contains("0.0.0.0"), "{last}");
}

#[tokio::test]
async fn every_rule_of_a_group_is_revoked_in_both_directions() {
    let canned = canned(None, |request, _| {
        let item = |id: &str, egress: bool| {
            format!(
                "<item><securityGroupRuleId>{id}</securityGroupRuleId>\
                 <isEgress>{egress}</isEgress></item>"
            )
        };
        let rules = [item("sgr-1", true), item("sgr-2", true), item("sgr-3", false)].concat();
        let rules = format!("<securityGroupRuleSet>{rules}</securityGroupRuleSet>");
        let listed = request.contains("Action=DescribeSecurityGroupRules&");
        (200, response(request, if listed { &rules } else { "" }))
    });
    let empty = Change::EmptyGroup { group: "sg-0123456789abcdef0".into() };
    assert_eq!(hands(&canned).apply(&empty).await, Ok(Made::Nothing));
    let revoked: Vec<String> =
        canned.sent().into_iter().filter(|request| request.contains("Revoke")).collect();
    assert_eq!(revoked.len(), 2);
    let egress = revoked.iter().find(|r| r.contains("Egress")).expect("for traffic out");
    assert!(egress.contains("sgr-1") && egress.contains("sgr-2"), "{egress}");
    let ingress = revoked.iter().find(|r| r.contains("Ingress")).expect("for traffic in");
    assert!(ingress.contains("sgr-3") && !ingress.contains("sgr-1"), "{ingress}");
}

#[test]
fn what_is_gone_is_an_end_and_what_is_denied_is_not() {
    let not_found = failure(ErrorKind::NotFound, "InvalidGroup.NotFound", "");
    assert_eq!(gone::<()>(Err(not_found)), Ok(Made::Nothing));
    let denied = failure(ErrorKind::Denied, "UnauthorizedOperation", "");
    assert_eq!(gone::<()>(Err(denied.clone())), Err(denied));
}

#[test]
fn nothing_is_tagged_with_nothing() {
    assert_eq!(tagged(ResourceType::Snapshot, &Tags::new()), None);
}
