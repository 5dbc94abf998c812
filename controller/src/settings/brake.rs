//! `[brake]` of the settings file: who may be contained without a person's word.

use std::{ops::RangeInclusive, time::Duration};

use crate::{
    alert::Source,
    brake::{AtDeadline, BrakePolicy},
};
use serde::Deserialize;
use toml::Spanned;

/// What may be counted to: more an hour is no brake.
const COUNT: RangeInclusive<i64> = 0..=10_000;
/// A person is waited for at least as long as it takes to ask one, and at most a week.
const MINUTES: RangeInclusive<i64> = 1..=10_080;

/// The file's own form; what is left out stays as it is.
#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub(super) struct Brake {
    per_hour: Option<Spanned<i64>>,
    per_group: Option<Spanned<i64>>,
    per_vpc: Option<Spanned<i64>>,
    ask_after: Vec<Spanned<String>>,
    severity: Option<Spanned<f64>>,
    deadline_minutes: Option<Spanned<i64>>,
    at_deadline: Option<AtDeadline>,
}

impl Brake {
    /// What holds.
    ///
    /// # Errors
    /// With what is wrong, and at which byte of the file.
    pub(super) fn policy(&self) -> Result<BrakePolicy, (usize, String)> {
        let default = BrakePolicy::default();
        let count = |given: &Option<Spanned<i64>>, name, default| {
            Ok(within(given.as_ref(), name, COUNT)?
                .map_or(default, |n| usize::try_from(n).unwrap_or(usize::MAX)))
        };
        for word in &self.ask_after {
            if !Source::WORDS.contains(&word.get_ref().as_str()) {
                let why = format!(
                    "{:?} is no source of alerts: ask_after takes {}",
                    word.get_ref(),
                    Source::WORDS.join(", ")
                );
                return Err((word.span().start, why));
            }
        }
        let minutes = within(self.deadline_minutes.as_ref(), "deadline_minutes", MINUTES)?;
        let seconds = minutes.map(|minutes| minutes.unsigned_abs().saturating_mul(60));
        Ok(BrakePolicy {
            per_hour: count(&self.per_hour, "per_hour", default.per_hour)?,
            per_group: count(&self.per_group, "per_group", default.per_group)?,
            per_vpc: count(&self.per_vpc, "per_vpc", default.per_vpc)?,
            ask_after: self.ask_after.iter().map(|word| word.get_ref().clone()).collect(),
            severity_tenths: self.severity(default.severity_tenths)?,
            deadline: seconds.map_or(default.deadline, Duration::from_secs),
            at_deadline: self.at_deadline.unwrap_or(default.at_deadline),
        })
    }

    fn severity(&self, default: u32) -> Result<u32, (usize, String)> {
        let Some(severity) = &self.severity else { return Ok(default) };
        if !(0.0..=10.0).contains(severity.get_ref()) {
            return Err((severity.span().start, "severity is from 0.0 to 10.0".to_owned()));
        }
        #[expect(
            clippy::cast_possible_truncation,
            clippy::cast_sign_loss,
            reason = "it is from 0 to 100"
        )]
        let tenths = (severity.get_ref() * 10.0).round() as u32;
        Ok(tenths)
    }
}

fn within(
    given: Option<&Spanned<i64>>,
    name: &str,
    range: RangeInclusive<i64>,
) -> Result<Option<i64>, (usize, String)> {
    let Some(given) = given else { return Ok(None) };
    if range.contains(given.get_ref()) {
        return Ok(Some(*given.get_ref()));
    }
    let why = format!("{name} is from {} to {}", range.start(), range.end());
    Err((given.span().start, why))
}
