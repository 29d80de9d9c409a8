//! Bugs of our own.

use std::sync::{Arc, Mutex};

use iopt::invalidation::NoHardware;
use iopt::mem::{FlushLine, NonSnooped};
use iopt::radix::{BreakBeforeMake, MapError, Mapper, Table, UnmapError, UnmapPolicy};
use iopt_formats::{Iova, Oa, PageSize, Prot, riscv, vtd};
use iopt_tests::configuration::{MIXED_PAGES, legal};
use iopt_tests::memory::TestMemory;

use crate::{GIB_1, KIB_4, MIB_2, map, range, table, unmap};

/// A run of one GiB was stored as one block at the address rounded down.
#[test]
fn a_run_as_long_as_a_block_but_not_aligned_is_no_block() {
    let (table, mut claim) = table(legal(vtd::SecondStage::new(39)));
    let start = MIB_2 - KIB_4;
    map(&table, &mut claim, range(start, GIB_1), start);
    assert_eq!(table.lookup(Iova::new(start - 1)), None);
    assert_eq!(table.lookup(Iova::new(start + GIB_1)), None);
    let found = table.lookup(Iova::new(start)).expect("it is mapped");
    assert_eq!(
        (found.oa(), found.size()),
        (Oa::new(start), PageSize::KIB_4)
    );
}

/// The tables that the first run had replaced waited for a flush that nobody could ask for.
#[test]
fn a_list_that_is_refused_retires_no_table() {
    let (table, mut claim) = table(legal(vtd::SecondStage::new(48)));
    map(&table, &mut claim, range(GIB_1, KIB_4), 0);
    unmap(&table, &mut claim, range(GIB_1, KIB_4));
    let before = table.memory().snapshot();
    let mut mapper = table
        .mapper(&mut claim)
        .expect("the claim lies in the window");
    let runs = [(Oa::new(MIB_2), MIB_2), (Oa::new(1), KIB_4)];
    let refused = mapper
        .map_runs(Iova::new(GIB_1), &runs, Prot::RW)
        .map(|_| ());
    assert!(matches!(refused, Err(MapError::Unaligned { .. })));
    assert_eq!(table.memory().snapshot(), before);
}

/// Checks that `mapper` finds the one entry of `size` at `start` when it changes a part of it.
fn finds_one_entry(
    mapper: &mut Mapper<'_, riscv::Sv, Arc<TestMemory>>,
    start: u64,
    size: PageSize,
) {
    let parts = [KIB_4, 2 * KIB_4, MIB_2, 2 * MIB_2, GIB_1];
    for len in parts.into_iter().filter(|len| *len < size.bytes()) {
        let part = range(start, len);
        let refused = mapper.unmap(part, UnmapPolicy::Exact).map(|_| ());
        assert_eq!(
            refused,
            Err(UnmapError::Splits {
                iova: part.start(),
                size
            })
        );
        let refused = mapper.map(part, Oa::new(0), Prot::RW).map(|_| ());
        assert_eq!(refused, Err(MapError::Occupied { iova: part.start() }));
    }
    assert_eq!(
        mapper.lookup(Iova::new(start)).map(|found| found.size()),
        Some(size)
    );
}

/// A mapper went on using tables that it had taken out of the tree itself.
#[test]
fn a_mapper_forgets_the_tables_that_its_merge_unlinks() {
    for (part, size) in [
        (KIB_4, PageSize::MIB_2),
        (MIB_2, PageSize::GIB_1),
        (GIB_1, PageSize::from_lg2(39)),
    ] {
        let (table, mut claim) = table(riscv::Sv::sv48());
        let block = range(claim.range().start().get(), size.bytes());
        let start = block.start().get();
        let mut mapper = table
            .mapper(&mut claim)
            .expect("the claim lies in the window");
        for index in 0..512 {
            let page = range(start + index * part, part);
            let synced = mapper
                .map(page, Oa::new(index * part), Prot::RW)
                .expect("it is free");
            synced.sync(&NoHardware).expect("there is no hardware");
        }
        let bbm = BreakBeforeMake::Hitless;
        mapper
            .merge(block, bbm, &NoHardware)
            .expect("the pages continue each other");
        finds_one_entry(&mut mapper, start, size);
    }
}

