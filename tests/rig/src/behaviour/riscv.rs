//! RISC-V IOMMUs with first-stage tables.

use std::iter;

use iopt::invalidation::Encode as _;
use iopt::invalidation::plan::riscv::{Riscv as Planner, Tag};
use iopt::invalidation::queue::riscv::CommandQueue;
use iopt_formats::command::Narrow;
use iopt_formats::command::riscv::{Command, Features, Function};
use iopt_formats::riscv::Sv;
use iopt_formats::walk::Root;
use iopt_formats::{Format as _, Oa};
use iopt_reference as reference;
use iopt_sim::{Architecture, Context, behaviour};

use super::Behaviour;
use crate::registers::Registers;

/// A RISC-V IOMMU.
#[derive(Clone, Copy, Debug, Default)]
pub struct Riscv {
    /// Pointers to tables can be dropped by address (`capabilities.NL`).
    pub has_non_leaf: bool,
    /// Ranges can be invalidated (`capabilities.S`).
    pub has_ranges: bool,
}

impl Behaviour for Riscv {
    type Format = Sv;
    type Planner = Planner;
    type Device = CommandQueue<Registers>;

    fn architecture(&self) -> Architecture {
        Architecture::Riscv(behaviour::riscv::Features {
            has_non_leaf: self.has_non_leaf,
            has_ranges: self.has_ranges,
            ..behaviour::riscv::Features::default()
        })
    }

    fn planner(&self) -> Planner {
        let features = Features {
            has_non_leaf: self.has_non_leaf,
            has_ranges: self.has_ranges,
            has_ats: true,
            has_wires: false,
        };
        Planner {
            features,
            needs_map_invalidation: false,
        }
    }

    fn device(&self, registers: Registers, _status: Oa) -> Self::Device {
        CommandQueue::new(registers)
    }

    fn base(&self, device: &Self::Device, ring: Oa) -> u64 {
        device.base(ring)
    }

    fn format(&self) -> Sv {
        Sv::sv48().with_svnapot()
    }

    fn tags(&self, id: u16, device: u16, has_ats: bool) -> Vec<Tag> {
        let iotlb = Tag::FirstStage {
            gscid: None,
            pscid: Narrow::new(id.into()).unwrap_or(Narrow::MAX),
        };
        let function = Function {
            segment: None,
            requester: device,
        };
        let ats = Tag::Ats {
            function,
            pasid: None,
        };
        iter::once(iotlb).chain(has_ats.then_some(ats)).collect()
    }

    fn context(&self, id: u16, root: Root, has_ats: bool) -> Context {
        let first = reference::riscv::Stage::First;
        let table = reference::riscv::Config {
            oa_bits: self.format().oa_bits(),
            ..reference::riscv::Config::new(first, root.oa.get(), root.level.0 + 1)
        };
        Context {
            binding: reference::context::Binding::Table(reference::Table::Riscv(table)),
            tag: iopt_sim::Tag::first(None, id.into()),
            has_ats,
        }
    }

    fn forget_context(&self, device: u16) -> [u64; 2] {
        let device = Narrow::new(device.into());
        Command::IodirInvalDdt { device }.entry()
    }
}
