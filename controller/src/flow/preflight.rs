//! Whether the account is ready for an incident: a table with what to fix. Reads only.
//!
//! Everything is read at once; what was read is then judged by functions that touch nothing. What can not be read is
//! unknown, with the error, and hides nothing else.

mod admits;
mod bucket;
mod forensic;
mod policy;

pub(super) use self::bucket::is_default_key;
pub use self::forensic::forensic;

use cleanroom_cloud::{
    Caller, Cloud, CloudError, EncryptionKey, ErrorKind, Permission, Quota, TrailPosture,
};
use serde::Serialize;

use crate::{room::RoomPolicy, steps::clean_room::artifacts};

/// How bad a finding is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Level {
    /// As it should be.
    Good,
    /// Not known, since the caller may not ask or the service does not say.
    Unknown,
    /// A response works, and is weaker for it.
    Weak,
    /// A response will lack something.
    Missing,
}

/// One line of the table.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Check {
    /// What it is about: `caller`, `bucket`, `topic`, `key`, `permissions`, `quotas`, `before` the incident.
    pub area: &'static str,
    /// What was looked at.
    pub name: String,
    /// How it is.
    pub level: Level,
    /// What was found.
    pub found: String,
    /// What to do; empty where nothing is to be done.
    pub fix: String,
}

impl Check {
    fn new(area: &'static str, name: &str, level: Level, found: &str, fix: &str) -> Self {
        Self {
            area,
            name: name.to_owned(),
            level,
            found: cleanroom_contract::printable(found),
            fix: cleanroom_contract::printable(fix),
        }
    }

    fn good(area: &'static str, name: &str, found: &str) -> Self {
        Self::new(area, name, Level::Good, found, "")
    }

    /// What could not be read: the error, and what would let it be read.
    fn unread(area: &'static str, name: &str, error: &CloudError) -> Self {
        let fix = match error.kind {
            ErrorKind::Denied => {
                format!("allow {} to the caller, or have somebody look who may", error.operation)
            }
            ErrorKind::Credentials => "give credentials that are valid, and run again".to_owned(),
            ErrorKind::Throttled | ErrorKind::Ambiguous | ErrorKind::Unreachable => {
                "run preflight again; if it stays, look at the way to the service".to_owned()
            }
            ErrorKind::NotFound | ErrorKind::Unsupported | ErrorKind::Refused => {
                "check that what is configured is there, in this account and Region".to_owned()
            }
            ErrorKind::Conflict | ErrorKind::Other => {
                "look at what the error says, and run preflight again".to_owned()
            }
        };
        // The error's own text is safe to show already.
        Self { area, name: name.to_owned(), level: Level::Unknown, found: error.to_string(), fix }
    }
}

/// Looks at everything. `actions` are all IAM actions that this tool needs; `key` is the case's own key where one is set.
pub async fn preflight(cloud: &Cloud, actions: &[String], key: Option<&str>) -> Vec<Check> {
    let (posture, inventory) = (&cloud.posture, &cloud.inventory);
    let evidence = async {
        let bucket = posture.bucket().await;
        // The bucket names its key; only KMS says whose it is.
        let key = match bucket.as_ref().ok().and_then(|b| b.key.as_deref()) {
            Some(key) if !bucket::is_default_key(key) => Some(inventory.key(key).await),
            _ => None,
        };
        (bucket, key)
    };
    let own_key = async {
        match key {
            Some(key) => Some(inventory.key(key).await),
            None => None,
        }
    };
    let (
        caller,
        (bucket, bucket_key),
        topic,
        own_key,
        permissions,
        quotas,
        trails,
        guardduty,
        logs,
    ) = tokio::join!(
        inventory.caller(),
        evidence,
        posture.topic(),
        own_key,
        posture.permissions(actions),
        posture.quotas(),
        posture.trails(),
        posture.guardduty(),
        posture.flow_logs(),
    );
    let mut checks = judge_caller(&caller);
    checks.extend(bucket::judge(cloud.store.bucket(), &bucket, bucket_key.as_ref()));
    checks.push(judge_topic(&topic));
    checks.push(judge_key(own_key.as_ref()));
    checks.extend(judge_permissions(actions, &permissions));
    checks.extend(judge_quotas(&quotas));
    checks.push(judge_trails(&trails));
    checks.push(judge_guardduty(&guardduty));
    checks.push(judge_flow_logs(&logs));
    checks
}

