//! Groups, flows, addresses, network ACLs.

use cleanroom_cloud::{AclEntry, Inventory as _};

use super::*;

#[tokio::test(start_paused = true)]
async fn a_new_group_lets_everything_out_until_it_is_emptied() {
    let fake = FakeCloud::new(World::plain());
    let group = new_group(&fake, "case").await;
    let rules = fake.get_group(&group).await.expect("there").rules;
    let peers: Vec<_> = rules.iter().map(|r| (r.egress, r.peer.as_str())).collect();
    assert_eq!(peers, [(true, "0.0.0.0/0"), (true, "::/0")]);
    done(&fake, Change::EmptyGroup { group: group.clone() }).await;
    assert!(fake.get_group(&group).await.expect("there").rules.is_empty());
    let taken = refused(&fake, create_group("case")).await;
    assert_eq!(taken, (ErrorKind::Conflict, "InvalidGroup.Duplicate".to_owned()));
}

#[tokio::test(start_paused = true)]
async fn tracked_flows_survive_the_empty_group_and_end_after_the_open_one() {
    let fake = FakeCloud::new(World::plain());
    let (empty, open) = two_groups(&fake).await;
    let tracked = || fake.with(|w| w.card(&PRIMARY.into()).expect("a card").tracked);
    done(&fake, set_groups(PRIMARY, &empty)).await;
    assert!(fake.with(|w| w.is_cut(&suspect())) && tracked());
    done(&fake, set_groups(PRIMARY, &open)).await;
    assert!(tracked(), "open, flows still go on");
    done(&fake, set_groups(PRIMARY, &WEB.into())).await;
    assert!(tracked(), "a group with rules keeps what it allows");
    done(&fake, set_groups(PRIMARY, &open)).await;
    done(&fake, set_groups(PRIMARY, &empty)).await;
    assert!(!tracked());
}

#[tokio::test(start_paused = true)]
async fn times_of_being_open_are_kept_the_longest_first() {
    let fake = FakeCloud::new(World::plain());
    let (empty, open) = two_groups(&fake).await;
    for wait in [1, 3] {
        done(&fake, set_groups(PRIMARY, &open)).await;
        tokio::time::sleep(SECOND * wait).await;
        done(&fake, set_groups(PRIMARY, &empty)).await;
    }
    let spans = fake.longest_open();
    let lengths: Vec<_> = spans.iter().map(|s| s.closed.expect("closed") - s.opened).collect();
    assert_eq!(lengths, [SECOND * 3, SECOND]);
    done(&fake, set_groups(PRIMARY, &new_group(&fake, "later").await)).await;
    assert_eq!(fake.longest_open().len(), 2, "everything out is not everything");
    done(&fake, set_groups(PRIMARY, &open)).await;
    tokio::time::sleep(SECOND * 9).await;
    assert_eq!(fake.longest_open()[0].closed, None);
    // Opening the group that is attached opens as well, and emptying it closes.
    done(&fake, Change::EmptyGroup { group: open.clone() }).await;
    assert_eq!(fake.longest_open()[0].closed, Some(SECOND * 13));
}

#[tokio::test(start_paused = true)]
async fn groups_are_refused_where_ec2_refuses_them() {
    let mut world = World::full();
    world.card_mut(&"eni-000156789abcdef01".into()).expect("the second").interface.managed = true;
    let fake = FakeCloud::new(world);
    let group = new_group(&fake, "case").await;
    let managed = refused(&fake, set_groups("eni-000156789abcdef01", &group)).await;
    assert_eq!(managed, (ErrorKind::Denied, "OperationNotPermitted".to_owned()));
    let unknown = refused(&fake, set_groups("eni-0aaaaaaaaaaaaaaaa", &group)).await;
    assert_eq!(unknown.0, ErrorKind::NotFound);
    let missing = refused(&fake, set_groups(PRIMARY, &"sg-0aaaaaaaaaaaaaaaa".into())).await;
    assert_eq!(missing, (ErrorKind::NotFound, "InvalidGroup.NotFound".to_owned()));
    done(&fake, set_groups(PRIMARY, &group)).await;
    let used = refused(&fake, Change::DeleteGroup { group: group.clone() }).await;
    assert_eq!(used, (ErrorKind::Refused, "DependencyViolation".to_owned()));
    done(&fake, set_groups(PRIMARY, &WEB.into())).await;
    done(&fake, Change::DeleteGroup { group: group.clone() }).await;
    done(&fake, Change::DeleteGroup { group }).await;
}

