//! What the function's environment says: which entrance it is, and where everything lies.
//!
//! Pure: variables in, values out. `cloudformation/response.yaml` sets them; Lambda sets its own.

use cleanroom_controller::intake::Way;

/// What Lambda itself sets, and its runtime can not do without.
const LAMBDA: [&str; 4] = [
    "AWS_LAMBDA_RUNTIME_API",
    "AWS_LAMBDA_FUNCTION_NAME",
    "AWS_LAMBDA_FUNCTION_MEMORY_SIZE",
    "AWS_LAMBDA_FUNCTION_VERSION",
];

/// Hours after which an open case is worth a warning, where nothing says otherwise.
const CASE_HOURS: f64 = 72.0;

/// Why the program can not begin.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub(crate) enum EnvironmentError {
    /// A variable is missing, empty, or not of its form.
    #[error("the variable {0} is missing or wrong: the response stack and Lambda set it")]
    Variable(&'static str),
    /// There is no such entrance.
    #[error("the handler {0:?} is none of intake, step, contain-only")]
    Handler(String),
}

/// Which of the three functions this process is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Entrance {
    /// Takes alerts, and starts executions.
    Intake(Way),
    /// Does the step that it is told.
    Step,
    /// Isolates and tells, whatever else is broken.
    ContainOnly,
}

impl Entrance {
    /// Its handler's name.
    pub(crate) fn word(&self) -> &'static str {
        match self {
            Self::Intake(_) => "intake",
            Self::Step => "step",
            Self::ContainOnly => "contain-only",
        }
    }
}

/// An object in a bucket.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Place {
    pub bucket: String,
    pub key: String,
}

/// All of it.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Environment {
    pub entrance: Entrance,
    /// The response stack, as metrics name it.
    pub stack: String,
    /// The evidence bucket; without one it contains all the same.
    pub bucket: Option<String>,
    /// The team's topic.
    pub topic: Option<String>,
    /// The evidence's key.
    pub key: Option<String>,
    /// The settings file.
    pub settings: Option<Place>,
    /// The role that CloudFormation makes rooms in.
    pub room_role: Option<String>,
    /// The permissions boundary of a room's role.
    pub room_boundary: Option<String>,
    /// Hours after which an open case is worth a warning.
    pub case_hours: f64,
}

impl Environment {
    /// Reads the variables, which `named` looks up. An empty one counts as none.
    ///
    /// # Errors
    /// When something is missing without which nothing can begin.
    pub(crate) fn read(named: impl Fn(&str) -> Option<String>) -> Result<Self, EnvironmentError> {
        let get = |name| named(name).filter(|value| !value.is_empty());
        let need = |name| get(name).ok_or(EnvironmentError::Variable(name));
        for name in LAMBDA {
            need(name)?;
        }
        let memory = LAMBDA[2];
        need(memory)?.parse::<i32>().map_err(|_| EnvironmentError::Variable(memory))?;
        let entrance = match need("_HANDLER")?.as_str() {
            "intake" => Entrance::Intake(Way {
                machine: need("CLEANROOM_MACHINE")?,
                many: need("CLEANROOM_MANY")?,
                queue: need("CLEANROOM_DEAD_LETTERS")?,
                at_once: number("CLEANROOM_AT_ONCE", &get, 10_000)?,
                pace: number("CLEANROOM_PACE", &get, 120)?,
            }),
            "step" => Entrance::Step,
            "contain-only" => Entrance::ContainOnly,
            other => return Err(EnvironmentError::Handler(other.chars().take(100).collect())),
        };
        let function = need("AWS_LAMBDA_FUNCTION_NAME")?;
        let stack = function.strip_suffix(&format!("-{}", entrance.word())).unwrap_or(&function);
        let hours = get("CLEANROOM_CASE_HOURS").and_then(|text| text.parse::<f64>().ok());
        Ok(Self {
            stack: stack.to_owned(),
            bucket: get("CLEANROOM_BUCKET"),
            topic: get("CLEANROOM_TOPIC"),
            key: get("CLEANROOM_KMS_KEY"),
            settings: get("CLEANROOM_SETTINGS").map(|text| place(&text)).transpose()?,
            room_role: get("CLEANROOM_ROOM_ROLE"),
            room_boundary: get("CLEANROOM_ROOM_BOUNDARY"),
            case_hours: hours.filter(|hours| *hours > 0.0).unwrap_or(CASE_HOURS),
            entrance,
        })
    }
}

