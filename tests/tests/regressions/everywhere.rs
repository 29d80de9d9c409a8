//! What should hold for every configuration.

use std::ops::ControlFlow;

use iopt::invalidation::NoHardware;
use iopt::radix::{MapperError, UnmapPolicy};
use iopt_formats::walk;
use iopt_formats::{Format, Iova, IovaRange, Oa, amd, armv8, riscv, vtd, x86_64};
use iopt_tests::check::TestTable;
use iopt_tests::configuration::{
    LARGE_PAGES, MIXED_PAGES, SMALL_PAGES, dirty_stage1, dirty_stage2, legal,
};
use iopt_tests::for_each_configuration;
use iopt_tests::model::windows;

use crate::{map, range, table};

/// Returns the address of the item that translates `iova`.
fn item_of<F: Format>(table: &TestTable<F>, iova: Iova) -> Oa {
    let mut item = None;
    let memory = table.memory();
    walk::walk(
        table.format(),
        table.root(),
        iova,
        |oa| memory.read(oa),
        |step| {
            item = Some(Oa::new(step.table.get() + 8 * step.index as u64));
        },
    )
    .expect("it is mapped");
    item.expect("a walk reads an item")
}

/// Linux removed more than its gather covered (CVE-2026-31735): hardware kept translations of
/// memory that was free again.
fn the_gather_covers_the_whole_entry_that_an_unmap_ends_in<F: Format>(format: F) {
    let (table, mut claim) = table(format);
    let smallest = format.sizes().smallest().expect("there is a size");
    let last = claim.range().last().get();
    let sizes: Vec<_> = format
        .sizes()
        .iter()
        .filter(|size| *size != smallest)
        .collect();
    for size in sizes.into_iter().rev() {
        let page = range(last - size.offset_mask(), size.bytes());
        map(&table, &mut claim, page, 0);
        let mut mapper = table
            .mapper(&mut claim)
            .expect("the claim lies in the window");
        let part = range(page.start().get(), smallest.bytes());
        let unmapped = mapper
            .unmap(part, UnmapPolicy::WholeEntries)
            .expect("it is mapped");
        assert_eq!(unmapped.bytes, size.bytes());
        assert_eq!(unmapped.gather.range(), Some(page));
        assert!(unmapped.gather.changes().leaf_sizes().contains(size));
        let flushed = unmapped
            .gather
            .sync(&NoHardware)
            .expect("there is no hardware");
        assert!(flushed.covers(page));
        assert_eq!(table.lookup(page.last()), None);
    }
}

/// Linux took the length of a dirty group for an index and missed its last item (`record_dirty`).
fn a_write_through_any_item_dirties_the_whole_group<F: Format>(format: F) {
    let Some(rule) = format.dirty_rule() else {
        return;
    };
    let (table, mut claim) = table(format);
    let last = claim.range().last().get();
    let sizes: Vec<_> = format.sizes().iter().collect();
    for size in sizes.into_iter().rev() {
        let page = range(last - size.offset_mask(), size.bytes());
        map(&table, &mut claim, page, 0);
        let item_lg2 = F::item_lg2(F::level_of(size));
        for item in [0, F::item_count(size) as u64 - 1] {
            let mut mapper = table
                .mapper(&mut claim)
                .expect("the claim lies in the window");
            let taken = mapper
                .take_dirty(page, |_| {})
                .expect("dirty pages are tracked");
            taken.sync(&NoHardware).expect("there is no hardware");
            let iova = Iova::new(page.start().get() + (item << item_lg2));
            let word = item_of(&table, iova);
            table
                .memory()
                .update(word, |word| rule.soil(word))
                .expect("the item is in memory");
            let mut dirty = Vec::new();
            table
                .dirty(page, |part| dirty.push(part))
                .expect("dirty pages are tracked");
            assert_eq!(dirty, [page], "item {item} of {size}");
            let mut taken = Vec::new();
            let gather = mapper.take_dirty(page, |part| taken.push(part));
            let gather = gather.expect("dirty pages are tracked");
            assert_eq!((taken, gather.range()), (vec![page], Some(page)));
            gather.sync(&NoHardware).expect("there is no hardware");
            table
                .dirty(page, |part| panic!("{part} is still dirty"))
                .expect("as above");
        }
        for (turn, marked) in [page.start(), page.last()].into_iter().enumerate() {
            if turn > 0 {
                map(&table, &mut claim, page, 0);
            }
            let mut mapper = table
                .mapper(&mut claim)
                .expect("the claim lies in the window");
            let taken = mapper
                .take_dirty(page, |_| {})
                .expect("dirty pages are tracked");
            taken.sync(&NoHardware).expect("there is no hardware");
            let word = item_of(&table, marked);
            table
                .memory()
                .update(word, |word| rule.soil(word))
                .expect("the item is in memory");
            let mut removed = Vec::new();
            let unmapped = mapper.unmap_with(page, UnmapPolicy::Exact, |run| removed.push(run));
            let gather = unmapped.expect("it is mapped").gather;
            gather.sync(&NoHardware).expect("there is no hardware");
            assert_eq!(removed.len(), 1);
            assert!(removed[0].dirty && removed[0].range == page);
        }
    }
}

