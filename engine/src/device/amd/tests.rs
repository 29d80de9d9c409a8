//! Devices behind IOMMUs whose commands are written down.

mod attach;
mod entries;
mod failures;
mod faults;
mod nested;

use alloc::sync::Arc;
use alloc::vec;
use alloc::vec::Vec;

use iopt_formats::amd::V1;
use iopt_formats::command::Pasid;
use iopt_formats::command::amd::Command;
use iopt_formats::context::amd::{Dte, Gcr3Entry};
use iopt_formats::x86_64::AmdV2;

use super::*;
use crate::device::context::{Architecture as _, Arrival};
use crate::device::testing::{Recorded, Recorder};
use crate::device::{
    AttachFailure, DeviceAddress, DeviceControl, Endpoint as _, Hwpt, PlainDevices, Resolved,
};
use crate::firmware::NodeIndex;
use crate::invalidation::plan::amd::{Amd as Planner, Device as DeviceTlb, Tag};
use crate::mem::Heap;
use crate::radix::MapSide;
use crate::sync::{Class, Mutex};

type Queue = Recorder<Command>;
type Domain = AmdDomain<Heap, Queue>;
type Device = AmdEndpoint<Heap, Queue>;

/// Of the tests' own locks: held for a moment, and around nothing.
static LOG: Class = Class::unranked("log of a test");

impl Recorded for Command {
    type Entry = [u64; 2];
    type Planner = Planner;

    fn decode(words: &[u64]) -> Self {
        Self::decode([words[0], words[1]]).expect("the engine writes legal commands")
    }

    fn sync() -> Self {
        Self::CompletionWait {
            store: None,
            has_interrupt: false,
            is_fence: false,
        }
    }

    fn is_sync(&self) -> bool {
        matches!(self, Self::CompletionWait { .. })
    }
}

/// ATS, five levels of each, guest CR3 tables of three, PASIDs of 20 bits, `GIoSup`, segments.
const FEATURES: Features = Features {
    has_ats: true,
    has_page_requests: true,
    host_levels: 6,
    guest_levels: 5,
    gcr3_levels: 3,
    has_guest_default: true,
    has_guest_addresses: true,
    pasid_bits: 20,
    has_dirty: true,
    segment_bits: 3,
    oa_bits: 52,
};

/// Switches of devices, written down.
#[derive(Debug)]
struct Switches(Mutex<Vec<bool>>);

impl DeviceControl for Switches {
    fn has_ats(&self, _device: DeviceAddress) -> bool {
        true
    }

    fn ats_queue_depth(&self, _device: DeviceAddress) -> u8 {
        16
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
    iommu: Arc<AmdIommu<Heap, Queue>>,
    switches: Arc<Switches>,
}

impl World {
    fn new(features: Features) -> Self {
        let planner = Planner {
            has_absent_entries: false,
        };
        let instance = Queue::instance_of(planner);
        let iommu = AmdIommu::new(features, Arc::new(Heap), instance, 0x1ff);
        Self {
            iommu: iommu.expect("memory"),
            switches: Arc::new(Switches(Mutex::new(&LOG, Vec::new()))),
        }
    }

    fn device(&self, ids: &[u32], can_ats: bool, pasid_bits: u8) -> Device {
        let control: Arc<dyn DeviceControl> = if can_ats {
            Arc::clone(&self.switches) as _
        } else {
            Arc::new(PlainDevices)
        };
        let address = DeviceAddress::Node(NodeIndex(ids[0] as usize));
        let arrival = Arrival {
            device: &Resolved::new(address, 0),
            ids,
            pasid_bits,
            control: &*control,
        };
        let port = AmdVi::port(&self.iommu, &arrival).expect("the table has them");
        let at = vec![(Arc::clone(&self.iommu), port)];
        Device::new(address, at, control, (can_ats, pasid_bits))
    }

    fn commands(&self) -> Vec<Command> {
        self.queue().take()
    }

    fn queue(&self) -> &Queue {
        self.iommu.instance().queue().device()
    }

    fn dte(&self, device_id: u16) -> Dte {
        self.iommu.dte(device_id).expect("the table has it")
    }

    fn users(&self, domain: &Arc<Domain>, tag: Tag) -> usize {
        let set = domain.set().expect("it has tables");
        set.users(self.iommu.instance(), tag)
    }

    fn ats_users(&self, domain: &Arc<Domain>, device_id: u16, place: Option<Pasid>) -> usize {
        self.users(domain, ats(device_id, place))
    }

    /// The ID of a domain with version 1 tables.
    fn id(&self, domain: &Arc<Domain>) -> u16 {
        let users = domain.users().expect("it has tables");
        users.id(self.iommu.instance()).expect("it is attached") as u16
    }
}

fn ats(device_id: u16, pasid: Option<Pasid>) -> Tag {
    let device = DeviceTlb {
        device_id,
        queue_id: device_id,
        max_pending: 16,
    };
    Tag::Ats { device, pasid }
}

fn host() -> Arc<Domain> {
    let format = V1::fixed(4, 48).expect("legal");
    Arc::new(Domain::host(format, Arc::new(Heap), MapSide::Silent).expect("memory"))
}

fn guest() -> Arc<Domain> {
    let format = AmdV2::new(47).expect("legal");
    Arc::new(Domain::guest(format, Arc::new(Heap), MapSide::Silent).expect("memory"))
}

/// Five levels.
fn wide() -> Arc<Domain> {
    let format = AmdV2::new(56).expect("legal");
    Arc::new(Domain::guest(format, Arc::new(Heap), MapSide::Silent).expect("memory"))
}

fn plain() -> Arc<Domain> {
    let format = AmdV2::new(47).expect("legal");
    let domain = Domain::guest(format, Arc::new(Heap), MapSide::Silent).expect("memory");
    Arc::new(domain.without_ats())
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

/// The entry of a device's guest CR3 table, if there is one.
fn gcr3(device: &Device, place: u32) -> Option<Gcr3Entry> {
    device.gcr3_entry(0, pasid(place))
}

fn guest_id(device: &Device) -> u16 {
    device.with_port(0, Port::guest_id).expect("it has one")
}

/// Returns the entry that leads to a domain with version 2 tables, as another device gets it.
fn leading(world: &World, domain: &Arc<Domain>) -> Option<Gcr3Entry> {
    let other = world.device(&[0x180], domain.users().is_some(), 0);
    attach(&other, None, domain).expect("it fits");
    let entry = gcr3(&other, 0);
    other.block(None);
    assert!(entry.is_some());
    world.commands();
    world.switches.take();
    entry
}
