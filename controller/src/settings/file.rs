//! The settings file, `cleanroom.toml`: its text, and what of a run it decides.
//!
//! Touches nothing: whoever has the text, from a disk or a bucket, passes it in. What goes before the file, flags and
//! environment, is not known here.

use std::{
    path::{Path, PathBuf},
    time::Duration,
};

use cleanroom_contract::{InstanceId, ScanLimits, printable};
use serde::Deserialize;

use super::brake::Brake;
use crate::{
    brake::BrakePolicy,
    case::{Bounds, Policy},
    room::{RoomPolicy, agent},
};

/// The largest settings file, in bytes.
pub const MAX_BYTES: u64 = 1 << 20;

/// A line of the file that is no setting.
#[derive(Debug, thiserror::Error)]
#[error("{}:{line}: {why}", printable(&path.to_string_lossy()))]
pub struct Malformed {
    /// The file.
    pub path: PathBuf,
    /// The line, from 1.
    pub line: usize,
    /// What is wrong.
    pub why: String,
}

/// What the file says.
#[derive(Clone, Debug, Default, PartialEq)]
#[expect(missing_docs, reason = "named as in the file, which the README explains")]
pub struct File {
    /// Where it is; none where there is no file.
    pub path: Option<PathBuf>,
    pub bucket: Option<String>,
    pub topic: Option<String>,
    pub kms_key: Option<String>,
    pub profile: Option<String>,
    pub region: Option<String>,
    pub assume_role: Option<String>,
    pub forensic_account: Option<String>,
    pub forensic_key: Option<String>,
    /// Instances and `key=value` tags that are never contained.
    pub exempt: Vec<String>,
    /// GuardDuty severity from which a finding speaks for a compromise, times ten.
    pub severity_tenths: Option<u32>,
    pub lock_days: Option<u32>,
    pub image: Option<bool>,
    pub nacl: Option<bool>,
    pub room: Room,
    pub bounds: BoundsInSeconds,
    pub brake: BrakePolicy,
}

impl File {
    /// What it says of a response; what it leaves out is as by default. Whoever has flags puts them in front.
    #[must_use]
    pub fn policy(&self) -> Policy {
        let default = Policy::default();
        Policy {
            exempt: self.exempt.clone(),
            severity_tenths: self.severity_tenths.unwrap_or(default.severity_tenths),
            image: self.image.unwrap_or(default.image),
            lock_days: self.lock_days,
            acl: self.nacl.unwrap_or(default.acl),
            brake: self.brake.clone(),
            ..default
        }
    }
}

/// What the clean room is made of, and what it looks for.
#[derive(Clone, Debug, Default, PartialEq, Deserialize)]
#[serde(deny_unknown_fields, default)]
#[expect(missing_docs, reason = "named as in the file, which the README explains")]
pub struct Room {
    /// `KEY@sha256=DIGEST`.
    pub agent: Option<String>,
    pub image: Option<String>,
    pub role: Option<String>,
    pub zone: Option<String>,
    pub vpc: Option<String>,
    pub subnet: Option<String>,
    pub security_group: Option<String>,
    pub permissions_boundary: Option<String>,
    pub idle_seconds: Option<u32>,
    pub attach_seconds: Option<u32>,
    /// Files and folders.
    pub rules: Vec<PathBuf>,
    pub indicators: Vec<PathBuf>,
    /// A template of one's own, in place of the one that is shipped.
    pub template: Option<PathBuf>,
}

impl Room {
    /// What is wrong with it.
    fn fault(&self) -> Option<String> {
        if let Some(Err(why)) = self.agent.as_deref().map(agent) {
            return Some(format!("agent: {why}"));
        }
        if self.idle_seconds.is_some_and(|s| !(60..=604_800).contains(&s)) {
            return Some("idle_seconds is from 60 to 604800".to_owned());
        }
        if self.attach_seconds.is_some_and(|s| !(30..=900).contains(&s)) {
            return Some("attach_seconds is from 30 to 900".to_owned());
        }
        let shared = [&self.vpc, &self.subnet, &self.security_group].map(Option::is_some);
        if shared != [shared[0]; 3] {
            return Some(
                "vpc, subnet and security_group are set together or not at all".to_owned(),
            );
        }
        // Volumes attach in their own zone only, and the instance's may be another.
        if shared[0] && self.zone.is_none() {
            return Some("a shared network needs zone, its subnet's".to_owned());
        }
        None
    }

