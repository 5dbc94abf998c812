//! Calls by an instance's role: whether they come from the instance.
//!
//! Purpose: compares a call's address with those of the instance's interfaces and of its VPC's NAT gateways; calls through a
//! VPC endpoint are never alerts. Reads the inventory only.
//!
//! What stays unknown: addresses by which a VPC leads out through somebody else, a transit gateway's other VPC, a proxy, a
//! firewall, a company's own network; and a public address that the instance gave back in the minutes that CloudTrail takes. Whose instances call from there sets `ask_after = ["trail"]`, or leaves the log
//! subscription out. Where its addresses can not be told, nobody knows whether the credentials are stolen: the case is
//! opened, and a person is asked.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::IpAddr,
};

use cleanroom_cloud::{Instance, InstanceState, Interface, VpcId};

use super::{Miss, Patience};
use crate::case::Run;

/// Public addresses of NAT gateways, by VPC.
pub(super) type Egress = BTreeMap<VpcId, BTreeSet<String>>;

/// Whose an address is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Whose {
    /// The instance's, or one by which its VPC leads out.
    Own,
    /// Somebody else's.
    Other,
    /// Nobody can tell, and why.
    Unknown(String),
}

/// Whose an address is, by what the cloud says.
pub(super) async fn whose(
    run: &Run,
    patience: &Patience,
    (instance, address): (&Instance, IpAddr),
    egress: &Result<Egress, Miss>,
) -> Result<Whose, Miss> {
    let egress = match egress {
        Ok(egress) => egress,
        Err(Miss::Never(why)) => return Ok(Whose::Unknown(why.clone())),
        Err(later) => return Err(later.clone()),
    };
    let inventory = &run.cloud.inventory;
    match patience.have(|| inventory.interfaces(&instance.id)).await {
        Ok(interfaces) => Ok(decide(address, instance, &interfaces, egress)),
        Err(Miss::Never(why)) => Ok(Whose::Unknown(why)),
        Err(later) => Err(later),
    }
}

/// Decides. Of an instance that is gone EC2 tells neither VPC nor addresses: then those of every NAT gateway count as its own.
fn decide(
    address: IpAddr,
    instance: &Instance,
    interfaces: &[Interface],
    egress: &Egress,
) -> Whose {
    let is = |text: &String| text.parse::<IpAddr>().is_ok_and(|own| own == address);
    let on_it = interfaces.iter().any(|interface| {
        interface.public.iter().any(|own| is(&own.public)) || interface.ipv6.iter().any(is)
    });
    let leads_out = match &instance.vpc {
        Some(vpc) => egress.get(vpc).is_some_and(|own| own.iter().any(is)),
        None => egress.values().flatten().any(is),
    };
    if on_it || leads_out {
        Whose::Own
    } else if instance.state == InstanceState::Running {
        Whose::Other
    } else {
        Whose::Unknown(
            "it does not run, and EC2 does not tell addresses that it gave back".to_owned(),
        )
    }
}

#[cfg(test)]
mod tests {
    use cleanroom_cloud::ElasticAddress;
    use cleanroom_cloud_fake::World;

    use super::*;

    #[test]
    fn an_address_is_compared_with_interfaces_and_nat_gateways() {
        let world = World::full();
        let id = cleanroom_cloud_fake::INSTANCE.parse().expect("an id");
        let machine = world.machine(&id).expect("it is there");
        let running = machine.instance.clone();
        let vpc = running.vpc.clone().expect("it is in a VPC");
        let mut interface = machine.cards[0].interface.clone();
        let public = "203.0.113.7".to_owned();
        let address =
            ElasticAddress { public, private: String::new(), allocation: None, association: None };
        interface.public = vec![address];
        interface.ipv6 = vec!["2001:db8:0:0::7".to_owned()];
        let interfaces = [interface];
        let of = |vpc: VpcId, address: &str| (vpc, BTreeSet::from([address.to_owned()]));
        let egress = Egress::from([
            of(vpc, "198.51.100.1"),
            of("vpc-0fedcba9876543210".into(), "198.51.100.2"),
        ]);
        let gone = Instance { state: InstanceState::Terminated, vpc: None, ..running.clone() };
        let unknown = Whose::Unknown(String::new());
        for (address, instance, interfaces, expected) in [
            ("203.0.113.7", &running, &interfaces[..], Whose::Own),
            ("2001:db8::7", &running, &interfaces, Whose::Own),
            ("198.51.100.1", &running, &interfaces, Whose::Own),
            ("198.51.100.2", &running, &interfaces, Whose::Other),
            ("192.0.2.1", &running, &interfaces, Whose::Other),
            ("198.51.100.2", &gone, &[], Whose::Own),
            ("203.0.113.7", &gone, &[], unknown),
        ] {
            let ip = address.parse().expect("an address");
            let whose = match decide(ip, instance, interfaces, &egress) {
                Whose::Unknown(_) => Whose::Unknown(String::new()),
                known => known,
            };
            assert_eq!(whose, expected, "{address} {:?}", instance.state);
        }
    }
}
