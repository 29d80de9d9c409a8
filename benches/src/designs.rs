//! Ways to guard a table that several threads change, for the bench of scaling.
//!
//! | design | around a map and an unmap |
//! |---|---|
//! | claim | nothing: the thread holds a claim and a mapper all the time |
//! | domain lock | the shared side of a [`DomainLock`] |
//! | area claims | the same, and a claim of each area, which lives from its map to its unmap |
//! | one rwsem | [`Areas`], as iommufd does it |
//! | bare | no table at all: the loops of the yardsticks over pages that lie as leaf tables do |
//!
//! All but the last are over the same engine and the same tables. The last says what the machine
//! gives: a processor that prefetches lines which another one writes slows both down, whatever
//! software does.

use std::hint::black_box;
use std::sync::atomic::AtomicU64;
use std::sync::atomic::Ordering::Relaxed;

use iopt::claim::Claim;
use iopt::mem::Arena;
use iopt::radix::{Mapper, Table};
use iopt::sync::DomainLock;
use iopt_formats::{Format, Iova};

use crate::areas::Areas;
use crate::pool::{Page, leak_pages};
use crate::subject::{map_synced, range, unmap_synced};
use crate::workload::FIRST_IOVA;
use crate::yardstick::{VALID, check_and_clear_items, check_and_store_items};

const PAGE_LEN: u64 = 1 << 12;

/// Items of a leaf table.
const ITEM_COUNT: u64 = 512;

/// What stands around a map and an unmap.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Design {
    /// Nothing but a claim that the thread holds.
    Claim,
    /// The shared side of the domain lock.
    DomainLock,
    /// The same, and a claim for each area.
    AreaClaims,
    /// One read-write semaphore and one interval tree.
    OneRwsem,
    /// Stores to plain memory.
    Bare,
}

impl Design {
    /// Every design.
    pub const ALL: [Self; 5] = [
        Self::Bare,
        Self::Claim,
        Self::DomainLock,
        Self::AreaClaims,
        Self::OneRwsem,
    ];

    /// Returns the name as text.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Claim => "claim",
            Self::DomainLock => "domain-lock",
            Self::AreaClaims => "area-claims",
            Self::OneRwsem => "one-rwsem",
            Self::Bare => "bare",
        }
    }

    /// Returns the speed-up that is promised for `thread_count` threads.
    pub fn bar(self, thread_count: usize) -> Option<f64> {
        match (self, thread_count) {
            (Self::AreaClaims | Self::OneRwsem | Self::Bare, _) | (_, 0 | 1) => None,
            (Self::Claim | Self::DomainLock, 2) => Some(1.9),
            (Self::Claim | Self::DomainLock, more) => Some(0.9 * more as f64),
        }
    }
}

/// Addresses of one thread.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(crate) struct Part {
    pub(crate) start: u64,
    pub(crate) len: u64,
}

/// The pieces of a part, round and round.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Pieces {
    part: Part,
    /// Bytes of a piece.
    len: u64,
    offset: u64,
}

impl Pieces {
    pub(crate) const fn new(part: Part, len: u64) -> Self {
        Self {
            part,
            len,
            offset: 0,
        }
    }

    /// Calls `act` with the first addresses of the next `count` pieces.
    #[inline(always)]
    pub(crate) fn visit(&mut self, count: u32, mut act: impl FnMut(u64)) {
        for _ in 0..count {
            act(self.part.start + self.offset);
            self.offset += self.len;
            if self.offset == self.part.len {
                self.offset = 0;
            }
        }
    }
}

/// A thread's way to the table.
pub(crate) trait Domain {
    fn map(&mut self, iova: u64, len: u64);
    fn unmap(&mut self, iova: u64, len: u64);
    /// Looks the next `count` of `pages`, which are mapped, up.
    fn lookups(&self, pages: &mut Pieces, count: u32);
}

/// Something to do with a domain of any design.
pub(crate) trait Work {
    type Output;

    fn run<D: Domain>(self, domain: &mut D) -> Self::Output;
}

