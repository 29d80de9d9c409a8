//! Devices behind RISC-V IOMMUs whose commands are written down.

mod attach;
mod contexts;
mod failures;
mod faults;
mod nested;

use alloc::sync::Arc;
use alloc::vec;
use alloc::vec::Vec;

use iopt_formats::command::riscv::{Command, Function};
use iopt_formats::command::{Narrow, Pasid};
use iopt_formats::context::riscv::{DeviceContext, FirstStage, FirstStageTables, SecondStage};
use iopt_formats::riscv::{Sv, Svx4};

use super::*;
use crate::device::testing::Recorder;
use crate::device::{
    AttachFailure, DeviceAddress, DeviceControl, Endpoint as _, Hwpt, PlainDevices,
};
use crate::firmware::NodeIndex;
use crate::invalidation::plan::riscv::{Riscv as Planner, Tag};
use crate::mem::Heap;
use crate::radix::MapSide;
use crate::sync::{Class, Mutex};

type Queue = Recorder<Command>;
type Domain = RiscvDomain<Heap, Queue>;
type Device = RiscvEndpoint<Heap, Queue>;

/// Of the tests' own locks: held for a moment, and around nothing.
static LOG: Class = Class::unranked("log of a test");

/// Bits of `capabilities`.
const SV39: u64 = 1 << 9;
const SV48: u64 = 1 << 10;
const SV39X4: u64 = 1 << 17;
const SV48X4: u64 = 1 << 18;
const MSI_FLAT: u64 = 1 << 22;
const AMO_HWAD: u64 = 1 << 24;
const ATS: u64 = 1 << 25;
const PD8: u64 = 1 << 38;
const PD17: u64 = 1 << 39;
const PD20: u64 = 1 << 40;
/// Addresses of 56 bits.
const PAS: u64 = 56 << 32;

const STAGES: u64 = SV39 | SV48 | SV39X4 | SV48X4;
const PROCESSES: u64 = PD8 | PD17 | PD20;
const CAPABILITIES: u64 = STAGES | PROCESSES | ATS | PAS;
const FEATURES: Features = Features::new(CAPABILITIES, 0, 2);
/// Device contexts of 64 bytes, flags that hardware sets.
const EXTENDED: Features = Features::new(CAPABILITIES | MSI_FLAT | AMO_HWAD, 0, 2);

/// Switches of devices, written down.
#[derive(Debug)]
struct Switches(Mutex<Vec<bool>>);

impl DeviceControl for Switches {
    fn has_ats(&self, _device: DeviceAddress) -> bool {
        true
    }

    fn set_ats(&self, _device: DeviceAddress, is_enabled: bool) {
        self.0.lock().push(is_enabled);
    }
}

impl Switches {
    fn take(&self) -> Vec<bool> {
        core::mem::take(&mut *self.0.lock())
    }
}

struct World {
    unit: Arc<RiscvIommu<Heap, Queue>>,
    switches: Arc<Switches>,
}

impl World {
    fn new(features: Features) -> Self {
        let instance = Recorder::instance_of(Planner::default());
        Self {
            unit: RiscvIommu::new(features, Arc::new(Heap), instance).expect("memory"),
            switches: Arc::new(Switches(Mutex::new(&LOG, Vec::new()))),
        }
    }

    fn device(&self, ids: &[u32], can_ats: bool, pasid_bits: u8) -> Device {
        let port = Port::new(&self.unit, ids, pasid_bits).expect("hardware answers");
        let control: Arc<dyn DeviceControl> = if can_ats {
            Arc::clone(&self.switches) as _
        } else {
            Arc::new(PlainDevices)
        };
        let address = DeviceAddress::Node(NodeIndex(ids[0] as usize));
        let at = vec![(Arc::clone(&self.unit), port)];
        Device::new(address, at, control, (can_ats, pasid_bits))
    }

    fn commands(&self) -> Vec<Command> {
        self.unit.instance().queue().device().take()
    }

    fn silence(&self, is_silent: bool) {
        self.unit.instance().queue().device().set_silent(is_silent);
    }

    fn words(&self, id: u32) -> [u64; 8] {
        self.unit.words(id).expect("it is linked")
    }

    /// Returns what hardware makes of a device's context.
    fn context(&self, id: u32) -> Option<DeviceContext> {
        let context = DeviceContext::decode(self.words(id), self.unit.features().registers);
        context.expect("the engine writes legal contexts")
    }

    fn users(&self, domain: &Arc<Domain>, tag: Tag) -> usize {
        let set = domain.set().expect("it has tables");
        set.users(self.unit.instance(), tag)
    }

    fn ats_users(&self, domain: &Arc<Domain>, id: u16, pasid: Option<Pasid>) -> usize {
        let function = function(id);
        self.users(domain, Tag::Ats { function, pasid })
    }

    fn id(&self, domain: &Arc<Domain>) -> u32 {
        let users = domain.users().expect("it has tables");
        users.id(self.unit.instance()).expect("it is attached")
    }

    /// Asserts that no ID is in use, or lost.
    fn assert_unused(&self) {
        for ids in [self.unit.pscids(), self.unit.gscids()] {
            assert_eq!((ids.used_count(), ids.quarantined_count()), (0, 0));
        }
    }
}

const fn function(requester: u16) -> Function {
    Function {
        segment: None,
        requester,
    }
}

/// Returns what tells an IOMMU to forget a device's context.
fn forget(id: u32) -> Command {
    let device = Some(Narrow::new(id).expect("it has 24 bits"));
    Command::IodirInvalDdt { device }
}

fn first() -> Arc<Domain> {
    Arc::new(Domain::first_stage(Sv::sv48(), Arc::new(Heap), MapSide::Silent).expect("memory"))
}

/// Without ATS.
fn plain() -> Arc<Domain> {
    let domain = Domain::first_stage(Sv::sv48(), Arc::new(Heap), MapSide::Silent).expect("memory");
    Arc::new(domain.without_ats())
}

fn second() -> Arc<Domain> {
    Arc::new(Domain::second_stage(Svx4::sv39x4(), Arc::new(Heap), MapSide::Silent).expect("memory"))
}

fn pasid(value: u32) -> Pasid {
    Pasid::new(value).expect("it has 20 bits")
}

fn attach(
    device: &Device,
    place: Option<Pasid>,
    domain: &Arc<Domain>,
) -> Result<(), AttachFailure> {
    let domain: Arc<dyn Hwpt> = Arc::clone(domain) as _;
    device.prepare(place, &domain)?.commit();
    Ok(())
}