/// Looks at what a clean room needs beside the caller's rights.
pub async fn room(cloud: &Cloud, room: &RoomPolicy) -> Vec<Check> {
    const AREA: &str = "room";
    let (agent, sought, image) = tokio::join!(
        artifacts::chosen(&*cloud.store, room),
        artifacts::sought(&*cloud.store, room),
        artifacts::image(&*cloud.inventory, room),
    );
    let fix =
        "cleanroom deploy --artifacts DIR: without an agent a response ends with the snapshots";
    let agent = match agent {
        Ok(Some((agent, _))) => Check::good(AREA, "agent", &agent.key),
        Ok(None) => Check::new(AREA, "agent", Level::Weak, "none is in the bucket", fix),
        Err(why) => Check::new(AREA, "agent", Level::Unknown, &why, fix),
    };
    let fix = "name an AMI: image in [room] of cleanroom.toml";
    let image = match image {
        Ok((id, name)) => Check::good(AREA, "machine image", &name.unwrap_or(id.to_string())),
        Err(why) => Check::new(AREA, "machine image", Level::Unknown, &why, fix),
    };
    let role = match &room.role {
        Some(role) => Check::good(AREA, "role of CloudFormation", role),
        None => Check::new(
            AREA,
            "role of CloudFormation",
            Level::Unknown,
            "none is set: rooms are made with the caller's own rights, which must then allow VPCs, endpoints, DNS firewalls, roles, instances and volumes",
            "make a service role for CloudFormation, and set it as role in [room] of cleanroom.toml",
        ),
    };
    vec![agent, judge_rules(sought), image, role]
}

fn judge_rules(sought: Result<artifacts::Sought, String>) -> Check {
    let fix = "cleanroom deploy --artifacts DIR --rules PATH: without rules a scan finds what the agent knows by itself, and no known malware";
    let (found, level) = match sought {
        Ok(sought) if sought.rules.is_empty() => ("none are deployed".to_owned(), Level::Weak),
        Ok(artifacts::Sought { rules, indicators }) => {
            let found =
                format!("{} files of rules, {} lists of indicators", rules.len(), indicators.len());
            return Check::good("room", "rules", &found);
        }
        Err(why) => (why, Level::Unknown),
    };
    Check::new("room", "rules", level, &found, fix)
}

/// How far a clock may be off before it weakens what is recorded by it, in seconds.
const MOST_SKEW: u64 = 30;

fn judge_caller(caller: &cleanroom_cloud::Result<Caller>) -> Vec<Check> {
    const AREA: &str = "caller";
    let caller = match caller {
        Ok(caller) => caller,
        Err(error) => return vec![Check::unread(AREA, "identity", error)],
    };
    let fix = "set the clock by NTP: the custody log is written by it, and beyond five minutes AWS refuses calls";
    let clock = match caller.clock_ahead {
        None => Check::new(AREA, "clock", Level::Unknown, "no answer said what time it is", fix),
        Some(ahead) if ahead.unsigned_abs() > MOST_SKEW => {
            let way = if ahead > 0 { "ahead of" } else { "behind" };
            let found = format!("{} s {way} AWS", ahead.unsigned_abs());
            Check::new(AREA, "clock", Level::Weak, &found, fix)
        }
        Some(ahead) => {
            Check::good(AREA, "clock", &format!("within {} s of AWS", ahead.unsigned_abs()))
        }
    };
    vec![
        Check::good(AREA, "identity", &caller.arn),
        Check::good(AREA, "account", caller.account.as_str()),
        Check::good(AREA, "Region", &caller.region),
        clock,
    ]
}

fn judge_topic(topic: &cleanroom_cloud::Result<Option<String>>) -> Check {
    const AREA: &str = "topic";
    let fix =
        "create an SNS topic, subscribe the team, and name it with --topic or CLEANROOM_TOPIC";
    match topic {
        Ok(Some(arn)) => Check::good(AREA, "exists", arn),
        Ok(None) => {
            Check::new(AREA, "exists", Level::Missing, "none is configured: nobody is told", fix)
        }
        Err(error) if error.kind == ErrorKind::NotFound => Check::new(
            AREA,
            "exists",
            Level::Missing,
            &format!("{} is not there", error.resource),
            fix,
        ),
        Err(error) => Check::unread(AREA, "exists", error),
    }
}

