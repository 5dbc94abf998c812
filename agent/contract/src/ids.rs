//! Names that refuse malformed input.

use std::{fmt, str::FromStr};

use serde::{Deserialize, Serialize};

/// A name that does not have the form its kind requires.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{value:?} is not a {kind}: {expected}")]
pub struct InvalidId {
    kind: &'static str,
    value: String,
    expected: &'static str,
}

/// Declares a newtype over `String` with one validity predicate.
macro_rules! id {
    ($(#[$doc:meta])* $name:ident, $kind:literal, $expected:literal, $valid:expr) => {
        $(#[$doc])*
        #[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
        #[serde(try_from = "String", into = "String")]
        pub struct $name(String);

        impl $name {
            /// The name as text.
            #[must_use]
            pub fn as_str(&self) -> &str {
                &self.0
            }
        }

        impl FromStr for $name {
            type Err = InvalidId;

            fn from_str(text: &str) -> Result<Self, InvalidId> {
                let valid: fn(&str) -> bool = $valid;
                if valid(text) {
                    Ok(Self(text.to_owned()))
                } else {
                    // A hostile name may be long: show enough to recognise it.
                    let value = text.chars().take(80).collect();
                    Err(InvalidId { kind: $kind, value, expected: $expected })
                }
            }
        }

        impl TryFrom<String> for $name {
            type Error = InvalidId;

            fn try_from(text: String) -> Result<Self, InvalidId> {
                text.parse()
            }
        }

        impl From<$name> for String {
            fn from(id: $name) -> Self {
                id.0
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(&self.0)
            }
        }
    };
}

/// `prefix` followed by 8 or 17 lower-case hexadecimal digits, the two forms EC2 has issued.
fn is_ec2_id(text: &str, prefix: &str) -> bool {
    text.strip_prefix(prefix).is_some_and(|hex| {
        matches!(hex.len(), 8 | 17)
            && hex.bytes().all(|b| b.is_ascii_digit() || (b'a'..=b'f').contains(&b))
    })
}

id!(
    /// A case: 1 to 64 of `A-Z a-z 0-9 - _ .`, starting with a letter or digit, so that it is safe
    /// as an object key, a tag value and a folder name.
    CaseId,
    "case id",
    "1 to 64 letters, digits, '-', '_' or '.', starting with a letter or digit",
    |text| {
        (1..=64).contains(&text.len())
            && text.starts_with(|c: char| c.is_ascii_alphanumeric())
            && text.bytes().all(|b| b.is_ascii_alphanumeric() || b"-_.".contains(&b))
    }
);

id!(
    /// An EC2 instance, `i-` and 8 or 17 hexadecimal digits.
    InstanceId,
    "instance id",
    "i- and 8 or 17 lower-case hexadecimal digits",
    |text| is_ec2_id(text, "i-")
);

id!(
    /// An EBS volume, `vol-` and 8 or 17 hexadecimal digits.
    VolumeId,
    "volume id",
    "vol- and 8 or 17 lower-case hexadecimal digits",
    |text| is_ec2_id(text, "vol-")
);

id!(
    /// An EBS snapshot, `snap-` and 8 or 17 hexadecimal digits.
    SnapshotId,
    "snapshot id",
    "snap- and 8 or 17 lower-case hexadecimal digits",
    |text| is_ec2_id(text, "snap-")
);

id!(
    /// One scan of a case's evidence: when it was ordered, in UTC, and 8 random hexadecimal digits, as in
    /// `20260102T030405Z-0123abcd`. Sorted by its bytes it is sorted by time.
    ScanId,
    "scan id",
    "a time like 20260102T030405Z, a hyphen and 8 lower-case hexadecimal digits",
    |text| {
        let lower_hex = |b: u8| b.is_ascii_digit() || (b'a'..=b'f').contains(&b);
        text.len() == 25
            && text.bytes().enumerate().all(|(at, b)| match at {
                8 => b == b'T',
                15 => b == b'Z',
                16 => b == b'-',
                0..=14 => b.is_ascii_digit(),
                _ => lower_hex(b),
            })
    }
);

/// A SHA-256 digest (FIPS 180-4), 32 bytes; text is 64 hexadecimal digits, written in lower case.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct Sha256(pub [u8; 32]);

impl Sha256 {
    /// The digest's bytes.
    #[must_use]
    pub fn as_bytes(&self) -> &[u8; 32] {
        &self.0
    }
}

impl FromStr for Sha256 {
    type Err = InvalidId;

    fn from_str(text: &str) -> Result<Self, InvalidId> {
        let digest = (|| {
            let text = text.as_bytes();
            let mut digest = [0; 32];
            if text.len() != 64 {
                return None;
            }
            for (byte, pair) in digest.iter_mut().zip(text.chunks_exact(2)) {
                let high = (pair[0] as char).to_digit(16)?;
                let low = (pair[1] as char).to_digit(16)?;
                *byte = u8::try_from(high << 4 | low).ok()?;
            }
            Some(digest)
        })();
        digest.map(Sha256).ok_or_else(|| InvalidId {
            kind: "SHA-256",
            value: text.chars().take(80).collect(),
            expected: "64 hexadecimal digits",
        })
    }
}

impl TryFrom<String> for Sha256 {
    type Error = InvalidId;

    fn try_from(text: String) -> Result<Self, InvalidId> {
        text.parse()
    }
}

impl From<Sha256> for String {
    fn from(digest: Sha256) -> Self {
        digest.to_string()
    }
}

impl fmt::Display for Sha256 {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        const DIGITS: &[u8; 16] = b"0123456789abcdef";
        let mut text = [0; 64];
        for (pair, byte) in text.chunks_exact_mut(2).zip(self.0) {
            pair[0] = DIGITS[usize::from(byte >> 4)];
            pair[1] = DIGITS[usize::from(byte & 15)];
        }
        f.write_str(std::str::from_utf8(&text).map_err(|_| fmt::Error)?)
    }
}

impl fmt::Debug for Sha256 {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Sha256({self})")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ec2_ids_have_eight_or_seventeen_digits() {
        for good in ["i-0abcdef0", "i-0123456789abcdef0"] {
            assert_eq!(good.parse::<InstanceId>().unwrap().as_str(), good);
        }
        for bad in
            ["", "i-", "i-0abcdef", "I-0abcdef0", "i-0ABCDEF0", "vol-0abcdef0", "i-0abcdef0\n"]
        {
            assert!(bad.parse::<InstanceId>().is_err(), "{bad:?}");
        }
        assert!("vol-0123456789abcdef0".parse::<VolumeId>().is_ok());
        assert!("snap-0123456789abcdef0".parse::<SnapshotId>().is_ok());
    }

    #[test]
    fn a_case_id_is_safe_as_a_folder_and_a_key() {
        assert!("2026-03-01.web_7".parse::<CaseId>().is_ok());
        for bad in ["", ".", "..", "../x", "a/b", "-x", "a b", &"x".repeat(65)] {
            assert!(bad.parse::<CaseId>().is_err(), "{bad:?}");
        }
    }

    #[test]
    fn sha256_text_round_trips_and_refuses_other_lengths() {
        let text = "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855";
        let digest: Sha256 = text.to_uppercase().parse().unwrap();
        assert_eq!(digest.to_string(), text);
        assert!(text[1..].parse::<Sha256>().is_err());
        assert!(format!("{}+f", &text[2..]).parse::<Sha256>().is_err());
        assert!(serde_json::from_str::<Sha256>("\"zz\"").is_err());
    }
}