/// A table and the locks of all designs around it.
pub(crate) struct Guards<F: Format> {
    pub(crate) table: Table<F, Arena>,
    lock: DomainLock<()>,
    areas: Areas,
    /// The pages of [`Design::Bare`].
    pages: &'static [Page],
}

impl<F: Format> Guards<F> {
    /// Creates the locks, and the pages of [`Design::Bare`]: for `bare_len` bytes from
    /// [`FIRST_IOVA`] on, which stand for those behind them, too.
    pub(crate) fn new(table: Table<F, Arena>, bare_len: u64) -> Self {
        Self {
            table,
            lock: DomainLock::new(()),
            areas: Areas::default(),
            pages: leak_pages((bare_len / (PAGE_LEN * ITEM_COUNT)) as usize),
        }
    }

    /// Does `work` in `part`, which nobody else uses, guarded as `design` says.
    pub(crate) fn run<W: Work>(&self, design: Design, part: Part, work: W) -> W::Output {
        let Self {
            table,
            lock,
            areas,
            pages,
        } = self;
        match design {
            Design::Claim => self.with_claimed(part, |mut claimed| work.run(&mut claimed)),
            Design::DomainLock => {
                self.with_claimed(part, |claimed| work.run(&mut Locked { lock, claimed }))
            }
            Design::AreaClaims => {
                let area = None;
                work.run(&mut Claiming { lock, table, area })
            }
            Design::OneRwsem => {
                self.with_claimed(part, |claimed| work.run(&mut Guarded { areas, claimed }))
            }
            Design::Bare => work.run(&mut Bare { pages }),
        }
    }

    fn with_claimed<R>(&self, part: Part, work: impl FnOnce(Claimed<'_, F>) -> R) -> R {
        let table = &self.table;
        let claim = table.claim(range(part.start, part.len));
        let mut claim = claim.expect("threads have ranges of their own");
        let mapper = table.mapper(&mut claim).expect("the claim is the table's");
        work(Claimed { table, mapper })
    }
}

/// [`Design::Claim`].
struct Claimed<'t, F: Format> {
    table: &'t Table<F, Arena>,
    mapper: Mapper<'t, F, Arena>,
}

impl<F: Format> Domain for Claimed<'_, F> {
    #[inline(always)]
    fn map(&mut self, iova: u64, len: u64) {
        map_synced(&mut self.mapper, iova, iova + PAGE_LEN, len);
    }

    #[inline(always)]
    fn unmap(&mut self, iova: u64, len: u64) {
        unmap_synced(&mut self.mapper, iova, len);
    }

    #[inline(always)]
    fn lookups(&self, pages: &mut Pieces, count: u32) {
        let reader = self.table.reader();
        pages.visit(count, |iova| {
            black_box(reader.lookup(Iova::new(iova)));
        });
    }
}

/// [`Design::DomainLock`].
struct Locked<'t, F: Format> {
    lock: &'t DomainLock<()>,
    claimed: Claimed<'t, F>,
}

impl<F: Format> Domain for Locked<'_, F> {
    #[inline(always)]
    fn map(&mut self, iova: u64, len: u64) {
        let _domain = self.lock.read();
        self.claimed.map(iova, len);
    }

    #[inline(always)]
    fn unmap(&mut self, iova: u64, len: u64) {
        let _domain = self.lock.read();
        self.claimed.unmap(iova, len);
    }

    #[inline(always)]
    fn lookups(&self, pages: &mut Pieces, count: u32) {
        let reader = self.claimed.table.reader();
        pages.visit(count, |iova| {
            let _domain = self.lock.read();
            black_box(reader.lookup(Iova::new(iova)));
        });
    }
}

/// [`Design::AreaClaims`].
struct Claiming<'t, F: Format> {
    lock: &'t DomainLock<()>,
    table: &'t Table<F, Arena>,
    /// The claim of the area that is mapped.
    area: Option<Claim>,
}

impl<F: Format> Claiming<'_, F> {
    #[inline(always)]
    fn with_mapper(&mut self, work: impl FnOnce(&mut Mapper<'_, F, Arena>)) {
        let area = self.area.as_mut().expect("an area is mapped");
        let mut mapper = self.table.mapper(area).expect("the claim is the table's");
        work(&mut mapper);
    }
}

