//! Numbers that look random and are the same each time, which tests draw moments from. Pure.

use std::time::Duration;

/// A source of numbers: SplitMix64 (Steele, Lea and Flood, "Fast splittable pseudorandom number generators", 2014).
#[derive(Debug)]
pub struct Numbers(u64);

impl Numbers {
    /// A source that begins anew with each seed.
    #[must_use]
    pub fn new(seed: u64) -> Self {
        Self(seed)
    }

    /// A part of a duration, in thousandths of it.
    pub fn part_of(&mut self, whole: Duration) -> Duration {
        self.0 = self.0.wrapping_add(0x9E37_79B9_7F4A_7C15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
        whole.mul_f64(((z ^ (z >> 31)) % 1000) as f64 / 1000.0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn parts_are_the_same_each_time_and_never_the_whole() {
        let parts = |seed| {
            let mut numbers = Numbers::new(seed);
            [(); 20].map(|()| numbers.part_of(Duration::from_secs(10)))
        };
        assert_eq!(parts(1), parts(1));
        assert_ne!(parts(1), parts(2));
        assert!(parts(1).iter().all(|part| *part < Duration::from_secs(10)));
    }
}
