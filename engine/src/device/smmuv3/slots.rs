//! What is attached to a device, and what hardware did not confirm to have left.

use alloc::collections::BTreeMap;
use alloc::sync::Arc;
use alloc::vec::Vec;
use core::any::Any;
use core::mem;

use iopt_formats::command::Pasid;
use smallvec::SmallVec;

use crate::device::context::{Attachment, Unwritten};
use crate::device::smmuv3::CommandDevice;
use crate::device::smmuv3::domain::{Paging, Smmuv3Domain};
use crate::device::smmuv3::tables::CdTables;
use crate::device::{DomainKind, Hwpt};
use crate::invalidation::SyncError;
use crate::invalidation::plan::smmuv3::Smmuv3 as Planner;
use crate::mem::TableMemory;

pub(super) struct State<M: TableMemory, D: CommandDevice> {
    /// CDs by port, once stage 1 was needed.
    pub(super) cds: Vec<Option<CdTables<M>>>,
    pub(super) current: Option<Slot<D>>,
    pub(super) pasids: BTreeMap<Pasid, Slot<D>>,
    /// What hardware may still use. Has room for two more whenever something is attached.
    pub(super) stuck: Vec<Slot<D>>,
    /// Whether ATS is enabled at the device.
    pub(super) has_ats: bool,
    /// Preparations on their way, by what they need of others.
    pub(super) pending: Pending,
}

#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Pending {
    pub(super) stage2: usize,
    pub(super) pasids: usize,
    /// Those that translate, with ATS and without.
    pub(super) ats: usize,
    pub(super) plain: usize,
}

/// One domain as it is attached.
pub(super) struct Slot<D: CommandDevice> {
    pub(super) pasid: Option<Pasid>,
    pub(super) domain: Arc<dyn Hwpt>,
    /// One for each port, in their order; none if nothing is translated.
    pub(super) attachments: SmallVec<[Attachment<Planner, D>; 1]>,
    pub(super) has_ats: bool,
}

impl<D: CommandDevice> Slot<D> {
    pub(super) fn smmu_domain(&self) -> Option<&Smmuv3Domain<D>> {
        downcast(&self.domain)
    }

    pub(super) fn paging(&self) -> Option<&Paging<D>> {
        self.smmu_domain().and_then(Smmuv3Domain::paging_part)
    }

    pub(super) fn kind(&self) -> DomainKind {
        self.domain.kind()
    }

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
        mem::forget(self.domain);
    }
}

pub(super) fn downcast<D: CommandDevice>(domain: &Arc<dyn Hwpt>) -> Option<&Smmuv3Domain<D>> {
    let any: &dyn Any = &**domain;
    any.downcast_ref()
}

/// Whether everything that was written is known to be what hardware uses.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(super) enum Outcome {
    Known,
    Unknown,
}

impl Outcome {
    pub(super) fn and(self, written: Result<(), Unwritten>) -> Self {
        match written {
            // Blocked for sure is as good as written: nothing leads to what was there.
            Ok(()) | Err(Unwritten::Blocked(_)) => self,
            Err(_) => Self::Unknown,
        }
    }
}

impl Outcome {
    pub(super) fn join(self, other: Self) -> Self {
        if other == Self::Unknown { other } else { self }
    }
}

impl<M: TableMemory, D: CommandDevice> State<M, D> {
    /// Returns whether the device has ATS with `new` in that place; V2.
    pub(super) fn has_ats_with(&self, pasid: Option<Pasid>, new: Option<&Slot<D>>) -> bool {
        let others = self
            .pasids
            .iter()
            .filter(|(other, _)| pasid != Some(**other));
        let current = self.current.as_ref().filter(|_| pasid.is_some());
        let mut slots = others.map(|(_, slot)| slot).chain(current).chain(new);
        slots.any(|slot| slot.has_ats)
    }

    /// Whether something other than in the place of `pasid` translates, with or without ATS.
    pub(super) fn others(&self, pasid: Option<Pasid>, has_ats: bool) -> bool {
        let others = self
            .pasids
            .iter()
            .filter(|(other, _)| pasid != Some(**other));
        let current = self.current.as_ref().filter(|_| pasid.is_some());
        let mut slots = others.map(|(_, slot)| slot).chain(current);
        let pending = if has_ats {
            self.pending.ats
        } else {
            self.pending.plain
        };
        pending > 0 || slots.any(|slot| slot.paging().is_some() && slot.has_ats == has_ats)
    }

    /// Keeps what hardware may still use.
    pub(super) fn keep(&mut self, slot: Slot<D>) {
        if self.stuck.len() < self.stuck.capacity() {
            self.stuck.push(slot);
        } else {
            // Never without room, and safe all the same.
            slot.abandon();
        }
    }
}

impl Pending {
    pub(super) fn add(&mut self, other: Self) {
        self.stage2 += other.stage2;
        self.pasids += other.pasids;
        self.ats += other.ats;
        self.plain += other.plain;
    }

    pub(super) fn subtract(&mut self, other: Self) {
        self.stage2 -= other.stage2;
        self.pasids -= other.pasids;
        self.ats -= other.ats;
        self.plain -= other.plain;
    }
}

impl<M: TableMemory, D: CommandDevice> Drop for State<M, D> {
    fn drop(&mut self) {
        if self.stuck.is_empty() {
            return;
        }
        for slot in self.stuck.drain(..) {
            slot.abandon();
        }
        // Hardware may read these, too.
        mem::forget(mem::take(&mut self.cds));
    }
}
