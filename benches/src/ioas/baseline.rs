//! A space as Linux's iommufd builds it, for comparison.
//!
//! One read-write semaphore guards the set of domains and is shared by every map and unmap; another
//! guards one tree of areas and is owned to enter an area, to publish it, to take it for an unmap,
//! and to remove it. Each memory has a mutex and a tree of its users. An address is chosen by
//! walking from area to area, lowest first. What is pinned, the tables, and the way they are changed
//! are the engine's, so that a difference is one of locks, trees and states.
//!
//! What iommufd does not keep is not kept here either: runs of output addresses. What it does beyond
//! a fill and its undoing, accesses, accounting and rights, is left out, so that the numbers are on
//! the baseline's side.

#![expect(
    clippy::expl_impl_clone_on_copy,
    reason = "the macro of the tree's crate implements both"
)]

use core::fmt;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use intrusive_collections::{Bound, KeyAdapter, RBTree, RBTreeAtomicLink, intrusive_adapter};
use iopt::claim::Claim;
use iopt::invalidation::NoHardware;
use iopt::mem::Arena;
use iopt::pin::{PageRange, Source};
use iopt::radix::{Mapper, Table, UnmapPolicy};
use iopt_formats::vtd::SecondStage;
use iopt_formats::{IovaRange, Oa};
use parking_lot::{Mutex, RwLock};

use crate::ioas::space::{PAGE_LEN, PROT, Seat, Space, new_table};
use crate::subject::range;

/// One mapped page.
struct Area {
    by_iova: RBTreeAtomicLink,
    by_page: RBTreeAtomicLink,
    start: u64,
    last: u64,
    page: u64,
    is_published: AtomicBool,
}

intrusive_adapter!(ByIova = Arc<Area>: Area { by_iova => RBTreeAtomicLink });
intrusive_adapter!(ByPage = Arc<Area>: Area { by_page => RBTreeAtomicLink });

impl<'a> KeyAdapter<'a> for ByIova {
    type Key = u64;

    fn get_key(&self, area: &'a Area) -> u64 {
        area.last
    }
}

impl<'a> KeyAdapter<'a> for ByPage {
    type Key = u64;

    fn get_key(&self, area: &'a Area) -> u64 {
        area.page
    }
}

/// Memory with the mutex around its users.
pub struct Shared {
    source: Arc<dyn Source>,
    users: Mutex<RBTree<ByPage>>,
}

impl fmt::Debug for Shared {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Shared").finish_non_exhaustive()
    }
}

/// A space with two semaphores.
pub struct Baseline {
    /// Guards the set of tables, which never changes here.
    domains: RwLock<Vec<Table<SecondStage, Arena>>>,
    areas: RwLock<RBTree<ByIova>>,
    /// The lowest address that is chosen.
    lowest: u64,
}

impl fmt::Debug for Baseline {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Baseline").finish_non_exhaustive()
    }
}

impl Baseline {
    /// Creates an empty space with tables, which chooses addresses from `lowest` on.
    ///
    /// # Panics
    ///
    /// Panics if the system has no memory.
    pub fn new(domain_count: usize, lowest: u64) -> Self {
        Self {
            domains: RwLock::new((0..domain_count).map(|_| new_table()).collect()),
            areas: RwLock::new(RBTree::new(ByIova::new())),
            lowest,
        }
    }
}

impl Space for Baseline {
    type Memory = Shared;

    fn memory(source: Arc<dyn Source>) -> Shared {
        Shared {
            source,
            users: Mutex::new(RBTree::new(ByPage::new())),
        }
    }

    fn with_seat<R>(
        &self,
        memory: &Shared,
        part: IovaRange,
        work: impl FnOnce(&mut dyn Seat) -> R,
    ) -> R {
        // Read recursively: nobody ever writes.
        let tables = self.domains.read_recursive();
        let claim =
            |table: &Table<_, _>| table.claim(part).expect("threads have parts of their own");
        let mut claims: Vec<Claim> = tables.iter().map(claim).collect();
        let mappers = tables.iter().zip(&mut claims).map(|(table, claim)| {
            let mapper = table.mapper(claim);
            mapper.expect("the claim is the table's")
        });
        work(&mut BaselineSeat {
            space: self,
            memory,
            mappers: mappers.collect(),
        })
    }
}

struct BaselineSeat<'a> {
    space: &'a Baseline,
    memory: &'a Shared,
    mappers: Vec<Mapper<'a, SecondStage, Arena>>,
}

