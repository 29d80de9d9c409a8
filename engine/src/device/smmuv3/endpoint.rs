//! A device behind one or several SMMUs.

use alloc::boxed::Box;
use alloc::collections::BTreeMap;
use alloc::sync::Arc;
use alloc::vec::Vec;
use core::fmt;
use core::mem;

use iopt_formats::command::Pasid;
use iopt_formats::context::smmuv3::{Ats, Cd, DefaultSubstream, Stream};
use smallvec::SmallVec;

use crate::device::context::{Attachment, JoinDomainError};
use crate::device::smmuv3::domain::{Paging, Smmuv3Domain};
use crate::device::smmuv3::slots::{Outcome, Pending, Slot, State, downcast};
use crate::device::smmuv3::tables::CdTables;
use crate::device::smmuv3::{CommandDevice, Smmu};
use crate::device::{
    AttachFailure, DeviceAddress, DeviceControl, DomainKind, Endpoint, Hwpt, Prepared,
};
use crate::invalidation::plan::smmuv3::Tag;
use crate::invalidation::{SetError, SyncError};
use crate::mem::TableMemory;
use crate::sync::{ENDPOINT, Mutex};

/// The substream of requests without one, where `S1DSS` says so.
const NO_PASID: Pasid = Pasid::new(0).expect("0 has few bits");

/// The streams of a device at one SMMU.
pub(super) struct Port<M: TableMemory, D: CommandDevice> {
    pub(super) smmu: Arc<Smmu<M, D>>,
    pub(super) streams: Vec<u32>,
}

/// A device that a [`Smmuv3Driver`](crate::device::smmuv3::Smmuv3Driver) took in.
pub struct Smmuv3Endpoint<M: TableMemory, D: CommandDevice> {
    address: DeviceAddress,
    ports: Vec<Port<M, D>>,
    control: Arc<dyn DeviceControl>,
    /// Whether the device and all its SMMUs can.
    can_ats: bool,
    pasid_bits: u8,
    state: Mutex<State<M, D>>,
}

