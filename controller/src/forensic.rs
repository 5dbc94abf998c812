//! The forensic account: another one, in which evidence is copied and examined, out of reach of whoever owns the instance's.
//!
//! Purpose: holds that account's ports, and a case as it looks from there. Touches nothing. The evidence bucket, the topic and
//! the custody log stay where they are.

use std::{fmt, sync::Arc};

use cleanroom_cloud::{AccountId, Cloud, Hands, Inventory};

use crate::case::{Case, Policy, Scene};

/// The forensic account, as far as a goal may look.
pub struct Forensic {
    /// The account.
    pub account: AccountId,
    /// The ARN of the role that is acted in there, which is let use the keys of what is shared.
    pub role: String,
    /// The key of what is copied there; none for that account's default for volumes.
    pub key: Option<String>,
    /// What is there.
    pub inventory: Arc<dyn Inventory>,
}

impl fmt::Debug for Forensic {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Forensic").field("role", &self.role).finish_non_exhaustive()
    }
}

/// The same, with what changes it.
#[derive(Clone)]
pub struct ForensicAccount {
    /// What goals see.
    pub view: Arc<Forensic>,
    /// What changes it.
    pub hands: Arc<dyn Hands>,
}

impl fmt::Debug for ForensicAccount {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.view.fmt(f)
    }
}

impl ForensicAccount {
    /// The account of this role, behind its ports. None where the ARN names no account.
    #[must_use]
    pub fn of(role: &str, key: Option<String>, cloud: &Cloud) -> Option<Self> {
        let account = AccountId::from(role.split(':').nth(4).filter(|a| !a.is_empty())?);
        let inventory = cloud.inventory.clone();
        let view = Forensic { account, role: role.to_owned(), key, inventory };
        Some(Self { view: Arc::new(view), hands: cloud.hands.clone() })
    }
}

impl Scene {
    /// The same, seen from the instance's own account.
    pub(crate) fn at_home(&self) -> Self {
        let inventory = self.home.clone().unwrap_or_else(|| self.inventory.clone());
        Self { inventory, home: None, ..self.clone() }
    }
}

impl Case {
    /// The case as it is worked at in the forensic account: what is looked at and changed is there. The bucket, the topic, the
    /// log, and what is short or worth a note, are the case's own.
    pub(crate) fn abroad(&self) -> Option<Self> {
        let ForensicAccount { view, hands } = self.forensic.clone()?;
        let mut case = self.clone();
        case.hands = hands;
        case.scene.home = Some(self.scene.at_home().inventory);
        case.scene.inventory = view.inventory.clone();
        let policy = Policy { key: view.key.clone(), ..(*self.scene.policy).clone() };
        case.scene.policy = Arc::new(policy);
        Some(case)
    }
}
