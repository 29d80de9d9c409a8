//! Huge ranges in tables of real formats.

use std::sync::Arc;

use iopt::invalidation::NoHardware;
use iopt::radix::{DirtyError, MapError, MapSide, Table, TableConfig, UnmapError, UnmapPolicy};
use iopt_formats::tiny::Tiny;
use iopt_formats::{Format, Iova, IovaRange, Oa, Prot, amd, armv8, riscv, vtd};
use iopt_reference::Rigour;
use iopt_tests::check::TestTable;
use iopt_tests::configuration::{dirty_stage1, legal};
use iopt_tests::memory::TestMemory;
use iopt_tests::model::windows;
use iopt_tests::referee::Judged;

use crate::{GIB, Image, MIB, PAGE, in_pool, range, runs_of, table};

/// Maps `at` in both tables, each in its way, and checks that they end the same; then reads and
/// unmaps it likewise.
fn compare<F: Judged>(format: F, at: IovaRange, oa: u64) {
    let mib = 4 + (at.len_minus_one() >> 28);
    let tables = [table(format, mib), table(format, mib)];
    let [one, many] = &tables;
    let mut claims = [one, many].map(|table| table.claim(at).expect("nothing is claimed"));
    let [first, second] = &mut claims;
    let mut mapper = one.mapper(first).expect("it is decoded");
    let mut parallel = many.mapper(second).expect("it is decoded");
    let oa = Oa::new(oa);
    let context = format!("{format:?}, {at} to {oa}");

    let expected = mapper.map(at, oa, Prot::RW).expect("nothing is mapped");
    let found = in_pool(|| parallel.par_map(at, oa, Prot::RW)).expect("nothing is mapped");
    assert_eq!(found.changes(), expected.changes(), "{context}");
    let levels = [&found, &expected].map(|sync| sync.new_root().map(|root| root.level));
    assert_eq!(levels[0], levels[1], "{context}");
    for sync in [expected, found] {
        sync.sync(&NoHardware).expect("there is no hardware");
    }
    let image = Image::of_table(one);
    assert_eq!(Image::of_table(many), image, "{context}");
    judge(many, image.items.len());

    let runs = runs_of(one, at);
    assert_eq!(in_pool(|| many.par_dump(at)), runs, "{context}");

    let again = in_pool(|| parallel.par_map(at, oa, Prot::RW)).map(|_| ());
    assert_eq!(again, Err(MapError::Occupied { iova: at.start() }));
    let expected = mapper.unmap(at, UnmapPolicy::Exact).expect("it is mapped");
    let found = in_pool(|| parallel.par_unmap(at, UnmapPolicy::Exact)).expect("it is mapped");
    assert_eq!(found.bytes, expected.bytes, "{context}");
    assert_eq!(
        found.gather.changes(),
        expected.gather.changes(),
        "{context}"
    );
    for unmapped in [expected, found] {
        unmapped
            .gather
            .sync(&NoHardware)
            .expect("there is no hardware");
    }
    let image = Image::of_table(one);
    assert_eq!(image.items, []);
    assert_eq!(Image::of_table(many), image, "{context}");
}

/// Checks that a walker which shares no code with the engine finds `item_count` leaf items.
fn judge<F: Judged>(table: &TestTable<F>, item_count: usize) {
    let words = table.memory().snapshot();
    let read = |address| words.read(Oa::new(address));
    let mut count = 0;
    let judge = table.format().judge(table.root());
    judge
        .enumerate(&read, 4 << 20, Rigour::Strict, |_| count += 1)
        .expect("every item is as specified");
    assert_eq!(count, item_count);
}

#[test]
fn pages_over_a_boundary_of_every_level_are_the_same_words() {
    compare(
        legal(vtd::SecondStage::new(48)),
        range(GIB - 200 * MIB, 400 * MIB),
        3 * PAGE,
    );
    compare(
        legal(vtd::SecondStage::new(48)),
        range((512 * GIB) - 130 * MIB, 300 * MIB),
        PAGE,
    );
    compare(
        legal(vtd::SecondStage::new(57)),
        range(130 * PAGE, 300 * MIB + 7 * PAGE),
        7 * PAGE,
    );
}

