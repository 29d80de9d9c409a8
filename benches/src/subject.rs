//! The engine on the workloads, through its public and safe interface.
//!
//! A claim over 512 GiB is held throughout. What a map leaves to do is synced like an unmap's
//! gather, with hardware that does nothing but be called.

use core::fmt;
use std::hint::black_box;
use std::sync::OnceLock;

use iopt::claim::Claim;
use iopt::invalidation::{Changes, Flushed, Invalidate, SyncError};
use iopt::mem::{Arena, ArenaConfig, TableMemory};
use iopt::radix::{Mapper, Table, TableConfig, TablePolicy, UnmapPolicy};
use iopt_formats::{Format, Iova, IovaRange, Oa, Prot};

use crate::pool::{PAGE_LEN, PoolMemory};
use crate::workload::{FIRST_IOVA, Make, Tables, sum};

/// Bytes under claim.
const CLAIM_LEN: u64 = 1 << 39;

/// Unmaps of a round, at most, that [`Detaching`] is measured with.
const MAX_UNMAP_COUNT: usize = 128;

/// Pages of [`MakeZeroed`]: several times as many as a workload with a table for each page takes.
const ARENA_PAGE_COUNT: usize = 4096;

const PROT: Prot = Prot::RW.cached();

/// Makes tables of one format.
#[derive(Clone, Copy, Debug)]
pub struct MakeSubject<F>(pub F);

impl<F: Format> Make for MakeSubject<F> {
    type Tables<'a> = Subject<'a, F>;

    fn with<R>(&self, work: impl FnOnce(&mut Subject<'_, F>) -> R) -> R {
        let table = new_table(self.0, TablePolicy::Keep);
        let mut claim = new_claim(&table);
        work(&mut Subject::new(&table, &mut claim))
    }
}

/// Makes tables of one format that unlink leaf tables which an unmap by a policy covers.
#[derive(Clone, Copy, Debug)]
pub struct MakeDetaching<F>(pub F, pub UnmapPolicy);

impl<F: Format> Make for MakeDetaching<F> {
    type Tables<'a> = Detaching<'a, F>;

    fn with<R>(&self, work: impl FnOnce(&mut Detaching<'_, F>) -> R) -> R {
        let table = new_table(self.0, TablePolicy::Detach);
        let mut claim = new_claim(&table);
        work(&mut Detaching {
            subject: Subject::new(&table, &mut claim),
            policy: self.1,
            flushed: Vec::with_capacity(MAX_UNMAP_COUNT),
        })
    }
}

/// Makes tables of one format in pages that are zeroed beforehand: the arena zeroes what it gets
/// back, which is when the tables end.
#[derive(Clone, Copy, Debug)]
pub struct MakeZeroed<F>(pub F);

impl<F: Format> Make for MakeZeroed<F> {
    type Tables<'a> = Subject<'a, F, &'static Arena>;

    fn with<R>(&self, work: impl FnOnce(&mut Self::Tables<'_>) -> R) -> R {
        static ARENA: OnceLock<Arena> = OnceLock::new();
        let arena = ARENA.get_or_init(|| zeroed_arena(ARENA_PAGE_COUNT));
        let table = Table::new(self.0, arena).expect("the arena has pages for the workload");
        let mut claim = new_claim(&table);
        work(&mut Subject::new(&table, &mut claim))
    }
}

/// Makes an arena of `page_count` pages of 4 KiB, all of them in memory and zeroed.
///
/// # Panics
///
/// Panics if the system has not so much memory.
pub(crate) fn zeroed_arena(page_count: usize) -> Arena {
    let len = page_count * PAGE_LEN;
    let config = ArenaConfig::new(len).with_prefault(len as u64);
    Arena::with_config(config).expect("memory for the arena")
}

fn new_table<F: Format>(format: F, table_policy: TablePolicy) -> Table<F, PoolMemory> {
    let config = TableConfig::new().with_table_policy(table_policy);
    Table::with_config(format, PoolMemory, config).expect("the pool has pages for every workload")
}

fn new_claim<F: Format, M: TableMemory>(table: &Table<F, M>) -> Claim {
    table
        .claim(range(FIRST_IOVA, CLAIM_LEN))
        .expect("nothing is claimed in a new table")
}

/// A table of the engine under a claim.
pub struct Subject<'t, F: Format, M: TableMemory = PoolMemory> {
    table: &'t Table<F, M>,
    mapper: Mapper<'t, F, M>,
}

impl<F: Format, M: TableMemory> fmt::Debug for Subject<'_, F, M> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Subject")
            .field("format", self.table.format())
            .finish_non_exhaustive()
    }
}

