//! Spaces of 10^5 areas, in which threads map and unmap a page at a time.

use core::fmt;
use std::sync::Arc;

use iopt::domain::{Domain, TableDomain};
use iopt::invalidation::NoHardware;
use iopt::ioas::{Holes, Ioas, Mapping, Pages, Place};
use iopt::mem::Arena;
use iopt::pin::{Simulated, Source};
use iopt::radix::Table;
use iopt_formats::vtd::SecondStage;
use iopt_formats::{Iova, IovaRange, PageSize, Prot};

use crate::random::Random;
use crate::subject::range;
use crate::workload::FIRST_IOVA;

/// Bytes of an area.
pub const PAGE_LEN: u64 = 1 << 12;

/// Areas that a space holds before anything is measured.
pub const AREA_COUNT: u64 = 100_000;

/// Pages of the memory that a thread maps from, where it has one of its own.
const OWN_PAGE_COUNT: u64 = 512;

/// Table memory of one domain: several times what the areas need.
const ARENA_LEN: usize = 64 << 20;

/// The rights of every area.
pub const PROT: Prot = Prot::RW.cached();

/// What a table of 48 bits translates of a space that counts from 0.
pub fn everything() -> IovaRange {
    range(0, 1 << 47)
}

/// A table as every domain has it.
///
/// # Panics
///
/// Panics if the system has no memory.
pub fn new_table() -> Table<SecondStage, Arena> {
    let format = SecondStage::new(48).expect("the second stage decodes 48 bits");
    let memory = Arena::new(ARENA_LEN).expect("address space for the tables");
    Table::new(format, memory).expect("memory for the tables")
}

/// One thread's way to change a space.
pub trait Seat {
    /// Maps a page of the seat's memory at `iova`.
    fn map(&mut self, iova: u64, page: u64);

    /// Maps a page of the seat's memory wherever there is room, and returns where.
    fn map_anywhere(&mut self, page: u64) -> u64;

    /// Unmaps what was mapped at `iova`.
    fn unmap(&mut self, iova: u64);
}

/// A space, as somebody built it.
pub trait Space: Sync {
    /// Memory that areas translate to.
    type Memory: Sync;

    /// Makes memory of a source.
    fn memory(source: Arc<dyn Source>) -> Self::Memory;

    /// Lets `work` map from `memory` at addresses of `part`, which no other thread has.
    fn with_seat<R>(
        &self,
        memory: &Self::Memory,
        part: IovaRange,
        work: impl FnOnce(&mut dyn Seat) -> R,
    ) -> R;
}

/// The engine's.
pub struct Engine {
    /// The space.
    pub ioas: Ioas,
}

impl fmt::Debug for Engine {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Engine").finish_non_exhaustive()
    }
}

/// A new domain whose hardware is nothing.
pub fn new_domain() -> Arc<dyn Domain> {
    Arc::new(TableDomain::new(new_table(), NoHardware))
}

impl Engine {
    /// Creates an empty space with domains.
    ///
    /// # Panics
    ///
    /// Panics if the system has no memory.
    pub fn new(domain_count: usize) -> Self {
        let ioas = Ioas::new();
        for _ in 0..domain_count {
            let attached = ioas.attach(new_domain());
            attached.expect("an empty domain fits an empty space");
        }
        Self { ioas }
    }
}

impl Space for Engine {
    type Memory = Arc<Pages>;

    fn memory(source: Arc<dyn Source>) -> Arc<Pages> {
        Pages::new(source, None)
    }

    fn with_seat<R>(
        &self,
        memory: &Arc<Pages>,
        _part: IovaRange,
        work: impl FnOnce(&mut dyn Seat) -> R,
    ) -> R {
        let ioas = &self.ioas;
        work(&mut EngineSeat { ioas, memory })
    }
}

struct EngineSeat<'a> {
    ioas: &'a Ioas,
    memory: &'a Arc<Pages>,
}

impl EngineSeat<'_> {
    #[inline(always)]
    fn enter(&self, place: Place, page: u64) -> IovaRange {
        let mapped = self.ioas.map(Mapping {
            pages: self.memory,
            offset: page * PAGE_LEN,
            len: PAGE_LEN,
            prot: PROT,
            place,
        });
        mapped.expect("nothing is mapped there")
    }
}

impl Seat for EngineSeat<'_> {
    fn map(&mut self, iova: u64, page: u64) {
        self.enter(Place::Fixed(Iova::new(iova)), page);
    }

    fn map_anywhere(&mut self, page: u64) -> u64 {
        self.enter(Place::Anywhere, page).start().get()
    }

    fn unmap(&mut self, iova: u64) {
        let unmapped = self.ioas.unmap(range(iova, PAGE_LEN), Holes::Refused);
        unmapped.expect("the page is mapped");
    }
}

/// How the areas of a space lie.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Layout {
    /// One after the other, each followed by a hole of a page.
    Holes,
    /// One after the other, without holes.
    Packed,
}

