//! What a table does with one mapping, for every configuration, and with the mappings that were
//! reported to go wrong elsewhere.

use std::sync::Arc;

use iopt::invalidation::NoHardware;
use iopt::radix::{MapError, UnmapError, UnmapPolicy};
use iopt_formats::{
    Format, Iova, IovaRange, Level, Oa, PageSize, Prot, amd, armv8, riscv, vtd, x86_64,
};
use iopt_tests::check::TestTable;
use iopt_tests::configuration::{
    LARGE_PAGES, MIXED_PAGES, SMALL_PAGES, dirty_stage1, dirty_stage2, legal,
};
use iopt_tests::for_each_configuration;
use iopt_tests::memory::TestMemory;
use iopt_tests::model::windows;

fn table<F: Format>(format: F) -> TestTable<F> {
    TestTable::new(format, Arc::new(TestMemory::new(8))).expect("a page for the root")
}

fn range(start: u64, len: u64) -> IovaRange {
    IovaRange::with_len(Iova::new(start), len).expect("the range does not wrap")
}

/// Returns the sizes of the entries that translate `range`, lowest first, with how many of each
/// size follow each other.
fn entry_sizes<F: Format>(table: &TestTable<F>, range: IovaRange) -> Vec<(usize, PageSize)> {
    let mut sizes: Vec<(usize, PageSize)> = Vec::new();
    let mut next = Some(range.start());
    while let Some(iova) = next.filter(|iova| range.contains_addr(*iova)) {
        let found = table
            .lookup(iova)
            .unwrap_or_else(|| panic!("{iova} is not mapped"));
        match sizes.last_mut().filter(|(_, size)| *size == found.size()) {
            Some((count, _)) => *count += 1,
            None => sizes.push((1, found.size())),
        }
        next = iova.checked_add(found.size().bytes());
    }
    sizes
}

/// One page of each size alone: found at every address, refused twice, gone afterwards.
fn each_size_is_one_entry<F: Format>(format: F) {
    let table = table(format);
    let window = *windows(format.geometry())
        .last()
        .expect("a table decodes something");
    let mut claim = table.claim(window).expect("nothing is claimed");
    let mut mapper = table
        .mapper(&mut claim)
        .expect("the claim lies in the window");
    let sizes: Vec<_> = format.sizes().iter().collect();
    // Large pages first: the empty tables that small ones leave would be in their way.
    for size in sizes.into_iter().rev() {
        // The last page of the size: the corner of concatenated and cut roots.
        let start = window.last().get() - size.offset_mask();
        let (page, oa) = (range(start, size.bytes()), Oa::new(0));
        let synced = mapper
            .map(page, oa, Prot::RW)
            .expect("nothing is mapped")
            .sync(&NoHardware);
        synced.expect("there is no hardware");
        assert_eq!(entry_sizes(&table, page), [(1, size)]);
        for offset in [0, 42, size.offset_mask()] {
            let found = table
                .lookup(Iova::new(start + offset))
                .expect("it is mapped");
            assert_eq!((found.oa(), found.size()), (Oa::new(offset), size));
            assert!(found.prot().can_read() && found.prot().can_write());
        }
        let again = mapper.map(page, oa, Prot::RW).map(|_| ());
        assert_eq!(again, Err(MapError::Occupied { iova: page.start() }));

        let granule = format.sizes().smallest().expect("there is a size");
        if size != granule {
            let first = range(start, granule.bytes());
            let last = range(start + (size.bytes() - granule.bytes()), granule.bytes());
            for part in [first, last] {
                let error = mapper.unmap(part, UnmapPolicy::Exact).map(|_| ());
                assert_eq!(
                    error,
                    Err(UnmapError::Splits {
                        iova: part.start(),
                        size
                    })
                );
            }
        }
        let unmapped = mapper
            .unmap(page, UnmapPolicy::Exact)
            .expect("it is mapped");
        assert_eq!(unmapped.bytes, size.bytes());
        assert_eq!(unmapped.gather.range(), Some(page));
        unmapped
            .gather
            .sync(&NoHardware)
            .expect("there is no hardware");
        assert_eq!(table.lookup(page.start()), None);
        let again = mapper.unmap(page, UnmapPolicy::Exact).map(|_| ());
        assert_eq!(again, Err(UnmapError::Hole { iova: page.start() }));
    }
}

macro_rules! tests {
    ($($name:ident: $configured:expr;)+) => {
        $(
            #[test]
            fn $name() {
                each_size_is_one_entry(legal($configured));
            }
        )+
    };
}

mod each_size_is_one_entry {
    use super::*;

    for_each_configuration!(tests);
}

