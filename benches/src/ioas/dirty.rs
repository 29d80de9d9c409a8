//! The scan for what devices wrote to, into a bitmap.
//!
//! 1 GiB is mapped with 4 KiB leaves, for its pages are scattered. Either nothing was written to, or
//! one page in 64, at random places. The bench plays the hardware: it walks the tables and marks
//! their items, outside of the time that is measured.
//!
//! Beside it, what the table alone takes, without a space around it and without a bitmap, and what a
//! loop takes that looks at as many words of as many pages.

#![expect(unsafe_code, reason = "marks items of a table as hardware does")]

use std::hint::black_box;
use std::sync::Arc;
use std::sync::atomic::AtomicU64;
use std::sync::atomic::Ordering::Relaxed;

use iopt::domain::{Domain, TableDomain};
use iopt::invalidation::NoHardware;
use iopt::ioas::{DirtyBitmap, Forget, Holes, Ioas, Mapping, Pages, Place};
use iopt::mem::{Arena, TableMemory as _};
use iopt::pin::Simulated;
use iopt::radix::Table;
use iopt_formats::amd::V1;
use iopt_formats::vtd::SecondStage;
use iopt_formats::walk::walk;
use iopt_formats::{Format, Iova, Oa, PageSize};

use crate::clock;
use crate::ioas::space::{PAGE_LEN, PROT};
use crate::paired::{Side, Turns};
use crate::pool::{Page, leak_pages};
use crate::random::Random;
use crate::row::{Bar, Row};
use crate::subject::range;
use crate::workload::{FIRST_IOVA, Phase, Times};

/// Items that one core has to look through in a nanosecond: 10^9 of them in a second.
pub const MIN_RATE: f64 = 0.5;

/// Pages that are looked through.
const PAGE_COUNT: u64 = 1 << 18;

/// Of so many pages one was written to.
const WRITTEN_STRIDE: u64 = 64;

/// Items of a leaf table.
const ITEM_COUNT: u64 = 512;

/// Items of a cache line.
const LINE: usize = 8;

/// Table memory: some times what 512 leaf tables need.
const ARENA_LEN: usize = 16 << 20;

/// What a scan finds.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
enum Case {
    /// Nothing.
    Clean,
    /// One page in 64, which count as written to the next time.
    Written,
    /// The same, which is forgotten.
    Forgotten,
}

impl Case {
    const ALL: [Self; 3] = [Self::Clean, Self::Written, Self::Forgotten];

    const fn as_str(self) -> &'static str {
        match self {
            Self::Clean => "nothing written",
            Self::Written => "1/64 written, kept",
            Self::Forgotten => "1/64 written, forgotten",
        }
    }
}

/// Who ran in a measurement.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
enum Who {
    Space(Case),
    Table,
    Loop,
}

impl Who {
    const fn as_str(self) -> &'static str {
        match self {
            Self::Space(case) => case.as_str(),
            Self::Table => "nothing written, table alone",
            Self::Loop => "a loop over words",
        }
    }
}

/// Measures both formats.
pub fn measure() -> Vec<Row> {
    let second_stage = SecondStage::new(48).expect("the second stage decodes 48 bits");
    let mut rows = measure_format("vtd-ss", second_stage.with_dirty());
    rows.extend(measure_format("amd-v1", V1::new().with_dirty()));
    rows
}

fn measure_format<F: Format>(name: &str, format: F) -> Vec<Row> {
    let spaces = Case::ALL.map(|case| {
        let space = Tracked::new(format);
        if case == Case::Written {
            space.soil();
        }
        (case, space)
    });
    let pages = leak_pages((PAGE_COUNT / ITEM_COUNT) as usize);
    let mut found_counts = [0; Case::ALL.len()];
    let mut sides: Vec<Side<'_, Who>> = Vec::new();
    for ((case, space), found_count) in spaces.iter().zip(&mut found_counts) {
        let mut bits = vec![0; PAGE_COUNT as usize / 8];
        sides.push(Side::new(Who::Space(*case), move || {
            if *case == Case::Forgotten {
                space.soil();
            }
            bits.fill(0);
            let ns = space.scan(*case, &mut bits);
            *found_count = bits.iter().map(|byte| byte.count_ones()).sum::<u32>();
            an_item(ns)
        }));
    }
    let (_, clean) = &spaces[0];
    sides.push(Side::new(Who::Table, || {
        let table = clean.table.table();
        let whole = range(FIRST_IOVA, PAGE_COUNT * PAGE_LEN);
        an_item(clock::time(|| {
            let scanned = table.dirty(whole, |_| unreachable!("nothing was written to"));
            scanned.expect("the format tracks it");
        }))
    }));
    sides.push(Side::new(Who::Loop, || {
        an_item(clock::time(|| assert!(!has_word(black_box(pages)))))
    }));
    let yardstick = (Who::Loop, Phase::Map);
    let turns = Turns::measure(&mut sides, &[yardstick]);
    drop(sides);
    let row = |who: Who| {
        let comparison = turns.compare((who, Phase::Map), yardstick);
        let rate = 1.0 / comparison.subject_ns;
        let row = Row::new(name, who.as_str(), rate, "G items/s")
            .beside("ns an item", comparison.subject_ns)
            .beside("of the loop", comparison.ratio);
        match who {
            Who::Space(case) => row
                .beside("pages found", f64::from(found_counts[case as usize]))
                .with_bar(Bar::AtLeast(MIN_RATE), comparison.is_noisy),
            Who::Table | Who::Loop => row,
        }
    };
    let spaces = Case::ALL.map(Who::Space);
    let others = [Who::Table, Who::Loop];
    spaces.into_iter().chain(others).map(row).collect()
}

