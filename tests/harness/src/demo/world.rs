//! What must be true of the demo's account, from its state as AWS's Python SDK tells it. Pure but for the one read.

use std::collections::BTreeMap;

use anyhow::{Result, ensure};
use serde_json::{Value, json};

use crate::emulators::World;

/// The group without a rule.
const FORENSIC: &str = "cleanroom-forensic";

/// The account at one moment.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Facts(Value);

impl Facts {
    /// Asks the account.
    ///
    /// # Errors
    /// Where it does not answer, or leaves a part out.
    pub(super) fn read(world: &World) -> Result<Self> {
        let state = world.state(None)?;
        ensure!(
            state["unread"] == json!({}),
            "parts of the account are unread: {}",
            state["unread"]
        );
        Ok(Self(state))
    }

    fn items(&self, member: &str) -> &[Value] {
        self.0[member].as_array().map_or(&[], Vec::as_slice)
    }

    fn members(&self, member: &str) -> impl Iterator<Item = (&String, &Value)> {
        self.0[member].as_object().into_iter().flatten()
    }

    /// The snapshots of the instance's volumes that carry the case's tag.
    fn snapshots(&self, case: &str) -> usize {
        let volumes: Vec<_> = self.members("volumes").map(|(_, volume)| volume).collect();
        let ours =
            |s: &&Value| s["tags"]["cleanroom:case"] == case && volumes.contains(&&s["volume"]);
        self.items("snapshots").iter().filter(ours).count()
    }

    /// Targets that still get requests; what drains gets no new ones.
    fn live_targets(&self) -> BTreeMap<&str, Vec<Value>> {
        let live = |targets: &Value| {
            let all = targets.as_array().into_iter().flatten();
            all.filter(|t| t["state"] != "draining").map(|t| json!([t["id"], t["port"]])).collect()
        };
        self.members("target_groups").map(|(arn, targets)| (arn.as_str(), live(targets))).collect()
    }

    /// The load balancers' groups that it takes requests from.
    fn balancers(&self) -> usize {
        let targets = self.live_targets().values().filter(|targets| !targets.is_empty()).count();
        let classic = self.members("classic_load_balancers").filter(|(_, member)| **member == true);
        targets + classic.count()
    }

    /// The profiles that are on.
    fn profiles(&self) -> Vec<&Value> {
        let on = self.items("profile_associations").iter().filter(|a| a["state"] == "associated");
        on.map(|association| &association["arn"]).collect()
    }

    /// A group's name, and how many rules it has.
    fn group(&self, id: &Value) -> (String, usize) {
        let group = id.as_str().and_then(|id| self.0["vpc_security_groups"].get(id));
        let count = |way: &str| group.and_then(|g| g[way].as_array()).map_or(0, Vec::len);
        let name = group.and_then(|g| g["name"].as_str()).unwrap_or("?").to_owned();
        (name, count("ingress") + count("egress"))
    }

    /// Prints the interfaces, and what leads to the instance.
    pub(super) fn print(&self) {
        for interface in self.items("interfaces") {
            let groups = interface["groups"].as_array().into_iter().flatten();
            let named = groups.map(|id| match self.group(id) {
                (name, 0) => format!("{name} (no rule at all)"),
                (name, 1) => format!("{name} (1 rule)"),
                (name, rules) => format!("{name} ({rules} rules)"),
            });
            let named: Vec<_> = named.collect();
            let public = interface["public_ip"].as_str().unwrap_or("none");
            let id = interface["id"].as_str().unwrap_or("?");
            println!("  {id}  groups {:<36} public address {public}", named.join(", "));
        }
        let on = |on: bool| if on { "on" } else { "off" };
        println!(
            "  Auto Scaling group {} · {} load balancers · profile {} · metadata endpoint {} · \
             snapshots {}",
            self.0["asg"].as_str().unwrap_or("none"),
            self.balancers(),
            on(!self.profiles().is_empty()),
            on(self.0["metadata_options"]["HttpEndpoint"] == "enabled"),
            self.items("snapshots").len(),
        );
    }

