//! Numbers, times and evidence text as people read them.
//!
//! Purpose: one way of writing each in the report and on the terminal. Pure. Never rounds without
//! the exact number beside it in the report.

use cleanroom_contract::{Timestamp, printable};

/// A whole number with a comma between each three digits: `53,687,091,200`.
pub(crate) fn grouped(number: u64) -> String {
    let digits = number.to_string();
    let mut out = String::with_capacity(digits.len() + digits.len() / 3);
    for (index, digit) in digits.chars().enumerate() {
        if index > 0 && (digits.len() - index).is_multiple_of(3) {
            out.push(',');
        }
        out.push(digit);
    }
    out
}

/// Bytes in binary units to one decimal, rounded down: `50.0 GiB`.
pub(crate) fn size(bytes: u64) -> String {
    const UNITS: [&str; 6] = ["KiB", "MiB", "GiB", "TiB", "PiB", "EiB"];
    let mut whole = bytes;
    let mut tenths = 0;
    let mut unit = "bytes";
    for next in UNITS {
        if whole < 1024 {
            break;
        }
        tenths = (whole % 1024) * 10 / 1024;
        whole /= 1024;
        unit = next;
    }
    match unit {
        "bytes" if whole == 1 => "1 byte".to_owned(),
        "bytes" => format!("{whole} bytes"),
        _ => format!("{whole}.{tenths} {unit}"),
    }
}

/// A number and its noun: `1 finding`, `2,000 findings`.
pub(crate) fn counted(number: u64, noun: &str) -> String {
    let plural = if number == 1 { "" } else { "s" };
    format!("{} {noun}{plural}", grouped(number))
}

/// A time to the second, in UTC: `2026-03-01 12:34:56 UTC`; the `@seconds` form where it has no date.
pub(crate) fn instant(time: Timestamp) -> String {
    let text = time.to_string();
    match (text.get(..10), text.get(11..19)) {
        (Some(day), Some(clock)) if !text.starts_with('@') => format!("{day} {clock} UTC"),
        _ => text,
    }
}

/// The time between two instants to the second: `1 h 02 min 03 s`; empty where the end is before
/// the start, as a clock that was set back makes it.
pub(crate) fn span(from: Timestamp, to: Timestamp) -> String {
    match to.seconds.checked_sub(from.seconds).and_then(|s| u64::try_from(s).ok()) {
        None => String::new(),
        Some(s) if s < 60 => format!("{s} s"),
        Some(s) if s < 3600 => format!("{} min {:02} s", s / 60, s % 60),
        Some(s) => format!("{} h {:02} min {:02} s", grouped(s / 3600), s / 60 % 60, s % 60),
    }
}

/// Text that its writer has already made [`printable`], or that this program composed, made safe once
/// more without doubling its backslashes: what is hidden is still escaped, whoever forgot it.
pub(crate) fn prose(text: &str) -> String {
    // In printable text a run of backslashes is pairs, then at most one that begins an escape, so
    // that undoing the pairs from the left undoes exactly the doubling.
    printable(text).replace("\\\\", "\\")
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn numbers_are_grouped_from_the_right() {
        for (number, text) in
            [(0, "0"), (999, "999"), (1000, "1,000"), (53_687_091_200, "53,687,091,200")]
        {
            assert_eq!(grouped(number), text);
        }
        assert_eq!(counted(1, "gap"), "1 gap");
        assert_eq!(counted(1200, "gap"), "1,200 gaps");
    }

    #[test]
    fn sizes_are_never_rounded_up() {
        for (bytes, text) in [
            (0, "0 bytes"),
            (1, "1 byte"),
            (1023, "1023 bytes"),
            (1024, "1.0 KiB"),
            (1_048_575, "1023.9 KiB"),
            (53_687_091_200, "50.0 GiB"),
            (u64::MAX, "15.9 EiB"),
        ] {
            assert_eq!(size(bytes), text);
        }
    }

    #[test]
    fn times_and_spans_read_as_people_write_them() {
        let at = |seconds| Timestamp { seconds, nanos: 7 };
        assert_eq!(instant(at(1_772_368_496)), "2026-03-01 12:34:56 UTC");
        assert_eq!(instant(at(i64::MIN)), "@-9223372036854775808.000000007");
        assert_eq!(span(at(0), at(3723)), "1 h 02 min 03 s");
        assert_eq!(span(at(0), at(61)), "1 min 01 s");
        assert_eq!(span(at(5), at(5)), "0 s");
        assert_eq!(span(at(5), at(4)), "");
        assert_eq!(span(at(i64::MIN), at(i64::MAX)), "");
    }

    #[test]
    fn prose_keeps_escapes_and_adds_the_forgotten_ones() {
        for (text, shown) in
            [(r"a\u{1b}b", r"a\u{1b}b"), ("a\u{1b}b", r"a\u{1b}b"), ("\\\u{1b}\\\\", r"\\u{1b}\\")]
        {
            assert_eq!(prose(text), shown);
        }
    }

    proptest! {
        #[test]
        fn prose_leaves_printable_text_alone(text in ".*") {
            let once = printable(&text);
            prop_assert_eq!(prose(&once), once);
        }
    }
}
