//! A table with the hardware that walks it.

use alloc::boxed::Box;
use core::fmt;
use core::ops::ControlFlow;

use iopt_formats::{Format, Geometry, Iova, IovaRange, PageSize, Prot, Window};

use crate::claim::Claim;
use crate::domain::{
    Caps, Domain, DomainError, Farewell, Flush, Grant, MapFailure, MapOp, NotFlushed, TRACKING,
    Taken, Tenant,
};
use crate::invalidation::{Flushed, Invalidate, Quarantined, SyncError};
use crate::mem::TableMemory;
use crate::radix::{
    BreakBeforeMake, CutError, DirtyError, FaultWindow, MapError, Mapper, ProtectError, Table,
    UnmapError, UnmapPolicy,
};
use crate::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use crate::sync::{self, Mutex};

/// One table of any format, changed by an address space and walked by `I`.
pub struct TableDomain<F: Format, M: TableMemory, I> {
    table: Table<F, M>,
    hardware: I,
    needs_pinned: bool,
    break_before_make: BreakBeforeMake,
    /// [`TenantId`](crate::domain::TenantId) of the tenant, or 0.
    tenant: AtomicU64,
    /// Claim over the whole space, while there is a tenant: its grants are parts of it.
    whole: Mutex<Option<Claim>>,
    /// What the hardware was to be told of maps, cuts and merges and did not confirm, tables that they
    /// unlinked included. It is told before anything that comes later counts as flushed: it may hold
    /// entries of sizes, or ways to tables, that later gathers know nothing of.
    owed: Mutex<Flush>,
    is_owing: AtomicBool,
}

impl<F: Format, M: TableMemory, I: Invalidate> TableDomain<F, M, I> {
    /// Creates a domain whose devices tolerate pages that move: simulated ones, or such as fault.
    pub fn new(table: Table<F, M>, hardware: I) -> Self {
        Self {
            table,
            hardware,
            needs_pinned: false,
            break_before_make: BreakBeforeMake::Required(FaultWindow::Refuse),
            tenant: AtomicU64::new(0),
            whole: Mutex::new(&sync::TENANT, None),
            owed: Mutex::new(&sync::OWED, Flush::new()),
            is_owing: AtomicBool::new(false),
        }
    }

    /// Creates a domain whose devices need pages that stay where they are.
    pub fn for_hardware(table: Table<F, M>, hardware: I) -> Self {
        Self {
            needs_pinned: true,
            ..Self::new(table, hardware)
        }
    }

    /// Says how the hardware lets valid entries change their size; by default, that it does not, where
    /// the format knows such a rule.
    #[must_use]
    pub fn with_break_before_make(self, break_before_make: BreakBeforeMake) -> Self {
        Self {
            break_before_make,
            ..self
        }
    }

    /// Returns the table: to look up, to dump, and for device contexts to point to.
    pub const fn table(&self) -> &Table<F, M> {
        &self.table
    }

    /// Returns the hardware.
    pub const fn hardware(&self) -> &I {
        &self.hardware
    }

    /// Returns a mapper of the granted range.
    fn mapper<'g>(&'g self, grant: &'g mut Grant<'_>) -> Result<Mapper<'g, F, M>, DomainError> {
        if self.tenant.load(Ordering::Acquire) != grant.tenant().0 {
            return Err(DomainError::Stranger);
        }
        // The tenant's grants are exclusive (G2), and while it is the tenant (G1, G3) nobody else holds
        // a claim: `whole` does.
        let mapper = self.table.mapper_of_part(grant.range());
        mapper.map_err(other)
    }

    fn settle(&self, flushed: &Flushed) {
        self.table.reclaim(flushed);
    }

    /// Puts down what the hardware did not confirm; whoever changes the same range next sees that.
    fn owe(&self, quarantined: Quarantined) -> SyncError {
        let error = quarantined.error();
        self.owed.lock().add(quarantined.into_gather());
        self.is_owing.store(true, Ordering::Release);
        error
    }

    /// Tells the hardware all of `flush`, or keeps in it what it did not confirm.
    fn tell(&self, flush: &mut Flush) -> Result<(), SyncError>
    where
        I: Invalidate,
    {
        while let Some(gather) = flush.pop() {
            match gather.sync(&self.hardware) {
                Ok(flushed) => self.settle(&flushed),
                Err(quarantined) => {
                    let error = quarantined.error();
                    flush.add(quarantined.into_gather());
                    return Err(error);
                }
            }
        }
        Ok(())
    }

    fn cut_error(&self, error: CutError) -> DomainError {
        match error {
            CutError::OutOfMemory(_) => DomainError::OutOfMemory,
            CutError::Quarantined(quarantined) => self.owe(quarantined).into(),
            error => other(error),
        }
    }
}

