//! A second account, in which evidence is copied and examined.
//!
//! Purpose: another [`World`] inside the first, behind ports of its own. Each call there is lent what is not that account's
//! own: the evidence bucket, and of the first account's snapshots and keys what is shared with it. Touches both worlds,
//! never at the same time as another call.

use std::sync::Arc;

use cleanroom_cloud::{
    AccountId, Change, Cloud, EncryptionKey, ErrorKind, Grant, Made, Snapshot, SnapshotState, Tags,
};
use cleanroom_contract::{SnapshotId, VolumeId};

use crate::{
    build::key,
    gate::FakeCloud,
    problem::{Answered, Problem},
    store::Bucket,
    world::World,
};

/// The account of every forensic world.
pub const FORENSIC_ACCOUNT: &str = "111122223333";
/// The role that is acted in there.
pub const FORENSIC_ROLE: &str = "arn:aws:iam::111122223333:role/cleanroom-forensic";
/// Who that is in a session.
pub const FORENSIC_CALLER: &str =
    "arn:aws:sts::111122223333:assumed-role/cleanroom-forensic/i-0123456789abcdef0-1";
/// A key of that account's own.
pub const FORENSIC_KEY: &str =
    "arn:aws:kms:us-east-1:111122223333:key/5678efab-56ef-78ab-90cd-5678efab90cd";
/// That account's default for volumes.
const FORENSIC_DEFAULT_KEY: &str =
    "arn:aws:kms:us-east-1:111122223333:key/9abc0123-9abc-0123-9abc-0123456789ab";

/// What another account lets an account see, for the time of a call.
#[derive(Clone, Debug, Default, PartialEq)]
pub(crate) struct Lent {
    /// Shared snapshots, and whether their keys can be used too.
    snapshots: Vec<(Snapshot, bool)>,
    /// Keys that can be used.
    keys: Vec<EncryptionKey>,
}

/// A grant on a key.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Granted {
    /// The key's ARN.
    pub key: String,
    /// Who may use it, an ARN.
    pub grantee: String,
    /// The grant.
    pub grant: Grant,
}

impl World {
    /// Adds a forensic account, with keys and nothing else.
    #[must_use]
    pub fn with_forensic(mut self) -> Self {
        let mut other = Self::empty();
        other.account = FORENSIC_ACCOUNT.into();
        other.bucket = Bucket::named("");
        other.keys = vec![key(FORENSIC_KEY, false), key(FORENSIC_DEFAULT_KEY, true)];
        for key in &mut other.keys {
            key.account = FORENSIC_ACCOUNT.into();
        }
        // No two things of both accounts share an id.
        other.named = 1 << 32;
        self.forensic = Some(Box::new(other));
        self
    }

    /// Does something in the forensic account. Where there is none, nothing may be done there.
    pub(crate) fn in_forensic<T>(
        &mut self,
        act: impl FnOnce(&mut Self) -> Answered<T>,
    ) -> Answered<T> {
        let Some(mut other) = self.forensic.take() else {
            let message = "is not authorized to perform: sts:AssumeRole";
            return Err(Problem::new(ErrorKind::Denied, "AccessDenied", message));
        };
        other.lent = self.lend(&other.account);
        std::mem::swap(&mut self.bucket, &mut other.bucket);
        let answer = act(&mut other);
        std::mem::swap(&mut self.bucket, &mut other.bucket);
        self.forensic = Some(other);
        answer
    }

    fn lend(&self, account: &AccountId) -> Lent {
        let usable = |key: &EncryptionKey| self.admits(&key.arn, account);
        let keys: Vec<_> = self.keys.iter().filter(|k| usable(k)).cloned().collect();
        let shared = self
            .snapshots
            .iter()
            .filter(|s| self.shares.get(&s.id).is_some_and(|with| with.contains(account)));
        let readable =
            |s: &Snapshot| s.key.as_ref().is_none_or(|key| keys.iter().any(|k| k.arn == *key));
        Lent { snapshots: shared.map(|s| (s.clone(), readable(s))).collect(), keys }
    }

    /// Whether a key may be used by this account: by a grant to one of its roles, or by the key's policy.
    fn admits(&self, key: &str, account: &AccountId) -> bool {
        let role = format!("arn:aws:iam::{account}:");
        self.grants.iter().any(|g| g.key == key && g.grantee.starts_with(&role))
            || self.key_policies.contains(&(key.to_owned(), account.clone()))
    }

