//! What is attached to a device, what is about to be, and what hardware did not confirm to have left.

use alloc::collections::TryReserveError;
use alloc::sync::Arc;
use alloc::vec::Vec;
use core::fmt;
use core::mem;

use iopt_formats::command::Pasid;
use smallvec::SmallVec;

use crate::device::Condition;
use crate::device::context::{Architecture, Attachment, HardwareDomain, Outcome, Sharing, Target};
use crate::device::fault::Counted;
use crate::invalidation::SyncError;

/// What changes in the life of an endpoint.
pub(super) struct State<A: Architecture> {
    /// One for each instance, in their order.
    pub(super) ports: Vec<A::Port>,
    pub(super) slots: Slots<A>,
    /// What hardware may still use. Has room for all that is attached or prepared.
    pub(super) stuck: Vec<Slot<A>>,
    /// What hardware has left. Domains may end with these, so they go without a lock.
    pub(super) gone: Vec<Slot<A>>,
    /// Whether entries may block that should lead somewhere, or hardware may not know what they say.
    pub(super) is_cut_off: bool,
    /// Whether ATS is enabled at the device.
    pub(super) has_ats: bool,
    /// Whether the device was let go: everything is blocked for good.
    pub(super) is_released: bool,
    /// What is prepared to be attached.
    pub(super) pending: Vec<Lead<A>>,
}

/// What is attached, by place.
pub(super) struct Slots<A: Architecture> {
    pub(super) default: Option<Slot<A>>,
    /// In rising order. Has room for all that is prepared.
    pub(super) pasids: Vec<Slot<A>>,
}

/// One domain as it is attached.
pub(super) struct Slot<A: Architecture> {
    pub(super) lead: Lead<A>,
    /// One for each port, in their order; none if nothing is translated.
    pub(super) attachments: SmallVec<[Attachment<A::Planner, A::Queue>; 1]>,
    /// Until it is attached, that it will be fault-capable.
    pub(super) counted: Option<Counted>,
}

/// Where the requests of a place are led, or are to be.
pub(super) struct Lead<A: Architecture> {
    pub(super) place: Option<Pasid>,
    pub(super) domain: Arc<HardwareDomain<A>>,
    pub(super) has_ats: bool,
}

impl<A: Architecture> Clone for Lead<A> {
    fn clone(&self) -> Self {
        Self {
            domain: Arc::clone(&self.domain),
            ..*self
        }
    }
}

impl<A: Architecture> PartialEq for Lead<A> {
    fn eq(&self, other: &Self) -> bool {
        (self.place, self.has_ats) == (other.place, other.has_ats)
            && Arc::ptr_eq(&self.domain, &other.domain)
    }
}

impl<A: Architecture> Slot<A> {
    /// Leaves all places.
    ///
    /// # Errors
    ///
    /// [`SyncError`] if hardware does not confirm it for one: to be kept, and left later.
    pub(super) fn leave(&mut self) -> Result<(), SyncError> {
        self.attachments.iter_mut().try_for_each(Attachment::leave)
    }

    /// Keeps everything that hardware may still use, for ever.
    pub(super) fn abandon(self) {
        for attachment in self.attachments {
            attachment.abandon();
        }
        mem::forget(self.lead);
    }
}

impl<A: Architecture> Slots<A> {
    pub(super) fn get(&self, place: Option<Pasid>) -> Option<&Slot<A>> {
        match place {
            None => self.default.as_ref(),
            Some(_) => self.pasids.get(self.find(place).ok()?),
        }
    }

    /// Returns where the slot of a PASID is, or where it would be.
    fn find(&self, place: Option<Pasid>) -> Result<usize, usize> {
        self.pasids
            .binary_search_by_key(&place, |slot| slot.lead.place)
    }

    /// Returns the smallest PASID with which something is attached.
    pub(super) fn first_pasid(&self) -> Option<Pasid> {
        self.pasids.first()?.lead.place
    }

    /// Puts `new`, or nothing, in a place, and returns what was there. What comes for a PASID was
    /// [prepared](State::reserve).
    pub(super) fn replace(
        &mut self,
        place: Option<Pasid>,
        new: Option<Slot<A>>,
    ) -> Option<Slot<A>> {
        if place.is_none() {
            return mem::replace(&mut self.default, new);
        }
        match (self.find(place), new) {
            (Ok(at), Some(slot)) => Some(mem::replace(&mut self.pasids[at], slot)),
            (Ok(at), None) => Some(self.pasids.remove(at)),
            (Err(at), Some(slot)) => {
                self.pasids.insert(at, slot);
                None
            }
            (Err(_), None) => None,
        }
    }

    fn iter(&self) -> impl Iterator<Item = &Slot<A>> {
        self.default.iter().chain(&self.pasids)
    }

    /// Returns whether something that is attached has ATS.
    pub(super) fn have_ats(&self) -> bool {
        self.iter().any(|slot| slot.lead.has_ats)
    }
}

impl<A: Architecture> State<A> {
    /// Returns where other places than `place` are led, or are to be.
    pub(super) fn others(&self, place: Option<Pasid>) -> impl Iterator<Item = &Lead<A>> {
        let leads = self.slots.iter().map(|slot| &slot.lead);
        let leads = leads.chain(&self.pending);
        leads.filter(move |lead| lead.place != place)
    }

