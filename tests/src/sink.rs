//! A domain that keeps its translations in a map, watches its user and fails on demand.
//!
//! [`ModelSink`] is the reference of what an address space should have told a domain. It counts calls,
//! chooses leaves as a page table would, has a dirty bit for each, and notes as a [`Violation`] whatever the
//! contract of [`Domain`] forbids: calls outside of a grant, two calls at a time for one address, unmaps
//! that divide a mapping, pages left behind at the end. What was removed counts as reached until it is
//! synced; a [`Watched`] source asks for that when a page is unpinned. Each removal has a ticket of its own,
//! so that a sync confirms exactly what its flush names, whoever it is that syncs.

mod call;
mod leaves;
mod watched;

use std::fmt;
use std::sync::{Mutex, MutexGuard, PoisonError};

use iopt::domain::{
    Caps, Domain, DomainError, Farewell, Flush, Grant, MapFailure, MapOp, NotFlushed, Taken, Tenant,
};
use iopt::invalidation::SyncError;
use iopt_formats::{Iova, IovaRange, Oa, PageSize, PageSizes, Prot};

use crate::sink::leaves::{Leaf, Plan, State, Written};

pub use crate::sink::call::{Call, Violation};
pub use crate::sink::watched::{Reach, Watched};

/// A domain for tests.
pub struct ModelSink {
    caps: Caps,
    can_cut: bool,
    is_checked: bool,
    /// Ranges of calls that run at this moment.
    running: Mutex<Vec<IovaRange>>,
    state: Mutex<State>,
}

pub(crate) fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// The smallest leaf of [`ModelSink::small`] and [`ModelSink::huge`].
pub const GRANULE: PageSize = PageSize::from_lg2(11);
/// The largest leaf of [`ModelSink::huge`].
pub const LARGE_LEAF: PageSize = PageSize::from_lg2(20);
/// The first address that these translate.
pub const APERTURE_START: u64 = 1 << 24;
/// The last address that these translate.
pub const APERTURE_LAST: u64 = (1 << 31) - 1;

impl ModelSink {
    /// Creates a sink of these page sizes over all addresses, which does not need pinned pages, tracks
    /// what devices write to, cuts, and checks where unmaps begin and end.
    pub fn new(sizes: PageSizes) -> Self {
        Self {
            caps: Caps {
                sizes,
                aperture: IovaRange::FULL,
                needs_pinned: false,
                tracks_dirty: true,
            },
            can_cut: true,
            is_checked: true,
            running: Mutex::default(),
            state: Mutex::default(),
        }
    }

    /// Creates a sink of 2 KiB pages from 16 MiB to 2 GiB that cannot cut.
    pub fn small() -> Self {
        let sizes = PageSizes::EMPTY.with(GRANULE);
        Self::new(sizes).with_mock_aperture().without_cut()
    }

    /// As [`small`](Self::small), with leaves of 1 MiB besides.
    pub fn huge() -> Self {
        let sizes = PageSizes::EMPTY.with(GRANULE).with(LARGE_LEAF);
        Self::new(sizes).with_mock_aperture().without_cut()
    }

    fn with_mock_aperture(self) -> Self {
        let (start, last) = (Iova::new(APERTURE_START), Iova::new(APERTURE_LAST));
        self.with_aperture(IovaRange::new(start, last).expect("16 MiB are below 2 GiB"))
    }

    /// Translates `aperture` only.
    #[must_use]
    pub fn with_aperture(mut self, aperture: IovaRange) -> Self {
        self.caps.aperture = aperture;
        self
    }

    /// Needs pages that cannot move.
    #[must_use]
    pub fn needing_pinned(mut self) -> Self {
        self.caps.needs_pinned = true;
        self
    }

    /// Does not know what devices write to.
    #[must_use]
    pub fn without_tracking(mut self) -> Self {
        self.caps.tracks_dirty = false;
        self
    }

