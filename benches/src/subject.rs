//! The engine on the workloads, through its public and safe interface.
//!
//! A claim over 512 GiB is held throughout. What a map leaves to do is synced like an unmap's
//! gather, with hardware that does nothing but be called.

use core::fmt;
use std::hint::black_box;

use iopt::claim::Claim;
use iopt::invalidation::{Changes, Invalidate, SyncError};
use iopt::radix::{Mapper, Table, UnmapPolicy};
use iopt_formats::{Format, Iova, IovaRange, Oa, Prot};

use crate::pool::PoolMemory;
use crate::workload::{FIRST_IOVA, Make, Tables};

/// Bytes under claim.
const CLAIM_LEN: u64 = 1 << 39;

const PROT: Prot = Prot::RW.cached();

/// Makes tables of one format.
#[derive(Clone, Copy, Debug)]
pub struct MakeSubject<F>(pub F);

impl<F: Format> Make for MakeSubject<F> {
    type Tables<'a> = Subject<'a, F>;

    fn with<R>(&self, work: impl FnOnce(&mut Subject<'_, F>) -> R) -> R {
        let table = new_table(self.0);
        let mut claim = new_claim(&table);
        work(&mut Subject::new(&table, &mut claim))
    }
}

fn new_table<F: Format>(format: F) -> Table<F, PoolMemory> {
    Table::new(format, PoolMemory).expect("the pool has pages for every workload")
}

fn new_claim<F: Format>(table: &Table<F, PoolMemory>) -> Claim {
    table
        .claim(range(FIRST_IOVA, CLAIM_LEN))
        .expect("nothing is claimed in a new table")
}

/// A table of the engine under a claim.
pub struct Subject<'t, F: Format> {
    table: &'t Table<F, PoolMemory>,
    mapper: Mapper<'t, F, PoolMemory>,
}

impl<F: Format> fmt::Debug for Subject<'_, F> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Subject")
            .field("format", self.table.format())
            .finish_non_exhaustive()
    }
}

impl<F: Format> Subject<'static, F> {
    /// Makes a table that stays until the process ends.
    pub fn leak(format: F) -> Self {
        let table: &'static _ = Box::leak(Box::new(new_table(format)));
        Self::new(table, Box::leak(Box::new(new_claim(table))))
    }
}

impl<'t, F: Format> Subject<'t, F> {
    fn new(table: &'t Table<F, PoolMemory>, claim: &'t mut Claim) -> Self {
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
        self.mapper
            .map(range(iova, len), Oa::new(oa), PROT)
            .expect("nothing is mapped there")
            .sync(&CalledHardware)
            .expect("the hardware does nothing");
    }

    /// Unmaps `len` bytes, all of which are mapped, and syncs.
    ///
    /// # Panics
    ///
    /// Panics if the engine refuses.
    #[inline(always)]
    pub fn unmap(&mut self, iova: u64, len: u64) {
        self.mapper
            .unmap(range(iova, len), UnmapPolicy::Exact)
            .expect("all of it is mapped")
            .gather
            .sync(&CalledHardware)
            .expect("the hardware does nothing");
    }

    /// Returns what `iova` translates to, or `None` if it is not mapped.
    #[inline(always)]
    pub fn lookup(&self, iova: u64) -> Option<u64> {
        self.table
            .lookup(Iova::new(iova))
            .map(|translation| translation.oa().get())
    }
}

#[inline(always)]
fn range(iova: u64, len: u64) -> IovaRange {
    IovaRange::with_len(Iova::new(iova), len).expect("workloads stay below the end of the space")
}

impl<F: Format> Tables for Subject<'_, F> {
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
        self.lookup(iova)
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
    use iopt_formats::Format;
    use iopt_formats::catalog::Visitor;

    use super::MakeSubject;
    use crate::formats;
    use crate::workload::{Make as _, Workload, WorkloadName};

    struct Check(WorkloadName);

    impl Visitor for Check {
        type Output = ();

        fn visit<F: Format>(self, format: F) {
            MakeSubject(format).with(|subject| Workload::new(self.0).check(subject));
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
}