    /// What is not as it should be after a response.
    pub(super) fn not_contained(&self, case: &str) -> Vec<String> {
        let mut wrong = Vec::new();
        let mut must = |holds: bool, what: String| {
            if !holds {
                wrong.push(what);
            }
        };
        for interface in self.items("interfaces") {
            let groups = interface["groups"].as_array().map_or(&[][..], Vec::as_slice);
            let cut = groups.len() == 1
                && groups.iter().all(|id| self.group(id) == (FORENSIC.to_owned(), 0));
            must(cut, format!("groups of {}: {}", interface["id"], interface["groups"]));
            let public = &interface["public_ip"];
            must(public.is_null(), format!("{} has {public}", interface["id"]));
        }
        must(!self.items("interfaces").is_empty(), "no interface".to_owned());
        must(self.0["asg"].is_null(), format!("it is in {}", self.0["asg"]));
        must(self.balancers() == 0, "it is behind a load balancer".to_owned());
        must(self.profiles().is_empty(), "its profile is on".to_owned());
        let endpoint = &self.0["metadata_options"]["HttpEndpoint"];
        must(endpoint == "disabled", format!("its metadata endpoint is {endpoint}"));
        let denied = self.0["role_policies"].get(format!("cleanroom-{case}")).is_some();
        must(denied, "its role's credentials are not denied".to_owned());
        let guards = json!({
            "disableApiTermination": true,
            "disableApiStop": true,
            "instanceInitiatedShutdownBehavior": "stop",
        });
        must(self.0["guards"] == guards, format!("its guards are {}", self.0["guards"]));
        for (device, deleted) in self.members("delete_on_termination") {
            must(*deleted == false, format!("{device} would be deleted with it"));
        }
        wrong
    }

    /// What is not as it should be of the evidence.
    pub(super) fn not_preserved(&self, case: &str) -> Vec<String> {
        let mut wrong = Vec::new();
        let (snapshots, volumes) = (self.snapshots(case), self.members("volumes").count());
        if volumes == 0 || snapshots != volumes {
            wrong.push(format!("{snapshots} snapshots of {volumes} volumes"));
        }
        let log = format!("cases/{case}/custody/000001.json");
        if self.0["objects"].get(&log).is_none() {
            wrong.push(format!("no {log}"));
        }
        if self.0["delete_markers"] != json!([]) {
            wrong.push(format!("deleted: {}", self.0["delete_markers"]));
        }
        wrong
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const CASE: &str = "i-0123456789abcdef0-1";

    /// An account in which the instance is contained.
    fn contained() -> Value {
        json!({
            "unread": {},
            "interfaces": [{"id": "eni-1", "groups": ["sg-1"], "public_ip": null, "allocation_id": null, "tags": {}}],
            "vpc_security_groups": {
                "sg-1": {"name": FORENSIC, "ingress": [], "egress": []},
                "sg-2": {"name": "web", "ingress": [{}], "egress": []},
            },
            "asg": null,
            "target_groups": {"tg": [{"id": "i-1", "port": 80, "state": "draining"}]},
            "classic_load_balancers": {"classic": false},
            "profile_associations": [],
            "metadata_options": {"HttpEndpoint": "disabled"},
            "role_policies": {"cleanroom-i-0123456789abcdef0-1": {}},
            "guards": {
                "disableApiTermination": true,
                "disableApiStop": true,
                "instanceInitiatedShutdownBehavior": "stop",
            },
            "delete_on_termination": {"/dev/sda1": false},
            "volumes": {"/dev/sda1": "vol-1"},
            "snapshots": [{"volume": "vol-1", "tags": {"cleanroom:case": CASE}}],
            "objects": {"cases/i-0123456789abcdef0-1/custody/000001.json": []},
            "delete_markers": [],
        })
    }

    #[test]
    fn each_thing_that_is_not_as_it_should_be_is_found() {
        let good = Facts(contained());
        assert_eq!(good.not_contained(CASE), [""; 0]);
        assert_eq!(good.not_preserved(CASE), [""; 0]);
        for (pointer, value) in [
            ("/interfaces/0/groups", json!(["sg-2"])),
            ("/interfaces/0/groups", json!(["sg-1", "sg-2"])),
            ("/interfaces/0/groups", json!([])),
            ("/interfaces/0/public_ip", json!("192.0.2.1")),
            ("/interfaces", json!([])),
            ("/vpc_security_groups/sg-1/egress", json!([{}])),
            ("/asg", json!("web")),
            ("/target_groups/tg/0/state", json!("healthy")),
            ("/classic_load_balancers/classic", json!(true)),
            ("/profile_associations", json!([{"state": "associated"}])),
            ("/metadata_options/HttpEndpoint", json!("enabled")),
            ("/role_policies", json!({})),
            ("/guards/disableApiStop", json!(false)),
            ("/delete_on_termination/~1dev~1sda1", json!(true)),
        ] {
            let mut bad = contained();
            *bad.pointer_mut(pointer).expect(pointer) = value;
            assert_eq!(Facts(bad).not_contained(CASE).len(), 1, "{pointer}");
        }
        for (pointer, value) in [
            ("/snapshots", json!([])),
            ("/snapshots/0/tags", json!({})),
            ("/objects", json!({})),
            ("/delete_markers", json!(["cases/x"])),
        ] {
            let mut bad = contained();
            *bad.pointer_mut(pointer).expect(pointer) = value;
            assert_eq!(Facts(bad).not_preserved(CASE).len(), 1, "{pointer}");
        }
    }
}
