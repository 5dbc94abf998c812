//! Drops the flows that were tracked before the cut.
//!
//! A flow that a security group tracks goes on after its rule is gone. A flow that is allowed by a rule for all traffic in both
//! directions is not tracked; so each isolated interface gets a group that allows everything, and at once
//! the forensic group again: what was tracked is forgotten, and what is not tracked is cut.
//!
//! An interface is open for a moment. Hence: never while it has a public address; few at a time; ahead of all other
//! calls; and each opening is one unit that ends closed, in a task of its own that neither a signal nor a failed response ends
//! early. Only the death of the process leaves one open, and whatever runs next closes it.

use std::{collections::BTreeSet, sync::Arc, time::Duration};

use async_trait::async_trait;
use cleanroom_cloud::{
    Change, GroupId, Hands, Interface, InterfaceId, Inventory, Result, SecurityGroup,
};
use cleanroom_contract::InstanceId;
use tokio::{
    sync::oneshot,
    time::{Instant, sleep, timeout},
};

use super::{FORENSIC, flush_name};
use crate::{
    case::{Assessment, Bounds, Case, Goal, History, Scene, Shortfall, Step, lock},
    engine::again,
    journal::event::Body,
    progress::{Event, Progress},
};

/// The group that allows everything is there; made before it is needed, and in use for moments only.
#[derive(Debug)]
pub struct Open;

#[async_trait]
impl Goal for Open {
    fn step(&self) -> Step {
        Step::Isolate
    }

    fn name(&self) -> &'static str {
        "open group"
    }

    async fn look(&self, scene: &Scene, _history: &History) -> Result<Assessment> {
        let mut seen = Assessment::default();
        let Some(vpc) = &scene.original.instance.vpc else { return Ok(seen) };
        let interfaces = scene.inventory.interfaces(&scene.instance).await?;
        if interfaces.iter().all(|i| scene.flushed.contains(i.id.as_str())) {
            return Ok(seen);
        }
        match scene.inventory.find_group(vpc, &flush_name(scene)).await? {
            None => seen.now.push(Change::CreateGroup {
                vpc: vpc.clone(),
                name: flush_name(scene),
                description: "Cleanroom: allows everything, on an interface for moments only"
                    .to_owned(),
                tags: scene.tags(),
            }),
            Some(group) => {
                if !allows_everything(&group) {
                    seen.now.push(Change::OpenGroup { group: group.id });
                }
            }
        }
        Ok(seen)
    }
}

/// Whether a group allows everything, in and out, IPv4 and IPv6.
fn allows_everything(group: &SecurityGroup) -> bool {
    let open = |egress: bool, peer: &str| {
        group.rules.iter().any(|r| r.egress == egress && r.all_traffic && r.peer == peer)
    };
    [false, true].into_iter().all(|way| open(way, "0.0.0.0/0") && open(way, "::/0"))
}

/// How long one call of a unit may take before it is made again.
const CALL: Duration = Duration::from_secs(6);

/// What one unit needs, so that it outlives whoever began it.
struct Unit {
    inventory: Arc<dyn Inventory>,
    hands: Arc<dyn Hands>,
    progress: Progress,
    instance: InstanceId,
    interface: InterfaceId,
    open: GroupId,
    forensic: GroupId,
    bounds: Bounds,
}

/// Drops the tracked flows of every isolated interface that has not had that done. Returns whether all are done.
pub async fn run(case: &Case) -> bool {
    let scene = &case.scene;
    match attempt(case).await {
        Ok(()) => true,
        Err(why) => {
            case.short(Shortfall {
                step: Step::Isolate,
                what: format!("flows of {} that were tracked before the cut are not surely dropped: {why}", scene.instance),
                advice: "new flows are cut; run respond again, or deny the host in the network ACLs (--nacl)".to_owned(),
            });
            false
        }
    }
}

