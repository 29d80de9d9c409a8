//! The domain as an address space sees it.

use alloc::vec::Vec;

use iopt_formats::command::virtio::{Access, feature};
use iopt_formats::{IovaRange, Memory, Oa, PageSize, Prot};

use crate::domain::virtio::device::{State, Step};
use crate::domain::virtio::mappings::{Ended, Presence, behind, hull, is_one};
use crate::domain::virtio::member::Member;
use crate::domain::virtio::requests::Work;
use crate::domain::virtio::{RequestError, Transport, VirtioDomain, VirtioError};
use crate::domain::{
    Caps, Domain, DomainError, Farewell, Flush, Grant, MapFailure, MapOp, NotFlushed, Taken, Tenant,
};
use crate::invalidation::SyncError;
use crate::radix::FaultWindow;

const REPLACING: DomainError = DomainError::Unsupported {
    what: "replacing mappings that devices use",
};

impl<T: Transport> VirtioDomain<T> {
    /// Returns what a request has to say of `prot`. Execution cannot be granted.
    fn access(&self, prot: Prot) -> Result<Access, VirtioError> {
        let access = Access {
            is_readable: prot.can_read(),
            is_writable: prot.can_write(),
            is_mmio: prot.memory() == Memory::Device,
        };
        let is_known = !access.is_mmio || self.device().has_feature(feature::MMIO);
        if is_known && (access.is_readable || access.is_writable) {
            Ok(access)
        } else {
            Err(VirtioError::Rights { prot })
        }
    }

    /// Runs `work` on what is kept of the domain, for the tenant of the grant.
    fn with_member<R>(
        &self,
        grant: &Grant<'_>,
        work: impl FnOnce(&mut Member) -> Result<R, DomainError>,
    ) -> Result<R, DomainError> {
        let mut state = self.device().lock();
        let member = state.member(self.number());
        match member.filter(|member| member.tenant == grant.tenant().0) {
            Some(member) => work(member),
            None => Err(DomainError::Stranger),
        }
    }

    /// Notes a run as one to be mapped.
    fn enter(
        &self,
        member: &mut Member,
        (range, oa, prot): (IovaRange, Oa, Prot),
        is_direct: bool,
    ) -> Result<(), DomainError> {
        let end = range.last().get().wrapping_add(1);
        let is_aligned = self.granule().divides(range.start().get() | end | oa.get());
        let is_inside = self.device().aperture().contains(range);
        if !is_aligned || !is_inside || oa.checked_add(range.len_minus_one()).is_none() {
            return Err(VirtioError::Misplaced { range }.into());
        }
        if let Some(reserved) = member.reserved_in(range) {
            return Err(VirtioError::Reserved { reserved }.into());
        }
        let access = self.access(prot)?;
        let entered = member.mappings.insert(range, oa, access, is_direct);
        entered.map_err(|error| error.map_or(DomainError::OutOfMemory, DomainError::from))
    }

    /// Maps what endpoints use at any time: no address space may map or unmap anything there. The same again does
    /// nothing.
    ///
    /// # Errors
    ///
    /// [`DomainError`], with nothing changed.
    pub fn map_direct(&self, range: IovaRange, oa: Oa, prot: Prot) -> Result<(), DomainError> {
        let access = self.access(prot)?;
        let is_live = {
            let mut state = self.device().lock();
            let member = state.member(self.number()).ok_or(DomainError::Stranger)?;
            if member.mappings.has_same_direct(range, oa, access) {
                return Ok(());
            }
            self.enter(member, (range, oa, prot), true)?;
            member.is_live()
        };
        let failed = is_live.then(|| self.take(range)).flatten();
        let Some((_, error)) = failed else {
            return Ok(());
        };
        self.with_mappings(|member| member.mappings.give_up_direct(range));
        self.take_back(core::iter::once(range));
        Err(error.into())
    }

