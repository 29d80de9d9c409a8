//! Small checks of each operation; the differential tests of the tests package go wide.

mod reclaim;

use core::cell::RefCell;
use core::ops::ControlFlow;

use alloc::vec::Vec;
use iopt_formats::amd::V1;
use iopt_formats::riscv::Sv;
use iopt_formats::{Format, Iova, IovaRange, Oa, PageSize, Prot};

use super::*;
use crate::invalidation::{Callback, NoHardware};
use crate::mem::{FlushLine, Heap, Limited, NonSnooped};
use crate::sync::{self, Mutex};

const PAGE: u64 = 0x1000;
const MIB_2: u64 = 0x20_0000;

fn range(start: u64, len: u64) -> IovaRange {
    IovaRange::with_len(Iova::new(start), len).unwrap()
}

fn sv48() -> Table<Sv, Heap> {
    Table::new(Sv::sv48(), Heap).unwrap()
}

fn dump<F: Format, M: TableMemory>(table: &Table<F, M>) -> Vec<(u64, u64, u64)> {
    let mut runs = Vec::new();
    table.dump(IovaRange::FULL, |run| {
        runs.push((
            run.range.start().get(),
            run.range.len_minus_one() + 1,
            run.oa.get(),
        ));
        ControlFlow::Continue(())
    });
    runs
}

#[test]
fn a_page_is_mapped_found_and_unmapped() {
    let table = sv48();
    let mut claim = table.claim(range(0, 1 << 30)).unwrap();
    let mut mapper = table.mapper(&mut claim).unwrap();
    let page = range(0x5000, PAGE);
    assert!(
        mapper
            .map(page, Oa::new(0x8_0000), Prot::RW)
            .unwrap()
            .is_empty()
    );
    let found = table.lookup(Iova::new(0x5123)).unwrap();
    assert_eq!(
        (found.oa().get(), found.size()),
        (0x8_0123, PageSize::KIB_4)
    );
    assert!(found.prot().can_write());
    assert!(table.lookup(Iova::new(0x4fff)).is_none());
    assert!(table.lookup(Iova::new(0x6000)).is_none());
    assert_eq!(
        mapper.map(page, Oa::new(0), Prot::RW).unwrap_err(),
        MapError::Occupied { iova: page.start() }
    );
    let done = mapper.unmap(page, UnmapPolicy::Exact).unwrap();
    assert_eq!(done.bytes, PAGE);
    assert_eq!(done.gather.range(), Some(page));
    assert!(done.gather.sync(&NoHardware).unwrap().covers(page));
    assert!(table.lookup(Iova::new(0x5123)).is_none());
    assert_eq!(
        mapper.unmap(page, UnmapPolicy::Exact).unwrap_err(),
        UnmapError::Hole { iova: page.start() }
    );
}

#[test]
fn ranges_use_the_largest_leaves_and_dump_as_one_run() {
    let table = sv48();
    let mut claim = table.claim(range(0, 1 << 40)).unwrap();
    let mut mapper = table.mapper(&mut claim).unwrap();
    // 14 x 2 MiB, 3 x 1 GiB, 3 x 2 MiB: a case of two changes of size.
    let (first, end) = (0x3f_e400_u64 << 12, 0x4c_0600_u64 << 12);
    let big = range(first, end - first);
    mapper
        .map(big, Oa::new(first), Prot::RW)
        .unwrap()
        .sync(&NoHardware)
        .unwrap();
    let mut sizes = Vec::new();
    let mut at = first;
    while at < end {
        let size = table.lookup(Iova::new(at)).unwrap().size();
        sizes.push(size);
        at += size.bytes();
    }
    assert_eq!(sizes.len(), 20);
    assert_eq!(
        sizes
            .iter()
            .filter(|&&size| size == PageSize::GIB_1)
            .count(),
        3
    );
    assert_eq!(dump(&table), [(first, end - first, first)]);
    let done = mapper.unmap(big, UnmapPolicy::Exact).unwrap();
    assert_eq!(done.bytes, end - first);
    let sizes = PageSizes::EMPTY.with(PageSize::MIB_2).with(PageSize::GIB_1);
    assert_eq!(done.gather.changes().leaf_sizes(), sizes);
    done.gather.sync(&NoHardware).unwrap();
    assert_eq!(dump(&table), []);
}