impl<F: Format> Subject<'static, F> {
    /// Makes a table that stays until the process ends.
    pub fn leak(format: F) -> Self {
        let table: &'static _ = Box::leak(Box::new(new_table(format, TablePolicy::Keep)));
        Self::new(table, Box::leak(Box::new(new_claim(table))))
    }
}

impl<'t, F: Format, M: TableMemory> Subject<'t, F, M> {
    fn new(table: &'t Table<F, M>, claim: &'t mut Claim) -> Self {
        let mapper = table
            .mapper(claim)
            .expect("the claim is of this table and inside it");
        Self { table, mapper }
    }

    /// Maps `len` bytes with the largest pages that fit, and syncs.
    ///
    /// # Panics
    ///
    /// Panics if the engine refuses.
    #[inline(always)]
    pub fn map(&mut self, iova: u64, oa: u64, len: u64) {
        map_synced(&mut self.mapper, iova, oa, len);
    }

    /// Unmaps `len` bytes, all of which are mapped, and syncs.
    ///
    /// # Panics
    ///
    /// Panics if the engine refuses.
    #[inline(always)]
    pub fn unmap(&mut self, iova: u64, len: u64) -> Flushed {
        unmap_synced(&mut self.mapper, iova, len)
    }
}

/// Maps `len` bytes with the largest pages that fit, and syncs.
#[inline(always)]
pub(crate) fn map_synced<F: Format, M: TableMemory>(
    mapper: &mut Mapper<'_, F, M>,
    iova: u64,
    oa: u64,
    len: u64,
) {
    mapper
        .map(range(iova, len), Oa::new(oa), PROT)
        .expect("nothing is mapped there")
        .sync(&CalledHardware)
        .expect("the hardware does nothing");
}

/// Unmaps `len` bytes, all of which are mapped, and syncs.
#[inline(always)]
pub(crate) fn unmap_synced<F: Format, M: TableMemory>(
    mapper: &mut Mapper<'_, F, M>,
    iova: u64,
    len: u64,
) -> Flushed {
    unmap_by(mapper, iova, len, UnmapPolicy::Exact)
}

#[inline(always)]
fn unmap_by<F: Format, M: TableMemory>(
    mapper: &mut Mapper<'_, F, M>,
    iova: u64,
    len: u64,
    policy: UnmapPolicy,
) -> Flushed {
    mapper
        .unmap(range(iova, len), policy)
        .expect("all of it is mapped")
        .gather
        .sync(&CalledHardware)
        .expect("the hardware does nothing")
}

#[inline(always)]
pub(crate) fn range(iova: u64, len: u64) -> IovaRange {
    IovaRange::with_len(Iova::new(iova), len).expect("workloads stay below the end of the space")
}

impl<F: Format, M: TableMemory> Tables for Subject<'_, F, M> {
    #[inline(always)]
    fn map_page<const SIZE_LG2: u8>(&mut self, iova: u64, oa: u64) {
        self.map(iova, oa, 1 << SIZE_LG2);
    }

    #[inline(always)]
    fn map_run(&mut self, iova: u64, oa: u64, len: u64) {
        self.map(iova, oa, len);
    }

    #[inline(always)]
    fn unmap_page<const SIZE_LG2: u8>(&mut self, iova: u64) {
        self.unmap(iova, 1 << SIZE_LG2);
    }

    #[inline(always)]
    fn unmap_run(&mut self, iova: u64, len: u64) {
        self.unmap(iova, len);
    }

    #[inline(always)]
    fn translate(&self, iova: u64) -> Option<u64> {
        let translation = self.table.lookup(Iova::new(iova))?;
        Some(translation.oa().get())
    }

    #[inline(always)]
    fn translate_batch(&self, iovas: &[u64]) -> u64 {
        let reader = self.table.reader();
        sum(iovas, |iova| {
            let translation = reader.lookup(Iova::new(iova))?;
            Some(translation.oa().get())
        })
    }

    #[inline(always)]
    fn translate_own(&self, iovas: &[u64]) -> u64 {
        sum(iovas, |iova| {
            let translation = self.mapper.lookup(Iova::new(iova))?;
            Some(translation.oa().get())
        })
    }
}

