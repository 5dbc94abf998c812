//! Whether the instances of alerts are real, ours and not exempt.
//!
//! Purpose: looks at all instances of a delivery, a hundred a call, and decides of each. Reads the inventory only.

use std::collections::{BTreeMap, BTreeSet};

use cleanroom_cloud::{Caller, Instance};
use cleanroom_contract::InstanceId;
use futures_util::{StreamExt as _, stream};

use super::{
    Found, Miss, Patience,
    trail::{self, Egress, Whose},
};
use crate::{
    alert::{Alert, Named, Source},
    case::Run,
    execution::Approval,
    steps::verify,
};

/// How many instances are looked at by one call. The filter takes 200.
const BATCH: usize = 100;

/// Calls at a time.
const AT_ONCE: usize = 8;

/// What came of looking.
#[derive(Debug, Default)]
pub(super) struct Looked {
    pub(super) found: Vec<Found>,
    pub(super) refused: Vec<String>,
    pub(super) ignored: Vec<String>,
    pub(super) later: Vec<String>,
}

/// What EC2 says of an instance.
enum Seen {
    There(Box<Instance>),
    Absent,
    Missed(Miss),
}

pub(super) async fn look(run: &Run, patience: &Patience, alerts: Vec<Alert>) -> Looked {
    let mut looked = Looked::default();
    let mut here = Vec::new();
    for alert in alerts {
        match decide_place(&alert.named, &run.caller) {
            Ok(()) => here.push(alert),
            Err(why) => looked.refused.push(why),
        }
    }
    let seen = see(run, patience, &here).await;
    let calls = here.iter().any(|alert| matches!(alert.source, Source::Trail { .. }));
    let egress = if calls {
        patience.have(|| run.cloud.inventory.egress_addresses()).await
    } else {
        Ok(Egress::new())
    };
    let judged: Vec<_> = here
        .into_iter()
        .map(|alert| {
            let seen = seen.get(&alert.named.instance).unwrap_or(&Seen::Absent);
            judge(run, patience, (alert, seen), &egress)
        })
        .collect();
    let judged: Vec<_> = stream::iter(judged).buffered(AT_ONCE).collect().await;
    for judged in judged {
        match judged {
            Judged::Found(found) => looked.found.push(*found),
            Judged::Refused(why) => looked.refused.push(why),
            Judged::Ignored(why) => looked.ignored.push(why),
            Judged::Later(why) => looked.later.push(why),
        }
    }
    looked
}

/// Whether an alert means this account and Region, as far as it says.
fn decide_place(named: &Named, caller: &Caller) -> Result<(), String> {
    let Named { instance, account, region } = named;
    if let Some(account) = account.as_deref().filter(|account| *account != caller.account.as_str())
    {
        return Err(format!(
            "{instance} is in account {account}: this is the response of account {}",
            caller.account
        ));
    }
    if let Some(region) = region.as_deref().filter(|region| *region != caller.region) {
        return Err(format!(
            "{instance} is in Region {region}: this is the response of Region {}",
            caller.region
        ));
    }
    Ok(())
}

/// What EC2 says of all these instances.
async fn see(run: &Run, patience: &Patience, alerts: &[Alert]) -> BTreeMap<InstanceId, Seen> {
    let ids: BTreeSet<_> = alerts.iter().map(|alert| alert.named.instance.clone()).collect();
    let ids: Vec<_> = ids.into_iter().collect();
    let looks: Vec<_> = ids
        .chunks(BATCH)
        .map(|batch| async move {
            (batch, patience.have(|| run.cloud.inventory.instances(batch)).await)
        })
        .collect();
    let answers: Vec<_> = stream::iter(looks).buffered(AT_ONCE).collect().await;
    let mut seen = BTreeMap::new();
    for (batch, answer) in answers {
        match answer {
            Ok(there) => {
                seen.extend(there.into_iter().map(|i| (i.id.clone(), Seen::There(i.into()))))
            }
            Err(miss) => {
                seen.extend(batch.iter().map(|id| (id.clone(), Seen::Missed(miss.clone()))));
            }
        }
    }
    seen
}

/// What is decided of one alert.
enum Judged {
    Found(Box<Found>),
    Refused(String),
    Ignored(String),
    Later(String),
}

async fn judge(
    run: &Run,
    patience: &Patience,
    (alert, seen): (Alert, &Seen),
    egress: &Result<Egress, Miss>,
) -> Judged {
    let id = &alert.named.instance;
    let instance = match seen {
        Seen::There(instance) => instance,
        Seen::Absent => {
            return Judged::Refused(format!(
                "there is no instance {id} in account {}, Region {}",
                run.caller.account, run.caller.region
            ));
        }
        Seen::Missed(Miss::Later(why)) => return Judged::Later(format!("look at {id}: {why}")),
        // The execution looks again, with rights of its own.
        Seen::Missed(Miss::Never(_)) => {
            let call = matches!(alert.source, Source::Trail { .. });
            return found(alert, call.then_some(Approval::Needed));
        }
    };
    if let Err(refusal) = verify::decide(instance, &run.caller, &run.policy, Some(&alert.reason)) {
        return Judged::Refused(refusal.to_string());
    }
    let Source::Trail { address, .. } = alert.source else { return found(alert, None) };
    match trail::whose(run, patience, (instance, address), egress).await {
        Ok(Whose::Other) => found(alert, None),
        Ok(Whose::Own) => Judged::Ignored(format!("{id}: {}, its own address", alert.reason)),
        Ok(Whose::Unknown(why)) => {
            let reason = format!("{}; whether that is its own is not known: {why}", alert.reason);
            found(Alert { reason, ..alert }, Some(Approval::Needed))
        }
        Err(Miss::Later(why) | Miss::Never(why)) => {
            Judged::Later(format!("look up the addresses of {id}: {why}"))
        }
    }
}

fn found(alert: Alert, approval: Option<Approval>) -> Judged {
    Judged::Found(Box::new(Found { alert, approval }))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_alert_of_another_place_is_refused() {
        let caller = Caller {
            account: "123456789012".into(),
            arn: String::new(),
            region: "us-east-1".to_owned(),
            clock_ahead: None,
        };
        for (account, region, expected) in [
            (None, None, Ok(())),
            (Some("123456789012"), Some("us-east-1"), Ok(())),
            (Some("111122223333"), None, Err("account 111122223333")),
            (None, Some("eu-west-1"), Err("Region eu-west-1")),
        ] {
            let instance = "i-0123456789abcdef0".parse().expect("an id");
            let (account, region) = (account.map(str::to_owned), region.map(str::to_owned));
            let place = decide_place(&Named { instance, account, region }, &caller);
            match expected {
                Ok(()) => assert_eq!(place, Ok(())),
                Err(part) => {
                    assert!(place.as_ref().is_err_and(|why| why.contains(part)), "{place:?}")
                }
            }
        }
    }
}
