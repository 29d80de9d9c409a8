//! Everything at once on one table: threads with claims that map, unmap, detach, cut, merge and
//! compact, and readers beside them. Natively these are long random runs; Miri runs a few steps.

use std::collections::BTreeMap;
use std::ops::ControlFlow;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Barrier, mpsc};
use std::thread::{self, ScopedJoinHandle};

use iopt::invalidation::{Gather, NoHardware};
use iopt::radix::{BreakBeforeMake, Mapper, Table, TableConfig, TablePolicy, UnmapPolicy};
use iopt_formats::{Format, Iova, IovaRange, Oa, PageSize, Prot, amd, riscv, vtd};
use iopt_tests::configuration::legal;
use iopt_tests::memory::TestMemory;

const PAGE: u64 = 0x1000;
const BLOCK: u64 = 0x20_0000;
const THREADS: u64 = 4;
/// Blocks that each thread owns; the first and the last are shared with its neighbours by halves.
const BLOCKS: u64 = 4;
/// Steps of each thread.
const STEPS: u64 = if cfg!(miri) { 12 } else { 4000 };

type Shared<F> = Table<F, Arc<TestMemory>>;

fn range(start: u64, len: u64) -> IovaRange {
    IovaRange::with_len(Iova::new(start), len).expect("the range does not wrap")
}

/// The output address of an IOVA never changes, so that readers know what to expect; it is out of
/// step, so that pages stay pages, or in step, so that blocks may be made.
fn oa_of(iova: u64) -> u64 {
    let in_step = (iova / BLOCK).is_multiple_of(2);
    iova + 64 * BLOCK + if in_step { 0 } else { PAGE }
}

/// A small generator, so that a run can be repeated from its seed.
struct Random(u64);

impl Random {
    fn below(&mut self, bound: u64) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        (self.0 >> 11) % bound
    }
}

/// What one thread has mapped: runs of whole pages by their start, in bytes.
type Runs = BTreeMap<u64, u64>;

struct Worker<'t, F: Format> {
    mapper: Mapper<'t, F, Arc<TestMemory>>,
    random: Random,
    runs: Runs,
    owned: IovaRange,
}

impl<F: Format> Worker<'_, F> {
    fn free(&self, wanted: IovaRange) -> bool {
        let before = self.runs.range(..=wanted.last().get()).next_back();
        before.is_none_or(|(start, len)| start + len <= wanted.start().get())
    }

    /// Tells "hardware" and gives tables back.
    fn sync(&self, gather: Gather) {
        let flushed = gather.sync(&NoHardware).expect("there is no hardware");
        self.mapper.table().reclaim(&flushed);
    }

    fn step(&mut self) {
        let (first, last) = (self.owned.start().get(), self.owned.last().get());
        let page_count = (last - first).div_ceil(PAGE);
        let start = first + self.random.below(page_count) * PAGE;
        let len = match self.random.below(4) {
            0 => PAGE,
            1 => (1 + self.random.below(32)) * PAGE,
            _ => BLOCK - start % BLOCK,
        };
        let wanted = range(start, len.min(last - start + 1));
        match self.random.below(8) {
            0..=3 if self.free(wanted) => self.map(wanted),
            0..=4 => self.unmap_one(),
            5 => self.reshape(wanted),
            6 => {
                let gather = self.mapper.compact(wanted).expect("the range is claimed");
                self.sync(gather);
            }
            _ => {
                let policy = if self.random.below(2) == 0 {
                    TablePolicy::Keep
                } else {
                    TablePolicy::Detach
                };
                self.mapper.set_table_policy(policy);
            }
        }
    }

    /// Maps inside one block, where output addresses follow each other.
    fn map(&mut self, wanted: IovaRange) {
        let (start, last) = (wanted.start().get(), wanted.last().get());
        let last = last.min(start | (BLOCK - 1));
        let wanted = range(start, last - start + 1);
        let synced = self.mapper.map(wanted, Oa::new(oa_of(start)), Prot::RW);
        let synced = synced.expect("it is free").sync(&NoHardware);
        self.mapper
            .table()
            .reclaim(&synced.expect("there is no hardware"));
        self.runs.insert(start, last - start + 1);
    }

    fn unmap_one(&mut self) {
        let count = self.runs.len() as u64;
        if count == 0 {
            return;
        }
        let index = self.random.below(count) as usize;
        let (&start, &len) = self.runs.iter().nth(index).expect("it is in range");
        let unmapped = self.mapper.unmap(range(start, len), UnmapPolicy::Exact);
        let unmapped = unmapped.expect("it was mapped as a whole");
        assert_eq!(unmapped.bytes, len);
        self.sync(unmapped.gather);
        self.runs.remove(&start);
    }

    /// Cuts a run to pages, or merges it: translations stay.
    fn reshape(&mut self, wanted: IovaRange) {
        let run = self.runs.range(..=wanted.start().get()).next_back();
        let Some((&start, &len)) = run else { return };
        let (run, bbm) = (range(start, len), BreakBeforeMake::Hitless);
        let flushed = if self.random.below(2) == 0 {
            self.mapper.cut(run, PageSize::KIB_4, bbm, &NoHardware)
        } else {
            self.mapper.merge(run, bbm, &NoHardware)
        };
        let table = self.mapper.table();
        table.reclaim(&flushed.expect("there is memory"));
        // A run that starts or ends inside a block is whole pages again only if they were cut.
        let cut = self.mapper.cut(run, PageSize::KIB_4, bbm, &NoHardware);
        cut.expect("there is memory");
    }

    fn check(&self) {
        let mut found = 0;
        self.mapper.table().dump(self.owned, |run| {
            found += run.range.len_minus_one() + 1;
            ControlFlow::Continue(())
        });
        assert_eq!(found, self.runs.values().sum::<u64>());
    }
}

