//! Every interleaving of a few operations on one small table.

pub(crate) mod memory;

use alloc::sync::Arc;
use core::array;

use iopt_formats::tiny::Tiny;
use iopt_formats::{Entry, Format, Iova, IovaRange, Level, Memory, Oa, Prot, Rights};

use crate::claim::{Claim, Registry};
use crate::invalidation::NoHardware;
use crate::mem::NonSnooped;
use crate::radix::models::memory::{ModelMemory, Shadow};
use crate::radix::{Mapper, Table, TableConfig, TablePolicy, UnmapError, UnmapPolicy};
use crate::sync::atomic::Ordering;
use crate::sync::models::thread;
use crate::sync::{bounded_model, model};

const PAGE: u64 = 0x1000;
/// What a leaf table of four items spans.
const SPAN: u64 = 4 * PAGE;

type Small = Table<Tiny, ModelMemory>;

/// Two levels: a root over four leaf tables.
fn tiny() -> Tiny {
    Tiny::new(2).unwrap()
}

fn table(format: Tiny, page_count: usize) -> Arc<Small> {
    let config = TableConfig::new().with_table_policy(TablePolicy::Detach);
    let memory = ModelMemory::new(page_count, 4);
    Arc::new(Table::with_config(format, memory, config).unwrap())
}

fn range(start: u64, len: u64) -> IovaRange {
    IovaRange::with_len(Iova::new(start), len).unwrap()
}

fn claims<const N: usize>(registry: &Registry, ranges: [(u64, u64); N]) -> [Claim; N] {
    array::from_fn(|index| {
        let (start, len) = ranges[index];
        registry.claim(range(start, len)).unwrap()
    })
}

/// Output addresses are out of step with IOVA, so that nothing becomes a larger leaf.
fn oa_of(iova: u64) -> u64 {
    iova + 0x10_1000
}

fn map(mapper: &mut Mapper<'_, Tiny, ModelMemory>, start: u64, len: u64) {
    let sync = mapper.map(range(start, len), Oa::new(oa_of(start)), Prot::RW);
    sync.unwrap().sync(&NoHardware).unwrap();
}

fn unmap(mapper: &mut Mapper<'_, Tiny, ModelMemory>, start: u64, len: u64) {
    let unmapped = mapper.unmap(range(start, len), UnmapPolicy::Exact).unwrap();
    let flushed = unmapped.gather.sync(&NoHardware).unwrap();
    mapper.table().reclaim(&flushed);
}

fn found(table: &Small, iova: u64) -> Option<u64> {
    table.lookup(Iova::new(iova)).map(|found| found.oa().get())
}

/// Neither finds the leaf table; one links it, and the other uses that one.
#[test]
fn two_threads_install_one_table() {
    model(|| install_together(tiny(), 2));
}

/// As above, with a table in between that both have to link first.
#[test]
fn two_threads_install_one_path() {
    bounded_model(3, || install_together(Tiny::new(3).unwrap(), 3));
}

fn install_together(format: Tiny, table_count: usize) {
    let table = table(format, 2 * table_count);
    let [mut one, mut two] = claims(table.registry(), [(0, PAGE), (PAGE, PAGE)]);
    // A look at what is there yet makes the mapper remember the table above, where there is one.
    let map = |table: &Small, claim: &mut Claim, start| {
        let mut mapper = table.mapper(claim).unwrap();
        let hole = mapper.unmap(range(start, PAGE), UnmapPolicy::Exact);
        assert_eq!(
            hole.unwrap_err(),
            UnmapError::Hole {
                iova: Iova::new(start)
            }
        );
        map(&mut mapper, start, PAGE);
    };
    let other = {
        let table = Arc::clone(&table);
        thread::spawn(move || map(&table, &mut one, 0))
    };
    map(&table, &mut two, PAGE);
    assert_eq!(found(&table, PAGE), Some(oa_of(PAGE)));
    other.join().unwrap();
    for iova in [0, PAGE] {
        assert_eq!(found(&table, iova), Some(oa_of(iova)));
    }
    let counts = (table.table_count(), table.memory().used_count());
    assert_eq!(counts, (table_count, table_count));
}

/// One thread takes its tables out while another one links and fills one that it owns a part of.
#[test]
fn compaction_spares_the_table_that_a_neighbour_fills() {
    model(|| {
        let table = table(tiny(), 4);
        let [mut one, mut two] = claims(
            table.registry(),
            [(0, SPAN + 2 * PAGE), (SPAN + 2 * PAGE, 2 * PAGE)],
        );
        let mut mapper = table.mapper(&mut one).unwrap();
        mapper.reserve(range(0, 2 * SPAN - 2 * PAGE)).unwrap();
        let other = {
            let table = Arc::clone(&table);
            let at = SPAN + 3 * PAGE;
            thread::spawn(move || map(&mut table.mapper(&mut two).unwrap(), at, PAGE))
        };
        let gather = mapper.compact(range(0, SPAN + 2 * PAGE)).unwrap();
        table.reclaim(&gather.sync(&NoHardware).unwrap());
        other.join().unwrap();
        assert_eq!(found(&table, SPAN + 3 * PAGE), Some(oa_of(SPAN + 3 * PAGE)));
        assert_eq!((table.table_count(), table.memory().used_count()), (2, 2));
    });
}

