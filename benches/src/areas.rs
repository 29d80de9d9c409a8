//! A domain as Linux's iommufd guards it, for comparison: one read-write semaphore around every
//! operation, and one exclusive lock around an interval tree of areas.
//!
//! A map inserts its area under the exclusive lock and fills the table under the shared side of the
//! semaphore; an unmap clears the table and removes the area. Threads on disjoint ranges write two
//! lines in common: the semaphore's count and the tree's lock. The tables underneath are the
//! engine's, so that a difference is one of the locks and the tree.

#![expect(
    clippy::expl_impl_clone_on_copy,
    reason = "the macro of the tree's crate implements both"
)]

use core::fmt;

use intrusive_collections::{Bound, KeyAdapter, RBTree, RBTreeAtomicLink, intrusive_adapter};
use iopt_formats::IovaRange;
use parking_lot::RwLock;

/// One mapped range.
struct Area {
    link: RBTreeAtomicLink,
    start: u64,
    last: u64,
}

intrusive_adapter!(ByLast = Box<Area>: Area { link => RBTreeAtomicLink });

impl<'a> KeyAdapter<'a> for ByLast {
    type Key = u64;

    fn get_key(&self, area: &'a Area) -> u64 {
        area.last
    }
}

/// The areas of one address space and the locks around them and their domain.
pub struct Areas {
    domain: RwLock<()>,
    tree: RwLock<RBTree<ByLast>>,
}

impl Default for Areas {
    fn default() -> Self {
        Self {
            domain: RwLock::new(()),
            tree: RwLock::new(RBTree::new(ByLast::new())),
        }
    }
}

impl fmt::Debug for Areas {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Areas").finish_non_exhaustive()
    }
}

impl Areas {
    /// Adds the area `range`, then lets `fill` map it; returns false, and does nothing, if another
    /// area shares a byte with it.
    pub fn map(&self, range: IovaRange, fill: impl FnOnce()) -> bool {
        let (start, last) = (range.start().get(), range.last().get());
        let area = Box::new(Area {
            link: RBTreeAtomicLink::new(),
            start,
            last,
        });
        {
            let mut tree = self.tree.write();
            let mut after = tree.lower_bound_mut(Bound::Included(&start));
            if after.get().is_some_and(|area| area.start <= last) {
                return false;
            }
            after.insert_before(area);
        }
        let _domain = self.domain.read();
        fill();
        true
    }

    /// Lets `clear` unmap the area `range`, then removes it; returns false, and does nothing, if
    /// there is no such area.
    pub fn unmap(&self, range: IovaRange, clear: impl FnOnce()) -> bool {
        let (start, last) = (range.start().get(), range.last().get());
        {
            let tree = self.tree.read();
            if tree
                .find(&last)
                .get()
                .is_none_or(|area| area.start != start)
            {
                return false;
            }
        }
        {
            let _domain = self.domain.read();
            clear();
        }
        self.tree.write().find_mut(&last).remove().is_some()
    }

    /// Lets `look` look `iova` up if an area holds it.
    pub fn lookup<R>(&self, iova: u64, look: impl FnOnce() -> Option<R>) -> Option<R> {
        let tree = self.tree.read();
        let area = tree.lower_bound(Bound::Included(&iova));
        area.get().filter(|area| area.start <= iova)?;
        let _domain = self.domain.read();
        look()
    }
}

#[cfg(test)]
mod tests {
    use iopt_formats::Iova;

    use super::*;

    fn range(start: u64, last: u64) -> IovaRange {
        IovaRange::new(Iova::new(start), Iova::new(last)).unwrap()
    }

    #[test]
    fn areas_never_share_a_byte() {
        let areas = Areas::default();
        assert!(areas.map(range(0x2000, 0x4fff), || ()));
        assert!(!areas.map(range(0x4fff, 0x5fff), || unreachable!()));
        assert!(!areas.map(range(0x1000, 0x2000), || unreachable!()));
        assert!(!areas.map(range(0x1000, 0x5fff), || unreachable!()));
        assert!(areas.map(range(0x5000, 0x5fff), || ()));
        assert!(areas.map(range(0x1000, 0x1fff), || ()));
    }

    #[test]
    fn an_area_is_found_and_unmapped_as_a_whole() {
        let areas = Areas::default();
        assert!(areas.map(range(0x2000, 0x4fff), || ()));
        assert_eq!(areas.lookup(0x4fff, || Some(7)), Some(7));
        assert_eq!(areas.lookup(0x1fff, || Some(7)), None);
        assert_eq!(areas.lookup(0x5000, || Some(7)), None);
        assert!(!areas.unmap(range(0x3000, 0x4fff), || unreachable!()));
        assert!(areas.unmap(range(0x2000, 0x4fff), || ()));
        assert_eq!(areas.lookup(0x2000, || Some(7)), None);
    }
}