fn disassociate() -> Change {
    Change::DisassociateAddress {
        association: "eipassoc-0123456789abcdef0".into(),
        public: "203.0.113.25".to_owned(),
        interface: PRIMARY.into(),
    }
}

#[tokio::test(start_paused = true)]
async fn an_address_comes_by_itself_where_an_elastic_ip_went() {
    let fake = FakeCloud::new(World::full());
    let public =
        || fake.with(|w| w.card(&PRIMARY.into()).expect("a card").interface.public.clone());
    done(&fake, disassociate()).await;
    assert!(public().is_empty());
    tokio::time::sleep(SECOND).await;
    let given = public();
    assert_eq!((given.len(), given[0].allocation.clone()), (1, None));
    done(&fake, Change::SetAutoPublicAddress { interface: PRIMARY.into(), on: false }).await;
    assert_eq!(public(), given, "not at once");
    tokio::time::sleep(SECOND).await;
    assert!(public().is_empty());
    done(&fake, disassociate()).await;
    tokio::time::sleep(SECOND * 9).await;
    assert!(public().is_empty());
}

#[tokio::test(start_paused = true)]
async fn an_elastic_ip_survives_and_comes_back() {
    let fake = FakeCloud::new(World::full());
    done(&fake, Change::SetAutoPublicAddress { interface: PRIMARY.into(), on: false }).await;
    done(&fake, disassociate()).await;
    tokio::time::sleep(SECOND * 5).await;
    let back = |private: &str| Change::AssociateAddress {
        allocation: "eipalloc-0123456789abcdef0".into(),
        interface: PRIMARY.into(),
        private: private.to_owned(),
    };
    assert_eq!(refused(&fake, back("10.0.0.99")).await.0, ErrorKind::Refused);
    let made = done(&fake, back("10.0.0.10")).await;
    assert_eq!(done(&fake, back("10.0.0.10")).await, made, "again is no error");
    let interfaces = fake.interfaces(&suspect()).await.expect("there");
    assert_eq!(interfaces[0].public[0].public, "203.0.113.25");
    assert!(
        matches!(made, Made::Association(a) if Some(&a) == interfaces[0].public[0].association.as_ref())
    );
}

#[tokio::test(start_paused = true)]
async fn acl_entries_have_numbers_of_their_own_and_a_limit() {
    let fake = FakeCloud::new(World::plain());
    let deny = |number, cidr: &str| Change::CreateAclEntry {
        acl: "acl-0123456789abcdef0".into(),
        entry: AclEntry {
            number,
            egress: false,
            allow: false,
            cidr: cidr.to_owned(),
            protocol: "-1".to_owned(),
        },
    };
    done(&fake, deny(1, "10.0.0.10/32")).await;
    done(&fake, deny(1, "10.0.0.10/32")).await;
    assert_eq!(refused(&fake, deny(1, "10.0.0.11/32")).await.0, ErrorKind::Conflict);
    for number in 2..20 {
        done(&fake, deny(number, "10.0.0.12/32")).await;
    }
    assert_eq!(refused(&fake, deny(20, "10.0.0.13/32")).await.1, "NetworkAclEntryLimitExceeded");
    let acl = "acl-0123456789abcdef0".into();
    done(&fake, Change::DeleteAclEntry { acl, number: 1, egress: false }).await;
    let acls = fake.acls(&"vpc-0123456789abcdef0".into()).await.expect("there");
    assert_eq!(acls[0].entries.iter().filter(|e| e.number < 100).count(), 18);
}
