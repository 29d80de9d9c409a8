//! The guest CR3 table of one device at one IOMMU, and the domain ID that goes with it.

use alloc::boxed::Box;
use core::fmt;

use iopt_formats::Oa;
use iopt_formats::command::amd::Command;
use iopt_formats::command::{Pasid, Span};
use iopt_formats::context::amd::{Dte, Gcr3Entry, Gcr3Rules, Gcr3Table, GuestTables};

use crate::device::AttachFailure;
use crate::device::amd::{AmdIommu, CommandDevice};
use crate::device::context::{Directory, LinkError, Outcome};
use crate::device::ids::Id;
use crate::invalidation::SyncError;
use crate::mem::{OutOfMemory, TableMemory};

/// The base-2 logarithm of the entries of a table of each level.
const LEVEL_BITS: u8 = 9;

pub(super) struct Gcr3<M: TableMemory> {
    entries: Directory<M, 1>,
    levels: u8,
    /// Of the page tables, as the device's entry says, or is to say as soon as it leads here.
    paging_levels: u8,
    /// Taken when this is dropped.
    id: Option<Id>,
    /// Entries that are valid, or that hardware may take for valid.
    used_count: usize,
    /// Whether requests without a PASID pass under the ID, or did, and what hardware may hold of them was not
    /// forgotten.
    has_passed: bool,
}

impl<M: TableMemory + 'static> Gcr3<M> {
    /// Creates a table for PASIDs of `pasid_bits` bits, none of which leads anywhere. No entry leads here.
    pub(super) fn new<D: CommandDevice>(
        unit: &AmdIommu<M, D>,
        pasid_bits: u8,
    ) -> Result<Self, AttachFailure> {
        let exhausted = |_: OutOfMemory| AttachFailure::Exhausted;
        let memory = unit.memory();
        let levels = pasid_bits.div_ceil(LEVEL_BITS).max(1);
        let entries = match levels {
            1 => Directory::linear(memory, LEVEL_BITS, [0]),
            2 => Directory::two_level(memory, pasid_bits, LEVEL_BITS, [0]),
            _ => Directory::three_level(memory, pasid_bits, [LEVEL_BITS; 2], [0]),
        };
        let entries = entries.map_err(exhausted)?;
        // Legal, or nothing is made.
        Gcr3Table::new(entries.base(), levels, 4)
            .map_err(|error| AttachFailure::Other(Box::new(error)))?;
        let id = unit.domain_ids().allocate();
        Ok(Self {
            entries,
            levels,
            paging_levels: 4,
            id: Some(id.map_err(|_| AttachFailure::Exhausted)?),
            used_count: 0,
            has_passed: false,
        })
    }

    /// Returns the domain ID of entries that lead here.
    pub(super) fn id(&self) -> u16 {
        // IDs have 16 bits.
        self.id.as_ref().map_or(0, |id| id.get() as u16)
    }

    pub(super) const fn paging_levels(&self) -> u8 {
        self.paging_levels
    }

    pub(super) const fn set_paging_levels(&mut self, paging_levels: u8) {
        self.paging_levels = paging_levels;
    }

    /// Returns the device table entry that leads to page tables of `paging_levels` levels; requests without a PASID
    /// use those of PASID 0, or pass.
    pub(super) fn dte(&self, paging_levels: u8, serves_requests_without_pasid: bool) -> Dte {
        let Ok(table) = Gcr3Table::new(self.entries.base(), self.levels, paging_levels) else {
            return Dte::blocked();
        };
        let mut tables = GuestTables::new(table);
        if serves_requests_without_pasid {
            tables = tables.with_requests_without_pasid();
        }
        Dte::guest(tables).with_domain_id(self.id())
    }

    /// Sees to it that there is an entry for `pasid`.
    pub(super) fn link<D: CommandDevice>(
        &mut self,
        unit: &AmdIommu<M, D>,
        device_ids: &[u16],
        pasid: Pasid,
    ) -> Result<(), LinkError> {
        let describe = |table: Oa| Some(Gcr3Entry::new(table).ok()?.encode());
        let announce = || forget_devices(unit, device_ids);
        self.entries.link(pasid.get() as usize, describe, announce)
    }

    /// Returns the entry of `pasid` as it was written last, if it is there.
    pub(super) fn get(&self, pasid: Pasid) -> Option<Gcr3Entry> {
        let [word] = self.entries.get(pasid.get() as usize)?;
        Gcr3Entry::decode(word).ok().flatten()
    }

    /// Makes the entry of `pasid` say `target`, or that there are no tables, and makes hardware forget what it
    /// found by the old one.
    pub(super) fn write<D: CommandDevice>(
        &mut self,
        unit: &AmdIommu<M, D>,
        device_ids: &[u16],
        pasid: Pasid,
        target: Option<Gcr3Entry>,
    ) -> Outcome {
        let index = pasid.get() as usize;
        let target = target.map_or(0, Gcr3Entry::encode);
        if self.entries.get(index).is_none() {
            // A piece that never came has no valid entry.
            return Outcome::Known;
        }
        let domain_id = self.id();
        // The entry first: what was forgotten would come again by way of it.
        let sync = || {
            forget_devices(unit, device_ids)?;
            unit.instance().execute([Command::InvalidatePages {
                domain_id,
                pasid: Some(pasid),
                has_tables: true,
                span: Span::ALL,
            }])
        };
        let before = self.is_used(index);
        let written = self.entries.write(&Gcr3Rules, index, &[target], sync);
        let after = self.is_used(index);
        self.used_count = self.used_count + usize::from(after) - usize::from(before);
        written.into()
    }

    /// Notes that requests without a PASID are about to pass under the ID.
    pub(super) const fn set_passing(&mut self) {
        self.has_passed = true;
    }

    /// Makes hardware forget what it holds of requests that passed: the devices' entries no longer let any.
    pub(super) fn forget_passed<D: CommandDevice>(&mut self, unit: &AmdIommu<M, D>) -> Outcome {
        if !self.has_passed {
            return Outcome::Known;
        }
        let forgotten = forget_pages(unit, self.id());
        self.has_passed = forgotten != Outcome::Known;
        forgotten
    }

    fn is_used(&self, index: usize) -> bool {
        self.entries.get(index) != Some([0]) || self.entries.is_quarantined(index)
    }
}

