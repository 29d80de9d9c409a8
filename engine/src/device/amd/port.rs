//! The IDs of one device at one IOMMU, and where its requests are led there.

use alloc::vec::Vec;
use core::fmt;

use iopt_formats::Rights;
use iopt_formats::command::Pasid;
use iopt_formats::context::amd::{Dte, Gcr3Entry};

use crate::device::AttachFailure;
use crate::device::amd::tables::{self, Gcr3};
use crate::device::amd::{AmdIommu, AmdVi, CommandDevice, Stage};
use crate::device::context::{Attached, HardwareEndpoint, Outcome, Share, Target, Unwritten};
use crate::invalidation::plan::amd::{Device, Tag};
use crate::mem::TableMemory;

/// The PASID of requests without one, where version 2 tables serve them.
pub(super) const NO_PASID: Pasid = Pasid::new(0).expect("0 has few bits");

/// A device that an [`AmdDriver`](crate::device::amd::AmdDriver) took in.
pub type AmdEndpoint<M, D> = HardwareEndpoint<AmdVi<M, D>>;

/// What a device has at one IOMMU.
pub struct Port<M: TableMemory> {
    /// In rising order.
    pub(super) device_ids: Vec<u16>,
    pub(super) share: Share<Dte>,
    pub(super) pasid_bits: u8,
    /// How many invalidations the device takes at once.
    pub(super) max_pending: u8,
    /// Whose queue they count for, if it is not the device itself.
    pub(super) physical_function: Option<u16>,
    /// Answers to its page requests have to name their PASID.
    pub(super) needs_response_pasids: bool,
    /// Whether requests pass under domain ID 0, or did, and what hardware may hold of them was not forgotten.
    pub(super) has_passed: bool,
    /// Once version 2 tables were needed.
    pub(super) gcr3: Option<Gcr3<M>>,
}

/// The domain ID of entries that let everything pass and lead to no guest CR3 table.
const PASSING_ID: u16 = 0;

impl<M: TableMemory> Port<M> {
    /// Returns where the device caches translations.
    pub(super) fn device_tlbs(&self, pasid: Option<Pasid>) -> impl Iterator<Item = Tag> {
        self.device_ids.iter().map(move |&device_id| Tag::Ats {
            device: Device {
                device_id,
                queue_id: self.physical_function.unwrap_or(device_id),
                max_pending: self.max_pending,
            },
            pasid,
        })
    }
}

