//! A machine with one remapping unit, its devices and their domains, all told to the ledger.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, OnceLock};
use std::time::Duration;

use iopt::device::vtd::{Features, VtdDomain, VtdDriver, VtdUnit};
use iopt::device::{
    AttachError, By, Config, DefaultKind, DeviceAddress, DeviceControl, DeviceTlb, Hwpt, Identity,
    InstanceFacts, Machine, MachineParts, Owner, Ownership, Registration, Registry, Resolved,
    Stream,
};
use iopt::firmware::{InstanceIndex, NodeIndex};
use iopt::invalidation::queue::vtd::InvalidationQueue;
use iopt::ioas::{Holes, Ioas, Mapping, Pages, Place};
use iopt::pin::{Firmness, Simulated, Source};
use iopt::radix::MapSide;
use iopt_formats::command::Pasid;
use iopt_formats::context::vtd::TableMode;
use iopt_formats::vtd::{FirstStage, SecondStage};
use iopt_formats::{Iova, IovaRange, Oa, PageSize, Prot};
use iopt_reference::Memory;
use iopt_reference::context::vtd;
use iopt_rig::{MachineConfig, Registers, Tables, Vtd};
use iopt_sim::{Attachment, Contexts, Iommu, Ledger, Outcome, Resolution, Rights, StaleAccess};

pub(crate) type Rig = iopt_rig::Machine<Vtd<4>>;
pub(crate) type Queue = InvalidationQueue<Registers, 4>;
pub(crate) type Domain = VtdDomain<Tables, Queue>;

/// Requester IDs of the devices; two see the same tables, and 0x105 and 0x180 are on one bus with 0x100.
pub(crate) const SOURCES: [&[u32]; 4] = [&[0x100], &[0x105, 0x300], &[0x008], &[0x0180]];

/// Which unit it is.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Kind {
    pub(crate) mode: TableMode,
    /// What is not present is cached.
    pub(crate) has_caching_mode: bool,
    pub(crate) has_ats: bool,
    /// Of devices; in legacy mode without meaning.
    pub(crate) pasid_bits: u8,
    /// What default domains are.
    pub(crate) chosen: DefaultKind,
    /// `CAP_REG.ND`: of 16 domain IDs, or of 65536.
    pub(crate) nd: u64,
}

impl Kind {
    /// Returns one of each, by turns.
    pub(crate) const fn of(seed: u64) -> Self {
        Self {
            mode: if seed & 1 == 0 {
                TableMode::Scalable
            } else {
                TableMode::Legacy
            },
            has_caching_mode: seed & 2 != 0,
            has_ats: !seed.is_multiple_of(3),
            pasid_bits: if seed & 4 == 0 { 4 } else { 14 },
            chosen: DefaultKind::Paging,
            nd: 6,
        }
    }

    pub(crate) const fn is_scalable(self) -> bool {
        matches!(self.mode, TableMode::Scalable)
    }
}

/// What the registers say, once there is a root table.
#[derive(Default)]
struct Late(OnceLock<vtd::Registers>);

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
}

impl DeviceControl for Control {
    fn has_ats(&self, device: DeviceAddress) -> bool {
        // The third one caches nothing.
        self.has_ats && device != address(2)
    }

