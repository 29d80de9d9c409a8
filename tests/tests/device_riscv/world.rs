//! A machine with one RISC-V IOMMU, its devices and their domains, all told to the ledger.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, OnceLock};
use std::time::Duration;

use iopt::device::riscv::{Features, RiscvDomain, RiscvDriver, RiscvIommu};
use iopt::device::{
    AttachError, By, Config, DefaultKind, DeviceAddress, DeviceControl, DeviceTlb, Endpoint, Hwpt,
    Identity, InstanceFacts, Machine, MachineParts, Owner, Ownership, Registration, Registry,
    Resolved, Stream,
};
use iopt::firmware::{InstanceIndex, NodeIndex};
use iopt::invalidation::queue::riscv::CommandQueue;
use iopt::ioas::{Holes, Ioas, Mapping, Pages, Place};
use iopt::pin::{Firmness, Simulated, Source};
use iopt::radix::MapSide;
use iopt_formats::command::Pasid;
use iopt_formats::riscv::{Sv, Svx4};
use iopt_formats::{Iova, IovaRange, Oa, PageSize, Prot};
use iopt_reference::Memory;
use iopt_reference::context::riscv;
use iopt_rig::{MachineConfig, Registers, Riscv, Tables};
use iopt_sim::{Attachment, Contexts, Iommu, Ledger, Outcome, Resolution, Rights, StaleAccess};

pub(crate) type Rig = iopt_rig::Machine<Riscv>;
pub(crate) type Queue = CommandQueue<Registers>;
pub(crate) type Domain = RiscvDomain<Tables, Queue>;

pub(crate) type Unit = RiscvIommu<Tables, Queue>;

/// Low bits of the IDs of the devices; two see the same tables, and 0x105 shares a page of contexts with 0x100.
const LOW_IDS: [&[u32]; 4] = [&[0x100], &[0x105, 0x300], &[0x008], &[0x7700]];
pub(crate) const DEVICE_COUNT: usize = LOW_IDS.len();

/// Bits of `capabilities`: Sv39, Sv48, Sv39x4, Sv48x4, ATS, addresses of 56 bits.
const CAPABILITIES: u64 = 3 << 9 | 3 << 17 | 1 << 25 | 56 << 32;
/// `MSI_FLAT`: device contexts of 64 bytes.
const EXTENDED: u64 = 1 << 22;
/// `AMO_HWAD`.
const UPDATES: u64 = 1 << 24;

/// What one IOMMU, and its devices, can do.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Kind {
    pub(crate) seed: u64,
    pub(crate) has_ats: bool,
    pub(crate) pasid_bits: u8,
    pub(crate) is_extended: bool,
    pub(crate) levels: u8,
    /// Of process directories, one size only.
    pub(crate) process_levels: u8,
    pub(crate) memory_len: usize,
    pub(crate) default: DefaultKind,
    /// All devices are attached together, and have fewer PASIDs one after the other.
    pub(crate) is_one_group: bool,
}

impl Kind {
    /// Another one for each of 12 seeds.
    pub(crate) fn new(seed: u64, has_ats: bool) -> Self {
        let process_levels = (seed % 3) as u8 + 1;
        Self {
            seed,
            has_ats,
            pasid_bits: [5, 12, 20][(seed % 3) as usize],
            is_extended: !seed.is_multiple_of(2),
            levels: 2 + (seed / 2 % 2) as u8,
            process_levels,
            memory_len: MachineConfig::default().memory_len,
            default: DefaultKind::Paging,
            is_one_group: false,
        }
    }

    fn capabilities(self) -> u64 {
        let when = |is_set, bits| if is_set { bits } else { 0 };
        CAPABILITIES
            | when(self.is_extended, EXTENDED)
            | when(self.seed % 4 > 1, UPDATES)
            | 1 << (37 + self.process_levels)
    }
}

/// What the registers say, once there is a directory.
#[derive(Default)]
struct Late(OnceLock<riscv::Registers>);

impl Contexts for Late {
    fn resolve(&self, memory: &dyn Memory, device: u32, pasid: Option<u32>) -> Resolution {
        let registers = self.0.get().unwrap();
        registers.resolve(memory, device, pasid)
    }
}

/// The devices' own switches.
#[derive(Debug)]
struct Control {
    iommu: Arc<Iommu>,
    has_ats: bool,
    ids: Vec<Vec<u32>>,
}

