//! A device behind one or several instances of one architecture.

use alloc::boxed::Box;
use alloc::sync::{Arc, Weak};
use alloc::vec::Vec;
use core::any::Any;
use core::fmt;
use core::mem;

use iopt_formats::command::Pasid;
use smallvec::SmallVec;

use crate::device::context::process::ProcessPart;
use crate::device::context::slots::{Lead, Slot, Slots, State};
use crate::device::context::{
    Architecture, Attached, Attachment, HardwareDomain, JoinDomainError, Outcome, Tags, Target,
};
use crate::device::fault::{Counted, DeviceFaults};
use crate::device::{
    AttachFailure, Condition, DeviceAddress, DeviceControl, Endpoint, Hwpt, Prepared,
};
use crate::invalidation::{SetError, SyncError};
use crate::sync::{ENDPOINT, Mutex};

/// What hardware that did not answer stands in the way of.
const UNCONFIRMED: AttachFailure = AttachFailure::Unsupported {
    what: "a domain while hardware does not confirm that it left another one",
};

/// A device that a [`HardwareDriver`](crate::device::context::HardwareDriver) took in.
pub struct HardwareEndpoint<A: Architecture> {
    address: DeviceAddress,
    units: Vec<Arc<A::Unit>>,
    control: Arc<dyn DeviceControl>,
    /// Whether the device and all its instances can.
    can_ats: bool,
    /// Whether it must not be translated without.
    needs_ats: bool,
    pasid_bits: u8,
    /// What the device asks for, if it can.
    faults: Option<Faults>,
    /// Dangles if nobody shares it.
    me: Weak<Self>,
    state: Mutex<State<A>>,
}

/// How a device asks for pages.
#[derive(Debug)]
pub(in crate::device) struct Faults {
    pub(in crate::device) requests: Arc<DeviceFaults>,
    /// It asks, and waits for nothing meanwhile.
    pub(in crate::device) can_ask: bool,
    /// It waits where it is, and need not have ATS.
    pub(in crate::device) can_stall: bool,
}

impl<A: Architecture> HardwareEndpoint<A> {
    /// Takes in a device whose contexts are linked and block.
    pub(in crate::device) fn new(
        address: DeviceAddress,
        at: Vec<(Arc<A::Unit>, A::Port)>,
        control: Arc<dyn DeviceControl>,
        (can_ats, pasid_bits): (bool, u8),
    ) -> Self {
        let (units, ports) = at.into_iter().unzip();
        let state = State {
            ports,
            slots: Slots {
                default: None,
                pasids: Vec::new(),
            },
            stuck: Vec::new(),
            gone: Vec::new(),
            is_cut_off: false,
            has_ats: false,
            is_released: false,
            pending: Vec::new(),
        };
        Self {
            address,
            units,
            control,
            can_ats,
            needs_ats: false,
            pasid_bits,
            faults: None,
            me: Weak::new(),
            state: Mutex::new(&ENDPOINT, state),
        }
    }

    /// Lets fault-capable domains be attached.
    #[must_use]
    pub(in crate::device) fn with_faults(mut self, faults: Option<Faults>) -> Self {
        self.faults = faults;
        self
    }

    /// Refuses domains that translate without ATS.
    #[must_use]
    pub(in crate::device) const fn with_needs_ats(mut self, needs_ats: bool) -> Self {
        self.needs_ats = needs_ats;
        self
    }

    /// Shares it, so that domains of processes can be attached.
    pub(in crate::device) fn into_shared(mut self) -> Arc<Self> {
        Arc::new_cyclic(|me| {
            self.me = Weak::clone(me);
            self
        })
    }

    /// Returns what the device asks for, if it can: for who takes records from hardware, and lets time pass.
    pub fn faults(&self) -> Option<&Arc<DeviceFaults>> {
        self.faults.as_ref().map(|faults| &faults.requests)
    }

    /// Returns whether ATS is enabled at the device.
    pub fn has_ats(&self) -> bool {
        self.state.lock().has_ats
    }

    /// Returns whether hardware did not confirm that it left a domain that was attached: to the device, or to another
    /// one that has an ID with it in common.
    pub fn is_quarantined(&self) -> bool {
        self.state.lock().condition() == Condition::Quarantined
    }

    /// Returns whether requests of the device may be blocked that should be led somewhere, or led elsewhere, because
    /// hardware failed when it was told: of the device, or of another one that has an ID with it in common.
    /// [`retry`](Self::retry) asks again, as does each preparation.
    pub fn is_cut_off(&self) -> bool {
        let state = self.state.lock();
        state.is_cut_off || state.sharing().standing != Outcome::Known
    }

    /// Asks hardware again about what it did not confirm. Returns whether all that is attached is what hardware uses,
    /// and nothing else.
    pub fn retry(&self) -> bool {
        self.look_after(true) == Condition::Sound
    }

