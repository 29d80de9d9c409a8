//! SMMUs with stage 1 tables.

use std::iter;

use iopt::invalidation::Encode as _;
use iopt::invalidation::plan::smmuv3::{Cover, Smmuv3 as Planner, Tag};
use iopt::invalidation::queue::smmuv3::CommandQueue;
use iopt_formats::armv8::{Granule, Stage1};
use iopt_formats::command::smmuv3::Command;
use iopt_formats::walk::Root;
use iopt_formats::{Format as _, Oa, command};
use iopt_reference as reference;
use iopt_sim::behaviour::smmuv3::Features;
use iopt_sim::{Architecture, Context};

use super::Behaviour;
use crate::registers::Registers;

/// An SMMUv3 with tables of `2^GRANULE_LG2` bytes: 12, 14 or 16.
#[derive(Clone, Copy, Debug, Default)]
pub struct Smmuv3<const GRANULE_LG2: u8> {
    /// Ranges can be invalidated (`IDR3.RIL`).
    pub has_ranges: bool,
    /// A contiguous group stays cached unless one command covers all of it.
    pub has_contiguous_erratum: bool,
}

impl<const GRANULE_LG2: u8> Smmuv3<GRANULE_LG2> {
    const GRANULE: Granule = match GRANULE_LG2 {
        12 => Granule::Kib4,
        14 => Granule::Kib16,
        _ => Granule::Kib64,
    };
}

impl<const GRANULE_LG2: u8> Behaviour for Smmuv3<GRANULE_LG2>
where
    Stage1<GRANULE_LG2>: iopt_formats::Format,
{
    type Format = Stage1<GRANULE_LG2>;
    type Planner = Planner;
    type Device = CommandQueue<Registers>;

    fn architecture(&self) -> Architecture {
        Architecture::SmmuV3(Features {
            has_ranges: self.has_ranges,
            has_52_bits: false,
            has_stage2: true,
            has_ats: true,
            has_contiguous_erratum: self.has_contiguous_erratum,
        })
    }

    fn planner(&self) -> Planner {
        let features = command::smmuv3::Features {
            has_range_invalidation: self.has_ranges,
            has_wide_descriptors: false,
        };
        let cover = if self.has_contiguous_erratum {
            Cover::WholeGroups
        } else {
            Cover::default()
        };
        Planner { features, cover }
    }

    fn device(&self, registers: Registers, _status: Oa) -> Self::Device {
        CommandQueue::new(registers)
    }

    fn base(&self, device: &Self::Device, ring: Oa) -> u64 {
        device.base(ring)
    }

    fn format(&self) -> Self::Format {
        Stage1::new(48, 48).expect("48 bits are legal for every granule")
    }

    fn tags(&self, id: u16, device: u16, has_ats: bool) -> Vec<Tag> {
        let iotlb = Tag::Stage1 {
            vmid: 0,
            asid: id,
            granule: Self::GRANULE,
        };
        let ats = Tag::Ats {
            stream: device.into(),
            substream: None,
        };
        iter::once(iotlb).chain(has_ats.then_some(ats)).collect()
    }

    fn context(&self, id: u16, root: Root, has_ats: bool) -> Context {
        let granule = match Self::GRANULE {
            Granule::Kib4 => reference::arm::Granule::K4,
            Granule::Kib16 => reference::arm::Granule::K16,
            Granule::Kib64 => reference::arm::Granule::K64,
        };
        let format = self.format();
        let half = reference::arm::Half::new(root.oa.get(), format.geometry().va_bits, granule);
        let table = reference::arm::Config::stage1(half, format.oa_bits());
        Context {
            binding: reference::context::Binding::Table(reference::Table::Arm(table)),
            tag: iopt_sim::Tag::first(Some(0), id.into()),
            has_ats,
        }
    }

    fn forget_context(&self, device: u16) -> [u64; 2] {
        let command = Command::CfgiSte {
            stream: device.into(),
            is_secure: false,
            is_leaf: true,
        };
        command.entry()
    }
}