#[test]
fn an_end_inside_a_large_leaf_is_refused_or_takes_it_whole() {
    let table = sv48();
    let mut claim = table.claim(range(0, 1 << 30)).unwrap();
    let mut mapper = table.mapper(&mut claim).unwrap();
    mapper
        .map(range(0, 2 * MIB_2), Oa::new(0), Prot::RW)
        .unwrap()
        .sync(&NoHardware)
        .unwrap();
    let size = PageSize::MIB_2;
    let part = range(0, MIB_2 + PAGE);
    assert_eq!(
        mapper.unmap(part, UnmapPolicy::Exact).unwrap_err(),
        UnmapError::Splits {
            iova: Iova::new(MIB_2),
            size
        }
    );
    assert_eq!(
        mapper
            .unmap(range(PAGE, MIB_2), UnmapPolicy::WholeEntries)
            .unwrap_err(),
        UnmapError::Splits {
            iova: Iova::new(PAGE),
            size
        }
    );
    assert_eq!(dump(&table), [(0, 2 * MIB_2, 0)]);
    let done = mapper.unmap(part, UnmapPolicy::WholeEntries).unwrap();
    assert_eq!(done.bytes, 2 * MIB_2);
    assert_eq!(done.gather.range(), Some(range(0, 2 * MIB_2)));
    done.gather.sync(&NoHardware).unwrap();
    assert_eq!(dump(&table), []);
}

#[test]
fn a_block_over_an_empty_table_retires_it_and_asks_for_a_sync() {
    let mut table = sv48();
    let registry = table.registry().clone();
    let mut claim = registry.claim(range(0, 1 << 30)).unwrap();
    let mut mapper = table.mapper(&mut claim).unwrap();
    mapper
        .map(range(PAGE, PAGE), Oa::new(PAGE), Prot::RW)
        .unwrap()
        .sync(&NoHardware)
        .unwrap();
    let occupied = mapper
        .map(range(0, MIB_2), Oa::new(0), Prot::RW)
        .unwrap_err();
    assert_eq!(
        occupied,
        MapError::Occupied {
            iova: Iova::new(PAGE)
        }
    );
    mapper
        .unmap(range(PAGE, PAGE), UnmapPolicy::Exact)
        .unwrap()
        .gather
        .sync(&NoHardware)
        .unwrap();
    assert_eq!(table.table_count(), 4);
    let sync = mapper.map(range(0, MIB_2), Oa::new(0), Prot::RW).unwrap();
    assert!(!sync.changes().unwrap().is_leaf_only());
    assert!(sync.changes().unwrap().has_table(Level(1)));
    assert_eq!(table.lookup(Iova::new(0)).unwrap().size(), PageSize::MIB_2);
    let flushed = sync.sync(&NoHardware).unwrap();
    assert_eq!(table.table_count(), 4);
    table.reclaim(&flushed);
    table.trim();
    assert_eq!(table.table_count(), 3);
}

#[test]
fn a_failed_map_leaves_no_trace_at_any_allocation() {
    for count in 0..8 {
        let table = Table::new(Sv::sv48(), Limited::new(Heap, count + 1)).unwrap();
        let mut claim = table.claim(range(0, 1 << 40)).unwrap();
        let mut mapper = table.mapper(&mut claim).unwrap();
        // Six tables: two on the shared path, and two paths of two below it.
        let pages = range((1 << 30) - MIB_2, 2 * MIB_2);
        let result = mapper.map(pages, Oa::new(PAGE), Prot::RW);
        if count < 5 {
            assert!(matches!(result, Err(MapError::OutOfMemory(_))), "{count}");
            assert_eq!((table.table_count(), dump(&table).len()), (1, 0));
            assert_eq!(table.memory().used_count(), 1);
        } else {
            result.unwrap().sync(&NoHardware).unwrap();
            assert_eq!((table.table_count(), dump(&table).len()), (6, 1));
        }
    }
}

