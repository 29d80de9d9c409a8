//! Times by the million: counted in buckets, so that keeping them costs a thread nothing.

/// Buckets that share a power of two; a bucket's width is at most this part of its values.
const STEP_COUNT_LG2: u32 = 5;

const STEP_COUNT: u64 = 1 << STEP_COUNT_LG2;

/// Counts of times, in nanoseconds, to 3 %; the longest is exact.
#[derive(Clone, Debug)]
pub struct Histogram {
    counts: Vec<u64>,
    count: u64,
    max: u64,
}

impl Default for Histogram {
    fn default() -> Self {
        Self {
            counts: vec![0; bucket_of(u64::MAX) + 1],
            count: 0,
            max: 0,
        }
    }
}

impl Histogram {
    /// Adds a time.
    #[inline]
    pub fn add(&mut self, ns: u64) {
        self.counts[bucket_of(ns)] += 1;
        self.count += 1;
        self.max = self.max.max(ns);
    }

    /// Adds all of `other`.
    pub fn merge(&mut self, other: &Self) {
        for (count, other) in self.counts.iter_mut().zip(&other.counts) {
            *count += other;
        }
        self.count += other.count;
        self.max = self.max.max(other.max);
    }

    /// Forgets everything.
    pub fn clear(&mut self) {
        self.counts.fill(0);
        (self.count, self.max) = (0, 0);
    }

    /// Returns how many times were added.
    pub const fn count(&self) -> u64 {
        self.count
    }

    /// Returns the longest time, or 0.
    pub const fn max(&self) -> u64 {
        self.max
    }

    /// Returns how many times were longer than `ns`, which the bucket of `ns` hides some of.
    pub fn count_above(&self, ns: u64) -> u64 {
        self.counts[bucket_of(ns) + 1..].iter().sum()
    }

    /// Returns the time that a part `part`, 0 to 1, of all times did not exceed, or 0.
    pub fn quantile(&self, part: f64) -> u64 {
        #[expect(clippy::cast_sign_loss, reason = "a part of a count is not negative")]
        let wanted = ((self.count as f64 * part).ceil() as u64).max(1);
        let mut seen = 0;
        for (bucket, count) in self.counts.iter().enumerate() {
            seen += count;
            if seen >= wanted {
                return last_of(bucket).min(self.max);
            }
        }
        self.max
    }
}

/// Returns the bucket of a time.
#[inline]
fn bucket_of(ns: u64) -> usize {
    if ns < STEP_COUNT {
        return ns as usize;
    }
    let shift = ns.ilog2() - STEP_COUNT_LG2;
    // The top bit of the shifted time is always set and counts as one more power of two.
    (u64::from(shift) * STEP_COUNT + (ns >> shift)) as usize
}

/// Returns the longest time of a bucket.
fn last_of(bucket: usize) -> u64 {
    let bucket = bucket as u64;
    if bucket < STEP_COUNT {
        return bucket;
    }
    let shift = bucket / STEP_COUNT - 1;
    let top = STEP_COUNT + bucket % STEP_COUNT;
    (top << shift) + ((1 << shift) - 1)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn buckets_follow_each_other_without_gaps() {
        let mut start = 0_u64;
        for bucket in 0..=bucket_of(u64::MAX) {
            let last = last_of(bucket);
            assert_eq!((bucket_of(start), bucket_of(last)), (bucket, bucket));
            assert!(last - start <= start / STEP_COUNT);
            start = last.wrapping_add(1);
        }
        assert_eq!(start, 0);
    }

    #[test]
    fn quantiles_are_those_of_all_times() {
        let mut histogram = Histogram::default();
        assert_eq!((histogram.quantile(0.5), histogram.max()), (0, 0));
        for ns in 1..=1000 {
            histogram.add(ns);
        }
        let of_exact = |part| histogram.quantile(part) as f64 / (part * 1000.0);
        for part in [0.01, 0.5, 0.99, 0.999] {
            assert!((1.0..1.04).contains(&of_exact(part)), "{part}");
        }
        assert_eq!(histogram.quantile(1.0), 1000);
    }

    #[test]
    fn a_merge_counts_the_times_of_both() {
        let (mut one, mut other) = (Histogram::default(), Histogram::default());
        one.add(7);
        other.add(9);
        other.add(30);
        one.merge(&other);
        assert_eq!((one.count(), one.quantile(0.5), one.max()), (3, 9, 30));
        one.clear();
        assert_eq!((one.count(), one.max()), (0, 0));
    }
}
