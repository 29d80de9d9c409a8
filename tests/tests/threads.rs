//! Threads on one table. Natively these find gross mistakes only; Miri looks for data races in them
//! and tries unusual interleavings.

use std::ops::ControlFlow;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Barrier};
use std::thread;

use iopt::invalidation::NoHardware;
use iopt::mem::NonSnooped;
use iopt::radix::{BreakBeforeMake, Table, UnmapPolicy};
use iopt_formats::walk;
use iopt_formats::{Format, Iova, IovaRange, Level, Oa, PageSize, Prot, amd, armv8, vtd};
use iopt_tests::configuration::{dirty_stage1, legal};
use iopt_tests::memory::TestMemory;
use iopt_tests::shadow::Shadow;

const PAGE: u64 = 0x1000;
const BLOCK: u64 = 0x20_0000;
/// Repetitions of each thread.
const TURNS: u64 = if cfg!(miri) { 3 } else { 400 };

fn range(start: u64, len: u64) -> IovaRange {
    IovaRange::with_len(Iova::new(start), len).expect("the range does not wrap")
}

fn second_stage() -> vtd::SecondStage {
    legal(vtd::SecondStage::new(48))
}

/// Neighbours fill the same leaf table, whose path neither finds at first.
#[test]
fn threads_with_claims_in_one_table_link_it_once() {
    for _ in 0..TURNS {
        let table = Table::new(second_stage(), Arc::new(TestMemory::new(1))).expect("a root");
        let start = Barrier::new(2);
        thread::scope(|scope| {
            for side in 0..2 {
                let (table, start) = (&table, &start);
                scope.spawn(move || {
                    let part = range(BLOCK + side * 4 * PAGE, 4 * PAGE);
                    let mut claim = table.claim(part).expect("nobody claims it");
                    let mut mapper = table.mapper(&mut claim).expect("it is decoded");
                    start.wait();
                    let oa = Oa::new(part.start().get() + PAGE);
                    let synced = mapper.map(part, oa, Prot::RW).expect("it is free");
                    synced.sync(&NoHardware).expect("there is no hardware");
                });
            }
        });
        assert_eq!((table.table_count(), table.memory().page_count()), (4, 4));
        for page in 0..8 {
            let iova = BLOCK + page * PAGE;
            let found = table.lookup(Iova::new(iova)).map(|found| found.oa());
            assert_eq!(found, Some(Oa::new(iova + PAGE)));
        }
    }
}

/// Each thread needs a taller root than the other finds.
#[test]
fn threads_that_grow_the_root_at_once_keep_all_mappings() {
    for _ in 0..TURNS {
        let table = Table::new(amd::V1::new(), Arc::new(TestMemory::new(1))).expect("a root");
        let starts = [0, 1 << 39, 1 << 48, u64::MAX - (PAGE - 1)];
        let start = Barrier::new(starts.len());
        thread::scope(|scope| {
            for iova in starts {
                let (table, start) = (&table, &start);
                scope.spawn(move || {
                    let mut claim = table.claim(range(iova, PAGE)).expect("nobody claims it");
                    let mut mapper = table.mapper(&mut claim).expect("it is decoded");
                    start.wait();
                    let sync = mapper.map(range(iova, PAGE), Oa::new(PAGE), Prot::RW);
                    let sync = sync.expect("it is free");
                    let root = sync.new_root().map_or(Level(2), |root| root.level);
                    let needed = [(39, 2), (48, 3), (57, 4)];
                    let needed = needed.into_iter().find(|(bits, _)| iova >> bits == 0);
                    assert!(root >= Level(needed.map_or(5, |(_, level)| level)));
                    sync.sync(&NoHardware).expect("there is no hardware");
                });
            }
        });
        assert_eq!(table.root().level, Level(5));
        assert_eq!(table.table_count(), table.memory().page_count());
        for iova in starts {
            assert!(table.lookup(Iova::new(iova)).is_some(), "{iova:#x}");
        }
    }
}