#[test]
fn contiguous_groups_over_boundaries_are_the_same_words() {
    let stage1 = legal(armv8::Stage1::<12>::new(48, 48).map(dirty_stage1));
    // Groups of 64 KiB, and pages at both ends.
    compare(
        stage1,
        range(GIB - 200 * MIB + PAGE, 400 * MIB),
        0x1_0000 + PAGE,
    );
    let napot = riscv::Sv::sv48().with_svnapot();
    compare(
        napot,
        range(GIB - 200 * MIB - PAGE, 400 * MIB),
        0x3_0000 - PAGE,
    );
    let upper = legal(armv8::Stage1::<12>::new(48, 48).map(armv8::Stage1::in_upper_half));
    compare(
        upper,
        range((512 * GIB).wrapping_neg() - 200 * MIB, 400 * MIB),
        0x1_0000,
    );
}

#[test]
fn every_power_of_two_over_boundaries_is_the_same_words() {
    for shift in [12, 13, 17, 20] {
        // The distance of the addresses allows leaves up to this size.
        let start = GIB - 300 * MIB + 3 * PAGE;
        compare(
            amd::V1::new().with_dirty(),
            range(start, 600 * MIB),
            start + (1 << shift),
        );
    }
}

#[test]
fn blocks_are_the_same_words() {
    // 70 000 blocks of 2 MiB, with pages at both ends.
    let start = 512 * GIB - 20 * GIB - PAGE;
    compare(
        legal(vtd::SecondStage::new(48)),
        range(start, 140 * GIB),
        start + 2 * MIB,
    );
}

/// Parts must not meet inside a leaf that is mapped, nor inside one that is there.
#[test]
fn leaves_larger_than_a_part_are_the_same_words() {
    let start = 3 * GIB - 2 * MIB;
    let at = range(start, 4 * GIB + 5 * MIB);
    compare(legal(vtd::SecondStage::new(48)), at, start);
    compare(legal(vtd::SecondStage::new(48)), at, start + 64 * GIB);
    compare(amd::V1::new(), range(start, 40 * GIB), start + (16 * GIB));
}

/// An entry that reaches out of the claim refuses everything, also what other parts would take.
#[test]
fn dirty_state_at_the_edge_of_a_claim_is_taken_whole_or_not_at_all() {
    let table = table(legal(vtd::SecondStage::new(48)).with_dirty(), 4);
    let at = range(GIB - 200 * MIB, 400 * MIB);
    let edge = at.last().get() + 1 - 2 * MIB;
    {
        let mut claim = table.claim(at).expect("nothing is claimed");
        let mut mapper = table.mapper(&mut claim).expect("it is decoded");
        for (at, oa) in [
            (range(at.start().get(), 398 * MIB), PAGE),
            (range(edge, 2 * MIB), 0),
        ] {
            let sync = mapper.map(at, Oa::new(oa), Prot::RW).expect("it is free");
            sync.sync(&NoHardware).expect("there is no hardware");
        }
    }
    let before = table.memory().snapshot();
    let part = range(at.start().get(), 399 * MIB);
    let mut claim = table.claim(part).expect("nothing is claimed");
    let mut mapper = table.mapper(&mut claim).expect("it is decoded");
    let refused = in_pool(|| mapper.par_take_dirty(part)).map(|_| ());
    let whole = range(edge, 2 * MIB);
    assert_eq!(
        refused,
        Err(DirtyError::OutsideClaim {
            range: whole,
            claim: part
        })
    );
    assert!(table.memory().snapshot() == before);
    let splits = in_pool(|| mapper.par_unmap(part, UnmapPolicy::WholeEntries)).map(|_| ());
    assert_eq!(
        splits,
        Err(UnmapError::OutsideClaim {
            range: whole,
            claim: part
        })
    );
    assert!(table.memory().snapshot() == before);
}

