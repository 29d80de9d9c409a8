//! Failures on order, at every seam of an address space.

use std::fmt;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use iopt::domain::{
    Caps, Domain, DomainError, Farewell, Flush, Grant, MapFailure, MapOp, NotFlushed, Taken, Tenant,
};
use iopt::invalidation::{Changes, Invalidate, SyncError};
use iopt::pin::{Firmness, Kind, OaRun, Origin, PageRange, PinError, Simulated, Source};
use iopt_formats::{IovaRange, PageSize, Prot};

/// Where something can fail.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum FailPoint {
    /// A call that pins pages.
    Pin,
    /// One run of a batch that is mapped.
    Map,
    /// A removal from a domain.
    Unmap,
    /// A sync that has something to tell.
    Sync,
    /// A change of rights.
    Protect,
    /// The hardware below a domain refuses.
    Hardware,
}

impl FailPoint {
    /// All of them.
    pub const ALL: [Self; 6] = [
        Self::Pin,
        Self::Map,
        Self::Unmap,
        Self::Sync,
        Self::Protect,
        Self::Hardware,
    ];
}

/// Counts what could fail and lets some of it do so.
#[derive(Debug, Default)]
pub struct Faults(Mutex<State>);

#[derive(Debug, Default)]
struct State {
    /// Calls until the one that fails, of each kind.
    left: [Option<u64>; FailPoint::ALL.len()],
    hit_counts: [u64; FailPoint::ALL.len()],
    fired_count: u64,
}

impl Faults {
    fn state(&self) -> MutexGuard<'_, State> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Lets one call fail, after `count` others of its kind.
    pub fn arm(&self, point: FailPoint, count: u64) {
        self.state().left[point as usize] = Some(count);
    }

    /// Lets nothing fail any more and forgets what happened.
    pub fn clear(&self) {
        *self.state() = State::default();
    }

    /// Returns how many calls failed.
    pub fn fired_count(&self) -> u64 {
        self.state().fired_count
    }

    /// Returns whether a call is still to fail.
    pub fn is_armed(&self) -> bool {
        self.state().left.iter().any(Option::is_some)
    }

    /// Returns how many calls of a kind there were.
    pub fn hit_count(&self, point: FailPoint) -> u64 {
        self.state().hit_counts[point as usize]
    }

    /// Counts a call; returns whether it is to fail.
    fn hit(&self, point: FailPoint) -> bool {
        let mut state = self.state();
        state.hit_counts[point as usize] += 1;
        let left = &mut state.left[point as usize];
        let is_last = *left == Some(0);
        *left = left.and_then(|left| left.checked_sub(1));
        state.fired_count += u64::from(is_last);
        is_last
    }
}

/// Hardware that refuses on order.
#[derive(Debug)]
pub struct Wire(pub Arc<Faults>);

impl Invalidate for Wire {
    type Ticket = ();

    fn submit(&self, _: &Changes) -> Result<(), SyncError> {
        if self.0.hit(FailPoint::Hardware) {
            return Err(SyncError::Refused);
        }
        Ok(())
    }

    fn wait(&self, (): ()) -> Result<(), SyncError> {
        Ok(())
    }
}

/// A domain that fails on order, and is `inner` else.
pub struct Fragile {
    inner: Arc<dyn Domain>,
    faults: Arc<Faults>,
}

impl Fragile {
    /// Wraps a domain.
    pub const fn new(inner: Arc<dyn Domain>, faults: Arc<Faults>) -> Self {
        Self { inner, faults }
    }
}

impl fmt::Debug for Fragile {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.inner.fmt(f)
    }
}

impl Domain for Fragile {
    fn caps(&self) -> Caps {
        self.inner.caps()
    }

    fn bind(&self, tenant: Tenant) -> Result<(), Taken> {
        self.inner.bind(tenant)
    }

    fn unbind(&self, farewell: Farewell) {
        self.inner.unbind(farewell);
    }

    fn map_batch(&self, grant: &mut Grant<'_>, ops: &[MapOp<'_>]) -> Result<(), MapFailure> {
        let failing = ops.iter().position(|_| self.faults.hit(FailPoint::Map));
        let Some(index) = failing else {
            return self.inner.map_batch(grant, ops);
        };
        self.inner.map_batch(grant, &ops[..index])?;
        Err(MapFailure {
            index,
            error: DomainError::OutOfMemory,
        })
    }

    fn unmap(
        &self,
        grant: &mut Grant<'_>,
        flush: &mut Flush,
        dirty: Option<&mut dyn FnMut(IovaRange)>,
    ) -> Result<u64, DomainError> {
        if self.faults.hit(FailPoint::Unmap) {
            return Err(DomainError::OutOfMemory);
        }
        self.inner.unmap(grant, flush, dirty)
    }

    fn sync(&self, flush: Flush) -> Result<(), NotFlushed> {
        if !flush.is_empty() && self.faults.hit(FailPoint::Sync) {
            let error = SyncError::TimedOut;
            return Err(NotFlushed { flush, error });
        }
        self.inner.sync(flush)
    }

    fn protect(
        &self,
        grant: &mut Grant<'_>,
        prot: Prot,
        flush: &mut Flush,
        lost: &mut dyn FnMut(IovaRange),
    ) -> Result<(), DomainError> {
        if self.faults.hit(FailPoint::Protect) {
            return Err(DomainError::OutOfMemory);
        }
        self.inner.protect(grant, prot, flush, lost)
    }

    fn set_tracking(&self, is_on: bool) -> Result<(), DomainError> {
        self.inner.set_tracking(is_on)
    }

    fn dirty(
        &self,
        grant: &mut Grant<'_>,
        range: IovaRange,
        forget: Option<&mut Flush>,
        each: &mut dyn FnMut(IovaRange),
    ) -> Result<(), DomainError> {
        self.inner.dirty(grant, range, forget, each)
    }

    fn cut(
        &self,
        grant: &mut Grant<'_>,
        range: IovaRange,
        size: PageSize,
    ) -> Result<(), DomainError> {
        self.inner.cut(grant, range, size)
    }

    fn merge(&self, grant: &mut Grant<'_>, range: IovaRange) -> Result<(), DomainError> {
        self.inner.merge(grant, range)
    }
}

/// Simulated pages that cannot be pinned on order.
#[derive(Debug)]
pub struct FragileSource {
    /// The pages.
    pub inner: Arc<Simulated>,
    /// What decides.
    pub faults: Arc<Faults>,
}

impl Source for FragileSource {
    fn page_size(&self) -> PageSize {
        self.inner.page_size()
    }

    fn page_count(&self) -> u64 {
        self.inner.page_count()
    }

    fn firmness(&self) -> Firmness {
        self.inner.firmness()
    }

    fn kind(&self) -> Kind {
        self.inner.kind()
    }

    fn is_writable(&self) -> bool {
        self.inner.is_writable()
    }

    fn origin(&self) -> Origin<'_> {
        self.inner.origin()
    }

    fn pin(&self, pages: PageRange, runs: &mut dyn FnMut(OaRun)) -> Result<(), PinError> {
        if self.faults.hit(FailPoint::Pin) {
            let page = pages.last();
            return Err(PinError::Fault { page });
        }
        self.inner.pin(pages, runs)
    }

    fn unpin(&self, pages: PageRange) {
        self.inner.unpin(pages);
    }

    fn read(&self, offset: u64, into: &mut [u8]) -> Result<(), PinError> {
        self.inner.read(offset, into)
    }

    fn write(&self, offset: u64, from: &[u8]) -> Result<(), PinError> {
        self.inner.write(offset, from)
    }
}