/// A reader meets every stage of maps, cuts, merges and unmaps, and finds the right page or none.
#[test]
fn readers_beside_changes_find_the_right_page_or_none() {
    fn check<F: Format>(format: F) {
        let table = Table::new(format, Arc::new(TestMemory::new(2))).expect("a root");
        let block = range(BLOCK, BLOCK);
        let done = AtomicBool::new(false);
        thread::scope(|scope| {
            let (table, done) = (&table, &done);
            scope.spawn(move || {
                let mut claim = table.claim(block).expect("nobody claims it");
                let mut mapper = table.mapper(&mut claim).expect("it is decoded");
                let bbm = BreakBeforeMake::Hitless;
                let turns = if cfg!(miri) { 1 } else { TURNS / 4 };
                for _ in 0..turns {
                    let synced = mapper.map(block, Oa::new(4 * BLOCK), Prot::RW);
                    let synced = synced.expect("it is free").sync(&NoHardware);
                    synced.expect("there is no hardware");
                    mapper
                        .cut(block, PageSize::KIB_4, bbm, &NoHardware)
                        .expect("there is memory");
                    mapper
                        .merge(block, bbm, &NoHardware)
                        .expect("there is memory");
                    let unmapped = mapper
                        .unmap(block, UnmapPolicy::Exact)
                        .expect("it is mapped");
                    unmapped
                        .gather
                        .sync(&NoHardware)
                        .expect("there is no hardware");
                }
                done.store(true, Ordering::Release);
            });
            scope.spawn(move || {
                let mut page = 0;
                while !done.load(Ordering::Acquire) {
                    page = (page + 37) % 512;
                    let offset = page * PAGE + 42;
                    if let Some(found) = table.lookup(Iova::new(BLOCK + offset)) {
                        assert_eq!(found.oa(), Oa::new(4 * BLOCK + offset));
                    }
                    let part = range(BLOCK + page * PAGE, PAGE);
                    table.dump(part, |run| {
                        let offset = run.range.start().get() - BLOCK;
                        assert_eq!(run.oa, Oa::new(4 * BLOCK + offset));
                        ControlFlow::Continue(())
                    });
                    if format.dirty_rule().is_some() {
                        table
                            .dirty(part, |dirty| assert!(block.contains(dirty)))
                            .expect("tracked");
                    }
                }
            });
        });
    }
    check(second_stage().with_dirty());
    if !cfg!(miri) {
        check(second_stage());
        check(legal(armv8::Stage1::<12>::new(48, 48).map(dirty_stage1)));
    }
}

/// Linux can overwrite a mark that hardware sets between its load and its store (`record_dirty`).
#[test]
fn a_write_while_dirty_pages_are_taken_is_reported_once() {
    fn check<F: Format>(format: F) {
        let rule = format.dirty_rule().expect("dirty pages are tracked");
        let memory = Arc::new(TestMemory::new(1));
        let table = Table::new(format, Arc::clone(&memory)).expect("a root");
        let page = range(BLOCK, PAGE);
        let mut claim = table.claim(page).expect("nobody claims it");
        let mut mapper = table.mapper(&mut claim).expect("it is decoded");
        let synced = mapper.map(page, Oa::new(0), Prot::RW).expect("it is free");
        synced.sync(&NoHardware).expect("there is no hardware");
        let mut item = None;
        walk::walk(
            &format,
            table.root(),
            page.start(),
            |oa| memory.read(oa),
            |step| {
                item = Some(Oa::new(step.table.get() + 8 * step.index as u64));
            },
        )
        .expect("it is mapped");
        let item = item.expect("a walk reads an item");
        let mut take = || {
            let mut count = 0;
            let taken = mapper
                .take_dirty(page, |_| count += 1)
                .expect("dirty pages are tracked");
            taken.sync(&NoHardware).expect("there is no hardware");
            count
        };
        take();
        let done = AtomicBool::new(false);
        let (marked, mut taken) = thread::scope(|scope| {
            let (memory, done) = (&memory, &done);
            let device = scope.spawn(move || {
                let marks = (0..TURNS * 20).filter(|_| {
                    let old = memory.update(item, |word| rule.soil(word));
                    old.is_some_and(|word| !rule.is_dirty(word))
                });
                let count = marks.count();
                done.store(true, Ordering::Release);
                count
            });
            let mut taken = 0;
            while !done.load(Ordering::Acquire) {
                taken += take();
            }
            (device.join().expect("the device does not panic"), taken)
        });
        taken += take();
        assert_eq!(marked, taken);
    }
    check(second_stage().with_dirty());
    check(amd::V1::new().with_dirty());
    check(legal(armv8::Stage1::<12>::new(48, 48).map(dirty_stage1)));
}