    /// The room that it describes, but for the files that it names: those are read by who is on their machine.
    #[must_use]
    pub fn policy(&self) -> RoomPolicy {
        let default = RoomPolicy::default();
        RoomPolicy {
            asked: self.agent.is_some(),
            // An agent that is none was refused when the file was read.
            agent: self.agent.as_deref().and_then(|text| agent(text).ok()),
            image: self.image.as_deref().map(Into::into),
            role: self.role.clone(),
            zone: self.zone.clone(),
            vpc: self.vpc.clone(),
            subnet: self.subnet.clone(),
            group: self.security_group.clone(),
            boundary: self.permissions_boundary.clone(),
            idle_seconds: self.idle_seconds.unwrap_or(default.idle_seconds),
            limits: ScanLimits {
                attach_seconds: self.attach_seconds.unwrap_or(default.limits.attach_seconds),
                ..default.limits
            },
            ..default
        }
    }
}

/// The file's own form.
#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
struct Toml {
    bucket: Option<String>,
    topic: Option<String>,
    kms_key: Option<String>,
    profile: Option<String>,
    region: Option<String>,
    assume_role: Option<String>,
    forensic_account: Option<String>,
    forensic_key: Option<String>,
    exempt: Vec<toml::Spanned<String>>,
    severity: Option<toml::Spanned<f64>>,
    lock_days: Option<toml::Spanned<u32>>,
    image: Option<bool>,
    nacl: Option<bool>,
    room: Option<toml::Spanned<Room>>,
    bounds: Option<toml::Spanned<BoundsInSeconds>>,
    brake: Brake,
}

/// How long to wait for what, in seconds; what is left out stays as it is.
#[derive(Clone, Debug, Default, PartialEq, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct BoundsInSeconds {
    custody: Option<f64>,
    original: Option<f64>,
    guard: Option<f64>,
    snapshot: Option<f64>,
    goal: Option<f64>,
    address_settle: Option<f64>,
    open: Option<f64>,
    poll: Option<f64>,
    call: Option<f64>,
    silence: Option<f64>,
}