    /// Cannot cut leaves.
    #[must_use]
    pub fn without_cut(mut self) -> Self {
        self.can_cut = false;
        self
    }

    /// Lets unmaps divide mappings at page borders, as most tables do where the leaves allow it.
    #[must_use]
    pub fn unchecked(mut self) -> Self {
        self.is_checked = false;
        self
    }

    /// Lets the call of one of `kinds` fail that follows `call_count` others of them; and all after it if
    /// `is_lasting`. Takes the place of an earlier order.
    pub fn fail(&self, kinds: &[Call], call_count: u64, is_lasting: bool) {
        lock(&self.state).plan = Some(Plan {
            kinds: kinds.to_vec(),
            left: call_count,
            is_lasting,
        });
    }

    /// Lets nothing fail any more.
    pub fn heal(&self) {
        lock(&self.state).plan = None;
    }

    /// Returns how many calls failed because they were told to.
    pub fn fired_count(&self) -> u64 {
        lock(&self.state).fired_count
    }

    /// Returns the number of calls of a kind, those that failed included.
    pub fn count(&self, call: Call) -> u64 {
        lock(&self.state).counts.get(&call).copied().unwrap_or(0)
    }

    /// Returns how many bytes were mapped since the sink was made.
    pub fn bytes_mapped(&self) -> u64 {
        lock(&self.state).mapped_bytes
    }

    /// Returns how many bytes were unmapped since the sink was made.
    pub fn bytes_unmapped(&self) -> u64 {
        lock(&self.state).unmapped_bytes
    }

    /// Returns how many bytes are mapped.
    pub fn bytes(&self) -> u64 {
        let state = lock(&self.state);
        state.leaves.values().map(|leaf| leaf.size.bytes()).sum()
    }

    /// Returns the number of leaves.
    pub fn leaf_count(&self) -> usize {
        lock(&self.state).leaves.len()
    }

    /// Returns whether an address space changes it.
    pub fn is_bound(&self) -> bool {
        lock(&self.state).tenant.is_some()
    }

    /// Returns whether what devices write to is recorded.
    pub fn is_tracking(&self) -> bool {
        lock(&self.state).is_tracking
    }

    /// Returns what an address translates to.
    pub fn translate(&self, iova: Iova) -> Option<(Oa, Prot)> {
        let state = lock(&self.state);
        let (start, leaf) = state.leaf_at(iova.get())?;
        let oa = leaf.oa.checked_add(iova.get() - start)?;
        Some((oa, leaf.prot))
    }

    /// Writes as a device does: sets the leaf's dirty bit if that is recorded. Returns false, for a fault,
    /// if the address is not mapped for writing.
    pub fn write(&self, iova: Iova) -> bool {
        let mut state = lock(&self.state);
        let is_tracking = state.is_tracking;
        let Some((start, leaf)) = state.leaf_at(iova.get()) else {
            return false;
        };
        if !leaf.prot.can_write() {
            return false;
        }
        if let Some(leaf) = state.leaves.get_mut(&start)
            && is_tracking
            && leaf.written == Written::No
        {
            leaf.written = Written::Yes;
        }
        true
    }

    /// Returns whether a device may reach one of `len` bytes of memory: they are mapped, or were and the
    /// hardware was not told yet.
    pub fn reaches(&self, oa: Oa, len: u64) -> bool {
        let (first, last) = (oa.get(), oa.get() + (len - 1));
        let largest = self.caps.sizes.largest().map_or(1, PageSize::bytes);
        let state = lock(&self.state);
        let from = (first.saturating_sub(largest), 0);
        let mut near = state.by_oa.range(from..=(last, u64::MAX));
        near.any(|(_, &leaf_last)| leaf_last >= first)
            || state
                .unsynced
                .iter()
                .any(|&(start, end, _)| start <= last && end >= first)
    }

    /// Returns whether something was removed that is not synced.
    pub fn has_unsynced(&self) -> bool {
        !lock(&self.state).unsynced.is_empty()
    }

