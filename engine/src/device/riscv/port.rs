//! What a device has at one RISC-V IOMMU.

use alloc::vec::Vec;
use core::fmt;

use iopt_formats::command::Pasid;
use iopt_formats::command::riscv::Function;
use iopt_formats::context::riscv::{DeviceContext, DeviceOptions, FirstStage, SecondStage};

use crate::device::AttachFailure;
use crate::device::context::{
    Attached, HardwareEndpoint, LinkError, Outcome, Share, Target, Unwritten,
};
use crate::device::riscv::features::BARE;
use crate::device::riscv::tables::ProcessTable;
use crate::device::riscv::{CommandDevice, Riscv, RiscvIommu, Stage, changes};
use crate::invalidation::plan::riscv::Tag;
use crate::mem::TableMemory;

/// A device that a [`RiscvDriver`](crate::device::riscv::RiscvDriver) took in.
pub type RiscvEndpoint<M, D> = HardwareEndpoint<Riscv<M, D>>;

/// The process of requests without a PASID (`DPE`).
const NO_PASID: Pasid = Pasid::new(0).expect("0 has few bits");

impl<M: TableMemory + 'static, D: CommandDevice> RiscvEndpoint<M, D> {
    /// Returns the words of the context of a PASID at an IOMMU of the device, of 0 for requests without one, as they
    /// were written last.
    pub fn process_words(&self, port: usize, pasid: Pasid) -> Option<[u64; 2]> {
        self.with_port(port, |port| port.processes.as_ref()?.words(pasid))
            .flatten()
    }
}

/// The IDs of a device at one IOMMU, and its process directory if it has PASIDs.
pub struct Port<M: TableMemory> {
    devices: Vec<u32>,
    pub(super) share: Share<DeviceContext>,
    /// Where commands for the device's own caches go, in rising order.
    functions: Vec<Function>,
    processes: Option<ProcessTable<M>>,
    /// Answers to its page requests have to name their PASID.
    needs_response_pasids: bool,
}