/// 4 GiB less 7 MiB to 19 GiB and 6 MiB: the largest pages that fit, 14 and 3 and 3 of them.
fn mixed_sizes_are_twenty_entries<F: Format>(format: F) {
    let table = table(format);
    let start = 0x3f_e400 << 12;
    let all = range(start, (0x4c_0600 << 12) - start);
    let mut claim = table.claim(all).expect("nothing is claimed");
    let mut mapper = table
        .mapper(&mut claim)
        .expect("the claim lies in the window");
    let synced = mapper
        .map(all, Oa::new(start), Prot::RW)
        .expect("nothing is mapped");
    synced.sync(&NoHardware).expect("there is no hardware");
    let expected = [
        (14, PageSize::MIB_2),
        (3, PageSize::GIB_1),
        (3, PageSize::MIB_2),
    ];
    assert_eq!(entry_sizes(&table, all), expected);
}

#[test]
fn mixed_sizes_become_exactly_twenty_entries() {
    mixed_sizes_are_twenty_entries(legal(vtd::SecondStage::new(48)));
    mixed_sizes_are_twenty_entries(legal(x86_64::LongMode::new(47)));
    mixed_sizes_are_twenty_entries(riscv::Sv::sv48());
    mixed_sizes_are_twenty_entries(legal(armv8::Mali::new(48, 40)));
}

/// As reported for AMD: the addresses differ modulo everything above 4 KiB.
#[test]
fn a_run_whose_addresses_fit_no_larger_page_is_mapped_page_by_page() {
    let table = table(amd::V1::new());
    let (start, oa) = (0xfef8_0000, 0x20_8b95_d000);
    let all = range(start, 0x2_0000);
    let mut claim = table.claim(all).expect("nothing is claimed");
    let mut mapper = table
        .mapper(&mut claim)
        .expect("the claim lies in the window");
    let synced = mapper
        .map(all, Oa::new(oa), Prot::RW)
        .expect("nothing is mapped");
    synced.sync(&NoHardware).expect("there is no hardware");
    assert_eq!(entry_sizes(&table, all), [(32, PageSize::KIB_4)]);
    for page in 0..32 {
        let found = table
            .lookup(Iova::new(start + page * 0x1000 + 42))
            .expect("it is mapped");
        assert_eq!(found.oa(), Oa::new(oa + page * 0x1000 + 42));
    }
}

/// Small pages leave tables behind; a larger page needs their place.
#[test]
fn a_large_page_takes_the_place_of_empty_tables() {
    let mut table = table(legal(vtd::SecondStage::new(48)));
    let block = range(0x4000_0000, 0x4000_0000);
    let mut claim = table.claim(block).expect("nothing is claimed");
    let mut mapper = table
        .mapper(&mut claim)
        .expect("the claim lies in the window");
    for start in [0x4000_0000, 0x4020_0000, 0x7fff_f000] {
        let page = range(start, 0x1000);
        let synced = mapper
            .map(page, Oa::new(0), Prot::RW)
            .expect("nothing is mapped");
        synced.sync(&NoHardware).expect("there is no hardware");
        let unmapped = mapper
            .unmap(page, UnmapPolicy::Exact)
            .expect("it is mapped");
        unmapped
            .gather
            .sync(&NoHardware)
            .expect("there is no hardware");
    }
    assert_eq!(
        table.table_count(),
        6,
        "root, two on the path, three of level 0"
    );
    let mut mapper = table
        .mapper(&mut claim)
        .expect("the claim lies in the window");
    let sync = mapper
        .map(block, Oa::new(0x8000_0000), Prot::RW)
        .expect("all tables are empty");
    let changes = *sync.changes().expect("walk caches hold the tables");
    assert!(changes.range().is_some_and(|told| told.contains(block)));
    assert!(changes.has_table(Level(2)) && changes.has_table(Level(1)));
    let flushed = sync.sync(&NoHardware).expect("there is no hardware");
    table.reclaim(&flushed);
    table.trim();
    assert_eq!(table.table_count(), 2);
    assert_eq!(entry_sizes(&table, block), [(1, PageSize::GIB_1)]);
}

/// A compaction unlinks only tables that it was given whole.
#[test]
fn a_compaction_leaves_tables_that_reach_out_of_its_range() {
    const MIB_2: u64 = 0x20_0000;
    let mut table = table(legal(vtd::SecondStage::new(48)));
    let all = range(0, MIB_2 * 512);
    let mut claim = table.claim(all).expect("nothing is claimed");
    let mut mapper = table
        .mapper(&mut claim)
        .expect("the claim lies in the window");
    mapper
        .reserve(range(MIB_2, MIB_2 * 3))
        .expect("there is memory");
    let synced = mapper.map(range(MIB_2 * 2, 0x1000), Oa::new(0), Prot::RW);
    synced
        .expect("it is free")
        .sync(&NoHardware)
        .expect("there is no hardware");
    for (part, left) in [
        (range(MIB_2 + 0x1000, MIB_2 - 0x1000), 6),
        (range(MIB_2, MIB_2 - 0x1000), 6),
        (range(MIB_2 * 2, MIB_2), 6),
        (range(MIB_2, MIB_2), 5),
        (all, 4),
    ] {
        let mut mapper = table
            .mapper(&mut claim)
            .expect("the claim lies in the window");
        let flushed = mapper
            .compact(part)
            .expect("the range is claimed")
            .sync(&NoHardware);
        table.reclaim(&flushed.expect("there is no hardware"));
        table.trim();
        assert_eq!(
            (table.table_count(), table.memory().page_count()),
            (left, left),
            "{part}"
        );
    }
    assert!(table.lookup(Iova::new(MIB_2 * 2)).is_some());
}

