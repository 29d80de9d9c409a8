//! VT-d units with second-stage tables.

use std::iter;

use iopt::invalidation::Encode;
use iopt::invalidation::plan::vtd::{Tag, Vtd as Planner};
use iopt::invalidation::queue::Entry;
use iopt::invalidation::queue::vtd::InvalidationQueue;
use iopt_formats::command::vtd::{ContextScope, Descriptor, Device, QueueDepth};
use iopt_formats::vtd::SecondStage;
use iopt_formats::walk::Root;
use iopt_formats::{Format as _, Oa};
use iopt_reference as reference;
use iopt_sim::behaviour::vtd::Features;
use iopt_sim::{Architecture, Context};

use super::Behaviour;
use crate::registers::Registers;

/// A VT-d unit with descriptors of `WORDS` words, 2 or 4.
#[derive(Clone, Copy, Debug)]
pub struct Vtd<const WORDS: usize> {
    /// What is not present is cached, as by emulated units (CAP.CM).
    pub has_caching_mode: bool,
    /// Base-2 logarithm of the pages of the largest block that can be dropped (CAP.MAMV); `None` if none can
    /// (CAP.PSI).
    pub max_order: Option<u8>,
}

impl<const WORDS: usize> Default for Vtd<WORDS> {
    fn default() -> Self {
        Self {
            has_caching_mode: false,
            max_order: Some(18),
        }
    }
}

impl<const WORDS: usize> Behaviour for Vtd<WORDS>
where
    [u64; WORDS]: Entry,
    Descriptor: Encode<[u64; WORDS]>,
{
    type Format = SecondStage;
    type Planner = Planner;
    type Device = InvalidationQueue<Registers, WORDS>;

    fn architecture(&self) -> Architecture {
        Architecture::Vtd(Features {
            is_wide: WORDS == 4,
            has_caching_mode: self.has_caching_mode,
            has_page_selective: self.max_order.is_some(),
            most_address_mask: self.max_order.unwrap_or(0).into(),
            ..Features::default()
        })
    }

    fn planner(&self) -> Planner {
        Planner {
            has_blocks: self.max_order.is_some(),
            max_order: self.max_order.unwrap_or(0),
            has_caching_mode: self.has_caching_mode,
            has_write_buffer: false,
            has_read_drain: true,
            has_write_drain: true,
        }
    }

    fn device(&self, registers: Registers, status: Oa) -> Self::Device {
        InvalidationQueue::new(registers, status)
    }

    fn base(&self, device: &Self::Device, ring: Oa) -> u64 {
        device.base(ring)
    }

    fn format(&self) -> SecondStage {
        SecondStage::new(48).expect("48 bits are four levels")
    }

    fn is_told_of_maps(&self) -> bool {
        self.has_caching_mode
    }

    fn tags(&self, id: u16, device: u16, has_ats: bool) -> Vec<Tag> {
        let iotlb = Tag::SecondStage { domain_id: id };
        let device = Device {
            source_id: device,
            physical_function: 0,
            queue_depth: QueueDepth::new(32),
        };
        let ats = Tag::Ats {
            device,
            pasid: None,
        };
        iter::once(iotlb).chain(has_ats.then_some(ats)).collect()
    }

    fn context(&self, id: u16, root: Root, has_ats: bool) -> Context {
        let table = reference::vtd::Config {
            oa_bits: self.format().oa_bits(),
            ..reference::vtd::Config::new(root.oa.get(), root.level.0 + 1)
        };
        Context {
            binding: reference::context::Binding::Table(reference::Table::VtdSecond(table)),
            tag: iopt_sim::Tag::second(id.into()),
            has_ats,
        }
    }

    fn forget_context(&self, _device: u16) -> [u64; WORDS] {
        let descriptor = Descriptor::ContextCache {
            scope: ContextScope::Global,
        };
        descriptor.entry()
    }
}
