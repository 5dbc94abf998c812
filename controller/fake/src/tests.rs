//! What other tests rely on the fake cloud for.

mod compute;
mod faults;
mod gate;
mod identity;
mod machines;
mod network;
mod reads;
mod scaling;
mod store;

use std::{collections::BTreeSet, time::Duration};

use cleanroom_cloud::{
    Change, CloudError, ErrorKind, GroupId, Hands as _, InterfaceId, Made, Result,
};
use cleanroom_contract::InstanceId;

use crate::{FakeCloud, INSTANCE, World};

const SECOND: Duration = Duration::from_secs(1);
const PRIMARY: &str = "eni-0123456789abcdef0";
const WEB: &str = "sg-0123456789abcdef0";

fn suspect() -> InstanceId {
    INSTANCE.parse().expect("an instance id")
}

/// Carries out what must go well.
async fn done(fake: &FakeCloud, change: Change) -> Made {
    fake.apply(&change).await.expect("carried out")
}

/// Carries out what must not, and says with what code.
async fn refused(fake: &FakeCloud, change: Change) -> (ErrorKind, String) {
    let error: CloudError = fake.apply(&change).await.expect_err("refused");
    assert_eq!(error.operation, change.operation());
    assert_eq!(error.resource, change.resource());
    (error.kind, error.code)
}

/// A group without rules, and one that lets everything through.
async fn two_groups(fake: &FakeCloud) -> (GroupId, GroupId) {
    let empty = new_group(fake, "empty").await;
    done(fake, Change::EmptyGroup { group: empty.clone() }).await;
    let open = new_group(fake, "open").await;
    done(fake, Change::OpenGroup { group: open.clone() }).await;
    (empty, open)
}

async fn new_group(fake: &FakeCloud, name: &str) -> GroupId {
    match fake.apply(&create_group(name)).await {
        Ok(Made::Group(group)) => group,
        other => panic!("no group but {other:?}"),
    }
}

fn create_group(name: &str) -> Change {
    Change::CreateGroup {
        vpc: "vpc-0123456789abcdef0".into(),
        name: name.to_owned(),
        description: "for a test".to_owned(),
        tags: cleanroom_cloud::Tags::new(),
    }
}

fn set_groups(interface: &str, group: &GroupId) -> Change {
    Change::SetGroups {
        interface: InterfaceId::from(interface),
        groups: BTreeSet::from([group.clone()]),
    }
}

fn kind<T: std::fmt::Debug>(answer: Result<T>) -> ErrorKind {
    answer.expect_err("an error").kind
}
