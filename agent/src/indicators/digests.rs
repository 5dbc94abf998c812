//! A set of digests that is looked up in two bounded steps.

use rayon::prelude::*;

/// Digests by their first 16 bits.
const BUCKETS: usize = 1 << 16;

/// A digest and the number of the list that holds it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
struct Entry<const N: usize> {
    digest: [u8; N],
    list: u16,
}

/// Digests of `N` bytes in order, and where those of each bucket begin: first the bucket, then a binary
/// search in it, of about 15 entries for a million digests.
#[derive(Debug)]
pub(super) struct DigestTable<const N: usize> {
    entries: Vec<Entry<N>>,
    /// One more than buckets; empty where there are no entries.
    starts: Vec<usize>,
}

impl<const N: usize> DigestTable<N> {
    /// A table of all `parts`, each the number of a list and digests of it.
    ///
    /// Digests are spread evenly, so they are first counted into their buckets and moved there, and only the
    /// buckets are sorted.
    pub(super) fn new(parts: Vec<(u16, Vec<[u8; N]>)>) -> Self {
        let total = parts.iter().map(|(_, digests)| digests.len()).sum();
        if total == 0 {
            return Self { entries: Vec::new(), starts: Vec::new() };
        }
        let mut starts = vec![0; BUCKETS + 1];
        for (_, digests) in &parts {
            for digest in digests {
                starts[bucket(digest) + 1] += 1;
            }
        }
        let mut sum = 0;
        for start in &mut starts {
            sum += *start;
            *start = sum;
        }
        let mut next = starts.clone();
        let mut entries = vec![Entry { digest: [0; N], list: 0 }; total];
        for (list, digests) in parts {
            for digest in digests {
                let place = &mut next[bucket(&digest)];
                entries[*place] = Entry { digest, list };
                *place += 1;
            }
        }
        sort_buckets(&mut entries, &starts);
        Self { entries, starts }
    }

    /// Whether there are none.
    pub(super) fn is_empty(&self) -> bool {
        self.entries.is_empty()
    }

    /// The first list that holds `digest`.
    pub(super) fn find(&self, digest: &[u8; N]) -> Option<u16> {
        let bucket = bucket(digest);
        let range = *self.starts.get(bucket)?..*self.starts.get(bucket + 1)?;
        let entries = self.entries.get(range)?;
        let at = entries.partition_point(|entry| entry.digest < *digest);
        entries.get(at).filter(|entry| entry.digest == *digest).map(|entry| entry.list)
    }
}

fn bucket<const N: usize>(digest: &[u8; N]) -> usize {
    match digest.as_slice() {
        [first, second, ..] => usize::from(*first) << 8 | usize::from(*second),
        _ => 0,
    }
}

/// Sorts each bucket by digest, then list. Buckets go to threads in groups.
fn sort_buckets<const N: usize>(entries: &mut [Entry<N>], starts: &[usize]) {
    const GROUP: usize = 1024;
    let mut groups = Vec::new();
    let mut rest = entries;
    for group in starts.windows(GROUP + 1).step_by(GROUP) {
        let length = group.last().unwrap_or(&0) - group.first().unwrap_or(&0);
        let (these, others) = rest.split_at_mut(length);
        groups.push((these, group));
        rest = others;
    }
    groups.into_par_iter().for_each(|(mut these, group)| {
        for pair in group.windows(2) {
            let (bucket, others) = these.split_at_mut(pair[1] - pair[0]);
            if bucket.len() > 1 {
                bucket.sort_unstable();
            }
            these = others;
        }
    });
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_first_and_the_last_bucket_are_searched() {
        let table = DigestTable::new(vec![(3, vec![[0; 16], [0xff; 16]]), (1, vec![[0; 16]])]);
        assert_eq!(table.find(&[0; 16]), Some(1));
        assert_eq!(table.find(&[0xff; 16]), Some(3));
        assert_eq!(table.find(&[1; 16]), None);
    }

    #[test]
    fn no_digests_hold_nothing() {
        let table = DigestTable::<20>::new(vec![(0, Vec::new())]);
        assert!(table.is_empty() && table.find(&[0; 20]).is_none());
    }
}
