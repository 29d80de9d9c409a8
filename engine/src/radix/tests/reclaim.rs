//! Tables that are unlinked while others use the tree.

use iopt_formats::tiny::Tiny;

use super::*;

fn detaching<F: Format>(format: F) -> Table<F, Heap> {
    let config = TableConfig::new().with_table_policy(TablePolicy::Detach);
    Table::with_config(format, Heap, config).unwrap()
}

#[test]
fn an_unmap_that_detaches_unlinks_the_tables_it_covers() {
    let mut table = detaching(Sv::sv48());
    let mut claim = table.claim(range(0, 2 << 30)).unwrap();
    let mut mapper = table.mapper(&mut claim).unwrap();
    // Pages, so that there are leaf tables: output addresses out of step with IOVA.
    let all = range(0, 4 * MIB_2);
    let map = mapper.map(all, Oa::new(PAGE), Prot::RW).unwrap();
    assert!(map.is_empty());
    assert_eq!(table.table_count(), 3 + 4);
    // Two tables whole, and half of the next one.
    let unmapped = mapper
        .unmap(range(0, 2 * MIB_2), UnmapPolicy::Exact)
        .unwrap();
    assert_eq!(unmapped.bytes, 2 * MIB_2);
    let changes = *unmapped.gather.changes();
    assert!(changes.has_table(Level(1)) && !changes.has_table(Level(2)));
    assert!(changes.leaf_sizes().contains(PageSize::KIB_4));
    let part = mapper
        .unmap(range(2 * MIB_2, MIB_2 + MIB_2 / 2), UnmapPolicy::Exact)
        .unwrap();
    assert!(part.gather.changes().has_table(Level(1)));
    assert_eq!(table.table_count(), 7);
    for unmapped in [unmapped, part] {
        let flushed = unmapped.gather.sync(&NoHardware).unwrap();
        assert!(flushed.covers(range(2 * MIB_2, MIB_2)) || flushed.covers(range(0, MIB_2)));
        table.reclaim(&flushed);
    }
    // The last leaf table and its path stay, as they still translate something.
    let rest = range(3 * MIB_2 + MIB_2 / 2, MIB_2 / 2);
    assert_eq!(
        dump(&table),
        [(rest.start().get(), MIB_2 / 2, rest.start().get() + PAGE)]
    );
    let unmapped = mapper.unmap(rest, UnmapPolicy::Exact).unwrap();
    assert!(unmapped.gather.changes().is_leaf_only());
    mapper
        .map(all, Oa::new(PAGE), Prot::RW)
        .unwrap()
        .sync(&NoHardware)
        .unwrap();
    assert_eq!(dump(&table), [(0, 4 * MIB_2, PAGE)]);
    table.trim();
    assert_eq!(table.table_count(), 7);
}

#[test]
fn a_detached_range_takes_the_tables_above_along() {
    let mut table = detaching(Tiny::new(3).unwrap());
    let mut claim = table.claim(range(0, 64 * PAGE)).unwrap();
    let mut mapper = table.mapper(&mut claim).unwrap();
    // What a table of level 1 spans, in pages.
    let all = range(0, 16 * PAGE);
    mapper
        .map(all, Oa::new(PAGE), Prot::RW)
        .unwrap()
        .sync(&NoHardware)
        .unwrap();
    assert_eq!(table.table_count(), 2 + 4);
    let unmapped = mapper.unmap(all, UnmapPolicy::Exact).unwrap();
    assert!(unmapped.gather.changes().has_table(Level(2)));
    let flushed = unmapped.gather.sync(&NoHardware).unwrap();
    table.reclaim(&flushed);
    table.trim();
    assert_eq!(table.table_count(), 1);
}