    /// Ends mappings that `MAP`s behind a refused one made, and those that may be made yet. What the device does
    /// not confirm stays until it is unmapped again.
    fn take_back(&self, ranges: impl Iterator<Item = IovaRange>) {
        let (mut all, mut cleared) = (None, None);
        let mut state = self.device().lock();
        let ticket = state.new_ticket();
        if let Some(member) = state.member(self.number()) {
            for range in ranges {
                all = Some(hull(all, range));
                let ended = member.mappings.end(range, ticket, |_| ());
                cleared = ended.hull.map(|part| hull(cleared, part)).or(cleared);
            }
            // The request may not be sent.
            member.mappings.has_stuck = true;
        }
        drop(state);
        if let Some((all, cleared)) = all.zip(cleared) {
            let _ = self.device().clear(self.number(), cleared, Some(ticket));
            let _ = self.device().settle(self.number(), all);
        }
    }

    /// Lets the device forget the mappings of `range` and sends them again, as they stand in the list after
    /// `change`. If the device does not take them, `undo` is called and what was there is mapped again.
    fn replace(
        &self,
        range: IovaRange,
        change: impl FnOnce(&mut Member) -> Result<(), DomainError>,
        undo: impl FnOnce(&mut Member),
    ) -> Result<(), DomainError> {
        if let Err(error) = self.withdraw(range) {
            let mut is_whole = error.is_without_effect();
            self.with_mappings(|member| {
                // A device that is late was not even asked.
                is_whole |= member.mappings.are_there(range);
                member.mappings.set_busy(range, false);
                if is_whole {
                    member.mappings.set_doubt(range, None);
                }
            });
            let lost = VirtioError::Lost { range, error };
            return Err(if is_whole { error.into() } else { lost.into() });
        }
        let mut changed = Ok(());
        self.with_mappings(|member| {
            changed = change(member);
            member.mappings.set_busy(range, false);
        });
        let error = match (self.take(range), changed) {
            (None, Ok(())) => return Ok(()),
            (None, Err(error)) => return Err(error),
            (Some((_, error)), _) => error,
        };
        let withdrawn = self.withdraw(range);
        self.with_mappings(|member| {
            undo(member);
            if let Err(error) = withdrawn
                && member.is_live()
            {
                member.mappings.set_doubt(range, Some(error));
            }
            member.mappings.set_busy(range, false);
        });
        match withdrawn
            .err()
            .map(|error| (range, error))
            .or_else(|| self.take(range))
        {
            None => Err(error.into()),
            Some((range, error)) => Err(VirtioError::Lost { range, error }.into()),
        }
    }

    /// Lets the device forget every mapping of which nobody knows whether it has it. Whoever unmaps one of them
    /// meanwhile waits for that; nothing holds it in the list.
    pub(super) fn withdraw_doubtful(&self) -> Result<(), RequestError> {
        // Once more if the device may have forgotten them in spite of what it says.
        for _ in 0..2 {
            let mut rest = Some(IovaRange::FULL);
            let mut has_some = false;
            self.device().pump(|state| {
                let member = state.member(self.number());
                let found = member.and_then(|member| member.mappings.first_doubtful(rest?));
                let Some(found) = found else {
                    return Step::Done;
                };
                rest = rest.and_then(|rest| behind(found, rest));
                has_some = true;
                state.clear(self.number(), found, None);
                Step::Sent
            })?;
            if !has_some {
                break;
            }
            self.device().settle(self.number(), IovaRange::FULL)?;
        }
        Ok(())
    }

    /// Makes the mappings of `range` busy, and lets the device forget them.
    fn withdraw(&self, range: IovaRange) -> Result<(), RequestError> {
        self.with_mappings(|member| member.mappings.set_busy(range, true));
        self.device().settle(self.number(), range)?;
        let mut left = None;
        // Once more if the device may have forgotten them in spite of what it says.
        for _ in 0..2 {
            self.device().clear(self.number(), range, None)?;
            self.device().settle(self.number(), range)?;
            left = self.first_left(range);
            if left.is_none_or(|(_, error)| error.is_without_effect()) {
                break;
            }
        }
        left.map_or(Ok(()), |(_, error)| Err(error))
    }