/// Returns what a table translates, of the part that holds address 0 or, if there is none, all of it.
fn aperture(geometry: Geometry) -> IovaRange {
    let mask = geometry.va_mask();
    let (start, last) = match geometry.window {
        Window::Lower => (0, mask),
        // The lower half; the upper one is reached by sign extension and not by an address space that
        // counts from 0.
        Window::SignExtended => (0, mask >> 1),
        Window::Upper => (!mask, u64::MAX),
    };
    IovaRange::new(Iova::new(start), Iova::new(last)).expect("a mask is not below its half")
}

impl<F: Format, M: TableMemory, I: Invalidate + Send + Sync> Domain for TableDomain<F, M, I> {
    fn caps(&self) -> Caps {
        let format = self.table.format();
        Caps {
            sizes: format.sizes(),
            aperture: aperture(format.geometry()),
            needs_pinned: self.needs_pinned,
            tracks_dirty: format.dirty_rule().is_some(),
        }
    }

    fn bind(&self, tenant: Tenant) -> Result<(), Taken> {
        let mut whole = self.whole.lock();
        if whole.is_some() {
            return Err(Taken);
        }
        let claim = self.table.claim(IovaRange::FULL).map_err(|_| Taken)?;
        *whole = Some(claim);
        self.tenant.store(tenant.id().0, Ordering::Release);
        Ok(())
    }

    fn unbind(&self, farewell: Farewell) {
        let mut whole = self.whole.lock();
        if self.tenant.load(Ordering::Acquire) == farewell.id().0 {
            self.tenant.store(0, Ordering::Release);
            *whole = None;
        }
    }