impl<M: TableMemory + 'static, D: CommandDevice> Smmuv3Endpoint<M, D> {
    /// Takes in a device whose streams are linked and blocked.
    pub(super) fn new(
        address: DeviceAddress,
        ports: Vec<Port<M, D>>,
        control: Arc<dyn DeviceControl>,
        (can_ats, pasid_bits): (bool, u8),
    ) -> Self {
        let state = State {
            cds: ports.iter().map(|_| None).collect(),
            current: None,
            pasids: BTreeMap::new(),
            stuck: Vec::new(),
            has_ats: false,
            pending: Pending::default(),
        };
        Self {
            address,
            ports,
            control,
            can_ats,
            pasid_bits,
            state: Mutex::new(&ENDPOINT, state),
        }
    }

    /// Returns whether ATS is enabled at the device.
    pub fn has_ats(&self) -> bool {
        self.state.lock().has_ats
    }

    /// Returns whether hardware did not confirm that it left a domain that was attached.
    pub fn is_quarantined(&self) -> bool {
        !self.state.lock().stuck.is_empty()
    }

    /// Returns the CD of a PASID at an SMMU of the device, of 0 for requests without one, as it was written
    /// last.
    pub fn cd(&self, port: usize, pasid: Pasid) -> Option<Cd> {
        let state = self.state.lock();
        state.cds.get(port)?.as_ref()?.get(pasid)
    }

    pub(super) fn smmus(&self) -> impl Iterator<Item = &Arc<Smmu<M, D>>> {
        self.ports.iter().map(|port| &port.smmu)
    }

    /// Returns the places where translations for `pasid` are cached under `id`.
    fn tags(
        port: &Port<M, D>,
        paging: &Paging<D>,
        pasid: Option<Pasid>,
        has_ats: bool,
        id: u32,
    ) -> SmallVec<[Tag; 4]> {
        // IDs have at most 16 bits.
        let tlb = paging.stage.tag(id as u16);
        let streams = port.streams.iter().filter(|_| has_ats);
        let ats = streams.map(|&stream| Tag::Ats {
            stream,
            substream: pasid,
        });
        core::iter::once(tlb).chain(ats).collect()
    }

    /// Returns what the STEs at a port have to say.
    fn stream(&self, index: usize, state: &State<M, D>, has_ats: bool) -> Stream {
        let smmu = &self.ports[index].smmu;
        let cds = state.cds[index].as_ref();
        let current = state.current.as_ref();
        let paging = current.and_then(Slot::paging);
        let with_cds = |default| {
            let stage1 = cds?.stage1(smmu, default);
            Some(smmu.attributed(Stream::stage1(stage1)))
        };
        let translated = match (current.map(Slot::kind), paging) {
            (_, Some(paging)) => match paging.stage.second() {
                Some(second) => {
                    let id = current.and_then(|slot| slot.attachments.get(index));
                    let vmid = id.map_or(0, |attachment| attachment.id() as u16);
                    let stream = Stream::stage2(second).with_vmid(vmid);
                    Some(smmu.attributed(stream))
                }
                None => with_cds(DefaultSubstream::Substream0),
            },
            (Some(DomainKind::Identity), None) if state.pasids.is_empty() => {
                return smmu.bypass();
            }
            (Some(DomainKind::Identity), None) => with_cds(DefaultSubstream::Bypass),
            (_, None) if state.pasids.is_empty() => None,
            (_, None) => with_cds(DefaultSubstream::Terminate),
        };
        let Some(stream) = translated else {
            return Stream::ABORT;
        };
        let ats = if has_ats { Ats::Full } else { Ats::Refused };
        stream.with_ats(ats).unwrap_or(stream)
    }

    fn write_streams(&self, state: &State<M, D>, has_ats: bool) -> Outcome {
        let mut outcome = Outcome::Known;
        for (index, port) in self.ports.iter().enumerate() {
            let stream = self.stream(index, state, has_ats);
            for &id in &port.streams {
                outcome = outcome.and(port.smmu.write(id, &stream));
            }
        }
        outcome
    }

    /// Writes the CDs of a PASID: those of `slot`, or none.
    fn write_cds(&self, state: &mut State<M, D>, pasid: Pasid, slot: Option<&Slot<D>>) -> Outcome {
        let mut outcome = Outcome::Known;
        for ((index, port), cds) in self.ports.iter().enumerate().zip(&mut state.cds) {
            let Some(cds) = cds else { continue };
            let attachment = slot.and_then(|slot| slot.attachments.get(index));
            let paging = slot.and_then(Slot::paging);
            let cd = match (paging, attachment) {
                (Some(paging), Some(attachment)) => paging.stage.cd(attachment.id() as u16),
                _ => Cd::INVALID,
            };
            // A piece that never came holds no valid CD.
            let is_there = cds.get(pasid).is_some();
            if is_there {
                outcome = outcome.and(cds.write(&port.smmu, &port.streams, pasid, &cd));
            }
        }
        outcome
    }

    /// Puts `new`, or nothing, where requests with `pasid`, or those without one, are led; V3.
    fn change(&self, state: &mut State<M, D>, pasid: Option<Pasid>, new: Option<Slot<D>>) {
        let had_ats = state.has_ats;
        if let Some(slot) = &new {
            slot.attachments.iter().for_each(Attachment::set_live);
        }
        let place = pasid.unwrap_or(NO_PASID);
        let is_first = |slot: &Slot<D>| slot.paging().is_some_and(|it| it.stage.is_first());
        let has_cd = new.as_ref().is_some_and(is_first);
        let old_has_cd = match pasid {
            None => state.current.as_ref().is_some_and(is_first),
            Some(pasid) => state.pasids.contains_key(&pasid),
        };
        let has_ats = state.has_ats_with(pasid, new.as_ref());
        if had_ats && !has_ats {
            self.control.set_ats(self.address, false);
        }
        // A CD before the STE that leads to it; an STE that leads elsewhere before its CD goes.
        let mut outcome = Outcome::Known;
        if has_cd || pasid.is_some() {
            outcome = self.write_cds(state, place, new.as_ref());
        }
        let old = match pasid {
            None => mem::replace(&mut state.current, new),
            Some(pasid) => match new {
                Some(slot) => state.pasids.insert(pasid, slot),
                None => state.pasids.remove(&pasid),
            },
        };
        let written = self.write_streams(state, has_ats);
        if written == Outcome::Unknown {
            outcome = Outcome::Unknown;
        }
        if pasid.is_none()
            && old_has_cd
            && !has_cd
            && self.write_cds(state, place, None) == Outcome::Unknown
        {
            outcome = Outcome::Unknown;
        }
        if has_ats && !had_ats {
            self.control.set_ats(self.address, true);
        }
        if has_ats && had_ats && self.forget_device_tlb(pasid).is_err() {
            outcome = Outcome::Unknown;
        }
        if let Some(mut old) = old
            && (outcome == Outcome::Unknown || old.leave().is_err())
        {
            state.keep(old);
        }
        state.has_ats = has_ats;
    }

    /// Makes the device forget what it caches for `pasid`, or, without one, everything.
    fn forget_device_tlb(&self, pasid: Option<Pasid>) -> Result<(), SyncError> {
        let mut forgotten = Ok(());
        for port in &self.ports {
            // In pieces that need no memory.
            for streams in port.streams.chunks(4) {
                let tags = streams.iter().map(|&stream| Tag::Ats {
                    stream,
                    substream: pasid,
                });
                let tags: SmallVec<[Tag; 4]> = tags.collect();
                forgotten = forgotten.and(port.smmu.instance().forget(&tags));
            }
        }
        forgotten
    }

    /// Asks hardware again about what it did not confirm, and leaves what it no longer uses.
    fn recover(&self, state: &mut State<M, D>) -> Result<(), AttachFailure> {
        if state.stuck.is_empty() {
            return Ok(());
        }
        let has_ats = state.has_ats;
        let mut outcome = self.write_streams(state, has_ats);
        let current = state.current.take();
        let own = current.as_ref().filter(|slot| slot.paging().is_some());
        outcome = outcome.join(self.write_cds(state, NO_PASID, own));
        state.current = current;
        let pasids = mem::take(&mut state.pasids);
        for (&pasid, slot) in &pasids {
            outcome = outcome.join(self.write_cds(state, pasid, Some(slot)));
        }
        state.pasids = pasids;
        let stuck = mem::take(&mut state.stuck);
        for pasid in stuck.iter().filter_map(|slot| slot.pasid) {
            if !state.pasids.contains_key(&pasid) {
                outcome = outcome.join(self.write_cds(state, pasid, None));
            }
        }
        state.stuck = stuck;
        if has_ats && self.forget_device_tlb(None).is_err() {
            outcome = Outcome::Unknown;
        }
        if outcome == Outcome::Known {
            state.stuck.retain_mut(|slot| slot.leave().is_err());
        }
        if state.stuck.is_empty() {
            Ok(())
        } else {
            Err(AttachFailure::Unsupported {
                what: "a domain while hardware does not confirm that it left another one",
            })
        }
    }

    /// Joins the set of a domain at all ports.
    fn join(
        &self,
        domain: &Arc<dyn Hwpt>,
        paging: Option<&Paging<D>>,
        pasid: Option<Pasid>,
        has_ats: bool,
    ) -> Result<Slot<D>, AttachFailure> {
        let mut attachments = SmallVec::new();
        if let Some(paging) = paging {
            for port in &self.ports {
                let smmu = &port.smmu;
                let ids = if paging.stage.is_first() {
                    smmu.asids()
                } else {
                    smmu.vmids()
                };
                let tags = |id| Self::tags(port, paging, pasid, has_ats, id);
                let joined = paging.users.join(smmu.instance(), ids, tags);
                attachments.push(joined.map_err(exhausted)?);
            }
        }
        Ok(Slot {
            pasid,
            domain: Arc::clone(domain),
            attachments,
            has_ats,
        })
    }

    /// Makes CDs for `pasid` at all ports.
    fn make_cds(&self, state: &mut State<M, D>, pasid: Pasid) -> Result<(), AttachFailure> {
        for (port, cds) in self.ports.iter().zip(&mut state.cds) {
            let cds = if let Some(cds) = cds {
                cds
            } else {
                let made = CdTables::new(&port.smmu, self.pasid_bits);
                cds.insert(made.map_err(|_| AttachFailure::Exhausted)?)
            };
            cds.link(&port.smmu, &port.streams, pasid)
                .map_err(|error| AttachFailure::Other(Box::new(error)))?;
        }
        Ok(())
    }
}

