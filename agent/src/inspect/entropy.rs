//! Byte histogram and Shannon entropy.
//!
//! Purpose: how evenly the bytes of a content are spread, fed block by block as it is read. Touches the
//! bytes it is given. Never keeps them, and never reads ahead.

/// Tables that are counted into in turn. One table would make neighbouring equal bytes wait for each
/// other's store (0.4 GB/s on zeros, measured); four still do a little; eight need 8 KiB, which a
/// first-level cache holds beside the data.
const TABLES: usize = 8;

/// Bytes counted before the tables are added up. The shortcut for runs adds 32 to one counter at a
/// time, so that a counter can reach the number of bytes: it has to stay within 32 bits.
const FLUSH_EVERY: usize = 1 << 30;

/// Fewer bytes than this are counted one by one: most files are small, and adding up the tables would
/// take longer than counting.
const SHORT: usize = 4 << 10;

/// Counts of the byte values of a content.
#[derive(Clone, Debug)]
pub(crate) struct Histogram {
    /// Made when there is more than a little to count.
    tables: Option<Box<[[u32; 256]; TABLES]>>,
    /// Bytes in `tables`, at most [`FLUSH_EVERY`].
    pending: usize,
    totals: [u64; 256],
}

impl Histogram {
    /// An empty histogram.
    pub(crate) fn new() -> Self {
        Self { tables: None, pending: 0, totals: [0; 256] }
    }

    /// Counts the bytes of the next block.
    pub(crate) fn update(&mut self, data: &[u8]) {
        if data.len() < SHORT {
            for byte in data {
                self.totals[usize::from(*byte)] += 1;
            }
            return;
        }
        for piece in data.chunks(FLUSH_EVERY) {
            if self.pending + piece.len() > FLUSH_EVERY {
                self.flush();
            }
            let tables = self.tables.get_or_insert_with(|| Box::new([[0; 256]; TABLES]));
            count(tables, piece);
            self.pending += piece.len();
        }
    }

    /// Counts `zeros` zero bytes that need not be read: a hole of a sparse file.
    pub(crate) fn add_zeros(&mut self, zeros: u64) {
        self.totals[0] = self.totals[0].saturating_add(zeros);
    }

    /// Shannon entropy in bits a byte, 0 to 8, to three decimals. 0 for no bytes at all.
    pub(crate) fn entropy(&self) -> f64 {
        let mut totals = self.totals;
        if let Some(tables) = &self.tables {
            add_up(tables, &mut totals);
        }
        let all = totals.iter().fold(0_u64, |sum, count| sum.saturating_add(*count));
        if all == 0 {
            return 0.0;
        }
        let bits: f64 = totals
            .iter()
            .filter(|count| **count > 0)
            .map(|count| {
                let share = *count as f64 / all as f64;
                -share * share.log2()
            })
            .sum();
        // `abs` for the negative zero that a single byte value gives.
        ((bits * 1000.0).round() / 1000.0).abs().min(8.0)
    }

    fn flush(&mut self) {
        if let Some(tables) = &mut self.tables {
            add_up(tables, &mut self.totals);
            tables.iter_mut().for_each(|table| table.fill(0));
        }
        self.pending = 0;
    }
}

/// The entropy of one piece of content, as [`Histogram::entropy`] gives it.
pub(crate) fn entropy_of(data: &[u8]) -> f64 {
    let mut histogram = Histogram::new();
    histogram.update(data);
    histogram.entropy()
}

fn add_up(tables: &[[u32; 256]; TABLES], totals: &mut [u64; 256]) {
    for table in tables {
        for (total, count) in totals.iter_mut().zip(table) {
            *total = total.saturating_add(u64::from(*count));
        }
    }
}

/// Counts `data`. A table has 256 counters and its index is a byte, so that no bound is checked; the
/// additions wrap because [`FLUSH_EVERY`] keeps them from ever overflowing.
fn count(tables: &mut [[u32; 256]; TABLES], data: &[u8]) {
    let (blocks, rest) = data.as_chunks::<32>();
    for block in blocks {
        let (words, _) = block.as_chunks::<8>();
        let [one, two, three, four] = words else { continue };
        let [one, two, three, four] = [one, two, three, four].map(|word| u64::from_le_bytes(*word));
        // Long runs of one byte are common in images and pre-allocated files. On other data the first
        // comparison fails nearly always, which a branch predictor learns.
        if one == two && one == three && one == four && one == one.rotate_left(8) {
            let counter = &mut tables[0][usize::from(block[0])];
            *counter = counter.wrapping_add(32);
        } else {
            count_word(tables, one);
            count_word(tables, two);
            count_word(tables, three);
            count_word(tables, four);
        }
    }
    for byte in rest {
        let counter = &mut tables[0][usize::from(*byte)];
        *counter = counter.wrapping_add(1);
    }
}

#[inline(always)]
fn count_word(tables: &mut [[u32; 256]; TABLES], word: u64) {
    for (table, byte) in tables.iter_mut().zip(word.to_le_bytes()) {
        let counter = &mut table[usize::from(byte)];
        *counter = counter.wrapping_add(1);
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn known_distributions_have_known_entropy() {
        let all: Vec<u8> = (0..=255).cycle().take(4096).collect();
        for (data, bits) in [
            (Vec::new(), 0.0),
            (vec![0; 1000], 0.0),
            (vec![0xff; 33], 0.0),
            (b"ab".repeat(99), 1.0),
            (b"aaab".repeat(64), 0.811),
            (all, 8.0),
        ] {
            let entropy = entropy_of(&data);
            assert!(
                (entropy - bits).abs() < 1e-9 && entropy.is_sign_positive(),
                "{entropy} is not {bits}"
            );
        }
    }

    #[test]
    fn a_hole_counts_as_the_zeros_it_stands_for() {
        let mut read = Histogram::new();
        read.update(&[0; 5000]);
        read.update(b"data at the end");
        let mut skipped = Histogram::new();
        skipped.add_zeros(5000);
        skipped.update(b"data at the end");
        assert_eq!(read.entropy(), skipped.entropy());
        skipped.add_zeros(u64::MAX);
        assert_eq!(skipped.entropy(), 0.0);
    }

    #[test]
    fn flushing_loses_nothing() {
        let mut histogram = Histogram::new();
        histogram.update(&b"abc".repeat(SHORT));
        histogram.pending = FLUSH_EVERY;
        histogram.update(&b"d".repeat(SHORT));
        assert_eq!((histogram.pending, histogram.entropy()), (SHORT, 2.0));
    }

    proptest! {
        #[test]
        fn blocks_count_as_the_whole(
            data in proptest::collection::vec(prop_oneof![Just(7_u8), any::<u8>()], 0..300),
            run in 0..2 * SHORT,
            cut in 0..2 * SHORT,
        ) {
            let mut data = data;
            data.extend(std::iter::repeat_n(9, run));
            let (one, two) = data.split_at(cut.min(data.len()));
            let mut histogram = Histogram::new();
            histogram.update(one);
            histogram.update(two);
            let mut plain = [0_u64; 256];
            for byte in &data {
                plain[usize::from(*byte)] += 1;
            }
            histogram.flush();
            prop_assert_eq!(histogram.totals, plain);
            prop_assert_eq!(histogram.entropy(), entropy_of(&data));
        }
    }
}