impl Layout {
    const fn stride(self) -> u64 {
        match self {
            Self::Holes => 2 * PAGE_LEN,
            Self::Packed => PAGE_LEN,
        }
    }

    /// Returns the addresses of the areas.
    pub fn areas(self, count: u64) -> impl Iterator<Item = u64> {
        (0..count).map(move |index| FIRST_IOVA + index * self.stride())
    }
}

/// Returns the addresses of the holes between the areas of [`Layout::Holes`].
pub fn holes(count: u64) -> Vec<u64> {
    let areas = Layout::Holes.areas(count);
    areas.map(|area| area + PAGE_LEN).collect()
}

/// Memory with a page for each address of the areas and the holes between them, at consecutive
/// output addresses.
pub fn large_source(count: u64) -> Arc<dyn Source> {
    Arc::new(Simulated::new(PageSize::KIB_4, 2 * count))
}

/// Memory of one thread.
pub fn own_source() -> Arc<dyn Source> {
    Arc::new(Simulated::new(PageSize::KIB_4, OWN_PAGE_COUNT))
}

/// Maps `count` areas.
pub fn fill<S: Space>(space: &S, memory: &S::Memory, layout: Layout, count: u64) {
    space.with_seat(memory, everything(), |seat| {
        for iova in layout.areas(count) {
            seat.map(iova, (iova - FIRST_IOVA) / PAGE_LEN);
        }
    });
}

/// Whose memory the pages are that a thread maps.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Memory {
    /// The thread's own: what each map brings along.
    Own,
    /// That of all areas: a guest's.
    Shared,
}

impl Memory {
    /// Both.
    pub const ALL: [Self; 2] = [Self::Own, Self::Shared];

    /// Returns the name as text.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Own => "own",
            Self::Shared => "shared",
        }
    }

    /// Returns the page that is mapped in the hole at `iova`.
    #[inline(always)]
    pub const fn page(self, iova: u64) -> u64 {
        let page = (iova - FIRST_IOVA) / PAGE_LEN;
        match self {
            Self::Own => page % OWN_PAGE_COUNT,
            Self::Shared => page,
        }
    }
}

/// In which order holes are used.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Order {
    /// Lowest first.
    Rising,
    /// Any.
    Random,
}

impl Order {
    /// Both.
    pub const ALL: [Self; 2] = [Self::Rising, Self::Random];

    /// Returns the name as text.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Rising => "rising",
            Self::Random => "random",
        }
    }

    /// Puts addresses in this order.
    pub fn apply(self, iovas: &mut [u64]) {
        match self {
            Self::Rising => iovas.sort_unstable(),
            Self::Random => Random::new(7).shuffle(iovas),
        }
    }
}

/// Addresses, piece by piece, over and over.
#[derive(Clone, Debug)]
pub struct Cursor<'a> {
    iovas: &'a [u64],
    next: usize,
}

impl<'a> Cursor<'a> {
    /// Creates a cursor at the first address.
    pub const fn new(iovas: &'a [u64]) -> Self {
        Self { iovas, next: 0 }
    }

    /// Returns the next `count` addresses, fewer at the end, after which it starts again.
    pub fn take(&mut self, count: usize) -> &'a [u64] {
        let start = self.next;
        let end = (start + count).min(self.iovas.len());
        self.next = if end == self.iovas.len() { 0 } else { end };
        &self.iovas[start..end]
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_holes_are_where_no_area_is() {
        let mut all: Vec<u64> = Layout::Holes.areas(50).chain(holes(50)).collect();
        all.sort_unstable();
        assert!(all.windows(2).all(|pair| pair[0] + PAGE_LEN == pair[1]));
        assert_eq!(all.len(), 100);
    }

    #[test]
    fn a_cursor_visits_all_and_starts_again() {
        let iovas = [1, 2, 3, 4, 5];
        let mut cursor = Cursor::new(&iovas);
        let taken: Vec<&[u64]> = (0..4).map(|_| cursor.take(2)).collect();
        assert_eq!(taken, [&[1, 2][..], &[3, 4], &[5], &[1, 2]]);
    }

    #[test]
    fn a_space_holds_what_was_filled_and_pairs_leave_nothing() {
        let engine = Engine::new(2);
        let memory = Engine::memory(large_source(50));
        fill(&engine, &memory, Layout::Holes, 50);
        assert_eq!(engine.ioas.area_count(), 50);
        engine.with_seat(&memory, everything(), |seat| {
            let at = seat.map_anywhere(1);
            assert_eq!(at, PAGE_LEN);
            seat.unmap(at);
            seat.map(FIRST_IOVA + PAGE_LEN, 1);
            assert_eq!(engine.ioas.area_count(), 51);
            seat.unmap(FIRST_IOVA + PAGE_LEN);
        });
        assert_eq!(engine.ioas.area_count(), 50);
    }
}