#[test]
fn after_reserve_maps_need_no_memory() {
    let table = Table::new(Sv::sv48(), Limited::new(Heap, 1000)).unwrap();
    let mut claim = table.claim(range(0, 1 << 40)).unwrap();
    let mut mapper = table.mapper(&mut claim).unwrap();
    let pages = range((1 << 30) - MIB_2, 2 * MIB_2);
    mapper.reserve(pages).unwrap();
    table.memory().set_left(0);
    mapper
        .map(pages, Oa::new(PAGE), Prot::RW)
        .unwrap()
        .sync(&NoHardware)
        .unwrap();
    assert_eq!(dump(&table).len(), 1);
}

#[test]
#[cfg_attr(miri, ignore = "counts millions of tables")]
fn a_hopeless_request_fails_in_bounded_time() {
    let sizes = PageSizes::EMPTY.with(PageSize::KIB_4);
    let format = Sv::sv57().with_sizes(sizes).unwrap();
    let table = Table::new(format, Heap).unwrap();
    let mut claim = table.claim(range(0, 1 << 56)).unwrap();
    let mut mapper = table.mapper(&mut claim).unwrap();
    let all = mapper.range();
    let refused = mapper
        .map(range(0, 1 << 55), Oa::new(0), Prot::RW)
        .unwrap_err();
    assert!(matches!(refused, MapError::OutOfMemory(_)));
    assert!(matches!(mapper.reserve(all), Err(MapError::OutOfMemory(_))));
    assert_eq!(table.table_count(), 1);
}

#[test]
fn compact_frees_what_is_empty_and_only_that() {
    let mut table = sv48();
    let registry = table.registry().clone();
    let mut claim = registry.claim(range(0, 1 << 40)).unwrap();
    let mut mapper = table.mapper(&mut claim).unwrap();
    for iova in [0, MIB_2, 1 << 30, 1 << 39] {
        mapper
            .map(range(iova, PAGE), Oa::new(PAGE), Prot::RW)
            .unwrap()
            .sync(&NoHardware)
            .unwrap();
    }
    for iova in [MIB_2, 1 << 39] {
        mapper
            .unmap(range(iova, PAGE), UnmapPolicy::Exact)
            .unwrap()
            .gather
            .sync(&NoHardware)
            .unwrap();
    }
    assert_eq!(table.table_count(), 10);
    let gather = mapper.compact(range(0, 1 << 40)).unwrap();
    let flushed = gather.sync(&NoHardware).unwrap();
    table.reclaim(&flushed);
    table.trim();
    assert_eq!(table.table_count(), 6);
    assert_eq!(dump(&table).len(), 2);
}

#[test]
fn a_growing_root_is_announced_and_keeps_old_translations() {
    let table = Table::new(V1::new(), Heap).unwrap();
    let mut claim = table.claim(IovaRange::FULL).unwrap();
    let mut mapper = table.mapper(&mut claim).unwrap();
    mapper
        .map(range(0x7000, PAGE), Oa::new(0x3000), Prot::RW)
        .unwrap()
        .sync(&NoHardware)
        .unwrap();
    assert_eq!(table.root().level, Level(2));
    let top = range(u64::MAX - 0xfff, PAGE);
    let sync = mapper.map(top, Oa::new(0x9000), Prot::RW).unwrap();
    assert_eq!(sync.new_root(), Some(table.root()));
    assert_eq!(table.root().level, Level(5));
    sync.sync(&NoHardware).unwrap();
    assert_eq!(table.lookup(Iova::new(0x7001)).unwrap().oa().get(), 0x3001);
    assert_eq!(
        table.lookup(Iova::new(u64::MAX)).unwrap().oa().get(),
        0x9fff
    );
    let again = mapper
        .map(range(u64::MAX - 0x2fff, PAGE), Oa::new(0xb000), Prot::RW)
        .unwrap();
    assert!(again.is_empty());
}