impl BoundsInSeconds {
    fn all(&self) -> [(&'static str, Option<f64>); 10] {
        [
            ("custody", self.custody),
            ("original", self.original),
            ("guard", self.guard),
            ("snapshot", self.snapshot),
            ("goal", self.goal),
            ("address_settle", self.address_settle),
            ("open", self.open),
            ("poll", self.poll),
            ("call", self.call),
            ("silence", self.silence),
        ]
    }

    /// What is wrong with them. An interface that stays open long is no containment.
    fn fault(&self) -> Option<String> {
        self.all().into_iter().find_map(|(name, seconds)| {
            let most = if name == "open" { 5.0 } else { 86_400.0 };
            let within = seconds.is_none_or(|s| s > 0.0 && s <= most);
            (!within).then(|| format!("{name} is more than 0 and at most {most} seconds"))
        })
    }

    /// The bounds that hold.
    #[must_use]
    pub fn bounds(&self) -> Bounds {
        let default = Bounds::default();
        let or = |seconds: Option<f64>, default| {
            seconds.and_then(|s| Duration::try_from_secs_f64(s).ok()).unwrap_or(default)
        };
        Bounds {
            custody: or(self.custody, default.custody),
            original: or(self.original, default.original),
            guard: or(self.guard, default.guard),
            snapshot: or(self.snapshot, default.snapshot),
            goal: or(self.goal, default.goal),
            address_settle: or(self.address_settle, default.address_settle),
            open: or(self.open, default.open),
            poll: or(self.poll, default.poll),
            call: or(self.call, default.call),
            silence: or(self.silence, default.silence),
            wait: default.wait,
        }
    }
}

/// Reads a settings file's text.
///
/// # Errors
/// When a line of it is no setting.
pub fn parse(path: &Path, text: &str) -> Result<File, Malformed> {
    let malformed = |at: usize, why: String| Malformed {
        path: path.to_owned(),
        line: 1 + text.as_bytes().iter().take(at).filter(|byte| **byte == b'\n').count(),
        why,
    };
    let toml: Toml = toml::from_str(text).map_err(|error| {
        let at = error.span().map_or(0, |span| span.start);
        malformed(at, error.message().trim().replace('\n', "; "))
    })?;
    for entry in &toml.exempt {
        let is_tag = entry.get_ref().split_once('=').is_some_and(|(key, _)| !key.is_empty());
        if !is_tag && entry.get_ref().parse::<InstanceId>().is_err() {
            let why = format!("{:?} exempts nothing: give i-… or TAG=VALUE", entry.get_ref());
            return Err(malformed(entry.span().start, why));
        }
    }
    let severity = toml.severity.as_ref();
    if let Some(severity) = severity.filter(|s| !(0.0..=10.0).contains(s.get_ref())) {
        let why = "severity is from 0.0 to 10.0".to_owned();
        return Err(malformed(severity.span().start, why));
    }
    if let Some(days) = toml.lock_days.as_ref().filter(|d| !(1..=36_500).contains(d.get_ref())) {
        return Err(malformed(days.span().start, "lock_days is from 1 to 36500".to_owned()));
    }
    if let Some((at, why)) =
        toml.room.as_ref().and_then(|r| Some((r.span().start, r.get_ref().fault()?)))
    {
        return Err(malformed(at, why));
    }
    if let Some((at, why)) =
        toml.bounds.as_ref().and_then(|b| Some((b.span().start, b.get_ref().fault()?)))
    {
        return Err(malformed(at, why));
    }
    let brake = toml.brake.policy().map_err(|(at, why)| malformed(at, why))?;
    #[expect(
        clippy::cast_possible_truncation,
        clippy::cast_sign_loss,
        reason = "it is from 0 to 100"
    )]
    let severity_tenths = severity.map(|s| (s.get_ref() * 10.0).round() as u32);
    Ok(File {
        path: Some(path.to_owned()),
        bucket: toml.bucket,
        topic: toml.topic,
        kms_key: toml.kms_key,
        profile: toml.profile,
        region: toml.region,
        assume_role: toml.assume_role,
        forensic_account: toml.forensic_account,
        forensic_key: toml.forensic_key,
        exempt: toml.exempt.into_iter().map(toml::Spanned::into_inner).collect(),
        severity_tenths,
        lock_days: toml.lock_days.map(toml::Spanned::into_inner),
        image: toml.image,
        nacl: toml.nacl,
        room: toml.room.map(toml::Spanned::into_inner).unwrap_or_default(),
        bounds: toml.bounds.map(toml::Spanned::into_inner).unwrap_or_default(),
        brake,
    })
}

#[cfg(test)]
mod tests {
    use crate::brake::AtDeadline;

    use super::*;

    #[test]
    fn every_key_is_read() {
        let text = r#"
bucket = "evidence-123456789012"
topic = "arn:aws:sns:us-east-1:123456789012:cleanroom"
kms_key = "arn:aws:kms:us-east-1:123456789012:key/0123"
exempt = ["i-0123456789abcdef0", "role=bastion"]
severity = 7.0
profile = "forensics"
region = "eu-west-1"
assume_role = "arn:aws:iam::111122223333:role/responder"
forensic_account = "arn:aws:iam::444455556666:role/forensic"
forensic_key = "arn:aws:kms:us-east-1:444455556666:key/4567"
lock_days = 30
image = true
nacl = false

[bounds]
guard = 2.5
open = 1

[brake]
per_hour = 100
per_group = 0
ask_after = ["trail", "message"]
severity = 8.5
deadline_minutes = 30
at_deadline = "leave"
"#;
        let file = parse(Path::new("cleanroom.toml"), text).expect("every line is a setting");
        let bounds = file.bounds.bounds();
        assert_eq!(
            (bounds.guard, bounds.open),
            (Duration::from_millis(2500), Duration::from_secs(1))
        );
        assert_eq!(bounds.custody, Bounds::default().custody);
        let expected = BrakePolicy {
            per_hour: 100,
            per_group: 0,
            ask_after: ["message", "trail"].map(str::to_owned).into(),
            severity_tenths: 85,
            deadline: Duration::from_secs(1800),
            at_deadline: AtDeadline::Leave,
            ..BrakePolicy::default()
        };
        assert_eq!(file.brake, expected);
        assert_eq!(file.severity_tenths, Some(70));
        let role = file.forensic_account.as_deref();
        assert_eq!(role, Some("arn:aws:iam::444455556666:role/forensic"));
        assert!(file.forensic_key.is_some_and(|key| key.ends_with("key/4567")));
        assert_eq!(file.exempt, ["i-0123456789abcdef0", "role=bastion"]);
        assert_eq!((file.lock_days, file.image, file.nacl), (Some(30), Some(true), Some(false)));
    }