    /// Runs `work` on what is kept of the domain.
    fn with_mappings(&self, work: impl FnOnce(&mut Member)) {
        if let Some(member) = self.device().lock().member(self.number()) {
            work(member);
        }
    }

    /// Sends what is missing of `range` and returns the first mapping that the device does not take.
    fn take(&self, range: IovaRange) -> Option<(IovaRange, RequestError)> {
        // Whatever is not sent or not answered shows in the mappings.
        let _ = self.device().fill(self.number(), range);
        let _ = self.device().settle(self.number(), range);
        self.first_failed(range, Some(RequestError::TimedOut))
    }

    /// Returns the first mapping of `range` that the device has not given up, and why.
    fn first_left(&self, range: IovaRange) -> Option<(IovaRange, RequestError)> {
        let mut state = self.device().lock();
        let member = state.member(self.number())?;
        let mut left = member.mappings.in_range(range);
        left.find_map(|(range, mapping)| {
            let error = mapping.error.unwrap_or(RequestError::TimedOut);
            (mapping.presence != Presence::Missing).then_some((range, error))
        })
    }

    /// Sends an `UNMAP` for each mapping that was ended with one of `tickets` and that the device may still have
    /// without being asked to forget it.
    fn send_again(&self, tickets: &[u64]) -> Result<(), RequestError> {
        let mut rest = Some(IovaRange::FULL);
        self.device().pump(|state| {
            let found = state.member(self.number()).and_then(|member| {
                let mut ended = member.mappings.ended(rest?, tickets);
                let held = ended.find(|(_, mapping)| mapping.presence == Presence::Present);
                held.map(|(range, mapping)| (range, mapping.ticket))
            });
            let Some((range, ticket)) = found else {
                return Step::Done;
            };
            rest = rest.and_then(|rest| behind(range, rest));
            state.clear(self.number(), range, ticket);
            Step::Sent
        })
    }

    /// Waits until the device has answered what concerns unmaps with one of `tickets`, which rise.
    fn settle_tickets(&self, tickets: &[u64]) -> Result<(), RequestError> {
        self.device().wait_until(|state| {
            let number = self.number();
            let is_own = |_: IovaRange, ticket: Option<u64>| {
                ticket.is_some_and(|ticket| is_one(ticket, tickets))
            };
            if state.requests.has(|work| work.is_in(number, is_own)) {
                return false;
            }
            // Then those that were under way before the unmap, which are rare.
            let Some(member) = state.member(number) else {
                return true;
            };
            let mut ended = member.mappings.ended(IovaRange::FULL, tickets);
            ended.all(|(_, mapping)| mapping.presence == Presence::Present)
        })
    }

    /// Waits for the unmaps with one of `tickets`, which rise, and sends those again that failed.
    fn finish(&self, tickets: &[u64]) -> Result<(), SyncError> {
        let time_out = |_: RequestError| SyncError::TimedOut;
        let has_left = || {
            let mut state = self.device().lock();
            let member = state.member(self.number());
            member.is_some_and(|member| member.mappings.has_ended(tickets))
        };
        self.settle_tickets(tickets).map_err(time_out)?;
        if has_left() {
            self.send_again(tickets).map_err(time_out)?;
            self.settle_tickets(tickets).map_err(time_out)?;
        }
        if has_left() {
            Err(SyncError::Refused)
        } else {
            Ok(())
        }
    }
}

impl<T: Transport> Domain for VirtioDomain<T> {
    fn caps(&self) -> Caps {
        Caps {
            sizes: self.device().config().page_sizes,
            aperture: self.device().aperture(),
            needs_pinned: self.needs_pinned,
            tracks_dirty: false,
        }
    }