    /// Returns the instances that see its requests.
    pub fn units(&self) -> &[Arc<A::Unit>] {
        &self.units
    }

    /// Looks at what it has at one of its instances.
    pub(in crate::device) fn with_port<R>(
        &self,
        index: usize,
        look: impl FnOnce(&A::Port) -> R,
    ) -> Option<R> {
        self.state.lock().ports.get(index).map(look)
    }

    /// Makes hardware use what is attached at a place.
    fn write(&self, state: &mut State<A>, place: Option<Pasid>, has_ats: bool) -> Outcome {
        let State { ports, slots, .. } = state;
        let mut outcome = Outcome::Known;
        for (index, (unit, port)) in self.units.iter().zip(ports).enumerate() {
            let attached = Attached {
                slots,
                port: index,
                has_ats,
                can_stall: self.faults.as_ref().is_some_and(|it| it.can_stall),
            };
            outcome = outcome.and(A::write(unit, port, place, &attached));
        }
        outcome
    }

    /// Puts `new`, or nothing, in a place; C3.
    fn change(&self, state: &mut State<A>, place: Option<Pasid>, mut new: Option<Slot<A>>) {
        if let Some(slot) = &mut new {
            slot.attachments.iter_mut().for_each(Attachment::set_live);
        }
        let counted = new.as_mut().and_then(|slot| slot.counted.take());
        if let Some(faults) = self.faults() {
            faults.begin_change(place, counted.is_some());
        }
        let had_ats = state.has_ats;
        let old = state.slots.replace(place, new);
        // Of a device that goes ATS ends first of all: it may not be there any more, and need not answer then.
        let has_ats = state.slots.have_ats() && !state.is_released;
        if had_ats && !has_ats {
            self.control.set_ats(self.address, false);
        }
        let mut outcome = self.write(state, place, has_ats);
        if has_ats && !had_ats {
            self.control.set_ats(self.address, true);
        }
        if has_ats && had_ats && self.forget_device_tlb(state, place).is_err() {
            outcome = Outcome::Unknown;
        }
        state.is_cut_off |= outcome != Outcome::Known;
        if let Some(faults) = self.faults() {
            if let Some(old) = &old {
                let process = old.lead.domain.process();
                let kept = process.map(ProcessPart::kept_pasid);
                faults.leave(place, state.slots.get(place).is_some(), kept.as_ref());
            }
            faults.change(place, counted);
        }
        if let Some(mut old) = old
            && (outcome == Outcome::Unknown || old.leave().is_err())
        {
            state.keep(old);
        }
        state.has_ats = has_ats;
    }

    /// Makes the device forget what it caches for a place.
    fn forget_device_tlb(&self, state: &State<A>, place: Option<Pasid>) -> Result<(), SyncError> {
        let mut forgotten = Ok(());
        for (unit, port) in self.units.iter().zip(&state.ports) {
            let mut tags = A::device_tags(port, place);
            loop {
                // In pieces that need no memory.
                let some: Tags<A::Planner> = tags.by_ref().take(4).collect();
                if some.is_empty() {
                    break;
                }
                forgotten = forgotten.and(A::instance(unit).forget(&some));
            }
        }
        forgotten
    }

    /// Asks hardware again about what it did not confirm, and leaves what it no longer uses.
    fn recover(&self, state: &mut State<A>) -> Result<(), AttachFailure> {
        let is_known = state.sharing().standing == Outcome::Known;
        if state.stuck.is_empty() && !state.is_cut_off && is_known {
            return Ok(());
        }
        let stuck_count = state.stuck.len();
        state
            .gone
            .try_reserve(stuck_count)
            .map_err(|_| AttachFailure::Exhausted)?;
        let has_ats = state.has_ats;
        let mut outcome = Outcome::Known;
        let (mut place, mut number) = (None, 0);
        loop {
            outcome = outcome.and(self.write(state, place, has_ats));
            let is_known = outcome != Outcome::Unknown
                && (!has_ats || self.forget_device_tlb(state, place).is_ok());
            if !is_known {
                return Err(UNCONFIRMED);
            }
            let Some(next) = state.lead(number) else {
                break;
            };
            (place, number) = (next.place, number + 1);
        }
        state.is_cut_off = outcome != Outcome::Known;
        let State { stuck, gone, .. } = state;
        let mut at = 0;
        while let Some(slot) = stuck.get_mut(at) {
            if slot.leave().is_err() {
                at += 1;
                continue;
            }
            if let Some(process) = slot.lead.domain.process() {
                process.note_left();
            }
            // There is room.
            gone.push(stuck.swap_remove(at));
        }
        if state.stuck.is_empty() {
            Ok(())
        } else {
            Err(UNCONFIRMED)
        }
    }