impl BaselineSeat<'_> {
    fn new_area(iova: u64, page: u64) -> Arc<Area> {
        Arc::new(Area {
            by_iova: RBTreeAtomicLink::new(),
            by_page: RBTreeAtomicLink::new(),
            start: iova,
            last: iova + (PAGE_LEN - 1),
            page,
            is_published: AtomicBool::new(false),
        })
    }

    /// Pins the area's page, maps it to every domain, and publishes the area, which is entered.
    fn fill(&mut self, area: &Arc<Area>) {
        let Self {
            space,
            memory,
            mappers,
        } = self;
        let domains = space.domains.read_recursive();
        {
            let mut users = memory.users.lock();
            let mut after = users.lower_bound_mut(Bound::Included(&area.page));
            let is_used = after.get().is_some_and(|user| user.page == area.page);
            assert!(!is_used, "a page is mapped once");
            let mut oa = Oa::new(0);
            let page = PageRange::new(area.page, area.page).expect("it is one page");
            let pinned = memory.source.pin(page, &mut |run| oa = run.oa);
            pinned.expect("the memory has the page");
            for mapper in mappers {
                let mapped = mapper.map(range(area.start, PAGE_LEN), oa, PROT);
                let synced = mapped.expect("nothing is mapped there").sync(&NoHardware);
                synced.expect("the hardware does nothing");
            }
            after.insert_before(Arc::clone(area));
        }
        let _publishing = space.areas.write();
        area.is_published.store(true, Ordering::Relaxed);
        drop(domains);
    }
}

impl Seat for BaselineSeat<'_> {
    fn map(&mut self, iova: u64, page: u64) {
        let area = Self::new_area(iova, page);
        {
            let mut areas = self.space.areas.write();
            let mut after = areas.lower_bound_mut(Bound::Included(&iova));
            let is_free = after.get().is_none_or(|next| next.start > area.last);
            assert!(is_free, "nothing is mapped there");
            after.insert_before(Arc::clone(&area));
        }
        self.fill(&area);
    }

    fn map_anywhere(&mut self, page: u64) -> u64 {
        let (area, iova) = {
            let mut areas = self.space.areas.write();
            let mut iova = self.space.lowest;
            let mut after = areas.lower_bound_mut(Bound::Included(&iova));
            while let Some(next) = after.get() {
                if next.start - iova >= PAGE_LEN {
                    break;
                }
                iova = next.last + 1;
                after.move_next();
            }
            let area = Self::new_area(iova, page);
            after.insert_before(Arc::clone(&area));
            (area, iova)
        };
        self.fill(&area);
        iova
    }

    fn unmap(&mut self, iova: u64) {
        let Self {
            space,
            memory,
            mappers,
        } = self;
        let _domains = space.domains.read_recursive();
        let area = {
            let areas = space.areas.write();
            let found = areas.lower_bound(Bound::Included(&iova));
            let area = found.clone_pointer().expect("the page is mapped");
            assert_eq!(area.start, iova, "the page is mapped");
            area.is_published.store(false, Ordering::Relaxed);
            area
        };
        {
            let mut users = memory.users.lock();
            for mapper in mappers {
                let unmapped = mapper.unmap(range(iova, PAGE_LEN), UnmapPolicy::Sparse);
                let gather = unmapped.expect("the seat's part holds the page").gather;
                gather.sync(&NoHardware).expect("the hardware does nothing");
            }
            let page = PageRange::new(area.page, area.page).expect("it is one page");
            memory.source.unpin(page);
            let removed = users.find_mut(&area.page).remove();
            removed.expect("the page is used");
        }
        let removed = space.areas.write().find_mut(&area.last).remove();
        removed.expect("the area is entered");
        // Whether the range holds another area, iommufd looks once more.
        let areas = space.areas.write();
        let next = areas.lower_bound(Bound::Included(&iova));
        assert!(next.get().is_none_or(|next| next.start > area.last));
    }
}

#[cfg(test)]
mod tests {
    use iopt_formats::Iova;

    use super::*;
    use crate::ioas::space::{Layout, everything, fill, large_source};
    use crate::workload::FIRST_IOVA;

    #[test]
    fn the_lowest_room_is_chosen_and_an_unmap_leaves_nothing() {
        let baseline = Baseline::new(2, FIRST_IOVA);
        let memory = Baseline::memory(large_source(50));
        fill(&baseline, &memory, Layout::Packed, 50);
        let looks_up = |iova| {
            let tables = baseline.domains.read_recursive();
            let found = tables.iter().map(|table| table.lookup(Iova::new(iova)));
            found.flatten().count()
        };
        baseline.with_seat(&memory, everything(), |seat| {
            let at = seat.map_anywhere(60);
            assert_eq!(at, FIRST_IOVA + 50 * PAGE_LEN);
            assert_eq!(looks_up(at), 2);
            seat.unmap(at);
            assert_eq!(looks_up(at), 0);
            seat.unmap(FIRST_IOVA + 7 * PAGE_LEN);
            assert_eq!(seat.map_anywhere(7), FIRST_IOVA + 7 * PAGE_LEN);
        });
    }
}