/// The same, where a block takes the place of empty tables.
#[test]
fn a_mapper_forgets_the_tables_that_its_blocks_replace() {
    for size in [PageSize::MIB_2, PageSize::GIB_1, PageSize::from_lg2(39)] {
        let (table, mut claim) = table(riscv::Sv::sv48());
        let block = range(claim.range().start().get(), size.bytes());
        let start = block.start().get();
        let mut mapper = table
            .mapper(&mut claim)
            .expect("the claim lies in the window");
        for part in [KIB_4, MIB_2, GIB_1]
            .into_iter()
            .filter(|part| *part < size.bytes())
        {
            // Twice, so that the second finds the way that the first remembered.
            for _ in 0..2 {
                let page = range(start + size.bytes() / 2, part);
                let synced = mapper.map(page, Oa::new(0), Prot::RW).expect("it is free");
                synced.sync(&NoHardware).expect("there is no hardware");
                let unmapped = mapper
                    .unmap(page, UnmapPolicy::Exact)
                    .expect("it is mapped");
                unmapped
                    .gather
                    .sync(&NoHardware)
                    .expect("there is no hardware");
            }
        }
        let synced = mapper.map(block, Oa::new(0), Prot::RW).expect("it is free");
        synced.sync(&NoHardware).expect("there is no hardware");
        finds_one_entry(&mut mapper, start, size);
    }
}

/// A merge stepped through a large leaf in units of the smallest size: for hours.
#[test]
fn a_merge_takes_no_longer_than_what_is_mapped() {
    let format = riscv::Sv::sv57().with_svnapot();
    let (table, mut claim) = table(format);
    let half = claim.range();
    let size = PageSize::from_lg2(48);
    map(
        &table,
        &mut claim,
        range(half.start().get(), size.bytes()),
        0,
    );
    let mut mapper = table
        .mapper(&mut claim)
        .expect("the claim lies in the window");
    mapper
        .merge(half, BreakBeforeMake::Hitless, &NoHardware)
        .expect("nothing is to be done");
    assert_eq!(
        table.lookup(half.start()).map(|found| found.size()),
        Some(size)
    );
}

/// Leaves of a map that was refused half way stood in the table for a moment, where devices could
/// pick them up, and no invalidation followed.
#[test]
fn a_map_that_is_refused_shows_hardware_nothing() {
    #[derive(Debug, Default)]
    struct Writes(Mutex<usize>);
    impl FlushLine for Writes {
        fn flush_line(&self, _: *const u8) {
            *self.0.lock().expect("no test panics inside") += 1;
        }
    }
    let memory = NonSnooped::new(TestMemory::new(2), Writes::default());
    let table =
        Table::new(legal(vtd::SecondStage::new(48)), memory).expect("it has a software bit");
    let all = range(0, GIB_1);
    let mut claim = table.claim(all).expect("nothing is claimed");
    let mut mapper = table
        .mapper(&mut claim)
        .expect("the claim lies in the window");
    let page = range(100 * KIB_4, KIB_4);
    let synced = mapper.map(page, Oa::new(0), Prot::RW).expect("it is free");
    synced.sync(&NoHardware).expect("there is no hardware");
    let writes = || {
        *table
            .memory()
            .flush()
            .0
            .lock()
            .expect("no test panics inside")
    };
    let before = writes();
    for (start, count) in [(99, 2), (64, 64), (0, 512), (90, 11)] {
        let part = range(start * KIB_4, count * KIB_4);
        let oa = Oa::new((start + 1) * KIB_4);
        let refused = mapper.map(part, oa, Prot::RW).map(|_| ());
        assert_eq!(refused, Err(MapError::Occupied { iova: page.start() }));
        let runs = [(oa, KIB_4), (oa, (count - 1) * KIB_4)];
        let refused = mapper.map_runs(part.start(), &runs, Prot::RW).map(|_| ());
        assert_eq!(refused, Err(MapError::Occupied { iova: page.start() }));
    }
    assert_eq!(writes(), before);
}

/// A cut went through 2 MiB pages on hardware that has none.
#[test]
fn a_cut_uses_the_sizes_of_the_table_only() {
    let format = legal(legal(vtd::SecondStage::new(48)).with_sizes(MIXED_PAGES));
    let (table, mut claim) = table(format);
    map(&table, &mut claim, range(0, GIB_1), 0);
    let mut mapper = table
        .mapper(&mut claim)
        .expect("the claim lies in the window");
    let bbm = BreakBeforeMake::Hitless;
    mapper
        .cut(range(MIB_2, KIB_4), PageSize::KIB_4, bbm, &NoHardware)
        .expect("there is memory");
    for iova in [0, MIB_2, MIB_2 + KIB_4, GIB_1 - 1] {
        let found = table.lookup(Iova::new(iova)).expect("it is still mapped");
        assert_eq!((found.oa(), found.size()), (Oa::new(iova), PageSize::KIB_4));
    }
}
