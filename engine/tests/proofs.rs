//! What must hold when an operation stops half way, when hardware fails, and beside other threads.

use std::cell::{Cell, RefCell};
use std::ops::ControlFlow;
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;

use iopt::invalidation::{Changes, Gather, Invalidate, Kind, NoHardware, SyncError};
use iopt::mem::{Arena, FlushLine, Heap, Limited, NonSnooped, TableMemory};
use iopt::radix::{
    BreakBeforeMake, CutError, DirtyError, FaultWindow, Mapper, Table, TableError, UnmapError,
    UnmapPolicy,
};
use iopt_formats::armv8::{HardwareUpdates, Stage1};
use iopt_formats::riscv::Sv;
use iopt_formats::{Format, Iova, IovaRange, Oa, PageSize, PageSizes, Prot};

const PAGE: u64 = 0x1000;
const MIB_2: u64 = 0x20_0000;
const GIB_1: u64 = 1 << 30;

fn range(start: u64, len: u64) -> IovaRange {
    IovaRange::with_len(Iova::new(start), len).expect("a range of the test")
}

fn map<F: Format, M: TableMemory>(mapper: &mut Mapper<'_, F, M>, iova: u64, len: u64) {
    let sync = mapper
        .map(range(iova, len), Oa::new(iova), Prot::RW)
        .expect("free");
    sync.sync(&NoHardware).expect("nothing fails");
}

fn unmap<F: Format, M: TableMemory>(mapper: &mut Mapper<'_, F, M>, iova: u64, len: u64) {
    let done = mapper
        .unmap(range(iova, len), UnmapPolicy::Exact)
        .expect("mapped");
    done.gather.sync(&NoHardware).expect("nothing fails");
}

/// Hardware that answers a number of times and then no more.
struct Failing {
    left: Cell<usize>,
    told: RefCell<Vec<Changes>>,
}

impl Failing {
    fn after(count: usize) -> Self {
        Self {
            left: Cell::new(count),
            told: RefCell::default(),
        }
    }
}

impl Invalidate for Failing {
    type Ticket = ();

    fn submit(&self, changes: &Changes) -> Result<(), SyncError> {
        self.told.borrow_mut().push(*changes);
        Ok(())
    }

    fn wait(&self, (): ()) -> Result<(), SyncError> {
        let left = self.left.get().checked_sub(1).ok_or(SyncError::TimedOut)?;
        self.left.set(left);
        Ok(())
    }
}

#[test]
fn tables_lie_where_entries_can_point_to() {
    let arena = Arena::with_base(16 << 20, Oa::new(1 << 50)).expect("address space");
    let refused = Table::new(Stage1::<12>::new(48, 48).expect("usual widths"), &arena);
    assert!(matches!(refused, Err(TableError::OutOfMemory(_))));
    assert_eq!(arena.usage().used_len, 0);
}

#[test]
fn a_merge_that_hardware_fails_leaves_no_way_to_the_old_tables() {
    let memory = Limited::new(Heap, 100);
    let table = Table::new(Sv::sv48(), &memory).expect("a root");
    let mut claim = table.claim(range(0, 4 * GIB_1)).expect("free");
    let mut mapper = table.mapper(&mut claim).expect("inside");
    for index in 0..512 {
        map(&mut mapper, GIB_1 + index * MIB_2, MIB_2);
    }
    let all = range(GIB_1, GIB_1);
    let failed = mapper.merge(all, BreakBeforeMake::Hitless, &Failing::after(0));
    assert!(matches!(failed, Err(CutError::Quarantined(_))));
    let size = table.lookup(all.start()).expect("still mapped").size();
    assert_eq!(size, PageSize::GIB_1);
    let part = mapper.unmap(range(GIB_1, MIB_2), UnmapPolicy::Exact);
    assert!(matches!(part, Err(UnmapError::Splits { .. })));
    drop(table);
    assert_eq!(memory.used_count(), 0);
}