/// Makes an IOMMU forget all that it holds under a domain ID of requests without a PASID.
pub(super) fn forget_pages<M: TableMemory + 'static, D: CommandDevice>(
    unit: &AmdIommu<M, D>,
    domain_id: u16,
) -> Outcome {
    let forgotten = unit.instance().execute([Command::InvalidatePages {
        domain_id,
        pasid: None,
        has_tables: true,
        span: Span::ALL,
    }]);
    forgotten.map_or(Outcome::Unknown, |()| Outcome::Known)
}

/// Makes an IOMMU forget the entries of devices that share a guest CR3 table, and what it holds of that.
fn forget_devices<M: TableMemory + 'static, D: CommandDevice>(
    unit: &AmdIommu<M, D>,
    device_ids: &[u16],
) -> Result<(), SyncError> {
    let device_ids = device_ids.iter();
    let commands = device_ids.map(|&device_id| Command::InvalidateDeviceTableEntry { device_id });
    unit.instance().execute(commands)
}

impl<M: TableMemory> Drop for Gcr3<M> {
    fn drop(&mut self) {
        // All under the ID was forgotten when the entries were, with a PASID and without. Otherwise it is lost.
        if let Some(id) = self.id.take()
            && self.used_count == 0
            && !self.has_passed
        {
            id.give_back_unused();
        }
    }
}

impl<M: TableMemory> fmt::Debug for Gcr3<M> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Gcr3")
            .field("entries", &self.entries)
            .field("levels", &self.levels)
            .field("paging_levels", &self.paging_levels)
            .field("id", &self.id)
            .finish_non_exhaustive()
    }
}