    /// A key of this account's own, or one that is lent.
    pub(crate) fn see_key(&self, key: &str) -> Answered<EncryptionKey> {
        let lent = self.lent.keys.iter().find(|k| k.arn == key);
        if let Some(found) = self.find_key(key).or(lent) {
            return Ok(found.clone());
        }
        let account = key.split(':').nth(4).filter(|account| !account.is_empty());
        if account.is_some_and(|account| account != self.account.as_str()) {
            let message = "is not authorized to perform: kms:DescribeKey on this resource";
            return Err(Problem::new(ErrorKind::Denied, "AccessDeniedException", message));
        }
        Err(Problem::not_found("NotFoundException", format!("no key {key}")))
    }

    /// Shares, grants, and copies what is shared.
    pub(crate) fn change_sharing(&mut self, change: &Change) -> Answered<Made> {
        match change {
            Change::ShareSnapshot { snapshot, account } => self.share(snapshot, account),
            Change::GrantKey { key, grantee, name } => self.grant(key, grantee, name),
            Change::CopyFromAccount { snapshot, key, tags, .. } => {
                self.copy_lent(snapshot, key.as_deref(), tags)
            }
            _ => Err(crate::hands::not_mine(change)),
        }
    }

    fn share(&mut self, snapshot: &SnapshotId, account: &AccountId) -> Answered<Made> {
        let key = self.get_snapshot(snapshot)?.key.clone();
        let managed = |key: &String| self.find_key(key).is_some_and(|k| k.aws_managed);
        if key.as_ref().is_some_and(managed) {
            let message = "Encrypted snapshots with EBS default key cannot be shared";
            return Err(Problem::refused("OperationNotPermitted", message));
        }
        self.shares.entry(snapshot.clone()).or_default().insert(account.clone());
        Ok(Made::Nothing)
    }

    /// One of the same name and content is the one that is there.
    fn grant(&mut self, key: &str, grantee: &str, name: &str) -> Answered<Made> {
        let arn = self.see_key(key)?.arn;
        if self.ungranted.contains(&arn) {
            let message = "is not authorized to perform: kms:CreateGrant on this resource";
            return Err(Problem::new(ErrorKind::Denied, "AccessDeniedException", message));
        }
        let same = |g: &&Granted| g.key == arn && g.grantee == grantee && g.grant.name == name;
        if let Some(granted) = self.grants.iter().find(same) {
            return Ok(Made::Grant(granted.grant.id.clone()));
        }
        let grant = Grant { id: self.name(""), name: name.to_owned() };
        let id = grant.id.clone();
        self.grants.push(Granted { key: arn, grantee: grantee.to_owned(), grant });
        Ok(Made::Grant(id))
    }

    /// A copy is accepted of what is shared. One whose key can not be used fails later, as EC2 has it.
    fn copy_lent(&mut self, id: &SnapshotId, key: Option<&str>, tags: &Tags) -> Answered<Made> {
        self.check_tags(&Tags::new(), tags)?;
        let found = self.lent.snapshots.iter().find(|(snapshot, _)| snapshot.id == *id);
        let Some((source, readable)) = found.cloned() else {
            let message = format!("The snapshot '{id}' does not exist.");
            return Err(Problem::not_found("InvalidSnapshot.NotFound", message));
        };
        if source.state != SnapshotState::Completed {
            let message = format!("The snapshot '{id}' is not completed");
            return Err(Problem::refused("IncorrectState", message));
        }
        let default = self.keys.iter().find(|k| k.aws_managed).map(|k| k.arn.clone());
        let named = key.map_or(default, |key| Some(key.to_owned()));
        let usable = named.as_deref().and_then(|key| self.find_key(key)).filter(|k| k.enabled);
        let usable = usable.map(|k| k.arn.clone());
        let fails = usable.is_none() || !readable;
        let copy = Snapshot {
            id: self.snapshot_id(),
            volume: "vol-ffffffff".parse::<VolumeId>().expect("EC2's own placeholder"),
            owner: self.account.clone(),
            state: SnapshotState::Pending,
            progress: 0,
            started: self.now(),
            encrypted: true,
            key: usable.or(named),
            locked: false,
            tags: tags.clone(),
            ..source
        };
        Ok(Made::Copy(self.keep(copy, fails).id))
    }
}

impl FakeCloud {
    /// The same process in the forensic account: its ports for everything but the bucket and the topic, which stay the
    /// first account's.
    #[must_use]
    pub fn forensic(&self) -> Cloud {
        let there = Arc::new(self.elsewhere());
        Cloud {
            inventory: there.clone(),
            hands: there.clone(),
            facts: there.clone(),
            posture: there,
            store: Arc::new(self.clone()),
            notices: Arc::new(self.clone()),
            workflows: Arc::new(self.clone()),
            letters: Arc::new(self.clone()),
        }
    }
}