fn judge_key(key: Option<&cleanroom_cloud::Result<EncryptionKey>>) -> Check {
    const AREA: &str = "key";
    const NAME: &str = "the case's own key";
    let fix = "create a customer key in this Region that the responders may use, and set it in cleanroom.toml";
    match key {
        None => {
            let found = "none is set: snapshots of volumes under aws/ebs or another's key can not be shared, and die with their key";
            Check::new(AREA, NAME, Level::Weak, found, fix)
        }
        Some(Ok(key)) if key.aws_managed => {
            let found = format!("{} is AWS's own: nothing under it can be shared", key.arn);
            Check::new(AREA, NAME, Level::Weak, &found, fix)
        }
        Some(Ok(key)) if !key.enabled => {
            let found = format!("{} is not enabled: nothing can be copied to it", key.arn);
            let fix =
                format!("enable it (aws kms enable-key --key-id {}), or set another", key.arn);
            Check::new(AREA, NAME, Level::Missing, &found, &fix)
        }
        Some(Ok(key)) => Check::good(
            AREA,
            NAME,
            &format!("{}, a customer key of account {}", key.arn, key.account),
        ),
        Some(Err(error)) if error.kind == ErrorKind::NotFound => {
            let found = format!("{} is not there", error.resource);
            Check::new(AREA, NAME, Level::Missing, &found, fix)
        }
        Some(Err(error)) => Check::unread(AREA, NAME, error),
    }
}

fn judge_permissions(
    actions: &[String],
    permissions: &cleanroom_cloud::Result<Vec<Permission>>,
) -> Vec<Check> {
    const AREA: &str = "permissions";
    let permissions = match permissions {
        Ok(permissions) => permissions,
        Err(error) => {
            let mut check = Check::unread(AREA, "simulation", error);
            check.fix = format!(
                "{}; or hold the role's policies against the one that this tool prints",
                check.fix
            );
            return vec![check];
        }
    };
    let mut checks = Vec::new();
    for action in actions {
        let fix = || format!("allow {action} to the role that responds");
        match permissions.iter().find(|p| p.action.eq_ignore_ascii_case(action)) {
            Some(permission) if permission.allowed => {}
            Some(_) => {
                let found = "the caller may not";
                checks.push(Check::new(AREA, action, Level::Missing, found, &fix()));
            }
            None => {
                let found = "the simulation does not say";
                checks.push(Check::new(AREA, action, Level::Unknown, found, &fix()));
            }
        }
    }
    if checks.is_empty() {
        let found = format!("all {} actions are allowed, by simulation", actions.len());
        checks.push(Check::good(AREA, "actions", &found));
    }
    checks
}

/// How much of a quota may be used before a case may find too little left, in per cent.
const MOST_USED: u128 = 80;

fn judge_quotas(quotas: &cleanroom_cloud::Result<Vec<Quota>>) -> Vec<Check> {
    const AREA: &str = "quotas";
    let quotas = match quotas {
        Ok(quotas) => quotas,
        Err(error) => return vec![Check::unread(AREA, "limits", error)],
    };
    let judge = |quota: &Quota| {
        let (name, limit) = (quota.name.as_str(), quota.limit);
        let Some(used) = quota.used else {
            let found = format!("{limit} at most; how many are used is not counted");
            let fix = "compare with what the Service Quotas console shows";
            return Check::new(AREA, name, Level::Unknown, &found, fix);
        };
        let found = format!("{used} of {limit} used");
        if u128::from(used) * 100 > u128::from(limit) * MOST_USED || limit == 0 {
            let fix = "ask for more in Service Quotas, or clear what is not needed";
            Check::new(AREA, name, Level::Weak, &found, fix)
        } else {
            Check::good(AREA, name, &found)
        }
    };
    quotas.iter().map(judge).collect()
}

/// What should have been on before the incident: it can not be switched on for what has happened already.
const BEFORE: &str = "before";

fn judge_trails(trails: &cleanroom_cloud::Result<Vec<TrailPosture>>) -> Check {
    const NAME: &str = "CloudTrail";
    let fix = "create a multi-Region trail with log file validation, and start its logging";
    let trails = match trails {
        Ok(trails) => trails,
        Err(error) => return Check::unread(BEFORE, NAME, error),
    };
    if let Some(trail) = trails.iter().find(|t| t.multi_region && t.log_validation && t.logging) {
        let found = format!("{} covers every Region, is validated, and is logging", trail.name);
        return Check::good(BEFORE, NAME, &found);
    }
    if trails.is_empty() {
        let found = "no trail: events are kept for 90 days only, and without signatures";
        return Check::new(BEFORE, NAME, Level::Missing, found, fix);
    }
    let lacks = |trail: &TrailPosture| {
        let lacks = [
            (!trail.multi_region, "covers one Region only"),
            (!trail.log_validation, "has no log file validation"),
            (!trail.logging, "is not logging"),
        ];
        let lacks: Vec<_> = lacks.into_iter().filter(|(l, _)| *l).map(|(_, what)| what).collect();
        format!("{} {}", trail.name, lacks.join(" and "))
    };
    let found = some(trails.iter().map(lacks));
    let logging = trails.iter().any(|t| t.logging);
    Check::new(BEFORE, NAME, if logging { Level::Weak } else { Level::Missing }, &found, fix)
}