/// A reader meets a table that is unlinked, given back, and used again for other addresses.
#[test]
fn a_reader_never_meets_a_table_that_was_freed() {
    model(|| {
        let table = table(tiny(), 3);
        let [mut claim] = claims(table.registry(), [(0, 2 * SPAN)]);
        map(&mut table.mapper(&mut claim).unwrap(), 0, SPAN);
        let reader = {
            let table = Arc::clone(&table);
            thread::spawn(move || {
                let found = found(&table, PAGE);
                assert!(found.is_none_or(|oa| oa == oa_of(PAGE)), "{found:x?}");
            })
        };
        let mut mapper = table.mapper(&mut claim).unwrap();
        unmap(&mut mapper, 0, SPAN);
        // One page is left at least; the old one is taken if it is free.
        let more = mapper.map(range(SPAN, PAGE), Oa::new(oa_of(SPAN)), Prot::RW);
        more.unwrap().sync(&NoHardware).unwrap();
        reader.join().unwrap();
    });
}

/// A reader that looks up twice in one epoch may be in the middle of both.
#[test]
fn a_reader_of_several_lookups_holds_its_epoch() {
    model(|| {
        let table = table(tiny(), 3);
        let [mut claim] = claims(table.registry(), [(0, SPAN)]);
        map(&mut table.mapper(&mut claim).unwrap(), 0, SPAN);
        let reader = {
            let table = Arc::clone(&table);
            thread::spawn(move || {
                let mut reader = table.reader();
                for _ in 0..2 {
                    let found = reader.lookup(Iova::new(0));
                    assert!(found.is_none_or(|found| found.oa().get() == oa_of(0)));
                    reader.renew();
                }
            })
        };
        unmap(&mut table.mapper(&mut claim).unwrap(), 0, SPAN);
        reader.join().unwrap();
    });
}

/// Writes to a page as hardware does that finds it by a walk: if the item allows it and does not say
/// so yet, it is marked dirty. Returns whether that changed it.
fn write_to_page(table: &Small, iova: u64) -> bool {
    let format = table.format();
    let rule = format.dirty_rule().unwrap();
    let index = |level| Tiny::index(Iova::new(iova), level);
    let link = table.memory().items(table.root().oa)[index(Level(1))].load(Ordering::Acquire);
    let Ok(Entry::Table(next)) = format.decode(link, Level(1)) else {
        panic!("the table stays linked");
    };
    let item = &table.memory().items(next.oa)[index(Level::LEAF)];
    let word = item.load(Ordering::Relaxed);
    let marked = rule.soil(word);
    marked != word
        && item
            .compare_exchange(word, marked, Ordering::Relaxed, Ordering::Relaxed)
            .is_ok()
}

/// Starts hardware that writes to page 0.
fn write_beside(table: &Arc<Small>) -> thread::JoinHandle<bool> {
    let table = Arc::clone(table);
    thread::spawn(move || write_to_page(&table, 0))
}

/// A table with a mapped page that is not dirty, and a claim over it and its neighbour, which keeps
/// the leaf table in use.
fn clean_page() -> (Arc<Small>, Claim) {
    let table = table(tiny().with_dirty(), 2);
    let [mut claim] = claims(table.registry(), [(0, 2 * PAGE)]);
    let mut mapper = table.mapper(&mut claim).unwrap();
    map(&mut mapper, 0, PAGE);
    let taken = mapper.take_dirty(range(0, PAGE), |_| {}).unwrap();
    taken.sync(&NoHardware).unwrap();
    (table, claim)
}

/// A write that hardware records while dirty state is taken is reported now or later.
#[test]
fn a_write_beside_the_taking_of_dirty_state_is_not_lost() {
    model(|| {
        let (table, mut claim) = clean_page();
        let hardware = write_beside(&table);
        let mut mapper = table.mapper(&mut claim).unwrap();
        let mut taken = 0;
        let gather = mapper.take_dirty(range(0, PAGE), |_| taken += 1).unwrap();
        gather.sync(&NoHardware).unwrap();
        let wrote = hardware.join().unwrap();
        let mut left = 0;
        table.dirty(range(0, PAGE), |_| left += 1).unwrap();
        assert_eq!(taken + left, u32::from(wrote));
    });
}