    fn set_ats(&self, device: DeviceAddress, is_enabled: bool) {
        let number = (0..SOURCES.len()).find(|&number| address(number) == device);
        for &source in SOURCES[number.unwrap()] {
            self.iommu.set_device_tlb(source, is_enabled);
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
    pub(crate) unit: Arc<VtdUnit<Tables, Queue>>,
    pub(crate) kind: Kind,
    pub(crate) registry: Arc<Registry>,
    pub(crate) ownerships: Vec<Arc<Ownership>>,
    /// Where something is attached, to tell replacements.
    attached: Mutex<BTreeMap<(usize, u32), Option<u64>>>,
}

impl World {
    /// Creates one whose devices have an owner, and are blocked.
    pub(crate) fn new(seed: u64, kind: Kind) -> Self {
        let mut world = Self::unowned(seed, kind);
        let owner = Owner::new("the test");
        let claim = |number| world.registry.claim_owner(address(number), &owner).unwrap();
        let numbers = 0..SOURCES.len();
        world.ownerships = numbers.map(|number| Arc::new(claim(number))).collect();
        world
    }

    /// Creates one whose devices are in their default domains.
    pub(crate) fn unowned(seed: u64, kind: Kind) -> Self {
        // 3 or 4 levels, 48 bits, pages of all sizes.
        let cap = kind.nd | 0b11 << 9 | 47 << 16 | 3 << 34 | 1 << 56;
        // Device TLBs, pass through, nesting, PASIDs of 20 bits, scalable mode with both stages and walks that snoop.
        let ecap = 1 << 2 | 1 << 6 | 1 << 26 | 19 << 35 | 1 << 40 | 1 << 43 | 3 << 46 | 1 << 48;
        let late = Arc::new(Late::default());
        let config = MachineConfig {
            seed,
            limit: Duration::from_micros(200),
            ..MachineConfig::default()
        };
        let behaviour = Vtd {
            has_caching_mode: kind.has_caching_mode,
            max_order: Some(18),
        };
        let contexts = Arc::<Late>::clone(&late);
        let rig = Rig::with_contexts(behaviour, config, contexts).unwrap();
        let memory = Arc::new(rig.tables());
        let features = Features::from_registers(cap, ecap, 46);
        let instance = Arc::clone(rig.instance());
        let unit = VtdUnit::new(features, kind.mode, Arc::clone(&memory), instance).unwrap();
        let unit = Arc::new(unit);
        let registers = vtd::Registers {
            cap,
            ecap,
            gsts: 1 << 31,
            rtaddr: unit.root_table().encode(),
            host_address_bits: 46,
        };
        late.0.set(registers).unwrap();
        unit.forget_everything().unwrap();
        let control = Arc::new(Control {
            iommu: Arc::clone(rig.iommu()),
            has_ats: kind.has_ats,
        });
        let driver = VtdDriver::<Tables, Queue>::new(memory, control);
        let registry = Self::registry(kind);
        // Nobody knows them yet, which hardware may remember.
        for source in SOURCES.into_iter().flatten() {
            let outcome = rig.iommu().access(*source, None, 0x1000, Rights::READ);
            assert!(matches!(outcome, Ok(Outcome::Refused(_))));
        }
        let early = SOURCES.len() / 2;
        for number in 0..early {
            registry.add_device(address(number)).unwrap();
        }
        let registration = Registration {
            identity: Identity::Described(InstanceIndex(0)),
            driver,
            instance: Arc::<VtdUnit<Tables, Queue>>::clone(&unit),
        };
        registry.register(registration).unwrap();
        for number in early..SOURCES.len() {
            registry.add_device(address(number)).unwrap();
        }
        Self {
            rig,
            unit,
            kind,
            registry,
            ownerships: Vec::new(),
            attached: Mutex::default(),
        }
    }

    fn registry(kind: Kind) -> Arc<Registry> {
        let devices = SOURCES.iter().enumerate().map(|(number, ids)| Resolved {
            streams: vec![Stream {
                instance: InstanceIndex(0),
                ids: ids.to_vec(),
            }],
            pasid_bits: kind.pasid_bits,
            device_tlb: DeviceTlb::Allowed,
            ..Resolved::new(address(number), number)
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
            default_kind: Some(kind.chosen),
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
    /// In scalable mode it has the stage that is wanted.
    pub(crate) fn space(&self, number: u64, stage: u8) -> Space {
        let memory = Arc::new(self.rig.tables());
        let map_side = if self.kind.has_caching_mode {
            MapSide::Announced
        } else {
            MapSide::Silent
        };
        let domain = if stage == 1 && self.kind.is_scalable() {
            let format = FirstStage::new(47).unwrap();
            Domain::first_stage(format.with_oa_bits(46).unwrap(), memory, map_side)
        } else {
            let format = SecondStage::new(48).unwrap();
            Domain::second_stage(format.with_oa_bits(46).unwrap(), memory, map_side)
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
        self.map_to(space, iova, len, (&space.pages, iova), space.base + iova);
    }

    /// Maps `len` bytes at `iova` to pages, from an offset on, which are at `oa`.
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

    /// Attaches `hwpt`, `attachment` to the ledger, in place of what is attached.
    pub(crate) fn attach(
        &self,
        device: usize,
        place: u32,
        hwpt: &Arc<dyn Hwpt>,
        attachment: Attachment,
    ) -> Result<(), AttachError> {
        let by = By::Owner(&self.ownerships[device]);
        let ledger = self.ledger();
        let requester = |source: u32| (source, (place > 0).then_some(place));
        let old = self.attached.lock().unwrap().get(&(device, place)).copied();
        for &source in SOURCES[device] {
            let (source, pasid) = requester(source);
            ledger.detach(source, pasid);
            ledger.attach(source, pasid, attachment);
        }
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
        for &source in SOURCES[device] {
            let (source, pasid) = requester(source);
            ledger.detach_done(source, pasid);
            ledger.attach_done(source, pasid);
        }
        Ok(())
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
        let by = By::Owner(&self.ownerships[device]);
        if self
            .attached
            .lock()
            .unwrap()
            .remove(&(device, place))
            .is_none()
        {
            return;
        }
        let requester = |source: u32| (source, (place > 0).then_some(place));
        for &source in SOURCES[device] {
            let (source, pasid) = requester(source);
            self.ledger().detach(source, pasid);
        }
        match pasid(place) {
            None => self.registry.detach(address(device), by).unwrap(),
            Some(pasid) => self
                .registry
                .detach_pasid(address(device), by, pasid)
                .unwrap(),
        }
        for &source in SOURCES[device] {
            let (source, pasid) = requester(source);
            self.ledger().detach_done(source, pasid);
        }
    }

    pub(crate) fn is_attached(&self, device: usize, place: u32, number: u64) -> bool {
        let attached = self.attached.lock().unwrap();
        attached.get(&(device, place)) == Some(&Some(number))
    }

    /// Makes a request by each requester ID of a device, all of which must be served alike.
    pub(crate) fn access(
        &self,
        device: usize,
        place: u32,
        iova: u64,
    ) -> Result<Option<u64>, Box<StaleAccess>> {
        let pasid = (place > 0).then_some(place);
        let mut reached = None;
        for &source in SOURCES[device] {
            let outcome = self.rig.iommu().access(source, pasid, iova, Rights::READ)?;
            reached = match outcome {
                Outcome::Translated { oa, .. } => Some(oa),
                Outcome::Refused(_) => None,
            };
        }
        Ok(reached)
    }
}
