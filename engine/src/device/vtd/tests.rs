//! Units whose descriptors are written down.

use alloc::sync::Arc;
use alloc::vec::Vec;

use iopt_formats::command::vtd::{ContextScope, Descriptor, IotlbScope, PasidCacheScope};
use iopt_formats::command::{Narrow, Pasid};
use iopt_formats::context::vtd::{
    AddressWidth, LegacyContext, PasidDirectory, PasidEntry, ScalableContext, Stage, TableMode,
};
use iopt_formats::vtd::{FirstStage, SecondStage};
use iopt_formats::{Oa, PageSize, PageSizes};

use super::*;
use crate::device::context::{LinkError, Unwritten};
use crate::device::testing::Recorder;
use crate::invalidation::plan::vtd::Vtd as Planner;
use crate::mem::Heap;

mod anonymous;
mod devices;
mod faults;
mod processes;
mod rig;
mod rounds;
mod unit;

type Queue = Recorder<Descriptor>;
type Unit = VtdUnit<Heap, Queue>;

/// Second stages of 4 levels, domain IDs of 16 bits.
const CAP: u64 = 6 | 47 << 16 | 0b11 << 9 | 3 << 34 | 1 << 56;
/// Device TLBs, pass through, PASIDs of 20 bits, scalable mode with both stages.
const ECAP: u64 = 1 << 2 | 1 << 6 | 1 << 40 | 19 << 35 | 1 << 43 | 1 << 46 | 1 << 47;

const FEATURES: Features = Features::from_registers(CAP, ECAP, 48);

/// What a unit is told that has nothing peculiar.
const PLANNER: Planner = Planner {
    has_blocks: true,
    max_order: 18,
    has_caching_mode: false,
    has_write_buffer: false,
    has_read_drain: true,
    has_write_drain: true,
};

const CACHING: Planner = Planner {
    has_caching_mode: true,
    ..PLANNER
};

fn unit(mode: TableMode, planner: Planner) -> Unit {
    let instance = Queue::instance_of(planner);
    Unit::new(FEATURES, mode, Arc::new(Heap), instance).expect("memory")
}

fn take(unit: &Unit) -> Vec<Descriptor> {
    unit.instance().queue().device().take()
}

fn pasid(value: u32) -> Pasid {
    Pasid::new(value).expect("it has 20 bits")
}

const ALL_CONTEXTS: Descriptor = Descriptor::ContextCache {
    scope: ContextScope::Global,
};

const ALL_PASIDS: Descriptor = Descriptor::PasidCache {
    scope: PasidCacheScope::Global,
};

const fn iotlb(scope: IotlbScope) -> Descriptor {
    Descriptor::Iotlb {
        scope,
        drains_reads: true,
        drains_writes: true,
    }
}

const ALL_TRANSLATIONS: Descriptor = iotlb(IotlbScope::Global);

fn context(source_id: u16, domain_id: u16) -> Descriptor {
    Descriptor::ContextCache {
        scope: ContextScope::Device {
            domain_id,
            source_id,
            function_mask: Narrow::default(),
        },
    }
}

const fn domain(domain_id: u16) -> Descriptor {
    iotlb(IotlbScope::Domain { domain_id })
}

const fn entry(domain_id: u16, pasid: Pasid) -> Descriptor {
    let scope = PasidCacheScope::Pasid { domain_id, pasid };
    Descriptor::PasidCache { scope }
}

const fn space(domain_id: u16, pasid: Pasid) -> Descriptor {
    Descriptor::PasidIotlb {
        domain_id,
        pasid,
        scope: iopt_formats::command::vtd::PasidIotlbScope::All,
    }
}
