//! The claimed ranges of a registry, in shards with a lock each.
//!
//! The space is cut into stripes, and each stripe belongs to one shard. The module's head says
//! what stands in which shard (C2) and under which locks it changes (C3).
//!
//! Many threads keep the shards alive, by their claims. One count of these would be a cache line
//! that all of them write, so each shard has a [`Keeper`] with a count of its own, made for the
//! first claim that needs it.

use alloc::collections::BTreeMap;
use alloc::sync::Arc;
use core::ops::DerefMut;
use core::{array, iter};

use iopt_formats::{Iova, IovaRange};

use crate::sync::{self, CachePadded, Mutex};

/// Shards of a registry, a power of two up to 16. Each has cache lines of its own, so that threads
/// that claim far from each other rarely meet.
const COUNT: usize = if cfg!(loom) { 2 } else { 16 };

/// Bytes of a stripe, as a power of two: what one leaf table of most formats translates, so that a
/// claim over one buffer seldom needs a second lock.
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

    /// Returns the shard of a set of one.
    fn only(self) -> Option<usize> {
        self.0
            .is_power_of_two()
            .then_some(self.0.trailing_zeros() as usize)
    }

    /// Returns the shards in rising order.
    fn iter(self) -> impl Iterator<Item = usize> {
        let mut rest = self.0;
        iter::from_fn(move || {
            let lowest = rest.trailing_zeros() as usize;
            rest &= rest.checked_sub(1)?;
            Some(lowest)
        })
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
#[derive(Default)]
struct Ranges(BTreeMap<Iova, Iova>);

impl Ranges {
    /// Returns the lowest range that shares an address with `range`.
    fn overlap(&self, range: IovaRange) -> Option<IovaRange> {
        let (&last, &start) = self.0.range(range.start()..).next()?;
        IovaRange::new(start, last).filter(|claimed| claimed.overlaps(range))
    }

    fn insert(&mut self, range: IovaRange) {
        let shadowed = self.0.insert(range.last(), range.start());
        debug_assert_eq!(shadowed, None, "C1: one claim ends at an address");
    }

    fn remove(&mut self, range: IovaRange) {
        let start = self.0.remove(&range.last());
        debug_assert_eq!(start, Some(range.start()), "C2: a claim is in its shards");
    }
}

#[derive(Default)]
struct Shard {
    ranges: Ranges,
    /// Made for the first claim that starts here; taken when no more can come.
    keeper: Option<Arc<Keeper>>,
}

/// All shards of a registry.
pub(super) struct Shards([CachePadded<Mutex<Shard>>; COUNT]);

/// What a claim holds of its registry: the shards, kept alive by a count that only claims of the
/// same shard share.
pub(super) struct Keeper(CachePadded<Arc<Shards>>);

impl Keeper {
    pub(super) fn shards(&self) -> &Arc<Shards> {
        &self.0
    }
}

impl Shards {
    pub(super) fn new() -> Self {
        let shard = |_| CachePadded::new(Mutex::new(&sync::CLAIMS, Shard::default()));
        Self(array::from_fn(shard))
    }

    /// Enters `range` in its shards, unless it shares an address with an entry, the lowest of
    /// which is the error.
    pub(super) fn claim(self: &Arc<Self>, range: IovaRange) -> Result<Arc<Keeper>, IovaRange> {
        let set = ShardSet::of(range);
        // The claim over one buffer, without the room for many guards.
        if let Some(only) = set.only() {
            let mut shard = self.0[only].lock();
            if let Some(with) = shard.ranges.overlap(range) {
                return Err(with);
            }
            shard.ranges.insert(range);
            return Ok(self.keeper(&mut shard));
        }
        let mut shards = self.lock(set);
        let found = set
            .iter()
            .filter_map(|index| shards.at(index).ranges.overlap(range));
        if let Some(with) = found.min_by_key(|entry| entry.start()) {
            return Err(with);
        }
        shards.insert(range);
        Ok(self.keeper(shards.at(shard(stripe(range.start())))))
    }

    /// Replaces the `old` entries by `new` ones. All shards of these are shards of `whole`.
    pub(super) fn replace(&self, whole: IovaRange, old: &[IovaRange], new: &[IovaRange]) {
        let mut shards = self.lock(ShardSet::of(whole));
        for &range in old {
            shards.remove(range);
        }
        for &range in new {
            shards.insert(range);
        }
    }

    /// Takes an entry out of its shards, one after the other.
    pub(super) fn release(&self, range: IovaRange) {
        for index in ShardSet::of(range).iter() {
            self.0[index].lock().ranges.remove(range);
        }
    }

    /// Returns the number of entries, each counted in one of its shards.
    pub(super) fn count(&self) -> usize {
        let counts = self.0.iter().enumerate().map(|(index, lock)| {
            let guard = lock.lock();
            let lasts = guard.ranges.0.keys();
            lasts.filter(|&&last| shard(stripe(last)) == index).count()
        });
        counts.sum()
    }

    /// Lets go of what keeps the shards alive for further claims, of which there will be none.
    pub(super) fn close(&self) {
        for shard in &self.0 {
            let keeper = shard.lock().keeper.take();
            drop(keeper);
        }
    }

    fn keeper(self: &Arc<Self>, shard: &mut Shard) -> Arc<Keeper> {
        let new = || Arc::new(Keeper(CachePadded::new(Arc::clone(self))));
        Arc::clone(shard.keeper.get_or_insert_with(new))
    }

    /// Locks the shards of a set, in rising order.
    fn lock(&self, set: ShardSet) -> Locked<impl DerefMut<Target = Shard>> {
        let mut guards = [const { None }; COUNT];
        for index in set.iter() {
            guards[index] = Some(self.0[index].lock_nested(index));
        }
        Locked(guards)
    }
}

/// Shards whose locks are held.
struct Locked<G>([Option<G>; COUNT]);

impl<G: DerefMut<Target = Shard>> Locked<G> {
    fn at(&mut self, index: usize) -> &mut Shard {
        self.0[index].as_mut().expect("C3: its lock is held")
    }

    fn insert(&mut self, range: IovaRange) {
        for index in ShardSet::of(range).iter() {
            self.at(index).ranges.insert(range);
        }
    }

    fn remove(&mut self, range: IovaRange) {
        for index in ShardSet::of(range).iter() {
            self.at(index).ranges.remove(range);
        }
    }
}

#[cfg(all(test, not(loom)))]
mod tests {
    use alloc::vec::Vec;

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
        let shards = Arc::new(Shards::new());
        for entry in [
            range(0, 0),
            range(STRIPE, 5 * STRIPE),
            range(1 << 40, u64::MAX),
        ] {
            shards.claim(entry).map(drop).expect("they do not overlap");
        }
        assert_eq!(shards.count(), 3);
        shards.close();
    }

    #[test]
    fn claims_of_one_shard_share_a_count_and_the_last_frees_the_shards() {
        let shards = Arc::new(Shards::new());
        let keepers: Vec<_> = (0..100)
            .map(|index| shards.claim(range(index * STRIPE, index * STRIPE)))
            .map(|claim| claim.expect("they do not overlap"))
            .collect();
        assert_eq!(Arc::strong_count(&shards), 1 + COUNT);
        shards.close();
        let weak = Arc::downgrade(&shards);
        drop(shards);
        assert!(weak.upgrade().is_some());
        drop(keepers);
        assert!(weak.upgrade().is_none());
    }
}
