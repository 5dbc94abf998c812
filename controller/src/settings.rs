//! What people have set, and where.
//!
//! Purpose: flags, then the environment, then the settings file, then the outputs of the response stack: [`decide`] is
//! pure and says of each value where it comes from. Touches the settings file, once. Never asks AWS: who has the stack's
//! outputs passes them in.

use std::{
    collections::BTreeMap,
    env, fmt,
    io::Read as _,
    path::{Path, PathBuf},
};

use cleanroom_contract::printable;
pub(crate) use cleanroom_controller::settings::File;
use cleanroom_controller::settings::{MAX_BYTES, Malformed, parse};

use crate::cli::{Evidence, Global};

/// A setting that can not be what is meant.
#[derive(Debug, thiserror::Error)]
pub(crate) enum SettingsError {
    /// The file can not be read.
    #[error("read settings {}", printable(&path.to_string_lossy()))]
    Read {
        /// The file.
        path: PathBuf,
        /// Why.
        source: std::io::Error,
    },
    /// The file says something that is no setting.
    #[error(transparent)]
    Malformed(#[from] Malformed),
    /// A value has not the form of what it is for.
    #[error("{name} ({source_of}): {value:?} is no {form}")]
    Form {
        /// The setting.
        name: &'static str,
        /// Where it comes from.
        source_of: String,
        /// Its value.
        value: String,
        /// What it should be.
        form: &'static str,
    },
}

/// Where a value comes from.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Source {
    /// This flag.
    Flag(&'static str),
    /// This variable.
    Environment(&'static str),
    /// The settings file.
    File(PathBuf),
    /// This output of the response stack.
    Output(&'static str),
}

impl fmt::Display for Source {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Flag(name) => write!(f, "--{name}"),
            Self::Environment(name) => f.write_str(name),
            Self::File(path) => f.write_str(&printable(&path.to_string_lossy())),
            Self::Output(name) => write!(f, "stack output {name}"),
        }
    }
}

/// A value and where it comes from.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Value<T = String> {
    pub value: T,
    pub source: Source,
}

/// What the environment says.
#[derive(Clone, Debug, Default)]
pub(crate) struct Env(pub BTreeMap<&'static str, String>);

/// Variables that are read. Those of the SDK are only known to be there: the SDK itself reads them.
const VARIABLES: [&str; 9] = [
    "CLEANROOM_BUCKET",
    "CLEANROOM_TOPIC",
    "CLEANROOM_KMS_KEY",
    "CLEANROOM_FORENSIC_ACCOUNT",
    "CLEANROOM_FORENSIC_KEY",
    "CLEANROOM_CONFIG",
    "AWS_PROFILE",
    "AWS_REGION",
    "AWS_DEFAULT_REGION",
];

impl Env {
    /// The process's own; an empty variable counts as none.
    pub(crate) fn read() -> Self {
        let set = |name: &'static str| {
            let value = env::var_os(name)?.to_string_lossy().into_owned();
            (!value.is_empty()).then_some((name, value))
        };
        Self(VARIABLES.into_iter().filter_map(set).collect())
    }

    fn get(&self, name: &'static str) -> Option<Value> {
        let value = self.0.get(name)?.clone();
        Some(Value { value, source: Source::Environment(name) })
    }

    /// The settings file that it names.
    pub(crate) fn config(&self) -> Option<&Path> {
        self.0.get("CLEANROOM_CONFIG").map(Path::new)
    }
}

/// What holds for a run.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Settings {
    pub profile: Option<Value>,
    pub region: Option<Value>,
    pub assume_role: Option<Value>,
    pub forensic_account: Option<Value>,
    pub forensic_key: Option<Value>,
    pub bucket: Option<Value>,
    pub topic: Option<Value>,
    pub kms_key: Option<Value>,
}

impl Settings {
    /// Whether the response stack could still name something.
    pub(crate) fn wants_outputs(&self) -> bool {
        self.bucket.is_none() || self.topic.is_none() || self.kms_key.is_none()
    }