    fn bind(&self, tenant: Tenant) -> Result<(), Taken> {
        let mut state = self.device().lock();
        let member = state.member(self.number()).ok_or(Taken)?;
        if member.tenant != 0 {
            return Err(Taken);
        }
        member.tenant = tenant.id().0;
        Ok(())
    }

    fn unbind(&self, farewell: Farewell) {
        let mut state = self.device().lock();
        if let Some(member) = state.member(self.number())
            && member.tenant == farewell.id().0
        {
            member.tenant = 0;
        }
    }

    /// The runs of a batch are under way together.
    fn map_batch(&self, grant: &mut Grant<'_>, ops: &[MapOp<'_>]) -> Result<(), MapFailure> {
        let failure = |index, error| MapFailure { index, error };
        let mut refused = None;
        let entered = self.with_member(grant, |member| {
            for (index, op) in ops.iter().enumerate() {
                let range = op.range;
                let entered = if grant.range().contains(range) {
                    self.enter(member, (range, op.oa, op.prot), false)
                } else {
                    Err(VirtioError::Misplaced { range }.into())
                };
                if let Err(error) = entered {
                    refused = Some(failure(index, error));
                    break;
                }
            }
            Ok(member.is_live())
        });
        let is_live = entered.map_err(|error| failure(0, error))?;
        let ops = &ops[..refused.as_ref().map_or(ops.len(), |failure| failure.index)];
        let whole = ops.iter().fold(None, |all, op| Some(hull(all, op.range)));
        if let Some(whole) = whole.filter(|_| is_live)
            && let Some((failed, error)) = self.take(whole)
        {
            let index = ops.iter().position(|op| op.range.overlaps(failed));
            let index = index.unwrap_or(0);
            self.take_back(ops[index..].iter().map(|op| op.range));
            return Err(failure(index, error.into()));
        }
        refused.map_or(Ok(()), Err)
    }

    /// Sends an `UNMAP` for the whole range, of which the device is not told before the sync. Mappings that reach out
    /// of the range stay, all of them.
    fn unmap(
        &self,
        grant: &mut Grant<'_>,
        flush: &mut Flush,
        _dirty: Option<&mut dyn FnMut(IovaRange)>,
    ) -> Result<u64, DomainError> {
        let range = grant.range();
        let divided = self.with_member(grant, |member| Ok(member.mappings.divided_by(range)))?;
        if let Some(mapping) = divided {
            return Err(VirtioError::Divides { mapping }.into());
        }
        let domain = self.number();
        let has_maps = |work| {
            let is_map = matches!(work, Work::Map { .. });
            is_map && work.is_in(domain, |of, _| of.overlaps(range))
        };
        let mut ticket = 0;
        let mut ended = None;
        let mut end = |state: &mut State<T>, must_end: bool| {
            // A first endpoint may be getting everything at this moment (V1).
            if must_end || !state.requests.has(has_maps) {
                ticket = state.new_ticket();
                let member = state.member(domain);
                let mark = |ticket| flush.mark(ticket);
                ended = member.map(|member| member.mappings.end(range, ticket, mark));
                return true;
            }
            false
        };
        let is_ended = end(&mut self.device().lock(), false);
        if !is_ended && self.device().wait_until(|state| end(state, false)).is_err() {
            // The sync looks what came of the maps.
            end(&mut self.device().lock(), true);
        }
        let Ended { bytes, hull } = ended.unwrap_or_default();
        if let Some(hull) = hull
            && self.device().clear(domain, hull, Some(ticket)).is_err()
        {
            // The sync tries again.
            self.with_mappings(|member| member.mappings.has_stuck = true);
        }
        Ok(bytes)
    }

    fn sync(&self, mut flush: Flush) -> Result<(), NotFlushed> {
        flush.sort_tickets();
        if flush.tickets().is_empty() {
            return Ok(());
        }
        let finished = self.finish(flush.tickets());
        finished.map_err(|error| NotFlushed { flush, error })
    }

    /// Needs a [fault window](VirtioDomain::with_fault_window) while endpoints are attached.
    fn protect(
        &self,
        grant: &mut Grant<'_>,
        prot: Prot,
        _flush: &mut Flush,
        _lost: &mut dyn FnMut(IovaRange),
    ) -> Result<(), DomainError> {
        let range = grant.range();
        let access = self.access(prot)?;
        let mut old: Vec<Access> = Vec::new();
        let set = |member: &mut Member, access: &mut dyn FnMut() -> Option<Access>| {
            member.mappings.change(range, |_, mapping| {
                mapping.access = access().unwrap_or(mapping.access);
                true
            });
        };
        let is_live = self.with_member(grant, |member| {
            let mut next = Some(range.start());
            for (part, mapping) in member.mappings.in_range(range) {
                if mapping.ticket.is_some() || next != Some(part.start()) {
                    return Err(VirtioError::Hole.into());
                }
                next = part
                    .last()
                    .checked_add(1)
                    .filter(|&next| next <= range.last());
                old.try_reserve(1).map_err(|_| DomainError::OutOfMemory)?;
                old.push(mapping.access);
            }
            if next.is_some() || old.is_empty() || member.mappings.divided_by(range).is_some() {
                return Err(VirtioError::Hole.into());
            }
            let is_live = member.is_live();
            if !is_live {
                set(member, &mut || Some(access));
            }
            Ok(is_live)
        })?;
        if !is_live || old.iter().all(|&old| old == access) {
            return Ok(());
        }
        if self.fault_window == FaultWindow::Refuse {
            return Err(REPLACING);
        }
        let mut old = old.into_iter();
        self.replace(
            range,
            |member| {
                set(member, &mut || Some(access));
                Ok(())
            },
            |member| set(member, &mut || old.next()),
        )
    }

    /// Divides mappings at the multiples of `size` in and behind `range`. Needs a
    /// [fault window](VirtioDomain::with_fault_window) where one is divided while endpoints are attached.
    fn cut(
        &self,
        grant: &mut Grant<'_>,
        range: IovaRange,
        size: PageSize,
    ) -> Result<(), DomainError> {
        let size = size.max(self.granule());
        loop {
            let found = self.with_member(grant, |member| {
                let is_live = member.is_live();
                let mut whole = member.mappings.in_range(range);
                let whole = whole.find(|&(whole, mapping)| {
                    mapping.ticket.is_none() && borders(whole, range, size).next().is_some()
                });
                Ok(whole.map(|(whole, mapping)| (whole, mapping.oa, is_live)))
            })?;
            let Some((whole, oa, is_live)) = found else {
                return Ok(());
            };
            let divide = |member: &mut Member| {
                let divided = member.mappings.divide(whole, borders(whole, range, size));
                divided.ok_or(DomainError::OutOfMemory)
            };
            if !is_live {
                self.with_member(grant, divide)?;
            } else if self.fault_window == FaultWindow::Refuse {
                return Err(REPLACING);
            } else {
                self.replace(whole, divide, |member| member.mappings.join(whole, oa))?;
            }
        }
    }
}

/// Returns the multiples of `size` at which a mapping is divided for `range`, in rising order.
fn borders(whole: IovaRange, range: IovaRange, size: PageSize) -> impl Iterator<Item = u64> {
    let first = range.start().max(whole.start()).get();
    let first = first.checked_next_multiple_of(size.bytes());
    let first = match first {
        Some(first) if first == whole.start().get() => first.checked_add(size.bytes()),
        first => first,
    };
    let last = range.last().get().saturating_add(1).min(whole.last().get());
    let all = core::iter::successors(first, move |border| border.checked_add(size.bytes()));
    all.take_while(move |&border| border <= last)
}