    /// Returns how the device's IDs stand at all instances, and who else has them.
    pub(super) fn sharing(&self) -> Sharing {
        let ports = self.ports.iter().map(A::sharing);
        ports.fold(Sharing::ALONE, Sharing::and)
    }

    /// Returns whether hardware does what it was told to.
    pub(super) fn condition(&self) -> Condition {
        let standing = self.sharing().standing;
        if !self.stuck.is_empty() || standing == Outcome::Unknown {
            Condition::Quarantined
        } else if self.is_cut_off || standing != Outcome::Known {
            Condition::CutOff
        } else {
            Condition::Sound
        }
    }

    /// Returns one after the other of what is attached with PASIDs, and of what became stuck.
    pub(super) fn lead(&self, number: usize) -> Option<&Lead<A>> {
        let (pasids, stuck) = (&self.slots.pasids, &self.stuck);
        let slot = match number.checked_sub(pasids.len()) {
            None => pasids.get(number),
            Some(number) => stuck.get(number),
        };
        slot.map(|slot| &slot.lead)
    }

    /// Gets room for one more preparation, so that commits need none, and all that is attached by then can become
    /// stuck.
    pub(super) fn reserve(&mut self) -> Result<(), TryReserveError> {
        let prepared_count = self.pending.len() + 1;
        self.pending.try_reserve(1)?;
        self.slots.pasids.try_reserve(prepared_count)?;
        let attached_count = self.slots.iter().count();
        self.stuck.try_reserve(attached_count + prepared_count)
    }

    /// Returns how many places there are with something attached, once what is prepared is, and one more.
    pub(super) fn place_count(&self) -> usize {
        self.slots.iter().count() + self.pending.len() + 1
    }

    /// Keeps what hardware may still use.
    pub(super) fn keep(&mut self, slot: Slot<A>) {
        if let Some(process) = slot.lead.domain.process() {
            process.note_stuck();
        }
        if self.stuck.len() < self.stuck.capacity() {
            self.stuck.push(slot);
        } else {
            // Never without room, and safe all the same.
            slot.abandon();
        }
    }
}

impl<A: Architecture> Drop for State<A> {
    fn drop(&mut self) {
        if self.stuck.is_empty() {
            return;
        }
        for slot in self.stuck.drain(..) {
            slot.abandon();
        }
        // Hardware may read these, too.
        mem::forget(mem::take(&mut self.ports));
    }
}

/// What is attached to a device, as one of its instances has to know it.
pub struct Attached<'a, A: Architecture> {
    pub(super) slots: &'a Slots<A>,
    pub(super) port: usize,
    pub(super) has_ats: bool,
    pub(super) can_stall: bool,
}

impl<'a, A: Architecture> Attached<'a, A> {
    /// Returns where requests of a place are led: to which tables, and under which ID of the domain. The tables of
    /// a process that has ended are none.
    pub fn at(&self, place: Option<Pasid>) -> Target<(&'a A::Stage, u32)> {
        let Some(slot) = self.slots.get(place) else {
            return Target::Blocked;
        };
        match (slot.lead.domain.target(), self.stage(slot)) {
            (Target::Stage(_), Some(stage)) if !slot.lead.domain.has_exited() => {
                Target::Stage(stage)
            }
            (Target::Identity, _) => Target::Identity,
            _ => Target::Blocked,
        }
    }

    /// Returns what led requests of a place to tables of a process that has ended: they must not be walked any
    /// more, and the place is kept.
    pub fn ended_at(&self, place: Option<Pasid>) -> Option<(&'a A::Stage, u32)> {
        let slot = self.slots.get(place)?;
        self.stage(slot).filter(|_| slot.lead.domain.has_exited())
    }

    fn stage(&self, slot: &'a Slot<A>) -> Option<(&'a A::Stage, u32)> {
        let translation = slot.lead.domain.translation()?;
        let attachment = slot.attachments.get(self.port)?;
        Some((&translation.stage, attachment.id()))
    }

    /// Returns whether the device's transactions can wait while a fault is resolved.
    pub const fn can_stall(&self) -> bool {
        self.can_stall
    }

    /// Returns whether somebody resolves faults of requests of a place, and they should wait.
    pub fn stalls(&self, place: Option<Pasid>) -> bool {
        let slot = self.slots.get(place).filter(|_| self.can_stall);
        slot.is_some_and(|slot| slot.lead.domain.is_fault_capable())
    }

    /// Returns whether somebody answers for pages of any place, so that the device may ask for them by PRI.
    pub fn asks_for_pages(&self) -> bool {
        let are_capable = |slot: &Slot<A>| slot.lead.domain.is_fault_capable();
        self.has_ats && self.slots.iter().any(are_capable)
    }

    /// Returns whether anything is attached for requests with a PASID.
    pub fn has_pasids(&self) -> bool {
        !self.slots.pasids.is_empty()
    }

    /// Returns whether the device may ask for translations.
    pub const fn has_ats(&self) -> bool {
        self.has_ats
    }
}

impl<A: Architecture> fmt::Debug for Attached<'_, A> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Attached")
            .field("default", &self.at(None))
            .field("has_pasids", &self.has_pasids())
            .field("has_ats", &self.has_ats)
            .finish_non_exhaustive()
    }
}