impl DeviceControl for Control {
    fn has_ats(&self, device: DeviceAddress) -> bool {
        // The third one caches nothing.
        self.has_ats && device != address(2)
    }

    fn has_page_requests(&self, device: DeviceAddress) -> bool {
        self.has_ats(device)
    }

    fn set_ats(&self, device: DeviceAddress, is_enabled: bool) {
        let number = (0..DEVICE_COUNT).find(|&number| address(number) == device);
        for &id in &self.ids[number.unwrap()] {
            self.iommu.set_device_tlb(id, is_enabled);
        }
    }
}

pub(crate) fn address(number: usize) -> DeviceAddress {
    DeviceAddress::Node(NodeIndex(number))
}

pub(crate) fn pasid(value: u32) -> Option<Pasid> {
    (value > 0).then(|| Pasid::new(value).unwrap())
}

/// An address space that is attached, and its number in the ledger.
pub(crate) struct Space {
    pub(crate) number: u64,
    pub(crate) domain: Arc<Domain>,
    pub(crate) hwpt: Arc<dyn Hwpt>,
    ioas: Ioas,
    pages: Arc<Pages>,
    base: u64,
}

pub(crate) struct World {
    pub(crate) rig: Arc<Rig>,
    pub(crate) unit: Arc<Unit>,
    pub(crate) registry: Arc<Registry>,
    pub(crate) ids: Vec<Vec<u32>>,
    ownerships: Vec<Arc<Ownership>>,
    /// Where something is attached, to tell replacements.
    attached: Mutex<BTreeMap<(usize, u32), Option<u64>>>,
}

impl World {
    pub(crate) fn new(kind: Kind) -> Self {
        let capabilities = kind.capabilities();
        let late = Arc::new(Late::default());
        let config = MachineConfig {
            seed: kind.seed,
            memory_len: kind.memory_len,
            limit: Duration::from_micros(100),
            ..MachineConfig::default()
        };
        let behaviour = Riscv {
            has_non_leaf: kind.seed % 4 < 2,
            has_ranges: kind.seed.is_multiple_of(2),
        };
        let contexts = Arc::<Late>::clone(&late);
        let rig = Rig::with_contexts(behaviour, config, contexts).unwrap();
        let memory = Arc::new(rig.tables());
        let features = Features::new(capabilities, 0, kind.levels);
        let instance = Arc::clone(rig.instance());
        let unit = Unit::new(features, Arc::clone(&memory), instance).unwrap();
        let registers = riscv::Registers {
            capabilities,
            fctl: 0,
            ddtp: unit.ddtp().encode(),
        };
        late.0.set(registers).unwrap();
        // Segments are the upper bits.
        let high = if kind.levels == 3 { 0x12_0000 } else { 0 };
        let ids = LOW_IDS.map(|ids| ids.iter().map(|id| id | high).collect::<Vec<u32>>());
        let ids = ids.to_vec();
        let control = Arc::new(Control {
            iommu: Arc::clone(rig.iommu()),
            has_ats: kind.has_ats,
            ids: ids.clone(),
        });
        let driver = RiscvDriver::<Tables, Queue>::new(memory, control);
        let registry = Self::registry(&ids, kind);
        let world = Self {
            rig,
            unit,
            registry,
            ids,
            ownerships: Vec::new(),
            attached: Mutex::default(),
        };
        // Nobody knows them yet.
        world.assert_all_blocked();
        let early = DEVICE_COUNT / 2;
        for number in 0..early {
            world.registry.add_device(address(number)).unwrap();
        }
        let registration = Registration {
            identity: Identity::Described(InstanceIndex(0)),
            driver,
            instance: Arc::<Unit>::clone(&world.unit),
        };
        world.registry.register(registration).unwrap();
        for number in early..DEVICE_COUNT {
            world.registry.add_device(address(number)).unwrap();
        }
        world
    }

    /// Takes all devices over: they are blocked then.
    pub(crate) fn owned(kind: Kind) -> Self {
        let mut world = Self::new(kind);
        let owner = Owner::new("the test");
        let claim = |number| Arc::new(world.registry.claim_owner(address(number), &owner).unwrap());
        let claimed = (0..DEVICE_COUNT).map(claim);
        world.ownerships = claimed.collect();
        world
    }