    /// Returns what went against the contract, in order.
    pub fn violations(&self) -> Vec<Violation> {
        lock(&self.state).violations.clone()
    }

    /// Checks that nothing went against the contract.
    ///
    /// # Panics
    ///
    /// Panics with the list of what did.
    pub fn assert_clean(&self) {
        let violations = self.violations();
        assert!(violations.is_empty(), "{violations:?}");
    }

    /// Notes that a call runs, until the result is dropped.
    fn enter(&self, grant: &Grant<'_>) -> Result<Running<'_>, DomainError> {
        let range = grant.range();
        let mut running = lock(&self.running);
        let with = running.iter().copied().find(|other| other.overlaps(range));
        running.push(range);
        drop(running);
        let entered = Running { sink: self, range };
        let mut state = lock(&self.state);
        if let Some(with) = with {
            state.violations.push(Violation::Shared { range, with });
        }
        if !self.caps.aperture.contains(range) {
            state.violations.push(Violation::OutsideAperture { range });
        }
        if state.tenant != Some(grant.tenant()) {
            // An address space that has left may ask once more for what it could not sync, and is told.
            return Err(DomainError::Stranger);
        }
        Ok(entered)
    }

    fn map_one(
        &self,
        state: &mut State,
        grant: IovaRange,
        op: &MapOp<'_>,
    ) -> Result<(), DomainError> {
        let granule = self.caps.sizes.smallest().map_or(0, PageSize::offset_mask);
        let bits = op.range.start().get() | op.range.last().get().wrapping_add(1) | op.oa.get();
        let violation = if !grant.contains(op.range) {
            Some(Violation::OutsideGrant {
                op: op.range,
                grant,
            })
        } else if self.caps.needs_pinned && !op.source.firmness().suits_hardware() {
            Some(Violation::NotFirm { op: op.range })
        } else {
            let with = state.overlapping(op.range).next();
            with.map(|(start, leaf)| Violation::Occupied {
                op: op.range,
                with: leaf.range(start),
            })
        };
        // Memory of another granule cannot be mapped; that is no mistake of the address space's.
        if bits & granule != 0 {
            return Err(UNALIGNED);
        }
        if let Some(violation) = violation {
            state.violations.push(violation);
            return Err(FORBIDDEN);
        }
        let (mut iova, mut oa) = (op.range.start(), op.oa);
        loop {
            let size = self.caps.sizes.largest_fitting(iova, op.range.last(), oa);
            let size = size.ok_or(UNALIGNED)?;
            let last = Iova::new(iova.get() + size.offset_mask());
            let leaf = Leaf {
                size,
                oa,
                prot: op.prot,
                begins: iova == op.range.start(),
                ends: last == op.range.last(),
                written: Written::No,
            };
            state.insert(iova.get(), leaf);
            state.mapped_bytes += size.bytes();
            if leaf.ends {
                return Ok(());
            }
            iova = Iova::new(iova.get() + size.bytes());
            oa = Oa::new(oa.get() + size.bytes());
        }
    }

    /// Notes an unmap that divides a mapping.
    fn check_cut_points(&self, state: &mut State, unmap: IovaRange) {
        let edges = [unmap.start(), unmap.last()].map(|edge| state.leaf_at(edge.get()));
        let [first, last] = edges.map(|edge| edge.map(|(start, leaf)| (leaf.range(start), leaf)));
        let begins_inside = |(range, leaf): &(IovaRange, Leaf)| {
            range.start() != unmap.start() || (self.is_checked && !leaf.begins)
        };
        let ends_inside = |(range, leaf): &(IovaRange, Leaf)| {
            range.last() != unmap.last() || (self.is_checked && !leaf.ends)
        };
        let divided = first.filter(begins_inside).or(last.filter(ends_inside));
        let violation = divided.map(|(leaf, _)| Violation::Divided { unmap, leaf });
        state.violations.extend(violation);
    }
}

const FORBIDDEN: DomainError = DomainError::Unsupported {
    what: "what its contract forbids",
};
const UNALIGNED: DomainError = DomainError::Unsupported {
    what: "parts of its pages",
};

/// A call that runs.
struct Running<'a> {
    sink: &'a ModelSink,
    range: IovaRange,
}