    fn map_batch(&self, grant: &mut Grant<'_>, ops: &[MapOp<'_>]) -> Result<(), MapFailure> {
        let failure = |index, error| MapFailure { index, error };
        let mut mapper = self.mapper(grant).map_err(|error| failure(0, error))?;
        for (index, op) in ops.iter().enumerate() {
            let mapped = mapper.map(op.range, op.oa, op.prot);
            let sync = mapped.map_err(|error| failure(index, map_error(error)))?;
            if sync.is_empty() {
                continue;
            }
            // A device that does not see a mapping yet faults; the mapping itself is whole.
            let synced = sync.sync(&self.hardware);
            let flushed =
                synced.map_err(|quarantined| failure(index, self.owe(quarantined).into()))?;
            self.settle(&flushed);
        }
        Ok(())
    }

    fn unmap(
        &self,
        grant: &mut Grant<'_>,
        flush: &mut Flush,
        dirty: Option<&mut dyn FnMut(IovaRange)>,
    ) -> Result<u64, DomainError> {
        let range = grant.range();
        let mut mapper = self.mapper(grant)?;
        let unmapped = match dirty {
            None => mapper.unmap(range, UnmapPolicy::Sparse),
            Some(each) => mapper.unmap_with(range, UnmapPolicy::Sparse, |removed| {
                if removed.dirty {
                    each(removed.range);
                }
            }),
        };
        let unmapped = unmapped.map_err(|error: UnmapError| other(error))?;
        flush.add(unmapped.gather);
        if self.is_owing.load(Ordering::Acquire) {
            // So that the sync is not left out.
            flush.mark(0);
        }
        Ok(unmapped.bytes)
    }

    fn sync(&self, mut flush: Flush) -> Result<(), NotFlushed> {
        let mut told = Ok(());
        if self.is_owing.load(Ordering::Acquire) {
            let mut owed = self.owed.lock();
            told = self.tell(&mut owed);
            self.is_owing.store(told.is_err(), Ordering::Release);
        }
        told.and_then(|()| self.tell(&mut flush))
            .map_err(|error| NotFlushed { flush, error })
    }

    fn protect(
        &self,
        grant: &mut Grant<'_>,
        prot: Prot,
        flush: &mut Flush,
        lost: &mut dyn FnMut(IovaRange),
    ) -> Result<(), DomainError> {
        let range = grant.range();
        let protected = self.mapper(grant)?.protect_with(range, prot, lost);
        let protected = protected.map_err(|error: ProtectError| other(error))?;
        flush.add(protected.gather);
        Ok(())
    }

    fn set_tracking(&self, is_on: bool) -> Result<(), DomainError> {
        // The table records it at all times; whether devices do is up to their context entries.
        match self.table.format().dirty_rule() {
            None if is_on => Err(DomainError::Unsupported { what: TRACKING }),
            _ => Ok(()),
        }
    }

    fn dirty(
        &self,
        grant: &mut Grant<'_>,
        range: IovaRange,
        forget: Option<&mut Flush>,
        each: &mut dyn FnMut(IovaRange),
    ) -> Result<(), DomainError> {
        let mut mapper = self.mapper(grant)?;
        match forget {
            Some(flush) => {
                let gather = mapper.take_dirty(range, each).map_err(dirty_error)?;
                flush.add(gather);
                Ok(())
            }
            None => self.table.dirty(range, each).map_err(dirty_error),
        }
    }

    fn holds(&self, grant: &mut Grant<'_>, ops: &[MapOp<'_>]) -> Result<bool, DomainError> {
        let format = self.table.format();
        let mut is_same = true;
        let mut place = 0;
        // How much of the op at `place` was met.
        let mut met = 0;
        self.table.dump(grant.range(), |run| {
            let mut at = run.range.start().get();
            loop {
                let Some(op) = ops.get(place) else {
                    is_same = false;
                    return ControlFlow::Break(());
                };
                let start = op.range.start().get() + met;
                let oa = run.oa.get() + (at - run.range.start().get());
                let prot = format.effective(op.prot);
                if start != at || op.oa.get() + met != oa || prot != Some(run.prot) {
                    is_same = false;
                    return ControlFlow::Break(());
                }
                let last = op.range.last().min(run.range.last()).get();
                if last == op.range.last().get() {
                    place += 1;
                    met = 0;
                } else {
                    met += last - at + 1;
                }
                if last == run.range.last().get() {
                    return ControlFlow::Continue(());
                }
                at = last + 1;
            }
        });
        Ok(is_same && place == ops.len())
    }

    fn cut(
        &self,
        grant: &mut Grant<'_>,
        range: IovaRange,
        size: PageSize,
    ) -> Result<(), DomainError> {
        let mut mapper = self.mapper(grant)?;
        let flushed = mapper.cut(range, size, self.break_before_make, &self.hardware);
        self.settle(&flushed.map_err(|error| self.cut_error(error))?);
        Ok(())
    }

    fn merge(&self, grant: &mut Grant<'_>, range: IovaRange) -> Result<(), DomainError> {
        let mut mapper = self.mapper(grant)?;
        let flushed = mapper.merge(range, self.break_before_make, &self.hardware);
        self.settle(&flushed.map_err(|error| self.cut_error(error))?);
        Ok(())
    }
}

fn map_error(error: MapError) -> DomainError {
    match error {
        MapError::OutOfMemory(_) => DomainError::OutOfMemory,
        error => other(error),
    }
}

fn dirty_error(error: DirtyError) -> DomainError {
    match error {
        DirtyError::NotTracked => DomainError::Unsupported { what: TRACKING },
        error => other(error),
    }
}

fn other(error: impl core::error::Error + Send + Sync + 'static) -> DomainError {
    DomainError::Other(Box::new(error))
}

impl<F: Format, M: TableMemory, I> fmt::Debug for TableDomain<F, M, I> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("TableDomain")
            .field("table", &self.table)
            .finish_non_exhaustive()
    }
}