/// Hardware may mark an entry at any moment while it is cut to pages or merged again.
#[test]
fn a_write_while_an_entry_changes_its_size_is_kept() {
    fn check<F: Format>(format: F) {
        let rule = format.dirty_rule().expect("dirty pages are tracked");
        let memory = Arc::new(TestMemory::new(2));
        let table = Table::new(format, Arc::clone(&memory)).expect("a root");
        let block = range(BLOCK, BLOCK);
        let mut claim = table.claim(block).expect("nobody claims it");
        let turns = if cfg!(miri) { 1 } else { TURNS / 4 };
        for turn in 0..turns {
            let mut mapper = table.mapper(&mut claim).expect("it is decoded");
            let synced = mapper.map(block, Oa::new(0), Prot::RW).expect("it is free");
            synced.sync(&NoHardware).expect("there is no hardware");
            let taken = mapper
                .take_dirty(block, |_| {})
                .expect("dirty pages are tracked");
            taken.sync(&NoHardware).expect("there is no hardware");
            let written = Iova::new(BLOCK + turn * 37 % 512 * PAGE);
            // Marks the item that a walk of its own finds, as one access does; again if the item
            // changes meanwhile.
            let write = || loop {
                let mut seen = None;
                let read = |oa| memory.read(oa);
                let found = walk::walk(&format, table.root(), written, read, |step| {
                    seen = Some((Oa::new(step.table.get() + 8 * step.index as u64), step.word));
                });
                found.expect("it stays mapped");
                let (item, word) = seen.expect("a walk reads an item");
                let mark = |now| if now == word { rule.soil(now) } else { now };
                if memory.update(item, mark) == Some(word) {
                    break;
                }
            };
            let flushed = thread::scope(|scope| {
                scope.spawn(write);
                let bbm = BreakBeforeMake::Hitless;
                mapper
                    .cut(block, PageSize::KIB_4, bbm, &NoHardware)
                    .expect("there is memory");
                mapper
                    .merge(block, bbm, &NoHardware)
                    .expect("there is memory")
            });
            let mut is_kept = false;
            table
                .dirty(block, |part| is_kept |= part.contains_addr(written))
                .expect("as above");
            assert!(is_kept, "turn {turn} of {format:?}");
            let mut mapper = table.mapper(&mut claim).expect("it is decoded");
            let unmapped = mapper
                .unmap(block, UnmapPolicy::Exact)
                .expect("it is mapped");
            unmapped
                .gather
                .sync(&NoHardware)
                .expect("there is no hardware");
            table.reclaim(&flushed);
        }
    }
    check(second_stage().with_dirty());
    if !cfg!(miri) {
        check(amd::V1::new().with_dirty());
        check(legal(armv8::Stage1::<12>::new(48, 48).map(dirty_stage1)));
    }
}

/// A thread may use a table that another one has linked but not written back yet; once its own map
/// returns, hardware must find the way all the same.
#[test]
fn a_walker_that_does_not_snoop_sees_every_finished_map() {
    for _ in 0..TURNS / 3 {
        let memory = Arc::new(TestMemory::new(1));
        let shadow = NonSnooped::new(Arc::clone(&memory), Shadow::new(memory));
        let table = Table::new(second_stage(), shadow).expect("the format has a software bit");
        let start = Barrier::new(3);
        thread::scope(|scope| {
            for side in 0..3 {
                let (table, start) = (&table, &start);
                scope.spawn(move || {
                    let page = range(BLOCK + side * PAGE, PAGE);
                    let mut claim = table.claim(page).expect("nobody claims it");
                    let mut mapper = table.mapper(&mut claim).expect("it is decoded");
                    start.wait();
                    let synced = mapper.map(page, Oa::new(side * PAGE), Prot::RW);
                    synced
                        .expect("it is free")
                        .sync(&NoHardware)
                        .expect("there is no hardware");
                    let read = |oa| table.memory().flush().read(oa);
                    let found =
                        walk::walk(table.format(), table.root(), page.start(), read, |_| {});
                    assert_eq!(found.map(|found| found.oa), Ok(Oa::new(side * PAGE)));
                });
            }
        });
    }
}