fn judge_guardduty(on: &cleanroom_cloud::Result<bool>) -> Check {
    const NAME: &str = "GuardDuty";
    match on {
        Ok(true) => Check::good(BEFORE, NAME, "on in this Region"),
        Ok(false) => {
            let found = "off in this Region: there are no findings to respond to";
            let fix = "aws guardduty create-detector --enable, in every Region that is used";
            Check::new(BEFORE, NAME, Level::Missing, found, fix)
        }
        Err(error) => Check::unread(BEFORE, NAME, error),
    }
}

fn judge_flow_logs(vpcs: &cleanroom_cloud::Result<Vec<(String, bool)>>) -> Check {
    const NAME: &str = "flow logs";
    let vpcs = match vpcs {
        Ok(vpcs) => vpcs,
        Err(error) => return Check::unread(BEFORE, NAME, error),
    };
    let without: Vec<_> = vpcs.iter().filter(|(_, logged)| !logged).map(|(vpc, _)| vpc).collect();
    if without.is_empty() {
        return Check::good(BEFORE, NAME, &format!("every VPC has one ({})", vpcs.len()));
    }
    let level = if without.len() == vpcs.len() { Level::Missing } else { Level::Weak };
    let found = format!("{} of {} VPCs have none: {}", without.len(), vpcs.len(), some(without));
    let fix = "aws ec2 create-flow-logs for each: where traffic went can not be asked afterwards";
    Check::new(BEFORE, NAME, level, &found, fix)
}

/// How many things a line names.
const NAMED: usize = 10;

/// The first of these things, and how many more there are.
fn some<T: std::fmt::Display>(things: impl IntoIterator<Item = T>) -> String {
    let all: Vec<_> = things.into_iter().map(|t| t.to_string()).collect();
    let more = all.len().saturating_sub(NAMED);
    let first = all.iter().take(NAMED).cloned().collect::<Vec<_>>().join(", ");
    if more == 0 { first } else { format!("{first} and {more} more") }
}

#[cfg(test)]
mod tests {
    use super::*;

    pub(super) fn error(kind: ErrorKind) -> CloudError {
        CloudError {
            operation: "kms:DescribeKey".to_owned(),
            resource: "a-key".to_owned(),
            kind,
            code: "Code".to_owned(),
            message: "a sentence".to_owned(),
            request: None,
        }
    }

    #[test]
    fn a_clock_is_weak_beyond_thirty_seconds_in_either_direction() {
        for (ahead, expected) in [
            (Some(0), Level::Good),
            (Some(30), Level::Good),
            (Some(-30), Level::Good),
            (Some(31), Level::Weak),
            (Some(-31), Level::Weak),
            (Some(i64::MIN), Level::Weak),
            (None, Level::Unknown),
        ] {
            let caller = Caller {
                account: "123456789012".into(),
                arn: "arn:aws:iam::123456789012:user/ops".to_owned(),
                region: "eu-west-1".to_owned(),
                clock_ahead: ahead,
            };
            let checks = judge_caller(&Ok(caller));
            let clock = checks.iter().find(|c| c.name == "clock").expect("a line for the clock");
            assert_eq!(clock.level, expected, "{ahead:?}: {clock:?}");
            assert_eq!(clock.fix.is_empty(), expected == Level::Good, "{ahead:?}");
        }
    }

    #[test]
    fn a_quota_is_weak_above_four_fifths() {
        for (used, limit, expected) in [
            (Some(80), 100, Level::Good),
            (Some(81), 100, Level::Weak),
            (Some(4), 5, Level::Good),
            (Some(5), 5, Level::Weak),
            (Some(0), 0, Level::Weak),
            (Some(u64::MAX), u64::MAX, Level::Weak),
            (None, 5, Level::Unknown),
        ] {
            let quota = Quota { name: "VPCs".to_owned(), limit, used };
            let checks = judge_quotas(&Ok(vec![quota]));
            assert_eq!(checks[0].level, expected, "{used:?} of {limit}");
        }
    }