async fn attempt(case: &Case) -> std::result::Result<(), String> {
    let scene = &case.scene;
    let inventory = &*scene.inventory;
    let Some(vpc) = &scene.original.instance.vpc else { return Ok(()) };
    let name = flush_name(scene);
    let look = || async {
        tokio::try_join!(
            inventory.interfaces(&scene.instance),
            inventory.find_group(vpc, FORENSIC),
            inventory.find_group(vpc, &name),
        )
    };
    let (interfaces, forensic, open) = again(case.bounds.goal, look).await?;
    let forensic = forensic.ok_or("there is no forensic group")?.id;
    let done = case.journal.ledger().await.flushed;
    // Group ids hold in their own VPC only, and an instance may have interfaces in others.
    if let Some(other) = interfaces.iter().find(|i| i.vpc != *vpc) {
        return Err(format!("{} is in {}, another VPC than its instance", other.id, other.vpc));
    }
    let wanted = BTreeSet::from([forensic.clone()]);
    let others: Vec<_> =
        interfaces.iter().filter(|i| i.groups != wanted).map(|i| i.id.to_string()).collect();
    let rest = || {
        let named = others.join(", ");
        if others.is_empty() { Ok(()) } else { Err(format!("{named} are not isolated")) }
    };
    let due: Vec<_> = interfaces
        .into_iter()
        .filter(|i| {
            i.groups.len() == 1 && i.groups.contains(&forensic) && !done.contains(i.id.as_str())
        })
        .collect();
    if due.is_empty() {
        return rest();
    }
    if let Some(public) = due.iter().flat_map(|i| &i.public).next() {
        return Err(format!("the public address {} is still there", public.public));
    }
    let open = open.ok_or("the group that allows everything could not be made")?;
    if !allows_everything(&open) {
        return Err("the group that allows everything does not".to_owned());
    }
    let open = open.id;
    let names: Vec<_> = due.iter().map(|i| i.id.to_string()).collect();
    let changes = due.iter().flat_map(|i| pair(&i.id, &open, &forensic)).collect();
    let goal = "isolate:flush".to_owned();
    case.journal.append(Some(Step::Isolate), Body::Intent { goal, changes }).await;
    begin_all(case, &due, &open, &forensic).await?;
    case.journal.append(Some(Step::Isolate), Body::Flushed { interfaces: names }).await;
    rest()
}

/// Opening and closing, as one reads them in the log.
fn pair(interface: &InterfaceId, open: &GroupId, forensic: &GroupId) -> [Change; 2] {
    [open, forensic].map(|group| Change::SetGroups {
        interface: interface.clone(),
        groups: BTreeSet::from([group.clone()]),
    })
}

/// Begins a unit for each interface, as permits come free, and waits for all.
async fn begin_all(
    case: &Case,
    due: &[Interface],
    open: &GroupId,
    forensic: &GroupId,
) -> std::result::Result<(), String> {
    let mut ends = Vec::new();
    for interface in due {
        let (told, end) = oneshot::channel();
        let unit = Unit {
            inventory: case.scene.inventory.clone(),
            hands: case.hands.clone(),
            progress: case.progress.clone(),
            instance: case.scene.instance.clone(),
            interface: interface.id.clone(),
            open: open.clone(),
            forensic: forensic.clone(),
            bounds: case.bounds.clone(),
        };
        let shared = case.scene.shared.clone();
        lock(&case.scene.shared.units).spawn(async move {
            let Ok(_permit) = shared.open.acquire().await else { return };
            let _ = told.send(unit.run().await);
        });
        ends.push(end);
    }
    let mut first = Ok(());
    for end in ends {
        let result = end.await.unwrap_or_else(|_| Err("its task ended".to_owned()));
        first = first.and(result);
    }
    first
}

impl Unit {
    /// Opens and closes. Whatever becomes of the opening, this ends when the interface was read back as closed.
    async fn run(&self) -> std::result::Result<(), String> {
        let [open, _] = pair(&self.interface, &self.open, &self.forensic);
        let opened = timeout(CALL, self.hands.apply_first(&open)).await;
        let opened = opened.map_err(|_| "no answer in time".to_owned());
        let opened = opened.and_then(|ended| ended.map(|_| ()).map_err(|e| e.to_string()));
        if opened.is_ok() {
            sleep(self.bounds.open).await;
        }
        self.close().await;
        if opened.is_err() {
            // An opening without an answer may be carried out yet, after the closing.
            sleep(CALL).await;
            self.close().await;
        }
        opened
    }
}

impl Unit {
    async fn close(&self) {
        let alarm = || {
            self.progress.tell(Event::Open {
                instance: self.instance.clone(),
                interface: self.interface.to_string(),
            });
        };
        close(&*self.hands, &*self.inventory, &self.interface, &self.forensic, None, &alarm).await;
    }
}

