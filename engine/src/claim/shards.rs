//! The claimed ranges of a registry, in shards with a lock each.
//!
//! The space is cut into stripes, and each stripe belongs to one shard. The module's head says
//! what stands in which shard (C2) and under which locks it changes (C3).

use alloc::collections::BTreeMap;
use core::array;
use core::ops::DerefMut;

use iopt_formats::{Iova, IovaRange};

use crate::sync::{self, CachePadded, Mutex};

/// Shards of a registry, a power of two up to 16. Each has cache lines of its own, so that threads
/// that claim far from each other rarely meet.
pub(super) const COUNT: usize = if cfg!(loom) { 2 } else { 16 };

/// Bytes of a stripe: what one leaf table of most formats translates, so that a claim over one
/// buffer seldom needs a second lock.
const STRIPE_LG2: u32 = 21;

/// The shards that hold one range.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
struct ShardSet(u16);

impl ShardSet {
    const ALL: Self = Self(((1_u32 << COUNT) - 1) as u16);

    /// Returns the shards of all stripes that `range` touches, or every shard if they are many:
    /// two ranges that share an address have a shard in common.
    fn of(range: IovaRange) -> Self {
        let (first, last) = (stripe(range.start()), stripe(range.last()));
        if last - first >= COUNT as u64 {
            return Self::ALL;
        }
        (first..=last).fold(Self(0), |set, stripe| Self(set.0 | 1 << shard(stripe)))
    }

    const fn has(self, shard: usize) -> bool {
        self.0 >> shard & 1 == 1
    }

    /// Returns the shards in rising order.
    fn iter(self) -> impl Iterator<Item = usize> {
        (0..COUNT).filter(move |&shard| self.has(shard))
    }
}

const fn stripe(iova: Iova) -> u64 {
    iova.get() >> STRIPE_LG2
}

/// Returns the shard of a stripe: a multiplicative hash, whose upper bits spread neighbours. Strides
/// of 1 GiB and more, at which programs like to place what belongs to one thread, are spread by the
/// folding, which brings the upper half of the number down.
const fn shard(stripe: u64) -> usize {
    /// 2^64 divided by the golden ratio, to the nearest odd number.
    const GOLDEN: u64 = 0x9e37_79b9_7f4a_7c15;
    let folded = stripe ^ stripe >> 20;
    (folded.wrapping_mul(GOLDEN) >> (u64::BITS - COUNT.ilog2())) as usize
}

/// The ranges of one shard, by their last address: a closed interval has one even at the top of
/// the space.
#[derive(Debug, Default)]
pub(super) struct Ranges(BTreeMap<Iova, Iova>);

impl Ranges {
    /// Returns the lowest range that shares an address with `range`.
    fn overlap(&self, range: IovaRange) -> Option<IovaRange> {
        let (&last, &start) = self.0.range(range.start()..).next()?;
        IovaRange::new(start, last).filter(|claimed| claimed.overlaps(range))
    }
}

/// All shards of a registry.
pub(super) struct Shards([CachePadded<Mutex<Ranges>>; COUNT]);

impl Shards {
    pub(super) fn new() -> Self {
        let shard = |_| CachePadded::new(Mutex::new(&sync::CLAIMS, Ranges::default()));
        Self(array::from_fn(shard))
    }

    /// Locks the shards of `range`, in rising order.
    pub(super) fn lock(&self, range: IovaRange) -> Locked<impl DerefMut<Target = Ranges>> {
        let set = ShardSet::of(range);
        let mut guards = [const { None }; COUNT];
        for shard in set.iter() {
            guards[shard] = Some(self.0[shard].lock_nested(shard));
        }
        Locked(guards)
    }
}

/// Shards whose locks are held.
pub(super) struct Locked<G>([Option<G>; COUNT]);

impl<G: DerefMut<Target = Ranges>> Locked<G> {
    /// Returns the lowest entry that shares an address with `range`, all of whose shards are
    /// locked.
    pub(super) fn overlap(&self, range: IovaRange) -> Option<IovaRange> {
        let shards = ShardSet::of(range).iter();
        let found = shards.filter_map(|shard| self.ranges(shard).overlap(range));
        found.min_by_key(|entry| entry.start())
    }

    /// Enters `range` in all of its shards, which are locked.
    pub(super) fn insert(&mut self, range: IovaRange) {
        for shard in ShardSet::of(range).iter() {
            let shadowed = self.ranges_mut(shard).0.insert(range.last(), range.start());
            debug_assert_eq!(shadowed, None, "C1: one claim ends at an address");
        }
    }