    pub(crate) fn assert_all_blocked(&self) {
        for &id in self.ids.iter().flatten() {
            for pasid in [None, Some(1)] {
                let outcome = self.rig.iommu().access(id, pasid, 0x1000, Rights::READ);
                assert!(
                    matches!(outcome, Ok(Outcome::Refused(_))),
                    "{id:#x} {pasid:?}"
                );
            }
        }
    }

    fn registry(ids: &[Vec<u32>], kind: Kind) -> Arc<Registry> {
        let devices = ids.iter().enumerate().map(|(number, ids)| Resolved {
            streams: vec![Stream {
                instance: InstanceIndex(0),
                ids: ids.clone(),
            }],
            pasid_bits: if kind.is_one_group {
                kind.pasid_bits.saturating_sub(2 * number as u8)
            } else {
                kind.pasid_bits
            },
            device_tlb: DeviceTlb::Allowed,
            ..Resolved::new(address(number), if kind.is_one_group { 0 } else { number })
        });
        let parts = MachineParts {
            devices: devices.collect(),
            instances: vec![InstanceFacts {
                hardware: None,
                is_enabled: true,
                tells_devices_apart: true,
            }],
            anonymous_count: 0,
            suppliers: Vec::new(),
        };
        let config = Config {
            default_kind: Some(kind.default),
            ..Config::default()
        };
        Arc::new(Registry::new(
            Arc::new(Machine::new(parts).unwrap()),
            config,
        ))
    }

    pub(crate) fn ledger(&self) -> &Ledger {
        self.rig.ledger()
    }

    /// Creates an address space with 64 MiB of memory, of its own.
    pub(crate) fn space(&self, number: u64, stage: u8) -> Space {
        let memory = Arc::new(self.rig.tables());
        let domain = match stage {
            1 => Domain::first_stage(Sv::sv48().with_svnapot(), memory, MapSide::Silent),
            _ => Domain::second_stage(Svx4::sv39x4().with_svnapot(), memory, MapSide::Silent),
        };
        let domain = Arc::new(domain.unwrap());
        let hwpt: Arc<dyn Hwpt> = Arc::<Domain>::clone(&domain);
        let base = 0x10_0000_0000 * number;
        let memory = Simulated::new(PageSize::KIB_4, 0x4000)
            .with_base(Oa::new(base))
            .with_firmness(Firmness::Fixed);
        let ioas = Ioas::new();
        ioas.attach(hwpt.domain().unwrap()).unwrap();
        Space {
            number,
            domain,
            hwpt,
            ioas,
            pages: Pages::new(Arc::new(memory) as Arc<dyn Source>, None),
            base,
        }
    }

    /// Maps `len` bytes at `iova` to the memory of the space at the same offset.
    pub(crate) fn map(&self, space: &Space, iova: u64, len: u64) {
        let pages = (&space.pages, iova);
        self.map_to(space, iova, len, pages, space.base + iova);
    }

    /// Maps `len` bytes at `iova` to memory from an offset on, which is at `oa`.
    pub(crate) fn map_to(
        &self,
        space: &Space,
        iova: u64,
        len: u64,
        (pages, offset): (&Arc<Pages>, u64),
        oa: u64,
    ) {
        let range = iova..=iova + len - 1;
        let ledger = self.ledger();
        ledger.map(space.number, range.clone(), oa, Rights::ALL);
        let mapping = Mapping {
            pages,
            offset,
            len,
            prot: Prot::RW,
            place: Place::Fixed(Iova::new(iova)),
        };
        space.ioas.map(mapping).unwrap();
        ledger.map_done(space.number, range);
    }

    /// Unmaps it; when this returns, no device may reach it.
    pub(crate) fn unmap(&self, space: &Space, iova: u64, len: u64) {
        let range = IovaRange::with_len(Iova::new(iova), len).unwrap();
        self.ledger().unmap(space.number, iova..=iova + len - 1);
        space.ioas.unmap(range, Holes::Refused).unwrap();
        self.ledger().forgotten(space.number, iova..=iova + len - 1);
    }