impl Drop for Running<'_> {
    fn drop(&mut self) {
        let mut running = lock(&self.sink.running);
        if let Some(place) = running.iter().position(|&other| other == self.range) {
            running.swap_remove(place);
        }
    }
}

impl Domain for ModelSink {
    fn caps(&self) -> Caps {
        self.caps
    }

    fn bind(&self, tenant: Tenant) -> Result<(), Taken> {
        let mut state = lock(&self.state);
        if state.call(Call::Bind).is_err() || state.tenant.is_some() {
            return Err(Taken);
        }
        state.tenant = Some(tenant.id());
        Ok(())
    }

    fn unbind(&self, farewell: Farewell) {
        let mut state = lock(&self.state);
        if state.tenant != Some(farewell.id()) {
            state.violations.push(Violation::Stranger);
            return;
        }
        let leaf_count = state.leaves.len() + state.unsynced.len();
        if leaf_count > 0 {
            state.violations.push(Violation::LeftBehind { leaf_count });
        }
        state.tenant = None;
        state.is_tracking = false;
    }

    fn map_batch(&self, grant: &mut Grant<'_>, ops: &[MapOp<'_>]) -> Result<(), MapFailure> {
        let failure = |index, error| MapFailure { index, error };
        let _running = self.enter(grant).map_err(|error| failure(0, error))?;
        let mut state = lock(&self.state);
        state.call(Call::Map).map_err(|error| failure(0, error))?;
        let mut next = None;
        for (index, op) in ops.iter().enumerate() {
            if next > Some(op.range.start()) {
                let op = op.range;
                state.violations.push(Violation::Disorder { op });
            }
            let mapped = state.call(Call::Op);
            let mapped = mapped.and_then(|()| self.map_one(&mut state, grant.range(), op));
            mapped.map_err(|error| failure(index, error))?;
            next = op.range.last().checked_add(1);
        }
        Ok(())
    }

    fn unmap(
        &self,
        grant: &mut Grant<'_>,
        flush: &mut Flush,
        mut dirty: Option<&mut dyn FnMut(IovaRange)>,
    ) -> Result<u64, DomainError> {
        let _running = self.enter(grant)?;
        let mut state = lock(&self.state);
        state.call(Call::Unmap)?;
        let range = grant.range();
        let granule = self.caps.sizes.smallest().map_or(0, PageSize::offset_mask);
        if (range.start().get() | range.last().get().wrapping_add(1)) & granule != 0 {
            return Err(UNALIGNED);
        }
        self.check_cut_points(&mut state, range);
        let removed: Vec<u64> = state.overlapping(range).map(|(start, _)| start).collect();
        let ticket = state.ticket();
        let mut bytes = 0;
        for start in removed {
            let Some(leaf) = state.remove(start) else {
                continue;
            };
            let oa_last = leaf.oa.get() + leaf.size.offset_mask();
            state.unsynced.push((leaf.oa.get(), oa_last, ticket));
            bytes += leaf.size.bytes();
            if let Some(dirty) = dirty.as_mut().filter(|_| leaf.written == Written::Yes) {
                dirty(leaf.range(start));
            }
        }
        if bytes > 0 {
            flush.mark(ticket);
        }
        state.unmapped_bytes += bytes;
        Ok(bytes)
    }

    fn sync(&self, flush: Flush) -> Result<(), NotFlushed> {
        let mut state = lock(&self.state);
        if flush.is_empty() {
            return Ok(());
        }
        if state.call(Call::Sync).is_err() {
            let error = SyncError::Refused;
            return Err(NotFlushed { flush, error });
        }
        state.confirm(flush.tickets());
        Ok(())
    }

    fn protect(
        &self,
        grant: &mut Grant<'_>,
        prot: Prot,
        flush: &mut Flush,
        _lost: &mut dyn FnMut(IovaRange),
    ) -> Result<(), DomainError> {
        let _running = self.enter(grant)?;
        let mut state = lock(&self.state);
        state.call(Call::Protect)?;
        let range = grant.range();
        let starts: Vec<u64> = state.overlapping(range).map(|(start, _)| start).collect();
        let bytes: u64 = state
            .overlapping(range)
            .map(|(_, leaf)| leaf.size.bytes())
            .sum();
        if range.len() != Some(bytes) {
            state.violations.push(Violation::ProtectHole { range });
            return Err(FORBIDDEN);
        }
        for start in starts {
            if let Some(leaf) = state.leaves.get_mut(&start) {
                leaf.prot = prot;
            }
        }
        flush.mark(state.ticket());
        Ok(())
    }

    fn set_tracking(&self, is_on: bool) -> Result<(), DomainError> {
        let mut state = lock(&self.state);
        state.call(Call::Track)?;
        if !self.caps.tracks_dirty {
            return Err(NO_TRACKING);
        }
        state.is_tracking = is_on;
        Ok(())
    }

    fn dirty(
        &self,
        grant: &mut Grant<'_>,
        range: IovaRange,
        forget: Option<&mut Flush>,
        each: &mut dyn FnMut(IovaRange),
    ) -> Result<(), DomainError> {
        let _running = self.enter(grant)?;
        let mut state = lock(&self.state);
        state.call(Call::Dirty)?;
        if !self.caps.tracks_dirty {
            return Err(NO_TRACKING);
        }
        if !grant.range().contains(range) {
            let grant = grant.range();
            let op = range;
            state.violations.push(Violation::OutsideGrant { op, grant });
        }
        let dirty: Vec<(u64, Leaf)> = state
            .overlapping(range)
            .filter(|(_, leaf)| leaf.written == Written::Yes)
            .collect();
        for &(start, leaf) in &dirty {
            if let Some(part) = leaf.range(start).intersection(range) {
                each(part);
            }
        }
        if let Some(flush) = forget.filter(|_| !dirty.is_empty()) {
            let ticket = state.ticket();
            for (start, _) in dirty {
                if let Some(leaf) = state.leaves.get_mut(&start) {
                    leaf.written = Written::Stale { ticket };
                }
            }
            flush.mark(ticket);
        }
        Ok(())
    }

    fn cut(
        &self,
        grant: &mut Grant<'_>,
        range: IovaRange,
        size: PageSize,
    ) -> Result<(), DomainError> {
        let _running = self.enter(grant)?;
        let mut state = lock(&self.state);
        state.call(Call::Cut)?;
        if !self.can_cut {
            return Err(DomainError::Unsupported {
                what: "cutting large pages",
            });
        }
        let size = self.caps.sizes.up_to(size).largest().ok_or(UNALIGNED)?;
        let leaves: Vec<(u64, Leaf)> = state.overlapping(range).collect();
        for (start, leaf) in leaves {
            let part_size = size.min(leaf.size);
            state.remove(start);
            for distance in (0..leaf.size.bytes()).step_by(part_size.bytes() as usize) {
                let part = Leaf {
                    size: part_size,
                    oa: Oa::new(leaf.oa.get() + distance),
                    begins: true,
                    ends: true,
                    ..leaf
                };
                state.insert(start + distance, part);
            }
        }
        Ok(())
    }
}

const NO_TRACKING: DomainError = DomainError::Unsupported {
    what: "tracking of what devices write to",
};

impl fmt::Debug for ModelSink {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ModelSink")
            .field("caps", &self.caps)
            .field("leaf_count", &self.leaf_count())
            .finish_non_exhaustive()
    }
}
