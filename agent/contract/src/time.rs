//! Times of the evidence, to the nanosecond and over the whole range a file system can store.

use std::fmt;

use serde::{Deserialize, Deserializer, Serialize, Serializer, de::Error as _};

/// Seconds and nanoseconds since 1970-01-01T00:00:00Z.
///
/// Text is RFC 3339 in UTC with nine decimals. An inode can hold times that have no such text (btrfs
/// stores 64 bits of seconds): those read `@seconds.nanoseconds`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Timestamp {
    /// Whole seconds, negative before 1970.
    pub seconds: i64,
    /// 0 to 999,999,999, counted forwards from `seconds`.
    pub nanos: u32,
}

/// The seconds whose year has four digits, 0000 to 9999 (RFC 3339, section 5.6).
const FOUR_DIGIT_YEARS: std::ops::RangeInclusive<i64> = -62_167_219_200..=253_402_300_799;

impl fmt::Display for Timestamp {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if !FOUR_DIGIT_YEARS.contains(&self.seconds) {
            return write!(f, "@{}.{:09}", self.seconds, self.nanos);
        }
        let (days, second) = (self.seconds.div_euclid(86_400), self.seconds.rem_euclid(86_400));
        let (year, month, day) = civil_from_days(days);
        write!(
            f,
            "{year:04}-{month:02}-{day:02}T{:02}:{:02}:{:02}.{:09}Z",
            second / 3600,
            second / 60 % 60,
            second % 60,
            self.nanos
        )
    }
}

/// The proleptic Gregorian date of a day counted from 1970-01-01; the algorithm counts years from
/// March so that the leap day is the last of its year.
fn civil_from_days(days: i64) -> (i64, i64, i64) {
    let shifted = days + 719_468;
    let era = shifted.div_euclid(146_097);
    let day_of_era = shifted.rem_euclid(146_097);
    let year_of_era =
        (day_of_era - day_of_era / 1460 + day_of_era / 36_524 - day_of_era / 146_096) / 365;
    let day_of_year = day_of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
    let from_march = (5 * day_of_year + 2) / 153;
    let month = if from_march < 10 { from_march + 3 } else { from_march - 9 };
    let year = year_of_era + era * 400 + i64::from(month <= 2);
    (year, month, day_of_year - (153 * from_march + 2) / 5 + 1)
}

/// The inverse of [`civil_from_days`].
fn days_from_civil(year: i64, month: i64, day: i64) -> i64 {
    let from_march = if month > 2 { month - 3 } else { month + 9 };
    let year = year - i64::from(month <= 2);
    let year_of_era = year.rem_euclid(400);
    let day_of_era =
        365 * year_of_era + year_of_era / 4 - year_of_era / 100 + (153 * from_march + 2) / 5 + day
            - 1;
    year.div_euclid(400) * 146_097 + day_of_era - 719_468
}

/// Reads exactly the form that `Display` writes.
fn parse_rfc_3339(text: &str) -> Option<Timestamp> {
    const FORM: &[u8] = b"0000-00-00T00:00:00.000000000Z";
    let bytes = text.as_bytes();
    let fits = bytes.len() == FORM.len()
        && bytes
            .iter()
            .zip(FORM)
            .all(|(b, f)| if *f == b'0' { b.is_ascii_digit() } else { b == f });
    if !fits {
        return None;
    }
    let number = |range: std::ops::Range<usize>| text[range].parse::<i64>().ok();
    let (month, day) = (number(5..7)?, number(8..10)?);
    let days = days_from_civil(number(0..4)?, month, day);
    let (hour, minute, second) = (number(11..13)?, number(14..16)?, number(17..19)?);
    let real = civil_from_days(days) == (number(0..4)?, month, day) && (1..=12).contains(&month);
    (real && hour < 24 && minute < 60 && second < 60).then_some(Timestamp {
        seconds: days * 86_400 + hour * 3600 + minute * 60 + second,
        nanos: u32::try_from(number(20..29)?).ok()?,
    })
}

impl Serialize for Timestamp {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for Timestamp {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = String::deserialize(deserializer)?;
        if let Some((seconds, nanos)) = text.strip_prefix('@').and_then(|t| t.split_once('.')) {
            return match (seconds.parse(), nanos.parse()) {
                (Ok(seconds), Ok(nanos @ 0..1_000_000_000)) => Ok(Self { seconds, nanos }),
                _ => Err(D::Error::custom(format!("{text:?} is not @seconds.nanoseconds"))),
            };
        }
        parse_rfc_3339(&text).ok_or_else(|| {
            D::Error::custom(format!("{text:?} is not a UTC time with nine decimals"))
        })
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn known_instants_read_as_rfc_3339() {
        for (seconds, nanos, text) in [
            (0, 0, "1970-01-01T00:00:00.000000000Z"),
            (-1, 999_999_999, "1969-12-31T23:59:59.999999999Z"),
            (951_782_400, 1, "2000-02-29T00:00:00.000000001Z"),
            (253_402_300_799, 0, "9999-12-31T23:59:59.000000000Z"),
            (253_402_300_800, 0, "@253402300800.000000000"),
            (i64::MIN, 5, "@-9223372036854775808.000000005"),
        ] {
            assert_eq!(Timestamp { seconds, nanos }.to_string(), text);
        }
    }

    #[test]
    fn text_that_is_no_time_is_refused() {
        for bad in [
            "",
            "2000-02-30T00:00:00.000000000Z",
            "2000-13-01T00:00:00.000000000Z",
            "2000-01-01T24:00:00.000000000Z",
            "2000-01-01T00:00:00Z",
            "@1",
            "@1.9999999999",
        ] {
            assert!(serde_json::from_str::<Timestamp>(&format!("{bad:?}")).is_err(), "{bad}");
        }
    }

    proptest! {
        #[test]
        fn text_round_trips(seconds in any::<i64>(), near in -62_167_219_200..253_402_300_800_i64, nanos in 0..1_000_000_000_u32) {
            for seconds in [seconds, near] {
                let time = Timestamp { seconds, nanos };
                let json = serde_json::to_string(&time).unwrap();
                prop_assert_eq!(serde_json::from_str::<Timestamp>(&json).unwrap(), time);
            }
        }
    }
}