    #[test]
    fn one_trail_must_have_everything() {
        let trail = |multi_region, log_validation, logging| TrailPosture {
            name: "t".to_owned(),
            multi_region,
            log_validation,
            logging,
        };
        for (trails, expected) in [
            (vec![trail(true, true, true)], Level::Good),
            (vec![trail(false, true, true), trail(true, true, true)], Level::Good),
            // Two halves are no whole.
            (vec![trail(true, false, true), trail(false, true, true)], Level::Weak),
            (vec![trail(true, true, false)], Level::Missing),
            (Vec::new(), Level::Missing),
        ] {
            let check = judge_trails(&Ok(trails.clone()));
            assert_eq!(check.level, expected, "{trails:?}: {check:?}");
        }
        let found = judge_trails(&Ok(vec![trail(false, false, true)])).found;
        assert_eq!(found, "t covers one Region only and has no log file validation");
    }

    #[test]
    fn the_cases_key_must_be_a_customers_and_enabled() {
        let key = |aws_managed, enabled| {
            Some(Ok(EncryptionKey {
                arn: "arn:aws:kms:eu-west-1:123456789012:key/k".to_owned(),
                account: "123456789012".into(),
                aws_managed,
                enabled,
            }))
        };
        for (key, expected) in [
            (None, Level::Weak),
            (key(false, true), Level::Good),
            (key(true, true), Level::Weak),
            (key(false, false), Level::Missing),
            (Some(Err(error(ErrorKind::NotFound))), Level::Missing),
            (Some(Err(error(ErrorKind::Denied))), Level::Unknown),
        ] {
            let check = judge_key(key.as_ref());
            assert_eq!(check.level, expected, "{key:?}: {check:?}");
            assert_eq!(check.fix.is_empty(), expected == Level::Good, "{check:?}");
        }
    }

    #[test]
    fn every_missing_action_has_a_line_and_none_missing_has_one() {
        let actions: Vec<String> = ["ec2:A", "ec2:B", "ec2:C"].map(str::to_owned).into();
        let judged = |allowed: &[(&str, bool)]| {
            let permission = |(action, allowed): &(&str, bool)| Permission {
                action: (*action).to_owned(),
                allowed: *allowed,
            };
            judge_permissions(&actions, &Ok(allowed.iter().map(permission).collect()))
        };
        let all = judged(&[("ec2:a", true), ("ec2:B", true), ("ec2:C", true)]);
        assert_eq!(all.len(), 1);
        assert_eq!(all[0].level, Level::Good);
        let some = judged(&[("ec2:A", true), ("ec2:B", false)]);
        let lines: Vec<_> = some.iter().map(|c| (c.name.as_str(), c.level)).collect();
        assert_eq!(lines, [("ec2:B", Level::Missing), ("ec2:C", Level::Unknown)]);
        let refused = judge_permissions(&actions, &Err(error(ErrorKind::Denied)));
        assert_eq!(refused[0].level, Level::Unknown);
        assert!(refused[0].fix.contains("kms:DescribeKey"), "{:?}", refused[0].fix);
    }

    #[test]
    fn vpcs_without_flow_logs_are_summed_up_in_one_line() {
        let vpcs = |without: usize, with: usize| -> Vec<(String, bool)> {
            (0..without + with).map(|n| (format!("vpc-{n:08x}"), n >= without)).collect()
        };
        for (without, with, expected) in
            [(0, 2, Level::Good), (0, 0, Level::Good), (1, 1, Level::Weak), (12, 0, Level::Missing)]
        {
            let check = judge_flow_logs(&Ok(vpcs(without, with)));
            assert_eq!(check.level, expected, "{check:?}");
        }
        let found = judge_flow_logs(&Ok(vpcs(12, 3))).found;
        assert!(found.starts_with("12 of 15 VPCs") && found.ends_with("and 2 more"), "{found}");
    }

    #[test]
    fn every_failed_read_is_unknown_and_says_what_to_do() {
        for kind in [
            ErrorKind::Denied,
            ErrorKind::Credentials,
            ErrorKind::Throttled,
            ErrorKind::Ambiguous,
            ErrorKind::Unreachable,
            ErrorKind::Refused,
            ErrorKind::Unsupported,
            ErrorKind::Other,
        ] {
            let failed = [
                judge_caller(&Err(error(kind))).remove(0),
                judge_topic(&Err(error(kind))),
                judge_key(Some(&Err(error(kind)))),
                judge_permissions(&[], &Err(error(kind))).remove(0),
                judge_quotas(&Err(error(kind))).remove(0),
                judge_trails(&Err(error(kind))),
                judge_guardduty(&Err(error(kind))),
                judge_flow_logs(&Err(error(kind))),
            ];
            for check in failed {
                assert_eq!(check.level, Level::Unknown, "{kind:?}: {check:?}");
                assert!(check.found.contains("a sentence") && !check.fix.is_empty(), "{check:?}");
            }
        }
    }
}