#[test]
fn a_cut_block_translates_as_before_and_merges_again() {
    let mut table = sv48();
    let registry = table.registry().clone();
    let mut claim = registry.claim(range(0, 1 << 40)).unwrap();
    let mut mapper = table.mapper(&mut claim).unwrap();
    let block = range(1 << 30, 1 << 30);
    mapper
        .map(block, Oa::new(1 << 31), Prot::R)
        .unwrap()
        .sync(&NoHardware)
        .unwrap();
    let told = RefCell::new(Vec::new());
    let hardware = Callback::new(|changes| {
        told.borrow_mut().push(*changes);
        Ok(())
    });
    let bbm = BreakBeforeMake::Required(FaultWindow::Refuse);
    mapper
        .cut(range(1 << 30, PAGE), PageSize::KIB_4, bbm, &hardware)
        .unwrap();
    assert_eq!(
        table.lookup(Iova::new(1 << 30)).unwrap().size(),
        PageSize::KIB_4
    );
    assert_eq!(
        table.lookup(Iova::new((1 << 30) + MIB_2)).unwrap().size(),
        PageSize::MIB_2
    );
    assert_eq!(dump(&table), [(1 << 30, 1 << 30, 1 << 31)]);
    assert!(!told.borrow().is_empty());
    let flushed = mapper.merge(block, bbm, &hardware).unwrap();
    assert_eq!(
        table.lookup(Iova::new(1 << 30)).unwrap().size(),
        PageSize::GIB_1
    );
    assert_eq!(dump(&table), [(1 << 30, 1 << 30, 1 << 31)]);
    table.reclaim(&flushed);
    table.trim();
    assert_eq!(table.table_count(), 2);
}

#[test]
fn cutting_and_merging_groups_keeps_dirty_state() {
    let table = Table::new(V1::new().with_dirty(), Heap).unwrap();
    let mut claim = table.claim(range(0, 1 << 30)).unwrap();
    let mut mapper = table.mapper(&mut claim).unwrap();
    let group = range(0, 0x1_0000);
    mapper
        .map(group, Oa::new(0x1_0000), Prot::RW)
        .unwrap()
        .sync(&NoHardware)
        .unwrap();
    assert_eq!(table.lookup(Iova::new(0)).unwrap().size(), PageSize::KIB_64);
    // Hardware writes through the last of the sixteen items.
    let rule = table.format().dirty_rule().unwrap();
    let slot = table.descend(0xf000, Level::LEAF);
    slot.node
        .item(0xf000, Level::LEAF)
        .fetch_or(rule.mask, Ordering::Relaxed);
    let mut found = Vec::new();
    table
        .dirty(IovaRange::FULL, |range| found.push(range))
        .unwrap();
    assert_eq!(found, [group]);
    let bbm = BreakBeforeMake::Hitless;
    mapper
        .cut(group, PageSize::KIB_4, bbm, &NoHardware)
        .unwrap();
    assert_eq!(table.lookup(Iova::new(0)).unwrap().size(), PageSize::KIB_4);
    assert!(table.lookup(Iova::new(0)).unwrap().is_dirty());
    let mut taken = Vec::new();
    let gather = mapper
        .take_dirty(range(0, 0x8000), |range| taken.push(range))
        .unwrap();
    assert_eq!(taken, [range(0, 0x8000)]);
    gather.sync(&NoHardware).unwrap();
    mapper.merge(group, bbm, &NoHardware).unwrap();
    assert_eq!(table.lookup(Iova::new(0)).unwrap().size(), PageSize::KIB_64);
    let gather = mapper.take_dirty(group, |range| taken.push(range)).unwrap();
    assert_eq!(taken, [range(0, 0x8000), group]);
    gather.sync(&NoHardware).unwrap();
    table
        .dirty(IovaRange::FULL, |range| panic!("{range} is dirty"))
        .unwrap();
}