    /// Returns what keeps `target` from that place.
    fn refusal(
        &self,
        state: &State<A>,
        place: Option<Pasid>,
        target: Target<&A::Stage>,
    ) -> Option<&'static str> {
        let last = self.max_pasids().saturating_sub(1);
        if place.is_some_and(|pasid| !(1..=last).contains(&pasid.get())) {
            return Some("this PASID");
        }
        self.units.iter().find_map(|unit| {
            let beside = |other: &Lead<A>| {
                let other = (other.place, other.domain.target());
                A::conflict(unit, (place, target), other)
            };
            A::refusal(unit, place, target).or_else(|| state.others(place).find_map(beside))
        })
    }

    /// Stops walks of a process's tables, if it is attached. Returns whether hardware said that none goes on.
    pub(super) fn end_process(&self, domain: &Arc<HardwareDomain<A>>) -> bool {
        let mut state = self.state.lock();
        let place = domain.process().map(ProcessPart::pasid);
        let has_ats = state.has_ats;
        // What hardware did not confirm to have left, it may walk.
        let is_it = |slot: &Slot<A>| Arc::ptr_eq(&slot.lead.domain, domain);
        let is_stuck = state.stuck.iter().any(is_it) && self.recover(&mut state).is_err();
        let is_attached = state.slots.get(place).is_some_and(is_it);
        let outcome = if is_attached {
            self.write(&mut state, place, has_ats)
        } else {
            Outcome::Known
        };
        state.is_cut_off |= outcome != Outcome::Known;
        let gone = mem::take(&mut state.gone);
        drop(state);
        drop(gone);
        outcome != Outcome::Unknown && !is_stuck
    }

    /// Blocks all places, and lets go of the device. Done once.
    fn let_go(&self) {
        let mut state = self.state.lock();
        if mem::replace(&mut state.is_released, true) {
            return;
        }
        if let Some(faults) = self.faults() {
            faults.forbid();
        }
        while let Some(pasid) = state.slots.first_pasid() {
            self.change(&mut state, Some(pasid), None);
        }
        self.change(&mut state, None, None);
        // What it did not confirm before. If it does not now, nobody asks again.
        let _ = self.recover(&mut state);
        if let Some(faults) = self.faults() {
            let listeners = self.units.iter().filter_map(|unit| A::listeners(unit));
            listeners.for_each(|listeners| listeners.strike_out(faults));
        }
        if self.pasid_bits > 0 {
            self.control.set_pasids(self.address, false);
        }
        let gone = mem::take(&mut state.gone);
        drop(state);
        drop(gone);
    }

    /// Checks what more a domain wants than tables.
    fn count(
        &self,
        place: Option<Pasid>,
        domain: &HardwareDomain<A>,
        has_ats: bool,
    ) -> Result<Option<Counted>, AttachFailure> {
        if let Some(process) = domain.process() {
            if place != Some(process.pasid()) {
                return Err(AttachFailure::Unsupported {
                    what: "a process's domain at another place than its PASID",
                });
            }
            process.enter(&self.me)?;
        }
        let Some(handler) = domain.fault_handler() else {
            return Ok(None);
        };
        if domain.stage().is_some_and(A::has_guest_pasids) {
            return Err(AttachFailure::Unsupported {
                what: "page requests with PASIDs of a guest",
            });
        }
        let faults = self.faults.as_ref().filter(|it| has_ats || it.can_stall);
        let faults = faults.ok_or(AttachFailure::Unsupported {
            what: "page requests",
        })?;
        let counted = faults.requests.prepare(handler);
        counted.map(Some).map_err(|_| AttachFailure::Exhausted)
    }

    /// Joins the set of the domain at all ports.
    fn join(
        &self,
        state: &State<A>,
        lead: Lead<A>,
        counted: Option<Counted>,
    ) -> Result<Slot<A>, AttachFailure> {
        let mut attachments = SmallVec::new();
        let reserved = attachments.try_reserve(self.units.len());
        reserved.map_err(|_| AttachFailure::Exhausted)?;
        if let Some(translation) = lead.domain.translation() {
            let stage = &translation.stage;
            for (unit, port) in self.units.iter().zip(&state.ports) {
                let tags = |id| A::tags(port, lead.place, stage, id, lead.has_ats);
                let ids = A::ids(unit, stage);
                let joined = translation.users.join(A::instance(unit), ids, tags);
                attachments.push(joined.map_err(exhausted)?);
            }
        }
        Ok(Slot {
            lead,
            attachments,
            counted,
        })
    }
}

fn exhausted(error: JoinDomainError) -> AttachFailure {
    match error {
        JoinDomainError::Set(SetError::Instances) => AttachFailure::Other(Box::new(error)),
        _ => AttachFailure::Exhausted,
    }
}