#[test]
fn a_proof_frees_the_tables_of_its_own_operation_only() {
    let mut table = Table::new(Sv::sv48(), Heap).expect("a root");
    let registry = table.registry().clone();
    let mut claims = [0, GIB_1].map(|at| registry.claim(range(at, GIB_1)).expect("free"));
    let [first, second] = &mut claims;
    let mut one = table.mapper(first).expect("inside");
    let mut other = table.mapper(second).expect("inside");
    for at in [0, MIB_2] {
        map(&mut one, at, PAGE);
        unmap(&mut one, at, PAGE);
        map(&mut other, GIB_1 + at, PAGE);
        unmap(&mut other, GIB_1 + at, PAGE);
    }
    let blocks = range(0, 2 * MIB_2);
    let sync = one.map(blocks, Oa::new(0), Prot::RW).expect("empty tables");
    let unsynced = other
        .map(range(GIB_1, 2 * MIB_2), Oa::new(0), Prot::RW)
        .expect("empty tables");
    assert_eq!(sync.changes().map(Changes::kind), Some(Kind::Replaced));
    let flushed = sync.sync(&NoHardware).expect("nothing fails");
    assert!(!flushed.covers(blocks), "nothing was unmapped");
    let before = table.table_count();
    table.reclaim(&flushed);
    table.trim();
    assert_eq!(table.table_count(), before - 2);
    let late = unsynced.sync(&NoHardware).expect("nothing fails");
    table.trim();
    assert_eq!(table.table_count(), before - 2);
    table.reclaim(&late);
    table.trim();
    assert_eq!(table.table_count(), before - 4);
}

#[test]
fn what_is_still_mapped_is_not_proven_gone() {
    let table = Table::new(Sv::sv48(), Heap).expect("a root");
    let mut claim = table.claim(range(0, GIB_1)).expect("free");
    let mut mapper = table.mapper(&mut claim).expect("inside");
    let mapped = range(0, 2 * MIB_2);
    map(&mut mapper, 0, 2 * MIB_2);
    let proofs = |gather: Gather| gather.sync(&NoHardware).expect("nothing fails");
    let protected = mapper.protect(mapped, Prot::R).expect("it is mapped");
    assert_eq!(protected.gather.range(), Some(mapped));
    assert!(!proofs(protected.gather).covers(mapped));
    let cut = mapper
        .cut(
            mapped,
            PageSize::KIB_4,
            BreakBeforeMake::Hitless,
            &NoHardware,
        )
        .expect("it can");
    assert!(!cut.covers(mapped));

    // Between two unmaps that one sync serves.
    let mut first = mapper
        .unmap(range(0, PAGE), UnmapPolicy::Exact)
        .expect("it is mapped")
        .gather;
    let hole = range(PAGE, PAGE);
    let last = mapper
        .unmap(range(2 * PAGE, PAGE), UnmapPolicy::Exact)
        .expect("it is mapped");
    first.join(last.gather).expect("nothing was retired");
    assert!(!proofs(first).covers(hole));
    assert!(table.lookup(hole.start()).is_some());
    let rest = mapper
        .unmap(mapped, UnmapPolicy::Sparse)
        .expect("holes may be");
    assert!(proofs(rest.gather).covers(hole));
}

#[test]
fn a_cut_that_runs_out_of_memory_tells_of_what_it_cut() {
    let memory = Limited::new(Heap, 100);
    let table = Table::new(Sv::sv48(), &memory).expect("a root");
    let mut claim = table.claim(range(0, GIB_1)).expect("free");
    let mut mapper = table.mapper(&mut claim).expect("inside");
    map(&mut mapper, 0, 2 * MIB_2);
    memory.set_left(1);
    let hardware = Failing::after(9);
    let both = range(0, 2 * MIB_2);
    let failed = mapper.cut(both, PageSize::KIB_4, BreakBeforeMake::Hitless, &hardware);
    assert!(matches!(failed, Err(CutError::OutOfMemory(_))));
    let told = hardware.told.borrow();
    assert_eq!(told.len(), 1);
    assert_eq!(told[0].range(), Some(range(0, MIB_2)));
    assert!(told[0].leaf_sizes().contains(PageSize::MIB_2));
    for (iova, size) in [(0, PageSize::KIB_4), (MIB_2, PageSize::MIB_2)] {
        assert_eq!(
            table.lookup(Iova::new(iova)).expect("still mapped").size(),
            size
        );
    }
}