impl<M: TableMemory + 'static> Port<M> {
    /// Returns the entry of all IDs of the device, where version 2 tables have `paging_levels`; `None` blocks.
    fn dte<D: CommandDevice>(
        &self,
        paging_levels: u8,
        attached: &Attached<'_, AmdVi<M, D>>,
    ) -> Option<Dte> {
        let guest = |serves_requests_without_pasid| match &self.gcr3 {
            Some(gcr3) => gcr3.dte(paging_levels, serves_requests_without_pasid),
            None => Dte::blocked(),
        };
        let entry = match (attached.at(None), attached.has_pasids()) {
            (Target::Blocked, false) => return None,
            (Target::Identity, _) if self.pasid_bits == 0 => {
                return Some(Dte::pass_through(Rights::ALL));
            }
            // IDs have 16 bits.
            (Target::Stage((stage, id)), _) => {
                stage.entry(id as u16).unwrap_or_else(|| guest(true))
            }
            (Target::Blocked, true) => guest(true),
            (Target::Identity, _) => guest(false),
        };
        let entry = if attached.has_ats() {
            entry.with_ats()
        } else {
            entry
        };
        Some(
            match (attached.asks_for_pages(), self.needs_response_pasids) {
                (false, _) => entry,
                (true, false) => entry.with_page_requests(),
                (true, true) => entry.with_page_requests().with_page_response_pasid(),
            },
        )
    }

    /// Makes an entry say what the device wants of it, or what another one does that has the ID, too.
    pub(super) fn write_dte<D: CommandDevice>(
        &self,
        unit: &AmdIommu<M, D>,
        device_id: u16,
        wanted: Option<Dte>,
        gives_way: bool,
    ) -> Result<(), Unwritten> {
        self.share
            .lead(device_id.into(), wanted, gives_way, |entry| {
                unit.write(device_id, entry.unwrap_or(Dte::blocked()))
            })
    }

    /// Makes the entries of all IDs say what `attached` has.
    fn write_dtes<D: CommandDevice>(
        &self,
        unit: &AmdIommu<M, D>,
        paging_levels: u8,
        attached: &Attached<'_, AmdVi<M, D>>,
        gives_way: bool,
    ) -> Outcome {
        let entry = self.dte(paging_levels, attached);
        let ids = self.device_ids.iter();
        let written = ids.map(|&id| self.write_dte(unit, id, entry, gives_way).into());
        written.fold(Outcome::Known, Outcome::and)
    }

    /// Makes the entry of the guest CR3 table for requests of that place say `target`.
    fn write_gcr3<D: CommandDevice>(
        &mut self,
        unit: &AmdIommu<M, D>,
        place: Option<Pasid>,
        target: Option<Gcr3Entry>,
    ) -> Outcome {
        let Some(gcr3) = &mut self.gcr3 else {
            return Outcome::Known;
        };
        let pasid = place.unwrap_or(NO_PASID);
        gcr3.write(unit, &self.device_ids, pasid, target)
    }

    /// Sees to it that there is a guest CR3 table with an entry for requests of that place.
    pub(super) fn make_gcr3<D: CommandDevice>(
        &mut self,
        unit: &AmdIommu<M, D>,
        place: Option<Pasid>,
    ) -> Result<(), AttachFailure> {
        let gcr3 = match &mut self.gcr3 {
            Some(gcr3) => gcr3,
            None => self.gcr3.insert(Gcr3::new(unit, self.pasid_bits)?),
        };
        Ok(gcr3.link(unit, &self.device_ids, place.unwrap_or(NO_PASID))?)
    }

    /// Returns the domain ID of its entries where they lead to a guest CR3 table.
    pub(super) fn guest_id(&self) -> u16 {
        self.gcr3.as_ref().map_or(0, Gcr3::id)
    }

    /// Makes hardware forget what it holds of requests that passed: the entries no longer let any.
    fn forget_passed<D: CommandDevice>(&mut self, unit: &AmdIommu<M, D>) -> Outcome {
        let with_gcr3 = self.gcr3.as_mut().map(|gcr3| gcr3.forget_passed(unit));
        let outcome = with_gcr3.unwrap_or(Outcome::Known);
        if !self.has_passed {
            return outcome;
        }
        let forgotten = tables::forget_pages(unit, PASSING_ID);
        self.has_passed = forgotten != Outcome::Known;
        outcome.and(forgotten)
    }

    /// Makes hardware use what `attached` has at `place`.
    pub(super) fn write<D: CommandDevice>(
        &mut self,
        unit: &AmdIommu<M, D>,
        place: Option<Pasid>,
        attached: &Attached<'_, AmdVi<M, D>>,
    ) -> Outcome {
        let old_levels = self.gcr3.as_ref().map_or(4, Gcr3::paging_levels);
        let (target, levels) = match attached.at(place) {
            Target::Stage((
                Stage::Guest {
                    entry,
                    paging_levels,
                    ..
                },
                _,
            )) => (Some(*entry), *paging_levels),
            _ => (None, old_levels),
        };
        let mut outcome = Outcome::Known;
        if target.is_some() {
            // Before the device's entry leads to it, if that says as much of the tables as it will. If not, nothing
            // else uses the guest CR3 table, and what it leads to goes first.
            let early = target.filter(|_| levels == old_levels);
            outcome = outcome.and(self.write_gcr3(unit, place, early));
        }
        // Who leads to a process that has ended has its place still.
        let gives_way = attached.at(place) == Target::Blocked && attached.ended_at(place).is_none();
        let passes = attached.at(None) == Target::Identity;
        match &mut self.gcr3 {
            Some(gcr3) if passes && self.pasid_bits > 0 => gcr3.set_passing(),
            _ => self.has_passed |= passes,
        }
        let mut written = self.write_dtes(unit, levels, attached, gives_way);
        if !passes && written != Outcome::Unknown {
            written = written.and(self.forget_passed(unit));
        }
        outcome = outcome.and(written);
        if let Some(gcr3) = &mut self.gcr3
            && levels != old_levels
        {
            if written == Outcome::Unknown {
                // Hardware might take the tables for ones of the old number of levels.
                return outcome;
            }
            gcr3.set_paging_levels(levels);
        }
        outcome.and(self.write_gcr3(unit, place, target))
    }
}

impl<M: TableMemory + 'static, D: CommandDevice> AmdEndpoint<M, D> {
    /// Returns what the guest CR3 table of the device at one of its IOMMUs has for a PASID, for 0 that of requests
    /// without one, as it was written last.
    pub fn gcr3_entry(&self, port: usize, pasid: Pasid) -> Option<Gcr3Entry> {
        self.with_port(port, |port| port.gcr3.as_ref()?.get(pasid))?
    }
}

impl<M: TableMemory> fmt::Debug for Port<M> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Port")
            .field("device_ids", &self.device_ids)
            .field("gcr3", &self.gcr3)
            .finish_non_exhaustive()
    }
}