/// A number from 1 to `most`, which the state machine for many instances takes.
fn number(
    name: &'static str,
    get: &impl Fn(&'static str) -> Option<String>,
    most: u32,
) -> Result<u32, EnvironmentError> {
    let number = get(name).and_then(|text| text.parse().ok());
    number.filter(|n| (1..=most).contains(n)).ok_or(EnvironmentError::Variable(name))
}

/// `s3://bucket/key`.
fn place(text: &str) -> Result<Place, EnvironmentError> {
    text.strip_prefix("s3://")
        .and_then(|rest| rest.split_once('/'))
        .filter(|(bucket, key)| !bucket.is_empty() && !key.is_empty())
        .map(|(bucket, key)| Place { bucket: bucket.to_owned(), key: key.to_owned() })
        .ok_or(EnvironmentError::Variable("CLEANROOM_SETTINGS"))
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use super::*;

    fn read(handler: &str, more: &[(&str, &str)]) -> Result<Environment, EnvironmentError> {
        let mut all = BTreeMap::from([
            ("AWS_LAMBDA_RUNTIME_API", "127.0.0.1:9001"),
            ("AWS_LAMBDA_FUNCTION_NAME", "cleanroom-contain-only"),
            ("AWS_LAMBDA_FUNCTION_MEMORY_SIZE", "512"),
            ("AWS_LAMBDA_FUNCTION_VERSION", "$LATEST"),
            ("CLEANROOM_MACHINE", "arn:aws:states:us-east-1:123456789012:stateMachine:x"),
            ("CLEANROOM_MANY", "arn:aws:states:us-east-1:123456789012:stateMachine:y"),
            ("CLEANROOM_DEAD_LETTERS", "https://sqs.us-east-1.amazonaws.com/123456789012/z"),
            ("CLEANROOM_AT_ONCE", "50"),
            ("CLEANROOM_PACE", "2"),
            ("_HANDLER", handler),
        ]);
        all.extend(more.iter().copied());
        Environment::read(|name| all.get(name).map(|value| (*value).to_owned()))
    }

    #[test]
    fn an_entrance_needs_what_it_leads_to_and_no_more() {
        let environment = read("contain-only", &[("CLEANROOM_BUCKET", ""), ("CLEANROOM_PACE", "")]);
        let environment = environment.expect("it needs no bucket, and no pace");
        assert_eq!(environment.entrance, Entrance::ContainOnly);
        assert_eq!((environment.stack.as_str(), environment.bucket), ("cleanroom", None));
        let Ok(Environment { entrance: Entrance::Intake(way), .. }) = read("intake", &[]) else {
            panic!("everything is there");
        };
        assert_eq!((way.at_once, way.pace), (50, 2));
        for (name, value) in [
            ("CLEANROOM_MANY", ""),
            ("CLEANROOM_AT_ONCE", "0"),
            ("CLEANROOM_PACE", "121"),
            ("CLEANROOM_SETTINGS", "s3://bucket"),
            ("AWS_LAMBDA_FUNCTION_MEMORY_SIZE", "much"),
        ] {
            let wrong = read("intake", &[(name, value)]).expect_err(name);
            assert_eq!(wrong, EnvironmentError::Variable(name));
        }
        assert_eq!(read("main", &[]), Err(EnvironmentError::Handler("main".to_owned())));
    }

    #[test]
    fn settings_lie_in_a_bucket_under_a_key() {
        let read = read("step", &[("CLEANROOM_SETTINGS", "s3://artifacts/a/cleanroom.toml")]);
        let place = read.expect("it is a place").settings.expect("it is set");
        assert_eq!((place.bucket.as_str(), place.key.as_str()), ("artifacts", "a/cleanroom.toml"));
    }
}