/// Records flushed lines.
struct Recorder(Mutex<Vec<usize>>);

impl Default for Recorder {
    fn default() -> Self {
        Self(Mutex::new(&sync::QUARANTINE, Vec::new()))
    }
}

impl FlushLine for &Recorder {
    fn flush_line(&self, line: *const u8) {
        self.0.lock().push(line.addr());
    }
}

#[test]
fn walkers_that_do_not_snoop_get_each_changed_line_once() {
    let recorder = Recorder::default();
    let table = Table::new(Sv::sv48(), NonSnooped::new(Heap, &recorder)).unwrap();
    let taken = || core::mem::take(&mut *recorder.0.lock());
    assert_eq!(taken().len(), 64);
    let mut claim = table.claim(range(0, 1 << 30)).unwrap();
    let mut mapper = table.mapper(&mut claim).unwrap();
    mapper
        .map(range(0, PAGE), Oa::new(PAGE), Prot::RW)
        .unwrap()
        .sync(&NoHardware)
        .unwrap();
    // Three new tables of 64 lines, three links and one leaf.
    assert_eq!(taken().len(), 3 * 64 + 3 + 1);
    mapper
        .map(range(PAGE, 16 * PAGE), Oa::new(0), Prot::RW)
        .unwrap()
        .sync(&NoHardware)
        .unwrap();
    assert_eq!(taken().len(), 3);
    let done = mapper
        .unmap(range(0, 17 * PAGE), UnmapPolicy::Exact)
        .unwrap();
    done.gather.sync(&NoHardware).unwrap();
    assert_eq!(taken().len(), 3);
}

#[test]
fn a_small_root_is_written_back_with_the_rest_of_its_page() {
    let recorder = Recorder::default();
    let format = V1::fixed(3, 32).unwrap();
    let _table = Table::new(format, NonSnooped::new(Heap, &recorder));
    // AMD has a pending bit but four items in this root; hardware may index all 512.
    assert_eq!(recorder.0.lock().len(), 64);
}

#[test]
fn protect_keeps_addresses_and_says_what_changed() {
    let table = sv48();
    let mut claim = table.claim(range(0, 1 << 30)).unwrap();
    let mut mapper = table.mapper(&mut claim).unwrap();
    let all = range(0, MIB_2 + 4 * PAGE);
    mapper
        .map(all, Oa::new(0), Prot::RW)
        .unwrap()
        .sync(&NoHardware)
        .unwrap();
    let splits = mapper.protect(range(0, PAGE), Prot::R).unwrap_err();
    assert!(matches!(
        splits,
        ProtectError::Range(UnmapError::Splits { .. })
    ));
    let done = mapper.protect(all, Prot::R).unwrap();
    assert_eq!(done.gather.range(), Some(all));
    done.gather.sync(&NoHardware).unwrap();
    let found = table.lookup(Iova::new(MIB_2 + PAGE)).unwrap();
    assert_eq!(
        (found.prot().can_write(), found.oa().get()),
        (false, MIB_2 + PAGE)
    );
    assert_eq!(dump(&table).len(), 1);
}

#[test]
fn unmap_with_reports_maximal_runs() {
    let table = sv48();
    let mut claim = table.claim(range(0, 1 << 30)).unwrap();
    let mut mapper = table.mapper(&mut claim).unwrap();
    let runs = [
        (Oa::new(0x5000), 2 * PAGE),
        (Oa::new(0x7000), PAGE),
        (Oa::new(0), PAGE),
    ];
    mapper
        .map_runs(Iova::new(0), &runs, Prot::RW)
        .unwrap()
        .sync(&NoHardware)
        .unwrap();
    let removed = RefCell::new(Vec::new());
    let note = |run: Removed| removed.borrow_mut().push((run.range, run.oa.get()));
    let done = mapper
        .unmap_with(range(0, 4 * PAGE), UnmapPolicy::Exact, note)
        .unwrap();
    done.gather.sync(&NoHardware).unwrap();
    let expected = [(range(0, 3 * PAGE), 0x5000), (range(3 * PAGE, PAGE), 0)];
    assert_eq!(removed.into_inner(), expected);
}