impl<M: TableMemory + 'static> Port<M> {
    /// Takes a device in, under IDs in rising order and with PASIDs of `pasid_bits` bits: its contexts are there and
    /// not valid.
    pub(super) fn new<D: CommandDevice>(
        unit: &RiscvIommu<M, D>,
        devices: &[u32],
        pasid_bits: u8,
    ) -> Result<Self, LinkError> {
        for &device in devices {
            unit.link(device)?;
        }
        let mut processes = None;
        if pasid_bits > 0 {
            processes = ProcessTable::new(unit.features(), unit.memory(), pasid_bits)?;
            if let Some(processes) = &mut processes {
                processes.link(unit, devices, NO_PASID)?;
            }
        }
        let functions = devices.iter().map(|&device| unit.function(device));
        let port = Self {
            devices: devices.to_vec(),
            share: unit.shares().enter(devices, pasid_bits > 0)?,
            functions: functions.collect(),
            processes,
            needs_response_pasids: false,
        };
        LinkError::block_quarantined(
            devices.iter().copied(),
            |device| unit.is_quarantined(device),
            |device| port.write_device(unit, device, None, true),
        )?;
        Ok(port)
    }

    /// Has answers that the IOMMU itself gives to page requests name their PASID, or not.
    pub(super) const fn with_response_pasids(mut self, are_needed: bool) -> Self {
        self.needs_response_pasids = are_needed;
        self
    }

    /// Makes a device context say what the device wants of it, or what another one does that has the ID, too.
    fn write_device<D: CommandDevice>(
        &self,
        unit: &RiscvIommu<M, D>,
        device: u32,
        wanted: Option<DeviceContext>,
        gives_way: bool,
    ) -> Result<(), Unwritten> {
        self.share.lead(device, wanted, gives_way, |context| {
            unit.write(device, context.as_ref())
        })
    }

    /// Returns where the device itself caches translations.
    pub(super) fn tags(&self, place: Option<Pasid>) -> impl Iterator<Item = Tag> {
        self.functions.iter().map(move |&function| Tag::Ats {
            function,
            pasid: place,
        })
    }

    /// Returns where the IOMMU has what it read of the device's contexts at addresses of a guest.
    pub(super) fn directories(&self) -> impl Iterator<Item = Tag> {
        self.devices.iter().map(|&device| Tag::Directory {
            device: changes::narrow(device),
        })
    }

    /// Sees to it that there is a context for a PASID.
    pub(super) fn link<D: CommandDevice>(
        &mut self,
        unit: &RiscvIommu<M, D>,
        pasid: Pasid,
    ) -> Result<(), AttachFailure> {
        let Some(processes) = &mut self.processes else {
            return Err(AttachFailure::Unsupported { what: "PASIDs" });
        };
        Ok(processes.link(unit, &self.devices, pasid)?)
    }

    /// Makes contexts say what is attached at a place.
    pub(super) fn write<D: CommandDevice>(
        &mut self,
        unit: &RiscvIommu<M, D>,
        place: Option<Pasid>,
        attached: &Attached<'_, Riscv<M, D>>,
    ) -> Outcome {
        let target = attached.at(place);
        let processes = self.processes.as_ref();
        let comes = processes.is_some_and(|processes| processes.context(target).is_some());
        // A process context before the device context that leads to it; a device context that leads elsewhere
        // before the process context goes.
        let mut outcome = Outcome::Known;
        if comes {
            outcome = outcome.and(self.write_process(unit, place, target));
        }
        let context = self.context(unit, attached);
        // Who leads to a process that has ended has its place still.
        let gives_way = target == Target::Blocked && attached.ended_at(place).is_none();
        for &device in &self.devices {
            let written = self.write_device(unit, device, context, gives_way);
            outcome = outcome.and(written.into());
        }
        if !comes {
            outcome = outcome.and(self.write_process(unit, place, target));
        }
        outcome
    }

    /// Returns what the device's contexts have to say; `None` if nothing passes.
    fn context<D: CommandDevice>(
        &self,
        unit: &RiscvIommu<M, D>,
        attached: &Attached<'_, Riscv<M, D>>,
    ) -> Option<DeviceContext> {
        let features = unit.features();
        let options = DeviceOptions {
            has_ats: attached.has_ats(),
            has_page_requests: attached.asks_for_pages(),
            has_page_response_pasid: attached.asks_for_pages() && self.needs_response_pasids,
            ..DeviceOptions::default()
        };
        let default = attached.at(None);
        if let Target::Stage((stage, id)) = default
            // GSCIDs have 16 bits.
            && let Some(second) = stage.second(id as u16)
        {
            let (first, options) = stage.guest().map_or((BARE, options), |guest| {
                let has_ats = attached.has_ats();
                (
                    guest.first,
                    DeviceOptions {
                        has_ats,
                        ..guest.options
                    },
                )
            });
            return features.context(first, second, options).ok();
        }
        if default == Target::Blocked && !attached.has_pasids() {
            return None;
        }
        if let Some(processes) = &self.processes {
            return processes.device_context(features, options);
        }
        let (first, pscid) = match default {
            Target::Blocked => return None,
            Target::Identity => (BARE, 0),
            Target::Stage((stage, id)) => (FirstStage::Tables(stage.first()?), id),
        };
        let options = DeviceOptions { pscid, ..options };
        features.context(first, SecondStage::Bare, options).ok()
    }

    /// Makes the process context of a place say where its requests go.
    fn write_process<D: CommandDevice>(
        &mut self,
        unit: &RiscvIommu<M, D>,
        place: Option<Pasid>,
        target: Target<(&Stage, u32)>,
    ) -> Outcome {
        let Some(processes) = &mut self.processes else {
            return Outcome::Known;
        };
        let context = processes.context(target);
        let process = place.unwrap_or(NO_PASID);
        processes
            .write(unit, &self.devices, process, context.as_ref())
            .into()
    }
}

impl<M: TableMemory> fmt::Debug for Port<M> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Port")
            .field("devices", &self.devices)
            .field("processes", &self.processes)
            .finish_non_exhaustive()
    }
}
