//! A machine with one IOMMU, its devices and their domains, all told to the ledger.

use std::collections::BTreeMap;
use std::fmt;
use std::sync::{Arc, Mutex, OnceLock};

use iopt::device::amd::{AmdDomain, AmdDriver, AmdIommu, Features};
use iopt::device::ids::Ids;
use iopt::device::{
    AttachError, By, Config, DefaultKind, DeviceAddress, DeviceControl, DeviceTlb, Hwpt, Identity,
    InstanceFacts, Machine, MachineParts, Owner, Ownership, Registration, Registry, Resolved,
    Stream,
};
use iopt::firmware::{InstanceIndex, NodeIndex};
use iopt::invalidation::queue::amd::CommandBuffer;
use iopt::ioas::{Holes, Ioas, Mapping, Pages, Place};
use iopt::mem::{FlushLine, NonSnooped};
use iopt::pin::{Firmness, Simulated, Source};
use iopt::radix::MapSide;
use iopt_formats::amd::V1;
use iopt_formats::command::Pasid;
use iopt_formats::x86_64::AmdV2;
use iopt_formats::{Iova, IovaRange, Oa, PageSize, Prot};
use iopt_reference::Memory;
use iopt_reference::context::amd::Registers as ContextRegisters;
use iopt_reference::context::{Binding, ContextFault, amd};
use iopt_rig::{Amd, MachineConfig, Registers, Tables};
use iopt_sim::{Attachment, Contexts, Iommu, Ledger, Outcome, Resolution, Rights, StaleAccess};

pub(crate) type Rig = iopt_rig::Machine<Amd>;
pub(crate) type Queue = CommandBuffer<Registers>;
/// Tables of devices, of which each store is seen.
pub(crate) type Watched = NonSnooped<Tables, Watch>;
pub(crate) type Domain = AmdDomain<Watched, Queue>;

/// IDs of the devices; two see the same tables.
pub(crate) const IDS: [&[u32]; 4] = [&[0x100], &[0x105, 0x300], &[0x008], &[0x3ff]];

/// What the registers say, once there is a device table.
#[derive(Default)]
struct Late(OnceLock<ContextRegisters>);

impl Contexts for Late {
    fn resolve(&self, memory: &dyn Memory, device: u32, pasid: Option<u32>) -> Resolution {
        self.0.get().unwrap().resolve(memory, device, pasid)
    }
}

/// Looks at memory after each store to entries.
#[derive(Clone, Default)]
pub(crate) struct Watch(Arc<Mutex<Option<Arc<Look>>>>);

type Look = dyn Fn() + Send + Sync;

impl Watch {
    pub(crate) fn set(&self, look: Option<Arc<Look>>) {
        *self.0.lock().unwrap() = look;
    }
}

impl FlushLine for Watch {
    fn flush_line(&self, _line: *const u8) {
        let look = self.0.lock().unwrap().clone();
        if let Some(look) = look {
            look();
        }
    }
}

impl fmt::Debug for Watch {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Watch")
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

    fn has_page_requests(&self, device: DeviceAddress) -> bool {
        self.has_ats(device)
    }

    fn ats_queue_depth(&self, _device: DeviceAddress) -> u8 {
        32
    }