fn read<F: Format>(table: &Shared<F>, seed: u64, done: &AtomicBool) {
    let mut random = Random(seed);
    let mut reader = table.reader();
    let space = THREADS * BLOCKS * BLOCK;
    while !done.load(Ordering::Acquire) {
        for _ in 0..if cfg!(miri) { 2 } else { 64 } {
            let iova = random.below(space);
            if let Some(found) = reader.lookup(Iova::new(iova)) {
                assert_eq!(found.oa(), Oa::new(oa_of(iova)), "at {iova:#x}");
            }
        }
        let part = range(random.below(space / PAGE) * PAGE, BLOCK);
        reader.dump(part, |run| {
            assert_eq!(run.oa, Oa::new(oa_of(run.range.start().get())));
            ControlFlow::Continue(())
        });
        reader.renew();
    }
}

fn all_at_once<F: Format>(format: F) {
    let memory = Arc::new(TestMemory::new(8));
    let config = TableConfig::new().with_quarantine_limit(16 * PAGE);
    let mut table = Table::with_config(format, Arc::clone(&memory), config).expect("a root");
    let done = AtomicBool::new(false);
    let start = Barrier::new(THREADS as usize);
    thread::scope(|scope| {
        let (table, done, start) = (&table, &done, &start);
        let workers: Vec<_> = (0..THREADS)
            .map(|thread| {
                scope.spawn(move || {
                    // Half a block on either side belongs to a neighbour.
                    let first = thread * BLOCKS * BLOCK + if thread > 0 { BLOCK / 2 } else { 0 };
                    let end = (thread + 1) * BLOCKS * BLOCK + BLOCK / 2;
                    let owned = range(first, end - first);
                    let mut claim = table.claim(owned).expect("nobody claims it");
                    let mut worker = Worker {
                        mapper: table.mapper(&mut claim).expect("it is decoded"),
                        random: Random(0x9e37_79b9 + thread),
                        runs: Runs::new(),
                        owned,
                    };
                    start.wait();
                    for _ in 0..STEPS {
                        worker.step();
                    }
                    worker.check();
                    while !worker.runs.is_empty() {
                        worker.unmap_one();
                    }
                    worker.check();
                })
            })
            .collect();
        for seed in 1..=2 {
            scope.spawn(move || read(table, seed, done));
        }
        let results: Vec<_> = workers.into_iter().map(ScopedJoinHandle::join).collect();
        done.store(true, Ordering::Release);
        for result in results {
            result.expect("a worker panicked");
        }
    });
    let all = range(0, 1 << 30);
    let mut claim = table.claim(all).expect("nobody claims it");
    // The quarantine takes sixteen at a time.
    for _ in 0..4 {
        let mut mapper = table.mapper(&mut claim).expect("it is decoded");
        let gather = mapper.compact(all).expect("the range is claimed");
        let flushed = gather.sync(&NoHardware).expect("there is no hardware");
        table.reclaim(&flushed);
        table.trim();
    }
    assert_eq!(table.table_count(), memory.page_count());
    assert!(
        table.table_count() <= 2,
        "{} tables are left",
        table.table_count()
    );
}

#[test]
fn everything_at_once_on_a_second_stage_table() {
    all_at_once(legal(vtd::SecondStage::new(48)));
}

#[test]
fn everything_at_once_on_an_amd_table() {
    all_at_once(amd::V1::new());
}

#[test]
fn everything_at_once_on_a_riscv_table() {
    all_at_once(riscv::Sv::sv48());
}

/// A reader parked in its epoch: unmaps go on, tables are retired up to the limit and kept in use
/// beyond it, and once the reader leaves everything is freed.
#[test]
fn a_reader_that_never_leaves_costs_the_quarantine_and_nothing_else() {
    const LIMIT: usize = 8;
    let memory = Arc::new(TestMemory::new(8));
    let config = TableConfig::new()
        .with_table_policy(TablePolicy::Detach)
        .with_quarantine_limit(LIMIT as u64 * PAGE);
    let format = legal(vtd::SecondStage::new(48));
    let mut table = Table::with_config(format, Arc::clone(&memory), config).expect("a root");
    let (parked, is_parked) = mpsc::channel();
    let (leave, may_leave) = mpsc::channel::<()>();
    thread::scope(|scope| {
        let table = &table;
        scope.spawn(move || {
            let reader = table.reader();
            assert!(reader.lookup(Iova::new(0)).is_none());
            parked.send(()).expect("the other side waits");
            may_leave.recv().expect("the other side says so");
            drop(reader);
        });
        is_parked.recv().expect("the reader parks");
        let mut claim = table.claim(range(0, 1 << 30)).expect("nobody claims it");
        let mut mapper = table.mapper(&mut claim).expect("it is decoded");
        let mut most = 0;
        for turn in 0..if cfg!(miri) { 12 } else { 200 } {
            let block = range(turn % 4 * BLOCK, BLOCK);
            let synced = mapper
                .map(block, Oa::new(PAGE), Prot::RW)
                .expect("it is free");
            synced.sync(&NoHardware).expect("there is no hardware");
            let unmapped = mapper
                .unmap(block, UnmapPolicy::Exact)
                .expect("it is mapped");
            let flushed = unmapped.gather.sync(&NoHardware);
            table.reclaim(&flushed.expect("there is no hardware"));
            most = most.max(memory.page_count());
        }
        // Three tables above, four leaf tables in use, and the quarantine.
        assert!((LIMIT..=3 + 4 + LIMIT).contains(&most), "{most} pages");
        leave.send(()).expect("the reader waits");
    });
    table.trim();
    assert!(
        memory.page_count() <= 3 + 4,
        "{} pages",
        memory.page_count()
    );
}
