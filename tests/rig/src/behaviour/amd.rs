//! AMD-Vi IOMMUs with host tables.

use std::iter;

use iopt::invalidation::Encode as _;
use iopt::invalidation::plan::amd::{Amd as Planner, Device, Tag};
use iopt::invalidation::queue::amd::CommandBuffer;
use iopt_formats::amd::V1;
use iopt_formats::command::amd::Command;
use iopt_formats::walk::Root;
use iopt_formats::{Format as _, Oa};
use iopt_reference as reference;
use iopt_sim::behaviour::amd::Features;
use iopt_sim::{Architecture, Context};

use super::Behaviour;
use crate::registers::Registers;

/// An AMD-Vi IOMMU.
#[derive(Clone, Copy, Debug, Default)]
pub struct Amd {
    /// What is not present is cached, as by emulated IOMMUs (`NpCache`).
    pub has_absent_entries: bool,
}

impl Behaviour for Amd {
    type Format = V1;
    type Planner = Planner;
    type Device = CommandBuffer<Registers>;

    fn architecture(&self) -> Architecture {
        Architecture::Amd(Features {
            caches_absent: self.has_absent_entries,
            has_invalidate_all: true,
        })
    }

    fn planner(&self) -> Planner {
        Planner {
            has_absent_entries: self.has_absent_entries,
        }
    }

    fn device(&self, registers: Registers, status: Oa) -> Self::Device {
        CommandBuffer::new(registers, status)
    }

    fn base(&self, device: &Self::Device, ring: Oa) -> u64 {
        device.base(ring)
    }

    fn format(&self) -> V1 {
        V1::fixed(4, 48).expect("four levels reach 48 bits")
    }

    fn is_told_of_maps(&self) -> bool {
        self.has_absent_entries
    }

    fn tags(&self, id: u16, device: u16, has_ats: bool) -> Vec<Tag> {
        let iotlb = Tag::Iotlb {
            domain_id: id,
            pasid: None,
        };
        let device = Device {
            device_id: device,
            queue_id: device,
            max_pending: 32,
        };
        let ats = Tag::Ats {
            device,
            pasid: None,
        };
        iter::once(iotlb).chain(has_ats.then_some(ats)).collect()
    }

    fn context(&self, id: u16, root: Root, has_ats: bool) -> Context {
        let table = reference::amd::Config {
            oa_bits: self.format().oa_bits(),
            ..reference::amd::Config::new(root.oa.get(), root.level.0 + 1)
        };
        Context {
            binding: reference::context::Binding::Table(reference::Table::AmdV1(table)),
            tag: iopt_sim::Tag::second(id.into()),
            has_ats,
        }
    }

    fn forget_context(&self, device: u16) -> [u64; 2] {
        let device_id = device;
        Command::InvalidateDeviceTableEntry { device_id }.entry()
    }
}