#[test]
fn a_root_grows_once_and_is_announced() {
    let at = range(1 << 39, 400 * MIB);
    compare(amd::V1::new(), at, PAGE);
    compare(
        amd::V1::new(),
        range((1 << 48) - 200 * MIB, 400 * MIB),
        PAGE,
    );
    let table = table(amd::V1::new(), 4);
    let mut claim = table.claim(at).expect("nothing is claimed");
    let mut mapper = table.mapper(&mut claim).expect("it is decoded");
    let sync = in_pool(|| mapper.par_map(at, Oa::new(PAGE), Prot::RW)).expect("it is free");
    assert_eq!(sync.new_root(), Some(table.root()));
    sync.sync(&NoHardware).expect("there is no hardware");
    let unmapped = in_pool(|| mapper.par_unmap(at, UnmapPolicy::Exact)).expect("it is mapped");
    unmapped
        .gather
        .sync(&NoHardware)
        .expect("there is no hardware");
    let sync = in_pool(|| mapper.par_map(at, Oa::new(PAGE), Prot::RW)).expect("it is free");
    assert!(sync.is_empty(), "the root was announced before");
}

/// A map that must be announced names the same range and sizes.
#[test]
fn hardware_that_caches_holes_is_told_the_same() {
    let at = range(GIB - 200 * MIB, 400 * MIB);
    let told = [false, true].map(|is_parallel| {
        let memory = Arc::new(TestMemory::new(4));
        let config = TableConfig::new().with_map_side(MapSide::Announced);
        let format = legal(vtd::SecondStage::new(48));
        let table = Table::with_config(format, memory, config).expect("a page for the root");
        let mut claim = table.claim(at).expect("nothing is claimed");
        let mut mapper = table.mapper(&mut claim).expect("it is decoded");
        let sync = if is_parallel {
            in_pool(|| mapper.par_map(at, Oa::new(PAGE), Prot::RW))
        } else {
            mapper.map(at, Oa::new(PAGE), Prot::RW)
        };
        sync.expect("it is free").changes().copied()
    });
    assert_eq!(told[0], told[1]);
    assert_eq!(told[0].and_then(|changes| changes.range()), Some(at));
}

/// Wherever something is mapped already, both ways refuse with the same address and leave every
/// word as it was.
#[test]
fn a_page_in_the_way_refuses_all_and_leaves_no_trace() {
    let at = range(GIB - 200 * MIB, 400 * MIB);
    let pages = [
        0,
        1,
        99 * MIB,
        200 * MIB - PAGE,
        200 * MIB,
        333 * MIB,
        400 * MIB - PAGE,
    ];
    for offset in pages.map(|offset| offset & !(PAGE - 1)) {
        for grows in [false, true] {
            let at = if grows { range(1 << 39, 400 * MIB) } else { at };
            let table = table(amd::V1::new(), 4);
            let mut claim = table.claim(IovaRange::FULL).expect("nothing is claimed");
            let mut mapper = table.mapper(&mut claim).expect("it is decoded");
            let page = range(at.start().get() + offset, PAGE);
            let sync = mapper.map(page, Oa::new(0), Prot::RW).expect("it is free");
            sync.sync(&NoHardware).expect("there is no hardware");
            let before = table.memory().snapshot();
            let refused = in_pool(|| mapper.par_map(at, Oa::new(PAGE), Prot::RW)).map(|_| ());
            assert_eq!(refused, Err(MapError::Occupied { iova: page.start() }));
            assert!(table.memory().snapshot() == before, "offset {offset:#x}");

            let hole = UnmapError::Hole { iova: at.start() };
            let splits = in_pool(|| mapper.par_unmap(at, UnmapPolicy::Exact)).map(|_| ());
            let first = offset == 0;
            let hole = if first {
                UnmapError::Hole {
                    iova: Iova::new(page.start().get() + PAGE),
                }
            } else {
                hole
            };
            assert_eq!(splits, Err(hole));
            assert!(table.memory().snapshot() == before, "offset {offset:#x}");
        }
    }
}