/// Gives an interface the forensic group until it is read back, and tells whether it was. Without a bound there is no end
/// but success: an interface that this process opened is worse than a process that does not stop.
async fn close(
    hands: &dyn Hands,
    inventory: &dyn Inventory,
    interface: &InterfaceId,
    forensic: &GroupId,
    bound: Option<Duration>,
    alarm: &(dyn Fn() + Sync),
) -> bool {
    let wanted = BTreeSet::from([forensic.clone()]);
    let change = Change::SetGroups { interface: interface.clone(), groups: wanted.clone() };
    let began = Instant::now();
    let mut pause = Duration::from_millis(50);
    let mut alarmed = false;
    loop {
        let closing = async {
            hands.apply_first(&change).await?;
            inventory.get_interface(interface).await
        };
        match timeout(CALL, closing).await {
            Ok(Ok(now)) if now.groups == wanted => return true,
            // Deleted, so nothing is open.
            Ok(Err(error)) if error.code.starts_with("InvalidNetworkInterfaceID") => return true,
            _ => {}
        }
        if bound.is_some_and(|bound| began.elapsed() >= bound) {
            return false;
        }
        if !alarmed && began.elapsed() > Duration::from_secs(3) {
            alarmed = true;
            alarm();
        }
        sleep(pause).await;
        pause = (pause * 2).min(Duration::from_secs(1));
    }
}

/// How long closing what another process left open may take, before whoever asks is told that it is open still.
const CLOSING: Duration = Duration::from_secs(20);

/// What was found open.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Found {
    /// Interfaces that were open, and are closed.
    pub closed: Vec<InterfaceId>,
    /// Interfaces that are open still.
    pub open: Vec<InterfaceId>,
}

/// Closes every interface of the instance that an ended process left open.
///
/// # Errors
/// When the interfaces can not be read.
pub async fn close_open(case: &Case) -> Result<Found> {
    let scene = &case.scene;
    let mut found = Found::default();
    let Some(vpc) = &scene.original.instance.vpc else { return Ok(found) };
    let Some(open) = scene.inventory.find_group(vpc, &flush_name(scene)).await? else {
        return Ok(found);
    };
    let interfaces = scene.inventory.interfaces(&scene.instance).await?;
    let mut all = interfaces.into_iter().filter(|i| i.groups.contains(&open.id)).peekable();
    if all.peek().is_none() {
        return Ok(found);
    }
    let forensic = scene.inventory.find_group(vpc, FORENSIC).await?;
    for interface in all {
        let alarm = || {
            case.progress.tell(Event::Open {
                instance: scene.instance.clone(),
                interface: interface.id.to_string(),
            });
        };
        let closed = match &forensic {
            Some(forensic) => {
                let (hands, inventory) = (&*case.hands, &*scene.inventory);
                close(hands, inventory, &interface.id, &forensic.id, Some(CLOSING), &alarm).await
            }
            // The cut makes the group, and closes it then.
            None => false,
        };
        if closed { &mut found.closed } else { &mut found.open }.push(interface.id.clone());
    }
    Ok(found)
}

/// Waits until no public address has shown for a while: one that is taken away may be replaced at that moment.
pub async fn settle_addresses(case: &Case) -> std::result::Result<(), String> {
    let scene = &case.scene;
    let had = scene.original.interfaces.get().is_none_or(|all| {
        all.iter().any(|i| !i.interface.public.is_empty() || i.auto_public.get() != Some(&false))
    });
    if !had {
        return Ok(());
    }
    let bounds = &case.bounds;
    let ends = Instant::now() + bounds.address_settle * 10;
    let mut clear_since = Instant::now();
    while Instant::now() < ends {
        let interfaces = scene.inventory.interfaces(&scene.instance).await;
        let clear = interfaces.is_ok_and(|all| all.iter().all(|i| i.public.is_empty()));
        if !clear {
            crate::engine::ensure(case, &super::Addresses, crate::engine::Direction::Respond).await;
            clear_since = Instant::now();
        } else if clear_since.elapsed() >= bounds.address_settle {
            return Ok(());
        }
        sleep(bounds.address_settle / 6).await;
    }
    Err("public addresses keep coming back".to_owned())
}
