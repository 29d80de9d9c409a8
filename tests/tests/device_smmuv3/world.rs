//! A machine with one SMMU, its devices and their domains, all told to the ledger.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, OnceLock};

use iopt::device::smmuv3::{Features, Smmu, Smmuv3Domain, Smmuv3Driver};
use iopt::device::{
    AttachError, By, Config, DefaultKind, DeviceAddress, DeviceControl, DeviceTlb, Hwpt, Identity,
    InstanceFacts, Machine, MachineParts, Owner, Ownership, Registration, Registry, Resolved,
    Stream,
};
use iopt::firmware::{InstanceIndex, NodeIndex};
use iopt::invalidation::queue::smmuv3::CommandQueue;
use iopt::ioas::{Holes, Ioas, Mapping, Pages, Place};
use iopt::pin::{Firmness, Simulated, Source};
use iopt_formats::armv8::{Stage1, Stage2};
use iopt_formats::command::Pasid;
use iopt_formats::{Iova, IovaRange, Oa, PageSize, Prot};
use iopt_reference::Memory;
use iopt_reference::context::smmu;
use iopt_rig::{MachineConfig, Registers, Smmuv3, Tables};
use iopt_sim::{Attachment, Contexts, Iommu, Ledger, Outcome, Resolution, Rights, StaleAccess};

pub(crate) type Rig = iopt_rig::Machine<Smmuv3<12>>;
pub(crate) type Queue = CommandQueue<Registers>;
pub(crate) type Domain = Smmuv3Domain<Tables, Queue>;

/// Streams of the devices; two see the same tables, and 0x105 shares a level 2 table with 0x100.
pub(crate) const STREAMS: [&[u32]; 4] = [&[0x100], &[0x105, 0x300], &[0x008], &[0x7700]];

/// What the stream table's registers say, once there is one.
#[derive(Default)]
struct Late(OnceLock<smmu::Registers>);

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
        let number = (0..STREAMS.len()).find(|&number| address(number) == device);
        for &stream in STREAMS[number.unwrap()] {
            self.iommu.set_device_tlb(stream, is_enabled);
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
    pub(crate) smmu: Arc<Smmu<Tables, Queue>>,
    pub(crate) registry: Arc<Registry>,
    pub(crate) ownerships: Vec<Arc<Ownership>>,
    /// Where something is attached, to tell replacements.
    attached: Mutex<BTreeMap<(usize, u32), Option<u64>>>,
}

impl World {
    pub(crate) fn new(seed: u64, has_ats: bool, pasid_bits: u8) -> Self {
        // Both stages, AArch64, coherent, ATS, 16-bit ASIDs and VMIDs, two levels of both kinds of tables.
        let idr0 = 0b11 | 2 << 2 | 1 << 4 | 1 << 10 | 1 << 12 | 1 << 18 | 1 << 19 | 1 << 27;
        let (idr1, idr5) = (16 | 12 << 6 | 1 << 27, 5 | 7 << 4);
        let late = Arc::new(Late::default());
        let config = MachineConfig {
            seed,
            ..MachineConfig::default()
        };
        let behaviour = Smmuv3 {
            has_ranges: seed.is_multiple_of(2),
            has_contiguous_erratum: false,
        };
        let contexts = Arc::<Late>::clone(&late);
        let rig = Rig::with_contexts(behaviour, config, contexts).unwrap();
        let memory = Arc::new(rig.tables());
        let features = Features::from_registers(idr0, idr1, 0, idr5);
        let smmu = Smmu::new(features, Arc::clone(&memory), Arc::clone(rig.instance())).unwrap();
        let table = smmu.stream_table();
        let registers = smmu::Registers {
            idr0,
            idr1,
            idr3: 0,
            idr5,
            cr0: 1,
            gbpa: 0,
            strtab_base: table.base_register(),
            strtab_base_cfg: table.cfg_register(),
        };
        late.0.set(registers).unwrap();
        let control = Arc::new(Control {
            iommu: Arc::clone(rig.iommu()),
            has_ats,
        });
        let driver = Smmuv3Driver::<Tables, Queue>::new(memory, control);
        let registry = Self::registry(pasid_bits);
        // Nobody knows them yet, which hardware may remember.
        for stream in STREAMS.into_iter().flatten() {
            let outcome = rig.iommu().access(*stream, None, 0x1000, Rights::READ);
            assert!(matches!(outcome, Ok(Outcome::Refused(_))));
        }
        let early = STREAMS.len() / 2;
        for number in 0..early {
            registry.add_device(address(number)).unwrap();
        }
        let registration = Registration {
            identity: Identity::Described(InstanceIndex(0)),
            driver,
            instance: Arc::<Smmu<Tables, Queue>>::clone(&smmu),
        };
        registry.register(registration).unwrap();
        for number in early..STREAMS.len() {
            registry.add_device(address(number)).unwrap();
        }
        let owner = Owner::new("the test");
        let claim = |number| Arc::new(registry.claim_owner(address(number), &owner).unwrap());
        let ownerships = (0..STREAMS.len()).map(claim).collect();
        Self {
            rig,
            smmu,
            registry,
            ownerships,
            attached: Mutex::default(),
        }
    }

    fn registry(pasid_bits: u8) -> Arc<Registry> {
        let devices = STREAMS.iter().enumerate().map(|(number, ids)| Resolved {
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
            default_kind: Some(DefaultKind::Paging),
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
            1 => Domain::stage1(Stage1::<12>::new(48, 48).unwrap(), memory),
            _ => Domain::stage2(Stage2::<12>::new(48, 48).unwrap(), memory),
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
        let requester = |stream: u32| (stream, (place > 0).then_some(place));
        let old = self.attached.lock().unwrap().get(&(device, place)).copied();
        for &stream in STREAMS[device] {
            let (stream, pasid) = requester(stream);
            ledger.detach(stream, pasid);
            ledger.attach(stream, pasid, attachment);
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
        for &stream in STREAMS[device] {
            let (stream, pasid) = requester(stream);
            ledger.detach_done(stream, pasid);
            ledger.attach_done(stream, pasid);
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
        let requester = |stream: u32| (stream, (place > 0).then_some(place));
        for &stream in STREAMS[device] {
            let (stream, pasid) = requester(stream);
            self.ledger().detach(stream, pasid);
        }
        match pasid(place) {
            None => self.registry.detach(address(device), by).unwrap(),
            Some(pasid) => self
                .registry
                .detach_pasid(address(device), by, pasid)
                .unwrap(),
        }
        for &stream in STREAMS[device] {
            let (stream, pasid) = requester(stream);
            self.ledger().detach_done(stream, pasid);
        }
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
        for &stream in STREAMS[device] {
            let outcome = self.rig.iommu().access(stream, pasid, iova, Rights::READ)?;
            reached = match outcome {
                Outcome::Translated { oa, .. } => Some(oa),
                Outcome::Refused(_) => None,
            };
        }
        Ok(reached)
    }
}