/// However many pages are left: too few refuse all and leave every word as it was, and what one
/// thread needs is enough.
#[test]
fn running_out_of_memory_leaves_no_trace_at_any_count() {
    fn check<F: Format>(format: F, at: IovaRange, oa: u64, counts: impl Iterator<Item = usize>) {
        let mut succeeded = 0;
        for left in counts {
            let tables = [table(format, 4), table(format, 4)];
            let [one, many] = tables.each_ref().map(|table| {
                let before = table.memory().snapshot();
                let root = table.root();
                let mut claim = table.claim(at).expect("nothing is claimed");
                let mut mapper = table.mapper(&mut claim).expect("it is decoded");
                table.memory().set_left(Some(left));
                let is_parallel = std::ptr::eq(table, &raw const tables[1]);
                let mapped = if is_parallel {
                    in_pool(|| mapper.par_map(at, Oa::new(oa), Prot::RW))
                } else {
                    mapper.map(at, Oa::new(oa), Prot::RW)
                };
                let mapped = mapped.map(|sync| sync.new_root().map(|root| root.level));
                if mapped.is_err() {
                    assert_eq!((table.root(), table.table_count()), (root, 1), "{left}");
                    assert!(table.memory().snapshot() == before, "{left}");
                }
                mapped
            });
            assert_eq!(one, many, "{left}");
            let [one, many] = &tables;
            assert_eq!(Image::of_table(one), Image::of_table(many), "{left}");
            succeeded += usize::from(one.table_count() > 1);
        }
        assert!(succeeded > 0, "no count was enough");
    }
    let pages = range(GIB - 200 * MIB, 400 * MIB);
    let counts = (0..200).step_by(29).chain(200..212);
    check(
        legal(vtd::SecondStage::new(48)),
        pages,
        PAGE,
        counts.clone(),
    );
    let pages = range((1 << 39) - 200 * MIB, 400 * MIB);
    check(amd::V1::new(), pages, PAGE, counts);
    for start in [0, 3 * PAGE, MIB / 2 - PAGE] {
        for levels in 2..=4 {
            let tiny = legal(Tiny::growing(levels, 4)).with_groups();
            check(tiny, range(start, MIB - start), PAGE, 0..96);
        }
    }
}

/// Mapped where it is sparse, in every window, and read with many threads.
#[test]
fn reading_on_many_threads_finds_the_same_in_sparse_spaces() {
    fn check<F: Format>(format: F) {
        let table = table(format, 8);
        for (number, window) in windows(format.geometry()).into_iter().enumerate() {
            let mut claim = table.claim(window).expect("nothing is claimed");
            let mut mapper = table.mapper(&mut claim).expect("it is decoded");
            let (start, last) = (window.start().get(), window.last().get());
            let middle = start + (last - start) / 2 + 1;
            let places = [
                start,
                start + 5 * GIB - MIB,
                middle - 3 * MIB,
                last - (64 * MIB - 1),
            ];
            for (index, place) in places.into_iter().enumerate() {
                let oa = Oa::new(((index + number) as u64) << 30);
                let sync = mapper
                    .map(range(place, 64 * MIB), oa, Prot::RW)
                    .expect("it is free");
                sync.sync(&NoHardware).expect("there is no hardware");
            }
            if format.dirty_rule().is_some() {
                let taken = mapper
                    .take_dirty(range(start, 40 * MIB), |_| {})
                    .expect("tracked");
                taken.sync(&NoHardware).expect("there is no hardware");
            }
        }
        let ranges = windows(format.geometry()).into_iter().chain([
            IovaRange::FULL,
            range(PAGE, 6 * GIB),
            range(7 * PAGE, PAGE),
            range(8 * GIB, GIB),
        ]);
        for at in ranges {
            let runs = runs_of(&table, at);
            let mut dirty = Vec::new();
            let has_dirty = table.dirty(at, |part| dirty.push(part));
            in_pool(|| {
                assert_eq!(table.par_dump(at), runs, "{format:?}, {at}");
                assert_eq!(
                    table.par_dirty(at),
                    has_dirty.map(|()| dirty),
                    "{format:?}, {at}"
                );
            });
        }
    }
    check(legal(vtd::SecondStage::new(48)));
    check(legal(vtd::SecondStage::new(57)).with_dirty());
    check(amd::V1::new().with_dirty());
    check(riscv::Sv::sv48().with_svnapot().with_dirty());
    check(legal(
        armv8::Stage1::<12>::new(48, 48).map(armv8::Stage1::in_upper_half),
    ));
    check(legal(armv8::Stage1::<16>::new(48, 48).map(dirty_stage1)));
}