/// A change of rights carries on what hardware records up to the very moment, or says so.
#[test]
fn a_write_beside_a_change_of_rights_is_not_lost() {
    model(|| {
        let (table, mut claim) = clean_page();
        let hardware = write_beside(&table);
        let mut mapper = table.mapper(&mut claim).unwrap();
        let read_only = Prot::new(Rights::READ, Memory::default());
        let protected = mapper.protect(range(0, PAGE), read_only).unwrap();
        protected.gather.sync(&NoHardware).unwrap();
        assert_eq!(protected.was_dirty, hardware.join().unwrap());
    });
}

/// An unmap reports a write up to the moment at which it takes the page.
#[test]
fn a_write_beside_an_unmap_is_reported_or_did_not_find_the_page() {
    model(|| {
        let (table, mut claim) = clean_page();
        let hardware = write_beside(&table);
        let mut mapper = table.mapper(&mut claim).unwrap();
        mapper.set_table_policy(TablePolicy::Keep);
        let mut dirty = false;
        let unmapped = mapper.unmap_with(range(0, PAGE), UnmapPolicy::Exact, |page| {
            dirty = page.dirty;
        });
        unmapped.unwrap().gather.sync(&NoHardware).unwrap();
        assert_eq!(hardware.join().unwrap(), dirty);
    });
}

/// The root moves up while a reader walks from the old one.
#[test]
fn a_walk_beside_the_growth_of_the_root_finds_what_is_mapped() {
    model(|| {
        let table = table(Tiny::growing(2, 3).unwrap(), 5);
        let [mut low, mut high] = claims(table.registry(), [(0, SPAN), (4 * SPAN, SPAN)]);
        map(&mut table.mapper(&mut low).unwrap(), 0, PAGE);
        let reader = {
            let table = Arc::clone(&table);
            thread::spawn(move || assert_eq!(found(&table, 0), Some(oa_of(0))))
        };
        let mut mapper = table.mapper(&mut high).unwrap();
        let sync = mapper.map(range(4 * SPAN, PAGE), Oa::new(oa_of(0)), Prot::RW);
        let sync = sync.unwrap();
        assert_eq!(sync.new_root().map(|root| root.level), Some(Level(2)));
        sync.sync(&NoHardware).unwrap();
        reader.join().unwrap();
        assert_eq!(found(&table, 4 * SPAN), Some(oa_of(0)));
    });
}

/// Two threads grow the root at once; one of them throws its new root away.
#[test]
fn two_threads_grow_the_root_once() {
    model(|| {
        let table = table(Tiny::growing(2, 3).unwrap(), 7);
        let [mut one, mut two] = claims(table.registry(), [(4 * SPAN, PAGE), (8 * SPAN, PAGE)]);
        let other = {
            let table = Arc::clone(&table);
            thread::spawn(move || map(&mut table.mapper(&mut one).unwrap(), 4 * SPAN, PAGE))
        };
        map(&mut table.mapper(&mut two).unwrap(), 8 * SPAN, PAGE);
        other.join().unwrap();
        for iova in [4 * SPAN, 8 * SPAN] {
            assert_eq!(found(&table, iova), Some(oa_of(iova)));
        }
        // Both roots, and a path of two tables each.
        assert_eq!((table.table_count(), table.memory().used_count()), (6, 6));
    });
}

/// A mapper that comes across a link which another one has not written back yet must not return
/// before hardware can see it.
#[test]
fn a_finished_map_is_seen_by_walkers_that_do_not_snoop() {
    bounded_model(2, || {
        // The root is written back with the rest of its page.
        let memory = Arc::new(ModelMemory::new(3, 512));
        let shadow = Shadow::new(Arc::clone(&memory));
        let memory = NonSnooped::new(memory, shadow.clone());
        let table = Arc::new(Table::new(tiny(), memory).unwrap());
        let [mut one, mut two] = claims(table.registry(), [(0, PAGE), (PAGE, PAGE)]);
        let check = |iova: u64| {
            let format = tiny();
            let link = shadow.read(table.root().oa, 0);
            let Ok(Entry::Table(next)) = format.decode(link, Level(1)) else {
                panic!("hardware finds {link:#x} instead of a link");
            };
            let word = shadow.read(next.oa, (iova / PAGE) as usize);
            let Ok(Entry::Leaf(leaf)) = format.decode(word, Level::LEAF) else {
                panic!("hardware finds {word:#x} instead of a leaf");
            };
            assert_eq!(leaf.oa.get(), oa_of(iova));
        };
        let other = {
            let table = Arc::clone(&table);
            thread::spawn(move || {
                let mut mapper = table.mapper(&mut one).unwrap();
                let sync = mapper.map(range(0, PAGE), Oa::new(oa_of(0)), Prot::RW);
                sync.unwrap().sync(&NoHardware).unwrap();
            })
        };
        let mut mapper = table.mapper(&mut two).unwrap();
        let sync = mapper.map(range(PAGE, PAGE), Oa::new(oa_of(PAGE)), Prot::RW);
        sync.unwrap().sync(&NoHardware).unwrap();
        check(PAGE);
        other.join().unwrap();
        check(0);
    });
}
