//! Ranges of the IOVA space that do not overlap, in shards with a lock each.
//!
//! The space is cut into stripes of 2 MiB, and each stripe belongs to one shard. A range is an entry of
//! every shard that one of its stripes belongs to; one over many stripes is an entry of all. Two ranges
//! that share an address share its stripe, hence a shard, and there the second finds the first.
//!
//! Who adds entries holds the locks of all shards in question together, from the search for overlaps to
//! the last entry; locks are taken in rising order. An entry goes from one shard after the other:
//! meanwhile it refuses what overlaps it wherever it still stands.

use core::alloc::Layout;
use core::ops::DerefMut;
use core::{array, iter};

use iopt_formats::{Iova, IovaRange};

use crate::intervals::disjoint::{DisjointList, InsertError};
use crate::sync::{CachePadded, Class, Mutex};

#[cfg(feature = "std")]
mod find;

/// Bytes of a stripe, as a power of two: what one leaf table of most formats translates, so that one
/// buffer seldom needs a second lock.
pub(crate) const STRIPE_LG2: u32 = 21;

/// The shards, of a power of two up to 64, that hold one range.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
struct ShardSet<const COUNT: usize>(u64);

impl<const COUNT: usize> ShardSet<COUNT> {
    const ALL: Self = Self(u64::MAX >> (u64::BITS as usize - COUNT));

    /// Returns the shards of all stripes that `range` touches, or every shard if they are many.
    #[inline]
    fn of(range: IovaRange) -> Self {
        let (first, last) = (stripe(range.start()), stripe(range.last()));
        if last - first >= COUNT as u64 {
            return Self::ALL;
        }
        (first..=last).fold(Self(0), |set, stripe| {
            Self(set.0 | 1 << shard::<COUNT>(stripe))
        })
    }

    /// Returns the shard of a set of one.
    #[inline]
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
const fn shard<const COUNT: usize>(stripe: u64) -> usize {
    /// 2^64 divided by the golden ratio, to the nearest odd number.
    const GOLDEN: u64 = 0x9e37_79b9_7f4a_7c15;
    let folded = stripe ^ stripe >> 20;
    (folded.wrapping_mul(GOLDEN) >> (u64::BITS - COUNT.ilog2())) as usize
}

/// The ranges of one shard.
struct Ranges<V>(DisjointList<V>);

impl<V> Ranges<V> {
    /// Returns the lowest range that shares an address with `range`.
    fn overlap(&self, range: IovaRange) -> Option<(IovaRange, &V)> {
        self.overlapping(range).next()
    }

    /// Returns the value of exactly this range.
    #[cfg(feature = "std")]
    fn get_exact(&self, range: IovaRange) -> Option<&V> {
        let found = self.0.find_exact(range.start().get(), range.last().get());
        found.map(|entry| self.0.get(entry))
    }

    /// Enters a range.
    fn insert(&mut self, range: IovaRange, value: V) -> Result<(), EnterError> {
        let inserted = self
            .0
            .insert(range.start().get(), range.last().get(), value);
        inserted.map_err(|error| match error {
            InsertError::Overlap { start, last } => {
                let with = IovaRange::new(Iova::new(start), Iova::new(last));
                EnterError::Overlap(with.unwrap_or(range))
            }
            InsertError::OutOfMemory => EnterError::OutOfMemory,
        })
    }

    fn remove(&mut self, range: IovaRange) {
        let entry = self.0.find_exact(range.start().get(), range.last().get());
        debug_assert!(entry.is_some(), "an entry is in its shards");
        if let Some(entry) = entry {
            self.0.remove(entry);
        }
    }