fn exhausted(error: JoinDomainError) -> AttachFailure {
    match error {
        JoinDomainError::Set(SetError::Instances) => AttachFailure::Other(Box::new(error)),
        _ => AttachFailure::Exhausted,
    }
}

impl<M: TableMemory + 'static, D: CommandDevice> Endpoint for Smmuv3Endpoint<M, D> {
    fn max_pasids(&self) -> u32 {
        if self.pasid_bits == 0 {
            0
        } else {
            1 << self.pasid_bits
        }
    }

    fn prepare(
        &self,
        pasid: Option<Pasid>,
        domain: &Arc<dyn Hwpt>,
    ) -> Result<Box<dyn Prepared + '_>, AttachFailure> {
        let own: &Smmuv3Domain<D> = downcast(domain).ok_or(AttachFailure::Foreign)?;
        if !self.ports.iter().all(|port| own.fits(port.smmu.features())) {
            return Err(AttachFailure::Foreign);
        }
        let paging = own.paging_part();
        let is_second = paging.is_some_and(|paging| !paging.stage.is_first());
        let mut state = self.state.lock();
        if pasid.is_some_and(|pasid| pasid == NO_PASID || pasid.get() >= self.max_pasids()) {
            return Err(AttachFailure::Unsupported { what: "this PASID" });
        }
        let uses_second = |slot: &Slot<D>| slot.paging().is_some_and(|it| !it.stage.is_first());
        let has_second =
            state.pending.stage2 > 0 || state.current.as_ref().is_some_and(uses_second);
        let has_pasids = state.pending.pasids > 0 || !state.pasids.is_empty();
        let what = match pasid {
            Some(_) if paging.is_none() || is_second => {
                Some("other domains than of stage 1 for a PASID")
            }
            Some(_) if has_second => Some("PASIDs beside a domain of stage 2"),
            None if is_second && has_pasids => Some("a domain of stage 2 beside PASIDs"),
            _ => None,
        };
        if let Some(what) = what {
            return Err(AttachFailure::Unsupported { what });
        }
        self.recover(&mut state)?;
        // V2.
        let has_ats = self.can_ats && paging.is_some_and(|paging| paging.allows_ats);
        if paging.is_some() && state.others(pasid, !has_ats) {
            return Err(AttachFailure::Unsupported {
                what: "ATS for some of a device's domains",
            });
        }
        state
            .stuck
            .try_reserve(2)
            .map_err(|_| AttachFailure::Exhausted)?;
        let needs_cds = pasid.is_some() || paging.is_some() && !is_second;
        if needs_cds {
            self.make_cds(&mut state, pasid.unwrap_or(NO_PASID))?;
        }
        let slot = self.join(domain, paging, pasid, has_ats)?;
        let pending = Pending {
            stage2: usize::from(is_second),
            pasids: usize::from(pasid.is_some()),
            ats: usize::from(has_ats),
            plain: usize::from(paging.is_some() && !has_ats),
        };
        state.pending.add(pending);
        Ok(Box::new(Preparation {
            endpoint: self,
            pasid,
            slot: Some(slot),
            pending,
        }))
    }

    fn block(&self, pasid: Option<Pasid>) {
        self.change(&mut self.state.lock(), pasid, None);
    }

    fn release(&self) {
        let mut state = self.state.lock();
        while let Some((&pasid, _)) = state.pasids.first_key_value() {
            self.change(&mut state, Some(pasid), None);
        }
        self.change(&mut state, None, None);
        if self.pasid_bits > 0 {
            self.control.set_pasids(self.address, false);
        }
    }
}