    /// Returns who attaches a device.
    pub(crate) fn by(&self, device: usize) -> By<'_> {
        By::Owner(&self.ownerships[device])
    }

    /// Returns by what right a device is bound.
    pub(crate) fn ownership(&self, device: usize) -> Arc<Ownership> {
        Arc::clone(&self.ownerships[device])
    }

    /// Returns what the driver made of a device.
    pub(crate) fn endpoint(&self, device: usize) -> Arc<dyn Endpoint> {
        self.registry.endpoint(address(device)).unwrap()
    }

    /// Attaches `hwpt`, `attachment` to the ledger, in place of what is attached.
    pub(crate) fn attach(
        &self,
        device: usize,
        place: u32,
        hwpt: &Arc<dyn Hwpt>,
        attachment: Attachment,
    ) -> Result<(), AttachError> {
        let by = self.by(device);
        let old = self.attached.lock().unwrap().get(&(device, place)).copied();
        self.begin_attach(device, place, attachment);
        let address = address(device);
        let attached = match pasid(place) {
            None => self.registry.attach(address, by, hwpt),
            Some(pasid) if old.is_some() => self.registry.replace_pasid(address, by, pasid, hwpt),
            Some(pasid) => self.registry.attach_pasid(address, by, pasid, hwpt),
        };
        attached?;
        let number = match attachment {
            Attachment::Domain(number) => Some(number),
            _ => None,
        };
        self.attached
            .lock()
            .unwrap()
            .insert((device, place), number);
        self.end_attach(device, place);
        Ok(())
    }

    /// Tells the ledger that a device is about to be attached.
    pub(crate) fn begin_attach(&self, device: usize, place: u32, attachment: Attachment) {
        let pasid = (place > 0).then_some(place);
        for &id in &self.ids[device] {
            self.ledger().detach(id, pasid);
            self.ledger().attach(id, pasid, attachment);
        }
    }

    /// Tells the ledger that it is.
    pub(crate) fn end_attach(&self, device: usize, place: u32) {
        let pasid = (place > 0).then_some(place);
        for &id in &self.ids[device] {
            self.ledger().detach_done(id, pasid);
            self.ledger().attach_done(id, pasid);
        }
    }

    /// Tells the ledger that nothing is attached.
    pub(crate) fn forget(&self, device: usize, place: u32) {
        self.begin_detach(device, place);
        self.end_detach(device, place);
    }

    /// Tells the ledger that a device is about to be detached.
    pub(crate) fn begin_detach(&self, device: usize, place: u32) {
        let pasid = (place > 0).then_some(place);
        for &id in &self.ids[device] {
            self.ledger().detach(id, pasid);
        }
    }

    /// Tells the ledger that it is.
    pub(crate) fn end_detach(&self, device: usize, place: u32) {
        let pasid = (place > 0).then_some(place);
        for &id in &self.ids[device] {
            self.ledger().detach_done(id, pasid);
        }
    }

    pub(crate) fn attach_space(&self, device: usize, place: u32, space: &Space) {
        let attachment = Attachment::Domain(space.number);
        self.attach(device, place, &space.hwpt, attachment).unwrap();
    }

    pub(crate) fn attach_identity(&self, device: usize) {
        let identity: Arc<dyn Hwpt> = Arc::new(Domain::identity());
        self.attach(device, 0, &identity, Attachment::Identity)
            .unwrap();
    }

    /// Blocks a device, or its PASID, whatever is attached.
    pub(crate) fn detach(&self, device: usize, place: u32) {
        let by = self.by(device);
        if self
            .attached
            .lock()
            .unwrap()
            .remove(&(device, place))
            .is_none()
        {
            return;
        }
        self.begin_detach(device, place);
        match pasid(place) {
            None => self.registry.detach(address(device), by).unwrap(),
            Some(pasid) => self
                .registry
                .detach_pasid(address(device), by, pasid)
                .unwrap(),
        }
        self.end_detach(device, place);
    }

    pub(crate) fn is_attached(&self, device: usize, place: u32, number: u64) -> bool {
        let attached = self.attached.lock().unwrap();
        attached.get(&(device, place)) == Some(&Some(number))
    }

    /// Makes a request by each stream of a device, all of which must be served alike.
    pub(crate) fn access(
        &self,
        device: usize,
        place: u32,
        iova: u64,
    ) -> Result<Option<u64>, Box<StaleAccess>> {
        let pasid = (place > 0).then_some(place);
        let mut reached = None;
        for &stream in &self.ids[device] {
            let outcome = self.rig.iommu().access(stream, pasid, iova, Rights::READ)?;
            reached = match outcome {
                Outcome::Translated { oa, .. } => Some(oa),
                Outcome::Refused(_) => None,
            };
        }
        Ok(reached)
    }
}