#[test]
fn a_list_with_a_bad_run_maps_nothing() {
    let table = sv48();
    let mut claim = table.claim(range(0, 1 << 30)).unwrap();
    let mut mapper = table.mapper(&mut claim).unwrap();
    let runs = [(Oa::new(0), 2 * PAGE), (Oa::new(0x7010), PAGE)];
    assert!(mapper.map_runs(Iova::new(0), &runs, Prot::RW).is_err());
    assert_eq!(dump(&table), []);
    let wraps = mapper
        .map_runs(Iova::new(0), &[(Oa::new(0), 0)], Prot::RW)
        .unwrap_err();
    assert!(matches!(wraps, MapError::Wraps { len: 0, .. }));
}

#[test]
fn arguments_outside_of_the_claim_the_window_or_the_width_are_refused() {
    let table = sv48();
    let mut hole = table.claim(range((1 << 47) - PAGE, 2 * PAGE)).unwrap();
    assert!(matches!(
        table.mapper(&mut hole),
        Err(MapperError::OutsideWindow { .. })
    ));
    let mut foreign = Registry::new().claim(range(0, PAGE)).unwrap();
    assert!(matches!(
        table.mapper(&mut foreign),
        Err(MapperError::ForeignClaim { .. })
    ));
    let mut claim = table.claim(range(PAGE, 4 * PAGE)).unwrap();
    let mut mapper = table.mapper(&mut claim).unwrap();
    let map = |mapper: &mut Mapper<'_, _, _>, start, len, oa| {
        mapper
            .map(range(start, len), Oa::new(oa), Prot::RW)
            .unwrap_err()
    };
    assert!(matches!(
        map(&mut mapper, 0, PAGE, 0),
        MapError::OutsideClaim { .. }
    ));
    assert!(matches!(
        map(&mut mapper, 4 * PAGE, 2 * PAGE, 0),
        MapError::OutsideClaim { .. }
    ));
    assert!(matches!(
        map(&mut mapper, PAGE, 0x800, 0),
        MapError::Unaligned { .. }
    ));
    assert!(matches!(
        map(&mut mapper, PAGE, PAGE, 1 << 60),
        MapError::OaWidth { .. }
    ));
    assert!(matches!(
        map(&mut mapper, PAGE, PAGE, u64::MAX - 0xfff),
        MapError::OaWidth { .. }
    ));
    let none = Prot::R.with_rights(iopt_formats::Rights::NONE);
    let refused = mapper.map(range(PAGE, PAGE), Oa::new(0), none).unwrap_err();
    assert!(matches!(refused, MapError::Prot { .. }));
}

#[test]
fn one_mapper_keeps_blocks_of_different_tables_apart() {
    let table = sv48();
    let mut claim = table.claim(range(0, 1 << 40)).unwrap();
    let mut mapper = table.mapper(&mut claim).unwrap();
    // The same item of two tables of level 2.
    let (low, high) = (range(0, 1 << 30), range(1 << 39, 1 << 30));
    let oa_of = |block: IovaRange| Oa::new(block.start().get() + (1 << 41));
    for block in [low, high] {
        let _ = mapper.map(block, oa_of(block), Prot::RW).unwrap();
    }
    for (near, far) in [(low, high), (high, low), (low, high)] {
        // Now the table of the near block is the one at hand.
        for block in [near, far] {
            let unmapped = mapper.unmap(block, UnmapPolicy::Exact).unwrap();
            let _ = unmapped.gather.sync(&NoHardware).unwrap();
            assert!(table.lookup(block.start()).is_none());
            let other = if block == low { high } else { low };
            assert_eq!(table.lookup(other.start()).unwrap().oa(), oa_of(other));
            let _ = mapper.map(block, oa_of(block), Prot::RW).unwrap();
            assert_eq!(table.lookup(block.start()).unwrap().oa(), oa_of(block));
        }
    }
}