/// A domain that is ready to be attached. Dropped, it leaves the set again.
struct Preparation<'e, M: TableMemory + 'static, D: CommandDevice> {
    endpoint: &'e Smmuv3Endpoint<M, D>,
    pasid: Option<Pasid>,
    slot: Option<Slot<D>>,
    pending: Pending,
}

impl<M: TableMemory + 'static, D: CommandDevice> Prepared for Preparation<'_, M, D> {
    fn commit(mut self: Box<Self>) {
        if let Some(slot) = self.slot.take() {
            let mut state = self.endpoint.state.lock();
            self.endpoint.change(&mut state, self.pasid, Some(slot));
        }
    }
}

impl<M: TableMemory + 'static, D: CommandDevice> Drop for Preparation<'_, M, D> {
    fn drop(&mut self) {
        self.endpoint.state.lock().pending.subtract(self.pending);
    }
}

impl<M: TableMemory, D: CommandDevice> fmt::Debug for Smmuv3Endpoint<M, D> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Smmuv3Endpoint")
            .field("address", &self.address)
            .field("can_ats", &self.can_ats)
            .field("pasid_bits", &self.pasid_bits)
            .finish_non_exhaustive()
    }
}

impl<M: TableMemory, D: CommandDevice> fmt::Debug for Port<M, D> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Port")
            .field("streams", &self.streams)
            .finish_non_exhaustive()
    }
}
