//! A3.12: blocks are split and merged under a device with a TLB of two entries, at each level of what
//! hardware allows (Arm IHI 0070, `SMMU_IDR3.BBML`; DDI 0487, D8.16.1).
//!
//! The device walks for itself, speculatively and at any time, whatever its TLB holds: so the TLB comes to hold
//! an old and a new size at once wherever that is possible. Below level 2 that is a conflict, unless one of
//! them is a block that is marked nT.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread;

use iopt::claim::Claim;
use iopt::invalidation::{Changes, Invalidate, SyncError};
use iopt::radix::{BreakBeforeMake, FaultWindow, Table};
use iopt_formats::armv8::Stage1;
use iopt_formats::{Iova, IovaRange, Oa, PageSize, Prot};
use iopt_tests::memory::TestMemory;

const PAGE: u64 = 0x1000;
const BLOCK: u64 = 0x20_0000;
/// Where the block is: neither first nor last of its table.
const START: u64 = 0x4000_0000 + 3 * BLOCK;
const OUTPUT: u64 = 0x80_0000_0000 - 4 * BLOCK;

/// Turns beside a device that runs freely.
const TURNS: usize = if cfg!(miri) { 1 } else { 40 };

#[derive(Clone, Copy, Debug, Eq, PartialEq)]
enum Level {
    Zero,
    One,
    Two,
}

impl Level {
    const ALL: [Self; 3] = [Self::Zero, Self::One, Self::Two];

    fn rule(self) -> BreakBeforeMake {
        match self {
            Self::Zero => BreakBeforeMake::Required(FaultWindow::Allow),
            Self::One => BreakBeforeMake::Marked,
            Self::Two => BreakBeforeMake::Hitless,
        }
    }
}

/// An entry of the TLB.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
struct Cached {
    start: u64,
    len: u64,
    output: u64,
    is_marked: bool,
}

impl Cached {
    fn covers(&self, iova: u64) -> bool {
        iova.wrapping_sub(self.start) < self.len
    }

    fn overlaps(&self, other: &Self) -> bool {
        self.covers(other.start) || other.covers(self.start)
    }
}

/// A device and what it came across.
struct Device {
    memory: Arc<TestMemory>,
    root: Oa,
    level: Level,
    /// It does not know the mark, as if the engine never set it.
    ignores_mark: bool,
    state: Mutex<State>,
}

#[derive(Default)]
struct State {
    /// The first one stays as long as it can.
    tlb: [Option<Cached>; 2],
    /// Walks that found nothing.
    miss_count: usize,
    conflict_count: usize,
    /// Submissions since the last change began, and how many of them are carried out at most.
    submitted: usize,
    limit: Option<usize>,
}

impl Device {
    fn with<R>(&self, act: impl FnOnce(&mut State) -> R) -> R {
        act(&mut self.state.lock().unwrap_or_else(PoisonError::into_inner))
    }

    /// Walks a table of three levels of 4 KiB (DDI 0487, D8.3).
    fn walk(&self, iova: u64) -> Option<Cached> {
        let mut table = self.root.get();
        for shift in [30, 21, 12] {
            let index = iova >> shift & 0x1ff;
            let word = self.memory.read(Oa::new(table + index * 8));
            let word = word.expect("what a walk meets is a table");
            let output = word & 0x0000_ffff_ffff_f000;
            match word & 3 {
                3 if shift > 12 => table = output,
                1 | 3 if shift == 12 || word & 3 == 1 => {
                    let len = 1 << shift;
                    let is_marked = shift > 12 && word >> 16 & 1 != 0;
                    return Some(Cached {
                        start: iova & !(len - 1),
                        len,
                        // Bits below the size belong to the mark and the like.
                        output: output & !(len - 1),
                        is_marked: is_marked && !self.ignores_mark,
                    });
                }
                _ => return None,
            }
        }
        None
    }

    /// Walks for an address, whether or not it is cached, and keeps what it finds.
    fn speculate(&self, iova: u64) {
        // Hardware waits for its walks before an invalidation is done: so one at a time.
        self.with(|state| {
            let Some(found) = self.walk(iova) else {
                state.miss_count += 1;
                return;
            };
            assert_eq!(
                iova - found.start + found.output,
                iova - START + OUTPUT,
                "a translation stays what it was"
            );
            for other in state.tlb.into_iter().flatten() {
                let conflicts = other.overlaps(&found)
                    && other.len != found.len
                    && !(other.is_marked || found.is_marked);
                if conflicts && self.level != Level::Two {
                    state.conflict_count += 1;
                }
            }
            if !state.tlb.contains(&Some(found)) {
                let place = usize::from(state.tlb[0].is_some());
                state.tlb[place] = Some(found);
            }
        });
    }

    fn speculate_around(&self) {
        for iova in [START, START + BLOCK - 1, START + BLOCK / 2] {
            self.speculate(iova);
        }
    }

    /// Lets a change begin of whose invalidations `limit` are carried out.
    fn begin(&self, limit: Option<usize>) {
        self.with(|state| (state.submitted, state.limit) = (0, limit));
        self.speculate_around();
    }
}

impl Invalidate for Device {
    type Ticket = ();

    fn submit(&self, changes: &Changes) -> Result<(), SyncError> {
        self.speculate_around();
        let (start, last) = match changes.range() {
            Some(range) => (range.start().get(), range.last().get()),
            None => return Ok(()),
        };
        self.with(|state| {
            state.submitted += 1;
            if state.limit.is_some_and(|limit| state.submitted > limit) {
                return;
            }
            for entry in &mut state.tlb {
                let is_meant = |cached: Cached| {
                    cached.start <= last && start <= cached.start + (cached.len - 1)
                };
                if entry.is_some_and(is_meant) {
                    *entry = None;
                }
            }
        });
        self.speculate_around();
        Ok(())
    }

