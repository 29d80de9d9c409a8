//! 12 TiB of guest memory in one map, on one core.
//!
//! The pages of the tables come from an arena, zeroed beforehand and in the order of their
//! addresses. The yardstick takes as many pages from the same arena, in the same way, and runs the
//! loop that checks a page and stores to it over them ([`check_and_store`]), and the one that checks
//! and clears ([`check_and_clear`]): what no table can do without. Making and ending tables, taking
//! and giving back pages of the yardstick are not timed; the table takes its pages inside its time.

use iopt::mem::Arena;
use iopt::radix::Table;
use iopt_formats::Format;

use crate::clock;
use crate::paired::{Comparison, Side, Turns};
use crate::pool::with_pages_of;
use crate::subject::{map_synced, range, unmap_synced, zeroed_arena};
use crate::workload::{FIRST_IOVA, Phase, Times};
use crate::yardstick::{VALID, check_and_clear, check_and_store};

/// Bytes that are mapped.
const LEN: u64 = 12 << 40;

/// Leaves of a table.
const LEAF_COUNT: u64 = 512;

/// Pages of the arena: tables of all levels, and some to spare.
const ARENA_PAGE_COUNT: usize = 12_800;

/// What the map of 2 MiB leaves may cost, as times the yardstick.
pub const MAX_RATIO: f64 = 1.3;

/// The leaves that the memory is mapped with.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Leaves {
    /// 2 MiB: 6.3 million in 12 288 tables.
    Mib2,
    /// 1 GiB: 12 288 in 24 tables.
    Gib1,
}

impl Leaves {
    /// Both.
    pub const ALL: [Self; 2] = [Self::Mib2, Self::Gib1];

    /// Returns the name as text.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Mib2 => "2 MiB",
            Self::Gib1 => "1 GiB",
        }
    }

    /// Returns the bytes of one.
    const fn len(self) -> u64 {
        match self {
            Self::Mib2 => 1 << 21,
            Self::Gib1 => 1 << 30,
        }
    }

    /// Returns where the memory starts: one leaf off, so that the next larger one does not fit.
    const fn oa(self) -> u64 {
        FIRST_IOVA + self.len()
    }

    /// Returns how many there are.
    pub const fn count(self) -> u64 {
        LEN / self.len()
    }

    /// Returns how many tables hold them.
    pub const fn table_count(self) -> u64 {
        self.count() / LEAF_COUNT
    }
}

/// The table beside its yardstick; times are nanoseconds of the whole.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Measured {
    /// Mapping everything.
    pub map: Comparison,
    /// Unmapping everything; the tables stay.
    pub unmap: Comparison,
}

#[derive(Clone, Copy, Debug, Eq, PartialEq)]
enum Who {
    Table,
    Loop,
}

/// Measures a map of everything and its unmap.
pub fn measure<F: Format>(format: F, leaves: Leaves) -> Measured {
    let arena = zeroed_arena(ARENA_PAGE_COUNT);
    let mut sides = [
        Side::new(Who::Table, || table_round(format, &arena, leaves)),
        Side::new(Who::Loop, || loop_round(&arena, leaves)),
    ];
    let deciding = [(Who::Loop, Phase::Map), (Who::Loop, Phase::Unmap)];
    let turns = Turns::measure(&mut sides, &deciding);
    let compare = |phase| turns.compare((Who::Table, phase), (Who::Loop, phase));
    Measured {
        map: compare(Phase::Map),
        unmap: compare(Phase::Unmap),
    }
}

fn table_round<F: Format>(format: F, arena: &Arena, leaves: Leaves) -> Times {
    let table = Table::new(format, arena).expect("the arena has a page for the root");
    let claim = table.claim(range(FIRST_IOVA, LEN));
    let mut claim = claim.expect("nothing is claimed in a new table");
    let mapper = table.mapper(&mut claim);
    let mut mapper = mapper.expect("the claim is of this table and inside it");
    Times {
        map: clock::time(|| map_synced(&mut mapper, FIRST_IOVA, leaves.oa(), LEN)),
        unmap: clock::time(|| {
            unmap_synced(&mut mapper, FIRST_IOVA, LEN);
        }),
        ..Times::default()
    }
}

fn loop_round(arena: &Arena, leaves: Leaves) -> Times {
    with_pages_of(arena, leaves.table_count(), |pages| {
        let words = (FIRST_IOVA | VALID..).step_by((leaves.len() * LEAF_COUNT) as usize);
        Times {
            map: clock::time(|| {
                for (page, word) in pages.iter().zip(words) {
                    check_and_store(page, word).expect("the page is zeroed");
                }
            }),
            unmap: clock::time(|| {
                for page in pages {
                    check_and_clear(page).expect("the page is filled");
                }
            }),
            ..Times::default()
        }
    })
}

#[cfg(test)]
mod tests {
    use iopt_formats::Iova;
    use iopt_formats::catalog::Visitor;

    use super::*;
    use crate::formats;

    #[test]
    fn there_are_as_many_leaves_and_tables_as_said() {
        let counts = Leaves::ALL.map(|leaves| (leaves.count(), leaves.table_count()));
        assert_eq!(counts, [(6_291_456, 12_288), (12_288, 24)]);
    }

    struct CountTables(Leaves);

    impl Visitor for CountTables {
        type Output = ();

        /// Maps everything; leaves of another size would take more or fewer tables.
        fn visit<F: Format>(self, format: F) {
            let leaves = self.0;
            let arena = Arena::new(ARENA_PAGE_COUNT << 12).unwrap();
            let table = Table::new(format, &arena).unwrap();
            let mut claim = table.claim(range(FIRST_IOVA, LEN)).unwrap();
            let mut mapper = table.mapper(&mut claim).unwrap();
            map_synced(&mut mapper, FIRST_IOVA, leaves.oa(), LEN);
            let last = table.lookup(Iova::new(FIRST_IOVA + LEN - 1)).unwrap();
            assert_eq!(last.size().bytes(), leaves.len());
            // Above the lowest tables only those that point to them, 24 at most, and the root.
            let above_count = table.table_count() as u64 - leaves.table_count();
            assert!((1..=26).contains(&above_count), "{above_count}");
        }
    }

    #[test]
    fn the_leaves_are_of_the_wanted_size_in_every_measured_format() {
        for name in formats::NAMES {
            for leaves in Leaves::ALL {
                formats::visit(name, CountTables(leaves)).unwrap();
            }
        }
    }
}