    /// Returns the entries that share an address with `range`, in order.
    fn overlapping(&self, range: IovaRange) -> impl Iterator<Item = (IovaRange, &V)> {
        let entries = self.0.overlapping(range.start().get(), range.last().get());
        entries.filter_map(|(start, last, value)| {
            Some((IovaRange::new(Iova::new(start), Iova::new(last))?, value))
        })
    }
}

/// Ends the program as an allocation that cannot fail does.
pub(crate) fn no_memory() -> ! {
    alloc::alloc::handle_alloc_error(Layout::new::<[IovaRange; 64]>())
}

/// Why a range is not entered.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(crate) enum EnterError {
    /// It shares an address with entries, of which this is the lowest that was met.
    Overlap(IovaRange),
    /// There is no memory.
    OutOfMemory,
}

/// One shard: its entries, and what else its lock guards.
struct Shard<V, X> {
    ranges: Ranges<V>,
    extra: X,
}

/// The ranges, each with a value, and `X` beside the ranges of each shard.
pub(crate) struct Stripes<V, X, const COUNT: usize>([CachePadded<Mutex<Shard<V, X>>>; COUNT]);

impl<V: Clone, X: Default, const COUNT: usize> Stripes<V, X, COUNT> {
    /// Creates an empty set, whose locks are of `class`.
    pub(crate) fn new(class: &'static Class) -> Self {
        let shard = |_| {
            let shard = Shard {
                ranges: Ranges(DisjointList::new()),
                extra: X::default(),
            };
            CachePadded::new(Mutex::new(class, shard))
        };
        Self(array::from_fn(shard))
    }

    /// Enters `range` in its shards and returns what `then` makes of the shard of its first address;
    /// unless it shares an address with an entry.
    ///
    /// # Errors
    ///
    /// [`EnterError`]; nothing has changed then.
    pub(crate) fn insert<R>(
        &self,
        range: IovaRange,
        value: V,
        then: impl FnOnce(&mut X) -> R,
    ) -> Result<R, EnterError> {
        let set = ShardSet::<COUNT>::of(range);
        // One buffer, without the room for many guards.
        if let Some(only) = set.only() {
            let mut shard = self.0[only].lock();
            shard.ranges.insert(range, value)?;
            return Ok(then(&mut shard.extra));
        }
        let mut shards = self.lock(set);
        let found = set
            .iter()
            .filter_map(|index| Some(shards.at(index).ranges.overlap(range)?.0));
        if let Some(with) = found.min_by_key(|entry| entry.start()) {
            return Err(EnterError::Overlap(with));
        }
        for index in set.iter() {
            let entered = shards.at(index).ranges.insert(range, value.clone());
            if entered.is_err() {
                for done in set.iter().take_while(|&done| done != index) {
                    shards.at(done).ranges.remove(range);
                }
            }
            entered?;
        }
        let first = shard::<COUNT>(stripe(range.start()));
        Ok(then(&mut shards.at(first).extra))
    }

    /// Replaces the `old` entries by `new` ones. All shards of these are shards of `whole`.
    pub(crate) fn replace(&self, whole: IovaRange, old: &[IovaRange], new: &[(IovaRange, V)]) {
        let mut shards = self.lock(ShardSet::of(whole));
        for &range in old {
            shards.remove(range);
        }
        for (range, value) in new {
            shards.insert(*range, value);
        }
    }

    /// Takes an entry out of its shards, one after the other.
    pub(crate) fn remove(&self, range: IovaRange) {
        for index in ShardSet::<COUNT>::of(range).iter() {
            self.0[index].lock().ranges.remove(range);
        }
    }

    /// Returns the number of entries, each counted in one of its shards.
    pub(crate) fn count(&self) -> usize {
        let counts = self.0.iter().enumerate().map(|(index, lock)| {
            let guard = lock.lock();
            let entries = guard.ranges.overlapping(IovaRange::FULL);
            entries
                .filter(|(entry, _)| shard::<COUNT>(stripe(entry.last())) == index)
                .count()
        });
        counts.sum()
    }

    /// Calls `each` with what stands beside the ranges of each shard.
    pub(crate) fn each_extra(&self, mut each: impl FnMut(&mut X)) {
        for shard in &self.0 {
            each(&mut shard.lock().extra);
        }
    }