    fn set_ats(&self, device: DeviceAddress, is_enabled: bool) {
        let number = (0..IDS.len()).find(|&number| address(number) == device);
        for &id in IDS[number.unwrap()] {
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

/// Which tables a space has.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(crate) enum Version {
    /// Version 1.
    One,
    /// Version 2, of four levels.
    Two,
    /// Version 2, of five levels.
    Wide,
}

pub(crate) struct World {
    pub(crate) rig: Arc<Rig>,
    pub(crate) iommu: Arc<AmdIommu<Watched, Queue>>,
    pub(crate) registry: Arc<Registry>,
    pub(crate) watch: Watch,
    /// Whether version 2 tables of processes have five levels.
    pub(crate) is_wide: bool,
    contexts: ContextRegisters,
    ownerships: Vec<Arc<Ownership>>,
    /// Where something is attached, to tell replacements.
    attached: Mutex<BTreeMap<(usize, u32), Option<u64>>>,
}

impl World {
    pub(crate) fn new(seed: u64, has_ats: bool, pasid_bits: u8) -> Self {
        Self::with_default(seed, has_ats, pasid_bits, DefaultKind::Paging)
    }

    pub(crate) fn with_default(
        seed: u64,
        has_ats: bool,
        pasid_bits: u8,
        default_kind: DefaultKind,
    ) -> Self {
        // ATS and extended features: PPR, GT, six and five levels, guest CR3 tables of three, PASIDs of 20 bits, GIoSup.
        let capability = 1 << 24 | 1 << 27;
        let extended = 1 << 1 | 1 << 4 | 2 << 10 | 1 << 12 | 2 << 14 | 19 << 32 | 1 << 48;
        let features = Features::from_registers(capability, 52 << 8, extended);
        // GCR3TRPMode, which the control register sets.
        let features = features.with_second_register(1 << 3);
        let late = Arc::new(Late::default());
        let config = MachineConfig {
            seed,
            ..MachineConfig::default()
        };
        let behaviour = Amd {
            has_absent_entries: seed.is_multiple_of(2),
        };
        let contexts = Arc::<Late>::clone(&late);
        let rig = Rig::with_contexts(behaviour, config, contexts).unwrap();
        let watch = Watch::default();
        let memory = Arc::new(NonSnooped::new(rig.tables(), watch.clone()));
        let instance = Arc::clone(rig.instance());
        let iommu = AmdIommu::new(features, Arc::clone(&memory), instance, 0x3ff).unwrap();
        let contexts = ContextRegisters {
            devtab: iommu.device_tables()[0].register(),
            control: 1 | 1 << 58,
        };
        late.0.set(contexts).unwrap();
        let control = Arc::new(Control {
            iommu: Arc::clone(rig.iommu()),
            has_ats,
        });
        let driver = AmdDriver::<Watched, Queue>::new(memory, control);
        let registry = Self::registry(pasid_bits, default_kind);
        // Nobody knows them yet, which hardware may remember.
        for id in IDS.into_iter().flatten() {
            let outcome = rig.iommu().access(*id, None, 0x1000, Rights::READ);
            assert!(matches!(outcome, Ok(Outcome::Refused(_))));
        }
        let early = IDS.len() / 2;
        for number in 0..early {
            registry.add_device(address(number)).unwrap();
        }
        let registration = Registration {
            identity: Identity::Described(InstanceIndex(0)),
            driver,
            instance: Arc::<AmdIommu<Watched, Queue>>::clone(&iommu),
        };
        registry.register(registration).unwrap();
        for number in early..IDS.len() {
            registry.add_device(address(number)).unwrap();
        }
        Self {
            rig,
            iommu,
            registry,
            watch,
            is_wide: seed % 4 == 3,
            contexts,
            ownerships: Vec::new(),
            attached: Mutex::default(),
        }
    }

    /// Takes all devices for the test: they are blocked.
    pub(crate) fn owned(mut self) -> Self {
        let owner = Owner::new("the test");
        let claim = |number| Arc::new(self.registry.claim_owner(address(number), &owner).unwrap());
        self.ownerships = (0..IDS.len()).map(claim).collect();
        self
    }

    /// Returns what memory has for requests of an ID.
    pub(crate) fn binding(
        &self,
        id: u32,
        place: u32,
    ) -> impl Fn() -> Result<Binding, ContextFault> + Send + Sync + use<> {
        let rig = Arc::clone(&self.rig);
        let registers = self.contexts;
        move || {
            let pasid = (place > 0).then_some(place);
            amd::resolve(&registers, &**rig.memory(), id, pasid)
        }
    }

    fn registry(pasid_bits: u8, default_kind: DefaultKind) -> Arc<Registry> {
        let devices = IDS.iter().enumerate().map(|(number, ids)| Resolved {
            streams: vec![Stream {
                instance: InstanceIndex(0),
                ids: ids.to_vec(),
            }],
            pasid_bits,
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
            default_kind: Some(default_kind),
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
    pub(crate) fn space(&self, number: u64, version: Version) -> Space {
        let memory = Arc::new(self.rig.tables());
        let domain = match version {
            Version::One => Domain::host(V1::fixed(4, 48).unwrap(), memory, MapSide::Announced),
            Version::Two => Domain::guest(AmdV2::new(47).unwrap(), memory, MapSide::Announced),
            Version::Wide => Domain::guest(AmdV2::new(56).unwrap(), memory, MapSide::Announced),
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
        let pasid_number = (place > 0).then_some(place);
        let old = self.attached.lock().unwrap().get(&(device, place)).copied();
        for &id in IDS[device] {
            ledger.detach(id, pasid_number);
            ledger.attach(id, pasid_number, attachment);
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
        for &id in IDS[device] {
            ledger.detach_done(id, pasid_number);
            ledger.attach_done(id, pasid_number);
        }
        Ok(())
    }

    /// Returns by what right a device is bound.
    pub(crate) fn ownership(&self, device: usize) -> Arc<Ownership> {
        Arc::clone(&self.ownerships[device])
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
        let pasid_number = (place > 0).then_some(place);
        for &id in IDS[device] {
            self.ledger().detach(id, pasid_number);
        }
        match pasid(place) {
            None => self.registry.detach(address(device), by).unwrap(),
            Some(pasid) => self
                .registry
                .detach_pasid(address(device), by, pasid)
                .unwrap(),
        }
        for &id in IDS[device] {
            self.ledger().detach_done(id, pasid_number);
        }
    }

    pub(crate) fn is_attached(&self, device: usize, place: u32, number: u64) -> bool {
        let attached = self.attached.lock().unwrap();
        attached.get(&(device, place)) == Some(&Some(number))
    }

    /// Returns whether anything is attached there.
    pub(crate) fn is_occupied(&self, device: usize, place: u32) -> bool {
        let attached = self.attached.lock().unwrap();
        attached.contains_key(&(device, place))
    }

    /// Takes all devices away, and returns the IDs that they and their domains had.
    pub(crate) fn leave(mut self) -> Arc<Ids> {
        self.ownerships.clear();
        for number in 0..IDS.len() {
            let guard = self.registry.lock_device(address(number)).unwrap();
            let _ = guard.remove();
        }
        Arc::clone(self.iommu.domain_ids())
    }

    /// Makes a request by each ID of a device, all of which must be served alike.
    pub(crate) fn access(
        &self,
        device: usize,
        place: u32,
        iova: u64,
    ) -> Result<Option<u64>, Box<StaleAccess>> {
        let pasid = (place > 0).then_some(place);
        let mut reached = None;
        for &id in IDS[device] {
            let outcome = self.rig.iommu().access(id, pasid, iova, Rights::READ)?;
            reached = match outcome {
                Outcome::Translated { oa, .. } => Some(oa),
                Outcome::Refused(_) => None,
            };
        }
        Ok(reached)
    }
}