/// A table that unlinks leaf tables which an unmap covers, and frees them between rounds.
pub struct Detaching<'t, F: Format> {
    subject: Subject<'t, F>,
    policy: UnmapPolicy,
    /// The proofs of the unmaps of a round.
    flushed: Vec<Flushed>,
}

impl<F: Format> fmt::Debug for Detaching<'_, F> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Detaching").field(&self.subject).finish()
    }
}

impl<F: Format> Tables for Detaching<'_, F> {
    #[inline(always)]
    fn map_page<const SIZE_LG2: u8>(&mut self, iova: u64, oa: u64) {
        self.subject.map_page::<SIZE_LG2>(iova, oa);
    }

    #[inline(always)]
    fn map_run(&mut self, iova: u64, oa: u64, len: u64) {
        self.subject.map_run(iova, oa, len);
    }

    #[inline(always)]
    fn unmap_page<const SIZE_LG2: u8>(&mut self, iova: u64) {
        self.unmap_run(iova, 1 << SIZE_LG2);
    }

    #[inline(always)]
    fn unmap_run(&mut self, iova: u64, len: u64) {
        let flushed = unmap_by(&mut self.subject.mapper, iova, len, self.policy);
        self.flushed.push(flushed);
    }

    #[inline(always)]
    fn translate(&self, iova: u64) -> Option<u64> {
        self.subject.translate(iova)
    }

    fn tidy(&mut self) {
        for flushed in self.flushed.drain(..) {
            self.subject.table.reclaim(&flushed);
        }
    }
}

/// Hardware that is called for each sync, out of line, and does nothing.
///
/// With `NoHardware` the compiler would drop the call, and with it what the hardware is told.
struct CalledHardware;

impl Invalidate for CalledHardware {
    type Ticket = ();

    #[inline(never)]
    fn submit(&self, changes: &Changes) -> Result<(), SyncError> {
        black_box(changes);
        Ok(())
    }

    #[inline(always)]
    fn wait(&self, (): ()) -> Result<(), SyncError> {
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use iopt_formats::catalog::Visitor;

    use super::*;
    use crate::formats;
    use crate::workload::{Workload, WorkloadName};

    struct Check(WorkloadName);

    impl Visitor for Check {
        type Output = ();

        fn visit<F: Format>(self, format: F) {
            let workload = Workload::new(self.0);
            MakeSubject(format).with(|subject| workload.check(subject));
            match self.0 {
                WorkloadName::W10b => MakeZeroed(format).with(|subject| workload.check(subject)),
                WorkloadName::W13Exact => {
                    let make = MakeDetaching(format, UnmapPolicy::Exact);
                    make.with(|subject| workload.check(subject));
                }
                WorkloadName::W13Sparse => {
                    let make = MakeDetaching(format, UnmapPolicy::Sparse);
                    make.with(|subject| workload.check(subject));
                }
                _ => {}
            }
        }
    }

    #[test]
    fn the_engine_does_the_workloads_in_every_measured_format() {
        for format in formats::NAMES {
            for workload in WorkloadName::ALL {
                formats::visit(format, Check(workload)).unwrap();
            }
        }
    }

    struct CheckDetached;

    impl Visitor for CheckDetached {
        type Output = ();

        fn visit<F: Format>(self, format: F) {
            let workload = Workload::new(WorkloadName::W13Exact);
            MakeDetaching(format, UnmapPolicy::Exact).with(|detaching| {
                let table = detaching.subject.table;
                workload.map(detaching);
                let mapped_count = table.table_count();
                workload.unmap(detaching);
                workload.map(detaching);
                // The tables of the first map wait to be freed; the second took new ones.
                let waiting_count = workload.iovas().len();
                assert_eq!(table.table_count(), mapped_count + waiting_count);
                workload.unmap(detaching);
            });
        }
    }

    #[test]
    fn leaf_tables_that_an_unmap_covers_are_unlinked() {
        for format in formats::NAMES {
            formats::visit(format, CheckDetached).unwrap();
        }
    }
}