impl<A: Architecture> Endpoint for HardwareEndpoint<A> {
    fn max_pasids(&self) -> u32 {
        if self.pasid_bits == 0 {
            0
        } else {
            1 << self.pasid_bits
        }
    }

    fn prepare(
        &self,
        place: Option<Pasid>,
        domain: &Arc<dyn Hwpt>,
    ) -> Result<Box<dyn Prepared + '_>, AttachFailure> {
        let any: Arc<dyn Any + Send + Sync> = Arc::<dyn Hwpt>::clone(domain);
        let domain: Arc<HardwareDomain<A>> = any.downcast().map_err(|_| AttachFailure::Foreign)?;
        let translation = domain.translation();
        let fits = |unit: &Arc<A::Unit>| translation.is_none_or(|it| it.fits(unit));
        if !self.units.iter().all(fits) {
            return Err(AttachFailure::Foreign);
        }
        let mut state = self.state.lock();
        if state.is_released {
            return Err(AttachFailure::Unsupported {
                what: "a device that was let go",
            });
        }
        let target = domain.target();
        if let Some(what) = self.refusal(&state, place, target) {
            return Err(AttachFailure::Unsupported { what });
        }
        self.recover(&mut state)?;
        let sharing = state.sharing();
        if place.is_some() && sharing.lacks_pasids {
            return Err(AttachFailure::Unsupported {
                what: "a PASID under an ID that a device without PASIDs has, too",
            });
        }
        // C2.
        let has_ats = self.can_ats
            && translation.is_some_and(|it| it.allows_ats)
            // Whoever else has the ID could send translated requests, too. What has ATS keeps it.
            && (state.has_ats || !sharing.has_others);
        if translation.is_some() && self.needs_ats && !has_ats {
            return Err(AttachFailure::Unsupported {
                what: "a domain without ATS for a device that needs it",
            });
        }
        let differs =
            |other: &Lead<A>| other.domain.translation().is_some() && other.has_ats != has_ats;
        if translation.is_some() && state.others(place).any(differs) {
            return Err(AttachFailure::Unsupported {
                what: "ATS for some of a device's domains",
            });
        }
        let counted = self.count(place, &domain, has_ats)?;
        state.reserve().map_err(|_| AttachFailure::Exhausted)?;
        if let Some(faults) = self.faults() {
            let place_count = state.place_count();
            let reserved = faults.reserve(place_count);
            reserved.map_err(|_| AttachFailure::Exhausted)?;
        }
        for (unit, port) in self.units.iter().zip(&mut state.ports) {
            A::make(unit, port, place, target)?;
        }
        let lead = Lead {
            place,
            domain: Arc::clone(&domain),
            has_ats,
        };
        let slot = self.join(&state, lead.clone(), counted)?;
        state.pending.push(lead.clone());
        Ok(Box::new(Preparation {
            endpoint: self,
            lead,
            slot: Some(slot),
        }))
    }

    fn block(&self, pasid: Option<Pasid>) {
        self.change(&mut self.state.lock(), pasid, None);
    }

    fn release(&self) {
        self.let_go();
    }

    fn look_after(&self, asks_again: bool) -> Condition {
        let mut state = self.state.lock();
        if asks_again {
            // What comes of it stands below.
            let _ = self.recover(&mut state);
        }
        let condition = state.condition();
        let gone = mem::take(&mut state.gone);
        drop(state);
        drop(gone);
        condition
    }
}

impl<A: Architecture> Drop for HardwareEndpoint<A> {
    /// The entries belong to the instance, which lives on: nothing is freed to which they lead.
    fn drop(&mut self) {
        self.let_go();
    }
}

/// A domain that is ready to be attached. Dropped, it leaves the set again.
struct Preparation<'e, A: Architecture> {
    endpoint: &'e HardwareEndpoint<A>,
    lead: Lead<A>,
    slot: Option<Slot<A>>,
}

impl<A: Architecture> Prepared for Preparation<'_, A> {
    fn commit(mut self: Box<Self>) {
        let Some(slot) = self.slot.take() else {
            return;
        };
        let mut state = self.endpoint.state.lock();
        if state.is_released {
            // What was attached since would stay for ever. Left outside the lock.
            drop(state);
            drop(slot);
        } else {
            self.endpoint
                .change(&mut state, self.lead.place, Some(slot));
        }
    }
}

impl<A: Architecture> Drop for Preparation<'_, A> {
    fn drop(&mut self) {
        let mut state = self.endpoint.state.lock();
        let own = state.pending.iter().position(|lead| *lead == self.lead);
        if let Some(own) = own {
            state.pending.swap_remove(own);
        }
    }
}

impl<A: Architecture> fmt::Debug for HardwareEndpoint<A> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("HardwareEndpoint")
            .field("address", &self.address)
            .field("can_ats", &self.can_ats)
            .field("pasid_bits", &self.pasid_bits)
            .finish_non_exhaustive()
    }
}