    /// Takes `range` out of all of its shards, which are locked.
    pub(super) fn remove(&mut self, range: IovaRange) {
        for shard in ShardSet::of(range).iter() {
            let start = self.ranges_mut(shard).0.remove(&range.last());
            debug_assert_eq!(start, Some(range.start()), "C2: a claim is in its shards");
        }
    }

    /// Returns the number of entries, each counted once, in the locked shards.
    pub(super) fn count(&self) -> usize {
        let shards = self.0.iter().enumerate();
        let homes = shards.map(|(home, guard)| {
            let entries = guard.iter().flat_map(|ranges| ranges.0.keys());
            // An entry counts in one of its shards.
            entries.filter(|&&last| shard(stripe(last)) == home).count()
        });
        homes.sum()
    }

    fn ranges(&self, shard: usize) -> &Ranges {
        self.0[shard].as_ref().expect("C3: its lock is held")
    }

    fn ranges_mut(&mut self, shard: usize) -> &mut Ranges {
        self.0[shard].as_mut().expect("C3: its lock is held")
    }
}

#[cfg(all(test, not(loom)))]
mod tests {
    use super::*;

    const STRIPE: u64 = 1 << STRIPE_LG2;

    fn range(start: u64, last: u64) -> IovaRange {
        IovaRange::new(Iova::new(start), Iova::new(last)).expect("last is not below start")
    }

    /// Stripes tried: more than there are shards.
    const STRIPES: u64 = 40;

    #[test]
    #[cfg_attr(miri, ignore = "arithmetic alone, and much of it")]
    fn a_range_is_in_the_shards_of_its_stripes_or_in_all() {
        for start in [0, 1, STRIPE - 1, 7 * STRIPE, u64::MAX - STRIPES * STRIPE] {
            for len in (1..STRIPES).flat_map(|count| [count * STRIPE, count * STRIPE + 1]) {
                let whole = range(start, start + (len - 1));
                let stripes = stripe(whole.start())..=stripe(whole.last());
                let is_long = stripes.clone().count() > COUNT;
                let needed = stripes.map(shard).fold(0, |set, shard| set | 1 << shard);
                let found = ShardSet::of(whole);
                assert!(
                    found == ShardSet(needed) || is_long && found == ShardSet::ALL,
                    "{whole}"
                );
            }
        }
        assert_eq!(ShardSet::of(IovaRange::FULL), ShardSet::ALL);
    }

    /// So the locks of a whole suffice to divide it (C4).
    #[test]
    #[cfg_attr(miri, ignore = "arithmetic alone, and much of it")]
    fn parts_are_in_shards_of_the_whole() {
        for start in [3 * STRIPE - 1, 3 * STRIPE] {
            let ends = (4..STRIPES).flat_map(|end| [end * STRIPE - 1, end * STRIPE]);
            for whole in ends.map(|last| range(start, last)) {
                for at in (4..STRIPES).map(|end| Iova::new(end * STRIPE)) {
                    let lower = IovaRange::new(whole.start(), at);
                    let upper = IovaRange::new(at, whole.last());
                    for part in [lower, upper].into_iter().flatten() {
                        let outside = ShardSet::of(part).0 & !ShardSet::of(whole).0;
                        assert!(outside == 0 || !whole.contains(part), "{part} of {whole}");
                    }
                }
            }
        }
    }

    #[test]
    #[cfg_attr(miri, ignore = "arithmetic alone, and much of it")]
    fn no_stride_brings_all_claims_to_one_shard() {
        for stride_lg2 in STRIPE_LG2..60 {
            for offset in [0, 1, 5, 100] {
                let mut met = [0; COUNT];
                for index in 0..COUNT as u64 {
                    let iova = (offset * STRIPE).wrapping_add(index << stride_lg2);
                    met[shard(stripe(Iova::new(iova)))] += 1;
                }
                let most = met.into_iter().max();
                assert!(most <= Some(COUNT / 4), "2^{stride_lg2}: {met:?}");
            }
        }
    }

    #[test]
    fn a_registry_without_claims_is_small() {
        assert!(size_of::<Shards>() <= 2560 - 128);
    }

    #[test]
    fn an_entry_of_many_shards_counts_once() {
        let shards = Shards::new();
        for entry in [
            range(0, 0),
            range(STRIPE, 5 * STRIPE),
            range(1 << 40, u64::MAX),
        ] {
            shards.lock(entry).insert(entry);
        }
        assert_eq!(shards.lock(IovaRange::FULL).count(), 3);
    }
}