    #[test]
    fn what_is_no_setting_is_named_with_its_line() {
        for (text, expected) in [
            (
                "region = \"eu-west-1\"\nbuckett = \"x\"\n",
                "cleanroom.toml:2: unknown field `buckett`, expected one of ",
            ),
            ("\n\nimage = 1", "cleanroom.toml:3: invalid type: integer `1`, expected a boolean"),
            ("bucket = \"a\"\nbucket = \"b\"", "cleanroom.toml:2: duplicate key"),
            (
                "exempt = [\n\"role=x\",\n\"bastion\"]",
                "cleanroom.toml:3: \"bastion\" exempts nothing: give i-… or TAG=VALUE",
            ),
            ("severity = 11.0", "cleanroom.toml:1: severity is from 0.0 to 10.0"),
            ("lock_days = 0", "cleanroom.toml:1: lock_days is from 1 to 36500"),
            ("[bounds]\nopen = 60", "cleanroom.toml:1: open is more than 0 and at most 5 seconds"),
            (
                "[bounds]\ngoal = nan",
                "cleanroom.toml:1: goal is more than 0 and at most 86400 seconds",
            ),
            ("[room]\nvpc = \"vpc-1\"", "cleanroom.toml:1: vpc, subnet and security_group are set"),
            (
                "[room]\nvpc = \"vpc-1\"\nsubnet = \"subnet-1\"\nsecurity_group = \"sg-1\"",
                "cleanroom.toml:1: a shared network needs zone, its subnet's",
            ),
            ("[room]\nagent = \"x\"", "cleanroom.toml:1: agent: give the key and the digest"),
            ("[room]\nidle_seconds = 1", "cleanroom.toml:1: idle_seconds is from 60 to 604800"),
            ("[room]\nattach_seconds = 1", "cleanroom.toml:1: attach_seconds is from 30 to 900"),
            ("[brake]\nper_hour = 5\nper_vpc = -1", "cleanroom.toml:3: per_vpc is from 0 to 10000"),
            ("[brake]\nper_hour = 1.5", "cleanroom.toml:2: invalid type: floating point"),
            ("[brake]\nper_group = 10001", "cleanroom.toml:2: per_group is from 0 to 10000"),
            (
                "[brake]\nask_after = [\"alarm\",\n\"sns\"]",
                "cleanroom.toml:3: \"sns\" is no source of alerts: ask_after takes message, guardduty, alarm, security_hub, trail",
            ),
            ("[brake]\nseverity = 10.1", "cleanroom.toml:2: severity is from 0.0 to 10.0"),
            (
                "[brake]\ndeadline_minutes = 0",
                "cleanroom.toml:2: deadline_minutes is from 1 to 10080",
            ),
            (
                "[brake]\nat_deadline = \"wait\"",
                "cleanroom.toml:2: unknown variant `wait`, expected `contain` or `leave`",
            ),
            ("[brake]\nper_day = 1", "cleanroom.toml:2: unknown field `per_day`, expected one of "),
            ("[bounds]\nlunch = 60", "cleanroom.toml:2: unknown field `lunch`, expected one of "),
        ] {
            let error = parse(Path::new("cleanroom.toml"), text).expect_err(text).to_string();
            assert!(error.starts_with(expected), "{text}: {error}");
        }
    }
}
