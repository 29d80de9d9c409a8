//! The claimed ranges of a registry.
//!
//! Many threads keep the shards alive, by their claims. One count of these would be a cache line
//! that all of them write, so each shard has a [`Keeper`] with a count of its own, made for the
//! first claim that needs it.

use alloc::sync::Arc;

use iopt_formats::IovaRange;

use crate::stripes::{EnterError, Stripes, no_memory};
use crate::sync::{self, CachePadded};

/// Shards of a registry. Each has cache lines of its own, so that threads that claim far from each
/// other rarely meet.
const COUNT: usize = if cfg!(loom) { 2 } else { 16 };

/// All shards of a registry. A keeper is made for the first claim that starts in a shard, and taken
/// when no more can come.
pub(super) struct Shards(Stripes<(), Option<Arc<Keeper>>, COUNT>);

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
        Self(Stripes::new(&sync::CLAIMS))
    }

    /// Enters `range`, unless it shares an address with an entry, the lowest of which is the error.
    pub(super) fn claim(self: &Arc<Self>, range: IovaRange) -> Result<Arc<Keeper>, IovaRange> {
        let entered = self.0.insert(range, (), |keeper| {
            let new = || Arc::new(Keeper(CachePadded::new(Arc::clone(self))));
            Arc::clone(keeper.get_or_insert_with(new))
        });
        entered.map_err(|error| match error {
            EnterError::Overlap(with) => with,
            EnterError::OutOfMemory => no_memory(),
        })
    }

    /// Replaces the `old` entries by `new` ones, all of them parts of `whole`.
    pub(super) fn replace<const N: usize>(
        &self,
        whole: IovaRange,
        old: &[IovaRange],
        new: [IovaRange; N],
    ) {
        self.0.replace(whole, old, &new.map(|range| (range, ())));
    }

    /// Takes an entry out.
    pub(super) fn release(&self, range: IovaRange) {
        self.0.remove(range);
    }

    /// Returns the number of entries.
    pub(super) fn count(&self) -> usize {
        self.0.count()
    }

    /// Lets go of what keeps the shards alive for further claims, of which there will be none.
    pub(super) fn close(&self) {
        self.0.each_extra(|keeper| drop(keeper.take()));
    }
}

#[cfg(all(test, not(loom)))]
mod tests {
    use alloc::vec::Vec;

    use iopt_formats::Iova;

    use super::*;
    use crate::stripes::STRIPE_LG2;

    const STRIPE: u64 = 1 << STRIPE_LG2;

    fn range(start: u64, last: u64) -> IovaRange {
        IovaRange::new(Iova::new(start), Iova::new(last)).expect("last is not below start")
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