/// Linux cast a negative error to an address when it looked up what no table decodes.
fn a_lookup_outside_of_the_window_finds_nothing<F: Format>(format: F) {
    let (table, mut claim) = table(format);
    let smallest = format.sizes().smallest().expect("there is a size");
    for window in windows(format.geometry()) {
        let ends = [
            window.start().get().checked_sub(1),
            window.last().get().checked_add(1),
        ];
        for iova in ends.into_iter().flatten() {
            assert_eq!(table.lookup(Iova::new(iova)), None);
        }
    }
    let last = claim.range().last().get();
    map(
        &table,
        &mut claim,
        range(last - smallest.offset_mask(), smallest.bytes()),
        0,
    );
    if let Some(next) = last.checked_add(1) {
        assert_eq!(table.lookup(Iova::new(next)), None);
        let outside = table.claim(range(next, smallest.bytes()));
        let mut outside = outside.expect("it is not claimed");
        let refused = table.mapper(&mut outside).map(|_| ());
        assert!(matches!(refused, Err(MapperError::OutsideWindow { .. })));
    }
    drop(claim);
    let mut all = table.claim(IovaRange::FULL).expect("nothing is claimed");
    let refused = table.mapper(&mut all).is_err();
    assert_eq!(refused, windows(format.geometry()) != [IovaRange::FULL]);
}

/// Linux mistook items for entries in the length of a run and went one by one: slow but correct.
fn a_run_of_entries_of_any_size_is_reported_as_one<F: Format>(format: F) {
    let (table, mut claim) = table(format);
    let last = claim.range().last().get();
    let sizes: Vec<_> = format.sizes().iter().collect();
    for size in sizes.into_iter().rev() {
        let len = size.bytes() * 2;
        let fits = claim.range().len_minus_one() >= len - 1 && len - 1 <= last;
        if !fits || len > 1 << (format.oa_bits() - 1) {
            continue;
        }
        let pages = range(last - (len - 1), len);
        map(&table, &mut claim, pages, 0);
        let mut runs = 0;
        table.dump(pages, |run| {
            runs += 1;
            assert_eq!(run.range, pages);
            ControlFlow::Continue(())
        });
        let mut mapper = table
            .mapper(&mut claim)
            .expect("the claim lies in the window");
        let unmapped = mapper.unmap_with(pages, UnmapPolicy::Exact, |run| {
            runs += 1;
            assert_eq!((run.range, run.oa), (pages, Oa::new(0)));
        });
        unmapped
            .expect("it is mapped")
            .gather
            .sync(&NoHardware)
            .expect("there is no hardware");
        assert_eq!(runs, 2);
    }
}

macro_rules! tests {
    ($($name:ident: $configured:expr;)+) => {
        $(
            #[test]
            fn $name() {
                run(legal($configured));
            }
        )+
    };
}

macro_rules! for_all {
    ($($behaviour:ident),+ $(,)?) => {
        $(
            mod $behaviour {
                use super::*;

                use super::$behaviour as run;

                for_each_configuration!(tests);
            }
        )+
    };
}

for_all!(
    the_gather_covers_the_whole_entry_that_an_unmap_ends_in,
    a_write_through_any_item_dirties_the_whole_group,
    a_lookup_outside_of_the_window_finds_nothing,
    a_run_of_entries_of_any_size_is_reported_as_one,
);
