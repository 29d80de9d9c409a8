//! Bugs of others that concern some tables only.

use std::collections::BTreeSet;
use std::sync::{Arc, Mutex};

use iopt::invalidation::NoHardware;
use iopt::mem::{FlushLine, LINE_LEN, NonSnooped, TableMemory as _};
use iopt::radix::{MapError, Table, UnmapError, UnmapPolicy};
use iopt_formats::{Format, Iova, Level, Oa, PageSize, Prot, amd, armv8, vtd, x86_64};
use iopt_tests::configuration::{LARGE_PAGES, legal};
use iopt_tests::memory::TestMemory;
use iopt_tests::model::windows;

use crate::{GIB_1, KIB_4, MIB_2, map, range, table, unmap};

/// Records which lines were written back.
#[derive(Debug, Default)]
struct Lines(Mutex<Vec<usize>>);

impl Lines {
    fn take(&self) -> Vec<usize> {
        std::mem::take(&mut self.0.lock().expect("no test panics inside"))
    }
}

impl FlushLine for Lines {
    fn flush_line(&self, line: *const u8) {
        self.0
            .lock()
            .expect("no test panics inside")
            .push(line.addr());
    }
}

/// Linux wrote back the whole span that an unmap visited instead of what it changed (5815d930).
#[test]
fn exactly_the_lines_that_change_are_written_back_once() {
    fn check<F: Format>(format: F, table_len: u64) {
        let memory = Arc::new(TestMemory::new(8));
        let lines = NonSnooped::new(Arc::clone(&memory), Lines::default());
        let table = Table::new(format, lines).expect("the format has a software bit");
        let all = range(0, table_len * 2);
        let mut claim = table.claim(all).expect("nothing is claimed");
        let mut mapper = table
            .mapper(&mut claim)
            .expect("the claim lies in the window");
        mapper.reserve(all).expect("there is memory");
        let granule = F::GRANULE.bytes();
        let pages = table_len / granule;
        let spans = [
            (0, 1),
            (7, 1),
            (7, 2),
            (1, 6),
            (8, 8),
            (3, 40),
            (pages - 3, 7),
            (5, pages),
        ];
        for (first, count) in spans {
            let part = range(first * granule, count * granule);
            // No larger page fits this output.
            let oa = Oa::new(granule * (first + 3));
            for step in 0..2 {
                let before = memory.snapshot();
                table.memory().flush().take();
                if step == 0 {
                    let synced = mapper.map(part, oa, Prot::RW).expect("nothing is mapped");
                    synced.sync(&NoHardware).expect("there is no hardware");
                } else {
                    let unmapped = mapper
                        .unmap(part, UnmapPolicy::Exact)
                        .expect("it is mapped");
                    unmapped
                        .gather
                        .sync(&NoHardware)
                        .expect("there is no hardware");
                }
                let flushed = table.memory().flush().take();
                let after = memory.snapshot();
                let words = after
                    .pages()
                    .iter()
                    .flat_map(|page| (0..granule / 8).map(|index| Oa::new(page.get() + index * 8)));
                let changed = words.filter(|oa| before.read(*oa) != after.read(*oa));
                let expected: BTreeSet<_> = changed
                    .map(|oa| memory.ptr(oa).addr() & !(LINE_LEN - 1))
                    .collect();
                let found: BTreeSet<_> = flushed.iter().copied().collect();
                assert_eq!(found, expected, "step {step} of pages {first} + {count}");
                assert_eq!(flushed.len(), found.len(), "a line was written back twice");
            }
        }
    }
    check(legal(vtd::SecondStage::new(48)), MIB_2);
    check(legal(x86_64::LongMode::new(47)), MIB_2);
    check(legal(armv8::Stage1::<16>::new(48, 48)), 8192 << 16);
}

/// Linux accepted addresses above the top of the chosen table, and chose sizes that do not fit
/// small address widths (04f1f4bf, 5240dab5).
#[test]
fn every_address_width_decodes_exactly_its_addresses() {
    fn check<F: Format>(format: F) {
        let window = windows(format.geometry());
        let [window] = window[..] else {
            panic!("one window")
        };
        let (table, mut claim) = table(format);
        assert!(
            format
                .sizes()
                .iter()
                .all(|size| size.offset_mask() <= window.len_minus_one())
        );
        let page = format.sizes().smallest().expect("there is a size");
        map(
            &table,
            &mut claim,
            range(window.last().get() - page.offset_mask(), page.bytes()),
            0,
        );
        assert!(table.lookup(window.last()).is_some());
        let end = window.last().get().wrapping_add(1);
        if end != 0 {
            assert_eq!(table.lookup(Iova::new(end)), None);
            let over = range(end - page.bytes(), page.bytes() * 2);
            drop(claim);
            let mut over = table.claim(over).expect("nothing is claimed");
            assert!(table.mapper(&mut over).is_err());
        }
    }
    for bits in 31..=57 {
        check(legal(vtd::SecondStage::new(bits)));
        check(legal(x86_64::LongMode::new(bits)));
    }
    for bits in 13..=64 {
        let levels = (bits - 12_u8).div_ceil(9);
        check(legal(amd::V1::fixed(levels, bits)));
    }
    for bits in 25..=48 {
        check(legal(armv8::Stage1::<12>::new(bits, 48)));
        check(legal(armv8::Stage1::<14>::new(bits, 48)));
        check(legal(armv8::Stage1::<16>::new(bits, 48)));
        check(legal(armv8::Stage2::<12>::new(bits, 48)));
        check(legal(armv8::Stage2::<14>::new(bits, 48)));
        check(legal(armv8::Stage2::<16>::new(bits, 48)));
    }
}