    /// Every setting of an account by name, for people.
    pub(crate) fn named(&self) -> [(&'static str, Option<&Value>); 8] {
        [
            ("profile", self.profile.as_ref()),
            ("region", self.region.as_ref()),
            ("assume_role", self.assume_role.as_ref()),
            ("forensic_account", self.forensic_account.as_ref()),
            ("forensic_key", self.forensic_key.as_ref()),
            ("bucket", self.bucket.as_ref()),
            ("topic", self.topic.as_ref()),
            ("kms_key", self.kms_key.as_ref()),
        ]
    }

    /// Whether each value has the form of what it is for.
    ///
    /// # Errors
    /// Names the first that has not.
    pub(crate) fn check(&self) -> Result<(), SettingsError> {
        let form = |name, value: &Value, form| SettingsError::Form {
            name,
            source_of: value.source.to_string(),
            value: value.value.chars().take(200).collect(),
            form,
        };
        if let Some(bucket) = self.bucket.as_ref().filter(|v| !is_bucket(&v.value)) {
            return Err(form("bucket", bucket, "bucket's name"));
        }
        if let Some(topic) = self.topic.as_ref().filter(|v| !is_arn(&v.value, "sns", "")) {
            return Err(form("topic", topic, "SNS topic's ARN"));
        }
        for (name, role) in
            [("assume_role", &self.assume_role), ("forensic_account", &self.forensic_account)]
        {
            if let Some(role) = role.as_ref().filter(|v| !is_arn(&v.value, "iam", "role/")) {
                return Err(form(name, role, "IAM role's ARN"));
            }
        }
        let odd = |v: &&Value| v.value.chars().any(|c| c.is_whitespace() || c.is_control());
        for (name, key) in [("kms_key", &self.kms_key), ("forensic_key", &self.forensic_key)] {
            if let Some(key) = key.as_ref().filter(odd) {
                return Err(form(name, key, "KMS key's ARN"));
            }
        }
        Ok(())
    }
}

/// Three to 63 letters, digits, dots and hyphens (S3 bucket naming rules; upper case and underscores are of old
/// buckets).
fn is_bucket(name: &str) -> bool {
    (3..=63).contains(&name.len())
        && name.bytes().all(|b| b.is_ascii_alphanumeric() || b".-_".contains(&b))
}

/// `arn:PARTITION:SERVICE:REGION:ACCOUNT:RESOURCE`, the resource beginning as told.
fn is_arn(text: &str, service: &str, resource: &str) -> bool {
    let parts: Vec<_> = text.splitn(6, ':').collect();
    let [arn, partition, named, _, account, rest] = parts[..] else { return false };
    arn == "arn"
        && !partition.is_empty()
        && named == service
        && account.len() == 12
        && account.bytes().all(|b| b.is_ascii_digit())
        && rest.len() > resource.len()
        && rest.starts_with(resource)
        && text.bytes().all(|b| b.is_ascii_graphic())
}

/// The file to read: the one that is named, else the first that is there of `cleanroom.toml` in the working directory
/// and in the user's configuration folder.
pub(crate) fn find(named: Option<&Path>) -> Option<PathBuf> {
    if let Some(named) = named {
        return Some(named.to_owned());
    }
    let folder = |name: &str| env::var_os(name).map(PathBuf::from).filter(|p| p.is_absolute());
    let users = folder("XDG_CONFIG_HOME").or_else(|| Some(folder("HOME")?.join(".config")));
    let users = users.map(|folder| folder.join("cleanroom/cleanroom.toml"));
    [Some(PathBuf::from("cleanroom.toml")), users].into_iter().flatten().find(|path| path.is_file())
}

/// Reads a settings file.
///
/// # Errors
/// When it can not be read, or a line of it is no setting.
pub(crate) fn read(path: &Path) -> Result<File, SettingsError> {
    let error = |source| SettingsError::Read { path: path.to_owned(), source };
    let mut text = String::new();
    let file = std::fs::File::open(path).map_err(error)?;
    file.take(MAX_BYTES + 1).read_to_string(&mut text).map_err(error)?;
    if text.len() as u64 > MAX_BYTES {
        let why = "it is larger than 1 MiB".to_owned();
        return Err(Malformed { path: path.to_owned(), line: 1, why }.into());
    }
    Ok(parse(path, &text)?)
}

/// Decides where each value comes from.
pub(crate) fn decide(
    (flags, kms_key): (&Global, Option<&str>),
    env: &Env,
    file: &File,
    outputs: &BTreeMap<String, String>,
) -> Settings {
    let flag = |value: Option<&str>, name| {
        let value = value.filter(|v| !v.is_empty())?.to_owned();
        Some(Value { value, source: Source::Flag(name) })
    };
    let filed = |value: &Option<String>| {
        let value = value.clone().filter(|v| !v.is_empty())?;
        Some(Value { value, source: Source::File(file.path.clone()?) })
    };
    let output = |name| {
        let value = outputs.get(name).filter(|v| !v.is_empty())?.clone();
        Some(Value { value, source: Source::Output(name) })
    };
    Settings {
        profile: flag(flags.profile.as_deref(), "profile")
            .or_else(|| env.get("AWS_PROFILE"))
            .or_else(|| filed(&file.profile)),
        region: flag(flags.region.as_deref(), "region")
            .or_else(|| env.get("AWS_REGION"))
            .or_else(|| env.get("AWS_DEFAULT_REGION"))
            .or_else(|| filed(&file.region)),
        assume_role: flag(flags.assume_role.as_deref(), "assume-role")
            .or_else(|| filed(&file.assume_role)),
        forensic_account: flag(flags.forensic_account.as_deref(), "forensic-account")
            .or_else(|| env.get("CLEANROOM_FORENSIC_ACCOUNT"))
            .or_else(|| filed(&file.forensic_account)),
        forensic_key: flag(flags.forensic_key.as_deref(), "forensic-key")
            .or_else(|| env.get("CLEANROOM_FORENSIC_KEY"))
            .or_else(|| filed(&file.forensic_key)),
        bucket: flag(flags.bucket.as_deref(), "bucket")
            .or_else(|| env.get("CLEANROOM_BUCKET"))
            .or_else(|| filed(&file.bucket))
            .or_else(|| output("EvidenceBucket")),
        topic: flag(flags.topic.as_deref(), "topic")
            .or_else(|| env.get("CLEANROOM_TOPIC"))
            .or_else(|| filed(&file.topic))
            .or_else(|| output("NotifyTopic")),
        kms_key: flag(kms_key, "kms-key")
            .or_else(|| env.get("CLEANROOM_KMS_KEY"))
            .or_else(|| filed(&file.kms_key))
            .or_else(|| output("KmsKey")),
    }
}

/// What people want of a response, from flags and file.
pub(crate) fn policy(
    steps: std::collections::BTreeSet<cleanroom_controller::case::Step>,
    evidence: &Evidence,
    file: &File,
    key: Option<String>,
) -> cleanroom_controller::case::Policy {
    let set = file.policy();
    cleanroom_controller::case::Policy {
        steps,
        image: evidence.image || set.image,
        lock_days: evidence.lock.or(set.lock_days),
        key,
        acl: evidence.nacl || set.acl,
        require_custody: evidence.require_custody,
        ..set
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// One value from each source that is named.
    fn decided(sources: &str) -> Settings {
        let of = |c: char, text: &str| sources.contains(c).then(|| text.to_owned());
        let flags = Global {
            bucket: of('f', "flag"),
            topic: of('f', "flag"),
            region: of('f', "flag"),
            profile: of('f', "flag"),
            forensic_account: of('f', "flag"),
            forensic_key: of('f', "flag"),
            ..Global::default()
        };
        let mut env = Env::default();
        if sources.contains('e') {
            let all = [
                "CLEANROOM_BUCKET",
                "CLEANROOM_TOPIC",
                "CLEANROOM_KMS_KEY",
                "CLEANROOM_FORENSIC_ACCOUNT",
                "CLEANROOM_FORENSIC_KEY",
                "AWS_PROFILE",
            ];
            env.0.extend(all.map(|name| (name, "env".to_owned())));
            env.0.insert("AWS_DEFAULT_REGION", "env".to_owned());
        }
        let file = File {
            path: Some("cleanroom.toml".into()),
            bucket: of('t', "file"),
            topic: of('t', "file"),
            kms_key: of('t', "file"),
            region: of('t', "file"),
            profile: of('t', "file"),
            forensic_account: of('t', "file"),
            forensic_key: of('t', "file"),
            ..File::default()
        };
        let names = ["EvidenceBucket", "NotifyTopic", "KmsKey"];
        let outputs = names.into_iter().filter_map(|n| Some((n.to_owned(), of('o', "output")?)));
        decide((&flags, of('f', "flag").as_deref()), &env, &file, &outputs.collect())
    }

    #[test]
    fn each_value_comes_from_the_first_source_that_has_it() {
        use Source as S;
        let file = || S::File("cleanroom.toml".into());
        let table = [
            ("feto", Some(("flag", S::Flag("bucket")))),
            ("eto", Some(("env", S::Environment("CLEANROOM_BUCKET")))),
            ("to", Some(("file", file()))),
            ("o", Some(("output", S::Output("EvidenceBucket")))),
            ("", None),
            ("fo", Some(("flag", S::Flag("bucket")))),
        ];
        for (sources, expected) in table {
            let expected =
                expected.map(|(value, source)| Value { value: value.to_owned(), source });
            let settings = decided(sources);
            assert_eq!(settings.bucket, expected, "{sources}");
            let value = |v: Option<Value>| v.map(|v| v.value);
            let expected = value(expected);
            assert_eq!(value(settings.topic), expected, "{sources}");
            assert_eq!(value(settings.kms_key), expected, "{sources}");
            let account = expected.filter(|v| v != "output");
            assert_eq!(value(settings.region), account, "{sources}");
            assert_eq!(value(settings.profile), account, "{sources}");
            assert_eq!(value(settings.forensic_account), account, "{sources}");
            assert_eq!(value(settings.forensic_key), account, "{sources}");
        }
    }

    #[test]
    fn an_empty_value_is_none() {
        let flags = Global { bucket: Some(String::new()), ..Global::default() };
        let outputs = BTreeMap::from([("EvidenceBucket".to_owned(), "evidence".to_owned())]);
        let settings = decide((&flags, None), &Env::default(), &File::default(), &outputs);
        assert_eq!(settings.bucket.map(|v| v.source), Some(Source::Output("EvidenceBucket")));
    }

    #[test]
    fn a_value_of_another_form_is_refused_by_name_and_source() {
        let with = |bucket: &str, topic: &str, role: &str| {
            let value = |text: &str, name| {
                (!text.is_empty())
                    .then(|| Value { value: text.to_owned(), source: Source::Flag(name) })
            };
            Settings {
                bucket: value(bucket, "bucket"),
                topic: value(topic, "topic"),
                assume_role: value(role, "assume-role"),
                ..Settings::default()
            }
        };
        let good = with(
            "evidence-123456789012",
            "arn:aws:sns:us-east-1:123456789012:cleanroom",
            "arn:aws:iam::111122223333:role/path/responder",
        );
        good.check().expect("all have their forms");
        for (settings, error) in [
            (with("s3://x", "", ""), "bucket (--bucket): \"s3://x\" is no bucket's name"),
            (with("", "cleanroom", ""), "topic (--topic): \"cleanroom\" is no SNS topic's ARN"),
            (
                with("", "", "arn:aws:iam::1:role/x"),
                "assume_role (--assume-role): \"arn:aws:iam::1:role/x\" is no IAM role's ARN",
            ),
        ] {
            assert_eq!(settings.check().expect_err("it has no form").to_string(), error);
        }
    }

    #[test]
    fn flags_go_before_the_file() {
        let file = File {
            image: Some(true),
            lock_days: Some(30),
            severity_tenths: Some(70),
            exempt: vec!["role=bastion".to_owned()],
            ..File::default()
        };
        let of = |evidence: &Evidence| policy(Default::default(), evidence, &file, None);
        let from_file = of(&Evidence::default());
        assert_eq!((from_file.image, from_file.acl, from_file.lock_days), (true, false, Some(30)));
        assert_eq!((from_file.severity_tenths, from_file.exempt.len()), (70, 1));
        let flags = Evidence { lock: Some(7), nacl: true, ..Evidence::default() };
        assert_eq!((of(&flags).lock_days, of(&flags).acl), (Some(7), true));
    }
}