impl<F: Format> Domain for Claiming<'_, F> {
    #[inline(always)]
    fn map(&mut self, iova: u64, len: u64) {
        let _domain = self.lock.read();
        let area = self.table.claim(range(iova, len));
        self.area = Some(area.expect("threads have ranges of their own"));
        self.with_mapper(|mapper| map_synced(mapper, iova, iova + PAGE_LEN, len));
    }

    #[inline(always)]
    fn unmap(&mut self, iova: u64, len: u64) {
        let _domain = self.lock.read();
        self.with_mapper(|mapper| {
            unmap_synced(mapper, iova, len);
        });
        self.area = None;
    }

    #[inline(always)]
    fn lookups(&self, pages: &mut Pieces, count: u32) {
        let reader = self.table.reader();
        pages.visit(count, |iova| {
            let _domain = self.lock.read();
            black_box(reader.lookup(Iova::new(iova)));
        });
    }
}

/// [`Design::OneRwsem`].
struct Guarded<'t, F: Format> {
    areas: &'t Areas,
    claimed: Claimed<'t, F>,
}

impl<F: Format> Domain for Guarded<'_, F> {
    #[inline(always)]
    fn map(&mut self, iova: u64, len: u64) {
        let (areas, claimed) = (self.areas, &mut self.claimed);
        let is_new = areas.map(range(iova, len), || claimed.map(iova, len));
        assert!(is_new, "threads have ranges of their own");
    }

    #[inline(always)]
    fn unmap(&mut self, iova: u64, len: u64) {
        let (areas, claimed) = (self.areas, &mut self.claimed);
        let was_mapped = areas.unmap(range(iova, len), || claimed.unmap(iova, len));
        assert!(was_mapped, "the thread mapped the area");
    }

    #[inline(always)]
    fn lookups(&self, pages: &mut Pieces, count: u32) {
        let reader = self.claimed.table.reader();
        pages.visit(count, |iova| {
            black_box(self.areas.lookup(iova, || reader.lookup(Iova::new(iova))));
        });
    }
}

/// [`Design::Bare`].
struct Bare {
    pages: &'static [Page],
}

impl Bare {
    /// Returns the items from `iova` on, as many as translate `len` bytes and their page has.
    #[inline(always)]
    fn items(&self, iova: u64, len: u64) -> &[AtomicU64] {
        let index = (iova - FIRST_IOVA) / PAGE_LEN;
        let page = &self.pages[(index / ITEM_COUNT) as usize % self.pages.len()].0;
        let first = (index % ITEM_COUNT) as usize;
        &page[first..first + (len / PAGE_LEN) as usize]
    }
}

impl Domain for Bare {
    #[inline(always)]
    fn map(&mut self, iova: u64, len: u64) {
        for at in (iova..iova + len).step_by((PAGE_LEN * ITEM_COUNT) as usize) {
            let items = self.items(at, len.min(PAGE_LEN * ITEM_COUNT));
            check_and_store_items(items, at | VALID).expect("nothing is stored there");
        }
    }

    #[inline(always)]
    fn unmap(&mut self, iova: u64, len: u64) {
        for at in (iova..iova + len).step_by((PAGE_LEN * ITEM_COUNT) as usize) {
            let items = self.items(at, len.min(PAGE_LEN * ITEM_COUNT));
            check_and_clear_items(items).expect("words are stored there");
        }
    }

    #[inline(always)]
    fn lookups(&self, pages: &mut Pieces, count: u32) {
        pages.visit(count, |iova| {
            black_box(self.items(iova, PAGE_LEN)[0].load(Relaxed));
        });
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pieces_start_again_at_the_end_of_their_part() {
        let part = Part {
            start: 0x10_0000,
            len: 0x3000,
        };
        let mut pieces = Pieces::new(part, 0x1000);
        let mut visited = Vec::new();
        for count in [2, 2] {
            pieces.visit(count, |iova| visited.push(iova));
        }
        assert_eq!(visited, [0x10_0000, 0x10_1000, 0x10_2000, 0x10_0000]);
    }
}