/// Linux reached its fast path for 4 KiB pages with a bitmap that has none (8ef3f77c).
#[test]
fn a_table_without_small_pages_refuses_single_pages() {
    let format = legal(legal(vtd::SecondStage::new(48)).with_sizes(LARGE_PAGES));
    let (table, mut claim) = table(format);
    map(&table, &mut claim, range(0, MIB_2), 0);
    let mut mapper = table
        .mapper(&mut claim)
        .expect("the claim lies in the window");
    let page = range(GIB_1, KIB_4);
    let refused = mapper.map(page, Oa::new(0), Prot::RW).map(|_| ());
    assert!(matches!(
        refused,
        Err(MapError::Unaligned {
            page: PageSize::MIB_2,
            ..
        })
    ));
    let refused = mapper
        .unmap(range(0, KIB_4), UnmapPolicy::Exact)
        .map(|_| ());
    assert!(matches!(
        refused,
        Err(UnmapError::Unaligned {
            page: PageSize::MIB_2,
            ..
        })
    ));
    assert!(table.lookup(Iova::new(0)).is_some() && table.lookup(page.start()).is_none());
}

/// Linux lost the error of a failed map, and mapped address 0 wrongly afterwards.
#[test]
fn a_map_that_fails_names_the_reason_and_leaves_no_trace() {
    let (table, mut claim) = table(legal(vtd::SecondStage::new(48)));
    map(&table, &mut claim, range(MIB_2 + 5 * KIB_4, KIB_4), 0x5000);
    let before = table.memory().snapshot();
    let mut mapper = table
        .mapper(&mut claim)
        .expect("the claim lies in the window");
    for (start, len, oa, expected) in [
        (0, MIB_2 * 2, 0, Some(MIB_2 + 5 * KIB_4)),
        (MIB_2, MIB_2, MIB_2, Some(MIB_2 + 5 * KIB_4)),
        (0, GIB_1, GIB_1, Some(MIB_2 + 5 * KIB_4)),
        (MIB_2 + 4 * KIB_4, 3 * KIB_4, 0, Some(MIB_2 + 5 * KIB_4)),
        (0, 1, 0, None),
        (0, KIB_4, 1 << 52, None),
    ] {
        let error = mapper
            .map(range(start, len), Oa::new(oa), Prot::RW)
            .map(|_| ());
        let error = error.expect_err("it is refused");
        let occupied = expected.map(|iova| MapError::Occupied {
            iova: Iova::new(iova),
        });
        assert_eq!(
            matches!(error, MapError::Occupied { .. }),
            occupied.is_some()
        );
        assert!(occupied.is_none_or(|occupied| occupied == error), "{error}");
        let after = table.memory().snapshot();
        assert_eq!(before, after, "{error}");
    }
    let synced = mapper
        .map(range(0, KIB_4), Oa::new(0), Prot::RW)
        .expect("it is free");
    synced.sync(&NoHardware).expect("there is no hardware");
    assert_eq!(
        table.lookup(Iova::new(42)).map(|found| found.oa()),
        Some(Oa::new(42))
    );
}

/// The VT-d conversion of Linux caused hangs under a load that remaps 4 KiB and 2 MiB in turn.
#[test]
fn small_and_large_pages_take_turns() {
    let (mut table, mut claim) = table(legal(vtd::SecondStage::new(48)));
    let block = range(GIB_1, MIB_2);
    for turn in 0..64 {
        let mut mapper = table
            .mapper(&mut claim)
            .expect("the claim lies in the window");
        let small = turn % 2 == 0;
        // The output of a small page does not fit a large one.
        let oa = turn * GIB_1 + if small { KIB_4 } else { 0 };
        let sync = mapper
            .map(block, Oa::new(oa), Prot::RW)
            .expect("it is free");
        let flushed = sync.sync(&NoHardware).expect("there is no hardware");
        let found = table.lookup(block.last()).expect("it is mapped");
        let size = if small {
            PageSize::KIB_4
        } else {
            PageSize::MIB_2
        };
        assert_eq!((found.oa(), found.size()), (Oa::new(oa + MIB_2 - 1), size));
        unmap(&table, &mut claim, block);
        table.reclaim(&flushed);
        table.trim();
        assert_eq!(table.table_count(), if small { 4 } else { 3 });
    }
}