    /// Locks the shards of a set, in rising order.
    fn lock(&self, set: ShardSet<COUNT>) -> Locked<impl DerefMut<Target = Shard<V, X>>, COUNT> {
        let mut guards = [const { None }; COUNT];
        for index in set.iter() {
            guards[index] = Some(self.0[index].lock_nested(index));
        }
        Locked(guards)
    }
}

/// Shards whose locks are held.
struct Locked<G, const COUNT: usize>([Option<G>; COUNT]);

impl<V: Clone, X, G: DerefMut<Target = Shard<V, X>>, const COUNT: usize> Locked<G, COUNT> {
    fn at(&mut self, index: usize) -> &mut Shard<V, X> {
        self.0[index].as_mut().expect("its lock is held")
    }

    fn insert(&mut self, range: IovaRange, value: &V) {
        for index in ShardSet::<COUNT>::of(range).iter() {
            let entered = self.at(index).ranges.insert(range, value.clone());
            match entered {
                Ok(()) => {}
                Err(EnterError::OutOfMemory) => no_memory(),
                Err(EnterError::Overlap(with)) => {
                    debug_assert!(false, "{with} is where an entry is replaced");
                }
            }
        }
    }

    fn remove(&mut self, range: IovaRange) {
        for index in ShardSet::<COUNT>::of(range).iter() {
            self.at(index).ranges.remove(range);
        }
    }
}

#[cfg(all(test, not(loom)))]
mod tests {
    use super::*;

    const COUNT: usize = 16;

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
                let needed = stripes
                    .map(shard::<COUNT>)
                    .fold(0, |set, shard| set | 1 << shard);
                let found = ShardSet::<COUNT>::of(whole);
                assert!(
                    found == ShardSet::<COUNT>(needed)
                        || is_long && found == ShardSet::<COUNT>::ALL,
                    "{whole}"
                );
            }
        }
        assert_eq!(
            ShardSet::<COUNT>::of(IovaRange::FULL),
            ShardSet::<COUNT>::ALL
        );
    }

    /// So the locks of a whole suffice to divide it .
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
                        let outside =
                            ShardSet::<COUNT>::of(part).0 & !ShardSet::<COUNT>::of(whole).0;
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
                    met[shard::<COUNT>(stripe(Iova::new(iova)))] += 1;
                }
                let most = met.into_iter().max();
                assert!(most <= Some(COUNT / 4), "2^{stride_lg2}: {met:?}");
            }
        }
    }

    #[test]
    fn entries_are_found_by_any_address_and_in_order() {
        let stripes = Stripes::<u32, (), COUNT>::new(&crate::sync::CLAIMS);
        let entries = [
            range(0, 0),
            range(STRIPE - 1, 3 * STRIPE),
            range(1 << 40, u64::MAX),
        ];
        for (value, &entry) in (0..3).zip(&entries).rev() {
            stripes
                .insert(entry, value, |()| ())
                .expect("they do not overlap");
        }
        assert_eq!(stripes.count(), 3);
        let got = |iova| stripes.get(Iova::new(iova)).map(|(_, value)| value);
        let found = [0, 1, STRIPE - 1, 3 * STRIPE, 3 * STRIPE + 1, u64::MAX].map(got);
        assert_eq!(found, [Some(0), None, Some(1), Some(1), None, Some(2)]);
        let overlapping = |range| stripes.overlapping(range).expect("there is memory");
        assert_eq!(
            overlapping(IovaRange::FULL)[..],
            [(entries[0], 0), (entries[1], 1), (entries[2], 2)]
        );
        assert_eq!(overlapping(range(1, STRIPE))[..], [(entries[1], 1)]);
        stripes.remove(entries[1]);
        assert_eq!(overlapping(range(1, STRIPE))[..], []);
    }
}