/// The root of an AMD table starts at three levels and gains one at a time.
#[test]
fn the_root_grows_level_by_level_and_keeps_what_is_mapped() {
    let table = table(amd::V1::new());
    let mut claim = table.claim(IovaRange::FULL).expect("nothing is claimed");
    let mut mapper = table
        .mapper(&mut claim)
        .expect("the whole space is decoded");
    let starts = [0, 1 << 39, 1 << 48, 1 << 57, u64::MAX - 0xfff];
    for (index, start) in starts.into_iter().enumerate() {
        let oa = Oa::new(index as u64 * 0x1000);
        let sync = mapper
            .map(range(start, 0x1000), oa, Prot::RW)
            .expect("nothing is mapped");
        let level = Level([2, 3, 4, 5, 5][index]);
        assert_eq!(table.root().level, level);
        let grows = level.0 > 2 && start != u64::MAX - 0xfff;
        assert_eq!(sync.new_root(), grows.then(|| table.root()));
        sync.sync(&NoHardware).expect("there is no hardware");
        for (index, &start) in starts[..=index].iter().enumerate() {
            let found = table.lookup(Iova::new(start)).map(|found| found.oa());
            assert_eq!(found, Some(Oa::new(index as u64 * 0x1000)));
        }
    }
}

/// All pairs of widths that the ARM architecture knows, for all granules and both stages.
#[test]
fn every_pair_of_arm_widths_maps_every_size() {
    const WIDTHS: [u8; 6] = [32, 36, 40, 42, 44, 48];
    fn strides<F: Format>(format: F) {
        let table = table(format);
        let window = windows(format.geometry())[0];
        let mut claim = table.claim(window).expect("nothing is claimed");
        let mut mapper = table
            .mapper(&mut claim)
            .expect("the claim lies in the window");
        for iova in [42, 0x4000_0000 + 42, window.last().get()] {
            assert_eq!(table.lookup(Iova::new(iova)), None);
        }
        let sizes = format.sizes().up_to(PageSize::GIB_1);
        for round in 0..2 {
            let pages = (0_u64..).map(|index| index << 30).zip(sizes.iter());
            let pages: Vec<_> = pages
                .filter(|(iova, _)| window.last().get() > *iova)
                .collect();
            for &(iova, size) in &pages {
                let page = range(iova, size.bytes());
                let synced = mapper.map(page, Oa::new(iova), Prot::RW.cached());
                let synced = synced.expect("nothing is mapped").sync(&NoHardware);
                synced.expect("there is no hardware");
                let again = mapper.map(page, Oa::new(0), Prot::RW).map(|_| ());
                assert_eq!(
                    again,
                    Err(MapError::Occupied { iova: page.start() }),
                    "{format:?}"
                );
                let found = table.lookup(Iova::new(iova + 42)).map(|found| found.oa());
                assert_eq!(
                    found,
                    Some(Oa::new(iova + 42)),
                    "round {round} of {format:?}"
                );
            }
            for &(iova, size) in &pages {
                let page = range(iova, size.bytes());
                let unmapped = mapper
                    .unmap(page, UnmapPolicy::Exact)
                    .expect("it is mapped");
                assert_eq!(unmapped.bytes, size.bytes());
                unmapped
                    .gather
                    .sync(&NoHardware)
                    .expect("there is no hardware");
                assert_eq!(table.lookup(Iova::new(iova + 42)), None);
            }
        }
    }
    let pairs = WIDTHS
        .into_iter()
        .flat_map(|ias| WIDTHS.map(|oas| (ias, oas)));
    for (ias, oas) in pairs.filter(|(ias, oas)| ias <= oas) {
        strides(legal(armv8::Stage1::<12>::new(ias, oas)));
        strides(legal(armv8::Stage1::<14>::new(ias, oas)));
        strides(legal(armv8::Stage1::<16>::new(ias, oas)));
        strides(legal(armv8::Stage2::<12>::new(ias, oas)));
        strides(legal(armv8::Stage2::<14>::new(ias, oas)));
        strides(legal(armv8::Stage2::<16>::new(ias, oas)));
    }
}
