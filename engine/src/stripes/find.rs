//! Finding entries.

use iopt_formats::{Iova, IovaRange};
use smallvec::{CollectionAllocErr, SmallVec};

use super::{ShardSet, Stripes, shard, stripe};

/// Entries that were found; mostly one.
pub(crate) type Entries<V> = SmallVec<[(IovaRange, V); 1]>;

impl<V: Clone, X: Default, const COUNT: usize> Stripes<V, X, COUNT> {
    /// Returns the entry that holds `iova`.
    pub(crate) fn get(&self, iova: Iova) -> Option<(IovaRange, V)> {
        let at = IovaRange::new(iova, iova)?;
        let shard = self.0[shard::<COUNT>(stripe(iova))].lock();
        let (range, value) = shard.ranges.overlap(at)?;
        Some((range, value.clone()))
    }

    /// Returns the entry with exactly this range.
    #[inline]
    pub(crate) fn get_exact(&self, range: IovaRange) -> Option<V> {
        let shard = self.0[shard::<COUNT>(stripe(range.start()))].lock();
        shard.ranges.get_exact(range).cloned()
    }

    /// Calls `each` with the entries that share an address with `range`, in no order, under the lock of
    /// a shard, until it returns false. One that stands in several shards may come several times.
    pub(crate) fn each_overlapping(
        &self,
        range: IovaRange,
        mut each: impl FnMut(IovaRange, &V) -> bool,
    ) {
        for index in ShardSet::<COUNT>::of(range).iter() {
            let shard = self.0[index].lock();
            for (entry, value) in shard.ranges.overlapping(range) {
                if !each(entry, value) {
                    return;
                }
            }
        }
    }

    /// Calls `each` with all entries, shard by shard and with no lock held, a few at a time: every one
    /// that is there from beginning to end, at least once. Needs no memory.
    pub(crate) fn each(&self, mut each: impl FnMut(IovaRange, &V)) {
        for shard in &self.0 {
            let mut from = Some(Iova::new(0));
            while let Some(lowest) = from {
                let mut some: SmallVec<[(IovaRange, V); 16]> = SmallVec::new();
                let guard = shard.lock();
                let rest = IovaRange::new(lowest, IovaRange::FULL.last());
                let entries = rest.map(|rest| guard.ranges.overlapping(rest));
                for (entry, value) in entries.into_iter().flatten().take(some.inline_size()) {
                    some.push((entry, value.clone()));
                }
                drop(guard);
                let is_full = some.len() == some.inline_size();
                let highest = some.last().map(|(entry, _)| entry.last());
                from = highest
                    .and_then(|last| last.checked_add(1))
                    .filter(|_| is_full);
                for (entry, value) in &some {
                    each(*entry, value);
                }
            }
        }
    }

    /// Returns the entries that share an address with `range`, in rising order: what stood there at
    /// some moment of the call, shard by shard.
    ///
    /// # Errors
    ///
    /// [`CollectionAllocErr`] if there is no memory for them.
    pub(crate) fn overlapping(&self, range: IovaRange) -> Result<Entries<V>, CollectionAllocErr> {
        let mut found = Entries::new();
        let mut room = Ok(());
        self.each_overlapping(range, |entry, value| {
            if found.len() == found.capacity() {
                room = found.try_reserve(found.len().max(1));
            }
            if room.is_ok() {
                found.push((entry, value.clone()));
            }
            room.is_ok()
        });
        room?;
        if found.len() > 1 {
            found.sort_unstable_by_key(|(entry, _)| entry.start());
            found.dedup_by_key(|(entry, _)| entry.start());
        }
        Ok(found)
    }
}
