//! The machine that a program runs on: its clock and its randomness.
//!
//! For composition roots only: whatever else needs a time or a nonce is given one, so that tests decide both. Touches the
//! system's clock and its random numbers.

use std::io;

use cleanroom_contract::Timestamp;

use crate::case::Clock;

/// The system's time of day.
#[derive(Clone, Copy, Debug)]
pub struct SystemClock;

impl Clock for SystemClock {
    #[expect(clippy::disallowed_methods, reason = "the one place where the clock is read")]
    fn now(&self) -> Timestamp {
        let since =
            std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap_or_default();
        Timestamp {
            seconds: i64::try_from(since.as_secs()).unwrap_or(i64::MAX),
            nanos: since.subsec_nanos(),
        }
    }
}

/// Thirty-two hexadecimal digits that nobody else has.
///
/// # Errors
/// When the system has no randomness.
pub fn nonce() -> io::Result<String> {
    let mut bytes = [0_u8; 16];
    let mut filled = 0;
    while filled < bytes.len() {
        let flags = rustix::rand::GetRandomFlags::empty();
        filled += rustix::rand::getrandom(&mut bytes[filled..], flags)?;
    }
    Ok(bytes.iter().map(|byte| format!("{byte:02x}")).collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nonces_are_hexadecimal_and_differ() {
        let (one, other) = (nonce().expect("randomness"), nonce().expect("randomness"));
        assert_eq!(one.len(), 32);
        assert!(one.bytes().all(|b| b.is_ascii_hexdigit()));
        assert_ne!(one, other);
    }
}