/// Notes write-backs and syncs in one list.
struct Log<'a>(&'a Mutex<Vec<&'static str>>);

impl Log<'_> {
    fn note(&self, what: &'static str) {
        self.0.lock().expect("no panic").push(what);
    }
}

impl FlushLine for Log<'_> {
    fn flush_line(&self, _: *const u8) {
        self.note("line");
    }
}

impl Invalidate for Log<'_> {
    type Ticket = ();

    fn submit(&self, _: &Changes) -> Result<(), SyncError> {
        self.note("sync");
        Ok(())
    }

    fn wait(&self, (): ()) -> Result<(), SyncError> {
        Ok(())
    }
}

#[test]
fn a_break_is_written_back_before_its_sync() {
    let sizes = PageSizes::EMPTY.with(PageSize::KIB_4).with(PageSize::MIB_2);
    let format = Stage1::<12>::new(48, 48).and_then(|format| format.with_sizes(sizes));
    let notes = Mutex::new(Vec::new());
    let memory = NonSnooped::new(Heap, Log(&notes));
    let table = Table::new(format.expect("usual sizes"), memory).expect("a root");
    let mut claim = table.claim(range(0, GIB_1)).expect("free");
    let mut mapper = table.mapper(&mut claim).expect("inside");
    for page in 0..512 {
        map(&mut mapper, page * PAGE, PAGE);
    }
    let window = BreakBeforeMake::Required(FaultWindow::Allow);
    notes.lock().expect("no panic").clear();
    mapper
        .merge(range(0, MIB_2), window, &Log(&notes))
        .expect("allowed");
    assert_eq!(
        *notes.lock().expect("no panic"),
        ["line", "sync", "line", "sync"]
    );
    notes.lock().expect("no panic").clear();
    mapper
        .cut(range(0, MIB_2), PageSize::KIB_4, window, &Log(&notes))
        .expect("allowed");
    assert_eq!(notes.lock().expect("no panic")[..2], ["line", "sync"]);
}

#[test]
fn dirty_entries_that_leave_the_claim_are_refused() {
    let format = Stage1::<12>::new(48, 48).expect("usual widths");
    let table = Table::new(format.with_updates(HardwareUpdates::Dirty), Heap).expect("a root");
    let mut claim = table.claim(range(0, MIB_2)).expect("free");
    map(&mut table.mapper(&mut claim).expect("inside"), 0, MIB_2);
    drop(claim);
    let half = range(0, MIB_2 / 2);
    let mut claim = table.claim(half).expect("free");
    let mut mapper = table.mapper(&mut claim).expect("inside");
    let refused = mapper.take_dirty(half, |_| panic!("nothing is taken"));
    assert!(matches!(refused, Err(DirtyError::OutsideClaim { .. })));
    let mut seen = Vec::new();
    table
        .dirty(half, |range| seen.push(range))
        .expect("tracked");
    assert_eq!(seen, [half]);
}

#[test]
fn a_dump_beside_cut_and_merge_misses_nothing_that_stays_mapped() {
    let rounds = if cfg!(miri) { 2 } else { 2_000 };
    let table = Table::new(Sv::sv48(), Heap).expect("a root");
    let mut claim = table.claim(range(0, GIB_1)).expect("free");
    map(&mut table.mapper(&mut claim).expect("inside"), 0, MIB_2);
    let is_done = AtomicBool::new(false);
    thread::scope(|scope| {
        scope.spawn(|| {
            let mut mapper = table.mapper(&mut claim).expect("inside");
            for _ in 0..rounds {
                let all = range(0, MIB_2);
                mapper
                    .cut(all, PageSize::KIB_4, BreakBeforeMake::Hitless, &NoHardware)
                    .expect("memory is there");
                mapper
                    .merge(all, BreakBeforeMake::Hitless, &NoHardware)
                    .expect("nothing fails");
            }
            is_done.store(true, Ordering::Relaxed);
        });
        while !is_done.load(Ordering::Relaxed) {
            let mut len = 0;
            table.dump(range(0, MIB_2), |run| {
                len += run.range.len_minus_one() + 1;
                ControlFlow::Continue(())
            });
            assert_eq!(len, MIB_2);
        }
    });
}