#[test]
fn an_unmap_without_room_in_the_quarantine_keeps_its_tables() {
    let config = TableConfig::new()
        .with_table_policy(TablePolicy::Detach)
        .with_quarantine_limit(2 * PAGE);
    let mut table = Table::with_config(Sv::sv48(), Heap, config).unwrap();
    let mut claim = table.claim(range(0, 1 << 30)).unwrap();
    let mut mapper = table.mapper(&mut claim).unwrap();
    let all = range(0, 3 * MIB_2);
    mapper
        .map(all, Oa::new(PAGE), Prot::RW)
        .unwrap()
        .sync(&NoHardware)
        .unwrap();
    let unmapped = mapper.unmap(all, UnmapPolicy::Exact).unwrap();
    assert_eq!((unmapped.bytes, dump(&table)), (3 * MIB_2, Vec::new()));
    // Compaction after the clearing found room for two of three.
    let first = unmapped.gather.sync(&NoHardware).unwrap();
    let none = mapper.compact(all).unwrap();
    assert!(none.is_empty());
    none.sync(&NoHardware).unwrap();
    table.reclaim(&first);
    table.trim();
    assert_eq!(table.table_count(), 4);
    let mut mapper = table.mapper(&mut claim).unwrap();
    let second = mapper.compact(all).unwrap().sync(&NoHardware).unwrap();
    table.reclaim(&second);
    table.trim();
    assert_eq!(table.table_count(), 3);
}

#[test]
fn a_reader_keeps_the_tables_that_it_may_be_inside() {
    let mut table = detaching(Sv::sv48());
    let mut claim = table.claim(range(0, 1 << 30)).unwrap();
    let mut mapper = table.mapper(&mut claim).unwrap();
    let block = range(0, MIB_2);
    mapper
        .map(block, Oa::new(PAGE), Prot::RW)
        .unwrap()
        .sync(&NoHardware)
        .unwrap();
    let mut reader = table.reader();
    assert!(reader.lookup(Iova::new(PAGE)).is_some());
    let unmapped = mapper.unmap(block, UnmapPolicy::Exact).unwrap();
    assert!(reader.lookup(Iova::new(PAGE)).is_none());
    let flushed = unmapped.gather.sync(&NoHardware).unwrap();
    for _ in 0..4 {
        table.reclaim(&flushed);
    }
    assert_eq!((table.table_count(), table.quarantined_count()), (4, 1));
    reader.renew();
    drop(reader);
    table.trim();
    assert_eq!((table.table_count(), table.quarantined_count()), (3, 0));
}

#[test]
fn compaction_stays_inside_the_claim() {
    let table = sv48();
    let mut claim = table.claim(range(0, MIB_2)).unwrap();
    let mut mapper = table.mapper(&mut claim).unwrap();
    let error = mapper.compact(range(0, 2 * MIB_2)).unwrap_err();
    assert!(matches!(error, CompactError::OutsideClaim { .. }));
}

#[test]
fn former_roots_stay_linked_whatever_takes_the_place_of_other_tables() {
    const TIB: u64 = 1 << 40;
    let mut table = detaching(V1::new());
    let first = table.root();
    let mut claim = table.claim(range(0, 4 * TIB)).unwrap();
    let mut mapper = table.mapper(&mut claim).unwrap();
    // The range that the first root reaches, empty, and then as a part of larger leaves.
    mapper
        .map(range(2 * TIB, TIB), Oa::new(0), Prot::RW)
        .unwrap()
        .sync(&NoHardware)
        .unwrap();
    let flushed = mapper
        .compact(range(0, TIB))
        .unwrap()
        .sync(&NoHardware)
        .unwrap();
    assert!(flushed.changes().range().is_none());
    let map = mapper.map(range(0, TIB), Oa::new(0), Prot::RW).unwrap();
    map.sync(&NoHardware).unwrap();
    let bbm = BreakBeforeMake::Hitless;
    mapper.merge(range(0, TIB), bbm, &NoHardware).unwrap();
    let unmapped = mapper.unmap(range(0, TIB), UnmapPolicy::Exact).unwrap();
    let flushed = unmapped.gather.sync(&NoHardware).unwrap();
    table.reclaim(&flushed);
    table.trim();
    let item = table
        .node_at_root(table.root().oa, table.root().level)
        .get(0)
        .unwrap();
    let link = item.load(Ordering::Relaxed);
    assert_eq!(table.child_oa(link, table.root().level), Some(first.oa));
}