/// Linux returned a negative error as a huge number of bytes (8d25093c).
#[test]
fn unmapping_nothing_is_an_error_or_no_bytes() {
    let (table, mut claim) = table(legal(vtd::SecondStage::new(48)));
    let mut mapper = table
        .mapper(&mut claim)
        .expect("the claim lies in the window");
    for len in [KIB_4, 3 * KIB_4, MIB_2, GIB_1] {
        let all = range(GIB_1, len);
        let refused = mapper.unmap(all, UnmapPolicy::Exact).map(|_| ());
        assert_eq!(refused, Err(UnmapError::Hole { iova: all.start() }));
        let nothing = mapper
            .unmap(all, UnmapPolicy::WholeEntries)
            .expect("holes are no error");
        assert_eq!((nothing.bytes, nothing.gather.range()), (0, None));
    }
}

/// Linux computed concatenated roots before it restricted them, and freed another size than it
/// allocated (4dcac840, 4315401b). The memory of the test notices the second.
#[test]
fn a_concatenated_root_is_as_large_as_its_tables() {
    /// Levels and concatenated tables for 32, 36, 40, 42, 44, 48 and 52 bits.
    const KIB_4_ROOTS: [(u8, u8, u64); 7] = [
        (32, 2, 4),
        (36, 3, 1),
        (40, 3, 2),
        (42, 3, 8),
        (44, 4, 1),
        (48, 4, 1),
        (52, 4, 16),
    ];
    const KIB_16_ROOTS: [(u8, u8, u64); 7] = [
        (32, 2, 1),
        (36, 2, 1),
        (40, 2, 16),
        (42, 3, 1),
        (44, 3, 1),
        (48, 3, 2),
        (52, 4, 1),
    ];
    const KIB_64_ROOTS: [(u8, u8, u64); 7] = [
        (32, 2, 1),
        (36, 2, 1),
        (40, 2, 1),
        (42, 2, 1),
        (44, 2, 4),
        (48, 3, 1),
        (52, 3, 1),
    ];
    fn check<const G: u8>(roots: [(u8, u8, u64); 7]) {
        for (bits, levels, count) in roots {
            let format = if bits > 48 {
                legal(armv8::Stage2::<G>::new_lpa(bits, 52))
            } else {
                legal(armv8::Stage2::<G>::new(bits, 48))
            };
            let (table, claim) = table(format);
            assert_eq!(
                table.root().level,
                Level(levels - 1),
                "{bits} bits, granule 2^{G}"
            );
            let items = 1_u64 << format.root_count_lg2(table.root().level);
            let tables = items.div_ceil(1 << (G - 3));
            assert_eq!(tables, count, "{bits} bits, granule 2^{G}");
            if count > 1 {
                assert_eq!(table.memory().used_len(), items * 8);
            }
            drop(claim);
            let memory = Arc::clone(table.memory());
            drop(table);
            assert_eq!(memory.page_count(), 0);
        }
    }
    check::<12>(KIB_4_ROOTS);
    check::<14>(KIB_16_ROOTS);
    check::<16>(KIB_64_ROOTS);
}

/// Rare paths of growing the root failed in Linux (152c862c): here at each allocation in turn.
#[test]
fn growing_the_root_survives_every_failed_allocation() {
    for start in [1 << 39, 1 << 48, 1 << 57, u64::MAX - 0xfff] {
        let (table, mut claim) = table(amd::V1::new());
        map(&table, &mut claim, range(0, KIB_4), 0x5000);
        let before = table.memory().snapshot();
        let root = table.root();
        let page = range(start, KIB_4);
        let mut mapper = table
            .mapper(&mut claim)
            .expect("the whole space is decoded");
        for left in 0.. {
            table.memory().set_left(Some(left));
            let mapped = mapper.map(page, Oa::new(0), Prot::RW);
            table.memory().set_left(None);
            let Ok(sync) = mapped else {
                assert_eq!((table.root(), &table.memory().snapshot()), (root, &before));
                continue;
            };
            assert_eq!(sync.new_root(), Some(table.root()));
            sync.sync(&NoHardware).expect("there is no hardware");
            assert!(left > 2);
            break;
        }
        assert!(table.lookup(page.start()).is_some());
        assert_eq!(
            table.lookup(Iova::new(42)).map(|found| found.oa()),
            Some(Oa::new(0x502a))
        );
    }
}