    fn wait(&self, (): ()) -> Result<(), SyncError> {
        Ok(())
    }
}

/// A table with one block, and a device behind it.
struct Rig {
    table: Table<Stage1<12>, Arc<TestMemory>>,
    device: Device,
    claim: Claim,
}

fn block() -> IovaRange {
    IovaRange::with_len(Iova::new(START), BLOCK).expect("it does not wrap")
}

impl Rig {
    fn new(level: Level) -> Self {
        let memory = Arc::new(TestMemory::new(8));
        let format = Stage1::new(39, 40).expect("widths that there are");
        let table = Table::new(format, Arc::clone(&memory)).expect("a root");
        let device = Device {
            memory,
            root: table.root().oa,
            level,
            ignores_mark: false,
            state: Mutex::default(),
        };
        let mut claim = table.claim(block()).expect("nobody claims it");
        {
            let mut mapper = table.mapper(&mut claim).expect("it is decoded");
            let mapped = mapper.map(block(), Oa::new(OUTPUT), Prot::RW);
            let synced = mapped.expect("it is free").sync(&device);
            synced.expect("the device answers");
        }
        Self {
            table,
            device,
            claim,
        }
    }

    /// Splits the block, or merges it again; returns how many invalidations that took.
    fn change(&mut self, is_split: bool, limit: Option<usize>) -> usize {
        let rule = self.device.level.rule();
        self.device.begin(limit);
        let mut mapper = self.table.mapper(&mut self.claim).expect("it is decoded");
        let changed = if is_split {
            mapper.cut(block(), PageSize::KIB_4, rule, &self.device)
        } else {
            mapper.merge(block(), rule, &self.device)
        };
        let flushed = changed.expect("there is memory, and the device answers");
        self.table.reclaim(&flushed);
        self.device.with(|state| state.submitted)
    }

    /// Returns whether the device holds entries that the table does not have.
    fn is_stale(&self) -> bool {
        self.device.with(|state| {
            let mut cached = state.tlb.into_iter().flatten();
            cached.any(|cached| self.device.walk(cached.start) != Some(cached))
        })
    }

    fn conflict_count(&self) -> usize {
        self.device.with(|state| state.conflict_count)
    }
}

#[test]
fn a_size_changes_without_a_conflict_and_nothing_old_stays() {
    for level in Level::ALL {
        let mut rig = Rig::new(level);
        for turn in 0..4 {
            let is_split = turn % 2 == 0;
            let submitted = rig.change(is_split, None);
            assert!(submitted > 0, "{level:?}");
            assert!(!rig.is_stale(), "{level:?}: {turn}");
            assert_eq!(rig.conflict_count(), 0, "{level:?}: {turn}");
        }
        let misses = rig.device.with(|state| state.miss_count);
        // Only the level that clears the entry shows a gap.
        assert_eq!(misses > 0, level == Level::Zero, "{level:?}");
    }
}

#[test]
fn a_block_that_is_not_marked_conflicts_with_its_pages() {
    for is_split in [true, false] {
        let mut rig = Rig::new(Level::One);
        if !is_split {
            rig.change(true, None);
        }
        rig.device.ignores_mark = true;
        rig.change(is_split, None);
        assert!(rig.conflict_count() > 0, "split: {is_split}");
    }
}

#[test]
fn every_invalidation_is_needed() {
    for level in Level::ALL {
        for is_split in [true, false] {
            let run = |limit| {
                let mut rig = Rig::new(level);
                if !is_split {
                    rig.change(true, None);
                }
                let submitted = rig.change(is_split, limit);
                (submitted, rig.is_stale() || rig.conflict_count() > 0)
            };
            let (submitted, is_wrong) = run(None);
            assert!(!is_wrong, "{level:?}");
            // Of a break, and of a change by one store, the first one is; later ones tell the same once more.
            let needed = if level == Level::One { submitted } else { 1 };
            for limit in 0..needed {
                let (_, is_wrong) = run(Some(limit));
                assert!(
                    is_wrong,
                    "{level:?}, split: {is_split}, {limit} of {submitted}"
                );
            }
        }
    }
}

#[test]
fn a_device_beside_changes_of_size_sees_one_translation() {
    for level in Level::ALL {
        let mut rig = Rig::new(level);
        let is_done = AtomicBool::new(false);
        let Rig {
            table,
            device,
            claim,
        } = &mut rig;
        let (table, device) = (&*table, &*device);
        thread::scope(|scope| {
            scope.spawn(|| {
                let mut page = 0;
                while !is_done.load(Ordering::Acquire) {
                    device.speculate(START + page * PAGE);
                    page = (page + 37) % (BLOCK / PAGE);
                }
            });
            let mut mapper = table.mapper(claim).expect("it is decoded");
            for turn in 0..TURNS {
                let changed = if turn % 2 == 0 {
                    mapper.cut(block(), PageSize::KIB_4, level.rule(), device)
                } else {
                    mapper.merge(block(), level.rule(), device)
                };
                let flushed = changed.expect("there is memory, and the device answers");
                table.reclaim(&flushed);
            }
            is_done.store(true, Ordering::Release);
        });
        assert_eq!(rig.conflict_count(), 0, "{level:?}");
    }
}