fn an_item(ns: f64) -> Times {
    Times {
        map: ns / PAGE_COUNT as f64,
        ..Times::default()
    }
}

/// Returns whether any word of some pages is set.
#[inline(never)]
fn has_word(pages: &[Page]) -> bool {
    let lines = pages.iter().flat_map(|page| page.0.chunks_exact(LINE));
    let is_set =
        |line: &[AtomicU64]| line.iter().fold(0, |seen, word| seen | word.load(Relaxed)) != 0;
    lines.into_iter().any(is_set)
}

/// A space with a domain that tracks what is written to.
struct Tracked<F: Format> {
    ioas: Ioas,
    domain: Arc<dyn Domain>,
    table: Arc<TableDomain<F, Arena, NoHardware>>,
    written: Vec<u64>,
}

impl<F: Format> Tracked<F> {
    fn new(format: F) -> Self {
        let memory = Arena::new(ARENA_LEN).expect("address space for the tables");
        let table = Table::new(format, memory).expect("memory for the tables");
        let table = Arc::new(TableDomain::new(table, NoHardware));
        let domain: Arc<dyn Domain> = Arc::clone(&table) as _;
        let ioas = Ioas::new();
        let attached = ioas.attach(Arc::clone(&domain));
        attached.expect("an empty domain fits an empty space");
        let source = Simulated::new(PageSize::KIB_4, PAGE_COUNT).scattered(7, 1);
        let mapped = ioas.map(Mapping {
            pages: &Pages::new(Arc::new(source), None),
            offset: 0,
            len: PAGE_COUNT * PAGE_LEN,
            prot: PROT,
            place: Place::Fixed(Iova::new(FIRST_IOVA)),
        });
        mapped.expect("nothing is mapped there");
        let tracking = ioas.set_dirty_tracking(&domain, true);
        tracking.expect("the format tracks it");
        let mut random = Random::new(7);
        let written = (0..PAGE_COUNT).filter(|_| random.bits().is_multiple_of(WRITTEN_STRIDE));
        Self {
            ioas,
            domain,
            table,
            written: written.map(|page| FIRST_IOVA + page * PAGE_LEN).collect(),
        }
    }

    /// Marks pages as hardware does that writes to them.
    fn soil(&self) {
        let table = self.table.table();
        let (format, memory) = (table.format(), table.memory());
        let rule = format.dirty_rule().expect("the format tracks it");
        for &iova in &self.written {
            let mut item = None;
            let read = |oa| Some(item_at(memory, oa).load(Relaxed));
            let walked = walk(format, table.root(), Iova::new(iova), read, |step| {
                item = Some(Oa::new(step.table.get() + 8 * step.index as u64));
            });
            walked.expect("the page is mapped");
            let item = item_at(memory, item.expect("a walk that translates reads an item"));
            item.store(rule.soil(item.load(Relaxed)), Relaxed);
        }
    }

    /// Returns the nanoseconds that a scan takes.
    fn scan(&self, case: Case, bits: &mut [u8]) -> f64 {
        let whole = range(FIRST_IOVA, PAGE_COUNT * PAGE_LEN);
        let forget = match case {
            Case::Clean | Case::Written => Forget::No,
            Case::Forgotten => Forget::Yes,
        };
        let mut bitmap = DirtyBitmap::new(Iova::new(FIRST_IOVA), PageSize::KIB_4, bits);
        clock::time(|| {
            let read = &self.ioas;
            let read = read.read_dirty(&self.domain, whole, Holes::Refused, forget, &mut bitmap);
            read.expect("all of it is mapped and tracked");
        })
    }
}

/// Returns an item of a linked table.
#[expect(
    clippy::cast_ptr_alignment,
    reason = "items are as aligned as they are large"
)]
fn item_at(memory: &Arena, oa: Oa) -> &AtomicU64 {
    let item = memory.ptr(oa).cast::<AtomicU64>();
    // SAFETY: callers give addresses of items that a walk from the root of a table of `memory` met:
    // they lie in pages that stay allocated (M2 of the memory) while the table, which is not changed
    // meanwhile, lives; they are aligned to 8 bytes, and the engine changes them by atomics only.
    unsafe { &*item }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_scan_finds_what_was_written_and_forgets_it_if_asked_to() {
        let space = Tracked::new(V1::new().with_dirty());
        let mut bits = vec![0; PAGE_COUNT as usize / 8];
        let mut found = |case| {
            bits.fill(0);
            space.scan(case, &mut bits);
            bits.iter()
                .map(|byte| byte.count_ones() as usize)
                .sum::<usize>()
        };
        assert_eq!(found(Case::Written), 0);
        space.soil();
        assert!(space.written.len() as u64 > PAGE_COUNT / WRITTEN_STRIDE / 2);
        assert_eq!(found(Case::Written), space.written.len());
        assert_eq!(found(Case::Forgotten), space.written.len());
        assert_eq!(found(Case::Forgotten), 0);
    }
}
